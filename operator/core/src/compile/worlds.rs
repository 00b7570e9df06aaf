//! Worlds for tests: a few words to write one, and a generator of edits that makes any.

use crate::{
    id::{
        InstanceId, Name, Namespace, ObjectId, ObjectKind, Revision, ServiceId, TrustDomain, WorkloadRevision,
    },
    mesh::FULL_SHARE,
    policy::{
        AccessMode, AccessRule, AccessSpec, Asked, Caller, CallsSpec, CircuitBreakerSpec, ConnectionSpec,
        Http2, Millis, MtlsMode, MtlsSpec, PathPattern, Policy, RetriesSpec, RetryMethods, RetryOn, Target,
        TimeoutsSpec,
    },
    rollout::{Canary, Phase, Progress, Rollout},
    world::{Health, Instance, InstancePort, Interception, Port, Protocol, Service, World},
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// The namespace whose policies are about the mesh.
pub(crate) const SYSTEM: &str = "airlane-system";

pub(crate) fn namespace(text: &str) -> Namespace {
    Namespace::parse(text).expect("a namespace")
}

pub(crate) fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

pub(crate) fn revision(text: &str) -> Revision {
    Revision::parse(text).expect("a revision")
}

/// `shop/pay`.
pub(crate) fn service_id(text: &str) -> ServiceId {
    let (space, of) = text.split_once('/').expect("NAMESPACE/NAME");
    ServiceId { namespace: namespace(space), name: name(of) }
}

/// `shop/pay`.
pub(crate) fn object_id(kind: ObjectKind, text: &str) -> ObjectId {
    let ServiceId { namespace, name } = service_id(text);
    ObjectId { kind, namespace, name }
}

/// Every port as (number, target, protocol).
pub(crate) fn service(id: &str, ports: &[(u16, u16, Protocol)]) -> Service {
    let ports = ports.iter().map(|&(number, target, protocol)| Port { number, target, protocol });
    Service { id: service_id(id), ports: ports.collect(), addresses: BTreeSet::new() }
}

/// A healthy instance `NAME-N` of a service, with the application on 8080 and the mesh port 20000 + N.
pub(crate) fn instance(service: &str, version: &str, number: u8) -> Instance {
    let service = service_id(service);
    Instance {
        id: InstanceId::parse(&format!("{}-{}-{number}", service.namespace, service.name))
            .expect("an instance"),
        workload: WorkloadRevision {
            namespace: service.namespace.clone(),
            workload: service.name.clone(),
            revision: revision(version),
        },
        service_account: service.name.clone().into(),
        services: BTreeSet::from([service]),
        address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, number)),
        ipv6: false,
        ports: vec![InstancePort {
            service: 80,
            app: 8080,
            mesh: 20_000 + u16::from(number),
            protocol: Protocol::Http,
            of: None,
            past_proxy: false,
        }],
        outbound_port: 15_001,
        interception: Interception::Environment,
        stops_within: std::time::Duration::ZERO,
        health: Health::Healthy,
    }
}

pub(crate) fn policy(id: &str, target: Target) -> Policy {
    let id = object_id(ObjectKind::MeshPolicy, id);
    Policy { id, generation: 1, age_rank: 0, target, calls: CallsSpec::default(), mtls: None, access: None }
}

pub(crate) fn to_service(service: &str, port: Option<u16>) -> Target {
    Target::Service { service: service_id(service), port }
}

pub(crate) fn mode(mode: MtlsMode) -> Option<MtlsSpec> {
    Some(MtlsSpec { mode: Some(mode), ..MtlsSpec::default() })
}

/// A canary from `v1` to `v2`.
pub(crate) fn canary(id: &str, service: &str) -> Canary {
    Canary {
        id: object_id(ObjectKind::Canary, id),
        generation: 1,
        age_rank: 0,
        plan: Rollout {
            service: service_id(service),
            stable: revision("v1"),
            canary: revision("v2"),
            steps: Vec::new(),
            objectives: Vec::new(),
            false_rollback: 0.001,
            wrong_promotion: 0.01,
            suspend: false,
            held: None,
        },
        progress: None,
        asked: None,
    }
}

pub(crate) fn progress(phase: Phase, share: u32, fail_safe_share: u32) -> Progress {
    Progress {
        phase,
        canary: revision("v2"),
        step: 0,
        share,
        fail_safe_share,
        certified_share: fail_safe_share,
        since_at: jiff::Timestamp::UNIX_EPOCH,
        step_at: jiff::Timestamp::UNIX_EPOCH,
        pause_asked: false,
        aborted: false,
        because: String::new(),
        needs: None,
        judge: crate::slo::Wealth::new(jiff::Timestamp::UNIX_EPOCH),
        history: Vec::new(),
    }
}

/// One change of the world.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Service(ServiceId, Option<Arc<Service>>),
    Instance(InstanceId, Option<Arc<Instance>>),
    Policy(ObjectId, Option<Arc<Policy>>),
    Canary(ObjectId, Option<Arc<Canary>>),
}

impl From<Service> for Edit {
    fn from(service: Service) -> Self {
        Edit::Service(service.id.clone(), Some(Arc::new(service)))
    }
}

impl From<Instance> for Edit {
    fn from(instance: Instance) -> Self {
        Edit::Instance(instance.id.clone(), Some(Arc::new(instance)))
    }
}

impl From<Policy> for Edit {
    fn from(policy: Policy) -> Self {
        Edit::Policy(policy.id.clone(), Some(Arc::new(policy)))
    }
}

impl From<Canary> for Edit {
    fn from(canary: Canary) -> Self {
        Edit::Canary(canary.id.clone(), Some(Arc::new(canary)))
    }
}

impl Edit {
    /// Changes the world, and leaves every other object's pointer as it is.
    pub(crate) fn apply(self, world: &mut World) {
        fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        match self {
            Edit::Service(id, service) => set(&mut world.services, id, service),
            Edit::Instance(id, instance) => set(&mut world.instances, id, instance),
            Edit::Policy(id, policy) => set(&mut world.policies, id, policy),
            Edit::Canary(id, canary) => set(&mut world.canaries, id, canary),
        }
    }
}

pub(crate) fn world_of(edits: impl IntoIterator<Item = Edit>) -> World {
    let mut world = World {
        trust_domain: TrustDomain::parse("airlane.local").expect("a trust domain"),
        system_namespace: namespace(SYSTEM),
        cluster_domain: None,
        services: BTreeMap::new(),
        instances: BTreeMap::new(),
        policies: BTreeMap::new(),
        canaries: BTreeMap::new(),
    };
    for edit in edits {
        edit.apply(&mut world);
    }
    world
}

// The pools are small so that objects meet: two namespaces share a name, services share instances, policies
// targets.
const SERVICES: [&str; 4] = ["shop/pay", "shop/cart", "bank/pay", "bank/ledger"];
const PORTS: [u16; 4] = [80, 443, 8080, 9090];
const REVISIONS: [&str; 3] = ["v1", "v2", "v3"];
const MODES: [MtlsMode; 3] = [MtlsMode::Disabled, MtlsMode::Permissive, MtlsMode::Strict];
const PROTOCOLS: [Protocol; 4] = [Protocol::Http, Protocol::Http2, Protocol::Grpc, Protocol::Tcp];

/// Any edit.
pub(crate) fn any_edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        2 => edit_of(any_service(), |service| Edit::Service(service.id, None)),
        4 => edit_of(any_instance(), |instance| Edit::Instance(instance.id, None)),
        4 => edit_of(any_policy(), |policy| Edit::Policy(policy.id, None)),
        1 => edit_of(any_canary(), |canary| Edit::Canary(canary.id, None)),
    ]
}

/// Any world: every service, most with instances, and whatever else comes.
pub(crate) fn any_world() -> impl Strategy<Value = World> {
    let services = SERVICES.map(|id| service(id, &[(80, 8080, Protocol::Http)]).into());
    vec(any_edit(), 0..30).prop_map(move |edits| world_of(services.clone().into_iter().chain(edits)))
}

fn edit_of<T: Into<Edit> + Clone + std::fmt::Debug>(
    any: impl Strategy<Value = T>,
    removal: fn(T) -> Edit,
) -> impl Strategy<Value = Edit> {
    (any, prop::bool::weighted(0.2))
        .prop_map(move |(object, gone)| if gone { removal(object) } else { object.into() })
}

fn any_service() -> impl Strategy<Value = Service> {
    let port = (select(&PORTS[..]), select(&PORTS[..]), select(&PROTOCOLS[..]));
    (select(&SERVICES[..]), vec(port, 0..4), vec(0u8..3, 0..3)).prop_map(|(id, ports, addresses)| {
        let mut service = service(id, &ports);
        service.addresses =
            addresses.into_iter().map(|last| IpAddr::V4(Ipv4Addr::new(10, 96, 0, last))).collect();
        service
    })
}

fn any_instance() -> impl Strategy<Value = Instance> {
    let health =
        select(vec![Health::Starting, Health::Healthy, Health::Healthy, Health::Unhealthy, Health::Draining]);
    let ports = vec((select(&PORTS[..]), 0u16..4, select(&PROTOCOLS[..])), 0..3);
    let one = (select(&SERVICES[..]), select(&REVISIONS[..]), 0u8..4, health, ports);
    let also =
        (option::weighted(0.2, select(&SERVICES[..])), option::weighted(0.2, select(&["cart", "other"][..])));
    let interceptions = select(vec![
        Interception::Environment,
        Interception::Transparent,
        Interception::Outbound,
        Interception::None,
    ]);
    (one, also, prop::bool::weighted(0.7), interceptions).prop_map(
        |((of, version, number, health, ports), (second, account), calls, interception)| {
            let mut instance = instance(of, version, number);
            instance.interception = interception;
            instance.health = health;
            instance.services.extend(second.map(service_id));
            if let Some(account) = account {
                instance.service_account = name(account).into();
            }
            instance.outbound_port *= u16::from(calls);
            instance.ports.extend(ports.into_iter().map(|(app, mesh, protocol)| InstancePort {
                service: app,
                app,
                mesh,
                protocol,
                of: (mesh > 2).then(|| service_id(of)),
                past_proxy: mesh == 1,
            }));
            instance
        },
    )
}

fn any_target() -> impl Strategy<Value = Target> {
    prop_oneof![
        1 => Just(Target::Mesh),
        2 => select(&["shop", "bank"][..]).prop_map(|space| Target::Namespace(namespace(space))),
        4 => (select(&SERVICES[..]), option::weighted(0.3, select(&PORTS[..])))
            .prop_map(|(service, port)| to_service(service, port)),
        1 => select(&SERVICES[..]).prop_map(|of| {
            let ServiceId { namespace, name } = service_id(of);
            Target::Workload { namespace, name }
        }),
        1 => (select(&["shop", "bank"][..]), select(&["pay", "other"][..])).prop_map(|(space, account)| {
            Target::ServiceAccount { namespace: namespace(space), name: name(account).into() }
        }),
    ]
}

fn any_calls() -> impl Strategy<Value = CallsSpec> {
    let ms = || option::weighted(0.4, select(vec![1u64, 20, 900, 2_000, 60_000]).prop_map(Millis));
    let timeouts = (ms(), ms(), ms(), ms());
    let conditions = select(RetryOn::ALL.map(|(condition, _)| condition).to_vec());
    let methods =
        select(vec![RetryMethods::Idempotent, RetryMethods::All, RetryMethods::Method("POST".to_owned())]);
    let retries = (
        option::weighted(0.4, 0u32..4),
        ms(),
        option::weighted(0.4, vec(conditions, 0..4)),
        (ms(), ms()),
        option::weighted(0.3, vec(methods, 0..3)),
    );
    let breaker = (
        option::weighted(0.3, 0u32..9),
        option::weighted(0.3, 0u32..9),
        option::weighted(0.3, ".{0,9}"),
        ms(),
    );
    let connection = (option::weighted(0.3, select(vec![Http2::Auto, Http2::Never, Http2::Always])), ms());
    (timeouts, retries, breaker, connection).prop_map(|(timeouts, retries, breaker, connection)| CallsSpec {
        timeouts: TimeoutsSpec {
            request: timeouts.0,
            stream_idle: timeouts.1,
            connection_idle: timeouts.2,
            connect: timeouts.3,
        },
        retries: RetriesSpec {
            attempts: retries.0,
            per_try_timeout: retries.1,
            retry_on: retries.2,
            backoff_base: retries.3.0,
            backoff_max: retries.3.1,
            methods: retries.4,
            ..RetriesSpec::default()
        },
        circuit_breaker: CircuitBreakerSpec {
            max_connections: breaker.0,
            consecutive_5xx: breaker.1,
            when_open_body: breaker.2,
            when_open_retry_after: breaker.3,
            ..CircuitBreakerSpec::default()
        },
        load_balancing: None,
        connection: ConnectionSpec { http2: connection.0, max_age: connection.1 },
    })
}

fn any_mtls() -> impl Strategy<Value = MtlsSpec> {
    let modes = || select(&MODES[..]);
    (option::of(modes()), option::weighted(0.3, any::<bool>()), vec((select(&PORTS[..]), modes()), 0..3))
        .prop_map(|(mode, floor, ports)| MtlsSpec { mode, floor, ports })
}

fn any_access() -> impl Strategy<Value = AccessSpec> {
    let caller = (select(&["shop", "bank"][..]), option::of(select(&["pay", "other"][..]))).prop_map(
        |(space, account)| Caller {
            namespace: namespace(space),
            service_account: account.map(|of| name(of).into()),
        },
    );
    let asked = select(vec!["/v1/", "/health"]).prop_map(|path| Asked {
        methods: BTreeSet::from(["GET".to_owned()]),
        paths: BTreeSet::from([PathPattern::Prefix(path.to_owned())]),
    });
    let rule = (vec(caller, 0..3), vec(asked, 0..2));
    let mode = select(vec![AccessMode::Enforce, AccessMode::Audit]);
    (any::<bool>(), mode, vec(rule, 0..3)).prop_map(|(admits_others, mode, rules)| {
        let named = rules.into_iter().enumerate();
        let rules = named.map(|(n, (from, to))| AccessRule { name: name(&format!("rule-{n}")), from, to });
        AccessSpec { admits_others, mode, rules: rules.collect() }
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let calls = option::weighted(0.6, any_calls());
    let door = (option::weighted(0.6, any_mtls()), option::weighted(0.4, any_access()));
    (0u8..8, any_target(), calls, door, 0i64..2).prop_map(
        |(number, target, calls, (mtls, access), age_rank)| Policy {
            age_rank,
            calls: calls.unwrap_or_default(),
            mtls,
            access: access.map(Arc::new),
            ..policy(&format!("shop/policy-{number}"), target)
        },
    )
}

fn any_canary() -> impl Strategy<Value = Canary> {
    let phases = select(vec![Phase::Idle, Phase::Progressing, Phase::RolledBack, Phase::Succeeded]);
    // Beyond the whole too: a status is input like any other.
    let memory = (phases, 0..=FULL_SHARE + 1, 0..=FULL_SHARE + 1, select(&REVISIONS[..]));
    let plan = (select(&SERVICES[..]), select(&REVISIONS[..]), select(&REVISIONS[..]));
    (0u8..3, plan, option::of(memory)).prop_map(|(number, (service, stable, trial), memory)| {
        let mut canary = canary(&format!("shop/canary-{number}"), service);
        canary.plan.stable = revision(stable);
        canary.plan.canary = revision(trial);
        canary.progress = memory.map(|(phase, share, fail_safe, of)| Progress {
            canary: revision(of),
            ..progress(phase, share, fail_safe)
        });
        canary
    })
}
