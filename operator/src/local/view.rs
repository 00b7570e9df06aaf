//! What the command line shows, as values.

use airlane_core::{
    id::ObjectId,
    policy::Target,
    problem::Problem,
    rollout::{Phase, Progress},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `airlane get services`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceView {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) ports: Vec<PortView>,
    /// Revision → instances that may be called.
    pub(crate) revisions: BTreeMap<String, usize>,
    pub(crate) ready: usize,
    pub(crate) instances: usize,
    /// `ON` (Strict), `PERMISSIVE`, `OFF`.
    pub(crate) mtls: String,
    pub(crate) requests_per_second: f64,
    /// Of the answers given to callers in the last ten seconds.
    pub(crate) error_percent: f64,
    pub(crate) retries_per_second: f64,
    /// `CLOSED`, or how many endpoints are left out by a caller.
    pub(crate) breaker: String,
    pub(crate) callers: Vec<String>,
}

/// A port of a service.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortView {
    pub(crate) number: u16,
    pub(crate) protocol: String,
}

/// `airlane get endpoints`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointView {
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) revision: String,
    pub(crate) instance: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) health: String,
    /// Why it is not healthy.
    pub(crate) health_reason: String,
    /// Whether the application can be reached past its proxy.
    pub(crate) app_reachable: bool,
    /// `CLOSED`; `OPEN` while a caller leaves it out.
    pub(crate) breaker: String,
    /// The callers that leave it out.
    pub(crate) left_out_by: Vec<String>,
    /// Why a caller left it out last.
    pub(crate) reason: String,
}

/// `airlane get proxies`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProxyView {
    pub(crate) instance: String,
    pub(crate) namespace: String,
    pub(crate) identity: String,
    pub(crate) connected: bool,
    pub(crate) connected_at: Option<Timestamp>,
    pub(crate) acknowledged_epoch: u64,
    pub(crate) published_epoch: u64,
    pub(crate) current: bool,
    /// How often it refused something since it connected.
    pub(crate) rejected: u64,
    /// What it refuses of what is published now.
    pub(crate) rejections: Vec<String>,
    /// When it reported its counters last.
    pub(crate) heard_at: Option<Timestamp>,
}

/// `airlane get policies`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyView {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) target: String,
    pub(crate) file: String,
    pub(crate) generation: i64,
    pub(crate) accepted: bool,
    pub(crate) programmed: Programmed,
    pub(crate) problems: Vec<Problem>,
    /// The file is in error and an earlier version is in force.
    pub(crate) outdated: bool,
}

/// How many proxies run an object's present version.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Programmed {
    pub(crate) acknowledged: usize,
    pub(crate) targeted: usize,
}

/// `airlane get effective`: one value and where it comes from.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EffectiveView {
    /// `None`: the same for every port.
    pub(crate) port: Option<u16>,
    pub(crate) field: String,
    pub(crate) value: String,
    pub(crate) origin: String,
}

/// `airlane get canaries`, `airlane canary status`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CanaryView {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service: String,
    pub(crate) stable: String,
    pub(crate) canary: String,
    pub(crate) phase: Phase,
    pub(crate) step: String,
    pub(crate) share_percent: f64,
    pub(crate) because: String,
    pub(crate) needs: Option<String>,
    pub(crate) progress: Option<Progress>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) outdated: bool,
}

/// A file or object that could not be used.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorView {
    pub(crate) file: String,
    /// The object, if that much could be read.
    pub(crate) object: Option<ObjectId>,
    pub(crate) text: String,
}

/// What a policy is about, for people.
pub(crate) fn target(target: &Target) -> String {
    match target {
        Target::Mesh => "mesh".to_owned(),
        Target::Namespace(namespace) => format!("namespace {namespace}"),
        Target::Service { service, port: None } => format!("service {service}"),
        Target::Service { service, port: Some(port) } => format!("service {service}:{port}"),
        Target::Workload { namespace, name } => format!("workload {namespace}/{name}"),
        Target::ServiceAccount { namespace, name } => format!("account {namespace}/{name}"),
    }
}
