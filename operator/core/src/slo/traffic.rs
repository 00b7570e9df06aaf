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
}

const HALF_LIFE_S: f64 = 30.0;

impl Recent {
    pub(super) fn since(at: Timestamp) -> Self {
        Self { at, seconds: 0.0, ended: 0.0 }
    }

    /// Lets time pass.
    pub(super) fn pass(&mut self, at: Timestamp) {
        let elapsed = at.duration_since(self.at).as_secs_f64().max(0.0);
        let kept = libm::exp2(-elapsed / HALF_LIFE_S);
        self.at = self.at.max(at);
        self.seconds = self.seconds * kept + elapsed;
        self.ended *= kept;
    }

    pub(super) fn add(&mut self, totals: &Totals) {
        self.ended += float(totals.canary.ended) + float(totals.stable.ended);
    }

    /// Requests per second on both arms; `None` before any were counted.
    pub(super) fn rps(&self) -> Option<f64> {
        (self.seconds > 0.0 && self.ended > 0.0).then(|| self.ended / self.seconds)
    }
}

/// Whether stable itself fails more than an objective allows, by blocks of its requests.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spell {
    /// Stable's rate of errors in the block that began the spell or went on with it; `None`: it is well.
    pub(super) rate: Option<f64>,
    ended: u64,
    failed: u64,
}

impl Spell {
    /// Adds stable's totals, where up to `max` may fail, and says whether a spell ended. A block is 2/max requests:
    /// a rate at the limit fails two of them, a tenth of it three only once in a thousand blocks.
    pub(super) fn add(&mut self, totals: &Totals, max: f64) -> bool {
        self.ended = self.ended.saturating_add(totals.stable.ended);
        self.failed = self.failed.saturating_add(totals.stable.failed);
        let block = 2.0 / max;
        let whole = float(self.ended) >= block;
        let rate = float(self.failed) / f64::max(float(self.ended), block);
        let degraded = self.failed >= 3 && rate > max;
        let was = self.rate.is_some();
        if degraded {
            self.rate = Some(float(self.failed) / f64::max(float(self.ended), float(self.failed)));
        } else if whole {
            self.rate = None;
        }
        if whole {
            (self.ended, self.failed) = (0, 0);
        }
        was && self.rate.is_none()
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
        self.canary = self.canary.saturating_add(totals.canary.started);
        self.stable = self.stable.saturating_add(totals.stable.started);
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
    use super::{super::evidence::Attempts, *};

    #[test]
    fn sample_ratio_gives_the_published_values() {
        for (canary, expected) in [(1_000, -1.199_714), (1_200, 17.931_208)] {
            let check = SplitCheck { canary, stable: 10_000 - canary };
            let got = check.ln_evidence(0.1);
            assert!((got - expected).abs() < 6e-7, "{got} is not {expected}");
            assert_eq!(check.is_unfair(0.1), expected > 9.3);
        }
    }

    fn second(s: i64, canary: (u64, u64), stable: (u64, u64)) -> Totals {
        let until = Timestamp::from_second(s).expect("a time");
        let attempts = |(ended, failed)| Attempts { started: ended, ended, failed };
        Totals { until, canary: attempts(canary), stable: attempts(stable), trusted: true }
    }

    #[test]
    fn a_steady_rate_is_known_at_once_and_stays() {
        let mut recent = Recent::since(Timestamp::UNIX_EPOCH);
        for s in 1..=100 {
            let totals = second(s, (10, 0), (90, 0));
            recent.pass(totals.until);
            recent.add(&totals);
            let rps = recent.rps().expect("requests were counted");
            assert!((95.0..105.0).contains(&rps), "{rps} after {s} s");
        }
    }

    #[test]
    fn sums_that_were_remembered_never_overflow() {
        let mut split = SplitCheck { canary: u64::MAX, stable: u64::MAX };
        split.add(&second(1, (1, 0), (1, 0)));
        assert_eq!(split, SplitCheck { canary: u64::MAX, stable: u64::MAX });
    }

    #[test]
    fn a_spell_begins_with_its_failures_and_ends_with_a_good_block() {
        let mut spell = Spell::default();
        assert!(!spell.add(&second(1, (0, 0), (90, 2)), 0.01));
        assert_eq!(spell.rate, None, "two may");
        spell.add(&second(2, (0, 0), (10, 1)), 0.01);
        assert_eq!(spell.rate, Some(0.03));
        assert!(!spell.add(&second(3, (0, 0), (150, 0)), 0.01), "the rest of the block");
        assert!(!spell.add(&second(4, (0, 0), (150, 0)), 0.01));
        assert!(spell.add(&second(5, (0, 0), (50, 1)), 0.01));
    }
}
