//! How a canary divides its service's traffic.
//!
//! The routes carry the *fail-safe* shares, which come from the rollout's memory alone: an endpoint that
//! comes or goes never edits a route. The *current* shares travel apart and follow the endpoints at once:
//!
//! - a revision without a healthy endpoint yields its share to the other one, if that one has some;
//! - except to a canary that a person took back: it gets nothing, however sick stable is;
//! - when neither has a healthy endpoint the shares stand as planned, for there is nothing to gain.
//!
//! Shares arrive later than endpoints, and where nobody vouches for them not at all. So the one's endpoints also stand in
//! for the other's where it would yield its share to them: no request finds an empty cluster.
//!
//! While stable has a healthy endpoint, instances of any third revision get no traffic: nobody judged them, and a
//! share that the plan does not count would spoil the evidence. They stay in the cluster without revision, to which
//! the service falls back when the canary is deleted. While stable has none, all of them serve in its place: what is
//! left of a service serves before a canary that proved nothing does, and a version that was mistyped takes nobody
//! down. Only when nothing else is healthy does such a canary get everything, even one that was taken back on
//! evidence: some of its requests fail, and without it all would.

use crate::{
    id::{ClusterName, ObjectId, Revision, ServiceId, ServicePort},
    mesh::{FULL_SHARE, Split},
    problem::{Problem, Reason},
    rollout::{Canary, Phase, Progress, Rollout},
    world::{Health, World},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// The part of a canary that routing depends on. Evidence, which changes every few seconds, is not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Governing {
    pub(super) by: ObjectId,
    stable: Revision,
    canary: Revision,
    /// The canary's share now.
    share: u32,
    /// The canary's share when nobody keeps the current one alive.
    fail_safe_share: u32,
    /// It gets nothing, whatever else is there.
    shut_out: bool,
}

/// The canary that governs each service: of several the one that is under way, else the oldest, else the first in object
/// order. The others, and those that cannot govern anything, get a problem.
pub(super) fn governing(world: &World, problems: &mut BTreeSet<Problem>) -> HashMap<ServiceId, Governing> {
    let mut governing = HashMap::new();
    let mut canaries: Vec<&Arc<Canary>> = world.canaries.values().collect();
    // Only who governs has steps to remember. The order is kept where this says nothing.
    canaries.sort_by_key(|canary| (canary.progress.is_none(), canary.age_rank));
    for canary in canaries {
        let plan = &canary.plan;
        let mut problem = |field: &str, reason, message| {
            let (subject, field) = (canary.id.clone(), field.to_owned());
            problems.insert(Problem { subject, field, reason, message });
        };
        if !world.services.contains_key(&plan.service) {
            let message = format!(
                "there is no service {}: start a workload of it, or correct the name; until then nothing is split",
                plan.service
            );
            problem("spec.service", Reason::TargetNotFound, message);
        } else if plan.stable == plan.canary {
            let message = format!(
                "stable and canary are both {}: name the new version here; until then nothing is split",
                plan.canary
            );
            problem("spec.canary", Reason::Unsplittable, message);
        } else {
            match governing.entry(plan.service.clone()) {
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(Governing::of(canary));
                }
                std::collections::hash_map::Entry::Occupied(taken) => {
                    let by: &Governing = taken.get();
                    let message = format!("{} already splits {}: delete one of the two", by.by, plan.service);
                    problem("spec.service", Reason::Conflicted, message);
                }
            }
        }
    }
    let copies = copies(world, &governing);
    let none = Copies::default();
    problems.extend(governing.iter().filter_map(|(service, governing)| {
        without_stable(world.canaries.get(&governing.by)?, copies.get(service).unwrap_or(&none))
    }));
    governing
}

/// How many copies of each revision of a service are healthy.
type Copies<'w> = BTreeMap<&'w Revision, usize>;

/// The copies of the services that a canary governs.
fn copies<'w>(
    world: &'w World,
    governing: &HashMap<ServiceId, Governing>,
) -> HashMap<&'w ServiceId, Copies<'w>> {
    let mut copies: HashMap<&ServiceId, Copies<'_>> = HashMap::new();
    if governing.is_empty() {
        return copies;
    }
    for instance in world.instances.values() {
        for service in instance.services.iter().filter(|service| governing.contains_key(service)) {
            let of = copies.entry(service).or_default().entry(instance.revision()).or_default();
            *of += usize::from(instance.health == Health::Healthy);
        }
    }
    copies
}

/// What is wrong while stable has no healthy copy and something else has. Once the canary has everything, stable may
/// go.
fn without_stable(canary: &Canary, copies: &Copies<'_>) -> Option<Problem> {
    let Rollout { service, stable, canary: trial, .. } = &canary.plan;
    let progress = canary.progress.as_ref().filter(|it| it.canary == *trial);
    let phase = progress.map(|progress| progress.phase);
    let healthy: Vec<&Revision> =
        copies.iter().filter(|(_, healthy)| **healthy > 0).map(|(revision, _)| *revision).collect();
    let decided = matches!(phase, Some(Phase::Promoting | Phase::Succeeded));
    if decided || healthy.is_empty() || healthy.contains(&stable) {
        return None;
    }
    let missing = if copies.contains_key(stable) {
        format!("no instance of {service} with version {stable} is ready")
    } else {
        format!("no instance of {service} has version {stable}")
    };
    let others: Vec<&Revision> = healthy.iter().copied().filter(|revision| *revision != trial).collect();
    let retry = || format!(", or retry {trial} (airlane canary retry {})", canary.id.name);
    let (mend, meanwhile) = if !others.is_empty() {
        (String::new(), format!("{} in its place", serves(&others)))
    } else if progress.is_some_and(is_shut_out) {
        (retry(), format!("every request fails, for {trial} was aborted by hand"))
    } else if progress.is_some_and(is_taken_back) {
        (retry(), format!("{trial} gets every request although it was taken back, for nothing else is ready"))
    } else {
        (String::new(), format!("{trial} gets every request, for nothing else is ready"))
    };
    let message = format!(
        "{missing}; ready: {}. Start {stable}, or correct the version{mend}; until then {meanwhile}",
        list(&healthy)
    );
    Some(Problem {
        subject: canary.id.clone(),
        field: "spec.stable.version".to_owned(),
        reason: Reason::VersionNotReady,
        message,
    })
}

fn is_taken_back(progress: &Progress) -> bool {
    matches!(progress.phase, Phase::RollingBack | Phase::RolledBack)
}

fn is_shut_out(progress: &Progress) -> bool {
    is_taken_back(progress) && progress.aborted
}

fn list(revisions: &[&Revision]) -> String {
    revisions.iter().map(|revision| revision.as_str()).collect::<Vec<_>>().join(", ")
}

fn serves(revisions: &[&Revision]) -> String {
    format!("{} {}", list(revisions), if revisions.len() == 1 { "serves" } else { "serve" })
}

impl Governing {
    fn of(canary: &Canary) -> Self {
        // Progress of another revision says nothing about this one: all on stable until its own first step.
        let progress = canary.progress.as_ref().filter(|progress| progress.canary == canary.plan.canary);
        let share = |of: fn(&Progress) -> u32| progress.map_or(0, of).min(FULL_SHARE);
        Governing {
            by: canary.id.clone(),
            stable: canary.plan.stable.clone(),
            canary: canary.plan.canary.clone(),
            share: share(|progress| progress.share),
            fail_safe_share: share(|progress| progress.fail_safe_share),
            shut_out: progress.is_some_and(is_shut_out),
        }
    }

    /// The clusters of the two revisions on a port: stable, canary.
    pub(super) fn clusters(&self, port: &ServicePort) -> [ClusterName; 2] {
        [&self.stable, &self.canary]
            .map(|revision| ClusterName { port: port.clone(), revision: Some(revision.clone()) })
    }

    /// The split on a port, with the shares that hold when nobody keeps the current ones alive.
    pub(super) fn split(&self, port: &ServicePort) -> Split {
        let ServicePort { service, port: number } = port;
        let [stable, canary] = self.clusters(port);
        Split {
            runtime_prefix: format!("airlane.{}.{}.{number}", service.namespace, service.name),
            fail_safe: vec![(stable, FULL_SHARE - self.fail_safe_share), (canary, self.fail_safe_share)],
        }
    }

    /// Whether stable may answer for the canary, and the canary for stable, while those have no healthy endpoint.
    pub(super) fn stand_in(&self) -> [bool; 2] {
        [true, !self.shut_out]
    }

    /// The revision in production.
    pub(super) fn stable(&self) -> &Revision {
        &self.stable
    }

    /// Whether instances of a revision serve in stable's place while stable has none that is healthy.
    pub(super) fn takes_its_place(&self, revision: &Revision) -> bool {
        *revision != self.canary
    }

    /// The current shares of stable and canary, given which of them has a healthy endpoint. They sum to
    /// [`FULL_SHARE`].
    pub(super) fn shares(&self, stable_serves: bool, canary_serves: bool) -> [u32; 2] {
        let canary = match (stable_serves, canary_serves) {
            (true, false) => 0,
            (false, true) if !self.shut_out => FULL_SHARE,
            _ => self.share,
        };
        [FULL_SHARE - canary, canary]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::worlds::{Edit, canary, instance, progress, service, world_of};

    /// The fail-safe shares, and the current ones for each of (stable serves, canary serves).
    fn check(memory: Option<Progress>, fail_safe: [u32; 2], current: [[u32; 2]; 4]) {
        let mut canary = canary("shop/pay", "shop/pay");
        canary.progress = memory;
        let governing = Governing::of(&canary);
        let port = ServicePort { service: canary.plan.service, port: 80 };
        let split = governing.split(&port);
        let routes: Vec<(String, u32)> =
            split.fail_safe.iter().map(|(cluster, share)| (split.runtime_key(cluster), *share)).collect();
        let key = |revision: &str| format!("airlane.shop.pay.80.80|pay|shop|{revision}");
        assert_eq!(routes, [(key("v1"), fail_safe[0]), (key("v2"), fail_safe[1])]);
        let serving = [(true, true), (true, false), (false, true), (false, false)];
        assert_eq!(serving.map(|(stable, canary)| governing.shares(stable, canary)), current);
    }

    const STABLE: [u32; 2] = [FULL_SHARE, 0];
    const CANARY: [u32; 2] = [0, FULL_SHARE];

    #[test]
    fn without_progress_all_is_on_stable_or_who_stands_in_for_it() {
        check(None, STABLE, [STABLE, STABLE, CANARY, STABLE]);
    }

    #[test]
    fn an_uncertified_share_is_current_and_not_in_the_routes() {
        let five = [9_500, 500];
        check(Some(progress(Phase::Progressing, 500, 0)), STABLE, [five, STABLE, CANARY, five]);
    }

    #[test]
    fn a_certified_share_is_in_the_routes() {
        let half = [5_000, 5_000];
        check(Some(progress(Phase::Promoting, FULL_SHARE, 5_000)), half, [CANARY, STABLE, CANARY, CANARY]);
    }

    #[test]
    fn after_success_all_is_on_the_canary_and_falls_back_while_stable_is_there() {
        check(
            Some(progress(Phase::Succeeded, FULL_SHARE, FULL_SHARE)),
            CANARY,
            [CANARY, STABLE, CANARY, CANARY],
        );
    }

    #[test]
    fn a_canary_that_a_person_took_back_gets_nothing_however_sick_stable_is() {
        for phase in [Phase::RollingBack, Phase::RolledBack] {
            let aborted = Progress { aborted: true, ..progress(phase, 0, 0) };
            check(Some(aborted), STABLE, [STABLE; 4]);
        }
    }

    #[test]
    fn a_canary_that_was_taken_back_on_evidence_serves_before_nothing_does() {
        for phase in [Phase::RollingBack, Phase::RolledBack] {
            check(Some(progress(phase, 0, 0)), STABLE, [STABLE, STABLE, CANARY, STABLE]);
        }
    }

    #[test]
    fn progress_of_another_revision_is_none() {
        let mut of_another = progress(Phase::Succeeded, FULL_SHARE, FULL_SHARE);
        of_another.canary = Revision::parse("v0").expect("a revision");
        check(Some(of_another), STABLE, [STABLE, STABLE, CANARY, STABLE]);
    }

    #[test]
    fn shares_beyond_the_whole_are_the_whole() {
        let beyond = progress(Phase::Progressing, u32::MAX, u32::MAX);
        check(Some(beyond), CANARY, [CANARY, STABLE, CANARY, CANARY]);
    }

    #[test]
    fn the_first_canary_governs_and_the_others_are_told() {
        let mut none_to_split = canary("shop/a", "shop/pay");
        none_to_split.plan.stable = none_to_split.plan.canary.clone();
        let world = world_of([
            service("shop/pay", &[]).into(),
            none_to_split.into(),
            canary("shop/b", "shop/pay").into(),
            canary("shop/c", "shop/pay").into(),
            canary("shop/d", "shop/gone").into(),
        ]);
        let mut problems = BTreeSet::new();
        let governing = governing(&world, &mut problems);
        let by: Vec<String> = governing.values().map(|governing| governing.by.to_string()).collect();
        assert_eq!(by, ["Canary shop/b"]);
        let told: Vec<_> =
            problems.iter().map(|it| (it.subject.to_string(), it.field.as_str(), it.reason)).collect();
        assert_eq!(
            told,
            [
                ("Canary shop/a".to_owned(), "spec.canary", Reason::Unsplittable),
                ("Canary shop/c".to_owned(), "spec.service", Reason::Conflicted),
                ("Canary shop/d".to_owned(), "spec.service", Reason::TargetNotFound),
            ]
        );
    }

    #[test]
    fn a_newer_canary_dethrones_none_that_is_under_way_or_older() {
        let by = |one: Canary, other: Canary| {
            let world = world_of([service("shop/pay", &[]).into(), one.into(), other.into()]);
            let governing = governing(&world, &mut BTreeSet::new());
            governing.values().map(|it| it.by.name.to_string()).collect::<Vec<_>>()
        };
        let of = |name: &str, age_rank: i64, memory: Option<Progress>| {
            let canary = canary(&format!("shop/{name}"), "shop/pay");
            Canary { age_rank, progress: memory, ..canary }
        };
        let running = || Some(progress(Phase::Progressing, 500, 0));
        assert_eq!(by(of("a", 0, None), of("b", 0, None)), ["a"]);
        assert_eq!(by(of("a", 7, None), of("b", 3, None)), ["b"]);
        assert_eq!(by(of("a", 0, None), of("b", 0, running())), ["b"]);
        assert_eq!(by(of("a", 3, running()), of("b", 7, running())), ["a"]);
    }

    /// What is told of the canary from v1 to v2 with this memory and these copies: number, version and whether it is
    /// healthy.
    fn told(memory: Option<Progress>, copies: &[(u8, &str, bool)]) -> Vec<String> {
        let mut canary = canary("shop/pay", "shop/pay");
        canary.progress = memory;
        let copies = copies.iter().map(|&(number, version, healthy)| {
            let mut copy = instance("shop/pay", version, number);
            copy.health = if healthy { Health::Healthy } else { Health::Unhealthy };
            Edit::from(copy)
        });
        let world = world_of([service("shop/pay", &[]).into(), canary.into()].into_iter().chain(copies));
        let mut problems = BTreeSet::new();
        governing(&world, &mut problems);
        let stable = |problem: &Problem| problem.reason == Reason::VersionNotReady;
        assert!(problems.iter().all(|it| stable(it) && it.field == "spec.stable.version"), "{problems:?}");
        problems.into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn a_stable_that_is_not_there_is_told_with_what_is_ready_and_who_serves() {
        let none: [String; 0] = [];
        assert_eq!(told(None, &[]), none, "nothing is ready: that is no matter of a canary");
        assert_eq!(told(None, &[(1, "v1", true)]), none);
        assert_eq!(
            told(None, &[(1, "v0", true), (2, "v2", true), (3, "v3", false)]),
            [
                "no instance of shop/pay has version v1; ready: v0, v2. Start v1, or correct the version; until then v0 \
              serves in its place"
            ]
        );
        assert_eq!(
            told(None, &[(1, "v1", false), (2, "v2", true)]),
            [
                "no instance of shop/pay with version v1 is ready; ready: v2. Start v1, or correct the version; until \
              then v2 gets every request, for nothing else is ready"
            ]
        );
        let taken_back = progress(Phase::RolledBack, 0, 0);
        let message = |meanwhile: &str| {
            let missing =
                "no instance of shop/pay has version v1; ready: v2. Start v1, or correct the version";
            format!("{missing}, or retry v2 (airlane canary retry pay); until then {meanwhile}")
        };
        assert_eq!(
            told(Some(taken_back.clone()), &[(2, "v2", true)]),
            [message("v2 gets every request although it was taken back, for nothing else is ready")]
        );
        let aborted = Progress { aborted: true, ..taken_back };
        assert_eq!(
            told(Some(aborted), &[(2, "v2", true)]),
            [message("every request fails, for v2 was aborted by hand")]
        );
        let succeeded = progress(Phase::Succeeded, FULL_SHARE, FULL_SHARE);
        assert_eq!(told(Some(succeeded), &[(2, "v2", true)]), none, "stable has had its day");
    }
}
