//! The root of a mesh: how it is, and, in a cluster, to replace it.

use super::server::{Refused, failed};
use crate::{
    ca::{Ca, CaError, hex},
    clock::Clock,
};
use airlane_core::pki::rotation::Rotation;
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What the root's verbs can reach.
#[derive(Clone)]
pub(crate) struct Authority {
    /// The authority.
    pub(crate) ca: Arc<Ca>,
    /// How long a new root is trusted before it signs, and an old one after it.
    pub(crate) overlap: SignedDuration,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
}

/// `/v1/root`.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RootsView {
    /// The roots that are trusted, the one that signs first.
    pub(crate) roots: Vec<RootView>,
    /// How far the replacement of the root is, if it is being replaced.
    pub(crate) replacement: Option<ReplacementView>,
    /// What is wrong with what signs.
    pub(crate) trouble: Option<String>,
}

/// A root.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RootView {
    /// SHA-256 of its DER, in hex.
    pub(crate) sha256: String,
    /// When it ends.
    pub(crate) not_after: Timestamp,
}

/// The replacement of a root.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReplacementView {
    /// Whether the new root signs already.
    pub(crate) handed_over: bool,
    /// The earliest time of the next step: to sign with the new root, or to forget the old one.
    pub(crate) next_at: Timestamp,
}

/// What they answer to.
pub(crate) fn router(authority: Authority) -> Router {
    Router::new().route("/v1/root", get(root)).route("/v1/root/rotate", post(rotate)).with_state(authority)
}

async fn root(State(authority): State<Authority>) -> Result<Json<RootsView>, Refused> {
    let rotation = authority.ca.rotation().await.map_err(|error| failed("look at the root", &error))?;
    let trouble = authority.ca.trouble().borrow().clone();
    let replacement = authority.replacement(rotation);
    Ok(Json(RootsView { roots: trusted(&authority.ca), replacement, trouble }))
}

/// The roots that are trusted.
pub(super) fn trusted(ca: &Ca) -> Vec<RootView> {
    let view =
        |root: &crate::ca::Root| RootView { sha256: hex(&root.fingerprint()), not_after: root.not_after };
    ca.roots().iter().map(view).collect()
}

async fn rotate(State(authority): State<Authority>) -> Result<Json<Option<ReplacementView>>, Refused> {
    match authority.ca.begin_rotation(authority.clock.now()).await {
        Ok(()) => {}
        Err(error @ (CaError::UnderWay { .. } | CaError::NotOurs)) => {
            return Err(Refused(StatusCode::CONFLICT, error.to_string()));
        }
        Err(error) => return Err(failed("replace the root", &error)),
    }
    let rotation = authority.ca.rotation().await.map_err(|error| failed("look at the root", &error))?;
    Ok(Json(authority.replacement(rotation)))
}

impl Authority {
    fn replacement(&self, rotation: Rotation) -> Option<ReplacementView> {
        let view = |at: Timestamp, handed_over| {
            let next_at = at.saturating_add(self.overlap).unwrap_or(Timestamp::MAX);
            Some(ReplacementView { handed_over, next_at })
        };
        match rotation {
            Rotation::Settled => None,
            Rotation::Introduced { at } => view(at, false),
            Rotation::HandedOver { at } => view(at, true),
        }
    }
}
