//! What governs a service, value by value, and where each value came from.

use super::{
    calls,
    index::Index,
    mtls::Words,
    rows::{Origin, Row, Written as _},
    touched::Touched,
};
use crate::{id::ServiceId, world::World};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What governs calls to a service and its door.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Effective {
    /// The service.
    pub service: ServiceId,
    /// Every value, for each of its ports. The rows of two ports differ only where a policy targets a port.
    pub ports: BTreeMap<u16, Vec<Row>>,
}

/// What governs a service; `None` if there is no such service.
///
/// The rows are written by the very merge that makes the mesh's values, so the two cannot disagree. The door
/// has one row for each answer its workloads give, usually one; a service without any gives its own.
pub fn effective(world: &World, service: &ServiceId) -> Option<Effective> {
    let declared = world.services.get(service)?;
    let index = Index::of(world, &Touched::between(None, world));
    let ladder = index.policies.ladder(declared);
    let workloads: BTreeSet<_> =
        index.instances_of(service).iter().map(|instance| &instance.workload).collect();
    let mut doors: Vec<Words> =
        workloads.into_iter().filter_map(|workload| Some(index.door(workload)?.words)).collect();
    if doors.is_empty() {
        doors.push(index.door_alone(declared));
    }
    let ports = declared.by_number().into_values().map(|port| {
        let mut rows: Vec<Row> = Vec::new();
        for (door, app_port) in doors.iter().flat_map(|door| {
            let selecting = door.services.iter().find(|selecting| selecting.service == *service);
            let apps = selecting.and_then(|selecting| selecting.leads.get(&port.number)).cloned();
            let apps = apps.filter(|apps| !apps.is_empty()).unwrap_or_else(|| [port.target].into());
            apps.into_iter().map(move |app| (door, app))
        }) {
            let ruling = door.ruling(app_port);
            let (value, origin) = (ruling.mode.written(), Origin::of(ruling.by));
            let row = Row { field: "spec.mtls.mode".to_owned(), value, origin };
            if !rows.contains(&row) {
                rows.push(row);
            }
            for access in door.access(app_port) {
                let (value, origin) = (access.says.written(), Origin::Object(access.by));
                let row = Row { field: "spec.access".to_owned(), value, origin };
                if !rows.contains(&row) {
                    rows.push(row);
                }
            }
        }
        calls::merge(ladder.rungs(port.number), port.protocol, Some(&mut rows));
        (port.number, rows)
    });
    Some(Effective { service: service.clone(), ports: ports.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::worlds::{instance, mode, policy, service, service_id, to_service, world_of},
        policy::{Millis, MtlsMode, Target},
        world::Protocol,
    };

    #[test]
    fn every_value_names_the_object_it_came_from() {
        let mut mesh = policy("airlane-system/mesh", Target::Mesh);
        mesh.mtls = mode(MtlsMode::Strict);
        mesh.calls.timeouts.request = Some(Millis(30_000));
        let mut port = policy("shop/port", to_service("shop/pay", Some(81)));
        port.calls.timeouts.request = Some(Millis(500));
        let world = world_of([
            service("shop/pay", &[(80, 8080, Protocol::Http), (81, 8080, Protocol::Http)]).into(),
            instance("shop/pay", "v1", 1).into(),
            mesh.into(),
            port.into(),
        ]);
        let effective = effective(&world, &service_id("shop/pay")).expect("it is there");
        let shown = |port: u16, field: &str| {
            let mut rows = effective.ports[&port].iter().filter(|row| row.field == field);
            let row = rows.next().expect("a row");
            assert!(rows.next().is_none(), "one row");
            format!("{} ({})", row.value, row.origin)
        };
        assert_eq!(shown(80, "spec.timeouts.request"), "30s (MeshPolicy airlane-system/mesh)");
        assert_eq!(shown(81, "spec.timeouts.request"), "500ms (MeshPolicy shop/port)");
        assert_eq!(shown(80, "spec.mtls.mode"), "Strict (MeshPolicy airlane-system/mesh)");
        assert_eq!(
            shown(80, "spec.retries.retryOn"),
            "[connect-failure, refused-stream, reset-before-request, reset, grpc-unavailable] (default)"
        );
        assert_eq!(super::effective(&world, &service_id("shop/gone")), None);
    }
}
