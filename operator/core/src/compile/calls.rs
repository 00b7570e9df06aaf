//! How calls are made: the policies of a service merged into resolved values.
//!
//! Mesh → namespace → service → port, field by field, the most specific one that says anything wins. Each
//! value is found together with the policy it came from, once, for the mesh and for whoever asks where it
//! came from.

use super::{
    defaults,
    rows::{Origin, Row, Written},
};
use crate::{
    id::ObjectId,
    mesh::{Calls, Limits, Outliers, WhenOpen},
    policy::{CallsSpec, Http2, Policy},
    problem::{Problem, Reason},
    world::Protocol,
};
use std::collections::BTreeSet;

/// How calls are made, and what else the merge has to say.
pub(super) struct Merged {
    pub(super) calls: Calls,
    /// `connection.http2`, which decides how a cluster is spoken to, and whose word it is.
    pub(super) http2: (Http2, Option<ObjectId>),
    /// The policies that at least one value came from.
    pub(super) shaped_by: BTreeSet<ObjectId>,
    pub(super) problems: Vec<Problem>,
}

/// Merges the policies of one service port, most specific first, and writes down every value if `rows` is
/// there.
pub(super) fn merge<'a>(
    rungs: impl Iterator<Item = &'a Policy>,
    protocol: Protocol,
    rows: Option<&mut Vec<Row>>,
) -> Merged {
    let mut merge = Merge { rungs: rungs.collect(), rows, shaped_by: BTreeSet::new(), problems: Vec::new() };
    let request = merge.optional("spec.timeouts.request", |calls| &calls.timeouts.request);
    let stream_idle =
        merge.value("spec.timeouts.streamIdle", defaults::STREAM_IDLE, |calls| &calls.timeouts.stream_idle);
    let connection_idle = merge.value("spec.timeouts.connectionIdle", defaults::CONNECTION_IDLE, |calls| {
        &calls.timeouts.connection_idle
    });
    let connect = merge.value("spec.timeouts.connect", defaults::CONNECT, |calls| &calls.timeouts.connect);
    let retries = merge.retries(&request, protocol);
    let limits = merge.limits();
    let outliers = merge.outliers();
    let when_open = merge.when_open();
    let load_balancing =
        merge.value("spec.loadBalancing.policy", defaults::LOAD_BALANCING, |calls| &calls.load_balancing);
    let http2 = merge.value("spec.connection.http2", defaults::HTTP2, |calls| &calls.connection.http2);
    let max_age = merge.optional("spec.connection.maxAge", |calls| &calls.connection.max_age);
    Merged {
        calls: Calls {
            request_timeout: request.value,
            stream_idle_timeout: stream_idle.value,
            connection_idle_timeout: connection_idle.value,
            connect_timeout: connect.value,
            retries,
            limits,
            outliers,
            when_open,
            load_balancing: load_balancing.value,
            max_connection_age: max_age.value,
        },
        http2: (http2.value, http2.by.map(|by| by.policy.id.clone())),
        shaped_by: merge.shaped_by,
        problems: merge.problems,
    }
}

/// A value and whose word it is; `None`: the default.
pub(super) struct Found<'a, T> {
    pub(super) value: T,
    pub(super) by: Option<By<'a>>,
}

/// A policy and how far from the most specific one it stands.
#[derive(Clone, Copy)]
pub(super) struct By<'a> {
    pub(super) rung: usize,
    pub(super) policy: &'a Policy,
}

pub(super) struct Merge<'a, 'r> {
    rungs: Vec<&'a Policy>,
    rows: Option<&'r mut Vec<Row>>,
    shaped_by: BTreeSet<ObjectId>,
    problems: Vec<Problem>,
}

impl<'a> Merge<'a, '_> {
    /// The most specific word about a field.
    pub(super) fn said<T>(&self, get: fn(&CallsSpec) -> &Option<T>) -> Option<(&'a T, By<'a>)> {
        self.rungs
            .iter()
            .enumerate()
            .find_map(|(rung, policy)| Some((get(&policy.calls).as_ref()?, By { rung, policy })))
    }

    pub(super) fn found<T>(
        &mut self,
        field: &'static str,
        value: T,
        by: Option<By<'a>>,
        written: fn(&T) -> String,
    ) -> Found<'a, T> {
        let by_id = by.map(|by| &by.policy.id);
        if let Some(id) = by_id
            && !self.shaped_by.contains(id)
        {
            self.shaped_by.insert(id.clone());
        }
        if let Some(rows) = &mut self.rows {
            rows.push(Row { field: field.to_owned(), value: written(&value), origin: Origin::of(by_id) });
        }
        Found { value, by }
    }

    /// A field that has a value even if nobody says anything.
    pub(super) fn value<T: Clone + Written + 'a>(
        &mut self,
        field: &'static str,
        default: T,
        get: fn(&CallsSpec) -> &Option<T>,
    ) -> Found<'a, T> {
        match self.said(get) {
            Some((value, by)) => self.found(field, value.clone(), Some(by), T::written),
            None => self.found(field, default, None, T::written),
        }
    }

    /// A field without a default: if nobody says anything, nothing applies.
    pub(super) fn optional<T: Clone + Written + 'a>(
        &mut self,
        field: &'static str,
        get: fn(&CallsSpec) -> &Option<T>,
    ) -> Found<'a, Option<T>> {
        let said = self.said(get);
        let written = |value: &Option<T>| value.as_ref().map_or_else(|| "none".to_owned(), T::written);
        self.found(field, said.map(|(value, _)| value.clone()), said.map(|(_, by)| by), written)
    }

    pub(super) fn problem(&mut self, by: By<'_>, field: &str, reason: Reason, message: String) {
        let (subject, field) = (by.policy.id.clone(), field.to_owned());
        self.problems.push(Problem { subject, field, reason, message });
    }

    fn limits(&mut self) -> Limits {
        let connections = self.optional("spec.circuitBreaker.limits.maxConnections", |calls| {
            &calls.circuit_breaker.max_connections
        });
        let pending_requests = self.optional("spec.circuitBreaker.limits.maxPendingRequests", |calls| {
            &calls.circuit_breaker.max_pending_requests
        });
        let requests = self
            .optional("spec.circuitBreaker.limits.maxRequests", |calls| &calls.circuit_breaker.max_requests);
        let retries = self
            .optional("spec.circuitBreaker.limits.maxRetries", |calls| &calls.circuit_breaker.max_retries);
        let requests_per_connection = self
            .optional("spec.circuitBreaker.limits.maxRequestsPerConnection", |calls| {
                &calls.circuit_breaker.max_requests_per_connection
            });
        Limits {
            connections: connections.value,
            pending_requests: pending_requests.value,
            requests: requests.value,
            retries: retries.value,
            requests_per_connection: requests_per_connection.value,
        }
    }

    fn outliers(&mut self) -> Outliers {
        let consecutive_5xx = self.value(
            "spec.circuitBreaker.outlierDetection.consecutive5xx",
            defaults::CONSECUTIVE_5XX,
            |calls| &calls.circuit_breaker.consecutive_5xx,
        );
        let consecutive_gateway_errors = self.value(
            "spec.circuitBreaker.outlierDetection.consecutiveGatewayErrors",
            defaults::CONSECUTIVE_GATEWAY_ERRORS,
            |calls| &calls.circuit_breaker.consecutive_gateway_errors,
        );
        let interval = self.value(
            "spec.circuitBreaker.outlierDetection.interval",
            defaults::OUTLIER_INTERVAL,
            |calls| &calls.circuit_breaker.interval,
        );
        let base_ejection_time = self.value(
            "spec.circuitBreaker.outlierDetection.baseEjectionTime",
            defaults::BASE_EJECTION_TIME,
            |calls| &calls.circuit_breaker.base_ejection_time,
        );
        let max_ejection_percent = self.value(
            "spec.circuitBreaker.outlierDetection.maxEjectionPercent",
            defaults::MAX_EJECTION_PERCENT,
            |calls| &calls.circuit_breaker.max_ejection_percent,
        );
        let watched = |count: u32| (count > 0).then_some(count);
        Outliers {
            consecutive_5xx: watched(consecutive_5xx.value),
            consecutive_gateway_errors: watched(consecutive_gateway_errors.value),
            interval: interval.value,
            base_ejection_time: base_ejection_time.value,
            max_ejection_percent: max_ejection_percent.value,
        }
    }

    fn when_open(&mut self) -> Option<WhenOpen> {
        let body =
            self.optional("spec.circuitBreaker.whenOpen.body", |calls| &calls.circuit_breaker.when_open_body);
        let retry_after = self.optional("spec.circuitBreaker.whenOpen.retryAfter", |calls| {
            &calls.circuit_breaker.when_open_retry_after
        });
        if body.value.is_none() && retry_after.value.is_none() {
            return None;
        }
        Some(WhenOpen {
            body: body.value.unwrap_or_else(|| defaults::WHEN_OPEN_BODY.to_owned()),
            retry_after_s: retry_after.value.map(|wait| wait.0.div_ceil(1_000)),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        compile::worlds::{policy, to_service},
        policy::Millis,
    };

    /// Merges policies given most specific first, named `shop/p-0`, `shop/p-1`, ….
    pub(in crate::compile) fn check(specs: &[fn(&mut CallsSpec)], look: impl FnOnce(Merged, Vec<Row>)) {
        check_for(Protocol::Http, specs, look);
    }

    pub(in crate::compile) fn check_for(
        protocol: Protocol,
        specs: &[fn(&mut CallsSpec)],
        look: impl FnOnce(Merged, Vec<Row>),
    ) {
        let policies: Vec<Policy> = specs
            .iter()
            .enumerate()
            .map(|(number, write)| {
                let mut policy = policy(&format!("shop/p-{number}"), to_service("shop/pay", None));
                write(&mut policy.calls);
                policy
            })
            .collect();
        let mut rows = Vec::new();
        let merged = merge(policies.iter(), protocol, Some(&mut rows));
        look(merged, rows);
    }

    pub(in crate::compile) fn told(merged: &Merged) -> Vec<(String, &str, Reason)> {
        let problems = merged.problems.iter();
        problems
            .map(|problem| (problem.subject.to_string(), problem.field.as_str(), problem.reason))
            .collect()
    }

    pub(in crate::compile) fn origin(rows: &[Row], field: &str) -> (String, String) {
        let row = rows.iter().find(|row| row.field == field).expect("every field has a row");
        (row.value.clone(), row.origin.to_string())
    }

    #[test]
    fn every_field_has_one_row_and_a_default() {
        check(&[], |merged, rows| {
            assert!(merged.shaped_by.is_empty());
            assert!(rows.iter().all(|row| row.origin == Origin::Default));
            let mut fields: Vec<&str> = rows.iter().map(|row| row.field.as_str()).collect();
            fields.sort_unstable();
            fields.dedup();
            assert_eq!((fields.len(), rows.len()), (27, 27));
            let retries = merged.calls.retries;
            assert!(retries.others_on.iter().all(|condition| condition.safe_for_every_method()));
            assert_eq!(retries.others_on.len(), 3);
            assert!(retries.repeatable_on.is_superset(&retries.others_on));
            assert_eq!(merged.calls.request_timeout, None);
            assert_eq!(merged.calls.limits, Limits::default());
            assert_eq!(merged.calls.outliers.consecutive_5xx, None);
        });
    }

    #[test]
    fn the_most_specific_word_wins_field_by_field() {
        check(
            &[
                |service| service.timeouts.request = Some(Millis(10_000)),
                |namespace| {
                    namespace.timeouts.request = Some(Millis(1));
                    namespace.retries.attempts = Some(0);
                },
                |mesh| mesh.retries.attempts = Some(9),
            ],
            |merged, rows| {
                assert_eq!(merged.calls.request_timeout, Some(Millis(10_000)));
                assert_eq!(merged.calls.retries.attempts, 0);
                let of = |field| origin(&rows, field);
                assert_eq!(of("spec.timeouts.request"), ("10s".to_owned(), "MeshPolicy shop/p-0".to_owned()));
                assert_eq!(of("spec.retries.attempts"), ("0".to_owned(), "MeshPolicy shop/p-1".to_owned()));
                assert_eq!(of("spec.timeouts.connect"), ("1s".to_owned(), "default".to_owned()));
                let shaped_by: Vec<String> = merged.shaped_by.iter().map(ObjectId::to_string).collect();
                assert_eq!(
                    shaped_by,
                    ["MeshPolicy shop/p-0", "MeshPolicy shop/p-1"],
                    "the mesh's word counts nowhere"
                );
            },
        );
    }

    #[test]
    fn a_count_of_zero_is_not_watched() {
        check(&[|spec| spec.circuit_breaker.consecutive_gateway_errors = Some(0)], |merged, _| {
            assert_eq!(merged.calls.outliers.consecutive_gateway_errors, None);
        });
    }

    #[test]
    fn the_answer_when_open_has_a_text_and_whole_seconds() {
        check(&[|spec| spec.circuit_breaker.when_open_retry_after = Some(Millis(1_001))], |merged, _| {
            let body = defaults::WHEN_OPEN_BODY.to_owned();
            assert_eq!(merged.calls.when_open, Some(WhenOpen { body, retry_after_s: Some(2) }));
        });
        check(&[|spec| spec.circuit_breaker.when_open_body = Some("busy".to_owned())], |merged, rows| {
            let body = "busy".to_owned();
            assert_eq!(merged.calls.when_open, Some(WhenOpen { body, retry_after_s: None }));
            assert_eq!(origin(&rows, "spec.circuitBreaker.whenOpen.body").0, "\"busy\"");
        });
    }
}
