//! Failures: the logs of first attempts that failed, the router's and, for requests out of time, the request's own;
//! streamed within a tenth of a second.

use super::{Signal, Signals, denial::Told, intake::Failure};
use crate::{clock::Clock, members::Members, tls::Peer};
use airlane_core::id::ClusterName;
use envoy_types::pb::envoy::{
    config::core::v3::{Address, address, socket_address},
    data::accesslog::v3::{AccessLogType, HttpAccessLogEntry, ResponseFlags},
    service::accesslog::v3::{
        StreamAccessLogsMessage, StreamAccessLogsResponse, access_log_service_server::AccessLogService,
        stream_access_logs_message::LogEntries,
    },
};
use jiff::Timestamp;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// The longest message of a log, in bytes: a proxy sends what it has when that exceeds 16 KiB, and an entry may hold a
/// long path.
pub(crate) const MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// Receives failures.
pub(crate) struct FailureLog {
    /// The books.
    pub(crate) signals: Signals,
    /// Who may report.
    pub(crate) members: Arc<dyn Members>,
    /// When things arrive.
    pub(crate) clock: Arc<dyn Clock>,
    /// What was told of denials.
    pub(crate) told: Told,
    /// Ends the streams.
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl AccessLogService for FailureLog {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let peer =
            request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::unauthenticated("no peer"))?;
        let ended = self.read(&peer, request.into_inner()).await;
        self.signals.take(Signal::LogBroke(peer.instance), self.clock.now());
        ended.map(|()| Response::new(StreamAccessLogsResponse {}))
    }
}

impl FailureLog {
    async fn read(&self, peer: &Peer, mut stream: Streaming<StreamAccessLogsMessage>) -> Result<(), Status> {
        let mut rest_due = None;
        loop {
            let message = tokio::select! {
                () = sleep_until(rest_due.unwrap_or_else(Instant::now)), if rest_due.is_some() => {
                    self.told.rest(&peer.instance);
                    rest_due = None;
                    continue;
                }
                () = self.shutdown.cancelled() => return Err(Status::unavailable("shutting down")),
                message = stream.message() => message?,
            };
            let Some(message) = message else { return Ok(()) };
            let Some(LogEntries::HttpLogs(entries)) = message.log_entries else { continue };
            super::registered(&*self.members, peer)?;
            rest_due = self.told.tell(&peer.instance, &entries.log_entry).or(rest_due);
            let now = self.clock.now();
            let failures = entries.log_entry.iter().filter_map(|entry| failure(entry, now));
            let (published, others): (Vec<Failure>, Vec<Failure>) =
                failures.partition(|failure| self.signals.is_published(&failure.cluster));
            if !published.is_empty() {
                self.signals.take(Signal::Failures(peer.instance.clone(), published), now);
            }
            if let Some(failure) = others.first() {
                tracing::warn!(proxy = %peer.instance, cluster = %failure.cluster, "evidence for a destination that is not published to this proxy");
                return Err(Status::permission_denied(
                    "evidence for a destination that is not published to this proxy",
                ));
            }
        }
    }
}

/// What Envoy says of a request whose own time was up, and not that of its attempt.
const REQUEST_TIMEOUT: &str = "response_timeout";

/// The failure in a log entry, if it is one that counts: never a 4xx, the caller's own cancellation, its own
/// breaker, its own rate limit or an injected fault.
fn failure(entry: &HttpAccessLogEntry, at: Timestamp) -> Option<Failure> {
    let common = entry.common_properties.as_ref()?;
    let cluster: ClusterName = common.upstream_cluster.parse().ok()?;
    let status = entry
        .response
        .as_ref()
        .and_then(|response| response.response_code.as_ref())
        .map_or(0, |code| code.value);
    let flags = common.response_flags.as_ref();
    // An attempt out of time is told by its own log as well.
    let details = entry.response.as_ref().map_or("", |response| response.response_code_details.as_str());
    if common.access_log_type == AccessLogType::DownstreamEnd as i32 && details != REQUEST_TIMEOUT {
        return None;
    }
    let not_the_upstreams = flags.is_some_and(|flags| {
        flags.downstream_connection_termination
            || flags.upstream_overflow
            || flags.fault_injected
            || flags.delay_injected
            || flags.rate_limited
            || flags.no_route_found
    });
    if not_the_upstreams {
        return None;
    }
    let broke = flags.is_some_and(|flags| {
        flags.upstream_request_timeout
            || flags.upstream_connection_failure
            || flags.upstream_connection_termination
            || flags.upstream_remote_reset
            || flags.local_reset
            || flags.no_healthy_upstream
            || flags.upstream_protocol_error
    });
    (status >= 500 || broke || grpc_failed(entry)).then(|| Failure {
        cluster,
        endpoint: common.upstream_remote_address.as_ref().and_then(socket_address),
        at,
    })
}

/// gRPC's UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and DATA_LOSS are the server's failures. An answer below
/// 500 without any flag is logged for its gRPC status alone; one that has none ended without it, which is UNKNOWN.
fn grpc_failed(entry: &HttpAccessLogEntry) -> bool {
    let Some(response) = &entry.response else { return false };
    let status = response
        .response_trailers
        .get("grpc-status")
        .or_else(|| response.response_headers.get("grpc-status"));
    match status {
        Some(status) => matches!(status.as_str(), "2" | "4" | "13" | "14" | "15"),
        None => {
            let flags = entry.common_properties.as_ref().and_then(|common| common.response_flags.as_ref());
            flags.is_none_or(|flags| *flags == ResponseFlags::default())
        }
    }
}

fn socket_address(address: &Address) -> Option<SocketAddr> {
    let Some(address::Address::SocketAddress(socket)) = &address.address else { return None };
    let ip: IpAddr = socket.address.parse().ok()?;
    match socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => {
            Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::data::accesslog::v3::{AccessLogCommon, HttpResponseProperties};
    use envoy_types::pb::google::protobuf::UInt32Value;

    fn entry(status: u32, flags: ResponseFlags) -> HttpAccessLogEntry {
        HttpAccessLogEntry {
            common_properties: Some(AccessLogCommon {
                upstream_cluster: "80|pay|shop|v2".to_owned(),
                response_flags: Some(flags),
                ..Default::default()
            }),
            response: Some(HttpResponseProperties {
                response_code: Some(UInt32Value { value: status }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn only_what_the_upstream_did_counts() {
        let none = ResponseFlags::default;
        assert!(failure(&entry(503, none()), Timestamp::UNIX_EPOCH).is_some());
        let retried = ResponseFlags { upstream_retry_limit_exceeded: true, ..none() };
        assert!(failure(&entry(404, retried), Timestamp::UNIX_EPOCH).is_none());
        let cancelled = ResponseFlags { downstream_connection_termination: true, ..none() };
        assert!(failure(&entry(0, cancelled), Timestamp::UNIX_EPOCH).is_none());
        let breaker = ResponseFlags { upstream_overflow: true, ..none() };
        assert!(failure(&entry(503, breaker), Timestamp::UNIX_EPOCH).is_none());
        let reset = ResponseFlags { upstream_remote_reset: true, ..none() };
        assert!(failure(&entry(0, reset), Timestamp::UNIX_EPOCH).is_some());
    }

    #[test]
    fn a_timeout_counts_once_whoever_tells_it() {
        let timed_out = |kind: AccessLogType, details: &str| {
            let flags = ResponseFlags { upstream_request_timeout: true, ..ResponseFlags::default() };
            let mut entry = entry(504, flags);
            entry.common_properties.as_mut().expect("properties").access_log_type = kind as i32;
            entry.response.as_mut().expect("a response").response_code_details = details.to_owned();
            failure(&entry, Timestamp::UNIX_EPOCH).is_some()
        };
        assert!(timed_out(AccessLogType::DownstreamEnd, "response_timeout"));
        assert!(timed_out(AccessLogType::UpstreamEnd, ""));
        assert!(!timed_out(AccessLogType::DownstreamEnd, "upstream_per_try_timeout"));
    }

    #[test]
    fn grpc_tells_failure_apart_from_refusal() {
        for (code, fails) in [("14", true), ("13", true), ("5", false), ("0", false)] {
            let mut entry = entry(200, ResponseFlags::default());
            let response = entry.response.as_mut().expect("a response");
            response.response_trailers.insert("grpc-status".to_owned(), code.to_owned());
            assert_eq!(failure(&entry, Timestamp::UNIX_EPOCH).is_some(), fails, "grpc-status {code}");
        }
        let silent = entry(200, ResponseFlags::default());
        assert!(failure(&silent, Timestamp::UNIX_EPOCH).is_some(), "logged for a gRPC status it never got");
    }
}
