//! How an object stands: what is wrong with it, and how many proxies run it.

use crate::{
    control::Picture,
    fleet::Census,
    milestone::Milestone,
    xds::{Refusal, Refusals},
};
use airlane_api::status::Proxies;
use airlane_core::{
    id::{ClusterName, InstanceId, ObjectId},
    mesh::Route,
    problem::{Problem, Reason},
    rollout::Canary,
};
use std::collections::{BTreeSet, HashMap};

/// What is found of objects at one moment, by object: of many of them each is asked about.
pub(crate) struct Standings<'a> {
    picture: &'a Picture,
    /// What the compiler found.
    compiled: HashMap<&'a ObjectId, Vec<&'a Problem>>,
    /// What proxies refuse that an object shaped.
    refused: HashMap<&'a ObjectId, Vec<&'a Refusal>>,
}

impl<'a> Standings<'a> {
    /// How the objects of a picture stand, of which proxies refuse that.
    pub(crate) fn of(picture: &'a Picture, refusals: &'a Refusals) -> Standings<'a> {
        let mut compiled: HashMap<_, Vec<_>> = HashMap::new();
        for problem in &picture.compiled.problems {
            compiled.entry(&problem.subject).or_default().push(problem);
        }
        let mut refused: HashMap<_, Vec<_>> = HashMap::new();
        for refusal in refusals.values() {
            for subject in refusal.rejection.shaped_by.iter() {
                refused.entry(subject).or_default().push(refusal);
            }
        }
        Standings { picture, compiled, refused }
    }

    /// All that is wrong with an object: what its reader, the compiler and the proxies found.
    pub(crate) fn problems_of(&self, id: &ObjectId) -> Vec<Problem> {
        let compiled = self.compiled.get(id).into_iter().flatten();
        let read = self.picture.declared.objects.get(id).into_iter().flat_map(|it| &it.problems);
        let mut problems: Vec<Problem> = compiled.copied().chain(read).cloned().collect();
        problems.extend(self.refused_of(id).map(|refusal| rejection(refusal, id)));
        problems.sort();
        problems.dedup();
        problems
    }

    /// How far the object's present version has come with the connected proxies.
    pub(crate) fn proxies(&self, id: &ObjectId, census: &Census) -> Proxies {
        let Some(accepted) = self.picture.declared.objects.get(id) else { return Proxies::default() };
        let milestone = Milestone::object(id, accepted);
        let (targeted, reached) = census.count(self.picture, &milestone);
        let mut counted =
            Proxies { targeted, acknowledged: reached, rejected: 0, outdated: targeted - reached };
        let refused_by: BTreeSet<&InstanceId> =
            self.refused_of(id).flat_map(|refusal| &refusal.proxies).collect();
        if refused_by.is_empty() {
            return counted;
        }
        let refuse = census.of(self.picture, &milestone).filter(|(it, _)| refused_by.contains(it));
        for (_, reached) in refuse {
            let side = if reached { &mut counted.acknowledged } else { &mut counted.outdated };
            *side -= 1;
            counted.rejected += 1;
        }
        counted
    }

    fn refused_of(&self, id: &ObjectId) -> impl Iterator<Item = &'a Refusal> {
        self.refused.get(id).into_iter().flatten().copied()
    }
}

/// What proxies refuse, said on the objects that shaped it.
pub(crate) fn rejected(refusals: &Refusals) -> impl Iterator<Item = Problem> {
    refusals.values().flat_map(|refusal| {
        refusal.rejection.shaped_by.iter().map(move |subject| rejection(refusal, subject))
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

fn rejection(Refusal { rejection, proxies }: &Refusal, subject: &ObjectId) -> Problem {
    Problem {
        subject: subject.clone(),
        field: String::new(),
        reason: Reason::Rejected,
        message: format!(
            "{} proxies refuse {:?} {}, made from this object; they keep what they had: {}",
            proxies.len(),
            rejection.key.kind,
            rejection.key.name,
            rejection.detail
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        enrol::ties::tests::{permissive, picture_of},
        fleet::{Fleet, Reported},
        observe::declared::{Accepted, Declared},
        rollouts::tests::{canary, picture},
        xds::Publisher,
    };
    use airlane_core::{
        id::Name,
        mesh::FULL_SHARE,
        world::Health::{Healthy, Unhealthy},
    };
    use airlane_envoy::{
        catalog::{Key, Kind, Scope, Version},
        delta::Rejection,
    };
    use std::{collections::BTreeMap, sync::Arc};

    #[test]
    fn who_refuses_what_an_object_shaped_counts_for_nothing_else() {
        let policy = permissive();
        let other = ObjectId { name: Name::parse("other").expect("a name"), ..policy.id.clone() };
        let accepted = Accepted {
            file: None,
            uid: "u".to_owned(),
            generation: 1,
            age_rank: 0,
            value: None,
            problems: Vec::new(),
            outdated: false,
            place: None,
        };
        let objects: BTreeMap<_, _> =
            [&policy.id, &other].map(|id| (id.clone(), Arc::new(accepted.clone()))).into();
        let declared = Arc::new(Declared { objects, ..Declared::default() });
        let picture = Picture { declared, ..picture_of(Arc::clone(&policy)) };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let fleet = Fleet::new(Publisher::new(clock.clone()), clock);
        let instance = |name: &str| InstanceId::parse(name).expect("a name");
        let stream = fleet.open();
        fleet.report(stream, |replica| {
            for id in [&policy.id, &other] {
                Arc::make_mut(&mut replica.milestones).insert(Milestone::object(id, &accepted), 5);
            }
            let come = [("a-abcd", Some(5)), ("b-abcd", Some(9)), ("c-abcd", Some(4)), ("d-abcd", None)];
            for (name, acked_epoch) in come {
                replica.proxies.insert(instance(name), Reported { acked_epoch, shares: None });
            }
        });
        let key = Key { kind: Kind::Cluster, name: "pay".into() };
        let refusal = Refusal {
            rejection: Rejection {
                key: key.clone(),
                scope: Scope::Everyone,
                version: Version(1),
                shaped_by: Arc::new(BTreeSet::from([policy.id.clone()])),
                detail: "too odd".to_owned(),
            },
            proxies: ["a-abcd", "d-abcd", "gone-abcd"].map(instance).into(),
        };
        let refusals = Refusals::from([((Scope::Everyone, key), refusal)]);
        let standings = Standings::of(&picture, &refusals);
        let census = fleet.census();
        let counted = |id: &ObjectId| {
            let Proxies { targeted, acknowledged, rejected, outdated } = standings.proxies(id, &census);
            [targeted, acknowledged, rejected, outdated]
        };
        assert_eq!(counted(&policy.id), [4, 1, 2, 1]);
        assert_eq!(counted(&other), [4, 2, 0, 2]);
        let told: Vec<String> =
            standings.problems_of(&policy.id).into_iter().map(|problem| problem.message).collect();
        assert_eq!(
            told,
            ["3 proxies refuse Cluster pay, made from this object; they keep what they had: too odd"]
        );
        assert_eq!(standings.problems_of(&other), []);
    }

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
