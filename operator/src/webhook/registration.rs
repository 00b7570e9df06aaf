//! Our entries with the API server, which the chart makes: by which certificate to know us, and whether it may go on
//! without our answer.
//!
//! The chart's entries hold no certificate and say `Ignore`, so that a cluster whose operator never came up is a
//! cluster. The leader writes the roots and has the API server insist on injection: a pod that started without its
//! proxy would be one that no policy holds for. Validation stays `Ignore`: what it refuses is refused again, and said,
//! when it is read.

use crate::observe::kubernetes::WATCH_SECONDS;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{fmt, future::pending, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The name of both configurations.
const NAME: &str = "airlane";
/// Before a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// A configuration with our entries.
trait Registration:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static
{
    /// Whether the API server is to refuse what we did not answer to.
    const INSIST: bool;
    /// Its entries: name, how we are reached, failure policy.
    fn entries(&self) -> Vec<(&str, &WebhookClientConfig, Option<&str>)>;
}

/// Both kinds have their entries in the same fields, but in types of their own.
macro_rules! registration {
    ($kind:ty, $insist:literal) => {
        impl Registration for $kind {
            const INSIST: bool = $insist;
            fn entries(&self) -> Vec<(&str, &WebhookClientConfig, Option<&str>)> {
                let entries = self.webhooks.iter().flatten();
                entries.map(|it| (&*it.name, &it.client_config, it.failure_policy.as_deref())).collect()
            }
        }
    };
}
registration!(MutatingWebhookConfiguration, true);
registration!(ValidatingWebhookConfiguration, false);

/// Keeps both configurations fresh until told to stop; for the leader. `roots` are PEM.
pub(crate) async fn keep(client: Client, roots: watch::Receiver<String>, shutdown: CancellationToken) {
    let mutating = keep_one::<MutatingWebhookConfiguration>(client.clone(), roots.clone());
    let validating = keep_one::<ValidatingWebhookConfiguration>(client, roots);
    tokio::select! {
        () = shutdown.cancelled() => {}
        ((), ()) = async { tokio::join!(mutating, validating) } => {}
    }
}

async fn keep_one<R: Registration>(client: Client, mut roots: watch::Receiver<String>) {
    let api: Api<R> = Api::all(client);
    let only = watcher::Config::default().timeout(WATCH_SECONDS).fields(&format!("metadata.name={NAME}"));
    let mut events = watcher(api.clone(), only).default_backoff().applied_objects().boxed();
    let mut present: Option<R> = None;
    loop {
        let bundle = roots.borrow_and_update().clone();
        let written = write(&api, present.as_ref(), &bundle).await;
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(object)) => present = Some(object),
                Ok(None) => pending().await,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot watch the webhook's registration");
                }
            },
            Ok(()) = roots.changed() => {}
            () = tokio::time::sleep(AGAIN), if !written => {}
        }
    }
}

/// Writes what is missing. False if it has to be tried again.
async fn write<R: Registration>(api: &Api<R>, present: Option<&R>, roots: &str) -> bool {
    let Some(patch) = present.and_then(|present| missing(present, roots)) else { return true };
    match api.patch(NAME, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => {
            tracing::info!(kind = &*R::kind(&()), "the API server knows the webhook's roots");
            true
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the webhook is not registered");
            false
        }
    }
}

/// What is to be written into a configuration, as a strategic merge patch; `None` if nothing. It names what it was
/// made from, so that it never goes over somebody else's change.
fn missing<R: Registration>(present: &R, bundle: &str) -> Option<Value> {
    let ObjectMeta { resource_version, .. } = present.meta();
    let entries: Vec<Value> = present
        .entries()
        .into_iter()
        .filter_map(|(name, client, policy)| {
            let mut entry = json!({});
            if client.ca_bundle.as_ref().is_none_or(|it| it.0 != bundle.as_bytes()) {
                let bundle = k8s_openapi::ByteString(bundle.as_bytes().to_vec());
                entry["clientConfig"] = json!({ "caBundle": bundle });
            }
            if R::INSIST && policy != Some("Fail") {
                entry["failurePolicy"] = json!("Fail");
            }
            let fields = entry.as_object_mut().filter(|fields| !fields.is_empty())?;
            fields.insert("name".into(), json!(name));
            Some(entry)
        })
        .collect();
    (!entries.is_empty())
        .then(|| json!({ "metadata": { "resourceVersion": resource_version }, "webhooks": entries }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, prelude::BASE64_STANDARD};

    fn configuration(entries: &Value) -> Value {
        json!({ "metadata": { "name": NAME, "resourceVersion": "7" }, "webhooks": entries })
    }

    fn check<R: Registration>(entries: &Value, expected: &Value) {
        let present: R = serde_json::from_value(configuration(entries)).expect("a configuration");
        let expected = (!expected.is_null())
            .then(|| json!({ "metadata": { "resourceVersion": "7" }, "webhooks": expected }));
        assert_eq!(missing(&present, "roots"), expected);
    }

    fn entry(name: &str, bundle: Option<&str>, policy: &str) -> Value {
        let mut entry = json!({
            "name": name, "clientConfig": { "service": { "name": "airlane-webhook", "namespace": "airlane-system" } },
            "failurePolicy": policy, "sideEffects": "None", "admissionReviewVersions": ["v1"],
        });
        if let Some(bundle) = bundle {
            entry["clientConfig"]["caBundle"] = json!(BASE64_STANDARD.encode(bundle));
        }
        entry
    }

    #[test]
    fn only_what_is_missing_is_written() {
        let roots = BASE64_STANDARD.encode("roots");
        let bundle = json!({ "caBundle": roots });
        check::<MutatingWebhookConfiguration>(
            &json!([
                entry("a", None, "Ignore"),
                entry("b", Some("old"), "Fail"),
                entry("c", Some("roots"), "Ignore")
            ]),
            &json!([
                { "name": "a", "clientConfig": bundle, "failurePolicy": "Fail" },
                { "name": "b", "clientConfig": bundle },
                { "name": "c", "failurePolicy": "Fail" },
            ]),
        );
        check::<MutatingWebhookConfiguration>(&json!([entry("a", Some("roots"), "Fail")]), &Value::Null);
        check::<ValidatingWebhookConfiguration>(
            &json!([entry("a", None, "Ignore")]),
            &json!([{ "name": "a", "clientConfig": bundle }]),
        );
        check::<ValidatingWebhookConfiguration>(&json!([entry("a", Some("roots"), "Ignore")]), &Value::Null);
        check::<ValidatingWebhookConfiguration>(&json!([]), &Value::Null);
    }
}
