//! What should happen in the mesh, decided without IO.
//!
//! Four pure functions carry the product: [`compile::compile`] turns the observed [`world::World`] into a
//! proxy-neutral [`mesh::Mesh`]; [`slo::judge`] folds evidence into a verdict; [`rollout::step`] decides what a
//! canary does next; [`pki::due`] says which certificates to renew.
//!
//! Architecture invariant: nothing here performs IO, reads a clock, draws a random number or logs. Bad input
//! becomes a [`problem::Problem`]; nothing returns an error for what a user wrote.

pub mod changes;
pub mod compile;
pub mod id;
pub mod interception;
pub mod mesh;
pub mod pki;
pub mod policy;
pub mod problem;
pub mod protocol;
pub mod rollout;
pub mod slo;
pub mod world;
