//! The service `airlane.wire.v1.Operator`: what a sidecar asks of its operator.
//!
//! `Join` is authorised by a token over TLS on which only the server is known; every other method by the client
//! certificate of the connection, which says who the caller is.

use crate::{
    message::{
        Certificate, DrainRequest, DrainResponse, HeartbeatRequest, HeartbeatResponse, JoinRequest,
        JoinResponse, LeaveRequest, LeaveResponse, RenewRequest,
    },
    rpc::{self, Answer},
};
use std::{
    convert::Infallible,
    error::Error as _,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{
    Request, Response, Status,
    client::Grpc,
    codegen::{Body, Service, StdError, http, http::uri::PathAndQuery},
    server::NamedService,
    transport::Channel,
};
use tonic_prost::ProstCodec;

/// The name of the service on the wire.
pub const NAME: &str = "airlane.wire.v1.Operator";

const JOIN: &str = "/airlane.wire.v1.Operator/Join";
const RENEW: &str = "/airlane.wire.v1.Operator/Renew";
const HEARTBEAT: &str = "/airlane.wire.v1.Operator/Heartbeat";
const DRAIN: &str = "/airlane.wire.v1.Operator/Drain";
const LEAVE: &str = "/airlane.wire.v1.Operator/Leave";

/// Every method, as it appears in a request's path: for a test that none is reachable without a credential.
pub const METHODS: [&str; 5] = [JOIN, RENEW, HEARTBEAT, DRAIN, LEAVE];

/// The largest request, in bytes: room for a CSR, or [`OUTLIERS_PER_HEARTBEAT`] events.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// The largest answer, in bytes: room for a bootstrap and a bundle of roots.
pub const RESPONSE_BYTES_MAX: usize = 512 * 1024;

/// As many outlier events as one heartbeat may carry and stay below [`REQUEST_BYTES_MAX`].
pub const OUTLIERS_PER_HEARTBEAT: usize = 64;

/// What the operator does for a sidecar.
#[tonic::async_trait]
pub trait Operator: Send + Sync + 'static {
    /// Lets an instance in, or in again after the operator forgot it.
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status>;
    /// Signs the next leaf for the caller's identity.
    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Certificate>, Status>;
    /// Takes a sign of life.
    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status>;
    /// Takes the caller out of rotation and waits until its own callers know.
    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status>;
    /// Forgets the caller.
    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status>;
}

/// Serves an [`Operator`] over gRPC.
#[derive(Debug)]
pub struct OperatorServer<T>(Arc<T>);

impl<T> OperatorServer<T> {
    /// A server of `operator`.
    pub fn new(operator: Arc<T>) -> Self {
        Self(operator)
    }
}

impl<T> Clone for OperatorServer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> NamedService for OperatorServer<T> {
    const NAME: &'static str = NAME;
}

impl<T, B> Service<http::Request<B>> for OperatorServer<T>
where
    T: Operator,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Answer {
        /// The request's answer by one method of the trait.
        macro_rules! by {
            ($method:ident) => {{
                let operator = Arc::clone(&self.0);
                rpc::unary(request, REQUEST_BYTES_MAX, move |message| {
                    let operator = Arc::clone(&operator);
                    async move { operator.$method(message).await }
                })
            }};
        }
        match request.uri().path() {
            JOIN => by!(join),
            RENEW => by!(renew),
            HEARTBEAT => by!(heartbeat),
            DRAIN => by!(drain),
            LEAVE => by!(leave),
            _ => rpc::unimplemented(),
        }
    }
}

/// Calls an operator. Clones share the connection.
#[derive(Debug, Clone)]
pub struct OperatorClient {
    grpc: Grpc<Channel>,
}

impl OperatorClient {
    /// A client over `channel`, which must be authenticated: [`Self::join`] carries the token.
    pub fn new(channel: Channel) -> Self {
        Self { grpc: Grpc::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX) }
    }

    /// See [`Operator::join`].
    ///
    /// # Errors
    /// The operator's refusal, or why it could not be asked.
    pub async fn join(&self, request: JoinRequest) -> Result<JoinResponse, Status> {
        self.call(JOIN, request).await
    }

    /// See [`Operator::renew`].
    ///
    /// # Errors
    /// The operator's refusal, or why it could not be asked.
    pub async fn renew(&self, request: RenewRequest) -> Result<Certificate, Status> {
        self.call(RENEW, request).await
    }

    /// See [`Operator::heartbeat`].
    ///
    /// # Errors
    /// The operator's refusal, or why it could not be asked.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Status> {
        self.call(HEARTBEAT, request).await
    }

    /// See [`Operator::drain`].
    ///
    /// # Errors
    /// The operator's refusal, or why it could not be asked.
    pub async fn drain(&self, request: DrainRequest) -> Result<DrainResponse, Status> {
        self.call(DRAIN, request).await
    }

    /// See [`Operator::leave`].
    ///
    /// # Errors
    /// The operator's refusal, or why it could not be asked.
    pub async fn leave(&self) -> Result<LeaveResponse, Status> {
        self.call(LEAVE, LeaveRequest {}).await
    }

    async fn call<Req, Res>(&self, path: &'static str, request: Req) -> Result<Res, Status>
    where
        Req: prost::Message + Clone + 'static,
        Res: prost::Message + Default + 'static,
    {
        match self.call_once(path, request.clone()).await {
            // The operator ends connections of age; this one went between the question and its way.
            Err(status) if never_left(&status) => self.call_once(path, request).await,
            answered => answered,
        }
    }

    async fn call_once<Req, Res>(&self, path: &'static str, request: Req) -> Result<Res, Status>
    where
        Req: prost::Message + 'static,
        Res: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let codec = ProstCodec::<Req, Res>::default();
        let response = grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await?;
        Ok(response.into_inner())
    }
}

/// Whether a call failed before anything of it was sent.
fn never_left(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.downcast_ref().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        cause = error.source();
    }
    false
}
