use super::*;
use airlane_core::{
    id::{Name, Namespace, WorkloadRevision},
    world::{Health, Interception},
};

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_000_000 + ms).expect("in range")
}
fn caller() -> InstanceId {
    InstanceId::parse("front-v1-abcd").expect("a name")
}
fn gatherer() -> Gatherer {
    let service: ClusterName = "80|pay|shop".parse().expect("a cluster");
    let comparison = Comparison {
        service: service.port.service,
        stable: Revision::parse("v1").expect("a name"),
        canary: Revision::parse("v2").expect("a name"),
    };
    let mut books = Gatherer::new(comparison, 0.1, BTreeSet::new(), at(0));
    books.books(&caller());
    books.note_usage(|_| Usage::Current(at(0)));
    books
}
fn failure() -> (InstanceId, Failure) {
    (caller(), Failure { cluster: "80|pay|shop|v2".parse().expect("a cluster"), endpoint: None, at: at(0) })
}
fn window(canary: Totals) -> Complete {
    let clusters = BTreeMap::from([("80|pay|shop|v2".parse().expect("a cluster"), canary)]);
    Complete { caller: caller(), clusters, until: at(0), log_in_doubt: false, lost: SignedDuration::ZERO }
}
fn gather(
    books: &mut Gatherer,
    failures: &[(InstanceId, Failure)],
    windows: &[Complete],
    now: Timestamp,
) -> Evidence {
    gather_among(books, &BTreeMap::from([(caller(), Arc::new(instance()))]), failures, windows, now)
}

fn gather_among(
    books: &mut Gatherer,
    instances: &BTreeMap<InstanceId, Arc<Instance>>,
    failures: &[(InstanceId, Failure)],
    windows: &[Complete],
    now: Timestamp,
) -> Evidence {
    let route_timeout = Millis(1_000);
    let around = Surroundings {
        endpoints: &HashMap::new(),
        canary_endpoints: 1,
        stood_in: None,
        route_timeout,
        instances,
    };
    books.gather(failures, windows, &around, now)
}
fn instance() -> Instance {
    let workload = WorkloadRevision {
        namespace: Namespace::parse("shop").expect("a name"),
        workload: Name::parse("front").expect("a name"),
        revision: Revision::parse("v1").expect("a name"),
    };
    Instance {
        id: caller(),
        service_account: workload.workload.clone().into(),
        workload,
        services: BTreeSet::new(),
        address: [127, 0, 0, 1].into(),
        ipv6: false,
        ports: Vec::new(),
        outbound_port: 15001,
        interception: Interception::Environment,
        stops_within: std::time::Duration::ZERO,
        health: Health::Healthy,
    }
}

#[test]
fn failures_run_ahead_of_the_window_that_counts_them() {
    let mut books = gatherer();
    let early = gather(&mut books, &[failure()], &[], at(100));
    assert_eq!(early.callers[0].failures.len(), 1);
    assert_eq!(early.callers[0].totals, None);
    let totals = Totals { sent: 10, good_tries: 9, failed_tries: 1, ..Totals::default() };
    let late = gather(&mut books, &[], &[window(totals)], at(1_000));
    let counted = late.callers[0].totals.expect("a window");
    assert_eq!(counted.canary, Attempts { started: 10, ended: 10, failed: 1 });
    assert!(counted.trusted);
}

#[test]
fn counters_that_know_more_failures_than_the_log_are_not_trusted() {
    let mut books = gatherer();
    let totals = Totals { sent: 10, good_tries: 8, failed_tries: 2, ..Totals::default() };
    let evidence = gather(&mut books, &[failure()], &[window(totals)], at(1_000));
    let counted = evidence.callers[0].totals.expect("a window");
    assert!(!counted.trusted);
    assert_eq!(counted.canary.failed, 2);
    let clean = Totals { sent: 10, good_tries: 10, ..Totals::default() };
    let after = gather(&mut books, &[], &[window(clean)], at(2_000));
    assert!(after.callers[0].totals.expect("a window").trusted, "the lost entry is told as a failure");
}

#[test]
fn a_log_in_doubt_is_trusted_with_nothing_about_the_canary() {
    for (sent, trusted) in [(0, true), (10, false)] {
        let totals = Totals { sent, good_tries: sent, ..Totals::default() };
        let first = Complete { log_in_doubt: true, ..window(totals) };
        let evidence = gather(&mut gatherer(), &[], &[first], at(1_000));
        assert_eq!(evidence.callers[0].totals.expect("a window").trusted, trusted);
    }
}

#[test]
fn lost_windows_count_as_failed() {
    let mut books = gatherer();
    let totals = |sent| Totals { sent, good_tries: sent, ..Totals::default() };
    gather(&mut books, &[], &[window(totals(20))], at(1_000));
    let later = Complete { lost: SignedDuration::from_secs(3), ..window(totals(5)) };
    let evidence = gather(&mut books, &[], &[later], at(5_000));
    assert_eq!(evidence.unreported, 60, "3 s of the larger rate");
    assert!(!evidence.callers[0].totals.expect("a window").trusted);
}

#[test]
fn a_coin_is_settled_while_it_is_certain() {
    let mut books = gatherer();
    let mut settled = |usage, now| {
        books.note_usage(|_| usage);
        gather(&mut books, &[failure()], &[], now).callers[0].coin
    };
    assert!(settled(Usage::Current(at(0)), at(100)).settled);
    assert!(!settled(Usage::Uncertain, at(200)).settled, "it may have fallen back to its routes");
    assert!(settled(Usage::Current(at(0)), at(300)).settled);
}

#[test]
fn callers_of_before_have_to_report_first() {
    let comparison = gatherer().comparison;
    let mut books = Gatherer::new(comparison, 0.1, BTreeSet::from([caller()]), at(0));
    assert_eq!(gather(&mut books, &[], &[], at(100)).missing, [caller()]);
    assert!(gather(&mut books, &[], &[window(Totals::default())], at(200)).missing.is_empty());
}

#[test]
fn a_retry_across_windows_is_no_first_attempt() {
    let mut books = gatherer();
    let begins = Totals { sent: 5, retries: 1, good_tries: 4, ..Totals::default() };
    let ends = Totals { good_tries: 1, ..Totals::default() };
    let first =
        gather(&mut books, &[], &[window(begins)], at(1_000)).callers[0].totals.expect("a window").canary;
    let second =
        gather(&mut books, &[], &[window(ends)], at(2_000)).callers[0].totals.expect("a window").canary;
    assert_eq!((first.ended, second.ended), (3, 1), "four requests, whichever try ended when");
}

#[test]
fn hanging_requests_are_not_clean() {
    let mut books = gatherer();
    let hanging = Totals { sent: 10, good_tries: 2, ..Totals::default() };
    let counted = gather(&mut books, &[], &[window(hanging)], at(1_000)).callers[0].totals.expect("a window");
    assert_eq!(counted.canary.ended, 2);
}

#[test]
fn silence_of_a_sender_is_missing_and_its_end_is_unreported() {
    let mut books = gatherer();
    let totals = Totals { sent: 7, good_tries: 7, ..Totals::default() };
    gather(&mut books, &[], &[window(totals)], at(0));
    assert_eq!(gather(&mut books, &[], &[], at(3_100)).missing, [caller()]);
    let evidence = gather_among(&mut books, &BTreeMap::new(), &[], &[], at(3_100));
    assert!(evidence.missing.is_empty());
    assert_eq!(evidence.unreported, 22, "7 a second for 3.1 s, rounded up");
}

#[test]
fn one_that_leaves_may_have_sent_until_then() {
    let mut books = gatherer();
    let totals = Totals { sent: 10, good_tries: 10, ..Totals::default() };
    gather(&mut books, &[], &[window(totals)], at(0));
    assert_eq!(gather_among(&mut books, &BTreeMap::new(), &[], &[], at(400)).unreported, 0);
    assert_eq!(gather_among(&mut books, &BTreeMap::new(), &[], &[], at(3_100)).unreported, 4);
}

#[test]
fn what_another_revision_answered_in_its_place_is_no_evidence_about_a_revision() {
    let mut books = gatherer();
    let stable = Instance { id: InstanceId::parse("pay-v1-abcd").expect("a name"), ..instance() };
    let address: SocketAddr = "10.244.0.1:8080".parse().expect("an address");
    let instances =
        BTreeMap::from([(caller(), Arc::new(instance())), (stable.id.clone(), Arc::new(stable.clone()))]);
    let endpoints = HashMap::from([(address, stable.id)]);
    let mut gather = |stood_in: Option<Arm>, failures: &[(InstanceId, Failure)], second: i64| {
        let around = Surroundings {
            endpoints: &endpoints,
            canary_endpoints: usize::from(stood_in != Some(Arm::Canary)),
            stood_in,
            route_timeout: Millis(1_000),
            instances: &instances,
        };
        let totals = Totals { sent: 10, good_tries: 10, ..Totals::default() };
        let mut evidence = books.gather(failures, &[window(totals)], &around, at(second * 1_000));
        let heard = evidence.callers.remove(0);
        (heard.failures.len(), heard.totals.expect("a window").canary.ended)
    };
    let (who, failed) = failure();
    let by_stable = (who, Failure { endpoint: Some(address), ..failed });
    assert_eq!(gather(None, &[], 1), (0, 10));
    assert_eq!(
        gather(Some(Arm::Canary), &[by_stable, failure()], 2),
        (1, 0),
        "the canary's own failure counts"
    );
    assert_eq!(gather(None, &[], 3), (0, 0), "a proxy may not know yet that the canary is back");
    assert_eq!(gather(None, &[], 8), (0, 10));
    assert_eq!(gather(Some(Arm::Stable), &[], 9), (0, 10), "what the canary answered as itself counts");
}

#[test]
fn a_third_version_in_stables_place_is_what_the_canary_is_compared_with() {
    let mut books = gatherer();
    let mut third = Instance { id: InstanceId::parse("pay-v0-abcd").expect("a name"), ..instance() };
    third.workload.revision = Revision::parse("v0").expect("a name");
    let address: SocketAddr = "10.244.0.1:8080".parse().expect("an address");
    let around = Surroundings {
        endpoints: &HashMap::from([(address, third.id.clone())]),
        canary_endpoints: 1,
        stood_in: None,
        route_timeout: Millis(1_000),
        instances: &BTreeMap::from([(third.id.clone(), Arc::new(third))]),
    };
    let cluster = "80|pay|shop|v1".parse().expect("a cluster");
    let of_third = (caller(), Failure { cluster, endpoint: Some(address), at: at(0) });
    let evidence = books.gather(&[of_third, failure()], &[], &around, at(100));
    let arms: Vec<Arm> = evidence.callers[0].failures.iter().map(|failure| failure.arm).collect();
    assert_eq!(arms, [Arm::Stable, Arm::Canary]);
}
