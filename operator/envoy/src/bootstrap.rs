//! What a proxy knows before it has heard from the operator: who it is, where the operator is, whom to believe,
//! and what to report.

use crate::lower::{AGENT, LEAF, OPERATOR, ROLLOUTS};
use airlane_core::id::{Identity, InstanceId, Namespace};
use serde_json::{Value, json};
use std::net::IpAddr;

/// The agent's SDS resource with the roots to trust, for the operator's own certificate. For calls the roots come
/// from the operator, acknowledged.
pub const ROOT: &str = "root";

/// What differs between the bootstraps of two proxies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bootstrap {
    /// The proxy's node id.
    pub instance: InstanceId,
    /// Its namespace.
    pub namespace: Namespace,
    /// The operator's host: an address or a DNS name.
    pub operator_host: String,
    /// The operator's port for xDS and signals.
    pub operator_port: u16,
    /// Who the operator must prove to be.
    pub operator_identity: Identity,
    /// The unix socket of the agent's SDS.
    pub agent_socket: String,
    /// The unix socket for the admin interface; in a folder nobody else can enter.
    pub admin_socket: String,
    /// The file for outlier events, one JSON object a line.
    pub event_log: String,
}

/// Statistics that are kept at all, and sent each second: of calls by cluster, of doors by kind of caller, and of the
/// stream to the operator. Whole names, so that `cluster.X.external.*` and its like stay out. Requests active at a
/// door are what the agent waits for before it stops the application. A counter that did not move is not sent, and only
/// counters say of which time a report is: so one that every report moves is among them.
const KEPT: [&str; 5] = [
    // A cluster's name starts with its port.
    r"cluster\.[0-9]+\|[^.]+\.(upstream_rq_(total|completed|[1-5]xx|timeout|per_try_timeout|rx_reset|pending_overflow|pending_failure_eject|retry|retry_success|retry_overflow|retry_limit_exceeded|active|time)|retry\.upstream_rq_5xx|upstream_cx_(total|connect_fail|connect_timeout|overflow|active)|outlier_detection\.ejections_active|circuit_breakers\.default\.(cx_open|rq_open|rq_pending_open|rq_retry_open|remaining_(cx|rq|pending|retries)))",
    r"cluster\.[0-9]+\|[^.]+\.endpoint\..*",
    r"(http|tcp)\.inbound\|[^.]+\.downstream_(rq_(total|active|completed|[1-5]xx)|cx_(total|active))",
    r"control_plane\.connected_state",
    r"cluster\.operator\.upstream_rq_total",
];

/// Envoy's bootstrap, as JSON.
pub fn render(of: &Bootstrap) -> String {
    json!({
        "node": { "id": of.instance.as_str(), "cluster": of.namespace.as_str() },
        // 384 = 0600
        "admin": { "address": { "pipe": { "path": of.admin_socket, "mode": 384 } } },
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": { "@type": type_of("extensions.bootstrap.internal_listener.v3.InternalListener") },
        }],
        "cluster_manager": { "outlier_detection": { "event_log_path": of.event_log } },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{
                    "envoy_grpc": {
                        "cluster_name": OPERATOR,
                        "retry_policy": { "retry_back_off": { "base_interval": "0.25s", "max_interval": "5s" } },
                    },
                }],
            },
            "cds_config": configured(),
            "lds_config": configured(),
        },
        "layered_runtime": {
            "layers": [
                // Who is still connected to is loaded, too: without this, all would rush to an endpoint that is gone.
                { "name": "envoy", "static_layer": {
                    "envoy.reloadable_features.least_request_lb_count_pending_requests": true,
                } },
                // A proxy that starts while nobody may speak of shares takes the routes' own after a second.
                { "name": ROLLOUTS, "rtds_layer": { "name": ROLLOUTS, "rtds_config": bounded_ads("1s") } },
                // The agent's last word, above the operator's.
                { "name": "admin", "admin_layer": {} },
            ],
        },
        "overload_manager": {
            "resource_monitors": [{
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": type_of("extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"),
                    "max_active_downstream_connections": 50_000,
                },
            }],
        },
        "stats_flush_interval": "1s",
        "stats_config": {
            "stats_matcher": {
                "inclusion_list": { "patterns": KEPT.map(|regex| json!({ "safe_regex": { "regex": regex } })) },
            },
        },
        "stats_sinks": [{
            "name": "envoy.stat_sinks.open_telemetry",
            "typed_config": {
                "@type": type_of("extensions.stat_sinks.open_telemetry.v3.SinkConfig"),
                "report_counters_as_deltas": true,
                "report_histograms_as_deltas": true,
                "emit_tags_as_attributes": true,
                "grpc_service": { "envoy_grpc": { "cluster_name": OPERATOR } },
            },
        }],
        "static_resources": { "clusters": [agent(of), operator(of)] },
    })
    .to_string()
}

fn agent(of: &Bootstrap) -> Value {
    json!({
        "name": AGENT,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": http2(&json!({})),
        "load_assignment": one_endpoint(AGENT, &json!({ "pipe": { "path": of.agent_socket } })),
    })
}

fn operator(of: &Bootstrap) -> Value {
    let is_address = of.operator_host.parse::<IpAddr>().is_ok();
    let agent = json!({
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": true,
            "grpc_services": [{ "envoy_grpc": { "cluster_name": AGENT } }],
        },
    });
    json!({
        "name": OPERATOR,
        "type": if is_address { "STATIC" } else { "STRICT_DNS" },
        "connect_timeout": "2s",
        "typed_extension_protocol_options":
            http2(&json!({ "connection_keepalive": { "interval": "10s", "timeout": "10s" } })),
        "load_assignment": one_endpoint(
            OPERATOR,
            &json!({ "socket_address": { "address": of.operator_host, "port_value": of.operator_port } }),
        ),
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": type_of("extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
                "max_session_keys": 0,
                "common_tls_context": {
                    "alpn_protocols": ["h2"],
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "tls_certificate_sds_secret_configs": [{ "name": LEAF, "sds_config": agent }],
                    "combined_validation_context": {
                        "default_validation_context": {
                            "match_typed_subject_alt_names": [{
                                "san_type": "URI",
                                "matcher": { "exact": of.operator_identity.to_string() },
                            }],
                        },
                        "validation_context_sds_secret_config": { "name": ROOT, "sds_config": agent },
                    },
                },
            },
        },
    })
}

fn http2(options: &Value) -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": type_of("extensions.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": { "http2_protocol_options": options },
        },
    })
}

fn one_endpoint(cluster: &str, address: &Value) -> Value {
    json!({
        "cluster_name": cluster,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    })
}

/// Without a limit: an Envoy that gave up after a while would say it is ready, and listen nowhere.
fn configured() -> Value {
    bounded_ads("0s")
}

fn bounded_ads(initial_fetch_timeout: &str) -> Value {
    json!({ "resource_api_version": "V3", "ads": {}, "initial_fetch_timeout": initial_fetch_timeout })
}

fn type_of(message: &str) -> String {
    format!("type.googleapis.com/envoy.{message}")
}
