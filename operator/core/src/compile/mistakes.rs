//! What users wrote and we cannot do, as far as it shows without merging.

use super::{index::Index, mtls, reach::Reach};
use crate::{
    id::{Namespace, ObjectId, ObjectKind},
    mesh::RESERVED_PORTS,
    policy::{
        AccessSpec, CallsSpec, CircuitBreakerSpec, ConnectionSpec, MtlsMode, MtlsSpec, Policy, RetriesSpec,
        Target, TimeoutsSpec,
    },
    problem::{Problem, Reason},
    world::Port,
};
use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Deref,
    sync::Arc,
};

/// How many workloads a problem names.
const NAMED_MAX: usize = 3;

/// Finds the mistakes in every policy, and in services what policies cannot mend.
pub(super) fn find(index: &Index<'_>, problems: &mut BTreeSet<Problem>) {
    // Policies of workloads are rare, and who runs is the longest list there is.
    let running = LazyCell::new(|| Running::of(index));
    let reach = LazyCell::new(|| Reach::of(index));
    for policy in index.world.policies.values() {
        let mut found = Found { policy, problems };
        found.missing_target(index, &running);
        found.calls_of_a_workload();
        if let Some(mtls) = &policy.mtls {
            found.idle_floor(mtls);
            found.unknown_ports(index, mtls);
            found.ports_of_the_proxy(index, mtls);
        }
        if let Some(access) = &policy.access {
            found.idle_rules(access);
            found.rules_without_requests(index, access, &reach);
        }
        found.open_doors(index, &reach);
    }
    below_floors(index, problems);
    for siblings in index.policies.rivals_about_doors() {
        let strictest = strictest(siblings);
        for (policy, sibling) in
            siblings.iter().flat_map(|one| strictest.iter().map(move |other| (one, other)))
        {
            Found { policy, problems }.weaker_than(sibling);
        }
    }
    reserved_ports(index, problems);
    for (winner, losers) in index.policies.rivals_about_calls() {
        for policy in losers {
            let message = format!(
                "{} is older and already says how calls to this target are made: merge the two, or delete one",
                winner.id
            );
            Found { policy, problems }.add("spec.targetRef", Reason::Conflicted, message);
        }
    }
}

fn below_floors(index: &Index<'_>, problems: &mut BTreeSet<Problem>) {
    let mut below: HashMap<&Namespace, Vec<&Policy>> = HashMap::new();
    let mut floors = index.policies.floors().peekable();
    if floors.peek().is_some() {
        for policy in index.world.policies.values() {
            if let Some(namespace) = namespace(&policy.target) {
                below.entry(namespace).or_default().push(policy);
            }
        }
    }
    for floor in floors {
        let policies: Box<dyn Iterator<Item = &Policy>> = match &floor.target {
            Target::Namespace(namespace) => Box::new(
                below
                    .get(namespace)
                    .into_iter()
                    .flatten()
                    .copied()
                    .filter(|policy| !matches!(policy.target, Target::Namespace(_))),
            ),
            _ => Box::new(below.values().flatten().copied()),
        };
        for policy in policies {
            Found { policy, problems }.below_floor(floor);
        }
    }
}

/// The policies of one target that outdo others: of the strictest about every port, and about each single one, the first.
fn strictest<'a>(siblings: &[&'a Arc<Policy>]) -> Vec<&'a Arc<Policy>> {
    let said = siblings.iter().filter_map(|policy| Some((*policy, policy.mtls.as_ref()?)));
    let mut found: BTreeMap<Option<u16>, (MtlsMode, &Arc<Policy>)> = BTreeMap::new();
    for (policy, mtls) in said {
        let whole = mtls.mode.map(|mode| (None, mode));
        let ports = mtls.ports.iter().map(|(port, mode)| (Some(*port), *mode));
        for (port, mode) in whole.into_iter().chain(ports) {
            let held = found.entry(port).or_insert((mode, policy));
            if held.0 < mode {
                *held = (mode, policy);
            }
        }
    }
    let first: BTreeMap<&ObjectId, &Arc<Policy>> =
        found.into_values().map(|(_, policy)| (&policy.id, policy)).collect();
    first.into_values().collect()
}

/// Ports of services where a pod's proxy listens for what the kernel redirects to it.
fn reserved_ports(index: &Index<'_>, problems: &mut BTreeSet<Problem>) {
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

/// The workloads and accounts that have an instance: all we know to exist.
struct Running<'w> {
    workloads: HashSet<(&'w Namespace, &'w str)>,
    accounts: HashSet<(&'w Namespace, &'w str)>,
}

impl<'w> Running<'w> {
    fn of(index: &Index<'w>) -> Self {
        let instances = || index.world.instances.values();
        let workloads = instances().map(|of| (&of.workload.namespace, of.workload.workload.as_str()));
        let accounts = instances().map(|of| (&of.workload.namespace, of.service_account.as_str()));
        Running { workloads: workloads.collect(), accounts: accounts.collect() }
    }
}

struct Found<'a> {
    policy: &'a Policy,
    problems: &'a mut BTreeSet<Problem>,
}

impl Found<'_> {
    fn add(&mut self, field: &str, reason: Reason, message: String) {
        let (subject, field) = (self.policy.id.clone(), field.to_owned());
        self.problems.insert(Problem { subject, field, reason, message });
    }

    fn missing_target<'w>(&mut self, index: &Index<'w>, running: &impl Deref<Target = Running<'w>>) {
        let none_runs = |kind, namespace: &Namespace, name: &str| {
            format!("no {kind} {namespace}/{name} runs: start it, or correct the name")
        };
        let (field, message) = match &self.policy.target {
            Target::Mesh | Target::Namespace(_) => return,
            Target::Service { service, port } => match (index.world.services.get(service), port) {
                (None, _) => {
                    let message =
                        format!("there is no service {service}: start a workload of it, or correct the name");
                    ("spec.targetRef.name", message)
                }
                (Some(declared), Some(port))
                    if !declared.ports.iter().any(|declared| declared.number == *port) =>
                {
                    let ports: BTreeSet<u16> = declared.ports.iter().map(|port| port.number).collect();
                    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
                    ("spec.targetRef.port", format!("{service} has no port {port}: it has {ports}"))
                }
                _ => return,
            },
            Target::Workload { namespace, name }
                if !running.workloads.contains(&(namespace, name.as_str())) =>
            {
                ("spec.targetRef.name", none_runs("workload", namespace, name.as_str()))
            }
            Target::ServiceAccount { namespace, name }
                if !running.accounts.contains(&(namespace, name.as_str())) =>
            {
                ("spec.targetRef.name", none_runs("workload with service account", namespace, name.as_str()))
            }
            Target::Workload { .. } | Target::ServiceAccount { .. } => return,
        };
        self.add(field, Reason::TargetNotFound, message);
    }

    fn calls_of_a_workload(&mut self) {
        if !matches!(self.policy.target, Target::Workload { .. } | Target::ServiceAccount { .. }) {
            return;
        }
        let CallsSpec { timeouts, retries, circuit_breaker, load_balancing, connection } = &self.policy.calls;
        let sections = [
            ("spec.timeouts", *timeouts != TimeoutsSpec::default()),
            ("spec.retries", *retries != RetriesSpec::default()),
            ("spec.circuitBreaker", *circuit_breaker != CircuitBreakerSpec::default()),
            ("spec.loadBalancing", load_balancing.is_some()),
            ("spec.connection", *connection != ConnectionSpec::default()),
        ];
        for (section, _) in sections.into_iter().filter(|(_, said)| *said) {
            let message = "how calls are made belongs to the service called: say it in a policy whose targetRef is a \
                           Service";
            self.add(section, Reason::Invalid, message.to_owned());
        }
    }

    fn idle_floor(&mut self, mtls: &MtlsSpec) {
        if mtls.floor != Some(true) {
            return;
        }
        if !matches!(self.policy.target, Target::Mesh | Target::Namespace(_)) {
            let message = "only the mesh and a namespace have anybody below them: remove floor here";
            self.add("spec.mtls.floor", Reason::NoEffect, message.to_owned());
        } else if mtls.mode.is_none() && mtls.ports.is_empty() {
            self.add("spec.mtls.floor", Reason::NoEffect, "a floor of what? say mode beside it".to_owned());
        }
    }

    /// Only a service says which ports there are.
    fn unknown_ports(&mut self, index: &Index<'_>, mtls: &MtlsSpec) {
        let Target::Service { service, .. } = &self.policy.target else { return };
        let Some(declared) = index.world.services.get(service) else { return };
        let declared = declared.by_number();
        for (said, _) in &mtls.ports {
            if declared.values().any(|port| port.target == *said) {
                continue;
            }
            let message = match declared.get(said) {
                Some(port) => format!(
                    "{said} is the port callers name; a door stands before the application: say {}",
                    port.target
                ),
                None => format!("nothing behind {service} listens on {said}: correct the port"),
            };
            self.add("spec.mtls.ports", Reason::NoEffect, message);
        }
    }

    fn idle_rules(&mut self, access: &AccessSpec) {
        if access.admits_others && !access.rules.is_empty() {
            let message = "everybody is let in already: say default: Deny, or remove the rules";
            self.add("spec.access.rules", Reason::NoEffect, message.to_owned());
        }
    }

    fn ports_of_the_proxy(&mut self, index: &Index<'_>, mtls: &MtlsSpec) {
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
    fn rules_without_requests<'w>(
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
                    .find(|port| !port.protocol.is_http())
                    .map(|port| format!("port {} of {service}", port.number))
            }
            target => reach.instances(target).find_map(|instance| {
                let doors = instance.ports.iter().filter(|_| instance.interception.keeps_a_door());
                let port = doors.filter(|port| !port.protocol.is_http()).min()?;
                let of = &instance.workload;
                Some(format!("port {} of {}/{}", port.app, of.namespace, of.workload))
            }),
        };
        let Some(bytes) = bytes else { return };
        for (n, _) in access.rules.iter().enumerate().filter(|(_, rule)| !rule.to.is_empty()) {
            let message = format!(
                "{bytes} does not speak HTTP, and there this rule admits nobody: remove to, or target what speaks HTTP"
            );
            self.add(&format!("spec.access.rules[{n}].to"), Reason::NoEffect, message);
        }
    }

    /// What is asked of doors, where there is a way in beside them.
    fn open_doors<'w>(&mut self, index: &Index<'w>, reach: &impl Deref<Target = Reach<'w>>) {
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

    fn below_floor(&mut self, floor: &Policy) {
        for Weaker { field, said, held, port } in weaker(self.policy, floor) {
            let message = format!(
                "{said} is weaker than the floor {held} of {}{port}: the floor holds; say {held} here, or ask its \
                 owner to lower it",
                floor.id
            );
            self.add(field, Reason::BelowFloor, message);
        }
    }

    fn weaker_than(&mut self, sibling: &Policy) {
        for Weaker { field, said, held, port } in weaker(self.policy, sibling) {
            let message = format!(
                "{said} is weaker than {held}, which {} says for the same target{port}: the stricter holds; merge the \
                 two",
                sibling.id
            );
            self.add(field, Reason::Conflicted, message);
        }
    }
}

/// The namespace a target is in or is.
fn namespace(target: &Target) -> Option<&Namespace> {
    match target {
        Target::Mesh => None,
        Target::Namespace(namespace)
        | Target::Workload { namespace, .. }
        | Target::ServiceAccount { namespace, .. } => Some(namespace),
        Target::Service { service, .. } => Some(&service.namespace),
    }
}

/// A word that another one outdoes.
struct Weaker {
    field: &'static str,
    said: MtlsMode,
    held: MtlsMode,
    /// ` on port N`, if only there.
    port: String,
}

/// Where one policy's door is weaker than another's.
fn weaker(policy: &Policy, other: &Policy) -> Vec<Weaker> {
    let (Some(mtls), Some(other)) = (&policy.mtls, &other.mtls) else { return Vec::new() };
    let compare = |field, said: Option<MtlsMode>, held: Option<MtlsMode>, port: Option<u16>| {
        let (said, held) = (said?, held?);
        let port = port.map_or_else(String::new, |port| format!(" on port {port}"));
        (said < held).then_some(Weaker { field, said, held, port })
    };
    let of_ports = mtls.ports.iter();
    let mut found: Vec<Weaker> = of_ports
        .filter_map(|(port, said)| {
            compare("spec.mtls.ports", Some(*said), mtls::mode_at(other, *port), Some(*port))
        })
        .collect();
    match compare("spec.mtls.mode", mtls.mode, other.mode, None) {
        Some(everywhere) => found.push(everywhere),
        None => {
            let not_said_here = |port: &u16| !mtls.ports.iter().any(|(said, _)| said == port);
            let single = other.ports.iter().filter(|(port, _)| not_said_here(port));
            found.extend(
                single.filter_map(|(port, held)| {
                    compare("spec.mtls.mode", mtls.mode, Some(*held), Some(*port))
                }),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::{
            compile,
            worlds::{Edit, instance, mode, name, namespace, policy, service, to_service, world_of},
        },
        id::ClusterDomain,
        policy::{AccessMode, AccessRule, Asked, Millis},
        world::{Interception, Protocol},
    };
    use MtlsMode::{Disabled, Permissive, Strict};

    /// What is told about policies in a mesh with `shop/pay` (80 → 8080).
    fn check(policies: impl IntoIterator<Item = Policy>, expected: &[&str]) {
        let declared = service("shop/pay", &[(80, 8080, Protocol::Http)]).into();
        let policies = policies.into_iter().map(Into::into);
        let world = world_of([declared, instance("shop/pay", "v1", 1).into()].into_iter().chain(policies));
        let told: Vec<String> = compile(&world)
            .problems
            .iter()
            .map(|problem| format!("{:?}: {problem}", problem.reason))
            .collect();
        assert_eq!(told, expected);
    }

    fn timeout(id: &str, target: Target) -> Policy {
        let mut policy = policy(id, target);
        policy.calls.timeouts.request = Some(Millis(1_000));
        policy
    }

    fn door(id: &str, target: Target, mtls: Option<MtlsSpec>) -> Policy {
        Policy { mtls, ..policy(id, target) }
    }

    fn pay() -> Target {
        to_service("shop/pay", None)
    }

    fn shop() -> Target {
        Target::Namespace(namespace("shop"))
    }

    fn floor(of: MtlsMode) -> Option<MtlsSpec> {
        Some(MtlsSpec { mode: Some(of), floor: Some(true), ports: Vec::new() })
    }

    #[test]
    fn a_policy_without_fault_is_told_nothing() {
        check([timeout("shop/a", pay()), door("shop/b", pay(), mode(Strict))], &[]);
    }

    #[test]
    fn a_target_that_is_not_there() {
        let workload = Target::Workload { namespace: namespace("shop"), name: name("gone") };
        let account = Target::ServiceAccount { namespace: namespace("bank"), name: name("pay").into() };
        check(
            [
                timeout("shop/a", to_service("shop/gone", None)),
                timeout("shop/b", to_service("shop/pay", Some(81))),
                door("shop/c", workload, mode(Strict)),
                door("shop/d", account, mode(Strict)),
            ],
            &[
                "TargetNotFound: MeshPolicy shop/a: spec.targetRef.name: there is no service shop/gone: start a \
                 workload of it, or correct the name",
                "TargetNotFound: MeshPolicy shop/b: spec.targetRef.port: shop/pay has no port 81: it has 80",
                "TargetNotFound: MeshPolicy shop/c: spec.targetRef.name: no workload shop/gone runs: start it, or \
                 correct the name",
                "TargetNotFound: MeshPolicy shop/d: spec.targetRef.name: no workload with service account bank/pay \
                 runs: start it, or correct the name",
            ],
        );
    }

    #[test]
    fn the_older_of_two_wins_about_calls() {
        let conflicted = |subject: &str, winner: &str| {
            format!(
                "Conflicted: MeshPolicy shop/{subject}: spec.targetRef: MeshPolicy shop/{winner} is older and already \
                 says how calls to this target are made: merge the two, or delete one"
            )
        };
        check([timeout("shop/a", pay()), timeout("shop/b", pay())], &[&conflicted("b", "a")]);
        let older = Policy { age_rank: -1, ..timeout("shop/b", pay()) };
        check([timeout("shop/a", pay()), older], &[&conflicted("a", "b")]);
        check([timeout("shop/a", pay()), timeout("shop/b", to_service("shop/pay", Some(80)))], &[]);
    }

    #[test]
    fn calls_are_no_matter_of_a_workload() {
        let workload = Target::Workload { namespace: namespace("shop"), name: name("pay") };
        check(
            [timeout("shop/a", workload)],
            &[
                "Invalid: MeshPolicy shop/a: spec.timeouts: how calls are made belongs to the service called: say it in \
               a policy whose targetRef is a Service",
            ],
        );
    }

    #[test]
    fn below_a_floor() {
        check(
            [
                door("airlane-system/floor", Target::Mesh, floor(Strict)),
                door("shop/a", shop(), mode(Strict)),
                door("shop/b", pay(), mode(Permissive)),
            ],
            &[
                "BelowFloor: MeshPolicy shop/b: spec.mtls.mode: Permissive is weaker than the floor Strict of MeshPolicy \
               airlane-system/floor: the floor holds; say Strict here, or ask its owner to lower it",
            ],
        );
        let of_port = MtlsSpec { mode: Some(Permissive), floor: Some(true), ports: vec![(8080, Strict)] };
        check(
            [
                door("shop/a", shop(), Some(of_port)),
                door(
                    "shop/b",
                    pay(),
                    Some(MtlsSpec { ports: vec![(8080, Disabled)], ..MtlsSpec::default() }),
                ),
                door("bank/c", Target::Namespace(namespace("bank")), mode(Disabled)),
            ],
            &[
                "BelowFloor: MeshPolicy shop/b: spec.mtls.ports: Disabled is weaker than the floor Strict of MeshPolicy \
               shop/a on port 8080: the floor holds; say Strict here, or ask its owner to lower it",
            ],
        );
    }

    #[test]
    fn the_weaker_of_two_doors() {
        check(
            [door("shop/a", pay(), mode(Disabled)), door("shop/b", pay(), mode(Strict))],
            &[
                "Conflicted: MeshPolicy shop/a: spec.mtls.mode: Disabled is weaker than Strict, which MeshPolicy shop/b \
               says for the same target: the stricter holds; merge the two",
            ],
        );
    }

    #[test]
    fn words_without_effect() {
        let callers_port = MtlsSpec { ports: vec![(80, Strict), (1, Strict)], ..MtlsSpec::default() };
        let nothing = MtlsSpec { floor: Some(true), ..MtlsSpec::default() };
        check(
            [
                door("shop/a", pay(), floor(Strict)),
                door("shop/b", pay(), Some(callers_port)),
                door("shop/c", shop(), Some(nothing)),
            ],
            &[
                "NoEffect: MeshPolicy shop/a: spec.mtls.floor: only the mesh and a namespace have anybody below them: \
                 remove floor here",
                "NoEffect: MeshPolicy shop/b: spec.mtls.ports: 80 is the port callers name; a door stands before the \
                 application: say 8080",
                "NoEffect: MeshPolicy shop/b: spec.mtls.ports: nothing behind shop/pay listens on 1: correct the port",
                "NoEffect: MeshPolicy shop/c: spec.mtls.floor: a floor of what? say mode beside it",
            ],
        );
    }

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
                "MeshPolicy {subject}: spec.access.rules[0].to: {port} of shop/redis does not speak HTTP, and there this \
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
}
