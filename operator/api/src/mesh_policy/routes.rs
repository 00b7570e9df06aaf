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
    /// Its name, once in a policy.
    pub name: NameText,
    /// Which requests: those that fit one of these; without it: all.
    #[serde(rename = "match", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub matches: Vec<RequestMatch>,
    /// The versions they go to, by weight; without it: where they would go anyway.
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("size(self) == 0 || self.exists(to, !has(to.weight) || to.weight > 0)")
        .message("every weight is 0: nothing would be sent anywhere; write a weight above 0"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Destination>,
    /// How long is waited on this route, before what policies say for the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// What is tried again on this route, before what policies say for the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// Who gets a copy of each request. Nobody waits for the answer to a copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// Delays and errors on purpose, to see how callers bear them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// What the path and the host become before the request is sent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// Headers that are set, added or removed on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// A part of the service's instances.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The version that takes them.
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
    /// The version of its instances: in a cluster what their pods' label `version` says, else
    /// `app.kubernetes.io/version`; elsewhere what they register with.
    pub version: RevisionText,
}

/// Who gets a copy.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// The version that gets the copies.
    pub revision: VersionRef,
    /// The share of requests that are copied, as in 10%; all if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
}

/// What is broken on purpose.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// A share of the requests is held back for a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// A share of the requests is answered with an error by the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
}

/// Requests are kept waiting.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    /// The share of requests that are held back, as in 1%.
    pub share: Share,
    /// For how long, as in 2s.
    pub fixed: Duration,
}

/// Requests are answered with an error.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// The share of requests that are answered so, as in 0.5%.
    pub share: Share,
    /// The status of the answer.
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
}

/// What the request's path and host become.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Rewrite {
    /// What stands in the place of the path prefix that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<UrlPath>,
    /// What stands in the place of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostText>,
}

/// What happens to headers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Headers {
    /// Of the request, before it is sent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<HeaderEdits>,
    /// Of the response, before the caller gets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<HeaderEdits>,
}

/// What happens to the headers of one message.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HeaderEdits {
    /// Headers that replace those of the same name.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<Header>,
    /// Headers that come beside those of the same name.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<Header>,
    /// Headers that are taken away.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<HeaderName>,
}

/// A header.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// The header's name, in lower case.
    pub name: HeaderName,
    /// The header's value, as it is sent.
    #[schemars(length(max = 1024))]
    pub value: String,
}
