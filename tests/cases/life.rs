//! Parts die, and come back: calls go on, and nothing is forgotten.

use airlane_tests::{
    load::Load,
    mesh::Mesh,
    until::{SOON, throughout, until},
    workload::{App, Workload},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{fs, time::Duration};

const URL: &str = "http://payments/pay";

async fn front_and_two(mesh: &Mesh) -> (Workload, [Workload; 2]) {
    let front = mesh.workload(App::new("front")).await;
    let payments = [mesh.workload(App::new("payments")).await, mesh.workload(App::new("payments")).await];
    mesh.call_gives(&front, URL, 200).await;
    (front, payments)
}

/// Waits until so many requests more were sent.
async fn go_on(load: &Load, requests: u64) {
    let enough = load.sent() + requests;
    until("more requests", SOON, async || match load.sent() {
        sent if sent >= enough => Ok(()),
        sent => Err(format!("{sent} of {enough}")),
    })
    .await;
}

async fn endpoint(mesh: &Mesh, of: &Workload) -> Result<Option<Value>, String> {
    let rows = mesh.get("endpoints").await?;
    Ok(rows.into_iter().find(|row| row["instance"] == of.instance()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_takes_everything_with_it_and_no_caller_notices() {
    let mesh = Mesh::start().await;
    let (front, [mut killed, _other]) = front_and_two(&mesh).await;
    let load = Load::start(front.outbound(), URL, 50.0);
    go_on(&load, 50).await;

    killed.sidecar().kill();
    until("Envoy and the application are gone", SOON, async || {
        let left = killed.processes();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    // After five heartbeats of a second: one whose Envoy lived on would be waited for a minute.
    until("the endpoint is gone", SOON, async || {
        endpoint(&mesh, &killed).await?.map_or(Ok(()), |row| Err(row.to_string()))
    })
    .await;
    go_on(&load, 50).await;
    load.finish().await.assert_nothing_failed(150);
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_envoy_is_started_again() {
    let mesh = Mesh::start().await;
    let (front, [one, _other]) = front_and_two(&mesh).await;
    mesh.program("payments.yaml", "default/payments", FORGIVING).await;
    let load = Load::start(front.outbound(), URL, 50.0);
    for _ in 0..2 {
        let before = one.envoy_pid();
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        until("another Envoy is ready", SOON, async || {
            let ready = one.admin("/ready").await?;
            if ready.status == 200 && one.envoy_pid() != before { Ok(()) } else { Err(ready.to_string()) }
        })
        .await;
        let calls = requests(&one).await;
        until("it is called again", SOON, async || {
            if requests(&one).await > calls { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }
    go_on(&load, 25).await;
    load.finish().await.assert_nothing_failed(25);

    // The caller's own: nothing gets out meanwhile, and everything afterwards.
    kill(Pid::from_raw(front.envoy_pid()), Signal::SIGKILL).unwrap();
    mesh.call_gives(&front, URL, 200).await;
    mesh.assert_nothing_rejected().await;
}

async fn requests(app: &Workload) -> u64 {
    app.behaviour().await.unwrap()["requests"].as_u64().unwrap()
}

/// On a slow host a proxy that dies takes so many requests along that callers leave it out, for 30 s by default.
const FORGIVING: &str = "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: payments }
spec:
  targetRef: { kind: Service, name: payments }
  circuitBreaker: { outlierDetection: { interval: 500ms, baseEjectionTime: 500ms } }
";

const RESOURCES: &str = "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: payments }
spec:
  targetRef: { kind: Service, name: payments }
  timeouts: { request: 7s }
---
apiVersion: airlane.dev/v1alpha1
kind: Canary
metadata: { name: payments }
spec:
  service: payments
  stable: { version: v1 }
  canary: { version: v2 }
  steps: [{ weight: 20%, atLeast: 1h }, { weight: 100% }]
  objectives:
    - { name: errors, errorRate: { max: 1% } }
";

/// Every instance and its health.
async fn endpoints(mesh: &Mesh) -> Result<Vec<Value>, String> {
    let rows = mesh.get("endpoints").await?;
    Ok(rows.iter().map(|row| json!([row["instance"], row["health"]])).collect())
}

async fn request_timeout(mesh: &Mesh) -> Result<Value, String> {
    let rows = mesh.get("effective/default/payments").await?;
    let row = rows.iter().find(|row| row["field"] == "spec.timeouts.request").ok_or("no such value")?;
    Ok(json!([row["value"], row["origin"]]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_operator_forgets_nothing() {
    let mut mesh = Mesh::start().await;
    let (front, _payments) = front_and_two(&mesh).await;
    mesh.program("resources.yaml", "default/payments", RESOURCES).await;
    until("the canary is planned", SOON, async || mesh.canary("default/payments").await).await;
    let _release = mesh.workload(App::new("payments").version("v2")).await;
    let load = Load::start(front.outbound(), URL, 50.0);
    mesh.canary_reaches("default/payments", &["Progressing"], SOON).await;
    mesh.ask(&["canary", "pause", "default/payments"]).await;
    let progress = |row: &Value| -> Value {
        json!([row["phase"], row["step"], row["sharePercent"], row["progress"]["history"]])
    };
    let before = progress(&mesh.canary_reaches("default/payments", &["Paused"], SOON).await);
    let endpoints_before = endpoints(&mesh).await.unwrap();
    assert_eq!(endpoints_before.len(), 4);

    // By signal and by force.
    for force in [false, true] {
        if force {
            mesh.operator().kill();
        } else {
            let status = mesh.operator().stop(SOON).await;
            assert!(status.success(), "the operator ended with {status}");
        }
        mesh.start_operator_again().await;
        let row = until("the canary is known", SOON, async || mesh.canary("default/payments").await).await;
        assert_eq!(progress(&row), before, "after a restart, by force: {force}");
        assert_eq!(endpoints(&mesh).await.unwrap(), endpoints_before, "by force: {force}");
        assert_eq!(request_timeout(&mesh).await.unwrap(), json!(["7s", "MeshPolicy default/payments"]));
    }
    mesh.ask(&["canary", "resume", "default/payments"]).await;
    mesh.canary_reaches("default/payments", &["Progressing"], SOON).await;

    // What a file said ends with the file.
    mesh.remove("resources.yaml");
    until("defaults again", SOON, async || {
        let timeout = request_timeout(&mesh).await?;
        let rows = (mesh.get("policies").await?, mesh.get("canaries").await?);
        let gone = rows.0.is_empty() && rows.1.is_empty() && timeout[1] == "default";
        if gone { Ok(()) } else { Err(format!("{timeout} {rows:?}")) }
    })
    .await;
    go_on(&load, 25).await;
    load.finish().await.assert_nothing_failed(25);
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_heals_while_calls_go_on() {
    let mut mesh = Mesh::start().await;
    let (front, [one, other]) = front_and_two(&mesh).await;
    let load = Load::start(front.outbound(), URL, 50.0);
    go_on(&load, 25).await;
    mesh.operator().kill();
    let mut lost = 0;
    for file in fs::read_dir(mesh.state()).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("state.db") {
            fs::remove_file(file.path()).unwrap();
            lost += 1;
        }
    }
    assert!(lost > 0, "there was no database");
    mesh.start_operator_again().await;
    until("everybody is back", SOON, async || {
        for workload in [&front, &one, &other] {
            let row = endpoint(&mesh, workload).await?.ok_or("not an endpoint")?;
            if row["health"] != "Healthy" {
                return Err(row.to_string());
            }
        }
        Ok(())
    })
    .await;
    throughout("calls go on", Duration::from_secs(1), async || match load.so_far() {
        report if report.failed == 0 => Ok(()),
        report => Err(report.to_string()),
    })
    .await;
    load.finish().await.assert_nothing_failed(75);
    mesh.assert_nothing_rejected().await;
}
