//! Watches a Kubernetes cluster: services and the pods behind them, policies and canaries.
//!
//! Of each object a few fields are kept ([`shapes`]), as what they mean to the mesh ([`pod`], [`service`],
//! [`object`]). What is published is made of complete lists alone ([`mirror`]): nothing before everything was listed
//! once, and never less because a watch had to begin anew. While the API server is away the last picture stays.

mod instances;
mod mirror;
mod object;
pub(crate) mod pod;
mod service;
mod shapes;
pub(crate) mod workload;

pub(crate) use object::{ANSWERED, Answered, Kept, memory};
pub(crate) use shapes::{Canary, MeshPolicy};

use super::declared::Declared;
use crate::{apply::Statuses, members::Instances, webhook::inject::INJECT};
use airlane_core::id::{Namespace, ObjectId, ObjectKind};
use futures::{
    FutureExt as _, StreamExt as _,
    stream::{BoxStream, SelectAll},
};
use instances::{Parts, Stale};
use kube::{
    Api, Client, Resource,
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::{WatchStreamExt as _, utils::Backoff, watcher},
};
use mirror::{Mirror, Noted};
use object::Written;
use pod::Copy;
use serde::de::DeserializeOwned;
use service::{Offer, Slice};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use workload::{Deployment, PASS, Pass, Workloads};

/// The values of its label by which a namespace joins the mesh.
pub(crate) const JOINS: [&str; 2] = ["enabled", pod::OUTBOUND];

/// Events that are taken together before the mesh is looked at anew: a rolling update of many pods is one picture,
/// and no stream of events keeps the picture from being told.
const TOGETHER: usize = 4096;

/// The first pause before a watch that failed is tried again, and the longest. Short, because meanwhile the mesh does
/// not follow its cluster; an operator has only a handful of watches.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long a watch lasts before it is begun anew where it ended, seconds. A connection that says nothing for longer
/// is a dead one whose end nobody told.
pub(crate) const WATCH_SECONDS: u32 = 45;

/// How often it is told at most whose pods are in the mesh: nothing waits for it that is done in less.
const WORKLOADS_EVERY: Duration = Duration::from_millis(500);

/// The labels of each namespace.
pub(crate) type NamespaceLabels = BTreeMap<Namespace, BTreeMap<String, String>>;

/// What is observed of a cluster, now and whenever it changes. Nothing of it means anything before
/// [`Observed::complete`].
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// Copies of workloads: those with a proxy and those behind a service.
    pub(crate) instances: watch::Receiver<Instances>,
    /// Services, policies and canaries.
    pub(crate) declared: watch::Receiver<Arc<Declared>>,
    /// What canaries' statuses remember.
    pub(crate) statuses: watch::Receiver<Arc<Statuses>>,
    /// What a writer of statuses must know of each object.
    pub(crate) kept: watch::Receiver<Arc<BTreeMap<ObjectId, Kept>>>,
    /// The namespaces and their labels.
    pub(crate) namespaces: watch::Receiver<Arc<NamespaceLabels>>,
    /// Namespaces whose pods join the mesh unless they say otherwise.
    pub(crate) joined: watch::Receiver<Arc<BTreeSet<Namespace>>>,
    /// What decides about restarts; `None` until all of it was listed, which nothing else waits for.
    pub(crate) workloads: watch::Receiver<Option<Arc<Workloads>>>,
    missing: watch::Receiver<Vec<&'static str>>,
}

/// What was observed, for tests that observe nothing.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) statuses: Statuses,
    pub(crate) kept: BTreeMap<ObjectId, Kept>,
}

impl Observed {
    /// What stays as it is for ever.
    #[cfg(test)]
    pub(crate) fn of(seen: Seen) -> Observed {
        Observed {
            instances: watch::Sender::default().subscribe(),
            declared: watch::Sender::default().subscribe(),
            statuses: watch::Sender::new(Arc::new(seen.statuses)).subscribe(),
            kept: watch::Sender::new(Arc::new(seen.kept)).subscribe(),
            namespaces: watch::Sender::default().subscribe(),
            joined: watch::Sender::default().subscribe(),
            workloads: watch::Sender::default().subscribe(),
            missing: watch::Sender::default().subscribe(),
        }
    }

    /// The kinds of objects that were not listed completely yet.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        self.missing.borrow().clone()
    }

    /// Waits until everything was listed once. For ever, if the watch has ended before.
    pub(crate) async fn complete(&self) {
        let mut missing = self.missing.clone();
        if missing.wait_for(Vec::is_empty).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether Deployments are watched: who restarts none does not need them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Restarts {
    /// They are watched, and [`Observed::workloads`] is told.
    Watched,
    /// They are not.
    Ignored,
}

/// Watches until shutdown; to be spawned. What it sees is told through [`Observed`].
pub(crate) fn watch(
    client: &Client,
    system_namespace: Namespace,
    restarts: Restarts,
    shutdown: CancellationToken,
) -> (Observed, impl Future<Output = ()> + Send + use<>) {
    let mut news: SelectAll<BoxStream<'static, News>> = SelectAll::new();
    news.push(follow(client, News::Service));
    news.push(follow(client, News::EndpointSlice));
    news.push(follow(client, News::Pod));
    news.push(follow(client, News::Namespace));
    news.push(follow(client, News::MeshPolicy));
    news.push(follow(client, News::Canary));
    if restarts == Restarts::Watched {
        news.push(follow(client, News::Deployment));
        let only = watcher::Config::default().fields(&format!("metadata.name={PASS}"));
        news.push(follow_some(client, only, News::RoleBinding));
    }
    let (cluster, observed) = Cluster::new(system_namespace);
    (observed, cluster.run(news, shutdown))
}

/// An object, or why it cannot be read: one such object must not be the end of its whole list.
type Guarded<K> = DeserializeGuard<K>;

type Told<K> = watcher::Result<watcher::Event<K>>;

/// Something that a watch told.
enum News {
    Service(Told<Guarded<shapes::Service>>),
    EndpointSlice(Told<Guarded<shapes::EndpointSlice>>),
    Pod(Told<Guarded<shapes::Pod>>),
    Namespace(Told<Guarded<shapes::Namespace>>),
    MeshPolicy(Told<Guarded<shapes::MeshPolicy>>),
    Canary(Told<Guarded<shapes::Canary>>),
    Deployment(Told<Guarded<shapes::Deployment>>),
    RoleBinding(Told<Guarded<shapes::RoleBinding>>),
}

fn follow<K>(client: &Client, news: fn(Told<Guarded<K>>) -> News) -> BoxStream<'static, News>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
{
    follow_some(client, watcher::Config::default(), news)
}

fn follow_some<K>(
    client: &Client,
    which: watcher::Config,
    news: fn(Told<Guarded<K>>) -> News,
) -> BoxStream<'static, News>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
{
    let config = which.timeout(WATCH_SECONDS);
    watcher(Api::<Guarded<K>>::all(client.clone()), config).backoff(Patience::default()).map(news).boxed()
}

/// Pauses that double.
#[derive(Default)]
struct Patience(Option<Duration>);

impl Iterator for Patience {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let (first, longest) = PAUSES;
        let pause = self.0.map_or(first, |last| (last * 2).min(longest));
        self.0 = Some(pause);
        Some(pause)
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0 = None;
    }
}

/// What was seen of the cluster, and where it is told.
struct Cluster {
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
    fn new(system_namespace: Namespace) -> (Cluster, Observed) {
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

    async fn run(mut self, mut news: SelectAll<BoxStream<'static, News>>, shutdown: CancellationToken) {
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
            let joins = |labels: &BTreeMap<String, String>| {
                labels.get(INJECT).is_some_and(|value| JOINS.contains(&&**value))
            };
            let joined = labels.iter().filter(|(_, labels)| joins(labels)).map(|(name, _)| name.clone());
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

/// Takes an event; what a watch could not do is told and tried again by itself.
fn took<K, S>(
    kind: &'static str,
    told: Told<K>,
    note: impl FnOnce(watcher::Event<K>) -> Noted<S>,
) -> Noted<S> {
    match told {
        Ok(event) => note(event),
        // Every watch ends now and then, and a new one begins where it ended.
        Err(watcher::Error::WatchError(status)) if status.code == 410 => {
            tracing::debug!(kind, "the watch begins anew");
            Noted::Nothing
        }
        Err(error) => {
            tracing::warn!(
                kind,
                error = &error as &dyn std::error::Error,
                "cannot watch; what was seen last stays"
            );
            Noted::Nothing
        }
    }
}

/// What is kept of an object that can be read; one that cannot is named, and left out.
fn readable<K, S>(
    kind: &'static str,
    keep: impl FnOnce(K) -> Option<S>,
) -> impl FnOnce(Guarded<K>) -> Option<S> {
    move |DeserializeGuard(object)| match object {
        Ok(object) => keep(object),
        Err(InvalidObject { error, metadata }) => {
            let (namespace, name) =
                (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
            tracing::warn!(kind, namespace, name, error, "left out: the object cannot be read");
            None
        }
    }
}

fn labelled(namespace: shapes::Namespace) -> Option<Labelled> {
    let manual = workload::is_manual(&workload::ours(&namespace.metadata));
    Some(Labelled { labels: namespace.metadata.labels.unwrap_or_default(), manual })
}

#[cfg(test)]
mod tests;
