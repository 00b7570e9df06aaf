use super::*;
use crate::members::{OUTLIERS_KEPT, Outlier, TEXT_MAX};
use airlane_core::{
    id::{Name, Namespace, Revision, ServiceId, WorkloadRevision},
    world::{InstancePort, Protocol},
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn at(s: i64) -> Timestamp {
    Timestamp::from_second(s).expect("in range")
}

fn identity(namespace: &str, service: &str) -> Identity {
    format!("spiffe://airlane.local/ns/{namespace}/sa/{service}").parse().expect("an identity")
}

/// A copy of a service with one port, which calls as well.
pub(in crate::registry) fn newcomer(namespace: &str, service: &str, mesh_port: u16) -> Newcomer {
    let namespace = Namespace::parse(namespace).expect("a namespace");
    let name = Name::parse(service).expect("a name");
    Newcomer {
        workload: WorkloadRevision {
            namespace: namespace.clone(),
            workload: name.clone(),
            revision: Revision::parse("v1").expect("a revision"),
        },
        service_account: name.clone().into(),
        services: [ServiceId { namespace, name }].into(),
        address: [127, 0, 0, 1].into(),
        ports: vec![InstancePort {
            service: 80,
            app: 8080,
            mesh: mesh_port,
            protocol: Protocol::Http,
            of: None,
            past_proxy: false,
        }],
        outbound_port: 15001,
    }
}

fn empty() -> Roster {
    Roster::restore(Heartbeats::default(), vec![], ms(0))
}

fn join(roster: &mut Roster, newcomer: Newcomer, had: Option<&str>, now: u64) -> Result<InstanceId, Turned> {
    let had = had.map(|id| InstanceId::parse(id).expect("a name"));
    roster.join(newcomer, had, at(0), ms(now), 0).map(|joined| joined.id.clone())
}

fn pay(roster: &mut Roster) -> InstanceId {
    join(roster, newcomer("shop", "pay", 9000), None, 0).expect("let in")
}

fn beat(roster: &mut Roster, id: &InstanceId, app: App, now: u64) -> Option<bool> {
    roster.heartbeat(id, &identity("shop", "pay"), Beat { app, ..Beat::default() }, ms(now))
}

fn check_health(roster: &Roster, id: &InstanceId, expected: Health) {
    assert_eq!(roster.instances().get(id).map(|i| i.health), Some(expected));
}

#[test]
fn an_instance_is_healthy_when_its_application_and_its_proxy_are_ready() {
    let mut roster = empty();
    let id = pay(&mut roster);
    check_health(&roster, &id, Health::Starting);
    beat(&mut roster, &id, App::Healthy, 1);
    check_health(&roster, &id, Health::Starting);
    roster.mark_proxy_ready(&id);
    check_health(&roster, &id, Health::Healthy);
    beat(&mut roster, &id, App::Unhealthy, 2);
    check_health(&roster, &id, Health::Unhealthy);
    beat(&mut roster, &id, App::Healthy, 3);
    check_health(&roster, &id, Health::Healthy);
    roster.drain(&id);
    beat(&mut roster, &id, App::Healthy, 4);
    check_health(&roster, &id, Health::Draining);
    roster.leave(&id);
    assert!(roster.instances().is_empty());
}

#[test]
fn the_proxy_may_be_ready_before_the_application() {
    let mut roster = empty();
    let id = pay(&mut roster);
    roster.mark_proxy_ready(&id);
    check_health(&roster, &id, Health::Starting);
    beat(&mut roster, &id, App::Healthy, 1);
    check_health(&roster, &id, Health::Healthy);
}

#[test]
fn silence_is_forgiven_until_it_lasts_too_long() {
    let mut roster = empty();
    let id = pay(&mut roster);
    for now in (500..=5000).step_by(500) {
        assert_eq!(roster.tick(ms(now)), [], "at {now} ms");
    }
    assert_eq!(roster.tick(ms(5500)), std::slice::from_ref(&id));
    assert!(roster.instances().is_empty());
    assert_eq!(beat(&mut roster, &id, App::Healthy, 5600), None, "it has to join again");
}

#[test]
fn who_is_connected_may_be_silent_for_longer() {
    let mut roster = empty();
    let id = pay(&mut roster);
    roster.connected(&[id.clone()].into());
    for now in (500..=60_000).step_by(500) {
        assert_eq!(roster.tick(ms(now)), [], "at {now} ms");
    }
    assert_eq!(roster.tick(ms(60_500)), std::slice::from_ref(&id), "it hangs");
    let id = pay(&mut roster);
    roster.connected(&[id.clone()].into());
    roster.tick(ms(70_000));
    roster.connected(&BTreeSet::new());
    for now in (70_500..=75_000).step_by(500) {
        roster.tick(ms(now));
    }
    assert_eq!(roster.tick(ms(75_500)), [id], "it died");
}

#[test]
fn an_operator_that_was_stopped_blames_itself() {
    let mut roster = empty();
    let id = pay(&mut roster);
    assert_eq!(roster.tick(ms(1000)), []);
    assert_eq!(roster.tick(ms(31_000)), [], "it was stopped for 30 s");
    for now in (31_500..=36_000).step_by(500) {
        assert_eq!(roster.tick(ms(now)), [], "at {now} ms");
    }
    assert_eq!(roster.tick(ms(36_500)), [id], "and then the silence is theirs");
}

#[test]
fn a_restart_restores_what_was_remembered() {
    let mut roster = empty();
    let id = pay(&mut roster);
    beat(&mut roster, &id, App::Healthy, 1);
    roster.mark_proxy_ready(&id);
    let changes = roster.take_changes();
    assert_eq!(changes.saved.len(), 1);
    assert!(!roster.is_dirty());
    let mut restored = Roster::restore(Heartbeats::default(), changes.saved, ms(0));
    assert_eq!(restored.instances(), roster.instances());
    check_health(&restored, &id, Health::Healthy);
    assert!(!restored.is_dirty());
    assert_eq!(beat(&mut restored, &id, App::Healthy, 100), Some(false), "it need not join again");
}

#[test]
fn nothing_is_published_or_written_when_nothing_changed() {
    let mut roster = empty();
    let id = pay(&mut roster);
    beat(&mut roster, &id, App::Healthy, 1);
    roster.mark_proxy_ready(&id);
    roster.take_changes();
    let before = Arc::clone(roster.instances());
    beat(&mut roster, &id, App::Healthy, 2);
    roster.mark_proxy_ready(&id);
    roster.tick(ms(500));
    assert!(Arc::ptr_eq(&before, roster.instances()));
    assert!(!roster.is_dirty());
}

#[test]
fn changes_that_were_not_written_are_written_later() {
    let mut roster = empty();
    let id = pay(&mut roster);
    let lost = roster.take_changes();
    roster.leave(&id);
    roster.retry(lost);
    let changes = roster.take_changes();
    assert_eq!((changes.saved, changes.forgotten), (vec![], vec![id]));
}

#[test]
fn names_are_unique_and_fit_a_dns_label() {
    let mut roster = empty();
    assert_eq!(pay(&mut roster).as_str(), "pay-v1-bbbbb");
    let second = join(&mut roster, newcomer("shop", "pay", 9001), None, 0).expect("let in");
    assert_eq!(second.as_str(), "pay-v1-cbbbb");
    let elsewhere = join(&mut roster, newcomer("other", "pay", 9002), None, 0).expect("let in");
    assert_eq!(elsewhere.as_str(), "pay-v1-dbbbb", "unique in the mesh, not in the namespace");
    let long = "x".repeat(63);
    let long = join(&mut roster, newcomer("shop", &long, 9003), None, 0).expect("let in");
    assert!(long.as_str().len() <= 63);
}

#[test]
fn who_was_forgotten_comes_back_under_its_name() {
    let mut roster = empty();
    let id = pay(&mut roster);
    roster.leave(&id);
    assert_eq!(join(&mut roster, newcomer("shop", "pay", 9000), Some(id.as_str()), 0), Ok(id.clone()));
    assert_eq!(join(&mut roster, newcomer("shop", "pay", 9000), Some(id.as_str()), 0), Ok(id.clone()));
    assert_eq!(roster.instances().len(), 1);
    check_health(&roster, &id, Health::Starting);
    beat(&mut roster, &id, App::Healthy, 1);
    check_health(&roster, &id, Health::Healthy);
}

#[test]
fn nobody_takes_the_name_of_another() {
    let mut roster = empty();
    let id = pay(&mut roster);
    let taken = Some(id.as_str());
    assert_eq!(join(&mut roster, newcomer("shop", "pay", 9001), taken, 1), Err(Turned::NameTaken));
    assert_eq!(join(&mut roster, newcomer("other", "pay", 9001), taken, 1), Err(Turned::NameTaken));
    for name in ["orders-v1-a", "pay-v2-a", "pay-v1", "pay-v1-a-b", "pay-v1-abcdefg", "pay-v10-a"] {
        let joined = join(&mut roster, newcomer("shop", "pay", 9001), Some(name), 1);
        assert_eq!(joined, Err(Turned::NotYours), "{name}");
    }
    let stranger = identity("shop", "orders");
    assert!(roster.member(&id, &stranger).is_none());
    assert_eq!(roster.heartbeat(&id, &stranger, Beat::default(), ms(2)), None);
}

#[test]
fn a_new_copy_in_the_old_place_replaces_the_old_one() {
    let mut roster = empty();
    pay(&mut roster);
    let next = pay(&mut roster);
    assert_eq!(roster.instances().keys().collect::<Vec<_>>(), [&next]);
    let orders = join(&mut roster, newcomer("shop", "orders", 9000), None, 2).expect("let in");
    assert_eq!(
        roster.instances().keys().collect::<Vec<_>>(),
        [&orders, &next],
        "another workload replaces nobody"
    );
}

#[test]
fn a_member_that_joins_again_as_it_was_stays_in_rotation() {
    let mut roster = empty();
    let id = pay(&mut roster);
    beat(&mut roster, &id, App::Healthy, 1);
    roster.mark_proxy_ready(&id);
    let again = |roster: &mut Roster, newcomer| join(roster, newcomer, Some(id.as_str()), 2);
    assert_eq!(again(&mut roster, newcomer("shop", "pay", 9000)), Ok(id.clone()));
    check_health(&roster, &id, Health::Healthy);
    let changed = Newcomer { outbound_port: 1, ..newcomer("shop", "pay", 9000) };
    assert_eq!(again(&mut roster, changed), Ok(id.clone()));
    check_health(&roster, &id, Health::Starting);
}

#[test]
fn the_name_of_a_silent_member_is_free_for_its_workload() {
    let mut roster = empty();
    let id = pay(&mut roster);
    let moved = || newcomer("shop", "pay", 9001);
    assert_eq!(join(&mut roster, moved(), Some(id.as_str()), 2_500), Err(Turned::NameTaken));
    let elsewhere = newcomer("other", "pay", 9001);
    assert_eq!(join(&mut roster, elsewhere, Some(id.as_str()), 2_501), Err(Turned::NameTaken));
    assert_eq!(join(&mut roster, moved(), Some(id.as_str()), 2_501), Ok(id));
}

#[test]
fn what_sidecars_say_is_bounded_and_printable() {
    let mut roster = empty();
    let id = pay(&mut roster);
    let outlier = |n: u32| Outlier {
        cluster: format!("\u{1b}[2J{}", "x".repeat(1000)),
        upstream: String::new(),
        ejected: true,
        reason: String::new(),
        ejections: n,
        at: at(0),
    };
    for n in 0..1000 {
        let beat = Beat { outliers: vec![outlier(n)], reason: "y".repeat(1000), ..Beat::default() };
        roster.heartbeat(&id, &identity("shop", "pay"), beat, ms(1)).expect("known");
    }
    let member = roster.member(&id, &identity("shop", "pay")).expect("known");
    assert_eq!(member.said.outliers.len(), OUTLIERS_KEPT);
    assert_eq!(member.said.outliers.back().map(|o| o.ejections), Some(999), "the newest stay");
    let text = &member.said.outliers[0].cluster;
    assert!(text.len() == TEXT_MAX && !text.contains('\u{1b}'), "{text:?}");
    assert_eq!(member.said.reason.len(), TEXT_MAX);
}

#[test]
fn a_renewal_is_asked_for_until_it_is_made() {
    let mut roster = empty();
    let id = pay(&mut roster);
    assert_eq!(beat(&mut roster, &id, App::Healthy, 1), Some(false));
    roster.ask_renewal(None);
    assert_eq!(beat(&mut roster, &id, App::Healthy, 2), Some(true));
    assert_eq!(beat(&mut roster, &id, App::Healthy, 3), Some(true));
    roster.renewed(&id);
    assert_eq!(beat(&mut roster, &id, App::Healthy, 4), Some(false));
}
