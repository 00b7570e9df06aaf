//! What was observed of the pods and what was heard from them, made into what is published. Without IO: time comes in
//! as uptime.

use crate::members::{Beat, Instances, Member, Said};
use airlane_core::{
    id::{Identity, InstanceId},
    world::{Health, Instance, Interception},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How long what a pod told us holds at least against the kubelet, which goes on saying that it is ready; a pod that
/// stops is held for as long as its containers may take.
///
/// Long enough for the news of a deletion to come. Not for ever: hooks run before a container is restarted too, and
/// an application without a readiness probe may come back without the kubelet ever calling it unready; and a proxy
/// may have acknowledged its listeners to another replica.
const HOLD: Duration = Duration::from_secs(30);

/// How long it holds at most: an application that may take an hour to stop and came back within a second would be missed.
const HOLD_MAX: Duration = Duration::from_secs(300);

/// The pods that are in the mesh.
#[derive(Debug, Default)]
pub(super) struct Roll {
    observed: Instances,
    heard: BTreeMap<InstanceId, Heard>,
    /// Few at any time, and looked at with every sign of life.
    holds: BTreeMap<InstanceId, Hold>,
    published: Instances,
}

/// What was heard from one pod.
#[derive(Debug, Default)]
struct Heard {
    said: Said,
    renew_asked: bool,
}

/// A pod's own word against the kubelet's. It ends when the kubelet's word is newer: when it calls the pod ready again
/// after it has called it something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hold {
    why: Why,
    /// The uptime at which it ends by itself.
    until: Duration,
    /// Whether the kubelet has called the pod something else than ready since.
    unready_since: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Its sidecar asked to be taken out of rotation, or has stopped.
    Leaving,
    /// A new proxy started in a pod that was ready: the kubelet speaks of the one before.
    NewProxy,
}

impl Why {
    fn health(self) -> Health {
        match self {
            Why::Leaving => Health::Draining,
            Why::NewProxy => Health::Starting,
        }
    }
}

impl Roll {
    /// Takes what is observed now.
    pub(super) fn observe(&mut self, observed: &Instances, now: Duration) {
        self.observed = Arc::clone(observed);
        self.heard.retain(|instance, _| observed.contains_key(instance));
        self.holds.retain(|instance, hold| {
            let Some(pod) = observed.get(instance) else { return false };
            let ready = pod.health == Health::Healthy;
            hold.unready_since |= !ready;
            now < hold.until && !(ready && hold.unready_since)
        });
        self.publish();
    }

    /// When the next hold ends by itself.
    pub(super) fn next_end(&self) -> Option<Duration> {
        self.holds.values().map(|hold| hold.until).min()
    }

    /// The instances as the world sees them.
    pub(super) fn published(&self) -> &Instances {
        &self.published
    }

    /// The pod of this name, if it has this identity and a sidecar.
    pub(super) fn member(&self, instance: &InstanceId, identity: &Identity) -> Option<&Arc<Instance>> {
        self.published.get(instance).filter(|pod| {
            has_sidecar(pod)
                && pod.workload.namespace == identity.namespace
                && pod.service_account == identity.service_account
        })
    }

    /// Every pod with a sidecar.
    pub(super) fn members(&self) -> impl Iterator<Item = Member> {
        self.published.iter().filter(|(_, pod)| has_sidecar(pod)).map(|(instance, pod)| Member {
            instance: Arc::clone(pod),
            said: self.heard.get(instance).map(|heard| heard.said.clone()).unwrap_or_default(),
        })
    }

    /// Takes a sign of life. `None`: there is no pod of this name and identity. `Some(true)`: its sidecar should renew
    /// its certificate.
    pub(super) fn heartbeat(
        &mut self,
        instance: &InstanceId,
        identity: &Identity,
        beat: Beat,
    ) -> Option<bool> {
        self.member(instance, identity)?;
        let heard = self.heard.entry(instance.clone()).or_default();
        heard.said.hear(beat);
        Some(heard.renew_asked)
    }

    /// Its sidecar started, and with it a proxy that nobody has seen in place.
    pub(super) fn started(&mut self, instance: &InstanceId, now: Duration) {
        self.hold(instance, Why::NewProxy, now);
    }

    /// It is about to stop, or its proxy has stopped.
    pub(super) fn leaving(&mut self, instance: &InstanceId, now: Duration) {
        self.hold(instance, Why::Leaving, now);
    }

    /// Its own proxy has acknowledged its listeners.
    pub(super) fn proxy_in_place(&mut self, instance: &InstanceId) {
        if self.holds.get(instance).is_some_and(|hold| hold.why == Why::NewProxy) {
            self.holds.remove(instance);
            self.publish();
        }
    }

    /// Whose proxies have to acknowledge before they are published.
    pub(super) fn without_proxy(&self) -> Vec<InstanceId> {
        let awaited = self.holds.iter().filter(|(_, hold)| hold.why == Why::NewProxy);
        awaited.map(|(instance, _)| instance.clone()).collect()
    }

    /// Asks sidecars to renew their certificates with their next signs of life; all of them if none is named.
    pub(super) fn ask_renewal(&mut self, of: Option<&InstanceId>) {
        let asked: Vec<InstanceId> = self
            .members()
            .map(|member| member.instance.id.clone())
            .filter(|instance| of.is_none_or(|of| of == instance))
            .collect();
        for instance in asked {
            self.heard.entry(instance).or_default().renew_asked = true;
        }
    }

    /// A sidecar has renewed its certificate.
    pub(super) fn renewed(&mut self, instance: &InstanceId) {
        if let Some(heard) = self.heard.get_mut(instance) {
            heard.renew_asked = false;
        }
    }

    fn hold(&mut self, instance: &InstanceId, why: Why, now: Duration) {
        let Some(pod) = self.observed.get(instance) else { return };
        let ready = pod.health == Health::Healthy;
        if why == Why::NewProxy && !ready {
            // Whatever the kubelet says next is about the new proxy.
            self.holds.remove(instance);
        } else {
            let held_for = match why {
                Why::Leaving => pod.stops_within.clamp(HOLD, HOLD_MAX),
                Why::NewProxy => HOLD,
            };
            let hold = Hold { why, until: now.saturating_add(held_for), unready_since: !ready };
            self.holds.insert(instance.clone(), hold);
        }
        self.publish();
    }

    fn publish(&mut self) {
        let held = |(instance, hold): (&InstanceId, &Hold)| {
            let health = hold.why.health();
            let pod = self.observed.get(instance)?;
            // A pod that is being deleted leaves, whatever its proxy does.
            (pod.health != Health::Draining && pod.health != health)
                .then(|| (instance.clone(), self.with_health(pod, health)))
        };
        let held: Vec<_> = self.holds.iter().filter_map(held).collect();
        self.published = Arc::clone(&self.observed);
        if !held.is_empty() {
            Arc::make_mut(&mut self.published).extend(held);
        }
    }

    /// The pod with another health; the same pointer as before if that is what was published.
    fn with_health(&self, pod: &Instance, health: Health) -> Arc<Instance> {
        let shown = Instance { health, ..pod.clone() };
        match self.published.get(&shown.id) {
            Some(before) if **before == shown => Arc::clone(before),
            _ => Arc::new(shown),
        }
    }
}

fn has_sidecar(pod: &Instance) -> bool {
    pod.interception != Interception::None
}

#[cfg(test)]
pub(super) mod tests;
