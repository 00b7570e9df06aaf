//! Talks to the operator of this host over its socket.

use crate::local::server::Refusal;
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

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
    /// The conversation broke.
    #[error("the mesh stopped answering")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> ClientError {
    ClientError::Broken(Box::new(error))
}

/// The operator of this host.
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// The operator whose state directory this is.
    pub(crate) fn new(state: &Path) -> Self {
        Client { socket: state.join("airlane.sock") }
    }

    /// Whether anybody listens.
    pub(crate) async fn answers(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
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
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Absent { socket: self.socket.clone(), source })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = tokio::spawn(connection);
        let request = request.header("host", "airlane").body(Full::new(body)).map_err(broken)?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let ok = response.status().is_success();
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        connection.abort();
        if ok {
            serde_json::from_slice(&body).map_err(broken)
        } else {
            let refusal = serde_json::from_slice::<Refusal>(&body)
                .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |refusal| refusal.error);
            Err(ClientError::Refused(refusal))
        }
    }
}
