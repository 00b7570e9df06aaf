//! A pod as the mesh sees it: which copy of what, where, and whether it may be called.

use super::{
    owner::{Workload, owner_of},
    shapes::{Pod, PodCondition},
};
use crate::{
    marks::{BY_ENVIRONMENT, INJECT, INTERCEPTION, MESHED, OPTED_OUT, OUTBOUND},
    webhook::inject::excluded_inbound_ports,
};
use airlane_core::{
    id::{BadName, InstanceId, Name, Namespace, Revision, ServiceAccount, WorkloadRevision},
    world::{Health, Interception},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use ring::digest;
use std::{collections::BTreeSet, fmt::Write as _, net::IpAddr, str::FromStr, time::Duration};

/// The revision of a pod that says nothing about it.
const NO_REVISION: &str = "none";
/// The longest DNS label.
const LABEL_MAX: usize = 63;

/// What is kept of a pod that runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Copy {
    pub(super) id: InstanceId,
    pub(super) workload: WorkloadRevision,
    pub(super) service_account: ServiceAccount,
    pub(super) address: IpAddr,
    pub(super) ipv6: bool,
    pub(super) interception: Interception,
    /// Ports of the application that are reached past its proxy.
    pub(super) excluded: BTreeSet<u16>,
    pub(super) health: Health,
    /// The longest that its containers may take to stop.
    pub(super) stops_within: Duration,
    /// Whose copy it is, as Kubernetes calls it.
    pub(super) owner: Workload,
    pub(super) membership: Membership,
}

/// Where a pod stands to the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Membership {
    /// It was given a sidecar.
    Sidecar,
    /// It was not.
    Bare,
    /// Its own label says that it stays out.
    OptedOut,
}

/// What is kept of a pod: nothing unless it has an address and has not ended.
///
/// A pod is pending until its proxy, which Kubernetes counts among the init containers, has passed its startup probe;
/// and the proxy passes it only when it was let in and has its configuration, for which its pod must have been seen.
pub(super) fn copy_of(pod: &Pod) -> Option<Copy> {
    let Pod { metadata, spec, status } = pod;
    if !matches!(status.phase.as_deref(), Some("Pending" | "Running")) {
        return None;
    }
    let address = status.pod_ip.as_ref()?.parse().ok()?;
    let (name, uid) = (metadata.name.as_ref()?, metadata.uid.as_ref()?);
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
    Some(Copy {
        id: InstanceId::of_copy(name, uid).ok()?,
        workload: workload_of(metadata)?,
        service_account: ServiceAccount::parse(account.unwrap_or("default")).ok()?,
        address,
        ipv6: status
            .pod_ips
            .iter()
            .filter_map(|it| it.ip.parse().ok())
            .chain([address])
            .any(|ip: IpAddr| ip.is_ipv6()),
        interception: interception_of(pod),
        excluded: metadata.annotations.as_ref().map(excluded_inbound_ports).unwrap_or_default(),
        health: health_of(metadata.deletion_timestamp.is_some(), &status.conditions),
        stops_within: Duration::from_secs(spec.termination_grace_period_seconds.unwrap_or(0)),
        owner: owner_of(metadata)?,
        membership: membership_of(metadata),
    })
}

fn membership_of(metadata: &ObjectMeta) -> Membership {
    let said = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    match (said(MESHED), said(INJECT)) {
        (Some("true"), _) => Membership::Sidecar,
        (_, Some(OPTED_OUT)) => Membership::OptedOut,
        _ => Membership::Bare,
    }
}

/// The workload that a pod is a copy of, and the revision.
///
/// The revision is what its author says (`version`, else `app.kubernetes.io/version`), else what Kubernetes says (the
/// hash of the pod's template or the controller's revision), else `none`. Names that are no DNS labels are made into
/// ones.
pub(crate) fn workload_of(metadata: &ObjectMeta) -> Option<WorkloadRevision> {
    let labels = metadata.labels.as_ref();
    let said = |key: &str| labels?.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let revision = said("version")
        .or_else(|| said("app.kubernetes.io/version"))
        .or_else(|| said("pod-template-hash"))
        .or_else(|| said("controller-revision-hash"))
        .unwrap_or(NO_REVISION);
    Some(WorkloadRevision {
        namespace: Namespace::parse(metadata.namespace.as_ref()?).ok()?,
        workload: label(&owner_of(metadata)?.name)?,
        revision: label::<Revision>(revision)?,
    })
}

/// What the mesh calls a workload of this name.
pub(crate) fn workload_name(name: &str) -> Option<Name> {
    label(name)
}

/// A DNS label of a text: the text itself if it is one; with dots and underscores as dashes and in lower case if that
/// is one; else cut, with a hash of the whole. `None` if nothing usable is in it.
fn label<T: FromStr<Err = BadName>>(text: &str) -> Option<T> {
    if let Ok(label) = text.parse() {
        return Some(label);
    }
    let dashed: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(LABEL_MAX + 1)
        .collect();
    let dashed = dashed.trim_matches('-');
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        && let Ok(label) = dashed.parse()
    {
        return Some(label);
    }
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    let hash = digest.as_ref().iter().take(4).fold(String::new(), |mut hash, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hash, "{byte:02x}");
        hash
    });
    let stem = &dashed[..dashed.len().min(LABEL_MAX - 1 - hash.len())];
    format!("{stem}-{hash}").trim_start_matches('-').parse().ok()
}

fn interception_of(pod: &Pod) -> Interception {
    let labels = pod.metadata.labels.as_ref();
    let meshed = labels.and_then(|labels| labels.get(MESHED)).is_some_and(|value| value == "true");
    // What is redirected in the host's network would be the host's traffic.
    if !meshed || pod.spec.host_network {
        return Interception::None;
    }
    let asked = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(INTERCEPTION));
    let calls_alone = labels.and_then(|labels| labels.get(INJECT)).is_some_and(|value| value == OUTBOUND);
    match asked.map(String::as_str) {
        Some(BY_ENVIRONMENT) => Interception::Environment,
        _ if calls_alone => Interception::Outbound,
        _ => Interception::Transparent,
    }
}

/// Whether a pod may be called, from what the kubelet says of it. A meshed pod is ready only after its proxy has
/// acknowledged its listeners: the proxy's container starts no sooner.
///
/// A pod that is not ready has been ready before if it became unready later than its init containers ended: the kubelet
/// says both for the first time when it has not started any. So every replica of the operator, and the next one, sees
/// the same without remembering anything.
fn health_of(deleted: bool, conditions: &[PodCondition]) -> Health {
    let find = |type_: &str| conditions.iter().find(|condition| condition.type_ == type_);
    let (ready, initialised) = (find("Ready"), find("Initialized"));
    let since =
        |condition: Option<&PodCondition>| condition.and_then(|it| Some(it.last_transition_time.as_ref()?.0));
    let holds = |condition: Option<&PodCondition>| condition.is_some_and(|it| it.status == "True");
    if deleted {
        Health::Draining
    } else if holds(ready) {
        Health::Healthy
    } else if holds(initialised)
        && since(ready).zip(since(initialised)).is_some_and(|(unready, started)| unready > started)
    {
        Health::Unhealthy
    } else {
        Health::Starting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlane_core::id::Name;
    use serde_json::{Value, json};

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": "pay-7c9f6d-abcde", "namespace": "shop", "uid": "0f4c8e2a-7d51-4b6e-9b57-2f0d1c3a8e77",
                "labels": { "pod-template-hash": "7c9f6d", "airlane.dev/meshed": "true" },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "pay-7c9f6d", "uid": "u", "controller": true,
                }],
            },
            "spec": { "serviceAccountName": "payer", "containers": [{ "name": "app", "image": "app" }] },
            "status": {
                "phase": "Running", "podIP": "10.244.1.7",
                "conditions": [
                    { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:09Z" },
                    { "type": "Initialized", "status": "True", "lastTransitionTime": "2026-01-01T00:00:03Z" },
                ],
            },
        });
        change(&mut pod);
        serde_json::from_value(pod).expect("a pod")
    }

    /// Workload, revision, account, interception and health, or `-`.
    fn check(change: impl FnOnce(&mut Value), expected: &str) {
        let shown = copy_of(&pod(change)).map_or_else(
            || "-".to_owned(),
            |copy| {
                let Copy { workload, service_account, interception, health, .. } = copy;
                format!("{workload} {service_account} {interception:?} {health:?}")
            },
        );
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_pod_is_a_copy_of_its_workload() {
        check(|_| {}, "shop/pay@7c9f6d payer Transparent Healthy");
        let owner = |kind: &str, name: &str| {
            let owner =
                json!([{ "apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true }]);
            move |pod: &mut Value| pod["metadata"]["ownerReferences"] = owner
        };
        check(owner("StatefulSet", "db"), "shop/db@7c9f6d payer Transparent Healthy");
        check(owner("ReplicaSet", "by-hand"), "shop/by-hand@7c9f6d payer Transparent Healthy");
        check(owner("ReplicaSet", "7c9f6d"), "shop/7c9f6d@7c9f6d payer Transparent Healthy");
        check(
            |pod| pod["metadata"]["ownerReferences"] = json!([]),
            "shop/pay-7c9f6d-abcde@7c9f6d payer Transparent Healthy",
        );
    }

    #[test]
    fn a_revision_is_what_is_said_of_it() {
        let labels = |labels: Value| move |pod: &mut Value| pod["metadata"]["labels"] = labels;
        check(
            labels(json!({ "version": "v2", "pod-template-hash": "7c9f6d" })),
            "shop/pay@v2 payer None Healthy",
        );
        check(
            labels(json!({ "app.kubernetes.io/version": "1.4.0" })),
            "shop/pay-7c9f6d@1-4-0 payer None Healthy",
        );
        check(
            labels(json!({ "controller-revision-hash": "db-6b8f" })),
            "shop/pay-7c9f6d@db-6b8f payer None Healthy",
        );
        check(labels(json!({ "version": "" })), "shop/pay-7c9f6d@none payer None Healthy");
    }

    #[test]
    fn names_become_labels() {
        let name = |text: &str| label::<Name>(text).map_or_else(|| "-".into(), |name| name.to_string());
        assert_eq!(name("pay"), "pay");
        assert_eq!(name("Pay_2.0"), "pay-2-0");
        let long = name(&format!("{}.x", "y".repeat(80)));
        assert_eq!((long.len(), &long[54..55]), (63, "-"));
        assert_ne!(long, name(&format!("{}.z", "y".repeat(80))));
        assert!(name("ä/ß").chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));
    }

    #[test]
    fn only_what_runs_is_a_copy() {
        check(|pod| pod["status"]["phase"] = json!("Failed"), "-");
        check(|pod| pod["status"]["phase"] = json!("Succeeded"), "-");
        check(|pod| pod["status"]["podIP"] = json!(null), "-");
    }

    #[test]
    fn an_account_keeps_its_dots() {
        check(
            |pod| pod["spec"]["serviceAccountName"] = json!("payer.v2"),
            "shop/pay@7c9f6d payer.v2 Transparent Healthy",
        );
    }

    #[test]
    fn a_pod_has_ipv6_if_any_of_its_addresses_is() {
        let ipv6 =
            |addresses: Value| copy_of(&pod(|pod| pod["status"]["podIPs"] = addresses)).expect("a copy").ipv6;
        assert!(!ipv6(json!([])));
        assert!(!ipv6(json!([{ "ip": "10.244.1.7" }])));
        assert!(ipv6(json!([{ "ip": "10.244.1.7" }, { "ip": "fd00::7" }])));
    }

    #[test]
    fn traffic_reaches_the_proxy_as_the_pod_says() {
        check(
            |pod| pod["metadata"]["annotations"] = json!({ "airlane.dev/interception": "Env" }),
            "shop/pay@7c9f6d payer Environment Healthy",
        );
        check(
            |pod| pod["metadata"]["labels"]["airlane.dev/inject"] = json!("outbound"),
            "shop/pay@7c9f6d payer Outbound Healthy",
        );
        check(|pod| pod["spec"]["hostNetwork"] = json!(true), "shop/pay@7c9f6d payer None Healthy");
        check(
            |pod| pod["metadata"]["labels"]["airlane.dev/meshed"] = json!("false"),
            "shop/pay@7c9f6d payer None Healthy",
        );
    }

    #[test]
    fn health_is_what_the_kubelet_says() {
        let ready = |status: &str, second: u32| {
            let condition = json!({ "type": "Ready", "status": status, "lastTransitionTime": format!("2026-01-01T00:00:{second:02}Z") });
            move |pod: &mut Value| pod["status"]["conditions"][0] = condition
        };
        check(ready("False", 1), "shop/pay@7c9f6d payer Transparent Starting");
        check(ready("False", 3), "shop/pay@7c9f6d payer Transparent Starting");
        check(ready("False", 20), "shop/pay@7c9f6d payer Transparent Unhealthy");
        check(ready("Unknown", 20), "shop/pay@7c9f6d payer Transparent Unhealthy");
        check(|pod| pod["status"]["conditions"] = json!([]), "shop/pay@7c9f6d payer Transparent Starting");
        check(
            |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:01:00Z"),
            "shop/pay@7c9f6d payer Transparent Draining",
        );
    }
}
