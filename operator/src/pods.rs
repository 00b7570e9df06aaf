//! Pods as members of the mesh: what Kubernetes says of them, and over it what their sidecars told this replica.
//!
//! Kubernetes is the memory: nothing is written here, and a replica that starts believes what it observes. A pod is
//! ready only after its own proxy was in place, because the proxy's startup probe comes before the application; so the
//! kubelet's word is the acknowledgement that every replica can see, and no ready pod has to wait for its proxy to
//! find this replica.

mod roll;

use crate::{
    clock::Clock,
    members::{Beat, Instances, Member, Members},
    tls::Peer,
};
use airlane_core::{
    id::InstanceId,
    world::{Health, Instance},
};
use roll::Roll;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Who is in the mesh of a cluster. Shared by the wire server, which feeds it, and the control loop, which watches it.
#[derive(Debug)]
pub(crate) struct Pods {
    observed: watch::Receiver<Instances>,
    clock: Arc<dyn Clock>,
    roll: Mutex<Roll>,
    instances: watch::Sender<Instances>,
    /// There is something that ends by itself.
    held: Notify,
}

impl Pods {
    /// The pods that are observed now; [`Pods::run`] follows them.
    pub(crate) fn new(observed: watch::Receiver<Instances>, clock: Arc<dyn Clock>) -> Pods {
        let pods = Pods {
            observed,
            clock,
            roll: Mutex::default(),
            instances: watch::Sender::default(),
            held: Notify::new(),
        };
        pods.catch_up();
        pods
    }

    /// The instances, now and whenever one of them changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Instances> {
        self.instances.subscribe()
    }

    /// Publishes what is observed at this moment.
    pub(crate) fn catch_up(&self) {
        // Looked at inside the lock: nobody publishes something older after it.
        self.change(|roll, now| roll.observe(&self.observed.borrow(), now));
    }

    /// Follows what is observed until told to stop, or nothing is observed any more.
    pub(crate) async fn run(&self, shutdown: CancellationToken) {
        let mut observed = self.observed.clone();
        loop {
            observed.mark_unchanged();
            self.catch_up();
            let now = self.clock.uptime();
            let wait = self.look(Roll::next_end).map(|end| end.saturating_sub(now));
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = observed.changed() => if changed.is_err() { return },
                () = self.held.notified() => {}
                () = sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
            }
        }
    }

    /// The pod of this name, waited for if it is not observed yet: a pod speaks as soon as it runs, and the kubelet
    /// tells its address to others a moment later.
    pub(crate) async fn observed(&self, instance: &InstanceId, wait: Duration) -> Option<Arc<Instance>> {
        let mut instances = self.watch();
        let there = timeout(wait, instances.wait_for(|instances| instances.contains_key(instance)));
        there.await.ok()?.ok()?.get(instance).cloned()
    }

    /// The pod's sidecar was let in. `anew`: it has just started, and its proxy with it.
    pub(crate) fn joined(&self, instance: &InstanceId, anew: bool) {
        if anew {
            self.change(|roll, now| roll.started(instance, now));
        }
    }

    /// The pod's sidecar said, to this replica or to another one, that it leaves.
    pub(crate) fn leaving(&self, instance: &InstanceId) {
        self.change(|roll, now| roll.leaving(instance, now));
    }

    fn look<T>(&self, f: impl FnOnce(&Roll) -> T) -> T {
        f(&self.roll.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, f: impl FnOnce(&mut Roll, Duration) -> T) -> T {
        let now = self.clock.uptime();
        let mut roll = self.roll.lock().unwrap_or_else(PoisonError::into_inner);
        let ends_before = roll.next_end();
        let result = f(&mut roll, now);
        // Inside the lock: watchers see changes in their order.
        self.instances.send_if_modified(|published| {
            let changed = published != roll.published();
            if changed {
                *published = Arc::clone(roll.published());
            }
            changed
        });
        if roll.next_end() != ends_before {
            self.held.notify_one();
        }
        result
    }
}

#[tonic::async_trait]
impl Members for Pods {
    fn instance_of(&self, peer: &Peer) -> Option<Arc<Instance>> {
        self.look(|roll| roll.member(&peer.instance, &peer.identity).cloned())
    }

    fn heartbeat(&self, peer: &Peer, beat: Beat) -> Option<bool> {
        // How the application is, the kubelet knows: it asks with the probes that the pod's author wrote.
        let beat = Beat { leaf_not_after: Some(peer.not_after), ..beat };
        self.change(|roll, _| roll.heartbeat(&peer.instance, &peer.identity, beat))
    }

    fn renewed(&self, instance: &InstanceId) {
        self.change(|roll, _| roll.renewed(instance));
    }

    fn drain(&self, peer: &Peer) {
        if self.instance_of(peer).is_some() {
            self.leaving(&peer.instance);
        }
    }

    fn leave(&self, peer: &Peer) {
        // The proxy has stopped; the pod may be about to start another one.
        self.drain(peer);
    }

    async fn stays(&self, peer: &Peer, wait: Duration) -> bool {
        let goes = |observed: &Instances| {
            observed.get(&peer.instance).is_none_or(|pod| pod.health == Health::Draining)
        };
        let mut observed = self.observed.clone();
        timeout(wait, observed.wait_for(goes)).await.is_err()
    }

    fn without_proxy(&self) -> Vec<InstanceId> {
        self.look(Roll::without_proxy)
    }

    fn mark_proxy_ready(&self, instance: &InstanceId) {
        self.change(|roll, _| roll.proxy_in_place(instance));
    }

    fn ask_renewal(&self, of: Option<&InstanceId>) {
        self.change(|roll, _| roll.ask_renewal(of));
    }

    fn everybody(&self) -> Vec<Member> {
        self.look(|roll| roll.members().collect())
    }
}

#[cfg(test)]
mod tests;
