//! Who is let in in a cluster: a pod that was given a proxy, with the service account token that the kubelet projects
//! into it for the audience [`TOKEN_AUDIENCE`]: a token for anybody else, the API server included, is not for us, and ours
//! is for nobody else.
//!
//! The API server says whose token it is ([`review`]); what the request says of its sender is not looked at.

mod review;

use super::{Doorkeeper, LetIn, Refused, internal};
use crate::{ca::Ca, clock::Clock, pods::Pods, turns::Turns};
use airlane_core::id::TrustDomain;
use airlane_wire::{crowd::host, message::JoinRequest, pod::TOKEN_AUDIENCE};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use review::{Bearer, NotLetIn};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::time::timeout;
use tonic::Status;

/// The longest that the API server may take to say whose a token is, waiting for a place included.
const REVIEW: Duration = Duration::from_secs(5);
/// How many tokens it is asked about at once: strangers must not keep it busy through us.
const REVIEWS_MAX: usize = 32;
/// Of them, those about tokens from one address.
const REVIEWS_PER_ADDRESS_MAX: usize = 4;
/// How long a pod that is not observed yet is waited for. Together with [`REVIEW`] less than the eight seconds after
/// which a sidecar gives up.
const SEEN: Duration = Duration::from_millis(2500);

/// Believes the API server about service account tokens, and what was observed about pods.
pub(crate) struct PodTokens {
    client: kube::Client,
    pods: Arc<Pods>,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    turns: Turns<IpAddr>,
    /// [`REVIEW`] and [`SEEN`].
    waits: (Duration, Duration),
}

/// The API server did not say whose a token is.
#[derive(Debug, thiserror::Error)]
enum ReviewError {
    #[error("cannot make a TokenReview")]
    Make(#[source] serde_json::Error),
    #[error("cannot make the call")]
    Call(#[from] http::Error),
    #[error("the API server did not take a TokenReview; may this account create tokenreviews?")]
    Refused(#[from] kube::Error),
    #[error("the API server's answer is no TokenReview")]
    Answer,
    #[error("the API server did not answer in time")]
    TooLate,
}

impl PodTokens {
    /// Asks this cluster's API server, and knows these pods.
    pub(crate) fn new(client: kube::Client, pods: Arc<Pods>, ca: &Ca, clock: Arc<dyn Clock>) -> PodTokens {
        let trust_domain = ca.trust_domain().clone();
        PodTokens {
            client,
            pods,
            trust_domain,
            clock,
            turns: Turns::new(REVIEWS_MAX, REVIEWS_PER_ADDRESS_MAX),
            waits: (REVIEW, SEEN),
        }
    }

    async fn review(&self, token: &str, from: IpAddr) -> Result<TokenReviewStatus, ReviewError> {
        let asked = async {
            let _turn = self.turns.take(host(from)).await;
            let review = TokenReview {
                spec: TokenReviewSpec {
                    token: Some(token.to_owned()),
                    audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
                },
                ..TokenReview::default()
            };
            let body = serde_json::to_vec(&review).map_err(ReviewError::Make)?;
            let request = http::Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(body)?;
            // As text, because the client would log an answer that it cannot read, and the answer repeats the token.
            let text = self.client.request_text(request).await?;
            let answer: TokenReview = serde_json::from_str(&text).map_err(|_| ReviewError::Answer)?;
            answer.status.ok_or(ReviewError::Answer)
        };
        timeout(self.waits.0, asked).await.unwrap_or(Err(ReviewError::TooLate))
    }

    async fn bearer(&self, token: &str, from: IpAddr) -> Result<Bearer, Refused> {
        review::check_shape(token)?;
        let status = self.review(token, from).await;
        let status = status.map_err(|error| Refused::Other(internal("a token review", &error)))?;
        let bearer = review::bearer(&status, token, self.clock.now());
        if let (Err(_), Some(error)) = (&bearer, &status.error) {
            tracing::debug!(
                error = error.escape_debug().take(300).collect::<String>(),
                "a token was refused"
            );
        }
        Ok(bearer?)
    }
}

#[tonic::async_trait]
impl Doorkeeper for PodTokens {
    async fn let_in(&self, request: &JoinRequest, from: IpAddr) -> Result<LetIn, Refused> {
        let bearer = self.bearer(&request.token, from).await?;
        let Some(instance) = self.pods.observed(&bearer.instance, self.waits.1).await else {
            return Err(NotLetIn::NotSeen { pod: bearer.pod }.into());
        };
        let identity = bearer.identity(&instance, &self.trust_domain)?;
        let key = Ca::admit(&request.csr, identity).map_err(|refusal| Refused::from(&refusal))?;
        // A sidecar that lives keeps its name; one that has just started has none.
        self.pods.joined(&bearer.instance, request.instance.is_empty());
        Ok(LetIn { key, instance })
    }
}

impl From<NotLetIn> for Refused {
    fn from(why: NotLetIn) -> Refused {
        let text = why.to_string();
        match why {
            NotLetIn::Shape
            | NotLetIn::Audience
            | NotLetIn::Expired
            | NotLetIn::Rejected
            | NotLetIn::Unbound
            | NotLetIn::NoAccount => Refused::Token(Status::unauthenticated(text)),
            NotLetIn::Account { .. } | NotLetIn::PodName { .. } | NotLetIn::OtherAccount { .. } => {
                Refused::Token(Status::permission_denied(text))
            }
            NotLetIn::NoProxy { .. } => Refused::Other(Status::failed_precondition(text)),
            NotLetIn::NotSeen { .. } => Refused::Other(Status::unavailable(text)),
        }
    }
}

#[cfg(test)]
mod tests;
