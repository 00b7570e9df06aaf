//! The part of Envoy's secret discovery service that a sidecar serves to the Envoy beside it.
//!
//! Field numbers are those of Envoy's v3 API (`envoy/service/discovery/v3/discovery.proto`,
//! `envoy/extensions/transport_sockets/tls/v3/secret.proto`); fields nobody here reads are left out, and skipped
//! when they arrive.

use crate::rpc::{self, Answer};
use bytes::Bytes;
use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status, Streaming,
    codegen::{Body, Service, StdError, http},
    server::NamedService,
};

/// The `type_url` of a [`Secret`].
pub const SECRET_TYPE_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// The method Envoy calls with `api_type: GRPC`.
pub const STREAM_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
/// The method Envoy calls with `api_type: DELTA_GRPC`.
pub const DELTA_SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets";

/// The largest request, in bytes. Envoy's description of itself, in its first one, takes about 61 KB.
const REQUEST_BYTES_MAX: usize = 512 * 1024;

/// `envoy.service.discovery.v3.DiscoveryRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DiscoveryRequest {
    /// The version in use; empty on a fresh stream.
    #[prost(string, tag = "1")]
    pub version_info: String,
    /// All names wanted.
    #[prost(string, repeated, tag = "3")]
    pub resource_names: Vec<String>,
    /// The type wanted.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// The response this one answers; empty: none.
    #[prost(string, tag = "5")]
    pub response_nonce: String,
    /// Set: that response was rejected, for this reason.
    #[prost(message, optional, tag = "6")]
    pub error_detail: Option<RpcStatus>,
}

/// `envoy.service.discovery.v3.DiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DiscoveryResponse {
    /// The version of the whole.
    #[prost(string, tag = "1")]
    pub version_info: String,
    /// The resources.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Any>,
    /// Their type.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// What the answer will name.
    #[prost(string, tag = "5")]
    pub nonce: String,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaDiscoveryRequest {
    /// The type wanted.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Names wanted from now on.
    #[prost(string, repeated, tag = "3")]
    pub resource_names_subscribe: Vec<String>,
    /// Names not wanted any more.
    #[prost(string, repeated, tag = "4")]
    pub resource_names_unsubscribe: Vec<String>,
    /// Versions the caller holds from an earlier stream.
    #[prost(map = "string, string", tag = "5")]
    pub initial_resource_versions: HashMap<String, String>,
    /// The response this one answers; empty: none.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// Set: that response was rejected, for this reason.
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<RpcStatus>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaDiscoveryResponse {
    /// The resources that are new to the caller.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    /// Their type.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// What the answer will name.
    #[prost(string, tag = "5")]
    pub nonce: String,
}

/// `envoy.service.discovery.v3.Resource`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    /// Its version.
    #[prost(string, tag = "1")]
    pub version: String,
    /// The resource.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// `google.protobuf.Any`. Its value may hold a private key, so it is not printed.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct Any {
    /// The type of `value`.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message, encoded.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

impl fmt::Debug for Any {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Any").field("type_url", &self.type_url).finish_non_exhaustive()
    }
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcStatus {
    /// A `google.rpc.Code`.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// In words.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `envoy.extensions.transport_sockets.tls.v3.Secret`; one of its two contents is set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Secret {
    /// What a listener or cluster calls it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A chain and its key.
    #[prost(message, optional, tag = "2")]
    pub tls_certificate: Option<TlsCertificate>,
    /// What to trust.
    #[prost(message, optional, tag = "4")]
    pub validation_context: Option<ValidationContext>,
}

/// `envoy.extensions.transport_sockets.tls.v3.TlsCertificate`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TlsCertificate {
    /// Leaf first; PEM.
    #[prost(message, optional, tag = "1")]
    pub certificate_chain: Option<DataSource>,
    /// PKCS#8; PEM.
    #[prost(message, optional, tag = "2")]
    pub private_key: Option<DataSource>,
}

/// `envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValidationContext {
    /// The roots; PEM.
    #[prost(message, optional, tag = "1")]
    pub trusted_ca: Option<DataSource>,
}

/// `envoy.config.core.v3.DataSource`, inline. It may hold a private key, so it is not printed.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct DataSource {
    /// The data itself.
    #[prost(bytes = "bytes", tag = "2")]
    pub inline_bytes: Bytes,
}

impl fmt::Debug for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataSource").finish_non_exhaustive()
    }
}

/// Gives secrets to Envoy, in either form of the protocol.
pub trait SecretDiscovery: Send + Sync + 'static {
    /// The state-of-the-world conversation.
    fn stream_secrets(
        &self,
        requests: Streaming<DiscoveryRequest>,
    ) -> impl Stream<Item = Result<DiscoveryResponse, Status>> + Send + use<Self>;

    /// The incremental conversation.
    fn delta_secrets(
        &self,
        requests: Streaming<DeltaDiscoveryRequest>,
    ) -> impl Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send + use<Self>;
}

/// Serves a [`SecretDiscovery`] over gRPC.
#[derive(Debug)]
pub struct SecretDiscoveryServer<T>(Arc<T>);

impl<T> SecretDiscoveryServer<T> {
    /// A server of `secrets`.
    pub fn new(secrets: Arc<T>) -> Self {
        Self(secrets)
    }
}

impl<T> Clone for SecretDiscoveryServer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> NamedService for SecretDiscoveryServer<T> {
    const NAME: &'static str = "envoy.service.secret.v3.SecretDiscoveryService";
}

impl<T, B> Service<http::Request<B>> for SecretDiscoveryServer<T>
where
    T: SecretDiscovery,
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
        let secrets = Arc::clone(&self.0);
        match request.uri().path() {
            STREAM_SECRETS => rpc::bidirectional(request, REQUEST_BYTES_MAX, move |requests: Request<_>| {
                let responses = secrets.stream_secrets(requests.into_inner());
                std::future::ready(Ok(Response::new(responses)))
            }),
            DELTA_SECRETS => rpc::bidirectional(request, REQUEST_BYTES_MAX, move |requests: Request<_>| {
                let responses = secrets.delta_secrets(requests.into_inner());
                std::future::ready(Ok(Response::new(responses)))
            }),
            _ => rpc::unimplemented(),
        }
    }
}
