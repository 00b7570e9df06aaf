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
use tracing_subscriber::EnvFilter;

mod admin;
mod agent;
mod application;
mod args;
mod backoff;
mod envoy;
mod health;
mod http;
mod identity;
mod join;
mod link;
mod membership;
mod outliers;
mod pin;
mod ports;
mod process;
mod rundir;
mod sds;
mod sockets;
mod stopping;
#[cfg(test)]
#[path = "../tests/support/authority.rs"]
mod testing;

fn main() -> ExitCode {
    match args::Args::parse().command {
        args::Command::Run(run) => run_agent(*run),
        args::Command::Guard { parent, command } => become_program(parent, &command),
    }
}

fn run_agent(run: args::Run) -> ExitCode {
    let filter = EnvFilter::try_from_env("AIRLANE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(agent::run(run)));
    match ended {
        Ok(code) => ExitCode::from(code),
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
