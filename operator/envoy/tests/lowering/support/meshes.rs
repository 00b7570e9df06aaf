//! Meshes by hand: destinations and doors with the defaults of a mesh without policies.

use airlane_core::{
    id::{ClusterName, Identity, InstanceId, ObjectId, ObjectKind, ServiceId, ServicePort, WorkloadRevision},
    mesh::{
        Access, Calls, Cluster, Destination, Door, Endpoint, Inbound, Limits, Mesh, Outliers, Proxy,
        Repeatable, Retries, Route, ShortName, Transport, Undeclared,
    },
    policy::{
        AccessMode, AccessRule, AccessSpec, Asked, Caller, LoadBalancing, Millis, MtlsMode, PathPattern,
        RetryOn,
    },
    world::{Interception, Protocol},
};
use airlane_envoy::lower::{Lowerer, Settings};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

pub fn empty() -> Mesh {
    Mesh {
        trust_domain: airlane_core::id::TrustDomain::parse("airlane.local").unwrap(),
        cluster_domain: None,
        destinations: BTreeMap::new(),
        workloads: BTreeMap::new(),
        proxies: BTreeMap::new(),
        caller_namespaces: BTreeSet::new(),
        transparent_namespaces: BTreeSet::new(),
        ambiguous: BTreeMap::new(),
        shares: BTreeMap::new(),
    }
}

pub fn identity(namespace: &str, account: &str) -> Identity {
    format!("spiffe://airlane.local/ns/{namespace}/sa/{account}").parse().unwrap()
}

pub fn service_port(namespace: &str, name: &str, port: u16) -> ServicePort {
    ServicePort {
        service: ServiceId { namespace: namespace.parse().unwrap(), name: name.parse().unwrap() },
        port,
    }
}

/// `SERVICE.shop` on port 80, everything by default.
pub fn destination(
    name: &str,
    protocol: Protocol,
    transport: Transport,
    endpoints: Vec<Endpoint>,
) -> Destination {
    let port = service_port("shop", name, 80);
    let cluster = ClusterName { port: port.clone(), revision: None };
    Destination {
        port,
        default_port: true,
        only_port: true,
        short_name: ShortName::Everywhere,
        protocol,
        clusters: vec![Cluster {
            name: cluster.clone(),
            identities: [identity("shop", name)].into(),
            transport,
            endpoints: Arc::new(endpoints),
            stand_ins: Arc::default(),
        }],
        route: Route::To(cluster),
        calls: calls(),
        addresses: BTreeSet::new(),
        shaped_by: BTreeSet::new(),
    }
}

/// `SERVICE.shop` on a port of several, at an address of the cluster, everything by default.
pub fn in_cluster(
    name: &str,
    (address, port): (IpAddr, u16),
    protocol: Protocol,
    transport: Transport,
    endpoints: Vec<Endpoint>,
) -> Destination {
    let mut destination = destination(name, protocol, transport, endpoints);
    let port = service_port("shop", name, port);
    let cluster = ClusterName { port: port.clone(), revision: None };
    destination.clusters[0].name = cluster.clone();
    destination.route = Route::To(cluster);
    (destination.default_port, destination.only_port) = (false, false);
    Destination { port, addresses: [address].into(), ..destination }
}

pub fn calls() -> Calls {
    Calls {
        request_timeout: None,
        stream_idle_timeout: Millis(300_000),
        connection_idle_timeout: Millis(3_600_000),
        connect_timeout: Millis(1_000),
        retries: Retries {
            repeatable: Repeatable::Methods(["GET", "HEAD", "PUT"].map(str::to_owned).into()),
            repeatable_on: [RetryOn::ServerError, RetryOn::ConnectFailure].into(),
            others_on: [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::ResetBeforeRequest].into(),
            attempts: 2,
            per_try_timeout: None,
            backoff_base: Millis(5),
            backoff_max: Millis(50),
            budget_percent: 20,
            budget_min_concurrent: 3,
        },
        limits: Limits::default(),
        outliers: Outliers {
            consecutive_5xx: None,
            consecutive_gateway_errors: None,
            interval: Millis(10_000),
            base_ejection_time: Millis(30_000),
            max_ejection_percent: 50,
        },
        when_open: None,
        load_balancing: LoadBalancing::LeastRequest,
        max_connection_age: None,
    }
}

pub fn endpoint(instance: &str, port: u16, mtls: bool) -> Endpoint {
    Endpoint {
        instance: instance.parse().unwrap(),
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        mtls,
        healthy: true,
    }
}

pub trait Build {
    fn with(self, destination: Destination) -> Self;
    /// A proxy of `NAMESPACE/NAME` that only calls.
    fn caller(self, instance: &str, namespace: &str, name: &str, port: u16) -> Self;
    /// A proxy of `shop/NAME` with one door.
    fn called(self, instance: &str, name: &str, mesh_port: u16, app_port: u16, door: Door) -> Self;
    /// A proxy of `shop/NAME` in a pod, with these doors, and one that holds elsewhere.
    fn pod(self, instance: &str, name: &str, doors: &[(u16, Door)], undeclared: Undeclared) -> Self;
    /// That pod is here, and has no IPv6.
    fn at(self, instance: &str, address: IpAddr) -> Self;
}

impl Build for Mesh {
    fn with(mut self, destination: Destination) -> Self {
        self.destinations.insert(destination.port.clone(), Arc::new(destination));
        self
    }

    fn caller(mut self, instance: &str, namespace: &str, name: &str, port: u16) -> Self {
        let id: InstanceId = instance.parse().unwrap();
        self.caller_namespaces.insert(namespace.parse().unwrap());
        let proxy = Proxy {
            id: id.clone(),
            identity: identity(namespace, name),
            workload: workload(namespace, name),
            inbound: BTreeMap::new(),
            outbound_port: Some(port),
            interception: Interception::Environment,
            ipv6: false,
        };
        self.proxies.insert(id, Arc::new(proxy));
        self
    }

    fn called(mut self, instance: &str, name: &str, mesh_port: u16, app_port: u16, door: Door) -> Self {
        let id: InstanceId = instance.parse().unwrap();
        let workload = workload("shop", name);
        let inbound = Inbound {
            workload: workload.clone(),
            identity: identity("shop", name),
            ports: [(app_port, door)].into(),
            undeclared: None,
            shaped_by: BTreeSet::new(),
        };
        let proxy = Proxy {
            id: id.clone(),
            identity: identity("shop", name),
            workload: workload.clone(),
            inbound: [(SocketAddr::from(([127, 0, 0, 1], mesh_port)), app_port)].into(),
            outbound_port: None,
            interception: Interception::Environment,
            ipv6: false,
        };
        self.workloads.insert(workload, Arc::new(inbound));
        self.proxies.insert(id, Arc::new(proxy));
        self
    }

    fn pod(mut self, instance: &str, name: &str, doors: &[(u16, Door)], undeclared: Undeclared) -> Self {
        let id: InstanceId = instance.parse().unwrap();
        let workload = workload("shop", name);
        self.cluster_domain = Some("cluster.local".parse().unwrap());
        self.transparent_namespaces.insert("shop".parse().unwrap());
        let inbound = Inbound {
            workload: workload.clone(),
            identity: identity("shop", name),
            ports: doors.iter().cloned().collect(),
            undeclared: Some(undeclared),
            shaped_by: BTreeSet::new(),
        };
        let proxy = Proxy {
            id: id.clone(),
            identity: identity("shop", name),
            workload: workload.clone(),
            inbound: BTreeMap::new(),
            outbound_port: Some(15_001),
            interception: Interception::Transparent,
            ipv6: true,
        };
        self.workloads.insert(workload, Arc::new(inbound));
        self.proxies.insert(id, Arc::new(proxy));
        self
    }

    fn at(mut self, instance: &str, address: IpAddr) -> Self {
        let proxy = Arc::make_mut(self.proxies.get_mut(&instance.parse::<InstanceId>().unwrap()).unwrap());
        let ports = self.workloads[&proxy.workload].ports.keys();
        proxy.inbound = ports.map(|port| (SocketAddr::new(address, *port), *port)).collect();
        proxy.ipv6 = false;
        self
    }
}

/// The same mode for every port that nobody declared.
pub fn undeclared(mtls: MtlsMode) -> Undeclared {
    Undeclared { mtls, exceptions: BTreeMap::new(), access: Vec::new() }
}

pub fn door(mtls: MtlsMode, protocol: Protocol) -> Door {
    Door { mtls, protocol, access: Vec::new(), called_by_address: true }
}

fn workload(namespace: &str, name: &str) -> WorkloadRevision {
    WorkloadRevision {
        namespace: namespace.parse().unwrap(),
        workload: name.parse().unwrap(),
        revision: "v1".parse().unwrap(),
    }
}

/// A port nobody listens on, and that nobody else of this process is given: below the ports the kernel hands out.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 400).unwrap() * 25;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::SeqCst)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A policy that is enforced and one that only tells, with every kind of rule.
pub fn access() -> Vec<Access> {
    let name = |text: &str| text.parse().unwrap();
    let rules = vec![
        AccessRule {
            name: name("callers"),
            from: vec![
                Caller { namespace: "shop".parse().unwrap(), service_account: Some(name("front").into()) },
                Caller { namespace: "bank".parse().unwrap(), service_account: None },
            ],
            to: vec![],
        },
        AccessRule {
            name: name("requests"),
            from: vec![],
            to: vec![
                Asked {
                    methods: ["GET".to_owned(), "POST".to_owned()].into(),
                    paths: [PathPattern::Exact("/pay".to_owned()), PathPattern::Prefix("/v1/".to_owned())]
                        .into(),
                },
                Asked { methods: ["PUT".to_owned()].into(), paths: BTreeSet::new() },
            ],
        },
    ];
    let policy = |policy: &str, mode, rules| Access {
        by: ObjectId { kind: ObjectKind::MeshPolicy, namespace: "shop".parse().unwrap(), name: name(policy) },
        says: AccessSpec { admits_others: false, mode, rules }.into(),
    };
    vec![
        policy("door", AccessMode::Enforce, rules.clone()),
        policy("trial", AccessMode::Audit, rules),
        policy("nobody", AccessMode::Audit, vec![]),
    ]
}

/// A mesh whose service `pay` is plaintext endpoints.
pub fn plaintext(endpoints: Vec<Endpoint>) -> Mesh {
    empty().with(destination("pay", Protocol::Http, Transport::Plaintext, endpoints))
}

/// What lowers a mesh whose roots are some text.
pub fn lowerer() -> Lowerer {
    Lowerer::new(Settings { bundle_pem: "roots".to_owned(), fail_safe_after: Duration::from_secs(600) })
}

/// Two services and a caller in each of two namespaces.
pub fn shop() -> Mesh {
    let h2 = Transport::Mtls { http2: true };
    empty()
        .with(destination("pay", Protocol::Http, h2, vec![endpoint("pay-1", 9001, true)]))
        .with(destination("ledger", Protocol::Grpc, h2, vec![endpoint("ledger-1", 9002, true)]))
        .caller("front-1", "shop", "front", 15001)
        .caller("till-1", "bank", "till", 15002)
        .called("pay-1", "pay", 9001, 8080, door(MtlsMode::Strict, Protocol::Http))
}
