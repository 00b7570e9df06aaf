//! Who is let in on one host: whoever holds a join token for the service that it names.

use super::{
    Doorkeeper, LetIn, Refused, internal, request,
    token::{self, NotLetIn},
};
use crate::{
    ca::Ca,
    clock::Clock,
    registry::{Registry, Turned},
    store::Store,
};
use airlane_core::id::{TrustDomain, WorkloadRevision};
use airlane_wire::message::JoinRequest;
use std::{net::IpAddr, sync::Arc};
use tonic::Status;

/// Believes join tokens, and what their bearers say of themselves.
pub(crate) struct JoinTokens {
    store: Store,
    registry: Arc<Registry>,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
}

impl JoinTokens {
    /// Looks tokens up in this store and registers their bearers.
    pub(crate) fn new(store: Store, registry: Arc<Registry>, ca: &Ca, clock: Arc<dyn Clock>) -> JoinTokens {
        JoinTokens { store, registry, trust_domain: ca.trust_domain().clone(), clock }
    }
}

#[tonic::async_trait]
impl Doorkeeper for JoinTokens {
    async fn let_in(&self, request: &JoinRequest, _: IpAddr) -> Result<LetIn, Refused> {
        let wish = request::read(request, &self.trust_domain)
            .map_err(|error| Refused::Other(Status::invalid_argument(error.to_string())))?;
        let WorkloadRevision { namespace, workload, .. } = &wish.newcomer.workload;
        token::check(&self.store, &request.token, namespace, workload, self.clock.now())
            .await
            .map_err(|error| Refused::Other(internal("a join token", &error)))?
            .map_err(Refused::from)?;
        let key = Ca::admit(&request.csr, wish.identity).map_err(|refusal| Refused::from(&refusal))?;
        let instance = self.registry.join(wish.newcomer, wish.had).await.map_err(Refused::from)?;
        Ok(LetIn { key, instance })
    }
}

impl From<NotLetIn> for Refused {
    fn from(why: NotLetIn) -> Refused {
        Refused::Token(match why {
            NotLetIn::Invalid => Status::unauthenticated(why.to_string()),
            NotLetIn::OtherService => Status::permission_denied(why.to_string()),
        })
    }
}

impl From<Turned> for Refused {
    fn from(turned: Turned) -> Refused {
        Refused::Other(match turned {
            Turned::NotYours => Status::permission_denied(turned.to_string()),
            Turned::NameTaken => Status::already_exists(turned.to_string()),
        })
    }
}
