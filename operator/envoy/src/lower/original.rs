//! CDS for redirected connections: clusters without endpoints, which call the destination that a connection had.

use super::{
    Lowered,
    cluster::{APPLICATION_IDLE, CONNECT_LOCAL, http_options, unlimited},
    proto::{duration, packed},
    sockets,
};
use crate::catalog::Kind;
use airlane_core::{policy::Millis, world::Protocol};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy},
            },
            core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonHttp},
        },
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{UpstreamProtocolOptions, UseDownstreamHttpConfig},
        },
    },
    google::protobuf::Any,
};
use std::collections::HashMap;

/// Where calls go that are no business of the mesh: to where they went.
pub(super) const DIRECT: &str = "direct";

/// Until a connection outside the mesh stands.
const CONNECT_OUTSIDE: Millis = Millis(10_000);

/// The cluster [`DIRECT`].
#[derive(Hash)]
pub(super) struct Direct;

impl Lowered for Direct {
    const KIND: Kind = Kind::Cluster;

    fn name(&self) -> String {
        DIRECT.to_owned()
    }

    fn encode(&self) -> Any {
        let as_they_came = HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(
                UseDownstreamHttpConfig {
                    http_protocol_options: Some(Http1ProtocolOptions::default()),
                    http2_protocol_options: Some(Http2ProtocolOptions {
                        allow_connect: true,
                        ..Default::default()
                    }),
                    ..Default::default()
                },
            )),
            ..Default::default()
        };
        let http =
            [("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(), packed(as_they_came))];
        packed(Cluster {
            connect_timeout: Some(duration(CONNECT_OUTSIDE)),
            typed_extension_protocol_options: http.into(),
            upstream_bind_config: Some(sockets::for_the_application()),
            upstream_connection_options: Some(sockets::kept_alive()),
            ..original(self.name())
        })
    }
}

/// The application behind the doors of a redirected pod, at the pod's own address: some listen nowhere else.
#[derive(Hash)]
pub(super) struct Application {
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

impl Lowered for Application {
    const KIND: Kind = Kind::Cluster;

    fn name(&self) -> String {
        super::cluster::Application::cluster(self.port)
    }

    fn encode(&self) -> Any {
        let typed_extension_protocol_options = if self.protocol.is_http() {
            let common = CommonHttp { idle_timeout: Some(duration(APPLICATION_IDLE)), ..Default::default() };
            http_options(common, self.protocol.is_http2())
        } else {
            HashMap::new()
        };
        packed(Cluster {
            connect_timeout: Some(duration(CONNECT_LOCAL)),
            typed_extension_protocol_options,
            ..original(self.name())
        })
    }
}

/// A cluster that calls where its connections went.
pub(super) fn original(name: String) -> Cluster {
    Cluster {
        name,
        lb_policy: LbPolicy::ClusterProvided as i32,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32)),
        circuit_breakers: Some(unlimited()),
        ..Default::default()
    }
}
