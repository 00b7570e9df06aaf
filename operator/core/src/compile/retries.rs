//! What is tried again: the part of the merge whose fields depend on each other.

use super::{
    calls::{By, Found, Merge},
    defaults,
    rows::Written,
};
use crate::{
    mesh::{Repeatable, Retries},
    policy::{Millis, RetryMethods, RetryOn, Target},
    problem::Reason,
    world::Protocol,
};
use std::collections::BTreeSet;

impl<'a> Merge<'a, '_> {
    pub(super) fn retries(&mut self, request: &Found<'a, Option<Millis>>, protocol: Protocol) -> Retries {
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

    /// The longest pause is never shorter than the first. Where one of the two is a default, the default
    /// yields.
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
/// `5xx`, `gateway-error` and `reset` hold whenever no response came, so each of them asks for the safe
/// conditions too (Envoy, `RetryStateImpl::wouldRetryFromReset`).
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
    use crate::{
        compile::calls::{
            Merged,
            tests::{check, check_for, origin, told},
        },
        policy::CallsSpec,
    };

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
