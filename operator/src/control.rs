//! The control loop: observe → compile → lower → publish, once for every change, never by a timer.

use crate::{
    apply::Statuses,
    clock::Clock,
    milestone::{self, Milestones},
    observe::{declared::Declared, world},
    signals,
    xds::Publisher,
};
use airlane_core::{
    compile::{Compiled, Memo},
    id::{ClusterName, InstanceId},
    world::{Instance, World},
};
use airlane_envoy::{catalog::Catalog, lower::Lowerer};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the loop vouches for the shares of rollouts.
const BEAT: Duration = Duration::from_millis(500);

/// How long the vouching lasts: a loop that is stuck for longer lets the proxies' layers expire.
const VOUCHED: Duration = Duration::from_secs(2);

/// A loop that has not turned for so long is stuck: it beats every half second, and compiles a large mesh in less.
const STUCK: Duration = Duration::from_secs(30);

/// How long a mesh that was forgotten is given to join again: more than a sidecar's longest pause between two tries
/// to reach its operator (5 s).
pub(crate) const RECOLLECTION: Duration = Duration::from_secs(6);

/// One consistent picture: what was observed and what was decided from it.
#[derive(Clone)]
pub(crate) struct Picture {
    /// What was observed.
    pub(crate) world: Arc<World>,
    /// What was decided.
    pub(crate) compiled: Arc<Compiled>,
    /// The objects behind it.
    pub(crate) declared: Arc<Declared>,
    /// The epoch in which it was published.
    pub(crate) epoch: u64,
    /// What holds of it, and since which epoch.
    pub(crate) milestones: Arc<Milestones>,
    /// What is published.
    pub(crate) catalog: Arc<Catalog>,
}

/// When the loop turned last. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    clock: Arc<dyn Clock>,
    turned_at: watch::Sender<Option<Duration>>,
}

impl Pulse {
    /// Of a loop that has not begun.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Pulse {
        Pulse { clock, turned_at: watch::Sender::default() }
    }

    fn beat(&self) {
        self.turned_at.send_replace(Some(self.clock.uptime()));
    }

    /// For how long the loop has been stuck, if it is. One that has not begun waits for its cluster.
    pub(crate) fn stuck_for(&self) -> Option<Duration> {
        let silence = self.clock.uptime().saturating_sub((*self.turned_at.borrow())?);
        (silence >= STUCK).then_some(silence)
    }
}

/// What the loop watches.
pub(crate) struct Inputs {
    /// Objects.
    pub(crate) declared: watch::Receiver<Arc<Declared>>,
    /// Copies of workloads.
    pub(crate) instances: watch::Receiver<Arc<BTreeMap<InstanceId, Arc<Instance>>>>,
    /// Statuses.
    pub(crate) statuses: watch::Receiver<Arc<Statuses>>,
    /// Whether somebody judges the rollouts: if nobody does, their shares are left to expire.
    pub(crate) judged: watch::Receiver<bool>,
    /// The roots to trust, PEM.
    pub(crate) bundle: watch::Receiver<String>,
}

/// What the loop tells.
pub(crate) struct Outputs {
    /// To proxies.
    pub(crate) publisher: Publisher,
    /// To everybody who asks.
    pub(crate) picture: watch::Sender<Option<Picture>>,
    /// To the receivers of evidence.
    pub(crate) clusters: watch::Sender<Arc<HashSet<ClusterName>>>,
    /// To whoever asks whether it goes on.
    pub(crate) pulse: Pulse,
}

/// Runs until shutdown. Nothing is published before `complete`: what is observed until then is a part of the mesh, and
/// proxies would give up the rest.
pub(crate) async fn run(
    settings: world::MeshSettings,
    mut lowerer: Lowerer,
    mut inputs: Inputs,
    outputs: Outputs,
    complete: impl Future<Output = ()>,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = complete => {}
    }
    let mut memo = Memo::default();
    let mut before: Option<Picture> = None;
    let mut beat = tokio::time::interval(BEAT);
    loop {
        outputs.pulse.beat();
        let declared = inputs.declared.borrow_and_update().clone();
        let instances = inputs.instances.borrow_and_update().clone();
        let statuses = inputs.statuses.borrow_and_update().clone();
        let bundle = inputs.bundle.borrow_and_update().clone();
        lowerer.trust(bundle.clone());
        let last = before.as_ref().map(|picture| &*picture.world);
        let world = Arc::new(world::assemble(&settings, &declared, &instances, &statuses, last));
        let compiled = Arc::new(memo.compile(&world));
        let (catalog, change) = lowerer.lower(&compiled.mesh);
        let catalog = Arc::new(catalog);
        let last = before.as_ref().map(|picture| &*picture.milestones);
        let milestones = milestone::of(&declared, &world, &compiled.mesh, &bundle, catalog.epoch, last);
        let milestones = Arc::new(milestones);
        // Evidence about a cluster may arrive as soon as a proxy knows it.
        outputs.clusters.send_replace(Arc::new(signals::clusters_of(&compiled.mesh)));
        outputs.publisher.publish(catalog.clone(), change);
        let picture = Picture { world, compiled, declared, epoch: catalog.epoch, milestones, catalog };
        outputs.picture.send_replace(Some(picture.clone()));
        before = Some(picture);
        loop {
            let changed = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = inputs.declared.changed() => changed,
                changed = inputs.instances.changed() => changed,
                changed = inputs.statuses.changed() => changed,
                changed = inputs.bundle.changed() => changed,
                _ = beat.tick() => {
                    outputs.pulse.beat();
                    if *inputs.judged.borrow() {
                        outputs.publisher.beat(VOUCHED);
                    }
                    continue;
                }
            };
            if changed.is_err() {
                return;
            }
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::tests::HandClock;
    use jiff::Timestamp;

    #[test]
    fn a_loop_that_stands_still_is_stuck() {
        let clock = Arc::new(HandClock::at(Timestamp::UNIX_EPOCH));
        let pulse = Pulse::new(clock.clone());
        clock.advance(STUCK);
        assert_eq!(pulse.stuck_for(), None, "it has not begun");
        pulse.beat();
        clock.advance(STUCK - Duration::from_millis(1));
        assert_eq!(pulse.stuck_for(), None);
        clock.advance(Duration::from_millis(1));
        assert_eq!(pulse.stuck_for(), Some(STUCK));
        pulse.beat();
        assert_eq!(pulse.stuck_for(), None);
    }
}
