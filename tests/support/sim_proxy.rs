//! Proxies without traffic: they hold a delta stream, accept everything and note when it came. A thousand of them
//! fit into one process, which a thousand Envoys do not.
//!
//! They share their processors with what is measured, so each is one task and speaks HTTP/2 without a client's layers
//! above it. What they do they do as Envoy does: mutual TLS, every response decoded, acknowledged at once, and
//! the node named in the first request only.
//!
//! They have joined but send no heartbeats: the operator forgets their registrations in time, not their streams.

use crate::stranger::{Papers, connect_tls};
use airlane_wire::join::{JoinInfo, OPERATOR_DNS_NAME};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};
use h2::{
    SendStream,
    client::{self, ResponseFuture},
};
use http::Request;
use prost::Message as _;
use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::pending,
    path::Path,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tonic::Status;

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const VIRTUAL_HOST: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";

/// The longest until a proxy has its first clusters, endpoints, listeners and hosts.
const LONGEST: Duration = Duration::from_secs(60);

/// How much may be sent to a proxy ahead of its reading, in bytes: more than there is.
const WINDOW_BYTES: u32 = 16 << 20;

/// Before each message: whether it is compressed (1 byte), and its length (4 bytes, big-endian).
const PREFIX_BYTES: usize = 5;

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
        let tls = connect_tls(join, state, Some(papers)).await.map_err(Status::unavailable)?;
        let mut http2 = client::Builder::new();
        http2.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let (mut calls, connection) = http2.handshake::<_, Bytes>(tls).await?;
        let request = Request::post(format!("https://{OPERATOR_DNS_NAME}{METHOD}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, say) = calls.send_request(request, false)?;
        let mut conversation = Conversation {
            instance: papers.instance.clone(),
            node: Some(Node { id: papers.instance.clone(), ..Node::default() }),
            say,
            subscribed: BTreeSet::new(),
            clusters: BTreeSet::new(),
            arrivals,
        };
        conversation.begin(CLUSTER);
        let (ready, is_ready) = oneshot::channel();
        let mut proxy = SimProxy {
            instance: papers.instance.clone(),
            task: tokio::spawn(async move {
                // What ended the conversation is known to itself, also when its connection is gone.
                let carried = async {
                    let _ = connection.await;
                    pending::<Infallible>().await
                };
                tokio::select! {
                    biased;
                    never = carried => match never {},
                    ended = conversation.hold(response, ready) => ended,
                }
            }),
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
    /// Until it was named.
    node: Option<Node>,
    say: SendStream<Bytes>,
    subscribed: BTreeSet<&'static str>,
    clusters: BTreeSet<String>,
    arrivals: mpsc::UnboundedSender<Arrival>,
}

impl Conversation {
    fn says(&mut self, request: DeltaDiscoveryRequest) {
        let request = DeltaDiscoveryRequest { node: self.node.take(), ..request };
        let mut message = BytesMut::with_capacity(PREFIX_BYTES + request.encoded_len());
        message.put_u8(0);
        message.put_u32(u32::try_from(request.encoded_len()).unwrap());
        request.encode(&mut message).unwrap();
        // A stream that ended is noticed by the one who listens.
        let _ = self.say.send_data(message.freeze(), false);
    }

    async fn hold(self, response: ResponseFuture, ready: oneshot::Sender<()>) -> Status {
        let Err(status) = self.listen(response, ready).await;
        status
    }

    async fn listen(
        mut self,
        response: ResponseFuture,
        ready: oneshot::Sender<()>,
    ) -> Result<Infallible, Status> {
        let response = response.await?;
        if let Some(refused) = Status::from_header_map(response.headers()) {
            return Err(refused);
        }
        let mut ready = Some(ready);
        let mut body = response.into_body();
        let mut heard = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            heard.extend_from_slice(&data);
            while let Some(message) = whole(&mut heard) {
                let response = DeltaDiscoveryResponse::decode(message);
                let response = response.map_err(|error| Status::internal(error.to_string()))?;
                let last = response.type_url == VIRTUAL_HOST;
                self.take(response);
                if let Some(ready) = ready.take_if(|_| last) {
                    let _ = ready.send(());
                }
            }
        }
        let trailers = body.trailers().await?;
        Err(trailers.as_ref().and_then(Status::from_header_map).unwrap_or_else(|| Status::ok("closed")))
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) {
        let at = Instant::now();
        self.says(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        });
        let sent = response.resources.into_iter().map(|resource| (resource.name, resource.version));
        let arrival = Arrival {
            instance: self.instance.clone(),
            at,
            type_url: response.type_url,
            sent: sent.collect(),
            removed: response.removed_resources,
        };
        self.follow_up(&arrival);
        let _ = self.arrivals.send(arrival);
    }

    /// Asks for what an Envoy asks for next.
    fn follow_up(&mut self, arrival: &Arrival) {
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
                });
                self.begin(LISTENER);
            }
            LISTENER => self.begin(VIRTUAL_HOST),
            _ => {}
        }
    }

    fn begin(&mut self, type_url: &'static str) {
        if self.subscribed.insert(type_url) {
            self.says(DeltaDiscoveryRequest {
                type_url: type_url.to_owned(),
                ..DeltaDiscoveryRequest::default()
            });
        }
    }
}

/// Takes the first message out of what was heard, once all of it is there.
fn whole(heard: &mut BytesMut) -> Option<BytesMut> {
    let length = u32::from_be_bytes(*heard.get(1..)?.first_chunk()?) as usize;
    if heard.len() < PREFIX_BYTES + length {
        return None;
    }
    heard.advance(PREFIX_BYTES);
    let message = heard.split_to(length);
    if heard.is_empty() {
        // What is left of the largest message would stay with each of a thousand proxies.
        *heard = BytesMut::new();
    }
    Some(message)
}
