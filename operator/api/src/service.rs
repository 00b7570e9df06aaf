//! `Service`: ports and names where they must be said. The shape is Kubernetes' own (`v1`), as far as it means
//! something without Kubernetes.

use crate::schema::NotYet;
use airlane_core::world::Protocol;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A service's ports.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Its ports.
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["port".into()]))]
    pub ports: Vec<ServicePort>,
    /// Which pods; a workload that registers names its service itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<NotYet>,
    /// How it is reached from outside the cluster.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<NotYet>,
    /// Its address.
    #[serde(rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    pub cluster_ip: Option<NotYet>,
}

/// One port.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; `grpc` or `grpc-…` says what is spoken there, if `appProtocol` does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub name: Option<String>,
    /// What callers name.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// What the application listens to; the same if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// What the application speaks; http if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<AppProtocol>,
    /// The transport.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Transport>,
}

/// What the application listens to: a number, or the name of a pod's port.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(untagged)]
pub enum TargetPort {
    /// From 1 to 65535.
    Number(i64),
    /// Means something in Kubernetes alone.
    Name(String),
}

impl JsonSchema for TargetPort {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "TargetPort".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true })
    }
}

/// What the application speaks.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the protocols' own names")]
pub enum AppProtocol {
    Http,
    Http2,
    Grpc,
    Tcp,
    #[serde(rename = "kubernetes.io/h2c")]
    H2c,
}

/// The transport: the mesh carries TCP.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the protocol's own name")]
pub enum Transport {
    Tcp,
}

impl ServicePort {
    /// What the application speaks: `appProtocol`, else what the port's name begins with, else HTTP.
    pub fn spoken(&self) -> Protocol {
        let by_name = self.name.as_deref().and_then(|name| name.split('-').next());
        match (self.app_protocol, by_name) {
            (Some(AppProtocol::Http), _) => Protocol::Http,
            (Some(AppProtocol::Http2 | AppProtocol::H2c), _) | (None, Some("http2" | "h2c")) => {
                Protocol::Http2
            }
            (Some(AppProtocol::Grpc), _) | (None, Some("grpc")) => Protocol::Grpc,
            (Some(AppProtocol::Tcp), _) | (None, Some("tcp")) => Protocol::Tcp,
            (None, _) => Protocol::Http,
        }
    }
}
