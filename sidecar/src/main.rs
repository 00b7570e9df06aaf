//! The agent beside a workload.
//!
//! It makes the workload's key, joins the mesh with it, runs Envoy with the bootstrap the operator rendered, gives
//! Envoy its certificates, runs the application and says how it is; in the end it takes the workload out of the
//! mesh before it stops it. Envoy does the talking: when this process or the operator is slow, no call is.

use clap::Parser;
use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

mod admin;
mod agent;
mod application;
mod args;
mod backoff;
mod envoy;
mod health;
mod http;
mod identity;
mod intercept;
mod join;
mod link;
mod membership;
mod outliers;
mod pin;
mod pod;
mod ports;
mod process;
mod rundir;
mod sds;
mod sidecar;
mod sockets;
mod stopping;
#[cfg(test)]
#[path = "../tests/support/authority.rs"]
mod testing;

fn main() -> ExitCode {
    match args::Args::parse().command {
        args::Command::Run(run) => until_ended(agent::run(*run)),
        args::Command::Pod(pod) => until_ended(pod::run(*pod)),
        args::Command::Intercept(wanted) => intercept(wanted),
        args::Command::Guard { parent, command } => become_program(parent, &command),
    }
}

fn until_ended(run: impl Future<Output = anyhow::Result<u8>>) -> ExitCode {
    tell_to_stderr();
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run));
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One line for each event, from `info` on, or as `AIRLANE_LOG` says (`debug`, `airlane_sidecar=debug,h2=warn`).
fn tell_to_stderr() {
    let asked = std::env::var("AIRLANE_LOG").ok().and_then(|asked| {
        let parsed = asked.parse::<Targets>();
        if let Err(error) = &parsed {
            writeln!(
                io::stderr(),
                "airlane-sidecar: AIRLANE_LOG={asked:?} is not heeded: {error}; write info, or airlane_sidecar=debug"
            )
            .ok();
        }
        parsed.ok()
    });
    // https://no-color.org
    let set = |name| std::env::var_os(name).unwrap_or_default();
    let coloured = io::stderr().is_terminal() && set("NO_COLOR").is_empty() && set("TERM") != "dumb";
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(coloured)
        .with_target(false)
        // It would be said on the standard error that nothing can be said there.
        .log_internal_errors(false)
        .with_filter(asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO)));
    tracing_subscriber::registry().with(lines).init();
}

fn intercept(wanted: args::Intercept) -> ExitCode {
    tell_to_stderr();
    let print = wanted.print;
    let rules = intercept::rules(&intercept::Interception::asked(wanted, intercept::has_ipv6()));
    let done = if print {
        io::stdout().write_all(rules.as_bytes()).map_err(anyhow::Error::from)
    } else {
        intercept::enforce(&rules).map_err(anyhow::Error::from)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Only returns if it fails; then with a shell's code for a command that cannot be run.
fn become_program(parent: u32, command: &[OsString]) -> ExitCode {
    let Err(error) = process::guard(parent, command);
    writeln!(io::stderr(), "airlane-sidecar: {error}").ok();
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}
