//! Who is on the other end: TLS for the operator's ports, and the peer a client certificate names.
//!
//! A client certificate is optional here, because a workload that joins has none yet; [`crate::serve`] refuses every
//! other call without one. One that is shown must be signed by our root and valid now, else there is no connection.

use crate::{
    ca::{Ca, CaError, Root, ServerLeaf, SignError},
    clock::Clock,
};
use airlane_core::{
    id::{Identity, InstanceId, TrustDomain},
    pki::{self, Certificate, Held},
};
use airlane_wire::join::OPERATOR_DNS_NAME;
use arc_swap::ArcSwap;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption, danger::HandshakeSignatureValid},
    crypto::CryptoProvider,
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

/// The longest sleep between two looks at the operator's own certificates: the clock may jump.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The operator's TLS could not be set up or renewed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// No leaf for the operator.
    #[error("cannot make the operator's own certificate")]
    Leaf(#[from] SignError),
    /// The intermediate was not renewed.
    #[error("cannot renew the intermediate certificate")]
    Intermediate(#[from] CaError),
    /// The library refused the configuration.
    #[error("cannot set up TLS")]
    Configure(#[from] rustls::Error),
    /// The library refused the root.
    #[error("cannot set up the verification of client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Another replica could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// No connection.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// It is not trusted, or does not trust this one.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The library refused the configuration.
    #[error("cannot set up TLS")]
    Configure(#[source] rustls::Error),
    /// It is a workload.
    #[error("it is not a replica of the operator")]
    NotTheOperator,
}

/// Connects to other replicas: shows the leaf that this one serves with, and believes the operator alone. Cheap to
/// clone.
#[derive(Clone)]
pub(crate) struct Dialer {
    tls: ServerTls,
}

impl Dialer {
    /// Connects to a replica.
    ///
    /// # Errors
    /// If there is none, or it is somebody else.
    pub(crate) async fn dial(&self, at: SocketAddr) -> Result<TokioIo<TlsStream<TcpStream>>, DialError> {
        let stream = TcpStream::connect(at).await.map_err(DialError::Connect)?;
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        let name = ServerName::try_from(OPERATOR_DNS_NAME).map_err(|_| DialError::NotTheOperator)?;
        let connector = self.tls.connector().map_err(DialError::Configure)?;
        let stream = connector.connect(name, stream).await.map_err(DialError::Handshake)?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = leaf.and_then(|leaf| Peer::of(leaf, self.tls.ca.trust_domain()));
        match peer {
            Some(peer) if self.tls.is_replica(&peer) => Ok(TokioIo::new(stream)),
            _ => Err(DialError::NotTheOperator),
        }
    }
}

/// A workload's proxy or agent, as its client certificate names it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Peer {
    /// Who it is: the URI SAN.
    pub identity: Identity,
    /// Which copy: the DNS SAN.
    pub instance: InstanceId,
    /// When its certificate ends, and its connections with it.
    pub not_after: Timestamp,
}

impl Peer {
    /// The peer of a certificate whose chain was verified: exactly one URI SAN, an identity of our trust domain in
    /// canonical form, and exactly one DNS SAN, an instance's name.
    pub(crate) fn of(cert: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Option<Peer> {
        let (_, cert) = X509Certificate::from_der(cert).ok()?;
        let san = cert.subject_alternative_name().ok()??.value;
        let (uri, dns) = match &san.general_names[..] {
            [GeneralName::URI(uri), GeneralName::DNSName(dns)]
            | [GeneralName::DNSName(dns), GeneralName::URI(uri)] => (uri, dns),
            _ => return None,
        };
        let identity: Identity = uri.parse().ok()?;
        let not_after = Timestamp::from_second(cert.validity().not_after.timestamp()).ok()?;
        (identity.trust_domain == *trust_domain).then_some(Peer {
            identity,
            instance: InstanceId::parse(dns).ok()?,
            not_after,
        })
    }

    /// How long its certificate is still valid: the longest life of a stream.
    pub(crate) fn remaining(&self, now: Timestamp) -> Duration {
        self.not_after.duration_since(now).try_into().unwrap_or(Duration::ZERO)
    }
}

/// TLS for a port of the operator: 1.3 alone, its leaf replaceable while it serves. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ServerTls {
    ca: Arc<Ca>,
    clock: Arc<dyn Clock>,
    /// What clients call it.
    name: Arc<str>,
    leaf: Arc<Leaf>,
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// TLS with a fresh leaf, for sidecars: HTTP/2, and clients may show a certificate of ours.
    ///
    /// # Errors
    /// If there is no leaf, or the library refuses it.
    pub(crate) fn new(ca: Arc<Ca>, clock: Arc<dyn Clock>) -> Result<ServerTls, TlsError> {
        let clients = Arc::new(Clients::of(Arc::clone(&ca))?);
        ServerTls::with(ca, clock, OPERATOR_DNS_NAME, clients, &[b"h2"])
    }

    /// TLS with a fresh leaf, for the API server, which knows the operator by that name and shows no certificate.
    ///
    /// # Errors
    /// If there is no leaf, or the library refuses it.
    pub(crate) fn for_api_server(
        ca: Arc<Ca>,
        clock: Arc<dyn Clock>,
        name: &str,
    ) -> Result<ServerTls, TlsError> {
        ServerTls::with(ca, clock, name, WebPkiClientVerifier::no_client_auth(), &[b"h2", b"http/1.1"])
    }

    fn with(
        ca: Arc<Ca>,
        clock: Arc<dyn Clock>,
        name: &str,
        clients: Arc<dyn ClientCertVerifier>,
        protocols: &[&[u8]],
    ) -> Result<ServerTls, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let leaf = HeldKey::of(ca.leaf_named(name, clock.now())?, &provider)?;
        let leaf = Arc::new(Leaf(ArcSwap::from_pointee(leaf)));
        let time = Arc::new(ClockTime(Arc::clone(&clock)));
        let mut config = ServerConfig::builder_with_details(provider, time)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::clone(&leaf) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        // A resumed session would bring back a client certificate without looking at it again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(ServerTls { ca, clock, name: name.into(), leaf, config: Arc::new(config) })
    }

    /// Accepts connections with this configuration.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// What connects to other replicas as this one.
    pub(crate) fn dialer(&self) -> Dialer {
        Dialer { tls: self.clone() }
    }

    /// How another replica is called: with our leaf, and by the roots that are trusted now.
    fn connector(&self) -> Result<TlsConnector, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for root in &*self.ca.roots() {
            roots.add(root.cert.clone())?;
        }
        let time = Arc::new(ClockTime(Arc::clone(&self.clock)));
        let mut config = ClientConfig::builder_with_details(provider, time)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::clone(&self.leaf) as Arc<dyn ResolvesClientCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// Whether this is another replica.
    pub(crate) fn is_replica(&self, peer: &Peer) -> bool {
        peer.identity == *self.ca.operator()
    }

    /// The trust domain of the peers.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        self.ca.trust_domain()
    }

    /// The clock by which certificates are judged.
    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// The lives of the certificates the operator holds for itself.
    pub(crate) fn held(&self) -> [Held; 2] {
        [self.ca.intermediate(), self.leaf.0.load().held]
    }

    /// Those of them that are renewed here.
    fn renewed_here(&self) -> Vec<Held> {
        let here = |held: &Held| held.certificate != Certificate::Intermediate || self.ca.renews_itself();
        self.held().into_iter().filter(here).collect()
    }

    /// Renews what is due now. New connections see the new leaf; open ones keep theirs.
    ///
    /// # Errors
    /// At the first certificate that cannot be renewed; the old one stays in use.
    pub(crate) async fn renew_due(&self) -> Result<(), TlsError> {
        let now = self.clock.now();
        for renewal in pki::due(&self.renewed_here(), now) {
            match renewal.certificate {
                Certificate::Intermediate => self.ca.renew_intermediate(now).await?,
                Certificate::Server => {
                    let leaf = self.ca.leaf_named(&self.name, now)?;
                    self.leaf.0.store(Arc::new(HeldKey::of(leaf, self.config.crypto_provider())?));
                }
            }
            tracing::info!(certificate = ?renewal.certificate, because = ?renewal.because, "renewed");
        }
        Ok(())
    }

    /// Keeps the operator's own certificates valid until told to stop.
    pub(crate) async fn keep_valid(self, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.renew_due().await {
                tracing::error!(error = &error as &dyn std::error::Error, "a certificate was not renewed");
            }
            let now = self.clock.now();
            let wait = self.renewed_here().iter().map(Held::renew_at).min().map_or(LOOK_EVERY, |at| {
                Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
            });
            tokio::select! {
                () = shutdown.cancelled() => return,
                // At least a second: a failed renewal must not spin.
                () = tokio::time::sleep(wait.clamp(Duration::from_secs(1), LOOK_EVERY)) => {}
            }
        }
    }
}

/// Clients with a certificate of a root that is trusted now, and those without any.
#[derive(Debug)]
struct Clients {
    ca: Arc<Ca>,
    /// The roots, and what is made of them.
    made: ArcSwap<Made>,
}

#[derive(Debug)]
struct Made {
    roots: Arc<[Root]>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Made {
    fn of(roots: Arc<[Root]>) -> Result<Made, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut store = RootCertStore::empty();
        for root in &*roots {
            store.add(root.cert.clone())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
            .allow_unauthenticated()
            .build()?;
        Ok(Made { roots, verifier })
    }
}

impl Clients {
    fn of(ca: Arc<Ca>) -> Result<Clients, TlsError> {
        let made = ArcSwap::from_pointee(Made::of(ca.roots())?);
        Ok(Clients { ca, made })
    }

    fn now(&self) -> Arc<dyn ClientCertVerifier> {
        let roots = self.ca.roots();
        let made = self.made.load();
        if Arc::ptr_eq(&made.roots, &roots) {
            return Arc::clone(&made.verifier);
        }
        match Made::of(roots) {
            Ok(fresh) => {
                let verifier = Arc::clone(&fresh.verifier);
                self.made.store(Arc::new(fresh));
                verifier
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the new roots cannot be used");
                Arc::clone(&made.verifier)
            }
        }
    }
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    // Clients have one certificate and need no hint.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.now().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now().verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().supported_verify_schemes()
    }
}

/// The operator's leaf in use.
#[derive(Debug)]
struct Leaf(ArcSwap<HeldKey>);

#[derive(Debug)]
struct HeldKey {
    key: Arc<CertifiedKey>,
    held: Held,
}

impl HeldKey {
    fn of(leaf: ServerLeaf, provider: &CryptoProvider) -> Result<HeldKey, rustls::Error> {
        Ok(HeldKey {
            key: Arc::new(CertifiedKey::from_der(leaf.chain, leaf.key, provider)?),
            held: leaf.held,
        })
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }
}

impl ResolvesClientCert for Leaf {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Our clock, for the library that verifies certificates.
#[derive(Debug)]
struct ClockTime(Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}
