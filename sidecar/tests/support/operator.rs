//! An operator for tests: lets anybody in who has the token, remembers what it was told, and sends whatever
//! bootstrap the test wants.

#![allow(dead_code, reason = "no test binary uses all of it")]

use super::authority::{Ca, OPERATOR};
use airlane_wire::{
    join::{JoinInfo, OPERATOR_DNS_NAME, workload_identity},
    message::{
        AppHealth, Certificate, DrainRequest, DrainResponse, HeartbeatRequest, HeartbeatResponse,
        JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, RenewRequest,
    },
    operator::{Operator, OperatorServer},
};
use rustls::{RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status, transport::Server};

const TOKEN: &str = "let-me-in";

/// What the operator was told so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) joins: Vec<JoinRequest>,
    pub(crate) heartbeats: Vec<HeartbeatRequest>,
    pub(crate) renewals: usize,
    pub(crate) drains: usize,
    pub(crate) leaves: usize,
}

impl Told {
    pub(crate) fn health(&self) -> Option<AppHealth> {
        self.heartbeats.last().map(HeartbeatRequest::health)
    }
}

/// How the operator renders a bootstrap.
type Render = Box<dyn Fn(&JoinRequest) -> String + Send + Sync>;

pub(crate) struct TestOperator {
    pub(crate) ca: Ca,
    pub(crate) told: watch::Sender<Told>,
    render: Render,
    /// Instances the operator will not know at their next heartbeat.
    forgets: Mutex<bool>,
    /// The token that lets in; `None`: any.
    token: Mutex<Option<String>>,
    /// Who was let in last: the tests' operator has one member.
    member: Mutex<String>,
    /// Whether wishes to be drained are answered.
    pub(crate) answers_drains: watch::Sender<bool>,
    /// Whether the pod goes that wishes to be drained.
    pub(crate) pod_goes: watch::Sender<bool>,
}

impl TestOperator {
    /// Serves until the runtime ends.
    pub(crate) async fn start(
        render: impl Fn(&JoinRequest) -> String + Send + Sync + 'static,
    ) -> (Arc<Self>, JoinInfo) {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.expect("a port"), render)
    }

    /// Serves on `listener` until the runtime ends.
    pub(crate) fn start_on(
        listener: TcpListener,
        render: impl Fn(&JoinRequest) -> String + Send + Sync + 'static,
    ) -> (Arc<Self>, JoinInfo) {
        let operator = Arc::new(Self {
            ca: Ca::new(),
            told: watch::Sender::new(Told::default()),
            render: Box::new(render),
            forgets: Mutex::new(false),
            token: Mutex::new(Some(TOKEN.into())),
            member: Mutex::default(),
            answers_drains: watch::Sender::new(true),
            pod_goes: watch::Sender::new(true),
        });
        let info = JoinInfo {
            address: listener.local_addr().expect("bound").to_string(),
            root_fingerprint: operator.ca.fingerprint(),
            trust_domain: "airlane.local".into(),
            secret: TOKEN.into(),
        };
        let acceptor = operator.acceptor();
        let connections = futures::stream::unfold((listener, acceptor), |(listener, acceptor)| async {
            loop {
                let Ok((tcp, _)) = listener.accept().await else { continue };
                if let Ok(tls) = acceptor.accept(tcp).await {
                    return Some((Ok::<_, std::io::Error>(tls), (listener, acceptor)));
                }
            }
        });
        let service = OperatorServer::new(Arc::clone(&operator));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(connections));
        (operator, info)
    }

    /// Does not know the instance at its next heartbeat.
    pub(crate) fn forget(&self) {
        *self.forgets.lock().expect("not poisoned") = true;
    }

    /// Lets in who has `token`, and nobody else.
    pub(crate) fn expect(&self, token: &str) {
        *self.token.lock().expect("not poisoned") = Some(token.into());
    }

    /// Lets in anybody.
    pub(crate) fn expect_anybody(&self) {
        *self.token.lock().expect("not poisoned") = None;
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.root_der()).expect("a root");
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .expect("a verifier");
        let server = self.ca.server(OPERATOR, OPERATOR_DNS_NAME);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("versions")
            .with_client_cert_verifier(clients)
            .with_single_cert(server.chain, server.key)
            .expect("a key");
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    fn sign(&self, csr: &[u8]) -> Certificate {
        self.ca.sign(csr, &self.member.lock().expect("not poisoned"), Duration::from_secs(3600))
    }
}

fn authenticated<T>(request: Request<T>) -> Result<T, Status> {
    match request.peer_certs() {
        Some(certificates) if !certificates.is_empty() => Ok(request.into_inner()),
        _ => Err(Status::unauthenticated("no certificate")),
    }
}

#[tonic::async_trait]
impl Operator for TestOperator {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        if self.token.lock().expect("not poisoned").as_ref().is_some_and(|token| *token != request.token) {
            return Err(Status::unauthenticated("the token is not known; make a new one"));
        }
        *self.member.lock().expect("not poisoned") =
            workload_identity("airlane.local", &request.namespace, &request.service);
        let response = JoinResponse {
            instance: "pay-v2-1".into(),
            certificate: Some(self.sign(&request.csr)),
            bootstrap: (self.render)(&request),
            heartbeat_every_ms: 200,
        };
        self.told.send_modify(|told| told.joins.push(request));
        Ok(Response::new(response))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Certificate>, Status> {
        let request = authenticated(request)?;
        self.told.send_modify(|told| told.renewals += 1);
        Ok(Response::new(self.sign(&request.csr)))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let request = authenticated(request)?;
        self.told.send_modify(|told| told.heartbeats.push(request));
        let forgotten = std::mem::take(&mut *self.forgets.lock().expect("not poisoned"));
        Ok(Response::new(HeartbeatResponse { known: !forgotten, renew_now: false }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        authenticated(request)?;
        self.told.send_modify(|told| told.drains += 1);
        self.answers_drains.subscribe().wait_for(|answers| *answers).await.expect("lives");
        let stays = !*self.pod_goes.borrow();
        Ok(Response::new(DrainResponse { acknowledged: 1, outstanding: 0, stays }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        authenticated(request)?;
        self.told.send_modify(|told| told.leaves += 1);
        Ok(Response::new(LeaveResponse {}))
    }
}
