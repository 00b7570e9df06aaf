//! Watches a Kubernetes cluster: services and the pods behind them, policies and canaries.
//!
//! Of each object a few fields are kept ([`shapes`]), as what they mean to the mesh ([`pod`], [`service`],
//! [`object`]). What is published is made of complete lists alone ([`mirror`]): nothing before everything was listed
//! once, and never less because a watch had to begin anew. While the API server is away the last picture stays.

mod cluster;
mod instances;
mod mirror;
mod news;
mod object;
pub(crate) mod owner;
pub(crate) mod pod;
mod service;
mod shapes;
pub(crate) mod workload;

pub(crate) use news::WATCH_SECONDS;
pub(crate) use object::{ANSWERED, Answered, Kept, memory};
pub(crate) use shapes::{Canary, MeshPolicy};

use super::declared::Declared;
use crate::{apply::Statuses, members::Instances};
use airlane_core::id::{Namespace, ObjectId};
use cluster::Cluster;
use futures::stream::{BoxStream, SelectAll};
use kube::{Client, runtime::watcher};
use news::{News, follow, follow_some};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use workload::{PASS, Workloads};

/// The labels of each namespace.
pub(crate) type NamespaceLabels = BTreeMap<Namespace, BTreeMap<String, String>>;

/// What is observed of a cluster, now and whenever it changes. Nothing of it means anything before
/// [`Observed::complete`].
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// Copies of workloads: those with a proxy and those behind a service.
    pub(crate) instances: watch::Receiver<Instances>,
    /// Services, policies and canaries.
    pub(crate) declared: watch::Receiver<Arc<Declared>>,
    /// What canaries' statuses remember.
    pub(crate) statuses: watch::Receiver<Arc<Statuses>>,
    /// What a writer of statuses must know of each object.
    pub(crate) kept: watch::Receiver<Arc<BTreeMap<ObjectId, Kept>>>,
    /// The namespaces and their labels.
    pub(crate) namespaces: watch::Receiver<Arc<NamespaceLabels>>,
    /// Namespaces whose pods join the mesh unless they say otherwise.
    pub(crate) joined: watch::Receiver<Arc<BTreeSet<Namespace>>>,
    /// What decides about restarts; `None` until all of it was listed, which nothing else waits for.
    pub(crate) workloads: watch::Receiver<Option<Arc<Workloads>>>,
    missing: watch::Receiver<Vec<&'static str>>,
}

/// What was observed, for tests that observe nothing.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) statuses: Statuses,
    pub(crate) kept: BTreeMap<ObjectId, Kept>,
}

impl Observed {
    /// What stays as it is for ever.
    #[cfg(test)]
    pub(crate) fn of(seen: Seen) -> Observed {
        Observed {
            instances: watch::Sender::default().subscribe(),
            declared: watch::Sender::default().subscribe(),
            statuses: watch::Sender::new(Arc::new(seen.statuses)).subscribe(),
            kept: watch::Sender::new(Arc::new(seen.kept)).subscribe(),
            namespaces: watch::Sender::default().subscribe(),
            joined: watch::Sender::default().subscribe(),
            workloads: watch::Sender::default().subscribe(),
            missing: watch::Sender::default().subscribe(),
        }
    }

    /// The kinds of objects that were not listed completely yet.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        self.missing.borrow().clone()
    }

    /// Waits until everything was listed once. For ever, if the watch has ended before.
    pub(crate) async fn complete(&self) {
        let mut missing = self.missing.clone();
        if missing.wait_for(Vec::is_empty).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether Deployments are watched: who restarts none does not need them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Restarts {
    /// They are watched, and [`Observed::workloads`] is told.
    Watched,
    /// They are not.
    Ignored,
}

/// Watches until shutdown; to be spawned. What it sees is told through [`Observed`].
pub(crate) fn watch(
    client: &Client,
    system_namespace: Namespace,
    restarts: Restarts,
    shutdown: CancellationToken,
) -> (Observed, impl Future<Output = ()> + Send + use<>) {
    let mut news: SelectAll<BoxStream<'static, News>> = SelectAll::new();
    news.push(follow(client, News::Service));
    news.push(follow(client, News::EndpointSlice));
    news.push(follow(client, News::Pod));
    news.push(follow(client, News::Namespace));
    news.push(follow(client, News::MeshPolicy));
    news.push(follow(client, News::Canary));
    if restarts == Restarts::Watched {
        news.push(follow(client, News::Deployment));
        let only = watcher::Config::default().fields(&format!("metadata.name={PASS}"));
        news.push(follow_some(client, only, News::RoleBinding));
    }
    let (cluster, observed) = Cluster::new(system_namespace);
    (observed, cluster.run(news, shutdown))
}

#[cfg(test)]
mod tests;
