//! What was measured, and how it is shown.

use std::{
    fs,
    time::{Duration, Instant},
};

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

/// The processor time a process has used, user and system (proc(5), `stat`: in ticks of a hundredth of a second on
/// Linux).
pub(crate) fn processor_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field is in parentheses and may hold blanks.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// The resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
