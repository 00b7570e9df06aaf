//! What proxies can be asked to have acknowledged, in words that every replica means the same by: epochs are a
//! replica's own count.

use crate::observe::declared::{Accepted, Declared};
use airlane_core::{
    id::{ClusterName, InstanceId, ObjectId, ServiceId},
    mesh::{Mesh, Route},
    rollout::{Acknowledged, Canary},
    world::{Health, World},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};
use xxhash_rust::xxh3::xxh3_64;

/// Something that is published, or not any more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Milestone {
    /// An object by its uid, in this generation.
    Object(ObjectId, String, i64),
    /// These shares of a canary: the current one and the one in the routes.
    Shares(ObjectId, u32, u32),
    /// An instance that is on its way out is not called any more.
    Withdrawn(InstanceId),
    /// These roots are trusted: [`roots`] of their bundle.
    Roots(u64),
}

impl Milestone {
    /// An object as it is in force.
    pub(crate) fn object(id: &ObjectId, accepted: &Accepted) -> Milestone {
        Milestone::Object(id.clone(), accepted.uid.clone(), accepted.generation)
    }

    /// The shares of a canary.
    pub(crate) fn shares(canary: &ObjectId, shares: Acknowledged) -> Milestone {
        Milestone::Shares(canary.clone(), shares.share, shares.fail_safe_share)
    }
}

/// What names a bundle of roots, in PEM.
pub(crate) fn roots(bundle: &str) -> u64 {
    xxh3_64(bundle.as_bytes())
}

/// What holds of a publication, and since which epoch without a break.
pub(crate) type Milestones = BTreeMap<Milestone, u64>;

/// What holds of what is published in this epoch. `before` is the publication before it.
pub(crate) fn of(
    declared: &Declared,
    world: &World,
    mesh: &Mesh,
    bundle: &str,
    epoch: u64,
    before: Option<&Milestones>,
) -> Milestones {
    let objects = declared.objects.iter().map(|(id, accepted)| Milestone::object(id, accepted));
    let diverted = diverted(world, mesh);
    let shares = world
        .canaries
        .values()
        .filter(|canary| !diverted.contains(&canary.id))
        .filter_map(|canary| Some(Milestone::shares(&canary.id, planned(canary)?)));
    let withdrawn = world
        .instances
        .values()
        .filter(|instance| instance.health == Health::Draining)
        .map(|instance| Milestone::Withdrawn(instance.id.clone()));
    objects
        .chain(shares)
        .chain(withdrawn)
        .chain([Milestone::Roots(roots(bundle))])
        .map(|milestone| {
            let since = before.and_then(|before| before.get(&milestone)).copied();
            (milestone, since.unwrap_or(epoch))
        })
        .collect()
}

/// The shares that a canary's memory asks for.
pub(crate) fn planned(canary: &Canary) -> Option<Acknowledged> {
    let progress = canary.progress.as_ref()?;
    Some(Acknowledged { share: progress.share, fail_safe_share: progress.fail_safe_share })
}

/// The canaries whose planned share is not the one that is published: a revision without a healthy endpoint yields its
/// share to the other.
fn diverted<'a>(world: &'a World, mesh: &Mesh) -> HashSet<&'a ObjectId> {
    let mut by_service: HashMap<&ServiceId, Vec<&Arc<Canary>>> = HashMap::new();
    for canary in world.canaries.values() {
        by_service.entry(&canary.plan.service).or_default().push(canary);
    }
    let mut diverted = HashSet::new();
    for destination in mesh.destinations.values() {
        let Route::Split(split) = &destination.route else { continue };
        for canary in by_service.get(&destination.port.service).into_iter().flatten() {
            let revision = Some(canary.plan.canary.clone());
            let cluster = ClusterName { port: destination.port.clone(), revision };
            let published = mesh.shares.get(&split.runtime_key(&cluster)).copied();
            let planned = canary.progress.as_ref().map(|progress| progress.share);
            if published.is_some() && published != planned {
                diverted.insert(&canary.id);
            }
        }
    }
    diverted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::Picture,
        enrol::ties::tests::{permissive, picture_of},
    };

    /// Since which epoch an object holds that was another one, or the same, in the epoch before.
    fn check(before: (&str, i64), now: (&str, i64), since: u64) {
        let policy = permissive();
        let Picture { world, compiled, .. } = picture_of(Arc::clone(&policy));
        let accepted = |(uid, generation): (&str, i64)| Accepted {
            file: None,
            uid: uid.to_owned(),
            generation,
            age_rank: 0,
            value: None,
            problems: Vec::new(),
            outdated: false,
            place: None,
        };
        let in_epoch = |epoch: u64, version, before: Option<&Milestones>| {
            let objects = BTreeMap::from([(policy.id.clone(), Arc::new(accepted(version)))]);
            let declared = Declared { objects, ..Declared::default() };
            of(&declared, &world, &compiled.mesh, "", epoch, before)
        };
        let now_holds = in_epoch(2, now, Some(&in_epoch(1, before, None)));
        assert_eq!(now_holds[&Milestone::object(&policy.id, &accepted(now))], since);
    }

    #[test]
    fn an_object_that_was_replaced_is_another_one() {
        check(("a", 1), ("a", 1), 1);
        check(("a", 1), ("a", 2), 2);
        check(("a", 1), ("b", 1), 2);
    }
}
