//! The door of a workload: `mtls`, `protocol`, `rateLimits`.

use crate::{name::NameText, quantity::Duration, text::HeaderName};
use airlane_core::policy;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may come through the door.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Mtls {
    /// For every port. Strict: only callers with a certificate of the mesh. Permissive: sidecars by mTLS, everybody
    /// else in plaintext. Disabled: plaintext only. Permissive if no policy says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<MtlsMode>,
    /// true: nobody below may be weaker than this; for a policy of a namespace or of the mesh. Who asks for less gets
    /// this, and a problem BelowFloor. false if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<bool>,
    /// Other modes for single ports of the application.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["port".into()]))]
    pub ports: Vec<PortMtls>,
}

/// The mode of one port.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct PortMtls {
    /// The port the application listens on, not the one that callers name.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Strict, Permissive or Disabled, as for all ports.
    pub mode: MtlsMode,
}

/// Strict: mTLS only. Permissive: sidecars by mTLS, everybody else in plaintext. Disabled: plaintext only.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum MtlsMode {
    Strict,
    Permissive,
    Disabled,
}

impl From<MtlsMode> for policy::MtlsMode {
    fn from(mode: MtlsMode) -> Self {
        match mode {
            MtlsMode::Strict => policy::MtlsMode::Strict,
            MtlsMode::Permissive => policy::MtlsMode::Permissive,
            MtlsMode::Disabled => policy::MtlsMode::Disabled,
        }
    }
}

/// What is never sniffed.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Protocol {
    /// Ports of the application where the server speaks first, or nobody knows what is spoken: bytes are passed as
    /// they are.
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub opaque_ports: Vec<u16>,
}

/// How many requests are let in.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.header) == (self.per == 'Header')")
    .message("header belongs to per: Header; give both, or neither"))]
pub struct RateLimit {
    /// Its name, once in a policy.
    pub name: NameText,
    /// Whose requests are counted together. ClientIdentity: each caller's, by its certificate. Header: those with the
    /// same value of header. All: everybody's.
    pub per: Per,
    /// With per: Header, the header whose values are counted apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderName>,
    /// How many requests are let in each time that every says.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub requests: u32,
    /// The time in which requests are let in, as in 1s or 1m.
    pub every: Duration,
    /// How many may come at once after a quiet time; as many as `requests` if not said.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Mesh: all proxies count together. Proxy: each counts by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<RateLimitScope>,
}

/// ClientIdentity: each caller by its certificate. Header: each value of a header. All: everybody together.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum Per {
    ClientIdentity,
    Header,
    All,
}

/// Mesh: all proxies together. Proxy: each by itself.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum RateLimitScope {
    Mesh,
    Proxy,
}
