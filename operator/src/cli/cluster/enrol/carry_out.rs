//! What was agreed to, done: labels, restarts, and putting back what does not come up.

use super::{
    plan::{Plan, Step},
    watched::{LOOK, POLL, Watched},
};
use crate::{
    args::How,
    cli::{
        cluster::rollout::{Standing, standing},
        say,
        table::plain,
    },
    enrol::{
        decide::on_the_wrong_side,
        hands::{HandsError, record},
        record::Way,
    },
    marks::{INJECT, LAST_RESTART, OPTED_OUT, asks},
    observe::kubernetes::{
        NamespaceLabels,
        owner::{Kind, Workload, owner_of},
        workload::Crew,
    },
};
use airlane_core::id::Namespace;
use anyhow::{Context as _, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// How long what is seen of pods may be behind what is seen of their workload.
const SETTLE: Duration = Duration::from_secs(10);
/// From the decision to put back until it is done, as the operator does it.
const TOLD: Duration = Duration::from_secs(2);
/// Where a workload does not say how long its rollout may take.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(600);

impl Watched {
    pub(super) async fn carry_out(&self, plan: &Plan, how: How) -> anyhow::Result<()> {
        if let Some(value) = plan.label {
            self.label(&plan.namespace, value).await?;
        }
        for step in plan.steps.iter().filter(|step| step.blocked.is_none()) {
            self.replace(plan, step, how).await?;
        }
        let stay: Vec<String> = plan
            .steps
            .iter()
            .filter(|step| step.blocked.is_some())
            .map(|step| step.workload.to_string())
            .collect();
        if plan.way == Way::Leave && plan.label.is_some() && stay.is_empty() {
            let workloads = self.observed.workloads.borrow().clone().unwrap_or_default();
            self.hands
                .forget_all(plan.namespace.as_str(), &workloads)
                .await
                .with_context(|| format!("the annotations {LAST_RESTART} cannot be taken away"))?;
            // Without the right to it, it stays until the operator gives it up by itself.
            if let Err(HandsError::Slow) = self.hands.give_up(plan.namespace.as_str()).await {
                bail!("the API server does not answer");
            }
        }
        if !stay.is_empty() {
            bail!("{}: left as they are: {}", plan.namespace, stay.join(", "));
        }
        Ok(())
    }

    async fn label(&self, namespace: &Namespace, value: Option<&str>) -> anyhow::Result<()> {
        let api: Api<core::Namespace> = Api::all(self.cluster.client.clone());
        let patch = json!({ "metadata": { "labels": { INJECT: value } } });
        api.patch(namespace.as_str(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("the label {INJECT} of namespace {namespace} cannot be changed"))?;
        // The operator's webhook goes by it.
        let told = |all: &Arc<NamespaceLabels>| {
            all.get(namespace).is_some_and(|labels| asks(labels) == value.is_some())
        };
        let mut namespaces = self.observed.namespaces.clone();
        if timeout(LOOK, namespaces.wait_for(told)).await.is_err() {
            bail!("namespace {namespace} was labelled, and the API server does not show it");
        }
        Ok(())
    }

    /// Replaces the pods of a workload, and puts it back if they do not come up.
    async fn replace(&self, plan: &Plan, step: &Step, how: How) -> anyhow::Result<()> {
        let (namespace, workload) = (plan.namespace.as_str(), &step.workload);
        say(&format!("{namespace}: {}: its pods are replaced\n", plain(&workload.to_string())));
        let begun = if step.by_label {
            self.hands.opt_out(namespace, workload).await
        } else {
            match self.hands.restart(namespace, workload, plan.way, Timestamp::now()).await {
                // The operator was faster, or somebody wrote in between.
                Err(HandsError::Changed) => self.joins_who_is_at_it(plan, workload).await,
                begun => begun.map(drop),
            }
        };
        begun.with_context(|| format!("{workload} cannot be restarted"))?;
        match self.follow(plan, workload, how).await? {
            None => {
                say(&format!("{namespace}: {}: done\n", plain(&workload.to_string())));
                // The operator may have struck it out already.
                match self.hands.forget(namespace, workload).await {
                    Ok(()) | Err(HandsError::Changed | HandsError::Gone) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
            Some(because) => {
                self.put_back(plan, step, &because).await?;
                bail!("{workload} was put back, and what was to follow was left: {because}")
            }
        }
    }

    async fn joins_who_is_at_it(&self, plan: &Plan, workload: &Workload) -> Result<(), HandsError> {
        let object = self.hands.read(plan.namespace.as_str(), workload).await?;
        match record(&object) {
            Some(record) if record.failed.is_none() && record.to == plan.way => Ok(()),
            Some(record) if record.failed.is_none() => Err(HandsError::Changed),
            _ => self
                .hands
                .restart(plan.namespace.as_str(), workload, plan.way, Timestamp::now())
                .await
                .map(drop),
        }
    }

    /// Waits for the end of a rollout: well, or why not.
    async fn follow(&self, plan: &Plan, workload: &Workload, how: How) -> anyhow::Result<Option<String>> {
        let mut progress = (None, Instant::now());
        let mut complete_since: Option<Instant> = None;
        loop {
            let object = self.hands.read(plan.namespace.as_str(), workload).await?;
            if let Some(failed) = record(&object).and_then(|record| record.failed) {
                return Ok(Some(failed.because));
            }
            match standing(workload.kind, &object) {
                Standing::Complete => {
                    let Some(wrong) = on_the_wrong_side(self.crew(&plan.namespace, workload), plan.way)
                    else {
                        return Ok(None);
                    };
                    if complete_since.get_or_insert_with(Instant::now).elapsed() > SETTLE {
                        return Ok(Some(wrong));
                    }
                }
                Standing::UnderWay(counts) => {
                    complete_since = None;
                    if progress.0 != Some(counts) {
                        progress = (Some(counts), Instant::now());
                    }
                    let patience = how.deadline.unwrap_or_else(|| own_deadline(&object));
                    if progress.1.elapsed() > patience {
                        return Ok(Some(format!(
                            "its new pods did not come up: no progress for {patience:?}"
                        )));
                    }
                }
                Standing::Never(why) => return Ok(Some(why.to_owned())),
            }
            sleep(POLL).await;
        }
    }

    fn crew(&self, namespace: &Namespace, workload: &Workload) -> Crew {
        let workloads = self.observed.workloads.borrow().clone();
        let crews = workloads.as_ref().and_then(|all| all.crews.get(namespace.as_str()));
        crews.and_then(|crews| crews.get(workload)).copied().unwrap_or_default()
    }

    async fn put_back(&self, plan: &Plan, step: &Step, because: &str) -> anyhow::Result<()> {
        let (namespace, workload) = (plan.namespace.as_str(), &step.workload);
        if step.by_label {
            say(&format!(
                "{namespace}: {}: its label stays; take it away again\n",
                plain(&workload.to_string())
            ));
            return Ok(());
        }
        say(&format!("{namespace}: {}: is put back: {}\n", plain(&workload.to_string()), plain(because)));
        match (workload.kind, plan.way) {
            // Only of Deployments the webhook knows that they were put back.
            (Kind::StatefulSet | Kind::DaemonSet, Way::Join) => {
                self.hands.opt_out(namespace, workload).await?;
                self.delete_stuck(namespace, workload).await?;
                say(&format!(
                    "{namespace}: {workload}: its template is labelled {INJECT}: {OPTED_OUT} now\n"
                ));
            }
            _ => {
                let failed = self.hands.fail(namespace, workload, because, Timestamp::now()).await;
                ignore_changed(failed)?;
                sleep(TOLD).await;
                ignore_changed(self.hands.restore(namespace, workload).await)?;
            }
        }
        Ok(())
    }

    /// A StatefulSet waits for a pod that does not come up, even if it is to be replaced.
    async fn delete_stuck(&self, namespace: &str, workload: &Workload) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), namespace);
        for pod in pods.list(&ListParams::default()).await.context("cannot list pods")?.items {
            let owned = owner_of(&pod.metadata).as_ref() == Some(workload);
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            let mut conditions = conditions.into_iter().flatten();
            let ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
            if let (true, false, Some(name)) = (owned, ready, &pod.metadata.name) {
                let this = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
                let params = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
                pods.delete(name, &params).await.with_context(|| format!("cannot delete pod {name}"))?;
            }
        }
        Ok(())
    }
}

/// Whoever was faster did the same.
fn ignore_changed(done: Result<(), HandsError>) -> Result<(), HandsError> {
    match done {
        Err(HandsError::Changed) => Ok(()),
        done => done,
    }
}

fn own_deadline(object: &Value) -> Duration {
    object["spec"]["progressDeadlineSeconds"].as_u64().map_or(PROGRESS_DEADLINE, Duration::from_secs)
}
