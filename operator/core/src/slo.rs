//! The judge: a fold over evidence that may be looked at after every failure without losing its guarantee.

use serde::{Deserialize, Serialize};

/// The judge's accumulators.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Wealth {}
