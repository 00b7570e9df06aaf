//! A control plane that sends each proxy what it sees, as soon as it is subscribed to, and every change at once.

use super::pki::{Authority, Leaf};
use airlane_core::id::{InstanceId, Namespace};
use airlane_envoy::catalog::{Catalog, Key, Kind, Version};
use envoy_types::pb::envoy::{
    data::accesslog::v3::HttpAccessLogEntry,
    service::{
        accesslog::v3::{
            StreamAccessLogsMessage, StreamAccessLogsResponse,
            access_log_service_server::{AccessLogService, AccessLogServiceServer},
            stream_access_logs_message::LogEntries,
        },
        discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
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
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
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
            let mut session = Session::default();
            loop {
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        if let Some(error) = &request.error_detail {
                            seen.nacks.lock().unwrap().push(error.message.clone());
                        }
                        session.hear(&request);
                    }
                    changed = catalog.changed() => if changed.is_err() { return },
                }
                let now = catalog.borrow_and_update().clone();
                for answer in session.answers(&now) {
                    if answers.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// What one proxy subscribed to and was sent.
#[derive(Default)]
struct Session {
    proxy: Option<(InstanceId, Namespace)>,
    kinds: BTreeSet<Kind>,
    /// Kinds that must get an answer even if it is empty.
    waiting: BTreeSet<Kind>,
    sent: BTreeMap<Key, Version>,
    nonce: u64,
}

impl Session {
    fn hear(&mut self, request: &DeltaDiscoveryRequest) {
        if let Some(node) = &request.node
            && !node.id.is_empty()
        {
            self.proxy = Some((node.id.parse().unwrap(), node.cluster.parse().unwrap()));
        }
        let Some(kind) = Kind::of(&request.type_url) else { return };
        if request.response_nonce.is_empty() || !request.resource_names_subscribe.is_empty() {
            if self.kinds.insert(kind) {
                self.waiting.insert(kind);
            }
            for name in &request.resource_names_subscribe {
                self.sent.retain(|key, _| key.kind != kind || *key.name != **name);
                if kind == Kind::Routes {
                    // What came before its route configuration was dropped.
                    let of_it =
                        |key: &Key| key.name.rsplit_once('/').is_some_and(|(routes, _)| routes == name);
                    self.sent.retain(|key, _| key.kind != Kind::VirtualHost || !of_it(key));
                }
            }
        }
    }

    fn answers(&mut self, catalog: &Catalog) -> Vec<DeltaDiscoveryResponse> {
        let Some((id, namespace)) = &self.proxy else { return vec![] };
        let now: BTreeMap<Key, _> = catalog
            .seen_by(id, namespace)
            .map(|resource| (resource.key.clone(), Arc::clone(resource)))
            .collect();
        let mut answers = Vec::new();
        for kind in Kind::ALL {
            if !self.kinds.contains(&kind) || catalog.epoch == 0 {
                continue;
            }
            let fresh: Vec<_> = now
                .values()
                .filter(|resource| {
                    resource.key.kind == kind && self.sent.get(&resource.key) != Some(&resource.version)
                })
                .collect();
            let gone: Vec<Key> =
                self.sent.keys().filter(|key| key.kind == kind && !now.contains_key(key)).cloned().collect();
            if fresh.is_empty() && gone.is_empty() && !self.waiting.remove(&kind) {
                continue;
            }
            self.waiting.remove(&kind);
            for resource in &fresh {
                // A changed cluster warms until its endpoints come again.
                if kind == Kind::Cluster {
                    self.sent.remove(&Key { kind: Kind::Endpoints, name: Arc::clone(&resource.key.name) });
                }
                self.sent.insert(resource.key.clone(), resource.version);
            }
            for key in &gone {
                self.sent.remove(key);
            }
            self.nonce += 1;
            answers.push(DeltaDiscoveryResponse {
                type_url: kind.type_url().to_owned(),
                nonce: self.nonce.to_string(),
                resources: fresh
                    .iter()
                    .map(|resource| Resource {
                        name: resource.key.name.to_string(),
                        version: resource.version.to_string(),
                        resource: Some((*resource.body).clone()),
                        ..Default::default()
                    })
                    .collect(),
                removed_resources: gone.iter().map(|key| key.name.to_string()).collect(),
                ..Default::default()
            });
        }
        answers
    }
}
