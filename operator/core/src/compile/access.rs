//! Who may ask a workload for what.
//!
//! The door belongs to the workload, and every policy with `access` that is about it counts: of the mesh, the
//! namespace, the workload, its service account, and each service that selects it. A request must pass all of them. So
//! a child cannot drop what a parent says, and a second service is no way round the first.

use super::mtls::{Selecting, Words};
use crate::{
    mesh::Access,
    policy::{Policy, Target},
};
use std::{collections::BTreeSet, sync::Arc};

impl Words {
    /// What a request must pass at the door before one port of the application, in object order.
    pub(super) fn access(&self, app_port: u16) -> Vec<Access> {
        let inherited = [&self.mesh, &self.namespace, &self.workload, &self.accounts].into_iter().flatten();
        let of_services = self.services.iter().flat_map(|selecting| {
            selecting.policies.iter().filter(|policy| is_about(policy, selecting, app_port))
        });
        let said = inherited.chain(of_services).filter_map(|policy| {
            let says = Arc::clone(policy.access.as_ref()?);
            Some(Access { by: policy.id.clone(), says })
        });
        said.collect::<BTreeSet<Access>>().into_iter().collect()
    }
}

/// Whether a policy of a service is about a port of the application: it targets the whole service, or a port of the
/// service that leads there.
fn is_about(policy: &Arc<Policy>, selecting: &Selecting, app_port: u16) -> bool {
    let Target::Service { port: Some(number), .. } = policy.target else { return true };
    selecting.leads.get(&number).is_some_and(|apps| apps.contains(&app_port))
}

#[cfg(test)]
mod tests {
    use crate::{
        compile::{
            Compiled, compile,
            worlds::{
                instance, name, namespace, object_id, policy, service, service_id, to_service, world_of,
            },
        },
        id::{ObjectId, ObjectKind},
        policy::{AccessMode, AccessSpec, Target},
        world::Protocol,
    };

    /// The policies that a request to the application's ports 8080 (80 of `shop/pay` and of `shop/also`) and 9090 (90
    /// of `shop/pay`) must pass, given the targets of policies in `shop` named `0`, `1`, ….
    fn check(targets: &[Target], expected: [&[&str]; 2]) {
        let mut pod = instance("shop/pay", "v1", 1);
        pod.services.insert(service_id("shop/also"));
        let mut second = pod.ports[0].clone();
        (second.service, second.app, second.mesh) = (90, 9090, 20_100);
        pod.ports.push(second);
        let workload = pod.workload.clone();
        let policies = targets.iter().enumerate().map(|(n, target)| {
            let mut policy = policy(&format!("shop/{n}"), target.clone());
            policy.access = Some(
                AccessSpec { admits_others: false, mode: AccessMode::Enforce, rules: Vec::new() }.into(),
            );
            policy.into()
        });
        let http = Protocol::Http;
        let declared = [
            service("shop/pay", &[(80, 8080, http), (90, 9090, http)]).into(),
            service("shop/also", &[(80, 8080, http)]).into(),
            pod.into(),
        ];
        let Compiled { mesh, .. } = compile(&world_of(declared.into_iter().chain(policies)));
        let door = &mesh.workloads[&workload];
        let found = [8080, 9090].map(|port| {
            door.ports[&port].access.iter().map(|access| access.by.name.to_string()).collect::<Vec<_>>()
        });
        assert_eq!(found.each_ref().map(Vec::as_slice), expected, "{targets:?}");
        let shaped: Vec<ObjectId> = door.shaped_by.iter().cloned().collect();
        let all: Vec<ObjectId> = found
            .concat()
            .into_iter()
            .map(|name| object_id(ObjectKind::MeshPolicy, &format!("shop/{name}")))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        assert_eq!(shaped, all, "a refused listener is shown on who shaped it");
    }

    #[test]
    fn every_policy_about_a_door_counts() {
        let workload = Target::Workload { namespace: namespace("shop"), name: name("pay") };
        let account = Target::ServiceAccount { namespace: namespace("shop"), name: name("pay").into() };
        let shop = Target::Namespace(namespace("shop"));
        check(&[], [&[], &[]]);
        check(&[Target::Mesh, shop, workload, account], [&["0", "1", "2", "3"], &["0", "1", "2", "3"]]);
    }

    #[test]
    fn a_second_service_is_no_way_round_the_first() {
        check(&[to_service("shop/also", None)], [&["0"], &["0"]]);
        check(&[to_service("shop/pay", None), to_service("shop/also", None)], [&["0", "1"], &["0", "1"]]);
    }

    #[test]
    fn a_policy_of_a_port_is_about_what_stands_behind_it() {
        check(&[to_service("shop/pay", Some(90))], [&[], &["0"]]);
        check(&[to_service("shop/also", Some(80))], [&["0"], &[]]);
    }

    #[test]
    fn others_are_not_meant() {
        check(&[Target::Namespace(namespace("bank")), to_service("bank/pay", None)], [&[], &[]]);
    }
}
