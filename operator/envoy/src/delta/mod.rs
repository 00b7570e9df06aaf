//! Delta xDS with one proxy, as a state machine without IO.
//!
//! A [`Session`] is told what the proxy says ([`Session::receive`]), what is published ([`Session::publish`]) and
//! that time passed ([`Session::wake`]); it answers with what to send. `now` is always the time since one fixed moment,
//! by a clock that never jumps. The rules it keeps:
//!
//! - **Differences only.** A proxy that reconnects names the versions it has and gets what differs.
//! - **Make before break**, per name: see [`gate`], and [`handover`] for the domains of virtual hosts.
//! - **Warming.** Envoy warms a changed cluster until its endpoints come, and does not ask for them: they are sent
//!   again after every cluster, in the same turn.
//! - **Answers.** Endpoints that do not exist are answered with a removal at once (Envoy would wait); a secret that
//!   does not exist is never answered so (Envoy would open the listener without it).
//! - **Rejections.** A rejection names a response. The resources of a rejected batch go again one by one; the
//!   offender is not sent again in that version, and the proxy keeps its last good one.
//! - **Slow proxies.** At most [`WINDOW`] responses of a kind and one version of a name are on their way; what
//!   changes meanwhile is sent once, in its newest version.
//! - **Shares** ([`Kind::Runtime`]) live as long as their TTL: they are kept alive by empty heartbeats, and only
//!   while somebody vouches for them.

mod asking;
mod gate;
mod handover;
mod rejection;
mod response;
mod shares;
mod subscription;
mod turn;

#[cfg(test)]
mod conversations;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod talk;

pub use rejection::{DETAIL_MAX, Quarantine, Rejection, WITNESSES, tidy};
pub use response::Response;
pub use shares::shares_of;

use crate::catalog::{Catalog, Change, Key, Kind, Resource, Scope, Version};
use airlane_core::id::{InstanceId, Namespace};
use envoy_types::pb::{envoy::service::discovery::v3::DeltaDiscoveryRequest, google::rpc::Status};
use gate::{Subscriptions, View};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use subscription::{Due, InFlight};
use turn::Content;

/// Responses of one kind that may wait for the proxy's answer.
pub const WINDOW: usize = 4;

/// The longest name a proxy may subscribe to, in bytes.
pub const NAME_BYTES_MAX: usize = 1024;

/// How many names of one kind a proxy may subscribe to or claim to have, unless it sees more than half as many.
pub const NAMES_MAX: usize = 16_384;

/// A heartbeat is sent after this part of a TTL, the whole resource again after twice this part.
const HEARTBEATS_PER_TTL: u32 = 4;

/// What is published, as far as all proxies share it.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The resources.
    pub catalog: Arc<Catalog>,
    /// What of them is withheld from everybody.
    pub quarantine: Arc<Quarantine>,
    /// Whether somebody who may decide rollouts vouches for the shares now. While nobody does, shares are neither
    /// sent nor kept alive, and expire inside the proxies.
    pub shares_live: bool,
}

/// What a session wants done.
#[derive(Debug, Default)]
pub struct Reaction {
    /// To be sent in this order.
    pub responses: Vec<Arc<Response>>,
    /// What the proxy refused.
    pub rejections: Vec<Rejection>,
    /// Messages or parts of them that meant nothing: an unknown type, a nonce that is not awaited.
    pub ignored: u32,
}

/// Why a conversation ends: the proxy asked for what no Envoy asks for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// A name longer than [`NAME_BYTES_MAX`].
    #[error("a resource name of {bytes} bytes: at most {NAME_BYTES_MAX} are served")]
    NameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// More names than [`NAMES_MAX`].
    #[error("more than {NAMES_MAX} resource names of one type, and more than twice what is published")]
    TooManyNames,
}

/// The shares a proxy acknowledged.
#[derive(Clone, Debug)]
pub struct AckedShares {
    /// The layer; [`shares_of`] reads it.
    pub resource: Arc<Resource>,
    /// Until when (on the clock of `now`) the proxy certainly uses it: later it may have expired there.
    pub certain_until: Duration,
}

/// The conversation on one stream.
#[derive(Debug)]
pub struct Session {
    scopes: [Scope; 3],
    subscriptions: Subscriptions,
    /// Refused by this proxy: the last refused version of each.
    rejected: BTreeMap<Key, Version>,
    /// Virtual hosts among these that may be without fault: another one, of unknown content, may have had their domain.
    excused: BTreeSet<Arc<str>>,
    last_nonce: u64,
    seen_epoch: u64,
    acked_epoch: Option<u64>,
}

impl Session {
    /// A conversation that has not begun, with a proxy whose identity was proven. `epoch` is the one published.
    pub fn new(proxy: &InstanceId, namespace: &Namespace, epoch: u64) -> Session {
        Session {
            scopes: [Scope::Everyone, Scope::Namespace(namespace.clone()), Scope::Proxy(proxy.clone())],
            subscriptions: Subscriptions::new(),
            rejected: BTreeMap::new(),
            excused: BTreeSet::new(),
            last_nonce: 0,
            seen_epoch: epoch,
            acked_epoch: None,
        }
    }

    /// The highest epoch of which the proxy has accepted or refused everything it sees; `None` until it has
    /// answered its first clusters and listeners and everything it asked for with them.
    pub fn acked_epoch(&self) -> Option<u64> {
        self.acked_epoch
    }

    /// The epoch of the last publication this session was told.
    pub fn seen_epoch(&self) -> u64 {
        self.seen_epoch
    }

    /// The shares the proxy acknowledged last, unless they were taken away.
    pub fn acked_shares(&self) -> Option<AckedShares> {
        let shares = self.subscriptions.get(&Kind::Runtime)?;
        let resource = shares.held.iter().next()?;
        let certain_until = *shares.alive_at.get(&resource.key.name)? + resource.ttl?;
        Some(AckedShares { resource: resource.clone(), certain_until })
    }

    /// Since when the proxy owes an answer to what was sent to it; `None` if it owes none.
    pub fn unanswered_since(&self) -> Option<Duration> {
        self.subscriptions.values().flat_map(|kind| &kind.in_flight).map(|flight| flight.sent_at).min()
    }

    /// The proxy said something. `published` is of the epoch that the session was told last.
    ///
    /// # Errors
    /// [`Refused`] if the conversation must end.
    pub fn receive(
        &mut self,
        request: &DeltaDiscoveryRequest,
        published: &Published,
        now: Duration,
    ) -> Result<Reaction, Refused> {
        debug_assert_eq!(published.catalog.epoch, self.seen_epoch, "changes in between would be lost");
        let mut reaction = Reaction::default();
        let Some(kind) = Kind::of(&request.type_url) else {
            reaction.ignored += 1;
            return Ok(reaction);
        };
        if !request.response_nonce.is_empty() {
            self.answered(kind, request, &mut reaction);
        }
        self.subscribe(kind, request, published, &mut reaction)?;
        self.advance(published, now, &mut reaction);
        Ok(reaction)
    }

    /// Something was published: `changes` lead from the epoch that the session was told last to `published`. Without
    /// a change, something is withheld since.
    pub fn publish<'a>(
        &mut self,
        published: &Published,
        changes: impl IntoIterator<Item = &'a Change>,
        now: Duration,
    ) -> Reaction {
        for change in changes {
            for key in self.scopes.iter().filter_map(|scope| change.keys.get(scope)).flatten() {
                if let Some(subscription) = self.subscriptions.get_mut(&key.kind)
                    && subscription.wants(&key.name)
                {
                    subscription.mark(key.name.clone(), Due::since(change.epoch));
                }
            }
        }
        self.seen_epoch = self.seen_epoch.max(published.catalog.epoch);
        let mut reaction = Reaction::default();
        self.advance(published, now, &mut reaction);
        reaction
    }

    /// Publications were missed: everything the proxy sees is compared with what it has.
    pub fn resync(&mut self, published: &Published, now: Duration) -> Reaction {
        let since = self.seen_epoch + 1;
        self.seen_epoch = self.seen_epoch.max(published.catalog.epoch);
        let view = View::new(published, &self.scopes, &self.rejected);
        for (kind, subscription) in &mut self.subscriptions {
            let seen = view.all(*kind).filter(|resource| subscription.wants(&resource.key.name));
            let held = subscription.held.iter();
            let in_flight = subscription.in_flight.iter().flat_map(|flight| &flight.response.resources);
            let known = held.chain(in_flight).chain(seen).map(|resource| resource.key.name.clone());
            for name in known.chain(subscription.doubt.keys().cloned()).collect::<Vec<_>>() {
                subscription.mark(name, Due::since(since));
            }
        }
        let mut reaction = Reaction::default();
        self.advance(published, now, &mut reaction);
        reaction
    }

    /// When [`Session::wake`] must be called if nothing happens before.
    pub fn next_wake(&self) -> Option<Duration> {
        let shares = self.subscriptions.get(&Kind::Runtime)?;
        if !shares.in_flight.is_empty() {
            return None;
        }
        let beat_at = |resource: &Arc<Resource>| {
            Some(*shares.alive_at.get(&resource.key.name)? + resource.ttl? / HEARTBEATS_PER_TTL)
        };
        shares.held.iter().filter_map(beat_at).min()
    }

    /// Time passed, or the shares are vouched for again: keeps the shares alive.
    pub fn wake(&mut self, published: &Published, now: Duration) -> Reaction {
        let mut reaction = Reaction::default();
        if published.shares_live
            && let Some(shares) = self.subscriptions.get_mut(&Kind::Runtime)
            && shares.in_flight.is_empty()
        {
            let view = View::new(published, &self.scopes, &self.rejected);
            let mut beating = Vec::new();
            for resource in shares.held.iter() {
                let name = &resource.key.name;
                let (Some(alive_at), Some(ttl)) = (shares.alive_at.get(name), resource.ttl) else { continue };
                let silent = now.saturating_sub(*alive_at);
                let current = view.get(Kind::Runtime, name).is_some_and(|r| r.version == resource.version);
                if current && silent >= ttl / HEARTBEATS_PER_TTL {
                    // A heartbeat for a layer that has expired is an error to Envoy: well before, all is sent.
                    beating.push((resource.clone(), silent < 2 * ttl / HEARTBEATS_PER_TTL));
                }
            }
            let (beats, resends): (Vec<_>, Vec<_>) = beating.into_iter().partition(|(_, short)| *short);
            for (resource, _) in resends {
                shares.mark(resource.key.name.clone(), Due::again(u64::MAX));
            }
            if !beats.is_empty() {
                let resources = beats.into_iter().map(|(resource, _)| resource).collect();
                self.send(Kind::Runtime, Content::heartbeat(resources), now, &mut reaction);
            }
        }
        self.advance(published, now, &mut reaction);
        reaction
    }

    /// The proxy accepted or refused a response.
    fn answered(&mut self, kind: Kind, request: &DeltaDiscoveryRequest, reaction: &mut Reaction) {
        let nonce = request.response_nonce.parse().ok();
        let subscription = self.subscriptions.get_mut(&kind);
        let Some((subscription, nonce)) = subscription.zip(nonce) else {
            reaction.ignored += 1;
            return;
        };
        let Some(flight) = subscription.take_in_flight(nonce) else {
            reaction.ignored += 1;
            return;
        };
        subscription.heard = true;
        let doubts = subscription.doubt.len();
        self.judged(kind, &flight, request.error_detail.as_ref(), reaction);
        let Some(hosts) = self.subscriptions.get_mut(&kind).filter(|_| kind == Kind::VirtualHost) else {
            return;
        };
        if hosts.doubt.len() < doubts {
            let since = self.acked_epoch.map_or(0, |epoch| epoch + 1);
            for name in std::mem::take(&mut self.excused) {
                self.rejected.remove(&Key { kind, name: name.clone() });
                hosts.mark(name, Due::alone(since));
            }
        }
    }

    /// What the proxy thinks of a response.
    fn judged(&mut self, kind: Kind, flight: &InFlight, error: Option<&Status>, reaction: &mut Reaction) {
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return };
        let Some(error) = error else {
            subscription.accepted(flight);
            return;
        };
        if flight.response.heartbeat {
            // It expired there: the whole layer goes again.
            for resource in &flight.response.resources {
                subscription.held.remove(&resource.key.name);
                subscription.mark(resource.key.name.clone(), Due::again(flight.since));
            }
            return;
        }
        if !flight.response.resources.is_empty() {
            for name in &flight.response.removed {
                subscription.mark(name.clone(), Due::since(flight.since));
            }
        }
        match flight.response.resources.as_slice() {
            // Nothing about a removal can be wrong, and there is nothing better to send: it counts as done.
            [] => {
                subscription.accepted(flight);
                return;
            }
            [offender] => {
                subscription.refused(offender);
                self.rejected.insert(offender.key.clone(), offender.version);
                if handover::excuses(subscription, offender, &self.rejected) {
                    self.excused.insert(offender.key.name.clone());
                } else {
                    reaction.rejections.push(Rejection::of(offender, &error.message));
                }
            }
            _ => subscription.doubted(flight),
        }
        // What was to go with them did not.
        for name in &flight.response.removed {
            subscription.mark(name.clone(), Due::since(flight.since));
        }
    }
}
