//! Pods without a cluster: network namespaces on a switch of their own, redirected as in a real pod.

use super::client::dial;
use nix::sched::{CloneFlags, setns};
use std::{
    fs::File,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
};

/// The user that a pod's Envoy runs as.
pub const PROXY_UID: &str = "1337";

/// What redirects a pod's connections, without the guard that keeps strangers from Envoy's own ports: here the
/// listeners show that they need none.
const RULES: &str = r#"
table inet airlane {
    chain outbound {
        type nat hook output priority -100; policy accept;
        meta skuid 1337 goto of_proxy
        oifname "lo" accept
        meta l4proto tcp redirect to :15001
    }
    chain of_proxy {
        meta priority != 0:4 accept
        oifname != "lo" accept
        ip daddr 127.0.0.0/8 accept
        goto into_pod
    }
    chain inbound {
        type nat hook prerouting priority -100; policy accept;
        goto into_pod
    }
    chain into_pod {
        tcp dport 15000-15099 accept
        meta l4proto tcp redirect to :15006
    }
}
"#;

/// A network namespace, gone when dropped.
pub struct Host {
    name: String,
    pub address: IpAddr,
}

impl Host {
    /// What runs in the namespace: sockets stay in the one they were made in.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let inside = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    pub fn dial(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.within(|| dial(to))
    }

    /// A socket that listens on its address.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.within(|| TcpListener::bind((self.address, port)).unwrap())
    }

    /// Has no IPv6 any more, as on a node where it is switched off.
    pub fn without_ipv6(&self) {
        self.within(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
    }

    /// The local ends of listening IPv6 sockets, as the kernel writes them.
    pub fn listens_on_ipv6(&self) -> Vec<String> {
        const LISTENING: &str = "0A";
        let table = self.within(|| std::fs::read_to_string("/proc/thread-self/net/tcp6").unwrap());
        let lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.filter(|line| line.get(3) == Some(&LISTENING)).map(|line| line[1].to_owned()).collect()
    }

    /// A command that runs in the namespace as the proxy's user.
    pub fn command(&self) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]);
        command.args(["setpriv", "--reuid", PROXY_UID, "--regid", PROXY_UID, "--clear-groups"]);
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        Command::new("ip").args(["netns", "del", &self.name]).status().ok();
    }
}

/// A switch, with everything that is outside of pods at its own address.
pub struct Network {
    pub outside: Host,
    id: u16,
    pods: u8,
}

impl Network {
    /// `None`, said aloud, if this user may not make network namespaces; fails then under `AIRLANE_REQUIRE`.
    pub fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("AIRLANE_REQUIRE").is_none(), "only root makes network namespaces");
            eprintln!("SKIPPED: only root makes network namespaces");
            return None;
        }
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let id =
            u16::try_from(std::process::id() % 1_000).unwrap() * 60 + NEXT.fetch_add(1, Ordering::SeqCst);
        let outside = Host { name: format!("aln-{id}"), address: Ipv4Addr::new(10, 244, 0, 1).into() };
        run(&["ip", "netns", "add", &outside.name]);
        within(&outside, &["ip", "link", "add", "switch", "type", "bridge"]);
        within(&outside, &["ip", "address", "add", "10.244.0.1/24", "dev", "switch"]);
        within(&outside, &["ip", "link", "set", "lo", "up"]);
        within(&outside, &["ip", "link", "set", "switch", "up"]);
        Some(Self { outside, id, pods: 0 })
    }

    /// One more pod, whose connections are redirected.
    pub fn pod(&mut self) -> Host {
        self.pods += 1;
        let (name, cable) = (format!("aln-{}-{}", self.id, self.pods), format!("pod-{}", self.pods));
        let address = Ipv4Addr::new(10, 244, 0, self.pods + 1);
        let pod = Host { name, address: address.into() };
        run(&["ip", "netns", "add", &pod.name]);
        let ends = ["ip", "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &pod.name];
        within(&self.outside, &ends);
        within(&self.outside, &["ip", "link", "set", &cable, "master", "switch", "up"]);
        within(&pod, &["ip", "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        within(&pod, &["ip", "link", "set", "lo", "up"]);
        within(&pod, &["ip", "link", "set", "eth0", "up"]);
        within(&pod, &["ip", "route", "add", "default", "via", "10.244.0.1"]);
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &pod.name, "nft", "--file", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        nft.stdin.take().unwrap().write_all(RULES.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success());
        pod
    }
}

fn within(host: &Host, command: &[&str]) {
    run(&[&["ip", "netns", "exec", &host.name], command].concat());
}

fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
