//! Statuses on Kubernetes, written by server-side apply to the objects' status.
//!
//! Every write names the `resourceVersion` of what it was computed from, so that the API server refuses a leader that
//! does not know yet that it leads no more. A write that was refused because somebody edited the object's spec is tried
//! again on the new version; one that was refused because somebody else wrote the memory is not.

mod tell;

pub(crate) use tell::Teller;

use super::{Memory, NotRemembered, Statuses};
use crate::{
    clock::Clock,
    control::Picture,
    fleet::Fleet,
    observe::kubernetes::{self as shapes, ANSWERED, Answered, Kept, Observed, memory},
    standing,
};
use airlane_api::status::CanaryStatus;
use airlane_core::{
    id::{ObjectId, ObjectKind},
    problem::Problem,
    rollout::{Asked, Canary, Phase, Progress},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

/// Who owns the fields we write.
const MANAGER: &str = "airlane";

/// The longest that a write may take.
const WRITE: Duration = Duration::from_secs(5);

/// How often a write is tried over an object that others edit meanwhile. The next look tries again.
const TRIES: usize = 3;

/// The longest note of an event that Kubernetes takes, in bytes.
const NOTE_MAX: usize = 1000;

/// Where a canary's memory says which write it is.
const MARK: &str = "written";

/// Where a condition says since when it has its status.
const SINCE: &str = "lastTransitionTime";

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    /// It is not the version that the write was computed from any more.
    #[error("the object has changed")]
    Changed,
    /// Others write to it all the time.
    #[error("the object changes faster than it can be written")]
    Busy,
    /// There is no such object any more.
    #[error("the object is gone")]
    Gone,
    /// The API server's answer.
    #[error("the API server refused")]
    Api(#[source] kube::Error),
    /// No answer.
    #[error("no answer within {WRITE:?}")]
    Slow,
    /// The status has no form in JSON.
    #[error("the status cannot be encoded")]
    Encode(#[from] serde_json::Error),
}

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

/// A version of an object whose memory is known.
#[derive(Clone)]
struct Base {
    uid: String,
    resource_version: String,
    mark: Value,
    conditions: Value,
}

type Place = Arc<Mutex<Option<Written>>>;

struct Written {
    base: Base,
    progress: Progress,
}

impl Base {
    fn of(kept: &Kept) -> Base {
        Base {
            uid: kept.uid.clone(),
            resource_version: kept.resource_version.clone(),
            mark: kept.status["memory"][MARK].clone(),
            conditions: kept.status["conditions"].clone(),
        }
    }
}

/// Writes events as the replica of that name.
pub(crate) fn recorder(client: Client, me: &str) -> Recorder {
    let reporter = Reporter { controller: "airlane.dev/operator".to_owned(), instance: Some(me.to_owned()) };
    Recorder::new(client, reporter)
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
        picture.map_or_else(Vec::new, |picture| standing::problems_of(id, &picture, &refusals))
    }

    /// The status of a canary with its memory, marked as a write of this process.
    fn status_of(
        &self,
        canary: &Canary,
        answered: Option<Answered>,
        base: &Base,
    ) -> Result<Value, WriteError> {
        let status = CanaryStatus::of(canary, &self.problems_of(&canary.id))?;
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

    /// Writes a status over the version that it was computed from, and gives the new version.
    async fn apply<K>(
        &self,
        id: &ObjectId,
        uid: &str,
        version: &str,
        status: &Value,
    ) -> Result<String, WriteError>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + DeserializeOwned
            + Clone
            + fmt::Debug,
    {
        let object = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": { "name": id.name, "namespace": id.namespace, "uid": uid, "resourceVersion": version },
            "status": status,
        });
        let api: Api<K> = Api::namespaced(self.0.client.clone(), id.namespace.as_str());
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        let patched = timeout(WRITE, api.patch_status(id.name.as_str(), &params, &patch)).await;
        match patched.map_err(|_| WriteError::Slow)? {
            Ok(object) => Ok(object.meta().resource_version.clone().unwrap_or_default()),
            Err(kube::Error::Api(status)) if status.code == 409 => Err(WriteError::Changed),
            Err(kube::Error::Api(status)) if status.code == 404 => Err(WriteError::Gone),
            Err(error) => Err(WriteError::Api(error)),
        }
    }

    /// Writes a canary's status over `base`, or over a later version with the same memory.
    async fn write_canary(&self, id: &ObjectId, mut base: Base, status: &Value) -> Result<Base, WriteError> {
        for _ in 0..TRIES {
            let Base { uid, resource_version, .. } = &base;
            match self.apply::<shapes::Canary>(id, uid, resource_version, status).await {
                Ok(resource_version) => {
                    let (mark, conditions) = (status["memory"][MARK].clone(), status["conditions"].clone());
                    return Ok(Base { resource_version, mark, conditions, ..base });
                }
                Err(WriteError::Changed) => {
                    let now = self.read_canary(id).await?;
                    let edited = now.mark == base.mark && now.uid == base.uid;
                    if !edited || now.resource_version == base.resource_version {
                        return Err(WriteError::Changed);
                    }
                    base = now;
                }
                Err(error) => return Err(error),
            }
        }
        Err(WriteError::Busy)
    }

    async fn read_canary(&self, id: &ObjectId) -> Result<Base, WriteError> {
        let api: Api<shapes::Canary> = Api::namespaced(self.0.client.clone(), id.namespace.as_str());
        let read = timeout(WRITE, api.get_opt(id.name.as_str())).await.map_err(|_| WriteError::Slow)?;
        let canary = read.map_err(WriteError::Api)?.ok_or(WriteError::Gone)?;
        Ok(Base {
            uid: canary.metadata.uid.unwrap_or_default(),
            resource_version: canary.metadata.resource_version.unwrap_or_default(),
            mark: canary.status["memory"][MARK].clone(),
            conditions: canary.status["conditions"].clone(),
        })
    }

    /// Tells people of something about an object, without waiting: what was decided is not held up by it.
    fn announce(&self, id: &ObjectId, uid: &str, event: Event) {
        let regarding = ObjectReference {
            api_version: Some("airlane.dev/v1alpha1".to_owned()),
            kind: Some(id.kind.to_string()),
            namespace: Some(id.namespace.to_string()),
            name: Some(id.name.to_string()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let events = self.0.events.clone();
        tokio::spawn(async move {
            match timeout(WRITE, events.publish(&event, &regarding)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "an event was not written");
                }
                Err(_) => tracing::warn!("an event was not written within {WRITE:?}"),
            }
        });
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
        let behind = written.as_ref().is_some_and(|own| {
            own.base.uid == kept.uid && own.base.resource_version != kept.resource_version
        });
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

/// What people are told of a step, if it is a transition.
fn event_of(before: Option<&Progress>, now: &Progress) -> Option<Event> {
    let last = now.history.last()?;
    if before.and_then(|before| before.history.last()) == Some(last) {
        return None;
    }
    let bad = matches!(last.phase, Phase::Holding | Phase::RollingBack | Phase::RolledBack);
    Some(Event {
        type_: if bad { EventType::Warning } else { EventType::Normal },
        reason: format!("{:?}", last.phase),
        note: Some(note(&last.because)),
        action: "Rollout".to_owned(),
        secondary: None,
    })
}

fn note(text: &str) -> String {
    let mut end = text.len().min(NOTE_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
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
