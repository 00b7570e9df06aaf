//! A model of Envoy's side of delta xDS, which notices what would break traffic.

use super::Response;
use crate::catalog::{Key, Kind, Resource, Version};
use airlane_core::id::InstanceId;
use envoy_types::pb::{
    envoy::{config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest},
    google::rpc::Status,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

/// How long shares live.
pub(super) const TTL: Duration = Duration::from_secs(40);
/// The generation of a resource that the model refuses.
pub(super) const BAD: u8 = 3;
/// A cluster that the bootstrap brings.
pub(super) const BOOTSTRAP: &str = "agent";

/// Whether a version is one that the model refuses.
pub(super) fn is_bad(version: Version) -> bool {
    version.0 % 8 == u64::from(BAD)
}

/// What the resources are called.
pub(super) fn name(kind: Kind, at: usize) -> Arc<str> {
    match kind {
        Kind::Cluster | Kind::Endpoints => format!("80|s{at}|shop").into(),
        Kind::VirtualHost => format!("outbound|shop/h{at}").into(),
        Kind::Listener => format!("listener-{at}").into(),
        Kind::Secret => "bundle".into(),
        Kind::Routes => "outbound|shop".into(),
        Kind::Runtime => "shares".into(),
    }
}

/// Who it is.
pub(super) fn proxy() -> InstanceId {
    InstanceId::parse("pay-1").expect("a name")
}

/// Envoy, as far as xDS goes.
#[derive(Default)]
pub(super) struct Client {
    pub(super) has: BTreeMap<Kind, BTreeMap<Arc<str>, Arc<Resource>>>,
    /// Endpoints it asked for: those of its clusters.
    pub(super) asked: BTreeSet<Arc<str>>,
    /// Clusters that wait for their endpoints.
    pub(super) warming: BTreeSet<Arc<str>>,
    /// Kinds with a subscription, in the order in which they began.
    pub(super) subscribed: Vec<Kind>,
    /// Responses refused because of a domain.
    pub(super) conflicts: u32,
    expires_at: Option<Duration>,
}

impl Client {
    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> {
        self.has.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    pub(super) fn request(&self, kind: Kind) -> DeltaDiscoveryRequest {
        let names = match kind {
            Kind::Endpoints => self.asked.iter().map(ToString::to_string).collect(),
            Kind::Secret | Kind::Routes | Kind::Runtime => vec![name(kind, 0).to_string()],
            Kind::Cluster | Kind::Listener | Kind::VirtualHost => vec![],
        };
        let versions = self.of(kind).map(|r| (r.key.name.to_string(), r.version.to_string())).collect();
        DeltaDiscoveryRequest {
            node: Some(Node { id: proxy().to_string(), ..Node::default() }),
            type_url: kind.type_url().into(),
            resource_names_subscribe: names,
            initial_resource_versions: versions,
            ..DeltaDiscoveryRequest::default()
        }
    }

    pub(super) fn begin(&mut self, kind: Kind, requests: &mut VecDeque<DeltaDiscoveryRequest>) {
        if !self.subscribed.contains(&kind) {
            self.subscribed.push(kind);
            requests.push_back(self.request(kind));
        }
    }

    /// Takes a response in; `Err` is a broken promise of the server.
    pub(super) fn take(
        &mut self,
        response: &Response,
        now: Duration,
        requests: &mut VecDeque<DeltaDiscoveryRequest>,
    ) -> Result<(), String> {
        let kind = response.kind;
        if !self.subscribed.contains(&kind) {
            return Err(format!("{kind:?} was never asked for"));
        }
        let mut error = None;
        let batch = response.resources.len() > 1;
        if kind == Kind::VirtualHost {
            // They are taken as a whole or not at all, removals first.
            let bad = response.resources.iter().any(|host| is_bad(host.version));
            let error = if bad { Some("a host is\n not good".to_owned()) } else { self.conflict(response) };
            if error.is_some() {
                self.conflicts += u32::from(!bad);
                self.answer(response, error, requests);
                return Ok(());
            }
            for name in &response.removed {
                self.remove(kind, name)?;
            }
        }
        for resource in &response.resources {
            let name = &resource.key.name;
            if response.heartbeat {
                if self.has.get(&kind).and_then(|has| has.get(name)).map(|r| r.version)
                    == Some(resource.version)
                {
                    self.expires_at = Some(now + TTL);
                } else {
                    error = Some("a heartbeat for what is not there".to_owned());
                }
                continue;
            }
            if is_bad(resource.version) {
                error = Some(format!("{name}  is\n not good"));
                // Envoy goes on with a cluster whose endpoints it refused.
                self.warming.remove(name);
                // Clusters and listeners are applied one by one, other batches up to the offender.
                if batch && matches!(kind, Kind::Cluster | Kind::Listener) {
                    continue;
                }
                break;
            }
            self.put(resource, now)?;
        }
        for name in &response.removed {
            self.remove(kind, name)?;
        }
        self.answer(response, error, requests);
        self.follow_up(kind, requests);
        Ok(())
    }

    fn answer(
        &self,
        response: &Response,
        error: Option<String>,
        requests: &mut VecDeque<DeltaDiscoveryRequest>,
    ) {
        requests.push_back(DeltaDiscoveryRequest {
            type_url: response.kind.type_url().into(),
            response_nonce: response.nonce.to_string(),
            error_detail: error.map(|message| Status { code: 3, message, details: vec![] }),
            ..DeltaDiscoveryRequest::default()
        });
    }

    /// Two hosts with a domain in common, if there were two after a response.
    fn conflict(&self, response: &Response) -> Option<String> {
        let mut hosts: BTreeMap<&Arc<str>, &Arc<Resource>> =
            self.of(Kind::VirtualHost).map(|host| (&host.key.name, host)).collect();
        hosts.retain(|name, _| !response.removed.contains(name));
        hosts.extend(response.resources.iter().map(|host| (&host.key.name, host)));
        let mut owners: BTreeMap<u64, &Arc<str>> = BTreeMap::new();
        let domains = hosts.into_iter().flat_map(|(name, host)| host.domains.iter().map(move |d| (name, d)));
        domains.into_iter().find_map(|(name, domain)| {
            let other = owners.insert(*domain, name)?;
            Some(format!("{other} and {name} have {domain} in common"))
        })
    }

    fn put(&mut self, resource: &Arc<Resource>, now: Duration) -> Result<(), String> {
        let Key { kind, name } = &resource.key;
        for cluster in resource.clusters.iter().filter(|cluster| ***cluster != *BOOTSTRAP) {
            let known = self.has.get(&Kind::Cluster).is_some_and(|has| has.contains_key(cluster));
            if !known {
                return Err(format!("{name} names {cluster}, which is not there"));
            }
        }
        match kind {
            Kind::Endpoints if !self.asked.contains(name) => return Ok(()),
            Kind::Endpoints => drop(self.warming.remove(name)),
            Kind::Runtime => self.expires_at = Some(now + TTL),
            Kind::Cluster => {
                let old = self.has.get(kind).and_then(|has| has.get(name));
                if old.is_none_or(|old| old.version != resource.version) {
                    self.warming.insert(name.clone());
                }
            }
            _ => {}
        }
        self.has.entry(*kind).or_default().insert(name.clone(), resource.clone());
        Ok(())
    }

    fn remove(&mut self, kind: Kind, name: &Arc<str>) -> Result<(), String> {
        match kind {
            Kind::Secret => return Err("a secret was answered with a removal".into()),
            Kind::Endpoints => drop(self.warming.remove(name)),
            Kind::Cluster => {
                let naming = self.of(Kind::VirtualHost).chain(self.of(Kind::Listener));
                if let Some(naming) = naming.into_iter().find(|r| r.clusters.contains(name)) {
                    return Err(format!("{name} goes while {} names it", naming.key.name));
                }
                self.warming.remove(name);
            }
            _ => {}
        }
        if let Some(has) = self.has.get_mut(&kind) {
            has.remove(name);
        }
        Ok(())
    }

    /// What Envoy asks for after it has taken something in.
    fn follow_up(&mut self, kind: Kind, requests: &mut VecDeque<DeltaDiscoveryRequest>) {
        match kind {
            Kind::Cluster => {
                let clusters: BTreeSet<_> = self.of(Kind::Cluster).map(|r| r.key.name.clone()).collect();
                let new: Vec<_> = clusters.difference(&self.asked).map(ToString::to_string).collect();
                let gone: Vec<_> = self.asked.difference(&clusters).cloned().collect();
                for name in &gone {
                    self.has.entry(Kind::Endpoints).or_default().remove(name);
                }
                self.asked = clusters;
                if self.subscribed.contains(&Kind::Endpoints) && !(new.is_empty() && gone.is_empty()) {
                    requests.push_back(DeltaDiscoveryRequest {
                        type_url: Kind::Endpoints.type_url().into(),
                        resource_names_subscribe: new,
                        resource_names_unsubscribe: gone.iter().map(ToString::to_string).collect(),
                        ..DeltaDiscoveryRequest::default()
                    });
                }
                self.begin(Kind::Endpoints, requests);
                self.begin(Kind::Listener, requests);
                self.begin(Kind::Secret, requests);
                self.begin(Kind::Runtime, requests);
            }
            Kind::Listener => {
                self.begin(Kind::Routes, requests);
                self.begin(Kind::VirtualHost, requests);
            }
            _ => {}
        }
    }

    pub(super) fn expire(&mut self, now: Duration) {
        if self.expires_at.is_some_and(|at| at <= now) {
            self.expires_at = None;
            self.has.remove(&Kind::Runtime);
        }
    }
}
