//! What replicas say to each other: `airlane.replica.v1.Replicas`. Field numbers are for ever: during an update the
//! replicas are of two versions.

use crate::tls::Peer;
use airlane_core::id::Identity;
use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
};
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    client,
    codegen::BoxFuture,
    server::{self, NamedService},
    transport::Channel,
};
use tonic_prost::ProstCodec;
use tower::service_fn;

const NAME: &str = "airlane.replica.v1.Replicas";
const REPORT: &str = "/airlane.replica.v1.Replicas/Report";
const WITHDRAW: &str = "/airlane.replica.v1.Replicas/Withdraw";

/// The longest message, in bytes: the first of a replica tells all of its proxies, 200 bytes each at most.
const BYTES_MAX: usize = 16 << 20;

/// From a replica to the leader.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Report {
    #[prost(oneof = "News", tags = "1, 2, 3, 4")]
    pub(crate) news: Option<News>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum News {
    #[prost(message, tag = "1")]
    Standing(Standing),
    #[prost(message, tag = "2")]
    Window(Window),
    #[prost(message, tag = "3")]
    Failures(Failures),
    /// The log of this proxy broke.
    #[prost(string, tag = "4")]
    LogBroke(String),
}

/// How the proxies of a replica are: what is different from what it told before.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Standing {
    /// Milestones that are new, or hold since another epoch.
    #[prost(message, repeated, tag = "1")]
    pub(crate) holds: Vec<Milestone>,
    /// Milestones that do not hold any more.
    #[prost(message, repeated, tag = "2")]
    pub(crate) over: Vec<Milestone>,
    /// Proxies that are new, or have come further.
    #[prost(message, repeated, tag = "3")]
    pub(crate) proxies: Vec<Proxy>,
    /// Proxies that are not connected any more.
    #[prost(string, repeated, tag = "4")]
    pub(crate) gone: Vec<String>,
    /// The shares that `proxies` name, each before it is named first.
    #[prost(message, repeated, tag = "5")]
    pub(crate) layers: Vec<Layer>,
    /// All that is refused, when that has changed.
    #[prost(message, optional, tag = "6")]
    pub(crate) refused: Option<Refused>,
    /// For how long the proxies certainly go on to use the shares that they use, in milliseconds.
    #[prost(uint32, tag = "7")]
    pub(crate) certain_ms: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Milestone {
    /// The replica's epoch since which it holds.
    #[prost(uint64, tag = "1")]
    pub(crate) epoch: u64,
    #[prost(oneof = "What", tags = "2, 3, 4, 5")]
    pub(crate) what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum What {
    #[prost(message, tag = "2")]
    Object(ObjectAt),
    #[prost(message, tag = "3")]
    Shares(SharesOf),
    /// The instance.
    #[prost(string, tag = "4")]
    Withdrawn(String),
    /// The hash of their bundle.
    #[prost(fixed64, tag = "5")]
    Roots(u64),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Object {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) namespace: String,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ObjectAt {
    #[prost(message, optional, tag = "1")]
    pub(crate) object: Option<Object>,
    #[prost(int64, tag = "2")]
    pub(crate) generation: i64,
    /// Tells two objects of one name apart.
    #[prost(string, tag = "3")]
    pub(crate) uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SharesOf {
    #[prost(message, optional, tag = "1")]
    pub(crate) canary: Option<Object>,
    #[prost(uint32, tag = "2")]
    pub(crate) share: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) fail_safe_share: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Proxy {
    #[prost(string, tag = "1")]
    pub(crate) instance: String,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) acked_epoch: Option<u64>,
    /// The version of the shares it certainly uses.
    #[prost(fixed64, optional, tag = "3")]
    pub(crate) layer: Option<u64>,
    /// How long it has used them, in milliseconds: clocks differ.
    #[prost(uint64, tag = "4")]
    pub(crate) used_for_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Layer {
    #[prost(fixed64, tag = "1")]
    pub(crate) version: u64,
    /// Runtime key → parts.
    #[prost(map = "string, uint32", tag = "2")]
    pub(crate) shares: HashMap<String, u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Refused {
    #[prost(message, repeated, tag = "1")]
    pub(crate) resources: Vec<Refusal>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Refusal {
    #[prost(string, tag = "1")]
    pub(crate) type_url: String,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(fixed64, tag = "3")]
    pub(crate) version: u64,
    /// The namespace that alone sees it.
    #[prost(string, tag = "4")]
    pub(crate) namespace: String,
    /// The proxy that alone sees it.
    #[prost(string, tag = "5")]
    pub(crate) proxy: String,
    #[prost(message, repeated, tag = "6")]
    pub(crate) shaped_by: Vec<Object>,
    #[prost(string, tag = "7")]
    pub(crate) detail: String,
    #[prost(string, repeated, tag = "8")]
    pub(crate) proxies: Vec<String>,
}

/// What a proxy counted between two flushes.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Window {
    #[prost(string, tag = "1")]
    pub(crate) caller: String,
    #[prost(fixed64, tag = "2")]
    pub(crate) start_ns: u64,
    #[prost(fixed64, tag = "3")]
    pub(crate) end_ns: u64,
    #[prost(message, repeated, tag = "4")]
    pub(crate) clusters: Vec<Totals>,
    /// Clusters of which it leaves out any endpoint.
    #[prost(string, repeated, tag = "6")]
    pub(crate) ejecting: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Totals {
    #[prost(string, tag = "1")]
    pub(crate) cluster: String,
    #[prost(uint64, tag = "2")]
    pub(crate) sent: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) connect_failed: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) retries: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) good_tries: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) failed_tries: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) completed: u64,
    #[prost(uint64, tag = "8")]
    pub(crate) completed_5xx: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Endpoint {
    #[prost(string, tag = "1")]
    pub(crate) cluster: String,
    #[prost(string, tag = "2")]
    pub(crate) address: String,
}

/// First attempts of a proxy that failed.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Failures {
    #[prost(string, tag = "1")]
    pub(crate) caller: String,
    /// Where they went. An address is empty if no endpoint was chosen.
    #[prost(message, repeated, tag = "2")]
    pub(crate) attempts: Vec<Endpoint>,
}

/// From the leader to a replica.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Word {
    /// An instance whose sidecar said that it leaves.
    #[prost(string, tag = "1")]
    pub(crate) leaving: String,
}

/// Have every replica take an instance out of rotation.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WithdrawRequest {
    #[prost(string, tag = "1")]
    pub(crate) instance: String,
    #[prost(uint32, tag = "2")]
    pub(crate) wait_ms: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WithdrawResponse {
    #[prost(uint32, tag = "1")]
    pub(crate) acknowledged: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) outstanding: u32,
}

/// What the leader does for other replicas.
#[tonic::async_trait]
pub(crate) trait Replicas: Send + Sync + 'static {
    /// What the leader says, for as long as the replica reports.
    type Words: Stream<Item = Result<Word, Status>> + Send + 'static;
    /// Takes a replica's reports.
    async fn report(&self, reports: Request<Streaming<Report>>) -> Result<Response<Self::Words>, Status>;
    /// Takes an instance out of rotation at every replica.
    async fn withdraw(&self, request: Request<WithdrawRequest>)
    -> Result<Response<WithdrawResponse>, Status>;
    /// Whether it leads.
    fn leads(&self) -> bool;
}

/// Serves replicas, and nobody else.
#[derive(Debug)]
pub(crate) struct Server<T> {
    replicas: Arc<T>,
    /// The operator's identity, which every replica has.
    identity: Arc<Identity>,
}

impl<T> Server<T> {
    pub(crate) fn new(replicas: Arc<T>, identity: Identity) -> Self {
        Server { replicas, identity: Arc::new(identity) }
    }
}

impl<T> Clone for Server<T> {
    fn clone(&self) -> Self {
        Server { replicas: Arc::clone(&self.replicas), identity: Arc::clone(&self.identity) }
    }
}

impl<T> NamedService for Server<T> {
    const NAME: &'static str = NAME;
}

impl<T: Replicas> tower::Service<http::Request<Body>> for Server<T> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // Before anything of it is read.
        let refused = match request.extensions().get::<Peer>() {
            None => Some(Status::unauthenticated("this needs a client certificate")),
            Some(peer) if peer.identity != *self.identity => {
                tracing::warn!(instance = %peer.instance, identity = %peer.identity, "refused: it is no replica of the operator");
                Some(Status::permission_denied("only the operator's replicas may ask this"))
            }
            Some(_) if !self.replicas.leads() => Some(Status::unavailable("this replica does not lead")),
            Some(_) => None,
        };
        if let Some(refused) = refused {
            return Box::pin(async move { Ok(refused.into_http()) });
        }
        let replicas = Arc::clone(&self.replicas);
        match request.uri().path() {
            REPORT => Box::pin(async move {
                let method = service_fn(move |reports| {
                    let replicas = Arc::clone(&replicas);
                    async move { replicas.report(reports).await }
                });
                let mut grpc = server::Grpc::new(ProstCodec::<Word, Report>::default())
                    .max_decoding_message_size(BYTES_MAX);
                Ok(grpc.streaming(method, request).await)
            }),
            WITHDRAW => Box::pin(async move {
                let method = service_fn(move |request| {
                    let replicas = Arc::clone(&replicas);
                    async move { replicas.withdraw(request).await }
                });
                let mut grpc = server::Grpc::new(ProstCodec::default());
                Ok(grpc.unary(method, request).await)
            }),
            _ => Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) }),
        }
    }
}

/// Calls the leader. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Client(client::Grpc<Channel>);

impl Client {
    /// A client over an authenticated channel.
    pub(crate) fn new(channel: Channel) -> Client {
        Client(client::Grpc::new(channel))
    }

    /// See [`Replicas::report`].
    pub(crate) async fn report(
        &self,
        reports: impl Stream<Item = Report> + Send + 'static,
    ) -> Result<Streaming<Word>, Status> {
        let mut grpc = self.ready().await?;
        let path = http::uri::PathAndQuery::from_static(REPORT);
        let codec = ProstCodec::<Report, Word>::default();
        Ok(grpc.streaming(Request::new(reports), path, codec).await?.into_inner())
    }

    /// See [`Replicas::withdraw`].
    pub(crate) async fn withdraw(&self, request: WithdrawRequest) -> Result<WithdrawResponse, Status> {
        let mut grpc = self.ready().await?;
        let path = http::uri::PathAndQuery::from_static(WITHDRAW);
        Ok(grpc.unary(Request::new(request), path, ProstCodec::default()).await?.into_inner())
    }

    fn ready(&self) -> impl Future<Output = Result<client::Grpc<Channel>, Status>> {
        let mut grpc = self.0.clone();
        async move {
            grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
            Ok(grpc)
        }
    }
}
