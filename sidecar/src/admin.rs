//! Envoy's admin interface, on a unix socket in the run folder.

use crate::http::{self, HttpError, Version};
use hyper::{Method, StatusCode};
use std::{io, path::PathBuf, time::Duration};
use tokio::{net::UnixStream, time::timeout};

/// The longest an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The statistics of requests at the door that are not answered yet, and of raw connections through it.
const INBOUND_ACTIVE: &str = "/stats?filter=inbound.*downstream_(rq|cx)_active";

/// The statistics of requests sent, by cluster.
const SENT: &str = "/stats?filter=upstream_rq_total";

/// The interface.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    socket: PathBuf,
}

/// Why Envoy did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// Nothing listens: it has not started, or has ended.
    #[error("Envoy's admin socket takes no connection")]
    Connect(#[source] io::Error),
    /// The conversation broke.
    #[error("Envoy's admin interface broke off")]
    Http(#[source] HttpError),
    /// It did not answer in time.
    #[error("Envoy's admin interface does not answer within {ANSWER_TIMEOUT:?}")]
    Timeout,
    /// It refused.
    #[error("Envoy's admin interface answers {0}")]
    Status(StatusCode),
}

impl Admin {
    /// The interface on `socket`.
    pub(crate) fn on(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Whether Envoy has all of its configuration and listens. An operator that has nothing to say yet may leave it
    /// with a configuration that is complete and empty.
    pub(crate) async fn is_ready(&self) -> Result<bool, AdminError> {
        let (status, _) = self.call(Method::GET, "/ready").await?;
        Ok(status.is_success() && !self.good(Method::GET, "/listeners").await?.trim().is_empty())
    }

    /// Tells Envoy to ask callers to go elsewhere: `GOAWAY`, `connection: close`. It goes on serving.
    /// Only a new Envoy takes that back.
    pub(crate) async fn drain_inbound(&self) -> Result<(), AdminError> {
        self.good(Method::POST, "/drain_listeners?graceful&skip_exit&inboundonly").await.map(drop)
    }

    /// Requests, and raw connections, that callers still have with the application.
    pub(crate) async fn inbound_active(&self) -> Result<u64, AdminError> {
        self.good(Method::GET, INBOUND_ACTIVE).await.map(|stats| active(&stats))
    }

    /// Whether it sent a request to one version of a service.
    pub(crate) async fn called_a_version(&self) -> Result<bool, AdminError> {
        self.good(Method::GET, SENT).await.map(|stats| called_a_version(&stats))
    }

    async fn good(&self, method: Method, path: &str) -> Result<String, AdminError> {
        let (status, body) = self.call(method, path).await?;
        if status.is_success() { Ok(body) } else { Err(AdminError::Status(status)) }
    }

    async fn call(&self, method: Method, path: &str) -> Result<(StatusCode, String), AdminError> {
        let call = async {
            let stream = UnixStream::connect(&self.socket).await.map_err(AdminError::Connect)?;
            let (status, body) =
                http::exchange(stream, Version::Http1, method, path).await.map_err(AdminError::Http)?;
            Ok((status, String::from_utf8_lossy(&body).into_owned()))
        };
        timeout(ANSWER_TIMEOUT, call).await.unwrap_or(Err(AdminError::Timeout))
    }
}

/// Adds up `http.….downstream_rq_active` and `tcp.….downstream_cx_active`. An HTTP connection without a request
/// loses nothing when it goes.
fn active(stats: &str) -> u64 {
    let counts = stats.lines().filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let request = name.starts_with("http.") && name.ends_with(".downstream_rq_active");
        let connection = name.starts_with("tcp.") && name.ends_with(".downstream_cx_active");
        (request || connection).then(|| value.trim().parse::<u64>().ok()).flatten()
    });
    counts.sum()
}

/// Whether a cluster `PORT|SERVICE|NAMESPACE|VERSION` was sent a request: a rollout is judged by those.
fn called_a_version(stats: &str) -> bool {
    let mut counts = stats.lines().filter_map(|line| {
        let (name, count) = line.split_once(": ")?;
        let cluster = name.strip_prefix("cluster.")?.strip_suffix(".upstream_rq_total")?;
        (cluster.matches('|').count() == 3).then(|| count.trim().parse::<u64>().ok()).flatten()
    });
    counts.any(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_would_be_lost() {
        let stats = "http.inbound|8080|mtls.downstream_cx_active: 7\n\
                     http.inbound|8080|mtls.downstream_rq_active: 2\n\
                     http.inbound|8080|plaintext.downstream_rq_active: 1\n\
                     tcp.inbound|9090|mtls.downstream_cx_active: 4\n\
                     nonsense\n";
        assert_eq!(active(stats), 7);
        assert_eq!(active(""), 0);
    }

    #[test]
    fn a_version_was_called_when_its_counter_says_so() {
        let none = "cluster.80|pay|shop.upstream_rq_total: 7\n\
                    cluster.operator.upstream_rq_total: 9\n\
                    cluster.80|pay|shop|v2.upstream_rq_total: 0\n";
        assert!(!called_a_version(none));
        assert!(called_a_version(&format!("{none}cluster.80|pay|shop|v1.0.3.upstream_rq_total: 3\n")));
        assert!(!called_a_version(""));
    }
}
