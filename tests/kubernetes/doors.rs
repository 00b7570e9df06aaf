//! Doors of real pods: who comes in, by which service, by which address, and who does not.

use crate::shop::{Whole, deployment, service};
use airlane_tests::{
    kube::{AIRLANE_IMAGE, Namespace, PODS_SOON, TOOLS_IMAGE},
    until::{SOON, until},
};
use serde_json::{Value, json};

/// What an application tells about itself, on a port that no service leads to.
const METRICS: u16 = 9_100;

/// A pod to call from, which runs as `account`.
fn caller(name: &str, account: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "serviceAccountName": account,
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "app", "image": TOOLS_IMAGE, "command": ["sleep", "86400"] }],
        },
    })
}

fn account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } })
}

/// Payments, which serves its figures beside its requests.
fn payments() -> Value {
    let mut deployment: Value = serde_json::from_str(&deployment("payments", "v1", 1, &[])).unwrap();
    let port = METRICS.to_string();
    let figures = ["example-app", "--address", "0.0.0.0", "--port", &port, "--name", "figures"];
    let container = json!({ "name": "figures", "image": AIRLANE_IMAGE, "args": figures });
    let containers = &mut deployment["spec"]["template"]["spec"]["containers"];
    containers.as_array_mut().unwrap().push(container);
    deployment
}

/// What a pod gets: the status, or nothing, and the body.
async fn get(here: &Namespace<'_>, pod: &str, url: &str, host: Option<&str>) -> (Option<u16>, Value) {
    let host = host.map(|host| format!("host: {host}"));
    let host = host.iter().flat_map(|host| ["--header", host]);
    let asked = ["curl", "-s", "--max-time", "10", "--write-out", "\n%{http_code}"].into_iter();
    let asked: Vec<&str> = asked.chain(host).chain([url]).collect();
    let Ok(answer) = here.exec(&format!("pod/{pod}"), &asked).await else { return (None, Value::Null) };
    let (body, status) = answer.trim_end().rsplit_once('\n').unwrap();
    (status.parse().ok().filter(|status| *status != 0), serde_json::from_str(body).unwrap_or(Value::Null))
}

/// Waits until everybody concerned runs what a new policy says.
async fn programmed(here: &Namespace<'_>, policy: &Value) {
    here.apply(&policy.to_string()).await.unwrap();
    let name = format!("meshpolicy/{}", policy["metadata"]["name"].as_str().unwrap());
    let condition = ["wait", &name, "--for=condition=Programmed", "--timeout=5s"];
    until(&format!("{name} is programmed"), SOON, async || here.kubectl(&condition).await).await;
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "airlane.dev/v1alpha1", "kind": "MeshPolicy", "metadata": { "name": name }, "spec": spec })
}

#[tokio::test]
async fn who_comes_in_is_who_may_whatever_the_way() {
    let Some(whole) = Whole::new().await else { return };
    let shop = whole.shop().await;
    let safe = restricted(&whole).await;
    let open = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "open" },
        "spec": { "selector": { "app": "payments" }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
    });
    let outside = json!({ "airlane.dev/inject": "disabled" });
    let objects = [
        account("walker.v2"),
        account("guest"),
        open,
        payments(),
        caller("walker", "walker.v2", &json!({})),
        caller("guest", "guest", &json!({})),
        caller("stranger", "guest", &outside),
    ];
    for object in objects {
        shop.apply(&object.to_string()).await.unwrap();
    }
    shop.rolled_out("deployment/payments-v1").await;
    safe.rolled_out("deployment/vault-v1").await;
    for pod in ["walker", "guest", "stranger"] {
        let ready = ["wait", &format!("pod/{pod}"), "--for=condition=Ready", "--timeout=5s"];
        until(&format!("{pod} is ready"), PODS_SOON, async || shop.kubectl(&ready).await).await;
    }
    let pods = shop.pods("app=payments").await.unwrap();
    let pod = pods[0]["status"]["podIP"].as_str().unwrap().to_owned();
    let service = shop.get("service/payments").await.unwrap();
    let service = service["spec"]["clusterIP"].as_str().unwrap().to_owned();

    let strict =
        json!({ "mtls": { "mode": "Strict", "ports": [{ "port": METRICS, "mode": "Permissive" }] } });
    programmed(&shop, &policy("strict", &strict)).await;
    programmed(&safe, &policy("strict", &json!({ "mtls": { "mode": "Strict" } }))).await;

    by_every_address(&shop, &pod, &service).await;
    a_job_ends(&shop).await;
    told_of_its_proxy(&shop, &safe).await;
    rules(&shop, &pod).await;
}

/// A namespace that refuses capabilities, with a service whose application is told of its proxy.
async fn restricted(whole: &Whole) -> Namespace<'_> {
    let safe = whole.cluster.namespace("safe").await;
    let labels = ["airlane.dev/inject=enabled", "pod-security.kubernetes.io/enforce=restricted"];
    let label = [&["label", "namespace", safe.name()][..], &labels].concat();
    whole.cluster.kubectl(&label).await.unwrap();
    service(&safe, "vault").await;
    let mut vault: Value = serde_json::from_str(&deployment("vault", "v1", 1, &[])).unwrap();
    let template = &mut vault["spec"]["template"];
    template["metadata"]["annotations"] = json!({ "airlane.dev/interception": "Env" });
    let container = &mut template["spec"]["containers"][0];
    container["livenessProbe"] = Value::Null;
    container["securityContext"] = json!({
        "runAsNonRoot": true, "runAsUser": 1000, "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
    });
    safe.apply(&vault.to_string()).await.unwrap();
    safe
}

/// A `Strict` pod answers callers of the mesh by every way to it, and others by none but the port that is excepted.
async fn by_every_address(shop: &Namespace<'_>, pod: &str, service: &str) {
    let walker = format!("spiffe://airlane.local/ns/{}/sa/walker.v2", shop.name());
    let to_pod = format!("http://{pod}:8080/pay");
    let to_service = format!("http://{service}/pay");
    let ways = [
        ("http://payments/pay", None),
        (&to_service, None),
        (&to_service, Some("shop.example")),
        (&to_pod, None),
        (&to_pod, Some("shop.example")),
    ];
    for (url, host) in ways {
        until(&format!("{url} answers to {host:?}"), SOON, async || {
            match get(shop, "walker", url, host).await {
                (Some(200), answer) if answer["caller"] == walker.as_str() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let url = url.replace("payments", service);
        assert_eq!(get(shop, "stranger", &url, host).await.0, None, "{url}");
    }
    let (scraped, figures) = get(shop, "stranger", &format!("http://{pod}:{METRICS}/"), None).await;
    assert_eq!((scraped, &figures["service"]), (Some(200), &json!("figures")), "{figures}");
}

/// A proxy lives no longer than the job beside it.
async fn a_job_ends(shop: &Namespace<'_>) {
    let mut pod = caller("x", "walker.v2", &json!({}))["spec"].take();
    pod["restartPolicy"] = json!("Never");
    pod["containers"][0]["command"] = json!(["curl", "-sSf", "--max-time", "10", "http://payments/pay"]);
    let spec = json!({ "backoffLimit": 0, "template": { "spec": pod } });
    let job =
        json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "once" }, "spec": spec });
    shop.apply(&job.to_string()).await.unwrap();
    let ended = ["wait", "job/once", "--for=condition=Complete", "--timeout=5s"];
    until("the job is complete", PODS_SOON, async || shop.kubectl(&ended).await).await;
    let pods = shop.pods("batch.kubernetes.io/job-name=once").await.unwrap();
    assert_eq!(pods[0]["metadata"]["labels"]["airlane.dev/meshed"], "true", "{}", pods[0]);
    let said = shop.logs("job/once", "app").await.unwrap();
    assert!(said.contains("/sa/walker.v2"), "the call was one of the mesh: {said}");
}

/// The door of an application without interception is as strict as others.
async fn told_of_its_proxy(shop: &Namespace<'_>, safe: &Namespace<'_>) {
    let url = format!("http://vault.{}/", safe.name());
    until("vault answers", SOON, async || match get(shop, "walker", &url, None).await {
        (Some(200), answer) if answer["caller"].as_str().is_some_and(|it| it.ends_with("/sa/walker.v2")) => {
            Ok(())
        }
        other => Err(format!("{other:?}")),
    })
    .await;
    let pods = safe.pods("app=vault").await.unwrap();
    let pod = pods[0]["status"]["podIP"].as_str().unwrap();
    let (status, _) = get(shop, "stranger", &format!("http://{pod}:15040/"), None).await;
    assert_eq!(status, None, "a stranger comes in by the door");
    // Nothing is redirected there, as the documentation says.
    let (status, answer) = get(shop, "stranger", &format!("http://{pod}:8080/"), None).await;
    assert_eq!((status, &answer["caller"]), (Some(200), &Value::Null));
}

/// Every policy about the pod counts, whichever service was called, and a denial names what denied.
async fn rules(shop: &Namespace<'_>, pod: &str) {
    let pay = json!({ "methods": ["GET"], "paths": ["/pay"] });
    let walker =
        json!({ "name": "walker-may-pay", "from": [{ "serviceAccount": "walker.v2" }], "to": [pay] });
    let parent = json!({ "access": { "rules": [walker] } });
    programmed(shop, &policy("parent", &parent)).await;
    // A child that would let everybody in.
    let target = json!({ "kind": "Service", "name": "open" });
    let child =
        json!({ "targetRef": target, "mtls": { "mode": "Permissive" }, "access": { "default": "Allow" } });
    programmed(shop, &policy("child", &child)).await;
    let denied = async |who: &str, url: &str, why: &str| {
        until(&format!("{who} is denied {url}"), SOON, async || {
            let (status, answer) = get(shop, who, url, None).await;
            let details = answer["details"].as_str().unwrap_or_default();
            if status == Some(403)
                && details.contains(&format!("{}/parent", shop.name()))
                && details.contains(why)
            {
                Ok(())
            } else {
                Err(format!("{status:?} {answer}"))
            }
        })
        .await;
    };
    let at_pod = |path: &str| format!("http://{pod}:8080{path}");
    for url in ["http://payments/pay", "http://open/pay", &at_pod("/pay")] {
        assert_eq!(get(shop, "walker", url, None).await.0, Some(200), "{url}");
        denied("guest", url, "no_rule_admits_this").await;
    }
    for url in ["http://payments/refund", "http://open/refund", &at_pod("/refund")] {
        denied("walker", url, "rule_walker-may-pay:_not_this_method_or_path").await;
    }
    // Of two services the stricter mode holds as well.
    assert_eq!(get(shop, "stranger", "http://open/pay", None).await.0, None);
}
