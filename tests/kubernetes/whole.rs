//! All parts together, as people have them: the operator of the chart, pods that are injected because their namespace
//! says so, and the calls between them.

use airlane_tests::{
    binary,
    kube::{AIRLANE_IMAGE, Cluster, Namespace, PODS_SOON, TOOLS_IMAGE},
    load::{Arrivals, Load, Report},
    until::{SOON, throughout, until},
};
use serde_json::{Value, json};
use std::{net::SocketAddr, path::Path, time::Duration};
use tokio::sync::{oneshot, watch};

/// The namespace of the documentation.
const SYSTEM: &str = "airlane-system";

/// The longest a release may take, on a machine busy with other things.
const LONGEST_RELEASE: Duration = Duration::from_secs(120);

/// A cluster with Airlane installed, for this test alone.
struct Whole {
    cluster: Cluster,
}

impl Whole {
    async fn new() -> Option<Self> {
        let cluster = Cluster::alone().await?;
        cluster.airlane_image().await;
        until("nothing is left of an installation before", PODS_SOON, async || {
            match cluster.get(&format!("namespace/{SYSTEM}")).await {
                Ok(namespace) => Err(namespace["status"].to_string()),
                Err(_) => Ok(()),
            }
        })
        .await;
        let whole = Whole { cluster };
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/airlane").display().to_string();
        let image = format!("replicas=1,image={AIRLANE_IMAGE}");
        // Another test may have left the definitions.
        let how = ["--create-namespace", "--take-ownership", "--wait", "--timeout=100s", "--set", &image];
        whole.helm(&[&["install", "airlane", &chart][..], &how].concat()).unwrap();
        until("the API server insists on injection", SOON, async || {
            let registered = whole.cluster.get("mutatingwebhookconfiguration/airlane").await?;
            match registered["webhooks"].as_array() {
                Some(entries) if entries.iter().all(|entry| entry["failurePolicy"] == "Fail") => Ok(()),
                _ => Err(registered["webhooks"].to_string()),
            }
        })
        .await;
        Some(whole)
    }

    fn helm(&self, arguments: &[&str]) -> Result<(), String> {
        let mut helm = self.cluster.command("helm");
        let output = helm.args(["--namespace", SYSTEM]).args(arguments).output();
        let output = output.map_err(|error| error.to_string())?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(()) } else { Err(said(&output.stderr) + &said(&output.stdout)) }
    }

    /// A command of ours, against the cluster.
    async fn airlane(&self, line: &str) -> Result<String, String> {
        let mut airlane = self.cluster.command(binary::airlane());
        airlane.args(["--state", "/nowhere"]).args(line.split(' '));
        let output =
            tokio::process::Command::from(airlane).output().await.map_err(|error| error.to_string())?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(said(&output.stdout))
        } else {
            Err(format!("{line}: {}", said(&output.stderr)))
        }
    }

    /// A namespace in the mesh, with the services `front`, which calls the other for every request, and `payments`.
    async fn shop(&self) -> Namespace<'_> {
        let shop = self.cluster.namespace("shop").await;
        self.cluster
            .kubectl(&["label", "namespace", shop.name(), "airlane.dev/inject=enabled"])
            .await
            .unwrap();
        for service in ["front", "payments"] {
            shop.apply(&account(service)).await.unwrap();
            shop.apply(&service_of(service)).await.unwrap();
        }
        let front = deployment("front", "v1", 1, &["--call", "http://payments/pay"]);
        shop.apply(&front).await.unwrap();
        shop
    }
}

impl Drop for Whole {
    #[expect(clippy::print_stderr, reason = "what a failed test wants to see")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for what in [&["get", "pods,events"][..], &["logs", "deployment/airlane", "--tail=50"]] {
                let output =
                    self.cluster.command("kubectl").args(["--namespace", SYSTEM]).args(what).output();
                let output = output.map(|output| output.stdout).unwrap_or_default();
                eprintln!("--- kubectl {}\n{}", what.join(" "), String::from_utf8_lossy(&output));
            }
        }
        // What stays goes with the cluster.
        let _ = self.helm(&["uninstall", "airlane", "--no-hooks"]);
        let _ =
            self.cluster.command("kubectl").args(["delete", "namespace", SYSTEM, "--wait=false"]).output();
    }
}

fn account(name: &str) -> String {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } }).to_string()
}

fn service_of(app: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": app },
        "spec": { "selector": { "app": app }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
    })
    .to_string()
}

/// The example service, as people would write it: with probes of all three kinds.
fn deployment(app: &str, version: &str, replicas: u32, more: &[&str]) -> String {
    let labels = json!({ "app": app, "version": version });
    let own: [&str; 9] =
        ["example-app", "--address", "0.0.0.0", "--port", "8080", "--name", app, "--version", version];
    let args = [&own, more].concat();
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": format!("{app}-{version}") },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "strategy": { "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "serviceAccountName": app,
                    "containers": [{
                        "name": "app",
                        "image": AIRLANE_IMAGE,
                        "args": args,
                        "ports": [{ "name": "http", "containerPort": 8080 }],
                        "startupProbe": { "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": 1, "failureThreshold": 60 },
                        "readinessProbe": { "httpGet": { "path": "/healthz", "port": "http" }, "periodSeconds": 1 },
                        "livenessProbe": { "tcpSocket": { "port": "http" }, "periodSeconds": 2 },
                    }],
                },
            },
        },
    })
    .to_string()
}

/// A server that dies at once when it is told to end, whatever it is doing, and has no hook that would keep it.
fn abrupt(app: &str) -> String {
    let mut deployment: Value = serde_json::from_str(&deployment(app, "abrupt", 2, &[])).unwrap();
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    let serve = "mkdir /www; echo '{}' >/www/pay; httpd -f -p 8080 -h /www & trap 'exit 0' TERM; wait";
    container["image"] = json!(TOOLS_IMAGE);
    container["args"] = Value::Null;
    container["command"] = json!(["sh", "-c", serve]);
    for probe in ["startupProbe", "readinessProbe"] {
        container[probe]["httpGet"]["path"] = json!("/pay");
    }
    deployment.to_string()
}

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
    let shop = whole.shop().await;
    shop.apply(&deployment("payments", "v1", 1, &[])).await.unwrap();
    shop.apply(&stranger()).await.unwrap();
    for workload in ["deployment/front-v1", "deployment/payments-v1"] {
        shop.rolled_out(workload).await;
    }

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

/// Does `work` while front is asked so often each second, from node 1, and asks payments each time; gives what became of
/// the requests. `work` is told how many were due so far.
async fn under_load(
    shop: &Namespace<'_>,
    per_second: f64,
    work: impl AsyncFnOnce(watch::Receiver<u64>),
) -> Report {
    let pods = shop.pods("app=front").await.unwrap();
    let address = pods[0]["status"]["podIP"].as_str().unwrap();
    let front = SocketAddr::new(address.parse().unwrap(), 8080);
    let (counting, sent) = watch::channel(0);
    let (stop, mut stopped) = oneshot::channel::<()>();
    let load = shop.cluster().inside(move || async move {
        let load = Load::start_at(front, "http://front/", per_second, Arrivals::Uniform);
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                _ = &mut stopped => return load.finish().await,
                _ = tick.tick() => drop(counting.send(load.sent())),
            }
        }
    });
    let working = async {
        work(sent).await;
        drop(stop);
    };
    let (report, ()) = tokio::join!(load, working);
    report
}

async fn at_least(sent: &mut watch::Receiver<u64>, requests: u64) {
    let due = tokio::time::timeout(PODS_SOON, sent.wait_for(|sent| *sent >= requests)).await;
    assert!(due.is_ok(), "{requests} requests take too long");
}

fn canary(version: &str) -> String {
    format!(
        "
apiVersion: airlane.dev/v1alpha1
kind: Canary
metadata: {{name: payments}}
spec:
  service: payments
  stable: {{version: v1}}
  canary: {{version: {version}}}
  steps: [{{weight: 10%}}, {{weight: 50%}}, {{weight: 100%}}]
  objectives: [{{name: errors, errorRate: {{max: 1%}}}}]
"
    )
}

/// Plans the release, then has the version there; gives the status in which it ends.
async fn release(shop: &Namespace<'_>, version: &str, more: &[&str]) -> Value {
    shop.apply(&canary(version)).await.unwrap();
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
    let shop = whole.shop().await;
    shop.apply(&deployment("payments", "v1", 1, &[])).await.unwrap();
    shop.apply(&stranger()).await.unwrap();
    for workload in ["deployment/front-v1", "deployment/payments-v1"] {
        shop.rolled_out(workload).await;
    }
    front_calls_payments(&shop).await;

    let report = under_load(&shop, 100.0, async |_| {
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

    let report = under_load(&shop, 200.0, async |mut sent| {
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

#[tokio::test]
async fn restarts_under_load_lose_no_request() {
    let Some(whole) = Whole::new().await else { return };
    let shop = whole.shop().await;
    shop.apply(&deployment("payments", "v1", 2, &[])).await.unwrap();
    shop.apply(&stranger()).await.unwrap();
    for workload in ["deployment/front-v1", "deployment/payments-v1"] {
        shop.rolled_out(workload).await;
    }
    front_calls_payments(&shop).await;
    let restart = async |deployment: &str| {
        shop.kubectl(&["rollout", "restart", deployment]).await.unwrap();
        shop.rolled_out(deployment).await;
    };

    let report = under_load(&shop, 200.0, async |mut sent| {
        for _ in 0..3 {
            restart("deployment/payments-v1").await;
        }
        at_least(&mut sent, 5_000).await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(5_000);

    let report = under_load(&shop, 200.0, async |mut sent| {
        let pods = "--selector=app.kubernetes.io/component=operator";
        let system = ["--namespace", SYSTEM];
        let kill = ["delete", "pod", pods, "--grace-period=0", "--force"];
        whole.cluster.kubectl(&[&system[..], &kill].concat()).await.unwrap();
        until("there is an operator again", PODS_SOON, async || {
            let wait = ["wait", "pod", pods, "--for=condition=Ready", "--timeout=1s"];
            whole.cluster.kubectl(&[&system[..], &wait].concat()).await
        })
        .await;
        // It knows who runs, and lets in who starts.
        restart("deployment/payments-v1").await;
        at_least(&mut sent, 2_000).await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(2_000);

    let report = under_load(&shop, 100.0, async |mut sent| {
        shop.apply(&abrupt("payments")).await.unwrap();
        shop.rolled_out("deployment/payments-abrupt").await;
        shop.kubectl(&["delete", "deployment", "payments-v1"]).await.unwrap();
        for _ in 0..2 {
            restart("deployment/payments-abrupt").await;
        }
        let now = *sent.borrow();
        at_least(&mut sent, now + 200).await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(1_000);
}
