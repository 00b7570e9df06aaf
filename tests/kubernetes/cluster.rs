//! The cluster itself: what the other cases take for granted.

use airlane_tests::{
    kube::{AIRLANE_IMAGE, Cluster, Namespace, PODS_SOON, TOOLS_IMAGE},
    until::{SOON, until},
};
use serde_json::Value;

/// A web server that says its pod's name, behind a Service, beside a native sidecar that is slow to start.
async fn web(namespace: &Namespace<'_>, replicas: usize) {
    let yaml = format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      initContainers:
      - name: beside
        image: {TOOLS_IMAGE}
        restartPolicy: Always
        command: [sh, -c, 'sleep 1; cat /proc/uptime > /tmp/ready; sleep 100000']
        startupProbe: {{exec: {{command: [test, -e, /tmp/ready]}}, periodSeconds: 1}}
      containers:
      - name: web
        image: {TOOLS_IMAGE}
        command: [sh, -c, 'cat /proc/uptime; mkdir /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www']
        readinessProbe: {{httpGet: {{port: 8080, path: /}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    );
    namespace.apply(&yaml).await.unwrap();
    namespace.rolled_out("deployment/web").await;
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

/// Since the machine was started: the first word of `/proc/uptime`.
fn seconds(uptime: &str) -> f64 {
    uptime.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_pod_answers_by_its_service_to_pods_and_to_the_test() {
    let Some(cluster) = Cluster::shared().await else { return };
    let here = cluster.namespace("web").await;
    web(&here, 1).await;
    let pod = name(&here.pods("app=web").await.unwrap()[0]).to_owned();
    for family in ["-4", "-6"] {
        // kube-proxy is up to 0.1 s behind.
        let answer = until("a pod calls the Service by its name", SOON, async || {
            here.exec("deployment/web", &["curl", "-sS", family, "http://web"]).await
        });
        assert_eq!(answer.await, pod, "curl {family}");
    }
    let service = here.get("service/web").await.unwrap();
    let url = format!("http://{}/", service["spec"]["clusterIP"].as_str().unwrap());
    let to_us = cluster.inside(move || async move { airlane_tests::client::send("GET", &url, "").await });
    assert_eq!(to_us.await.unwrap().text().trim(), pod);
}

#[tokio::test]
async fn a_native_sidecar_is_started_before_the_application() {
    let Some(cluster) = Cluster::shared().await else { return };
    let here = cluster.namespace("sidecar").await;
    web(&here, 1).await;
    let beside = here.exec("deployment/web", &["cat", "/tmp/ready"]).await;
    assert!(beside.is_err(), "containers share no files: {beside:?}");
    let ready = here.kubectl(&["exec", "deployment/web", "-c", "beside", "--", "cat", "/tmp/ready"]).await;
    let (ready, started) =
        (seconds(&ready.unwrap()), seconds(&here.logs("deployment/web", "web").await.unwrap()));
    assert!(started > ready, "the application started at {started}, its sidecar was ready at {ready}");
}

#[tokio::test]
async fn the_image_of_this_build_runs() {
    let Some(cluster) = Cluster::shared().await else { return };
    let image = cluster.airlane_image().await;
    assert_eq!(image, AIRLANE_IMAGE);
    let here = cluster.namespace("image").await;
    let yaml = format!(
        r"
apiVersion: v1
kind: Pod
metadata: {{name: example}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{runAsUser: 1000, runAsGroup: 1000, runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: example
    image: {image}
    args: [example-app, --address, 0.0.0.0, --port, '8080', --name, example]
    readinessProbe: {{httpGet: {{port: 8080, path: /healthz}}, periodSeconds: 1}}
    securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}, readOnlyRootFilesystem: true}}
"
    );
    here.apply(&yaml).await.unwrap();
    until("the example service is ready", PODS_SOON, async || {
        here.kubectl(&["wait", "--for=condition=Ready", "pod/example", "--timeout=10s"]).await
    })
    .await;
    let pod = here.get("pod/example").await.unwrap();
    let url = format!("http://{}:8080/", pod["status"]["podIP"].as_str().unwrap());
    let answer = cluster.inside(move || async move { airlane_tests::client::send("GET", &url, "").await });
    assert_eq!(answer.await.unwrap().json()["service"], "example");
    for program in ["/usr/local/bin/envoy", "/usr/local/bin/airlane-sidecar", "/usr/sbin/nft"] {
        let version = here.exec("example", &[program, "--version"]).await.unwrap();
        assert!(!version.is_empty(), "{program}");
    }
}

#[tokio::test]
async fn the_api_server_comes_back_and_history_can_be_forgotten() {
    let Some(cluster) = Cluster::alone().await else { return };
    let list = cluster.kubectl(&["get", "--raw", "/api/v1/nodes"]).await.unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    // So that there is something newer than that version.
    let here = cluster.namespace("history").await;
    cluster.forget_history().await;
    cluster.restart_apiserver().await;
    let watch = format!("/api/v1/nodes?watch=true&timeoutSeconds=1&resourceVersion={version}");
    until("a watch from an old version is refused", SOON, async || {
        match cluster.kubectl(&["get", "--raw", &watch]).await {
            Ok(events) if events.contains(r#""code":410"#) => Ok(()),
            Ok(events) => Err(events),
            // kubectl ends with the error it was sent.
            Err(error) if error.contains("too old resource version") => Ok(()),
            Err(error) => Err(error),
        }
    })
    .await;
    here.get("serviceaccount/default").await.unwrap();
}

#[tokio::test]
async fn nodes_join_are_lost_and_come_back() {
    let Some(cluster) = Cluster::alone().await else { return };
    cluster.grow(3).await;
    let here = cluster.namespace("nodes").await;
    web(&here, 6).await;
    let pods = here.pods("app=web").await.unwrap();
    let on_the_second = pods.iter().find(|pod| pod["spec"]["nodeName"] == "node2").unwrap();
    let url = format!("http://{}:8080/", on_the_second["status"]["podIP"].as_str().unwrap());
    let call = |url: String| {
        cluster.inside(move || async move { airlane_tests::client::send("GET", &url, "").await })
    };
    assert_eq!(call(url.clone()).await.unwrap().text().trim(), name(on_the_second));
    cluster.lose_node(2).await;
    until("nobody answers on the lost node", SOON, async || match call(url.clone()).await {
        Ok(answer) => Err(answer.to_string()),
        Err(_) => Ok(()),
    })
    .await;
    drop(here);
    drop(cluster);
    let cluster = Cluster::shared().await.unwrap();
    let node = cluster.get("node/node2").await.unwrap();
    let conditions = node["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
    assert_eq!(ready["status"], "True", "{ready}");
}
