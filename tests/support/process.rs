//! Child processes: their logs are kept and shown when a test fails, and none outlives its test.

use crate::until::until;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

/// How much of a log a failed test shows.
const LOG_LINES_SHOWN: usize = 40;

/// A running, or ended, child process.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `logs/NAME.log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, logs: &Path) -> Self {
        let log = logs.join(format!("{name}.log"));
        let out = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Process { name: name.to_owned(), child, log }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are positive and small")
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // Not reaped yet, so that the id is still its own.
            kill(Pid::from_raw(self.pid()), signal).unwrap();
        }
    }

    /// SIGKILL, as by the kernel when memory is short.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// Asks it to stop and waits for the end.
    ///
    /// # Panics
    /// When it has not ended `within` that time.
    pub async fn stop(&mut self, within: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let what = format!("{} ends after SIGTERM", self.name);
        until(&what, within, async || self.ended().ok_or_else(|| "running".to_owned())).await
    }

    fn show_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        eprintln!("--- {}: the last {} of {} lines", self.name, shown.len(), lines.len());
        for line in shown {
            eprintln!("{line}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_log();
        }
        // Neither can fail in a way that matters any more: it ends, or has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes whose environment has `NAME=VALUE`, with their command lines: descendants of whoever was started with it.
pub fn descendants(variable: &str, value: &str) -> Vec<(i32, String)> {
    let mark = format!("{variable}={value}");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()) {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

/// Ends [`descendants`]: those of a process that was killed before it could end them itself.
pub fn end_descendants(variable: &str, value: &str) {
    for (pid, _) in descendants(variable, value) {
        // It may have ended in the meantime.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
