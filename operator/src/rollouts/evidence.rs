//! From what proxies reported to the judge's evidence about one rollout. No IO; time is given.
//!
//! Counters say how many; logs say which. Envoy counts tries, so first attempts are told apart by what was counted
//! in all: a retry that begins in one window may end in the next, and only sums over windows are exact.

use crate::signals::intake::{Complete, Failure, Totals};
use airlane_core::{
    id::{ClusterName, InstanceId, Revision, ServiceId},
    policy::Millis,
    slo::{Arm, Attempts, CallerEvidence, Evidence, Failure as Outcome, SentShares, Totals as Counted},
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

/// What the gatherer must know of the mesh as it is now.
pub(super) struct Surroundings<'a> {
    /// Endpoints of the service by the address a log names.
    pub(super) endpoints: &'a HashMap<SocketAddr, InstanceId>,
    /// Canary endpoints published.
    pub(super) canary_endpoints: usize,
    /// How long a request may last.
    pub(super) route_timeout: Millis,
    /// Instances that exist.
    pub(super) instances: &'a BTreeMap<InstanceId, Arc<Instance>>,
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
}

#[derive(Default)]
struct ArmBooks {
    counted: Totals,
    logged: u64,
    told_ended: u64,
    told_failed: u64,
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
}

#[derive(Default)]
struct CallerBooks {
    shares: SentShares,
    canary: ArmBooks,
    stable: ArmBooks,
    sent_at: Option<Timestamp>,
    heard_at: Option<Timestamp>,
    /// Canary requests in the last window, which is about a second long.
    canary_rate: u64,
}

/// The books of one attempt of one revision.
pub(super) struct Gatherer {
    comparison: Comparison,
    share: f64,
    callers: BTreeMap<InstanceId, CallerBooks>,
    unreported: u64,
}

impl Gatherer {
    /// Empty books; `share` (0 to 1) is the canary's as published now.
    pub(super) fn new(comparison: Comparison, share: f64) -> Self {
        Gatherer { comparison, share, callers: BTreeMap::new(), unreported: 0 }
    }

    /// Which clusters these books are about.
    pub(super) fn comparison(&self) -> &Comparison {
        &self.comparison
    }

    /// Notes that a share is about to be published to every caller.
    pub(super) fn publish(&mut self, share: f64) {
        self.share = share;
        self.callers.values_mut().for_each(|books| books.shares.publish(share));
    }

    /// Notes that a caller's proxy acknowledged the share published last.
    pub(super) fn acknowledge(&mut self, caller: &InstanceId, at: Timestamp) {
        self.books(caller).shares.acknowledge(at);
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
        let mut outcomes: BTreeMap<InstanceId, Vec<Outcome>> = BTreeMap::new();
        for (caller, failure) in failures {
            let Some(arm) = self.comparison.arm(&failure.cluster) else { continue };
            let books = self.books(caller);
            match arm {
                Arm::Canary => books.canary.logged += 1,
                Arm::Stable => books.stable.logged += 1,
            }
            let instance = failure.endpoint.and_then(|endpoint| around.endpoints.get(&endpoint).cloned());
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
                let coin = self.books(&caller).shares.coin(now, around.route_timeout)?;
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
        let books = self.books(&window.caller);
        books.heard_at = Some(now);
        books.canary_rate = canary.first_attempts();
        if canary.sent + stable.sent > 0 {
            books.sent_at = Some(now);
        }
        let counted = Counted {
            until: window.until,
            canary: books.canary.attempts(canary),
            stable: books.stable.attempts(stable),
            trusted: !window.gap && books.canary.counted_failures() <= books.canary.logged,
        };
        if window.gap {
            // What a lost window of the last rate would have held.
            self.unreported += canary.first_attempts();
        }
        counted
    }

    fn senders(&self, now: Timestamp) -> impl Iterator<Item = (&InstanceId, &CallerBooks)> {
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
        let silent: Vec<InstanceId> = self
            .senders(now)
            .filter(|(_, books)| books.heard_at.is_none_or(|at| now.duration_since(at) > SILENT))
            .map(|(caller, _)| caller.clone())
            .collect();
        let (missing, vanished): (Vec<InstanceId>, Vec<InstanceId>) =
            silent.into_iter().partition(|caller| instances.contains_key(caller));
        for caller in vanished {
            if let Some(books) = self.callers.remove(&caller) {
                let gap_s = books.heard_at.map_or(0, |at| now.duration_since(at).as_secs() + 1);
                self.unreported += books.canary_rate * u64::try_from(gap_s).unwrap_or(0);
            }
        }
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
mod tests {
    use super::*;
    use airlane_core::{
        id::{Name, Namespace, WorkloadRevision},
        world::Health,
    };

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000 + ms).expect("in range")
    }
    fn caller() -> InstanceId {
        InstanceId::parse("front-v1-abcd").expect("a name")
    }
    fn gatherer() -> Gatherer {
        let service: ClusterName = "80|pay|shop".parse().expect("a cluster");
        let comparison = Comparison {
            service: service.port.service,
            stable: Revision::parse("v1").expect("a name"),
            canary: Revision::parse("v2").expect("a name"),
        };
        Gatherer::new(comparison, 0.1)
    }
    fn failure() -> (InstanceId, Failure) {
        (
            caller(),
            Failure { cluster: "80|pay|shop|v2".parse().expect("a cluster"), endpoint: None, at: at(0) },
        )
    }
    fn window(canary: Totals) -> Complete {
        let clusters = BTreeMap::from([("80|pay|shop|v2".parse().expect("a cluster"), canary)]);
        Complete { caller: caller(), clusters, until: at(0), gap: false }
    }
    fn gather(
        books: &mut Gatherer,
        failures: &[(InstanceId, Failure)],
        windows: &[Complete],
        now: Timestamp,
    ) -> Evidence {
        gather_among(books, &BTreeMap::from([(caller(), Arc::new(instance()))]), failures, windows, now)
    }

    fn gather_among(
        books: &mut Gatherer,
        instances: &BTreeMap<InstanceId, Arc<Instance>>,
        failures: &[(InstanceId, Failure)],
        windows: &[Complete],
        now: Timestamp,
    ) -> Evidence {
        let route_timeout = Millis(1_000);
        let around =
            Surroundings { endpoints: &HashMap::new(), canary_endpoints: 1, route_timeout, instances };
        books.gather(failures, windows, &around, now)
    }
    fn instance() -> Instance {
        let workload = WorkloadRevision {
            namespace: Namespace::parse("shop").expect("a name"),
            workload: Name::parse("front").expect("a name"),
            revision: Revision::parse("v1").expect("a name"),
        };
        Instance {
            id: caller(),
            service_account: workload.workload.clone(),
            workload,
            services: BTreeSet::new(),
            address: [127, 0, 0, 1].into(),
            ports: Vec::new(),
            outbound_port: 15001,
            health: Health::Healthy,
        }
    }

    #[test]
    fn failures_run_ahead_of_the_window_that_counts_them() {
        let mut books = gatherer();
        let early = gather(&mut books, &[failure()], &[], at(100));
        assert_eq!(early.callers[0].failures.len(), 1);
        assert_eq!(early.callers[0].totals, None);
        let totals = Totals { sent: 10, good_tries: 9, failed_tries: 1, ..Totals::default() };
        let late = gather(&mut books, &[], &[window(totals)], at(1_000));
        let counted = late.callers[0].totals.expect("a window");
        assert_eq!(counted.canary, Attempts { started: 10, ended: 10, failed: 1 });
        assert!(counted.trusted);
    }

    #[test]
    fn counters_that_know_more_failures_than_the_log_are_not_trusted() {
        let mut books = gatherer();
        let totals = Totals { sent: 10, good_tries: 8, failed_tries: 2, ..Totals::default() };
        let evidence = gather(&mut books, &[failure()], &[window(totals)], at(1_000));
        let counted = evidence.callers[0].totals.expect("a window");
        assert!(!counted.trusted);
        assert_eq!(counted.canary.failed, 2);
    }

    #[test]
    fn a_retry_across_windows_is_no_first_attempt() {
        let mut books = gatherer();
        let begins = Totals { sent: 5, retries: 1, good_tries: 4, ..Totals::default() };
        let ends = Totals { good_tries: 1, ..Totals::default() };
        let first =
            gather(&mut books, &[], &[window(begins)], at(1_000)).callers[0].totals.expect("a window").canary;
        let second =
            gather(&mut books, &[], &[window(ends)], at(2_000)).callers[0].totals.expect("a window").canary;
        assert_eq!((first.ended, second.ended), (3, 1), "four requests, whichever try ended when");
    }

    #[test]
    fn hanging_requests_are_not_clean() {
        let mut books = gatherer();
        let hanging = Totals { sent: 10, good_tries: 2, ..Totals::default() };
        let counted =
            gather(&mut books, &[], &[window(hanging)], at(1_000)).callers[0].totals.expect("a window");
        assert_eq!(counted.canary.ended, 2);
    }

    #[test]
    fn silence_of_a_sender_is_missing_and_its_end_is_unreported() {
        let mut books = gatherer();
        let totals = Totals { sent: 7, good_tries: 7, ..Totals::default() };
        gather(&mut books, &[], &[window(totals)], at(0));
        assert_eq!(gather(&mut books, &[], &[], at(4_000)).missing, [caller()]);
        let evidence = gather_among(&mut books, &BTreeMap::new(), &[], &[], at(4_000));
        assert!(evidence.missing.is_empty());
        assert_eq!(evidence.unreported, 35, "7 a second for the 4 s since, rounded up");
    }
}
