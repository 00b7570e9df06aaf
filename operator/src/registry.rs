//! Registered instances: who is here, published to whoever watches and remembered across restarts.

mod roster;

use crate::{
    clock::Clock,
    members::{Beat, Instances, Member, Members},
    store::{Store, StoreError},
    tls::Peer,
};
use airlane_core::{id::InstanceId, world::Instance};
use ring::rand::{SecureRandom as _, SystemRandom};
use roster::{Changes, Roster};
pub(crate) use roster::{Heartbeats, Newcomer, Turned};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(500);
/// From a failed write to the next try.
const RETRY: Duration = Duration::from_secs(1);
/// The longest that a join waits to be remembered: a sick disk must not keep workloads out.
const REMEMBER: Duration = Duration::from_secs(1);
/// Who is registered. Shared by the wire server, which feeds it, and the control loop, which watches it.
#[derive(Debug)]
pub(crate) struct Registry {
    clock: Arc<dyn Clock>,
    store: Store,
    roster: Mutex<Roster>,
    instances: watch::Sender<Instances>,
    /// There is something to write.
    dirty: Notify,
    /// [`Roster::edits`] at the last finished write.
    written: watch::Sender<u64>,
}

impl Registry {
    /// The registry as it was when the operator stopped. Its instances are published at once; those that are gone
    /// stay for the time that silence is forgiven.
    ///
    /// # Errors
    /// If the registrations cannot be read.
    pub(crate) async fn restore(
        store: Store,
        heartbeats: Heartbeats,
        clock: Arc<dyn Clock>,
    ) -> Result<Registry, StoreError> {
        let roster = Roster::restore(heartbeats, store.registrations().await?, clock.uptime());
        Ok(Registry {
            instances: watch::Sender::new(Arc::clone(roster.instances())),
            roster: Mutex::new(roster),
            clock,
            store,
            dirty: Notify::new(),
            written: watch::Sender::new(0),
        })
    }

    /// The instances, now and whenever one of them changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Instances> {
        self.instances.subscribe()
    }

    /// Lets a workload in, under the name it had before or a new one, and waits until a restart would know it or the
    /// disk has had its chance.
    ///
    /// # Errors
    /// If the name it had belongs to somebody else.
    pub(crate) async fn join(
        &self,
        newcomer: Newcomer,
        had: Option<InstanceId>,
    ) -> Result<Arc<Instance>, Turned> {
        let mut written = self.written.subscribe();
        let joined_at = self.clock.now();
        let (joined, edits) = self.change(|roster, now| {
            let joined = roster.join(newcomer, had, joined_at, now, self.seed());
            (joined, roster.edits())
        });
        let joined = joined?;
        let remembered = written.wait_for(|written| *written >= edits);
        if timeout(REMEMBER, remembered).await.is_err() {
            tracing::warn!(instance = %joined.id, "let in, but not remembered yet");
        }
        Ok(joined)
    }

    /// Notes whose proxies hold a stream to us.
    pub(crate) fn connected(&self, proxies: &BTreeSet<InstanceId>) {
        self.change(|roster, _| roster.connected(proxies));
    }

    /// Looks for silence and writes changes until told to stop, and then what is left to write.
    pub(crate) async fn run(&self, shutdown: CancellationToken) {
        tokio::join!(self.look_for_silence(&shutdown), self.write_changes(&shutdown));
    }

    async fn look_for_silence(&self, shutdown: &CancellationToken) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            for instance in self.change(Roster::tick) {
                tracing::info!(%instance, "forgotten: no sign of life");
            }
        }
    }

    async fn write_changes(&self, shutdown: &CancellationToken) {
        loop {
            let stopping = tokio::select! {
                () = shutdown.cancelled() => true,
                () = self.dirty.notified() => false,
            };
            if let Err(error) = self.write().await {
                tracing::error!(error = &error as &dyn std::error::Error, "registrations were not written");
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = sleep(RETRY) => self.dirty.notify_one(),
                }
            }
            if stopping {
                return;
            }
        }
    }

    async fn write(&self) -> Result<(), StoreError> {
        // One at a time, so that the last change of an instance is written last.
        let changes = self.locked(Roster::take_changes);
        let Changes { saved, forgotten, edits } = &changes;
        let written = self.store.write_registrations(saved, forgotten).await;
        match written {
            Ok(()) => self.written.send_modify(|written| *written = *edits),
            Err(_) => self.locked(|roster| roster.retry(changes)),
        }
        written
    }

    /// Where to begin to look for a free name: it need not be a secret, only not be used again soon.
    fn seed(&self) -> u32 {
        let mut bytes = [0; 4];
        match SystemRandom::new().fill(&mut bytes) {
            Ok(()) => u32::from_ne_bytes(bytes),
            Err(_) => self.clock.now().subsec_nanosecond().unsigned_abs(),
        }
    }

    fn locked<T>(&self, f: impl FnOnce(&mut Roster) -> T) -> T {
        f(&mut self.roster.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn look<T>(&self, f: impl FnOnce(&Roster) -> T) -> T {
        self.locked(|roster| f(roster))
    }

    fn change<T>(&self, f: impl FnOnce(&mut Roster, Duration) -> T) -> T {
        let now = self.clock.uptime();
        self.locked(|roster| {
            let result = f(roster, now);
            // Inside the lock: watchers see changes in their order.
            self.instances.send_if_modified(|published| {
                let changed = !Arc::ptr_eq(published, roster.instances());
                if changed {
                    *published = Arc::clone(roster.instances());
                }
                changed
            });
            if roster.is_dirty() {
                self.dirty.notify_one();
            }
            result
        })
    }
}

#[tonic::async_trait]
impl Members for Registry {
    fn instance_of(&self, peer: &Peer) -> Option<Arc<Instance>> {
        self.look(|roster| {
            let registered = roster.member(&peer.instance, &peer.identity)?;
            Some(Arc::clone(&registered.registration.instance))
        })
    }

    fn heartbeat(&self, peer: &Peer, beat: Beat) -> Option<bool> {
        let beat = Beat { leaf_not_after: Some(peer.not_after), ..beat };
        self.change(|roster, now| roster.heartbeat(&peer.instance, &peer.identity, beat, now))
    }

    fn renewed(&self, instance: &InstanceId) {
        self.change(|roster, _| roster.renewed(instance));
    }

    fn drain(&self, peer: &Peer) {
        if self.instance_of(peer).is_some() {
            self.change(|roster, _| roster.drain(&peer.instance));
        }
    }

    fn leave(&self, peer: &Peer) {
        if self.instance_of(peer).is_some() {
            self.change(|roster, _| roster.leave(&peer.instance));
        }
    }

    async fn stays(&self, _: &Peer, _: Duration) -> bool {
        // Sidecar and application stop together.
        false
    }

    fn without_proxy(&self) -> Vec<InstanceId> {
        self.look(|roster| {
            let without = roster.members().filter(|member| !member.registration.proxy_ready);
            without.map(|member| member.registration.instance.id.clone()).collect()
        })
    }

    fn mark_proxy_ready(&self, instance: &InstanceId) {
        self.change(|roster, _| roster.mark_proxy_ready(instance));
    }

    fn ask_renewal(&self, of: Option<&InstanceId>) {
        self.change(|roster, _| roster.ask_renewal(of));
    }

    fn everybody(&self) -> Vec<Member> {
        self.look(|roster| {
            let member = |registered: &roster::Registered| Member {
                instance: Arc::clone(&registered.registration.instance),
                said: registered.said.clone(),
            };
            roster.members().map(member).collect()
        })
    }
}

#[cfg(test)]
mod tests;
