//! The chart, as people install it.

use airlane_tests::{
    binary,
    kube::{AIRLANE_IMAGE, Cluster, TOOLS_IMAGE},
    until::{SOON, until},
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The namespace of the documentation.
const SYSTEM: &str = "airlane-system";
/// Whom RBAC and the admission policies bound.
const ACCOUNT: &str = "system:serviceaccount:airlane-system:airlane";
/// An editor of namespaces.
const EDITOR: &str = "ed";

fn chart() -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/airlane");
    path.to_str().unwrap().to_owned()
}

/// A cluster of the test's own, with the image of this build; what was installed goes with it.
struct Installed {
    cluster: Cluster,
}

impl Installed {
    async fn new() -> Option<Self> {
        let cluster = Cluster::alone().await?;
        cluster.airlane_image().await;
        cluster.without(SYSTEM).await;
        let installed = Installed { cluster };
        installed.helm(&["install", "--create-namespace", "--wait", "--timeout=100s"]).await.unwrap();
        Some(installed)
    }

    /// `helm VERB airlane` of this chart, in the namespace of the documentation.
    async fn helm(&self, arguments: &[&str]) -> Result<String, String> {
        let (verb, more) = arguments.split_first().unwrap();
        let image = format!("image={AIRLANE_IMAGE}");
        let mut helm = self.cluster.command("helm");
        helm.args([verb, "airlane", "--namespace", SYSTEM]);
        if ["install", "upgrade"].contains(verb) {
            helm.args([&chart(), "--set", &image, "--set", "replicas=2"]);
        }
        helm.args(more);
        run(helm).await
    }

    /// A command of ours, against the cluster.
    async fn airlane(&self, line: &str) -> Result<String, String> {
        let mut airlane = self.cluster.command(binary::airlane());
        airlane.args(["--state", "/nowhere"]).args(line.split(' '));
        run(airlane).await
    }

    /// The same, by somebody else.
    async fn airlane_as(&self, user: &str, line: &str) -> Result<String, String> {
        let kubeconfig = std::fs::read_to_string(self.cluster.kubeconfig()).unwrap();
        let (before, after) = kubeconfig.split_once("user: {").unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{before}user: {{as: {user}, {after}")).unwrap();
        let mut airlane = self.cluster.command(binary::airlane());
        airlane.env("KUBECONFIG", file.path()).args(["--state", "/nowhere"]).args(line.split(' '));
        run(airlane).await
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.kubectl(arguments).await
    }

    /// `kubectl apply` of an object in a namespace, as that user.
    async fn apply_as(&self, user: &str, namespace: &str, object: &str) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), object).unwrap();
        let path = file.path().to_str().unwrap();
        self.kubectl(&["apply", "--as", user, "--namespace", namespace, "--filename", path]).await
    }

    /// The failure policy and the roots of the first entry of the webhook's registration, and the registration's
    /// generation.
    async fn registration(&self) -> (String, String, i64) {
        let configuration = self.cluster.get("mutatingwebhookconfiguration/airlane").await.unwrap();
        let entry = &configuration["webhooks"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let generation = configuration["metadata"]["generation"].as_i64().unwrap();
        (text(&entry["failurePolicy"]), text(&entry["clientConfig"]["caBundle"]), generation)
    }

    /// The log lines of the operator's pods.
    async fn logs(&self) -> String {
        let pods = "--selector=app.kubernetes.io/component=operator";
        self.kubectl(&["logs", "--namespace", SYSTEM, pods, "--tail=-1", "--prefix"]).await.unwrap()
    }
}

impl Drop for Installed {
    #[expect(clippy::print_stderr, reason = "what a failed test wants to see")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for what in [
                &["get", "pods,jobs,events"][..],
                &["logs", "--selector=app.kubernetes.io/name=airlane", "--tail=50"],
            ] {
                let output =
                    self.cluster.command("kubectl").args(["--namespace", SYSTEM]).args(what).output();
                let output = output.map(|output| output.stdout).unwrap_or_default();
                eprintln!("--- kubectl {}\n{}", what.join(" "), String::from_utf8_lossy(&output));
            }
        }
        let gone = [
            "helm uninstall airlane --namespace airlane-system --no-hooks",
            "kubectl delete namespace airlane-system --wait=false",
        ];
        for line in gone {
            let mut words = line.split(' ');
            // The test itself may have done it.
            let _ = self.cluster.command(words.next().unwrap()).args(words).output();
        }
    }
}

/// Runs a command to its end.
async fn run(command: Command) -> Result<String, String> {
    let name = format!("{command:?}");
    let output = tokio::process::Command::from(command).output().await.map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() { Ok(out) } else { Err(format!("{name}: {err} {out}")) }
}

fn refused(answer: Result<String, String>, why: &str) {
    let error = answer.unwrap_err();
    assert!(error.contains(why), "refused, but not for {why}: {error}");
}

const POLICY: &str = "
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: {name: strict}
spec: {mtls: {mode: Strict}}
";

#[tokio::test]
async fn the_chart_is_sound() {
    let Some(cluster) = Cluster::shared().await else { return };
    let mut lint = cluster.command("helm");
    lint.args(["lint", "--strict", &chart()]);
    run(lint).await.unwrap();
    let rendered = async |values: &[&str]| {
        let mut template = cluster.command("helm");
        template.args([
            "template",
            "airlane",
            &chart(),
            "--namespace",
            "default",
            "--kube-version",
            "1.34.0",
        ]);
        // The pod of `helm test` needs the account to be there.
        template.arg("--skip-tests");
        template.args(values);
        run(template).await
    };
    for values in [
        &[][..],
        &["--set", "replicas=2,networkPolicy.enabled=false,admissionPolicies.enabled=false"],
        &[
            "--set",
            "imagePullPolicy=Never,imagePullSecrets={a},nodeSelector.a=b,tolerations[0].operator=Exists",
        ],
        &["--set-json", r#"affinity={"nodeAffinity":{}}"#, "--set", "priorityClassName="],
    ] {
        let yaml = rendered(values).await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), yaml).unwrap();
        let path = file.path().to_str().unwrap();
        cluster
            .kubectl(&["apply", "--dry-run=server", "--validate=strict", "--filename", path])
            .await
            .unwrap_or_else(|error| panic!("{values:?}: {error}"));
    }
    refused(rendered(&["--set", "replicas=0"]).await, "/replicas");
    refused(rendered(&["--set", "replica=3"]).await, "replica");
    for refused_by_operator in ["1d", "500h", "25h", "1441m", "86401s", "9s", "0h"] {
        refused(rendered(&["--set", &format!("leafTTL={refused_by_operator}")]).await, "/leafTTL");
    }
    for longest in ["24h", "1440m", "86400s"] {
        rendered(&["--set", &format!("leafTTL={longest}")]).await.unwrap();
    }
}

#[tokio::test]
async fn it_is_installed_upgraded_and_uninstalled() {
    let Some(it) = Installed::new().await else { return };
    let deployment = it.kubectl(&["get", "deployment/airlane", "-n", SYSTEM, "-o", "json"]).await.unwrap();
    let deployment: Value = serde_json::from_str(&deployment).unwrap();
    assert_eq!(deployment["status"]["readyReplicas"], 2);

    until("all is well", SOON, async || it.airlane("check").await).await;
    it.helm(&["test", "--timeout=100s"]).await.unwrap();

    // What the leader writes into the registration, an upgrade leaves there: nobody has to write it again.
    let written = until("the leader has registered the webhook", SOON, async || {
        let (policy, roots, generation) = it.registration().await;
        if policy == "Fail" && !roots.is_empty() {
            Ok(generation)
        } else {
            Err(format!("{policy}, {roots:?}"))
        }
    })
    .await;
    it.helm(&["upgrade", "--set", "log=debug", "--wait", "--timeout=100s"]).await.unwrap();
    assert_eq!(it.registration().await.2, written);

    let logs = it.logs().await;
    assert!(!logs.to_lowercase().contains("forbidden"), "the roles are too small: {logs}");

    // While a pod has a sidecar, the operator stays.
    let shop = it.cluster.namespace("shop").await;
    shop.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: meshed, labels: {{airlane.dev/meshed: 'true', airlane.dev/inject: disabled}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: app, image: {TOOLS_IMAGE}, command: [sleep, '100000']}}]
"
    ))
    .await
    .unwrap();
    refused(it.airlane("uninstall --check").await, &format!("{}: 1", shop.name()));
    refused(it.helm(&["uninstall", "--timeout=100s"]).await, "job airlane-uninstall failed");
    let said = it.kubectl(&["logs", "--namespace", SYSTEM, "job/airlane-uninstall"]).await.unwrap();
    assert!(said.contains(&format!("{}: 1", shop.name())), "{said}");
    it.kubectl(&["get", "deployment/airlane", "--namespace", SYSTEM]).await.unwrap();
    shop.kubectl(&["delete", "pod", "meshed"]).await.unwrap();

    it.helm(&["uninstall", "--wait", "--timeout=100s"]).await.unwrap();
    refused(it.kubectl(&["get", "deployment", "airlane", "--namespace", SYSTEM]).await, "not found");
    refused(it.kubectl(&["get", "mutatingwebhookconfiguration", "airlane"]).await, "not found");
    // Policies outlive the operator.
    it.kubectl(&["get", "crd", "meshpolicies.airlane.dev", "canaries.airlane.dev"]).await.unwrap();

    it.airlane("check --pre").await.unwrap();
    let install = format!("install -- --set image={AIRLANE_IMAGE} --wait --timeout 100s");
    it.airlane(&install).await.unwrap();
    it.kubectl(&["get", "deployment/airlane", "--namespace", SYSTEM]).await.unwrap();
}

const CANARY: &str = "
apiVersion: airlane.dev/v1alpha1
kind: Canary
metadata: {name: pay}
spec: {service: pay, stable: {version: v1}, canary: {version: v2}}
";

#[tokio::test]
async fn commands_find_the_cluster() {
    let Some(it) = Installed::new().await else { return };
    let shop = it.cluster.namespace("shop").await;
    shop.apply(POLICY).await.unwrap();
    shop.apply(CANARY).await.unwrap();
    let pay = format!("{}/pay", shop.name());

    let policies = it.airlane("get policies -o json").await.unwrap();
    let policies: Value = serde_json::from_str(&policies).unwrap();
    let target = format!("namespace {}", shop.name());
    assert_eq!((&policies[0]["name"], &policies[0]["target"]), (&json!("strict"), &json!(target)));
    let canaries = it.airlane("get canaries").await.unwrap();
    assert!(canaries.contains("pay"), "{canaries}");
    it.airlane(&format!("canary pause {pay}")).await.unwrap();
    assert_eq!(shop.get("canaries.airlane.dev/pay").await.unwrap()["spec"]["suspend"], true);
    it.airlane(&format!("canary resume {pay}")).await.unwrap();
    it.airlane(&format!("canary abort {pay}")).await.unwrap();
    let canary = shop.get("canaries.airlane.dev/pay").await.unwrap();
    assert_eq!(canary["spec"]["suspend"], Value::Null);
    assert_eq!(canary["metadata"]["annotations"]["airlane.dev/abort"], "v2");

    // What only the operator knows, its replicas tell whoever may exec into them, and nobody else.
    let services = it.airlane("get services airlane-system/airlane -o json").await.unwrap();
    let services: Value = serde_json::from_str(&services).unwrap();
    // The operator itself is not in the mesh.
    assert_eq!((&services[0]["ready"], &services[0]["mtls"]), (&json!(2), &json!("OFF")), "{services}");
    it.airlane("wait mesh --timeout 20s").await.unwrap();
    let certificates = it.airlane("certs list").await.unwrap();
    assert_eq!(certificates.matches("authority (airlane-").count(), 2, "{certificates}");
    refused(it.airlane("get effective nothing").await, "no service nothing");
    refused(it.airlane("token list").await, "there are no join tokens in a cluster");
    refused(
        it.airlane("--operator-namespace default get proxies").await,
        "no operator runs in namespace default",
    );
    refused(it.airlane_as(EDITOR, "get services").await, "cannot list the operator's pods");
    let bind = ["create", "rolebinding", "viewer", "--clusterrole=view", "--namespace", SYSTEM];
    it.kubectl(&[&bind[..], &[&format!("--user={EDITOR}")]].concat()).await.unwrap();
    refused(it.airlane_as(EDITOR, "get services").await, "pods/exec");

    refused(it.airlane("--context elsewhere get policies").await, "elsewhere");
    let wrong = POLICY
        .replace("name: strict}", "name: lost}")
        .replace("spec: {", "spec: {targetRef: {kind: Service, name: nowhere}, ");
    shop.apply(&wrong).await.unwrap();
    until("check names the policy that is about nothing", SOON, async || match it.airlane("check").await {
        Err(said)
            if said.contains("ok    2 of 2 replicas of the operator serve") && said.contains("/lost") =>
        {
            Ok(())
        }
        said => Err(format!("{said:?}")),
    })
    .await;
    it.airlane("uninstall --check").await.unwrap();
}

#[tokio::test]
async fn nobody_writes_more_than_their_roles_are_for() {
    let Some(it) = Installed::new().await else { return };
    let shop = it.cluster.namespace("shop").await;
    let bind = async |name: &str, namespace: &str, user: &str| {
        let user = format!("--user={user}");
        let role = ["create", "rolebinding", name, "--clusterrole=edit", &user, "--namespace", namespace];
        it.kubectl(&role).await.unwrap();
    };
    bind("editor", shop.name(), EDITOR).await;
    bind("editor", SYSTEM, EDITOR).await;

    // An editor edits policies in a namespace, not what the operator says of them, nor what holds for everybody.
    until("the editor's role has our resources", SOON, async || {
        it.apply_as(EDITOR, shop.name(), POLICY).await
    })
    .await;
    let status = ["--subresource=status", "--type=merge", "--patch", r#"{"status": {"problems": []}}"#];
    let patch = ["patch", "meshpolicy", "strict", "--as", EDITOR, "--namespace", shop.name()];
    refused(it.kubectl(&[&patch[..], &status[..]].concat()).await, "meshpolicies/status");
    refused(it.apply_as(EDITOR, SYSTEM, POLICY).await, "may not \"govern\" them");
    it.cluster
        .apply(&POLICY.replace("name: strict", "name: strict, namespace: airlane-system"))
        .await
        .unwrap();
    let delete = ["delete", "meshpolicy", "strict", "--as", EDITOR, "--namespace", SYSTEM];
    refused(it.kubectl(&delete).await, "may not \"govern\" them");

    // The operator's account is bounded though somebody made it an administrator.
    let user = format!("--user={ACCOUNT}");
    it.kubectl(&["create", "clusterrolebinding", "too-much", "--clusterrole=cluster-admin", &user])
        .await
        .unwrap();
    let as_operator = async |line: &[&str]| it.kubectl(&[line, &["--as", ACCOUNT]].concat()).await;
    let bounds = "the operator has no business with";
    let here = ["--namespace", shop.name()];
    refused(as_operator(&[&["create", "configmap", "other"][..], &here].concat()).await, bounds);
    refused(as_operator(&[&["delete", "meshpolicy", "strict"][..], &here].concat()).await, bounds);
    refused(
        as_operator(&["create", "clusterrolebinding", "more", "--clusterrole=view", &user]).await,
        bounds,
    );
    let widen = r#"[{"op": "replace", "path": "/webhooks/0/rules/0/resources", "value": ["secrets"]}]"#;
    let registration = ["patch", "mutatingwebhookconfiguration", "airlane", "--type=json", "--patch"];
    refused(
        as_operator(&[&registration[..], &[widen]].concat()).await,
        "the operator writes the roots and the failure policy",
    );
    let insist = r#"[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}]"#;
    as_operator(&[&registration[..], &[insist]].concat()).await.unwrap();
    as_operator(&[&["create", "configmap", "airlane-root"][..], &here].concat()).await.unwrap();
    it.kubectl(&["delete", "clusterrolebinding", "too-much"]).await.unwrap();
}
