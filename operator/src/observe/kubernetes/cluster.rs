//! What was seen of a cluster, object by object, and what of it is told when it changes.

use super::{
    Kept, NamespaceLabels, Observed,
    instances::{Parts, Stale},
    mirror::{Mirror, Noted},
    news::{News, readable, took},
    object::{self, Written},
    pod::{self, Copy},
    service::{self, Offer, Slice},
    shapes,
    workload::{self, Deployment, Pass, Workloads},
};
use crate::{
    apply::Statuses,
    marks::{asks, is_manual},
    members::Instances,
    observe::declared::Declared,
};
use airlane_core::id::{Namespace, ObjectId, ObjectKind};
use futures::{
    FutureExt as _, StreamExt as _,
    stream::{BoxStream, SelectAll},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// Events that are taken together before the mesh is looked at anew: a rolling update of many pods is one picture,
/// and no stream of events keeps the picture from being told.
const TOGETHER: usize = 4096;

/// How often it is told at most whose pods are in the mesh: nothing waits for it that is done in less.
const WORKLOADS_EVERY: Duration = Duration::from_millis(500);

/// What was seen of the cluster, and where it is told.
pub(super) struct Cluster {
    system_namespace: Namespace,
    services: Mirror<Offer>,
    slices: Mirror<Slice>,
    copies: Mirror<Copy>,
    namespaces: Mirror<Labelled>,
    policies: Mirror<Written>,
    canaries: Mirror<Written>,
    deployments: Mirror<Deployment>,
    passes: Mirror<Pass>,
    tell: Tell,
}

/// What is kept of a namespace.
#[derive(PartialEq, Debug)]
struct Labelled {
    labels: BTreeMap<String, String>,
    /// Whether its team restarts workloads itself.
    manual: bool,
}

struct Tell {
    instances: watch::Sender<Instances>,
    declared: watch::Sender<Arc<Declared>>,
    statuses: watch::Sender<Arc<Statuses>>,
    kept: watch::Sender<Arc<BTreeMap<ObjectId, Kept>>>,
    namespaces: watch::Sender<Arc<NamespaceLabels>>,
    joined: watch::Sender<Arc<BTreeSet<Namespace>>>,
    workloads: watch::Sender<Option<Arc<Workloads>>>,
    missing: watch::Sender<Vec<&'static str>>,
}

/// Which parts of what is told may be others now.
#[derive(Default)]
struct Changed {
    instances: Stale,
    services: bool,
    objects: bool,
    namespaces: bool,
    workloads: bool,
}

impl Cluster {
    pub(super) fn new(system_namespace: Namespace) -> (Cluster, Observed) {
        let tell = Tell {
            instances: watch::Sender::default(),
            declared: watch::Sender::default(),
            statuses: watch::Sender::default(),
            kept: watch::Sender::default(),
            namespaces: watch::Sender::default(),
            joined: watch::Sender::default(),
            workloads: watch::Sender::default(),
            missing: watch::Sender::default(),
        };
        let cluster = Cluster {
            system_namespace,
            services: Mirror::default(),
            slices: Mirror::default(),
            copies: Mirror::default(),
            namespaces: Mirror::default(),
            policies: Mirror::default(),
            canaries: Mirror::default(),
            deployments: Mirror::default(),
            passes: Mirror::default(),
            tell,
        };
        cluster.tell.missing.send_replace(cluster.missing());
        let observed = Observed {
            instances: cluster.tell.instances.subscribe(),
            declared: cluster.tell.declared.subscribe(),
            statuses: cluster.tell.statuses.subscribe(),
            kept: cluster.tell.kept.subscribe(),
            namespaces: cluster.tell.namespaces.subscribe(),
            joined: cluster.tell.joined.subscribe(),
            workloads: cluster.tell.workloads.subscribe(),
            missing: cluster.tell.missing.subscribe(),
        };
        (cluster, observed)
    }

    pub(super) async fn run(
        mut self,
        mut news: SelectAll<BoxStream<'static, News>>,
        shutdown: CancellationToken,
    ) {
        let mut changed = Changed::default();
        let mut workloads_due = interval(WORKLOADS_EVERY);
        workloads_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = workloads_due.tick(), if changed.workloads && self.knows_workloads() => {
                    changed.workloads = false;
                    self.publish_workloads();
                    continue;
                }
                first = news.next() => first,
            };
            let Some(first) = first else { return };
            self.note(first, &mut changed);
            for _ in 1..TOGETHER {
                let Some(Some(next)) = news.next().now_or_never() else { break };
                self.note(next, &mut changed);
            }
            let missing = self.missing();
            if missing.is_empty() {
                let workloads = changed.workloads;
                self.publish(&std::mem::take(&mut changed));
                changed.workloads = workloads;
            }
            self.tell.missing.send_if_modified(|told| std::mem::replace(told, missing) != self.missing());
        }
    }

    fn missing(&self) -> Vec<&'static str> {
        [
            ("Services", self.services.is_complete()),
            ("EndpointSlices", self.slices.is_complete()),
            ("Pods", self.copies.is_complete()),
            ("Namespaces", self.namespaces.is_complete()),
            ("MeshPolicies", self.policies.is_complete()),
            ("Canaries", self.canaries.is_complete()),
        ]
        .into_iter()
        .filter(|(_, complete)| !complete)
        .map(|(kind, _)| kind)
        .collect()
    }

    fn note(&mut self, news: News, changed: &mut Changed) {
        let system = &self.system_namespace;
        match news {
            News::Service(told) => {
                let noted = took("Services", told, |event| {
                    self.services.note(event, readable("Service", |it| service::offer_of(&it)))
                });
                changed.services |= noted != Noted::Nothing;
                changed.instances.service(&noted);
            }
            News::EndpointSlice(told) => {
                let noted = took("EndpointSlices", told, |event| {
                    self.slices.note(event, readable("EndpointSlice", |it| service::slice_of(&it)))
                });
                let now = |key: &_| self.slices.seen().get(key);
                changed.services |= match &noted {
                    Noted::Nothing => false,
                    Noted::One(key, before) => {
                        before.as_ref().map(Slice::names) != now(key).map(Slice::names)
                    }
                    Noted::All => true,
                };
                changed.instances.slice(&noted, now);
            }
            News::Pod(told) => {
                let noted = took("Pods", told, |event| {
                    self.copies.note(event, readable("Pod", |pod| pod::copy_of(&pod)))
                });
                changed.workloads |= noted != Noted::Nothing;
                changed.instances.pod(noted);
            }
            News::Namespace(told) => {
                let noted = took("Namespaces", told, |event| {
                    self.namespaces.note(event, readable("Namespace", labelled))
                });
                changed.namespaces |= noted != Noted::Nothing;
                changed.workloads |= noted != Noted::Nothing;
            }
            News::Deployment(told) => {
                let noted = took("Deployments", told, |event| {
                    let keep = readable("Deployment", |it| workload::deployment_of(&it));
                    self.deployments.note(event, keep)
                });
                changed.workloads |= noted != Noted::Nothing;
            }
            News::RoleBinding(told) => {
                let noted = took("RoleBindings", told, |event| {
                    self.passes.note(event, readable("RoleBinding", |it| workload::pass_of(&it)))
                });
                changed.workloads |= noted != Noted::Nothing;
            }
            News::MeshPolicy(told) => {
                let noted = took("MeshPolicies", told, |event| {
                    let keep = |shapes::MeshPolicy { metadata, spec, status }| {
                        object::written(ObjectKind::MeshPolicy, &metadata, &spec, status, system)
                    };
                    self.policies.note(event, readable("MeshPolicy", keep))
                });
                changed.objects |= noted != Noted::Nothing;
            }
            News::Canary(told) => {
                let noted = took("Canaries", told, |event| {
                    let keep = |shapes::Canary { metadata, spec, status }| {
                        object::written(ObjectKind::Canary, &metadata, &spec, status, system)
                    };
                    self.canaries.note(event, readable("Canary", keep))
                });
                changed.objects |= noted != Noted::Nothing;
            }
        }
    }

    fn publish(&self, changed: &Changed) {
        let written = || self.policies.seen().values().chain(self.canaries.seen().values());
        if changed.objects {
            let kept = written().map(|written| (written.id.clone(), written.kept.clone())).collect();
            tell(&self.tell.kept, kept);
            let statuses = self.canaries.seen().values();
            tell(
                &self.tell.statuses,
                statuses.map(|written| (written.id.clone(), written.status.clone())).collect(),
            );
        }
        if changed.objects || changed.services {
            let before = self.tell.declared.borrow().clone();
            let services = match &before.services {
                Some(services) if !changed.services => services.clone(),
                before => service::shared(
                    service::services(self.services.seen().values(), self.slices.seen().values()),
                    before.as_ref().unwrap_or(&BTreeMap::new()),
                ),
            };
            let declared = Declared {
                objects: written().map(|written| (written.id.clone(), written.accepted.clone())).collect(),
                errors: BTreeMap::new(),
                services: Some(services),
            };
            tell(&self.tell.declared, declared);
        }
        if !changed.instances.is_empty() {
            let parts = Parts {
                copies: self.copies.seen(),
                offers: self.services.seen(),
                slices: self.slices.seen(),
            };
            let before = self.tell.instances.borrow().clone();
            tell(&self.tell.instances, parts.instances(&before, &changed.instances));
        }
        if changed.namespaces {
            let labels = self.namespaces.seen().iter();
            let labels = labels
                .filter_map(|((_, name), kept)| Some((Namespace::parse(name).ok()?, kept.labels.clone())));
            let labels: NamespaceLabels = labels.collect();
            let joined = labels.iter().filter(|(_, labels)| asks(labels)).map(|(name, _)| name.clone());
            tell(&self.tell.joined, joined.collect());
            tell(&self.tell.namespaces, labels);
        }
    }

    fn knows_workloads(&self) -> bool {
        self.deployments.is_complete() && self.passes.is_complete() && self.missing().is_empty()
    }

    fn publish_workloads(&self) {
        let passes = self.passes.seen().iter();
        let manual = self.namespaces.seen().iter().filter(|(_, kept)| kept.manual);
        let workloads = Workloads {
            deployments: self.deployments.seen().clone(),
            crews: workload::crews(self.copies.seen().iter()),
            passes: passes.map(|((namespace, _), pass)| (namespace.clone(), pass.clone())).collect(),
            manual: manual.map(|((_, name), _)| name.clone()).collect(),
        };
        self.tell.workloads.send_if_modified(|told| {
            let changed = told.as_deref() != Some(&workloads);
            if changed {
                *told = Some(Arc::new(workloads));
            }
            changed
        });
    }
}

/// Tells a value if it is another one.
fn tell<T: PartialEq>(told: &watch::Sender<Arc<T>>, now: T) {
    told.send_if_modified(|before| {
        let changed = **before != now;
        if changed {
            *before = Arc::new(now);
        }
        changed
    });
}

fn labelled(namespace: shapes::Namespace) -> Option<Labelled> {
    let manual = is_manual(&workload::ours(&namespace.metadata));
    Some(Labelled { labels: namespace.metadata.labels.unwrap_or_default(), manual })
}
