//! `Canary`: a release that proves itself.

mod course;
mod objective;

pub use {
    course::{
        Affinity, Gate, GatePoint, InFlight, OnDeadline, OnFailure, OutsideTraffic, RollbackOf, Webhook,
    },
    objective::{ErrorRate, GrpcStatus, Latency, Metric, Objective, Paths},
};

use crate::{
    matching::Matches,
    name::{NameText, RevisionText},
    quantity::{Duration, Share},
    schema::NotYet,
    status::CanaryStatus,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Annotation by which a person has the revision that it names promoted at once.
pub const PROMOTE: &str = "airlane.dev/promote";
/// Annotation by which a person has the revision that it names taken back.
pub const ABORT: &str = "airlane.dev/abort";
/// Annotation by which a person has the revision that it names tried once more.
pub const RETRY: &str = "airlane.dev/retry";

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
    selectable = ".spec.service",
    selectable = ".spec.targetRef.name",
    selectable = ".status.phase",
    validation = Rule::new("size(self.metadata.name) <= 63 && !self.metadata.name.contains('.')")
        .message("metadata.name must be a DNS label; use at most 63 lower-case letters, digits and '-'"),
    printcolumn(name = "Target", type_ = "string", json_path = ".status.target"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "integer", json_path = ".status.step"),
    printcolumn(name = "Weight", type_ = "string", json_path = ".status.weight"),
    printcolumn(name = "Because", type_ = "string", json_path = ".status.because"),
    printcolumn(name = "Needs", type_ = "string", json_path = ".status.needs", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.targetRef) || has(self.service)")
        .message("names nothing to release; write service: NAME, stable: { version: v1 } and canary: { version: v2 }"),
    validation = Rule::new("!has(self.targetRef) || (!has(self.service) && !has(self.stable) && !has(self.canary))")
        .message("a canary has targetRef, or service with stable and canary; remove one of the two")
        .field_path(".targetRef"),
    validation = Rule::new("!has(self.service) || (has(self.stable) && has(self.canary))")
        .message("service needs both versions; write stable: { version: v1 } and canary: { version: v2 }")
        .field_path(".service"),
    validation = Rule::new("!has(self.stable) || !has(self.canary) || self.stable.version != self.canary.version")
        .message(Message::Expression(
            "self.canary.version + ' is the stable version too; name the version on trial'".into()))
        .field_path(".canary.version"),
    validation = Rule::new("has(self.service) == has(oldSelf.service) \
            && (!has(self.service) || self.service == oldSelf.service)")
        .message("service cannot change: what this canary remembers is about the other one; make a new Canary")
        .field_path(".service"),
    validation = Rule::new("has(self.targetRef) == has(oldSelf.targetRef) \
            && (!has(self.targetRef) || self.targetRef == oldSelf.targetRef)")
        .message("targetRef cannot change: what this canary remembers is about the other one; make a new Canary")
        .field_path(".targetRef"),
    validation = Rule::new("!has(self.strategy) || self.strategy != 'AB' || has(self.match)")
        .message("AB goes by what requests say; write match").field_path(".match")
)]
pub struct CanarySpec {
    /// Not supported yet, and such a canary is not used. The workload whose new revisions are released, instead of
    /// `service`, `stable` and `canary`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<WorkloadRef>,
    /// The service whose traffic is split, in the canary's namespace; it selects the pods of both versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<NameText>,
    /// The version in production, which gets what the canary does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<Version>,
    /// The version on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Version>,
    /// true: the release does not advance; it is still taken back if it fails. false if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// How traffic is moved. Progressive: step by step. BlueGreen: at once. AB: by what requests say. MirrorFirst: on
    /// copies first. A canary with another than Progressive is held: they are not supported yet. Progressive if not
    /// said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// Who sees the canary (AB).
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub matches: Option<Matches>,
    /// How one user's requests stay with one version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<NotYet<Affinity>>,
    /// The canary's shares, each larger than the one before, the last one 100%. Without them: 5, 25, 50, 100 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(
        validation = Rule::new("self.map(step, double(step.weight.replace('%', ''))).isSorted() \
                && self.all(step, self.exists_one(other, double(other.weight.replace('%', '')) \
                    == double(step.weight.replace('%', ''))))")
            .message("let each step be larger than the one before"),
        validation = Rule::new("self[size(self) - 1].weight.startsWith('100')")
            .message("add a step { weight: 100% }: a release ends with all of the traffic")
    )]
    pub steps: Option<Vec<Step>>,
    /// What must hold for the release to go on; all of them. Without them: at most 1 % errors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub objectives: Vec<Objective>,
    /// How long the canary's pods may take to be ready, as in 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_within: Option<NotYet<Duration>>,
    /// How long the release may take from its first step, as in 24h; then onDeadline says what happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<NotYet<Duration>>,
    /// What happens at the deadline. Hold: it waits for a person. Rollback: it is taken back. Promote: it gets
    /// everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_deadline: Option<NotYet<OnDeadline>>,
    /// Services of yours that are asked on the way, and may hold the release.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub gates: Option<NotYet<Vec<Gate>>>,
    /// How often the judge may be wrong. Surer takes more requests, and so longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judgement: Option<Judgement>,
    /// How a release is taken back, and who is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<NotYet<OnFailure>>,
    /// Whether calls that reach pods past the mesh stop the release. Refuse: they do. Accept: they are counted, and
    /// it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside_traffic: Option<NotYet<OutsideTraffic>>,
}

/// A workload, in the canary's namespace.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct WorkloadRef {
    /// The kind of workload.
    pub kind: WorkloadKind,
    /// Its name, in the canary's namespace.
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
    /// The version of its instances: in a cluster what their pods' label `version` says, else
    /// `app.kubernetes.io/version`; elsewhere what they register with.
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
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("double(self.weight.replace('%', '')) > 0.0")
        .message("0% sends nothing to the canary; write at least 0.01%").field_path(".weight"),
    validation = Rule::new("self.weight.matches('^[0-9]+([.][0-9]{1,2}0*)?%$')")
        .message(Message::Expression("self.weight + ' is too fine a weight; use at most two decimals, as in 0.01%'".into()))
        .field_path(".weight")
)]
pub struct Step {
    /// The share of requests that the canary gets, as in 5%; at most two decimals.
    pub weight: Share,
    /// How long the release stays here at least, as in 2m, however clear the evidence is. As soon as it is clear if
    /// not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<Duration>,
    /// true: the release waits here until a person lets it go on. A canary with such a step is held: it is not
    /// supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approve: Option<bool>,
}

/// How sure the judge must be.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.falseRollback) || (double(self.falseRollback.replace('%', '')) > 0.0 \
            && double(self.falseRollback.replace('%', '')) < 100.0)")
        .message(Message::Expression("self.falseRollback + ' cannot be kept; write more than 0% and less than 100%'".into()))
        .field_path(".falseRollback"),
    validation = Rule::new("!has(self.wrongPromotion) || (double(self.wrongPromotion.replace('%', '')) > 0.0 \
            && double(self.wrongPromotion.replace('%', '')) < 100.0)")
        .message(Message::Expression("self.wrongPromotion + ' cannot be kept; write more than 0% and less than 100%'".into()))
        .field_path(".wrongPromotion")
)]
pub struct Judgement {
    /// The probability that a version which is good is taken back, at most; for each attempt of a revision. 0.1% if
    /// not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub false_rollback: Option<Share>,
    /// The probability that a version which breaks an objective is promoted, at most. 1% if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrong_promotion: Option<Share>,
}
