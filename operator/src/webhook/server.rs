//! The webhook's port: `/inject` (pods), `/validate` (our resources), `/leave` (namespaces), `/healthz`.
//!
//! The API server shows no certificate, so anybody who reaches the port may ask. The answers hold nothing that whoever
//! may create pods does not know, nothing is called on behalf of what is asked, and what a request may cost is bounded.

use super::{
    draw_secret,
    inject::{self, Injection, NotInjected, inject},
    review::{self, Answer, Request as Asked},
};
use crate::{
    control::Picture,
    enrol::{record::kept_out, ties},
    guest::{Guest, Place},
    marks::{INJECT, asks},
    observe::kubernetes::{
        MeshPolicy, NamespaceLabels,
        owner::{Kind, owner_of},
        workload::Workloads,
    },
    tls::ServerTls,
    turns::{Turn, Turns},
};
use airlane_core::id::Namespace;
use airlane_wire::crowd::{Crowd, host};
use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use http::{HeaderMap, Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Resource as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

/// An API server takes objects of up to 3 MiB and stores up to 1.5 MiB: what a review of an update can hold.
const BODY_BYTES_MAX: usize = 5 << 20;
/// The API server waits for 5 s, as the registration says.
const DEADLINE: Duration = Duration::from_secs(4);
/// How long a namespace may be in the mesh for the API server and not yet for us.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Requests at a time, with the bodies that have come and those on their way: three API servers ask as much on two
/// connections each. Whoever has most makes room.
const REQUESTS_MAX: usize = 128;
/// Bodies that are read at a time. The largest of the most values takes about 40 MiB meanwhile.
const READINGS_MAX: usize = 8;
/// Of them, those of one address: an API server in need waits for its own, not for a stranger's.
const READINGS_PER_ADDRESS_MAX: usize = 5;
/// An API server has one or two; each may have a megabyte on its way before it is this request's turn.
const CONNECTIONS_MAX: usize = 64;
/// How long somebody may be silent after the handshake.
const FIRST_REQUEST: Duration = Duration::from_secs(5);
/// How long a connection may wait for its next request; an API server's client waits for 90 s.
const NEXT_REQUEST: Duration = Duration::from_secs(180);
const STREAMS_PER_CONNECTION_MAX: u32 = 16;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// How long open requests may go on after the end was announced.
const GOODBYE: Duration = Duration::from_secs(5);

/// Whose pods are never injected, whatever a registration says: the cluster must be able to start without us.
const NEVER: &str = "kube-system";

/// What the answers are made from.
#[derive(Clone)]
pub(crate) struct Webhook {
    /// What pods get.
    pub injection: watch::Receiver<Arc<Injection>>,
    /// The namespaces; empty until all are known.
    pub namespaces: watch::Receiver<Arc<NamespaceLabels>>,
    /// The workloads, if they are watched.
    pub workloads: watch::Receiver<Option<Arc<Workloads>>>,
    /// What policies mean.
    pub picture: watch::Receiver<Option<Picture>>,
    /// The operator's own namespace, which is never injected.
    pub system_namespace: Namespace,
}

/// A request that cannot be answered now; the registration's failure policy says what follows.
#[derive(Debug, PartialEq, thiserror::Error)]
enum Unanswered {
    /// The namespace is not (yet) known to be in the mesh.
    #[error("this replica does not know yet that namespace {0} is in the mesh; try again")]
    Namespace(String),
    /// The object is not what the API server says it is.
    #[error("request.object is not of its kind: {0}")]
    Object(String),
    /// No random numbers.
    #[error("the system gives no random bytes")]
    Random,
}

impl Unanswered {
    fn status(&self) -> StatusCode {
        match self {
            Unanswered::Namespace(_) | Unanswered::Random => StatusCode::SERVICE_UNAVAILABLE,
            Unanswered::Object(_) => StatusCode::BAD_REQUEST,
        }
    }

    fn to_response(&self, asked: &Asked<'_>) -> Response {
        tracing::warn!(namespace = asked.namespace, error = %self, "a review was not answered");
        (self.status(), self.to_string()).into_response()
    }
}

impl Webhook {
    /// The answers, by path.
    fn routes(self) -> Router {
        Router::new()
            .route("/inject", post(answer_injection))
            .route("/validate", post(answer_validation))
            .route("/leave", post(answer_leaving))
            .route("/healthz", get(async || "ok\n"))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self)
    }

    /// `turn` is this review's. Nobody else waits for it while its namespace is waited for.
    async fn injection(&self, asked: &Asked<'_>, line: &Line, turn: Turn) -> Result<Answer, Unanswered> {
        let is_pod = asked.kind.group.is_empty() && asked.kind.kind == "Pod" && asked.sub_resource.is_empty();
        let exempt = [NEVER, self.system_namespace.as_str()].contains(&asked.namespace.as_str());
        if !is_pod || exempt || asked.operation != "CREATE" {
            return Ok(Answer::as_it_is());
        }
        let object = asked.object.map_or("null", RawValue::get);
        let Labelled { metadata } = read(object)?;
        drop(turn);
        let labels = self.labels(&asked.namespace, metadata.labels.contains_key(INJECT)).await?;
        let _turn = line.turn().await;
        let pod: Pod = read(object)?;
        if let Some(reason) = self.kept_out(&asked.namespace, &pod) {
            let warning = format!("not in the mesh: {reason}");
            return Ok(Answer::changed(inject::note(&pod, &[reason])).warning([warning]));
        }
        let setup = self.injection.borrow().clone();
        let secret = draw_secret().ok_or(Unanswered::Random)?;
        Ok(match inject(&pod, &labels, &secret, &setup) {
            Ok(injected) => Answer::changed(injected.patch).warning(injected.warnings),
            Err(NotInjected::Unasked) => Answer::as_it_is(),
            Err(NotInjected::Mistaken(mistakes)) => {
                let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                Answer::refused(mistakes.join("; "))
            }
            Err(NotInjected::Unfit { reasons, optional: false }) => Answer::refused(reasons.join("; ")),
            Err(NotInjected::Unfit { reasons, optional: true }) => {
                let warnings = reasons.iter().map(|reason| format!("not in the mesh: {reason}"));
                Answer::changed(inject::note(&pod, &reasons)).warning(warnings.collect::<Vec<_>>())
            }
        })
    }

    /// The labels of the pod's namespace, at least as new as those by which the API server decided to ask us, unless
    /// it was the pod's own label.
    async fn labels(&self, namespace: &str, pod_says: bool) -> Result<BTreeMap<String, String>, Unanswered> {
        let unknown = || Unanswered::Namespace(namespace.to_owned());
        let name = Namespace::parse(namespace).map_err(|_| unknown())?;
        let new_enough = |labels: &BTreeMap<String, String>| pod_says || asks(labels);
        let mut namespaces = self.namespaces.clone();
        let known = namespaces.wait_for(|all| all.get(&name).is_some_and(new_enough));
        match timeout(CATCH_UP, known).await {
            Ok(Ok(all)) => all.get(&name).cloned().ok_or_else(unknown),
            _ => Err(unknown()),
        }
    }

    /// Why a pod stays out whose namespace alone asks for the mesh: its workload was put back.
    fn kept_out(&self, namespace: &str, pod: &Pod) -> Option<String> {
        if pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(INJECT)) {
            return None;
        }
        let owner = owner_of(&pod.metadata).filter(|owner| owner.kind == Kind::Deployment)?;
        let workloads = self.workloads.borrow().clone()?;
        let because = kept_out(workloads.deployment(namespace, &owner.name)?)?;
        Some(format!(
            "{owner} did not come up with a sidecar ({because}); `airlane join {namespace}/{owner}` tries again"
        ))
    }

    /// Whether a namespace may leave the mesh: not while its pods' sidecars keep what policies say.
    fn leaving(&self, asked: &Asked<'_>) -> Result<Answer, Unanswered> {
        let (Some(now), Some(before)) = (asked.object, asked.old_object) else {
            return Ok(Answer::as_it_is());
        };
        let is_namespace = asked.kind.group.is_empty() && asked.kind.kind == "Namespace";
        let (now, before): (Labelled, Labelled) = (read(now.get())?, read(before.get())?);
        let leaves = asks(&before.metadata.labels) && !asks(&now.metadata.labels);
        let going = now.metadata.deletion_timestamp.is_some();
        let (true, false, Ok(name), Some(picture)) = (
            is_namespace && leaves,
            going,
            Namespace::parse(&now.metadata.name),
            self.picture.borrow().clone(),
        ) else {
            return Ok(Answer::as_it_is());
        };
        Ok(match &*ties::of_namespace(&picture.world, &picture.compiled.mesh, &name) {
            [] => Answer::as_it_is(),
            ties => Answer::refused(format!(
                "namespace {name} cannot leave the mesh while only its sidecars keep what policies say: {}; {}",
                ties.join("; "),
                ties::MEND
            )),
        })
    }

    fn validation(&self, asked: &Asked<'_>) -> Result<Answer, Unanswered> {
        let Some(object) = asked.object.filter(|_| asked.kind.group == MeshPolicy::group(&())) else {
            return Ok(Answer::as_it_is());
        };
        let object = airlane_api::read_object(&read(object.get())?, &self.system_namespace);
        let problems = object.problems.iter().map(|problem| match problem.field.as_str() {
            "" => problem.message.clone(),
            field => format!("{field}: {}", problem.message),
        });
        let problems: Vec<String> = problems.collect();
        Ok(if object.refused.is_some() {
            Answer::refused(problems.join("; "))
        } else {
            Answer::as_it_is().warning(problems)
        })
    }
}

/// Where a review waits until it is read; in every request's extensions.
#[derive(Clone)]
struct Line {
    turns: Arc<Turns<IpAddr>>,
    from: IpAddr,
}

impl Line {
    /// Waits for a turn. Whoever has one waits for nobody else.
    async fn turn(&self) -> Turn {
        self.turns.take(host(self.from)).await
    }
}

/// What decides about a pod before it is read as a whole, and about a namespace.
#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "null_is_empty")]
    labels: BTreeMap<String, String>,
}

fn null_is_empty<'de, D: Deserializer<'de>>(labels: D) -> Result<BTreeMap<String, String>, D::Error> {
    Option::deserialize(labels).map(Option::unwrap_or_default)
}

fn read<'a, T: Deserialize<'a>>(object: &'a str) -> Result<T, Unanswered> {
    serde_json::from_str(object).map_err(|error| Unanswered::Object(error.to_string()))
}

async fn answer_injection(
    State(webhook): State<Webhook>,
    Extension(line): Extension<Line>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let turn = line.turn().await;
    let asked = match asked(&headers, &body) {
        Ok(asked) => asked,
        Err(response) => return *response,
    };
    match webhook.injection(&asked, &line, turn).await {
        Ok(answer) => Json(answer.to_review(&asked.uid)).into_response(),
        Err(error) => error.to_response(&asked),
    }
}

async fn answer_validation(
    State(webhook): State<Webhook>,
    Extension(line): Extension<Line>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let _turn = line.turn().await;
    let asked = match asked(&headers, &body) {
        Ok(asked) => asked,
        Err(response) => return *response,
    };
    match webhook.validation(&asked) {
        Ok(answer) => Json(answer.to_review(&asked.uid)).into_response(),
        Err(error) => error.to_response(&asked),
    }
}

async fn answer_leaving(
    State(webhook): State<Webhook>,
    Extension(line): Extension<Line>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let _turn = line.turn().await;
    let asked = match asked(&headers, &body) {
        Ok(asked) => asked,
        Err(response) => return *response,
    };
    match webhook.leaving(&asked) {
        Ok(answer) => Json(answer.to_review(&asked.uid)).into_response(),
        Err(error) => error.to_response(&asked),
    }
}

fn asked<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Asked<'a>, Box<Response>> {
    let refuse = |status: StatusCode, why: String| Err(Box::new((status, why).into_response()));
    let said = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = said.split(';').next().unwrap_or_default();
    if media_type.trim() != "application/json" {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type is not application/json".into());
    }
    review::read(body).or_else(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))
}

/// Serves until told to stop, and returns when every connection has ended, [`GOODBYE`] later at most.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: ServerTls,
    webhook: Webhook,
    shutdown: CancellationToken,
) {
    let turns = Arc::new(Turns::new(READINGS_MAX, READINGS_PER_ADDRESS_MAX));
    let requests = Arc::new(Mutex::new(Crowd::new(REQUESTS_MAX)));
    let port = Port { tls, routes: webhook.routes(), requests, turns };
    let mut crowd = Crowd::new(CONNECTIONS_MAX);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, remote)) = accepted else {
            // Most often out of file descriptors: give connections time to end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (port, shutdown) = (port.clone(), shutdown.clone());
        let connection =
            connections.spawn(async move { port.connection(stream, remote.ip(), &shutdown).await });
        if let Some(other) = crowd.admit(remote.ip(), connection.abort_handle()) {
            tracing::warn!("the webhook ended a connection: {CONNECTIONS_MAX} were open");
            other.abort();
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// What all connections share.
#[derive(Clone)]
struct Port {
    tls: ServerTls,
    routes: Router,
    requests: Arc<Mutex<Crowd<Place>>>,
    turns: Arc<Turns<IpAddr>>,
}

impl Port {
    async fn connection(self, stream: TcpStream, from: IpAddr, shutdown: &CancellationToken) {
        let handshake = timeout(HANDSHAKE_TIMEOUT, self.tls.acceptor().accept(stream));
        let stream = tokio::select! {
            () = shutdown.cancelled() => return,
            result = handshake => match result {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => return tracing::debug!("TLS handshake took too long"),
            },
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .keep_alive_interval(KEEPALIVE_EVERY);
        let (heard, requests) = watch::channel(());
        let service = service_fn(move |request| {
            heard.send_replace(());
            let port = self.clone();
            async move { Ok::<_, Infallible>(port.call(request, from).await) }
        });
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            _ = connection.as_mut() => return,
            () = silence(requests) => {}
            () = shutdown.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        // Whoever goes on after the goodbye is cut off when the connection is dropped.
        let _ = timeout(GOODBYE, connection).await;
    }

    async fn call(&self, mut request: Request<Incoming>, from: IpAddr) -> Response {
        let guest = Guest::enter(&self.requests, from);
        request.extensions_mut().insert(Line { turns: Arc::clone(&self.turns), from });
        let answered = tokio::select! {
            answered = timeout(DEADLINE, self.routes.clone().oneshot(request)) => answered.ok(),
            () = guest.sent_away() => None,
        };
        match answered {
            Some(Ok(response)) => response,
            Some(Err(never)) => match never {},
            None => (StatusCode::SERVICE_UNAVAILABLE, "too many requests, or a slow one").into_response(),
        }
    }
}

/// Returns when no request has come for too long.
async fn silence(mut requests: watch::Receiver<()>) {
    let mut limit = FIRST_REQUEST;
    while let Ok(Ok(())) = timeout(limit, requests.changed()).await {
        limit = NEXT_REQUEST;
    }
}

#[cfg(test)]
mod tests;
