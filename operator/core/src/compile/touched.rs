//! What a change of the world can reach.

use crate::{
    changes::changes,
    id::{InstanceId, Name, Namespace, ServiceAccount, ServiceId, WorkloadRevision},
    policy::Target,
    world::{Service, World},
};
use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

/// The units that may come out different; every other one has the inputs it had. Too many cost time, one too
/// few is a wrong mesh, so the rules err on the side of too many.
///
/// One thing is not here: a door that comes out different touches every service of its workload.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) workloads: BTreeSet<WorkloadRevision>,
    pub(super) services: BTreeSet<ServiceId>,
    pub(super) instances: BTreeSet<InstanceId>,
}

impl Touched {
    /// What can differ between two worlds; without an earlier one everything.
    pub(super) fn between(before: Option<&World>, after: &World) -> Self {
        before
            .and_then(|before| Self::in_part(before, after))
            .unwrap_or_else(|| Self::everything(before, after))
    }

    fn everything(before: Option<&World>, after: &World) -> Self {
        let mut touched = Touched::default();
        for world in before.into_iter().chain([after]) {
            touched.workloads.extend(world.instances.values().map(|instance| instance.workload.clone()));
            touched.services.extend(world.services.keys().cloned());
            touched.instances.extend(world.instances.keys().cloned());
        }
        touched
    }

    /// `None` if the change is about the whole mesh.
    fn in_part(before: &World, after: &World) -> Option<Self> {
        if before.trust_domain != after.trust_domain || before.system_namespace != after.system_namespace {
            return None;
        }
        let mut touched = Touched::default();
        let mut subjects = Subjects::default();
        for (id, versions) in changes(&before.services, &after.services) {
            subjects.names.insert(id.name.clone());
            subjects.addresses.extend(versions.into_iter().flatten().flat_map(|service| &service.addresses));
            subjects.services.insert(id.clone());
            touched.services.insert(id.clone());
        }
        for (id, versions) in changes(&before.instances, &after.instances) {
            touched.instances.insert(id.clone());
            for instance in versions.into_iter().flatten() {
                touched.workloads.insert(instance.workload.clone());
                touched.services.extend(instance.services.iter().cloned());
            }
        }
        for (_, versions) in changes(&before.policies, &after.policies) {
            for policy in versions.into_iter().flatten() {
                match &policy.target {
                    Target::Mesh => return None,
                    Target::Namespace(namespace) => {
                        subjects.namespaces.insert(namespace.clone());
                    }
                    Target::Service { service, .. } => {
                        subjects.services.insert(service.clone());
                        touched.services.insert(service.clone());
                    }
                    Target::Workload { namespace, name } => {
                        subjects.workloads.insert((namespace.clone(), name.clone()));
                    }
                    Target::ServiceAccount { namespace, name } => {
                        subjects.accounts.insert((namespace.clone(), name.clone()));
                    }
                }
            }
        }
        for (_, versions) in changes(&before.canaries, &after.canaries) {
            touched.services.extend(versions.into_iter().flatten().map(|canary| canary.plan.service.clone()));
        }
        subjects.reach(after, &mut touched);
        Some(touched)
    }
}

/// What changed objects are about.
#[derive(Default)]
struct Subjects {
    names: BTreeSet<Name>,
    addresses: BTreeSet<IpAddr>,
    namespaces: BTreeSet<Namespace>,
    services: BTreeSet<ServiceId>,
    workloads: BTreeSet<(Namespace, Name)>,
    accounts: BTreeSet<(Namespace, ServiceAccount)>,
}

impl Subjects {
    fn reach(&self, world: &World, touched: &mut Touched) {
        if !self.names.is_empty() || !self.namespaces.is_empty() {
            // Whether a short name is unique depends on every service that has it; whose an address is, too.
            let about = |service: &&Arc<Service>| {
                self.names.contains(&service.id.name)
                    || self.namespaces.contains(&service.id.namespace)
                    || !self.addresses.is_disjoint(&service.addresses)
            };
            touched.services.extend(world.services.values().filter(about).map(|service| service.id.clone()));
        }
        let nothing_about_doors = self.namespaces.is_empty()
            && self.services.is_empty()
            && self.workloads.is_empty()
            && self.accounts.is_empty();
        if nothing_about_doors {
            return;
        }
        for instance in world.instances.values() {
            let WorkloadRevision { namespace, workload, .. } = &instance.workload;
            if self.namespaces.contains(namespace)
                || instance.services.iter().any(|service| self.services.contains(service))
                || self.workloads.iter().any(|(space, name)| space == namespace && name == workload)
                || self
                    .accounts
                    .iter()
                    .any(|(space, name)| space == namespace && *name == instance.service_account)
            {
                touched.workloads.insert(instance.workload.clone());
            }
        }
    }
}
