//! VHDS: one virtual host for each destination, as the callers of one namespace see it.

use super::{
    Lowered,
    cluster::TUNNEL,
    lookup::domain,
    proto::{duration, fields, metadata, number, packed, text},
    requests::{anything, connect, connect_upgrade, grpc, having_method},
    routes::{PortRoutes, ROUTES, Routes, SUFFIX, direct_response, unknown_name},
};
use crate::catalog::Kind;
use airlane_core::{
    id::{ClusterDomain, Name, Namespace, ServiceId, ServicePort},
    mesh::{Destination, Repeatable, Retries, Route as To, ShortName, WhenOpen},
    policy::{Millis, RetryOn},
    world::Protocol,
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::Metadata,
            route::v3::{
                RetryPolicy, Route, RouteAction, RouteMatch, VirtualHost, WeightedCluster,
                retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate},
                route::Action,
                route_action::{ClusterSpecifier, MaxStreamDuration},
                weighted_cluster::ClusterWeight,
            },
        },
        extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
    },
    google::protobuf::{Any, Duration},
};
use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

/// Where a route says, as metadata, what to answer when no endpoint can take the request.
pub(super) const METADATA: &str = "airlane";
/// The body of that answer.
pub(super) const WHEN_OPEN: &str = "when_open";
/// Its `retry-after`, in seconds.
pub(super) const RETRY_AFTER: &str = "retry_after";

/// A destination as the callers of one namespace see it.
#[derive(Hash)]
pub(super) struct Host<'a> {
    caller: &'a Namespace,
    port: &'a ServicePort,
    default_port: bool,
    only_port: bool,
    short_name: ShortName,
    protocol: Protocol,
    route: &'a To,
    request_timeout: Option<Millis>,
    stream_idle_timeout: Millis,
    connection_idle_timeout: Millis,
    retries: &'a Retries,
    when_open: &'a Option<WhenOpen>,
    in_cluster: InCluster<'a>,
}

/// How callers in a cluster know a destination besides. Outside of one this adds nothing to a version.
struct InCluster<'a> {
    domain: Option<&'a ClusterDomain>,
    addresses: &'a BTreeSet<IpAddr>,
    /// Whether calls are redirected, so that the listener has found the port already.
    redirected: bool,
}

impl Hash for InCluster<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.domain.is_some() || self.redirected || !self.addresses.is_empty() {
            (self.domain, self.addresses, self.redirected).hash(state);
        }
    }
}

/// What a route is for, which decides its timeouts and retries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Requests that may be repeated after they reached the application.
    Repeatable,
    /// Other requests.
    Other,
    /// Calls whose caller sends its own deadline, and that may be streams.
    Grpc,
    /// A CONNECT to a TCP port.
    Bytes,
}

impl<'a> Host<'a> {
    /// As callers see it that say in their requests where they want to go.
    pub(super) fn new(
        caller: &'a Namespace,
        destination: &'a Destination,
        cluster_domain: Option<&'a ClusterDomain>,
    ) -> Self {
        Self {
            caller,
            port: &destination.port,
            default_port: destination.default_port,
            only_port: destination.only_port,
            short_name: destination.short_name,
            protocol: destination.protocol,
            route: &destination.route,
            request_timeout: destination.calls.request_timeout,
            stream_idle_timeout: destination.calls.stream_idle_timeout,
            connection_idle_timeout: destination.calls.connection_idle_timeout,
            retries: &destination.calls.retries,
            when_open: &destination.calls.when_open,
            in_cluster: InCluster {
                domain: cluster_domain,
                addresses: &destination.addresses,
                redirected: false,
            },
        }
    }

    /// As callers see it whose calls are redirected.
    pub(super) fn redirected(
        caller: &'a Namespace,
        destination: &'a Destination,
        cluster_domain: Option<&'a ClusterDomain>,
    ) -> Self {
        let mut host = Self::new(caller, destination, cluster_domain);
        host.in_cluster.redirected = true;
        host
    }

    /// The cluster's own names for the service, and its addresses as URLs have them.
    fn names_in_cluster(&self) -> impl Iterator<Item = String> {
        let addresses = self.in_cluster.addresses.iter().copied().map(domain);
        self.names_below_cluster_domain().chain(addresses)
    }

    fn names_below_cluster_domain(&self) -> impl Iterator<Item = String> + use<> {
        let ServiceId { namespace, name } = &self.port.service;
        let below = self.in_cluster.domain.map(|domain| {
            let service = format!("{name}.{namespace}.svc");
            [format!("{service}.{domain}"), service]
        });
        below.into_iter().flatten()
    }

    /// Everything that may be meant by the name of the service where nobody else can be.
    pub(super) fn names(&self) -> Vec<String> {
        let ServiceId { namespace, name } = &self.port.service;
        let own = [name.to_string(), format!("{name}.{namespace}")];
        own.into_iter().chain(self.names_below_cluster_domain()).collect()
    }

    pub(super) fn request_timeout(&self) -> Option<Millis> {
        self.request_timeout
    }

    pub(super) fn stream_idle_timeout(&self) -> Millis {
        self.stream_idle_timeout
    }

    /// Without ports, which are not looked at. A short name is one of the caller's own namespace, as in its DNS: that
    /// of another namespace is somebody else's to answer.
    fn domains_on_its_port(&self) -> Vec<String> {
        let ServiceId { namespace, name } = &self.port.service;
        let short = (self.caller == namespace).then(|| name.to_string());
        short.into_iter().chain([format!("{name}.{namespace}")]).chain(self.names_in_cluster()).collect()
    }

    fn domains_with_ports(&self) -> Vec<String> {
        let ServiceId { namespace, name } = &self.port.service;
        let mut names = vec![format!("{name}.{namespace}.{SUFFIX}")];
        // `pay.mesh` is the short name of a service, never a service `pay` of a namespace called `mesh`.
        if namespace.as_str() != SUFFIX {
            names.push(format!("{name}.{namespace}"));
        }
        if self.caller == namespace || self.short_name == ShortName::Everywhere {
            names.extend([name.to_string(), format!("{name}.{SUFFIX}")]);
        }
        names.extend(self.names_in_cluster());
        let port = self.port.port;
        let mut domains = Vec::new();
        for name in names {
            domains.push(format!("{name}:{port}"));
            if self.default_port && port != 80 {
                domains.push(format!("{name}:80"));
            }
            if self.only_port {
                domains.push(format!("{name}:*"));
            }
            if self.default_port {
                domains.push(name);
            }
        }
        domains
    }

    pub(super) fn routes(&self) -> Vec<Route> {
        if !self.protocol.is_http() {
            return vec![self.route("connect", connect(), Class::Bytes), self.not_bytes()];
        }
        let tunnel = self.takes_tunnels().then(|| self.tunnel());
        let mut routes: Vec<Route> =
            tunnel.into_iter().chain([self.route("grpc", grpc(), Class::Grpc)]).collect();
        match &self.retries.repeatable {
            Repeatable::All => routes.push(self.route("repeatable", anything(), Class::Repeatable)),
            Repeatable::Methods(methods) => {
                if !methods.is_empty() {
                    routes.push(self.route("repeatable", having_method(methods), Class::Repeatable));
                }
                routes.push(self.route("others", anything(), Class::Other));
            }
        }
        routes
    }

    /// Only who is told of the proxy asks it for a tunnel.
    fn takes_tunnels(&self) -> bool {
        self.protocol.is_http() && !self.in_cluster.redirected
    }

    /// What is inside a CONNECT is routed by its own name, request by request.
    fn tunnel(&self) -> Route {
        Route {
            name: "connect".to_owned(),
            r#match: Some(connect()),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(TUNNEL.to_owned())),
                upgrade_configs: connect_upgrade(),
                timeout: Some(Duration::default()),
                idle_timeout: Some(duration(self.connection_idle_timeout)),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    /// The answer to a request where only bytes are understood.
    fn not_bytes(&self) -> Route {
        let hint = format!("{} speaks TCP: reach it by CONNECT", self.port);
        Route {
            name: "not-connect".to_owned(),
            r#match: Some(anything()),
            action: Some(direct_response(
                400,
                fields([("error", text("protocol mismatch")), ("hint", text(hint))]),
            )),
            ..Default::default()
        }
    }

    fn route(&self, name: &str, matching: RouteMatch, class: Class) -> Route {
        Route {
            name: name.to_owned(),
            r#match: Some(matching),
            metadata: Some(self.answers()),
            action: Some(Action::Route(self.to(class))),
            ..Default::default()
        }
    }

    fn to(&self, class: Class) -> RouteAction {
        let all_are_repeatable = self.retries.repeatable == Repeatable::All;
        let conditions = match class {
            Class::Repeatable => &self.retries.repeatable_on,
            Class::Grpc if all_are_repeatable => &self.retries.repeatable_on,
            Class::Grpc | Class::Other | Class::Bytes => &self.retries.others_on,
        };
        // A stream's first message may take any time; only a try that is repeated is worth cutting short.
        let each_try_is_bounded = match class {
            Class::Repeatable | Class::Other => true,
            Class::Grpc => all_are_repeatable,
            Class::Bytes => false,
        };
        let timeout = self.request_timeout.filter(|_| matches!(class, Class::Repeatable | Class::Other));
        let idle =
            if class == Class::Bytes { self.connection_idle_timeout } else { self.stream_idle_timeout };
        let (cluster_specifier, split) = self.clusters_of_route();
        RouteAction {
            cluster_specifier: Some(cluster_specifier),
            timeout: Some(timeout.map(duration).unwrap_or_default()),
            // The caller's `grpc-timeout` decides; the policy's limit caps it.
            max_stream_duration: (class == Class::Grpc).then(|| MaxStreamDuration {
                grpc_timeout_header_max: Some(self.request_timeout.map(duration).unwrap_or_default()),
                ..Default::default()
            }),
            idle_timeout: Some(duration(idle)),
            upgrade_configs: if class == Class::Bytes { connect_upgrade() } else { vec![] },
            retry_policy: Some(RetryPolicy {
                per_try_timeout: self.retries.per_try_timeout.filter(|_| each_try_is_bounded).map(duration),
                // The coin is thrown again, so that a request that failed on the canary is saved by stable.
                refresh_cluster_on_retry: split,
                ..retry_policy(self.retries, conditions)
            }),
            ..Default::default()
        }
    }

    /// Where requests go, and whether a coin decides.
    fn clusters_of_route(&self) -> (ClusterSpecifier, bool) {
        match self.route {
            To::To(cluster) => (ClusterSpecifier::Cluster(cluster.to_string()), false),
            To::Split(split) => {
                let clusters = split.fail_safe.iter().map(|(cluster, share)| ClusterWeight {
                    name: cluster.to_string(),
                    weight: Some(number(*share)),
                    ..Default::default()
                });
                let weighted = WeightedCluster {
                    clusters: clusters.collect(),
                    runtime_key_prefix: split.runtime_prefix.clone(),
                    ..Default::default()
                };
                (ClusterSpecifier::WeightedClusters(weighted), true)
            }
        }
    }

    fn answers(&self) -> Metadata {
        let fallback = || format!("no endpoint of {} can take the request now", self.port.service);
        let body = self.when_open.as_ref().map_or_else(fallback, |answer| answer.body.clone());
        let retry_after = self.when_open.as_ref().and_then(|answer| answer.retry_after_s);
        let answers = [(WHEN_OPEN, text(body))];
        let after = retry_after.map(|seconds| (RETRY_AFTER, text(seconds.to_string())));
        metadata(METADATA, fields(answers.into_iter().chain(after)))
    }
}

impl Lowered for Host<'_> {
    const KIND: Kind = Kind::VirtualHost;

    /// Envoy finds the route configuration by what stands before the last `/`.
    fn name(&self) -> String {
        let ServicePort { service, port } = self.port;
        let routes = if self.in_cluster.redirected {
            PortRoutes::of(self.caller, *port)
        } else {
            Routes::of(self.caller)
        };
        format!("{routes}/{port}|{}|{}", service.name, service.namespace)
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        let mut clusters: BTreeSet<Arc<str>> = match self.route {
            To::To(cluster) => [cluster.to_string().into()].into(),
            To::Split(split) => {
                split.fail_safe.iter().map(|(cluster, _)| cluster.to_string().into()).collect()
            }
        };
        if self.takes_tunnels() {
            clusters.insert(TUNNEL.into());
        }
        clusters
    }

    fn domains(&self) -> Vec<String> {
        if self.in_cluster.redirected { self.domains_on_its_port() } else { self.domains_with_ports() }
    }

    fn encode(&self) -> Any {
        packed(VirtualHost {
            name: self.name(),
            domains: self.domains(),
            routes: self.routes(),
            // First attempts are told from later ones by this header.
            include_request_attempt_count: true,
            ..Default::default()
        })
    }
}

/// A short name that several namespaces know and the caller's does not.
#[derive(Hash)]
pub(super) struct Ambiguous<'a> {
    pub(super) caller: &'a Namespace,
    pub(super) name: &'a Name,
    pub(super) candidates: &'a BTreeSet<ServiceId>,
}

impl Lowered for Ambiguous<'_> {
    const KIND: Kind = Kind::VirtualHost;

    fn name(&self) -> String {
        format!("{ROUTES}{}/ambiguous|{}", self.caller, self.name)
    }

    fn domains(&self) -> Vec<String> {
        let name = self.name;
        vec![name.to_string(), format!("{name}:*"), format!("{name}.{SUFFIX}"), format!("{name}.{SUFFIX}:*")]
    }

    fn encode(&self) -> Any {
        let candidates: Vec<String> =
            self.candidates.iter().map(|service| format!("{}.{}", service.name, service.namespace)).collect();
        let hint = format!("say which one: {}", candidates.join(", "));
        let answer = unknown_name("ambiguous service", &hint);
        packed(VirtualHost {
            name: Lowered::name(self),
            domains: self.domains(),
            routes: answer.into(),
            ..Default::default()
        })
    }
}

fn retry_policy(retries: &Retries, conditions: &BTreeSet<RetryOn>) -> RetryPolicy {
    let attempts = if conditions.is_empty() { 0 } else { retries.attempts };
    let conditions: Vec<&str> = conditions
        .iter()
        .map(|condition| match condition {
            RetryOn::GrpcUnavailable => "unavailable",
            other => other.as_str(),
        })
        .collect();
    RetryPolicy {
        retry_on: conditions.join(","),
        num_retries: Some(number(attempts)),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(duration(retries.backoff_base)),
            max_interval: Some(duration(retries.backoff_max)),
        }),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(packed(
                PreviousHostsPredicate {},
            ))),
        }],
        // How often another host is looked for before the same one is taken again. One that cannot be connected to has
        // no active requests, and of two hosts it is the one that is picked up to three times out of four.
        host_selection_retry_max_attempts: 20,
        ..Default::default()
    }
}
