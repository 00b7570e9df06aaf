//! What a `Service` means.

use crate::service::ServiceSpec;
use airlane_core::{
    id::{ObjectId, ServiceId},
    world::{Port, Service},
};
use std::collections::BTreeSet;

/// The service, its ports by number.
pub(crate) fn service(id: &ObjectId, spec: &ServiceSpec) -> Service {
    let port = |port: &crate::service::ServicePort| Port {
        number: port.port,
        target: port.target_port.unwrap_or(port.port),
        protocol: port.spoken(),
    };
    let mut ports: Vec<Port> = spec.ports.iter().map(port).collect();
    ports.sort_by_key(|port| port.number);
    Service {
        id: ServiceId { namespace: id.namespace.clone(), name: id.name.clone() },
        ports,
        addresses: BTreeSet::new(),
    }
}
