//! What a short name means.

use crate::{
    id::{Name, ServiceId},
    mesh::ShortName,
    world::World,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// Which services share a name. A short name means the caller's own namespace's service, else the only one in
/// the mesh, else nothing: guessing would send a request to whoever took the name last.
pub(super) struct Names<'w> {
    holders: HashMap<&'w Name, Vec<&'w ServiceId>>,
}

impl<'w> Names<'w> {
    pub(super) fn of(world: &'w World) -> Self {
        let mut holders: HashMap<_, Vec<_>> = HashMap::with_capacity(world.services.len());
        for id in world.services.keys() {
            holders.entry(&id.name).or_default().push(id);
        }
        Names { holders }
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
            compile,
            worlds::{service, world_of},
        },
        mesh::ShortName,
        world::Protocol,
    };

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
