//! EDS: where a cluster's endpoints are.

use super::{
    Lowered,
    cluster::accepts_mtls,
    proto::{address, packed},
};
use crate::catalog::Kind;
use airlane_core::{
    id::ClusterName,
    mesh::{Cluster, Endpoint},
};
use envoy_types::pb::{
    envoy::config::{
        core::v3::HealthStatus,
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as Host, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
    google::protobuf::Any,
};

/// A cluster's endpoints.
#[derive(Hash)]
pub(super) struct Assignment<'a> {
    cluster: &'a ClusterName,
    endpoints: &'a [Endpoint],
    stand_ins: &'a [Endpoint],
}

impl<'a> Assignment<'a> {
    pub(super) fn of(cluster: &'a Cluster) -> Self {
        Self { cluster: &cluster.name, endpoints: &cluster.endpoints, stand_ins: &cluster.stand_ins }
    }
}

impl Lowered for Assignment<'_> {
    const KIND: Kind = Kind::Endpoints;

    fn name(&self) -> String {
        self.cluster.to_string()
    }

    fn encode(&self) -> Any {
        // Nobody stands in while an endpoint is healthy: Envoy would count them all where it says how many may be
        // ejected, and eject the last one.
        let groups = [self.endpoints, self.stand_ins].into_iter().zip(0..);
        packed(ClusterLoadAssignment {
            cluster_name: self.name(),
            endpoints: groups
                .filter(|(endpoints, priority)| *priority == 0 || !endpoints.is_empty())
                .map(|(endpoints, priority)| LocalityLbEndpoints {
                    lb_endpoints: endpoints.iter().map(endpoint).collect(),
                    priority,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        })
    }
}

fn endpoint(endpoint: &Endpoint) -> LbEndpoint {
    let health = if endpoint.healthy { HealthStatus::Healthy } else { HealthStatus::Unhealthy };
    LbEndpoint {
        health_status: health as i32,
        metadata: endpoint.mtls.then(accepts_mtls),
        host_identifier: Some(HostIdentifier::Endpoint(Host {
            address: Some(address(endpoint.address)),
            hostname: endpoint.instance.to_string(),
            ..Default::default()
        })),
        ..Default::default()
    }
}
