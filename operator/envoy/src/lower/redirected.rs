//! The application's calls where the kernel redirects them: listeners that look like what was called.
//!
//! Everything arrives at one listener, which finds the one that stands for the destination and hands the connection
//! over: exactly this address and port (bytes for a service), else this port on any address (requests), else itself
//! (nothing of ours: passed on as it came). Each is a resource of its own, so that a new service closes nobody's
//! connections, and only on ports where the mesh has requests to route does anybody wait to see what a caller says.

use super::{
    Lowered,
    door::{any_http1, closed, listener_filter, original_destination},
    listener::{HTTP, listener, network_filter, routed},
    original::DIRECT,
    pods::Pods,
    proto::{address, any_port, duration, no, number, packed, yes},
    routes::PortRoutes,
};
use crate::catalog::Kind;
use airlane_core::{
    id::Namespace,
    mesh::{Destination, Route},
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
use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

/// How long a caller may be silent on a port where requests are routed before it counts as one that waits for the
/// server to speak. Clients that open connections before they need them are taken for such callers too, and lose the
/// mesh for that connection: so it is long for a greeting, and short for a user who waits for one.
const SILENCE: Millis = Millis(1_000);

/// How often a connection to an endpoint is tried for a caller of bytes, on another endpoint each time.
const CONNECT_ATTEMPTS: u32 = 3;

/// Where the kernel sends every call.
#[derive(Hash)]
pub(super) struct Exit {
    pub(super) port: u16,
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
        let (address, additional_addresses) = any_port(self.port);
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

/// Calls to any address with a port on which the mesh has requests to route.
#[derive(Hash)]
pub(super) struct Requests<'a> {
    pub(super) caller: &'a Namespace,
    pub(super) port: u16,
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
        let manager = HttpConnectionManager {
            http_protocol_options: Some(any_http1()),
            ..routed(PortRoutes::of(self.caller, self.port), "outbound")
        };
        let requests = FilterChain {
            name: "requests".to_owned(),
            filter_chain_match: Some(FilterChainMatch {
                application_protocols: ["http/1.0", "http/1.1", "h2c"].map(str::to_owned).to_vec(),
                ..Default::default()
            }),
            filters: vec![network_filter(HTTP, manager)],
            ..Default::default()
        };
        let (address, additional_addresses) = any_port(self.port);
        packed(Listener {
            name: self.name(),
            address,
            additional_addresses,
            bind_to_port: Some(no()),
            listener_filters: vec![listener_filter(
                "envoy.filters.listener.http_inspector",
                HttpInspector::default(),
            )],
            listener_filters_timeout: Some(duration(SILENCE)),
            continue_on_listener_filters_timeout: true,
            filter_chains: vec![requests],
            default_filter_chain: Some(as_it_came()),
            ..listener(TrafficDirection::Outbound)
        })
    }
}

/// Calls to one address where bytes are spoken: a service's, or that of one pod of a service without any.
#[derive(Hash)]
pub(super) struct Bytes {
    at: SocketAddr,
    /// The clusters that take a share.
    shares: Vec<(String, u32)>,
}

impl Bytes {
    /// To any endpoint of the service. There is no coin for connections: the fail-safe shares hold.
    pub(super) fn to_service(at: SocketAddr, destination: &Destination) -> Self {
        let shares = match &destination.route {
            Route::To(cluster) => vec![(cluster.to_string(), 1)],
            Route::Split(split) => {
                let shares = split.fail_safe.iter().filter(|(_, share)| *share > 0);
                shares.map(|(cluster, share)| (cluster.to_string(), *share)).collect()
            }
        };
        Self { at, shares }
    }

    /// To the pod that was called, and no other.
    pub(super) fn to_pod(at: SocketAddr, destination: &Destination) -> Self {
        Self { at, shares: vec![(Pods::cluster(&destination.port), 1)] }
    }
}

impl Lowered for Bytes {
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
            filter_chains: vec![FilterChain { filters: vec![bytes(to)], ..Default::default() }],
            ..listener(TrafficDirection::Outbound)
        })
    }
}

/// Everything else is no business of the mesh.
fn as_it_came() -> FilterChain {
    FilterChain {
        name: "direct".to_owned(),
        filters: vec![bytes(ClusterSpecifier::Cluster(DIRECT.to_owned()))],
        ..Default::default()
    }
}

fn bytes(to: ClusterSpecifier) -> Filter {
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
