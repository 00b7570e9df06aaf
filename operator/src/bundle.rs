//! The root's certificate for whoever wants to check a certificate of the mesh: a ConfigMap in every namespace whose
//! pods join it. Sidecars do without: the root that they trust is pinned where they are injected.

use airlane_core::id::Namespace;
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// The ConfigMap's name, its key, and whose fields these are.
const NAME: &str = "airlane-root";
const KEY: &str = "root.pem";
const MANAGER: &str = "airlane";

/// How often it is written again although nothing changed: somebody may have deleted it. To watch it would take the
/// right to read every ConfigMap of the cluster.
const AGAIN: Duration = Duration::from_secs(600);
/// From a failed write to the next try.
const RETRY: Duration = Duration::from_secs(30);

/// Writes the ConfigMaps.
#[derive(Clone)]
pub(crate) struct Bundle {
    client: Client,
    /// The roots to trust, PEM.
    pem: String,
    joined: watch::Receiver<Arc<BTreeSet<Namespace>>>,
}

impl Bundle {
    /// Writes these roots into the namespaces that have joined the mesh.
    pub(crate) fn new(
        client: Client,
        pem: String,
        joined: watch::Receiver<Arc<BTreeSet<Namespace>>>,
    ) -> Bundle {
        Bundle { client, pem, joined }
    }

    /// Keeps them there until told to stop.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut written: BTreeSet<Namespace> = BTreeSet::new();
        loop {
            let wanted = Arc::clone(&self.joined.borrow_and_update());
            // A namespace that left and comes back may have lost it.
            written.retain(|namespace| wanted.contains(namespace));
            for namespace in wanted.iter() {
                if written.contains(namespace) {
                    continue;
                }
                match self.write(namespace).await {
                    Ok(_) => {
                        written.insert(namespace.clone());
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(%namespace, error, "the mesh's root was not written into ConfigMap {NAME}");
                    }
                }
            }
            let failed = written.len() < wanted.len();
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = self.joined.changed() => if changed.is_err() { return },
                () = sleep(if failed { RETRY } else { AGAIN }) => if !failed { written.clear() },
            }
        }
    }

    async fn write(&self, namespace: &Namespace) -> kube::Result<ConfigMap> {
        let labels = [("app.kubernetes.io/part-of", "airlane"), ("app.kubernetes.io/managed-by", "airlane")];
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                labels: Some(BTreeMap::from(labels.map(|(key, value)| (key.to_owned(), value.to_owned())))),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), self.pem.clone())])),
            ..ConfigMap::default()
        };
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace.as_str());
        // What others wrote into it is not trusted.
        api.patch(NAME, &PatchParams::apply(MANAGER).force(), &Patch::Apply(map)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted_api::{client, refusal};
    use serde_json::Value;
    use std::sync::Mutex;
    use tokio::time::timeout;

    fn namespaces(names: &[&str]) -> Arc<BTreeSet<Namespace>> {
        Arc::new(names.iter().map(|name| Namespace::parse(name).expect("a namespace")).collect())
    }

    #[tokio::test]
    async fn every_namespace_that_joins_has_the_root() {
        let (told, mut writes) = tokio::sync::mpsc::unbounded_channel();
        let told = Mutex::new(told);
        let api = client(move |(method, path, body)| {
            assert_eq!(method, http::Method::PATCH);
            assert_eq!(body["data"]["root.pem"], "PEM");
            told.lock().expect("not poisoned").send(path.clone()).expect("open");
            // One that is just being deleted keeps the others from nothing.
            if path.contains("/gone/") { refusal(403, "Forbidden") } else { Some((200, Value::clone(&body))) }
        });
        let (joined, receiver) = watch::channel(namespaces(&["gone", "shop"]));
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(Bundle::new(api, "PEM".into(), receiver).run(shutdown.clone()));
        let mut next = async || {
            let path = timeout(Duration::from_secs(10), writes.recv()).await.expect("in time").expect("open");
            path.split('/').nth(4).map(str::to_owned)
        };
        assert_eq!(next().await.as_deref(), Some("gone"));
        assert_eq!(next().await.as_deref(), Some("shop"));
        joined.send_replace(namespaces(&["bank", "shop"]));
        assert_eq!(next().await.as_deref(), Some("bank"), "only the new one");
        joined.send_replace(namespaces(&["bank"]));
        tokio::task::yield_now().await;
        joined.send_replace(namespaces(&["bank", "zoo"]));
        assert_eq!(next().await.as_deref(), Some("zoo"));
        shutdown.cancel();
        timeout(Duration::from_secs(10), running).await.expect("in time").expect("no panic");
    }
}
