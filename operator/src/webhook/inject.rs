//! A pod as its author wrote it → a patch that puts it into the mesh, or why it stays out. Pure.
//!
//! The patch only adds, in the order of JSON Patch: what of a pod we do not know stays as it is. Injecting twice is
//! injecting once; a container that another webhook adds in between gets what it needs the second time.
//!
//! | pod | answer |
//! |---|---|
//! | nobody asked, or it is opted out (`disabled`) | as it is |
//! | asked, and fit | the patch |
//! | our annotations or labels on it have a mistake | refused, with field and mend |
//! | it would not work in the mesh, and only its namespace asked | as it is, with an annotation and a warning that say why: what worked without us goes on |
//! | it would not work in the mesh, and it asked itself or holds our containers already | refused, with the reason |

mod asks;
mod edits;
mod settings;
mod template;
mod unfit;

pub(crate) use unfit::refuses_redirection;

use crate::marks::{ENABLED, INJECT, INJECTED, INTERCEPTION, MESHED, NOT_INJECTED, OPTED_OUT, OUTBOUND};
use airlane_core::id::TrustDomain;
use airlane_wire::pod::Asks;
use edits::Edits;
use json_patch::Patch;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::json;
use settings::Settings;
pub(crate) use settings::excluded_inbound_ports;
use std::{collections::BTreeMap, fmt};

/// The container that redirects the pod's traffic, and ends.
const INIT_CONTAINER: &str = "airlane-init";
/// The native sidecar with agent and proxy.
const PROXY_CONTAINER: &str = "airlane-proxy";

/// How much longer a pod may take to stop: as long as the agent's drain takes at most. Seconds.
const DRAIN_MAX: i64 = 5;
/// Kubernetes' own grace period, in seconds.
const GRACE_DEFAULT: i64 = 30;

/// What is the same for every pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Injection {
    /// The image with agent, proxy and redirection.
    pub image: String,
    /// When it is pulled; `None`: as the cluster's default has it.
    pub image_pull_policy: Option<String>,
    /// Where the proxies find the operator, `HOST:PORT`.
    pub operator: String,
    /// SHA-256 of the roots to trust, in hex.
    pub roots: Vec<String>,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Written on the pods, to find those with an old template.
    pub version: String,
}

/// What makes a pod a part of the mesh.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Injected {
    /// To be applied to the pod as it was sent; empty if it has everything.
    pub patch: Patch,
    /// What its author should know.
    pub warnings: Vec<String>,
}

/// Why a pod stays as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum NotInjected {
    /// Nobody asked for it.
    Unasked,
    /// In the mesh it would not work.
    Unfit {
        /// Why, with the mend; at least one.
        reasons: Vec<String>,
        /// Whether it can as well go without: only its namespace asked.
        optional: bool,
    },
    /// What is said to us on the pod cannot be understood; at least one.
    Mistaken(Vec<Mistake>),
}

/// A mistake of a pod's author in what is for us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mistake {
    /// The field's path.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// What to do.
    pub mend: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.field, self.message, self.mend)
    }
}

/// Which part of a pod's traffic is ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// All of it.
    Both,
    /// Its calls; whoever calls it reaches the application. For ingress controllers.
    Outbound,
}

/// Who wants a pod in the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    Pod,
    Namespace,
}

/// Puts a pod into the mesh.
///
/// `namespace` are the labels of the pod's namespace. `secret` will do as [`Asks::secret`] and is used by this pod
/// alone.
///
/// # Errors
/// Why it stays out; see the table above for what follows.
pub(crate) fn inject(
    pod: &Pod,
    namespace: &BTreeMap<String, String>,
    secret: &str,
    setup: &Injection,
) -> Result<Injected, NotInjected> {
    let none = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let (mode, by) = asked(labels, namespace)?;
    let spec = pod.spec.as_ref().ok_or(NotInjected::Unasked)?;

    let (settings, warnings) = Settings::read(annotations).map_err(NotInjected::Mistaken)?;
    let earlier = injected_before(spec)?;
    let reasons = unfit::reasons(pod, namespace, settings.interception, earlier.as_ref());
    if !reasons.is_empty() {
        let optional = by == By::Namespace && earlier.is_none();
        return Err(NotInjected::Unfit { reasons, optional });
    }

    let mut edits = Edits::new(&pod.metadata);
    let first = earlier.is_none();
    let grace = spec.termination_grace_period_seconds.unwrap_or(GRACE_DEFAULT);
    let grace = if first && mode == Mode::Both { grace.saturating_add(DRAIN_MAX) } else { grace };
    let mut asks = earlier.unwrap_or_else(|| Asks { secret: secret.into(), asks: BTreeMap::new() });
    let before = asks.clone();
    if mode == Mode::Both {
        asks::take_over(spec, grace, &mut asks, &mut edits);
        asks::drain_before_stop(spec, &asks.secret, &mut edits);
    }
    if settings.interception == settings::Interception::Env {
        template::tell_applications(spec, &settings, &mut edits);
    }
    if first {
        if mode == Mode::Both {
            edits.add(["spec", "terminationGracePeriodSeconds"], json!(grace));
        }
        if mode == Mode::Outbound {
            edits.label(INJECT, OUTBOUND);
        }
        edits.label(MESHED, "true");
        edits.annotate(INJECTED, &setup.version);
        edits.annotate(INTERCEPTION, settings.interception.as_str());
        template::add_volumes(spec, &mut edits);
        template::add_containers(
            spec,
            &template::Wanted { mode, settings: &settings, asks: &asks, setup },
            &mut edits,
        );
    } else if asks != before {
        template::hand_over(spec, &asks, &mut edits);
    }
    Ok(Injected { patch: edits.into_patch(), warnings })
}

/// The patch that leaves a pod as it is and writes down why.
pub(crate) fn note(pod: &Pod, reasons: &[String]) -> Patch {
    let mut edits = Edits::new(&pod.metadata);
    edits.annotate(NOT_INJECTED, &reasons.join("; "));
    edits.into_patch()
}

/// Who wants a pod with these labels in the mesh: it itself, else its namespace.
fn asked(
    labels: &BTreeMap<String, String>,
    namespace: &BTreeMap<String, String>,
) -> Result<(Mode, By), NotInjected> {
    let (value, by) = match (labels.get(INJECT), namespace.get(INJECT)) {
        (Some(value), _) => (value, By::Pod),
        (None, Some(value)) => (value, By::Namespace),
        (None, None) => return Err(NotInjected::Unasked),
    };
    match (value.as_str(), by) {
        (ENABLED, by) => Ok((Mode::Both, by)),
        (OUTBOUND, by) => Ok((Mode::Outbound, by)),
        (OPTED_OUT, _) | (_, By::Namespace) => Err(NotInjected::Unasked),
        (other, By::Pod) => Err(NotInjected::Mistaken(vec![Mistake {
            field: format!("metadata.labels[{INJECT}]"),
            message: format!("{other:?} is not known"),
            mend: format!("write {ENABLED}, {OPTED_OUT} or {OUTBOUND}"),
        }])),
    }
}

/// What an earlier injection handed to the agent; `None` if there was none.
fn injected_before(spec: &PodSpec) -> Result<Option<Asks>, NotInjected> {
    let Some(proxy) = proxy_of(spec) else { return Ok(None) };
    let said = proxy.env.iter().flatten().find(|variable| variable.name == airlane_wire::pod::ASKS_VARIABLE);
    let text = said.and_then(|variable| variable.value.as_deref()).unwrap_or_default();
    match text.parse() {
        Ok(asks) => Ok(Some(asks)),
        Err(error) => Err(NotInjected::Mistaken(vec![Mistake {
            field: format!("spec.initContainers[{PROXY_CONTAINER}]"),
            message: format!("is not as an injection leaves it: {error}"),
            mend: format!("remove {PROXY_CONTAINER} and {INIT_CONTAINER} to have the pod injected anew"),
        }])),
    }
}

/// The proxy's container, if the pod has one that ours could be.
fn proxy_of(spec: &PodSpec) -> Option<&Container> {
    spec.init_containers.iter().flatten().find(|container| container.name == PROXY_CONTAINER)
}

#[cfg(test)]
mod tests;
