//! RDS: one route configuration for each caller namespace. Its hosts come by VHDS; it only answers for names that
//! no host has.

use super::{
    Lowered,
    cluster::OUTSIDE,
    host::{SUFFIX, connect_upgrade},
    outside::filters,
    proto::{ads, duration, fields, header, matching, packed, text},
};
use crate::catalog::Kind;
use airlane_core::{id::Namespace, policy::Millis};
use envoy_types::pb::{
    envoy::config::{
        core::v3::{SubstitutionFormatString, substitution_format_string::Format},
        route::v3::{
            DirectResponseAction, HeaderMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, Vhds,
            VirtualHost,
            header_matcher::HeaderMatchSpecifier,
            route::Action,
            route_action::ClusterSpecifier,
            route_match::{ConnectMatcher, PathSpecifier},
        },
    },
    google::protobuf::{Any, Duration, Struct},
};
use std::{collections::BTreeSet, sync::Arc};

/// How the name of a route configuration starts; the caller's namespace follows.
pub(super) const ROUTES: &str = "outbound|";

/// A stream to the outside without a byte.
const OUTSIDE_IDLE: Millis = Millis(3_600_000);

/// The route configuration of a caller namespace.
#[derive(Hash)]
pub(super) struct Routes<'a> {
    pub(super) caller: &'a Namespace,
}

impl Routes<'_> {
    pub(super) fn of(caller: &Namespace) -> String {
        format!("{ROUTES}{caller}")
    }
}

impl Lowered for Routes<'_> {
    const KIND: Kind = Kind::Routes;

    fn name(&self) -> String {
        Self::of(self.caller)
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        [OUTSIDE.into()].into()
    }

    fn encode(&self) -> Any {
        let hint = format!(
            "no service of the mesh has this name and port; names are SERVICE, SERVICE.NAMESPACE or SERVICE.NAMESPACE.{SUFFIX}"
        );
        let mesh_name = HeaderMatcher {
            name: ":authority".to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matching(format!(
                r"(?i)([^.:\[\]]+|.*\.{SUFFIX})(:[0-9]+)?"
            )))),
            ..Default::default()
        };
        let unknown = unknown_name("unknown service", &hint).map(|mut route| {
            if let Some(matching) = &mut route.r#match {
                matching.headers.push(mesh_name.clone());
            }
            route
        });
        let outside = either_way().map(|(name, matching)| Route {
            name: format!("outside-{name}"),
            r#match: Some(matching),
            // What the proxy adds for other proxies is no business of the outside.
            request_headers_to_remove: vec![
                "x-forwarded-proto".to_owned(),
                "x-envoy-attempt-count".to_owned(),
            ],
            typed_per_filter_config: filters(),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(OUTSIDE.to_owned())),
                upgrade_configs: if name == "connect" { connect_upgrade() } else { vec![] },
                timeout: Some(Duration::default()),
                idle_timeout: Some(duration(OUTSIDE_IDLE)),
                ..Default::default()
            })),
            ..Default::default()
        });
        packed(RouteConfiguration {
            name: self.name(),
            vhds: Some(Vhds { config_source: Some(ads()) }),
            virtual_hosts: vec![VirtualHost {
                name: "unknown".to_owned(),
                domains: vec!["*".to_owned()],
                routes: unknown.into_iter().chain(outside).collect(),
                ..Default::default()
            }],
            ..Default::default()
        })
    }
}

/// The host that every caller namespace has: Envoy holds listeners back until a VHDS answer that has some host.
#[derive(Hash)]
pub(super) struct Itself<'a> {
    pub(super) caller: &'a Namespace,
}

impl Lowered for Itself<'_> {
    const KIND: Kind = Kind::VirtualHost;

    fn name(&self) -> String {
        format!("{ROUTES}{}/itself", self.caller)
    }

    fn encode(&self) -> Any {
        packed(VirtualHost {
            name: self.name(),
            // No service can have this name.
            domains: vec![format!("_.{SUFFIX}")],
            routes: vec![Route {
                r#match: Some(RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                    ..Default::default()
                }),
                action: Some(direct_response(
                    200,
                    fields([("caller_namespace", text(self.caller.as_str()))]),
                )),
                ..Default::default()
            }],
            ..Default::default()
        })
    }
}

/// CONNECT has no path, so that everything is always two routes.
fn either_way() -> [(&'static str, RouteMatch); 2] {
    [
        ("connect", PathSpecifier::ConnectMatcher(ConnectMatcher {})),
        ("request", PathSpecifier::Prefix("/".to_owned())),
    ]
    .map(|(name, path)| (name, RouteMatch { path_specifier: Some(path), ..Default::default() }))
}

/// The answer to a name that means nothing: 503, since a later moment may know it, with the name in the body.
pub(super) fn unknown_name(error: &str, hint: &str) -> [Route; 2] {
    either_way().map(|(name, matching)| Route {
        name: format!("unknown-{name}"),
        r#match: Some(matching),
        response_headers_to_add: vec![header("x-airlane-error", &error.replace(' ', "-"))],
        action: Some(direct_response(
            503,
            fields([("error", text(error)), ("service", text("%REQ(:AUTHORITY)%")), ("hint", text(hint))]),
        )),
        ..Default::default()
    })
}

pub(super) fn direct_response(status: u32, json: Struct) -> Action {
    Action::DirectResponse(DirectResponseAction {
        status,
        body_format: Some(SubstitutionFormatString {
            format: Some(Format::JsonFormat(json)),
            ..Default::default()
        }),
        ..Default::default()
    })
}
