//! Policies that contradict others: below a floor, weaker than a sibling, younger than a rival.

use super::Found;
use crate::{
    compile::{index::Index, mtls},
    id::{Namespace, ObjectId},
    policy::{MtlsMode, Policy, Target},
    problem::{Problem, Reason},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// Finds what policies say against each other.
pub(super) fn find(index: &Index<'_>, problems: &mut BTreeSet<Problem>) {
    below_floors(index, problems);
    for siblings in index.policies.rivals_about_doors() {
        let strictest = strictest(siblings);
        for (policy, sibling) in
            siblings.iter().flat_map(|one| strictest.iter().map(move |other| (one, other)))
        {
            Found { policy, problems }.weaker_than(sibling);
        }
    }
    for (winner, losers) in index.policies.rivals_about_calls() {
        for policy in losers {
            // Files have no age: there the names decide.
            let first =
                if winner.age_rank < policy.age_rank { "is older" } else { "comes first by its name" };
            let message = format!(
                "{} {first} and already says how calls to this target are made: merge the two, or delete one",
                winner.id
            );
            Found { policy, problems }.add("spec.targetRef", Reason::Conflicted, message);
        }
    }
}

fn below_floors(index: &Index<'_>, problems: &mut BTreeSet<Problem>) {
    let mut below: HashMap<&Namespace, Vec<&Policy>> = HashMap::new();
    let mut floors = index.policies.floors().peekable();
    if floors.peek().is_some() {
        for policy in index.world.policies.values() {
            if let Some(namespace) = namespace(&policy.target) {
                below.entry(namespace).or_default().push(policy);
            }
        }
    }
    for floor in floors {
        let policies: Box<dyn Iterator<Item = &Policy>> = match &floor.target {
            Target::Namespace(namespace) => Box::new(
                below
                    .get(namespace)
                    .into_iter()
                    .flatten()
                    .copied()
                    .filter(|policy| !matches!(policy.target, Target::Namespace(_))),
            ),
            _ => Box::new(below.values().flatten().copied()),
        };
        for policy in policies {
            Found { policy, problems }.below_floor(floor);
        }
    }
}

/// The policies of one target that outdo others: of the strictest about every port, and about each single one, the first.
fn strictest<'a>(siblings: &[&'a Arc<Policy>]) -> Vec<&'a Arc<Policy>> {
    let said = siblings.iter().filter_map(|policy| Some((*policy, policy.mtls.as_ref()?)));
    let mut found: BTreeMap<Option<u16>, (MtlsMode, &Arc<Policy>)> = BTreeMap::new();
    for (policy, mtls) in said {
        let whole = mtls.mode.map(|mode| (None, mode));
        let ports = mtls.ports.iter().map(|(port, mode)| (Some(*port), *mode));
        for (port, mode) in whole.into_iter().chain(ports) {
            let held = found.entry(port).or_insert((mode, policy));
            if held.0 < mode {
                *held = (mode, policy);
            }
        }
    }
    let first: BTreeMap<&ObjectId, &Arc<Policy>> =
        found.into_values().map(|(_, policy)| (&policy.id, policy)).collect();
    first.into_values().collect()
}

impl Found<'_> {
    fn below_floor(&mut self, floor: &Policy) {
        for Weaker { field, said, held, port } in weaker(self.policy, floor) {
            let message = format!(
                "{said} is weaker than the floor {held} of {}{port}: the floor holds; say {held} here, or ask its \
                 owner to lower it",
                floor.id
            );
            self.add(field, Reason::BelowFloor, message);
        }
    }

    fn weaker_than(&mut self, sibling: &Policy) {
        for Weaker { field, said, held, port } in weaker(self.policy, sibling) {
            let message = format!(
                "{said} is weaker than {held}, which {} says for the same target{port}: the stricter holds; merge the \
                 two",
                sibling.id
            );
            self.add(field, Reason::Conflicted, message);
        }
    }
}

/// The namespace a target is in or is.
fn namespace(target: &Target) -> Option<&Namespace> {
    match target {
        Target::Mesh => None,
        Target::Namespace(namespace)
        | Target::Workload { namespace, .. }
        | Target::ServiceAccount { namespace, .. } => Some(namespace),
        Target::Service { service, .. } => Some(&service.namespace),
    }
}

/// A word that another one outdoes.
struct Weaker {
    field: &'static str,
    said: MtlsMode,
    held: MtlsMode,
    /// ` on port N`, if only there.
    port: String,
}

/// Where one policy's door is weaker than another's.
fn weaker(policy: &Policy, other: &Policy) -> Vec<Weaker> {
    let (Some(mtls), Some(other)) = (&policy.mtls, &other.mtls) else { return Vec::new() };
    let compare = |field, said: Option<MtlsMode>, held: Option<MtlsMode>, port: Option<u16>| {
        let (said, held) = (said?, held?);
        let port = port.map_or_else(String::new, |port| format!(" on port {port}"));
        (said < held).then_some(Weaker { field, said, held, port })
    };
    let of_ports = mtls.ports.iter();
    let mut found: Vec<Weaker> = of_ports
        .filter_map(|(port, said)| {
            compare("spec.mtls.ports", Some(*said), mtls::mode_at(other, *port), Some(*port))
        })
        .collect();
    match compare("spec.mtls.mode", mtls.mode, other.mode, None) {
        Some(everywhere) => found.push(everywhere),
        None => {
            let not_said_here = |port: &u16| !mtls.ports.iter().any(|(said, _)| said == port);
            let single = other.ports.iter().filter(|(port, _)| not_said_here(port));
            found.extend(
                single.filter_map(|(port, held)| {
                    compare("spec.mtls.mode", mtls.mode, Some(*held), Some(*port))
                }),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use crate::{
        compile::{
            mistakes::tests::{check, door, floor, pay, shop, timeout},
            worlds::{mode, namespace, to_service},
        },
        policy::{
            MtlsMode::{Disabled, Permissive, Strict},
            MtlsSpec, Policy, Target,
        },
    };

    #[test]
    fn the_older_of_two_wins_about_calls() {
        let conflicted = |subject: &str, winner: &str, why: &str| {
            format!(
                "Conflicted: MeshPolicy shop/{subject}: spec.targetRef: MeshPolicy shop/{winner} {why} and already \
                 says how calls to this target are made: merge the two, or delete one"
            )
        };
        let by_name = conflicted("b", "a", "comes first by its name");
        check([timeout("shop/a", pay()), timeout("shop/b", pay())], &[&by_name]);
        let older = Policy { age_rank: -1, ..timeout("shop/b", pay()) };
        check([timeout("shop/a", pay()), older], &[&conflicted("a", "b", "is older")]);
        check([timeout("shop/a", pay()), timeout("shop/b", to_service("shop/pay", Some(80)))], &[]);
    }

    #[test]
    fn below_a_floor() {
        check(
            [
                door("airlane-system/floor", Target::Mesh, floor(Strict)),
                door("shop/a", shop(), mode(Strict)),
                door("shop/b", pay(), mode(Permissive)),
            ],
            &[
                "BelowFloor: MeshPolicy shop/b: spec.mtls.mode: Permissive is weaker than the floor Strict of MeshPolicy \
               airlane-system/floor: the floor holds; say Strict here, or ask its owner to lower it",
            ],
        );
        let of_port = MtlsSpec { mode: Some(Permissive), floor: Some(true), ports: vec![(8080, Strict)] };
        check(
            [
                door("shop/a", shop(), Some(of_port)),
                door(
                    "shop/b",
                    pay(),
                    Some(MtlsSpec { ports: vec![(8080, Disabled)], ..MtlsSpec::default() }),
                ),
                door("bank/c", Target::Namespace(namespace("bank")), mode(Disabled)),
            ],
            &[
                "BelowFloor: MeshPolicy shop/b: spec.mtls.ports: Disabled is weaker than the floor Strict of MeshPolicy \
               shop/a on port 8080: the floor holds; say Strict here, or ask its owner to lower it",
            ],
        );
    }

    #[test]
    fn the_weaker_of_two_doors() {
        check(
            [door("shop/a", pay(), mode(Disabled)), door("shop/b", pay(), mode(Strict))],
            &[
                "Conflicted: MeshPolicy shop/a: spec.mtls.mode: Disabled is weaker than Strict, which MeshPolicy shop/b \
               says for the same target: the stricter holds; merge the two",
            ],
        );
    }
}
