use super::*;
use crate::{
    ca::Ca,
    clock::{Clock, SystemClock, tests::HandClock},
};
use airlane_core::id::{Identity, TrustDomain};
use airlane_wire::{
    message::{
        Certificate, DrainRequest, DrainResponse, HeartbeatRequest, HeartbeatResponse, JoinRequest,
        JoinResponse, LeaveRequest, LeaveResponse, RenewRequest,
    },
    operator::{METHODS, Operator, OperatorClient, OperatorServer},
};
use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, KeyPair, SanType};
use std::collections::HashSet;
use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, sync::Notify};
use tonic::{
    Code,
    transport::{Certificate as TlsCertificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity},
};

/// A running port with its authority. Stops when dropped.
pub(crate) struct Running {
    pub ca: Arc<Ca>,
    pub clock: Arc<HandClock>,
    pub tls: ServerTls,
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    _state: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::parse("airlane.local").expect("a trust domain")
}

pub(crate) fn identity(namespace: &str, service: &str) -> Identity {
    format!("spiffe://airlane.local/ns/{namespace}/sa/{service}").parse().expect("an identity")
}

fn open_ca(now: Timestamp) -> (TempDir, Arc<Ca>) {
    let state = tempfile::tempdir().expect("tempdir");
    let ca = Ca::open(state.path(), trust_domain(), SignedDuration::from_hours(1), now).expect("opened");
    (state, Arc::new(ca))
}

/// Serves what `routes` makes of the authority and the clock. The clock starts at the real time, which is what the
/// test's client judges by; the authority is a day older.
pub(crate) fn start(routes: impl FnOnce(&Arc<Ca>, &Arc<HandClock>) -> Routes) -> Running {
    start_behind(SignedDuration::ZERO, routes)
}

/// The same with a clock that is behind at first.
fn start_behind(behind: SignedDuration, routes: impl FnOnce(&Arc<Ca>, &Arc<HandClock>) -> Routes) -> Running {
    let clock = Arc::new(HandClock::at(SystemClock::start().now() - behind));
    let (state, ca) = open_ca(clock.now() - SignedDuration::from_hours(24));
    let tls = ServerTls::new(Arc::clone(&ca), Arc::clone(&clock) as Arc<dyn Clock>).expect("TLS");
    let listener = listen(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    tokio::spawn(serve(listener, tls.clone(), routes(&ca, &clock), shutdown.clone()));
    Running { ca, clock, tls, address, shutdown, _state: state }
}

/// A leaf and its key in PEM, signed at this time.
pub(crate) fn credential(ca: &Ca, identity: &Identity, instance: &str, at: Timestamp) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().expect("ASCII"))];
    let request = params.serialize_request(&key).expect("a request");
    let instance = InstanceId::parse(instance).expect("an instance");
    let admitted = Ca::admit(request.der(), identity.clone()).expect("admitted");
    let issued = ca.sign(&admitted, &instance, at).expect("signed");
    (issued.chain_pem, key.serialize_pem())
}

/// A client of this address that shows this certificate, or none.
pub(crate) fn client_of(ca: &Ca, address: SocketAddr, credential: Option<(String, String)>) -> Channel {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(TlsCertificate::from_pem(ca.bundle_pem()))
        .domain_name("airlane");
    if let Some((cert, key)) = credential {
        tls = tls.identity(TlsIdentity::from_pem(cert, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("a URI");
    endpoint.tls_config(tls).expect("TLS").connect_lazy()
}

impl Running {
    pub(crate) fn client(&self, credential: Option<(String, String)>) -> Channel {
        client_of(&self.ca, self.address, credential)
    }

    fn signed(&self, ago: SignedDuration) -> (String, String) {
        credential(&self.ca, &identity("shop", "pay"), "pay-v1-abcd", self.clock.now() - ago)
    }
}

/// Answers every call; `drain` does when it is told to.
#[derive(Default)]
struct Yes {
    /// Where heartbeats came from.
    heard: Mutex<HashSet<SocketAddr>>,
    /// Allows `drain` to answer.
    drained: Notify,
}

#[tonic::async_trait]
impl Operator for Yes {
    async fn join(
        &self,
        request: tonic::Request<JoinRequest>,
    ) -> Result<tonic::Response<JoinResponse>, Status> {
        let Remote(remote) = request.extensions().get().expect("the layer tells where it came from");
        assert!(remote.ip().is_loopback());
        Ok(tonic::Response::new(JoinResponse::default()))
    }
    async fn renew(&self, _: tonic::Request<RenewRequest>) -> Result<tonic::Response<Certificate>, Status> {
        Ok(tonic::Response::new(Certificate::default()))
    }
    async fn heartbeat(
        &self,
        request: tonic::Request<HeartbeatRequest>,
    ) -> Result<tonic::Response<HeartbeatResponse>, Status> {
        let peer: &Peer = request.extensions().get().expect("the layer tells who it is");
        assert_eq!(peer.identity, identity("shop", "pay"));
        assert_eq!(peer.instance.as_str(), "pay-v1-abcd");
        let Remote(remote) = request.extensions().get().expect("the layer tells where it came from");
        self.heard.lock().expect("not poisoned").insert(*remote);
        Ok(tonic::Response::new(HeartbeatResponse { known: true, renew_now: false }))
    }
    async fn drain(&self, _: tonic::Request<DrainRequest>) -> Result<tonic::Response<DrainResponse>, Status> {
        self.drained.notified().await;
        Ok(tonic::Response::new(DrainResponse::default()))
    }
    async fn leave(&self, _: tonic::Request<LeaveRequest>) -> Result<tonic::Response<LeaveResponse>, Status> {
        Ok(tonic::Response::new(LeaveResponse {}))
    }
}

fn start_yes() -> Running {
    start(|_, _| Routes::new(OperatorServer::new(Arc::new(Yes::default()))))
}

/// The gRPC status of a call without a message.
async fn status(client: &Channel, path: &str) -> Code {
    let request = Request::post(format!("https://airlane{path}"))
        .header("content-type", "application/grpc")
        .body(Body::empty())
        .expect("a request");
    let response = client.clone().oneshot(request).await.expect("an answer");
    Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
}

async fn check_no_connection(running: &Running, what: &str, credential: (String, String)) {
    let client = OperatorClient::new(running.client(Some(credential)));
    let heartbeat = client.heartbeat(HeartbeatRequest::default()).await.map(drop);
    let join = client.join(JoinRequest::default()).await.map(drop);
    for error in [heartbeat.expect_err(what), join.expect_err(what)] {
        // The transport's codes: no method answered.
        assert!(matches!(error.code(), Code::Unavailable | Code::Unknown), "{what}: {error:?}");
    }
}

#[tokio::test]
async fn a_valid_certificate_is_let_in_and_named() {
    let running = start_yes();
    let client = OperatorClient::new(running.client(Some(running.signed(SignedDuration::ZERO))));
    assert!(client.heartbeat(HeartbeatRequest::default()).await.expect("let in").known);
}

#[tokio::test]
async fn without_a_certificate_every_method_but_join_is_refused() {
    let running = start_yes();
    let client = running.client(None);
    OperatorClient::new(client.clone()).join(JoinRequest::default()).await.expect("join is open");
    let elsewhere = [
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/no.such.Service/Method",
        "/airlane.wire.v1.Operator/",
        "/airlane.wire.v1.Operator/join",
        "/airlane.wire.v1.Operator/Join/",
        "//airlane.wire.v1.Operator/Join",
        "/airlane.wire.v1.Operator/%4Aoin",
        "/",
    ];
    for path in METHODS.into_iter().filter(|path| *path != OPEN).chain(elsewhere) {
        assert_eq!(status(&client, path).await, Code::Unauthenticated, "{path}");
    }
    assert!(METHODS.contains(&OPEN), "the open method is one of the service's");
}

#[tokio::test]
async fn unknown_methods_are_unknown_to_those_who_are_let_in() {
    let running = start_yes();
    let client = running.client(Some(running.signed(SignedDuration::ZERO)));
    for path in ["/no.such.Service/Method", "/airlane.wire.v1.Operator/Nope", "/"] {
        assert_eq!(status(&client, path).await, Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn expired_future_and_foreign_certificates_get_no_connection() {
    let running = start_yes();
    check_no_connection(&running, "expired", running.signed(SignedDuration::from_mins(61))).await;
    check_no_connection(&running, "not yet valid", running.signed(SignedDuration::from_mins(-11))).await;
    let (_state, foreign) = open_ca(running.clock.now());
    let leaf = credential(&foreign, &identity("shop", "pay"), "pay-v1-abcd", running.clock.now());
    check_no_connection(&running, "another authority of the same trust domain", leaf).await;
    let other: Identity = "spiffe://elsewhere/ns/shop/sa/pay".parse().expect("an identity");
    let leaf = credential(&running.ca, &other, "pay-v1-abcd", running.clock.now());
    check_no_connection(&running, "another trust domain", leaf).await;
}

#[tokio::test]
async fn a_clock_that_differs_by_ten_minutes_is_no_obstacle() {
    let running = start_yes();
    for ago in [-9, 9] {
        let client =
            OperatorClient::new(running.client(Some(running.signed(SignedDuration::from_mins(ago)))));
        client.heartbeat(HeartbeatRequest::default()).await.expect("let in");
    }
}

#[tokio::test]
async fn an_open_connection_makes_no_calls_after_its_certificate_ended() {
    let running = start_yes();
    let client = running.client(Some(running.signed(SignedDuration::ZERO)));
    let operator = OperatorClient::new(client.clone());
    operator.heartbeat(HeartbeatRequest::default()).await.expect("valid");
    running.clock.advance(Duration::from_secs(3601));
    assert_eq!(status(&client, METHODS[2]).await, Code::Unauthenticated);
}

#[tokio::test]
async fn an_open_call_ends_with_its_certificate() {
    let running = start_yes();
    // Signed an hour ago but for two seconds.
    let leaf = running.signed(SignedDuration::from_secs(3598));
    let client = OperatorClient::new(running.client(Some(leaf)));
    let drain = client.drain(DrainRequest::default());
    let error = timeout(Duration::from_secs(10), drain).await.expect("it ends").expect_err("cut off");
    assert!(matches!(error.code(), Code::Unavailable | Code::Unknown | Code::Cancelled), "{error:?}");
}

#[tokio::test]
async fn a_renewed_leaf_is_shown_without_a_restart() {
    let yes = OperatorServer::new(Arc::new(Yes::default()));
    let running = start_behind(SignedDuration::from_mins(34), |_, _| Routes::new(yes));
    let before = running.tls.held();
    running.tls.renew_due().await.expect("nothing to do");
    assert_eq!(running.tls.held(), before);
    running.clock.advance(Duration::from_mins(34));
    running.tls.renew_due().await.expect("renewed");
    let after = running.tls.held();
    assert_eq!(after[0], before[0], "the intermediate is not due");
    assert_eq!(after[1].issued_at, before[1].issued_at + Duration::from_mins(34));
    OperatorClient::new(running.client(None))
        .join(JoinRequest::default())
        .await
        .expect("the new leaf is good");
}

#[tokio::test]
async fn one_instance_cannot_take_all_connections() {
    let running = start_yes();
    let leaf = running.signed(SignedDuration::ZERO);
    let mut clients = Vec::new();
    for n in 0..CONNECTIONS_PER_INSTANCE_MAX {
        let client = OperatorClient::new(running.client(Some(leaf.clone())));
        client.heartbeat(HeartbeatRequest::default()).await.unwrap_or_else(|e| panic!("connection {n}: {e}"));
        clients.push(client);
    }
    let one_more = OperatorClient::new(running.client(Some(leaf)));
    one_more.heartbeat(HeartbeatRequest::default()).await.expect_err("one too many");
    let anonymous = OperatorClient::new(running.client(None));
    anonymous.join(JoinRequest::default()).await.expect("others are not hurt");
}

/// As many connections without a certificate as there are places, all of one address.
#[tokio::test]
async fn a_crowd_of_strangers_does_not_keep_newcomers_out() {
    let running = start_yes();
    let mut crowd = Vec::new();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(trusting(&running.ca)));
    for _ in 0..ANONYMOUS_MAX {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 2], 0).into()).expect("an address");
        let stream = socket.connect(running.address).await.expect("a connection");
        let name = rustls_pki_types::ServerName::try_from("airlane").expect("a name");
        crowd.push(tls.connect(name, stream).await.expect("TLS"));
    }
    let newcomer = OperatorClient::new(running.client(None));
    newcomer.join(JoinRequest::default()).await.expect("let in");
}

/// More connections than there are places for handshakes, all of one address, and none says anything.
#[tokio::test]
async fn a_crowd_that_shakes_no_hands_does_not_keep_others_out() {
    let running = start_yes();
    let mut crowd = Vec::new();
    for _ in 0..=HANDSHAKES_MAX {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 2], 0).into()).expect("an address");
        crowd.push(socket.connect(running.address).await.expect("a connection"));
    }
    let member = OperatorClient::new(running.client(Some(running.signed(SignedDuration::ZERO))));
    member.heartbeat(HeartbeatRequest::default()).await.expect("let in");
    OperatorClient::new(running.client(None)).join(JoinRequest::default()).await.expect("let in");
    let first = timeout(HANDSHAKE_TIMEOUT / 2, crowd[0].read(&mut [0])).await;
    assert!(matches!(first, Ok(Ok(0) | Err(_))), "the oldest made room: {first:?}");
    let last = crowd.last_mut().expect("a crowd").read(&mut [0]).now_or_never();
    assert!(last.is_none(), "the youngest still has its time: {last:?}");
}

fn trusting(ca: &Ca) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.root().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[tokio::test]
async fn all_addresses_are_those_of_ipv4_too() {
    let listener = listen("[::]:0".parse().expect("an address")).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    let taken = listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).expect_err("taken");
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
}

/// Nothing is lost of what was asked while a connection ends of age, whether it began before or after.
#[tokio::test]
async fn connections_end_of_age_and_lose_no_call() {
    let state = start_yes();
    let yes = Arc::new(Yes::default());
    let listener = listen(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = listener.local_addr().expect("an address");
    let routes = Routes::new(OperatorServer::new(Arc::clone(&yes)));
    let ages = Duration::from_millis(50)..=Duration::from_millis(100);
    let shutdown = state.shutdown.clone();
    let served = tokio::spawn(serve_aging(listener, state.tls.clone(), routes, ages, shutdown.clone()));
    let client = OperatorClient::new(client_of(&state.ca, address, Some(state.signed(SignedDuration::ZERO))));
    let draining = client.clone();
    let drain = tokio::spawn(async move { draining.drain(DrainRequest::default()).await });
    let several = async {
        while yes.heard.lock().expect("not poisoned").len() < 10 {
            client.heartbeat(HeartbeatRequest::default()).await.expect("answered");
        }
    };
    timeout(Duration::from_secs(30), several).await.expect("one connection after the other");
    yes.drained.notify_one();
    drain.await.expect("no panic").expect("what began on the first connection is answered there");
    shutdown.cancel();
    timeout(GOODBYE + Duration::from_secs(5), served).await.expect("it ends").expect("no panic");
}

#[tokio::test]
async fn shutting_down_waits_for_no_open_call() {
    let state = start_yes();
    let listener = listen(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let routes = Routes::new(OperatorServer::new(Arc::new(Yes::default())));
    let served = tokio::spawn(serve(listener, state.tls.clone(), routes, shutdown.clone()));
    // Neither a silent TCP connection nor an open call holds it up.
    let _silent = TcpStream::connect(address).await.expect("connected");
    let client = OperatorClient::new(client_of(&state.ca, address, Some(state.signed(SignedDuration::ZERO))));
    client.heartbeat(HeartbeatRequest::default()).await.expect("connected");
    let drain = tokio::spawn(async move { client.drain(DrainRequest::default()).await });
    shutdown.cancel();
    timeout(GOODBYE + Duration::from_secs(5), served).await.expect("it ends").expect("no panic");
    drain.await.expect("no panic").expect_err("cut off");
}
