//! From the observed world to what every proxy should know.
//!
//! [`compile`] is total and a function of the world's content alone: never of the order in which things were
//! seen, and never of what was compiled before. [`Memo`] does the same, and keeps what did not change by its
//! pointer.
//!
//! It is made of small pure units, each a function of one value that holds all its inputs: a door per
//! workload revision (`mtls`, `access`), the destinations of a service (`routing`), a proxy per instance. What a unit
//! cannot reach, it cannot depend on; that is how one team's mistake stays theirs, and why a unit whose
//! inputs are equal need not run again.

mod access;
mod calls;
mod defaults;
mod effective;
mod index;
mod memo;
mod mistakes;
mod mtls;
mod names;
mod policies;
mod reach;
mod retries;
mod routing;
mod rows;
mod split;
mod touched;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod worlds;

pub use effective::{Effective, effective};
pub use memo::Memo;
pub use rows::{Origin, Row};

use crate::{mesh::Mesh, problem::Problem, world::World};

/// What was decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compiled {
    /// What every proxy should know.
    pub mesh: Mesh,
    /// What users wrote and we cannot do: sorted, each once.
    pub problems: Vec<Problem>,
}

/// Decides what every proxy should know. Never fails: what cannot be done becomes a problem on the object
/// that asks for it, and everything else goes on.
pub fn compile(world: &World) -> Compiled {
    Memo::default().compile(world)
}
