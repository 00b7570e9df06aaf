//! What a real Envoy does with connections that the kernel redirects, in pods without a cluster.

use crate::support::{
    app, client, envoy,
    meshes::{self, Build, door, identity, undeclared},
    plane::Plane,
    pod::{Host, Network},
    proxy::Proxy,
    until,
};
use airlane_core::{
    mesh::{Door, Endpoint, Mesh, Transport, Undeclared},
    policy::MtlsMode::{self, Permissive, Strict},
    world::Protocol::{self, Http, Tcp},
};
use airlane_envoy::lower::{Lowerer, Settings};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

const PAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 5));
const LEDGER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 6));

/// A pod `front`, a pod `pay`, and a control plane outside of both.
struct Town {
    envoy: PathBuf,
    plane: Plane,
    lowerer: Lowerer,
    front: Host,
    pay: Host,
    network: Network,
}

impl Town {
    fn new() -> Option<Self> {
        let envoy = envoy()?;
        let mut network = Network::new()?;
        let (front, pay) = (network.pod(), network.pod());
        let plane = Plane::start_on(network.outside.listen(0));
        let settings = Settings {
            bundle_pem: plane.authority.root_pem.clone(),
            fail_safe_after: Duration::from_secs(600),
        };
        Some(Self { envoy, plane, lowerer: Lowerer::new(settings), front, pay, network })
    }

    fn publish(&mut self, mesh: &Mesh) {
        self.plane.publish(self.lowerer.lower(mesh).0);
    }

    fn proxy(&self, pod: &Host, name: &str) -> Proxy {
        Proxy::start_in(pod, &self.envoy, &self.plane, &format!("{name}-1"), &identity("shop", name))
    }

    /// Both proxies, with a mesh published.
    fn proxies(&mut self, mesh: &Mesh) -> (Proxy, Proxy) {
        self.publish(mesh);
        (self.proxy(&self.front, "front"), self.proxy(&self.pay, "pay"))
    }

    /// `pay` behind these ports of one service: its number and what the application listens on.
    fn mesh(&self, mtls: MtlsMode, ports: &[(u16, u16)], elsewhere: Undeclared) -> Mesh {
        let mut mesh = meshes::empty();
        for (number, app) in ports {
            let transport = Transport::Mtls { http2: true };
            let endpoints = vec![self.endpoint(&self.pay, "pay-1", *app)];
            mesh = mesh.with(meshes::in_cluster("pay", (PAY, *number), Http, transport, endpoints));
        }
        let doors: Vec<(u16, Door)> = ports.iter().map(|(_, app)| (*app, door(mtls, Http))).collect();
        mesh.pod("front-1", "front", &[], undeclared(Permissive))
            .pod("pay-1", "pay", &doors, elsewhere)
            .at("pay-1", self.pay.address)
    }

    fn endpoint(&self, pod: &Host, instance: &str, app: u16) -> Endpoint {
        let address = SocketAddr::new(pod.address, app);
        Endpoint { instance: instance.parse().unwrap(), address, mtls: true, healthy: true }
    }

    /// What `front` gets from where it calls, or nothing.
    fn get(&self, to: (IpAddr, u16), host: &str) -> Option<client::Response> {
        get(&self.front, to, host)
    }
}

fn get(pod: &Host, to: (IpAddr, u16), host: &str) -> Option<client::Response> {
    let mut connection = pod.dial(to.into()).ok()?;
    client::ask(&mut connection, "GET", "/", host, &[])
}

/// An application that tells its name and what it saw.
fn says(pod: &Host, port: u16, name: &'static str) {
    app::serve_from(pod.listen(port), move |request| (200, format!("{name} {:?}", request.headers)));
}

fn greeting(connection: &mut TcpStream) -> String {
    let (mut hello, mut echo) = ([0; 6], [0; 4]);
    connection.read_exact(&mut hello).unwrap();
    connection.write_all(b"echo").unwrap();
    connection.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"echo");
    String::from_utf8_lossy(&hello).into_owned()
}

/// Whether the other end closed instead of answering.
fn refused(connection: std::io::Result<TcpStream>) -> bool {
    let Ok(mut connection) = connection else { return true };
    write!(connection, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").ok();
    match connection.read(&mut [0; 1]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_request_goes_to_the_port_that_was_called_by_every_name_of_the_service() {
    let Some(mut town) = Town::new() else { return };
    says(&town.pay, 9_080, "main");
    says(&town.pay, 9_090, "metrics");
    let mesh = town.mesh(Strict, &[(80, 9_080), (8_080, 9_090)], undeclared(Strict));
    let (front, pay) = town.proxies(&mesh);
    let hosts = [
        "pay",
        "pay:8080",
        "pay.shop",
        "pay.shop.svc",
        "PAY.shop.svc.cluster.local",
        "pay.shop.svc.cluster.local.",
        "pay.shop.svc.cluster.local:80",
        "10.96.0.5",
        "10.96.0.5:8080",
    ];
    for host in hosts {
        for (port, name) in [(80, "main"), (8_080, "metrics")] {
            let answer = town.get((PAY, port), host).unwrap();
            assert_eq!(answer.status, 200, "{host} on {port}: {answer:?}\n{}", front.log());
            assert!(answer.body.starts_with(name), "{host} on {port}: {}", answer.body);
            assert!(answer.body.contains("spiffe://airlane.local/ns/shop/sa/front"), "{}", answer.body);
        }
    }
    assert_eq!(pay.stat("http.inbound|9080|mtls.downstream_rq_total"), 9);
    assert_eq!(front.stat("cluster.8080|pay|shop.upstream_rq_total"), 9);
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    let Some(mut town) = Town::new() else { return };
    app::greet_from(town.pay.listen(3_306));
    app::greet_from(town.network.outside.listen(25));
    app::greet_from(town.network.outside.listen(8_080));
    let tcp = Transport::Mtls { http2: false };
    let endpoints = vec![town.endpoint(&town.pay, "pay-1", 3_306)];
    let mesh = town
        .mesh(Strict, &[(8_080, 9_080)], undeclared(Strict))
        .with(meshes::in_cluster("pay", (LEDGER, 3_306), Tcp, tcp, endpoints))
        .pod("pay-1", "pay", &[(9_080, door(Strict, Http)), (3_306, door(Strict, Tcp))], undeclared(Strict));
    let (_front, pay) = town.proxies(&mesh);
    let timed = |to: (IpAddr, u16)| {
        let began = Instant::now();
        assert_eq!(greeting(&mut town.front.dial(to.into()).unwrap()), "hello\n", "{to:?}");
        began.elapsed()
    };
    let at_once = [timed((LEDGER, 3_306)), timed((town.network.outside.address, 25))];
    assert!(at_once.iter().all(|it| *it < Duration::from_millis(900)), "{at_once:?}");
    assert_eq!(pay.stat("tcp.inbound|3306|mtls.downstream_cx_total"), 1);
    // On a port with requests somebody must show that he waits.
    timed((town.network.outside.address, 8_080));
}

#[test]
fn a_client_of_a_service_may_open_its_connection_long_before_it_asks_and_ask_in_pieces() {
    let Some(mut town) = Town::new() else { return };
    says(&town.pay, 9_080, "pay");
    let mesh = town.mesh(Strict, &[(80, 9_080)], undeclared(Strict));
    let (front, _pay) = town.proxies(&mesh);
    let mut early = town.front.dial((PAY, 80).into()).unwrap();
    early.set_read_timeout(Some(Duration::from_millis(1_500))).unwrap();
    let silence = loop {
        let silence = early.read(&mut [0; 1]).unwrap_err().kind();
        if silence != ErrorKind::Interrupted {
            break silence;
        }
    };
    assert_eq!(silence, ErrorKind::WouldBlock);
    let answer = client::ask(&mut early, "GET", "/", "pay", &[]).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}\n{}", front.log());
    for _ in 0..50 {
        let mut connection = town.front.dial((PAY, 80).into()).unwrap();
        for piece in ["GET", " ", "/", " HTTP/1.1\r\nhost: ", "pay", "\r\n", "connection: close\r\n", "\r\n"]
        {
            connection.write_all(piece.as_bytes()).unwrap();
        }
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("/sa/front"), "{answer}");
    }
}

#[test]
fn what_is_not_of_the_mesh_passes_as_it_came() {
    let Some(mut town) = Town::new() else { return };
    let outside = town.network.outside.address;
    for port in [80, 7_777] {
        app::serve_from(town.network.outside.listen(port), |request| (200, format!("{:?}", request.headers)));
    }
    let mesh = town.mesh(Strict, &[(80, 9_080), (443, 9_443)], undeclared(Strict));
    let (front, _pay) = town.proxies(&mesh);
    for (port, host) in
        [(80, "api.example"), (80, "10.244.0.1"), (7_777, "pay"), (80, "pay.bank.svc.cluster.local")]
    {
        let answer = town.get((outside, port), host).unwrap();
        assert_eq!(answer.status, 200, "{host} on {port}: {answer:?}\n{}", front.log());
        assert!(answer.body.contains(&format!("(\"host\", \"{host}\")")), "{}", answer.body);
        assert!(!answer.body.contains("x-envoy") && !answer.body.contains("x-forwarded"), "{}", answer.body);
    }
    // TLS and what nobody knows, on a port with requests and on another.
    for port in [443, 7_443] {
        app::greet_from(town.network.outside.listen(port));
        for hello in [&crate::support::tls::client_hello(&[])[..], b"\x00\x01\x02unknown"] {
            let mut connection = town.front.dial((outside, port).into()).unwrap();
            connection.write_all(hello).unwrap();
            let mut echo = vec![0; 6 + hello.len()];
            connection.read_exact(&mut echo).unwrap();
            assert_eq!(&echo[6..], hello, "on {port}");
        }
    }
}

#[test]
fn strict_refuses_plaintext_on_every_port_but_exceptions() {
    let Some(mut town) = Town::new() else { return };
    for port in [9_080, 9_100, 9_200, 3_306] {
        says(&town.pay, port, "pay");
    }
    let elsewhere = Undeclared { exceptions: [(9_100, Permissive)].into(), ..undeclared(Strict) };
    let closed = |mtls, protocol: Protocol| [(9_080, door(mtls, Http)), (3_306, door(mtls, protocol))];
    let mesh = town.mesh(Strict, &[(80, 9_080)], elsewhere.clone()).pod(
        "pay-1",
        "pay",
        &closed(Strict, Tcp),
        elsewhere,
    );
    let (_front, pay) = town.proxies(&mesh);
    let stranger = |port| town.network.outside.dial((town.pay.address, port).into());
    for port in [9_080, 9_200, 3_306] {
        assert!(refused(stranger(port)), "{port}: {}", pay.log());
    }
    let answer =
        |port| get(&town.network.outside, (town.pay.address, port), "pay").map(|answer| answer.status);
    assert_eq!(answer(9_100), Some(200), "{}", pay.log());
    assert_eq!(town.get((PAY, 80), "pay").unwrap().status, 200);
    // What is open elsewhere opens no door that is closed.
    let open_elsewhere = town.mesh(Strict, &[(80, 9_080)], undeclared(Permissive)).pod(
        "pay-1",
        "pay",
        &closed(Strict, Tcp),
        undeclared(Permissive),
    );
    let lowered = town.lowerer.lower(&open_elsewhere).0;
    town.plane.publish(lowered);
    let stranger = |port| town.network.outside.dial((town.pay.address, port).into());
    until("the port that nobody declared opens", || (!refused(stranger(9_200))).then_some(()));
    assert!(refused(stranger(9_080)) && refused(stranger(3_306)));
}

#[test]
fn permissive_lets_plaintext_in_and_counts_it() {
    let Some(mut town) = Town::new() else { return };
    says(&town.pay, 9_080, "pay");
    app::greet_from(town.pay.listen(3_306));
    app::greet_from(town.pay.listen(6_379));
    let doors = [(9_080, door(Permissive, Http)), (3_306, door(Permissive, Tcp))];
    let mesh = town.mesh(Permissive, &[(80, 9_080)], undeclared(Permissive)).pod(
        "pay-1",
        "pay",
        &doors,
        undeclared(Permissive),
    );
    let (_front, pay) = town.proxies(&mesh);
    let outside = &town.network.outside;
    assert_eq!(get(outside, (town.pay.address, 9_080), "x").unwrap().status, 200);
    assert_eq!(town.get((PAY, 80), "pay").unwrap().status, 200);
    let mut old = outside.dial((town.pay.address, 9_080).into()).unwrap();
    old.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    old.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{answer}");
    for port in [3_306, 6_379] {
        assert_eq!(greeting(&mut outside.dial((town.pay.address, port).into()).unwrap()), "hello\n");
    }
    assert_eq!(pay.stat("http.inbound|9080|plaintext.downstream_rq_total"), 2);
    assert_eq!(pay.stat("http.inbound|9080|mtls.downstream_rq_total"), 1);
    assert_eq!(pay.stat("tcp.inbound|3306|plaintext.downstream_cx_total"), 1);
    assert_eq!(pay.stat("tcp.inbound|0|plaintext.downstream_cx_total"), 1);
}

#[test]
fn a_service_may_call_itself_through_its_own_door() {
    let Some(mut town) = Town::new() else { return };
    says(&town.pay, 9_080, "pay");
    let mesh = town.mesh(Strict, &[(80, 9_080)], undeclared(Strict));
    let (_front, pay) = town.proxies(&mesh);
    let answer = get(&town.pay, (PAY, 80), "pay").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}\n{}", pay.log());
    assert!(answer.body.contains("spiffe://airlane.local/ns/shop/sa/pay"), "{}", answer.body);
}

#[test]
fn pods_of_a_service_without_an_address_are_called_as_themselves_over_mtls() {
    let Some(mut town) = Town::new() else { return };
    says(&town.pay, 9_080, "pay");
    app::greet_from(town.pay.listen(9_092));
    let headless = |name, port, protocol: Protocol| {
        let transport = Transport::Mtls { http2: protocol.is_http() };
        let endpoints = vec![town.endpoint(&town.pay, "pay-1", port)];
        let mut destination = meshes::in_cluster(name, (PAY, port), protocol, transport, endpoints);
        destination.addresses.clear();
        destination.clusters[0].identities = [identity("shop", "pay")].into();
        destination
    };
    let doors = [(9_080, door(Strict, Http)), (9_092, door(Strict, Tcp))];
    let mesh = meshes::empty()
        .with(headless("web", 9_080, Http))
        .with(headless("log", 9_092, Tcp))
        .pod("front-1", "front", &[], undeclared(Permissive))
        .pod("pay-1", "pay", &doors, undeclared(Strict))
        .at("pay-1", town.pay.address);
    let (front, pay) = town.proxies(&mesh);
    let at = town.pay.address;
    let pod_names =
        ["pay-0.web", "pay-0.web.shop:9080", "pay-0.web.shop.svc", "pay-0.web.shop.svc.cluster.local"];
    for host in pod_names.into_iter().chain(["web"]) {
        let answer = town.get((at, 9_080), host).unwrap();
        assert_eq!(answer.status, 200, "{host}: {answer:?}\n{}", front.log());
        assert!(answer.body.contains("spiffe://airlane.local/ns/shop/sa/front"), "{}", answer.body);
    }
    assert_eq!(greeting(&mut town.front.dial((at, 9_092).into()).unwrap()), "hello\n");
    assert_eq!(pay.stat("tcp.inbound|9092|mtls.downstream_cx_total"), 1);
    assert_eq!(
        front.stat("cluster.9080|web|shop.upstream_rq_total"),
        1,
        "only the service's name takes the share"
    );
}

#[test]
fn a_call_to_a_services_address_is_one_to_the_service_whatever_host_it_names() {
    let Some(mut town) = Town::new() else { return };
    says(&town.pay, 9_080, "pay");
    let mesh = town.mesh(Strict, &[(80, 9_080)], undeclared(Strict));
    let (front, _pay) = town.proxies(&mesh);
    for host in ["shop.example", "10.244.9.9:80", "pay.bank", "_", "*"] {
        let answer = town.get((PAY, 80), host).unwrap();
        assert_eq!(answer.status, 200, "{host}: {answer:?}\n{}", front.log());
        assert!(answer.body.contains("spiffe://airlane.local/ns/shop/sa/front"), "{}", answer.body);
        assert!(answer.body.contains(&format!("(\"host\", \"{host}\")")), "{}", answer.body);
        assert!(!answer.body.contains("x-airlane"), "{}", answer.body);
    }
    // No header of the caller's own says where to go.
    let mut connection = town.front.dial((PAY, 80).into()).unwrap();
    let astray = [("x-airlane-sought", "nowhere")];
    let answer = client::ask(&mut connection, "GET", "/", "shop.example", &astray).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(front.stat("cluster.80|pay|shop.upstream_rq_total"), 6);
}

#[test]
fn a_pod_that_is_called_by_its_address_answers_itself_over_mtls() {
    let Some(mut town) = Town::new() else { return };
    says(&town.pay, 9_080, "pay");
    app::greet_from(town.pay.listen(9_092));
    let doors = [(9_080, door(Strict, Http)), (9_092, door(Strict, Tcp))];
    let pods = |town: &Town| {
        town.mesh(Strict, &[(80, 9_080)], undeclared(Strict))
            .pod("pay-1", "pay", &doors, undeclared(Strict))
            .at("pay-1", town.pay.address)
    };
    let mesh = pods(&town);
    let (front, pay) = town.proxies(&mesh);
    let at = town.pay.address;
    for host in [&format!("{at}:9080"), "shop.example", "pay", "10.244.9.9"] {
        let answer = town.get((at, 9_080), host).unwrap();
        assert_eq!(answer.status, 200, "{host}: {answer:?}\n{}", front.log());
        assert!(answer.body.contains("spiffe://airlane.local/ns/shop/sa/front"), "{}", answer.body);
        assert!(!answer.body.contains("x-airlane"), "{}", answer.body);
    }
    assert_eq!(pay.stat("http.inbound|9080|mtls.downstream_rq_total"), 4);
    assert_eq!(greeting(&mut town.front.dial((at, 9_092).into()).unwrap()), "hello\n");
    assert_eq!(pay.stat("tcp.inbound|9092|mtls.downstream_cx_total"), 1);

    // Whoever proves to be somebody else there is given nothing.
    let mut other = pods(&town);
    let proxy = other.proxies.get_mut(&"pay-1".parse().unwrap()).unwrap();
    Arc::make_mut(proxy).identity = identity("shop", "ledger");
    town.publish(&other);
    until("nobody is believed to be ledger", || {
        (town.get((at, 9_080), "pay").unwrap().status == 503).then_some(())
    });
    assert!(refused(town.front.dial((at, 9_092).into())));
    // A pod that goes takes nothing with it.
    town.publish(&mesh);
    until("pay is pay again", || (town.get((at, 9_080), "pay").unwrap().status == 200).then_some(()));
}

#[test]
fn a_pod_without_ipv6_needs_none() {
    let Some(mut town) = Town::new() else { return };
    for pod in [&town.front, &town.pay] {
        pod.without_ipv6();
    }
    says(&town.pay, 9_080, "pay");
    let mesh = town.mesh(Strict, &[(80, 9_080)], undeclared(Strict)).at("front-1", town.front.address);
    let (front, _pay) = town.proxies(&mesh);
    assert_eq!(town.get((PAY, 80), "pay").unwrap().status, 200, "{}", front.log());
    for pod in [&town.front, &town.pay] {
        assert_eq!(pod.listens_on_ipv6(), Vec::<String>::new());
    }
}

#[test]
fn nothing_loops_on_the_proxys_own_ports() {
    let Some(mut town) = Town::new() else { return };
    let mesh = town.mesh(Permissive, &[(80, 9_080)], undeclared(Permissive));
    let (_front, pay) = town.proxies(&mesh);
    for port in [15_001, 15_006] {
        assert!(refused(town.network.outside.dial((town.pay.address, port).into())), "{port} from outside");
        assert!(refused(town.pay.dial((Ipv4Addr::LOCALHOST, port).into())), "{port} from the pod");
    }
    assert_eq!(pay.stat("tcp.inbound|0|plaintext.downstream_cx_total"), 0);
}
