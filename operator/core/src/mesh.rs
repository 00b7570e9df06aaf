//! What the data plane should do, in words no proxy owns: the result of [`crate::compile::compile`].
//!
//! Three parts, because sharing decides the cost: destinations are encoded once and sent to every caller,
//! doors are shared by a revision's instances, and only listeners and addresses belong to one proxy.

use crate::{
    id::{
        ClusterDomain, ClusterName, Identity, InstanceId, Name, Namespace, ObjectId, ServiceId, ServicePort,
        TrustDomain, WorkloadRevision,
    },
    interception::Interception,
    policy::{AccessSpec, LoadBalancing, Millis, MtlsMode, RetryOn},
    protocol::Protocol,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
};

/// What every proxy should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mesh {
    /// Whose identities are trusted.
    pub trust_domain: TrustDomain,
    /// The DNS suffix under which callers know services as well; `None` outside a cluster.
    pub cluster_domain: Option<ClusterDomain>,
    /// What can be called: clusters, endpoints and one virtual host each.
    pub destinations: BTreeMap<ServicePort, Arc<Destination>>,
    /// Doors, shared by the instances of a revision.
    pub workloads: BTreeMap<WorkloadRevision, Arc<Inbound>>,
    /// Listeners and addresses of each proxy.
    pub proxies: BTreeMap<InstanceId, Arc<Proxy>>,
    /// Namespaces with callers that are told where their proxy is ([`Interception::Environment`]): each gets its own
    /// route configuration.
    pub caller_namespaces: BTreeSet<Namespace>,
    /// Namespaces with callers whose calls are redirected ([`Interception::Transparent`]): each gets its own route
    /// configuration for every port that requests go to.
    pub transparent_namespaces: BTreeSet<Namespace>,
    /// Short names that mean nothing in a namespace without a service of that name, with the candidates.
    pub ambiguous: BTreeMap<Name, Arc<BTreeSet<ServiceId>>>,
    /// The current shares of every split, as runtime keys → parts of [`FULL_SHARE`]. They travel apart from the
    /// routes, in a layer that expires by itself; the routes carry the fail-safe shares.
    pub shares: BTreeMap<String, u32>,
}

/// The whole of a split: shares are counted in hundredths of a percent.
pub const FULL_SHARE: u32 = 10_000;

/// Something that can be called.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Destination {
    /// What it is.
    pub port: ServicePort,
    /// Whether it answers to the service's name without a port, and with port 80.
    pub default_port: bool,
    /// Whether it is the service's only port: then it answers to the service's name with any port, because callers
    /// know the one that the application listens on.
    pub only_port: bool,
    /// Who may use the short name.
    pub short_name: ShortName,
    /// What the applications behind it speak.
    pub protocol: Protocol,
    /// One cluster without revision; after a canary has targeted the service, one for each revision as well.
    pub clusters: Vec<Cluster>,
    /// Where requests go.
    pub route: Route,
    /// How calls are made.
    pub calls: Calls,
    /// Virtual addresses that mean it, beside its names; no other service has them.
    pub addresses: BTreeSet<IpAddr>,
    /// The objects that shaped it: what a rejection by a proxy is shown on.
    pub shaped_by: BTreeSet<ObjectId>,
}

/// Who may use a service's short name (`pay` for `pay.shop.mesh`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ShortName {
    /// Callers of its own namespace: another namespace has a service of the same name.
    OwnNamespace,
    /// Everybody but callers whose own namespace has a service of that name (there is none: it is unique).
    Everywhere,
}

/// Endpoints that are chosen among.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cluster {
    /// Its name, for ever.
    pub name: ClusterName,
    /// Who the endpoints must prove to be.
    pub identities: BTreeSet<Identity>,
    /// How they are spoken to.
    pub transport: Transport,
    /// Where they are; changes here touch nothing else.
    pub endpoints: Arc<Vec<Endpoint>>,
    /// Who answers while none of them can: the other revision's. Empty as long as one of them is healthy.
    pub stand_ins: Arc<Vec<Endpoint>>,
}

/// How a cluster's endpoints are spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    /// Every endpoint has a sidecar that accepts mTLS: HTTP/2 (or TCP) over mTLS.
    Mtls {
        /// HTTP/2 between the proxies, else HTTP/1.1; without meaning for TCP.
        http2: bool,
    },
    /// Some endpoints only speak plaintext: each by its own [`Endpoint::mtls`], HTTP/1.1 unless the application
    /// speaks HTTP/2.
    Mixed,
    /// No endpoint accepts mTLS.
    Plaintext,
}

/// One copy of a workload, as a caller sees it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Endpoint {
    /// Whose it is.
    pub instance: InstanceId,
    /// Its proxy's port before the application's.
    pub address: SocketAddr,
    /// Whether it accepts mTLS.
    pub mtls: bool,
    /// Whether its application answers; the unhealthy are published as such, so that the breaker's picture is whole.
    pub healthy: bool,
}

/// Where requests go.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Route {
    /// To one cluster.
    To(ClusterName),
    /// By the coin.
    Split(Split),
}

/// A split by the coin.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Split {
    /// `airlane.NAMESPACE.SERVICE.PORT`: the current share of a cluster is the runtime key `PREFIX.CLUSTER`.
    pub runtime_prefix: String,
    /// The shares that hold when nobody keeps the current ones alive; they sum to [`FULL_SHARE`].
    pub fail_safe: Vec<(ClusterName, u32)>,
}

impl Split {
    /// The runtime key that carries a cluster's current share.
    pub fn runtime_key(&self, cluster: &ClusterName) -> String {
        format!("{}.{cluster}", self.runtime_prefix)
    }
}

/// How calls are made: every value resolved.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Calls {
    /// The whole request, retries included; `None`: no limit.
    pub request_timeout: Option<Millis>,
    /// A stream without a byte.
    pub stream_idle_timeout: Millis,
    /// A connection without a request.
    pub connection_idle_timeout: Millis,
    /// Until the TCP connection stands.
    pub connect_timeout: Millis,
    /// What is tried again.
    pub retries: Retries,
    /// How many at once.
    pub limits: Limits,
    /// Which endpoint is left out for a while.
    pub outliers: Outliers,
    /// The answer when no endpoint can take the request.
    pub when_open: Option<WhenOpen>,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// A connection is closed, gently, after this long.
    pub max_connection_age: Option<Millis>,
}

/// What is tried again, in two classes of requests.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Retries {
    /// Requests that may be repeated after they reached the application.
    pub repeatable: Repeatable,
    /// The conditions for those.
    pub repeatable_on: BTreeSet<RetryOn>,
    /// The conditions for every other request: only ones that cannot have reached the application.
    pub others_on: BTreeSet<RetryOn>,
    /// Tries after the first; 0: none.
    pub attempts: u32,
    /// The longest one try may take.
    pub per_try_timeout: Option<Millis>,
    /// First pause.
    pub backoff_base: Millis,
    /// Longest pause.
    pub backoff_max: Millis,
    /// Retries as percent of the active requests.
    pub budget_percent: u32,
    /// Retries always allowed at once.
    pub budget_min_concurrent: u32,
}

/// Requests that may be repeated after they reached the application.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Repeatable {
    /// These methods, unless the request is gRPC.
    Methods(BTreeSet<String>),
    /// Every request.
    All,
}

/// How many at once; `None`: Envoy's own default does not apply either, the limit is off (2³²−1).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Limits {
    /// Connections.
    pub connections: Option<u32>,
    /// Requests waiting for a connection.
    pub pending_requests: Option<u32>,
    /// Requests.
    pub requests: Option<u32>,
    /// Retries; when said it takes the place of the budget.
    pub retries: Option<u32>,
    /// Requests before a connection is closed.
    pub requests_per_connection: Option<u32>,
}

/// Which endpoint is left out for a while.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Outliers {
    /// 5xx in a row; `None`: not watched.
    pub consecutive_5xx: Option<u32>,
    /// Gateway errors and connection failures in a row; `None`: not watched.
    pub consecutive_gateway_errors: Option<u32>,
    /// How often ejected endpoints are looked at.
    pub interval: Millis,
    /// How long the first ejection lasts.
    pub base_ejection_time: Millis,
    /// At most this part of the endpoints.
    pub max_ejection_percent: u32,
}

/// The answer when no endpoint can take the request.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct WhenOpen {
    /// The body.
    pub body: String,
    /// `retry-after`, in whole seconds.
    pub retry_after_s: Option<u64>,
}

/// The door of a workload.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Inbound {
    /// Whose door it is.
    pub workload: WorkloadRevision,
    /// What its callers expect it to be.
    pub identity: Identity,
    /// Each of the application's ports.
    pub ports: BTreeMap<u16, Door>,
    /// Its other ports; `None` if nobody can come to them.
    pub undeclared: Option<Undeclared>,
    /// The objects that shaped it.
    pub shaped_by: BTreeSet<ObjectId>,
}

/// The door before ports of an application that nobody has declared: what is spoken there is unknown.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Undeclared {
    /// Who may come in.
    pub mtls: MtlsMode,
    /// Ports for which a policy says something else.
    pub exceptions: BTreeMap<u16, MtlsMode>,
    /// Who may come: a sender must pass each of these.
    pub access: Vec<Access>,
}

/// The door before one port of an application.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Door {
    /// Who may come in.
    pub mtls: MtlsMode,
    /// What the application speaks; bytes if different protocols are declared of the port.
    pub protocol: Protocol,
    /// Who may ask for what: a request must pass each of these.
    pub access: Vec<Access>,
    /// Whether callers are expected at the copies' own addresses: a service without an address leads here.
    pub called_by_address: bool,
}

/// What one policy says about who may ask for what.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Access {
    /// The policy: a refusal names it.
    pub by: ObjectId,
    /// What it says.
    pub says: Arc<AccessSpec>,
}

/// Where the kernel redirects what enters a network namespace whose proxy is [`Interception::Transparent`].
pub const INBOUND_PORT: u16 = 15_006;

/// The ports of a pod that are the proxy's own: what goes there was not meant for the application.
pub const RESERVED_PORTS: RangeInclusive<u16> = 15_000..=15_099;

/// What belongs to one proxy only.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Proxy {
    /// The proxy.
    pub id: InstanceId,
    /// Who it is.
    pub identity: Identity,
    /// Its door.
    pub workload: WorkloadRevision,
    /// Its inbound listeners: where other proxies call it → the application's port.
    pub inbound: BTreeMap<SocketAddr, u16>,
    /// Its port for outbound calls, to which the kernel redirects them if it is [`Interception::Transparent`]; `None`
    /// if it makes none.
    pub outbound_port: Option<u16>,
    /// How the application's traffic reaches it.
    pub interception: Interception,
    /// Whether it listens on IPv6 where it listens on every address.
    pub ipv6: bool,
}
