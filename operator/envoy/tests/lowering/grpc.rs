//! gRPC across two proxies. Any unary method does: the server answers by the name it is asked for.

use crate::support::{
    bench::{Bench, H2},
    meshes::door,
    until,
};
use airlane_core::{
    policy::{Millis, MtlsMode},
    world::Protocol,
};
use envoy_types::pb::envoy::service::{
    discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
    secret::v3::{
        secret_discovery_service_client::SecretDiscoveryServiceClient,
        secret_discovery_service_server::{SecretDiscoveryService, SecretDiscoveryServiceServer},
    },
};
use std::{sync::Arc, thread, time::Duration};
use tokio_stream::Empty;
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Endpoint, Server, server::TcpIncoming},
};

struct App;

#[tonic::async_trait]
impl SecretDiscoveryService for App {
    type DeltaSecretsStream = Empty<Result<DeltaDiscoveryResponse, Status>>;
    type StreamSecretsStream = Empty<Result<DiscoveryResponse, Status>>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn stream_secrets(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        match request.into_inner().type_url.as_str() {
            "fail" => Err(Status::unavailable("sick")),
            "not found" => Err(Status::not_found("no such thing")),
            "hang" => std::future::pending().await,
            _ => Ok(Response::new(DiscoveryResponse::default())),
        }
    }
}

fn serve() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
            let service = SecretDiscoveryServiceServer::new(App);
            Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
    });
    port
}

#[test]
fn grpc_keeps_its_own_timeouts_and_its_failures_are_told_from_its_answers() {
    let Some(mut bench) = Bench::new() else { return };
    let door = door(MtlsMode::Strict, Protocol::Grpc);
    let (caller, _called) = bench.pair(serve(), door, H2);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{}", bench.outbound))
        .unwrap()
        .origin("http://pay".parse().unwrap());
    let channel = runtime.block_on(channel.connect()).unwrap();
    let ask = |what: &str, timeout: Option<Duration>| {
        let mut request = Request::new(DiscoveryRequest { type_url: what.to_owned(), ..Default::default() });
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        let mut client = SecretDiscoveryServiceClient::new(channel.clone());
        let deadline = Duration::from_secs(10);
        runtime
            .block_on(async { tokio::time::timeout(deadline, client.fetch_secrets(request)).await })
            .expect("an answer")
            .map_or_else(|status| status.code(), |_| Code::Ok)
    };
    assert_eq!(ask("ok", None), Code::Ok, "{}", caller.log());
    assert_eq!(ask("not found", None), Code::NotFound);
    assert_eq!(ask("fail", None), Code::Unavailable);

    let failures = until("the failure is reported", || {
        let failures = bench.plane.seen.failures.lock().unwrap();
        (!failures.is_empty()).then(|| failures.clone())
    });
    let response = failures[0].response.clone().unwrap();
    let status = response
        .response_headers
        .get("grpc-status")
        .or_else(|| response.response_trailers.get("grpc-status"));
    assert_eq!((failures.len(), status.map(String::as_str)), (1, Some("14")));
    assert_eq!(
        caller.stat("cluster.80|pay|shop.upstream_rq_retry"),
        0,
        "gRPC is not repeated unless asked for"
    );

    // The policy caps what the caller asked for; a caller that sets no deadline has none.
    let mut mesh = bench.published();
    let pay = mesh.destinations.values_mut().next().unwrap();
    Arc::make_mut(pay).calls.request_timeout = Some(Millis(100));
    bench.publish(&mesh);
    until("the cap holds", || {
        (ask("hang", Some(Duration::from_secs(5))) == Code::DeadlineExceeded).then_some(())
    });
}
