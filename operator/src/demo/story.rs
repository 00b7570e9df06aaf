//! The story of the demo: each act does something to a living mesh and claims what must follow.

use super::{
    fleet::{Fleet, Member, NAMESPACE},
    load::{Load, Seen},
    teller::{Style, Teller},
};
use crate::{
    args::Demo,
    cli::Client,
    local::view::{CanaryView, EndpointView, ErrorView, PolicyView, ProxyView, ServiceView},
};
use airlane_core::rollout::Phase;
use anyhow::{Context, bail};
use std::{
    io::Stdout,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    signal::unix::{Signal, SignalKind, signal},
};

/// Requests a second that users send.
const USERS_PER_SECOND: u32 = 100;

/// How often the mesh is looked at while waiting for something to happen.
const LOOK: Duration = Duration::from_millis(100);

/// How long every copy may take to join: eight proxies start at once.
const JOINS_WITHIN: Duration = Duration::from_secs(60);

const STRICT: &str = "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: strict, namespace: airlane-system }
spec:
  mtls: { mode: Strict, floor: true }
";

const LEDGER: &str = "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: ledger, namespace: shop }
spec:
  targetRef: { kind: Service, name: ledger }
  retries: { attempts: 3, perTryTimeout: 1s, retryOn: [5xx, reset, connect-failure] }
  circuitBreaker:
    outlierDetection: { consecutive5xx: 5, interval: 1s, baseEjectionTime: 4s, maxEjectionPercent: 50 }
";

const LEDGER_MISTAKEN: &str = "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: ledger, namespace: shop }
spec:
  targetRef: { kind: Service, name: ledger }
  retries: { attempts: 3, perTryTimeOut: 1 second, retryOn: [5xx, reset, connect-failure] }
  circuitBreaker:
    outlierDetection: { consecutive5xx: 5, interval: 1s, baseEjectionTime: 4s, maxEjectionPercent: 50 }
";

const PAYMENTS: &str = "\
apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: payments, namespace: shop }
spec:
  targetRef: { kind: Service, name: payments }
  retries: { attempts: 2, retryOn: [5xx, reset, connect-failure] }
";

fn canary(version: &str) -> String {
    format!(
        "\
apiVersion: airlane.dev/v1alpha1
kind: Canary
metadata: {{ name: payments, namespace: shop }}
spec:
  service: payments
  stable: {{ version: v1 }}
  canary: {{ version: {version} }}
  steps: [{{ weight: 10% }}, {{ weight: 50% }}, {{ weight: 100% }}]
  objectives:
    - {{ name: errors, errorRate: {{ max: 1% }} }}
"
    )
}

/// What asks the demo to end: Ctrl-C, SIGTERM, and the end of its terminal.
struct Stop {
    signals: [Signal; 3],
}

impl Stop {
    fn listen() -> anyhow::Result<Stop> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Stop { signals: [interrupt?, terminate?, hangup?] })
    }

    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Tells the story, then stays up until it is asked to end unless `--once`.
///
/// # Errors
/// What kept the story from being told, or the claims that did not hold.
pub(crate) async fn run(args: &Demo) -> anyhow::Result<()> {
    let mut teller = Teller::new(std::io::stdout(), Style::of_stdout(args.no_tty));
    teller.say("Airlane demo: front → orders → payments → ledger, every arrow through two Envoys.");
    let mut stop = Stop::listen().context("cannot listen for signals")?;
    let fleet = tokio::select! {
        fleet = Fleet::start() => fleet?,
        () = stop.asked() => bail!("interrupted"),
    };
    let client = Client::new(&fleet.state());
    let mut story = Story { teller, fleet, client };
    let told = tokio::select! {
        told = story.tell() => told,
        () = stop.asked() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Err(error) = told {
        story.fleet.end().await;
        return Err(error);
    }
    if !args.once {
        story.invite();
        // The load goes on while the reader looks around.
        let _load = story.users()?;
        stop.asked().await;
        story.teller.say("ending");
    }
    let broken: Vec<String> = story.teller.broken().map(|told| told.claim.clone()).collect();
    let all_held = story.teller.all_held();
    let elapsed = story.teller.elapsed();
    let home = story.fleet.end().await;
    if !all_held {
        bail!(
            "not everything happened as told: {}; the logs are in {}",
            broken.join("; "),
            home.keep().display()
        );
    }
    story.teller.say(format!("everything happened as told, in {} s", elapsed.as_secs()));
    Ok(())
}

struct Story {
    teller: Teller<Stdout>,
    fleet: Fleet,
    client: Client,
}

impl Story {
    async fn tell(&mut self) -> anyhow::Result<()> {
        self.assemble().await?;
        let load = self.users()?;
        self.encrypt(&load).await?;
        self.sicken(&load).await?;
        self.release_bad(&load).await?;
        self.release_good(&load).await?;
        self.mistake(&load).await?;
        let seen = load.seen();
        self.teller
            .say(format!("users saw {} good answers and {} failed ones in all", seen.good, seen.failed));
        Ok(())
    }

    fn users(&self) -> anyhow::Result<Load> {
        let front = self.fleet.copies("front", "v1").next().context("front is gone")?;
        Ok(Load::start(format!("http://{}/buy", front.app).parse()?, USERS_PER_SECOND))
    }

    async fn assemble(&mut self) -> anyhow::Result<()> {
        self.teller.act("Four services join");
        let started = Instant::now();
        self.fleet.apply("ledger.yaml", LEDGER)?;
        self.fleet.apply("payments.yaml", PAYMENTS)?;
        let copies = [
            ("ledger", None, 2),
            ("payments", Some("ledger"), 2),
            ("orders", Some("payments"), 1),
            ("front", Some("orders"), 1),
        ];
        for (service, calls, count) in copies {
            for _ in 0..count {
                self.fleet.add(&Member { service, version: "v1", calls, fails: "0%" })?;
            }
        }
        let joined = self
            .until(JOINS_WITHIN, async |client: &Client| {
                let rows: Vec<EndpointView> = client.get("/v1/endpoints").await?;
                let proxies: Vec<ProxyView> = client.get("/v1/proxies").await?;
                let healthy = rows.iter().filter(|row| row.health == "Healthy").count();
                Ok((healthy == 6 && proxies.iter().all(|proxy| proxy.current)).then_some(()))
            })
            .await?;
        self.teller.claim(
            joined.is_some(),
            "6 copies of 4 services are in the mesh, each with its own certificate",
            format!("{:.1} s", started.elapsed().as_secs_f64()),
        );
        if joined.is_none() {
            bail!("the services did not join: their logs end with\n{}", self.fleet.last_words());
        }
        Ok(())
    }

    async fn encrypt(&mut self, load: &Load) -> anyhow::Result<()> {
        self.teller.act("mTLS on every edge");
        let before = load.seen();
        self.teller.say("a policy for the whole mesh: mtls Strict, with a floor nobody below can lower");
        self.fleet.apply("strict.yaml", STRICT)?;
        let strict = self
            .until(Duration::from_secs(10), async |client: &Client| {
                let services: Vec<ServiceView> = client.get("/v1/services").await?;
                let policies: Vec<PolicyView> = client.get("/v1/policies").await?;
                let programmed = policies.iter().any(|policy| {
                    policy.name == "strict" && policy.programmed.acknowledged == policy.programmed.targeted
                });
                Ok((programmed && services.iter().all(|service| service.mtls == "ON"))
                    .then_some(services.len()))
            })
            .await?;
        self.teller.claim(strict.is_some(), "every service says mTLS: ON, acknowledged by every proxy", "");
        let endpoints: Vec<EndpointView> = self.client.get("/v1/endpoints").await?;
        let mut refused = 0;
        let addresses: Vec<String> = endpoints.into_iter().flat_map(|endpoint| endpoint.addresses).collect();
        for address in &addresses {
            refused += usize::from(!answers_plaintext(address).await);
        }
        self.teller.claim(
            refused == addresses.len(),
            "plaintext to the mesh ports is refused",
            format!("{refused} of {}", addresses.len()),
        );
        // Let users call for a while under the new policy.
        tokio::time::sleep(Duration::from_secs(3)).await;
        self.unharmed(load.seen().since(before));
        Ok(())
    }

    async fn sicken(&mut self, load: &Load) -> anyhow::Result<()> {
        self.teller.act("One copy falls sick");
        let before = load.seen();
        let sick = self.fleet.copies("ledger", "v1").next().context("ledger is gone")?.app;
        self.teller.say("one of the two ledgers answers everything with 503");
        behave(sick, r#"{"sick": true}"#).await?;
        let started = Instant::now();
        let opened = self
            .until(Duration::from_secs(20), async |client: &Client| {
                let rows: Vec<EndpointView> = client.get("/v1/endpoints").await?;
                Ok(rows.into_iter().find(|row| row.service == "ledger" && row.breaker == "OPEN"))
            })
            .await?;
        let seen = opened.as_ref().map_or_else(String::new, |row| {
            format!("{} after {:.1} s, {}", row.instance, started.elapsed().as_secs_f64(), row.reason)
        });
        self.teller.claim(opened.is_some(), "its callers' breaker leaves it out", seen);
        behave(sick, r#"{"sick": false}"#).await?;
        self.teller.say("it recovers");
        let closed = self
            .until(Duration::from_secs(40), async |client: &Client| {
                let rows: Vec<EndpointView> = client.get("/v1/endpoints").await?;
                let open = rows.iter().any(|row| row.service == "ledger" && row.breaker == "OPEN");
                Ok((!open).then_some(()))
            })
            .await?;
        self.teller.claim(
            closed.is_some(),
            "it is taken back",
            format!("{:.1} s in all", started.elapsed().as_secs_f64()),
        );
        self.unharmed(load.seen().since(before));
        Ok(())
    }

    async fn release_bad(&mut self, load: &Load) -> anyhow::Result<()> {
        self.teller.act("payments v2 is released: it fails 5 % of its requests");
        let before = load.seen();
        self.fleet.add(&Member { service: "payments", version: "v2", calls: Some("ledger"), fails: "5%" })?;
        self.fleet.apply("release.yaml", &canary("v2"))?;
        self.teller.say("a Canary gives it 10 % and judges every first attempt against v1");
        let began = self.reaches("v2", &[Phase::Progressing], JOINS_WITHIN).await?;
        let started = Instant::now();
        self.teller.claim(began.is_some(), "v2 is on trial at 10 %", "");
        let ended =
            self.reaches("v2", &[Phase::RolledBack, Phase::Succeeded], Duration::from_secs(180)).await?;
        let taken_back = ended.as_ref().is_some_and(|canary| canary.phase == Phase::RolledBack);
        let because = ended.map_or_else(|| "no verdict".to_owned(), |canary| canary.because);
        self.teller.claim(taken_back, "v2 is taken back", because);
        self.teller.say(format!("{:.1} s after it got traffic", started.elapsed().as_secs_f64()));
        let seen = load.seen().since(before);
        self.teller.claim(
            seen.failed <= 1,
            "retries kept the failures from users",
            format!("{} of {} requests failed", seen.failed, seen.good + seen.failed),
        );
        self.fleet.retire("payments", "v2").await;
        Ok(())
    }

    async fn release_good(&mut self, load: &Load) -> anyhow::Result<()> {
        self.teller.act("payments v3 is released: it is sound");
        let before = load.seen();
        self.fleet.add(&Member { service: "payments", version: "v3", calls: Some("ledger"), fails: "0%" })?;
        self.fleet.apply("release.yaml", &canary("v3"))?;
        let started = Instant::now();
        let mut share = 0.0;
        let ended = loop {
            let canary = self.canary("v3").await?;
            if let Some(canary) = canary {
                if canary.share_percent > share {
                    share = canary.share_percent;
                    self.teller.say(format!("{share:.0} %: {}", moved_because(&canary)));
                }
                if matches!(canary.phase, Phase::Succeeded | Phase::RolledBack) {
                    break Some(canary);
                }
            }
            if started.elapsed() > Duration::from_secs(180) {
                break None;
            }
            tokio::time::sleep(LOOK).await;
        };
        let promoted = ended.as_ref().is_some_and(|canary| canary.phase == Phase::Succeeded);
        self.teller.claim(
            promoted,
            "v3 is promoted to 100 %",
            format!("{:.0} s", started.elapsed().as_secs_f64()),
        );
        self.unharmed(load.seen().since(before));
        Ok(())
    }

    async fn mistake(&mut self, load: &Load) -> anyhow::Result<()> {
        self.teller.act("Somebody saves a policy with a mistake");
        let before = load.seen();
        self.fleet.apply("ledger.yaml", LEDGER_MISTAKEN)?;
        let errors = self
            .until(Duration::from_secs(10), async |client: &Client| {
                let errors: Vec<ErrorView> = client.get("/v1/errors").await?;
                Ok((!errors.is_empty()).then_some(errors))
            })
            .await?;
        for error in errors.iter().flatten() {
            self.teller.aside(&error.text);
        }
        let named = errors.iter().flatten().any(|error| error.text.contains("ledger.yaml:6"));
        self.teller.claim(named, "the error names the file, the line, the field and the mend", "");
        let policies: Vec<PolicyView> = self.client.get("/v1/policies").await?;
        let in_force = policies.iter().any(|policy| policy.name == "ledger" && policy.outdated);
        self.teller.claim(in_force, "the version before stays in force", "");
        self.fleet.apply("ledger.yaml", LEDGER)?;
        let mended = self
            .until(Duration::from_secs(10), async |client: &Client| {
                let errors: Vec<ErrorView> = client.get("/v1/errors").await?;
                Ok(errors.is_empty().then_some(()))
            })
            .await?;
        self.teller.claim(mended.is_some(), "the mended file is in force", "");
        self.unharmed(load.seen().since(before));
        Ok(())
    }

    fn unharmed(&mut self, seen: Seen) {
        let all = seen.good + seen.failed;
        self.teller.claim(
            seen.failed == 0 && all > 0,
            "users noticed nothing",
            format!("{} of {all} requests failed", seen.failed),
        );
    }

    /// Waits until something can be seen; `None` if it cannot within the time.
    async fn until<T>(
        &self,
        within: Duration,
        mut look: impl AsyncFnMut(&Client) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<Option<T>> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(found) = look(&self.client).await? {
                return Ok(Some(found));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn canary(&self, version: &str) -> anyhow::Result<Option<CanaryView>> {
        let canaries: Vec<CanaryView> = self.client.get("/v1/canaries").await?;
        let ours = |canary: &CanaryView| {
            canary.name == "payments"
                && canary.canary == version
                && canary.progress.as_ref().is_some_and(|progress| progress.canary.as_str() == version)
        };
        Ok(canaries.into_iter().find(ours))
    }

    async fn reaches(
        &self,
        version: &str,
        phases: &[Phase],
        within: Duration,
    ) -> anyhow::Result<Option<CanaryView>> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(canary) = self.canary(version).await?.filter(|canary| phases.contains(&canary.phase))
            {
                return Ok(Some(canary));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn invite(&mut self) {
        let state = self.fleet.state();
        let state = state.display();
        self.teller.act("Look around (Ctrl-C ends it)");
        self.teller.say(format!("export AIRLANE_STATE={state}"));
        for command in [
            "airlane get services",
            "airlane get endpoints",
            &format!("airlane describe service {NAMESPACE}/ledger"),
            &format!("airlane get effective {NAMESPACE}/ledger"),
            "airlane canary status payments",
            "airlane certs list",
        ] {
            self.teller.aside(command);
        }
        let policies = self.fleet.policies();
        self.teller.say(format!("the policies are in {}: edit one", policies.display()));
    }
}

/// Why the canary has the share it has: the reason of its last move, not of what it waits for since.
fn moved_because(canary: &CanaryView) -> &str {
    let progress = canary.progress.as_ref();
    let moved = progress.and_then(|progress| {
        progress.history.iter().rev().take_while(|transition| transition.share == progress.share).last()
    });
    moved.map_or(canary.because.as_str(), |transition| &transition.because)
}

/// Tells an example service how to behave.
async fn behave(app: std::net::SocketAddr, change: &str) -> anyhow::Result<()> {
    let request = format!(
        "POST /behaviour HTTP/1.1\r\nhost: {app}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{change}",
        change.len()
    );
    let answer = exchange(&app.to_string(), &request).await.context("cannot reach the example service")?;
    if !answer.starts_with("HTTP/1.1 200") {
        bail!("the example service refused to behave: {}", answer.lines().next().unwrap_or_default());
    }
    Ok(())
}

/// Whether a mesh port answers a request in plaintext.
async fn answers_plaintext(address: &str) -> bool {
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    exchange(address, &request).await.is_ok_and(|answer| answer.starts_with("HTTP/"))
}

async fn exchange(address: &str, request: &str) -> std::io::Result<String> {
    let exchanged = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(Duration::from_secs(5), exchanged)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
