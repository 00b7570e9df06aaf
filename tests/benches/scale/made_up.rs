//! Objects that nobody runs: services, the pods behind them, policies; and a client that writes them.

use futures::{StreamExt as _, stream};
use http::{Method, Request};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use std::path::Path;

const NAMESPACES: usize = 20;
pub(super) const SERVICES: usize = 1_000;
pub(super) const PODS_OF_EACH: usize = 10;
pub(super) const PODS: usize = SERVICES * PODS_OF_EACH;
/// One of the whole mesh; the others are about a service each.
pub(super) const POLICIES: usize = 100;
/// The service account of all pods.
pub(super) const ACCOUNT: &str = "app";

/// Requests that are under way at once.
const AT_ONCE: usize = 24;
/// The hash of every pod's template.
const TEMPLATE: &str = "7c9f6d";
/// The path of a kind's objects that have no namespace, or before the namespace.
const CORE: &str = "/api/v1";
const SLICES: &str = "/apis/discovery.k8s.io/v1";
const OURS: &str = "/apis/airlane.dev/v1alpha1";

/// The API server's administrator. It is reached in the cluster's network alone.
#[derive(Clone)]
pub(super) struct Api(Client);

impl Api {
    pub(super) async fn of(kubeconfig: &Path) -> Api {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Api(Client::try_from(config).unwrap())
    }

    async fn send(&self, method: Method, path: &str, media_type: &str, body: Vec<u8>) -> String {
        let request = Request::builder().method(method).uri(path).header("content-type", media_type);
        self.0.request_text(request.body(body).unwrap()).await.unwrap()
    }

    async fn create(&self, path: &str, object: &Value) {
        let object = serde_json::to_vec(object).unwrap();
        self.send(Method::POST, path, "application/json", object).await;
    }

    /// RFC 7396.
    async fn merge(&self, path: &str, change: &Value) {
        let change = serde_json::to_vec(change).unwrap();
        self.send(Method::PATCH, path, "application/merge-patch+json", change).await;
    }

    /// Creates everything.
    pub(super) async fn fill(&self) {
        self.each(NAMESPACES, async |n| {
            let labels = json!({ "airlane.dev/inject": "enabled" });
            let namespace = namespace(n);
            let metadata = json!({ "name": namespace, "labels": labels });
            self.create(&format!("{CORE}/namespaces"), &json!({ "metadata": metadata })).await;
            let account = json!({ "metadata": { "name": ACCOUNT } });
            self.create(&format!("{CORE}/namespaces/{namespace}/serviceaccounts"), &account).await;
        })
        .await;
        self.each(SERVICES, async |n| {
            let path = format!("{CORE}/namespaces/{}/services", namespace(n));
            self.create(&path, &service(n)).await;
            let path = format!("{SLICES}/namespaces/{}/endpointslices", namespace(n));
            self.create(&path, &slice(n, &[Endpoint::Ready; PODS_OF_EACH])).await;
        })
        .await;
        self.each(PODS, async |n| {
            self.create(&format!("{CORE}/namespaces/{}/pods", namespace_of(n)), &pod(n)).await;
            self.tell(n, true).await;
        })
        .await;
        self.each(POLICIES - 1, async |n| self.govern(n * SERVICES / POLICIES, 1_000).await).await;
        self.create(&format!("{OURS}/namespaces/airlane-system/meshpolicies"), &policy("mesh", None, 15_000))
            .await;
    }

    async fn each(&self, count: usize, make: impl AsyncFn(usize)) {
        stream::iter(0..count)
            .map(async |n| make(n).await)
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<()>>()
            .await;
    }

    /// Says of a pod what its kubelet would: that it runs, and whether it is ready.
    pub(super) async fn tell(&self, pod: usize, ready: bool) {
        let path = format!("{CORE}/namespaces/{}/pods/{}/status", namespace_of(pod), pod_name(pod));
        let condition = |type_: &str, status: &str, second: u32| {
            let at = format!("2026-01-01T00:00:0{second}Z");
            json!({ "type": type_, "status": status, "lastTransitionTime": at })
        };
        // It is unready since after it was ready.
        let ready = if ready { condition("Ready", "True", 5) } else { condition("Ready", "False", 9) };
        let conditions = [condition("Initialized", "True", 1), ready];
        let address = address(pod);
        self.merge(
            &path,
            &json!({ "status": {
                "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "conditions": conditions,
            } }),
        )
        .await;
    }

    /// Says which of its pods are behind a service, and which of them are ready.
    pub(super) async fn list(&self, service: usize, endpoints: &[Endpoint]) {
        let path = format!("{SLICES}/namespaces/{}/endpointslices/service-{service}", namespace(service));
        self.merge(&path, &json!({ "endpoints": slice(service, endpoints)["endpoints"] })).await;
    }

    /// Says how long a request to a service may take, in milliseconds.
    pub(super) async fn govern(&self, service: usize, timeout: u32) {
        let path = format!("{OURS}/namespaces/{}/meshpolicies", namespace(service));
        let name = format!("service-{service}");
        self.create(&path, &policy(&name, Some(&name), timeout)).await;
    }

    /// Says it anew of a service, or of the whole mesh.
    pub(super) async fn edit(&self, service: Option<usize>, timeout: u32) {
        let (namespace, name) = match service {
            Some(service) => (namespace(service), format!("service-{service}")),
            None => ("airlane-system".to_owned(), "mesh".to_owned()),
        };
        let path = format!("{OURS}/namespaces/{namespace}/meshpolicies/{name}");
        self.merge(&path, &json!({ "spec": { "timeouts": { "request": format!("{timeout}ms") } } })).await;
    }

    /// How many requests the API server has answered since it started: those of its counter's lines that name all of
    /// `labels`.
    pub(super) async fn answered(&self, labels: &[&str]) -> u64 {
        let metrics = self.send(Method::GET, "/metrics", "text/plain", Vec::new()).await;
        let counter = metrics.lines().filter(|line| line.starts_with("apiserver_request_total{"));
        let meant = counter.filter(|line| labels.iter().all(|label| line.contains(label)));
        let counts = meant.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        counts.sum::<f64>() as u64
    }
}

/// How a pod stands in a slice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Ready,
    Unready,
    Absent,
}

fn namespace(service: usize) -> String {
    format!("team-{}", service % NAMESPACES)
}

pub(super) fn namespace_of(pod: usize) -> String {
    namespace(pod / PODS_OF_EACH)
}

/// Envoy's name for a service.
pub(super) fn cluster(service: usize) -> String {
    format!("80|service-{service}|{}", namespace(service))
}

pub(super) fn pod_name(pod: usize) -> String {
    format!("service-{}-{TEMPLATE}-{}", pod / PODS_OF_EACH, pod % PODS_OF_EACH)
}

pub(super) fn address(pod: usize) -> String {
    let [.., high, low] = u32::try_from(pod).unwrap().to_be_bytes();
    format!("10.100.{high}.{low}")
}

fn service(n: usize) -> Value {
    let name = format!("service-{n}");
    json!({
        "metadata": { "name": name },
        "spec": {
            "selector": { "app": name },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        },
    })
}

/// As the kubelet gets it after injection, as far as that matters to the operator.
fn pod(n: usize) -> Value {
    let service = format!("service-{}", n / PODS_OF_EACH);
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{service}-{TEMPLATE}"),
        "uid": format!("of-{service}"), "controller": true,
    });
    let labels = json!({ "app": service, "pod-template-hash": TEMPLATE, "airlane.dev/meshed": "true" });
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("example.com/{name}:1"), "imagePullPolicy": "IfNotPresent",
            "env": [{ "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }],
            "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
        })
    };
    let mut proxy = container("airlane-proxy");
    proxy["restartPolicy"] = json!("Always");
    json!({
        "metadata": { "name": pod_name(n), "labels": labels, "ownerReferences": [owner] },
        // Nobody schedules it.
        "spec": {
            "schedulerName": "nobody", "serviceAccountName": ACCOUNT,
            "initContainers": [container("airlane-init"), proxy], "containers": [container("app")],
        },
    })
}

fn slice(service: usize, endpoints: &[Endpoint]) -> Value {
    let (name, namespace) = (format!("service-{service}"), namespace(service));
    let listed = endpoints.iter().enumerate().filter(|(_, endpoint)| **endpoint != Endpoint::Absent);
    let endpoints: Vec<Value> = listed
        .map(|(copy, endpoint)| {
            let pod = service * PODS_OF_EACH + copy;
            json!({
                "addresses": [address(pod)], "conditions": { "ready": *endpoint == Endpoint::Ready },
                "targetRef": { "kind": "Pod", "namespace": namespace, "name": pod_name(pod) },
            })
        })
        .collect();
    json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

fn policy(name: &str, service: Option<&str>, timeout: u32) -> Value {
    let mut spec = json!({ "timeouts": { "request": format!("{timeout}ms") } });
    if let Some(service) = service {
        spec["targetRef"] = json!({ "kind": "Service", "name": service });
    }
    json!({
        "apiVersion": "airlane.dev/v1alpha1", "kind": "MeshPolicy", "metadata": { "name": name }, "spec": spec,
    })
}
