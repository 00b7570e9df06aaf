//! Somebody who speaks to the operator's gRPC port and claims what they like.

use airlane_wire::{
    join::{JoinInfo, OPERATOR_DNS_NAME, workload_identity},
    message::{JoinRequest, JoinResponse, Port},
    operator,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::Code;

/// The longest a call may take.
const LONGEST: Duration = Duration::from_secs(20);

/// A certificate chain and its key, to be shown to the operator.
#[derive(Clone)]
pub struct Papers {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key, PKCS#8.
    pub key_der: Vec<u8>,
    /// The instance the leaf is for.
    pub instance: String,
}

/// A connection to the operator's port.
pub struct Stranger {
    sender: http2::SendRequest<Full<Bytes>>,
}

/// Why a call was not answered with a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// gRPC's status and its text.
    Status(Code, String),
    /// No connection, no TLS, no HTTP/2: refused before anything was said.
    Connection(String),
}

impl Refusal {
    /// The gRPC status.
    pub fn code(&self) -> Option<Code> {
        match self {
            Refusal::Status(code, _) => Some(*code),
            Refusal::Connection(_) => None,
        }
    }
}

impl Stranger {
    /// Connects with or without papers. With TLS 1.3 a refusal of the papers shows in the first call.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn connect(join: &JoinInfo, state: &Path, papers: Option<&Papers>) -> Result<Self, Refusal> {
        let tls = connect_tls(join, state, papers).await.map_err(Refusal::Connection)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .map_err(|error| Refusal::Connection(error.to_string()))?;
        tokio::spawn(connection);
        Ok(Stranger { sender })
    }

    /// Calls `path` (`/package.Service/Method`) with one message, and gives the first message of the answer.
    ///
    /// # Errors
    /// The refusal.
    pub async fn call<M: Message + Default>(
        &mut self,
        path: &str,
        message: &impl Message,
    ) -> Result<M, Refusal> {
        let answer = tokio::time::timeout(LONGEST, self.exchange(path, message)).await;
        let bytes = answer.unwrap_or_else(|_| Err(Refusal::Connection("no answer".to_owned())))?;
        Ok(M::decode(bytes).unwrap())
    }

    async fn exchange(&mut self, path: &str, message: &impl Message) -> Result<Bytes, Refusal> {
        let broken = |error: hyper::Error| Refusal::Connection(format!("{:#}", anyhow::Error::from(error)));
        // Length-prefixed, uncompressed: the framing of gRPC over HTTP/2.
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.encoded_len()).unwrap());
        frame.put_slice(&message.encode_to_vec());
        let request = Request::post(format!("https://{OPERATOR_DNS_NAME}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(frame.freeze()))
            .unwrap();
        self.sender.ready().await.map_err(broken)?;
        let response = self.sender.send_request(request).await.map_err(broken)?;
        refused(response.headers())?;
        let body = response.into_body().collect().await.map_err(broken)?;
        if let Some(trailers) = body.trailers() {
            refused(trailers)?;
        }
        Ok(body.to_bytes().slice(5..))
    }
}

/// A TLS connection to the operator, whose root is read from its state directory.
///
/// # Errors
/// Why there is none.
pub async fn connect_tls(
    join: &JoinInfo,
    state: &Path,
    papers: Option<&Papers>,
) -> Result<TlsStream<TcpStream>, String> {
    let root = CertificateDer::from_pem_file(state.join("ca").join("root.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match papers {
        None => config.with_no_client_auth(),
        Some(papers) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(papers.key_der.clone()));
            config.with_client_auth_cert(papers.chain.clone(), key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(OPERATOR_DNS_NAME).unwrap();
    let stream = TcpStream::connect(&join.address).await.map_err(|error| error.to_string())?;
    // As sidecars and Envoys do: else a small message waits for the acknowledgement of the one before.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| error.to_string())
}

fn refused(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    match headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes())) {
        None | Some(Code::Ok) => Ok(()),
        Some(code) => Err(Refusal::Status(code, text("grpc-message"))),
    }
}

/// A request to join as `service` in the default namespace, with a CSR for `identity`.
pub fn join_request(join: &JoinInfo, service: &str, identity: &str) -> (JoinRequest, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let request = JoinRequest {
        token: join.secret.clone(),
        csr: csr(&key, identity),
        namespace: "default".to_owned(),
        service: service.to_owned(),
        revision: "v1".to_owned(),
        address: "127.0.0.1".to_owned(),
        ports: vec![Port { app: 9, mesh: 9, protocol: "http".to_owned(), service: 80 }],
        outbound_port: 9,
        agent_socket: "/nowhere/agent.sock".to_owned(),
        admin_socket: "/nowhere/admin.sock".to_owned(),
        event_log: "/nowhere/outliers.jsonl".to_owned(),
        instance: String::new(),
        sidecar_version: "0".to_owned(),
    };
    (request, key)
}

/// A PKCS#10 request for `identity` and nothing else, DER.
pub fn csr(key: &KeyPair, identity: &str) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    params.serialize_request(key).unwrap().der().to_vec()
}

/// Joins properly as `service`, without a proxy, and gives the papers.
///
/// # Panics
/// When the operator refuses.
pub async fn join_properly(join: &JoinInfo, state: &Path, service: &str) -> Papers {
    join_properly_at(join, state, service, 9).await
}

/// [`join_properly`] with a mesh port of its own: of two copies in one place the operator forgets the first.
///
/// # Panics
/// When the operator refuses.
pub async fn join_properly_at(join: &JoinInfo, state: &Path, service: &str, mesh_port: u16) -> Papers {
    let identity = workload_identity(&join.trust_domain, "default", service);
    let (mut request, key) = join_request(join, service, &identity);
    request.ports[0].mesh = mesh_port.into();
    join_by(join, state, &request, &key).await
}

/// Joins as the pod whose projected token this is and that has this identity, without a proxy, and gives the papers.
///
/// # Panics
/// When the operator refuses.
pub async fn join_as_pod(join: &JoinInfo, state: &Path, token: &str, identity: &str) -> Papers {
    // What it says of itself, the operator does not look at.
    let (request, key) = join_request(join, "pod", identity);
    join_by(join, state, &JoinRequest { token: token.to_owned(), ..request }, &key).await
}

async fn join_by(join: &JoinInfo, state: &Path, request: &JoinRequest, key: &KeyPair) -> Papers {
    let mut stranger = Stranger::connect(join, state, None).await.unwrap();
    let joined: JoinResponse = stranger.call(operator::METHODS[0], request).await.unwrap();
    let chain_pem = joined.certificate.unwrap().chain_pem;
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<_, _>>().unwrap();
    Papers { chain, key_der: key.serialize_der(), instance: joined.instance }
}
