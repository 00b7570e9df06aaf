//! The agent of a pod: as beside any application, but the kubelet starts and stops the application, the injector says
//! what there is to know, and the kubelet's questions come here.

mod account;
mod ask;
mod departure;
mod desk;

use crate::{
    args::Pod,
    envoy::{self, Envoy},
    health::Health,
    join::{Invitation, Source},
    membership::Membership,
    rundir::RunDir,
    sidecar::Sidecar,
    stopping::Stopping,
};
use airlane_wire::{
    message::{AppHealth, JoinRequest},
    pod::Asks,
};
use anyhow::Context;
use departure::Departure;
use desk::{Desk, Live};
use nix::sys::prctl;
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, time::timeout};

/// The longest to wait, once the application has ended, until callers know and have their answers.
const DEPARTURE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until the kubelet asks to stop, which it does when the application has ended.
pub(crate) async fn run(pod: Pod) -> anyhow::Result<u8> {
    // The key is in this memory: no core dump, no reader among the user's other processes.
    prctl::set_dumpable(false).context("cannot protect the memory of this process")?;
    let stopping = Stopping::listen().context("cannot listen to signals")?;
    let asks: Asks = pod.asks.parse()?;
    let binary = envoy::find()?;
    let source = Source::Pod {
        invitation: Invitation {
            address: pod.operator.clone(),
            roots: pod.roots.clone(),
            trust_domain: pod.trust_domain.clone(),
            token: String::new(),
        },
        token: pod.token.clone(),
        roots: pod.run_dir.join("roots.pem"),
    };
    let account = account::of_token(&source.read()?.token)?;
    let dir = Arc::new(RunDir::make_alone_in(&pod.run_dir)?);
    let request = join_request(&pod, &dir, account);

    let listener =
        listen(pod.agent_port).await.with_context(|| format!("cannot listen on port {}", pod.agent_port))?;
    let desk = Arc::new(Desk::new(asks, pod.ip));
    tokio::spawn(desk::serve(listener, Arc::clone(&desk)));

    let membership = tokio::select! {
        joined = Membership::join(source, request) => joined?,
        () = stopping.asked() => return Ok(0),
    };
    tracing::info!(instance = membership.instance(), "joined the mesh");
    let sidecar = Sidecar::start(membership, Envoy { binary, concurrency: pod.concurrency, dir })?;
    // The kubelet says how the application is; the operator hears it from the API server.
    sidecar.health.send_replace(Health { state: AppHealth::Healthy, reason: String::new() });
    let departure = Departure::of(sidecar.exit.clone());
    desk.open(Live { envoy_ready: sidecar.envoy_ready.clone(), departure: departure.clone() });

    stopping.asked().await;
    let departed = stopping.unless_hurried(timeout(DEPARTURE_TIMEOUT, departure.of_the_pod()));
    if let Some(Err(_)) = departed.await {
        tracing::warn!("some callers still wait for an answer");
    }
    sidecar.stop(&stopping).await?;
    Ok(0)
}

fn join_request(pod: &Pod, dir: &RunDir, account: account::Account) -> JoinRequest {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    JoinRequest {
        namespace: account.namespace,
        service: account.name,
        address: pod.ip.to_string(),
        outbound_port: airlane_wire::pod::OUTBOUND_PORT.into(),
        agent_socket: text(&dir.agent_socket()),
        admin_socket: text(&dir.admin_socket()),
        event_log: text(&dir.event_log()),
        sidecar_version: env!("CARGO_PKG_VERSION").into(),
        ..JoinRequest::default()
    }
}

/// Listens on all of the pod's addresses, also where the kernel has no IPv6.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        bound => bound,
    }
}
