//! An example service with its sidecar, Envoy included.

use crate::{
    binary,
    client::{self, Answer},
    mesh::Mesh,
    port,
    process::{Process, descendants, end_descendants},
    until::{SOON, until},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// What is to run.
#[derive(Clone, Debug)]
pub struct App {
    service: String,
    version: String,
    namespace: String,
    token: Option<String>,
    program: Program,
}

/// What stands behind the sidecar.
#[derive(Clone, Debug)]
enum Program {
    /// The example service, started by the sidecar, with these arguments.
    Example(Vec<String>),
    /// Something that runs already: what it speaks and where, as `--port` takes it.
    Running { protocol: &'static str, ports: Vec<String> },
}

impl App {
    /// A service at version `v1` in the default namespace that answers at once and calls nobody.
    pub fn new(service: &str) -> Self {
        App {
            service: service.to_owned(),
            version: "v1".to_owned(),
            namespace: "default".to_owned(),
            token: None,
            program: Program::Example(Vec::new()),
        }
    }

    /// A service whose application runs already, as [`crate::server`]s do, and speaks `protocol` on these ports, each
    /// `PORT` or `SERVICE:PORT`.
    pub fn running(service: &str, protocol: &'static str, ports: &[&str]) -> Self {
        let ports = ports.iter().map(|port| (*port).to_owned()).collect();
        App { program: Program::Running { protocol, ports }, ..App::new(service) }
    }

    /// It joins with this join string instead of the one that may claim any service.
    #[must_use]
    pub fn token(mut self, join: &str) -> Self {
        self.token = Some(join.trim().to_owned());
        self
    }

    /// Its version.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// It calls `url` for every request it gets.
    #[must_use]
    pub fn calls(self, url: &str) -> Self {
        self.with(&["--call", url])
    }

    /// It fails this share of its requests (`5%`), which ones is decided by `seed`.
    #[must_use]
    pub fn fails(self, share: &str, seed: u64) -> Self {
        self.with(&["--fail", share, "--seed", &seed.to_string()])
    }

    /// It takes this long to answer.
    #[must_use]
    pub fn delay_ms(self, ms: u64) -> Self {
        self.with(&["--delay", &format!("{ms}ms")])
    }

    fn with(mut self, arguments: &[&str]) -> Self {
        let Program::Example(behaviour) = &mut self.program else {
            panic!("only the example service is told")
        };
        behaviour.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }
}

/// A running workload. Dropping it kills the sidecar and everything it started.
pub struct Workload {
    sidecar: Process,
    app: App,
    app_port: u16,
    runtime_dir: PathBuf,
    outbound: u16,
    instance: String,
}

/// The sidecar makes its run folder, for its sockets and Envoy's files, in the folder this variable names.
const RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";

impl Workload {
    pub(crate) fn launch(app: App, number: usize, home: &Path, join: &Path) -> Self {
        let name = format!("{}-{}-{number}", app.service, app.version);
        let runtime_dir = home.join("run").join(number.to_string());
        fs::create_dir(&runtime_dir).unwrap();
        let mut command = Command::new(binary::sidecar());
        command.env(RUNTIME_DIR, &runtime_dir).args(["run", "--service", &app.service]);
        command.args(["--version", &app.version, "--namespace", &app.namespace, "--join"]);
        match &app.token {
            Some(token) => command.arg(token),
            None => command.arg(join),
        };
        let (mut app_port, mut outbound) = (0, 0);
        match &app.program {
            Program::Example(behaviour) => {
                app_port = port::free();
                let port = app_port.to_string();
                command.args(["--port", &port, "--health", "/healthz", "--"]).arg(binary::airlane());
                command.args(["example-app", "--port", &port, "--name", &app.service]);
                command.args(["--version", &app.version]).args(behaviour);
            }
            Program::Running { protocol, ports } => {
                // Nobody is handed the proxy's port here, so it is said.
                outbound = port::free();
                command.args(["--protocol", protocol, "--outbound-port", &outbound.to_string()]);
                ports.iter().for_each(|port| _ = command.args(["--port", port]));
            }
        }
        let sidecar = Process::start(&name, command, &home.join("logs"));
        Workload { sidecar, app, app_port, runtime_dir, outbound, instance: String::new() }
    }

    /// Waits until the mesh says it may be called.
    ///
    /// # Panics
    /// When that does not happen.
    pub async fn healthy(&mut self, mesh: &Mesh) {
        let what = format!("{} {} is healthy", self.app.service, self.app.version);
        until(&what, SOON, async || {
            if let Some(status) = self.sidecar.ended() {
                panic!("the sidecar ended with {status}:\n{}", self.sidecar.log());
            }
            if self.outbound == 0 {
                self.outbound = self.outbound_of_app().await?;
            }
            if self.instance.is_empty() {
                self.instance = self.instance_of_envoy().await?;
            }
            let rows = mesh.get("endpoints").await?;
            let row =
                rows.iter().find(|row| row["instance"] == self.instance.as_str()).ok_or("not an endpoint")?;
            if row["health"] == "Healthy" { Ok(()) } else { Err(row.to_string()) }
        })
        .await;
    }

    /// The proxy the application was handed.
    async fn outbound_of_app(&self) -> Result<u16, String> {
        let behaviour = self.behaviour().await?;
        let proxy = behaviour["proxy"].as_str().ok_or("the application was handed no proxy")?;
        proxy
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .ok_or_else(|| format!("no port in {proxy}"))
    }

    async fn instance_of_envoy(&self) -> Result<String, String> {
        let info = self.admin("/server_info").await?.json();
        info["node"]["id"].as_str().map(str::to_owned).ok_or_else(|| info.to_string())
    }

    /// The port of the forward proxy for this workload's calls.
    pub fn outbound(&self) -> u16 {
        self.outbound
    }

    /// Its name in the mesh.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Where other proxies call it, before each port of its application.
    ///
    /// # Errors
    /// When the mesh does not know it.
    pub async fn doors(&self, mesh: &Mesh) -> Result<Vec<String>, String> {
        let rows = mesh.get("endpoints").await?;
        let row =
            rows.iter().find(|row| row["instance"] == self.instance.as_str()).ok_or("not an endpoint")?;
        let addresses = row["addresses"].as_array().ok_or("no addresses")?;
        Ok(addresses.iter().filter_map(|address| address.as_str().map(str::to_owned)).collect())
    }

    /// What runs of it: the sidecar's descendants, with their command lines.
    pub fn processes(&self) -> Vec<(i32, String)> {
        descendants(RUNTIME_DIR, &self.runtime_dir.display().to_string())
    }

    /// The port the example service listens on; 0 for an application that runs elsewhere.
    pub fn app_port(&self) -> u16 {
        self.app_port
    }

    /// Where the sidecar makes its run folder.
    pub fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// The sidecar's process, to send it signals.
    pub fn sidecar(&mut self) -> &mut Process {
        &mut self.sidecar
    }

    /// GET from Envoy's admin interface.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn admin(&self, path: &str) -> Result<Answer, String> {
        let runs = fs::read_dir(&self.runtime_dir).map_err(|error| error.to_string())?;
        let run = runs.flatten().next().ok_or("the sidecar has no run folder")?;
        client::get_unix(&run.path().join("admin.sock"), path).await
    }

    /// What Envoy runs and since when: every resource of its configuration dump with the time of its last update.
    ///
    /// # Errors
    /// When Envoy does not answer.
    pub async fn config(&self) -> Result<BTreeSet<String>, String> {
        let dump = self.admin("/config_dump?include_eds").await?.json();
        let mut found = BTreeSet::new();
        updates(&dump, &mut found);
        if found.is_empty() { Err("an empty configuration dump".to_owned()) } else { Ok(found) }
    }

    /// The process id of Envoy.
    ///
    /// # Panics
    /// When there is none.
    pub fn envoy_pid(&self) -> i32 {
        let all = self.processes();
        let envoy =
            all.iter().find(|(_, command)| command.contains("envoy") && command.contains("bootstrap"));
        envoy.unwrap_or_else(|| panic!("no Envoy among {all:?}")).0
    }

    /// How the application behaves, and what it has counted.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn behaviour(&self) -> Result<Value, String> {
        let url = format!("http://127.0.0.1:{}/behaviour", self.app_port);
        Ok(client::send("GET", &url, "").await?.json())
    }

    /// Makes the application behave otherwise: `{"fail": 0.05}`, `{"sick": true}`, `{"healthy": false}`.
    ///
    /// # Panics
    /// When it does not take that.
    pub async fn behave(&self, change: &Value) {
        let url = format!("http://127.0.0.1:{}/behaviour", self.app_port);
        let answer = client::send("POST", &url, &change.to_string()).await.unwrap();
        assert_eq!(answer.status, 200, "{answer}");
    }

    /// SIGTERM, as by a service manager: drains, and ends with everything it started.
    ///
    /// # Panics
    /// When it does not end, ends with an error, or leaves processes behind.
    pub async fn stop(&mut self) {
        const LONGEST_DRAIN: Duration = Duration::from_secs(60);
        let status = self.sidecar.stop(LONGEST_DRAIN).await;
        assert!(status.success(), "the sidecar ended with {status}:\n{}", self.sidecar.log());
        let left = self.processes();
        assert!(left.is_empty(), "the sidecar left processes behind: {left:?}");
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.sidecar.kill();
        end_descendants(RUNTIME_DIR, &self.runtime_dir.display().to_string());
    }
}

/// Every object with a `last_updated`, as text without its body.
fn updates(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| updates(value, found)),
        Value::Object(fields) => {
            if let Some(at) = fields.get("last_updated") {
                let name =
                    fields.values().find_map(|body| body.get("name").or_else(|| body.get("cluster_name")));
                found.insert(format!(
                    "{} {} {at}",
                    name.unwrap_or(&Value::Null),
                    fields.get("version_info").unwrap_or(&Value::Null)
                ));
            }
            fields.values().for_each(|value| updates(value, found));
        }
        _ => {}
    }
}
