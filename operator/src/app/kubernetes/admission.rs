//! What the API server asks about pods: the webhook's port, its certificate, and what pods are given.

use super::{Replica, process::injection};
use crate::{
    app::Tasks,
    args::Operator,
    ca::Ca,
    clock::Clock,
    serve,
    tls::ServerTls,
    webhook::server::{Webhook, serve as answer},
};
use anyhow::Context as _;
use std::sync::Arc;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

/// A port that is taken, and the certificate to be shown there.
pub(super) struct Door {
    listener: TcpListener,
    tls: ServerTls,
}

/// Takes the port.
///
/// # Errors
/// It is taken already, or no certificate could be signed.
pub(super) fn listen(args: &Operator, ca: &Arc<Ca>, clock: &Arc<dyn Clock>) -> anyhow::Result<Door> {
    let called = format!("airlane-webhook.{}.svc", args.namespace);
    let tls = ServerTls::for_api_server(ca.clone(), clock.clone(), &called)
        .context("cannot certify the webhook")?;
    let listener =
        serve::listen(args.webhook).with_context(|| format!("cannot listen on {}", args.webhook))?;
    Ok(Door { listener, tls })
}

/// Answers until `lingering` ends, which is later than shutdown.
pub(super) fn spawn(
    replica: &Replica,
    args: &Operator,
    door: Door,
    lingering: CancellationToken,
    tasks: &mut Tasks,
) {
    let Replica { ca, observed, picture, .. } = replica.clone();
    let (setup, given) = watch::channel(Arc::new(injection(args, &ca)));
    let (all, mut roots, ending) = (args.clone(), ca.bundle(), tasks.shutdown());
    tasks.spawn_sure("the roots that pods pin", async move {
        while let Some(Ok(())) = ending.run_until_cancelled(roots.changed()).await {
            setup.send_replace(Arc::new(injection(&all, &ca)));
        }
    });
    let answers = Webhook {
        injection: given,
        namespaces: observed.namespaces,
        workloads: observed.workloads,
        picture,
        system_namespace: args.namespace.clone(),
    };
    let (keeping, ending) = (door.tls.clone(), tasks.shutdown());
    tasks.spawn_sure("the webhook's certificate", async move { keeping.keep_valid(ending).await });
    tasks.spawn_sure("the webhook", answer(door.listener, door.tls, answers, lingering));
}
