//! Calls that leave the mesh: which addresses are refused, and how a name is resolved.
//!
//! The application's own proxy must not lend it a way to what listens on this host or to the cloud's metadata
//! service. Addresses a name resolves to are filtered by the resolver; addresses written out, which are never
//! resolved, are refused after the forward-proxy filter has read them.

use super::proto::{extension, packed, range};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::cluster::DnsLookupFamily,
            rbac::v3::{Permission, Policy, Principal, Rbac as Rules, permission, principal, rbac},
            route::v3::FilterConfig,
        },
        extensions::{
            common::dynamic_forward_proxy::v3::DnsCacheConfig,
            filters::http::{
                dynamic_forward_proxy::v3::{
                    FilterConfig as ForwardProxy, PerRouteConfig, filter_config::ImplementationSpecifier,
                },
                rbac::v3::{Rbac, RbacPerRoute},
            },
            rbac::matchers::upstream_ip_port::v3::UpstreamIpPortMatcher,
        },
        r#type::matcher::v3::AddressMatcher,
    },
    google::protobuf::{Any, UInt32Value},
    xds::core::v3::CidrRange,
};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The filter that reads the host's address.
pub(super) const FORWARD_PROXY: &str = "envoy.filters.http.dynamic_forward_proxy";

/// The filter that refuses addresses.
pub(super) const REFUSAL: &str = "envoy.filters.http.rbac";

/// What the proxy connects to for nobody.
fn refused() -> impl Iterator<Item = (IpAddr, u8)> {
    let v4 = [
        // "This host": connecting to it reaches loopback (RFC 1122, 3.2.1.3).
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        // Link-local (RFC 3927), where AWS, Azure, Google and others serve instance metadata.
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        // The metadata services of Alibaba, Azure (WireServer) and Oracle.
        (Ipv4Addr::new(100, 100, 100, 200), 32),
        (Ipv4Addr::new(168, 63, 129, 16), 32),
        (Ipv4Addr::new(192, 0, 0, 192), 32),
    ];
    let v6 = [
        (Ipv6Addr::UNSPECIFIED, 128),
        (Ipv6Addr::LOCALHOST, 128),
        // IPv4 addresses in disguise (RFC 4291, 2.5.5.2).
        (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        // Instance metadata on AWS.
        (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128),
    ];
    let v4 = v4.into_iter().map(|(address, length)| (IpAddr::V4(address), length));
    v4.chain(v6.into_iter().map(|(address, length)| (IpAddr::V6(address), length)))
}

/// The resolver's cache, shared by the filter and the cluster, which must say the same.
pub(super) fn dns_cache() -> DnsCacheConfig {
    let ranges = refused().map(|(prefix, length)| CidrRange {
        address_prefix: prefix.to_string(),
        prefix_len: Some(UInt32Value { value: u32::from(length) }),
    });
    DnsCacheConfig {
        name: "outside".to_owned(),
        dns_lookup_family: DnsLookupFamily::All as i32,
        resolved_address_filter: Some(AddressMatcher { ranges: ranges.collect(), ..Default::default() }),
        ..Default::default()
    }
}

/// The configuration of [`FORWARD_PROXY`].
pub(super) fn forward_proxy() -> ForwardProxy {
    ForwardProxy {
        save_upstream_address: true,
        implementation_specifier: Some(ImplementationSpecifier::DnsCacheConfig(dns_cache())),
        ..Default::default()
    }
}

/// What the routes to the outside ask of [`FORWARD_PROXY`] and [`REFUSAL`], which do nothing on every other route.
pub(super) fn filters() -> HashMap<String, Any> {
    let permissions = refused().map(|at| Permission {
        rule: Some(permission::Rule::Matcher(extension(
            "envoy.rbac.matchers.upstream_ip_port",
            UpstreamIpPortMatcher { upstream_ip: Some(range(at)), ..Default::default() },
        ))),
    });
    let policy = Policy {
        permissions: permissions.collect(),
        principals: vec![Principal { identifier: Some(principal::Identifier::Any(true)) }],
        ..Default::default()
    };
    let rules = Rules {
        action: rbac::Action::Deny as i32,
        policies: HashMap::from([("loopback-link-local-metadata".to_owned(), policy)]),
        ..Default::default()
    };
    let refuse = RbacPerRoute { rbac: Some(Rbac { rules: Some(rules), ..Default::default() }) };
    let resolve = FilterConfig { config: Some(packed(PerRouteConfig::default())), ..Default::default() };
    HashMap::from([(FORWARD_PROXY.to_owned(), packed(resolve)), (REFUSAL.to_owned(), packed(refuse))])
}
