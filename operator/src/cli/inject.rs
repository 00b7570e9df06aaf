//! `airlane inject`: manifests with the mesh in their pods, by the webhook's own hand.

use super::{cluster::Cluster, say, tell};
use crate::{
    args,
    ca::hex,
    marks::{ENABLED, INJECT, ROOT, ROOTS_KEY},
    webhook::{
        draw_secret,
        inject::{Injection, NotInjected, inject as inject_pod},
    },
};
use anyhow::{Context, bail};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{Api, Client};
use ring::digest;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::{collections::BTreeMap, io::Read as _, path::Path};

/// The operator's Deployment and its container.
const OPERATOR: &str = "airlane";

/// Prints a file with the mesh in its pods. What it does not change it prints as it was.
pub(crate) async fn inject(place: &args::Where, args: &args::Inject) -> anyhow::Result<()> {
    let name = args.filename.display().to_string();
    let text = read(&args.filename).with_context(|| format!("cannot read {name}"))?;
    let setup = setup(place, args).await?;
    let secret = draw_secret().context("the system gives no random bytes")?;
    let done = injected(&text, &setup, &secret).with_context(|| name.clone())?;
    say(&done.text);
    done.notes.iter().for_each(|note| tell(&format!("{name}: {note}")));
    if done.refused {
        bail!("{name}: not every pod can be in the mesh");
    }
    Ok(())
}

fn read(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path)
}

/// What pods get: as the flags say, and what they do not say from the cluster.
async fn setup(place: &args::Where, args: &args::Inject) -> anyhow::Result<Injection> {
    let namespace = place.operator_namespace.as_str();
    let (image, roots) = match (&args.proxy_image, &args.root_sha256[..]) {
        (Some(image), [_, ..]) => (image.clone(), args.root_sha256.clone()),
        (image, roots) => {
            let cluster = Cluster::connect(place)
                .await
                .context("there is no cluster to ask: give --proxy-image and --root-sha256")?;
            let client = cluster.client;
            let image = match image {
                Some(image) => image.clone(),
                None => installed_image(&client, namespace).await?,
            };
            let roots = match roots {
                [] => installed_roots(&client, namespace).await?,
                roots => roots.to_vec(),
            };
            (image, roots)
        }
    };
    Ok(Injection {
        image,
        image_pull_policy: None,
        operator: args.address.clone().unwrap_or_else(|| format!("airlane.{namespace}.svc:15010")),
        roots,
        trust_domain: args.trust_domain.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

async fn installed_image(client: &Client, namespace: &str) -> anyhow::Result<String> {
    let mend = "is Airlane installed? Else give --proxy-image";
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let what = || format!("cannot read Deployment {namespace}/{OPERATOR}: {mend}");
    let deployment = deployments.get(OPERATOR).await.with_context(what)?;
    let containers =
        deployment.spec.and_then(|it| it.template.spec).map(|it| it.containers).unwrap_or_default();
    let operator = containers.into_iter().find(|container| container.name == OPERATOR);
    let image = operator.and_then(|container| container.image);
    image.with_context(|| format!("Deployment {namespace}/{OPERATOR} has no container {OPERATOR}: {mend}"))
}

async fn installed_roots(client: &Client, namespace: &str) -> anyhow::Result<Vec<String>> {
    let mend = "is Airlane installed? Else give --root-sha256";
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map =
        maps.get(ROOT).await.with_context(|| format!("cannot read ConfigMap {namespace}/{ROOT}: {mend}"))?;
    let pem = map.data.unwrap_or_default().remove(ROOTS_KEY).unwrap_or_default();
    let roots = fingerprints(&pem);
    if roots.is_empty() {
        bail!("ConfigMap {namespace}/{ROOT} holds no certificate in {ROOTS_KEY}: {mend}");
    }
    Ok(roots)
}

/// SHA-256 of every certificate in a PEM text, in hex.
fn fingerprints(pem: &str) -> Vec<String> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).flatten();
    certificates.map(|root| hex(digest::digest(&digest::SHA256, &root).as_ref())).collect()
}

/// A file, injected.
struct Done {
    text: String,
    notes: Vec<String>,
    /// Whether something that was asked for cannot be done.
    refused: bool,
}

/// Injects every pod and every template of pods in a text of YAML documents.
fn injected(text: &str, setup: &Injection, secret: &str) -> anyhow::Result<Done> {
    let mut done = Done { text: String::new(), notes: Vec::new(), refused: false };
    for (number, document) in documents(text).into_iter().enumerate() {
        let object: Option<Value> =
            serde_saphyr::from_str(document).with_context(|| format!("document {}", number + 1))?;
        let mut object = object.unwrap_or_default();
        let mut work = Work { setup, secret, done: &mut done, changed: false };
        work.object(&mut object)?;
        match work.changed {
            true => {
                done.text.push_str("---\n");
                done.text.push_str(&serde_saphyr::to_string(&object)?);
            }
            false => {
                if !document.trim_start().starts_with("---") && !done.text.is_empty() {
                    done.text.push_str("---\n");
                }
                done.text.push_str(document);
            }
        }
        if !done.text.is_empty() && !done.text.ends_with('\n') {
            done.text.push('\n');
        }
    }
    Ok(done)
}

/// The documents of a text, each from its `---` on. Nothing else in YAML begins a line so.
fn documents(text: &str) -> Vec<&str> {
    let mut starts: Vec<usize> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        {
            starts.push(at);
        }
        at += line.len();
    }
    let ends = starts.iter().copied().chain([text.len()]);
    let starts = [0].into_iter().chain(starts.iter().copied());
    starts
        .zip(ends)
        .map(|(start, end)| &text[start..end])
        .filter(|document| !document.trim().is_empty())
        .collect()
}

struct Work<'a> {
    setup: &'a Injection,
    secret: &'a str,
    done: &'a mut Done,
    changed: bool,
}

impl Work<'_> {
    fn object(&mut self, object: &mut Value) -> anyhow::Result<()> {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let name = object["metadata"]["name"].as_str().unwrap_or("without a name").to_owned();
        let template = match kind.as_str() {
            "Pod" => "",
            "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
                "/spec/template"
            }
            "CronJob" => "/spec/jobTemplate/spec/template",
            "List" => {
                for item in object["items"].as_array_mut().into_iter().flatten() {
                    self.object(item)?;
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        let Some(pod) = object.pointer_mut(template) else { return Ok(()) };
        self.pod(&format!("{kind} {name}"), pod)
    }

    fn pod(&mut self, name: &str, pod: &mut Value) -> anyhow::Result<()> {
        // A template may have none, a pod of an API server always has.
        if pod["metadata"].is_null() {
            pod["metadata"] = json!({});
        }
        // Whoever injects by hand wants it, unless the pod says otherwise.
        let namespace = BTreeMap::from([(INJECT.to_owned(), ENABLED.to_owned())]);
        let typed = Pod::deserialize(&*pod).with_context(|| format!("{name} has no pod that can be read"))?;
        let notes: Vec<String> = match inject_pod(&typed, &namespace, self.secret, self.setup) {
            Ok(injected) => {
                json_patch::patch(pod, &injected.patch)?;
                self.changed |= !injected.patch.0.is_empty();
                injected.warnings
            }
            Err(NotInjected::Unasked) => Vec::new(),
            Err(NotInjected::Unfit { reasons, optional }) => {
                self.done.refused |= !optional;
                reasons
            }
            Err(NotInjected::Mistaken(mistakes)) => {
                self.done.refused = true;
                mistakes.iter().map(ToString::to_string).collect()
            }
        };
        self.done.notes.extend(notes.into_iter().map(|note| format!("{name}: {note}")));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlane_core::id::TrustDomain;

    fn setup() -> Injection {
        Injection {
            image: "airlane:1".into(),
            image_pull_policy: None,
            operator: "airlane.airlane-system.svc:15010".into(),
            roots: vec!["ab".repeat(32)],
            trust_domain: TrustDomain::parse("airlane.local").expect("a trust domain"),
            version: "1".into(),
        }
    }

    fn done(text: &str) -> Done {
        injected(text, &setup(), "0123456789abcdef").expect("YAML")
    }

    const POD: &str = "{ containers: [{ name: app }] }";

    #[test]
    fn every_template_of_pods_is_injected() {
        let text = format!(
            "kind: Pod\nspec: {POD}\n\
             ---\nkind: Deployment\nspec: {{ template: {{ spec: {POD} }} }}\n\
             ---\nkind: StatefulSet\nspec: {{ template: {{ spec: {POD} }} }}\n\
             ---\nkind: DaemonSet\nspec: {{ template: {{ spec: {POD} }} }}\n\
             ---\nkind: Job\nspec: {{ template: {{ spec: {POD} }} }}\n\
             ---\nkind: CronJob\nspec: {{ jobTemplate: {{ spec: {{ template: {{ spec: {POD} }} }} }} }}\n\
             ---\nkind: List\nitems: [{{ kind: Pod, spec: {POD} }}, {{ kind: Service }}]\n"
        );
        let first = done(&text);
        assert_eq!(first.text.matches("name: airlane-proxy").count(), 7, "{}", first.text);
        assert!(first.notes.is_empty() && !first.refused);
        assert_eq!(done(&first.text).text, first.text, "what is injected stays as it is");
    }

    #[test]
    fn other_documents_are_printed_as_they_were() {
        let text = "# a remark\nkind:   Service\n---\n# nothing\n---\nkind: ConfigMap\ndata:\n  a: |\n    ---\n    b\n";
        assert_eq!(done(text).text, text);
        let mixed = done(&format!("kind:   Service\n---\nkind: Pod\nspec: {POD}\n---\nkind:   Role\n"));
        assert!(mixed.text.starts_with("kind:   Service\n---\n"), "{}", mixed.text);
        assert!(mixed.text.ends_with("---\nkind:   Role\n"), "{}", mixed.text);
    }

    #[test]
    fn a_pod_that_stays_out_is_told() {
        let host = "kind: DaemonSet\nmetadata: { name: agent }\nspec: { template: { spec: { hostNetwork: true, containers: [] } } }\n";
        let told = done(host);
        assert_eq!((told.text.as_str(), told.refused), (host, false));
        assert!(told.notes[0].starts_with("DaemonSet agent: spec.hostNetwork: "), "{:?}", told.notes);
        let mistaken = format!(
            "kind: Pod\nmetadata: {{ name: pay, annotations: {{ airlane.dev/proxyCPU: much }} }}\nspec: {POD}\n"
        );
        let told = done(&mistaken);
        assert_eq!((told.text.as_str(), told.refused), (mistaken.as_str(), true));
    }

    #[test]
    fn what_is_no_yaml_is_named() {
        let error = injected("a: 1\n---\na: [\n", &setup(), "0123456789abcdef").err().expect("an error");
        assert_eq!(error.to_string(), "document 2");
    }

    #[test]
    fn a_root_has_the_fingerprint_that_join_strings_have() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let root = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate");
        let expected = digest::digest(&digest::SHA256, root.der());
        assert_eq!(fingerprints(&root.pem()), [hex(expected.as_ref())]);
        assert!(fingerprints("nothing").is_empty());
    }
}
