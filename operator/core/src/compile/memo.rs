//! Compiling again without deciding again.

use super::{Compiled, index::Index, mistakes, mtls, routing};
use crate::{
    id::{Identity, InstanceId, Namespace, ServiceId, TrustDomain, WorkloadRevision},
    mesh::{Inbound, Mesh, Proxy},
    world::{Instance, World},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::SocketAddr,
    sync::Arc,
};

/// What was decided last time, and from what.
///
/// [`Memo::compile`] gives exactly what [`super::compile`] gives. A unit whose inputs are equal (by pointer, else by
/// value) is not decided again, and a part of the mesh that comes out equal keeps its pointer: whoever lowers the mesh
/// may compare pointers. A new world costs a walk over its objects and the units that changed.
#[derive(Debug, Default)]
pub struct Memo {
    doors: Kept<WorkloadRevision, mtls::Inputs, Arc<Inbound>>,
    services: Kept<ServiceId, routing::Inputs, routing::Decided>,
    proxies: Kept<InstanceId, (TrustDomain, Arc<Instance>), Arc<Proxy>>,
}

impl Memo {
    /// Decides what every proxy should know; see [`super::compile`].
    pub fn compile(&mut self, world: &World) -> Compiled {
        let mut index = Index::of(world);
        let mut problems = mem::take(&mut index.problems);
        mistakes::find(&index, &mut problems);

        let doors = index.workloads().map(|workload| (workload.clone(), index.door(workload)));
        self.doors.renew(doors, |inputs, before| keep(before, mtls::door(inputs)));
        let door = |workload: &WorkloadRevision| self.doors.get(workload).cloned();
        let services = world.services.iter().map(|(id, service)| (id.clone(), index.routing(service, door)));
        self.services.renew(services, routing::decide);
        let instances = world.instances.iter();
        let proxies =
            instances.map(|(id, instance)| (id.clone(), (world.trust_domain.clone(), Arc::clone(instance))));
        self.proxies
            .renew(proxies, |(trust_domain, instance), before| keep(before, proxy(trust_domain, instance)));

        let decided = || self.services.values();
        problems.extend(decided().flat_map(|decided| &decided.problems).cloned());
        let destinations = decided().flat_map(|decided| &decided.destinations);
        let mesh = Mesh {
            trust_domain: world.trust_domain.clone(),
            destinations: destinations.map(|each| (each.port.clone(), Arc::clone(each))).collect(),
            workloads: self.doors.to_map(),
            proxies: self.proxies.to_map(),
            caller_namespaces: caller_namespaces(world),
            ambiguous: index.names.ambiguous(),
            shares: decided().flat_map(|decided| decided.shares.iter().cloned()).collect(),
        };
        Compiled { mesh, problems: problems.into_iter().collect() }
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
    /// Keeps what is wanted, in key order, and makes what is new or has other inputs, given what was there before.
    fn renew(&mut self, wanted: impl Iterator<Item = (K, I)>, make: impl Fn(&I, Option<&O>) -> O) {
        let mut before = mem::take(&mut self.0).into_iter().peekable();
        let entries = wanted.map(|(key, inputs)| {
            while before.next_if(|(kept, _)| *kept < key).is_some() {}
            let kept = before.next_if(|(kept, _)| *kept == key);
            let output = match kept {
                Some((_, (same, output))) if same == inputs => output,
                Some((_, (_, output))) => make(&inputs, Some(&output)),
                None => make(&inputs, None),
            };
            (key, (inputs, output))
        });
        self.0 = entries.collect();
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
    let inbound = instance.ports.iter().filter(|port| port.mesh != 0);
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
    }
}

/// Namespaces with at least one proxy that makes calls.
fn caller_namespaces(world: &World) -> BTreeSet<Namespace> {
    let callers = world.instances.values().filter(|instance| instance.outbound_port != 0);
    let namespaces: BTreeSet<&Namespace> = callers.map(|instance| &instance.workload.namespace).collect();
    namespaces.into_iter().cloned().collect()
}
