//! Names that pass from one virtual host to another.
//!
//! Envoy takes a response about virtual hosts as a whole, removals first, and refuses one that would leave two hosts
//! of a route configuration with a domain in common. So who gives a domain up and who takes it go in one response, and
//! neither goes before the other can: a domain is never without a host, and never has two.
//!
//! After a rejection hosts go one by one, so that the next one names the offender. Then who takes a domain waits until
//! the one who had it is done: a removal goes first, in a response that nothing can be wrong about, and an update is
//! answered first.

use super::{
    gate::{Decision, View},
    subscription::{Due, Subscription},
};
use crate::catalog::{Key, Kind, Resource, Version};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// A host that is due, and what is to become of it.
pub(super) type Decided = (Arc<str>, Due, Decision);

/// The place and name of a host, and the domains that it gives up; `None`: any.
type Gift<'a> = (usize, &'a Arc<str>, Option<Vec<u64>>);

/// What becomes of a host in this turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It is sent or removed.
    Goes,
    /// It must wait for an answer.
    Waits,
    /// Nothing, until another publication.
    Stays,
}

/// Holds back what would leave a domain without a host, or with two.
pub(super) fn arrange(hosts: &Subscription, view: &View<'_>, decided: &mut [Decided]) {
    debug_assert_eq!(hosts.kind(), Kind::VirtualHost, "nothing else has domains");
    let Some(mut handover) = Handover::between(hosts, view, decided) else { return };
    handover.go_together();
    handover.go_one_by_one(decided);
    let Handover { turns, held_back, .. } = handover;
    let nobody_goes = !turns.contains(&Turn::Goes) && hosts.in_flight.is_empty();
    let in_a_circle = held_back.first().copied().filter(|_| nobody_goes);
    for ((at, (_, _, decision)), turn) in decided.iter_mut().enumerate().zip(turns) {
        match turn {
            // Who would wait for itself lets go of everything first.
            _ if in_a_circle == Some(at) => *decision = Decision::Decline,
            _ if matches!(decision, Decision::Settled) => {}
            Turn::Waits => *decision = Decision::Wait,
            Turn::Stays => *decision = Decision::Park,
            Turn::Goes => {}
        }
    }
}

/// Whether a host that was refused may be without fault: the proxy may have one of its domains with another host, whose
/// content there is in doubt. Of a host that was there before, which others come and go beside, this is believed only if
/// the other one stays as it is, refused itself or parked: else nobody would be at fault where all are.
pub(super) fn excuses(hosts: &Subscription, refused: &Resource, rejected: &BTreeMap<Key, Version>) -> bool {
    let name = &refused.key.name;
    let is_new = had(hosts, name).is_some();
    let stays = |other: &Arc<str>| {
        hosts.due.get(other).is_some_and(|due| due.parked)
            || rejected.contains_key(&Key { kind: Kind::VirtualHost, name: Arc::clone(other) })
    };
    hosts.kind() == Kind::VirtualHost
        && takes(hosts, refused)
        && hosts
            .doubt
            .keys()
            .any(|other| other != name && routes(other) == routes(name) && (is_new || stays(other)))
}

struct Handover<'a> {
    /// What becomes of every host that is due, and then of those that are not and have something to give.
    turns: Vec<Turn>,
    /// Who gives a domain to whom, and whether the giver certainly has it.
    pairs: BTreeMap<(usize, usize), bool>,
    /// Whose domains at the proxy are not known, by route configuration.
    unknown: BTreeMap<&'a str, BTreeSet<usize>>,
    /// Who may take one of theirs.
    takers: BTreeMap<&'a str, Vec<usize>>,
    /// Who waits for one that goes in this turn.
    held_back: BTreeSet<usize>,
}

impl<'a> Handover<'a> {
    /// `None` if no host gives anything up: then nobody can be in another's way.
    fn between(hosts: &'a Subscription, view: &View<'a>, decided: &'a [Decided]) -> Option<Handover<'a>> {
        let due: BTreeSet<&str> = decided.iter().map(|(name, ..)| &**name).collect();
        let flights = || hosts.in_flight.iter().map(|flight| &*flight.response);
        let flying = flights().flat_map(|response| &response.resources).map(|host| &host.key.name);
        let leaving = flights().flat_map(|response| &response.removed);
        let others = hosts.doubt.keys().chain(flying).chain(leaving).chain(view.refused());
        let others: BTreeSet<&Arc<str>> = others.filter(|name| !due.contains(&***name)).collect();
        let givers = decided.iter().map(|(name, ..)| name).chain(others);
        let gifts: Vec<Gift<'_>> = givers
            .enumerate()
            .map(|(at, name)| (at, name, given_up(hosts, view, name)))
            .filter(|(.., gift)| gift.as_ref().is_none_or(|gift| !gift.is_empty()))
            .collect();
        if gifts.is_empty() {
            return None;
        }

        let turn = |name: &str, decision: Option<&Decision>| match decision {
            Some(Decision::Send(_) | Decision::Remove | Decision::Decline) => Turn::Goes,
            Some(Decision::Wait) => Turn::Waits,
            Some(Decision::Settled) | None if hosts.flying(name).is_some() => Turn::Waits,
            Some(Decision::Settled | Decision::Park) | None => Turn::Stays,
        };
        let turns = decided.iter().map(|(name, _, decision)| turn(name, Some(decision))).collect();
        let mut handover = Handover {
            turns,
            pairs: BTreeMap::new(),
            unknown: BTreeMap::new(),
            takers: BTreeMap::new(),
            held_back: BTreeSet::new(),
        };
        let mut takers: HashMap<(&str, u64), usize> = HashMap::new();
        for (at, (name, ..)) in decided.iter().enumerate() {
            let Some(published) = view.get(Kind::VirtualHost, name) else { continue };
            takers.extend(published.domains.iter().map(|domain| ((routes(name), *domain), at)));
            if takes(hosts, published) {
                handover.takers.entry(routes(name)).or_default().push(at);
            }
        }
        for (at, name, gift) in gifts {
            let giver = if at < decided.len() {
                at
            } else {
                handover.turns.push(turn(name, None));
                handover.turns.len() - 1
            };
            if let Some(domains) = gift {
                let held = hosts.held.get(name);
                for domain in &domains {
                    let Some(taker) = takers.get(&(routes(name), *domain)) else { continue };
                    let certain = held.is_some_and(|held| held.domains.binary_search(domain).is_ok());
                    *handover.pairs.entry((giver, *taker)).or_default() |= certain;
                }
            } else {
                handover.unknown.entry(routes(name)).or_default().insert(giver);
            }
        }
        Some(handover)
    }

    fn turn(&self, at: usize) -> Turn {
        self.turns.get(at).copied().unwrap_or(Turn::Stays)
    }

    fn set(&mut self, at: usize, turn: Turn) {
        if let Some(old) = self.turns.get_mut(at) {
            *old = turn;
        }
    }

    /// Whoever gives and whoever takes go in the same turn, unless one of them stays.
    fn go_together(&mut self) {
        loop {
            let change = |((giver, taker), certain): (&(usize, usize), &bool)| match (
                self.turn(*giver),
                self.turn(*taker),
            ) {
                (Turn::Goes, Turn::Waits) => Some((*giver, Turn::Waits)),
                (Turn::Waits, Turn::Goes) => Some((*taker, Turn::Waits)),
                (Turn::Stays, Turn::Goes) if *certain => Some((*taker, Turn::Stays)),
                _ => None,
            };
            let mut changes: Vec<(usize, Turn)> = self.pairs.iter().filter_map(change).collect();
            for (routes, unknown) in &self.unknown {
                if unknown.iter().any(|giver| self.turn(*giver) == Turn::Waits) {
                    let takers = self.takers.get(routes).into_iter().flatten();
                    let going = takers.filter(|taker| self.turn(**taker) == Turn::Goes);
                    changes.extend(going.map(|taker| (*taker, Turn::Waits)));
                }
            }
            if changes.is_empty() {
                return;
            }
            changes.into_iter().for_each(|(at, turn)| self.set(at, turn));
        }
    }

    /// Who takes from one whose update is not in the same response waits for the answer to that.
    fn go_one_by_one(&mut self, decided: &[Decided]) {
        let alone = |at: usize| decided.get(at).is_some_and(|(_, due, _)| due.alone);
        let is_sent = |at: usize| matches!(decided.get(at), Some((_, _, Decision::Send(_))));
        loop {
            let is_before = |giver: usize, taker: usize| {
                is_sent(giver)
                    && (alone(giver) || alone(taker))
                    && (self.turn(giver) == Turn::Goes || self.held_back.contains(&giver))
            };
            let mut waiting: BTreeSet<usize> = self
                .pairs
                .keys()
                .filter(|(giver, taker)| is_before(*giver, *taker))
                .map(|(_, taker)| *taker)
                .collect();
            for (routes, unknown) in &self.unknown {
                // Of two that were there already neither gets a domain from the other, but by one that comes or goes.
                let new = self.takers.get(routes).into_iter().flatten().filter(|at| !unknown.contains(at));
                waiting.extend(new.filter(|taker| unknown.iter().any(|giver| is_before(*giver, **taker))));
            }
            waiting.retain(|taker| self.turn(*taker) == Turn::Goes);
            if waiting.is_empty() {
                return;
            }
            for taker in waiting {
                self.set(taker, Turn::Waits);
                self.held_back.insert(taker);
            }
        }
    }
}

/// The route configuration a host belongs to: what stands before the last `/` of its name.
fn routes(host: &str) -> &str {
    host.rsplit_once('/').map_or("", |(routes, _)| routes)
}

/// What a host may have at the proxy; `None`: anything.
fn had(hosts: &Subscription, name: &str) -> Option<Vec<u64>> {
    let doubt = hosts.doubt.get(name);
    if doubt.is_some_and(Option::is_none) {
        return None;
    }
    let flying = hosts.in_flight.iter().filter_map(|flight| flight.response.resource(name));
    let versions = hosts.held.get(name).into_iter().chain(doubt.into_iter().flatten()).chain(flying);
    Some(versions.flat_map(|host| host.domains.iter().copied()).collect())
}

/// What a host may have at the proxy and has not as it is published; `None`: anything.
fn given_up(hosts: &Subscription, view: &View<'_>, name: &Arc<str>) -> Option<Vec<u64>> {
    let mut had = had(hosts, name)?;
    if let Some(published) = view.get(Kind::VirtualHost, name) {
        had.retain(|domain| published.domains.binary_search(domain).is_err());
    }
    Some(had)
}

/// Whether a host may get a domain that it has not at the proxy.
fn takes(hosts: &Subscription, published: &Resource) -> bool {
    let held = hosts.held.get(&published.key.name);
    let of_held = |domain: &u64| held.is_some_and(|held| held.domains.binary_search(domain).is_ok());
    !published.domains.iter().all(of_held)
}
