//! Where views come from: one picture, so that the rows of a table agree.

use super::view::{
    CanaryView, EffectiveView, EndpointView, ErrorView, PolicyView, PortView, Programmed, ProxyView,
    ServiceView, target,
};
use crate::{
    control::Picture,
    fleet::Census,
    members::Member,
    signals::intake::{Intake, Totals},
    standing::{self, Standings},
    xds::{ProxyState, Refusals},
};
use airlane_core::{
    compile::effective,
    id::{InstanceId, ObjectId, ServiceId},
    interception::Interception,
    mesh::{Destination, FULL_SHARE},
    policy::MtlsMode,
    problem::Problem,
    rollout::{Asked, Canary, Phase, Progress, Refusal, carry_out},
    world::Health,
};
use jiff::Timestamp;
use std::{collections::BTreeMap, sync::Arc};

/// Everything a view is made of.
pub(crate) struct Sources<'a> {
    /// What was observed and decided.
    pub(crate) picture: &'a Picture,
    /// What proxies reported.
    pub(crate) intake: &'a Intake,
    /// Who is connected.
    pub(crate) proxies: &'a [ProxyState],
    /// How far everybody has come.
    pub(crate) census: &'a Census,
    /// What sidecars said of themselves.
    pub(crate) members: &'a [Member],
    /// What is found of objects.
    pub(crate) standings: &'a Standings<'a>,
    /// What proxies refuse.
    pub(crate) refusals: &'a Refusals,
}

impl Sources<'_> {
    /// Every service.
    pub(crate) fn services(&self) -> Vec<ServiceView> {
        self.picture.world.services.keys().map(|id| self.service(id)).collect()
    }

    fn service(&self, id: &ServiceId) -> ServiceView {
        let world = &self.picture.world;
        let instances: Vec<_> =
            world.instances.values().filter(|instance| instance.services.contains(id)).collect();
        let mut revisions = BTreeMap::new();
        for instance in &instances {
            *revisions.entry(instance.revision().to_string()).or_default() +=
                usize::from(instance.health == Health::Healthy);
        }
        let destinations: Vec<&Arc<Destination>> = self
            .picture
            .compiled
            .mesh
            .destinations
            .values()
            .filter(|destination| destination.port.service == *id)
            .collect();
        let mut totals = Totals::default();
        let mut seconds = 0;
        let mut callers = std::collections::BTreeSet::new();
        for cluster in destinations.iter().flat_map(|destination| &destination.clusters) {
            let (sum, covered) = self.intake.recent(&cluster.name);
            totals.add(&sum);
            seconds = seconds.max(covered);
            callers.extend(
                self.intake.callers_of(&cluster.name).into_keys().map(|caller| self.service_of(&caller)),
            );
        }
        let left_out = instances.iter().filter(|instance| !self.left_out_by(instance).is_empty()).count();
        let per_second = |count: u64| if seconds == 0 { 0.0 } else { count as f64 / seconds as f64 };
        ServiceView {
            namespace: id.namespace.to_string(),
            name: id.name.to_string(),
            ports: destinations
                .iter()
                .map(|destination| PortView {
                    number: destination.port.port,
                    protocol: format!("{:?}", destination.protocol).to_lowercase(),
                })
                .collect(),
            ready: revisions.values().sum(),
            revisions,
            instances: instances.len(),
            mtls: self.mtls_of(id),
            requests_per_second: per_second(totals.first_attempts()),
            error_percent: if totals.completed == 0 {
                0.0
            } else {
                100.0 * totals.completed_5xx as f64 / totals.completed as f64
            },
            retries_per_second: per_second(totals.retries),
            breaker: if left_out == 0 { "CLOSED".to_owned() } else { format!("{left_out} OPEN") },
            callers: callers.into_iter().collect(),
        }
    }

    /// The weakest door of the service's instances. One that is not called through a proxy has none.
    fn mtls_of(&self, id: &ServiceId) -> String {
        let mesh = &self.picture.compiled.mesh;
        let instances = self.picture.world.instances.values();
        let weakest = instances
            .filter(|instance| instance.services.contains(id))
            .flat_map(|instance| match (instance.interception, mesh.workloads.get(&instance.workload)) {
                (Interception::None | Interception::Outbound, _) => vec![MtlsMode::Disabled],
                (_, Some(inbound)) => inbound.ports.values().map(|door| door.mtls).collect(),
                (_, None) => Vec::new(),
            })
            .min();
        match weakest {
            Some(MtlsMode::Strict) => "ON",
            Some(MtlsMode::Permissive) => "PERMISSIVE",
            Some(MtlsMode::Disabled) => "OFF",
            None => "-",
        }
        .to_owned()
    }

    fn service_of(&self, instance: &InstanceId) -> String {
        let known = self.picture.world.instances.get(instance);
        known.map_or_else(
            || instance.to_string(),
            |instance| format!("{}/{}", instance.workload.namespace, instance.workload.workload),
        )
    }

    fn left_out_by(&self, instance: &airlane_core::world::Instance) -> Vec<String> {
        let addresses = addresses_of(instance);
        let leaves_it_out = |member: &&Member| {
            // An Envoy that starts anew has forgotten what the last one left out, and tells nobody.
            let ejecting = |cluster: &str| self.intake.is_ejecting(&member.instance.id, cluster);
            addresses.iter().any(|address| member.said.ejected_from(address).into_iter().any(ejecting))
        };
        let holders = self.members.iter().filter(leaves_it_out);
        holders.map(|member| member.instance.id.to_string()).collect()
    }

    /// Every copy of every service.
    pub(crate) fn endpoints(&self) -> Vec<EndpointView> {
        let mut rows = Vec::new();
        for instance in self.picture.world.instances.values() {
            let left_out_by = self.left_out_by(instance);
            let member = self.members.iter().find(|member| member.instance.id == instance.id);
            for service in &instance.services {
                rows.push(EndpointView {
                    namespace: service.namespace.to_string(),
                    service: service.name.to_string(),
                    revision: instance.revision().to_string(),
                    instance: instance.id.to_string(),
                    addresses: addresses_of(instance),
                    health: format!("{:?}", instance.health),
                    health_reason: member.map_or_else(String::new, |member| member.said.reason.clone()),
                    app_reachable: member.is_some_and(|member| member.said.app_reachable),
                    breaker: if left_out_by.is_empty() { "CLOSED" } else { "OPEN" }.to_owned(),
                    left_out_by: left_out_by.clone(),
                    reason: self.last_ejection(instance),
                });
            }
        }
        rows.sort_by(|a, b| {
            (&a.namespace, &a.service, &a.instance).cmp(&(&b.namespace, &b.service, &b.instance))
        });
        rows
    }

    /// Why an endpoint was left out last, as the callers' proxies logged it.
    fn last_ejection(&self, instance: &airlane_core::world::Instance) -> String {
        let addresses = addresses_of(instance);
        self.members
            .iter()
            .flat_map(|member| &member.said.outliers)
            .filter(|event| event.ejected && addresses.contains(&event.upstream))
            .max_by_key(|event| event.at)
            .map_or_else(String::new, |event| event.reason.clone())
    }

    /// Every proxy.
    pub(crate) fn proxies(&self) -> Vec<ProxyView> {
        let connected: BTreeMap<&InstanceId, &ProxyState> =
            self.proxies.iter().map(|proxy| (&proxy.instance, proxy)).collect();
        let mesh = &self.picture.compiled.mesh;
        mesh.proxies
            .values()
            .map(|proxy| {
                let state = connected.get(&proxy.id);
                let acknowledged_epoch = state.and_then(|state| state.acked_epoch).unwrap_or(0);
                ProxyView {
                    instance: proxy.id.to_string(),
                    namespace: proxy.identity.namespace.to_string(),
                    identity: proxy.identity.to_string(),
                    connected: state.is_some(),
                    connected_at: state.map(|state| state.connected_at),
                    acknowledged_epoch,
                    published_epoch: self.picture.epoch,
                    current: acknowledged_epoch >= self.picture.epoch,
                    rejected: state.map_or(0, |state| state.rejections),
                    heard_at: self.intake.last_heard_at(&proxy.id),
                    rejections: self
                        .refusals
                        .values()
                        .filter(|refusal| refusal.proxies.contains(&proxy.id))
                        .map(|refusal| {
                            format!(
                                "{:?} {}: {}",
                                refusal.rejection.key.kind,
                                refusal.rejection.key.name,
                                refusal.rejection.detail
                            )
                        })
                        .collect(),
                }
            })
            .collect()
    }

    fn problems_of(&self, id: &ObjectId) -> Vec<Problem> {
        self.standings.problems_of(id)
    }

    /// What proxies refuse, said on the objects that shaped it.
    pub(crate) fn rejected(&self) -> impl Iterator<Item = Problem> {
        standing::rejected(self.refusals)
    }

    /// Every policy.
    pub(crate) fn policies(&self) -> Vec<PolicyView> {
        self.picture
            .world
            .policies
            .values()
            .map(|policy| {
                let accepted = self.picture.declared.objects.get(&policy.id);
                let proxies = self.standings.proxies(&policy.id, self.census);
                PolicyView {
                    namespace: policy.id.namespace.to_string(),
                    name: policy.id.name.to_string(),
                    target: target(&policy.target),
                    file: accepted
                        .and_then(|accepted| accepted.file.as_ref())
                        .map_or_else(String::new, |file| file.display().to_string()),
                    generation: policy.generation,
                    accepted: true,
                    programmed: Programmed {
                        acknowledged: proxies.acknowledged as usize,
                        targeted: proxies.targeted as usize,
                    },
                    problems: self.problems_of(&policy.id),
                    outdated: accepted.is_some_and(|accepted| accepted.outdated),
                }
            })
            .collect()
    }

    /// Every value in force for a service; `None` if there is no such service.
    pub(crate) fn effective(&self, id: &ServiceId) -> Option<Vec<EffectiveView>> {
        let ports = effective(&self.picture.world, id)?.ports;
        let mut rows = Vec::new();
        for (number, values) in &ports {
            for (index, row) in values.iter().enumerate() {
                let same = ports.values().all(|others| others.get(index) == Some(row));
                if same && ports.keys().next() != Some(number) {
                    continue;
                }
                rows.push(EffectiveView {
                    port: (!same).then_some(*number),
                    field: row.field.clone(),
                    value: row.value.clone(),
                    origin: row.origin.to_string(),
                });
            }
        }
        Some(rows)
    }

    /// Every rollout.
    pub(crate) fn canaries(&self) -> Vec<CanaryView> {
        self.picture
            .world
            .canaries
            .values()
            .map(|canary| {
                let problems = self.problems_of(&canary.id);
                let aside = problems.iter().find(|problem| problem.reason.stands_aside());
                let progress = canary.progress.clone().filter(|_| aside.is_none());
                let steps = canary.plan.steps.len();
                let share = standing::share(canary, self.picture)
                    .unwrap_or_else(|| progress.as_ref().map_or(0, |progress| progress.share));
                let because = match (aside, &progress) {
                    (Some(aside), _) => aside.message.clone(),
                    (None, progress) => progress.as_ref().map_or_else(String::new, |it| it.because.clone()),
                };
                CanaryView {
                    namespace: canary.id.namespace.to_string(),
                    name: canary.id.name.to_string(),
                    service: canary.plan.service.to_string(),
                    stable: canary.plan.stable.to_string(),
                    canary: canary.plan.canary.to_string(),
                    phase: progress.as_ref().map_or(Phase::Idle, |progress| progress.phase),
                    step: progress.as_ref().map_or_else(
                        || format!("-/{steps}"),
                        |progress| format!("{}/{steps}", progress.step + 1),
                    ),
                    share_percent: 100.0 * f64::from(share) / f64::from(FULL_SHARE),
                    because,
                    needs: progress.as_ref().and_then(|progress| progress.needs.clone()),
                    progress,
                    problems,
                    outdated: self
                        .picture
                        .declared
                        .objects
                        .get(&canary.id)
                        .is_some_and(|accepted| accepted.outdated),
                }
            })
            .collect()
    }

    /// Why a verb would not be carried out, if so.
    pub(crate) fn refusal(&self, canary: &Canary, asked: Asked, now: Timestamp) -> Option<Refusal> {
        let clusters = self.picture.compiled.mesh.destinations.values().flat_map(|destination| {
            let ours = destination.port.service == canary.plan.service;
            destination.clusters.iter().filter(move |_| ours)
        });
        let canary_ready = clusters
            .filter(|cluster| cluster.name.revision.as_ref() == Some(&canary.plan.canary))
            .map(|cluster| cluster.endpoints.iter().filter(|endpoint| endpoint.healthy).count())
            .max()
            .unwrap_or(0);
        let fresh = || Progress::new(&canary.plan, now);
        let progress = canary.progress.clone().unwrap_or_else(fresh);
        carry_out(asked, &canary.plan, &progress, canary_ready).err()
    }

    /// Every file in error.
    pub(crate) fn errors(&self) -> Vec<ErrorView> {
        self.picture
            .declared
            .errors
            .iter()
            .flat_map(|(file, errors)| {
                errors.iter().map(|error| ErrorView {
                    file: file.display().to_string(),
                    object: error.object.clone(),
                    text: error.to_string(),
                })
            })
            .collect()
    }
}

/// Where proxies call an instance.
fn addresses_of(instance: &airlane_core::world::Instance) -> Vec<String> {
    instance.ports.iter().map(|port| format!("{}:{}", instance.address, port.mesh)).collect()
}
