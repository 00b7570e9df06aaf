//! Processes that end with the agent: Envoy and the application.

use nix::{
    sys::{
        prctl,
        signal::{Signal, killpg},
    },
    unistd::{Pid, getppid},
};
use std::{
    convert::Infallible,
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};
use tokio::time::timeout;

/// The name of this program's subcommand that becomes another program, see [`guard`].
pub(crate) const GUARD: &str = "guard";

/// This program, also when its file was replaced by a newer version meanwhile.
const OURSELVES: &str = "/proc/self/exe";

/// A running process, the leader of its own group: what the terminal sends on Ctrl-C reaches the agent alone,
/// which stops the others in their order.
#[derive(Debug)]
pub(crate) struct Process {
    child: tokio::process::Child,
}

impl Process {
    /// Starts `program`, which is killed with this value and with the agent.
    pub(crate) fn start(
        program: &OsStr,
        arguments: &[OsString],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> io::Result<Self> {
        // A process in the background of a terminal is stopped by the kernel when it reads from it.
        let stdin = if io::stdin().is_terminal() { Stdio::null() } else { Stdio::inherit() };
        let child = tokio::process::Command::new(OURSELVES)
            .args([GUARD, "--parent", &std::process::id().to_string(), "--"])
            .arg(program)
            .args(arguments)
            .env_remove(crate::args::JOIN_VARIABLE)
            .envs(environment)
            .stdin(stdin)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child })
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks the whole group to end, and makes it after `grace`.
    pub(crate) async fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        match timeout(grace, self.child.wait()).await {
            Ok(ended) => ended,
            Err(_) => {
                self.signal(Signal::SIGKILL);
                self.child.wait().await
            }
        }
    }

    /// Signals the group, unless its leader was waited for: the number may be another's then.
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            // It fails only if the group has just ended by itself.
            killpg(Pid::from_raw(group), signal).ok();
        }
    }
}

impl Drop for Process {
    /// Takes the rest of the group along.
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Becomes `command`, having asked the kernel to kill it when its parent dies. That must be asked in the process
/// itself, between its start and the program, where safe Rust can do it only as a program.
///
/// # Errors
/// If there is no command, the parent is dead already, or the command cannot be run.
pub(crate) fn guard(parent: u32, command: &[OsString]) -> io::Result<Infallible> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid().as_raw().try_into() != Ok(parent) {
        return Err(io::Error::other("the agent has ended"));
    }
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let error = Command::new(program).args(arguments).exec();
    Err(io::Error::new(error.kind(), format!("cannot run {}: {error}", program.display())))
}

/// What a shell would report: the code, or 128 and the signal's number.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_shells() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
    }
}
