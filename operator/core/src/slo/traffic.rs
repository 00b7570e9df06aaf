//! What the judge knows about traffic itself: how much there is lately, and whether the coin is fair.

use super::{certify::float, evidence::Totals};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Totals lately: sums whose parts lose half their weight every 30 s.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Recent {
    at: Timestamp,
    /// The seconds observed, with the same weights.
    seconds: f64,
    /// First attempts that ended, on both arms.
    ended: f64,
    stable_ended: f64,
    stable_failed: f64,
}

const HALF_LIFE_S: f64 = 30.0;

impl Recent {
    pub(super) fn since(at: Timestamp) -> Self {
        Self { at, seconds: 0.0, ended: 0.0, stable_ended: 0.0, stable_failed: 0.0 }
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, at: Timestamp) {
        let elapsed = at.duration_since(self.at).as_secs_f64().max(0.0);
        let kept = libm::exp2(-elapsed / HALF_LIFE_S);
        self.at = self.at.max(at);
        self.seconds = self.seconds * kept + elapsed;
        for sum in [&mut self.ended, &mut self.stable_ended, &mut self.stable_failed] {
            *sum *= kept;
        }
    }

    pub(super) fn add(&mut self, totals: &Totals) {
        self.ended += float(totals.canary.ended) + float(totals.stable.ended);
        self.stable_ended += float(totals.stable.ended);
        self.stable_failed += float(totals.stable.failed);
    }

    /// Requests per second on both arms; `None` before any were counted.
    pub(super) fn rps(&self) -> Option<f64> {
        (self.seconds > 0.0 && self.ended > 0.0).then(|| self.ended / self.seconds)
    }

    /// Stable's rate of errors, with how many requests it is made of.
    pub(super) fn stable_rate(&self) -> f64 {
        if self.stable_ended > 0.0 { self.stable_failed / self.stable_ended } else { 0.0 }
    }

    /// Whether stable fails more than `max` of its requests. A spell ends at half of that, so that a rate at the
    /// limit does not begin and end one with every window.
    pub(super) fn stable_is_degraded(&self, max: f64, was: bool) -> bool {
        let limit = if was { max / 2.0 } else { max };
        self.stable_failed >= 3.0 && self.stable_rate() > limit
    }
}

/// The sample-ratio test: whether requests start on the arms as the coin says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct SplitCheck {
    pub(super) canary: u64,
    pub(super) stable: u64,
}

/// Weight of the prior, in requests: how far from the share a coin is expected to be if it is not fair.
const KAPPA: f64 = 1000.0;
/// ln 10⁴.
const LN_UNFAIR: f64 = 9.210_340_371_976_184;

impl SplitCheck {
    pub(super) fn add(&mut self, totals: &Totals) {
        self.canary += totals.canary.started;
        self.stable += totals.stable.started;
    }

    /// Whether the evidence against a coin of share `w` reached 10⁴.
    pub(super) fn is_unfair(self, w: f64) -> bool {
        w > 0.0 && w < 1.0 && self.ln_evidence(w) >= LN_UNFAIR
    }

    /// ln E = ln B(κw+n_c, κ(1−w)+n_s) − ln B(κw, κ(1−w)) − n_c ln w − n_s ln(1−w), for 0 < w < 1.
    fn ln_evidence(self, w: f64) -> f64 {
        let ln_beta = |a: f64, b: f64| libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
        let (canary, stable) = (float(self.canary), float(self.stable));
        let (a, b) = (KAPPA * w, KAPPA * (1.0 - w));
        ln_beta(a + canary, b + stable) - ln_beta(a, b) - canary * libm::log(w) - stable * libm::log1p(-w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_ratio_gives_the_published_values() {
        for (canary, expected) in [(1_000, -1.199_714), (1_200, 17.931_208)] {
            let check = SplitCheck { canary, stable: 10_000 - canary };
            let got = check.ln_evidence(0.1);
            assert!((got - expected).abs() < 6e-7, "{got} is not {expected}");
            assert_eq!(check.is_unfair(0.1), expected > 9.3);
        }
    }

    #[test]
    fn a_steady_rate_is_found_again_at_once_and_later() {
        let at = |s| Timestamp::from_second(s).expect("a time");
        let mut recent = Recent::since(at(0));
        let attempts = |ended, failed| super::super::evidence::Attempts { started: ended, ended, failed };
        for s in 1..=100 {
            recent.pass(at(s));
            let (canary, stable) = (attempts(10, 0), attempts(90, 3));
            recent.add(&Totals { until: at(s), canary, stable, trusted: true });
            let rps = recent.rps().expect("requests were counted");
            assert!((95.0..105.0).contains(&rps), "{rps} after {s} s");
        }
        assert!(recent.stable_is_degraded(0.02, false));
        assert!(!recent.stable_is_degraded(0.04, false) && recent.stable_is_degraded(0.04, true));
    }
}
