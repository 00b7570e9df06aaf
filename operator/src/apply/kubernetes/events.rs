//! What people are told of objects by events.

use super::{Writer, fenced::WRITE};
use crate::{marks::REPORTER, observe::kubernetes::Canary};
use airlane_core::{
    id::ObjectId,
    rollout::{Phase, Progress},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource as _,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::time::timeout;

/// The longest note of an event that Kubernetes takes, in bytes.
const NOTE_MAX: usize = 1000;

/// Writes events as the replica of that name.
pub(crate) fn recorder(client: Client, me: &str) -> Recorder {
    let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(me.to_owned()) };
    Recorder::new(client, reporter)
}

impl Writer {
    /// Tells people of something about an object, without waiting: what was decided is not held up by it.
    pub(super) fn announce(&self, id: &ObjectId, uid: &str, event: Event) {
        let regarding = ObjectReference {
            api_version: Some(Canary::api_version(&()).into_owned()),
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
}

/// What people are told of a step, if it is a transition.
pub(super) fn event_of(before: Option<&Progress>, now: &Progress) -> Option<Event> {
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

pub(super) fn note(text: &str) -> String {
    let mut end = text.len().min(NOTE_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
