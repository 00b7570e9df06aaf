//! A control plane that holds the real conversation with each proxy, and publishes whatever it is told.

use super::pki::{Authority, Leaf};
use airlane_envoy::{
    catalog::Catalog,
    delta::{Published, Session},
};
use envoy_types::pb::envoy::{
    data::accesslog::v3::HttpAccessLogEntry,
    service::{
        accesslog::v3::{
            StreamAccessLogsMessage, StreamAccessLogsResponse,
            access_log_service_server::{AccessLogService, AccessLogServiceServer},
            stream_access_logs_message::LogEntries,
        },
        discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_server::{
                AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
            },
        },
    },
};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    metrics::v1::Metric,
};
use prost::Message;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

pub const IDENTITY: &str = "spiffe://airlane.local/ns/airlane-system/sa/airlane";

pub struct Plane {
    pub authority: Authority,
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    catalog: watch::Sender<Catalog>,
}

/// What the proxies said.
#[derive(Default)]
pub struct Seen {
    pub nacks: Mutex<Vec<String>>,
    pub failures: Mutex<Vec<HttpAccessLogEntry>>,
    pub metrics: Mutex<Vec<Metric>>,
}

impl Plane {
    pub fn start() -> Self {
        Self::start_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub fn start_on(listener: std::net::TcpListener) -> Self {
        let authority = Authority::new();
        let Leaf { chain_pem, key_pem } = authority.leaf(IDENTITY, "operator");
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(chain_pem, key_pem))
            .client_ca_root(Certificate::from_pem(&authority.root_pem));
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (catalog, changes) = watch::channel(Catalog::default());
        let seen = Arc::new(Seen::default());
        let service = Service { catalog: changes, seen: Arc::clone(&seen) };
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
                Server::builder()
                    .tls_config(tls)
                    .unwrap()
                    .add_service(AggregatedDiscoveryServiceServer::new(service.clone()))
                    .add_service(AccessLogServiceServer::new(service.clone()))
                    .add_service(MetricsServiceServer::new(service))
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            });
        });
        Self { authority, address, seen, catalog }
    }

    pub fn publish(&self, catalog: Catalog) {
        self.catalog.send_replace(catalog);
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let nacks = self.seen.nacks.lock().unwrap();
        if !thread::panicking() {
            assert!(nacks.is_empty(), "rejected: {nacks:#?}");
        } else if !nacks.is_empty() {
            eprintln!("rejected: {nacks:#?}");
        }
    }
}

#[derive(Clone)]
struct Service {
    catalog: watch::Receiver<Catalog>,
    seen: Arc<Seen>,
}

#[tonic::async_trait]
impl AccessLogService for Service {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            if let Some(LogEntries::HttpLogs(logs)) = message.log_entries {
                self.seen.failures.lock().unwrap().extend(logs.log_entry);
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let scopes =
            request.into_inner().resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
        self.seen.metrics.lock().unwrap().extend(scopes.flat_map(|scope| scope.metrics));
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (answers, stream) = mpsc::channel(64);
        let (seen, mut catalog) = (Arc::clone(&self.seen), self.catalog.clone());
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            let first = catalog.wait_for(|catalog| catalog.epoch > 0).await.expect("the plane lives").clone();
            let mut published = Published { catalog: first.into(), shares_live: true, ..Default::default() };
            let mut session = None;
            let began_at = Instant::now();
            loop {
                let wake = session.as_ref().and_then(Session::next_wake).unwrap_or(Duration::MAX);
                let reaction = tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        if let Some(error) = &request.error_detail {
                            seen.nacks.lock().unwrap().push(error.message.clone());
                        }
                        let session = session.get_or_insert_with(|| begin(&request, &published));
                        session.receive(&request, &published, began_at.elapsed()).expect("an Envoy")
                    }
                    changed = catalog.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        published.catalog = catalog.borrow_and_update().clone().into();
                        let Some(session) = &mut session else { continue };
                        session.resync(&published, began_at.elapsed())
                    }
                    () = tokio::time::sleep(wake.saturating_sub(began_at.elapsed())) => {
                        let Some(session) = &mut session else { continue };
                        session.wake(&published, began_at.elapsed())
                    }
                };
                for response in reaction.responses {
                    let answer =
                        DeltaDiscoveryResponse::decode(&*response.pieces().collect::<Vec<_>>().concat());
                    if answers.send(Ok(answer.expect("our own"))).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn begin(request: &DeltaDiscoveryRequest, published: &Published) -> Session {
    let node = request.node.as_ref().expect("the first request names its node");
    Session::new(&node.id.parse().unwrap(), &node.cluster.parse().unwrap(), published.catalog.epoch)
}
