//! Resources that are the same for many proxies: pods of one workload have the same doors, each in a scope of its own.
//! They share what is large, the encoding above all.

use crate::catalog::{Key, Resource, Version};
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

/// One of each name and version that somebody has.
#[derive(Debug, Default)]
pub(super) struct Siblings {
    known: HashMap<(Key, Version), Weak<Resource>>,
    /// How many of them somebody had when it was last looked.
    had: usize,
}

impl Siblings {
    pub(super) fn of(&self, key: &Key, version: Version) -> Option<Arc<Resource>> {
        self.known.get(&(key.clone(), version))?.upgrade()
    }

    /// Lets others share what is new.
    pub(super) fn note(&mut self, resource: &Arc<Resource>) {
        self.known.insert((resource.key.clone(), resource.version), Arc::downgrade(resource));
        // Amortised: as many are new as are looked at.
        if self.known.len() > 2 * self.had.max(1_000) {
            self.known.retain(|_, resource| resource.strong_count() > 0);
            self.had = self.known.len();
        }
    }
}
