//! An application, the door an Envoy is before it, and a caller of that door.

use super::authority::Ca;
use airlane_wire::message::JoinRequest;
use rustls::{
    ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// An Envoy that serves on the mesh port, by TLS with the agent's secrets, what the application answers.
pub(crate) fn door(request: &JoinRequest, app: u32, mesh: u32) -> String {
    let address =
        |port: u32| serde_json::json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let cluster = |name: &str, address| {
        serde_json::json!({
            "name": name,
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
            },
        })
    };
    let mut agent = cluster("agent", serde_json::json!({ "pipe": { "path": request.agent_socket } }));
    agent["typed_extension_protocol_options"] = serde_json::json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    let secret = |name: &str, api_type: &str| {
        serde_json::json!({
            "name": name,
            "sds_config": {
                "resource_api_version": "V3",
                "initial_fetch_timeout": "0s",
                "api_config_source": {
                    "api_type": api_type,
                    "transport_api_version": "V3",
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": "agent" } }],
                },
            },
        })
    };
    serde_json::json!({
        "node": { "id": "pay-v2-1", "cluster": "default" },
        "admin": { "address": { "pipe": { "path": request.admin_socket } } },
        "static_resources": {
            "clusters": [cluster("application", address(app)), agent],
            "listeners": [{
                "name": "door",
                "address": address(mesh),
                "traffic_direction": "INBOUND",
                "filter_chains": [{
                    "transport_socket": {
                        "name": "envoy.transport_sockets.tls",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                            "common_tls_context": {
                                "tls_certificate_sds_secret_configs": [secret("leaf", "GRPC")],
                                "validation_context_sds_secret_config": secret("root", "DELTA_GRPC"),
                            },
                        },
                    },
                    "filters": [{
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                            "stat_prefix": format!("inbound|{app}|mtls"),
                            "route_config": {
                                "virtual_hosts": [{
                                    "name": "all",
                                    "domains": ["*"],
                                    "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "application" } }],
                                }],
                            },
                            "http_filters": [{
                                "name": "envoy.filters.http.router",
                                "typed_config": {
                                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                                },
                            }],
                        },
                    }],
                }],
            }],
        },
    })
    .to_string()
}

/// An application of the tests.
pub(crate) struct Application {
    pub(crate) port: u16,
    /// Requests that came in.
    pub(crate) asked: watch::Receiver<u32>,
}

/// Answers every connection's first request with `status`, as soon as `may_answer` says so.
pub(crate) async fn application(status: &'static str, may_answer: watch::Receiver<bool>) -> Application {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (count, asked) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut may_answer, count) = (may_answer.clone(), count.clone());
            tokio::spawn(async move {
                let mut request = [0; 4096];
                // A probe hangs up without a word.
                if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    count.send_modify(|count| *count += 1);
                    may_answer.wait_for(|may| *may).await.ok();
                    let answer =
                        format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
                    stream.write_all(answer.as_bytes()).await.ok();
                }
            });
        }
    });
    Application { port, asked }
}

/// An application that answers at once, and well.
pub(crate) async fn good_application() -> u16 {
    application("200 OK", watch::channel(true).1).await.port
}

/// Any certificate of the mesh, whatever its names: Envoy checks names, this only looks.
#[derive(Debug)]
struct OfTheMesh(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for OfTheMesh {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        use rustls::{CertificateError::NotValidForNameContext, Error::InvalidCertificate};
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(InvalidCertificate(
                NotValidForNameContext { .. } | rustls::CertificateError::NotValidForName,
            )) => Ok(rustls::client::danger::ServerCertVerified::assertion()),
            other => other,
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Calls through the door; gives the certificate that was shown, and the answer.
pub(crate) async fn call(ca: &Ca, mesh_port: u32) -> std::io::Result<(CertificateDer<'static>, String)> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.root_der()).expect("a root");
    let mesh = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OfTheMesh(mesh.build().expect("a verifier"))))
        .with_no_client_auth();
    let tcp = TcpStream::connect(("127.0.0.1", mesh_port.try_into().expect("a port"))).await?;
    let name = ServerName::try_from("pay").expect("a name");
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let shown = tls.get_ref().1.peer_certificates().expect("shown")[0].clone().into_owned();
    tls.write_all(b"GET / HTTP/1.1\r\nhost: pay\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await?;
    Ok((shown, answer))
}
