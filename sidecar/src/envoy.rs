//! The Envoy beside the application: found, started, watched, started again.

use crate::{admin::Admin, backoff::Backoff, process::Process, rundir::RunDir};
use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The version this agent is tried with.
const VERSION: &str = "1.40.0";
/// The variable that names Envoy's binary.
const VARIABLE: &str = "AIRLANE_ENVOY";

/// How often a starting Envoy is asked whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(20);
/// An Envoy that ran for so long did not fail at its start.
const STEADY: Duration = Duration::from_secs(30);
/// How long Envoy may take to end.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// There is no Envoy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoEnvoy {
    /// The variable names something else.
    #[error(
        "{VARIABLE} names {path}, which is no program; point it at an Envoy {VERSION} binary, or unset it"
    )]
    Variable {
        /// What it names.
        path: PathBuf,
    },
    /// It is nowhere.
    #[error(
        "Envoy was not found: set {VARIABLE} to its binary, put `envoy` in PATH, or save it as {cache} \
         (Envoy {VERSION} is published at https://github.com/envoyproxy/envoy/releases)"
    )]
    Nowhere {
        /// The last place looked at.
        cache: PathBuf,
    },
}

/// The binary: `$AIRLANE_ENVOY`, else `envoy` in `PATH`, else where `airlane` keeps its own.
pub(crate) fn find() -> Result<PathBuf, NoEnvoy> {
    let path = env::var_os("PATH").unwrap_or_default();
    find_in(env::var_os(VARIABLE), &path, env::var_os("HOME"))
}

fn find_in(named: Option<OsString>, path: &OsStr, home: Option<OsString>) -> Result<PathBuf, NoEnvoy> {
    if let Some(named) = named.filter(|value| !value.is_empty()) {
        let path = PathBuf::from(named);
        return if is_program(&path) { Ok(path) } else { Err(NoEnvoy::Variable { path }) };
    }
    let cache = Path::new(&home.unwrap_or_default()).join(format!(".cache/airlane/envoy-{VERSION}/envoy"));
    let candidates = env::split_paths(path).map(|folder| folder.join("envoy")).chain([cache.clone()]);
    candidates.into_iter().find(|path| is_program(path)).ok_or(NoEnvoy::Nowhere { cache })
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// How to run Envoy.
#[derive(Debug)]
pub(crate) struct Envoy {
    /// The binary.
    pub(crate) binary: PathBuf,
    /// Worker threads.
    pub(crate) concurrency: u32,
    /// Where its bootstrap and its sockets are.
    pub(crate) dir: Arc<RunDir>,
}

/// Why a run of Envoy is over.
enum End {
    /// By itself, or it could not start.
    Failed(String),
    /// Its bootstrap changed.
    Replaced,
    /// The agent stops.
    Stopped,
}

impl Envoy {
    /// Keeps Envoy running until `stop`; tells through `ready` whether it serves. A change of `bootstraps` starts
    /// it anew.
    pub(crate) async fn keep_running(
        &self,
        ready: watch::Sender<bool>,
        mut bootstraps: watch::Receiver<String>,
        stop: CancellationToken,
    ) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let started = Instant::now();
            let end = self.run(&ready, &mut bootstraps, &stop).await;
            ready.send_replace(false);
            match end {
                End::Stopped => return,
                End::Replaced => tracing::info!("starting Envoy anew with the operator's new bootstrap"),
                End::Failed(reason) => {
                    if started.elapsed() > STEADY {
                        backoff.reset();
                    }
                    let wait = backoff.next();
                    tracing::error!(reason, ?wait, "Envoy ended: no call gets in or out until it is back");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => return,
                    }
                }
            }
        }
    }

    async fn run(
        &self,
        ready: &watch::Sender<bool>,
        bootstraps: &mut watch::Receiver<String>,
        stop: &CancellationToken,
    ) -> End {
        let started = Instant::now();
        let written = self.dir.write_bootstrap(&bootstraps.borrow_and_update());
        let bootstrap = match written {
            Ok(bootstrap) => bootstrap,
            Err(error) => return End::Failed(error.to_string()),
        };
        let mut process = match Process::start(self.binary.as_os_str(), &self.arguments(bootstrap), []) {
            Ok(process) => process,
            Err(error) => return End::Failed(error.to_string()),
        };
        let admin = Admin::on(self.dir.admin_socket());
        let becomes_ready = async {
            while !matches!(admin.is_ready().await, Ok(true)) {
                tokio::time::sleep(READY_INTERVAL).await;
            }
            tracing::info!(after = ?started.elapsed(), "Envoy is ready");
            ready.send_replace(true);
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            ended = process.ended() => {
                return End::Failed(ended.map_or_else(|error| error.to_string(), |status| status.to_string()));
            }
            () = becomes_ready => End::Stopped,
            Ok(()) = bootstraps.changed() => End::Replaced,
            () = stop.cancelled() => End::Stopped,
        };
        match process.stop(STOP_GRACE).await {
            Ok(_) => end,
            Err(error) => End::Failed(error.to_string()),
        }
    }

    fn arguments(&self, bootstrap: PathBuf) -> Vec<OsString> {
        let concurrency = self.concurrency.to_string();
        let fixed = [
            "--disable-hot-restart",
            "--concurrency",
            &concurrency,
            // Else callers over open connections are asked to go elsewhere little by little, over ten minutes.
            "--drain-strategy",
            "immediate",
            // Else outlier events reach their file every 10 s.
            "--file-flush-interval-msec",
            "200",
            "--log-level",
            "warn",
            // Else every field that Envoy calls work in progress is a line, dozens of times.
            "--component-log-level",
            "misc:error",
            "--log-format",
            "%Y-%m-%dT%T.%fZ envoy %l %v",
        ];
        let mut arguments: Vec<OsString> = fixed.map(OsString::from).into();
        arguments.extend(["--config-path".into(), bootstrap.into_os_string()]);
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_found_by_variable_then_path_then_cache() {
        let dir = tempfile::tempdir().expect("a folder");
        let program = |path: &str, mode| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(&path, "").expect("written");
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("set");
            path
        };
        let mine = program("mine", 0o755);
        let plain = program("no-program/envoy", 0o644);
        let in_path = program("bin/envoy", 0o755);
        let cached = program("home/.cache/airlane/envoy-1.40.0/envoy", 0o755);
        let path =
            env::join_paths([plain.parent(), in_path.parent()].map(|p| p.expect("a parent"))).expect("paths");
        let home = Some(dir.path().join("home").into_os_string());

        let found = find_in(Some(mine.clone().into()), &path, home.clone());
        assert_eq!(found.expect("found"), mine);
        assert_eq!(find_in(Some("".into()), &path, home.clone()).expect("found"), in_path);
        assert_eq!(find_in(None, "".as_ref(), home).expect("found"), cached);
        let wrong = find_in(Some(plain.into()), "".as_ref(), None).expect_err("no program");
        assert!(wrong.to_string().contains("AIRLANE_ENVOY names"), "{wrong}");
        let nowhere = find_in(None, "".as_ref(), None).expect_err("nowhere");
        assert!(nowhere.to_string().contains("put `envoy` in PATH"), "{nowhere}");
    }
}
