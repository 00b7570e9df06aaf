//! Everything that is published at one moment: lowered resources, who sees them, and what changed since.

use airlane_core::id::{InstanceId, Namespace, ObjectId};
use envoy_types::pb::google::protobuf::Any;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

/// The kinds of resources, in the order in which a change is sent: what is referred to before what refers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// SDS: trust bundles (leaves come from the agent, never from here).
    Secret,
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS: one per caller namespace, empty but for its VHDS source and the unknown-name answer.
    Routes,
    /// VHDS: one per host and caller namespace.
    VirtualHost,
    /// RTDS: the shares of every split.
    Runtime,
}

impl Kind {
    /// Every kind, in sending order.
    pub const ALL: [Kind; 7] = [
        Kind::Secret,
        Kind::Cluster,
        Kind::Endpoints,
        Kind::Listener,
        Kind::Routes,
        Kind::VirtualHost,
        Kind::Runtime,
    ];

    /// The type URL on the wire.
    pub fn type_url(self) -> &'static str {
        match self {
            Kind::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Kind::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Kind::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
        }
    }

    /// The kind of a type URL, if it is one we serve.
    pub fn of(type_url: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// A hash of the *lowered value* (never of encoded bytes, which are not stable) and of the lowering's own version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version(pub u64);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for Version {
    type Err = std::num::ParseIntError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(s, 16).map(Version)
    }
}

/// A resource's kind and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its name, unique in its kind.
    pub name: Arc<str>,
}

/// Who sees a resource.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    /// Every proxy.
    Everyone,
    /// The proxies of a namespace.
    Namespace(Namespace),
    /// One proxy.
    Proxy(InstanceId),
}

/// One resource, encoded once and shared by every stream that sends it.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Its kind and name.
    pub key: Key,
    /// Who sees it.
    pub scope: Scope,
    /// Its version.
    pub version: Version,
    /// Its encoding.
    pub body: Arc<Any>,
    /// How long a proxy keeps it without a sign of life ([`Kind::Runtime`] only).
    pub ttl: Option<Duration>,
    /// The clusters a virtual host or listener names: sent and acknowledged before it, removed after it.
    pub clusters: Arc<BTreeSet<Arc<str>>>,
    /// The domains of a virtual host, as sorted hashes: no two hosts of a route configuration may have one in common.
    pub domains: Arc<[u64]>,
    /// The objects that shaped it: what a rejection is shown on.
    pub shaped_by: Arc<BTreeSet<ObjectId>>,
}

/// Everything that is published at one moment. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Counts publications that changed something.
    pub epoch: u64,
    /// Every resource, by who sees it.
    pub resources: HashMap<Scope, Arc<BTreeMap<Key, Arc<Resource>>>>,
}

impl Catalog {
    /// The resource of this name that a proxy sees.
    pub fn get(&self, proxy: &InstanceId, namespace: &Namespace, key: &Key) -> Option<&Arc<Resource>> {
        self.scopes_of(proxy, namespace).into_iter().find_map(|scope| self.resources.get(&scope)?.get(key))
    }

    /// Every resource a proxy sees, scope by scope.
    pub fn seen_by<'a>(
        &'a self,
        proxy: &InstanceId,
        namespace: &Namespace,
    ) -> impl Iterator<Item = &'a Arc<Resource>> + use<'a> {
        self.scopes_of(proxy, namespace)
            .into_iter()
            .filter_map(|scope| self.resources.get(&scope))
            .flat_map(|resources| resources.values())
    }

    fn scopes_of(&self, proxy: &InstanceId, namespace: &Namespace) -> [Scope; 3] {
        [Scope::Everyone, Scope::Namespace(namespace.clone()), Scope::Proxy(proxy.clone())]
    }
}

/// What one publication changed: added, updated and removed resources alike.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The epoch of the catalog that has the change.
    pub epoch: u64,
    /// What changed, by who sees it.
    pub keys: BTreeMap<Scope, BTreeSet<Key>>,
}
