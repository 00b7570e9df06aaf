//! The copies whose doors a policy is about, and which of them have none that could keep it.

use super::index::Index;
use crate::{
    id::{Name, Namespace, ServiceAccount, ServiceId},
    policy::Target,
    world::{Instance, InstancePort, Interception},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

/// The instances that each target of a policy is about.
pub(super) struct Reach<'w> {
    by_namespace: BTreeMap<&'w Namespace, Vec<&'w Instance>>,
    by_service: HashMap<&'w ServiceId, Vec<&'w Instance>>,
    by_workload: HashMap<(&'w Namespace, &'w Name), Vec<&'w Instance>>,
    by_account: HashMap<(&'w Namespace, &'w ServiceAccount), Vec<&'w Instance>>,
    in_cluster: bool,
}

impl<'w> Reach<'w> {
    pub(super) fn of(index: &Index<'w>) -> Self {
        let mut reach = Reach {
            by_namespace: BTreeMap::new(),
            by_service: HashMap::new(),
            by_workload: HashMap::new(),
            by_account: HashMap::new(),
            in_cluster: index.world.cluster_domain.is_some(),
        };
        for instance in index.world.instances.values().map(Arc::as_ref) {
            let namespace = &instance.workload.namespace;
            reach.by_namespace.entry(namespace).or_default().push(instance);
            reach.by_workload.entry((namespace, &instance.workload.workload)).or_default().push(instance);
            reach.by_account.entry((namespace, &instance.service_account)).or_default().push(instance);
            for service in &instance.services {
                reach.by_service.entry(service).or_default().push(instance);
            }
        }
        reach
    }

    /// The instances that a policy with this target is about.
    pub(super) fn instances<'a>(&'a self, target: &'a Target) -> Box<dyn Iterator<Item = &'w Instance> + 'a> {
        let found = match target {
            // A namespace without any proxy is no part of the mesh.
            Target::Mesh => {
                let meshed = self
                    .by_namespace
                    .values()
                    .filter(|all| all.iter().any(|one| one.interception != Interception::None));
                return Box::new(meshed.flatten().copied());
            }
            Target::Namespace(namespace) => self.by_namespace.get(namespace),
            Target::Service { service, .. } => self.by_service.get(service),
            Target::Workload { namespace, name } => self.by_workload.get(&(namespace, name)),
            Target::ServiceAccount { namespace, name } => self.by_account.get(&(namespace, name)),
        };
        Box::new(found.into_iter().flatten().copied())
    }

    /// The workloads that a policy with this target is about and that can be entered past any door, with the way in.
    pub(super) fn open(&self, index: &Index<'w>, target: &Target) -> BTreeSet<(String, Way)> {
        let instances = self.instances(target);
        let open = instances.filter_map(|instance| {
            let way = self.way_in(instance, ports(index, instance, target))?;
            Some((format!("{}/{}", instance.workload.namespace, instance.workload.workload), way))
        });
        open.collect()
    }

    fn way_in<'a>(&self, instance: &Instance, ports: impl Iterator<Item = &'a InstancePort>) -> Option<Way> {
        match instance.interception {
            Interception::None => Some(Way::NoProxy),
            Interception::Outbound => Some(Way::OnlyCalls),
            // On one host the application listens on loopback alone.
            Interception::Environment => self.in_cluster.then_some(Way::OwnPort),
            Interception::Transparent => {
                ports.filter(|port| port.past_proxy).map(|port| Way::Past(port.app)).min()
            }
        }
    }
}

/// The ports of an instance that a policy with this target is about.
fn ports<'w>(
    index: &Index<'w>,
    instance: &'w Instance,
    target: &Target,
) -> impl Iterator<Item = &'w InstancePort> {
    let meant: Option<BTreeSet<u16>> = match target {
        Target::Service { service, port: Some(number) } => {
            let declared = index.world.services.get(service).map(|service| service.by_number());
            let port = declared.as_ref().and_then(|ports| ports.get(number).copied());
            Some(
                port.and_then(|port| instance.behind(service, port))
                    .map(|port| port.app)
                    .into_iter()
                    .collect(),
            )
        }
        _ => None,
    };
    instance.ports.iter().filter(move |port| meant.as_ref().is_none_or(|meant| meant.contains(&port.app)))
}

/// How a copy is entered past any door.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Way {
    NoProxy,
    OnlyCalls,
    OwnPort,
    Past(u16),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::NoProxy => f.write_str("has no proxy"),
            Way::OnlyCalls => f.write_str("has a proxy for its calls alone"),
            Way::OwnPort => f.write_str("is told of its proxy, and its own ports stay open beside it"),
            Way::Past(port) => write!(f, "excludes port {port} from its proxy"),
        }
    }
}
