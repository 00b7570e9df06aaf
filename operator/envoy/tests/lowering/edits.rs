//! What an edit of a mesh changes, and what it leaves as it is: who closes connections, and who is sent something.

use crate::support::meshes::{self, Build, door, endpoint, lowerer, shop};
use airlane_core::{
    id::{ObjectId, ObjectKind},
    mesh::{Destination, Door, Endpoint, Limits, Mesh, Transport, Undeclared},
    policy::{AccessMode, Millis, MtlsMode},
    world::Protocol,
};
use airlane_envoy::catalog::{Key, Kind, Scope};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// The names of what an edit changes, as `Kind name`.
fn check(edit: impl FnOnce(&mut Mesh), expected: &[&str]) {
    let mut mesh = shop();
    let mut lowerer = lowerer();
    let (before, _) = lowerer.lower(&mesh);
    edit(&mut mesh);
    let (after, change) = lowerer.lower(&mesh);
    let changed: Vec<String> =
        change.keys.values().flatten().map(|key| format!("{:?} {}", key.kind, key.name)).collect();
    assert_eq!(changed, expected);
    assert_eq!(after.epoch, before.epoch + u64::from(!expected.is_empty()));
}

fn edit(mesh: &mut Mesh, service: &str, edit: impl FnOnce(&mut Destination)) {
    let destination = mesh.destinations.get_mut(&meshes::service_port("shop", service, 80)).unwrap();
    edit(Arc::make_mut(destination));
}

#[test]
fn an_equal_mesh_changes_nothing() {
    check(|mesh| edit(mesh, "pay", |_| ()), &[]);
}

#[test]
fn an_endpoint_is_one_message() {
    check(
        |mesh| edit(mesh, "pay", |pay| pay.clusters[0].endpoints = Arc::new(vec![])),
        &["Endpoints 80|pay|shop"],
    );
}

#[test]
fn a_timeout_is_one_host_for_each_caller_namespace_and_no_listener() {
    check(
        |mesh| edit(mesh, "pay", |pay| pay.calls.request_timeout = Some(Millis(10))),
        &["VirtualHost outbound|bank/80|pay|shop", "VirtualHost outbound|shop/80|pay|shop"],
    );
}

#[test]
fn a_limit_is_the_cluster_alone() {
    check(
        |mesh| edit(mesh, "pay", |pay| pay.calls.limits = Limits { requests: Some(1), ..Limits::default() }),
        &["Cluster 80|pay|shop"],
    );
}

#[test]
fn shares_travel_alone() {
    check(
        |mesh| mesh.shares = [("airlane.shop.pay.80.80|pay|shop|v2".to_owned(), 500)].into(),
        &["Runtime rollouts"],
    );
}

#[test]
fn a_doors_mode_is_its_own_proxys_listener() {
    check(
        |mesh| {
            for inbound in mesh.workloads.values_mut() {
                Arc::make_mut(inbound).ports.insert(8080, door(MtlsMode::Permissive, Protocol::Http));
            }
        },
        &["Listener inbound|127.0.0.1:9001"],
    );
}

/// A mesh with pods whose connections are redirected.
fn redirected() -> Mesh {
    let mut mesh = shop().pod("back-1", "back", &[(8080, door(MtlsMode::Strict, Protocol::Http))], open());
    let address = |last| [IpAddr::V4(Ipv4Addr::new(10, 96, 0, last))].into();
    edit(&mut mesh, "pay", |pay| pay.addresses = address(15));
    edit(&mut mesh, "ledger", |ledger| {
        (ledger.addresses, ledger.protocol) = (address(2), Protocol::Tcp);
    });
    mesh.caller_namespaces.clear();
    mesh
}

/// The same for what these pods see.
fn check_redirected(edit: impl FnOnce(&mut Mesh), expected: &[&str]) {
    let mut mesh = redirected();
    let mut lowerer = lowerer();
    lowerer.lower(&mesh);
    edit(&mut mesh);
    let (_, change) = lowerer.lower(&mesh);
    let changed: Vec<String> =
        change.keys.values().flatten().map(|key| format!("{:?} {}", key.kind, key.name)).collect();
    assert_eq!(changed, expected);
}

fn open() -> Undeclared {
    meshes::undeclared(MtlsMode::Permissive)
}

#[test]
fn a_new_service_touches_no_listener_but_its_own() {
    let new = |protocol, port, last| {
        move |mesh: &mut Mesh| {
            let address = IpAddr::V4(Ipv4Addr::new(10, 96, 0, last));
            let destination =
                meshes::in_cluster("stock", (address, port), protocol, Transport::Plaintext, vec![]);
            *mesh = mesh.clone().with(destination);
        }
    };
    check_redirected(
        new(Protocol::Http, 80, 9),
        &["Cluster 80|stock|shop", "Endpoints 80|stock|shop", "VirtualHost outbound|shop|80/80|stock|shop"],
    );
    check_redirected(
        new(Protocol::Tcp, 6379, 9),
        &["Cluster 6379|stock|shop", "Endpoints 6379|stock|shop", "Listener outbound|10.96.0.9:6379"],
    );
    check_redirected(
        new(Protocol::Http, 8080, 9),
        &[
            "Cluster 8080|stock|shop",
            "Endpoints 8080|stock|shop",
            "Listener outbound|8080",
            "Routes outbound|shop|8080",
            "VirtualHost outbound|shop|8080/8080|stock|shop",
            "VirtualHost outbound|shop|8080/itself",
        ],
    );
}

#[test]
fn a_service_beyond_all_others_touches_no_listener_when_it_comes_or_goes() {
    let stock = |mesh: Mesh, third: u8| {
        let address = IpAddr::V4(Ipv4Addr::new(10, 96, third, 9));
        mesh.with(meshes::in_cluster("stock", (address, 80), Protocol::Http, Transport::Plaintext, vec![]))
    };
    for third in [0, 255] {
        check_redirected(
            |mesh| *mesh = stock(mesh.clone(), third),
            &[
                "Cluster 80|stock|shop",
                "Endpoints 80|stock|shop",
                "VirtualHost outbound|shop|80/80|stock|shop",
            ],
        );
        let mut lowerer = lowerer();
        lowerer.lower(&stock(redirected(), third));
        let (_, gone) = lowerer.lower(&redirected());
        assert!(gone.keys.values().flatten().all(|key| key.kind != Kind::Listener), "{gone:?}");
    }
}

#[test]
fn a_new_pod_is_one_listener_if_it_is_called_for_bytes_by_its_address_and_none_if_requests() {
    for (protocol, called_by_address, expected) in [
        (Protocol::Http, true, &["VirtualHost pods|8080/pay|shop|pay"][..]),
        (Protocol::Tcp, true, &["Listener outbound|10.244.0.3:8080"]),
        (Protocol::Tcp, false, &[]),
    ] {
        let pod = |mesh: Mesh, number: u8| {
            let (instance, address) = (format!("pay-{number}"), IpAddr::from([10, 244, 0, number]));
            let door = Door { called_by_address, ..door(MtlsMode::Strict, protocol) };
            mesh.pod(&instance, "pay", &[(8080, door)], open()).at(&instance, address)
        };
        let mesh = pod(meshes::empty(), 2);
        let mut lowerer = lowerer();
        lowerer.lower(&mesh);
        let (_, change) = lowerer.lower(&pod(mesh, 3));
        let others = change.keys.iter().filter(|(scope, _)| !matches!(scope, Scope::Proxy(_)));
        let changed: Vec<String> = others
            .flat_map(|(scope, keys)| keys.iter().map(move |key| (scope, key)))
            .inspect(|(scope, _)| assert_eq!(**scope, Scope::Everyone, "encoded once"))
            .map(|(_, key)| format!("{:?} {}", key.kind, key.name))
            .collect();
        assert_eq!(changed, expected);
    }
}

#[test]
fn an_address_is_the_pods_that_is_called_there_and_not_of_one_that_left() {
    let address = IpAddr::from([10, 244, 0, 3]);
    let strict = |protocol| door(MtlsMode::Strict, protocol);
    let mut stock = meshes::in_cluster(
        "stock",
        (address, 80),
        Protocol::Http,
        Transport::Mtls { http2: true },
        vec![Endpoint { address: (address, 8080).into(), ..endpoint("stock-1", 8080, true) }],
    );
    stock.addresses.clear();
    let mesh = meshes::empty()
        .with(stock)
        .pod("stock-1", "stock", &[(8080, strict(Protocol::Http))], open())
        .at("stock-1", address)
        // Its object is still there, and comes later in order.
        .pod("was-1", "was", &[(8080, strict(Protocol::Tcp))], open())
        .at("was-1", address);
    let (catalog, _) = lowerer().lower(&mesh);
    let names: Vec<&str> = catalog.resources[&Scope::Everyone].keys().map(|key| &*key.name).collect();
    assert!(names.contains(&"pods|8080/stock|shop|stock"), "{names:?}");
    assert!(!names.contains(&"outbound|10.244.0.3:8080"), "{names:?}");
}

#[test]
fn a_policy_about_calls_touches_no_listener_of_a_redirected_pod() {
    check_redirected(
        |mesh| {
            for service in ["pay", "ledger"] {
                self::edit(mesh, service, |destination| {
                    destination.calls.request_timeout = Some(Millis(10));
                    destination.calls.connection_idle_timeout = Millis(10);
                });
            }
        },
        &["Cluster 80|ledger|shop", "Cluster 80|pay|shop", "VirtualHost outbound|shop|80/80|pay|shop"],
    );
}

#[test]
fn a_policy_about_who_may_ask_touches_no_listener() {
    let with = |rules: bool| {
        let access = meshes::access().into_iter().filter(move |access| rules || access.says.rules.is_empty());
        let access: Vec<_> = access
            .map(|mut access| {
                Arc::make_mut(&mut access.says).mode = AccessMode::Enforce;
                access
            })
            .collect();
        move |mesh: &mut Mesh| {
            for inbound in mesh.workloads.values_mut() {
                let inbound = Arc::make_mut(inbound);
                inbound.ports.values_mut().for_each(|door| door.access = access.clone());
                inbound.undeclared.iter_mut().for_each(|other| other.access = access.clone());
            }
        }
    };
    let mut mesh = shop().pod("back-1", "back", &[(8080, door(MtlsMode::Strict, Protocol::Http))], open());
    with(false)(&mut mesh);
    let mut lowerer = lowerer();
    lowerer.lower(&mesh);
    with(true)(&mut mesh);
    let (_, change) = lowerer.lower(&mesh);
    let changed: BTreeSet<String> =
        change.keys.values().flatten().map(|key| format!("{:?} {}", key.kind, key.name)).collect();
    assert_eq!(changed, ["Routes inbound|8080".to_owned()].into());
}

#[test]
fn an_address_that_moves_to_another_service_stays_the_same_listener() {
    check_redirected(
        |mesh| {
            let mut heir = meshes::destination("audit", Protocol::Tcp, Transport::Plaintext, vec![]);
            let other = [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 3))].into();
            self::edit(mesh, "ledger", |ledger| {
                heir.addresses = std::mem::replace(&mut ledger.addresses, other);
            });
            *mesh = mesh.clone().with(heir);
        },
        &[
            "Cluster 80|audit|shop",
            "Endpoints 80|audit|shop",
            "Listener outbound|10.96.0.2:80",
            "Listener outbound|10.96.0.3:80",
        ],
    );
}

#[test]
fn another_author_of_the_same_value_is_known_but_not_sent() {
    let author = ObjectId {
        kind: ObjectKind::MeshPolicy,
        namespace: "shop".parse().unwrap(),
        name: "other".parse().unwrap(),
    };
    let mut mesh = shop();
    let mut lowerer = lowerer();
    lowerer.lower(&mesh);
    edit(&mut mesh, "pay", |pay| pay.shaped_by = [author.clone()].into());
    let (catalog, change) = lowerer.lower(&mesh);
    assert!(change.keys.is_empty());
    let key = Key { kind: Kind::Cluster, name: "80|pay|shop".into() };
    assert_eq!(*catalog.resources[&Scope::Everyone][&key].shaped_by, [author].into());
}

#[test]
fn new_roots_are_one_secret_and_a_new_bound_is_the_runtime() {
    let mesh = shop();
    let mut lowerer = lowerer();
    lowerer.lower(&mesh);
    lowerer.trust("old and new roots".to_owned());
    let (_, change) = lowerer.lower(&mesh);
    let keys: Vec<_> = change.keys.values().flatten().map(|key| (key.kind, &*key.name)).collect();
    assert_eq!(keys, [(Kind::Secret, "bundle")]);
}
