//! What only the operator knows of a cluster's mesh, asked of its replicas.
//!
//! All of them know the same world; the leader also hears what proxies report. Which proxies run what is published,
//! and until when certificates are good, each replica knows of the proxies connected to it.

use super::{Cluster, exec::Exec};
use crate::{
    cli::client::{Client, ClientError},
    local::{
        root::{ReplacementView, RootsView},
        server::{CertificateView, RotateRequest},
        view::ProxyView,
    },
};
use anyhow::{Context as _, bail};
use futures::future::try_join_all;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{Api, api::ListParams};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// The operator's pods.
const PODS: &str = "app.kubernetes.io/name=airlane,app.kubernetes.io/component=operator";
/// Who leads; the holder is a pod's name, `_`, and what tells its processes apart.
const LEASE: &str = "airlane-leader";

/// The replicas that serve, the leader first if it is known.
pub(crate) struct Replicas(Vec<Replica>);

struct Replica {
    pod: String,
    client: Client,
}

impl Replicas {
    /// Those of a cluster.
    pub(crate) async fn find(cluster: &Cluster) -> anyhow::Result<Replicas> {
        let namespace = cluster.system.as_str();
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let pods = pods.list(&ListParams::default().labels(PODS)).await.with_context(|| {
            format!(
                "cannot list the operator's pods in namespace {namespace}; what only it knows is for whoever may list \
                 and exec into them. `airlane get policies` and `airlane get canaries` go by your rights in their namespaces"
            )
        })?;
        if pods.items.is_empty() {
            bail!(
                "no operator runs in namespace {namespace}: is Airlane installed? `airlane install`, or \
                 --operator-namespace"
            );
        }
        let mut names: Vec<String> =
            pods.items.into_iter().filter(serves).filter_map(|pod| pod.metadata.name).collect();
        if names.is_empty() {
            bail!("no replica of the operator serves: `kubectl describe pods -n {namespace}` says why");
        }
        let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), namespace);
        // Without it any of them is as good as another.
        let lease = leases.get(LEASE).await.ok().and_then(|lease| lease.spec?.holder_identity);
        leader_first(&mut names, lease.as_deref());
        let replica = |pod: String| {
            let exec =
                Exec { context: cluster.context.clone(), namespace: namespace.to_owned(), pod: pod.clone() };
            Replica { pod, client: Client::in_pod(exec) }
        };
        Ok(Replicas(names.into_iter().map(replica).collect()))
    }

    /// What the leader answers.
    pub(crate) async fn leader<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        // There is at least one.
        self.0[0].client.get(path).await
    }

    /// Every proxy, as the replica tells it that it is connected to.
    pub(crate) async fn proxies(&self) -> Result<Vec<ProxyView>, ClientError> {
        let answers = self.0.iter().map(|replica| replica.client.get("/v1/proxies"));
        Ok(proxies(try_join_all(answers).await?))
    }

    /// Every certificate.
    pub(crate) async fn certificates(&self) -> Result<Vec<CertificateView>, ClientError> {
        let answers = self.0.iter().map(async |replica| {
            Ok::<_, ClientError>((&*replica.pod, replica.client.get("/v1/certificates").await?))
        });
        Ok(certificates(try_join_all(answers).await?))
    }

    /// Has the leader begin to replace the root.
    pub(crate) async fn rotate_root(&self) -> Result<Option<ReplacementView>, ClientError> {
        self.0[0].client.post("/v1/root/rotate", &()).await
    }

    /// What is wrong with what signs, as each replica finds it that does.
    pub(crate) async fn troubles(&self) -> Result<Vec<String>, ClientError> {
        let answers = self.0.iter().map(async |replica| {
            let roots: RootsView = replica.client.get("/v1/root").await?;
            Ok::<_, ClientError>(roots.trouble.map(|trouble| format!("{}: {trouble}", replica.pod)))
        });
        Ok(try_join_all(answers).await?.into_iter().flatten().collect())
    }

    /// Asks for new certificates; how many sidecars were asked.
    pub(crate) async fn rotate(&self, request: &RotateRequest) -> Result<usize, ClientError> {
        // A sidecar gives its signs of life to one of them, and it is not said to which.
        let asked =
            self.0.iter().map(|replica| replica.client.post::<usize>("/v1/certificates/rotate", request));
        Ok(try_join_all(asked).await?.into_iter().max().unwrap_or(0))
    }
}

fn serves(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = |conditions: &Vec<_>| {
        conditions
            .iter()
            .any(|it: &k8s_openapi::api::core::v1::PodCondition| it.type_ == "Ready" && it.status == "True")
    };
    pod.metadata.deletion_timestamp.is_none() && conditions.is_some_and(ready)
}

fn leader_first(pods: &mut [String], holder: Option<&str>) {
    let leader = holder.and_then(|holder| holder.rsplit_once('_')).map(|(pod, _)| pod);
    pods.sort_by_key(|pod| Some(pod.as_str()) != leader);
}

fn proxies(answers: Vec<Vec<ProxyView>>) -> Vec<ProxyView> {
    let mut known: BTreeMap<(String, String), ProxyView> = BTreeMap::new();
    for row in answers.into_iter().flatten() {
        let key = (row.namespace.clone(), row.instance.clone());
        // One that has just moved may be told twice: the later stream is the present one.
        let fresher = known.get(&key).is_none_or(|other| row.connected_at > other.connected_at);
        if fresher {
            known.insert(key, row);
        }
    }
    known.into_values().collect()
}

fn certificates(answers: Vec<(&str, Vec<CertificateView>)>) -> Vec<CertificateView> {
    let several = answers.len() > 1;
    let mut own = Vec::new();
    let mut workloads: BTreeMap<String, CertificateView> = BTreeMap::new();
    for (pod, rows) in answers {
        for mut row in rows {
            if row.is_workload() {
                let fresher = workloads.get(&row.holder).is_none_or(|other| row.not_after > other.not_after);
                if fresher {
                    workloads.insert(row.holder.clone(), row);
                }
            } else {
                if several {
                    row.holder = format!("{} ({pod})", row.holder);
                }
                own.push(row);
            }
        }
    }
    own.extend(workloads.into_values());
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_asked_first() {
        let check = |holder: Option<&str>, expected: [&str; 2]| {
            let mut pods = ["airlane-a".to_owned(), "airlane-b".to_owned()];
            leader_first(&mut pods, holder);
            assert_eq!(pods, expected, "{holder:?}");
        };
        check(Some("airlane-b_0badcafe"), ["airlane-b", "airlane-a"]);
        check(Some("airlane-a_0badcafe"), ["airlane-a", "airlane-b"]);
        check(Some("airlane-gone_0badcafe"), ["airlane-a", "airlane-b"]);
        check(None, ["airlane-a", "airlane-b"]);
    }

    fn proxy(instance: &str, connected_at_s: Option<i64>) -> ProxyView {
        let at = |seconds| jiff::Timestamp::from_second(seconds).expect("a time");
        ProxyView {
            instance: instance.into(),
            namespace: "shop".into(),
            identity: String::new(),
            connected: connected_at_s.is_some(),
            connected_at: connected_at_s.map(at),
            acknowledged_epoch: 0,
            published_epoch: 0,
            current: connected_at_s.is_some(),
            rejected: 0,
            rejections: Vec::new(),
            heard_at: None,
        }
    }

    #[test]
    fn a_proxy_is_told_by_the_replica_it_is_connected_to() {
        let one = vec![proxy("a", Some(1)), proxy("b", None), proxy("c", Some(9)), proxy("d", None)];
        let other = vec![proxy("a", None), proxy("b", Some(2)), proxy("c", Some(8)), proxy("d", None)];
        let told: Vec<(String, Option<i64>)> = proxies(vec![one, other])
            .into_iter()
            .map(|row| (row.instance, row.connected_at.map(jiff::Timestamp::as_second)))
            .collect();
        let expected = [("a", Some(1)), ("b", Some(2)), ("c", Some(9)), ("d", None)];
        assert_eq!(told, expected.map(|(name, at)| (name.to_owned(), at)));
    }

    fn certificate(holder: &str, end_s: i64) -> CertificateView {
        CertificateView {
            subject: if holder == "pay" { "spiffe://td/ns/shop/sa/pay".into() } else { String::new() },
            holder: holder.into(),
            not_after: jiff::Timestamp::from_second(end_s).expect("a time"),
            renew_at: None,
        }
    }

    #[test]
    fn of_a_workloads_certificates_the_last_is_told_and_of_replicas_each() {
        let one = vec![certificate("authority", 9), certificate("pay", 1)];
        let other = vec![certificate("authority", 8), certificate("pay", 2)];
        let told: Vec<(String, i64)> = certificates(vec![("x", one), ("y", other)])
            .into_iter()
            .map(|row| (row.holder, row.not_after.as_second()))
            .collect();
        let expected = [("authority (x)", 9), ("authority (y)", 8), ("pay", 2)];
        assert_eq!(told, expected.map(|(holder, end)| (holder.to_owned(), end)));
    }
}
