//! What is asked of doors that they cannot keep: there is a way in beside them, bytes pass instead of requests, or a port
//! is the proxy's own.

use super::Found;
use crate::{
    compile::{index::Index, reach::Reach},
    id::{ObjectId, ObjectKind},
    mesh::RESERVED_PORTS,
    policy::{AccessSpec, MtlsMode, MtlsSpec, Target},
    problem::{Problem, Reason},
    world::Port,
};
use std::{collections::BTreeSet, ops::Deref};

/// How many workloads a problem names.
const NAMED_MAX: usize = 3;

/// Ports of services where a pod's proxy listens for what the kernel redirects to it.
pub(super) fn reserved_ports(index: &Index<'_>, problems: &mut BTreeSet<Problem>) {
    if index.world.cluster_domain.is_none() {
        return;
    }
    let (first, last) = (RESERVED_PORTS.start(), RESERVED_PORTS.end());
    for service in index.world.services.values() {
        for port in &service.ports {
            let message = if RESERVED_PORTS.contains(&port.number) {
                format!(
                    "{first} to {last} are the proxies' own, and callers reach port {} past them: choose another number",
                    port.number
                )
            } else if RESERVED_PORTS.contains(&port.target) {
                format!(
                    "{first} to {last} are the proxy's own, and no application can be entered at {} through it: have it \
                     listen elsewhere",
                    port.target
                )
            } else {
                continue;
            };
            problems.insert(Problem {
                subject: ObjectId {
                    kind: ObjectKind::Service,
                    namespace: service.id.namespace.clone(),
                    name: service.id.name.clone(),
                },
                field: "spec.ports".to_owned(),
                reason: Reason::Invalid,
                message,
            });
        }
    }
}

impl Found<'_> {
    pub(super) fn ports_of_the_proxy(&mut self, index: &Index<'_>, mtls: &MtlsSpec) {
        if index.world.cluster_domain.is_none() {
            return;
        }
        for (port, _) in mtls.ports.iter().filter(|(port, _)| RESERVED_PORTS.contains(port)) {
            let message = format!(
                "{} to {} are the proxy's own, and no application is entered at {port}: remove it",
                RESERVED_PORTS.start(),
                RESERVED_PORTS.end()
            );
            self.add("spec.mtls.ports", Reason::NoEffect, message);
        }
    }

    /// Bytes have no method and no path.
    pub(super) fn rules_without_requests<'w>(
        &mut self,
        index: &Index<'w>,
        access: &AccessSpec,
        reach: &impl Deref<Target = Reach<'w>>,
    ) {
        if access.rules.iter().all(|rule| rule.to.is_empty()) {
            return;
        }
        let bytes = match &self.policy.target {
            Target::Service { service, port } => {
                let declared = index.world.services.get(service).map(|service| service.by_number());
                let meant = |of: &&Port| port.is_none_or(|wanted| of.number == wanted);
                let mut ports = declared.into_iter().flatten().map(|(_, port)| port).filter(meant);
                ports
                    .find(|port| {
                        let mut copies = reach.instances(&self.policy.target);
                        !port.protocol.is_http()
                            || copies.any(|copy| {
                                copy.behind(service, port).is_some_and(|it| !copy.spoken(it.app).is_http())
                            })
                    })
                    .map(|port| format!("port {} of {service}", port.number))
            }
            target => reach.instances(target).find_map(|instance| {
                let doors = instance.ports.iter().filter(|_| instance.interception.keeps_a_door());
                let port = doors.filter(|port| !instance.spoken(port.app).is_http()).min()?;
                let of = &instance.workload;
                Some(format!("port {} of {}/{}", port.app, of.namespace, of.workload))
            }),
        };
        let Some(bytes) = bytes else { return };
        for (n, _) in access.rules.iter().enumerate().filter(|(_, rule)| !rule.to.is_empty()) {
            let message = format!(
                "{bytes} does not speak HTTP alone, and there this rule admits nobody: remove to, or target what speaks HTTP"
            );
            self.add(&format!("spec.access.rules[{n}].to"), Reason::NoEffect, message);
        }
    }

    /// What is asked of doors, where there is a way in beside them.
    pub(super) fn open_doors<'w>(&mut self, index: &Index<'w>, reach: &impl Deref<Target = Reach<'w>>) {
        let strict = self.policy.mtls.as_ref().and_then(|mtls| {
            if mtls.mode == Some(MtlsMode::Strict) {
                return Some("spec.mtls.mode");
            }
            mtls.ports.iter().any(|(_, mode)| *mode == MtlsMode::Strict).then_some("spec.mtls.ports")
        });
        let access = self.policy.access.as_ref().map(|_| "spec.access");
        if strict.is_none() && access.is_none() {
            return;
        }
        let open = reach.open(index, &self.policy.target);
        if open.is_empty() {
            return;
        }
        let mut named: Vec<String> =
            open.iter().take(NAMED_MAX).map(|(workload, way)| format!("{workload} {way}")).collect();
        if open.len() > NAMED_MAX {
            named.push(format!("and so it is with {} more", open.len() - NAMED_MAX));
        }
        let message = format!(
            "who calls these by their addresses is let in whatever this says: {}; give each a proxy before all its \
             ports, or keep callers away by other means",
            named.join(", ")
        );
        for field in strict.into_iter().chain(access) {
            self.add(field, Reason::NotEnforced, message.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        compile::{
            compile,
            mistakes::tests::{door, pay, shop},
            worlds::{
                Edit, instance, mode, name, namespace, policy, service, service_id, to_service, world_of,
            },
        },
        id::ClusterDomain,
        policy::{
            AccessMode, AccessRule, AccessSpec, Asked,
            MtlsMode::{Disabled, Permissive, Strict},
            MtlsSpec, Policy, Target,
        },
        problem::{Problem, Reason},
        world::{InstancePort, Interception, Protocol},
    };
    use std::collections::BTreeSet;

    /// What is told in a cluster with `shop/pay` (80 → 8080), a redirected copy of it, and what else there is.
    fn check_in_cluster(edits: impl IntoIterator<Item = Edit>, expected: &[&str]) {
        let mut pod = instance("shop/pay", "v1", 1);
        pod.interception = Interception::Transparent;
        let declared = [service("shop/pay", &[(80, 8080, Protocol::Http)]).into(), pod.into()];
        let mut world = world_of(declared.into_iter().chain(edits));
        world.cluster_domain = ClusterDomain::parse("cluster.local").ok();
        let told: Vec<String> = compile(&world).problems.iter().map(Problem::to_string).collect();
        assert_eq!(told, expected);
    }

    fn access(id: &str, target: Target, to: bool) -> Policy {
        let asked = Asked { methods: ["GET".to_owned()].into(), paths: BTreeSet::new() };
        let rule = AccessRule {
            name: name("rule"),
            from: Vec::new(),
            to: to.then_some(asked).into_iter().collect(),
        };
        let says = AccessSpec { admits_others: false, mode: AccessMode::Enforce, rules: vec![rule] };
        Policy { access: Some(says.into()), ..policy(id, target) }
    }

    #[test]
    fn a_way_in_beside_the_doors() {
        let copy = |service: &str, number, interception, past_proxy| {
            let mut copy = instance(service, "v1", number);
            (copy.interception, copy.ports[0].past_proxy) = (interception, past_proxy);
            Edit::from(copy)
        };
        let others = || {
            [
                copy("shop/bare", 2, Interception::None, false),
                copy("shop/batch", 3, Interception::Outbound, false),
                copy("shop/told", 4, Interception::Environment, false),
                copy("shop/part", 5, Interception::Transparent, true),
                copy("bank/legacy", 6, Interception::None, false),
            ]
        };
        let told = |subject: &str, field: &str, who: &str| {
            format!(
                "MeshPolicy {subject}: {field}: who calls these by their addresses is let in whatever this says: {who}; \
                 give each a proxy before all its ports, or keep callers away by other means"
            )
        };
        let shop_is_open = "shop/bare has no proxy, shop/batch has a proxy for its calls alone, shop/part excludes \
                            port 8080 from its proxy, and so it is with 1 more";
        let policies = [
            door("airlane-system/mesh", Target::Mesh, mode(Strict)),
            door("shop/a", pay(), mode(Strict)),
            access("shop/b", shop(), false),
            door("shop/c", shop(), mode(Permissive)),
            access(
                "shop/d",
                Target::ServiceAccount { namespace: namespace("shop"), name: name("told").into() },
                false,
            ),
        ];
        let mine = "shop/told is told of its proxy, and its own ports stay open beside it";
        check_in_cluster(
            others().into_iter().chain(policies.map(Into::into)),
            &[
                &told("airlane-system/mesh", "spec.mtls.mode", shop_is_open),
                &told("shop/b", "spec.access", shop_is_open),
                &told("shop/d", "spec.access", mine),
            ],
        );
    }

    #[test]
    fn ports_that_are_the_proxys_own() {
        let own = MtlsSpec { ports: vec![(15_006, Disabled)], ..MtlsSpec::default() };
        let ports = [(15_001, 8080, Protocol::Http), (81, 15_006, Protocol::Http)];
        check_in_cluster(
            [door("shop/a", shop(), Some(own)).into(), service("shop/odd", &ports).into()],
            &[
                "MeshPolicy shop/a: spec.mtls.ports: 15000 to 15099 are the proxy's own, and no application is entered at \
                 15006: remove it",
                "Service shop/odd: spec.ports: 15000 to 15099 are the proxies' own, and callers reach port 15001 past \
                 them: choose another number",
                "Service shop/odd: spec.ports: 15000 to 15099 are the proxy's own, and no application can be entered at \
                 15006 through it: have it listen elsewhere",
            ],
        );
    }

    #[test]
    fn rules_about_requests_where_bytes_are_spoken() {
        let mut pod = instance("shop/redis", "v1", 2);
        pod.interception = Interception::Transparent;
        pod.ports[0].protocol = Protocol::Tcp;
        let redis = || [service("shop/redis", &[(80, 8080, Protocol::Tcp)]).into(), Edit::from(pod.clone())];
        let told = |subject: &str, port: &str| {
            format!(
                "MeshPolicy {subject}: spec.access.rules[0].to: {port} of shop/redis does not speak HTTP alone, and there this \
                 rule admits nobody: remove to, or target what speaks HTTP"
            )
        };
        let workload = |of: &str| Target::Workload { namespace: namespace("shop"), name: name(of) };
        let policies = [
            access("airlane-system/mesh", Target::Mesh, true),
            access("shop/a", shop(), true),
            access("shop/b", shop(), false),
            access("shop/c", workload("redis"), true),
            access("shop/d", workload("pay"), true),
            access("shop/e", to_service("shop/redis", None), true),
        ];
        check_in_cluster(
            redis().into_iter().chain(policies.map(Into::into)),
            &[
                &told("airlane-system/mesh", "port 8080"),
                &told("shop/a", "port 8080"),
                &told("shop/c", "port 8080"),
                &told("shop/e", "port 80"),
            ],
        );
    }

    #[test]
    fn rules_about_requests_where_two_protocols_are_declared() {
        let mut pod = instance("shop/web", "v1", 2);
        pod.interception = Interception::Transparent;
        pod.services.insert(service_id("shop/raw"));
        let behind = |of: &str, service, protocol| InstancePort {
            service,
            protocol,
            of: Some(service_id(of)),
            ..instance("shop/web", "v1", 2).ports[0].clone()
        };
        pod.ports = vec![behind("shop/web", 80, Protocol::Http), behind("shop/raw", 90, Protocol::Tcp)];
        let declared = [
            service("shop/web", &[(80, 8080, Protocol::Http)]).into(),
            service("shop/raw", &[(90, 8080, Protocol::Tcp)]).into(),
            pod.into(),
            access("shop/a", to_service("shop/web", None), true).into(),
            access("shop/b", shop(), true).into(),
        ];
        let others = compile(&world_of(declared)).problems;
        let told: Vec<String> = others
            .iter()
            .filter(|it| it.reason == Reason::NoEffect)
            .map(|it| it.to_string().chars().take(60).collect())
            .collect();
        assert_eq!(
            told,
            [
                "MeshPolicy shop/a: spec.access.rules[0].to: port 80 of shop/",
                "MeshPolicy shop/b: spec.access.rules[0].to: port 8080 of sho",
            ]
        );
    }
}
