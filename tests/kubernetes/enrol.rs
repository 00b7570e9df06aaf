//! Running pods that join the mesh and leave it: by their namespace's label alone, and by command.

use super::shop::{SYSTEM, Whole, calls, deployment, service, under_load};
use airlane_tests::{
    kube::{AIRLANE_IMAGE, Namespace, TOOLS_IMAGE},
    until::{SOON, throughout, until},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

/// Whom RBAC and the admission policies bound.
const ACCOUNT: &str = "system:serviceaccount:airlane-system:airlane";
/// A few restarts one after the other, on a machine busy with other things.
const RESTARTS_SOON: Duration = Duration::from_secs(180);
/// What `restarts.ejectAfter` is in these tests.
const EJECT_AFTER: Duration = Duration::from_secs(4);

const LABEL: &str = "airlane.dev/inject";

/// The example service with so many copies, in the mesh or not by its namespace's label.
fn server(app: &str, replicas: u32, more: &[&str]) -> Value {
    let mut server: Value = serde_json::from_str(&deployment(app, "v1", replicas, more)).unwrap();
    server["metadata"]["name"] = json!(app);
    server
}

/// A server that does not serve when it finds a sidecar beside it.
fn allergic(app: &str) -> Value {
    let mut server = server(app, 2, &[]);
    server["spec"]["progressDeadlineSeconds"] = json!(12);
    let container = &mut server["spec"]["template"]["spec"]["containers"][0];
    let serve = "curl -s --max-time 1 -o /dev/null http://127.0.0.1:15020/ready && sleep 100000; \
                 mkdir /www; echo '{}' >/www/healthz; exec httpd -f -p 8080 -h /www";
    container["image"] = json!(TOOLS_IMAGE);
    container["args"] = Value::Null;
    container["command"] = json!(["sh", "-c", serve]);
    container["startupProbe"] = Value::Null;
    container["livenessProbe"] = Value::Null;
    server
}

async fn apply(space: &Namespace<'_>, object: &Value) {
    space.apply(&object.to_string()).await.unwrap();
}

/// A namespace that nobody has labelled, where `front` calls `payments`, which has two copies, for every request.
async fn shop<'a>(whole: &'a Whole, front: &Value) -> Namespace<'a> {
    let shop = whole.cluster.namespace("shop").await;
    for app in ["front", "payments"] {
        service(&shop, app).await;
    }
    apply(&shop, &server("payments", 2, &[])).await;
    apply(&shop, front).await;
    for app in ["front", "payments"] {
        shop.rolled_out(&format!("deployment/{app}")).await;
    }
    calls(&shop, "front", "payments").await;
    shop
}

async fn label(space: &Namespace<'_>, label: &str) -> Result<String, String> {
    space.cluster().kubectl(&["label", "namespace", space.name(), label, "--overwrite"]).await
}

/// The UIDs of an application's pods, and whether each has a sidecar.
async fn pods(space: &Namespace<'_>, app: &str) -> Result<BTreeSet<(String, bool)>, String> {
    let pods = space.pods(&format!("app={app}")).await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let meshed = |pod: &Value| pod["metadata"]["labels"]["airlane.dev/meshed"] == "true";
    Ok(pods.iter().map(|pod| (text(&pod["metadata"]["uid"]), meshed(pod))).collect())
}

/// Waits until the restart of a Deployment is over and all its pods are on that side of the mesh.
async fn is_meshed(space: &Namespace<'_>, app: &str, meshed: bool) {
    until(&format!("{app} is in the mesh: {meshed}"), RESTARTS_SOON, async || {
        let deployment = space.get(&format!("deployment/{app}")).await?;
        let over = deployment["metadata"]["annotations"]["airlane.dev/lastRestart"].is_null();
        let (replicas, ready) = (&deployment["status"]["replicas"], &deployment["status"]["readyReplicas"]);
        let pods = pods(space, app).await?;
        let all = pods.iter().all(|(_, it)| *it == meshed);
        if over && all && replicas == ready {
            Ok(())
        } else {
            Err(format!("{pods:?} {}", deployment["metadata"]))
        }
    })
    .await;
}

/// Waits for an event; gives what it says.
async fn event(space: &Namespace<'_>, reason: &str, about: &str, says: &str) -> String {
    until(&format!("{reason} about {about}"), RESTARTS_SOON, async || {
        let events = space.get("events").await?;
        let events = events["items"].as_array().cloned().unwrap_or_default();
        let told = |event: &&Value| {
            let note = event["message"].as_str().unwrap_or_default();
            event["reason"] == reason && event["involvedObject"]["name"] == about && note.contains(says)
        };
        let found =
            events.iter().find(told).map(|event| event["message"].as_str().unwrap_or_default().to_owned());
        found.ok_or_else(|| {
            let all: Vec<&Value> = events.iter().filter(|event| event["reason"] == reason).collect();
            format!("{all:?}")
        })
    })
    .await
}

fn policy(mode: &str) -> Value {
    json!({
        "apiVersion": "airlane.dev/v1alpha1", "kind": "MeshPolicy", "metadata": { "name": "doors" },
        "spec": { "targetRef": { "kind": "Service", "name": "payments" }, "mtls": { "mode": mode } },
    })
}

fn refused(answer: Result<String, String>, why: &str) {
    let error = answer.unwrap_err();
    assert!(error.contains(why), "refused, but not for {why}: {error}");
}

#[tokio::test]
async fn a_label_brings_running_pods_into_the_mesh_and_its_loss_takes_them_out() {
    let eject_after = format!("restarts.ejectAfter={}s", EJECT_AFTER.as_secs());
    let Some(whole) = Whole::with(&[&eject_after]).await else { return };
    // In the mesh by its own label, so that it stays who it is.
    let mut front = server("front", 1, &["--call", "http://payments/pay"]);
    front["spec"]["template"]["metadata"]["labels"][LABEL] = json!("enabled");
    let shop = shop(&whole, &front).await;
    let unlabel = format!("{LABEL}-");

    let report = under_load(&shop, ("front", "payments"), 100.0, async |_| {
        label(&shop, &format!("{LABEL}=enabled")).await.unwrap();
        is_meshed(&shop, "payments", true).await;
        event(&shop, "Joined", "payments", "all its pods have sidecars").await;

        // A label that is lost for a moment ejects nobody.
        let before = pods(&shop, "payments").await.unwrap();
        label(&shop, &unlabel).await.unwrap();
        until("the loss is noted", SOON, async || {
            let pass = shop.get("rolebinding/airlane-restart").await?;
            let noted = pass["metadata"]["annotations"]["airlane.dev/leftAt"].is_string();
            if noted { Ok(()) } else { Err(pass.to_string()) }
        })
        .await;
        label(&shop, &format!("{LABEL}=enabled")).await.unwrap();
        throughout("nobody is ejected", EJECT_AFTER + Duration::from_secs(2), async || {
            let now = pods(&shop, "payments").await?;
            if now == before { Ok(()) } else { Err(format!("{before:?} → {now:?}")) }
        })
        .await;

        // Nor is one that sidecars are needed for.
        apply(&shop, &policy("Strict")).await;
        let covered = "doors wants mTLS of every caller";
        until("the API server does not let the label go", SOON, async || {
            match label(&shop, &unlabel).await {
                Err(refused) if refused.contains(covered) => Ok(()),
                other => {
                    label(&shop, &format!("{LABEL}=enabled")).await?;
                    Err(format!("{other:?}"))
                }
            }
        })
        .await;
        refused(whole.airlane(&format!("eject {} --yes", shop.name())).await, covered);

        apply(&shop, &policy("Permissive")).await;
        until("the label may go", SOON, async || label(&shop, &unlabel).await).await;
        is_meshed(&shop, "payments", false).await;
        until("the operator gives up its right", SOON, async || {
            match shop.get("rolebinding/airlane-restart").await {
                Err(gone) if gone.contains("not found") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    })
    .await;
    eprintln!("{report}");
    report.assert_nothing_failed(1_000);
    let template = shop.get("deployment/payments").await.unwrap()["spec"]["template"]["metadata"].clone();
    assert!(template["annotations"]["airlane.dev/restartedAt"].is_null(), "as it was: {template}");
}

#[tokio::test]
async fn what_could_break_is_left_alone_and_what_breaks_is_put_back() {
    let Some(whole) = Whole::new().await else { return };
    let guarded = whole.cluster.namespace("guarded").await;
    service(&guarded, "payments").await;
    apply(&guarded, &server("payments", 2, &[])).await;
    let shop = whole.cluster.namespace("shop").await;
    for app in ["allergic", "payments", "single"] {
        service(&shop, app).await;
    }
    apply(&shop, &allergic("allergic")).await;
    apply(&shop, &server("payments", 2, &[])).await;
    apply(&shop, &server("single", 1, &[])).await;
    for app in ["allergic", "payments", "single"] {
        shop.rolled_out(&format!("deployment/{app}")).await;
    }
    guarded.rolled_out("deployment/payments").await;

    // Where pods may not redirect their connections nothing is restarted.
    let before = pods(&guarded, "payments").await.unwrap();
    label(&guarded, "pod-security.kubernetes.io/enforce=baseline").await.unwrap();
    label(&guarded, &format!("{LABEL}=enabled")).await.unwrap();
    event(&guarded, "NotRestarted", "payments", "refuses NET_ADMIN").await;
    event(&guarded, "NotRestarted", guarded.name(), "Deployment/payments").await;

    // The first that breaks is put back, and the rest is not touched.
    let others = (pods(&shop, "payments").await.unwrap(), pods(&shop, "single").await.unwrap());
    label(&shop, &format!("{LABEL}=enabled")).await.unwrap();
    event(&shop, "PutBack", "allergic", "its new pods did not come up").await;
    event(&shop, "Stopped", shop.name(), "Deployment allergic").await;
    event(&shop, "NotRestarted", "payments", "Deployment/allergic was put back").await;
    event(&shop, "NotRestarted", "single", "one replica").await;
    until("it is as it was", RESTARTS_SOON, async || {
        let deployment = shop.get("deployment/allergic").await?;
        let template = &deployment["spec"]["template"]["metadata"]["annotations"]["airlane.dev/restartedAt"];
        let pods = pods(&shop, "allergic").await?;
        let bare = pods.len() == 2 && pods.iter().all(|(_, meshed)| !meshed);
        if template.is_null() && bare && deployment["status"]["readyReplicas"] == 2 {
            Ok(())
        } else {
            Err(format!("{pods:?} {deployment}"))
        }
    })
    .await;
    assert_eq!((pods(&shop, "payments").await.unwrap(), pods(&shop, "single").await.unwrap()), others);
    assert_eq!(pods(&guarded, "payments").await.unwrap(), before);
    // Nor do pods of it break that are created anew.
    shop.kubectl(&["delete", "pods", "--selector=app=allergic", "--wait=false"]).await.unwrap();
    shop.rolled_out("deployment/allergic").await;
    let anew = shop.pods("app=allergic").await.unwrap();
    let why = anew[0]["metadata"]["annotations"]["airlane.dev/notInjected"].as_str().unwrap();
    assert!(why.contains("airlane join"), "{why}");
    refused(whole.airlane("check").await, "Deployment/allergic");

    no_more_than_restarts(&whole, &shop, &guarded).await;

    // People dare more.
    let plan = whole.airlane(&format!("join {} --dry-run", shop.name())).await.unwrap();
    assert!(plan.contains("replace the pod of Deployment/single\n    caution: it has one replica"), "{plan}");
    refused(whole.airlane(&format!("join {}", shop.name())).await, "say --yes");
    for app in ["payments", "single"] {
        whole.airlane(&format!("join {}/deployment/{app} --yes", shop.name())).await.unwrap();
        is_meshed(&shop, app, true).await;
    }
    let again = format!("join {}/deployment/allergic --yes --deadline 5s", shop.name());
    refused(whole.airlane(&again).await, "Deployment/allergic was put back");
    let plan = whole.airlane(&format!("join {} --dry-run", guarded.name())).await.unwrap();
    assert!(plan.contains("leave Deployment/payments as it is") && plan.contains("NET_ADMIN"), "{plan}");
}

/// The operator's account may restart what joins, and nothing else: tried with that account.
async fn no_more_than_restarts(whole: &Whole, shop: &Namespace<'_>, guarded: &Namespace<'_>) {
    let outside = whole.cluster.namespace("outside").await;
    apply(&outside, &server("payments", 0, &[])).await;
    let patch = async |space: &Namespace<'_>, patch: Value| {
        let patch = patch.to_string();
        let line = ["patch", "deployment", "payments", "--type=merge", "--as", ACCOUNT, "--patch", &patch];
        space.kubectl(&line).await
    };
    let annotated = |annotations: Value| json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } });
    refused(
        patch(&outside, annotated(json!({ "airlane.dev/restartedAt": "now" }))).await,
        "cannot patch resource",
    );
    let nothing_else = "and nothing else";
    refused(patch(guarded, annotated(json!({ "other": "now" }))).await, nothing_else);
    refused(patch(guarded, json!({ "spec": { "replicas": 0 } })).await, nothing_else);
    refused(patch(guarded, json!({ "spec": { "paused": true } })).await, nothing_else);
    refused(patch(guarded, json!({ "metadata": { "labels": { "a": "b" } } })).await, nothing_else);
    refused(patch(guarded, json!({ "metadata": { "annotations": { "a": "b" } } })).await, nothing_else);
    refused(
        patch(guarded, json!({ "spec": { "template": { "spec": { "hostNetwork": true } } } })).await,
        nothing_else,
    );
    refused(
        patch(guarded, json!({ "spec": { "template": { "metadata": { "labels": { "a": "b" } } } } })).await,
        nothing_else,
    );

    let thief = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "thief" },
        "spec": { "containers": [{ "name": "app", "image": AIRLANE_IMAGE }] },
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), thief.to_string()).unwrap();
    let create = ["create", "--as", ACCOUNT, "--filename", file.path().to_str().unwrap()];
    refused(shop.kubectl(&create).await, "the operator has no business with");
    shop.kubectl(&[&create[..], &["--dry-run=server"]].concat()).await.unwrap();

    let binding = |role: &str, name: &str, subject: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": subject, "namespace": "airlane-system" }],
        })
    };
    let bind = async |space: &Namespace<'_>, binding: Value| {
        std::fs::write(file.path(), binding.to_string()).unwrap();
        let file = file.path().to_str().unwrap();
        space
            .kubectl(&["apply", "--server-side", "--force-conflicts", "--as", ACCOUNT, "--filename", file])
            .await
    };
    refused(
        bind(&outside, binding("airlane-restart", "airlane-restart", "airlane")).await,
        "labelled airlane.dev/inject",
    );
    refused(
        bind(&outside, binding("edit", "airlane-restart", "airlane")).await,
        "is attempting to grant RBAC permissions",
    );
    refused(bind(shop, binding("airlane-restart", "another", "airlane")).await, "cannot");
    refused(bind(shop, binding("airlane-restart", "airlane-restart", "default")).await, "to itself alone");
}

#[tokio::test]
async fn everything_is_taken_out_before_the_operator_goes() {
    let Some(whole) = Whole::new().await else { return };
    let shop = shop(&whole, &server("front", 2, &["--call", "http://payments/pay"])).await;
    whole.airlane(&format!("join {} --yes", shop.name())).await.unwrap();
    for app in ["front", "payments"] {
        is_meshed(&shop, app, true).await;
    }
    refused(whole.airlane("uninstall --check").await, "pods have sidecars");
    whole.airlane("uninstall --eject --yes").await.unwrap();
    for app in ["front", "payments"] {
        is_meshed(&shop, app, false).await;
    }
    let mut helm = whole.cluster.command("helm");
    helm.args(["uninstall", "airlane", "--namespace", SYSTEM, "--wait", "--timeout=100s"]);
    whole.cluster.run(helm).await.unwrap();
}
