//! What runs beside an application, whoever starts the application: Envoy, its secrets, and the membership.

use crate::{
    admin::Admin,
    envoy::Envoy,
    health::Health,
    link,
    membership::{Inputs, Line, Membership, Outputs},
    outliers::Outliers,
    sds,
    stopping::Stopping,
};
use airlane_wire::message::DrainResponse;
use anyhow::Context;
use std::{sync::Arc, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// How often callers that wait for an answer are counted.
const IN_FLIGHT_INTERVAL: Duration = Duration::from_millis(100);

/// How long Envoy takes to report all it counted, and that nothing followed: it reports each second, and the second
/// report that begins from now on is of a time in which nobody called.
const REPORTING: Duration = Duration::from_millis(2_200);

/// What runs beside an application.
pub(crate) struct Sidecar {
    /// How the application is, to be told to the operator.
    pub(crate) health: watch::Sender<Health>,
    /// Whether Envoy serves.
    pub(crate) envoy_ready: watch::Receiver<bool>,
    /// The way out of the mesh.
    pub(crate) exit: Exit,
    envoy: JoinHandle<()>,
    stop_envoy: CancellationToken,
    membership: JoinHandle<()>,
    stop_membership: CancellationToken,
}

impl Sidecar {
    /// Starts all of it.
    pub(crate) fn start(membership: Membership, envoy: Envoy) -> anyhow::Result<Self> {
        let dir = Arc::clone(&envoy.dir);
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
            renewals: signal(SignalKind::hangup()).context("cannot listen to signals")?,
        };
        let outputs = Outputs { secrets, bootstraps };
        let (stop_envoy, stop_membership) = (CancellationToken::new(), CancellationToken::new());
        let stop = stop_envoy.clone();
        Ok(Self {
            health,
            envoy_ready,
            exit: Exit { line: membership.line(), admin: Admin::on(dir.admin_socket()) },
            envoy: tokio::spawn(async move { envoy.keep_running(ready, new_bootstraps, stop).await }),
            stop_envoy,
            membership: tokio::spawn(membership.keep(inputs, outputs, stop_membership.clone())),
            stop_membership,
        })
    }

    /// Stops all of it, once nobody calls any more.
    pub(crate) async fn stop(self, stopping: &Stopping) -> anyhow::Result<()> {
        stopping.unless_hurried(self.exit.let_report()).await;
        self.stop_membership.cancel();
        self.membership.await.context("the membership broke off")?;
        if let Some(Err(status)) = stopping.unless_hurried(self.exit.line.leave()).await {
            tracing::warn!(error = link::why(&status), "the operator was not told; it will notice by itself");
        }
        self.stop_envoy.cancel();
        self.envoy.await.context("the watch over Envoy broke off")
    }
}

/// The way out of the mesh that loses no request: callers learn that this instance goes, then those that still wait
/// get their answers.
#[derive(Debug, Clone)]
pub(crate) struct Exit {
    line: Line,
    admin: Admin,
}

impl Exit {
    /// Has callers told; returns when they know, or after about `wait`. `None` if the operator could not be asked.
    pub(crate) async fn tell_callers(&self, wait: Duration) -> Option<DrainResponse> {
        match self.line.drain(wait).await {
            Ok(told) => {
                let DrainResponse { acknowledged, outstanding, stays } = told;
                tracing::info!(acknowledged, outstanding, stays, "callers know that this instance goes");
                Some(told)
            }
            Err(status) => {
                tracing::warn!(
                    error = link::why(&status),
                    "callers could not be told that this instance goes"
                );
                None
            }
        }
    }

    /// Asks callers over open connections to go elsewhere, for ever, and waits until nobody expects an answer any more.
    pub(crate) async fn finish_requests(&self) {
        if let Err(error) = self.admin.drain_inbound().await {
            tracing::warn!(%error, "cannot ask callers to go elsewhere");
            return;
        }
        tracing::debug!("asked callers to go elsewhere");
        self.answer_requests().await;
    }

    /// Waits until the last calls of the application were reported, if a rollout is judged by them: what was counted
    /// and never reported would be taken for failed.
    async fn let_report(&self) {
        match self.admin.called_a_version().await {
            Ok(true) => sleep(REPORTING).await,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "cannot ask what was called"),
        }
    }

    /// Waits until nobody expects an answer any more.
    pub(crate) async fn answer_requests(&self) {
        loop {
            match self.admin.inbound_active().await {
                Ok(0) => return,
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
}
