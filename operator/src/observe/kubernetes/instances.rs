//! Copies of workloads: pods, and the services that they stand behind.
//!
//! One pod of thousands changes many times a second, so only what a change can reach is made again.

use super::{
    mirror::{Key, Noted},
    pod::Copy,
    service::{Offer, Slice},
};
use airlane_core::{
    id::{InstanceId, ServiceId},
    world::{Instance, InstancePort, Interception},
};
use airlane_wire::pod::{self, OUTBOUND_PORT};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

// What the kernel is told, and what proxies and their configuration take for granted.
const _: () = {
    use airlane_core::mesh;
    assert!(
        mesh::INBOUND_PORT == pod::INBOUND_PORT && airlane_envoy::lower::CALL_PRIORITY == pod::CALL_PRIORITY
    );
    assert!(*mesh::RESERVED_PORTS.start() == *pod::RESERVED_PORTS.start());
    assert!(*mesh::RESERVED_PORTS.end() == *pod::RESERVED_PORTS.end());
};

/// The first of the ports on which a proxy that does not intercept takes calls, one for each port of the application.
const FIRST_DOOR: u16 = 15_040;

/// The last of them: what is above belongs to users.
const LAST_DOOR: u16 = 15_099;

/// The instances that may be others than they were last made.
#[derive(Debug, Default)]
pub(super) struct Stale {
    everything: bool,
    pods: BTreeSet<Key>,
    /// What pods of these names were.
    gone: BTreeSet<InstanceId>,
}

impl Stale {
    pub(super) fn is_empty(&self) -> bool {
        !self.everything && self.pods.is_empty()
    }

    pub(super) fn pod(&mut self, noted: Noted<Copy>) {
        match noted {
            Noted::Nothing => {}
            Noted::All => self.everything = true,
            Noted::One(key, before) => {
                self.pods.insert(key);
                self.gone.extend(before.map(|copy| copy.id));
            }
        }
    }

    /// `now` is what is kept of a slice since.
    pub(super) fn slice<'a>(&mut self, noted: &Noted<Slice>, now: impl FnOnce(&Key) -> Option<&'a Slice>) {
        match noted {
            Noted::Nothing => {}
            Noted::All => self.everything = true,
            Noted::One(key, before) => {
                for slice in before.iter().chain(now(key)) {
                    self.pods.extend(slice.pods.iter().map(|pod| (key.0.clone(), pod.clone())));
                }
            }
        }
    }

    pub(super) fn service(&mut self, noted: &Noted<Offer>) {
        // Their ports seldom change, and all pods behind them would have to be found.
        self.everything |= *noted != Noted::Nothing;
    }
}

/// What instances are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub(super) copies: &'a BTreeMap<Key, Copy>,
    pub(super) offers: &'a BTreeMap<Key, Offer>,
    pub(super) slices: &'a BTreeMap<Key, Slice>,
}

/// The services that a pod stands behind, and its ports there.
#[derive(Default)]
struct Behind {
    services: BTreeSet<ServiceId>,
    ports: BTreeSet<InstancePort>,
}

impl Behind {
    fn add(&mut self, service: &ServiceId, ports: &[InstancePort]) {
        self.services.insert(service.clone());
        self.ports.extend(ports.iter().cloned());
    }
}

impl Parts<'_> {
    /// The copies of workloads that matter to the mesh, those with a proxy and those behind a service, given what they
    /// were. What is as before is the same allocation, so that the compiler recognises it by its pointer.
    pub(super) fn instances(
        self,
        before: &BTreeMap<InstanceId, Arc<Instance>>,
        stale: &Stale,
    ) -> BTreeMap<InstanceId, Arc<Instance>> {
        if stale.everything {
            return self.every().map(|instance| shared(instance, before)).collect();
        }
        let mut instances = before.clone();
        for gone in &stale.gone {
            instances.remove(gone);
        }
        let copies = stale.pods.iter().filter_map(|key| Some((key, self.copies.get(key)?)));
        for (key, copy) in copies {
            match instance(copy, self.behind(key)) {
                Some(instance) => {
                    let (id, instance) = shared(instance, before);
                    instances.insert(id, instance);
                }
                None => {
                    instances.remove(&copy.id);
                }
            }
        }
        instances
    }

    fn every(self) -> impl Iterator<Item = Instance> {
        let mut behind: HashMap<(&str, &str), Behind> = HashMap::new();
        for ((namespace, _), slice) in self.slices {
            let Some(ports) = self.ports(slice) else { continue };
            for pod in &slice.pods {
                behind.entry((namespace, pod)).or_default().add(&slice.service, &ports);
            }
        }
        self.copies.iter().filter_map(move |((namespace, name), copy)| {
            instance(copy, behind.remove(&(namespace.as_str(), name.as_str())).unwrap_or_default())
        })
    }

    fn behind(self, (namespace, pod): &Key) -> Behind {
        let mut behind = Behind::default();
        let slices = self.slices.range((namespace.clone(), String::new())..);
        for (_, slice) in slices.take_while(|((of, _), _)| of == namespace) {
            if slice.pods.contains(pod)
                && let Some(ports) = self.ports(slice)
            {
                behind.add(&slice.service, &ports);
            }
        }
        behind
    }

    /// The ports that a slice's pods have of its service; `None` if there is no such service.
    fn ports(self, slice: &Slice) -> Option<Vec<InstancePort>> {
        let ServiceId { namespace, name } = &slice.service;
        let offer = self.offers.get(&(namespace.as_str().to_owned(), name.as_str().to_owned()))?;
        let ports = slice.ports.iter().flat_map(|(name, app)| {
            let meant = offer.ports.iter().filter(move |port| port.name == *name);
            meant.map(|port| InstancePort {
                service: port.number,
                app: *app,
                mesh: *app,
                protocol: port.protocol,
                of: Some(slice.service.clone()),
                past_proxy: false,
            })
        });
        Some(ports.collect())
    }
}

fn instance(copy: &Copy, Behind { services, ports }: Behind) -> Option<Instance> {
    if copy.interception == Interception::None && services.is_empty() {
        return None;
    }
    let ports: Vec<InstancePort> = ports.into_iter().collect();
    let (outbound_port, ports) = match copy.interception {
        Interception::None => (0, ports),
        Interception::Transparent => (OUTBOUND_PORT, past_proxy(ports, &copy.excluded)),
        Interception::Outbound => (OUTBOUND_PORT, ports),
        Interception::Environment => (OUTBOUND_PORT, doors(ports)),
    };
    let Copy { id, workload, service_account, address, ipv6, interception, health, stops_within, .. } =
        copy.clone();
    Some(Instance {
        id,
        workload,
        service_account,
        services,
        address,
        ipv6,
        ports,
        outbound_port,
        interception,
        health,
        stops_within,
    })
}

fn shared(now: Instance, before: &BTreeMap<InstanceId, Arc<Instance>>) -> (InstanceId, Arc<Instance>) {
    let instance = match before.get(&now.id) {
        Some(before) if **before == now => Arc::clone(before),
        _ => Arc::new(now),
    };
    (instance.id.clone(), instance)
}

/// The kernel redirects nothing of what enters at these.
fn past_proxy(mut ports: Vec<InstancePort>, excluded: &BTreeSet<u16>) -> Vec<InstancePort> {
    for port in &mut ports {
        port.past_proxy = excluded.contains(&port.app);
    }
    ports
}

/// Ports of the proxy's own, one for each of the application's: both share the pod's address. An application with more
/// ports than there are doors is not called by mesh at the last of them.
fn doors(mut ports: Vec<InstancePort>) -> Vec<InstancePort> {
    let apps: BTreeSet<u16> = ports.iter().map(|port| port.app).collect();
    let doors: BTreeMap<u16, u16> = apps.into_iter().zip(FIRST_DOOR..=LAST_DOOR).collect();
    for port in &mut ports {
        port.mesh = doors.get(&port.app).copied().unwrap_or(0);
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::kubernetes::{
        owner::{Kind, Workload},
        pod::Membership,
        service::tests::{offer, slice},
    };
    use airlane_core::{
        id::{Name, Namespace, Revision, WorkloadRevision},
        world::Health,
    };
    use proptest::prelude::*;
    use serde_json::json;

    fn copy(name: &str, interception: Interception) -> ((String, String), Copy) {
        let label = |text: &str| Name::parse(text).expect("a name");
        let namespace = Namespace::parse("shop").expect("a name");
        let copy = Copy {
            id: InstanceId::of_copy(name, "abcd").expect("a name"),
            workload: WorkloadRevision {
                namespace,
                workload: label(name),
                revision: Revision::parse("v1").expect("a name"),
            },
            service_account: label("default").into(),
            address: [10, 244, 0, 1].into(),
            ipv6: false,
            interception,
            excluded: BTreeSet::new(),
            health: Health::Healthy,
            stops_within: std::time::Duration::ZERO,
            owner: Workload { kind: Kind::Pod, name: name.to_owned() },
            membership: Membership::Bare,
        };
        (("shop".to_owned(), name.to_owned()), copy)
    }

    /// `pod: service,… port→app@mesh/protocol,…` of every instance.
    fn check(copies: &[((String, String), Copy)], offers: &[Offer], slices: &[Slice], expected: &[&str]) {
        let offers = offers.iter().map(|offer| (key(offer.id.name.as_str()), offer.clone())).collect();
        let slices = slices.iter().map(|slice| (key(slice.service.name.as_str()), slice.clone())).collect();
        let parts = Parts { copies: &copies.iter().cloned().collect(), offers: &offers, slices: &slices };
        let stale = Stale { everything: true, ..Stale::default() };
        let instances = parts.instances(&BTreeMap::new(), &stale);
        let shown: Vec<String> = instances
            .values()
            .map(|instance| {
                let services: Vec<String> = instance.services.iter().map(ToString::to_string).collect();
                let ports = instance.ports.iter();
                let ports: Vec<String> = ports
                    .map(|port| {
                        let past = if port.past_proxy { " past its proxy" } else { "" };
                        format!("{}→{}@{}/{}{past}", port.service, port.app, port.mesh, port.protocol)
                    })
                    .collect();
                format!(
                    "{}: {} {} {}",
                    instance.workload.workload,
                    services.join(","),
                    ports.join(","),
                    instance.outbound_port
                )
            })
            .collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_copy_stands_behind_the_services_that_select_it() {
        let pay =
            offer("pay", &json!([{ "port": 80, "targetPort": 8080, "appProtocol": "http" }])).expect("one");
        let admin =
            offer("admin", &json!([{ "name": "grpc-x", "port": 80, "targetPort": "adm" }])).expect("one");
        let slices = [
            slice("pay", &json!([{ "name": "", "port": 8080, "protocol": "TCP" }]), &["a", "b"]),
            slice("admin", &json!([{ "name": "grpc-x", "port": 9000, "protocol": "TCP" }]), &["a"]),
            slice("unknown", &json!([{ "name": "", "port": 1, "protocol": "TCP" }]), &["a"]),
        ];
        let offers = [pay, admin];
        check(
            &[
                copy("a", Interception::Transparent),
                copy("b", Interception::None),
                copy("c", Interception::None),
            ],
            &offers,
            &slices,
            &[
                "a: shop/admin,shop/pay 80→8080@8080/http,80→9000@9000/grpc 15001",
                "b: shop/pay 80→8080@8080/http 0",
            ],
        );
        let mut excluding = copy("a", Interception::Transparent);
        excluding.1.excluded.insert(9000);
        check(
            &[excluding],
            &offers,
            &slices,
            &["a: shop/admin,shop/pay 80→8080@8080/http,80→9000@9000/grpc past its proxy 15001"],
        );
        check(
            &[copy("a", Interception::Environment), copy("d", Interception::Transparent)],
            &offers,
            &slices,
            &["a: shop/admin,shop/pay 80→8080@15040/http,80→9000@15041/grpc 15001", "d:   15001"],
        );
    }

    fn key(name: &str) -> Key {
        ("shop".to_owned(), name.to_owned())
    }

    /// Something that happens to one of three pods, services or slices.
    #[derive(Clone, Debug)]
    enum Happens {
        Pod { name: usize, uid: Option<u8>, meshed: bool },
        Slice { name: usize, of: usize, app: Option<u16>, pods: Vec<bool> },
        Service { name: usize, port: Option<u16> },
    }

    fn happens() -> impl Strategy<Value = Happens> {
        let name = || 0..3_usize;
        prop_oneof![
            (name(), proptest::option::of(0..2_u8), any::<bool>())
                .prop_map(|(name, uid, meshed)| Happens::Pod { name, uid, meshed }),
            (name(), name(), proptest::option::of(1..3_u16), proptest::collection::vec(any::<bool>(), 3))
                .prop_map(|(name, of, app, pods)| Happens::Slice { name, of, app, pods }),
            (name(), proptest::option::of(1..3_u16)).prop_map(|(name, port)| Happens::Service { name, port }),
        ]
    }

    /// Puts what there is now in its place.
    fn set<S: PartialEq + Clone>(map: &mut BTreeMap<Key, S>, key: Key, now: Option<S>) -> Noted<S> {
        let before = map.remove(&key);
        if before == now {
            map.extend(now.map(|now| (key, now)));
            return Noted::Nothing;
        }
        map.extend(now.map(|now| (key.clone(), now)));
        Noted::One(key, before)
    }

    proptest! {
        #[test]
        fn what_a_change_cannot_reach_need_not_be_made_again(rounds in
            proptest::collection::vec(proptest::collection::vec(happens(), 1..4), 1..12)
        ) {
            let names = ["a", "b", "c"];
            let (mut copies, mut offers, mut slices) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            let mut instances = BTreeMap::new();
            for round in rounds {
                let mut stale = Stale::default();
                for happens in round {
                    match happens {
                        Happens::Pod { name, uid, meshed } => {
                            let (key, of) = copy(
                                names[name],
                                if meshed { Interception::Transparent } else { Interception::None },
                            );
                            let now = uid.map(|uid| Copy {
                                id: InstanceId::of_copy(names[name], &uid.to_string()).expect("a name"),
                                ..of
                            });
                            stale.pod(set(&mut copies, key, now));
                        }
                        Happens::Slice { name, of, app, pods } => {
                            let pods: Vec<&str> =
                                names.into_iter().zip(pods).filter(|(_, in_it)| *in_it).map(|(name, _)| name).collect();
                            let ports = |app| json!([{ "name": "", "port": app, "protocol": "TCP" }]);
                            let now = app.map(|app| slice(names[of], &ports(app), &pods));
                            let noted = set(&mut slices, key(names[name]), now);
                            stale.slice(&noted, |key| slices.get(key));
                        }
                        Happens::Service { name, port } => {
                            let now = port.and_then(|port| offer(names[name], &json!([{ "port": port }])));
                            stale.service(&set(&mut offers, key(names[name]), now));
                        }
                    }
                }
                let parts = Parts { copies: &copies, offers: &offers, slices: &slices };
                instances = parts.instances(&instances, &stale);
                let everything = Stale { everything: true, ..Stale::default() };
                prop_assert_eq!(&instances, &parts.instances(&BTreeMap::new(), &everything));
            }
        }
    }
}
