//! A document as a tree whose every node knows its line.
//!
//! Scalars keep their text: whether `yes` is a word or a truth is decided where the field's type is known.

use serde_json::Value as Json;

/// A place in a file, both from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Location {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl Location {
    /// The first character of a file.
    pub const START: Location = Location { line: 1, column: 1 };
}

/// A node and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: Location,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// `plain`: written without quotes, so that it may also be a number, a truth or nothing.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    /// In the author's order; keys are unique.
    Map(Vec<Entry>),
}

/// One `key: value`.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_at: Location,
    pub(crate) value: Node,
}

impl From<&Json> for Node {
    /// The tree of a value that has no lines: every node stands at [`Location::START`].
    fn from(json: &Json) -> Self {
        let plain = |text: String| Value::Scalar { text, plain: true };
        let value = match json {
            Json::Null => plain("null".into()),
            Json::Bool(truth) => plain(truth.to_string()),
            Json::Number(number) => plain(number.to_string()),
            Json::String(text) => Value::Scalar { text: text.clone(), plain: false },
            Json::Array(items) => Value::List(items.iter().map(Node::from).collect()),
            Json::Object(fields) => Value::Map(
                fields
                    .iter()
                    .map(|(key, value)| Entry {
                        key: key.clone(),
                        key_at: Location::START,
                        value: Node::from(value),
                    })
                    .collect(),
            ),
        };
        Node { at: Location::START, value }
    }
}

impl Node {
    /// The value of a key, if this is a map that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The value of a key, to be changed.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        match &mut self.value {
            Value::Map(entries) => {
                entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.value)
            }
            _ => None,
        }
    }

    /// Forgets the keys that are not `kept`.
    pub(crate) fn retain(&mut self, kept: impl Fn(&str) -> bool) {
        if let Value::Map(entries) = &mut self.value {
            entries.retain(|entry| kept(&entry.key));
        }
    }

    /// The text of a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether nothing is written here (`null` of the YAML 1.2 core schema).
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// How deep it is nested; a scalar: 1.
    pub(crate) fn height(&self) -> usize {
        match &self.value {
            Value::Scalar { .. } => 1,
            Value::List(items) => 1 + items.iter().map(Node::height).max().unwrap_or(0),
            Value::Map(entries) => 1 + entries.iter().map(|entry| entry.value.height()).max().unwrap_or(0),
        }
    }

    /// How many nodes it has, itself included.
    pub(crate) fn size(&self) -> usize {
        match &self.value {
            Value::Scalar { .. } => 1,
            Value::List(items) => 1 + items.iter().map(Node::size).sum::<usize>(),
            Value::Map(entries) => 1 + entries.iter().map(|entry| entry.value.size()).sum::<usize>(),
        }
    }
}
