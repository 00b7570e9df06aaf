//! What a TokenReview's answer says of a token's bearer, and whether the pod that was observed is that bearer.

use crate::marks::{ENABLED, INJECT};
use airlane_core::{
    id::{Identity, InstanceId, Namespace, ServiceAccount, TrustDomain},
    world::{Instance, Interception},
};
use airlane_wire::pod::TOKEN_AUDIENCE;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use serde::Deserialize;

/// The longest token that is looked at, in bytes; a projected one has about 1200.
const TOKEN_MAX: usize = 8192;

/// What the name of every service account begins with, as a user.
const ACCOUNTS: &str = "system:serviceaccount:";
/// Where a bound token's pod stands in what the API server says of its bearer.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// The pod to which a token is bound, and its service account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bearer {
    pub namespace: Namespace,
    pub service_account: ServiceAccount,
    /// The pod's name, for people.
    pub pod: String,
    /// The pod itself: its name and UID.
    pub instance: InstanceId,
}

/// Why a token lets nobody in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum NotLetIn {
    /// It is none.
    #[error("the token is no service account token; project one with the audience `airlane` into the pod")]
    Shape,
    /// It is for others.
    #[error("the token is not for the audience `airlane`; project one that is")]
    Audience,
    /// Its time is over.
    #[error("the token has expired; read the projected file again, which the kubelet renews")]
    Expired,
    /// It is refused for a reason that it does not show itself.
    #[error(
        "the API server does not accept the token: another cluster has signed it, or its pod or service account is deleted"
    )]
    Rejected,
    /// It is bound to no pod.
    #[error(
        "the token is bound to no pod; use the one that is projected into the pod, not one made for an account"
    )]
    Unbound,
    /// It is somebody else's than a service account's.
    #[error(
        "the token is not one of a service account; project one with the audience `airlane` into the pod"
    )]
    NoAccount,
    /// Its account cannot be named in an identity.
    #[error(
        "service account {account:?} has no identity, which takes a name of at most 253 lower-case letters, digits, '-' and '.'; run the pod as another one"
    )]
    Account {
        /// The account's name, cut.
        account: String,
    },
    /// Its pod cannot be named.
    #[error("pod {pod:?} has no name that a mesh can use; name it with lower-case letters, digits and '-'")]
    PodName {
        /// The pod's name, cut.
        pod: String,
    },
    /// Its pod was not observed.
    #[error(
        "pod {pod} is not seen yet: try again; if that does not help, the pod has no proxy or is deleted"
    )]
    NotSeen {
        /// The pod's name.
        pod: String,
    },
    /// Its pod has no proxy.
    #[error("pod {pod} was given no proxy: label it or its namespace {INJECT}={ENABLED} and start it anew")]
    NoProxy {
        /// The pod's name.
        pod: String,
    },
    /// Its pod runs as somebody else.
    #[error(
        "pod {pod} does not run as service account {account}; use the token that is projected into the pod"
    )]
    OtherAccount {
        /// The pod's name.
        pod: String,
        /// The token's account.
        account: ServiceAccount,
    },
}

/// Refuses at once what cannot be a token, so that the API server is not asked about it.
///
/// # Errors
/// [`NotLetIn::Shape`].
pub(super) fn check_shape(token: &str) -> Result<(), NotLetIn> {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let is_jwt = token.len() <= TOKEN_MAX && token.split('.').count() == 3 && token.split('.').all(part);
    if is_jwt { Ok(()) } else { Err(NotLetIn::Shape) }
}

/// Whose token it is, by the API server's answer.
///
/// # Errors
/// If it is nobody's, not for us, or not a pod's.
pub(super) fn bearer(status: &TokenReviewStatus, token: &str, now: Timestamp) -> Result<Bearer, NotLetIn> {
    if status.authenticated != Some(true) {
        return Err(why_rejected(token, now));
    }
    // A server that knows no audiences confirms none, and would let any token pass.
    if !status.audiences.iter().flatten().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(NotLetIn::Audience);
    }
    let user = status.user.as_ref().ok_or(NotLetIn::NoAccount)?;
    let account = user.username.as_deref().and_then(|name| name.strip_prefix(ACCOUNTS));
    let (namespace, account) =
        account.and_then(|account| account.split_once(':')).ok_or(NotLetIn::NoAccount)?;
    let namespace = Namespace::parse(namespace).map_err(|_| NotLetIn::NoAccount)?;
    let service_account = ServiceAccount::parse(account)
        .map_err(|_| NotLetIn::Account { account: account.chars().take(80).collect() })?;
    let (pod, uid) = (only(user, POD_NAME)?, only(user, POD_UID)?);
    let instance = InstanceId::of_copy(pod, uid)
        .map_err(|_| NotLetIn::PodName { pod: pod.chars().take(80).collect() })?;
    Ok(Bearer { namespace, service_account, pod: pod.to_owned(), instance })
}

/// The one value of an attribute.
fn only<'a>(user: &'a UserInfo, key: &str) -> Result<&'a str, NotLetIn> {
    match user.extra.as_ref().and_then(|extra| extra.get(key)).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Ok(value),
        _ => Err(NotLetIn::Unbound),
    }
}

/// What a token says of itself, believed for one thing: to tell its bearer why it was refused.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    aud: Audiences,
    #[serde(default)]
    exp: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Audiences::Many(Vec::new())
    }
}

fn why_rejected(token: &str, now: Timestamp) -> NotLetIn {
    let payload = token.split('.').nth(1).and_then(|payload| BASE64_URL_SAFE_NO_PAD.decode(payload).ok());
    let Some(claims) = payload.and_then(|json| serde_json::from_slice::<Claims>(&json).ok()) else {
        return NotLetIn::Shape;
    };
    let for_us = match &claims.aud {
        Audiences::One(audience) => audience == TOKEN_AUDIENCE,
        Audiences::Many(audiences) => audiences.iter().any(|audience| audience == TOKEN_AUDIENCE),
    };
    if !for_us {
        NotLetIn::Audience
    } else if claims.exp.is_some_and(|end| end <= now.as_second()) {
        NotLetIn::Expired
    } else {
        NotLetIn::Rejected
    }
}

impl Bearer {
    /// Who the bearer is, if the pod that was observed under its name is it.
    ///
    /// # Errors
    /// If it is another pod, has no proxy, or runs as somebody else.
    pub(super) fn identity(
        &self,
        observed: &Instance,
        trust_domain: &TrustDomain,
    ) -> Result<Identity, NotLetIn> {
        let Bearer { namespace, service_account, pod, instance } = self;
        // A pod of another namespace may have this name, and a UID that begins alike.
        if observed.id != *instance || observed.workload.namespace != *namespace {
            return Err(NotLetIn::NotSeen { pod: pod.clone() });
        }
        if observed.service_account != *service_account {
            return Err(NotLetIn::OtherAccount { pod: pod.clone(), account: service_account.clone() });
        }
        if observed.interception == Interception::None {
            return Err(NotLetIn::NoProxy { pod: pod.clone() });
        }
        Ok(Identity {
            trust_domain: trust_domain.clone(),
            namespace: namespace.clone(),
            service_account: service_account.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
