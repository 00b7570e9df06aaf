//! The connection to the operator.

use crate::{identity::Leaf, join::Invitation, pin};
use airlane_wire::{
    join::{OPERATOR_DNS_NAME, operator_identity},
    operator::OperatorClient,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::ServerName,
    sign::SingleCertAndKey,
};
use std::{
    error::Error,
    io,
    net::IpAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{Status, transport::Endpoint};

/// The longest a connection may take to be made, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a silent connection is asked for a sign of life, and how long that may take: a stopped operator is
/// noticed within the sum.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

static CRYPTO: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// A client that knows the operator by the invitation, or by the mesh's `roots` as far as they are known, and shows no
/// certificate. It connects when it is used.
pub(crate) fn anonymous(
    info: &Invitation,
    roots: Arc<RootCertStore>,
) -> Result<OperatorClient, rustls::Error> {
    let config = recognising(info, info.roots.clone(), roots)?.with_no_client_auth();
    Ok(client(info, config))
}

/// A client that shows `leaf` and knows the operator by its bundle. It connects when it is used, and again
/// whenever the operator was away.
pub(crate) fn authenticated(info: &Invitation, leaf: &Leaf) -> Result<OperatorClient, rustls::Error> {
    let shown = Arc::new(SingleCertAndKey::from(Arc::clone(&leaf.certified)));
    let config = recognising(info, Vec::new(), Arc::clone(&leaf.roots))?.with_client_cert_resolver(shown);
    Ok(client(info, config))
}

fn recognising(
    info: &Invitation,
    fingerprints: Vec<[u8; 32]>,
    roots: Arc<RootCertStore>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, rustls::Error> {
    let operator = pin::Operator {
        fingerprints,
        roots,
        identity: operator_identity(&info.trust_domain),
        crypto: Arc::clone(&CRYPTO),
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&CRYPTO))
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(operator)))
}

fn client(info: &Invitation, mut config: ClientConfig) -> OperatorClient {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(config));
    let address: Arc<str> = info.address.as_str().into();
    let connector = tower::service_fn(move |_| connect(Arc::clone(&address), tls.clone()));
    // The scheme is for tonic, which would want TLS of its own for `https`.
    let channel = Endpoint::from_static("http://airlane")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .connect_with_connector_lazy(connector);
    OperatorClient::new(channel)
}

async fn connect(address: Arc<str>, tls: TlsConnector) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let dial = async {
        let tcp = TcpStream::connect(&*address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(OPERATOR_DNS_NAME).map_err(io::Error::other)?;
        tls.connect(name, tcp).await
    };
    let connected = timeout(CONNECT_TIMEOUT, dial).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
}

/// TLS whose other end need not be anybody in particular, as the kubelet probes by it.
pub(crate) async fn unverified(host: IpAddr, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&CRYPTO)).with_safe_default_protocol_versions();
    let anybody = Arc::new(pin::Anybody { crypto: Arc::clone(&CRYPTO) });
    let builder = builder.map_err(io::Error::other)?.dangerous().with_custom_certificate_verifier(anybody);
    TlsConnector::from(Arc::new(builder.with_no_client_auth())).connect(host.into(), stream).await
}

/// A call's failure in words: the deepest cause, which tonic hides behind "transport error".
pub(crate) fn why(status: &Status) -> String {
    let mut deepest: Option<&dyn Error> = status.source();
    while let Some(source) = deepest.and_then(Error::source) {
        deepest = Some(source);
    }
    match deepest {
        Some(cause) => cause.to_string(),
        None if status.message().is_empty() => status.code().to_string(),
        None => status.message().to_owned(),
    }
}
