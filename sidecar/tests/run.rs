//! The whole agent, with a real Envoy, against an operator that speaks the real protocol.
//!
//! Without an Envoy (`$AIRLANE_ENVOY`, `PATH`, `~/.cache/airlane`) the tests that need one say so and pass.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails says what it expected"
)]

mod support;

use airlane_wire::{
    join::JoinInfo,
    message::{AppHealth, JoinRequest},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs, path::Path, time::Instant};
use support::{
    agent::{Agent, PATIENCE, envoy_is_here, runs},
    authority::Ca,
    door::{self, Application, application, call, good_application},
    operator::{TestOperator, Told},
};
use tokio::{sync::watch, time::timeout};

fn start(join: &JoinInfo, port: u16, command: &[&str]) -> Agent {
    Agent::start(|agent, runtime| {
        agent
            .args(["run", "--service", "pay", "--version", "v2", "--port", &port.to_string(), "--"])
            .args(command)
            .env("XDG_RUNTIME_DIR", runtime)
            .env("AIRLANE_JOIN", join.to_string())
            .env("NO_PROXY", "db.internal");
    })
}

/// An Envoy that serves on the mesh port what the application answers.
fn door(request: &JoinRequest) -> String {
    let port = &request.ports[0];
    door::door(request, port.app, port.mesh)
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
    let mut agent = start(&join, port, &["/bin/sh", "-c", &script]);
    let healthy = |told: &Told| told.health() == Some(AppHealth::Healthy);

    agent.until_told(&operator, "the application is healthy", healthy).await;
    agent.until("the application runs", async || environment.exists()).await;
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
    assert_eq!(agent.run_folders(), 0);
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
    let mut agent = start(&join, port, &["/bin/sleep", "1000"]);
    agent.until_told(&operator, "healthy", |told| told.health() == Some(AppHealth::Healthy)).await;
    let mesh_port = operator.told.borrow().joins[0].ports[0].mesh;
    let (answer, ()) = tokio::join!(call(&operator.ca, mesh_port), async {
        timeout(PATIENCE, asked.wait_for(|asked| *asked > 0)).await.expect("in time").expect("asked");
        agent.signal(Signal::SIGTERM);
        agent.until("the agent waits", async || agent.output().contains("callers wait for an answer")).await;
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
    let agent = start(&join, port, &["/bin/sleep", "1000"]);
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
    let mut agent = start(&join, port, &["/bin/sleep", "1000"]);
    agent.until_told(&operator, "healthy", |told| told.health() == Some(AppHealth::Healthy)).await;
    let started = ["envoy", "sleep"].map(|name| agent.child(name).expect("runs"));
    agent.signal(Signal::SIGKILL);
    agent.ended().await;
    agent.until("Envoy and the application are dead", async || started.iter().all(|pid| !runs(*pid))).await;
}

#[tokio::test]
async fn the_applications_end_is_the_agents() {
    if !envoy_is_here() {
        return;
    }
    let (operator, join) = TestOperator::start(door).await;
    let port = good_application().await;
    let mut agent = start(&join, port, &["/bin/sh", "-c", "exit 7"]);
    assert_eq!(agent.ended().await.code(), Some(7), "the agent said:\n{}", agent.output());
    assert_eq!(operator.told.borrow().leaves, 1);
    let mut agent = start(&join, port, &["/no/such/program"]);
    assert_eq!(agent.ended().await.code(), Some(127));
    assert!(agent.output().contains("cannot run /no/such/program"), "{}", agent.output());
}

#[tokio::test]
async fn a_refused_token_ends_the_agent_with_the_operators_words() {
    let (_, mut join) = TestOperator::start(no_envoy).await;
    join.secret = "stolen".into();
    let mut agent = start(&join, 1, &["/bin/true"]);
    assert_eq!(agent.ended().await.code(), Some(1));
    assert!(agent.output().contains("the token is not known; make a new one"), "{}", agent.output());
    assert!(!agent.output().contains("stolen"));
    assert_eq!(agent.run_folders(), 0);
}

#[tokio::test]
async fn an_impostor_does_not_see_the_token() {
    let (operator, mut join) = TestOperator::start(no_envoy).await;
    join.root_fingerprint = Ca::new().fingerprint();
    let mut agent = start(&join, 1, &["/bin/true"]);
    let output = agent.output.clone();
    let says = async || fs::read_to_string(&output).is_ok_and(|text| text.contains("use a new join string"));
    agent.until("the agent says why", says).await;
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.ended().await.code(), Some(0));
    assert!(operator.told.borrow().joins.is_empty());
}
