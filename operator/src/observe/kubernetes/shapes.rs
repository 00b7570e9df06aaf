//! What of Kubernetes' objects is read: the few fields that matter here, so that the rest is dropped while it is
//! parsed. Numbers are as wide as Kubernetes has them: what they may be, it does not check everywhere.

use airlane_api::{canary, mesh_policy};
use k8s_openapi::{
    api::{apps::v1 as apps, core::v1 as core, discovery::v1 as discovery, rbac::v1 as rbac},
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, Time},
        util::intstr::IntOrString,
    },
};
use kube::Resource;
use serde::Deserialize;
use std::collections::BTreeMap;

/// One copy of a workload.
#[derive(Resource, Deserialize, Clone, Debug, Default)]
#[resource(inherit = core::Pod)]
pub(super) struct Pod {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: PodSpec,
    #[serde(default)]
    pub(super) status: PodStatus,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub(super) service_account_name: Option<String>,
    pub(super) host_network: bool,
    pub(super) termination_grace_period_seconds: Option<u64>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus {
    pub(super) phase: Option<String>,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Vec<PodAddress>,
    pub(super) conditions: Vec<PodCondition>,
}

#[derive(Deserialize, Clone, Debug)]
pub(super) struct PodAddress {
    pub(super) ip: String,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodCondition {
    #[serde(rename = "type")]
    pub(super) type_: String,
    pub(super) status: String,
    #[serde(default)]
    pub(super) last_transition_time: Option<Time>,
}

/// What callers name.
#[derive(Resource, Deserialize, Clone, Debug, Default)]
#[resource(inherit = core::Service)]
pub(super) struct Service {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: ServiceSpec,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(super) type_: Option<String>,
    pub(super) selector: BTreeMap<String, String>,
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub(super) cluster_ips: Vec<String>,
    pub(super) ports: Vec<ServicePort>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServicePort {
    #[serde(default)]
    pub(super) name: Option<String>,
    pub(super) port: i32,
    #[serde(default)]
    pub(super) target_port: Option<IntOrString>,
    #[serde(default)]
    pub(super) protocol: Option<String>,
    #[serde(default)]
    pub(super) app_protocol: Option<String>,
}

/// The pods behind a service, ready or not, as far as their ports have the same numbers.
#[derive(Resource, Deserialize, Clone, Debug, Default)]
#[resource(inherit = discovery::EndpointSlice)]
pub(super) struct EndpointSlice {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) endpoints: Option<Vec<SliceEndpoint>>,
    #[serde(default)]
    pub(super) ports: Option<Vec<SlicePort>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct SliceEndpoint {
    #[serde(default)]
    pub(super) target_ref: Option<core::ObjectReference>,
}

#[derive(Deserialize, Clone, Debug)]
pub(super) struct SlicePort {
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) port: Option<i32>,
    #[serde(default)]
    pub(super) protocol: Option<String>,
}

/// A namespace: only what stands on its label.
#[derive(Resource, Deserialize, Clone, Debug, Default)]
#[resource(inherit = core::Namespace)]
pub(super) struct Namespace {
    pub(super) metadata: ObjectMeta,
}

/// A workload whose pods Kubernetes replaces when their template changes.
#[derive(Resource, Deserialize, Clone, Debug, Default)]
#[resource(inherit = apps::Deployment)]
pub(super) struct Deployment {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: DeploymentSpec,
    #[serde(default)]
    pub(super) status: DeploymentStatus,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DeploymentSpec {
    pub(super) replicas: Option<u32>,
    pub(super) strategy: DeploymentStrategy,
    pub(super) paused: bool,
    pub(super) progress_deadline_seconds: Option<u32>,
    // Not in line: news of all kinds are handed on in one type.
    pub(super) template: Box<Template>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DeploymentStrategy {
    #[serde(rename = "type")]
    pub(super) type_: Option<String>,
    pub(super) rolling_update: Option<RollingUpdate>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RollingUpdate {
    pub(super) max_unavailable: Option<IntOrString>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(default)]
pub(super) struct Template {
    pub(super) metadata: ObjectMeta,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DeploymentStatus {
    pub(super) observed_generation: i64,
    pub(super) replicas: u32,
    pub(super) updated_replicas: u32,
    pub(super) available_replicas: u32,
    pub(super) conditions: Vec<DeploymentCondition>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeploymentCondition {
    #[serde(rename = "type")]
    pub(super) type_: String,
    pub(super) status: String,
    #[serde(default)]
    pub(super) reason: Option<String>,
    #[serde(default)]
    pub(super) last_update_time: Option<Time>,
}

/// What lets somebody do something in a namespace; of ours, what we noted on it.
#[derive(Resource, Deserialize, Clone, Debug, Default)]
#[resource(inherit = rbac::RoleBinding)]
#[serde(rename_all = "camelCase")]
pub(super) struct RoleBinding {
    pub(super) metadata: ObjectMeta,
    pub(super) role_ref: rbac::RoleRef,
}

/// A `MeshPolicy`, not understood yet.
#[derive(Resource, Deserialize, Clone, Debug, Default)]
#[resource(inherit = mesh_policy::MeshPolicy)]
pub(crate) struct MeshPolicy {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: serde_json::Value,
    #[serde(default)]
    pub(crate) status: serde_json::Value,
}

/// A `Canary`, not understood yet.
#[derive(Resource, Deserialize, Clone, Debug, Default)]
#[resource(inherit = canary::Canary)]
pub(crate) struct Canary {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: serde_json::Value,
    #[serde(default)]
    pub(crate) status: serde_json::Value,
}
