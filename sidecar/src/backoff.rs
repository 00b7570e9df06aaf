//! How long to wait before trying again.

use ring::rand::{SecureRandom, SystemRandom};
use std::time::Duration;

/// Exponential backoff with full jitter: the n-th wait is drawn from `0 ..= min(max, base · 2ⁿ)`, so that many
/// sidecars which lost the same operator do not come back together.
///
/// Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
#[derive(Debug)]
pub(crate) struct Backoff {
    base: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// Waits of about `base` at first and of at most `max`.
    pub(crate) fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, attempt: 0 }
    }

    /// The next attempt is a first one again.
    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// The next wait. Never below a tenth of its upper bound: a loop that waits for nothing is hot.
    pub(crate) fn next(&mut self) -> Duration {
        let bound = self.bound();
        self.attempt = self.attempt.saturating_add(1);
        bound.mul_f64(0.1 + 0.9 * uniform())
    }

    fn bound(&self) -> Duration {
        self.base.saturating_mul(2_u32.saturating_pow(self.attempt.min(16))).min(self.max)
    }
}

/// A number in `0.0 ..= 1.0`; 1 if the system has no randomness to give.
fn uniform() -> f64 {
    let mut bytes = [0_u8; 4];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for bound_ms in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next();
            let bound = Duration::from_millis(bound_ms);
            assert!(wait <= bound && wait >= bound / 10, "{wait:?} against {bound:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(100));
    }
}
