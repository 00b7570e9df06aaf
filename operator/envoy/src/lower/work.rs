//! A lowering under way: what is published already is kept, what is new is encoded, and what differs is noted.

use super::{Keys, Lowered, Origin, siblings::Siblings};
use crate::catalog::{Catalog, Key, Resource, Scope, Version};
use airlane_core::{id::ObjectId, mesh::Proxy};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use xxhash_rust::xxh3::xxh3_64;

/// The resources of one origin.
#[derive(Default)]
pub(super) struct Made(pub(super) Vec<Arc<Resource>>);

/// A lowering under way.
pub(super) struct Work<'a> {
    pub(super) catalog: &'a mut Catalog,
    pub(super) made: &'a mut HashMap<Origin, Keys>,
    pub(super) siblings: &'a mut Siblings,
    pub(super) change: BTreeMap<Scope, BTreeSet<Key>>,
}

impl Work<'_> {
    /// Encodes a resource unless its version is already published.
    pub(super) fn add<L: Lowered>(
        &mut self,
        made: &mut Made,
        scope: Scope,
        lowered: &L,
        shaped_by: &Arc<BTreeSet<ObjectId>>,
    ) {
        let key = Key { kind: L::KIND, name: lowered.name().into() };
        let version = lowered.version();
        let resource = self.published(&scope, &key, version, shaped_by);
        made.0.push(resource.unwrap_or_else(|| encoded(key, scope, version, lowered, shaped_by)));
    }

    /// [`Work::add`] of what belongs to one proxy and is the same for others: they share its encoding. Whatever is added
    /// so by one name must be of one type, because a version tells values of a type apart, not types.
    pub(super) fn add_alike<L: Lowered>(
        &mut self,
        made: &mut Made,
        proxy: &Proxy,
        lowered: &L,
        shaped_by: &Arc<BTreeSet<ObjectId>>,
    ) {
        let key = Key { kind: L::KIND, name: lowered.name().into() };
        let (scope, version) = (Scope::Proxy(proxy.id.clone()), lowered.version());
        let resource = self.published(&scope, &key, version, shaped_by).unwrap_or_else(|| {
            if let Some(sibling) = self.siblings.of(&key, version) {
                let same = sibling.shaped_by == *shaped_by;
                let shaped_by = Arc::clone(if same { &sibling.shaped_by } else { shaped_by });
                return Arc::new(Resource { scope, shaped_by, ..(*sibling).clone() });
            }
            let resource = encoded(key, scope, version, lowered, shaped_by);
            self.siblings.note(&resource);
            resource
        });
        made.0.push(resource);
    }

    /// What is published already, if it is of this version.
    fn published(
        &self,
        scope: &Scope,
        key: &Key,
        version: Version,
        shaped_by: &Arc<BTreeSet<ObjectId>>,
    ) -> Option<Arc<Resource>> {
        let resource = self.catalog.resources.get(scope)?.get(key)?;
        if resource.version != version {
            None
        } else if resource.shaped_by == *shaped_by {
            Some(Arc::clone(resource))
        } else {
            // Another object shapes the same value: nothing to send.
            Some(Arc::new(Resource { shaped_by: Arc::clone(shaped_by), ..(**resource).clone() }))
        }
    }

    /// [`Work::replace`] of what an origin has in some scopes, and of nothing else.
    pub(super) fn replace_in(&mut self, scopes: &BTreeSet<Scope>, origin: Origin, made: Made) {
        let had = self.made.remove(&origin).unwrap_or_default().into_vec();
        let (within, elsewhere): (Vec<_>, Vec<_>) =
            had.into_iter().partition(|(scope, _)| scopes.contains(scope));
        self.made.insert(origin.clone(), within.into());
        self.replace(origin.clone(), made);
        let now = self.made.remove(&origin).unwrap_or_default().into_vec();
        let mut keys = [elsewhere, now].concat();
        if !keys.is_empty() {
            keys.sort_unstable();
            self.made.insert(origin, keys.into());
        }
    }

    /// Puts an origin's resources in the place of those it had.
    pub(super) fn replace(&mut self, origin: Origin, made: Made) {
        let keys: BTreeSet<(Scope, Key)> =
            made.0.iter().map(|resource| (resource.scope.clone(), resource.key.clone())).collect();
        let had = self.made.remove(&origin).unwrap_or_default();
        for (scope, key) in had.iter().filter(|key| !keys.contains(key)) {
            if let Some(resources) = self.catalog.resources.get_mut(scope) {
                Arc::make_mut(resources).remove(key);
                if resources.is_empty() {
                    self.catalog.resources.remove(scope);
                }
            }
            self.change.entry(scope.clone()).or_default().insert(key.clone());
        }
        for resource in made.0 {
            let resources = self.catalog.resources.entry(resource.scope.clone()).or_default();
            let published = resources.get(&resource.key);
            if published.is_some_and(|published| Arc::ptr_eq(published, &resource)) {
                continue;
            }
            if published.is_none_or(|published| {
                published.version != resource.version || published.ttl != resource.ttl
            }) {
                self.change.entry(resource.scope.clone()).or_default().insert(resource.key.clone());
            }
            Arc::make_mut(resources).insert(resource.key.clone(), resource);
        }
        if !keys.is_empty() {
            self.made.insert(origin, keys.into_iter().collect());
        }
    }
}

fn encoded<L: Lowered>(
    key: Key,
    scope: Scope,
    version: Version,
    lowered: &L,
    shaped_by: &Arc<BTreeSet<ObjectId>>,
) -> Arc<Resource> {
    Arc::new(Resource {
        key,
        scope,
        version,
        body: Arc::new(lowered.encode()),
        ttl: None,
        clusters: Arc::new(lowered.clusters()),
        domains: hashes(&lowered.domains()),
        shaped_by: Arc::clone(shaped_by),
    })
}

/// Domains as the catalog knows them: a mesh has as many as hosts times namespaces.
fn hashes(domains: &[String]) -> Arc<[u64]> {
    let hashes: BTreeSet<u64> = domains.iter().map(|domain| xxh3_64(domain.as_bytes())).collect();
    hashes.into_iter().collect()
}
