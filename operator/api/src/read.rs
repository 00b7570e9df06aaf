//! Files of objects, as people write them: text → values of core, or errors that name the file, the line, the
//! object, the field and the mend.

use crate::{
    field::{FieldPath, Finding},
    kind::{Kind, Metadata, SERVER_SET},
    meaning::{self, Remarks},
    mesh_policy::TargetRef,
    schema::{self, Checked},
    yaml::{self, Document, Location, Node},
};
use airlane_core::{
    id::{Namespace, ObjectId},
    policy::{Policy, Target},
    problem::Problem,
    rollout::Canary,
    world::Service,
};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use std::{collections::HashMap, fmt};

/// The longest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What a file says.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The objects that can be used.
    pub objects: Vec<Object>,
    /// The objects that cannot, in which case an earlier good version stays in force.
    pub refused: Vec<Refused>,
    /// Why they cannot, and what else is wrong in the file.
    pub errors: Vec<FileError>,
}

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Which.
    pub id: ObjectId,
    /// What it means; `None` if nothing of it can be used yet, which its problems say.
    pub value: Option<Value>,
    /// What in it is not used, and why; in the order of the fields' names.
    pub problems: Vec<Problem>,
    /// The file it stands in, as given to [`read_file`].
    pub file: String,
    /// Where it begins.
    pub location: Location,
    manifest: Json,
}

impl Object {
    /// The object as its author wrote it, for `-o yaml`; without remarks and what Kubernetes sets itself.
    ///
    /// # Errors
    /// If a value in it has no form in YAML.
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::SerializeError> {
        serde_saphyr::to_string(&self.manifest)
    }
}

/// What an object means. `generation` and `age_rank` are 0: whoever watches the files counts edits.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A `MeshPolicy`.
    Policy(Policy),
    /// A `Canary`, without progress.
    Canary(Canary),
    /// A `Service`.
    Service(Service),
}

/// A document that cannot be used. An earlier good version of its object stays in force.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The file, as given to [`read_file`].
    pub file: String,
    /// Which object, if that much could be read; if not, it may be any that the file held before.
    pub id: Option<ObjectId>,
    /// What it is about, if it is a policy and that much could be read.
    pub target: Option<Target>,
    /// Whether it speaks about `mtls`: a door whose policy was never understood fails closed.
    pub mtls: bool,
    /// Where it begins.
    pub location: Location,
}

/// A mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// The file, as given to [`read_file`].
    pub file: String,
    /// Where.
    pub location: Location,
    /// The object, if that much could be read.
    pub object: Option<ObjectId>,
    /// The path of the field; empty: the whole object.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub mend: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.location.line)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}; {}", self.message, self.mend)
    }
}

impl std::error::Error for FileError {}

/// Reads a file of YAML documents, or one of JSON. One bad document does not hide the others.
///
/// `file` is only told, never opened. In `system_namespace`, a policy without target is about the whole mesh.
pub fn read_file(file: &str, text: &str, system_namespace: &Namespace) -> Parsed {
    let mut parsed = Parsed::default();
    if text.len() > FILE_BYTES_MAX {
        parsed.errors.push(FileError {
            file: file.into(),
            location: Location::START,
            object: None,
            field: String::new(),
            message: format!("the file has {} bytes", text.len()),
            mend: format!("split it into files of at most {FILE_BYTES_MAX}"),
        });
        return parsed;
    }
    for document in yaml::documents(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        Reader { file, system_namespace, parsed: &mut parsed }.document(document);
    }
    parsed.errors.sort_by_key(|error| error.location);
    parsed
}

/// One set of objects from many files. Of two objects of one name the first is kept and the second is an error.
pub fn merge(files: impl IntoIterator<Item = Parsed>) -> Parsed {
    let mut merged = Parsed::default();
    let mut first: HashMap<ObjectId, (String, usize)> = HashMap::new();
    for Parsed { objects, refused, errors } in files {
        merged.refused.extend(refused);
        merged.errors.extend(errors);
        for object in objects {
            if let Some((file, line)) = first.get(&object.id) {
                merged.errors.push(FileError {
                    file: object.file,
                    location: object.location,
                    object: Some(object.id),
                    field: String::new(),
                    message: format!("is already in {file}:{line}"),
                    mend: "remove or rename one of the two".into(),
                });
                continue;
            }
            first.insert(object.id.clone(), (object.file.clone(), object.location.line));
            merged.objects.push(object);
        }
    }
    merged
}

struct Reader<'a> {
    file: &'a str,
    system_namespace: &'a Namespace,
    parsed: &'a mut Parsed,
}

impl Reader<'_> {
    fn document(&mut self, document: Document) {
        let Document { at, root, errors: syntax } = document;
        let syntax = syntax.into_iter().map(|error| Finding {
            at: Some(error.at),
            path: FieldPath::root(),
            message: error.message,
            mend: error.mend,
        });
        let mut findings: Vec<Finding> = syntax.collect();
        let Some(mut root) = root else {
            return self.refuse(None, &findings, Unread { at, target: None, mtls: false });
        };
        if root.is_null() && findings.is_empty() {
            return;
        }
        let kind = match Kind::of(&root) {
            Ok(kind) => kind,
            Err(finding) => {
                findings.push(finding);
                return self.refuse(None, &findings, Unread { at, target: None, mtls: false });
            }
        };
        root.remove("status");
        if let Some(metadata) = root.get_mut("metadata") {
            SERVER_SET.iter().for_each(|key| metadata.remove(key));
        }
        let mut checked = schema::check(kind.schema(), &root);
        findings.append(&mut checked.findings);
        let metadata: Option<Metadata> = typed(&checked.json["metadata"]).ok();
        let id = metadata.as_ref().and_then(|metadata| identity(kind, metadata, &findings));
        let known = metadata.zip(id.clone()).filter(|_| findings.is_empty());
        match known.map(|(metadata, id)| self.object(kind, id, &metadata, &root, &checked)) {
            Some(Ok(object)) => self.parsed.objects.push(object),
            Some(Err(refusals)) => {
                self.refuse(id.as_ref(), &refusals, self.unread(kind, id.as_ref(), &root, &checked));
            }
            None => self.refuse(id.as_ref(), &findings, self.unread(kind, id.as_ref(), &root, &checked)),
        }
    }

    /// The object, or why it has to be refused for what it means.
    fn object(
        &self,
        kind: Kind,
        id: ObjectId,
        metadata: &Metadata,
        root: &Node,
        checked: &Checked,
    ) -> Result<Object, Vec<Finding>> {
        let mut remarks = Remarks::on(id.clone());
        for path in &checked.not_yet {
            remarks.not_yet(path, kind.without(path));
        }
        let spec = &checked.json["spec"];
        let value = match kind {
            Kind::MeshPolicy => typed(spec).map(|spec| {
                Some(Value::Policy(meaning::policy::policy(&id, &spec, self.system_namespace, &mut remarks)))
            }),
            Kind::Canary => typed(spec).map(|spec| {
                meaning::rollout::canary(&id, metadata.annotations.as_ref(), &spec, &mut remarks)
                    .map(Value::Canary)
            }),
            Kind::Service => {
                typed(spec).map(|spec| Some(Value::Service(meaning::service::service(&id, &spec))))
            }
        };
        let value = value.unwrap_or_else(|finding| {
            remarks.findings.push(finding);
            None
        });
        if !remarks.findings.is_empty() {
            for finding in &mut remarks.findings {
                finding.at = Some(finding.path.locate(root));
            }
            return Err(remarks.findings);
        }
        remarks.problems.sort();
        Ok(Object {
            id,
            value,
            problems: remarks.problems,
            file: self.file.into(),
            location: root.at,
            manifest: checked.json.clone(),
        })
    }

    /// What must be known of a refused object so that its door can fail closed.
    fn unread(&self, kind: Kind, id: Option<&ObjectId>, root: &Node, checked: &Checked) -> Unread {
        let spec = root.get("spec").filter(|_| kind == Kind::MeshPolicy);
        let written = spec.and_then(|spec| spec.get("targetRef"));
        let target_ref = typed::<TargetRef>(&checked.json["spec"]["targetRef"]).ok();
        let about = id.filter(|_| spec.is_some() && (written.is_none() || target_ref.is_some()));
        let target = |id: &ObjectId| {
            meaning::policy::target(&id.namespace, target_ref.as_ref(), self.system_namespace)
        };
        Unread {
            at: root.at,
            target: about.map(target),
            mtls: spec.is_some_and(|spec| spec.get("mtls").is_some()),
        }
    }

    fn refuse(&mut self, id: Option<&ObjectId>, findings: &[Finding], unread: Unread) {
        self.parsed.errors.extend(findings.iter().map(|finding| FileError {
            file: self.file.into(),
            location: finding.at.unwrap_or(unread.at),
            object: id.cloned(),
            field: finding.path.to_string(),
            message: finding.message.clone(),
            mend: finding.mend.clone(),
        }));
        self.parsed.refused.push(Refused {
            file: self.file.into(),
            id: id.cloned(),
            target: unread.target,
            mtls: unread.mtls,
            location: unread.at,
        });
    }
}

/// What of a refused object is still of use.
struct Unread {
    at: Location,
    target: Option<Target>,
    mtls: bool,
}

/// Which object a checked document is, if its name and namespace passed.
fn identity(kind: Kind, metadata: &Metadata, findings: &[Finding]) -> Option<ObjectId> {
    let misnamed = FieldPath::of("metadata.namespace");
    if findings.iter().any(|finding| finding.path == misnamed) {
        return None;
    }
    let namespace = match &metadata.namespace {
        Some(namespace) => namespace.0.clone(),
        None => Namespace::parse(DEFAULT_NAMESPACE).ok()?,
    };
    Some(ObjectId { kind: kind.into(), namespace, name: metadata.name.0.clone() })
}

/// The typed form of what passed its schema. It cannot fail as long as schema and type are of one making; if they
/// ever part, that is told as an error of the object instead of a crash.
fn typed<T: DeserializeOwned>(json: &Json) -> Result<T, Finding> {
    T::deserialize(json).map_err(|error| Finding {
        at: None,
        path: FieldPath::of("spec"),
        message: format!("cannot be read: {error}"),
        mend: "check this section against its schema (airlane crds)".into(),
    })
}
