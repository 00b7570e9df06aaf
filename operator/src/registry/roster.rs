//! Who is registered, decided without IO: time comes in as uptime, what to publish and to remember goes out.

use crate::{
    members::{App, Beat, Instances, Said},
    registration::Registration,
};
use airlane_core::{
    id::{Identity, InstanceId, ServiceAccount, ServiceId, WorkloadRevision},
    world::{Health, Instance, InstancePort, Interception},
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

/// How many times longer a sidecar may be silent while its proxy is connected: on a starved host words come late,
/// and taking out who still serves would fail requests. Beyond it the sidecar hangs, and its certificate runs out.
const CONNECTED_PATIENCE: u32 = 12;

/// How often sidecars give a sign of life, and how long they may be silent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Heartbeats {
    /// From one to the next.
    pub every: Duration,
    /// Silence after which an instance is forgotten.
    pub expire_after: Duration,
}

impl Default for Heartbeats {
    fn default() -> Self {
        Heartbeats { every: Duration::from_secs(1), expire_after: Duration::from_secs(5) }
    }
}

/// A workload that wants in; it has no name yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Newcomer {
    /// What it is a copy of.
    pub workload: WorkloadRevision,
    /// Who it is on the wire.
    pub service_account: ServiceAccount,
    /// Whose endpoint it is.
    pub services: BTreeSet<ServiceId>,
    /// Where its proxy is reached.
    pub address: IpAddr,
    /// The application's ports and the proxy's before them.
    pub ports: Vec<InstancePort>,
    /// The proxy's port for outbound calls; 0: none.
    pub outbound_port: u16,
}

impl Newcomer {
    fn named(self, id: InstanceId) -> Instance {
        let Newcomer { workload, service_account, services, address, ports, outbound_port } = self;
        Instance {
            id,
            workload,
            service_account,
            services,
            address,
            ipv6: address.is_ipv6(),
            ports,
            outbound_port,
            interception: Interception::Environment,
            stops_within: std::time::Duration::ZERO,
            health: Health::Starting,
        }
    }

    /// Whether it has the identity of the member.
    fn is_like(&self, member: &Instance) -> bool {
        member.workload.namespace == self.workload.namespace && member.service_account == self.service_account
    }

    /// Whether it has the identity of the member, in the same place: a member that it describes is gone, or is itself.
    fn replaces(&self, member: &Instance) -> bool {
        self.is_like(member)
            && member.address == self.address
            && member.ports.iter().any(|p| self.ports.iter().any(|q| q.mesh == p.mesh))
    }

    /// The part of its name that says what it is a copy of; short enough for a suffix after it.
    fn stem(&self) -> String {
        let mut stem = format!("{}-{}", self.workload.workload, self.workload.revision);
        stem.truncate(56);
        stem
    }
}

/// A registered instance with what its sidecar last said.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    /// What is remembered of it.
    pub registration: Registration,
    /// What its sidecar said.
    pub said: Said,
    /// The uptime at its last sign of life.
    pub seen_at: Duration,
    /// Whether its proxy holds a stream to us.
    connected: bool,
    renew_asked: bool,
}

impl Registered {
    fn new(registration: Registration, seen_at: Duration) -> Registered {
        Registered { registration, said: Said::default(), seen_at, connected: false, renew_asked: false }
    }
}

/// Why a workload was not let in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Turned {
    /// The name it had before is not one that its service and revision could have had.
    #[error("the instance name does not belong to this service and revision; join without one")]
    NotYours,
    /// The name it had before is in use.
    #[error("the instance name is in use; join without one")]
    NameTaken,
}

/// What changed since the last look.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Changes {
    /// To remember.
    pub saved: Vec<Registration>,
    /// To forget.
    pub forgotten: Vec<InstanceId>,
    /// [`Roster::edits`] at this moment.
    pub edits: u64,
}

/// Everybody who is registered.
#[derive(Debug)]
pub(crate) struct Roster {
    heartbeats: Heartbeats,
    members: BTreeMap<InstanceId, Registered>,
    ticked_at: Duration,
    /// Registrations that differ from what is remembered, gone ones included.
    dirty: BTreeSet<InstanceId>,
    /// Counts what was added to `dirty`.
    edits: u64,
    published: Instances,
}

impl Roster {
    /// The roster as it was remembered. Everybody counts as seen now: their silence was ours.
    pub(crate) fn restore(heartbeats: Heartbeats, registrations: Vec<Registration>, now: Duration) -> Roster {
        let members: BTreeMap<_, _> =
            registrations.into_iter().map(|r| (r.instance.id.clone(), Registered::new(r, now))).collect();
        let mut roster = Roster {
            heartbeats,
            members,
            ticked_at: now,
            dirty: BTreeSet::new(),
            edits: 0,
            published: Instances::default(),
        };
        roster.publish();
        roster
    }

    /// Lets a workload in, under the name it had before or a new one, whose suffix is looked for from `seed` on.
    ///
    /// A member that joins again as it was (it had lost us, not we it) keeps its health: it must not leave rotation
    /// for that. Who had a name that nobody remembers comes back with a proxy that was in place before and still is,
    /// or its sidecar says the application is not healthy. A copy of the same workload in the same place is gone, and
    /// forgotten at once.
    ///
    /// # Errors
    /// If the name is in use by another workload, or not one this workload could have had.
    pub(crate) fn join(
        &mut self,
        newcomer: Newcomer,
        had: Option<InstanceId>,
        joined_at: Timestamp,
        now: Duration,
        seed: u32,
    ) -> Result<Arc<Instance>, Turned> {
        let stem = newcomer.stem();
        let forgotten = had.as_ref().is_some_and(|id| !self.members.contains_key(id));
        let id = match had {
            Some(id) if !belongs(&id, &stem) => return Err(Turned::NotYours),
            Some(id) => id,
            None => (seed..=u32::MAX)
                .chain(0..seed)
                .filter_map(|seed| InstanceId::parse(&format!("{stem}-{}", suffix(seed))).ok())
                .find(|id| !self.members.contains_key(id))
                .ok_or(Turned::NameTaken)?,
        };
        if let Some(member) = self.members.get(&id) {
            let silent = now.saturating_sub(member.seen_at) > self.heartbeats.every * 5 / 2;
            let old = &*member.registration.instance;
            if !newcomer.is_like(old) || (!silent && !newcomer.replaces(old)) {
                return Err(Turned::NameTaken);
            }
        }
        let gone = |member: &&Registered| newcomer.replaces(&member.registration.instance);
        let gone: Vec<_> =
            self.members.values().filter(gone).map(|m| m.registration.instance.id.clone()).collect();
        gone.iter().filter(|gone| **gone != id).for_each(|id| self.forget(id));

        let instance = Arc::new(newcomer.named(id.clone()));
        let before = self.members.remove(&id).map(|member| member.registration);
        let before = before.filter(|before| {
            Instance { health: Health::Starting, ..(*before.instance).clone() } == *instance
        });
        let (app, ready) =
            before.map_or((App::Starting, forgotten), |before| (before.app, before.proxy_ready));
        let registration = Registration::new(instance, app, ready, false, joined_at);
        let instance = Arc::clone(&registration.instance);
        self.note(id.clone());
        self.members.insert(id, Registered::new(registration, now));
        self.publish();
        Ok(instance)
    }

    /// The member of this name, if it has this identity.
    pub(crate) fn member(&self, id: &InstanceId, identity: &Identity) -> Option<&Registered> {
        self.members.get(id).filter(|member| member.registration.is_of(identity))
    }

    /// Everybody.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Registered> {
        self.members.values()
    }

    /// Takes a sign of life. `None`: nobody of this name and identity is registered. `Some(true)`: they should renew
    /// their certificate.
    pub(crate) fn heartbeat(
        &mut self,
        id: &InstanceId,
        identity: &Identity,
        beat: Beat,
        now: Duration,
    ) -> Option<bool> {
        let member = self.members.get_mut(id).filter(|member| member.registration.is_of(identity))?;
        member.seen_at = now;
        let (app, renew) = (beat.app, member.renew_asked);
        member.said.hear(beat);
        self.edit(id, |registration| registration.app = app);
        Some(renew)
    }

    /// Its own proxy has acknowledged its listeners.
    pub(crate) fn mark_proxy_ready(&mut self, id: &InstanceId) {
        self.edit(id, |registration| registration.proxy_ready = true);
    }

    /// It is about to stop.
    pub(crate) fn drain(&mut self, id: &InstanceId) {
        self.edit(id, |registration| registration.draining = true);
    }

    /// It has stopped.
    pub(crate) fn leave(&mut self, id: &InstanceId) {
        self.forget(id);
        self.publish();
    }

    /// Asks members to renew their certificates with their next signs of life; all of them if none is named.
    pub(crate) fn ask_renewal(&mut self, of: Option<&InstanceId>) {
        for (id, member) in &mut self.members {
            member.renew_asked |= of.is_none_or(|of| of == id);
        }
    }

    /// A member has renewed its certificate.
    pub(crate) fn renewed(&mut self, id: &InstanceId) {
        if let Some(member) = self.members.get_mut(id) {
            member.renew_asked = false;
        }
    }

    /// Notes whose proxies hold a stream to us: a sidecar that dies takes its proxy along, so whoever holds one is
    /// alive, however late its words come.
    pub(crate) fn connected(&mut self, proxies: &BTreeSet<InstanceId>) {
        for (id, member) in &mut self.members {
            member.connected = proxies.contains(id);
        }
    }

    /// Forgets who was silent for too long, and names them.
    ///
    /// When the last tick is long past, it is we who were stopped or starved, and nobody could reach us: their
    /// silence starts now. Otherwise an operator that wakes up would empty the mesh.
    pub(crate) fn tick(&mut self, now: Duration) -> Vec<InstanceId> {
        let Heartbeats { expire_after, .. } = self.heartbeats;
        if now.saturating_sub(self.ticked_at) > expire_after / 2 {
            self.members.values_mut().for_each(|member| member.seen_at = now);
        }
        self.ticked_at = now;
        let silent = |member: &Registered| {
            let forgiven = if member.connected { expire_after * CONNECTED_PATIENCE } else { expire_after };
            now.saturating_sub(member.seen_at) > forgiven
        };
        let expired: Vec<_> =
            self.members.iter().filter(|(_, member)| silent(member)).map(|(id, _)| id.clone()).collect();
        expired.iter().for_each(|id| self.forget(id));
        if !expired.is_empty() {
            self.publish();
        }
        expired
    }

    /// The instances as the world sees them; the same pointer while nothing changed.
    pub(crate) fn instances(&self) -> &Instances {
        &self.published
    }

    /// Whether anything is to be remembered or forgotten.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// How many changes there were to remember so far.
    pub(crate) fn edits(&self) -> u64 {
        self.edits
    }

    /// What to remember and to forget since the last call.
    pub(crate) fn take_changes(&mut self) -> Changes {
        let mut changes = Changes { edits: self.edits, ..Changes::default() };
        for id in std::mem::take(&mut self.dirty) {
            match self.members.get(&id) {
                Some(member) => changes.saved.push(member.registration.clone()),
                None => changes.forgotten.push(id),
            }
        }
        changes
    }

    /// Takes back changes that could not be remembered.
    pub(crate) fn retry(&mut self, changes: Changes) {
        self.dirty.extend(changes.saved.into_iter().map(|r| r.instance.id.clone()));
        self.dirty.extend(changes.forgotten);
    }

    fn edit(&mut self, id: &InstanceId, edit: impl FnOnce(&mut Registration)) {
        let Some(member) = self.members.get_mut(id) else { return };
        let registration = &mut member.registration;
        let before = registration.clone();
        edit(registration);
        registration.settle();
        if *registration == before {
            return;
        }
        let republish = registration.instance != before.instance;
        self.note(id.clone());
        if republish {
            self.publish();
        }
    }

    fn note(&mut self, id: InstanceId) {
        self.dirty.insert(id);
        self.edits += 1;
    }

    fn forget(&mut self, id: &InstanceId) {
        if self.members.remove(id).is_some() {
            self.note(id.clone());
        }
    }

    fn publish(&mut self) {
        let instances =
            self.members.iter().map(|(id, m)| (id.clone(), Arc::clone(&m.registration.instance))).collect();
        self.published = Arc::new(instances);
    }
}

/// Five characters of a number: no vowels, so that they make no words, and nothing that looks like another.
fn suffix(mut number: u32) -> String {
    const LETTERS: [char; 27] = [
        'b', 'c', 'd', 'f', 'g', 'h', 'j', 'k', 'l', 'm', 'n', 'p', 'q', 'r', 's', 't', 'v', 'w', 'x', 'z',
        '2', '4', '5', '6', '7', '8', '9',
    ];
    (0..5)
        .map(|_| {
            let letter = LETTERS[(number % 27) as usize];
            number /= 27;
            letter
        })
        .collect()
}

fn belongs(id: &InstanceId, stem: &str) -> bool {
    id.as_str().strip_prefix(stem).and_then(|rest| rest.strip_prefix('-')).is_some_and(|rest| {
        (1..=6).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    })
}

#[cfg(test)]
pub(super) mod tests;
