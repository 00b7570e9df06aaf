//! Who belongs to whom: gathers the inputs of the units that a change can reach.
//!
//! Gathering is linear in the world and cheap beside the units; it only looks up and counts references.

use super::{mtls, names::Names, policies::Policies, routing, split, split::Governing, touched::Touched};
use crate::{
    id::{ServiceId, WorkloadRevision},
    mesh::Inbound,
    problem::Problem,
    world::{Instance, Service, World},
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// A world with its objects found from both ends. Of workloads and services only those are known that a change touches,
/// and the services of those workloads: of thousands of instances nearly all are elsewhere.
pub(super) struct Index<'w> {
    pub(super) world: &'w World,
    pub(super) policies: Policies<'w>,
    pub(super) names: Names<'w>,
    by_service: HashMap<&'w ServiceId, Vec<&'w Arc<Instance>>>,
    by_workload: HashMap<&'w WorkloadRevision, Vec<&'w Arc<Instance>>>,
    governing: HashMap<ServiceId, Governing>,
    /// What finding them showed to be wrong.
    pub(super) problems: BTreeSet<Problem>,
}

impl<'w> Index<'w> {
    pub(super) fn of(world: &'w World, touched: &Touched) -> Self {
        let (mut by_workload, mut by_service): (HashMap<_, Vec<_>>, HashMap<_, Vec<_>>) = Default::default();
        for instance in world.instances.values().filter(|it| touched.workloads.contains(&it.workload)) {
            by_workload.entry(&instance.workload).or_default().push(instance);
            // A door that comes out different touches every service of its workload.
            by_service.extend(instance.services.iter().map(|service| (service, Vec::new())));
        }
        by_service.extend(touched.services.iter().filter_map(|id| {
            let (id, _) = world.services.get_key_value(id)?;
            Some((id, Vec::new()))
        }));
        for instance in world.instances.values() {
            for service in &instance.services {
                if let Some(instances) = by_service.get_mut(service) {
                    instances.push(instance);
                }
            }
        }
        let mut problems = BTreeSet::new();
        Index {
            world,
            policies: Policies::of(world),
            names: Names::of(world),
            by_service,
            by_workload,
            governing: split::governing(world, &mut problems),
            problems,
        }
    }

    /// The instances of a service, in order.
    pub(super) fn instances_of(&self, service: &ServiceId) -> &[&'w Arc<Instance>] {
        self.by_service.get(service).map_or(&[], Vec::as_slice)
    }

    /// The services that select an instance of a workload's revision.
    pub(super) fn services_of(&self, workload: &WorkloadRevision) -> impl Iterator<Item = &'w ServiceId> {
        self.by_workload.get(workload).into_iter().flatten().flat_map(|instance| &instance.services)
    }

    /// All the door of a workload's revision depends on; `None` if it has no instance.
    pub(super) fn door(&self, workload: &WorkloadRevision) -> Option<mtls::Inputs> {
        let instances = self.by_workload.get(workload)?;
        let accounts: BTreeSet<_> = instances.iter().map(|instance| &instance.service_account).collect();
        let ids: BTreeSet<_> = instances.iter().flat_map(|instance| &instance.services).collect();
        let services = ids.into_iter().filter_map(|id| self.world.services.get(id));
        let services = services.map(|service| (service, leads(service, instances)));
        Some(mtls::Inputs {
            trust_domain: self.world.trust_domain.clone(),
            workload: workload.clone(),
            words: self.policies.words(&workload.namespace, Some(&workload.workload), accounts, services),
            instances: instances.iter().copied().cloned().collect(),
        })
    }

    /// The words about the door of a workload that only this service selects.
    pub(super) fn door_alone(&self, service: &Arc<Service>) -> mtls::Words {
        let leads = service.by_number().into_iter().map(|(number, port)| (number, [port.target].into()));
        self.policies.words(&service.id.namespace, None, [], [(service, leads.collect())])
    }

    /// All the destinations of a service depend on.
    pub(super) fn routing(
        &self,
        service: &Arc<Service>,
        door: impl Fn(&WorkloadRevision) -> Option<Arc<Inbound>>,
    ) -> routing::Inputs {
        let instances = self.instances_of(&service.id).iter();
        routing::Inputs {
            trust_domain: self.world.trust_domain.clone(),
            service: Arc::clone(service),
            short_name: self.names.short_name(&service.id),
            addresses: self.names.addresses(service),
            instances: instances
                .filter_map(|instance| Some((Arc::clone(instance), door(&instance.workload)?)))
                .collect(),
            door_alone: self.door_alone(service),
            ladder: self.policies.ladder(service),
            governing: self.governing.get(&service.id).cloned(),
        }
    }
}

/// What stands behind each port of a service in copies of one workload.
fn leads(service: &Service, instances: &[&Arc<Instance>]) -> mtls::Leads {
    let behind = |port| {
        let copies = instances.iter().filter(|instance| instance.services.contains(&service.id));
        copies.filter_map(|instance| Some(instance.behind(&service.id, port)?.app)).collect()
    };
    service.by_number().into_iter().map(|(number, port)| (number, behind(port))).collect()
}
