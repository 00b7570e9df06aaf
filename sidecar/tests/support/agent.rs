//! The agent as a process, and what it starts.

use super::operator::{TestOperator, Told};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    time::{interval, timeout},
};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The agent, started by a test.
pub(crate) struct Agent {
    child: Child,
    pub(crate) runtime: tempfile::TempDir,
    pub(crate) output: PathBuf,
}

impl Agent {
    /// Starts it; `set` adds arguments and variables, given a folder that goes with the agent.
    pub(crate) fn start(set: impl FnOnce(&mut Command, &Path)) -> Self {
        let runtime = tempfile::tempdir().expect("a folder");
        let output = runtime.path().join("output");
        let file = fs::File::create(&output).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_airlane-sidecar"));
        command
            .env("AIRLANE_LOG", "airlane_sidecar=debug")
            .stdin(Stdio::null())
            .stderr(file)
            .kill_on_drop(true);
        set(&mut command, runtime.path());
        let child = command.spawn().expect("started");
        Self { child, runtime, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("running")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().try_into().expect("a pid")), signal).expect("signalled");
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("in time").expect("waited")
    }

    pub(crate) fn output(&self) -> String {
        fs::read_to_string(&self.output).expect("read")
    }

    /// Fails with the agent's words unless `condition` comes true in time.
    pub(crate) async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let comes_true = async {
            let mut looks = interval(Duration::from_millis(20));
            while !condition().await {
                looks.tick().await;
            }
        };
        let in_time = timeout(PATIENCE, comes_true).await.is_ok();
        assert!(in_time, "not in time: {what}; the agent said:\n{}", self.output());
    }

    pub(crate) async fn until_told(
        &self,
        operator: &TestOperator,
        what: &str,
        condition: impl Fn(&Told) -> bool,
    ) {
        self.until(what, async || condition(&operator.told.borrow())).await;
    }

    /// How many run folders there are.
    pub(crate) fn run_folders(&self) -> usize {
        fs::read_dir(self.runtime.path())
            .expect("read")
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("airlane-"))
            .count()
    }

    /// The process id of the child that runs `program`.
    pub(crate) fn child(&self, program: &str) -> Option<u32> {
        children(self.pid()).into_iter().find(|(_, name)| name == program).map(|(pid, _)| pid)
    }
}

/// Process ids and names, from proc_pid_stat(5): `pid (name) state parent …`.
fn children(of: u32) -> Vec<(u32, String)> {
    let processes = fs::read_dir("/proc").expect("read").flatten();
    let stats = processes.filter_map(|process| fs::read_to_string(process.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            let (pid, rest) = stat.split_once(" (")?;
            let (name, rest) = rest.rsplit_once(") ")?;
            let parent: u32 = rest.split(' ').nth(1)?.parse().ok()?;
            (parent == of).then_some((pid.parse().ok()?, name.to_owned()))
        })
        .collect()
}

/// Whether a process runs.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended; its new parent may be slow to wait for it.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Whether there is an Envoy to test with; says so if not, and fails under `AIRLANE_REQUIRE`.
pub(crate) fn envoy_is_here() -> bool {
    let cached = std::env::home_dir().unwrap_or_default().join(".cache/airlane/envoy-1.40.0/envoy");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).any(|folder| folder.join("envoy").is_file());
    let here = std::env::var_os("AIRLANE_ENVOY").is_some() || in_path || cached.is_file();
    assert!(here || std::env::var_os("AIRLANE_REQUIRE").is_none(), "no Envoy: run `make envoy`");
    if !here {
        println!("SKIPPED: no Envoy");
    }
    here
}
