//! Redirecting a pod's connections through Envoy: the rules, and handing them to the kernel.
//!
//! The rules live in one nftables table of the pod's network namespace, which is replaced whole, so that doing it
//! again changes nothing. They look at the first packet of a connection alone: what is established stays as it is.

use crate::args;
use airlane_wire::pod::{CALL_PRIORITY, INBOUND_PORT, OUTBOUND_PORT, PROXY_UID, RESERVED_PORTS};
use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    io::{self, Write as _},
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
    str::FromStr,
};

/// What not to redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interception {
    /// Whether IPv6 is redirected as well as IPv4.
    pub(crate) ipv6: bool,
    /// Whether connections that come in are redirected at all.
    pub(crate) inbound: bool,
    /// Ports of the pod that are reached past Envoy.
    pub(crate) except_inbound_ports: BTreeSet<u16>,
    /// Ports that the application calls past Envoy, wherever they are.
    pub(crate) except_outbound_ports: BTreeSet<u16>,
    /// Addresses that the application calls past Envoy.
    pub(crate) except_outbound_networks: BTreeSet<Network>,
}

impl Interception {
    /// What is asked for. `has_ipv6`: whether there is any IPv6 to redirect ([`has_ipv6`]).
    pub(crate) fn asked(args: args::Intercept, has_ipv6: bool) -> Self {
        Self {
            ipv6: has_ipv6 && !args.ipv4_only,
            inbound: !args.outbound_only,
            except_inbound_ports: args.exclude_inbound_ports.into_iter().collect(),
            except_outbound_ports: args.exclude_outbound_ports.into_iter().collect(),
            except_outbound_networks: args.exclude_outbound_cidrs.into_iter().collect(),
        }
    }
}

/// Whether the kernel has IPv6 at all: without it nft cannot be asked for rules about it.
pub(crate) fn has_ipv6() -> bool {
    // Made by the kernel's IPv6, whether or not an interface has an address (net/ipv6/addrconf.c).
    Path::new("/proc/net/if_inet6").exists()
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u8,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Network {
    type Err = String;

    /// Reads `10.0.0.0/8`, `fd00::/8`, or one address.
    fn from_str(text: &str) -> Result<Self, String> {
        let mend = || format!("{text:?} is not a range of addresses: write 10.0.0.0/8 or fd00::/8");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| mend())?;
        let prefix_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(prefix_max), str::parse).map_err(|_| mend())?;
        if prefix > prefix_max { Err(mend()) } else { Ok(Self { address, prefix }) }
    }
}

/// The rules, as `nft -f` reads them.
///
/// - A call of the application goes to Envoy, unless it stays in the pod (`lo`).
/// - A connection of agent or Envoy goes where it wants, which ends every loop; but one that Envoy opens for the
///   application ([`CALL_PRIORITY`]) and that leads back into this pod comes in as any other caller's would.
/// - A connection from outside goes to Envoy, unless it is for the agent.
/// - Nobody reaches Envoy's own two ports unredirected: a stranger would call in this pod's name through the first,
///   and have Envoy call itself through the second.
pub(crate) fn rules(of: &Interception) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    write_rules(&mut text, of).ok();
    text
}

fn write_rules(out: &mut String, of: &Interception) -> fmt::Result {
    let opening = "tcp flags & (fin | syn | rst | ack) != syn accept";
    let family = if of.ipv6 { "inet" } else { "ip" };
    // One transaction: the first line lets the second find a table, whatever was there.
    writeln!(out, "add table {family} airlane")?;
    writeln!(out, "delete table {family} airlane")?;
    writeln!(out, "table {family} airlane {{")?;

    writeln!(out, "    chain outbound {{")?;
    writeln!(out, "        type nat hook output priority -100; policy accept;")?;
    writeln!(out, "        {opening}")?;
    writeln!(out, "        meta skuid {PROXY_UID} goto of_proxy")?;
    writeln!(out, "        oifname \"lo\" accept")?;
    // A rule for each: a set refuses ranges that overlap.
    let networks = of.except_outbound_networks.iter();
    for network in networks.filter(|network| of.ipv6 || network.address.is_ipv4()) {
        let family = if network.address.is_ipv4() { "ip" } else { "ip6" };
        writeln!(out, "        {family} daddr {network} accept")?;
    }
    write_accepted_ports(out, &of.except_outbound_ports)?;
    writeln!(out, "        meta l4proto tcp redirect to :{OUTBOUND_PORT}")?;
    writeln!(out, "    }}")?;

    writeln!(out, "    chain of_proxy {{")?;
    if of.inbound {
        writeln!(out, "        meta priority != 0:{CALL_PRIORITY:x} accept")?;
        writeln!(out, "        oifname != \"lo\" accept")?;
        writeln!(out, "        ip daddr 127.0.0.0/8 accept")?;
        if of.ipv6 {
            writeln!(out, "        ip6 daddr ::1 accept")?;
        }
        writeln!(out, "        goto into_pod")?;
    }
    writeln!(out, "    }}")?;

    if of.inbound {
        writeln!(out, "    chain inbound {{")?;
        writeln!(out, "        type nat hook prerouting priority -100; policy accept;")?;
        writeln!(out, "        {opening}")?;
        writeln!(out, "        goto into_pod")?;
        writeln!(out, "    }}")?;
        writeln!(out, "    chain into_pod {{")?;
        writeln!(out, "        tcp dport {}-{} accept", RESERVED_PORTS.start(), RESERVED_PORTS.end())?;
        write_accepted_ports(out, &of.except_inbound_ports)?;
        writeln!(out, "        meta l4proto tcp redirect to :{INBOUND_PORT}")?;
        writeln!(out, "    }}")?;
    }

    writeln!(out, "    chain guard {{")?;
    writeln!(out, "        type filter hook input priority 0; policy accept;")?;
    writeln!(
        out,
        "        tcp dport {{ {OUTBOUND_PORT}, {INBOUND_PORT} }} ct status & dnat == 0 reject with tcp reset"
    )?;
    writeln!(out, "    }}")?;
    writeln!(out, "}}")
}

fn write_accepted_ports(out: &mut String, ports: &BTreeSet<u16>) -> fmt::Result {
    if ports.is_empty() {
        return Ok(());
    }
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    writeln!(out, "        tcp dport {{ {} }} accept", ports.join(", "))
}

/// Why the rules are not in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotIntercepted {
    /// There is no `nft`.
    #[error("`nft` is not in this image: use Airlane's own for the init container")]
    NoTool(#[source] io::Error),
    /// It could not be run, or did not take the rules.
    #[error("cannot hand the rules to `nft`")]
    Run(#[source] io::Error),
    /// The capability is missing.
    #[error(
        "this container may not change the pod's network rules: allow it the capability NET_ADMIN, or, where Pod \
         Security forbids that, annotate the pod with `airlane.dev/interception: Env`, which needs none"
    )]
    Forbidden,
    /// The kernel or the tool does not know something in them.
    #[error("`nft` refused the rules: {0}")]
    Refused(String),
}

/// Puts rules in force, in the network namespace of this process.
pub(crate) fn enforce(rules: &str) -> Result<(), NotIntercepted> {
    let tool = Command::new("nft")
        .args(["--file", "-"])
        // Its words are looked at below.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut tool = tool.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NotIntercepted::NoTool(error),
        _ => NotIntercepted::Run(error),
    })?;
    let written = tool.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(rules.as_bytes()));
    let ended = tool.wait_with_output().map_err(NotIntercepted::Run)?;
    if ended.status.success() {
        return written.map_err(NotIntercepted::Run);
    }
    let words = String::from_utf8_lossy(&ended.stderr);
    if words.contains("Operation not permitted") {
        Err(NotIntercepted::Forbidden)
    } else {
        Err(NotIntercepted::Refused(words.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Interception {
        Interception {
            ipv6: true,
            inbound: true,
            except_inbound_ports: BTreeSet::new(),
            except_outbound_ports: BTreeSet::new(),
            except_outbound_networks: BTreeSet::new(),
        }
    }

    fn check(of: &Interception, expected: &str) {
        assert_eq!(rules(of), expected);
    }

    #[test]
    fn everything_is_redirected_but_what_loops() {
        check(
            &everything(),
            r#"add table inet airlane
delete table inet airlane
table inet airlane {
    chain outbound {
        type nat hook output priority -100; policy accept;
        tcp flags & (fin | syn | rst | ack) != syn accept
        meta skuid 1337 goto of_proxy
        oifname "lo" accept
        meta l4proto tcp redirect to :15001
    }
    chain of_proxy {
        meta priority != 0:4 accept
        oifname != "lo" accept
        ip daddr 127.0.0.0/8 accept
        ip6 daddr ::1 accept
        goto into_pod
    }
    chain inbound {
        type nat hook prerouting priority -100; policy accept;
        tcp flags & (fin | syn | rst | ack) != syn accept
        goto into_pod
    }
    chain into_pod {
        tcp dport 15000-15099 accept
        meta l4proto tcp redirect to :15006
    }
    chain guard {
        type filter hook input priority 0; policy accept;
        tcp dport { 15001, 15006 } ct status & dnat == 0 reject with tcp reset
    }
}
"#,
        );
    }

    #[test]
    fn exceptions_come_before_the_redirection() {
        let network = |text: &str| text.parse::<Network>().expect("a network");
        let of = Interception {
            except_inbound_ports: [9100, 22].into(),
            except_outbound_ports: [5432].into(),
            except_outbound_networks: ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "192.0.2.1"]
                .map(network)
                .into(),
            ..everything()
        };
        let rules = rules(&of);
        let chain = |name: &str| {
            let (_, rest) = rules.split_once(&format!("chain {name} {{")).expect("the chain");
            rest.split_once("    }\n").expect("its end").0
        };
        assert!(chain("outbound").contains(
            "        ip daddr 10.0.0.0/8 accept\n        ip daddr 10.1.0.0/16 accept\n        \
             ip daddr 192.0.2.1/32 accept\n        ip6 daddr fd00::/8 accept\n        \
             tcp dport { 5432 } accept\n        meta l4proto tcp redirect to :15001\n"
        ));
        assert!(chain("into_pod").contains(
            "        tcp dport { 22, 9100 } accept\n        meta l4proto tcp redirect to :15006\n"
        ));
    }

    #[test]
    fn without_ipv6_nothing_is_said_about_it() {
        let network = |text: &str| text.parse::<Network>().expect("a network");
        let excepted = ["10.0.0.0/8", "fd00::/8"].map(network).into();
        let rules = rules(&Interception { ipv6: false, except_outbound_networks: excepted, ..everything() });
        assert!(
            rules.contains("table ip airlane") && rules.contains("ip daddr 10.0.0.0/8 accept"),
            "{rules}"
        );
        assert!(!rules.contains("ip6") && !rules.contains("inet"), "{rules}");
    }

    #[test]
    fn without_inbound_nothing_comes_in_through_envoy() {
        let rules = rules(&Interception { inbound: false, ..everything() });
        assert!(!rules.contains("redirect to :15006") && !rules.contains("prerouting"), "{rules}");
        assert!(rules.contains("    chain of_proxy {\n    }\n"), "{rules}");
    }

    #[test]
    fn a_network_is_a_range_or_an_address() {
        for (text, expected) in [("10.0.0.0/8", "10.0.0.0/8"), ("::1", "::1/128"), ("0.0.0.0/0", "0.0.0.0/0")]
        {
            assert_eq!(text.parse::<Network>().expect("a network").to_string(), expected);
        }
        for text in ["", "10", "10.0.0.0/33", "fd00::/129", "10.0.0.0/", "10.0.0.0/8; drop", "10.0.0.0/-1"] {
            let refused = text.parse::<Network>().expect_err("no network");
            assert!(refused.contains("write 10.0.0.0/8"), "{refused}");
        }
    }
}
