//! Every proxy of the mesh, whichever replica it is connected to: how far it has come, what it refuses, which shares it
//! uses. This replica's own proxies are known by its [`Publisher`], those of others by what their replicas report.

use crate::{
    clock::Clock,
    control::Picture,
    milestone::{Milestone, Milestones},
    xds::{Publisher, Refusals, Shares},
};
use airlane_core::id::InstanceId;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// How long proxies are waited for whose replica is gone, or that another leader knew: longer than a proxy's longest
/// pause between two tries to reach a replica (5 s).
const RETURN: Duration = Duration::from_secs(6);

/// How far the proxies have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Acks {
    /// Those that reached the milestone.
    pub(crate) acknowledged: BTreeSet<InstanceId>,
    /// Those that did not.
    pub(crate) outstanding: BTreeSet<InstanceId>,
    /// Those that run somewhere and have not been heard of since their replica went, or since this one leads.
    pub(crate) unheard: BTreeSet<InstanceId>,
}

/// The proxies that are connected somewhere at one moment, and how far each has come.
#[derive(Clone, Debug)]
pub(crate) struct Census {
    own: Crowd,
    others: Vec<(Arc<Milestones>, Crowd)>,
}

/// The proxies of one replica, and the epoch that each has acknowledged.
#[derive(Clone, Debug)]
struct Crowd {
    proxies: Vec<(InstanceId, Option<u64>)>,
    /// The epochs alone, ascending: many milestones are asked about.
    acked: Vec<Option<u64>>,
}

impl FromIterator<(InstanceId, Option<u64>)> for Crowd {
    fn from_iter<I: IntoIterator<Item = (InstanceId, Option<u64>)>>(proxies: I) -> Crowd {
        let proxies: Vec<_> = proxies.into_iter().collect();
        let mut acked: Vec<_> = proxies.iter().map(|(_, acked)| *acked).collect();
        acked.sort_unstable();
        Crowd { proxies, acked }
    }
}

impl Crowd {
    fn reached(&self, epoch: Option<u64>) -> usize {
        self.acked.len() - self.acked.partition_point(|acked| !has_reached(*acked, epoch))
    }
}

impl Census {
    /// All of them, and whether they have reached a milestone.
    pub(crate) fn of(
        &self,
        picture: &Picture,
        milestone: &Milestone,
    ) -> impl Iterator<Item = (&InstanceId, bool)> {
        self.crowds(picture, milestone).flat_map(|(epoch, crowd)| {
            crowd.proxies.iter().map(move |(instance, acked)| (instance, has_reached(*acked, epoch)))
        })
    }

    /// How many there are, and how many of them have reached a milestone.
    pub(crate) fn count(&self, picture: &Picture, milestone: &Milestone) -> (u32, u32) {
        let (all, reached) = self
            .crowds(picture, milestone)
            .map(|(epoch, crowd)| (crowd.acked.len(), crowd.reached(epoch)))
            .fold((0, 0), |(all, reached), (more, of_them)| (all + more, reached + of_them));
        let of_proxies = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        (of_proxies(all), of_proxies(reached))
    }

    /// The proxies of each replica, and since which of its epochs a milestone holds there.
    fn crowds(
        &self,
        picture: &Picture,
        milestone: &Milestone,
    ) -> impl Iterator<Item = (Option<u64>, &Crowd)> {
        let others =
            self.others.iter().map(|(milestones, crowd)| (milestones.get(milestone).copied(), crowd));
        others.chain([(epoch_of(picture, milestone), &self.own)])
    }
}

/// What another replica reports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replica {
    /// What it publishes, by its own epochs.
    pub(crate) milestones: Arc<Milestones>,
    /// The proxies that are connected to it.
    pub(crate) proxies: BTreeMap<InstanceId, Reported>,
    /// What they refuse.
    pub(crate) refusals: Arc<Refusals>,
    /// The uptime until which its proxies certainly use the shares that they acknowledged.
    pub(crate) certain_until: Duration,
}

/// A proxy that is connected to another replica.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Reported {
    /// Everything of that replica's publications up to this one is accepted.
    pub(crate) acked_epoch: Option<u64>,
    /// The shares that it uses, and since when it does.
    pub(crate) shares: Option<(Arc<Shares>, Timestamp)>,
}

/// The proxies of all replicas. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Fleet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    publisher: Publisher,
    clock: Arc<dyn Clock>,
    others: Mutex<Others>,
    /// Changes with `others`.
    moved: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Others {
    /// By the number of its stream.
    replicas: BTreeMap<u64, Replica>,
    streams: u64,
    /// The uptime until which every proxy that should be connected somewhere is waited for.
    gathering_until: Duration,
    /// Proxies of replicas that are gone, and until when they are waited for.
    lost: BTreeMap<InstanceId, Duration>,
}

/// News of any proxy.
#[derive(Debug)]
pub(crate) struct Movement {
    own: watch::Receiver<()>,
    others: watch::Receiver<()>,
    refusals: watch::Receiver<Arc<Refusals>>,
}

impl Movement {
    /// Returns after news. False: there will be none any more.
    pub(crate) async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.own.changed() => changed.is_ok(),
            changed = self.others.changed() => changed.is_ok(),
            changed = self.refusals.changed() => changed.is_ok(),
        }
    }

    /// What was heard so far is not news any more.
    pub(crate) fn mark_unchanged(&mut self) {
        self.own.mark_unchanged();
        self.others.mark_unchanged();
        self.refusals.mark_unchanged();
    }
}

impl Fleet {
    /// The proxies of this replica, and of those that will report to it.
    pub(crate) fn new(publisher: Publisher, clock: Arc<dyn Clock>) -> Fleet {
        let (others, moved) = (Mutex::default(), watch::Sender::new(()));
        Fleet(Arc::new(Inner { publisher, clock, others, moved }))
    }

    /// This replica begins to lead: proxies that others knew may not have been heard of yet.
    pub(crate) fn begin(&self) {
        self.others().gathering_until = self.0.clock.uptime() + RETURN;
        self.0.moved.send_replace(());
    }

    /// This replica leads no more: nobody reports to it.
    pub(crate) fn end(&self) {
        let mut others = self.others();
        *others = Others { streams: others.streams, ..Others::default() };
        drop(others);
        self.0.moved.send_replace(());
    }

    /// A replica begins to report; gives the number of its stream.
    pub(crate) fn open(&self) -> u64 {
        let mut others = self.others();
        others.streams += 1;
        others.streams
    }

    /// A replica tells how its proxies are now.
    pub(crate) fn report(&self, stream: u64, news: impl FnOnce(&mut Replica)) {
        news(self.others().replicas.entry(stream).or_default());
        self.0.moved.send_replace(());
    }

    /// A replica does not report any more. Its proxies will be heard of from another one, or from this one.
    pub(crate) fn close(&self, stream: u64) {
        let now = self.0.clock.uptime();
        let mut others = self.others();
        if let Some(replica) = others.replicas.remove(&stream) {
            others.lost.retain(|_, until| now < *until);
            others.lost.extend(replica.proxies.into_keys().map(|proxy| (proxy, now + RETURN)));
        }
        drop(others);
        self.0.moved.send_replace(());
    }

    /// News of any proxy, from now on.
    pub(crate) fn movement(&self) -> Movement {
        let publisher = &self.0.publisher;
        Movement {
            own: publisher.progress(),
            others: self.0.moved.subscribe(),
            refusals: publisher.refusals(),
        }
    }

    /// The proxies that are connected at this moment.
    pub(crate) fn census(&self) -> Census {
        let own: Crowd = self
            .0
            .publisher
            .connected()
            .into_iter()
            .map(|proxy| (proxy.instance, proxy.acked_epoch))
            .collect();
        // Whoever is connected here as well has just come, and another replica has not noticed yet.
        let here: HashSet<&InstanceId> = own.proxies.iter().map(|(instance, _)| instance).collect();
        let others = self.others();
        let others = others.replicas.values().map(|replica| {
            let elsewhere = replica.proxies.iter().filter(|(instance, _)| !here.contains(instance));
            let proxies = elsewhere.map(|(instance, proxy)| (instance.clone(), proxy.acked_epoch)).collect();
            (Arc::clone(&replica.milestones), proxies)
        });
        let others = others.collect();
        Census { own, others }
    }

    /// Who has reached a milestone.
    pub(crate) fn acks(&self, picture: &Picture, milestone: &Milestone) -> Acks {
        let mut acks = Acks { unheard: self.unheard(picture), ..Acks::default() };
        for (instance, reached) in self.census().of(picture, milestone) {
            let side = if reached { &mut acks.acknowledged } else { &mut acks.outstanding };
            side.insert(instance.clone());
        }
        // Between two other replicas, the one that is behind is right.
        acks.acknowledged.retain(|instance| !acks.outstanding.contains(instance));
        acks
    }

    /// Whether every proxy has reached a milestone. Asked at each answer of each proxy: it stops at the first that has
    /// not come so far.
    pub(crate) fn all_reached(&self, picture: &Picture, milestone: &Milestone) -> bool {
        let own = epoch_of(picture, milestone);
        let reached_here = match own {
            Some(epoch) => self.0.publisher.all_reached(epoch),
            None => self.0.publisher.connected().is_empty(),
        };
        let reached_there = || {
            self.others().replicas.values().all(|replica| {
                let epoch = replica.milestones.get(milestone).copied();
                replica.proxies.values().all(|proxy| has_reached(proxy.acked_epoch, epoch))
            })
        };
        reached_here && reached_there() && self.unheard(picture).is_empty()
    }

    /// How many proxies are connected, here and elsewhere.
    pub(crate) fn connected(&self) -> usize {
        let elsewhere: usize = self.others().replicas.values().map(|replica| replica.proxies.len()).sum();
        self.0.publisher.connected().len() + elsewhere
    }

    /// Waits until every proxy has reached a milestone, at most for `patience`, and says who has.
    pub(crate) async fn acknowledged(
        &self,
        picture: &Picture,
        milestone: &Milestone,
        patience: Duration,
    ) -> Acks {
        let mut movement = self.movement();
        let complete = async {
            while !self.all_reached(picture, milestone) {
                tokio::select! {
                    goes_on = movement.changed() => if !goes_on { break },
                    // Those who do not come back are given up by the clock alone.
                    () = sleep(RETURN) => {}
                }
            }
        };
        // Either way the answer is read below.
        let _ = timeout(patience, complete).await;
        self.acks(picture, milestone)
    }

    /// Waits until every proxy that another leader knew is heard of, or given up.
    pub(crate) async fn gathered(&self, picture: &Picture) {
        let mut movement = self.movement();
        loop {
            let until = self.others().gathering_until;
            let left = until.saturating_sub(self.0.clock.uptime());
            if left.is_zero() || self.unheard(picture).is_empty() {
                return;
            }
            tokio::select! {
                goes_on = movement.changed() => if !goes_on { return },
                () = sleep(left) => return,
            }
        }
    }

    /// The proxies that should be connected somewhere, and nobody says that they are.
    fn unheard(&self, picture: &Picture) -> BTreeSet<InstanceId> {
        let now = self.0.clock.uptime();
        let others = self.others();
        if !others.waits(now) {
            return BTreeSet::new();
        }
        let reported = |instance: &InstanceId| {
            others.replicas.values().any(|replica| replica.proxies.contains_key(instance))
        };
        let awaited = others.awaited(picture, now);
        awaited
            .filter(|instance| !reported(instance) && !self.0.publisher.is_connected(instance))
            .cloned()
            .collect()
    }

    /// The shares that a proxy uses and since when it does, as far as that is certain.
    pub(crate) fn acked_shares(&self, instance: &InstanceId) -> Option<(Arc<Shares>, Timestamp)> {
        if self.0.publisher.is_connected(instance) {
            return self.0.publisher.acked_shares(instance);
        }
        let now = self.0.clock.uptime();
        let others = self.others();
        let mut replicas = others.replicas.values().filter_map(|replica| {
            replica.proxies.get(instance).map(|proxy| (proxy, replica.certain_until > now))
        });
        let (proxy, certain) = replicas.next()?;
        // Named by two replicas it has just moved, and nobody can say which of them is right.
        (certain && replicas.next().is_none()).then(|| proxy.shares.clone()).flatten()
    }

    /// What proxies refuse of what is published.
    pub(crate) fn refusals(&self) -> Arc<Refusals> {
        let own = self.0.publisher.refusals().borrow().clone();
        let others = self.others();
        let mut others = others.replicas.values().filter(|replica| !replica.refusals.is_empty()).peekable();
        if others.peek().is_none() {
            return own;
        }
        let mut all = (*own).clone();
        for (place, refusal) in others.flat_map(|replica| replica.refusals.iter()) {
            let known = all.entry(place.clone()).or_insert_with(|| refusal.clone());
            known.proxies.extend(refusal.proxies.iter().cloned());
        }
        Arc::new(all)
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.0.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Others {
    fn waits(&self, now: Duration) -> bool {
        now < self.gathering_until || self.lost.values().any(|until| now < *until)
    }

    /// Proxies that should be connected somewhere.
    fn awaited<'a>(&'a self, picture: &'a Picture, now: Duration) -> impl Iterator<Item = &'a InstanceId> {
        let proxies = &picture.compiled.mesh.proxies;
        let everybody = (now < self.gathering_until).then(|| proxies.keys()).into_iter().flatten();
        let lost = self
            .lost
            .iter()
            .filter(move |(instance, until)| now < **until && proxies.contains_key(*instance))
            .map(|(instance, _)| instance);
        everybody.chain(lost)
    }
}

fn has_reached(acked: Option<u64>, epoch: Option<u64>) -> bool {
    epoch.is_some() && acked >= epoch
}

/// Since which epoch a milestone holds here.
fn epoch_of(picture: &Picture, milestone: &Milestone) -> Option<u64> {
    match (picture.milestones.get(milestone), milestone) {
        (Some(epoch), _) => Some(*epoch),
        // Who is gone altogether is not called either.
        (None, Milestone::Withdrawn(instance)) if !picture.world.instances.contains_key(instance) => {
            Some(picture.epoch)
        }
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::tests::HandClock,
        milestone::planned,
        rollouts::tests::{canary, picture},
    };
    use airlane_core::world::Health;

    /// A fleet whose replica leads and has no proxies of its own; the mesh has `pay-v1-abcd` and `pay-v2-abcd`.
    struct Setting {
        fleet: Fleet,
        clock: Arc<HandClock>,
        picture: Picture,
        milestone: Milestone,
    }

    fn setting() -> Setting {
        let clock = Arc::new(HandClock::at(Timestamp::UNIX_EPOCH));
        let fleet = Fleet::new(Publisher::new(clock.clone()), clock.clone());
        let canary = canary(1_000);
        let milestone = Milestone::shares(&canary.id, planned(&canary).expect("a share"));
        Setting { fleet, clock, picture: picture(&canary, [Health::Healthy; 2]), milestone }
    }

    fn instance(name: &str) -> InstanceId {
        InstanceId::parse(name).expect("a name")
    }

    impl Setting {
        /// A replica for which the milestone holds since epoch 5, and whose proxies have come so far.
        fn replica(&self, proxies: &[(&str, Option<u64>)]) -> u64 {
            let stream = self.fleet.open();
            self.fleet.report(stream, |replica| {
                Arc::make_mut(&mut replica.milestones).insert(self.milestone.clone(), 5);
                for (name, acked_epoch) in proxies {
                    let reported = Reported { acked_epoch: *acked_epoch, shares: None };
                    replica.proxies.insert(instance(name), reported);
                }
            });
            stream
        }

        /// Who acknowledged, who did not, and who was not heard of.
        fn check(&self, expected: [&[&str]; 3]) {
            let acks = self.fleet.acks(&self.picture, &self.milestone);
            let [acknowledged, outstanding, unheard] =
                expected.map(|names| names.iter().map(|name| instance(name)).collect::<BTreeSet<_>>());
            let complete = outstanding.is_empty() && unheard.is_empty();
            let of_proxies = |side: &BTreeSet<InstanceId>| u32::try_from(side.len()).expect("few");
            let reached = of_proxies(&acknowledged);
            let counted = self.fleet.census().count(&self.picture, &self.milestone);
            assert_eq!(counted, (reached + of_proxies(&outstanding), reached));
            assert_eq!(acks, Acks { acknowledged, outstanding, unheard });
            assert_eq!(self.fleet.all_reached(&self.picture, &self.milestone), complete);
        }
    }

    #[test]
    fn each_replica_counts_in_epochs_of_its_own() {
        let setting = setting();
        setting.check([&[], &[], &[]]);
        setting.replica(&[("pay-v1-abcd", Some(5)), ("pay-v2-abcd", Some(4)), ("front-abcd", None)]);
        setting.check([&["pay-v1-abcd"], &["front-abcd", "pay-v2-abcd"], &[]]);
    }

    #[test]
    fn what_a_replica_does_not_publish_its_proxies_have_not_acknowledged() {
        let setting = setting();
        let stream = setting.replica(&[("front-abcd", Some(9))]);
        setting.check([&["front-abcd"], &[], &[]]);
        setting.fleet.report(stream, |replica| replica.milestones = Arc::default());
        setting.check([&[], &["front-abcd"], &[]]);
    }

    #[test]
    fn a_new_leader_waits_for_the_proxies_that_the_last_one_knew() {
        let setting = setting();
        setting.fleet.begin();
        setting.check([&[], &[], &["pay-v1-abcd", "pay-v2-abcd"]]);
        setting.replica(&[("pay-v1-abcd", Some(5))]);
        setting.check([&["pay-v1-abcd"], &[], &["pay-v2-abcd"]]);
        setting.clock.advance(RETURN);
        setting.check([&["pay-v1-abcd"], &[], &[]]);
    }

    #[test]
    fn the_proxies_of_a_lost_replica_are_waited_for() {
        let setting = setting();
        let lost =
            setting.replica(&[("pay-v1-abcd", Some(5)), ("pay-v2-abcd", Some(5)), ("gone-abcd", Some(5))]);
        setting.fleet.close(lost);
        setting.check([&[], &[], &["pay-v1-abcd", "pay-v2-abcd"]]);
        setting.replica(&[("pay-v2-abcd", Some(5))]);
        setting.check([&["pay-v2-abcd"], &[], &["pay-v1-abcd"]]);
        setting.clock.advance(RETURN);
        setting.check([&["pay-v2-abcd"], &[], &[]]);
    }

    #[test]
    fn shares_are_certain_for_as_long_as_their_replica_said() {
        let setting = setting();
        let shares: Arc<Shares> = Arc::new(BTreeMap::from([("pay".to_owned(), 500)]));
        let stream = setting.replica(&[]);
        let since = Timestamp::UNIX_EPOCH;
        setting.fleet.report(stream, |replica| {
            let uses = Reported { acked_epoch: Some(5), shares: Some((shares.clone(), since)) };
            replica.proxies.insert(instance("front-abcd"), uses);
            replica.certain_until = Duration::from_secs(3);
        });
        assert_eq!(setting.fleet.acked_shares(&instance("front-abcd")), Some((shares, since)));
        assert_eq!(setting.fleet.acked_shares(&instance("pay-v1-abcd")), None);
        setting.clock.advance(Duration::from_secs(3));
        assert_eq!(setting.fleet.acked_shares(&instance("front-abcd")), None);
    }
}
