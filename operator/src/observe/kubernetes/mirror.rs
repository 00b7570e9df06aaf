//! What a watch has told, complete or not. Pure: events come in, the set that may be used comes out.
//!
//! A watch that has to begin anew (its server forgot where it was: 410 Gone) lists everything again. Until that list
//! is complete the set stays what it was: it never shrinks to what has been listed so far.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, runtime::watcher::Event};
use std::collections::BTreeMap;

/// An object's namespace, empty if it has none, and its name.
pub(super) type Key = (String, String);

/// What an event did to the set that may be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Noted<S> {
    /// It is what it was.
    Nothing,
    /// An object came, went, or is kept as something else: this is what was kept of it before.
    One(Key, Option<S>),
    /// Everything may be other than it was.
    All,
}

/// The objects of one kind, each as the little that is kept of it.
#[derive(Debug)]
pub(super) struct Mirror<S> {
    seen: BTreeMap<Key, S>,
    listing: BTreeMap<Key, S>,
    complete: bool,
}

impl<S> Default for Mirror<S> {
    fn default() -> Self {
        Mirror { seen: BTreeMap::new(), listing: BTreeMap::new(), complete: false }
    }
}

impl<S: PartialEq> Mirror<S> {
    /// Notes an event; `keep` says what is kept of an object, `None` if nothing.
    pub(super) fn note<K: Resource>(
        &mut self,
        event: Event<K>,
        keep: impl FnOnce(K) -> Option<S>,
    ) -> Noted<S> {
        match event {
            Event::Init => {
                self.listing.clear();
                Noted::Nothing
            }
            Event::InitApply(object) => {
                let key = key(object.meta());
                if let Some(kept) = keep(object) {
                    self.listing.insert(key, kept);
                }
                Noted::Nothing
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listing);
                let changed = !self.complete || self.seen != listed;
                self.complete = true;
                self.seen = listed;
                if changed { Noted::All } else { Noted::Nothing }
            }
            Event::Apply(object) => {
                let key = key(object.meta());
                match keep(object) {
                    Some(kept) if self.seen.get(&key) == Some(&kept) => Noted::Nothing,
                    Some(kept) => {
                        let before = self.seen.insert(key.clone(), kept);
                        Noted::One(key, before)
                    }
                    None => self.forget(key),
                }
            }
            Event::Delete(object) => self.forget(key(object.meta())),
        }
    }

    fn forget(&mut self, key: Key) -> Noted<S> {
        match self.seen.remove(&key) {
            Some(before) => Noted::One(key, Some(before)),
            None => Noted::Nothing,
        }
    }
}

impl<S> Mirror<S> {
    /// Whether everything was listed once.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// What may be used; nothing of it before [`Mirror::is_complete`].
    pub(super) fn seen(&self) -> &BTreeMap<Key, S> {
        &self.seen
    }
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, version: &str) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            resource_version: Some(version.into()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    fn version(object: ConfigMap) -> Option<String> {
        object.metadata.resource_version.filter(|version| version != "none")
    }

    /// The names seen after these events, and how many of them changed the set.
    fn check(events: Vec<Event<ConfigMap>>, expected: &[&str], changes: usize) {
        let mut mirror = Mirror::default();
        let changed = events
            .into_iter()
            .map(|event| mirror.note(event, version))
            .filter(|noted| *noted != Noted::Nothing)
            .count();
        let names: Vec<&str> = mirror.seen().keys().map(|(_, name)| name.as_str()).collect();
        assert_eq!((names.as_slice(), changed), (expected, changes));
    }

    fn listed(names: &[&str]) -> Vec<Event<ConfigMap>> {
        let applied = names.iter().map(|name| Event::InitApply(object(name, "1")));
        std::iter::once(Event::Init).chain(applied).chain([Event::InitDone]).collect()
    }

    fn then(mut first: Vec<Event<ConfigMap>>, second: Vec<Event<ConfigMap>>) -> Vec<Event<ConfigMap>> {
        first.extend(second);
        first
    }

    #[test]
    fn nothing_is_seen_before_the_list_is_complete() {
        let mut unfinished = listed(&["a", "b"]);
        unfinished.pop();
        check(unfinished, &[], 0);
        check(listed(&["a", "b"]), &["a", "b"], 1);
        check(listed(&[]), &[], 1);
    }

    #[test]
    fn a_list_that_begins_anew_shrinks_nothing_before_its_end() {
        let mut unfinished = listed(&["a"]);
        unfinished.pop();
        check(then(listed(&["a", "b"]), unfinished), &["a", "b"], 1);
        check(then(listed(&["a", "b"]), listed(&["a"])), &["a"], 2);
        check(then(listed(&["a", "b"]), listed(&["a", "b"])), &["a", "b"], 1);
    }

    #[test]
    fn a_list_that_broke_off_leaves_nothing_behind() {
        let mut unfinished = listed(&["gone"]);
        unfinished.pop();
        check(then(unfinished, listed(&["a"])), &["a"], 1);
    }

    #[test]
    fn late_and_repeated_events_change_nothing() {
        let applied = |name, version| Event::Apply(object(name, version));
        let events = vec![applied("a", "1"), applied("a", "2"), applied("a", "2")];
        check(then(listed(&["a"]), events), &["a"], 2);
        let events = vec![Event::Delete(object("a", "2")), Event::Delete(object("a", "2"))];
        check(then(listed(&["a"]), events), &[], 2);
        check(then(listed(&["a"]), vec![applied("a", "none")]), &[], 2);
    }
}
