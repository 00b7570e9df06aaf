//! Real Kubernetes clusters on this machine, brought up by `tests/cluster/` once for all tests of a process.
//!
//! ```text
//! let Some(cluster) = Cluster::shared().await else { return }; // said aloud
//! let shop = cluster.namespace("shop").await;
//! shop.apply("…").await.unwrap();
//! shop.rolled_out("deployment/cart").await;
//! let answer = shop.exec("deployment/cart", &["curl", "-s", "http://checkout"]).await.unwrap();
//! ```
//!
//! - Tests run side by side in namespaces of their own. A test that installs Airlane, or takes parts of the cluster
//!   away, asks for [`Cluster::alone`]; the cluster is whole again when it lets go.
//! - Pods run images that are loaded from files: `localhost/tools:1` (busybox, curl, nft, iptables) is always there,
//!   [`Cluster::airlane_image`] makes that of this build; `imagePullPolicy` must not be `Always`.
//! - A cluster is in a network of its own. [`Cluster::command`] runs a program there, [`Cluster::inside`] a part of the
//!   test: both can call pods and Services by their addresses.
//! - Clusters go with the process, however that ends; `make cluster` before makes the first one stay.
//! - `NODES` and the other variables of `tests/cluster/up.sh` are heeded.

mod namespace;

pub use namespace::Namespace;

use crate::until::{SOON, until};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs::{self, File},
    future::Future,
    io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// Long enough for pods to start on a machine that is busy with other things.
pub const PODS_SOON: Duration = Duration::from_secs(120);

/// The image of [`Cluster::airlane_image`].
pub const AIRLANE_IMAGE: &str = "localhost/airlane:test";

/// The image to look around with.
pub const TOOLS_IMAGE: &str = "localhost/tools:1";

/// What the scripts exit with on a machine that cannot have a cluster.
const CANNOT: i32 = 77;

/// The longest a single command may take.
const LONGEST: Duration = Duration::from_secs(120);

/// Where tests find a cluster. There are two, since most tests mostly wait; the second comes up when a test has to wait
/// for the first.
static PLACES: [Place; 2] = [Place::new(Settings::new), Place::new(beside)];

/// The one of [`Cluster::control_plane`].
static CONTROL_PLANE: Place = Place::new(control_plane_alone);

/// Variables of `up.sh`.
type Settings = Vec<(&'static str, String)>;

fn beside() -> Settings {
    vec![("AIRLANE_CLUSTER", format!("beside-{}", std::process::id()))]
}

fn control_plane_alone() -> Settings {
    let controllers =
        "namespace-controller,serviceaccount-controller,root-ca-certificate-publisher-controller";
    vec![
        ("SIZE", "api".to_owned()),
        ("AIRLANE_CLUSTER", format!("control-plane-{}", std::process::id())),
        ("CONTROLLER_MANAGER_FLAGS", format!("--controllers={controllers}")),
    ]
}

/// A cluster that is brought up when the first test asks for it.
struct Place {
    /// Shared by the tests that leave the cluster whole.
    turn: RwLock<()>,
    /// The cluster, or why there can be none here.
    running: OnceCell<Result<Running, String>>,
    settings: fn() -> Settings,
}

struct Running {
    /// Where its state is.
    run: PathBuf,
    /// What all scripts are told.
    settings: Settings,
    image: OnceCell<()>,
    names: AtomicUsize,
    /// `hold.sh`, which takes the cluster down when its standard input is closed: in the end by the kernel.
    _hold: Child,
}

/// The cluster, for as long as a test needs it.
pub struct Cluster {
    running: &'static Running,
    damaged: AtomicBool,
    turn: Turn,
}

enum Turn {
    Shared { _lock: RwLockReadGuard<'static, ()> },
    Alone { _lock: RwLockWriteGuard<'static, ()> },
}

impl Place {
    const fn new(settings: fn() -> Settings) -> Self {
        Self { turn: RwLock::const_new(()), running: OnceCell::const_new(), settings }
    }

    async fn cluster(&'static self, turn: Turn) -> Option<Cluster> {
        let hold = || async { tokio::task::spawn_blocking(|| hold((self.settings)())).await.unwrap() };
        match self.running.get_or_init(hold).await {
            Ok(running) => Some(Cluster { running, damaged: AtomicBool::new(false), turn }),
            Err(reason) => {
                let required = std::env::var_os("AIRLANE_REQUIRE").is_some();
                assert!(!required, "no Kubernetes cluster here: {reason}");
                // Not by `eprintln!`, which is not shown for a test that passes.
                let line = format!("\nSKIPPED: no Kubernetes cluster here: {reason}\n");
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
        }
    }
}

impl Cluster {
    /// A cluster, used by other tests at the same time. `None`, said aloud, on a machine that cannot have one.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn shared() -> Option<Self> {
        let [first, second] = &PLACES;
        match (first.turn.try_read(), second.turn.try_read()) {
            (Ok(lock), _) => first.cluster(Turn::Shared { _lock: lock }).await,
            (_, Ok(lock)) => second.cluster(Turn::Shared { _lock: lock }).await,
            _ => tokio::select! {
                lock = first.turn.read() => first.cluster(Turn::Shared { _lock: lock }).await,
                lock = second.turn.read() => second.cluster(Turn::Shared { _lock: lock }).await,
            },
        }
    }

    /// A cluster, used by nobody else meanwhile.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn alone() -> Option<Self> {
        let [first, second] = &PLACES;
        tokio::select! {
            biased;
            lock = first.turn.write() => first.cluster(Turn::Alone { _lock: lock }).await,
            lock = second.turn.write() => second.cluster(Turn::Alone { _lock: lock }).await,
        }
    }

    /// Another cluster: an API server without nodes, and with those controllers alone that namespaces and service
    /// accounts need, so that nobody touches pods and EndpointSlices that are made up. It is used by nobody else.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn control_plane() -> Option<Self> {
        let lock = CONTROL_PLANE.turn.write().await;
        CONTROL_PLANE.cluster(Turn::Alone { _lock: lock }).await
    }

    /// A new namespace whose name begins so. It is deleted when the test lets go of it.
    ///
    /// # Panics
    /// When it cannot be created.
    pub async fn namespace(&self, name: &str) -> Namespace<'_> {
        let number = self.running.names.fetch_add(1, Relaxed);
        let name = format!("{name}-{}-{number}", std::process::id());
        self.kubectl(&["create", "namespace", &name]).await.unwrap();
        let namespace = Namespace::created(self, name);
        // Pods are refused before.
        until("a namespace has its service account", SOON, async || {
            namespace.kubectl(&["get", "serviceaccount", "default"]).await
        })
        .await;
        namespace
    }

    /// Waits until a namespace is gone that another test used and that may be on its way out.
    ///
    /// # Panics
    /// When it stays.
    pub async fn without(&self, namespace: &str) {
        until(&format!("nothing is left of {namespace}"), PODS_SOON, async || {
            match self.get(&format!("namespace/{namespace}")).await {
                Ok(namespace) => Err(namespace["status"].to_string()),
                Err(gone) if gone.contains("not found") => Ok(()),
                Err(why) => Err(why),
            }
        })
        .await;
    }

    /// A program in the cluster's network (node 1's), with `KUBECONFIG` set; otherwise it is a process like others.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network().display())).arg("--").arg(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.running.run.join("bin").display()));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Runs a program to its end, [`Cluster::command`] or another, and gives what it prints.
    ///
    /// # Errors
    /// What it says when it fails, or takes too long.
    pub async fn run(&self, command: Command) -> Result<String, String> {
        finish(command, "").await
    }

    /// Runs `kubectl` as administrator and gives what it prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let mut kubectl = self.command("kubectl");
        kubectl.args(arguments);
        self.run(kubectl).await
    }

    /// `kubectl apply` of YAML, with strict validation.
    ///
    /// # Errors
    /// What it says when it fails.
    pub async fn apply(&self, yaml: &str) -> Result<String, String> {
        let mut kubectl = self.command("kubectl");
        kubectl.args(["apply", "--validate=strict", "--filename", "-"]);
        finish(kubectl, yaml).await
    }

    /// An object as JSON, such as `node/node1`.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn get(&self, object: &str) -> Result<Value, String> {
        json(&self.kubectl(&["get", object, "--output", "json"]).await?)
    }

    /// Runs a part of the test in the cluster's network: connections it opens start at node 1.
    ///
    /// # Panics
    /// With what `work` panics with.
    pub async fn inside<T, F, W>(&self, work: W) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
        W: FnOnce() -> F + Send + 'static,
    {
        within(File::open(self.network()).unwrap(), work).await
    }

    /// Runs a part of the test in a pod's network: connections it opens are treated as the application's.
    ///
    /// # Panics
    /// When the pod does not run, and with what `work` panics with.
    pub async fn inside_pod<T, F, W>(&self, pod: &Value, work: W) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
        W: FnOnce() -> F + Send + 'static,
    {
        let process = processes(pod).into_iter().next().expect("a pod that runs has processes");
        within(File::open(process.join("ns/net")).unwrap(), work).await
    }

    /// The administrator's kubeconfig; its server is reached in the cluster's network only.
    pub fn kubeconfig(&self) -> PathBuf {
        self.running.run.join("pki/admin.kubeconfig")
    }

    fn network(&self) -> PathBuf {
        let pid = fs::read_to_string(self.running.run.join("node1/pid")).unwrap();
        Path::new("/proc").join(pid.trim()).join("ns/net")
    }

    /// Gives an image, a tar as of `docker save`, to all nodes.
    ///
    /// # Panics
    /// When a node does not take it.
    pub async fn load_image(&self, tar: &Path) {
        self.running.script("load.sh", &["all", &tar.display().to_string()]).await.unwrap();
    }

    /// The image of this build, on all nodes: the operator with `airlane` as its entry point, the sidecar, Envoy, nft.
    ///
    /// # Panics
    /// When something is not built, or a node does not take it.
    pub async fn airlane_image(&self) -> &'static str {
        let once = || async {
            let binaries = crate::binary::airlane();
            assert!(crate::binary::sidecar().is_file());
            // Nodes that come later take all images of this folder.
            let tar = self.running.run.join("images/airlane.tar");
            let folder = binaries.parent().unwrap().display().to_string();
            self.running.script("airlane.sh", &[&tar.display().to_string(), &folder]).await.unwrap();
            self.load_image(&tar).await;
        };
        self.running.image.get_or_init(once).await;
        AIRLANE_IMAGE
    }

    /// Gives an image of all nodes another tag as well, and its new name.
    ///
    /// # Panics
    /// When a node does not have it.
    pub async fn tag_image(&self, image: &str, tag: &str) -> String {
        let (name, _) = image.rsplit_once(':').unwrap();
        let tagged = format!("{name}:{tag}");
        self.running.script("tag.sh", &[image, &tagged]).await.unwrap();
        tagged
    }

    /// Takes a part of the cluster away until [`Cluster::start`]: `apiserver`, `etcd`, `controller-manager`,
    /// `scheduler`, `coredns`, or of node 1 `kubelet`, `proxy`, `containerd`.
    ///
    /// # Panics
    /// When the test shares the cluster, or there is no such part.
    pub async fn stop(&self, service: &str) {
        self.damage();
        self.running.script("service.sh", &["stop", service]).await.unwrap();
    }

    /// Brings a part back that was stopped.
    ///
    /// # Panics
    /// When there is no such part.
    pub async fn start(&self, service: &str) {
        self.running.script("service.sh", &["start", service]).await.unwrap();
    }

    /// Stops and starts the API server, and waits until it serves: every watch breaks, and its cache is empty.
    ///
    /// # Panics
    /// When the test shares the cluster, or it does not come back.
    pub async fn restart_apiserver(&self) {
        self.stop("apiserver").await;
        self.start("apiserver").await;
        until("the API server is back", SOON, async || self.kubectl(&["get", "--raw", "/readyz"]).await)
            .await;
    }

    /// Makes etcd forget all versions but the newest ones. After [`Cluster::restart_apiserver`] a watch from an older
    /// one is answered with 410 Gone.
    ///
    /// # Panics
    /// When the test shares the cluster, or etcd refuses.
    pub async fn forget_history(&self) {
        self.damage();
        let etcd = async |method: &str, body: &str| {
            let mut curl = self.command("curl");
            curl.args(["-sS", "--fail-with-body", "-d", body])
                .arg(format!("http://127.0.0.1:2379/v3/kv/{method}"));
            json(&finish(curl, "").await.unwrap()).unwrap()
        };
        let range = etcd("range", r#"{"key": "AA==", "limit": 1}"#).await;
        let revision = range["header"]["revision"].as_str().unwrap();
        etcd("compaction", &format!(r#"{{"revision": "{revision}", "physical": true}}"#)).await;
    }

    /// Has at least so many nodes, 1 to 5: `node1` with the control plane, `node2` and on with pods only.
    ///
    /// # Panics
    /// When they do not come up.
    pub async fn grow(&self, nodes: usize) {
        let mut up = self.running.command("up.sh");
        up.env("NODES", nodes.to_string()).env("HELD", "1");
        finish(up, "").await.unwrap();
    }

    /// Ends a node (2 or higher) and everything on it at once, as a power cut does: nobody hears of it.
    ///
    /// # Panics
    /// When the test shares the cluster, or there is no such node.
    pub async fn lose_node(&self, node: usize) {
        self.damage();
        self.running.script("lose.sh", &[&node.to_string()]).await.unwrap();
    }

    /// Sends a signal to the processes of a program in a pod, from outside: SIGKILL is what a crash is.
    ///
    /// # Panics
    /// When there are none.
    pub fn signal(&self, pod: &Value, program: &str, signal: Signal) {
        let is_it = |process: &PathBuf| {
            let command = fs::read(process.join("cmdline")).unwrap_or_default();
            let first = command.split(|byte| *byte == 0).next().unwrap_or_default();
            Path::new(OsStr::from_bytes(first)).file_name() == Some(OsStr::new(program))
        };
        let processes: Vec<PathBuf> = processes(pod).into_iter().filter(is_it).collect();
        assert!(!processes.is_empty(), "no {program} runs in {}", pod["metadata"]["name"]);
        for process in processes {
            let pid = process.file_name().unwrap().to_str().unwrap().parse().unwrap();
            kill(Pid::from_raw(pid), signal).unwrap();
        }
    }

    fn damage(&self) {
        let alone = matches!(self.turn, Turn::Alone { .. });
        assert!(alone, "a test that takes parts of the cluster away must ask for `Cluster::alone`");
        self.damaged.store(true, Relaxed);
    }

    /// Stopped parts are started, lost nodes come back.
    fn mend(&self) -> Result<String, String> {
        let mut nodes = 0;
        for node in fs::read_dir(&self.running.run).map_err(|error| error.to_string())?.flatten() {
            if !node.file_name().as_encoded_bytes().starts_with(b"node") {
                continue;
            }
            nodes += 1;
            for service in fs::read_dir(node.path().join("services")).into_iter().flatten().flatten() {
                // Not there, if it was not stopped.
                let _ = fs::remove_file(service.path().join("stopped"));
            }
        }
        let up = self.running.command("up.sh").env("NODES", nodes.to_string()).env("HELD", "1").output();
        printed("up.sh", &up.map_err(|error| error.to_string())?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.damaged.load(Relaxed)
            && let Err(why) = self.mend()
        {
            eprintln!("the cluster could not be mended: {why}");
        }
    }
}

/// The processes of a pod, as folders of `/proc`.
fn processes(pod: &Value) -> Vec<PathBuf> {
    let group = format!("/pod{}/", pod["metadata"]["uid"].as_str().unwrap());
    let is_one = |process: &PathBuf| {
        fs::read_to_string(process.join("cgroup")).is_ok_and(|text| text.contains(&group))
    };
    fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(is_one).collect()
}

/// Runs a part of the test in a network namespace.
async fn within<T, F, W>(network: File, work: W) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
    W: FnOnce() -> F + Send + 'static,
{
    // A network namespace is a thread's, so `work` has one of its own.
    let thread = move || {
        std::thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work())
        })
        .join()
    };
    match tokio::task::spawn_blocking(thread).await.unwrap() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster")
}

impl Running {
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(folder().join(script));
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    async fn script(&self, name: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command(name);
        command.args(arguments);
        finish(command, "").await
    }
}

/// Has the cluster up from now on, or says why this machine cannot.
fn hold(settings: Settings) -> Result<Running, String> {
    let mut said = tempfile::tempfile().unwrap();
    let mut hold = Command::new(folder().join("hold.sh"))
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(said.try_clone().unwrap())
        // Who interrupts the tests must not interrupt this.
        .process_group(0)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(hold.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if let Some(run) = line.trim().strip_prefix("up ") {
        let (image, names) = (OnceCell::new(), AtomicUsize::new(1));
        return Ok(Running { run: PathBuf::from(run), settings, image, names, _hold: hold });
    }
    let status = hold.wait().unwrap();
    let mut why = String::new();
    said.rewind().unwrap();
    said.read_to_string(&mut why).unwrap();
    assert!(status.code() == Some(CANNOT), "the cluster did not come up ({status}):\n{why}");
    Err(why.trim().trim_start_matches("error: ").to_owned())
}

/// Runs a command to its end.
async fn finish(command: Command, input: &str) -> Result<String, String> {
    let name = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().unwrap();
        // Who does not read its input closes it, which is no failure.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    match tokio::time::timeout(LONGEST, run).await {
        Ok(Ok(output)) => printed(&name, &output),
        Ok(Err(error)) => Err(format!("{name}: {error}")),
        Err(_) => Err(format!("{name}: not done after {LONGEST:?}")),
    }
}

fn printed(command: &str, output: &Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{command}: {}: {} {}", output.status, text(&output.stderr), text(&output.stdout)))
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("{error} in {text}"))
}
