//! What a text with a grammar of its own is held to.
//!
//! Each has one [`Shape`]: the pattern the schema publishes and the function that reads the text. The API server
//! checks the pattern; we check with the function, which also says what is wrong and what to write.

use schemars::{Schema, json_schema};

/// A text that does not have its field's grammar.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}; {mend}")]
pub struct Misshapen {
    /// What is wrong with it.
    pub message: String,
    /// What to write instead.
    pub mend: &'static str,
}

impl Misshapen {
    pub(crate) fn new(text: &str, wrong: &str, mend: &'static str) -> Self {
        let shown: String = text.chars().take(80).collect();
        Misshapen { message: format!("{shown:?} {wrong}"), mend }
    }
}

/// The grammar of a text.
pub(crate) struct Shape {
    /// For the schema: RE2, anchored.
    pub(crate) pattern: &'static str,
    /// For the schema, in characters.
    pub(crate) length_max: u32,
    /// For the schema.
    pub(crate) description: &'static str,
    /// For people who left it out.
    pub(crate) wanted: &'static str,
    /// Whether a text has the shape.
    pub(crate) check: fn(&str) -> Result<(), Misshapen>,
}

impl Shape {
    pub(crate) fn schema(&self) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": self.pattern,
            "maxLength": self.length_max,
            "description": self.description,
        })
    }
}

/// Serde and schema of a type that is written as a text with a shape.
macro_rules! written_as {
    ($type:ident, $shape:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $shape.schema()
            }
        }
    };
}

pub(crate) use written_as;

#[cfg(test)]
pub(crate) mod tests {
    use super::Misshapen;
    use std::{fmt, str::FromStr};

    /// How a text is read and written again, or why it is refused.
    pub(crate) fn check<T: FromStr<Err = Misshapen> + fmt::Display>(text: &str, expected: &str) {
        let said = text.parse::<T>().map_or_else(|refusal| refusal.to_string(), |value| value.to_string());
        assert_eq!(said, expected, "{text}");
    }
}
