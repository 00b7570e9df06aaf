//! One pod with the containers that the injector adds, against an operator of the test's own.

#[path = "../../sidecar/tests/support/authority.rs"]
#[expect(clippy::expect_used, reason = "a test reports by failing")]
mod authority;
#[path = "../../sidecar/tests/support/operator.rs"]
#[expect(clippy::expect_used, reason = "a test reports by failing")]
mod operator;

use airlane_tests::{
    kube::{Cluster, Namespace, PODS_SOON, TOOLS_IMAGE},
    until::{SOON, until},
};
use airlane_wire::{join::JoinInfo, message::JoinRequest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use operator::{TestOperator, Told};
use serde_json::{Value, json};
use std::net::{IpAddr, TcpListener};

const SECRET: &str = "0123456789abcdef";

/// An Envoy that calls the pod itself, whatever the application calls, and marks both ways.
fn mirror(request: &JoinRequest) -> String {
    let address =
        |host: &str, port: u16| json!({ "socket_address": { "address": host, "port_value": port } });
    let typed = |name: &str, message: &str| json!({ "name": name, "typed_config": { "@type": format!("type.googleapis.com/envoy.extensions.filters.{message}") } });
    let listener = |name: &str, port: u16, cluster: &str| {
        let mut manager = typed(
            "envoy.filters.network.http_connection_manager",
            "network.http_connection_manager.v3.HttpConnectionManager",
        );
        manager["typed_config"]["stat_prefix"] = json!(format!("{name}|8080|plaintext"));
        manager["typed_config"]["http_filters"] =
            json!([typed("envoy.filters.http.router", "http.router.v3.Router")]);
        manager["typed_config"]["route_config"] = json!({
            "response_headers_to_add": [{ "header": { "key": "x-through", "value": name } }],
            "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }],
            }],
        });
        json!({
            "name": name,
            "address": address("0.0.0.0", port),
            "traffic_direction": name.to_uppercase(),
            "listener_filters":
                [typed("envoy.filters.listener.original_dst", "listener.original_dst.v3.OriginalDst")],
            "filter_chains": [{ "filters": [manager] }],
        })
    };
    json!({
        "node": { "id": "pod", "cluster": "pod" },
        "admin": { "address": { "pipe": { "path": request.admin_socket } } },
        "static_resources": {
            "listeners": [listener("outbound", 15001, "oneself"), listener("inbound", 15006, "application")],
            "clusters": [
                { "name": "application", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED" },
                {
                    "name": "oneself",
                    "type": "STATIC",
                    "upstream_bind_config": {
                        // SOL_SOCKET, SO_PRIORITY
                        "socket_options": [{ "level": 1, "name": 12, "int_value": airlane_wire::pod::CALL_PRIORITY }],
                    },
                    "load_assignment": {
                        "cluster_name": "oneself",
                        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(&request.address, 8080) } }] }],
                    },
                },
            ],
        },
    })
    .to_string()
}

/// The pod as the injector makes it of one with a readiness probe on 8080.
fn pod(image: &str, join: &JoinInfo) -> Value {
    let fingerprint: String = join.root_fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    let asks = json!({
        "secret": SECRET,
        "asks": { "app/readiness": { "httpGet": { "path": "/", "port": 8080 }, "timeoutSeconds": 1 } },
    });
    let agent = |path: &str| json!({ "httpGet": { "port": 15020, "path": path } });
    let mut readiness = agent(&format!("/probe/app/readiness/{SECRET}"));
    readiness["periodSeconds"] = json!(1);
    let mut startup = agent("/ready");
    startup["periodSeconds"] = json!(1);
    startup["failureThreshold"] = json!(60);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "pay" },
        "spec": {
            "terminationGracePeriodSeconds": 30,
            "initContainers": [
                {
                    "name": "airlane-init",
                    "image": image,
                    "command": ["airlane-sidecar", "intercept"],
                    "securityContext": {
                        "runAsUser": 0,
                        "readOnlyRootFilesystem": true,
                        "allowPrivilegeEscalation": false,
                        "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
                    },
                },
                {
                    "name": "airlane-proxy",
                    "image": image,
                    "restartPolicy": "Always",
                    "command": ["airlane-sidecar", "pod"],
                    "env": [
                        { "name": "AIRLANE_OPERATOR", "value": join.address },
                        { "name": "AIRLANE_ROOT_SHA256", "value": fingerprint },
                        { "name": "AIRLANE_TRUST_DOMAIN", "value": join.trust_domain },
                        { "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                        { "name": "AIRLANE_PROBES", "value": asks.to_string() },
                    ],
                    "securityContext": {
                        "runAsUser": 1337,
                        "runAsGroup": 1337,
                        "runAsNonRoot": true,
                        "readOnlyRootFilesystem": true,
                        "allowPrivilegeEscalation": false,
                        "capabilities": { "drop": ["ALL"] },
                        "seccompProfile": { "type": "RuntimeDefault" },
                    },
                    "startupProbe": startup,
                    "volumeMounts": [
                        { "name": "token", "mountPath": "/var/run/secrets/airlane.dev", "readOnly": true },
                        { "name": "run", "mountPath": "/run/airlane" },
                    ],
                },
            ],
            "containers": [{
                "name": "app",
                "image": TOOLS_IMAGE,
                "command": ["sh", "-c", "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 8080 -h /www"],
                "readinessProbe": readiness,
                "lifecycle": { "preStop": agent(&format!("/drain/{SECRET}")) },
            }],
            "volumes": [
                { "name": "token", "projected": { "sources": [
                    { "serviceAccountToken": { "audience": "airlane", "expirationSeconds": 3600, "path": "token" } },
                ] } },
                { "name": "run", "emptyDir": { "medium": "Memory" } },
            ],
        },
    })
}

/// The node's address that pods can call.
async fn node_address(cluster: &Cluster) -> IpAddr {
    let node = cluster.get("node/node1").await.unwrap();
    let addresses = node["status"]["addresses"].as_array().unwrap();
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP").unwrap();
    internal["address"].as_str().unwrap().parse().unwrap()
}

/// Which listeners of the pod's Envoy an answer came through.
async fn through(cluster: &Cluster, url: &str) -> Result<Vec<String>, String> {
    let url = url.to_owned();
    let answer = cluster.inside(move || async move { airlane_tests::client::send("GET", &url, "").await });
    Ok(answer
        .await?
        .headers
        .get_all("x-through")
        .iter()
        .map(|value| value.to_str().unwrap().to_owned())
        .collect())
}

async fn told(operator: &TestOperator, what: &str, condition: impl Fn(&Told) -> bool) {
    until(what, PODS_SOON, async || {
        let told = operator.told.borrow();
        if condition(&told) {
            Ok(())
        } else {
            Err(format!("{} joins, {} drains", told.joins.len(), told.drains))
        }
    })
    .await;
}

async fn start(cluster: &Cluster, here: &Namespace<'_>) -> std::sync::Arc<TestOperator> {
    let image = cluster.airlane_image().await;
    let at = node_address(cluster).await;
    let listener = cluster.inside(move || async move { TcpListener::bind((at, 0)).unwrap() }).await;
    listener.set_nonblocking(true).unwrap();
    let (operator, join) =
        TestOperator::start_on(tokio::net::TcpListener::from_std(listener).unwrap(), mirror);
    operator.expect_anybody();
    here.apply(&pod(image, &join).to_string()).await.unwrap();
    until("the pod is ready", PODS_SOON, async || {
        here.kubectl(&["wait", "--for=condition=Ready", "--timeout=1s", "pod/pay"]).await
    })
    .await;
    operator
}

#[tokio::test]
async fn a_pod_lives_in_the_mesh_and_leaves_it_before_it_stops() {
    let Some(cluster) = Cluster::shared().await else { return };
    let here = cluster.namespace("pod").await;
    let operator = start(&cluster, &here).await;

    // It joined by its own token, as its own account.
    let request = operator.told.borrow().joins[0].clone();
    assert_eq!(request.service, "default");
    let claims = BASE64_URL_SAFE_NO_PAD.decode(request.token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["aud"], json!(["airlane"]));
    assert_eq!(claims["kubernetes.io"]["pod"]["name"], "pay");

    // Callers come in through Envoy; the kubelet does not.
    let url = format!("http://{}:8080/", request.address);
    assert_eq!(through(&cluster, &url).await.unwrap(), ["inbound"]);
    let agent = format!("http://{}:15020/ready", request.address);
    assert_eq!(through(&cluster, &agent).await.unwrap(), [""; 0]);
    for port in [15001, 15006] {
        through(&cluster, &format!("http://{}:{port}/", request.address)).await.unwrap_err();
    }

    // Calls leave through Envoy, and a call that ends in the same pod comes in through it.
    let curl =
        async |url: &str| here.exec("pod/pay", &["curl", "-sSi", "--max-time", "10", url]).await.unwrap();
    let answer = curl("http://203.0.113.1/").await;
    assert!(answer.contains("x-through: inbound") && answer.contains("x-through: outbound"), "{answer}");
    assert!(answer.ends_with("hello"), "{answer}");
    assert!(!curl("http://127.0.0.1:8080/").await.contains("x-through"));
    assert!(!curl(&url).await.contains("x-through"), "a pod that calls itself by its address needs nobody");

    // The application serves until callers know that it goes.
    operator.answers_drains.send_replace(false);
    here.kubectl(&["delete", "pod/pay", "--wait=false"]).await.unwrap();
    told(&operator, "the agent asks to be drained", |told| told.drains == 1).await;
    assert_eq!(through(&cluster, &url).await.unwrap(), ["inbound"]);
    operator.answers_drains.send_replace(true);
    told(&operator, "the agent leaves", |told| told.leaves == 1).await;
    until("the pod is gone", SOON, async || match here.get("pod/pay").await {
        Err(_) => Ok(()),
        Ok(_) => Err("it is still there".to_owned()),
    })
    .await;
    assert_eq!(operator.told.borrow().drains, 1);
}
