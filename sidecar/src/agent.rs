//! One run of the agent, from the first word to the operator to the last.

use crate::{
    application::{self, Place},
    args::Run,
    envoy::{self, Envoy},
    health::{self, Probe},
    join::Source,
    membership::Membership,
    ports::{self, ClaimedPort},
    process::{self, Process},
    rundir::RunDir,
    sidecar::Sidecar,
    stopping::Stopping,
};
use airlane_wire::message::{JoinRequest, Port};
use anyhow::Context;
use nix::sys::prctl;
use std::{env, path::Path, sync::Arc, time::Duration};
use tokio::time::timeout;

/// The longest Envoy may take to have all of its configuration before the application starts.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest to wait until the callers know that this instance goes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest to wait for answers that callers still expect.
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the application may take to end once asked.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Runs until the application ends or somebody asks to stop; gives the exit code.
pub(crate) async fn run(run: Run) -> anyhow::Result<u8> {
    // The key is in this memory: no core dump, no reader among the user's other processes.
    prctl::set_dumpable(false).context("cannot protect the memory of this process")?;
    let stopping = Stopping::listen().context("cannot listen to signals")?;
    let binary = envoy::find()?;
    let source = Source::of(run.join.clone())?;
    source.read()?;
    let dir = Arc::new(RunDir::make()?);
    let claims = Claims::make(&run)?;
    let request = join_request(&run, &dir, &claims);

    let membership = tokio::select! {
        joined = Membership::join(source, request) => joined?,
        () = stopping.asked() => return Ok(0),
    };
    tracing::info!(instance = membership.instance(), "joined the mesh");
    let place = Place {
        namespace: run.namespace.clone(),
        service: run.service.clone(),
        version: run.revision.clone(),
        instance: membership.instance().into(),
        outbound_port: claims.outbound.number,
    };
    let sidecar = Sidecar::start(membership, Envoy { binary, concurrency: run.concurrency, dir })?;
    let outcome = serve(&sidecar, &run, &place, &stopping).await;
    stop(sidecar, outcome, &stopping).await
}

/// The ports of one run.
struct Claims {
    outbound: ClaimedPort,
    /// As many as the application has.
    mesh: Vec<ClaimedPort>,
}

impl Claims {
    fn make(run: &Run) -> Result<Self, ports::NoPort> {
        let outbound = ports::outbound(run.outbound_port)?;
        let mesh = run.ports.iter().map(|_| ports::any(run.address)).collect::<Result<_, _>>()?;
        Ok(Self { outbound, mesh })
    }
}

fn join_request(run: &Run, dir: &RunDir, claims: &Claims) -> JoinRequest {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let ports = run.service_ports().zip(&claims.mesh).map(|((service, port), mesh)| Port {
        service: service.into(),
        app: port.app.into(),
        mesh: mesh.number.into(),
        protocol: run.protocol.as_str().into(),
    });
    JoinRequest {
        namespace: run.namespace.clone(),
        service: run.service.clone(),
        revision: run.revision.clone(),
        address: run.address.to_string(),
        ports: ports.collect(),
        outbound_port: claims.outbound.number.into(),
        agent_socket: text(&dir.agent_socket()),
        admin_socket: text(&dir.admin_socket()),
        event_log: text(&dir.event_log()),
        sidecar_version: env!("CARGO_PKG_VERSION").into(),
        ..JoinRequest::default()
    }
}

/// How serving ended.
enum Outcome {
    /// The application ended by itself, with this code.
    Ended(u8),
    /// Somebody asked to stop; the application runs, if there is one.
    Asked(Option<Process>),
}

/// Runs the application once Envoy is ready.
async fn serve(sidecar: &Sidecar, run: &Run, place: &Place, stopping: &Stopping) -> anyhow::Result<Outcome> {
    let mut ready = sidecar.envoy_ready.clone();
    tokio::select! {
        became = timeout(READY_TIMEOUT, ready.wait_for(|ready| *ready)) => {
            let became = became.with_context(|| {
                format!("Envoy was not ready within {READY_TIMEOUT:?}; its own words above, or the operator's log, say why")
            })?;
            became.context("Envoy is not watched any more")?;
        }
        () = stopping.asked() => return Ok(Outcome::Asked(None)),
    }
    let mut application = match run.command.split_first() {
        None => None,
        Some((program, arguments)) => {
            let environment = application::environment(place, |name| env::var(name).ok());
            let started = Process::start(program, arguments, environment);
            Some(started.with_context(|| format!("cannot start {}", program.display()))?)
        }
    };
    let probe = Probe {
        ports: run.ports.iter().map(|port| port.app).collect(),
        path: run.health.clone(),
        version: run.protocol.http_version(),
    };
    tokio::select! {
        () = health::watch(probe, sidecar.health.clone()) => Ok(Outcome::Asked(application)),
        Some(ended) = ended(&mut application) => {
            let status = ended.context("cannot wait for the application")?;
            tracing::info!(%status, "the application ended");
            Ok(Outcome::Ended(process::exit_code(status)))
        }
        () = stopping.asked() => Ok(Outcome::Asked(application)),
    }
}

/// Takes the instance out of the mesh, then stops everything: callers first, the application after them, Envoy last.
async fn stop(sidecar: Sidecar, outcome: anyhow::Result<Outcome>, stopping: &Stopping) -> anyhow::Result<u8> {
    let exit = &sidecar.exit;
    let goodbye = async {
        exit.tell_callers(DRAIN_TIMEOUT).await;
        if timeout(IN_FLIGHT_TIMEOUT, exit.finish_requests()).await.is_err() {
            tracing::warn!("some callers still wait for an answer");
        }
    };
    stopping.unless_hurried(goodbye).await;
    let code = match outcome {
        Ok(Outcome::Ended(code)) => Ok(code),
        Ok(Outcome::Asked(None)) => Ok(0),
        Ok(Outcome::Asked(Some(mut application))) => {
            tracing::info!("stopping the application");
            let ended = stopping.unless_hurried(application.stop(STOP_GRACE)).await;
            ended
                .transpose()
                .context("cannot stop the application")
                .map(|ended| ended.map_or(137, process::exit_code))
        }
        Err(error) => Err(error),
    };
    sidecar.stop(stopping).await?;
    code
}

/// The end of the application; `None` at once if there is none.
async fn ended(application: &mut Option<Process>) -> Option<std::io::Result<std::process::ExitStatus>> {
    match application {
        Some(application) => Some(application.ended().await),
        None => None,
    }
}
