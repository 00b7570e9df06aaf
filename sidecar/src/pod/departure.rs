//! Leaving the rotation: once, whoever asks for it and however often.

use crate::sidecar::Exit;
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::watch;

/// The longest that the operator may wait for callers. Its answer must be here before the 5 s are over that are added
/// to a pod's grace period.
const CALLERS_TIMEOUT: Duration = Duration::from_secs(4);

/// The pod's departure. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Departure {
    exit: Exit,
    begun: Arc<OnceLock<watch::Receiver<bool>>>,
}

impl Departure {
    /// Has not begun.
    pub(super) fn of(exit: Exit) -> Self {
        Self { exit, begun: Arc::default() }
    }

    /// Begins it, if nobody has, and waits until callers know and have their answers. It goes on if nobody waits any
    /// more: the kubelet does not come back to finish what it began.
    pub(super) async fn completed(&self) {
        let begin = || {
            let (done, completed) = watch::channel(false);
            let exit = self.exit.clone();
            tokio::spawn(async move {
                exit.tell_callers(CALLERS_TIMEOUT).await;
                exit.finish_requests().await;
                done.send_replace(true);
            });
            completed
        };
        let mut completed = self.begun.get_or_init(begin).clone();
        // An end without a word is one, too.
        completed.wait_for(|done| *done).await.ok();
    }
}
