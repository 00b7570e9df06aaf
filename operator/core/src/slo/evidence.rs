//! What the judge reads: outcomes of first attempts, and the coin that sent each to its arm.

use crate::{id::InstanceId, policy::Millis};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// One batch of evidence about one rollout. Every outcome is handed over exactly once.
///
/// Failures are handed over as soon as they are logged; [`Totals`] later, once everything that happened in their
/// window has been logged. A batch may carry either or both.
#[derive(Clone, PartialEq, Debug)]
pub struct Evidence {
    /// When it was put together; never earlier than the batch before.
    pub at: Timestamp,
    /// Callers with something new to say, in an order that does not depend on what they say (by their names).
    pub callers: Vec<CallerEvidence>,
    /// Callers that sent requests in the last 60 s and whose windows did not arrive: nothing is certified meanwhile.
    pub missing: Vec<InstanceId>,
    /// Canary requests that callers which vanished since the last batch may have made without reporting them: their last rate
    /// × the gap, rounded up. They count as failed for certification, and not at all for a rollback.
    pub unreported: u64,
    /// Canary endpoints published now: with two or more, one of them alone never takes the release back.
    pub canary_endpoints: usize,
    /// Callers that sent requests in the last 60 s: with two or more, one of them alone never takes it back.
    pub senders: usize,
}

impl Evidence {
    /// Nothing new at this time: no caller heard and none missing.
    pub fn none(at: Timestamp) -> Self {
        Self { at, callers: Vec::new(), missing: Vec::new(), unreported: 0, canary_endpoints: 0, senders: 0 }
    }
}

/// What one caller's proxy saw.
#[derive(Clone, PartialEq, Debug)]
pub struct CallerEvidence {
    /// The proxy.
    pub caller: InstanceId,
    /// The coin it threw for these requests.
    pub coin: Coin,
    /// First attempts that failed, in the order they were logged: never grouped by arm.
    pub failures: Vec<Failure>,
    /// The totals of a complete window.
    pub totals: Option<Totals>,
}

/// Which side of a split.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Arm {
    /// The version on trial.
    Canary,
    /// The version in production.
    Stable,
}

/// A first attempt that failed: HTTP 5xx, reset, timeout, connection failure, or a gRPC status that says the same.
/// Later attempts are not outcomes: the coin was thrown again for them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Where the coin sent it.
    pub arm: Arm,
    /// The endpoint that was asked; `None` when none was chosen.
    pub instance: Option<InstanceId>,
}

/// Both arms' totals in one window of one caller, read only when complete: every failure of the window is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Totals {
    /// The window's end; it began where the caller's window before ended.
    pub until: Timestamp,
    /// The canary's.
    pub canary: Attempts,
    /// Stable's.
    pub stable: Attempts,
    /// Whether nothing is known to be lost. Dropped log entries, or counters that say more errors than were logged,
    /// make it `false`: such a window may breach an objective and never certifies one.
    pub trusted: bool,
}

/// First attempts in one window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attempts {
    /// Began in the window.
    pub started: u64,
    /// Had their outcome in the window, failed ones included.
    pub ended: u64,
    /// Failed in the window: the larger of what was logged and what the counters say.
    pub failed: u64,
}

/// The coin a caller's proxy throws for each request.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Coin {
    /// Probability of the canary, 0 to 1: after a change the larger of old and new (a larger one is conservative).
    pub share: f64,
    /// Whether it is the only coin that outcomes arriving now can have been thrown with.
    pub settled: bool,
}

/// The shares one caller's proxy was sent, kept as long as an outcome may still stem from them.
///
/// A proxy uses a share from some moment between its publication and its acknowledgement, and a request's outcome
/// may come as late as the route's timeout: until then the largest share it may stem from is the coin.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SentShares {
    sent: Vec<SentShare>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct SentShare {
    share: f64,
    /// When a later share was acknowledged: no request was sent by this one since.
    replaced_at: Option<Timestamp>,
}

impl SentShares {
    /// Notes that a share (0 to 1) is about to be published to the proxy. Call it before the bytes leave.
    pub fn publish(&mut self, share: f64) {
        if self.sent.last().is_none_or(|last| last.share != share || last.replaced_at.is_some()) {
            self.sent.push(SentShare { share, replaced_at: None });
        }
    }

    /// Notes that the proxy acknowledged the share published last: it uses no earlier one any more.
    pub fn acknowledge(&mut self, at: Timestamp) {
        if let Some((_, earlier)) = self.sent.split_last_mut() {
            for share in earlier {
                share.replaced_at.get_or_insert(at);
            }
        }
    }

    /// The coin of outcomes that arrive now, where requests last no longer than `route_timeout` (1 s is added for
    /// the way of the report); `None` before anything was published.
    pub fn coin(&mut self, now: Timestamp, route_timeout: Millis) -> Option<Coin> {
        let linger_ms = i64::try_from(route_timeout.0).unwrap_or(i64::MAX).saturating_add(1_000);
        let linger = SignedDuration::from_millis(linger_ms);
        self.sent.retain(|sent| sent.replaced_at.is_none_or(|at| now.duration_since(at) <= linger));
        let share = self.sent.iter().map(|sent| sent.share).reduce(f64::max)?;
        Some(Coin { share, settled: self.sent.len() == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(s).expect("a time")
    }

    #[test]
    fn the_larger_share_holds_from_publication_until_the_last_outcome() {
        let mut shares = SentShares::default();
        let timeout = Millis(15_000);
        assert_eq!(shares.coin(at(0), timeout), None);
        shares.publish(0.25);
        assert_eq!(shares.coin(at(0), timeout), Some(Coin { share: 0.25, settled: true }));
        shares.publish(0.5);
        assert_eq!(shares.coin(at(1), timeout), Some(Coin { share: 0.5, settled: false }), "before its ACK");
        shares.acknowledge(at(2));
        shares.publish(0.05);
        shares.acknowledge(at(3));
        assert_eq!(shares.coin(at(18), timeout), Some(Coin { share: 0.5, settled: false }));
        assert_eq!(shares.coin(at(19), timeout), Some(Coin { share: 0.5, settled: false }));
        assert_eq!(shares.coin(at(20), timeout), Some(Coin { share: 0.05, settled: true }));
    }

    #[test]
    fn publishing_the_same_share_again_changes_nothing() {
        let mut shares = SentShares::default();
        shares.publish(0.1);
        shares.publish(0.1);
        assert_eq!(shares.coin(at(0), Millis(0)), Some(Coin { share: 0.1, settled: true }));
    }
}
