//! gRPC's health check (`grpc/health/v1/health.proto` of github.com/grpc/grpc-proto).

use super::Outcome;
use crate::link;
use hyper::StatusCode;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;

const CHECK: &str = "/grpc.health.v1.Health/Check";

/// The largest answer, in bytes: it is a number.
const ANSWER_BYTES_MAX: usize = 1024;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// Asks the server at `address` about `service`. A server that answers, but not that it serves, is 503.
pub(super) async fn check(address: SocketAddr, service: &str) -> Result<Outcome, String> {
    let failed = |status: &Status| format!("port {}: {}", address.port(), link::why(status));
    match call(address, service).await {
        Ok(answer) if answer.status() == ServingStatus::Serving => Ok(Outcome::Well),
        Ok(_) => Ok(Outcome::Unwell(StatusCode::SERVICE_UNAVAILABLE)),
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => {
            Ok(Outcome::Unwell(StatusCode::SERVICE_UNAVAILABLE))
        }
        Err(status) => Err(failed(&status)),
    }
}

async fn call(address: SocketAddr, service: &str) -> Result<HealthCheckResponse, Status> {
    let broken = |error: tonic::transport::Error| Status::from_error(Box::new(error));
    let connector =
        tower::service_fn(move |_| async move { TcpStream::connect(address).await.map(TokioIo::new) });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(broken)?;
    let channel = endpoint.connect_with_connector(connector).await.map_err(broken)?;
    let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    grpc.ready().await.map_err(broken)?;
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let request = Request::new(HealthCheckRequest { service: service.into() });
    Ok(grpc.unary(request, PathAndQuery::from_static(CHECK), codec).await?.into_inner())
}
