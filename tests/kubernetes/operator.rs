//! The operator and its API server: what it tells there, and what becomes of it when either goes away.

use airlane_tests::{
    binary, client,
    kube::{Cluster, Namespace, TOOLS_IMAGE},
    process::Process,
    until::{SOON, throughout, until},
};
use jiff::Timestamp;
use serde_json::Value;
use std::{path::Path, time::Duration};

/// The lead passes when a leader stops.
const HANDED_OVER: Duration = Duration::from_secs(1);
/// The lead passes when a leader is gone.
const TAKEN_OVER: Duration = Duration::from_secs(20);

/// A cluster with the operator's resources, for this test alone, and a place for states and logs.
pub(crate) struct Setting {
    pub(crate) cluster: Cluster,
    pub(crate) dir: tempfile::TempDir,
}

impl Setting {
    pub(crate) async fn new() -> Option<Self> {
        let cluster = Cluster::alone().await?;
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
        cluster.kubectl(&["apply", "--server-side", "-f", &crds.display().to_string()]).await.unwrap();
        for kind in ["meshpolicies", "canaries"] {
            let crd = format!("crd/{kind}.airlane.dev");
            cluster.kubectl(&["wait", "--for=condition=Established", &crd, "--timeout=30s"]).await.unwrap();
        }
        Some(Setting { cluster, dir: tempfile::tempdir().unwrap() })
    }

    /// A replica on node 1, whose leader election is in this namespace. `number` makes its ports its own.
    pub(crate) async fn operator(&self, system: &Namespace<'_>, number: u16) -> Process {
        self.operator_with(system, number, &self.cluster.kubeconfig(), &[]).await
    }

    /// The same, reaching the API server in this way, and with more arguments.
    pub(crate) async fn operator_with(
        &self,
        system: &Namespace<'_>,
        number: u16,
        kubeconfig: &Path,
        more: &[&str],
    ) -> Process {
        let name = format!("operator-{number}");
        let (port, health, webhook) = (15_100 + number, 15_200 + number, 15_300 + number);
        let mut command = self.cluster.command(binary::airlane());
        command
            .args(["operator", "--namespace", system.name(), "--pod-name", &name])
            .args(["--listen", &format!("127.0.0.1:{port}"), "--health", &format!("127.0.0.1:{health}")])
            .args(["--webhook", &format!("127.0.0.1:{webhook}")])
            .args(more)
            .env("KUBECONFIG", kubeconfig)
            .arg("--state")
            .arg(self.dir.path().join(&name));
        let process = Process::start(&name, command, self.dir.path());
        until("the operator serves", SOON, async || self.readiness(number).await).await;
        process
    }

    async fn readiness(&self, number: u16) -> Result<(), String> {
        let url = format!("http://127.0.0.1:{}/readyz", 15_200 + number);
        let answer = self.cluster.inside(move || async move { client::send("GET", &url, "").await }).await;
        let text = answer?.text();
        if text.trim() == "SERVING" { Ok(()) } else { Err(text) }
    }
}

/// Who holds the lease, and since when.
async fn leader(system: &Namespace<'_>) -> Result<(String, Timestamp), String> {
    let lease = system.get("lease/airlane-leader").await?;
    let text = |field: &str| lease["spec"][field].as_str().unwrap_or_default().to_owned();
    let since = text("acquireTime").parse().map_err(|error| format!("{lease}: {error}"))?;
    match text("holderIdentity") {
        holder if holder.is_empty() => Err("nobody leads".to_owned()),
        holder => Ok((holder.split('_').next().unwrap_or_default().to_owned(), since)),
    }
}

pub(crate) async fn leads(system: &Namespace<'_>, name: &str) -> Result<Timestamp, String> {
    let (holder, since) = leader(system).await?;
    if holder == name { Ok(since) } else { Err(format!("{holder} leads")) }
}

/// Type, status and reason of each condition, and the generation they are about.
fn told(object: &Value) -> String {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    let mut shown: Vec<String> = conditions
        .iter()
        .map(|c| format!("{}={} {}", text(c, "type"), text(c, "status"), text(c, "reason")))
        .collect();
    shown.push(format!("@{}", object["status"]["observedGeneration"]));
    shown.join(", ")
}

async fn becomes(namespace: &Namespace<'_>, object: &str, expected: &str) -> Value {
    until(&format!("{object} says {expected}"), SOON, async || {
        let object = namespace.get(object).await?;
        let told = told(&object);
        if told == expected { Ok(object) } else { Err(told) }
    })
    .await
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

pub(crate) const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: pay}
spec: {selector: {app: pay}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn policy(name: &str, service: &str, per_try: &str) -> String {
    format!(
        "
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: {{name: {name}}}
spec:
  targetRef: {{kind: Service, name: {service}}}
  timeouts: {{request: 10s}}
  retries: {{attempts: 2, perTryTimeout: {per_try}}}
"
    )
}

#[tokio::test]
async fn a_policy_is_told_what_became_of_it() {
    let Some(setting) = Setting::new().await else { return };
    let system = setting.cluster.namespace("system").await;
    let shop = setting.cluster.namespace("shop").await;
    let _operator = setting.operator(&system, 1).await;
    shop.apply(SERVICE).await.unwrap();
    shop.apply(&policy("pay", "pay", "2s")).await.unwrap();
    let good = "Accepted=True Accepted, Programmed=True NoProxies, @1";
    becomes(&shop, "meshpolicy/pay", good).await;
    shop.kubectl(&["wait", "--for=condition=Programmed", "meshpolicy/pay", "--timeout=5s"]).await.unwrap();

    shop.apply(&policy("lost", "nowhere", "2s")).await.unwrap();
    let lost = until("the missing target is told", SOON, async || {
        let lost = shop.get("meshpolicy/lost").await?;
        let reason = lost["status"]["problems"][0]["reason"].clone();
        if reason == "TargetNotFound" { Ok(lost) } else { Err(lost["status"].to_string()) }
    });
    let lost = lost.await;
    assert_eq!(lost["status"]["problems"][0]["field"], "spec.targetRef.name", "{lost}");
    until("an event says so", SOON, async || {
        let events = shop.kubectl(&["events", "--for", "meshpolicy/lost"]).await?;
        if events.contains("TargetNotFound") { Ok(()) } else { Err(events) }
    })
    .await;
    shop.apply(&SERVICE.replace("name: pay}", "name: nowhere}")).await.unwrap();
    until("the problem goes with its reason", SOON, async || {
        let status = shop.get("meshpolicy/lost").await?["status"].clone();
        if status["problems"].is_null() { Ok(()) } else { Err(status.to_string()) }
    })
    .await;

    shop.apply(&policy("pay", "pay", "3s")).await.unwrap();
    let second = becomes(&shop, "meshpolicy/pay", &good.replace("@1", "@2")).await;
    throughout("nothing is written without a change", Duration::from_secs(3), async || {
        let now = version(&shop.get("meshpolicy/pay").await?);
        if now == version(&second) { Ok(()) } else { Err(now) }
    })
    .await;
}

#[tokio::test]
async fn nothing_is_withdrawn_while_a_server_is_away() {
    let Some(setting) = Setting::new().await else { return };
    let system = setting.cluster.namespace("system").await;
    let shop = setting.cluster.namespace("shop").await;
    let mut operator = setting.operator(&system, 1).await;
    shop.apply(SERVICE).await.unwrap();
    shop.apply(&policy("pay", "pay", "2s")).await.unwrap();
    let good = "Accepted=True Accepted, Programmed=True NoProxies, @1";
    let before = version(&becomes(&shop, "meshpolicy/pay", good).await);

    setting.cluster.stop("apiserver").await;
    throughout("it serves what it knows", Duration::from_secs(3), async || setting.readiness(1).await).await;
    setting.cluster.start("apiserver").await;
    until("the API server is back", SOON, async || {
        setting.cluster.kubectl(&["get", "--raw", "/readyz"]).await
    })
    .await;
    // Every watch has to begin anew.
    setting.cluster.forget_history().await;
    setting.cluster.restart_apiserver().await;
    shop.apply(&policy("late", "pay", "2s")).await.unwrap();
    until("it sees what is new", SOON, async || {
        let late = shop.get("meshpolicy/late").await?;
        if late["status"]["observedGeneration"] == 1 { Ok(()) } else { Err(late["status"].to_string()) }
    })
    .await;
    assert_eq!(version(&shop.get("meshpolicy/pay").await.unwrap()), before, "nothing of it was told anew");

    assert!(operator.stop(SOON).await.success());
    let _next = setting.operator(&system, 2).await;
    until("the next one leads", SOON, async || leads(&system, "operator-2").await).await;
    shop.apply(&policy("later", "pay", "2s")).await.unwrap();
    until("it sees what is new", SOON, async || {
        let later = shop.get("meshpolicy/later").await?;
        if later["status"]["observedGeneration"] == 1 { Ok(()) } else { Err(later["status"].to_string()) }
    })
    .await;
    assert_eq!(version(&shop.get("meshpolicy/pay").await.unwrap()), before, "nothing of it was told anew");
}

#[tokio::test]
async fn the_lead_is_handed_over_and_taken_over() {
    let Some(setting) = Setting::new().await else { return };
    let system = setting.cluster.namespace("system").await;
    let mut first = setting.operator(&system, 1).await;
    until("the first leads", SOON, async || leads(&system, "operator-1").await).await;
    let mut second = setting.operator(&system, 2).await;
    let mut third = setting.operator(&system, 3).await;

    let stopped = Timestamp::now();
    assert!(first.stop(SOON).await.success());
    let (heir, since) = until("somebody else leads", SOON, async || match leader(&system).await? {
        (holder, _) if holder == "operator-1" => Err("the first still leads".to_owned()),
        other => Ok(other),
    })
    .await;
    let took = since.duration_since(stopped);
    eprintln!("handed over in {took:#}");
    assert!(took.unsigned_abs() < HANDED_OVER, "{took:#}");

    // Whoever it is: kill it.
    let killed = Timestamp::now();
    let gone = if heir == "operator-2" { &mut second } else { &mut third };
    gone.kill();
    let since = until("the last one leads", TAKEN_OVER + SOON, async || match leader(&system).await? {
        (holder, _) if holder == heir => Err("the dead one still leads".to_owned()),
        (_, since) => Ok(since),
    })
    .await;
    let took = since.duration_since(killed);
    eprintln!("taken over in {took:#}");
    assert!(took.unsigned_abs() < TAKEN_OVER, "{took:#}");
}

pub(crate) fn version_of_pay(version: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: pay-{version}}}
spec:
  selector: {{matchLabels: {{app: pay, version: {version}}}}}
  template:
    metadata: {{labels: {{app: pay, version: {version}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: pay
        image: {TOOLS_IMAGE}
        command: [sh, -c, 'mkdir /www; exec httpd -f -p 8080 -h /www']
"
    )
}

pub(crate) const CANARY: &str = "
apiVersion: airlane.dev/v1alpha1
kind: Canary
metadata: {name: pay}
spec: {service: pay, stable: {version: v1}, canary: {version: v2}, steps: [{weight: 5%}, {weight: 100%}]}
";

pub(crate) async fn phase(shop: &Namespace<'_>, expected: &[&str]) -> Value {
    until(&format!("the canary is {expected:?}"), SOON, async || {
        let status = shop.get("canary.airlane.dev/pay").await?["status"].clone();
        let phase = status["phase"].as_str().unwrap_or_default();
        if expected.contains(&phase) { Ok(status) } else { Err(status.to_string()) }
    })
    .await
}

#[tokio::test]
async fn a_rollout_is_remembered_in_its_status_alone() {
    let Some(setting) = Setting::new().await else { return };
    let system = setting.cluster.namespace("system").await;
    let shop = setting.cluster.namespace("shop").await;
    let mut operator = setting.operator(&system, 1).await;
    shop.apply(SERVICE).await.unwrap();
    for version in ["v1", "v2"] {
        shop.apply(&version_of_pay(version)).await.unwrap();
        shop.rolled_out(&format!("deployment/pay-{version}")).await;
    }
    shop.apply(CANARY).await.unwrap();
    let on_trial = ["Progressing", "Holding"];
    let before = phase(&shop, &on_trial).await;
    assert_eq!(before["weight"], "5%");
    assert_eq!(before["step"], 1);

    operator.kill();
    let _next = setting.operator(&system, 2).await;
    until("the next one leads", TAKEN_OVER + SOON, async || leads(&system, "operator-2").await).await;
    shop.kubectl(&["annotate", "canary.airlane.dev/pay", "airlane.dev/abort=v2"]).await.unwrap();
    let after = phase(&shop, &["RolledBack"]).await;
    assert_eq!(after["weight"], "0%");
    let history = |status: &Value| status["history"].as_array().cloned().unwrap_or_default();
    assert!(history(&after).starts_with(&history(&before)[..1]), "it begins as before: {after}");
    until("events tell the way", SOON, async || {
        let events = shop.kubectl(&["events", "--for", "canary.airlane.dev/pay"]).await?;
        let told = ["Progressing", "RollingBack", "RolledBack"];
        if told.iter().all(|phase| events.contains(phase)) { Ok(()) } else { Err(events) }
    })
    .await;

    // The annotation may stay where it is: it was carried out.
    shop.kubectl(&["annotate", "canary.airlane.dev/pay", "airlane.dev/retry=v2", "airlane.dev/abort-"])
        .await
        .unwrap();
    phase(&shop, &on_trial).await;
    throughout("it is not tried again and again", Duration::from_secs(3), async || {
        let status = shop.get("canary.airlane.dev/pay").await?["status"].clone();
        let phase = status["phase"].as_str().unwrap_or_default();
        if on_trial.contains(&phase) && history(&status).len() < 8 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}
