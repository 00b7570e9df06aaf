//! Talks to an operator over its socket: that of this host, or that in a pod, to which `kubectl exec` carries the bytes.

use super::{cluster::exec::Exec, table::plain};
use crate::local::server::Refusal;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::UnixStream,
    process::{Child, ChildStderr},
    sync::Mutex,
    task::JoinHandle,
    time::timeout,
};

/// The longest that an answer from a pod may take, the way there included.
const POD_ANSWER: Duration = Duration::from_secs(20);
/// The longest that a way that broke may take to say why, and the most that is read of it, in bytes.
const LAST_WORDS: Duration = Duration::from_secs(2);
const LAST_WORDS_MAX: u64 = 4096;

/// Why the operator gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens.
    #[error("no mesh answers at {}: start one with `airlane up DIR`, name its state directory with --state, or set KUBECONFIG for that of a cluster", socket.display())]
    Absent {
        /// Where we looked.
        socket: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else's.
    #[error("only its owner may open {}: ask as that user, or name another state directory with --state", socket.display())]
    NotOurs {
        /// Where it is.
        socket: PathBuf,
    },
    /// There is no way into the pod.
    #[error("cannot start kubectl, which leads to the operator's pods: install it, and have it in your PATH")]
    NoKubectl(#[source] std::io::Error),
    /// The way into the pod leads nowhere.
    #[error("the operator in pod {pod} cannot be asked: {why}")]
    Unreachable {
        /// The pod.
        pod: String,
        /// What was said on the way.
        why: String,
    },
    /// The conversation broke.
    #[error("the mesh stopped answering")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Its answer is of another version.
    #[error("the operator's answer cannot be read: is it of another version than this command ({})?", env!("CARGO_PKG_VERSION"))]
    Foreign(#[source] serde_json::Error),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

impl ClientError {
    /// Whether the operator itself said nothing: it may be elsewhere now.
    pub(crate) fn is_of_the_way(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Unreachable { .. } | Self::Broken(_))
    }
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> ClientError {
    ClientError::Broken(Box::new(error))
}

/// An operator.
pub(crate) struct Client {
    way: Way,
    /// The connection of the last question, if it is still good.
    open: Mutex<Option<Connection>>,
}

/// Where its socket is.
enum Way {
    Host(PathBuf),
    Pod(Exec),
}

/// A conversation with an operator; it ends with this value.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    running: JoinHandle<()>,
    /// Whoever carries it.
    carrier: Option<Child>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Connection {
    async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Connection, ClientError> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Why it ends, the request hears.
        let running = tokio::spawn(async move { drop(connection.await) });
        Ok(Connection { sender, running, carrier: None })
    }

    /// What the carrier said before it gave up; nothing if there is none, or it was silent.
    async fn last_words(mut self) -> Option<String> {
        let mut carrier = self.carrier.take()?;
        let stderr: ChildStderr = carrier.stderr.take()?;
        let mut said = Vec::new();
        // What was read until then is good.
        let _ = timeout(LAST_WORDS, stderr.take(LAST_WORDS_MAX).read_to_end(&mut said)).await;
        let text = String::from_utf8_lossy(&said);
        text.lines().rfind(|line| !line.trim().is_empty()).map(|line| plain(line.trim()))
    }
}

impl Client {
    /// The operator whose state directory this is.
    pub(crate) fn new(state: &Path) -> Self {
        Client { way: Way::Host(state.join("airlane.sock")), open: Mutex::default() }
    }

    /// The operator in a pod.
    pub(crate) fn in_pod(exec: Exec) -> Self {
        Client { way: Way::Pod(exec), open: Mutex::default() }
    }

    /// Whether anybody listens on this host.
    pub(crate) async fn answers(&self) -> bool {
        match &self.way {
            Way::Host(socket) => UnixStream::connect(socket).await.is_ok(),
            Way::Pod(_) => false,
        }
    }

    /// Asks for a view.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Request::get(path), Bytes::new()).await
    }

    /// Asks for something to be done.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(broken)?;
        self.send(Request::post(path).header("content-type", "application/json"), body.into()).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let request = request.header("host", "airlane").body(Full::new(body)).map_err(broken)?;
        let (ok, body) = match &self.way {
            Way::Host(_) => self.exchange(request).await?,
            Way::Pod(exec) => {
                let late = || ClientError::Unreachable {
                    pod: exec.pod.clone(),
                    why: format!("no answer within {POD_ANSWER:?}"),
                };
                timeout(POD_ANSWER, self.exchange(request)).await.map_err(|_| late())??
            }
        };
        if ok {
            serde_json::from_slice(&body).map_err(ClientError::Foreign)
        } else {
            let refusal = serde_json::from_slice::<Refusal>(&body)
                .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |refusal| refusal.error);
            Err(ClientError::Refused(refusal))
        }
    }

    /// Whether it was granted, and the answer.
    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(bool, Bytes), ClientError> {
        let mut open = self.open.lock().await;
        let mut connection = match open.take() {
            Some(kept) if kept.sender.is_ready() => kept,
            _ => self.connect().await?,
        };
        let answer = async {
            let response = connection.sender.send_request(request).await?;
            let ok = response.status().is_success();
            Ok((ok, response.into_body().collect().await?.to_bytes()))
        };
        let answer: Result<_, hyper::Error> = answer.await;
        match (answer, &self.way) {
            (Ok(answer), _) => {
                *open = Some(connection);
                Ok(answer)
            }
            (Err(error), Way::Host(_)) => Err(broken(error)),
            (Err(error), Way::Pod(exec)) => match connection.last_words().await {
                Some(why) => Err(ClientError::Unreachable { pod: exec.pod.clone(), why }),
                None => Err(broken(error)),
            },
        }
    }

    async fn connect(&self) -> Result<Connection, ClientError> {
        match &self.way {
            Way::Host(socket) => {
                let socket = socket.clone();
                let stream = UnixStream::connect(&socket).await.map_err(|source| match source.kind() {
                    ErrorKind::PermissionDenied => ClientError::NotOurs { socket },
                    _ => ClientError::Absent { socket, source },
                })?;
                Connection::over(stream).await
            }
            Way::Pod(exec) => {
                let (stream, carrier) = exec.start().map_err(ClientError::NoKubectl)?;
                let mut connection = Connection::over(stream).await?;
                connection.carrier = Some(carrier);
                Ok(connection)
            }
        }
    }
}
