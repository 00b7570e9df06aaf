use super::*;
use crate::{
    clock::tests::HandClock,
    join::{Drained, Parts, Rotation, Wire},
    members::{Instances, Members},
    scripted_api::{client, refusal},
    serve::tests::{Running, identity, start},
};
use airlane_core::{
    id::{Identity, InstanceId, Name, Revision, WorkloadRevision},
    world::{Health, Instance, Interception},
};
use airlane_wire::{
    message::JoinResponse,
    operator::{OperatorClient, OperatorServer},
};
use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};
use tokio::sync::watch;
use tonic::{Code, service::Routes};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl";
const UID: &str = "0f4c8e2a-7d51-4b6e-9b57-2f0d1c3a8e77";

struct Nobody;

#[tonic::async_trait]
impl Rotation for Nobody {
    async fn out_of_rotation(&self, _: &InstanceId, _: Duration) -> Drained {
        Drained { acknowledged: 0, outstanding: 0 }
    }
}

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

fn pay(health: Health) -> Instance {
    let Identity { namespace, service_account, .. } = identity("shop", "payer");
    Instance {
        id: InstanceId::of_copy("pay-1", UID).expect("an instance"),
        workload: WorkloadRevision {
            namespace,
            workload: name("pay"),
            revision: Revision::parse("v1").expect("a revision"),
        },
        service_account,
        services: [].into(),
        address: [10, 0, 0, 1].into(),
        ipv6: false,
        ports: vec![],
        outbound_port: 15001,
        interception: Interception::Transparent,
        stops_within: std::time::Duration::ZERO,
        health,
    }
}

fn observed(pods: impl IntoIterator<Item = Instance>) -> Instances {
    Arc::new(pods.into_iter().map(|pod| (pod.id.clone(), Arc::new(pod))).collect::<BTreeMap<_, _>>())
}

/// What the API server says of `pay-1`'s token.
fn confirmed(call: &Value) -> Option<(u16, Value)> {
    assert_eq!(call["spec"]["audiences"], json!(["airlane"]), "the audience is asked for");
    let mut answer = call.clone();
    answer["status"] = json!({
        "authenticated": true,
        "audiences": ["airlane"],
        "user": {
            "username": "system:serviceaccount:shop:payer",
            "extra": {
                "authentication.kubernetes.io/pod-name": ["pay-1"],
                "authentication.kubernetes.io/pod-uid": [UID],
            },
        },
    });
    Some((201, answer))
}

struct Mesh {
    running: Running,
    pods: Arc<Pods>,
    reviews: Arc<AtomicUsize>,
}

fn start_mesh(
    pods: &Instances,
    answer: impl Fn(&Value) -> Option<(u16, Value)> + Send + Sync + 'static,
) -> Mesh {
    let clock: Arc<dyn Clock> = Arc::new(HandClock::at(Timestamp::UNIX_EPOCH));
    let (_, pods) = watch::channel(Arc::clone(pods));
    let pods = Arc::new(Pods::new(pods, clock));
    let reviews = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reviews);
    let client = client(move |(_, path, body)| {
        assert_eq!(path, "/apis/authentication.k8s.io/v1/tokenreviews");
        counted.fetch_add(1, Relaxed);
        answer(&body)
    });
    let running = start(|ca, clock| {
        let clock = Arc::clone(clock) as Arc<dyn Clock>;
        let door = PodTokens::new(client, Arc::clone(&pods), ca, Arc::clone(&clock));
        Routes::new(OperatorServer::new(Arc::new(Wire::new(Parts {
            ca: Arc::clone(ca),
            door: Arc::new(door),
            members: Arc::clone(&pods) as Arc<dyn Members>,
            rotation: Arc::new(Nobody),
            clock,
            heartbeat_every: Duration::from_secs(1),
            operator: ("airlane.airlane-system.svc".into(), 15010),
        }))))
    });
    Mesh { running, pods, reviews }
}

fn csr(key: &KeyPair, identity: &Identity) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().expect("ASCII"))];
    params.serialize_request(key).expect("a request").der().to_vec()
}

fn request() -> JoinRequest {
    JoinRequest {
        token: TOKEN.into(),
        csr: csr(&KeyPair::generate().expect("a key"), &identity("shop", "payer")),
        agent_socket: "/run/airlane/agent.sock".into(),
        admin_socket: "/run/airlane/admin.sock".into(),
        event_log: "/run/airlane/outliers.jsonl".into(),
        ..JoinRequest::default()
    }
}

impl Mesh {
    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, Status> {
        OperatorClient::new(self.running.client(None)).join(request).await
    }

    async fn check_refused(&self, request: JoinRequest, code: Code, says: &str) {
        let status = self.join(request).await.expect_err(says);
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(says), "{:?} does not say {says:?}", status.message());
        assert!(!status.message().contains("eyJ"), "the token is told: {status:?}");
    }
}

#[tokio::test]
async fn a_pod_is_who_the_api_server_says_whatever_it_says_itself() {
    let mesh = start_mesh(&observed([pay(Health::Starting)]), confirmed);
    let lies = JoinRequest {
        namespace: "bank".into(),
        service: "vault".into(),
        revision: "v9".into(),
        address: "10.9.9.9".into(),
        instance: "vault-1-bcdfg".into(),
        ..request()
    };
    for request in [request(), lies] {
        let joined = mesh.join(request).await.expect("let in");
        assert_eq!(joined.instance, "pay-1-0f4c8e2a");
        assert!(joined.bootstrap.contains("airlane.airlane-system.svc"));
        assert!(!joined.bootstrap.contains("vault") && !joined.bootstrap.contains("bank"));
    }
    let as_claimed = JoinRequest {
        namespace: "bank".into(),
        service: "vault".into(),
        csr: csr(&KeyPair::generate().expect("a key"), &identity("bank", "vault")),
        ..request()
    };
    let own = "spiffe://airlane.local/ns/shop/sa/payer";
    mesh.check_refused(as_claimed, Code::PermissionDenied, own).await;
}

#[tokio::test]
async fn a_proxy_that_starts_anew_waits_and_one_that_lives_does_not() {
    let mesh = start_mesh(&observed([pay(Health::Healthy)]), confirmed);
    let id = pay(Health::Healthy).id;
    let health = || mesh.pods.watch().borrow()[&id].health;
    let again = JoinRequest { instance: id.to_string(), ..request() };
    mesh.join(again).await.expect("let in");
    assert_eq!(health(), Health::Healthy);
    let foreign = csr(&KeyPair::generate().expect("a key"), &identity("shop", "orders"));
    mesh.join(JoinRequest { csr: foreign, ..request() }).await.expect_err("another identity");
    assert_eq!(health(), Health::Healthy, "who is refused changes nothing");
    mesh.join(request()).await.expect("let in");
    assert_eq!(health(), Health::Starting);
}

#[tokio::test]
async fn an_unseen_pod_is_waited_for_and_then_told_to_try_again() {
    let mesh = start_mesh(&Instances::default(), confirmed);
    mesh.check_refused(request(), Code::Unavailable, "pay-1 is not seen yet: try again").await;
}

#[tokio::test]
async fn a_pod_without_a_proxy_is_told_how_to_get_one() {
    let bare = Instance { interception: Interception::None, ..pay(Health::Healthy) };
    let mesh = start_mesh(&observed([bare]), confirmed);
    mesh.check_refused(request(), Code::FailedPrecondition, "airlane.dev/inject=enabled").await;
}

#[tokio::test]
async fn what_cannot_be_a_token_costs_the_api_server_nothing_and_noise_is_cut_short() {
    let mesh = start_mesh(&observed([pay(Health::Starting)]), confirmed);
    let mut codes = Vec::new();
    for _ in 0..40 {
        let status = mesh.join(JoinRequest { token: "x".repeat(51), ..request() }).await;
        codes.push(status.expect_err("refused").code());
    }
    assert_eq!((codes.first(), codes.last()), (Some(&Code::Unauthenticated), Some(&Code::ResourceExhausted)));
    assert_eq!(mesh.reviews.load(Relaxed), 0);
    mesh.join(request()).await.expect("the noise holds up nobody");
}

#[tokio::test]
async fn an_api_server_that_does_not_say_lets_nobody_in() {
    let pods = observed([pay(Health::Starting)]);
    let says = "the operator's log says why";
    for answer in [
        refusal(403, "Forbidden"),
        refusal(500, "InternalError"),
        Some((201, json!({"kind": "TokenReview"}))),
        Some((201, json!({"spec": {"token": TOKEN}, "status": {"authenticated": "yes"}}))),
        Some((201, json!("eyJ"))),
    ] {
        let mesh = start_mesh(&pods, move |_| answer.clone());
        mesh.check_refused(request(), Code::Unavailable, says).await;
    }
}

#[tokio::test]
async fn an_api_server_that_hangs_is_not_waited_for_long() {
    let clock: Arc<dyn Clock> = Arc::new(HandClock::at(Timestamp::UNIX_EPOCH));
    let (_, pods) = watch::channel(observed([pay(Health::Starting)]));
    let pods = Arc::new(Pods::new(pods, Arc::clone(&clock)));
    let door = PodTokens {
        client: client(|_| None),
        pods,
        trust_domain: identity("shop", "payer").trust_domain,
        clock,
        turns: Turns::new(2, 1),
        waits: (Duration::from_millis(50), Duration::ZERO),
    };
    // The second one waits for the turn that the first one has.
    let (one, two) = (request(), request());
    let from = IpAddr::from([10, 0, 0, 1]);
    let both = async { tokio::join!(door.let_in(&one, from), door.let_in(&two, from)) };
    let (one, two) = timeout(Duration::from_secs(10), both).await.expect("in time");
    for refused in [one, two] {
        match refused {
            Err(Refused::Other(status)) => assert_eq!(status.code(), Code::Unavailable),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("let in"),
        }
    }
}
