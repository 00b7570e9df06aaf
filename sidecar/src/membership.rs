//! Being a member of the mesh: let in, alive, certified, and taken out again.

use crate::{
    backoff::Backoff,
    health::Health,
    identity::{BadCertificate, KeyRequest, Leaf},
    join::{Invitation, NoJoin, Source},
    link,
    outliers::Outliers,
    sds, sockets,
};
use airlane_wire::{
    join::workload_identity,
    message::{
        AppHealth, DrainRequest, DrainResponse, HeartbeatRequest, HeartbeatResponse, JoinRequest,
        RenewRequest,
    },
    operator::OperatorClient,
};
use rustls::pki_types::UnixTime;
use std::{sync::Arc, time::Duration};
use tokio::{
    signal::unix::Signal,
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// The longest the operator may take to answer, connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// The bounds of what the operator may ask for as the time between heartbeats.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
const HEARTBEAT_MAX: Duration = Duration::from_secs(30);
/// How often Envoy's outlier events are looked for.
const OUTLIER_INTERVAL: Duration = Duration::from_millis(250);
/// How often the socket table is read; it is long on a busy host.
const EXPOSURE_INTERVAL: Duration = Duration::from_secs(10);
/// After so many failed heartbeats in a row the sidecar joins anew: it may be that only its certificate, or the
/// authority it knows, is not good any more.
const FAILURES_BEFORE_JOIN: u32 = 5;

/// Why the sidecar was not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    /// It does not know where to go.
    #[error(transparent)]
    Source(#[from] NoJoin),
    /// It could not make a key.
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    /// Its TLS could not be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The operator could not be asked.
    #[error("the operator at {address} cannot be asked: {}", link::why(.status))]
    Unreachable {
        /// Where it should be.
        address: String,
        /// What came instead of an answer.
        status: Status,
    },
    /// The operator said no.
    #[error("the operator at {address} refused: {}", .status.message())]
    Refused {
        /// Where it is.
        address: String,
        /// Its words.
        status: Status,
    },
    /// What it sent cannot be used.
    #[error("the operator's certificate cannot be used")]
    Certificate(#[source] BadCertificate),
}

impl JoinError {
    /// Whether the same attempt later may have another end.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Certificate(_))
    }

    fn of(status: Status, address: &str) -> Self {
        let address = address.to_owned();
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::Unimplemented => Self::Refused { address, status },
            _ => Self::Unreachable { address, status },
        }
    }
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    #[error("the operator did not sign: {}", link::why(.0))]
    Operator(Status),
    #[error("the operator's certificate cannot be used")]
    Certificate(#[source] BadCertificate),
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

/// What a join brings.
struct Joined {
    info: Invitation,
    client: OperatorClient,
    leaf: Leaf,
    instance: String,
    bootstrap: String,
    heartbeat_every: Duration,
}

/// One attempt to be let in. An operator that is known by an earlier `leaf` may have another root than the invitation
/// says.
async fn join(source: &Source, request: &JoinRequest, leaf: Option<&Leaf>) -> Result<Joined, JoinError> {
    let info = source.read()?;
    let identity = workload_identity(&info.trust_domain, &request.namespace, &request.service);
    let key = KeyRequest::new(&identity).map_err(JoinError::Key)?;
    let request = JoinRequest { token: info.token.clone(), csr: key.csr.clone(), ..request.clone() };
    let roots = leaf.map_or_else(|| Arc::new(source.kept_roots()), |leaf| Arc::clone(&leaf.roots));
    let client = link::anonymous(&info, roots).map_err(JoinError::Tls)?;
    let answer =
        bounded(client.join(request)).await.map_err(|status| JoinError::of(status, &info.address))?;
    let certificate = answer.certificate.unwrap_or_default();
    let leaf = key.certified(&certificate, UnixTime::now()).map_err(JoinError::Certificate)?;
    source.keep_roots(&leaf.bundle_pem);
    let client = link::authenticated(&info, &leaf).map_err(JoinError::Tls)?;
    let heartbeat_every = Duration::from_millis(answer.heartbeat_every_ms.into());
    Ok(Joined {
        info,
        client,
        leaf,
        instance: answer.instance,
        bootstrap: answer.bootstrap,
        heartbeat_every: heartbeat_every.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX),
    })
}

/// A member.
pub(crate) struct Membership {
    source: Source,
    /// What to say when joining again.
    request: JoinRequest,
    joined: Joined,
    /// The present client, for [`Line`].
    line: watch::Sender<OperatorClient>,
}

/// A member's way to have itself taken out of the mesh, whatever else is said to the operator meanwhile. It follows
/// renewals.
#[derive(Debug, Clone)]
pub(crate) struct Line(watch::Receiver<OperatorClient>);

impl Line {
    /// Asks to be taken out of rotation; the answer comes when the callers know, or after `wait`.
    pub(crate) async fn drain(&self, wait: Duration) -> Result<DrainResponse, Status> {
        let request = DrainRequest { wait_ms: wait.as_millis().try_into().unwrap_or(u32::MAX) };
        let client = self.0.borrow().clone();
        let answer = timeout(wait + Duration::from_secs(1), client.drain(request)).await;
        answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
    }

    /// Asks to be forgotten.
    pub(crate) async fn leave(&self) -> Result<(), Status> {
        let client = self.0.borrow().clone();
        bounded(client.leave()).await.map(drop)
    }
}

/// What a member hears from this host.
pub(crate) struct Inputs {
    /// How the application is.
    pub(crate) health: watch::Receiver<Health>,
    /// Whether Envoy serves.
    pub(crate) envoy_ready: watch::Receiver<bool>,
    /// What Envoy's outlier detection did.
    pub(crate) outliers: Outliers,
    /// Somebody's wishes for a new certificate.
    pub(crate) renewals: Signal,
}

/// Where a member's news go.
pub(crate) struct Outputs {
    /// New certificates.
    pub(crate) secrets: sds::Publisher,
    /// New bootstraps.
    pub(crate) bootstraps: watch::Sender<String>,
}

impl Membership {
    /// Tries to be let in until the operator is there; gives up on an answer that will not change.
    pub(crate) async fn join(source: Source, mut request: JoinRequest) -> Result<Self, JoinError> {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        loop {
            match join(&source, &request, None).await {
                Ok(joined) => {
                    request.instance.clone_from(&joined.instance);
                    let line = watch::Sender::new(joined.client.clone());
                    return Ok(Self { source, request, joined, line });
                }
                Err(error) if !error.may_pass() && !source.refusals_pass() => return Err(error),
                Err(error) => {
                    let wait = backoff.next();
                    tracing::warn!(error = chain(&error), ?wait, "not in the mesh yet");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// The instance's name.
    pub(crate) fn instance(&self) -> &str {
        &self.joined.instance
    }

    /// The certificate.
    pub(crate) fn leaf(&self) -> &Leaf {
        &self.joined.leaf
    }

    /// Envoy's bootstrap.
    pub(crate) fn bootstrap(&self) -> &str {
        &self.joined.bootstrap
    }

    /// The way to have itself taken out of the mesh.
    pub(crate) fn line(&self) -> Line {
        Line(self.line.subscribe())
    }

    /// Stays a member until `stop`: heartbeats, renewals, joining again. The operator may be away for as long as
    /// it likes; Envoy goes on with what it has.
    pub(crate) async fn keep(mut self, inputs: Inputs, outputs: Outputs, stop: CancellationToken) {
        let mut keeping = Keeping {
            inputs,
            outputs,
            beat_at: Instant::now(),
            beat_backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(5)),
            failures: 0,
            renew_after: Instant::now(),
            renew_backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
            exposed: Exposure { until: Instant::now(), found: false },
        };
        let mut outlier_ticks = interval(OUTLIER_INTERVAL);
        outlier_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let work = async {
                tokio::select! {
                    () = sleep_until(keeping.beat_at) => {}
                    Ok(()) = keeping.inputs.health.changed() => {}
                    Ok(()) = keeping.inputs.envoy_ready.changed() => {}
                    _ = keeping.inputs.renewals.recv() => return self.renew(&mut keeping).await,
                    _ = outlier_ticks.tick() => if !keeping.has_new_outliers() { return; },
                }
                self.beat(&mut keeping).await;
            };
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn beat(&mut self, keeping: &mut Keeping) {
        let request = keeping.heartbeat(&self.request);
        let told = request.outliers.len();
        match bounded(self.joined.client.heartbeat(request)).await {
            Ok(answer) => {
                if keeping.failures > 0 {
                    tracing::info!("the operator answers again");
                }
                keeping.inputs.outliers.acknowledged(told);
                keeping.failures = 0;
                keeping.beat_backoff.reset();
                keeping.beat_at = Instant::now() + self.joined.heartbeat_every;
                self.follow(answer, keeping).await;
            }
            Err(status) => {
                if keeping.failures == 0 {
                    tracing::warn!(
                        error = link::why(&status),
                        "the operator does not answer; calls go on without it"
                    );
                }
                keeping.failures = keeping.failures.saturating_add(1);
                keeping.beat_at = Instant::now() + keeping.beat_backoff.next();
                let refused = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
                if refused || keeping.failures.is_multiple_of(FAILURES_BEFORE_JOIN) {
                    self.join_again(keeping).await;
                }
            }
        }
    }

    async fn follow(&mut self, answer: HeartbeatResponse, keeping: &mut Keeping) {
        let due = UnixTime::now() >= self.joined.leaf.renew_at && Instant::now() >= keeping.renew_after;
        if !answer.known {
            tracing::info!("the operator does not know this instance any more; joining again");
            self.join_again(keeping).await;
        } else if answer.renew_now || due {
            self.renew(keeping).await;
        }
    }

    async fn renew(&mut self, keeping: &mut Keeping) {
        match self.renewed_leaf().await {
            Ok((leaf, client)) => {
                tracing::info!(valid_for = ?valid_for(&leaf), "renewed the certificate");
                keeping.outputs.secrets.publish(&leaf);
                self.source.keep_roots(&leaf.bundle_pem);
                keeping.renew_backoff.reset();
                self.line.send_replace(client.clone());
                (self.joined.leaf, self.joined.client) = (leaf, client);
            }
            Err(error) => {
                let wait = keeping.renew_backoff.next();
                keeping.renew_after = Instant::now() + wait;
                let valid_for = valid_for(&self.joined.leaf);
                tracing::warn!(error = chain(&error), ?wait, ?valid_for, "could not renew the certificate");
            }
        }
    }

    async fn renewed_leaf(&self) -> Result<(Leaf, OperatorClient), RenewError> {
        let Joined { info, client, .. } = &self.joined;
        let identity = workload_identity(&info.trust_domain, &self.request.namespace, &self.request.service);
        let key = KeyRequest::new(&identity).map_err(RenewError::Key)?;
        let request = RenewRequest { csr: key.csr.clone() };
        let answer = bounded(client.renew(request)).await.map_err(RenewError::Operator)?;
        let leaf = key.certified(&answer, UnixTime::now()).map_err(RenewError::Certificate)?;
        let client = link::authenticated(info, &leaf).map_err(RenewError::Tls)?;
        Ok((leaf, client))
    }

    async fn join_again(&mut self, keeping: &mut Keeping) {
        match join(&self.source, &self.request, Some(&self.joined.leaf)).await {
            Ok(joined) => {
                tracing::info!(instance = joined.instance, "joined again");
                keeping.outputs.secrets.publish(&joined.leaf);
                keeping.outputs.bootstraps.send_if_modified(|bootstrap| {
                    let news = *bootstrap != joined.bootstrap;
                    bootstrap.clone_from(&joined.bootstrap);
                    news
                });
                self.request.instance.clone_from(&joined.instance);
                self.line.send_replace(joined.client.clone());
                self.joined = joined;
                keeping.beat_at = Instant::now();
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "could not join again; calls go on as they are");
                keeping.beat_at = Instant::now() + keeping.beat_backoff.next();
            }
        }
    }
}

/// What a member remembers between two heartbeats.
struct Keeping {
    inputs: Inputs,
    outputs: Outputs,
    /// The next heartbeat, if nothing happens before.
    beat_at: Instant,
    beat_backoff: Backoff,
    /// Heartbeats in a row that failed.
    failures: u32,
    /// No renewal before, after one that failed.
    renew_after: Instant,
    renew_backoff: Backoff,
    exposed: Exposure,
}

/// Whether the application can be reached past Envoy, as last looked up.
struct Exposure {
    until: Instant,
    found: bool,
}

impl Keeping {
    fn heartbeat(&mut self, request: &JoinRequest) -> HeartbeatRequest {
        let (health, reason) = self.health();
        let now = Instant::now();
        if now >= self.exposed.until {
            let ports: Vec<u16> = request.ports.iter().filter_map(|port| port.app.try_into().ok()).collect();
            let found = sockets::reachable_past_proxy(&ports);
            if found && !self.exposed.found {
                tracing::warn!(
                    "the application does not listen on loopback only: others can reach it past Envoy"
                );
            }
            self.exposed = Exposure { until: now + EXPOSURE_INTERVAL, found };
        }
        HeartbeatRequest {
            health: health.into(),
            reason,
            outliers: self.inputs.outliers.waiting(),
            app_reachable: self.exposed.found,
        }
    }

    /// How the application is for its callers: they reach it through Envoy.
    fn health(&mut self) -> (AppHealth, String) {
        let health = self.inputs.health.borrow_and_update().clone();
        let envoy_ready = *self.inputs.envoy_ready.borrow_and_update();
        match health.state {
            AppHealth::Healthy if !envoy_ready => (AppHealth::Unhealthy, "Envoy is not running".into()),
            state => (state, health.reason),
        }
    }

    fn has_new_outliers(&mut self) -> bool {
        self.inputs.outliers.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read Envoy's outlier events");
            false
        })
    }
}

fn valid_for(leaf: &Leaf) -> Duration {
    Duration::from_secs(leaf.not_after.as_secs().saturating_sub(UnixTime::now().as_secs()))
}

async fn bounded<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}
