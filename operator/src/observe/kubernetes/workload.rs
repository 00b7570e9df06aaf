//! Workloads: whose pods have a sidecar, and what of a Deployment decides whether its pods may be replaced.

use super::{
    mirror::Key,
    owner::Workload,
    pod::{Copy, Membership},
    shapes,
};
use crate::marks::{INJECT, LEFT_AT, OURS};
use airlane_core::world::Health;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString};
use serde::Deserialize as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The name of the RoleBinding that lets the operator restart workloads of a namespace, and of the ClusterRole that it
/// binds.
pub(crate) const PASS: &str = "airlane-restart";

/// What Kubernetes' defaults are where a Deployment says nothing.
const REPLICAS: u32 = 1;
const PROGRESS_DEADLINE_S: u32 = 600;
const MAX_UNAVAILABLE_PERCENT: u32 = 25;

/// How many of a workload's pods are in the mesh. Those that are about to stop do not count, nor those that have no
/// address yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Crew {
    /// Pods with a sidecar.
    pub(crate) meshed: u32,
    /// Pods without one, but for those that opted out.
    pub(crate) bare: u32,
}

/// What is kept of a Deployment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Deployment {
    /// Tells two of one name apart.
    pub(crate) uid: String,
    /// Its generation.
    pub(crate) generation: i64,
    /// Annotations that are for us: its own.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Annotations that are for us: its template's.
    pub(crate) on_template: BTreeMap<String, String>,
    /// Whether its template itself says that pods join, and how.
    pub(crate) inject: Option<String>,
    /// How many pods it should have.
    pub(crate) replicas: u32,
    /// How many of them may be away while they are replaced; `None`: all of them go before new ones come (Recreate).
    pub(crate) max_unavailable: Option<u32>,
    /// Whether changes of its template wait.
    pub(crate) paused: bool,
    /// After so many seconds without progress Kubernetes calls a rollout failed.
    pub(crate) progress_deadline_s: u32,
    /// How far its pods are those of its template.
    pub(crate) rollout: Rollout,
}

/// How far a Deployment's pods are those of its template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Rollout {
    /// All of them, and all are available.
    Complete {
        /// When Kubernetes found that it is so, if it says.
        since: Option<Timestamp>,
    },
    /// Not all of them yet.
    UnderWay {
        /// When Kubernetes last saw progress.
        progress_at: Option<Timestamp>,
        /// Kubernetes has given up on it.
        exceeded: bool,
    },
}

impl Rollout {
    /// Whether nothing of it is left to do.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(self, Rollout::Complete { .. })
    }
}

/// What the operator holds in a namespace that has joined the mesh: the right to restart its workloads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pass {
    /// Since when the namespace does not ask for the mesh any more.
    pub(crate) left_at: Option<Timestamp>,
}

/// What decides whether running pods are to be replaced so that they join or leave the mesh. Namespaces by name.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Workloads {
    /// Deployments, by namespace and name.
    pub(crate) deployments: BTreeMap<Key, Deployment>,
    /// Whose pods are in the mesh.
    pub(crate) crews: BTreeMap<String, BTreeMap<Workload, Crew>>,
    /// Where the operator may restart workloads.
    pub(crate) passes: BTreeMap<String, Pass>,
    /// Namespaces whose teams restart workloads themselves.
    pub(crate) manual: BTreeSet<String>,
}

impl Workloads {
    /// The Deployments of a namespace, by name.
    pub(crate) fn deployments_of(&self, namespace: &str) -> impl Iterator<Item = (&str, &Deployment)> {
        let from = (namespace.to_owned(), String::new());
        let all = self.deployments.range(from..);
        let here = all.take_while(move |((there, _), _)| there == namespace);
        here.map(|((_, name), deployment)| (name.as_str(), deployment))
    }

    /// A Deployment by namespace and name.
    pub(crate) fn deployment(&self, namespace: &str, name: &str) -> Option<&Deployment> {
        self.deployments.get(&(namespace.to_owned(), name.to_owned()))
    }
}

/// The annotations that are for us.
pub(super) fn ours(metadata: &ObjectMeta) -> BTreeMap<String, String> {
    let all = metadata.annotations.iter().flatten();
    all.filter(|(key, _)| key.starts_with(OURS)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What is kept of a Deployment, from the API server's own words; `None` if they are none of a Deployment.
pub(crate) fn read_deployment(object: &Value) -> Option<Deployment> {
    deployment_of(&shapes::Deployment::deserialize(object).ok()?)
}

/// What is kept of a Deployment.
pub(super) fn deployment_of(deployment: &shapes::Deployment) -> Option<Deployment> {
    let shapes::Deployment { metadata, spec, status } = deployment;
    let replicas = spec.replicas.unwrap_or(REPLICAS);
    let template = &spec.template.metadata;
    let generation = metadata.generation.unwrap_or_default();
    let unavailable = spec.strategy.rolling_update.as_ref().and_then(|it| it.max_unavailable.as_ref());
    let recreates = spec.strategy.type_.as_deref() == Some("Recreate");
    Some(Deployment {
        uid: metadata.uid.clone()?,
        generation,
        annotations: ours(metadata),
        on_template: ours(template),
        inject: template.labels.as_ref().and_then(|labels| labels.get(INJECT)).cloned(),
        replicas,
        max_unavailable: (!recreates).then(|| max_unavailable(unavailable, replicas)),
        paused: spec.paused,
        progress_deadline_s: spec.progress_deadline_seconds.unwrap_or(PROGRESS_DEADLINE_S),
        rollout: rollout(generation, replicas, status),
    })
}

/// A part of the replicas is rounded down, as Kubernetes does.
fn max_unavailable(said: Option<&IntOrString>, replicas: u32) -> u32 {
    let part =
        |percent: u32| u32::try_from(u64::from(replicas) * u64::from(percent) / 100).unwrap_or(replicas);
    match said {
        None => part(MAX_UNAVAILABLE_PERCENT),
        Some(IntOrString::Int(number)) => u32::try_from(*number).unwrap_or(0),
        // What is no percentage Kubernetes does not take; it would be careless to take it for a small one.
        Some(IntOrString::String(text)) => {
            part(text.strip_suffix('%').and_then(|percent| percent.parse().ok()).unwrap_or(100))
        }
    }
}

/// As `kubectl rollout status` sees it.
fn rollout(generation: i64, replicas: u32, status: &shapes::DeploymentStatus) -> Rollout {
    let seen = status.observed_generation >= generation;
    let progressing = status.conditions.iter().find(|condition| condition.type_ == "Progressing");
    let because = |reason: &str| progressing.filter(|it| it.reason.as_deref() == Some(reason));
    let at = |it: &shapes::DeploymentCondition| Some(it.last_update_time.as_ref()?.0);
    if seen
        && status.updated_replicas >= replicas
        && status.replicas <= status.updated_replicas
        && status.available_replicas >= status.updated_replicas
    {
        return Rollout::Complete { since: because("NewReplicaSetAvailable").and_then(at) };
    }
    Rollout::UnderWay {
        progress_at: progressing.and_then(at),
        // What is said of another template is not said of this one.
        exceeded: seen && because("ProgressDeadlineExceeded").is_some_and(|it| it.status == "False"),
    }
}

/// What is kept of a RoleBinding of ours; of one that has our name and binds another role, nothing.
pub(super) fn pass_of(binding: &shapes::RoleBinding) -> Option<Pass> {
    if binding.role_ref.kind != "ClusterRole" || binding.role_ref.name != PASS {
        return None;
    }
    let noted = binding.metadata.annotations.as_ref().and_then(|all| all.get(LEFT_AT));
    Some(Pass { left_at: noted.and_then(|at| at.parse().ok()) })
}

/// Whose pods are in the mesh.
pub(super) fn crews<'a>(
    copies: impl Iterator<Item = (&'a Key, &'a Copy)>,
) -> BTreeMap<String, BTreeMap<Workload, Crew>> {
    let mut crews: BTreeMap<String, BTreeMap<Workload, Crew>> = BTreeMap::new();
    for ((namespace, _), copy) in copies.filter(|(_, copy)| copy.health != Health::Draining) {
        // Names are copied once for each workload, not for each pod.
        if !crews.contains_key(namespace) {
            crews.insert(namespace.clone(), BTreeMap::new());
        }
        let Some(crews) = crews.get_mut(namespace) else { continue };
        if !crews.contains_key(&copy.owner) {
            crews.insert(copy.owner.clone(), Crew::default());
        }
        let Some(crew) = crews.get_mut(&copy.owner) else { continue };
        match copy.membership {
            Membership::Sidecar => crew.meshed += 1,
            Membership::Bare => crew.bare += 1,
            Membership::OptedOut => {}
        }
    }
    crews
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::is_manual;
    use serde_json::json;

    fn deployment(change: impl FnOnce(&mut Value)) -> Deployment {
        let mut deployment = json!({
            "metadata": {
                "name": "pay", "namespace": "shop", "uid": "u", "generation": 3,
                "annotations": { "airlane.dev/restart": "manual", "deployment.kubernetes.io/revision": "1" },
            },
            "spec": {
                "replicas": 4,
                "template": { "metadata": { "annotations": { "airlane.dev/restartedAt": "then" } } },
            },
            "status": {
                "observedGeneration": 3, "replicas": 4, "updatedReplicas": 4, "availableReplicas": 4,
                "conditions": [{
                    "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
                    "lastUpdateTime": "2026-01-01T00:00:00Z",
                }],
            },
        });
        change(&mut deployment);
        read_deployment(&deployment).expect("a Deployment")
    }

    #[test]
    fn of_annotations_those_for_us_are_kept() {
        let kept = deployment(|_| {});
        assert!(is_manual(&kept.annotations));
        assert_eq!((kept.annotations.len(), kept.on_template.len()), (1, 1));
    }

    #[test]
    fn a_binding_of_another_role_is_no_right_of_ours() {
        let bound = |kind: &str, name: &str| {
            let binding = json!({
                "metadata": { "name": PASS, "annotations": { LEFT_AT: "2026-01-01T00:00:00Z" } },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name },
            });
            pass_of(&serde_json::from_value(binding).expect("a RoleBinding"))
        };
        let left_at = Some("2026-01-01T00:00:00Z".parse().expect("a time"));
        assert_eq!(bound("ClusterRole", PASS), Some(Pass { left_at }));
        assert_eq!(bound("ClusterRole", "view"), None);
        assert_eq!(bound("Role", PASS), None);
    }

    #[test]
    fn a_part_of_the_replicas_is_rounded_down() {
        let of = |strategy: Value| deployment(|it| it["spec"]["strategy"] = strategy).max_unavailable;
        assert_eq!(of(json!({})), Some(1));
        assert_eq!(of(json!({ "rollingUpdate": { "maxUnavailable": "30%" } })), Some(1));
        assert_eq!(of(json!({ "rollingUpdate": { "maxUnavailable": 3 } })), Some(3));
        assert_eq!(of(json!({ "rollingUpdate": { "maxUnavailable": "most" } })), Some(4));
        assert_eq!(of(json!({ "type": "Recreate" })), None);
    }

    #[test]
    fn a_rollout_is_complete_when_all_pods_are_the_templates_and_available() {
        let of = |field: &str, value: i64| deployment(|it| it["status"][field] = json!(value)).rollout;
        let at = Some("2026-01-01T00:00:00Z".parse().expect("a time"));
        let exceeded = Rollout::UnderWay { progress_at: at, exceeded: true };
        assert_eq!(of("replicas", 4), Rollout::Complete { since: None });
        let available = deployment(|it| {
            it["status"]["conditions"][0]["status"] = json!("True");
            it["status"]["conditions"][0]["reason"] = json!("NewReplicaSetAvailable");
        });
        assert_eq!(available.rollout, Rollout::Complete { since: at });
        assert_eq!(of("replicas", 5), exceeded, "an old one is still there");
        assert_eq!(of("updatedReplicas", 3), exceeded);
        assert_eq!(of("availableReplicas", 3), exceeded);
        let unseen = Rollout::UnderWay { progress_at: at, exceeded: false };
        assert_eq!(of("observedGeneration", 2), unseen, "what was given up was another template");
    }
}
