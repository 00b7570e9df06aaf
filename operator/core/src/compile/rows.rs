//! A value that governs calls or a door as users read it, and where it came from.

use crate::{
    id::ObjectId,
    policy::{AccessSpec, Http2, LoadBalancing, Millis, MtlsMode, RetryMethods, RetryOn},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The path of the field in a `MeshPolicy` (`spec.timeouts.request`).
    pub field: String,
    /// The value as users write it; `none` where nothing is said and nothing applies.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Origin {
    /// Nobody said anything: Airlane's own.
    Default,
    /// An object says so.
    Object(ObjectId),
}

impl Origin {
    pub(super) fn of(object: Option<&ObjectId>) -> Self {
        object.map_or(Origin::Default, |object| Origin::Object(object.clone()))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Object(object) => object.fmt(f),
        }
    }
}

/// A value as users write it.
pub(super) trait Written {
    fn written(&self) -> String;
}

macro_rules! written_by_display {
    ($($type:ty),*) => { $(impl Written for $type { fn written(&self) -> String { self.to_string() } })* };
}
written_by_display!(Millis, u32, LoadBalancing, Http2, MtlsMode);

impl Written for AccessSpec {
    fn written(&self) -> String {
        let default = if self.admits_others { "Allow" } else { "Deny" };
        let names = list(self.rules.iter().map(|rule| rule.name.as_str()));
        format!("{default} but {names}, {}", self.mode)
    }
}

impl Written for String {
    fn written(&self) -> String {
        format!("{self:?}")
    }
}

impl Written for Vec<RetryOn> {
    fn written(&self) -> String {
        list(self.iter().map(|condition| condition.as_str()))
    }
}

impl Written for Vec<RetryMethods> {
    fn written(&self) -> String {
        list(self.iter().map(|methods| match methods {
            RetryMethods::Idempotent => "Idempotent",
            RetryMethods::All => "All",
            RetryMethods::Method(method) => method,
        }))
    }
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}
