//! The whole agent, with a real Envoy, against an operator that speaks the real protocol.
//!
//! Without an Envoy (`$AIRLANE_ENVOY`, `PATH`, `~/.cache/airlane`) the tests that need one say so and pass.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails says what it expected"
)]

#[path = "support/authority.rs"]
mod authority;
#[path = "support/operator.rs"]
mod operator;

use airlane_wire::{
    join::JoinInfo,
    message::{AppHealth, JoinRequest},
};
use authority::Ca;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use operator::{TestOperator, Told};
use rustls::{
    ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

struct Agent {
    child: Child,
    runtime: tempfile::TempDir,
    output: PathBuf,
}

impl Agent {
    fn start(join: &JoinInfo, port: u16, command: &[&str]) -> Self {
        let runtime = tempfile::tempdir().expect("a folder");
        let output = runtime.path().join("output");
        let file = fs::File::create(&output).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_airlane-sidecar"))
            .args(["run", "--service", "pay", "--version", "v2", "--port", &port.to_string(), "--"])
            .args(command)
            .env("XDG_RUNTIME_DIR", runtime.path())
            .env("AIRLANE_JOIN", join.to_string())
            .env("AIRLANE_LOG", "airlane_sidecar=debug")
            .env("NO_PROXY", "db.internal")
            .stdin(Stdio::null())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .expect("started");
        Self { child, runtime, output }
    }

    fn pid(&self) -> u32 {
        self.child.id().expect("running")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().expect("a pid")), signal).expect("signalled");
    }

    async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("in time").expect("waited")
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.output).expect("read")
    }

    /// Fails with the agent's words unless `condition` comes true.
    async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "not in time: {what}; the agent said:\n{}", self.output());
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_told(&self, operator: &TestOperator, what: &str, condition: impl Fn(&Told) -> bool) {
        self.until(what, || condition(&operator.told.borrow())).await;
    }

    /// The process id of the child that runs `program`.
    fn child(&self, program: &str) -> Option<u32> {
        children(self.pid()).into_iter().find(|(_, name)| name == program).map(|(pid, _)| pid)
    }
}

/// Process ids and names, from proc_pid_stat(5): `pid (name) state parent …`.
fn children(of: u32) -> Vec<(u32, String)> {
    let processes = fs::read_dir("/proc").expect("read").flatten();
    let stats = processes.filter_map(|process| fs::read_to_string(process.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            let (pid, rest) = stat.split_once(" (")?;
            let (name, rest) = rest.rsplit_once(") ")?;
            let parent: u32 = rest.split(' ').nth(1)?.parse().ok()?;
            (parent == of).then_some((pid.parse().ok()?, name.to_owned()))
        })
        .collect()
}

fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended; its new parent may be slow to wait for it.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// An Envoy that serves on the mesh port, by TLS with the agent's secrets, what the application answers.
fn door(request: &JoinRequest) -> String {
    let port = &request.ports[0];
    let address =
        |port: u32| serde_json::json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let cluster = |name: &str, address| {
        serde_json::json!({
            "name": name,
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
            },
        })
    };
    let mut agent = cluster("agent", serde_json::json!({ "pipe": { "path": request.agent_socket } }));
    agent["typed_extension_protocol_options"] = serde_json::json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    let secret = |name: &str, api_type: &str| {
        serde_json::json!({
            "name": name,
            "sds_config": {
                "resource_api_version": "V3",
                "initial_fetch_timeout": "0s",
                "api_config_source": {
                    "api_type": api_type,
                    "transport_api_version": "V3",
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": "agent" } }],
                },
            },
        })
    };
    serde_json::json!({
        "node": { "id": "pay-v2-1", "cluster": "default" },
        "admin": { "address": { "pipe": { "path": request.admin_socket } } },
        "static_resources": {
            "clusters": [cluster("application", address(port.app)), agent],
            "listeners": [{
                "name": "door",
                "address": address(port.mesh),
                "traffic_direction": "INBOUND",
                "filter_chains": [{
                    "transport_socket": {
                        "name": "envoy.transport_sockets.tls",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                            "common_tls_context": {
                                "tls_certificate_sds_secret_configs": [secret("leaf", "GRPC")],
                                "validation_context_sds_secret_config": secret("root", "DELTA_GRPC"),
                            },
                        },
                    },
                    "filters": [{
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                            "stat_prefix": format!("inbound|{}|mtls", port.app),
                            "route_config": {
                                "virtual_hosts": [{
                                    "name": "all",
                                    "domains": ["*"],
                                    "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "application" } }],
                                }],
                            },
                            "http_filters": [{
                                "name": "envoy.filters.http.router",
                                "typed_config": {
                                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                                },
                            }],
                        },
                    }],
                }],
            }],
        },
    })
    .to_string()
}

/// A [`door`] that shuts for a second when the application fails once.
fn ejecting_door(request: &JoinRequest) -> String {
    let mut bootstrap: serde_json::Value = serde_json::from_str(&door(request)).expect("JSON");
    bootstrap["cluster_manager"] =
        serde_json::json!({ "outlier_detection": { "event_log_path": request.event_log } });
    bootstrap["static_resources"]["clusters"][0]["outlier_detection"] = serde_json::json!({
        "consecutive_5xx": 1,
        "interval": "0.5s",
        "base_ejection_time": "1s",
        "max_ejection_percent": 100,
    });
    bootstrap.to_string()
}

fn no_envoy(_: &JoinRequest) -> String {
    "no bootstrap".into()
}

/// An application of the tests.
struct Application {
    port: u16,
    /// Requests that came in.
    asked: watch::Receiver<u32>,
}

/// Answers every connection's first request with `status`, as soon as `may_answer` says so.
async fn application(status: &'static str, may_answer: watch::Receiver<bool>) -> Application {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (count, asked) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut may_answer, count) = (may_answer.clone(), count.clone());
            tokio::spawn(async move {
                let mut request = [0; 4096];
                // A probe hangs up without a word.
                if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    count.send_modify(|count| *count += 1);
                    may_answer.wait_for(|may| *may).await.ok();
                    let answer =
                        format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
                    stream.write_all(answer.as_bytes()).await.ok();
                }
            });
        }
    });
    Application { port, asked }
}

/// An application that answers at once, and well.
async fn good_application() -> u16 {
    application("200 OK", watch::channel(true).1).await.port
}

/// Any certificate of the mesh, whatever its names: Envoy checks names, this only looks.
#[derive(Debug)]
struct OfTheMesh(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for OfTheMesh {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        use rustls::{CertificateError::NotValidForNameContext, Error::InvalidCertificate};
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(InvalidCertificate(
                NotValidForNameContext { .. } | rustls::CertificateError::NotValidForName,
            )) => Ok(rustls::client::danger::ServerCertVerified::assertion()),
            other => other,
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Calls through the door; gives the certificate that was shown, and the answer.
async fn call(ca: &Ca, mesh_port: u32) -> std::io::Result<(CertificateDer<'static>, String)> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.root_der()).expect("a root");
    let mesh = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OfTheMesh(mesh.build().expect("a verifier"))))
        .with_no_client_auth();
    let tcp = TcpStream::connect(("127.0.0.1", mesh_port.try_into().expect("a port"))).await?;
    let name = ServerName::try_from("pay").expect("a name");
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let shown = tls.get_ref().1.peer_certificates().expect("shown")[0].clone().into_owned();
    tls.write_all(b"GET / HTTP/1.1\r\nhost: pay\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await?;
    Ok((shown, answer))
}

fn envoy_is_here() -> bool {
    let cached = std::env::home_dir().unwrap_or_default().join(".cache/airlane/envoy-1.40.0/envoy");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).any(|folder| folder.join("envoy").is_file());
    let here = std::env::var_os("AIRLANE_ENVOY").is_some() || in_path || cached.is_file();
    if !here {
        println!("skipped: no Envoy");
    }
    here
}

fn run_folders(agent: &Agent) -> usize {
    fs::read_dir(agent.runtime.path())
        .expect("read")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("airlane-"))
        .count()
}

fn read_variable(environment: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(environment).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

#[tokio::test]
async fn a_whole_life() {
    if !envoy_is_here() {
        return;
    }
    let (operator, join) = TestOperator::start(door).await;
    let port = good_application().await;
    let dir = tempfile::tempdir().expect("a folder");
    let environment = dir.path().join("environment");
    let script = format!("env > {0}.new; mv {0}.new {0}; exec sleep 1000", environment.display());
    let mut agent = Agent::start(&join, port, &["/bin/sh", "-c", &script]);
    let healthy = |told: &Told| told.health() == Some(AppHealth::Healthy);

    agent.until_told(&operator, "the application is healthy", healthy).await;
    agent.until("the application runs", || environment.exists()).await;
    let request = operator.told.borrow().joins[0].clone();
    let proxy = format!("http://127.0.0.1:{}", request.outbound_port);
    assert_eq!(read_variable(&environment, "http_proxy"), Some(proxy));
    assert_eq!(read_variable(&environment, "NO_PROXY"), Some("localhost,127.0.0.1,::1,db.internal".into()));
    assert_eq!(read_variable(&environment, "AIRLANE_INSTANCE"), Some("pay-v2-1".into()));
    assert_eq!(read_variable(&environment, "AIRLANE_JOIN"), None, "the application needs no token");

    let mesh_port = request.ports[0].mesh;
    let (first, answer) = call(&operator.ca, mesh_port).await.expect("answered");
    assert!(answer.ends_with("ok"), "{answer}");

    // A renewal reaches Envoy.
    agent.signal(Signal::SIGHUP);
    agent.until_told(&operator, "a renewal", |told| told.renewals == 1).await;
    let deadline = Instant::now() + PATIENCE;
    while call(&operator.ca, mesh_port).await.expect("answered").0 == first {
        assert!(Instant::now() < deadline, "Envoy goes on with the first certificate");
    }

    // A forgetful operator is told again, by the same name; Envoy is not disturbed.
    let envoy = agent.child("envoy").expect("Envoy runs");
    operator.forget();
    agent.until_told(&operator, "a second join", |told| told.joins.len() == 2).await;
    assert_eq!(operator.told.borrow().joins[1].instance, "pay-v2-1");
    assert_eq!(agent.child("envoy"), Some(envoy));

    // A dead Envoy is seen, and replaced.
    kill(Pid::from_raw(envoy.try_into().expect("a pid")), Signal::SIGKILL).expect("killed");
    agent
        .until_told(&operator, "unhealthy without Envoy", |told| told.health() == Some(AppHealth::Unhealthy))
        .await;
    agent.until_told(&operator, "healthy again", healthy).await;
    call(&operator.ca, mesh_port).await.expect("answered");

    agent.signal(Signal::SIGTERM);
    let status = agent.ended().await;
    assert_eq!(status.code(), Some(143), "the application's end; the agent said:\n{}", agent.output());
    let told = operator.told.borrow().clone();
    assert_eq!((told.drains, told.leaves), (1, 1));
    assert_eq!(run_folders(&agent), 0);
    assert!(!agent.output().contains("PRIVATE KEY") && !agent.output().contains(&join.secret));
}

#[tokio::test]
async fn a_request_on_its_way_is_answered_before_the_end() {
    if !envoy_is_here() {
        return;
    }
    let (operator, join) = TestOperator::start(door).await;
    let (answer_now, may_answer) = watch::channel(false);
    let Application { port, mut asked } = application("200 OK", may_answer).await;
    let mut agent = Agent::start(&join, port, &["/bin/sleep", "1000"]);
    agent.until_told(&operator, "healthy", |told| told.health() == Some(AppHealth::Healthy)).await;
    let mesh_port = operator.told.borrow().joins[0].ports[0].mesh;
    let (answer, ()) = tokio::join!(call(&operator.ca, mesh_port), async {
        timeout(PATIENCE, asked.wait_for(|asked| *asked > 0)).await.expect("in time").expect("asked");
        agent.signal(Signal::SIGTERM);
        agent.until("the agent waits", || agent.output().contains("callers wait for an answer")).await;
        answer_now.send_replace(true);
    });
    assert!(answer.expect("answered").1.ends_with("ok"));
    agent.ended().await;
    assert_eq!(operator.told.borrow().drains, 1);
}

#[tokio::test]
async fn an_ejected_endpoint_is_told() {
    if !envoy_is_here() {
        return;
    }
    let (operator, join) = TestOperator::start(ejecting_door).await;
    let port = application("503 Service Unavailable", watch::channel(true).1).await.port;
    let agent = Agent::start(&join, port, &["/bin/sleep", "1000"]);
    agent.until_told(&operator, "healthy", |told| told.health() == Some(AppHealth::Healthy)).await;
    call(&operator.ca, operator.told.borrow().joins[0].ports[0].mesh).await.expect("answered");
    let events = |told: &Told| -> Vec<(String, bool, String)> {
        let events = told.heartbeats.iter().flat_map(|heartbeat| &heartbeat.outliers);
        events.map(|event| (event.upstream.clone(), event.ejected, event.reason.clone())).collect()
    };
    agent.until_told(&operator, "both events", |told| events(told).len() >= 2).await;
    let upstream = format!("127.0.0.1:{port}");
    let expected = [true, false].map(|ejected| (upstream.clone(), ejected, "CONSECUTIVE_5XX".into()));
    assert_eq!(events(&operator.told.borrow()), expected);
}

#[tokio::test]
async fn nothing_outlives_a_killed_agent() {
    if !envoy_is_here() {
        return;
    }
    let (operator, join) = TestOperator::start(door).await;
    let port = good_application().await;
    let mut agent = Agent::start(&join, port, &["/bin/sleep", "1000"]);
    agent.until_told(&operator, "healthy", |told| told.health() == Some(AppHealth::Healthy)).await;
    let started = ["envoy", "sleep"].map(|name| agent.child(name).expect("runs"));
    agent.signal(Signal::SIGKILL);
    agent.ended().await;
    agent.until("Envoy and the application are dead", || started.iter().all(|pid| !runs(*pid))).await;
}

#[tokio::test]
async fn the_applications_end_is_the_agents() {
    if !envoy_is_here() {
        return;
    }
    let (operator, join) = TestOperator::start(door).await;
    let port = good_application().await;
    let mut agent = Agent::start(&join, port, &["/bin/sh", "-c", "exit 7"]);
    assert_eq!(agent.ended().await.code(), Some(7), "the agent said:\n{}", agent.output());
    assert_eq!(operator.told.borrow().leaves, 1);
    let mut agent = Agent::start(&join, port, &["/no/such/program"]);
    assert_eq!(agent.ended().await.code(), Some(127));
    assert!(agent.output().contains("cannot run /no/such/program"), "{}", agent.output());
}

#[tokio::test]
async fn a_refused_token_ends_the_agent_with_the_operators_words() {
    let (_, mut join) = TestOperator::start(no_envoy).await;
    join.secret = "stolen".into();
    let mut agent = Agent::start(&join, 1, &["/bin/true"]);
    assert_eq!(agent.ended().await.code(), Some(1));
    assert!(agent.output().contains("the token is not known; make a new one"), "{}", agent.output());
    assert!(!agent.output().contains("stolen"));
    assert_eq!(run_folders(&agent), 0);
}

#[tokio::test]
async fn an_impostor_does_not_see_the_token() {
    let (operator, mut join) = TestOperator::start(no_envoy).await;
    join.root_fingerprint = Ca::new().fingerprint();
    let mut agent = Agent::start(&join, 1, &["/bin/true"]);
    let output = agent.output.clone();
    let says = || fs::read_to_string(&output).is_ok_and(|text| text.contains("use a new join string"));
    agent.until("the agent says why", says).await;
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.ended().await.code(), Some(0));
    assert!(operator.told.borrow().joins.is_empty());
}
