//! What sidecars and other replicas reach: one port, and behind it joining, configuration, signals and reports.

use super::{Replica, process::service_name};
use crate::{
    app::Tasks,
    args::Operator,
    join::{Parts, PodTokens, Wire},
    lease::Lead,
    members::Members as _,
    readiness,
    replicas::{Follower, Leader, Rotations},
    serve,
    signals::{
        Way,
        access_log::{FailureLog, MESSAGE_BYTES_MAX},
        denial::Told,
        gate::Gate,
        metrics::Totaliser,
    },
    tls::Peer,
};
use airlane_wire::operator::OperatorServer;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::AccessLogServiceServer;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::MetricsServiceServer;
use std::{sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{broadcast, watch},
};
use tonic::service::Routes;

/// How often sidecars give a sign of life: it brings what their proxies left out, and takes along that a certificate
/// should be renewed. Whether pods live, the kubelet knows.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);

/// Instances that leave, until every replica was told: a node that is drained has a hundred of them at most.
const WORDS_KEPT: usize = 256;

/// What is answered there. Starts what keeps this replica on its side, the leader's or the others'; `judges` says
/// whether the leader's books are open here.
pub(super) fn routes(
    replica: &Replica,
    args: &Operator,
    (judges, judging): (watch::Sender<bool>, watch::Receiver<bool>),
    tasks: &mut Tasks,
) -> Routes {
    let shutdown = tasks.shutdown();
    let Replica { client, clock, ca, tls, pods, picture, publisher, fleet, signals, lead, .. } =
        replica.clone();
    let leader = Leader {
        lead: Lead { mine: judging, ..lead.clone() },
        fleet: fleet.clone(),
        signals: signals.clone(),
        pods: pods.clone(),
        leaving: readiness::Leaving { picture: picture.clone(), fleet: fleet.clone() },
        words: broadcast::Sender::new(WORDS_KEPT),
        clock: clock.clone(),
        shutdown: shutdown.clone(),
    };
    let follower = Follower {
        lead,
        judges,
        dialer: tls.dialer(),
        picture,
        publisher: publisher.clone(),
        fleet,
        signals: signals.clone(),
        pods: pods.clone(),
        leader: watch::Sender::new(None),
        clock: clock.clone(),
    };
    let rotations = Rotations { own: leader.clone(), leader: follower.leader.subscribe() };
    signals.turn(Way::Nowhere);
    tasks.spawn_sure("the side that this replica is on", follower.run(shutdown.clone()));
    let joining = Wire::new(Parts {
        ca: ca.clone(),
        door: Arc::new(PodTokens::new(client, pods.clone(), &ca, clock.clone())),
        members: pods.clone(),
        rotation: Arc::new(rotations),
        clock: clock.clone(),
        heartbeat_every: HEARTBEAT_EVERY,
        operator: (service_name(args), args.listen.port()),
    });
    let known = pods.clone();
    let is_member = Arc::new(move |peer: &Peer| known.instance_of(peer).is_some());
    Routes::new(OperatorServer::new(Arc::new(joining)))
        .add_service(leader.service(ca.operator().clone()))
        .add_service(publisher.service(is_member, shutdown.clone()))
        .add_service(Gate::before(MetricsServiceServer::new(Totaliser {
            signals: signals.clone(),
            members: pods.clone(),
            clock: clock.clone(),
        })))
        .add_service(
            AccessLogServiceServer::new(FailureLog {
                signals,
                members: pods,
                clock,
                told: Told::default(),
                shutdown,
            })
            .max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
}

/// Answers there as soon as it is known who runs.
pub(super) fn spawn(replica: Replica, listener: TcpListener, routes: Routes, tasks: &mut Tasks) {
    let Replica { tls, observed, pods, .. } = replica;
    let (keeping, ending) = (tls.clone(), tasks.shutdown());
    tasks.spawn_sure("the operator's own certificate", async move { keeping.keep_valid(ending).await });
    let shutdown = tasks.shutdown();
    tasks.spawn_sure("the sidecars' port", async move {
        // Who is not listed yet would be told that nobody knows it, and thousands would join at once.
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = observed.complete() => pods.catch_up(),
        }
        serve::serve(listener, tls, routes, shutdown).await;
    });
}
