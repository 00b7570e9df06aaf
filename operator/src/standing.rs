//! How an object stands: what is wrong with it, and how many proxies run it.

use crate::{control::Picture, fleet::Census, milestone::Milestone, xds::Refusals};
use airlane_api::status::Proxies;
use airlane_core::{
    id::{InstanceId, ObjectId},
    problem::{Problem, Reason},
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
