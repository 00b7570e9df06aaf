//! One change to a thousand proxies, simulated in a process of their own, and what they cost the operator.

use crate::measure::{Durations, resident_kib, table};
use airlane_tests::{
    mesh::Mesh,
    process::Process,
    stranger::{Papers, connect_tls, join_properly},
    until::{SOON, until},
};
use airlane_wire::join::JoinInfo;
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

const PROXIES: usize = 1_000;
const EDITS: usize = 20;
/// How long a thousand certificates and streams may take.
const LONGEST_START: Duration = Duration::from_secs(300);
const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

pub(crate) async fn run() {
    // Nobody beats here: the proxies are their streams alone.
    let mut mesh = Mesh::start_with(&["--heartbeat", "1h"]).await;
    let before = resident_kib(mesh.operator().pid());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("fleet-of-proxies").arg(mesh.join()).arg(mesh.state()).arg(PROXIES.to_string());
    let fleet = Process::start("fleet", command, &mesh.home().join("logs"));
    until("every proxy has its first clusters", LONGEST_START, async || {
        let log = fleet.log();
        if log.lines().any(|line| line == "complete") { Ok(()) } else { Err(log) }
    })
    .await;
    let each = (resident_kib(mesh.operator().pid()) - before) as f64 / PROXIES as f64;

    let mut durations = Durations::default();
    let mut slowest = Durations::default();
    for n in 0..EDITS {
        let yaml = format!(
            "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{ name: fleet }}\nspec:\n  \
             targetRef: {{ kind: Service, name: fleet }}\n  circuitBreaker: {{ limits: {{ maxRequests: {} }} }}\n",
            1_000 + n
        );
        let saved = now();
        mesh.apply("fleet.yaml", &yaml);
        let arrivals = until("every proxy has the change", SOON, async || {
            let log = fleet.log();
            let arrivals = log.lines().filter_map(|line| line.strip_prefix("arrived "));
            let arrivals: Vec<u64> = arrivals.filter_map(|micros| micros.parse().ok()).collect();
            let due = (n + 1) * PROXIES;
            if arrivals.len() >= due { Ok(arrivals) } else { Err(format!("{} of {due}", arrivals.len())) }
        })
        .await;
        let taken = arrivals[n * PROXIES..].iter().map(|at| Duration::from_micros(*at).saturating_sub(saved));
        taken.clone().for_each(|taken| durations.add(taken));
        slowest.add(taken.max().unwrap());
    }
    table(&format!("One change to {PROXIES} proxies in another process"));
    durations.row("edit saved → received by a proxy");
    slowest.row("edit saved → received by the last proxy");
    println!("\nOperator memory: {each:.0} KiB for each proxy.");
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// The other process: `JOIN-FILE STATE-DIRECTORY COUNT`. Writes `complete` when every proxy has its first clusters,
/// and after that `arrived MICROSECONDS-SINCE-1970` for each change a proxy receives.
pub(crate) async fn proxies(arguments: &[String]) {
    let [join, state, count] = arguments else { return println!("JOIN-FILE STATE-DIRECTORY COUNT") };
    let join: Arc<JoinInfo> = Arc::new(std::fs::read_to_string(join).unwrap().parse().unwrap());
    let state = Arc::new(PathBuf::from(state));
    let count: usize = count.parse().unwrap();
    let (told, mut heard) = mpsc::unbounded_channel();
    for _ in 0..count {
        let papers = join_properly(&join, &state, "fleet").await;
        tokio::spawn(proxy(Arc::clone(&join), Arc::clone(&state), papers, told.clone()));
    }
    for _ in 0..count {
        heard.recv().await.unwrap();
    }
    println!("complete");
    while let Some(at) = heard.recv().await {
        println!("arrived {}", at.as_micros());
    }
}

/// Subscribes to every cluster, acknowledges what comes, and tells when it came.
async fn proxy(
    join: Arc<JoinInfo>,
    state: Arc<PathBuf>,
    papers: Papers,
    told: mpsc::UnboundedSender<Duration>,
) {
    let instance = papers.instance.clone();
    let channel = Endpoint::from_static("http://airlane")
        .connect_with_connector(tower::service_fn(move |_| {
            let (join, state) = (Arc::clone(&join), Arc::clone(&state));
            let papers = papers.clone();
            async move {
                let stream = connect_tls(&join, Path::new(&*state), Some(&papers)).await;
                stream.map(hyper_util::rt::TokioIo::new).map_err(std::io::Error::other)
            }
        }))
        .await
        .unwrap();
    let (requests, outgoing) = mpsc::channel(8);
    let subscribe = DeltaDiscoveryRequest {
        node: Some(Node { id: instance, ..Node::default() }),
        type_url: CLUSTERS.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(subscribe).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let stream = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap();
    let mut responses = stream.into_inner();
    while let Some(response) = responses.message().await.unwrap() {
        told.send(now()).unwrap();
        let acknowledge = DeltaDiscoveryRequest {
            type_url: CLUSTERS.to_owned(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(acknowledge).await.unwrap();
    }
}
