//! Pods that would not work in the mesh, or would not be what they seem.

use super::{INIT_CONTAINER, PROXY_CONTAINER, asks, settings::Interception, template};
use crate::marks::{BY_ENVIRONMENT, INTERCEPTION, OPT_OUT};
use airlane_wire::pod::{Asks, PROXY_UID, RESERVED_PORTS};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use std::collections::BTreeMap;

/// Containers of other meshes, by the mesh.
const FOREIGN_CONTAINERS: [(&str, &str); 9] = [
    ("istio-proxy", "Istio"),
    ("istio-init", "Istio"),
    ("linkerd-proxy", "Linkerd"),
    ("linkerd-init", "Linkerd"),
    ("kuma-sidecar", "Kuma"),
    ("kuma-init", "Kuma"),
    ("consul-dataplane", "Consul"),
    ("osm-init", "Open Service Mesh"),
    ("proxyinit", "App Mesh"),
];
/// Labels and annotations of pods by which other meshes are asked in, or say that they are. Their webhooks may come
/// after ours.
const FOREIGN_MARKS: [(&str, &[&str], &str); 8] = [
    ("sidecar.istio.io/inject", &["true"], "Istio"),
    ("sidecar.istio.io/status", &[], "Istio"),
    ("linkerd.io/inject", &["enabled", "ingress"], "Linkerd"),
    ("linkerd.io/proxy-version", &[], "Linkerd"),
    ("kuma.io/sidecar-injection", &["enabled", "true"], "Kuma"),
    ("kuma.io/sidecar-injected", &["true"], "Kuma"),
    ("consul.hashicorp.com/connect-inject", &["true"], "Consul"),
    ("consul.hashicorp.com/connect-inject-status", &["injected"], "Consul"),
];
/// Labels of namespaces by which Istio comes to all their pods, but for those that say `sidecar.istio.io/inject: false`.
const ISTIO_NAMESPACE: [(&str, &[&str]); 2] = [(ISTIO_INJECTION, &["enabled"]), (ISTIO_REVISION, &[])];
const ISTIO_INJECTION: &str = "istio-injection";
const ISTIO_REVISION: &str = "istio.io/rev";
const ISTIO_POD: &str = "sidecar.istio.io/inject";

/// What a namespace's pods are held to (Pod Security admission).
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// Why a pod would not work in the mesh, each with its mend; none if it would. `earlier` is what an injection before
/// this one left.
pub(super) fn reasons(
    pod: &Pod,
    namespace: &BTreeMap<String, String>,
    interception: Interception,
    earlier: Option<&Asks>,
) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut reasons = Vec::new();
    if spec.host_network == Some(true) {
        reasons.push(format!(
            "spec.hostNetwork: the node's own traffic would be redirected; {OPT_OUT}, or give it a network of its own"
        ));
    }
    if is_windows(spec) {
        reasons.push(format!("spec.os.name: there is no proxy for Windows; {OPT_OUT}"));
    }
    if let Some(mesh) = other_mesh(pod, spec, namespace) {
        reasons.push(format!(
            "the pod is in another mesh ({mesh}), and two proxies would redirect each other; take it out of that one, or {OPT_OUT}"
        ));
    }
    reasons.extend(reserved_users(spec));
    reasons.extend(reserved_ports(spec));
    if earlier.is_none() {
        reasons.extend(reserved_names(spec));
    }
    if let (Some(level), Interception::Init) = (refuses_redirection(namespace), interception) {
        reasons.push(format!(
            "the namespace's {POD_SECURITY}: {level} refuses NET_ADMIN, which redirecting traffic needs; annotate the pod {INTERCEPTION}: {BY_ENVIRONMENT} to do without, or {OPT_OUT}"
        ));
    }
    reasons
}

/// The Pod Security Standard by which a namespace with these labels refuses pods that redirect their own connections.
/// Kubernetes takes a level that it does not know for the strictest.
pub(crate) fn refuses_redirection(namespace: &BTreeMap<String, String>) -> Option<&str> {
    namespace.get(POD_SECURITY).map(String::as_str).filter(|level| *level != "privileged")
}

fn is_windows(spec: &PodSpec) -> bool {
    let selected = spec.node_selector.as_ref().and_then(|selector| selector.get("kubernetes.io/os"));
    let named = spec.os.as_ref().map(|os| &os.name);
    named.or(selected).is_some_and(|os| os == "windows")
}

fn other_mesh(pod: &Pod, spec: &PodSpec, namespace: &BTreeMap<String, String>) -> Option<&'static str> {
    let mut containers = asks::users(spec).map(|(_, _, container)| container.name.as_str());
    let foreign = |name: &str| FOREIGN_CONTAINERS.iter().find(|(foreign, _)| *foreign == name);
    if let Some((_, mesh)) = containers.find_map(foreign) {
        return Some(mesh);
    }
    let (labels, annotations) = (pod.metadata.labels.as_ref(), pod.metadata.annotations.as_ref());
    let said = |key: &str| {
        let label = labels.and_then(|labels| labels.get(key));
        label.or_else(|| annotations.and_then(|annotations| annotations.get(key)))
    };
    let means = |value: Option<&String>, values: &[&str]| {
        value.is_some_and(|value| values.is_empty() || values.contains(&value.as_str()))
    };
    if let Some((_, _, mesh)) = FOREIGN_MARKS.iter().find(|(key, values, _)| means(said(key), values)) {
        return Some(mesh);
    }
    let by_namespace = ISTIO_NAMESPACE.iter().any(|(key, values)| means(namespace.get(*key), values));
    (by_namespace && said(ISTIO_POD).is_none_or(|value| value != "false")).then_some("Istio")
}

fn reserved_users(spec: &PodSpec) -> Vec<String> {
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let ours = |user: Option<i64>| user == Some(i64::from(PROXY_UID));
    asks::users(spec)
        .filter(|(_, _, container)| {
            ours(container.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod))
        })
        .map(|(list, _, container)| {
            format!(
                "spec.{list}[{}].securityContext.runAsUser: {PROXY_UID} is the proxy's, whose calls pass by the mesh; run it as another user, or {OPT_OUT}",
                container.name
            )
        })
        .collect()
}

fn reserved_ports(spec: &PodSpec) -> Vec<String> {
    let reserved = |port: &u16| RESERVED_PORTS.contains(port);
    let mend = format!(
        "ports {} to {} of a pod in the mesh are the proxy's: take another, or {OPT_OUT}",
        RESERVED_PORTS.start(),
        RESERVED_PORTS.end()
    );
    let mut reasons = Vec::new();
    for (list, _, container) in asks::users(spec) {
        let declared =
            container.ports.iter().flatten().filter_map(|port| u16::try_from(port.container_port).ok());
        for port in declared.filter(reserved) {
            reasons.push(format!("spec.{list}[{}].ports: {port} is taken; {mend}", container.name));
        }
    }
    for (container, occasion, port) in asks::asked_ports(spec) {
        if reserved(&port) {
            reasons.push(format!("{container}'s {}: port {port} is taken; {mend}", occasion.as_str()));
        }
    }
    reasons
}

fn reserved_names(spec: &PodSpec) -> Vec<String> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let containers = containers.map(|container| container.name.as_str());
    let volumes = spec.volumes.iter().flatten().map(|volume| volume.name.as_str());
    containers
        .filter(|name| [INIT_CONTAINER, PROXY_CONTAINER].contains(name))
        .chain(volumes.filter(|name| template::VOLUMES.contains(name)))
        .map(|name| format!("the name {name} is Airlane's: take another, or {OPT_OUT}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_standard_but_the_privileged_refuses_redirection() {
        let refused = |level: &str| {
            let labels = BTreeMap::from([(POD_SECURITY.to_owned(), level.to_owned())]);
            refuses_redirection(&labels).is_some()
        };
        assert_eq!(
            ["privileged", "baseline", "restricted", "Restricted"].map(refused),
            [false, true, true, true]
        );
        assert_eq!(refuses_redirection(&BTreeMap::new()), None);
    }
}
