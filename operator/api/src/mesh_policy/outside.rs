//! `egress` and `telemetry`: what leaves the mesh.

use crate::{
    name::NameText,
    quantity::Share,
    text::{HostText, SecretRef},
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something outside the mesh that is called.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Egress {
    /// Its name, once in a policy.
    pub name: NameText,
    /// The names by which applications call it; *.bank.example is all below bank.example.
    #[schemars(length(min = 1, max = 64))]
    pub hosts: Vec<HostText>,
    /// The port it listens on.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Whether the proxy encrypts, and what it shows; without it: what the application sends is passed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<EgressTls>,
}

/// Who encrypts what goes outside.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.clientCertificate) || (has(self.originate) && self.originate)")
    .message("a certificate is shown by whoever encrypts; write originate: true, or remove clientCertificate")
    .field_path(".clientCertificate"))]
pub struct EgressTls {
    /// true: the proxy begins TLS, and the application calls in plaintext. false: the application encrypts by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub originate: Option<bool>,
    /// The certificate and key that the proxy shows the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<Credential>,
}

/// Something secret.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// A Secret in the policy's namespace.
    pub secret_ref: SecretRef,
}

/// What is told about requests.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// The share of requests of which a trace is begun, as in 1%.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_sampling: Option<Share>,
    /// None: no request is logged. Errors: those that failed. All: every one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// Whether each decision at the door is logged: who was let in, who was refused, and by which rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<bool>,
}

/// None: nothing. Errors: what failed. All: everything.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum AccessLog {
    None,
    Errors,
    All,
}
