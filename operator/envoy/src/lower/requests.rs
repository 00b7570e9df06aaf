//! Which requests a route is about.

use super::proto::matching;
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, Route, RouteMatch,
    header_matcher::HeaderMatchSpecifier,
    route_action::{UpgradeConfig, upgrade_config::ConnectConfig},
    route_match::{ConnectMatcher, GrpcRouteMatchOptions, PathSpecifier},
};
use std::collections::BTreeSet;

pub(super) fn anything() -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() }
}

/// CONNECT has no path, so that everything is always two routes.
pub(super) fn either_way() -> [(&'static str, RouteMatch); 2] {
    [
        ("connect", PathSpecifier::ConnectMatcher(ConnectMatcher {})),
        ("request", PathSpecifier::Prefix("/".to_owned())),
    ]
    .map(|(name, path)| (name, RouteMatch { path_specifier: Some(path), ..Default::default() }))
}

pub(super) fn grpc() -> RouteMatch {
    RouteMatch { grpc: Some(GrpcRouteMatchOptions {}), ..anything() }
}

pub(super) fn connect() -> RouteMatch {
    RouteMatch {
        path_specifier: Some(PathSpecifier::ConnectMatcher(ConnectMatcher {})),
        ..Default::default()
    }
}

pub(super) fn having_method(methods: &BTreeSet<String>) -> RouteMatch {
    // A method is any token (RFC 9110, 9.1), which may hold what means something in a regular expression.
    let methods: Vec<String> = methods.iter().map(|method| literally(method)).collect();
    let header = HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matching(methods.join("|")))),
        ..Default::default()
    };
    RouteMatch { headers: vec![header], ..anything() }
}

/// The routes for requests that ask for one of these names, whatever the port they add.
pub(super) fn named(routes: Vec<Route>, names: &[String]) -> impl Iterator<Item = Route> + use<> {
    let names: Vec<String> = names.iter().map(|name| literally(name)).collect();
    let authority = HeaderMatcher {
        name: ":authority".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matching(format!(
            "(?i)({})(:[0-9]+)?",
            names.join("|")
        )))),
        ..Default::default()
    };
    routes.into_iter().map(move |mut route| {
        if let Some(matching) = &mut route.r#match {
            matching.headers.push(authority.clone());
        }
        route
    })
}

/// A regular expression for exactly this text.
fn literally(text: &str) -> String {
    text.chars().flat_map(|c| [(!c.is_ascii_alphanumeric()).then_some('\\'), Some(c)]).flatten().collect()
}

/// Envoy terminates the CONNECT and sends on what is inside.
pub(super) fn connect_upgrade() -> Vec<UpgradeConfig> {
    vec![UpgradeConfig {
        upgrade_type: "CONNECT".to_owned(),
        connect_config: Some(ConnectConfig::default()),
        ..Default::default()
    }]
}
