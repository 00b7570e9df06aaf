//! `airlane up`: the control plane of one host, put together.

use crate::{
    apply::standalone::Recorder,
    args::Up,
    ca::Ca,
    clock::{Clock, SystemClock},
    control,
    join::{self, OperatorAt, Parts, Wire},
    local::server::{self, Local},
    observe::{standalone::Directory, world::MeshSettings},
    readiness,
    registry::{Heartbeats, Registry},
    rollouts, serve,
    signals::{Signals, access_log::FailureLog, metrics::Totaliser},
    store::Store,
    tls::ServerTls,
    xds::Publisher,
};
use airlane_core::id::{BadName, Namespace, TrustDomain};
use airlane_envoy::lower::{Lowerer, Settings};
use anyhow::Context;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use jiff::SignedDuration;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::MetricsServiceServer;
use std::{
    collections::HashSet,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
};
use tokio::{signal::unix::SignalKind, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// The trust domain of a mesh on one host.
const TRUST_DOMAIN: &str = "airlane.local";

/// The namespace whose policies without target are about the whole mesh.
pub(crate) fn system_namespace() -> Result<Namespace, BadName> {
    Namespace::parse("airlane-system")
}

/// Heartbeats that may be missed before an instance is taken out.
const SILENCES: u32 = 5;

/// Runs the control plane until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or the task that ended though nobody asked it to.
pub(crate) async fn up(args: &Up, state: &Path) -> anyhow::Result<()> {
    private_directory(state)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let mesh = MeshSettings {
        trust_domain: TrustDomain::parse(TRUST_DOMAIN)?,
        system_namespace: system_namespace()?,
    };
    let directory = Directory::open(&args.dir, mesh.system_namespace.clone())?;
    let store = Store::open(state).await?;
    let ca = Arc::new(Ca::open(
        state,
        mesh.trust_domain.clone(),
        SignedDuration::try_from(args.leaf_ttl)?,
        clock.now(),
    )?);
    let tls = ServerTls::new(ca.clone(), clock.clone()).context("cannot certify the operator itself")?;
    let listener = serve::listen(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let socket = state.join("airlane.sock");
    let commands = server::listen(&socket).with_context(|| {
        format!("cannot listen on {}; --state names another state directory", socket.display())
    })?;
    let heartbeats = Heartbeats { every: args.heartbeat, expire_after: args.heartbeat * SILENCES };
    let registry = Arc::new(Registry::restore(store.clone(), heartbeats, clock.clone()).await?);
    let recorder = Recorder::open(store.clone()).await?;
    let at = OperatorAt::new(address.to_string(), &ca);
    join::leave_local_join(state, &store, at.clone(), clock.now()).await?;

    let shutdown = CancellationToken::new();
    let publisher = Publisher::new(clock.clone());
    let (clusters, published_clusters) = watch::channel(Arc::new(HashSet::new()));
    let (picture_sender, picture) = watch::channel(None);
    let (manifests_sender, manifests) = watch::channel(Arc::new(directory.manifests().clone()));
    let signals = Signals::new(published_clusters);
    let lowerer =
        Lowerer::new(Settings { bundle_pem: ca.bundle_pem(), fail_safe_after: args.fail_safe_after });

    let mut tasks = JoinSet::new();
    let inputs = control::Inputs { manifests, instances: registry.watch(), statuses: recorder.watch() };
    let outputs = control::Outputs { publisher: publisher.clone(), picture: picture_sender, clusters };
    // Others have certificates from before, and nobody knows who.
    let forgotten = store.is_new() && !ca.is_new();
    let complete = async move {
        if forgotten {
            tracing::warn!(wait = ?control::RECOLLECTION, "state.db is lost; proxies keep what they have while workloads join again");
            tokio::time::sleep(control::RECOLLECTION).await;
        }
    };
    let ending = shutdown.clone();
    tasks.spawn(async move {
        control::run(mesh, lowerer, inputs, outputs, complete, ending).await;
        anyhow::Ok("the control loop")
    });
    let ending = shutdown.clone();
    tasks.spawn(async move {
        directory.watch(manifests_sender, ending).await?;
        Ok("the directory watch")
    });
    let (registering, ending) = (registry.clone(), shutdown.clone());
    tasks.spawn(async move {
        registering.run(ending).await;
        Ok("the registry")
    });
    let announcing =
        readiness::announce(picture.clone(), publisher.clone(), registry.clone(), shutdown.clone());
    tasks.spawn(async move {
        announcing.await;
        Ok("readiness")
    });
    let vouching = readiness::vouch(publisher.clone(), registry.clone(), shutdown.clone());
    tasks.spawn(async move {
        vouching.await;
        Ok("the word for who is connected")
    });
    let judging = rollouts::Rollouts {
        picture: picture.clone(),
        signals: signals.clone(),
        publisher: publisher.clone(),
        recorder: recorder.clone(),
        clock: clock.clone(),
    };
    let ending = shutdown.clone();
    tasks.spawn(async move {
        judging.run(ending).await;
        Ok("the rollouts")
    });
    let local = Local {
        picture: picture.clone(),
        signals: signals.clone(),
        publisher: publisher.clone(),
        registry: registry.clone(),
        recorder,
        store: store.clone(),
        tls: tls.clone(),
        operator_at: at,
        clock: clock.clone(),
    };
    let ending = shutdown.clone();
    tasks.spawn(async move {
        server::serve(commands, local, ending).await.context("the command socket")?;
        Ok("the command socket")
    });
    let leaving = readiness::Leaving { picture, publisher: publisher.clone() };
    let joining = Wire::new(Parts {
        ca: ca.clone(),
        store: store.clone(),
        registry: registry.clone(),
        rotation: Arc::new(leaving),
        clock: clock.clone(),
        heartbeats,
        operator: (address.ip().to_string(), address.port()),
    });
    let routes = tonic::service::Routes::new(airlane_wire::operator::OperatorServer::new(Arc::new(joining)))
        .add_service(publisher.service(shutdown.clone()))
        .add_service(MetricsServiceServer::new(Totaliser {
            signals: signals.clone(),
            registry: registry.clone(),
            clock: clock.clone(),
        }))
        .add_service(AccessLogServiceServer::new(FailureLog {
            signals,
            registry,
            clock,
            shutdown: shutdown.clone(),
        }));
    let (keeping, ending) = (tls.clone(), shutdown.clone());
    tasks.spawn(async move {
        keeping.keep_valid(ending).await;
        Ok("the operator's own certificate")
    });
    let ending = shutdown.clone();
    tasks.spawn(async move {
        serve::serve(listener, tls, routes, ending).await;
        Ok("the sidecars' port")
    });

    ready(&address.to_string());
    let ended = tokio::select! {
        () = asked_to_stop() => None,
        ended = tasks.join_next() => ended,
    };
    shutdown.cancel();
    while tasks.join_next().await.is_some() {}
    store.close().await;
    match ended {
        None => Ok(()),
        Some(task) => Err(anyhow::anyhow!("{} ended unexpectedly", task??)),
    }
}

#[expect(clippy::print_stdout, reason = "scripts wait for this line")]
fn ready(address: &str) {
    println!("ready: sidecars join at {address}");
}

async fn asked_to_stop() {
    let Ok(mut terminate) = tokio::signal::unix::signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Makes the state directory and closes it to everybody else on the host.
fn private_directory(state: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .with_context(|| format!("cannot make the state directory {}", state.display()))?;
    std::fs::set_permissions(state, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close the state directory {} to others", state.display()))
}
