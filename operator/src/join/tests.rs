use super::*;
use crate::{
    clock::tests::HandClock,
    registry::{Heartbeats, Registry},
    serve::tests::{Running, identity, start},
    store::Store,
};
use airlane_core::{
    id::{Identity, Name, Namespace},
    world::Health,
};
use airlane_wire::{
    message::Port,
    operator::{OperatorClient, OperatorServer},
};
use jiff::SignedDuration;
use rcgen::{CertificateParams, KeyPair, SanType};
use std::sync::Mutex;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::{Code, service::Routes};

/// Remembers whom it was asked about, and answers at once.
#[derive(Default)]
struct Asked(Mutex<Vec<(InstanceId, Duration)>>);

#[tonic::async_trait]
impl Rotation for Asked {
    async fn out_of_rotation(&self, instance: &InstanceId, wait: Duration) -> Drained {
        self.0.lock().expect("not poisoned").push((instance.clone(), wait));
        Drained { acknowledged: 3, outstanding: 1 }
    }
}

struct Mesh {
    running: Running,
    store: Store,
    registry: Arc<Registry>,
    rotation: Arc<Asked>,
    /// A token that lets in anybody.
    token: String,
    writing: CancellationToken,
    _state: TempDir,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.writing.cancel();
    }
}

async fn start_mesh() -> Mesh {
    let state = tempfile::tempdir().expect("tempdir");
    let store = Store::open(state.path()).await.expect("opened");
    let clock: Arc<dyn Clock> = Arc::new(HandClock::at(Timestamp::UNIX_EPOCH));
    let registry = Registry::restore(store.clone(), Heartbeats::default(), clock).await.expect("restored");
    let (registry, rotation, writing) =
        (Arc::new(registry), Arc::new(Asked::default()), CancellationToken::new());
    tokio::spawn({
        let (registry, writing) = (Arc::clone(&registry), writing.clone());
        async move { registry.run(writing).await }
    });
    let running = start(|ca, clock| {
        Routes::new(OperatorServer::new(Arc::new(Wire::new(Parts {
            ca: Arc::clone(ca),
            door: Arc::new(JoinTokens::new(
                store.clone(),
                Arc::clone(&registry),
                ca,
                Arc::clone(clock) as Arc<dyn Clock>,
            )),
            members: Arc::clone(&registry) as Arc<dyn Members>,
            rotation: Arc::clone(&rotation) as Arc<dyn Rotation>,
            clock: Arc::clone(clock) as Arc<dyn Clock>,
            heartbeat_every: Heartbeats::default().every,
            operator: ("127.0.0.1".into(), 15010),
        }))))
    });
    let token = create_token(&store, None, None, running.clock.now()).await.expect("made").secret.to_string();
    Mesh { running, store, registry, rotation, token, writing, _state: state }
}

fn csr(key: &KeyPair, identity: &Identity) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().expect("ASCII"))];
    params.serialize_request(key).expect("a request").der().to_vec()
}

/// A member as its sidecar knows itself.
struct Joined {
    name: String,
    client: OperatorClient,
    response: JoinResponse,
}

impl Mesh {
    fn request(&self, service: &str, key: &KeyPair) -> JoinRequest {
        JoinRequest {
            token: self.token.clone(),
            csr: csr(key, &identity("shop", service)),
            namespace: "shop".into(),
            service: service.into(),
            revision: "v1".into(),
            address: "127.0.0.1".into(),
            ports: vec![Port { app: 8080, mesh: 15006, protocol: "http".into(), service: 80 }],
            outbound_port: 15001,
            agent_socket: "/run/a/agent.sock".into(),
            admin_socket: "/run/a/admin.sock".into(),
            event_log: "/run/a/outliers.jsonl".into(),
            ..JoinRequest::default()
        }
    }

    async fn join(&self, service: &str) -> Joined {
        let key = KeyPair::generate().expect("a key");
        let anonymous = OperatorClient::new(self.running.client(None));
        let response = anonymous.join(self.request(service, &key)).await.expect("let in");
        let chain = response.certificate.clone().expect("a certificate").chain_pem;
        let client = OperatorClient::new(self.running.client(Some((chain, key.serialize_pem()))));
        Joined { name: response.instance.clone(), client, response }
    }

    async fn check_refused(&self, code: Code, says: &str, edit: impl FnOnce(&mut JoinRequest)) {
        let key = KeyPair::generate().expect("a key");
        let mut request = self.request("pay", &key);
        edit(&mut request);
        let before = self.registry.everybody().len();
        let anonymous = OperatorClient::new(self.running.client(None));
        let status = anonymous.join(request).await.expect_err(says);
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(says), "{:?} does not say {says:?}", status.message());
        assert_eq!(self.registry.everybody().len(), before, "nobody was registered");
    }

    fn health(&self, name: &str) -> Option<Health> {
        self.registry.watch().borrow().get(&InstanceId::parse(name).expect("a name")).map(|i| i.health)
    }
}

fn healthy() -> HeartbeatRequest {
    HeartbeatRequest { health: AppHealth::Healthy.into(), ..HeartbeatRequest::default() }
}

#[tokio::test]
async fn nobody_is_certified_as_the_operator() {
    let mesh = start_mesh().await;
    let edit = |request: &mut JoinRequest| {
        let key = KeyPair::generate().expect("a key");
        request.namespace = "airlane-system".into();
        request.service = "airlane".into();
        request.csr = csr(&key, &identity("airlane-system", "airlane"));
    };
    mesh.check_refused(Code::PermissionDenied, "the operator itself", edit).await;
}

#[tokio::test]
async fn a_workload_joins_lives_drains_and_leaves() {
    let mesh = start_mesh().await;
    let pay = mesh.join("pay").await;
    assert!(pay.name.starts_with("pay-v1-"), "{}", pay.name);
    assert_eq!(pay.response.heartbeat_every_ms, 1000);
    let certificate = pay.response.certificate.as_ref().expect("a certificate");
    let now = mesh.running.clock.now().as_millisecond();
    assert!(certificate.renew_at_ms > now && certificate.renew_at_ms < certificate.not_after_ms);
    for part in [&*pay.name, "/run/a/agent.sock", "/run/a/admin.sock", "15010", "sa/airlane"] {
        assert!(pay.response.bootstrap.contains(part), "{part} is not in the bootstrap");
    }
    assert_eq!(mesh.health(&pay.name), Some(Health::Starting));
    let alive = pay.client.heartbeat(healthy()).await.expect("heard");
    assert_eq!(alive, HeartbeatResponse { known: true, renew_now: false });
    mesh.registry.mark_proxy_ready(&InstanceId::parse(&pay.name).expect("a name"));
    assert_eq!(mesh.health(&pay.name), Some(Health::Healthy));
    let drained = pay.client.drain(DrainRequest { wait_ms: 700_000 }).await.expect("drained");
    assert_eq!((drained.acknowledged, drained.outstanding), (3, 1));
    assert_eq!(mesh.health(&pay.name), Some(Health::Draining));
    let asked = mesh.rotation.0.lock().expect("not poisoned").clone();
    assert_eq!(asked, [(InstanceId::parse(&pay.name).expect("a name"), DRAIN_MAX)]);
    pay.client.leave().await.expect("left");
    assert_eq!(mesh.health(&pay.name), None);
    let forgotten = pay.client.heartbeat(healthy()).await.expect("heard");
    assert!(!forgotten.known);
    let drained = pay.client.drain(DrainRequest { wait_ms: 1 }).await.expect("nothing to wait for");
    assert_eq!((drained.acknowledged, drained.outstanding), (0, 0));
}

#[tokio::test]
async fn joining_takes_a_token_for_the_service_and_a_request_for_the_identity() {
    let mesh = start_mesh().await;
    let now = mesh.running.clock.now();
    let service =
        |name: &str| (Namespace::parse("shop").expect("a namespace"), Name::parse(name).expect("a name"));
    let own = create_token(&mesh.store, Some(service("pay")), None, now).await.expect("made");
    let other = create_token(&mesh.store, Some(service("orders")), None, now).await.expect("made");
    let lifetime = Some(SignedDuration::from_secs(1));
    let expired =
        create_token(&mesh.store, None, lifetime, now - SignedDuration::from_secs(2)).await.expect("made");

    mesh.check_refused(Code::Unauthenticated, "airlane token create", |r| r.token.clear()).await;
    mesh.check_refused(Code::Unauthenticated, "airlane token create", |r| r.token = "x".repeat(51)).await;
    mesh.check_refused(Code::Unauthenticated, "airlane token create", |r| {
        r.token = expired.secret.to_string();
    })
    .await;
    mesh.check_refused(Code::PermissionDenied, "another service", |r| r.token = other.secret.to_string())
        .await;
    mesh.check_refused(Code::InvalidArgument, "namespace", |r| r.namespace = "..".into()).await;
    mesh.check_refused(Code::InvalidArgument, "not a PKCS#10", |r| r.csr.clear()).await;
    mesh.check_refused(Code::PermissionDenied, "spiffe://airlane.local/ns/shop/sa/pay", |r| {
        r.csr = csr(&KeyPair::generate().expect("a key"), &identity("shop", "orders"));
    })
    .await;
    mesh.check_refused(Code::PermissionDenied, "join without one", |r| r.instance = "orders-v1-bbbbb".into())
        .await;

    let key = KeyPair::generate().expect("a key");
    let request = JoinRequest { token: own.secret.to_string(), ..mesh.request("pay", &key) };
    let anonymous = OperatorClient::new(mesh.running.client(None));
    anonymous.join(request).await.expect("its own token lets it in");
}

#[tokio::test]
async fn a_refusal_tells_a_stranger_nothing() {
    let mesh = start_mesh().await;
    let service = (Namespace::parse("bank").expect("a namespace"), Name::parse("vault").expect("a name"));
    let other = create_token(&mesh.store, Some(service), None, mesh.running.clock.now()).await.expect("made");
    let vault = mesh.join("vault").await;
    let anonymous = OperatorClient::new(mesh.running.client(None));
    let key = KeyPair::generate().expect("a key");
    for edit in [
        |_: &mut JoinRequest, token: &str| token.to_owned(),
        |r: &mut JoinRequest, token: &str| {
            r.instance = "pay-v1-bbbbb".into();
            token.replace('a', "b")
        },
    ] {
        let mut request = mesh.request("pay", &key);
        request.token = edit(&mut request, &other.secret);
        let status = anonymous.join(request).await.expect_err("refused");
        for secret in ["vault", "bank", &vault.name, "/tmp", "state.db", "PRIVATE"] {
            assert!(!status.message().contains(secret), "{:?} tells {secret}", status.message());
        }
    }
}

#[tokio::test]
async fn noise_is_cut_short_and_holds_up_nobody() {
    let mesh = start_mesh().await;
    let key = KeyPair::generate().expect("a key");
    let anonymous = OperatorClient::new(mesh.running.client(None));
    let mut codes = Vec::new();
    for _ in 0..40 {
        let request = JoinRequest { token: String::new(), ..mesh.request("pay", &key) };
        codes.push(anonymous.join(request).await.expect_err("refused").code());
    }
    assert_eq!(codes.first(), Some(&Code::Unauthenticated));
    assert_eq!(codes.last(), Some(&Code::ResourceExhausted));
    mesh.join("pay").await;
}

#[tokio::test]
async fn a_leaf_is_renewed_for_its_own_identity_alone() {
    let mesh = start_mesh().await;
    let pay = mesh.join("pay").await;
    let instance = InstanceId::parse(&pay.name).expect("a name");
    mesh.registry.ask_renewal(Some(&instance));
    assert!(pay.client.heartbeat(healthy()).await.expect("heard").renew_now);
    let key = KeyPair::generate().expect("a key");
    let request = RenewRequest { csr: csr(&key, &identity("shop", "orders")) };
    let status = pay.client.renew(request).await.expect_err("refused");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(pay.client.heartbeat(healthy()).await.expect("heard").renew_now, "still asked for");

    let request = RenewRequest { csr: csr(&key, &identity("shop", "pay")) };
    let renewed = pay.client.renew(request.clone()).await.expect("renewed");
    assert_ne!(Some(&renewed), pay.response.certificate.as_ref());
    let credential = Some((renewed.chain_pem, key.serialize_pem()));
    let next = OperatorClient::new(mesh.running.client(credential));
    let alive = next.heartbeat(healthy()).await.expect("the new leaf is the same instance");
    assert_eq!(alive, HeartbeatResponse { known: true, renew_now: false });

    next.leave().await.expect("left");
    let status = next.renew(request).await.expect_err("forgotten");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
}

#[tokio::test]
async fn a_leaf_for_the_same_name_and_another_identity_is_nobody() {
    let mesh = start_mesh().await;
    let pay = mesh.join("pay").await;
    let forged = crate::serve::tests::credential(
        &mesh.running.ca,
        &identity("shop", "orders"),
        &pay.name,
        mesh.running.clock.now(),
    );
    let orders = OperatorClient::new(mesh.running.client(Some(forged)));
    assert!(!orders.heartbeat(healthy()).await.expect("heard").known);
    orders.leave().await.expect("nothing to leave");
    orders.drain(DrainRequest { wait_ms: 1 }).await.expect("nothing to drain");
    assert_eq!(mesh.health(&pay.name), Some(Health::Starting), "unhurt");
    let key = KeyPair::generate().expect("a key");
    let request = RenewRequest { csr: csr(&key, &identity("shop", "orders")) };
    assert_eq!(orders.renew(request).await.expect_err("unknown").code(), Code::NotFound);
}

#[tokio::test]
async fn a_forgotten_workload_joins_again_under_its_name() {
    let mesh = start_mesh().await;
    let pay = mesh.join("pay").await;
    pay.client.leave().await.expect("left");
    let key = KeyPair::generate().expect("a key");
    let request = JoinRequest { instance: pay.name.clone(), ..mesh.request("pay", &key) };
    let anonymous = OperatorClient::new(mesh.running.client(None));
    let again = anonymous.join(request).await.expect("let in");
    assert_eq!(again.instance, pay.name);
}

#[tokio::test]
async fn heartbeats_of_the_wrong_shape_are_refused() {
    let mesh = start_mesh().await;
    let pay = mesh.join("pay").await;
    let many = vec![OutlierEvent::default(); OUTLIERS_PER_HEARTBEAT + 1];
    for request in
        [HeartbeatRequest { health: 7, ..healthy() }, HeartbeatRequest { outliers: many, ..healthy() }]
    {
        let status = pay.client.heartbeat(request).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    let event = OutlierEvent { at_ms: i64::MAX, ejected: true, ..OutlierEvent::default() };
    let request = HeartbeatRequest { outliers: vec![event], app_reachable: true, ..healthy() };
    pay.client.heartbeat(request).await.expect("heard");
    let members = mesh.registry.everybody();
    assert!(members[0].said.app_reachable && members[0].said.outliers[0].ejected);
}
