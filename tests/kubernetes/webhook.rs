//! Injection, asked for by a real API server.

use airlane_tests::{
    binary,
    kube::{Cluster, Namespace},
    process::Process,
    until::{SOON, until},
};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};
use tempfile::TempDir;

/// How the chart registers the webhook, before the operator has written its roots.
const REGISTRATION: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: airlane}
webhooks:
- name: namespace.inject.airlane.dev
  clientConfig: {service: {namespace: airlane-system, name: airlane-webhook, port: 443, path: /inject}}
  rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [pods], scope: Namespaced}]
  namespaceSelector:
    matchExpressions:
    - {key: airlane.dev/inject, operator: In, values: [enabled, outbound]}
    - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, airlane-system]}
  objectSelector:
    matchExpressions: [{key: airlane.dev/inject, operator: DoesNotExist}]
  failurePolicy: Ignore
  timeoutSeconds: 5
  reinvocationPolicy: IfNeeded
  sideEffects: None
  admissionReviewVersions: [v1]
- name: pod.inject.airlane.dev
  clientConfig: {service: {namespace: airlane-system, name: airlane-webhook, port: 443, path: /inject}}
  rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [pods], scope: Namespaced}]
  namespaceSelector:
    matchExpressions:
    - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, airlane-system]}
  objectSelector:
    matchExpressions:
    - {key: airlane.dev/inject, operator: Exists}
    - {key: airlane.dev/inject, operator: NotIn, values: [disabled]}
  failurePolicy: Ignore
  timeoutSeconds: 5
  reinvocationPolicy: IfNeeded
  sideEffects: None
  admissionReviewVersions: [v1]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: airlane}
webhooks:
- name: validate.airlane.dev
  clientConfig: {service: {namespace: airlane-system, name: airlane-webhook, port: 443, path: /validate}}
  rules:
  - {operations: [CREATE, UPDATE], apiGroups: [airlane.dev], apiVersions: ["*"], resources: [meshpolicies, canaries], scope: Namespaced}
  failurePolicy: Ignore
  timeoutSeconds: 5
  sideEffects: None
  admissionReviewVersions: [v1]
"#;

/// The service by which the API server finds an operator that runs beside it.
const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: airlane-webhook, namespace: airlane-system}
spec: {ports: [{port: 443, targetPort: 9443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: airlane-webhook, namespace: airlane-system, labels: {kubernetes.io/service-name: airlane-webhook}}
addressType: IPv4
endpoints: [{addresses: [ADDRESS], conditions: {ready: true}}]
ports: [{port: 9443, protocol: TCP}]
";

/// A leader that was killed is followed when its lease has run out.
const TAKEN_OVER: Duration = Duration::from_secs(60);

const REFUSED_BY_US: &str = "denied the request";

/// What is of the whole cluster, and goes with the test.
struct Registered<'a>(&'a Cluster);

impl Registered<'_> {
    async fn new(cluster: &Cluster) -> Registered<'_> {
        cluster.without("airlane-system").await;
        cluster.kubectl(&["create", "namespace", "airlane-system"]).await.unwrap();
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
        let crds = crds.to_str().unwrap();
        cluster.kubectl(&["apply", "--server-side", "--filename", crds]).await.unwrap();
        let slice = cluster
            .kubectl(&["get", "--namespace", "default", "endpointslice", "kubernetes", "--output", "json"])
            .await;
        let slice: Value = serde_json::from_str(&slice.unwrap()).unwrap();
        let address = slice["endpoints"][0]["addresses"][0].as_str().unwrap();
        cluster.apply(&SERVICE.replace("ADDRESS", address)).await.unwrap();
        let registered = Registered(cluster);
        cluster.apply(REGISTRATION).await.unwrap();
        registered
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let kinds = "mutatingwebhookconfiguration,validatingwebhookconfiguration";
        // Nothing can be done about a failure; the cluster goes with the process.
        let _ = self.0.command("kubectl").args(["delete", kinds, "airlane"]).output();
        let _ = self
            .0
            .command("kubectl")
            .args(["delete", "namespace", "airlane-system", "--wait=false"])
            .output();
    }
}

/// An operator that runs beside the API server.
fn operator(cluster: &Cluster, name: &str, home: &Path) -> Process {
    let mut command = cluster.command(binary::airlane());
    let state = home.join(name);
    command.arg("--state").arg(state).arg("operator");
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--health",
        "127.0.0.1:0",
        "--proxy-image",
        "localhost/airlane:test",
    ]);
    Process::start(name, command, home)
}

/// The registration's entries, when the API server insists on them.
async fn insisted(cluster: &Cluster, other_than: &Value) -> Value {
    until("the operator writes its roots", TAKEN_OVER, async || {
        let configuration = cluster.get("mutatingwebhookconfiguration/airlane").await?;
        let entries = configuration["webhooks"].as_array().cloned().unwrap_or_default();
        let roots = &entries[0]["clientConfig"]["caBundle"];
        let fresh = entries
            .iter()
            .all(|entry| entry["clientConfig"]["caBundle"] == *roots && entry["failurePolicy"] == "Fail");
        if fresh && roots.is_string() && roots != other_than {
            Ok(roots.clone())
        } else {
            Err(configuration.to_string())
        }
    })
    .await
}

fn pod(name: &str, labels: &Value, annotations: &Value) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": labels, "annotations": annotations },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "securityContext": { "runAsUser": 1000, "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "app", "image": "localhost/tools:1", "command": ["sleep", "3600"],
                "livenessProbe": { "tcpSocket": { "port": 8080 } },
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    })
    .to_string()
}

/// The pod as the API server stored it.
async fn created(
    here: &Namespace<'_>,
    name: &str,
    labels: Value,
    annotations: Value,
) -> Result<Value, String> {
    here.apply(&pod(name, &labels, &annotations)).await?;
    here.get(&format!("pod/{name}")).await
}

fn init_containers(pod: &Value) -> Vec<&str> {
    pod["spec"]["initContainers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["name"].as_str())
        .collect()
}

const BOTH: [&str; 2] = ["airlane-init", "airlane-proxy"];

async fn labelled<'a>(cluster: &'a Cluster, name: &str, labels: &[&str]) -> Namespace<'a> {
    let here = cluster.namespace(name).await;
    cluster.kubectl(&[&["label", "namespace", here.name()], labels].concat()).await.unwrap();
    here
}

#[tokio::test]
async fn pods_are_injected_by_a_real_api_server() {
    let Some(cluster) = Cluster::alone().await else { return };
    let home = TempDir::new().unwrap();
    let _registered = Registered::new(&cluster).await;
    let before = cluster.get("mutatingwebhookconfiguration/airlane").await.unwrap();
    let mut first = operator(&cluster, "operator", home.path());
    let roots = insisted(&cluster, &Value::Null).await;
    only_ours_is_written(&cluster, &before).await;

    let shop = labelled(&cluster, "shop", &["airlane.dev/inject=enabled"]).await;
    a_pod_comes_back_injected(&shop).await;
    mistakes_are_readable(&shop).await;
    large_pods_are_injected(&shop, home.path()).await;
    what_is_injected_by_hand_stays(&cluster, &shop, home.path(), &first).await;
    opting_out_and_in(&cluster, &shop).await;
    pod_security_is_told_apart(&cluster).await;
    kube_system_is_exempt(&cluster).await;

    first.kill();
    without_an_operator(&cluster, &shop).await;
    // As if the root had been lost: the next operator makes another one.
    let secret = ["delete", "--namespace", "airlane-system", "secret", "airlane-root"];
    cluster.kubectl(&secret).await.unwrap();
    let _second = operator(&cluster, "another", home.path());
    insisted(&cluster, &roots).await;
    until("the API server asks the new one", SOON, async || {
        created(&shop, "recovered", json!({}), json!({})).await
    })
    .await;
    let pod = shop.get("pod/recovered").await.unwrap();
    assert_eq!(init_containers(&pod), BOTH);
}

async fn only_ours_is_written(cluster: &Cluster, before: &Value) {
    let mut after = cluster.get("mutatingwebhookconfiguration/airlane").await.unwrap();
    for (entry, was) in
        after["webhooks"].as_array_mut().unwrap().iter_mut().zip(before["webhooks"].as_array().unwrap())
    {
        entry["failurePolicy"] = json!("Ignore");
        entry["clientConfig"].as_object_mut().unwrap().remove("caBundle");
        assert_eq!(entry, was);
    }
    let validating = cluster.get("validatingwebhookconfiguration/airlane").await.unwrap();
    assert_eq!(validating["webhooks"][0]["failurePolicy"], "Ignore");
}

/// Also that the API server decodes what we add without a warning: `--validate=strict` of a pod that is sent back.
async fn a_pod_comes_back_injected(shop: &Namespace<'_>) {
    let pod = created(shop, "pay", json!({}), json!({})).await.unwrap();
    assert_eq!(init_containers(&pod), BOTH);
    assert_eq!(pod["spec"]["initContainers"][1]["restartPolicy"], "Always");
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 6);
    let probe = &pod["spec"]["containers"][0]["livenessProbe"];
    assert_eq!(probe["httpGet"]["port"], 15020);
    assert_eq!(probe["tcpSocket"], Value::Null);

    // Sent again it is as it was: what we added are fields that the API server knows, with the values it keeps.
    let mut again = pod.clone();
    again["metadata"] = json!({ "name": "again", "labels": pod["metadata"]["labels"], "annotations": pod["metadata"]["annotations"] });
    again.as_object_mut().unwrap().remove("status");
    again["spec"].as_object_mut().unwrap().remove("nodeName");
    shop.apply(&again.to_string()).await.unwrap();
    let twice = shop.get("pod/again").await.unwrap();
    assert_eq!(init_containers(&twice), BOTH);
    assert_eq!(twice["spec"]["containers"][0]["lifecycle"], pod["spec"]["containers"][0]["lifecycle"]);

    let dry = pod_of(shop, &["--dry-run=server"], &self::pod("dry", &json!({}), &json!({}))).await;
    assert_eq!(init_containers(&dry), BOTH);
    shop.get("pod/dry").await.unwrap_err();
}

async fn pod_of(here: &Namespace<'_>, flags: &[&str], yaml: &str) -> Value {
    let home = TempDir::new().unwrap();
    let file = home.path().join("pod.json");
    std::fs::write(&file, yaml).unwrap();
    let create = ["create", "--output", "json", "--filename", file.to_str().unwrap()];
    serde_json::from_str(&here.kubectl(&[&create, flags].concat()).await.unwrap()).unwrap()
}

async fn mistakes_are_readable(shop: &Namespace<'_>) {
    let annotations = json!({ "airlane.dev/excludeOutboundCIDRs": "10.0.0.1/8" });
    let error = created(shop, "mistaken", json!({}), annotations).await.unwrap_err();
    assert!(error.contains(REFUSED_BY_US), "{error}");
    assert!(
        error.contains("metadata.annotations[airlane.dev/excludeOutboundCIDRs]: \"10.0.0.1/8\" has bits beyond its prefix; write networks"),
        "{error}"
    );
    let error =
        created(shop, "mistaken", json!({ "airlane.dev/inject": "true" }), json!({})).await.unwrap_err();
    assert!(error.contains("write enabled, disabled or outbound"), "{error}");
}

/// etcd would refuse it, so it is not stored.
async fn large_pods_are_injected(shop: &Namespace<'_>, home: &Path) {
    let mut large: Value = serde_json::from_str(&pod("large", &json!({}), &json!({}))).unwrap();
    large["spec"]["containers"][0]["env"] = json!([{ "name": "A", "value": "x".repeat(2_900_000) }]);
    let file = home.join("large.json");
    std::fs::write(&file, large.to_string()).unwrap();
    let names = "jsonpath={.spec.initContainers[*].name}";
    let create = ["create", "--dry-run=server", "--filename", file.to_str().unwrap(), "--output", names];
    assert_eq!(shop.kubectl(&create).await.unwrap(), BOTH.join(" "));
}

async fn what_is_injected_by_hand_stays(
    cluster: &Cluster,
    shop: &Namespace<'_>,
    home: &Path,
    operator: &Process,
) {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "hand" },
        "spec": {
            "replicas": 1, "selector": { "matchLabels": { "app": "hand" } },
            "template": {
                "metadata": { "labels": { "app": "hand" } },
                "spec": { "containers": [{ "name": "app", "image": "localhost/tools:1", "command": ["sleep", "3600"] }] },
            },
        },
    });
    let file = home.join("hand.json");
    std::fs::write(&file, deployment.to_string()).unwrap();
    let mut inject = cluster.command(binary::airlane());
    inject.args([
        "inject",
        "--proxy-image",
        "localhost/airlane:test",
        "--root-sha256",
        &"ab".repeat(32),
        "--filename",
    ]);
    let printed = inject.arg(&file).output().unwrap();
    assert!(printed.status.success(), "{}{}", String::from_utf8_lossy(&printed.stderr), operator.log());
    shop.apply(&String::from_utf8(printed.stdout).unwrap()).await.unwrap();
    let pods = until("the Deployment has a pod", SOON, async || match shop.pods("app=hand").await? {
        pods if pods.is_empty() => Err("none yet".to_owned()),
        pods => Ok(pods),
    })
    .await;
    assert_eq!(init_containers(&pods[0]), BOTH);
}

async fn opting_out_and_in(cluster: &Cluster, shop: &Namespace<'_>) {
    let out = created(shop, "out", json!({ "airlane.dev/inject": "disabled" }), json!({})).await.unwrap();
    assert_eq!(init_containers(&out), [""; 0]);
    let elsewhere = cluster.namespace("elsewhere").await;
    let out = created(&elsewhere, "out", json!({}), json!({})).await.unwrap();
    assert_eq!(init_containers(&out), [""; 0]);
    let asked =
        created(&elsewhere, "in", json!({ "airlane.dev/inject": "enabled" }), json!({})).await.unwrap();
    assert_eq!(init_containers(&asked), BOTH);
}

async fn pod_security_is_told_apart(cluster: &Cluster) {
    let labels = ["airlane.dev/inject=enabled", "pod-security.kubernetes.io/enforce=restricted"];
    let here = labelled(cluster, "restricted", &labels).await;
    let out = created(&here, "out", json!({}), json!({})).await.unwrap();
    assert_eq!(init_containers(&out), [""; 0]);
    let why = out["metadata"]["annotations"]["airlane.dev/notInjected"].as_str().unwrap();
    assert!(why.contains("annotate the pod airlane.dev/interception: Env"), "{why}");

    let asking = json!({ "airlane.dev/inject": "enabled" });
    let error = created(&here, "asked", asking, json!({})).await.unwrap_err();
    assert!(error.contains(REFUSED_BY_US) && error.contains("airlane.dev/interception: Env"), "{error}");

    let env = created(&here, "env", json!({}), json!({ "airlane.dev/interception": "Env" })).await.unwrap();
    assert_eq!(init_containers(&env), ["airlane-proxy"]);
}

async fn kube_system_is_exempt(cluster: &Cluster) {
    let label = async |value: &str| cluster.kubectl(&["label", "namespace", "kube-system", value]).await;
    label("airlane.dev/inject=enabled").await.unwrap();
    let home = TempDir::new().unwrap();
    let file = home.path().join("pod.json");
    std::fs::write(&file, pod("exempt", &json!({}), &json!({}))).unwrap();
    let create = [
        "create",
        "--namespace",
        "kube-system",
        "--dry-run=server",
        "--output",
        "json",
        "--filename",
        file.to_str().unwrap(),
    ];
    let created = cluster.kubectl(&create).await;
    label("airlane.dev/inject-").await.unwrap();
    let created: Value = serde_json::from_str(&created.unwrap()).unwrap();
    assert_eq!(init_containers(&created), [""; 0]);
}

/// No pod of the mesh starts without its proxy, and everything else starts: what brings the operator back above all.
async fn without_an_operator(cluster: &Cluster, shop: &Namespace<'_>) {
    let error = created(shop, "alone", json!({}), json!({})).await.unwrap_err();
    assert!(error.contains("failed calling webhook"), "{error}");
    created(shop, "break-glass", json!({ "airlane.dev/inject": "disabled" }), json!({})).await.unwrap();
    let elsewhere = cluster.namespace("elsewhere").await;
    created(&elsewhere, "any", json!({}), json!({})).await.unwrap();
    until("the operator's own namespace takes pods", Duration::from_secs(10), async || {
        let home = TempDir::new().map_err(|error| error.to_string())?;
        let file = home.path().join("pod.json");
        std::fs::write(&file, pod("operator", &json!({}), &json!({}))).map_err(|error| error.to_string())?;
        let create = [
            "create",
            "--namespace",
            "airlane-system",
            "--dry-run=server",
            "--filename",
            file.to_str().unwrap(),
        ];
        cluster.kubectl(&create).await
    })
    .await;
}
