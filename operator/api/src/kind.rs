//! The kinds of objects a file may hold.

use crate::{
    canary::Canary,
    crds,
    field::{FieldPath, Finding},
    mesh_policy::MeshPolicy,
    name::{NameText, NamespaceText},
    schema,
    service::ServiceSpec,
    tree::{Node, Value},
};
use airlane_core::id::ObjectKind;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use kube::CustomResourceExt;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{collections::BTreeMap, sync::LazyLock};

/// What Kubernetes writes into `metadata` by itself: it is in every object printed by kubectl and says nothing here.
pub(crate) const SERVER_SET: [&str; 11] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// The group of our own kinds.
const GROUP: &str = "airlane.dev";

/// How many letters may be wrong in a name that is still taken for ours.
const SLIPS_MAX: usize = 2;

/// A kind of object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    MeshPolicy,
    Canary,
    Service,
}

impl From<Kind> for ObjectKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::MeshPolicy => ObjectKind::MeshPolicy,
            Kind::Canary => ObjectKind::Canary,
            Kind::Service => ObjectKind::Service,
        }
    }
}

/// The metadata an author writes.
#[derive(JsonSchema, Deserialize)]
pub(crate) struct Metadata {
    /// The object's name.
    pub(crate) name: NameText,
    /// Its namespace.
    pub(crate) namespace: Option<NamespaceText>,
    /// Marks for people and tools.
    #[expect(dead_code, reason = "known and allowed; nothing here reads them")]
    labels: Option<BTreeMap<String, String>>,
    /// Notes for people and tools; `airlane.dev/promote`, `/abort` and `/retry` are verbs on a Canary.
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl Metadata {
    /// The names of its fields.
    pub(crate) const FIELDS: [&str; 4] = ["annotations", "labels", "name", "namespace"];
}

/// The schemas of whole documents, by kind.
struct Schemas {
    mesh_policy: JSONSchemaProps,
    canary: JSONSchemaProps,
    service: JSONSchemaProps,
}

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(|| Schemas {
    mesh_policy: document(custom::<MeshPolicy>()),
    canary: document(custom::<Canary>()),
    service: {
        let mut spec = structural::<ServiceSpec>();
        crds::strict(&mut spec);
        document(spec)
    },
});

impl Kind {
    const ALL: [Kind; 3] = [Kind::MeshPolicy, Kind::Canary, Kind::Service];

    fn api_version(self) -> &'static str {
        match self {
            Kind::MeshPolicy | Kind::Canary => "airlane.dev/v1alpha1",
            Kind::Service => "v1",
        }
    }

    /// Whether a document is about something that Airlane does not read: an object of Kubernetes or of another program.
    /// What is named nearly as ours is a mistake, and so is a `MeshPolicy` of whatever group: a door must not stay open
    /// for a slip of the pen.
    pub(crate) fn is_foreign(root: &Node) -> bool {
        let text = |name: &str| root.get(name).and_then(Node::text).unwrap_or_default();
        let (kind, api_version) = (text("kind"), text("apiVersion"));
        let is_near = |text: &str, ours: &str| strsim::damerau_levenshtein(text, ours) <= SLIPS_MAX;
        if kind.is_empty() || api_version.is_empty() || is_near(kind, "MeshPolicy") {
            return false;
        }
        match api_version.split_once('/') {
            Some((group, _)) => !is_near(group, GROUP) && !group.starts_with("airlane."),
            None => kind != "List" && !Kind::ALL.iter().any(|known| is_near(kind, &format!("{known:?}"))),
        }
    }

    /// The kind a document says it has.
    pub(crate) fn of(root: &Node) -> Result<Kind, Finding> {
        let find = |path: &str, message: String, mend: String| {
            let path = FieldPath::of(path);
            Finding { at: Some(path.locate(root)), path, message, mend }
        };
        let wanted = match &root.value {
            Value::Map(_) if root.get("kind").and_then(Node::text) == Some("List") => {
                Some("a List is not read".to_owned())
            }
            Value::Map(_) => None,
            _ => Some(format!("an object is wanted here, not {}", schema::kind(root))),
        };
        if let Some(wrong) = wanted {
            let mend = "write each object as a document of its own, from apiVersion: on, with a line `---` between two";
            return Err(Finding {
                at: Some(root.at),
                path: FieldPath::root(),
                message: wrong,
                mend: mend.into(),
            });
        }
        let field = |name: &str, example: &str| {
            let value = root.get(name).and_then(Node::text).filter(|text| !text.is_empty());
            value.ok_or_else(|| find(name, "is missing".into(), format!("add {name}: {example}")))
        };
        let kind = field("kind", "MeshPolicy")?;
        let Some(known) = Kind::ALL.into_iter().find(|known| format!("{known:?}") == kind) else {
            let names = Kind::ALL.map(|known| format!("{known:?}"));
            let (_, mend) = schema::unknown(kind, names.iter().map(String::as_str));
            return Err(find("kind", format!("there is no kind {kind:?} here"), mend));
        };
        let api_version = field("apiVersion", known.api_version())?;
        if api_version != known.api_version() {
            let mend = format!("write {}", known.api_version());
            return Err(find("apiVersion", format!("{api_version:?} has no {kind}"), mend));
        }
        Ok(known)
    }

    /// The schema of a whole document.
    pub(crate) fn schema(self) -> &'static JSONSchemaProps {
        match self {
            Kind::MeshPolicy => &SCHEMAS.mesh_policy,
            Kind::Canary => &SCHEMAS.canary,
            Kind::Service => &SCHEMAS.service,
        }
    }

    /// What happens without a field that is not supported yet.
    pub(crate) fn without(self, path: &FieldPath) -> &'static str {
        match (self, path.to_string().as_str()) {
            (Kind::MeshPolicy, "spec.access.jwt") => "no token is looked at; default and rules alone decide",
            (Kind::MeshPolicy, "spec.rateLimits") => "nothing is limited by it",
            (Kind::Canary, "spec.match" | "spec.gates") => "the canary is held as long as this is here",
            (Kind::Canary, path) if path.ends_with(".latency") || path.ends_with(".metric") => {
                "it is not judged"
            }
            _ => "it has no effect",
        }
    }
}

#[expect(clippy::expect_used, reason = "depends on the type alone; any test would fail")]
fn custom<R: CustomResourceExt>() -> JSONSchemaProps {
    crds::spec::<R>().expect("a custom resource has a schema with a spec")
}

#[expect(clippy::expect_used, reason = "depends on the type alone; any test would fail")]
fn structural<T: JsonSchema>() -> JSONSchemaProps {
    schema::of::<T>().expect("the type has a structural schema")
}

/// The schema of a document with this spec.
fn document(spec: JSONSchemaProps) -> JSONSchemaProps {
    let text = || JSONSchemaProps { type_: Some("string".into()), ..Default::default() };
    let properties =
        [("apiVersion", text()), ("kind", text()), ("metadata", structural::<Metadata>()), ("spec", spec)];
    JSONSchemaProps {
        type_: Some("object".into()),
        required: Some(vec!["metadata".into(), "spec".into()]),
        properties: Some(properties.into_iter().map(|(name, schema)| (name.into(), schema)).collect()),
        ..Default::default()
    }
}
