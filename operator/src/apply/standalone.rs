//! Statuses on one host: written to `state.db` first, then published to the world.
//!
//! A rollout's weights travel through its status and back through the world, never around it, so what a crash
//! interrupts is resumed from what was written.

use super::{Memory, NotRemembered, Status, Statuses};
use crate::store::{Store, StoreError};
use airlane_core::{
    id::ObjectId,
    rollout::{Asked, Canary, Progress},
};
use jiff::Timestamp;
use std::sync::Arc;
use tokio::sync::watch;

/// Writes statuses. One writer: its callers are the rollouts and the command line's verbs.
#[derive(Clone)]
pub(crate) struct Recorder {
    store: Store,
    current: Arc<watch::Sender<Arc<Statuses>>>,
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl Recorder {
    /// Reads what was remembered.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read.
    pub(crate) async fn open(store: Store) -> Result<Self, StoreError> {
        let mut statuses = Statuses::new();
        for (id, progress) in store.progress().await? {
            statuses.entry(id).or_default().progress = Some(progress);
        }
        for (id, asked) in store.asked().await? {
            statuses.entry(id).or_default().asked = Some(asked);
        }
        Ok(Recorder {
            store,
            current: Arc::new(watch::Sender::new(Arc::new(statuses))),
            writing: Arc::default(),
        })
    }

    /// What is remembered now, and news of changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Statuses>> {
        self.current.subscribe()
    }

    async fn write(
        &self,
        id: &ObjectId,
        progress: Progress,
        answered: Option<Asked>,
    ) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        match answered {
            Some(verb) => self.store.carried_out(id, verb, &progress).await?,
            None => self.store.write_progress(id, &progress).await?,
        }
        self.publish(id, |status| {
            status.progress = Some(progress);
            // Another verb may have been asked for meanwhile.
            if answered.is_some() && status.asked == answered {
                status.asked = None;
            }
        });
        Ok(())
    }

    /// Remembers a verb until a step answers it.
    ///
    /// # Errors
    /// [`StoreError`] if it could not be written.
    pub(crate) async fn ask(&self, id: &ObjectId, asked: Asked, at: Timestamp) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        self.store.ask(id, asked, at).await?;
        self.publish(id, |status| status.asked = Some(asked));
        Ok(())
    }

    fn publish(&self, id: &ObjectId, change: impl FnOnce(&mut Status)) {
        self.current.send_modify(|statuses| change(Arc::make_mut(statuses).entry(id.clone()).or_default()));
    }
}

#[tonic::async_trait]
impl Memory for Recorder {
    fn statuses(&self) -> Arc<Statuses> {
        self.current.borrow().clone()
    }

    async fn step(
        &self,
        canary: &Canary,
        // One process holds the database.
        _from: Option<&Progress>,
        progress: Progress,
        answered: Option<Asked>,
    ) -> Result<(), NotRemembered> {
        self.write(&canary.id, progress, answered).await.map_err(|error| NotRemembered::Failed(error.into()))
    }

    async fn forget(&self, id: &ObjectId) -> Result<(), NotRemembered> {
        let _writing = self.writing.lock().await;
        self.store.forget_canary(id).await.map_err(|error| NotRemembered::Failed(error.into()))?;
        self.current.send_modify(|statuses| drop(Arc::make_mut(statuses).remove(id)));
        Ok(())
    }
}
