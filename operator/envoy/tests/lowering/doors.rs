//! How an application is entered through a real Envoy: who must prove what, and what is passed on.

use crate::support::{
    app,
    bench::{Bench, H2},
    client,
    meshes::{self, Build, door, endpoint, identity},
    proxy::Proxy,
    tls::{client_hello, tls_client},
    until,
};
use airlane_core::{mesh::Transport, policy::MtlsMode, world::Protocol};
use std::io::{Read, Write};

#[test]
fn a_plain_call_crosses_two_proxies_over_mtls_and_http2() {
    let Some(mut bench) = Bench::new() else { return };
    let app = app::ok();
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
        bench.pair(app::ok(), door(MtlsMode::Strict, Protocol::Http), Transport::Mtls { http2: false });
    let answer = client::get(bench.outbound, "http://pay/charge");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", caller.log());
    assert!(answer.body.contains("spiffe://airlane.local/ns/shop/sa/front"), "{}", answer.body);
}

#[test]
fn an_endpoint_that_proves_another_identity_is_not_called() {
    let Some(mut bench) = Bench::new() else { return };
    let app = app::ok();
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
    let (_caller, _called) = bench.pair(app::ok(), door(MtlsMode::Strict, Protocol::Http), H2);
    let mut plain = client::dial(bench.door()).unwrap();
    assert!(client::ask(&mut plain, "GET", "/", "pay", &[]).is_none(), "plaintext");
    assert_eq!(client::get(bench.outbound, "http://pay/").status, 200);
}

#[test]
fn permissive_counts_plaintext_and_passes_the_applications_own_tls() {
    let Some(mut bench) = Bench::new() else { return };
    let app = app::ok();
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
    let (_caller, called) = bench.pair(app::ok(), door(MtlsMode::Permissive, Protocol::Http), H2);
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
    let (_caller, _called) =
        bench.pair(app::ok(), door(MtlsMode::Disabled, Protocol::Http), Transport::Plaintext);
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
fn requests_inside_a_connect_are_routed_like_others() {
    let Some(mut bench) = Bench::new() else { return };
    let (caller, _called) = bench.pair(app::ok(), door(MtlsMode::Strict, Protocol::Http), H2);
    let mut tunnel = client::connect(bench.outbound, "pay.shop:80").unwrap();
    for _ in 0..2 {
        let answer = client::ask(&mut tunnel, "GET", "/charge", "pay.shop", &[]).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}\n{}", caller.log());
        assert!(answer.body.contains("/sa/front"), "{}", answer.body);
    }
    assert_eq!(caller.stat("cluster.80|pay|shop.upstream_rq_total"), 2);
}

#[test]
fn an_endpoint_without_a_sidecar_is_called_in_plaintext_beside_one_with() {
    let Some(mut bench) = Bench::new() else { return };
    let app = app::ok();
    let mesh = meshes::empty()
        .with(meshes::destination(
            "pay",
            Protocol::Http,
            Transport::Mixed,
            vec![endpoint("pay-1", bench.mesh_port, true), endpoint("pay-2", app::ok(), false)],
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
