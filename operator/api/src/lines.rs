//! Where the fields of an object stand in its file.

use crate::{
    field::FieldPath,
    tree::{Location, Node, Value},
};
use std::collections::BTreeMap;

/// Where an object and its fields stand, so that what is found out about them later is told with a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    start: Location,
    /// By the fields' paths, as they are printed.
    fields: BTreeMap<String, Location>,
}

impl Lines {
    /// Those of an object of which only its beginning is known.
    pub fn from(start: Location) -> Self {
        Lines { start, fields: BTreeMap::new() }
    }

    pub(crate) fn of(root: &Node) -> Self {
        let mut lines = Lines::from(root.at);
        lines.note(root, &FieldPath::root());
        lines
    }

    fn note(&mut self, node: &Node, path: &FieldPath) {
        let mut field = |path: FieldPath, at, value| {
            self.fields.insert(path.to_string(), at);
            self.note(value, &path);
        };
        match &node.value {
            Value::Scalar { .. } => {}
            Value::List(items) => {
                items.iter().enumerate().for_each(|(index, item)| field(path.index(index), item.at, item));
            }
            Value::Map(entries) => {
                entries.iter().for_each(|entry| field(path.key(&entry.key), entry.key_at, &entry.value));
            }
        }
    }

    /// Where a field stands (`spec.steps[1].weight`); if it is not there, what would hold it.
    pub fn locate(&self, field: &str) -> Location {
        let mut held = field;
        loop {
            if let Some(at) = self.fields.get(held) {
                return *at;
            }
            match held.rfind(['.', '[']) {
                Some(end) => held = &held[..end],
                None => return self.start,
            }
        }
    }
}
