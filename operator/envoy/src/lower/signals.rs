//! What a proxy reports of each call: first attempts that failed, at once.

use super::proto::{duration, exactly, grpc_to, no, number, packed, starting_with};
use airlane_core::policy::Millis;
use envoy_types::pb::envoy::{
    config::{
        accesslog::v3::{
            AccessLog, AccessLogFilter, AndFilter, ComparisonFilter, GrpcStatusFilter, HeaderFilter,
            MetadataFilter, OrFilter, ResponseFlagFilter, StatusCodeFilter, access_log,
            access_log_filter::FilterSpecifier, comparison_filter::Op, grpc_status_filter::Status,
        },
        core::v3::{ApiVersion, RuntimeUInt32},
        route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    },
    extensions::access_loggers::grpc::v3::{CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig},
    r#type::matcher::v3::{
        MetadataMatcher, StringMatcher, ValueMatcher,
        metadata_matcher::{PathSegment, path_segment},
        value_matcher::MatchPattern,
    },
};

/// The static cluster of the operator.
pub(crate) const OPERATOR: &str = "operator";

/// The log's name, by which the operator knows what it receives.
pub const FIRST_ATTEMPTS: &str = "first-attempts";

/// Which attempt a request is, counted from 1.
pub const ATTEMPT_COUNT: &str = "x-envoy-attempt-count";

/// gRPC statuses that are the server's failure.
const FAILURES: [Status; 5] =
    [Status::Unknown, Status::DeadlineExceeded, Status::Internal, Status::Unavailable, Status::DataLoss];

/// What ended when its request's time was up. Envoy drops the attempt then, and logs it without a status or a flag:
/// only the request's own log tells this apart from a caller that went away.
pub const OUT_OF_TIME: &str = "out-of-time";

/// One entry for each attempt that was its request's first and failed: a status of 500 and above, any response
/// flag, or a failing gRPC status.
pub(super) fn first_attempts() -> AccessLog {
    let server_error = FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
        comparison: Some(ComparisonFilter {
            op: Op::Ge as i32,
            value: Some(RuntimeUInt32 {
                default_value: 500,
                runtime_key: "airlane.failed_from_status".to_owned(),
            }),
        }),
    });
    let flagged = FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter::default());
    // Envoy gives requests that are not gRPC a gRPC status too: that of 200 would be UNKNOWN.
    let grpc_failure = all(vec![
        header("content-type", starting_with("application/grpc")),
        FilterSpecifier::GrpcStatusFilter(GrpcStatusFilter {
            statuses: FAILURES.map(|status| status as i32).to_vec(),
            ..Default::default()
        }),
    ]);
    let failed =
        FilterSpecifier::OrFilter(OrFilter { filters: filters(vec![server_error, flagged, grpc_failure]) });
    of_first_attempts(FIRST_ATTEMPTS, failed)
}

/// One entry for each request that never got beyond its first attempt and ended for a timeout: its own, or its
/// attempt's, which [`first_attempts`] tells as well. The response's details say which.
pub(super) fn out_of_time() -> AccessLog {
    let flags = vec!["UT".to_owned()];
    of_first_attempts(OUT_OF_TIME, FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter { flags }))
}

/// The log's name.
pub const DENIED: &str = "denied";

/// The filter that denies requests: what it found stands under this name in a request's metadata.
pub const ACCESS_FILTER: &str = "envoy.filters.http.rbac";

/// Where the filter's metadata says which policy did not let a request pass: one that is enforced, and one that only
/// tells.
pub const DENIED_BY: [&str; 2] = ["enforced_effective_policy_id", "shadow_effective_policy_id"];

/// What parts the policy from the reason in [`DENIED_BY`].
pub const ACCESS_SECTION: &str = " access";

/// Whether a request did not pass, in the same order.
const RESULTS: [&str; 2] = ["enforced_engine_result", "shadow_engine_result"];

/// One entry for each request that a policy did not let pass, refused or not.
pub(super) fn denied() -> AccessLog {
    let results = RESULTS.map(result_is_denied);
    to_operator(DENIED, FilterSpecifier::OrFilter(OrFilter { filters: filters(results.to_vec()) }))
}

/// The proxy's own answers with this status.
pub(super) fn answered(status: u32) -> AccessLogFilter {
    let value = RuntimeUInt32 { default_value: status, runtime_key: format!("airlane.status_{status}") };
    let comparison = Some(ComparisonFilter { op: Op::Eq as i32, value: Some(value) });
    let status = FilterSpecifier::StatusCodeFilter(StatusCodeFilter { comparison });
    AccessLogFilter { filter_specifier: Some(status) }
}

fn result_is_denied(result: &str) -> FilterSpecifier {
    let segment = PathSegment { segment: Some(path_segment::Segment::Key(result.to_owned())) };
    FilterSpecifier::MetadataFilter(MetadataFilter {
        matcher: Some(MetadataMatcher {
            filter: ACCESS_FILTER.to_owned(),
            path: vec![segment],
            value: Some(ValueMatcher { match_pattern: Some(MatchPattern::StringMatch(exactly("denied"))) }),
            ..Default::default()
        }),
        match_if_key_not_found: Some(no()),
    })
}

fn of_first_attempts(name: &str, which: FilterSpecifier) -> AccessLog {
    to_operator(name, all(vec![header(ATTEMPT_COUNT, exactly("1")), which]))
}

fn to_operator(name: &str, which: FilterSpecifier) -> AccessLog {
    AccessLog {
        name: name.to_owned(),
        filter: Some(AccessLogFilter { filter_specifier: Some(which) }),
        config_type: Some(access_log::ConfigType::TypedConfig(packed(HttpGrpcAccessLogConfig {
            common_config: Some(CommonGrpcAccessLogConfig {
                log_name: name.to_owned(),
                grpc_service: Some(grpc_to(OPERATOR)),
                transport_api_version: ApiVersion::V3 as i32,
                buffer_flush_interval: Some(duration(Millis(100))),
                buffer_size_bytes: Some(number(4_096)),
                ..Default::default()
            }),
            additional_request_headers_to_log: vec![ATTEMPT_COUNT.to_owned()],
            additional_response_headers_to_log: vec!["grpc-status".to_owned()],
            additional_response_trailers_to_log: vec!["grpc-status".to_owned()],
        }))),
    }
}

fn header(name: &str, value: StringMatcher) -> FilterSpecifier {
    FilterSpecifier::HeaderFilter(HeaderFilter {
        header: Some(HeaderMatcher {
            name: name.to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(value)),
            ..Default::default()
        }),
    })
}

fn all(specifiers: Vec<FilterSpecifier>) -> FilterSpecifier {
    FilterSpecifier::AndFilter(AndFilter { filters: filters(specifiers) })
}

fn filters(specifiers: Vec<FilterSpecifier>) -> Vec<AccessLogFilter> {
    specifiers.into_iter().map(|specifier| AccessLogFilter { filter_specifier: Some(specifier) }).collect()
}
