//! How a redirected request finds its virtual host: by the name it asks for, else by the address that was called.
//!
//! Envoy looks by one header. It is written before the first look, so that no caller's own counts, and written anew by
//! the host of nobody, which has the routes looked up once more.

use super::proto::{http_filter, packed};
use envoy_types::pb::{
    envoy::{
        config::{
            common::mutation_rules::v3::{HeaderMutation as Mutation, header_mutation::Action},
            core::v3::{
                HeaderValue, HeaderValueOption, TypedExtensionConfig, header_value_option::HeaderAppendAction,
            },
            route::v3::{FilterConfig, RouteConfiguration},
        },
        extensions::{
            filters::{
                http::{
                    header_mutation::v3::{HeaderMutation, HeaderMutationPerRoute, Mutations},
                    set_filter_state::v3::Config as SetFilterState,
                },
                network::http_connection_manager::v3::{HttpConnectionManager, HttpFilter},
            },
            http::early_header_mutation::header_mutation::v3::HeaderMutation as EarlyMutation,
        },
    },
    google::protobuf::Any,
};
use std::{collections::HashMap, net::IpAddr};

/// The header by which virtual hosts are found; it never leaves the proxy.
const SOUGHT: &str = "x-airlane-sought";

/// Writes down where the connection went.
const REWRITE: &str = "envoy.filters.http.header_mutation";

/// Has the route looked up anew.
const LOOK_AGAIN: &str = "airlane.look_again";

/// What a request is sought by.
#[derive(Clone, Copy)]
pub(super) enum Key {
    /// The name it asks for, and then the address that was called.
    Name,
    /// The address that was called, whatever it asks for.
    Address,
}

impl Key {
    fn written(self) -> Mutation {
        let value = match self {
            Key::Name => "%REQ(:AUTHORITY)%",
            // With its port, which is not looked at: an IPv6 address without one has no brackets.
            Key::Address => "%DOWNSTREAM_LOCAL_ADDRESS%",
        };
        let header = HeaderValue { key: SOUGHT.to_owned(), value: value.to_owned(), ..Default::default() };
        Mutation {
            action: Some(Action::Append(HeaderValueOption {
                header: Some(header),
                append_action: HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
                ..Default::default()
            })),
        }
    }

    /// The manager whose requests are sought by this, in routes that are [`sought`].
    pub(super) fn of(self, mut manager: HttpConnectionManager) -> HttpConnectionManager {
        manager.early_header_mutation_extensions = vec![TypedExtensionConfig {
            name: "envoy.http.early_header_mutation.header_mutation".to_owned(),
            typed_config: Some(packed(EarlyMutation { mutations: vec![self.written()] })),
        }];
        if let Key::Name = self {
            let again = SetFilterState { clear_route_cache: true, ..Default::default() };
            let filters = [http_filter(REWRITE, HeaderMutation::default()), http_filter(LOOK_AGAIN, again)];
            // Only the host of nobody has them.
            let disabled = filters.map(|filter| HttpFilter { disabled: true, ..filter });
            manager.http_filters.splice(0..0, disabled);
        }
        manager
    }
}

/// Routes whose hosts are found by what a request is sought by.
pub(super) fn sought(routes: RouteConfiguration) -> RouteConfiguration {
    RouteConfiguration {
        vhost_header: SOUGHT.to_owned(),
        ignore_port_in_host_matching: true,
        request_headers_to_remove: vec![SOUGHT.to_owned()],
        ..routes
    }
}

/// What the host of nobody asks of the filters, so that a name that nobody has is followed by the address.
pub(super) fn by_address_then() -> HashMap<String, Any> {
    let mutations = Mutations { request_mutations: vec![Key::Address.written()], ..Default::default() };
    let rewrite = HeaderMutationPerRoute { mutations: Some(mutations) };
    let enabled = |config: Any| packed(FilterConfig { config: Some(config), ..Default::default() });
    HashMap::from([
        (REWRITE.to_owned(), enabled(packed(rewrite))),
        (LOOK_AGAIN.to_owned(), enabled(packed(SetFilterState::default()))),
    ])
}

/// An address as the domain of a virtual host, and as URLs have it.
pub(super) fn domain(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}
