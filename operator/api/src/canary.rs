//! `Canary`: a release that proves itself.

use crate::{
    quantity::{Duration, NameText, Ratio, RevisionText, Share},
    schema::NotYet,
    status::CanaryStatus,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A release of a service that proves itself step by step.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "airlane.dev",
    version = "v1alpha1",
    doc = "A release of a service that proves itself step by step.",
    kind = "Canary",
    plural = "canaries",
    shortname = "aln-canary",
    category = "airlane",
    namespaced,
    status = "CanaryStatus",
    derive = "PartialEq",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "integer", json_path = ".status.step"),
    printcolumn(name = "Weight", type_ = "string", json_path = ".status.weight"),
    printcolumn(name = "Because", type_ = "string", json_path = ".status.because"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.targetRef) != has(self.service)")
        .message("give either targetRef, or service with stable and canary"),
    validation = Rule::new("!has(self.service) || (has(self.stable) && has(self.canary))")
        .message("service needs stable and canary: { version: … }"),
    validation = Rule::new("!has(self.stable) || !has(self.canary) || self.stable.version != self.canary.version")
        .message("stable and canary must be different versions").field_path(".canary.version"),
    validation = Rule::new("!has(self.steps) || self.steps[size(self.steps) - 1].weight.startsWith('100')")
        .message("the last step must have weight: 100%").field_path(".steps")
)]
pub struct CanarySpec {
    /// The workload whose new revisions are released, instead of `service`, `stable` and `canary`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<WorkloadRef>,
    /// The service whose traffic is split between two label-selected versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<NameText>,
    /// The version in production.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<Version>,
    /// The version on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Version>,
    /// Whether the release is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// How traffic is moved; Progressive if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// Who sees the canary (AB).
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<NotYet>,
    /// How a user stays on one revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<NotYet>,
    /// The canary's shares, each larger than the one before, the last one 100%. Without them: 5, 25, 50, 100 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    pub steps: Option<Vec<Step>>,
    /// What must hold. Without them: at most 1 % errors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub objectives: Vec<Objective>,
    /// How long the canary may take to be up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_within: Option<NotYet>,
    /// How long the release may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<NotYet>,
    /// What happens then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_deadline: Option<NotYet>,
    /// Who is asked on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gates: Option<NotYet>,
    /// How sure the judge must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judgement: Option<Judgement>,
    /// How it is taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<NotYet>,
    /// What is thought of callers that reach pods past the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside_traffic: Option<NotYet>,
}

/// A workload, in the canary's namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct WorkloadRef {
    /// The kind of workload.
    pub kind: WorkloadKind,
    /// Its name.
    pub name: NameText,
}

/// The kinds of workloads that are released.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of Kubernetes kinds")]
pub enum WorkloadKind {
    Deployment,
    StatefulSet,
}

/// One of the two versions.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Version {
    /// The version its instances register with.
    pub version: RevisionText,
}

/// Progressive: step by step. BlueGreen: at once. AB: by what the request says. MirrorFirst: on copies first.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum Strategy {
    Progressive,
    BlueGreen,
    AB,
    MirrorFirst,
}

/// One step.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The canary's share.
    pub weight: Share,
    /// Never left sooner than this, however clear the evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<Duration>,
    /// Whether a person must agree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approve: Option<bool>,
}

/// What must hold.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Objective {
    /// Its name.
    pub name: NameText,
    /// A bound on failed requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<ErrorRate>,
    /// A bound on slow requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<NotYet>,
    /// A bound on a metric of somebody else's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<NotYet>,
    /// Which paths count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<NotYet>,
    /// How long a cold start is not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<NotYet>,
}

/// A bound on failed requests.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statuses: Option<NotYet>,
    /// Which gRPC statuses are failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<NotYet>,
}

/// How sure the judge must be.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Judgement {
    /// The most false rollbacks, per attempt of a revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub false_rollback: Option<Share>,
    /// The most wrong promotions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrong_promotion: Option<Share>,
}
