//! The Airlane operator and its command line.

mod app;
mod apply;
mod args;
mod bundle;
mod ca;
mod cli;
mod clock;
mod control;
mod demo;
mod enrol;
mod fleet;
mod guest;
mod health;
mod join;
mod lease;
mod local;
mod marks;
mod members;
mod milestone;
mod observe;
mod pods;
mod private_file;
mod readiness;
mod registration;
mod registry;
mod replicas;
mod rollouts;
#[cfg(test)]
mod scripted_api;
mod serve;
mod signals;
mod sparing;
mod standing;
mod store;
mod tls;
mod turns;
mod webhook;
mod xds;

use anyhow::Context;
use args::{Airlane, Command};
use clap::{CommandFactory, FromArgMatches, error::ErrorKind, parser::ValueSource};
use std::{io::IsTerminal, path::PathBuf, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// How many tasks a thread may run before it looks for what came over the network meanwhile: enough that a change is on
/// its way to a thousand proxies before the answers of the first are read. tokio's default is 61.
const TASKS_BETWEEN_EVENTS: u32 = 1024;

fn main() -> ExitCode {
    let matches = Airlane::command().get_matches();
    if let Some(("demo", demo)) = matches.subcommand()
        && demo.value_source("state") == Some(ValueSource::CommandLine)
    {
        let why = "the demo makes a mesh of its own, with a state directory of its own: leave --state out";
        Airlane::command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    let arguments = Airlane::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // The first provider installed stays; nothing else in this process installs one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .event_interval(TASKS_BETWEEN_EVENTS)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("cannot start")),
    };
    match runtime.block_on(run(arguments)).and_then(|()| cli::heard()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    cli::tell(&format!("airlane: {error:#}"));
    // As the argument parser says it.
    if error.is::<cli::Misspelt>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

async fn run(arguments: Airlane) -> anyhow::Result<()> {
    let state = match arguments.state {
        Some(state) => state,
        None => default_state()?,
    };
    let place = &arguments.place;
    match arguments.command {
        Command::Up(up) => {
            tell_on_stderr();
            app::up(&up, &state).await
        }
        Command::Operator(operator) => {
            tell_on_stderr();
            app::operator(&operator, &state).await
        }
        Command::Demo(demo) => demo::story::run(&demo).await,
        Command::ExampleApp(app) => Ok(demo::app::run(app).await?),
        Command::Crds { write } => cli::crds(write.as_deref()),
        Command::Inject(inject) => cli::inject(place, &inject).await,
        Command::Check { pre: true, .. } => cli::check_before(place).await,
        Command::Check { files, .. } if files.is_empty() => cli::check_mesh(place, &state).await,
        Command::Check { files, .. } => cli::check_files(&files),
        Command::Install { write: Some(directory), .. } => cli::write_chart(&directory),
        Command::Install { write: None, helm } => cli::install(place, &helm).await,
        Command::Join(join) => cli::join(place, &join).await,
        Command::Eject(eject) => cli::eject(place, &eject).await,
        Command::Uninstall { eject: true, how, .. } => cli::eject_all(place, how).await,
        Command::Uninstall { .. } => cli::check_uninstall(place).await,
        Command::Get { what, name, output } => {
            cli::get(place, &state, what, name.as_deref(), output.output).await
        }
        Command::Describe { what, name, output } => {
            cli::describe(place, &state, what, &name, output.output).await
        }
        Command::Wait { what, condition, timeout } => {
            cli::wait(place, &state, &what, condition.as_deref(), timeout).await
        }
        Command::Canary { verb } => cli::canary_verb(place, &state, &verb).await,
        Command::Proxy { verb } => cli::proxy_verb(place, &state, &verb).await,
        Command::Certs { verb } => cli::certs_verb(place, &state, &verb).await,
        Command::Token { verb } => cli::token_verb(place, &state, &verb).await,
        Command::Socket => cli::carry(&state),
    }
}

/// `$XDG_STATE_HOME/airlane`, else `~/.local/state/airlane` (XDG Base Directory Specification).
fn default_state() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("airlane"))
        .context("there is no home directory: name the state directory with --state")
}

/// Whether what is written there may have colours: at a terminal that has them, unless `NO_COLOR` is set
/// (<https://no-color.org>).
fn coloured(to: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).unwrap_or_default();
    to.is_terminal() && set("NO_COLOR").is_empty() && set("TERM") != "dumb"
}

/// Log lines on standard error; `AIRLANE_LOG` filters them.
fn tell_on_stderr() {
    // notify tells at info of each watch that went with its directory.
    let usual = || EnvFilter::new("info,notify=warn");
    let filter = match std::env::var("AIRLANE_LOG") {
        Err(_) => usual(),
        Ok(asked) => EnvFilter::try_new(&asked).unwrap_or_else(|error| {
            cli::tell(&format!(
                "airlane: AIRLANE_LOG={asked:?} is not heeded: {error}; write info, or airlane=debug"
            ));
            usual()
        }),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(coloured(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .with_target(false)
        // It would be said on the standard error that nothing can be said there.
        .log_internal_errors(false)
        .init();
}
