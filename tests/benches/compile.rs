//! `compile` and the lowering: a whole mesh, and one change to it.

use crate::measure::{Durations, table};
use airlane_core::{
    compile::Memo,
    id::{
        InstanceId, Name, Namespace, ObjectId, ObjectKind, Revision, ServiceId, TrustDomain, WorkloadRevision,
    },
    policy::{CallsSpec, Millis, Policy, Target},
    world::{Health, Instance, InstancePort, Interception, Port, Protocol, Service, World},
};
use airlane_envoy::lower::{Lowerer, Settings};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

const SERVICES: usize = 1_000;
const INSTANCES_OF_EACH: usize = 3;
const CHANGES: usize = 200;

pub(crate) fn run() {
    table(&format!("Compiling and lowering {SERVICES} services, {} proxies", SERVICES * INSTANCES_OF_EACH));
    let mut world = world();
    let (mut whole, mut lowered) = (Durations::default(), Durations::default());
    for _ in 0..10 {
        let mut memo = Memo::default();
        let compiled = whole.time(|| memo.compile(&world));
        lowered.time(|| Lowerer::new(settings()).lower(&compiled.mesh));
    }
    whole.row("compile, from nothing");
    lowered.row("lower, from nothing");

    let (mut memo, mut lowerer) = (Memo::default(), Lowerer::new(settings()));
    lowerer.lower(&memo.compile(&world).mesh);
    let mut changes = |what: &str, change: fn(&mut World, usize)| {
        let (mut compiled, mut lowered) = (Durations::default(), Durations::default());
        for n in 0..CHANGES {
            change(&mut world, n);
            let next = compiled.time(|| memo.compile(&world));
            lowered.time(|| lowerer.lower(&next.mesh));
        }
        compiled.row(&format!("compile, {what}"));
        lowered.row(&format!("lower, {what}"));
    };
    changes("one policy edited", change_policy);
    changes("one endpoint's health changed", change_endpoint);
}

fn settings() -> Settings {
    Settings { bundle_pem: "root".to_owned(), fail_safe_after: Duration::from_secs(600) }
}

fn world() -> World {
    let mut world = World {
        cluster_domain: None,
        trust_domain: TrustDomain::parse("airlane.local").unwrap(),
        system_namespace: Namespace::parse("airlane-system").unwrap(),
        services: BTreeMap::new(),
        instances: BTreeMap::new(),
        policies: BTreeMap::new(),
        canaries: BTreeMap::new(),
    };
    for n in 0..SERVICES {
        let id = service(n);
        let port = Port { number: 80, target: 8080, protocol: Protocol::Http };
        world.services.insert(
            id.clone(),
            Arc::new(Service { id: id.clone(), ports: vec![port], addresses: BTreeSet::new() }),
        );
        for copy in 0..INSTANCES_OF_EACH {
            let instance = instance(n, copy, Health::Healthy);
            world.instances.insert(instance.id.clone(), Arc::new(instance));
        }
        if n % 10 == 0 {
            change_policy(&mut world, n);
        }
    }
    world
}

fn service(n: usize) -> ServiceId {
    ServiceId {
        namespace: Namespace::parse(&format!("team-{}", n % 20)).unwrap(),
        name: Name::parse(&format!("service-{n}")).unwrap(),
    }
}

fn instance(n: usize, copy: usize, health: Health) -> Instance {
    let service = service(n);
    let [high, low] = u16::try_from(n).unwrap().to_be_bytes();
    Instance {
        id: InstanceId::parse(&format!("service-{n}-{copy}")).unwrap(),
        workload: WorkloadRevision {
            namespace: service.namespace.clone(),
            workload: service.name.clone(),
            revision: Revision::parse("v1").unwrap(),
        },
        service_account: service.name.clone().into(),
        services: [service].into(),
        address: IpAddr::from([10, u8::try_from(copy).unwrap(), high, low]),
        ipv6: false,
        ports: vec![InstancePort {
            service: 80,
            app: 8080,
            mesh: 18080,
            protocol: Protocol::Http,
            of: None,
            past_proxy: false,
        }],
        outbound_port: 15001,
        interception: Interception::Environment,
        stops_within: std::time::Duration::ZERO,
        health,
    }
}

fn change_policy(world: &mut World, n: usize) {
    let service = service(n % SERVICES);
    let id = ObjectId {
        kind: ObjectKind::MeshPolicy,
        namespace: service.namespace.clone(),
        name: service.name.clone(),
    };
    let mut calls = CallsSpec::default();
    calls.timeouts.request = Some(Millis(1_000 + n as u64));
    let policy = Policy {
        id: id.clone(),
        generation: 1,
        age_rank: 0,
        target: Target::Service { service, port: None },
        calls,
        mtls: None,
        access: None,
    };
    world.policies.insert(id, Arc::new(policy));
}

fn change_endpoint(world: &mut World, n: usize) {
    let health = if n.is_multiple_of(2) { Health::Unhealthy } else { Health::Healthy };
    let changed = instance(n / 2, 0, health);
    world.instances.insert(changed.id.clone(), Arc::new(changed));
}
