//! Calls of the example service, through the forward proxy of its environment as any program would make them.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    HeaderMap, Request, StatusCode, Uri,
    client::conn::http1::{self, SendRequest},
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::net::TcpStream;

/// The longest a call may take, its answer's body included.
const LONGEST_CALL: Duration = Duration::from_secs(15);

type Connection = SendRequest<Empty<Bytes>>;

/// Makes GET requests over HTTP/1.1 and keeps its connections.
pub(crate) struct Caller {
    /// `HOST:PORT` of the forward proxy.
    proxy: Option<String>,
    /// Idle connections by `HOST:PORT`.
    idle: Mutex<HashMap<String, Vec<Connection>>>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The URL is not `http://HOST…`.
    #[error("not an http:// URL with a host")]
    Url,
    /// Nobody answers there.
    #[error("cannot connect to {address}")]
    Connect {
        /// `HOST:PORT`.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The exchange broke.
    #[error("the connection broke")]
    Exchange(#[source] hyper::Error),
    /// It took too long.
    #[error("no answer within {} s", LONGEST_CALL.as_secs())]
    TooLong,
}

impl Caller {
    /// A caller that uses no proxy.
    pub(crate) fn direct() -> Self {
        Caller { proxy: None, idle: Mutex::default() }
    }

    /// A caller that uses `HTTP_PROXY`, or `http_proxy`, if there is one.
    ///
    /// # Errors
    /// [`CallError::Url`] if it is not `http://HOST:PORT`.
    pub(crate) fn from_environment() -> Result<Self, CallError> {
        let proxy = ["HTTP_PROXY", "http_proxy"].iter().find_map(|name| std::env::var(name).ok());
        let proxy = proxy.filter(|text| !text.is_empty()).map(|text| {
            let uri: Uri = text.parse().map_err(|_| CallError::Url)?;
            address_of(&uri)
        });
        Ok(Caller { proxy: proxy.transpose()?, idle: Mutex::default() })
    }

    /// `HOST:PORT` of the forward proxy.
    pub(crate) fn proxy(&self) -> Option<&str> {
        self.proxy.as_deref()
    }

    /// GETs `url`; any status is an answer.
    ///
    /// # Errors
    /// [`CallError`] when there is no answer.
    pub(crate) async fn get(&self, url: &Uri, headers: HeaderMap) -> Result<(StatusCode, Bytes), CallError> {
        let host = url.authority().ok_or(CallError::Url)?.as_str();
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let (address, target) = match &self.proxy {
            Some(proxy) => (proxy.clone(), url.clone()),
            None => (address_of(url)?, path.parse().map_err(|_| CallError::Url)?),
        };
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = target;
        *request.headers_mut() = headers;
        request.headers_mut().insert(HOST, HeaderValue::from_str(host).map_err(|_| CallError::Url)?);
        tokio::time::timeout(LONGEST_CALL, self.exchange(&address, request))
            .await
            .map_err(|_| CallError::TooLong)?
    }

    async fn exchange(
        &self,
        address: &str,
        mut request: Request<Empty<Bytes>>,
    ) -> Result<(StatusCode, Bytes), CallError> {
        loop {
            let kept = self.take_idle(address);
            let fresh = kept.is_none();
            let mut connection = match kept {
                Some(connection) => connection,
                None => connect(address).await?,
            };
            match connection.try_send_request(request).await {
                Ok(response) => {
                    let status = response.status();
                    let body = response.into_body().collect().await.map_err(CallError::Exchange)?;
                    self.keep(address, connection);
                    return Ok((status, body.to_bytes()));
                }
                // A kept connection may have been closed while it was idle; what was never sent is sent again.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(CallError::Exchange(error.into_error())),
                },
            }
        }
    }

    fn take_idle(&self, address: &str) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = idle.get_mut(address)?;
        connections.retain(|connection| !connection.is_closed());
        let ready = connections.iter().rposition(Connection::is_ready)?;
        Some(connections.swap_remove(ready))
    }

    fn keep(&self, address: &str, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.entry(address.to_owned()).or_default().push(connection);
    }
}

async fn connect(address: &str) -> Result<Connection, CallError> {
    let failed = |source| CallError::Connect { address: address.to_owned(), source };
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(CallError::Exchange)?;
    // Its errors reach the request that is under way.
    tokio::spawn(connection);
    Ok(sender)
}

fn address_of(url: &Uri) -> Result<String, CallError> {
    match (url.scheme_str(), url.host()) {
        (Some("http"), Some(host)) => Ok(format!("{host}:{}", url.port_u16().unwrap_or(80))),
        _ => Err(CallError::Url),
    }
}
