//! What a name means to a real Envoy: a service, a host outside the mesh, or nothing.

use crate::support::{
    app,
    bench::Bench,
    client,
    meshes::{self, Build, endpoint},
    until,
};
use airlane_core::{
    mesh::{Mesh, Route, Transport},
    world::Protocol,
};
use std::{
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

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
    let mut mesh = meshes::plaintext(vec![]);
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

/// The address by which other machines would reach this one; nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}
