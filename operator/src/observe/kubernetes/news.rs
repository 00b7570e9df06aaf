//! What the watches of a cluster tell, object by object, and how they are begun anew.

use super::{mirror::Noted, shapes};
use futures::{StreamExt as _, stream::BoxStream};
use kube::{
    Api, Client, Resource,
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::{WatchStreamExt as _, utils::Backoff, watcher},
};
use serde::de::DeserializeOwned;
use std::{fmt, time::Duration};

/// The first pause before a watch that failed is tried again, and the longest. Short, because meanwhile the mesh does
/// not follow its cluster; an operator has only a handful of watches.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long a watch lasts before it is begun anew where it ended, seconds. A connection that says nothing for longer
/// is a dead one whose end nobody told.
pub(crate) const WATCH_SECONDS: u32 = 45;

/// An object, or why it cannot be read: one such object must not be the end of its whole list.
type Guarded<K> = DeserializeGuard<K>;

type Told<K> = watcher::Result<watcher::Event<K>>;

/// Something that a watch told.
pub(super) enum News {
    Service(Told<Guarded<shapes::Service>>),
    EndpointSlice(Told<Guarded<shapes::EndpointSlice>>),
    Pod(Told<Guarded<shapes::Pod>>),
    Namespace(Told<Guarded<shapes::Namespace>>),
    MeshPolicy(Told<Guarded<shapes::MeshPolicy>>),
    Canary(Told<Guarded<shapes::Canary>>),
    Deployment(Told<Guarded<shapes::Deployment>>),
    RoleBinding(Told<Guarded<shapes::RoleBinding>>),
}

pub(super) fn follow<K>(client: &Client, news: fn(Told<Guarded<K>>) -> News) -> BoxStream<'static, News>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
{
    follow_some(client, watcher::Config::default(), news)
}

pub(super) fn follow_some<K>(
    client: &Client,
    which: watcher::Config,
    news: fn(Told<Guarded<K>>) -> News,
) -> BoxStream<'static, News>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
{
    let config = which.timeout(WATCH_SECONDS);
    watcher(Api::<Guarded<K>>::all(client.clone()), config).backoff(Patience::default()).map(news).boxed()
}

/// Pauses that double.
#[derive(Default)]
struct Patience(Option<Duration>);

impl Iterator for Patience {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let (first, longest) = PAUSES;
        let pause = self.0.map_or(first, |last| (last * 2).min(longest));
        self.0 = Some(pause);
        Some(pause)
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0 = None;
    }
}

/// Takes an event; what a watch could not do is told and tried again by itself.
pub(super) fn took<K, S>(
    kind: &'static str,
    told: Told<K>,
    note: impl FnOnce(watcher::Event<K>) -> Noted<S>,
) -> Noted<S> {
    match told {
        Ok(event) => note(event),
        // Every watch ends now and then, and a new one begins where it ended.
        Err(watcher::Error::WatchError(status)) if status.code == 410 => {
            tracing::debug!(kind, "the watch begins anew");
            Noted::Nothing
        }
        Err(error) => {
            tracing::warn!(
                kind,
                error = &error as &dyn std::error::Error,
                "cannot watch; what was seen last stays"
            );
            Noted::Nothing
        }
    }
}

/// What is kept of an object that can be read; one that cannot is named, and left out.
pub(super) fn readable<K, S>(
    kind: &'static str,
    keep: impl FnOnce(K) -> Option<S>,
) -> impl FnOnce(Guarded<K>) -> Option<S> {
    move |DeserializeGuard(object)| match object {
        Ok(object) => keep(object),
        Err(InvalidObject { error, metadata }) => {
            let (namespace, name) =
                (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
            tracing::warn!(kind, namespace, name, error, "left out: the object cannot be read");
            None
        }
    }
}
