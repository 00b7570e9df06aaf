//! What is published, who is connected, and how far each has come.

use crate::{clock::Clock, tls::Peer};
use airlane_core::id::InstanceId;
use airlane_envoy::{
    catalog::{Catalog, Change, Key, Scope, Version},
    delta::{AckedShares, Published, Quarantine, Rejection, Session, shares_of},
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Changes that are remembered for streams that lag; one that lags further compares everything it has.
const CHANGES_KEPT: usize = 64;

/// Versions of the shares that are remembered decoded: two during a change, more while proxies lag.
const SHARES_KEPT: usize = 8;

/// Runtime key → parts of [`airlane_core::mesh::FULL_SHARE`].
pub(crate) type Shares = BTreeMap<String, u32>;

/// What proxies refused in the version that is published.
pub(crate) type Refusals = BTreeMap<(Scope, Key), Refusal>;

/// A resource that proxies refused.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// What the first of them said.
    pub(crate) rejection: Rejection,
    /// Which proxies refused it.
    pub(crate) proxies: BTreeSet<InstanceId>,
}

/// A connected proxy.
#[derive(Clone, Debug)]
pub(crate) struct ProxyState {
    /// Which copy it is.
    pub(crate) instance: InstanceId,
    /// When its stream began.
    pub(crate) connected_at: Timestamp,
    /// Everything it sees of the publications up to this one is accepted (or refused); `None` until it has answered
    /// its first clusters and listeners.
    pub(crate) acked_epoch: Option<u64>,
    /// How many responses it refused on this stream.
    pub(crate) rejections: u64,
    /// The shares it uses, if it acknowledged any.
    pub(crate) shares: Option<ProxyShares>,
}

/// The shares that a proxy acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct ProxyShares {
    /// Their version, the same at every replica.
    pub(crate) version: Version,
    /// What they are.
    pub(crate) shares: Arc<Shares>,
    /// When it acknowledged them.
    pub(crate) acked_at: Timestamp,
    /// The uptime until which it certainly uses them.
    pub(crate) certain_until: Duration,
}

/// One moment of what is published.
#[derive(Clone, Debug)]
pub(super) struct Publication {
    pub(super) catalog: Arc<Catalog>,
    pub(super) quarantine: Arc<Quarantine>,
    /// The latest changes, oldest first.
    changes: VecDeque<Arc<Change>>,
    /// The epoch that the oldest of them started from.
    changes_from: u64,
}

impl Publication {
    /// What changed since an epoch, or `None` if that is forgotten.
    pub(super) fn since(&self, epoch: u64) -> Option<impl Iterator<Item = &Change>> {
        let remembered = epoch >= self.changes_from;
        remembered.then(|| self.changes.iter().map(|change| &**change).filter(move |c| c.epoch > epoch))
    }
}

/// A stream's entry in the register of the connected.
#[derive(Debug)]
pub(super) struct Connection {
    peer: Peer,
    connected_at: Timestamp,
    /// Cancelled when the same instance opens another stream.
    pub(super) replaced: CancellationToken,
    reached: Mutex<Reached>,
}

#[derive(Debug, Default)]
struct Reached {
    acked_epoch: Option<u64>,
    rejections: u64,
    shares: Option<ProxyShares>,
}

/// Publishes to every connected proxy. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Publisher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Arc<dyn Clock>,
    publications: watch::Sender<Option<Arc<Publication>>>,
    /// Until which uptime the shares are vouched for.
    vouched_until: watch::Sender<Duration>,
    connections: Mutex<BTreeMap<InstanceId, Arc<Connection>>>,
    /// Changes whenever a proxy connects, leaves or reaches an epoch.
    progress: watch::Sender<()>,
    refusals: watch::Sender<Arc<Refusals>>,
    decoded: Mutex<VecDeque<(Version, Arc<Shares>)>>,
}

impl Publisher {
    /// A publisher that has not published yet: streams wait.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Publisher {
        Publisher(Arc::new(Inner {
            clock,
            publications: watch::Sender::new(None),
            vouched_until: watch::Sender::new(Duration::ZERO),
            connections: Mutex::default(),
            progress: watch::Sender::new(()),
            refusals: watch::Sender::default(),
            decoded: Mutex::default(),
        }))
    }

    /// Makes `catalog` the truth for every proxy. `change` leads to it from the catalog published before, and has
    /// its epoch; of the first publication it is not read.
    pub(crate) fn publish(&self, catalog: Arc<Catalog>, change: Change) {
        debug_assert_eq!(catalog.epoch, change.epoch, "a change leads to its catalog");
        self.0.refusals.send_if_modified(|refusals| {
            let stale = |((scope, key), refusal): (&(Scope, Key), &Refusal)| {
                let published = catalog.resources.get(scope).and_then(|resources| resources.get(key));
                published.is_none_or(|resource| resource.version != refusal.rejection.version)
            };
            let any = refusals.iter().any(stale);
            if any {
                Arc::make_mut(refusals).retain(|place, refusal| !stale((place, refusal)));
            }
            any
        });
        self.0.publications.send_modify(|publication| {
            let next = match publication.as_deref() {
                None => Publication {
                    changes_from: catalog.epoch,
                    catalog,
                    quarantine: Arc::default(),
                    changes: VecDeque::new(),
                },
                Some(last) => last.followed_by(catalog, change),
            };
            *publication = Some(Arc::new(next));
        });
    }

    /// Vouches for the published shares: for `lasting` from now they are sent and kept alive in the proxies. To be
    /// called again and again by whoever decides rollouts, and by nobody else: when the calls stop, the proxies
    /// fall back to the shares in their routes within the layer's TTL.
    pub(crate) fn beat(&self, lasting: Duration) {
        let now = self.0.clock.uptime();
        self.0.vouched_until.send_if_modified(|until| {
            let lapsed = *until <= now;
            *until = now + lasting;
            // Streams have timers of their own: they are woken only if those may have found nobody vouching.
            lapsed
        });
    }

    /// The connected proxies, by instance.
    pub(crate) fn connected(&self) -> Vec<ProxyState> {
        let connections: Vec<_> = locked(&self.0.connections).values().cloned().collect();
        connections.iter().map(|connection| connection.state()).collect()
    }

    /// How far one proxy has come: [`ProxyState::acked_epoch`]; `None` as well if it is not connected.
    pub(crate) fn acked_epoch(&self, instance: &InstanceId) -> Option<u64> {
        let connection = locked(&self.0.connections).get(instance).cloned()?;
        locked(&connection.reached).acked_epoch
    }

    /// Changes whenever a proxy connects, leaves or reaches an epoch.
    pub(crate) fn progress(&self) -> watch::Receiver<()> {
        self.0.progress.subscribe()
    }

    /// What proxies refuse of what is published; it empties as mended versions are published.
    pub(crate) fn refusals(&self) -> watch::Receiver<Arc<Refusals>> {
        self.0.refusals.subscribe()
    }

    /// Whether every connected proxy has acknowledged an epoch. It stops at the first that has not.
    pub(crate) fn all_reached(&self, epoch: u64) -> bool {
        let reached = |connection: &Arc<Connection>| locked(&connection.reached).acked_epoch >= Some(epoch);
        locked(&self.0.connections).values().all(reached)
    }

    /// Whether a proxy is connected.
    pub(crate) fn is_connected(&self, instance: &InstanceId) -> bool {
        locked(&self.0.connections).contains_key(instance)
    }

    /// The shares that a connected proxy uses and since when it does, as far as that is certain: `None` if it has
    /// acknowledged none, or may have let them expire.
    pub(crate) fn acked_shares(&self, instance: &InstanceId) -> Option<(Arc<Shares>, Timestamp)> {
        let connection = locked(&self.0.connections).get(instance).cloned()?;
        let reached = locked(&connection.reached);
        let shares = reached.shares.as_ref()?;
        (shares.certain_until > self.0.clock.uptime()).then(|| (shares.shares.clone(), shares.acked_at))
    }

    pub(super) fn publications(&self) -> watch::Receiver<Option<Arc<Publication>>> {
        self.0.publications.subscribe()
    }

    pub(super) fn vouched_until(&self) -> watch::Receiver<Duration> {
        self.0.vouched_until.subscribe()
    }

    pub(super) fn uptime(&self) -> Duration {
        self.0.clock.uptime()
    }

    /// What a session may send now.
    pub(super) fn published(&self, publication: &Publication) -> Published {
        Published {
            catalog: publication.catalog.clone(),
            quarantine: publication.quarantine.clone(),
            shares_live: *self.0.vouched_until.borrow() > self.0.clock.uptime(),
        }
    }

    /// Registers a stream; the instance's stream before it ends.
    pub(super) fn connect(&self, peer: Peer) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            connected_at: self.0.clock.now(),
            replaced: CancellationToken::new(),
            reached: Mutex::default(),
            peer,
        });
        let instance = connection.peer.instance.clone();
        let before = locked(&self.0.connections).insert(instance, connection.clone());
        if let Some(before) = before {
            before.replaced.cancel();
        }
        self.0.progress.send_replace(());
        connection
    }

    /// Forgets a stream that ended, unless another took its place.
    pub(super) fn disconnect(&self, connection: &Arc<Connection>) {
        let mut connections = locked(&self.0.connections);
        let instance = &connection.peer.instance;
        if connections.get(instance).is_some_and(|current| Arc::ptr_eq(current, connection)) {
            connections.remove(instance);
        }
        drop(connections);
        self.0.progress.send_replace(());
    }

    /// Notes how far a session has come.
    pub(super) fn note(&self, connection: &Connection, session: &Session, rejections: Vec<Rejection>) {
        let shares = session.acked_shares();
        let mut reached = locked(&connection.reached);
        reached.rejections += rejections.len() as u64;
        reached.note_shares(shares, |shares| self.decode(shares), || self.0.clock.now());
        let moved = reached.acked_epoch != session.acked_epoch();
        reached.acked_epoch = session.acked_epoch();
        drop(reached);
        if moved {
            if let Some(epoch) = session.acked_epoch() {
                tracing::debug!(proxy = %connection.peer.instance, epoch, "a proxy acknowledged");
            }
            self.0.progress.send_replace(());
        }
        for rejection in rejections {
            self.note_rejection(&rejection, &connection.peer);
        }
    }

    fn note_rejection(&self, rejection: &Rejection, peer: &Peer) {
        tracing::warn!(
            resource = %rejection.key.name, kind = ?rejection.key.kind, version = %rejection.version,
            proxy = %peer.instance, detail = rejection.detail, "a proxy refused a resource"
        );
        self.0.publications.send_if_modified(|publication| {
            let Some(publication) = publication else { return false };
            let mut next = (**publication).clone();
            let withheld = Arc::make_mut(&mut next.quarantine).note(rejection, &peer.identity);
            *publication = Arc::new(next);
            withheld
        });
        self.0.refusals.send_modify(|refusals| {
            let place = (rejection.scope.clone(), rejection.key.clone());
            let refusal = Arc::make_mut(refusals)
                .entry(place)
                .and_modify(|refusal| {
                    if refusal.rejection.version != rejection.version {
                        *refusal = Refusal { rejection: rejection.clone(), proxies: BTreeSet::new() };
                    }
                })
                .or_insert_with(|| Refusal { rejection: rejection.clone(), proxies: BTreeSet::new() });
            refusal.proxies.insert(peer.instance.clone());
        });
    }

    /// The shares of a layer, decoded once for all proxies.
    fn decode(&self, acked: &AckedShares) -> Option<Arc<Shares>> {
        let version = acked.resource.version;
        let mut decoded = locked(&self.0.decoded);
        if let Some((_, shares)) = decoded.iter().find(|(known, _)| *known == version) {
            return Some(shares.clone());
        }
        let shares = shares_of(&acked.resource)
            .inspect_err(
                |error| tracing::error!(%error, "the shares that were published cannot be read back"),
            )
            .ok()?;
        let shares = Arc::new(shares);
        decoded.push_back((version, shares.clone()));
        if decoded.len() > SHARES_KEPT {
            decoded.pop_front();
        }
        Some(shares)
    }
}

impl Publication {
    fn followed_by(&self, catalog: Arc<Catalog>, change: Change) -> Publication {
        let mut quarantine = self.quarantine.clone();
        Arc::make_mut(&mut quarantine).forget_changed(&catalog, &change);
        let mut changes = self.changes.clone();
        let mut changes_from = self.changes_from;
        changes.push_back(Arc::new(change));
        while changes.len() > CHANGES_KEPT {
            if let Some(forgotten) = changes.pop_front() {
                changes_from = forgotten.epoch;
            }
        }
        Publication { catalog, quarantine, changes, changes_from }
    }
}

impl Connection {
    fn state(&self) -> ProxyState {
        let reached = locked(&self.reached);
        ProxyState {
            instance: self.peer.instance.clone(),
            connected_at: self.connected_at,
            acked_epoch: reached.acked_epoch,
            rejections: reached.rejections,
            shares: reached.shares.clone(),
        }
    }
}

impl Reached {
    fn note_shares(
        &mut self,
        acked: Option<AckedShares>,
        decode: impl FnOnce(&AckedShares) -> Option<Arc<Shares>>,
        now: impl FnOnce() -> Timestamp,
    ) {
        match (acked, &mut self.shares) {
            (Some(acked), Some(shares)) if acked.resource.version == shares.version => {
                shares.certain_until = acked.certain_until;
            }
            (Some(acked), place) => {
                *place = decode(&acked).map(|shares| ProxyShares {
                    version: acked.resource.version,
                    shares,
                    acked_at: now(),
                    certain_until: acked.certain_until,
                });
            }
            (None, place) => *place = None,
        }
    }
}

/// The lock's content. Nothing panics while it holds one of these locks; if it did, what it left is still the best
/// there is.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
