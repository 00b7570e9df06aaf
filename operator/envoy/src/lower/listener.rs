//! LDS: what one proxy listens on. A change here closes connections, gently; so everything that a policy may change
//! is elsewhere, but for a door's mTLS mode, protocol and ports.

use super::{
    Lowered,
    cluster::{Application, OUTSIDE, TUNNEL},
    host::{METADATA, RETRY_AFTER, WHEN_OPEN},
    outside,
    proto::{address, ads, duration, fields, header, inline, no, number, packed, text, yes},
    routes::Routes,
    signals::{first_attempts, out_of_time},
    tls,
};
use crate::catalog::Kind;
use airlane_core::{
    id::{Namespace, TrustDomain},
    mesh::Door,
    policy::{Millis, MtlsMode},
};
use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::{AccessLogFilter, ResponseFlagFilter, access_log_filter::FilterSpecifier},
            core::v3::{
                Http2ProtocolOptions, HttpProtocolOptions, SubstitutionFormatString, TrafficDirection,
                TransportSocket, substitution_format_string::Format,
            },
            listener::v3::{
                Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener::DrainType,
                listener::InternalListenerConfig, listener::ListenerSpecifier, listener_filter,
            },
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
                route_action::ClusterSpecifier, route_match::PathSpecifier,
            },
        },
        extensions::filters::{
            http::{rbac::v3::Rbac, router::v3::Router},
            listener::tls_inspector::v3::TlsInspector,
            network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, LocalReplyConfig, Rds, ResponseMapper,
                    http_connection_manager::{
                        ForwardClientCertDetails, InternalAddressConfig, RouteSpecifier,
                        ServerHeaderTransformation, SetCurrentClientCertDetails, UpgradeConfig,
                    },
                    http_filter,
                },
                tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier as TcpClusterSpecifier},
            },
        },
    },
    google::protobuf::{Any, Duration},
};
use prost::{Message, Name};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

/// How long a caller may take for its request's headers: an open connection costs memory.
const REQUEST_HEADERS: Millis = Millis(15_000);

/// How long a caller that may speak first waits for its turn when nobody says anything: before a door for bytes
/// that lets plaintext in, silence is the only sign that a connection is not mesh TLS.
const SERVER_FIRST: Millis = Millis(100);

/// The loopback listener for the application's calls, in forward-proxy form.
#[derive(Hash)]
pub(super) struct Outbound<'a> {
    pub(super) caller: &'a Namespace,
    pub(super) port: u16,
}

impl Lowered for Outbound<'_> {
    const KIND: Kind = Kind::Listener;

    fn name(&self) -> String {
        "outbound".to_owned()
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        [OUTSIDE.into()].into()
    }

    fn encode(&self) -> Any {
        packed(Listener {
            name: self.name(),
            address: Some(address(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))),
            filter_chains: vec![FilterChain {
                filters: vec![calls(self.caller, "outbound")],
                ..Default::default()
            }],
            ..listener(TrafficDirection::Outbound)
        })
    }
}

/// The internal listener that routes what is inside a CONNECT to a mesh name.
#[derive(Hash)]
pub(super) struct Tunnelled<'a> {
    pub(super) caller: &'a Namespace,
}

impl Lowered for Tunnelled<'_> {
    const KIND: Kind = Kind::Listener;

    fn name(&self) -> String {
        TUNNEL.to_owned()
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        [OUTSIDE.into()].into()
    }

    fn encode(&self) -> Any {
        packed(Listener {
            name: self.name(),
            listener_specifier: Some(ListenerSpecifier::InternalListener(InternalListenerConfig {})),
            filter_chains: vec![FilterChain {
                filters: vec![calls(self.caller, TUNNEL)],
                ..Default::default()
            }],
            enable_reuse_port: None,
            ..listener(TrafficDirection::Outbound)
        })
    }
}

/// A door: where other proxies call, before one port of the application.
#[derive(Hash)]
pub(super) struct Inbound<'a> {
    pub(super) at: SocketAddr,
    pub(super) port: u16,
    pub(super) door: Door,
    pub(super) trust_domain: &'a TrustDomain,
}

impl Inbound<'_> {
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
        FilterChain {
            name: kind.to_owned(),
            filter_chain_match: Some(matching),
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
                ..connections(self.stat_prefix(kind))
            },
        )
    }
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
        let http = self.door.protocol.is_http();
        let filter_chains = match self.door.mtls {
            MtlsMode::Strict => vec![self.mesh()],
            MtlsMode::Permissive => vec![self.mesh(), self.passthrough(), self.plaintext()],
            MtlsMode::Disabled if http => vec![self.passthrough(), self.plaintext()],
            MtlsMode::Disabled => {
                vec![self.chain("plaintext", self.bytes("plaintext"), FilterChainMatch::default(), None)]
            }
        };
        let sniffed = http || self.door.mtls != MtlsMode::Disabled;
        let server_may_speak_first = !http && self.door.mtls == MtlsMode::Permissive;
        let inspector = ListenerFilter {
            name: "envoy.filters.listener.tls_inspector".to_owned(),
            config_type: Some(listener_filter::ConfigType::TypedConfig(packed(TlsInspector::default()))),
            ..Default::default()
        };
        packed(Listener {
            name: self.name(),
            address: Some(address(self.at)),
            listener_filters: if sniffed { vec![inspector] } else { vec![] },
            listener_filters_timeout: server_may_speak_first.then(|| duration(SERVER_FIRST)),
            continue_on_listener_filters_timeout: server_may_speak_first,
            filter_chains,
            ..listener(TrafficDirection::Inbound)
        })
    }
}

const HTTP: &str = "envoy.filters.network.http_connection_manager";
const ROUTER: &str = "envoy.filters.http.router";

fn listener(direction: TrafficDirection) -> Listener {
    // The application's own calls go on while its door is being closed.
    let drain =
        if direction == TrafficDirection::Inbound { DrainType::Default } else { DrainType::ModifyOnly };
    Listener {
        traffic_direction: direction as i32,
        drain_type: drain as i32,
        // With it a second process could take the port, and half of the connections, unnoticed.
        enable_reuse_port: Some(no()),
        ..Default::default()
    }
}

/// Requests of the application, routed by the names they call.
fn calls(caller: &Namespace, stat_prefix: &str) -> Filter {
    let router =
        Router { upstream_log: vec![first_attempts()], suppress_envoy_headers: true, ..Default::default() };
    network_filter(
        HTTP,
        HttpConnectionManager {
            route_specifier: Some(RouteSpecifier::Rds(Rds {
                config_source: Some(ads()),
                route_config_name: Routes::of(caller),
            })),
            http_filters: vec![
                // Calls inside the mesh pass the router alone.
                HttpFilter {
                    disabled: true,
                    ..http_filter(outside::FORWARD_PROXY, outside::forward_proxy())
                },
                HttpFilter { disabled: true, ..http_filter(outside::REFUSAL, Rbac::default()) },
                http_filter(ROUTER, router),
            ],
            upgrade_configs: vec![upgrade("CONNECT"), upgrade("websocket")],
            access_log: vec![out_of_time()],
            local_reply_config: Some(friendly_answers()),
            strip_trailing_host_dot: true,
            ..connections(stat_prefix.to_owned())
        },
    )
}

/// What every HTTP connection manager of ours says.
fn connections(stat_prefix: String) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix,
        // Nobody is internal: otherwise a caller's `x-envoy-*` headers would set timeouts and retries.
        internal_address_config: Some(InternalAddressConfig::default()),
        server_header_transformation: ServerHeaderTransformation::PassThrough as i32,
        preserve_external_request_id: true,
        // Each route says its own.
        stream_idle_timeout: Some(Duration::default()),
        // WebSockets cross proxies as extended CONNECT (RFC 8441).
        http2_protocol_options: Some(Http2ProtocolOptions { allow_connect: true, ..Default::default() }),
        ..Default::default()
    }
}

/// Answers the proxy gives by itself, in the words of the called service's policy, read from the route.
fn friendly_answers() -> LocalReplyConfig {
    let flagged = |flags: &[&str]| AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter {
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        })),
    };
    let when_open = ResponseMapper {
        // Overflow of a limit; no healthy endpoint.
        filter: Some(flagged(&["UO", "UH"])),
        status_code: Some(number(503)),
        headers_to_add: vec![header("retry-after", &format!("%METADATA(ROUTE:{METADATA}:{RETRY_AFTER})%"))],
        body_format_override: Some(SubstitutionFormatString {
            format: Some(Format::TextFormatSource(inline(&format!(
                "%METADATA(ROUTE:{METADATA}:{WHEN_OPEN})%\n"
            )))),
            ..Default::default()
        }),
        ..Default::default()
    };
    let unresolved = ResponseMapper {
        filter: Some(flagged(&["DF"])),
        body_format_override: Some(SubstitutionFormatString {
            format: Some(Format::JsonFormat(fields([
                ("error", text("host not found, or at an address the mesh does not call")),
                ("host", text("%REQ(:AUTHORITY)%")),
            ]))),
            ..Default::default()
        }),
        ..Default::default()
    };
    LocalReplyConfig { mappers: vec![when_open, unresolved], ..Default::default() }
}

fn of(transport: &str) -> FilterChainMatch {
    FilterChainMatch { transport_protocol: transport.to_owned(), ..Default::default() }
}

fn upgrade(upgrade_type: &str) -> UpgradeConfig {
    UpgradeConfig { upgrade_type: upgrade_type.to_owned(), ..Default::default() }
}

fn network_filter<M: Message + Name>(name: &str, config: M) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(packed(config))) }
}

fn http_filter<M: Message + Name>(name: &str, config: M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(packed(config))),
        ..Default::default()
    }
}
