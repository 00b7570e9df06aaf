//! What ties a workload to the mesh: policies that only its sidecar keeps, or that know it only by its sidecar; and what
//! its pods stay for until it is over. Pure.

use airlane_core::{
    id::{Name, Namespace, ObjectId, WorkloadRevision},
    mesh::{Inbound, Mesh},
    policy::MtlsMode,
    rollout::Phase,
    world::World,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What a policy says that holds only with a sidecar.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Why {
    /// It wants mTLS of all callers.
    Strict,
    /// It says who may call.
    Access,
    /// It lets the workload call, by an identity that only a sidecar can prove.
    Caller,
}

/// A policy, and what it says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Tie {
    /// The policy.
    pub(crate) by: ObjectId,
    /// What it says.
    pub(crate) why: Why,
}

impl fmt::Display for Tie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.by,
            match self.why {
                Why::Strict => "wants mTLS of every caller",
                Why::Access => "says who may call it",
                Why::Caller => "lets it call by its identity",
            }
        )
    }
}

/// The ties of each workload of a mesh that has any.
pub(crate) type Ties = BTreeMap<(Namespace, Name), BTreeSet<Tie>>;

/// What ties the workloads of a mesh to it.
pub(crate) fn ties(world: &World, mesh: &Mesh) -> Ties {
    let mut ties = Ties::new();
    for (WorkloadRevision { namespace, workload, .. }, door) in &mesh.workloads {
        let found: BTreeSet<Tie> = at_the_door(world, door).chain(as_caller(world, door)).collect();
        if !found.is_empty() {
            ties.entry((namespace.clone(), workload.clone())).or_default().extend(found);
        }
    }
    ties
}

fn at_the_door<'a>(world: &'a World, door: &'a Inbound) -> impl Iterator<Item = Tie> + 'a {
    let modes = door.ports.values().map(|port| port.mtls);
    let others = door
        .undeclared
        .iter()
        .flat_map(|others| std::iter::once(others.mtls).chain(others.exceptions.values().copied()));
    let strict = modes.chain(others).any(|mode| mode == MtlsMode::Strict);
    door.shaped_by.iter().filter_map(|id| world.policies.get(id)).flat_map(move |policy| {
        let wants = policy.mtls.as_ref().is_some_and(|mtls| {
            let mut modes = mtls.mode.into_iter().chain(mtls.ports.iter().map(|(_, mode)| *mode));
            modes.any(|mode| mode == MtlsMode::Strict)
        });
        let strict = (strict && wants).then_some(Why::Strict);
        let access = policy.access.is_some().then_some(Why::Access);
        strict.into_iter().chain(access).map(|why| Tie { by: policy.id.clone(), why })
    })
}

fn as_caller<'a>(world: &'a World, door: &'a Inbound) -> impl Iterator<Item = Tie> + 'a {
    let me = &door.identity;
    let names_me = move |policy: &&std::sync::Arc<airlane_core::policy::Policy>| {
        let rules = policy.access.iter().flat_map(|access| &access.rules);
        rules.flat_map(|rule| &rule.from).any(|caller| {
            caller.namespace == me.namespace
                && caller.service_account.as_ref().is_none_or(|account| *account == me.service_account)
        })
    };
    world.policies.values().filter(names_me).map(|policy| Tie { by: policy.id.clone(), why: Why::Caller })
}

/// The Canaries that are under way, by the workloads whose pods they judge.
pub(crate) type Judged = BTreeMap<(Namespace, Name), ObjectId>;

/// Whose pods are judged now.
pub(crate) fn judged(world: &World) -> Judged {
    let under_way = world.canaries.values().filter(|canary| {
        let phase = canary.progress.as_ref().map_or(Phase::Idle, |progress| progress.phase);
        !matches!(phase, Phase::Idle | Phase::Succeeded | Phase::RolledBack)
    });
    let mut judged = Judged::new();
    for canary in under_way {
        let behind = world.instances.values().filter(|it| it.services.contains(&canary.plan.service));
        for WorkloadRevision { namespace, workload, .. } in behind.map(|instance| &instance.workload) {
            judged.entry((namespace.clone(), workload.clone())).or_insert_with(|| canary.id.clone());
        }
    }
    judged
}

/// The ties of a namespace's workloads that have sidecars, as people are told them: each policy once, with what it says
/// and about how many workloads.
pub(crate) fn of_namespace(world: &World, mesh: &Mesh, namespace: &Namespace) -> Vec<String> {
    let with_sidecar: BTreeSet<&Name> = mesh
        .proxies
        .values()
        .map(|proxy| &proxy.workload)
        .filter(|workload| workload.namespace == *namespace)
        .map(|workload| &workload.workload)
        .collect();
    let mut workloads: BTreeMap<Tie, BTreeSet<Name>> = BTreeMap::new();
    for ((there, workload), ties) in ties(world, mesh) {
        if there == *namespace && with_sidecar.contains(&workload) {
            for tie in ties {
                workloads.entry(tie).or_default().insert(workload.clone());
            }
        }
    }
    workloads
        .into_iter()
        .map(|(tie, workloads)| {
            let workloads: Vec<&str> = workloads.iter().map(Name::as_str).collect();
            format!("{tie} ({})", workloads.join(", "))
        })
        .collect()
}

/// What to do about ties.
pub(crate) const MEND: &str = "change these policies first: mtls.mode: Permissive, and no access section about it or rule that names it";

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::control::Picture;
    use airlane_api::{Value as Meaning, read_object};
    use airlane_core::{
        compile::compile,
        id::{InstanceId, Revision, ServiceId, TrustDomain},
        policy::Policy,
        rollout::Progress,
        world::{Health, Instance, InstancePort, Interception, Port, Protocol, Service},
    };
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn namespace(text: &str) -> Namespace {
        Namespace::parse(text).expect("a name")
    }

    fn policy(name: &str, in_namespace: &str, spec: &Value) -> Arc<Policy> {
        let object = json!({
            "apiVersion": "airlane.dev/v1alpha1", "kind": "MeshPolicy",
            "metadata": { "name": name, "namespace": in_namespace }, "spec": spec,
        });
        match read_object(&object, &namespace("airlane-system")).value {
            Some(Meaning::Policy(policy)) => Arc::new(policy),
            other => panic!("{other:?}"),
        }
    }

    /// Everybody in `shop` must come by mTLS.
    pub(crate) fn strict() -> Arc<Policy> {
        policy("strict", "shop", &json!({ "mtls": { "mode": "Strict" } }))
    }

    /// Everybody may come to `shop`.
    pub(crate) fn permissive() -> Arc<Policy> {
        policy("strict", "shop", &json!({ "mtls": { "mode": "Permissive" } }))
    }

    fn world(policies: &[Arc<Policy>]) -> World {
        let instances = ["shop", "bank"].map(|place| {
            let name = Name::parse("pay").expect("a name");
            let service = ServiceId { namespace: namespace(place), name: name.clone() };
            let id = InstanceId::of_copy(&format!("pay-{place}"), "abcd").expect("a name");
            let instance = Instance {
                id: id.clone(),
                workload: WorkloadRevision {
                    namespace: namespace(place),
                    workload: name.clone(),
                    revision: Revision::parse("v1").expect("a name"),
                },
                service_account: name.into(),
                services: BTreeSet::from([service.clone()]),
                address: [10, 0, 0, 1].into(),
                ipv6: false,
                ports: vec![InstancePort {
                    service: 80,
                    app: 8_080,
                    mesh: 8_080,
                    protocol: Protocol::Http,
                    of: None,
                    past_proxy: false,
                }],
                outbound_port: 15_001,
                interception: Interception::Transparent,
                stops_within: std::time::Duration::ZERO,
                health: Health::Healthy,
            };
            let ports = vec![Port { number: 80, target: 8_080, protocol: Protocol::Http }];
            let service = Service { id: service, ports, addresses: BTreeSet::new() };
            ((id, Arc::new(instance)), (service.id.clone(), Arc::new(service)))
        });
        let (instances, services): (BTreeMap<_, _>, BTreeMap<_, _>) = instances.into_iter().unzip();
        World {
            trust_domain: TrustDomain::parse("airlane.local").expect("a name"),
            system_namespace: namespace("airlane-system"),
            cluster_domain: None,
            services,
            instances,
            policies: policies.iter().map(|policy| (policy.id.clone(), Arc::clone(policy))).collect(),
            canaries: BTreeMap::new(),
        }
    }

    /// `pay` in `shop` and in `bank`, and this policy.
    pub(crate) fn picture_of(policy: Arc<Policy>) -> Picture {
        let world = world(&[policy]);
        Picture {
            compiled: Arc::new(compile(&world)),
            world: Arc::new(world),
            declared: Arc::default(),
            epoch: 1,
            milestones: Arc::default(),
            catalog: Arc::default(),
        }
    }

    /// What ties `pay` in each namespace.
    fn check(policies: &[Arc<Policy>], shop: &[&str], bank: &[&str]) {
        let world = world(policies);
        let mesh = compile(&world).mesh;
        let ties = ties(&world, &mesh);
        for (place, expected) in [("shop", shop), ("bank", bank)] {
            let found = ties.get(&(namespace(place), Name::parse("pay").expect("a name")));
            let found: Vec<String> = found.into_iter().flatten().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{place}");
        }
    }

    #[test]
    fn a_policy_ties_whom_it_covers_and_whom_it_names() {
        check(&[], &[], &[]);
        check(&[permissive()], &[], &[]);
        check(&[strict()], &["MeshPolicy shop/strict wants mTLS of every caller"], &[]);
        let floor = json!({ "mtls": { "mode": "Strict", "floor": true } });
        let everybody = "MeshPolicy airlane-system/floor wants mTLS of every caller";
        check(&[policy("floor", "airlane-system", &floor), permissive()], &[everybody], &[everybody]);
        let access = json!({
            "targetRef": { "kind": "Service", "name": "pay" },
            "access": { "rules": [{ "name": "bank", "from": [{ "namespace": "bank" }] }] },
        });
        check(
            &[policy("doors", "shop", &access)],
            &["MeshPolicy shop/doors says who may call it"],
            &["MeshPolicy shop/doors lets it call by its identity"],
        );
    }

    #[test]
    fn a_canary_under_way_judges_the_workloads_of_its_service() {
        let phases = [
            (None, false),
            (Some(Phase::Idle), false),
            (Some(Phase::Progressing), true),
            (Some(Phase::Holding), true),
            (Some(Phase::Paused), true),
            (Some(Phase::Promoting), true),
            (Some(Phase::RollingBack), true),
            (Some(Phase::Succeeded), false),
            (Some(Phase::RolledBack), false),
        ];
        let object = json!({
            "apiVersion": "airlane.dev/v1alpha1", "kind": "Canary",
            "metadata": { "name": "pay", "namespace": "shop" },
            "spec": { "service": "pay", "stable": { "version": "v1" }, "canary": { "version": "v2" } },
        });
        for (phase, is_judged) in phases {
            let mut canary = match read_object(&object, &namespace("airlane-system")).value {
                Some(Meaning::Canary(canary)) => canary,
                other => panic!("{other:?}"),
            };
            let progress = phase
                .map(|phase| Progress { phase, ..Progress::new(&canary.plan, jiff::Timestamp::UNIX_EPOCH) });
            canary.progress = progress;
            let mut world = world(&[]);
            world.canaries.insert(canary.id.clone(), Arc::new(canary));
            let found: Vec<String> =
                judged(&world).iter().map(|((place, name), by)| format!("{place}/{name}: {by}")).collect();
            let expected: &[&str] = if is_judged { &["shop/pay: Canary shop/pay"] } else { &[] };
            assert_eq!(found, expected, "{phase:?}");
        }
    }

    #[test]
    fn a_namespace_is_told_each_policy_once() {
        let picture = picture_of(strict());
        let told = of_namespace(&picture.world, &picture.compiled.mesh, &namespace("shop"));
        assert_eq!(told, ["MeshPolicy shop/strict wants mTLS of every caller (pay)"]);
    }
}
