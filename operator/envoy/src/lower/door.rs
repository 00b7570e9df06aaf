//! Doors: who may come in before the ports of an application.

use super::{
    Lowered,
    cluster::Application,
    listener::{HTTP, ROUTER, connections, http_filter, listener, network_filter, upgrade},
    proto::{address, any_port, duration, number, packed, yes},
    tls,
};
use crate::catalog::Kind;
use airlane_core::{
    id::TrustDomain,
    mesh::{Door, INBOUND_PORT, Undeclared},
    policy::{Millis, MtlsMode},
    world::Protocol,
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{Http1ProtocolOptions, HttpProtocolOptions, TrafficDirection, TransportSocket},
            listener::v3::{
                Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter,
                ListenerFilterChainMatchPredicate, listener_filter,
                listener_filter_chain_match_predicate::{MatchSet, Rule},
            },
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
                route_action::ClusterSpecifier, route_match::PathSpecifier,
            },
        },
        extensions::filters::{
            http::router::v3::Router,
            listener::{original_dst::v3::OriginalDst, tls_inspector::v3::TlsInspector},
            network::{
                http_connection_manager::v3::{
                    HttpConnectionManager,
                    http_connection_manager::{
                        ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails,
                    },
                },
                tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier as TcpClusterSpecifier},
            },
        },
        r#type::v3::Int32Range,
    },
    google::protobuf::{Any, Duration},
};
use prost::{Message, Name};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

/// How long a caller may take for its request's headers: an open connection costs memory.
const REQUEST_HEADERS: Millis = Millis(15_000);

/// How long a caller that may speak first waits for its turn when nobody says anything: before a door for bytes
/// that lets plaintext in, silence is the only sign that a connection is not mesh TLS.
const SERVER_FIRST: Millis = Millis(100);

/// The host of a request that names none, as HTTP/1.0 allows.
pub(super) const NAMELESS_HOST: &str = "_";

/// A door: where other proxies call, before one port of the application.
#[derive(Hash)]
pub(super) struct Inbound<'a> {
    pub(super) at: SocketAddr,
    pub(super) port: u16,
    pub(super) door: Door,
    pub(super) trust_domain: &'a TrustDomain,
}

impl Lowered for Inbound<'_> {
    const KIND: Kind = Kind::Listener;

    fn name(&self) -> String {
        format!("inbound|{}", self.at)
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        [Application::cluster(self.port).into()].into()
    }

    fn encode(&self) -> Any {
        let before =
            Before { port: self.port, door: &self.door, trust_domain: self.trust_domain, shared: false };
        let server_may_speak_first = server_may_speak_first(&self.door);
        packed(Listener {
            name: self.name(),
            address: Some(address(self.at)),
            listener_filters: if is_sniffed(&self.door) { vec![tls_inspector()] } else { vec![] },
            listener_filters_timeout: server_may_speak_first.then(|| duration(SERVER_FIRST)),
            continue_on_listener_filters_timeout: server_may_speak_first,
            filter_chains: before.chains(),
            ..listener(TrafficDirection::Inbound)
        })
    }
}

/// Every door of an application whose network namespace the kernel redirects: one listener for whatever enters.
#[derive(Hash)]
pub(super) struct Entrance<'a> {
    doors: BTreeMap<u16, Door>,
    undeclared: Door,
    trust_domain: &'a TrustDomain,
}

impl<'a> Entrance<'a> {
    /// `ports` are those that services declare.
    pub(super) fn new(
        ports: &BTreeMap<u16, Door>,
        undeclared: &Undeclared,
        trust_domain: &'a TrustDomain,
    ) -> Self {
        // What runs there is unknown, and no caller in the mesh comes by mTLS to a port that no service leads to: where
        // plaintext may come in, bytes pass as they are, without waiting to see what they are.
        let unknown = |mode: MtlsMode| Door {
            mtls: if mode == MtlsMode::Strict { mode } else { MtlsMode::Disabled },
            protocol: Protocol::Tcp,
            access: undeclared.access.clone(),
        };
        let exceptions = undeclared.exceptions.iter().map(|(port, mode)| (*port, unknown(*mode)));
        let declared = ports.iter().map(|(port, door)| (*port, door.clone()));
        Self {
            doors: exceptions.chain(declared).collect(),
            undeclared: unknown(undeclared.mtls),
            trust_domain,
        }
    }

    /// The ports with a door of their own.
    pub(super) fn doors(&self) -> impl Iterator<Item = (u16, &Door)> {
        self.doors.iter().map(|(port, door)| (*port, door))
    }

    /// Looks at the first bytes where a door must tell mesh TLS from others, and nowhere else: it would wait for them.
    fn inspector(&self) -> Option<ListenerFilter> {
        let sniffed_elsewhere = is_sniffed(&self.undeclared);
        let differing = self.doors().filter(|(_, door)| is_sniffed(door) != sniffed_elsewhere);
        let differing = any_of(differing.map(|(port, _)| port));
        let filter_disabled = match (differing, sniffed_elsewhere) {
            (None, false) => return None,
            (None, true) => None,
            (Some(quiet), true) => Some(quiet),
            (Some(sniffed), false) => Some(matching(Rule::NotMatch(Box::new(sniffed)))),
        };
        Some(ListenerFilter { filter_disabled, ..tls_inspector() })
    }
}

impl Lowered for Entrance<'_> {
    const KIND: Kind = Kind::Listener;

    fn name(&self) -> String {
        "inbound".to_owned()
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        self.doors.keys().chain([&UNDECLARED]).map(|port| Application::cluster(*port).into()).collect()
    }

    fn encode(&self) -> Any {
        let before = |port, door| Before { port, door, trust_domain: self.trust_domain, shared: true };
        let chains = self.doors().flat_map(|(port, door)| before(port, door).chains());
        let elsewhere = before(UNDECLARED, &self.undeclared).chains();
        let server_may_speak_first = self.doors().any(|(_, door)| server_may_speak_first(door));
        let (address, additional_addresses) = any_port(INBOUND_PORT);
        packed(Listener {
            name: self.name(),
            address,
            additional_addresses,
            listener_filters: [Some(original_destination()), self.inspector()]
                .into_iter()
                .flatten()
                .collect(),
            listener_filters_timeout: server_may_speak_first.then(|| duration(SERVER_FIRST)),
            continue_on_listener_filters_timeout: server_may_speak_first,
            filter_chains: [closed(INBOUND_PORT)].into_iter().chain(chains).chain(elsewhere).collect(),
            ..listener(TrafficDirection::Inbound)
        })
    }
}

/// The port by which what is not declared is known; no application listens there.
pub(super) const UNDECLARED: u16 = 0;

/// Closes what was not redirected but sent to the listener's own port: it would be sent there again for ever.
pub(super) fn closed(port: u16) -> FilterChain {
    FilterChain {
        name: "itself".to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            destination_port: Some(number(u32::from(port))),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Whether a door must look at the first bytes to know what comes.
fn is_sniffed(door: &Door) -> bool {
    door.protocol.is_http() || door.mtls != MtlsMode::Disabled
}

fn server_may_speak_first(door: &Door) -> bool {
    !door.protocol.is_http() && door.mtls == MtlsMode::Permissive
}

/// What stands before one port of an application.
struct Before<'a> {
    port: u16,
    door: &'a Door,
    trust_domain: &'a TrustDomain,
    /// Whether the listener stands before other ports as well.
    shared: bool,
}

impl Before<'_> {
    fn chains(&self) -> Vec<FilterChain> {
        match self.door.mtls {
            MtlsMode::Strict => vec![self.mesh()],
            MtlsMode::Permissive => vec![self.mesh(), self.passthrough(), self.plaintext()],
            MtlsMode::Disabled if self.door.protocol.is_http() => {
                vec![self.passthrough(), self.plaintext()]
            }
            MtlsMode::Disabled => {
                vec![self.chain("plaintext", self.bytes("plaintext"), FilterChainMatch::default(), None)]
            }
        }
    }

    /// Plaintext and the application's own TLS have their own prefix in the statistics: by them one sees who still
    /// calls without the mesh.
    fn stat_prefix(&self, kind: &str) -> String {
        format!("inbound|{}|{kind}", self.port)
    }

    fn chain(
        &self,
        kind: &str,
        filter: Filter,
        matching: FilterChainMatch,
        socket: Option<TransportSocket>,
    ) -> FilterChain {
        let port = (self.shared && self.port != UNDECLARED).then_some(u32::from(self.port));
        FilterChain {
            name: if self.shared { format!("{}|{kind}", self.port) } else { kind.to_owned() },
            filter_chain_match: Some(FilterChainMatch { destination_port: port.map(number), ..matching }),
            filters: vec![filter],
            transport_socket: socket,
            ..Default::default()
        }
    }

    fn mesh(&self) -> FilterChain {
        let matching = FilterChainMatch { application_protocols: vec![tls::ALPN.to_owned()], ..of("tls") };
        let filter =
            if self.door.protocol.is_http() { self.requests("mtls", true) } else { self.bytes("mtls") };
        self.chain("mtls", filter, matching, Some(tls::called(self.trust_domain)))
    }

    /// The application's own TLS, which the proxy does not open.
    fn passthrough(&self) -> FilterChain {
        self.chain("tls", self.bytes("tls"), of("tls"), None)
    }

    fn plaintext(&self) -> FilterChain {
        let filter = if self.door.protocol.is_http() {
            self.requests("plaintext", false)
        } else {
            self.bytes("plaintext")
        };
        self.chain("plaintext", filter, of("raw_buffer"), None)
    }

    fn bytes(&self, kind: &str) -> Filter {
        let proxy = TcpProxy {
            stat_prefix: self.stat_prefix(kind),
            cluster_specifier: Some(TcpClusterSpecifier::Cluster(Application::cluster(self.port))),
            // Connections without a byte belong to their ends.
            idle_timeout: Some(Duration::default()),
            ..Default::default()
        };
        network_filter("envoy.filters.network.tcp_proxy", proxy)
    }

    fn requests(&self, kind: &str, mtls: bool) -> Filter {
        let to_application = Route {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                ..Default::default()
            }),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(Application::cluster(self.port))),
                // The caller's proxy keeps the time, by the called service's policy.
                timeout: Some(Duration::default()),
                idle_timeout: Some(Duration::default()),
                ..Default::default()
            })),
            ..Default::default()
        };
        let routes = RouteConfiguration {
            name: "inbound".to_owned(),
            virtual_hosts: vec![VirtualHost {
                name: "application".to_owned(),
                domains: vec!["*".to_owned()],
                routes: vec![to_application],
                ..Default::default()
            }],
            ..Default::default()
        };
        let forward =
            if mtls { ForwardClientCertDetails::SanitizeSet } else { ForwardClientCertDetails::Sanitize };
        network_filter(
            HTTP,
            HttpConnectionManager {
                route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
                http_filters: vec![http_filter(
                    ROUTER,
                    Router { suppress_envoy_headers: true, ..Default::default() },
                )],
                forward_client_cert_details: forward as i32,
                set_current_client_cert_details: mtls
                    .then(|| SetCurrentClientCertDetails { uri: true, ..Default::default() }),
                request_headers_timeout: Some(duration(REQUEST_HEADERS)),
                normalize_path: Some(yes()),
                merge_slashes: true,
                upgrade_configs: vec![upgrade("websocket")],
                // A caller's proxy closes idle connections itself: if this side closed first, it might close the
                // one on which a request is just coming.
                common_http_protocol_options: mtls.then(|| HttpProtocolOptions {
                    idle_timeout: Some(Duration::default()),
                    ..Default::default()
                }),
                // Who comes without a proxy came before there was a mesh, and may speak what was spoken then.
                http_protocol_options: (self.shared && !mtls).then(any_http1),
                ..connections(self.stat_prefix(kind))
            },
        )
    }
}

/// HTTP/1.0 as well.
pub(super) fn any_http1() -> Http1ProtocolOptions {
    Http1ProtocolOptions {
        accept_http_10: true,
        default_host_for_http_10: NAMELESS_HOST.to_owned(),
        ..Default::default()
    }
}

fn of(transport: &str) -> FilterChainMatch {
    FilterChainMatch { transport_protocol: transport.to_owned(), ..Default::default() }
}

pub(super) fn tls_inspector() -> ListenerFilter {
    listener_filter("envoy.filters.listener.tls_inspector", TlsInspector::default())
}

/// Gives a redirected connection the destination it had.
pub(super) fn original_destination() -> ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", OriginalDst {})
}

pub(super) fn listener_filter<M: Message + Name>(name: &str, config: M) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(packed(config))),
        ..Default::default()
    }
}

fn matching(rule: Rule) -> ListenerFilterChainMatchPredicate {
    ListenerFilterChainMatchPredicate { rule: Some(rule) }
}

/// Connections to any of these ports; `None` if there are none.
fn any_of(ports: impl Iterator<Item = u16>) -> Option<ListenerFilterChainMatchPredicate> {
    let one = |port: u16| {
        let start = i32::from(port);
        matching(Rule::DestinationPortRange(Int32Range { start, end: start + 1 }))
    };
    let mut rules: Vec<_> = ports.map(one).collect();
    // Envoy's sets have two members at least.
    if rules.len() > 1 { Some(matching(Rule::OrMatch(MatchSet { rules }))) } else { rules.pop() }
}
