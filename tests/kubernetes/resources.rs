//! The definitions on a real API server: what it refuses and how it says so, what it shows, and that it takes all that
//! the docs show. What it refuses for an object's own sake, `airlane check` refuses too.

use airlane_api::status::{CanaryStatus, Condition, ConditionStatus, MeshPolicyStatus, Proxies, Traffic};
use airlane_core::rollout::Phase;
use airlane_tests::{
    binary,
    kube::{Cluster, Namespace},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The cluster with our definitions in it.
async fn cluster() -> Option<Cluster> {
    let cluster = Cluster::shared().await?;
    let folder = repository().join("crds").display().to_string();
    let apply = ["apply", "--server-side", "--force-conflicts", "--filename", &folder];
    cluster.kubectl(&apply).await.unwrap();
    cluster
        .kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "--filename", &folder])
        .await
        .unwrap();
    Some(cluster)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// An object that nobody may take.
struct Bad {
    /// Where the mistake is, as both say it.
    field: String,
    /// One of these is said.
    says: Vec<String>,
}

/// The objects of `operator/api/tests/refused` by the names of their files.
fn bad() -> BTreeMap<String, Bad> {
    let entries = fs::read_dir(repository().join("operator/api/tests/refused")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let noted = |what: &str| {
                text.lines()
                    .filter_map(|line| Some(line.strip_prefix(what)?.trim().to_owned()))
                    .collect::<Vec<_>>()
            };
            let says = noted("# Says:");
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                Bad { field: noted("# Field:").concat(), says },
            )
        })
        .collect()
}

/// Every bad object must be refused in `said`, which is told file by file.
fn check(said: &BTreeMap<String, String>) {
    let bad = bad();
    assert!(bad.len() >= 40, "only {:?}", bad.keys());
    let is_refused = |(name, bad): &(&String, &Bad)| {
        let said = said.get(*name).map(String::as_str).unwrap_or_default();
        said.contains(&bad.field) && bad.says.iter().any(|text| said.contains(text))
    };
    let others: Vec<_> = bad.iter().filter(|bad| !is_refused(bad)).collect();
    let shown: Vec<_> = others
        .iter()
        .map(|(name, bad)| format!("{name}: {}: {:?}\n  but: {:?}", bad.field, bad.says, said.get(*name)))
        .collect();
    assert!(shown.is_empty(), "{}", shown.join("\n"));
}

#[tokio::test]
async fn the_api_server_refuses_bad_objects_and_says_how_to_mend_them() {
    let Some(cluster) = cluster().await else { return };
    let namespace = cluster.namespace("bad").await;
    let folder = repository().join("operator/api/tests/refused").display().to_string();
    let create = ["create", "--dry-run=server", "--validate=strict", "--filename", &folder];
    let said = namespace.kubectl(&create).await.unwrap_err();
    let mut by_file = BTreeMap::<String, String>::new();
    for refusal in said.split("error when creating \"").skip(1) {
        let (path, text) = refusal.split_once('"').unwrap();
        let name = Path::new(path).file_name().unwrap().to_string_lossy().into_owned();
        by_file.entry(name).or_default().push_str(text);
    }
    check(&by_file);
}

/// The rules of the schemas hold without an API server too.
#[test]
fn airlane_check_refuses_the_same_objects() {
    let folder = repository().join("operator/api/tests/refused");
    let output = Command::new(binary::airlane()).arg("check").arg(folder).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let mut by_file = BTreeMap::<String, String>::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some((path, text)) = line.split_once(".yaml:") {
            let name = Path::new(path).file_name().unwrap().to_string_lossy();
            by_file.entry(format!("{name}.yaml")).or_default().push_str(text);
        }
    }
    check(&by_file);
}

/// The blocks of YAML in a text of Markdown.
fn blocks(markdown: &str) -> impl Iterator<Item = &str> {
    markdown.split("```yaml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0))
}

/// All that the docs and the examples show of our kinds, by where it stands.
fn shown() -> Vec<(String, String)> {
    let mut texts = vec![repository().join("README.md")];
    texts.extend(fs::read_dir(repository().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut shown = Vec::new();
    for path in texts.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(&path).unwrap();
        shown.extend(blocks(&text).map(|block| (path.display().to_string(), block.to_owned())));
    }
    let examples = repository().join("operator/api/tests/cases/examples-of-the-design.yaml");
    shown.push((examples.display().to_string(), fs::read_to_string(&examples).unwrap()));
    let documents = shown.into_iter().flat_map(|(from, text)| {
        let documents = format!("\n{text}");
        let documents: Vec<_> =
            documents.split("\n---").map(|document| (from.clone(), document.to_owned())).collect();
        documents
    });
    documents.filter(|(_, document)| document.contains("apiVersion: airlane.dev/")).collect()
}

/// The text with its objects in another namespace.
fn moved(text: &str, namespace: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut parts = text.split("namespace: ");
    let mut moved = parts.next().unwrap_or_default().to_owned();
    for rest in parts {
        moved += &format!("namespace: {namespace}{}", rest.trim_start_matches(word));
    }
    moved
}

/// By the real kubectl, whose YAML is 1.1, with strict validation.
#[tokio::test]
async fn all_that_the_docs_show_is_accepted() {
    let Some(cluster) = cluster().await else { return };
    let namespace = cluster.namespace("docs").await;
    let shown = shown();
    assert!(shown.len() >= 6, "only {} objects were found", shown.len());
    let mut refused = Vec::new();
    for (from, text) in shown {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shown.yaml");
        fs::write(&file, moved(&text, namespace.name())).unwrap();
        let file = file.display().to_string();
        let apply = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename", &file];
        if let Err(why) = namespace.kubectl(&apply).await {
            refused.push(format!("{from}:\n{text}\n{why}"));
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

const POLICY: &str = "apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: pay }
spec: { targetRef: { kind: Service, name: payment }, mtls: { mode: Strict }, timeouts: { request: 10s } }
";

const CANARY: &str = "apiVersion: airlane.dev/v1alpha1
kind: Canary
metadata: { name: pay }
spec: { service: payment, stable: { version: v1 }, canary: { version: v2 } }
";

/// Writes a status as the operator does: by server-side apply, checked strictly.
async fn write_status(namespace: &Namespace<'_>, object: &str, status: Value) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("status.yaml");
    let mut object: Value = serde_saphyr::from_str(object).unwrap();
    object["status"] = status;
    object.as_object_mut().unwrap().remove("spec");
    fs::write(&file, object.to_string()).unwrap();
    let file = file.display().to_string();
    let manager = "--field-manager=airlane";
    let apply =
        ["apply", "--server-side", "--subresource=status", manager, "--validate=strict", "--filename", &file];
    namespace.kubectl(&apply).await.unwrap();
}

/// The lines of a table, their words separated by single blanks.
async fn table(namespace: &Namespace<'_>, arguments: &[&str]) -> Vec<String> {
    let printed = namespace.kubectl(arguments).await.unwrap();
    printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test]
async fn kubectl_shows_what_matters() {
    let Some(cluster) = cluster().await else { return };
    let namespace = cluster.namespace("shown").await;
    namespace.apply(POLICY).await.unwrap();
    namespace.apply(CANARY).await.unwrap();

    let proxies = Proxies { targeted: 3, acknowledged: 3, rejected: 0, outdated: 0 };
    let status = MeshPolicyStatus::of(1, &[], proxies);
    write_status(&namespace, POLICY, serde_json::to_value(status).unwrap()).await;
    let policies = table(&namespace, &["get", "mpol"]).await;
    assert_eq!(policies[0], "NAME TARGET MTLS PROGRAMMED AGE");
    assert!(policies[1].starts_with("pay payment Strict True "), "{policies:?}");
    let wait = ["wait", "--for=condition=Programmed", "--timeout=10s", "meshpolicy/pay"];
    namespace.kubectl(&wait).await.unwrap();

    let ready = Condition {
        type_: "Ready".into(),
        status: ConditionStatus::False,
        reason: "RollingBack".into(),
        message: "errors".into(),
        observed_generation: Some(1),
        last_transition_time: None,
    };
    let status = CanaryStatus {
        observed_generation: Some(1),
        conditions: vec![ready],
        target: Some("payment".into()),
        phase: Some(format!("{:?}", Phase::RollingBack)),
        step: Some(2),
        weight: "5%".parse().ok(),
        traffic: "92%".parse().ok().zip("8%".parse().ok()).map(|(mesh, outside)| Traffic { mesh, outside }),
        because: Some("6 of 94 failed".into()),
        memory: Some(json!({ "anything": [1, { "deep": true }] })),
        ..CanaryStatus::default()
    };
    write_status(&namespace, CANARY, serde_json::to_value(&status).unwrap()).await;
    let canaries = table(&namespace, &["get", "aln-canary"]).await;
    assert_eq!(
        canaries,
        ["NAME TARGET PHASE STEP WEIGHT BECAUSE", "pay payment RollingBack 2 5% 6 of 94 failed"]
    );
    let selector = ["get", "canaries.airlane.dev", "--no-headers", "--field-selector"];
    let selected = |what: &'static str| [&selector[..], &[what]].concat();
    assert_eq!(table(&namespace, &selected("status.phase=RollingBack,spec.service=payment")).await.len(), 1);
    assert_eq!(table(&namespace, &selected("status.phase=Holding")).await, [""; 0]);
    let all = table(&namespace, &["get", "airlane", "--output", "name"]).await;
    assert_eq!(all, ["canary.airlane.dev/pay", "meshpolicy.airlane.dev/pay"]);

    // What was written comes back as it was, the memory included.
    let read = namespace.get("canaries.airlane.dev/pay").await.unwrap();
    assert_eq!(serde_json::from_value::<CanaryStatus>(read["status"].clone()).unwrap(), status);
}

#[tokio::test]
async fn a_canary_stays_with_what_it_is_about() {
    let Some(cluster) = cluster().await else { return };
    let namespace = cluster.namespace("stays").await;
    namespace.apply(CANARY).await.unwrap();
    let why = namespace.apply(&CANARY.replace("service: payment", "service: cart")).await.unwrap_err();
    assert!(why.contains("service cannot change"), "{why}");
    let (before, _) = CANARY.split_once("spec:").unwrap();
    let why = namespace
        .apply(&format!("{before}spec: {{ targetRef: {{ kind: Deployment, name: payment }} }}\n"))
        .await
        .unwrap_err();
    assert!(why.contains("service cannot change"), "{why}");
    namespace.apply(&CANARY.replace("v2", "v3")).await.unwrap();
}

#[tokio::test]
async fn kubectl_explains_the_fields() {
    let Some(cluster) = cluster().await else { return };
    for (field, expected) in [
        ("meshpolicies.spec.retries.perTryTimeout", "The longest one try may take"),
        ("meshpolicies.spec.rateLimits.burst", "How many may come at once after a quiet time"),
        ("meshpolicies.spec.routes", "Not supported yet. Where requests go"),
        ("meshpolicies.status.proxies", "How many proxies run the policy."),
        ("canaries.spec.objectives.errorRate", "A bound on the share of requests that fail"),
        ("canaries.status.needs", "What is missing while it is held."),
    ] {
        let api_version = "--api-version=airlane.dev/v1alpha1";
        let explained = cluster.kubectl(&["explain", api_version, field]).await.unwrap();
        assert!(explained.contains(expected), "{field}: {explained}");
    }
}
