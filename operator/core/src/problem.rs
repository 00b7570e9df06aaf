//! What a user wrote and we cannot do, said on the object.

use crate::id::ObjectId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A user's mistake, or something of theirs that we cannot do yet: which object, which field, why, and the mend.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// The object at fault.
    pub subject: ObjectId,
    /// The path of the field (`spec.retries.perTryTimeout`), empty for the whole object.
    pub field: String,
    /// The kind of mistake, for machines.
    pub reason: Reason,
    /// What is wrong and what to do, for people.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.subject)?;
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// The kinds of problems; the names are part of the API (status, metrics).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Reason {
    /// A value outside its range or of the wrong shape; the object's section is not used.
    Invalid,
    /// A field that is known but not supported yet; the rest of the object is used.
    NotYetSupported,
    /// The target does not exist (yet).
    TargetNotFound,
    /// Another object, older or first by its name, already says this for the same target.
    Conflicted,
    /// A value that is understood and cannot change anything where it stands; the rest of the object is used.
    NoEffect,
    /// What a door should keep, at workloads of the target that have no door, or another way in beside it.
    NotEnforced,
    /// `perTryTimeout` is longer than the request's timeout.
    ExceedsRequestTimeout,
    /// A door's mode is weaker than a floor above it; the floor holds.
    BelowFloor,
    /// Two namespaces have a service of this name and a third calls it by its short name.
    AmbiguousName,
    /// A proxy refused the configuration made from this object; the last good one stays.
    Rejected,
    /// The split a canary asks for cannot be made.
    Unsplittable,
    /// No ready instance has the version that a canary calls stable.
    VersionNotReady,
}

impl Reason {
    /// Whether a canary with such a problem decides about no service.
    pub fn stands_aside(self) -> bool {
        matches!(self, Reason::Conflicted | Reason::TargetNotFound | Reason::Unsplittable)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
