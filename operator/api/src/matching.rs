//! Which requests: what a route and a canary for some of the users ask of them.

use crate::{
    request::MethodText,
    schema::NotYet,
    text::{HeaderName, UrlPath},
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Several of them: a request that fits one fits.
pub type Matches = NotYet<Vec<RequestMatch>>;

/// What a request must be; everything that is said must fit.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RequestMatch {
    /// How its path is, or begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// How its headers are: all of these must fit.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Its method is one of these; any if not said.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<MethodText>,
}

/// What a path must be.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.exact) != has(self.prefix)")
    .message("a path is matched in one way; give exactly one of exact and prefix"))]
pub struct PathMatch {
    /// The whole path, without its query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<UrlPath>,
    /// What the path begins with, in whole segments: /v2 is /v2 and /v2/x, not /v20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<UrlPath>,
}

/// What a header must be.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.exact), has(self.prefix), has(self.present)].exists_one(given, given)")
    .message("a header is matched in one way; give exactly one of exact, prefix and present"))]
pub struct HeaderMatch {
    /// The header's name, in lower case.
    pub name: HeaderName,
    /// The whole value.
    #[schemars(length(max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// What the value begins with.
    #[schemars(length(max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Whether it is there at all, whatever it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}
