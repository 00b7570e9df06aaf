//! From the [`airlane_core::mesh::Mesh`] to Envoy: lowering, delta xDS as a state machine, the bootstrap.
//!
//! Architecture invariant: nothing here performs IO. Only this crate knows Envoy's shapes.

pub mod bootstrap;
pub mod catalog;
pub mod delta;
pub mod lower;
