//! What a `MeshPolicy` asks for, as values: everything optional, nothing resolved.
//!
//! *Calls* belong to the service called; *the door* belongs to the workload. [`crate::compile`] merges policies of
//! the mesh, the namespace and the service into the resolved values of [`crate::mesh`].

use crate::id::{Name, Namespace, ObjectId, ServiceAccount, ServiceId};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, sync::Arc};

/// A duration in whole milliseconds: the resolution users write and Envoy keeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl fmt::Display for Millis {
    /// As users write it: a whole number of the largest unit that loses nothing (`250ms`, `90s`, `5m`, `24h`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        let exact = units.into_iter().find(|(size, _)| self.0 > 0 && self.0.is_multiple_of(*size));
        let (size, unit) = exact.unwrap_or((1, "ms"));
        write!(f, "{}{unit}", self.0 / size)
    }
}

/// One policy as its author wrote it, syntax checked, meaning not yet.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Policy {
    /// The object.
    pub id: ObjectId,
    /// The object's generation (standalone: a counter of edits seen), for `observedGeneration`.
    pub generation: i64,
    /// Older wins among policies of the same target: a smaller value is older (Kubernetes: creation time in
    /// seconds; standalone: 0, so that namespace and name decide).
    pub age_rank: i64,
    /// What it is about.
    pub target: Target,
    /// How calls to the target are made.
    pub calls: CallsSpec,
    /// How the target's door is kept.
    pub mtls: Option<MtlsSpec>,
    /// Who may ask the target for what.
    pub access: Option<Arc<AccessSpec>>,
}

/// What a policy is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Target {
    /// Every workload and call (a policy without target in the system namespace).
    Mesh,
    /// Every workload and call of a namespace.
    Namespace(Namespace),
    /// A service, or one of its ports.
    Service {
        /// The service.
        service: ServiceId,
        /// `None`: every port.
        port: Option<u16>,
    },
    /// A workload (Deployment, StatefulSet, DaemonSet): its door only.
    Workload {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: Name,
    },
    /// Every workload with a service account: its door only.
    ServiceAccount {
        /// Its namespace.
        namespace: Namespace,
        /// Its name.
        name: ServiceAccount,
    },
}

/// How calls are made; `None` means: not said here.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct CallsSpec {
    /// `timeouts`.
    pub timeouts: TimeoutsSpec,
    /// `retries`.
    pub retries: RetriesSpec,
    /// `circuitBreaker`.
    pub circuit_breaker: CircuitBreakerSpec,
    /// `loadBalancing.policy`.
    pub load_balancing: Option<LoadBalancing>,
    /// `connection`.
    pub connection: ConnectionSpec,
}

/// `timeouts`: each at least 1 ms.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct TimeoutsSpec {
    /// The whole request, retries included.
    pub request: Option<Millis>,
    /// A stream without a byte.
    pub stream_idle: Option<Millis>,
    /// A connection without a request.
    pub connection_idle: Option<Millis>,
    /// Until the TCP connection stands.
    pub connect: Option<Millis>,
}

/// `retries`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct RetriesSpec {
    /// Tries after the first, 0 to 10.
    pub attempts: Option<u32>,
    /// The longest one try may take.
    pub per_try_timeout: Option<Millis>,
    /// What is retried.
    pub retry_on: Option<Vec<RetryOn>>,
    /// First pause between tries (exponential with full jitter).
    pub backoff_base: Option<Millis>,
    /// Longest pause between tries.
    pub backoff_max: Option<Millis>,
    /// Retries as percent of the active requests, 0 to 100.
    pub budget_percent: Option<u32>,
    /// Retries always allowed at once, whatever the budget.
    pub budget_min_concurrent: Option<u32>,
    /// Which requests get the full policy.
    pub methods: Option<Vec<RetryMethods>>,
}

/// What is retried; the names are Envoy's and the users'.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum RetryOn {
    /// Any response 500 to 599, and no response at all.
    #[serde(rename = "5xx")]
    ServerError,
    /// 502, 503, 504.
    #[serde(rename = "gateway-error")]
    GatewayError,
    /// The connection broke before response headers.
    #[serde(rename = "reset")]
    Reset,
    /// It broke before the request was sent: safe for every method.
    #[serde(rename = "reset-before-request")]
    ResetBeforeRequest,
    /// No connection could be made: safe for every method.
    #[serde(rename = "connect-failure")]
    ConnectFailure,
    /// The peer refused the stream unprocessed: safe for every method.
    #[serde(rename = "refused-stream")]
    RefusedStream,
    /// 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// gRPC status UNAVAILABLE.
    #[serde(rename = "grpc-unavailable")]
    GrpcUnavailable,
}

impl RetryOn {
    /// Every condition with the text users write.
    pub const ALL: [(RetryOn, &'static str); 8] = [
        (RetryOn::ServerError, "5xx"),
        (RetryOn::GatewayError, "gateway-error"),
        (RetryOn::Reset, "reset"),
        (RetryOn::ResetBeforeRequest, "reset-before-request"),
        (RetryOn::ConnectFailure, "connect-failure"),
        (RetryOn::RefusedStream, "refused-stream"),
        (RetryOn::Retriable4xx, "retriable-4xx"),
        (RetryOn::GrpcUnavailable, "grpc-unavailable"),
    ];

    /// Whether the request cannot have reached the application, so that a repeat is safe for every method.
    pub fn safe_for_every_method(self) -> bool {
        matches!(self, RetryOn::ConnectFailure | RetryOn::RefusedStream | RetryOn::ResetBeforeRequest)
    }

    /// The text users write and Envoy reads (`grpc-unavailable` is Envoy's gRPC condition `unavailable`).
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(condition, _)| *condition == self).map_or("", |(_, text)| text)
    }
}

/// Which requests get the full retry policy; the others only the conditions safe for every method.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RetryMethods {
    /// GET, HEAD, OPTIONS, PUT, DELETE, TRACE without `content-type: application/grpc` (RFC 9110, 9.2.2).
    Idempotent,
    /// Every request.
    All,
    /// One more method, upper case.
    Method(String),
}

/// `circuitBreaker`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct CircuitBreakerSpec {
    /// `limits.maxConnections`
    pub max_connections: Option<u32>,
    /// `limits.maxPendingRequests`
    pub max_pending_requests: Option<u32>,
    /// `limits.maxRequests`
    pub max_requests: Option<u32>,
    /// `limits.maxRetries`
    pub max_retries: Option<u32>,
    /// `limits.maxRequestsPerConnection`
    pub max_requests_per_connection: Option<u32>,
    /// `outlierDetection.consecutive5xx`; 0 switches it off.
    pub consecutive_5xx: Option<u32>,
    /// `outlierDetection.consecutiveGatewayErrors`; 0 switches it off.
    pub consecutive_gateway_errors: Option<u32>,
    /// `outlierDetection.interval`
    pub interval: Option<Millis>,
    /// `outlierDetection.baseEjectionTime`
    pub base_ejection_time: Option<Millis>,
    /// `outlierDetection.maxEjectionPercent`, 0 to 100.
    pub max_ejection_percent: Option<u32>,
    /// `whenOpen.body`
    pub when_open_body: Option<String>,
    /// `whenOpen.retryAfter`, sent in whole seconds, rounded up.
    pub when_open_retry_after: Option<Millis>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum LoadBalancing {
    /// In turn.
    RoundRobin,
    /// The one with fewer active requests, of two picked at random.
    #[default]
    LeastRequest,
    /// At random.
    Random,
}

/// `connection`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ConnectionSpec {
    /// Whether proxies speak HTTP/2 to each other.
    pub http2: Option<Http2>,
    /// A connection is closed, gently, after this long.
    pub max_age: Option<Millis>,
}

/// Whether proxies speak HTTP/2 to each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Http2 {
    /// Sidecar to sidecar: HTTP/2.
    #[default]
    Auto,
    /// HTTP/1.1 wherever the application's protocol allows it.
    Never,
    /// HTTP/2 to every endpoint.
    Always,
}

/// `mtls`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct MtlsSpec {
    /// The mode of every port.
    pub mode: Option<MtlsMode>,
    /// Nobody below may be weaker (mesh and namespace policies only).
    pub floor: Option<bool>,
    /// Other modes for single ports.
    pub ports: Vec<(u16, MtlsMode)>,
}

/// Who may come through a door, weakest first: the order is the order of strength.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum MtlsMode {
    /// The proxy terminates nothing: plaintext only.
    Disabled,
    /// Sidecars by mTLS, everybody else in plaintext.
    Permissive,
    /// mTLS only.
    Strict,
}

/// `access`: who may ask a workload for what. Of several that apply to a door each must let a request pass.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AccessSpec {
    /// Whether a request that no rule admits passes.
    pub admits_others: bool,
    /// Whether what does not pass is refused, or only told.
    pub mode: AccessMode,
    /// What passes.
    pub rules: Vec<AccessRule>,
}

/// What becomes of a request that does not pass.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum AccessMode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is let in, and told.
    Audit,
}

/// Requests that pass: one of `from` asks for one of `to`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AccessRule {
    /// Its name in the policy.
    pub name: Name,
    /// Who; empty: anybody, also who has no identity.
    pub from: Vec<Caller>,
    /// What for; empty: anything.
    pub to: Vec<Asked>,
}

/// Callers with an identity.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Caller {
    /// Their namespace.
    pub namespace: Namespace,
    /// Their service account; `None`: any.
    pub service_account: Option<ServiceAccount>,
}

/// Requests, by method and path; bytes of a port that is not HTTP have neither, and are never meant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Asked {
    /// Methods; empty: any.
    pub methods: BTreeSet<String>,
    /// Paths; empty: any.
    pub paths: BTreeSet<PathPattern>,
}

/// Paths, case-sensitive and without the query. A path that an application may read in two ways (an escaped slash,
/// dot or backslash, a parameter after `;`) is never meant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PathPattern {
    /// This one.
    Exact(String),
    /// Every one that begins so (`/v1/*` is all below `/v1/`).
    Prefix(String),
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathPattern::Exact(path) => f.write_str(path),
            PathPattern::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

macro_rules! display_by_variant {
    ($($type:ty),*) => {
        $(impl fmt::Display for $type {
            /// As users write it: the variant's name.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        })*
    };
}
display_by_variant!(LoadBalancing, Http2, MtlsMode, AccessMode);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_print_as_users_write_them() {
        for (ms, text) in [
            (0, "0ms"),
            (1, "1ms"),
            (1_500, "1500ms"),
            (10_000, "10s"),
            (90_000, "90s"),
            (300_000, "5m"),
            (86_400_000, "24h"),
        ] {
            assert_eq!(Millis(ms).to_string(), text);
        }
    }
}
