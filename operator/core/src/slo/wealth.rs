//! The judge's accumulators: capital on every objective, a reserve, and the counts of the step.

use super::{
    Objectives,
    capital::{Capital, CoinFactors, RateFactors, ln_sum},
    certify::float,
    evidence::{Arm, CallerEvidence, Evidence},
    traffic::{Recent, Spell, SplitCheck},
    verdict::{Against, Breach, Counts},
};
use crate::id::InstanceId;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// The judge's accumulators for one attempt of one revision. Saved with the rollout's progress before anything acts on
/// them; what was read back goes on, it never starts again at 1.
///
/// `W = R + Σ capitals`, beginning with R = ½ and ½·v_k on objective k, v_k the same for each.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wealth {
    /// ln W at the last look; the release is taken back at ln(1/α).
    pub ln_wealth: f64,
    /// The plan's step the counts are about.
    pub step: usize,
    /// The canary's first attempts at this step.
    pub canary: Counts,
    /// Stable's first attempts at this step.
    pub stable: Counts,
    /// What complete windows of this step say of (canary, stable).
    ended: (u64, u64),
    ln_reserve: f64,
    /// Events so far (share changed, a spell of stable ended, an hour passed, restart).
    events: u32,
    event_at: Timestamp,
    /// The share judged last, in parts of the whole; a share of 0 between is no change.
    share: u32,
    /// Canary requests that failed in the whole attempt.
    canary_failed: u64,
    pub(super) certification: Certification,
    /// One per objective.
    capitals: Vec<Capital>,
    /// What the capitals would be without the canary failures of one endpoint or one caller.
    without: Vec<Without>,
    pub(super) split: SplitCheck,
    pub(super) recent: Recent,
    pub(super) spell: Spell,
    /// The end of the last complete window.
    totals_until: Timestamp,
}

/// Outcomes in complete windows of this step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Certification {
    pub(super) failed: u64,
    pub(super) clean: u64,
    /// Whether any window arrived.
    pub(super) begun: bool,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Without {
    contributor: Contributor,
    /// Its canary failures, since it is kept.
    failed: u64,
    capitals: Vec<Capital>,
}

/// Who can make a canary look bad alone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Contributor {
    /// A sick pod of a good release.
    Endpoint(InstanceId),
    /// A caller with a trouble of its own.
    Caller(InstanceId),
}

/// What the evidence against the canary came to in one batch.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Case {
    /// Not enough.
    Open,
    /// Enough, but only with this contributor's failures.
    OneOnly(Contributor),
    /// Enough.
    Proven(Breach),
}

/// Endpoints and callers whose share in the evidence is kept at the same time.
const MOST_CONTRIBUTORS: usize = 64;

impl Wealth {
    /// The wealth an attempt begins with.
    pub fn new(now: Timestamp) -> Self {
        Self {
            ln_wealth: 0.0,
            step: 0,
            canary: Counts::default(),
            stable: Counts::default(),
            ended: (0, 0),
            ln_reserve: libm::log(0.5),
            events: 0,
            event_at: now,
            share: 0,
            canary_failed: 0,
            certification: Certification::default(),
            capitals: Vec::new(),
            without: Vec::new(),
            split: SplitCheck::default(),
            recent: Recent::since(now),
            spell: Spell::default(),
            totals_until: now,
        }
    }

    /// Whether so much happened since `saved` was saved that it must be saved again before the usual time: the
    /// wealth doubled, or there was an event.
    pub fn outgrew(&self, saved: &Wealth) -> bool {
        self.events != saved.events
            || self.step != saved.step
            || self.ln_wealth >= saved.ln_wealth + std::f64::consts::LN_2
    }

    /// Learns how much traffic there is before the canary has a share of it.
    pub(super) fn wait(&mut self, evidence: &Evidence) {
        self.recent.pass(evidence.at);
        for totals in evidence.callers.iter().filter_map(|heard| heard.totals.as_ref()) {
            self.recent.add(totals);
            self.totals_until = self.totals_until.max(totals.until);
        }
    }

    /// Fits the accumulators to what is judged now and lets time pass. Says whether they were read back.
    pub(super) fn enter(&mut self, objectives: &Objectives, now: Timestamp) -> bool {
        self.recent.pass(now);
        let control = objectives.has_control();
        if self.capitals.is_empty() {
            let each = libm::log(0.5) - ln_count(objectives);
            self.capitals = objectives.list.iter().map(|o| Capital::new(each, o, control)).collect();
            (self.step, self.share) = (objectives.step, objectives.share);
            return false;
        }
        let resumed = self.capitals.iter().any(Capital::is_saved);
        let without = self.without.iter_mut().map(|without| &mut without.capitals);
        for capitals in std::iter::once(&mut self.capitals).chain(without) {
            fit(capitals, objectives, control);
        }
        let moved = objectives.share != self.share;
        if moved || self.step != objectives.step {
            self.step = objectives.step;
            (self.canary, self.stable) = (Counts::default(), Counts::default());
            self.ended = (0, 0);
            self.certification = Certification::default();
        }
        if moved {
            self.share = objectives.share;
            self.split = SplitCheck::default();
        }
        let hour = now.duration_since(self.event_at) >= SignedDuration::from_hours(1);
        if resumed || moved || hour {
            self.event(objectives, now);
        }
        resumed
    }

    /// Moves γ_n = ½/(n(n+1)) from the reserve into the cells: an endless product would go blind after long health,
    /// and a fresh start would spend α again. What is left is R = ½/(n+1).
    fn event(&mut self, objectives: &Objectives, now: Timestamp) {
        self.events = self.events.saturating_add(1);
        self.event_at = now;
        let n = f64::from(self.events);
        self.ln_reserve = libm::log(0.5 / (n + 1.0));
        let each = ln_moved(n) - ln_count(objectives);
        let without = self.without.iter_mut().flat_map(|without| &mut without.capitals);
        for capital in self.capitals.iter_mut().chain(without) {
            capital.add(each);
        }
    }

    /// Folds a batch, looking after every canary failure.
    pub(super) fn fold(&mut self, objectives: &Objectives, evidence: &Evidence) -> Case {
        let control = objectives.has_control();
        let rates: Vec<RateFactors> = objectives.list.iter().map(|o| RateFactors::new(o, control)).collect();
        let coin_is_fair = !self.split.is_unfair(objectives.w());
        self.read_totals(objectives, evidence, &rates);

        let mut case = Case::Open;
        for heard in &evidence.callers {
            if heard.failures.is_empty() {
                continue;
            }
            let unseen = self.unseen(objectives, heard, evidence.at);
            let unseen: Vec<Vec<f64>> = rates.iter().map(|rate| rate.unseen(unseen)).collect();
            let coin = |rho: f64| CoinFactors::new(heard.coin.share, rho).filter(|_| control && coin_is_fair);
            let coins: Vec<_> = objectives.list.iter().map(|o| coin(o.worse_than_stable)).collect();
            for failure in &heard.failures {
                match failure.arm {
                    Arm::Stable => self.stable_failed(&coins),
                    Arm::Canary => {
                        let endpoint = failure.instance.clone().map(Contributor::Endpoint);
                        let caller = Contributor::Caller(heard.caller.clone());
                        self.canary_failed(&coins, &rates, endpoint.into_iter().chain([caller]));
                        if !matches!(case, Case::Proven(_)) {
                            case = self.look(objectives, evidence, &unseen, case);
                        }
                    }
                }
            }
        }
        // Failures run ahead of totals.
        self.canary.ended = self.ended.0.max(self.canary.failed);
        self.stable.ended = self.ended.1.max(self.stable.failed);
        if let Case::Proven(breach) = &mut case {
            // The counts are told as they stand after the batch, the wealth as it was when it sufficed.
            (breach.canary, breach.stable) = (self.canary, self.stable);
        }
        self.ln_wealth = self.ln_wealth_now(&[]);
        case
    }

    /// Everything that only complete windows tell.
    fn read_totals(&mut self, objectives: &Objectives, evidence: &Evidence, rates: &[RateFactors]) {
        self.certification.failed = self.certification.failed.saturating_add(evidence.unreported);
        for heard in &evidence.callers {
            let Some(totals) = &heard.totals else { continue };
            let clean = totals.canary.ended.saturating_sub(totals.canary.failed);
            self.certification.begun = true;
            self.certification.failed = self.certification.failed.saturating_add(totals.canary.failed);
            if totals.trusted {
                self.certification.clean = self.certification.clean.saturating_add(clean);
            }
            self.ended.0 = self.ended.0.saturating_add(totals.canary.ended);
            self.ended.1 = self.ended.1.saturating_add(totals.stable.ended);
            self.recent.add(totals);
            self.totals_until = self.totals_until.max(totals.until);
            #[expect(
                clippy::float_cmp,
                reason = "both are the same quotient of whole parts, or another share"
            )]
            if heard.coin.settled && heard.coin.share == objectives.w() {
                self.split.add(totals);
            }
            let without = self.without.iter_mut().map(|without| &mut without.capitals);
            for capitals in std::iter::once(&mut self.capitals).chain(without) {
                for (capital, rate) in capitals.iter_mut().zip(rates) {
                    capital.canary_succeeded(rate, float(clean));
                }
            }
        }
    }

    /// Canary requests that may have succeeded since the last complete window. Failures arrive before the totals of
    /// their window, and a rate of failures without its successes would look worse than it is; so twice the rate
    /// lately is assumed. Infinite before the first window: nothing is known of a rate then.
    fn unseen(&self, objectives: &Objectives, heard: &CallerEvidence, now: Timestamp) -> f64 {
        let gap = now.duration_since(self.totals_until).as_secs_f64().max(0.0);
        let share = f64::max(objectives.w(), heard.coin.share);
        self.recent.rps().map_or(f64::INFINITY, |rps| 2.0 * rps * share * gap)
    }

    fn stable_failed(&mut self, coins: &[Option<CoinFactors>]) {
        self.stable.failed = self.stable.failed.saturating_add(1);
        let without = self.without.iter_mut().map(|without| &mut without.capitals);
        for capitals in std::iter::once(&mut self.capitals).chain(without) {
            for (capital, coin) in capitals.iter_mut().zip(coins) {
                capital.stable_failed(coin.as_ref());
            }
        }
    }

    fn canary_failed(
        &mut self,
        coins: &[Option<CoinFactors>],
        rates: &[RateFactors],
        contributors: impl Iterator<Item = Contributor>,
    ) {
        self.canary.failed = self.canary.failed.saturating_add(1);
        self.canary_failed = self.canary_failed.saturating_add(1);
        let contributors: Vec<Contributor> = contributors.collect();
        for contributor in &contributors {
            match self.without.iter_mut().find(|without| without.contributor == *contributor) {
                Some(known) => known.failed = known.failed.saturating_add(1),
                None => self.keep(contributor.clone()),
            }
        }
        let others = self.without.iter_mut().filter(|without| !contributors.contains(&without.contributor));
        let others = others.map(|without| &mut without.capitals);
        for capitals in std::iter::once(&mut self.capitals).chain(others) {
            for ((capital, coin), rate) in capitals.iter_mut().zip(coins).zip(rates) {
                capital.canary_failed(coin.as_ref(), rate);
            }
        }
    }

    /// Begins to keep what the capitals are without one more contributor: nothing folded so far came from it. Where
    /// very many contribute, those with the fewest failures cannot be what a breach hangs on.
    fn keep(&mut self, contributor: Contributor) {
        if self.without.len() >= MOST_CONTRIBUTORS {
            let fewest = (0..self.without.len()).min_by_key(|&i| self.without[i].failed);
            fewest.map(|i| self.without.remove(i));
        }
        self.without.push(Without { contributor, failed: 1, capitals: self.capitals.clone() });
    }

    fn look(&self, objectives: &Objectives, evidence: &Evidence, unseen: &[Vec<f64>], before: Case) -> Case {
        let ln_bound = -libm::log(objectives.false_rollback);
        let ln_wealth = self.ln_wealth_now(unseen);
        if ln_wealth < ln_bound || self.canary_failed < objectives.least_failures {
            return before;
        }
        for Without { contributor, capitals, .. } in &self.without {
            let others = match contributor {
                Contributor::Endpoint(_) => evidence.canary_endpoints,
                Contributor::Caller(_) => evidence.senders,
            };
            if others >= 2 && ln_worth(self.ln_reserve, capitals, unseen) < ln_bound {
                return Case::OneOnly(contributor.clone());
            }
        }
        let Some(worst) = self.worst(objectives) else { return before };
        Case::Proven(Breach {
            objective: worst.name.clone(),
            against: if objectives.has_control() { Against::Stable } else { Against::Max(worst.max) },
            canary: self.canary,
            stable: self.stable,
            ln_wealth,
            false_rollback: objectives.false_rollback,
        })
    }

    /// The objective with the largest capital.
    pub(super) fn worst<'a>(&self, objectives: &'a Objectives) -> Option<&'a super::Objective> {
        let worths = self.capitals.iter().map(|capital| capital.ln_worth(&[]));
        let worst = worths.zip(&objectives.list).reduce(|a, b| if b.0 > a.0 { b } else { a });
        worst.map(|(_, objective)| objective)
    }

    /// Watches whether stable breaches the strictest objective itself. The failures of both arms in such a spell
    /// wear the capital down; its end is an event if that made it worth less than what the event brings.
    pub(super) fn watch_stable(&mut self, objectives: &Objectives, evidence: &Evidence) {
        let max = objectives.strictest().map_or(1.0, |objective| objective.max);
        let totals = evidence.callers.iter().filter_map(|heard| heard.totals.as_ref());
        let mut over = false;
        for totals in totals {
            over |= self.spell.add(totals, max);
        }
        let n = f64::from(self.events.saturating_add(1));
        let worn =
            self.capitals.iter().any(|capital| capital.ln_worth(&[]) < ln_moved(n) - ln_count(objectives));
        if over && worn {
            self.event(objectives, evidence.at);
        }
    }

    fn ln_wealth_now(&self, unseen: &[Vec<f64>]) -> f64 {
        ln_worth(self.ln_reserve, &self.capitals, unseen)
    }
}

/// ln γ_n.
fn ln_moved(n: f64) -> f64 {
    libm::log(0.5 / (n * (n + 1.0)))
}

fn ln_worth(ln_reserve: f64, capitals: &[Capital], unseen: &[Vec<f64>]) -> f64 {
    let mut terms = vec![ln_reserve];
    for (k, capital) in capitals.iter().enumerate() {
        terms.push(capital.ln_worth(unseen.get(k).map_or(&[], Vec::as_slice)));
    }
    ln_sum(&terms)
}

/// Fits capitals to the objectives; if those are more or fewer than before, all they are worth is spread anew.
fn fit(capitals: &mut Vec<Capital>, objectives: &Objectives, control: bool) {
    if capitals.len() == objectives.list.len() {
        for (capital, objective) in capitals.iter_mut().zip(&objectives.list) {
            capital.fit(objective, control);
        }
    } else {
        let worths: Vec<f64> = capitals.iter().map(|capital| capital.ln_worth(&[])).collect();
        let each = ln_sum(&worths) - ln_count(objectives);
        *capitals = objectives.list.iter().map(|o| Capital::new(each, o, control)).collect();
    }
}

#[expect(clippy::cast_precision_loss, reason = "a handful")]
fn ln_count(objectives: &Objectives) -> f64 {
    libm::log(objectives.list.len() as f64)
}
