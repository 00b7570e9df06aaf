//! The judge: a fold over evidence that may be looked at after every failure without losing its guarantee.
//!
//! **Rolling back.** Given that a request failed, only the routing coin decided whether it failed on the canary. So the
//! relative test reads nothing but failures and the coin's share: it is exact at any rate of failures, and outages, bad
//! clients and bursts that hit both versions say nothing. Its likelihood ratios are capital, half of it held in
//! reserve; P(the wealth of a healthy release ever reaches 1/α) ≤ α over all objectives, steps, looks and restarts
//! (Ville's inequality). Where there is no control (the last step) the objective's own rate takes stable's place.
//!
//! **Advancing.** A step is certified when the evidence that the canary is *below* a bound reaches 1/β. The bound is the
//! rate at which the service would still be inside its objective at the next share. Clean requests alone never
//! promote: not knowing is [`Verdict::Unknown`].
//!
//! Definitions: an *outcome* is an original request judged by its first attempt. A canary is *healthy* in an objective if
//! throughout it fails at most ρ times as often as stable, or less often than the floor; and no more often than the
//! objective's rate where there is no control. Every objective here counts the same failures and has the same share
//! of the capital; objectives differ in their bounds.

mod capital;
mod certify;
mod evidence;
mod objective;
mod traffic;
mod verdict;
mod wealth;

#[cfg(test)]
mod tests;

pub use {
    evidence::{Arm, Attempts, CallerEvidence, Coin, Evidence, Failure, SentShares, Totals},
    objective::Objective,
    verdict::{Against, Breach, Certificate, Certified, Counts, Doubt, Needs, Verdict},
    wealth::Wealth,
};

use crate::mesh::FULL_SHARE;
use wealth::{Case, Contributor};

/// Evidence against the canary from which on no step is left: ln 10.
const LN_SUSPICIOUS: f64 = std::f64::consts::LN_10;

/// What must hold at one step of a rollout, and how surely.
#[derive(Clone, PartialEq, Debug)]
pub struct Objectives {
    /// The objectives.
    pub list: Vec<Objective>,
    /// Index into the plan's steps.
    pub step: usize,
    /// The canary's share at this step, in parts of [`FULL_SHARE`].
    pub share: u32,
    /// Its share at the next; `None` at the last step.
    pub next_share: Option<u32>,
    /// The most false rollbacks per attempt, α.
    pub false_rollback: f64,
    /// The most wrong promotions, β.
    pub wrong_promotion: f64,
    /// Fewer failed canary requests never take a release back ([`Objectives::LEAST_FAILURES`]).
    pub least_failures: u64,
}

impl Objectives {
    /// The usual least number of failed canary requests.
    pub const LEAST_FAILURES: u64 = 3;

    /// Whether stable serves beside the canary.
    fn has_control(&self) -> bool {
        self.share < FULL_SHARE
    }

    /// The objective with the lowest rate.
    fn strictest(&self) -> Option<&Objective> {
        self.list.iter().reduce(|a, b| if b.max < a.max { b } else { a })
    }

    /// The share as a probability.
    fn w(&self) -> f64 {
        f64::from(self.share) / f64::from(FULL_SHARE)
    }
}

/// Folds a batch of evidence and says what is known after it.
pub fn judge(objectives: &Objectives, mut wealth: Wealth, evidence: &Evidence) -> (Wealth, Verdict) {
    if objectives.list.is_empty() {
        return (wealth, Verdict::Unknown(Doubt::NoObjectives));
    }
    if objectives.share == 0 {
        wealth.wait(evidence);
        return (wealth, Verdict::Unknown(Doubt::NoEvidence));
    }
    let resumed = wealth.enter(objectives, evidence.at);
    // A batch is never judged by a spell that it began or ended itself.
    let degraded = wealth.spell.rate;
    let case = wealth.fold(objectives, evidence);
    wealth.watch_stable(objectives, evidence);

    let verdict = match case {
        Case::Proven(breach) => Verdict::Breached(breach),
        _ if wealth.split.is_unfair(objectives.w()) => Verdict::Unknown(Doubt::SplitNotAsConfigured {
            share: objectives.w(),
            canary: wealth.split.canary,
            total: wealth.split.canary.saturating_add(wealth.split.stable),
        }),
        Case::OneOnly(Contributor::Endpoint(instance)) => {
            Verdict::Unknown(Doubt::OneEndpointOnly { instance })
        }
        Case::OneOnly(Contributor::Caller(caller)) => Verdict::Unknown(Doubt::OneCallerOnly { caller }),
        Case::Open if resumed => Verdict::Unknown(Doubt::Resumed),
        Case::Open if !evidence.missing.is_empty() => {
            Verdict::Unknown(Doubt::NotCovered { missing: evidence.missing.clone() })
        }
        Case::Open => match degraded {
            Some(rate) if objectives.has_control() => doubt_stable(objectives, rate),
            _ => certify(objectives, &wealth, evidence),
        },
    };
    (wealth, verdict)
}

fn doubt_stable(objectives: &Objectives, rate: f64) -> Verdict {
    let (objective, max) = objectives.strictest().map_or_else(Default::default, |o| (o.name.clone(), o.max));
    Verdict::Unknown(Doubt::StableDegraded { objective, max, rate })
}

/// Whether every objective is certified at this step, and if not what is missing.
fn certify(objectives: &Objectives, wealth: &Wealth, evidence: &Evidence) -> Verdict {
    let lost = |heard: &&CallerEvidence| heard.totals.is_some_and(|totals| !totals.trusted);
    let untrusted: Vec<_> = evidence.callers.iter().filter(lost).map(|heard| heard.caller.clone()).collect();
    if !untrusted.is_empty() {
        return Verdict::Unknown(Doubt::Untrusted { callers: untrusted });
    }
    if wealth.ln_wealth >= LN_SUSPICIOUS {
        return Verdict::Unknown(Doubt::Suspicious {
            objective: wealth.worst(objectives).map(|o| o.name.clone()).unwrap_or_default(),
            canary: wealth.canary,
            stable: wealth.stable,
            ln_wealth: wealth.ln_wealth,
        });
    }
    if !wealth.certification.begun {
        return Verdict::Unknown(Doubt::NoEvidence);
    }
    let next = objectives.next_share.map(|share| f64::from(share) / f64::from(FULL_SHARE));
    let (failed, clean) = (wealth.certification.failed, wealth.certification.clean);
    let canary = Counts { failed, ended: failed.saturating_add(clean) };
    let ln_threshold = -libm::log(objectives.wrong_promotion);
    let mut certificates = Vec::with_capacity(objectives.list.len());
    let mut furthest: Option<(u64, Doubt)> = None;
    for objective in &objectives.list {
        let bound = certify::bound(objective.max, next);
        let test = certify::Test::new(bound);
        let ln_evidence = test.ln_evidence(failed, clean);
        let name = objective.name.clone();
        if ln_evidence >= ln_threshold {
            let wrong = objectives.wrong_promotion;
            certificates.push(Certificate { objective: name, bound, canary, ln_evidence, wrong });
            continue;
        }
        let missing = test.clean_missing(failed, clean, ln_threshold);
        if furthest.as_ref().is_some_and(|(most, _)| *most >= missing) {
            continue;
        }
        let rps = wealth.recent.rps().unwrap_or(0.0) * objectives.w();
        let growth = test.growth(failed, clean);
        // One or two failures among the first requests are no rate of errors yet, and none never is.
        let doubt = if growth.is_none() && failed > 2 {
            Doubt::NeverAtThisRate { objective: name, bound, canary }
        } else {
            let growth = growth.filter(|_| failed > 0);
            let requests =
                growth.map_or(certify::float(missing), |growth| (ln_threshold - ln_evidence) / growth);
            let eta_s = (rps > 0.0).then(|| requests / rps);
            Doubt::Collecting { objective: name, bound, canary, needs: Needs { clean: missing, rps, eta_s } }
        };
        furthest = Some((missing, doubt));
    }
    match furthest {
        Some((_, doubt)) => Verdict::Unknown(doubt),
        None if evidence.callers.iter().all(|heard| heard.totals.is_none()) => {
            Verdict::Unknown(Doubt::AwaitingWindow)
        }
        None if evidence.callers.iter().any(|heard| !heard.coin.settled) => Verdict::Unknown(Doubt::Settling),
        None => Verdict::Healthy(Certified { step: objectives.step, certificates }),
    }
}
