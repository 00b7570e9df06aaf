//! What the injector, the agent and the kubelet agree on in a pod.
//!
//! The kubelet has no certificate, so it asks the agent, on [`AGENT_PORT`], and the agent asks the application past the
//! mesh: probes, `httpGet` lifecycle hooks, and [`Asked::Drain`]. That port is open to everybody in the cluster, while
//! a probe passes by every policy and a drain takes the pod out of rotation. So each path but [`READY_PATH`] ends in a
//! secret that the injector draws for this pod; only who may read the pod knows it.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, ops::RangeInclusive, str::FromStr};

/// Ports of a pod that are Airlane's own.
pub const RESERVED_PORTS: RangeInclusive<u16> = 15_000..=15_099;
/// The user that agent and Envoy run as; its connections are not intercepted.
pub const PROXY_UID: u32 = 1337;
/// Where intercepted outgoing connections arrive, and where `HTTP_PROXY` points without interception.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where intercepted incoming connections arrive.
pub const INBOUND_PORT: u16 = 15006;
/// Where the agent answers the kubelet.
pub const AGENT_PORT: u16 = 15020;
/// `SO_PRIORITY` of the connections that Envoy opens on behalf of the application. The pod's own address leads back
/// into the pod without passing the network, so this is how a call to oneself, which goes through the inbound
/// listener, is told from that listener's call to the application, which must not.
///
/// 4 is best effort to every queueing discipline of Linux (`TC_PRIO_INTERACTIVE_BULK` shares its band), and setting it
/// takes no privilege (socket(7)).
pub const CALL_PRIORITY: u32 = 4;

/// The variable that holds the operator's address, `HOST:PORT`.
pub const OPERATOR_VARIABLE: &str = "AIRLANE_OPERATOR";
/// The variable that holds SHA-256 of the roots' DER, in hex, separated by commas: one of them stands behind the
/// operator.
pub const ROOTS_VARIABLE: &str = "AIRLANE_ROOT_SHA256";
/// The variable that holds the trust domain.
pub const TRUST_DOMAIN_VARIABLE: &str = "AIRLANE_TRUST_DOMAIN";
/// The variable that holds the pod's address.
pub const ADDRESS_VARIABLE: &str = "POD_IP";
/// The variable that holds [`Asks`] as JSON.
pub const ASKS_VARIABLE: &str = "AIRLANE_PROBES";
/// The file of the projected service-account token. The kubelet replaces it before it expires.
pub const TOKEN_FILE: &str = "/var/run/secrets/airlane.dev/token";
/// The audience of that token.
pub const TOKEN_AUDIENCE: &str = "airlane";
/// The agent's folder, in memory.
pub const RUN_DIR: &str = "/run/airlane";

/// Answers 200 once there is a certificate and Envoy listens: the startup probe.
pub const READY_PATH: &str = "/ready";

/// What the agent asks the application on the kubelet's behalf, as the pod had it before the injector changed it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Asks {
    /// What ends every path, see [`is_secret`].
    pub secret: String,
    /// By container and occasion, see [`Asked::key`].
    pub asks: BTreeMap<String, Ask>,
}

impl fmt::Debug for Asks {
    /// Leaves the secret out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asks").field("asks", &self.asks).finish_non_exhaustive()
    }
}

/// One question, in the words of Kubernetes' `Probe` and `LifecycleHandler`. Ports are numbers: the injector looks
/// named ones up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ask {
    /// How to ask.
    #[serde(flatten)]
    pub how: How,
    /// The longest the answer may take, in seconds, at least 1. Kubernetes has none for hooks: there it is the pod's
    /// termination grace period.
    pub timeout_seconds: u32,
}

/// How to ask.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum How {
    /// An HTTP request; 200 to 399 is well.
    HttpGet(HttpGet),
    /// A TCP connection.
    TcpSocket(TcpSocket),
    /// gRPC's health check (`grpc.health.v1.Health/Check`).
    Grpc(Grpc),
}

/// An HTTP request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// Path and query.
    #[serde(default)]
    pub path: String,
    /// The port of the pod.
    pub port: u16,
    /// Whether by TLS; the certificate is not verified, as the kubelet does not.
    #[serde(default)]
    pub scheme: Scheme,
    /// Headers to send, in their order.
    #[serde(default)]
    pub http_headers: Vec<Header>,
}

/// How an HTTP request travels.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    /// As it is.
    #[default]
    Http,
    /// By TLS.
    Https,
}

/// A header.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A TCP connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TcpSocket {
    /// The port of the pod.
    pub port: u16,
}

/// gRPC's health check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grpc {
    /// The port of the pod.
    pub port: u16,
    /// The service to ask about; empty: the server.
    #[serde(default)]
    pub service: String,
}

/// When the kubelet asks a container.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Occasion {
    /// `livenessProbe`
    Liveness,
    /// `readinessProbe`
    Readiness,
    /// `startupProbe`
    Startup,
    /// `lifecycle.postStart`
    PostStart,
    /// `lifecycle.preStop`
    PreStop,
}

impl Occasion {
    /// Every occasion.
    pub const ALL: [Self; 5] =
        [Self::Liveness, Self::Readiness, Self::Startup, Self::PostStart, Self::PreStop];

    /// Its name in keys and paths.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
            Self::PostStart => "postStart",
            Self::PreStop => "preStop",
        }
    }

    /// The first part of its paths.
    fn room(self) -> &'static str {
        match self {
            Self::Liveness | Self::Readiness | Self::Startup => "probe",
            Self::PostStart | Self::PreStop => "hook",
        }
    }
}

/// What a request to the agent asks for, and the secret it shows.
///
/// Paths: `/ready`, `/drain/SECRET`, `/probe/CONTAINER/{liveness,readiness,startup}/SECRET`,
/// `/hook/CONTAINER/{postStart,preStop}/SECRET`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked<'a> {
    /// Whether the proxy is ready.
    Ready,
    /// To be taken out of rotation; answered when callers know, or after 5 s.
    Drain {
        /// What the path ends in.
        secret: &'a str,
    },
    /// A container's own probe or hook.
    Container {
        /// The container's name.
        container: &'a str,
        /// When.
        occasion: Occasion,
        /// What the path ends in.
        secret: &'a str,
    },
}

impl<'a> Asked<'a> {
    /// Reads the path of a request; `None`: nothing is there.
    pub fn of_path(path: &'a str) -> Option<Self> {
        if path == READY_PATH {
            return Some(Self::Ready);
        }
        let mut parts = path.strip_prefix('/')?.split('/');
        let asked = match (parts.next()?, parts.next()?, parts.next(), parts.next()) {
            ("drain", secret, None, None) => Self::Drain { secret },
            (room, container, Some(name), Some(secret)) => {
                let known = |occasion: &Occasion| occasion.room() == room && occasion.as_str() == name;
                let occasion = Occasion::ALL.into_iter().find(known)?;
                Self::Container { container, occasion, secret }
            }
            _ => return None,
        };
        parts.next().is_none().then_some(asked)
    }

    /// The path to ask for it.
    pub fn path(&self) -> String {
        match self {
            Self::Ready => READY_PATH.into(),
            Self::Drain { secret } => format!("/drain/{secret}"),
            Self::Container { container, occasion, secret } => {
                format!("/{}/{container}/{}/{secret}", occasion.room(), occasion.as_str())
            }
        }
    }

    /// The key of a container's question in [`Asks::asks`].
    pub fn key(container: &str, occasion: Occasion) -> String {
        format!("{container}/{}", occasion.as_str())
    }
}

/// Whether a text will do as [`Asks::secret`]: 16 to 128 letters and digits.
pub fn is_secret(text: &str) -> bool {
    (16..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Why a text holds no [`Asks`]. It does not repeat the text, which holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum BadAsks {
    /// It is not the JSON of one.
    #[error("{ASKS_VARIABLE} is not what an injector writes, at column {}; was the pod edited by hand?", .0.column())]
    Json(#[source] serde_json::Error),
    /// The secret is none.
    #[error("{ASKS_VARIABLE}: the secret must be 16 to 128 letters and digits")]
    Secret,
    /// A question that can never be answered well.
    #[error("{ASKS_VARIABLE}: {key}: timeoutSeconds must be at least 1")]
    Timeout {
        /// Which.
        key: String,
    },
}

impl FromStr for Asks {
    type Err = BadAsks;

    fn from_str(text: &str) -> Result<Self, BadAsks> {
        let asks: Self = serde_json::from_str(text).map_err(BadAsks::Json)?;
        if !is_secret(&asks.secret) {
            return Err(BadAsks::Secret);
        }
        match asks.asks.iter().find(|(_, ask)| ask.timeout_seconds == 0) {
            Some((key, _)) => Err(BadAsks::Timeout { key: key.clone() }),
            None => Ok(asks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn a_path_reads_back() {
        let mut all = vec![Asked::Ready, Asked::Drain { secret: SECRET }];
        all.extend(Occasion::ALL.map(|occasion| Asked::Container {
            container: "app",
            occasion,
            secret: SECRET,
        }));
        for asked in all {
            assert_eq!(Asked::of_path(&asked.path()), Some(asked));
        }
        assert_eq!(
            Asked::Container { container: "app", occasion: Occasion::PreStop, secret: SECRET }.path(),
            "/hook/app/preStop/0123456789abcdef",
        );
    }

    #[test]
    fn other_paths_lead_nowhere() {
        for path in [
            "",
            "/",
            "*",
            "//",
            "/ready/",
            "/drain",
            "/drain/a/b",
            "/probe/app/liveness",
            "/probe/app/preStop/s",
            "/hook/app/liveness/s",
            "/probe/app/liveness/s/",
            "/probe/app/../s",
            "http://x/ready",
        ] {
            assert_eq!(Asked::of_path(path), None, "{path}");
        }
    }

    fn check(json: &str, expected: Result<(), &str>) {
        match (json.parse::<Asks>(), expected) {
            (Ok(asks), Ok(())) => {
                let written = serde_json::to_string(&asks).expect("JSON");
                assert_eq!(written.parse::<Asks>().expect("read back"), asks);
            }
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{error}");
                assert!(!error.to_string().contains(SECRET));
            }
            (read, _) => panic!("{json}: {read:?}"),
        }
    }

    #[test]
    fn reads_what_kubernetes_says() {
        let asks = |ask: &str| format!(r#"{{"secret":"{SECRET}","asks":{{"app/liveness":{ask}}}}}"#);
        check(&asks(r#"{"httpGet":{"port":80},"timeoutSeconds":1}"#), Ok(()));
        check(
            &asks(
                r#"{"httpGet":{"path":"/h?x=1","port":80,"scheme":"HTTPS",
                    "httpHeaders":[{"name":"Host","value":"pay"}]},"timeoutSeconds":3,"periodSeconds":10}"#,
            ),
            Ok(()),
        );
        check(&asks(r#"{"tcpSocket":{"port":80},"timeoutSeconds":1}"#), Ok(()));
        check(&asks(r#"{"grpc":{"port":80,"service":"pay"},"timeoutSeconds":1}"#), Ok(()));
        check(&asks(r#"{"tcpSocket":{"port":80},"timeoutSeconds":0}"#), Err("app/liveness: timeoutSeconds"));
        check(&asks(r#"{"exec":{},"timeoutSeconds":1}"#), Err("not what an injector writes"));
        check(
            &asks(r#"{"tcpSocket":{"port":"http"},"timeoutSeconds":1}"#),
            Err("not what an injector writes"),
        );
        check(r#"{"secret":"short","asks":{}}"#, Err("16 to 128"));
        check(&format!("{{\"secret\":\"{SECRET}\""), Err("not what an injector writes"));
    }
}
