//! The leader's part: looks at every namespace whenever something changes, does what is decided, and tells people.

use super::{
    decide::{Act, Decision, Given, Left, Patience, Trial, decide},
    hands::{Hands, HandsError},
    record::Way,
    ties::{Judged, Ties, judged, ties},
};
use crate::{
    clock::Clock,
    control::Picture,
    fleet::Fleet,
    marks::asks,
    milestone::Milestone,
    observe::kubernetes::{
        NamespaceLabels, Observed,
        owner::{Kind, Workload},
        pod::workload_name,
        workload::{Deployment, Workloads},
    },
};
use airlane_core::id::{Namespace, ObjectId, ObjectKind};
use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(100);
/// How often it is looked whether what was left to people is still so: policies change, and quotas.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(10);
/// After something could not be done; twice as long each time that the API server refuses the same.
const RETRY: SignedDuration = SignedDuration::from_secs(2);
/// The longest until what is refused is tried again.
const RETRY_MAX: SignedDuration = SignedDuration::from_mins(5);
/// How long the API server's word about a pod that was tried counts: twice as long with each refusal of the same.
const TRIAL_COUNTS: Duration = Duration::from_secs(60);
/// The longest that its word counts: a quota may have been raised, and webhooks change their minds.
const TRIAL_COUNTS_MAX: Duration = Duration::from_hours(1);
/// How many pods of a namespace are tried before it is looked at everything anew.
const TRIALS_AT_ONCE: usize = 3;
/// Of how many namespaces something is done at the same time.
const NAMESPACES_AT_ONCE: usize = 8;
/// The longest that the writing of an event may take.
const EVENT: Duration = Duration::from_secs(5);
/// The longest note of an event that Kubernetes takes, in bytes.
const NOTE_MAX: usize = 1000;
/// Where nothing is ever restarted, beside the operator's own namespace: the cluster must be able to start without us.
const NEVER: &str = "kube-system";

/// Has running pods join and leave the mesh; for the leader.
#[derive(Clone)]
pub(crate) struct Enrolment {
    /// Does it.
    pub(crate) hands: Hands,
    /// What is seen of the cluster.
    pub(crate) observed: Observed,
    /// What policies mean.
    pub(crate) picture: watch::Receiver<Option<Picture>>,
    /// How far proxies are.
    pub(crate) fleet: Fleet,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
    /// Settings.
    pub(crate) patience: Patience,
    /// Where people are told.
    pub(crate) events: Recorder,
    /// The operator's own namespace.
    pub(crate) system: Namespace,
}

/// What is remembered of each namespace between two looks; nothing of it is missed by a leader that has not got it.
type Memories = BTreeMap<String, Memory>;

#[derive(Default)]
struct Memory {
    /// By Deployment.
    trials: BTreeMap<String, Tried>,
    /// What people were told last.
    told: BTreeMap<Workload, Left>,
    refused: Option<Refused>,
}

/// Something that the API server refused to do.
struct Refused {
    act: Act,
    pause: SignedDuration,
    /// Not before this time it is tried again.
    until: Timestamp,
}

/// A pod that was tried.
struct Tried {
    of: Subject,
    at: Duration,
    /// How long it counts.
    counts: Duration,
    trial: Trial,
}

/// What a trial was about: of something else it says nothing.
#[derive(Clone, PartialEq, Eq)]
struct Subject {
    uid: String,
    generation: i64,
    /// The namespace's.
    labels: BTreeMap<String, String>,
}

impl Tried {
    fn holds(&self, uptime: Duration) -> bool {
        uptime.saturating_sub(self.at) < self.counts
    }

    /// Of the outcome of a trial, how long it counts, after the one `before` that was about the same.
    fn counts(trial: &Trial, before: Option<&Tried>) -> Duration {
        match (trial, before) {
            (Trial::Refused(_), Some(Tried { trial: Trial::Refused(_), counts, .. })) => {
                counts.saturating_mul(2).min(TRIAL_COUNTS_MAX)
            }
            _ => TRIAL_COUNTS,
        }
    }
}

/// Everything at one moment.
struct View {
    workloads: Arc<Workloads>,
    namespaces: Arc<NamespaceLabels>,
    picture: Picture,
    ties: OnceLock<Ties>,
    judged: OnceLock<Judged>,
}

impl Enrolment {
    /// Goes on until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut workloads = self.observed.workloads.clone();
        let mut namespaces = self.observed.namespaces.clone();
        let mut memories = Memories::new();
        loop {
            workloads.mark_unchanged();
            namespaces.mark_unchanged();
            let wake = self.look(&mut memories).await;
            let pause = wake.map(|at| {
                let pause = at.duration_since(self.clock.now());
                Duration::try_from(pause).unwrap_or(Duration::ZERO).max(GATHER)
            });
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = workloads.changed() => if changed.is_err() { return },
                changed = namespaces.changed() => if changed.is_err() { return },
                () = sleep(pause.unwrap_or_default()), if pause.is_some() => continue,
            }
            sleep(GATHER).await;
        }
    }

    /// Does the next thing in every namespace. Gives when to look again though nothing changes.
    async fn look(&self, memories: &mut Memories) -> Option<Timestamp> {
        let view = &self.view()?;
        let asking = view.namespaces.iter().filter(|(_, labels)| asks(labels)).map(|(name, _)| name.as_str());
        let entered = view.workloads.passes.keys().map(String::as_str);
        let concerned: BTreeSet<&str> = asking.chain(entered).collect();
        let mut before = std::mem::take(memories);
        let ours = |namespace: &&str| *namespace != NEVER && *namespace != self.system.as_str();
        let looks: Vec<_> = concerned
            .into_iter()
            .filter(ours)
            .map(|namespace| {
                let mut memory = before.remove(namespace).unwrap_or_default();
                async move {
                    let again = self.look_at(namespace, view, &mut memory).await;
                    (namespace.to_owned(), memory, again)
                }
            })
            .collect();
        let mut wake: Option<Timestamp> = None;
        let mut looks = stream::iter(looks).buffer_unordered(NAMESPACES_AT_ONCE);
        while let Some((namespace, memory, again)) = looks.next().await {
            memories.insert(namespace, memory);
            wake = [wake, again].into_iter().flatten().min();
        }
        wake
    }

    fn view(&self) -> Option<View> {
        Some(View {
            workloads: self.observed.workloads.borrow().clone()?,
            namespaces: self.observed.namespaces.borrow().clone(),
            picture: self.picture.borrow().clone()?,
            ties: OnceLock::new(),
            judged: OnceLock::new(),
        })
    }

    async fn look_at(&self, namespace: &str, view: &View, memory: &mut Memory) -> Option<Timestamp> {
        memory.trials.retain(|name, tried| view.subject(namespace, name).as_ref() == Some(&tried.of));
        let mut trials = 0;
        // A trial is followed by what its outcome leads to.
        loop {
            let now = self.clock.now();
            let Decision { act, left, wake } = self.decide(namespace, view, memory, now);
            let Some(act) = act else {
                let again = (!left.is_empty()).then(|| now + LOOK_AGAIN);
                self.tell_left(namespace, view, left, memory);
                return [wake, again].into_iter().flatten().min();
            };
            let refused = memory.refused.take_if(|refused| refused.act != act || refused.until <= now);
            if let Some(Refused { until, .. }) = memory.refused {
                return Some(until);
            }
            let tries = matches!(act, Act::Try(_));
            trials += usize::from(tries);
            if trials > TRIALS_AT_ONCE {
                return Some(now);
            }
            match self.carry_out(namespace, view, &act, memory, now).await {
                Ok(()) if tries => {}
                // What was done is seen before long.
                Ok(()) | Err(HandsError::Changed | HandsError::Gone) => return Some(now + RETRY),
                Err(error) => {
                    let why = error.refusal();
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(namespace, ?act, error, "workloads were not restarted");
                    let Some(why) = why else { return Some(now + RETRY) };
                    let before = refused.filter(|refused| refused.act == act);
                    if before.is_none() {
                        self.tell_namespace(namespace, EventType::Warning, "NotRestarted", &why);
                    }
                    let pause = before.map_or(RETRY, |before| (before.pause * 2).min(RETRY_MAX));
                    let until = now + pause;
                    memory.refused = Some(Refused { act, pause, until });
                    return Some(until);
                }
            }
        }
    }

    fn decide(&self, namespace: &str, view: &View, memory: &Memory, now: Timestamp) -> Decision {
        let workloads = &view.workloads;
        let crews: BTreeMap<&Workload, _> =
            workloads.crews.get(namespace).into_iter().flatten().map(|(name, crew)| (name, *crew)).collect();
        let ties = crews.keys().filter_map(|workload| Some((*workload, view.ties_of(namespace, workload)?)));
        let judged =
            crews.keys().filter_map(|workload| Some((*workload, view.judge_of(namespace, workload)?)));
        let uptime = self.clock.uptime();
        let trials = memory.trials.iter().filter(|(_, tried)| tried.holds(uptime));
        let pass = workloads.passes.get(namespace);
        let leaves = pass.is_some_and(|pass| pass.left_at.is_some());
        decide(&Given {
            now,
            patience: self.patience,
            asks: view.labels(namespace).is_some_and(asks),
            manual: workloads.manual.contains(namespace),
            pass,
            deployments: workloads.deployments_of(namespace).collect(),
            ties: ties.collect(),
            judged: judged.collect(),
            crews,
            acknowledged: leaves && self.acknowledged(&view.picture),
            trials: trials.map(|(name, tried)| (name.as_str(), &tried.trial)).collect(),
        })
    }

    /// Whether every proxy runs what the policies say now.
    fn acknowledged(&self, picture: &Picture) -> bool {
        let objects = picture.declared.objects.iter();
        let mut policies = objects.filter(|(id, _)| id.kind == ObjectKind::MeshPolicy);
        policies.all(|(id, accepted)| self.fleet.all_reached(picture, &Milestone::object(id, accepted)))
    }

    async fn carry_out(
        &self,
        namespace: &str,
        view: &View,
        act: &Act,
        memory: &mut Memory,
        now: Timestamp,
    ) -> Result<(), HandsError> {
        let deployment = |name: &String| Workload { kind: Kind::Deployment, name: name.clone() };
        match act {
            Act::Enter | Act::Return => self.hands.enter(namespace, None).await?,
            Act::NoteLeft => self.hands.enter(namespace, Some(now)).await?,
            Act::GiveUp => {
                self.hands.give_up(namespace).await?;
                let note = "no workload of this namespace is in the mesh any more";
                self.tell_namespace(namespace, EventType::Normal, "Left", note);
            }
            Act::Try(name) => {
                let trial = self.hands.try_pod(namespace, &deployment(name), false).await?;
                let of = view.subject(namespace, name).ok_or(HandsError::Gone)?;
                let counts = Tried::counts(&trial, memory.trials.get(name));
                let tried = Tried { of, at: self.clock.uptime(), counts, trial };
                memory.trials.insert(name.clone(), tried);
            }
            Act::Restart(name, way) => {
                let known = view.workloads.deployment(namespace, name).ok_or(HandsError::Gone)?;
                self.hands.restart_known(namespace, name, known, *way, now).await?;
                tracing::info!(namespace, deployment = name, %way, "its pods are replaced");
                let note = format!("its pods are replaced, so that they {way}");
                self.tell(namespace, view, &deployment(name), (EventType::Normal, "Restarted"), &note);
            }
            Act::Fail(name, way, because) => {
                self.hands.fail(namespace, &deployment(name), because, now).await?;
                tracing::warn!(namespace, deployment = name, %way, because, "its template is put back");
                let mend = format!("`airlane {} {namespace}/Deployment/{name}` tries again", command(*way));
                let note = format!("it was restarted to {way} and is put back: {because}; {mend}");
                self.tell(namespace, view, &deployment(name), (EventType::Warning, "PutBack"), &note);
                let note = format!("Deployment {name}: {note}; no other workload is restarted until then");
                self.tell_namespace(namespace, EventType::Warning, "Stopped", &note);
            }
            Act::Restore(name) => self.hands.restore(namespace, &deployment(name)).await?,
            Act::Succeed(name, way) => {
                self.hands.forget(namespace, &deployment(name)).await?;
                let (reason, note) = match way {
                    Way::Join => ("Joined", "all its pods have sidecars"),
                    Way::Leave => ("Left", "none of its pods has a sidecar"),
                };
                self.tell(namespace, view, &deployment(name), (EventType::Normal, reason), note);
            }
            Act::Forget(name) => self.hands.forget(namespace, &deployment(name)).await?,
        }
        Ok(())
    }

    /// Tells what is left to people, of each workload when it is news.
    fn tell_left(&self, namespace: &str, view: &View, left: BTreeMap<Workload, Left>, memory: &mut Memory) {
        memory.told.retain(|workload, _| left.contains_key(workload));
        // A team that keeps it to itself knows; and what was put back was told when it was.
        let known = |why: &Left| matches!(why, Left::Manual | Left::PutBack(_));
        let left: BTreeMap<Workload, Left> = left.into_iter().filter(|(_, why)| !known(why)).collect();
        let mut news = false;
        let way = if view.labels(namespace).is_some_and(asks) { Way::Join } else { Way::Leave };
        let command = command(way);
        for (workload, why) in &left {
            if memory.told.get(workload) == Some(why) {
                continue;
            }
            news = true;
            let hint = if why.is_a_caution() {
                format!("; `airlane {command} {namespace}/{workload}` does it")
            } else {
                String::new()
            };
            let note = format!("not restarted to {way}: {why}{hint}");
            self.tell(namespace, view, workload, (EventType::Warning, "NotRestarted"), &note);
            memory.told.insert(workload.clone(), why.clone());
        }
        if news {
            let names: Vec<String> = left.keys().map(ToString::to_string).collect();
            let names = names.join(", ");
            let note =
                format!("`airlane {command} {namespace}` says why these do not {way} by themselves: {names}");
            self.tell_namespace(namespace, EventType::Warning, "NotRestarted", &note);
        }
    }

    fn tell(
        &self,
        namespace: &str,
        view: &View,
        workload: &Workload,
        (type_, reason): (EventType, &str),
        note: &str,
    ) {
        let (version, uid) = match workload.kind {
            Kind::Deployment => {
                let known = view.workloads.deployment(namespace, &workload.name);
                ("apps/v1", known.map(|known| known.uid.clone()))
            }
            Kind::StatefulSet | Kind::DaemonSet => ("apps/v1", None),
            Kind::Job => ("batch/v1", None),
            Kind::Pod => ("v1", None),
            // Of what kind it is was not kept; its namespace's event names it.
            Kind::Other => return,
        };
        self.publish(
            ObjectReference {
                api_version: Some(version.to_owned()),
                kind: Some(format!("{:?}", workload.kind)),
                namespace: Some(namespace.to_owned()),
                name: Some(workload.name.clone()),
                uid,
                ..ObjectReference::default()
            },
            event(type_, reason, note),
        );
    }

    fn tell_namespace(&self, namespace: &str, type_: EventType, reason: &str, note: &str) {
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Namespace".to_owned()),
            // So that it is among the events of the namespace itself.
            namespace: Some(namespace.to_owned()),
            name: Some(namespace.to_owned()),
            ..ObjectReference::default()
        };
        self.publish(regarding, event(type_, reason, note));
    }

    fn publish(&self, regarding: ObjectReference, event: Event) {
        let events = self.events.clone();
        tokio::spawn(async move {
            match timeout(EVENT, events.publish(&event, &regarding)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "an event was not written");
                }
                Err(_) => tracing::warn!("an event was not written within {EVENT:?}"),
            }
        });
    }
}

impl View {
    /// What a trial of a Deployment's pod is about.
    fn subject(&self, namespace: &str, name: &str) -> Option<Subject> {
        let Deployment { uid, generation, .. } = self.workloads.deployment(namespace, name)?;
        let labels = self.labels(namespace).cloned().unwrap_or_default();
        Some(Subject { uid: uid.clone(), generation: *generation, labels })
    }

    fn labels(&self, namespace: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(&Namespace::parse(namespace).ok()?)
    }

    fn ties_of(&self, namespace: &str, workload: &Workload) -> Option<&BTreeSet<super::ties::Tie>> {
        let all = self.ties.get_or_init(|| ties(&self.picture.world, &self.picture.compiled.mesh));
        all.get(&(Namespace::parse(namespace).ok()?, workload_name(&workload.name)?))
    }

    fn judge_of(&self, namespace: &str, workload: &Workload) -> Option<&ObjectId> {
        let all = self.judged.get_or_init(|| judged(&self.picture.world));
        all.get(&(Namespace::parse(namespace).ok()?, workload_name(&workload.name)?))
    }
}

/// The command that does it by a person's rights.
fn command(way: Way) -> &'static str {
    match way {
        Way::Join => "join",
        Way::Leave => "eject",
    }
}

fn event(type_: EventType, reason: &str, note: &str) -> Event {
    let mut end = note.len().min(NOTE_MAX);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note[..end].to_owned()),
        action: "Restart".to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests;
