//! Certification: how sure it is that the canary fails less often than a bound.

use super::capital::ln_sum;

/// Guesses at the canary's rate beside 0: q_k = bound · exp(linspace(ln 1/200, ln 0.9, 31)).
const GUESSES: u32 = 31;
/// Requests beyond which nobody waits.
const MOST: u64 = 1 << 40;

/// The guesses below `bound` (q_0 = 0 apart).
fn guesses(bound: f64) -> impl Iterator<Item = f64> {
    let (first, last) = (libm::log(1.0 / 200.0), libm::log(0.9));
    (0..GUESSES)
        .map(move |k| bound * libm::exp(first + (last - first) * f64::from(k) / f64::from(GUESSES - 1)))
}

/// ln E_cert: the evidence of `failed` and `clean` canary requests against a rate of `bound` (0 < bound < 1) or more,
/// E_cert = Σ π_k (q_k/bound)^F ((1−q_k)/(1−bound))^S with q_0 = 0 at π = ½ and the other guesses at π = 1/62 each.
pub(super) fn ln_evidence(failed: u64, clean: u64, bound: f64) -> f64 {
    let (failures, successes) = (float(failed), float(clean));
    let mut terms = Vec::with_capacity(GUESSES as usize + 1);
    if failed == 0 {
        terms.push(libm::log(0.5) - successes * libm::log1p(-bound));
    }
    let ln_prior = -libm::log(f64::from(2 * GUESSES));
    terms.extend(guesses(bound).map(|q| {
        ln_prior + failures * libm::log(q / bound) + successes * (libm::log1p(-q) - libm::log1p(-bound))
    }));
    ln_sum(&terms)
}

/// How many more clean requests certify; at most 2⁴⁰.
pub(super) fn clean_missing(failed: u64, clean: u64, bound: f64, ln_threshold: f64) -> u64 {
    let certified = |more: u64| ln_evidence(failed, clean.saturating_add(more), bound) >= ln_threshold;
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
pub(super) fn growth(failed: u64, clean: u64, bound: f64) -> Option<f64> {
    let p = (float(failed) + 0.5) / (float(failed) + float(clean) + 1.0);
    let growth = guesses(bound)
        .map(|q| p * libm::log(q / bound) + (1.0 - p) * (libm::log1p(-q) - libm::log1p(-bound)))
        .fold(f64::NEG_INFINITY, f64::max);
    (growth > 0.0).then_some(growth)
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
            let got = ln_evidence(failed, clean, 0.01);
            assert!((got - expected).abs() < 6e-7, "{got} is not {expected}");
        }
    }

    #[test]
    fn says_exactly_how_many_clean_requests_are_missing() {
        let threshold = libm::log(100.0);
        for (failed, needed) in [(0, 480), (1, 920), (2, 1_188), (3, 1_418), (4, 1_627)] {
            assert_eq!(clean_missing(failed, 0, 0.01, threshold), needed);
            assert_eq!(clean_missing(failed, needed - 7, 0.01, threshold), 7);
        }
        for (next, needed) in [(0.05, 22), (0.25, 119), (0.5, 239), (1.0, 480)] {
            assert_eq!(clean_missing(0, 0, bound(0.01, Some(next)), threshold), needed);
        }
        assert_eq!(clean_missing(0, 0, bound(0.01, None), threshold), 480);
    }

    #[test]
    fn never_certifies_at_the_bound() {
        assert!(growth(0, 0, 0.01).is_none(), "nothing seen is no reason to hope");
        assert!(growth(0, 200, 0.01).is_some());
        assert!(growth(10, 990, 0.01).is_none());
    }
}
