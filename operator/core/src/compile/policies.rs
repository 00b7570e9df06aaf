//! Which policies have a word about what.

use super::mtls::{self, Leads, Selecting, Words};
use crate::{
    id::{Name, Namespace, ServiceAccount},
    policy::{CallsSpec, Policy, Target},
    world::{Service, World},
};
use std::{collections::HashMap, sync::Arc};

/// The policies of every target.
pub(super) struct Policies<'w> {
    /// Those that say something about calls, the oldest first: it alone counts, whole.
    calls: HashMap<&'w Target, Vec<&'w Arc<Policy>>>,
    /// Those that say something about the door, in object order: all count, of mTLS modes the strictest.
    doors: HashMap<&'w Target, Vec<&'w Arc<Policy>>>,
}

impl<'w> Policies<'w> {
    pub(super) fn of(world: &'w World) -> Self {
        let mut calls: HashMap<_, Vec<_>> = HashMap::new();
        let mut doors: HashMap<_, Vec<_>> = HashMap::new();
        for policy in world.policies.values() {
            if policy.calls != CallsSpec::default() {
                calls.entry(&policy.target).or_default().push(policy);
            }
            if policy.mtls.is_some() || policy.access.is_some() {
                doors.entry(&policy.target).or_default().push(policy);
            }
        }
        for same_target in calls.values_mut() {
            // Stable: of the same age, the first by namespace and name.
            same_target.sort_by_key(|policy| policy.age_rank);
        }
        Policies { calls, doors }
    }

    /// Who competes about calls: for each target with more than one, the winner and the others.
    pub(super) fn rivals_about_calls(&self) -> impl Iterator<Item = (&'w Policy, &[&'w Arc<Policy>])> {
        self.calls.values().filter_map(|same_target| {
            let (winner, losers) = same_target.split_first()?;
            Some((&***winner, losers))
        })
    }

    /// Of each target with more than one policy about the door, all of them.
    pub(super) fn rivals_about_doors(&self) -> impl Iterator<Item = &[&'w Arc<Policy>]> {
        self.doors.values().filter(|same_target| same_target.len() > 1).map(Vec::as_slice)
    }

    /// The policies below which nobody may be weaker.
    pub(super) fn floors(&self) -> impl Iterator<Item = &'w Arc<Policy>> {
        let above = |target: &Target| matches!(target, Target::Mesh | Target::Namespace(_));
        let levels = self.doors.iter().filter(move |(target, _)| above(target));
        levels.flat_map(|(_, policies)| policies).copied().filter(|policy| mtls::is_floor(policy))
    }

    /// Every policy of a target with a word about the door.
    fn about_door(&self, target: &Target) -> &[&'w Arc<Policy>] {
        self.doors.get(target).map_or(&[], Vec::as_slice)
    }

    /// The policies about calls to a service, most specific last.
    pub(super) fn ladder(&self, service: &Service) -> Ladder {
        let winner =
            |target| self.calls.get(&target).and_then(|of| of.first()).map(|policy| Arc::clone(policy));
        let of_service = |port| Target::Service { service: service.id.clone(), port };
        let numbers = service.by_number().into_keys();
        Ladder {
            mesh: winner(Target::Mesh),
            namespace: winner(Target::Namespace(service.id.namespace.clone())),
            service: winner(of_service(None)),
            ports: numbers.filter_map(|number| Some((number, winner(of_service(Some(number)))?))).collect(),
        }
    }

    /// The policies about the doors of workloads with these names, accounts and services.
    pub(super) fn words<'a>(
        &self,
        namespace: &Namespace,
        workload: Option<&Name>,
        accounts: impl IntoIterator<Item = &'a ServiceAccount>,
        services: impl IntoIterator<Item = (&'a Arc<Service>, Leads)>,
    ) -> Words {
        let of = |target| self.about_door(&target).iter().copied().cloned().collect::<Vec<_>>();
        Words {
            mesh: of(Target::Mesh),
            namespace: of(Target::Namespace(namespace.clone())),
            workload: workload.map_or_else(Vec::new, |name| {
                let (namespace, name) = (namespace.clone(), name.clone());
                of(Target::Workload { namespace, name })
            }),
            accounts: accounts
                .into_iter()
                .flat_map(|name| {
                    let (namespace, name) = (namespace.clone(), name.clone());
                    of(Target::ServiceAccount { namespace, name })
                })
                .collect(),
            services: services
                .into_iter()
                .map(|(service, leads)| Selecting {
                    service: service.id.clone(),
                    policies: self.of_service(service),
                    leads,
                    has_address: !service.addresses.is_empty(),
                })
                .collect(),
        }
    }

    fn of_service(&self, service: &Service) -> Vec<Arc<Policy>> {
        let target = |port| Target::Service { service: service.id.clone(), port };
        let numbers = service.by_number().into_keys();
        let targets = numbers.map(Some).chain([None]).map(target);
        targets
            .flat_map(|target| self.about_door(&target).iter().copied().cloned().collect::<Vec<_>>())
            .collect()
    }
}

/// The policies about calls to a service: of every level the one that counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ladder {
    mesh: Option<Arc<Policy>>,
    namespace: Option<Arc<Policy>>,
    service: Option<Arc<Policy>>,
    ports: Vec<(u16, Arc<Policy>)>,
}

impl Ladder {
    /// The rungs for one port, most specific first.
    pub(super) fn rungs(&self, port: u16) -> impl Iterator<Item = &Policy> {
        let of_port = self.ports.iter().find(|(number, _)| *number == port).map(|(_, policy)| policy);
        [of_port, self.service.as_ref(), self.namespace.as_ref(), self.mesh.as_ref()]
            .into_iter()
            .flatten()
            .map(|policy| &**policy)
    }
}
