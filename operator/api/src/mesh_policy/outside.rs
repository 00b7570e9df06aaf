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
    /// Its name.
    pub name: NameText,
    /// The names it is called by.
    #[schemars(length(min = 1, max = 64))]
    pub hosts: Vec<HostText>,
    /// The port it listens to.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Who encrypts.
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
    /// The proxy does; if not, the application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub originate: Option<bool>,
    /// What the proxy shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<Credential>,
}

/// Something secret.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// The Secret it is in.
    pub secret_ref: SecretRef,
}

/// What is told about requests.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// Of so many requests a trace is begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_sampling: Option<Share>,
    /// Which requests are written down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// Whether decisions at the door are written down.
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
