//! A mesh in miniature: callers, their coins and two versions, before the production judge and state machine.

use airlane_core::{
    id::{InstanceId, Name, Namespace, Revision, ServiceId},
    mesh::FULL_SHARE,
    policy::Millis,
    rollout::{Acknowledged, Facts, Phase, Progress, Rollout, StepPlan, objectives, step},
    slo::{
        Arm, Attempts, CallerEvidence, Doubt, Evidence, Failure, Objective, SentShares, Totals, Verdict,
        Wealth, judge,
    },
};
use jiff::{SignedDuration, Timestamp};

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same on every machine.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Whether something of probability `p` happens.
    pub(crate) fn happens(&mut self, p: f64) -> bool {
        ((self.next() >> 11) as f64) * 2.0_f64.powi(-53) < p
    }
}

/// How a version answers a caller's request sent at a time (in seconds): its chance to fail.
pub(crate) type Rate = fn(f64) -> f64;

/// One caller and what it meets.
#[derive(Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) rps: f64,
    pub(crate) canary: Rate,
    pub(crate) stable: Rate,
    /// From the decision until its proxy runs the new share, in milliseconds.
    pub(crate) delay_ms: u64,
}

/// One experiment.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) callers: Vec<Caller>,
    /// Shares in percent.
    pub(crate) ladder: Vec<u32>,
    /// How long each step lasts at least.
    pub(crate) at_least_s: u64,
    pub(crate) objectives: usize,
    /// `ignoreBelow`.
    pub(crate) floor: f64,
    pub(crate) least_failures: u64,
    /// How often logged failures arrive, in milliseconds; totals arrive each second.
    pub(crate) tick_ms: u64,
    /// How long a failed and a successful request take, in milliseconds.
    pub(crate) takes_ms: (u64, u64),
    pub(crate) route_timeout_ms: u64,
    /// The operator is killed after this many failures, again and again.
    pub(crate) restart_every: Option<u64>,
    /// Each proxy dies, unheard, in the second in which a canary request fails.
    pub(crate) dies_with_failures: bool,
    /// Failed requests are counted from this second on.
    pub(crate) count_from_s: u64,
    pub(crate) limit_s: u64,
}

impl Scene {
    /// One caller, the ladder of the published table, judged each second without floor and least number.
    pub(crate) fn published(rps: f64, canary: Rate, stable: Rate) -> Self {
        Self {
            callers: vec![Caller { rps, canary, stable, delay_ms: 0 }],
            ladder: vec![1, 5, 25, 50, 100],
            at_least_s: 0,
            objectives: 1,
            floor: 0.0,
            least_failures: 0,
            tick_ms: 1_000,
            takes_ms: (0, 0),
            route_timeout_ms: 0,
            restart_every: None,
            dies_with_failures: false,
            count_from_s: 0,
            limit_s: 20_000,
        }
    }

    /// As it is run: failures every 100 ms, the usual floor and least number, 0.2 s until traffic has moved.
    pub(crate) fn real(rps: f64, canary: Rate, stable: Rate) -> Self {
        Self {
            callers: vec![Caller { rps, canary, stable, delay_ms: 200 }],
            floor: 0.001,
            least_failures: 3,
            tick_ms: 100,
            ..Self::published(rps, canary, stable)
        }
    }

    fn plan(&self) -> Rollout {
        let objective = |k: usize| Objective {
            name: format!("errors-{k}"),
            max: 0.01,
            worse_than_stable: 1.0,
            ignore_below: self.floor,
        };
        let at_least = (self.at_least_s > 0).then_some(Millis(1_000 * self.at_least_s));
        let parts = |percent: &u32| percent * FULL_SHARE / 100;
        Rollout {
            service: ServiceId {
                namespace: Namespace::parse("shop").expect("a name"),
                name: Name::parse("payments").expect("a name"),
            },
            stable: Revision::parse("v1").expect("a name"),
            canary: Revision::parse("v2").expect("a name"),
            steps: self.ladder.iter().map(|share| StepPlan { share: parts(share), at_least }).collect(),
            objectives: (0..self.objectives).map(objective).collect(),
            false_rollback: 0.001,
            wrong_promotion: 0.01,
            suspend: false,
            held: None,
        }
    }
}

/// How one run went.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) phase: Phase,
    /// From the first share to the decision, or to the limit.
    pub(crate) seconds: f64,
    /// First attempts that failed on the canary until its traffic was gone.
    pub(crate) failed: u64,
    /// Steps entered.
    pub(crate) step: usize,
    pub(crate) doubt: Option<Doubt>,
}

/// A caller's proxy: the share it runs, what it has sent and what it will report.
struct Proxy {
    id: InstanceId,
    caller: Caller,
    share: f64,
    /// Shares on their way: (tick of arrival, share).
    coming: Vec<(u64, f64)>,
    sent: SentShares,
    due: f64,
    /// Outcomes by the tick at which they are known.
    outcomes: std::collections::BTreeMap<u64, Vec<(Arm, bool)>>,
    failures: Vec<Failure>,
    window: [Attempts; 2],
    canary_before: u64,
}

const ORIGIN: Timestamp = Timestamp::UNIX_EPOCH;

/// Runs a scene to its end or its limit.
pub(crate) fn run(scene: &Scene, rng: &mut Rng) -> Run {
    let plan = scene.plan();
    let mut progress = Progress::new(&plan, ORIGIN);
    let mut proxies: Vec<Proxy> =
        (0..).zip(&scene.callers).map(|(i, caller)| Proxy::new(i, *caller)).collect();
    let mut published = (0, 0);
    let (mut failed, mut folded, mut step_reached) = (0, 0, 0);
    let mut doubt = None;
    let tick = scene.tick_ms;
    let ticks_per_window = 1_000 / tick;
    let (mut began_at, mut decided_at) = (None, None);
    let mut ended_at: Option<u64> = None;

    for n in 1..=scene.limit_s * ticks_per_window {
        let now = ORIGIN + SignedDuration::from_millis(i64::try_from(n * tick).expect("in range"));
        for proxy in &mut proxies {
            proxy.receive(n, now);
            let failing = proxy.send(scene, n, tick, rng);
            failed += if n * tick >= 1_000 * scene.count_from_s { failing } else { 0 };
        }
        if let Some(at) = ended_at {
            if n >= at {
                break;
            }
            continue;
        }
        let whole = n.is_multiple_of(ticks_per_window);
        let evidence = report(scene, &mut proxies, now, whole);
        folded += evidence.callers.iter().map(|heard| heard.failures.len() as u64).sum::<u64>();
        if scene.restart_every.is_some_and(|every| folded >= every) {
            folded = 0;
            let saved = serde_json::to_string(&progress.judge).expect("JSON");
            progress.judge = serde_json::from_str(&saved).expect("what was written");
        }
        let mut asked = objectives(&plan, &progress);
        asked.least_failures = scene.least_failures;
        let wealth = std::mem::replace(&mut progress.judge, Wealth::new(now));
        let (wealth, verdict) = judge(&asked, wealth, &evidence);
        progress.judge = wealth;
        doubt = if let Verdict::Unknown(doubt) = &verdict { Some(doubt.clone()) } else { None };
        let arrived = proxies.iter().all(|proxy| proxy.coming.is_empty());
        let acknowledged =
            arrived.then_some(Acknowledged { share: published.0, fail_safe_share: published.1 });
        let facts = Facts { canary_ready: 1, stable_ready: 1, acknowledged, asked: None };
        progress = step(&plan, &progress, &verdict, &facts, now).next;
        step_reached = step_reached.max(progress.step);
        if published != (progress.share, progress.fail_safe_share) {
            for proxy in &mut proxies {
                proxy.publish(progress.share, n, tick);
            }
            published = (progress.share, progress.fail_safe_share);
            began_at.get_or_insert(n);
        }
        if matches!(progress.phase, Phase::RollingBack | Phase::Promoting) {
            decided_at = Some(n);
            let slowest = scene.callers.iter().map(|caller| caller.delay_ms).max().unwrap_or(0);
            ended_at = Some(n + slowest.div_ceil(tick));
            if slowest == 0 {
                break;
            }
        }
    }
    let ticks = decided_at.unwrap_or(scene.limit_s * ticks_per_window) - began_at.unwrap_or(0);
    let seconds = (ticks * tick) as f64 / 1_000.0;
    Run { phase: progress.phase, seconds, failed, step: step_reached, doubt }
}

impl Proxy {
    fn new(i: usize, caller: Caller) -> Self {
        let mut sent = SentShares::default();
        sent.publish(0.0);
        Self {
            id: InstanceId::parse(&format!("caller-{i}")).expect("a name"),
            caller,
            share: 0.0,
            coming: Vec::new(),
            sent,
            due: 0.0,
            outcomes: std::collections::BTreeMap::new(),
            failures: Vec::new(),
            window: [Attempts::default(); 2],
            canary_before: 0,
        }
    }

    fn publish(&mut self, parts: u32, n: u64, tick: u64) {
        let share = f64::from(parts) / f64::from(FULL_SHARE);
        self.sent.publish(share);
        self.coming.push((n + self.caller.delay_ms.div_ceil(tick), share));
    }

    fn receive(&mut self, n: u64, now: Timestamp) {
        while self.coming.first().is_some_and(|(at, _)| *at < n) {
            self.share = self.coming.remove(0).1;
            if self.coming.is_empty() {
                self.sent.acknowledge(now);
            }
        }
    }

    /// Sends what is due in this tick; gives the canary requests that will fail.
    fn send(&mut self, scene: &Scene, n: u64, tick: u64, rng: &mut Rng) -> u64 {
        let t = (n * tick) as f64 / 1_000.0;
        let mut failing = 0;
        self.due += self.caller.rps * tick as f64 / 1_000.0;
        while self.due >= 1.0 {
            self.due -= 1.0;
            let arm = if rng.happens(self.share) { Arm::Canary } else { Arm::Stable };
            let rate = if arm == Arm::Canary { self.caller.canary } else { self.caller.stable };
            let fails = rng.happens(rate(t));
            failing += u64::from(fails && arm == Arm::Canary);
            self.window[arm as usize].started += 1;
            let takes = if fails { scene.takes_ms.0 } else { scene.takes_ms.1 };
            self.outcomes.entry(n + takes.div_ceil(tick)).or_default().push((arm, fails));
        }
        let later = self.outcomes.split_off(&(n + 1));
        for (arm, fails) in std::mem::replace(&mut self.outcomes, later).into_values().flatten() {
            self.window[arm as usize].ended += 1;
            if fails {
                self.window[arm as usize].failed += 1;
                self.failures.push(Failure { arm, instance: None });
            }
        }
        failing
    }
}

fn report(scene: &Scene, proxies: &mut [Proxy], now: Timestamp, whole: bool) -> Evidence {
    let mut evidence = Evidence { canary_endpoints: 1, senders: 1, ..Evidence::none(now) };
    for proxy in proxies {
        let Some(coin) = proxy.sent.coin(now, Millis(scene.route_timeout_ms)) else { continue };
        let mut failures = std::mem::take(&mut proxy.failures);
        let mut totals = None;
        if whole {
            let [canary, stable] = std::mem::take(&mut proxy.window);
            totals = Some(Totals { until: now, canary, stable, trusted: true });
            if scene.dies_with_failures && canary.failed > 0 {
                evidence.unreported += proxy.canary_before.max(1);
                (failures, totals) = (Vec::new(), None);
            }
            proxy.canary_before = canary.ended;
        }
        evidence.callers.push(CallerEvidence { caller: proxy.id.clone(), coin, failures, totals });
    }
    evidence
}
