//! The shapes that every resource repeats.

use airlane_core::policy::Millis;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            Address, AggregatedConfigSource, ApiVersion, CidrRange, ConfigSource, DataSource, GrpcService,
            HeaderValue, HeaderValueOption, Metadata, SocketAddress, TransportSocket, TypedExtensionConfig,
            address, config_source::ConfigSourceSpecifier, data_source, grpc_service, socket_address,
            transport_socket,
        },
        config::listener::v3::{AdditionalAddress, Filter, filter},
        extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter},
        r#type::{
            matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
            v3::Percent,
        },
    },
    google::protobuf::{Any, BoolValue, Duration, Struct, UInt32Value, Value, value},
};
use envoy_types::util::pack_any;
use prost::{Message, Name};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

pub(super) fn duration(time: Millis) -> Duration {
    let seconds = i64::try_from(time.0 / 1000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(time.0 % 1000 * 1_000_000).unwrap_or_default();
    Duration { seconds, nanos }
}

pub(super) fn number(value: u32) -> UInt32Value {
    UInt32Value { value }
}

pub(super) fn yes() -> BoolValue {
    BoolValue { value: true }
}

pub(super) fn no() -> BoolValue {
    BoolValue { value: false }
}

pub(super) fn percent(value: u32) -> Percent {
    Percent { value: f64::from(value) }
}

/// Resources of the same ADS stream.
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    }
}

pub(super) fn grpc_to(cluster: &str) -> GrpcService {
    GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
            cluster_name: cluster.to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

pub(super) fn address(at: SocketAddr) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(u32::from(at.port()))),
            ..Default::default()
        })),
    }
}

/// A port on every address of the host. Envoy refuses a listener whose kernel has no IPv6 to listen on.
pub(super) fn any_port(port: u16, ipv6: bool) -> (Option<Address>, Vec<AdditionalAddress>) {
    let v6 = || AdditionalAddress {
        address: Some(address(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))),
        ..Default::default()
    };
    let v4 = address(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    (Some(v4), ipv6.then(v6).into_iter().collect())
}

pub(super) fn range((prefix, length): (IpAddr, u8)) -> CidrRange {
    CidrRange { address_prefix: prefix.to_string(), prefix_len: Some(number(u32::from(length))) }
}

pub(super) fn extension<M: Message + Name>(name: &str, config: M) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(pack_any(config)) }
}

pub(super) fn transport_socket<M: Message + Name>(name: &str, config: M) -> TransportSocket {
    TransportSocket {
        name: name.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack_any(config))),
    }
}

pub(super) fn inline(text: &str) -> DataSource {
    DataSource {
        specifier: Some(data_source::Specifier::InlineString(text.to_owned())),
        ..Default::default()
    }
}

pub(super) fn exactly(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(text.to_owned())), ..Default::default() }
}

pub(super) fn starting_with(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Prefix(text.to_owned())), ..Default::default() }
}

/// A regular expression (RE2) over the whole text.
pub(super) fn matching(regex: String) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher { regex, ..Default::default() })),
        ..Default::default()
    }
}

pub(super) fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: key.to_owned(), value: value.to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

pub(super) fn text(value: impl Into<String>) -> Value {
    Value { kind: Some(value::Kind::StringValue(value.into())) }
}

pub(super) fn fields<K: Into<String>>(fields: impl IntoIterator<Item = (K, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, value)| (key.into(), value)).collect() }
}

pub(super) fn metadata(namespace: &str, of: Struct) -> Metadata {
    Metadata { filter_metadata: HashMap::from([(namespace.to_owned(), of)]), ..Default::default() }
}

pub(super) fn packed<M: Message + Name>(message: M) -> Any {
    pack_any(message)
}

pub(super) fn network_filter<M: Message + Name>(name: &str, config: M) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(packed(config))) }
}

pub(super) fn http_filter<M: Message + Name>(name: &str, config: M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(packed(config))),
        ..Default::default()
    }
}
