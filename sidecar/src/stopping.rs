//! The wish to stop: SIGTERM or Ctrl-C, and a second one for those in a hurry.

use std::io;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How urgently somebody wishes the agent to stop.
#[derive(Debug, Clone)]
pub(crate) struct Stopping {
    asked: CancellationToken,
    hurried: CancellationToken,
}

impl Stopping {
    /// Listens to the signals from now on.
    pub(crate) fn listen() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stopping = Self { asked: CancellationToken::new(), hurried: CancellationToken::new() };
        let tell = stopping.clone();
        tokio::spawn(async move {
            for token in [tell.asked, tell.hurried] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(stopping)
    }

    /// Waits until somebody asks to stop.
    pub(crate) async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// The outcome of `work`, or `None` as soon as somebody asks a second time.
    pub(crate) async fn unless_hurried<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.hurried.cancelled() => None,
        }
    }
}
