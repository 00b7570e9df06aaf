//! What a short name and a virtual address mean.

use crate::{
    id::{Name, ServiceId},
    mesh::ShortName,
    world::{Service, World},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// Which services share a name. A short name means the caller's own namespace's service, else the only one in
/// the mesh, else nothing: guessing would send a request to whoever took the name last.
pub(super) struct Names<'w> {
    holders: HashMap<&'w Name, Vec<&'w ServiceId>>,
    /// The first service, in order, that says an address is its own.
    addresses: HashMap<IpAddr, &'w ServiceId>,
}

impl<'w> Names<'w> {
    pub(super) fn of(world: &'w World) -> Self {
        let mut holders: HashMap<_, Vec<_>> = HashMap::with_capacity(world.services.len());
        for id in world.services.keys() {
            holders.entry(&id.name).or_default().push(id);
        }
        let mut addresses = HashMap::with_capacity(world.services.len());
        for service in world.services.values() {
            for address in &service.addresses {
                addresses.entry(*address).or_insert(&service.id);
            }
        }
        Names { holders, addresses }
    }

    /// The addresses that mean this service. Two services share one only while an address is given to another one:
    /// then the first by name has it, so that no request has two destinations.
    pub(super) fn addresses(&self, service: &Service) -> BTreeSet<IpAddr> {
        let is_its_own = |address: &&IpAddr| self.addresses.get(*address) == Some(&&service.id);
        service.addresses.iter().filter(is_its_own).copied().collect()
    }

    /// Who may use the short name of a service.
    pub(super) fn short_name(&self, service: &ServiceId) -> ShortName {
        match self.holders.get(&service.name) {
            Some(holders) if holders.len() > 1 => ShortName::OwnNamespace,
            _ => ShortName::Everywhere,
        }
    }

    /// Names that more than one namespace uses, with the candidates.
    pub(super) fn ambiguous(&self) -> BTreeMap<Name, Arc<BTreeSet<ServiceId>>> {
        let shared = self.holders.iter().filter(|(_, holders)| holders.len() > 1);
        shared
            .map(|(name, holders)| ((*name).clone(), Arc::new(holders.iter().copied().cloned().collect())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        compile::{
            Memo, compile,
            worlds::{Edit, service, service_id, world_of},
        },
        mesh::ShortName,
        world::Protocol,
    };

    #[test]
    fn an_address_that_two_services_claim_means_the_first_until_it_goes() {
        let at = |id| {
            let mut service = service(id, &[(80, 8080, Protocol::Http)]);
            service.addresses = ["10.96.0.5".parse().expect("an address")].into();
            Edit::from(service)
        };
        let mut world = world_of([at("shop/cart"), at("shop/pay")]);
        let mut memo = Memo::default();
        let mut holders = |world: &_| {
            let mesh = memo.compile(world).mesh;
            let with = mesh.destinations.values().filter(|destination| !destination.addresses.is_empty());
            with.map(|destination| destination.port.service.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(holders(&world), ["shop/cart"]);
        Edit::Service(service_id("shop/cart"), None).apply(&mut world);
        assert_eq!(holders(&world), ["shop/pay"]);
    }

    #[test]
    fn a_short_name_that_two_namespaces_use_means_nothing_in_a_third() {
        let declared = ["shop/pay", "bank/pay", "shop/cart"];
        let mesh =
            compile(&world_of(declared.map(|id| service(id, &[(80, 8080, Protocol::Http)]).into()))).mesh;
        let short_names: Vec<_> =
            mesh.destinations.values().map(|it| (it.port.service.to_string(), it.short_name)).collect();
        assert_eq!(
            short_names,
            [
                ("bank/pay".to_owned(), ShortName::OwnNamespace),
                ("shop/cart".to_owned(), ShortName::Everywhere),
                ("shop/pay".to_owned(), ShortName::OwnNamespace),
            ]
        );
        let ambiguous: Vec<_> =
            mesh.ambiguous.iter().map(|(name, candidates)| (name.as_str(), candidates.len())).collect();
        assert_eq!(ambiguous, [("pay", 2)]);
    }
}
