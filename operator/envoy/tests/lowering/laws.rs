//! What must hold of every catalog, without an Envoy.

use crate::support::meshes::{self, Build, door, endpoint, lowerer, shop};
use airlane_core::{
    id::ClusterName,
    mesh::{Mesh, Repeatable, Route, ShortName, Split, Transport},
    policy::MtlsMode,
    world::{Interception, Protocol},
};
use airlane_envoy::catalog::{Catalog, Key, Kind, Resource, Scope};
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
};

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
    let pay = mesh.destinations.get_mut(&meshes::service_port("shop", "pay", 80)).unwrap();
    Arc::make_mut(pay).clusters[0].identities.clear();
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
