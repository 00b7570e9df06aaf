//! Nothing fails because of us: every claim under open-loop load, where a stall cannot hide.

use airlane_tests::{
    load::{Load, Report},
    mesh::Mesh,
    until::{SOON, until},
    workload::{App, Workload},
};
use serde_json::Value;
use std::collections::BTreeSet;

/// Requests a second.
const RATE: f64 = 150.0;

/// At least so many requests must have gone through: more in the long proof (`make prove`).
fn requests() -> u64 {
    if std::env::var_os("AIRLANE_PROVE").is_some() { 20_000 } else { 5_000 }
}

/// Loads `http://payments/` from `front` while `disturb` runs, and on until enough was sent.
async fn through(front: &Workload, disturb: impl AsyncFnOnce()) -> Report {
    let load = Load::start(front.outbound(), "http://payments/pay", RATE);
    disturb().await;
    until("enough requests", SOON * 10, async || {
        if load.sent() >= requests() { Ok(()) } else { Err(format!("{} sent", load.sent())) }
    })
    .await;
    let report = load.finish().await;
    eprintln!("{report}");
    report.assert_nothing_failed(requests());
    report
}

async fn front_and_payments(mesh: &Mesh) -> (Workload, Vec<Workload>) {
    let front = mesh.workload(App::new("front")).await;
    let payments = vec![mesh.workload(App::new("payments")).await, mesh.workload(App::new("payments")).await];
    mesh.call_gives(&front, "http://payments/", 200).await;
    (front, payments)
}

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

/// The `n`th edit: every section that reaches a caller's proxy, the ones that replace a cluster included.
fn edit(n: usize) -> String {
    let milliseconds = 5_000 + n;
    policy(&match n % 5 {
        0 => format!("  timeouts: {{ request: {milliseconds}ms }}\n"),
        1 => format!(
            "  retries: {{ attempts: {}, perTryTimeout: {milliseconds}ms, retryOn: [5xx, reset] }}\n",
            n % 3 + 1
        ),
        2 => format!(
            "  circuitBreaker: {{ limits: {{ maxRequests: {milliseconds}, maxConnections: 500 }} }}\n"
        ),
        3 => {
            let balancing = ["RoundRobin", "LeastRequest", "Random"][n / 5 % 3];
            format!(
                "  loadBalancing: {{ policy: {balancing} }}\n  timeouts: {{ connect: {milliseconds}ms }}\n"
            )
        }
        _ => format!("  circuitBreaker: {{ whenOpen: {{ body: \"busy {n}\", retryAfter: 1s }} }}\n"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn through_two_hundred_policy_edits() {
    let mesh = Mesh::start().await;
    let (front, _payments) = front_and_payments(&mesh).await;
    through(&front, async || {
        for n in 0..200 {
            mesh.program("payments.yaml", "default/payments", &edit(n)).await;
        }
        mesh.remove("payments.yaml");
    })
    .await;
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_forty_leaf_rotations() {
    let mesh = Mesh::start_with(&["--leaf-ttl", "12s"]).await;
    let (front, payments) = front_and_payments(&mesh).await;
    // New connections all the time, so that every new leaf is shown to somebody.
    let few = policy("  circuitBreaker: { limits: { maxRequestsPerConnection: 20 } }\n");
    mesh.program("payments.yaml", "default/payments", &few).await;
    through(&front, async || {
        let mut seen = BTreeSet::new();
        let mut proxies: Vec<&Workload> = payments.iter().collect();
        proxies.push(&front);
        until("forty leaves were replaced", SOON * 10, async || {
            for proxy in &proxies {
                let certificates = proxy.admin("/certs").await?.json();
                seen.extend(leaf_serial(&certificates));
            }
            let replaced = seen.len().saturating_sub(proxies.len());
            if replaced >= 40 { Ok(()) } else { Err(format!("{replaced} so far")) }
        })
        .await;
    })
    .await;
    mesh.assert_nothing_rejected().await;
}

/// The serial number of the leaf Envoy uses now.
fn leaf_serial(certificates: &Value) -> Option<String> {
    let chains = certificates["certificates"].as_array()?;
    let leaf = chains.iter().find_map(|entry| entry["cert_chain"].as_array()?.first())?;
    leaf["serial_number"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn through_twenty_crashes_of_the_operator() {
    let mut mesh = Mesh::start().await;
    let (front, _payments) = front_and_payments(&mesh).await;
    let before = front.config().await.unwrap();
    through(&front, async || {
        for _ in 0..20 {
            mesh.crash_operator().await;
            until("every proxy is back and up to date", SOON, async || {
                let proxies = mesh.get("proxies").await?;
                let back =
                    proxies.iter().filter(|proxy| proxy["connected"] == true && proxy["current"] == true);
                if back.count() == 3 { Ok(()) } else { Err(format!("{proxies:?}")) }
            })
            .await;
        }
    })
    .await;
    assert_eq!(front.config().await.unwrap(), before, "a restart changed a proxy's configuration");
    mesh.assert_nothing_rejected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_twenty_rolling_replacements_of_every_endpoint() {
    let mesh = Mesh::start().await;
    let (front, mut old) = front_and_payments(&mesh).await;
    through(&front, async || {
        for _ in 0..20 {
            let mut new = [mesh.launch(App::new("payments")), mesh.launch(App::new("payments"))];
            for workload in &mut new {
                workload.healthy(&mesh).await;
            }
            let [one, two] = &mut old[..] else { unreachable!("there are always two") };
            tokio::join!(one.stop(), two.stop());
            old = new.into();
        }
    })
    .await;
    let endpoints = mesh.get("endpoints").await.unwrap();
    assert_eq!(endpoints.len(), 3, "workloads that ended are still endpoints: {endpoints:?}");
    mesh.assert_nothing_rejected().await;
}
