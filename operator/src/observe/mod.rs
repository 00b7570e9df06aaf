//! Observing: from files or Kubernetes, registrations and statuses to the [`airlane_core::world::World`].

pub(crate) mod declared;
pub(crate) mod kubernetes;
pub(crate) mod manifests;
mod saving;
pub(crate) mod standalone;
pub(crate) mod world;
