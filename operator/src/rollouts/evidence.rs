//! From what proxies reported to the judge's evidence about one rollout. No IO; time is given.
//!
//! Counters say how many; logs say which. Envoy counts tries, so first attempts are told apart by what was counted
//! in all: a retry that begins in one window may end in the next, and only sums over windows are exact.
//!
//! What is missing never certifies. A window whose log may have holes is not trusted; what a caller counted and could
//! not report is taken for failed; a caller that should report and does not is missing; and while it is not certain
//! which share a caller uses, its coin is not settled.

use crate::signals::intake::{Complete, Failure, Totals};
use airlane_core::{
    id::{ClusterName, InstanceId, Revision, ServiceId},
    policy::Millis,
    slo::{Arm, Attempts, CallerEvidence, Coin, Evidence, Failure as Outcome, SentShares, Totals as Counted},
    world::Instance,
};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    net::SocketAddr,
    sync::Arc,
};

/// A caller that sent a request within this time is expected to report.
const SENDS: SignedDuration = SignedDuration::from_secs(60);

/// A caller that has not reported for this long is missing: three flushes of a second.
const SILENT: SignedDuration = SignedDuration::from_secs(3);

/// How long after the last stand-ins were published a window may count what they answered: until a proxy has heard of
/// other endpoints, and for two flushes of a second.
const STOOD_IN: SignedDuration = SignedDuration::from_secs(3);

/// What the gatherer must know of the mesh as it is now.
pub(super) struct Surroundings<'a> {
    /// Endpoints of the service by the address a log names.
    pub(super) endpoints: &'a HashMap<SocketAddr, InstanceId>,
    /// Canary endpoints published.
    pub(super) canary_endpoints: usize,
    /// The revision for which the other's endpoints are published to stand in.
    pub(super) stood_in: Option<Arm>,
    /// How long a request may last.
    pub(super) route_timeout: Millis,
    /// Instances that exist.
    pub(super) instances: &'a BTreeMap<InstanceId, Arc<Instance>>,
}

/// What is certain about the share that a caller's proxy uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Usage {
    /// It uses the share published last, since then.
    Current(Timestamp),
    /// It may use an earlier one, or the one in its routes.
    Uncertain,
}

/// Which two clusters of a service are compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Comparison {
    /// The service.
    pub(super) service: ServiceId,
    /// The version in production.
    pub(super) stable: Revision,
    /// The version on trial.
    pub(super) canary: Revision,
}

impl Comparison {
    fn arm(&self, cluster: &ClusterName) -> Option<Arm> {
        let revision = cluster.revision.as_ref().filter(|_| cluster.port.service == self.service)?;
        if *revision == self.canary {
            Some(Arm::Canary)
        } else {
            (*revision == self.stable).then_some(Arm::Stable)
        }
    }

    /// Whether a revision is the one that this arm is compared with. Any third one that takes stable's place is what
    /// the canary is compared with meanwhile.
    fn is_of_the_other(&self, arm: Arm, revision: &Revision) -> bool {
        *revision
            == *match arm {
                Arm::Canary => &self.stable,
                Arm::Stable => &self.canary,
            }
    }
}

#[derive(Default)]
struct ArmBooks {
    counted: Totals,
    logged: u64,
    told_ended: u64,
    told_failed: u64,
    /// Failures that were counted and never logged, as far as that was noticed.
    unlogged: u64,
}

impl ArmBooks {
    /// What the counters and the log say that was not yet said.
    fn attempts(&mut self, window: Totals) -> Attempts {
        self.counted.add(&window);
        let ended =
            (self.counted.good_tries + self.counted.failed_tries).saturating_sub(self.counted.retries);
        let failed = self.logged.max(self.counted_failures());
        let attempts = Attempts {
            started: window.first_attempts(),
            ended: ended.saturating_sub(self.told_ended),
            failed: failed.saturating_sub(self.told_failed),
        };
        self.told_ended = self.told_ended.max(ended);
        self.told_failed = self.told_failed.max(failed);
        attempts
    }

    /// First attempts that must have failed, if every retry failed as well.
    fn counted_failures(&self) -> u64 {
        self.counted.failed_tries.saturating_sub(self.counted.retries)
    }

    /// Whether failures were counted that the log should have told by now and did not. They are told as failures, so
    /// the windows after are whole again.
    fn missed_failures(&mut self) -> bool {
        let unlogged = self.counted_failures().saturating_sub(self.logged);
        std::mem::replace(&mut self.unlogged, unlogged) < unlogged
    }
}

#[derive(Default)]
pub(super) struct CallerBooks {
    shares: SentShares,
    certain: bool,
    canary: ArmBooks,
    stable: ArmBooks,
    sent_at: Option<Timestamp>,
    heard_at: Option<Timestamp>,
    /// When it was first seen to be gone.
    gone_at: Option<Timestamp>,
    /// Canary requests in the last window, which is about a second long.
    canary_rate: u64,
}

impl CallerBooks {
    /// The coin of outcomes that arrive now; `None` before a share was published.
    fn coin(&mut self, now: Timestamp, route_timeout: Millis) -> Option<Coin> {
        let coin = self.shares.coin(now, route_timeout)?;
        Some(Coin { settled: coin.settled && self.certain, ..coin })
    }
}

/// How many requests there may have been in a time that was not reported, rounded up.
fn requests_in(time: SignedDuration, per_second: u64) -> u64 {
    let ms = u64::try_from(time.as_millis()).unwrap_or(0);
    per_second.saturating_mul(ms).div_ceil(1_000)
}

/// The books of one attempt of one revision.
pub(super) struct Gatherer {
    comparison: Comparison,
    share: f64,
    callers: BTreeMap<InstanceId, CallerBooks>,
    /// Callers that may have sent requests before these books began and were not heard since.
    expected: BTreeSet<InstanceId>,
    expected_until: Timestamp,
    unreported: u64,
    /// When the one revision was last published to stand in for the other, which is this one.
    stood_in_at: BTreeMap<Arm, Timestamp>,
}

impl Gatherer {
    /// Empty books; `share` (0 to 1) is the canary's as published now. `callers` may have sent requests before and
    /// have to report before anything is certified.
    pub(super) fn new(
        comparison: Comparison,
        share: f64,
        callers: BTreeSet<InstanceId>,
        now: Timestamp,
    ) -> Self {
        Gatherer {
            comparison,
            share,
            callers: BTreeMap::new(),
            expected: callers,
            expected_until: now.saturating_add(SENDS).unwrap_or(Timestamp::MAX),
            unreported: 0,
            stood_in_at: BTreeMap::new(),
        }
    }

    /// Which clusters these books are about.
    pub(super) fn comparison(&self) -> &Comparison {
        &self.comparison
    }

    /// Notes that a share is about to be published to every caller.
    pub(super) fn publish(&mut self, share: f64) {
        #[expect(clippy::float_cmp, reason = "both are the same quotient of whole parts, or another share")]
        if self.share == share {
            return;
        }
        self.share = share;
        for books in self.callers.values_mut() {
            books.shares.publish(share);
            books.certain = false;
        }
    }

    /// The share published last.
    pub(super) fn share(&self) -> f64 {
        self.share
    }

    /// Notes what is certain about the share that each caller uses.
    pub(super) fn note_usage(&mut self, usage: impl Fn(&InstanceId) -> Usage) {
        for (caller, books) in &mut self.callers {
            let usage = usage(caller);
            if let Usage::Current(since) = usage {
                books.shares.acknowledge(since);
            }
            books.certain = usage != Usage::Uncertain;
        }
    }

    fn books(&mut self, caller: &InstanceId) -> &mut CallerBooks {
        let share = self.share;
        self.callers.entry(caller.clone()).or_insert_with(|| {
            let mut books = CallerBooks::default();
            books.shares.publish(share);
            books
        })
    }

    /// Puts together what is new. Failures and windows of other services are passed over.
    pub(super) fn gather(
        &mut self,
        failures: &[(InstanceId, Failure)],
        windows: &[Complete],
        around: &Surroundings<'_>,
        now: Timestamp,
    ) -> Evidence {
        self.stood_in_at.extend(around.stood_in.map(|arm| (arm, now)));
        let mut outcomes: BTreeMap<InstanceId, Vec<Outcome>> = BTreeMap::new();
        for (caller, failure) in failures {
            let Some(arm) = self.comparison.arm(&failure.cluster) else { continue };
            let instance = failure.endpoint.and_then(|endpoint| around.endpoints.get(&endpoint).cloned());
            let of = instance.as_ref().and_then(|instance| around.instances.get(instance));
            if of.is_some_and(|of| self.comparison.is_of_the_other(arm, of.revision())) {
                continue;
            }
            let books = self.books(caller);
            match arm {
                Arm::Canary => books.canary.logged += 1,
                Arm::Stable => books.stable.logged += 1,
            }
            outcomes.entry(caller.clone()).or_default().push(Outcome { arm, instance });
        }
        let mut totals: BTreeMap<InstanceId, Counted> = BTreeMap::new();
        for window in windows {
            let counted = self.count(window, now);
            match totals.entry(window.caller.clone()) {
                Entry::Vacant(first) => drop(first.insert(counted)),
                Entry::Occupied(mut sum) => add(sum.get_mut(), counted),
            }
        }
        let missing = self.missing(around.instances, now);
        let heard: BTreeSet<InstanceId> = outcomes.keys().chain(totals.keys()).cloned().collect();
        let callers = heard
            .into_iter()
            .filter_map(|caller| {
                let coin = self.books(&caller).coin(now, around.route_timeout)?;
                let failures = outcomes.remove(&caller).unwrap_or_default();
                let totals = totals.remove(&caller);
                Some(CallerEvidence { caller, coin, failures, totals })
            })
            .collect();
        Evidence {
            at: now,
            callers,
            missing,
            unreported: std::mem::take(&mut self.unreported),
            canary_endpoints: around.canary_endpoints,
            senders: self.senders(now).count(),
        }
    }

    fn count(&mut self, window: &Complete, now: Timestamp) -> Counted {
        let (mut canary, mut stable) = (Totals::default(), Totals::default());
        for (cluster, totals) in &window.clusters {
            match self.comparison.arm(cluster) {
                Some(Arm::Canary) => canary.add(totals),
                Some(Arm::Stable) => stable.add(totals),
                None => {}
            }
        }
        self.expected.remove(&window.caller);
        let stood_in = |arm| self.stood_in_at.get(&arm).is_some_and(|at| now.duration_since(*at) <= STOOD_IN);
        let [for_canary, for_stable] = [Arm::Canary, Arm::Stable].map(stood_in);
        let books = self.books(&window.caller);
        let rate_before = books.canary_rate;
        books.heard_at = Some(window.until);
        books.canary_rate = canary.first_attempts();
        if canary.sent + stable.sent > 0 {
            books.sent_at = Some(now);
        }
        // Counters do not tell who answered.
        if for_canary {
            canary = Totals::default();
        }
        if for_stable {
            stable = Totals::default();
        }
        let called_canary = canary != Totals::default();
        let in_doubt = called_canary && window.log_in_doubt;
        let lost = !window.lost.is_zero();
        let counted = Counted {
            until: window.until,
            canary: books.canary.attempts(canary),
            stable: books.stable.attempts(stable),
            trusted: !(books.canary.missed_failures() || in_doubt || lost && called_canary),
        };
        if lost {
            let rate = rate_before.max(books.canary_rate);
            // However short a gap, what was under way when it began was not reported.
            self.unreported += requests_in(window.lost.max(SignedDuration::from_secs(1)), rate);
        }
        counted
    }

    /// The callers that sent a request lately, and their books.
    pub(super) fn senders(&self, now: Timestamp) -> impl Iterator<Item = (&InstanceId, &CallerBooks)> {
        self.callers
            .iter()
            .filter(move |(_, books)| books.sent_at.is_some_and(|at| now.duration_since(at) <= SENDS))
    }

    /// Senders that fell silent. One that is gone for good is told once, by what it may have sent unreported.
    fn missing(
        &mut self,
        instances: &BTreeMap<InstanceId, Arc<Instance>>,
        now: Timestamp,
    ) -> Vec<InstanceId> {
        for (caller, books) in &mut self.callers {
            if instances.contains_key(caller) {
                books.gone_at = None;
            } else {
                books.gone_at.get_or_insert(now);
            }
        }
        self.expected.retain(|caller| now < self.expected_until && instances.contains_key(caller));
        let silent: Vec<InstanceId> = self
            .senders(now)
            .filter(|(_, books)| books.heard_at.is_none_or(|at| now.duration_since(at) > SILENT))
            .map(|(caller, _)| caller.clone())
            .collect();
        let (mut missing, vanished): (Vec<InstanceId>, Vec<InstanceId>) =
            silent.into_iter().partition(|caller| instances.contains_key(caller));
        for caller in vanished {
            if let Some(books) = self.callers.remove(&caller)
                && let (Some(heard_at), Some(gone_at)) = (books.heard_at, books.gone_at)
            {
                self.unreported += requests_in(gone_at.duration_since(heard_at), books.canary_rate);
            }
        }
        missing.extend(self.expected.iter().cloned());
        missing.sort();
        missing.dedup();
        missing
    }
}

/// Makes one window of two that follow each other.
fn add(sum: &mut Counted, later: Counted) {
    for (arm, more) in [(&mut sum.canary, later.canary), (&mut sum.stable, later.stable)] {
        arm.started += more.started;
        arm.ended += more.ended;
        arm.failed += more.failed;
    }
    sum.until = later.until;
    sum.trusted &= later.trusted;
}

#[cfg(test)]
mod tests;
