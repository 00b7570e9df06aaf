//! The application's calls where the kernel redirects them: listeners that look like what was called.
//!
//! Everything arrives at one listener, which finds the one that stands for the destination and hands the connection
//! over: exactly this address and port (bytes for a service), else this port on any address (requests), else itself
//! (nothing of ours: passed on as it came). Each is a resource of its own, so that a new service closes nobody's
//! connections, and only on ports where the mesh has requests to route does anybody wait to see what a caller says.

use super::{
    Lowered,
    door::{any_http1, closed, listener_filter, original_destination, tls_inspector},
    listener::{HTTP, listener, routed},
    lookup::Key,
    original::DIRECT,
    pods::{self, Places, expectation, expecting},
    proto::{address, any_port, duration, network_filter, no, number, packed, range, yes},
    routes::{PodRoutes, PortRoutes},
};
use crate::catalog::Kind;
use airlane_core::{
    id::{Identity, Namespace},
    mesh::{Destination, Mesh, RESERVED_PORTS, Route},
    policy::Millis,
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::TrafficDirection,
            listener::v3::{Filter, FilterChain, FilterChainMatch, Listener},
        },
        extensions::filters::{
            listener::http_inspector::v3::HttpInspector,
            network::{
                http_connection_manager::v3::HttpConnectionManager,
                tcp_proxy::v3::{
                    TcpProxy,
                    tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
                },
            },
        },
    },
    google::protobuf::{Any, Duration},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

/// How long a caller may be silent on a port where requests are routed before it counts as one that waits for the
/// server to speak, unless it called where services are: there clients that open connections before they need them are
/// waited for.
const SILENCE: Millis = Millis(1_000);

/// How often a connection to an endpoint is tried for a caller of bytes, on another endpoint each time.
const CONNECT_ATTEMPTS: u32 = 3;

/// Where the kernel sends every call.
#[derive(Hash)]
pub(super) struct Exit {
    pub(super) port: u16,
    pub(super) ipv6: bool,
}

impl Lowered for Exit {
    const KIND: Kind = Kind::Listener;

    fn name(&self) -> String {
        "outbound".to_owned()
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        [DIRECT.into()].into()
    }

    fn encode(&self) -> Any {
        let (address, additional_addresses) = any_port(self.port, self.ipv6);
        packed(Listener {
            name: self.name(),
            address,
            additional_addresses,
            use_original_dst: Some(yes()),
            listener_filters: vec![original_destination()],
            filter_chains: vec![closed(self.port), as_it_came()],
            ..listener(TrafficDirection::Outbound)
        })
    }
}

/// Where requests of redirected callers go on one port.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Ways {
    /// The ranges that hold the services' addresses, if one of them has this port.
    pub(super) services: BTreeSet<(IpAddr, u8)>,
    /// Whether pods take requests on it.
    pub(super) pods: bool,
}

/// The ports on which requests of redirected callers are routed, by the callers' namespaces.
pub(super) fn requests(mesh: &Mesh, places: &Places) -> BTreeMap<(Namespace, u16), Ways> {
    if mesh.transparent_namespaces.is_empty() {
        return BTreeMap::new();
    }
    let destinations = mesh.destinations.values();
    let services = ranges(destinations.flat_map(|destination| destination.addresses.iter().copied()));
    let http = mesh.destinations.values().filter(|destination| destination.protocol.is_http());
    let with_address = http.filter(|destination| !destination.addresses.is_empty());
    let mut ports: BTreeMap<u16, Ways> = BTreeMap::new();
    for destination in with_address {
        ports.entry(destination.port.port).or_default().services.clone_from(&services);
    }
    for port in places.request_ports() {
        ports.entry(port).or_default().pods = true;
    }
    // A listener for one of these would have the address of one that the proxy has already.
    ports.retain(|port, _| !RESERVED_PORTS.contains(port));
    let of = |caller: &Namespace| {
        let caller = caller.clone();
        ports.iter().map(move |(port, ways)| ((caller.clone(), *port), ways.clone())).collect::<Vec<_>>()
    };
    mesh.transparent_namespaces.iter().flat_map(of).collect()
}

/// The addresses at which redirected callers reach services that speak bytes.
pub(super) fn bytes(mesh: &Mesh) -> BTreeMap<SocketAddr, Arc<Destination>> {
    if mesh.transparent_namespaces.is_empty() {
        return BTreeMap::new();
    }
    let tcp = mesh.destinations.values().filter(|destination| !destination.protocol.is_http());
    let addresses = tcp.flat_map(|destination| {
        let port = destination.port.port;
        destination.addresses.iter().map(move |own| (SocketAddr::new(*own, port), Arc::clone(destination)))
    });
    addresses.collect()
}

/// Calls to any address with a port on which the mesh has requests to route.
#[derive(Hash)]
pub(super) struct Requests<'a> {
    pub(super) caller: &'a Namespace,
    pub(super) port: u16,
    /// Where the services' addresses are, if one of them has this port.
    pub(super) services: &'a BTreeSet<(IpAddr, u8)>,
    /// Whether pods take requests on this port.
    pub(super) pods: bool,
}

impl Lowered for Requests<'_> {
    const KIND: Kind = Kind::Listener;

    fn name(&self) -> String {
        format!("outbound|{}", self.port)
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        [DIRECT.into()].into()
    }

    fn encode(&self) -> Any {
        let manager = |routes| HttpConnectionManager {
            http_protocol_options: Some(any_http1()),
            ..routed(routes, "outbound")
        };
        let of_services = || Key::Name.of(manager(PortRoutes::of(self.caller, self.port)));
        let of_pods = || expecting(Key::Address.of(manager(PodRoutes::of(self.port))));
        let chain = |name: &str, matching: FilterChainMatch, filter: Filter| FilterChain {
            name: name.to_owned(),
            filter_chain_match: Some(matching),
            filters: vec![filter],
            ..Default::default()
        };
        let seen = FilterChainMatch {
            application_protocols: ["http/1.0", "http/1.1", "h2c"].map(str::to_owned).to_vec(),
            ..Default::default()
        };
        let to_services = FilterChainMatch {
            prefix_ranges: self.services.iter().map(|services| range(*services)).collect(),
            ..Default::default()
        };
        let tls = FilterChainMatch { transport_protocol: "tls".to_owned(), ..to_services.clone() };
        let mut filter_chains = Vec::new();
        if self.pods {
            filter_chains.push(chain("pods", seen, network_filter(HTTP, of_pods())));
        }
        if !self.services.is_empty() {
            // No service that has this port speaks bytes, so that nobody need show what he speaks.
            filter_chains.push(chain("services", to_services, network_filter(HTTP, of_services())));
            let as_it_came = passed_on(ClusterSpecifier::Cluster(DIRECT.to_owned()));
            filter_chains.push(chain("tls", tls, as_it_came));
        }
        let (address, additional_addresses) = any_port(self.port, true);
        packed(Listener {
            name: self.name(),
            address,
            additional_addresses,
            bind_to_port: Some(no()),
            listener_filters: vec![
                tls_inspector(),
                listener_filter("envoy.filters.listener.http_inspector", HttpInspector::default()),
            ],
            listener_filters_timeout: Some(duration(SILENCE)),
            continue_on_listener_filters_timeout: true,
            filter_chains,
            default_filter_chain: Some(as_it_came()),
            ..listener(TrafficDirection::Outbound)
        })
    }
}

/// The size of what addresses a cluster gives to its services, by the prefixes' lengths: the largest that Kubernetes
/// allows, and the smallest in use. Two addresses that are in no such block together are of two clusters' worth of
/// services, with anything in between.
struct Blocks {
    largest: u32,
    smallest: u32,
}

const OF_V4: Blocks = Blocks { largest: 12, smallest: 16 };
const OF_V6: Blocks = Blocks { largest: 108, smallest: 112 };

/// Where these addresses are: of each of the largest blocks the smallest range that holds its own, and no less than the
/// smallest block. So a service that comes or goes moves a range four times at most on its way to the largest, and
/// pods and the outside stay apart from it, which often are in the next block.
pub(super) fn ranges(addresses: impl Iterator<Item = IpAddr>) -> BTreeSet<(IpAddr, u8)> {
    let mut blocks: BTreeMap<(bool, u128), (u128, u128)> = BTreeMap::new();
    for address in addresses {
        // As if the shorter ones ended with zeros, so that prefixes are the same.
        let (is_v4, bits, largest) = match address {
            IpAddr::V4(v4) => (true, u128::from(v4.to_bits()) << 96, OF_V4.largest),
            IpAddr::V6(v6) => (false, v6.to_bits(), OF_V6.largest),
        };
        let (low, high) = blocks.entry((is_v4, first(bits, largest))).or_insert((bits, bits));
        (*low, *high) = ((*low).min(bits), (*high).max(bits));
    }
    let range = |((is_v4, _), (low, high)): ((bool, u128), (u128, u128))| {
        let smallest = if is_v4 { OF_V4.smallest } else { OF_V6.smallest };
        let length = (low ^ high).leading_zeros().min(smallest);
        let start = first(low, length);
        let address = if is_v4 {
            Ipv4Addr::from_bits(u32::try_from(start >> 96).ok()?).into()
        } else {
            Ipv6Addr::from_bits(start).into()
        };
        Some((address, u8::try_from(length).ok()?))
    };
    blocks.into_iter().filter_map(range).collect()
}

/// The first so many bits, and zeros.
fn first(bits: u128, length: u32) -> u128 {
    bits & u128::MAX.checked_shl(u128::BITS - length).unwrap_or(0)
}

/// Calls to one address where bytes are spoken: a service's, or a pod's.
#[derive(Hash)]
pub(super) struct Bytes<'a> {
    at: SocketAddr,
    /// The clusters that take a share.
    shares: Vec<(String, u32)>,
    /// Who must answer, besides what the clusters ask.
    identity: Option<&'a Identity>,
}

impl<'a> Bytes<'a> {
    /// To any endpoint of the service. There is no coin for connections: the fail-safe shares hold.
    pub(super) fn to_service(at: SocketAddr, destination: &Destination) -> Self {
        let shares = match &destination.route {
            Route::To(cluster) => vec![(cluster.to_string(), 1)],
            Route::Split(split) => {
                let shares = split.fail_safe.iter().filter(|(_, share)| *share > 0);
                shares.map(|(cluster, share)| (cluster.to_string(), *share)).collect()
            }
        };
        Self { at, shares, identity: None }
    }

    /// To the pod that was called, and no other.
    pub(super) fn to_pod(at: SocketAddr, identity: &'a Identity) -> Self {
        Self { at, shares: vec![(pods::bytes(), 1)], identity: Some(identity) }
    }
}

impl Lowered for Bytes<'_> {
    const KIND: Kind = Kind::Listener;

    fn name(&self) -> String {
        format!("outbound|{}", self.at)
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        self.shares.iter().map(|(cluster, _)| cluster.as_str().into()).collect()
    }

    fn encode(&self) -> Any {
        let to = if let [(cluster, _)] = &self.shares[..] {
            ClusterSpecifier::Cluster(cluster.clone())
        } else {
            let clusters = self.shares.iter().map(|(cluster, share)| ClusterWeight {
                name: cluster.clone(),
                weight: *share,
                ..Default::default()
            });
            ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect() })
        };
        packed(Listener {
            name: self.name(),
            address: Some(address(self.at)),
            bind_to_port: Some(no()),
            filter_chains: vec![FilterChain {
                filters: self.identity.map(expectation).into_iter().chain([passed_on(to)]).collect(),
                ..Default::default()
            }],
            ..listener(TrafficDirection::Outbound)
        })
    }
}

/// Everything else is no business of the mesh.
fn as_it_came() -> FilterChain {
    FilterChain {
        name: "direct".to_owned(),
        filters: vec![passed_on(ClusterSpecifier::Cluster(DIRECT.to_owned()))],
        ..Default::default()
    }
}

fn passed_on(to: ClusterSpecifier) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: "outbound".to_owned(),
        cluster_specifier: Some(to),
        max_connect_attempts: Some(number(CONNECT_ATTEMPTS)),
        // Connections without a byte belong to their ends. A policy's limit would change listeners.
        idle_timeout: Some(Duration::default()),
        ..Default::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", proxy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(addresses: &[&str], expected: &[(&str, u8)]) {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address"));
        let expected = expected.iter().map(|(text, length)| (text.parse().expect("an address"), *length));
        assert_eq!(ranges(addresses), expected.collect());
    }

    #[test]
    fn a_block_has_one_range_which_is_no_smaller_than_a_clusters() {
        check(&[], &[]);
        check(&["10.96.0.5"], &[("10.96.0.0", 16)]);
        check(&["10.96.0.5", "10.96.255.6"], &[("10.96.0.0", 16)]);
        check(&["10.96.0.5", "10.97.0.1"], &[("10.96.0.0", 15)]);
        check(&["10.111.0.1", "10.100.0.9", "10.96.0.5", "fd00::7"], &[("10.96.0.0", 12), ("fd00::", 112)]);
        check(&["fd00::1", "fd00::f:ffff"], &[("fd00::", 108)]);
    }

    #[test]
    fn what_is_between_two_blocks_is_not_the_services() {
        check(
            &["10.96.0.1", "192.168.0.1", "fd00::1", "fd00::1:0:1"],
            &[("10.96.0.0", 16), ("192.168.0.0", 16), ("fd00::", 112), ("fd00::1:0:0", 112)],
        );
        check(&["10.111.0.1", "10.112.0.1"], &[("10.111.0.0", 16), ("10.112.0.0", 16)]);
    }
}
