//! A thousand services and ten thousand pods, made up on a real API server: what the operator makes of them, and how
//! long a change takes to a real Envoy. The operator may do there what the chart lets it, and no more.

mod acknowledgements;
mod joined;
mod made_up;

use crate::measure::{
    Durations, at_rest, forget_most_resident, most_resident_kib, processor_time, resident_kib, table,
};
use acknowledgements::{Acknowledgements, LOGGED};
use airlane_tests::{
    binary, client,
    kube::Cluster,
    process::Process,
    sim_proxy::Arrival,
    until::{until, until_often},
};
use jiff::Timestamp;
use joined::{Door, Envoy, OPERATOR};
use made_up::{Api, Endpoint, PODS, PODS_OF_EACH, POLICIES, SERVICES};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::MissedTickBehavior,
};

/// The operator's namespace.
const SYSTEM: &str = "airlane-system";
/// What `helm template` cannot ask for: what the cluster of `tests/cluster/` is.
const KUBERNETES: &str = "1.34";
const HEALTH: &str = "127.0.0.1:8080";
const STARTS: usize = 5;
/// Writes of each kind whose way to the Envoy is timed.
const WRITES: usize = 300;
/// Pods that change in a second; for how long they do.
const CHANGES_EACH_SECOND: u32 = 20;
const CHANGING: Duration = Duration::from_secs(20);
/// The longest that anything may take.
const LONGEST: Duration = Duration::from_secs(120);
/// How often is looked whether it has come.
const LOOK: Duration = Duration::from_millis(2);

pub(crate) async fn run() {
    let Some(cluster) = Cluster::control_plane().await else { return };
    let mut setting = Setting::new(cluster).await;

    table(&format!("{SERVICES} services, {PODS} pods, {POLICIES} policies on an API server"));
    let mut starts = Durations::default();
    let mut operator = setting.start(&mut starts).await;
    for _ in 1..STARTS {
        operator.stop(LONGEST).await;
        operator = setting.start(&mut starts).await;
    }
    starts.row("operator started → the first complete configuration is served");
    at_rest(operator.pid()).await;
    let started = Weight::of(&operator);

    let door = Door::of(&setting.cluster, &setting.dir.path().join("pods")).await;
    let envoy = door.envoy(&setting.cluster, 0).await;
    println!("| a pod's agent started → its Envoy has everything | {:?} | | | 1 |", envoy.ready_after);
    setting.time_slices(&envoy).await;
    setting.time_pods().await;
    at_rest(operator.pid()).await;
    let changed = Weight::of(&operator);
    let busy = setting.churn(&operator).await;
    let churned = Weight::of(&operator);
    setting.edits(&operator).await;
    drop(envoy);
    let relisted = setting.relist(&operator, &door).await;

    println!("\n| operator's memory | resident | at most |\n|---|---|---|");
    started.row("after its start, no proxy connected");
    changed.row(&format!("after {} changes, one Envoy connected", 2 * WRITES));
    churned.row(&format!("after {CHANGING:?} of {CHANGES_EACH_SECOND} pod changes a second"));
    relisted.row("after everything was listed anew (at most: since then)");
    println!("\nProcessor time: {:.1} % of one at {CHANGES_EACH_SECOND} pod changes a second.", busy * 100.0);
    let log = operator.log();
    assert!(!log.contains("refused a resource"), "an Envoy refused a resource:\n{log}");
}

/// What a process weighs, in KiB.
struct Weight {
    resident: u64,
    most: u64,
}

impl Weight {
    fn of(process: &Process) -> Weight {
        Weight { resident: resident_kib(process.pid()), most: most_resident_kib(process.pid()) }
    }

    fn row(&self, when: &str) {
        let megabytes = |kib: u64| kib as f64 * 1024.0 / 1e6;
        println!("| {when} | {:.1} MB | {:.1} MB |", megabytes(self.resident), megabytes(self.most));
    }
}

/// A filled cluster.
struct Setting {
    cluster: Cluster,
    dir: tempfile::TempDir,
    /// The operator's own.
    kubeconfig: PathBuf,
    operators: usize,
}

impl Setting {
    async fn new(cluster: Cluster) -> Setting {
        let dir = tempfile::tempdir().unwrap();
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let crds = project.join("crds").display().to_string();
        cluster.kubectl(&["apply", "--server-side", "--filename", &crds]).await.unwrap();
        for kind in ["meshpolicies", "canaries"] {
            let crd = format!("crd/{kind}.airlane.dev");
            cluster.kubectl(&["wait", "--for=condition=Established", &crd, "--timeout=30s"]).await.unwrap();
        }
        cluster.kubectl(&["create", "namespace", SYSTEM]).await.unwrap();
        let mut helm = cluster.command("helm");
        helm.args(["template", "airlane", "--namespace", SYSTEM, "--show-only", "templates/rbac.yaml"]);
        helm.args(["--kube-version", KUBERNETES]);
        cluster.apply(&printed(helm.arg(project.join("helm/airlane")))).await.unwrap();
        let kubeconfig = dir.path().join("operator.kubeconfig");
        fs::write(&kubeconfig, kubeconfig_of_the_operator(&cluster).await).unwrap();
        let setting = Setting { cluster, dir, kubeconfig, operators: 0 };
        let begun = Instant::now();
        setting.api(|api| async move { api.fill().await }).await;
        println!("\nThe API server took all objects in {:.1} s.", begun.elapsed().as_secs_f64());
        setting
    }

    /// Does something with the API server, as its administrator.
    async fn api<T, F>(&self, work: impl FnOnce(Api) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let kubeconfig = self.cluster.kubeconfig();
        self.cluster.inside(move || async move { work(Api::of(&kubeconfig).await).await }).await
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join(format!("operator-{}.log", self.operators))
    }

    /// Starts an operator, and waits until it serves.
    async fn start(&mut self, starts: &mut Durations) -> Process {
        self.operators += 1;
        let name = format!("operator-{}", self.operators);
        let mut command = self.cluster.command(binary::airlane());
        command
            .args(["operator", "--pod-name", &name, "--listen", OPERATOR, "--health", HEALTH])
            .args(["--webhook", "127.0.0.1:9443", "--state"])
            .arg(self.dir.path().join("state"))
            .env("KUBECONFIG", &self.kubeconfig)
            .env("AIRLANE_LOG", LOGGED);
        let started = Instant::now();
        let operator = Process::start(&name, command, self.dir.path());
        let served_at = self.cluster.inside(|| async {
            until_often("the operator serves", LONGEST, LOOK, async || {
                let answer = client::send("GET", &format!("http://{HEALTH}/readyz"), "").await?;
                if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
            })
            .await;
            Instant::now()
        });
        starts.add(served_at.await - started);
        operator
    }

    /// A pod leaves an EndpointSlice or comes back to it.
    async fn time_slices(&self, envoy: &Envoy) {
        let log = self.log();
        let (written, acknowledged) = self
            .api(|api| async move {
                let mut endpoints = [Endpoint::Ready; PODS_OF_EACH];
                timed(&log, async |n| {
                    endpoints[0] = if n % 2 == 0 { Endpoint::Absent } else { Endpoint::Ready };
                    api.list(service_of_change(n), &endpoints).await;
                })
                .await
            })
            .await;
        written.row("EndpointSlice written → the API server answers");
        acknowledged.row("EndpointSlice written → acknowledged by an Envoy");
        let one_less = self.api(|api| async move {
            let mut endpoints = [Endpoint::Ready; PODS_OF_EACH];
            endpoints[0] = Endpoint::Absent;
            api.list(1, &endpoints).await;
        });
        one_less.await;
        until("Envoy has what was acknowledged", LONGEST, async || match envoy.endpoints(1).await {
            count if count == PODS_OF_EACH - 1 => Ok(()),
            count => Err(format!("{count} endpoints")),
        })
        .await;
        self.api(|api| async move { api.list(1, &[Endpoint::Ready; PODS_OF_EACH]).await }).await;
    }

    /// A pod becomes unready or ready again.
    async fn time_pods(&self) {
        let log = self.log();
        let (_, acknowledged) = self
            .api(|api| async move {
                timed(&log, async |n| api.tell(service_of_change(n) * PODS_OF_EACH + 1, n % 2 == 1).await)
                    .await
            })
            .await;
        acknowledged.row("pod's readiness written → acknowledged by an Envoy");
    }

    /// Has pods change at an even pace, each with the EndpointSlice that follows, and gives the operator's processor
    /// time for each second.
    async fn churn(&self, operator: &Process) -> f64 {
        let (begun, before) = (Instant::now(), processor_time(operator.pid()));
        self.api(|api| async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / CHANGES_EACH_SECOND);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut writes = JoinSet::new();
            for n in 0..CHANGING.as_secs() as usize * CHANGES_EACH_SECOND as usize {
                ticks.tick().await;
                let (api, service, ready) = (api.clone(), service_of_change(n), n % 2 == 1);
                writes.spawn(async move {
                    api.tell(service * PODS_OF_EACH + 2, ready).await;
                    let mut endpoints = [Endpoint::Ready; PODS_OF_EACH];
                    endpoints[2] = if ready { Endpoint::Ready } else { Endpoint::Unready };
                    api.list(service, &endpoints).await;
                });
            }
            writes.join_all().await;
        })
        .await;
        (processor_time(operator.pid()) - before).as_secs_f64() / begun.elapsed().as_secs_f64()
    }

    /// Edits one policy and that of the whole mesh, and counts what the operator writes because of it.
    async fn edits(&self, operator: &Process) {
        at_rest(operator.pid()).await;
        for (what, service) in [("one service", Some(0)), ("the whole mesh", None)] {
            let log = self.log();
            let before = self.statuses_written().await;
            let acknowledged = self
                .api(move |api| async move {
                    let mut acknowledgements = Acknowledgements::of(&log);
                    let cause = Timestamp::now();
                    api.edit(service, 4_000).await;
                    acknowledgements.after(cause).await
                })
                .await;
            at_rest(operator.pid()).await;
            println!(
                "| policy of {what} edited → acknowledged by an Envoy ({} statuses written) | {acknowledged:?} | | | 1 |",
                self.statuses_written().await - before,
            );
        }
    }

    async fn statuses_written(&self) -> u64 {
        let ours = [r#"resource="meshpolicies""#, r#"subresource="status""#];
        self.api(move |api| async move { api.answered(&ours).await }).await
    }

    /// Has every watch begin anew from a list, and sees that nothing is published because of it.
    async fn relist(&self, operator: &Process, door: &Door) -> Weight {
        let (told, mut arrivals) = mpsc::unbounded_channel();
        let (has_everything, connected) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let watched = async {
            connected.await.unwrap();
            at_rest(operator.pid()).await;
            heard(&mut arrivals);
            forget_most_resident(operator.pid());
            self.cluster.forget_history().await;
            self.cluster.restart_apiserver().await;
            until("the operator has listed all pods", LONGEST, async || {
                let lists = [r#"resource="pods""#, r#"verb="LIST""#];
                let lists = self.api(move |api| async move { api.answered(&lists).await }).await;
                if lists > 0 { Ok(()) } else { Err("no list".to_owned()) }
            })
            .await;
            at_rest(operator.pid()).await;
            let weight = Weight::of(operator);
            let published = heard(&mut arrivals);
            assert!(published.is_empty(), "published because of a list: {published:?}");
            self.api(|api| async move { api.list(1, &[Endpoint::Ready; PODS_OF_EACH - 1]).await }).await;
            until("what changes then is published", LONGEST, async || {
                if heard(&mut arrivals).is_empty() { Err("nothing".to_owned()) } else { Ok(()) }
            })
            .await;
            end.send(()).unwrap();
            weight
        };
        let proxy = door.simulated(&self.cluster, 20, told, has_everything, ended);
        tokio::join!(proxy, watched).1
    }
}

/// What was sent to a proxy, without the signs of life of what it has.
fn heard(arrivals: &mut mpsc::UnboundedReceiver<Arrival>) -> Vec<Arrival> {
    let heard = std::iter::from_fn(|| arrivals.try_recv().ok());
    heard.filter(|arrival| !arrival.type_url.ends_with("Runtime")).collect()
}

/// The service that the `n`th change is about: two changes, there and back, then another one.
fn service_of_change(n: usize) -> usize {
    n / 2 * 7 % SERVICES
}

/// Makes changes, and gives how long each took to be answered and to be acknowledged.
async fn timed(log: &Path, mut change: impl AsyncFnMut(usize)) -> (Durations, Durations) {
    let mut acknowledgements = Acknowledgements::of(log);
    let (mut written, mut acknowledged) = (Durations::default(), Durations::default());
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CHANGES_EACH_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0..WRITES {
        ticks.tick().await;
        let (begun, cause) = (Instant::now(), Timestamp::now());
        change(n).await;
        written.add(begun.elapsed());
        acknowledged.add(acknowledgements.after(cause).await);
    }
    (written, acknowledged)
}

fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// By it a process outside of pods is the service account of the chart.
async fn kubeconfig_of_the_operator(cluster: &Cluster) -> String {
    let token = ["create", "token", "airlane", "--namespace", SYSTEM, "--duration=24h"];
    let token = cluster.kubectl(&token).await.unwrap();
    let config = cluster.kubectl(&["config", "view", "--raw", "--output=json"]).await.unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["users"][0]["user"]["token"] = token.trim().into();
    config.to_string()
}
