//! Giving Envoy its certificate: a secret discovery service on a unix socket.
//!
//! Envoy asks for `leaf` (chain and key) and `root` (what to trust), and gets the next ones unasked. A name that
//! does not exist is left unanswered: Envoy waits then, while an answer without it opens the listener without
//! a certificate.

use crate::identity::Leaf;
use airlane_wire::sds::{
    Any, DataSource, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    Resource, RpcStatus, SECRET_TYPE_URL, Secret, SecretDiscovery, SecretDiscoveryServer, TlsCertificate,
    ValidationContext,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use std::{collections::BTreeMap, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};
use tokio::{net::UnixListener, sync::watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Status, Streaming, transport::Server};
use zeroize::Zeroizing;

/// The secret that holds the chain and the key.
const LEAF: &str = "leaf";
/// The secret that holds the roots to trust.
const ROOT: &str = "root";

/// How much of a rejection's text is logged, in characters.
const REJECTION_CHARS_MAX: usize = 200;

/// The secrets at one moment.
#[derive(Clone)]
struct Secrets {
    /// How many leaves this process has had. Versions need no more: Envoy ends with the agent.
    version: u64,
    leaf: Any,
    root: Any,
}

impl Secrets {
    fn of(leaf: &Leaf, version: u64) -> Self {
        let inline = |bytes: Bytes| Some(DataSource { inline_bytes: bytes });
        let key = Bytes::from_owner(Zeroizing::new(leaf.key_pem.as_bytes().to_vec()));
        let certificate = TlsCertificate {
            certificate_chain: inline(leaf.chain_pem.clone().into()),
            private_key: inline(key),
        };
        let context = ValidationContext { trusted_ca: inline(leaf.bundle_pem.clone().into()) };
        Self {
            version,
            leaf: any(&Secret { tls_certificate: Some(certificate), ..named(LEAF) }),
            root: any(&Secret { validation_context: Some(context), ..named(ROOT) }),
        }
    }

    /// The secret of a name that is [`known`].
    fn get(&self, name: &'static str) -> Any {
        if name == LEAF { self.leaf.clone() } else { self.root.clone() }
    }
}

fn known(name: &str) -> Option<&'static str> {
    [LEAF, ROOT].into_iter().find(|known| *known == name)
}

fn named(name: &str) -> Secret {
    Secret { name: name.into(), ..Secret::default() }
}

/// The encoded secret in memory that is zeroised when the last reader lets go of it.
fn any(secret: &Secret) -> Any {
    let value = Bytes::from_owner(Zeroizing::new(secret.encode_to_vec()));
    Any { type_url: SECRET_TYPE_URL.into(), value }
}

/// Publishes the secrets of the present leaf.
pub(crate) struct Publisher(watch::Sender<Secrets>);

impl Publisher {
    /// Starts with `leaf`.
    pub(crate) fn new(leaf: &Leaf) -> Self {
        Self(watch::Sender::new(Secrets::of(leaf, 1)))
    }

    /// Gives the secrets of `leaf` to every Envoy that subscribes.
    pub(crate) fn publish(&self, leaf: &Leaf) {
        self.0.send_modify(|secrets| *secrets = Secrets::of(leaf, secrets.version + 1));
    }

    /// Serves the secrets on a socket at `path` to processes of the user `owner`, until the future is dropped.
    /// The socket exists when this returns.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub(crate) fn serve(
        &self,
        path: &Path,
        owner: u32,
    ) -> io::Result<impl Future<Output = Result<(), tonic::transport::Error>> + use<>> {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
        let connections = UnixListenerStream::new(listener).filter(move |connection| {
            let peer = connection.as_ref().ok().and_then(|c| c.peer_cred().ok()).map(|cred| cred.uid());
            if peer != Some(owner) {
                tracing::warn!(uid = ?peer, "refused to give secrets to a process of another user");
            }
            std::future::ready(peer == Some(owner))
        });
        let server = SecretDiscoveryServer::new(Arc::new(Discovery(self.0.subscribe())));
        Ok(Server::builder().add_service(server).serve_with_incoming(connections))
    }
}

struct Discovery(watch::Receiver<Secrets>);

impl SecretDiscovery for Discovery {
    fn stream_secrets(
        &self,
        requests: Streaming<DiscoveryRequest>,
    ) -> impl Stream<Item = Result<DiscoveryResponse, Status>> + Send + use<> {
        converse(Whole::default(), requests, self.0.clone())
    }

    fn delta_secrets(
        &self,
        requests: Streaming<DeltaDiscoveryRequest>,
    ) -> impl Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send + use<> {
        converse(Incremental::default(), requests, self.0.clone())
    }
}

/// One side of a conversation about secrets, without IO.
trait Conversation: Send + 'static {
    type Request: Send;
    type Response: Send;
    /// What to answer to a request, if anything.
    fn heard(&mut self, request: Self::Request, secrets: &Secrets) -> Option<Self::Response>;
    /// What to say now that the secrets changed, if anything.
    fn changed(&mut self, secrets: &Secrets) -> Option<Self::Response>;
}

fn converse<C: Conversation>(
    conversation: C,
    requests: Streaming<C::Request>,
    mut secrets: watch::Receiver<Secrets>,
) -> impl Stream<Item = Result<C::Response, Status>> + Send {
    secrets.mark_unchanged();
    stream::unfold((conversation, requests, secrets), |(mut conversation, mut requests, mut secrets)| async {
        loop {
            let response = tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => conversation.heard(request, &secrets.borrow_and_update()),
                    Some(Err(_)) | None => return None,
                },
                changed = secrets.changed() => match changed {
                    Ok(()) => conversation.changed(&secrets.borrow_and_update()),
                    Err(_) => return None,
                },
            };
            if let Some(response) = response {
                return Some((Ok(response), (conversation, requests, secrets)));
            }
        }
    })
}

fn log_rejection(error: Option<&RpcStatus>) {
    if let Some(error) = error {
        let reason: String = error.message.chars().take(REJECTION_CHARS_MAX).collect();
        tracing::error!(reason, "Envoy rejected a certificate and goes on with the one before");
    }
}

/// The names a caller subscribed to, each with the version last sent (0: none).
type Held = BTreeMap<&'static str, u64>;

/// Whether a caller lacks one of the present secrets.
fn lacks(held: &Held, secrets: &Secrets) -> bool {
    held.values().any(|version| *version != secrets.version)
}

/// The state-of-the-world form: a request names all that is wanted, a response holds all of it.
#[derive(Default)]
struct Whole(Held);

impl Conversation for Whole {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn heard(&mut self, request: DiscoveryRequest, secrets: &Secrets) -> Option<DiscoveryResponse> {
        log_rejection(request.error_detail.as_ref());
        let names = request.resource_names.iter().filter_map(|name| known(name));
        self.0 = names.map(|name| (name, self.0.get(name).copied().unwrap_or(0))).collect();
        self.changed(secrets)
    }

    fn changed(&mut self, secrets: &Secrets) -> Option<DiscoveryResponse> {
        lacks(&self.0, secrets).then(|| {
            self.0.values_mut().for_each(|version| *version = secrets.version);
            DiscoveryResponse {
                version_info: secrets.version.to_string(),
                resources: self.0.keys().map(|name| secrets.get(name)).collect(),
                type_url: SECRET_TYPE_URL.into(),
                nonce: secrets.version.to_string(),
            }
        })
    }
}

/// The incremental form: a request changes what is wanted, a response holds what the caller lacks of it.
#[derive(Default)]
struct Incremental(Held);

impl Conversation for Incremental {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn heard(&mut self, request: DeltaDiscoveryRequest, secrets: &Secrets) -> Option<DeltaDiscoveryResponse> {
        log_rejection(request.error_detail.as_ref());
        for name in &request.resource_names_unsubscribe {
            self.0.remove(name.as_str());
        }
        for name in request.resource_names_subscribe.iter().filter_map(|name| known(name)) {
            // A name subscribed to again is sent again, unless a new stream says that it is held already.
            let held = request.initial_resource_versions.get(name).and_then(|version| version.parse().ok());
            self.0.insert(name, held.unwrap_or(0));
        }
        self.changed(secrets)
    }

    fn changed(&mut self, secrets: &Secrets) -> Option<DeltaDiscoveryResponse> {
        lacks(&self.0, secrets).then(|| {
            let lacking = self.0.iter_mut().filter(|(_, version)| **version != secrets.version);
            let resources = lacking.map(|(name, version)| {
                *version = secrets.version;
                Resource {
                    name: (*name).into(),
                    version: secrets.version.to_string(),
                    resource: Some(secrets.get(name)),
                }
            });
            DeltaDiscoveryResponse {
                resources: resources.collect(),
                type_url: SECRET_TYPE_URL.into(),
                nonce: secrets.version.to_string(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::KeyRequest,
        testing::{Ca, IDENTITY},
    };
    use airlane_wire::sds::{DELTA_SECRETS, STREAM_SECRETS};
    use hyper_util::rt::TokioIo;
    use rustls::pki_types::UnixTime;
    use std::{path::PathBuf, time::Duration};
    use tokio::{net::UnixStream, sync::mpsc, task::JoinHandle, time::timeout};
    use tokio_stream::wrappers::UnboundedReceiverStream;
    use tonic::{client::Grpc, codegen::http::uri::PathAndQuery, transport::Endpoint};
    use tonic_prost::ProstCodec;

    fn leaf(ca: &Ca) -> Leaf {
        let request = KeyRequest::new(IDENTITY).expect("a key");
        let answer = ca.sign(&request.csr, IDENTITY, Duration::from_secs(3600));
        request.certified(&answer, UnixTime::now()).expect("good")
    }

    struct Served {
        ca: Ca,
        publisher: Publisher,
        socket: PathBuf,
        server: JoinHandle<Result<(), tonic::transport::Error>>,
        _dir: tempfile::TempDir,
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.server.abort();
        }
    }

    fn serve(to_another_user: bool) -> Served {
        let ca = Ca::new();
        let publisher = Publisher::new(&leaf(&ca));
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("sds");
        let us = std::os::unix::fs::MetadataExt::uid(&dir.path().metadata().expect("metadata"));
        let owner = if to_another_user { us + 1 } else { us };
        let server = tokio::spawn(publisher.serve(&socket, owner).expect("bound"));
        Served { ca, publisher, socket, server, _dir: dir }
    }

    /// Both directions of an open stream.
    struct Stream<Req, Res> {
        requests: mpsc::UnboundedSender<Req>,
        responses: Streaming<Res>,
    }

    impl<Req: Message + 'static, Res: Message + Default + 'static> Stream<Req, Res> {
        async fn open(socket: &Path, method: &'static str, first: Req) -> Result<Self, Status> {
            let socket = socket.to_owned();
            let connector = tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            });
            let channel = Endpoint::from_static("http://agent").connect_with_connector_lazy(connector);
            let mut grpc = Grpc::new(channel);
            grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
            let (requests, outgoing) = mpsc::unbounded_channel();
            requests.send(first).expect("open");
            let outgoing = tonic::Request::new(UnboundedReceiverStream::new(outgoing));
            let codec = ProstCodec::<Req, Res>::default();
            let path = PathAndQuery::from_static(method);
            let responses = grpc.streaming(outgoing, path, codec).await?.into_inner();
            Ok(Self { requests, responses })
        }

        async fn next(&mut self) -> Res {
            let next = timeout(Duration::from_secs(10), self.responses.message()).await;
            next.expect("in time").expect("no failure").expect("not the end")
        }
    }

    fn read(any: &Any) -> Secret {
        assert_eq!(any.type_url, SECRET_TYPE_URL);
        Secret::decode(any.value.clone()).expect("a secret")
    }

    fn whole(names: &[&str], nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            resource_names: names.iter().map(|name| (*name).into()).collect(),
            response_nonce: nonce.into(),
            ..DiscoveryRequest::default()
        }
    }

    #[tokio::test]
    async fn the_whole_form_sends_what_is_named_and_every_renewal() {
        let served = serve(false);
        let mut stream =
            Stream::<_, DiscoveryResponse>::open(&served.socket, STREAM_SECRETS, whole(&[LEAF], ""))
                .await
                .expect("open");
        let first = stream.next().await;
        let secret = read(&first.resources[0]);
        let key = secret.tls_certificate.expect("a certificate").private_key.expect("a key").inline_bytes;
        assert!(key.starts_with(b"-----BEGIN PRIVATE KEY-----"));

        // An acknowledgement is not answered, so the next response is the renewal's.
        stream.requests.send(whole(&[LEAF], &first.nonce)).expect("open");
        served.publisher.publish(&leaf(&served.ca));
        let second = stream.next().await;
        assert_eq!((first.version_info.as_str(), second.version_info.as_str()), ("1", "2"));

        stream.requests.send(whole(&[LEAF, ROOT, "other"], &second.nonce)).expect("open");
        let third = stream.next().await;
        let names: Vec<String> = third.resources.iter().map(|any| read(any).name).collect();
        assert_eq!(names, [LEAF, ROOT]);
    }

    #[tokio::test]
    async fn the_incremental_form_sends_what_is_lacking() {
        let served = serve(false);
        let first = DeltaDiscoveryRequest {
            resource_names_subscribe: vec![LEAF.into(), ROOT.into(), "other".into()],
            initial_resource_versions: [(ROOT.to_owned(), "1".to_owned())].into(),
            ..DeltaDiscoveryRequest::default()
        };
        let mut stream = Stream::<_, DeltaDiscoveryResponse>::open(&served.socket, DELTA_SECRETS, first)
            .await
            .expect("open");
        let names = |response: &DeltaDiscoveryResponse| -> Vec<String> {
            response.resources.iter().map(|resource| resource.name.clone()).collect()
        };
        assert_eq!(names(&stream.next().await), [LEAF]);
        served.publisher.publish(&leaf(&served.ca));
        assert_eq!(names(&stream.next().await), [LEAF, ROOT]);
        let again = DeltaDiscoveryRequest {
            resource_names_subscribe: vec![ROOT.into()],
            resource_names_unsubscribe: vec![LEAF.into()],
            ..DeltaDiscoveryRequest::default()
        };
        stream.requests.send(again).expect("open");
        assert_eq!(names(&stream.next().await), [ROOT]);
    }

    #[tokio::test]
    async fn another_user_gets_nothing() {
        let served = serve(true);
        let opened =
            Stream::<_, DiscoveryResponse>::open(&served.socket, STREAM_SECRETS, whole(&[LEAF], "")).await;
        assert!(opened.is_err());
    }
}
