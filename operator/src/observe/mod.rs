//! Observing: from files, registrations and statuses to the [`airlane_core::world::World`].

pub(crate) mod manifests;
pub(crate) mod standalone;
pub(crate) mod world;
