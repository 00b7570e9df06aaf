//! What holds for every world.

use super::{
    Compiled, Memo, Origin, Row, compile, effective,
    worlds::{Edit, any_edit, any_world, mode, name, policy, service_id, to_service, world_of},
};
use crate::{
    id::{ClusterName, ObjectKind, ServiceId},
    mesh::{Destination, Endpoint, FULL_SHARE, Route},
    policy::{Millis, MtlsMode, MtlsSpec, Target},
    world::{Interception, World},
};
use proptest::{collection::vec, prelude::*};
use std::{collections::BTreeSet, sync::Arc};

proptest! {
    #[test]
    fn the_same_world_gives_the_same_mesh_in_whatever_order_it_was_seen(
        world in any_world(),
        seed in any::<prop::sample::Index>(),
    ) {
        let mut edits = edits_that_make(&world);
        let middle = seed.index(edits.len().max(1)).min(edits.len());
        edits.rotate_left(middle);
        if seed.index(2) == 1 {
            edits.reverse();
        }
        let mut again = world_of(edits);
        for service in again.services.values_mut() {
            Arc::make_mut(service).ports.reverse();
        }
        prop_assert_eq!(compile(&world), compile(&again));
    }

    #[test]
    fn a_memo_gives_what_a_fresh_compile_gives(world in any_world(), edits in vec(any_edit(), 0..12)) {
        let mut world = world;
        let mut memo = Memo::default();
        let mut before = memo.compile(&world);
        prop_assert_eq!(&before, &compile(&world));
        for edit in edits {
            edit.apply(&mut world);
            let after = memo.compile(&world);
            prop_assert_eq!(&after, &compile(&world));
            what_is_equal_keeps_its_pointer(&before, &after)?;
            before = after;
        }
    }

    #[test]
    fn every_route_names_clusters_that_are_there_and_shares_sum_to_the_whole(world in any_world()) {
        let Compiled { mesh, .. } = compile(&world);
        let mut keys = BTreeSet::new();
        for (port, destination) in &mesh.destinations {
            prop_assert_eq!(port, &destination.port);
            let names: Vec<_> = destination.clusters.iter().map(|cluster| &cluster.name).collect();
            match &destination.route {
                Route::To(cluster) => prop_assert!(names.contains(&cluster)),
                Route::Split(split) => {
                    let shares = split.fail_safe.iter().map(|(_, share)| share);
                    prop_assert_eq!(shares.sum::<u32>(), FULL_SHARE);
                    let of = |cluster| mesh.shares.get(&split.runtime_key(cluster)).copied();
                    let current: Option<Vec<u32>> = split.fail_safe.iter().map(|(cluster, _)| of(cluster)).collect();
                    prop_assert_eq!(current.map(|shares| shares.iter().sum::<u32>()), Some(FULL_SHARE));
                    for (cluster, _) in &split.fail_safe {
                        prop_assert!(names.contains(&cluster));
                        keys.insert(split.runtime_key(cluster));
                    }
                }
            }
        }
        prop_assert!(mesh.shares.keys().eq(&keys), "no share is left over");
    }

    #[test]
    fn an_address_and_port_mean_one_destination_and_every_redirected_proxy_has_doors_for_every_port(
        world in any_world(),
    ) {
        let Compiled { mesh, .. } = compile(&world);
        let mut taken = BTreeSet::new();
        for destination in mesh.destinations.values() {
            for address in &destination.addresses {
                prop_assert!(taken.insert((*address, destination.port.port)), "{address} twice");
                prop_assert!(world.services[&destination.port.service].addresses.contains(address));
            }
        }
        for proxy in mesh.proxies.values().filter(|proxy| proxy.interception == Interception::Transparent) {
            let inbound = &mesh.workloads[&proxy.workload];
            let undeclared = inbound.undeclared.as_ref().expect("redirected");
            prop_assert!(undeclared.exceptions.keys().all(|port| !inbound.ports.contains_key(port)));
            prop_assert!(proxy.inbound.values().all(|port| inbound.ports.contains_key(port)));
            if proxy.outbound_port.is_some() {
                prop_assert!(mesh.transparent_namespaces.contains(&proxy.identity.namespace));
            }
        }
    }

    #[test]
    fn no_request_finds_an_empty_revision_while_the_other_one_serves(world in any_world()) {
        let Compiled { mesh, .. } = compile(&world);
        for destination in mesh.destinations.values() {
            let Route::Split(split) = &destination.route else { continue };
            let revisions = split.fail_safe.iter().map(|(name, _)| {
                destination.clusters.iter().find(|cluster| cluster.name == *name).expect("law above")
            });
            let revisions: Vec<_> = revisions.collect();
            let healthy = |endpoints: &[Endpoint]| endpoints.iter().any(|endpoint| endpoint.healthy);
            let taken_back = world.canaries.values().any(|canary| {
                canary.progress.as_ref().is_some_and(|progress| progress.phase == crate::rollout::Phase::RolledBack)
            });
            for (at, one) in revisions.iter().enumerate() {
                let other = revisions[1 - at];
                let stood_in = healthy(&one.stand_ins);
                prop_assert!(!(stood_in && healthy(&one.endpoints)), "an ejection would go unnoticed");
                prop_assert!(one.stand_ins.is_empty() || one.stand_ins == other.endpoints);
                if !healthy(&one.endpoints) && healthy(&other.endpoints) && !(at == 0 && taken_back) {
                    prop_assert!(stood_in, "{} is empty", one.name);
                }
            }
        }
    }

    #[test]
    fn no_share_goes_to_an_empty_revision_while_the_other_one_serves(world in any_world()) {
        let Compiled { mesh, .. } = compile(&world);
        for destination in mesh.destinations.values() {
            let Route::Split(split) = &destination.route else { continue };
            let serves = |name: &ClusterName| {
                let cluster = destination.clusters.iter().find(|cluster| cluster.name == *name);
                cluster.is_some_and(|cluster| cluster.endpoints.iter().any(|endpoint| endpoint.healthy))
            };
            let [(stable, _), (canary, _)] = &split.fail_safe[..] else { panic!("two revisions") };
            let share = mesh.shares[&split.runtime_key(canary)];
            if serves(stable) && !serves(canary) {
                prop_assert_eq!(share, 0);
            }
            let taken_back = world.canaries.values().any(|canary| {
                canary.progress.as_ref().is_some_and(|progress| progress.phase == crate::rollout::Phase::RolledBack)
            });
            if serves(canary) && !serves(stable) && !taken_back {
                prop_assert_eq!(share, FULL_SHARE);
            }
        }
    }

    #[test]
    fn a_policy_of_one_service_changes_that_service_and_who_shares_its_workloads(world in any_world()) {
        let target = service_id("shop/pay");
        let mut calls = policy("shop/a-first", to_service("shop/pay", None));
        calls.age_rank = -1;
        calls.calls.timeouts.request = Some(Millis(4_321));
        let only_calls = changed(&world, [Edit::from(calls.clone())]);
        prop_assert!(only_calls.iter().all(|service| *service == target), "{only_calls:?}");

        calls.mtls = mode(MtlsMode::Strict);
        let sharing = |other: &ServiceId| {
            // An instance that contradicts its revision decides nothing alone, so the whole workload counts.
            let selected = |by: &ServiceId| {
                let instances = world.instances.values().filter(|instance| instance.services.contains(by));
                instances.map(|instance| instance.workload.clone()).collect::<BTreeSet<_>>()
            };
            !selected(&target).is_disjoint(&selected(other))
        };
        let with_door = changed(&world, [Edit::from(calls)]);
        prop_assert!(with_door.iter().all(|service| *service == target || sharing(service)), "{with_door:?}");
    }

    #[test]
    fn a_strict_floor_of_the_mesh_leaves_no_weaker_door(world in any_world()) {
        let mut floor = policy("airlane-system/floor", Target::Mesh);
        floor.mtls = Some(MtlsSpec { floor: Some(true), ports: Vec::new(), mode: Some(MtlsMode::Strict) });
        let mut world = world;
        Edit::from(floor).apply(&mut world);
        let Compiled { mesh, problems } = compile(&world);
        for inbound in mesh.workloads.values() {
            for door in inbound.ports.values() {
                prop_assert_eq!(door.mtls, MtlsMode::Strict);
            }
            if let Some(undeclared) = &inbound.undeclared {
                prop_assert_eq!(undeclared.mtls, MtlsMode::Strict);
                prop_assert!(undeclared.exceptions.is_empty());
            }
        }
        let below = |problem: &&crate::problem::Problem| problem.reason == crate::problem::Reason::BelowFloor;
        let told: BTreeSet<_> = problems.iter().filter(below).map(|problem| &problem.subject).collect();
        for policy in world.policies.values().filter(|policy| policy.target != Target::Mesh) {
            let weak = |mode: MtlsMode| mode < MtlsMode::Strict;
            let says_weak = policy.mtls.as_ref().is_some_and(|mtls| {
                mtls.mode.is_some_and(weak) || mtls.ports.iter().any(|(_, mode)| weak(*mode))
            });
            prop_assert_eq!(told.contains(&policy.id), says_weak, "{}", policy.id);
        }
    }

    #[test]
    fn endpoints_that_come_and_go_change_endpoints_only(world in any_world(), number in 4u8..9) {
        // One more copy of a workload that is there, as a rolling update or a scale-up brings.
        let Some(sample) = world.instances.values().next() else { return Ok(()) };
        let mut more = (**sample).clone();
        more.id = format!("another-{number}").parse().expect("an instance");
        let mut after = world.clone();
        Edit::from(more).apply(&mut after);
        let (before, after) = (compile(&world).mesh, compile(&after).mesh);
        let without_endpoints = |destination: &Destination| {
            let mut destination = destination.clone();
            for cluster in &mut destination.clusters {
                (cluster.endpoints, cluster.stand_ins) = Default::default();
            }
            destination
        };
        for (port, destination) in &before.destinations {
            prop_assert_eq!(without_endpoints(destination), without_endpoints(&after.destinations[port]));
        }
        prop_assert_eq!(before.workloads, after.workloads);
    }

    #[test]
    fn what_is_told_about_a_service_is_what_it_gets(world in any_world()) {
        let Compiled { mesh, .. } = compile(&world);
        for id in world.services.keys() {
            let effective = effective(&world, id).expect("it is there");
            for (port, rows) in &effective.ports {
                let port = crate::id::ServicePort { service: id.clone(), port: *port };
                let destination = &mesh.destinations[&port];
                let value = |field| rows.iter().find(|row| row.field == field).map(|row| row.value.clone());
                let request = destination.calls.request_timeout.map_or_else(|| "none".to_owned(), |of| of.to_string());
                prop_assert_eq!(value("spec.timeouts.request"), Some(request));
                prop_assert_eq!(
                    value("spec.retries.backoff.max"),
                    Some(destination.calls.retries.backoff_max.to_string())
                );
                let of_the_door = |row: &&Row| ["spec.mtls.mode", "spec.access"].contains(&row.field.as_str());
                let objects = rows.iter().filter(|row| !of_the_door(row)).filter_map(|row| match &row.origin {
                    Origin::Object(object) => Some(object),
                    Origin::Default => None,
                });
                for object in objects {
                    prop_assert!(destination.shaped_by.contains(object), "{object} shaped {port}");
                }
            }
        }
    }

    #[test]
    fn problems_are_sorted_once_each_and_about_objects_that_are_there(world in any_world()) {
        let Compiled { problems, .. } = compile(&world);
        prop_assert!(problems.is_sorted());
        prop_assert!(problems.windows(2).all(|pair| pair[0] != pair[1]));
        for problem in problems {
            let there = match problem.subject.kind {
                ObjectKind::MeshPolicy => world.policies.contains_key(&problem.subject),
                ObjectKind::Canary => world.canaries.contains_key(&problem.subject),
                ObjectKind::Service => {
                    let subject = problem.subject.clone();
                    let id = ServiceId { namespace: subject.namespace, name: name(subject.name.as_str()) };
                    world.services.contains_key(&id)
                }
            };
            prop_assert!(there, "{problem}");
        }
    }
}

fn edits_that_make(world: &World) -> Vec<Edit> {
    let services = world.services.values().map(|it| Edit::from((**it).clone()));
    let instances = world.instances.values().map(|it| Edit::from((**it).clone()));
    let policies = world.policies.values().map(|it| Edit::from((**it).clone()));
    let canaries = world.canaries.values().map(|it| Edit::from((**it).clone()));
    services.chain(instances).chain(policies).chain(canaries).collect()
}

/// The services whose destinations an edit changes.
fn changed(world: &World, edits: impl IntoIterator<Item = Edit>) -> BTreeSet<ServiceId> {
    let mut after = world.clone();
    for edit in edits {
        edit.apply(&mut after);
    }
    let (before, after) = (compile(world).mesh.destinations, compile(&after).mesh.destinations);
    assert!(before.keys().eq(after.keys()));
    let differ = before.iter().filter(|(port, destination)| after[port] != **destination);
    differ.map(|(port, _)| port.service.clone()).collect()
}

fn what_is_equal_keeps_its_pointer(before: &Compiled, after: &Compiled) -> Result<(), TestCaseError> {
    let (before, after) = (&before.mesh, &after.mesh);
    for (port, destination) in &after.destinations {
        let Some(old) = before.destinations.get(port) else { continue };
        prop_assert_eq!(Arc::ptr_eq(old, destination), old == destination, "{}", port);
        for cluster in &destination.clusters {
            let Some(old) = old.clusters.iter().find(|old| old.name == cluster.name) else { continue };
            let same = Arc::ptr_eq(&old.endpoints, &cluster.endpoints);
            prop_assert_eq!(same, old.endpoints == cluster.endpoints, "{}", cluster.name);
        }
    }
    for (workload, inbound) in &after.workloads {
        let Some(old) = before.workloads.get(workload) else { continue };
        prop_assert_eq!(Arc::ptr_eq(old, inbound), old == inbound, "{}", workload);
    }
    for (id, proxy) in &after.proxies {
        let Some(old) = before.proxies.get(id) else { continue };
        prop_assert_eq!(Arc::ptr_eq(old, proxy), old == proxy, "{}", id);
    }
    Ok(())
}
