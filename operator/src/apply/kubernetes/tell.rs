//! What became of policies and canaries, told in their statuses: on semantic change only.

use super::{Writer, events::note, fenced::WriteError};
use crate::{
    control::Picture,
    fleet::Census,
    observe::{
        declared::Accepted,
        kubernetes::{self as shapes, Kept},
    },
    standing::Standings,
};
use airlane_api::{
    Value,
    status::{CanaryStatus, MeshPolicyStatus, Proxies},
};
use airlane_core::{
    id::{ObjectId, ObjectKind},
    problem::Problem,
};
use kube::runtime::events::{Event, EventType};
use serde::Deserialize as _;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Changes that come together are told together: acknowledgements come by the hundred.
const GATHER: Duration = Duration::from_millis(100);

/// A status that differs in its counts alone is written no more often than this.
const COUNT_EVERY: Duration = Duration::from_secs(2);

/// Every proxy that comes or goes changes the counts of all policies: of many policies together they are written no more
/// often than this.
const COUNT_GAP: Duration = Duration::from_millis(200);

/// After a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps statuses as they should be.
pub(crate) struct Teller {
    /// Writes.
    pub(crate) writer: Writer,
}

/// What is remembered of objects between two looks.
#[derive(Default)]
struct Looks {
    sent: HashMap<ObjectId, Sent>,
    /// Of what the policies' statuses were found to say what they should.
    settled: HashMap<ObjectId, Basis>,
}

/// Everything that statuses are made of, at one look.
struct Moment<'a> {
    picture: &'a Picture,
    standings: Standings<'a>,
    census: Census,
    count_every: Duration,
}

/// What was written last to a policy, and when.
struct Sent {
    over: String,
    status: serde_json::Value,
    at: Duration,
}

/// All that decides whether a policy's status is written.
#[derive(PartialEq)]
struct Basis {
    resource_version: String,
    generation: i64,
    problems: Vec<Problem>,
    proxies: Proxies,
}

/// Whether a policy's status is to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Due {
    /// It says what it should.
    Never,
    /// It tells something else.
    Now,
    /// Only its counts differ.
    Eventually,
}

impl Teller {
    /// Tells until shutdown. To be run by the leader alone.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        self.writer.begin();
        let inner = &self.writer.0;
        let mut picture = inner.picture.clone();
        let mut kept = inner.observed.kept.clone();
        let mut movement = inner.fleet.movement();
        let mut looks = Looks::default();
        // What the leader before counted is not told otherwise before as many are heard of.
        let first = picture.wait_for(Option::is_some).await.ok().and_then(|picture| picture.clone());
        if let Some(picture) = first {
            inner.fleet.gathered(&picture).await;
        }
        loop {
            let again = self.look(&mut looks).await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = picture.changed() => if changed.is_err() { return },
                changed = kept.changed() => if changed.is_err() { return },
                goes_on = movement.changed() => if !goes_on { return },
                () = pause(again) => continue,
            }
            sleep(GATHER).await;
            picture.mark_unchanged();
            kept.mark_unchanged();
            movement.mark_unchanged();
        }
    }

    /// Writes what differs. Gives the time after which to look again though nothing changes.
    async fn look(&self, looks: &mut Looks) -> Option<Duration> {
        let inner = &self.writer.0;
        let picture = inner.picture.borrow().clone()?;
        let refusals = inner.fleet.refusals();
        let kept: Arc<BTreeMap<ObjectId, Kept>> = inner.observed.kept.borrow().clone();
        looks.sent.retain(|id, _| kept.contains_key(id));
        looks.settled.retain(|id, _| kept.contains_key(id));
        let mut again: Option<Duration> = None;
        let mut sooner = |pause: Duration| again = Some(again.map_or(pause, |again| again.min(pause)));
        let moment = Moment {
            picture: &picture,
            standings: Standings::of(&picture, &refusals),
            census: inner.fleet.census(),
            count_every: count_every(kept.len()),
        };
        for (id, kept) in &*kept {
            let written = match id.kind {
                ObjectKind::MeshPolicy => self.policy(id, kept, &moment, looks).await,
                ObjectKind::Canary => self.canary(id, kept, &moment).await.map(|()| Told::AsItIs),
                ObjectKind::Service => continue,
            };
            match written {
                Ok(Told::AsItIs) => {}
                Ok(Told::Later(pause)) => sooner(pause),
                Ok(Told::Wrote(status)) => {
                    let over = kept.resource_version.clone();
                    let at = self.writer.0.clock.uptime();
                    looks.sent.insert(id.clone(), Sent { over, status, at });
                }
                // News of the other version is under way.
                Err(WriteError::Changed | WriteError::Gone) => {}
                Err(error) => {
                    tracing::warn!(object = %id, error = &error as &dyn std::error::Error, "a status was not written");
                    sooner(RETRY);
                }
            }
        }
        again
    }

    async fn policy(
        &self,
        id: &ObjectId,
        kept: &Kept,
        &Moment { picture, ref standings, ref census, count_every }: &Moment<'_>,
        looks: &mut Looks,
    ) -> Result<Told, WriteError> {
        let Some(accepted) = in_force(id, kept, picture) else { return Ok(Told::AsItIs) };
        let basis = Basis {
            resource_version: kept.resource_version.clone(),
            generation: accepted.generation,
            problems: standings.problems_of(id),
            proxies: standings.proxies(id, census),
        };
        if looks.settled.get(id) == Some(&basis) {
            return Ok(Told::AsItIs);
        }
        let sent = looks.sent.get(id);
        let status = MeshPolicyStatus::of(basis.generation, &basis.problems, basis.proxies);
        let mut status = serde_json::to_value(status)?;
        self.writer.date(&mut status, &kept.status["conditions"]);
        if sent.is_some_and(|sent| sent.over == kept.resource_version && sent.status == status) {
            return Ok(Told::AsItIs);
        }
        let waited = sent.map_or(count_every, |sent| self.writer.0.clock.uptime().saturating_sub(sent.at));
        match due(&kept.status, &status) {
            Due::Never => {
                looks.settled.insert(id.clone(), basis);
                return Ok(Told::AsItIs);
            }
            Due::Eventually if waited < count_every => return Ok(Told::Later(count_every - waited)),
            Due::Eventually | Due::Now => {}
        }
        let Kept { uid, resource_version, .. } = kept;
        self.writer.apply::<shapes::MeshPolicy>(id, uid, resource_version, &status).await?;
        self.tell_problems(id, kept, &basis.problems, &status);
        Ok(Told::Wrote(status))
    }

    /// An event for each first problem of an object that it did not have before.
    fn tell_problems(&self, id: &ObjectId, kept: &Kept, problems: &[Problem], status: &serde_json::Value) {
        if kept.status["problems"] == status["problems"] {
            return;
        }
        if let Some(problem) = problems.first() {
            let event = Event {
                type_: EventType::Warning,
                reason: problem.reason.to_string(),
                note: Some(note(&match &*problem.field {
                    "" => problem.message.clone(),
                    field => format!("{field}: {}", problem.message),
                })),
                action: "Read".to_owned(),
                secondary: None,
            };
            self.writer.announce(id, &kept.uid, event);
        }
    }

    async fn canary(
        &self,
        id: &ObjectId,
        kept: &Kept,
        Moment { picture, standings, .. }: &Moment<'_>,
    ) -> Result<(), WriteError> {
        let Some(accepted) = in_force(id, kept, picture) else { return Ok(()) };
        if let Some(Value::Canary(_)) = &accepted.value {
            return match picture.world.canaries.get(id) {
                // What its memory says is not ours to mend while it cannot be read.
                Some(canary) if shapes::memory(&kept.status).is_ok() => self.writer.amend(canary).await,
                _ => Ok(()),
            };
        }
        let problems = standings.problems_of(id);
        let before = CanaryStatus::deserialize(&kept.status).unwrap_or_default();
        let status =
            CanaryStatus { memory: before.memory, ..CanaryStatus::refused(accepted.generation, &problems) };
        let mut status = serde_json::to_value(status)?;
        self.writer.date(&mut status, &kept.status["conditions"]);
        if due(&kept.status, &status) == Due::Never {
            return Ok(());
        }
        let Kept { uid, resource_version, .. } = kept;
        self.writer.apply::<shapes::Canary>(id, uid, resource_version, &status).await?;
        self.tell_problems(id, kept, &problems, &status);
        Ok(())
    }
}

/// What is in force of an object. What is still in force of one that it replaces is not said of it.
fn in_force<'a>(id: &ObjectId, kept: &Kept, picture: &'a Picture) -> Option<&'a Arc<Accepted>> {
    picture.declared.objects.get(id).filter(|accepted| accepted.uid == kept.uid)
}

/// How often the counts of each of so many objects may be written.
fn count_every(objects: usize) -> Duration {
    COUNT_EVERY.max(COUNT_GAP.saturating_mul(u32::try_from(objects).unwrap_or(u32::MAX)))
}

async fn pause(again: Option<Duration>) {
    match again {
        Some(pause) => sleep(pause).await,
        None => std::future::pending().await,
    }
}

enum Told {
    AsItIs,
    Wrote(serde_json::Value),
    Later(Duration),
}

/// Compares a status as it is with the one that it should be.
fn due(is: &serde_json::Value, should: &serde_json::Value) -> Due {
    if is == should {
        return Due::Never;
    }
    let uncounted = |status: &serde_json::Value| {
        let mut status = status.clone();
        if let Some(status) = status.as_object_mut() {
            status.remove("proxies");
        }
        for condition in status["conditions"].as_array_mut().into_iter().flatten() {
            condition.as_object_mut().and_then(|condition| condition.remove("message"));
        }
        status
    };
    if uncounted(is) == uncounted(should) { Due::Eventually } else { Due::Now }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        enrol::ties::tests::{permissive, picture_of},
        fleet::{Fleet, Reported},
        observe::{
            declared::Declared,
            kubernetes::{Observed, Seen},
        },
        scripted_api,
        xds::Publisher,
    };
    use airlane_core::id::InstanceId;
    use http::Method;
    use std::sync::Mutex;
    use tokio::sync::watch;

    /// A teller that sees a policy; in force is that of the uid `a`.
    struct Setting {
        teller: Teller,
        looks: Looks,
        id: ObjectId,
        sees: watch::Sender<Arc<BTreeMap<ObjectId, Kept>>>,
        /// The statuses that are written.
        written: Arc<Mutex<Vec<serde_json::Value>>>,
    }

    fn setting() -> Setting {
        let policy = permissive();
        let accepted = Accepted {
            file: None,
            uid: "a".to_owned(),
            generation: 1,
            age_rank: 0,
            value: Some(Value::Policy((*policy).clone())),
            problems: Vec::new(),
            outdated: false,
            place: None,
        };
        let objects = BTreeMap::from([(policy.id.clone(), Arc::new(accepted))]);
        let declared = Arc::new(Declared { objects, ..Declared::default() });
        let picture = Picture { declared, ..picture_of(Arc::clone(&policy)) };
        let sees = watch::Sender::default();
        let mut observed = Observed::of(Seen::default());
        observed.kept = sees.subscribe();
        let written: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
        let writes = Arc::clone(&written);
        let client = scripted_api::client(move |(method, _, body)| {
            if method == Method::PATCH {
                writes.lock().expect("not poisoned").push(body["status"].clone());
            }
            Some((200, body))
        });
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let fleet = Fleet::new(Publisher::new(clock.clone()), clock.clone());
        let picture = watch::Sender::new(Some(picture)).subscribe();
        let writer = Writer::new(client, observed, picture, fleet, clock, "me".to_owned());
        Setting { teller: Teller { writer }, looks: Looks::default(), id: policy.id.clone(), sees, written }
    }

    impl Setting {
        /// Looks at the policy with this uid, version and status, and gives what is written.
        async fn look(
            &mut self,
            uid: &str,
            version: &str,
            status: &serde_json::Value,
        ) -> Option<serde_json::Value> {
            let kept = Kept {
                uid: uid.to_owned(),
                resource_version: version.to_owned(),
                status: status.clone(),
                asked: None,
            };
            self.sees.send_replace(Arc::new([(self.id.clone(), kept)].into()));
            self.teller.look(&mut self.looks).await;
            self.written.lock().expect("not poisoned").pop()
        }
    }

    #[tokio::test]
    async fn nothing_is_said_of_an_object_by_what_it_replaces() {
        let mut setting = setting();
        assert_eq!(setting.look("b", "1", &serde_json::Value::Null).await, None);
        assert!(setting.look("a", "2", &serde_json::Value::Null).await.is_some());
    }

    #[tokio::test]
    async fn what_says_what_it_should_is_looked_at_again_when_anything_changed() {
        let mut setting = setting();
        let status = setting.look("a", "1", &serde_json::Value::Null).await.expect("written");
        assert_eq!(setting.look("a", "2", &status).await, None);
        let basis = setting.looks.settled.get(&setting.id).expect("settled");
        assert_eq!((&*basis.resource_version, basis.proxies.targeted), ("2", 0));
        let edited = setting.look("a", "3", &serde_json::Value::Null).await;
        assert!(edited.is_some(), "somebody took the status away");
        assert_eq!(setting.look("a", "4", &status).await, None);
        let fleet = &setting.teller.writer.0.fleet;
        fleet.report(fleet.open(), |replica| {
            let proxy = InstanceId::parse("pay-abcd").expect("a name");
            replica.proxies.insert(proxy, Reported { acked_epoch: None, shares: None });
        });
        let counted = setting.look("a", "4", &status).await.expect("one is behind");
        assert_eq!(counted["proxies"]["outdated"], 1);
    }

    fn status(generation: i64, acknowledged: u32, outdated: u32) -> serde_json::Value {
        let proxies = Proxies { targeted: acknowledged + outdated, acknowledged, rejected: 0, outdated };
        serde_json::to_value(MeshPolicyStatus::of(generation, &[], proxies)).expect("a status")
    }

    fn check(is: &serde_json::Value, should: &serde_json::Value, expected: Due) {
        assert_eq!(due(is, should), expected, "{is} → {should}");
    }

    #[test]
    fn counts_wait_and_everything_else_does_not() {
        check(&status(1, 3, 0), &status(1, 3, 0), Due::Never);
        check(&status(1, 3, 0), &status(1, 4, 0), Due::Eventually);
        check(&status(1, 3, 2), &status(1, 4, 1), Due::Eventually);
        check(&status(1, 3, 1), &status(1, 4, 0), Due::Now);
        check(&status(1, 3, 0), &status(2, 3, 0), Due::Now);
        check(&serde_json::Value::Null, &status(1, 0, 0), Due::Now);
    }

    #[test]
    fn the_counts_of_many_policies_are_written_seldom() {
        assert_eq!(count_every(1), COUNT_EVERY);
        assert_eq!(count_every(100), Duration::from_secs(20));
    }
}
