//! Single requests, each on a connection of its own.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Uri,
    client::conn::http1,
    header::{self, HeaderName},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{fmt, path::Path, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// The longest an exchange may take.
const LONGEST: Duration = Duration::from_secs(20);

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null if it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.text())
    }
}

/// GET `url` through the forward proxy at `proxy`, in absolute form (RFC 9112, 3.2.2).
///
/// # Errors
/// The reason why there is no answer.
pub async fn get_through(proxy: u16, url: &str) -> Result<Answer, String> {
    send_through(proxy, request("GET", url, "")).await
}

/// Any request, whose URI is absolute, through the forward proxy at `proxy`.
///
/// # Errors
/// The reason why there is no answer.
pub async fn send_through(proxy: u16, mut request: Request<Full<Bytes>>) -> Result<Answer, String> {
    let host = request.uri().authority().ok_or("the URL has no host")?.to_string();
    request.headers_mut().entry(header::HOST).or_insert(host.parse().map_err(|_| "not a host")?);
    in_time(async { exchange(tcp(&format!("127.0.0.1:{proxy}")).await?, request).await }).await
}

/// A request to the host its URL names.
///
/// # Errors
/// The reason why there is no answer.
pub async fn send(method: &str, url: &str, body: &str) -> Result<Answer, String> {
    send_request(method, url, body, &[]).await
}

/// A request without a body, with headers, to the host its URL names.
///
/// # Errors
/// The reason why there is no answer.
pub async fn send_with(method: &str, url: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
    send_request(method, url, "", headers).await
}

async fn send_request(
    method: &str,
    url: &str,
    body: &str,
    headers: &[(&str, &str)],
) -> Result<Answer, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let address = format!("{}:{}", uri.host().ok_or("the URL has no host")?, uri.port_u16().unwrap_or(80));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = request(method, path, body);
    request.headers_mut().insert(header::HOST, address.parse().map_err(|_| "not a host")?);
    for (name, value) in headers {
        let name: HeaderName = name.parse().map_err(|_| "not a header's name")?;
        request.headers_mut().insert(name, value.parse().map_err(|_| "not a header's value")?);
    }
    in_time(async { exchange(tcp(&address).await?, request).await }).await
}

/// GET `path` from the server behind a unix socket.
///
/// # Errors
/// The reason why there is no answer.
pub async fn get_unix(socket: &Path, path: &str) -> Result<Answer, String> {
    let mut request = request("GET", path, "");
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("unix"));
    in_time(async {
        let stream =
            UnixStream::connect(socket).await.map_err(|error| format!("{}: {error}", socket.display()))?;
        exchange(stream, request).await
    })
    .await
}

/// A request with a JSON body, or none if `body` is empty.
///
/// # Panics
/// When `method` or `uri` is not one.
pub fn request(method: &str, uri: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri);
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request.body(Full::from(body.to_owned())).unwrap()
}

async fn tcp(address: &str) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))
}

async fn in_time(exchange: impl Future<Output = Result<Answer, String>>) -> Result<Answer, String> {
    tokio::time::timeout(LONGEST, exchange).await.unwrap_or_else(|_| Err(format!("no answer in {LONGEST:?}")))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, String> {
    let broken = |error: hyper::Error| format!("the connection broke: {:#}", anyhow::Error::from(error));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
    let body = body.collect().await.map_err(broken)?.to_bytes();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
}
