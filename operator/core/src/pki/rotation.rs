//! Replacing a root while everybody goes on: first the new root is trusted beside the old one, then it signs, then the
//! old one is forgotten.
//!
//! A certificate that was given lives no longer than the overlap. So who has one an overlap after the new root was
//! introduced got the new root with it, and who has one an overlap after it began to sign has it from the new root.

use jiff::{SignedDuration, Timestamp};

/// How much longer than a leaf the shortest overlap is: replicas hear of a step by a watch, which may be late, and
/// leaves are dated by clocks that differ.
pub const OVERLAP_MARGIN: SignedDuration = SignedDuration::from_mins(15);

/// How far the replacement of a root is. It is recorded in one write with the roots themselves, so that who reads it
/// after a crash goes on from there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rotation {
    /// One root is trusted, and signs.
    Settled,
    /// A new root is trusted since then; the old one signs.
    Introduced {
        /// Since when.
        at: Timestamp,
    },
    /// The new root signs since then; the old one is trusted.
    HandedOver {
        /// Since when.
        at: Timestamp,
    },
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Nothing: no root is being replaced.
    Rest,
    /// Nothing before then.
    Wait {
        /// When the overlap is over.
        until: Timestamp,
    },
    /// Nothing before these proxies run what is published, the new root with it.
    Behind {
        /// How many there are.
        proxies: usize,
    },
    /// Let the new root sign.
    HandOver,
    /// Trust the new root alone.
    Forget,
}

/// The next step of a replacement. `behind` counts connected proxies that have not acknowledged the new root.
///
/// A clock that went back only makes it wait.
pub fn next(rotation: Rotation, overlap: SignedDuration, behind: usize, now: Timestamp) -> Step {
    let over = |at: Timestamp| at.saturating_add(overlap).unwrap_or(Timestamp::MAX);
    match rotation {
        Rotation::Settled => Step::Rest,
        Rotation::Introduced { at } | Rotation::HandedOver { at } if now < over(at) => {
            Step::Wait { until: over(at) }
        }
        Rotation::Introduced { .. } if behind > 0 => Step::Behind { proxies: behind },
        Rotation::Introduced { .. } => Step::HandOver,
        Rotation::HandedOver { .. } => Step::Forget,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn check(rotation: Rotation, behind: usize, now_s: i64, expected: Step) {
        assert_eq!(next(rotation, HOUR, behind, at(now_s)), expected, "{rotation:?} at {now_s}");
    }

    #[test]
    fn a_new_root_signs_when_everybody_trusts_it() {
        let introduced = Rotation::Introduced { at: at(100) };
        check(introduced, 0, 100, Step::Wait { until: at(3700) });
        check(introduced, 0, 3699, Step::Wait { until: at(3700) });
        check(introduced, 2, 3700, Step::Behind { proxies: 2 });
        check(introduced, 0, 3700, Step::HandOver);
    }

    #[test]
    fn an_old_root_is_forgotten_when_nobody_shows_it() {
        let handed_over = Rotation::HandedOver { at: at(100) };
        check(handed_over, 0, 3699, Step::Wait { until: at(3700) });
        // Who has not acknowledged something else needs the old root no more.
        check(handed_over, 2, 3700, Step::Forget);
        check(Rotation::Settled, 2, 3700, Step::Rest);
    }

    #[test]
    fn a_clock_that_goes_back_skips_nothing() {
        check(Rotation::Introduced { at: at(100) }, 0, -9000, Step::Wait { until: at(3700) });
        check(Rotation::HandedOver { at: Timestamp::MAX }, 0, 0, Step::Wait { until: Timestamp::MAX });
    }

    /// At no time of a replacement does anybody show a certificate of a root that somebody else does not trust.
    #[test]
    fn whoever_has_a_certificate_is_trusted_by_whoever_has_one() {
        const LEAF_S: i64 = 3600;
        let (mut rotation, mut step_at) = (Rotation::Introduced { at: at(0) }, vec![("introduced", 0)]);
        for now in 0..4 * LEAF_S {
            match next(rotation, HOUR, 0, at(now)) {
                Step::HandOver => {
                    rotation = Rotation::HandedOver { at: at(now) };
                    step_at.push(("handed over", now));
                }
                Step::Forget => {
                    rotation = Rotation::Settled;
                    step_at.push(("forgotten", now));
                }
                _ => {}
            }
        }
        let [(_, introduced), (_, handed_over), (_, forgotten)] = step_at[..] else { panic!("{step_at:?}") };
        assert!(handed_over - introduced >= LEAF_S, "a leaf from before came without the new root");
        assert!(forgotten - handed_over >= LEAF_S, "a leaf from before is of the old root");
    }
}
