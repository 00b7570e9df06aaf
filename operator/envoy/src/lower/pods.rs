//! Pods that are called by their own addresses: each as itself, over mTLS.
//!
//! Which address is whose changes with every pod, so it must cost little: for requests an address is a domain of a
//! virtual host that the pods of a workload share; for bytes it is a listener. All of them are called through the same
//! few clusters, which call where the connection went; who must answer there travels with the request.

use super::{
    Lowered,
    cluster::{CONNECTION_AGE, http_options},
    host::Host,
    lookup::domain,
    original::{DIRECT, original},
    proto::{duration, http_filter, inline, network_filter, packed, starting_with},
    requests::{anything, grpc, named},
    routes::PodRoutes,
    sockets, tls,
};
use crate::catalog::Kind;
use airlane_core::{
    changes::changes,
    id::{ClusterDomain, Identity, InstanceId, Name, Namespace, ObjectId, ServicePort, TrustDomain},
    mesh::{Destination, Mesh, Transport},
    policy::{Millis, MtlsMode},
    world::{Interception, Protocol},
};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster,
            core::v3::{HttpProtocolOptions, SubstitutionFormatString, substitution_format_string::Format},
            listener::v3::Filter,
            route::v3::{
                FilterConfig, Route, RouteAction, RouteMatch, VirtualHost,
                route::Action,
                route_action::{ClusterSpecifier, MaxStreamDuration},
            },
        },
        extensions::filters::{
            common::set_filter_state::v3::{FilterStateValue, filter_state_value},
            http::set_filter_state::v3::Config as OfRequests,
            network::{
                http_connection_manager::v3::{HttpConnectionManager, HttpFilter},
                set_filter_state::v3::Config as OfConnections,
            },
        },
    },
    google::protobuf::{Any, Duration},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Until a connection to a pod stands.
const CONNECT: Millis = Millis(1_000);

/// A stream to a pod without a byte, where no service says otherwise.
const STREAM_IDLE: Millis = Millis(300_000);

/// The filter by which a route says who must answer.
const EXPECTED: &str = "airlane.expected";

/// Where Envoy looks for the names that a certificate must have besides those that its cluster asks for.
const EXPECTED_NAMES: &str = "envoy.network.upstream_subject_alt_names";

/// What is spoken with a pod inside of mTLS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Anything.
    Bytes,
}

impl Spoken {
    pub(super) const ALL: [Spoken; 3] = [Spoken::Http1, Spoken::Http2, Spoken::Bytes];

    fn cluster(self) -> &'static str {
        match self {
            Spoken::Http1 => "pods|http1",
            Spoken::Http2 => "pods|http2",
            Spoken::Bytes => "pods|bytes",
        }
    }
}

/// CDS: whatever pod was called. Anybody of the mesh may answer; who exactly is said with each call.
#[derive(Hash)]
pub(super) struct Pods<'a> {
    pub(super) spoken: Spoken,
    pub(super) trust_domain: &'a TrustDomain,
}

impl Lowered for Pods<'_> {
    const KIND: Kind = Kind::Cluster;

    fn name(&self) -> String {
        self.spoken.cluster().to_owned()
    }

    fn encode(&self) -> Any {
        let (alpn, http2) = match self.spoken {
            Spoken::Http1 => (Some("http/1.1"), Some(false)),
            Spoken::Http2 => (Some("h2"), Some(true)),
            Spoken::Bytes => (None, None),
        };
        let http = http2.map(|http2| {
            let common = HttpProtocolOptions {
                max_connection_duration: Some(duration(CONNECTION_AGE)),
                ..Default::default()
            };
            http_options(common, http2)
        });
        let members = vec![starting_with(&format!("spiffe://{}/", self.trust_domain))];
        packed(Cluster {
            connect_timeout: Some(duration(CONNECT)),
            typed_extension_protocol_options: http.unwrap_or_default(),
            upstream_bind_config: sockets::to_endpoints(true, http2),
            upstream_connection_options: Some(sockets::kept_alive()),
            transport_socket: Some(tls::calling_any(members, alpn)),
            ..original(self.name())
        })
    }
}

/// Who must answer, for Envoy to find.
fn expected(identity: &Identity) -> FilterStateValue {
    FilterStateValue {
        key: Some(filter_state_value::Key::ObjectKey(EXPECTED_NAMES.to_owned())),
        value: Some(filter_state_value::Value::FormatString(SubstitutionFormatString {
            format: Some(Format::TextFormatSource(inline(&identity.to_string()))),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// The manager whose routes may say who must answer.
pub(super) fn expecting(mut manager: HttpConnectionManager) -> HttpConnectionManager {
    let filter = HttpFilter { disabled: true, ..http_filter(EXPECTED, OfRequests::default()) };
    manager.http_filters.insert(0, filter);
    manager
}

/// Says of a connection who must answer.
pub(super) fn expectation(identity: &Identity) -> Filter {
    let config = OfConnections { on_new_connection: vec![expected(identity)], ..Default::default() };
    network_filter("envoy.filters.network.set_filter_state", config)
}

/// The cluster of pods that speak bytes.
pub(super) fn bytes() -> String {
    Spoken::Bytes.cluster().to_owned()
}

/// Pods that are called alike at one port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Kin {
    /// Copies of a workload, whose doors accept mTLS.
    Meshed { port: u16, namespace: Namespace, workload: Name, identity: Identity },
    /// Pods of a service without an address that have no proxy.
    Bare { port: u16, of: ServicePort },
}

impl Kin {
    fn port(&self) -> u16 {
        match self {
            Kin::Meshed { port, .. } | Kin::Bare { port, .. } => *port,
        }
    }
}

/// Where pods are that are called alike, and what they stand behind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Place {
    addresses: BTreeSet<IpAddr>,
    http2: bool,
    /// Services without an address: whoever asks here for one of them by its name is given any of its pods.
    services: BTreeMap<ServicePort, Arc<Destination>>,
}

impl Place {
    /// The objects that shaped it.
    pub(super) fn shaped_by(&self) -> BTreeSet<ObjectId> {
        self.services.values().flat_map(|service| service.shaped_by.iter().cloned()).collect()
    }
}

/// Every pod that is called as itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Places {
    /// By what tells requests apart.
    pub(super) requests: BTreeMap<Kin, Arc<Place>>,
    /// By the address of one that speaks bytes, behind a service without an address: who it must be.
    pub(super) bytes: BTreeMap<SocketAddr, Arc<Identity>>,
}

impl Places {
    pub(super) fn of(mesh: &Mesh) -> Self {
        let mut places = Places::default();
        if mesh.transparent_namespaces.is_empty() {
            return places;
        }
        let mut requests: BTreeMap<Kin, Place> = BTreeMap::new();
        let mut kin_at: BTreeMap<SocketAddr, Kin> = BTreeMap::new();
        let redirected =
            mesh.proxies.values().filter(|proxy| proxy.interception == Interception::Transparent);
        let published = mesh.destinations.values().flat_map(|destination| &destination.clusters);
        let called: HashMap<SocketAddr, &InstanceId> = published
            .flat_map(|cluster| cluster.endpoints.iter())
            .map(|endpoint| (endpoint.address, &endpoint.instance))
            .collect();
        for proxy in redirected {
            let Some(inbound) = mesh.workloads.get(&proxy.workload) else { continue };
            for (at, port) in &proxy.inbound {
                // An address is given to a new pod before the object of the old one is gone.
                if called.get(at).is_some_and(|called| **called != proxy.id) {
                    continue;
                }
                let door = inbound.ports.get(port).filter(|door| door.mtls != MtlsMode::Disabled);
                let Some(door) = door else { continue };
                if door.protocol == Protocol::Tcp {
                    // Each costs every proxy a listener.
                    if door.called_by_address {
                        places.bytes.insert(*at, Arc::new(proxy.identity.clone()));
                    }
                    continue;
                }
                let kin = Kin::Meshed {
                    port: at.port(),
                    namespace: proxy.workload.namespace.clone(),
                    workload: proxy.workload.workload.clone(),
                    identity: proxy.identity.clone(),
                };
                kin_at.insert(*at, kin);
            }
        }
        for (at, kin) in &kin_at {
            let place =
                requests.entry(kin.clone()).or_insert_with(|| Place { http2: true, ..Place::default() });
            place.addresses.insert(at.ip());
        }
        let http = mesh.destinations.values().filter(|destination| destination.protocol.is_http());
        for destination in http {
            let Some(whole) = destination.clusters.first() else { continue };
            for endpoint in whole.endpoints.iter() {
                let kin = match kin_at.get(&endpoint.address) {
                    Some(kin) => kin.clone(),
                    None if destination.addresses.is_empty() => {
                        let of = destination.port.clone();
                        let kin = Kin::Bare { port: endpoint.address.port(), of };
                        kin_at.insert(endpoint.address, kin.clone());
                        kin
                    }
                    None => continue,
                };
                let place = requests.entry(kin).or_default();
                place.addresses.insert(endpoint.address.ip());
                let http1 = matches!(whole.transport, Transport::Mtls { http2: false });
                place.http2 &= !http1 || destination.protocol.is_http2();
                if destination.addresses.is_empty() {
                    let known = place.services.entry(destination.port.clone());
                    known.or_insert_with(|| Arc::clone(destination));
                }
            }
        }
        places.requests = requests.into_iter().map(|(kin, place)| (kin, Arc::new(place))).collect();
        places
    }

    /// Whether one mesh certainly has the places of another. Only what differs is looked at: there are thousands of pods,
    /// and what changes many times a second is which of them may be called.
    pub(super) fn are_same(old: &Mesh, new: &Mesh) -> bool {
        old.transparent_namespaces.is_empty() == new.transparent_namespaces.is_empty()
            && changes(&old.proxies, &new.proxies).next().is_none()
            && changes(&old.workloads, &new.workloads).next().is_none()
            && changes(&old.destinations, &new.destinations)
                .all(|(_, [was, is])| was.zip(is).is_some_and(|(was, is)| has_same_place(was, is)))
    }

    /// The ports on which pods take requests.
    pub(super) fn request_ports(&self) -> BTreeSet<u16> {
        self.requests.keys().map(Kin::port).collect()
    }
}

fn has_same_place(was: &Destination, is: &Destination) -> bool {
    // Places know the whole of a service without an address.
    let has_address = |destination: &Destination| !destination.addresses.is_empty();
    let pods = |destination: &Destination| {
        let whole = destination.clusters.first()?;
        let addresses: BTreeSet<SocketAddr> =
            whole.endpoints.iter().map(|endpoint| endpoint.address).collect();
        Some((whole.transport, addresses))
    };
    has_address(was) && has_address(is) && was.protocol == is.protocol && pods(was) == pods(is)
}

/// VHDS: the addresses of pods that are called alike.
#[derive(Hash)]
pub(super) struct AtAddresses<'a> {
    kin: &'a Kin,
    addresses: &'a BTreeSet<IpAddr>,
    http2: bool,
    services: Vec<Host<'a>>,
}

impl<'a> AtAddresses<'a> {
    pub(super) fn new(kin: &'a Kin, place: &'a Place, cluster_domain: Option<&'a ClusterDomain>) -> Self {
        let of_service = |destination: &'a Arc<Destination>| {
            Host::redirected(&destination.port.service.namespace, destination, cluster_domain)
        };
        Self {
            kin,
            addresses: &place.addresses,
            http2: place.http2,
            services: place.services.values().map(of_service).collect(),
        }
    }

    fn cluster(&self) -> &'static str {
        match (self.kin, self.http2) {
            (Kin::Bare { .. }, _) => DIRECT,
            (Kin::Meshed { .. }, true) => Spoken::Http2.cluster(),
            (Kin::Meshed { .. }, false) => Spoken::Http1.cluster(),
        }
    }

    /// To the one that was called. Its services' policies say how long that may take.
    fn as_called(&self) -> [Route; 2] {
        let service = self.services.first();
        let limit = || service.and_then(Host::request_timeout).map_or_else(Duration::default, duration);
        // As of a service: a caller of gRPC says how long it waits, and a stream is no request that takes too long.
        let deadline = MaxStreamDuration { grpc_timeout_header_max: Some(limit()), ..Default::default() };
        [
            self.to_the_one_called("pod-grpc", grpc(), Duration::default(), Some(deadline)),
            self.to_the_one_called("pod", anything(), limit(), None),
        ]
    }

    fn to_the_one_called(
        &self,
        name: &str,
        matching: RouteMatch,
        timeout: Duration,
        max_stream_duration: Option<MaxStreamDuration>,
    ) -> Route {
        let service = self.services.first();
        let idle = service.map_or(STREAM_IDLE, Host::stream_idle_timeout);
        let expectation = match self.kin {
            Kin::Meshed { identity, .. } => {
                let config =
                    OfRequests { on_request_headers: vec![expected(identity)], ..Default::default() };
                let enabled = FilterConfig { config: Some(packed(config)), ..Default::default() };
                [(EXPECTED.to_owned(), packed(enabled))].into()
            }
            Kin::Bare { .. } => [].into(),
        };
        Route {
            name: name.to_owned(),
            r#match: Some(matching),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(self.cluster().to_owned())),
                timeout: Some(timeout),
                max_stream_duration,
                idle_timeout: Some(duration(idle)),
                ..Default::default()
            })),
            typed_per_filter_config: expectation,
            ..Default::default()
        }
    }
}

impl Lowered for AtAddresses<'_> {
    const KIND: Kind = Kind::VirtualHost;

    fn name(&self) -> String {
        let who = match self.kin {
            Kin::Meshed { namespace, workload, identity, .. } => {
                format!("{workload}|{namespace}|{}", identity.service_account)
            }
            Kin::Bare { of: ServicePort { service, port }, .. } => {
                format!("{port}|{}|{}|bare", service.name, service.namespace)
            }
        };
        format!("{}/{who}", PodRoutes::of(self.kin.port()))
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        let shares = self.services.iter().flat_map(Lowered::clusters);
        shares.chain([self.cluster().into()]).collect()
    }

    fn domains(&self) -> Vec<String> {
        self.addresses.iter().copied().map(domain).collect()
    }

    fn encode(&self) -> Any {
        let by_name = self.services.iter().flat_map(|service| named(service.routes(), &service.names()));
        packed(VirtualHost {
            name: self.name(),
            domains: self.domains(),
            routes: by_name.chain(self.as_called()).collect(),
            include_request_attempt_count: true,
            ..Default::default()
        })
    }
}
