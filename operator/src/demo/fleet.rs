//! The processes of the demo: an operator and example services behind their sidecars, ended with it.

use airlane_core::id::{Name, Namespace};
use anyhow::{Context, bail};
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// The namespace of the example services.
pub(super) const NAMESPACE: &str = "shop";

/// How long the operator may take to start: keys are made, the database opened.
const OPERATOR_STARTS_WITHIN: Duration = Duration::from_secs(20);

/// How long a process may take to end when asked before it is ended.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// An operator with its directories.
pub(super) struct Fleet {
    airlane: PathBuf,
    sidecar: PathBuf,
    home: tempfile::TempDir,
    operator: Child,
    workloads: Vec<Workload>,
    last_port: Option<u16>,
}

/// One copy of an example service behind its sidecar.
pub(super) struct Workload {
    /// Its service.
    pub(super) service: String,
    /// Its version.
    pub(super) version: String,
    /// Where the application itself listens, past the mesh.
    pub(super) app: SocketAddr,
    process: Child,
}

/// What to start.
pub(super) struct Member<'a> {
    /// The service.
    pub(super) service: &'a str,
    /// The version.
    pub(super) version: &'a str,
    /// The service it calls, if any.
    pub(super) calls: Option<&'a str>,
    /// The part of its requests that fail (`5%`).
    pub(super) fails: &'a str,
}

impl Fleet {
    /// Starts an operator on a directory of its own.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let airlane = std::env::current_exe().context("cannot find this program")?;
        let sidecar = sidecar_beside(&airlane)?;
        let home =
            tempfile::Builder::new().prefix("airlane-demo-").tempdir().context("cannot make a directory")?;
        std::fs::create_dir(home.path().join("policies")).context("cannot make a directory")?;
        let mut operator = guarded(&sidecar, &airlane)
            .arg("--state")
            .arg(home.path().join("state"))
            .arg("up")
            .arg(home.path().join("policies"))
            .args(["--listen", "127.0.0.1:0"])
            .env("AIRLANE_LOG", "warn")
            .stdout(Stdio::piped())
            .stderr(log(home.path(), "operator")?)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the operator")?;
        let output = operator.stdout.take().context("the operator has no output")?;
        let mut lines = BufReader::new(output).lines();
        match timeout(OPERATOR_STARTS_WITHIN, lines.next_line()).await {
            Ok(Ok(Some(line))) if line.starts_with("ready") => {}
            _ => bail!("the operator did not start: see {}", home.path().join("operator.log").display()),
        }
        Ok(Fleet { airlane, sidecar, home, operator, workloads: Vec::new(), last_port: None })
    }

    /// The operator's state directory.
    pub(super) fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// The directory of policies.
    pub(super) fn policies(&self) -> PathBuf {
        self.home.path().join("policies")
    }

    /// Saves a file among the policies as an editor does: whole, then in place.
    pub(super) fn apply(&self, file: &str, yaml: &str) -> anyhow::Result<()> {
        let draft = self.policies().join(format!(".{file}"));
        std::fs::write(&draft, yaml)
            .and_then(|()| std::fs::rename(&draft, self.policies().join(file)))
            .with_context(|| format!("cannot save {file}"))
    }

    /// Starts a copy of a service. It is in the mesh once its endpoint is `Healthy`.
    pub(super) fn add(&mut self, member: &Member<'_>) -> anyhow::Result<&Workload> {
        // Both are names of the demo's own, checked here because they become part of a file's name.
        Name::parse(member.service)?;
        Namespace::parse(NAMESPACE)?;
        let port = free_port(self.last_port)?;
        self.last_port = Some(port);
        let mut command = guarded(&self.sidecar, &self.sidecar);
        command
            .args(["run", "--service", member.service, "--version", member.version, "--namespace", NAMESPACE])
            .args(["--port", &port.to_string(), "--health", "/healthz"])
            .arg("--join")
            .arg(self.state().join("join"))
            .arg("--")
            .arg(&self.airlane)
            .args(["example-app", "--port", &port.to_string()])
            .args(["--name", member.service, "--version", member.version, "--fail", member.fails]);
        if let Some(next) = member.calls {
            command.args(["--call", &format!("http://{next}/")]);
        }
        let process = command
            .env("AIRLANE_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(self.home.path(), &format!("{}-{}-{port}", member.service, member.version))?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the sidecar of {}", member.service))?;
        self.workloads.push(Workload {
            service: member.service.to_owned(),
            version: member.version.to_owned(),
            app: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            process,
        });
        self.workloads.last().context("just added")
    }

    /// The copies of a service at a version.
    pub(super) fn copies<'a>(
        &'a self,
        service: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a Workload> {
        self.workloads
            .iter()
            .filter(move |workload| workload.service == service && workload.version == version)
    }

    /// Asks the copies of a service at a version to leave, and waits for them.
    pub(super) async fn retire(&mut self, service: &str, version: &str) {
        let (mut leaving, staying): (Vec<Workload>, Vec<Workload>) = self
            .workloads
            .drain(..)
            .partition(|workload| workload.service == service && workload.version == version);
        self.workloads = staying;
        end(leaving.iter_mut().map(|workload| &mut workload.process)).await;
    }

    /// The last lines of every log, for when something did not start.
    pub(super) fn last_words(&self) -> String {
        let logs = std::fs::read_dir(self.home.path()).into_iter().flatten().flatten();
        let mut words = String::new();
        for entry in logs.filter(|entry| entry.path().extension().is_some_and(|ext| ext == "log")) {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(5)) {
                words.push_str(&format!("{}: {line}\n", entry.file_name().to_string_lossy()));
            }
        }
        words
    }

    /// Ends everything, the operator last, and hands over the directory with the logs.
    pub(super) async fn end(mut self) -> tempfile::TempDir {
        end(self.workloads.iter_mut().map(|workload| &mut workload.process)).await;
        end([&mut self.operator]).await;
        self.home
    }
}

/// Asks processes to end, all at once, and ends those that do not.
async fn end(processes: impl IntoIterator<Item = &mut Child>) {
    let mut processes: Vec<&mut Child> = processes.into_iter().collect();
    for process in &processes {
        if let Some(pid) = process.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself.
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
    }
    let deadline = tokio::time::Instant::now() + ENDS_WITHIN;
    for process in &mut processes {
        if tokio::time::timeout_at(deadline, process.wait()).await.is_err() {
            let _ = process.kill().await;
        }
    }
}

/// `program` as the kernel ends it when this process dies, however that comes.
fn guarded(sidecar: &Path, program: &Path) -> Command {
    let mut command = Command::new(sidecar);
    command.args(["guard", "--parent", &std::process::id().to_string(), "--"]).arg(program);
    command
}

fn sidecar_beside(airlane: &Path) -> anyhow::Result<PathBuf> {
    let sidecar = airlane.with_file_name("airlane-sidecar");
    if sidecar.is_file() {
        return Ok(sidecar);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join("airlane-sidecar"))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("airlane-sidecar is neither at {} nor in PATH", sidecar.display()))
}

fn log(home: &Path, name: &str) -> anyhow::Result<Stdio> {
    let path = home.join(format!("{name}.log"));
    let file = std::fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(file.into())
}

/// Where applications listen: below the ports that sidecars choose for their proxies and the kernel for outgoing
/// connections, so that neither takes one between our look and the application's start.
const APPLICATION_PORTS: std::ops::Range<u16> = 8_100..15_000;

/// A loopback port above `last` that is free now.
fn free_port(last: Option<u16>) -> anyhow::Result<u16> {
    let mut ports = APPLICATION_PORTS.filter(|port| last.is_none_or(|last| *port > last));
    ports
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .context("no free loopback port")
}
