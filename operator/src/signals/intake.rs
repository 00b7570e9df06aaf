//! The books of what proxies reported: windows of totals, logged failures, endpoint health. No IO; time is given.
//!
//! A window is what a proxy counted between two flushes (about 1 s). Windows of one proxy follow each other without
//! a gap; one that starts later than the last one ended means that counts were lost, and one that ends no later
//! than the last one was delivered twice. Failures come ahead of the window that counts them, so a window is
//! complete only [`SETTLE`] after it arrived.

use airlane_core::id::{ClusterName, InstanceId};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
};

/// How long after its arrival a window is read: three flushes of the access log (100 ms each), so that every
/// failure the window counts has been logged.
pub(crate) const SETTLE: SignedDuration = SignedDuration::from_millis(300);

/// Windows kept for people (`get services`): about ten seconds.
const RECENT_WINDOWS: usize = 10;

/// Windows and failures kept for a rollout that does not come to read them.
const BACKLOG_MAX: usize = 50_000;

/// What one proxy counted about one cluster.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Totals {
    /// Requests sent to an endpoint (`upstream_rq_total`), retries included.
    pub(crate) sent: u64,
    /// Requests for which no connection could be made.
    pub(crate) connect_failed: u64,
    /// Of those, tries after the first that went to this cluster (`upstream_rq_retry`).
    pub(crate) retries: u64,
    /// Tries that ended well, as counted by endpoint (`endpoint.rq_success`).
    pub(crate) good_tries: u64,
    /// Tries that failed, as counted by endpoint (`endpoint.rq_error`).
    pub(crate) failed_tries: u64,
    /// Responses handed to the caller.
    pub(crate) completed: u64,
    /// Of those, 5xx.
    pub(crate) completed_5xx: u64,
}

impl Totals {
    /// First attempts: exact on Envoy 1.40 for answers, resets, timeouts and refusals.
    pub(crate) fn first_attempts(&self) -> u64 {
        (self.sent + self.connect_failed).saturating_sub(self.retries)
    }

    /// Adds another count.
    pub(crate) fn add(&mut self, other: &Totals) {
        self.sent += other.sent;
        self.connect_failed += other.connect_failed;
        self.retries += other.retries;
        self.good_tries += other.good_tries;
        self.failed_tries += other.failed_tries;
        self.completed += other.completed;
        self.completed_5xx += other.completed_5xx;
    }
}

/// What one proxy counted between two flushes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    /// Start and end by the proxy's clock, nanoseconds since 1970.
    pub(crate) start_ns: u64,
    /// See `start_ns`.
    pub(crate) end_ns: u64,
    /// By cluster.
    pub(crate) clusters: BTreeMap<ClusterName, Totals>,
    /// Endpoints by cluster: whether the proxy holds them healthy.
    pub(crate) healthy: Vec<(ClusterName, SocketAddr, bool)>,
}

/// A first attempt that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    /// Where it went.
    pub(crate) cluster: ClusterName,
    /// The endpoint, if one was chosen.
    pub(crate) endpoint: Option<SocketAddr>,
    /// When it arrived here.
    pub(crate) at: Timestamp,
}

/// A window ready to be judged.
#[derive(Clone, Debug)]
pub(crate) struct Complete {
    /// Who counted.
    pub(crate) caller: InstanceId,
    /// What it counted.
    pub(crate) clusters: BTreeMap<ClusterName, Totals>,
    /// When it arrived here, which is when it ended but for the way.
    pub(crate) until: Timestamp,
    /// Counts between this window and the one before were lost.
    pub(crate) gap: bool,
}

#[derive(Default)]
struct Caller {
    last_end_ns: u64,
    last_heard_at: Option<Timestamp>,
    waiting: VecDeque<(Timestamp, Window, bool)>,
    recent: VecDeque<BTreeMap<ClusterName, Totals>>,
    health: HashMap<(ClusterName, SocketAddr), bool>,
}

/// The books.
#[derive(Default)]
pub(crate) struct Intake {
    callers: HashMap<InstanceId, Caller>,
    failures: VecDeque<(InstanceId, Failure)>,
    dropped: u64,
}

impl Intake {
    /// Takes a window in; false if it was delivered before.
    pub(crate) fn window(&mut self, caller: &InstanceId, window: Window, now: Timestamp) -> bool {
        let books = self.callers.entry(caller.clone()).or_default();
        if window.end_ns <= books.last_end_ns {
            return false;
        }
        let gap = books.last_end_ns != 0 && window.start_ns > books.last_end_ns;
        books.last_end_ns = window.end_ns;
        books.last_heard_at = Some(now);
        for (cluster, endpoint, healthy) in &window.healthy {
            books.health.insert((cluster.clone(), *endpoint), *healthy);
        }
        books.recent.push_back(window.clusters.clone());
        while books.recent.len() > RECENT_WINDOWS {
            books.recent.pop_front();
        }
        books.waiting.push_back((now, window, gap));
        if books.waiting.len() > BACKLOG_MAX {
            books.waiting.pop_front();
            self.dropped += 1;
        }
        true
    }

    /// Takes a logged failure in.
    pub(crate) fn failure(&mut self, caller: &InstanceId, failure: Failure) {
        self.failures.push_back((caller.clone(), failure));
        if self.failures.len() > BACKLOG_MAX {
            self.failures.pop_front();
            self.dropped += 1;
        }
    }

    /// The failures since the last call, in the order of their arrival.
    pub(crate) fn take_failures(&mut self) -> Vec<(InstanceId, Failure)> {
        self.failures.drain(..).collect()
    }

    /// The windows that are complete, in the order of their arrival by caller.
    pub(crate) fn take_windows(&mut self, now: Timestamp) -> Vec<Complete> {
        let mut complete = Vec::new();
        for (caller, books) in &mut self.callers {
            while let Some((arrived_at, ..)) = books.waiting.front()
                && now.duration_since(*arrived_at) >= SETTLE
                && let Some((until, window, gap)) = books.waiting.pop_front()
            {
                complete.push(Complete { caller: caller.clone(), clusters: window.clusters, until, gap });
            }
        }
        complete.sort_by(|a, b| a.caller.cmp(&b.caller));
        complete
    }

    /// When a caller reported last.
    pub(crate) fn last_heard_at(&self, caller: &InstanceId) -> Option<Timestamp> {
        self.callers.get(caller)?.last_heard_at
    }

    /// How many reports were dropped because nobody read them in time.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What callers counted about a cluster in their last windows, and how many seconds that is.
    pub(crate) fn recent(&self, cluster: &ClusterName) -> (Totals, usize) {
        let mut sum = Totals::default();
        let mut seconds = 0;
        for caller in self.callers.values() {
            seconds = seconds.max(caller.recent.len());
            caller.recent.iter().filter_map(|window| window.get(cluster)).for_each(|totals| sum.add(totals));
        }
        (sum, seconds)
    }

    /// Who calls a cluster, from their last windows: caller and what it counted.
    pub(crate) fn callers_of(&self, cluster: &ClusterName) -> BTreeMap<InstanceId, Totals> {
        let mut callers = BTreeMap::new();
        for (id, caller) in &self.callers {
            let mut sum = Totals::default();
            caller.recent.iter().filter_map(|window| window.get(cluster)).for_each(|totals| sum.add(totals));
            if sum != Totals::default() {
                callers.insert(id.clone(), sum);
            }
        }
        callers
    }

    /// The callers that hold an endpoint unhealthy.
    pub(crate) fn held_unhealthy_by(&self, endpoint: SocketAddr) -> Vec<InstanceId> {
        let mut holders: Vec<InstanceId> = self
            .callers
            .iter()
            .filter(|(_, caller)| {
                caller.health.iter().any(|((_, address), healthy)| *address == endpoint && !healthy)
            })
            .map(|(id, _)| id.clone())
            .collect();
        holders.sort();
        holders
    }

    /// Forgets callers that are gone and whose last windows were read.
    pub(crate) fn retain(&mut self, alive: impl Fn(&InstanceId) -> bool) {
        self.callers.retain(|caller, books| alive(caller) || !books.waiting.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000 + ms).expect("in range")
    }
    fn window(start_ns: u64, end_ns: u64, sent: u64) -> Window {
        let cluster = "80|pay|shop|v2".parse().expect("a cluster name");
        let totals = Totals { sent, ..Totals::default() };
        Window { start_ns, end_ns, clusters: BTreeMap::from([(cluster, totals)]), healthy: Vec::new() }
    }
    fn caller() -> InstanceId {
        InstanceId::parse("front-v1-abcd").expect("a name")
    }

    #[test]
    fn a_window_delivered_twice_counts_once() {
        let mut intake = Intake::default();
        assert!(intake.window(&caller(), window(1, 2, 7), at(0)));
        assert!(!intake.window(&caller(), window(1, 2, 7), at(1)));
        let complete = intake.take_windows(at(1_000));
        assert_eq!(complete.len(), 1);
        assert_eq!(complete[0].clusters.values().map(|totals| totals.sent).sum::<u64>(), 7);
    }

    #[test]
    fn lost_windows_are_noticed() {
        let mut intake = Intake::default();
        intake.window(&caller(), window(1, 2, 7), at(0));
        intake.window(&caller(), window(2, 3, 7), at(0));
        intake.window(&caller(), window(4, 5, 7), at(0));
        let gaps: Vec<bool> = intake.take_windows(at(1_000)).iter().map(|window| window.gap).collect();
        assert_eq!(gaps, [false, false, true]);
    }

    #[test]
    fn a_window_waits_for_its_failures() {
        let mut intake = Intake::default();
        intake.window(&caller(), window(1, 2, 7), at(0));
        assert!(intake.take_windows(at(299)).is_empty());
        assert_eq!(intake.take_windows(at(300)).len(), 1);
    }

    #[test]
    fn first_attempts_leave_retries_out() {
        let totals = Totals { sent: 20, connect_failed: 3, retries: 8, ..Totals::default() };
        assert_eq!(totals.first_attempts(), 15);
    }
}
