//! A canary's plan, its memory and its next step.
//!
//! # Transitions
//!
//! The first row that applies decides. *Ready* counts endpoints that may be called; *acknowledged* means that every proxy
//! runs the shares of this progress. Pause and resume (asked or by `suspend`) change whether it is paused, whatever else
//! applies. So does what holds the plan back because it cannot be followed.
//!
//! | from | when | to | canary's share | fail-safe share |
//! |---|---|---|---|---|
//! | any | the plan names another canary | Idle, all memory anew | 0 | 0 |
//! | RolledBack | retry | Idle, all memory anew | 0 | 0 |
//! | RolledBack, RollingBack | abort | the same, and shut out | 0 | 0 |
//! | RolledBack | else | – | 0 | 0 |
//! | RollingBack | acknowledged | RolledBack | 0 | 0 |
//! | any other | abort | RollingBack | 0 | 0 |
//! | Succeeded | else | – | all | all |
//! | Promoting | breached, stable ready | RollingBack | 0 | 0 |
//! | Promoting | acknowledged | Succeeded | all | all |
//! | Idle to Paused | promote, canary ready | Promoting | all | all |
//! | Progressing, Holding, Paused | breached, stable ready | RollingBack | 0 | 0 |
//! | Progressing, Holding, Paused | no canary ready | Holding (or Paused) | 0 | 0 |
//! | Progressing, Holding, Paused | breached, no stable ready | Holding (or Paused) | not more | certified |
//! | Idle | no canary or no stable ready, or paused | – | 0 | 0 |
//! | Idle | else | Progressing | step 0's | 0 |
//! | Progressing, Holding | paused | Paused | step's | certified |
//! | Progressing to Paused | no stable ready, not the last step | Holding (or Paused) | not more | certified |
//! | Progressing, Holding | healthy, acknowledged, `at_least` over, a step left | Progressing | next step's | this step's |
//! | Progressing, Holding | the same, no step left | Promoting | all | all |
//! | Progressing, Holding, Paused | not paused, unknown for a reason that lasts | Holding | step's | certified |
//! | Progressing, Holding, Paused | else, not paused | Progressing | step's | certified |
//!
//! So [`Verdict::Unknown`](crate::slo::Verdict) never advances, only a healthy one does; a certified share is in the routes before a larger
//! one is tried, and stays when nobody keeps the current one alive. A rollback moves traffic first, waits until
//! every proxy acknowledged, and then is one. It needs a stable endpoint to go back to, unless a person asks for it.
//! If the ladder of a running plan is edited, the rollout goes on from the highest step not above its share.

mod because;
mod step;

#[cfg(test)]
mod tests;

pub use {
    because::{Because, Refusal},
    step::{Acknowledged, Facts, Step, carry_out, objectives, step},
};

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
    /// The smaller, the older; the same for all where nobody knows, as for files.
    pub age_rank: i64,
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
    pub objectives: Vec<crate::slo::Objective>,
    /// The most false rollbacks per attempt of a revision, α, 0 < α < 1 (default 0.001).
    pub false_rollback: f64,
    /// The most wrong promotions, β, 0 < β < 1 (default 0.01).
    pub wrong_promotion: f64,
    /// A pause written in the object.
    pub suspend: bool,
    /// Why it may not run as it is written, and the mend: one sentence. It is paused as long as that is so.
    pub held: Option<String>,
}

/// One step of the plan.
#[derive(Clone, PartialEq, Debug)]
pub struct StepPlan {
    /// The canary's share, in parts of [`crate::mesh::FULL_SHARE`].
    pub share: u32,
    /// Never left sooner than this, however clear the evidence.
    pub at_least: Option<Millis>,
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
    /// The largest share certified so far; the fail-safe share is this one or, without a canary endpoint, 0.
    pub certified_share: u32,
    /// When the phase or the share changed last.
    pub since_at: Timestamp,
    /// When the step was entered: what `at_least` counts from.
    pub step_at: Timestamp,
    /// A person asked for a pause; only a resume ends it. (`suspend` in the plan pauses as well.)
    pub pause_asked: bool,
    /// A person took it back: it gets nothing, even when nothing else is left. The judge knows failures only; a person
    /// may know worse.
    #[serde(default)]
    pub aborted: bool,
    /// Why it is here: one sentence with its numbers.
    pub because: String,
    /// What is missing while holding.
    pub needs: Option<String>,
    /// The judge's accumulators.
    pub judge: crate::slo::Wealth,
    /// The last transitions, newest last, at most 20.
    pub history: Vec<Transition>,
}

impl Progress {
    /// How many transitions are kept.
    pub const HISTORY: usize = 20;

    /// What a rollout begins with: nothing on the canary.
    pub fn new(plan: &Rollout, now: Timestamp) -> Self {
        Self {
            phase: Phase::Idle,
            canary: plan.canary.clone(),
            step: 0,
            share: 0,
            fail_safe_share: 0,
            certified_share: 0,
            since_at: now,
            step_at: now,
            pause_asked: false,
            aborted: false,
            because: Because::NoCanaryEndpoint.to_string(),
            needs: None,
            judge: crate::slo::Wealth::new(now),
            history: Vec::new(),
        }
    }
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
