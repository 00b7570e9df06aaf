//! The service over real connections, with a proxy that says exactly what the test wants.

use super::Publisher;
use crate::{clock::tests::HandClock, tls::Peer};
use airlane_core::id::InstanceId;
use airlane_envoy::catalog::{Catalog, Change, Key, Kind, Resource, Scope, Version};
use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::{
            discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
                aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
            },
            runtime::v3::Runtime,
        },
    },
    google::{protobuf::Any, protobuf::Struct, protobuf::Value, protobuf::value, rpc},
};
use jiff::Timestamp;
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status, Streaming,
    service::interceptor::InterceptedService,
    transport::{Channel, Server, server::TcpIncoming},
};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_millis(200);
const TTL: Duration = Duration::from_secs(40);

/// A control plane whose clients say who they are in a header, in place of a certificate.
struct Plane {
    publisher: Publisher,
    clock: Arc<HandClock>,
    shutdown: CancellationToken,
    address: SocketAddr,
    server: JoinHandle<()>,
    published: Arc<Catalog>,
    /// Instances that are in no mesh any more.
    deleted: Arc<Mutex<BTreeSet<String>>>,
}

impl Plane {
    async fn start() -> Plane {
        let clock = Arc::new(HandClock::at(Timestamp::UNIX_EPOCH));
        let publisher = Publisher::new(clock.clone());
        let shutdown = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let deleted = Arc::new(Mutex::new(BTreeSet::new()));
        let gone = Arc::clone(&deleted);
        let is_member =
            Arc::new(move |peer: &Peer| !gone.lock().expect("not poisoned").contains(peer.instance.as_str()));
        let service = InterceptedService::new(publisher.service(is_member, shutdown.clone()), who);
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), shutdown.clone().cancelled_owned());
        let server = tokio::spawn(async { server.await.expect("served") });
        Plane { publisher, clock, shutdown, address, server, published: Arc::default(), deleted }
    }

    fn publish(&mut self, resources: &[Resource]) {
        let layer: BTreeMap<_, _> = resources.iter().map(|r| (r.key.clone(), Arc::new(r.clone()))).collect();
        let resources = HashMap::from([(Scope::Everyone, Arc::new(layer))]);
        let catalog = Arc::new(Catalog { epoch: self.published.epoch + 1, resources });
        let old = self.published.resources.get(&Scope::Everyone).cloned().unwrap_or_default();
        let new = &catalog.resources[&Scope::Everyone];
        let version =
            |layer: &BTreeMap<Key, Arc<Resource>>, key| layer.get(key).map(|r: &Arc<Resource>| r.version);
        let keys = old.keys().chain(new.keys()).filter(|key| version(&old, key) != version(new, key));
        let keys: BTreeSet<_> = keys.cloned().collect();
        let change = Change { epoch: catalog.epoch, keys: [(Scope::Everyone, keys)].into() };
        self.published = catalog.clone();
        self.publisher.publish(catalog, change);
    }

    async fn client(&self) -> AggregatedDiscoveryServiceClient<Channel> {
        let address = format!("http://{}", self.address);
        AggregatedDiscoveryServiceClient::connect(address).await.expect("connected")
    }

    async fn connect(&self, who: &str) -> Proxy {
        let (say, said) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(said));
        request.metadata_mut().insert("who", who.parse().expect("ASCII"));
        let hear =
            self.client().await.delta_aggregated_resources(request).await.expect("a stream").into_inner();
        Proxy { instance: who.split('/').nth(1).unwrap_or_default().to_owned(), say, hear }
    }

    /// A proxy that has all its clusters and listeners.
    async fn settled(&self, who: &str) -> Proxy {
        let mut proxy = self.connect(who).await;
        for kind in [Kind::Cluster, Kind::Listener] {
            proxy.asks(kind, &[]).await;
            let response = proxy.hears().await;
            proxy.accepts(&response).await;
        }
        proxy
    }
}

fn not_after() -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(3600)
}

fn who(mut request: Request<()>) -> Result<Request<()>, Status> {
    let header = request.metadata().get("who").and_then(|who| who.to_str().ok()).map(str::to_owned);
    if let Some((account, instance)) = header.as_deref().and_then(|who| who.split_once('/')) {
        let identity = format!("spiffe://airlane.local/ns/shop/sa/{account}").parse().expect("an identity");
        let instance = InstanceId::parse(instance).expect("a name");
        request.extensions_mut().insert(Peer { identity, instance, not_after: not_after() });
    }
    Ok(request)
}

struct Proxy {
    instance: String,
    say: mpsc::Sender<DeltaDiscoveryRequest>,
    hear: Streaming<DeltaDiscoveryResponse>,
}

impl Proxy {
    async fn says(&self, request: DeltaDiscoveryRequest) {
        let node = Some(Node { id: self.instance.clone(), ..Node::default() });
        // A stream that the server has ended is noticed when the test listens.
        let _ = self.say.send(DeltaDiscoveryRequest { node, ..request }).await;
    }

    async fn asks(&self, kind: Kind, names: &[&str]) {
        let resource_names_subscribe = names.iter().map(ToString::to_string).collect();
        self.says(DeltaDiscoveryRequest { resource_names_subscribe, ..of(kind.type_url()) }).await;
    }

    async fn hears(&mut self) -> DeltaDiscoveryResponse {
        let response = timeout(PATIENCE, self.hear.message()).await.expect("in time");
        response.expect("no error").expect("a response")
    }

    async fn accepts(&self, response: &DeltaDiscoveryResponse) {
        let response_nonce = response.nonce.clone();
        self.says(DeltaDiscoveryRequest { response_nonce, ..of(&response.type_url) }).await;
    }

    async fn refuses(&self, response: &DeltaDiscoveryResponse, words: &str) {
        let error_detail = Some(rpc::Status { code: 3, message: words.into(), details: vec![] });
        let response_nonce = response.nonce.clone();
        self.says(DeltaDiscoveryRequest { response_nonce, error_detail, ..of(&response.type_url) }).await;
    }

    async fn ends(&mut self) -> Status {
        timeout(PATIENCE, self.hear.message()).await.expect("in time").expect_err("an end")
    }
}

fn of(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.into(), ..DeltaDiscoveryRequest::default() }
}

fn cluster(name: &str, version: u64) -> Resource {
    Resource {
        key: Key { kind: Kind::Cluster, name: name.into() },
        scope: Scope::Everyone,
        version: Version(version),
        body: Arc::new(Any { type_url: Kind::Cluster.type_url().into(), value: vec![1] }),
        ttl: None,
        clusters: Arc::default(),
        domains: Arc::default(),
        shaped_by: Arc::default(),
    }
}

fn shares(version: u64, parts: u32) -> Resource {
    let value = Value { kind: Some(value::Kind::NumberValue(parts.into())) };
    let layer = Some(Struct { fields: HashMap::from([("pay".to_owned(), value)]) });
    let body = Runtime { name: "shares".into(), layer }.encode_to_vec();
    Resource {
        key: Key { kind: Kind::Runtime, name: "shares".into() },
        body: Arc::new(Any { type_url: Kind::Runtime.type_url().into(), value: body }),
        ttl: Some(TTL),
        ..cluster("shares", version)
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

/// Waits until the publisher shows something.
async fn eventually(publisher: &Publisher, what: impl Fn(&Publisher) -> bool) {
    let mut progress = publisher.progress();
    let shown = async {
        while !what(publisher) {
            progress.changed().await.expect("a publisher");
        }
    };
    timeout(PATIENCE, shown).await.expect("in time");
}

#[tokio::test]
async fn strangers_and_other_protocols_are_refused() {
    let plane = Plane::start().await;
    let nobody = plane.client().await.delta_aggregated_resources(tokio_stream::empty()).await;
    assert_eq!(nobody.expect_err("refused").code(), Code::Unauthenticated);
    let request = tokio_stream::empty::<DiscoveryRequest>();
    let whole = plane.client().await.stream_aggregated_resources(request).await;
    assert_eq!(whole.expect_err("refused").code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_node_that_is_not_its_certificate_is_refused() {
    let mut plane = Plane::start().await;
    plane.publish(&[]);
    let mut proxy = plane.connect("pay/pay-1").await;
    proxy.instance = "cart-1".into();
    proxy.asks(Kind::Cluster, &[]).await;
    assert_eq!(proxy.ends().await.code(), Code::PermissionDenied);
    eventually(&plane.publisher, |publisher| publisher.connected().is_empty()).await;
}

#[tokio::test]
async fn nothing_is_answered_before_the_first_publication() {
    let mut plane = Plane::start().await;
    let mut proxy = plane.connect("pay/pay-1").await;
    proxy.asks(Kind::Cluster, &[]).await;
    assert!(timeout(SILENCE, proxy.hear.message()).await.is_err());
    plane.publish(&[cluster("a", 1)]);
    assert_eq!(names(&proxy.hears().await), ["a"]);
}

fn reached(publisher: &Publisher, name: &str, epoch: u64) -> bool {
    let instance = InstanceId::parse(name).expect("a name");
    publisher.acked_epoch(&instance) == Some(epoch)
}

#[tokio::test]
async fn an_epoch_is_acknowledged_when_every_proxy_has_answered() {
    let mut plane = Plane::start().await;
    plane.publish(&[cluster("a", 1)]);
    let mut one = plane.settled("pay/pay-1").await;
    let mut other = plane.settled("cart/cart-1").await;
    eventually(&plane.publisher, |publisher| publisher.all_reached(1)).await;
    plane.publish(&[cluster("a", 1), cluster("b", 1)]);
    let response = one.hears().await;
    assert_eq!(names(&response), ["b"]);
    one.accepts(&response).await;
    eventually(&plane.publisher, |publisher| reached(publisher, "pay-1", 2)).await;
    assert!(!reached(&plane.publisher, "cart-1", 2) && !plane.publisher.all_reached(2));
    let response = other.hears().await;
    other.accepts(&response).await;
    eventually(&plane.publisher, |publisher| publisher.all_reached(2)).await;
}

#[tokio::test]
async fn a_stream_that_lags_far_gets_the_newest() {
    let mut plane = Plane::start().await;
    plane.publish(&[]);
    let mut proxy = plane.settled("pay/pay-1").await;
    for version in 1..=200 {
        plane.publish(&[cluster("a", version)]);
    }
    let mut heard = Vec::new();
    while heard.last().map(String::as_str) != Some(&*Version(200).to_string()) {
        let response = proxy.hears().await;
        heard.extend(response.resources.iter().map(|resource| resource.version.clone()));
        proxy.accepts(&response).await;
    }
    assert!(heard.len() < 100, "{} of 200 versions were sent", heard.len());
    eventually(&plane.publisher, |publisher| publisher.all_reached(201)).await;
}

#[tokio::test]
async fn a_second_stream_of_an_instance_ends_the_first() {
    let mut plane = Plane::start().await;
    plane.publish(&[]);
    let mut first = plane.settled("pay/pay-1").await;
    let second = plane.settled("pay/pay-1").await;
    assert_eq!(first.ends().await.code(), Code::Aborted);
    eventually(&plane.publisher, |publisher| publisher.all_reached(1)).await;
    assert_eq!(plane.publisher.connected().len(), 1);
    drop(second);
    eventually(&plane.publisher, |publisher| publisher.connected().is_empty()).await;
}

#[tokio::test]
async fn shutting_down_ends_every_stream() {
    let mut plane = Plane::start().await;
    let mut early = plane.connect("cart/cart-1").await;
    early.asks(Kind::Cluster, &[]).await;
    plane.publish(&[]);
    let mut proxy = plane.settled("pay/pay-1").await;
    early.hears().await;
    plane.shutdown.cancel();
    assert_eq!(proxy.ends().await.code(), Code::Unavailable);
    assert_eq!(early.ends().await.code(), Code::Unavailable);
    timeout(PATIENCE, plane.server).await.expect("in time").expect("stopped");
}

#[tokio::test]
async fn a_refusal_is_shown_until_a_mended_version_is_published() {
    let mut plane = Plane::start().await;
    plane.publish(&[]);
    let mut proxies = [plane.settled("pay/pay-1").await, plane.settled("cart/cart-1").await];
    let mut refusals = plane.publisher.refusals();
    plane.publish(&[cluster("bad", 1)]);
    for proxy in &mut proxies {
        let response = proxy.hears().await;
        proxy.refuses(&response, "bad\n  is bad").await;
    }
    let shown = refusals.wait_for(|shown| shown.values().any(|refusal| refusal.proxies.len() == 2));
    let shown = timeout(PATIENCE, shown).await.expect("in time").expect("a publisher").clone();
    let refusal = shown.values().next().expect("one");
    assert_eq!((&*refusal.rejection.key.name, &*refusal.rejection.detail), ("bad", "bad is bad"));
    eventually(&plane.publisher, |publisher| publisher.all_reached(2)).await;

    let mut third = plane.connect("web/web-1").await;
    third.asks(Kind::Cluster, &[]).await;
    assert_eq!(names(&third.hears().await), [""; 0], "two identities refused it");

    plane.publish(&[cluster("bad", 2)]);
    assert!(refusals.borrow_and_update().is_empty());
    assert_eq!(names(&proxies[0].hears().await), ["bad"]);
}

#[tokio::test]
async fn acknowledged_shares_count_while_they_certainly_live() {
    let mut plane = Plane::start().await;
    plane.publisher.beat(Duration::from_secs(1000));
    plane.publish(&[shares(1, 500)]);
    let mut proxy = plane.settled("pay/pay-1").await;
    let instance = InstanceId::parse("pay-1").expect("a name");
    let parts = |publisher: &Publisher| {
        let acked = publisher.acked_shares(&instance);
        acked.map(|(shares, _)| shares["pay"])
    };
    proxy.asks(Kind::Runtime, &["shares"]).await;
    let response = proxy.hears().await;
    assert_eq!(parts(&plane.publisher), None, "sent is not acknowledged");
    proxy.accepts(&response).await;
    // The answer to a question on the same stream comes after the answer before it was read.
    proxy.asks(Kind::Endpoints, &["x"]).await;
    proxy.hears().await;
    assert_eq!(parts(&plane.publisher), Some(500));
    plane.publish(&[shares(2, 2500)]);
    let response = proxy.hears().await;
    assert_eq!(parts(&plane.publisher), Some(500));
    proxy.accepts(&response).await;
    proxy.asks(Kind::Endpoints, &["y"]).await;
    proxy.hears().await;
    assert_eq!(parts(&plane.publisher), Some(2500));
    plane.clock.advance(TTL);
    assert_eq!(parts(&plane.publisher), None);
}

#[tokio::test]
async fn shares_wait_until_somebody_vouches_for_them() {
    let mut plane = Plane::start().await;
    plane.publish(&[shares(1, 500)]);
    let mut proxy = plane.connect("pay/pay-1").await;
    proxy.asks(Kind::Runtime, &["shares"]).await;
    let response = proxy.hears().await;
    assert_eq!(response.removed_resources, ["shares"]);
    proxy.accepts(&response).await;
    plane.publisher.beat(Duration::from_secs(5));
    assert_eq!(names(&proxy.hears().await), ["shares"]);
}

#[tokio::test]
async fn a_proxy_that_never_answers_is_not_waited_for_for_ever() {
    let mut plane = Plane::start().await;
    plane.publish(&[cluster("a", 1)]);
    let mut mute = plane.settled("pay/pay-1").await;
    let mut other = plane.settled("cart/cart-1").await;
    plane.publish(&[cluster("a", 2)]);
    mute.hears().await;
    let response = other.hears().await;
    other.accepts(&response).await;
    eventually(&plane.publisher, |publisher| reached(publisher, "cart-1", 2)).await;
    plane.clock.advance(Duration::from_secs(60));
    // Whatever happens next on the stream.
    plane.publish(&[cluster("a", 2), cluster("b", 1)]);
    loop {
        match timeout(PATIENCE, mute.hear.message()).await.expect("in time") {
            Ok(Some(_)) => {}
            ended => break assert_eq!(ended.expect_err("an end").code(), Code::DeadlineExceeded),
        }
    }
    let response = other.hears().await;
    assert_eq!(names(&response), ["b"], "who answers stays");
    other.accepts(&response).await;
    eventually(&plane.publisher, |publisher| publisher.all_reached(3)).await;
}

#[tokio::test]
async fn who_is_not_in_the_mesh_any_more_loses_its_stream() {
    let mut plane = Plane::start().await;
    plane.publish(&[]);
    let mut proxy = plane.settled("pay/pay-1").await;
    plane.deleted.lock().expect("not poisoned").insert("pay-1".to_owned());
    plane.publish(&[cluster("a", 1)]);
    assert_eq!(proxy.ends().await.code(), Code::PermissionDenied);
    // Its papers open another stream, and are told nothing on it.
    let mut again = plane.connect("pay/pay-1").await;
    again.asks(Kind::Cluster, &[]).await;
    assert!(timeout(SILENCE, again.hear.message()).await.is_err());
    plane.deleted.lock().expect("not poisoned").clear();
    plane.publish(&[cluster("a", 1), cluster("b", 1)]);
    assert_eq!(names(&again.hears().await), ["a", "b"], "until this replica knows it");
}
