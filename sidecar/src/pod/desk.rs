//! Where the agent answers the kubelet.
//!
//! The port is open to everybody who can reach the pod, so it gives nothing away and takes little: one short request a
//! connection, few connections, and nothing but [`Asked::Ready`] without the pod's secret.

use super::{
    ask::{self, Outcome},
    departure::Departure,
};
use airlane_wire::{
    crowd::Crowd,
    pod::{Ask, Asked, Asks},
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{HeaderValue, USER_AGENT},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use subtle::ConstantTimeEq;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

/// Connections at once. The kubelet has one for each probe that is being answered.
const CONNECTIONS_MAX: usize = 64;
/// The longest a request's head may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of a request's head, and the most headers.
const HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
/// The longest until a wish to be drained is answered, whatever came of it: what is added to a pod's grace period.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait when a connection cannot be taken: most often there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What there is once the pod is in the mesh.
pub(super) struct Live {
    /// Whether Envoy serves.
    pub(super) envoy_ready: watch::Receiver<bool>,
    /// The pod's departures.
    pub(super) departure: Departure,
}

/// Who answers.
pub(super) struct Desk {
    asks: Asks,
    pod: IpAddr,
    live: OnceLock<Live>,
}

/// An answer: a status, and why in words that are no secret.
type Answer = (StatusCode, String);

impl Desk {
    /// Answers about the application on `pod`, while the pod is not in the mesh yet.
    pub(super) fn new(asks: Asks, pod: IpAddr) -> Self {
        Self { asks, pod, live: OnceLock::new() }
    }

    /// The pod is in the mesh.
    pub(super) fn open(&self, live: Live) {
        // It comes into the mesh once in its life.
        self.live.set(live).ok();
    }

    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        if request.method() != Method::GET {
            return (StatusCode::METHOD_NOT_ALLOWED, String::new());
        }
        // A wrong secret finds no more than a wrong path.
        let nothing = (StatusCode::NOT_FOUND, String::new());
        match Asked::of_path(request.uri().path()) {
            Some(Asked::Ready) => self.ready(),
            Some(Asked::Drain { secret }) if self.knows(secret) => self.drain().await,
            Some(Asked::Container { container, occasion, secret }) if self.knows(secret) => {
                match self.asks.asks.get(&Asked::key(container, occasion)) {
                    Some(ask) => self.ask(ask, request.headers().get(USER_AGENT)).await,
                    None => nothing,
                }
            }
            _ => nothing,
        }
    }

    fn knows(&self, secret: &str) -> bool {
        self.asks.secret.as_bytes().ct_eq(secret.as_bytes()).into()
    }

    async fn ask(&self, ask: &Ask, user_agent: Option<&HeaderValue>) -> Answer {
        let limit = Duration::from_secs(ask.timeout_seconds.into());
        match timeout(limit, ask::ask(&ask.how, self.pod, user_agent)).await {
            Ok(outcome) => relayed(outcome),
            Err(_) => (StatusCode::GATEWAY_TIMEOUT, format!("no answer within {limit:?}")),
        }
    }

    fn ready(&self) -> Answer {
        match self.live.get() {
            None => (StatusCode::SERVICE_UNAVAILABLE, "not in the mesh yet".into()),
            Some(live) if *live.envoy_ready.borrow() => (StatusCode::OK, String::new()),
            Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "Envoy does not listen yet".into()),
        }
    }

    async fn drain(&self) -> Answer {
        let Some(live) = self.live.get() else {
            return (StatusCode::OK, "nobody has called this pod yet".into());
        };
        match timeout(DRAIN_TIMEOUT, live.departure.of_a_container()).await {
            Ok(()) => (StatusCode::OK, String::new()),
            // No reason to keep the application from ending: who waits still, waits for its last answers.
            Err(_) => (StatusCode::OK, "some callers still wait for an answer".into()),
        }
    }
}

/// What the kubelet is told. It follows redirections, which would lead it to places of the agent that do not exist.
fn relayed(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Well => (StatusCode::OK, String::new()),
        Outcome::Unwell(status) => (status, String::new()),
        Outcome::Silent(reason) => (StatusCode::BAD_GATEWAY, reason),
    }
}

/// Answers until the runtime ends.
pub(super) async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    let mut crowd = Crowd::new(CONNECTIONS_MAX);
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let connection = tokio::spawn(converse(stream, Arc::clone(&desk)));
                if let Some(other) = crowd.admit(from.ip(), connection.abort_handle()) {
                    other.abort();
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot take a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, desk: Arc<Desk>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let desk = Arc::clone(&desk);
        async move {
            let (status, reason) = desk.answer(&request).await;
            let mut response = Response::new(Full::new(Bytes::from(reason)));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a conversation on the agent's port broke off");
    }
}
