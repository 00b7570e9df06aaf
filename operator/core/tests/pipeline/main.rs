//! The whole pipeline, simulated: evidence → judge → step → shares → evidence, with the production code.
//!
//! `AIRLANE_RUNS` multiplies the number of runs; `AIRLANE_SEED` repeats a failure. The figures in `docs/rollouts.md` are
//! this program's output: `AIRLANE_RUNS=30 cargo test -p airlane-core --test pipeline -- --nocapture --test-threads 1`.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test, whose figures are read")]

mod sim;

use airlane_core::{rollout::Phase, slo::Doubt};
use sim::{Caller, Rate, Rng, Run, Scene, run};

/// Runs of one experiment, summed up.
struct Row {
    name: &'static str,
    runs: Vec<Run>,
}

fn seed() -> u64 {
    std::env::var("AIRLANE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_26)
}

fn experiment(name: &'static str, runs: usize, scene: &Scene) -> Row {
    let times = std::env::var("AIRLANE_RUNS").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let mut rng = Rng::new(seed());
    let row = Row { name, runs: (0..runs * times).map(|_| run(scene, &mut rng)).collect() };
    println!("{row}");
    row
}

impl Row {
    fn share(&self, phases: &[Phase]) -> f64 {
        let hits = self.runs.iter().filter(|run| phases.contains(&run.phase)).count();
        hits as f64 / self.runs.len() as f64
    }

    fn only_rolled_back(mut self) -> Self {
        self.runs.retain(|run| run.phase == Phase::RollingBack);
        println!("{self} (the rolled back)");
        self
    }

    fn promoted(&self) -> f64 {
        self.share(&[Phase::Promoting, Phase::Succeeded])
    }

    fn rolled_back(&self) -> f64 {
        self.share(&[Phase::RollingBack, Phase::RolledBack])
    }

    /// Mean and 99th percentile.
    fn figure(&self, of: impl Fn(&Run) -> f64) -> (f64, f64) {
        let mut all: Vec<f64> = self.runs.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        (mean, all[((all.len() as f64 * 0.99).ceil() as usize).clamp(1, all.len()) - 1])
    }

    fn failed(&self) -> (f64, f64) {
        self.figure(|run| run.failed as f64)
    }

    fn seconds(&self) -> (f64, f64) {
        self.figure(|run| run.seconds)
    }

    /// A mean as published: within 8 %, or five standard errors of this few runs.
    #[track_caller]
    fn near(&self, of: impl Fn(&Run) -> f64, published: f64) {
        let (mean, _) = self.figure(&of);
        let n = self.runs.len() as f64;
        let variance = self.runs.iter().map(|run| (of(run) - mean).powi(2)).sum::<f64>() / n;
        let tolerance = 0.08 * published + 5.0 * (variance / n).sqrt();
        assert!(
            (mean - published).abs() <= tolerance,
            "{}: {mean} is not {published}; seed {}",
            self.name,
            seed()
        );
    }

    /// A chance as published: within 0.02, or five standard errors.
    #[track_caller]
    fn chance(&self, got: f64, published: f64) {
        let n = self.runs.len() as f64;
        let tolerance = 0.02 + 5.0 * (published * (1.0 - published) / n).sqrt();
        assert!(
            (got - published).abs() <= tolerance,
            "{}: {got} is not {published}; seed {}",
            self.name,
            seed()
        );
    }

    #[track_caller]
    fn never(&self, what: &str, got: f64) {
        assert!(got == 0.0, "{}: {what} in {got} of the runs; seed {}", self.name, seed());
    }

    /// A mean of at most so much, up to chance (three standard errors).
    #[track_caller]
    fn at_most_on_average(&self, of: impl Fn(&Run) -> f64, most: f64) {
        let (mean, _) = self.figure(&of);
        let n = self.runs.len() as f64;
        let variance = self.runs.iter().map(|run| (of(run) - mean).powi(2)).sum::<f64>() / n;
        let most = most + 3.0 * (variance / n).sqrt();
        assert!(mean <= most, "{}: {mean} > {most}; seed {}", self.name, seed());
    }

    /// At most `p`, up to chance (four standard errors and one).
    #[track_caller]
    fn at_most(&self, got: f64, p: f64) {
        let n = self.runs.len() as f64;
        let most = p + 4.0 * (p / n).sqrt() + 1.0 / n;
        assert!(got <= most, "{}: {got} > {most}; seed {}", self.name, seed());
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((failed, failed_99), (seconds, seconds_99)) = (self.failed(), self.seconds());
        write!(
            f,
            "| {} | {} | {:.4} | {:.4} | {failed:.2} ({failed_99:.0}) | {seconds:.1} ({seconds_99:.1}) |",
            self.name,
            self.runs.len(),
            self.promoted(),
            self.rolled_back()
        )
    }
}

fn failed(run: &Run) -> f64 {
    run.failed as f64
}

fn seconds(run: &Run) -> f64 {
    run.seconds
}

const GOOD: Rate = |_| 0.001;
const NONE: Rate = |_| 0.0;
const DEAD: Rate = |_| 1.0;
const FIVE: Rate = |_| 0.05;

#[test]
fn the_published_table_at_100_rps() {
    let row = experiment("0.1 %, as stable", 60, &Scene::published(100.0, GOOD, GOOD));
    row.chance(row.promoted(), 0.9997);
    row.near(seconds, 86.0);
    let row = experiment("0.2 %", 30, &Scene::published(100.0, |_| 0.002, GOOD));
    row.chance(row.promoted(), 0.988);
    let row = experiment("0.5 %", 60, &Scene::published(100.0, |_| 0.005, GOOD));
    row.chance(row.promoted(), 0.29);
    let row = row.only_rolled_back();
    row.near(failed, 20.0);
    row.near(seconds, 161.0);
    let row = experiment("1 %", 60, &Scene::published(100.0, |_| 0.01, GOOD));
    row.chance(row.rolled_back(), 0.999);
    row.never("promoted", row.promoted());
    row.only_rolled_back().near(failed, 10.5);
    let row = experiment("2 %", 100, &Scene::published(100.0, |_| 0.02, GOOD));
    row.chance(row.rolled_back(), 1.0);
    row.near(failed, 5.7);
    row.near(seconds, 75.0);
    let row = experiment("5 %", 100, &Scene::published(100.0, FIVE, GOOD));
    row.chance(row.rolled_back(), 1.0);
    row.near(failed, 3.8);
    row.near(seconds, 44.0);
    let row = experiment("dead", 200, &Scene::published(100.0, DEAD, GOOD));
    row.chance(row.rolled_back(), 1.0);
    row.near(failed, 2.7);
    row.near(seconds, 3.0);
}

/// Stable breaches the objective itself: nothing is promoted, and an equal or better canary is not punished.
#[test]
fn a_sick_stable_is_held() {
    let patient = |canary| Scene { limit_s: 200, ..Scene::published(100.0, canary, |_| 0.03) };
    for (name, scene) in [("3 % as stable", patient(|_| 0.03)), ("2 %, stable 3 %", patient(|_| 0.02))] {
        let row = experiment(name, 20, &scene);
        row.never("promoted", row.promoted());
        row.never("rolled back", row.rolled_back());
        let said = |run: &Run| matches!(run.doubt, Some(Doubt::StableDegraded { .. }));
        assert!(row.runs.iter().filter(|run| said(run)).count() * 10 >= row.runs.len() * 9, "{name}");
    }
}

/// What real proxies are compared with: failures every 100 ms, 0.2 s until the traffic is gone.
#[test]
fn five_percent_at_a_tenth_of_100_rps() {
    let tenth = |canary, stable| Scene { ladder: vec![10, 100], ..Scene::real(100.0, canary, stable) };
    for (name, stable) in [("5 % at 10 %, stable 0.1 %", GOOD), ("5 % at 10 %, stable 0", NONE)] {
        let row = experiment(name, 300, &tenth(FIVE, stable));
        row.chance(row.rolled_back(), 1.0);
        assert!(row.failed().0 <= 7.0 && row.failed().1 <= 15.0, "{name}");
    }
    let row = experiment("dead at 10 %, stable 0.1 %", 100, &tenth(DEAD, GOOD));
    row.chance(row.rolled_back(), 1.0);
    let row = experiment("0.1 % at 10 %, as stable", 40, &tenth(GOOD, GOOD));
    row.at_most(row.rolled_back(), 0.001);
}

/// By the realised share n_c/(n_c+n_s) one would be blind at such rates.
#[test]
fn a_dead_canary_at_a_trickle_costs_a_few_requests() {
    for (name, rps) in [("dead at 5 %, 0.1 rps", 0.1), ("dead at 5 %, 1 rps", 1.0)] {
        let scene = Scene { ladder: vec![5, 100], limit_s: 100_000, ..Scene::published(rps, DEAD, NONE) };
        let row = experiment(name, 10, &scene);
        row.chance(row.rolled_back(), 1.0);
        assert!(row.failed().0 <= 5.0, "{name}");
    }
}

/// After a change outcomes still stem from the coin before: fast failures and slow successes must not be read as a
/// worse canary, nor late timeouts after a smaller share.
#[test]
fn a_change_of_share_is_no_evidence() {
    const FIVE_OF_HUNDRED: Rate = |_| 0.05;
    let slow = Scene {
        ladder: vec![10, 100],
        takes_ms: (5, 5_000),
        route_timeout_ms: 15_000,
        limit_s: 60,
        ..Scene::published(100.0, FIVE_OF_HUNDRED, FIVE_OF_HUNDRED)
    };
    let row = experiment("equal, failures fast, successes slow", 200, &slow);
    row.at_most(row.rolled_back(), 0.001);
    let timeouts = Scene { takes_ms: (15_000, 5), tick_ms: 500, ..slow };
    let row = experiment("equal, failures are timeouts", 100, &timeouts);
    row.at_most(row.rolled_back(), 0.001);
}

/// Two callers with errors of their own that learn of a share at different times: pooled, they would look like a
/// bad canary.
#[test]
fn callers_are_judged_by_their_own_coins() {
    const TENTH: Rate = |_| 0.1;
    let mut scene = Scene { limit_s: 120, ..Scene::published(80.0, GOOD, GOOD) };
    scene.ladder = vec![1, 5, 25, 50, 100];
    scene.callers.push(Caller { rps: 20.0, canary: TENTH, stable: TENTH, delay_ms: 5_000 });
    let row = experiment("two callers, 5 s apart", 60, &scene);
    row.at_most(row.rolled_back(), 0.001);
}

/// Outages of both versions say nothing, and are no debt for what comes after.
#[test]
fn common_outages_neither_punish_nor_excuse() {
    fn partly(t: f64) -> f64 {
        if (20.0..80.0).contains(&t) { 0.3 } else { 0.001 }
    }
    fn wholly(t: f64) -> f64 {
        if (20.0..80.0).contains(&t) { 1.0 } else { 0.001 }
    }
    fn partly_then_bad(t: f64) -> f64 {
        if t > 90.0 { 0.05 } else { partly(t) }
    }
    fn wholly_then_bad(t: f64) -> f64 {
        if t > 90.0 { 0.05 } else { wholly(t) }
    }
    let both = |canary, stable| Scene {
        ladder: vec![10, 100],
        at_least_s: 10_000,
        limit_s: 90,
        ..Scene::real(100.0, canary, stable)
    };
    for (name, outage, name_after, then_bad) in [
        ("30 % of both fail for 60 s", partly as Rate, "the same, then 5 %", partly_then_bad as Rate),
        ("all of both fail for 60 s", wholly, "the same, then 5 %", wholly_then_bad),
    ] {
        let row = experiment(name, 10, &both(outage, outage));
        row.never("rolled back", row.rolled_back());
        let after = Scene { limit_s: 600, count_from_s: 90, ..both(then_bad, outage) };
        let row = experiment(name_after, 40, &after);
        row.chance(row.rolled_back(), 1.0);
        row.at_most_on_average(failed, 6.0);
    }
}

/// Below the floor a canary is healthy though stable never fails.
#[test]
fn a_canary_below_the_floor_is_promoted() {
    let row = experiment("0.02 %, stable 0", 60, &Scene::real(100.0, |_| 0.0002, NONE));
    row.at_most(row.rolled_back(), 0.001);
    row.chance(row.promoted(), 1.0);
}

/// Long health must not blind the judge.
#[test]
fn sixty_thousand_clean_requests_excuse_little() {
    fn late(t: f64) -> f64 {
        if t > 600.0 { 0.05 } else { 0.0 }
    }
    for (name, last) in [("60,000 clean, then 5 % at 50 %", 50), ("60,000 clean, then 5 % at 100 %", 100)] {
        let scene = Scene { at_least_s: 600, ladder: vec![10, last], ..Scene::real(100.0, late, NONE) };
        let row = experiment(name, 15, &scene);
        row.chance(row.rolled_back(), 1.0);
        assert!(row.failed().0 <= 30.0, "{name}");
    }
}

/// Restarting the judge buys a healthy release no second chance to be taken back.
#[test]
fn restarts_do_not_spend_alpha_again() {
    let held = Scene {
        ladder: vec![25, 100],
        at_least_s: 10_000,
        limit_s: 180,
        ..Scene::published(100.0, FIVE, FIVE)
    };
    let row =
        experiment("equal 5 %, killed every 36 failures", 150, &Scene { restart_every: Some(36), ..held });
    row.at_most(row.rolled_back(), 0.001);
}

/// A canary at the limit is not promoted more often for being looked at again and again, nor by restarts.
#[test]
fn a_canary_at_the_limit_is_rarely_certified() {
    const LIMIT: Rate = |_| 0.01;
    let all = Scene { ladder: vec![99], limit_s: 100, ..Scene::published(200.0, LIMIT, LIMIT) };
    let row =
        experiment("1 %, allowed 1 %, killed every 4 failures", 60, &Scene { restart_every: Some(4), ..all });
    row.at_most(row.promoted(), 0.01);
}

/// Evidence that vanishes with its reporter counts against the certificate.
#[test]
fn a_proxy_that_dies_with_each_failure_certifies_nothing() {
    let scene =
        Scene { dies_with_failures: true, limit_s: 600, ..Scene::published(100.0, |_| 0.02, |_| 0.0) };
    let row = experiment("2 %, unheard", 20, &scene);
    row.never("promoted", row.promoted());
    assert!(row.runs.iter().all(|run| run.step < 4), "never all the traffic");
}

/// α is for all objectives, steps and looks together.
#[test]
fn two_objectives_share_one_alpha() {
    let scene = Scene { objectives: 2, ..Scene::published(100.0, GOOD, GOOD) };
    let row = experiment("two objectives, 0.1 % as stable", 60, &scene);
    row.at_most(row.rolled_back(), 0.001);
}
