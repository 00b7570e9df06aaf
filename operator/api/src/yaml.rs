//! YAML text → documents whose every node knows its line.
//!
//! The only module that knows the YAML parser. Scalars keep their text: whether `yes` is a word or a truth is
//! decided where the field's type is known, so YAML 1.1's surprises cannot happen here.

use crate::{
    field::FieldPath,
    tree::{Entry, Location, Node, Value},
};
use serde_saphyr::granit_parser::{Event, Marker, Parser, ScalarStyle, Tag, options};
use std::collections::HashMap;

/// The most nodes of one document, aliases expanded: what bounds a "billion laughs".
const NODES_MAX: usize = 50_000;
/// The deepest nesting, aliases expanded.
const DEPTH_MAX: usize = 64;

/// What is wrong with the text of a document, and the mend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SyntaxError {
    pub(crate) at: Location,
    /// The field, if it is about one.
    pub(crate) path: FieldPath,
    pub(crate) message: String,
    pub(crate) mend: String,
}

impl SyntaxError {
    fn new(at: Location, message: impl Into<String>, mend: impl Into<String>) -> Self {
        SyntaxError { at, path: FieldPath::root(), message: message.into(), mend: mend.into() }
    }
}

/// One document of a file.
pub(crate) struct Document {
    /// Where it begins.
    pub(crate) at: Location,
    /// The tree, or `None` if nothing can be made of the text. An empty document is a null scalar.
    pub(crate) root: Option<Node>,
    /// What is wrong. A document with a root may still have some (a key given twice).
    pub(crate) errors: Vec<SyntaxError>,
}

/// The documents of a text. A document that cannot be read does not hide the next one: a line that starts with
/// `---` is a document's start wherever it stands (YAML 1.2.2, 9.1.2), so documents are cut before they are parsed.
pub(crate) fn documents(text: &str) -> Vec<Document> {
    chunks(text).into_iter().map(|(lines_before, chunk)| document(chunk, lines_before)).collect()
}

/// The texts of the documents, each with the number of lines before it.
fn chunks(text: &str) -> Vec<(usize, &str)> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    let mut has_content = false;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if is_marker && has_content {
            chunks.push((start_line, &text[start..offset]));
        }
        if is_marker {
            (start, start_line, has_content) = (offset, number, true);
        } else if !line.trim().is_empty() && !line.starts_with(['#', '%']) {
            has_content = true;
        }
        offset += line.len();
    }
    if has_content {
        chunks.push((start_line, &text[start..]));
    }
    chunks
}

fn document(chunk: &str, lines_before: usize) -> Document {
    let options = options! {
        emit_comments: false,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(chunk, options),
        lines_before,
        anchors: HashMap::new(),
        nodes: 0,
        errors: Vec::new(),
    };
    let root = match builder.document() {
        Ok(root) => Some(root),
        Err(fatal) => {
            builder.errors.push(fatal);
            None
        }
    };
    if let Some(at) = template(chunk, lines_before).filter(|_| !builder.errors.is_empty()) {
        // What else is wrong is wrong because of it.
        let mend = "render it first, as with `helm template`, and give what comes of it";
        builder.errors = vec![SyntaxError::new(at, "this looks like a Helm template", mend)];
    }
    let start = Location { line: lines_before + 1, column: 1 };
    Document { at: root.as_ref().map_or(start, |root| root.at), root, errors: builder.errors }
}

/// Where a template's first action stands (`{{ .Values.name }}`, `{{- if … }}`), if there is any.
fn template(chunk: &str, lines_before: usize) -> Option<Location> {
    let (number, line) =
        chunk.lines().enumerate().find(|(_, line)| line.contains("{{") && line.contains("}}"))?;
    let column = line.split("{{").next().unwrap_or_default().chars().count() + 1;
    Some(Location { line: lines_before + number + 1, column })
}

struct Builder<'t> {
    parser: Parser<'t, serde_saphyr::granit_parser::StrInput<'t>>,
    lines_before: usize,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    errors: Vec<SyntaxError>,
}

impl<'t> Builder<'t> {
    fn location(&self, marker: &Marker) -> Location {
        Location { line: self.lines_before + marker.line().max(1), column: marker.col() + 1 }
    }

    fn next(&mut self) -> Result<(Event<'t>, Location), SyntaxError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, self.location(&span.start))),
            Some(Err(error)) => Err(SyntaxError::new(
                self.location(error.marker()),
                format!("this is not YAML: {}", error.info()),
                "check the indentation, quotes and brackets here and on the line above",
            )),
            None => Ok((Event::StreamEnd, Location { line: self.lines_before + 1, column: 1 })),
        }
    }

    fn document(&mut self) -> Result<Node, SyntaxError> {
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(..) => {}
                Event::StreamEnd | Event::DocumentEnd => {
                    return Ok(Node { at, value: Value::Scalar { text: String::new(), plain: true } });
                }
                event => {
                    let root = self.node(event, at, 1, &FieldPath::root())?;
                    self.end()?;
                    return Ok(root);
                }
            }
        }
    }

    /// What follows the root: nothing, or text that `...` cut off.
    fn end(&mut self) -> Result<(), SyntaxError> {
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(()),
                Event::DocumentEnd | Event::DocumentStart(..) => {}
                _ => {
                    return Err(SyntaxError::new(
                        at,
                        "a second document starts here",
                        "put a line `---` before it",
                    ));
                }
            }
        }
    }

    fn node(
        &mut self,
        event: Event<'t>,
        at: Location,
        depth: usize,
        path: &FieldPath,
    ) -> Result<Node, SyntaxError> {
        self.spend(1, depth, at)?;
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let forced_text = self.tag(tag.as_deref(), at) == Some("str");
                let plain = style == ScalarStyle::Plain && !forced_text;
                (anchor, Value::Scalar { text: text.into_owned(), plain })
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), at);
                (anchor, self.list(depth, path)?)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), at);
                (anchor, self.map(depth, path)?)
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Err(SyntaxError::new(
                        at,
                        "this alias is inside what it names",
                        "write the value out",
                    ));
                };
                self.spend(node.size(), depth + node.height(), at)?;
                return Ok(node);
            }
            _ => {
                return Err(SyntaxError::new(at, "a value was expected here", "write one"));
            }
        };
        let node = Node { at, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize, path: &FieldPath) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, at) => {
                    let path = path.index(items.len());
                    items.push(self.node(event, at, depth + 1, &path)?);
                }
            }
        }
    }

    fn map(&mut self, depth: usize, path: &FieldPath) -> Result<Value, SyntaxError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, key_at) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Value::Map(entries)),
                key => key,
            };
            let Value::Scalar { text: key, .. } = self.node(event, key_at, depth + 1, path)?.value else {
                return Err(SyntaxError::new(
                    key_at,
                    "a field's name must be a word",
                    "put text with { or [ in quotes",
                ));
            };
            let (event, at) = self.next()?;
            let path = path.key(&key);
            let value = self.node(event, at, depth + 1, &path)?;
            match lines.get(&key) {
                Some(line) => {
                    let message = format!("is given twice, first on line {line}");
                    let error = SyntaxError::new(key_at, message, "keep one of the two");
                    self.errors.push(SyntaxError { path, ..error });
                }
                None => {
                    lines.insert(key.clone(), key_at.line);
                    entries.push(Entry { key, key_at, value });
                }
            }
        }
    }

    /// The tag's name in YAML's core schema. Other tags ask for types we do not have.
    fn tag<'a>(&mut self, tag: Option<&'a Tag>, at: Location) -> Option<&'a str> {
        let tag = tag?;
        let core = tag.core_suffix();
        if core.is_none() {
            self.errors.push(SyntaxError::new(
                at,
                format!("the tag {:?} means nothing here", tag.original()),
                "remove it",
            ));
        }
        core
    }

    fn spend(&mut self, nodes: usize, depth: usize, at: Location) -> Result<(), SyntaxError> {
        self.nodes += nodes;
        if self.nodes > NODES_MAX {
            return Err(SyntaxError::new(
                at,
                format!("the document has more than {NODES_MAX} values, aliases expanded"),
                "split it, and use fewer aliases",
            ));
        }
        if depth > DEPTH_MAX {
            return Err(SyntaxError::new(
                at,
                format!("the document is nested more than {DEPTH_MAX} deep"),
                "flatten it",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A short text of a tree: scalars as written with `'` around quoted ones, `@line` after keys.
    fn show(node: &Node) -> String {
        match &node.value {
            Value::Scalar { text, plain: true } => text.clone(),
            Value::Scalar { text, plain: false } => format!("'{text}'"),
            Value::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
            Value::Map(entries) => {
                let entries =
                    entries.iter().map(|e| format!("{}@{}={}", e.key, e.key_at.line, show(&e.value)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
            }
        }
    }

    fn check(text: &str, expected: &[&str]) {
        let shown: Vec<String> = documents(text)
            .iter()
            .map(|document| {
                let errors = document.errors.iter().map(|e| {
                    let field = e.path.to_string();
                    let field = if field.is_empty() { field } else { format!("{field}: ") };
                    format!("!{}:{} {field}{}", e.at.line, e.at.column, e.message)
                });
                document.root.iter().map(show).chain(errors).collect::<Vec<_>>().join(" ")
            })
            .collect();
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn nodes_know_their_lines_across_documents() {
        check("a: 1\nb:\n  - x\n  - 'y'\n", &["{a@1=1 b@2=[x 'y']}"]);
        check("# head\n---\na: 1\n---\n\nb: 2\n", &["{a@3=1}", "{b@6=2}"]);
        check("a: 1\r\n---\r\nb: 2\r\n", &["{a@1=1}", "{b@3=2}"]);
        check("--- {a: 1}\n--- # nothing\n---\nb: 2", &["{a@1=1}", "~", "{b@4=2}"]);
        check("%YAML 1.2\n---\na: 1\n", &["{a@3=1}"]);
        check("", &[]);
        check("# only a remark\n", &[]);
        check("{\"a\": [true, null]}", &["{a@1=[true null]}"]);
    }

    #[test]
    fn words_stay_words() {
        check("on: yes\nn: 0o17\nv: !!str 5\n", &["{on@1=yes n@2=0o17 v@3='5'}"]);
    }

    #[test]
    fn a_broken_document_does_not_hide_the_next() {
        check("a: [1\n---\nb: 2\n", &["!1:4 this is not YAML: unclosed bracket '['", "{b@3=2}"]);
        check("a: 1\na: 2\n---\nb: 2\n", &["{a@1=1} !2:1 a: is given twice, first on line 1", "{b@4=2}"]);
        check("a: 1\n...\nb: 2\n", &["!3:1 a second document starts here"]);
        check("a: !secret x\n", &["{a@1=x} !1:12 the tag \"!secret\" means nothing here"]);
    }

    #[test]
    fn a_template_is_told_as_one() {
        check("a: 1\nname: {{ .Values.name }}\n", &["!2:7 this looks like a Helm template"]);
        check("{{- if .Values.on }}\na: 1\n{{- end }}\n", &["!1:1 this looks like a Helm template"]);
        check("a: '{{ x }}'\n", &["{a@1='{{ x }}'}"]);
    }

    #[test]
    fn aliases_are_expanded_within_bounds() {
        check("a: &x [1, 2]\nb: *x\n", &["{a@1=[1 2] b@2=[1 2]}"]);
        check("a: &x [*x]\n", &["!1:8 this alias is inside what it names"]);
        let laughs = (1..12).fold("a0: &a0 [x, x, x, x, x, x]\n".to_string(), |text, i| {
            text + &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 6].join(", "))
        });
        let document = documents(&laughs).remove(0);
        assert!(document.root.is_none());
        assert!(document.errors[0].message.contains("more than 50000 values"), "{:?}", document.errors);
        let deep = (1..40).fold("a0: &a0 [x]\n".to_string(), |text, i| {
            text + &format!("a{i}: &a{i} [[[[*a{}]]]]\n", i - 1)
        });
        assert!(documents(&deep)[0].errors[0].message.contains("nested more than 64"));
    }
}
