//! The destinations of a service: one per port, with its clusters and where requests go.
//!
//! What is expensive to change depends on what seldom changes. A cluster's transport and identities come from
//! every instance of the service whatever its health, and from the service itself when it has none; so an
//! endpoint that comes or goes changes the endpoints and nothing else, and no proxy forgets its ejections
//! over it.

use super::{calls, mtls::Words, policies::Ladder, split::Governing};
use crate::{
    id::{
        ClusterName, Identity, Namespace, ObjectId, ObjectKind, Revision, ServiceAccount, ServicePort,
        TrustDomain,
    },
    mesh::{Cluster, Destination, Endpoint, Inbound, Route, ShortName, Transport},
    policy::{Http2, MtlsMode},
    problem::{Problem, Reason},
    world::{Health, Instance, InstancePort, Port, Protocol, Service},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The port a URL without a port means.
const HTTP_PORT: u16 = 80;

/// All the destinations of a service depend on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Inputs {
    pub(super) trust_domain: TrustDomain,
    pub(super) service: Arc<Service>,
    pub(super) short_name: ShortName,
    /// The virtual addresses that mean the service.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Its instances, in order, each with its door.
    pub(super) instances: Vec<(Arc<Instance>, Arc<Inbound>)>,
    /// The words about a workload that only this service selects.
    pub(super) door_alone: Words,
    pub(super) ladder: Ladder,
    pub(super) governing: Option<Governing>,
}

/// What was decided about a service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Decided {
    pub(super) destinations: Vec<Arc<Destination>>,
    /// Current shares by runtime key.
    pub(super) shares: Vec<(String, u32)>,
    pub(super) problems: Vec<Problem>,
}

/// Decides about a service. What comes out equal to `before` keeps its pointer.
pub(super) fn decide(inputs: &Inputs, before: Option<&Decided>) -> Decided {
    let mut decided = Decided::default();
    let ports = inputs.service.by_number();
    check_numbers(&inputs.service, &ports, &mut decided.problems);
    let default_port =
        if ports.contains_key(&HTTP_PORT) { Some(HTTP_PORT) } else { ports.keys().next().copied() };
    let only_port = ports.len() == 1;
    for port in ports.into_values() {
        let name = ServicePort { service: inputs.service.id.clone(), port: port.number };
        let before =
            before.and_then(|before| before.destinations.iter().find(|destination| destination.port == name));
        let unit = OnePort { inputs, port, name, before };
        let destination =
            Destination { only_port, ..unit.destination(default_port == Some(port.number), &mut decided) };
        decided.destinations.push(match before {
            Some(before) if **before == destination => Arc::clone(before),
            _ => Arc::new(destination),
        });
    }
    decided
}

/// Ports that share a number with another one.
fn check_numbers(service: &Service, ports: &BTreeMap<u16, &Port>, problems: &mut Vec<Problem>) {
    for port in service.ports.iter().filter(|port| ports.get(&port.number) != Some(port)) {
        let message = format!("port {} is declared twice: give each port its own number", port.number);
        problems.push(problem_of(service, message));
    }
}

fn problem_of(service: &Service, message: String) -> Problem {
    let subject = ObjectId {
        kind: ObjectKind::Service,
        namespace: service.id.namespace.clone(),
        name: service.id.name.clone(),
    };
    Problem { subject, field: "spec.ports".to_owned(), reason: Reason::Invalid, message }
}

struct OnePort<'a> {
    inputs: &'a Inputs,
    port: &'a Port,
    name: ServicePort,
    before: Option<&'a Arc<Destination>>,
}

impl<'a> OnePort<'a> {
    fn destination(&self, default_port: bool, decided: &mut Decided) -> Destination {
        let Inputs { governing, ladder, door_alone, .. } = self.inputs;
        self.check_instances(&mut decided.problems);
        let merged = calls::merge(ladder.rungs(self.port.number), self.port.protocol, None);
        decided.problems.extend(merged.problems);
        let (http2, http2_by) = merged.http2;
        let transport = self.transport(http2);
        if let (Http2::Always, Some(by)) = (http2, http2_by)
            && !matches!(transport, Transport::Mtls { .. })
            && self.port.protocol == Protocol::Http
        {
            let message = format!(
                "{} has endpoints without mTLS, and to those HTTP/2 is spoken only if the port's protocol is http2 or \
                 grpc: let the door accept mTLS, or declare the protocol",
                self.name
            );
            decided.problems.push(Problem {
                subject: by,
                field: "spec.connection.http2".to_owned(),
                reason: Reason::NoEffect,
                message,
            });
        }
        let mut shaped_by = merged.shaped_by;
        shaped_by.extend(door_alone.ruling(self.port.target).by.cloned());
        shaped_by.extend(governing.iter().map(|governing| governing.by.clone()));
        let identities = self.identities();
        let cluster = |name: ClusterName| Cluster {
            endpoints: self.endpoints(&name),
            stand_ins: Arc::default(),
            identities: identities.clone(),
            transport,
            name,
        };
        let whole = ClusterName { port: self.name.clone(), revision: None };
        let mut clusters = vec![cluster(whole.clone())];
        let route = match governing {
            None => Route::To(whole),
            Some(governing) => {
                let mut revisions = governing.clusters(&self.name).map(cluster);
                let [stable, canary] = revisions.each_ref().map(serves);
                let [for_canary, for_stable] = governing.stand_in();
                let [of_stable, of_canary] = revisions.each_ref().map(|it| Arc::clone(&it.endpoints));
                if !canary && stable && for_canary {
                    revisions[1].stand_ins = of_stable;
                } else if !stable && canary && for_stable {
                    revisions[0].stand_ins = of_canary;
                }
                let split = governing.split(&self.name);
                let shares = governing.shares(stable, canary);
                decided.shares.extend(
                    revisions
                        .each_ref()
                        .map(|revision| split.runtime_key(&revision.name))
                        .into_iter()
                        .zip(shares),
                );
                clusters.extend(revisions);
                Route::Split(split)
            }
        };
        Destination {
            port: self.name.clone(),
            default_port,
            only_port: false,
            short_name: self.inputs.short_name,
            protocol: self.port.protocol,
            clusters,
            route,
            calls: merged.calls,
            addresses: self.inputs.addresses.clone(),
            shaped_by,
        }
    }

    /// The port of an instance behind this port; an instance without one is no endpoint of it.
    fn behind(&self, instance: &'a Instance) -> Option<&'a InstancePort> {
        instance.behind(&self.name.service, self.port)
    }

    fn accepts_mtls(&self, instance: &Instance, door: &Inbound) -> bool {
        let port = instance.behind(&self.name.service, self.port).filter(|port| !port.past_proxy);
        let door = port.and_then(|port| door.ports.get(&port.app));
        instance.interception.keeps_a_door() && door.is_some_and(|door| door.mtls != MtlsMode::Disabled)
    }

    /// The endpoints of the cluster: those of the revision it names, or of all; and of those in stable's place.
    fn endpoints(&self, cluster: &ClusterName) -> Arc<Vec<Endpoint>> {
        let place = self.vacant(cluster);
        let selected = |revision: &Revision| {
            cluster.revision.as_ref().is_none_or(|wanted| wanted == revision)
                || place.is_some_and(|governing| governing.takes_its_place(revision))
        };
        let of = |instance: &'a Instance, door: &Inbound| {
            let healthy = match instance.health {
                Health::Healthy => true,
                Health::Unhealthy => false,
                Health::Starting | Health::Draining => return None,
            };
            Some(Endpoint {
                instance: instance.id.clone(),
                address: SocketAddr::new(instance.address, self.behind(instance)?.mesh),
                mtls: self.accepts_mtls(instance, door),
                healthy,
            })
        };
        let instances = self.inputs.instances.iter().filter(|(instance, _)| selected(instance.revision()));
        let endpoints: Vec<Endpoint> = instances.filter_map(|(instance, door)| of(instance, door)).collect();
        let before =
            self.before.and_then(|before| before.clusters.iter().find(|before| before.name == *cluster));
        match before {
            Some(before) if *before.endpoints == endpoints => Arc::clone(&before.endpoints),
            _ => Arc::new(endpoints),
        }
    }

    /// The canary whose stable version the cluster is of, while none of that is healthy: others take its place.
    fn vacant(&self, cluster: &ClusterName) -> Option<&'a Governing> {
        let Inputs { governing, instances, .. } = self.inputs;
        let governing = governing.as_ref().filter(|it| cluster.revision.as_ref() == Some(it.stable()))?;
        let mut stable = instances.iter().filter(|(instance, _)| instance.revision() == governing.stable());
        let serves =
            stable.any(|(instance, _)| instance.health == Health::Healthy && self.behind(instance).is_some());
        (!serves).then_some(governing)
    }

    /// Who any endpoint of the service may be. The service's own name is always among them, so that the set
    /// is the same before the first instance and after the last where accounts are named like services.
    fn identities(&self) -> BTreeSet<Identity> {
        let Inputs { trust_domain, service, instances, .. } = self.inputs;
        let identity = |namespace: &Namespace, account: &ServiceAccount| Identity {
            trust_domain: trust_domain.clone(),
            namespace: namespace.clone(),
            service_account: account.clone(),
        };
        let own = identity(&service.id.namespace, &service.id.name.clone().into());
        let of_instances = instances
            .iter()
            .map(|(instance, _)| identity(&instance.workload.namespace, &instance.service_account));
        of_instances.chain([own]).collect()
    }

    fn transport(&self, http2: Http2) -> Transport {
        let alone = self.inputs.door_alone.ruling(self.port.target).mode != MtlsMode::Disabled;
        let with_port = self.inputs.instances.iter().filter(|(instance, _)| self.behind(instance).is_some());
        let mut modes = with_port.map(|(instance, door)| self.accepts_mtls(instance, door));
        if !modes.all(|mtls| mtls == alone) {
            return Transport::Mixed;
        }
        if !alone {
            return Transport::Plaintext;
        }
        let http2 = match self.port.protocol {
            Protocol::Tcp => false,
            Protocol::Http2 | Protocol::Grpc => true,
            Protocol::Http => http2 != Http2::Never && self.is_read_by_doors(),
        };
        Transport::Mtls { http2 }
    }

    /// Whether the doors before HTTP/1.1 take HTTP/2 for it; those that pass bytes hand on what they are given.
    fn is_read_by_doors(&self) -> bool {
        let Inputs { service, instances, .. } = self.inputs;
        let behind_it = service.ports.iter().filter(|port| port.target == self.port.target);
        let declared = behind_it.map(|port| port.protocol).fold(self.port.protocol, Protocol::and);
        let mut doors =
            instances.iter().filter_map(|(instance, door)| door.ports.get(&self.behind(instance)?.app));
        declared.is_http() && doors.all(|door| door.protocol.is_http())
    }

    /// Instances that are there and cannot be what the service declares.
    fn check_instances(&self, problems: &mut Vec<Problem>) {
        let instances = || self.inputs.instances.iter().map(|(instance, _)| instance);
        let Port { number, target, protocol } = self.port;
        let with_port = instances().filter(|instance| self.behind(instance).is_some()).count();
        if with_port == 0
            && let Some(instance) = instances().next()
        {
            let ports: BTreeSet<u16> = instance.ports.iter().map(|port| port.app).collect();
            let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            let message = format!(
                "port {number} leads to {target}, where no instance listens ({} listens on {ports}): correct targetPort",
                instance.id
            );
            problems.push(problem_of(&self.inputs.service, message));
        }
        let differs = |port: &&InstancePort| port.protocol != *protocol;
        let other = instances().find_map(|instance| Some((instance, self.behind(instance).filter(differs)?)));
        if let Some((instance, port)) = other {
            let message = format!(
                "port {number} is declared {protocol}, but {} says its application speaks {} on {}: make them agree",
                instance.id, port.protocol, port.app
            );
            problems.push(problem_of(&self.inputs.service, message));
        }
        let contradicted = instances().find_map(|instance| {
            let own = self.behind(instance)?;
            let contradicts = |port: &&InstancePort| {
                port.app == own.app
                    && port.protocol != own.protocol
                    && port.protocol.and(own.protocol) == Protocol::Tcp
            };
            Some((instance, instance.ports.iter().find(contradicts)?))
        });
        if let Some((instance, other)) = contradicted {
            let of = other.of.as_ref().map(|of| format!(" of {of}")).unwrap_or_default();
            let message = format!(
                "port {number} is declared {protocol} and port {}{of} {}, and both lead to {} of {}: its proxy passes \
                 bytes there, so that both work, and rules about requests admit nobody; declare one protocol, or give \
                 each a port of the application of its own",
                other.service, other.protocol, other.app, instance.id
            );
            problems.push(problem_of(&self.inputs.service, message));
        }
    }
}

fn serves(cluster: &Cluster) -> bool {
    cluster.endpoints.iter().any(|endpoint| endpoint.healthy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::{
            Compiled, Memo, compile,
            worlds::{
                Edit, canary, instance, mode, policy, progress, service, service_id, to_service, world_of,
            },
        },
        mesh::{FULL_SHARE, Mesh},
        rollout::Phase,
        world::{InstancePort, Interception},
    };

    fn destination(mesh: &Mesh, port: u16) -> &Destination {
        &mesh.destinations[&ServicePort { service: service_id("shop/pay"), port }]
    }

    /// The destination of port 80 → 8080 of `shop/pay`, and what was told.
    fn check(edits: impl IntoIterator<Item = Edit>, look: impl FnOnce(&Destination, &[Problem])) {
        let declared = Edit::from(service("shop/pay", &[(80, 8080, Protocol::Http)]));
        let Compiled { mesh, problems } = compile(&world_of([declared].into_iter().chain(edits)));
        look(destination(&mesh, 80), &problems);
    }

    fn with(instance: Instance, change: impl FnOnce(&mut Instance)) -> Edit {
        let mut instance = instance;
        change(&mut instance);
        instance.into()
    }

    fn addresses(cluster: &Cluster) -> Vec<(String, bool)> {
        cluster.endpoints.iter().map(|endpoint| (endpoint.address.to_string(), endpoint.healthy)).collect()
    }

    fn sick_door(policy_mode: MtlsMode) -> Edit {
        let mut policy = policy("shop/door", to_service("shop/pay", None));
        policy.mtls = mode(policy_mode);
        policy.into()
    }

    #[test]
    fn only_instances_that_have_answered_and_are_not_leaving_are_published() {
        let states = [Health::Starting, Health::Healthy, Health::Unhealthy, Health::Draining];
        let instances = (1u8..).zip(states).map(|(number, health)| {
            with(instance("shop/pay", "v1", number), |instance| instance.health = health)
        });
        check(instances, |destination, _| {
            let expected = [("127.0.0.2:20002".to_owned(), true), ("127.0.0.3:20003".to_owned(), false)];
            assert_eq!(addresses(&destination.clusters[0]), expected);
        });
    }

    #[test]
    fn who_keeps_no_door_is_called_in_plaintext() {
        let declared = Edit::from(service("shop/pay", &[(80, 8080, Protocol::Http)]));
        let bare = with(instance("shop/pay", "v1", 2), |it| it.interception = Interception::None);
        let outbound = with(instance("shop/pay", "v1", 3), |it| it.interception = Interception::Outbound);
        let excluded = with(instance("shop/pay", "v1", 4), |it| it.ports[0].past_proxy = true);
        let all = [declared, instance("shop/pay", "v1", 1).into(), bare, outbound, excluded];
        let mesh = compile(&world_of(all)).mesh;
        let cluster = &destination(&mesh, 80).clusters[0];
        assert_eq!(cluster.transport, Transport::Mixed);
        let mtls: Vec<bool> = cluster.endpoints.iter().map(|endpoint| endpoint.mtls).collect();
        assert_eq!(mtls, [true, false, false, false]);
        let doors = mesh.proxies.iter().map(|(id, proxy)| (id.as_str(), proxy.inbound.len()));
        assert_eq!(doors.collect::<Vec<_>>(), [("shop-pay-1", 1), ("shop-pay-3", 0), ("shop-pay-4", 0)]);
        assert_eq!(mesh.transparent_namespaces.len(), 1, "its calls are redirected");
    }

    #[test]
    fn an_instance_without_the_port_is_no_endpoint_and_the_service_is_told() {
        let elsewhere = with(instance("shop/pay", "v1", 1), |instance| {
            (instance.ports[0].app, instance.ports[0].service) = (9090, 9090);
        });
        check([elsewhere], |destination, problems| {
            assert!(destination.clusters[0].endpoints.is_empty());
            let [problem] = problems else { panic!("one problem: {problems:?}") };
            assert_eq!(
                problem.to_string(),
                "Service shop/pay: spec.ports: port 80 leads to 8080, where no instance listens (shop-pay-1 listens on \
                 9090): correct targetPort"
            );
        });
    }

    #[test]
    fn a_protocol_the_application_denies_is_told() {
        let other =
            with(instance("shop/pay", "v1", 1), |instance| instance.ports[0].protocol = Protocol::Grpc);
        check([other], |_, problems| {
            let [problem] = problems else { panic!("one problem: {problems:?}") };
            assert!(
                problem.message.contains("declared http, but shop-pay-1 says its application speaks grpc")
            );
        });
    }

    #[test]
    fn a_port_declared_with_two_protocols_passes_bytes_and_each_caller_speaks_its_own() {
        let declared = [(80, Protocol::Http), (81, Protocol::Grpc), (443, Protocol::Tcp)];
        let told = |pairs: &[usize], transports: &[bool], door: Protocol, problems: usize| {
            let ports: Vec<_> = pairs.iter().map(|at| (declared[*at].0, 8080, declared[*at].1)).collect();
            let behind = |of: &str, ports: &[(u16, u16, Protocol)]| {
                let of = service_id(of);
                let port = |(service, app, protocol): &(u16, u16, Protocol)| InstancePort {
                    service: *service,
                    app: *app,
                    mesh: *app,
                    protocol: *protocol,
                    of: Some(of.clone()),
                    past_proxy: false,
                };
                ports.iter().map(port).collect::<Vec<_>>()
            };
            let one = with(instance("shop/pay", "v1", 1), |it| it.ports = behind("shop/pay", &ports));
            // The same by two services: neither declares the other's port.
            let two = with(instance("shop/pay", "v1", 1), |it| {
                it.services.insert(service_id("shop/also"));
                it.ports = [behind("shop/pay", &ports[..1]), behind("shop/also", &ports[1..])].concat();
            });
            let by_one = vec![service("shop/pay", &ports).into(), one];
            let by_two =
                vec![service("shop/pay", &ports[..1]).into(), service("shop/also", &ports[1..]).into(), two];
            for world in [by_one, by_two] {
                let Compiled { mesh, problems: said } = compile(&world_of(world));
                let inbound = mesh.workloads.values().next().expect("one workload");
                assert_eq!(inbound.ports[&8080].protocol, door, "{pairs:?}");
                for ((number, ..), http2) in ports.iter().zip(transports) {
                    let mut all = mesh.destinations.values();
                    let destination = all.find(|it| it.port.port == *number).expect("declared");
                    assert_eq!(destination.clusters[0].transport, Transport::Mtls { http2: *http2 });
                }
                assert_eq!(said.len(), problems, "{said:?}");
                assert!(
                    said.iter().all(|it| it.message.contains("its proxy passes bytes there")),
                    "{said:?}"
                );
            }
        };
        told(&[0, 2], &[false, false], Protocol::Tcp, 2);
        told(&[0, 1], &[false, true], Protocol::Tcp, 2);
        told(&[1, 2], &[true, false], Protocol::Tcp, 2);
        let alone = service("shop/pay", &[(80, 8080, Protocol::Http), (443, 8080, Protocol::Tcp)]);
        let mesh = compile(&world_of([alone.into()])).mesh;
        assert_eq!(destination(&mesh, 80).clusters[0].transport, Transport::Mtls { http2: false });
    }

    #[test]
    fn the_default_port_is_80_else_the_lowest() {
        for (ports, expected) in [(&[8080, 80, 79][..], 80), (&[9090, 8080][..], 8080)] {
            let ports: Vec<_> = ports.iter().map(|port| (*port, 1, Protocol::Http)).collect();
            let mesh = compile(&world_of([service("shop/pay", &ports).into()])).mesh;
            let defaults = mesh.destinations.values().filter(|destination| destination.default_port);
            assert_eq!(defaults.map(|destination| destination.port.port).collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn the_transport_follows_the_doors() {
        let healthy = || Edit::from(instance("shop/pay", "v1", 1));
        check([], |destination, _| {
            assert_eq!(destination.clusters[0].transport, Transport::Mtls { http2: true });
        });
        check([sick_door(MtlsMode::Disabled), healthy()], |destination, _| {
            assert_eq!(destination.clusters[0].transport, Transport::Plaintext);
            assert!(!destination.clusters[0].endpoints[0].mtls);
        });
        // Another service keeps the door of one of the two workloads closed.
        let both = with(instance("shop/other", "v1", 2), |instance| {
            instance.services.insert(service_id("shop/pay"));
        });
        let other = Edit::from(service("shop/other", &[]));
        check([sick_door(MtlsMode::Disabled), healthy(), other, both], |destination, _| {
            assert_eq!(destination.clusters[0].transport, Transport::Mixed);
            let mtls: Vec<bool> =
                destination.clusters[0].endpoints.iter().map(|endpoint| endpoint.mtls).collect();
            assert_eq!(mtls, [true, false]);
        });
    }

    #[test]
    fn http2_between_proxies_can_be_refused_and_not_forced_on_plaintext() {
        let said = |http2| {
            let mut policy = policy("shop/h2", to_service("shop/pay", None));
            policy.calls.connection.http2 = Some(http2);
            Edit::from(policy)
        };
        check([said(Http2::Never)], |destination, problems| {
            assert_eq!(destination.clusters[0].transport, Transport::Mtls { http2: false });
            assert_eq!(problems, []);
        });
        check([said(Http2::Always), sick_door(MtlsMode::Disabled)], |destination, problems| {
            assert_eq!(destination.clusters[0].transport, Transport::Plaintext);
            let [problem] = problems else { panic!("one problem: {problems:?}") };
            assert_eq!((problem.field.as_str(), problem.reason), ("spec.connection.http2", Reason::NoEffect));
        });
    }

    #[test]
    fn the_identities_are_those_of_every_instance_and_the_service() {
        let other = with(instance("shop/pay", "v1", 1), |instance| {
            instance.service_account = crate::compile::worlds::name("robot").into();
            instance.health = Health::Draining;
        });
        check([other], |destination, _| {
            let identities: Vec<String> =
                destination.clusters[0].identities.iter().map(Identity::to_string).collect();
            let of = |account: &str| format!("spiffe://airlane.local/ns/shop/sa/{account}");
            assert_eq!(identities, [of("pay"), of("robot")]);
        });
    }

    #[test]
    fn a_canary_splits_by_revision_and_leaves_out_every_other() {
        let mut canary = canary("shop/pay", "shop/pay");
        canary.progress = Some(progress(Phase::Progressing, 500, 0));
        let instances =
            [("v0", 1), ("v1", 2), ("v2", 3)].map(|(of, number)| instance("shop/pay", of, number).into());
        check(instances.into_iter().chain([canary.into()]), |destination, _| {
            let names: Vec<String> =
                destination.clusters.iter().map(|cluster| cluster.name.to_string()).collect();
            assert_eq!(names, ["80|pay|shop", "80|pay|shop|v1", "80|pay|shop|v2"]);
            let sizes: Vec<usize> =
                destination.clusters.iter().map(|cluster| cluster.endpoints.len()).collect();
            assert_eq!(sizes, [3, 1, 1]);
            let Route::Split(split) = &destination.route else { panic!("a split") };
            let routed: Vec<String> =
                split.fail_safe.iter().map(|(cluster, _)| cluster.to_string()).collect();
            assert_eq!(routed, names[1..]);
        });
    }

    /// The instances behind stable and the shares of stable and canary, with these copies: number, version and whether
    /// it is healthy.
    fn behind_stable(
        memory: Option<crate::rollout::Progress>,
        copies: &[(u8, &str, bool)],
    ) -> (Vec<String>, Vec<u32>) {
        let mut canary = canary("shop/pay", "shop/pay");
        canary.progress = memory;
        let copies = copies.iter().map(|&(number, version, healthy)| {
            let health = if healthy { Health::Healthy } else { Health::Unhealthy };
            with(instance("shop/pay", version, number), |it| it.health = health)
        });
        let declared = Edit::from(service("shop/pay", &[(80, 8080, Protocol::Http)]));
        let mesh = compile(&world_of([declared, canary.into()].into_iter().chain(copies))).mesh;
        let stable = &destination(&mesh, 80).clusters[1];
        let instances = stable.endpoints.iter().map(|endpoint| endpoint.instance.to_string());
        (instances.collect(), mesh.shares.into_values().collect())
    }

    #[test]
    fn while_stable_is_missing_every_other_version_serves_before_an_unproved_canary() {
        let all_on_stable = vec![FULL_SHARE, 0];
        let of = |numbers: &[u8]| -> Vec<String> {
            numbers.iter().map(|number| format!("shop-pay-{number}")).collect()
        };
        let mistyped = behind_stable(None, &[(1, "v0", true), (2, "v2", true)]);
        assert_eq!(mistyped, (of(&[1]), all_on_stable.clone()));
        let back = behind_stable(None, &[(1, "v0", true), (2, "v2", true), (3, "v1", true)]);
        assert_eq!(back, (of(&[3]), all_on_stable.clone()));
        let sick = behind_stable(None, &[(1, "v0", true), (2, "v2", true), (3, "v1", false)]);
        assert_eq!(sick, (of(&[1, 3]), all_on_stable));
        let alone = behind_stable(None, &[(1, "v0", false), (2, "v2", true)]);
        assert_eq!(alone, (of(&[1]), vec![0, FULL_SHARE]), "nothing else is ready");
        let running = Some(progress(Phase::Progressing, 500, 0));
        let under_way = behind_stable(running, &[(1, "v0", true), (2, "v2", true)]);
        assert_eq!(under_way, (of(&[1]), vec![9_500, 500]));
    }

    #[test]
    fn a_share_waits_for_the_first_healthy_endpoint_of_its_revision() {
        let mut canary = canary("shop/pay", "shop/pay");
        canary.progress = Some(progress(Phase::Progressing, 500, 0));
        let starting = with(instance("shop/pay", "v2", 2), |instance| instance.health = Health::Starting);
        let declared = Edit::from(service("shop/pay", &[(80, 8080, Protocol::Http)]));
        let mut world = world_of([declared, instance("shop/pay", "v1", 1).into(), starting, canary.into()]);
        let mut memo = Memo::default();
        let before = memo.compile(&world).mesh;
        Edit::from(instance("shop/pay", "v2", 2)).apply(&mut world);
        let after = memo.compile(&world).mesh;
        let shares = |mesh: &Mesh| mesh.shares.values().copied().collect::<Vec<_>>();
        assert_eq!((shares(&before), shares(&after)), (vec![10_000, 0], vec![9_500, 500]));
        assert_eq!(
            destination(&before, 80).route,
            destination(&after, 80).route,
            "no route is edited for it"
        );
    }

    #[test]
    fn a_rollout_that_moves_its_share_changes_the_shares_and_no_destination() {
        let declared = Edit::from(service("shop/pay", &[(80, 8080, Protocol::Http)]));
        let instances =
            [("v1", 1), ("v2", 2)].map(|(of, number)| Edit::from(instance("shop/pay", of, number)));
        let mut world = world_of([declared].into_iter().chain(instances));
        let mut memo = Memo::default();
        let mut at = |share| {
            let mut canary = canary("shop/pay", "shop/pay");
            canary.progress = Some(progress(Phase::Progressing, share, 0));
            Edit::from(canary).apply(&mut world);
            memo.compile(&world).mesh
        };
        let (five, ten) = (at(500), at(1_000));
        assert_ne!(five.shares, ten.shares);
        let pointer = |mesh: &Mesh| Arc::clone(mesh.destinations.values().next().expect("one"));
        assert!(Arc::ptr_eq(&pointer(&five), &pointer(&ten)));
    }
}
