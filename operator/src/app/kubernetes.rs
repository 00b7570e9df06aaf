//! `airlane operator`: the control plane of a Kubernetes cluster, put together.

use super::{Tasks, private_directory, ready};
use crate::{
    args::Operator,
    ca::Ca,
    clock::{Clock, SystemClock},
    control, health,
    observe::{kubernetes, world::MeshSettings},
    serve,
    tls::ServerTls,
    xds::Publisher,
};
use airlane_envoy::lower::{Lowerer, Settings};
use anyhow::Context;
use jiff::SignedDuration;
use std::{collections::HashSet, path::Path, sync::Arc};
use tokio::sync::watch;

/// Runs the control plane until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or the task that ended though nobody asked it to.
pub(crate) async fn operator(args: &Operator, state: &Path) -> anyhow::Result<()> {
    private_directory(state)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let mesh = MeshSettings {
        trust_domain: args.trust_domain.clone(),
        system_namespace: args.namespace.clone(),
        cluster_domain: Some(args.cluster_domain.clone()),
    };
    let client =
        kube::Client::try_default().await.context("there is no cluster: run it in one, or set KUBECONFIG")?;
    let ca = Arc::new(Ca::open(
        state,
        mesh.trust_domain.clone(),
        SignedDuration::try_from(args.leaf_ttl)?,
        clock.now(),
    )?);
    let tls = ServerTls::new(ca.clone(), clock.clone()).context("cannot certify the operator itself")?;
    let listener = serve::listen(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;

    let mut tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    let publisher = Publisher::new(clock.clone());
    let (clusters, _published_clusters) = watch::channel(Arc::new(HashSet::new()));
    let (picture_sender, picture) = watch::channel(None);
    let (_judged, judged) = watch::channel(true);
    let lowerer =
        Lowerer::new(Settings { bundle_pem: ca.bundle_pem(), fail_safe_after: args.fail_safe_after });

    let (observed, watching) = kubernetes::watch(&client, mesh.system_namespace.clone(), shutdown.clone());
    tasks.spawn_sure("the watch of the cluster", watching);
    let inputs = control::Inputs {
        declared: observed.declared.clone(),
        instances: observed.instances.clone(),
        statuses: observed.statuses.clone(),
        judged,
    };
    let outputs = control::Outputs { publisher: publisher.clone(), picture: picture_sender, clusters };
    let listed = observed.clone();
    let complete = async move { listed.complete().await };
    tasks.spawn_sure(
        "the control loop",
        control::run(mesh, lowerer, inputs, outputs, complete, shutdown.clone()),
    );
    let waits_for: health::Readiness = Arc::new(move || {
        picture.borrow().is_none().then(|| match &*observed.missing() {
            [] => "the first configuration is being made".to_owned(),
            missing => format!("not listed yet: {}", missing.join(", ")),
        })
    });
    let (health, ending) = (args.health, shutdown.clone());
    tasks.spawn("the health port", async move {
        health::serve(health, waits_for, ending).await.with_context(|| format!("cannot listen on {health}"))
    });
    let routes = tonic::service::Routes::new(publisher.service(shutdown.clone()));
    let (keeping, ending) = (tls.clone(), shutdown.clone());
    tasks.spawn_sure("the operator's own certificate", async move { keeping.keep_valid(ending).await });
    tasks.spawn_sure("the sidecars' port", serve::serve(listener, tls, routes, shutdown));

    ready(&address.to_string());
    tasks.run().await
}
