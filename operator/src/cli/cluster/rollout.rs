//! How far a workload's pods are those of its template, as the API server has it. Pure.

use crate::observe::kubernetes::owner::Kind;
use serde_json::Value;

/// How far it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// All of them, and all serve.
    Complete,
    /// Not all of them. It is progress when these counts change: of the template, serving, all.
    UnderWay([i64; 3]),
    /// It will never be: why.
    Never(&'static str),
}

/// How far the rollout of a Deployment, StatefulSet or DaemonSet is; as `kubectl rollout status` sees it.
pub(crate) fn standing(kind: Kind, object: &Value) -> Standing {
    let (spec, status) = (&object["spec"], &object["status"]);
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    let strategy = if kind == Kind::Deployment { &spec["strategy"] } else { &spec["updateStrategy"] };
    if strategy["type"] == "OnDelete" {
        return Standing::Never(
            "its update strategy is OnDelete: its pods are replaced when somebody deletes them",
        );
    }
    let (wanted, updated, serving, all) = match kind {
        Kind::DaemonSet => {
            let wanted = count("desiredNumberScheduled");
            (
                wanted,
                count("updatedNumberScheduled"),
                count("numberAvailable"),
                count("currentNumberScheduled"),
            )
        }
        _ => {
            let wanted = spec["replicas"].as_i64().unwrap_or(1);
            (wanted, count("updatedReplicas"), count("availableReplicas"), count("replicas"))
        }
    };
    let seen = count("observedGeneration") >= object["metadata"]["generation"].as_i64().unwrap_or(0);
    let partition = strategy["rollingUpdate"]["partition"].as_i64().unwrap_or(0);
    if kind == Kind::StatefulSet && partition > 0 {
        return Standing::Never("its updateStrategy has a partition, below which no pod is replaced");
    }
    if seen && updated >= wanted && serving >= wanted && all <= wanted.max(updated) {
        Standing::Complete
    } else {
        Standing::UnderWay([updated, serving, all])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(kind: Kind, spec: &Value, status: &Value, expected: &Standing) {
        let object = json!({ "metadata": { "generation": 2 }, "spec": spec, "status": status });
        assert_eq!(standing(kind, &object), *expected, "{kind:?} {spec} {status}");
    }

    #[test]
    fn each_kind_counts_in_its_own_words() {
        let deployment = json!({
            "observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3,
        });
        check(Kind::Deployment, &json!({ "replicas": 2 }), &deployment, &Standing::UnderWay([2, 3, 3]));
        let done =
            json!({ "observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2 });
        check(Kind::Deployment, &json!({ "replicas": 2 }), &done, &Standing::Complete);
        check(Kind::StatefulSet, &json!({ "replicas": 2 }), &done, &Standing::Complete);
        let unseen =
            json!({ "observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2 });
        check(Kind::StatefulSet, &json!({ "replicas": 2 }), &unseen, &Standing::UnderWay([2, 2, 2]));
        let nodes = json!({
            "observedGeneration": 2, "desiredNumberScheduled": 3, "currentNumberScheduled": 3,
            "updatedNumberScheduled": 3, "numberAvailable": 2,
        });
        check(Kind::DaemonSet, &json!({}), &nodes, &Standing::UnderWay([3, 2, 3]));
    }

    #[test]
    fn some_are_never_replaced() {
        for strategy in [json!({ "type": "OnDelete" }), json!({ "rollingUpdate": { "partition": 1 } })] {
            let spec = json!({ "replicas": 2, "updateStrategy": strategy });
            let object = json!({ "metadata": {}, "spec": spec });
            assert!(matches!(standing(Kind::StatefulSet, &object), Standing::Never(_)));
        }
    }
}
