//! Where in an object, and what is wrong there.

use crate::tree::{Location, Node, Value};
use std::fmt;

/// The path of a field, printed `spec.steps[1].weight`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct FieldPath(Vec<Segment>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Segment {
    Key(String),
    Index(usize),
}

impl FieldPath {
    /// The whole object.
    pub(crate) fn root() -> Self {
        FieldPath::default()
    }

    /// A path of keys without dots in them, as it is printed.
    pub(crate) fn of(dotted: &str) -> Self {
        FieldPath(dotted.split('.').map(|key| Segment::Key(key.into())).collect())
    }

    /// A field of this map.
    pub(crate) fn key(&self, key: &str) -> Self {
        self.with(Segment::Key(key.chars().take(80).collect()))
    }

    /// An item of this list, from 0.
    pub(crate) fn index(&self, index: usize) -> Self {
        self.with(Segment::Index(index))
    }

    fn with(&self, segment: Segment) -> Self {
        FieldPath(self.0.iter().cloned().chain([segment]).collect())
    }

    /// Where the field stands in a document; if it is not there, what would hold it.
    pub(crate) fn locate(&self, root: &Node) -> Location {
        let mut node = root;
        let mut at = root.at;
        for segment in &self.0 {
            let next = match (&node.value, segment) {
                (Value::Map(entries), Segment::Key(key)) => {
                    entries.iter().find(|entry| entry.key == *key).map(|entry| (&entry.value, entry.key_at))
                }
                (Value::List(items), Segment::Index(index)) => items.get(*index).map(|item| (item, item.at)),
                _ => None,
            };
            let Some((value, found_at)) = next else { break };
            (node, at) = (value, found_at);
        }
        at
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if !key.chars().all(|c| c.is_ascii_alphanumeric()) => {
                    write!(f, "[{key:?}]")?;
                }
                Segment::Key(key) if position == 0 => write!(f, "{key}")?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Something wrong in an object, for which the object is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Finding {
    /// Where, if it is known better than the path tells.
    pub(crate) at: Option<Location>,
    /// In which field.
    pub(crate) path: FieldPath,
    /// What is wrong, with the text that is.
    pub(crate) message: String,
    /// What to do.
    pub(crate) mend: String,
}
