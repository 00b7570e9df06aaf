//! RDS: one route configuration for each caller namespace. Its hosts come by VHDS; it only answers for names that
//! no host has.

use super::{
    Lowered,
    cluster::OUTSIDE,
    lookup::{by_address_then, sought},
    original::DIRECT,
    outside::filters,
    proto::{ads, duration, fields, header, matching, packed, text},
    requests::{connect_upgrade, either_way},
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
            route_action::{ClusterSpecifier, UpgradeConfig},
            route_match::PathSpecifier,
        },
    },
    google::protobuf::{Any, Duration, Struct, Value},
};
use std::{collections::BTreeSet, sync::Arc};

/// How the name of a route configuration starts; the caller's namespace follows.
pub(super) const ROUTES: &str = "outbound|";

/// The private suffix of mesh names.
pub(super) const SUFFIX: &str = "mesh";

/// A name that no service can have.
const NOBODY: &str = "_.mesh";

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
        let outside = either_way().map(|(name, matching)| {
            let upgrades = if name == "connect" { connect_upgrade() } else { vec![] };
            Route { typed_per_filter_config: filters(), ..outside(name, matching, OUTSIDE, upgrades) }
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

/// Out of the mesh.
fn outside(name: &str, matching: RouteMatch, cluster: &str, upgrades: Vec<UpgradeConfig>) -> Route {
    Route {
        name: format!("outside-{name}"),
        r#match: Some(matching),
        // What the proxy adds for other proxies is no business of the outside.
        request_headers_to_remove: vec!["x-forwarded-proto".to_owned(), "x-envoy-attempt-count".to_owned()],
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            upgrade_configs: upgrades,
            timeout: Some(Duration::default()),
            idle_timeout: Some(duration(OUTSIDE_IDLE)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// The route configuration of a namespace's redirected callers for one port. The port is what was called, whatever
/// the request says it is: most requests to a port other than 80 name it, and not all.
#[derive(Hash)]
pub(super) struct PortRoutes<'a> {
    pub(super) caller: &'a Namespace,
    pub(super) port: u16,
}

impl PortRoutes<'_> {
    pub(super) fn of(caller: &Namespace, port: u16) -> String {
        format!("{ROUTES}{caller}|{port}")
    }
}

impl Lowered for PortRoutes<'_> {
    const KIND: Kind = Kind::Routes;

    fn name(&self) -> String {
        Self::of(self.caller, self.port)
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        [DIRECT.into()].into()
    }

    fn encode(&self) -> Any {
        let unknown = VirtualHost { typed_per_filter_config: by_address_then(), ..as_it_came() };
        packed(found_by_vhds(self.name(), unknown))
    }
}

/// The route configuration for requests to pods at one port, found by their addresses.
#[derive(Hash)]
pub(super) struct PodRoutes {
    pub(super) port: u16,
}

impl PodRoutes {
    pub(super) fn of(port: u16) -> String {
        format!("pods|{port}")
    }
}

impl Lowered for PodRoutes {
    const KIND: Kind = Kind::Routes;

    fn name(&self) -> String {
        Self::of(self.port)
    }

    fn clusters(&self) -> BTreeSet<Arc<str>> {
        [DIRECT.into()].into()
    }

    fn encode(&self) -> Any {
        packed(found_by_vhds(self.name(), as_it_came()))
    }
}

fn found_by_vhds(name: String, unknown: VirtualHost) -> RouteConfiguration {
    sought(RouteConfiguration {
        name,
        vhds: Some(Vhds { config_source: Some(ads()) }),
        virtual_hosts: vec![unknown],
        ..Default::default()
    })
}

/// The host of nobody: its requests go where they went.
fn as_it_came() -> VirtualHost {
    VirtualHost {
        name: "unknown".to_owned(),
        domains: vec!["*".to_owned()],
        routes: either_way().map(|(name, matching)| outside(name, matching, DIRECT, vec![])).into(),
        ..Default::default()
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

    fn domains(&self) -> Vec<String> {
        vec![NOBODY.to_owned()]
    }

    fn encode(&self) -> Any {
        itself(self.name(), self.domains(), self.caller)
    }
}

/// The same for the port's route configuration.
#[derive(Hash)]
pub(super) struct PortItself<'a> {
    pub(super) caller: &'a Namespace,
    pub(super) port: u16,
}

impl Lowered for PortItself<'_> {
    const KIND: Kind = Kind::VirtualHost;

    fn name(&self) -> String {
        format!("{}/itself", PortRoutes::of(self.caller, self.port))
    }

    fn domains(&self) -> Vec<String> {
        vec![NOBODY.to_owned()]
    }

    fn encode(&self) -> Any {
        itself(self.name(), self.domains(), self.caller)
    }
}

/// The same for requests to pods.
#[derive(Hash)]
pub(super) struct PodItself {
    pub(super) port: u16,
}

impl Lowered for PodItself {
    const KIND: Kind = Kind::VirtualHost;

    fn name(&self) -> String {
        format!("{}/itself", PodRoutes::of(self.port))
    }

    fn domains(&self) -> Vec<String> {
        vec![NOBODY.to_owned()]
    }

    fn encode(&self) -> Any {
        answering(self.name(), self.domains(), "pods", text(self.port.to_string()))
    }
}

fn itself(name: String, domains: Vec<String>, caller: &Namespace) -> Any {
    answering(name, domains, "caller_namespace", text(caller.as_str()))
}

fn answering(name: String, domains: Vec<String>, key: &str, value: Value) -> Any {
    packed(VirtualHost {
        name,
        domains,
        routes: vec![Route {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                ..Default::default()
            }),
            action: Some(direct_response(200, fields([(key, value)]))),
            ..Default::default()
        }],
        ..Default::default()
    })
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
