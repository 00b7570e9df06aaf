//! What a session wants said: shared resources, copied into a message as late as possible.

use crate::catalog::{Kind, Resource};
use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as WireResource},
    google::protobuf::Duration,
};
use std::sync::Arc;

/// One message to one proxy. It holds pointers: a slow proxy's queue costs no copy of what waits in it.
#[derive(Debug)]
pub struct Response {
    /// The kind of everything in it.
    pub kind: Kind,
    /// Names the response in the proxy's answer; counts up over the whole stream.
    pub nonce: u64,
    /// What is sent, sorted by name.
    pub resources: Vec<Arc<Resource>>,
    /// What is gone, or was asked for and does not exist, sorted by name.
    pub removed: Vec<Arc<str>>,
    /// Whether `resources` are only kept alive: names, versions and TTLs travel, bodies do not.
    pub heartbeat: bool,
}

impl Response {
    /// The message for the wire.
    pub fn to_wire(&self) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: self.kind.type_url().to_owned(),
            nonce: self.nonce.to_string(),
            resources: self.resources.iter().map(|resource| self.resource_to_wire(resource)).collect(),
            removed_resources: self.removed.iter().map(|name| name.to_string()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    fn resource_to_wire(&self, resource: &Resource) -> WireResource {
        WireResource {
            name: resource.key.name.to_string(),
            version: resource.version.to_string(),
            resource: (!self.heartbeat).then(|| (*resource.body).clone()),
            ttl: resource.ttl.map(|ttl| Duration {
                seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(ttl.subsec_nanos()).unwrap_or(0),
            }),
            ..WireResource::default()
        }
    }

    pub(super) fn resource(&self, name: &str) -> Option<&Arc<Resource>> {
        let at = self.resources.binary_search_by(|resource| (*resource.key.name).cmp(name)).ok()?;
        self.resources.get(at)
    }

    pub(super) fn removes(&self, name: &str) -> bool {
        self.removed.binary_search_by(|removed| (**removed).cmp(name)).is_ok()
    }
}
