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
    /// Its path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Its headers, all of them.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Its method, one of them.
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
    /// This and nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<UrlPath>,
    /// It begins with these segments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<UrlPath>,
}

/// What a header must be.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.exact), has(self.prefix), has(self.present)].exists_one(given, given)")
    .message("a header is matched in one way; give exactly one of exact, prefix and present"))]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// Its whole value.
    #[schemars(length(max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// How its value begins.
    #[schemars(length(max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Whether it is there at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}
