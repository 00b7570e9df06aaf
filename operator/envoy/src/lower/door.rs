//! Doors: who may come in before the ports of an application. What they may ask for travels with the routes
//! ([`super::access`]), so that an edit closes no connection.

use super::{
    Lowered,
    access::{Admission, Senders},
    cluster::Application,
    listener::{HTTP, ROUTER, connections, listener, upgrade},
    proto::{address, any_port, duration, fields, http_filter, network_filter, number, packed, text, yes},
    signals::{ACCESS_FILTER, answered, denied},
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
            core::v3::{
                Http1ProtocolOptions, HttpProtocolOptions, SubstitutionFormatString, TrafficDirection,
                TransportSocket, substitution_format_string::Format,
            },
            listener::v3::{
                Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter,
                ListenerFilterChainMatchPredicate, listener_filter,
                listener_filter_chain_match_predicate::{MatchSet, Rule},
            },
        },
        extensions::filters::{
            http::{rbac::v3::Rbac, router::v3::Router},
            listener::{original_dst::v3::OriginalDst, tls_inspector::v3::TlsInspector},
            network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, LocalReplyConfig, ResponseMapper,
                    http_connection_manager::{ForwardClientCertDetails, SetCurrentClientCertDetails},
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

/// How long a caller that lets the server speak first waits for that: before a door for bytes that lets plaintext in,
/// silence is the only sign that a connection is not mesh TLS. Envoy has one such time for all doors of a pod, and a
/// caller of the mesh whose first packet is late would be taken for a stranger: it may be lost twice (RFC 6298; Linux
/// repeats after 0.2 s and 0.6 s).
const SERVER_FIRST: Millis = Millis(1_000);

/// The host of a request that names none, as HTTP/1.0 allows.
pub(super) const NAMELESS_HOST: &str = "_";

/// What a listener must know of a door.
#[derive(Clone, Hash)]
pub(super) struct Opening {
    mtls: MtlsMode,
    pub(super) protocol: Protocol,
    /// Who may send what the proxy cannot read. Before requests it is only told whether that is anybody.
    senders: Senders,
}

impl From<&Door> for Opening {
    fn from(door: &Door) -> Self {
        let senders = match Senders::through(&door.access) {
            Senders::Only(_) if door.protocol.is_http() => Senders::NOBODY,
            senders => senders,
        };
        Opening { mtls: door.mtls, protocol: door.protocol, senders }
    }
}

/// A door: where other proxies call, before one port of the application.
#[derive(Hash)]
pub(super) struct Inbound<'a> {
    pub(super) at: SocketAddr,
    pub(super) port: u16,
    pub(super) opening: Opening,
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
        let before = Before {
            port: self.port,
            opening: &self.opening,
            trust_domain: self.trust_domain,
            shared: false,
        };
        let server_may_speak_first = server_may_speak_first(&self.opening);
        packed(Listener {
            name: self.name(),
            address: Some(address(self.at)),
            listener_filters: if is_sniffed(&self.opening) { vec![tls_inspector()] } else { vec![] },
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
    doors: BTreeMap<u16, Opening>,
    undeclared: Opening,
    trust_domain: &'a TrustDomain,
    ipv6: bool,
}

impl<'a> Entrance<'a> {
    /// `ports` are those that services declare.
    pub(super) fn new(
        ports: &BTreeMap<u16, Door>,
        undeclared: &Undeclared,
        trust_domain: &'a TrustDomain,
        ipv6: bool,
    ) -> Self {
        // What runs there is unknown, and no caller in the mesh comes by mTLS to a port that no service leads to: where
        // plaintext may come in, bytes pass as they are, without waiting to see what they are. And where not everybody
        // may come nobody can, so that an edit of who may changes no listener.
        let senders = match Senders::through(&undeclared.access) {
            Senders::Only(_) => Senders::NOBODY,
            Senders::Anybody => Senders::Anybody,
        };
        let unknown = |mode: MtlsMode| Opening {
            mtls: if mode == MtlsMode::Strict { mode } else { MtlsMode::Disabled },
            protocol: Protocol::Tcp,
            senders: senders.clone(),
        };
        let exceptions = undeclared.exceptions.iter().map(|(port, mode)| (*port, unknown(*mode)));
        let declared = ports.iter().map(|(port, door)| (*port, Opening::from(door)));
        Self {
            // One chain for that port is there already, and Envoy takes no two.
            doors: exceptions.chain(declared).filter(|(port, _)| *port != INBOUND_PORT).collect(),
            undeclared: unknown(undeclared.mtls),
            trust_domain,
            ipv6,
        }
    }

    /// The ports with a door of their own.
    pub(super) fn doors(&self) -> impl Iterator<Item = (u16, &Opening)> {
        self.doors.iter().map(|(port, opening)| (*port, opening))
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
        let before = |port, opening| Before { port, opening, trust_domain: self.trust_domain, shared: true };
        let chains = self.doors().flat_map(|(port, door)| before(port, door).chains());
        let elsewhere = before(UNDECLARED, &self.undeclared).chains();
        let server_may_speak_first = self.doors().any(|(_, door)| server_may_speak_first(door));
        let (address, additional_addresses) = any_port(INBOUND_PORT, self.ipv6);
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
fn is_sniffed(door: &Opening) -> bool {
    door.protocol.is_http() || door.mtls != MtlsMode::Disabled
}

fn server_may_speak_first(door: &Opening) -> bool {
    !door.protocol.is_http() && door.mtls == MtlsMode::Permissive
}

/// What stands before one port of an application.
struct Before<'a> {
    port: u16,
    opening: &'a Opening,
    trust_domain: &'a TrustDomain,
    /// Whether the listener stands before other ports as well.
    shared: bool,
}

impl Before<'_> {
    /// At least one: ports without any would be somebody else's in a shared listener.
    fn chains(&self) -> Vec<FilterChain> {
        let Opening { mtls, protocol, senders } = self.opening;
        let anybody = *senders == Senders::Anybody;
        let passthrough = || anybody.then(|| self.passthrough());
        let plaintext = || (anybody || protocol.is_http()).then(|| self.plaintext());
        let chains = match mtls {
            MtlsMode::Strict => vec![Some(self.mesh())],
            MtlsMode::Permissive => vec![Some(self.mesh()), passthrough(), plaintext()],
            MtlsMode::Disabled if protocol.is_http() => vec![passthrough(), plaintext()],
            // Nobody proves anything here.
            MtlsMode::Disabled if !anybody => {
                vec![Some(FilterChain { filters: vec![], ..self.as_it_comes() })]
            }
            MtlsMode::Disabled => vec![Some(self.as_it_comes())],
        };
        chains.into_iter().flatten().collect()
    }

    fn as_it_comes(&self) -> FilterChain {
        self.chain("plaintext", self.bytes("plaintext"), FilterChainMatch::default(), None)
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
        let (filter, callers) = if self.opening.protocol.is_http() {
            (self.requests("mtls", true), &Senders::Anybody)
        } else {
            (self.bytes("mtls"), &self.opening.senders)
        };
        self.chain("mtls", filter, matching, Some(tls::called(callers.identities(self.trust_domain))))
    }

    /// The application's own TLS, which the proxy does not open.
    fn passthrough(&self) -> FilterChain {
        self.chain("tls", self.bytes("tls"), of("tls"), None)
    }

    fn plaintext(&self) -> FilterChain {
        let filter = if self.opening.protocol.is_http() {
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
        let forward =
            if mtls { ForwardClientCertDetails::SanitizeSet } else { ForwardClientCertDetails::Sanitize };
        network_filter(
            HTTP,
            HttpConnectionManager {
                route_specifier: Some(Admission::before(self.port)),
                http_filters: vec![
                    // The routes say by what.
                    http_filter(ACCESS_FILTER, Rbac::default()),
                    http_filter(ROUTER, Router { suppress_envoy_headers: true, ..Default::default() }),
                ],
                access_log: vec![denied()],
                // Strangers learn nothing of policies.
                local_reply_config: mtls.then(answer_to_callers),
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

/// The answer to a caller of the mesh whose request was refused, with the policy that did not let it pass.
fn answer_to_callers() -> LocalReplyConfig {
    let hint =
        "no rule of the policy admits the caller, its method and its path; the policy's owner can add one";
    // No other filter before a door answers so. What this one writes down of a request comes after its answer, but the
    // details name the policy.
    let refused = ResponseMapper {
        filter: Some(answered(403)),
        body_format_override: Some(SubstitutionFormatString {
            format: Some(Format::JsonFormat(fields([
                ("error", text("denied")),
                ("details", text("%RESPONSE_CODE_DETAILS%")),
                ("caller", text("%DOWNSTREAM_PEER_URI_SAN%")),
                ("hint", text(hint)),
            ]))),
            ..Default::default()
        }),
        ..Default::default()
    };
    LocalReplyConfig { mappers: vec![refused], ..Default::default() }
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
