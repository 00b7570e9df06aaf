//! Who is let in: an operator before a real API server, and strangers with all kinds of tokens.

use airlane_tests::{
    binary,
    kube::{Cluster, Namespace},
    process::Process,
    stranger::{Papers, Refusal, Stranger, csr, join_request},
    until::{SOON, until},
};
use airlane_wire::{
    join::{JoinInfo, workload_identity},
    message::{Certificate, HeartbeatRequest, HeartbeatResponse, JoinRequest, JoinResponse, RenewRequest},
    operator::METHODS,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tonic::Code;

const JOIN: &str = METHODS[0];
const RENEW: &str = METHODS[1];
const HEARTBEAT: &str = METHODS[2];

/// A pod as the kubelet would show it while its proxy starts: nobody schedules it, so that nobody else moves it.
fn pod(name: &str, account: &str, meshed: bool) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}, airlane.dev/meshed: '{meshed}'}}}}
spec:
  schedulerName: nobody
  serviceAccountName: {account}
  containers: [{{name: app, image: none}}]
"
    )
}

/// An operator, and what a stranger knows of it.
struct Operator {
    process: Process,
    join: JoinInfo,
    /// A folder with its root, as [`Stranger`] looks for it.
    state: PathBuf,
}

/// A cluster with the operator's resources, and a namespace `shop` with pods.
struct Setting<'a> {
    cluster: &'a Cluster,
    system: Namespace<'a>,
    shop: Namespace<'a>,
    dir: tempfile::TempDir,
}

impl<'a> Setting<'a> {
    async fn new(cluster: &'a Cluster) -> Self {
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
        cluster.kubectl(&["apply", "--server-side", "-f", &crds.display().to_string()]).await.unwrap();
        let (system, shop) = (cluster.namespace("system").await, cluster.namespace("shop").await);
        for account in ["payer", "orders"] {
            shop.kubectl(&["create", "serviceaccount", account]).await.unwrap();
        }
        Setting { cluster, system, shop, dir: tempfile::tempdir().unwrap() }
    }

    fn start(&self, port: u16) -> Process {
        let name = format!("operator-{port}");
        let mut command = self.cluster.command(binary::airlane());
        command
            .args(["operator", "--namespace", self.system.name()])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--health", &format!("127.0.0.1:{}", port + 100)])
            .args(["--webhook", &format!("127.0.0.1:{}", port + 200)])
            .env("POD_NAME", &name)
            .arg("--state")
            .arg(self.dir.path().join(&name));
        Process::start(&name, command, self.dir.path())
    }

    /// What a stranger needs to know of the operator on this port.
    async fn known(&self, process: Process, port: u16) -> Operator {
        let root = until("there is a root", SOON, async || {
            let secret = self.system.get("secret/airlane-root").await?;
            secret["data"]["root.crt"].as_str().map(str::to_owned).ok_or("no root.crt".to_owned())
        });
        let root = BASE64_STANDARD.decode(root.await).unwrap();
        let state = self.dir.path().join(format!("known-{port}"));
        fs::create_dir_all(state.join("ca")).unwrap();
        fs::write(state.join("ca/root.pem"), root).unwrap();
        let join = JoinInfo {
            address: format!("127.0.0.1:{port}"),
            root_fingerprint: [0; 32],
            trust_domain: "airlane.local".to_owned(),
            secret: String::new(),
        };
        let operator = Operator { process, join, state };
        until("the operator serves", SOON, async || {
            match self.call::<JoinResponse>(&operator, None, JOIN, JoinRequest::default()).await {
                Err(Refusal::Connection(why)) => Err(format!("{why}\n{}", operator.process.log())),
                _ => Ok(()),
            }
        })
        .await;
        operator
    }

    async fn operator(&self, port: u16) -> Operator {
        let process = self.start(port);
        self.known(process, port).await
    }

    /// Creates a pod, and gives it an address as the kubelet would. Its UID.
    async fn pod(&self, name: &str, account: &str, meshed: bool) -> String {
        self.shop.apply(&pod(name, account, meshed)).await.unwrap();
        let status =
            r#"{"status": {"phase": "Pending", "podIP": "10.244.1.9", "podIPs": [{"ip": "10.244.1.9"}]}}"#;
        let patch = ["patch", "pod", name, "--subresource=status", "--type=merge", "--patch", status];
        self.shop.kubectl(&patch).await.unwrap();
        let pod = self.shop.get(&format!("pod/{name}")).await.unwrap();
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    async fn token(&self, account: &str, arguments: &[&str]) -> String {
        let create = [&["create", "token", account], arguments].concat();
        self.shop.kubectl(&create).await.unwrap().trim().to_owned()
    }

    /// The token that the kubelet would project into the pod.
    async fn projected(&self, account: &str, pod: &str) -> String {
        let bound = ["--audience", "airlane", "--bound-object-kind", "Pod", "--bound-object-name", pod];
        self.token(account, &bound).await
    }

    fn identity(&self, account: &str) -> String {
        workload_identity("airlane.local", self.shop.name(), account)
    }

    async fn call<M: prost::Message + Default + 'static>(
        &self,
        operator: &Operator,
        papers: Option<&Papers>,
        method: &'static str,
        message: impl prost::Message + 'static,
    ) -> Result<M, Refusal> {
        let (join, state, papers) = (operator.join.clone(), operator.state.clone(), papers.cloned());
        self.cluster
            .inside(move || async move {
                let mut stranger = Stranger::connect(&join, &state, papers.as_ref()).await?;
                stranger.call(method, &message).await
            })
            .await
    }

    /// Joins with this token and a request for this account's identity.
    async fn join(
        &self,
        operator: &Operator,
        token: &str,
        account: &str,
    ) -> Result<(JoinResponse, Papers), Refusal> {
        // Its claims are somebody else's: they decide nothing.
        let (request, key) = join_request(&operator.join, "vault", &self.identity(account));
        let request = JoinRequest { token: token.to_owned(), ..request };
        let joined: JoinResponse = self.call(operator, None, JOIN, request).await?;
        let chain = joined.certificate.clone().unwrap().chain_pem;
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
        let papers = Papers { chain, key_der: key.serialize_der(), instance: joined.instance.clone() };
        Ok((joined, papers))
    }

    async fn check_refused(&self, operator: &Operator, token: &str, account: &str, code: Code, says: &str) {
        let refusal = self.join(operator, token, account).await.map(|(joined, _)| joined).unwrap_err();
        let Refusal::Status(found, text) = refusal else { unreachable!("{says}: {refusal:?}") };
        // A header's text is percent-encoded.
        let text = text.replace("%20", " ").replace("%60", "`").replace("%3A", ":").replace("%22", "\"");
        assert_eq!(found, code, "{text}");
        assert!(text.contains(says), "{text:?} does not say {says:?}");
        assert!(!text.contains("eyJ"), "the token is told: {text}");
    }
}

/// A token whose signature is another one's.
fn forged(token: &str, signature_of: &str) -> String {
    let (signed, _) = token.rsplit_once('.').unwrap();
    let (_, signature) = signature_of.rsplit_once('.').unwrap();
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn a_pod_is_let_in_as_itself_and_nobody_else_is() {
    let Some(cluster) = Cluster::shared().await else { return };
    let setting = Setting::new(&cluster).await;
    let operator = setting.operator(15_311).await;
    let uid = setting.pod("pay-1", "payer", true).await;
    setting.pod("orders-1", "orders", true).await;
    setting.pod("bare-1", "payer", false).await;
    let pays = setting.projected("payer", "pay-1").await;
    let orders = setting.projected("orders", "orders-1").await;

    let (joined, papers) = setting.join(&operator, &pays, "payer").await.unwrap();
    assert_eq!(joined.instance, format!("pay-1-{}", &uid[..8]));
    let beat = || HeartbeatRequest::default();
    let heard: HeartbeatResponse = setting.call(&operator, Some(&papers), HEARTBEAT, beat()).await.unwrap();
    assert!(heard.known);
    let renew =
        |account: &str| RenewRequest { csr: csr(&KeyPair::generate().unwrap(), &setting.identity(account)) };
    setting.call::<Certificate>(&operator, Some(&papers), RENEW, renew("payer")).await.unwrap();
    let other = setting.call::<Certificate>(&operator, Some(&papers), RENEW, renew("orders")).await;
    assert_eq!(other.unwrap_err().code(), Some(Code::PermissionDenied));

    // Another pod's token is that pod's identity and no other's.
    setting.check_refused(&operator, &orders, "payer", Code::PermissionDenied, "sa/orders").await;
    setting.check_refused(&operator, &pays, "orders", Code::PermissionDenied, "sa/payer").await;
    setting.join(&operator, &orders, "orders").await.unwrap();

    let refused = async |token: &str, says: &str| {
        setting.check_refused(&operator, token, "payer", Code::Unauthenticated, says).await;
    };
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "pay-1"];
    refused(&setting.token("payer", &bound).await, "not for the audience").await;
    let vault = [&bound[..], &["--audience", "vault"]].concat();
    refused(&setting.token("payer", &vault).await, "not for the audience").await;
    refused(&setting.token("payer", &["--audience", "airlane"]).await, "bound to no pod").await;
    refused(&forged(&pays, &orders), "does not accept").await;
    refused("", "no service account token").await;
    refused("a.b.c", "no service account token").await;

    let bare = setting.projected("payer", "bare-1").await;
    setting.check_refused(&operator, &bare, "payer", Code::Unavailable, "the pod has no proxy").await;

    // A deleted pod is nobody, before and after the API server forgets that it knew the token.
    setting.shop.kubectl(&["delete", "pod", "pay-1", "--grace-period=0", "--force"]).await.unwrap();
    until("its papers are nobody's", SOON, async || {
        let heard: HeartbeatResponse = setting
            .call(&operator, Some(&papers), HEARTBEAT, beat())
            .await
            .map_err(|why| format!("{why:?}"))?;
        if heard.known { Err("it is still known".to_owned()) } else { Ok(()) }
    })
    .await;
    let renewed = setting.call::<Certificate>(&operator, Some(&papers), RENEW, renew("payer")).await;
    assert_eq!(renewed.unwrap_err().code(), Some(Code::NotFound));
    until("its token is nobody's", SOON, async || match setting.join(&operator, &pays, "payer").await {
        Ok(_) => panic!("a deleted pod was let in"),
        Err(refusal) if refusal.code() == Some(Code::Unauthenticated) => Ok(()),
        Err(refusal) => Err(format!("{refusal:?}")),
    })
    .await;
    // Nor is the pod that takes its name.
    setting.pod("pay-1", "payer", true).await;
    refused(&pays, "does not accept").await;
    let log = operator.process.log();
    for token in [&pays, &orders, &bare] {
        assert!(!log.contains(&**token), "a token is in the log");
    }
}

#[tokio::test]
async fn replicas_that_start_together_have_one_root() {
    let Some(cluster) = Cluster::shared().await else { return };
    let setting = Setting::new(&cluster).await;
    let label = ["label", "namespace", setting.shop.name(), "airlane.dev/inject=enabled"];
    cluster.kubectl(&label).await.unwrap();
    let (first, second) = (setting.start(15_321), setting.start(15_322));
    let (first, second) = (setting.known(first, 15_321).await, setting.known(second, 15_322).await);
    setting.pod("pay-1", "payer", true).await;
    let token = setting.projected("payer", "pay-1").await;
    let (one, papers) = setting.join(&first, &token, "payer").await.unwrap();
    let (other, _) = setting.join(&second, &token, "payer").await.unwrap();
    let (one, other) = (one.certificate.unwrap(), other.certificate.unwrap());
    assert_eq!(one.bundle_pem, other.bundle_pem, "the root");
    let issuer = |certificate: &Certificate| {
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes()).collect();
        chain.unwrap()[1].clone()
    };
    assert_ne!(issuer(&one), issuer(&other), "each signs with a key of its own");
    // What one has signed, the other believes.
    let heard =
        setting.call::<HeartbeatResponse>(&second, Some(&papers), HEARTBEAT, HeartbeatRequest::default());
    assert!(heard.await.unwrap().known);
    until("the root is in the namespaces of the mesh", SOON, async || {
        let map: Value = setting.shop.get("configmap/airlane-root").await?;
        if map["data"]["root.pem"] == *one.bundle_pem { Ok(()) } else { Err(map.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_damaged_root_is_named_and_left_alone() {
    let Some(cluster) = Cluster::shared().await else { return };
    let setting = Setting::new(&cluster).await;
    let secret = "{apiVersion: v1, kind: Secret, metadata: {name: airlane-root}, stringData: {root.crt: nothing, root.key: nothing}}";
    setting.system.apply(secret).await.unwrap();
    let before = setting.system.get("secret/airlane-root").await.unwrap();
    let mut operator = setting.start(15_331);
    until("it does not start", SOON, async || operator.ended().ok_or_else(|| operator.log())).await;
    let says =
        format!("root.crt of Secret {}/airlane-root does not hold a certificate", setting.system.name());
    assert!(operator.log().contains(&says), "{:?} does not say {says:?}", operator.log());
    let after = setting.system.get("secret/airlane-root").await.unwrap();
    assert_eq!(after["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"]);
}
