//! What is done to workloads, and with whose rights: the operator's in namespaces that joined, a person's by command.
//!
//! Every write names the version that it was made from, so that nobody's change is undone unseen.

use super::{
    decide::Trial,
    record::{Failure, Record, Way},
};
use crate::{
    marks::{
        ENABLED, INJECT, LAST_RESTART, LEFT_AT, MANAGER, MESHED, NOT_INJECTED, OPTED_OUT, RESTARTED_AT, asks,
        of_ours,
    },
    observe::kubernetes::{
        owner::{Kind, Workload},
        workload::{self, PASS, Workloads, read_deployment},
    },
};
use airlane_core::id::Namespace;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::{self as core, Pod},
    rbac::v1::RoleBinding,
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::timeout;

/// The operator's account.
const ACCOUNT: &str = "airlane";
/// How long a name is that the API server makes up, without the end that tells it from others; and that end.
const STEM_MAX: usize = 58;
const MADE_UP: usize = 5;
/// The longest that a call may take.
const CALL: Duration = Duration::from_secs(10);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandsError {
    /// It is not as it was when this was decided.
    #[error("the object has changed meanwhile")]
    Changed,
    /// There is no such object any more.
    #[error("the object is gone")]
    Gone,
    /// It is of a kind that has no pods to replace.
    #[error("pods of a {0:?} cannot be replaced")]
    Kind(Kind),
    /// Somebody else's RoleBinding has the name of ours.
    #[error(
        "RoleBinding {PASS} binds another role, which cannot be changed: delete it, and the operator makes its own"
    )]
    Foreign,
    /// The API server's answer.
    #[error("the API server refused")]
    Api(#[source] kube::Error),
    /// No answer.
    #[error("no answer within {CALL:?}")]
    Slow,
    /// The record has no form in JSON.
    #[error("the record cannot be encoded")]
    Encode(#[from] serde_json::Error),
}

/// Does what was decided.
#[derive(Clone)]
pub(crate) struct Hands {
    client: Client,
    /// Where the operator is.
    system: Namespace,
}

impl Hands {
    /// Does it by the rights of that client, for the operator of that namespace.
    pub(crate) fn new(client: Client, system: Namespace) -> Hands {
        Hands { client, system }
    }

    fn api(&self, namespace: &str, kind: Kind) -> Result<Api<DynamicObject>, HandsError> {
        let resource = match kind {
            Kind::Deployment => ApiResource::erase::<Deployment>(&()),
            Kind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
            Kind::DaemonSet => ApiResource::erase::<DaemonSet>(&()),
            Kind::Job | Kind::Pod | Kind::Other => return Err(HandsError::Kind(kind)),
        };
        Ok(Api::namespaced_with(self.client.clone(), namespace, &resource))
    }

    /// A workload as it is now.
    pub(crate) async fn read(&self, namespace: &str, workload: &Workload) -> Result<Value, HandsError> {
        let api = self.api(namespace, workload.kind)?;
        let found = answered(api.get_opt(&workload.name)).await?;
        Ok(serde_json::to_value(found.ok_or(HandsError::Gone)?)?)
    }

    async fn patch(&self, namespace: &str, workload: &Workload, patch: &Value) -> Result<(), HandsError> {
        let api = self.api(namespace, workload.kind)?;
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        answered(api.patch(&workload.name, &params, &Patch::Merge(patch))).await.map(drop)
    }

    /// Has the API server and all its webhooks look at a pod of a workload, which is never created. `asks`: the pod
    /// itself asks for the mesh, since its namespace does not yet.
    pub(crate) async fn try_pod(
        &self,
        namespace: &str,
        workload: &Workload,
        asks: bool,
    ) -> Result<Trial, HandsError> {
        let object = self.read(namespace, workload).await?;
        let template = &object["spec"]["template"];
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "generateName": format!("{}-", workload.name),
                "labels": template["metadata"]["labels"],
                "annotations": template["metadata"]["annotations"],
            },
            "spec": template["spec"],
        });
        if asks {
            pod["metadata"]["labels"][INJECT] = json!(ENABLED);
        }
        let pod: DynamicObject = serde_json::from_value(pod)?;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<Pod>(&()));
        let params = PostParams { dry_run: true, field_manager: Some(MANAGER.to_owned()) };
        match answered(api.create(&params, &pod)).await {
            Ok(pod) => Ok(trial(&pod.metadata)),
            Err(HandsError::Api(kube::Error::Api(status))) if is_admission(&status) => {
                Ok(Trial::Refused(unnamed(&status.message, &workload.name)))
            }
            Err(error) => Err(error),
        }
    }

    /// Begins to replace the pods of a workload.
    pub(crate) async fn restart(
        &self,
        namespace: &str,
        workload: &Workload,
        way: Way,
        now: Timestamp,
    ) -> Result<Record, HandsError> {
        let object = self.read(namespace, workload).await?;
        self.begin(namespace, workload, &object, way, now).await
    }

    /// Begins to replace the pods of a Deployment of which this was `known` when it was decided, if all of it is still
    /// so, and its namespace still wants it.
    pub(crate) async fn restart_known(
        &self,
        namespace: &str,
        name: &str,
        known: &workload::Deployment,
        way: Way,
        now: Timestamp,
    ) -> Result<Record, HandsError> {
        let namespaces: Api<core::Namespace> = Api::all(self.client.clone());
        let labels = answered(namespaces.get(namespace)).await?.metadata.labels.unwrap_or_default();
        let workload = Workload { kind: Kind::Deployment, name: name.to_owned() };
        let object = self.read(namespace, &workload).await?;
        if asks(&labels) != (way == Way::Join) || read_deployment(&object).as_ref() != Some(known) {
            return Err(HandsError::Changed);
        }
        self.begin(namespace, &workload, &object, way, now).await
    }

    async fn begin(
        &self,
        namespace: &str,
        workload: &Workload,
        object: &Value,
        way: Way,
        now: Timestamp,
    ) -> Result<Record, HandsError> {
        // Somebody else is at it.
        if record(object).is_some_and(|record| record.failed.is_none()) {
            return Err(HandsError::Changed);
        }
        let record = Record::begin(way, restarted_at(object), now);
        self.patch(namespace, workload, &replacing(object, record.after.as_deref(), Some(&record))?).await?;
        Ok(record)
    }

    /// Writes down that a restart did not go well.
    pub(crate) async fn fail(
        &self,
        namespace: &str,
        workload: &Workload,
        because: &str,
        now: Timestamp,
    ) -> Result<(), HandsError> {
        let object = self.read(namespace, workload).await?;
        let record = record(&object).filter(|record| record.failed.is_none()).ok_or(HandsError::Changed)?;
        let failed = Some(Failure { at: now, because: because.to_owned() });
        let record = Record { failed, ..record };
        self.patch(namespace, workload, &remembering(&object, Some(&record))?).await
    }

    /// Puts the template of a workload back that did not come up.
    pub(crate) async fn restore(&self, namespace: &str, workload: &Workload) -> Result<(), HandsError> {
        let object = self.read(namespace, workload).await?;
        let record = record(&object).filter(|record| record.failed.is_some()).ok_or(HandsError::Changed)?;
        if restarted_at(&object) != record.after {
            return Err(HandsError::Changed);
        }
        self.patch(namespace, workload, &replacing(&object, record.before.as_deref(), Some(&record))?).await
    }

    /// Strikes out what is remembered of a workload's restart.
    pub(crate) async fn forget(&self, namespace: &str, workload: &Workload) -> Result<(), HandsError> {
        let object = self.read(namespace, workload).await?;
        if record(&object).is_none() {
            return Ok(());
        }
        self.patch(namespace, workload, &remembering(&object, None)?).await
    }

    /// Strikes out what is remembered of restarts of a namespace that has left: set again, its label is a new beginning.
    pub(crate) async fn forget_all(&self, namespace: &str, workloads: &Workloads) -> Result<(), HandsError> {
        for (name, deployment) in workloads.deployments_of(namespace) {
            if matches!(Record::of(deployment), Ok(Some(_))) {
                let workload = Workload { kind: Kind::Deployment, name: name.to_owned() };
                match self.forget(namespace, &workload).await {
                    Ok(()) | Err(HandsError::Gone) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Has a workload's own template say that its pods stay out of the mesh, whatever their namespace says, by which
    /// they are replaced.
    pub(crate) async fn opt_out(&self, namespace: &str, workload: &Workload) -> Result<(), HandsError> {
        let object = self.read(namespace, workload).await?;
        let mut patch = remembering(&object, None)?;
        patch["spec"] = json!({ "template": { "metadata": { "labels": { INJECT: OPTED_OUT } } } });
        self.patch(namespace, workload, &patch).await
    }

    /// Takes the right to restart workloads of a namespace, or notes on it since when the namespace has left the mesh.
    pub(crate) async fn enter(&self, namespace: &str, left_at: Option<Timestamp>) -> Result<(), HandsError> {
        let annotations: BTreeMap<&str, String> =
            left_at.iter().map(|at| (LEFT_AT, at.to_string())).collect();
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {
                "name": PASS, "annotations": annotations, "labels": of_ours(),
            },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": PASS },
            "subjects": [{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": self.system }],
        });
        let api: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams::apply(MANAGER).force();
        match answered(api.patch(PASS, &params, &Patch::Apply(binding))).await {
            Err(HandsError::Api(kube::Error::Api(status)))
                if status.code == 422 && status.message.contains("roleRef") =>
            {
                Err(HandsError::Foreign)
            }
            done => done.map(drop),
        }
    }

    /// Gives that right back.
    pub(crate) async fn give_up(&self, namespace: &str) -> Result<(), HandsError> {
        let api: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
        match answered(api.delete(PASS, &DeleteParams::default())).await {
            Ok(_) | Err(HandsError::Gone) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl HandsError {
    /// What the API server will say again, until somebody mends it.
    pub(crate) fn refusal(&self) -> Option<String> {
        match self {
            HandsError::Foreign => Some(self.to_string()),
            HandsError::Api(kube::Error::Api(status)) => {
                let lasts = (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 429);
                lasts.then(|| format!("the API server refuses what restarts workloads: {}", status.message))
            }
            _ => None,
        }
    }
}

async fn answered<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, HandsError> {
    match timeout(CALL, call).await.map_err(|_| HandsError::Slow)? {
        Ok(answer) => Ok(answer),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(HandsError::Changed),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(HandsError::Gone),
        Err(error) => Err(HandsError::Api(error)),
    }
}

/// Whether a refusal is about the pod, and not about who asks (that is said of verb and resource) nor about the server.
fn is_admission(status: &kube::core::Status) -> bool {
    let about_us = status.code == 403 && status.message.contains("cannot create resource \"pods\"");
    (400..500).contains(&status.code) && !matches!(status.code, 401 | 408 | 429) && !about_us
}

/// What is said of a pod, without the end of the name that the API server made up for it: the same is told once.
fn unnamed(message: &str, workload: &str) -> String {
    let mut stem = workload.get(..STEM_MAX).unwrap_or(workload).to_owned();
    if stem.len() == workload.len() {
        stem.push('-');
        stem.truncate(STEM_MAX);
    }
    let mut parts = message.split(&stem);
    let mut told = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        told.push_str(&stem);
        let end = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(part.len());
        if end == MADE_UP {
            told.push('…');
        }
        told.push_str(if end == MADE_UP { &part[end..] } else { part });
    }
    told
}

/// What the API server made of a pod that was tried.
fn trial(pod: &kube::core::ObjectMeta) -> Trial {
    let meshed = pod.labels.as_ref().and_then(|labels| labels.get(MESHED));
    if meshed.is_some_and(|value| value == "true") {
        return Trial::Passed;
    }
    let why = pod.annotations.as_ref().and_then(|annotations| annotations.get(NOT_INJECTED));
    Trial::Refused(why.cloned().unwrap_or_else(|| {
        "the webhook gave it no sidecar; `airlane check` says whether the API server reaches it".to_owned()
    }))
}

/// What a workload, as the API server has it, remembers.
pub(crate) fn record(object: &Value) -> Option<Record> {
    serde_json::from_str(object["metadata"]["annotations"][LAST_RESTART].as_str()?).ok()
}

fn restarted_at(object: &Value) -> Option<String> {
    object["spec"]["template"]["metadata"]["annotations"][RESTARTED_AT].as_str().map(str::to_owned)
}

/// A merge patch of that version of a workload: what it remembers.
fn remembering(object: &Value, record: Option<&Record>) -> Result<Value, HandsError> {
    let record = record.map(serde_json::to_string).transpose()?;
    Ok(json!({ "metadata": {
        "resourceVersion": object["metadata"]["resourceVersion"],
        "uid": object["metadata"]["uid"],
        "annotations": { LAST_RESTART: record },
    }}))
}

/// The same, and its template's annotation, by which its pods are replaced.
fn replacing(object: &Value, at: Option<&str>, record: Option<&Record>) -> Result<Value, HandsError> {
    let mut patch = remembering(object, record)?;
    patch["spec"] = json!({ "template": { "metadata": { "annotations": { RESTARTED_AT: at } } } });
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted_api::{client, refusal};
    use http::Method;
    use std::sync::{Arc, Mutex};

    fn pay() -> Workload {
        Workload { kind: Kind::Deployment, name: "pay".to_owned() }
    }

    fn deployment(annotations: &Value, on_template: &Value) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {
                "name": "pay", "namespace": "shop", "uid": "u", "resourceVersion": "7", "annotations": annotations,
            },
            "spec": { "template": {
                "metadata": { "labels": { "app": "pay" }, "annotations": on_template },
                "spec": { "containers": [{ "name": "app" }], "aFieldOfTomorrow": 1 },
            }},
        })
    }

    /// Hands on a cluster with that Deployment, and what is written to it. A pod that is tried gets this answer.
    fn hands(deployment: Value, tried: Option<(u16, Value)>) -> (Hands, Arc<Mutex<Vec<Value>>>) {
        let written = Arc::new(Mutex::new(Vec::new()));
        let writing = Arc::clone(&written);
        let api = client(move |(method, path, body)| {
            if method == Method::GET {
                return Some((200, deployment.clone()));
            }
            writing.lock().expect("not poisoned").push(body);
            if path.ends_with("/pods") { tried.clone() } else { Some((200, deployment.clone())) }
        });
        (Hands::new(api, Namespace::parse("airlane-system").expect("a name")), written)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    const NOW: &str = "2026-01-01T00:00:00Z";

    #[tokio::test]
    async fn a_restart_is_remembered_with_what_it_changes() {
        let (hands, written) = hands(deployment(&json!({}), &json!({})), None);
        let record = hands.restart("shop", &pay(), Way::Join, at(NOW)).await.expect("done");
        let written = written.lock().expect("not poisoned").remove(0);
        assert_eq!(written["metadata"]["resourceVersion"], "7");
        assert_eq!(written["spec"]["template"]["metadata"]["annotations"], json!({ RESTARTED_AT: NOW }));
        let remembered = written["metadata"]["annotations"][LAST_RESTART].as_str().expect("a record");
        assert_eq!(serde_json::from_str::<Record>(remembered).expect("a record"), record);
    }

    #[tokio::test]
    async fn what_changed_since_it_was_decided_is_not_restarted() {
        let known = deployment(&json!({}), &json!({}));
        let restarted = async |label: &str, way: Way, change: fn(&mut Value)| {
            let (mut fresh, written) = (known.clone(), Arc::new(Mutex::new(0)));
            change(&mut fresh);
            let space = json!({ "metadata": { "name": "shop", "labels": { "airlane.dev/inject": label } } });
            let writes = Arc::clone(&written);
            let api = client(move |(method, path, _)| {
                if method != Method::GET {
                    *writes.lock().expect("not poisoned") += 1;
                }
                Some((200, if path == "/api/v1/namespaces/shop" { space.clone() } else { fresh.clone() }))
            });
            let hands = Hands::new(api, Namespace::parse("airlane-system").expect("a name"));
            let known = read_deployment(&known).expect("a Deployment");
            let done = hands.restart_known("shop", "pay", &known, way, at(NOW)).await;
            let unchanged = !matches!(done, Err(HandsError::Changed));
            assert_eq!(unchanged, done.is_ok(), "{done:?}");
            assert_eq!(*written.lock().expect("not poisoned"), u32::from(unchanged));
            unchanged
        };
        assert!(restarted("enabled", Way::Join, |_| {}).await);
        assert!(!restarted("enabled", Way::Leave, |_| {}).await, "the namespace asks again");
        assert!(restarted("no", Way::Leave, |_| {}).await);
        assert!(!restarted("no", Way::Join, |_| {}).await, "the namespace does not ask any more");
        let changes: [fn(&mut Value); 4] = [
            |it| it["metadata"]["uid"] = json!("another"),
            |it| it["spec"]["replicas"] = json!(7),
            |it| it["metadata"]["annotations"]["airlane.dev/restart"] = json!("manual"),
            |it| it["metadata"]["annotations"][LAST_RESTART] = json!("nothing of ours"),
        ];
        for change in changes {
            assert!(!restarted("enabled", Way::Join, change).await);
        }
    }

    #[tokio::test]
    async fn what_failed_is_put_back_once_and_only_if_it_is_still_so() {
        let begun = Record::begin(Way::Join, None, at(NOW));
        let failed = Some(Failure { at: at(NOW), because: "why".to_owned() });
        let failed = Record { failed, ..begun.clone() };
        let text = |record: &Record| json!({ LAST_RESTART: serde_json::to_string(record).expect("JSON") });
        let case = async |record: &Record, on_template: Value| {
            let (hands, written) = hands(deployment(&text(record), &on_template), None);
            let restored = hands.restore("shop", &pay()).await;
            let written = written.lock().expect("not poisoned").pop();
            (restored.is_ok(), written.map(|it| it["spec"]["template"]["metadata"]["annotations"].clone()))
        };
        let back = json!({ RESTARTED_AT: null });
        assert_eq!(case(&failed, json!({ RESTARTED_AT: NOW })).await, (true, Some(back)));
        assert_eq!(case(&failed, json!({})).await, (false, None));
        assert_eq!(case(&begun, json!({ RESTARTED_AT: NOW })).await, (false, None), "nobody gave it up");
        let (hands, written) = hands(deployment(&text(&begun), &json!({ RESTARTED_AT: NOW })), None);
        assert!(matches!(hands.restart("shop", &pay(), Way::Join, at(NOW)).await, Err(HandsError::Changed)));
        assert!(written.lock().expect("not poisoned").is_empty(), "somebody is at it");
    }

    #[tokio::test]
    async fn what_was_put_back_is_forgotten_by_a_namespace_that_left() {
        let failed = Some(Failure { at: at(NOW), because: "why".to_owned() });
        let record = Record { failed, ..Record::begin(Way::Join, None, at(NOW)) };
        let text = json!({ LAST_RESTART: serde_json::to_string(&record).expect("JSON") });
        let object = deployment(&text, &json!({}));
        let (hands, written) = hands(object.clone(), None);
        let known = |object: &Value| read_deployment(object).expect("a Deployment");
        let never_restarted = known(&deployment(&json!({}), &json!({})));
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let deployments = BTreeMap::from([
            (key("bank", "pay"), known(&object)),
            (key("shop", "cart"), never_restarted),
            (key("shop", "pay"), known(&object)),
        ]);
        let workloads = Workloads { deployments, ..Workloads::default() };
        hands.forget_all("shop", &workloads).await.expect("done");
        let written = written.lock().expect("not poisoned");
        assert_eq!(written.len(), 1, "{written:?}");
        assert_eq!(written[0]["metadata"]["annotations"], json!({ LAST_RESTART: null }));
    }

    #[test]
    fn a_made_up_name_is_not_told() {
        let told = |message: &str| unnamed(message, "pay");
        assert_eq!(told("pods \"pay-abc12\" and pay-xy9zz"), "pods \"pay-…\" and pay-…");
        assert_eq!(told("quota pay-team is full, pay- too"), "quota pay-team is full, pay- too");
        let long = "p".repeat(70);
        assert_eq!(unnamed(&format!("{}abc12", &long[..58]), &long), format!("{}…", &long[..58]));
    }

    #[tokio::test]
    async fn a_trial_tells_what_the_api_server_says_of_the_pod_and_not_of_us() {
        let tried = async |answer: Option<(u16, Value)>| {
            let (hands, written) = hands(deployment(&json!({}), &json!({})), answer);
            let trial = hands.try_pod("shop", &pay(), false).await;
            let pod = written.lock().expect("not poisoned").remove(0);
            assert_eq!(pod["spec"]["aFieldOfTomorrow"], 1, "nothing of the template is lost");
            trial
        };
        let pod = |metadata: Value| {
            Some((201, json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {} })))
        };
        let passed = tried(pod(json!({ "labels": { "airlane.dev/meshed": "true" } }))).await;
        assert_eq!(passed.expect("told"), Trial::Passed);
        let unfit = tried(pod(json!({ "annotations": { "airlane.dev/notInjected": "no room" } }))).await;
        assert_eq!(unfit.expect("told"), Trial::Refused("no room".to_owned()));
        assert!(matches!(tried(pod(json!({}))).await.expect("told"), Trial::Refused(_)));
        let quota = refusal(403, "pods \"pay-7xk2p\" is forbidden: exceeded quota");
        let told = "pods \"pay-…\" is forbidden: exceeded quota";
        assert_eq!(tried(quota).await.expect("told"), Trial::Refused(told.to_owned()));
        let rights =
            refusal(403, "pods is forbidden: User \"a\" cannot create resource \"pods\" in API group \"\"");
        assert!(tried(rights).await.is_err());
        assert!(tried(refusal(500, "etcd is away")).await.is_err());
    }
}
