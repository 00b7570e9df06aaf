//! Certification: how sure it is that the canary fails less often than a bound.

use super::capital::ln_sum;

/// Guesses at the canary's rate beside 0.
const GUESSES: u32 = 31;
/// Requests beyond which nobody waits.
const MOST: u64 = 1 << 40;

/// The test against a rate of `bound` or more:
/// E_cert = Σ π_k (q_k/bound)^F ((1−q_k)/(1−bound))^S with q_0 = 0 at π = ½, and at π = 1/62 each the 31 guesses
/// q_k = bound · exp(linspace(ln 1/200, ln 0.9, 31)).
pub(super) struct Test {
    /// ln(q_k/bound), without q_0.
    ln_failed: Vec<f64>,
    /// ln((1−q_k)/(1−bound)), without q_0.
    ln_clean: Vec<f64>,
    /// The same for q_0 = 0.
    ln_clean_if_perfect: f64,
}

impl Test {
    /// Against a rate of `bound` or more, 0 < bound < 1.
    pub(super) fn new(bound: f64) -> Self {
        let (first, last) = (libm::log(1.0 / 200.0), libm::log(0.9));
        let ln_failed = (0..GUESSES).map(|k| first + (last - first) * f64::from(k) / f64::from(GUESSES - 1));
        let ln_failed: Vec<f64> = ln_failed.collect();
        let ln_clean = ln_failed.iter().map(|ln| libm::log1p(-bound * libm::exp(*ln)) - libm::log1p(-bound));
        Self { ln_clean: ln_clean.collect(), ln_failed, ln_clean_if_perfect: -libm::log1p(-bound) }
    }

    /// ln E_cert.
    pub(super) fn ln_evidence(&self, failed: u64, clean: u64) -> f64 {
        let (failures, successes) = (float(failed), float(clean));
        let mut terms = Vec::with_capacity(GUESSES as usize + 1);
        if failed == 0 {
            terms.push(libm::log(0.5) + successes * self.ln_clean_if_perfect);
        }
        let ln_prior = -libm::log(f64::from(2 * GUESSES));
        let factors = self.ln_failed.iter().zip(&self.ln_clean);
        terms.extend(factors.map(|(failed, clean)| ln_prior + failures * failed + successes * clean));
        ln_sum(&terms)
    }

    /// How many more clean requests certify; at least 1, at most 2⁴⁰.
    pub(super) fn clean_missing(&self, failed: u64, clean: u64, ln_threshold: f64) -> u64 {
        let certified = |more: u64| self.ln_evidence(failed, clean.saturating_add(more)) >= ln_threshold;
        let mut enough = 1;
        while enough < MOST && !certified(enough) {
            enough *= 2;
        }
        let (mut too_few, mut enough) = (enough / 2, enough);
        while enough - too_few > 1 {
            let middle = too_few + (enough - too_few) / 2;
            if certified(middle) {
                enough = middle;
            } else {
                too_few = middle;
            }
        }
        enough
    }

    /// What one more canary request is expected to add to ln E_cert at the rate of errors seen, p̂ = (F+½)/(n+1);
    /// `None`: nothing, the bound is never certified at that rate.
    pub(super) fn growth(&self, failed: u64, clean: u64) -> Option<f64> {
        let p = (float(failed) + 0.5) / (float(failed) + float(clean) + 1.0);
        let factors = self.ln_failed.iter().zip(&self.ln_clean);
        let growth =
            factors.map(|(failed, clean)| p * failed + (1.0 - p) * clean).fold(f64::NEG_INFINITY, f64::max);
        (growth > 0.0).then_some(growth)
    }
}

/// The rate to certify before the share may become `next`: were the canary as bad as that, the service would still
/// be inside its objective. At most ½; `None`: the last step, the objective itself.
pub(super) fn bound(max: f64, next: Option<f64>) -> f64 {
    next.map_or(max, |share| f64::min(0.5, max / share))
}

#[expect(clippy::cast_precision_loss, reason = "counts of requests stay far below 2⁵³")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_published_values() {
        for (failed, clean, expected) in [(0, 479, 4.595_700), (0, 480, 4.605_517), (1, 920, 4.610_488)] {
            let got = Test::new(0.01).ln_evidence(failed, clean);
            assert!((got - expected).abs() < 6e-7, "{got} is not {expected}");
        }
    }

    #[test]
    fn says_exactly_how_many_clean_requests_are_missing() {
        let threshold = libm::log(100.0);
        for (failed, needed) in [(0, 480), (1, 920), (2, 1_188), (3, 1_418), (4, 1_627)] {
            let test = Test::new(0.01);
            assert_eq!(test.clean_missing(failed, 0, threshold), needed);
            assert_eq!(test.clean_missing(failed, needed - 7, threshold), 7);
        }
        for (next, needed) in [(0.05, 22), (0.25, 119), (0.5, 239), (1.0, 480)] {
            assert_eq!(Test::new(bound(0.01, Some(next))).clean_missing(0, 0, threshold), needed);
        }
        assert_eq!(Test::new(bound(0.01, None)).clean_missing(0, 0, threshold), 480);
    }

    #[test]
    fn expects_nothing_at_the_bound() {
        let test = Test::new(0.01);
        assert!(test.growth(0, 0).is_none(), "nothing seen is no reason to hope");
        assert!(test.growth(0, 200).is_some());
        assert!(test.growth(10, 990).is_none());
    }

    /// Requests until certified and the chance of it within `most`, exactly, for a canary that fails at `rate`.
    fn exactly(rate: f64, most: u64) -> (f64, f64) {
        let test = Test::new(0.01);
        let threshold = libm::log(100.0);
        let mut needed: Vec<u64> = Vec::new();
        // `alive[f]`: the chance of `f` failures so far without a certificate.
        let mut alive = vec![1.0];
        let (mut requests, mut certified) = (0.0, 0.0);
        for n in 1..=most {
            alive.push(0.0);
            for f in (0..alive.len()).rev() {
                if f > 0 && alive[f - 1] + alive[f] < 1e-15 {
                    alive[f] = 0.0;
                    continue;
                }
                alive[f] = alive[f] * (1.0 - rate) + if f > 0 { alive[f - 1] * rate } else { 0.0 };
            }
            while alive.last() == Some(&0.0) {
                alive.pop();
            }
            for (f, chance) in (0_u64..).zip(&mut alive).filter(|(_, chance)| **chance > 0.0) {
                while needed.len() as u64 <= f {
                    let more_failed = needed.len() as u64;
                    needed.push(test.clean_missing(more_failed, 0, threshold));
                }
                if n - f >= needed[usize::try_from(f).expect("small")] {
                    requests += *chance * float(n);
                    certified += *chance;
                    *chance = 0.0;
                }
            }
        }
        (requests / certified, certified)
    }

    /// The published means were simulated; these are exact.
    #[test]
    fn a_good_canary_is_certified_as_soon_as_published() {
        for (rate, published) in
            [(0.0, 480.0), (0.001, 739.0), (0.002, 1_106.0), (0.003, 1_714.0), (0.005, 4_200.0)]
        {
            let (requests, certified) = exactly(rate, 30_000);
            assert!(certified > 0.999, "{rate}: {certified}");
            assert!((requests - published).abs() < 0.03 * published, "{rate}: {requests} is not {published}");
        }
    }

    #[test]
    fn a_canary_at_the_bound_is_certified_less_often_than_promised() {
        let (_, certified) = exactly(0.01, 20_000);
        assert!((0.009..=0.01).contains(&certified), "{certified}");
    }
}
