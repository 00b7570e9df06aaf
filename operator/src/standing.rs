//! How an object stands: what is wrong with it, and how many proxies run it.

use crate::{control::Picture, fleet::Census, milestone::Milestone, xds::Refusals};
use airlane_api::status::Proxies;
use airlane_core::{
    id::{ClusterName, InstanceId, ObjectId},
    mesh::Route,
    problem::{Problem, Reason},
    rollout::Canary,
};
use std::collections::BTreeSet;

/// All that is wrong with an object: what its reader, the compiler and the proxies found.
pub(crate) fn problems_of(id: &ObjectId, picture: &Picture, refusals: &Refusals) -> Vec<Problem> {
    let compiled = picture.compiled.problems.iter().filter(|problem| problem.subject == *id).cloned();
    let mut problems: Vec<Problem> = compiled.collect();
    if let Some(accepted) = picture.declared.objects.get(id) {
        problems.extend(accepted.problems.iter().cloned());
    }
    problems.extend(rejected(refusals).filter(|problem| problem.subject == *id));
    problems.sort();
    problems.dedup();
    problems
}

/// What proxies refuse, said on the objects that shaped it.
pub(crate) fn rejected(refusals: &Refusals) -> impl Iterator<Item = Problem> {
    refusals.values().flat_map(|refusal| {
        let rejection = &refusal.rejection;
        rejection.shaped_by.iter().map(move |subject| Problem {
            subject: subject.clone(),
            field: String::new(),
            reason: Reason::Rejected,
            message: format!(
                "{} proxies refuse {:?} {}, made from this object; they keep what they had: {}",
                refusal.proxies.len(),
                rejection.key.kind,
                rejection.key.name,
                rejection.detail
            ),
        })
    })
}

/// The share that is sent to a canary, in parts of [`airlane_core::mesh::FULL_SHARE`]: the largest of its ports. It is not
/// the planned one while a version has no healthy endpoint. `None` if it splits nothing, or if another step of it is
/// published than the one it remembers.
pub(crate) fn share(canary: &Canary, picture: &Picture) -> Option<u32> {
    let planned = |canary: &Canary| canary.progress.as_ref().map(|progress| progress.share);
    let published = picture.world.canaries.get(&canary.id).filter(|it| planned(it) == planned(canary))?;
    let mesh = &picture.compiled.mesh;
    let destinations = mesh.destinations.values().filter(|it| it.shaped_by.contains(&published.id));
    let shares = destinations.filter_map(|destination| {
        let Route::Split(split) = &destination.route else { return None };
        let revision = Some(published.plan.canary.clone());
        let cluster = ClusterName { port: destination.port.clone(), revision };
        mesh.shares.get(&split.runtime_key(&cluster)).copied()
    });
    shares.max()
}

/// How far the object's present version has come with the connected proxies.
pub(crate) fn proxies(id: &ObjectId, picture: &Picture, census: &Census, refusals: &Refusals) -> Proxies {
    let Some(accepted) = picture.declared.objects.get(id) else { return Proxies::default() };
    let milestone = Milestone::object(id, accepted);
    let refused_by: BTreeSet<&InstanceId> = refusals
        .values()
        .filter(|refusal| refusal.rejection.shaped_by.contains(id))
        .flat_map(|refusal| &refusal.proxies)
        .collect();
    let mut counted = Proxies::default();
    for (instance, reached) in census.of(picture, &milestone) {
        counted.targeted += 1;
        if refused_by.contains(instance) {
            counted.rejected += 1;
        } else if reached {
            counted.acknowledged += 1;
        } else {
            counted.outdated += 1;
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollouts::tests::{canary, picture};
    use airlane_core::{
        mesh::FULL_SHARE,
        world::Health::{Healthy, Unhealthy},
    };

    #[test]
    fn the_share_told_is_the_one_that_is_sent() {
        let planned = canary(1_000);
        let sent = |healths| share(&planned, &picture(&planned, healths));
        assert_eq!(sent([Healthy, Healthy]), Some(1_000));
        assert_eq!(sent([Unhealthy, Healthy]), Some(FULL_SHARE));
        assert_eq!(sent([Healthy, Unhealthy]), Some(0));
        let ahead = canary(5_000);
        assert_eq!(share(&ahead, &picture(&planned, [Healthy, Healthy])), None, "it is not published yet");
    }
}
