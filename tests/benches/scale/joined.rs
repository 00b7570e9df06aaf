//! Proxies that join as made-up pods, with the tokens that the kubelet would give them.

use super::{LONGEST, SYSTEM, made_up};
use airlane_tests::{
    binary, client,
    kube::Cluster,
    process::Process,
    sim_proxy::{Arrival, SimProxy},
    stranger::join_as_pod,
    until::until,
};
use airlane_wire::{
    join::{JoinInfo, workload_identity},
    pod,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::digest;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

/// Where the operator listens.
pub(super) const OPERATOR: &str = "127.0.0.1:15010";
const TRUST_DOMAIN: &str = "airlane.local";

/// What pods know of their operator, in a folder.
pub(super) struct Door {
    dir: PathBuf,
    join: JoinInfo,
    fingerprint: String,
}

/// A real Envoy with its agent, as one of the pods.
pub(super) struct Envoy {
    run: PathBuf,
    pub(super) ready_after: Duration,
    _agent: Process,
}

impl Door {
    /// The door of the operator that runs.
    pub(super) async fn of(cluster: &Cluster, dir: &Path) -> Door {
        let root =
            ["get", "secret", "airlane-root", "--namespace", SYSTEM, "--output=jsonpath={.data.root\\.crt}"];
        let root = BASE64_STANDARD.decode(cluster.kubectl(&root).await.unwrap()).unwrap();
        fs::create_dir_all(dir.join("ca")).unwrap();
        fs::write(dir.join("ca/root.pem"), &root).unwrap();
        let der = CertificateDer::from_pem_slice(&root).unwrap();
        let digest = digest::digest(&digest::SHA256, &der);
        let join = JoinInfo {
            address: OPERATOR.to_owned(),
            root_fingerprint: digest.as_ref().try_into().unwrap(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            secret: String::new(),
        };
        let fingerprint = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Door { dir: dir.to_owned(), join, fingerprint }
    }

    /// The token that the kubelet would project into a pod.
    async fn token(&self, cluster: &Cluster, pod: usize) -> String {
        let (namespace, name) = (made_up::namespace_of(pod), made_up::pod_name(pod));
        let create = ["create", "token", made_up::ACCOUNT, "--namespace", &namespace];
        let bound =
            ["--audience", pod::TOKEN_AUDIENCE, "--bound-object-kind=Pod", "--bound-object-name", &name];
        cluster.kubectl(&[&create[..], &bound].concat()).await.unwrap().trim().to_owned()
    }

    /// Starts the agent of a pod, on node 1, and waits until its Envoy has everything.
    pub(super) async fn envoy(&self, cluster: &Cluster, pod: usize) -> Envoy {
        let (token, run, hosts) = (self.dir.join("token"), self.dir.join("run"), self.dir.join("hosts"));
        fs::write(&token, self.token(cluster, pod).await).unwrap();
        fs::create_dir_all(&run).unwrap();
        // Nobody answers for names here, so that this process alone is told the one it needs.
        fs::write(&hosts, format!("127.0.0.1 airlane.{SYSTEM}.svc.cluster.local\n")).unwrap();
        let mut command = cluster.command("unshare");
        command.args(["--mount", "--", "sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#]);
        command.arg(hosts).arg(binary::sidecar()).arg("pod");
        command.arg("--token").arg(token).arg("--run-dir").arg(&run);
        let asks = json!({ "secret": "0123456789abcdef", "asks": {} });
        command
            .env(pod::OPERATOR_VARIABLE, OPERATOR)
            .env(pod::ROOTS_VARIABLE, &self.fingerprint)
            .env(pod::TRUST_DOMAIN_VARIABLE, TRUST_DOMAIN)
            .env(pod::ADDRESS_VARIABLE, made_up::address(pod))
            .env(pod::ASKS_VARIABLE, asks.to_string());
        let started = Instant::now();
        let agent = Process::start("agent", command, &self.dir);
        let ready = format!("http://127.0.0.1:{}{}", pod::AGENT_PORT, pod::READY_PATH);
        let ready_at = cluster.inside(move || async move {
            until("Envoy has everything", LONGEST, async || {
                let answer = client::send("GET", &ready, "").await?;
                if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
            })
            .await;
            Instant::now()
        });
        Envoy { run, ready_after: ready_at.await - started, _agent: agent }
    }

    /// Joins as a pod with a proxy that notes what it is sent, until `end`. Says once it has everything.
    pub(super) async fn simulated(
        &self,
        cluster: &Cluster,
        pod: usize,
        arrivals: mpsc::UnboundedSender<Arrival>,
        has_everything: oneshot::Sender<()>,
        end: oneshot::Receiver<()>,
    ) {
        let token = self.token(cluster, pod).await;
        let identity = workload_identity(TRUST_DOMAIN, &made_up::namespace_of(pod), made_up::ACCOUNT);
        let (join, state) = (self.join.clone(), self.dir.clone());
        cluster
            .inside(move || async move {
                let papers = join_as_pod(&join, &state, &token, &identity).await;
                let _proxy = SimProxy::connect(&join, &state, &papers, arrivals).await.unwrap();
                has_everything.send(()).unwrap();
                end.await.unwrap();
            })
            .await;
    }
}

impl Envoy {
    /// How many endpoints a service's cluster has in it.
    pub(super) async fn endpoints(&self, service: usize) -> usize {
        let cluster = made_up::cluster(service).replace('|', r"%5C%7C");
        let path =
            format!("/config_dump?include_eds&resource=dynamic_endpoint_configs&name_regex=%5E{cluster}$");
        let run = fs::read_dir(&self.run).unwrap().next().unwrap().unwrap().path();
        let dump = client::get_unix(&run.join("admin.sock"), &path).await.unwrap().json();
        let groups =
            dump["configs"][0]["endpoint_config"]["endpoints"].as_array().cloned().unwrap_or_default();
        groups.iter().filter_map(|group| group["lb_endpoints"].as_array()).map(Vec::len).sum()
    }
}
