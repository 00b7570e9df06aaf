//! Pods of a service that has no address of its own (a headless one): who calls one of them means that one.
//!
//! Its bytes are told apart by its address, which is a listener for each pod; its requests by its name, which is below
//! the service's, so that no pod that comes or goes changes anything but endpoints.

use super::{
    Lowered,
    cluster::{CONNECTION_AGE, http_options},
    host::anything,
    original::{DIRECT, for_the_application, original},
    proto::{duration, packed},
    routes::PortRoutes,
    tls,
};
use crate::catalog::Kind;
use airlane_core::{
    id::{ClusterDomain, Identity, Namespace, ServiceId, ServicePort, TrustDomain},
    mesh::{Destination, Transport},
    policy::Millis,
};
use envoy_types::pb::{
    envoy::config::{
        cluster::v3::Cluster,
        core::v3::HttpProtocolOptions,
        route::v3::{Route, RouteAction, VirtualHost, route::Action, route_action::ClusterSpecifier},
    },
    google::protobuf::Any,
};
use std::{collections::BTreeSet, sync::Arc};

/// CDS: the pods, each called as itself over mTLS.
#[derive(Hash)]
pub(super) struct Pods<'a> {
    port: &'a ServicePort,
    identities: &'a BTreeSet<Identity>,
    http: Option<Http>,
    connect_timeout: Millis,
    trust_domain: &'a TrustDomain,
}

/// What is spoken with pods besides bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Http {
    One,
    Two,
}

impl<'a> Pods<'a> {
    pub(super) fn cluster(port: &ServicePort) -> String {
        format!("{DIRECT}|{}|{}|{}", port.port, port.service.name, port.service.namespace)
    }

    /// `None` if the service is called by its address, or none of its pods accepts mTLS. Where some do not, only bytes
    /// have a listener for each pod that tells them apart.
    pub(super) fn of(destination: &'a Destination, trust_domain: &'a TrustDomain) -> Option<Self> {
        let whole = destination.clusters.first().filter(|_| destination.addresses.is_empty())?;
        let http = match (destination.protocol.is_http(), whole.transport) {
            (_, Transport::Plaintext) | (true, Transport::Mixed) => return None,
            (false, _) => None,
            (true, Transport::Mtls { http2 }) if http2 || destination.protocol.is_http2() => Some(Http::Two),
            (true, Transport::Mtls { .. }) => Some(Http::One),
        };
        Some(Self {
            port: &destination.port,
            identities: &whole.identities,
            http,
            connect_timeout: destination.calls.connect_timeout,
            trust_domain,
        })
    }
}

impl Lowered for Pods<'_> {
    const KIND: Kind = Kind::Cluster;

    fn name(&self) -> String {
        Self::cluster(self.port)
    }

    fn encode(&self) -> Any {
        let alpn = self.http.map(|http| if http == Http::Two { "h2" } else { "http/1.1" });
        let http = self.http.map(|http| {
            let common = HttpProtocolOptions {
                max_connection_duration: Some(duration(CONNECTION_AGE)),
                ..Default::default()
            };
            http_options(common, http == Http::Two)
        });
        packed(Cluster {
            connect_timeout: Some(duration(self.connect_timeout)),
            typed_extension_protocol_options: http.unwrap_or_default(),
            upstream_bind_config: Some(for_the_application()),
            transport_socket: Some(tls::calling(self.identities, self.trust_domain, alpn)),
            ..original(self.name())
        })
    }
}

/// VHDS: their names.
#[derive(Hash)]
pub(super) struct Names<'a> {
    pub(super) caller: &'a Namespace,
    pub(super) port: &'a ServicePort,
    pub(super) cluster_domain: Option<&'a ClusterDomain>,
    pub(super) request_timeout: Option<Millis>,
    pub(super) stream_idle_timeout: Millis,
}

impl Lowered for Names<'_> {
    const KIND: Kind = Kind::VirtualHost;

    fn name(&self) -> String {
        let ServicePort { service, port } = self.port;
        format!("{}/pods|{port}|{}|{}", PortRoutes::of(self.caller, *port), service.name, service.namespace)
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        [Pods::cluster(self.port).into()].into()
    }

    fn encode(&self) -> Any {
        let ServiceId { namespace, name } = &self.port.service;
        let short = (self.caller == namespace).then(|| format!("*.{name}"));
        let below = self.cluster_domain.map(|domain| format!("*.{name}.{namespace}.svc.{domain}"));
        let names = [format!("*.{name}.{namespace}"), format!("*.{name}.{namespace}.svc")];
        let to_the_one_called = Route {
            name: "pod".to_owned(),
            r#match: Some(anything()),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(Pods::cluster(self.port))),
                timeout: Some(self.request_timeout.map(duration).unwrap_or_default()),
                idle_timeout: Some(duration(self.stream_idle_timeout)),
                ..Default::default()
            })),
            ..Default::default()
        };
        packed(VirtualHost {
            name: self.name(),
            domains: names.into_iter().chain(short).chain(below).collect(),
            routes: vec![to_the_one_called],
            ..Default::default()
        })
    }
}
