//! Whether the application answers.

use crate::http::{self, Version};
use airlane_wire::message::AppHealth;
use hyper::Method;
use std::{io, net::Ipv4Addr, time::Duration};
use tokio::{net::TcpStream, sync::watch, time::timeout};

/// How often an application is asked that has not answered yet: often, because callers wait for it.
const STARTING_INTERVAL: Duration = Duration::from_millis(25);
/// How often it is asked afterwards.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// This many failures in a row make a healthy application unhealthy. A refused connection does so at once:
/// nobody listens, and every call would fail.
const FAILURES_MAX: u32 = 3;

/// How the application is, and why if it is not healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    /// What the operator is told.
    pub(crate) state: AppHealth,
    /// In words; empty when healthy.
    pub(crate) reason: String,
}

impl Health {
    /// An application that nobody asked yet.
    pub(crate) fn starting() -> Self {
        Self { state: AppHealth::Starting, reason: "not asked yet".into() }
    }
}

/// How to ask.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// The ports that must take connections, on loopback.
    pub(crate) ports: Vec<u16>,
    /// What must answer 2xx or 3xx on the first port.
    pub(crate) path: Option<String>,
    /// How that port speaks HTTP.
    pub(crate) version: Version,
}

/// What one round of asking found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    Answers,
    Fails { refused: bool, reason: String },
}

/// What the findings so far mean.
#[derive(Debug)]
struct Judge {
    health: Health,
    failures: u32,
}

impl Judge {
    fn take(&mut self, finding: Finding) {
        match finding {
            Finding::Answers => {
                self.failures = 0;
                self.health = Health { state: AppHealth::Healthy, reason: String::new() };
            }
            Finding::Fails { refused, reason } => {
                self.failures += 1;
                let state = match self.health.state {
                    AppHealth::Starting => AppHealth::Starting,
                    AppHealth::Healthy if !refused && self.failures < FAILURES_MAX => return,
                    AppHealth::Healthy | AppHealth::Unhealthy => AppHealth::Unhealthy,
                };
                self.health = Health { state, reason };
            }
        }
    }
}

/// Asks until nobody wants to know any more.
pub(crate) async fn watch(probe: Probe, told: watch::Sender<Health>) {
    let mut judge = Judge { health: Health::starting(), failures: 0 };
    while !told.is_closed() {
        judge.take(probe.ask().await);
        told.send_if_modified(|health| {
            let news = *health != judge.health;
            health.clone_from(&judge.health);
            news
        });
        let starting = judge.health.state == AppHealth::Starting;
        tokio::time::sleep(if starting { STARTING_INTERVAL } else { INTERVAL }).await;
    }
}

impl Probe {
    async fn ask(&self) -> Finding {
        for (index, port) in self.ports.iter().enumerate() {
            let path = self.path.as_deref().filter(|_| index == 0);
            let answer = timeout(ANSWER_TIMEOUT, self.ask_port(*port, path)).await;
            let slow = || Finding::Fails {
                refused: false,
                reason: format!("port {port} does not answer within {ANSWER_TIMEOUT:?}"),
            };
            match answer.unwrap_or_else(|_| slow()) {
                Finding::Answers => {}
                failure => return failure,
            }
        }
        Finding::Answers
    }

    async fn ask_port(&self, port: u16, path: Option<&str>) -> Finding {
        let fails = |refused, reason| Finding::Fails { refused, reason };
        let stream = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return fails(true, format!("nothing listens on 127.0.0.1:{port}"));
            }
            Err(error) => return fails(false, format!("port {port}: {error}")),
        };
        let Some(path) = path else { return Finding::Answers };
        match http::exchange(stream, self.version, Method::GET, path).await {
            Ok((status, _)) if status.is_success() || status.is_redirection() => Finding::Answers,
            Ok((status, _)) => fails(false, format!("GET {path} on port {port} answers {}", status.as_u16())),
            Err(error) => fails(false, format!("GET {path} on port {port}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AppHealth::{Healthy, Starting, Unhealthy};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// `a`: answers, `f`: fails, `r`: refused.
    fn check(findings: &str, expected: &[AppHealth]) {
        let mut judge = Judge { health: Health::starting(), failures: 0 };
        let fails = |refused| Finding::Fails { refused, reason: "why".into() };
        let found: Vec<AppHealth> = findings
            .chars()
            .map(|finding| {
                judge.take(match finding {
                    'a' => Finding::Answers,
                    'r' => fails(true),
                    _ => fails(false),
                });
                assert_eq!(judge.health.reason.is_empty(), judge.health.state == Healthy);
                judge.health.state
            })
            .collect();
        assert_eq!(found, expected, "{findings}");
    }

    #[test]
    fn one_slow_answer_is_forgiven_a_closed_port_is_not() {
        check("ffra", &[Starting, Starting, Starting, Healthy]);
        check("affaffff", &[Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Unhealthy, Unhealthy]);
        check("ara", &[Healthy, Unhealthy, Healthy]);
    }

    /// A listener that answers every request with `answer`.
    async fn application(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                // Both may fail: a TCP probe hangs up without a word.
                drop(stream.read(&mut request).await);
                drop(stream.write_all(answer.as_bytes()).await);
            }
        });
        port
    }

    async fn ask(ports: Vec<u16>, path: Option<&str>) -> Finding {
        Probe { ports, path: path.map(Into::into), version: Version::Http1 }.ask().await
    }

    #[tokio::test]
    async fn asks_by_connection_or_by_path() {
        let good = application("HTTP/1.1 204 No Content\r\n\r\n").await;
        let sick = application("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        let closed =
            TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").port();
        assert_eq!(ask(vec![good, sick], Some("/health")).await, Finding::Answers);
        assert_eq!(ask(vec![sick], None).await, Finding::Answers);
        let reason = format!("GET /health on port {sick} answers 503");
        assert_eq!(ask(vec![sick], Some("/health")).await, Finding::Fails { refused: false, reason });
        let reason = format!("nothing listens on 127.0.0.1:{closed}");
        assert_eq!(ask(vec![good, closed], None).await, Finding::Fails { refused: true, reason });
    }
}
