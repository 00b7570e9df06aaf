//! What the kernel is told about connections.

use super::proto::number;
use airlane_core::policy::Millis;
use envoy_types::pb::envoy::config::{
    cluster::v3::UpstreamConnectionOptions,
    core::v3::{
        BindConfig, SocketOption, TcpKeepalive,
        socket_option::{SocketState, Value},
    },
};

/// `SO_PRIORITY` of connections opened for the application. A pod's own address leads back into the pod without
/// passing the network: by this mark the redirection there tells a call of the application to itself, which must pass
/// its door, from the door's call to the application, which must not.
pub const CALL_PRIORITY: u32 = 4;

/// How long the other end's kernel may leave unacknowledged what was sent there (`TCP_USER_TIMEOUT`, RFC 5482); three
/// repetitions of a packet are lost by then (RFC 6298; Linux begins at 0.2 s). After that its host is taken for dead: the
/// connection goes, and what can be repeated is tried elsewhere before common clients give up after 10 s. Left to itself
/// the kernel would try for a quarter of an hour. A process that is busy or stopped is not meant: its kernel
/// acknowledges.
const UNACKNOWLEDGED: Millis = Millis(3_000);

/// The same for HTTP/1.1, whose peer may rightly read nothing for a while: the kernel counts that as silence, too. A host
/// that is gone is left before common clients' and balancers' longest patience (60 s) is over.
const UNREAD: Millis = Millis(30_000);

/// Marks connections with [`CALL_PRIORITY`].
pub(super) fn for_the_application() -> BindConfig {
    // asm-generic/socket.h: SOL_SOCKET and SO_PRIORITY on every architecture Envoy is built for.
    bound(vec![option("SO_PRIORITY", 1, 12, CALL_PRIORITY)])
}

/// Connections to endpoints, as the application's if `marked`. `http2`: whether they speak HTTP/2, if they speak HTTP; it
/// has a flow control of its own, so that bytes are always taken from its connections. For how long bytes that are no
/// requests may wait for their reader, nobody knows.
pub(super) fn to_endpoints(marked: bool, http2: Option<bool>) -> Option<BindConfig> {
    let mark = marked.then(for_the_application).unwrap_or_default().socket_options;
    // linux/tcp.h: IPPROTO_TCP and TCP_USER_TIMEOUT.
    let give_up = http2.map(|http2| {
        let silence = if http2 { UNACKNOWLEDGED } else { UNREAD };
        option("TCP_USER_TIMEOUT", 6, 18, u32::try_from(silence.0).unwrap_or(u32::MAX))
    });
    let options: Vec<SocketOption> = mark.into_iter().chain(give_up).collect();
    (!options.is_empty()).then(|| bound(options))
}

/// The ends of a connection through proxies do not see each other: those that would notice by their own keep-alive that
/// the other host is gone, ask their own proxy. So proxies ask each other: a dead host is noticed within a minute.
pub(super) fn keepalive() -> TcpKeepalive {
    TcpKeepalive {
        keepalive_time: Some(number(30)),
        keepalive_interval: Some(number(10)),
        keepalive_probes: Some(number(3)),
    }
}

/// [`keepalive`] for the connections of a cluster.
pub(super) fn kept_alive() -> UpstreamConnectionOptions {
    UpstreamConnectionOptions { tcp_keepalive: Some(keepalive()), ..Default::default() }
}

fn bound(socket_options: Vec<SocketOption>) -> BindConfig {
    BindConfig { socket_options, ..Default::default() }
}

fn option(description: &str, level: i64, name: i64, value: u32) -> SocketOption {
    SocketOption {
        description: description.to_owned(),
        level,
        name,
        state: SocketState::StatePrebind as i32,
        value: Some(Value::IntValue(i64::from(value))),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_a_silent_host_and_bytes_wait() {
        for (http2, expected) in [(Some(true), Some(3_000)), (Some(false), Some(30_000)), (None, None)] {
            let told = to_endpoints(false, http2).map(|bound| bound.socket_options[0].value.clone());
            assert_eq!(told, expected.map(|silence| Some(Value::IntValue(silence))));
        }
    }
}
