//! `airlane check` of a cluster: before Airlane is there, while it is, and before it goes.

mod members;

use super::Cluster;
use crate::{
    args::Where,
    cli::{say, table::plain},
    enrol::record::Record,
    lease::NAME as LEASE,
    marks::{BY_ENVIRONMENT, ENABLED, INJECT, INJECTED, INTERCEPTION, LAST_RESTART, MESHED},
    webhook::inject::refuses_redirection,
};
use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        apps::v1::Deployment,
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        coordination::v1::Lease,
        core::v1::{Namespace, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use std::collections::BTreeMap;

/// Native sidecars are on by default from this minor version of Kubernetes 1.
const MINOR_MIN: u32 = 29;
/// Admission policies bound the operator's account from this one.
const MINOR_OF_ADMISSION_POLICIES: u32 = 30;
/// The operator's Deployment, and its entry for the webhook.
const OPERATOR: &str = "airlane";
const DEFINITIONS: [&str; 2] = ["meshpolicies.airlane.dev", "canaries.airlane.dev"];

/// What one look at something found.
enum Finding {
    /// It is as it should be.
    Good(String),
    /// It is not; with the mend.
    Bad(String),
    /// It is as people want it, and they should know what that means.
    Note(String),
    /// It could not be looked at, and why that is no fault of the mesh.
    Untold(String),
}
use Finding::{Bad, Good, Note, Untold};

/// Prints findings; an error if one is bad.
fn report(findings: &[Finding], verdict: &str) -> anyhow::Result<()> {
    for finding in findings {
        let (mark, text) = match finding {
            Good(text) => ("ok    ", text),
            Bad(text) => ("WRONG ", text),
            Note(text) => ("note  ", text),
            Untold(text) => ("?     ", text),
        };
        say(&format!("{mark}{}\n", plain(text)));
    }
    match findings.iter().filter(|finding| matches!(finding, Bad(_))).count() {
        0 => Ok(()),
        wrong => bail!("{verdict}: {wrong} of {} are wrong", findings.len()),
    }
}

/// What an answer of the API server says of `what`, when it is not the object asked for.
fn unanswered(what: &str, error: &kube::Error) -> Finding {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            Untold(format!("{what}: you may not look: {}", status.message))
        }
        kube::Error::Api(status) if status.code == 404 => Bad(format!(
            "{what} is not there: is Airlane installed? `airlane install`, or --operator-namespace"
        )),
        error => Bad(format!("{what}: {error}")),
    }
}

/// `airlane check --pre`: can Airlane be installed here, by whoever asks?
pub(crate) async fn before(place: &Where) -> anyhow::Result<()> {
    let cluster = Cluster::connect(place).await?;
    let server = cluster.client.apiserver_version().await.context("the API server does not answer")?;
    let mut findings = vec![version(&server.major, &server.minor)];
    findings.push(permissions(&cluster).await?);
    findings.extend(namespaces(&cluster.client).await);
    report(&findings, "Airlane cannot be installed here")
}

/// Minor versions may have a suffix, such as `33+`.
fn version(major: &str, minor: &str) -> Finding {
    let number = minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
    let here = format!("Kubernetes {major}.{minor}");
    match number {
        _ if major != "1" => Untold(format!("{here} is newer than what Airlane knows")),
        MINOR_OF_ADMISSION_POLICIES.. => Good(here),
        MINOR_MIN => Good(format!(
            "{here}; from 1.{MINOR_OF_ADMISSION_POLICIES} on the chart also bounds what the operator's account may write"
        )),
        _ => Bad(format!("{here} has no native sidecars: Airlane needs 1.{MINOR_MIN} or later")),
    }
}

/// What the chart creates: API group, resource, in the operator's namespace or for the whole cluster.
const CREATED: [(&str, &str, bool); 11] = [
    ("", "namespaces", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", false),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", false),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", false),
    ("rbac.authorization.k8s.io", "roles", true),
    ("apps", "deployments", true),
    ("", "services", true),
    ("policy", "poddisruptionbudgets", true),
];

async fn permissions(cluster: &Cluster) -> anyhow::Result<Finding> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let mut missing = Vec::new();
    for (group, resource, namespaced) in CREATED {
        let attributes = ResourceAttributes {
            verb: Some("create".to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            namespace: namespaced.then(|| cluster.system.to_string()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let answer = reviews.create(&PostParams::default(), &review).await;
        let answer = answer.context("the API server does not say what you may do")?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(resource);
        }
    }
    Ok(match &*missing {
        [] => Good("you may create what the chart holds".to_owned()),
        missing => {
            Bad(format!("you may not create {}: ask an administrator of the cluster", missing.join(", ")))
        }
    })
}

/// Namespaces whose pods may not redirect their own connections.
async fn namespaces(client: &Client) -> Vec<Finding> {
    let list = match Api::<Namespace>::all(client.clone()).list(&ListParams::default()).await {
        Ok(list) => list,
        Err(error) => return vec![unanswered("namespaces", &error)],
    };
    let labels = list.items.into_iter().map(|namespace| {
        (namespace.metadata.name.unwrap_or_default(), namespace.metadata.labels.unwrap_or_default())
    });
    let strict: Vec<String> =
        labels.filter(|(_, labels)| refuses_redirection(labels).is_some()).map(|(name, _)| name).collect();
    if strict.is_empty() {
        return vec![Good("no namespace refuses redirection by its Pod Security Standard".to_owned())];
    }
    vec![Note(format!(
        "pods of {} join by environment variables only, for the Pod Security Standard there: annotate them with \
         {INTERCEPTION}: {BY_ENVIRONMENT}",
        strict.join(", ")
    ))]
}

/// `airlane check` of a cluster with Airlane in it.
pub(crate) async fn installed(cluster: &Cluster) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    for name in DEFINITIONS {
        findings.push(definition(cluster, name).await);
    }
    findings.push(replicas(cluster).await);
    findings.push(leader(cluster, Timestamp::now()).await);
    findings.extend(registration(cluster, Timestamp::now()).await);
    findings.push(way_to_the_webhook(cluster).await);
    findings.push(objects(cluster).await);
    findings.extend(restarts(cluster).await);
    findings.extend(members::by_the_operator(cluster).await);
    findings.push(members::accounts(cluster).await);
    report(&findings, "the mesh is not as it should be")
}

async fn definition(cluster: &Cluster, name: &str) -> Finding {
    let what = format!("CustomResourceDefinition {name}");
    match Api::<CustomResourceDefinition>::all(cluster.client.clone()).get(name).await {
        Err(error) => unanswered(&what, &error),
        Ok(definition) => {
            let conditions = definition.status.and_then(|status| status.conditions).unwrap_or_default();
            let established = |type_: &str| {
                conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True")
            };
            if established("Established") {
                Good(format!("{what} is established"))
            } else {
                Bad(format!("{what} is not established: `kubectl describe crd {name}` says why"))
            }
        }
    }
}

async fn replicas(cluster: &Cluster) -> Finding {
    let what = format!("Deployment {}/{OPERATOR}", cluster.system);
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), cluster.system.as_str());
    match deployments.get(OPERATOR).await {
        Err(error) => unanswered(&what, &error),
        Ok(deployment) => {
            let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
            let ready = deployment.status.and_then(|status| status.ready_replicas).unwrap_or(0);
            let told = format!("{ready} of {wanted} replicas of the operator serve");
            if ready >= wanted {
                return Good(told);
            }
            Bad(format!("{told}: `kubectl describe pods -n {}` says why", cluster.system))
        }
    }
}

async fn leader(cluster: &Cluster, now: Timestamp) -> Finding {
    let what = format!("Lease {}/{LEASE}", cluster.system);
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), cluster.system.as_str());
    match leases.get(LEASE).await {
        Err(error) => unanswered(&what, &error),
        Ok(lease) => {
            let spec = lease.spec.unwrap_or_default();
            let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
            let ends = spec.renew_time.map(|renewed| {
                renewed.0.as_second() + i64::from(spec.lease_duration_seconds.unwrap_or_default())
            });
            match (holder, ends) {
                (Some(holder), Some(ends)) if ends >= now.as_second() => Good(format!("{holder} leads")),
                _ => Bad(
                    "no replica leads: nothing is judged and no status is written; the operator's log says why"
                        .to_owned(),
                ),
            }
        }
    }
}

async fn registration(cluster: &Cluster, now: Timestamp) -> Vec<Finding> {
    let what = format!("MutatingWebhookConfiguration {OPERATOR}");
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let configuration = match configurations.get(OPERATOR).await {
        Ok(configuration) => configuration,
        Err(error) => return vec![unanswered(&what, &error)],
    };
    let entries = configuration.webhooks.unwrap_or_default();
    let roots = entries.iter().filter_map(|entry| entry.client_config.ca_bundle.as_ref()).map(|it| &*it.0);
    let first = roots.clone().next();
    let mut findings = Vec::new();
    if entries.is_empty() || roots.count() < entries.len() {
        findings.push(Bad(format!(
            "{what} holds no root yet, so pods start without sidecars: the leader writes it; its log says why not"
        )));
    } else if entries.iter().any(|entry| entry.failure_policy.as_deref() != Some("Fail")) {
        findings.push(Bad(format!("{what} lets pods start without sidecars while the operator is away")));
    } else {
        findings.push(Good("pods wait for their sidecars".to_owned()));
    }
    findings.extend(first.map(|pem| horizon(pem, now)));
    findings
}

/// Until when the mesh's roots are good.
fn horizon(pem: &[u8], now: Timestamp) -> Finding {
    const SOON_S: i64 = 30 * 24 * 3600;
    let ends = CertificateDer::pem_slice_iter(pem).flatten().filter_map(|der| {
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    });
    match ends.max() {
        None => Bad("the webhook's registration holds something else than certificates".to_owned()),
        Some(end) => {
            let until = Timestamp::from_second(end)
                .map_or_else(|_| "for ever".to_owned(), |end| format!("until {end}"));
            let told = format!("the mesh's root certificate is good {until}");
            if end - now.as_second() > SOON_S { Good(told) } else { Bad(format!("{told}: replace it")) }
        }
    }
}

/// Has the API server ask the webhook about a pod that is never created.
async fn way_to_the_webhook(cluster: &Cluster) -> Finding {
    const NAMESPACE: &str = "default";
    let what = "injection";
    let pod: Result<Pod, _> = serde_json::from_value(json!({
        "metadata": {
            "generateName": "airlane-check-",
            "labels": { INJECT: ENABLED },
            // The one that every Pod Security Standard lets through.
            "annotations": { INTERCEPTION: BY_ENVIRONMENT },
        },
        "spec": {
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "check", "image": "airlane.dev/never-pulled",
                "resources": { "requests": { "cpu": "1m", "memory": "1Mi" }, "limits": { "cpu": "1m", "memory": "1Mi" } },
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    }));
    let pod = match pod {
        Ok(pod) => pod,
        Err(error) => return Bad(format!("{what}: {error}")),
    };
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let never = PostParams { dry_run: true, ..PostParams::default() };
    match pods.create(&never, &pod).await {
        Err(error) => unanswered(&format!("{what}, tried with a pod in {NAMESPACE}"), &error),
        Ok(pod) if pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(INJECTED)) => {
            Good("the API server reaches the webhook: a pod that was tried got its sidecar".to_owned())
        }
        Ok(_) => Bad(format!(
            "the API server does not reach the webhook: a pod that was tried got no sidecar; may it open connections to \
             port 9443 of the operator's pods in {}?",
            cluster.system
        )),
    }
}

/// What is wrong with policies and canaries.
async fn objects(cluster: &Cluster) -> Finding {
    let both = async {
        let (policies, canaries) = (cluster.policies(None).await?, cluster.canaries(None).await?);
        let wrong: Vec<String> = policies
            .iter()
            .flat_map(|policy| &policy.problems)
            .chain(canaries.iter().flat_map(|canary| &canary.problems))
            .map(ToString::to_string)
            .collect();
        anyhow::Ok((policies.len() + canaries.len(), wrong))
    };
    match both.await {
        Err(error) => Untold(format!("{error:#}")),
        Ok((count, wrong)) if wrong.is_empty() => {
            Good(format!("{count} policies and canaries, nothing wrong"))
        }
        Ok((count, wrong)) => Bad(format!("{count} policies and canaries; {}", wrong.join("; "))),
    }
}

/// Workloads whose restart into the mesh or out of it was put back.
async fn restarts(cluster: &Cluster) -> Option<Finding> {
    let deployments: Api<Deployment> = Api::all(cluster.client.clone());
    let list = match deployments.list_metadata(&ListParams::default()).await {
        Ok(list) => list,
        Err(error) => return Some(unanswered("Deployments", &error)),
    };
    let put_back = list.items.into_iter().filter_map(|deployment| {
        let written = deployment.metadata.annotations.as_ref()?.get(LAST_RESTART)?;
        let record: Record = serde_json::from_str(written).ok()?;
        let because = record.failed?.because;
        let (namespace, name) = (deployment.metadata.namespace?, deployment.metadata.name?);
        Some(format!("{namespace}/Deployment/{name}, restarted to {}: {because}", record.to))
    });
    let put_back: Vec<String> = put_back.collect();
    (!put_back.is_empty()).then(|| {
        Bad(format!(
            "put back, and nothing else of their namespaces is restarted until then: {}",
            put_back.join("; ")
        ))
    })
}

/// `airlane uninstall --check`: refuses while pods have sidecars, which could not start again and whose certificates
/// would end.
pub(crate) async fn uninstall(place: &Where) -> anyhow::Result<()> {
    let cluster = Cluster::connect(place).await?;
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    // Whoever has ended needs nobody any more.
    let alive = ListParams::default()
        .labels(&format!("{MESHED}=true"))
        .fields("status.phase!=Succeeded,status.phase!=Failed");
    let list = pods.list_metadata(&alive).await.context("cannot list the pods of the mesh")?;
    let mut by_namespace: BTreeMap<String, usize> = BTreeMap::new();
    for pod in list.items {
        *by_namespace.entry(pod.metadata.namespace.unwrap_or_default()).or_default() += 1;
    }
    if by_namespace.is_empty() {
        say("no pod has a sidecar\n");
        return Ok(());
    }
    let counts: Vec<String> =
        by_namespace.iter().map(|(namespace, pods)| format!("{namespace}: {pods}")).collect();
    bail!(
        "pods have sidecars, which need the operator ({}): `airlane uninstall --eject` takes them out of the mesh",
        counts.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn check(finding: &Finding, expected: &str) {
        let told = match finding {
            Good(text) => format!("good: {text}"),
            Bad(text) => format!("bad: {text}"),
            Note(text) => format!("note: {text}"),
            Untold(text) => format!("untold: {text}"),
        };
        assert!(told.starts_with(expected), "{told}");
    }

    #[test]
    fn older_clusters_are_refused() {
        check(&version("1", "28"), "bad: Kubernetes 1.28");
        check(&version("1", "29"), "good: Kubernetes 1.29;");
        check(&version("1", "33+"), "good: Kubernetes 1.33+");
        check(&version("1", "x"), "bad:");
        check(&version("2", "0"), "untold:");
    }

    #[test]
    fn a_root_that_ends_soon_is_bad() {
        let end = jiff::SignedDuration::from_hours(24 * 60);
        let start = Timestamp::UNIX_EPOCH;
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        let at = |at: Timestamp| time::OffsetDateTime::from_unix_timestamp(at.as_second()).expect("a time");
        (params.not_before, params.not_after) = (at(start), at(start + end));
        let pem = params.self_signed(&key).expect("a certificate").pem();
        check(&horizon(pem.as_bytes(), start), "good: the mesh's root certificate is good until 1970-03-02");
        check(
            &horizon(pem.as_bytes(), start + end),
            "bad: the mesh's root certificate is good until 1970-03-02",
        );
        check(&horizon(b"", start), "bad: the webhook's registration");
    }
}
