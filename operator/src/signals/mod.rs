//! What proxies report: totals each second by OpenTelemetry, failures within a tenth of a second by access log.
//!
//! Reports are untrusted until their sender is known, and count only for destinations published to it. The
//! receivers translate; [`intake::Intake`] keeps the books.

pub(crate) mod access_log;
mod denial;
pub(crate) mod gate;
pub(crate) mod intake;
pub(crate) mod metrics;

use crate::{members::Members, tls::Peer};
use airlane_core::{id::ClusterName, mesh::Mesh};
use intake::Intake;
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;
use tonic::Status;

/// The books, shared by the receivers and the rollouts that read them.
#[derive(Clone)]
pub(crate) struct Signals {
    intake: Arc<Mutex<Intake>>,
    published: watch::Receiver<Arc<HashSet<ClusterName>>>,
    failures: Arc<tokio::sync::Notify>,
}

impl Signals {
    /// Empty books that accept evidence about the clusters in `published`.
    pub(crate) fn new(published: watch::Receiver<Arc<HashSet<ClusterName>>>) -> Self {
        Signals { intake: Arc::default(), published, failures: Arc::default() }
    }

    /// Reads or writes the books; never held across an await.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Intake) -> T) -> T {
        f(&mut self.intake.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a cluster is published, so that evidence about it may count.
    pub(crate) fn is_published(&self, cluster: &ClusterName) -> bool {
        self.published.borrow().contains(cluster)
    }

    /// Returns once a failure was logged after the last call.
    pub(crate) async fn failure_logged(&self) {
        self.failures.notified().await;
    }

    fn announce_failure(&self) {
        self.failures.notify_one();
    }
}

/// A certificate alone does not prove that its bearer is still in the mesh.
fn registered(members: &dyn Members, peer: &Peer) -> Result<(), Status> {
    match members.instance_of(peer) {
        Some(_) => Ok(()),
        None => Err(Status::permission_denied("this instance is not registered; join again")),
    }
}

/// The clusters of a mesh: what evidence may be about.
pub(crate) fn clusters_of(mesh: &Mesh) -> HashSet<ClusterName> {
    mesh.destinations
        .values()
        .flat_map(|destination| destination.clusters.iter())
        .map(|cluster| cluster.name.clone())
        .collect()
}
