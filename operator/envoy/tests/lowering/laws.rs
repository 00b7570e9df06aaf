//! What must hold of every catalog, without an Envoy.

use crate::support::meshes::{self, Build, door, endpoint};
use airlane_core::{
    id::{ClusterName, ObjectId, ObjectKind},
    mesh::{Destination, Limits, Mesh, Repeatable, Route, ShortName, Split, Transport, Undeclared},
    policy::{AccessMode, Millis, MtlsMode},
    world::{Interception, Protocol},
};
use airlane_envoy::{
    catalog::{Catalog, Key, Kind, Resource, Scope},
    lower::{Lowerer, Settings},
};
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster, core::v3::transport_socket, listener::v3::Listener, route::v3::VirtualHost,
    },
    extensions::transport_sockets::tls::v3::{UpstreamTlsContext, common_tls_context::ValidationContextType},
    r#type::matcher::v3::string_matcher::MatchPattern,
};
use proptest::prelude::*;
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

fn lowerer() -> Lowerer {
    Lowerer::new(Settings { bundle_pem: "roots".to_owned(), fail_safe_after: Duration::from_secs(600) })
}

fn shop() -> Mesh {
    let h2 = Transport::Mtls { http2: true };
    meshes::empty()
        .with(meshes::destination("pay", Protocol::Http, h2, vec![endpoint("pay-1", 9001, true)]))
        .with(meshes::destination("ledger", Protocol::Grpc, h2, vec![endpoint("ledger-1", 9002, true)]))
        .caller("front-1", "shop", "front", 15001)
        .caller("till-1", "bank", "till", 15002)
        .called("pay-1", "pay", 9001, 8080, door(MtlsMode::Strict, Protocol::Http))
}

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

/// The same for what pods see whose connections are redirected, in a mesh that has such pods besides.
fn check_redirected(edit: impl FnOnce(&mut Mesh), expected: &[&str]) {
    let mut mesh = shop().pod("back-1", "back", &[(8080, door(MtlsMode::Strict, Protocol::Http))], open());
    let address = |last| [IpAddr::V4(Ipv4Addr::new(10, 96, 0, last))].into();
    // So far apart that what comes later is between them.
    self::edit(&mut mesh, "pay", |pay| pay.addresses = address(15));
    self::edit(&mut mesh, "ledger", |ledger| {
        (ledger.addresses, ledger.protocol) = (address(2), Protocol::Tcp);
    });
    mesh.caller_namespaces.clear();
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
fn a_new_pod_is_one_listener_if_it_speaks_bytes_and_none_if_requests() {
    for (protocol, expected) in [
        (Protocol::Http, "VirtualHost pods|8080/pay|shop|pay"),
        (Protocol::Tcp, "Listener outbound|10.244.0.3:8080"),
    ] {
        let pod = |mesh: Mesh, number: u8| {
            let (instance, address) = (format!("pay-{number}"), IpAddr::from([10, 244, 0, number]));
            mesh.pod(&instance, "pay", &[(8080, door(MtlsMode::Strict, protocol))], open())
                .at(&instance, address)
        };
        let mesh = pod(meshes::empty(), 2);
        let mut lowerer = lowerer();
        lowerer.lower(&mesh);
        let (_, change) = lowerer.lower(&pod(mesh, 3));
        let others = change.keys.iter().filter(|(scope, _)| !matches!(scope, Scope::Proxy(_)));
        let changed: Vec<String> =
            others.flat_map(|(_, keys)| keys).map(|key| format!("{:?} {}", key.kind, key.name)).collect();
        assert_eq!(changed, [expected]);
    }
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
fn no_chain_of_a_strict_entrance_takes_plaintext() {
    let doors = [Protocol::Http, Protocol::Http2, Protocol::Grpc, Protocol::Tcp];
    let doors: Vec<_> =
        (8080..).zip(doors).map(|(port, protocol)| (port, door(MtlsMode::Strict, protocol))).collect();
    let mesh = meshes::empty().pod("pay-1", "pay", &doors, meshes::undeclared(MtlsMode::Strict));
    let (catalog, _) = lowerer().lower(&mesh);
    let key = Key { kind: Kind::Listener, name: "inbound".into() };
    let listener = &catalog.resources[&Scope::Proxy("pay-1".parse().unwrap())][&key];
    let listener = Listener::decode(&*listener.body.value).unwrap();
    let open = listener.filter_chains.iter().filter(|chain| !chain.filters.is_empty());
    let (mtls, plaintext): (Vec<_>, Vec<_>) = open.partition(|chain| chain.transport_socket.is_some());
    assert_eq!((mtls.len(), plaintext), (5, vec![]));
    assert_eq!(listener.default_filter_chain, None);
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

#[test]
fn a_service_in_a_namespace_called_mesh_takes_no_short_name_from_others() {
    let mut mesh = shop();
    let mut other = meshes::destination("pay", Protocol::Http, Transport::Plaintext, vec![]);
    other.port = meshes::service_port("mesh", "pay", 80);
    other.clusters.clear();
    other.short_name = ShortName::OwnNamespace;
    let mut ours = other.clone();
    ours.port = meshes::service_port("shop", "pay", 80);
    mesh = mesh.with(other).with(ours).caller("x-1", "mesh", "x", 15003);
    let owner = |caller: &str, domain: &str| {
        let (catalog, _) = lowerer().lower(&mesh);
        let hosts = hosts(&catalog, caller);
        hosts.into_iter().find(|host| host.domains.iter().any(|d| d == domain)).map(|host| host.name)
    };
    assert_eq!(owner("shop", "pay.mesh").as_deref(), Some("outbound|shop/80|pay|shop"));
    assert_eq!(owner("mesh", "pay.mesh").as_deref(), Some("outbound|mesh/80|pay|mesh"));
    assert_eq!(owner("bank", "pay.mesh"), None);
    assert_eq!(owner("bank", "pay.mesh.mesh:80").as_deref(), Some("outbound|bank/80|pay|mesh"));
}

#[test]
fn nobody_proves_to_be_an_empty_set_of_identities() {
    let mut mesh = shop();
    edit(&mut mesh, "pay", |pay| pay.clusters[0].identities.clear());
    let (catalog, _) = lowerer().lower(&mesh);
    let key = Key { kind: Kind::Cluster, name: "80|pay|shop".into() };
    let cluster = Cluster::decode(&*catalog.resources[&Scope::Everyone][&key].body.value).unwrap();
    let Some(transport_socket::ConfigType::TypedConfig(config)) =
        cluster.transport_socket.unwrap().config_type
    else {
        panic!("no TLS");
    };
    let context = UpstreamTlsContext::decode(&*config.value).unwrap().common_tls_context.unwrap();
    let Some(ValidationContextType::CombinedValidationContext(peers)) = context.validation_context_type
    else {
        panic!("no validation");
    };
    let matchers = peers.default_validation_context.unwrap().match_typed_subject_alt_names;
    let patterns: Vec<_> =
        matchers.into_iter().map(|matcher| matcher.matcher.unwrap().match_pattern.unwrap()).collect();
    assert_eq!(
        patterns,
        [MatchPattern::Exact("spiffe://airlane.local".to_owned())],
        "no identity is without a path"
    );
}

#[test]
fn pods_of_a_workload_share_what_is_encoded() {
    let doors = [(8080, door(MtlsMode::Permissive, Protocol::Http))];
    let pod = |mesh: Mesh, name| mesh.pod(name, "back", &doors, meshes::undeclared(MtlsMode::Permissive));
    let mut lowerer = lowerer();
    lowerer.lower(&pod(shop(), "back-1"));
    let (catalog, _) = lowerer.lower(&pod(pod(shop(), "back-1"), "back-2"));
    let [one, other] =
        ["back-1", "back-2"].map(|name| &catalog.resources[&Scope::Proxy(name.parse().unwrap())]);
    assert!(one.len() > 3, "doors, applications and the way out");
    for (key, resource) in &**one {
        assert!(Arc::ptr_eq(&resource.body, &other[key].body), "{key:?}");
        assert_ne!(resource.scope, other[key].scope);
    }
}

fn hosts(catalog: &Catalog, caller: &str) -> Vec<VirtualHost> {
    // Nothing is there for callers of a namespace if there is nothing to call.
    let scope = catalog.resources.get(&Scope::Namespace(caller.parse().unwrap()));
    let resources = scope.into_iter().flat_map(|resources| resources.values());
    let hosts = resources.filter(|resource| resource.key.kind == Kind::VirtualHost);
    hosts.map(|resource| VirtualHost::decode(&*resource.body.value).unwrap()).collect()
}

/// One edit of a mesh, small enough that several meet on the same thing.
#[derive(Clone, Debug)]
struct Edit {
    what: What,
    service: &'static str,
    namespace: &'static str,
    n: u16,
}

#[derive(Clone, Copy, Debug)]
enum What {
    DestinationGoes,
    DestinationComes,
    DestinationSplits,
    CallersCome,
    CallersGo,
    RedirectedCome,
    RedirectedGo,
    AddressMoves,
    PortComes,
    ShareMoves,
    ProxyComes,
    ProxyGoes,
    DoorGoes,
    AccessChanges,
    ExceptionComes,
    NameIsAmbiguous,
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let what = prop::sample::select(vec![
        What::DestinationGoes,
        What::DestinationComes,
        What::DestinationSplits,
        What::CallersCome,
        What::CallersGo,
        What::RedirectedCome,
        What::RedirectedGo,
        What::AddressMoves,
        What::PortComes,
        What::ShareMoves,
        What::ProxyComes,
        What::ProxyGoes,
        What::DoorGoes,
        What::AccessChanges,
        What::ExceptionComes,
        What::NameIsAmbiguous,
    ]);
    let service = prop::sample::select(vec!["pay", "ledger", "stock"]);
    let namespace = prop::sample::select(vec!["shop", "bank", "mesh"]);
    (what, service, namespace, 0..3u16).prop_map(|(what, service, namespace, n)| Edit {
        what,
        service,
        namespace,
        n,
    })
}

impl Edit {
    fn apply(&self, mesh: &mut Mesh) {
        let Edit { what, service, namespace, n } = self;
        let port = meshes::service_port("shop", service, 80);
        match what {
            What::DestinationGoes => drop(mesh.destinations.remove(&port)),
            What::DestinationComes => {
                let (protocol, transport) = [
                    (Protocol::Http, Transport::Mixed),
                    (Protocol::Grpc, Transport::Plaintext),
                    (Protocol::Tcp, Transport::Mtls { http2: false }),
                ][usize::from(*n)];
                let endpoints = vec![endpoint("pay-1", 9000 + n, *n > 0)];
                mesh.destinations
                    .insert(port, Arc::new(meshes::destination(service, protocol, transport, endpoints)));
            }
            What::DestinationSplits => {
                if let Some(destination) = mesh.destinations.get_mut(&port) {
                    let destination = Arc::make_mut(destination);
                    destination.calls.retries.repeatable = Repeatable::All;
                    destination.route = split(&destination.clusters[0].name, *n);
                }
            }
            What::CallersCome => drop(mesh.caller_namespaces.insert(namespace.parse().unwrap())),
            What::CallersGo => drop(mesh.caller_namespaces.remove(&namespace.parse().unwrap())),
            What::RedirectedCome => {
                let mode = [MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disabled][usize::from(*n)];
                let doors = [(8080, door(mode, Protocol::Http))];
                *mesh = mesh.clone().pod("back-1", service, &doors, meshes::undeclared(mode));
                mesh.transparent_namespaces.insert(namespace.parse().unwrap());
            }
            What::RedirectedGo => {
                let namespace = namespace.parse().unwrap();
                mesh.proxies.retain(|_, proxy| {
                    proxy.interception != Interception::Transparent || proxy.identity.namespace != namespace
                });
                mesh.transparent_namespaces.remove(&namespace);
            }
            What::AddressMoves => {
                let address = IpAddr::V4(Ipv4Addr::new(10, 96, 0, u8::try_from(*n).unwrap()));
                for destination in mesh.destinations.values_mut() {
                    let has = destination.addresses.contains(&address);
                    if has != (destination.port == port) {
                        let destination = Arc::make_mut(destination);
                        destination.addresses.remove(&address);
                        if !has {
                            destination.addresses.insert(address);
                        }
                    }
                }
            }
            What::PortComes => {
                let address = IpAddr::V4(Ipv4Addr::new(10, 97, 0, service.len().try_into().unwrap()));
                let protocol = [Protocol::Http, Protocol::Grpc, Protocol::Tcp][usize::from(*n)];
                let at = (address, 8000 + n);
                let mut second = meshes::in_cluster(service, at, protocol, Transport::Mixed, vec![]);
                (second.default_port, second.only_port) = (false, false);
                *mesh = mesh.clone().with(second);
            }
            What::ShareMoves => drop(mesh.shares.insert(format!("airlane.{service}"), u32::from(*n))),
            What::ProxyComes => {
                let door = door(MtlsMode::Strict, Protocol::Http);
                *mesh = mesh.clone().called("pay-1", service, 9000 + n, 8080, door);
            }
            What::ProxyGoes => drop(mesh.proxies.pop_first()),
            What::DoorGoes => drop(mesh.workloads.pop_first()),
            What::AccessChanges => {
                let access: Vec<_> = meshes::access().into_iter().take(usize::from(*n)).collect();
                for inbound in mesh.workloads.values_mut() {
                    let inbound = Arc::make_mut(inbound);
                    inbound.ports.values_mut().for_each(|door| door.access = access.clone());
                    inbound.undeclared.iter_mut().for_each(|other| other.access = access.clone());
                }
            }
            What::ExceptionComes => {
                let mode = [MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Disabled][usize::from(*n)];
                for inbound in mesh.workloads.values_mut() {
                    if let Some(other) = &mut Arc::make_mut(inbound).undeclared {
                        other.exceptions.insert(9000 + n, mode);
                    }
                }
            }
            What::NameIsAmbiguous => {
                let candidates = [meshes::service_port(namespace, service, 80).service];
                mesh.ambiguous.insert("twice".parse().unwrap(), Arc::new(candidates.into()));
            }
        }
    }
}

fn split(cluster: &ClusterName, n: u16) -> Route {
    let revision =
        |revision: &str| ClusterName { revision: Some(revision.parse().unwrap()), ..cluster.clone() };
    Route::Split(Split {
        runtime_prefix: "airlane.shop".to_owned(),
        fail_safe: vec![(revision("v1"), 10_000 - u32::from(n)), (revision("v2"), u32::from(n))],
    })
}

/// What identifies a catalog: everything but encoded bytes, which are not stable.
fn seen(catalog: &Catalog) -> BTreeMap<(Scope, Key), impl PartialEq + std::fmt::Debug + use<>> {
    let of = |resource: &Arc<Resource>| {
        let Resource { key, scope, version, ttl, clusters, domains, shaped_by, body: _ } =
            (**resource).clone();
        ((scope, key), (version, ttl, clusters, domains, shaped_by))
    };
    catalog.resources.values().flat_map(|resources| resources.values().map(of)).collect()
}

/// What the delta protocol is told of domains is what Envoy reads, and no two hosts of a route configuration have one in
/// common.
fn assert_domains(catalog: &Catalog) {
    let mut owners: BTreeMap<(String, String), &str> = BTreeMap::new();
    let hosts = catalog.resources.values().flat_map(|resources| resources.values());
    for host in hosts.filter(|resource| resource.key.kind == Kind::VirtualHost) {
        let body = VirtualHost::decode(&*host.body.value).expect("our own");
        assert_eq!(host.domains.len(), body.domains.len(), "{}", host.key.name);
        let routes = host.key.name.rsplit_once('/').expect("ROUTES/HOST").0;
        for domain in body.domains {
            let other = owners.insert((routes.to_owned(), domain.clone()), &host.key.name);
            assert_eq!(other, None, "{domain} of {}", host.key.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn step_by_step_is_the_same_as_at_once(edits in prop::collection::vec(any_edit(), 1..20)) {
        let mut mesh = shop();
        let mut stepwise = lowerer();
        let (mut before, _) = stepwise.lower(&mesh);
        for edit in edits {
            edit.apply(&mut mesh);
            let (after, change) = stepwise.lower(&mesh);
            let (at_once, _) = lowerer().lower(&mesh);
            prop_assert_eq!(seen(&after), seen(&at_once));
            assert_domains(&after);

            let (old, new) = (seen(&before), seen(&after));
            let differs = |key: &&(Scope, Key)| old.get(*key) != new.get(*key);
            let differing: BTreeSet<_> = old.keys().chain(new.keys()).filter(differs).cloned().collect();
            let told: BTreeSet<_> = change
                .keys
                .into_iter()
                .flat_map(|(scope, keys)| keys.into_iter().map(move |key| (scope.clone(), key)))
                .collect();
            prop_assert_eq!(&differing, &told);
            prop_assert_eq!(after.epoch, before.epoch + u64::from(!told.is_empty()));
            before = after;
        }
    }

    #[test]
    fn no_two_hosts_of_a_caller_claim_one_domain(edits in prop::collection::vec(any_edit(), 1..20)) {
        let mut mesh = shop();
        edits.iter().for_each(|edit| edit.apply(&mut mesh));
        let (catalog, _) = lowerer().lower(&mesh);
        for caller in mesh.caller_namespaces.union(&mesh.transparent_namespaces) {
            let mut domains: Vec<(String, String)> = hosts(&catalog, caller.as_str())
                .into_iter()
                .flat_map(|host| {
                    let routes = host.name.rsplit_once('/').expect("ROUTES/HOST").0.to_owned();
                    host.domains.into_iter().map(move |domain| (routes.clone(), domain))
                })
                .collect();
            let all = domains.len();
            domains.sort();
            domains.dedup();
            prop_assert_eq!(domains.len(), all);
        }
    }

    #[test]
    fn what_a_proxy_sees_names_only_what_it_sees(edits in prop::collection::vec(any_edit(), 1..20)) {
        let mut mesh = shop();
        edits.iter().for_each(|edit| edit.apply(&mut mesh));
        let (catalog, _) = lowerer().lower(&mesh);
        // Splits here name revisions that were never made.
        let made = |name: &str| !name.ends_with("|v1") && !name.ends_with("|v2");
        for (id, proxy) in &mesh.proxies {
            let namespace = &proxy.identity.namespace;
            for resource in catalog.seen_by(id, namespace) {
                for cluster in resource.clusters.iter().filter(|cluster| made(cluster)) {
                    let key = Key { kind: Kind::Cluster, name: Arc::clone(cluster) };
                    prop_assert!(catalog.get(id, namespace, &key).is_some(), "{:?} names {cluster}", resource.key);
                }
            }
        }
    }
}
