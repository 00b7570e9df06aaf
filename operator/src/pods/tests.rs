use super::{
    roll::tests::{observed, pod},
    *,
};
use crate::clock::tests::HandClock;
use airlane_core::world::Health;
use jiff::Timestamp;
use std::collections::BTreeMap;

fn peer(account: &str) -> Peer {
    Peer {
        identity: format!("spiffe://airlane.local/ns/shop/sa/{account}").parse().expect("an identity"),
        instance: pod(Health::Healthy).id,
        not_after: Timestamp::MAX,
    }
}

struct Running {
    pods: Arc<Pods>,
    clock: Arc<HandClock>,
    observed: watch::Sender<Instances>,
    published: watch::Receiver<Instances>,
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn start(first: &Instances) -> Running {
    let clock = Arc::new(HandClock::at(Timestamp::UNIX_EPOCH));
    let (sender, receiver) = watch::channel(Arc::clone(first));
    let pods = Arc::new(Pods::new(receiver, Arc::clone(&clock) as Arc<dyn Clock>));
    let shutdown = CancellationToken::new();
    tokio::spawn({
        let (pods, shutdown) = (Arc::clone(&pods), shutdown.clone());
        async move { pods.run(shutdown).await }
    });
    Running { published: pods.watch(), pods, clock, observed: sender, shutdown }
}

impl Running {
    async fn until(&mut self, health: Option<Health>) {
        let instance = pod(Health::Healthy).id;
        let published = self
            .published
            .wait_for(|instances| instances.get(&instance).map(|instance| instance.health) == health);
        let waited = timeout(Duration::from_secs(10), published).await;
        assert!(waited.is_ok(), "not {health:?} in time");
    }
}

#[tokio::test]
async fn watchers_see_what_is_observed_and_what_is_heard() {
    let mut running = start(&Instances::default());
    running.observed.send_replace(observed(Health::Healthy));
    running.until(Some(Health::Healthy)).await;
    running.pods.drain(&peer("orders"));
    assert!(!running.published.has_changed().expect("open"), "who is somebody else moves nothing");
    running.pods.drain(&peer("pay"));
    running.until(Some(Health::Draining)).await;
    running.observed.send_replace(Instances::default());
    running.until(None).await;
    assert_eq!(running.pods.heartbeat(&peer("pay"), Beat::default()), None, "a deleted pod is nobody");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_not_deleted_stays() {
    let running = start(&observed(Health::Healthy));
    let peer = peer("pay");
    let stays = || running.pods.stays(&peer, Duration::from_secs(1));
    running.pods.drain(&peer);
    assert!(stays().await, "its own word does not count");
    let (late, ()) = tokio::join!(stays(), async {
        tokio::task::yield_now().await;
        running.observed.send_replace(observed(Health::Draining));
    });
    assert!(!late, "the news came after the question");
    running.observed.send_replace(Instances::default());
    assert!(!stays().await);
}

#[tokio::test]
async fn a_pod_that_speaks_before_it_is_seen_is_waited_for() {
    let running = start(&Instances::default());
    let instance = pod(Health::Healthy).id;
    assert!(running.pods.observed(&instance, Duration::from_millis(1)).await.is_none());
    let waiting = tokio::spawn({
        let (pods, instance) = (Arc::clone(&running.pods), instance.clone());
        async move { pods.observed(&instance, Duration::from_secs(60)).await }
    });
    running.observed.send_replace(observed(Health::Starting));
    let seen = timeout(Duration::from_secs(10), waiting).await.expect("in time").expect("no panic");
    assert_eq!(seen.map(|pod| pod.id.clone()), Some(instance));
}

#[tokio::test]
async fn a_hold_ends_by_itself() {
    let mut running = start(&observed(Health::Healthy));
    let instance = pod(Health::Healthy).id;
    running.pods.joined(&instance, true);
    running.until(Some(Health::Starting)).await;
    assert_eq!(running.pods.without_proxy(), [instance]);
    // Nearly over: what is left of it passes in real time, with nothing else to wake anybody.
    running.clock.advance(Duration::from_millis(29_950));
    running.observed.send_replace(observed(Health::Healthy));
    running.clock.advance(Duration::from_millis(50));
    running.until(Some(Health::Healthy)).await;
    assert_eq!(running.pods.without_proxy(), [] as [InstanceId; 0]);
}

#[tokio::test]
async fn a_sidecar_that_never_stopped_keeps_its_pod_in_rotation() {
    let running = start(&observed(Health::Healthy));
    running.pods.joined(&pod(Health::Healthy).id, false);
    let published: BTreeMap<_, _> = (**running.published.borrow()).clone();
    assert_eq!(published[&pod(Health::Healthy).id].health, Health::Healthy);
}
