//! What the injector writes into a pod and the agent in that pod reads: ports, paths, variables, probes.
//!
//! The kubelet probes an application from outside the mesh, without a certificate. So every probe and every HTTP hook
//! is pointed at the agent ([`handler_path`]), and what it was before is handed to the agent in
//! [`PROBES_VARIABLE`].

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, ops::RangeInclusive};

/// Ports of a pod that are ours: an application may use none of them.
pub const RESERVED_PORTS: RangeInclusive<u16> = 15_000..=15_099;
/// Where the proxy takes the application's calls.
pub const OUTBOUND_PORT: u16 = 15_001;
/// Where the proxy takes calls to the application.
pub const INBOUND_PORT: u16 = 15_006;
/// Where the agent answers the kubelet, in plain HTTP.
pub const AGENT_PORT: u16 = 15_020;
/// The user and the group of agent and proxy: what they send is not redirected.
pub const PROXY_UID: u32 = 1337;

/// The container that redirects the pod's traffic, and ends.
pub const INIT_CONTAINER: &str = "airlane-init";
/// The container with agent and proxy.
pub const PROXY_CONTAINER: &str = "airlane-proxy";

/// The folder with the pod's token.
pub const TOKEN_DIR: &str = "/var/run/secrets/airlane.dev";
/// The token's file in [`TOKEN_DIR`].
pub const TOKEN_FILE: &str = "token";
/// Whom the token is for.
pub const TOKEN_AUDIENCE: &str = "airlane";
/// The folder, in memory, where keys and sockets may be.
pub const RUN_DIR: &str = "/run/airlane";

/// The operator's address: `HOST:PORT`.
pub const OPERATOR_VARIABLE: &str = "AIRLANE_OPERATOR";
/// SHA-256 of the roots' DER in lower-case hex, separated by commas: one of them must have signed the operator.
pub const ROOTS_VARIABLE: &str = "AIRLANE_ROOT_SHA256";
/// The trust domain.
pub const TRUST_DOMAIN_VARIABLE: &str = "AIRLANE_TRUST_DOMAIN";
/// [`Handlers`] as JSON.
pub const PROBES_VARIABLE: &str = "AIRLANE_PROBES";

/// Answers 200 as soon as the agent has a certificate and its proxy has acknowledged its listeners.
pub const READY_PATH: &str = "/ready";
/// Answers when callers have stopped to call this pod.
pub const DRAIN_PATH: &str = "/drain";

/// The path at the agent of a container's probe or hook.
pub fn handler_path(container: &str, asked: Asked) -> String {
    let kind = if asked.is_hook() { "hook" } else { "probe" };
    format!("/{kind}/{container}/{asked}")
}

/// What the kubelet asks of a container.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Asked {
    /// Is it to be started anew?
    Liveness,
    /// May it be called?
    Readiness,
    /// Has it started?
    Startup,
    /// It has started.
    PostStart,
    /// It is about to be stopped.
    PreStop,
}

impl Asked {
    /// Every one.
    pub const ALL: [Asked; 5] =
        [Asked::Liveness, Asked::Readiness, Asked::Startup, Asked::PostStart, Asked::PreStop];

    /// Whether it is an event of the container's life, and no probe.
    pub fn is_hook(self) -> bool {
        matches!(self, Asked::PostStart | Asked::PreStop)
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Asked::Liveness => "liveness",
            Asked::Readiness => "readiness",
            Asked::Startup => "startup",
            Asked::PostStart => "postStart",
            Asked::PreStop => "preStop",
        })
    }
}

/// What the agent does for the kubelet, by `CONTAINER/ASKED` (`pay/liveness`, `pay/preStop`).
pub type Handlers = BTreeMap<String, Handler>;

/// The key in [`Handlers`] of a container's probe or hook.
pub fn handler_key(container: &str, asked: Asked) -> String {
    format!("{container}/{asked}")
}

/// What the kubelet would have done itself, in the words of a pod's specification, with ports resolved to numbers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handler {
    /// How it asks.
    #[serde(flatten)]
    pub action: Action,
    /// How long the application has to answer a probe, in seconds; `None` for a hook, which has the whole grace
    /// period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// How the kubelet asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// A GET whose answer is 2xx or 3xx.
    #[serde(rename_all = "camelCase")]
    HttpGet {
        /// Path and query.
        path: String,
        /// The application's port.
        port: u16,
        /// In plain text or by TLS, whatever the certificate says.
        #[serde(default)]
        scheme: Scheme,
        /// Headers to add; `Host` among them takes the place of the address.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        http_headers: Vec<HttpHeader>,
    },
    /// A connection that is accepted.
    TcpSocket {
        /// The application's port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` that answers `SERVING`.
    Grpc {
        /// The application's port.
        port: u16,
        /// The service it asks about; empty: the whole server.
        #[serde(default)]
        service: String,
    },
}

/// The scheme of an HTTP probe or hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    /// Plain text.
    #[default]
    Http,
    /// TLS without verification, as the kubelet does it.
    Https,
}

/// A header of an HTTP probe or hook.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_written_as_in_a_pod() {
        let text = concat!(
            r#"{"pay/liveness":{"httpGet":{"path":"/healthz?full","port":8443,"scheme":"HTTPS","#,
            r#""httpHeaders":[{"name":"Host","value":"pay"}]},"timeoutSeconds":2},"#,
            r#""pay/preStop":{"httpGet":{"path":"/","port":80,"scheme":"HTTP"}},"#,
            r#""pay/readiness":{"tcpSocket":{"port":80},"timeoutSeconds":1},"#,
            r#""pay/startup":{"grpc":{"port":9000,"service":"shop.Pay"},"timeoutSeconds":1}}"#,
        );
        let handlers: Handlers = serde_json::from_str(text).unwrap();
        assert_eq!(handlers.len(), 4);
        assert_eq!(serde_json::to_string(&handlers).unwrap(), text);
        let grpc = r#"{"a/startup":{"grpc":{"port":9000}}}"#;
        let handlers: Handlers = serde_json::from_str(grpc).unwrap();
        assert_eq!(handlers["a/startup"].action, Action::Grpc { port: 9000, service: String::new() });
    }

    #[test]
    fn what_is_asked_has_a_path_and_a_key() {
        assert_eq!(handler_path("pay", Asked::Liveness), "/probe/pay/liveness");
        assert_eq!(handler_path("pay", Asked::PostStart), "/hook/pay/postStart");
        assert_eq!(handler_key("pay", Asked::PreStop), "pay/preStop");
    }
}
