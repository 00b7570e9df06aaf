//! The books of what proxies reported: windows of totals, logged failures, endpoint health. No IO; time is given.
//!
//! A window is what a proxy counted between two flushes (about 1 s). Each begins at the very nanosecond at which the
//! one before ended, whatever the proxy's clock does meanwhile, so one that begins elsewhere means that counts were
//! lost. Failures come ahead of the window that counts them, so a window is complete only [`SETTLE`] after it
//! arrived.

use airlane_core::id::{ClusterName, InstanceId};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
};

/// How long after its arrival a window is read: three flushes of the access log (100 ms each), so that every
/// failure the window counts has been logged.
pub(crate) const SETTLE: SignedDuration = SignedDuration::from_millis(300);

/// Windows kept for people (`get services`), and known again if they are delivered twice: about ten seconds.
const RECENT_WINDOWS: usize = 10;

/// What a gap is taken for when the proxy's clock was set meanwhile and its length means nothing.
const GAP_MAX: SignedDuration = SignedDuration::from_secs(60);

/// Failures kept for a rollout that does not come to read them.
const FAILURES_MAX: usize = 50_000;
/// Windows of one caller kept for it: half a minute, and some that came twice as fast.
const WINDOWS_MAX: usize = 60;
/// How old what was not read may become. Whoever judges looks every second; where nobody does, reports must not pile
/// up.
const UNREAD_MAX: SignedDuration = SignedDuration::from_secs(30);
/// How long a caller is remembered that does not report any more.
const SILENT_MAX: SignedDuration = SignedDuration::from_mins(5);

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
    /// Clusters of which the proxy leaves out any endpoint.
    pub(crate) ejecting: Vec<ClusterName>,
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
    /// The log may lack failures of this window: it is the caller's first that we hear of, or the log's stream broke
    /// in it.
    pub(crate) log_in_doubt: bool,
    /// How long the caller counted between the window before and this one without our hearing of it; zero: nothing
    /// was lost.
    pub(crate) lost: SignedDuration,
}

#[derive(Default)]
struct Caller {
    last_heard_at: Option<Timestamp>,
    log_broke: bool,
    waiting: VecDeque<Waiting>,
    /// What the next window has to tell as lost.
    dropped: SignedDuration,
    recent: VecDeque<Recent>,
    ejecting: Vec<ClusterName>,
}

impl Caller {
    /// Drops the window that waits longest, so that the next one tells that something was lost; how many that were.
    fn drop_first(&mut self) -> u64 {
        let Some(dropped) = self.waiting.pop_front() else { return 0 };
        let lost = dropped.complete.lost.saturating_add(dropped.counted);
        let tell = self.waiting.front_mut().map_or(&mut self.dropped, |next| &mut next.complete.lost);
        *tell = tell.saturating_add(lost).min(GAP_MAX);
        1
    }
}

/// A window whose failures may be on their way still.
struct Waiting {
    complete: Complete,
    /// How long its caller counted.
    counted: SignedDuration,
}

struct Recent {
    start_ns: u64,
    end_ns: u64,
    clusters: BTreeMap<ClusterName, Totals>,
}

/// The books.
#[derive(Default)]
pub(crate) struct Intake {
    callers: HashMap<InstanceId, Caller>,
    failures: VecDeque<(InstanceId, Failure)>,
    dropped: u64,
    swept_at: Option<Timestamp>,
}

impl Intake {
    /// Takes a window in; false if it was delivered before.
    pub(crate) fn window(&mut self, caller: &InstanceId, window: Window, now: Timestamp) -> bool {
        self.sweep(now);
        let books = self.callers.entry(caller.clone()).or_default();
        let Window { start_ns, end_ns, clusters, ejecting } = window;
        if books.recent.iter().any(|known| (known.start_ns, known.end_ns) == (start_ns, end_ns)) {
            return false;
        }
        let gap = books.recent.back().map_or(SignedDuration::ZERO, |last| between(last.end_ns, start_ns));
        let lost = gap.saturating_add(std::mem::take(&mut books.dropped)).min(GAP_MAX);
        let log_in_doubt = std::mem::take(&mut books.log_broke) || books.recent.is_empty();
        books.last_heard_at = Some(now);
        books.ejecting = ejecting;
        books.recent.push_back(Recent { start_ns, end_ns, clusters: clusters.clone() });
        if books.recent.len() > RECENT_WINDOWS {
            books.recent.pop_front();
        }
        let complete = Complete { caller: caller.clone(), clusters, until: now, log_in_doubt, lost };
        books.waiting.push_back(Waiting { complete, counted: between(start_ns, end_ns) });
        if books.waiting.len() > WINDOWS_MAX {
            self.dropped += books.drop_first();
        }
        true
    }

    /// Drops what is too old to be read, once in a while.
    fn sweep(&mut self, now: Timestamp) {
        let older = |at: Timestamp, age: SignedDuration| now.duration_since(at) >= age;
        if self.swept_at.is_some_and(|at| at <= now && !older(at, UNREAD_MAX / 2)) {
            return;
        }
        self.swept_at = Some(now);
        while self.failures.pop_front_if(|(_, failure)| older(failure.at, UNREAD_MAX)).is_some() {
            self.dropped += 1;
        }
        for books in self.callers.values_mut() {
            while books.waiting.front().is_some_and(|window| older(window.complete.until, UNREAD_MAX)) {
                self.dropped += books.drop_first();
            }
        }
        self.callers.retain(|_, books| {
            !books.waiting.is_empty() || books.last_heard_at.is_some_and(|at| !older(at, SILENT_MAX))
        });
    }

    /// A caller's log broke: what was under way is lost, and nobody can say how much that was.
    pub(crate) fn log_broke(&mut self, caller: &InstanceId) {
        if let Some(books) = self.callers.get_mut(caller) {
            books.log_broke = true;
        }
    }

    /// Takes a logged failure in.
    pub(crate) fn failure(&mut self, caller: &InstanceId, failure: Failure) {
        self.sweep(failure.at);
        self.failures.push_back((caller.clone(), failure));
        if self.failures.len() > FAILURES_MAX {
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
        for books in self.callers.values_mut() {
            let settled = |window: &mut Waiting| now.duration_since(window.complete.until) >= SETTLE;
            while let Some(window) = books.waiting.pop_front_if(settled) {
                complete.push(window.complete);
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
            caller
                .recent
                .iter()
                .filter_map(|window| window.clusters.get(cluster))
                .for_each(|totals| sum.add(totals));
        }
        (sum, seconds)
    }

    /// Who calls a cluster, from their last windows: caller and what it counted.
    pub(crate) fn callers_of(&self, cluster: &ClusterName) -> BTreeMap<InstanceId, Totals> {
        let mut callers = BTreeMap::new();
        for (id, caller) in &self.callers {
            let mut sum = Totals::default();
            caller
                .recent
                .iter()
                .filter_map(|window| window.clusters.get(cluster))
                .for_each(|totals| sum.add(totals));
            if sum != Totals::default() {
                callers.insert(id.clone(), sum);
            }
        }
        callers
    }

    /// Whether a caller leaves out any endpoint of a cluster.
    pub(crate) fn is_ejecting(&self, caller: &InstanceId, cluster: &str) -> bool {
        let books = self.callers.get(caller);
        books.is_some_and(|books| books.ejecting.iter().any(|ejecting| ejecting.to_string() == cluster))
    }

    /// Forgets callers that are gone and whose last windows were read.
    pub(crate) fn retain(&mut self, alive: impl Fn(&InstanceId) -> bool) {
        self.callers.retain(|caller, books| alive(caller) || !books.waiting.is_empty());
    }
}

/// How long a proxy counted from one moment to another. A clock that was set back in between hides that.
fn between(from_ns: u64, to_ns: u64) -> SignedDuration {
    let counted = to_ns.checked_sub(from_ns).and_then(|counted| i64::try_from(counted).ok());
    counted.map_or(GAP_MAX, SignedDuration::from_nanos).min(GAP_MAX)
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
        Window { start_ns, end_ns, clusters: BTreeMap::from([(cluster, totals)]), ejecting: Vec::new() }
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

    fn lost(windows: &[(u64, u64)]) -> Vec<SignedDuration> {
        let mut intake = Intake::default();
        for (start_ns, end_ns) in windows {
            assert!(intake.window(&caller(), window(*start_ns, *end_ns, 7), at(0)));
        }
        intake.take_windows(at(1_000)).iter().map(|window| window.lost).collect()
    }

    #[test]
    fn lost_windows_are_noticed() {
        let none = SignedDuration::ZERO;
        assert_eq!(lost(&[(1, 2), (2, 3), (4, 6)]), [none, none, SignedDuration::from_nanos(1)]);
        assert_eq!(lost(&[(1, 2), (3, 4), (2, 3)])[2], GAP_MAX, "out of order");
    }

    #[test]
    fn a_clock_set_back_loses_nothing() {
        assert_eq!(lost(&[(800, 900), (900, 100), (100, 200)]), [SignedDuration::ZERO; 3]);
    }

    #[test]
    fn the_log_is_in_doubt_at_first_and_after_it_broke() {
        let mut intake = Intake::default();
        intake.window(&caller(), window(1, 2, 7), at(0));
        intake.window(&caller(), window(2, 3, 7), at(0));
        intake.log_broke(&caller());
        intake.window(&caller(), window(3, 4, 7), at(0));
        intake.window(&caller(), window(4, 5, 7), at(0));
        let doubts: Vec<bool> =
            intake.take_windows(at(1_000)).iter().map(|window| window.log_in_doubt).collect();
        assert_eq!(doubts, [true, false, true, false]);
    }

    /// What waits, and how many callers are remembered.
    fn sizes(intake: &Intake) -> (usize, usize, usize) {
        let windows = intake.callers.values().map(|books| books.waiting.len()).sum();
        (windows, intake.failures.len(), intake.callers.len())
    }

    #[test]
    fn what_nobody_reads_does_not_pile_up() {
        let mut intake = Intake::default();
        let cluster: ClusterName = "80|pay|shop|v2".parse().expect("a cluster name");
        for second in 0..600_u32 {
            let now = at(i64::from(second) * 1_000);
            // One caller that stays, and one that is soon replaced.
            let passing = InstanceId::parse(&format!("front-v1-{:04}", second / 10)).expect("a name");
            for caller in [caller(), passing] {
                let start = u64::from(second) * 1_000_000_000;
                intake.window(&caller, window(start, start + 1_000_000_000, 7), now);
                intake.failure(&caller, Failure { cluster: cluster.clone(), endpoint: None, at: now });
            }
            let (windows, failures, callers) = sizes(&intake);
            assert!(windows <= 2 * 46 && failures <= 2 * 46 && callers <= 35, "{:?}", sizes(&intake));
        }
        assert!(intake.dropped() > 2_000);
        let first = intake.take_windows(at(600_000)).into_iter().find(|window| window.caller == caller());
        assert_eq!(first.map(|window| window.lost), Some(GAP_MAX), "the judge hears that windows were lost");
    }

    #[test]
    fn one_caller_does_not_fill_the_books() {
        let mut intake = Intake::default();
        for n in 0..1_000 {
            intake.window(&caller(), window(n, n + 1, 7), at(0));
        }
        assert_eq!(sizes(&intake).0, WINDOWS_MAX);
    }

    #[test]
    fn a_caller_leaves_out_what_its_last_window_says() {
        let mut intake = Intake::default();
        let cluster = "80|pay|shop|v2";
        let mut sick = window(1, 2, 7);
        sick.ejecting.push(cluster.parse().expect("a cluster name"));
        intake.window(&caller(), sick, at(0));
        assert!(intake.is_ejecting(&caller(), cluster) && !intake.is_ejecting(&caller(), "80|pay|shop"));
        intake.window(&caller(), window(2, 3, 7), at(0));
        assert!(!intake.is_ejecting(&caller(), cluster));
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
