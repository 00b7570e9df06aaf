//! What became of policies and canaries, told in their statuses: on semantic change only.

use super::{Writer, events::note, fenced::WriteError};
use crate::{
    control::Picture,
    fleet::Census,
    observe::{
        declared::Accepted,
        kubernetes::{self as shapes, Kept},
    },
    standing,
};
use airlane_api::{
    Value,
    status::{CanaryStatus, MeshPolicyStatus},
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

/// What was written last to a policy, and when.
struct Sent {
    over: String,
    status: serde_json::Value,
    at: Duration,
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
        let mut sent: HashMap<ObjectId, Sent> = HashMap::new();
        // What the leader before counted is not told otherwise before as many are heard of.
        let first = picture.wait_for(Option::is_some).await.ok().and_then(|picture| picture.clone());
        if let Some(picture) = first {
            inner.fleet.gathered(&picture).await;
        }
        loop {
            let again = self.look(&mut sent).await;
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
    async fn look(&self, sent: &mut HashMap<ObjectId, Sent>) -> Option<Duration> {
        let inner = &self.writer.0;
        let picture = inner.picture.borrow().clone()?;
        let census = inner.fleet.census();
        let kept: Arc<BTreeMap<ObjectId, Kept>> = inner.observed.kept.borrow().clone();
        sent.retain(|id, _| kept.contains_key(id));
        let mut again: Option<Duration> = None;
        let mut sooner = |pause: Duration| again = Some(again.map_or(pause, |again| again.min(pause)));
        let count_every = count_every(kept.len());
        for (id, kept) in &*kept {
            let written = match id.kind {
                ObjectKind::MeshPolicy => {
                    self.policy(id, kept, &picture, &census, sent.get(id), count_every).await
                }
                ObjectKind::Canary => self.canary(id, kept, &picture).await.map(|()| Told::AsItIs),
                ObjectKind::Service => continue,
            };
            match written {
                Ok(Told::AsItIs) => {}
                Ok(Told::Later(pause)) => sooner(pause),
                Ok(Told::Wrote(status)) => {
                    let over = kept.resource_version.clone();
                    sent.insert(id.clone(), Sent { over, status, at: self.writer.0.clock.uptime() });
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
        picture: &Picture,
        census: &Census,
        sent: Option<&Sent>,
        count_every: Duration,
    ) -> Result<Told, WriteError> {
        let Some(accepted) = in_force(id, kept, picture) else { return Ok(Told::AsItIs) };
        let inner = &self.writer.0;
        let refusals = inner.fleet.refusals();
        let problems = standing::problems_of(id, picture, &refusals);
        let proxies = standing::proxies(id, picture, census, &refusals);
        let status = MeshPolicyStatus::of(accepted.generation, &problems, proxies);
        let mut status = serde_json::to_value(status)?;
        self.writer.date(&mut status, &kept.status["conditions"]);
        if sent.is_some_and(|sent| sent.over == kept.resource_version && sent.status == status) {
            return Ok(Told::AsItIs);
        }
        let waited = sent.map_or(count_every, |sent| self.writer.0.clock.uptime().saturating_sub(sent.at));
        match due(&kept.status, &status) {
            Due::Never => return Ok(Told::AsItIs),
            Due::Eventually if waited < count_every => return Ok(Told::Later(count_every - waited)),
            Due::Eventually | Due::Now => {}
        }
        let Kept { uid, resource_version, .. } = kept;
        self.writer.apply::<shapes::MeshPolicy>(id, uid, resource_version, &status).await?;
        self.tell_problems(id, kept, &problems, &status);
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

    async fn canary(&self, id: &ObjectId, kept: &Kept, picture: &Picture) -> Result<(), WriteError> {
        let Some(accepted) = in_force(id, kept, picture) else { return Ok(()) };
        if let Some(Value::Canary(_)) = &accepted.value {
            return match picture.world.canaries.get(id) {
                // What its memory says is not ours to mend while it cannot be read.
                Some(canary) if shapes::memory(&kept.status).is_ok() => self.writer.amend(canary).await,
                _ => Ok(()),
            };
        }
        let problems = standing::problems_of(id, picture, &self.writer.0.fleet.refusals());
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
        fleet::Fleet,
        observe::{
            declared::Declared,
            kubernetes::{Observed, Seen},
        },
        scripted_api,
        xds::Publisher,
    };
    use airlane_api::status::Proxies;
    use http::Method;
    use std::sync::Mutex;
    use tokio::sync::watch;

    /// Whether the status of an object of this uid is written while what is in force is that of the uid `a`.
    async fn is_written(uid: &str) -> bool {
        let policy = permissive();
        let accepted = Accepted {
            file: None,
            uid: "a".to_owned(),
            generation: 1,
            age_rank: 0,
            value: Some(Value::Policy((*policy).clone())),
            problems: Vec::new(),
            outdated: false,
        };
        let objects = BTreeMap::from([(policy.id.clone(), Arc::new(accepted))]);
        let declared = Arc::new(Declared { objects, ..Declared::default() });
        let picture = Picture { declared, ..picture_of(Arc::clone(&policy)) };
        let kept = Kept {
            uid: uid.to_owned(),
            resource_version: "1".to_owned(),
            status: serde_json::Value::Null,
            asked: None,
        };
        let observed = Observed::of(Seen { kept: [(policy.id.clone(), kept)].into(), ..Seen::default() });
        let written = Arc::new(Mutex::new(false));
        let writes = Arc::clone(&written);
        let client = scripted_api::client(move |(method, _, body)| {
            *writes.lock().expect("not poisoned") |= method == Method::PATCH;
            Some((200, body))
        });
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let fleet = Fleet::new(Publisher::new(clock.clone()), clock.clone());
        let picture = watch::Sender::new(Some(picture)).subscribe();
        let writer = Writer::new(client, observed, picture, fleet, clock, "me".to_owned());
        Teller { writer }.look(&mut HashMap::new()).await;
        let written = written.lock().expect("not poisoned");
        *written
    }

    #[tokio::test]
    async fn nothing_is_said_of_an_object_by_what_it_replaces() {
        assert!(is_written("a").await);
        assert!(!is_written("b").await);
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
