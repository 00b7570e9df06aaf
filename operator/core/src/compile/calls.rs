//! How calls are made: the policies of a service merged into resolved values.
//!
//! Mesh → namespace → service → port, field by field, the most specific one that says anything wins. Each value is
//! found together with the policy it came from, once, for the mesh and for whoever asks where it came from.

use super::{
    defaults,
    effective::{Origin, Row, Written},
};
use crate::{
    id::ObjectId,
    mesh::{Calls, Limits, Outliers, Repeatable, Retries, WhenOpen},
    policy::{CallsSpec, Http2, Millis, Policy, RetryMethods, RetryOn, Target},
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

/// Merges the policies of one service port, most specific first, and writes down every value if `rows` is there.
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
struct Found<'a, T> {
    value: T,
    by: Option<By<'a>>,
}

/// A policy and how far from the most specific one it stands.
#[derive(Clone, Copy)]
struct By<'a> {
    rung: usize,
    policy: &'a Policy,
}

struct Merge<'a, 'r> {
    rungs: Vec<&'a Policy>,
    rows: Option<&'r mut Vec<Row>>,
    shaped_by: BTreeSet<ObjectId>,
    problems: Vec<Problem>,
}

impl<'a> Merge<'a, '_> {
    /// The most specific word about a field.
    fn said<T>(&self, get: fn(&CallsSpec) -> &Option<T>) -> Option<(&'a T, By<'a>)> {
        self.rungs
            .iter()
            .enumerate()
            .find_map(|(rung, policy)| Some((get(&policy.calls).as_ref()?, By { rung, policy })))
    }

    fn found<T>(
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
    fn value<T: Clone + Written + 'a>(
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
    fn optional<T: Clone + Written + 'a>(
        &mut self,
        field: &'static str,
        get: fn(&CallsSpec) -> &Option<T>,
    ) -> Found<'a, Option<T>> {
        let said = self.said(get);
        let written = |value: &Option<T>| value.as_ref().map_or_else(|| "none".to_owned(), T::written);
        self.found(field, said.map(|(value, _)| value.clone()), said.map(|(_, by)| by), written)
    }

    fn problem(&mut self, by: By<'_>, field: &str, reason: Reason, message: String) {
        let (subject, field) = (by.policy.id.clone(), field.to_owned());
        self.problems.push(Problem { subject, field, reason, message });
    }

    fn retries(&mut self, request: &Found<'a, Option<Millis>>, protocol: Protocol) -> Retries {
        let attempts =
            self.value("spec.retries.attempts", defaults::ATTEMPTS, |calls| &calls.retries.attempts);
        let per_try = self.optional("spec.retries.perTryTimeout", |calls| &calls.retries.per_try_timeout);
        self.check_per_try(&per_try, request);
        let retry_on =
            self.value("spec.retries.retryOn", defaults::RETRY_ON.to_vec(), |calls| &calls.retries.retry_on);
        let (backoff_base, backoff_max) = self.backoff();
        let budget_percent = self.value("spec.retries.budget.percent", defaults::BUDGET_PERCENT, |calls| {
            &calls.retries.budget_percent
        });
        let budget_min_concurrent =
            self.value("spec.retries.budget.minConcurrent", defaults::BUDGET_MIN_CONCURRENT, |calls| {
                &calls.retries.budget_min_concurrent
            });
        let methods =
            self.value("spec.retries.methods", defaults::METHODS.to_vec(), |calls| &calls.retries.methods);
        let repeatable = repeatable(&methods.value);
        if let Some(by) = retry_on.by
            && matches!(by.policy.target, Target::Service { .. })
            && retry_on.value.contains(&RetryOn::GrpcUnavailable)
            && protocol == Protocol::Grpc
            && repeatable != Repeatable::All
        {
            let message = "a gRPC call is repeated after it reached the application only with `methods: [All]`: \
                           add it if every method of the service may run twice, or leave grpc-unavailable out";
            self.problem(by, "spec.retries.retryOn", Reason::NoEffect, message.to_owned());
        }
        Retries {
            repeatable,
            others_on: safe_part(&retry_on.value),
            repeatable_on: retry_on.value.into_iter().collect(),
            attempts: attempts.value,
            per_try_timeout: per_try.value,
            backoff_base,
            backoff_max,
            budget_percent: budget_percent.value,
            budget_min_concurrent: budget_min_concurrent.value,
        }
    }

    /// The problem belongs to the more specific of the two objects: its author could see the other value.
    fn check_per_try(&mut self, per_try: &Found<'a, Option<Millis>>, request: &Found<'a, Option<Millis>>) {
        let (Some(per_try_timeout), Some(request_timeout)) = (per_try.value, request.value) else { return };
        let (Some(per_try), Some(request)) = (per_try.by, request.by) else { return };
        if per_try_timeout <= request_timeout {
            return;
        }
        let from = |other: By<'_>| {
            if other.rung == per_try.rung && per_try.rung == request.rung {
                String::new()
            } else {
                format!(" (from {})", other.policy.id)
            }
        };
        if request.rung < per_try.rung {
            let message = format!(
                "the request timeout {request_timeout} is shorter than perTryTimeout {per_try_timeout}{}: the second \
                 try can never start; say a shorter perTryTimeout here",
                from(per_try)
            );
            self.problem(request, "spec.timeouts.request", Reason::ExceedsRequestTimeout, message);
        } else {
            let message = format!(
                "perTryTimeout {per_try_timeout} is longer than the request timeout {request_timeout}{}: the second \
                 try can never start; make it shorter",
                from(request)
            );
            self.problem(per_try, "spec.retries.perTryTimeout", Reason::ExceedsRequestTimeout, message);
        }
    }

    /// The longest pause is never shorter than the first. Where one of the two is a default, the default yields.
    fn backoff(&mut self) -> (Millis, Millis) {
        let (base_field, max_field) = ("spec.retries.backoff.base", "spec.retries.backoff.max");
        let base = self.said(|calls| &calls.retries.backoff_base);
        let max = self.said(|calls| &calls.retries.backoff_max);
        let first = match (base, max) {
            (Some((base, _)), _) => *base,
            (None, Some((max, _))) => defaults::BACKOFF_BASE.min(*max),
            (None, None) => defaults::BACKOFF_BASE,
        };
        let longest = match max {
            Some((max, by)) if *max < first => {
                let message =
                    format!("the longest pause {max} is shorter than the first, {first}: {first} is used");
                self.problem(by, max_field, Reason::Invalid, message);
                first
            }
            Some((max, _)) => *max,
            None => Millis(first.0.saturating_mul(defaults::BACKOFF_GROWTH)),
        };
        let base = self.found(base_field, first, base.map(|(_, by)| by), Millis::written);
        let max = self.found(max_field, longest, max.map(|(_, by)| by), Millis::written);
        (base.value, max.value)
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

fn repeatable(methods: &[RetryMethods]) -> Repeatable {
    let mut named = BTreeSet::new();
    for methods in methods {
        match methods {
            RetryMethods::All => return Repeatable::All,
            RetryMethods::Idempotent => named.extend(defaults::IDEMPOTENT.map(str::to_owned)),
            RetryMethods::Method(method) => {
                named.insert(method.clone());
            }
        }
    }
    Repeatable::Methods(named)
}

/// The part of the conditions that is safe for every method.
///
/// `5xx`, `gateway-error` and `reset` hold whenever no response came, so each of them asks for the safe conditions
/// too (Envoy, `RetryStateImpl::wouldRetryFromReset`).
fn safe_part(retry_on: &[RetryOn]) -> BTreeSet<RetryOn> {
    let includes_no_response = |condition: &RetryOn| {
        matches!(condition, RetryOn::ServerError | RetryOn::GatewayError | RetryOn::Reset)
    };
    let asked_for_all = retry_on.iter().any(includes_no_response);
    let every = RetryOn::ALL.into_iter().map(|(condition, _)| condition);
    every
        .filter(|condition| {
            condition.safe_for_every_method() && (asked_for_all || retry_on.contains(condition))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::worlds::{policy, to_service};

    /// Merges policies given most specific first, named `shop/p-0`, `shop/p-1`, ….
    fn check(specs: &[fn(&mut CallsSpec)], look: impl FnOnce(Merged, Vec<Row>)) {
        check_for(Protocol::Http, specs, look);
    }

    fn check_for(protocol: Protocol, specs: &[fn(&mut CallsSpec)], look: impl FnOnce(Merged, Vec<Row>)) {
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

    fn told(merged: &Merged) -> Vec<(String, &str, Reason)> {
        let problems = merged.problems.iter();
        problems
            .map(|problem| (problem.subject.to_string(), problem.field.as_str(), problem.reason))
            .collect()
    }

    fn origin(rows: &[Row], field: &str) -> (String, String) {
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
    fn conditions_without_a_response_are_retried_for_every_method_too() {
        use RetryOn::{
            ConnectFailure, GrpcUnavailable, RefusedStream, ResetBeforeRequest, Retriable4xx, ServerError,
        };
        let others = |merged: Merged| merged.calls.retries.others_on.into_iter().collect::<Vec<_>>();
        check(&[|spec| spec.retries.retry_on = Some(vec![ServerError])], |merged, _| {
            assert_eq!(others(merged), [ResetBeforeRequest, ConnectFailure, RefusedStream]);
        });
        check(&[|spec| spec.retries.retry_on = Some(vec![Retriable4xx, GrpcUnavailable])], |merged, _| {
            assert_eq!(others(merged), []);
        });
        check(&[|spec| spec.retries.retry_on = Some(vec![Retriable4xx, ConnectFailure])], |merged, _| {
            assert_eq!(others(merged), [ConnectFailure]);
        });
    }

    #[test]
    fn methods_add_up_and_all_is_all() {
        use RetryMethods::{All, Idempotent, Method};
        check(
            &[|spec| spec.retries.methods = Some(vec![Idempotent, Method("POST".to_owned())])],
            |merged, rows| {
                let Repeatable::Methods(methods) = merged.calls.retries.repeatable else { panic!("methods") };
                assert!(methods.contains("POST") && methods.contains("GET") && !methods.contains("PATCH"));
                assert_eq!(origin(&rows, "spec.retries.methods").0, "[Idempotent, POST]");
            },
        );
        check(&[|spec| spec.retries.methods = Some(vec![Method("GET".to_owned()), All])], |merged, _| {
            assert_eq!(merged.calls.retries.repeatable, Repeatable::All);
        });
    }

    #[test]
    fn a_try_longer_than_the_request_is_told_to_the_more_specific_author() {
        let both: fn(&mut CallsSpec) = |spec| {
            spec.timeouts.request = Some(Millis(10_000));
            spec.retries.per_try_timeout = Some(Millis(12_000));
        };
        check(&[both], |merged, _| {
            let field = "spec.retries.perTryTimeout";
            assert_eq!(
                told(&merged),
                [("MeshPolicy shop/p-0".to_owned(), field, Reason::ExceedsRequestTimeout)]
            );
            assert_eq!(
                merged.problems[0].message,
                "perTryTimeout 12s is longer than the request timeout 10s: the second try can never start; make it \
                 shorter"
            );
            assert_eq!(merged.calls.retries.per_try_timeout, Some(Millis(12_000)), "the value is kept");
        });
        check(&[|spec| spec.timeouts.request = Some(Millis(5_000)), both], |merged, _| {
            let field = "spec.timeouts.request";
            assert_eq!(
                told(&merged),
                [("MeshPolicy shop/p-0".to_owned(), field, Reason::ExceedsRequestTimeout)]
            );
            assert!(merged.problems[0].message.contains("12s (from MeshPolicy shop/p-1)"));
        });
        check(&[|spec| spec.retries.per_try_timeout = Some(Millis(11_000)), both], |merged, _| {
            let field = "spec.retries.perTryTimeout";
            assert_eq!(
                told(&merged),
                [("MeshPolicy shop/p-0".to_owned(), field, Reason::ExceedsRequestTimeout)]
            );
        });
        check(&[|spec| spec.retries.per_try_timeout = Some(Millis(10_000)), both], |merged, _| {
            assert_eq!(told(&merged), []);
        });
    }

    #[test]
    fn the_longest_pause_is_never_shorter_than_the_first() {
        type Write = fn(&mut CallsSpec);
        let cases: [(Write, [u64; 2], usize); 4] = [
            (|spec| spec.retries.backoff_base = Some(Millis(500)), [500, 5_000], 0),
            (|spec| spec.retries.backoff_max = Some(Millis(10)), [10, 10], 0),
            (|spec| spec.retries.backoff_base = Some(Millis(u64::MAX)), [u64::MAX, u64::MAX], 0),
            (
                |spec| {
                    spec.retries.backoff_base = Some(Millis(500));
                    spec.retries.backoff_max = Some(Millis(100));
                },
                [500, 500],
                1,
            ),
        ];
        for (write, [base, max], problems) in cases {
            check(&[write], |merged, rows| {
                let retries = &merged.calls.retries;
                assert_eq!((retries.backoff_base, retries.backoff_max), (Millis(base), Millis(max)));
                assert_eq!(merged.problems.len(), problems);
                assert_eq!(origin(&rows, "spec.retries.backoff.max").0, Millis(max).to_string());
            });
        }
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

    #[test]
    fn retrying_grpc_needs_to_be_asked_for() {
        let unavailable: fn(&mut CallsSpec) =
            |spec| spec.retries.retry_on = Some(vec![RetryOn::GrpcUnavailable]);
        check_for(Protocol::Grpc, &[unavailable], |merged, _| {
            let field = "spec.retries.retryOn";
            assert_eq!(told(&merged), [("MeshPolicy shop/p-0".to_owned(), field, Reason::NoEffect)]);
        });
        check_for(Protocol::Http, &[unavailable], |merged, _| assert_eq!(told(&merged), []));
        let all: fn(&mut CallsSpec) = |spec| spec.retries.methods = Some(vec![RetryMethods::All]);
        check_for(Protocol::Grpc, &[unavailable, all], |merged, _| assert_eq!(told(&merged), []));
    }
}
