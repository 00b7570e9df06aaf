//! Leaving the rotation, whoever asks for it and however often.
//!
//! A hook asks before its container is stopped, which is not always the pod's end: a container that fails its liveness
//! probe is stopped, too, and starts again. The operator knows which it is. A pod that stays is left out until it is
//! ready again, and its next departure is a new one.

use crate::sidecar::Exit;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// The longest that the operator may wait for callers. Its answer must be here before the 5 s are over that are added
/// to a pod's grace period.
const CALLERS_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a pod that goes serves at least: who calls without a sidecar is led here by kube-proxy, which acknowledges
/// nothing and looks once a second (`iptables.minSyncPeriod`), after the EndpointSlice was written.
const OUTSIDERS_TIME: Duration = Duration::from_secs(2);
/// The longest that the answers of a pod that stays are waited for: the kubelet does not wait longer for its hook.
const ANSWERS_TIMEOUT: Duration = Duration::from_secs(5);

/// The pod's departures. Clones are the same ones.
#[derive(Debug, Clone)]
pub(super) struct Departure {
    exit: Exit,
    last: Arc<Mutex<Option<Ongoing>>>,
}

/// A departure; `None` while it goes on.
type Ongoing = watch::Receiver<Option<End>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The pod is being deleted: nobody calls it any more.
    Gone,
    /// Only a part of it was stopped, or nobody knows.
    Stays,
}

impl Departure {
    /// Has not begun.
    pub(super) fn of(exit: Exit) -> Self {
        Self { exit, last: Arc::default() }
    }

    /// For a container that is about to be stopped: waits until callers know and have their answers. It goes on if
    /// nobody waits any more: the kubelet does not come back to finish what it began.
    pub(super) async fn of_a_container(&self) {
        self.end().await;
    }

    /// For the pod, whose containers were stopped.
    pub(super) async fn of_the_pod(&self) {
        if self.end().await == End::Stays {
            self.exit.finish_requests().await;
        }
    }

    /// The end of the departure that goes on, or of a new one.
    async fn end(&self) -> End {
        let mut ongoing = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            match &*last {
                Some(ongoing) if *ongoing.borrow() != Some(End::Stays) => ongoing.clone(),
                _ => last.insert(self.begin()).clone(),
            }
        };
        // An end without a word is one, too.
        ongoing.wait_for(Option::is_some).await.ok().and_then(|end| *end).unwrap_or(End::Stays)
    }

    fn begin(&self) -> Ongoing {
        let (done, ongoing) = watch::channel(None);
        let exit = self.exit.clone();
        tokio::spawn(async move {
            let outsiders = sleep(OUTSIDERS_TIME);
            let end = if exit.tell_callers(CALLERS_TIMEOUT).await.is_some_and(|told| !told.stays) {
                exit.finish_requests().await;
                outsiders.await;
                exit.answer_requests().await;
                End::Gone
            } else {
                timeout(ANSWERS_TIMEOUT, exit.answer_requests()).await.ok();
                End::Stays
            };
            done.send_replace(Some(end));
        });
        ongoing
    }
}
