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
    /// RoundRobin: in turn. LeastRequest: of two picked at random the one with fewer requests under way. Random: any.
    /// RingHash, Maglev: by a hash of the request, not supported yet. LeastRequest if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<LoadBalancingPolicy>,
    /// What of a request RingHash and Maglev hash, so that equal requests go to the same endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<NotYet<HashOn>>,
    /// The time in which a new endpoint's share grows from little to its full one, as in 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<NotYet<Duration>>,
    /// Prefer: endpoints near the caller first. Ignore: all alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<NotYet<Locality>>,
}

/// What is hashed, so that equal requests go to the same endpoint.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.header), has(self.cookie), has(self.sourceIp)].exists_one(given, given)")
    .message("one thing is hashed; give exactly one of header, cookie and sourceIp"))]
pub struct HashOn {
    /// The value of the header with this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderName>,
    /// The value of a cookie, which the proxy sets if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<Cookie>,
    /// true: the caller's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<bool>,
}

/// A cookie, which the proxy sets if it is not there.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Cookie {
    /// The cookie's name.
    pub name: CookieName,
    /// How long a browser keeps it, as in 1h; as long as its session if not said.
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
    /// The longest a request may take, all its tries included, as in 10s; the caller gets 504 then. For gRPC it only
    /// caps what the caller's `grpc-timeout` asks for. No limit if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// How long nothing may come in either direction on a request under way before it is ended. 5m if no policy says
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_idle: Option<Duration>,
    /// How long a connection without a request is kept; for ports that speak bytes, how long both sides may be
    /// silent. 1h if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_idle: Option<Duration>,
    /// The longest a connection to an endpoint may take, TCP and TLS together. 1s if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<Duration>,
}

/// What is tried again.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// Tries after the first; 0: nothing is tried again. 2 if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub attempts: Option<u32>,
    /// The longest one try may take, as in 2s; then the next begins. At most timeouts.request. No limit if no policy
    /// says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// The failures after which a request is tried again, as in 5xx: a response 500 to 599, or none. Those that
    /// cannot have reached the application (connect-failure, refused-stream, reset-before-request) hold for every
    /// method. [connect-failure, refused-stream, reset-before-request, reset, grpc-unavailable] if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub retry_on: Option<Vec<RetryOn>>,
    /// The pauses between tries: any time up to a bound that doubles with each try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// How many retries may be under way at once, so that they do not drown a service that fails. Without effect
    /// beside circuitBreaker.limits.maxRetries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// The requests that all of retryOn is for: Idempotent (GET, HEAD, OPTIONS, PUT, DELETE, TRACE, but no gRPC),
    /// All, or methods such as POST. The others are tried again only when they cannot have reached the application.
    /// [Idempotent] if no policy says it.
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
    /// The first pause. 25ms if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Duration>,
    /// The longest pause, ten times base if base alone is said. 250ms if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Duration>,
}

/// How many retries at once.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Retries in percent of the requests under way from one calling proxy. 20 if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// Retries that are always allowed at once, whatever percent says. 100 if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub min_concurrent: Option<u32>,
}

/// When calling stops.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CircuitBreaker {
    /// How much one calling proxy may have under way to the service, all its endpoints together; to each version
    /// apart while a canary splits it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// When a calling proxy leaves an endpoint out for a while, by what it saw of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// What callers are told when a limit is reached or no endpoint is left, with status 503 (gRPC: UNAVAILABLE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when_open: Option<WhenOpen>,
}

/// How much at once.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections at once; requests for which there is none wait. No limit if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection at once; one more is answered as whenOpen says. No limit if no policy says
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_pending_requests: Option<u32>,
    /// Requests under way at once; one more is answered as whenOpen says. No limit if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_requests: Option<u32>,
    /// Retries under way at once, instead of retries.budget. None if no policy says it: the budget holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub max_retries: Option<u32>,
    /// Requests after which a connection is closed and another one takes its place; 1: no connection is used twice.
    /// No limit if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_requests_per_connection: Option<u32>,
}

/// When an endpoint is left out for a while.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// After so many responses 500 to 599 in a row an endpoint is left out; 0: never for that. 0 if no policy says
    /// it.
    #[serde(rename = "consecutive5xx", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub consecutive_5xx: Option<u32>,
    /// After so many 502, 503, 504 or broken connections in a row an endpoint is left out; 0: never for that. 5 if no
    /// policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub consecutive_gateway_errors: Option<u32>,
    /// How often it is looked whether the time of those that are left out is over. 10s if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How long an endpoint is left out the first time; longer each time that follows. 30s if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<Duration>,
    /// At most so many percent of the endpoints are left out at once. 50 if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_ejection_percent: Option<u32>,
}

/// What is answered when calling has stopped.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WhenOpen {
    /// The text of the answer. One that says that no endpoint can take the request if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub body: Option<String>,
    /// When the caller may try again, told in its header `retry-after` in whole seconds, rounded up, as in 30s. No
    /// such header if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Duration>,
}

/// How connections are kept.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Auto: HTTP/2 from sidecar to sidecar. Never: HTTP/1.1 wherever the application's protocol allows it. Always:
    /// HTTP/2 to every endpoint. Auto if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http2: Option<Http2>,
    /// After this time a connection is closed, as soon as its requests have ended. 1h if no policy says it.
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
