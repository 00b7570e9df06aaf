//! A document against its kind's structural schema: the same schema the API server gets, so that both modes accept
//! the same objects. All that is wrong is found at once, each finding with its place and its mend.

use crate::{
    field::{FieldPath, Finding},
    name, quantity, request,
    shape::Shape,
    text,
    tree::{Entry, Location, Node, Value},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value as Json};
use std::{borrow::Cow, collections::HashMap};

/// A field whose shape is known and whose meaning is not supported yet. It is accepted and reported, never dropped in
/// silence.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(transparent)]
pub struct NotYet<T = Json>(pub T);

/// The title by which a schema says that its meaning is not supported yet.
pub(crate) const NOT_YET: &str = "NotSupportedYet";

impl<T: JsonSchema> JsonSchema for NotYet<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("NotYet_{}", T::schema_name()).into()
    }
    fn schema_id() -> Cow<'static, str> {
        format!("NotYet<{}>", T::schema_id()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = generator.subschema_for::<T>();
        schema.insert("title".into(), NOT_YET.into());
        schema
    }
}

/// The structural schema of a type that is no custom resource of its own, made as kube's derive makes those.
///
/// # Errors
/// If the type's schema is not a structural one.
pub(crate) fn of<T: JsonSchema>() -> Result<JSONSchemaProps, serde_json::Error> {
    let generator = SchemaSettings::openapi3()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .with_transform(schemars::transform::AddNullable::default())
        .with_transform(kube::core::schema::StructuralSchemaRewriter)
        .with_transform(kube::core::schema::OptionalEnum)
        .with_transform(kube::core::schema::OptionalIntOrString)
        .into_generator();
    serde_json::to_value(generator.into_root_schema_for::<T>()).and_then(serde_json::from_value)
}

/// What a document says, once its schema has been laid beside it.
#[derive(Default)]
pub(crate) struct Checked {
    /// The document, every scalar of the type its field has. Only what passed is in it.
    pub(crate) json: Json,
    /// What is wrong.
    pub(crate) findings: Vec<Finding>,
    /// The fields that are there and not supported yet.
    pub(crate) not_yet: Vec<FieldPath>,
}

/// Lays a schema beside a node.
pub(crate) fn check(schema: &JSONSchemaProps, node: &Node) -> Checked {
    let mut check = Check::default();
    let json = check.node(schema, node, &FieldPath::root()).unwrap_or(Json::Null);
    Checked { json, findings: check.findings, not_yet: check.not_yet }
}

#[derive(Default)]
struct Check {
    findings: Vec<Finding>,
    not_yet: Vec<FieldPath>,
    /// Inside a field that is not supported yet: what is below it need not be told again.
    in_not_yet: bool,
}

impl Check {
    fn find(&mut self, at: Location, path: &FieldPath, message: impl Into<String>, mend: impl Into<String>) {
        self.findings.push(Finding {
            at: Some(at),
            path: path.clone(),
            message: message.into(),
            mend: mend.into(),
        });
    }

    fn node(&mut self, schema: &JSONSchemaProps, node: &Node, path: &FieldPath) -> Option<Json> {
        if self.in_not_yet || schema.title.as_deref() != Some(NOT_YET) {
            return self.value(schema, node, path);
        }
        self.not_yet.push(path.clone());
        self.in_not_yet = true;
        let json = self.value(schema, node, path);
        self.in_not_yet = false;
        json
    }

    fn value(&mut self, schema: &JSONSchemaProps, node: &Node, path: &FieldPath) -> Option<Json> {
        match (schema.type_.as_deref(), &node.value) {
            (Some(_), _) if node.is_null() => {
                self.find(node.at, path, "has no value", format!("{}, or remove it", expectation(schema)));
                None
            }
            (None, _) => Some(untyped(node)),
            (Some("object"), Value::Map(entries)) => Some(self.map(schema, node, entries, path)),
            (Some("array"), Value::List(items)) => Some(self.list(schema, node, items, path)),
            (Some("string"), Value::Scalar { text, plain }) => {
                self.text(schema, node, text, *plain, path).then(|| Json::from(text.as_str()))
            }
            (Some("integer"), Value::Scalar { text, plain: true }) => {
                self.integer(schema, node, text, path).map(Json::from)
            }
            (Some("number"), Value::Scalar { text, plain: true }) => {
                let number = text.parse().ok().filter(|_| is_number(text)).and_then(Number::from_f64);
                if number.is_none() {
                    self.find(node.at, path, format!("{text:?} is not a number"), "write it as in 12 or 0.5");
                }
                number.map(Json::Number)
            }
            (Some("boolean"), Value::Scalar { text, plain: true }) => {
                let truth = truth(text);
                if truth.is_none() {
                    self.find(
                        node.at,
                        path,
                        format!("{text:?} is neither true nor false"),
                        "write true or false",
                    );
                }
                truth.map(Json::from)
            }
            (Some(wanted), _) => {
                let (wanted, mend) = match wanted {
                    "object" => ("a map", "write its fields below it, indented, or in { }".to_string()),
                    "array" => ("a list", "begin each item with `- `, or write it in [ ]".to_string()),
                    "string" => ("a text", expectation(schema)),
                    "boolean" => ("true or false", "write true or false, without quotes".to_string()),
                    "number" => ("a number", "write it without quotes".to_string()),
                    _ => ("a whole number", "write it without quotes".to_string()),
                };
                self.find(node.at, path, format!("{wanted} is wanted here, not {}", kind(node)), mend);
                None
            }
        }
    }

    fn map(&mut self, schema: &JSONSchemaProps, node: &Node, entries: &[Entry], path: &FieldPath) -> Json {
        let mut json = serde_json::Map::new();
        let values = match &schema.additional_properties {
            Some(JSONSchemaPropsOrBool::Schema(values)) => Some(&**values),
            _ => None,
        };
        let empty = Default::default();
        let properties = schema.properties.as_ref().unwrap_or(&empty);
        for Entry { key, key_at, value } in entries {
            let path = path.key(key);
            let Some(property) = properties.get(key).or(values) else {
                let (message, mend) = unknown(key, properties.keys().map(String::as_str));
                self.find(*key_at, &path, message, mend);
                continue;
            };
            if value.is_null() && property.nullable == Some(true) {
                continue;
            }
            if let Some(value) = self.node(property, value, &path) {
                json.insert(key.clone(), value);
            }
        }
        for name in schema.required.iter().flatten() {
            if node.get(name).is_none() {
                let mend = properties.get(name).map(expectation).unwrap_or_default();
                self.find(node.at, &path.key(name), "is missing", mend);
            }
        }
        Json::Object(json)
    }

    fn list(&mut self, schema: &JSONSchemaProps, node: &Node, items: &[Node], path: &FieldPath) -> Json {
        let bound = |bound: Option<i64>| bound.and_then(|bound| usize::try_from(bound).ok());
        if let Some(max) = bound(schema.max_items).filter(|max| items.len() > *max) {
            self.find(node.at, path, format!("has {} items", items.len()), format!("write at most {max}"));
            return Json::Null;
        }
        if let Some(min) = bound(schema.min_items).filter(|min| items.len() < *min) {
            self.find(node.at, path, "is empty", format!("write at least {min}"));
        }
        let item_schema = match &schema.items {
            Some(JSONSchemaPropsOrArray::Schema(item)) => Some(&**item),
            _ => None,
        };
        let mut seen: HashMap<&str, usize> = HashMap::new();
        let mut json = Vec::new();
        for (index, item) in items.iter().enumerate() {
            for key in schema.x_kubernetes_list_map_keys.iter().flatten() {
                let Some(text) = item.get(key).and_then(Node::text) else { continue };
                if let Some(first) = seen.insert(text, index) {
                    let message = format!("{text} is given twice, first in {}", path.index(first));
                    self.find(item.at, &path.index(index).key(key), message, "keep one of the two");
                }
            }
            let path = path.index(index);
            json.extend(item_schema.and_then(|schema| self.node(schema, item, &path)));
        }
        Json::Array(json)
    }

    fn text(
        &mut self,
        schema: &JSONSchemaProps,
        node: &Node,
        text: &str,
        plain: bool,
        path: &FieldPath,
    ) -> bool {
        let findings = self.findings.len();
        if let Some(choices) = &schema.enum_ {
            if !choices.iter().any(|choice| choice.0 == text) {
                self.find(node.at, path, format!("{text:?} is not one of its values"), expectation(schema));
            }
        } else if let Some(Err(misshapen)) =
            schema.pattern.as_deref().and_then(shape_of).map(|shape| (shape.check)(text))
        {
            self.find(node.at, path, misshapen.message, misshapen.mend);
        } else if plain && (truth(text).is_some() || is_number(text)) {
            self.find(
                node.at,
                path,
                format!("{text} is not a text without quotes"),
                format!("write \"{text}\""),
            );
        } else {
            let length = text.chars().count();
            let max = schema.max_length.and_then(|max| usize::try_from(max).ok());
            if let Some(max) = max.filter(|max| length > *max) {
                self.find(node.at, path, format!("has {length} characters"), format!("write at most {max}"));
            }
        }
        self.findings.len() == findings
    }

    fn integer(
        &mut self,
        schema: &JSONSchemaProps,
        node: &Node,
        text: &str,
        path: &FieldPath,
    ) -> Option<i64> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_decimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if !is_decimal || (digits.len() > 1 && digits.starts_with('0')) {
            self.find(
                node.at,
                path,
                format!("{text:?} is not a whole number"),
                match text.strip_suffix('%').filter(|digits| digits.parse::<u32>().is_ok()) {
                    Some(percent) => format!("write {percent}"),
                    None => "write it in decimal digits, as in 12".to_owned(),
                },
            );
            return None;
        }
        let bound = |bound: Option<f64>| bound.map_or(String::new(), |bound| format!("{bound}"));
        let (min, max) = (schema.minimum.unwrap_or(f64::MIN), schema.maximum.unwrap_or(f64::MAX));
        match text.parse::<i64>() {
            #[expect(clippy::cast_precision_loss, reason = "bounds are far below 2^53, where f64 is exact")]
            Ok(number) if (min..=max).contains(&(number as f64)) => Some(number),
            _ => {
                let mend = match (schema.minimum, schema.maximum) {
                    (Some(_), Some(_)) => {
                        format!("write {} to {}", bound(schema.minimum), bound(schema.maximum))
                    }
                    (Some(_), None) => format!("write at least {}", bound(schema.minimum)),
                    _ => format!("write at most {}", bound(schema.maximum)),
                };
                self.find(node.at, path, format!("{text} is out of range"), mend);
                None
            }
        }
    }
}

/// What is wrong with a name that is not among the known ones, and the mend: the nearest one if it is near.
pub(crate) fn unknown<'k>(name: &str, known: impl Iterator<Item = &'k str> + Clone) -> (String, String) {
    let shown: String = name.chars().take(80).collect();
    if name == "<<" {
        return ("merge keys are not read".into(), "write the fields out".into());
    }
    let folded = shown.to_lowercase();
    let nearest = known
        .clone()
        .map(|known| (strsim::damerau_levenshtein(&folded, &known.to_lowercase()), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().max(shown.len()) / 3 + 1);
    let mend = match nearest {
        Some((_, nearest)) => format!("did you mean {nearest}?"),
        None => format!("known here: {}", known.collect::<Vec<_>>().join(", ")),
    };
    (format!("there is no field {shown:?} here"), mend)
}

/// Every shape there is.
fn shapes() -> impl Iterator<Item = &'static Shape> {
    quantity::SHAPES.into_iter().chain(name::SHAPES).chain(request::SHAPES).chain(text::SHAPES)
}

/// The shape that a schema's pattern belongs to.
fn shape_of(pattern: &str) -> Option<&'static Shape> {
    shapes().find(|shape| shape.pattern == pattern)
}

/// What a field's schema wants, for the end of a sentence.
fn expectation(schema: &JSONSchemaProps) -> String {
    if let Some(choices) = &schema.enum_ {
        let choices: Vec<&str> = choices.iter().filter_map(|choice| choice.0.as_str()).collect();
        return match &choices[..] {
            [init @ .., last] if !init.is_empty() => format!("write {} or {last}", init.join(", ")),
            _ => format!("write {}", choices.concat()),
        };
    }
    let shape = schema.pattern.as_deref().and_then(shape_of);
    match (shape, schema.type_.as_deref()) {
        (Some(shape), _) => shape.wanted.into(),
        (None, Some("string")) => "write a text".into(),
        (None, Some("integer")) => "write a whole number".into(),
        (None, Some("number")) => "write a number".into(),
        (None, Some("boolean")) => "write true or false".into(),
        (None, Some("array")) => "add a list".into(),
        (None, _) => "add its fields".into(),
    }
}

/// What a node is, in the middle of a sentence.
pub(crate) fn kind(node: &Node) -> &'static str {
    match &node.value {
        Value::Scalar { .. } if node.is_null() => "nothing",
        Value::Scalar { plain: true, text } if truth(text).is_some() => "true or false",
        Value::Scalar { plain: true, text } if is_number(text) => "a number",
        Value::Scalar { .. } => "a text",
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
    }
}

/// A truth of the YAML 1.2 core schema; YAML 1.1's `yes` and `on` are words.
fn truth(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Whether plain text is a number of the YAML 1.2 core schema.
fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let radix = |prefix, radix| {
        text.strip_prefix(prefix)
            .is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix)))
    };
    let decimal = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.bytes().any(|b| b.is_ascii_digit())
        && text.parse::<f64>().is_ok();
    decimal
        || radix("0x", 16)
        || radix("0o", 8)
        || matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN")
}

/// A tree by the YAML 1.2 core schema alone.
fn untyped(node: &Node) -> Json {
    match &node.value {
        Value::Scalar { .. } if node.is_null() => Json::Null,
        Value::Scalar { text, plain: true } => match (truth(text), text.parse::<i64>()) {
            (Some(truth), _) => Json::from(truth),
            (_, Ok(number)) => Json::from(number),
            _ if is_number(text) => {
                text.parse::<f64>().map_or_else(|_| Json::from(text.as_str()), Json::from)
            }
            _ => Json::from(text.as_str()),
        },
        Value::Scalar { text, .. } => Json::from(text.as_str()),
        Value::List(items) => items.iter().map(untyped).collect(),
        Value::Map(entries) => {
            entries.iter().map(|entry| (entry.key.clone(), untyped(&entry.value))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Misshapen;
    use proptest::{prelude::*, string::string_regex};

    /// The API server checks the pattern, we the function: what one lets in the other must know. A year's and a
    /// hundred per cent's bound are ours alone; no pattern can say them.
    #[test]
    fn patterns_and_functions_agree() {
        let beyond_patterns = |refusal: &Misshapen| {
            ["is longer than a year", "is more than everything"]
                .iter()
                .any(|text| refusal.message.ends_with(text))
        };
        for shape in shapes() {
            let texts =
                string_regex(shape.pattern.trim_start_matches('^').trim_end_matches('$')).expect("a pattern");
            let fits = |text: &String| text.len() <= shape.length_max as usize;
            proptest!(|(text in texts.prop_filter("the length is a bound of its own", fits))| {
                if let Err(refusal) = (shape.check)(&text) {
                    prop_assert!(beyond_patterns(&refusal), "{}: {refusal}", shape.pattern);
                }
            });
        }
    }
}
