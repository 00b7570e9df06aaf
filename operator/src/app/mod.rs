//! The control plane, put together: the parts are the same everywhere, what they observe and where they write differs.

mod kubernetes;
mod standalone;

pub(crate) use kubernetes::operator;
pub(crate) use standalone::up;

use crate::serve::CONNECTIONS_MAX;
use airlane_core::id::{BadName, Namespace};
use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{
    io::Write as _,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};
use tokio::{signal::unix::SignalKind, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// The namespace whose policies without target are about the whole mesh.
pub(crate) fn system_namespace() -> Result<Namespace, BadName> {
    Namespace::parse("airlane-system")
}

/// What runs until shutdown.
struct Tasks {
    running: JoinSet<(&'static str, anyhow::Result<()>)>,
    shutdown: CancellationToken,
}

impl Tasks {
    fn new() -> Tasks {
        Tasks { running: JoinSet::new(), shutdown: CancellationToken::new() }
    }

    /// What tells a task that it should end.
    fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Starts a task; `name` completes "… ended unexpectedly".
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.running.spawn(async move { (name, task.await) });
    }

    /// Starts a task that cannot fail.
    fn spawn_sure(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, async move {
            task.await;
            Ok(())
        });
    }

    /// Waits for SIGTERM or SIGINT, or for a task to end, and then until all have ended.
    ///
    /// # Errors
    /// The task that ended though nobody asked it to.
    async fn run(mut self) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = asked_to_stop() => None,
            ended = self.running.join_next() => ended,
        };
        self.shutdown.cancel();
        while self.running.join_next().await.is_some() {}
        match ended {
            None => Ok(()),
            Some(ended) => {
                let (name, result) = ended?;
                result.with_context(|| format!("{name} failed"))?;
                Err(anyhow::anyhow!("{name} ended unexpectedly"))
            }
        }
    }
}

async fn asked_to_stop() {
    let Ok(mut terminate) = tokio::signal::unix::signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// Says the line that scripts wait for. The mesh runs whether somebody reads it or not.
fn ready(address: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "ready: sidecars join at {address}").and_then(|()| out.flush()) {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot say on the standard output that the mesh is ready"
        );
    }
}

/// Lets the process have as many files open as it may: connections are files, and what a container begins with can be a
/// thousand.
fn allow_files() {
    let allowed = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    match allowed {
        Ok(files) if usize::try_from(files).is_ok_and(|files| files < CONNECTIONS_MAX) => {
            tracing::info!(files, "the limit of open files allows less than {CONNECTIONS_MAX} connections");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

/// Makes the state directory and closes it to everybody else on the host.
fn private_directory(state: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .with_context(|| format!("cannot make the state directory {}", state.display()))?;
    std::fs::set_permissions(state, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close the state directory {} to others", state.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_open_what_its_host_allows() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(4096), hard).expect("lowered");
        allow_files();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).expect("a limit"), (hard, hard));
    }
}
