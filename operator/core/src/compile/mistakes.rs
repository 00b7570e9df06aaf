//! What users wrote and we cannot do, as far as it shows without merging.

mod doors;
mod rivals;

use super::{index::Index, reach::Reach};
use crate::{
    id::Namespace,
    policy::{
        AccessSpec, CallsSpec, CircuitBreakerSpec, ConnectionSpec, MtlsSpec, Policy, RetriesSpec, Target,
        TimeoutsSpec,
    },
    problem::{Problem, Reason},
};
use std::{
    cell::LazyCell,
    collections::{BTreeSet, HashSet},
    ops::Deref,
};

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
    doors::reserved_ports(index, problems);
    rivals::find(index, problems);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::{
            compile,
            worlds::{instance, mode, name, namespace, policy, service, to_service, world_of},
        },
        policy::{
            Millis,
            MtlsMode::{self, Strict},
        },
        world::Protocol,
    };

    /// What is told about policies in a mesh with `shop/pay` (80 → 8080).
    pub(super) fn check(policies: impl IntoIterator<Item = Policy>, expected: &[&str]) {
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

    pub(super) fn timeout(id: &str, target: Target) -> Policy {
        let mut policy = policy(id, target);
        policy.calls.timeouts.request = Some(Millis(1_000));
        policy
    }

    pub(super) fn door(id: &str, target: Target, mtls: Option<MtlsSpec>) -> Policy {
        Policy { mtls, ..policy(id, target) }
    }

    pub(super) fn pay() -> Target {
        to_service("shop/pay", None)
    }

    pub(super) fn shop() -> Target {
        Target::Namespace(namespace("shop"))
    }

    pub(super) fn floor(of: MtlsMode) -> Option<MtlsSpec> {
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
}
