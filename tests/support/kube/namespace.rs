//! A test's own part of the cluster.

use super::{Cluster, PODS_SOON, finish, json};
use crate::until::until;
use serde_json::Value;
use std::{fmt, process::Stdio};

/// A namespace of a test's own. Dropping it deletes it, without waiting for that; when the test failed, what was in it is
/// shown before.
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Namespace<'a> {
    pub(super) fn created(cluster: &'a Cluster, name: String) -> Self {
        Namespace { cluster, name }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it is in.
    pub fn cluster(&self) -> &Cluster {
        self.cluster
    }

    /// [`Cluster::kubectl`] in this namespace.
    ///
    /// # Errors
    /// What it says when it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.kubectl(&[&["--namespace", &self.name], arguments].concat()).await
    }

    /// [`Cluster::apply`] in this namespace.
    ///
    /// # Errors
    /// What it says when it fails.
    pub async fn apply(&self, yaml: &str) -> Result<String, String> {
        let mut kubectl = self.cluster.command("kubectl");
        kubectl.args(["--namespace", &self.name, "apply", "--validate=strict", "--filename", "-"]);
        finish(kubectl, yaml).await
    }

    /// An object as JSON, such as `deployment/cart`, or the list of a kind, such as `pods`.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn get(&self, object: &str) -> Result<Value, String> {
        json(&self.kubectl(&["get", object, "--output", "json"]).await?)
    }

    /// The pods with these labels, such as `app=cart`, that are not on their way out.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn pods(&self, labels: &str) -> Result<Vec<Value>, String> {
        let list = json(&self.kubectl(&["get", "pods", "--selector", labels, "--output", "json"]).await?)?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        Ok(pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect())
    }

    /// Waits until a workload, such as `deployment/cart`, has rolled out.
    ///
    /// # Panics
    /// When that does not happen.
    pub async fn rolled_out(&self, workload: &str) {
        let arguments = ["rollout", "status", workload, "--timeout=10s"];
        until(&format!("{workload} has rolled out"), PODS_SOON, async || self.kubectl(&arguments).await)
            .await;
    }

    /// Runs a command in a pod, or the first pod of a workload, and gives what it prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub async fn exec(&self, pod: &str, command: &[&str]) -> Result<String, String> {
        self.kubectl(&[&["exec", pod, "--"], command].concat()).await
    }

    /// What a container has written.
    ///
    /// # Errors
    /// When there is no such container, or it has not started.
    pub async fn logs(&self, pod: &str, container: &str) -> Result<String, String> {
        self.kubectl(&["logs", pod, "--container", container]).await
    }

    /// What a failed test wants to see; best effort.
    fn show(&self) {
        self.view(&["get", "pods", "--output", "wide"]);
        self.view(&["get", "events", "--sort-by", ".lastTimestamp"]);
        let pods = self.view(&["get", "pods", "--output", "name"]);
        for pod in pods.lines() {
            self.view(&["logs", pod, "--all-containers", "--prefix", "--tail", "25", "--ignore-errors"]);
        }
    }

    fn view(&self, arguments: &[&str]) -> String {
        let mut kubectl = self.cluster.command("kubectl");
        let output = kubectl.args(["--namespace", &self.name]).args(arguments).output();
        let output = output.map(|output| output.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&output).into_owned();
        eprintln!("--- {}: kubectl {}\n{text}", self.name, arguments.join(" "));
        text
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show();
        }
        // If it stays, it goes with the cluster.
        let _ = self
            .cluster
            .command("kubectl")
            .args(["delete", "namespace", &self.name, "--wait=false"])
            .stdout(Stdio::null())
            .status();
    }
}

impl fmt::Display for Namespace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
