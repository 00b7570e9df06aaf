//! What a user wants to hold.

/// One objective: a bound on the rate of failed first attempts.
#[derive(Clone, PartialEq, Debug)]
pub struct Objective {
    /// Its name.
    pub name: String,
    /// The highest rate that is still good (`max`), 0 < max < 1.
    pub max: f64,
    /// ρ ≥ 1: how many times worse than stable is still healthy (`worseThanStable`, default 1).
    pub worse_than_stable: f64,
    /// A canary below this rate is healthy whatever stable does (`ignoreBelow`, default 0.1 × max).
    pub ignore_below: f64,
}
