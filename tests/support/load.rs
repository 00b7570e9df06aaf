//! Open-loop load: requests leave when they are due, whatever became of those before, and their latency counts from
//! when they were due. A load that waits for answers would hide every stall.

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Uri,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{net::TcpStream, task::JoinHandle, time::Instant};

/// A request without an answer after this long has failed.
const LONGEST: Duration = Duration::from_secs(15);
const LONGEST_US: u64 = LONGEST.as_micros() as u64;
/// More than these under way: the load has outgrown what it is sent to, and the next one has failed.
const MOST_UNDER_WAY: usize = 2_000;
/// How many failures are kept in words.
const FAILURES_TOLD: usize = 10;

type Connection = SendRequest<Empty<Bytes>>;

/// When requests are due.
#[derive(Clone, Copy, Debug)]
pub enum Arrivals {
    /// Evenly.
    Uniform,
    /// As of independent callers: exponential gaps from this seed.
    Poisson(u64),
}

/// Load under way; it stops when it is dropped.
pub struct Load {
    shared: Arc<Shared>,
    sending: Option<JoinHandle<()>>,
}

struct Shared {
    proxy: SocketAddr,
    url: Uri,
    host: header::HeaderValue,
    stop: AtomicBool,
    under_way: AtomicUsize,
    idle: Mutex<Vec<Connection>>,
    started: Instant,
    report: Mutex<Report>,
}

/// What became of the requests.
#[derive(Clone, Debug)]
pub struct Report {
    /// Requests that were due.
    pub sent: u64,
    /// Requests without a 2xx answer.
    pub failed: u64,
    /// The first failures: when, in seconds since the load began, and what.
    pub failures: Vec<String>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Good answers by the `version` in their JSON body.
    pub versions: BTreeMap<String, u64>,
    /// Microseconds from when a request was due to the end of its answer.
    pub latency_us: Histogram<u64>,
}

impl Load {
    /// Begins to GET `url` through the forward proxy on loopback port `proxy`, `per_second` times.
    ///
    /// # Panics
    /// When `url` is not an `http://` URL.
    pub fn start(proxy: u16, url: &str, per_second: f64) -> Self {
        Self::start_with(proxy, url, per_second, Arrivals::Uniform)
    }

    /// As [`Load::start`], with the choice of when requests are due.
    ///
    /// # Panics
    /// When `url` is not an `http://` URL.
    pub fn start_with(proxy: u16, url: &str, per_second: f64, arrivals: Arrivals) -> Self {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, proxy)), url, per_second, arrivals)
    }

    /// As [`Load::start_with`], through whoever listens at `proxy`: a server itself, too, as servers take what is sent to
    /// proxies (RFC 9112, 3.2.2).
    ///
    /// # Panics
    /// When `url` is not an `http://` URL.
    pub fn start_at(proxy: SocketAddr, url: &str, per_second: f64, arrivals: Arrivals) -> Self {
        let url: Uri = url.parse().unwrap();
        let host = url.authority().expect("the URL of a load has a host").as_str().parse().unwrap();
        let shared = Arc::new(Shared {
            proxy,
            url,
            host,
            stop: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            idle: Mutex::default(),
            started: Instant::now(),
            report: Mutex::new(Report::empty()),
        });
        let sending = Some(tokio::spawn(Arc::clone(&shared).send_all(per_second, arrivals)));
        Load { shared, sending }
    }

    /// What became of the requests so far.
    pub fn so_far(&self) -> Report {
        self.shared.report.lock().unwrap().clone()
    }

    /// How many were due so far.
    pub fn sent(&self) -> u64 {
        self.shared.report.lock().unwrap().sent
    }

    /// Stops, and waits for the answers that are still due.
    ///
    /// # Panics
    /// When the load itself broke.
    pub async fn finish(mut self) -> Report {
        self.shared.stop.store(true, Relaxed);
        if let Some(sending) = self.sending.take() {
            sending.await.unwrap();
        }
        crate::until::until("the last answers", LONGEST * 2, async || {
            match self.shared.under_way.load(Relaxed) {
                0 => Ok(()),
                n => Err(format!("{n} under way")),
            }
        })
        .await;
        self.so_far()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
    }
}

impl Shared {
    async fn send_all(self: Arc<Self>, per_second: f64, arrivals: Arrivals) {
        let mut gaps = Gaps { mean: 1.0 / per_second, arrivals, n: 0 };
        let mut due = 0.0;
        while !self.stop.load(Relaxed) {
            let due_at = self.started + Duration::from_secs_f64(due);
            tokio::time::sleep_until(due_at).await;
            self.report.lock().unwrap().sent += 1;
            if self.under_way.fetch_add(1, Relaxed) < MOST_UNDER_WAY {
                tokio::spawn(Arc::clone(&self).send_one(due_at));
            } else {
                self.under_way.fetch_sub(1, Relaxed);
                self.failed(&format!("not sent: {MOST_UNDER_WAY} under way"));
            }
            due += gaps.next();
        }
    }

    async fn send_one(self: Arc<Self>, due_at: Instant) {
        let outcome = tokio::time::timeout_at(due_at + LONGEST, self.exchange()).await;
        let latency = u64::try_from(due_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        match outcome {
            Ok(Ok((status, body))) => {
                let mut report = self.report.lock().unwrap();
                *report.statuses.entry(status).or_default() += 1;
                report.latency_us.saturating_record(latency);
                drop(report);
                if (200..300).contains(&status) {
                    self.answered(&body);
                } else {
                    self.failed(&format!("{status} {}", String::from_utf8_lossy(&body)));
                }
            }
            Ok(Err(why)) => self.failed(&why),
            Err(_) => self.failed(&format!("no answer in {LONGEST:?}")),
        }
        self.under_way.fetch_sub(1, Relaxed);
    }

    fn answered(&self, body: &[u8]) {
        let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        if let Some(version) = json.as_ref().and_then(|json| json["version"].as_str()) {
            *self.report.lock().unwrap().versions.entry(version.to_owned()).or_default() += 1;
        }
    }

    fn failed(&self, why: &str) {
        let at = self.started.elapsed().as_secs_f64();
        let mut report = self.report.lock().unwrap();
        report.failed += 1;
        if report.failures.len() < FAILURES_TOLD {
            report.failures.push(format!("after {at:.3} s: {why}"));
        }
    }

    async fn exchange(&self) -> Result<(u16, Bytes), String> {
        let broken = |error: hyper::Error| format!("the connection broke: {:#}", anyhow::Error::from(error));
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.url.clone();
        request.headers_mut().insert(header::HOST, self.host.clone());
        loop {
            let kept = self.take_idle();
            let fresh = kept.is_none();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            match connection.try_send_request(request).await {
                Ok(response) => {
                    let status = response.status().as_u16();
                    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
                    self.idle.lock().unwrap().push(connection);
                    return Ok((status, body));
                }
                // As every HTTP client does: what was not sent on a connection closed in the meantime is sent on
                // a new one. A request that left and was not answered is a failure.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(broken(error.into_error())),
                },
            }
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap();
        idle.retain(|connection| !connection.is_closed());
        let ready = idle.iter().rposition(Connection::is_ready)?;
        Some(idle.swap_remove(ready))
    }

    async fn connect(&self) -> Result<Connection, String> {
        let told = |error: std::io::Error| format!("no connection to {}: {error}", self.proxy);
        let stream = TcpStream::connect(self.proxy).await.map_err(told)?;
        stream.set_nodelay(true).map_err(told)?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

struct Gaps {
    mean: f64,
    arrivals: Arrivals,
    n: u64,
}

impl Gaps {
    fn next(&mut self) -> f64 {
        self.n += 1;
        match self.arrivals {
            Arrivals::Uniform => self.mean,
            Arrivals::Poisson(seed) => {
                // SplitMix64's finaliser over a counter; (0, 1] so that the logarithm is finite.
                let mut z =
                    (seed ^ self.n.rotate_left(32)).wrapping_add(self.n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                let unit = (((z ^ (z >> 31)) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
                -self.mean * unit.ln()
            }
        }
    }
}

impl Report {
    fn empty() -> Self {
        Report {
            sent: 0,
            failed: 0,
            failures: Vec::new(),
            statuses: BTreeMap::new(),
            versions: BTreeMap::new(),
            latency_us: Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are in order"),
        }
    }

    /// Claims that enough was sent and nothing failed.
    ///
    /// # Panics
    /// When that is not so.
    pub fn assert_nothing_failed(&self, at_least: u64) {
        assert!(self.failed == 0, "requests failed: {self}");
        assert!(self.sent >= at_least, "only {} of {at_least} requests were sent: {self}", self.sent);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |quantile: f64| self.latency_us.value_at_quantile(quantile) as f64 / 1000.0;
        write!(
            f,
            "{} of {} failed, by status {:?}, by version {:?}",
            self.failed, self.sent, self.statuses, self.versions
        )?;
        write!(f, ", p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", ms(0.5), ms(0.99), ms(1.0))?;
        for failure in &self.failures {
            write!(f, "\n  {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_arrivals_have_the_mean_and_the_spread_of_the_exponential() {
        for seed in 1..=5 {
            let mut gaps = Gaps { mean: 0.01, arrivals: Arrivals::Poisson(seed), n: 0 };
            let all: Vec<f64> = (0..50_000).map(|_| gaps.next()).collect();
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let above = all.iter().filter(|gap| **gap > 0.01).count() as f64 / all.len() as f64;
            assert!((mean / 0.01 - 1.0).abs() < 0.03, "seed {seed}: mean {mean}");
            assert!((above - (-1_f64).exp()).abs() < 0.01, "seed {seed}: {above} are above the mean");
        }
    }

    #[tokio::test]
    async fn a_server_that_stalls_is_seen_in_the_latency_and_a_refusal_as_a_failure() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stalls = Duration::from_millis(300);
        tokio::spawn(async move {
            // One connection at a time: while it stalls, the others wait.
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = [0; 4096];
                let n = stream.read(&mut bytes).await.unwrap();
                assert!(bytes[..n].starts_with(b"GET http://payments/pay HTTP/1.1\r\n"), "absolute form");
                tokio::time::sleep(stalls).await;
                let answer = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        });
        let load = Load::start(port, "http://payments/pay", 10.0);
        crate::until::until("five requests", crate::until::SOON, async || {
            if load.sent() >= 5 { Ok(()) } else { Err(load.sent().to_string()) }
        })
        .await;
        let report = load.finish().await;
        assert_eq!(report.failed, report.sent, "{report}");
        assert_eq!(report.statuses.keys().copied().collect::<Vec<_>>(), [503]);
        // The fifth was due at 400 ms and answered as the fifth in a row: at 1,500 ms at the earliest.
        assert!(report.latency_us.max() >= 1_000_000, "{report}");
    }
}
