//! What applications speak.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What an application speaks on a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2 without TLS.
    Http2,
    /// gRPC: HTTP/2 without TLS, with gRPC's notion of failure.
    Grpc,
    /// Bytes: never sniffed, never retried.
    Tcp,
}

impl Protocol {
    /// Whether requests can be told apart (routed, retried, counted).
    pub fn is_http(self) -> bool {
        self != Protocol::Tcp
    }
    /// Whether the application speaks HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc)
    }

    /// What can be relied on where both are declared: bytes, unless they agree. gRPC is HTTP/2.
    #[must_use]
    pub fn and(self, other: Protocol) -> Protocol {
        match (self, other) {
            (one, other) if one == other => one,
            (one, other) if one.is_http2() && other.is_http2() => Protocol::Http2,
            _ => Protocol::Tcp,
        }
    }
}

impl fmt::Display for Protocol {
    /// As users write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Http => "http",
            Protocol::Http2 => "http2",
            Protocol::Grpc => "grpc",
            Protocol::Tcp => "tcp",
        })
    }
}
