//! `airlane operator`: the control plane of a Kubernetes cluster, put together.
//!
//! The ports of the sidecars and of the webhook, and the socket, are taken before anything runs, so that a replica that
//! cannot serve says so and ends. Then each side of it is started: what is published to proxies, what sidecars and other
//! replicas reach ([`sidecars`]), what the API server asks ([`admission`]), what the leader alone does ([`leading`]).

mod admission;
mod leading;
mod process;
mod sidecars;

use super::{Tasks, allow_files, private_directory, ready};
use crate::{
    args::Operator,
    ca::{self, Ca},
    clock::{Clock, SystemClock},
    control::{self, Picture, Pulse},
    fleet::Fleet,
    health::{self, Health, Obstacle},
    lease::{Candidate, Lead, Me, Terms},
    local::{
        root::{self, Authority},
        server::{self, Local},
    },
    observe::{
        kubernetes::{self, Observed, Restarts},
        world::MeshSettings,
    },
    pods::Pods,
    readiness, serve,
    signals::Signals,
    tls::ServerTls,
    xds::Publisher,
};
use airlane_envoy::lower::{Lowerer, Settings};
use anyhow::Context as _;
use jiff::SignedDuration;
use process::{api_server, overlap, process_name, reached_at};
use std::{collections::HashSet, path::Path, sync::Arc, time::Duration};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// How long the webhook, and the watch of the cluster by which it answers, go on after it was announced that this replica
/// ends: until nobody sends questions to it. The lead is given up at once.
const LINGER: Duration = Duration::from_secs(5);

/// What the sides of a replica share.
#[derive(Clone)]
struct Replica {
    client: kube::Client,
    clock: Arc<dyn Clock>,
    ca: Arc<Ca>,
    tls: ServerTls,
    observed: Observed,
    pods: Arc<Pods>,
    picture: watch::Receiver<Option<Picture>>,
    publisher: Publisher,
    fleet: Fleet,
    signals: Signals,
    lead: Lead,
}

/// Runs the control plane until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or the task that ended though nobody asked it to.
pub(crate) async fn operator(args: &Operator, state: &Path) -> anyhow::Result<()> {
    private_directory(state)?;
    allow_files();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let mesh = MeshSettings {
        trust_domain: args.trust_domain.clone(),
        system_namespace: args.namespace.clone(),
        cluster_domain: Some(args.cluster_domain.clone()),
    };
    let client = api_server().await?;
    let overlap = overlap(args)?;
    let ca = Arc::new(authority(args, &client, &*clock).await?);
    let tls = ServerTls::new(ca.clone(), clock.clone()).context("cannot certify the operator itself")?;
    let listener = serve::listen(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let webhook = admission::listen(args, &ca, &clock)?;
    let socket = state.join("airlane.sock");
    let commands =
        server::listen(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;

    let mut tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    let lingering = CancellationToken::new();
    let publisher = Publisher::new(clock.clone());
    let fleet = Fleet::new(publisher.clone(), clock.clone());
    let (clusters, published_clusters) = watch::channel(Arc::new(HashSet::new()));
    let (picture_sender, picture) = watch::channel(None);
    let me = Me { name: process_name(args)?, address: reached_at(args, address) };
    let terms = Terms::lasting(args.lease_duration);
    let (candidate, lead) =
        Candidate::new(client.clone(), mesh.system_namespace.as_str(), me.clone(), terms, clock.clone());

    let restarts = if args.restarts { Restarts::Watched } else { Restarts::Ignored };
    let (observed, watching) =
        kubernetes::watch(&client, mesh.system_namespace.clone(), restarts, lingering.clone());
    tasks.spawn_sure("the watch of the cluster", watching);
    let pods = Arc::new(Pods::new(observed.instances.clone(), clock.clone()));
    let replica = Replica {
        client,
        clock: clock.clone(),
        ca: ca.clone(),
        tls,
        observed,
        pods,
        picture,
        publisher: publisher.clone(),
        fleet,
        signals: Signals::new(published_clusters),
        lead,
    };
    let lowerer =
        Lowerer::new(Settings { bundle_pem: ca.bundle_pem(), fail_safe_after: args.fail_safe_after });
    let pulse = Pulse::new(clock.clone());
    let outputs = control::Outputs { publisher, picture: picture_sender, clusters, pulse: pulse.clone() };
    replica.publish(mesh, lowerer, outputs, &mut tasks);

    let (judges, judging) = watch::channel(false);
    let routes = sidecars::routes(&replica, args, (judges, judging.clone()), &mut tasks);
    let following = ca::keeping::follow(ca.clone(), clock.clone(), shutdown.clone());
    tasks.spawn_sure("the Secret of what signs", following);
    let authority = Authority { ca, overlap, clock };
    let answers = root::router(authority).merge(server::router(replica.local()));
    let ending = shutdown.clone();
    tasks.spawn("the command socket", async move { Ok(server::serve(commands, answers, ending).await?) });
    admission::spawn(&replica, args, webhook, lingering.clone(), &mut tasks);
    tasks.spawn_sure("the lease", candidate.run(shutdown.clone()));
    leading::spawn(&replica, args, judging, me.name, &mut tasks)?;
    let (port, answers, until) = (args.health, replica.health(pulse, shutdown.clone()), lingering.clone());
    tasks.spawn("the health port", async move {
        health::serve(port, answers, until).await.with_context(|| format!("cannot listen on {port}"))
    });
    tasks.spawn_sure("the last answers", async move {
        shutdown.cancelled().await;
        sleep(LINGER).await;
        lingering.cancel();
    });
    sidecars::spawn(replica, listener, routes, &mut tasks);

    ready(&address.to_string());
    tasks.run().await
}

/// What signs, wherever it is kept.
async fn authority(args: &Operator, client: &kube::Client, clock: &dyn Clock) -> anyhow::Result<Ca> {
    let (client, namespace, trust_domain) = (client.clone(), &args.namespace, args.trust_domain.clone());
    let lifetime = SignedDuration::try_from(args.leaf_ttl)?;
    let ca = match &args.intermediate_secret {
        None => Ca::in_cluster(client, namespace, trust_domain, lifetime, clock.now()).await,
        Some(secret) => Ca::external(client, namespace, secret, trust_domain, lifetime, clock.now()).await,
    };
    Ok(ca?)
}

impl Replica {
    /// Starts what makes configuration of what is observed, and says which pods run it.
    fn publish(&self, mesh: MeshSettings, lowerer: Lowerer, outputs: control::Outputs, tasks: &mut Tasks) {
        let Replica { ca, observed, pods, picture, publisher, lead, .. } = self.clone();
        let (following, ending) = (pods.clone(), tasks.shutdown());
        tasks.spawn_sure("the list of pods", async move { following.run(ending).await });
        let inputs = control::Inputs {
            declared: observed.declared.clone(),
            instances: pods.watch(),
            statuses: observed.statuses.clone(),
            judged: lead.held,
            bundle: ca.bundle(),
        };
        let caught_up = pods.clone();
        let complete = async move {
            observed.complete().await;
            caught_up.catch_up();
        };
        let ending = tasks.shutdown();
        tasks.spawn_sure("the control loop", control::run(mesh, lowerer, inputs, outputs, complete, ending));
        let ending = tasks.shutdown();
        tasks.spawn_sure("readiness", readiness::announce(picture, publisher, pods, ending));
    }

    /// What commands are answered from.
    fn local(&self) -> Local {
        let Replica { picture, signals, publisher, fleet, pods, tls, .. } = self.clone();
        Local { picture, signals, publisher, fleet, members: pods, tls }
    }

    /// What the kubelet is told.
    fn health(&self, pulse: Pulse, ending: CancellationToken) -> Health {
        let (picture, observed) = (self.picture.clone(), self.observed.clone());
        let waits_for: Obstacle = Arc::new(move || {
            if ending.is_cancelled() {
                return Some("it is about to end".to_owned());
            }
            picture.borrow().is_none().then(|| match &*observed.missing() {
                [] => "the first configuration is being made".to_owned(),
                missing => format!("not listed yet: {}", missing.join(", ")),
            })
        });
        let dead: Obstacle = Arc::new(move || {
            pulse
                .stuck_for()
                .map(|silence| format!("the control loop has not turned for {} s", silence.as_secs()))
        });
        let troubles = self.ca.trouble();
        let trouble: Obstacle = Arc::new(move || troubles.borrow().clone());
        Health { dead, waits_for, trouble }
    }
}
