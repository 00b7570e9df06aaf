//! One run of the agent, from the first word to the operator to the last.

use crate::{
    admin::Admin,
    application::{self, Place},
    args::Run,
    envoy::{self, Envoy},
    health::{self, Health, Probe},
    join::Source,
    link,
    membership::{Inputs, Membership, Outputs},
    outliers::Outliers,
    ports::{self, ClaimedPort},
    process::{self, Process},
    rundir::RunDir,
    sds,
    stopping::Stopping,
};
use airlane_wire::message::{JoinRequest, Port};
use anyhow::Context;
use nix::sys::prctl;
use std::{env, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// The longest Envoy may take to have all of its configuration before the application starts.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest to wait until the callers know that this instance goes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest to wait for answers that callers still expect.
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often they are counted.
const IN_FLIGHT_INTERVAL: Duration = Duration::from_millis(100);
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
    let sidecar = Sidecar::start(membership, binary, run.concurrency, Arc::clone(&dir))?;
    let outcome = sidecar.serve(&run, &place, &stopping).await;
    sidecar.stop(outcome, &stopping, &Admin::on(dir.admin_socket())).await
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

/// What runs beside the application.
struct Sidecar {
    health: watch::Sender<Health>,
    envoy_ready: watch::Receiver<bool>,
    envoy: JoinHandle<()>,
    stop_envoy: CancellationToken,
    membership: JoinHandle<std::io::Result<Membership>>,
    stop_membership: CancellationToken,
}

/// How serving ended.
enum Outcome {
    /// The application ended by itself, with this code.
    Ended(u8),
    /// Somebody asked to stop; the application runs, if there is one.
    Asked(Option<Process>),
}

impl Sidecar {
    fn start(
        membership: Membership,
        binary: std::path::PathBuf,
        concurrency: u32,
        dir: Arc<RunDir>,
    ) -> anyhow::Result<Self> {
        let secrets = sds::Publisher::new(membership.leaf());
        let owner = dir.owner().context("cannot read the run folder")?;
        let serving = secrets.serve(&dir.agent_socket(), owner).context("cannot serve secrets to Envoy")?;
        tokio::spawn(serving);
        let (ready, envoy_ready) = watch::channel(false);
        let (bootstraps, new_bootstraps) = watch::channel(membership.bootstrap().to_owned());
        let health = watch::Sender::new(Health::starting());
        let inputs = Inputs {
            health: health.subscribe(),
            envoy_ready: envoy_ready.clone(),
            outliers: Outliers::following(dir.event_log()),
        };
        let outputs = Outputs { secrets, bootstraps };
        let (stop_envoy, stop_membership) = (CancellationToken::new(), CancellationToken::new());
        let envoy = Envoy { binary, concurrency, dir };
        let stop = stop_envoy.clone();
        Ok(Self {
            health,
            envoy_ready,
            envoy: tokio::spawn(async move { envoy.keep_running(ready, new_bootstraps, stop).await }),
            stop_envoy,
            membership: tokio::spawn(membership.keep(inputs, outputs, stop_membership.clone())),
            stop_membership,
        })
    }

    /// Runs the application once Envoy is ready.
    async fn serve(&self, run: &Run, place: &Place, stopping: &Stopping) -> anyhow::Result<Outcome> {
        let mut ready = self.envoy_ready.clone();
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
            () = health::watch(probe, self.health.clone()) => Ok(Outcome::Asked(application)),
            Some(ended) = ended(&mut application) => {
                let status = ended.context("cannot wait for the application")?;
                tracing::info!(%status, "the application ended");
                Ok(Outcome::Ended(process::exit_code(status)))
            }
            () = stopping.asked() => Ok(Outcome::Asked(application)),
        }
    }

    /// Takes the instance out of the mesh, then stops everything: callers first, the application after them,
    /// Envoy last.
    async fn stop(
        self,
        outcome: anyhow::Result<Outcome>,
        stopping: &Stopping,
        admin: &Admin,
    ) -> anyhow::Result<u8> {
        self.stop_membership.cancel();
        let membership = self.membership.await.context("the membership broke off")?;
        let goodbye = async {
            if let Ok(membership) = &membership {
                drain(membership).await;
            }
            finish_requests(admin).await;
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
        if let Ok(membership) = &membership
            && let Some(Err(status)) = stopping.unless_hurried(membership.leave()).await
        {
            tracing::warn!(error = link::why(&status), "the operator was not told; it will notice by itself");
        }
        self.stop_envoy.cancel();
        self.envoy.await.context("the watch over Envoy broke off")?;
        code
    }
}

/// The end of the application; `None` at once if there is none.
async fn ended(application: &mut Option<Process>) -> Option<std::io::Result<std::process::ExitStatus>> {
    match application {
        Some(application) => Some(application.ended().await),
        None => None,
    }
}

async fn drain(membership: &Membership) {
    match membership.drain(DRAIN_TIMEOUT).await {
        Ok(told) => tracing::info!(
            acknowledged = told.acknowledged,
            outstanding = told.outstanding,
            "callers know that this instance goes"
        ),
        Err(status) => {
            tracing::warn!(error = link::why(&status), "callers could not be told that this instance goes");
        }
    }
}

async fn finish_requests(admin: &Admin) {
    if let Err(error) = admin.drain_inbound().await {
        tracing::warn!(%error, "cannot ask callers to go elsewhere");
        return;
    }
    let deadline = Instant::now() + IN_FLIGHT_TIMEOUT;
    loop {
        match admin.inbound_active().await {
            Ok(0) => return,
            Ok(active) if Instant::now() >= deadline => {
                tracing::warn!(active, "some callers still wait for an answer");
                return;
            }
            Ok(active) => {
                tracing::debug!(active, "callers wait for an answer");
                sleep(IN_FLIGHT_INTERVAL).await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot count the callers that wait for an answer");
                return;
            }
        }
    }
}
