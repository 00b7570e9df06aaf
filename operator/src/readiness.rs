//! What has to wait for acknowledgements: a new instance is called only after its own proxy is in place, and a
//! leaving one stops only after its callers have let go.

use crate::{
    control::Picture,
    fleet::Fleet,
    join::{Drained, Rotation},
    members::Members,
    milestone::Milestone,
    registry::Registry,
    xds::Publisher,
};
use airlane_core::{id::InstanceId, world::Health};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// Tells the members whose proxies have acknowledged their own listeners.
pub(crate) async fn announce(
    mut picture: watch::Receiver<Option<Picture>>,
    publisher: Publisher,
    members: Arc<dyn Members>,
    shutdown: CancellationToken,
) {
    let mut acknowledgements = publisher.progress();
    // Whose proxies are not in place yet, and the epoch that first published them: nearly always nobody, while
    // acknowledgements come by the thousand.
    let mut awaited: HashMap<InstanceId, u64> = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = picture.changed() => {
                if changed.is_err() {
                    return;
                }
                let Some(picture) = picture.borrow_and_update().clone() else { continue };
                awaited = members
                    .without_proxy()
                    .into_iter()
                    .filter(|instance| picture.compiled.mesh.proxies.contains_key(instance))
                    .map(|instance| {
                        let since = awaited.get(&instance).copied().unwrap_or(picture.epoch);
                        (instance, since)
                    })
                    .collect();
            }
            changed = acknowledgements.changed(), if !awaited.is_empty() => if changed.is_err() { return },
        }
        acknowledgements.mark_unchanged();
        awaited.retain(|instance, since| {
            let in_place = publisher.acked_epoch(instance).is_some_and(|acked| acked >= *since);
            if in_place {
                members.mark_proxy_ready(instance);
            }
            !in_place
        });
    }
}

/// How often the registry is told who is connected: well within the silence it forgives.
const TELL_CONNECTED: Duration = Duration::from_millis(500);

/// Tells the registry whose proxies are connected.
pub(crate) async fn vouch(publisher: Publisher, registry: Arc<Registry>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(TELL_CONNECTED);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        registry.connected(&publisher.connected().into_iter().map(|proxy| proxy.instance).collect());
    }
}

/// Takes instances out of rotation.
#[derive(Clone)]
pub(crate) struct Leaving {
    /// Where it shows that the instance is not published any more.
    pub(crate) picture: watch::Receiver<Option<Picture>>,
    /// Who acknowledges that.
    pub(crate) fleet: Fleet,
}

#[tonic::async_trait]
impl Rotation for Leaving {
    async fn out_of_rotation(&self, instance: &InstanceId, wait: Duration) -> Drained {
        let deadline = Instant::now() + wait;
        let mut picture = self.picture.clone();
        let withdrawn = picture.wait_for(|picture| {
            picture.as_ref().is_some_and(|picture| {
                let instance = picture.world.instances.get(instance);
                instance.is_none_or(|instance| instance.health == Health::Draining)
            })
        });
        let withdrawn = tokio::time::timeout_at(deadline, withdrawn).await;
        let picture = withdrawn.ok().and_then(Result::ok).and_then(|picture| picture.clone());
        let Some(picture) = picture else {
            let connected = self.fleet.connected();
            return Drained { acknowledged: 0, outstanding: count(connected) };
        };
        let milestone = Milestone::Withdrawn(instance.clone());
        let left = deadline.saturating_duration_since(Instant::now());
        let acks = self.fleet.acknowledged(&picture, &milestone, left).await;
        Drained {
            acknowledged: count(acks.acknowledged.len()),
            outstanding: count(acks.outstanding.len() + acks.unheard.len()),
        }
    }
}

fn count(proxies: usize) -> u32 {
    u32::try_from(proxies).unwrap_or(u32::MAX)
}
