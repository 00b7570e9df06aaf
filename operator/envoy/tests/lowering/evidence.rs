//! What a real Envoy counts and logs of first attempts: what the judge of rollouts is made of.

use crate::support::{
    app,
    bench::Bench,
    client,
    meshes::{self, Build, endpoint, free_port},
    proxy::Proxy,
    until,
};
use airlane_core::{
    mesh::{Mesh, Transport},
    policy::Millis,
    world::Protocol,
};
use envoy_types::pb::envoy::data::accesslog::v3::{AccessLogType, HttpAccessLogEntry};
use std::{collections::BTreeMap, io::Write, net::SocketAddr, thread, time::Duration};

/// An application that fails, or hangs for longer than any timeout here, if it is asked to.
fn moody() -> u16 {
    app::serve(|request| {
        if request.header("x-hang").is_some() {
            thread::sleep(Duration::from_secs(2));
        }
        (if request.header("x-fail").is_some() { 500 } else { 200 }, String::new())
    })
}

/// `pay` at one endpoint; what is tried again waits a moment, so that nothing overlaps.
fn mesh(port: u16, request_ms: u64, per_try_ms: Option<u64>) -> Mesh {
    let endpoints = vec![endpoint("pay-1", port, false)];
    let mut pay = meshes::destination("pay", Protocol::Http, Transport::Plaintext, endpoints);
    pay.calls.request_timeout = Some(Millis(request_ms));
    pay.calls.retries.per_try_timeout = per_try_ms.map(Millis);
    pay.calls.retries.attempts = 0;
    meshes::empty().with(pay)
}

/// What was counted at the endpoint: good and failed tries.
fn tries(caller: &Proxy) -> (u64, u64) {
    let clusters = caller.admin("/clusters");
    let counts: BTreeMap<&str, u64> = clusters
        .lines()
        .filter_map(|line| {
            let (name, value) = line.strip_prefix("80|pay|shop::")?.rsplit_once("::")?;
            Some((name.rsplit_once("::")?.1, value.parse().ok()?))
        })
        .collect();
    (counts["rq_success"], counts["rq_error"])
}

/// Which log told it, and the details of the response.
fn told(entry: &HttpAccessLogEntry) -> (AccessLogType, String) {
    let kind = entry.common_properties.as_ref().unwrap().access_log_type;
    let details = entry.response.as_ref().map(|response| response.response_code_details.clone());
    (AccessLogType::try_from(kind).unwrap(), details.unwrap_or_default())
}

/// Makes one call; checks what the proxy counts of it, and who tells it. Every call but the first is followed by one
/// that fails at once, so that what is not told can be known.
fn check(
    request_ms: u64,
    per_try_ms: Option<u64>,
    call: &str,
    counted: (u64, u64),
    logs: &[(AccessLogType, &str)],
) {
    let Some(mut bench) = Bench::new() else { return };
    let caller = bench.caller(&mesh(moody(), request_ms, per_try_ms));
    let good = client::get(bench.outbound, "http://pay/");
    assert_eq!(good.status, 200, "{}", caller.log());
    let before = tries(&caller);
    let mut connection = client::dial(SocketAddr::from(([127, 0, 0, 1], bench.outbound))).unwrap();
    write!(connection, "GET http://pay/ HTTP/1.1\r\nhost: pay\r\n{call}\r\n\r\n").unwrap();
    if counted == (0, 0) {
        until("the request is at the application", || {
            (caller.stat("cluster.80|pay|shop.upstream_rq_active") == 1).then_some(())
        });
        drop(connection);
        until("the caller is gone", || {
            (caller.stat("cluster.80|pay|shop.upstream_rq_active") == 0).then_some(())
        });
    } else {
        until("it is counted", || (tries(&caller) != before).then_some(()));
        drop(connection);
    }
    let after = tries(&caller);
    assert_eq!((after.0 - before.0, after.1 - before.1), counted, "{call}");
    client::call(bench.outbound, "GET", "http://pay/", &[("x-fail", "1")]);
    let entries = until("the failure after it is logged", || {
        let failures = bench.plane.seen.failures.lock().unwrap();
        let status = |entry: &HttpAccessLogEntry| {
            let code = entry.response.as_ref().and_then(|response| response.response_code);
            code.is_some_and(|code| code.value == 500)
        };
        let logged = failures.iter().filter(|entry| !status(entry)).map(told).collect::<Vec<_>>();
        (failures.iter().any(status) && logged.len() >= logs.len()).then_some(logged)
    });
    let mut logs: Vec<_> = logs.iter().map(|(kind, details)| (*kind, (*details).to_owned())).collect();
    let mut entries = entries;
    logs.sort();
    entries.sort();
    assert_eq!(entries, logs, "{call}");
}

#[test]
fn a_request_out_of_time_is_told_by_its_own_log_alone() {
    check(500, None, "x-hang: 1", (0, 1), &[(AccessLogType::DownstreamEnd, "response_timeout")]);
}

#[test]
fn an_attempt_out_of_time_is_told_by_both_logs_and_the_details_differ() {
    let by_request = (AccessLogType::DownstreamEnd, "upstream_per_try_timeout");
    check(1_500, Some(300), "x-hang: 1", (0, 1), &[by_request, (AccessLogType::UpstreamEnd, "")]);
}

#[test]
fn a_caller_that_goes_away_is_neither_counted_nor_told() {
    check(1_500, None, "x-hang: 1", (0, 0), &[]);
}

#[test]
fn a_grpc_answer_without_a_status_is_a_failure() {
    check(1_500, None, "content-type: application/grpc", (0, 1), &[(AccessLogType::UpstreamEnd, "")]);
}

#[test]
fn who_cannot_be_reached_failed_once_for_each_request() {
    let Some(mut bench) = Bench::new() else { return };
    let caller = bench.caller(&mesh(free_port(), 1_500, None));
    let outbound = bench.outbound;
    let calls: Vec<_> =
        (0..5).map(|_| thread::spawn(move || client::get(outbound, "http://pay/").status)).collect();
    assert!(calls.into_iter().all(|call| call.join().unwrap() == 503));
    until("all are logged", || (bench.plane.seen.failures.lock().unwrap().len() == 5).then_some(()));
    assert_eq!(tries(&caller), (0, 5));
    assert_eq!(caller.stat("cluster.80|pay|shop.upstream_rq_total"), 0);
    assert_eq!(caller.stat("cluster.80|pay|shop.upstream_cx_connect_fail"), 5);
}
