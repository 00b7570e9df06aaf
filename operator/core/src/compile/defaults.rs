//! How calls are made when no policy says otherwise.
//!
//! The rule behind every value: a mesh nobody configured may save requests, and must never lose one that
//! would have succeeded without it. So there is no default limit and no default deadline on a request.

use crate::policy::{Http2, LoadBalancing, Millis, MtlsMode, RetryMethods, RetryOn};

/// Sidecars upgrade each other by themselves; callers without one still get in.
pub(super) const MTLS: MtlsMode = MtlsMode::Permissive;

/// No byte for five minutes ends a stream (Envoy's own default): longer than any keep-alive in use, short
/// enough that a caller whose peer vanished does not hold the stream for ever.
pub(super) const STREAM_IDLE: Millis = Millis(300_000);

/// A connection without a request is kept for an hour (Envoy's own default): a new one costs a handshake.
pub(super) const CONNECTION_IDLE: Millis = Millis(3_600_000);

/// TCP and TLS together. A lost SYN is sent again after one second (RFC 6298, 2.1): by then another endpoint
/// is the better bet, and the retry takes it.
pub(super) const CONNECT: Millis = Millis(1_000);

/// Tries after the first: enough to pass two sick endpoints in a row, not enough to triple an overload, which
/// the budget bounds further.
pub(super) const ATTEMPTS: u32 = 2;

/// The first three cannot have reached the application and are retried for every method; the last two only
/// where a repeat does no harm.
pub(super) const RETRY_ON: [RetryOn; 5] = [
    RetryOn::ConnectFailure,
    RetryOn::RefusedStream,
    RetryOn::ResetBeforeRequest,
    RetryOn::Reset,
    RetryOn::GrpcUnavailable,
];

/// A POST is never blindly repeated.
pub(super) const METHODS: [RetryMethods; 1] = [RetryMethods::Idempotent];

/// The methods a server must treat the same once and many times (RFC 9110, 9.2.2).
pub(super) const IDEMPOTENT: [&str; 6] = ["DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"];

/// First pause between tries (Envoy's own default): about one round trip inside a cluster.
pub(super) const BACKOFF_BASE: Millis = Millis(25);

/// The longest pause in multiples of the first (Envoy's own default).
pub(super) const BACKOFF_GROWTH: u64 = 10;

/// Retries as percent of the active requests: a destination that fails everything sees a fifth more load, not
/// three times as much.
pub(super) const BUDGET_PERCENT: u32 = 20;

/// Retries always allowed at once. What is lost with an endpoint is lost in one moment, and is no share of what goes on:
/// with Envoy's own 3, an endpoint that dies while its host is slow takes along the fourth request that was on its way to
/// it. As many as one connection carries at once (RFC 9113, 6.5.2), so that the loss of a connection costs no request.
pub(super) const BUDGET_MIN_CONCURRENT: u32 = 100;

/// Not watched: a 500 is an application's answer, and most often the same on every endpoint.
pub(super) const CONSECUTIVE_5XX: u32 = 0;

/// Gateway errors in a row before an endpoint is left out (Envoy's own default).
pub(super) const CONSECUTIVE_GATEWAY_ERRORS: u32 = 5;

/// How often ejected endpoints are looked at (Envoy's own default).
pub(super) const OUTLIER_INTERVAL: Millis = Millis(10_000);

/// How long the first ejection lasts (Envoy's own default).
pub(super) const BASE_EJECTION_TIME: Millis = Millis(30_000);

/// At most this part of the endpoints is left out: the other half must carry the load alone, and beyond it
/// the fault is more likely common than theirs.
pub(super) const MAX_EJECTION_PERCENT: u32 = 50;

/// The endpoint with fewer active requests, of two picked at random.
pub(super) const LOAD_BALANCING: LoadBalancing = LoadBalancing::LeastRequest;

/// Sidecar to sidecar.
pub(super) const HTTP2: Http2 = Http2::Auto;

/// What a caller reads when no endpoint can take the request and the policy asks for an answer but gives no
/// text.
pub(super) const WHEN_OPEN_BODY: &str = "no endpoint can take this request now; try again later";
