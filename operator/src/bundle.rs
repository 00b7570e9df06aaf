//! The roots' certificates for whoever wants to check a certificate of the mesh: a ConfigMap in every namespace whose
//! pods join it, and in the operator's own, where `airlane inject` looks. Sidecars do without: the roots that they trust
//! are pinned where they are injected.

use crate::marks::{MANAGER, ROOT, ROOTS_KEY, of_ours};
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
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

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
    pem: watch::Receiver<String>,
    home: Namespace,
    joined: watch::Receiver<Arc<BTreeSet<Namespace>>>,
}

impl Bundle {
    /// Writes these roots into `home` and the namespaces that have joined the mesh.
    pub(crate) fn new(
        client: Client,
        pem: watch::Receiver<String>,
        home: Namespace,
        joined: watch::Receiver<Arc<BTreeSet<Namespace>>>,
    ) -> Bundle {
        Bundle { client, pem, home, joined }
    }

    /// Keeps them there until told to stop.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut written: BTreeMap<Namespace, String> = BTreeMap::new();
        let mut anew_at = Instant::now() + AGAIN;
        loop {
            if Instant::now() >= anew_at {
                written.clear();
                anew_at = Instant::now() + AGAIN;
            }
            let mut wanted = BTreeSet::clone(&self.joined.borrow_and_update());
            wanted.insert(self.home.clone());
            let pem = self.pem.borrow_and_update().clone();
            // A namespace that left and comes back may have lost it.
            written.retain(|namespace, holds| wanted.contains(namespace) && *holds == pem);
            for namespace in &wanted {
                if written.contains_key(namespace) {
                    continue;
                }
                match self.write(namespace, &pem).await {
                    Ok(_) => {
                        written.insert(namespace.clone(), pem.clone());
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(%namespace, error, "the mesh's root was not written into ConfigMap {ROOT}");
                    }
                }
            }
            let failed = written.len() < wanted.len();
            let next = if failed { anew_at.min(Instant::now() + RETRY) } else { anew_at };
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = self.joined.changed() => if changed.is_err() { return },
                changed = self.pem.changed() => if changed.is_err() { return },
                () = sleep_until(next) => {}
            }
        }
    }

    async fn write(&self, namespace: &Namespace, pem: &str) -> kube::Result<ConfigMap> {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(ROOT.to_owned()),
                labels: Some(of_ours()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(ROOTS_KEY.to_owned(), pem.to_owned())])),
            ..ConfigMap::default()
        };
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace.as_str());
        // What others wrote into it is not trusted.
        api.patch(ROOT, &PatchParams::apply(MANAGER).force(), &Patch::Apply(map)).await
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
    async fn every_namespace_that_joins_has_the_roots_and_so_has_the_operators() {
        let (told, mut writes) = tokio::sync::mpsc::unbounded_channel();
        let told = Mutex::new(told);
        let api = client(move |(method, path, body)| {
            assert_eq!(method, http::Method::PATCH);
            let pem = body["data"]["root.pem"].as_str().map(str::to_owned);
            told.lock().expect("not poisoned").send((path.clone(), pem)).expect("open");
            // One that is just being deleted keeps the others from nothing.
            if path.contains("/gone/") { refusal(403, "Forbidden") } else { Some((200, Value::clone(&body))) }
        });
        let (joined, receiver) = watch::channel(namespaces(&["gone", "shop"]));
        let (pem, pems) = watch::channel("one".to_owned());
        let home = Namespace::parse("airlane-system").expect("a namespace");
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(Bundle::new(api, pems, home, receiver).run(shutdown.clone()));
        let mut next = async || {
            let write =
                timeout(Duration::from_secs(10), writes.recv()).await.expect("in time").expect("open");
            let namespace = write.0.split('/').nth(4).expect("a namespace").to_owned();
            format!("{namespace} {}", write.1.expect("a text"))
        };
        for namespace in ["airlane-system", "gone", "shop"] {
            assert_eq!(next().await, format!("{namespace} one"));
        }
        joined.send_replace(namespaces(&["bank", "shop"]));
        assert_eq!(next().await, "bank one", "only the new one");
        joined.send_replace(namespaces(&["bank"]));
        tokio::task::yield_now().await;
        joined.send_replace(namespaces(&["bank", "zoo"]));
        assert_eq!(next().await, "zoo one");
        // Both at once.
        pem.send_replace("one, two".to_owned());
        joined.send_replace(namespaces(&["bank", "inn", "zoo"]));
        for namespace in ["airlane-system", "bank", "inn", "zoo"] {
            assert_eq!(next().await, format!("{namespace} one, two"));
        }
        shutdown.cancel();
        timeout(Duration::from_secs(10), running).await.expect("in time").expect("no panic");
    }
    #[tokio::test(start_paused = true)]
    async fn all_is_written_again_in_time_whatever_fails_and_whoever_joins() {
        let (told, mut writes) = tokio::sync::mpsc::unbounded_channel();
        let api = client(move |(_, path, body)| {
            if path.contains("/gone/") {
                return refusal(403, "Forbidden");
            }
            told.send((path.contains("/shop/"), Instant::now())).expect("open");
            Some((200, body))
        });
        let (joined, receiver) = watch::channel(namespaces(&["gone", "shop"]));
        let (_pem, pems) = watch::channel("one".to_owned());
        let home = Namespace::parse("airlane-system").expect("a namespace");
        let begun = Instant::now();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(Bundle::new(api, pems, home, receiver).run(shutdown.clone()));
        let coming = tokio::spawn(async move {
            for turn in 0.. {
                tokio::time::sleep(AGAIN / 4).await;
                let others: &[&str] =
                    if turn % 2 == 0 { &["bank", "gone", "shop"] } else { &["gone", "shop"] };
                joined.send_replace(namespaces(others));
            }
        });
        let mut into_shop = Vec::new();
        while into_shop.len() < 3 {
            if let (true, at) = writes.recv().await.expect("open") {
                into_shop.push(at - begun);
            }
        }
        coming.abort();
        shutdown.cancel();
        running.await.expect("no panic");
        for (turn, at) in (0..).zip(into_shop) {
            assert!(at >= AGAIN * turn && at < AGAIN * turn + Duration::from_secs(1), "{turn}: {at:?}");
        }
    }
}
