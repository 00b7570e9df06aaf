//! How those are who are in the mesh.

use super::{
    Finding::{self, Bad, Good, Note, Untold},
    unanswered,
};
use crate::{
    cli::cluster::{Cluster, replicas::Replicas},
    local::view::ProxyView,
    marks::MESHED,
    observe::kubernetes::pod::workload_of,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use std::collections::{BTreeMap, BTreeSet};

/// Names that are said before the rest is counted.
const NAMED: usize = 5;

/// Whether proxies run what is published, and certificates are signed, by what the operator's replicas say.
pub(super) async fn by_the_operator(cluster: &Cluster) -> Vec<Finding> {
    let asked = async {
        let replicas = Replicas::find(cluster).await?;
        anyhow::Ok((replicas.proxies().await?, replicas.troubles().await?))
    };
    match asked.await {
        Ok((proxies, troubles)) => {
            let signs = "every replica can sign certificates".to_owned();
            let signs = if troubles.is_empty() { Good(signs) } else { Bad(troubles.join("; ")) };
            vec![told(&proxies), signs]
        }
        Err(error) => vec![Untold(format!("proxies and certificates: {error:#}"))],
    }
}

fn told(proxies: &[ProxyView]) -> Finding {
    let names = |wanted: fn(&&ProxyView) -> bool| {
        let wanted = proxies.iter().filter(wanted);
        some(&wanted.map(|proxy| format!("{}/{}", proxy.namespace, proxy.instance)).collect::<Vec<_>>())
    };
    let count = proxies.len();
    match (names(|proxy| !proxy.connected), names(|proxy| proxy.connected && !proxy.current)) {
        (None, None) => Good(format!("all {count} proxies are connected and run what is published")),
        (Some(away), _) => Bad(format!(
            "of {count} proxies are not connected: {away}; the logs of airlane-proxy there say why"
        )),
        (None, Some(behind)) => Bad(format!(
            "of {count} proxies do not run what is published: {behind}; `airlane describe proxy NAME` says what they refuse"
        )),
    }
}

/// The first names, and how many more.
fn some(names: &[String]) -> Option<String> {
    let first = names.first()?.clone();
    let more = names.len().saturating_sub(NAMED);
    let named = names[1..].iter().take(NAMED - 1).fold(first, |text, name| text + ", " + name);
    Some(if more > 0 { format!("{named} and {more} more") } else { named })
}

/// Whether workloads can be told from each other: who has the account has the identity.
pub(super) async fn accounts(cluster: &Cluster) -> Finding {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    match pods.list(&ListParams::default().labels(&format!("{MESHED}=true"))).await {
        Ok(pods) => shared(pods.items),
        Err(error) => unanswered("accounts", &error),
    }
}

fn shared(pods: Vec<Pod>) -> Finding {
    let mut workloads: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pod in pods {
        let account = pod.spec.and_then(|spec| spec.service_account_name);
        if account.is_none_or(|account| account == "default")
            && let Some(workload) = workload_of(&pod.metadata)
        {
            workloads
                .entry(workload.namespace.to_string())
                .or_default()
                .insert(workload.workload.to_string());
        }
    }
    let several = workloads.into_iter().filter(|(_, workloads)| workloads.len() > 1);
    let several = several
        .map(|(namespace, workloads)| format!("{namespace} ({})", Vec::from_iter(workloads).join(", ")));
    match some(&Vec::from_iter(several)) {
        None => Good("no two workloads of a namespace share the account `default`".to_owned()),
        Some(several) => Note(format!(
            "workloads that share the account `default` are one to every access rule, in {several}: give each a \
             serviceAccountName of its own"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::check, *};
    use serde_json::json;

    fn proxy(instance: &str, connected: bool, current: bool) -> ProxyView {
        ProxyView {
            instance: instance.into(),
            namespace: "shop".into(),
            identity: String::new(),
            connected,
            connected_at: None,
            acknowledged_epoch: 0,
            published_epoch: 0,
            current,
            rejected: 0,
            rejections: Vec::new(),
            heard_at: None,
        }
    }

    #[test]
    fn proxies_that_are_away_or_behind_are_named() {
        let well = || proxy("a", true, true);
        check(&told(&[]), "good: all 0 proxies");
        check(&told(&[well()]), "good: all 1 proxies");
        check(
            &told(&[well(), proxy("b", true, false)]),
            "bad: of 2 proxies do not run what is published: shop/b;",
        );
        check(&told(&[well(), proxy("b", false, false)]), "bad: of 2 proxies are not connected: shop/b;");
        let away: Vec<ProxyView> =
            "abcdefg".chars().map(|name| proxy(&name.to_string(), false, false)).collect();
        check(
            &told(&away),
            "bad: of 7 proxies are not connected: shop/a, shop/b, shop/c, shop/d, shop/e and 2 more;",
        );
    }

    fn pod(namespace: &str, name: &str, account: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "namespace": namespace, "name": name },
            "spec": { "serviceAccountName": account, "containers": [] },
        }))
        .expect("a pod")
    }

    #[test]
    fn workloads_that_share_an_account_are_named() {
        let own = pod("shop", "pay", Some("pay"));
        let (one, other) = (pod("shop", "cart", None), pod("shop", "front", Some("default")));
        check(&shared(vec![own.clone(), one.clone(), one.clone(), pod("bank", "cart", None)]), "good:");
        check(
            &shared(vec![own, one, other]),
            "note: workloads that share the account `default` are one to every access rule, in shop (cart, front):",
        );
    }
}
