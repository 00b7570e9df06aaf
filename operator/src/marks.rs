//! What Airlane writes on objects of a cluster and reads there: its labels and annotations, and whose fields they are.

use std::collections::BTreeMap;

/// Labels and annotations that are for us begin so.
pub(crate) const OURS: &str = "airlane.dev/";

/// Whose fields are what we apply, and what we make is a part of.
pub(crate) const MANAGER: &str = "airlane";

/// Who reports our events.
pub(crate) const REPORTER: &str = "airlane.dev/operator";

/// The name of the Secret with the mesh's root, and of the ConfigMaps with the roots to trust.
pub(crate) const ROOT: &str = "airlane-root";
/// The key of those ConfigMaps: certificates, PEM.
pub(crate) const ROOTS_KEY: &str = "root.pem";

/// Label of a namespace, a pod or a template: whether pods join. What a pod says goes before its namespace.
pub(crate) const INJECT: &str = "airlane.dev/inject";
/// The value of [`INJECT`] by which pods join.
pub(crate) const ENABLED: &str = "enabled";
/// The value of [`INJECT`] for pods whose calls are ours and whose callers are not.
pub(crate) const OUTBOUND: &str = "outbound";
/// The value of [`INJECT`] for pods that stay out.
pub(crate) const OPTED_OUT: &str = "disabled";
/// The same, as people are told to do it.
pub(crate) const OPT_OUT: &str = "label the pod airlane.dev/inject: disabled";

/// Label of a pod that was given a proxy, `true` then.
pub(crate) const MESHED: &str = "airlane.dev/meshed";
/// Annotation of an injected pod: the version of Airlane whose template it is.
pub(crate) const INJECTED: &str = "airlane.dev/injected";
/// Annotation of a pod whose namespace is in the mesh and that cannot be: why.
pub(crate) const NOT_INJECTED: &str = "airlane.dev/notInjected";
/// Annotation of an injected pod: the containers that have a preStop hook of their own, and so are not drained by ours.
pub(crate) const OWN_PRE_STOP: &str = "airlane.dev/ownPreStop";

/// Annotation of a pod: how the application's traffic reaches its proxy.
pub(crate) const INTERCEPTION: &str = "airlane.dev/interception";
/// The value of [`INTERCEPTION`] for applications that are told where the proxy is.
pub(crate) const BY_ENVIRONMENT: &str = "Env";
/// Annotation of a pod: ports that are reached past its proxy.
pub(crate) const EXCLUDE_INBOUND_PORTS: &str = "airlane.dev/excludeInboundPorts";
/// Annotation of a pod: ports that are called past its proxy.
pub(crate) const EXCLUDE_OUTBOUND_PORTS: &str = "airlane.dev/excludeOutboundPorts";
/// Annotation of a pod: addresses that are called past its proxy.
pub(crate) const EXCLUDE_OUTBOUND_CIDRS: &str = "airlane.dev/excludeOutboundCIDRs";
/// Annotation of a pod: the CPU that is requested for its proxy.
pub(crate) const PROXY_CPU: &str = "airlane.dev/proxyCPU";
/// Annotation of a pod: the memory that is requested for its proxy.
pub(crate) const PROXY_MEMORY: &str = "airlane.dev/proxyMemory";

/// Annotation of a namespace, a workload or its template: who replaces running pods so that they join or leave the mesh.
pub(crate) const RESTART: &str = "airlane.dev/restart";
/// The value of [`RESTART`] by which a team keeps that to itself.
pub(crate) const MANUAL: &str = "manual";
/// Annotation of a template: when Airlane had its pods replaced. Nothing else is changed of it, so that what differs by
/// this alone is no new release.
pub(crate) const RESTARTED_AT: &str = "airlane.dev/restartedAt";
/// Annotation of a workload: the restart that is under way, or that was put back. A restart that went well leaves
/// nothing.
pub(crate) const LAST_RESTART: &str = "airlane.dev/lastRestart";
/// Annotation of the RoleBinding by which workloads of a namespace are restarted: since when the namespace does not ask
/// for the mesh any more.
pub(crate) const LEFT_AT: &str = "airlane.dev/leftAt";

/// Annotation of the Lease: the address at which the leader serves.
pub(crate) const ADDRESS: &str = "airlane.dev/address";

/// Whether a namespace with these labels asks for the mesh.
pub(crate) fn asks(labels: &BTreeMap<String, String>) -> bool {
    labels.get(INJECT).is_some_and(|value| value == ENABLED || value == OUTBOUND)
}

/// Whether annotations leave restarts to the team.
pub(crate) fn is_manual(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(RESTART).is_some_and(|value| value == MANUAL)
}

/// The labels of objects that the operator makes.
pub(crate) fn of_ours() -> BTreeMap<String, String> {
    ["app.kubernetes.io/part-of", "app.kubernetes.io/managed-by"]
        .map(|label| (label.to_owned(), MANAGER.to_owned()))
        .into()
}
