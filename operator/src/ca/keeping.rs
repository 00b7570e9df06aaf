//! What keeps an authority in a cluster as its Secret says: every replica follows it, and the leader replaces its root.

use super::{Ca, CaError, Origin};
use crate::{
    clock::Clock,
    control::Picture,
    fleet::Fleet,
    marks::ROOT,
    milestone::{self, Milestone},
};
use airlane_core::pki::rotation::Step;
use futures::StreamExt as _;
use jiff::SignedDuration;
use kube::runtime::{WatchStreamExt as _, watcher};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// The longest time between two looks at the Secret: a watch may have missed something, and certificates end.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// From one look at a replacement of the root to the next, while nothing is to be done.
const STEP_EVERY: Duration = Duration::from_secs(15);
/// The same while something is.
const STEP_SOON: Duration = Duration::from_secs(1);

/// Takes over what the Secret holds whenever that changes, and says what is wrong with it, until told to stop.
pub(crate) async fn follow(ca: Arc<Ca>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    let (api, name) = match &ca.origin {
        Origin::Folder(_) => return shutdown.cancelled().await,
        Origin::Secret(secret) => (secret.outline(), ROOT),
        Origin::External(external) => (external.outline(), external.object()),
    };
    // Of the watch comes only that it changed: a copy of the keys would stay in its buffers.
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut changes = watcher(api, only).default_backoff().applied_objects().boxed();
    loop {
        let trouble = match ca.follow(clock.now()).await {
            Ok(news) => {
                if news {
                    tracing::info!(roots = ca.roots().len(), "what signs, or what is trusted, has changed");
                }
                Some(ca.ends_soon(&*clock))
            }
            // That says nothing about what signs.
            Err(error @ CaError::Api { .. }) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot look at what signs");
                None
            }
            Err(error) => Some(Some(error.to_string())),
        };
        if let Some(trouble) = trouble {
            ca.tell(trouble);
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(_) = changes.next() => {}
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

impl Ca {
    fn tell(&self, trouble: Option<String>) {
        self.trouble.send_if_modified(|before| {
            if *before == trouble {
                return false;
            }
            match &trouble {
                Some(trouble) => tracing::error!("{trouble}; what signed before goes on"),
                None => tracing::info!("what signs is well again"),
            }
            *before = trouble;
            true
        });
    }

    /// That somebody else's intermediate should have been renewed, if so: less than a quarter of its life is left.
    fn ends_soon(&self, clock: &dyn Clock) -> Option<String> {
        let Origin::External(_) = self.origin else { return None };
        let (held, now) = (self.intermediate(), clock.now());
        let life = held.not_after.duration_since(held.issued_at);
        (held.not_after.duration_since(now) < life / 4).then(|| {
            format!(
                "the intermediate ends at {} and nobody has renewed it: no certificate outlives it",
                held.not_after
            )
        })
    }
}

/// Does the steps of a replacement of the root when it is time for them, until told to stop; for the leader.
pub(crate) async fn rotate(
    ca: Arc<Ca>,
    overlap: SignedDuration,
    picture: watch::Receiver<Option<Picture>>,
    fleet: Fleet,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    loop {
        let trusted = Milestone::Roots(milestone::roots(&ca.bundle_pem()));
        let published = picture.borrow().clone();
        let behind = published.map_or(0, |published| {
            let acks = fleet.acks(&published, &trusted);
            acks.outstanding.len() + acks.unheard.len()
        });
        let now = clock.now();
        let pause = match ca.advance_rotation(overlap, behind, now).await {
            Ok(Step::Behind { proxies }) => {
                tracing::info!(proxies, "the new root signs when these have acknowledged it");
                STEP_SOON
            }
            Ok(Step::Rest) => STEP_EVERY,
            Ok(Step::Wait { until }) => {
                let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
                left.clamp(STEP_SOON, STEP_EVERY)
            }
            Ok(step @ (Step::HandOver | Step::Forget)) => {
                tracing::info!(?step, "the root is being replaced");
                STEP_SOON
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the root's replacement does not go on"
                );
                STEP_EVERY
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}
