use super::*;
use crate::members::{App, Outlier};
use airlane_core::id::{Name, Namespace, Revision, WorkloadRevision};
use jiff::Timestamp;

const SECOND: Duration = Duration::from_secs(1);

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

fn id() -> InstanceId {
    InstanceId::parse("pay-0f4c8e2a").expect("an instance")
}

fn identity() -> Identity {
    "spiffe://airlane.local/ns/shop/sa/pay".parse().expect("an identity")
}

pub(in crate::pods) fn pod(health: Health) -> Instance {
    Instance {
        id: id(),
        workload: WorkloadRevision {
            namespace: Namespace::parse("shop").expect("a namespace"),
            workload: name("pay"),
            revision: Revision::parse("v1").expect("a revision"),
        },
        service_account: name("pay").into(),
        services: [].into(),
        address: [10, 0, 0, 1].into(),
        ipv6: false,
        ports: vec![],
        outbound_port: 15001,
        interception: Interception::Transparent,
        stops_within: std::time::Duration::ZERO,
        health,
    }
}

pub(in crate::pods) fn observed(health: Health) -> Instances {
    Arc::new(BTreeMap::from([(id(), Arc::new(pod(health)))]))
}

/// What happens to the one pod, a second after what happened before.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// Kubernetes says this of it.
    Is(Health),
    /// It is deleted.
    Gone,
    /// Its sidecar joins, having just started.
    Starts,
    /// Its proxy acknowledges its listeners.
    Acknowledges,
    /// It asks to be taken out of rotation.
    Drains,
    /// Nothing, for this many seconds.
    Passes(u32),
}

/// Plays events before a replica that starts when the pod is already there, and compares what is published after each.
fn check(first: Health, events: &[(Event, Option<Health>)]) {
    let mut roll = Roll::default();
    let mut now = SECOND;
    let mut seen = observed(first);
    roll.observe(&seen, now);
    let published = |roll: &Roll| roll.published().get(&id()).map(|pod| pod.health);
    assert_eq!(published(&roll), Some(first), "at first, what Kubernetes says");
    for (number, (event, expected)) in events.iter().enumerate() {
        now += SECOND;
        match *event {
            Event::Is(health) => {
                seen = observed(health);
                roll.observe(&seen, now);
            }
            Event::Gone => {
                seen = Instances::default();
                roll.observe(&seen, now);
            }
            Event::Starts => roll.started(&id(), now),
            Event::Acknowledges => roll.proxy_in_place(&id()),
            Event::Drains => roll.leaving(&id(), now),
            Event::Passes(seconds) => {
                now += SECOND * seconds;
                roll.observe(&seen, now);
            }
        }
        assert_eq!(published(&roll), *expected, "event {number}, {event:?}, of {events:?}");
    }
}

#[test]
fn who_is_ready_when_a_replica_starts_stays_in_rotation_without_a_word() {
    use {Event::*, Health::*};
    check(Healthy, &[(Passes(600), Some(Healthy)), (Is(Healthy), Some(Healthy))]);
    check(Healthy, &[(Is(Unhealthy), Some(Unhealthy)), (Is(Healthy), Some(Healthy))]);
}

#[test]
fn a_new_pod_is_called_when_the_kubelet_says_so() {
    use {Event::*, Health::*};
    // The kubelet's word is enough: the acknowledgement may have gone to another replica.
    check(Starting, &[(Starts, Some(Starting)), (Is(Healthy), Some(Healthy))]);
    // An acknowledgement alone is not.
    check(
        Starting,
        &[(Starts, Some(Starting)), (Acknowledges, Some(Starting)), (Is(Healthy), Some(Healthy))],
    );
}

#[test]
fn a_proxy_that_starts_anew_in_a_ready_pod_is_not_called_before_it_is_in_place() {
    use {Event::*, Health::*};
    check(Healthy, &[(Starts, Some(Starting)), (Is(Healthy), Some(Starting)), (Acknowledges, Some(Healthy))]);
    // Or until the kubelet, which has noticed meanwhile, calls it ready again.
    check(
        Healthy,
        &[(Starts, Some(Starting)), (Is(Unhealthy), Some(Starting)), (Is(Healthy), Some(Healthy))],
    );
    // Or for a while: it may have acknowledged to another replica.
    check(Healthy, &[(Starts, Some(Starting)), (Passes(20), Some(Starting)), (Passes(20), Some(Healthy))]);
}

#[test]
fn a_pod_that_drains_is_not_called_until_it_is_gone() {
    use {Event::*, Health::*};
    check(
        Healthy,
        &[
            (Drains, Some(Draining)),
            (Is(Healthy), Some(Draining)),
            (Is(Draining), Some(Draining)),
            (Passes(600), Some(Draining)),
            (Gone, None),
        ],
    );
    check(Healthy, &[(Drains, Some(Draining)), (Is(Unhealthy), Some(Draining)), (Gone, None)]);
    check(Healthy, &[(Is(Draining), Some(Draining)), (Drains, Some(Draining)), (Starts, Some(Draining))]);
}

#[test]
fn a_pod_whose_application_was_only_restarted_is_called_again() {
    use {Event::*, Health::*};
    check(
        Healthy,
        &[(Drains, Some(Draining)), (Is(Unhealthy), Some(Draining)), (Is(Healthy), Some(Healthy))],
    );
    check(Unhealthy, &[(Drains, Some(Draining)), (Passes(20), Some(Draining)), (Is(Healthy), Some(Healthy))]);
    // Without a readiness probe the kubelet may never say otherwise.
    check(Healthy, &[(Drains, Some(Draining)), (Passes(20), Some(Draining)), (Passes(20), Some(Healthy))]);
    // Its sidecar was restarted: the new proxy counts.
    check(Healthy, &[(Drains, Some(Draining)), (Starts, Some(Starting)), (Acknowledges, Some(Healthy))]);
}

#[test]
fn a_pod_that_stops_slowly_is_left_out_for_as_long_as_it_may_take() {
    let still_held = |stops_within: u64, after: u64| {
        let slow = Instance {
            stops_within: SECOND * u32::try_from(stops_within).expect("short"),
            ..pod(Health::Healthy)
        };
        let seen: Instances = Arc::new(BTreeMap::from([(id(), Arc::new(slow))]));
        let mut roll = Roll::default();
        roll.observe(&seen, SECOND);
        roll.leaving(&id(), SECOND);
        roll.observe(&seen, SECOND + Duration::from_secs(after));
        roll.published()[&id()].health == Health::Draining
    };
    assert!(still_held(90, 89) && !still_held(90, 90));
    assert!(still_held(0, 29) && !still_held(0, 30));
    assert!(still_held(86_400, 299) && !still_held(86_400, 300));
}

#[test]
fn a_pod_of_the_same_name_owes_nothing_to_the_one_before() {
    use {Event::*, Health::*};
    check(Healthy, &[(Drains, Some(Draining)), (Gone, None), (Is(Healthy), Some(Healthy))]);
}

#[test]
fn what_did_not_change_is_the_same_allocation() {
    let mut roll = Roll::default();
    let seen = observed(Health::Healthy);
    roll.observe(&seen, SECOND);
    assert!(Arc::ptr_eq(roll.published(), &seen), "nothing is held");
    roll.leaving(&id(), SECOND);
    let before = Arc::clone(&roll.published()[&id()]);
    roll.observe(&observed(Health::Healthy), SECOND * 2);
    assert!(Arc::ptr_eq(&roll.published()[&id()], &before));
}

#[test]
fn only_a_pod_with_a_sidecar_and_the_identity_is_a_member() {
    let mut roll = Roll::default();
    roll.observe(&observed(Health::Healthy), SECOND);
    let outlier = Outlier {
        cluster: "80|a\u{1b}|b".into(),
        upstream: "10.0.0.2:80".into(),
        ejected: true,
        reason: String::new(),
        ejections: 1,
        at: Timestamp::UNIX_EPOCH,
    };
    let beat = Beat { app: App::Unhealthy, outliers: vec![outlier], ..Beat::default() };
    assert_eq!(roll.heartbeat(&id(), &identity(), beat.clone()), Some(false));
    assert_eq!(roll.published()[&id()].health, Health::Healthy, "the kubelet knows better");
    let [member] = &roll.members().collect::<Vec<_>>()[..] else { panic!("one member") };
    assert_eq!(member.said.outliers[0].cluster, "80|a|b");

    roll.ask_renewal(None);
    assert_eq!(roll.heartbeat(&id(), &identity(), beat.clone()), Some(true));
    roll.renewed(&id());
    assert_eq!(roll.heartbeat(&id(), &identity(), beat.clone()), Some(false));

    for other in ["spiffe://airlane.local/ns/shop/sa/orders", "spiffe://airlane.local/ns/bank/sa/pay"] {
        let other: Identity = other.parse().expect("an identity");
        assert_eq!(roll.heartbeat(&id(), &other, beat.clone()), None);
        assert_eq!(roll.member(&id(), &other), None);
    }
    let bare = Instance { interception: Interception::None, ..pod(Health::Healthy) };
    roll.observe(&Arc::new(BTreeMap::from([(id(), Arc::new(bare))])), SECOND);
    assert_eq!(roll.heartbeat(&id(), &identity(), beat), None);
    assert_eq!(roll.members().count(), 0);
}
