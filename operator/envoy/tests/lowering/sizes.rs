//! How much a redirected proxy is told, in bytes.

use crate::support::meshes::{self, Build, door, endpoint, undeclared};
use airlane_core::{
    mesh::{Mesh, Transport},
    policy::MtlsMode,
    world::Protocol,
};
use airlane_envoy::{
    catalog::{Catalog, Change, Kind},
    lower::{Lowerer, Settings},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

/// Every eighth service speaks bytes, the others share four ports.
fn with_service(mesh: Mesh, number: u16) -> Mesh {
    let address = IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + u32::from(number.reverse_bits())));
    let (port, protocol) = match number % 8 {
        0 => (5_432, Protocol::Tcp),
        1 => (9_090, Protocol::Grpc),
        2 => (8_080, Protocol::Http),
        3 => (3_000, Protocol::Http),
        _ => (80, Protocol::Http),
    };
    let name = format!("service-{number}");
    let http2 = protocol.is_http();
    let endpoints = vec![endpoint("a-1", 9_001, true), endpoint("a-2", 9_002, true)];
    mesh.with(meshes::in_cluster(&name, (address, port), protocol, Transport::Mtls { http2 }, endpoints))
}

fn sum(catalog: &Catalog, change: &Change) -> BTreeMap<Kind, (usize, usize)> {
    let mut sums: BTreeMap<Kind, (usize, usize)> = BTreeMap::new();
    let seen = catalog.seen_by(&"front-1".parse().unwrap(), &"shop".parse().unwrap());
    let changed = |key: &_| change.keys.values().any(|keys| keys.contains(key));
    for resource in seen.filter(|resource| changed(&resource.key)) {
        let (count, bytes) = sums.entry(resource.key.kind).or_default();
        *count += 1;
        *bytes += resource.body.value.len();
    }
    sums
}

#[test]
fn a_new_service_costs_the_same_beside_a_thousand_as_beside_ten() {
    let settings = Settings { bundle_pem: "roots".to_owned(), fail_safe_after: Duration::from_secs(600) };
    let costs = [10, 1_000].map(|services| {
        let mut lowerer = Lowerer::new(settings.clone());
        let doors = [(8_080, door(MtlsMode::Strict, Protocol::Http))];
        let empty = meshes::empty().pod("front-1", "front", &doors, undeclared(MtlsMode::Strict));
        let mesh = (0..services).fold(empty, with_service);
        let (catalog, all) = lowerer.lower(&mesh);
        let new = [services + 4 - services % 8, services + 8 - services % 8];
        let [requests, bytes] = new.map(|number| {
            let (catalog, change) = lowerer.lower(&with_service(mesh.clone(), number + 8));
            lowerer.lower(&mesh);
            sum(&catalog, &change)
        });
        eprintln!("{services} services: {:?}", sum(&catalog, &all));
        eprintln!("one more for requests: {requests:?}\none more for bytes: {bytes:?}");
        let total =
            |sums: BTreeMap<Kind, (usize, usize)>| sums.values().map(|(_, bytes)| bytes).sum::<usize>();
        [total(requests), total(bytes)]
    });
    for (beside_ten, beside_a_thousand) in costs[0].into_iter().zip(costs[1]) {
        // Names are a few characters longer.
        assert!(beside_a_thousand < beside_ten + 100, "{beside_ten} and {beside_a_thousand} bytes");
    }
}
