//! What follows from how the process was called and where it runs.

use crate::{
    args::Operator,
    ca::{Ca, hex},
    observe::kubernetes::WATCH_SECONDS,
    webhook::inject::Injection,
};
use airlane_core::pki::rotation::OVERLAP_MARGIN;
use anyhow::Context as _;
use jiff::SignedDuration;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::{net::SocketAddr, time::Duration};

/// How long a connection to the API server may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// The API server. A connection on which nothing comes for so long is dead, whatever is waited for: a watch ends
/// before, and begins anew.
pub(super) async fn api_server() -> anyhow::Result<kube::Client> {
    let mut config =
        kube::Config::infer().await.context("there is no cluster: run it in one, or set KUBECONFIG")?;
    config.connect_timeout = Some(CONNECT_WITHIN);
    config.read_timeout = Some(Duration::from_secs(WATCH_SECONDS.into()) + CONNECT_WITHIN);
    kube::Client::try_from(config).context("the way to the cluster cannot be used")
}

/// How long two roots are trusted at either step of a replacement.
pub(super) fn overlap(args: &Operator) -> anyhow::Result<SignedDuration> {
    let leaf_lifetime = SignedDuration::try_from(args.leaf_ttl)?;
    match args.root_overlap {
        None => Ok(leaf_lifetime.saturating_add(OVERLAP_MARGIN)),
        Some(overlap) if overlap >= args.leaf_ttl => Ok(overlap.try_into()?),
        Some(_) => {
            anyhow::bail!("--root-overlap must be as long as --leaf-ttl: who has a leaf would not be trusted")
        }
    }
}

/// The name of the service before the operator's replicas.
pub(super) fn service_name(args: &Operator) -> String {
    format!("airlane.{}.svc.{}", args.namespace, args.cluster_domain)
}

/// Where other replicas reach this one.
pub(super) fn reached_at(args: &Operator, listens: SocketAddr) -> Option<SocketAddr> {
    let own = (!listens.ip().is_unspecified()).then_some(listens.ip());
    let reached = args.pod_ip.or(own).map(|ip| SocketAddr::new(ip, listens.port()));
    if reached.is_none() {
        tracing::warn!("other replicas cannot report to this one: set POD_IP");
    }
    reached
}

/// A name that no other process has, before or after this one: a container that was started again must not take what
/// the one before it held for its own.
pub(super) fn process_name(args: &Operator) -> anyhow::Result<String> {
    let mut bytes = [0; 4];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(format!("{}_{:08x}", args.pod_name, u32::from_ne_bytes(bytes)))
}

/// What pods get.
pub(super) fn injection(args: &Operator, ca: &Ca) -> Injection {
    let address = || format!("{}:{}", service_name(args), args.listen.port());
    Injection {
        image: args.proxy_image.clone(),
        image_pull_policy: args.proxy_pull.clone(),
        operator: args.address.clone().unwrap_or_else(address),
        roots: ca.fingerprints().iter().map(|root| hex(root)).collect(),
        trust_domain: args.trust_domain.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}
