//! All inputs at an instant: what was observed, nothing decided.

use crate::{
    id::{
        ClusterDomain, InstanceId, Namespace, ObjectId, Revision, ServiceAccount, ServiceId, TrustDomain,
        WorkloadRevision,
    },
    policy::Policy,
    rollout::Canary,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

pub use crate::{interception::Interception, protocol::Protocol};

/// All inputs of [`crate::compile::compile`]. Values are shared, so that a new world with one change is cheap and
/// what did not change is recognised by its pointer.
#[derive(Clone, Debug)]
pub struct World {
    /// The mesh's trust domain (`airlane.local`).
    pub trust_domain: TrustDomain,
    /// The namespace whose policies without target are about the whole mesh (`airlane-system`).
    pub system_namespace: Namespace,
    /// The DNS suffix of the cluster's services (`cluster.local`); `None` outside a cluster.
    pub cluster_domain: Option<ClusterDomain>,
    /// Services, declared or implied by a registration.
    pub services: BTreeMap<ServiceId, Arc<Service>>,
    /// Running copies of workloads.
    pub instances: BTreeMap<InstanceId, Arc<Instance>>,
    /// Policies whose syntax was understood.
    pub policies: BTreeMap<ObjectId, Arc<Policy>>,
    /// Canaries whose syntax was understood, with the progress recorded in their status.
    pub canaries: BTreeMap<ObjectId, Arc<Canary>>,
}

/// A service's ports.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Service {
    /// The service.
    pub id: ServiceId,
    /// Its ports, by number.
    pub ports: Vec<Port>,
    /// Its virtual addresses (ClusterIPs); none if callers know it by name alone.
    pub addresses: BTreeSet<IpAddr>,
}

impl Service {
    /// Its ports by number. Of a number declared twice the smallest declaration counts, so that the order in which
    /// they were written does not matter.
    pub fn by_number(&self) -> BTreeMap<u16, &Port> {
        let mut ports: BTreeMap<u16, &Port> = BTreeMap::new();
        for port in &self.ports {
            let counts = ports.entry(port.number).or_insert(port);
            *counts = port.min(counts);
        }
        ports
    }
}

/// One port of a service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Port {
    /// What callers name.
    pub number: u16,
    /// What the application listens on.
    pub target: u16,
    /// What the application speaks there.
    pub protocol: Protocol,
}

/// One running copy of a workload with its proxy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Instance {
    /// Its name, the proxy's node id.
    pub id: InstanceId,
    /// The workload and revision it is a copy of.
    pub workload: WorkloadRevision,
    /// Who it is on the wire.
    pub service_account: ServiceAccount,
    /// The services whose endpoints it is.
    pub services: BTreeSet<ServiceId>,
    /// Where its proxy is reached.
    pub address: IpAddr,
    /// Whether it has an IPv6 address, this one or another: without one there may be no IPv6 where it runs.
    pub ipv6: bool,
    /// The application's ports and the proxy's before them.
    pub ports: Vec<InstancePort>,
    /// The proxy's port for outbound calls; 0 if it makes none.
    pub outbound_port: u16,
    /// How the application's traffic reaches the proxy.
    pub interception: Interception,
    /// Whether it may be called.
    pub health: Health,
    /// The longest that it may take to stop once it was asked to; zero if nobody says.
    pub stops_within: Duration,
}

impl Instance {
    /// The port of the instance behind a port of a service: the one that names both, else the one the service leads to,
    /// else the one that was registered for that port. `None`: it is no endpoint of that port. A mesh port of 0 was
    /// never bound.
    pub fn behind(&self, service: &ServiceId, port: &Port) -> Option<&InstancePort> {
        let bound = || {
            let of_it = |bound: &&InstancePort| bound.of.as_ref().is_none_or(|of| of == service);
            self.ports.iter().filter(|bound| bound.mesh != 0).filter(of_it)
        };
        let stands_behind = |bound: &&InstancePort| bound.service == port.number;
        let named = bound().filter(|bound| bound.of.is_some()).filter(stands_behind).min();
        let led_to = || bound().filter(|bound| bound.app == port.target).min();
        named.or_else(led_to).or_else(|| bound().filter(stands_behind).min())
    }

    /// What its proxy can rely on before a port of the application: several ports of services may lead there, and
    /// declare different protocols.
    pub fn spoken(&self, app: u16) -> Protocol {
        let declared = self.ports.iter().filter(|port| port.app == app).map(|port| port.protocol);
        declared.reduce(Protocol::and).unwrap_or(Protocol::Tcp)
    }

    /// The instance's revision.
    pub fn revision(&self) -> &Revision {
        &self.workload.revision
    }
}

/// A port of the application and the proxy's port before it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct InstancePort {
    /// The service's port behind which it stands. Copies on one host listen on ports of their own and are the same
    /// to their callers.
    pub service: u16,
    /// The application's port on loopback.
    pub app: u16,
    /// The proxy's port that other proxies call.
    pub mesh: u16,
    /// What the application speaks.
    pub protocol: Protocol,
    /// The service whose port `service` is: several may lead to one instance, by ports of the same number. `None`: any.
    #[serde(default)]
    pub of: Option<ServiceId>,
    /// Whether callers reach the application there itself, past the proxy that stands before its other ports.
    #[serde(default)]
    pub past_proxy: bool,
}

/// Whether an instance may be called.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Health {
    /// Its application has not answered yet, or its own proxy has not acknowledged its listeners: not published.
    Starting,
    /// It may be called.
    Healthy,
    /// Its application stopped answering: published as unhealthy.
    Unhealthy,
    /// It is leaving: not published.
    Draining,
}
