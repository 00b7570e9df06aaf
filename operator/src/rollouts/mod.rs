//! Judges every rollout and takes its steps: evidence → verdict → step → status. Nothing is acted on before it is
//! written: a step's shares reach the proxies by way of the status.

mod evidence;
#[cfg(test)]
pub(crate) mod tests;

use crate::{
    apply::{Memory, NotRemembered, Status},
    clock::Clock,
    control::Picture,
    fleet::Fleet,
    milestone::{Milestone, planned},
    signals::Signals,
};
use airlane_api::quantity::Share;
use airlane_core::{
    id::{ClusterName, InstanceId, ObjectId, Revision},
    mesh::{Destination, FULL_SHARE, Route},
    policy::Millis,
    rollout::{Acknowledged, Canary, Facts, Phase, Progress, Step, objectives, step},
    slo::{Arm, judge},
};
use evidence::{Comparison, Gatherer, Surroundings, Usage};
use futures::future::{join, join_all};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::signals::intake::{Complete, Failure};

/// How often rollouts are looked at without a failure: windows of totals arrive each second.
const LOOK: Duration = Duration::from_millis(200);

/// Failures that arrive together are judged together: proxies flush their logs every 100 ms, so waiting a little
/// costs little and saves a write per failure.
const GATHER: Duration = Duration::from_millis(5);

/// The judge's sums are saved at least this often.
const SAVE_EVERY: SignedDuration = SignedDuration::from_secs(10);

/// What people read in the status is no older than this.
const TELL_EVERY: SignedDuration = SignedDuration::from_secs(2);

/// How long a request may last where nothing limits it: what is assumed of outcomes after a change of the share.
const UNLIMITED: Millis = Millis(15_000);

/// Everything the rollouts need.
pub(crate) struct Rollouts {
    /// What was observed and decided.
    pub(crate) picture: watch::Receiver<Option<Picture>>,
    /// What proxies reported.
    pub(crate) signals: Signals,
    /// What proxies acknowledged.
    pub(crate) fleet: Fleet,
    /// Where steps are written.
    pub(crate) memory: Arc<dyn Memory>,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
}

/// One rollout under way. `progress` is ahead of what was saved by evidence only, never by a step.
struct Trial {
    gatherer: Gatherer,
    progress: Progress,
    saved: Progress,
    /// What is remembered of it: `saved`, or nothing before its first step.
    remembered: Option<Progress>,
    saved_at: Timestamp,
}

/// A trial that another operator went on with.
struct Superseded;

/// What is new since the last look.
struct News {
    failures: Vec<(InstanceId, Failure)>,
    windows: Vec<Complete>,
    now: Timestamp,
}

impl Rollouts {
    /// Runs until shutdown.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        // Reports from before were another judge's to take.
        self.signals.with(|intake| (intake.take_failures(), intake.take_windows(self.clock.now())));
        let mut trials: BTreeMap<ObjectId, Trial> = BTreeMap::new();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = look.tick() => {}
                () = self.signals.failure_logged() => tokio::time::sleep(GATHER).await,
                changed = self.picture.changed() => if changed.is_err() { return },
            }
            if self.picture.borrow().is_none() {
                continue;
            }
            let now = self.clock.now();
            let (failures, windows) =
                self.signals.with(|intake| (intake.take_failures(), intake.take_windows(now)));
            let news = News { failures, windows, now };
            // Looked at after the failures were taken: none of them stems from shares newer than the picture's.
            let Some(picture) = self.picture.borrow_and_update().clone() else { continue };
            self.signals.with(|intake| intake.retain(|caller| picture.world.instances.contains_key(caller)));
            let governing: Vec<&Arc<Canary>> =
                picture.world.canaries.values().filter(|canary| governs(&picture, &canary.id)).collect();
            trials.retain(|id, _| governing.iter().any(|canary| canary.id == *id));
            for canary in &governing {
                trials.entry(canary.id.clone()).or_insert_with(|| {
                    let running = canary.progress.as_ref().is_some_and(|progress| progress.share > 0);
                    let unheard = if running { self.unheard(&picture) } else { BTreeSet::new() };
                    Trial::resume(canary, unheard, now)
                });
            }
            // All at once: a write that takes long must not hold up another rollout's way back.
            let turns = trials.iter_mut().filter_map(|(id, trial)| {
                let canary = governing.iter().find(|canary| canary.id == *id)?;
                let turn = self.turn(canary, trial, &picture, &news);
                Some(async move { turn.await.map_err(|Superseded| id.clone()) })
            });
            let (turned, ()) = join(join_all(turns), self.forget_deleted(&picture)).await;
            for superseded in turned.into_iter().filter_map(Result::err) {
                trials.remove(&superseded);
            }
        }
    }

    /// Proxies that make calls and have not reported to this operator yet.
    fn unheard(&self, picture: &Picture) -> BTreeSet<InstanceId> {
        let callers = picture.world.instances.values().filter(|instance| instance.outbound_port != 0);
        let callers = callers.map(|instance| instance.id.clone());
        self.signals.with(|intake| callers.filter(|id| intake.last_heard_at(id).is_none()).collect())
    }

    /// A canary whose object was deleted begins anew when it comes back, unless it was taken back: deleting and writing
    /// it again is no retry. While a file cannot be read, what it held may still be wanted.
    async fn forget_deleted(&self, picture: &Picture) {
        if !picture.declared.errors.is_empty() {
            return;
        }
        let remembered = self.memory.statuses();
        let deleted = remembered.iter().filter(|(id, _)| !picture.world.canaries.contains_key(*id));
        for (id, _) in deleted.filter(|(_, status)| !was_taken_back(status)) {
            if let Err(error) = self.memory.forget(id).await {
                tracing::warn!(canary = %id, error = &error as &dyn std::error::Error, "a deleted canary is not forgotten yet");
            }
        }
    }

    /// Judges one rollout and takes its step.
    ///
    /// # Errors
    /// If the trial is not the memory's any more, and has to be resumed from what another operator wrote.
    async fn turn(
        &self,
        canary: &Canary,
        trial: &mut Trial,
        picture: &Picture,
        news: &News,
    ) -> Result<(), Superseded> {
        let plan = &canary.plan;
        if *trial.gatherer.comparison() != comparison(canary) {
            let share = probability(trial.progress.share);
            let senders = trial.gatherer.senders(news.now).map(|(caller, _)| caller.clone()).collect();
            trial.gatherer = Gatherer::new(comparison(canary), share, senders, news.now);
        }
        let site = Site::of(canary, picture);
        trial.note_coin(canary, &site);
        self.note_usage(trial, &site, news.now);
        let around = Surroundings {
            endpoints: &site.endpoints,
            canary_endpoints: site.canary_ready,
            // Before its first share nobody calls the canary, whoever would answer.
            stood_in: site.stood_in.filter(|_| trial.progress.share.max(trial.progress.fail_safe_share) > 0),
            route_timeout: site.route_timeout,
            instances: &picture.world.instances,
        };
        let evidence = trial.gatherer.gather(&news.failures, &news.windows, &around, news.now);
        let (wealth, verdict) =
            judge(&objectives(plan, &trial.progress), trial.progress.judge.clone(), &evidence);
        trial.progress.judge = wealth;
        let asked = self.memory.statuses().get(&canary.id).and_then(|status| status.asked);
        let facts = Facts {
            canary_ready: site.canary_ready,
            stable_ready: site.stable_ready,
            acknowledged: self.acknowledged(canary, picture),
            asked,
        };
        let Step { next, because, refused, .. } = step(plan, &trial.progress, &verdict, &facts, news.now);
        if let Some(refused) = &refused {
            tracing::warn!(canary = %canary.id, "{refused}");
        }
        let moved = because.is_some() || asked.is_some();
        if !(moved || trial.is_due(&next, news.now)) {
            trial.progress = next;
            return Ok(());
        }
        if next.share != trial.progress.share {
            trial.gatherer.publish(probability(next.share));
        }
        match self.memory.step(canary, trial.remembered.as_ref(), next.clone(), asked).await {
            Ok(()) => {
                if let Some(because) = &because {
                    tracing::info!(canary = %canary.id, phase = ?next.phase, share = %Share::from_parts(next.share), "{because}");
                }
                trial.saved = next.clone();
                trial.remembered = Some(next.clone());
                trial.saved_at = news.now;
                trial.progress = next;
            }
            Err(NotRemembered::Stale) => {
                tracing::warn!(canary = %canary.id, "another operator wrote in between; resuming from that");
                return Err(Superseded);
            }
            Err(error) => {
                // What was learnt stays learnt; the step is decided anew at the next look.
                tracing::error!(canary = %canary.id, error = &error as &dyn std::error::Error, "a step could not be written");
                trial.progress.judge = next.judge;
            }
        }
        Ok(())
    }

    /// Tells the books which callers use the shares that are published.
    fn note_usage(&self, trial: &mut Trial, site: &Site, now: Timestamp) {
        let published = site.canary_share() == Some(trial.gatherer.share());
        trial.gatherer.note_usage(|caller| match self.fleet.acked_shares(caller) {
            Some((shares, since))
                if published && site.shares.iter().all(|(key, share)| shares.get(key) == Some(share)) =>
            {
                Usage::Current(since.min(now))
            }
            _ => Usage::Uncertain,
        });
    }

    /// The shares that every connected proxy runs.
    fn acknowledged(&self, canary: &Canary, picture: &Picture) -> Option<Acknowledged> {
        let shares = planned(canary)?;
        self.fleet.all_reached(picture, &Milestone::shares(&canary.id, shares)).then_some(shares)
    }
}

impl Trial {
    /// `unheard` are callers that have to report before anything is certified.
    fn resume(canary: &Canary, unheard: BTreeSet<InstanceId>, now: Timestamp) -> Self {
        let progress = canary.progress.clone().unwrap_or_else(|| Progress::new(&canary.plan, now));
        Trial {
            gatherer: Gatherer::new(comparison(canary), probability(progress.share), unheard, now),
            saved: progress.clone(),
            remembered: canary.progress.clone(),
            progress,
            saved_at: now,
        }
    }

    /// Whether what was learnt without a step is worth a write.
    fn is_due(&self, next: &Progress, now: Timestamp) -> bool {
        let age = now.duration_since(self.saved_at);
        let told = next.because == self.saved.because && next.needs == self.saved.needs;
        let untold = age >= TELL_EVERY && !told;
        if matches!(next.phase, Phase::Idle | Phase::RolledBack | Phase::Succeeded) {
            // Nothing is judged: the sums only follow the traffic.
            return untold;
        }
        untold || age >= SAVE_EVERY || next.judge.outgrew(&self.saved.judge)
    }

    /// Notes the coin that is published.
    fn note_coin(&mut self, canary: &Canary, site: &Site) {
        // A step that was saved a moment ago is published with the next picture.
        if planned(canary).is_some_and(|planned| planned.share == self.progress.share)
            && let Some(share) = site.canary_share()
        {
            self.gatherer.publish(share);
        }
    }
}

/// What the mesh looks like to one rollout.
struct Site {
    endpoints: HashMap<SocketAddr, InstanceId>,
    canary_ready: usize,
    stable_ready: usize,
    stood_in: Option<Arm>,
    route_timeout: Millis,
    /// The canary's current shares as published: runtime key and parts of the whole, for each port that is split.
    shares: Vec<(String, u32)>,
}

impl Site {
    fn of(canary: &Canary, picture: &Picture) -> Self {
        let destinations: Vec<&Arc<Destination>> = picture
            .compiled
            .mesh
            .destinations
            .values()
            .filter(|destination| destination.port.service == canary.plan.service)
            .collect();
        let clusters = || destinations.iter().flat_map(|destination| &destination.clusters);
        // Others may stand in for stable; they are not stable.
        let is_of = |instance: &InstanceId, revision: &Revision| {
            picture.world.instances.get(instance).is_some_and(|it| it.revision() == revision)
        };
        // Every port of a service has the same copies behind it.
        let ready = |revision: &Revision| {
            clusters()
                .filter(|cluster| cluster.name.revision.as_ref() == Some(revision))
                .map(|cluster| {
                    let healthy = cluster.endpoints.iter().filter(|endpoint| endpoint.healthy);
                    healthy.filter(|endpoint| is_of(&endpoint.instance, revision)).count()
                })
                .max()
                .unwrap_or(0)
        };
        Site {
            endpoints: clusters()
                .flat_map(|cluster| cluster.endpoints.iter())
                .map(|endpoint| (endpoint.address, endpoint.instance.clone()))
                .collect(),
            canary_ready: ready(&canary.plan.canary),
            stable_ready: ready(&canary.plan.stable),
            stood_in: clusters().find(|cluster| !cluster.stand_ins.is_empty()).map(|cluster| {
                let canary = cluster.name.revision.as_ref() == Some(&canary.plan.canary);
                if canary { Arm::Canary } else { Arm::Stable }
            }),
            route_timeout: destinations
                .iter()
                .map(|destination| destination.calls.request_timeout.unwrap_or(UNLIMITED))
                .max()
                .unwrap_or(UNLIMITED),
            shares: destinations
                .iter()
                .filter_map(|destination| match &destination.route {
                    Route::Split(split) => {
                        let revision = Some(canary.plan.canary.clone());
                        let cluster = ClusterName { port: destination.port.clone(), revision };
                        let key = split.runtime_key(&cluster);
                        let share = *picture.compiled.mesh.shares.get(&key)?;
                        Some((key, share))
                    }
                    Route::To(_) => None,
                })
                .collect(),
        }
    }

    /// The probability of the canary as it is published. Ports that differ (one has no healthy endpoint) are judged
    /// by the largest: that is the conservative one.
    fn canary_share(&self) -> Option<f64> {
        self.shares.iter().map(|(_, share)| probability(*share)).reduce(f64::max)
    }
}

fn was_taken_back(status: &Status) -> bool {
    let phase = status.progress.as_ref().map(|progress| progress.phase);
    matches!(phase, Some(Phase::RollingBack | Phase::RolledBack))
}

/// Whether a canary decides about its service, and not another one or nobody.
fn governs(picture: &Picture, id: &ObjectId) -> bool {
    let mut problems = picture.compiled.problems.iter();
    !problems.any(|problem| problem.subject == *id && problem.reason.stands_aside())
}

fn comparison(canary: &Canary) -> Comparison {
    let plan = &canary.plan;
    Comparison { service: plan.service.clone(), stable: plan.stable.clone(), canary: plan.canary.clone() }
}

fn probability(share: u32) -> f64 {
    f64::from(share) / f64::from(FULL_SHARE)
}
