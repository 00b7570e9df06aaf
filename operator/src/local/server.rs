//! Serves the views on `STATE/airlane.sock`, and takes the verbs that every mesh has.

use super::sources::Sources;
use crate::{
    control::Picture,
    fleet::Fleet,
    members::{Member, Members},
    signals::Signals,
    standing::Standings,
    tls::ServerTls,
    xds::Publisher,
};
use airlane_core::{
    id::{InstanceId, ServiceId},
    pki::Certificate,
    problem::{Problem, Reason},
};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use std::{os::unix::fs::PermissionsExt, path::Path as FilePath, sync::Arc};
use tokio::{net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;

/// What the socket can reach.
#[derive(Clone)]
pub(crate) struct Local {
    /// What was observed and decided.
    pub(crate) picture: watch::Receiver<Option<Picture>>,
    /// What proxies reported.
    pub(crate) signals: Signals,
    /// Who is connected.
    pub(crate) publisher: Publisher,
    /// How far everybody has come.
    pub(crate) fleet: Fleet,
    /// What sidecars said of themselves.
    pub(crate) members: Arc<dyn Members>,
    /// The operator's own certificates.
    pub(crate) tls: ServerTls,
}

/// A refusal, as the command line shows it.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Refusal {
    /// What is wrong and what to do.
    pub(crate) error: String,
}

/// Why there is no answer.
pub(super) struct Refused(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Refusal { error: self.1 })).into_response()
    }
}

/// It should have been done, and was not.
pub(super) fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> Refused {
    tracing::error!(error, "cannot {what}");
    Refused(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot {what}: {error}"))
}

/// There is no such thing.
pub(super) fn not_found(what: impl Into<String>) -> Refused {
    Refused(StatusCode::NOT_FOUND, what.into())
}

/// Listens at `socket`, which nobody but its owner can open. What a dead operator left there is removed.
///
/// # Errors
/// If the socket cannot be made, or another operator answers there.
pub(crate) fn listen(socket: &FilePath) -> std::io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another operator listens there"));
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The directory is 0700, so nobody else can connect between the bind and the change of mode.
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until shutdown.
pub(crate) async fn serve(
    listener: UnixListener,
    router: Router,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// What every mesh answers to.
pub(crate) fn router(local: Local) -> Router {
    Router::new()
        .route("/v1/summary", get(summary))
        .route("/v1/services", get(|state: State<Local>| view(state, |sources| sources.services())))
        .route("/v1/endpoints", get(|state: State<Local>| view(state, |sources| sources.endpoints())))
        .route("/v1/proxies", get(|state: State<Local>| view(state, |sources| sources.proxies())))
        .route("/v1/policies", get(|state: State<Local>| view(state, |sources| sources.policies())))
        .route("/v1/canaries", get(|state: State<Local>| view(state, |sources| sources.canaries())))
        .route("/v1/errors", get(|state: State<Local>| view(state, |sources| sources.errors())))
        .route("/v1/effective/{namespace}/{name}", get(effective))
        .route("/v1/proxies/{instance}/config", get(proxy_config))
        .route("/v1/certificates", get(certificates))
        .route("/v1/certificates/rotate", post(rotate))
        .with_state(local)
        .fallback(async |uri: Uri| not_found(format!("this mesh has nothing at {}", uri.path())))
}

/// What `f` makes of the mesh as it is now.
pub(super) async fn with_sources<T>(local: &Local, f: impl FnOnce(&Sources<'_>) -> T) -> Result<T, Refused> {
    let Some(picture) = local.picture.borrow().clone() else {
        return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, "the mesh is starting".to_owned()));
    };
    let proxies = local.publisher.connected();
    let members = local.members.everybody();
    let (census, refusals) = (local.fleet.census(), local.fleet.refusals());
    let standings = Standings::of(&picture, &refusals);
    Ok(local.signals.with(|intake| {
        f(&Sources {
            picture: &picture,
            intake,
            proxies: &proxies,
            census: &census,
            members: &members,
            standings: &standings,
            refusals: &refusals,
        })
    }))
}

async fn view<T: Serialize>(
    State(local): State<Local>,
    f: impl FnOnce(&Sources<'_>) -> T,
) -> Result<Json<T>, Refused> {
    with_sources(&local, f).await.map(Json)
}

/// `airlane check` of a running mesh.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    /// Services known.
    pub(crate) services: usize,
    /// Proxies connected, of those registered.
    pub(crate) connected: usize,
    /// See `connected`.
    pub(crate) proxies: usize,
    /// Proxies that acknowledged everything published.
    pub(crate) current: usize,
    /// Files in error.
    pub(crate) errors: Vec<super::view::ErrorView>,
    /// Problems of objects, as sentences.
    pub(crate) problems: Vec<String>,
    /// What is not supported yet in objects that are accepted, likewise.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    /// Evidence that was dropped because it was not read in time.
    pub(crate) dropped_reports: u64,
}

async fn summary(State(local): State<Local>) -> Result<Json<Summary>, Refused> {
    let summary = with_sources(&local, |sources| {
        let proxies = sources.proxies();
        let objects = &sources.picture.declared.objects;
        let accepted = objects.values().flat_map(|object| &object.problems);
        let problems = sources.picture.compiled.problems.iter().chain(accepted).cloned();
        let tell = |problem: &Problem| {
            let place = objects.get(&problem.subject).and_then(|object| object.place.as_ref());
            place.map_or_else(|| problem.to_string(), |place| place.tell(problem))
        };
        let (warnings, problems): (Vec<Problem>, Vec<Problem>) =
            problems.chain(sources.rejected()).partition(|problem| problem.reason == Reason::NotYetSupported);
        Summary {
            services: sources.picture.world.services.len(),
            connected: proxies.iter().filter(|proxy| proxy.connected).count(),
            current: proxies.iter().filter(|proxy| proxy.current).count(),
            proxies: proxies.len(),
            errors: sources.errors(),
            problems: problems.iter().map(tell).collect(),
            warnings: warnings.iter().map(tell).collect(),
            dropped_reports: sources.intake.dropped(),
        }
    })
    .await?;
    Ok(Json(summary))
}

/// A part of a path that is a name.
pub(super) fn parse<T: std::str::FromStr<Err = airlane_core::id::BadName>>(text: &str) -> Result<T, Refused> {
    text.parse()
        .map_err(|error: airlane_core::id::BadName| Refused(StatusCode::BAD_REQUEST, error.to_string()))
}

async fn effective(
    State(local): State<Local>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Vec<super::view::EffectiveView>>, Refused> {
    let id = ServiceId { namespace: parse(&namespace)?, name: parse(&name)? };
    with_sources(&local, |sources| sources.effective(&id))
        .await?
        .map(Json)
        .ok_or_else(|| not_found(format!("no service {id}; `airlane get services` lists them")))
}

/// One published resource, and whether the proxy acknowledged it.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct ResourceView {
    /// Its kind.
    pub(crate) kind: String,
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// Encoded size.
    pub(crate) bytes: usize,
}

async fn proxy_config(
    State(local): State<Local>,
    Path(instance): Path<String>,
) -> Result<Json<Vec<ResourceView>>, Refused> {
    let instance: InstanceId = parse(&instance)?;
    let Some(picture) = local.picture.borrow().clone() else {
        return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, "the mesh is starting".to_owned()));
    };
    let proxy = picture.compiled.mesh.proxies.get(&instance);
    let proxy =
        proxy.ok_or_else(|| not_found(format!("no proxy {instance}; `airlane get proxies` lists them")))?;
    let rows = picture.catalog.seen_by(&instance, &proxy.identity.namespace).map(|resource| ResourceView {
        kind: format!("{:?}", resource.key.kind),
        name: resource.key.name.to_string(),
        version: resource.version.to_string(),
        bytes: resource.body.value.len(),
    });
    Ok(Json(rows.collect()))
}

/// One certificate.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CertificateView {
    /// What it is for.
    pub(crate) subject: String,
    /// `authority`, `operator`, or the instance.
    pub(crate) holder: String,
    /// When it ends.
    pub(crate) not_after: jiff::Timestamp,
    /// When it is renewed; a workload's at half of its life, by its sidecar.
    pub(crate) renew_at: Option<jiff::Timestamp>,
}

impl CertificateView {
    /// Whether a workload has it, not the operator.
    pub(crate) fn is_workload(&self) -> bool {
        self.subject.starts_with("spiffe://")
    }
}

async fn certificates(State(local): State<Local>) -> Json<Vec<CertificateView>> {
    let own = local.tls.held().into_iter().map(|held| {
        let (holder, subject) = match held.certificate {
            Certificate::Intermediate => ("authority", "intermediate"),
            Certificate::Server => ("operator", "server"),
        };
        CertificateView {
            subject: subject.to_owned(),
            holder: holder.to_owned(),
            not_after: held.not_after,
            renew_at: Some(held.renew_at()),
        }
    });
    let trust_domain = local.tls.trust_domain();
    let members = local.members.everybody();
    let workloads = members.iter().filter_map(|member| {
        let instance = &member.instance;
        Some(CertificateView {
            subject: format!(
                "spiffe://{trust_domain}/ns/{}/sa/{}",
                instance.workload.namespace, instance.service_account
            ),
            holder: instance.id.to_string(),
            not_after: member.said.leaf_not_after?,
            renew_at: None,
        })
    });
    Json(own.chain(workloads).collect())
}

/// Whose certificates to renew.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct RotateRequest {
    /// `None`: everybody's.
    pub(crate) instance: Option<InstanceId>,
}

/// How many were asked.
async fn rotate(
    State(local): State<Local>,
    Json(request): Json<RotateRequest>,
) -> Result<Json<usize>, Refused> {
    let members = local.members.everybody();
    let asked =
        |member: &&Member| request.instance.as_ref().is_none_or(|instance| member.instance.id == *instance);
    let count = members.iter().filter(asked).count();
    match &request.instance {
        Some(instance) if count == 0 => {
            Err(not_found(format!("no instance {instance}; `airlane get endpoints` lists them")))
        }
        instance => {
            local.members.ask_renewal(instance.as_ref());
            Ok(Json(count))
        }
    }
}
