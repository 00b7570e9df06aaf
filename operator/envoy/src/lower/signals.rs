//! What a proxy reports of each call: first attempts that failed, at once.

use super::proto::{duration, exactly, grpc_to, number, packed, starting_with};
use airlane_core::policy::Millis;
use envoy_types::pb::envoy::{
    config::{
        accesslog::v3::{
            AccessLog, AccessLogFilter, AndFilter, ComparisonFilter, GrpcStatusFilter, HeaderFilter,
            OrFilter, ResponseFlagFilter, StatusCodeFilter, access_log, access_log_filter::FilterSpecifier,
            comparison_filter::Op, grpc_status_filter::Status,
        },
        core::v3::{ApiVersion, RuntimeUInt32},
        route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    },
    extensions::access_loggers::grpc::v3::{CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig},
    r#type::matcher::v3::StringMatcher,
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

fn of_first_attempts(name: &str, which: FilterSpecifier) -> AccessLog {
    let first = header(ATTEMPT_COUNT, exactly("1"));
    AccessLog {
        name: name.to_owned(),
        filter: Some(AccessLogFilter { filter_specifier: Some(all(vec![first, which])) }),
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
