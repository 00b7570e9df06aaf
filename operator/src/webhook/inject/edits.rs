//! A patch in the making.

use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, jsonptr::PointerBuf};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Operations on one object, in the order in which they are applied.
pub(super) struct Edits {
    operations: Vec<PatchOperation>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Edits {
    /// No edits of an object with this metadata.
    pub(super) fn new(metadata: &ObjectMeta) -> Edits {
        Edits {
            operations: Vec::new(),
            labels: metadata.labels.clone(),
            annotations: metadata.annotations.clone(),
        }
    }

    /// Sets a field, or puts an item into a list before the one at that index (`-`: at the end).
    pub(super) fn add<'t>(&mut self, path: impl IntoIterator<Item = &'t str>, value: Value) {
        let path = PointerBuf::from_tokens(path);
        self.operations.push(PatchOperation::Add(AddOperation { path, value }));
    }

    /// Removes a field that is there.
    pub(super) fn remove<'t>(&mut self, path: impl IntoIterator<Item = &'t str>) {
        let path = PointerBuf::from_tokens(path);
        self.operations.push(PatchOperation::Remove(RemoveOperation { path }));
    }

    /// Sets a label.
    pub(super) fn label(&mut self, key: &str, value: &str) {
        let operation = mark(&mut self.labels, "labels", key, value);
        self.operations.extend(operation);
    }

    /// Sets an annotation.
    pub(super) fn annotate(&mut self, key: &str, value: &str) {
        let operation = mark(&mut self.annotations, "annotations", key, value);
        self.operations.extend(operation);
    }

    pub(super) fn into_patch(self) -> Patch {
        Patch(self.operations)
    }
}

/// What sets one of an object's labels or annotations, unless it is set.
fn mark(
    present: &mut Option<BTreeMap<String, String>>,
    field: &str,
    key: &str,
    value: &str,
) -> Option<PatchOperation> {
    let (path, added) = match present {
        Some(present) if present.get(key).is_some_and(|present| present == value) => return None,
        Some(_) => (PointerBuf::from_tokens(["metadata", field, key]), json!(value)),
        None => (PointerBuf::from_tokens(["metadata", field]), json!({ key: value })),
    };
    present.get_or_insert_default().insert(key.into(), value.into());
    Some(PatchOperation::Add(AddOperation { path, value: added }))
}
