//! A policy does what it says, seen from the caller.

use airlane_tests::{
    client::{Answer, get_through, request, send_through},
    load::Load,
    mesh::Mesh,
    until::{SOON, throughout, until},
    workload::{App, Workload},
};
use futures::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;

const URL: &str = "http://payments/pay";

fn policy(spec: &str) -> String {
    format!(
        "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: {{ name: payments }}
spec:
  targetRef: {{ kind: Service, name: payments }}
{spec}"
    )
}

async fn program(mesh: &Mesh, spec: &str) {
    mesh.program("payments.yaml", "default/payments", &policy(spec)).await;
}

async fn front_and_two(mesh: &Mesh) -> (Workload, [Workload; 2]) {
    let front = mesh.workload(App::new("front")).await;
    let payments = [mesh.workload(App::new("payments")).await, mesh.workload(App::new("payments")).await];
    mesh.call_gives(&front, URL, 200).await;
    (front, payments)
}

async fn post(front: &Workload) -> Answer {
    send_through(front.outbound(), request("POST", URL, r#"{"cents": 300}"#)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_save_what_may_be_repeated_and_nothing_else() {
    let mesh = Mesh::start().await;
    let (front, [sick, _well]) = front_and_two(&mesh).await;
    let no_ejection = "outlierDetection: { consecutive5xx: 0, consecutiveGatewayErrors: 0 }";
    let spec =
        format!("  retries: {{ attempts: 3, retryOn: [5xx] }}\n  circuitBreaker: {{ {no_ejection} }}\n");
    program(&mesh, &spec).await;
    sick.behave(&json!({"sick": true})).await;

    for _ in 0..50 {
        let answer = get_through(front.outbound(), URL).await.unwrap();
        assert_eq!(answer.status, 200, "a GET was not repeated on the other copy: {answer}");
    }
    let before = failed(&sick).await;
    assert!(before > 0, "the sick copy was never called: nothing was proved");

    // A POST that reached an application is not sent again: each failure there is a failure here.
    let mut failures = 0;
    for _ in 0..50 {
        failures += u64::from(post(&front).await.status == 503);
    }
    assert!(failures > 0, "no POST reached the sick copy");
    assert_eq!(failed(&sick).await - before, failures, "a POST was repeated");
    mesh.assert_nothing_rejected().await;
}

async fn failed(app: &Workload) -> u64 {
    app.behaviour().await.unwrap()["failed"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sick_copy_is_left_out_with_its_reason_and_taken_back() {
    let mesh = Mesh::start().await;
    let (front, [sick, _well]) = front_and_two(&mesh).await;
    program(
        &mesh,
        "  circuitBreaker:\n    outlierDetection: { consecutive5xx: 3, interval: 500ms, baseEjectionTime: 3s, maxEjectionPercent: 50 }\n",
    )
    .await;
    let load = Load::start(front.outbound(), URL, 50.0);
    sick.behave(&json!({"sick": true})).await;

    let open = breaker(&mesh, &sick, "OPEN").await;
    until("the reason is told", SOON, async || {
        let open = breaker(&mesh, &sick, "OPEN").await;
        let told = open["reason"].as_str().unwrap().contains("CONSECUTIVE_5XX");
        if told { Ok(()) } else { Err(open.to_string()) }
    })
    .await;
    assert_eq!(open["leftOutBy"], json!([front.instance()]), "{open}");
    let before = load.so_far();
    throughout("nobody sees the sick copy", Duration::from_millis(500), async || {
        let now = load.so_far();
        if now.failed == before.failed { Ok(()) } else { Err(now.to_string()) }
    })
    .await;

    sick.behave(&json!({"sick": false})).await;
    breaker(&mesh, &sick, "CLOSED").await;
    let calls = requests(&sick).await;
    until("the copy is called again", SOON, async || {
        if requests(&sick).await > calls { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    mesh.assert_nothing_rejected().await;
}

async fn requests(app: &Workload) -> u64 {
    app.behaviour().await.unwrap()["requests"].as_u64().unwrap()
}

/// Waits until the mesh says this of a copy's breaker; gives its row.
async fn breaker(mesh: &Mesh, copy: &Workload, state: &str) -> Value {
    until(&format!("the breaker is {state}"), SOON, async || {
        let rows = mesh.get("endpoints").await?;
        let row =
            rows.into_iter().find(|row| row["instance"] == copy.instance()).ok_or("no such endpoint")?;
        if row["breaker"] == state { Ok(row) } else { Err(row.to_string()) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_answers_in_the_words_of_the_policy() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let _payments = mesh.workload(App::new("payments").delay_ms(500)).await;
    mesh.call_gives(&front, URL, 200).await;
    program(
        &mesh,
        "  circuitBreaker:\n    limits: { maxRequests: 1 }\n    whenOpen: { body: payments are busy, retryAfter: 30s }\n",
    )
    .await;
    let answers = join_all((0..8).map(|_| get_through(front.outbound(), URL))).await;
    let answers: Vec<Answer> = answers.into_iter().map(Result::unwrap).collect();
    let (served, refused): (Vec<&Answer>, Vec<&Answer>) =
        answers.iter().partition(|answer| answer.status == 200);
    assert!(!served.is_empty() && !refused.is_empty(), "{answers:?}");
    for answer in refused {
        assert_eq!(answer.status, 503, "{answer}");
        assert_eq!(answer.text().trim_end(), "payments are busy");
        assert_eq!(answer.headers["retry-after"], "30", "{answer:?}");
    }
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_holds_and_goes_with_its_policy() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let payments = mesh.workload(App::new("payments")).await;
    mesh.call_gives(&front, URL, 200).await;
    program(&mesh, "  timeouts: { request: 200ms }\n").await;
    payments.behave(&json!({"delay_ms": 1_000})).await;
    mesh.call_gives(&front, URL, 504).await;
    let rows = mesh.ask(&["get", "effective", "default/payments", "-o", "json"]).await;
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    let row = rows.iter().find(|row| row["field"] == "spec.timeouts.request").unwrap();
    assert_eq!((&row["value"], &row["origin"]), (&json!("200ms"), &json!("MeshPolicy default/payments")));

    mesh.remove("payments.yaml");
    mesh.call_gives(&front, URL, 200).await;
    mesh.assert_nothing_rejected().await;
}
