//! The messages.

use std::fmt;

/// The sidecar's first words: who it wants to be, and where it is. Sent over TLS pinned to the root's
/// fingerprint, authorised by the join token.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct JoinRequest {
    /// What lets it in: the secret part of the join token; in a pod its projected service-account token, which says
    /// who it is in place of the fields below.
    #[prost(string, tag = "1")]
    pub token: String,
    /// A PKCS#10 request, DER, for the URI SAN of the identity and nothing else; the key stays with the agent.
    #[prost(bytes = "vec", tag = "2")]
    pub csr: Vec<u8>,
    /// The namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// The service; its service account too.
    #[prost(string, tag = "4")]
    pub service: String,
    /// The revision (`--version`).
    #[prost(string, tag = "5")]
    pub revision: String,
    /// Where other proxies reach this one.
    #[prost(string, tag = "6")]
    pub address: String,
    /// The application's ports.
    #[prost(message, repeated, tag = "7")]
    pub ports: Vec<Port>,
    /// The loopback port for outbound calls; 0: none.
    #[prost(uint32, tag = "8")]
    pub outbound_port: u32,
    /// The unix socket of the agent's SDS.
    #[prost(string, tag = "9")]
    pub agent_socket: String,
    /// The unix socket for Envoy's admin interface.
    #[prost(string, tag = "10")]
    pub admin_socket: String,
    /// The file for outlier events.
    #[prost(string, tag = "11")]
    pub event_log: String,
    /// The instance's name when it joins again after the operator forgot it; empty the first time.
    #[prost(string, tag = "12")]
    pub instance: String,
    /// The sidecar's own version.
    #[prost(string, tag = "13")]
    pub sidecar_version: String,
}

impl fmt::Debug for JoinRequest {
    /// Leaves the token out, so that no log of a request can hold it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("namespace", &self.namespace)
            .field("service", &self.service)
            .field("revision", &self.revision)
            .field("address", &self.address)
            .field("ports", &self.ports)
            .field("outbound_port", &self.outbound_port)
            .field("instance", &self.instance)
            .field("sidecar_version", &self.sidecar_version)
            .finish_non_exhaustive()
    }
}

/// A port of the application and the proxy's port before it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Port {
    /// The application's port on loopback.
    #[prost(uint32, tag = "1")]
    pub app: u32,
    /// The proxy's port.
    #[prost(uint32, tag = "2")]
    pub mesh: u32,
    /// `http`, `http2`, `grpc` or `tcp`.
    #[prost(string, tag = "3")]
    pub protocol: String,
    /// The service's port behind which it stands; 0: the application's own.
    #[prost(uint32, tag = "4")]
    pub service: u32,
}

/// A certificate and what to trust.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Certificate {
    /// Leaf first, then the intermediate; PEM.
    #[prost(string, tag = "1")]
    pub chain_pem: String,
    /// The roots to trust; PEM.
    #[prost(string, tag = "2")]
    pub bundle_pem: String,
    /// When to ask for the next leaf, milliseconds since 1970 (half of the lifetime, with jitter).
    #[prost(int64, tag = "3")]
    pub renew_at_ms: i64,
    /// When the leaf ends, milliseconds since 1970.
    #[prost(int64, tag = "4")]
    pub not_after_ms: i64,
}

/// The operator's answer to a join.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JoinResponse {
    /// The instance's name: node id and DNS SAN.
    #[prost(string, tag = "1")]
    pub instance: String,
    /// The first certificate.
    #[prost(message, optional, tag = "2")]
    pub certificate: Option<Certificate>,
    /// Envoy's bootstrap, rendered: JSON.
    #[prost(string, tag = "3")]
    pub bootstrap: String,
    /// How often to send a heartbeat.
    #[prost(uint32, tag = "4")]
    pub heartbeat_every_ms: u32,
}

/// A new leaf is due. Over mTLS: the identity is the connection's.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RenewRequest {
    /// As in [`JoinRequest::csr`].
    #[prost(bytes = "vec", tag = "1")]
    pub csr: Vec<u8>,
}

/// A sign of life. Over mTLS: the instance is the connection's. Also sent at once when something changed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeartbeatRequest {
    /// How the application is.
    #[prost(enumeration = "AppHealth", tag = "1")]
    pub health: i32,
    /// Why, when it is not healthy.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// Outlier events since the last heartbeat that was answered.
    #[prost(message, repeated, tag = "3")]
    pub outliers: Vec<OutlierEvent>,
    /// Whether the application's port can be reached past the proxy (it does not listen on loopback only).
    #[prost(bool, tag = "4")]
    pub app_reachable: bool,
}

/// How the application is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AppHealth {
    /// It has not answered yet.
    Starting = 0,
    /// It answers.
    Healthy = 1,
    /// It answered once and does not any more.
    Unhealthy = 2,
}

/// An endpoint that a proxy left out or took back, from Envoy's outlier event log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OutlierEvent {
    /// The cluster's name.
    #[prost(string, tag = "1")]
    pub cluster: String,
    /// The endpoint's address and port.
    #[prost(string, tag = "2")]
    pub upstream: String,
    /// True: left out. False: taken back.
    #[prost(bool, tag = "3")]
    pub ejected: bool,
    /// Envoy's reason (`CONSECUTIVE_5XX`).
    #[prost(string, tag = "4")]
    pub reason: String,
    /// How often this endpoint was left out so far.
    #[prost(uint32, tag = "5")]
    pub ejections: u32,
    /// When, milliseconds since 1970.
    #[prost(int64, tag = "6")]
    pub at_ms: i64,
}

/// The operator's answer to a heartbeat.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeartbeatResponse {
    /// False: the operator does not know the instance (any more); join again.
    #[prost(bool, tag = "1")]
    pub known: bool,
    /// Ask for a new certificate now.
    #[prost(bool, tag = "2")]
    pub renew_now: bool,
}

/// The workload is about to stop: take it out of rotation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainRequest {
    /// The longest the answer may take.
    #[prost(uint32, tag = "1")]
    pub wait_ms: u32,
}

/// The answer comes when every caller acknowledged the removal, or the wait is over.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DrainResponse {
    /// Proxies that acknowledged.
    #[prost(uint32, tag = "1")]
    pub acknowledged: u32,
    /// Proxies that did not in time.
    #[prost(uint32, tag = "2")]
    pub outstanding: u32,
    /// The instance is not about to go: only a part of it is stopped and starts again.
    #[prost(bool, tag = "3")]
    pub stays: bool,
}

/// The workload has stopped: forget it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaveRequest {}

/// Forgotten.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaveResponse {}
