//! `MeshPolicy`: how calls are made and doors are kept.

mod access;
mod calls;
mod door;
mod outside;
mod routes;

pub use {
    access::{Access, AccessDefault, AccessFrom, AccessMode, AccessRule, AccessTo, ClaimToHeader, Jwt},
    calls::{
        Backoff, Budget, CircuitBreaker, Connection, Cookie, HashOn, Http2, Limits, LoadBalancing,
        LoadBalancingPolicy, Locality, OutlierDetection, Retries, RetryOn, Timeouts, WhenOpen,
    },
    door::{Mtls, MtlsMode, Per, PortMtls, Protocol, RateLimit, RateLimitScope},
    outside::{AccessLog, Credential, Egress, EgressTls, Telemetry},
    routes::{
        Abort, Delay, Destination, Fault, Header, HeaderEdits, Headers, Mirror, Rewrite, Route, VersionRef,
    },
};

use crate::{name::AccountText, schema::NotYet, status::MeshPolicyStatus};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How calls to a service are made and how a workload's door is kept.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "airlane.dev",
    version = "v1alpha1",
    doc = "How calls to a service are made and how a workload's door is kept.",
    kind = "MeshPolicy",
    plural = "meshpolicies",
    shortname = "mpol",
    category = "airlane",
    namespaced,
    status = "MeshPolicyStatus",
    derive = "PartialEq",
    selectable = ".spec.targetRef.kind",
    selectable = ".spec.targetRef.name",
    validation = Rule::new("size(self.metadata.name) <= 63 && !self.metadata.name.contains('.')")
        .message("metadata.name must be a DNS label; use at most 63 lower-case letters, digits and '-'"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.targetRef.kind", priority = 1),
    printcolumn(name = "mTLS", type_ = "string", json_path = ".spec.mtls.mode"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(
        name = "Because",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.timeouts) || !has(self.timeouts.request) || !has(self.retries) \
        || !has(self.retries.perTryTimeout) || duration(self.retries.perTryTimeout) <= duration(self.timeouts.request)")
    .message(Message::Expression("'perTryTimeout ' + self.retries.perTryTimeout + ' is longer than the request timeout ' \
        + self.timeouts.request + ': the second try can never start; make it shorter'".into()))
    .field_path(".retries.perTryTimeout"))]
pub struct MeshPolicySpec {
    /// What the policy is about, in its own namespace. Without it: the whole namespace, or in the system namespace
    /// the whole mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Who may come through the door of a workload: mTLS, plaintext or both. Of several policies the strictest holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// How each call finds one of the service's endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// How long callers wait, as durations: 250ms, 10s, 5m. What is said for a service goes before what is said for
    /// its namespace, and that before the mesh's word, field by field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// Which failed requests are tried again, how often, and how many at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// When callers stop calling: limits on what is under way, endpoints that are left out because they fail, and
    /// what is answered instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// How callers' proxies keep connections to the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// Ports whose protocol is never guessed from the first bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<NotYet<Protocol>>,
    /// How many requests are let in, in a time, each limit by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rate_limits: Option<NotYet<Vec<RateLimit>>>,
    /// Who may ask the workload for what. Every policy that is about it must let a request pass; without any, all
    /// requests pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// Where requests go by what they say, and what is done to them on the way; the first that fits is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub routes: Option<NotYet<Vec<Route>>>,
    /// Hosts outside the mesh that are called through the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub egress: Option<NotYet<Vec<Egress>>>,
    /// What is recorded of requests: traces, access logs, decisions at the door.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<NotYet<Telemetry>>,
}

/// What a policy is about.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.port) || self.kind == 'Service'")
    .message(Message::Expression("'a ' + self.kind + ' has no ports to choose from; remove it, or target the Service'".into()))
    .field_path(".port"))]
#[x_kube(validation = Rule::new("self.kind == 'ServiceAccount' || !self.name.contains('.')")
    .message("only the name of a ServiceAccount may have dots here; for another workload target its ServiceAccount")
    .field_path(".name"))]
pub struct TargetRef {
    /// Service: calls to it, and the doors of its workloads. The others are about doors alone: a workload by its
    /// name, or all that run as a ServiceAccount.
    pub kind: TargetKind,
    /// Its name, in the policy's namespace.
    pub name: AccountText,
    /// One port of a Service, by the number that callers name; without it: all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// The kinds of things a policy can be about.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of Kubernetes kinds")]
pub enum TargetKind {
    Service,
    Deployment,
    StatefulSet,
    DaemonSet,
    ServiceAccount,
}
