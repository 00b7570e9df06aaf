//! `AdmissionReview` (admission.k8s.io/v1), as far as we read and write it.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use json_patch::Patch;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// A UID has 36 characters; it is given back.
const UID_BYTES_MAX: usize = 128;
/// Values in a body. Each may become a structure of a kilobyte when it is read; an object as large as one can be
/// stored has a tenth of this.
const VALUES_MAX: usize = 50_000;
/// The API server cuts a warning that is longer.
const WARNING_CHARS_MAX: usize = 256;
/// Warnings in one answer: nobody reads more.
const WARNINGS_MAX: usize = 10;

/// A body that is no review.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadReview {
    /// Reading it would take more memory than it is worth.
    #[error("the body holds more than {VALUES_MAX} values")]
    Values,
    /// It does not have the shape of one.
    #[error("the body is no {KIND}: {0}")]
    Shape(serde_json::Error),
    /// It is of another version or kind.
    #[error("the body is not of apiVersion {API_VERSION} and kind {KIND}")]
    Version,
    /// It has no request with a UID.
    #[error("request.uid is missing, or longer than {UID_BYTES_MAX} bytes")]
    Uid,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    api_version: String,
    kind: String,
    #[serde(borrow)]
    request: Option<Request<'a>>,
}

/// What the API server asks.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request<'a> {
    pub(super) uid: String,
    pub(super) kind: GroupKind,
    #[serde(default)]
    pub(super) sub_resource: String,
    #[serde(default)]
    pub(super) namespace: String,
    pub(super) operation: String,
    /// Unread, since whose it is may end the matter; `None` when something is deleted.
    #[serde(borrow, default)]
    pub(super) object: Option<&'a RawValue>,
    /// What it was before; `None` when something is created.
    #[serde(borrow, default)]
    pub(super) old_object: Option<&'a RawValue>,
}

/// What kind of object it is about.
#[derive(Deserialize, Debug)]
pub(super) struct GroupKind {
    #[serde(default)]
    pub(super) group: String,
    pub(super) kind: String,
}

/// The request in a body.
pub(super) fn read(body: &[u8]) -> Result<Request<'_>, BadReview> {
    if values(body) > VALUES_MAX {
        return Err(BadReview::Values);
    }
    let review: Review = serde_json::from_slice(body).map_err(BadReview::Shape)?;
    if review.api_version != API_VERSION || review.kind != KIND {
        return Err(BadReview::Version);
    }
    review.request.filter(|request| (1..=UID_BYTES_MAX).contains(&request.uid.len())).ok_or(BadReview::Uid)
}

/// At least as many values as JSON holds: each but the first follows what opens a list or an object, or a comma.
fn values(json: &[u8]) -> usize {
    let (mut values, mut in_text, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            b'{' | b'[' | b',' if !in_text => values += 1,
            _ => {}
        }
    }
    values
}

/// What we say to it.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    verdict: Result<Option<Patch>, String>,
    warnings: Vec<String>,
}

impl Answer {
    /// Let the object be as it is.
    pub(super) fn as_it_is() -> Answer {
        Answer { verdict: Ok(None), warnings: Vec::new() }
    }

    /// Let it be, changed.
    pub(super) fn changed(patch: Patch) -> Answer {
        let patch = Some(patch).filter(|patch| !patch.0.is_empty());
        Answer { verdict: Ok(patch), warnings: Vec::new() }
    }

    /// Do not take it; why, for its author.
    pub(super) fn refused(why: String) -> Answer {
        Answer { verdict: Err(why), warnings: Vec::new() }
    }

    /// The same, with something that its author should know.
    pub(super) fn warning(mut self, warnings: impl IntoIterator<Item = String>) -> Answer {
        self.warnings.extend(warnings);
        self
    }

    /// The review that answers the request with that UID.
    pub(super) fn to_review(&self, uid: &str) -> impl Serialize + use<> {
        let mut response = json!({ "uid": uid, "allowed": self.verdict.is_ok() });
        match &self.verdict {
            Ok(None) => {}
            Ok(Some(patch)) => {
                // Serialising a tree of JSON values cannot fail.
                let patch = serde_json::to_vec(patch).unwrap_or_default();
                response["patchType"] = json!("JSONPatch");
                response["patch"] = json!(BASE64_STANDARD.encode(patch));
            }
            Err(why) => {
                response["status"] = json!({ "code": 422, "reason": "Invalid", "message": why });
            }
        }
        if !self.warnings.is_empty() {
            let shown = self.warnings.iter().take(WARNINGS_MAX);
            response["warnings"] =
                shown.map(|warning| warning.chars().take(WARNING_CHARS_MAX).collect::<String>()).collect();
        }
        json!({ "apiVersion": API_VERSION, "kind": KIND, "response": response })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str, expected: &str) {
        let error = read(body.as_bytes()).expect_err(body).to_string();
        assert!(error.contains(expected), "{body}: {error}");
    }

    #[test]
    fn what_is_no_review_is_named() {
        refused("", "EOF while parsing");
        refused("[]", "invalid length 0");
        refused(r#"{"apiVersion": "admission.k8s.io/v1"}"#, "missing field `kind`");
        refused(
            r#"{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}"#,
            "not of apiVersion",
        );
        refused(r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}"#, "request.uid");
        let request = r#"{"uid": "UID", "kind": {"kind": "Pod"}, "operation": "CREATE"}"#;
        let review = |uid: &str| {
            let request = request.replace("UID", uid);
            format!(
                r#"{{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {request}}}"#
            )
        };
        refused(&review(""), "request.uid");
        refused(&review(&"u".repeat(129)), "request.uid");
        let text = review("u");
        let read = read(text.as_bytes()).expect("a review");
        assert_eq!((read.object.is_none(), read.namespace.as_str()), (true, ""));
        refused(&format!("{}{}", "[".repeat(200), "]".repeat(200)), "");
        refused(&format!("[{}{{}}]", "{},".repeat(VALUES_MAX)), "more than 50000 values");
    }

    #[test]
    fn values_are_counted_outside_of_texts() {
        assert_eq!(values(br#"{"a": [1, 2, {}], "b": "x"}"#), 6);
        assert_eq!(values(br#"["a,b[{", "\\", "\",{", 1]"#), 4);
        assert_eq!(values(br#"7"#), 0);
    }

    #[test]
    fn an_answer_is_a_review() {
        let patch: Patch =
            serde_json::from_value(json!([{ "op": "add", "path": "/a", "value": 1 }])).expect("a patch");
        let changed = Answer::changed(patch.clone()).warning(["w".repeat(300)]);
        let json = serde_json::to_value(changed.to_review("u")).expect("JSON");
        let response = &json["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u"), &json!(true)));
        let written = BASE64_STANDARD.decode(response["patch"].as_str().expect("a text")).expect("base64");
        assert_eq!(serde_json::from_slice::<Patch>(&written).expect("a patch"), patch);
        assert_eq!(response["warnings"][0].as_str().map(str::len), Some(256));

        let json = serde_json::to_value(Answer::refused("no".into()).to_review("u")).expect("JSON");
        assert_eq!(json["response"]["allowed"], false);
        assert_eq!(json["response"]["status"]["message"], "no");
        let json = serde_json::to_value(Answer::changed(Patch(vec![])).to_review("u")).expect("JSON");
        assert_eq!(json["response"], json!({ "uid": "u", "allowed": true }));
    }
}
