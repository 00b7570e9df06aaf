//! The command line, as its users type it.

use crate::lease::Terms;
use airlane_core::id::{ClusterDomain, Name, Namespace, TrustDomain};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Airlane: a service mesh that proves its releases.
#[derive(Parser, Debug)]
#[command(name = "airlane", version, about, max_term_width = 100)]
pub(crate) struct Airlane {
    /// The state directory of the mesh on this host: keys, registrations, the socket commands talk to.
    #[arg(long, global = true, env = "AIRLANE_STATE", value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) place: Where,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which mesh a command is about, when it is not that of this host.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Kubernetes")]
pub(crate) struct Where {
    /// Ask the cluster of the kubeconfig, though a mesh runs on this host.
    #[arg(long, global = true)]
    pub(crate) kube: bool,
    /// Ask the cluster of this context.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The namespace that Airlane is installed in.
    #[arg(
        long,
        global = true,
        env = "AIRLANE_NAMESPACE",
        default_value = "airlane-system",
        value_name = "NAMESPACE"
    )]
    pub(crate) operator_namespace: Namespace,
}

impl Where {
    /// Whether a cluster is meant and nothing else.
    pub(crate) fn is_cluster(&self) -> bool {
        self.kube || self.context.is_some()
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the control plane on this host, reading policies from a directory.
    Up(Up),
    /// Run the control plane of a Kubernetes cluster: in it, or from outside by KUBECONFIG.
    Operator(Box<Operator>),
    /// Start a mesh of example services, release a bad version and a good one, and tell what happens.
    Demo(Demo),
    /// Print the resource definitions, or write them into a directory.
    Crds {
        /// Write one file each into this directory instead of printing.
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
    /// Print manifests with the mesh in their pods, as the webhook would put it there.
    Inject(Inject),
    /// How is the running mesh, or: are these files right?
    Check {
        /// Can Airlane be installed in this cluster?
        #[arg(long, conflicts_with = "files")]
        pre: bool,
        /// Files or directories with resources to check, without a running mesh.
        files: Vec<PathBuf>,
    },
    /// Install Airlane in a cluster, or bring it up to this version: with Helm, by the chart within this program.
    Install {
        /// Write the chart into this directory, and do nothing else.
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
        /// What to tell Helm: `-- --set replicas=1`.
        #[arg(last = true, value_name = "HELM-OPTION")]
        helm: Vec<String>,
    },
    /// Bring running pods of a cluster into the mesh: what the operator leaves to you, and why.
    Join(Enrol),
    /// Take pods of a cluster out of the mesh.
    Eject(Enrol),
    /// May Airlane be taken out of the cluster? `helm uninstall` asks this.
    Uninstall {
        /// Say whether pods still have sidecars, and change nothing.
        #[arg(long, required_unless_present = "eject", conflicts_with = "eject")]
        check: bool,
        /// Take all pods out of the mesh first, namespace by namespace.
        #[arg(long)]
        eject: bool,
        #[command(flatten)]
        how: How,
    },
    /// List what the mesh knows.
    Get {
        /// What to list.
        what: Listing,
        /// Only this one: NAME or NAMESPACE/NAME.
        name: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Everything about one thing: its values, where they come from, its problems.
    Describe {
        /// What it is.
        what: Describable,
        /// NAME or NAMESPACE/NAME.
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Wait until something is true.
    Wait {
        /// `mesh`, or `canary/NAME`, `policy/NAME`, `service/NAME` (NAMESPACE may come before NAME: `canary/shop/pay`).
        what: String,
        /// `Ready` (mesh, service), `Programmed` (policy), a phase such as `Succeeded` or `RolledBack` (canary).
        #[arg(long = "for", value_name = "CONDITION")]
        condition: Option<String>,
        /// Give up after this long.
        #[arg(long, default_value = "60s", value_parser = duration)]
        timeout: Duration,
    },
    /// Look at a rollout, or tell it what to do.
    Canary {
        #[command(subcommand)]
        verb: CanaryVerb,
    },
    /// Look into a proxy.
    Proxy {
        #[command(subcommand)]
        verb: ProxyVerb,
    },
    /// Certificates of the mesh.
    Certs {
        #[command(subcommand)]
        verb: CertsVerb,
    },
    /// Join tokens.
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
    /// Carry bytes between the standard streams and the operator's socket on this host.
    #[command(hide = true)]
    Socket,
    /// The example service of the demo.
    #[command(hide = true)]
    ExampleApp(crate::demo::app::AppArgs),
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Up {
    /// The directory with MeshPolicy, Canary and Service files; it is watched.
    pub(crate) dir: PathBuf,
    /// Where sidecars join, get their configuration and report; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:15010", value_parser = reachable, value_name = "ADDR:PORT")]
    pub(crate) listen: SocketAddr,
    /// How long a workload's certificate lives, at most 24h.
    #[arg(long, default_value = "24h", value_parser = leaf_ttl, value_name = "DURATION")]
    pub(crate) leaf_ttl: Duration,
    /// How long proxies keep a rollout's uncertified share when the control plane falls silent.
    #[arg(long, default_value = "10m", value_parser = duration, value_name = "DURATION")]
    pub(crate) fail_safe_after: Duration,
    /// How often sidecars report; one that is silent for five times as long is taken out.
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "DURATION")]
    pub(crate) heartbeat: Duration,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Operator {
    /// The operator's own namespace, whose policies without target are about the whole mesh.
    #[arg(long, env = "POD_NAMESPACE", default_value = "airlane-system", value_name = "NAMESPACE")]
    pub(crate) namespace: Namespace,
    /// What this replica is called.
    #[arg(long, env = "POD_NAME", default_value = "airlane", value_name = "NAME")]
    pub(crate) pod_name: String,
    /// Where other replicas reach this one, at the port of --listen [default: the address of --listen]
    #[arg(long, env = "POD_IP", value_name = "ADDR")]
    pub(crate) pod_ip: Option<IpAddr>,
    /// How long a replica leads without renewing that, at least 3s: when it is gone, another one leads after that.
    #[arg(long, default_value = "15s", value_parser = lease_duration, value_name = "DURATION")]
    pub(crate) lease_duration: Duration,
    /// Whose identities are trusted: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT.
    #[arg(long, default_value = "airlane.local", value_parser = TrustDomain::parse, value_name = "DOMAIN")]
    pub(crate) trust_domain: TrustDomain,
    /// What the names of the cluster's services end with.
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    pub(crate) cluster_domain: ClusterDomain,
    /// Where sidecars join, get their configuration and report.
    #[arg(long, default_value = "[::]:15010", value_name = "ADDR:PORT")]
    pub(crate) listen: SocketAddr,
    /// Where the API server asks, by TLS: injection and validation.
    #[arg(long, default_value = "[::]:9443", value_name = "ADDR:PORT")]
    pub(crate) webhook: SocketAddr,
    /// The image of the containers that pods get: agent, proxy, redirection.
    #[arg(long, env = "AIRLANE_PROXY_IMAGE", default_value = PROXY_IMAGE, value_name = "IMAGE")]
    pub(crate) proxy_image: String,
    /// When that image is pulled [default: what the cluster does by itself]
    #[arg(long, env = "AIRLANE_PROXY_PULL", value_parser = ["Always", "IfNotPresent", "Never"], value_name = "POLICY")]
    pub(crate) proxy_pull: Option<String>,
    /// Where pods find the operator [default: the service `airlane` in its namespace, port 15010]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
    /// Where the kubelet asks, in plain HTTP: /healthz and /readyz.
    #[arg(long, default_value = "[::]:8080", value_name = "ADDR:PORT")]
    pub(crate) health: SocketAddr,
    /// How long a workload's certificate lives, at most 24h.
    #[arg(long, default_value = "24h", value_parser = leaf_ttl, value_name = "DURATION")]
    pub(crate) leaf_ttl: Duration,
    /// How long proxies keep a rollout's uncertified share when no operator judges it.
    #[arg(long, default_value = "10m", value_parser = duration, value_name = "DURATION")]
    pub(crate) fail_safe_after: Duration,
    /// Restart workloads of namespaces that join the mesh or leave it, where nobody notices
    #[arg(long)]
    pub(crate) restarts: bool,
    /// A restarted workload that makes no progress for so long is put back [default: its own progressDeadlineSeconds]
    #[arg(long, value_parser = duration, value_name = "DURATION", requires = "restarts")]
    pub(crate) restart_deadline: Option<Duration>,
    /// How long a namespace is without its label before its pods leave the mesh.
    #[arg(long, default_value = "10m", value_parser = duration, value_name = "DURATION")]
    pub(crate) eject_after: Duration,
    /// A Secret of the operator's namespace with somebody else's intermediate (tls.crt, tls.key, and the roots in ca.crt)
    /// [default: a root of its own, in the Secret airlane-root]
    #[arg(long, value_name = "SECRET")]
    pub(crate) intermediate_secret: Option<String>,
    /// How long a new root is trusted before it signs, and an old one after it: at least as long as a workload's
    /// certificate lives [default: 15m longer]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub(crate) root_overlap: Option<Duration>,
}

/// What joins or leaves the mesh.
#[derive(Args, Debug, Clone)]
pub(crate) struct Enrol {
    /// NAMESPACE, or NAMESPACE/KIND/NAME (`shop/statefulset/db`).
    pub(crate) what: String,
    #[command(flatten)]
    pub(crate) how: How,
}

/// How commands go about it that restart workloads.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct How {
    /// Do it without asking.
    #[arg(short, long, conflicts_with = "dry_run")]
    pub(crate) yes: bool,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// A workload that makes no progress for so long is put back [default: its own progressDeadlineSeconds]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub(crate) deadline: Option<Duration>,
}

/// The image of this version.
const PROXY_IMAGE: &str = concat!("airlane:", env!("CARGO_PKG_VERSION"));

#[derive(Args, Debug, Clone)]
pub(crate) struct Inject {
    /// A file with Kubernetes objects, or `-` for the standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: PathBuf,
    /// The image of the containers that pods get [default: the one that runs in the cluster]
    #[arg(long, value_name = "IMAGE")]
    pub(crate) proxy_image: Option<String>,
    /// SHA-256 of the roots by which pods know their operator, in hex [default: from the cluster]
    #[arg(long, value_name = "HEX", value_delimiter = ',', value_parser = fingerprint)]
    pub(crate) root_sha256: Vec<String>,
    /// Where pods find the operator [default: the service `airlane` in its namespace, port 15010]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: Option<String>,
    /// Whose identities are trusted.
    #[arg(long, default_value = "airlane.local", value_parser = TrustDomain::parse, value_name = "DOMAIN")]
    pub(crate) trust_domain: TrustDomain,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Demo {
    /// Stop after the story; exit 0 only if every act happened as told.
    #[arg(long)]
    pub(crate) once: bool,
    /// Plain lines without colours or a moving cursor.
    #[arg(long)]
    pub(crate) no_tty: bool,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    /// Services with their ports, instances and traffic.
    #[value(alias = "service", alias = "svc")]
    Services,
    /// Every copy of every service, its health and breaker.
    #[value(alias = "endpoint", alias = "ep")]
    Endpoints,
    /// Proxies and the configuration they acknowledged.
    #[value(alias = "proxy")]
    Proxies,
    /// Policies with their problems and who runs them.
    #[value(alias = "policy", alias = "meshpolicies", alias = "meshpolicy")]
    Policies,
    /// Every value in force for a service and the object it came from.
    Effective,
    /// Rollouts.
    #[value(alias = "canary")]
    Canaries,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Describable {
    /// A service.
    Service,
    /// A policy.
    Policy,
    /// A rollout.
    Canary,
    /// A proxy.
    Proxy,
}

#[derive(Subcommand, Debug)]
pub(crate) enum CanaryVerb {
    /// Where the rollout is, why, and what it needs.
    Status {
        /// NAME or NAMESPACE/NAME.
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Stop advancing; the judge goes on.
    Pause {
        /// NAME or NAMESPACE/NAME.
        name: String,
    },
    /// Go on after a pause.
    Resume {
        /// NAME or NAMESPACE/NAME.
        name: String,
    },
    /// Skip the rest and move all traffic to the canary.
    Promote {
        /// NAME or NAMESPACE/NAME.
        name: String,
    },
    /// Take the canary back now.
    Abort {
        /// NAME or NAMESPACE/NAME.
        name: String,
    },
    /// Try a version that was taken back once more.
    Retry {
        /// NAME or NAMESPACE/NAME.
        name: String,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum ProxyVerb {
    /// What the control plane publishes to a proxy: kinds, names, versions, acknowledged or not.
    Config {
        /// The proxy (`airlane get proxies`).
        name: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum CertsVerb {
    /// The authority's certificates and every workload's.
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Ask sidecars for new keys and certificates now.
    Rotate {
        /// Only this instance (`airlane get endpoints`); all of them if not said.
        instance: Option<String>,
    },
    /// Replace the root of a cluster's mesh while calls go on: `airlane certs list` says how far that is.
    RotateRoot,
}

#[derive(Subcommand, Debug)]
pub(crate) enum TokenVerb {
    /// The tokens there are, without their secrets.
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a token worthless. Who has joined with it stays.
    Revoke {
        /// Its name in `airlane token list`.
        id: String,
    },
    /// Make a join token; printed once, kept only as a hash.
    Create {
        /// The service that may join with it.
        #[arg(long)]
        service: Name,
        /// Its namespace.
        #[arg(long, default_value = "default")]
        namespace: Namespace,
        /// How long it is good for; for ever if not said.
        ///
        /// A workload needs it each time it starts.
        #[arg(long, value_parser = duration)]
        ttl: Option<Duration>,
    },
}

#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct OutputArgs {
    /// A table for people, or the whole for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Table,
    Json,
    Yaml,
}

/// `250ms`, `10s`, `5m`, `24h`, as in the resources.
fn duration(text: &str) -> Result<Duration, String> {
    let mend = || format!("{text:?} is not a duration: write 250ms, 10s, 5m or 24h");
    let short = || format!("{text:?} is too short: write 250ms, 10s, 5m or 24h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(mend)?;
    let number: u64 = text[..digits].parse().map_err(|_| mend())?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(mend()),
    };
    match number.checked_mul(unit_ms) {
        Some(0) => Err(short()),
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => Err(mend()),
    }
}

/// An address that others can be told: what join strings name.
fn reachable(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "write ADDR:PORT, as in 127.0.0.1:15010".to_owned())?;
    if address.ip().is_unspecified() {
        return Err("join strings name this address, and nobody can join there: write the one of this host that sidecars \
                    reach"
            .to_owned());
    }
    Ok(address)
}

/// 64 hexadecimal digits, in lower case.
fn fingerprint(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a fingerprint is 64 hexadecimal digits".to_owned())
    }
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        long if long >= Terms::SHORTEST => Ok(long),
        short => Err(format!("{short:?} is too short to be renewed in time: 3s at least")),
    }
}

fn leaf_ttl(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(24 * 3600);
    let ttl = duration(text)?;
    if ttl > LONGEST {
        return Err("a workload's certificate lives at most 24h".to_owned());
    }
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Airlane::command().debug_assert();
    }

    #[test]
    fn nobody_is_told_to_join_everywhere() {
        assert!(reachable("127.0.0.1:0").is_ok() && reachable("[::1]:15010").is_ok());
        assert!(reachable("0.0.0.0:15010").is_err() && reachable("[::]:15010").is_err());
    }

    #[test]
    fn durations_are_written_as_in_the_resources() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        for bad in ["", "5", "5d", "ms", "-1s", "0s", "99999999999999999999h", "1 s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(leaf_ttl("25h").is_err());
        assert!(leaf_ttl("0s").is_err_and(|error| error.contains("too short")));
    }
}
