//! Where the mesh is that a command is about: on this host, behind the socket of its operator, or in a Kubernetes cluster.

use super::{client::Client, cluster::Cluster};
use crate::{
    args::Where,
    local::view::{CanaryView, PolicyView},
};
use airlane_core::rollout::Asked;
use anyhow::bail;
use std::path::Path;

/// A mesh that can be asked.
pub(crate) enum Mesh {
    /// The one of this host.
    Host(Client),
    /// The one of a cluster. What its API server does not know cannot be asked for.
    Cluster(Cluster),
}

impl Mesh {
    /// The cluster if that is said; else the mesh of this host if one answers; else the cluster of the kubeconfig, if
    /// there is one.
    pub(crate) async fn find(place: &Where, state: &Path) -> anyhow::Result<Mesh> {
        let host = Client::new(state);
        if place.is_cluster() {
            return Ok(Mesh::Cluster(Cluster::connect(place).await?));
        }
        if !host.answers().await
            && let Ok(cluster) = Cluster::connect(place).await
        {
            return Ok(Mesh::Cluster(cluster));
        }
        Ok(Mesh::Host(host))
    }

    /// The mesh of this host, for `what` only its operator knows.
    pub(crate) fn host(&self, what: &str) -> anyhow::Result<&Client> {
        match self {
            Mesh::Host(client) => Ok(client),
            Mesh::Cluster(_) => bail!(
                "{what} of a cluster cannot be shown yet: `airlane get policies` and `airlane get canaries` can, and \
                 `airlane check` says how the mesh is; for the mesh of this host name its state directory with --state"
            ),
        }
    }

    pub(crate) async fn policies(&self) -> anyhow::Result<Vec<PolicyView>> {
        match self {
            Mesh::Host(client) => Ok(client.get("/v1/policies").await?),
            Mesh::Cluster(cluster) => cluster.policies().await,
        }
    }

    pub(crate) async fn canaries(&self) -> anyhow::Result<Vec<CanaryView>> {
        match self {
            Mesh::Host(client) => Ok(client.get("/v1/canaries").await?),
            Mesh::Cluster(cluster) => cluster.canaries().await,
        }
    }

    /// Tells a rollout what to do.
    pub(crate) async fn ask(&self, canary: &CanaryView, asked: Asked) -> anyhow::Result<()> {
        match self {
            Mesh::Host(client) => {
                let verb = match asked {
                    Asked::Pause => "pause",
                    Asked::Resume => "resume",
                    Asked::Promote => "promote",
                    Asked::Abort => "abort",
                    Asked::Retry => "retry",
                };
                let path = format!("/v1/canaries/{}/{}/{verb}", canary.namespace, canary.name);
                Ok(client.post::<()>(&path, &()).await?)
            }
            Mesh::Cluster(cluster) => cluster.ask(canary, asked).await,
        }
    }
}
