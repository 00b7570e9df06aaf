//! Capital put on objectives: mixtures of likelihood ratios, each cell a guess at how bad the canary is.
//!
//! Everything is kept as natural logarithms and summed in the order of the cells, so that the same evidence gives
//! the same bits on every machine.

use super::Objective;
use serde::{Deserialize, Serialize};

/// Cells of the relative test: φ_j = 1.5ρ(2000/1.5)^(j/63).
pub(super) const RELATIVE_CELLS: u32 = 64;
/// Cells of the absolute test and of the floor: p_j = 1.5·max·(0.99/(1.5·max))^(j/31).
const ABSOLUTE_CELLS: u32 = 32;

/// ln Σ exp(x), in the order given; −∞ for none.
pub(super) fn ln_sum(terms: &[f64]) -> f64 {
    let max = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + libm::log(terms.iter().map(|x| libm::exp(x - max)).sum::<f64>())
}

/// Capital spread over cells of equal prior weight, as logarithms. Only the sum is saved: after a restart it is
/// spread evenly again, which keeps the guarantee and costs a little power.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(from = "f64", into = "f64")]
pub(super) enum Cells {
    /// Folding evidence.
    Live(Vec<f64>),
    /// Read back: the logarithm of the sum.
    Saved(f64),
}

impl From<f64> for Cells {
    fn from(ln_sum: f64) -> Self {
        Cells::Saved(ln_sum)
    }
}

impl From<Cells> for f64 {
    fn from(cells: Cells) -> f64 {
        cells.ln_sum()
    }
}

impl Cells {
    fn spread(ln_capital: f64, cells: u32) -> Self {
        let each = ln_capital - libm::log(f64::from(cells));
        Cells::Live((0..cells).map(|_| each).collect())
    }

    fn ln_sum(&self) -> f64 {
        match self {
            Cells::Live(cells) => ln_sum(cells),
            Cells::Saved(sum) => *sum,
        }
    }

    /// Multiplies cell j by exp(`ln_factors[j]` × `times`).
    fn multiply(&mut self, ln_factors: &[f64], times: f64) {
        if let Cells::Live(cells) = self {
            for (cell, factor) in cells.iter_mut().zip(ln_factors) {
                *cell += times * factor;
            }
        }
    }

    /// Adds capital, spread over the cells.
    fn add(&mut self, ln_capital: f64) {
        if let Cells::Live(cells) = self {
            #[expect(clippy::cast_precision_loss, reason = "64 cells at most")]
            let each = ln_capital - libm::log(cells.len() as f64);
            for cell in cells {
                *cell = ln_sum(&[*cell, each]);
            }
        }
    }
}

/// ln of what one failure multiplies each relative cell by, on either arm.
pub(super) struct CoinFactors {
    canary: Vec<f64>,
    stable: Vec<f64>,
}

impl CoinFactors {
    /// For a coin that sends a request to the canary with probability `w`; `None` if it cannot fall on both sides.
    ///
    /// Given a failure, it fell on the canary with probability θ(φ) = wφ/(wφ+1−w) if the canary fails φ times as
    /// often; the factors are θ(φ_j)/θ(ρ) and (1−θ(φ_j))/(1−θ(ρ)).
    pub(super) fn new(w: f64, rho: f64) -> Option<Self> {
        if !(w > 0.0 && w < 1.0) {
            return None;
        }
        let odds_of_any = |phi: f64| w * phi + 1.0 - w;
        let mut canary = Vec::with_capacity(RELATIVE_CELLS as usize);
        let mut stable = Vec::with_capacity(RELATIVE_CELLS as usize);
        for j in 0..RELATIVE_CELLS {
            let ln_times = libm::log(1.5) + libm::log(2000.0 / 1.5) * f64::from(j) / 63.0;
            let on_stable = libm::log(odds_of_any(rho) / odds_of_any(rho * libm::exp(ln_times)));
            canary.push(ln_times + on_stable);
            stable.push(on_stable);
        }
        Some(Self { canary, stable })
    }
}

/// ln of what one canary outcome multiplies each absolute cell by.
pub(super) struct RateFactors {
    failed: Vec<f64>,
    succeeded: Vec<f64>,
}

impl RateFactors {
    /// For one objective: against the floor beside a control, else against the objective's own rate.
    pub(super) fn new(objective: &Objective, control: bool) -> Self {
        let floor = control && objective.ignore_below > 0.0;
        Self::above(if floor { objective.ignore_below } else { objective.max })
    }

    /// Where a rate up to `max` is healthy.
    fn above(max: f64) -> Self {
        // Beyond ½ the cells would start too near their end, or past it: all must stand between `max` and 1.
        let (first, last) = (f64::min(1.5 * max, 0.5 + max / 2.0), f64::max(0.99, 0.5 + max / 2.0));
        let guess = |j| first * libm::exp(libm::log(last / first) * f64::from(j) / 31.0);
        let guesses = (0..ABSOLUTE_CELLS).map(guess);
        Self {
            failed: guesses.clone().map(|p| libm::log(p / max)).collect(),
            succeeded: guesses.map(|p| libm::log((1.0 - p) / (1.0 - max))).collect(),
        }
    }

    /// ln of the factors of requests assumed to have succeeded and not reported yet.
    pub(super) fn unseen(&self, requests: f64) -> Vec<f64> {
        self.succeeded.iter().map(|factor| factor * requests).collect()
    }
}

/// The capital put on one objective.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Capital {
    /// Stable serves beside the canary. A canary is healthy if it is no worse than stable *or* below the floor, so
    /// what counts is the smaller of the two.
    Beside {
        /// Against the version in production.
        relative: Cells,
        /// Against `ignore_below`; absent where that is 0.
        floor: Option<Cells>,
    },
    /// There is no control.
    Alone {
        /// Against the objective's own rate.
        absolute: Cells,
    },
}

impl Capital {
    /// Capital e^`ln_capital`, spread over the cells an objective needs.
    pub(super) fn new(ln_capital: f64, objective: &Objective, control: bool) -> Self {
        if control {
            let floor = (objective.ignore_below > 0.0).then(|| Cells::spread(ln_capital, ABSOLUTE_CELLS));
            Capital::Beside { relative: Cells::spread(ln_capital, RELATIVE_CELLS), floor }
        } else {
            Capital::Alone { absolute: Cells::spread(ln_capital, ABSOLUTE_CELLS) }
        }
    }

    /// Makes the cells live and fit for whether there is a control; what they were worth is spread anew where they were not.
    pub(super) fn fit(&mut self, objective: &Objective, control: bool) {
        let fits = match self {
            Capital::Beside { relative, floor } => {
                if let Cells::Saved(sum) = relative {
                    *relative = Cells::spread(*sum, RELATIVE_CELLS);
                }
                if let Some(Cells::Saved(sum)) = floor {
                    *floor = Some(Cells::spread(*sum, ABSOLUTE_CELLS));
                }
                control && floor.is_some() == (objective.ignore_below > 0.0)
            }
            Capital::Alone { absolute } => {
                if let Cells::Saved(sum) = absolute {
                    *absolute = Cells::spread(*sum, ABSOLUTE_CELLS);
                }
                !control
            }
        };
        if !fits {
            *self = Capital::new(self.ln_worth(&[]), objective, control);
        }
    }

    /// Whether any cells were read back and not yet spread.
    pub(super) fn is_saved(&self) -> bool {
        match self {
            Capital::Beside { relative, .. } => matches!(relative, Cells::Saved(_)),
            Capital::Alone { absolute } => matches!(absolute, Cells::Saved(_)),
        }
    }

    /// Moves capital in from the reserve.
    pub(super) fn add(&mut self, ln_capital: f64) {
        match self {
            Capital::Beside { relative, floor } => {
                relative.add(ln_capital);
                if let Some(floor) = floor {
                    floor.add(ln_capital);
                }
            }
            Capital::Alone { absolute } => absolute.add(ln_capital),
        }
    }

    /// ln of what the capital is worth: the smaller of what bets on the same objective became. `ln_unseen` are the
    /// factors of [`RateFactors::unseen`] for successes not reported yet, empty for none.
    pub(super) fn ln_worth(&self, ln_unseen: &[f64]) -> f64 {
        let with_unseen = |cells: &Cells| match cells {
            Cells::Live(live) if !ln_unseen.is_empty() => {
                let terms: Vec<f64> =
                    live.iter().zip(ln_unseen).map(|(cell, unseen)| cell + unseen).collect();
                ln_sum(&terms)
            }
            _ => cells.ln_sum(),
        };
        match self {
            Capital::Beside { relative, floor: Some(floor) } => relative.ln_sum().min(with_unseen(floor)),
            Capital::Beside { relative, floor: None } => relative.ln_sum(),
            Capital::Alone { absolute } => with_unseen(absolute),
        }
    }

    /// Folds one failed canary request; without a coin that can fall on both sides it says nothing about stable.
    pub(super) fn canary_failed(&mut self, coin: Option<&CoinFactors>, rate: &RateFactors) {
        match self {
            Capital::Beside { relative, floor } => {
                if let Some(coin) = coin {
                    relative.multiply(&coin.canary, 1.0);
                }
                if let Some(floor) = floor {
                    floor.multiply(&rate.failed, 1.0);
                }
            }
            Capital::Alone { absolute } => absolute.multiply(&rate.failed, 1.0),
        }
    }

    /// Folds one failed stable request.
    pub(super) fn stable_failed(&mut self, coin: Option<&CoinFactors>) {
        if let (Capital::Beside { relative, .. }, Some(coin)) = (self, coin) {
            relative.multiply(&coin.stable, 1.0);
        }
    }

    /// Folds canary requests that succeeded; they say nothing to the relative test.
    pub(super) fn canary_succeeded(&mut self, rate: &RateFactors, requests: f64) {
        match self {
            Capital::Beside { floor: Some(cells), .. } | Capital::Alone { absolute: cells } => {
                cells.multiply(&rate.succeeded, requests);
            }
            Capital::Beside { floor: None, .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objective(rho: f64) -> Objective {
        Objective { name: "errors".into(), max: 0.01, worse_than_stable: rho, ignore_below: 0.0 }
    }

    fn check(got: f64, expected: f64) {
        assert!((got - expected).abs() < 6e-7, "{got} is not {expected}");
    }

    fn ln_relative(canary: u32, stable: u32, share: f64, rho: f64) -> f64 {
        let (objective, mut capital) = (objective(rho), Capital::new(0.0, &objective(rho), true));
        let (coin, rate) = (CoinFactors::new(share, rho), RateFactors::new(&objective, true));
        (0..canary).for_each(|_| capital.canary_failed(coin.as_ref(), &rate));
        (0..stable).for_each(|_| capital.stable_failed(coin.as_ref()));
        capital.ln_worth(&[])
    }

    #[test]
    fn relative_test_gives_the_published_values() {
        for (canary, stable, share, expected) in [
            (1, 0, 0.1, 1.984_656),
            (3, 0, 0.1, 6.297_966),
            (4, 0, 0.1, 8.514_298),
            (5, 2, 0.1, 6.332_743),
            (0, 10, 0.1, -3.074_651),
            (100, 900, 0.1, -12.399_245),
            (2, 0, 0.01, 7.988_054),
            (3, 0, 0.05, 8.173_611),
            (4, 1, 0.05, 8.622_996),
            (6, 1, 0.05, 14.191_163),
            (12, 0, 0.5, 7.864_037),
            (100, 100, 0.5, -8.166_199),
        ] {
            check(ln_relative(canary, stable, share, 1.0), expected);
        }
        check(ln_relative(4, 0, 0.1, 2.0), 6.294_916);
        check(ln_relative(6, 3, 0.25, 2.0), -0.217_989);
    }

    #[test]
    fn absolute_test_gives_the_published_values() {
        for (failed, succeeded, expected) in
            [(2, 0.0, 7.164_658), (5, 20.0, 9.272_533), (10, 90.0, 12.706_955), (0, 500.0, -5.624_336)]
        {
            let (objective, mut capital) = (objective(1.0), Capital::new(0.0, &objective(1.0), false));
            let rate = RateFactors::new(&objective, false);
            (0..failed).for_each(|_| capital.canary_failed(None, &rate));
            capital.canary_succeeded(&rate, succeeded);
            check(capital.ln_worth(&[]), expected);
        }
    }

    #[test]
    fn the_smaller_of_relative_and_floor_counts() {
        let below = Objective { ignore_below: 0.001, ..objective(1.0) };
        let mut capital = Capital::new(0.0, &below, true);
        let (coin, rate) = (CoinFactors::new(0.1, 1.0), RateFactors::new(&below, true));
        capital.canary_succeeded(&rate, 20_000.0);
        (0..5).for_each(|_| capital.canary_failed(coin.as_ref(), &rate));
        assert!(ln_relative(5, 0, 0.1, 1.0) > 10.0);
        assert!(capital.ln_worth(&[]) < 0.0, "5 of 20,005 is below 0.1 %");
    }

    #[test]
    fn cells_stand_between_the_objective_and_one_whatever_the_objective() {
        for max in [1e-9, 0.001, 0.3, 0.66, 0.7, 0.999] {
            let RateFactors { failed, succeeded } = RateFactors::above(max);
            assert!(failed.iter().all(|f| f.is_finite() && *f > 0.0), "{max}");
            assert!(succeeded.iter().all(|s| s.is_finite() && *s < 0.0), "{max}");
        }
    }

    #[test]
    fn saved_capital_keeps_its_worth() {
        let objective = objective(1.0);
        let mut capital = Capital::new(0.0, &objective, true);
        let (coin, rate) = (CoinFactors::new(0.1, 1.0), RateFactors::new(&objective, true));
        (0..3).for_each(|_| capital.canary_failed(coin.as_ref(), &rate));
        let text = serde_json::to_string(&capital).expect("JSON");
        let mut back: Capital = serde_json::from_str(&text).expect("what was written");
        assert!(back.is_saved());
        back.fit(&objective, true);
        assert!(!back.is_saved());
        check(back.ln_worth(&[]), 6.297_966);
    }
}
