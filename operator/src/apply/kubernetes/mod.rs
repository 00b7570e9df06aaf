//! Statuses on Kubernetes, written by server-side apply to the objects' status.
//!
//! Every write names the `resourceVersion` of what it was computed from, so that the API server refuses a leader that
//! does not know yet that it leads no more.

mod events;
mod fenced;
mod tell;

pub(crate) use events::recorder;
pub(crate) use tell::Teller;

use super::{Memory, NotRemembered, Statuses};
use crate::{
    clock::Clock,
    control::Picture,
    fleet::Fleet,
    observe::kubernetes::{ANSWERED, Answered, Kept, Observed, memory},
    standing::{self, Standings},
};
use airlane_api::{quantity::Share, status::CanaryStatus};
use airlane_core::{
    id::{ObjectId, ObjectKind},
    problem::Problem,
    rollout::{Asked, Canary, Progress},
};
use events::event_of;
use fenced::{Base, WriteError};
use kube::{Client, runtime::events::Recorder};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Mutex, watch};

/// Where a canary's memory says which write it is.
const MARK: &str = "written";

/// Where a condition says since when it has its status.
const SINCE: &str = "lastTransitionTime";

/// Writes statuses, and tells people by events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer(Arc<Inner>);

struct Inner {
    client: Client,
    observed: Observed,
    picture: watch::Receiver<Option<Picture>>,
    fleet: Fleet,
    clock: Arc<dyn Clock>,
    events: Recorder,
    /// Told apart from every other writer's: the name of this process, and a count.
    me: String,
    writes: AtomicU64,
    /// What this process wrote last to each canary. Each has its lock: a slow write holds up no other canary's.
    written: std::sync::Mutex<BTreeMap<ObjectId, Place>>,
}

type Place = Arc<Mutex<Option<Written>>>;

struct Written {
    base: Base,
    progress: Progress,
}

impl Writer {
    /// A writer called `me`, which no other process may be called, before or after it.
    pub(crate) fn new(
        client: Client,
        observed: Observed,
        picture: watch::Receiver<Option<Picture>>,
        fleet: Fleet,
        clock: Arc<dyn Clock>,
        me: String,
    ) -> Writer {
        Writer(Arc::new(Inner {
            events: recorder(client.clone(), &me),
            client,
            observed,
            picture,
            fleet,
            clock,
            me,
            writes: AtomicU64::new(0),
            written: std::sync::Mutex::default(),
        }))
    }

    /// This process begins to lead: others may have written since it did so last.
    fn begin(&self) {
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn kept(&self, id: &ObjectId) -> Option<Kept> {
        self.0.observed.kept.borrow().get(id).cloned()
    }

    /// Where it stands what was written last to a canary.
    fn place(&self, id: &ObjectId) -> Place {
        let mut written = self.0.written.lock().unwrap_or_else(PoisonError::into_inner);
        if !written.contains_key(id) {
            let kept = self.0.observed.kept.borrow();
            written.retain(|id, place| kept.contains_key(id) || Arc::strong_count(place) > 1);
        }
        written.entry(id.clone()).or_default().clone()
    }

    fn problems_of(&self, id: &ObjectId) -> Vec<Problem> {
        let refusals = self.0.fleet.refusals();
        let picture = self.0.picture.borrow().clone();
        picture.map_or_else(Vec::new, |picture| Standings::of(&picture, &refusals).problems_of(id))
    }

    /// The status of a canary with its memory, marked as a write of this process.
    fn status_of(
        &self,
        canary: &Canary,
        answered: Option<Answered>,
        base: &Base,
    ) -> Result<Value, WriteError> {
        let mut status = CanaryStatus::of(canary, &self.problems_of(&canary.id))?;
        let sent = self.0.picture.borrow().as_ref().and_then(|picture| standing::share(canary, picture));
        if let (Some(weight), Some(sent)) = (&mut status.weight, sent) {
            *weight = Share::from_parts(sent);
        }
        let mut status = serde_json::to_value(status)?;
        self.date(&mut status, &base.conditions);
        if let Some(memory) = status.get_mut("memory").and_then(Value::as_object_mut) {
            let count = self.0.writes.fetch_add(1, Ordering::Relaxed);
            memory.insert(MARK.to_owned(), Value::String(format!("{} {count}", self.0.me)));
            if let Some(answered) = answered {
                memory.insert(ANSWERED.to_owned(), serde_json::to_value(answered)?);
            }
        }
        Ok(status)
    }

    /// Says of each condition when its status changed last.
    fn date(&self, status: &mut Value, before: &Value) {
        let now = self.0.clock.now().to_string();
        // Not by index, which would put a null where nothing is.
        let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            let same = |before: &&Value| {
                before["type"] == condition["type"] && before["status"] == condition["status"]
            };
            let since = before.as_array().into_iter().flatten().find(same);
            let since = since.map(|before| before[SINCE].clone()).filter(Value::is_string);
            condition[SINCE] = since.unwrap_or_else(|| Value::String(now.clone()));
        }
    }

    async fn remember(
        &self,
        canary: &Canary,
        from: Option<&Progress>,
        progress: Progress,
        answered: Option<Asked>,
    ) -> Result<(), WriteError> {
        let place = self.place(&canary.id);
        let mut written = place.lock().await;
        let kept = self.kept(&canary.id).ok_or(WriteError::Gone)?;
        let own = written.as_ref().filter(|own| own.base.uid == kept.uid && Some(&own.progress) == from);
        let base = match own {
            Some(own) => own.base.clone(),
            None if memory(&kept.status)?.as_ref() == from => Base::of(&kept),
            None => return Err(WriteError::Changed),
        };
        let revision = || canary.plan.canary.clone();
        let answered = answered.map(|verb| Answered { verb, canary: revision() }).or_else(|| {
            // What was answered before is remembered as long as it is asked.
            let statuses = self.0.observed.statuses.borrow();
            let open = statuses.get(&canary.id).and_then(|status| status.asked);
            kept.asked.filter(|asked| open != Some(*asked)).map(|verb| Answered { verb, canary: revision() })
        });
        let canary = Canary { progress: Some(progress.clone()), ..canary.clone() };
        let status = self.status_of(&canary, answered, &base)?;
        match self.write_canary(&canary.id, base, &status).await {
            Ok(base) => {
                if let Some(event) = event_of(from, &progress) {
                    self.announce(&canary.id, &kept.uid, event);
                }
                *written = Some(Written { base, progress });
                Ok(())
            }
            Err(error) => {
                *written = None;
                Err(error)
            }
        }
    }

    /// Mends what a canary's status says beside its memory: problems, the generation it speaks of, a verb that is not
    /// asked for any more.
    async fn amend(&self, canary: &Canary) -> Result<(), WriteError> {
        let place = self.place(&canary.id);
        let mut written = place.lock().await;
        let Some(kept) = self.kept(&canary.id) else { return Ok(()) };
        // An edit of the object leaves our mark where it is.
        let behind = written
            .as_ref()
            .is_some_and(|own| own.base.uid == kept.uid && own.base.mark != kept.status["memory"][MARK]);
        if behind {
            return Ok(());
        }
        let progress = memory(&kept.status)?;
        let canary = Canary { progress: progress.clone(), ..canary.clone() };
        let before = &kept.status["memory"][ANSWERED];
        let answered: Option<Answered> = serde_json::from_value(before.clone()).ok();
        let answered = answered.filter(|answered| kept.asked == Some(answered.verb));
        let base = Base::of(&kept);
        let status = self.status_of(&canary, answered, &base)?;
        if said_beside_memory(&status) == said_beside_memory(&kept.status) {
            return Ok(());
        }
        let base = self.write_canary(&canary.id, base, &status).await?;
        *written = progress.map(|progress| Written { base, progress });
        Ok(())
    }
}

/// A status without its memory, but for what was answered. The rest of the memory is what it was read from, though the API
/// server may write its numbers in another way: 1.0 as 1.
fn said_beside_memory(status: &Value) -> (Value, Value) {
    let mut said = status.clone();
    if let Some(said) = said.as_object_mut() {
        said.remove("memory");
    }
    (said, status["memory"][ANSWERED].clone())
}

#[tonic::async_trait]
impl Memory for Writer {
    fn statuses(&self) -> Arc<Statuses> {
        self.0.observed.statuses.borrow().clone()
    }

    async fn step(
        &self,
        canary: &Canary,
        from: Option<&Progress>,
        progress: Progress,
        answered: Option<Asked>,
    ) -> Result<(), NotRemembered> {
        debug_assert_eq!(canary.id.kind, ObjectKind::Canary, "only canaries have a memory");
        self.remember(canary, from, progress, answered).await.map_err(|error| match error {
            WriteError::Changed | WriteError::Gone => NotRemembered::Stale,
            error => NotRemembered::Failed(error.into()),
        })
    }

    /// The memory goes with its object.
    async fn forget(&self, _: &ObjectId) -> Result<(), NotRemembered> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
