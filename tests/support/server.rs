//! Applications that run in the test: they speak what the example service does not.

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Frame, Incoming},
    header::HeaderValue,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::json;
use std::{
    convert::Infallible,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// gRPC's status UNAVAILABLE.
const UNAVAILABLE: &str = "14";

type Body = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// What a [`Server`] does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Web,
    Grpc { every: u64 },
    Greeter,
}

/// A server on loopback, until it is dropped.
pub struct Server {
    port: u16,
    counts: Arc<Counts>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    failed: AtomicU64,
}

impl Server {
    /// HTTP/1.1 and HTTP/2 without TLS: answers with what it saw, `{"version", "authority", "path", "peers"}`, where
    /// `peers` are the callers its proxy vouches for (`x-forwarded-client-cert`).
    pub async fn web() -> Self {
        Self::start(Kind::Web).await
    }

    /// A gRPC server whose every unary method echoes its message, but for each `every`th call, which it answers with
    /// UNAVAILABLE; 0: none.
    pub async fn grpc(every: u64) -> Self {
        Self::start(Kind::Grpc { every }).await
    }

    /// Says [`GREETING`] to whoever connects, before it has heard a byte, and then echoes.
    pub async fn greeter() -> Self {
        Self::start(Kind::Greeter).await
    }

    async fn start(kind: Kind) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::port::free())).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::new(Counts::default());
        let counting = Arc::clone(&counts);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(kind, stream, Arc::clone(&counting)));
            }
        });
        Server { port, counts, serving }
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many requests it got.
    pub fn requests(&self) -> u64 {
        self.counts.requests.load(Relaxed)
    }

    /// How many of them it failed.
    pub fn failed(&self) -> u64 {
        self.counts.failed.load(Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The first words of [`Server::greeter`].
pub const GREETING: &str = "220 ready\r\n";

async fn serve(kind: Kind, mut stream: TcpStream, counts: Arc<Counts>) {
    if matches!(kind, Kind::Greeter) {
        let (mut read, mut write) = stream.split();
        // The other side may hang up at any time, as a health check does.
        if write.write_all(GREETING.as_bytes()).await.is_ok() {
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
        return;
    }
    let answer = service_fn(move |request: Request<Incoming>| {
        let number = counts.requests.fetch_add(1, Relaxed) + 1;
        let counts = Arc::clone(&counts);
        async move {
            Ok::<_, Infallible>(match kind {
                Kind::Grpc { every } if every > 0 && number.is_multiple_of(every) => {
                    counts.failed.fetch_add(1, Relaxed);
                    refusal()
                }
                Kind::Grpc { .. } => echo(request).await,
                Kind::Web | Kind::Greeter => seen(&request),
            })
        }
    });
    // As above.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
}

fn seen(request: &Request<Incoming>) -> Response<Body> {
    let header =
        |name: &str| request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let authority = request.uri().authority().map(|authority| authority.as_str().into()).or(header("host"));
    let vouched = header("x-forwarded-client-cert").unwrap_or_default();
    let peers: Vec<&str> =
        vouched.split([';', ',']).filter_map(|element| element.strip_prefix("URI=")).collect();
    let seen = json!({
        "version": format!("{:?}", request.version()),
        "authority": authority,
        "path": request.uri().path(),
        "peers": peers,
    });
    Response::new(frames(vec![Frame::data(seen.to_string().into())]))
}

async fn echo(request: Request<Incoming>) -> Response<Body> {
    let message =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    grpc(Response::new(frames(vec![Frame::data(message), Frame::trailers(trailers)])))
}

/// Trailers alone: the status is among the headers.
fn refusal() -> Response<Body> {
    let mut response = grpc(Response::new(frames(Vec::new())));
    response.headers_mut().insert("grpc-status", HeaderValue::from_static(UNAVAILABLE));
    response
}

fn grpc(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn frames(frames: Vec<Frame<Bytes>>) -> Body {
    StreamBody::new(stream::iter(frames.into_iter().map(Ok).collect::<Vec<_>>()))
}
