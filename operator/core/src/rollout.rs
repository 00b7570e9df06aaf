//! A canary's plan, its memory and its next step.

use crate::{
    id::{ObjectId, Revision, ServiceId},
    policy::Millis,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A `Canary` object: the plan its author wrote and the progress recorded in its status.
#[derive(Clone, PartialEq, Debug)]
pub struct Canary {
    /// The object.
    pub id: ObjectId,
    /// The object's generation, for `observedGeneration`.
    pub generation: i64,
    /// The plan.
    pub plan: Rollout,
    /// The only memory of the rollout; `None` before the first step.
    pub progress: Option<Progress>,
    /// A verb asked for by a person and not yet carried out.
    pub asked: Option<Asked>,
}

/// The plan: two label-selected versions behind one service.
#[derive(Clone, PartialEq, Debug)]
pub struct Rollout {
    /// Whose traffic is split.
    pub service: ServiceId,
    /// The version in production.
    pub stable: Revision,
    /// The version on trial.
    pub canary: Revision,
    /// Shares of the canary, each larger than the one before, the last one whole.
    pub steps: Vec<StepPlan>,
    /// What must hold.
    pub objectives: Vec<Objective>,
    /// The most false rollbacks per attempt of a revision, α, 0 < α < 1 (default 0.001).
    pub false_rollback: f64,
    /// The most wrong promotions, β, 0 < β < 1 (default 0.01).
    pub wrong_promotion: f64,
    /// A pause written in the object.
    pub suspend: bool,
}

/// One step of the plan.
#[derive(Clone, PartialEq, Debug)]
pub struct StepPlan {
    /// The canary's share, in parts of [`crate::mesh::FULL_SHARE`].
    pub share: u32,
    /// Never left sooner than this, however clear the evidence.
    pub at_least: Option<Millis>,
}

/// One objective: a bound on the rate of failed first attempts.
#[derive(Clone, PartialEq, Debug)]
pub struct Objective {
    /// Its name.
    pub name: String,
    /// The highest rate that is still good (`max`), 0 < max < 1.
    pub max: f64,
    /// ρ ≥ 1: how many times worse than stable is still healthy (`worseThanStable`, default 1).
    pub worse_than_stable: f64,
    /// A canary below this rate is healthy whatever stable does (`ignoreBelow`, default 0.1 × max).
    pub ignore_below: f64,
}

/// A verb of a person.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Asked {
    /// Stop advancing; keep judging.
    Pause,
    /// Go on.
    Resume,
    /// Skip the rest.
    Promote,
    /// Take it back.
    Abort,
    /// Try a revision that was taken back once more, with an α of its own.
    Retry,
}

/// Where a rollout is. The text users see is the variant's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing to do: no canary endpoint yet.
    #[default]
    Idle,
    /// The canary has its step's share and is judged.
    Progressing,
    /// It cannot advance now, and says why and what is missing.
    Holding,
    /// A person paused it.
    Paused,
    /// Every step is certified; the fail-safe shares in the routes are being moved.
    Promoting,
    /// All traffic is on the canary.
    Succeeded,
    /// Traffic is moving back.
    RollingBack,
    /// All traffic is on stable, acknowledged.
    RolledBack,
}

/// The memory of a rollout. Everything the next step needs is here; nothing else is remembered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Where it is.
    pub phase: Phase,
    /// The revision on trial: another one in the plan starts anew.
    pub canary: Revision,
    /// Index into the plan's steps.
    pub step: usize,
    /// The canary's share now, in parts of [`crate::mesh::FULL_SHARE`].
    pub share: u32,
    /// The canary's share in the routes, which holds when nobody keeps the current one alive.
    pub fail_safe_share: u32,
    /// When the phase or the share changed last.
    pub since_at: Timestamp,
    /// Why it is here: one sentence with its numbers.
    pub because: String,
    /// What is missing while holding.
    pub needs: Option<String>,
    /// The judge's accumulators.
    pub judge: crate::slo::Wealth,
    /// The last transitions, newest last, at most 20.
    pub history: Vec<Transition>,
}

/// One transition, as it is told to people.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transition {
    /// When.
    pub at: Timestamp,
    /// Into which phase.
    pub phase: Phase,
    /// Index into the plan's steps.
    pub step: usize,
    /// The canary's share from then on.
    pub share: u32,
    /// Why.
    pub because: String,
}
