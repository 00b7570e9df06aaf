//! The destinations of a service: one per port, with its clusters and where requests go.
//!
//! What is expensive to change depends on what seldom changes. A cluster's transport and identities come from every
//! instance of the service whatever its health, and from the service itself when it has none; so an endpoint that
//! comes or goes changes the endpoints and nothing else, and no proxy forgets its ejections over it.

use super::{calls, mtls::Words, policies::Ladder, split::Governing};
use crate::{
    id::{ClusterName, Identity, ObjectId, ObjectKind, Revision, ServicePort, TrustDomain},
    mesh::{Cluster, Destination, Endpoint, Inbound, Route, ShortName, Transport},
    policy::{Http2, MtlsMode},
    problem::{Problem, Reason},
    world::{Health, Instance, InstancePort, Port, Protocol, Service},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
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
    for port in ports.into_values() {
        let name = ServicePort { service: inputs.service.id.clone(), port: port.number };
        let before =
            before.and_then(|before| before.destinations.iter().find(|destination| destination.port == name));
        let unit = OnePort { inputs, port, name, before };
        let destination = unit.destination(default_port == Some(port.number), &mut decided);
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
            identities: identities.clone(),
            transport,
            name,
        };
        let whole = ClusterName { port: self.name.clone(), revision: None };
        let mut clusters = vec![cluster(whole.clone())];
        let route = match governing {
            None => Route::To(whole),
            Some(governing) => {
                let revisions = governing.clusters(&self.name).map(cluster);
                let [stable, canary] = revisions.each_ref().map(serves);
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
            short_name: self.inputs.short_name,
            protocol: self.port.protocol,
            clusters,
            route,
            calls: merged.calls,
            shaped_by,
        }
    }

    /// The port of an instance behind this port; an instance without one is no endpoint of it.
    fn behind(&self, instance: &'a Instance) -> Option<&'a InstancePort> {
        // A mesh port of 0 was never bound: nothing can be sent there.
        instance.ports.iter().filter(|port| port.app == self.port.target && port.mesh != 0).min()
    }

    fn accepts_mtls(&self, door: &Inbound) -> bool {
        door.ports.get(&self.port.target).is_some_and(|door| door.mtls != MtlsMode::Disabled)
    }

    /// The endpoints of the cluster: those of the one it names of the revision, or of all.
    fn endpoints(&self, cluster: &ClusterName) -> Arc<Vec<Endpoint>> {
        let selected =
            |revision: &Revision| cluster.revision.as_ref().is_none_or(|wanted| wanted == revision);
        let of = |instance: &'a Instance, door: &Inbound| {
            let healthy = match instance.health {
                Health::Healthy => true,
                Health::Unhealthy => false,
                Health::Starting | Health::Draining => return None,
            };
            Some(Endpoint {
                instance: instance.id.clone(),
                address: SocketAddr::new(instance.address, self.behind(instance)?.mesh),
                mtls: self.accepts_mtls(door),
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

    /// Who any endpoint of the service may be. The service's own name is always among them, so that the set is the
    /// same before the first instance and after the last where accounts are named like services.
    fn identities(&self) -> BTreeSet<Identity> {
        let Inputs { trust_domain, service, instances, .. } = self.inputs;
        let identity = |namespace: &_, account: &_| Identity {
            trust_domain: trust_domain.clone(),
            namespace: Clone::clone(namespace),
            service_account: Clone::clone(account),
        };
        let own = identity(&service.id.namespace, &service.id.name);
        let of_instances = instances
            .iter()
            .map(|(instance, _)| identity(&instance.workload.namespace, &instance.service_account));
        of_instances.chain([own]).collect()
    }

    fn transport(&self, http2: Http2) -> Transport {
        let alone = self.inputs.door_alone.ruling(self.port.target).mode != MtlsMode::Disabled;
        let with_port = self.inputs.instances.iter().filter(|(instance, _)| self.behind(instance).is_some());
        let mut modes = with_port.map(|(_, door)| self.accepts_mtls(door));
        if !modes.all(|mtls| mtls == alone) {
            return Transport::Mixed;
        }
        if !alone {
            return Transport::Plaintext;
        }
        let http2 = match self.port.protocol {
            Protocol::Tcp => false,
            Protocol::Http2 | Protocol::Grpc => true,
            Protocol::Http => http2 != Http2::Never,
        };
        Transport::Mtls { http2 }
    }

    /// Instances that are there and cannot be what the service declares.
    fn check_instances(&self, problems: &mut Vec<Problem>) {
        let instances = || self.inputs.instances.iter().map(|(instance, _)| instance);
        let Port { number, target, protocol } = self.port;
        let with_port =
            instances().filter(|instance| instance.ports.iter().any(|port| port.app == *target)).count();
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
        let differs = |port: &&InstancePort| port.app == *target && port.protocol != *protocol;
        let other = instances().find_map(|instance| Some((instance, instance.ports.iter().find(differs)?)));
        if let Some((instance, port)) = other {
            let message = format!(
                "port {number} is declared {protocol}, but {} says its application speaks {} on {target}: make them agree",
                instance.id, port.protocol
            );
            problems.push(problem_of(&self.inputs.service, message));
        }
    }
}

fn serves(cluster: &Cluster) -> bool {
    cluster.endpoints.iter().any(|endpoint| endpoint.healthy)
}
