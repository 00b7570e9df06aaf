//! A whole mesh on this machine: the operator, a directory of policies, and workloads that join.

use crate::{
    binary, client, port,
    process::Process,
    until::{SOON, until},
    workload::{App, Workload},
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};
use tempfile::TempDir;

/// A running mesh. Dropping it ends the operator; workloads are dropped before it.
pub struct Mesh {
    operator: Process,
    flags: Vec<String>,
    starts: usize,
    names: AtomicUsize,
    // Last, so that everything that writes here has ended when it is removed.
    home: TempDir,
}

impl Mesh {
    /// A mesh with the operator's defaults.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A mesh whose operator has these flags too.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_with(flags: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("airlane-").tempdir().unwrap();
        for folder in ["policies", "state", "logs", "run"] {
            fs::create_dir(home.path().join(folder)).unwrap();
        }
        // Not port 0: the operator must come back where its sidecars look for it.
        let mut all = vec!["--listen".to_owned(), format!("127.0.0.1:{}", port::free())];
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let operator = start_operator(home.path(), &all, 0);
        let mut mesh = Mesh { operator, flags: all, starts: 1, names: AtomicUsize::new(0), home };
        mesh.serving().await;
        mesh
    }

    async fn serving(&mut self) {
        let operator = &mut self.operator;
        until("the operator says it is ready", SOON, async || match operator.ended() {
            Some(status) => panic!("the operator ended with {status}:\n{}", operator.log()),
            None if operator.log().lines().any(|line| line.starts_with("ready")) => Ok(()),
            None => Err("not yet".to_owned()),
        })
        .await;
    }

    /// The operator's process, to send it signals.
    pub fn operator(&mut self) -> &mut Process {
        &mut self.operator
    }

    /// Starts the operator again with the same flags and state; it must have ended.
    ///
    /// # Panics
    /// When it runs, or does not come up.
    pub async fn start_operator_again(&mut self) {
        assert!(self.operator.ended().is_some(), "the operator runs");
        self.operator = start_operator(self.home.path(), &self.flags, self.starts);
        self.starts += 1;
        self.serving().await;
    }

    /// `kill -9`, and start again.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn crash_operator(&mut self) {
        self.operator.kill();
        self.start_operator_again().await;
    }

    /// The watched directory.
    pub fn policies(&self) -> PathBuf {
        self.home.path().join("policies")
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// Everything of this mesh: policies, state, logs, the run directories of sidecars.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The join string that sidecars of this host use.
    pub fn join(&self) -> PathBuf {
        self.state().join("join")
    }

    /// Saves a file of resources as an editor does: whole, by a rename.
    pub fn apply(&self, file: &str, yaml: &str) {
        let unfinished = self.policies().join(format!(".{file}.swp"));
        fs::write(&unfinished, yaml).unwrap();
        fs::rename(unfinished, self.policies().join(file)).unwrap();
    }

    /// Deletes a file of resources.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.policies().join(file)).unwrap();
    }

    /// Runs `airlane` with `arguments` against this mesh.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary::airlane());
        command.arg("--state").arg(self.state()).args(arguments);
        tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
    }

    /// Runs `airlane` and gives what it prints.
    ///
    /// # Panics
    /// When it exits with anything but 0.
    pub async fn ask(&self, arguments: &[&str]) -> String {
        self.try_ask(arguments).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs `airlane` and gives what it prints.
    ///
    /// # Errors
    /// What it says when it exits with anything but 0.
    pub async fn try_ask(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.cli(arguments).await;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let told = String::from_utf8_lossy(&output.stderr);
        Err(format!("airlane {}: {}: {told}", arguments.join(" "), output.status))
    }

    /// The rows that `airlane get WHAT` shows, asked for as it does.
    ///
    /// # Errors
    /// Why there is no answer, as while the operator is away.
    pub async fn get(&self, what: &str) -> Result<Vec<Value>, String> {
        let answer = client::get_unix(&self.state().join("airlane.sock"), &format!("/v1/{what}")).await?;
        match answer.json() {
            Value::Array(rows) => Ok(rows),
            _ => Err(answer.to_string()),
        }
    }

    /// The row of a policy (`NAMESPACE/NAME`) in `airlane get policies`.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn policy(&self, name: &str) -> Result<Value, String> {
        let rows = self.get("policies").await?;
        rows.into_iter().find(|row| qualified(row) == name).ok_or_else(|| format!("no policy {name}"))
    }

    /// Saves a policy (`NAMESPACE/NAME`) and waits until every proxy runs it.
    pub async fn program(&self, file: &str, policy: &str, yaml: &str) {
        let before = self.policy(policy).await.map_or(Value::Null, |row| row["generation"].clone());
        self.apply(file, yaml);
        until(&format!("{policy} is programmed"), SOON, async || {
            let row = self.policy(policy).await?;
            let Value::Object(programmed) = &row["programmed"] else { return Err(row.to_string()) };
            let known = row["generation"] != before;
            let all = known && programmed["targeted"] == programmed["acknowledged"];
            if all { Ok(()) } else { Err(row.to_string()) }
        })
        .await;
    }

    /// The row of a canary (`NAMESPACE/NAME`) in `airlane get canaries`.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn canary(&self, name: &str) -> Result<Value, String> {
        let rows = self.get("canaries").await?;
        rows.into_iter().find(|row| qualified(row) == name).ok_or_else(|| format!("no canary {name}"))
    }

    /// Waits until a canary is in one of `phases`; gives its row.
    pub async fn canary_reaches(&self, name: &str, phases: &[&str], within: std::time::Duration) -> Value {
        until(&format!("canary {name} is {phases:?}"), within, async || {
            let row = self.canary(name).await?;
            let phase = row["phase"].as_str().unwrap_or("");
            if phases.contains(&phase) { Ok(row) } else { Err(row.to_string()) }
        })
        .await
    }

    /// Claims that no proxy refused anything it was sent.
    ///
    /// # Panics
    /// When one did.
    pub async fn assert_nothing_rejected(&self) {
        for proxy in self.get("proxies").await.unwrap() {
            let rejections = proxy["rejections"].as_array().unwrap();
            assert!(rejections.is_empty(), "{} rejected: {rejections:?}", proxy["instance"]);
        }
    }

    /// Starts an example service with its sidecar and waits until it may be called.
    ///
    /// # Panics
    /// When that does not happen.
    pub async fn workload(&self, app: App) -> Workload {
        let mut workload = self.launch(app);
        workload.healthy(self).await;
        workload
    }

    /// Starts an example service with its sidecar, without waiting for it.
    pub fn launch(&self, app: App) -> Workload {
        let number = self.names.fetch_add(1, Relaxed);
        Workload::launch(app, number, self.home.path(), &self.join())
    }

    /// GET through a workload's outbound port until it is answered with `status`.
    pub async fn call_gives(&self, from: &Workload, url: &str, status: u16) -> client::Answer {
        until(&format!("{url} gives {status}"), SOON, async || {
            let answer = client::get_through(from.outbound(), url).await?;
            if answer.status == status { Ok(answer) } else { Err(answer.to_string()) }
        })
        .await
    }
}

/// `NAMESPACE/NAME` of a row.
fn qualified(row: &Value) -> String {
    format!("{}/{}", row["namespace"].as_str().unwrap_or("?"), row["name"].as_str().unwrap_or("?"))
}

fn start_operator(home: &Path, flags: &[String], number: usize) -> Process {
    let mut command = Command::new(binary::airlane());
    command.arg("up").arg(home.join("policies")).arg("--state").arg(home.join("state")).args(flags);
    Process::start(&format!("operator-{number}"), command, &home.join("logs"))
}
