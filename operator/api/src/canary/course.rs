//! What surrounds a release: who sees it, who is asked, when it ends and how it is taken back.

use crate::{mesh_policy::Cookie, name::NameText, quantity::Duration, text::UrlText};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a user stays on one revision.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Affinity {
    /// The cookie by which a user is known again.
    pub cookie: Cookie,
}

/// Hold: it waits for a person. Rollback: it is taken back. Promote: it gets everything.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum OnDeadline {
    Hold,
    Rollback,
    Promote,
}

/// Who is asked on the way. One that does not answer holds the release, and never fails it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// What the status and events call it; once in a canary.
    pub name: NameText,
    /// When it is asked. Start: before the first request. Step: before every step. Promotion: before the last.
    /// Rollback: before it is taken back.
    pub at: GatePoint,
    /// The address that is asked, and how long.
    pub webhook: Webhook,
}

/// Start: before the first request. Step: before every step. Promotion: before the last. Rollback: before it is taken
/// back.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum GatePoint {
    Start,
    Step,
    Promotion,
    Rollback,
}

/// Who answers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// Where it listens, http:// or https://.
    pub url: UrlText,
    /// How long its answer may take, as in 5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// How it is taken back.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OnFailure {
    /// Auto: the workload's template where nobody else owns it, otherwise the traffic. Template: the template.
    /// Traffic: the traffic alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackOf>,
    /// Who is told, by name.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<NameText>,
    /// What becomes of requests that are under way to the canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<InFlight>,
}

/// Auto: the template where nobody else owns it, otherwise the traffic. Template: the workload's template. Traffic: the
/// traffic alone.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum RollbackOf {
    Auto,
    Template,
    Traffic,
}

/// What becomes of requests under way.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InFlight {
    /// How long they may take to end, as in 30s; then they are ended.
    pub finish: Duration,
}

/// Refuse: callers that reach pods past the mesh stop the release. Accept: they are counted, and it goes on.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "explained above, once, for users too")]
pub enum OutsideTraffic {
    Refuse,
    Accept,
}
