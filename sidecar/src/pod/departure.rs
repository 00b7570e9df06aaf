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
/// How long they are asked at least, with every answer, to go elsewhere: who calls over one connection all the time stays
/// here otherwise until the application is gone.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// The longest that the answers of a pod that stays are waited for: the kubelet does not wait longer for its hook.
const ANSWERS_TIMEOUT: Duration = Duration::from_secs(5);

/// The pod's departures. Clones are the same ones.
#[derive(Debug, Clone)]
pub(super) struct Departure {
    exit: Exit,
    last: Arc<Mutex<Option<Ongoing>>>,
}

/// A departure and how far it is.
type Ongoing = watch::Receiver<Stage>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody has said yet whether the pod goes.
    Asking,
    /// It goes on, and will end so.
    Under(End),
    Over(End),
}

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
                // The pod's own departure must not end as that of a part of it.
                Some(ongoing)
                    if !matches!(*ongoing.borrow(), Stage::Under(End::Stays) | Stage::Over(End::Stays)) =>
                {
                    ongoing.clone()
                }
                _ => last.insert(self.begin()).clone(),
            }
        };
        // An end without a word is one, too.
        match ongoing.wait_for(|stage| matches!(stage, Stage::Over(_))).await.as_deref() {
            Ok(Stage::Over(end)) => *end,
            _ => End::Stays,
        }
    }

    fn begin(&self) -> Ongoing {
        let (done, ongoing) = watch::channel(Stage::Asking);
        let exit = self.exit.clone();
        tokio::spawn(async move {
            let outsiders = sleep(OUTSIDERS_TIME);
            let goes = exit.tell_callers(CALLERS_TIMEOUT).await.is_some_and(|told| !told.stays);
            let end = if goes { End::Gone } else { End::Stays };
            done.send_replace(Stage::Under(end));
            if goes {
                tokio::join!(exit.finish_requests(), sleep(FAREWELL_TIME));
                outsiders.await;
                exit.answer_requests().await;
            } else {
                timeout(ANSWERS_TIMEOUT, exit.answer_requests()).await.ok();
            }
            done.send_replace(Stage::Over(end));
        });
        ongoing
    }
}
