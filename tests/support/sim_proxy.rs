//! Proxies without traffic: they hold a delta stream, accept everything and note when it came. A thousand of them
//! fit into one process, which a thousand Envoys do not.
//!
//! They have joined but send no heartbeats: the operator forgets their registrations in time, not their streams.

use crate::stranger::{Papers, connect_tls};
use airlane_wire::join::{JoinInfo, OPERATOR_DNS_NAME};
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use hyper_util::rt::TokioIo;
use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    transport::{Endpoint, Uri},
};
use tower::service_fn;

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";

/// The longest until a proxy has its first clusters, endpoints, listeners and hosts.
const LONGEST: Duration = Duration::from_secs(60);

/// A response that came.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// To which proxy.
    pub instance: String,
    /// When it was decoded.
    pub at: Instant,
    /// The type of what is in it.
    pub type_url: String,
    /// What came: names and versions.
    pub sent: Vec<(String, String)>,
    /// What went.
    pub removed: Vec<String>,
}

/// A connected proxy; dropped, it leaves.
pub struct SimProxy {
    /// Its name.
    pub instance: String,
    task: JoinHandle<Status>,
}

impl Drop for SimProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SimProxy {
    /// Connects over mTLS and waits until the proxy has everything it sees. What comes then, and later, is told to
    /// `arrivals`.
    ///
    /// # Errors
    /// Why there is no stream, or what ended it.
    pub async fn connect(
        join: &JoinInfo,
        state: &Path,
        papers: &Papers,
        arrivals: mpsc::UnboundedSender<Arrival>,
    ) -> Result<SimProxy, Status> {
        let (join, state, shown) = (join.clone(), state.to_owned(), papers.clone());
        let connector = service_fn(move |_: Uri| {
            let (join, state, papers) = (join.clone(), state.clone(), shown.clone());
            async move {
                let tls = connect_tls(&join, &state, Some(&papers)).await;
                tls.map(TokioIo::new).map_err(std::io::Error::other)
            }
        });
        let endpoint = Endpoint::from_shared(format!("http://{OPERATOR_DNS_NAME}")).unwrap();
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let (say, said) = mpsc::channel(64);
        let conversation = Conversation {
            instance: papers.instance.clone(),
            say,
            subscribed: BTreeSet::new(),
            clusters: BTreeSet::new(),
            arrivals,
        };
        conversation.subscribe(CLUSTER, vec![]).await;
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let stream = client.delta_aggregated_resources(ReceiverStream::new(said)).await?.into_inner();
        let (ready, is_ready) = oneshot::channel();
        let mut proxy = SimProxy {
            instance: papers.instance.clone(),
            task: tokio::spawn(conversation.hold(stream, ready)),
        };
        match tokio::time::timeout(LONGEST, is_ready).await {
            Ok(Ok(())) => Ok(proxy),
            Ok(Err(_)) => Err(proxy.ended().await),
            Err(_) => Err(Status::deadline_exceeded("the first resources did not come")),
        }
    }

    /// Waits for the stream's end, and says what ended it.
    pub async fn ended(&mut self) -> Status {
        (&mut self.task).await.unwrap_or_else(|_| Status::cancelled("left"))
    }
}

struct Conversation {
    instance: String,
    say: mpsc::Sender<DeltaDiscoveryRequest>,
    subscribed: BTreeSet<&'static str>,
    clusters: BTreeSet<String>,
    arrivals: mpsc::UnboundedSender<Arrival>,
}

impl Conversation {
    async fn subscribe(&self, type_url: &str, resource_names_subscribe: Vec<String>) {
        self.says(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe,
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    async fn says(&self, request: DeltaDiscoveryRequest) {
        let node = Some(Node { id: self.instance.clone(), ..Node::default() });
        // A stream that ended is noticed by the one who listens.
        let _ = self.say.send(DeltaDiscoveryRequest { node, ..request }).await;
    }

    async fn hold(
        mut self,
        mut stream: tonic::Streaming<DeltaDiscoveryResponse>,
        ready: oneshot::Sender<()>,
    ) -> Status {
        let mut ready = Some(ready);
        loop {
            match stream.message().await {
                Ok(Some(response)) => {
                    let last = response.type_url == VIRTUAL_HOST;
                    self.take(response).await;
                    if let Some(ready) = ready.take_if(|_| last) {
                        let _ = ready.send(());
                    }
                }
                Ok(None) => return Status::ok("closed"),
                Err(status) => return status,
            }
        }
    }

    async fn take(&mut self, response: DeltaDiscoveryResponse) {
        let at = Instant::now();
        self.says(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        })
        .await;
        let sent = response.resources.into_iter().map(|resource| (resource.name, resource.version));
        let arrival = Arrival {
            instance: self.instance.clone(),
            at,
            type_url: response.type_url,
            sent: sent.collect(),
            removed: response.removed_resources,
        };
        self.follow_up(&arrival).await;
        let _ = self.arrivals.send(arrival);
    }

    /// Asks for what an Envoy asks for next.
    async fn follow_up(&mut self, arrival: &Arrival) {
        match arrival.type_url.as_str() {
            CLUSTER => {
                let new =
                    arrival.sent.iter().map(|(name, _)| name).filter(|name| !self.clusters.contains(*name));
                let new: Vec<_> = new.cloned().collect();
                self.clusters.extend(new.iter().cloned());
                let gone: Vec<_> =
                    arrival.removed.iter().filter(|name| self.clusters.remove(*name)).collect();
                self.says(DeltaDiscoveryRequest {
                    type_url: ENDPOINTS.to_owned(),
                    resource_names_subscribe: new,
                    resource_names_unsubscribe: gone.into_iter().cloned().collect(),
                    ..DeltaDiscoveryRequest::default()
                })
                .await;
                self.begin(LISTENER).await;
            }
            LISTENER => self.begin(VIRTUAL_HOST).await,
            _ => {}
        }
    }

    async fn begin(&mut self, type_url: &'static str) {
        if self.subscribed.insert(type_url) {
            self.subscribe(type_url, vec![]).await;
        }
    }
}
