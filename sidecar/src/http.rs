//! One HTTP request over a connection that is already there: to Envoy's admin interface and to the application.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode, body::Incoming, client::conn, http::response::Parts};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

/// The largest body read, in bytes.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// The version of HTTP to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, known beforehand.
    Http2,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The path is none.
    #[error("not a path")]
    Path(#[source] hyper::http::Error),
    /// The conversation broke.
    #[error("no HTTP answer")]
    Exchange(#[source] hyper::Error),
    /// The body broke, or is larger than [`BODY_BYTES_MAX`].
    #[error("no whole answer")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends a request without a body; gives the status and the body.
pub(crate) async fn exchange<S>(
    stream: S,
    version: Version,
    method: Method,
    path_and_query: &str,
) -> Result<(StatusCode, Bytes), HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let uri = match version {
        Version::Http1 => path_and_query.to_owned(),
        Version::Http2 => format!("http://localhost{path_and_query}"),
    };
    let mut builder = Request::builder().method(method).uri(uri);
    if version == Version::Http1 {
        builder = builder.header(hyper::header::HOST, "localhost");
    }
    let request = builder.body(Empty::<Bytes>::new()).map_err(HttpError::Path)?;
    let io = TokioIo::new(stream);
    match version {
        Version::Http1 => {
            let (mut sender, connection) = conn::http1::handshake(io).await.map_err(HttpError::Exchange)?;
            while_driving(connection, async { collect(sender.send_request(request).await).await }).await
        }
        Version::Http2 => {
            let handshake = conn::http2::handshake(TokioExecutor::new(), io).await;
            let (mut sender, connection) = handshake.map_err(HttpError::Exchange)?;
            while_driving(connection, async { collect(sender.send_request(request).await).await }).await
        }
    }
}

/// Sends a request over HTTP/1.1; gives the head of the answer.
pub(crate) async fn head<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Parts, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(HttpError::Exchange)?;
    let response = while_driving(connection, sender.send_request(request)).await;
    response.map(|response| response.into_parts().0).map_err(HttpError::Exchange)
}

/// Runs `exchange` with the connection under it; the connection goes with the answer.
async fn while_driving<T>(
    connection: impl Future<Output = Result<(), hyper::Error>>,
    exchange: impl Future<Output = T>,
) -> T {
    let (exchange, connection) = (std::pin::pin!(exchange), std::pin::pin!(connection));
    match futures::future::select(exchange, connection).await {
        futures::future::Either::Left((answer, _)) => answer,
        // A connection that ended has said why to the exchange.
        futures::future::Either::Right((_, exchange)) => exchange.await,
    }
}

async fn collect(
    response: Result<hyper::Response<Incoming>, hyper::Error>,
) -> Result<(StatusCode, Bytes), HttpError> {
    let response = response.map_err(HttpError::Exchange)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.map_err(HttpError::Body)?;
    Ok((status, body.to_bytes()))
}
