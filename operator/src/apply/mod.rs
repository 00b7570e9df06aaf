//! Applying what was decided: the only writers of statuses.

pub(crate) mod kubernetes;
pub(crate) mod standalone;

use airlane_core::{
    id::ObjectId,
    rollout::{Asked, Canary, Progress},
};
use std::{collections::BTreeMap, error::Error, sync::Arc};

/// What is remembered about one canary.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Status {
    /// The rollout's memory.
    pub(crate) progress: Option<Progress>,
    /// A verb not yet carried out.
    pub(crate) asked: Option<Asked>,
}

/// What is remembered about every canary.
pub(crate) type Statuses = BTreeMap<ObjectId, Status>;

/// Why a step is not remembered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRemembered {
    /// Somebody else wrote after what the step was computed from: it has to be computed anew from what they wrote.
    #[error("another operator wrote in between")]
    Stale,
    /// It could not be written.
    #[error("it could not be written")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
}

/// The only memory of the rollouts. What is written comes back through the world, never around it.
#[tonic::async_trait]
pub(crate) trait Memory: Send + Sync + 'static {
    /// What is remembered now.
    fn statuses(&self) -> Arc<Statuses>;

    /// Remembers a step, and that the verb it answered is done with. `from` is what was remembered when the step was
    /// computed.
    ///
    /// # Errors
    /// [`NotRemembered`]; then nothing is published either.
    async fn step(
        &self,
        canary: &Canary,
        from: Option<&Progress>,
        progress: Progress,
        answered: Option<Asked>,
    ) -> Result<(), NotRemembered>;

    /// Forgets a canary that nobody wants any more.
    ///
    /// # Errors
    /// [`NotRemembered`].
    async fn forget(&self, id: &ObjectId) -> Result<(), NotRemembered>;
}
