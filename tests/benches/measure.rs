//! What was measured, and how it is shown.

use airlane_tests::until::until_often;
use std::{
    fs,
    time::{Duration, Instant},
};

/// A process that used less than a twentieth of this is at rest. It is longer than what an operator does by timers takes to
/// come round.
const REST: Duration = Duration::from_secs(1);

/// The longest until a process comes to rest.
const LONGEST: Duration = Duration::from_secs(120);

/// Durations of the same thing.
#[derive(Clone, Default)]
pub(crate) struct Durations(Vec<Duration>);

impl Durations {
    pub(crate) fn add(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// Runs `work` and adds how long it took.
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        self.add(started.elapsed());
        done
    }

    /// The smallest duration that at least this share is not above (nearest rank).
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted[rank.saturating_sub(1)]
    }

    /// A row of a table: p50, p99, the longest, and of how many.
    pub(crate) fn row(&self, what: &str) {
        let [p50, p99, longest] = [0.5, 0.99, 1.0].map(|share| ms(self.quantile(share)));
        println!("| {what} | {p50} | {p99} | {longest} | {} |", self.0.len());
    }
}

/// The head of a table of [`Durations::row`]s.
pub(crate) fn table(title: &str) {
    println!("\n### {title}\n\n| what | p50 | p99 | max | n |\n|---|---|---|---|---|");
}

fn ms(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1000.0)
}

/// A median, and the interval in which the true one is with at least 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Median {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Median {
    /// Of independent measurements of whatever distribution, at least six: each is below the true median with
    /// probability ½, so how many are is binomial, and order statistics bound it.
    pub(crate) fn of(measured: impl IntoIterator<Item = f64>) -> Median {
        let mut sorted: Vec<f64> = measured.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        // As many of the smallest, and of the largest, as can be left out: P(B(n, ½) ≤ outside) ≤ 2.5 %.
        let (mut outside, mut probability) = (0, 0.5_f64.powi(i32::try_from(n).unwrap()));
        let mut below = probability;
        loop {
            probability *= (n - outside) as f64 / (outside + 1) as f64;
            below += probability;
            if below > 0.025 {
                break;
            }
            outside += 1;
        }
        let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        Median { low: sorted[outside], median, high: sorted[n - 1 - outside] }
    }

    /// `1.02 (1.01–1.04)`.
    pub(crate) fn shown(&self, decimals: usize) -> String {
        let Median { low, median, high } = self;
        format!("{median:.decimals$} ({low:.decimals$}–{high:.decimals$})")
    }
}

/// The processor time of a process: of all its threads that live, user and system, in nanoseconds (the first number
/// of `schedstat` in Documentation/scheduler/sched-stats.rst of Linux).
pub(crate) fn processor_time(pid: i32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |thread: std::io::Result<fs::DirEntry>| {
        // A thread that ended meanwhile is not there any more.
        let schedstat = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap_or_default();
        schedstat.split_whitespace().next().map_or(0, |nanos| nanos.parse().unwrap())
    };
    Duration::from_nanos(threads.map(of).sum())
}

/// Waits until a process has nothing left to do.
pub(crate) async fn at_rest(pid: i32) {
    let mut before = Duration::ZERO;
    until_often("the process is at rest", LONGEST, REST, async || {
        let now = processor_time(pid);
        let busy = now.saturating_sub(std::mem::replace(&mut before, now));
        if busy < REST / 20 { Ok(()) } else { Err(format!("{busy:?} of {REST:?}")) }
    })
    .await;
}

/// The resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: i32) -> u64 {
    kib(pid, "VmRSS:")
}

/// The most that the resident memory of a process ever was, in KiB.
pub(crate) fn most_resident_kib(pid: i32) -> u64 {
    kib(pid, "VmHWM:")
}

/// Has [`most_resident_kib`] begin anew (proc_pid_clear_refs(5)).
pub(crate) fn forget_most_resident(pid: i32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

fn kib(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
