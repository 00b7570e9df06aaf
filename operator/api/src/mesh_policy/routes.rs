//! `routes`: where requests go, and what is done to them on the way.

use super::{Retries, Timeouts};
use crate::{
    matching::RequestMatch,
    name::{NameText, RevisionText},
    quantity::{Duration, Share},
    text::{HeaderName, HostText, UrlPath},
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One route: the first whose `match` fits takes the request.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.timeouts) || !has(self.timeouts.request) || !has(self.retries) \
        || !has(self.retries.perTryTimeout) || duration(self.retries.perTryTimeout) <= duration(self.timeouts.request)")
    .message(Message::Expression("'perTryTimeout ' + self.retries.perTryTimeout + ' is longer than the request timeout ' \
        + self.timeouts.request + ': the second try can never start; make it shorter'".into()))
    .field_path(".retries.perTryTimeout"))]
pub struct Route {
    /// Its name.
    pub name: NameText,
    /// Which requests; without it: all.
    #[serde(rename = "match", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub matches: Vec<RequestMatch>,
    /// Where they go; without it: where they would go anyway.
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("size(self) == 0 || self.exists(to, !has(to.weight) || to.weight > 0)")
        .message("every weight is 0: nothing would be sent anywhere; write a weight above 0"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Destination>,
    /// How long is waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// What is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// Who gets a copy, whose answer nobody waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// What is broken on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// What the request's path and host become.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// What happens to headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// A part of the service's instances.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Those of one version.
    pub revision: VersionRef,
    /// How many requests, in relation to the other weights; 1 if not said.
    #[schemars(range(min = 0, max = 10_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// One version.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VersionRef {
    /// The version its instances register with.
    pub version: RevisionText,
}

/// Who gets a copy.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Instances of one version.
    pub revision: VersionRef,
    /// Of so many requests; all if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
}

/// What is broken on purpose.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// Requests are kept waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Requests are answered with an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
}

/// Requests are kept waiting.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    /// So many.
    pub share: Share,
    /// So long.
    pub fixed: Duration,
}

/// Requests are answered with an error.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// So many.
    pub share: Share,
    /// With this status.
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
}

/// What the request's path and host become.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Rewrite {
    /// Instead of the prefix that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<UrlPath>,
    /// Instead of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostText>,
}

/// What happens to headers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Headers {
    /// Of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<HeaderEdits>,
    /// Of the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<HeaderEdits>,
}

/// What happens to the headers of one message.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HeaderEdits {
    /// These replace what is there.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<Header>,
    /// These come in addition.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<Header>,
    /// These go.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<HeaderName>,
}

/// A header.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    #[schemars(length(max = 1024))]
    pub value: String,
}
