//! The command line.

use crate::{http, intercept::Network};
use airlane_wire::pod;
use clap::{Parser, Subcommand, ValueEnum};
use std::{ffi::OsString, net::IpAddr, path::PathBuf};

/// The variable that holds the join string. It is not handed on to the processes we start.
pub(crate) const JOIN_VARIABLE: &str = "AIRLANE_JOIN";

/// Runs an application in an Airlane mesh: registers it, runs Envoy beside it, keeps its certificate fresh, and
/// takes it out of the mesh without losing a request.
#[derive(Debug, Parser)]
#[command(name = "airlane-sidecar", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Join the mesh and run the application
    Run(Box<Run>),
    /// Be the sidecar of a pod, as the injector sets it up
    Pod(Box<Pod>),
    /// Redirect a pod's TCP connections through Envoy: the init container
    Intercept(Intercept),
    /// Become another program that ends with its parent
    #[command(name = crate::process::GUARD, hide = true)]
    Guard {
        /// The parent's process id
        #[arg(long)]
        parent: u32,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// What to run, and as whom.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// The service this application is an instance of
    #[arg(long, value_parser = label)]
    pub(crate) service: String,
    /// The application's version: canaries tell versions apart
    #[arg(long = "version", value_parser = version)]
    pub(crate) revision: String,
    /// A port the application listens on, on 127.0.0.1, and the service's port it stands behind; give it once for
    /// each port [default SERVICE: 80 for the first port of HTTP and gRPC, else the same number]
    #[arg(long = "port", required = true, value_name = "[SERVICE:]PORT", value_parser = app_port)]
    pub(crate) ports: Vec<AppPort>,
    /// The namespace to join
    #[arg(long, default_value = "default", value_parser = label)]
    pub(crate) namespace: String,
    /// What the application speaks on its ports
    #[arg(long, value_enum, default_value_t = Protocol::Http)]
    pub(crate) protocol: Protocol,
    /// The address of this host that other proxies call
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) address: IpAddr,
    /// The port for the application's own calls [default: 15001, or another if that is taken]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) outbound_port: Option<u16>,
    /// A path that answers 2xx or 3xx when the application is well [default: the port takes connections]
    #[arg(long, value_name = "PATH", value_parser = path)]
    pub(crate) health: Option<String>,
    /// Envoy's worker threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) concurrency: u32,
    /// A join string, or a file that holds one [default: what `airlane up` left for its user]
    #[arg(long, env = JOIN_VARIABLE, hide_env_values = true, value_name = "STRING|FILE")]
    pub(crate) join: Option<OsString>,
    /// The application; without one the agent serves an application that is started elsewhere
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// A pod, as the injector describes it.
#[derive(Debug, clap::Args)]
pub(crate) struct Pod {
    /// The operator's address
    #[arg(long, env = pod::OPERATOR_VARIABLE, value_name = "HOST:PORT")]
    pub(crate) operator: String,
    /// SHA-256 of the roots, one of which stands behind the operator
    #[arg(long, env = pod::ROOTS_VARIABLE, required = true, value_name = "HEX,…", value_delimiter = ',', value_parser = fingerprint)]
    pub(crate) roots: Vec<[u8; 32]>,
    /// The trust domain
    #[arg(long, env = pod::TRUST_DOMAIN_VARIABLE)]
    pub(crate) trust_domain: String,
    /// The pod's address
    #[arg(long, env = pod::ADDRESS_VARIABLE)]
    pub(crate) ip: IpAddr,
    // Read by the agent itself: what clap refuses it repeats, and this holds a secret.
    /// What the kubelet's probes and hooks were: JSON
    #[arg(long, env = pod::ASKS_VARIABLE, hide_env_values = true, value_name = "JSON")]
    pub(crate) asks: String,
    /// The projected token
    #[arg(long, default_value = pod::TOKEN_FILE)]
    pub(crate) token: PathBuf,
    /// A folder in memory, of this container alone
    #[arg(long, default_value = pod::RUN_DIR)]
    pub(crate) run_dir: PathBuf,
    /// Where the kubelet is answered
    #[arg(long, default_value_t = pod::AGENT_PORT)]
    pub(crate) agent_port: u16,
    /// Envoy's worker threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) concurrency: u32,
}

/// What of a pod's connections is redirected.
#[derive(Debug, clap::Args)]
pub(crate) struct Intercept {
    /// Ports of the pod that callers reach past Envoy
    #[arg(long, value_name = "PORT,…", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) exclude_inbound_ports: Vec<u16>,
    /// Ports that the application calls past Envoy
    #[arg(long, value_name = "PORT,…", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) exclude_outbound_ports: Vec<u16>,
    /// Addresses that the application calls past Envoy
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    pub(crate) exclude_outbound_cidrs: Vec<Network>,
    /// Leave the connections that come in as they are
    #[arg(long)]
    pub(crate) outbound_only: bool,
    /// Leave IPv6 alone, as is done by itself where the kernel has none
    #[arg(long)]
    pub(crate) ipv4_only: bool,
    /// Print the rules and leave the kernel alone
    #[arg(long)]
    pub(crate) print: bool,
}

/// A port of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AppPort {
    /// The service's port, where it was said.
    pub(crate) service: Option<u16>,
    /// Where the application listens.
    pub(crate) app: u16,
}

fn app_port(text: &str) -> Result<AppPort, String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port: write 8080, or 80:8080 for the service's port 80")),
    };
    match text.split_once(':') {
        Some((service, app)) => Ok(AppPort { service: Some(port(service)?), app: port(app)? }),
        None => Ok(AppPort { service: None, app: port(text)? }),
    }
}

impl Run {
    /// The application's ports with the service's ports they stand behind.
    pub(crate) fn service_ports(&self) -> impl Iterator<Item = (u16, AppPort)> {
        self.ports.iter().enumerate().map(|(index, port)| {
            // Where every copy on one host listens on a port of its own, callers need one that is the same.
            let usual = if index == 0 && self.protocol != Protocol::Tcp { 80 } else { port.app };
            (port.service.unwrap_or(usual), *port)
        })
    }
}

/// What an application speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// HTTP/1.1
    Http,
    /// HTTP/2 without TLS
    Http2,
    /// gRPC
    Grpc,
    /// Anything else
    Tcp,
}

impl Protocol {
    /// Its name in [`airlane_wire::message::Port`].
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }

    /// How to ask for its health path.
    pub(crate) fn http_version(self) -> http::Version {
        match self {
            Self::Http | Self::Tcp => http::Version::Http1,
            Self::Http2 | Self::Grpc => http::Version::Http2,
        }
    }
}

/// A DNS label (RFC 1123), as every name in the mesh.
fn label(text: &str) -> Result<String, String> {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let ends_well = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
    if bytes.len() <= 63 && bytes.iter().all(inner) && ends_well(bytes.first()) && ends_well(bytes.last()) {
        Ok(text.into())
    } else {
        Err("use at most 63 lower-case letters, digits and '-', starting and ending with a letter or digit"
            .into())
    }
}

/// A version is part of the names of clusters, in which dots are between names.
fn version(text: &str) -> Result<String, String> {
    let dotless = text.replace('.', "-");
    match label(text) {
        Err(_) if dotless != text && label(&dotless).is_ok() => {
            Err(format!("a version is part of names that have no dots: write {dotless}"))
        }
        checked => checked,
    }
}

fn fingerprint(text: &str) -> Result<[u8; 32], String> {
    let mend = || "a fingerprint is 64 hexadecimal digits".to_owned();
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(mend());
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| mend())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| mend())?;
    }
    Ok(bytes)
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        Ok(text.into())
    } else {
        Err("use a path that starts with '/', for instance /health".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected_error: Option<&str>) {
        let base = ["airlane-sidecar", "run", "--service", "pay", "--version", "v2"];
        let parsed = Args::try_parse_from(base.into_iter().chain(line.split_ascii_whitespace()));
        match (parsed, expected_error) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{line}: {error}"),
            (parsed, _) => panic!("{line}: {parsed:?}"),
        }
    }

    #[test]
    fn refuses_with_the_mend() {
        check("--port 8080 -- ./pay --port 1", None);
        check("--port 8080 --port 9090 --protocol grpc --address ::1", None);
        check("", Some("--port"));
        check("--port 0", Some("--port"));
        check("--port 8080 --namespace Shop", Some("lower-case"));
        check("--port 8080 --health health", Some("starts with '/'"));
        check("--port 8080 --protocol udp", Some("[possible values: http, http2, grpc, tcp]"));
        check("--port 8080 --address nowhere", Some("--address"));
    }

    #[test]
    fn a_version_with_dots_is_told_how_to_be_written() {
        let error =
            Args::try_parse_from(["airlane-sidecar", "run", "--service", "pay", "--version", "v1.2.0"]);
        assert!(error.is_err_and(|error| error.to_string().contains("write v1-2-0")));
    }
}
