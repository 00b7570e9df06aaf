//! The demo's users: requests at a fixed rate, whatever the answers, as users are.

use super::caller::Caller;
use hyper::{HeaderMap, Uri};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{task::JoinHandle, time::MissedTickBehavior};

/// What users have seen so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    /// Answers below 500.
    pub(super) good: u64,
    /// Answers of 500 and more, and requests without an answer.
    pub(super) failed: u64,
}

impl Seen {
    /// What was seen after `earlier`.
    pub(super) fn since(self, earlier: Seen) -> Seen {
        Seen { good: self.good - earlier.good, failed: self.failed - earlier.failed }
    }
}

#[derive(Default)]
struct Counters {
    good: AtomicU64,
    failed: AtomicU64,
}

/// Users at work.
pub(super) struct Load {
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

impl Load {
    /// Begins to send `per_second` requests a second.
    pub(super) fn start(url: Uri, per_second: u32) -> Self {
        let counters = Arc::new(Counters::default());
        let counting = counters.clone();
        let task = tokio::spawn(async move {
            let caller = Arc::new(Caller::direct());
            let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second.max(1));
            // A late tick is made up for: users do not wait for each other.
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            loop {
                tick.tick().await;
                let (caller, counters, url) = (caller.clone(), counting.clone(), url.clone());
                tokio::spawn(async move {
                    let good = matches!(
                        caller.get(&url, HeaderMap::new()).await,
                        Ok((status, _)) if !status.is_server_error()
                    );
                    if good { &counters.good } else { &counters.failed }.fetch_add(1, Relaxed);
                });
            }
        });
        Load { counters, task }
    }

    /// What users have seen so far.
    pub(super) fn seen(&self) -> Seen {
        Seen { good: self.counters.good.load(Relaxed), failed: self.counters.failed.load(Relaxed) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}
