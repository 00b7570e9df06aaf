//! Services and who is behind them, as the mesh sees them.

use super::shapes::{EndpointSlice, Service, ServicePort};
use airlane_core::{
    id::{Name, Namespace, ServiceId},
    protocol::Protocol,
    world::{self, Port},
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// The label of an EndpointSlice with the name of its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What is kept of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Offer {
    pub(super) id: ServiceId,
    pub(super) ports: Vec<OfferedPort>,
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// A TCP port of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct OfferedPort {
    /// Empty if it has none, as a service with a single port may.
    pub(super) name: String,
    pub(super) number: u16,
    /// `None`: pods say themselves, by a name.
    pub(super) target: Option<u16>,
    pub(super) protocol: Protocol,
}

/// What is kept of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Slice {
    pub(super) service: ServiceId,
    /// The names of the service's ports, and their numbers in these pods.
    pub(super) ports: Vec<(String, u16)>,
    /// Pods of the service's namespace.
    pub(super) pods: BTreeSet<String>,
}

impl Slice {
    /// All that services depend on.
    pub(super) fn names(&self) -> (&ServiceId, &[(String, u16)]) {
        (&self.service, &self.ports)
    }
}

/// What is kept of a service: nothing if Kubernetes does not choose its pods (then the addresses behind it are not
/// ours to know), or if it has no TCP port.
pub(super) fn offer_of(service: &Service) -> Option<Offer> {
    let Service { metadata, spec } = service;
    if spec.selector.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let id = ServiceId {
        namespace: Namespace::parse(metadata.namespace.as_ref()?).ok()?,
        name: Name::parse(metadata.name.as_ref()?).ok()?,
    };
    let ports: Vec<OfferedPort> = spec
        .ports
        .iter()
        .filter(|port| is_tcp(port.protocol.as_deref()))
        .filter_map(|port| {
            let number = port_number(port.port)?;
            Some(OfferedPort {
                name: port.name.clone().unwrap_or_default(),
                number,
                target: match &port.target_port {
                    None => Some(number),
                    Some(IntOrString::Int(number)) => port_number(*number),
                    Some(IntOrString::String(_)) => None,
                },
                protocol: protocol_of(port),
            })
        })
        .collect();
    // Headless services say `None`.
    let addresses =
        spec.cluster_ips.iter().chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok()).collect();
    (!ports.is_empty()).then_some(Offer { id, ports, addresses })
}

/// What is kept of an EndpointSlice: nothing if it belongs to no service.
pub(super) fn slice_of(slice: &EndpointSlice) -> Option<Slice> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let ports = slice.ports.iter().flatten().filter(|port| is_tcp(port.protocol.as_deref()));
    let targets = slice.endpoints.iter().flatten().filter_map(|endpoint| endpoint.target_ref.as_ref());
    Some(Slice {
        service: ServiceId {
            namespace: Namespace::parse(slice.metadata.namespace.as_ref()?).ok()?,
            name: Name::parse(service).ok()?,
        },
        ports: ports
            .filter_map(|port| Some((port.name.clone().unwrap_or_default(), port_number(port.port?)?)))
            .collect(),
        pods: targets
            .filter(|target| target.kind.as_deref() == Some("Pod"))
            .filter_map(|target| target.name.clone())
            .collect(),
    })
}

/// A port that can be called. Whoever writes EndpointSlices by hand may write any number.
fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// What is spoken on a port: what `appProtocol` says, else how the port's name begins (`http`, `grpc-web`), else how
/// the name of its target does. What says nothing is bytes: a guess that is wrong would break what worked before, and
/// bytes pass as they are, only without retries and shares of requests.
fn protocol_of(port: &ServicePort) -> Protocol {
    if let Some(said) = port.app_protocol.as_deref().filter(|said| !said.is_empty()) {
        return spoken(said).unwrap_or(Protocol::Tcp);
    }
    let target = match &port.target_port {
        Some(IntOrString::String(name)) => Some(name.as_str()),
        _ => None,
    };
    let names = [port.name.as_deref(), target];
    names
        .into_iter()
        .flatten()
        .find_map(|name| spoken(name).or_else(|| spoken(name.split('-').next()?)))
        .unwrap_or(Protocol::Tcp)
}

/// A name of a protocol, from IANA's list of service names, of Kubernetes' own, or one in common use.
fn spoken(name: &str) -> Option<Protocol> {
    match name.to_ascii_lowercase().as_str() {
        // A WebSocket begins as HTTP/1.1, and gRPC-Web is made for it.
        "http" | "http1" | "kubernetes.io/ws" | "ws" | "grpc-web" => Some(Protocol::Http),
        "http2" | "h2c" | "kubernetes.io/h2c" => Some(Protocol::Http2),
        "grpc" => Some(Protocol::Grpc),
        "tcp" | "https" | "tls" | "kubernetes.io/wss" | "mongo" | "mysql" | "postgres" | "redis" | "amqp" => {
            Some(Protocol::Tcp)
        }
        _ => None,
    }
}

/// The services of the mesh.
pub(super) fn services<'a>(
    offers: impl Iterator<Item = &'a Offer>,
    slices: impl Iterator<Item = &'a Slice>,
) -> BTreeMap<ServiceId, world::Service> {
    let mut named: HashMap<(&ServiceId, &str), u16> = HashMap::new();
    for slice in slices {
        for (name, number) in &slice.ports {
            let lowest = named.entry((&slice.service, name)).or_insert(*number);
            *lowest = (*lowest).min(*number);
        }
    }
    offers
        .map(|offer| {
            let port = |port: &OfferedPort| Port {
                number: port.number,
                // Where pods give a name different numbers, each has its own in its instance.
                target: port
                    .target
                    .or_else(|| named.get(&(&offer.id, port.name.as_str())).copied())
                    .unwrap_or(port.number),
                protocol: port.protocol,
            };
            let service = world::Service {
                id: offer.id.clone(),
                ports: offer.ports.iter().map(port).collect(),
                addresses: offer.addresses.clone(),
            };
            (offer.id.clone(), service)
        })
        .collect()
}

/// What equals its counterpart in `before` is the same allocation, so that the compiler recognises it by its pointer.
pub(super) fn shared<K: Ord, V: PartialEq>(
    now: BTreeMap<K, V>,
    before: &BTreeMap<K, Arc<V>>,
) -> BTreeMap<K, Arc<V>> {
    now.into_iter()
        .map(|(key, value)| {
            let value = match before.get(&key) {
                Some(before) if **before == value => before.clone(),
                _ => Arc::new(value),
            };
            (key, value)
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read<T: serde::de::DeserializeOwned>(json: Value) -> T {
        serde_json::from_value(json).expect("an object")
    }

    pub(in super::super) fn offer(name: &str, ports: &Value) -> Option<Offer> {
        offer_of(&read(json!({
            "metadata": { "name": name, "namespace": "shop" },
            "spec": { "selector": { "app": name }, "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": ports },
        })))
    }

    pub(in super::super) fn slice(service: &str, ports: &Value, pods: &[&str]) -> Slice {
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|pod| json!({ "addresses": ["10.244.0.1"], "targetRef": { "kind": "Pod", "name": pod } }))
            .collect();
        slice_of(&read(json!({
            "metadata": {
                "name": format!("{service}-x"), "namespace": "shop",
                "labels": { "kubernetes.io/service-name": service },
            },
            "endpoints": endpoints, "ports": ports,
        })))
        .expect("a slice of a service")
    }

    #[test]
    fn numbers_that_are_no_ports_are_left_out() {
        let ports =
            json!([{ "port": 70_000 }, { "port": -1 }, { "port": 0 }, { "port": 8080 }, { "port": null }]);
        assert_eq!(slice("pay", &ports, &[]).ports, [(String::new(), 8080)]);
        let odd = json!([{ "port": 80, "targetPort": 70_000 }, { "name": "x", "port": -1 }]);
        let ports = offer("pay", &odd).expect("one").ports;
        assert_eq!(ports.iter().map(|port| (port.number, port.target)).collect::<Vec<_>>(), [(80, None)]);
    }

    #[test]
    fn a_service_leads_to_the_ports_its_pods_listen_on() {
        let ports = json!([
            { "name": "web", "port": 80, "targetPort": "web" },
            { "name": "more", "port": 81 },
            { "name": "dns", "port": 53, "protocol": "UDP" },
        ]);
        let offer = offer("pay", &ports).expect("TCP ports");
        let slices = [
            slice("pay", &json!([{ "name": "web", "port": 9001, "protocol": "TCP" }]), &["a"]),
            slice("pay", &json!([{ "name": "web", "port": 9000, "protocol": "TCP" }]), &["b"]),
        ];
        let services = services([&offer].into_iter(), slices.iter());
        let service = services.get(&offer.id).expect("the service");
        let ports: Vec<(u16, u16)> = service.ports.iter().map(|port| (port.number, port.target)).collect();
        assert_eq!(ports, [(80, 9000), (81, 81)]);
        assert_eq!(service.addresses, BTreeSet::from([IpAddr::from([10, 96, 0, 7])]));
    }

    #[test]
    fn what_leads_to_no_pods_of_ours_is_left_alone() {
        assert_eq!(offer("dns", &json!([{ "port": 53, "protocol": "UDP" }])), None);
        let other = |spec: Value| {
            let metadata = json!({ "name": "bank", "namespace": "shop" });
            offer_of(&read(json!({ "metadata": metadata, "spec": spec })))
        };
        let ports = json!([{ "port": 80 }]);
        assert_eq!(other(json!({ "ports": ports })), None, "its addresses are written by hand");
        let elsewhere = json!({ "type": "ExternalName", "selector": { "app": "x" }, "ports": ports });
        assert_eq!(other(elsewhere), None);
        let headless = json!({ "selector": { "app": "x" }, "clusterIP": "None", "clusterIPs": ["None"], "ports": ports });
        assert_eq!(other(headless).map(|offer| offer.addresses), Some(BTreeSet::new()));
    }

    #[test]
    fn a_port_speaks_what_is_said_of_it() {
        let spoken = |port: Value| protocol_of(&read(port)).to_string();
        assert_eq!(
            spoken(json!({ "port": 80, "appProtocol": "kubernetes.io/h2c", "name": "grpc" })),
            "http2"
        );
        assert_eq!(spoken(json!({ "port": 80, "appProtocol": "mysterious", "name": "http" })), "tcp");
        assert_eq!(spoken(json!({ "port": 80, "name": "grpc-admin" })), "grpc");
        assert_eq!(spoken(json!({ "port": 80, "name": "grpc-web" })), "http");
        assert_eq!(spoken(json!({ "port": 80, "targetPort": "http" })), "http");
        assert_eq!(spoken(json!({ "port": 80, "name": "web" })), "tcp");
        assert_eq!(spoken(json!({ "port": 443, "name": "https" })), "tcp");
        assert_eq!(spoken(json!({ "port": 80 })), "tcp");
    }
}
