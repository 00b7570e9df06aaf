//! What proxies refused, and what is therefore withheld.

use crate::catalog::{Catalog, Change, Key, Resource, Scope, Version};
use airlane_core::id::{Identity, ObjectId};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The longest detail that is kept of a rejection, in characters.
pub const DETAIL_MAX: usize = 300;

/// How many identities must refuse a version before it is withheld from everybody. One alone could be a
/// compromised workload that wants a policy kept from the others.
pub const WITNESSES: usize = 2;

/// A proxy refused a resource.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    /// What was refused.
    pub key: Key,
    /// Who sees it.
    pub scope: Scope,
    /// The version that was refused.
    pub version: Version,
    /// The objects that shaped it.
    pub shaped_by: Arc<BTreeSet<ObjectId>>,
    /// The proxy's words, as [`tidy`] leaves them.
    pub detail: String,
}

impl Rejection {
    pub(super) fn of(resource: &Resource, words: &str) -> Rejection {
        Rejection {
            key: resource.key.clone(),
            scope: resource.scope.clone(),
            version: resource.version,
            shaped_by: resource.shaped_by.clone(),
            detail: tidy(words),
        }
    }
}

/// A proxy's words on one line of at most [`DETAIL_MAX`] characters. Envoy appends the whole resource with
/// varying white space, and the words come from another machine: control characters do not pass.
pub fn tidy(words: &str) -> String {
    let mut line = String::new();
    let mut length = 0;
    for word in words.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if length > 0 {
            line.push(' ');
            length += 1;
        }
        for c in word.chars() {
            if length >= DETAIL_MAX {
                line.push('…');
                return line;
            }
            line.push(c);
            length += 1;
        }
    }
    line
}

/// Versions that several proxies refused: sent to nobody until they change.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    refused: BTreeMap<(Scope, Key), (Version, BTreeSet<Identity>)>,
}

impl Quarantine {
    /// Notes who refused what. Whether the resource is withheld since.
    pub fn note(&mut self, rejection: &Rejection, by: &Identity) -> bool {
        let place = (rejection.scope.clone(), rejection.key.clone());
        let (version, witnesses) =
            self.refused.entry(place).or_insert_with(|| (rejection.version, BTreeSet::new()));
        if *version != rejection.version {
            *version = rejection.version;
            witnesses.clear();
        }
        witnesses.insert(by.clone()) && witnesses.len() == WITNESSES
    }

    /// Forgets what was refused in a version that is no longer published.
    pub fn forget_changed(&mut self, catalog: &Catalog, change: &Change) {
        self.refused.retain(|(scope, key), (version, _)| {
            let changed = change.keys.get(scope).is_some_and(|keys| keys.contains(key));
            let published = || catalog.resources.get(scope).and_then(|resources| resources.get(key));
            !changed || published().is_some_and(|resource| resource.version == *version)
        });
    }

    /// What was refused in some version, by however few.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.refused.keys().map(|(_, key)| key)
    }

    /// Whether the resource is sent to nobody.
    pub fn withholds(&self, resource: &Resource) -> bool {
        // The map is empty in a healthy mesh, and this is asked for every resource of every proxy.
        !self.refused.is_empty()
            && self
                .refused
                .get(&(resource.scope.clone(), resource.key.clone()))
                .is_some_and(|(version, by)| *version == resource.version && by.len() >= WITNESSES)
    }
}
