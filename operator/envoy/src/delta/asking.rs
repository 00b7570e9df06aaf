//! What a proxy asks for, no longer asks for, and says it has.

use super::{
    NAME_BYTES_MAX, NAMES_MAX, Published, Reaction, Refused, Session,
    gate::View,
    subscription::{Due, Subscription},
};
use crate::catalog::{Kind, Resource, Version};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use std::{collections::HashMap, sync::Arc};

/// Whether the names are ones that an Envoy may ask for, given how many of the kind it sees.
fn check_names(request: &DeltaDiscoveryRequest, published: impl Fn() -> usize) -> Result<(), Refused> {
    let lists = [&request.resource_names_subscribe, &request.resource_names_unsubscribe];
    let claimed = &request.initial_resource_versions;
    let most = lists.iter().map(|list| list.len()).chain([claimed.len()]).max();
    check_number(most.unwrap_or(0), published)?;
    let longest = lists.into_iter().flatten().chain(claimed.keys()).map(String::len).max();
    match longest {
        Some(bytes) if bytes > NAME_BYTES_MAX => Err(Refused::NameTooLong { bytes }),
        _ => Ok(()),
    }
}

/// A proxy may have what it was sent, and as much again that went while it was away.
fn check_number(names: usize, published: impl Fn() -> usize) -> Result<(), Refused> {
    if names > NAMES_MAX && names > 2 * published() { Err(Refused::TooManyNames) } else { Ok(()) }
}

impl Session {
    /// The names the proxy asks for, no longer asks for, and says it has.
    pub(super) fn subscribe(
        &mut self,
        kind: Kind,
        request: &DeltaDiscoveryRequest,
        published: &Published,
        reaction: &mut Reaction,
    ) -> Result<(), Refused> {
        // What a proxy asks for anew is not what an epoch it has acknowledged was about.
        let since = self.acked_epoch.map_or(0, |epoch| epoch + 1);
        let view = View::new(published, &self.scopes, &self.rejected);
        check_names(request, || view.all(kind).count())?;
        let first = !self.subscriptions.contains_key(&kind);
        let has_wildcard = matches!(kind, Kind::Cluster | Kind::Listener | Kind::VirtualHost);
        let subscription = self.subscriptions.entry(kind).or_insert_with(|| Subscription::new(kind, false));

        let star = |names: &[String]| names.iter().any(|name| name == "*");
        let all =
            star(&request.resource_names_subscribe) || (first && request.resource_names_subscribe.is_empty());
        reaction.ignored += u32::from(star(&request.resource_names_subscribe) && !has_wildcard);
        let named = request.resource_names_subscribe.iter().filter(|name| *name != "*");
        let mut asked = Vec::new();
        for name in named {
            let name = Arc::from(name.as_str());
            // The catalog's own copy of the name, so that a thousand proxies share it.
            let name = view.get(kind, &name).map_or(name, |resource| resource.key.name.clone());
            subscription.names.insert(name.clone());
            asked.push(name);
        }
        check_number(subscription.names.len(), || view.all(kind).count())?;
        if all && has_wildcard && !subscription.wildcard {
            subscription.wildcard = true;
            subscription.answered = false;
            for resource in view.all(kind) {
                subscription.mark(resource.key.name.clone(), Due::since(since));
            }
        }

        let claims: HashMap<&str, Option<Version>> = if first {
            request
                .initial_resource_versions
                .iter()
                .map(|(name, v)| (name.as_str(), v.parse().ok()))
                .collect()
        } else {
            HashMap::new()
        };
        for (name, version) in &claims {
            if !subscription.wants(name) {
                continue;
            }
            let name = Arc::from(*name);
            match view.get(kind, &name) {
                // A layer with a TTL may expire before anybody keeps it alive here: it goes again.
                Some(resource) if Some(resource.version) == *version && resource.ttl.is_none() => {
                    subscription.held.insert(resource.clone());
                }
                _ => {
                    subscription.doubt.insert(name.clone(), None);
                    subscription.mark(name, Due::since(since));
                }
            }
        }
        for name in &asked {
            if !claims.contains_key(&**name) {
                subscription.mark(name.clone(), Due::again(since));
            }
        }

        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                subscription.wildcard = false;
                let Subscription { held, due, doubt, names, .. } = subscription;
                held.retain(|resource| names.contains(&resource.key.name));
                due.retain(|name, _| names.contains(name));
                doubt.retain(|name, _| names.contains(name));
            } else if let Some(name) = subscription.names.take(name.as_str()) {
                subscription.forget(&name);
                if subscription.wildcard {
                    // The proxy dropped what the wildcard still covers.
                    subscription.mark(name, Due::again(since));
                }
            }
        }

        if first && kind == Kind::Endpoints {
            // Claimed after the clusters were answered: what the proxy has of them does not end their warming.
            let clusters = self.subscriptions.get(&Kind::Cluster);
            let on_their_way: Vec<_> =
                clusters.iter().flat_map(|c| &c.in_flight).map(|flight| flight.response.clone()).collect();
            on_their_way.iter().for_each(|clusters| self.follow(clusters, since));
        }
        // Envoy makes a new subscription to virtual hosts for a new route configuration, without a new request, and
        // has dropped what came before for it.
        if kind == Kind::Routes
            && let Some(hosts) = self.subscriptions.get_mut(&Kind::VirtualHost)
        {
            let of_new_routes = |host: &&Arc<Resource>| {
                let routes = host.key.name.rsplit_once('/').map(|(routes, _)| routes);
                routes.is_some_and(|routes| {
                    asked.iter().any(|name| **name == *routes) && !claims.contains_key(routes)
                })
            };
            let in_flight = hosts.in_flight.iter().flat_map(|flight| &flight.response.resources);
            let dropped = hosts.held.iter().chain(in_flight).filter(of_new_routes);
            for name in dropped.map(|host| host.key.name.clone()).collect::<Vec<_>>() {
                hosts.mark(name, Due::again(since));
            }
        }
        Ok(())
    }
}
