//! What one proxy asked for of one kind, what it has, and what is on its way.

use super::response::Response;
use crate::catalog::{Kind, Resource, Version};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

/// Resources by name. A sorted vector of pointers, because a thousand proxies each remember thousands of them:
/// eight bytes for each against several dozen in a map.
#[derive(Debug, Default)]
pub(super) struct Held(Vec<Arc<Resource>>);

impl Held {
    fn position(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|resource| (*resource.key.name).cmp(name))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.0.get(self.position(name).ok()?)
    }

    pub(super) fn insert(&mut self, resource: Arc<Resource>) {
        match self.position(&resource.key.name) {
            Ok(at) => {
                if let Some(old) = self.0.get_mut(at) {
                    *old = resource;
                }
            }
            Err(at) => self.0.insert(at, resource),
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Ok(at) = self.position(name) {
            self.0.remove(at);
        }
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Arc<Resource>) -> bool) {
        self.0.retain(keep);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.0.iter()
    }
}

/// Why a name must be looked at again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Due {
    /// The first epoch that cannot count as acknowledged before this is done; 0: none can.
    pub(super) since: u64,
    /// Sent even if the proxy has this version.
    pub(super) again: bool,
    /// Sent in a response of its own, so that a rejection names it.
    pub(super) alone: bool,
    /// Waiting for something that only another publication can bring: no epoch waits for it.
    pub(super) parked: bool,
}

impl Due {
    pub(super) fn since(epoch: u64) -> Due {
        Due { since: epoch, again: false, alone: false, parked: false }
    }

    pub(super) fn again(epoch: u64) -> Due {
        Due { again: true, ..Due::since(epoch) }
    }

    pub(super) fn alone(epoch: u64) -> Due {
        Due { alone: true, ..Due::again(epoch) }
    }
}

/// A response that the proxy has neither accepted nor rejected.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) response: Arc<Response>,
    pub(super) since: u64,
    pub(super) sent_at: Duration,
}

/// The last thing on its way about a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flying {
    Version(Version),
    Removal,
}

#[derive(Debug)]
pub(super) struct Subscription {
    kind: Kind,
    pub(super) wildcard: bool,
    pub(super) names: BTreeSet<Arc<str>>,
    /// What the proxy is known to use.
    pub(super) held: Held,
    /// Names whose version at the proxy is in doubt: what is held or the resource here (it was in a rejected
    /// batch), or, with `None`, anything (it is from before this stream).
    pub(super) doubt: BTreeMap<Arc<str>, Option<Arc<Resource>>>,
    pub(super) due: BTreeMap<Arc<str>, Due>,
    pub(super) in_flight: VecDeque<InFlight>,
    /// Whether anything was sent: a wildcard's first response is sent even if empty.
    pub(super) answered: bool,
    /// Whether the proxy has said anything to a response.
    pub(super) heard: bool,
    /// When the last acknowledged sign of life of a resource with a TTL was sent.
    pub(super) alive_at: BTreeMap<Arc<str>, Duration>,
}

impl Subscription {
    pub(super) fn new(kind: Kind, wildcard: bool) -> Subscription {
        Subscription {
            kind,
            wildcard,
            names: BTreeSet::new(),
            held: Held::default(),
            doubt: BTreeMap::new(),
            due: BTreeMap::new(),
            in_flight: VecDeque::new(),
            answered: false,
            heard: false,
            alive_at: BTreeMap::new(),
        }
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Whether the proxy may have the resource in some version.
    pub(super) fn may_have(&self, name: &str) -> bool {
        self.held.get(name).is_some() || self.doubt.contains_key(name)
    }

    /// Whether the proxy certainly has the resource, in whatever version, and nothing on its way takes it away.
    pub(super) fn has(&self, name: &str) -> bool {
        let known = self.held.get(name).is_some() || matches!(self.doubt.get(name), Some(None));
        known && !self.in_flight.iter().any(|flight| flight.response.removes(name))
    }

    pub(super) fn flying(&self, name: &str) -> Option<Flying> {
        self.in_flight.iter().rev().find_map(|flight| {
            let version = flight.response.resource(name).map(|resource| Flying::Version(resource.version));
            version.or_else(|| flight.response.removes(name).then_some(Flying::Removal))
        })
    }

    /// Notes that a name must be looked at; what was already due about it stays due.
    pub(super) fn mark(&mut self, name: Arc<str>, due: Due) {
        self.due
            .entry(name)
            .and_modify(|old| {
                old.since = old.since.min(due.since);
                old.again |= due.again;
                old.alone |= due.alone;
                old.parked = false;
            })
            .or_insert(due);
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.held.remove(name);
        self.doubt.remove(name);
        self.due.remove(name);
        self.alive_at.remove(name);
    }

    /// The earliest epoch that still waits for this proxy.
    pub(super) fn waiting_since(&self) -> Option<u64> {
        let due = self.due.values().filter(|due| !due.parked).map(|due| due.since);
        let in_flight = self.in_flight.iter().map(|flight| flight.since);
        due.chain(in_flight).min()
    }

    pub(super) fn take_in_flight(&mut self, nonce: u64) -> Option<InFlight> {
        let at = self.in_flight.iter().position(|flight| flight.response.nonce == nonce)?;
        self.in_flight.remove(at)
    }

    pub(super) fn accepted(&mut self, flight: &InFlight) {
        for resource in &flight.response.resources {
            let name = &resource.key.name;
            if !self.wants(name) {
                continue;
            }
            if resource.ttl.is_some() {
                self.alive_at.insert(name.clone(), flight.sent_at);
            }
            self.held.insert(resource.clone());
            self.doubt.remove(name);
        }
        for name in &flight.response.removed {
            self.held.remove(name);
            self.doubt.remove(name);
            self.alive_at.remove(name);
        }
    }

    /// A batch was rejected: any of it may have been applied, so each goes again in a response of its own.
    pub(super) fn doubted(&mut self, flight: &InFlight) {
        for resource in &flight.response.resources {
            let name = &resource.key.name;
            if !self.wants(name) {
                continue;
            }
            self.doubt
                .entry(name.clone())
                .and_modify(|doubt| {
                    if doubt.as_ref().is_some_and(|other| other.version != resource.version) {
                        *doubt = None;
                    }
                })
                .or_insert_with(|| Some(resource.clone()));
            self.mark(name.clone(), Due::alone(flight.since));
        }
    }

    /// A single resource was rejected: the proxy keeps what it had.
    pub(super) fn refused(&mut self, resource: &Resource) {
        let name = &resource.key.name;
        if matches!(self.doubt.get(name), Some(Some(doubt)) if doubt.version == resource.version) {
            self.doubt.remove(name);
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }
}
