//! One document → one object: its tree, its schema, its meaning. The same for a document of a file and for an object of
//! an API server, so that both modes understand the same.

use crate::{
    field::{FieldPath, Finding},
    kind::{Kind, Metadata},
    lines::Lines,
    meaning::{self, Remarks},
    mesh_policy::TargetRef,
    schema::{self, Checked},
    tree::{Location, Node},
};
use airlane_core::{
    id::{Namespace, ObjectId, ObjectKind},
    policy::{AccessMode, AccessSpec, CallsSpec, MtlsMode, MtlsSpec, Policy, Target},
    problem::{Problem, Reason},
    rollout::Canary,
    world::Service,
};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Which.
    pub id: ObjectId,
    /// What it means; `None` if nothing of it can be used, which its problems say.
    pub value: Option<Value>,
    /// What in it is not used, and why; in the order of the fields' names.
    pub problems: Vec<Problem>,
    /// For an object of an API server that is refused as a whole: what is known of it all the same. (Of a file's,
    /// [`crate::Parsed::refused`] tells.)
    pub refused: Option<Unread>,
    /// The file it stands in, as given to [`crate::read_file`]; empty if it is an API server's.
    pub file: String,
    /// Where it begins in the file.
    pub location: Location,
    /// Where its fields stand.
    pub lines: Lines,
    pub(crate) manifest: Json,
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

/// What an object means. From a file, `generation` and `age_rank` are 0: whoever watches the files counts edits.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A `MeshPolicy`.
    Policy(Policy),
    /// A `Canary`, without progress.
    Canary(Canary),
    /// A `Service`.
    Service(Service),
}

/// What is known of an object though it is refused: enough for a door to fail closed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unread {
    /// What it is about, if it is a policy and that much could be read.
    pub target: Option<Target>,
    /// Whether it speaks about `mtls`: a door whose policy was never understood fails closed.
    pub mtls: bool,
    /// Whether it speaks about `access`: likewise.
    pub access: bool,
}

impl Unread {
    /// What stands in the place of a policy that was never understood, with what is to be said of it: its door is shut,
    /// to all but the mesh where it speaks of mTLS, to everybody where it says who may come in. Somebody wanted it
    /// kept, and we cannot know how. `None` if it speaks of neither, or of nobody knows what.
    pub fn shut(self, id: &ObjectId) -> Option<(Policy, Vec<Problem>)> {
        let doors = [
            (self.mtls, "spec.mtls", "mode Strict holds for its target"),
            (self.access, "spec.access", "nobody may call its target"),
        ];
        let problem = |field: &str, meanwhile: &str| Problem {
            subject: id.clone(),
            field: field.to_owned(),
            reason: Reason::Invalid,
            message: format!("it was never understood: {meanwhile} until it is mended"),
        };
        let said = doors.into_iter().filter(|(said, ..)| *said);
        let problems: Vec<Problem> = said.map(|(_, field, meanwhile)| problem(field, meanwhile)).collect();
        let nobody = AccessSpec { admits_others: false, mode: AccessMode::Enforce, rules: Vec::new() }.into();
        let policy = Policy {
            id: id.clone(),
            generation: 0,
            age_rank: 0,
            target: self.target.filter(|_| !problems.is_empty())?,
            calls: CallsSpec::default(),
            mtls: self.mtls.then(|| MtlsSpec { mode: Some(MtlsMode::Strict), ..MtlsSpec::default() }),
            access: self.access.then_some(nobody),
        };
        Some((policy, problems))
    }
}

/// What a document means.
pub(crate) struct Meant {
    pub(crate) id: ObjectId,
    pub(crate) value: Option<Value>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) manifest: Json,
}

impl Meant {
    /// The object that stands there.
    pub(crate) fn written(self, file: &str, location: Location, lines: Lines) -> Object {
        let Meant { id, value, problems, manifest } = self;
        Object { id, value, problems, refused: None, file: file.into(), location, lines, manifest }
    }
}

/// A document that is refused.
pub(crate) struct Misread {
    /// Which object it is, if that much could be read.
    pub(crate) id: Option<ObjectId>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) unread: Unread,
}

/// Reads a `MeshPolicy` or a `Canary` as an API server or its admission review gives it. Never fails: what is wrong is
/// among the object's problems, with the field's path.
///
/// A policy or canary carries `metadata.generation`, a policy's rank is its `creationTimestamp` in seconds; progress is
/// in the status, which is not read here. In `system_namespace`, a policy without target is about the whole mesh. An
/// object whose name is not ours to hold (the definitions let none in) goes by the nearest name that is.
pub fn read_object(object: &Json, system_namespace: &Namespace) -> Object {
    let mut root = Node::from(object);
    root.retain(|key| key != "status");
    if let Some(metadata) = root.get_mut("metadata") {
        // Whatever else is there is Kubernetes' own, in this version or a later one.
        metadata.retain(|key| Metadata::FIELDS.contains(&key));
    }
    match interpret(&root, Vec::new(), system_namespace) {
        Ok(mut meant) => {
            let metadata = &object["metadata"];
            let generation = metadata["generation"].as_i64().unwrap_or_default();
            match &mut meant.value {
                Some(Value::Policy(policy)) => {
                    policy.generation = generation;
                    policy.age_rank = created(metadata);
                }
                Some(Value::Canary(canary)) => canary.generation = generation,
                Some(Value::Service(_)) | None => {}
            }
            meant.written("", Location::START, Lines::from(Location::START))
        }
        Err(Misread { id, findings, unread }) => {
            let id = id.unwrap_or_else(|| nearest_id(&root));
            let problem = |finding: Finding| Problem {
                subject: id.clone(),
                field: finding.path.to_string(),
                reason: Reason::Invalid,
                message: format!("{}; {}", finding.message, finding.mend),
            };
            let mut problems: Vec<Problem> = findings.into_iter().map(problem).collect();
            problems.sort();
            let meant = Meant { id, value: None, problems, manifest: object.clone() };
            Object {
                refused: Some(unread),
                ..meant.written("", Location::START, Lines::from(Location::START))
            }
        }
    }
}

/// When the object was made, in seconds; 0 if it is not made yet.
fn created(metadata: &Json) -> i64 {
    let at = metadata["creationTimestamp"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    at.map(Timestamp::as_second).unwrap_or_default()
}

/// Something to call an object by that has no proper name, so that its problems can be told.
fn nearest_id(root: &Node) -> ObjectId {
    let metadata = root.get("metadata");
    let text = |key| metadata.and_then(|metadata| metadata.get(key)).and_then(Node::text).unwrap_or_default();
    ObjectId {
        kind: Kind::of(root).map_or(ObjectKind::MeshPolicy, ObjectKind::from),
        namespace: nearest(text("namespace"), DEFAULT_NAMESPACE),
        name: nearest(text("name"), "unnamed"),
    }
}

/// The text as a label, with `-` for what may not be in one; `instead` (a label) if nothing of it may.
#[expect(clippy::expect_used, reason = "what is left is a label, and so is what stands in for it")]
fn nearest<L: std::str::FromStr<Err: std::fmt::Debug>>(text: &str, instead: &str) -> L {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let folded = text.chars().take(63).map(|c| c.to_ascii_lowercase());
    let label: String = folded.map(|c| if legal(c) { c } else { '-' }).collect();
    let label = label.trim_matches('-');
    if label.is_empty() { instead } else { label }.parse().expect("a label")
}

/// Says what a document means, or why it means nothing. `findings` are those already made about its text.
pub(crate) fn interpret(
    root: &Node,
    mut findings: Vec<Finding>,
    system_namespace: &Namespace,
) -> Result<Meant, Misread> {
    let kind = match Kind::of(root) {
        Ok(kind) => kind,
        Err(finding) => {
            findings.push(finding);
            return Err(Misread { id: None, findings, unread: Unread::default() });
        }
    };
    let mut checked = schema::check(kind.schema(), root);
    findings.append(&mut checked.findings);
    let metadata: Option<Metadata> = typed(&checked.json["metadata"]).ok();
    let id = metadata.as_ref().and_then(|metadata| identity(kind, metadata, &findings));
    let known = metadata.zip(id.clone()).filter(|_| findings.is_empty());
    let findings = match known.map(|(metadata, id)| mean(kind, id, &metadata, &checked, system_namespace)) {
        Some(Ok(meant)) => return Ok(meant),
        Some(Err(refusals)) => refusals,
        None => findings,
    };
    let findings = findings
        .into_iter()
        .map(|finding| Finding { at: finding.at.or_else(|| Some(finding.path.locate(root))), ..finding });
    let unread = Unread::of(kind, id.as_ref(), root, &checked, system_namespace);
    Err(Misread { id, findings: findings.collect(), unread })
}

/// The object, or why it has to be refused for what it means.
fn mean(
    kind: Kind,
    id: ObjectId,
    metadata: &Metadata,
    checked: &Checked,
    system_namespace: &Namespace,
) -> Result<Meant, Vec<Finding>> {
    let mut remarks = Remarks::on(id.clone());
    for path in &checked.not_yet {
        match kind {
            Kind::Service => remarks.in_kubernetes_alone(path),
            Kind::MeshPolicy | Kind::Canary => remarks.not_yet(path, kind.without(path)),
        }
    }
    let spec = &checked.json["spec"];
    let value = match kind {
        Kind::MeshPolicy => typed(spec).map(|spec| {
            Some(Value::Policy(meaning::policy::policy(&id, &spec, system_namespace, &mut remarks)))
        }),
        Kind::Canary => typed(spec).map(|spec| {
            meaning::rollout::canary(&id, metadata.annotations.as_ref(), &spec, &mut remarks)
                .map(Value::Canary)
        }),
        Kind::Service => {
            typed(spec).map(|spec| Some(Value::Service(meaning::service::service(&id, &spec, &mut remarks))))
        }
    };
    let value = value.unwrap_or_else(|finding| {
        remarks.findings.push(finding);
        None
    });
    if !remarks.findings.is_empty() {
        return Err(remarks.findings);
    }
    remarks.problems.sort();
    Ok(Meant { id, value, problems: remarks.problems, manifest: checked.json.clone() })
}

impl Unread {
    fn of(
        kind: Kind,
        id: Option<&ObjectId>,
        root: &Node,
        checked: &Checked,
        system_namespace: &Namespace,
    ) -> Self {
        let spec = root.get("spec").filter(|_| kind == Kind::MeshPolicy);
        let written = spec.and_then(|spec| spec.get("targetRef"));
        let target_ref = typed::<TargetRef>(&checked.json["spec"]["targetRef"]).ok();
        let about = id.filter(|_| spec.is_some() && (written.is_none() || target_ref.is_some()));
        let target =
            |id: &ObjectId| meaning::policy::target(&id.namespace, target_ref.as_ref(), system_namespace);
        let says = |section: &str| spec.is_some_and(|spec| spec.get(section).is_some());
        Unread { target: about.and_then(target), mtls: says("mtls"), access: says("access") }
    }
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
