//! `MeshPolicy`: how calls are made and doors are kept.

use crate::{
    quantity::{Duration, MethodText, NameText, NamespaceText, PathText, RetryMethod},
    schema::NotYet,
    status::MeshPolicyStatus,
};
use airlane_core::policy;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// How calls to a service are made and how a workload's door is kept.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "airlane.dev",
    version = "v1alpha1",
    doc = "How calls to a service are made and how a workload's door is kept.",
    kind = "MeshPolicy",
    plural = "meshpolicies",
    shortname = "mpol",
    category = "airlane",
    namespaced,
    status = "MeshPolicyStatus",
    derive = "PartialEq",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.targetRef.kind"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MeshPolicySpec {
    /// What the policy is about. Without it: the namespace, or in the system namespace the whole mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Who may come through the door.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// How an endpoint is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// How long is waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// What is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// When calling stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// How connections are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// What is never sniffed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<NotYet>,
    /// How many requests are let in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<NotYet>,
    /// Who may ask for what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// Where requests go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<NotYet>,
    /// What is called outside the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<NotYet>,
    /// What is told about requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<NotYet>,
}

/// What a policy is about.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.port) || self.kind == 'Service'")
    .message("only a Service has ports: remove port").field_path(".port"))]
pub struct TargetRef {
    /// The kind of thing.
    pub kind: TargetKind,
    /// Its name, in the policy's namespace.
    pub name: NameText,
    /// One port of a Service; without it: all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// The kinds of things a policy can be about.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of Kubernetes kinds")]
pub enum TargetKind {
    Service,
    Deployment,
    StatefulSet,
    DaemonSet,
    ServiceAccount,
}

/// Who may come through the door.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Mtls {
    /// The mode of every port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<MtlsMode>,
    /// Nobody below may be weaker; for a namespace or the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<bool>,
    /// Other modes for single ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["port".into()]))]
    pub ports: Vec<PortMtls>,
}

/// The mode of one port.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct PortMtls {
    /// The application's port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Its mode.
    pub mode: MtlsMode,
}

/// Strict: mTLS only. Permissive: sidecars by mTLS, everybody else in plaintext. Disabled: plaintext only.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum MtlsMode {
    Strict,
    Permissive,
    Disabled,
}

impl From<MtlsMode> for policy::MtlsMode {
    fn from(mode: MtlsMode) -> Self {
        match mode {
            MtlsMode::Strict => policy::MtlsMode::Strict,
            MtlsMode::Permissive => policy::MtlsMode::Permissive,
            MtlsMode::Disabled => policy::MtlsMode::Disabled,
        }
    }
}

/// Who may ask for what. Every policy that is about a workload must let a request pass.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// What becomes of requests that no rule admits; Deny if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<AccessDefault>,
    /// Enforce: they are refused. Audit: they are let in, and told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<AccessMode>,
    /// Requests that are let in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rules: Vec<AccessRule>,
    /// Tokens that requests must carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<NotYet>,
}

/// Deny: they are refused. Allow: they are let in.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum AccessDefault {
    Deny,
    Allow,
}

/// Enforce: what does not pass is refused. Audit: it is let in, and told.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum AccessMode {
    Enforce,
    Audit,
}

impl From<AccessMode> for policy::AccessMode {
    fn from(mode: AccessMode) -> Self {
        match mode {
            AccessMode::Enforce => policy::AccessMode::Enforce,
            AccessMode::Audit => policy::AccessMode::Audit,
        }
    }
}

/// Requests that are let in: one of `from` asks for one of `to`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct AccessRule {
    /// Its name; a refusal and the log say it.
    pub name: NameText,
    /// Who; without it: anybody, also who has no identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub from: Vec<AccessFrom>,
    /// What for; without it: anything. Ports that do not speak HTTP have no methods and paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub to: Vec<AccessTo>,
}

/// Callers, by what their certificate says.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.serviceAccount) || has(self.namespace)")
    .message("who? say serviceAccount, namespace or both; to mean anybody leave out from"))]
pub struct AccessFrom {
    /// Their service account; without it: any of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<NameText>,
    /// Their namespace; without it: the policy's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceText>,
}

/// Requests, by method and path.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = Rule::new("has(self.methods) || has(self.paths)")
    .message("what for? say methods, paths or both; to mean anything leave out to"))]
pub struct AccessTo {
    /// Methods, in upper case; without it: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub methods: Vec<MethodText>,
    /// Paths; one that ends in `*` means all that begin so. Without it: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub paths: Vec<PathText>,
}

/// How an endpoint is chosen.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// The way of choosing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<LoadBalancingPolicy>,
    /// What RingHash and Maglev hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<NotYet>,
    /// How slowly a new endpoint gets its full share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<NotYet>,
    /// Whether near endpoints are preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<NotYet>,
}

/// RoundRobin: in turn. LeastRequest: the one with fewer active requests, of two picked at random. Random: at
/// random. RingHash, Maglev: by a hash of the request.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum LoadBalancingPolicy {
    RoundRobin,
    LeastRequest,
    Random,
    RingHash,
    Maglev,
}

/// How long is waited.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// For the whole request, retries included. For gRPC it caps `grpc-timeout` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// For a byte on a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_idle: Option<Duration>,
    /// For a request on a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_idle: Option<Duration>,
    /// For the TCP connection to stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Duration>,
}

/// What is tried again.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// Tries after the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub attempts: Option<u32>,
    /// The longest one try may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// After which failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub retry_on: Option<Vec<RetryOn>>,
    /// The pauses between tries, exponential with full jitter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// How many retries at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Which requests: Idempotent, All, or methods. The others are tried again only when they cannot have reached
    /// the application.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub methods: Option<Vec<RetryMethod>>,
}

/// A failure after which a request is tried again.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct RetryOn(pub policy::RetryOn);

impl JsonSchema for RetryOn {
    fn schema_name() -> Cow<'static, str> {
        "RetryOn".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": policy::RetryOn::ALL.map(|(_, text)| text) })
    }
}

/// The pauses between tries.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Backoff {
    /// The first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Duration>,
    /// The longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Duration>,
}

/// How many retries at once.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// In percent of the active requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// So many always.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub min_concurrent: Option<u32>,
}

/// When calling stops.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CircuitBreaker {
    /// How much at once, per calling proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// When an endpoint is left out for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// What is answered instead, with status 503.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when_open: Option<WhenOpen>,
}

/// How much at once.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_connections: Option<u32>,
    /// Requests waiting for a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_pending_requests: Option<u32>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_requests: Option<u32>,
    /// Retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub max_retries: Option<u32>,
    /// Requests after which a connection is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_requests_per_connection: Option<u32>,
}

/// When an endpoint is left out for a while.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// After so many responses 500 to 599 in a row; 0: never.
    #[serde(rename = "consecutive5xx", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub consecutive_5xx: Option<u32>,
    /// After so many 502, 503, 504 or broken connections in a row; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub consecutive_gateway_errors: Option<u32>,
    /// How often endpoints are let in again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How long it is left out the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<Duration>,
    /// At most so many percent of the endpoints at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_ejection_percent: Option<u32>,
}

/// What is answered when calling has stopped.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WhenOpen {
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub body: Option<String>,
    /// The `retry-after` header, in whole seconds, rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Duration>,
}

/// How connections are kept.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Whether proxies speak HTTP/2 to each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http2: Option<Http2>,
    /// A connection is closed, gently, after this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
}

/// Auto: sidecar to sidecar. Never: HTTP/1.1 wherever the application allows it. Always: to every endpoint.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum Http2 {
    Auto,
    Never,
    Always,
}

impl From<Http2> for policy::Http2 {
    fn from(http2: Http2) -> Self {
        match http2 {
            Http2::Auto => policy::Http2::Auto,
            Http2::Never => policy::Http2::Never,
            Http2::Always => policy::Http2::Always,
        }
    }
}
