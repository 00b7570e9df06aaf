//! The status of a `MeshPolicy`.

use super::{Condition, ConditionStatus, FieldProblem, field_problems};
use airlane_core::problem::{Problem, Reason};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of a policy.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct MeshPolicyStatus {
    /// The generation of the policy that the rest speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`: it was understood. `Programmed`: every targeted proxy runs it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// What in the policy is not used as it is written, why, and what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub problems: Vec<FieldProblem>,
    /// How many proxies run the policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxies: Option<Proxies>,
}

/// How many proxies a policy is for and where they are.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// How many proxies the policy is for.
    pub targeted: u32,
    /// How many of them run it.
    pub acknowledged: u32,
    /// How many of them refused it.
    pub rejected: u32,
    /// How many of them have not answered yet.
    pub outdated: u32,
}

impl MeshPolicyStatus {
    /// What to tell of a policy that was understood, with all that is known to be wrong with it.
    pub fn of(generation: i64, problems: &[Problem], proxies: Proxies) -> Self {
        let condition = |type_: &str, truth, reason: &str, message| Condition {
            type_: type_.into(),
            status: ConditionStatus::of(truth),
            reason: reason.into(),
            message,
            observed_generation: Some(generation),
            last_transition_time: None,
        };
        let lost =
            problems.iter().find(|problem| matches!(problem.reason, Reason::Conflicted | Reason::Invalid));
        let accepted = match lost {
            Some(problem) => {
                condition("Accepted", false, &problem.reason.to_string(), super::cut(&problem.message))
            }
            None => condition("Accepted", true, "Accepted", String::new()),
        };
        let Proxies { targeted, acknowledged, rejected, .. } = proxies;
        let (programmed, reason, message) = match (targeted, acknowledged, rejected) {
            (0, _, _) => (true, "NoProxies", "no proxy is concerned".to_string()),
            (_, _, 1..) => (false, "Rejected", format!("{rejected} of {targeted} proxies refused this")),
            (1, 1, _) => (true, "Acknowledged", "the only proxy runs this".to_string()),
            _ if acknowledged >= targeted => {
                (true, "Acknowledged", format!("all {targeted} proxies run this"))
            }
            _ => (false, "Pending", format!("{acknowledged} of {targeted} proxies run this")),
        };
        MeshPolicyStatus {
            observed_generation: Some(generation),
            conditions: vec![accepted, condition("Programmed", programmed, reason, message)],
            problems: field_problems(problems),
            proxies: Some(proxies),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlane_core::id::{Name, Namespace, ObjectId, ObjectKind};

    fn problem(reason: Reason) -> Problem {
        let subject = ObjectId {
            kind: ObjectKind::MeshPolicy,
            namespace: Namespace::parse("shop").expect("a name"),
            name: Name::parse("pay").expect("a name"),
        };
        Problem { subject, field: "spec.retries".into(), reason, message: "because".into() }
    }

    fn check(problems: &[Problem], proxies: [u32; 4], expected: &[&str]) {
        let [targeted, acknowledged, rejected, outdated] = proxies;
        let status =
            MeshPolicyStatus::of(3, problems, Proxies { targeted, acknowledged, rejected, outdated });
        let shown: Vec<String> = status
            .conditions
            .iter()
            .map(|c| format!("{}={:?} {} {}", c.type_, c.status, c.reason, c.message))
            .collect();
        assert_eq!(shown, expected);
        assert_eq!(status.problems.len(), problems.len());
    }

    #[test]
    fn conditions_tell_how_far_a_policy_has_come() {
        let accepted = "Accepted=True Accepted ";
        check(&[], [3, 3, 0, 0], &[accepted, "Programmed=True Acknowledged all 3 proxies run this"]);
        check(&[], [3, 2, 0, 1], &[accepted, "Programmed=False Pending 2 of 3 proxies run this"]);
        check(&[], [3, 2, 1, 0], &[accepted, "Programmed=False Rejected 1 of 3 proxies refused this"]);
        check(&[], [0, 0, 0, 0], &[accepted, "Programmed=True NoProxies no proxy is concerned"]);
        check(
            &[problem(Reason::NotYetSupported)],
            [1, 1, 0, 0],
            &[accepted, "Programmed=True Acknowledged the only proxy runs this"],
        );
        check(
            &[problem(Reason::Conflicted)],
            [1, 1, 0, 0],
            &["Accepted=False Conflicted because", "Programmed=True Acknowledged the only proxy runs this"],
        );
    }
}
