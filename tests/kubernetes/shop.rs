//! The chart installed, and a shop in its mesh: what the cases about the whole begin with.

use airlane_tests::{
    binary, client,
    kube::{AIRLANE_IMAGE, Cluster, Namespace, PODS_SOON},
    load::{Arrivals, Load, Report},
    until::{SOON, until},
};
use serde_json::{Value, json};
use std::{net::SocketAddr, path::Path, time::Duration};
use tokio::sync::{Semaphore, oneshot, watch};

/// The namespace of the documentation.
pub(crate) const SYSTEM: &str = "airlane-system";

/// The longest that the requests of one load may take, those of the long proof included.
const LONGEST_LOAD: Duration = Duration::from_secs(600);

/// Requests a second that all loads together may send. More would find the limits of a small machine, and not of the
/// mesh.
const BEARABLE: u32 = 250;

/// What of it is left.
static LEFT: Semaphore = Semaphore::const_new(BEARABLE as usize);

/// A cluster with Airlane installed, for this test alone.
pub(crate) struct Whole {
    pub(crate) cluster: Cluster,
}

impl Whole {
    /// With one replica of the operator. `None`, said aloud, on a machine that cannot have a cluster.
    pub(crate) async fn new() -> Option<Self> {
        Self::with(&[]).await
    }

    /// With these values of the chart as well, each `NAME=VALUE`.
    pub(crate) async fn with(values: &[&str]) -> Option<Self> {
        let cluster = Cluster::alone().await?;
        cluster.airlane_image().await;
        cluster.without(SYSTEM).await;
        until("nobody is left of a mesh before", PODS_SOON, async || {
            let left = ["get", "namespaces", "--selector=airlane.dev/inject", "--output=name"];
            let left = cluster.kubectl(&left).await?;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        let whole = Whole { cluster };
        // Another test may have left the definitions.
        let new = ["--create-namespace", "--take-ownership"];
        let image = format!("image={AIRLANE_IMAGE}");
        whole.helm("install", &new, &[&["replicas=1", &image], values].concat()).await;
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

    /// `helm upgrade` to these values besides those in force, until the new pods are ready.
    pub(crate) async fn upgrade(&self, values: &[&str]) {
        self.helm("upgrade", &["--reuse-values"], values).await;
    }

    async fn helm(&self, verb: &str, how: &[&str], values: &[&str]) {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/airlane");
        let mut helm = self.cluster.command("helm");
        helm.args(["--namespace", SYSTEM, verb, "airlane"]).arg(chart).args(how);
        helm.args(["--wait", "--timeout=100s"]).args(values.iter().flat_map(|value| ["--set", value]));
        self.cluster.run(helm).await.unwrap();
    }

    /// A command of ours, against the cluster.
    pub(crate) async fn airlane(&self, line: &str) -> Result<String, String> {
        let mut airlane = self.cluster.command(binary::airlane());
        airlane.args(["--state", "/nowhere"]).args(line.split(' '));
        self.cluster.run(airlane).await
    }

    /// A namespace in the mesh, with the services `front`, which calls the other for every request, and `payments`. The
    /// pod of `front` is there.
    pub(crate) async fn shop(&self) -> Namespace<'_> {
        let shop = self.cluster.namespace("shop").await;
        self.cluster
            .kubectl(&["label", "namespace", shop.name(), "airlane.dev/inject=enabled"])
            .await
            .unwrap();
        for app in ["front", "payments"] {
            service(&shop, app).await;
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
        let gone = [
            ("helm", ["uninstall", "airlane", "--no-hooks", "--namespace", SYSTEM]),
            ("kubectl", ["delete", "namespace", SYSTEM, "--wait=false", "--ignore-not-found"]),
        ];
        for (program, arguments) in gone {
            let _ = self.cluster.command(program).args(arguments).output();
        }
    }
}

/// A service, and the account of its pods.
pub(crate) async fn service(shop: &Namespace<'_>, app: &str) {
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": app } });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": app },
        "spec": { "selector": { "app": app }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
    });
    for object in [account, service] {
        shop.apply(&object.to_string()).await.unwrap();
    }
}

/// The example service, as people would write it: with probes of all three kinds.
pub(crate) fn deployment(app: &str, version: &str, replicas: u32, more: &[&str]) -> String {
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

/// A release of payments in three steps, of which at most this share of requests may fail.
pub(crate) fn canary(version: &str, errors_max: &str) -> String {
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
  objectives: [{{name: errors, errorRate: {{max: {errors_max}}}}}]
"
    )
}

/// Waits until a call of `caller` to another service is answered.
pub(crate) async fn calls(shop: &Namespace<'_>, caller: &str, to: &str) {
    let (caller, url) = (pod(shop, caller).await, format!("http://{}/", at(shop, to).await));
    until(&format!("{to} answers"), PODS_SOON, async || {
        let url = url.clone();
        let call = move || async move { client::send("GET", &url, "").await };
        let answer = shop.cluster().inside_pod(&caller, call).await?;
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
}

/// The first pod of `app`.
pub(crate) async fn pod(shop: &Namespace<'_>, app: &str) -> Value {
    shop.pods(&format!("app={app}")).await.unwrap().remove(0)
}

/// Where a service is.
async fn at(shop: &Namespace<'_>, service: &str) -> SocketAddr {
    let service = shop.get(&format!("service/{service}")).await.unwrap();
    SocketAddr::new(service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap(), 80)
}

/// Does `work` while the only pod of `caller` calls a service so often each second; gives what became of the requests.
/// `work` is told how many were due so far.
pub(crate) async fn under_load(
    shop: &Namespace<'_>,
    (caller, to): (&str, &str),
    per_second: f64,
    work: impl AsyncFnOnce(watch::Receiver<u64>),
) -> Report {
    let share = (per_second.ceil() as u32).min(BEARABLE);
    let _share = LEFT.acquire_many(share).await.unwrap();
    let (caller, address, url) = (pod(shop, caller).await, at(shop, to).await, format!("http://{to}/"));
    let (counting, sent) = watch::channel(0);
    let (stop, mut stopped) = oneshot::channel::<()>();
    let load = shop.cluster().inside_pod(&caller, move || async move {
        let load = Load::start_at(address, &url, per_second, Arrivals::Uniform);
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

/// Waits until so many requests were due.
pub(crate) async fn at_least(sent: &mut watch::Receiver<u64>, requests: u64) {
    let due = tokio::time::timeout(LONGEST_LOAD, sent.wait_for(|sent| *sent >= requests)).await;
    assert!(due.is_ok(), "{requests} requests take too long");
}
