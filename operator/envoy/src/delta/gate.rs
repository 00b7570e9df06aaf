//! Make before break: whether something may be sent or removed now.
//!
//! A virtual host or listener waits until the proxy has every cluster it names, endpoints included; a cluster
//! goes only after nothing at the proxy can name it. Each name waits for its own clusters and for nothing else.

use super::{
    Published,
    rejection::Quarantine,
    subscription::{Due, Flying, Subscription},
};
use crate::catalog::{Key, Kind, Resource, Scope, Version};
use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// What one proxy sees of a publication.
pub(super) struct View<'a> {
    layers: [Option<&'a BTreeMap<Key, Arc<Resource>>>; 3],
    quarantine: &'a Quarantine,
    rejected: &'a BTreeMap<Key, Version>,
    shares_live: bool,
}

impl<'a> View<'a> {
    pub(super) fn new(
        published: &'a Published,
        scopes: &[Scope; 3],
        rejected: &'a BTreeMap<Key, Version>,
    ) -> View<'a> {
        View {
            layers: scopes
                .each_ref()
                .map(|scope| published.catalog.resources.get(scope).map(|layer| &**layer)),
            quarantine: &published.quarantine,
            rejected,
            shares_live: published.shares_live,
        }
    }

    pub(super) fn get(&self, kind: Kind, name: &Arc<str>) -> Option<&'a Arc<Resource>> {
        let key = Key { kind, name: name.clone() };
        self.layers.iter().flatten().find_map(|layer| layer.get(&key))
    }

    pub(super) fn all(&self, kind: Kind) -> impl Iterator<Item = &'a Arc<Resource>> + use<'a> {
        let layers = self.layers;
        layers.into_iter().flatten().flat_map(move |layer| {
            layer
                .range(Key { kind, name: Arc::from("") }..)
                .map(|(_, resource)| resource)
                .take_while(move |resource| resource.key.kind == kind)
        })
    }

    /// The virtual hosts that this proxy or enough others refused in some version.
    pub(super) fn refused(&self) -> impl Iterator<Item = &'a Arc<str>> + use<'a> {
        let by_others = self.quarantine.keys();
        let keys = self.rejected.keys().chain(by_others).filter(|key| key.kind == Kind::VirtualHost);
        keys.map(|key| &key.name)
    }

    fn withholds(&self, resource: &Resource) -> bool {
        self.rejected.get(&resource.key) == Some(&resource.version) || self.quarantine.withholds(resource)
    }
}

/// What to do about a name that is due.
#[derive(Debug)]
pub(super) enum Decision {
    /// Nothing: the proxy has it, or will with what is on its way.
    Settled,
    /// Nothing yet: the proxy must answer first.
    Wait,
    /// Nothing until another publication: something refused or not vouched for is in the way.
    Park,
    Send(Arc<Resource>),
    Remove,
    /// Answer that there is none for now, and send it when the shares are vouched for.
    Decline,
}

/// Every kind's state: what the gate looks across.
pub(super) type Subscriptions = BTreeMap<Kind, Subscription>;

/// What the proxy has, against what it should have.
pub(super) struct Gate<'a> {
    subscriptions: &'a Subscriptions,
    view: View<'a>,
    naming: OnceCell<Naming>,
}

impl<'a> Gate<'a> {
    pub(super) fn new(subscriptions: &'a Subscriptions, view: View<'a>) -> Gate<'a> {
        Gate { subscriptions, view, naming: OnceCell::new() }
    }

    pub(super) fn decide(&self, subscription: &Subscription, name: &Arc<str>, due: Due) -> Decision {
        let published =
            if subscription.wants(name) { self.view.get(subscription.kind(), name) } else { None };
        match published {
            Some(resource) => self.decide_present(subscription, resource, due),
            None => self.decide_absent(subscription, name, due),
        }
    }

    fn decide_present(&self, subscription: &Subscription, published: &Arc<Resource>, due: Due) -> Decision {
        let name = &published.key.name;
        let resource = if self.view.withholds(published) {
            match (due.again, subscription.held.get(name)) {
                (true, Some(last_good)) => last_good,
                // Envoy waits for the endpoints of a cluster that is new to it: none is an answer as well.
                (true, None) if subscription.kind() == Kind::Endpoints => return Decision::Remove,
                _ => return Decision::Settled,
            }
        } else {
            published
        };
        if resource.ttl.is_some() && !self.view.shares_live {
            let unknown = due.again && !subscription.may_have(name);
            return if unknown { Decision::Decline } else { Decision::Park };
        }
        if !due.again {
            let held = subscription.held.get(name).map(|held| held.version);
            let in_doubt = subscription.doubt.contains_key(name);
            match subscription.flying(name) {
                Some(Flying::Version(version)) if version == resource.version => return Decision::Settled,
                // An endpoint that leaves must not wait for an answer.
                Some(Flying::Version(_)) if subscription.kind() == Kind::Endpoints => {}
                Some(_) => return Decision::Wait,
                None if held == Some(resource.version) && !in_doubt => return Decision::Settled,
                None => {}
            }
        }
        self.missing_cluster(resource).unwrap_or_else(|| Decision::Send(resource.clone()))
    }

    /// [`Decision::Wait`] or [`Decision::Park`] while the proxy lacks a cluster that the resource names. A name
    /// that is neither published nor at the proxy is one of its bootstrap's clusters.
    fn missing_cluster(&self, resource: &Resource) -> Option<Decision> {
        let at_proxy = |kind| self.subscriptions.get(&kind);
        let mut decision = None;
        for cluster in resource.clusters.iter() {
            for kind in [Kind::Cluster, Kind::Endpoints] {
                let published = self.view.get(kind, cluster);
                let leaving = kind == Kind::Cluster
                    && at_proxy(kind).is_some_and(|clusters| clusters.may_have(cluster));
                let present = at_proxy(kind).is_some_and(|subscription| subscription.has(cluster));
                if present || (published.is_none() && !leaving) {
                    continue;
                }
                if published.is_some_and(|published| self.view.withholds(published)) {
                    return Some(Decision::Park);
                }
                decision = Some(Decision::Wait);
            }
        }
        decision
    }

    fn decide_absent(&self, subscription: &Subscription, name: &Arc<str>, due: Due) -> Decision {
        match (subscription.kind(), subscription.flying(name)) {
            // An answer "removed" would let a listener open without its certificate; silence makes it wait.
            (Kind::Secret, _) => Decision::Settled,
            (_, Some(Flying::Removal)) if !due.again => Decision::Settled,
            (_, Some(Flying::Version(_))) => Decision::Wait,
            _ if !subscription.may_have(name) => {
                if due.again {
                    Decision::Remove
                } else {
                    Decision::Settled
                }
            }
            (Kind::Cluster, _) => match self.naming().of(name) {
                None => Decision::Remove,
                Some(Lasting(false)) => Decision::Wait,
                Some(Lasting(true)) => Decision::Park,
            },
            (Kind::Endpoints, _) => self.after_its_cluster(name),
            _ => Decision::Remove,
        }
    }

    fn after_its_cluster(&self, name: &Arc<str>) -> Decision {
        let Some(clusters) = self.subscriptions.get(&Kind::Cluster) else { return Decision::Remove };
        let stays = self.view.get(Kind::Cluster, name).is_some();
        match clusters.due.get(name) {
            _ if stays || !clusters.may_have(name) => Decision::Remove,
            Some(due) if due.parked => Decision::Park,
            _ => Decision::Wait,
        }
    }

    fn naming(&self) -> &Naming {
        self.naming.get_or_init(|| Naming::at(self.subscriptions))
    }
}

/// Whether nothing is on its way that would end it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Lasting(bool);

/// The clusters that something at the proxy may name.
struct Naming {
    /// Something of unknown content may name any cluster.
    any: Option<Lasting>,
    clusters: HashMap<Arc<str>, Lasting>,
}

impl Naming {
    fn at(subscriptions: &Subscriptions) -> Naming {
        // A proxy that reconnects names all its subscriptions before it answers anything: until it has answered
        // its listeners, it may have virtual hosts that it has not told us of.
        let told = subscriptions.get(&Kind::Listener).is_some_and(|listeners| listeners.heard);
        let mut naming = Naming { any: (!told).then_some(Lasting(false)), clusters: HashMap::new() };
        for kind in [Kind::Listener, Kind::VirtualHost] {
            let Some(subscription) = subscriptions.get(&kind) else { continue };
            let lasting = |name: &str| {
                let moving = subscription.due.get(name).is_some_and(|due| !due.parked);
                Lasting(!moving && subscription.flying(name).is_none())
            };
            for (name, doubt) in &subscription.doubt {
                match doubt {
                    Some(resource) => naming.add(resource, lasting(name)),
                    None => naming.any = Some(Naming::shorter(naming.any, lasting(name))),
                }
            }
            for resource in subscription.held.iter() {
                naming.add(resource, lasting(&resource.key.name));
            }
            for resource in subscription.in_flight.iter().flat_map(|flight| &flight.response.resources) {
                naming.add(resource, Lasting(false));
            }
        }
        naming
    }

    fn add(&mut self, resource: &Resource, lasting: Lasting) {
        for cluster in resource.clusters.iter() {
            let shorter = Naming::shorter(self.clusters.get(cluster).copied(), lasting);
            self.clusters.insert(cluster.clone(), shorter);
        }
    }

    fn shorter(old: Option<Lasting>, new: Lasting) -> Lasting {
        Lasting(new.0 && old.is_none_or(|old| old.0))
    }

    fn of(&self, cluster: &str) -> Option<Lasting> {
        match (self.any, self.clusters.get(cluster).copied()) {
            (Some(any), named) => Some(Naming::shorter(named, any)),
            (None, named) => named,
        }
    }
}
