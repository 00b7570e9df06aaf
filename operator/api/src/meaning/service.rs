//! What a `Service` means.

use super::Remarks;
use crate::{
    field::FieldPath,
    service::{ServiceSpec, TargetPort},
};
use airlane_core::{
    id::{ObjectId, ServiceId},
    world::{Port, Service},
};
use std::collections::BTreeSet;

/// The service, its ports by number.
pub(crate) fn service(id: &ObjectId, spec: &ServiceSpec, remarks: &mut Remarks) -> Service {
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let path = FieldPath::of("spec.ports").index(index).key("targetPort");
        let target = match &port.target_port {
            None => port.port,
            Some(TargetPort::Name(_)) => {
                remarks.in_kubernetes_alone(&path);
                port.port
            }
            Some(TargetPort::Number(number)) => match u16::try_from(*number) {
                Ok(number) if number > 0 => number,
                _ => {
                    remarks.refuse(path, format!("{number} is out of range"), "write 1 to 65535");
                    continue;
                }
            },
        };
        ports.push(Port { number: port.port, target, protocol: port.spoken() });
    }
    ports.sort_by_key(|port| port.number);
    Service {
        id: ServiceId { namespace: id.namespace.clone(), name: id.name.clone() },
        ports,
        addresses: BTreeSet::new(),
    }
}
