//! One turn: whatever may be sent now, in an order that breaks nothing.

use super::{
    Published, Reaction, Session, WINDOW,
    gate::{Decision, Gate, View},
    handover,
    response::Response,
    subscription::{Due, InFlight, Subscription},
};
use crate::catalog::{Kind, Resource};
use std::{sync::Arc, time::Duration};

/// What a response is made of.
pub(super) struct Content {
    /// The first epoch that waits for the answer; `u64::MAX`: none.
    since: u64,
    resources: Vec<Arc<Resource>>,
    removed: Vec<Arc<str>>,
    /// Answered as removed, but still to be sent.
    declined: Vec<Arc<str>>,
    heartbeat: bool,
}

/// What to send of one kind, in this order.
#[derive(Default)]
struct Plan {
    batch: Content,
    alone: Vec<Content>,
    /// In a response of its own, since a rejection is about content; but see [`handover`].
    removal: Content,
}

impl Default for Content {
    fn default() -> Content {
        Content {
            since: u64::MAX,
            resources: Vec::new(),
            removed: Vec::new(),
            declined: Vec::new(),
            heartbeat: false,
        }
    }
}

impl Content {
    /// Only to be kept alive.
    pub(super) fn heartbeat(resources: Vec<Arc<Resource>>) -> Content {
        Content { heartbeat: true, resources, ..Content::default() }
    }

    fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.removed.is_empty() && self.declined.is_empty()
    }

    fn take(&mut self, other: Content) {
        self.since = self.since.min(other.since);
        self.resources.extend(other.resources);
        self.removed.extend(other.removed);
        self.declined.extend(other.declined);
    }
}

impl Session {
    /// Sends what may be sent.
    pub(super) fn advance(&mut self, published: &Published, now: Duration, reaction: &mut Reaction) {
        for kind in Kind::ALL {
            self.send_due(kind, published, now, reaction);
        }
        // What refers goes before what is referred to; virtual hosts have gone already.
        let removing =
            [Kind::Listener, Kind::Routes, Kind::Cluster, Kind::Endpoints, Kind::Secret, Kind::Runtime];
        for kind in removing {
            self.remove_due(kind, published, now, reaction);
        }
        self.count_epoch();
    }

    fn send_due(&mut self, kind: Kind, published: &Published, now: Duration, reaction: &mut Reaction) {
        let Some(subscription) = self.subscriptions.get(&kind) else { return };
        let endpoints_in_flight = self.subscriptions.get(&Kind::Endpoints).map_or(0, |e| e.in_flight.len());
        let mut room = WINDOW.saturating_sub(subscription.in_flight.len());
        match kind {
            // Clusters bring their endpoints along, whatever is on its way: those must not pile up either.
            Kind::Cluster if endpoints_in_flight >= 2 * WINDOW => room = 0,
            Kind::Endpoints if reaction.responses.iter().any(|r| r.kind == Kind::Cluster) => {
                room = room.max(1);
            }
            _ => {}
        }
        if room == 0 {
            return;
        }

        let Plan { mut batch, alone, mut removal } = self.plan(kind, published);
        let first_answer = self
            .subscriptions
            .get(&kind)
            .is_some_and(|subscription| subscription.wildcard && !subscription.answered);
        if kind != Kind::VirtualHost {
            removal = Content::default();
        } else if alone.is_empty() {
            batch.take(std::mem::take(&mut removal));
        }
        let removal = (!removal.is_empty()).then_some(removal);
        let batch = (first_answer || !batch.is_empty()).then_some(batch);
        for content in removal.into_iter().chain(batch).chain(alone).take(room) {
            self.send(kind, content, now, reaction);
        }
    }

    fn remove_due(&mut self, kind: Kind, published: &Published, now: Duration, reaction: &mut Reaction) {
        let Some(subscription) = self.subscriptions.get(&kind) else { return };
        if subscription.in_flight.len() >= WINDOW {
            return;
        }
        let Plan { removal, .. } = self.plan(kind, published);
        if !removal.is_empty() {
            self.send(kind, removal, now, reaction);
        }
    }

    /// Decides about every name of a kind that is due; what needs nothing is due no longer.
    fn plan(&mut self, kind: Kind, published: &Published) -> Plan {
        let mut plan = Plan::default();
        let Some(subscription) = self.subscriptions.get(&kind) else { return plan };
        if subscription.due.is_empty() {
            return plan;
        }
        let view = || View::new(published, &self.scopes, &self.rejected);
        let gate = Gate::new(&self.subscriptions, view());
        let mut decided: Vec<_> = subscription
            .due
            .iter()
            .map(|(name, due)| (name.clone(), *due, gate.decide(subscription, name, *due)))
            .collect();
        if kind == Kind::VirtualHost {
            handover::arrange(subscription, &view(), &mut decided);
        }
        let mut settled = Vec::new();
        let mut waiting = Vec::new();
        for (name, due, decision) in decided {
            match decision {
                Decision::Settled => settled.push(name),
                Decision::Wait => waiting.push((name, false)),
                Decision::Park => waiting.push((name, true)),
                Decision::Send(resource) if due.alone => {
                    plan.alone.push(Content {
                        since: due.since,
                        resources: vec![resource],
                        ..Content::default()
                    });
                }
                Decision::Send(resource) => {
                    plan.batch.since = plan.batch.since.min(due.since);
                    plan.batch.resources.push(resource);
                }
                Decision::Remove => {
                    plan.removal.since = plan.removal.since.min(due.since);
                    plan.removal.removed.push(name);
                }
                Decision::Decline => {
                    plan.removal.since = plan.removal.since.min(due.since);
                    plan.removal.declined.push(name);
                }
            }
        }
        if let Some(subscription) = self.subscriptions.get_mut(&kind) {
            for name in settled {
                subscription.due.remove(&name);
            }
            for (name, parked) in waiting {
                subscription.due.entry(name).and_modify(|due| due.parked = parked);
            }
        }
        plan
    }

    pub(super) fn send(&mut self, kind: Kind, content: Content, now: Duration, reaction: &mut Reaction) {
        let Content { since, mut resources, mut removed, declined, heartbeat } = content;
        let Some(subscription) = self.subscriptions.get_mut(&kind) else { return };
        for name in resources.iter().map(|resource| &resource.key.name).chain(&removed) {
            if !heartbeat {
                subscription.due.remove(name);
            }
        }
        for name in &declined {
            subscription
                .due
                .entry(name.clone())
                .and_modify(|due| *due = Due { parked: true, ..Due::since(due.since) });
        }
        removed.extend(declined);
        // Within a kind, scopes are disjoint in names but each is sorted on its own.
        resources.sort_by(|a, b| a.key.name.cmp(&b.key.name));
        removed.sort();
        self.last_nonce += 1;
        let response = Arc::new(Response { kind, nonce: self.last_nonce, resources, removed, heartbeat });
        subscription.answered = true;
        subscription.in_flight.push_back(InFlight { response: response.clone(), since, sent_at: now });
        if kind == Kind::Cluster {
            self.follow(&response, since);
        }
        reaction.responses.push(response);
    }

    /// Has the endpoints of clusters sent again after them.
    pub(super) fn follow(&mut self, clusters: &Response, since: u64) {
        let Some(endpoints) = self.subscriptions.get_mut(&Kind::Endpoints) else { return };
        for cluster in &clusters.resources {
            let name = &cluster.key.name;
            if endpoints.wants(name) {
                endpoints.mark(name.clone(), Due::again(since));
            }
        }
    }

    fn count_epoch(&mut self) {
        let heard = |kind| self.subscriptions.get(&kind).is_some_and(|subscription| subscription.heard);
        if !heard(Kind::Cluster) || !heard(Kind::Listener) {
            return;
        }
        let waiting = self.subscriptions.values().filter_map(Subscription::waiting_since).min();
        let reached = match waiting {
            None => Some(self.seen_epoch),
            Some(since) => since.checked_sub(1).map(|epoch| epoch.min(self.seen_epoch)),
        };
        self.acked_epoch = self.acked_epoch.max(reached);
    }
}
