//! How a replica's proxies are, as differences: made by the replica, put together again by the leader. No IO; time is
//! given.

use super::protocol::{
    self, Endpoint, Failures, Layer, News, Object, ObjectAt, Proxy, Refused, SharesOf, Standing, What,
};
use crate::{
    fleet::{Replica, Reported},
    milestone::{Milestone, Milestones},
    signals::{
        Signal,
        intake::{Failure, Totals, Window},
    },
    xds::{ProxyState, Refusal, Refusals, Shares},
};
use airlane_core::id::{ClusterName, InstanceId, Name, Namespace, ObjectId, ObjectKind};
use airlane_envoy::{
    catalog::{Key, Kind, Scope, Version},
    delta::Rejection,
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

/// A proxy whose layer may expire sooner is not said to use it certainly: the next report may come that late.
const CERTAIN_MIN: Duration = Duration::from_secs(1);

/// The longest that is vouched for in one report.
const CERTAIN_MAX: Duration = Duration::from_secs(3);

/// Layers that are known to the other side without being named.
const LAYERS_KEPT: usize = 16;

/// A message that no replica of ours sends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is not what a replica says: {value:?}")]
pub(super) struct Unreadable {
    field: &'static str,
    value: String,
}

impl Unreadable {
    fn new(field: &'static str, value: impl fmt::Display) -> Unreadable {
        Unreadable { field, value: value.to_string() }
    }
}

/// What is known here about this replica's proxies.
pub(super) struct Own<'a> {
    /// What is published.
    pub(super) milestones: &'a Milestones,
    /// Who is connected.
    pub(super) proxies: &'a [ProxyState],
    /// What they refuse.
    pub(super) refusals: &'a Arc<Refusals>,
    /// The uptime.
    pub(super) uptime: Duration,
    /// The time of day.
    pub(super) now: Timestamp,
}

/// What the leader was told on this stream.
#[derive(Default)]
pub(super) struct Told {
    milestones: Milestones,
    proxies: BTreeMap<InstanceId, ToldProxy>,
    layers: BTreeSet<Version>,
    refusals: Arc<Refusals>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct ToldProxy {
    acked_epoch: Option<u64>,
    shares: Option<(Version, Timestamp)>,
}

impl Told {
    /// What is different now from what was told, and is told hereby.
    pub(super) fn differences(&mut self, own: &Own<'_>) -> Standing {
        let mut standing = Standing::default();
        for (milestone, epoch) in own.milestones {
            if self.milestones.get(milestone) != Some(epoch) {
                standing.holds.push(say_milestone(milestone, *epoch));
            }
        }
        for milestone in self.milestones.keys().filter(|milestone| !own.milestones.contains_key(*milestone)) {
            standing.over.push(say_milestone(milestone, 0));
        }
        self.milestones.clone_from(own.milestones);

        let mut certain = CERTAIN_MAX;
        let mut proxies = BTreeMap::new();
        for proxy in own.proxies {
            let shares = proxy.shares.as_ref().and_then(|shares| {
                let left = shares.certain_until.saturating_sub(own.uptime);
                if left < CERTAIN_MIN {
                    return None;
                }
                certain = certain.min(left);
                if self.layers.insert(shares.version) {
                    standing.layers.push(say_layer(shares.version, &shares.shares));
                }
                Some((shares.version, shares.acked_at))
            });
            let told = ToldProxy { acked_epoch: proxy.acked_epoch, shares };
            if self.proxies.get(&proxy.instance) != Some(&told) {
                standing.proxies.push(Proxy {
                    instance: proxy.instance.to_string(),
                    acked_epoch: told.acked_epoch,
                    layer: shares.map(|(version, _)| version.0),
                    used_for_ms: shares.map_or(0, |(_, since)| ms_between(since, own.now)),
                });
            }
            proxies.insert(proxy.instance.clone(), told);
        }
        let gone = self.proxies.keys().filter(|instance| !proxies.contains_key(*instance));
        standing.gone = gone.map(ToString::to_string).collect();
        if self.layers.len() > LAYERS_KEPT {
            self.layers = proxies.values().filter_map(|proxy| Some(proxy.shares?.0)).collect();
        }
        self.proxies = proxies;
        standing.certain_ms = u32::try_from(certain.as_millis()).unwrap_or(0);

        if !Arc::ptr_eq(&self.refusals, own.refusals) {
            standing.refused = Some(say_refusals(own.refusals));
            self.refusals = Arc::clone(own.refusals);
        }
        standing
    }
}

/// The shares that a stream has named.
#[derive(Default)]
pub(super) struct Layers(BTreeMap<Version, Arc<Shares>>);

impl Layers {
    /// Puts what is different into what is known of a replica.
    ///
    /// # Errors
    /// If it names what no replica of ours would; what is known is then in part the old and in part the new.
    pub(super) fn apply(
        &mut self,
        standing: Standing,
        replica: &mut Replica,
        uptime: Duration,
        now: Timestamp,
    ) -> Result<(), Unreadable> {
        if !(standing.over.is_empty() && standing.holds.is_empty()) {
            let milestones = Arc::make_mut(&mut replica.milestones);
            for milestone in standing.over {
                milestones.remove(&read_milestone(milestone)?.0);
            }
            for milestone in standing.holds {
                let (milestone, epoch) = read_milestone(milestone)?;
                milestones.insert(milestone, epoch);
            }
        }
        for layer in standing.layers {
            let shares: Shares = layer.shares.into_iter().collect();
            self.0.insert(Version(layer.version), Arc::new(shares));
        }
        for instance in standing.gone {
            replica.proxies.remove(&read::<InstanceId>("a proxy", &instance)?);
        }
        for proxy in standing.proxies {
            let instance = read("a proxy", &proxy.instance)?;
            let shares = proxy.layer.map(|version| {
                let known = self.0.get(&Version(version)).cloned();
                let shares = known.ok_or_else(|| Unreadable::new("a layer", version))?;
                let used_for = Duration::from_millis(proxy.used_for_ms);
                Ok((shares, now.saturating_sub(used_for).unwrap_or(Timestamp::MIN)))
            });
            let shares = shares.transpose()?;
            replica.proxies.insert(instance, Reported { acked_epoch: proxy.acked_epoch, shares });
        }
        if self.0.len() > LAYERS_KEPT {
            self.0.retain(|_, layer| {
                let named = |(shares, _): &(Arc<Shares>, Timestamp)| Arc::ptr_eq(shares, layer);
                replica.proxies.values().any(|proxy| proxy.shares.as_ref().is_some_and(named))
            });
        }
        if let Some(refused) = standing.refused {
            replica.refusals = Arc::new(read_refusals(refused)?);
        }
        replica.certain_until = uptime + Duration::from_millis(standing.certain_ms.into());
        Ok(())
    }
}

fn ms_between(since: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(since).as_millis()).unwrap_or(0)
}

fn read<T: FromStr>(field: &'static str, text: &str) -> Result<T, Unreadable> {
    text.parse().map_err(|_| Unreadable::new(field, text))
}

fn say_object(id: &ObjectId) -> Object {
    Object { kind: id.kind.to_string(), namespace: id.namespace.to_string(), name: id.name.to_string() }
}

fn read_object(object: Option<&Object>) -> Result<ObjectId, Unreadable> {
    let object = object.ok_or_else(|| Unreadable::new("an object", ""))?;
    let kinds = [ObjectKind::MeshPolicy, ObjectKind::Canary, ObjectKind::Service];
    let kind = kinds.into_iter().find(|kind| kind.to_string() == object.kind);
    Ok(ObjectId {
        kind: kind.ok_or_else(|| Unreadable::new("a kind", &object.kind))?,
        namespace: read::<Namespace>("a namespace", &object.namespace)?,
        name: read::<Name>("a name", &object.name)?,
    })
}

fn say_milestone(milestone: &Milestone, epoch: u64) -> protocol::Milestone {
    let what = match milestone {
        Milestone::Object(id, uid, generation) => {
            What::Object(ObjectAt { object: Some(say_object(id)), uid: uid.clone(), generation: *generation })
        }
        Milestone::Shares(id, share, fail_safe_share) => What::Shares(SharesOf {
            canary: Some(say_object(id)),
            share: *share,
            fail_safe_share: *fail_safe_share,
        }),
        Milestone::Withdrawn(instance) => What::Withdrawn(instance.to_string()),
        Milestone::Roots(roots) => What::Roots(*roots),
    };
    protocol::Milestone { epoch, what: Some(what) }
}

fn read_milestone(milestone: protocol::Milestone) -> Result<(Milestone, u64), Unreadable> {
    let what = milestone.what.ok_or_else(|| Unreadable::new("a milestone", ""))?;
    let read = match what {
        What::Object(ObjectAt { object, generation, uid }) => {
            Milestone::Object(read_object(object.as_ref())?, uid, generation)
        }
        What::Shares(SharesOf { canary, share, fail_safe_share }) => {
            Milestone::Shares(read_object(canary.as_ref())?, share, fail_safe_share)
        }
        What::Withdrawn(instance) => Milestone::Withdrawn(read("an instance", &instance)?),
        What::Roots(roots) => Milestone::Roots(roots),
    };
    Ok((read, milestone.epoch))
}

fn say_layer(version: Version, shares: &Shares) -> Layer {
    let shares = shares.iter().map(|(key, share)| (key.clone(), *share)).collect();
    Layer { version: version.0, shares }
}

fn say_refusals(refusals: &Refusals) -> Refused {
    let resources = refusals.values().map(|refusal| {
        let rejection = &refusal.rejection;
        let (namespace, proxy) = match &rejection.scope {
            Scope::Everyone => (String::new(), String::new()),
            Scope::Namespace(namespace) => (namespace.to_string(), String::new()),
            Scope::Proxy(proxy) => (String::new(), proxy.to_string()),
        };
        protocol::Refusal {
            type_url: rejection.key.kind.type_url().to_owned(),
            name: rejection.key.name.to_string(),
            version: rejection.version.0,
            namespace,
            proxy,
            shaped_by: rejection.shaped_by.iter().map(say_object).collect(),
            detail: rejection.detail.clone(),
            proxies: refusal.proxies.iter().map(ToString::to_string).collect(),
        }
    });
    Refused { resources: resources.collect() }
}

fn read_refusals(refused: Refused) -> Result<Refusals, Unreadable> {
    let mut refusals = Refusals::new();
    for refusal in refused.resources {
        let kind = Kind::of(&refusal.type_url).ok_or_else(|| Unreadable::new("a type", &refusal.type_url))?;
        let key = Key { kind, name: refusal.name.into() };
        let scope = match (&*refusal.namespace, &*refusal.proxy) {
            ("", "") => Scope::Everyone,
            (namespace, "") => Scope::Namespace(read("a namespace", namespace)?),
            (_, proxy) => Scope::Proxy(read("a proxy", proxy)?),
        };
        let shaped_by: BTreeSet<ObjectId> =
            refusal.shaped_by.iter().map(|object| read_object(Some(object))).collect::<Result<_, _>>()?;
        let proxies = refusal.proxies.iter().map(|proxy| read("a proxy", proxy)).collect::<Result<_, _>>()?;
        let rejection = Rejection {
            key: key.clone(),
            scope: scope.clone(),
            version: Version(refusal.version),
            shaped_by: Arc::new(shaped_by),
            detail: refusal.detail,
        };
        refusals.insert((scope, key), Refusal { rejection, proxies });
    }
    Ok(refusals)
}

/// A signal as it is passed on.
pub(super) fn say_signal(signal: Signal) -> News {
    match signal {
        Signal::LogBroke(caller) => News::LogBroke(caller.to_string()),
        Signal::Failures(caller, failures) => {
            let attempts = failures.into_iter().map(|failure| Endpoint {
                cluster: failure.cluster.to_string(),
                address: failure.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
            });
            News::Failures(Failures { caller: caller.to_string(), attempts: attempts.collect() })
        }
        Signal::Window(caller, window) => {
            let clusters = window.clusters.into_iter().map(|(cluster, totals)| protocol::Totals {
                cluster: cluster.to_string(),
                sent: totals.sent,
                connect_failed: totals.connect_failed,
                retries: totals.retries,
                good_tries: totals.good_tries,
                failed_tries: totals.failed_tries,
                completed: totals.completed,
                completed_5xx: totals.completed_5xx,
            });
            News::Window(protocol::Window {
                caller: caller.to_string(),
                start_ns: window.start_ns,
                end_ns: window.end_ns,
                clusters: clusters.collect(),
                ejecting: window.ejecting.iter().map(ToString::to_string).collect(),
            })
        }
    }
}

/// What a proxy counted, as it was passed on.
///
/// # Errors
/// If it is not what a replica says.
pub(super) fn read_window(window: protocol::Window) -> Result<Signal, Unreadable> {
    let clusters = window.clusters.into_iter().map(|totals| {
        let cluster: ClusterName = read("a cluster", &totals.cluster)?;
        let totals = Totals {
            sent: totals.sent,
            connect_failed: totals.connect_failed,
            retries: totals.retries,
            good_tries: totals.good_tries,
            failed_tries: totals.failed_tries,
            completed: totals.completed,
            completed_5xx: totals.completed_5xx,
        };
        Ok((cluster, totals))
    });
    let ejecting = window.ejecting.iter().map(|cluster| read("a cluster", cluster));
    let read_window = Window {
        start_ns: window.start_ns,
        end_ns: window.end_ns,
        clusters: clusters.collect::<Result<_, _>>()?,
        ejecting: ejecting.collect::<Result<_, _>>()?,
    };
    Ok(Signal::Window(read("a proxy", &window.caller)?, read_window))
}

/// Failures of a proxy, as they were passed on. They count as of now.
///
/// # Errors
/// If it is not what a replica says.
pub(super) fn read_failures(failures: &Failures, now: Timestamp) -> Result<Signal, Unreadable> {
    let attempts = failures.attempts.iter().map(|attempt| {
        let endpoint = match &*attempt.address {
            "" => None,
            address => Some(read("an address", address)?),
        };
        Ok(Failure { cluster: read("a cluster", &attempt.cluster)?, endpoint, at: now })
    });
    Ok(Signal::Failures(read("a proxy", &failures.caller)?, attempts.collect::<Result<_, _>>()?))
}

/// The proxy whose log broke.
///
/// # Errors
/// If it is not what a replica says.
pub(super) fn read_log_broke(caller: &str) -> Result<Signal, Unreadable> {
    Ok(Signal::LogBroke(read("a proxy", caller)?))
}
