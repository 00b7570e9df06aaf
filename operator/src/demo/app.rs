//! The example service of the demo and of the tests: it answers, calls the next services through the proxy it was
//! handed, and misbehaves as much as it is told to.
//!
//! `GET` or `POST` on any path answers `{service, version, hops}`, where `hops` are the answers of the services it
//! called, and `caller`, if its proxy says who called. `/healthz` says whether it is alive. `/behaviour`, on loopback only, shows and changes how it behaves.

use super::caller::{CallError, Caller};
use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

/// Headers that tie a call to the one that caused it: W3C Trace Context, B3, and Envoy's request id.
const TRACE_HEADERS: [&str; 9] = [
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-request-id",
];

/// How the example service is started.
#[derive(clap::Args, Debug, Clone)]
// `--version` is the example's, not the program's.
#[command(disable_version_flag = true)]
pub(crate) struct AppArgs {
    /// The address to listen on.
    #[arg(long, default_value_t = IpAddr::from(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// The port to listen on.
    #[arg(long)]
    port: u16,
    /// The service's name in its answers.
    #[arg(long)]
    name: String,
    /// The version in its answers.
    #[arg(long, default_value = "v1")]
    version: String,
    /// Call this URL for every request; may be repeated.
    #[arg(long = "call", value_name = "URL")]
    calls: Vec<Uri>,
    /// Answer this share of the requests with 500.
    #[arg(long, default_value = "0%", value_parser = share, value_name = "PERCENT%")]
    fail: f64,
    /// Wait this long before answering.
    #[arg(long, default_value = "0ms", value_parser = milliseconds, value_name = "MILLISECONDSms")]
    delay: u64,
    /// Which of the requests fail: the same seed fails the same ones.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Answer every request with 503 while this file exists.
    #[arg(long, value_name = "FILE")]
    sick: Option<PathBuf>,
    /// On SIGTERM end at once, whatever is being answered.
    #[arg(long)]
    abrupt: bool,
}

/// How it behaves, and may be told to at run time.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Behaviour {
    /// The share of requests answered with 500, 0 to 1.
    fail: f64,
    /// How long every answer takes.
    delay_ms: u64,
    /// Every request is answered with 503.
    sick: bool,
    /// Whether `/healthz` says so.
    healthy: bool,
}

/// A change of behaviour; what is not named stays.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Change {
    fail: Option<f64>,
    delay_ms: Option<u64>,
    sick: Option<bool>,
    healthy: Option<bool>,
}

struct App {
    args: AppArgs,
    caller: Caller,
    behaviour: Mutex<Behaviour>,
    requests: AtomicU64,
    failed: AtomicU64,
}

/// What stops the example service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    /// The port is taken, or not ours to take.
    #[error("cannot listen on {address}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// `HTTP_PROXY` is not `http://HOST:PORT`.
    #[error("cannot use the proxy of the environment")]
    Proxy(#[source] CallError),
    /// Signals cannot be received.
    #[error("cannot wait for a signal to stop")]
    Signal(#[source] std::io::Error),
    /// Connections cannot be accepted any more.
    #[error("cannot serve")]
    Serve(#[source] std::io::Error),
}

/// Serves until SIGTERM or SIGINT, then finishes the requests it has, unless told otherwise.
///
/// # Errors
/// [`AppError`] when it cannot start or go on.
pub(crate) async fn run(args: AppArgs) -> Result<(), AppError> {
    let address = SocketAddr::new(args.address, args.port);
    let listener = TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, source })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signal)?;
    let caller = Caller::from_environment().map_err(AppError::Proxy)?;
    let ended = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let abrupt = args.abrupt;
    let service = axum::serve(listener, routes(App::new(args, caller)));
    let served = if abrupt {
        tokio::select! {
            served = service.into_future() => served,
            () = ended => Ok(()),
        }
    } else {
        service.with_graceful_shutdown(ended).await
    };
    served.map_err(AppError::Serve)
}

fn routes(app: App) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/behaviour", get(show_behaviour).post(change_behaviour))
        .fallback(answer)
        .with_state(Arc::new(app))
}

impl App {
    fn new(args: AppArgs, caller: Caller) -> Self {
        let behaviour = Behaviour { fail: args.fail, delay_ms: args.delay, sick: false, healthy: true };
        let behaviour = Mutex::new(behaviour);
        App { args, caller, behaviour, requests: AtomicU64::new(0), failed: AtomicU64::new(0) }
    }

    fn behaviour(&self) -> Behaviour {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_sick(&self, behaviour: &Behaviour) -> bool {
        behaviour.sick || self.args.sick.as_ref().is_some_and(|file| file.exists())
    }

    fn failure(&self, status: StatusCode, error: &str, hops: &[Value]) -> Response {
        self.failed.fetch_add(1, Relaxed);
        let AppArgs { name, version, .. } = &self.args;
        (status, Json(json!({"service": name, "version": version, "error": error, "hops": hops})))
            .into_response()
    }
}

async fn health(State(app): State<Arc<App>>) -> StatusCode {
    if app.behaviour().healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn answer(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let number = app.requests.fetch_add(1, Relaxed);
    let behaviour = app.behaviour();
    if behaviour.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(behaviour.delay_ms)).await;
    }
    if app.is_sick(&behaviour) {
        return app.failure(StatusCode::SERVICE_UNAVAILABLE, "told to be sick", &[]);
    }
    if fails(app.args.seed, number, behaviour.fail) {
        return app.failure(StatusCode::INTERNAL_SERVER_ERROR, "told to fail", &[]);
    }
    let traced = traced(&headers);
    let mut hops = Vec::with_capacity(app.args.calls.len());
    for url in &app.args.calls {
        match app.caller.get(url, traced.clone()).await {
            Ok((status, body)) => {
                let hop = serde_json::from_slice(&body)
                    .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
                hops.push(hop);
                // Not 502: a caller's proxy would leave this endpoint out for what the next one did.
                if status.is_client_error() || status.is_server_error() {
                    let error = format!("{url} answered {status}");
                    return app.failure(StatusCode::INTERNAL_SERVER_ERROR, &error, &hops);
                }
            }
            Err(error) => {
                let error = format!("{url}: {:#}", anyhow::Error::from(error));
                return app.failure(StatusCode::INTERNAL_SERVER_ERROR, &error, &hops);
            }
        }
    }
    let AppArgs { name, version, .. } = &app.args;
    let mut body = json!({"service": name, "version": version, "hops": hops});
    if let Some(caller) = proven_caller(&headers) {
        body["caller"] = json!(caller);
    }
    Json(body).into_response()
}

/// Who called, as the certificate says that the caller showed to this service's proxy, which removes what callers
/// write here themselves.
fn proven_caller(headers: &HeaderMap) -> Option<&str> {
    let elements = headers.get("x-forwarded-client-cert")?.to_str().ok()?.split(';');
    elements.filter_map(|element| element.strip_prefix("URI=")).next()
}

async fn show_behaviour(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    if let Some(refusal) = refuse_foreign(&headers) {
        return refusal;
    }
    let Behaviour { fail, delay_ms, sick, healthy } = app.behaviour();
    Json(json!({
        "fail": fail,
        "delay_ms": delay_ms,
        "sick": sick,
        "healthy": healthy,
        "requests": app.requests.load(Relaxed),
        "failed": app.failed.load(Relaxed),
        "proxy": app.caller.proxy(),
    }))
    .into_response()
}

async fn change_behaviour(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Json(change): Json<Change>,
) -> Response {
    if let Some(refusal) = refuse_foreign(&headers) {
        return refusal;
    }
    if change.fail.is_some_and(|fail| !(0.0..=1.0).contains(&fail)) {
        return (StatusCode::BAD_REQUEST, "`fail` is a share from 0 to 1, such as 0.05").into_response();
    }
    let mut behaviour = app.behaviour.lock().unwrap_or_else(PoisonError::into_inner);
    behaviour.fail = change.fail.unwrap_or(behaviour.fail);
    behaviour.delay_ms = change.delay_ms.unwrap_or(behaviour.delay_ms);
    behaviour.sick = change.sick.unwrap_or(behaviour.sick);
    behaviour.healthy = change.healthy.unwrap_or(behaviour.healthy);
    Json(behaviour.clone()).into_response()
}

/// Calls through the mesh name the service; who speaks to the port itself names loopback.
fn refuse_foreign(headers: &HeaderMap) -> Option<Response> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let local = host.strip_prefix("127.0.0.1").is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
    (!local).then(|| (StatusCode::FORBIDDEN, "only on http://127.0.0.1:PORT/behaviour").into_response())
}

fn traced(headers: &HeaderMap) -> HeaderMap {
    let kept = TRACE_HEADERS.iter().filter_map(|name| Some((*name, headers.get(*name)?)));
    kept.filter_map(|(name, value)| Some((name.parse().ok()?, value.clone()))).collect()
}

/// Whether request `number` is one of the share that fails: the same for the same seed, and without a pattern that
/// could agree with round robin.
fn fails(seed: u64, number: u64, share: f64) -> bool {
    // SplitMix64 (Steele, Lea, Flood 2014); the upper 53 bits as a number in [0, 1).
    let mut z =
        number.wrapping_add(seed.wrapping_mul(0xA24B_AED4_963E_E407)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    ((z >> 11) as f64) / ((1_u64 << 53) as f64) < share
}

fn share(text: &str) -> Result<f64, String> {
    let percent: Option<f64> = text.strip_suffix('%').and_then(|number| number.parse().ok());
    match percent {
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err(format!("{text:?} is not a share: write 5%")),
    }
}

fn milliseconds(text: &str) -> Result<u64, String> {
    text.strip_suffix("ms")
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("{text:?} is not a delay: write 5ms"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    fn app(more: &[&str]) -> Router {
        #[derive(clap::Parser)]
        #[command(version = "1", propagate_version = true)]
        struct Line {
            #[command(flatten)]
            app: AppArgs,
        }
        let line = ["app", "--port", "1", "--name", "payments", "--version", "v2"];
        let line: Line = clap::Parser::parse_from(line.iter().chain(more));
        routes(App::new(line.app, Caller::direct()))
    }

    async fn check(app: &Router, method: &str, host: &str, path: &str, body: &str) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", host)
            .header("content-type", "application/json")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    #[tokio::test]
    async fn it_answers_who_it_is() {
        let (status, body) = check(&app(&[]), "POST", "payments", "/pay", "").await;
        assert_eq!((status, body), (200, json!({"service": "payments", "version": "v2", "hops": []})));
    }

    #[test]
    fn it_names_who_called() {
        let check = |header: &str, expected: Option<&str>| {
            let headers =
                HeaderMap::from_iter([("x-forwarded-client-cert".parse().unwrap(), header.parse().unwrap())]);
            assert_eq!(proven_caller(&headers), expected, "{header}");
        };
        let front = "spiffe://airlane.local/ns/shop/sa/front";
        check(&format!("By=spiffe://airlane.local/ns/shop/sa/payments;Hash=00ff;URI={front}"), Some(front));
        check("Hash=00ff", None);
        assert_eq!(proven_caller(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn behaviour_changes_on_loopback_and_not_through_the_mesh() {
        let app = app(&[]);
        let (status, _) = check(&app, "POST", "payments", "/behaviour", r#"{"fail": 1}"#).await;
        assert_eq!(status, 403);
        let (status, _) = check(&app, "POST", "127.0.0.1.evil.example", "/behaviour", r#"{"fail": 1}"#).await;
        assert_eq!(status, 403);
        assert_eq!(check(&app, "GET", "payments", "/", "").await.0, 200);

        let (status, _) = check(&app, "POST", "127.0.0.1:1", "/behaviour", r#"{"fail": 1}"#).await;
        assert_eq!(status, 200);
        assert_eq!(check(&app, "GET", "payments", "/", "").await.0, 500);
        let (_, behaviour) = check(&app, "GET", "127.0.0.1:1", "/behaviour", "").await;
        assert_eq!((&behaviour["requests"], &behaviour["failed"]), (&json!(2), &json!(1)));

        let (status, _) = check(&app, "POST", "127.0.0.1:1", "/behaviour", r#"{"fail": 1.5}"#).await;
        assert_eq!(status, 400);
    }

    #[tokio::test]
    async fn a_sick_service_fails_everything_but_its_health() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let app = app(&["--sick", file.path().to_str().unwrap()]);
        assert_eq!(check(&app, "GET", "payments", "/", "").await.0, 503);
        assert_eq!(check(&app, "GET", "payments", "/healthz", "").await.0, 200);
        drop(file);
        assert_eq!(check(&app, "GET", "payments", "/", "").await.0, 200);
    }

    #[tokio::test]
    async fn a_call_that_cannot_be_made_is_told() {
        // Port 1 of loopback: nobody listens there.
        let (status, body) =
            check(&app(&["--call", "http://127.0.0.1:1/x"]), "GET", "payments", "/", "").await;
        assert_eq!(status, 500);
        assert!(body["error"].as_str().unwrap().starts_with("http://127.0.0.1:1/x: "), "{body}");
    }

    #[test]
    fn the_share_that_fails_is_the_share_asked_for() {
        for (seed, share) in [(1, 0.05), (2, 0.5), (3, 0.0), (4, 1.0)] {
            let failed = (0..100_000).filter(|number| fails(seed, *number, share)).count() as f64;
            let off = (failed / 100_000.0 - share).abs();
            assert!(off < 0.003, "seed {seed}: {failed} of 100000 failed, asked for {share}");
        }
    }
}
