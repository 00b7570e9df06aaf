//! What a real Envoy does with what we lower.

use crate::support::{
    app, client, envoy,
    meshes::{self, Build, door, endpoint, free_port, identity},
    plane::Plane,
    proxy::Proxy,
    until,
};
use airlane_core::{
    id::ClusterName,
    mesh::{Door, Endpoint, Mesh, Route, Split, Transport, WhenOpen},
    policy::{Millis, MtlsMode},
    world::Protocol,
};
use airlane_envoy::lower::{Lowerer, Settings};
use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value as AnyText},
    metrics::v1::{NumberDataPoint, metric::Data, number_data_point::Value as Number},
};
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

pub const H2: Transport = Transport::Mtls { http2: true };

/// A plane that publishes meshes to the proxy `front-1` of an application in `shop`, and to one called proxy.
pub struct Bench {
    envoy: PathBuf,
    pub plane: Plane,
    lowerer: Lowerer,
    published: Mesh,
    pub outbound: u16,
    mesh_port: u16,
}

impl Bench {
    pub fn new() -> Option<Self> {
        let envoy = envoy()?;
        let plane = Plane::start();
        let settings = Settings {
            bundle_pem: plane.authority.root_pem.clone(),
            fail_safe_after: Duration::from_secs(600),
        };
        let lowerer = Lowerer::new(settings);
        Some(Self {
            envoy,
            plane,
            lowerer,
            published: meshes::empty(),
            outbound: free_port(),
            mesh_port: free_port(),
        })
    }

    /// The mesh last published, to edit.
    pub fn published(&self) -> Mesh {
        self.published.clone()
    }

    pub fn publish(&mut self, mesh: &Mesh) {
        self.published = mesh.clone();
        self.plane.publish(self.lowerer.lower(mesh).0);
    }

    /// The caller's proxy, with the mesh that has it.
    pub fn caller(&mut self, mesh: &Mesh) -> Proxy {
        let mesh = mesh.clone().caller("front-1", "shop", "front", self.outbound);
        self.publish(&mesh);
        Proxy::start(&self.envoy, &self.plane, "front-1", &identity("shop", "front"), &[self.outbound])
    }

    /// A door of `pay` before an application, and a caller's proxy whose mesh knows `pay` behind it.
    pub fn pair(&mut self, app: u16, door: Door, transport: Transport) -> (Proxy, Proxy) {
        let mtls = door.mtls != MtlsMode::Disabled;
        let mesh = meshes::empty()
            .with(meshes::destination(
                "pay",
                door.protocol,
                transport,
                vec![endpoint("pay-1", self.mesh_port, mtls)],
            ))
            .called("pay-1", "pay", self.mesh_port, app, door);
        let caller = self.caller(&mesh);
        let pay = identity("shop", "pay");
        let called = Proxy::start(&self.envoy, &self.plane, "pay-1", &pay, &[self.mesh_port]);
        (caller, called)
    }

    fn door(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.mesh_port))
    }
}

/// A mesh whose service `pay` is plaintext endpoints.
fn plaintext(endpoints: Vec<Endpoint>) -> Mesh {
    meshes::empty().with(meshes::destination("pay", Protocol::Http, Transport::Plaintext, endpoints))
}

fn ok() -> u16 {
    app::serve(|request| (200, format!("{}\n{:?}", request.line, request.headers)))
}

#[test]
fn a_plain_call_crosses_two_proxies_over_mtls_and_http2() {
    let Some(mut bench) = Bench::new() else { return };
    let app = ok();
    let (caller, called) = bench.pair(app, door(MtlsMode::Strict, Protocol::Http), H2);

    for host in [
        "pay",
        "pay:80",
        "pay.mesh",
        "pay.shop",
        "PAY.shop.mesh",
        "pay.shop.mesh:80",
        "pay.mesh.",
        "pay.mesh:50051",
    ] {
        let answer = client::get(bench.outbound, &format!("http://{host}/charge"));
        assert_eq!(answer.status, 200, "{host}: {answer:?}\n{}", caller.log());
        assert!(answer.body.contains("spiffe://airlane.local/ns/shop/sa/front"), "{host}: {}", answer.body);
    }
    assert_eq!(called.stat(&format!("http.inbound|{app}|mtls.downstream_rq_total")), 8);
    assert_eq!(caller.stat("cluster.80|pay|shop.upstream_rq_total"), 8);
    assert_eq!(caller.stat("cluster.80|pay|shop.upstream_cx_total"), 1, "HTTP/2 needs one connection");
}

#[test]
fn proxies_that_agree_on_http1_speak_it_over_mtls() {
    let Some(mut bench) = Bench::new() else { return };
    let (caller, _called) =
        bench.pair(ok(), door(MtlsMode::Strict, Protocol::Http), Transport::Mtls { http2: false });
    let answer = client::get(bench.outbound, "http://pay/charge");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", caller.log());
    assert!(answer.body.contains("spiffe://airlane.local/ns/shop/sa/front"), "{}", answer.body);
}

#[test]
fn an_endpoint_that_proves_another_identity_is_not_called() {
    let Some(mut bench) = Bench::new() else { return };
    let app = ok();
    let mesh = meshes::empty()
        .with(meshes::destination("pay", Protocol::Http, H2, vec![endpoint("pay-1", bench.mesh_port, true)]))
        .called("thief-1", "thief", bench.mesh_port, app, door(MtlsMode::Strict, Protocol::Http));
    let _caller = bench.caller(&mesh);
    let thief = identity("shop", "thief");
    let _thief = Proxy::start(&bench.envoy, &bench.plane, "thief-1", &thief, &[bench.mesh_port]);
    assert_eq!(client::get(bench.outbound, "http://pay/").status, 503);
}

#[test]
fn strict_lets_nothing_in_but_mesh_tls() {
    let Some(mut bench) = Bench::new() else { return };
    let (_caller, _called) = bench.pair(ok(), door(MtlsMode::Strict, Protocol::Http), H2);
    let mut plain = client::dial(bench.door()).unwrap();
    assert!(client::ask(&mut plain, "GET", "/", "pay", &[]).is_none(), "plaintext");
    assert_eq!(client::get(bench.outbound, "http://pay/").status, 200);
}

#[test]
fn permissive_counts_plaintext_and_passes_the_applications_own_tls() {
    let Some(mut bench) = Bench::new() else { return };
    let app = ok();
    let (_caller, called) = bench.pair(app, door(MtlsMode::Permissive, Protocol::Http), H2);
    let mut plain = client::dial(bench.door()).unwrap();
    let forged = [("x-forwarded-client-cert", "URI=spiffe://airlane.local/ns/shop/sa/boss")];
    let answer = client::ask(&mut plain, "GET", "/a/../b", "pay", &forged).unwrap();
    assert_eq!(answer.status, 200);
    assert!(!answer.body.contains("boss"), "{}", answer.body);
    assert!(answer.body.starts_with("GET /b "), "{}", answer.body);
    assert_eq!(client::get(bench.outbound, "http://pay/").status, 200);
    assert_eq!(called.stat(&format!("http.inbound|{app}|plaintext.downstream_rq_total")), 1);
    assert_eq!(called.stat(&format!("http.inbound|{app}|mtls.downstream_rq_total")), 1);

    let mut own = client::dial(bench.door()).unwrap();
    own.write_all(&client_hello(&[])).unwrap();
    until("the application's own TLS is passed on", || {
        (called.stat(&format!("tcp.inbound|{app}|tls.downstream_cx_total")) == 1).then_some(())
    });
}

#[test]
fn mesh_tls_without_a_certificate_is_refused() {
    let Some(mut bench) = Bench::new() else { return };
    let (_caller, called) = bench.pair(ok(), door(MtlsMode::Permissive, Protocol::Http), H2);
    let mut stranger = client::dial(bench.door()).unwrap();
    let mut tls = tls_client(&[b"airlane", b"h2"]);
    let refused = (|| {
        tls.complete_io(&mut stranger)?;
        rustls::Stream::new(&mut tls, &mut stranger).read(&mut [0; 1])
    })();
    assert!(refused.is_err() || refused.is_ok_and(|read| read == 0), "{}", called.log());
}

#[test]
fn disabled_takes_plaintext_and_bytes() {
    let Some(mut bench) = Bench::new() else { return };
    let (_caller, _called) = bench.pair(ok(), door(MtlsMode::Disabled, Protocol::Http), Transport::Plaintext);
    assert_eq!(client::get(bench.outbound, "http://pay/").status, 200);
}

#[test]
fn bytes_cross_a_connect_and_the_server_may_speak_first() {
    let Some(mut bench) = Bench::new() else { return };
    let transport = Transport::Mtls { http2: false };
    let (caller, _called) = bench.pair(app::greet(), door(MtlsMode::Permissive, Protocol::Tcp), transport);
    let greeting = |stream: &mut std::net::TcpStream| {
        let mut bytes = [0; 6];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello\n", "{}", caller.log());
        stream.write_all(b"echo").unwrap();
        stream.read_exact(&mut bytes[..4]).unwrap();
        assert_eq!(&bytes[..4], b"echo");
    };
    greeting(&mut client::connect(bench.outbound, "pay:80").unwrap());
    greeting(&mut client::dial(bench.door()).unwrap());
    let answer = client::get(bench.outbound, "http://pay/");
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("speaks TCP"), "{}", answer.body);
}

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
fn requests_inside_a_connect_are_routed_like_others() {
    let Some(mut bench) = Bench::new() else { return };
    let (caller, _called) = bench.pair(ok(), door(MtlsMode::Strict, Protocol::Http), H2);
    let mut tunnel = client::connect(bench.outbound, "pay.shop:80").unwrap();
    for _ in 0..2 {
        let answer = client::ask(&mut tunnel, "GET", "/charge", "pay.shop", &[]).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}\n{}", caller.log());
        assert!(answer.body.contains("/sa/front"), "{}", answer.body);
    }
    assert_eq!(caller.stat("cluster.80|pay|shop.upstream_rq_total"), 2);
}

/// What answers in a mesh where each of these ports of `pay` does, one of which has the service's name, and `ledger` is
/// `None`: a name of two other namespaces, else one of the caller's.
fn with_ports(ports: &[(u16, u16)], ledger: Option<u16>) -> Mesh {
    let of = |name: &str, port: u16, app: u16, default_port: bool| {
        let mut destination = meshes::destination(name, Protocol::Http, Transport::Plaintext, vec![]);
        destination.port.port = port;
        destination.clusters[0].name.port = destination.port.clone();
        destination.route = Route::To(destination.clusters[0].name.clone());
        destination.clusters[0].endpoints = Arc::new(vec![endpoint("pay-1", app, false)]);
        (destination.default_port, destination.only_port) = (default_port, default_port && ports.len() == 1);
        destination
    };
    let default = ports.iter().map(|(port, _)| *port).min_by_key(|port| (*port != 80, *port));
    let mut mesh = meshes::empty();
    for (port, app) in ports {
        mesh = mesh.with(of("pay", *port, *app, Some(*port) == default));
    }
    match ledger {
        Some(app) => mesh.with(of("ledger", 80, app, true)),
        None => {
            let candidates = [("bank", "ledger"), ("books", "ledger")]
                .map(|(ns, name)| meshes::service_port(ns, name, 80));
            let candidates = candidates.map(|candidate| candidate.service);
            mesh.ambiguous.insert("ledger".parse().unwrap(), Arc::new(candidates.into()));
            mesh
        }
    }
}

#[test]
fn names_pass_from_host_to_host_without_a_gap() {
    let Some(mut bench) = Bench::new() else { return };
    let [one, two] = ["one", "two"].map(|body| app::serve(move |_| (200, body.to_owned())));
    let mesh = |ports: &[(u16, u16)], ledger| {
        with_ports(ports, ledger).caller("front-1", "shop", "front", bench.outbound)
    };
    let meshes = [
        mesh(&[(80, one), (90, two)], None),
        // 80 is gone: 90 gets the service's name, and the caller's namespace a service of its own.
        mesh(&[(90, two)], Some(one)),
        // 70 comes with a cluster that must be there first.
        mesh(&[(70, one)], None),
        mesh(&[(70, two), (80, one)], Some(two)),
    ];
    let outbound = bench.outbound;
    let caller = bench.caller(&meshes[0]);
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let asking = thread::spawn(move || {
        let mut failed = Vec::new();
        let mut asked = 0;
        while !stop.load(Ordering::SeqCst) {
            let answer = client::get(outbound, "http://pay/");
            asked += 1;
            if answer.status != 200 {
                failed.push(answer);
            }
        }
        (asked, failed)
    });
    for (mesh, pay, ledger) in [(&meshes[1], "two", 200), (&meshes[2], "one", 503), (&meshes[3], "one", 200)]
    {
        bench.publish(mesh);
        until("the names have passed", || {
            let [now, other] =
                ["pay", "ledger"].map(|host| client::get(outbound, &format!("http://{host}/")));
            (now.body == pay && other.status == ledger).then_some(())
        });
    }
    done.store(true, Ordering::SeqCst);
    let (asked, failed) = asking.join().unwrap();
    assert!(failed.is_empty(), "{} of {asked}: {:?}\n{}", failed.len(), failed[0], caller.log());
}

#[test]
fn a_name_the_mesh_does_not_know_is_named() {
    let Some(mut bench) = Bench::new() else { return };
    let mut mesh = plaintext(vec![]);
    // As where the service has other ports as well: then its ports must be named right.
    mesh.destinations.values_mut().for_each(|destination| Arc::make_mut(destination).only_port = false);
    let candidates = [("bank", "ledger"), ("books", "ledger")]
        .map(|(ns, name)| meshes::service_port(ns, name, 80).service);
    mesh.ambiguous.insert("ledger".parse().unwrap(), Arc::new(candidates.into()));
    let _caller = bench.caller(&mesh);
    for name in ["nope", "nope.mesh:8080", "pay:9999", "localhost:1", "nope.shop.MESH"] {
        let answer = client::get(bench.outbound, &format!("http://{name}/x"));
        assert_eq!(answer.status, 503, "{name}");
        assert_eq!(answer.header("x-airlane-error"), Some("unknown-service"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(answer.body.contains(&format!("\"service\":\"{name}\"")), "{}", answer.body);
    }
    let refused = client::connect(bench.outbound, "nope:443").unwrap_err();
    assert_eq!((refused.status, refused.header("x-airlane-error")), (503, Some("unknown-service")));
    for name in ["ledger", "ledger.mesh", "ledger:8080"] {
        let answer = client::get(bench.outbound, &format!("http://{name}/"));
        assert_eq!((answer.status, answer.header("x-airlane-error")), (503, Some("ambiguous-service")));
        assert!(answer.body.contains("ledger.bank, ledger.books"), "{}", answer.body);
    }
}

#[test]
fn the_proxy_is_no_way_to_this_host_or_to_metadata() {
    let Some(mut bench) = Bench::new() else { return };
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let secret = app::serve(move |request| {
        counter.store(request.nth + 1, Ordering::SeqCst);
        (200, "secret".to_owned())
    });
    let _caller = bench.caller(&meshes::empty());
    let hosts = [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "[fe80::1]",
        "x.localhost",
    ];
    for host in hosts {
        let answer = client::get(bench.outbound, &format!("http://{host}:{secret}/"));
        assert!(matches!(answer.status, 400 | 403 | 503), "{host}: {answer:?}");
        assert!(!answer.body.contains("secret"), "{host}");
        let tunnel = client::connect(bench.outbound, &format!("{host}:{secret}"));
        let refused = tunnel.map(|_| host).unwrap_err();
        assert!(matches!(refused.status, 400 | 403 | 503), "CONNECT {host}: {refused:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[test]
fn other_hosts_are_reached_as_if_there_were_no_mesh() {
    let Some(mut bench) = Bench::new() else { return };
    let Some(own) = own_address() else {
        eprintln!("skipped: this machine has no address but loopback");
        return;
    };
    let outside = app::serve_on(own, |request| (200, format!("{:?}", request.headers)));
    let caller = bench.caller(&meshes::empty());
    let answer = client::get(bench.outbound, &format!("http://{own}:{outside}/"));
    assert_eq!(answer.status, 200, "{answer:?}\n{}", caller.log());
    assert!(!answer.body.contains("x-envoy") && !answer.body.contains("x-forwarded"), "{}", answer.body);
    let mut tunnel = client::connect(bench.outbound, &format!("{own}:{outside}")).unwrap();
    assert_eq!(client::ask(&mut tunnel, "GET", "/", "x", &[]).unwrap().status, 200);
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
    let caller = bench.caller(&plaintext(vec![endpoint("pay-1", app, false)]));
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
    let mesh = plaintext(vec![endpoint("pay-1", slow, false)]);
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
    let mut sick = endpoint("pay-1", ok(), false);
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
    let clusters = [("v1", stable), ("v2", canary)].map(|(version, port)| airlane_core::mesh::Cluster {
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
fn a_sick_endpoint_is_left_out() {
    let Some(mut bench) = Bench::new() else { return };
    let (sick, well) = (app::serve(|_| (503, String::new())), ok());
    let mut mesh = plaintext(vec![endpoint("pay-1", sick, false), endpoint("pay-2", well, false)]);
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
fn an_endpoint_without_a_sidecar_is_called_in_plaintext_beside_one_with() {
    let Some(mut bench) = Bench::new() else { return };
    let app = ok();
    let mesh = meshes::empty()
        .with(meshes::destination(
            "pay",
            Protocol::Http,
            Transport::Mixed,
            vec![endpoint("pay-1", bench.mesh_port, true), endpoint("pay-2", ok(), false)],
        ))
        .called("pay-1", "pay", bench.mesh_port, app, door(MtlsMode::Strict, Protocol::Http));
    let caller = bench.caller(&mesh);
    let _called =
        Proxy::start(&bench.envoy, &bench.plane, "pay-1", &identity("shop", "pay"), &[bench.mesh_port]);
    let answers: Vec<_> = (0..20).map(|_| client::get(bench.outbound, "http://pay/")).collect();
    assert!(answers.iter().all(|answer| answer.status == 200), "{}", caller.log());
    let mtls = answers.iter().filter(|answer| answer.body.contains("/sa/front")).count();
    assert!((1..20).contains(&mtls), "{mtls} of 20 over mTLS");
}

#[test]
fn calls_are_told_each_second_by_cluster_endpoint_and_kind_of_caller() {
    let Some(mut bench) = Bench::new() else { return };
    let app = ok();
    let (_caller, _called) = bench.pair(app, door(MtlsMode::Permissive, Protocol::Http), H2);
    for _ in 0..5 {
        client::get(bench.outbound, "http://pay/");
    }
    let total = |metric: &str, key: &str, value: &str| -> i64 {
        let metrics = bench.plane.seen.metrics.lock().unwrap();
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
            total("cluster.endpoint.rq_success", "envoy.endpoint_hostname", "pay-1"),
            total(
                "http.downstream_rq_total",
                "envoy.http_conn_manager_prefix",
                &format!("inbound|{app}|mtls"),
            ),
        ];
        (totals == [5, 5, 5]).then_some(())
    });
    let metrics = bench.plane.seen.metrics.lock().unwrap();
    let kept =
        |name: &str| ["cluster.", "http.", "tcp.", "control_plane."].iter().any(|p| name.starts_with(p));
    let other: Vec<_> = metrics.iter().map(|metric| &metric.name).filter(|name| !kept(name)).collect();
    assert!(other.is_empty(), "{other:?}");
}

/// The address by which other machines would reach this one; nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

fn tls_client(alpn: &[&[u8]]) -> rustls::ClientConnection {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(crate::support::pki::AnyServer))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    rustls::ClientConnection::new(Arc::new(config), "pay".try_into().unwrap()).unwrap()
}

pub fn client_hello(alpn: &[&[u8]]) -> Vec<u8> {
    let mut hello = Vec::new();
    tls_client(alpn).write_tls(&mut hello).unwrap();
    hello
}
