//! The objects in a directory, as values: what happens to them when a file is edited, broken, emptied or deleted.
//!
//! A file in error loses nothing: what it held before stays in force, object by object, until the file can be read
//! again. Pure; the watching is in [`super::standalone`].

use airlane_api::{FileError, Parsed, Refused, Value};
use airlane_core::{
    id::ObjectId,
    policy::{CallsSpec, MtlsMode, MtlsSpec, Policy},
    problem::{Problem, Reason},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// An object in force.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Accepted {
    /// The file it is in.
    pub(crate) file: PathBuf,
    /// Counts the different versions seen since the operator started.
    pub(crate) generation: i64,
    /// What it says; `None` if nothing of it can be used yet.
    pub(crate) value: Option<Value>,
    /// What is wrong with it though it is used.
    pub(crate) problems: Vec<Problem>,
    /// The file is in error now, and this is an earlier version.
    pub(crate) outdated: bool,
}

/// Every object in force, and what is wrong with the files.
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Manifests {
    /// By name.
    pub(crate) objects: BTreeMap<ObjectId, Arc<Accepted>>,
    /// What could not be used, file by file.
    pub(crate) errors: BTreeMap<PathBuf, Vec<FileError>>,
}

impl Manifests {
    /// What is in force after `file` was read.
    pub(crate) fn read(&mut self, file: &Path, parsed: Parsed) {
        let mut errors = parsed.errors;
        let mut said = BTreeSet::new();
        for object in parsed.objects {
            if let Some(elsewhere) = self.objects.get(&object.id).filter(|accepted| accepted.file != file) {
                errors.push(FileError {
                    file: object.file,
                    location: object.location,
                    object: Some(object.id),
                    field: String::new(),
                    message: format!("it stands in {} already", elsewhere.file.display()),
                    mend: "delete one of the two".to_owned(),
                });
                continue;
            }
            said.insert(object.id.clone());
            self.accept(object.id, file, object.value, object.problems);
        }
        for refused in parsed.refused {
            if let Some(id) = self.fail_closed(file, refused) {
                said.insert(id);
            }
        }
        let broken = !errors.is_empty();
        for (id, accepted) in &mut self.objects {
            if accepted.file == file && !said.contains(id) && broken {
                Arc::make_mut(accepted).outdated = true;
            }
        }
        if broken {
            self.errors.insert(file.to_owned(), errors);
        } else {
            self.errors.remove(file);
            self.objects.retain(|id, accepted| accepted.file != file || said.contains(id));
        }
    }

    /// A door whose policy was never understood is shut to all but the mesh: somebody wanted it kept, and we cannot
    /// know how. The policy's name if that was done.
    fn fail_closed(&mut self, file: &Path, refused: Refused) -> Option<ObjectId> {
        let (id, target) = (refused.id?, refused.target?);
        let strict = |accepted: &Arc<Accepted>| {
            accepted.problems.iter().any(|problem| problem.reason == Reason::Invalid)
        };
        if !refused.mtls || self.objects.get(&id).is_some_and(|accepted| !strict(accepted)) {
            return None;
        }
        let problem = Problem {
            subject: id.clone(),
            field: "spec.mtls".to_owned(),
            reason: Reason::Invalid,
            message: "it was never understood: mode Strict holds for its target until the file is mended"
                .to_owned(),
        };
        let policy = Policy {
            id: id.clone(),
            generation: 0,
            age_rank: 0,
            target,
            calls: CallsSpec::default(),
            mtls: Some(MtlsSpec { mode: Some(MtlsMode::Strict), ..MtlsSpec::default() }),
        };
        self.accept(id.clone(), file, Some(Value::Policy(policy)), vec![problem]);
        Some(id)
    }

    /// What is in force after `file` was deleted.
    pub(crate) fn delete(&mut self, file: &Path) {
        self.errors.remove(file);
        self.objects.retain(|_, accepted| accepted.file != file);
    }

    fn accept(&mut self, id: ObjectId, file: &Path, value: Option<Value>, problems: Vec<Problem>) {
        let generation = match self.objects.get(&id) {
            Some(before) if before.value == value => before.generation,
            Some(before) => before.generation + 1,
            None => 1,
        };
        let accepted = Accepted { file: file.to_owned(), generation, value, problems, outdated: false };
        if self.objects.get(&id).is_none_or(|before| **before != accepted) {
            self.objects.insert(id, Arc::new(accepted));
        }
    }
}
