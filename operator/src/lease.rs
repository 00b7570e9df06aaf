//! One replica leads: it judges rollouts and writes statuses. Which one is said by a Lease in the operator's namespace.
//!
//! Nobody's clock is believed: a replica that does not lead counts the lease's duration from when it saw it renewed. A
//! leader that cannot renew stops before that. What two of them might still write at once, the API server refuses by
//! `resourceVersion`.

use crate::{clock::Clock, marks::ADDRESS};
use futures::StreamExt as _;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// The Lease's name.
pub(crate) const NAME: &str = "airlane-leader";

/// How a lease passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Terms {
    /// Without a renewal for so long, another replica takes the lead.
    duration: Duration,
}

impl Terms {
    /// The shortest duration: renewals come every 0.4 s then.
    pub(crate) const SHORTEST: Duration = Duration::from_secs(3);

    /// The lead passes when it was not renewed for this long, at least [`Terms::SHORTEST`].
    pub(crate) fn lasting(duration: Duration) -> Terms {
        Terms { duration: duration.max(Terms::SHORTEST) }
    }

    /// A leader that could not renew for so long stops leading: well before another one takes over.
    fn step_down(self) -> Duration {
        self.duration * 2 / 3
    }

    /// From one renewal to the next.
    fn renew_every(self) -> Duration {
        self.duration * 2 / 15
    }

    /// From a failed write to the next try.
    fn retry(self) -> Duration {
        self.duration / 30
    }

    /// The longest that a write may take.
    fn write(self) -> Duration {
        self.duration * 2 / 15
    }
}

/// What is known about the lead.
#[derive(Clone, Debug)]
pub(crate) struct Lead {
    /// Whether this replica leads.
    pub(crate) mine: watch::Receiver<bool>,
    /// Whether any replica does.
    pub(crate) held: watch::Receiver<bool>,
    /// Where the replica serves that leads in the place of this one.
    pub(crate) elsewhere: watch::Receiver<Option<SocketAddr>>,
}

/// Who a candidate is.
#[derive(Clone, Debug)]
pub(crate) struct Me {
    /// What no other process is called, before or after it.
    pub(crate) name: String,
    /// Where other replicas reach it.
    pub(crate) address: Option<SocketAddr>,
}

/// A candidate for the lead.
pub(crate) struct Candidate {
    api: Api<Lease>,
    me: Me,
    terms: Terms,
    clock: Arc<dyn Clock>,
    known: Option<Known>,
    /// The uptime at which the last renewal of our own was begun.
    renewed_at: Option<Duration>,
    mine: watch::Sender<bool>,
    held: watch::Sender<bool>,
    elsewhere: watch::Sender<Option<SocketAddr>>,
}

/// The Lease as it was seen last.
#[derive(Clone, PartialEq, Debug)]
struct Known {
    holder: Option<String>,
    /// Where the holder serves, as it says.
    address: Option<SocketAddr>,
    duration: Duration,
    acquired: Option<MicroTime>,
    transitions: i32,
    version: String,
    /// The uptime at which this version was first seen.
    seen_at: Duration,
}

/// What a candidate does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    /// Writes its own name.
    Take,
    /// Nothing before this uptime, unless the Lease changes.
    Wait(Duration),
}

/// Whose the lead is by what is known, and what `me` does about it. Pure.
fn act(known: Option<&Known>, me: &str, terms: Terms, renewed_at: Option<Duration>, now: Duration) -> Act {
    let Some(known) = known else { return Act::Take };
    match (known.holder.as_deref(), renewed_at) {
        (None, _) => Act::Take,
        (Some(holder), Some(renewed_at)) if holder == me => {
            let due = renewed_at + terms.renew_every();
            if now >= due { Act::Take } else { Act::Wait(due) }
        }
        (Some(_), _) => {
            let due = known.seen_at + known.duration;
            if now >= due { Act::Take } else { Act::Wait(due) }
        }
    }
}

fn leads(known: Option<&Known>, me: &str, terms: Terms, renewed_at: Option<Duration>, now: Duration) -> bool {
    known.is_some_and(|known| known.holder.as_deref() == Some(me))
        && renewed_at.is_some_and(|renewed_at| now < renewed_at + terms.step_down())
}

fn is_held(known: Option<&Known>, now: Duration) -> bool {
    known.is_some_and(|known| known.holder.is_some() && now < known.seen_at + known.duration)
}

/// Whether the value is a new one.
fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) -> bool {
    sender.send_if_modified(|before| {
        let changed = *before != value;
        *before = value;
        changed
    })
}

impl Candidate {
    /// A candidate for the lead among the replicas in this namespace.
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        me: Me,
        terms: Terms,
        clock: Arc<dyn Clock>,
    ) -> (Candidate, Lead) {
        let (mine, held) = (watch::Sender::new(false), watch::Sender::new(false));
        let elsewhere = watch::Sender::new(None);
        let lead = Lead { mine: mine.subscribe(), held: held.subscribe(), elsewhere: elsewhere.subscribe() };
        let api = Api::namespaced(client, namespace);
        let (known, renewed_at) = (None, None);
        (Candidate { api, me, terms, clock, known, renewed_at, mine, held, elsewhere }, lead)
    }

    /// Takes the lead whenever it is free and keeps it, until shutdown; then gives it to whoever waits for it.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut seen = watcher::watch_object(self.api.clone(), NAME).default_backoff().boxed();
        // Whoever leads is known before anything is taken from them.
        tokio::select! {
            () = shutdown.cancelled() => return,
            first = seen.next() => self.note_watched(first),
        }
        loop {
            self.tell();
            let now = self.clock.uptime();
            let pause = match act(self.known.as_ref(), &self.me.name, self.terms, self.renewed_at, now) {
                Act::Wait(until) => until.saturating_sub(now),
                Act::Take if self.take().await => continue,
                Act::Take => self.terms.retry(),
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                lease = seen.next() => self.note_watched(lease),
                () = sleep(pause) => {}
            }
        }
        self.mine.send_replace(false);
        self.release().await;
    }

    fn tell(&self) {
        let now = self.clock.uptime();
        let leads = leads(self.known.as_ref(), &self.me.name, self.terms, self.renewed_at, now);
        if set(&self.mine, leads) {
            tracing::info!(me = self.me.name, leads, "the lead");
        }
        let held = self.known.as_ref().filter(|known| is_held(Some(known), now));
        set(&self.held, held.is_some());
        // A name of ours without the lead: it was not renewed in time, and nobody has taken it yet.
        let other = held.filter(|known| known.holder.as_deref() != Some(&*self.me.name));
        set(&self.elsewhere, other.and_then(|known| known.address));
    }

    /// Writes our name into the Lease. True if that went well.
    async fn take(&mut self) -> bool {
        let begun_at = self.clock.uptime();
        match timeout(self.terms.write(), self.write(Some(&self.me.name))).await {
            Ok(Ok(lease)) => {
                self.renewed_at = Some(begun_at);
                self.note(&lease);
                true
            }
            Ok(Err(kube::Error::Api(refused))) if refused.code == 409 || refused.code == 404 => {
                // Somebody was faster, or deleted it. The watch may be away: look at once.
                match timeout(self.terms.write(), self.api.get_opt(NAME)).await {
                    Ok(Ok(Some(lease))) => self.note(&lease),
                    Ok(Ok(None)) => self.known = None,
                    Ok(Err(_)) | Err(_) => {}
                }
                false
            }
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the lead cannot be taken or kept");
                false
            }
            Err(_) => {
                let within = self.terms.write();
                tracing::warn!("the lead cannot be taken or kept: no answer within {within:?}");
                false
            }
        }
    }

    async fn release(&mut self) {
        if self.known.as_ref().is_none_or(|known| known.holder.as_deref() != Some(&*self.me.name)) {
            return;
        }
        match timeout(self.terms.write(), self.write(None)).await {
            Ok(Ok(_)) => tracing::info!("gave up the lead"),
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the lead was not given up");
            }
            Err(_) => tracing::warn!("the lead was not given up: no answer in time"),
        }
    }

    async fn write(&self, holder: Option<&str>) -> kube::Result<Lease> {
        let now = MicroTime(self.clock.now());
        let known = self.known.as_ref();
        let transitions = known.map_or(0, |known| known.transitions);
        let stays = known.is_some_and(|known| known.holder.as_deref() == holder);
        let address = holder.and(self.me.address).map(|address| (ADDRESS.to_owned(), address.to_string()));
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                resource_version: known.map(|known| known.version.clone()),
                annotations: Some(address.into_iter().collect()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.unwrap_or_default().to_owned()),
                lease_duration_seconds: i32::try_from(self.terms.duration.as_secs()).ok(),
                acquire_time: known
                    .filter(|_| stays)
                    .and_then(|known| known.acquired.clone())
                    .or_else(|| Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(if stays { transitions } else { transitions.saturating_add(1) }),
                ..LeaseSpec::default()
            }),
        };
        match known {
            None => self.api.create(&PostParams::default(), &lease).await,
            Some(_) => self.api.replace(NAME, &PostParams::default(), &lease).await,
        }
    }

    fn note_watched(&mut self, told: Option<watcher::Result<Option<Lease>>>) {
        match told {
            Some(Ok(Some(lease))) => self.note(&lease),
            Some(Ok(None)) => self.known = None,
            // What is known runs out by itself.
            Some(Err(_)) | None => {}
        }
    }

    fn note(&mut self, lease: &Lease) {
        let spec = lease.spec.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.known.as_ref().is_some_and(|known| known.version == version) {
            return;
        }
        let annotations = lease.metadata.annotations.as_ref();
        let address = annotations.and_then(|annotations| annotations.get(ADDRESS));
        self.known = Some(Known {
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            address: address.and_then(|address| address.parse().ok()),
            duration: spec
                .lease_duration_seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map_or(self.terms.duration, Duration::from_secs),
            acquired: spec.acquire_time,
            transitions: spec.lease_transitions.unwrap_or(0),
            version,
            seen_at: self.clock.uptime(),
        });
    }
}

/// Runs what `start` gives while this replica leads, anew whenever it leads again, until shutdown. What runs is dropped
/// where it waits when the lead is lost.
pub(crate) async fn while_leading<F: Future<Output = ()>>(
    lead: &Lead,
    shutdown: CancellationToken,
    start: impl Fn(CancellationToken) -> F,
) {
    let mut mine = lead.mine.clone();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            gained = mine.wait_for(|mine| *mine) => if gained.is_err() { return },
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            lost = mine.wait_for(|mine| !*mine) => if lost.is_err() { return },
            () = start(shutdown.clone()) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn held_by(holder: &str, seen_at: Duration) -> Known {
        Known {
            holder: (!holder.is_empty()).then(|| holder.to_owned()),
            address: None,
            duration: s(15),
            acquired: None,
            transitions: 0,
            version: "1".to_owned(),
            seen_at,
        }
    }

    /// What `a` does, whether it leads, and whether anybody does.
    fn check(
        known: Option<&Known>,
        renewed_at: Option<Duration>,
        now: Duration,
        expected: (Act, bool, bool),
    ) {
        let terms = Terms::lasting(s(15));
        let act = act(known, "a", terms, renewed_at, now);
        assert_eq!((act, leads(known, "a", terms, renewed_at, now), is_held(known, now)), expected);
    }

    #[test]
    fn what_is_free_is_taken() {
        check(None, None, s(1), (Act::Take, false, false));
        check(Some(&held_by("", s(0))), None, s(1), (Act::Take, false, false));
    }

    #[test]
    fn what_another_holds_is_waited_for() {
        let held = held_by("b", s(1));
        check(Some(&held), None, s(15), (Act::Wait(s(16)), false, true));
        check(Some(&held), None, s(16), (Act::Take, false, false));
        check(Some(&held), Some(s(14)), s(15), (Act::Wait(s(16)), false, true));
    }

    #[test]
    fn what_is_held_is_renewed_or_given_up_before_it_ends() {
        let held = held_by("a", s(1));
        check(Some(&held), Some(s(1)), s(2), (Act::Wait(s(3)), true, true));
        check(Some(&held), Some(s(1)), s(3), (Act::Take, true, true));
        check(Some(&held), Some(s(1)), s(11), (Act::Take, false, true));
        for seconds in [0, 3, 15, 60] {
            let terms = Terms::lasting(s(seconds));
            assert!(terms.step_down() + terms.write() < terms.duration, "it stops before another begins");
            assert!(terms.renew_every() + terms.write() < terms.step_down(), "it is renewed in time");
        }
    }

    #[test]
    fn a_name_from_before_is_not_believed() {
        check(Some(&held_by("a", s(1))), None, s(2), (Act::Wait(s(16)), false, true));
    }
}
