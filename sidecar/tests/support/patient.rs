//! An application that answers probes: well, badly, late, elsewhere.

use super::authority::{Ca, OPERATOR};
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ServerConfig, crypto::ring};
use std::{convert::Infallible, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// The application's ports.
pub(crate) struct Patient {
    pub(crate) http: u16,
    pub(crate) https: u16,
    pub(crate) grpc: u16,
    /// Nobody listens here.
    pub(crate) closed: u16,
    /// The heads of the HTTP requests that came in.
    pub(crate) heads: watch::Receiver<Vec<String>>,
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

pub(crate) async fn patient() -> Patient {
    let (plain, http) = listener().await;
    let (secure, https) = listener().await;
    let (h2, grpc) = listener().await;
    let (_, closed) = listener().await;
    let (told, heads) = watch::channel(Vec::new());
    let tell = told.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = plain.accept().await {
            tokio::spawn(answer(stream, tell.clone()));
        }
    });
    tokio::spawn(async move {
        let acceptor = acceptor();
        while let Ok((stream, _)) = secure.accept().await {
            let (acceptor, told) = (acceptor.clone(), told.clone());
            tokio::spawn(async move {
                if let Ok(tls) = acceptor.accept(stream).await {
                    answer(tls, told).await;
                }
            });
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = h2.accept().await {
            let serve = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serve.serve_connection(TokioIo::new(stream), service_fn(check_health)));
        }
    });
    Patient { http, https, grpc, closed, heads }
}

/// A certificate that nobody has a reason to trust.
fn acceptor() -> TlsAcceptor {
    let server = Ca::new().server(OPERATOR, "elsewhere");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(server.chain, server.key)
        .expect("a key");
    TlsAcceptor::from(Arc::new(config))
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, told: watch::Sender<Vec<String>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            // A TCP probe hangs up without a word.
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).expect("text");
    let path = head.split(' ').nth(1).expect("a path").to_owned();
    told.send_modify(|heads| heads.push(head));
    let (status, more) = match path.as_str() {
        "/ok" => ("200 OK", ""),
        "/moved" => ("302 Found", "location: /ok\r\n"),
        "/moved-to-sick" => ("302 Found", "location: /sick\r\n"),
        "/moved-away" => ("302 Found", "location: http://example.com/sick\r\n"),
        "/round" => ("302 Found", "location: /round\r\n"),
        "/slow" => return std::future::pending().await,
        _ => ("500 Internal Server Error", ""),
    };
    let answer = format!("HTTP/1.1 {status}\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n");
    // Who does not wait for it has no use for it.
    stream.write_all(answer.as_bytes()).await.ok();
    stream.shutdown().await.ok();
}

/// `good` serves, `bad` does not, others are not known.
async fn check_health(
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    let question = request.into_body().collect().await.expect("a question").to_bytes();
    // A length of five bytes before the message; in it a tag and a length of one byte each.
    let (status, code) = match question.get(7..).unwrap_or_default() {
        b"good" => (1, "0"),
        b"bad" => (2, "0"),
        _ => (0, "5"),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().expect("a value"));
    let message = Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]));
    let frames = [message, Frame::trailers(trailers)].map(Ok);
    let frames: Vec<_> = frames.into_iter().skip(usize::from(code != "0")).collect();
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
    Ok(response)
}
