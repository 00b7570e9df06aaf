//! The status of a `Canary`: what people read, and the rollout's only memory.

use super::{Condition, ConditionStatus, FieldProblem, cut, field_problems};
use crate::{name::RevisionText, quantity::Share};
use airlane_core::{
    problem::Problem,
    rollout::{Canary, Phase, Progress, Transition},
    slo::Counts,
};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Where a canary is, and the only memory of how it came there.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStatus {
    /// The generation of the canary that the rest speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: all traffic is on the canary. What kubectl wait, Flux and Argo read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// What in the canary is not used as it is written, why, and what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub problems: Vec<FieldProblem>,
    /// The service whose traffic it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub target: Option<String>,
    /// Where it is: Idle, Progressing, Holding, Paused, Promoting, Succeeded, RollingBack or RolledBack.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub phase: Option<String>,
    /// The step it is at, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 20))]
    pub step: Option<u32>,
    /// The share of requests that the canary gets now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<Share>,
    /// Which share of the requests comes through the mesh, and which past it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// The versions that share the traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revisions: Option<Revisions>,
    /// Why it is where it is, with the numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub because: Option<String>,
    /// The requests that were counted at this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// What is missing while it is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub needs: Option<String>,
    /// The last transitions, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub history: Vec<HistoryEntry>,
    /// What the operator remembers: not for people, not to be edited. Nothing before its first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "opaque")]
    pub memory: Option<serde_json::Value>,
}

fn opaque(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// How requests reach the target.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// The share that comes through the mesh, and is split.
    pub mesh: Share,
    /// The share that reaches pods past it.
    pub outside: Share,
}

/// Who shares the traffic.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Revisions {
    /// The revision in production.
    pub stable: RevisionText,
    /// The revision on trial.
    pub canary: RevisionText,
    /// Those that have proved themselves and may come back without a trial, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub certified: Vec<RevisionText>,
}

/// What was counted at this step.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub struct Evidence {
    /// What became of the canary's requests.
    pub canary: Outcomes,
    /// What became of stable's.
    pub stable: Outcomes,
}

/// How requests ended, by their first attempts.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub struct Outcomes {
    /// First tries that ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failed: u64,
}

impl From<Counts> for Outcomes {
    fn from(counts: Counts) -> Self {
        Outcomes { requests: counts.ended, failed: counts.failed }
    }
}

/// One transition.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct HistoryEntry {
    /// When it happened, RFC 3339.
    #[schemars(length(max = 40))]
    pub at: String,
    /// The phase that began.
    #[schemars(length(max = 63))]
    pub phase: String,
    /// The step at which, counted from 1.
    pub step: u32,
    /// The canary's share from then on.
    pub weight: Share,
    /// Why, with the numbers.
    #[schemars(length(max = 4096))]
    pub because: String,
}

impl From<&Transition> for HistoryEntry {
    fn from(transition: &Transition) -> Self {
        HistoryEntry {
            at: transition.at.to_string(),
            phase: format!("{:?}", transition.phase),
            step: from_one(transition.step),
            weight: Share::from_parts(transition.share),
            because: cut(&transition.because),
        }
    }
}

impl CanaryStatus {
    /// What to tell and remember of a canary, with all that is known to be wrong with it.
    ///
    /// # Errors
    /// If the progress has no form in JSON: then nothing may be written, for it would forget.
    pub fn of(canary: &Canary, problems: &[Problem]) -> Result<Self, serde_json::Error> {
        let mut status = CanaryStatus {
            observed_generation: Some(canary.generation),
            problems: field_problems(problems),
            revisions: Some(Revisions {
                stable: RevisionText(canary.plan.stable.clone()),
                canary: RevisionText(canary.plan.canary.clone()),
                certified: Vec::new(),
            }),
            target: Some(canary.plan.service.name.to_string()),
            ..CanaryStatus::default()
        };
        if let Some(progress) = &canary.progress {
            status.tell(progress);
            status.memory = Some(serde_json::to_value(progress)?);
        }
        Ok(status)
    }

    /// What to tell of a canary that was never understood, or of which nothing can be used yet.
    pub fn refused(generation: i64, problems: &[Problem]) -> Self {
        let told = problems.first().map(|problem| (problem.reason.to_string(), cut(&problem.message)));
        let (reason, message) = told.unwrap_or_else(|| ("Refused".into(), String::new()));
        let ready = Condition {
            type_: "Ready".into(),
            status: ConditionStatus::False,
            reason,
            message,
            observed_generation: Some(generation),
            last_transition_time: None,
        };
        CanaryStatus {
            observed_generation: Some(generation),
            conditions: vec![ready],
            problems: field_problems(problems),
            ..CanaryStatus::default()
        }
    }

    fn tell(&mut self, progress: &Progress) {
        let phase = format!("{:?}", progress.phase);
        self.conditions.push(Condition {
            type_: "Ready".into(),
            status: ConditionStatus::of(progress.phase == Phase::Succeeded),
            reason: phase.clone(),
            message: cut(&progress.because),
            observed_generation: self.observed_generation,
            last_transition_time: None,
        });
        self.phase = Some(phase);
        self.step = Some(from_one(progress.step));
        self.weight = Some(Share::from_parts(progress.share));
        self.because = Some(cut(&progress.because));
        self.evidence =
            Some(Evidence { canary: progress.judge.canary.into(), stable: progress.judge.stable.into() });
        self.needs = progress.needs.as_deref().map(cut);
        self.history = progress.history.iter().map(HistoryEntry::from).collect();
    }

    /// What the rollout remembers; `None` before its first step.
    ///
    /// # Errors
    /// If somebody edited the memory, or it is of a version that cannot be read: then the rollout may not be judged
    /// as if it were new.
    pub fn progress(&self) -> Result<Option<Progress>, serde_json::Error> {
        self.memory.as_ref().map(Progress::deserialize).transpose()
    }
}

fn from_one(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlane_core::{
        id::{Name, Namespace, ObjectId, ObjectKind, Revision, ServiceId},
        rollout::{Rollout, StepPlan},
    };
    use jiff::Timestamp;

    fn canary() -> Canary {
        let namespace = Namespace::parse("shop").expect("a name");
        let name = Name::parse("pay").expect("a name");
        let plan = Rollout {
            service: ServiceId { namespace: namespace.clone(), name: name.clone() },
            stable: Revision::parse("v1").expect("a name"),
            canary: Revision::parse("v2").expect("a name"),
            steps: vec![StepPlan { share: 10_000, at_least: None }],
            objectives: Vec::new(),
            false_rollback: 0.001,
            wrong_promotion: 0.01,
            suspend: false,
            held: None,
        };
        let mut progress = Progress::new(&plan, Timestamp::UNIX_EPOCH);
        progress.phase = Phase::RollingBack;
        progress.step = 1;
        progress.share = 500;
        progress.because = "errors".into();
        progress.judge.canary = Counts { failed: 6, ended: 94 };
        progress.history.push(Transition {
            at: Timestamp::UNIX_EPOCH,
            phase: Phase::Progressing,
            step: 0,
            share: 500,
            because: "ready".into(),
        });
        let id = ObjectId { kind: ObjectKind::Canary, namespace, name };
        Canary { id, generation: 2, age_rank: 0, plan, progress: Some(progress), asked: None }
    }

    #[test]
    fn a_status_tells_people_and_remembers_everything() {
        let canary = canary();
        let status = CanaryStatus::of(&canary, &[]).expect("a status");
        let json = serde_json::to_value(&status).expect("a status has a form in JSON");
        let told = ["phase", "step", "weight", "because", "evidence"].map(|field| json[field].to_string());
        assert_eq!(
            told,
            [
                r#""RollingBack""#,
                "2",
                r#""5%""#,
                r#""errors""#,
                r#"{"canary":{"failed":6,"requests":94},"stable":{"failed":0,"requests":0}}"#,
            ]
        );
        assert_eq!(json["conditions"][0]["status"], "False");
        assert_eq!(json["history"][0]["at"], "1970-01-01T00:00:00Z");
        let read: CanaryStatus = serde_json::from_value(json).expect("a status reads back");
        assert_eq!(read.progress().expect("a memory"), canary.progress);
    }

    #[test]
    fn a_canary_that_is_refused_is_not_ready_and_says_why() {
        let problem = Problem {
            subject: canary().id,
            field: "spec.service".into(),
            reason: airlane_core::problem::Reason::Invalid,
            message: "is missing".into(),
        };
        let CanaryStatus { conditions, problems, memory, .. } = CanaryStatus::refused(4, &[problem]);
        let told = conditions.iter().map(|c| (c.status, c.reason.as_str(), c.message.as_str()));
        assert_eq!(told.collect::<Vec<_>>(), [(ConditionStatus::False, "Invalid", "is missing")]);
        assert_eq!((problems.len(), memory), (1, None));
    }

    #[test]
    fn a_broken_memory_is_not_a_new_rollout() {
        let broken = CanaryStatus { memory: Some(serde_json::json!({})), ..CanaryStatus::default() };
        assert!(broken.progress().is_err());
        assert_eq!(CanaryStatus::default().progress().expect("no memory"), None);
    }
}
