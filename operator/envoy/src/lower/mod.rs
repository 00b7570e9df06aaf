//! From a [`Mesh`] to Envoy's resources.
//!
//! A resource's version is a hash of what its encoding depends on, so that equal inputs have equal versions on
//! every replica and after every restart; encoded bytes are not stable (protobuf maps), and are made only when the
//! version is new.

mod access;
mod cluster;
mod door;
mod endpoints;
mod host;
mod listener;
mod lookup;
mod original;
mod outside;
mod pods;
mod proto;
mod redirected;
mod requests;
mod routes;
mod shared;
mod siblings;
mod signals;
mod sockets;
mod tls;
mod work;

pub use signals::{
    ACCESS_FILTER, ACCESS_SECTION, ATTEMPT_COUNT, DENIED, DENIED_BY, FIRST_ATTEMPTS, OUT_OF_TIME,
};
pub use sockets::CALL_PRIORITY;
pub(crate) use {
    shared::ROLLOUTS,
    signals::OPERATOR,
    tls::{AGENT, LEAF},
};

use crate::catalog::{Catalog, Change, Key, Kind, Scope, Version};
use airlane_core::{
    changes::changes,
    id::{Identity, InstanceId, Name, Namespace, ServiceId, ServicePort},
    mesh::{Destination, Door, Mesh, Proxy, Undeclared},
    policy::MtlsMode,
    world::Protocol,
};
use envoy_types::pb::google::protobuf::Any;
use pods::{Kin, Place, Places};
use redirected::{Ways, bytes, requests};
use siblings::Siblings;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use work::{Made, Work};
use xxhash_rust::xxh3::Xxh3Default;

/// Raised whenever the same value is encoded differently than before, so that proxies get the difference.
const LOWERING: u32 = 7;

/// What is the same for every mesh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The roots to trust, PEM: all of them while a root is being replaced.
    pub bundle_pem: String,
    /// How long a proxy keeps the current shares without a sign of life, after which the routes' fail-safe shares hold.
    pub fail_safe_after: Duration,
}

/// One resource before it is encoded. It holds what its encoding depends on, and nothing else: its hash is the version.
trait Lowered: Hash {
    const KIND: Kind;

    fn name(&self) -> String;

    fn encode(&self) -> Any;

    /// The clusters it names.
    fn clusters(&self) -> BTreeSet<Arc<str>> {
        BTreeSet::new()
    }

    /// The names it answers to, if it is a virtual host.
    fn domains(&self) -> Vec<String> {
        Vec::new()
    }

    fn version(&self) -> Version {
        let mut hasher = Xxh3Default::new();
        (LOWERING, Self::KIND).hash(&mut hasher);
        self.hash(&mut hasher);
        Version(hasher.finish())
    }
}

/// A part of the mesh that resources come from, and go with.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Origin {
    Everywhere,
    Caller(Namespace),
    Redirected,
    Requests(Namespace, u16),
    Bytes(SocketAddr),
    Pod(SocketAddr),
    Pods(u16),
    Kin(Kin),
    Ambiguous(Name),
    Destination(ServicePort),
    Proxy(InstanceId),
}

/// Lowers one mesh after the other, doing only what changed.
#[derive(Debug)]
pub struct Lowerer {
    settings: Settings,
    lowered: Option<(Settings, Mesh)>,
    places: Places,
    catalog: Catalog,
    /// What each origin had at the last lowering.
    made: HashMap<Origin, Keys>,
    siblings: Siblings,
}

/// Names of resources, in order, each once.
type Keys = Box<[(Scope, Key)]>;

impl Lowerer {
    /// A lowerer that has published nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            lowered: None,
            places: Places::default(),
            catalog: Catalog::default(),
            made: HashMap::new(),
            siblings: Siblings::default(),
        }
    }

    /// Replaces the roots to trust; the next [`Self::lower`] publishes them.
    pub fn trust(&mut self, bundle_pem: String) {
        self.settings.bundle_pem = bundle_pem;
    }

    /// The mesh as resources, and what changed since the last call. The epoch is raised when something did.
    ///
    /// A part that is the same value as before (the same `Arc`, or an equal one) costs nothing more.
    pub fn lower(&mut self, mesh: &Mesh) -> (Catalog, Change) {
        let before = self.lowered.take();
        let old = before.as_ref().map(|(_, mesh)| mesh);
        let mut work = Work {
            catalog: &mut self.catalog,
            made: &mut self.made,
            siblings: &mut self.siblings,
            change: BTreeMap::new(),
        };

        if before
            .as_ref()
            .is_none_or(|(settings, old)| *settings != self.settings || old.shares != mesh.shares)
        {
            work.everywhere(&self.settings, mesh);
        }
        let same_suffix = old.is_some_and(|old| old.cluster_domain == mesh.cluster_domain);
        let same_authority = old.is_some_and(|old| old.trust_domain == mesh.trust_domain);
        let told = old.map(|old| old.caller_namespaces.clone()).unwrap_or_default();
        let led = old.map(|old| old.transparent_namespaces.clone()).unwrap_or_default();
        for caller in told.difference(&mesh.caller_namespaces) {
            work.replace(Origin::Caller(caller.clone()), Made::default());
        }
        for caller in mesh.caller_namespaces.difference(&told) {
            work.caller(caller);
        }
        // The namespaces with the first or without the last of their callers.
        let differing: BTreeSet<Namespace> = told
            .symmetric_difference(&mesh.caller_namespaces)
            .chain(led.symmetric_difference(&mesh.transparent_namespaces))
            .cloned()
            .collect();
        if !differing.is_empty() || !same_authority {
            work.redirected(mesh);
        }
        let places = match old {
            Some(old) if Places::are_same(old, mesh) => self.places.clone(),
            _ => Places::of(mesh),
        };
        let (requests, requested) =
            (old.map(|old| requests(old, &self.places)).unwrap_or_default(), requests(mesh, &places));
        for gone in requests.keys().filter(|request| !requested.contains_key(request)) {
            work.replace(Origin::Requests(gone.0.clone(), gone.1), Made::default());
        }
        for (request, ways) in requested.iter().filter(|(request, ways)| requests.get(request) != Some(ways))
        {
            work.requests(&request.0, request.1, ways);
        }
        let (pods_had, pods_have) = (self.places.request_ports(), places.request_ports());
        for port in pods_had.symmetric_difference(&pods_have) {
            work.pods(*port, pods_have.contains(port));
        }
        for (kin, place) in changed(Some(&self.places.requests), &places.requests, same_suffix) {
            work.kin(kin, place, mesh);
        }
        for (at, identity) in changed(Some(&self.places.bytes), &places.bytes, true) {
            work.pod(*at, identity);
        }
        self.places = places;
        for (port, destination) in
            changed(old.map(|old| &old.destinations), &mesh.destinations, same_suffix && same_authority)
        {
            work.destination(port, destination, mesh);
        }
        for (at, destination) in changed(old.map(bytes).as_ref(), &bytes(mesh), true) {
            work.bytes(*at, destination);
        }
        for (name, candidates) in changed(old.map(|old| &old.ambiguous), &mesh.ambiguous, true) {
            work.ambiguous(name, candidates, mesh);
        }
        if old.is_some() && !differing.is_empty() {
            work.hosts_in(&differing, mesh);
        }
        let doors: BTreeSet<_> = changed(old.map(|old| &old.workloads), &mesh.workloads, true)
            .into_iter()
            .map(|(workload, _)| workload)
            .collect();
        for (id, proxy) in changed(old.map(|old| &old.proxies), &mesh.proxies, same_authority) {
            work.proxy(id, proxy, mesh);
        }
        for (id, proxy) in mesh.proxies.iter().filter(|(_, proxy)| doors.contains(&proxy.workload)) {
            work.proxy(id, Some(proxy), mesh);
        }

        let keys = work.change;
        if !keys.is_empty() {
            self.catalog.epoch += 1;
        }
        self.lowered = Some((self.settings.clone(), mesh.clone()));
        (self.catalog.clone(), Change { epoch: self.catalog.epoch, keys })
    }
}

/// What differs between two maps of shared values: first what is gone, as `None`. Everything, unless `same_context`.
fn changed<'a, K: Ord, V: PartialEq>(
    old: Option<&'a BTreeMap<K, Arc<V>>>,
    new: &'a BTreeMap<K, Arc<V>>,
    same_context: bool,
) -> Vec<(&'a K, Option<&'a Arc<V>>)> {
    let everything = || new.iter().map(|(key, value)| (key, Some(value)));
    let Some(old) = old else { return everything().collect() };
    let differ = |[was, is]: &[Option<&Arc<V>>; 2]| was.zip(*is).is_none_or(|(was, is)| was != is);
    let different = changes(old, new).filter(|(_, versions)| differ(versions));
    let (gone, other): (Vec<_>, Vec<_>) =
        different.map(|(key, [_, is])| (key, is)).partition(|(_, is)| is.is_none());
    if same_context { [gone, other].concat() } else { gone.into_iter().chain(everything()).collect() }
}

impl Work<'_> {
    fn everywhere(&mut self, settings: &Settings, mesh: &Mesh) {
        let nobody = Arc::default();
        let mut made = Made::default();
        let bundle = shared::Bundle { pem: &settings.bundle_pem };
        self.add(&mut made, Scope::Everyone, &bundle, &nobody);
        self.add(&mut made, Scope::Everyone, &cluster::Outside, &nobody);
        self.add(&mut made, Scope::Everyone, &cluster::Tunnel, &nobody);
        self.add(&mut made, Scope::Everyone, &shared::Rollouts { shares: &mesh.shares }, &nobody);
        for resource in &mut made.0 {
            let ttl = (resource.key.kind == Kind::Runtime).then_some(settings.fail_safe_after);
            if resource.ttl != ttl {
                Arc::make_mut(resource).ttl = ttl;
            }
        }
        self.replace(Origin::Everywhere, made);
    }

    fn caller(&mut self, caller: &Namespace) {
        let mut made = Made::default();
        let (scope, nobody) = (Scope::Namespace(caller.clone()), Arc::default());
        self.add(&mut made, scope.clone(), &routes::Routes { caller }, &nobody);
        self.add(&mut made, scope, &routes::Itself { caller }, &nobody);
        self.replace(Origin::Caller(caller.clone()), made);
    }

    /// What every redirected caller calls.
    fn redirected(&mut self, mesh: &Mesh) {
        let mut made = Made::default();
        if !mesh.transparent_namespaces.is_empty() {
            let nobody = Arc::default();
            self.add(&mut made, Scope::Everyone, &original::Direct, &nobody);
            for spoken in pods::Spoken::ALL {
                let pods = pods::Pods { spoken, trust_domain: &mesh.trust_domain };
                self.add(&mut made, Scope::Everyone, &pods, &nobody);
            }
        }
        self.replace(Origin::Redirected, made);
    }

    fn requests(&mut self, caller: &Namespace, port: u16, ways: &Ways) {
        let mut made = Made::default();
        let (scope, nobody) = (|| Scope::Namespace(caller.clone()), Arc::default());
        let Ways { services, pods } = ways;
        self.add(&mut made, scope(), &redirected::Requests { caller, port, services, pods: *pods }, &nobody);
        if !services.is_empty() {
            self.add(&mut made, scope(), &routes::PortRoutes { caller, port }, &nobody);
            self.add(&mut made, scope(), &routes::PortItself { caller, port }, &nobody);
        }
        self.replace(Origin::Requests(caller.clone(), port), made);
    }

    /// Requests to pods, whoever makes them.
    fn pods(&mut self, port: u16, any: bool) {
        let mut made = Made::default();
        if any {
            let nobody = Arc::default();
            self.add(&mut made, Scope::Everyone, &routes::PodRoutes { port }, &nobody);
            self.add(&mut made, Scope::Everyone, &routes::PodItself { port }, &nobody);
        }
        self.replace(Origin::Pods(port), made);
    }

    fn kin(&mut self, kin: &Kin, place: Option<&Arc<Place>>, mesh: &Mesh) {
        let mut made = Made::default();
        if let Some(place) = place {
            let at = pods::AtAddresses::new(kin, place, mesh.cluster_domain.as_ref());
            self.add(&mut made, Scope::Everyone, &at, &Arc::new(place.shaped_by()));
        }
        self.replace(Origin::Kin(kin.clone()), made);
    }

    fn pod(&mut self, at: SocketAddr, identity: Option<&Arc<Identity>>) {
        let mut made = Made::default();
        if let Some(identity) = identity {
            let bytes = redirected::Bytes::to_pod(at, identity);
            self.add(&mut made, Scope::Everyone, &bytes, &Arc::default());
        }
        self.replace(Origin::Pod(at), made);
    }

    fn bytes(&mut self, at: SocketAddr, destination: Option<&Arc<Destination>>) {
        let mut made = Made::default();
        if let Some(destination) = destination {
            let shaped_by = Arc::new(destination.shaped_by.clone());
            let bytes = redirected::Bytes::to_service(at, destination);
            self.add(&mut made, Scope::Everyone, &bytes, &shaped_by);
        }
        self.replace(Origin::Bytes(at), made);
    }

    fn destination(&mut self, port: &ServicePort, destination: Option<&Arc<Destination>>, mesh: &Mesh) {
        let mut made = Made::default();
        if let Some(destination) = destination {
            let shaped_by = Arc::new(destination.shaped_by.clone());
            for cluster in &destination.clusters {
                let lowered = cluster::DestinationCluster::new(
                    cluster,
                    destination.protocol,
                    &destination.calls,
                    &mesh.trust_domain,
                    mesh.cluster_domain.is_some(),
                );
                self.add(&mut made, Scope::Everyone, &lowered, &shaped_by);
                self.add(&mut made, Scope::Everyone, &endpoints::Assignment::of(cluster), &shaped_by);
            }
            self.hosts(&mut made, destination, mesh, |_| true);
        }
        self.replace(Origin::Destination(port.clone()), made);
    }

    /// A destination as the callers of some namespaces see it.
    fn hosts(
        &mut self,
        made: &mut Made,
        destination: &Destination,
        mesh: &Mesh,
        among: impl Fn(&Namespace) -> bool,
    ) {
        let shaped_by = Arc::new(destination.shaped_by.clone());
        for caller in mesh.caller_namespaces.iter().filter(|caller| among(caller)) {
            let host = host::Host::new(caller, destination, mesh.cluster_domain.as_ref());
            self.add(made, Scope::Namespace(caller.clone()), &host, &shaped_by);
        }
        // Who has no address is called at its pods'.
        let found = destination.protocol.is_http() && !destination.addresses.is_empty();
        for caller in mesh.transparent_namespaces.iter().filter(|caller| found && among(caller)) {
            let host = host::Host::redirected(caller, destination, mesh.cluster_domain.as_ref());
            self.add(made, Scope::Namespace(caller.clone()), &host, &shaped_by);
        }
    }

    fn ambiguous(&mut self, name: &Name, candidates: Option<&Arc<BTreeSet<ServiceId>>>, mesh: &Mesh) {
        let mut made = Made::default();
        if let Some(candidates) = candidates {
            self.nowhere(&mut made, name, candidates, mesh, |_| true);
        }
        self.replace(Origin::Ambiguous(name.clone()), made);
    }

    /// A name that means nothing, to the callers of some namespaces.
    fn nowhere(
        &mut self,
        made: &mut Made,
        name: &Name,
        candidates: &BTreeSet<ServiceId>,
        mesh: &Mesh,
        among: impl Fn(&Namespace) -> bool,
    ) {
        let has_its_own = |caller: &Namespace| candidates.iter().any(|service| service.namespace == *caller);
        let callers = mesh.caller_namespaces.iter().filter(|caller| among(caller) && !has_its_own(caller));
        for caller in callers {
            let host = host::Ambiguous { caller, name, candidates };
            self.add(made, Scope::Namespace(caller.clone()), &host, &Arc::default());
        }
    }

    /// Everything that callers of these namespaces see by name, and nothing for others: there are as many hosts as
    /// destinations times namespaces.
    fn hosts_in(&mut self, namespaces: &BTreeSet<Namespace>, mesh: &Mesh) {
        let scopes = namespaces.iter().cloned().map(Scope::Namespace).collect();
        let among = |caller: &Namespace| namespaces.contains(caller);
        for (port, destination) in &mesh.destinations {
            let mut made = Made::default();
            self.hosts(&mut made, destination, mesh, among);
            self.replace_in(&scopes, Origin::Destination(port.clone()), made);
        }
        for (name, candidates) in &mesh.ambiguous {
            let mut made = Made::default();
            self.nowhere(&mut made, name, candidates, mesh, among);
            self.replace_in(&scopes, Origin::Ambiguous(name.clone()), made);
        }
    }

    fn proxy(&mut self, id: &InstanceId, proxy: Option<&Arc<Proxy>>, mesh: &Mesh) {
        let mut made = Made::default();
        match proxy {
            Some(proxy) if proxy.interception.redirects_calls() => {
                self.behind_the_kernel(&mut made, proxy, mesh);
            }
            Some(proxy) => self.beside_the_application(&mut made, proxy, mesh),
            None => {}
        }
        self.replace(Origin::Proxy(id.clone()), made);
    }

    /// A proxy whose port the application is told, and which listens before each of the application's own.
    fn beside_the_application(&mut self, made: &mut Made, proxy: &Proxy, mesh: &Mesh) {
        let scope = || Scope::Proxy(proxy.id.clone());
        let caller = &proxy.identity.namespace;
        let inbound = mesh.workloads.get(&proxy.workload);
        let shaped_by = Arc::new(inbound.map(|inbound| inbound.shaped_by.clone()).unwrap_or_default());
        let doors = proxy.inbound.iter().filter_map(|(at, port)| Some((at, port, inbound?.ports.get(port)?)));
        for (at, port, door) in doors {
            let application = cluster::Application { port: *port, protocol: door.protocol };
            self.add(made, scope(), &application, &shaped_by);
            let listener = door::Inbound {
                at: *at,
                port: *port,
                opening: door.into(),
                trust_domain: &mesh.trust_domain,
            };
            self.add(made, scope(), &listener, &shaped_by);
            self.admission(made, proxy, *port, door, mesh);
        }
        if let Some(port) = proxy.outbound_port {
            self.add(made, scope(), &listener::Outbound { caller, port }, &Arc::default());
            self.add(made, scope(), &listener::Tunnelled { caller }, &Arc::default());
        }
    }

    /// A proxy to which the kernel redirects what leaves, and mostly what enters as well.
    fn behind_the_kernel(&mut self, made: &mut Made, proxy: &Proxy, mesh: &Mesh) {
        if proxy.interception.keeps_a_door() {
            self.entrance(made, proxy, mesh);
        }
        if let Some(port) = proxy.outbound_port {
            let exit = redirected::Exit { port, ipv6: proxy.ipv6 };
            self.add_alike(made, proxy, &exit, &Arc::default());
        }
    }

    fn entrance(&mut self, made: &mut Made, proxy: &Proxy, mesh: &Mesh) {
        let Some(inbound) = mesh.workloads.get(&proxy.workload) else { return };
        let shaped_by = Arc::new(inbound.shaped_by.clone());
        // Whose doors are not known keeps them closed.
        let unknown = Undeclared { mtls: MtlsMode::Strict, exceptions: BTreeMap::new(), access: Vec::new() };
        let undeclared = inbound.undeclared.as_ref().unwrap_or(&unknown);
        let entrance = door::Entrance::new(&inbound.ports, undeclared, &mesh.trust_domain, proxy.ipv6);
        let applications = entrance.doors().map(|(port, door)| (port, door.protocol));
        for (port, protocol) in applications.chain([(door::UNDECLARED, Protocol::Tcp)]) {
            self.add_alike(made, proxy, &original::Application { port, protocol }, &shaped_by);
        }
        self.add_alike(made, proxy, &entrance, &shaped_by);
        for (port, door) in &inbound.ports {
            self.admission(made, proxy, *port, door, mesh);
        }
    }

    /// Who may ask for what before a port that speaks requests.
    fn admission(&mut self, made: &mut Made, proxy: &Proxy, port: u16, door: &Door, mesh: &Mesh) {
        if !door.protocol.is_http() {
            return;
        }
        let admission = access::Admission { port, access: &door.access, trust_domain: &mesh.trust_domain };
        let shaped_by = Arc::new(door.access.iter().map(|access| access.by.clone()).collect());
        self.add_alike(made, proxy, &admission, &shaped_by);
    }
}
