//! What to do next about a namespace's running pods. Pure.
//!
//! One workload at a time, and only where it can hardly go wrong: a Deployment that replaces its pods one after the
//! other, whose pod was tried. The first that does not come up is put back, and the rest of its namespace waits for
//! people. Everything else is left to them from the start, each with its reason.

use super::{
    record::{Failure, Record, Way},
    ties::{MEND, Tie, Why},
};
use crate::{
    marks::{LAST_RESTART, MANUAL, RESTART, is_manual},
    observe::kubernetes::{
        owner::{Kind, Workload},
        workload::{Crew, Deployment, Pass, Rollout},
    },
};
use airlane_core::id::ObjectId;
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// With fewer replicas nobody serves while the only one is replaced, if the new one does not come up.
const REPLICAS_MIN: u32 = 2;
/// How long the pods of a finished rollout may look as if they were on the wrong side of the mesh: what is observed of
/// pods is behind what is observed of their Deployment.
const SETTLE: SignedDuration = SignedDuration::from_secs(10);
/// From the decision to put back until it is done: every replica's webhook must have seen it, since pods that are
/// created anew would get the sidecar with which they do not come up.
const TOLD: SignedDuration = SignedDuration::from_secs(2);

/// How patient restarts are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Patience {
    /// A restart without progress for so long is put back; `None`: as long as the workload's own
    /// `progressDeadlineSeconds`, which bounds it anyhow.
    pub(crate) progress: Option<SignedDuration>,
    /// A namespace that does not ask for the mesh any more leaves it after so long.
    pub(crate) eject_after: SignedDuration,
}

/// All that a decision about a namespace depends on.
#[derive(Clone, Debug)]
pub(crate) struct Given<'a> {
    /// The time of day.
    pub(crate) now: Timestamp,
    /// The operator's settings.
    pub(crate) patience: Patience,
    /// Whether the namespace's label asks for the mesh.
    pub(crate) asks: bool,
    /// Whether its team restarts workloads itself.
    pub(crate) manual: bool,
    /// What the operator holds there.
    pub(crate) pass: Option<&'a Pass>,
    /// Its Deployments.
    pub(crate) deployments: BTreeMap<&'a str, &'a Deployment>,
    /// Whose pods are in the mesh.
    pub(crate) crews: BTreeMap<&'a Workload, Crew>,
    /// What ties workloads to the mesh.
    pub(crate) ties: BTreeMap<&'a Workload, &'a BTreeSet<Tie>>,
    /// Whose pods are judged by a Canary that is under way.
    pub(crate) judged: BTreeMap<&'a Workload, &'a ObjectId>,
    /// Whether all proxies have acknowledged what policies say now.
    pub(crate) acknowledged: bool,
    /// What became of the pods that were tried.
    pub(crate) trials: BTreeMap<&'a str, &'a Trial>,
}

/// What the API server and all its webhooks say to a pod of a workload as it would be in the mesh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Trial {
    /// It would be created, with a sidecar.
    Passed,
    /// It would not, and why.
    Refused(String),
}

/// Something to do; of workloads only Deployments are acted upon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Act {
    /// Take the right to restart the namespace's workloads.
    Enter,
    /// Note that the namespace does not ask for the mesh any more.
    NoteLeft,
    /// Strike that note out.
    Return,
    /// Give the right back: nobody here is in the mesh any more.
    GiveUp,
    /// Try a pod of it.
    Try(String),
    /// Replace its pods.
    Restart(String, Way),
    /// Its restart did not go well: say so. The template is put back by [`Act::Restore`].
    Fail(String, Way, String),
    /// Put its template back.
    Restore(String),
    /// Its restart went well: forget it.
    Succeed(String, Way),
    /// What was put back there has no meaning any more.
    Forget(String),
}

/// Why a workload is left to people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// Its team said so.
    Manual,
    /// It is no Deployment.
    NotADeployment,
    /// Its pods are nobody's to create again.
    NoController,
    /// Too few pods.
    Replicas(u32),
    /// All of its pods go before new ones come.
    Recreate,
    /// All of its pods may be away at once.
    AllAtOnce,
    /// Changes of its template wait.
    Paused,
    /// It would not come up.
    Refused(String),
    /// Without its sidecar nobody keeps what policies say; or with it callers are shut out that are not there yet.
    Tied(Way, BTreeSet<Tie>),
    /// A Canary is under way, which judges by its pods.
    Judged(ObjectId),
    /// It was restarted and did not come up.
    PutBack(String),
    /// Another one did not.
    Stopped(String),
    /// What is remembered of it was written by somebody else.
    Unreadable,
}

impl Left {
    /// Whether it only takes somebody who dares: a person may do it by command, as it is.
    pub(crate) fn is_a_caution(&self) -> bool {
        match self {
            Left::NotADeployment
            | Left::Replicas(_)
            | Left::Recreate
            | Left::AllAtOnce
            | Left::PutBack(_)
            | Left::Stopped(_)
            | Left::Manual
            | Left::Judged(_)
            | Left::Tied(Way::Join, _) => true,
            Left::NoController
            | Left::Paused
            | Left::Refused(_)
            | Left::Unreadable
            | Left::Tied(Way::Leave, _) => false,
        }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Left::Manual => write!(f, "{RESTART}: {MANUAL} leaves it to its team"),
            Left::NotADeployment => f.write_str("only Deployments are restarted by themselves"),
            Left::NoController => f.write_str("no controller would create its pods again"),
            Left::Replicas(0) => f.write_str("it has no replicas"),
            Left::Replicas(_) => {
                f.write_str("it has one replica, and nobody would serve if the new one does not come up")
            }
            Left::Recreate => {
                f.write_str("its strategy is Recreate: all its pods stop before the new ones start")
            }
            Left::AllAtOnce => f.write_str("its maxUnavailable lets all its pods stop at once"),
            Left::Paused => f.write_str("its rollouts are paused"),
            Left::Refused(why) => write!(f, "a pod of it that was tried would not be in the mesh: {why}"),
            Left::Tied(way, ties) => {
                let ties: Vec<String> = ties.iter().map(ToString::to_string).collect();
                let ties = ties.join("; ");
                match way {
                    Way::Join => write!(
                        f,
                        "once it is in the mesh, callers without a sidecar are refused: {ties}; restart it when all have one"
                    ),
                    Way::Leave => write!(f, "only its sidecar keeps what policies say: {ties}; {MEND}"),
                }
            }
            Left::Judged(canary) => {
                write!(f, "{canary} is under way and judges by its pods: wait for its end")
            }
            Left::PutBack(because) => write!(f, "it was restarted and put back: {because}"),
            Left::Stopped(other) => write!(f, "Deployment/{other} was put back; mend that first"),
            Left::Unreadable => write!(f, "its annotation {LAST_RESTART} is not ours: remove it"),
        }
    }
}

/// What is decided about a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Decision {
    /// The next thing to do.
    pub(crate) act: Option<Act>,
    /// What is left to people.
    pub(crate) left: BTreeMap<Workload, Left>,
    /// When to decide anew though nothing changes.
    pub(crate) wake: Option<Timestamp>,
}

/// Decides what to do next about a namespace.
pub(crate) fn decide(given: &Given<'_>) -> Decision {
    let mut decision = Decision::default();
    let step = match follow(given) {
        Step::Nothing => begin(given, &mut decision),
        step => step,
    };
    match step {
        Step::Nothing => {}
        Step::Do(act) => decision.act = Some(act),
        Step::Wait(until) => decision.wake = until,
    }
    decision
}

enum Step {
    Nothing,
    Do(Act),
    /// Until then, unless something changes.
    Wait(Option<Timestamp>),
}

/// So long after a time that anybody may have written: at the latest the last one that there is.
fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// What was begun comes to its end before anything else begins.
fn follow(given: &Given<'_>) -> Step {
    for (name, deployment) in &given.deployments {
        let Ok(Some(record)) = Record::of(deployment) else { continue };
        let holds = record.holds(deployment);
        match &record.failed {
            Some(failed) if holds && record.before != record.after => {
                let due = later(failed.at, TOLD);
                if given.now < due {
                    return Step::Wait(Some(due));
                }
                return Step::Do(Act::Restore((*name).to_owned()));
            }
            Some(_) => {}
            None => match given.outcome(name, deployment, &record) {
                Ok(None) => return Step::Do(Act::Succeed((*name).to_owned(), record.to)),
                Ok(Some(because)) => return Step::Do(Act::Fail((*name).to_owned(), record.to, because)),
                Err(until) => return Step::Wait(until),
            },
        }
    }
    Step::Nothing
}

impl Given<'_> {
    /// How a restart ended: well, or why not. An error while it is under way: until when.
    fn outcome(
        &self,
        name: &str,
        deployment: &Deployment,
        record: &Record,
    ) -> Result<Option<String>, Option<Timestamp>> {
        if !record.holds(deployment) {
            return Ok(Some("somebody else changed its template back".to_owned()));
        }
        let own = SignedDuration::from_secs(i64::from(deployment.progress_deadline_s));
        let patience = self.patience.progress.map_or(own, |progress| progress.min(own));
        match deployment.rollout {
            Rollout::Complete { since } => {
                let workload = Workload { kind: Kind::Deployment, name: name.to_owned() };
                let crew = self.crews.get(&workload).copied().unwrap_or_default();
                let Some(wrong) = on_the_wrong_side(crew, record.to) else { return Ok(None) };
                let ended = since.map_or(record.begun_at, |since| since.max(record.begun_at));
                let settled = later(ended, SETTLE);
                if self.now < settled { Err(Some(settled)) } else { Ok(Some(wrong)) }
            }
            Rollout::UnderWay { exceeded: true, .. } => {
                Ok(Some(format!("its new pods did not come up within its progressDeadlineSeconds ({own:#})")))
            }
            Rollout::UnderWay { progress_at, exceeded: false } => {
                let progress_at = progress_at.map_or(record.begun_at, |at| at.max(record.begun_at));
                let due = later(progress_at, patience);
                if self.now < due {
                    return Err(Some(due));
                }
                Ok(Some(format!("its new pods did not come up: no progress for {patience:#}")))
            }
        }
    }
}

/// What is wrong with the pods of a workload whose restart is over.
pub(crate) fn on_the_wrong_side(crew: Crew, way: Way) -> Option<String> {
    match (way, crew) {
        (Way::Join, Crew { bare: 0, .. }) | (Way::Leave, Crew { meshed: 0, .. }) => None,
        (Way::Join, Crew { bare, .. }) => Some(format!(
            "{bare} of its new pods have no sidecar: they were told something else than the trial"
        )),
        (Way::Leave, Crew { meshed, .. }) => {
            Some(format!("{meshed} of its new pods have a sidecar all the same"))
        }
    }
}

fn begin(given: &Given<'_>, decision: &mut Decision) -> Step {
    match (given.asks, given.pass) {
        (true, None) => Step::Do(Act::Enter),
        (true, Some(Pass { left_at: Some(_) })) => Step::Do(Act::Return),
        (true, Some(Pass { left_at: None })) => join(given, decision),
        (false, None) => Step::Nothing,
        (false, Some(Pass { left_at: None })) => Step::Do(Act::NoteLeft),
        (false, Some(Pass { left_at: Some(left_at) })) => {
            let due = later(*left_at, given.patience.eject_after);
            if given.now < due { Step::Wait(Some(due)) } else { leave(given, decision) }
        }
    }
}

/// The Deployment of a namespace that was put back on its way there, or one whose way back is obsolete.
fn failed<'a>(given: &Given<'a>, to: Way) -> impl Iterator<Item = &'a str> {
    let names = given.deployments.iter().filter_map(move |(name, deployment)| {
        let record = Record::of(deployment).ok()??;
        (record.failed.is_some() && record.to == to).then_some(*name)
    });
    names.collect::<Vec<_>>().into_iter()
}

fn join(given: &Given<'_>, decision: &mut Decision) -> Step {
    if let Some(name) = failed(given, Way::Leave).next() {
        return Step::Do(Act::Forget(name.to_owned()));
    }
    let stopped = failed(given, Way::Join).next();
    let mut next = Step::Nothing;
    let outside = given.crews.iter().filter(|(workload, crew)| crew.bare > 0 && workload.kind != Kind::Job);
    for (workload, _) in outside {
        let deployment = given.deployments.get(workload.name.as_str());
        if workload.kind == Kind::Deployment && deployment.is_none() {
            continue;
        }
        let trial = given.trials.get(workload.name.as_str());
        let left = unfit(given, workload, Way::Join).or_else(|| match (stopped, trial) {
            (Some(stopped), _) => Some(Left::Stopped(stopped.to_owned())),
            (None, Some(Trial::Refused(why))) => Some(Left::Refused(why.clone())),
            (None, _) => None,
        });
        match left {
            Some(left) => drop(decision.left.insert((*workload).clone(), left)),
            // Somebody is about to change it.
            None if deployment.is_some_and(|it| !it.rollout.is_complete()) => {}
            None if matches!(next, Step::Nothing) => {
                let name = workload.name.clone();
                next = Step::Do(match trial {
                    Some(Trial::Passed) => Act::Restart(name, Way::Join),
                    _ => Act::Try(name),
                });
            }
            None => {}
        }
    }
    next
}

fn leave(given: &Given<'_>, decision: &mut Decision) -> Step {
    let mut next = Step::Nothing;
    let stopped = failed(given, Way::Leave).next();
    let inside = given.crews.iter().filter(|(workload, crew)| crew.meshed > 0 && workload.kind != Kind::Job);
    let mut anybody = false;
    for (workload, _) in inside {
        let deployment = given.deployments.get(workload.name.as_str());
        // Not seen yet; or in the mesh by its own label, whatever the namespace does.
        if workload.kind == Kind::Deployment && deployment.is_none_or(|it| it.inject.is_some()) {
            continue;
        }
        anybody = true;
        let left = unfit(given, workload, Way::Leave)
            .or_else(|| stopped.map(|stopped| Left::Stopped(stopped.to_owned())));
        match left {
            Some(left) => drop(decision.left.insert((*workload).clone(), left)),
            None if deployment.is_some_and(|it| !it.rollout.is_complete()) => {}
            None if matches!(next, Step::Nothing) => {
                // A door that is still shut for those without a sidecar would refuse whoever leaves now.
                next = if given.acknowledged {
                    Step::Do(Act::Restart(workload.name.clone(), Way::Leave))
                } else {
                    Step::Wait(Some(later(given.now, SignedDuration::from_secs(1))))
                };
            }
            None => {}
        }
    }
    if anybody {
        return next;
    }
    // Set again, the label is a new beginning.
    match failed(given, Way::Join).chain(failed(given, Way::Leave)).next() {
        Some(name) => Step::Do(Act::Forget(name.to_owned())),
        None => Step::Do(Act::GiveUp),
    }
}

/// Why a workload is not restarted without being asked, whatever became of others.
fn unfit(given: &Given<'_>, workload: &Workload, way: Way) -> Option<Left> {
    let deployment = given.deployments.get(workload.name.as_str());
    let deployment = match (workload.kind, deployment) {
        (Kind::Pod, _) => return Some(Left::NoController),
        (Kind::Deployment, Some(deployment)) => deployment,
        _ => return Some(Left::NotADeployment),
    };
    match Record::of(deployment) {
        Err(_) => return Some(Left::Unreadable),
        Ok(Some(Record { failed: Some(Failure { because, .. }), to, .. })) if to == way => {
            return Some(Left::PutBack(because));
        }
        Ok(_) => {}
    }
    let manual = given.manual || is_manual(&deployment.annotations) || is_manual(&deployment.on_template);
    if manual {
        return Some(Left::Manual);
    }
    let judged = || given.judged.get(workload).map(|canary| Left::Judged((*canary).clone()));
    by_shape(deployment).or_else(|| tied(given, workload, way)).or_else(judged)
}

/// Why pods of a Deployment cannot be replaced without anybody noticing.
pub(crate) fn by_shape(deployment: &Deployment) -> Option<Left> {
    let Deployment { replicas, max_unavailable, paused, .. } = deployment;
    match max_unavailable {
        _ if *paused => Some(Left::Paused),
        None => Some(Left::Recreate),
        _ if *replicas < REPLICAS_MIN => Some(Left::Replicas(*replicas)),
        Some(unavailable) if unavailable >= replicas => Some(Left::AllAtOnce),
        Some(_) => None,
    }
}

fn tied(given: &Given<'_>, workload: &Workload, way: Way) -> Option<Left> {
    let ties = given.ties.get(workload)?.iter();
    // Who joins can call more than before.
    let ties: BTreeSet<Tie> =
        ties.filter(|tie| way == Way::Leave || tie.why != Why::Caller).cloned().collect();
    (!ties.is_empty()).then_some(Left::Tied(way, ties))
}

#[cfg(test)]
pub(crate) mod tests;
