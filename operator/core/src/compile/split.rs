//! How a canary divides its service's traffic.
//!
//! The routes carry the *fail-safe* shares, which come from the rollout's memory alone: an endpoint that
//! comes or goes never edits a route. The *current* shares travel apart and follow the endpoints at once:
//!
//! - a revision without a healthy endpoint yields its share to the other one, if that one has some;
//! - except to a canary that was taken back: it gets nothing, however sick stable is;
//! - when neither has a healthy endpoint the shares stand as planned, for there is nothing to gain.
//!
//! Shares arrive later than endpoints, and where nobody vouches for them not at all. So the one's endpoints also stand in
//! for the other's where it would yield its share to them: no request finds an empty cluster.
//!
//! Instances of any other revision get no traffic while a canary governs: nobody judged them, and a share
//! that the plan does not count would spoil the evidence. They stay in the cluster without revision, to which
//! the service falls back when the canary is deleted.

use crate::{
    id::{ClusterName, ObjectId, Revision, ServiceId, ServicePort},
    mesh::{FULL_SHARE, Split},
    problem::{Problem, Reason},
    rollout::{Canary, Phase, Progress},
    world::World,
};
use std::collections::{BTreeSet, HashMap};

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
    taken_back: bool,
}

/// The canary that governs each service: the first in object order. The others, and those that cannot govern
/// anything, get a problem.
pub(super) fn governing(world: &World, problems: &mut BTreeSet<Problem>) -> HashMap<ServiceId, Governing> {
    let mut governing = HashMap::new();
    for canary in world.canaries.values() {
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
    governing
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
            taken_back: progress.is_some_and(|p| matches!(p.phase, Phase::RollingBack | Phase::RolledBack)),
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
        [true, !self.taken_back]
    }

    /// The current shares of stable and canary, given which of them has a healthy endpoint. They sum to
    /// [`FULL_SHARE`].
    pub(super) fn shares(&self, stable_serves: bool, canary_serves: bool) -> [u32; 2] {
        let canary = match (stable_serves, canary_serves) {
            (true, false) => 0,
            (false, true) if !self.taken_back => FULL_SHARE,
            _ => self.share,
        };
        [FULL_SHARE - canary, canary]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::worlds::{canary, progress, service, world_of};

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
    fn without_progress_all_is_on_stable() {
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
    fn a_canary_that_was_taken_back_gets_nothing_however_sick_stable_is() {
        for phase in [Phase::RollingBack, Phase::RolledBack] {
            check(Some(progress(phase, 0, 0)), STABLE, [STABLE; 4]);
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
}
