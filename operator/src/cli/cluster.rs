//! What a cluster's API server knows of the mesh: policies and canaries, and what the operator said of them.

pub(crate) mod check;
pub(crate) mod enrol;
pub(super) mod exec;
pub(super) mod replicas;
mod rollout;

use super::{Wanted, tell};
use crate::{
    args::Where,
    local::view::{CanaryView, PolicyView, Programmed, target},
};
use airlane_api::{
    Value as Meaning,
    canary::{ABORT, Canary, PROMOTE, RETRY},
    mesh_policy::MeshPolicy,
    read_object,
    status::{CanaryStatus, FieldProblem, MeshPolicyStatus},
};
use airlane_core::{
    id::{Namespace, ObjectId},
    mesh::FULL_SHARE,
    problem::{Problem, Reason},
    rollout::{Asked, Phase},
};
use anyhow::{Context, anyhow};
use kube::{
    Api, Client, Config, Resource,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, KubeconfigError},
};
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::io::ErrorKind;

/// Objects asked for at a time.
const PAGE: u32 = 500;

/// A cluster, as whoever the kubeconfig says.
pub(crate) struct Cluster {
    /// Its API server.
    pub(crate) client: Client,
    /// What people call it: where it is, and the context that says so.
    pub(crate) called: String,
    /// The kubeconfig's context; the current one if not said.
    pub(crate) context: Option<String>,
    /// Where the operator is.
    pub(crate) system: Namespace,
}

impl Cluster {
    /// The cluster of that context, else of the current one, else the one this runs in.
    pub(crate) async fn connect(place: &Where) -> anyhow::Result<Cluster> {
        let config = match &place.context {
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..Default::default() };
                Config::from_kubeconfig(&options)
                    .await
                    .with_context(|| format!("context {context} of the kubeconfig"))?
            }
            None => Config::infer().await.map_err(|error| unknown(&error))?,
        };
        let named =
            place.context.as_ref().map_or_else(String::new, |context| format!(" (context {context})"));
        let called = format!("the cluster at {}{named}", config.cluster_url);
        let client = Client::try_from(config).context("the kubeconfig cannot be used")?;
        let system = place.operator_namespace.clone();
        Ok(Cluster { client, called, context: place.context.clone(), system })
    }

    pub(crate) async fn policies(&self, wanted: Option<&Wanted>) -> anyhow::Result<Vec<PolicyView>> {
        let objects = self.list::<MeshPolicy>(wanted).await?;
        Ok(objects.iter().map(|object| policy_view(object, &self.system)).collect())
    }

    pub(crate) async fn canaries(&self, wanted: Option<&Wanted>) -> anyhow::Result<Vec<CanaryView>> {
        let objects = self.list::<Canary>(wanted).await?;
        Ok(objects.iter().map(|object| canary_view(object, &self.system)).collect())
    }

    /// Writes a verb into the object, where the operator finds it: that is also who may say one.
    pub(crate) async fn ask(&self, canary: &CanaryView, asked: Asked) -> anyhow::Result<()> {
        let patch = verb(asked, &canary.canary);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &canary.namespace, &resource::<Canary>());
        api.patch(&canary.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(drop)
            .with_context(|| format!("cannot write Canary {}/{}", canary.namespace, canary.name))
    }

    /// The objects of a kind, or at least those that are wanted. Whoever may not look into all namespaces sees those of
    /// their own.
    async fn list<K>(&self, wanted: Option<&Wanted>) -> anyhow::Result<Vec<Value>>
    where
        K: Resource<DynamicType = ()>,
    {
        let resource = resource::<K>();
        let plural = &resource.plural;
        let in_namespace = |name: &str| Api::namespaced_with(self.client.clone(), name, &resource);
        let namespace = wanted.and_then(|wanted| wanted.namespace.as_deref());
        let api = namespace.map_or_else(|| Api::all_with(self.client.clone(), &resource), in_namespace);
        let listed = match all(&api, wanted).await {
            Err(kube::Error::Api(refused)) if refused.code == 403 && namespace.is_none() => {
                let own = self.client.default_namespace();
                tell(&format!("you may not list {plural} in all namespaces: these are those of {own}"));
                all(&in_namespace(own), wanted).await
            }
            listed => listed,
        };
        listed.with_context(|| {
            format!("cannot list {plural}: is Airlane installed in this cluster, and may you see them?")
        })
    }
}

/// Why no cluster is known. Whoever has no kubeconfig is not told of the pod this is not.
fn unknown(error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
    match error.source().and_then(|source| source.downcast_ref()) {
        Some(KubeconfigError::ReadConfig(source, path)) if source.kind() == ErrorKind::NotFound => {
            anyhow!(
                "no cluster is known: there is no {}; set KUBECONFIG, or choose one with --context",
                path.display()
            )
        }
        Some(error) => anyhow!("no cluster is known: {error}; set KUBECONFIG, or choose one with --context"),
        None => anyhow!("no cluster is known; set KUBECONFIG, or choose one with --context"),
    }
}

/// All objects, or those of the wanted name.
async fn all(api: &Api<DynamicObject>, wanted: Option<&Wanted>) -> Result<Vec<Value>, kube::Error> {
    let mut objects = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    if let Some(Wanted { name, .. }) = wanted {
        page = page.fields(&format!("metadata.name={name}"));
    }
    loop {
        let list = api.list(&page).await?;
        for object in list.items {
            objects.push(serde_json::to_value(object).map_err(kube::Error::SerdeError)?);
        }
        match list.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => page = page.continue_token(&next),
            None => return Ok(objects),
        }
    }
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}

/// A verb as it is written into a canary. Those that end something name the version they are about, so that none acts
/// on the next release.
fn verb(asked: Asked, canary: &str) -> Value {
    let about = |annotation: &str| json!({ "metadata": { "annotations": { annotation: canary } } });
    match asked {
        Asked::Pause => json!({ "spec": { "suspend": true } }),
        Asked::Resume => json!({ "spec": { "suspend": null } }),
        Asked::Promote => about(PROMOTE),
        Asked::Abort => about(ABORT),
        Asked::Retry => about(RETRY),
    }
}

fn policy_view(object: &Value, system: &Namespace) -> PolicyView {
    let read = read_object(object, system);
    let status = MeshPolicyStatus::deserialize(&object["status"]).unwrap_or_default();
    let proxies = status.proxies.unwrap_or_default();
    let generation = object["metadata"]["generation"].as_i64().unwrap_or_default();
    // What was said of an earlier generation is not said of this one.
    let current = status.observed_generation == Some(generation);
    PolicyView {
        namespace: read.id.namespace.to_string(),
        name: read.id.name.to_string(),
        target: match &read.value {
            Some(Meaning::Policy(policy)) => target(&policy.target),
            _ => String::new(),
        },
        file: String::new(),
        generation,
        accepted: read.value.is_some(),
        programmed: if current {
            Programmed { acknowledged: proxies.acknowledged as usize, targeted: proxies.targeted as usize }
        } else {
            Programmed { acknowledged: 0, targeted: (proxies.targeted as usize).max(1) }
        },
        problems: problems(&read.id, read.problems, if current { &status.problems } else { &[] }),
        outdated: false,
    }
}

fn canary_view(object: &Value, system: &Namespace) -> CanaryView {
    let read = read_object(object, system);
    let status = CanaryStatus::deserialize(&object["status"]).unwrap_or_default();
    let progress = status.progress().ok().flatten();
    let plan = match &read.value {
        Some(Meaning::Canary(canary)) => Some(&canary.plan),
        _ => None,
    };
    let steps = plan.map_or(0, |plan| plan.steps.len());
    CanaryView {
        namespace: read.id.namespace.to_string(),
        name: read.id.name.to_string(),
        service: plan.map_or_else(String::new, |plan| plan.service.to_string()),
        stable: plan.map_or_else(String::new, |plan| plan.stable.to_string()),
        canary: plan.map_or_else(String::new, |plan| plan.canary.to_string()),
        phase: progress.as_ref().map_or(Phase::Idle, |progress| progress.phase),
        step: match &progress {
            Some(progress) => format!("{}/{steps}", progress.step + 1),
            None => format!("-/{steps}"),
        },
        share_percent: progress
            .as_ref()
            .map_or(0.0, |progress| 100.0 * f64::from(progress.share) / f64::from(FULL_SHARE)),
        because: status.because.clone().unwrap_or_default(),
        needs: status.needs.clone(),
        progress,
        problems: problems(&read.id, read.problems, &status.problems),
        outdated: false,
    }
}

/// What is wrong with an object: what its reader finds here and now, and what the operator said.
fn problems(id: &ObjectId, read: Vec<Problem>, said: &[FieldProblem]) -> Vec<Problem> {
    let mut problems = read;
    for FieldProblem { field, reason, message } in said {
        let known = problems.iter().any(|problem| problem.field == *field && problem.message == *message);
        if !known {
            let reason = Reason::deserialize(Value::String(reason.clone())).unwrap_or(Reason::Invalid);
            let (field, message) = (field.clone(), message.clone());
            problems.push(Problem { subject: id.clone(), field, reason, message });
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted_api;

    fn system() -> Namespace {
        Namespace::parse("airlane-system").expect("a name")
    }

    fn policy(generation: i64) -> Value {
        json!({
            "apiVersion": "airlane.dev/v1alpha1", "kind": "MeshPolicy",
            "metadata": { "name": "quick", "namespace": "shop", "generation": generation, "uid": "u" },
            "spec": { "targetRef": { "kind": "Service", "name": "pay" }, "timeouts": { "request": "10s" } },
            "status": {
                "observedGeneration": 1,
                "problems": [{ "field": "spec.targetRef", "reason": "Invalid", "message": "no such service" }],
                "proxies": { "targeted": 3, "acknowledged": 3, "rejected": 0, "outdated": 0 },
            },
        })
    }

    /// The names of the policies that somebody sees who may look into these namespaces alone.
    async fn seen(wanted: Option<&str>, mine: &'static [&'static str]) -> Result<Vec<String>, String> {
        let client = scripted_api::client(move |(_, path, _)| {
            let allowed = mine.iter().any(|namespace| path.contains(&format!("/namespaces/{namespace}/")));
            let list = json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": [policy(1)] });
            if allowed { Some((200, list)) } else { scripted_api::refusal(403, "Forbidden") }
        });
        let cluster = Cluster { client, called: "a test".into(), context: None, system: system() };
        let wanted = wanted.map(Wanted::parse).transpose().expect("a name");
        let policies = cluster.policies(wanted.as_ref()).await.map_err(|error| format!("{error:#}"))?;
        Ok(policies.into_iter().map(|policy| policy.name).collect())
    }

    #[tokio::test]
    async fn whoever_sees_one_namespace_sees_what_is_there() {
        let quick = || Ok(vec!["quick".to_owned()]);
        assert_eq!(seen(Some("shop/quick"), &["shop"]).await, quick());
        assert_eq!(seen(Some("quick"), &["default"]).await, quick());
        assert_eq!(seen(None, &["default"]).await, quick());
        let refused = seen(Some("bank/quick"), &["shop"]).await.expect_err("refused");
        assert!(refused.starts_with("cannot list meshpolicies: "), "{refused}");
    }

    #[test]
    fn a_policy_is_shown_as_its_status_tells_it() {
        let view = policy_view(&policy(1), &system());
        assert_eq!((&*view.target, view.accepted), ("service shop/pay", true));
        assert_eq!(view.programmed, Programmed { acknowledged: 3, targeted: 3 });
        assert_eq!(view.problems.len(), 1, "{:?}", view.problems);
    }

    #[test]
    fn a_policy_that_was_edited_is_not_programmed_yet() {
        let edited = policy_view(&policy(2), &system());
        assert_eq!(edited.programmed, Programmed { acknowledged: 0, targeted: 3 });
        assert_eq!(edited.problems, [], "they were those of the version before");
        let mut new = policy(1);
        new["status"] = Value::Null;
        assert_eq!(policy_view(&new, &system()).programmed, Programmed { acknowledged: 0, targeted: 1 });
    }

    #[test]
    fn a_canary_without_a_status_is_idle() {
        let canary = json!({
            "apiVersion": "airlane.dev/v1alpha1", "kind": "Canary",
            "metadata": { "name": "pay", "namespace": "shop", "generation": 1 },
            "spec": { "service": "pay", "stable": { "version": "v1" }, "canary": { "version": "v2" } },
        });
        let view = canary_view(&canary, &system());
        assert_eq!((&*view.canary, view.phase, view.share_percent), ("v2", Phase::Idle, 0.0));
    }

    #[test]
    fn a_verb_is_about_a_version() {
        assert_eq!(verb(Asked::Abort, "v2")["metadata"]["annotations"]["airlane.dev/abort"], "v2");
        assert_eq!(verb(Asked::Pause, "v2"), json!({ "spec": { "suspend": true } }));
    }
}
