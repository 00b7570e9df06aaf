//! What a real Envoy does with a call: how often it tries, how long it waits, whom it asks, and what it tells.

use crate::support::{
    app,
    bench::{Bench, H2},
    client,
    meshes::{self, Build, door, endpoint},
    until,
};
use airlane_core::{
    id::ClusterName,
    mesh::{Cluster, Endpoint, Route, Split, Transport, WhenOpen},
    policy::{Millis, MtlsMode},
    world::Protocol,
};
use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value as AnyText},
    metrics::v1::{NumberDataPoint, metric::Data, number_data_point::Value as Number},
};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::Duration,
};

#[test]
fn a_request_timeout_is_no_timeout_for_bytes() {
    let Some(mut bench) = Bench::new() else { return };
    let mut destination = meshes::destination("pay", Protocol::Tcp, Transport::Plaintext, vec![]);
    destination.clusters[0].endpoints = Arc::new(vec![endpoint("pay-1", app::greet(), false)]);
    destination.calls.request_timeout = Some(Millis(50));
    destination.calls.retries.per_try_timeout = Some(Millis(50));
    destination.calls.stream_idle_timeout = Millis(50);
    let _caller = bench.caller(&meshes::empty().with(destination));
    let mut tunnel = client::connect(bench.outbound, "pay:80").unwrap();
    tunnel.read_exact(&mut [0; 6]).unwrap();
    tunnel.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let silence = tunnel.read(&mut [0; 1]).unwrap_err();
    assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock, "still open after six times the timeout");
}

#[test]
fn only_repeatable_requests_are_tried_again() {
    let Some(mut bench) = Bench::new() else { return };
    let app = app::serve(|request| {
        (
            if request.nth % 2 == 0 { 500 } else { 200 },
            request.header("x-envoy-attempt-count").unwrap_or("none").to_owned(),
        )
    });
    let caller = bench.caller(&meshes::plaintext(vec![endpoint("pay-1", app, false)]));
    let call =
        |method: &str, headers: &[(&str, &str)]| client::call(bench.outbound, method, "http://pay/", headers);
    let answer = call("GET", &[("x-envoy-attempt-count", "7")]);
    assert_eq!((answer.status, answer.body.as_str()), (200, "2"));
    let statuses =
        |method: &str, headers: &[(&str, &str)]| [call(method, headers).status, call(method, headers).status];
    assert_eq!(statuses("POST", &[]), [500, 200]);
    assert_eq!(statuses("POST", &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "3")]), [500, 200]);
    // An answer of 500 to a gRPC request is passed on as it is.
    assert_eq!(statuses("GET", &[("content-type", "application/grpc")]), [500, 200]);

    let failures = until("each failed first attempt is reported", || {
        let failures = bench.plane.seen.failures.lock().unwrap();
        (failures.len() == 5).then(|| failures.clone())
    });
    let (without_status, failures) = failures.split_last().unwrap();
    let grpc = without_status.response.as_ref().unwrap();
    assert_eq!(grpc.response_code.unwrap().value, 200, "an answer without grpc-status means UNKNOWN to gRPC");
    for failure in failures.iter().cloned() {
        let common = failure.common_properties.unwrap();
        assert_eq!(common.upstream_cluster, "80|pay|shop");
        assert!(common.upstream_remote_address.is_some());
        assert_eq!(failure.response.unwrap().response_code.unwrap().value, 500);
        assert_eq!(failure.request.unwrap().request_headers["x-envoy-attempt-count"], "1");
    }
    assert_eq!(caller.stat("cluster.80|pay|shop.upstream_rq_retry"), 1);
}

#[test]
fn a_caller_sets_no_timeouts_by_headers_and_the_policy_does() {
    let Some(mut bench) = Bench::new() else { return };
    let slow = app::serve(|_| {
        thread::sleep(Duration::from_millis(300));
        (200, String::new())
    });
    let mesh = meshes::plaintext(vec![endpoint("pay-1", slow, false)]);
    let _caller = bench.caller(&mesh);
    let hurry = [("x-envoy-upstream-rq-timeout-ms", "1"), ("x-envoy-upstream-rq-per-try-timeout-ms", "1")];
    assert_eq!(client::call(bench.outbound, "GET", "http://pay/", &hurry).status, 200);

    let mut mesh = bench.published();
    let pay = mesh.destinations.values_mut().next().unwrap();
    Arc::make_mut(pay).calls.request_timeout = Some(Millis(50));
    bench.publish(&mesh);
    until("the timeout holds", || (client::get(bench.outbound, "http://pay/").status == 504).then_some(()));
}

#[test]
fn an_open_breaker_answers_in_the_policys_words() {
    let Some(mut bench) = Bench::new() else { return };
    let mut sick = endpoint("pay-1", app::ok(), false);
    sick.healthy = false;
    let mut destination = meshes::destination("pay", Protocol::Http, Transport::Plaintext, vec![sick]);
    let _caller = bench.caller(&meshes::empty().with(destination.clone()));
    let answer = client::get(bench.outbound, "http://pay/");
    assert_eq!((answer.status, answer.header("retry-after")), (503, None));
    assert_eq!(answer.body, "no endpoint of shop/pay can take the request now\n");

    destination.calls.when_open = Some(WhenOpen {
        body: "payments are busy: 100% of %REQ(:PATH)%".to_owned(),
        retry_after_s: Some(30),
    });
    bench.publish(&meshes::empty().with(destination).caller("front-1", "shop", "front", bench.outbound));
    let answer = until("the new words are used", || {
        let answer = client::get(bench.outbound, "http://pay/");
        answer.body.starts_with("payments").then_some(answer)
    });
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("30")));
    assert_eq!(answer.body, "payments are busy: 100% of %REQ(:PATH)%\n");
    let grpc = client::call(bench.outbound, "POST", "http://pay/", &[("content-type", "application/grpc")]);
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("14")));
    assert!(grpc.header("grpc-message").unwrap().starts_with("payments are busy"));
}

#[test]
fn shares_follow_the_runtime_and_a_failed_canary_is_saved_by_stable() {
    let Some(mut bench) = Bench::new() else { return };
    let stable = app::serve(|_| (200, "stable".to_owned()));
    let canary = app::serve(|request| {
        (if request.header("x-fail").is_some() { 500 } else { 200 }, "canary".to_owned())
    });
    let mut destination = meshes::destination("pay", Protocol::Http, Transport::Plaintext, vec![]);
    let whole = destination.clusters[0].clone();
    let revision =
        |revision: &str| ClusterName { revision: Some(revision.parse().unwrap()), ..whole.name.clone() };
    let clusters = [("v1", stable), ("v2", canary)].map(|(version, port)| Cluster {
        name: revision(version),
        endpoints: Arc::new(vec![endpoint(&format!("pay-{version}"), port, false)]),
        ..whole.clone()
    });
    let split = Split {
        runtime_prefix: "airlane.shop.pay.80".to_owned(),
        fail_safe: vec![(revision("v1"), 10_000), (revision("v2"), 0)],
    };
    destination.clusters = clusters.into();
    destination.route = Route::Split(split.clone());
    let mut mesh = meshes::empty().with(destination).caller("front-1", "shop", "front", bench.outbound);
    let caller = bench.caller(&mesh);
    let outbound = bench.outbound;
    let call = |headers: &[(&str, &str)]| client::call(outbound, "GET", "http://pay/", headers);
    assert!((0..20).all(|_| call(&[]).body == "stable"));

    let share = |version: &str, parts: u32| (split.runtime_key(&revision(version)), parts);
    mesh.shares = [share("v1", 0), share("v2", 10_000)].into();
    bench.publish(&mesh);
    until("everything goes to the canary", || (0..10).all(|_| call(&[]).body == "canary").then_some(()));

    mesh.shares = [share("v1", 5_000), share("v2", 5_000)].into();
    bench.publish(&mesh);
    until("both are called", || (call(&[]).body == "stable").then_some(()));
    let canary_stat = |what: &str| caller.stat(&format!("cluster.80|pay|shop|v2.{what}"));
    let first_attempts = || canary_stat("upstream_rq_total") - canary_stat("upstream_rq_retry");
    let before = first_attempts();
    let failed = (0..100).filter(|_| call(&[("x-fail", "1")]).status != 200).count();
    assert!(failed <= 35, "two retries by the coin leave one in eight: {failed} of 100");
    // A retry is counted where it goes: what is left are the first attempts, which all failed there.
    until("the log tells as many first attempts as were counted", || {
        let logged = bench.plane.seen.failures.lock().unwrap().len() as u64;
        (logged == first_attempts() - before).then_some(())
    });
}

#[test]
fn a_revision_without_an_endpoint_is_stood_in_for() {
    let Some(mut bench) = Bench::new() else { return };
    let [stable, canary] = ["stable", "canary"].map(|name| app::serve(move |_| (200, name.to_owned())));
    let mut destination = meshes::destination("pay", Protocol::Http, Transport::Plaintext, vec![]);
    let whole = destination.clusters[0].clone();
    let revision =
        |revision: &str| ClusterName { revision: Some(revision.parse().unwrap()), ..whole.name.clone() };
    destination.clusters = ["v1", "v2"].map(|of| Cluster { name: revision(of), ..whole.clone() }).into();
    // Where nobody speaks of shares, the routes' own hold: they do not follow the endpoints.
    let fail_safe = vec![(revision("v1"), 5_000), (revision("v2"), 5_000)];
    destination.route = Route::Split(Split { runtime_prefix: "airlane.shop.pay.80".to_owned(), fail_safe });
    destination.calls.retries.attempts = 0;
    let at = |port, healthy| Arc::new(vec![Endpoint { healthy, ..endpoint("pay-1", port, false) }]);
    destination.clusters[0].endpoints = at(stable, true);
    destination.clusters[1].endpoints = at(canary, true);
    let mut mesh = meshes::empty().with(destination).caller("front-1", "shop", "front", bench.outbound);
    let caller = bench.caller(&mesh);
    let outbound = bench.outbound;
    let answers = || -> BTreeSet<String> {
        let answers = (0..60).map(|_| client::get(outbound, "http://pay/"));
        answers.map(|answer| format!("{} {}", answer.status, answer.body)).collect()
    };
    let [of_stable, of_canary] = ["200 stable", "200 canary"].map(str::to_owned);
    assert_eq!(answers(), [of_stable.clone(), of_canary.clone()].into(), "{}", caller.log());
    let port = meshes::service_port("shop", "pay", 80);
    let ports = [(stable, &of_stable), (canary, &of_canary)];
    for sick in [true, false] {
        for (empty, other) in [(1, 0), (0, 1)] {
            let left = if sick { at(ports[empty].0, false) } else { Arc::default() };
            let (port_of_other, expected) = ports[other];
            let other = at(port_of_other, true);
            let clusters = &mut Arc::make_mut(mesh.destinations.get_mut(&port).unwrap()).clusters;
            clusters[empty].endpoints = left;
            clusters[empty].stand_ins = Arc::clone(&other);
            clusters[1 - empty].endpoints = other;
            clusters[1 - empty].stand_ins = Arc::default();
            bench.publish(&mesh);
            until("the other one answers everything", || {
                (answers() == [expected.clone()].into()).then_some(())
            });
        }
    }
}

#[test]
fn a_sick_endpoint_is_left_out() {
    let Some(mut bench) = Bench::new() else { return };
    let (sick, well) = (app::serve(|_| (503, String::new())), app::ok());
    let mut mesh = meshes::plaintext(vec![endpoint("pay-1", sick, false), endpoint("pay-2", well, false)]);
    let pay = Arc::make_mut(mesh.destinations.values_mut().next().unwrap());
    pay.calls.retries.attempts = 0;
    pay.calls.outliers.consecutive_gateway_errors = Some(3);
    let caller = bench.caller(&mesh);
    let status = || client::get(bench.outbound, "http://pay/").status;
    until("the sick endpoint is left out", || (0..10).all(|_| status() == 200).then_some(()));
    assert_eq!(caller.stat("cluster.80|pay|shop.outlier_detection.ejections_active"), 1);
}

#[test]
fn a_websocket_of_an_http1_application_crosses_http2() {
    let Some(mut bench) = Bench::new() else { return };
    let (caller, _called) = bench.pair(app::switch(), door(MtlsMode::Strict, Protocol::Http), H2);
    let mut socket = client::dial(SocketAddr::from(([127, 0, 0, 1], bench.outbound))).unwrap();
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "x")];
    let answer = client::ask(&mut socket, "GET", "http://pay/", "pay", &upgrade).unwrap();
    assert_eq!(answer.status, 101, "{answer:?}\n{}", caller.log());
    socket.write_all(b"echo").unwrap();
    let mut echo = [0; 4];
    socket.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"echo");
}

#[test]
fn calls_are_told_each_second_by_cluster_endpoint_and_kind_of_caller() {
    let Some(mut bench) = Bench::new() else { return };
    let app = app::ok();
    let (caller, _called) = bench.pair(app, door(MtlsMode::Permissive, Protocol::Http), H2);
    for _ in 0..5 {
        client::get(bench.outbound, "http://pay/");
    }
    let seen = Arc::clone(&bench.plane.seen);
    let total = |metric: &str, key: &str, value: &str| -> i64 {
        let metrics = seen.metrics.lock().unwrap();
        let sums = metrics.iter().filter(|m| m.name == metric).filter_map(|m| match &m.data {
            Some(Data::Sum(sum)) => Some(&sum.data_points),
            _ => None,
        });
        let has = |point: &&NumberDataPoint| {
            let text = |a: &KeyValue| match a.value.as_ref()?.value.as_ref()? {
                AnyText::StringValue(text) => Some(text.clone()),
                _ => None,
            };
            point.attributes.iter().any(|a| a.key == key && text(a).as_deref() == Some(value))
        };
        sums.flatten()
            .filter(has)
            .map(|point| match point.value {
                Some(Number::AsInt(value)) => value,
                _ => panic!("not a count: {point:?}"),
            })
            .sum()
    };
    until("the totals of both proxies arrive", || {
        let totals = [
            total("cluster.upstream_rq_total", "envoy.cluster_name", "80|pay|shop"),
            total(
                "http.downstream_rq_total",
                "envoy.http_conn_manager_prefix",
                &format!("inbound|{app}|mtls"),
            ),
        ];
        (totals == [5, 5]).then_some(())
    });
    let by_endpoint = || total("cluster.endpoint.rq_success", "envoy.endpoint_hostname", "pay-1");
    assert_eq!(by_endpoint(), 0, "only what is judged is told by endpoint");
    let mut judged = bench.published();
    for destination in judged.destinations.values_mut().map(Arc::make_mut) {
        destination.clusters[0].name.revision = Some("v1".parse().unwrap());
        destination.route = Route::To(destination.clusters[0].name.clone());
    }
    bench.publish(&judged);
    until("its endpoints are told", || {
        let answer = client::get(bench.outbound, "http://pay/");
        assert_eq!(answer.status, 200, "{}", caller.log());
        (by_endpoint() > 0).then_some(())
    });
    let metrics = bench.plane.seen.metrics.lock().unwrap();
    let kept =
        |name: &str| ["cluster.", "http.", "tcp.", "control_plane."].iter().any(|p| name.starts_with(p));
    let other: Vec<_> = metrics.iter().map(|metric| &metric.name).filter(|name| !kept(name)).collect();
    assert!(other.is_empty(), "{other:?}");
}
