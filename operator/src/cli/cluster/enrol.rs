//! `airlane join`, `airlane eject`, `airlane uninstall --eject`: what the operator leaves to people, by their rights.
//!
//! The cluster is seen as the operator sees it, and the same things are decided about it; but a person may dare what
//! the operator does not. Nothing is changed before it was said and agreed to.

use super::{
    Cluster,
    rollout::{Standing, standing},
};
use crate::{
    args::{Enrol, How, Where},
    cli::{Misspelt, say, table::plain},
    enrol::{
        decide::{Left, Trial, by_shape, on_the_wrong_side},
        hands::{Hands, HandsError, record},
        record::{Record, Way},
        run::asks,
        ties::{MEND, Ties, Why, ties},
    },
    observe::{
        kubernetes::{
            self, Observed, Restarts,
            pod::workload_name,
            workload::{Crew, Kind, Workload, Workloads},
        },
        world::{self, MeshSettings},
    },
    webhook::inject::INJECT,
};
use airlane_core::{
    compile::{Compiled, compile},
    id::{Namespace, TrustDomain},
    world::World,
};
use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, IsTerminal as _},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long the first look may take.
const LOOK: Duration = Duration::from_secs(30);
/// How often it is looked how far a rollout is.
const POLL: Duration = Duration::from_millis(250);
/// How long what is seen of pods may be behind what is seen of their workload.
const SETTLE: Duration = Duration::from_secs(10);
/// From the decision to put back until it is done, as the operator does it.
const TOLD: Duration = Duration::from_secs(2);
/// How long proxies are given to acknowledge the policies that hold.
const ACKNOWLEDGE: Duration = Duration::from_secs(30);
/// How long pods may take to stop.
const GONE: Duration = Duration::from_secs(120);
/// Where a workload does not say how long its rollout may take.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(600);

/// `airlane join`.
pub(crate) async fn join(place: &Where, what: &Enrol) -> anyhow::Result<()> {
    let what = Target::parse(&what.what).map(|target| (target, what.how))?;
    let (target, how) = what;
    let watched = Watched::begin(place).await?;
    let moment = watched.moment()?;
    let labelled = moment.asks(&target.namespace)?;
    if let (Some(workload), false) = (&target.workload, labelled) {
        bail!(
            "namespace {0} does not ask for the mesh, so new pods of {workload} would get no sidecar: `airlane join {0}`, \
             or label its template {INJECT}: enabled",
            target.namespace
        );
    }
    let mut steps = Vec::new();
    for (workload, crew) in moment.crews(&target, |crew| crew.bare > 0)? {
        let blocked = watched.try_joining(&target.namespace, &workload, !labelled).await?;
        let cautions = moment.cautions(&target.namespace, &workload, Way::Join);
        steps.push(Step { workload, crew, blocked, cautions, by_label: false });
    }
    let label = (!labelled).then_some(Some("enabled"));
    if steps.is_empty() && label.is_none() {
        say(&format!(
            "{}: all pods are in the mesh, or keep out of it by their own labels\n",
            target.namespace
        ));
        return Ok(());
    }
    let plan = Plan { namespace: target.namespace, way: Way::Join, label, steps };
    plan.show();
    if !agreed(how)? {
        return Ok(());
    }
    watched.carry_out(&plan, how).await
}

/// `airlane eject`.
pub(crate) async fn eject(place: &Where, what: &Enrol) -> anyhow::Result<()> {
    let target = Target::parse(&what.what)?;
    let watched = Watched::begin(place).await?;
    let plan = watched.moment()?.plan_to_leave(&target)?;
    if plan.steps.is_empty() && plan.label.is_none() {
        say(&format!("{}: no pod is in the mesh\n", what.what));
        return Ok(());
    }
    plan.show();
    if !agreed(what.how)? {
        return Ok(());
    }
    watched.wait_for_acknowledgements().await?;
    watched.carry_out(&plan, what.how).await
}

/// `airlane uninstall --eject`.
pub(crate) async fn eject_all(place: &Where, how: How) -> anyhow::Result<()> {
    let watched = Watched::begin(place).await?;
    let moment = watched.moment()?;
    let mut plans = Vec::new();
    let mut refused = Vec::new();
    for namespace in moment.with_mesh() {
        match moment.plan_to_leave(&Target { namespace, workload: None }) {
            Ok(plan) => plans.push(plan),
            Err(error) => refused.push(format!("{error:#}")),
        }
    }
    if !refused.is_empty() {
        bail!("nothing was changed: {}", refused.join("; "));
    }
    plans.iter().for_each(Plan::show);
    if !plans.is_empty() {
        if !agreed(how)? {
            return Ok(());
        }
        watched.wait_for_acknowledgements().await?;
        for plan in &plans {
            watched.carry_out(plan, how).await?;
        }
    }
    // Pods that are on their way out still have their sidecars.
    let deadline = Instant::now() + GONE;
    loop {
        match super::check::uninstall(place).await {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_secs(1)).await,
            checked => return checked,
        }
    }
}

/// What a command is about.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Target {
    namespace: Namespace,
    workload: Option<Workload>,
}

impl Target {
    fn parse(text: &str) -> Result<Target, Misspelt> {
        let misspelt = || {
            Misspelt(format!(
                "{text:?} is neither NAMESPACE nor NAMESPACE/KIND/NAME, such as shop/deployment/pay"
            ))
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (namespace, workload) = match parts[..] {
            [namespace] => (namespace, None),
            [namespace, kind, name] if !name.is_empty() => {
                let kind = match kind.to_ascii_lowercase().as_str() {
                    "deployment" | "deployments" | "deploy" => Kind::Deployment,
                    "statefulset" | "statefulsets" | "sts" => Kind::StatefulSet,
                    "daemonset" | "daemonsets" | "ds" => Kind::DaemonSet,
                    _ => {
                        return Err(Misspelt(format!(
                            "{kind:?} is no kind whose pods can be replaced: deployment, statefulset or daemonset"
                        )));
                    }
                };
                (namespace, Some(Workload { kind, name: name.to_owned() }))
            }
            _ => return Err(misspelt()),
        };
        Ok(Target { namespace: Namespace::parse(namespace).map_err(|_| misspelt())?, workload })
    }
}

/// What will be done in a namespace.
struct Plan {
    namespace: Namespace,
    way: Way,
    /// The namespace's label before anything else: given this value, or taken away.
    label: Option<Option<&'static str>>,
    steps: Vec<Step>,
}

/// What will be done to a workload.
struct Step {
    workload: Workload,
    crew: Crew,
    /// Why it stays as it is.
    blocked: Option<String>,
    /// What the operator does not dare, and why.
    cautions: Vec<String>,
    /// Whether its own template's label has to say that it stays out.
    by_label: bool,
}

impl Plan {
    fn show(&self) {
        let Plan { namespace, way, label, steps } = self;
        let mut text = format!("{namespace}, to {way}:\n");
        match label {
            Some(Some(value)) => text.push_str(&format!("  label the namespace {INJECT}={value}\n")),
            Some(None) => text.push_str(&format!("  take the label {INJECT} from the namespace\n")),
            None => {}
        }
        for Step { workload, crew, blocked, cautions, by_label } in steps {
            let pods = match crew.bare + crew.meshed {
                1 => "the pod".to_owned(),
                pods => format!("the {pods} pods"),
            };
            let line = match (blocked, by_label) {
                (Some(why), _) => format!("  leave {workload} as it is: {why}"),
                (None, false) => format!("  replace {pods} of {workload}"),
                (None, true) => {
                    format!("  label the template of {workload} {INJECT}: disabled, to replace {pods} of it")
                }
            };
            text.push_str(&plain(&line));
            text.push('\n');
            for caution in cautions {
                text.push_str(&format!("    caution: {}\n", plain(caution)));
            }
        }
        say(&text);
    }
}

/// Asks, unless the answer was given.
fn agreed(how: How) -> anyhow::Result<bool> {
    if how.dry_run {
        say("nothing was changed (--dry-run)\n");
        return Ok(false);
    }
    if how.yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        bail!("nothing was changed: nobody is there to agree; say --yes to go on");
    }
    say("Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("the answer cannot be read")?;
    let agreed = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !agreed {
        say("nothing was changed\n");
    }
    Ok(agreed)
}

/// A cluster that is watched while the command runs.
struct Watched {
    cluster: Cluster,
    hands: Hands,
    observed: Observed,
    /// Ends the watch.
    _ending: tokio_util::sync::DropGuard,
}

/// The cluster at one moment.
struct Moment {
    workloads: Arc<Workloads>,
    namespaces: Arc<kubernetes::NamespaceLabels>,
    ties: Ties,
    system: Namespace,
}

impl Watched {
    async fn begin(place: &Where) -> anyhow::Result<Watched> {
        let cluster = Cluster::connect(place).await?;
        // What may not be seen is told now, by whoever refuses it.
        let pods: Api<Pod> = Api::all(cluster.client.clone());
        pods.list_metadata(&ListParams::default().limit(1))
            .await
            .context("cannot list the pods of the cluster")?;
        let shutdown = CancellationToken::new();
        let (observed, watching) =
            kubernetes::watch(&cluster.client, cluster.system.clone(), Restarts::Watched, shutdown.clone());
        tokio::spawn(watching);
        let mut workloads = observed.workloads.clone();
        let complete = async {
            observed.complete().await;
            workloads.wait_for(Option::is_some).await.is_ok()
        };
        if timeout(LOOK, complete).await != Ok(true) {
            let missing = observed.missing();
            let missing =
                if missing.is_empty() { "Deployments, RoleBindings".to_owned() } else { missing.join(", ") };
            bail!("not listed within {LOOK:?}: {missing}; may you list them in all namespaces?");
        }
        let hands = Hands::new(cluster.client.clone(), cluster.system.clone());
        Ok(Watched { cluster, hands, observed, _ending: shutdown.drop_guard() })
    }

    fn moment(&self) -> anyhow::Result<Moment> {
        let (world, compiled) = self.meaning()?;
        let workloads =
            self.observed.workloads.borrow().clone().context("the workloads are not known any more")?;
        Ok(Moment {
            workloads,
            namespaces: self.observed.namespaces.borrow().clone(),
            ties: ties(&world, &compiled.mesh),
            system: self.cluster.system.clone(),
        })
    }

    /// What policies mean, as the operator finds it.
    fn meaning(&self) -> anyhow::Result<(World, Compiled)> {
        let settings = MeshSettings {
            // Nothing that is asked here depends on whose identities they are.
            trust_domain: TrustDomain::parse("airlane.local")?,
            system_namespace: self.cluster.system.clone(),
            cluster_domain: None,
        };
        let (declared, instances) =
            (self.observed.declared.borrow().clone(), self.observed.instances.borrow().clone());
        let statuses = self.observed.statuses.borrow().clone();
        let world = world::assemble(&settings, &declared, &instances, &statuses, None);
        let compiled = compile(&world);
        Ok((world, compiled))
    }

    /// Why new pods of a workload would not be in the mesh, if it can be told.
    async fn try_joining(
        &self,
        namespace: &Namespace,
        workload: &Workload,
        asks: bool,
    ) -> anyhow::Result<Option<String>> {
        match workload.kind {
            Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet => {}
            Kind::Pod => return Ok(Some(Left::NoController.to_string())),
            Kind::Job | Kind::Other => {
                return Ok(Some("its pods are replaced by whatever controls it".to_owned()));
            }
        }
        let object = self.hands.read(namespace.as_str(), workload).await?;
        if let Standing::Never(why) = standing(workload.kind, &object) {
            return Ok(Some(why.to_owned()));
        }
        match self.hands.try_pod(namespace.as_str(), workload, asks).await {
            Ok(Trial::Passed) => Ok(None),
            Ok(Trial::Refused(why)) => Ok(Some(Left::Refused(why).to_string())),
            Err(error) => Err(error).with_context(|| format!("a pod of {workload} cannot be tried")),
        }
    }

    /// Waits until all proxies run what policies say now: a door that is still shut for those without a sidecar would
    /// refuse whoever leaves first.
    async fn wait_for_acknowledgements(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + ACKNOWLEDGE;
        loop {
            let policies = self.cluster.policies(None).await?;
            let late = policies.iter().find(|it| it.programmed.acknowledged < it.programmed.targeted);
            let Some(late) = late else { return Ok(()) };
            if Instant::now() >= deadline {
                bail!(
                    "nothing was changed: MeshPolicy {}/{} is acknowledged by {} of {} proxies; `kubectl describe` it, and \
                     try again",
                    late.namespace,
                    late.name,
                    late.programmed.acknowledged,
                    late.programmed.targeted
                );
            }
            sleep(POLL).await;
        }
    }

    async fn carry_out(&self, plan: &Plan, how: How) -> anyhow::Result<()> {
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
        let told = |all: &Arc<kubernetes::NamespaceLabels>| {
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
                say(&format!("{namespace}: {workload}: its template is labelled {INJECT}: disabled now\n"));
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
            let owned = kubernetes::pod::owner_of(&pod.metadata).as_ref() == Some(workload);
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

impl Moment {
    fn asks(&self, namespace: &Namespace) -> anyhow::Result<bool> {
        let labels =
            self.namespaces.get(namespace).with_context(|| format!("there is no namespace {namespace}"))?;
        if *namespace == self.system || namespace.as_str() == "kube-system" {
            bail!("pods of {namespace} are never in the mesh: the cluster must be able to start without it");
        }
        Ok(asks(labels))
    }

    /// The workloads of a target with such pods.
    fn crews(
        &self,
        target: &Target,
        which: impl Fn(&Crew) -> bool,
    ) -> anyhow::Result<BTreeMap<Workload, Crew>> {
        let crews = self.workloads.crews.get(target.namespace.as_str()).cloned().unwrap_or_default();
        let Some(only) = &target.workload else {
            return Ok(crews.into_iter().filter(|(it, crew)| it.kind != Kind::Job && which(crew)).collect());
        };
        match crews.get(only) {
            None => bail!("{only} of {} has no running pods", target.namespace),
            Some(crew) if which(crew) => Ok(BTreeMap::from([(only.clone(), *crew)])),
            Some(_) => Ok(BTreeMap::new()),
        }
    }

    /// What the operator would not dare about a workload.
    fn cautions(&self, namespace: &Namespace, workload: &Workload, way: Way) -> Vec<String> {
        let deployment = self.workloads.deployment(namespace.as_str(), &workload.name);
        let deployment = deployment.filter(|_| workload.kind == Kind::Deployment);
        let shape = match workload.kind {
            Kind::Deployment => deployment.and_then(by_shape),
            Kind::StatefulSet | Kind::DaemonSet => Some(Left::NotADeployment),
            Kind::Job | Kind::Pod | Kind::Other => None,
        };
        let record = deployment.and_then(|it| Record::of(it).ok()?).filter(|record| record.to == way);
        let put_back = record.and_then(|record| record.failed).map(|failed| Left::PutBack(failed.because));
        let doors = self.ties_of(namespace, workload).into_iter().flatten();
        let doors: BTreeSet<_> = doors.filter(|tie| tie.why != Why::Caller).cloned().collect();
        let doors = (way == Way::Join && !doors.is_empty()).then_some(Left::Tied(way, doors));
        shape.into_iter().chain(put_back).chain(doors).map(|left| left.to_string()).collect()
    }

    fn ties_of(
        &self,
        namespace: &Namespace,
        workload: &Workload,
    ) -> Option<&BTreeSet<crate::enrol::ties::Tie>> {
        self.ties.get(&(namespace.clone(), workload_name(&workload.name)?))
    }

    /// Namespaces that ask for the mesh, or have pods in it.
    fn with_mesh(&self) -> BTreeSet<Namespace> {
        let asking = self.namespaces.iter().filter(|(_, labels)| asks(labels)).map(|(name, _)| name.clone());
        let inside = self.workloads.crews.iter();
        let inside = inside.filter(|(_, crews)| crews.values().any(|crew| crew.meshed > 0));
        asking
            .chain(inside.filter_map(|(name, _)| Namespace::parse(name).ok()))
            .filter(|name| *name != self.system && name.as_str() != "kube-system")
            .collect()
    }

    /// How a target leaves the mesh.
    ///
    /// # Errors
    /// What ties it to the mesh.
    fn plan_to_leave(&self, target: &Target) -> anyhow::Result<Plan> {
        let namespace = &target.namespace;
        let labelled = self.asks(namespace)?;
        let mut steps = Vec::new();
        let mut tied: BTreeSet<String> = BTreeSet::new();
        for (workload, crew) in self.crews(target, |crew| crew.meshed > 0)? {
            let ties = self.ties_of(namespace, &workload).into_iter().flatten();
            tied.extend(ties.map(|tie| format!("{workload}: {tie}")));
            let own = self
                .workloads
                .deployment(namespace.as_str(), &workload.name)
                .and_then(|it| it.inject.clone());
            let own = own.filter(|_| workload.kind == Kind::Deployment);
            let by_label = own.is_some() || labelled && target.workload.is_some();
            let blocked = match workload.kind {
                Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet => None,
                Kind::Pod => Some(format!("{}: delete it", Left::NoController)),
                Kind::Job | Kind::Other => Some("its pods are replaced by whatever controls it".to_owned()),
            };
            let cautions = self.cautions(namespace, &workload, Way::Leave);
            steps.push(Step { workload, crew, blocked, cautions, by_label });
        }
        if !tied.is_empty() {
            let tied: Vec<String> = tied.into_iter().collect();
            bail!(
                "{namespace} cannot leave the mesh while only its sidecars keep what policies say: {}; {MEND}",
                tied.join("; ")
            );
        }
        let label = (labelled && target.workload.is_none()).then_some(None);
        Ok(Plan { namespace: namespace.clone(), way: Way::Leave, label, steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let shown = match Target::parse(text) {
            Ok(Target { namespace, workload: Some(workload) }) => format!("{namespace} {workload}"),
            Ok(Target { namespace, workload: None }) => namespace.to_string(),
            Err(error) => error.to_string(),
        };
        assert!(shown.starts_with(expected), "{shown}");
    }

    #[test]
    fn a_target_is_a_namespace_or_a_workload_in_one() {
        check("shop", "shop");
        check("shop/Deployment/pay", "shop Deployment/pay");
        check("shop/sts/db", "shop StatefulSet/db");
        check("shop/job/once", "\"job\" is no kind");
        check("shop/pay", "\"shop/pay\" is neither");
        check("Shop", "\"Shop\" is neither");
        check("shop/deploy/", "\"shop/deploy/\" is neither");
    }
}
