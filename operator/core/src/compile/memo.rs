//! Compiling again without deciding again.

use super::{Compiled, index::Index, mistakes, mtls, routing, touched::Touched};
use crate::{
    id::{Identity, InstanceId, Namespace, ServiceId, TrustDomain, WorkloadRevision},
    mesh::{Inbound, Mesh, Proxy},
    world::{Instance, InstancePort, Interception, World},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

/// What was decided last time, and from what.
///
/// [`Memo::compile`] gives exactly what [`super::compile`] gives. Only units that the change can reach are
/// looked at, and of those only the ones whose inputs differ are decided again; a part of the mesh that comes
/// out equal keeps its pointer, so whoever lowers the mesh may compare pointers. A world is compared with the
/// last one by the pointers of its objects: an object that did not change should be the same [`Arc`].
#[derive(Debug, Default)]
pub struct Memo {
    before: Option<World>,
    doors: Kept<WorkloadRevision, mtls::Inputs, Arc<Inbound>>,
    services: Kept<ServiceId, routing::Inputs, routing::Decided>,
    proxies: Kept<InstanceId, (TrustDomain, Arc<Instance>), Arc<Proxy>>,
}

impl Memo {
    /// Decides what every proxy should know; see [`super::compile`].
    pub fn compile(&mut self, world: &World) -> Compiled {
        let touched = Touched::between(self.before.as_ref(), world);
        self.before = Some(world.clone());
        let index = Index::of(world, &touched);
        self.renew(&index, touched);
        let mut problems = index.problems.clone();
        mistakes::find(&index, &mut problems);
        let decided = || self.services.values();
        problems.extend(decided().flat_map(|decided| &decided.problems).cloned());
        let destinations = decided().flat_map(|decided| &decided.destinations);
        let mesh = Mesh {
            trust_domain: world.trust_domain.clone(),
            cluster_domain: world.cluster_domain.clone(),
            destinations: destinations.map(|each| (each.port.clone(), Arc::clone(each))).collect(),
            workloads: self.doors.to_map(),
            proxies: self.proxies.to_map(),
            caller_namespaces: namespaces_of_callers(world, false),
            transparent_namespaces: namespaces_of_callers(world, true),
            ambiguous: index.names.ambiguous(),
            shares: decided().flat_map(|decided| decided.shares.iter().cloned()).collect(),
        };
        Compiled { mesh, problems: problems.into_iter().collect() }
    }

    fn renew(&mut self, index: &Index<'_>, mut touched: Touched) {
        let world = index.world;
        for workload in touched.workloads {
            let decide = |inputs: &_, before: Option<&Arc<Inbound>>| keep(before, mtls::door(inputs));
            let before = self.doors.get(&workload).cloned();
            self.doors.renew(&workload, index.door(&workload), decide);
            if self.doors.get(&workload) != before.as_ref() {
                touched.services.extend(index.services_of(&workload).cloned());
            }
        }
        let door = |workload: &WorkloadRevision| self.doors.get(workload).cloned();
        for id in touched.services {
            let inputs = world.services.get(&id).map(|service| index.routing(service, door));
            self.services.renew(&id, inputs, routing::decide);
        }
        for id in touched.instances {
            let meshed = world.instances.get(&id).filter(|it| it.interception != Interception::None);
            let inputs = meshed.map(|it| (world.trust_domain.clone(), Arc::clone(it)));
            self.proxies.renew(&id, inputs, |(trust_domain, instance), before| {
                keep(before, proxy(trust_domain, instance))
            });
        }
    }
}

/// Outputs by key, each with the inputs it was made from.
#[derive(Debug)]
struct Kept<K, I, O>(BTreeMap<K, (I, O)>);

impl<K, I, O> Default for Kept<K, I, O> {
    fn default() -> Self {
        Kept(BTreeMap::new())
    }
}

impl<K: Ord + Clone, I: PartialEq, O: Clone> Kept<K, I, O> {
    /// Makes one output again if its inputs differ, given what it was; without inputs it is gone.
    fn renew(&mut self, key: &K, inputs: Option<I>, make: impl Fn(&I, Option<&O>) -> O) {
        let Some(inputs) = inputs else {
            self.0.remove(key);
            return;
        };
        match self.0.get_mut(key) {
            Some((same, _)) if *same == inputs => {}
            Some(kept) => {
                let output = make(&inputs, Some(&kept.1));
                *kept = (inputs, output);
            }
            None => {
                let output = make(&inputs, None);
                self.0.insert(key.clone(), (inputs, output));
            }
        }
    }

    fn get(&self, key: &K) -> Option<&O> {
        self.0.get(key).map(|(_, output)| output)
    }

    fn values(&self) -> impl Iterator<Item = &O> {
        self.0.values().map(|(_, output)| output)
    }

    fn to_map(&self) -> BTreeMap<K, O> {
        self.0.iter().map(|(key, (_, output))| (key.clone(), output.clone())).collect()
    }
}

fn keep<T: PartialEq>(before: Option<&Arc<T>>, made: T) -> Arc<T> {
    match before {
        Some(before) if **before == made => Arc::clone(before),
        _ => Arc::new(made),
    }
}

fn proxy(trust_domain: &TrustDomain, instance: &Instance) -> Proxy {
    let is_door = |port: &&InstancePort| port.mesh != 0 && !port.past_proxy;
    let inbound = instance.ports.iter().filter(|_| instance.interception.keeps_a_door()).filter(is_door);
    let inbound: BTreeSet<(u16, u16)> = inbound.map(|port| (port.mesh, port.app)).collect();
    Proxy {
        id: instance.id.clone(),
        identity: Identity {
            trust_domain: trust_domain.clone(),
            namespace: instance.workload.namespace.clone(),
            service_account: instance.service_account.clone(),
        },
        workload: instance.workload.clone(),
        inbound: inbound
            .into_iter()
            .map(|(mesh, app)| (SocketAddr::new(instance.address, mesh), app))
            .collect(),
        outbound_port: (instance.outbound_port != 0).then_some(instance.outbound_port),
        interception: instance.interception,
        ipv6: instance.ipv6,
    }
}

/// Namespaces with at least one proxy that makes calls, which are redirected to it or not.
fn namespaces_of_callers(world: &World, redirected: bool) -> BTreeSet<Namespace> {
    let mut namespaces = BTreeSet::new();
    for instance in world.instances.values() {
        let (how, namespace) = (instance.interception, &instance.workload.namespace);
        let calls = how != Interception::None && instance.outbound_port != 0;
        // There are thousands of instances in a few namespaces.
        if calls && how.redirects_calls() == redirected && !namespaces.contains(namespace) {
            namespaces.insert(namespace.clone());
        }
    }
    namespaces
}
