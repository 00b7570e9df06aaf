//! Writes over the version that they were computed from.
//!
//! A write that was refused because somebody edited the object's spec is tried again on the new version; one that was
//! refused because somebody else wrote the memory is not.

use super::{MARK, Writer};
use crate::{
    marks::MANAGER,
    observe::kubernetes::{self as shapes, Kept},
};
use airlane_core::id::ObjectId;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{fmt, time::Duration};
use tokio::time::timeout;

/// The longest that a write may take.
pub(super) const WRITE: Duration = Duration::from_secs(5);

/// How often a write is tried over an object that others edit meanwhile. The next look tries again.
const TRIES: usize = 3;

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
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

/// A version of an object whose memory is known.
#[derive(Clone)]
pub(super) struct Base {
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) mark: Value,
    pub(super) conditions: Value,
}

impl Base {
    pub(super) fn of(kept: &Kept) -> Base {
        Base {
            uid: kept.uid.clone(),
            resource_version: kept.resource_version.clone(),
            mark: kept.status["memory"][MARK].clone(),
            conditions: kept.status["conditions"].clone(),
        }
    }
}

impl Writer {
    /// Writes a status over the version that it was computed from, and gives the new version.
    pub(super) async fn apply<K>(
        &self,
        id: &ObjectId,
        uid: &str,
        version: &str,
        status: &Value,
    ) -> Result<String, WriteError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + DeserializeOwned + Clone + fmt::Debug,
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
    pub(super) async fn write_canary(
        &self,
        id: &ObjectId,
        mut base: Base,
        status: &Value,
    ) -> Result<Base, WriteError> {
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
}
