//! Puts the world together from what was observed.

use super::declared::Declared;
use crate::apply::Statuses;
use airlane_api::Value;
use airlane_core::{
    id::{ClusterDomain, InstanceId, Namespace, ServiceId, TrustDomain},
    rollout::Canary,
    world::{Instance, Port, Service, World},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Settings of the mesh that no object carries.
#[derive(Clone, Debug)]
pub(crate) struct MeshSettings {
    /// Whose identities are trusted.
    pub(crate) trust_domain: TrustDomain,
    /// Whose policies without target are about the whole mesh.
    pub(crate) system_namespace: Namespace,
    /// The DNS suffix of the cluster's services; `None` outside a cluster.
    pub(crate) cluster_domain: Option<ClusterDomain>,
}

/// The world made of objects, copies of workloads and statuses. What equals its counterpart in `before` is the same
/// allocation, so that the compiler recognises it by its pointer.
pub(crate) fn assemble(
    settings: &MeshSettings,
    declared: &Declared,
    instances: &BTreeMap<InstanceId, Arc<Instance>>,
    statuses: &Statuses,
    before: Option<&World>,
) -> World {
    let mut world = World {
        trust_domain: settings.trust_domain.clone(),
        system_namespace: settings.system_namespace.clone(),
        cluster_domain: settings.cluster_domain.clone(),
        services: BTreeMap::new(),
        instances: instances.clone(),
        policies: BTreeMap::new(),
        canaries: BTreeMap::new(),
    };
    match &declared.services {
        Some(services) => world.services.clone_from(services),
        None => {
            for service in implied(instances) {
                let service = kept(before.and_then(|world| world.services.get(&service.id)), service);
                world.services.insert(service.id.clone(), service);
            }
        }
    }
    for (id, accepted) in &declared.objects {
        let Some(value) = &accepted.value else { continue };
        match value {
            Value::Service(service) => {
                let service = kept(before.and_then(|world| world.services.get(&service.id)), service.clone());
                world.services.insert(service.id.clone(), service);
            }
            Value::Policy(policy) => {
                let mut policy = policy.clone();
                policy.generation = accepted.generation;
                policy.age_rank = accepted.age_rank;
                let policy = kept(before.and_then(|world| world.policies.get(id)), policy);
                world.policies.insert(id.clone(), policy);
            }
            Value::Canary(canary) => {
                let status = statuses.get(id);
                let canary = Canary {
                    generation: accepted.generation,
                    age_rank: accepted.age_rank,
                    progress: status.and_then(|status| status.progress.clone()),
                    asked: status.and_then(|status| status.asked),
                    ..canary.clone()
                };
                let canary = kept(before.and_then(|world| world.canaries.get(id)), canary);
                world.canaries.insert(id.clone(), canary);
            }
        }
    }
    world
}

fn kept<T: PartialEq>(before: Option<&Arc<T>>, now: T) -> Arc<T> {
    match before {
        Some(before) if **before == now => before.clone(),
        _ => Arc::new(now),
    }
}

/// The services that exist because somebody registered for them, with the ports that were registered.
fn implied(instances: &BTreeMap<InstanceId, Arc<Instance>>) -> Vec<Service> {
    let mut ports: BTreeMap<ServiceId, BTreeSet<(u16, _)>> = BTreeMap::new();
    for instance in instances.values() {
        for service in &instance.services {
            ports
                .entry(service.clone())
                .or_default()
                .extend(instance.ports.iter().map(|port| (port.service, port.protocol)));
        }
    }
    ports
        .into_iter()
        .map(|(id, ports)| {
            // Copies that disagree about the protocol of a port: the lowest in the protocols' order, for all.
            let mut by_number = BTreeMap::new();
            for (number, protocol) in ports {
                by_number.entry(number).or_insert(protocol);
            }
            let ports = by_number
                .into_iter()
                .map(|(number, protocol)| Port { number, target: number, protocol })
                .collect();
            Service { id, ports, addresses: BTreeSet::new() }
        })
        .collect()
}
