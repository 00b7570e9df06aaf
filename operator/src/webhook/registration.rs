//! Our entries with the API server, which the chart makes: by which certificate to know us, and whether it may go on
//! without our answer.
//!
//! The chart's entries hold no certificate and say `Ignore`, so that a cluster whose operator never came up is a
//! cluster. The leader writes the roots and has the API server insist on injection: a pod that started without its
//! proxy would be one that no policy holds for. Validation stays `Ignore`: what it refuses is refused again, and said,
//! when it is read.

use crate::observe::kubernetes::WATCH_SECONDS;
use airlane_core::id::Namespace;
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
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// The name of both configurations.
const NAME: &str = "airlane";
/// Before a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Before what was undone is written again, at first and at most.
const UNDONE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A write that lasted so long was not undone: what differs now is another change.
const LASTED: Duration = Duration::from_secs(600);

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

/// Keeps both configurations fresh until told to stop; for the leader. `home` is the operator's namespace, to which
/// our entries lead; `roots` are PEM.
pub(crate) async fn keep(
    client: Client,
    home: Namespace,
    roots: watch::Receiver<String>,
    shutdown: CancellationToken,
) {
    let mutating = keep_one::<MutatingWebhookConfiguration>(client.clone(), &home, roots.clone());
    let validating = keep_one::<ValidatingWebhookConfiguration>(client, &home, roots);
    tokio::select! {
        () = shutdown.cancelled() => {}
        ((), ()) = async { tokio::join!(mutating, validating) } => {}
    }
}

async fn keep_one<R: Registration>(client: Client, home: &Namespace, mut roots: watch::Receiver<String>) {
    let api: Api<R> = Api::all(client);
    let only = watcher::Config::default().timeout(WATCH_SECONDS).fields(&format!("metadata.name={NAME}"));
    let mut events = watcher(api.clone(), only).default_backoff().applied_objects().boxed();
    let mut present: Option<R> = None;
    let mut pace = Pace::default();
    loop {
        let bundle = roots.borrow_and_update().clone();
        let mut again = None;
        if let Some(patch) = present.as_ref().and_then(|present| missing(present, home, &bundle)) {
            let wait = pace.wait(Instant::now());
            if !wait.is_zero() {
                again = Some(wait);
            } else if let Some(written) = write(&api, patch).await {
                pace.wrote(Instant::now());
                present = Some(written);
            } else {
                again = Some(AGAIN);
            }
        }
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(object)) => present = Some(object),
                Ok(None) => pending().await,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot watch the webhook's registration");
                }
            },
            Ok(()) = roots.changed() => pace = Pace::default(),
            () = sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
    }
}

/// How soon it is written again: whoever undoes each write would be answered at once, for ever.
#[derive(Default)]
struct Pace {
    wrote_at: Option<Instant>,
    pause: Duration,
}

impl Pace {
    /// How long a write waits that is due now.
    fn wait(&self, now: Instant) -> Duration {
        self.wrote_at.map_or(Duration::ZERO, |at| self.pause.saturating_sub(now - at))
    }

    fn wrote(&mut self, now: Instant) {
        let (first, longest) = UNDONE;
        let undone = self.wrote_at.is_some_and(|at| now - at < LASTED);
        self.pause = if undone { (self.pause * 2).min(longest) } else { first };
        self.wrote_at = Some(now);
    }
}

/// Writes what is missing, and gives the configuration as it is then; `None` if it has to be tried again.
async fn write<R: Registration>(api: &Api<R>, patch: Value) -> Option<R> {
    match api.patch(NAME, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(written) => {
            tracing::info!(kind = &*R::kind(&()), "the API server knows the webhook's roots");
            Some(written)
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the webhook is not registered");
            None
        }
    }
}

/// What is to be written into a configuration, as a strategic merge patch; `None` if nothing. It names what it was
/// made from, so that it never goes over somebody else's change. Entries that do not lead to us are another operator's.
fn missing<R: Registration>(present: &R, home: &Namespace, bundle: &str) -> Option<Value> {
    let ObjectMeta { resource_version, .. } = present.meta();
    let entries: Vec<Value> = present
        .entries()
        .into_iter()
        .filter(|(_, client, _)| {
            client.service.as_ref().is_some_and(|service| service.namespace == home.as_str())
        })
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
        let home = Namespace::parse("airlane-system").expect("a name");
        assert_eq!(missing(&present, &home, "roots"), expected);
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
    fn entries_of_another_operator_are_left_alone() {
        let mut others = entry("a", Some("theirs"), "Ignore");
        others["clientConfig"]["service"]["namespace"] = json!("their-system");
        check::<MutatingWebhookConfiguration>(&json!([others]), &Value::Null);
        let elsewhere = json!({ "name": "a", "clientConfig": { "url": "https://elsewhere.example" },
            "sideEffects": "None", "admissionReviewVersions": ["v1"] });
        check::<MutatingWebhookConfiguration>(&json!([elsewhere]), &Value::Null);
    }

    #[test]
    fn what_is_undone_each_time_is_written_more_and_more_seldom() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let mut waited = Vec::new();
        for _ in 0..11 {
            let wait = pace.wait(now);
            waited.push(wait.as_secs());
            now += wait;
            pace.wrote(now);
        }
        assert_eq!(waited, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        now += LASTED;
        assert_eq!(pace.wait(now), Duration::ZERO);
        pace.wrote(now);
        assert_eq!(pace.wait(now), Duration::from_secs(1));
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
