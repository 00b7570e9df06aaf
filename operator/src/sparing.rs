//! What others can make the operator say: so much each second, and the number of what was left out. No IO.

use std::time::Duration;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// How much was said in this second.
#[derive(Debug)]
pub(crate) struct Sparing {
    each_second: u32,
    /// When the second began, and what was said in it.
    second: Option<(Instant, u32)>,
    left_out: u64,
}

impl Sparing {
    /// Says so much in a second at most.
    pub(crate) fn new(each_second: u32) -> Sparing {
        Sparing { each_second, second: None, left_out: 0 }
    }

    /// Whether one more thing may be said; otherwise it counts as so many that were left out.
    pub(crate) fn may_tell(&mut self, worth: u64, now: Instant) -> bool {
        let (began, said) = self.second.filter(|(began, _)| now < *began + SECOND).unwrap_or((now, 0));
        let may = said < self.each_second;
        self.second = Some((began, said + u32::from(may)));
        if !may {
            self.left_out = self.left_out.saturating_add(worth);
        }
        may
    }

    /// How many were left out, if their second is over; none of them from now on.
    pub(crate) fn left_out(&mut self, now: Instant) -> Option<u64> {
        self.due().filter(|due| *due <= now)?;
        Some(std::mem::take(&mut self.left_out))
    }

    /// Whether it matters what was said: its second is not over, or something was left out.
    pub(crate) fn is_of(&self, now: Instant) -> bool {
        self.left_out > 0 || self.second.is_some_and(|(began, _)| now < began + SECOND)
    }

    /// When it can be told how many were left out, if any were.
    pub(crate) fn due(&self) -> Option<Instant> {
        let (began, _) = self.second.filter(|_| self.left_out > 0)?;
        Some(began + SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_for_a_second_is_counted() {
        let mut sparing = Sparing::new(2);
        let began = Instant::now();
        let told = |sparing: &mut Sparing, ms: u64| sparing.may_tell(1, began + Duration::from_millis(ms));
        assert_eq!([0, 10, 20, 990].map(|ms| told(&mut sparing, ms)), [true, true, false, false]);
        assert_eq!(sparing.left_out(began + Duration::from_millis(990)), None, "there may be more");
        assert_eq!(sparing.due(), Some(began + SECOND));
        assert_eq!(sparing.left_out(began + SECOND), Some(2));
        assert_eq!((sparing.left_out(began + SECOND), sparing.due()), (None, None), "told once");
        assert_eq!([1_000, 1_001, 1_002].map(|ms| told(&mut sparing, ms)), [true, true, false]);
        assert!(sparing.is_of(began + SECOND * 5), "one was left out");
        assert!(told(&mut sparing, 5_000));
        assert_eq!(sparing.left_out, 1, "kept until it is told");
        assert_eq!(sparing.left_out(began + SECOND * 6), Some(1));
        assert!(!sparing.is_of(began + SECOND * 6), "over, and all was told");
    }
}
