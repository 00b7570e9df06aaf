//! Random conversations between a [`Session`] and a [`model`] of Envoy's side: whatever is published and in whatever
//! order the messages come, traffic is safe, and in the end the proxy has what it should have.

use super::{
    model::{BAD, BOOTSTRAP, Client, TTL, is_bad, name, proxy},
    subscription::Subscription,
    *,
};
use crate::catalog::Version;
use airlane_core::id::Namespace;
use envoy_types::pb::google::protobuf::Any;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

/// What is wished to be published: generations by place; hosts and listeners also name clusters, by bits.
#[derive(Clone, Debug, Default)]
struct Wish {
    clusters: [Option<u8>; 5],
    endpoints: [Option<u8>; 5],
    hosts: [Option<(u8, u8)>; 4],
    listeners: [Option<(u8, u8)>; 2],
    secret: Option<u8>,
    routes: Option<u8>,
    shares: Option<u8>,
}

#[derive(Clone, Debug)]
enum Edit {
    Cluster(usize, Option<u8>),
    Endpoints(usize, Option<u8>),
    Host(usize, Option<(u8, u8)>),
    Listener(usize, Option<(u8, u8)>),
    Secret(Option<u8>),
    Routes(Option<u8>),
    Shares(Option<u8>),
}

#[derive(Clone, Debug)]
enum Op {
    Publish(Vec<Edit>),
    ToClient,
    ToServer,
    Lag(Vec<Vec<Edit>>),
    Reconnect,
    Pass(u8),
    Vouch(bool),
    Settle,
}

fn edit() -> impl Strategy<Value = Edit> {
    let generation = || proptest::option::weighted(0.75, 0..=BAD);
    let naming = || proptest::option::weighted(0.8, (0..=BAD, 0..64_u8));
    prop_oneof![
        4 => (0..5_usize, generation()).prop_map(|(at, g)| Edit::Cluster(at, g)),
        4 => (0..5_usize, generation()).prop_map(|(at, g)| Edit::Endpoints(at, g)),
        6 => (0..4_usize, naming()).prop_map(|(at, g)| Edit::Host(at, g)),
        2 => (0..2_usize, naming()).prop_map(|(at, g)| Edit::Listener(at, g)),
        1 => generation().prop_map(Edit::Secret),
        1 => generation().prop_map(Edit::Routes),
        1 => generation().prop_map(Edit::Shares),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let edits = || proptest::collection::vec(edit(), 1..8);
    prop_oneof![
        4 => edits().prop_map(Op::Publish),
        8 => Just(Op::ToClient),
        8 => Just(Op::ToServer),
        1 => proptest::collection::vec(edits(), 2..4).prop_map(Op::Lag),
        1 => Just(Op::Reconnect),
        2 => (0..50_u8).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(Op::Vouch),
        2 => Just(Op::Settle),
    ]
}

fn resource(
    kind: Kind,
    at: usize,
    scope: Scope,
    generation: u8,
    clusters: BTreeSet<Arc<str>>,
    domains: Vec<u64>,
) -> Arc<Resource> {
    let name = name(kind, at);
    let mut hasher = DefaultHasher::new();
    (kind, &name, generation, &clusters, &domains).hash(&mut hasher);
    Arc::new(Resource {
        key: Key { kind, name },
        scope,
        version: Version(hasher.finish() << 3 | u64::from(generation)),
        body: Arc::new(Any { type_url: kind.type_url().into(), value: vec![generation] }),
        ttl: (kind == Kind::Runtime).then_some(TTL),
        clusters: Arc::new(clusters),
        domains: domains.into(),
        shaped_by: Arc::default(),
    })
}

impl Wish {
    fn apply(&mut self, edit: &Edit) {
        match *edit {
            Edit::Cluster(at, wish) => self.clusters[at] = wish,
            Edit::Endpoints(at, wish) => self.endpoints[at] = wish,
            Edit::Host(at, wish) => self.hosts[at] = wish,
            Edit::Listener(at, wish) => self.listeners[at] = wish,
            Edit::Secret(wish) => self.secret = wish,
            Edit::Routes(wish) => self.routes = wish,
            Edit::Shares(wish) => self.shares = wish,
        }
    }

    /// A host has a domain of its own, and one that the first of several hosts has: each of them in another order.
    fn domains(&self, host: usize) -> Vec<u64> {
        let first = |domain: usize| (0..4).map(|n| (domain + n) % 4).find(|at| self.hosts[*at].is_some());
        let shared = (0..3).filter(|domain| first(*domain) == Some(host));
        shared.chain([10 + host]).map(|domain| domain as u64).collect()
    }

    fn catalog(&self, epoch: u64) -> Catalog {
        let mut layers: HashMap<Scope, BTreeMap<Key, Arc<Resource>>> = HashMap::new();
        let mut put = |kind, at, scope: Scope, generation, clusters, domains| {
            let resource = resource(kind, at, scope.clone(), generation, clusters, domains);
            layers.entry(scope).or_default().insert(resource.key.clone(), resource);
        };
        // Only what is published is named, but for what the bootstrap brings.
        let named = |bits: u8| -> BTreeSet<Arc<str>> {
            let published = (0..5).filter(|at| bits >> at & 1 == 1 && self.clusters[*at].is_some());
            let bootstrap = (bits >> 5 & 1 == 1).then(|| Arc::from(BOOTSTRAP));
            published.map(|at| name(Kind::Cluster, at)).chain(bootstrap).collect()
        };
        let shop = || Scope::Namespace(namespace());
        for (at, generation) in self.clusters.iter().enumerate() {
            let Some(generation) = *generation else { continue };
            put(Kind::Cluster, at, Scope::Everyone, generation, BTreeSet::new(), Vec::new());
            if let Some(generation) = self.endpoints[at] {
                put(Kind::Endpoints, at, Scope::Everyone, generation, BTreeSet::new(), Vec::new());
            }
        }
        for (at, host) in self.hosts.iter().enumerate() {
            if let Some((generation, bits)) = *host {
                put(Kind::VirtualHost, at, shop(), generation, named(bits), self.domains(at));
            }
        }
        for (at, listener) in self.listeners.iter().enumerate() {
            if let Some((generation, bits)) = *listener {
                put(Kind::Listener, at, Scope::Proxy(proxy()), generation, named(bits), Vec::new());
            }
        }
        let single = [(Kind::Secret, self.secret), (Kind::Routes, self.routes), (Kind::Runtime, self.shares)];
        for (kind, generation) in single {
            if let Some(generation) = generation {
                put(kind, 0, Scope::Everyone, generation, BTreeSet::new(), Vec::new());
            }
        }
        let foreign = Scope::Namespace(Namespace::parse("foreign").expect("a name"));
        put(Kind::Secret, 0, foreign, 0, BTreeSet::new(), Vec::new());
        let resources = layers.into_iter().map(|(scope, layer)| (scope, Arc::new(layer))).collect();
        Catalog { epoch, resources }
    }
}

fn namespace() -> Namespace {
    Namespace::parse("shop").expect("a name")
}

fn change(old: &Catalog, new: &Catalog) -> Change {
    let mut keys: BTreeMap<Scope, BTreeSet<Key>> = BTreeMap::new();
    for (one, other) in [(old, new), (new, old)] {
        for (scope, layer) in &one.resources {
            for (key, resource) in &**layer {
                let counterpart = other.resources.get(scope).and_then(|layer| layer.get(key));
                if counterpart.is_none_or(|counterpart| counterpart.version != resource.version) {
                    keys.entry(scope.clone()).or_default().insert(key.clone());
                }
            }
        }
    }
    Change { epoch: new.epoch, keys }
}

struct Conversation {
    session: Session,
    wish: Wish,
    published: Published,
    client: Client,
    to_client: VecDeque<Arc<Response>>,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    now: Duration,
}

impl Conversation {
    fn new() -> Conversation {
        let wish = Wish::default();
        let published =
            Published { catalog: Arc::new(wish.catalog(1)), shares_live: true, ..Published::default() };
        let mut conversation = Conversation {
            session: Session::new(&proxy(), &namespace(), 1),
            wish,
            published,
            client: Client::default(),
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            now: Duration::from_secs(1000),
        };
        conversation.client.begin(Kind::Cluster, &mut conversation.to_server);
        conversation
    }

    fn publish(&mut self, edits: &[Edit]) -> Change {
        edits.iter().for_each(|edit| self.wish.apply(edit));
        let catalog = Arc::new(self.wish.catalog(self.published.catalog.epoch + 1));
        let change = change(&self.published.catalog, &catalog);
        self.published.catalog = catalog;
        change
    }

    fn wake(&mut self) {
        let reaction = self.session.wake(&self.published, self.now);
        self.to_client.extend(reaction.responses);
    }

    fn wake_if_due(&mut self) {
        if self.session.next_wake().is_some_and(|at| at <= self.now) {
            self.wake();
        }
    }

    fn apply(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Publish(edits) => {
                let change = self.publish(edits);
                let reaction = self.session.publish(&self.published, [&change], self.now);
                self.to_client.extend(reaction.responses);
            }
            Op::Lag(missed) => {
                for edits in missed {
                    self.publish(edits);
                }
                let reaction = self.session.resync(&self.published, self.now);
                self.to_client.extend(reaction.responses);
            }
            Op::ToClient => {
                if let Some(response) = self.to_client.pop_front() {
                    self.client.take(&response, self.now, &mut self.to_server)?;
                    let unknown = |hosts: &Subscription| !hosts.doubt.is_empty();
                    let hosts = self.session.subscriptions.get(&Kind::VirtualHost);
                    if std::mem::take(&mut self.client.conflicts) > 0 && !hosts.is_some_and(unknown) {
                        return Err("two hosts would have a domain in common".into());
                    }
                }
            }
            Op::ToServer => {
                if let Some(request) = self.to_server.pop_front() {
                    let reaction = self
                        .session
                        .receive(&request, &self.published, self.now)
                        .map_err(|refused| refused.to_string())?;
                    if reaction.ignored > 0 {
                        return Err(format!("ignored: {request:?}"));
                    }
                    for rejection in &reaction.rejections {
                        if !is_bad(rejection.version) {
                            return Err(format!("{rejection:?} was not at fault"));
                        }
                    }
                    self.to_client.extend(reaction.responses);
                }
            }
            Op::Reconnect => {
                self.session = Session::new(&proxy(), &namespace(), self.published.catalog.epoch);
                self.to_client.clear();
                // What the lost stream still carried is waited for with a timeout, in Envoy.
                self.client.warming.clear();
                self.to_server =
                    self.client.subscribed.iter().map(|kind| self.client.request(*kind)).collect();
            }
            Op::Pass(seconds) => {
                self.now += Duration::from_secs(u64::from(*seconds));
                self.client.expire(self.now);
                self.wake_if_due();
            }
            Op::Vouch(live) => {
                self.published.shares_live = *live;
                self.wake();
            }
            Op::Settle => self.settle()?,
        }
        self.check_bounds()
    }

    /// Delivers everything, and compares.
    fn settle(&mut self) -> Result<(), String> {
        self.published.shares_live = true;
        self.client.expire(self.now);
        self.wake();
        for _ in 0..1000 {
            if self.to_client.is_empty() && self.to_server.is_empty() {
                return self.check_rest();
            }
            self.apply(&Op::ToClient)?;
            self.apply(&Op::ToServer)?;
            self.wake_if_due();
        }
        Err("they talk for ever".into())
    }

    fn check_bounds(&self) -> Result<(), String> {
        let in_flight = |kind| self.session.subscriptions.get(&kind).map_or(0, |s| s.in_flight.len());
        match Kind::ALL.into_iter().find(|kind| in_flight(*kind) > 3 * WINDOW) {
            Some(kind) => Err(format!("{} responses of {kind:?} in flight", in_flight(kind))),
            None => Ok(()),
        }
    }

    fn check_rest(&self) -> Result<(), String> {
        let epoch = self.published.catalog.epoch;
        if self.session.acked_epoch() != Some(epoch) {
            let due: Vec<_> = self.session.subscriptions.iter().map(|(kind, s)| (kind, &s.due)).collect();
            return Err(format!("acknowledged {:?} of {epoch}: {due:?}", self.session.acked_epoch()));
        }
        let visible: BTreeMap<Key, Arc<Resource>> = self
            .published
            .catalog
            .seen_by(&proxy(), &namespace())
            .map(|resource| (resource.key.clone(), resource.clone()))
            .collect();
        let has = |key: &Key| self.client.has.get(&key.kind).and_then(|has| has.get(&key.name));
        let refused = |key: &Key| visible.get(key).is_some_and(|resource| is_bad(resource.version));
        for (key, resource) in &visible {
            // One that is to go keeps serving with the endpoints it has.
            if key.kind == Kind::Cluster && self.client.warming.contains(&key.name) {
                return Err(format!("{key:?} waits for its endpoints"));
            }
            let wanted = key.kind != Kind::Endpoints || self.client.asked.contains(&key.name);
            let blocked = resource.clusters.iter().any(|cluster| {
                [Kind::Cluster, Kind::Endpoints]
                    .iter()
                    .any(|kind| refused(&Key { kind: *kind, name: cluster.clone() }))
            });
            // Somebody else still has one of its domains, and is looked at here as well.
            let others = self.client.of(Kind::VirtualHost).filter(|host| host.key != *key);
            let blocked = blocked
                || others
                    .flat_map(|host| host.domains.iter())
                    .any(|domain| resource.domains.contains(domain));
            if wanted && !refused(key) && !blocked && has(key).map(|r| r.version) != Some(resource.version) {
                return Err(format!(
                    "{key:?} is at {:?}, not {}",
                    has(key).map(|r| r.version),
                    resource.version
                ));
            }
            if has(key).is_some_and(|resource| is_bad(resource.version)) {
                return Err(format!("{key:?} was refused and is there"));
            }
        }
        let named: BTreeSet<_> = [Kind::Listener, Kind::VirtualHost]
            .into_iter()
            .flat_map(|kind| self.client.of(kind))
            .flat_map(|resource| resource.clusters.iter())
            .collect();
        for resource in self.client.has.values().flat_map(BTreeMap::values) {
            let key = &resource.key;
            let kept = match key.kind {
                Kind::Secret => true,
                // Of a host that was refused, the last good version stays, and so do its clusters; while the version
                // of one is in doubt, they may be any.
                Kind::Cluster | Kind::Endpoints => named.contains(&key.name) || self.doubts(),
                _ => false,
            };
            if !visible.contains_key(key) && !kept {
                return Err(format!("{key:?} is still there"));
            }
        }
        Ok(())
    }

    fn doubts(&self) -> bool {
        [Kind::Listener, Kind::VirtualHost]
            .into_iter()
            .filter_map(|kind| self.session.subscriptions.get(&kind))
            .any(|subscription| !subscription.doubt.is_empty())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_conversation_keeps_traffic_safe_and_comes_to_rest(ops in proptest::collection::vec(op(), 1..120)) {
        let mut conversation = Conversation::new();
        for op in ops.iter().chain([&Op::Settle]) {
            if let Err(broken) = conversation.apply(op) {
                return Err(TestCaseError::fail(format!("{op:?}: {broken}")));
            }
        }
    }
}
