//! What became of an object, as its status tells it.

mod canary;
mod mesh_policy;

pub use canary::{CanaryStatus, Evidence, HistoryEntry, Outcomes, Revisions, Traffic};
pub use mesh_policy::{MeshPolicyStatus, Proxies};

use airlane_core::problem::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing that is so, or not, or not known.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is said to be so, as in Ready.
    #[serde(rename = "type")]
    #[schemars(length(max = 63))]
    pub type_: String,
    /// "True", "False" or "Unknown".
    pub status: ConditionStatus,
    /// Why, in one word for machines.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// Why, in a sentence for people.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub message: String,
    /// The generation of the object that it speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When its status changed last. Whoever writes it knows what was written before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40), extend("format" = "date-time"))]
    pub last_transition_time: Option<String>,
}

/// Whether it is so.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "Kubernetes' own three values")]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

/// Something in the object that is not used.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// The path of the field, as in spec.timeouts.request; empty for the whole object.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub field: String,
    /// The kind of problem, for machines.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// What is wrong and what to do.
    #[schemars(length(max = 4096))]
    pub message: String,
}

impl From<&Problem> for FieldProblem {
    fn from(problem: &Problem) -> Self {
        FieldProblem {
            field: problem.field.clone(),
            reason: problem.reason.to_string(),
            message: cut(&problem.message),
        }
    }
}

fn field_problems(problems: &[Problem]) -> Vec<FieldProblem> {
    problems.iter().take(PROBLEMS_MAX).map(FieldProblem::from).collect()
}

/// The most problems told in a status.
const PROBLEMS_MAX: usize = 64;
/// The longest text told in a status, in characters.
const TEXT_MAX: usize = 4096;

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

impl ConditionStatus {
    fn of(truth: bool) -> Self {
        if truth { ConditionStatus::True } else { ConditionStatus::False }
    }
}
