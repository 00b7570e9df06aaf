//! `access`: who may ask for what.

use super::outside::Credential;
use crate::{
    name::{AccountText, NameText, NamespaceText},
    request::{MethodText, PathText},
    schema::NotYet,
    text::{HeaderName, UrlText},
};
use airlane_core::policy;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may ask for what. Every policy that is about a workload must let a request pass.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// What becomes of requests that no rule admits. Deny: they are refused, with 403 or PERMISSION_DENIED. Allow:
    /// they are let in. Deny if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<AccessDefault>,
    /// Enforce: what does not pass is refused. Audit: it is let in, and the operator's log says that it would be
    /// denied. Enforce if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<AccessMode>,
    /// Requests that are let in, whatever default says; one rule is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rules: Vec<AccessRule>,
    /// Tokens that requests must carry, and whose they must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<NotYet<Jwt>>,
}

/// Deny: they are refused. Allow: they are let in.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum AccessDefault {
    Deny,
    Allow,
}

/// Enforce: what does not pass is refused. Audit: it is let in, and told.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum AccessMode {
    Enforce,
    Audit,
}

impl From<AccessMode> for policy::AccessMode {
    fn from(mode: AccessMode) -> Self {
        match mode {
            AccessMode::Enforce => policy::AccessMode::Enforce,
            AccessMode::Audit => policy::AccessMode::Audit,
        }
    }
}

/// Requests that are let in: one of `from` asks for one of `to`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct AccessRule {
    /// What a refusal and the log call it; once in a policy.
    pub name: NameText,
    /// Who; without it: anybody, also who has no identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32))]
    pub from: Vec<AccessFrom>,
    /// What for; without it: anything. Ports that do not speak HTTP have no methods and paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32))]
    pub to: Vec<AccessTo>,
}

/// Callers, by what their certificate says.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.serviceAccount) || has(self.namespace)")
    .message("says nobody; say serviceAccount, namespace or both; to mean anybody leave out from"))]
pub struct AccessFrom {
    /// Their service account; without it: any of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<AccountText>,
    /// Their namespace; without it: the policy's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceText>,
}

/// Requests, by method and path.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = Rule::new("(has(self.methods) && size(self.methods) > 0) || (has(self.paths) && size(self.paths) > 0)")
    .message("asks for nothing; say methods, paths or both; to mean anything leave out to"))]
pub struct AccessTo {
    /// Methods, in upper case; without it: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub methods: Vec<MethodText>,
    /// Paths; one that ends in `*` means all that begin so. Without it: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub paths: Vec<PathText>,
}

/// Tokens that requests must carry.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Jwt {
    /// The `iss` that tokens must have.
    pub issuer: UrlText,
    /// The keys (a JWK set) by which tokens are proved.
    pub jwks: Credential,
    /// The `aud` that tokens must have, one of these; any if not said.
    #[schemars(length(max = 16), inner(length(max = 256)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// Claims of the token that the application is told in headers.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["claim".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims_to_headers: Vec<ClaimToHeader>,
}

/// A claim that the application is told in a header.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClaimToHeader {
    /// The name of the claim, as in sub.
    #[schemars(length(max = 128))]
    pub claim: String,
    /// The header that holds its value.
    pub header: HeaderName,
}
