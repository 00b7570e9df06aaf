//! The state machine: where a rollout goes from here.

use super::{Asked, Because, Phase, Progress, Refusal, Rollout, Transition};
use crate::{
    mesh::FULL_SHARE,
    slo::{Objectives, Verdict},
};
use jiff::{SignedDuration, Timestamp};

/// What is true of the mesh now, beside the verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Canary endpoints that may be called.
    pub canary_ready: usize,
    /// Stable endpoints that may be called.
    pub stable_ready: usize,
    /// The shares that every proxy calling the service acknowledged; `None` while they differ or none is known.
    pub acknowledged: Option<Acknowledged>,
    /// A verb that was not carried out yet. The step carries it out or refuses it: either way it is done with.
    pub asked: Option<Asked>,
}

/// Shares of the canary that every proxy runs, in parts of [`FULL_SHARE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acknowledged {
    /// The current share.
    pub share: u32,
    /// The one in the routes.
    pub fail_safe_share: u32,
}

/// One decision.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// The progress to save, then to act on.
    pub next: Progress,
    /// Why it moved; `None`: phase, step and shares stay as they are.
    pub because: Option<Because>,
    /// Why the verb that was asked for was not carried out.
    pub refused: Option<Refusal>,
    /// When to decide again even if nothing new is learnt.
    pub wake: Option<Timestamp>,
}

/// What the judge is asked about a rollout that is where `progress` says.
pub fn objectives(plan: &Rollout, progress: &Progress) -> Objectives {
    Objectives {
        list: plan.objectives.clone(),
        step: progress.step,
        share: progress.share,
        next_share: plan.steps.get(progress.step.saturating_add(1)).map(|step| step.share),
        false_rollback: plan.false_rollback,
        wrong_promotion: plan.wrong_promotion,
        least_failures: Objectives::LEAST_FAILURES,
    }
}

/// Decides where a rollout goes. See the table of transitions in [`crate::rollout`].
///
/// The judge's accumulators in `progress` are those the verdict was made with.
pub fn step(plan: &Rollout, progress: &Progress, verdict: &Verdict, facts: &Facts, now: Timestamp) -> Step {
    if plan.canary != progress.canary {
        return anew(plan, progress, Because::Superseded { before: progress.canary.clone() }, now);
    }
    let verb = facts.asked.map(|asked| (asked, carry_out(asked, plan, progress, facts.canary_ready)));
    let refused = verb.and_then(|(_, carried_out)| carried_out.err());
    let verb = verb.and_then(|(asked, carried_out)| carried_out.is_ok().then_some(asked));
    if verb == Some(Asked::Retry) {
        return anew(plan, progress, Because::Asked(Asked::Retry), now);
    }
    let mut next = progress.clone();
    match verb {
        Some(Asked::Pause) => next.pause_asked = true,
        Some(Asked::Resume) => next.pause_asked = false,
        Some(Asked::Abort) => next.aborted = true,
        _ => {}
    }
    if facts.asked == Some(Asked::Resume) && matches!(refused, Some(Refusal::Suspended | Refusal::Held)) {
        next.pause_asked = false;
    }
    let decision = decide(plan, &next, verb, verdict, facts, now);
    let because = arrive(&mut next, decision.place, decision.because, now);
    Step { next, because, refused, wake: decision.wake }
}

/// Whether a verb could be carried out now.
///
/// # Errors
/// [`Refusal`] if not: [`step`] would refuse it as well.
pub fn carry_out(
    asked: Asked,
    plan: &Rollout,
    progress: &Progress,
    canary_ready: usize,
) -> Result<(), Refusal> {
    let undecided =
        matches!(progress.phase, Phase::Idle | Phase::Progressing | Phase::Holding | Phase::Paused);
    match (asked, progress.phase) {
        (Asked::Retry, Phase::RolledBack) => Ok(()),
        (Asked::Abort, Phase::RollingBack | Phase::RolledBack) if !progress.aborted => Ok(()),
        (_, Phase::RollingBack) => Err(Refusal::RollingBack(asked)),
        (Asked::Retry, _) => Err(Refusal::NotRolledBack),
        (_, Phase::RolledBack) => Err(Refusal::RolledBack(asked)),
        (Asked::Abort, _) => Ok(()),
        _ if !undecided => Err(Refusal::NotRunning(asked)),
        (Asked::Promote, _) if canary_ready == 0 => Err(Refusal::NoCanaryEndpoint),
        (Asked::Resume, _) if plan.held.is_some() => Err(Refusal::Held),
        (Asked::Resume, _) if plan.suspend => Err(Refusal::Suspended),
        (Asked::Resume, _) if !progress.pause_asked => Err(Refusal::NotPaused),
        (Asked::Pause | Asked::Resume | Asked::Promote, _) => Ok(()),
    }
}

/// A fresh attempt; only what was told to people is kept.
fn anew(plan: &Rollout, progress: &Progress, because: Because, now: Timestamp) -> Step {
    let mut next = Progress { history: progress.history.clone(), ..Progress::new(plan, now) };
    next.because = because.to_string();
    next.needs = None;
    tell(&mut next, &because, now);
    Step { next, because: Some(because), refused: None, wake: Some(now) }
}

/// Everything a step decides about traffic.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    phase: Phase,
    step: usize,
    share: u32,
    fail_safe: u32,
    certified: u32,
}

impl Place {
    /// All traffic on one side.
    fn all_on_stable(phase: Phase, step: usize) -> Self {
        Self { phase, step, share: 0, fail_safe: 0, certified: 0 }
    }

    fn all_on_canary(phase: Phase, step: usize) -> Self {
        Self { phase, step, share: FULL_SHARE, fail_safe: FULL_SHARE, certified: FULL_SHARE }
    }

    fn of(progress: &Progress) -> Self {
        Self {
            phase: progress.phase,
            step: progress.step,
            share: progress.share,
            fail_safe: progress.fail_safe_share,
            certified: progress.certified_share,
        }
    }
}

struct Decision {
    place: Place,
    /// `None`: what was said before is still the reason.
    because: Option<Because>,
    wake: Option<Timestamp>,
}

impl Decision {
    fn new(place: Place, because: Because) -> Self {
        Self { place, because: Some(because), wake: None }
    }

    fn stay(place: Place) -> Self {
        Self { place, because: None, wake: None }
    }
}

fn decide(
    plan: &Rollout,
    progress: &Progress,
    verb: Option<Asked>,
    verdict: &Verdict,
    facts: &Facts,
    now: Timestamp,
) -> Decision {
    let last = plan.steps.len().saturating_sub(1);
    let acknowledged = facts.acknowledged
        == Some(Acknowledged { share: progress.share, fail_safe_share: progress.fail_safe_share });
    let breached = matches!(verdict, Verdict::Breached(_));
    let back = |because| Decision::new(Place::all_on_stable(Phase::RollingBack, progress.step), because);
    match progress.phase {
        Phase::RolledBack => Decision::stay(Place::all_on_stable(Phase::RolledBack, progress.step)),
        Phase::RollingBack => {
            let there = Place::all_on_stable(Phase::RolledBack, progress.step);
            if acknowledged && progress.share == 0 && progress.fail_safe_share == 0 {
                Decision::new(there, Because::Acknowledged)
            } else {
                Decision::stay(Place { phase: Phase::RollingBack, ..there })
            }
        }
        _ if verb == Some(Asked::Abort) => back(Because::Asked(Asked::Abort)),
        Phase::Succeeded => Decision::stay(Place::all_on_canary(Phase::Succeeded, progress.step)),
        Phase::Promoting => {
            let there = Place::all_on_canary(Phase::Succeeded, progress.step);
            let whole = progress.share == FULL_SHARE && progress.fail_safe_share == FULL_SHARE;
            if breached && facts.stable_ready > 0 {
                back(Because::Judged(verdict.clone()))
            } else if acknowledged && whole {
                Decision::new(there, Because::Acknowledged)
            } else {
                Decision::stay(Place { phase: Phase::Promoting, ..there })
            }
        }
        _ if verb == Some(Asked::Promote) => {
            Decision::new(Place::all_on_canary(Phase::Promoting, last), Because::Asked(Asked::Promote))
        }
        _ if plan.steps.is_empty() => Decision::new(Place::all_on_stable(Phase::Idle, 0), Because::NoSteps),
        Phase::Idle => begin(plan, progress, facts),
        Phase::Progressing | Phase::Holding | Phase::Paused if breached && facts.stable_ready > 0 => {
            back(Because::Judged(verdict.clone()))
        }
        Phase::Progressing | Phase::Holding | Phase::Paused => {
            go_on(plan, progress, verb, verdict, facts, acknowledged, now)
        }
    }
}

/// Why a person or the plan keeps it from moving, if so.
fn pause(plan: &Rollout, progress: &Progress) -> Option<Because> {
    if let Some(why) = &plan.held {
        Some(Because::Held(why.clone()))
    } else if progress.pause_asked {
        Some(Because::Asked(Asked::Pause))
    } else {
        plan.suspend.then_some(Because::Suspended)
    }
}

/// From Idle to the first step.
fn begin(plan: &Rollout, progress: &Progress, facts: &Facts) -> Decision {
    let idle = Place::all_on_stable(Phase::Idle, 0);
    if facts.canary_ready == 0 {
        return Decision::new(idle, Because::NoCanaryEndpoint);
    }
    if facts.stable_ready == 0 {
        return Decision::new(idle, Because::NoStableEndpoint { breached: false });
    }
    if let Some(because) = pause(plan, progress) {
        return Decision::new(idle, because);
    }
    let first = Place { phase: Phase::Progressing, share: plan.steps[0].share, ..idle };
    Decision::new(first, Because::Ready)
}

/// The step a running rollout is at, by the plan as it is now: the same one if its share is unchanged, else the
/// highest not above the current share; and never more than one beyond what is certified.
fn step_on_the_ladder(plan: &Rollout, progress: &Progress) -> usize {
    let shares = || plan.steps.iter().map(|step| step.share);
    let reachable = shares().take_while(|share| *share <= progress.certified_share).count();
    let here = match plan.steps.get(progress.step) {
        Some(step) if progress.share == 0 || step.share == progress.share => progress.step,
        _ => shares().take_while(|share| *share <= progress.share).count().saturating_sub(1),
    };
    here.min(reachable).min(plan.steps.len() - 1)
}

/// From a running step to the next, or why not.
fn go_on(
    plan: &Rollout,
    progress: &Progress,
    verb: Option<Asked>,
    verdict: &Verdict,
    facts: &Facts,
    acknowledged: bool,
    now: Timestamp,
) -> Decision {
    let step = step_on_the_ladder(plan, progress);
    let share = plan.steps[step].share;
    let certified = progress.certified_share.min(share);
    let pause = pause(plan, progress);
    let running = Place { phase: Phase::Progressing, step, share, fail_safe: certified, certified };
    let held = Place { phase: if pause.is_some() { Phase::Paused } else { Phase::Holding }, ..running };

    if facts.canary_ready == 0 {
        return Decision::new(Place { share: 0, fail_safe: 0, ..held }, Because::NoCanaryEndpoint);
    }
    let breached = matches!(verdict, Verdict::Breached(_));
    if breached || (facts.stable_ready == 0 && share < FULL_SHARE) {
        let share = share.min(progress.share);
        let held = Place { share, fail_safe: certified.min(share), ..held };
        return Decision::new(held, Because::NoStableEndpoint { breached });
    }
    if let Some(because) = pause {
        return Decision::new(held, because);
    }
    if progress.share == 0 {
        return Decision::new(running, Because::Ready);
    }
    if (progress.step, progress.share) != (step, share) {
        return Decision::new(running, Because::LadderEdited);
    }
    match verdict {
        Verdict::Healthy(certificate) if certificate.step == step => {
            if !acknowledged {
                return Decision::new(running, Because::Unacknowledged);
            }
            let at_least = plan.steps[step].at_least.map_or(0, |at_least| at_least.0);
            let at_least = SignedDuration::from_millis(i64::try_from(at_least).unwrap_or(i64::MAX));
            let until_at = progress.step_at.saturating_add(at_least).unwrap_or(Timestamp::MAX);
            if now < until_at {
                let because = Because::AtLeast { until_at };
                return Decision { wake: Some(until_at), ..Decision::new(running, because) };
            }
            let next = match plan.steps.get(step + 1) {
                Some(next) => Place {
                    phase: Phase::Progressing,
                    step: step + 1,
                    share: next.share,
                    fail_safe: share,
                    certified: share,
                },
                None => Place::all_on_canary(Phase::Promoting, step),
            };
            Decision::new(next, Because::Judged(verdict.clone()))
        }
        _ if verb == Some(Asked::Resume) => Decision::new(running, Because::Asked(Asked::Resume)),
        Verdict::Unknown(doubt) => {
            let place = if doubt.holds() { held } else { running };
            Decision::new(place, Because::Judged(verdict.clone()))
        }
        // A certificate of another step says nothing about this one.
        Verdict::Healthy(_) | Verdict::Breached(_) => {
            Decision::stay(Place { phase: progress.phase, ..running })
        }
    }
}

/// Writes a decision into the progress; gives its reason if anything moved.
fn arrive(next: &mut Progress, place: Place, because: Option<Because>, now: Timestamp) -> Option<Because> {
    let before = Place::of(next);
    let Place { phase, step, share, fail_safe, certified } = place;
    if (phase, share) != (before.phase, before.share) {
        next.since_at = now;
    }
    let entered = step != before.step || matches!(before.phase, Phase::Idle) && phase == Phase::Progressing;
    if entered {
        next.step_at = now;
    }
    (next.phase, next.step, next.share) = (phase, step, share);
    (next.fail_safe_share, next.certified_share) = (fail_safe, certified);
    let moved = place != before;
    match &because {
        // Why it ended stays more telling than that the proxies heard of it.
        Some(Because::Acknowledged) => next.needs = None,
        Some(because) => {
            next.because = because.to_string();
            next.needs = because.needs();
        }
        None if moved => next.because = Because::Restored.to_string(),
        None => {}
    }
    if !moved {
        return None;
    }
    let because = because.unwrap_or(Because::Restored);
    tell(next, &because, now);
    Some(because)
}

/// Adds a transition to what people are told. Coming and going doubts at one step take two lines at most: they
/// never push out how the rollout came here.
fn tell(next: &mut Progress, because: &Because, now: Timestamp) {
    let Progress { phase, step, share, .. } = *next;
    let told = Transition { at: now, phase, step, share, because: because.to_string() };
    let doubts = |t: &&Transition| {
        t.step == step && t.share == share && matches!(t.phase, Phase::Progressing | Phase::Holding)
    };
    if doubts(&&told) && next.history.iter().rev().take_while(doubts).count() >= 2 {
        next.history.pop();
    }
    next.history.push(told);
    let excess = next.history.len().saturating_sub(Progress::HISTORY);
    next.history.drain(..excess);
}
