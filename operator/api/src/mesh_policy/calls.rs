//! How calls are made: `loadBalancing`, `timeouts`, `retries`, `circuitBreaker`, `connection`.

use crate::{
    quantity::Duration,
    request::RetryMethod,
    schema::NotYet,
    text::{CookieName, HeaderName},
};
use airlane_core::policy;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// How an endpoint is chosen.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.hashOn) || (has(self.policy) && self.policy in ['RingHash', 'Maglev'])")
    .message("only RingHash and Maglev hash; write policy: RingHash, or remove hashOn").field_path(".hashOn"))]
pub struct LoadBalancing {
    /// The way of choosing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<LoadBalancingPolicy>,
    /// What RingHash and Maglev hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<NotYet<HashOn>>,
    /// How slowly a new endpoint gets its full share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<NotYet<Duration>>,
    /// Whether near endpoints are preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<NotYet<Locality>>,
}

/// What is hashed, so that equal requests go to the same endpoint.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.header), has(self.cookie), has(self.sourceIp)].exists_one(given, given)")
    .message("one thing is hashed; give exactly one of header, cookie and sourceIp"))]
pub struct HashOn {
    /// The value of this header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderName>,
    /// The value of this cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<Cookie>,
    /// The caller's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<bool>,
}

/// A cookie, which the proxy sets if it is not there.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Cookie {
    /// Its name.
    pub name: CookieName,
    /// How long it lives; as long as the browser's session if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
}

/// Prefer: near endpoints first. Ignore: all alike.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum Locality {
    Prefer,
    Ignore,
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
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = Rule::new("!has(self.base) || !has(self.max) || duration(self.base) <= duration(self.max)")
    .message(Message::Expression("'the longest pause ' + self.max + ' is shorter than the first, ' + self.base \
        + '; write at least ' + self.base".into()))
    .field_path(".max"))]
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
