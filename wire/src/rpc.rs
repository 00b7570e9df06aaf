//! The part of a gRPC server that is the same for every method.

use std::{convert::Infallible, future::Future};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body as GrpcBody,
    codegen::{Body, BoxFuture, StdError, http},
    server::Grpc,
};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// What a server gives the HTTP layer: never an error, failures are gRPC statuses.
pub(crate) type Answer = BoxFuture<http::Response<GrpcBody>, Infallible>;

/// Answers one request of at most `bytes_max` with one response.
pub(crate) fn unary<B, Req, Res, F>(
    request: http::Request<B>,
    bytes_max: usize,
    method: impl FnMut(Request<Req>) -> F + Send + 'static,
) -> Answer
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send,
    Req: prost::Message + Default + 'static,
    Res: prost::Message + 'static,
    F: Future<Output = Result<Response<Res>, Status>> + Send + 'static,
{
    let mut grpc = Grpc::new(ProstCodec::<Res, Req>::default()).max_decoding_message_size(bytes_max);
    Box::pin(async move { Ok(grpc.unary(service_fn(method), request).await) })
}

/// Answers a stream of requests, each of at most `bytes_max`, with a stream of responses.
pub(crate) fn bidirectional<B, Req, Res, S, F>(
    request: http::Request<B>,
    bytes_max: usize,
    method: impl FnMut(Request<Streaming<Req>>) -> F + Send + 'static,
) -> Answer
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send,
    Req: prost::Message + Default + 'static,
    Res: prost::Message + 'static,
    S: tokio_stream::Stream<Item = Result<Res, Status>> + Send + 'static,
    F: Future<Output = Result<Response<S>, Status>> + Send + 'static,
{
    let mut grpc = Grpc::new(ProstCodec::<Res, Req>::default()).max_decoding_message_size(bytes_max);
    Box::pin(async move { Ok(grpc.streaming(service_fn(method), request).await) })
}

/// The answer to a path that is no method of the service.
pub(crate) fn unimplemented() -> Answer {
    Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) })
}
