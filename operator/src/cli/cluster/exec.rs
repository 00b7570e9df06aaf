//! The way to an operator's socket in its pod: `kubectl exec airlane socket`, whose standard input and output are the
//! socket's two ends.
//!
//! Who may do that is the operator already, as far as its account goes: nobody sees by this what they could not see
//! anyway, and no port is opened for it.

use std::{io, process::Stdio};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    process::{Child, Command},
};

/// The container of the operator in its pod.
const CONTAINER: &str = "airlane";

/// A way into a pod, as whoever the kubeconfig says.
#[derive(Debug, Clone)]
pub(crate) struct Exec {
    /// The kubeconfig's context; the current one if not said.
    pub(crate) context: Option<String>,
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// The pod.
    pub(crate) pod: String,
}

impl Exec {
    /// Starts whoever carries the bytes; it ends with the value that stands for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn start(&self) -> io::Result<(impl AsyncRead + AsyncWrite + Send + Unpin + 'static, Child)> {
        let mut kubectl = Command::new("kubectl")
            .args(self.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (stdout, stdin) =
            (kubectl.stdout.take().ok_or_else(gone)?, kubectl.stdin.take().ok_or_else(gone)?);
        Ok((tokio::io::join(stdout, stdin), kubectl))
    }

    fn arguments(&self) -> Vec<String> {
        // Joined by `=`, so that no name is taken for an option.
        let mut arguments: Vec<String> =
            self.context.iter().map(|context| format!("--context={context}")).collect();
        arguments.push(format!("--namespace={}", self.namespace));
        arguments.push(format!("--container={CONTAINER}"));
        arguments.extend(["exec", "--stdin", &self.pod, "--", "airlane", "socket"].map(str::to_owned));
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubectl_is_told() {
        let exec =
            Exec { context: Some("--insecure".into()), namespace: "airlane-system".into(), pod: "a".into() };
        assert_eq!(
            exec.arguments().join(" "),
            "--context=--insecure --namespace=airlane-system --container=airlane exec --stdin a -- airlane socket"
        );
    }
}
