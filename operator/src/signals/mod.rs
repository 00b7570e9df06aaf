//! What proxies report: totals each second by OpenTelemetry, failures within a tenth of a second by access log.
//!
//! Reports are untrusted until their sender is known, and count only for destinations published to it. The
//! receivers translate; [`intake::Intake`] keeps the books, at the replica that judges.

pub(crate) mod access_log;
pub(crate) mod denial;
pub(crate) mod gate;
pub(crate) mod intake;
pub(crate) mod metrics;

use crate::{members::Members, tls::Peer};
use airlane_core::{
    id::{ClusterName, InstanceId},
    mesh::Mesh,
};
use intake::{Failure, Intake, Window};
use jiff::Timestamp;
use std::{
    collections::HashSet,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::Status;

/// What a proxy reported, when it is known who that is and that it may.
#[derive(Clone, Debug)]
pub(crate) enum Signal {
    /// What it counted.
    Window(InstanceId, Window),
    /// What failed.
    Failures(InstanceId, Vec<Failure>),
    /// Its log broke: what was under way is lost.
    LogBroke(InstanceId),
}

/// Where signals go: to whoever judges.
#[derive(Debug)]
pub(crate) enum Way {
    /// Into the books of this process.
    Here,
    /// To the replica that leads.
    Onward(Queue),
    /// Nobody judges, or it is not known who does: they are dropped. Whoever judges next begins new books.
    Nowhere,
}

/// Signals that wait to be passed on: a few seconds of ten thousand proxies.
const QUEUED: usize = 32_768;

/// What they may take in memory, in bytes. However much proxies report, a replica lives.
const QUEUED_BYTES: usize = 64 * 1024 * 1024;

/// The side of a queue that signals are put into. Bounded by number and by what they take.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    onward: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

/// A signal with the room that it takes in its queue.
#[derive(Debug)]
pub(crate) struct Queued {
    /// The signal.
    pub(crate) signal: Signal,
    _room: OwnedSemaphorePermit,
}

impl Queue {
    /// An empty one, and its other side.
    pub(crate) fn new() -> (Queue, mpsc::Receiver<Queued>) {
        Queue::of(QUEUED, QUEUED_BYTES)
    }

    fn of(signals: usize, bytes: usize) -> (Queue, mpsc::Receiver<Queued>) {
        let (onward, other_side) = mpsc::channel(signals);
        (Queue { onward, room: Arc::new(Semaphore::new(bytes)) }, other_side)
    }

    /// Puts a signal in; `None` if there is no room, or nobody at the other side.
    fn put(&self, signal: Signal) -> Option<()> {
        let room = Arc::clone(&self.room).try_acquire_many_owned(signal.bytes()).ok()?;
        self.onward.try_send(Queued { signal, _room: room }).ok()
    }
}

impl Signal {
    /// About what it takes in memory, in bytes.
    fn bytes(&self) -> u32 {
        // With the names that a cluster's name is made of.
        const ENTRY: usize = 256;
        let entries = match self {
            Signal::Window(_, window) => window.clusters.len() + window.ejecting.len(),
            Signal::Failures(_, failures) => failures.len(),
            Signal::LogBroke(_) => 0,
        };
        u32::try_from((1 + entries) * ENTRY).unwrap_or(u32::MAX)
    }
}

/// The books, shared by the receivers and the rollouts that read them.
#[derive(Clone)]
pub(crate) struct Signals {
    intake: Arc<Mutex<Intake>>,
    way: Arc<Mutex<(Way, u64)>>,
    published: watch::Receiver<Arc<HashSet<ClusterName>>>,
    failures: Arc<tokio::sync::Notify>,
}

impl Signals {
    /// Empty books that accept evidence about the clusters in `published`.
    pub(crate) fn new(published: watch::Receiver<Arc<HashSet<ClusterName>>>) -> Self {
        let way = Arc::new(Mutex::new((Way::Here, 0)));
        Signals { intake: Arc::default(), way, published, failures: Arc::default() }
    }

    /// Sends signals another way from now on. The books are empty afterwards.
    pub(crate) fn turn(&self, way: Way) {
        let (before, dropped) = mem::replace(&mut *locked(&self.way), (way, 0));
        if dropped > 0 {
            tracing::info!(dropped, way = ?before, "signals did not reach whoever judges");
        }
        self.with(|intake| *intake = Intake::default());
    }

    /// Takes what a proxy reported at this moment to whoever judges.
    pub(crate) fn take(&self, signal: Signal, now: Timestamp) {
        let mut way = locked(&self.way);
        match &way.0 {
            Way::Here => {
                drop(way);
                self.enter(signal, now);
            }
            Way::Onward(leader) => {
                if leader.put(signal).is_none() {
                    // A gap in a log would not be noticed; the leader doubts whatever is reported after the stream
                    // from here began anew.
                    *way = (Way::Nowhere, 1);
                }
            }
            Way::Nowhere => way.1 += 1,
        }
    }

    fn enter(&self, signal: Signal, now: Timestamp) {
        match signal {
            Signal::Window(caller, window) => {
                self.with(|intake| intake.window(&caller, window, now));
            }
            Signal::LogBroke(caller) => self.with(|intake| intake.log_broke(&caller)),
            Signal::Failures(caller, failures) => {
                self.with(|intake| failures.into_iter().for_each(|failure| intake.failure(&caller, failure)));
                self.failures.notify_one();
            }
        }
    }

    /// Reads or writes the books; never held across an await.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Intake) -> T) -> T {
        f(&mut locked(&self.intake))
    }

    /// Whether a cluster is published, so that evidence about it may count.
    pub(crate) fn is_published(&self, cluster: &ClusterName) -> bool {
        self.published.borrow().contains(cluster)
    }

    /// Returns once a failure was logged after the last call.
    pub(crate) async fn failure_logged(&self) {
        self.failures.notified().await;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A certificate alone does not prove that its bearer is still in the mesh.
fn registered(members: &dyn Members, peer: &Peer) -> Result<(), Status> {
    match members.instance_of(peer) {
        Some(_) => Ok(()),
        None => Err(Status::permission_denied("this instance is not registered; join again")),
    }
}

/// The clusters of a mesh: what evidence may be about.
pub(crate) fn clusters_of(mesh: &Mesh) -> HashSet<ClusterName> {
    mesh.destinations
        .values()
        .flat_map(|destination| destination.clusters.iter())
        .map(|cluster| cluster.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use intake::Totals;

    fn broke() -> Signal {
        Signal::LogBroke(InstanceId::parse("front-abcd").expect("a name"))
    }

    #[test]
    fn signals_go_where_they_are_judged_and_nowhere_else() {
        let signals = Signals::new(watch::Sender::default().subscribe());
        let window = || Signal::Window(InstanceId::parse("front-abcd").expect("a name"), Window::default());
        let heard = |signals: &Signals| {
            let caller = InstanceId::parse("front-abcd").expect("a name");
            signals.with(|intake| intake.last_heard_at(&caller)).is_some()
        };
        signals.take(window(), Timestamp::UNIX_EPOCH);
        assert!(heard(&signals), "whoever does not know of others judges itself");
        signals.turn(Way::Nowhere);
        assert!(!heard(&signals), "the next judge begins new books");
        signals.take(window(), Timestamp::UNIX_EPOCH);
        assert!(!heard(&signals), "nobody judges");

        let (leader, mut passed_on) = Queue::of(2, QUEUED_BYTES);
        signals.turn(Way::Onward(leader));
        signals.take(window(), Timestamp::UNIX_EPOCH);
        assert!(matches!(passed_on.try_recv(), Ok(Queued { signal: Signal::Window(..), .. })));
        assert!(!heard(&signals), "the leader's books are the only ones");
    }

    #[test]
    fn a_flood_ends_the_stream_and_leaves_no_gap_unnoticed() {
        let signals = Signals::new(watch::Sender::default().subscribe());
        let (leader, mut passed_on) = Queue::of(2, QUEUED_BYTES);
        signals.turn(Way::Onward(leader));
        for _ in 0..4 {
            signals.take(broke(), Timestamp::UNIX_EPOCH);
        }
        assert!(passed_on.try_recv().is_ok() && passed_on.try_recv().is_ok());
        assert_eq!(passed_on.try_recv().err(), Some(mpsc::error::TryRecvError::Disconnected));
    }

    #[test]
    fn what_waits_is_bounded_by_what_it_takes() {
        let (queue, mut passed_on) = Queue::of(100, 4_096);
        let clusters =
            (1..8_u16).map(|port| (format!("{port}|pay|shop").parse().expect("one"), Totals::default()));
        let window = Window { clusters: clusters.collect(), ..Window::default() };
        let caller = InstanceId::parse("front-abcd").expect("a name");
        let put = || queue.put(Signal::Window(caller.clone(), window.clone()));
        assert_eq!([put(), put(), put()], [Some(()), Some(()), None]);
        drop(passed_on.try_recv().expect("the first"));
        assert_eq!(put(), Some(()), "what was passed on takes no room");
    }
}
