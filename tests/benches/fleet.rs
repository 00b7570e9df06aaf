//! One change to a thousand proxies, and what they cost the operator. The proxies are simulated, here; the operator is
//! a process of its own, and every stream a connection of its own with mutual TLS.

use crate::measure::{Durations, at_rest, processor_time, resident_kib, table};
use airlane_tests::{
    mesh::Mesh,
    sim_proxy::{Arrival, SimProxy},
    stranger::{Papers, Stranger, join_properly_at},
    until::{until, until_often},
};
use airlane_wire::{
    join::JoinInfo,
    message::{AppHealth, HeartbeatRequest, HeartbeatResponse},
    operator,
};
use futures::{StreamExt as _, stream};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

const SERVICES: usize = 100;
const PROXIES_OF_EACH: usize = 10;
const PROXIES: usize = SERVICES * PROXIES_OF_EACH;
const CHANGES: usize = 100;
/// Nobody listens there: no call is made.
const FIRST_PORT: u16 = 20_000;
/// Conversations that begin at once.
const AT_ONCE: usize = 16;
/// How long the fleet may take to have everything, and a change to reach it.
const LONGEST: Duration = Duration::from_secs(120);
/// How often is looked who has a change. Each proxy notes when it had it: to be woken a thousand times would only cost
/// what is to be measured.
const LOOK: Duration = Duration::from_millis(1);

pub(crate) async fn run() {
    // Nobody beats here but to change an endpoint: the registrations must outlive the silence.
    let mut mesh = Mesh::start_with(&["--heartbeat", "1h"]).await;
    let operator = mesh.operator().pid();
    let before = resident_kib(operator);
    let mut fleet = Fleet::join(&mesh).await;
    let registered = resident_kib(operator);
    fleet.connect().await;
    fleet.all_healthy().await;
    settled(&mesh).await;
    // A thousand joined, and said so, on connections that end.
    at_rest(operator).await;
    let connected = resident_kib(operator);

    table(&format!("One change to {PROXIES} proxies of {SERVICES} services"));
    let mut cost = Cost::default();
    let (mut each, mut last) = (Durations::default(), Durations::default());
    for n in 0..CHANGES {
        let service = n % SERVICES;
        let yaml = format!(
            "apiVersion: airlane.dev/v1alpha1\nkind: MeshPolicy\nmetadata: {{ name: edited }}\nspec:\n  \
             targetRef: {{ kind: Service, name: service-0 }}\n  timeouts: {{ request: {}ms }}\n",
            1_000 + service
        );
        let wave = fleet.wave(operator, "VirtualHost", async |_| mesh.apply("edited.yaml", &yaml)).await;
        wave.note(&mut each, &mut last, &mut cost);
        settled(&mesh).await;
    }
    each.row("edit saved → received by a proxy");
    last.row("edit saved → received by the last proxy");
    let edits = std::mem::take(&mut cost);

    let (mut each, mut last) = (Durations::default(), Durations::default());
    for n in 0..CHANGES {
        let health = if n % 2 == 0 { AppHealth::Unhealthy } else { AppHealth::Healthy };
        let member = n / 2 * PROXIES_OF_EACH % PROXIES;
        let mut teller = fleet.teller(member).await;
        let wave = fleet
            .wave(operator, "ClusterLoadAssignment", async |sent| {
                beat(&mut teller, health, sent).await;
            })
            .await;
        wave.note(&mut each, &mut last, &mut cost);
        settled(&mesh).await;
    }
    each.row("endpoint's health reported → received by a proxy");
    last.row("endpoint's health reported → received by the last proxy");

    println!(
        "\nProcessor time for each change, until the last has it: operator {:.1} ms, proxies {:.1} ms (an edit); \
         operator {:.1} ms, proxies {:.1} ms (an endpoint).",
        edits.operator_ms(),
        edits.proxies_ms(),
        cost.operator_ms(),
        cost.proxies_ms(),
    );
    println!(
        "\nOperator memory for each proxy: {} KiB registered, {} KiB connected, {} KiB after {} changes; \
         {before} KiB before.",
        (registered - before) / PROXIES as u64,
        (connected - before) / PROXIES as u64,
        (resident_kib(operator) - before) / PROXIES as u64,
        2 * CHANGES,
    );
}

struct Fleet {
    join: JoinInfo,
    state: PathBuf,
    papers: Vec<Papers>,
    proxies: Vec<SimProxy>,
    told: mpsc::UnboundedSender<Arrival>,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
}

/// One change and when it arrived.
struct Wave {
    /// From its cause to each proxy, in the order of arrival.
    arrived: Vec<Duration>,
    operator: Duration,
    proxies: Duration,
}

/// Processor time.
#[derive(Default)]
struct Cost {
    operator: Duration,
    proxies: Duration,
    changes: u32,
}

impl Fleet {
    async fn join(mesh: &Mesh) -> Fleet {
        let join: JoinInfo = std::fs::read_to_string(mesh.join()).unwrap().parse().unwrap();
        let state = mesh.state();
        let joined = stream::iter(0..PROXIES).map(|n| {
            let (join, state) = (join.clone(), state.clone());
            async move {
                let service = format!("service-{}", n / PROXIES_OF_EACH);
                join_properly_at(&join, &state, &service, FIRST_PORT + u16::try_from(n).unwrap()).await
            }
        });
        let papers = joined.buffered(AT_ONCE).collect().await;
        let (told, arrivals) = mpsc::unbounded_channel();
        Fleet { join, state, papers, proxies: Vec::new(), told, arrivals }
    }

    async fn connect(&mut self) {
        let connecting = stream::iter(&self.papers)
            .map(async |papers| SimProxy::connect(&self.join, &self.state, papers, self.told.clone()).await);
        let connected: Vec<_> = connecting.buffer_unordered(AT_ONCE).collect().await;
        self.proxies = connected.into_iter().map(Result::unwrap).collect();
    }

    async fn all_healthy(&self) {
        let beating = stream::iter(&self.papers).map(async |papers| {
            let mut teller = teller(&self.join, &self.state, papers).await;
            beat(&mut teller, AppHealth::Healthy, &mut None).await;
        });
        beating.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    }

    async fn teller(&self, member: usize) -> Stranger {
        teller(&self.join, &self.state, &self.papers[member]).await
    }

    /// Makes a change, and waits until every proxy was sent something of `kind`. `make` may say when its cause was;
    /// else that is when it was called.
    async fn wave(
        &mut self,
        operator: i32,
        kind: &str,
        make: impl AsyncFnOnce(&mut Option<Instant>),
    ) -> Wave {
        while self.arrivals.try_recv().is_ok() {}
        let busy = || (processor_time(operator), processor_time(i32::try_from(std::process::id()).unwrap()));
        let before = busy();
        let mut cause = None;
        let called = Instant::now();
        make(&mut cause).await;
        let cause = cause.unwrap_or(called);
        let (mut reached, mut arrived) = (HashSet::new(), Vec::new());
        until_often("the change reaches every proxy", LONGEST, LOOK, async || {
            while let Ok(arrival) = self.arrivals.try_recv() {
                if arrival.type_url.ends_with(kind) && reached.insert(arrival.instance) {
                    arrived.push(arrival.at.saturating_duration_since(cause));
                }
            }
            if arrived.len() == PROXIES { Ok(()) } else { Err(format!("{} of {PROXIES}", arrived.len())) }
        })
        .await;
        let after = busy();
        Wave { arrived, operator: after.0 - before.0, proxies: after.1 - before.1 }
    }
}

impl Wave {
    fn note(&self, each: &mut Durations, last: &mut Durations, cost: &mut Cost) {
        self.arrived.iter().for_each(|arrived| each.add(*arrived));
        last.add(*self.arrived.iter().max().unwrap());
        cost.operator += self.operator;
        cost.proxies += self.proxies;
        cost.changes += 1;
    }
}

impl Cost {
    fn operator_ms(&self) -> f64 {
        self.operator.as_secs_f64() * 1e3 / f64::from(self.changes)
    }

    fn proxies_ms(&self) -> f64 {
        self.proxies.as_secs_f64() * 1e3 / f64::from(self.changes)
    }
}

async fn teller(join: &JoinInfo, state: &Path, papers: &Papers) -> Stranger {
    Stranger::connect(join, state, Some(papers)).await.unwrap()
}

/// One sign of life; `sent` becomes when it left.
async fn beat(teller: &mut Stranger, health: AppHealth, sent: &mut Option<Instant>) {
    let beat = HeartbeatRequest {
        health: health.into(),
        reason: String::new(),
        outliers: Vec::new(),
        app_reachable: false,
    };
    *sent = Some(Instant::now());
    let answer: HeartbeatResponse = teller.call(operator::METHODS[2], &beat).await.unwrap();
    assert!(answer.known, "the operator forgot a proxy");
}

/// Waits until every proxy has acknowledged everything.
async fn settled(mesh: &Mesh) {
    until("every proxy runs what is published", LONGEST, async || {
        let rows = mesh.get("proxies").await?;
        let current = rows.iter().filter(|row| row["current"] == true).count();
        if current == PROXIES { Ok(()) } else { Err(format!("{current} of {}", rows.len())) }
    })
    .await;
}
