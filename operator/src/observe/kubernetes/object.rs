//! `MeshPolicy` and `Canary` objects, as values.

use crate::{apply::Status, observe::declared::Accepted};
use airlane_api::{Value, read_file, status::CanaryStatus};
use airlane_core::{
    id::{Name, Namespace, ObjectId, ObjectKind},
    problem::{Problem, Reason},
    rollout::Progress,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize as _;
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
}

/// What is kept of an object: nothing if its name is none that Kubernetes would have given.
pub(super) fn written(
    kind: ObjectKind,
    metadata: &ObjectMeta,
    spec: serde_json::Value,
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
    if let Some(Value::Canary(canary)) = &mut value {
        remembered.asked = canary.asked;
        match memory(&status) {
            Ok(progress) => remembered.progress = progress,
            Err(error) => {
                // It is not known how far it was: all traffic to stable, and no judgement as if it were new.
                canary.plan.suspend = true;
                let message = format!(
                    "cannot be read ({error}): the canary is held; delete the Canary and create it again"
                );
                problems.push(problem(&id, "status.memory", message));
            }
        }
    }
    let accepted = Accepted {
        file: None,
        generation: metadata.generation.unwrap_or(0),
        age_rank: metadata.creation_timestamp.as_ref().map_or(0, |created| created.0.as_second()),
        value,
        problems,
        outdated: false,
    };
    Some(Written {
        id,
        accepted: Arc::new(accepted),
        status: remembered,
        kept: Kept {
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            status,
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

/// What an object means, and what is wrong with it.
fn read(
    id: &ObjectId,
    metadata: &ObjectMeta,
    spec: serde_json::Value,
    system_namespace: &Namespace,
) -> (Option<Value>, Vec<Problem>) {
    let manifest = json!({
        "apiVersion": "airlane.dev/v1alpha1",
        "kind": id.kind.to_string(),
        "metadata": { "namespace": id.namespace, "name": id.name, "annotations": metadata.annotations },
        "spec": spec,
    });
    let mut parsed = read_file(&id.to_string(), &manifest.to_string(), system_namespace);
    let mistakes = parsed
        .errors
        .iter()
        .map(|error| problem(id, &error.field, format!("{}; {}", error.message, error.mend)));
    let mut problems: Vec<Problem> = mistakes.collect();
    let value = parsed.objects.pop().and_then(|object| {
        problems.extend(object.problems);
        object.value
    });
    (value, problems)
}

fn problem(id: &ObjectId, field: &str, message: String) -> Problem {
    Problem { subject: id.clone(), field: field.to_owned(), reason: Reason::Invalid, message }
}
