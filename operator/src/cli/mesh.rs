//! Where the mesh is that a command is about: on this host, behind the socket of its operator, or in a Kubernetes cluster.

use super::{
    Wanted,
    client::Client,
    cluster::{Cluster, replicas::Replicas},
    tell,
};
use crate::{
    args::Where,
    local::{
        root::{ReplacementView, RootsView},
        server::{CertificateView, ResourceView, RotateRequest},
        view::{CanaryView, EffectiveView, EndpointView, ErrorView, PolicyView, ProxyView, ServiceView},
    },
};
use airlane_core::rollout::Asked;
use anyhow::bail;
use serde::de::DeserializeOwned;
use std::{path::Path, time::Duration};
use tokio::sync::OnceCell;

/// A mesh that can be asked.
pub(crate) enum Mesh {
    /// The one of this host.
    Host(Client),
    /// The one of a cluster.
    Cluster(InCluster),
}

/// The mesh of a cluster: its API server knows policies and canaries, its operator the rest.
pub(crate) struct InCluster {
    pub(crate) cluster: Cluster,
    replicas: OnceCell<Replicas>,
}

impl InCluster {
    /// The operator's replicas, looked up when they are needed first.
    async fn replicas(&self) -> anyhow::Result<&Replicas> {
        self.replicas.get_or_try_init(|| Replicas::find(&self.cluster)).await
    }
}

impl Mesh {
    /// The cluster if that is said; else the mesh of this host if one answers; else the cluster of the kubeconfig, if
    /// there is one.
    pub(crate) async fn find(place: &Where, state: &Path) -> anyhow::Result<Mesh> {
        let of = |cluster| Mesh::Cluster(InCluster { cluster, replicas: OnceCell::new() });
        let host = Client::new(state);
        if place.is_cluster() {
            return Ok(of(Cluster::connect(place).await?));
        }
        if !host.answers().await
            && let Ok(cluster) = Cluster::connect(place).await
        {
            // Nobody said so: what follows may be about another mesh than was meant.
            tell(&format!("no operator answers on this host: this is about {}", cluster.called));
            return Ok(of(cluster));
        }
        Ok(Mesh::Host(host))
    }

    /// The same mesh, for somebody who looks at it again: where its operator is may have changed.
    pub(crate) fn look_again(&mut self) {
        if let Mesh::Cluster(mesh) = self {
            mesh.replicas = OnceCell::new();
        }
    }

    /// How long to wait before something is looked at again: an API server serves others, too.
    pub(crate) fn pause(&self) -> Duration {
        match self {
            Mesh::Host(_) => Duration::from_millis(100),
            Mesh::Cluster(_) => Duration::from_secs(1),
        }
    }

    /// The mesh of this host, for `what` there is only there.
    pub(crate) fn host(&self, what: &str) -> anyhow::Result<&Client> {
        match self {
            Mesh::Host(client) => Ok(client),
            Mesh::Cluster(_) => bail!(
                "there are no {what} in a cluster: pods join with the tokens of their service accounts; for the mesh of \
                 this host name its state directory with --state"
            ),
        }
    }

    /// A view that every replica of an operator has, and the leader at its best.
    async fn view<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        Ok(match self {
            Mesh::Host(client) => client.get(path).await?,
            Mesh::Cluster(mesh) => mesh.replicas().await?.leader(path).await?,
        })
    }

    pub(crate) async fn services(&self) -> anyhow::Result<Vec<ServiceView>> {
        self.view("/v1/services").await
    }

    pub(crate) async fn endpoints(&self) -> anyhow::Result<Vec<EndpointView>> {
        self.view("/v1/endpoints").await
    }

    /// The values in force for a service.
    pub(crate) async fn effective(&self, service: &ServiceView) -> anyhow::Result<Vec<EffectiveView>> {
        self.view(&format!("/v1/effective/{}/{}", service.namespace, service.name)).await
    }

    pub(crate) async fn proxies(&self) -> anyhow::Result<Vec<ProxyView>> {
        Ok(match self {
            Mesh::Host(client) => client.get("/v1/proxies").await?,
            Mesh::Cluster(mesh) => mesh.replicas().await?.proxies().await?,
        })
    }

    /// What is published to a proxy.
    pub(crate) async fn published_to(&self, proxy: &ProxyView) -> anyhow::Result<Vec<ResourceView>> {
        self.view(&format!("/v1/proxies/{}/config", proxy.instance)).await
    }

    pub(crate) async fn certificates(&self) -> anyhow::Result<Vec<CertificateView>> {
        Ok(match self {
            Mesh::Host(client) => client.get("/v1/certificates").await?,
            Mesh::Cluster(mesh) => mesh.replicas().await?.certificates().await?,
        })
    }

    /// Asks sidecars for new certificates; how many there are.
    pub(crate) async fn rotate(&self, request: &RotateRequest) -> anyhow::Result<usize> {
        Ok(match self {
            Mesh::Host(client) => client.post("/v1/certificates/rotate", request).await?,
            Mesh::Cluster(mesh) => mesh.replicas().await?.rotate(request).await?,
        })
    }

    /// The roots that are trusted.
    pub(crate) async fn roots(&self) -> anyhow::Result<RootsView> {
        self.view("/v1/root").await
    }

    /// Begins to replace the root.
    pub(crate) async fn rotate_root(&self) -> anyhow::Result<Option<ReplacementView>> {
        match self {
            Mesh::Host(_) => bail!(
                "the root of a host's mesh is not replaced while it runs: stop the operator, remove the folder `ca` of its \
                 state directory, and start it and then every workload again"
            ),
            Mesh::Cluster(mesh) => Ok(mesh.replicas().await?.rotate_root().await?),
        }
    }

    /// The policies, or at least those that are wanted.
    pub(crate) async fn policies(&self, wanted: Option<&Wanted>) -> anyhow::Result<Vec<PolicyView>> {
        match self {
            Mesh::Host(client) => Ok(client.get("/v1/policies").await?),
            Mesh::Cluster(mesh) => mesh.cluster.policies(wanted).await,
        }
    }

    /// The rollouts, or at least those that are wanted.
    pub(crate) async fn canaries(&self, wanted: Option<&Wanted>) -> anyhow::Result<Vec<CanaryView>> {
        match self {
            Mesh::Host(client) => Ok(client.get("/v1/canaries").await?),
            Mesh::Cluster(mesh) => mesh.cluster.canaries(wanted).await,
        }
    }

    /// What is wrong in the files of a host; a cluster keeps no files.
    pub(crate) async fn errors(&self) -> anyhow::Result<Vec<ErrorView>> {
        match self {
            Mesh::Host(client) => Ok(client.get("/v1/errors").await?),
            Mesh::Cluster(_) => Ok(Vec::new()),
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
            Mesh::Cluster(mesh) => mesh.cluster.ask(canary, asked).await,
        }
    }
}
