//! `airlane up`: the control plane of one host, put together.

use super::{Tasks, allow_files, private_directory, ready, system_namespace};
use crate::{
    apply::standalone::Recorder,
    args::Up,
    ca::Ca,
    clock::{Clock, SystemClock},
    control::{self, Pulse},
    fleet::Fleet,
    join::{self, JoinTokens, OperatorAt, Parts, Wire},
    local::{
        host::{self, Host},
        server::{self, Local},
    },
    observe::{standalone::Directory, world::MeshSettings},
    readiness,
    registry::{Heartbeats, Registry},
    rollouts, serve,
    signals::{
        Signals,
        access_log::{FailureLog, MESSAGE_BYTES_MAX},
        denial::Told,
        gate::Gate,
        metrics::Totaliser,
    },
    store::Store,
    tls::ServerTls,
    xds::Publisher,
};
use airlane_core::id::TrustDomain;
use airlane_envoy::lower::{Lowerer, Settings};
use anyhow::Context;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use jiff::SignedDuration;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::MetricsServiceServer;
use std::{collections::HashSet, path::Path, sync::Arc};
use tokio::sync::watch;

/// The trust domain of a mesh on one host.
const TRUST_DOMAIN: &str = "airlane.local";

/// Heartbeats that may be missed before an instance is taken out.
const SILENCES: u32 = 5;

/// Runs the control plane until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or the task that ended though nobody asked it to.
pub(crate) async fn up(args: &Up, state: &Path) -> anyhow::Result<()> {
    private_directory(state)?;
    allow_files();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let mesh = MeshSettings {
        trust_domain: TrustDomain::parse(TRUST_DOMAIN)?,
        system_namespace: system_namespace()?,
        cluster_domain: None,
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

    let mut tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    let publisher = Publisher::new(clock.clone());
    let fleet = Fleet::new(publisher.clone(), clock.clone());
    let (clusters, published_clusters) = watch::channel(Arc::new(HashSet::new()));
    let (picture_sender, picture) = watch::channel(None);
    let (declared_sender, declared) = watch::channel(Arc::new(directory.declared().clone()));
    // On one host whoever publishes judges as well.
    let (_judged, judged) = watch::channel(true);
    let signals = Signals::new(published_clusters);
    let lowerer =
        Lowerer::new(Settings { bundle_pem: ca.bundle_pem(), fail_safe_after: args.fail_safe_after });

    let inputs = control::Inputs {
        declared,
        instances: registry.watch(),
        statuses: recorder.watch(),
        judged,
        bundle: ca.bundle(),
    };
    let outputs = control::Outputs {
        publisher: publisher.clone(),
        picture: picture_sender,
        clusters,
        pulse: Pulse::new(clock.clone()),
    };
    // Others have certificates from before, and nobody knows who.
    let forgotten = store.is_new() && !ca.is_new();
    let complete = async move {
        if forgotten {
            tracing::warn!(wait = ?control::RECOLLECTION, "state.db is lost; proxies keep what they have while workloads join again");
            tokio::time::sleep(control::RECOLLECTION).await;
        }
    };
    tasks.spawn_sure(
        "the control loop",
        control::run(mesh, lowerer, inputs, outputs, complete, shutdown.clone()),
    );
    let ending = shutdown.clone();
    tasks.spawn("the directory watch", async move { Ok(directory.watch(declared_sender, ending).await?) });
    let (registering, ending) = (registry.clone(), shutdown.clone());
    tasks.spawn_sure("the registry", async move { registering.run(ending).await });
    tasks.spawn_sure(
        "readiness",
        readiness::announce(picture.clone(), publisher.clone(), registry.clone(), shutdown.clone()),
    );
    tasks.spawn_sure(
        "the word for who is connected",
        readiness::vouch(publisher.clone(), registry.clone(), shutdown.clone()),
    );
    let judging = rollouts::Rollouts {
        picture: picture.clone(),
        signals: signals.clone(),
        fleet: fleet.clone(),
        memory: Arc::new(recorder.clone()),
        clock: clock.clone(),
    };
    tasks.spawn_sure("the rollouts", judging.run(shutdown.clone()));
    let local = Local {
        picture: picture.clone(),
        signals: signals.clone(),
        publisher: publisher.clone(),
        fleet: fleet.clone(),
        members: registry.clone(),
        tls: tls.clone(),
    };
    let answers = host::router(Host {
        local,
        recorder,
        store: store.clone(),
        ca: ca.clone(),
        operator_at: at,
        clock: clock.clone(),
    });
    let ending = shutdown.clone();
    tasks.spawn("the command socket", async move { Ok(server::serve(commands, answers, ending).await?) });
    let leaving = readiness::Leaving { picture, fleet };
    let joining = Wire::new(Parts {
        ca: ca.clone(),
        door: Arc::new(JoinTokens::new(store.clone(), registry.clone(), &ca, clock.clone())),
        members: registry.clone(),
        rotation: Arc::new(leaving),
        clock: clock.clone(),
        heartbeat_every: heartbeats.every,
        operator: (address.ip().to_string(), address.port()),
    });
    let routes = tonic::service::Routes::new(airlane_wire::operator::OperatorServer::new(Arc::new(joining)))
        .add_service(publisher.service(Arc::new(|_| true), shutdown.clone()))
        .add_service(Gate::before(MetricsServiceServer::new(Totaliser {
            signals: signals.clone(),
            members: registry.clone(),
            clock: clock.clone(),
        })))
        .add_service(
            AccessLogServiceServer::new(FailureLog {
                signals,
                members: registry,
                clock,
                told: Told::default(),
                shutdown: shutdown.clone(),
            })
            .max_decoding_message_size(MESSAGE_BYTES_MAX),
        );
    let (keeping, ending) = (tls.clone(), shutdown.clone());
    tasks.spawn_sure("the operator's own certificate", async move { keeping.keep_valid(ending).await });
    tasks.spawn_sure("the sidecars' port", serve::serve(listener, tls, routes, shutdown));

    ready(&address.to_string());
    let ended = tasks.run().await;
    store.close().await;
    ended
}
