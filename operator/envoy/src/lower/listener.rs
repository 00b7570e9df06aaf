//! LDS: what one proxy listens on. A change here closes connections, gently; so everything that a policy may change
//! is elsewhere, but for a door's mTLS mode, protocol and ports.

use super::{
    Lowered,
    cluster::{OUTSIDE, TUNNEL},
    host::{METADATA, RETRY_AFTER, WHEN_OPEN},
    outside,
    proto::{address, ads, fields, header, http_filter, inline, network_filter, no, number, packed, text},
    routes::Routes,
    signals::{first_attempts, out_of_time},
    sockets,
};
use crate::catalog::Kind;
use airlane_core::id::Namespace;
use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::{AccessLogFilter, ResponseFlagFilter, access_log_filter::FilterSpecifier},
            core::v3::{
                Http2ProtocolOptions, SubstitutionFormatString, TrafficDirection,
                substitution_format_string::Format,
            },
            listener::v3::{
                Filter, FilterChain, Listener, listener::DrainType, listener::InternalListenerConfig,
                listener::ListenerSpecifier,
            },
        },
        extensions::filters::{
            http::{rbac::v3::Rbac, router::v3::Router},
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, LocalReplyConfig, Rds, ResponseMapper,
                http_connection_manager::{
                    InternalAddressConfig, RouteSpecifier, ServerHeaderTransformation, UpgradeConfig,
                },
            },
        },
    },
    google::protobuf::{Any, Duration},
};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

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

pub(super) const HTTP: &str = "envoy.filters.network.http_connection_manager";
pub(super) const ROUTER: &str = "envoy.filters.http.router";

pub(super) fn listener(direction: TrafficDirection) -> Listener {
    // The application's own calls go on while its door is being closed.
    let drain =
        if direction == TrafficDirection::Inbound { DrainType::Default } else { DrainType::ModifyOnly };
    Listener {
        traffic_direction: direction as i32,
        drain_type: drain as i32,
        tcp_keepalive: (direction == TrafficDirection::Inbound).then(sockets::keepalive),
        // With it a second process could take the port, and half of the connections, unnoticed.
        enable_reuse_port: Some(no()),
        ..Default::default()
    }
}

/// Requests of the application in forward-proxy form.
fn calls(caller: &Namespace, stat_prefix: &str) -> Filter {
    let mut manager = routed(Routes::of(caller), stat_prefix);
    // Calls inside the mesh pass the router alone.
    let outside = [
        http_filter(outside::FORWARD_PROXY, outside::forward_proxy()),
        http_filter(outside::REFUSAL, Rbac::default()),
    ];
    manager.http_filters.splice(0..0, outside.map(|filter| HttpFilter { disabled: true, ..filter }));
    network_filter(HTTP, manager)
}

/// Requests of the application, routed by the names they call.
pub(super) fn routed(routes: String, stat_prefix: &str) -> HttpConnectionManager {
    let router =
        Router { upstream_log: vec![first_attempts()], suppress_envoy_headers: true, ..Default::default() };
    HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: routes,
        })),
        http_filters: vec![http_filter(ROUTER, router)],
        upgrade_configs: vec![upgrade("CONNECT"), upgrade("websocket")],
        access_log: vec![out_of_time()],
        local_reply_config: Some(friendly_answers()),
        strip_trailing_host_dot: true,
        ..connections(stat_prefix.to_owned())
    }
}

/// What every HTTP connection manager of ours says.
pub(super) fn connections(stat_prefix: String) -> HttpConnectionManager {
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

pub(super) fn upgrade(upgrade_type: &str) -> UpgradeConfig {
    UpgradeConfig { upgrade_type: upgrade_type.to_owned(), ..Default::default() }
}
