use super::*;
use crate::{
    id::{Name, Namespace},
    mesh::FULL_SHARE,
    slo::{Against, Breach, Certified, Counts, Doubt, Verdict},
};
use proptest::prelude::*;

fn revision(name: &str) -> Revision {
    Revision::parse(name).expect("a name")
}

fn at(s: i64) -> Timestamp {
    Timestamp::from_second(s).expect("a time")
}

fn plan(shares: &[u32]) -> Rollout {
    Rollout {
        service: ServiceId {
            namespace: Namespace::parse("shop").expect("a name"),
            name: Name::parse("payments").expect("a name"),
        },
        stable: revision("v1"),
        canary: revision("v2"),
        steps: shares.iter().map(|&share| StepPlan { share, at_least: None }).collect(),
        objectives: vec![crate::slo::Objective {
            name: "errors".into(),
            max: 0.01,
            worse_than_stable: 1.0,
            ignore_below: 0.001,
        }],
        false_rollback: 0.001,
        wrong_promotion: 0.01,
        suspend: false,
        held: None,
    }
}

fn healthy(step: usize) -> Verdict {
    Verdict::Healthy(Certified { step, certificates: Vec::new() })
}

fn unknown() -> Verdict {
    Verdict::Unknown(Doubt::NoEvidence)
}

fn breached() -> Verdict {
    Verdict::Breached(Breach {
        objective: "errors".into(),
        against: Against::Stable,
        canary: Counts { failed: 6, ended: 94 },
        stable: Counts { failed: 1, ended: 1_790 },
        ln_wealth: 7.25,
        false_rollback: 0.001,
    })
}

/// A rollout led through its phases; every proxy acknowledges at once unless told otherwise.
struct Case {
    plan: Rollout,
    progress: Progress,
    facts: Facts,
    now: i64,
    last: Option<Step>,
}

impl Case {
    fn new() -> Self {
        let plan = plan(&[500, 2_500, FULL_SHARE]);
        let progress = Progress::new(&plan, at(0));
        let facts = Facts { canary_ready: 1, stable_ready: 1, ..Facts::default() };
        Self { plan, progress, facts, now: 0, last: None }
    }

    fn step(&mut self, verdict: &Verdict) -> &mut Self {
        self.now += 1;
        let Progress { share, fail_safe_share, .. } = self.progress;
        let acknowledged = self.facts.acknowledged.or(Some(Acknowledged { share, fail_safe_share }));
        let facts = Facts { acknowledged, ..self.facts };
        let step = step(&self.plan, &self.progress, verdict, &facts, at(self.now));
        self.progress = step.next.clone();
        self.facts.asked = None;
        self.last = Some(step);
        self
    }

    fn ask(&mut self, verb: Asked) -> &mut Self {
        self.facts.asked = Some(verb);
        self.step(&unknown())
    }

    fn refused(&self) -> Option<Refusal> {
        self.last.as_ref().and_then(|step| step.refused)
    }

    /// Phase, step, share, fail-safe share.
    #[track_caller]
    fn check(&mut self, phase: Phase, step: usize, share: u32, fail_safe: u32) -> &mut Self {
        let p = &self.progress;
        let got = (p.phase, p.step, p.share, p.fail_safe_share);
        assert_eq!(got, (phase, step, share, fail_safe), "{}", p.because);
        self
    }
}

#[test]
fn a_good_canary_climbs_and_leaves_certified_shares_behind() {
    let mut case = Case::new();
    case.step(&unknown()).check(Phase::Progressing, 0, 500, 0);
    case.step(&unknown()).check(Phase::Progressing, 0, 500, 0);
    case.step(&healthy(0)).check(Phase::Progressing, 1, 2_500, 500);
    case.step(&healthy(0)).check(Phase::Progressing, 1, 2_500, 500);
    case.step(&healthy(1)).check(Phase::Progressing, 2, FULL_SHARE, 2_500);
    case.step(&healthy(2)).check(Phase::Promoting, 2, FULL_SHARE, FULL_SHARE);
    case.facts.acknowledged = Some(Acknowledged { share: FULL_SHARE, fail_safe_share: 2_500 });
    case.step(&healthy(2)).check(Phase::Promoting, 2, FULL_SHARE, FULL_SHARE);
    case.facts.acknowledged = None;
    case.step(&healthy(2)).check(Phase::Succeeded, 2, FULL_SHARE, FULL_SHARE);
    case.step(&breached()).check(Phase::Succeeded, 2, FULL_SHARE, FULL_SHARE);
    let phases: Vec<Phase> = case.progress.history.iter().map(|t| t.phase).collect();
    use Phase::{Progressing, Promoting, Succeeded};
    assert_eq!(phases, [Progressing, Progressing, Progressing, Promoting, Succeeded]);
}

#[test]
fn a_rollback_moves_traffic_first_and_is_one_when_acknowledged() {
    let mut case = Case::new();
    case.step(&unknown()).step(&healthy(0)).check(Phase::Progressing, 1, 2_500, 500);
    case.facts.acknowledged = Some(Acknowledged { share: 2_500, fail_safe_share: 500 });
    case.step(&breached()).check(Phase::RollingBack, 1, 0, 0);
    for verb in [Asked::Retry, Asked::Promote, Asked::Resume] {
        case.ask(verb).check(Phase::RollingBack, 1, 0, 0);
        assert_eq!(case.refused(), Some(Refusal::RollingBack(verb)));
    }
    case.facts.acknowledged = None;
    case.step(&unknown()).check(Phase::RolledBack, 1, 0, 0);
    assert!(case.progress.because.starts_with("errors: 6 of 94"), "{}", case.progress.because);
    for verdict in [healthy(1), unknown(), breached()] {
        case.step(&verdict).check(Phase::RolledBack, 1, 0, 0);
    }
    case.ask(Asked::Promote).check(Phase::RolledBack, 1, 0, 0);
    assert_eq!(case.refused(), Some(Refusal::RolledBack(Asked::Promote)));
    assert!(!case.progress.aborted);
    case.ask(Asked::Abort).check(Phase::RolledBack, 1, 0, 0);
    assert_eq!((case.refused(), case.progress.aborted), (None, true), "it is shut out afterwards, too");
    case.ask(Asked::Abort).check(Phase::RolledBack, 1, 0, 0);
    assert_eq!(case.refused(), Some(Refusal::RolledBack(Asked::Abort)));
    case.ask(Asked::Retry).check(Phase::Idle, 0, 0, 0);
    assert!(!case.progress.aborted);
    case.step(&unknown()).check(Phase::Progressing, 0, 500, 0);
}

#[test]
fn a_new_revision_supersedes_and_starts_anew() {
    let mut case = Case::new();
    case.step(&unknown()).step(&healthy(0)).step(&breached()).step(&unknown());
    case.progress.judge.ln_wealth = 9.0;
    case.plan.canary = revision("v3");
    case.step(&breached()).check(Phase::Idle, 0, 0, 0);
    assert_eq!(case.progress.judge.ln_wealth, 0.0);
    assert_eq!(case.progress.canary, revision("v3"));
    case.step(&unknown()).check(Phase::Progressing, 0, 500, 0);
}

#[test]
fn it_waits_for_endpoints_on_both_sides() {
    let mut case = Case::new();
    case.facts.canary_ready = 0;
    case.step(&unknown()).check(Phase::Idle, 0, 0, 0);
    assert_eq!(case.progress.because, "no canary endpoint is ready");
    case.facts = Facts { canary_ready: 1, stable_ready: 0, ..case.facts };
    case.step(&unknown()).check(Phase::Idle, 0, 0, 0);
    case.facts.stable_ready = 1;
    case.step(&unknown()).step(&healthy(0)).check(Phase::Progressing, 1, 2_500, 500);
    case.facts.canary_ready = 0;
    case.step(&healthy(1)).check(Phase::Holding, 1, 0, 0);
    case.facts.canary_ready = 1;
    case.step(&healthy(1)).check(Phase::Progressing, 1, 2_500, 500);
    case.facts.stable_ready = 0;
    case.step(&healthy(1)).check(Phase::Holding, 1, 2_500, 500);
    case.step(&breached()).check(Phase::Holding, 1, 2_500, 500);
    assert!(case.progress.because.contains("no stable endpoint could take its traffic"));
    case.facts.stable_ready = 1;
    case.step(&breached()).check(Phase::RollingBack, 1, 0, 0);
}

#[test]
fn a_pause_keeps_the_share_and_the_judge() {
    let mut case = Case::new();
    case.step(&unknown()).ask(Asked::Pause).check(Phase::Paused, 0, 500, 0);
    case.step(&healthy(0)).check(Phase::Paused, 0, 500, 0);
    case.ask(Asked::Resume).check(Phase::Progressing, 0, 500, 0);
    case.ask(Asked::Resume);
    assert_eq!(case.refused(), Some(Refusal::NotPaused));
    case.plan.suspend = true;
    case.step(&healthy(0)).check(Phase::Paused, 0, 500, 0);
    case.ask(Asked::Resume).check(Phase::Paused, 0, 500, 0);
    assert_eq!(case.refused(), Some(Refusal::Suspended));
    case.step(&breached()).check(Phase::RollingBack, 0, 0, 0);
}

#[test]
fn what_cannot_be_followed_is_held_and_says_why() {
    let mut case = Case::new();
    case.plan.held = Some("spec.gates is not supported yet; remove it".into());
    case.step(&unknown()).check(Phase::Idle, 0, 0, 0);
    assert_eq!(case.progress.because, "held: spec.gates is not supported yet; remove it");
    case.ask(Asked::Resume).check(Phase::Idle, 0, 0, 0);
    assert_eq!(case.refused(), Some(Refusal::Held));
    case.plan.held = None;
    case.step(&unknown()).check(Phase::Progressing, 0, 500, 0);
    case.plan.held = Some("spec.gates is not supported yet; remove it".into());
    case.step(&healthy(0)).check(Phase::Paused, 0, 500, 0);
    case.step(&breached()).check(Phase::RollingBack, 0, 0, 0);
}

#[test]
fn promote_skips_the_rest_and_abort_takes_it_back() {
    let mut case = Case::new();
    case.facts.canary_ready = 0;
    case.ask(Asked::Promote).check(Phase::Idle, 0, 0, 0);
    assert_eq!(case.refused(), Some(Refusal::NoCanaryEndpoint));
    case.facts.canary_ready = 1;
    case.step(&unknown()).ask(Asked::Promote).check(Phase::Promoting, 2, FULL_SHARE, FULL_SHARE);
    case.ask(Asked::Abort).check(Phase::RollingBack, 2, 0, 0);
    assert!(case.progress.aborted);
    case.facts.stable_ready = 0;
    let mut case = Case::new();
    case.step(&unknown());
    case.facts.stable_ready = 0;
    case.ask(Asked::Abort).check(Phase::RollingBack, 0, 0, 0);
}

#[test]
fn no_step_is_left_sooner_than_it_should_last() {
    let mut case = Case::new();
    case.plan.steps[0].at_least = Some(Millis(10_000));
    case.step(&unknown());
    assert_eq!(case.now, 1);
    for _ in 2..11 {
        case.step(&healthy(0)).check(Phase::Progressing, 0, 500, 0);
        assert_eq!(case.last.as_ref().and_then(|step| step.wake), Some(at(11)));
    }
    case.step(&healthy(0)).check(Phase::Progressing, 1, 2_500, 500);
}

#[test]
fn no_step_is_left_before_every_proxy_runs_its_share() {
    let mut case = Case::new();
    case.step(&unknown());
    case.facts.acknowledged = Some(Acknowledged { share: 0, fail_safe_share: 0 });
    case.step(&healthy(0)).check(Phase::Progressing, 0, 500, 0);
    case.facts.acknowledged = None;
    case.step(&healthy(0)).check(Phase::Progressing, 1, 2_500, 500);
}

#[test]
fn an_edited_ladder_is_gone_on_from_the_highest_step_not_above_the_share() {
    let mut case = Case::new();
    case.step(&unknown()).step(&healthy(0)).check(Phase::Progressing, 1, 2_500, 500);
    case.plan.steps = plan(&[300, 1_000, 5_000, FULL_SHARE]).steps;
    case.step(&healthy(1)).check(Phase::Progressing, 1, 1_000, 500);
    case.plan.steps = plan(&[5_000, FULL_SHARE]).steps;
    case.step(&healthy(1)).check(Phase::Progressing, 0, 5_000, 500);
}

#[test]
fn lasting_doubts_hold_and_passing_ones_do_not() {
    let mut case = Case::new();
    let lasting = Verdict::Unknown(Doubt::NotCovered { missing: Vec::new() });
    case.step(&unknown()).step(&lasting).check(Phase::Holding, 0, 500, 0);
    for _ in 0..30 {
        case.step(&unknown()).check(Phase::Progressing, 0, 500, 0);
        case.step(&lasting).check(Phase::Holding, 0, 500, 0);
    }
    assert_eq!(case.progress.history.len(), 2, "coming and going doubts are no history");
}

fn phases() -> impl Strategy<Value = Phase> {
    use Phase::{Holding, Idle, Paused, Progressing, Promoting, RolledBack, RollingBack, Succeeded};
    prop::sample::select(vec![
        Idle,
        Progressing,
        Holding,
        Paused,
        Promoting,
        Succeeded,
        RollingBack,
        RolledBack,
    ])
}

fn verbs() -> impl Strategy<Value = Option<Asked>> {
    use Asked::{Abort, Pause, Promote, Resume, Retry};
    prop::option::weighted(0.4, prop::sample::select(vec![Pause, Resume, Promote, Abort, Retry]))
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    let lasting = Verdict::Unknown(Doubt::NotCovered { missing: Vec::new() });
    prop_oneof![
        2 => Just(unknown()),
        1 => Just(lasting),
        2 => Just(breached()),
        3 => (0_usize..6).prop_map(healthy),
    ]
}

fn shares() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0, 100, 500, 2_500, 5_000, FULL_SHARE])
}

prop_compose! {
    fn plans()(
        ladder in prop::sample::subsequence(vec![100_u32, 500, 2_500, 5_000, FULL_SHARE], 0..=5),
        suspend in any::<bool>(),
        at_least in prop::option::of(0_u64..10_000),
        superseded in prop::bool::weighted(0.1),
    ) -> Rollout {
        let mut plan = Rollout { suspend, ..plan(&ladder) };
        for step in &mut plan.steps {
            step.at_least = at_least.map(Millis);
        }
        if superseded {
            plan.canary = revision("v3");
        }
        plan
    }
}

prop_compose! {
    fn progresses()(
        phase in phases(),
        step in 0_usize..6,
        share in shares(),
        fail_safe_share in shares(),
        certified_share in shares(),
        pause_asked in any::<bool>(),
    ) -> Progress {
        let fresh = Progress::new(&plan(&[]), at(0));
        Progress { phase, step, share, fail_safe_share, certified_share, pause_asked, ..fresh }
    }
}

prop_compose! {
    fn facts()(
        canary_ready in 0_usize..2,
        stable_ready in 0_usize..2,
        acknowledged in prop::option::of((shares(), shares())),
        asked in verbs(),
    ) -> Facts {
        let acknowledged =
            acknowledged.map(|(share, fail_safe_share)| Acknowledged { share, fail_safe_share });
        Facts { canary_ready, stable_ready, acknowledged, asked }
    }
}

/// The largest share a step may lead to: what is certified, and one step of the plan beyond it.
fn reach(plan: &Rollout, certified: u32) -> u32 {
    let beyond = plan.steps.iter().map(|step| step.share).find(|share| *share > certified);
    beyond.unwrap_or(certified)
}

fn is_final(phase: Phase) -> bool {
    matches!(phase, Phase::Promoting | Phase::Succeeded)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_plan_and_progress_yield_a_safe_step(
        plan in plans(), progress in progresses(), verdict in verdicts(), facts in facts(),
    ) {
        let Step { next, because, .. } = step(&plan, &progress, &verdict, &facts, at(5));

        prop_assert!(next.fail_safe_share <= next.share, "silence never adds traffic");
        prop_assert!(next.history.len() <= Progress::HISTORY);
        if matches!(next.phase, Phase::RollingBack | Phase::RolledBack | Phase::Idle) {
            prop_assert_eq!((next.share, next.fail_safe_share, next.certified_share), (0, 0, 0));
        }
        let by_hand = facts.asked == Some(Asked::Promote);
        let undecided = !is_final(progress.phase) && progress.canary == plan.canary && !by_hand;
        if undecided {
            prop_assert!(next.share <= reach(&plan, next.certified_share), "{} > reach", next.share);
            let certified_now = matches!(&verdict, Verdict::Healthy(_));
            if !certified_now {
                prop_assert!(next.certified_share <= progress.certified_share, "only the healthy advance");
                prop_assert!(!is_final(next.phase));
            }
        }
        if matches!(verdict, Verdict::Breached(_)) && undecided && progress.phase != Phase::Idle {
            prop_assert!(next.share <= progress.share);
        }
        if progress.canary != plan.canary {
            prop_assert_eq!(next.phase, Phase::Idle);
        }
        if facts.asked == Some(Asked::Abort) && progress.canary == plan.canary {
            prop_assert!(matches!(next.phase, Phase::RollingBack | Phase::RolledBack));
        }
        if facts.canary_ready == 0 && !is_final(progress.phase) {
            prop_assert_eq!(next.share, 0, "no request goes where nobody answers");
        }
        let places = |p: &Progress| (p.phase, p.step, p.share, p.fail_safe_share, p.certified_share);
        let anew = progress.canary != plan.canary
            || facts.asked == Some(Asked::Retry) && progress.phase == Phase::RolledBack;
        prop_assert_eq!(because.is_none(), places(&next) == places(&progress) && !anew);
    }

    #[test]
    fn without_new_evidence_a_second_step_changes_nothing(
        plan in plans(), progress in progresses(), verdict in verdicts(), facts in facts(),
    ) {
        // What is acknowledged stays behind, as it does when a step is taken twice in a row.
        let once = step(&plan, &progress, &verdict, &facts, at(5)).next;
        let facts = Facts { asked: None, ..facts };
        let settled = step(&plan, &once, &verdict, &facts, at(5)).next;
        let again = step(&plan, &settled, &verdict, &facts, at(5)).next;
        let mut steps = vec![once, settled, again];
        let places: Vec<_> = steps.iter().map(|p| (p.phase, p.step, p.share, p.fail_safe_share)).collect();
        // A few phases lead on by themselves (a fresh attempt begins, an acknowledged end is one); none for ever.
        for _ in 0..4 {
            let next = step(&plan, &steps[steps.len() - 1], &verdict, &facts, at(5)).next;
            steps.push(next);
        }
        let (last, before) = (&steps[steps.len() - 1], &steps[steps.len() - 2]);
        prop_assert_eq!(last, before, "{:?}", places);
    }
}
