use super::*;
use crate::{
    ca::Ca,
    clock::{Clock, SystemClock},
    enrol::{
        decide::tests::deployment,
        record::{Failure, Record, Way},
        ties::tests::{permissive, picture_of, strict},
    },
    marks::LAST_RESTART,
    observe::kubernetes::workload::Deployment,
    serve::{listen, tests::trust_domain},
};
use axum::body::Body;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsConnector, client::TlsStream};

struct Given {
    webhook: Webhook,
    namespaces: watch::Sender<Arc<NamespaceLabels>>,
    workloads: watch::Sender<Option<Arc<Workloads>>>,
    picture: watch::Sender<Option<Picture>>,
    _injection: watch::Sender<Arc<Injection>>,
}

fn namespace(name: &str) -> Namespace {
    Namespace::parse(name).expect("a name")
}

/// A webhook that knows these namespaces, each with the value of its label.
fn given(known: &[(&str, &str)]) -> Given {
    let setup = Injection {
        image: "airlane:1".into(),
        image_pull_policy: None,
        operator: "airlane.airlane-system.svc:15010".into(),
        roots: vec!["ab".repeat(32)],
        trust_domain: trust_domain(),
        version: "1".into(),
    };
    let (_injection, injection) = watch::channel(Arc::new(setup));
    let (namespaces, told) = watch::channel(labelled(known));
    let (workloads, picture) = (watch::Sender::default(), watch::Sender::new(None));
    let webhook = Webhook {
        injection,
        namespaces: told,
        workloads: workloads.subscribe(),
        picture: picture.subscribe(),
        system_namespace: namespace("airlane-system"),
    };
    Given { webhook, namespaces, workloads, picture, _injection }
}

fn labelled(known: &[(&str, &str)]) -> Arc<NamespaceLabels> {
    let labels = |value: &str| BTreeMap::from([(INJECT.to_owned(), value.to_owned())]);
    Arc::new(known.iter().map(|(name, value)| (namespace(name), labels(value))).collect())
}

fn review(namespace: &str, object: &Value) -> Value {
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "0f4c8e2a", "kind": { "group": "", "version": "v1", "kind": "Pod" },
        "namespace": namespace, "operation": "CREATE", "object": object,
    }})
}

fn pod(annotations: &Value, spec: &Value) -> Value {
    json!({ "metadata": { "name": "pay", "annotations": annotations }, "spec": spec })
}

fn simple() -> Value {
    pod(&json!({}), &json!({ "containers": [{ "name": "app" }] }))
}

/// Nobody else is in it.
fn line() -> Line {
    Line { turns: Arc::new(Turns::new(1, 1)), from: [127, 0, 0, 1].into() }
}

async fn asked_of(webhook: &Webhook, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
    let request = Request::post(path)
        .header(CONTENT_TYPE, "application/json; charset=utf-8")
        .extension(line())
        .body(body.into());
    let response = webhook.clone().routes().oneshot(request.expect("a request")).await.expect("an answer");
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("a text"))
}

async fn response(webhook: &Webhook, path: &str, review: &Value) -> Value {
    let (status, body) = asked_of(webhook, path, review.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(answer["response"]["uid"], "0f4c8e2a");
    answer["response"].clone()
}

/// The object with the answer's patch.
fn patched(object: &Value, response: &Value) -> Value {
    assert_eq!(
        (&response["allowed"], &response["patchType"]),
        (&json!(true), &json!("JSONPatch")),
        "{response}"
    );
    let patch = BASE64_STANDARD.decode(response["patch"].as_str().expect("a patch")).expect("base64");
    let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a patch");
    let mut object = object.clone();
    json_patch::patch(&mut object, &patch).expect("a patch that fits");
    object
}

#[tokio::test]
async fn a_pod_comes_back_injected_with_a_secret_of_its_own() {
    let given = given(&[("shop", "enabled")]);
    let mut secrets = Vec::new();
    for _ in 0..2 {
        let response = response(&given.webhook, "/inject", &review("shop", &simple())).await;
        let pod = patched(&simple(), &response);
        assert_eq!(pod["spec"]["initContainers"][1]["name"], "airlane-proxy");
        let path = &pod["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"];
        secrets.push(path.as_str().expect("a path").to_owned());
    }
    assert_ne!(secrets[0], secrets[1]);
}

#[tokio::test]
async fn what_is_not_ours_to_inject_is_as_it_is() {
    let given = given(&[]);
    let as_it_is = json!({ "uid": "0f4c8e2a", "allowed": true });
    for exempt in ["kube-system", "airlane-system"] {
        assert_eq!(
            response(&given.webhook, "/inject", &review(exempt, &simple())).await,
            as_it_is,
            "{exempt}"
        );
    }
    for (pointer, value) in [
        ("/request/operation", json!("UPDATE")),
        ("/request/kind/kind", json!("Node")),
        ("/request/subResource", json!("ephemeralcontainers")),
    ] {
        let mut review = review("shop", &simple());
        if let Some(field) = review.pointer_mut(pointer) {
            *field = value;
        } else {
            review["request"]["subResource"] = value;
        }
        assert_eq!(response(&given.webhook, "/inject", &review).await, as_it_is, "{pointer}");
    }
}

#[tokio::test]
async fn mistakes_are_refused_and_pods_that_need_not_join_are_told_why() {
    let given = given(&[("shop", "enabled")]);
    let spec = json!({ "containers": [{ "name": "app" }] });
    let mistaken = pod(&json!({ "airlane.dev/proxyCPU": "much" }), &spec);
    let refused = response(&given.webhook, "/inject", &review("shop", &mistaken)).await;
    assert_eq!(refused["allowed"], false);
    assert_eq!(
        refused["status"]["message"],
        "metadata.annotations[airlane.dev/proxyCPU]: \"much\" is not an amount of CPU; write a request from 5m to 64: 250m or 1"
    );

    let agent = pod(&json!({}), &json!({ "hostNetwork": true, "containers": [{ "name": "app" }] }));
    let told = response(&given.webhook, "/inject", &review("shop", &agent)).await;
    let noted = patched(&agent, &told);
    assert_eq!(noted["spec"], agent["spec"]);
    let reason = noted["metadata"]["annotations"]["airlane.dev/notInjected"].as_str().expect("a reason");
    assert!(reason.starts_with("spec.hostNetwork: "), "{reason}");
    assert!(
        told["warnings"][0].as_str().expect("a warning").starts_with("not in the mesh: spec.hostNetwork: ")
    );
}

#[tokio::test(start_paused = true)]
async fn a_cold_cache_does_not_answer() {
    for known in [&[][..], &[("bank", "enabled")], &[("shop", "disabled")]] {
        let given = given(known);
        let (status, why) = asked_of(&given.webhook, "/inject", review("shop", &simple()).to_string()).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{known:?}");
        assert!(why.contains("does not know yet that namespace shop"), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_has_just_joined_is_waited_for() {
    let Given { webhook, namespaces, _injection, .. } = given(&[("shop", "disabled")]);
    let asking = tokio::spawn(async move { response(&webhook, "/inject", &review("shop", &simple())).await });
    tokio::task::yield_now().await;
    namespaces.send_replace(labelled(&[("shop", "enabled")]));
    let response = asking.await.expect("answered");
    assert!(response["patch"].is_string(), "{response}");
}

#[tokio::test]
async fn what_is_no_review_is_refused_with_a_reason() {
    let given = given(&[("shop", "enabled")]);
    let check = async |body: String, status: StatusCode, says: &str| {
        let (told, why) = asked_of(&given.webhook, "/inject", body).await;
        assert_eq!(told, status, "{why}");
        assert!(why.contains(says), "{why}");
    };
    check(String::new(), StatusCode::BAD_REQUEST, "no AdmissionReview").await;
    check("{}".into(), StatusCode::BAD_REQUEST, "apiVersion").await;
    let no_pod = review("shop", &json!({ "spec": { "containers": 7 } })).to_string();
    check(no_pod, StatusCode::BAD_REQUEST, "request.object is not of its kind").await;
    check("x".repeat(BODY_BYTES_MAX + 1), StatusCode::PAYLOAD_TOO_LARGE, "").await;

    let plain = Request::post("/inject")
        .header(CONTENT_TYPE, "text/plain")
        .extension(line())
        .body(Body::empty())
        .expect("a request");
    let response = given.webhook.routes().oneshot(plain).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn a_pod_of_3_mb_is_injected() {
    let given = given(&[("shop", "enabled")]);
    let variable = json!({ "name": "A", "value": "x".repeat(3_000_000) });
    let large = pod(&json!({}), &json!({ "containers": [{ "name": "app", "env": [variable] }] }));
    let response = response(&given.webhook, "/inject", &review("shop", &large)).await;
    let patch = response["patch"].as_str().expect("a patch");
    assert!(patch.len() < 20_000, "the patch holds only what is added: {} bytes", patch.len());
}

#[tokio::test]
async fn policies_are_validated_as_they_are_read() {
    let given = given(&[]);
    let validated = async |spec: Value| {
        let mut review = review(
            "shop",
            &json!({
                "apiVersion": "airlane.dev/v1alpha1", "kind": "MeshPolicy",
                "metadata": { "name": "pay", "namespace": "shop" }, "spec": spec,
            }),
        );
        review["request"]["kind"] =
            json!({ "group": "airlane.dev", "version": "v1alpha1", "kind": "MeshPolicy" });
        response(&given.webhook, "/validate", &review).await
    };
    let good = validated(json!({ "timeouts": { "request": "10s" } })).await;
    assert_eq!(good, json!({ "uid": "0f4c8e2a", "allowed": true }));
    let bad = validated(json!({ "timeouts": { "request": "soon" } })).await;
    assert_eq!(bad["allowed"], false);
    let message = bad["status"]["message"].as_str().expect("a message");
    assert!(message.starts_with("spec.timeouts.request: \"soon\""), "{message}");

    let mut deleted = review("shop", &Value::Null);
    deleted["request"]["kind"]["group"] = json!("airlane.dev");
    assert_eq!(response(&given.webhook, "/validate", &deleted).await["allowed"], true);
}

#[tokio::test]
async fn a_pod_of_a_million_containers_is_not_read() {
    let given = given(&[("shop", "enabled")]);
    let object = format!(r#"{{"spec":{{"containers":[{}{{}}]}}}}"#, "{},".repeat(1_700_000));
    let mut whole = review("shop", &json!("OBJECT")).to_string();
    whole = whole.replace("\"OBJECT\"", &object);
    assert!(whole.len() < BODY_BYTES_MAX);
    let (status, why) = asked_of(&given.webhook, "/inject", whole).await;
    assert_eq!((status, &*why), (StatusCode::BAD_REQUEST, "the body holds more than 50000 values"));
}

#[tokio::test]
async fn a_pod_is_not_read_before_its_namespace_is_known() {
    let given = given(&[("shop", "enabled")]);
    let no_pod = json!({ "spec": { "containers": 7 } });
    for exempt in ["kube-system", "airlane-system"] {
        assert_eq!(response(&given.webhook, "/inject", &review(exempt, &no_pod)).await["allowed"], true);
    }
    let (status, _) = asked_of(&given.webhook, "/inject", review("bank", &no_pod).to_string()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

/// By which the API server calls.
const NAME: &str = "airlane-webhook.airlane-system.svc";

/// The port, with an authority of its own. Stops when dropped.
struct Running {
    address: std::net::SocketAddr,
    client: Arc<ClientConfig>,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    _state: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn start(webhook: Webhook) -> Running {
    let state = tempfile::tempdir().expect("a directory");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let lifetime = jiff::SignedDuration::from_hours(1);
    let ca = Arc::new(Ca::open(state.path(), trust_domain(), lifetime, clock.now()).expect("opened"));
    let tls = ServerTls::for_api_server(ca.clone(), clock, NAME).expect("TLS");
    let listener = listen(([127, 0, 0, 1], 0).into()).expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, tls, webhook, shutdown.clone()));
    let mut roots = RootCertStore::empty();
    roots.add(ca.root()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let client = Arc::new(builder.expect("versions").with_root_certificates(roots).with_no_client_auth());
    Running { address, client, shutdown, serving, _state: state }
}

impl Running {
    /// A connection from this address of the loopback network to the server called `name`.
    async fn connect(&self, from: [u8; 4], name: &'static str) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let stream = socket.connect(self.address).await?;
        TlsConnector::from(self.client.clone())
            .connect(ServerName::try_from(name).expect("a name"), stream)
            .await
    }
}

async fn healthy(stream: &mut TlsStream<TcpStream>) -> bool {
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    // Whether the end is announced by TLS does not matter.
    let asked = stream.write_all(request.as_bytes()).await.is_ok();
    let _ = stream.read_to_string(&mut answer).await;
    asked && answer.starts_with("HTTP/1.1 200 OK")
}

/// A certificate of our roots, for the name by which the API server calls; and a server that goes on after a
/// connection that says nothing.
#[tokio::test]
async fn the_api_server_finds_a_certificate_for_its_name() {
    let mut running = start(given(&[]).webhook);
    let _silent = TcpStream::connect(running.address).await.expect("a connection");
    let other = running.connect([127, 0, 0, 1], "airlane").await;
    assert!(other.is_err(), "this port has another name than the sidecars'");
    let mut stream = running.connect([127, 0, 0, 1], NAME).await.expect("a certificate of that name");
    assert!(healthy(&mut stream).await);
    running.shutdown.cancel();
    timeout(GOODBYE * 2, &mut running.serving).await.expect("nobody is waited for long").expect("no panic");
}

/// More connections than there are places, all of one address, each through its handshake and silent since.
#[tokio::test]
async fn a_silent_crowd_does_not_keep_the_api_server_out() {
    let running = start(given(&[]).webhook);
    let mut crowd = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        crowd.push(running.connect([127, 0, 0, 2], NAME).await.expect("a connection"));
    }
    let mut stream = running.connect([127, 0, 0, 1], NAME).await.expect("the API server is let in");
    assert!(healthy(&mut stream).await);
    for silent in &mut crowd {
        let end = timeout((FIRST_REQUEST + GOODBYE) * 2, silent.read(&mut [0])).await;
        assert!(matches!(end, Ok(Ok(0) | Err(_))), "who says nothing is not kept");
    }
}

/// Asks for an injection, with the first of so many bytes of a body.
async fn ask(stream: &mut TlsStream<TcpStream>, bytes: usize, body: &str) {
    let head = format!(
        "POST /inject HTTP/1.1\r\nhost: {NAME}\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(body.as_bytes()).await.expect("sent");
    stream.flush().await.expect("sent");
}

/// Whether a pod of `shop` is injected before anybody who is slow was given up.
async fn injects_at_once(running: &Running) -> bool {
    let mut stream = running.connect([127, 0, 0, 1], NAME).await.expect("the API server is let in");
    let review = review("shop", &simple()).to_string();
    ask(&mut stream, review.len(), &review).await;
    let mut answer = [0; 15];
    let answered = timeout(CATCH_UP / 2, stream.read_exact(&mut answer)).await;
    matches!(answered, Ok(Ok(_))) && answer == *b"HTTP/1.1 200 OK"
}

/// As many requests as there are turns and more, of several addresses, whose bodies do not come.
#[tokio::test]
async fn bodies_on_their_way_hold_nobody_up() {
    let running = start(given(&[("shop", "enabled")]).webhook);
    let mut slow = Vec::new();
    for address in 2..6 {
        for _ in 0..READINGS_PER_ADDRESS_MAX {
            let mut stream = running.connect([127, 0, 0, address], NAME).await.expect("a connection");
            ask(&mut stream, BODY_BYTES_MAX, "{").await;
            slow.push(stream);
        }
    }
    assert!(injects_at_once(&running).await);
}

/// More pods than there are turns, of a namespace that the API server has seen labelled and we have not.
#[tokio::test]
async fn a_namespace_that_is_waited_for_holds_no_other_up() {
    let given = given(&[("shop", "enabled")]);
    let running = start(given.webhook.clone());
    let review = review("bank", &simple()).to_string();
    let mut waiting = Vec::new();
    for _ in 0..READINGS_MAX {
        let mut stream = running.connect([127, 0, 0, 1], NAME).await.expect("a connection");
        ask(&mut stream, review.len(), &review).await;
        waiting.push(stream);
    }
    assert!(injects_at_once(&running).await);
}

#[tokio::test]
async fn pods_of_a_workload_that_was_put_back_stay_out_of_the_mesh() {
    let given = given(&[("shop", "enabled")]);
    let begun = Record::begin(Way::Join, None, Timestamp::UNIX_EPOCH);
    let failed = Failure { at: Timestamp::UNIX_EPOCH, because: "no progress for 10m".to_owned() };
    let remember = |record: &Record| {
        let record = serde_json::to_string(record).expect("JSON");
        let annotations = BTreeMap::from([(LAST_RESTART.to_owned(), record)]);
        let deployment = Deployment { annotations, ..deployment() };
        let deployments = BTreeMap::from([(("shop".to_owned(), "pay".to_owned()), deployment)]);
        given.workloads.send_replace(Some(Arc::new(Workloads { deployments, ..Workloads::default() })));
    };
    let mut of_pay = simple();
    of_pay["metadata"]["labels"] = json!({ "pod-template-hash": "7c9f6d" });
    of_pay["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "pay-7c9f6d", "uid": "r", "controller": true,
    }]);
    let asked =
        async |pod: &Value| patched(pod, &response(&given.webhook, "/inject", &review("shop", pod)).await);

    remember(&begun);
    assert!(asked(&of_pay).await["spec"]["initContainers"].is_array(), "its restart is under way");
    remember(&Record { failed: Some(failed), ..begun });
    let kept_out = asked(&of_pay).await;
    assert_eq!(kept_out["spec"], of_pay["spec"]);
    let why = kept_out["metadata"]["annotations"]["airlane.dev/notInjected"].as_str().expect("a reason");
    assert!(why.contains("no progress for 10m"), "{why}");
    of_pay["metadata"]["labels"][INJECT] = json!("enabled");
    assert!(asked(&of_pay).await["spec"]["initContainers"].is_array(), "it asks itself");
    assert!(asked(&simple()).await["spec"]["initContainers"].is_array(), "it is another one's");
}

#[tokio::test]
async fn a_namespace_does_not_leave_while_its_sidecars_keep_a_policy() {
    let given = given(&[("shop", "enabled")]);
    let namespace = |name: &str, inject: Option<&str>| {
        let labels: BTreeMap<&str, &str> = inject.map(|value| (INJECT, value)).into_iter().collect();
        json!({ "metadata": { "name": name, "labels": labels } })
    };
    let asked = async |before: Value, now: Value| {
        let mut review = review("", &now);
        review["request"]["kind"] = json!({ "group": "", "version": "v1", "kind": "Namespace" });
        review["request"]["operation"] = json!("UPDATE");
        review["request"]["oldObject"] = before;
        let response = response(&given.webhook, "/leave", &review).await;
        (response["allowed"] == true, response["status"]["message"].as_str().unwrap_or_default().to_owned())
    };
    let leave = async |name: &str| asked(namespace(name, Some("enabled")), namespace(name, None)).await;
    assert!(leave("shop").await.0, "nobody knows policies yet");
    given.picture.send_replace(Some(picture_of(strict())));
    let (allowed, why) = leave("shop").await;
    assert!(!allowed && why.contains("MeshPolicy shop/strict wants mTLS of every caller (pay)"), "{why}");
    assert!(why.contains("mtls.mode: Permissive"), "{why}");
    assert!(leave("bank").await.0, "it is about others");
    assert!(asked(namespace("shop", Some("enabled")), namespace("shop", Some("outbound"))).await.0);
    assert!(asked(namespace("shop", None), namespace("shop", None)).await.0);
    let mut going = namespace("shop", None);
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(asked(namespace("shop", Some("enabled")), going).await.0, "it is being deleted");
    given.picture.send_replace(Some(picture_of(permissive())));
    assert!(leave("shop").await.0);
}
