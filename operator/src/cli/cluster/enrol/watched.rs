//! The cluster while a command runs: what is seen of it, and what has to be asked of its API server.

use super::moment::Moment;
use crate::{
    args::Where,
    cli::cluster::{
        Cluster,
        rollout::{Standing, standing},
    },
    enrol::{
        decide::{Left, Trial},
        hands::Hands,
        ties::{judged, ties},
    },
    observe::{
        kubernetes::{
            self, Observed, Restarts,
            owner::{Kind, Workload},
        },
        world::{self, MeshSettings},
    },
};
use airlane_core::{
    compile::{Compiled, compile},
    id::{Namespace, TrustDomain},
    world::World,
};
use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long the first look may take.
pub(super) const LOOK: Duration = Duration::from_secs(30);
/// How often it is looked whether what is waited for has come.
pub(super) const POLL: Duration = Duration::from_millis(250);
/// How long proxies are given to acknowledge the policies that hold.
const ACKNOWLEDGE: Duration = Duration::from_secs(30);

/// A cluster that is watched while the command runs.
pub(super) struct Watched {
    pub(super) cluster: Cluster,
    pub(super) hands: Hands,
    pub(super) observed: Observed,
    /// Ends the watch.
    _ending: DropGuard,
}

impl Watched {
    pub(super) async fn begin(place: &Where) -> anyhow::Result<Watched> {
        let cluster = Cluster::connect(place).await?;
        // What may not be seen is told now, by whoever refuses it.
        let pods: Api<Pod> = Api::all(cluster.client.clone());
        pods.list_metadata(&ListParams::default().limit(1))
            .await
            .context("cannot list the pods of the cluster")?;
        let shutdown = CancellationToken::new();
        let (observed, watching) =
            kubernetes::watch(&cluster.client, cluster.system.clone(), Restarts::Watched, shutdown.clone());
        tokio::spawn(watching);
        let mut workloads = observed.workloads.clone();
        let complete = async {
            observed.complete().await;
            workloads.wait_for(Option::is_some).await.is_ok()
        };
        if timeout(LOOK, complete).await != Ok(true) {
            let missing = observed.missing();
            let missing =
                if missing.is_empty() { "Deployments, RoleBindings".to_owned() } else { missing.join(", ") };
            bail!("not listed within {LOOK:?}: {missing}; may you list them in all namespaces?");
        }
        let hands = Hands::new(cluster.client.clone(), cluster.system.clone());
        Ok(Watched { cluster, hands, observed, _ending: shutdown.drop_guard() })
    }

    pub(super) fn moment(&self) -> anyhow::Result<Moment> {
        let (world, compiled) = self.meaning()?;
        let workloads =
            self.observed.workloads.borrow().clone().context("the workloads are not known any more")?;
        Ok(Moment {
            workloads,
            namespaces: self.observed.namespaces.borrow().clone(),
            ties: ties(&world, &compiled.mesh),
            judged: judged(&world),
            system: self.cluster.system.clone(),
        })
    }

    /// What policies mean, as the operator finds it.
    fn meaning(&self) -> anyhow::Result<(World, Compiled)> {
        let settings = MeshSettings {
            // Nothing that is asked here depends on whose identities they are.
            trust_domain: TrustDomain::parse("airlane.local")?,
            system_namespace: self.cluster.system.clone(),
            cluster_domain: None,
        };
        let (declared, instances) =
            (self.observed.declared.borrow().clone(), self.observed.instances.borrow().clone());
        let statuses = self.observed.statuses.borrow().clone();
        let world = world::assemble(&settings, &declared, &instances, &statuses, None);
        let compiled = compile(&world);
        Ok((world, compiled))
    }

    /// Why new pods of a workload would not be in the mesh, if it can be told.
    pub(super) async fn try_joining(
        &self,
        namespace: &Namespace,
        workload: &Workload,
        asks: bool,
    ) -> anyhow::Result<Option<String>> {
        match workload.kind {
            Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet => {}
            Kind::Pod => return Ok(Some(Left::NoController.to_string())),
            Kind::Job | Kind::Other => {
                return Ok(Some("its pods are replaced by whatever controls it".to_owned()));
            }
        }
        let object = self.hands.read(namespace.as_str(), workload).await?;
        if let Standing::Never(why) = standing(workload.kind, &object) {
            return Ok(Some(why.to_owned()));
        }
        match self.hands.try_pod(namespace.as_str(), workload, asks).await {
            Ok(Trial::Passed) => Ok(None),
            Ok(Trial::Refused(why)) => Ok(Some(Left::Refused(why).to_string())),
            Err(error) => Err(error).with_context(|| format!("a pod of {workload} cannot be tried")),
        }
    }

    /// Waits until all proxies run what policies say now: a door that is still shut for those without a sidecar would
    /// refuse whoever leaves first.
    pub(super) async fn wait_for_acknowledgements(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + ACKNOWLEDGE;
        loop {
            let policies = self.cluster.policies(None).await?;
            let late = policies.iter().find(|it| it.programmed.acknowledged < it.programmed.targeted);
            let Some(late) = late else { return Ok(()) };
            if Instant::now() >= deadline {
                bail!(
                    "nothing was changed: MeshPolicy {}/{} is acknowledged by {} of {} proxies; `kubectl describe` it, and \
                     try again",
                    late.namespace,
                    late.name,
                    late.programmed.acknowledged,
                    late.programmed.targeted
                );
            }
            sleep(POLL).await;
        }
    }
}
