use super::{roster::tests::newcomer, *};
use crate::{clock::tests::HandClock, members::App};
use airlane_core::world::Health;
use jiff::Timestamp;
use tempfile::TempDir;

fn pay(mesh_port: u16) -> Newcomer {
    newcomer("shop", "pay", mesh_port)
}

fn peer(instance: &Instance) -> Peer {
    Peer {
        identity: "spiffe://airlane.local/ns/shop/sa/pay".parse().expect("an identity"),
        instance: instance.id.clone(),
        not_after: Timestamp::MAX,
    }
}

struct Running {
    registry: Arc<Registry>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn start(dir: &TempDir) -> Running {
    let store = Store::open(dir.path()).await.expect("opened");
    let clock = Arc::new(HandClock::at(Timestamp::UNIX_EPOCH));
    let registry = Registry::restore(store, Heartbeats::default(), clock).await.expect("restored");
    let (registry, shutdown) = (Arc::new(registry), CancellationToken::new());
    let task = tokio::spawn({
        let (registry, shutdown) = (Arc::clone(&registry), shutdown.clone());
        async move { registry.run(shutdown).await }
    });
    Running { registry, shutdown, task }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("no panic");
        self.registry.store.close().await;
    }
}

#[tokio::test]
async fn watchers_see_changes_and_a_restart_serves_what_was_registered() {
    let dir = tempfile::tempdir().expect("tempdir");
    let running = start(&dir).await;
    let registry = &running.registry;
    let mut watch = registry.watch();
    assert!(watch.borrow_and_update().is_empty());
    let joined = registry.join(pay(9000), None).await.expect("let in");
    assert_eq!(registry.store.registrations().await.expect("read").len(), 1, "remembered when let in");
    assert_eq!(
        registry.heartbeat(&peer(&joined), Beat { app: App::Healthy, ..Beat::default() }),
        Some(false)
    );
    registry.mark_proxy_ready(&joined.id);
    assert_eq!(watch.borrow_and_update()[&joined.id].health, Health::Healthy);
    registry.heartbeat(&peer(&joined), Beat { app: App::Healthy, ..Beat::default() });
    assert!(!watch.has_changed().expect("open"), "nothing changed");
    running.stop().await;

    let running = start(&dir).await;
    let instances = Arc::clone(&running.registry.watch().borrow());
    assert_eq!(instances[&joined.id].health, Health::Healthy, "served at once");
    assert!(running.registry.instance_of(&peer(&joined)).is_some());
    running.registry.leave(&peer(&joined));
    running.stop().await;

    let running = start(&dir).await;
    assert!(running.registry.watch().borrow().is_empty(), "who left stays forgotten");
    running.stop().await;
}

#[tokio::test]
async fn a_peer_of_another_identity_moves_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let running = start(&dir).await;
    let registry = &running.registry;
    let joined = registry.join(pay(9000), None).await.expect("let in");
    let before = Arc::clone(&registry.watch().borrow());
    let other = Peer {
        identity: "spiffe://airlane.local/ns/shop/sa/orders".parse().expect("an identity"),
        ..peer(&joined)
    };
    assert_eq!(registry.heartbeat(&other, Beat::default()), None);
    assert!(registry.instance_of(&other).is_none());
    registry.drain(&other);
    registry.leave(&other);
    assert!(Arc::ptr_eq(&before, &registry.watch().borrow()));
    running.stop().await;
}

#[tokio::test]
async fn a_sick_disk_keeps_nobody_out() {
    let dir = tempfile::tempdir().expect("tempdir");
    let running = start(&dir).await;
    running.registry.store.close().await;
    let joined = timeout(Duration::from_secs(10), running.registry.join(pay(9000), None)).await;
    let joined = joined.expect("in time").expect("let in");
    assert!(running.registry.watch().borrow().contains_key(&joined.id));
    running.stop().await;
}
