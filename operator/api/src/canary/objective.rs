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
    /// Its name.
    pub name: NameText,
    /// A bound on failed requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<ErrorRate>,
    /// A bound on slow requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<NotYet<Latency>>,
    /// A bound on a metric of somebody else's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<NotYet<Metric>>,
    /// Which paths count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<NotYet<Paths>>,
    /// How long a cold start is not judged.
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
    /// The highest rate that is still good.
    pub max: Share,
    /// So many times worse than stable is still healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worse_than_stable: Option<Ratio>,
    /// Below this rate it is healthy whatever stable does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_below: Option<Share>,
    /// Which statuses are failures.
    #[schemars(length(max = 16))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statuses: Option<NotYet<Vec<StatusText>>>,
    /// Which gRPC statuses are failures.
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
    /// Slow is what takes longer than this.
    pub over: Duration,
    /// The highest share of slow requests that is still good.
    pub max: Share,
}

/// A bound on a metric of somebody else's, asked as a gate.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// PromQL that gives one number.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
    /// The highest that is still good.
    pub max: f64,
}

/// Which paths count.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Paths {
    /// Those that begin so; without it: all.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<UrlPath>,
    /// Not those that begin so.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<UrlPath>,
}
