//! What sidecars ask of the operator: to be let in, certified, kept, taken out of rotation and forgotten.
//!
//! [`Wire::join`] is the only method that anybody may call; the [`Doorkeeper`] decides whom it lets in. The others
//! believe the client certificate alone: whatever a message says, the caller is the [`Peer`] of its connection.

mod failures;
mod kubernetes;
mod request;
mod standalone;
mod token;

use crate::{
    ca::{Admitted, Ca, Issued},
    clock::Clock,
    members::{App, Beat, Members, Outlier},
    serve::Remote,
    tls::Peer,
};
use airlane_core::{id::InstanceId, pki::Refusal, world::Instance};
use airlane_envoy::bootstrap::{self, Bootstrap};
use airlane_wire::{
    message::{
        AppHealth, Certificate, DrainRequest, DrainResponse, HeartbeatRequest, HeartbeatResponse,
        JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, OutlierEvent, RenewRequest,
    },
    operator::{OUTLIERS_PER_HEARTBEAT, Operator},
};
use failures::Failures;
use jiff::Timestamp;
pub(crate) use kubernetes::PodTokens;
pub(crate) use standalone::JoinTokens;
use std::{error::Error, net::IpAddr, sync::Arc, time::Duration};
pub(crate) use token::{OperatorAt, create as create_token, leave_local_join};
use tonic::{Request, Response, Status};

/// The longest that a drain waits for callers.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// How much later than a pod's hook the news may come that the pod is deleted.
const NEWS_MAX: Duration = Duration::from_secs(1);

/// What became of taking an instance out of rotation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Drained {
    /// Proxies that acknowledged that it is gone.
    pub acknowledged: u32,
    /// Proxies that did not in time.
    pub outstanding: u32,
}

/// Who knows which proxies call an instance.
#[tonic::async_trait]
pub(crate) trait Rotation: Send + Sync + 'static {
    /// Waits until every proxy that calls the instance has acknowledged that it is gone, but no longer than `wait`.
    async fn out_of_rotation(&self, instance: &InstanceId, wait: Duration) -> Drained;
}

/// Who decides whether a stranger is let in, and as whom.
#[tonic::async_trait]
pub(crate) trait Doorkeeper: Send + Sync + 'static {
    /// Lets a workload in, which asks from this address.
    ///
    /// # Errors
    /// If it may not come in, or not now. Nothing has changed then.
    async fn let_in(&self, request: &JoinRequest, from: IpAddr) -> Result<LetIn, Refused>;
}

/// Who was let in.
pub(crate) struct LetIn {
    /// The key to certify, for the identity that the bearer of the token has.
    pub key: Admitted,
    /// What it is.
    pub instance: Arc<Instance>,
}

/// Why nobody was let in.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The token does not let its bearer in. Anybody can cause this, so it is counted.
    Token(Status),
    /// Something else is wrong with the request, or with us.
    Other(Status),
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Refused {
        Refused::Other(not_signed(refusal))
    }
}

/// What the server works with.
pub(crate) struct Parts {
    /// Signs.
    pub ca: Arc<Ca>,
    /// Decides who is let in.
    pub door: Arc<dyn Doorkeeper>,
    /// Knows who is in.
    pub members: Arc<dyn Members>,
    /// Knows who calls whom.
    pub rotation: Arc<dyn Rotation>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How often sidecars are asked for a sign of life.
    pub heartbeat_every: Duration,
    /// Where proxies reach the operator: an address or a DNS name, and a port.
    pub operator: (String, u16),
}

/// Serves sidecars.
pub(crate) struct Wire {
    parts: Parts,
    failures: Failures,
}

impl Wire {
    /// A server of these parts.
    pub(crate) fn new(parts: Parts) -> Wire {
        Wire { parts, failures: Failures::default() }
    }

    /// The answer to somebody whose token lets nobody in.
    fn turn_away(&self, status: Status, request: &JoinRequest, remote: Remote) -> Status {
        if !self.failures.note(remote.0.ip(), self.parts.clock.uptime()) {
            return Status::resource_exhausted("too many refused joins from this address; wait ten seconds");
        }
        tracing::warn!(remote = %remote.0, claims = format!("{}/{}", shown(&request.namespace), shown(&request.service)),
            why = status.message(), "not let in");
        status
    }

    fn issue(&self, admitted: &Admitted, instance: &InstanceId) -> Result<Certificate, Status> {
        let issued = self.parts.ca.sign(admitted, instance, self.parts.clock.now());
        let Issued { chain_pem, not_after, renew_at, serial } =
            issued.map_err(|error| internal("a certificate", &error))?;
        tracing::info!(%instance, serial, %not_after, "signed");
        Ok(Certificate {
            chain_pem,
            bundle_pem: self.parts.ca.bundle_pem(),
            renew_at_ms: renew_at.as_millisecond(),
            not_after_ms: not_after.as_millisecond(),
        })
    }

    fn bootstrap(&self, instance: &Instance, request: JoinRequest) -> String {
        bootstrap::render(&Bootstrap {
            instance: instance.id.clone(),
            namespace: instance.workload.namespace.clone(),
            operator_host: self.parts.operator.0.clone(),
            operator_port: self.parts.operator.1,
            operator_identity: self.parts.ca.operator().clone(),
            agent_socket: request.agent_socket,
            admin_socket: request.admin_socket,
            event_log: request.event_log,
        })
    }
}

#[tonic::async_trait]
impl Operator for Wire {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let remote =
            *request.extensions().get::<Remote>().ok_or_else(|| Status::internal("no remote address"))?;
        let request = request.into_inner();
        request::check_paths(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let LetIn { key, instance } =
            self.parts.door.let_in(&request, remote.0.ip()).await.map_err(|refused| match refused {
                Refused::Token(status) => self.turn_away(status, &request, remote),
                Refused::Other(status) => status,
            })?;
        let certificate = self.issue(&key, &instance.id)?;
        tracing::info!(instance = %instance.id, workload = %instance.workload, address = %instance.address,
            sidecar = shown(&request.sidecar_version), "joined");
        Ok(Response::new(JoinResponse {
            instance: instance.id.to_string(),
            certificate: Some(certificate),
            bootstrap: self.bootstrap(&instance, request),
            heartbeat_every_ms: u32::try_from(self.parts.heartbeat_every.as_millis()).unwrap_or(u32::MAX),
        }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Certificate>, Status> {
        let peer = peer_of(&request)?;
        // Whoever was forgotten shows a token again, which may have been revoked.
        if self.parts.members.instance_of(&peer).is_none() {
            return Err(Status::not_found("this instance is not registered; join again"));
        }
        let admitted =
            Ca::admit(&request.into_inner().csr, peer.identity).map_err(|refusal| not_signed(&refusal))?;
        let certificate = self.issue(&admitted, &peer.instance)?;
        self.parts.members.renewed(&peer.instance);
        Ok(Response::new(certificate))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let peer = peer_of(&request)?;
        let beat = beat_of(request.into_inner(), self.parts.clock.now())?;
        let renew = self.parts.members.heartbeat(&peer, beat);
        Ok(Response::new(HeartbeatResponse { known: renew.is_some(), renew_now: renew == Some(true) }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let peer = peer_of(&request)?;
        let wait = Duration::from_millis(request.into_inner().wait_ms.into()).min(DRAIN_MAX);
        if self.parts.members.instance_of(&peer).is_none() {
            // Nobody calls who is not published.
            return Ok(Response::new(DrainResponse::default()));
        }
        self.parts.members.drain(&peer);
        let (Drained { acknowledged, outstanding }, stays) = tokio::join!(
            self.parts.rotation.out_of_rotation(&peer.instance, wait),
            self.parts.members.stays(&peer, wait.min(NEWS_MAX)),
        );
        tracing::info!(instance = %peer.instance, acknowledged, outstanding, stays, "out of rotation");
        Ok(Response::new(DrainResponse { acknowledged, outstanding, stays }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let peer = peer_of(&request)?;
        self.parts.members.leave(&peer);
        tracing::info!(instance = %peer.instance, "left");
        Ok(Response::new(LeaveResponse {}))
    }
}

fn peer_of<T>(request: &Request<T>) -> Result<Peer, Status> {
    request
        .extensions()
        .get()
        .cloned()
        .ok_or_else(|| Status::unauthenticated("this needs a client certificate"))
}

fn not_signed(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Names { .. }
        | Refusal::OtherIdentity { .. }
        | Refusal::Operator { .. }
        | Refusal::Authority => Status::permission_denied(refusal.to_string()),
        _ => Status::invalid_argument(refusal.to_string()),
    }
}

/// Our own failure: told in the log in full, and to the caller without paths.
fn internal(what: &'static str, error: &(dyn Error + 'static)) -> Status {
    tracing::error!(error, "{what} failed");
    Status::unavailable(format!("{what} failed; the operator's log says why"))
}

/// A text of a stranger as it may stand in a log.
fn shown(text: &str) -> String {
    text.escape_debug().take(63).collect()
}

fn beat_of(request: HeartbeatRequest, now: Timestamp) -> Result<Beat, Status> {
    let app = match AppHealth::try_from(request.health) {
        Ok(AppHealth::Starting) => App::Starting,
        Ok(AppHealth::Healthy) => App::Healthy,
        Ok(AppHealth::Unhealthy) => App::Unhealthy,
        Err(_) => return Err(Status::invalid_argument("health: unknown; use the sidecar of this operator")),
    };
    if request.outliers.len() > OUTLIERS_PER_HEARTBEAT {
        let most =
            format!("outliers: more than {OUTLIERS_PER_HEARTBEAT}; send the rest with the next heartbeat");
        return Err(Status::invalid_argument(most));
    }
    let outlier = |event: OutlierEvent| Outlier {
        cluster: event.cluster,
        upstream: event.upstream,
        ejected: event.ejected,
        reason: event.reason,
        ejections: event.ejections,
        at: Timestamp::from_millisecond(event.at_ms).unwrap_or(now),
    };
    Ok(Beat {
        leaf_not_after: None,
        app,
        reason: request.reason,
        outliers: request.outliers.into_iter().map(outlier).collect(),
        app_reachable: request.app_reachable,
    })
}

#[cfg(test)]
mod tests;
