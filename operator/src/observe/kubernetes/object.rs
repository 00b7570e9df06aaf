//! `MeshPolicy` and `Canary` objects, as values.

use super::shapes::Canary;
use crate::{apply::Status, observe::declared::Accepted};
use airlane_api::{Object, Value, read_object, status::CanaryStatus};
use airlane_core::{
    id::{Name, Namespace, ObjectId, ObjectKind, Revision},
    problem::{Problem, Reason},
    rollout::{Asked, Progress},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;

/// What is kept of an object.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Written {
    pub(super) id: ObjectId,
    pub(super) accepted: Arc<Accepted>,
    /// What a canary's status remembers.
    pub(super) status: Status,
    pub(super) kept: Kept,
}

/// What whoever writes an object's status has to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    /// Tells two objects of one name apart.
    pub(crate) uid: String,
    /// The version that was read.
    pub(crate) resource_version: String,
    /// The status that was read.
    pub(crate) status: serde_json::Value,
    /// The verb that the object's author asks for, carried out or not.
    pub(crate) asked: Option<Asked>,
}

/// What is kept of an object: nothing if its name is none that Kubernetes would have given.
pub(super) fn written(
    kind: ObjectKind,
    metadata: &ObjectMeta,
    spec: &serde_json::Value,
    status: serde_json::Value,
    system_namespace: &Namespace,
) -> Option<Written> {
    let id = ObjectId {
        kind,
        namespace: Namespace::parse(metadata.namespace.as_ref()?).ok()?,
        name: Name::parse(metadata.name.as_ref()?).ok()?,
    };
    let (mut value, mut problems) = read(&id, metadata, spec, system_namespace);
    let mut remembered = Status::default();
    let mut asked = None;
    if let Some(Value::Canary(canary)) = &mut value {
        asked = canary.asked;
        remembered.asked = asked.filter(|asked| !answers(&status, *asked, &canary.plan.canary));
        match memory(&status) {
            Ok(progress) => remembered.progress = progress,
            Err(error) => {
                // It is not known how far it was: all traffic to stable, and no judgement as if it were new.
                const MEND: &str = "delete the Canary and create it again";
                canary.plan.held = Some(format!("status.memory cannot be read; {MEND}"));
                let message = format!("cannot be read ({error}): the canary is held; {MEND}");
                problems.push(problem(&id, "status.memory", message));
            }
        }
    }
    let accepted = Accepted {
        file: None,
        uid: metadata.uid.clone().unwrap_or_default(),
        generation: metadata.generation.unwrap_or(0),
        age_rank: metadata.creation_timestamp.as_ref().map_or(0, |created| created.0.as_second()),
        value,
        problems,
        outdated: false,
        place: None,
    };
    Some(Written {
        id,
        accepted: Arc::new(accepted),
        status: remembered,
        kept: Kept {
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            status,
            asked,
        },
    })
}

/// What the status of a canary remembers; nothing before its first step.
///
/// # Errors
/// If somebody edited it, or it is of a version that cannot be read.
pub(crate) fn memory(status: &serde_json::Value) -> Result<Option<Progress>, serde_json::Error> {
    if status.is_null() { Ok(None) } else { CanaryStatus::deserialize(status)?.progress() }
}

/// A verb that was carried out or refused: the annotation that asks for it may stay, above all where the objects are
/// kept in a repository.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answered {
    /// What was asked.
    pub(crate) verb: Asked,
    /// About which revision.
    pub(crate) canary: Revision,
}

/// Where [`Answered`] stands in a canary's memory.
pub(crate) const ANSWERED: &str = "answered";

fn answers(status: &serde_json::Value, verb: Asked, canary: &Revision) -> bool {
    Answered::deserialize(&status["memory"][ANSWERED])
        .is_ok_and(|answered| answered == Answered { verb, canary: canary.clone() })
}

/// What an object means, and what is wrong with it.
fn read(
    id: &ObjectId,
    metadata: &ObjectMeta,
    spec: &serde_json::Value,
    system_namespace: &Namespace,
) -> (Option<Value>, Vec<Problem>) {
    let manifest = json!({
        "apiVersion": Canary::api_version(&()),
        "kind": id.kind.to_string(),
        "metadata": { "namespace": id.namespace, "name": id.name, "annotations": metadata.annotations },
        "spec": spec,
    });
    let Object { value, mut problems, refused, .. } = read_object(&manifest, system_namespace);
    match refused.and_then(|unread| unread.shut(id)) {
        Some((policy, told)) => {
            problems.extend(told);
            (Some(Value::Policy(policy)), problems)
        }
        None => (value, problems),
    }
}

fn problem(id: &ObjectId, field: &str, message: String) -> Problem {
    Problem { subject: id.clone(), field: field.to_owned(), reason: Reason::Invalid, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlane_api::read_file;
    use airlane_core::policy::MtlsMode;

    const EXAMPLES: &str = include_str!("../../../api/tests/cases/examples-of-the-design.yaml");

    fn system() -> Namespace {
        Namespace::parse("airlane-system").expect("a name")
    }

    fn from_cluster(kind: ObjectKind, manifest: &str, status: serde_json::Value) -> Written {
        let manifest: serde_json::Value = serde_saphyr::from_str(manifest).expect("YAML");
        let mut metadata: ObjectMeta =
            serde_json::from_value(manifest["metadata"].clone()).expect("metadata");
        metadata.namespace.get_or_insert_with(|| "default".to_owned());
        metadata.generation = Some(3);
        written(kind, &metadata, &manifest["spec"], status, &system()).expect("a name")
    }

    #[test]
    fn an_object_means_the_same_in_a_file_and_in_a_cluster() {
        let parsed = read_file("examples.yaml", EXAMPLES, &system());
        assert!(parsed.objects.len() > 2, "there are examples");
        for object in parsed.objects.iter().filter(|object| object.id.kind != ObjectKind::Service) {
            let manifest = object.to_yaml().expect("YAML");
            let written = from_cluster(object.id.kind, &manifest, serde_json::Value::Null);
            assert_eq!(written.id, object.id);
            assert_eq!(written.accepted.value, object.value, "{}", object.id);
            assert_eq!(written.accepted.problems, object.problems, "{}", object.id);
            assert_eq!(written.accepted.generation, 3);
        }
    }

    #[test]
    fn a_door_never_understood_is_shut() {
        let manifest = "{metadata: {name: pay, namespace: shop}, spec: {mtls: {mode: Stric}}}";
        let written = from_cluster(ObjectKind::MeshPolicy, manifest, serde_json::Value::Null);
        let Some(Value::Policy(policy)) = &written.accepted.value else { panic!("a policy") };
        assert_eq!(policy.mtls.as_ref().and_then(|mtls| mtls.mode), Some(MtlsMode::Strict));
        assert_eq!(written.accepted.problems.len(), 2);
        let about_calls = manifest.replace("mtls: {mode: Stric}", "timeouts: {request: ten}");
        let written = from_cluster(ObjectKind::MeshPolicy, &about_calls, serde_json::Value::Null);
        assert_eq!(written.accepted.value, None);
        assert_eq!(written.accepted.problems.len(), 1);
    }

    const CANARY: &str = "{apiVersion: airlane.dev/v1alpha1, kind: Canary, \
        metadata: {name: pay, namespace: shop, annotations: {airlane.dev/abort: v2}}, \
        spec: {service: pay, stable: {version: v1}, canary: {version: v2}}}";

    fn asked(answered: &serde_json::Value) -> Option<Asked> {
        let status = json!({ "memory": { ANSWERED: answered } });
        // The memory is no progress: only what was answered is read here.
        answers(&status, Asked::Abort, &Revision::parse("v2").expect("a name")).then_some(Asked::Abort)
    }

    #[test]
    fn a_verb_that_was_answered_is_not_asked_again() {
        assert_eq!(asked(&json!({ "verb": "Abort", "canary": "v2" })), Some(Asked::Abort));
        for other in [
            json!(null),
            json!({ "verb": "Retry", "canary": "v2" }),
            json!({ "verb": "Abort", "canary": "v1" }),
        ] {
            assert_eq!(asked(&other), None);
        }
        let written = from_cluster(ObjectKind::Canary, CANARY, serde_json::Value::Null);
        assert_eq!((written.status.asked, written.kept.asked), (Some(Asked::Abort), Some(Asked::Abort)));
    }

    #[test]
    fn a_canary_whose_memory_is_broken_is_held() {
        let written = from_cluster(ObjectKind::Canary, CANARY, json!({ "memory": { "phase": "Nowhere" } }));
        let Some(Value::Canary(canary)) = &written.accepted.value else { panic!("a canary") };
        let held = "status.memory cannot be read; delete the Canary and create it again";
        assert_eq!(canary.plan.held.as_deref(), Some(held));
        assert_eq!(written.accepted.problems[0].field, "status.memory");
        assert_eq!(written.status.progress, None);
    }
}
