use super::*;
use crate::id::InstanceId;
use jiff::{SignedDuration, Timestamp};

/// A rollout before the judge: evidence goes in, the last verdict is kept.
struct Trial {
    objectives: Objectives,
    wealth: Wealth,
    verdict: Verdict,
    now: Timestamp,
    endpoints: usize,
    senders: usize,
}

fn instance(name: &str) -> InstanceId {
    InstanceId::parse(name).expect("a name")
}

fn objective(name: &str) -> Objective {
    Objective { name: name.into(), max: 0.01, worse_than_stable: 1.0, ignore_below: 0.0 }
}

impl Trial {
    /// At a share of the canary, with one endpoint and one caller, without floor and without a least number.
    fn at(share: f64) -> Self {
        let now = Timestamp::UNIX_EPOCH;
        let objectives = Objectives {
            list: vec![objective("errors")],
            step: 0,
            share: parts(share),
            next_share: Some(FULL_SHARE),
            false_rollback: 0.001,
            wrong_promotion: 0.01,
            least_failures: 0,
        };
        let verdict = Verdict::Unknown(Doubt::NoEvidence);
        Self { objectives, wealth: Wealth::new(now), verdict, now, endpoints: 1, senders: 1 }
    }

    fn judge(&mut self, evidence: &Evidence) -> &mut Self {
        let (wealth, verdict) = judge(&self.objectives, self.wealth.clone(), evidence);
        (self.wealth, self.verdict) = (wealth, verdict);
        self
    }

    /// A batch of one caller at the next instant.
    fn batch(&mut self, caller: &str, failures: Vec<Failure>, totals: Option<Totals>) -> Evidence {
        self.now += SignedDuration::from_millis(100);
        let coin = Coin { share: self.objectives.w(), settled: true };
        let heard = CallerEvidence { caller: instance(caller), coin, failures, totals };
        Evidence {
            callers: vec![heard],
            canary_endpoints: self.endpoints,
            senders: self.senders,
            ..Evidence::none(self.now)
        }
    }

    /// `c` and `s` for failures of the arms, digits for failures of canary endpoints other than the usual one.
    fn failures_by(&mut self, caller: &str, order: &str) -> &mut Self {
        let failure = |c: char| match c {
            's' => Failure { arm: Arm::Stable, instance: None },
            'c' => Failure { arm: Arm::Canary, instance: Some(instance("canary")) },
            digit => Failure { arm: Arm::Canary, instance: Some(instance(&format!("canary-{digit}"))) },
        };
        let evidence = self.batch(caller, order.chars().map(failure).collect(), None);
        self.judge(&evidence)
    }

    fn failures(&mut self, order: &str) -> &mut Self {
        self.failures_by("front", order)
    }

    fn window(&mut self, canary: (u64, u64), stable: (u64, u64), trusted: bool) -> Evidence {
        let attempts = |(ended, failed)| Attempts { started: ended, ended, failed };
        let until = self.now + SignedDuration::from_millis(100);
        let totals = Totals { until, canary: attempts(canary), stable: attempts(stable), trusted };
        self.batch("front", Vec::new(), Some(totals))
    }

    /// A complete window: (ended, failed) of each arm.
    fn totals(&mut self, canary: (u64, u64), stable: (u64, u64)) -> &mut Self {
        let evidence = self.window(canary, stable, true);
        self.judge(&evidence)
    }

    fn clean(&mut self, canary: u64) -> &mut Self {
        let in_proportion = |share: f64| canary as f64 * (1.0 - share) / share;
        self.totals((canary, 0), (in_proportion(self.objectives.w()).round() as u64, 0))
    }

    fn move_to(&mut self, step: usize, share: f64, next: Option<f64>) -> &mut Self {
        (self.objectives.step, self.objectives.share) = (step, parts(share));
        self.objectives.next_share = next.map(parts);
        self
    }

    /// As after a restart of the operator: only what was saved is left.
    fn restart(&mut self) -> &mut Self {
        let saved = serde_json::to_string(&self.wealth).expect("JSON");
        self.wealth = serde_json::from_str(&saved).expect("what was written");
        self
    }

    fn breached(&self) -> bool {
        matches!(self.verdict, Verdict::Breached(_))
    }

    fn certified(&self) -> bool {
        matches!(self.verdict, Verdict::Healthy(_))
    }

    fn doubt(&self) -> &Doubt {
        match &self.verdict {
            Verdict::Unknown(doubt) => doubt,
            other => panic!("{other:?} is no doubt"),
        }
    }
}

fn parts(share: f64) -> u32 {
    (share * f64::from(FULL_SHARE)).round() as u32
}

fn check_ln(got: f64, expected: f64) {
    assert!((got - expected).abs() < 6e-7, "{got} is not {expected}");
}

/// Canary failures until a breach, after some of stable.
fn failures_needed(share: f64, stable: usize) -> usize {
    let mut trial = Trial::at(share);
    trial.failures(&"s".repeat(stable));
    (1..).find(|_| trial.failures("c").breached()).expect("some day")
}

#[test]
fn consecutive_failures_breach_as_soon_as_published() {
    for (share, needed) in [(0.01, 2), (0.05, 3), (0.1, 4), (0.2, 6), (0.25, 6), (0.5, 12)] {
        assert_eq!(failures_needed(share, 0), needed, "at {share}");
    }
}

#[test]
fn failures_of_stable_put_a_breach_off_as_published() {
    for (share, published) in [(0.05, [3, 4, 5, 5, 6]), (0.1, [4, 5, 6, 7, 7]), (0.5, [12, 17, 21, 24, 27])] {
        let needed = [0, 1, 2, 3, 4].map(|stable| failures_needed(share, stable));
        assert_eq!(needed, published, "at {share}");
    }
}

#[test]
fn a_change_of_share_moves_capital_from_the_reserve_and_keeps_the_wealth() {
    let mut trial = Trial::at(0.05);
    trial.failures("cccss");
    check_ln(trial.wealth.ln_wealth, 3.930_667);
    trial.move_to(1, 0.25, Some(0.5)).failures("");
    check_ln(trial.wealth.ln_wealth, 3.930_667);
    trial.failures("ccccs");
    check_ln(trial.wealth.ln_wealth, 6.859_758);
}

#[test]
fn three_canary_requests_must_fail() {
    let mut trial = Trial::at(0.01);
    trial.objectives.least_failures = Objectives::LEAST_FAILURES;
    assert!(!trial.failures("cc").breached());
    assert!(trial.failures("c").breached());
}

#[test]
fn a_breach_names_the_objective_with_the_largest_capital() {
    let mut trial = Trial::at(0.1);
    let lenient = Objective { worse_than_stable: 10.0, ..objective("lenient") };
    trial.objectives.list = vec![lenient, objective("strict")];
    trial.failures("ccccc");
    let Verdict::Breached(breach) = &trial.verdict else { panic!("{:?}", trial.verdict) };
    assert_eq!((breach.objective.as_str(), breach.canary.failed), ("strict", 5));
}

#[test]
fn a_restart_keeps_the_wealth_and_advances_nothing() {
    let mut trial = Trial::at(0.1);
    trial.failures("cccs").clean(600);
    let before = trial.wealth.ln_wealth;
    assert!(before > 1.0);
    trial.restart().clean(600);
    assert_eq!(*trial.doubt(), Doubt::Resumed);
    check_ln(trial.wealth.ln_wealth, before);
    assert!(trial.failures("ccc").breached(), "three more on top of three suffice");
}

#[test]
fn a_judge_restarted_all_the_time_never_certifies_what_it_would_not_otherwise() {
    let mut trial = Trial::at(0.1);
    for _ in 0..47 {
        assert!(!trial.restart().clean(10).certified());
    }
    assert!(!trial.clean(5).certified(), "475 of 480");
    assert!(trial.clean(5).certified(), "counts of the step outlive restarts");
}

#[test]
fn certification_begins_anew_with_each_step() {
    let mut trial = Trial::at(0.01);
    trial.objectives.next_share = Some(parts(0.05));
    assert!(!trial.clean(21).certified());
    assert!(trial.clean(1).certified());
    trial.move_to(1, 0.05, Some(0.25));
    assert!(!trial.clean(118).certified());
    assert!(trial.clean(1).certified());
    trial.move_to(2, 1.0, None);
    assert!(!trial.clean(479).certified());
    assert!(trial.clean(1).certified());
}

#[test]
fn what_is_missing_is_said_with_its_time() {
    let mut trial = Trial::at(0.1);
    trial.now += SignedDuration::from_secs(10);
    trial.wealth = Wealth::new(trial.now - SignedDuration::from_secs(10));
    trial.totals((68, 0), (612, 0));
    let Doubt::Collecting { needs, .. } = trial.doubt() else { panic!("{:?}", trial.doubt()) };
    assert_eq!(needs.clean, 412);
    assert!(needs.eta_s.is_some_and(|eta| (50.0..80.0).contains(&eta)), "{needs:?}");
    trial.totals((330, 30), (2_970, 0));
    assert!(matches!(trial.doubt(), Doubt::NeverAtThisRate { .. }), "{}", trial.verdict);
}

#[test]
fn one_endpoint_alone_never_takes_a_release_back() {
    let mut trial = Trial::at(0.1);
    trial.endpoints = 2;
    trial.failures("cccccccccc");
    assert_eq!(*trial.doubt(), Doubt::OneEndpointOnly { instance: instance("canary") });
    trial.failures("222");
    assert!(!trial.breached());
    assert!(trial.failures("2").breached(), "the other one alone proves it now");

    trial = Trial::at(0.1);
    assert!(trial.failures("cccc").breached(), "there is no other endpoint");
}

#[test]
fn one_caller_alone_never_takes_a_release_back() {
    let mut trial = Trial::at(0.1);
    trial.senders = 2;
    trial.failures_by("front", "cccccc");
    assert_eq!(*trial.doubt(), Doubt::OneCallerOnly { caller: instance("front") });
    trial.failures_by("back", "ccc");
    assert!(!trial.breached());
    assert!(trial.failures_by("back", "c").breached());
}

#[test]
fn the_rule_about_one_endpoint_outlives_a_restart() {
    let mut trial = Trial::at(0.1);
    trial.endpoints = 2;
    trial.failures("cccccccccc").restart().failures("c");
    assert_eq!(*trial.doubt(), Doubt::OneEndpointOnly { instance: instance("canary") });
}

#[test]
fn nothing_is_certified_below_full_coverage() {
    let mut trial = Trial::at(0.1);
    let missing = vec![instance("back")];
    let evidence = Evidence { missing: missing.clone(), ..trial.window((1_000, 0), (9_000, 0), true) };
    trial.judge(&evidence);
    assert_eq!(*trial.doubt(), Doubt::NotCovered { missing });
    assert!(trial.clean(1).certified(), "late evidence waits, it is not dropped");
}

#[test]
fn requests_never_reported_count_as_failed_and_never_against_the_release() {
    let mut trial = Trial::at(0.1);
    let evidence = Evidence { unreported: 10, ..trial.window((900, 0), (8_100, 0), true) };
    trial.judge(&evidence);
    check_ln(trial.wealth.ln_wealth, 0.0);
    let Doubt::NeverAtThisRate { canary, .. } = trial.doubt() else { panic!("{}", trial.verdict) };
    assert_eq!(*canary, Counts { failed: 10, ended: 910 });
}

#[test]
fn an_untrusted_window_may_breach_and_never_certifies() {
    let mut trial = Trial::at(0.1);
    let evidence = trial.window((10_000, 0), (90_000, 0), false);
    trial.judge(&evidence);
    assert_eq!(*trial.doubt(), Doubt::Untrusted { callers: vec![instance("front")] });
    assert!(!trial.clean(479).certified(), "its successes are not counted");
    assert!(trial.clean(1).certified());
    let mut evidence = trial.window((100, 4), (900, 0), false);
    evidence.callers[0].failures = vec![Failure { arm: Arm::Canary, instance: None }; 4];
    assert!(trial.judge(&evidence).breached());
}

#[test]
fn a_coin_that_is_not_fair_withholds_the_relative_test() {
    let mut trial = Trial::at(0.1);
    trial.totals((1_200, 0), (8_800, 0));
    assert!(matches!(trial.doubt(), Doubt::SplitNotAsConfigured { canary: 1_200, total: 10_000, .. }));
    assert!(!trial.failures("cccccccccccc").breached());
}

#[test]
fn the_coin_is_only_checked_where_it_is_settled() {
    let mut trial = Trial::at(0.1);
    let mut evidence = trial.window((5_000, 0), (5_000, 0), true);
    evidence.callers[0].coin = Coin { share: 0.5, settled: false };
    trial.judge(&evidence);
    assert_eq!(*trial.doubt(), Doubt::Settling);
}

#[test]
fn an_outage_of_both_arms_says_nothing_and_is_not_forgiven_after() {
    let mut trial = Trial::at(0.1);
    for _ in 0..60 {
        assert!(!trial.failures(&("s".repeat(9) + "c" + &"s".repeat(9) + "c")).breached());
        assert!(!trial.totals((10, 2), (90, 18)).breached());
    }
    trial.totals((10, 0), (90, 0)).totals((10, 0), (90, 0)).totals((10, 0), (90, 0));
    assert!(trial.failures(&"c".repeat(5)).breached(), "one more than without the outage");
}

#[test]
fn a_degraded_stable_holds_and_says_so() {
    let mut trial = Trial::at(0.1);
    trial.totals((20, 0), (180, 6)).totals((1_000, 0), (9_000, 300));
    assert!(matches!(trial.doubt(), Doubt::StableDegraded { .. }), "{}", trial.verdict);
    assert!(trial.verdict.to_string().starts_with("stable breaches its own objective errors: 3"));
    trial.failures(&"s".repeat(50));
    let events = trial.wealth.clone();
    for _ in 0..60 {
        trial.now += SignedDuration::from_secs(10);
        trial.clean(100);
    }
    assert!(trial.certified(), "the spell is over");
    assert!(trial.wealth.outgrew(&events), "its end is an event");
}

#[test]
fn what_looks_bad_but_is_not_proven_does_not_advance() {
    let mut trial = Trial::at(0.1);
    trial.failures("ccc").clean(2_000);
    assert!(matches!(trial.doubt(), Doubt::Suspicious { .. }), "{}", trial.verdict);
}

#[test]
fn a_canary_below_the_floor_is_healthy_whatever_stable_does() {
    let mut trial = Trial::at(0.1);
    trial.objectives.list[0].ignore_below = 0.001;
    assert!(!trial.failures("cccccc").breached(), "no rate is known before the first window");
    for _ in 0..20 {
        trial.totals((1_000, 0), (9_000, 0));
    }
    assert!(!trial.failures("ccc").breached(), "9 of 20,009");
    assert!(trial.failures(&"c".repeat(60)).breached());
}

#[test]
fn without_a_control_the_objective_itself_is_the_measure() {
    let mut trial = Trial::at(0.5);
    trial.now += SignedDuration::from_secs(10);
    trial.clean(500).move_to(1, 1.0, None).clean(1);
    trial.failures(&"c".repeat(6));
    let Verdict::Breached(breach) = &trial.verdict else { panic!("{}", trial.verdict) };
    assert_eq!(breach.against, Against::Max(0.01));

    trial = Trial::at(1.0);
    for _ in 0..100 {
        trial.totals((100, 1), (0, 0));
        assert!(!trial.failures("c").breached(), "1 % may fail");
    }
}

#[test]
fn objectives_edited_under_way_give_no_fresh_wealth() {
    let mut trial = Trial::at(0.1);
    trial.failures("ccc");
    let before = trial.wealth.ln_wealth;
    trial.objectives.list.push(objective("more"));
    trial.failures("");
    check_ln(trial.wealth.ln_wealth, before);
}

#[test]
fn the_same_evidence_gives_the_same_bits() {
    let run = || {
        let mut trial = Trial::at(0.1);
        trial.failures("cscss").clean(77).restart().failures("scs").move_to(1, 1.0, None).failures("cc");
        serde_json::to_string(&trial.wealth).expect("JSON")
    };
    assert_eq!(run(), run());
}

/// Chances of the relative test, computed exactly: each failure falls on the canary with a given probability.
struct Walk {
    /// Canary failures that breach after 0, 1, … stable ones.
    breaching: Vec<usize>,
}

impl Walk {
    /// Without reserve if `ln_reserve` is −∞.
    fn new(share: f64, ln_reserve: f64, ln_capital: f64, stable: usize) -> Self {
        let (coin, rate) =
            (capital::CoinFactors::new(share, 1.0), capital::RateFactors::new(&objective("errors"), true));
        let mut by_stable = capital::Capital::new(ln_capital, &objective("errors"), true);
        let mut breaching = Vec::new();
        let mut least = 0;
        for _ in 0..=stable {
            let mut capital = by_stable.clone();
            (0..least).for_each(|_| capital.canary_failed(coin.as_ref(), &rate));
            while capital::ln_sum(&[ln_reserve, capital.ln_worth(&[])]) < 1_000_f64.ln() {
                capital.canary_failed(coin.as_ref(), &rate);
                least += 1;
            }
            breaching.push(least);
            by_stable.stable_failed(coin.as_ref());
        }
        Self { breaching }
    }

    /// The chance of a breach, and how likely each number of canary failures at it is.
    fn breaches(&self, on_canary: f64) -> (f64, Vec<f64>) {
        let most = self.breaching.last().copied().unwrap_or_default();
        let mut alive = vec![0.0; most + 1];
        alive[0] = 1.0;
        let mut at = vec![0.0; most + 1];
        for &breaching in &self.breaching {
            // Canary failures before the next stable one.
            for failed in 0..breaching {
                let moving = alive[failed] * on_canary;
                alive[failed] -= moving;
                if failed + 1 == breaching {
                    at[failed + 1] += moving;
                } else {
                    alive[failed + 1] += moving;
                }
            }
        }
        (at.iter().sum(), at)
    }
}

#[test]
fn a_bad_canary_fails_as_few_requests_as_published() {
    for (share, published) in [(0.1, 4.816), (0.05, 4.160), (0.01, 3.565), (0.25, 7.037), (0.5, 13.262)] {
        let walk = Walk::new(share, 0.5_f64.ln(), 0.5_f64.ln(), 60);
        let (chance, at) = walk.breaches(share * 50.0 / (share * 50.0 + 1.0 - share));
        let mean: f64 = (0..).zip(&at).map(|(failed, chance)| f64::from(failed) * chance).sum();
        assert!(chance > 0.9999, "{share}: {chance}");
        assert!((mean - published).abs() < 0.01 * published, "{share}: {mean} is not {published}");
        if share == 0.1 {
            let within: f64 = at.iter().take(9).sum();
            assert!(within >= 0.99 && within - at[8] < 0.99, "the 99th percentile is 8");
        }
    }
}

#[test]
fn equal_arms_are_taken_back_as_rarely_as_published() {
    for (share, published) in
        [(0.01, 0.000_309), (0.05, 0.000_383), (0.1, 0.000_372), (0.25, 0.000_529), (0.5, 0.000_779)]
    {
        let (chance, _) = Walk::new(share, f64::NEG_INFINITY, 0.0, 500).breaches(share);
        assert!((chance - published).abs() < 0.03 * published, "{share}: {chance} is not {published}");
    }
}
