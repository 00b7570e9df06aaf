//! All parts together, as people have them: the operator of the chart, pods that are injected because their namespace
//! says so, and the calls between them.

use crate::shop::{SYSTEM, Whole, at_least, canary, deployment, under_load};
use airlane_tests::{
    kube::{Namespace, PODS_SOON, TOOLS_IMAGE},
    until::{SOON, throughout, until},
};
use serde_json::{Value, json};
use std::time::Duration;

/// The longest a release may take, on a machine busy with other things.
const LONGEST_RELEASE: Duration = Duration::from_secs(120);

/// A pod that is not in the mesh, to call from.
fn stranger() -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "stranger", "labels": { "airlane.dev/inject": "disabled" } },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "app", "image": TOOLS_IMAGE, "command": ["sleep", "86400"] }],
        },
    })
    .to_string()
}

fn policy(mode: &str) -> String {
    format!(
        "
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: {{name: payments}}
spec:
  targetRef: {{kind: Service, name: payments}}
  mtls: {{mode: {mode}}}
"
    )
}

/// What `url` answers to the stranger, as JSON.
async fn call(shop: &Namespace<'_>, url: &str) -> Result<Value, String> {
    let body = shop.exec("pod/stranger", &["curl", "-sS", "--max-time", "10", url]).await?;
    serde_json::from_str(&body).map_err(|error| format!("{error} in {body}"))
}

/// Front's answer when payments has answered it.
async fn front_calls_payments(shop: &Namespace<'_>) -> Value {
    until("front calls payments", PODS_SOON, async || {
        let answer = call(shop, "http://front/").await?;
        if answer["error"].is_null() { Ok(answer) } else { Err(answer.to_string()) }
    })
    .await
}

/// A shop with a first version of payments, and a stranger to call from.
async fn with_payments(whole: &Whole) -> Namespace<'_> {
    let shop = whole.shop().await;
    shop.apply(&deployment("payments", "v1", 1, &[])).await.unwrap();
    shop.apply(&stranger()).await.unwrap();
    for workload in ["deployment/front-v1", "deployment/payments-v1"] {
        shop.rolled_out(workload).await;
    }
    shop
}

/// Waits until the pods of a policy's callers and of its target run what it says.
async fn programmed(shop: &Namespace<'_>, generation: u64) {
    until("the policy is programmed", SOON, async || {
        let status = shop.get("meshpolicy/payments").await?["status"].clone();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let done = conditions.iter().any(|condition| {
            condition["type"] == "Programmed"
                && condition["status"] == "True"
                && condition["observedGeneration"] == generation
        });
        if done { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

/// No container of these pods was started again, so no liveness probe failed.
async fn nothing_restarted(shop: &Namespace<'_>) {
    for pod in shop.pods("app").await.unwrap() {
        for kind in ["containerStatuses", "initContainerStatuses"] {
            for container in pod["status"][kind].as_array().into_iter().flatten() {
                assert_eq!(container["restartCount"], 0, "{container}");
            }
        }
    }
}

#[tokio::test]
async fn injected_pods_call_each_other_by_mtls_and_strict_refuses_all_others() {
    let Some(whole) = Whole::new().await else { return };
    let shop = with_payments(&whole).await;

    let caller = format!("spiffe://airlane.local/ns/{}/sa/front", shop.name());
    let answer = front_calls_payments(&shop).await;
    assert_eq!(answer["hops"][0]["caller"], caller.as_str(), "{answer}");
    assert_eq!(answer["caller"], Value::Null, "the stranger has no certificate: {answer}");

    shop.apply(&policy("Permissive")).await.unwrap();
    programmed(&shop, 1).await;
    let answer = call(&shop, "http://payments/").await.unwrap();
    assert_eq!((&answer["version"], &answer["caller"]), (&json!("v1"), &Value::Null), "{answer}");

    shop.apply(&policy("Strict")).await.unwrap();
    programmed(&shop, 2).await;
    until("the stranger is refused", SOON, async || match call(&shop, "http://payments/").await {
        Err(refused) if refused.contains("curl: (") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let answer = front_calls_payments(&shop).await;
    assert_eq!(answer["hops"][0]["caller"], caller.as_str(), "{answer}");
    let table = shop.kubectl(&["get", "meshpolicies"]).await.unwrap();
    assert!(table.lines().nth(1).unwrap().contains("True"), "{table}");
    nothing_restarted(&shop).await;
    the_command_line_shows_it(&whole, &shop).await;
}

/// What the operator knows of front and payments, as people see it.
async fn the_command_line_shows_it(whole: &Whole, shop: &Namespace<'_>) {
    whole.airlane("wait mesh").await.unwrap();
    let payments = format!("{}/payments", shop.name());
    whole.airlane(&format!("wait service/{payments}")).await.unwrap();
    let json = async |line: &str| -> Value {
        serde_json::from_str(&whole.airlane(&format!("{line} -o json")).await.unwrap()).unwrap()
    };
    let services = json(&format!("get services {payments}")).await;
    assert_eq!((&services[0]["ready"], &services[0]["mtls"]), (&json!(1), &json!("ON")), "{services}");
    let endpoints = json(&format!("get endpoints {payments}")).await;
    assert_eq!(endpoints[0]["health"], "Healthy", "{endpoints}");
    let proxies = json("get proxies").await;
    let ours: Vec<&Value> =
        proxies.as_array().unwrap().iter().filter(|proxy| proxy["namespace"] == shop.name()).collect();
    assert_eq!(ours.len(), 2, "{proxies}");
    assert!(ours.iter().all(|proxy| proxy["connected"] == true && proxy["current"] == true), "{proxies}");
    let effective = whole.airlane(&format!("get effective {payments}")).await.unwrap();
    let mode = effective.lines().find(|line| line.starts_with("spec.mtls.mode")).unwrap_or_default();
    assert!(mode.contains("Strict") && mode.contains("payments"), "{effective}");
    let described = whole.airlane(&format!("describe service {payments}")).await.unwrap();
    assert!(described.contains("Strict"), "{described}");
    let proxy = ours[0]["instance"].as_str().unwrap();
    let published = whole.airlane(&format!("proxy config {}/{proxy}", shop.name())).await.unwrap();
    assert!(published.contains("payments"), "{published}");

    let identity = format!("spiffe://airlane.local/ns/{}/sa/payments", shop.name());
    let until_when = async || {
        let certificates = json("certs list").await;
        let ours = certificates.as_array().unwrap().iter().find(|row| row["subject"] == identity.as_str());
        ours.map(|row| row["notAfter"].as_str().unwrap().to_owned()).ok_or_else(|| certificates.to_string())
    };
    let before = until("the certificate is told", SOON, until_when).await;
    let asked = whole.airlane("certs rotate").await.unwrap();
    assert!(asked.starts_with("2 sidecars"), "{asked}");
    until("there is a new certificate", SOON, async || match until_when().await? {
        end if end > before => Ok(()),
        same => Err(same),
    })
    .await;
    // That every workload here has an account of its own is seen, too.
    let check = whole.airlane("check").await.unwrap();
    assert!(check.contains("ok    all 2 proxies are connected"), "{check}");
    assert!(check.contains("ok    no two workloads of a namespace share the account"), "{check}");
}

/// Plans the release, then has the version there; gives the status in which it ends.
async fn release(shop: &Namespace<'_>, version: &str, more: &[&str]) -> Value {
    shop.apply(&canary(version, "1%")).await.unwrap();
    let reaches = async |phases: &[&str]| {
        until(&format!("{version} is {phases:?}"), LONGEST_RELEASE, async || {
            let status = shop.get("canary.airlane.dev/payments").await?["status"].clone();
            let phase = status["phase"].as_str().unwrap_or_default();
            let about = status["revisions"]["canary"] == version;
            if about && phases.contains(&phase) { Ok(status) } else { Err(status.to_string()) }
        })
        .await
    };
    reaches(&["Idle"]).await;
    shop.apply(&deployment("payments", version, 1, more)).await.unwrap();
    reaches(&["RolledBack", "Succeeded"]).await
}

#[tokio::test]
async fn a_bad_release_is_taken_back_and_a_good_one_promoted() {
    let Some(whole) = Whole::new().await else { return };
    let shop = with_payments(&whole).await;
    front_calls_payments(&shop).await;

    let report = under_load(&shop, ("front", "payments"), 100.0, async |_| {
        let status = release(&shop, "v2", &["--fail", "20%"]).await;
        assert_eq!(status["phase"], "RolledBack", "{status}");
        assert_eq!(status["weight"], "0%", "{status}");
        let version = async || {
            let canary = shop.get("canary.airlane.dev/payments").await?;
            Ok::<_, String>(canary["metadata"]["resourceVersion"].clone())
        };
        let told = version().await.unwrap();
        throughout("nothing is written without news", Duration::from_secs(3), async || {
            let now = version().await?;
            if now == told { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
    })
    .await;
    eprintln!("{report}");
    assert!((3..=15).contains(&report.failed), "{report}");

    let report = under_load(&shop, ("front", "payments"), 200.0, async |mut sent| {
        let status = release(&shop, "v3", &[]).await;
        assert_eq!(status["phase"], "Succeeded", "{status}");
        assert_eq!(status["weight"], "100%", "{status}");
        // Nobody asks for the old version any more.
        shop.kubectl(&["delete", "deployment", "payments-v1"]).await.unwrap();
        let now = *sent.borrow();
        at_least(&mut sent, now + 400).await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(1_000);
    assert_eq!(front_calls_payments(&shop).await["hops"][0]["version"], "v3");
    let log = ["logs", "--namespace", SYSTEM, "deployment/airlane", "--tail=-1"];
    let log = whole.cluster.kubectl(&log).await.unwrap();
    for trouble in ["a status was not written", "another operator wrote in between"] {
        assert!(!log.contains(trouble), "{log}");
    }
}
