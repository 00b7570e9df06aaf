//! The verbs that only a host's mesh takes: what a cluster keeps in its objects is kept here.

use super::{
    root::{self, RootsView},
    server::{self, Local, Refused, failed, not_found, parse, with_sources},
};
use crate::{
    apply::standalone::Recorder,
    ca::Ca,
    clock::Clock,
    join::{self, OperatorAt},
    store::{Store, StoredToken},
};
use airlane_core::{
    id::{Name, Namespace, ObjectId, ObjectKind},
    rollout::Asked,
};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What the verbs can reach.
#[derive(Clone)]
pub(crate) struct Host {
    /// What the views can reach.
    pub(crate) local: Local,
    /// Where verbs are remembered.
    pub(crate) recorder: Recorder,
    /// Where tokens are kept.
    pub(crate) store: Store,
    /// The authority.
    pub(crate) ca: Arc<Ca>,
    /// Where sidecars join.
    pub(crate) operator_at: OperatorAt,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
}

/// What the mesh of a host answers to.
pub(crate) fn router(host: Host) -> Router {
    let views = server::router(host.local.clone());
    Router::new()
        .route("/v1/canaries/{namespace}/{name}/{verb}", post(verb))
        .route("/v1/root", get(root))
        .route("/v1/tokens", get(tokens).post(create_token))
        .route("/v1/tokens/{id}/revoke", post(revoke_token))
        .with_state(host)
        .merge(views)
}

async fn verb(
    State(host): State<Host>,
    Path((namespace, name, verb)): Path<(String, String, String)>,
) -> Result<Json<()>, Refused> {
    let asked = match verb.as_str() {
        "pause" => Asked::Pause,
        "resume" => Asked::Resume,
        "promote" => Asked::Promote,
        "abort" => Asked::Abort,
        "retry" => Asked::Retry,
        other => return Err(not_found(format!("no verb {other}: pause, resume, promote, abort or retry"))),
    };
    let id = ObjectId { kind: ObjectKind::Canary, namespace: parse(&namespace)?, name: parse(&name)? };
    let now = host.clock.now();
    let refusal = with_sources(&host.local, |sources| {
        let canary = sources.picture.world.canaries.get(&id)?;
        // What comes of a verb before this one is not known yet.
        Some(if canary.asked.is_some() { None } else { sources.refusal(canary, asked, now) })
    });
    match refusal.await? {
        None => return Err(not_found(format!("no {id}; `airlane get canaries` lists them"))),
        Some(Some(refusal)) => return Err(Refused(StatusCode::CONFLICT, refusal.to_string())),
        Some(None) => {}
    }
    host.recorder.ask(&id, asked, now).await.map_err(|error| failed("remember this", &error))?;
    Ok(Json(()))
}

/// The root of a host's mesh, which stays what it is.
async fn root(State(host): State<Host>) -> Json<RootsView> {
    let trouble = host.ca.trouble().borrow().clone();
    Json(RootsView { roots: root::trusted(&host.ca), replacement: None, trouble })
}

/// A join token without its secret.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StoredTokenView {
    /// Its name.
    pub(crate) id: String,
    /// The service it is good for; `None`: any.
    pub(crate) service: Option<String>,
    /// When it was made.
    pub(crate) created_at: jiff::Timestamp,
    /// Until when it is good.
    pub(crate) expires_at: Option<jiff::Timestamp>,
    /// When it was revoked.
    pub(crate) revoked_at: Option<jiff::Timestamp>,
}

async fn tokens(State(host): State<Host>) -> Result<Json<Vec<StoredTokenView>>, Refused> {
    let tokens = host.store.tokens().await.map_err(|error| failed("read the tokens", &error))?;
    let view = |token: StoredToken| StoredTokenView {
        id: token.id,
        service: token.service.map(|(namespace, name)| format!("{namespace}/{name}")),
        created_at: token.created_at,
        expires_at: token.expires_at,
        revoked_at: token.revoked_at,
    };
    Ok(Json(tokens.into_iter().map(view).collect()))
}

async fn revoke_token(State(host): State<Host>, Path(id): Path<String>) -> Result<Json<()>, Refused> {
    let revoked = host.store.revoke_token(&id, host.clock.now()).await;
    match revoked.map_err(|error| failed("revoke the token", &error))? {
        true => Ok(Json(())),
        false => Err(not_found(format!("no token {id} is good; `airlane token list` lists them"))),
    }
}

/// What a join token is asked for.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenRequest {
    /// The namespace it is good for.
    pub(crate) namespace: Namespace,
    /// The service it is good for.
    pub(crate) service: Name,
    /// How long it is good for.
    pub(crate) ttl_s: Option<u64>,
}

/// A join token, said once.
#[derive(Serialize, Deserialize)]
pub(crate) struct TokenView {
    /// Its name, to revoke it by.
    pub(crate) id: String,
    /// The join string.
    pub(crate) join: String,
}

async fn create_token(
    State(host): State<Host>,
    Json(request): Json<TokenRequest>,
) -> Result<Json<TokenView>, Refused> {
    let lifetime =
        request.ttl_s.map(|ttl_s| SignedDuration::from_secs(i64::try_from(ttl_s).unwrap_or(i64::MAX)));
    let service = Some((request.namespace, request.service));
    join::create_token(&host.store, service, lifetime, host.clock.now())
        .await
        .map(|minted| {
            let join = host.operator_at.clone().join_info(minted.secret.to_string());
            Json(TokenView { id: minted.stored.id, join: join.to_string() })
        })
        .map_err(|error| failed("make a token", &error))
}
