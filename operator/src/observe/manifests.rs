//! The objects in a directory, as values: what happens to them when a file is edited, broken, emptied, moved or
//! deleted.
//!
//! Every file claims the objects that stand in it; [`Manifests::settle`] says which claim is in force. So an object
//! that moves from one file to another is never withdrawn in between, and one that stands in two files outlives the
//! deletion of either. A file in error loses nothing: what it claimed before it goes on claiming, object by object,
//! until it can be read again. Pure; the watching is in [`super::standalone`].

use super::declared::{Accepted, Declared, Place};
use airlane_api::{FileError, Lines, Location, Object, Parsed, Refused, Value};
use airlane_core::{id::ObjectId, problem::Problem};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Whether a file of this name is read if it is one.
pub(super) fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    !is_draft(path) && extension.is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
}

pub(super) fn is_draft(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with(['.', '#']))
}

/// What the files say.
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Manifests {
    declared: Declared,
    files: BTreeMap<PathBuf, Claims>,
}

/// What one file says.
#[derive(Clone, Default, PartialEq, Debug)]
struct Claims {
    objects: BTreeMap<ObjectId, Claim>,
    errors: Vec<FileError>,
    /// The file is gone, and may be about to come back: it claims what nobody else does.
    leaving: bool,
}

#[derive(Clone, PartialEq, Debug)]
struct Claim {
    value: Option<Value>,
    problems: Vec<Problem>,
    /// Where it begins, and what stands where in it.
    location: Location,
    place: Place,
    outdated: bool,
    /// Made up for a policy that was never understood.
    fail_closed: bool,
}

impl Manifests {
    /// What is in force, as settled last.
    pub(crate) fn declared(&self) -> &Declared {
        &self.declared
    }

    /// Notes what `file` says now. [`Manifests::settle`] makes it count.
    pub(crate) fn read(&mut self, file: &Path, parsed: Parsed) {
        let Parsed { objects, refused, errors, passed_over: _ } = parsed;
        let before = self.files.remove(file).unwrap_or_default().objects;
        let mut claims = Claims { errors, ..Claims::default() };
        for object in objects {
            let id = object.id.clone();
            match claims.objects.entry(id.clone()) {
                Entry::Vacant(free) => drop(free.insert(Claim::from(object))),
                Entry::Occupied(first) => {
                    claims.errors.push(Claim::from(object).second_to(first.get(), &id));
                }
            }
        }
        for (id, claim) in refused.into_iter().filter_map(fail_closed) {
            if before.get(&id).is_none_or(|before| before.fail_closed) {
                claims.objects.entry(id).or_insert(claim);
            }
        }
        if !claims.errors.is_empty() {
            for (id, claim) in before {
                claims.objects.entry(id).or_insert(Claim { outdated: true, ..claim });
            }
        }
        self.files.insert(file.to_owned(), claims);
    }

    /// Notes that `file` cannot be read: what it claimed before stays.
    pub(crate) fn unreadable(&mut self, file: &Path, error: FileError) {
        self.read(file, Parsed { errors: vec![error], ..Parsed::default() });
    }

    /// Notes that `file` is gone, perhaps for a moment.
    pub(crate) fn leave(&mut self, file: &Path) {
        if let Some(claims) = self.files.get_mut(file) {
            claims.leaving = true;
        }
    }

    /// Notes that `file` was deleted.
    pub(crate) fn delete(&mut self, file: &Path) {
        self.files.remove(file);
    }

    /// The files that claim anything or are in error.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.keys()
    }

    /// Decides which of the claims are in force. Of several to one object the one in force before stays; a file that
    /// is gone yields to the others, and what was made up to every author.
    pub(crate) fn settle(&mut self) {
        let mut claimed: BTreeMap<&ObjectId, Vec<(&PathBuf, &Claims, &Claim)>> = BTreeMap::new();
        for (file, claims) in &self.files {
            for (id, claim) in &claims.objects {
                claimed.entry(id).or_default().push((file, claims, claim));
            }
        }
        let mut errors: BTreeMap<PathBuf, Vec<FileError>> = self
            .files
            .iter()
            .filter(|(_, claims)| !claims.errors.is_empty() && !claims.leaving)
            .map(|(file, claims)| (file.clone(), claims.errors.clone()))
            .collect();
        let mut objects = BTreeMap::new();
        for (id, mut claims) in claimed {
            let before = self.declared.objects.get(id);
            let held = |file: &Path| before.is_some_and(|before| before.file.as_deref() == Some(file));
            claims.sort_by_key(|(file, claims, claim)| (claims.leaving, claim.fail_closed, !held(file)));
            let Some(((file, _, claim), others)) = claims.split_first() else { continue };
            objects.insert(id.clone(), claim.accepted(file, before));
            for (other, claims, refused) in others {
                // An earlier version in a file in error may have been what moved.
                if !claims.leaving && !refused.outdated && !refused.fail_closed {
                    errors.entry((*other).clone()).or_default().push(refused.second_to(claim, id));
                }
            }
        }
        self.declared = Declared { objects, errors, services: None };
    }
}

impl From<Object> for Claim {
    fn from(object: Object) -> Self {
        Claim {
            value: object.value,
            problems: object.problems,
            location: object.location,
            place: Place { file: object.file, lines: object.lines },
            outdated: false,
            fail_closed: false,
        }
    }
}

impl Claim {
    /// The object in force by this claim; the same allocation while nothing changed.
    fn accepted(&self, file: &Path, before: Option<&Arc<Accepted>>) -> Arc<Accepted> {
        let generation = match before {
            Some(before) if before.value == self.value => before.generation,
            Some(before) => before.generation + 1,
            None => 1,
        };
        let Claim { value, problems, outdated, place, .. } = self.clone();
        let (file, place) = (Some(file.to_owned()), Some(place));
        let accepted =
            Accepted { file, uid: String::new(), generation, age_rank: 0, value, problems, outdated, place };
        match before {
            Some(before) if **before == accepted => before.clone(),
            _ => Arc::new(accepted),
        }
    }

    fn second_to(&self, first: &Claim, id: &ObjectId) -> FileError {
        FileError {
            file: self.place.file.clone(),
            location: self.location,
            object: Some(id.clone()),
            field: String::new(),
            message: format!(
                "it stands in {}:{} already, and that one is in force",
                first.place.file, first.location.line
            ),
            mend: "delete or rename one of the two".to_owned(),
        }
    }
}

/// In the place of a policy that was never understood, a shut door if it is about one.
fn fail_closed(refused: Refused) -> Option<(ObjectId, Claim)> {
    let id = refused.id?;
    let (policy, problems) = refused.unread.shut(&id)?;
    let claim = Claim {
        value: Some(Value::Policy(policy)),
        problems,
        location: refused.location,
        place: Place { file: refused.file, lines: Lines::from(refused.location) },
        outdated: false,
        fail_closed: true,
    };
    Some((id, claim))
}
