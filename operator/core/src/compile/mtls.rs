//! Who may come through a door.
//!
//! The door belongs to the workload. A mode is found for each port of the application, and `ports` in a
//! policy names what the application listens on; `targetRef.port` names a port of the service and means what
//! stands behind it. The rules:
//!
//! 1. Inside one policy a port's own mode beats the policy's mode.
//! 2. Of several policies with the same target the strictest counts.
//! 3. Mesh → namespace: the more specific one that says anything.
//! 4. Workload and service account: the stricter of the two, instead of what rule 3 found.
//! 5. A service: its port's policies, else its own, else what rules 3 and 4 found. A workload's door is the
//!    strictest of what its services, its own policies and its account's say, so that no second service is a
//!    way round the first.
//! 6. Floors of the mesh and the namespace: whatever was found, never weaker. A floor is per port too, by
//!    rule 1.
//! 7. Nobody says anything: [`MtlsMode::Permissive`].
//!
//! Where everything that enters is redirected, callers also come to ports that no service leads to: the same rules
//! hold for them, and of a service what it says without a port.

use super::defaults;
use crate::{
    id::{Identity, ObjectId, ServiceAccount, ServiceId, TrustDomain, WorkloadRevision},
    mesh::{Door, Inbound, RESERVED_PORTS, Undeclared},
    policy::{MtlsMode, MtlsSpec, Policy, Target},
    world::{Instance, Interception},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Every policy with a word about one door.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Words {
    pub(super) mesh: Vec<Arc<Policy>>,
    pub(super) namespace: Vec<Arc<Policy>>,
    pub(super) workload: Vec<Arc<Policy>>,
    pub(super) accounts: Vec<Arc<Policy>>,
    /// Every service that selects the workload.
    pub(super) services: Vec<Selecting>,
}

/// A service that selects a workload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Selecting {
    pub(super) service: ServiceId,
    /// The policies of it and its ports.
    pub(super) policies: Vec<Arc<Policy>>,
    pub(super) leads: Leads,
    /// Whether it has an address of its own; if not, callers choose among its copies' addresses.
    pub(super) has_address: bool,
}

/// What stands behind each port of a service, by number: ports of the application. Copies may listen on different ones.
pub(super) type Leads = BTreeMap<u16, BTreeSet<u16>>;

/// A mode and whose word it is; `None`: nobody's, the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ruling<'a> {
    pub(super) mode: MtlsMode,
    pub(super) by: Option<&'a ObjectId>,
}

impl Words {
    /// The mode of the door before one port of the application.
    pub(super) fn ruling(&self, app_port: u16) -> Ruling<'_> {
        let inherited = strictest(&self.namespace, app_port)
            .or_else(|| strictest(&self.mesh, app_port))
            .unwrap_or(Ruling { mode: defaults::MTLS, by: None });
        let own = strictest(self.workload.iter().chain(&self.accounts), app_port);
        let base = own.unwrap_or(inherited);
        let services = self.services.iter().map(|service| of_service(service, app_port, base));
        let found = own.into_iter().chain(services).reduce(stricter).unwrap_or(base);
        match self.floor(app_port) {
            Some(floor) if floor.mode > found.mode => floor,
            _ => found,
        }
    }

    /// Whether a service without an address leads to a port of the application.
    fn called_by_address(&self, app_port: u16) -> bool {
        let chosen_among = self.services.iter().filter(|selecting| !selecting.has_address);
        chosen_among.flat_map(|selecting| selecting.leads.values()).any(|apps| apps.contains(&app_port))
    }

    /// The doors before ports that nobody has declared, and whose words they are.
    fn undeclared(&self, declared: &BTreeMap<u16, Door>) -> (Undeclared, BTreeSet<ObjectId>) {
        // No application can listen on port 0, so that no policy has a word about it alone.
        let Ruling { mode, by } = self.ruling(0);
        let mut authors: BTreeSet<ObjectId> = by.into_iter().cloned().collect();
        let services = self.services.iter().flat_map(|service| &service.policies);
        let policies = [&self.mesh, &self.namespace, &self.workload, &self.accounts].into_iter().flatten();
        let sections = policies.chain(services).filter_map(|policy| policy.mtls.as_ref());
        let named: BTreeSet<u16> = sections.flat_map(|mtls| &mtls.ports).map(|(port, _)| *port).collect();
        let mut exceptions = BTreeMap::new();
        let ours = |port: &u16| *port == 0 || RESERVED_PORTS.contains(port);
        for port in named.into_iter().filter(|port| !ours(port) && !declared.contains_key(port)) {
            let ruling = self.ruling(port);
            if ruling.mode != mode {
                authors.extend(ruling.by.cloned());
                exceptions.insert(port, ruling.mode);
            }
        }
        let access = self.access(0);
        authors.extend(access.iter().map(|access| access.by.clone()));
        (Undeclared { mtls: mode, exceptions, access }, authors)
    }

    fn floor(&self, app_port: u16) -> Option<Ruling<'_>> {
        strictest(self.mesh.iter().chain(&self.namespace).filter(|policy| is_floor(policy)), app_port)
    }
}

/// Whether nobody below a policy may be weaker.
pub(super) fn is_floor(policy: &Policy) -> bool {
    policy.mtls.as_ref().is_some_and(|mtls| mtls.floor == Some(true))
}

/// What a section says about one port of the application.
pub(super) fn mode_at(mtls: &MtlsSpec, app_port: u16) -> Option<MtlsMode> {
    let own = mtls.ports.iter().filter(|(port, _)| *port == app_port).map(|(_, mode)| *mode).max();
    own.or(mtls.mode)
}

/// The stricter of two words. Of equal ones the first object in order gets the credit, and any object before
/// the default, so that the answer does not depend on who was asked first.
fn stricter<'a>(one: Ruling<'a>, other: Ruling<'a>) -> Ruling<'a> {
    let credit = |ruling: &Ruling<'a>| (ruling.by.is_none(), ruling.by);
    let better = other.mode.cmp(&one.mode).then_with(|| credit(&one).cmp(&credit(&other)));
    if better.is_gt() { other } else { one }
}

fn strictest<'a>(policies: impl IntoIterator<Item = &'a Arc<Policy>>, app_port: u16) -> Option<Ruling<'a>> {
    let said = policies.into_iter().filter_map(|policy| {
        let mode = mode_at(policy.mtls.as_ref()?, app_port)?;
        Some(Ruling { mode, by: Some(&policy.id) })
    });
    said.reduce(stricter)
}

fn of_service<'a>(selecting: &'a Selecting, app_port: u16, base: Ruling<'a>) -> Ruling<'a> {
    let Selecting { policies, leads, .. } = selecting;
    let about = |wanted: Option<u16>| {
        policies
            .iter()
            .filter(move |policy| matches!(&policy.target, Target::Service { port, .. } if *port == wanted))
    };
    let whole = strictest(about(None), app_port).unwrap_or(base);
    let ports = leads.iter().filter(|(_, apps)| apps.contains(&app_port));
    ports
        .map(|(number, _)| strictest(about(Some(*number)), app_port).unwrap_or(whole))
        .reduce(stricter)
        .unwrap_or(whole)
}

/// All a door depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Inputs {
    pub(super) trust_domain: TrustDomain,
    pub(super) workload: WorkloadRevision,
    /// Every instance of the revision, in order.
    pub(super) instances: Vec<Arc<Instance>>,
    pub(super) words: Words,
}

/// The door of a workload's revision, the same for all its instances. Where they contradict each other (two
/// registrations of one version that differ), the first account by name decides, so that the answer at least does not
/// depend on who came first. A port of which different protocols are declared passes bytes, which serves the callers of
/// each: their own proxies speak what they were told.
pub(super) fn door(inputs: &Inputs) -> Inbound {
    let Inputs { trust_domain, workload, instances, words } = inputs;
    let account: Option<&ServiceAccount> = instances.iter().map(|instance| &instance.service_account).min();
    let mut ports: BTreeMap<u16, Door> = BTreeMap::new();
    let mut shaped_by = BTreeSet::new();
    for port in instances.iter().flat_map(|instance| &instance.ports) {
        let door = ports.entry(port.app).or_insert_with(|| {
            let ruling = words.ruling(port.app);
            shaped_by.extend(ruling.by.cloned());
            let access = words.access(port.app);
            shaped_by.extend(access.iter().map(|access| access.by.clone()));
            Door {
                mtls: ruling.mode,
                protocol: port.protocol,
                access,
                called_by_address: words.called_by_address(port.app),
            }
        });
        door.protocol = door.protocol.and(port.protocol);
    }
    let redirected = instances.iter().any(|instance| instance.interception == Interception::Transparent);
    let undeclared = redirected.then(|| {
        let (undeclared, authors) = words.undeclared(&ports);
        shaped_by.extend(authors);
        undeclared
    });
    Inbound {
        workload: workload.clone(),
        identity: Identity {
            trust_domain: trust_domain.clone(),
            namespace: workload.namespace.clone(),
            service_account: account.cloned().unwrap_or_else(|| workload.workload.clone().into()),
        },
        ports,
        undeclared,
        shaped_by,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::{
            compile,
            worlds::{
                Edit, instance, mode, name, namespace, policy, service, service_id, to_service, world_of,
            },
        },
        world::{InstancePort, Protocol},
    };
    use MtlsMode::{Disabled, Permissive, Strict};

    const MESH: Target = Target::Mesh;

    fn shop() -> Target {
        Target::Namespace(namespace("shop"))
    }

    fn pay() -> Target {
        to_service("shop/pay", None)
    }

    fn workload() -> Target {
        Target::Workload { namespace: namespace("shop"), name: name("pay") }
    }

    fn account() -> Target {
        Target::ServiceAccount { namespace: namespace("shop"), name: name("pay").into() }
    }

    fn ports(mode: Option<MtlsMode>, ports: &[(u16, MtlsMode)]) -> Option<MtlsSpec> {
        Some(MtlsSpec { mode, floor: None, ports: ports.to_vec() })
    }

    fn floor(of: Option<MtlsSpec>) -> Option<MtlsSpec> {
        of.map(|mtls| MtlsSpec { floor: Some(true), ..mtls })
    }

    /// The modes of the application's ports 8080 (80 of `shop/pay` and of `shop/also`) and 9090 (90 of
    /// `shop/pay`).
    fn check(policies: &[(Target, Option<MtlsSpec>)], expected: [MtlsMode; 2]) {
        let mut pod = instance("shop/pay", "v1", 1);
        pod.services.insert(service_id("shop/also"));
        pod.ports.push(InstancePort { service: 9090, app: 9090, mesh: 20_100, ..pod.ports[0].clone() });
        let declared: [Edit; 3] = [
            service("shop/pay", &[(80, 8080, Protocol::Http), (90, 9090, Protocol::Http)]).into(),
            service("shop/also", &[(80, 8080, Protocol::Http)]).into(),
            pod.into(),
        ];
        let numbered = policies.iter().enumerate();
        let policies = numbered.map(|(number, (target, mtls))| {
            let mut policy = policy(&format!("shop/p-{number}"), target.clone());
            policy.mtls.clone_from(mtls);
            Edit::from(policy)
        });
        let mesh = compile(&world_of(declared.into_iter().chain(policies))).mesh;
        let doors = &mesh.workloads.values().next().expect("one workload").ports;
        assert_eq!([doors[&8080].mtls, doors[&9090].mtls], expected);
    }

    #[test]
    fn ports_that_nobody_declared_follow_the_same_rules() {
        let undeclared = |policies: &[(Target, Option<MtlsSpec>)]| {
            let mut pod = instance("shop/pay", "v1", 1);
            pod.interception = Interception::Transparent;
            let declared: [Edit; 2] = [service("shop/pay", &[(80, 8080, Protocol::Http)]).into(), pod.into()];
            let policies = (0..).zip(policies).map(|(number, (target, mtls)): (u8, _)| {
                let mut policy = policy(&format!("shop/p-{number}"), target.clone());
                policy.mtls.clone_from(mtls);
                Edit::from(policy)
            });
            let mesh = compile(&world_of(declared.into_iter().chain(policies))).mesh;
            let inbound = Arc::clone(mesh.workloads.values().next().expect("one workload"));
            let Undeclared { mtls, exceptions, .. } = inbound.undeclared.clone().expect("redirected");
            (mtls, exceptions.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(undeclared(&[]), (Permissive, vec![]));
        assert_eq!(undeclared(&[(shop(), mode(Strict))]), (Strict, vec![]));
        assert_eq!(undeclared(&[(pay(), mode(Strict))]), (Strict, vec![]));
        assert_eq!(undeclared(&[(to_service("shop/pay", Some(80)), mode(Strict))]), (Permissive, vec![]));
        let own = (shop(), ports(Some(Strict), &[(15_006, Permissive)]));
        assert_eq!(undeclared(&[own]), (Strict, vec![]), "the proxy's own");
        let metrics = (shop(), ports(Some(Strict), &[(9_090, Permissive), (8_080, Disabled)]));
        assert_eq!(undeclared(std::slice::from_ref(&metrics)), (Strict, vec![(9_090, Permissive)]));
        let floor = (MESH, floor(mode(Strict)));
        assert_eq!(undeclared(&[metrics, floor]), (Strict, vec![]));
    }

    #[test]
    fn callers_are_expected_at_the_pods_of_a_service_without_an_address() {
        let mut headless = service("shop/pay", &[(80, 8080, Protocol::Http)]);
        let mut pod = instance("shop/pay", "v1", 1);
        pod.services.insert(service_id("shop/also"));
        pod.ports.push(InstancePort { service: 90, app: 9090, ..pod.ports[0].clone() });
        let mut also = service("shop/also", &[(90, 9090, Protocol::Tcp)]);
        also.addresses = [[10, 96, 0, 1].into()].into();
        let expected = |headless: &crate::world::Service| {
            let mesh =
                compile(&world_of([headless.clone().into(), also.clone().into(), pod.clone().into()])).mesh;
            let doors = &mesh.workloads.values().next().expect("one workload").ports;
            [8080, 9090].map(|port| doors[&port].called_by_address)
        };
        assert_eq!(expected(&headless), [true, false]);
        headless.addresses = [[10, 96, 0, 2].into()].into();
        assert_eq!(expected(&headless), [false, false]);
    }

    #[test]
    fn nobody_says_anything() {
        check(&[], [Permissive; 2]);
    }

    #[test]
    fn the_more_specific_level_wins_without_a_floor() {
        check(&[(MESH, mode(Strict))], [Strict; 2]);
        check(&[(MESH, mode(Strict)), (shop(), mode(Permissive))], [Permissive; 2]);
        check(&[(MESH, mode(Strict)), (workload(), mode(Disabled))], [Disabled; 2]);
        check(&[(workload(), mode(Disabled)), (account(), mode(Permissive))], [Permissive; 2]);
    }

    #[test]
    fn a_second_service_is_no_way_round_the_first() {
        // `also` says nothing, so it stands for what it inherits.
        check(&[(shop(), mode(Strict)), (pay(), mode(Disabled))], [Strict; 2]);
        let also = to_service("shop/also", None);
        check(&[(shop(), mode(Strict)), (pay(), mode(Disabled)), (also, mode(Permissive))], [Permissive; 2]);
    }

    #[test]
    fn a_service_cannot_open_what_its_workload_closes() {
        check(&[(workload(), mode(Strict)), (pay(), mode(Permissive))], [Strict; 2]);
    }

    #[test]
    fn a_port_of_a_service_is_not_the_same_number_of_another() {
        let mut pod = instance("shop/pay", "v1", 1);
        pod.services.insert(service_id("shop/admin"));
        let behind = |of: &str, app: u16| InstancePort {
            app,
            of: Some(service_id(of)),
            ..instance("shop/pay", "v1", 1).ports[0].clone()
        };
        pod.ports = vec![behind("shop/pay", 8080), behind("shop/admin", 9000)];
        let mut admin = policy("shop/admin", to_service("shop/admin", Some(80)));
        admin.mtls = mode(Strict);
        let mesh = compile(&world_of([
            service("shop/pay", &[(80, 8080, Protocol::Http)]).into(),
            service("shop/admin", &[(80, 9000, Protocol::Http)]).into(),
            pod.into(),
            admin.into(),
        ]))
        .mesh;
        let doors = &mesh.workloads.values().next().expect("one workload").ports;
        assert_eq!([doors[&8080].mtls, doors[&9000].mtls], [Permissive, Strict]);
    }

    #[test]
    fn every_service_before_a_port_has_a_word_whatever_its_copies_listen_on() {
        // `web` is 8080 in v1 and 9090 in v2; `one` leads there from 80, `two` from 81.
        let copy = |version: &str, number: u8, app: u16| {
            let mut pod = instance("shop/one", version, number);
            pod.services.insert(service_id("shop/two"));
            let behind = |of: &str, number: u16| InstancePort {
                service: number,
                app,
                of: Some(service_id(of)),
                ..instance("shop/one", version, 1).ports[0].clone()
            };
            pod.ports = vec![behind("shop/one", 80), behind("shop/two", 81)];
            Edit::from(pod)
        };
        let mut two = policy("shop/two", to_service("shop/two", Some(81)));
        two.mtls = mode(Strict);
        let mesh = compile(&world_of([
            service("shop/one", &[(80, 8080, Protocol::Http)]).into(),
            service("shop/two", &[(81, 8080, Protocol::Http)]).into(),
            copy("v1", 1, 8080),
            copy("v2", 2, 9090),
            two.into(),
        ]))
        .mesh;
        let modes = mesh.workloads.values().flat_map(|inbound| inbound.ports.values()).map(|door| door.mtls);
        assert_eq!(modes.collect::<Vec<_>>(), [Strict, Strict]);
    }

    #[test]
    fn of_one_target_the_strictest_wins() {
        check(&[(shop(), mode(Permissive)), (shop(), mode(Strict)), (shop(), mode(Disabled))], [Strict; 2]);
    }

    #[test]
    fn a_port_beats_the_whole() {
        check(&[(pay(), ports(Some(Strict), &[(9090, Permissive)]))], [Strict, Permissive]);
        check(&[(pay(), ports(None, &[(9090, Strict)]))], [Permissive, Strict]);
        let port_90 = to_service("shop/pay", Some(90));
        check(&[(pay(), mode(Permissive)), (port_90, mode(Strict))], [Permissive, Strict]);
    }

    #[test]
    fn a_floor_holds_for_everybody_below_port_by_port() {
        check(
            &[(MESH, floor(mode(Strict))), (shop(), mode(Permissive)), (pay(), mode(Disabled))],
            [Strict; 2],
        );
        check(&[(shop(), floor(mode(Strict))), (workload(), mode(Disabled))], [Strict; 2]);
        let but_one = floor(ports(Some(Strict), &[(9090, Permissive)]));
        check(&[(MESH, but_one), (workload(), mode(Disabled))], [Strict, Permissive]);
    }

    #[test]
    fn a_floor_below_the_namespace_holds_nothing() {
        check(&[(workload(), floor(mode(Permissive))), (account(), mode(Disabled))], [Permissive; 2]);
        check(&[(pay(), floor(mode(Permissive))), (workload(), mode(Strict))], [Strict; 2]);
    }
}
