//! What users declared, wherever it was read.

use airlane_api::{FileError, Lines, Value};
use airlane_core::{
    id::{ObjectId, ServiceId},
    problem::Problem,
    world::Service,
};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// Every object in force.
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Declared {
    /// By name.
    pub(crate) objects: BTreeMap<ObjectId, Arc<Accepted>>,
    /// What could not be used, file by file.
    pub(crate) errors: BTreeMap<PathBuf, Vec<FileError>>,
    /// All services there are; `None` if those exist that somebody registered for, as `objects` may amend them.
    pub(crate) services: Option<BTreeMap<ServiceId, Arc<Service>>>,
}

/// An object in force.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Accepted {
    /// The file it is in; `None` if Kubernetes keeps it.
    pub(crate) file: Option<PathBuf>,
    /// Tells two objects of one name apart, as Kubernetes does; empty elsewhere.
    pub(crate) uid: String,
    /// Counts its different versions: Kubernetes' own count, or those seen since the operator started.
    pub(crate) generation: i64,
    /// The smaller, the older ([`airlane_core::policy::Policy::age_rank`]).
    pub(crate) age_rank: i64,
    /// What it says; `None` if nothing of it can be used yet.
    pub(crate) value: Option<Value>,
    /// What is wrong with it though it is used.
    pub(crate) problems: Vec<Problem>,
    /// The file is in error now, and this is an earlier version.
    pub(crate) outdated: bool,
    /// Where it stands; `None` if Kubernetes keeps it.
    pub(crate) place: Option<Place>,
}

/// Where an object stands in a file.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Place {
    /// The file, as people know it.
    pub(crate) file: String,
    /// Its lines.
    pub(crate) lines: Lines,
}

impl Place {
    /// A problem of the object, with file and line.
    pub(crate) fn tell(&self, problem: &Problem) -> String {
        format!("{}:{}: {problem}", self.file, self.lines.locate(&problem.field).line)
    }
}
