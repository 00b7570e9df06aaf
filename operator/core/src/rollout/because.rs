//! Why a rollout moved or stays, as data; the sentence is made from it.

use super::Asked;
use crate::{
    id::Revision,
    slo::{Doubt, Verdict},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The reason of a transition, or of staying.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Because {
    /// The plan names another canary than the one on trial.
    Superseded {
        /// The one before.
        before: Revision,
    },
    /// The plan has no steps.
    NoSteps,
    /// No canary endpoint may be called.
    NoCanaryEndpoint,
    /// No stable endpoint may be called: there is nothing to compare with and nothing to go back to.
    NoStableEndpoint {
        /// The judgement that cannot be followed meanwhile.
        breached: bool,
    },
    /// Canary and stable endpoints are ready.
    Ready,
    /// The plan's ladder was edited.
    LadderEdited,
    /// What the judge said.
    Judged(Verdict),
    /// Certified, but the step lasts longer.
    AtLeast {
        /// Until then.
        until_at: Timestamp,
    },
    /// Certified, but some proxies do not run the step's share yet.
    Unacknowledged,
    /// A person asked for it.
    Asked(Asked),
    /// `spec.suspend`.
    Suspended,
    /// The plan cannot be followed as it is written: why, and the mend.
    Held(String),
    /// Every proxy runs the final shares.
    Acknowledged,
    /// What was recorded did not fit the phase, and was put right.
    Restored,
}

impl Because {
    /// What is missing to go on, for people.
    pub(super) fn needs(&self) -> Option<String> {
        match self {
            Because::NoSteps => Some("steps".into()),
            Because::NoCanaryEndpoint => Some("a canary endpoint that is ready".into()),
            Because::NoStableEndpoint { .. } => Some("a stable endpoint that is ready".into()),
            Because::Judged(Verdict::Unknown(doubt)) => doubt.needs(),
            Because::AtLeast { until_at } => Some(format!("time, until {until_at}")),
            Because::Unacknowledged => Some("acknowledgements of every proxy".into()),
            Because::Asked(Asked::Pause) => Some("`airlane canary resume`".into()),
            Because::Suspended => Some("`spec.suspend: false`".into()),
            _ => None,
        }
    }

    /// The doubt behind it, if it is one.
    pub fn doubt(&self) -> Option<&Doubt> {
        match self {
            Because::Judged(Verdict::Unknown(doubt)) => Some(doubt),
            _ => None,
        }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Because::Superseded { before } => write!(f, "the plan has a new canary; it was {before}"),
            Because::NoSteps => f.write_str("the plan has no steps"),
            Because::NoCanaryEndpoint => f.write_str("no canary endpoint is ready"),
            Because::NoStableEndpoint { breached: false } => f.write_str("no stable endpoint is ready"),
            Because::NoStableEndpoint { breached: true } => {
                f.write_str("the canary breaches an objective, but no stable endpoint could take its traffic")
            }
            Because::Ready => f.write_str("canary and stable endpoints are ready"),
            Because::LadderEdited => {
                f.write_str("the steps were edited: going on from the highest not above the share")
            }
            Because::Judged(verdict) => verdict.fmt(f),
            Because::AtLeast { until_at } => write!(f, "certified; the step lasts until {until_at}"),
            Because::Unacknowledged => f.write_str("certified; not every proxy runs the step's share yet"),
            Because::Asked(Asked::Pause) => f.write_str("paused by hand"),
            Because::Asked(Asked::Resume) => f.write_str("resumed by hand"),
            Because::Asked(Asked::Promote) => f.write_str("promoted by hand"),
            Because::Asked(Asked::Abort) => f.write_str("aborted by hand"),
            Because::Asked(Asked::Retry) => f.write_str("tried once more by hand"),
            Because::Suspended => f.write_str("paused by spec.suspend"),
            Because::Held(why) => write!(f, "held: {why}"),
            Because::Acknowledged => f.write_str("every proxy runs the final shares"),
            Because::Restored => f.write_str("what was recorded did not fit the phase and was put right"),
        }
    }
}

/// Why a verb was not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// It is not running.
    NotRunning(Asked),
    /// Nobody paused it.
    NotPaused,
    /// `spec.suspend` pauses it.
    Suspended,
    /// Its plan cannot be followed as it is written.
    Held,
    /// There is no canary endpoint to promote.
    NoCanaryEndpoint,
    /// Only what was taken back can be tried once more.
    NotRolledBack,
    /// It is being taken back, which nothing stops.
    RollingBack(Asked),
    /// It was taken back: only a retry brings it back.
    RolledBack(Asked),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotRunning(verb) => write!(f, "{}: the rollout is not running", name(*verb)),
            Refusal::NotPaused => f.write_str("resume: the rollout is not paused"),
            Refusal::Suspended => f.write_str("resume: spec.suspend pauses it, set that to false"),
            Refusal::Held => f.write_str("resume: the plan is held, its status says what to mend"),
            Refusal::NoCanaryEndpoint => f.write_str("promote: no canary endpoint is ready"),
            Refusal::NotRolledBack => f.write_str("retry: the canary was not taken back"),
            Refusal::RollingBack(verb) => write!(
                f,
                "{}: the canary is being taken back; once it is RolledBack, `airlane canary retry` tries it once more",
                name(*verb)
            ),
            Refusal::RolledBack(verb) => {
                write!(
                    f,
                    "{}: the canary was taken back, `airlane canary retry` tries it once more",
                    name(*verb)
                )
            }
        }
    }
}

fn name(verb: Asked) -> &'static str {
    match verb {
        Asked::Pause => "pause",
        Asked::Resume => "resume",
        Asked::Promote => "promote",
        Asked::Abort => "abort",
        Asked::Retry => "retry",
    }
}
