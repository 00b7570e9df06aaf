//! One Envoy with the agent's part: its leaf and the root over a unix socket.

use super::{
    pki::Leaf,
    plane::{IDENTITY, Plane},
    pod::Host,
    until,
};
use airlane_core::id::Identity;
use airlane_envoy::bootstrap::{self, Bootstrap};
use envoy_types::{
    pb::envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, Secret, TlsCertificate, secret,
        },
        service::{
            discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            },
            secret::v3::secret_discovery_service_server::{
                SecretDiscoveryService, SecretDiscoveryServiceServer,
            },
        },
    },
    util::pack_any,
};
use std::{
    fs::{File, Permissions},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

pub struct Proxy {
    process: Child,
    folder: TempDir,
}

impl Proxy {
    /// Starts an Envoy and waits until it listens on each of `ports`.
    pub fn start(envoy: &Path, plane: &Plane, instance: &str, identity: &Identity, ports: &[u16]) -> Self {
        let mut proxy =
            Self::launch(Command::new(envoy), tempfile::tempdir().unwrap(), plane, instance, identity);
        for port in ports {
            until(&format!("{instance} listens on {port}"), || {
                assert!(proxy.process.try_wait().unwrap().is_none(), "Envoy ended:\n{}", proxy.log());
                TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], *port))).ok()
            });
        }
        proxy
    }

    /// Starts an Envoy in a pod, as the user whose connections are not redirected, and waits until it is ready.
    pub fn start_in(pod: &Host, envoy: &Path, plane: &Plane, instance: &str, identity: &Identity) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("envoy");
        // The other user may not go where the user who started the test keeps Envoy.
        if std::fs::hard_link(envoy, &own).is_err() {
            std::fs::copy(envoy, &own).unwrap();
        }
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let mut command = pod.command();
        command.arg(&own);
        let mut proxy = Self::launch(command, folder, plane, instance, identity);
        until(&format!("{instance} is ready"), || {
            assert!(proxy.process.try_wait().unwrap().is_none(), "Envoy ended:\n{}", proxy.log());
            let answer = proxy.try_admin("/ready").ok()?;
            answer.starts_with("HTTP/1.1 200").then_some(())
        });
        proxy
    }

    fn launch(envoy: Command, folder: TempDir, plane: &Plane, instance: &str, identity: &Identity) -> Self {
        let of = Bootstrap {
            instance: instance.parse().unwrap(),
            namespace: identity.namespace.clone(),
            operator_host: plane.address.ip().to_string(),
            operator_port: plane.address.port(),
            operator_identity: IDENTITY.parse().unwrap(),
            agent_socket: folder.path().join("agent.sock").display().to_string(),
            admin_socket: folder.path().join("admin.sock").display().to_string(),
            event_log: folder.path().join("events.log").display().to_string(),
        };
        let agent = Agent {
            leaf: plane.authority.leaf(&identity.to_string(), instance),
            root_pem: plane.authority.root_pem.clone(),
        };
        agent.serve(Path::new(&of.agent_socket));
        std::fs::set_permissions(&of.agent_socket, Permissions::from_mode(0o777)).unwrap();
        let config = folder.path().join("bootstrap.json");
        std::fs::write(&config, bootstrap::render(&of)).unwrap();
        let mut envoy = envoy;
        let process = envoy
            .arg("-c")
            .arg(&config)
            .args(["--disable-hot-restart", "--concurrency", "1", "-l", "warn"])
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("envoy.log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, folder }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("envoy.log")).unwrap_or_default()
    }

    /// What the admin interface answers to a GET.
    pub fn admin(&self, path: &str) -> String {
        self.try_admin(path).unwrap()
    }

    fn try_admin(&self, path: &str) -> std::io::Result<String> {
        let mut socket = UnixStream::connect(self.folder.path().join("admin.sock"))?;
        write!(socket, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// A counter or gauge, 0 if it is not kept.
    pub fn stat(&self, name: &str) -> u64 {
        let answer = self.admin("/stats");
        let line = answer.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

struct Agent {
    leaf: Leaf,
    root_pem: String,
}

impl Agent {
    fn serve(self, socket: &Path) {
        let socket: PathBuf = socket.to_owned();
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener).unwrap());
                Server::builder()
                    .add_service(SecretDiscoveryServiceServer::new(self))
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            });
        });
    }

    fn secret(&self, name: &str) -> Secret {
        let inline = |text: &str| {
            Some(DataSource {
                specifier: Some(Specifier::InlineString(text.to_owned())),
                ..Default::default()
            })
        };
        let value = match name {
            "leaf" => secret::Type::TlsCertificate(TlsCertificate {
                certificate_chain: inline(&self.leaf.chain_pem),
                private_key: inline(&self.leaf.key_pem),
                ..Default::default()
            }),
            bootstrap::ROOT => secret::Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(&self.root_pem),
                ..Default::default()
            }),
            other => panic!("the agent has no secret {other}"),
        };
        Secret { name: name.to_owned(), r#type: Some(value) }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Agent {
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.ok_or_else(|| Status::invalid_argument("no request"))?;
        let (answers, stream) = mpsc::channel(1);
        let resources = first.resource_names.iter().map(|name| pack_any(self.secret(name))).collect();
        let answer = DiscoveryResponse {
            version_info: "1".to_owned(),
            nonce: "1".to_owned(),
            type_url: first.type_url,
            resources,
            ..Default::default()
        };
        answers.send(Ok(answer)).await.map_err(|_| Status::cancelled("gone"))?;
        tokio::spawn(async move {
            while let Ok(Some(_)) = requests.message().await {}
            drop(answers);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("streams only"))
    }
}
