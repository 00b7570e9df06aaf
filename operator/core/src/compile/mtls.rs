//! Who may come through a door.
//!
//! The door belongs to the workload. A mode is found for each port of the application, and `ports` in a policy
//! names what the application listens on; `targetRef.port` names a port of the service and means what stands
//! behind it. The rules:
//!
//! 1. Inside one policy a port's own mode beats the policy's mode.
//! 2. Of several policies with the same target the strictest counts.
//! 3. Mesh → namespace: the more specific one that says anything.
//! 4. Workload and service account: the stricter of the two, instead of what rule 3 found.
//! 5. A service: its port's policies, else its own, else what rules 3 and 4 found. A workload's door is the strictest of
//!    what its services, its own policies and its account's say, so that no second service is a way round the
//!    first.
//! 6. Floors of the mesh and the namespace: whatever was found, never weaker. A floor is per port too, by rule 1.
//! 7. Nobody says anything: [`MtlsMode::Permissive`].

use super::defaults;
use crate::{
    id::{Identity, Name, ObjectId, TrustDomain, WorkloadRevision},
    mesh::{Door, Inbound},
    policy::{MtlsMode, MtlsSpec, Policy, Target},
    world::{Instance, Service},
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
    /// Every service that selects the workload, with the policies of it and its ports.
    pub(super) services: Vec<(Arc<Service>, Vec<Arc<Policy>>)>,
}

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
        let services =
            self.services.iter().map(|(service, policies)| of_service(service, policies, app_port, base));
        let found = own.into_iter().chain(services).reduce(stricter).unwrap_or(base);
        match self.floor(app_port) {
            Some(floor) if floor.mode > found.mode => floor,
            _ => found,
        }
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

/// The stricter of two words. Of equal ones the first object in order gets the credit, and any object before the
/// default, so that the answer does not depend on who was asked first.
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

fn of_service<'a>(
    service: &Service,
    policies: &'a [Arc<Policy>],
    app_port: u16,
    base: Ruling<'a>,
) -> Ruling<'a> {
    let about = |wanted: Option<u16>| {
        policies
            .iter()
            .filter(move |policy| matches!(&policy.target, Target::Service { port, .. } if *port == wanted))
    };
    let whole = strictest(about(None), app_port).unwrap_or(base);
    let ports = service.by_number();
    let ports = ports.values().filter(|port| port.target == app_port);
    ports
        .map(|port| strictest(about(Some(port.number)), app_port).unwrap_or(whole))
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
/// registrations of one version that differ), the first account by name and the first instance with a port decide,
/// so that the answer at least does not depend on who came first.
pub(super) fn door(inputs: &Inputs) -> Inbound {
    let Inputs { trust_domain, workload, instances, words } = inputs;
    let account: Option<&Name> = instances.iter().map(|instance| &instance.service_account).min();
    let mut ports = BTreeMap::new();
    let mut shaped_by = BTreeSet::new();
    for port in instances.iter().flat_map(|instance| &instance.ports) {
        ports.entry(port.app).or_insert_with(|| {
            let ruling = words.ruling(port.app);
            shaped_by.extend(ruling.by.cloned());
            Door { mtls: ruling.mode, protocol: port.protocol }
        });
    }
    Inbound {
        workload: workload.clone(),
        identity: Identity {
            trust_domain: trust_domain.clone(),
            namespace: workload.namespace.clone(),
            service_account: account.unwrap_or(&workload.workload).clone(),
        },
        ports,
        shaped_by,
    }
}
