//! CDS: the clusters of destinations, of the application behind a door, of the outside and of tunnels.

use super::{
    Lowered,
    outside::dns_cache,
    proto::{
        address, ads, duration, extension, fields, metadata, number, packed, percent, text, transport_socket,
    },
    sockets::{self, CALL_PRIORITY},
    tls,
};
use crate::catalog::Kind;
use airlane_core::{
    id::{ClusterName, Identity, TrustDomain},
    mesh::{Calls, Cluster as Called, Limits, Outliers, Transport},
    policy::{LoadBalancing, Millis},
    world::Protocol,
};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, LoadBalancingPolicy, OutlierDetection, TrackClusterStats,
                circuit_breakers::{Thresholds, thresholds::RetryBudget},
                cluster::{
                    ClusterDiscoveryType, CommonLbConfig, CustomClusterType, DiscoveryType, EdsClusterConfig,
                    LbPolicy, TransportSocketMatch,
                },
                load_balancing_policy::Policy,
            },
            core::v3::{
                Address, ConfigSource, EnvoyInternalAddress, Http1ProtocolOptions, Http2ProtocolOptions,
                HttpProtocolOptions as CommonHttp, KeepaliveSettings, Metadata, TransportSocket,
                TypedExtensionConfig, address::Address as Specifier,
                envoy_internal_address::AddressNameSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
        extensions::{
            clusters::dynamic_forward_proxy::v3::{
                ClusterConfig as ForwardProxy, cluster_config::ClusterImplementationSpecifier,
            },
            load_balancing_policies::{
                least_request::v3::LeastRequest, random::v3::Random, round_robin::v3::RoundRobin,
            },
            transport_sockets::{
                internal_upstream::v3::InternalUpstreamTransport, raw_buffer::v3::RawBuffer,
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
                },
            },
        },
    },
    google::protobuf::Any,
};
use std::{
    collections::{BTreeSet, HashMap},
    hash::{Hash, Hasher},
    net::{Ipv4Addr, SocketAddr},
};

/// Where calls that leave the mesh go.
pub(super) const OUTSIDE: &str = "outside";

/// From a CONNECT to a mesh name to the internal listener that routes what is inside; also that listener's name.
pub(super) const TUNNEL: &str = "tunnel";

/// The metadata key, and its value for an endpoint that accepts mTLS, by which [`Transport::Mixed`] chooses.
const MATCH: &str = "envoy.transport_socket_match";

/// The most requests at once on one connection, after which another one is opened: what servers are told not to allow less
/// than (RFC 9113, 6.5.2). So many are lost at most when a connection breaks, which is why as many retries are allowed
/// whatever the budget.
const CONCURRENT_STREAMS: u32 = 100;

/// Envoy's limits that nobody asked for would be 1,024.
const UNLIMITED: u32 = u32::MAX;

/// Below the keep-alive of common application servers (gunicorn 2 s, Node.js and uvicorn 5 s), so that the proxy
/// closes first and never sends a request on a connection the application has just closed.
pub(super) const APPLICATION_IDLE: Millis = Millis(1_000);

/// Below every leaf's lifetime, so that a renewed leaf takes the place of the old one on every connection.
pub(super) const CONNECTION_AGE: Millis = Millis(3_600_000);

/// A cluster of a destination, its endpoints apart.
#[derive(Hash)]
pub(super) struct DestinationCluster<'a> {
    name: &'a ClusterName,
    identities: &'a BTreeSet<Identity>,
    transport: Transport,
    protocol: Protocol,
    connect_timeout: Millis,
    connection_idle_timeout: Millis,
    max_connection_age: Option<Millis>,
    limits: &'a Limits,
    budget_percent: u32,
    budget_min_concurrent: u32,
    outliers: &'a Outliers,
    load_balancing: LoadBalancing,
    trust_domain: &'a TrustDomain,
    marked: Marked,
}

/// Whether connections are marked as the application's. If not, it adds nothing to a version.
struct Marked(bool);

impl Hash for Marked {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.0 {
            CALL_PRIORITY.hash(state);
        }
    }
}

impl<'a> DestinationCluster<'a> {
    pub(super) fn new(
        cluster: &'a Called,
        protocol: Protocol,
        calls: &'a Calls,
        trust_domain: &'a TrustDomain,
        in_cluster: bool,
    ) -> Self {
        Self {
            name: &cluster.name,
            identities: &cluster.identities,
            transport: cluster.transport,
            protocol,
            connect_timeout: calls.connect_timeout,
            connection_idle_timeout: calls.connection_idle_timeout,
            max_connection_age: calls.max_connection_age,
            limits: &calls.limits,
            budget_percent: calls.retries.budget_percent,
            budget_min_concurrent: calls.retries.budget_min_concurrent,
            outliers: &calls.outliers,
            load_balancing: calls.load_balancing,
            trust_domain,
            marked: Marked(in_cluster),
        }
    }

    fn speaks_http2(&self) -> bool {
        match self.transport {
            Transport::Mtls { http2 } => http2 || self.protocol.is_http2(),
            Transport::Mixed | Transport::Plaintext => self.protocol.is_http2(),
        }
    }

    fn alpn(&self) -> Option<&'static str> {
        match (self.protocol, self.speaks_http2()) {
            (Protocol::Tcp, _) => None,
            (_, true) => Some("h2"),
            (_, false) => Some("http/1.1"),
        }
    }

    fn http(&self) -> HashMap<String, Any> {
        if !self.protocol.is_http() {
            return HashMap::new();
        }
        http_options(
            CommonHttp {
                idle_timeout: Some(duration(self.connection_idle_timeout)),
                max_connection_duration: Some(duration(self.max_connection_age.unwrap_or(CONNECTION_AGE))),
                max_requests_per_connection: self.limits.requests_per_connection.map(number),
                ..Default::default()
            },
            self.speaks_http2(),
        )
    }

    fn thresholds(&self) -> Thresholds {
        let limit = |limit: Option<u32>| Some(number(limit.unwrap_or(UNLIMITED)));
        Thresholds {
            max_connections: limit(self.limits.connections),
            max_pending_requests: limit(self.limits.pending_requests),
            max_requests: limit(self.limits.requests),
            max_retries: self.limits.retries.map(number),
            retry_budget: self.limits.retries.is_none().then(|| RetryBudget {
                budget_percent: Some(percent(self.budget_percent)),
                min_retry_concurrency: Some(number(self.budget_min_concurrent)),
                ..Default::default()
            }),
            // A gauge each second for every cluster is worth it only where there is a limit to come near to.
            track_remaining: *self.limits != Limits::default(),
            ..Default::default()
        }
    }
}

impl Lowered for DestinationCluster<'_> {
    const KIND: Kind = Kind::Cluster;

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn encode(&self) -> Any {
        let mtls = || tls::calling(self.identities, self.trust_domain, self.alpn());
        let (transport_socket, transport_socket_matches) = match self.transport {
            Transport::Mtls { .. } => (Some(mtls()), vec![]),
            Transport::Plaintext => (None, vec![]),
            Transport::Mixed => (
                None,
                vec![
                    TransportSocketMatch {
                        name: "mtls".to_owned(),
                        r#match: Some(fields([("mtls", text("1"))])),
                        transport_socket: Some(mtls()),
                    },
                    TransportSocketMatch {
                        name: "plaintext".to_owned(),
                        r#match: Some(fields::<String>([])),
                        transport_socket: Some(plaintext()),
                    },
                ],
            ),
        };
        packed(Cluster {
            name: self.name(),
            connect_timeout: Some(duration(self.connect_timeout)),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
            eds_cluster_config: Some(EdsClusterConfig {
                // The bound on warming when endpoints do not come with the cluster.
                eds_config: Some(ConfigSource {
                    initial_fetch_timeout: Some(duration(Millis(5_000))),
                    ..ads()
                }),
                service_name: self.name(),
            }),
            circuit_breakers: Some(CircuitBreakers {
                thresholds: vec![self.thresholds()],
                ..Default::default()
            }),
            outlier_detection: outlier_detection(self.outliers),
            load_balancing_policy: Some(load_balancing(self.load_balancing)),
            common_lb_config: Some(CommonLbConfig {
                // Never call an endpoint that is known to be sick: the caller gets its answer at once instead.
                healthy_panic_threshold: Some(percent(0)),
                ..Default::default()
            }),
            // Every caller reports each of these endpoints each second: only the judge needs that.
            track_cluster_stats: self
                .name
                .revision
                .is_some()
                .then(|| TrackClusterStats { per_endpoint_stats: true, ..Default::default() }),
            typed_extension_protocol_options: self.http(),
            upstream_bind_config: sockets::to_endpoints(
                self.marked.0,
                self.protocol.is_http().then(|| self.speaks_http2()),
            ),
            upstream_connection_options: Some(sockets::kept_alive()),
            transport_socket,
            transport_socket_matches,
            ..Default::default()
        })
    }
}

/// The application behind a door.
#[derive(Hash)]
pub(super) struct Application {
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

impl Application {
    pub(super) fn cluster(port: u16) -> String {
        format!("inbound|{port}")
    }
}

impl Lowered for Application {
    const KIND: Kind = Kind::Cluster;

    fn name(&self) -> String {
        Self::cluster(self.port)
    }

    fn encode(&self) -> Any {
        let typed_extension_protocol_options = if self.protocol.is_http() {
            let common = CommonHttp { idle_timeout: Some(duration(APPLICATION_IDLE)), ..Default::default() };
            http_options(common, self.protocol.is_http2())
        } else {
            HashMap::new()
        };
        let at = address(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
        packed(Cluster { typed_extension_protocol_options, ..fixed(self.name(), at) })
    }
}

/// The internal listener behind a CONNECT.
#[derive(Hash)]
pub(super) struct Tunnel;

impl Lowered for Tunnel {
    const KIND: Kind = Kind::Cluster;

    fn name(&self) -> String {
        TUNNEL.to_owned()
    }

    fn encode(&self) -> Any {
        let at = Address {
            address: Some(Specifier::EnvoyInternalAddress(EnvoyInternalAddress {
                address_name_specifier: Some(AddressNameSpecifier::ServerListenerName(TUNNEL.to_owned())),
                ..Default::default()
            })),
        };
        packed(Cluster {
            transport_socket: Some(transport_socket(
                "envoy.transport_sockets.internal_upstream",
                InternalUpstreamTransport { transport_socket: Some(plaintext()), ..Default::default() },
            )),
            ..fixed(self.name(), at)
        })
    }
}

/// Hosts that are no part of the mesh, resolved by name.
#[derive(Hash)]
pub(super) struct Outside;

impl Lowered for Outside {
    const KIND: Kind = Kind::Cluster;

    fn name(&self) -> String {
        OUTSIDE.to_owned()
    }

    fn encode(&self) -> Any {
        packed(Cluster {
            name: self.name(),
            connect_timeout: Some(duration(Millis(5_000))),
            lb_policy: LbPolicy::ClusterProvided as i32,
            cluster_discovery_type: Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
                name: "envoy.clusters.dynamic_forward_proxy".to_owned(),
                typed_config: Some(packed(ForwardProxy {
                    cluster_implementation_specifier: Some(ClusterImplementationSpecifier::DnsCacheConfig(
                        dns_cache(),
                    )),
                    ..Default::default()
                })),
            })),
            circuit_breakers: Some(unlimited()),
            ..Default::default()
        })
    }
}

/// Until a connection on this host stands. It takes microseconds unless the host is starved, and then giving up early
/// would fail a request that waiting answers: Envoy's own default.
pub(super) const CONNECT_LOCAL: Millis = Millis(5_000);

/// One endpoint that never changes, without limits.
fn fixed(name: String, at: Address) -> Cluster {
    Cluster {
        connect_timeout: Some(duration(CONNECT_LOCAL)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.clone(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![LbEndpoint {
                    host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                        address: Some(at),
                        ..Default::default()
                    })),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }),
        circuit_breakers: Some(unlimited()),
        name,
        ..Default::default()
    }
}

pub(super) fn unlimited() -> CircuitBreakers {
    let thresholds = Thresholds {
        max_connections: Some(number(UNLIMITED)),
        max_pending_requests: Some(number(UNLIMITED)),
        max_requests: Some(number(UNLIMITED)),
        max_retries: Some(number(UNLIMITED)),
        ..Default::default()
    };
    CircuitBreakers { thresholds: vec![thresholds], ..Default::default() }
}

fn plaintext() -> TransportSocket {
    transport_socket("envoy.transport_sockets.raw_buffer", RawBuffer {})
}

/// How an endpoint says that it accepts mTLS.
pub(super) fn accepts_mtls() -> Metadata {
    metadata(MATCH, fields([("mtls", text("1"))]))
}

pub(super) fn http_options(common: CommonHttp, http2: bool) -> HashMap<String, Any> {
    let protocol = if http2 {
        ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions {
            // WebSockets of HTTP/1.1 applications cross as extended CONNECT (RFC 8441).
            allow_connect: true,
            max_concurrent_streams: Some(number(CONCURRENT_STREAMS)),
            // A peer that vanished without a word is noticed by its silence.
            connection_keepalive: Some(KeepaliveSettings {
                interval: Some(duration(Millis(30_000))),
                timeout: Some(duration(Millis(10_000))),
                ..Default::default()
            }),
            ..Default::default()
        })
    } else {
        ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(common),
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(protocol),
        })),
        ..Default::default()
    };
    HashMap::from([("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(), packed(options))])
}

fn load_balancing(policy: LoadBalancing) -> LoadBalancingPolicy {
    let extension: TypedExtensionConfig = match policy {
        LoadBalancing::LeastRequest => {
            extension("envoy.load_balancing_policies.least_request", LeastRequest::default())
        }
        LoadBalancing::RoundRobin => {
            extension("envoy.load_balancing_policies.round_robin", RoundRobin::default())
        }
        LoadBalancing::Random => extension("envoy.load_balancing_policies.random", Random::default()),
    };
    LoadBalancingPolicy { policies: vec![Policy { typed_extension_config: Some(extension) }] }
}

/// Only the kinds that were asked for. Connection failures and timeouts count as 5xx and as gateway errors, which
/// is what `split_external_local_origin_errors: false` means.
fn outlier_detection(outliers: &Outliers) -> Option<OutlierDetection> {
    if outliers.consecutive_5xx.is_none() && outliers.consecutive_gateway_errors.is_none() {
        return None;
    }
    let enforcing = |watched: Option<u32>| Some(number(if watched.is_some() { 100 } else { 0 }));
    // A threshold never reached keeps unenforced ejections out of the event log.
    let threshold = |watched: Option<u32>| Some(number(watched.unwrap_or(u32::MAX)));
    Some(OutlierDetection {
        consecutive_5xx: threshold(outliers.consecutive_5xx),
        enforcing_consecutive_5xx: enforcing(outliers.consecutive_5xx),
        consecutive_gateway_failure: threshold(outliers.consecutive_gateway_errors),
        enforcing_consecutive_gateway_failure: enforcing(outliers.consecutive_gateway_errors),
        interval: Some(duration(outliers.interval)),
        base_ejection_time: Some(duration(outliers.base_ejection_time)),
        // Envoy refuses a longest time below the first; its own default is 300 s.
        max_ejection_time: Some(duration(outliers.base_ejection_time.max(Millis(300_000)))),
        max_ejection_percent: Some(number(outliers.max_ejection_percent)),
        enforcing_success_rate: Some(number(0)),
        enforcing_failure_percentage: Some(number(0)),
        ..Default::default()
    })
}
