//! How a canary divides its service's traffic.
//!
//! The routes carry the *fail-safe* shares, which come from the rollout's memory alone: an endpoint that comes or
//! goes never edits a route. The *current* shares travel apart and follow the endpoints at once:
//!
//! - a revision without a healthy endpoint yields its share to the other one, if that one has some;
//! - except to a canary that was taken back: it gets nothing, however sick stable is;
//! - when neither has a healthy endpoint the shares stand as planned, for there is nothing to gain.
//!
//! Instances of any other revision get no traffic while a canary governs: nobody judged them, and a share that the
//! plan does not count would spoil the evidence. They stay in the cluster without revision, to which the service
//! falls back when the canary is deleted.

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
