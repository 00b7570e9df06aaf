//! Nothing fails because of us: every claim under open-loop load, where a stall cannot hide. `make prove` sends more and
//! prints the figures of the documentation.

use crate::shop::{SYSTEM, Whole, at_least, calls, deployment, service, under_load};
use airlane_tests::{
    kube::{AIRLANE_IMAGE, Namespace, PODS_SOON},
    until::{SOON, until, until_often},
};
use nix::sys::signal::Signal::{self, SIGKILL, SIGTERM};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

/// Requests a second.
const RATE: f64 = 200.0;

fn proving() -> bool {
    std::env::var_os("AIRLANE_PROVE").is_some()
}

/// At least so many requests go through each disturbance.
fn requests() -> u64 {
    if proving() { 20_000 } else { 5_000 }
}

/// Rolling restarts of each workload.
fn restarts() -> usize {
    if proving() { 20 } else { 3 }
}

/// Does `disturb` while front calls the service `to`, and goes on until enough was sent.
#[expect(clippy::print_stderr, reason = "the figures of the documentation")]
async fn through(shop: &Namespace<'_>, to: &str, what: &str, disturb: impl AsyncFnOnce()) {
    let report = under_load(shop, ("front", to), RATE, async |mut sent| {
        disturb().await;
        at_least(&mut sent, requests()).await;
    })
    .await;
    eprintln!("{what}: {report}");
    report.assert_nothing_failed(requests());
}

async fn restart(shop: &Namespace<'_>, deployment: &str) {
    shop.kubectl(&["rollout", "restart", deployment]).await.unwrap();
    shop.rolled_out(deployment).await;
}

/// The operator's pods that are not on their way out.
async fn operators(whole: &Whole) -> Vec<Value> {
    let pods = "--selector=app.kubernetes.io/component=operator";
    let list = whole.cluster.kubectl(&["get", "pods", "-n", SYSTEM, pods, "-o", "json"]).await.unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    list["items"].as_array().unwrap().iter().filter(stays).cloned().collect()
}

/// Waits until so many replicas serve.
async fn operators_serve(whole: &Whole, replicas: u32) {
    until(&format!("{replicas} replicas serve"), PODS_SOON, async || {
        let get = ["get", "-n", SYSTEM, "deployment/airlane", "-o", "jsonpath={.status.readyReplicas}"];
        let ready = whole.cluster.kubectl(&get).await?;
        if ready == replicas.to_string() { Ok(()) } else { Err(format!("{ready} do")) }
    })
    .await;
}

/// The name of the process that leads: its pod's, and some more.
async fn leader(whole: &Whole) -> Result<String, String> {
    let get = ["get", "-n", SYSTEM, "lease/airlane-leader", "-o", "jsonpath={.spec.holderIdentity}"];
    match whole.cluster.kubectl(&get).await? {
        nobody if nobody.is_empty() => Err("nobody leads".to_owned()),
        somebody => Ok(somebody),
    }
}

/// Signals the leading process, and waits until another one leads and all serve again.
async fn depose(whole: &Whole, signal: Signal) {
    let leads = until("somebody leads", SOON, async || leader(whole).await).await;
    let pods = operators(whole).await;
    let pod = pods.iter().find(|pod| leads.starts_with(pod["metadata"]["name"].as_str().unwrap())).unwrap();
    whole.cluster.signal(pod, "airlane", signal);
    until("another one leads", SOON, async || match leader(whole).await? {
        same if same == leads => Err(same),
        _ => Ok(()),
    })
    .await;
    operators_serve(whole, u32::try_from(pods.len()).unwrap()).await;
}

/// The serial number of the leaf that a pod shows to callers.
async fn serial(shop: &Namespace<'_>, pod: &Value) -> Result<String, String> {
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    let look = format!(
        "set -o pipefail; openssl s_client -connect {address}:8080 -alpn airlane </dev/null 2>&1 | \
         openssl x509 -noout -serial -checkend 0"
    );
    let mut bash = shop.cluster().command("bash");
    bash.args(["-c", &look]);
    shop.cluster().run(bash).await
}

#[tokio::test]
async fn rotations_and_restarts_lose_no_request() {
    let Some(whole) = Whole::with(&["leafTTL=20s"]).await else { return };
    let shop = whole.shop().await;
    service(&shop, "ledger").await;
    for object in [
        deployment("payments", "v1", 2, &[]),
        deployment("ledger", "v1", 2, &["--abrupt"]),
        // New connections all the time, so that every new leaf is shown to somebody.
        few_requests_per_connection(),
    ] {
        shop.apply(&object).await.unwrap();
    }
    for workload in ["front-v1", "payments-v1", "ledger-v1"] {
        shop.rolled_out(&format!("deployment/{workload}")).await;
    }
    calls(&shop, "front", "payments").await;
    calls(&shop, "front", "ledger").await;

    through(&shop, "payments", "leaf rotations", async || {
        let mut seen = BTreeSet::new();
        let pods = shop.pods("app in (front, payments)").await.unwrap();
        let rotations = if proving() { 20 } else { 4 };
        until_often("leaves were replaced", PODS_SOON, Duration::from_secs(1), async || {
            for pod in &pods {
                seen.insert(serial(&shop, pod).await?);
            }
            let replaced = seen.len().saturating_sub(pods.len());
            if replaced >= rotations { Ok(()) } else { Err(format!("{replaced} so far")) }
        })
        .await;
    })
    .await;

    for (to, what) in [("payments", "rolling restarts"), ("ledger", "rolling restarts of what dies at once")]
    {
        through(&shop, to, what, async || {
            for _ in 0..restarts() {
                restart(&shop, &format!("deployment/{to}-v1")).await;
            }
        })
        .await;
    }
}

fn few_requests_per_connection() -> String {
    json!({
        "apiVersion": "airlane.dev/v1alpha1", "kind": "MeshPolicy", "metadata": { "name": "payments" },
        "spec": {
            "targetRef": { "kind": "Service", "name": "payments" },
            "circuitBreaker": { "limits": { "maxRequestsPerConnection": 20 } },
        },
    })
    .to_string()
}

#[tokio::test]
async fn an_operator_that_comes_and_goes_loses_no_request() {
    let Some(whole) = Whole::new().await else { return };
    let shop = whole.shop().await;
    shop.apply(&deployment("payments", "v1", 2, &[])).await.unwrap();
    for workload in ["front-v1", "payments-v1"] {
        shop.rolled_out(&format!("deployment/{workload}")).await;
    }
    calls(&shop, "front", "payments").await;

    through(&shop, "payments", "the operator killed", async || {
        whole.cluster.signal(&operators(&whole).await[0], "airlane", SIGKILL);
        // It knows who runs, and lets in who starts.
        restart(&shop, "deployment/payments-v1").await;
        operators_serve(&whole, 1).await;
    })
    .await;
    let next = whole.cluster.tag_image(AIRLANE_IMAGE, "next").await;
    through(&shop, "payments", "helm upgrade of one replica to two of another image", async || {
        whole.upgrade(&[&format!("image={next}"), "replicas=2"]).await;
    })
    .await;
    if proving() {
        through(&shop, "payments", "helm upgrade of two replicas", async || {
            whole.upgrade(&[&format!("image={AIRLANE_IMAGE}"), "log=debug"]).await;
        })
        .await;
    }
    let ways = [(SIGKILL, "the leader killed"), (SIGTERM, "the leader ended")];
    // An upgrade ends the leader, too.
    for (signal, what) in ways.into_iter().take(if proving() { 2 } else { 1 }) {
        through(&shop, "payments", what, async || {
            depose(&whole, signal).await;
            restart(&shop, "deployment/payments-v1").await;
        })
        .await;
    }
}

/// The nodes that the pods of a deployment may be on; of those, evenly.
fn on(nodes: &[&str], deployment: &str) -> String {
    let mut deployment: Value = serde_json::from_str(deployment).unwrap();
    let labels = deployment["spec"]["selector"].clone();
    let pod = &mut deployment["spec"]["template"]["spec"];
    pod["affinity"] = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "In", "values": nodes },
        ] }],
    } } });
    pod["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": labels,
    }]);
    deployment.to_string()
}

#[tokio::test]
async fn a_lost_node_loses_no_request() {
    let Some(whole) = Whole::new().await else { return };
    whole.cluster.grow(3).await;
    whole.upgrade(&["nodeSelector.kubernetes\\.io/hostname=node2"]).await;
    let shop = whole.shop().await;
    shop.apply(&on(&["node1"], &deployment("front", "v1", 1, &[]))).await.unwrap();
    shop.apply(&on(&["node1", "node2", "node3"], &deployment("payments", "v1", 3, &[]))).await.unwrap();
    for workload in ["front-v1", "payments-v1"] {
        shop.rolled_out(&format!("deployment/{workload}")).await;
    }
    calls(&shop, "front", "payments").await;
    if proving() {
        through(&shop, "payments", "a node lost", async || whole.cluster.lose_node(3).await).await;
    }
    through(&shop, "payments", "the operator's node lost", async || whole.cluster.lose_node(2).await).await;
}

#[tokio::test]
async fn a_root_is_replaced_under_load() {
    let Some(whole) = Whole::with(&["leafTTL=20s", "rootOverlap=20s"]).await else { return };
    let shop = whole.shop().await;
    shop.apply(&deployment("payments", "v1", 1, &[])).await.unwrap();
    for workload in ["deployment/front-v1", "deployment/payments-v1"] {
        shop.rolled_out(workload).await;
    }
    calls(&shop, "front", "payments").await;
    let roots = async || {
        let roots = shop.get("configmap/airlane-root").await?["data"]["root.pem"].clone();
        Ok::<_, String>(roots.as_str().unwrap_or_default().to_owned())
    };
    let old = roots().await.unwrap();

    let report = under_load(&shop, ("front", "payments"), 200.0, async |mut sent| {
        let said = whole.airlane("certs rotate-root").await.unwrap();
        assert!(said.contains("a new root is trusted; it signs from"), "{said}");
        let said = whole.airlane("certs rotate-root").await.unwrap_err();
        assert!(said.contains("the root is being replaced since"), "{said}");
        until("both are trusted", PODS_SOON, async || match roots().await? {
            both if both.contains(&old) && both != old => Ok(()),
            other => Err(other),
        })
        .await;
        until("the old one is forgotten", PODS_SOON, async || match roots().await? {
            new if !new.contains(&old) && !new.is_empty() => Ok(()),
            other => Err(other),
        })
        .await;
        // Certificates of the new root are renewed like any others.
        let now = *sent.borrow();
        at_least(&mut sent, now + 4_000).await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(5_000);
    let listed = whole.airlane("certs list").await.unwrap();
    assert_eq!(listed.matches(" signs ").count(), 1, "{listed}");
    assert!(!listed.contains("is trusted"), "{listed}");
}
