//! `airlane operator`: the control plane of a Kubernetes cluster, put together.

use super::{Tasks, private_directory, ready};
use crate::{
    apply::kubernetes::{Teller, Writer, recorder},
    args::Operator,
    bundle::Bundle,
    ca::{self, Ca, hex},
    clock::{Clock, SystemClock},
    control::{self, Picture, Pulse},
    enrol::{decide::Patience, hands::Hands, run::Enrolment},
    fleet::Fleet,
    health::{self, Health, Obstacle},
    join::{Parts, PodTokens, Wire},
    lease::{self, Candidate, Lead, Me, Terms},
    local::{
        root::{self, Authority},
        server::{self, Local},
    },
    members::Members as _,
    observe::{
        kubernetes::{self, Restarts, WATCH_SECONDS},
        world::MeshSettings,
    },
    pods::Pods,
    readiness,
    replicas::{Follower, Leader, Rotations},
    rollouts::Rollouts,
    serve,
    signals::{
        Signals, Way,
        access_log::{FailureLog, MESSAGE_BYTES_MAX},
        gate::Gate,
        metrics::Totaliser,
    },
    tls::{Peer, ServerTls},
    webhook::{self, inject::Injection, server::Webhook},
    xds::Publisher,
};
use airlane_core::pki::rotation::OVERLAP_MARGIN;
use airlane_envoy::lower::{Lowerer, Settings};
use airlane_wire::operator::OperatorServer;
use anyhow::Context;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use jiff::SignedDuration;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::MetricsServiceServer;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::{collections::HashSet, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::{broadcast, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// How often sidecars give a sign of life: it brings what their proxies left out, and takes along that a certificate
/// should be renewed. Whether pods live, the kubelet knows.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);

/// How long the webhook goes on after it was announced that this replica ends: until nobody sends questions to it. The
/// lead is given up at once.
const LINGER: Duration = Duration::from_secs(5);

/// How long a connection to the API server may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Instances that leave, until every replica was told: a node that is drained has a hundred of them at most.
const WORDS_KEPT: usize = 256;

/// Runs the control plane until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or the task that ended though nobody asked it to.
pub(crate) async fn operator(args: &Operator, state: &Path) -> anyhow::Result<()> {
    private_directory(state)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let mesh = MeshSettings {
        trust_domain: args.trust_domain.clone(),
        system_namespace: args.namespace.clone(),
        cluster_domain: Some(args.cluster_domain.clone()),
    };
    let client = api_server().await?;
    let lifetime = SignedDuration::try_from(args.leaf_ttl)?;
    let overlap = overlap(args, lifetime)?;
    let (namespace, trust_domain) = (&args.namespace, mesh.trust_domain.clone());
    let ca = match &args.intermediate_secret {
        None => Ca::in_cluster(client.clone(), namespace, trust_domain, lifetime, clock.now()).await,
        Some(secret) => {
            Ca::external(client.clone(), namespace, secret, trust_domain, lifetime, clock.now()).await
        }
    };
    let ca = Arc::new(ca?);
    let tls = ServerTls::new(ca.clone(), clock.clone()).context("cannot certify the operator itself")?;
    let listener = serve::listen(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let called = format!("airlane-webhook.{}.svc", mesh.system_namespace);
    let webhook_tls = ServerTls::for_api_server(ca.clone(), clock.clone(), &called)
        .context("cannot certify the webhook")?;
    let socket = state.join("airlane.sock");
    let commands =
        server::listen(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let webhook_listener =
        serve::listen(args.webhook).with_context(|| format!("cannot listen on {}", args.webhook))?;

    let mut tasks = Tasks::new();
    let shutdown = tasks.shutdown();
    let publisher = Publisher::new(clock.clone());
    let fleet = Fleet::new(publisher.clone(), clock.clone());
    let (clusters, published_clusters) = watch::channel(Arc::new(HashSet::new()));
    let (picture_sender, picture) = watch::channel(None);
    let signals = Signals::new(published_clusters);
    let me = Me { name: process_name(args)?, address: reached_at(args, address) };
    let terms = Terms::lasting(args.lease_duration);
    let (candidate, lead) =
        Candidate::new(client.clone(), mesh.system_namespace.as_str(), me.clone(), terms, clock.clone());
    let (judges, judging) = watch::channel(false);
    let lowerer =
        Lowerer::new(Settings { bundle_pem: ca.bundle_pem(), fail_safe_after: args.fail_safe_after });

    let restarts = if args.restarts { Restarts::Watched } else { Restarts::Ignored };
    let (observed, watching) =
        kubernetes::watch(&client, mesh.system_namespace.clone(), restarts, shutdown.clone());
    tasks.spawn_sure("the watch of the cluster", watching);
    let pods = Arc::new(Pods::new(observed.instances.clone(), clock.clone()));
    let (following, ending) = (pods.clone(), shutdown.clone());
    tasks.spawn_sure("the list of pods", async move { following.run(ending).await });
    let inputs = control::Inputs {
        declared: observed.declared.clone(),
        instances: pods.watch(),
        statuses: observed.statuses.clone(),
        judged: lead.held.clone(),
        bundle: ca.bundle(),
    };
    let pulse = Pulse::new(clock.clone());
    let outputs = control::Outputs {
        publisher: publisher.clone(),
        picture: picture_sender,
        clusters,
        pulse: pulse.clone(),
    };
    let (listed, caught_up) = (observed.clone(), pods.clone());
    let complete = async move {
        listed.complete().await;
        caught_up.catch_up();
    };
    tasks.spawn_sure(
        "the control loop",
        control::run(mesh, lowerer, inputs, outputs, complete, shutdown.clone()),
    );
    tasks.spawn_sure(
        "readiness",
        readiness::announce(picture.clone(), publisher.clone(), pods.clone(), shutdown.clone()),
    );
    let bundle = Bundle::new(client.clone(), ca.bundle(), args.namespace.clone(), observed.joined.clone());
    let (leads, ending) = (lead.clone(), shutdown.clone());
    tasks.spawn_sure("the ConfigMaps with the roots", async move {
        lease::while_leading(&leads, ending, |ending| bundle.clone().run(ending)).await;
    });
    let leader = Leader {
        lead: Lead { mine: judging.clone(), ..lead.clone() },
        fleet: fleet.clone(),
        signals: signals.clone(),
        pods: pods.clone(),
        leaving: readiness::Leaving { picture: picture.clone(), fleet: fleet.clone() },
        words: broadcast::Sender::new(WORDS_KEPT),
        clock: clock.clone(),
        shutdown: shutdown.clone(),
    };
    let follower = Follower {
        lead: lead.clone(),
        judges,
        dialer: tls.dialer(),
        picture: picture.clone(),
        publisher: publisher.clone(),
        fleet: fleet.clone(),
        signals: signals.clone(),
        pods: pods.clone(),
        leader: watch::Sender::new(None),
        clock: clock.clone(),
    };
    let rotations = Rotations { own: leader.clone(), leader: follower.leader.subscribe() };
    signals.turn(Way::Nowhere);
    tasks.spawn_sure("the side that this replica is on", follower.run(shutdown.clone()));
    let following = ca::keeping::follow(ca.clone(), clock.clone(), shutdown.clone());
    tasks.spawn_sure("the Secret of what signs", following);
    let joining = Wire::new(Parts {
        ca: ca.clone(),
        door: Arc::new(PodTokens::new(client.clone(), pods.clone(), &ca, clock.clone())),
        members: pods.clone(),
        rotation: Arc::new(rotations),
        clock: clock.clone(),
        heartbeat_every: HEARTBEAT_EVERY,
        operator: (service_name(args), args.listen.port()),
    });
    let known = pods.clone();
    let is_member = Arc::new(move |peer: &Peer| known.instance_of(peer).is_some());
    let routes = tonic::service::Routes::new(OperatorServer::new(Arc::new(joining)))
        .add_service(leader.service(ca.operator().clone()))
        .add_service(publisher.service(is_member, shutdown.clone()))
        .add_service(Gate::before(MetricsServiceServer::new(Totaliser {
            signals: signals.clone(),
            members: pods.clone(),
            clock: clock.clone(),
        })))
        .add_service(
            AccessLogServiceServer::new(FailureLog {
                signals: signals.clone(),
                members: pods.clone(),
                clock: clock.clone(),
                shutdown: shutdown.clone(),
            })
            .max_decoding_message_size(MESSAGE_BYTES_MAX),
        );
    let local = Local {
        picture: picture.clone(),
        signals: signals.clone(),
        publisher: publisher.clone(),
        fleet: fleet.clone(),
        members: pods.clone(),
        tls: tls.clone(),
    };
    let authority = Authority { ca: ca.clone(), overlap, clock: clock.clone() };
    let answers = root::router(authority).merge(server::router(local));
    let ending = shutdown.clone();
    tasks.spawn("the command socket", async move { Ok(server::serve(commands, answers, ending).await?) });
    let listed = observed.clone();
    let (setup, injection) = watch::channel(Arc::new(injection(args, &ca)));
    let (all, authority, mut bundle, ending) = (args.clone(), ca.clone(), ca.bundle(), shutdown.clone());
    tasks.spawn_sure("the roots that pods pin", async move {
        while let Some(Ok(())) = ending.run_until_cancelled(bundle.changed()).await {
            setup.send_replace(Arc::new(self::injection(&all, &authority)));
        }
    });
    let answers = Webhook {
        injection,
        namespaces: observed.namespaces.clone(),
        workloads: observed.workloads.clone(),
        picture: picture.clone(),
        system_namespace: args.namespace.clone(),
    };
    let (keeping, ending) = (webhook_tls.clone(), shutdown.clone());
    tasks.spawn_sure("the webhook's certificate", async move { keeping.keep_valid(ending).await });
    let (lingering, announced) = (CancellationToken::new(), shutdown.clone());
    tasks.spawn_sure(
        "the webhook",
        webhook::server::serve(webhook_listener, webhook_tls, answers, lingering.clone()),
    );
    let (registering, leads, ending) = (client.clone(), lead.clone(), shutdown.clone());
    let bundle = ca.bundle();
    tasks.spawn_sure("the webhook's registration", async move {
        let register = |ending| webhook::registration::keep(registering.clone(), bundle.clone(), ending);
        lease::while_leading(&leads, ending, register).await;
    });
    tasks.spawn_sure("the lease", candidate.run(shutdown.clone()));
    if args.restarts {
        let enrolment = Enrolment {
            hands: Hands::new(client.clone(), args.namespace.clone()),
            observed: observed.clone(),
            picture: picture.clone(),
            fleet: fleet.clone(),
            clock: clock.clone(),
            patience: Patience {
                progress: args.restart_deadline.map(SignedDuration::try_from).transpose()?,
                eject_after: SignedDuration::try_from(args.eject_after)?,
            },
            events: recorder(client.clone(), &me.name),
            system: args.namespace.clone(),
        };
        let (leads, ending) = (lead.clone(), shutdown.clone());
        tasks.spawn_sure("the restarts of workloads", async move {
            lease::while_leading(&leads, ending, |ending| enrolment.clone().run(ending)).await;
        });
    }
    let leading = Leading {
        lead: Lead { mine: judging, ..lead },
        writer: Writer::new(client, observed.clone(), picture.clone(), fleet.clone(), clock.clone(), me.name),
        picture: picture.clone(),
        fleet,
        signals,
        clock,
        ca: ca.clone(),
        overlap,
    };
    leading.spawn(&mut tasks);
    let is_ending = shutdown.clone();
    let waits_for: Obstacle = Arc::new(move || {
        if is_ending.is_cancelled() {
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
    let troubles = ca.trouble();
    let trouble: Obstacle = Arc::new(move || troubles.borrow().clone());
    let (health, answers, until) = (args.health, Health { dead, waits_for, trouble }, lingering.clone());
    tasks.spawn("the health port", async move {
        health::serve(health, answers, until).await.with_context(|| format!("cannot listen on {health}"))
    });
    tasks.spawn_sure("the last answers", async move {
        announced.cancelled().await;
        sleep(LINGER).await;
        lingering.cancel();
    });
    let (keeping, ending) = (tls.clone(), shutdown.clone());
    tasks.spawn_sure("the operator's own certificate", async move { keeping.keep_valid(ending).await });
    tasks.spawn_sure("the sidecars' port", async move {
        // Who is not listed yet would be told that nobody knows it, and thousands would join at once.
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = listed.complete() => pods.catch_up(),
        }
        serve::serve(listener, tls, routes, shutdown).await;
    });

    ready(&address.to_string());
    tasks.run().await
}

/// The API server. A connection on which nothing comes for so long is dead, whatever is waited for: a watch ends
/// before, and begins anew.
async fn api_server() -> anyhow::Result<kube::Client> {
    let mut config =
        kube::Config::infer().await.context("there is no cluster: run it in one, or set KUBECONFIG")?;
    config.connect_timeout = Some(CONNECT_WITHIN);
    config.read_timeout = Some(Duration::from_secs(WATCH_SECONDS.into()) + CONNECT_WITHIN);
    kube::Client::try_from(config).context("the way to the cluster cannot be used")
}

/// How long two roots are trusted at either step of a replacement.
fn overlap(args: &Operator, leaf_lifetime: SignedDuration) -> anyhow::Result<SignedDuration> {
    match args.root_overlap {
        None => Ok(leaf_lifetime.saturating_add(OVERLAP_MARGIN)),
        Some(overlap) if overlap >= args.leaf_ttl => Ok(overlap.try_into()?),
        Some(_) => {
            anyhow::bail!("--root-overlap must be as long as --leaf-ttl: who has a leaf would not be trusted")
        }
    }
}

/// The name of the service before the operator's replicas.
fn service_name(args: &Operator) -> String {
    format!("airlane.{}.svc.{}", args.namespace, args.cluster_domain)
}

/// Where other replicas reach this one.
fn reached_at(args: &Operator, listens: SocketAddr) -> Option<SocketAddr> {
    let own = (!listens.ip().is_unspecified()).then_some(listens.ip());
    let reached = args.pod_ip.or(own).map(|ip| SocketAddr::new(ip, listens.port()));
    if reached.is_none() {
        tracing::warn!("other replicas cannot report to this one: set POD_IP");
    }
    reached
}

/// A name that no other process has, before or after this one: a container that was started again must not take what
/// the one before it held for its own.
fn process_name(args: &Operator) -> anyhow::Result<String> {
    let mut bytes = [0; 4];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(format!("{}_{:08x}", args.pod_name, u32::from_ne_bytes(bytes)))
}

/// What the leader alone does.
#[derive(Clone)]
struct Leading {
    lead: Lead,
    writer: Writer,
    picture: watch::Receiver<Option<Picture>>,
    fleet: Fleet,
    signals: Signals,
    clock: Arc<dyn Clock>,
    ca: Arc<Ca>,
    overlap: SignedDuration,
}

impl Leading {
    fn spawn(self, tasks: &mut Tasks) {
        let (leading, ending) = (self.clone(), tasks.shutdown());
        tasks.spawn_sure("the statuses", async move {
            let tell = |ending| Teller { writer: leading.writer.clone() }.run(ending);
            lease::while_leading(&leading.lead, ending, tell).await;
        });
        let (leading, ending) = (self.clone(), tasks.shutdown());
        tasks.spawn_sure("the replacement of the root", async move {
            let Leading { lead, ca, overlap, picture, fleet, clock, .. } = leading;
            let rotate = |ending| {
                let (picture, fleet) = (picture.clone(), fleet.clone());
                ca::keeping::rotate(ca.clone(), overlap, picture, fleet, clock.clone(), ending)
            };
            lease::while_leading(&lead, ending, rotate).await;
        });
        let ending = tasks.shutdown();
        tasks.spawn_sure("the rollouts", async move {
            let judge = |ending| {
                let rollouts = Rollouts {
                    picture: self.picture.clone(),
                    signals: self.signals.clone(),
                    fleet: self.fleet.clone(),
                    memory: Arc::new(self.writer.clone()),
                    clock: self.clock.clone(),
                };
                rollouts.run(ending)
            };
            lease::while_leading(&self.lead, ending, judge).await;
        });
    }
}

/// What pods get.
fn injection(args: &Operator, ca: &Ca) -> Injection {
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
