//! The rules of `intercept` in the kernel: a pod and a node, each a network namespace, with a cable between them.
//!
//! Needs root; without it the tests say so and pass.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails says what it expected"
)]

use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, setsockopt, socket,
        sockopt::{Ip6tOriginalDst, OriginalDst, Priority},
    },
    unistd::{Uid, geteuid, gettid, setfsuid},
};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::Duration,
};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

const APPLICATION: u32 = 0;
const PROXY: u32 = 1337;
/// `SO_PRIORITY` of Envoy's calls for the application.
const CALL: i32 = 4;

/// A network namespace. It belongs to a thread, and ends with it.
struct Place {
    work: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    thread: i32,
}

impl Place {
    fn new() -> Self {
        let (work, todo) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (tell, thread) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(gettid().as_raw()).expect("heard");
            todo.into_iter().for_each(|work| work());
        });
        let place = Self { work, thread: thread.recv().expect("told") };
        place.ip("link set lo up");
        place
    }

    /// Does something in it.
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.work.send(Box::new(move || tell.send(work()).expect("heard"))).expect("lives");
        told.recv().expect("done")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments);
        self.run(move || command.output().expect("run"))
    }

    fn ip(&self, arguments: &str) {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = self.command("ip", &arguments);
        assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    }

    fn intercept(&self, arguments: &[&str]) {
        let output = self.command(SIDECAR, &[&["intercept"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
    }

    /// Somebody who tells every caller who answers, and where the caller wanted to go.
    fn listen(&self, port: u16, name: &'static str) {
        let listener = self.run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("bound"));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                let answer = format!("{name} {}", wanted(&stream).map_or("-".into(), |at| at.to_string()));
                // A caller that goes is no concern of this.
                stream.write_all(answer.as_bytes()).ok();
            }
        });
    }

    /// Who answers `user`'s call, and where it was to go.
    fn call(&self, user: u32, priority: i32, to: &str) -> String {
        let to: SocketAddr = to.parse().expect("an address");
        self.run(move || {
            let dialled = dial(user, priority, to);
            let Ok(mut stream) = dialled else { return "nobody".into() };
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            let mut answer = String::new();
            match stream.read_to_string(&mut answer) {
                Ok(_) => answer,
                Err(error) => format!("silence: {error}"),
            }
        })
    }
}

const SIDECAR: &str = env!("CARGO_BIN_EXE_airlane-sidecar");

/// Connects as `user`: the kernel gives a socket its creator's file system user, which a thread has for itself.
fn dial(user: u32, priority: i32, to: SocketAddr) -> nix::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    setfsuid(Uid::from_raw(user));
    let made = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    setfsuid(Uid::from_raw(APPLICATION));
    let made = made?;
    setsockopt(&made, Priority, &priority)?;
    connect(made.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(made))
}

/// Where a redirected connection was to go.
fn wanted(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().expect("connected");
    let here = SocketAddr::new(local.ip().to_canonical(), local.port());
    let at = if here.is_ipv4() {
        let at = getsockopt(stream, OriginalDst).ok()?;
        SocketAddr::from((u32::from_be(at.sin_addr.s_addr).to_be_bytes(), u16::from_be(at.sin_port)))
    } else {
        let at = getsockopt(stream, Ip6tOriginalDst).ok()?;
        SocketAddr::from((at.sin6_addr.s6_addr, u16::from_be(at.sin6_port)))
    };
    (at != here).then_some(at)
}

/// A pod at 10.1.0.2 and fd01::2 whose node is at 10.1.0.1 and fd01::1.
struct World {
    pod: Place,
    node: Place,
}

impl World {
    fn new() -> Option<Self> {
        if !geteuid().is_root() {
            assert!(std::env::var_os("AIRLANE_REQUIRE").is_none(), "only root may make network namespaces");
            println!("SKIPPED: only root may make network namespaces");
            return None;
        }
        let (pod, node) = (Place::new(), Place::new());
        pod.ip(&format!("link add eth0 type veth peer name eth0 netns {}", node.thread));
        for (place, v4, v6) in [(&pod, "10.1.0.2/24", "fd01::2/64"), (&node, "10.1.0.1/24", "fd01::1/64")] {
            place.ip(&format!("address add {v4} dev eth0"));
            place.ip(&format!("address add {v6} dev eth0 nodad"));
            place.ip("link set eth0 up");
        }
        pod.ip("route add default via 10.1.0.1");
        pod.ip("route add default via fd01::1");
        // An IPv6 socket on all addresses takes IPv4, too.
        for (port, name) in [
            (15001, "outbound"),
            (15006, "inbound"),
            (15020, "agent"),
            (8080, "application"),
            (9100, "metrics"),
        ] {
            pod.listen(port, name);
        }
        node.listen(80, "node");
        node.listen(5432, "database");
        Some(Self { pod, node })
    }
}

#[test]
fn calls_leave_through_envoy_and_envoys_do_not() {
    let Some(World { pod, .. }) = World::new() else { return };
    pod.intercept(&[
        "--exclude-outbound-ports",
        "5432",
        "--exclude-outbound-cidrs",
        "192.0.2.0/24,fd02::/16",
    ]);
    for (to, expected) in [
        ("10.1.0.1:80", "outbound 10.1.0.1:80"),
        ("203.0.113.9:443", "outbound 203.0.113.9:443"),
        ("[fd01::1]:80", "outbound [fd01::1]:80"),
        ("[2001:db8::1]:443", "outbound [2001:db8::1]:443"),
        ("10.1.0.1:5432", "database -"),
        ("[fd01::1]:5432", "database -"),
        // What stays in the pod is nobody else's.
        ("127.0.0.1:8080", "application -"),
        ("[::1]:8080", "application -"),
        ("10.1.0.2:8080", "application -"),
        ("[fd01::2]:8080", "application -"),
    ] {
        assert_eq!(pod.call(APPLICATION, 0, to), expected, "the application calls {to}");
    }
    for to in ["10.1.0.1:80", "[fd01::1]:80"] {
        for priority in [0, CALL] {
            assert_eq!(pod.call(PROXY, priority, to), "node -", "Envoy calls {to}");
        }
    }
}

#[test]
fn callers_come_in_through_envoy() {
    let Some(World { pod, node }) = World::new() else { return };
    pod.intercept(&["--exclude-inbound-ports", "9100"]);
    for (to, expected) in [
        ("10.1.0.2:8080", "inbound 10.1.0.2:8080"),
        ("10.1.0.2:4242", "inbound 10.1.0.2:4242"),
        ("[fd01::2]:8080", "inbound [fd01::2]:8080"),
        ("10.1.0.2:15020", "agent -"),
        ("[fd01::2]:15020", "agent -"),
        ("10.1.0.2:9100", "metrics -"),
        // A stranger must neither call in the pod's name nor have Envoy call itself.
        ("10.1.0.2:15001", "nobody"),
        ("10.1.0.2:15006", "nobody"),
        ("[fd01::2]:15001", "nobody"),
        ("[fd01::2]:15006", "nobody"),
    ] {
        assert_eq!(node.call(APPLICATION, 0, to), expected, "the node calls {to}");
    }
}

#[test]
fn a_call_to_oneself_comes_in_and_ends() {
    let Some(World { pod, .. }) = World::new() else { return };
    pod.intercept(&["--exclude-inbound-ports", "9100"]);
    for (to, priority, expected) in [
        ("10.1.0.2:8080", CALL, "inbound 10.1.0.2:8080"),
        ("[fd01::2]:8080", CALL, "inbound [fd01::2]:8080"),
        ("10.1.0.2:9100", CALL, "metrics -"),
        ("10.1.0.2:15020", CALL, "agent -"),
        ("127.0.0.1:8080", CALL, "application -"),
        ("[::1]:8080", CALL, "application -"),
        // Envoy's inbound listener, and the agent's probes.
        ("10.1.0.2:8080", 0, "application -"),
        ("[fd01::2]:8080", 0, "application -"),
        ("10.1.0.2:15006", 0, "nobody"),
    ] {
        assert_eq!(pod.call(PROXY, priority, to), expected, "Envoy calls {to}, priority {priority}");
    }
}

#[test]
fn without_inbound_only_calls_are_redirected() {
    let Some(World { pod, node }) = World::new() else { return };
    pod.intercept(&["--outbound-only"]);
    assert_eq!(node.call(APPLICATION, 0, "10.1.0.2:8080"), "application -");
    assert_eq!(pod.call(APPLICATION, 0, "10.1.0.1:80"), "outbound 10.1.0.1:80");
    assert_eq!(pod.call(PROXY, CALL, "10.1.0.2:8080"), "application -");
}

#[test]
fn without_ipv6_only_ipv4_is_redirected() {
    let Some(World { pod, node }) = World::new() else { return };
    pod.intercept(&["--ipv4-only"]);
    assert_eq!(pod.call(APPLICATION, 0, "10.1.0.1:80"), "outbound 10.1.0.1:80");
    assert_eq!(pod.call(APPLICATION, 0, "[fd01::1]:80"), "node -");
    assert_eq!(node.call(APPLICATION, 0, "10.1.0.2:8080"), "inbound 10.1.0.2:8080");
    assert_eq!(node.call(APPLICATION, 0, "10.1.0.2:15006"), "nobody");
    assert_eq!(pod.call(PROXY, CALL, "10.1.0.2:8080"), "inbound 10.1.0.2:8080");
}

#[test]
fn where_ipv6_is_switched_off_ipv4_is_redirected_all_the_same() {
    let Some(World { pod, node }) = World::new() else { return };
    pod.run(|| fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("switched off"));
    pod.intercept(&[]);
    assert_eq!(pod.call(APPLICATION, 0, "10.1.0.1:80"), "outbound 10.1.0.1:80");
    assert_eq!(node.call(APPLICATION, 0, "10.1.0.2:8080"), "inbound 10.1.0.2:8080");
}

#[test]
fn what_is_established_stays_and_doing_it_again_changes_nothing() {
    let Some(World { pod, node }) = World::new() else { return };
    let listener = node.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7000)).expect("bound"));
    let mut near = pod.run(|| dial(APPLICATION, 0, ([10, 1, 0, 1], 7000).into()).expect("connected"));
    let (mut accepted, _) = listener.accept().expect("accepted");
    pod.intercept(&[]);
    let rules = pod.command("nft", &["list", "ruleset"]).stdout;
    pod.intercept(&[]);
    assert_eq!(pod.command("nft", &["list", "ruleset"]).stdout, rules);
    let mut word = [0; 2];
    near.write_all(b"hi").expect("written");
    accepted.set_read_timeout(Some(PATIENCE)).expect("set");
    accepted.read_exact(&mut word).expect("read");
    accepted.write_all(b"ho").expect("written");
    near.set_read_timeout(Some(PATIENCE)).expect("set");
    near.read_exact(&mut word).expect("read");
    assert_eq!(&word, b"ho");
}

#[test]
fn without_the_capability_it_names_the_way_out() {
    let Some(World { pod, .. }) = World::new() else { return };
    let output = pod.command("setpriv", &["--bounding-set", "-net_admin", SIDECAR, "intercept"]);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && words.contains("airlane.dev/interception: Env"), "{output:?}");
    let printed = pod.command("setpriv", &["--bounding-set", "-net_admin", SIDECAR, "intercept", "--print"]);
    assert!(
        printed.status.success() && printed.stdout.starts_with(b"add table inet airlane\n"),
        "{printed:?}"
    );
}
