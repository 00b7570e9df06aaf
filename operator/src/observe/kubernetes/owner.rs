//! What controls a pod: the workload that it is a copy of, by its own name.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::fmt;

/// A kind of workload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Kind {
    /// Copies that are alike.
    Deployment,
    /// Copies with names of their own.
    StatefulSet,
    /// A copy on each node.
    DaemonSet,
    /// Copies that end by themselves.
    Job,
    /// A pod without a controller.
    Pod,
    /// Something that Kubernetes does not come with, or that nobody uses by itself.
    Other,
}

impl Kind {
    /// The kind that an owner reference names.
    pub(crate) fn of(kind: &str) -> Kind {
        match kind {
            "Deployment" => Kind::Deployment,
            "StatefulSet" => Kind::StatefulSet,
            "DaemonSet" => Kind::DaemonSet,
            "Job" => Kind::Job,
            _ => Kind::Other,
        }
    }
}

/// A workload of a namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Workload {
    /// What it is.
    pub(crate) kind: Kind,
    /// Its name, as it was given.
    pub(crate) name: String,
}

impl fmt::Display for Workload {
    /// `Deployment/pay`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.kind, self.name)
    }
}

/// The workload that a pod is a copy of, by its own name: for a ReplicaSet of a Deployment the Deployment, whose name is
/// what precedes the hash of the template; without a controller the pod itself.
pub(crate) fn owner_of(metadata: &ObjectMeta) -> Option<Workload> {
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else {
        return Some(Workload { kind: Kind::Pod, name: metadata.name.clone()? });
    };
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'))
        .filter(|deployment| !deployment.is_empty());
    Some(match deployment {
        Some(name) => Workload { kind: Kind::Deployment, name: name.to_owned() },
        None => Workload { kind: Kind::of(&owner.kind), name: owner.name.clone() },
    })
}
