//! What must hold while a release is on trial.

use crate::{
    name::NameText,
    quantity::{Duration, Ratio, Share},
    schema::NotYet,
    text::{StatusText, UrlPath},
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What must hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.errorRate), has(self.latency), has(self.metric)].exists_one(given, given)")
    .message("an objective bounds one thing; give exactly one of errorRate, latency and metric"))]
pub struct Objective {
    /// What the status and events call it; once in a canary.
    pub name: NameText,
    /// A bound on the share of requests that fail, counted by their first tries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<ErrorRate>,
    /// A bound on the share of requests that are slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<NotYet<Latency>>,
    /// A bound on a metric of yours, asked of Prometheus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<NotYet<Metric>>,
    /// Which requests count for it, by their paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<NotYet<Paths>>,
    /// How long a new instance is not judged after it began, as in 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<NotYet<Duration>>,
}

/// A bound on failed requests.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("double(self.max.replace('%', '')) > 0.0 && double(self.max.replace('%', '')) < 100.0")
        .message(Message::Expression("self.max + ' bounds nothing; write more than 0% and less than 100%'".into()))
        .field_path(".max"),
    validation = Rule::new("!has(self.ignoreBelow) \
            || double(self.ignoreBelow.replace('%', '')) <= double(self.max.replace('%', ''))")
        .message(Message::Expression(
            "self.ignoreBelow + ' is more than max, ' + self.max + '; write at most max'".into()))
        .field_path(".ignoreBelow")
)]
pub struct ErrorRate {
    /// The highest rate of failed requests that is still good, as in 1%.
    pub max: Share,
    /// How many times as often as stable the canary may fail, as in 1.5x. 1x if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worse_than_stable: Option<Ratio>,
    /// A canary that fails less often than this is healthy, however rarely stable fails; at most max. A tenth of max
    /// if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_below: Option<Share>,
    /// The statuses that are failures, as in 5xx or 429.
    #[schemars(length(max = 16))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statuses: Option<NotYet<Vec<StatusText>>>,
    /// The statuses of gRPC that are failures.
    #[schemars(length(max = 16))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<NotYet<Vec<GrpcStatus>>>,
}

/// A status of gRPC that is a failure.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "gRPC's own names")]
pub enum GrpcStatus {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// A bound on slow requests.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// Slow is a request that takes longer than this, as in 500ms.
    pub over: Duration,
    /// The highest share of slow requests that is good, as in 5%.
    pub max: Share,
}

/// A bound on a metric of somebody else's, asked as a gate.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// A query in PromQL whose result is one number.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
    /// The highest number that is good.
    pub max: f64,
}

/// Which paths count.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Paths {
    /// Requests whose path begins with one of these count; all if not said.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<UrlPath>,
    /// Requests whose path begins with one of these do not.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<UrlPath>,
}
