//! Two replicas of the operator are one: either serves proxies, and the leader judges by what proxies tell any of them.

use crate::shop::{SYSTEM, Whole, at_least, calls, canary, deployment, under_load};
use airlane_tests::{
    kube::{Namespace, PODS_SOON},
    process,
    until::{SOON, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::time::Duration;

/// The longest a release may take, with changes of leader in it, on a machine busy with other things.
const LONGEST_RELEASE: Duration = Duration::from_secs(150);

/// The label of the replica that sidecars find.
const FOUND: &str = "tests.airlane.dev/found";

/// An installation with two replicas that take over from each other after five seconds.
struct Two {
    whole: Whole,
}

impl Two {
    async fn new() -> Option<Self> {
        let whole = Whole::with(&["replicas=2", "leaseDuration=5s"]).await?;
        let two = Two { whole };
        let replicas = two.pods().await;
        assert_eq!(replicas.len(), 2, "{replicas:?}");
        Some(two)
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.whole.cluster.kubectl(&[&["--namespace", SYSTEM], arguments].concat()).await
    }

    /// The operator's pods that are not on their way out.
    async fn pods(&self) -> Vec<String> {
        let list = ["get", "pods", "--selector=app.kubernetes.io/component=operator", "--output=json"];
        let list: Value = serde_json::from_str(&self.kubectl(&list).await.unwrap()).unwrap();
        let pods = list["items"].as_array().unwrap().iter();
        pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The pod that leads.
    async fn leader(&self) -> Result<String, String> {
        let holder = ["get", "lease", "airlane-leader", "--output=jsonpath={.spec.holderIdentity}"];
        match self.kubectl(&holder).await?.split('_').next() {
            Some(holder) if !holder.is_empty() => Ok(holder.to_owned()),
            _ => Err("nobody leads".to_owned()),
        }
    }

    /// The pod that leads, and the other one.
    async fn roles(&self) -> (String, String) {
        until("one of two replicas leads", PODS_SOON, async || {
            let (leader, pods) = (self.leader().await?, self.pods().await);
            match &pods[..] {
                [one, other] if *one == leader => Ok((leader, other.clone())),
                [other, one] if *one == leader => Ok((leader, other.clone())),
                _ => Err(format!("{leader} of {pods:?}")),
            }
        })
        .await
    }

    async fn leads_now(&self, before: &str) -> String {
        until("another replica leads", PODS_SOON, async || match self.leader().await? {
            leader if leader == before => Err(format!("{leader} still leads")),
            leader => Ok(leader),
        })
        .await
    }

    /// From now on new connections of sidecars come to this replica alone.
    async fn sidecars_find(&self, replica: &str) {
        self.kubectl(&["label", "pods", "--all", &format!("{FOUND}-")]).await.unwrap();
        self.kubectl(&["label", "pod", replica, &format!("{FOUND}=")]).await.unwrap();
        let selector = json!({ "spec": { "selector": { FOUND: "" } } }).to_string();
        self.kubectl(&["patch", "service", "airlane", "--patch", &selector]).await.unwrap();
        let address = ["get", "pod", replica, "--output=jsonpath={.status.podIP}"];
        let address = self.kubectl(&address).await.unwrap();
        until("the Service leads there alone", SOON, async || {
            let slices = ["get", "endpointslices", "--selector=kubernetes.io/service-name=airlane"];
            let output = ["--output=jsonpath={.items[*].endpoints[*].addresses[*]}"];
            let found = self.kubectl(&[&slices[..], &output].concat()).await?;
            if found == address { Ok(()) } else { Err(found) }
        })
        .await;
    }

    async fn logs(&self, replica: &str) -> String {
        let log = self.kubectl(&["logs", replica, "--tail=-1"]).await.unwrap();
        // Colours are for people.
        log.split('\u{1b}').map(|part| part.split_once('m').map_or(part, |(_, text)| text)).collect()
    }

    /// Ends a replica's process as a power cut would.
    fn kill(&self, replica: &str) {
        let operators: Vec<(i32, String)> = process::descendants("POD_NAME", replica)
            .into_iter()
            .filter(|(_, command)| command.contains("operator"))
            .collect();
        assert_eq!(operators.len(), 1, "{operators:?}");
        kill(Pid::from_raw(operators[0].0), Signal::SIGKILL).unwrap();
    }
}

const POLICY: &str = "
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: {name: payments}
spec:
  targetRef: {kind: Service, name: payments}
  timeouts: {request: 10s}
";

/// Steps take about a hundred requests each to be certified.
const ERRORS_MAX: &str = "5%";

async fn status(shop: &Namespace<'_>) -> Result<Value, String> {
    Ok(shop.get("canary.airlane.dev/payments").await?["status"].clone())
}

/// Waits for the canary of this version to be in one of these phases, and at this weight if one is said.
async fn reaches(shop: &Namespace<'_>, version: &str, phases: &[&str], weight: Option<&str>) -> Value {
    until(&format!("{version} is {phases:?} at {weight:?}"), LONGEST_RELEASE, async || {
        let status = status(shop).await?;
        let phase = status["phase"].as_str().unwrap_or_default();
        let weighs = weight.is_none_or(|weight| status["weight"] == weight);
        if status["revisions"]["canary"] == version && phases.contains(&phase) && weighs {
            Ok(status)
        } else {
            Err(status.to_string())
        }
    })
    .await
}

/// Waits until the policy says that this many proxies run it, and no others exist.
async fn run_by(shop: &Namespace<'_>, proxies: u64) {
    until(&format!("{proxies} of {proxies} proxies run the policy"), SOON, async || {
        let status = shop.get("meshpolicy/payments").await?["status"].clone();
        let counted = &status["proxies"];
        if counted["acknowledged"] == proxies && counted["targeted"] == proxies {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
}

#[tokio::test]
async fn what_proxies_tell_another_replica_counts() {
    let Some(two) = Two::new().await else { return };
    let (leader, other) = two.roles().await;
    // Who calls is connected to the replica that does not lead, who is called to the one that does.
    two.sidecars_find(&other).await;
    let shop = two.whole.shop().await;
    shop.rolled_out("deployment/front-v1").await;
    two.sidecars_find(&leader).await;
    shop.apply(&deployment("payments", "v1", 2, &[])).await.unwrap();
    shop.rolled_out("deployment/payments-v1").await;
    calls(&shop, "front", "payments").await;
    until("the other one reports to the leader", SOON, async || match two.logs(&other).await {
        log if log.contains("reports to the leader") => Ok(()),
        log => Err(log),
    })
    .await;

    shop.apply(POLICY).await.unwrap();
    run_by(&shop, 3).await;

    // Pods stop when their callers at the other replica know.
    let report = under_load(&shop, ("front", "payments"), 100.0, async |mut sent| {
        shop.kubectl(&["rollout", "restart", "deployment/payments-v1"]).await.unwrap();
        shop.rolled_out("deployment/payments-v1").await;
        at_least(&mut sent, 1_000).await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(1_000);
    let drains = |log: &str| -> Vec<String> {
        log.lines().filter(|line| line.contains("out of rotation")).map(str::to_owned).collect()
    };
    let told = drains(&two.logs(&leader).await);
    assert_eq!(told.len(), 2, "{told:?}");
    for drain in &told {
        assert!(drain.contains("outstanding=0") && !drain.contains("acknowledged=0"), "{drain}");
    }

    // And those that are connected to the other one leave by way of the leader.
    two.sidecars_find(&other).await;
    shop.apply(&deployment("payments", "v2", 1, &[])).await.unwrap();
    shop.rolled_out("deployment/payments-v2").await;
    run_by(&shop, 4).await;
    shop.kubectl(&["delete", "deployment", "payments-v2"]).await.unwrap();
    let told = until("its drain is told", PODS_SOON, async || {
        let told = drains(&two.logs(&other).await);
        if told.is_empty() { Err("no drain".to_owned()) } else { Ok(told) }
    })
    .await;
    // Front, both copies of v1, and its own proxy.
    assert!(told[0].contains("acknowledged=4") && told[0].contains("outstanding=0"), "{told:?}");

    // The judge hears what front tells the other replica.
    let report = under_load(&shop, ("front", "payments"), 100.0, async |_| {
        shop.apply(&canary("v3", ERRORS_MAX)).await.unwrap();
        reaches(&shop, "v3", &["Idle"], None).await;
        shop.apply(&deployment("payments", "v3", 1, &["--fail", "20%"])).await.unwrap();
        let status = reaches(&shop, "v3", &["RolledBack"], None).await;
        assert_eq!(status["weight"], "0%", "{status}");
    })
    .await;
    eprintln!("{report}");
    assert!((3..=15).contains(&report.failed), "{report}");
    assert_eq!(two.leader().await.unwrap(), leader, "it led all the time");
}

/// What the judge remembers of the step it is at: the step, and how many requests to the canary ended at it.
fn judged(status: &Value) -> (u64, u64) {
    let judge = &status["memory"]["judge"];
    (judge["step"].as_u64().unwrap(), judge["canary"]["ended"].as_u64().unwrap())
}

#[tokio::test]
async fn a_change_of_leader_does_not_disturb_a_rollout() {
    let Some(two) = Two::new().await else { return };
    let shop = two.whole.shop().await;
    shop.apply(&deployment("payments", "v1", 1, &[])).await.unwrap();
    for workload in ["deployment/front-v1", "deployment/payments-v1"] {
        shop.rolled_out(workload).await;
    }
    calls(&shop, "front", "payments").await;

    let report = under_load(&shop, ("front", "payments"), 60.0, async |_| {
        shop.apply(&canary("v2", ERRORS_MAX)).await.unwrap();
        reaches(&shop, "v2", &["Idle"], None).await;
        shop.apply(&deployment("payments", "v2", 1, &[])).await.unwrap();
        let on_trial = ["Progressing", "Holding"];
        let before = reaches(&shop, "v2", &on_trial, Some("10%")).await;
        let (leader, other) = two.roles().await;
        two.kubectl(&["delete", "pod", &leader, "--wait=false"]).await.unwrap();
        assert_eq!(two.leads_now(&leader).await, other);
        let after = until("the new leader judges", LONGEST_RELEASE, async || {
            let status = status(&shop).await?;
            let (now, then) = (judged(&status), judged(&before));
            assert!(now >= then, "forgotten: {before} → {status}");
            if now > then { Ok(status) } else { Err(status.to_string()) }
        })
        .await;
        let history = |status: &Value| status["history"].as_array().cloned().unwrap_or_default();
        assert!(history(&after).starts_with(&history(&before)), "{before} → {after}");

        reaches(&shop, "v2", &on_trial, Some("50%")).await;
        let (leader, _) = two.roles().await;
        two.kill(&leader);
        two.leads_now(&leader).await;
        let status = reaches(&shop, "v2", &["Succeeded", "RolledBack"], None).await;
        assert_eq!((&status["phase"], &status["weight"]), (&json!("Succeeded"), &json!("100%")), "{status}");
        let steps = history(&status);
        assert!(steps.is_sorted_by_key(|entry| entry["step"].as_u64()), "a step was repeated: {status}");
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(500);
}

/// A deployment without an account of its own.
fn of_nobody(deployment: &str) -> Value {
    let mut deployment: Value = serde_json::from_str(deployment).unwrap();
    deployment["spec"]["template"]["spec"]["serviceAccountName"] = json!("default");
    deployment
}

#[tokio::test]
async fn without_any_replica_calls_go_on_and_the_cluster_recovers_by_itself() {
    let Some(two) = Two::new().await else { return };
    let shop = two.whole.shop().await;
    shop.apply(&deployment("payments", "v1", 1, &[])).await.unwrap();
    for workload in ["deployment/front-v1", "deployment/payments-v1"] {
        shop.rolled_out(workload).await;
    }
    calls(&shop, "front", "payments").await;
    let outside = two.whole.cluster.namespace("outside").await;

    let report = under_load(&shop, ("front", "payments"), 50.0, async |mut sent| {
        two.kubectl(&["scale", "deployment/airlane", "--replicas=0"]).await.unwrap();
        // One that ends answers the webhook for a few seconds more.
        until("no replica is left", PODS_SOON, async || {
            let pods = ["get", "pods", "--selector=app.kubernetes.io/component=operator", "--output=name"];
            let pods = two.kubectl(&pods).await?;
            if pods.trim().is_empty() { Ok(()) } else { Err(pods) }
        })
        .await;
        // Who is in the mesh cannot start, and says why.
        shop.apply(&deployment("payments", "v2", 1, &[])).await.unwrap();
        until("the new pod is refused", PODS_SOON, async || {
            let events = shop.kubectl(&["get", "events", "--field-selector=reason=FailedCreate"]).await?;
            if events.contains("airlane-webhook") { Ok(()) } else { Err(events) }
        })
        .await;
        // Whoever is not, and who is labelled so, can.
        outside.apply(&of_nobody(&deployment("payments", "free", 1, &[])).to_string()).await.unwrap();
        let mut exempt = of_nobody(&deployment("other", "exempt", 1, &[]));
        exempt["spec"]["template"]["metadata"]["labels"]["airlane.dev/inject"] = json!("disabled");
        shop.apply(&exempt.to_string()).await.unwrap();
        outside.rolled_out("deployment/payments-free").await;
        shop.rolled_out("deployment/other-exempt").await;
        assert!(shop.pods("version=v2").await.unwrap().is_empty());

        two.kubectl(&["scale", "deployment/airlane", "--replicas=2"]).await.unwrap();
        two.roles().await;
        // Nobody else does anything.
        shop.rolled_out("deployment/payments-v2").await;
        let now = *sent.borrow();
        at_least(&mut sent, now + 100).await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(500);
}
