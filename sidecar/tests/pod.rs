//! The agent of a pod: its token, the kubelet's questions, strangers on its port, the pod's end.
//!
//! Without an Envoy (`$AIRLANE_ENVOY`, `PATH`, `~/.cache/airlane`) the tests that need one say so and pass, unless
//! `AIRLANE_REQUIRE` is set.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails says what it expected"
)]

mod support;

use airlane_wire::{join::JoinInfo, message::AppHealth};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use support::{
    agent::{Agent, PATIENCE, envoy_is_here},
    authority::Ca,
    door::{Application, application, call, door, good_application},
    operator::{TestOperator, Told},
    patient::{Patient, patient},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UnixStream},
    sync::watch,
    time::timeout,
};

const SECRET: &str = "0123456789abcdefSECRET";
/// Where the kubelet calls from, and where strangers do.
const KUBELET: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// A service account's token; the numbers tell them apart.
fn token(number: u32) -> String {
    let claims = format!(r#"{{"sub":"system:serviceaccount:default:pay","jti":"{number}"}}"#);
    format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("[::]:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

/// An agent in its pod.
struct Pod {
    agent: Agent,
    port: u16,
    token: PathBuf,
}

impl Pod {
    fn start(join: &JoinInfo, asks: &serde_json::Value) -> Self {
        Self::start_with(join, asks, None)
    }

    fn start_with(join: &JoinInfo, asks: &serde_json::Value, envoy: Option<&str>) -> Self {
        let port = free_port();
        let mut file = PathBuf::new();
        let hex = |bytes: [u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
        let agent = Agent::start(|agent, runtime| {
            file = runtime.join("token");
            fs::write(&file, token(1)).expect("written");
            agent
                .args(["pod", "--agent-port", &port.to_string()])
                .args([Path::new("--token"), &file, Path::new("--run-dir"), runtime])
                .env("AIRLANE_OPERATOR", &join.address)
                .env(
                    "AIRLANE_ROOT_SHA256",
                    format!("{},{}", hex(Ca::new().fingerprint()), hex(join.root_fingerprint)),
                )
                .env("AIRLANE_TRUST_DOMAIN", &join.trust_domain)
                .env("POD_IP", "127.0.0.1")
                .env("AIRLANE_PROBES", serde_json::json!({ "secret": SECRET, "asks": asks }).to_string());
            if let Some(envoy) = envoy {
                agent.env("AIRLANE_ENVOY", envoy);
            }
        });
        Self { agent, port, token: file }
    }

    /// A pod that nobody lets in, for what needs no mesh.
    fn alone(asks: &serde_json::Value) -> Self {
        let nowhere = JoinInfo {
            address: "127.0.0.1:1".into(),
            root_fingerprint: [0; 32],
            trust_domain: "airlane.local".into(),
            secret: String::new(),
        };
        Self::start_with(&nowhere, asks, Some("/bin/true"))
    }

    async fn connect(&self, from: Ipv4Addr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))).await
    }

    /// The status and the body of an answer; 0 if there is none.
    async fn send(&self, from: Ipv4Addr, request: &str) -> (u16, String) {
        let answered = async {
            let mut stream = self.connect(from).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = timeout(PATIENCE, answered).await.expect("in time").unwrap_or_default();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        (status, body)
    }

    /// What the kubelet is answered.
    async fn get(&self, path: &str) -> (u16, String) {
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nuser-agent: kube-probe/1.34\r\n\r\n");
        self.send(KUBELET, &head).await
    }

    async fn until_status(&self, path: &str, expected: u16) {
        let answers = async || self.get(path).await.0 == expected;
        self.agent.until(&format!("{path} answers {expected}"), answers).await;
    }
}

/// Whether Envoy has all of its configuration.
async fn envoy_is_live(socket: &str) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.contains("LIVE"))
}

fn healthy(told: &Told) -> bool {
    told.health() == Some(AppHealth::Healthy)
}

#[tokio::test]
async fn joins_with_the_token_of_the_moment_and_is_ready_once_envoy_listens() {
    if !envoy_is_here() {
        return;
    }
    let (app, mesh) = (good_application().await, free_port());
    let listens = Arc::new(AtomicBool::new(false));
    let may_listen = Arc::clone(&listens);
    let (operator, join) = TestOperator::start(move |request| {
        let mut bootstrap: serde_json::Value =
            serde_json::from_str(&door(request, app.into(), mesh.into())).expect("JSON");
        if !may_listen.load(Ordering::Relaxed) {
            bootstrap["static_resources"]["listeners"] = serde_json::json!([]);
        }
        bootstrap.to_string()
    })
    .await;
    operator.expect(&token(2));
    let pod = Pod::start(&join, &serde_json::json!({}));
    let refused = async || pod.agent.output().contains("the token is not known");
    pod.agent.until("the first token is refused", refused).await;
    assert_eq!(pod.get("/ready").await, (503, "not in the mesh yet".into()));

    fs::write(&pod.token, token(2)).expect("written");
    pod.agent.until_told(&operator, "a join", |told| told.joins.len() == 1).await;
    let request = operator.told.borrow().joins[0].clone();
    assert_eq!((request.namespace.as_str(), request.service.as_str()), ("default", "pay"));
    assert_eq!((request.address.as_str(), request.outbound_port), ("127.0.0.1", 15001));

    let live = async || envoy_is_live(&request.admin_socket).await.unwrap_or(false);
    pod.agent.until("Envoy is live", live).await;
    assert_eq!(pod.get("/ready").await, (503, "Envoy does not listen yet".into()));
    assert!(!healthy(&operator.told.borrow()));

    // A new bootstrap starts Envoy anew, with the token of that moment.
    operator.expect(&token(3));
    fs::write(&pod.token, token(3)).expect("written");
    listens.store(true, Ordering::Relaxed);
    operator.forget();
    pod.until_status("/ready", 200).await;
    pod.agent.until_told(&operator, "healthy", healthy).await;
    assert!(call(&operator.ca, mesh.into()).await.expect("answered").1.ends_with("ok"));

    let envoy = pod.agent.child("envoy").expect("Envoy runs");
    kill(Pid::from_raw(envoy.try_into().expect("a pid")), Signal::SIGKILL).expect("killed");
    pod.until_status("/ready", 503).await;
    pod.until_status("/ready", 200).await;
    assert!(call(&operator.ca, mesh.into()).await.expect("answered").1.ends_with("ok"));
    let output = pod.agent.output();
    assert!(!output.contains("PRIVATE KEY") && !output.contains(&token(3)) && !output.contains(SECRET));
}

fn http_get(port: u16, path: &str) -> serde_json::Value {
    serde_json::json!({ "httpGet": { "path": path, "port": port }, "timeoutSeconds": 10 })
}

#[tokio::test]
async fn asks_the_application_as_the_kubelet_would() {
    let Patient { http, https, grpc, closed, heads } = patient().await;
    let tls = |path| serde_json::json!({ "httpGet": { "path": path, "port": https, "scheme": "HTTPS" }, "timeoutSeconds": 10 });
    let health =
        |service| serde_json::json!({ "grpc": { "port": grpc, "service": service }, "timeoutSeconds": 10 });
    let tcp = |port| serde_json::json!({ "tcpSocket": { "port": port }, "timeoutSeconds": 10 });
    let cases = [
        (http_get(http, "/ok"), 200),
        (http_get(http, "ok"), 200),
        (http_get(http, "/sick"), 500),
        (http_get(http, "/moved"), 200),
        (http_get(http, "/moved-to-sick"), 500),
        (http_get(http, "/moved-away"), 200),
        (http_get(http, "/round"), 502),
        (http_get(closed, "/ok"), 502),
        (serde_json::json!({ "httpGet": { "path": "/slow", "port": http }, "timeoutSeconds": 1 }), 504),
        (tls("/ok"), 200),
        (tls("/sick"), 500),
        (
            serde_json::json!({ "httpGet": { "path": "/ok", "port": http, "scheme": "HTTPS" }, "timeoutSeconds": 1 }),
            504,
        ),
        (tcp(http), 200),
        (tcp(closed), 502),
        (health("good"), 200),
        (health("bad"), 503),
        (health("other"), 503),
        (serde_json::json!({ "grpc": { "port": closed }, "timeoutSeconds": 10 }), 502),
    ];
    let asks: serde_json::Map<_, _> =
        cases.iter().enumerate().map(|(n, (ask, _))| (format!("app{n}/liveness"), ask.clone())).collect();
    let pod = Pod::alone(&asks.into());
    pod.until_status("/ready", 503).await;
    for (n, (ask, expected)) in cases.iter().enumerate() {
        let (status, reason) = pod.get(&format!("/probe/app{n}/liveness/{SECRET}")).await;
        assert_eq!(status, *expected, "{ask}: {reason}");
    }
    let first = heads.borrow()[0].clone();
    for line in [&format!("host: 127.0.0.1:{http}"), "user-agent: kube-probe/1.34", "accept: */*"] {
        assert!(first.lines().any(|found| found == line), "{line} in {first}");
    }
}

#[tokio::test]
async fn headers_and_hooks_reach_the_application() {
    let Patient { http, closed, heads, .. } = patient().await;
    let pod = Pod::alone(&serde_json::json!({
        "app/readiness": {
            "httpGet": {
                "path": "/ok",
                "port": http,
                "httpHeaders": [
                    { "name": "Host", "value": "pay.example" },
                    { "name": "X-Twice", "value": "1" },
                    { "name": "X-Twice", "value": "2" },
                    { "name": "User-Agent", "value": "mine" },
                ],
            },
            "timeoutSeconds": 10,
        },
        "app/postStart": http_get(http, "/ok?started"),
        "app/preStop": http_get(closed, "/bye"),
    }));
    pod.until_status(&format!("/probe/app/readiness/{SECRET}"), 200).await;
    let head = heads.borrow().last().expect("a request").clone();
    for line in ["host: pay.example", "x-twice: 1", "x-twice: 2", "user-agent: mine"] {
        assert!(head.lines().any(|found| found == line), "{line} in {head}");
    }
    assert_eq!(pod.get(&format!("/hook/app/postStart/{SECRET}")).await.0, 500);
    assert!(heads.borrow().last().expect("a request").starts_with("GET /ok?started "));
    assert_eq!(pod.get(&format!("/hook/app/preStop/{SECRET}")).await.0, 502);
}

#[tokio::test]
async fn strangers_learn_and_do_nothing() {
    let Patient { http, heads, .. } = patient().await;
    let pod = Pod::alone(&serde_json::json!({ "app/liveness": http_get(http, "/ok") }));
    pod.until_status("/ready", 503).await;
    let wrong = format!("{}X", &SECRET[..SECRET.len() - 1]);
    for path in [
        "/".into(),
        "/metrics".into(),
        "/drain".into(),
        format!("/drain/{wrong}"),
        "/drain/".into(),
        "/probe/app/liveness".into(),
        format!("/probe/app/liveness/{wrong}"),
        format!("/probe/other/liveness/{SECRET}"),
        format!("/hook/app/liveness/{SECRET}"),
        "/../ready".into(),
    ] {
        assert_eq!(pod.get(&path).await, (404, String::new()), "{path}");
    }
    assert!(heads.borrow().is_empty());
    let post = format!("POST /drain/{SECRET} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(pod.send(STRANGER, &post).await.0, 405);
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(1024 * 1024));
    assert!([0, 414, 431].contains(&pod.send(STRANGER, &long).await.0));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    assert!([0, 431].contains(&pod.send(STRANGER, &many).await.0));
    assert_eq!(pod.send(STRANGER, "\u{16}\u{3}\u{1} hello\r\n\r\n").await.0, 400);
    assert_eq!(pod.get("/ready").await.0, 503);
}

#[tokio::test]
async fn a_crowd_does_not_keep_the_kubelet_out() {
    let Patient { http, .. } = patient().await;
    let pod = Pod::alone(&serde_json::json!({ "app/liveness": http_get(http, "/ok") }));
    pod.until_status("/ready", 503).await;
    // The kubelet's own connection, before the crowd.
    let mut kubelet = pod.connect(KUBELET).await.expect("connected");
    kubelet.write_all(b"GET /ready HTTP/1.1\r\n").await.expect("written");
    let mut crowd = Vec::new();
    for _ in 0..300 {
        let mut stream = pod.connect(STRANGER).await.expect("connected");
        // Half a request, so that it is waited for.
        stream.write_all(b"GET /ready HTTP/1.1\r\nx-slow: ").await.ok();
        crowd.push(stream);
        if crowd.len() % 50 == 0 {
            assert_eq!(pod.get(&format!("/probe/app/liveness/{SECRET}")).await.0, 200);
        }
    }
    kubelet.write_all(b"host: x\r\n\r\n").await.expect("written");
    let mut answer = String::new();
    kubelet.read_to_string(&mut answer).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let pid = pod.agent.pid();
    if let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) {
        let open = open.count();
        assert!(open < 100, "{open} files are open");
    }
    // The last of the slow ones is sent away as well, when its time is over.
    let mut last = crowd.pop().expect("one");
    let mut rest = Vec::new();
    // How it is told is the kernel's choice.
    timeout(PATIENCE, last.read_to_end(&mut rest)).await.expect("in time").ok();
}

#[tokio::test]
async fn callers_know_before_the_application_is_stopped() {
    if !envoy_is_here() {
        return;
    }
    let (answer_now, may_answer) = watch::channel(false);
    let Application { port, mut asked } = application("200 OK", may_answer).await;
    let mesh = free_port();
    let (operator, join) = TestOperator::start(move |request| door(request, port.into(), mesh.into())).await;
    operator.expect(&token(1));
    operator.answers_drains.send_replace(false);
    let mut pod = Pod::start(&join, &serde_json::json!({}));
    pod.until_status("/ready", 200).await;

    // Two containers' hooks, while a call is on its way.
    let path = format!("/drain/{SECRET}");
    let story = async {
        timeout(PATIENCE, asked.wait_for(|asked| *asked > 0)).await.expect("in time").expect("asked");
        let drains = async { tokio::join!(pod.get(&path), pod.get(&path)) };
        let beside = async {
            pod.agent.until_told(&operator, "a wish to be drained", |told| told.drains == 1).await;
            operator.answers_drains.send_replace(true);
            let waits = async || pod.agent.output().contains("callers wait for an answer");
            pod.agent.until("the agent waits for the call", waits).await;
            answer_now.send_replace(true);
        };
        let ((first, second), ()) = tokio::join!(drains, beside);
        assert_eq!((first, second), ((200, String::new()), (200, String::new())));
    };
    let (answer, ()) = tokio::join!(call(&operator.ca, mesh.into()), story);
    assert!(answer.expect("answered").1.ends_with("ok"));
    // The application serves on until it is stopped, and the mesh with it.
    assert_eq!(pod.get("/ready").await.0, 200);
    pod.agent.until_told(&operator, "a sign of life", healthy).await;

    pod.agent.signal(Signal::SIGTERM);
    assert_eq!(pod.agent.ended().await.code(), Some(0), "the agent said:\n{}", pod.agent.output());
    let told = operator.told.borrow().clone();
    assert_eq!((told.drains, told.leaves), (1, 1));
    assert_eq!(pod.agent.run_folders(), 0);
}

/// A container that failed its liveness probe was stopped and started again, and has lived since.
#[tokio::test]
async fn a_container_that_is_only_restarted_leaves_no_pod_drained() {
    if !envoy_is_here() {
        return;
    }
    let (app, mesh) = (good_application().await, free_port());
    let (operator, join) = TestOperator::start(move |request| door(request, app.into(), mesh.into())).await;
    operator.expect(&token(1));
    let mut pod = Pod::start(&join, &serde_json::json!({}));
    pod.until_status("/ready", 200).await;
    let asked_callers = || pod.agent.output().contains("asked callers to go elsewhere");
    let path = format!("/drain/{SECRET}");

    operator.pod_goes.send_replace(false);
    assert_eq!(pod.get(&path).await, (200, String::new()));
    assert!(!asked_callers(), "callers come back");
    assert!(call(&operator.ca, mesh.into()).await.expect("answered").1.ends_with("ok"));

    operator.pod_goes.send_replace(true);
    assert_eq!(pod.get(&path).await, (200, String::new()));
    assert_eq!(operator.told.borrow().drains, 2, "callers are told again");
    assert!(asked_callers());
    pod.agent.signal(Signal::SIGTERM);
    assert_eq!(pod.agent.ended().await.code(), Some(0));
    assert_eq!(operator.told.borrow().drains, 2, "and not once more");
}

/// A container is restarted while a call is on its way, and before that has its answer the pod is deleted.
#[tokio::test]
async fn a_pod_that_is_deleted_while_a_container_restarts_tells_callers_anew() {
    if !envoy_is_here() {
        return;
    }
    let (answer_now, may_answer) = watch::channel(false);
    let Application { port, mut asked } = application("200 OK", may_answer).await;
    let mesh = free_port();
    let (operator, join) = TestOperator::start(move |request| door(request, port.into(), mesh.into())).await;
    operator.expect(&token(1));
    let pod = Pod::start(&join, &serde_json::json!({}));
    pod.until_status("/ready", 200).await;
    let path = format!("/drain/{SECRET}");
    operator.pod_goes.send_replace(false);
    let story = async {
        timeout(PATIENCE, asked.wait_for(|asked| *asked > 0)).await.expect("in time").expect("asked");
        let deleted = async {
            let waits = async || pod.agent.output().contains("callers wait for an answer");
            pod.agent.until("the agent waits for the call", waits).await;
            operator.pod_goes.send_replace(true);
            let told =
                async { pod.agent.until_told(&operator, "the pod's wish", |told| told.drains == 2).await };
            let hook = async { pod.get(&path).await };
            let answered = async {
                told.await;
                answer_now.send_replace(true);
            };
            tokio::join!(hook, answered)
        };
        let (restarted, (deleted, ())) = tokio::join!(pod.get(&path), deleted);
        assert_eq!((restarted.0, deleted.0), (200, 200));
    };
    let (answer, ()) = tokio::join!(call(&operator.ca, mesh.into()), story);
    assert!(answer.expect("answered").1.ends_with("ok"));
}

#[tokio::test]
async fn an_operator_that_is_silent_does_not_hold_the_pod_up() {
    if !envoy_is_here() {
        return;
    }
    let (app, mesh) = (good_application().await, free_port());
    let (operator, join) = TestOperator::start(move |request| door(request, app.into(), mesh.into())).await;
    operator.expect(&token(1));
    operator.answers_drains.send_replace(false);
    let mut pod = Pod::start(&join, &serde_json::json!({}));
    pod.until_status("/ready", 200).await;
    // Answered although the operator never does.
    assert_eq!(pod.get(&format!("/drain/{SECRET}")).await.0, 200);
    pod.agent.signal(Signal::SIGTERM);
    assert_eq!(pod.agent.ended().await.code(), Some(0));
    assert_eq!(operator.told.borrow().leaves, 1);
}

#[tokio::test]
async fn a_pod_that_never_came_into_the_mesh_goes_at_once() {
    let mut pod = Pod::alone(&serde_json::json!({}));
    pod.until_status(&format!("/drain/{SECRET}"), 200).await;
    pod.agent.signal(Signal::SIGTERM);
    assert_eq!(pod.agent.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_pod_edited_by_hand_is_told_what_is_wrong() {
    let mut pod = Pod::alone(&serde_json::json!({ "app/liveness": { "exec": {}, "timeoutSeconds": 1 } }));
    assert_eq!(pod.agent.ended().await.code(), Some(1));
    let output = pod.agent.output();
    assert!(output.contains("AIRLANE_PROBES is not what an injector writes"), "{output}");
    assert!(!output.contains(SECRET), "{output}");
}
