//! One stream of one proxy.

use super::{
    publisher::{Connection, Publication, Publisher},
    wire::{self, Requests},
};
use crate::tls::Peer;
use airlane_envoy::delta::{Reaction, Refused, Response, Session};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use http::header::CONTENT_TYPE;
use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, metadata::GRPC_CONTENT_TYPE, server::NamedService};
use tower::Service;

/// A proxy that says nothing for this long after it opened a stream loses it.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(10);

/// A proxy that reads nothing for this long while something waits for it loses its stream; when it comes back it
/// gets the differences. Longer than the pauses a proxy should survive.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// A proxy that owes an answer for this long loses its stream: whoever waits for all proxies would wait for ever.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How long a proxy whose instance is not known yet is given: this replica may hear of a pod later than another one.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// Responses that wait beside the one that is being sent.
const QUEUED: usize = 1;

/// Why a stream ended. The text goes to the proxy.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the same instance opened another stream")]
    Replaced,
    #[error("the control plane is shutting down")]
    ShuttingDown,
    #[error("the node's id is not the instance in its certificate")]
    NotItself,
    #[error("no request within {} s of opening the stream", FIRST_WORD_WITHIN.as_secs())]
    Silent,
    #[error("nothing was read for {} s", READ_WITHIN.as_secs())]
    NotReading,
    #[error("what was sent was not answered for {} s", ANSWER_WITHIN.as_secs())]
    NotAnswering,
    #[error("this instance is not in the mesh; join again")]
    NotMember,
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the proxy left")]
    Left,
    #[error("the stream broke")]
    Broken(#[source] Status),
}

impl From<&Ended> for Status {
    fn from(ended: &Ended) -> Status {
        let text = ended.to_string();
        match ended {
            Ended::Replaced => Status::aborted(text),
            Ended::ShuttingDown => Status::unavailable(text),
            Ended::NotItself | Ended::NotMember => Status::permission_denied(text),
            Ended::Silent | Ended::NotReading | Ended::NotAnswering => Status::deadline_exceeded(text),
            Ended::Refused(_) => Status::invalid_argument(text),
            Ended::Left | Ended::Broken(_) => Status::cancelled(text),
        }
    }
}

/// Whether somebody is in the mesh at this moment: papers outlive their instance.
pub(crate) type IsMember = Arc<dyn Fn(&Peer) -> bool + Send + Sync>;

/// The aggregated discovery service, delta alone. [`wire`] says why it is not tonic's own.
#[derive(Clone)]
pub(crate) struct Ads {
    publisher: Publisher,
    is_member: IsMember,
    shutdown: CancellationToken,
}

impl Publisher {
    /// The gRPC service. Its streams end when `shutdown` is cancelled; a server does not stop before they do.
    pub(crate) fn service(&self, is_member: IsMember, shutdown: CancellationToken) -> Ads {
        Ads { publisher: self.clone(), is_member, shutdown }
    }
}

impl NamedService for Ads {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<Body>> for Ads {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let opened = match request.uri().path().rsplit('/').next() {
            Some("DeltaAggregatedResources") => self.open(request),
            _ => Err(Status::unimplemented("only delta xDS is served: set api_type to DELTA_GRPC")),
        };
        ready(Ok(opened.unwrap_or_else(Status::into_http)))
    }
}

impl Ads {
    fn open(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer =
            peer.ok_or_else(|| Status::unauthenticated("a client certificate of this mesh is required"))?;
        let (queue, queued) = mpsc::channel(QUEUED);
        let stream = Stream {
            session: Session::new(&peer.instance, &peer.identity.namespace, 0),
            publications: self.publisher.publications(),
            vouched: self.publisher.vouched_until(),
            connection: self.publisher.connect(peer.clone()),
            publisher: self.publisher.clone(),
            is_member: self.is_member.clone(),
            shutdown: self.shutdown.clone(),
            peer,
            requests: Requests::of(request.into_body()),
            outgoing: VecDeque::new(),
            queue,
        };
        tokio::spawn(stream.run());
        let mut response = http::Response::new(wire::responses(queued));
        response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Ok(response)
    }
}

struct Stream {
    publisher: Publisher,
    connection: Arc<Connection>,
    is_member: IsMember,
    peer: Peer,
    shutdown: CancellationToken,
    session: Session,
    requests: Requests,
    publications: watch::Receiver<Option<Arc<Publication>>>,
    vouched: watch::Receiver<Duration>,
    /// What the session wants sent; as long as its windows allow.
    outgoing: VecDeque<Arc<Response>>,
    queue: mpsc::Sender<Result<Arc<Response>, Status>>,
}

impl Stream {
    async fn run(mut self) {
        let queue = self.queue.clone();
        let ended = tokio::select! {
            () = queue.closed() => Ended::Left,
            () = self.shutdown.clone().cancelled_owned() => Ended::ShuttingDown,
            () = self.connection.replaced.clone().cancelled_owned() => Ended::Replaced,
            ended = self.converse() => ended,
        };
        tracing::debug!(proxy = %self.peer.instance, %ended, "a stream ended");
        self.publisher.disconnect(&self.connection);
        // A proxy that does not read gets no farewell: closing the channel ends its stream all the same.
        let _ = self.queue.try_send(Err(Status::from(&ended)));
    }

    async fn converse(&mut self) -> Ended {
        let Err(ended) = self.exchange().await;
        ended
    }

    async fn exchange(&mut self) -> Result<Infallible, Ended> {
        let first = tokio::time::timeout(FIRST_WORD_WITHIN, self.requests.next());
        let first = received(first.await.map_err(|_| Ended::Silent)?)?;
        if first.node.as_ref().map(|node| node.id.as_str()) != Some(self.peer.instance.as_str()) {
            return Err(Ended::NotItself);
        }
        // Nothing is known before the first publication, and nothing is not an answer: proxies keep what they have.
        let mut publication = self.first_publication().await?;
        self.session =
            Session::new(&self.peer.instance, &self.peer.identity.namespace, publication.catalog.epoch);
        self.receive(&first, &publication)?;

        let queue = self.queue.clone();
        let patience = tokio::time::sleep(READ_WITHIN);
        tokio::pin!(patience);
        loop {
            let answer_in = self.session.unanswered_since().map(|sent_at| sent_at + ANSWER_WITHIN);
            let answer_in = answer_in.map(|until| until.saturating_sub(self.publisher.uptime()));
            let wake_in = self.session.next_wake().map(|at| at.saturating_sub(self.publisher.uptime()));
            tokio::select! {
                biased;
                permit = queue.reserve(), if !self.outgoing.is_empty() => {
                    let permit = permit.map_err(|_| Ended::Left)?;
                    if let Some(response) = self.outgoing.pop_front() {
                        permit.send(Ok(response));
                    }
                    patience.set(tokio::time::sleep(READ_WITHIN));
                }
                request = self.requests.next() => {
                    self.receive(&received(request)?, &publication)?;
                    if self.outgoing.is_empty() {
                        patience.set(tokio::time::sleep(READ_WITHIN));
                    }
                }
                next = self.publications.changed() => {
                    next.map_err(|_| Ended::ShuttingDown)?;
                    publication = self.next_publication().await?;
                    if !(self.is_member)(&self.peer) {
                        return Err(Ended::NotMember);
                    }
                    self.follow(&publication);
                }
                changed = self.vouched.changed() => {
                    changed.map_err(|_| Ended::ShuttingDown)?;
                    self.wake(&publication);
                }
                () = tokio::time::sleep(wake_in.unwrap_or_default()), if wake_in.is_some() => {
                    self.wake(&publication);
                }
                () = tokio::time::sleep(answer_in.unwrap_or_default()), if answer_in.is_some() => {
                    return Err(Ended::NotAnswering);
                }
                () = &mut patience, if !self.outgoing.is_empty() => return Err(Ended::NotReading),
            }
        }
    }

    /// The publication of this moment, once the instance is known: whoever is new to it comes with another one.
    async fn first_publication(&mut self) -> Result<Arc<Publication>, Ended> {
        let mut publication = self.next_publication().await?;
        let known = async {
            while !(self.is_member)(&self.peer) {
                self.publications.changed().await.map_err(|_| Ended::ShuttingDown)?;
                publication = self.next_publication().await?;
            }
            Ok(publication)
        };
        tokio::time::timeout(KNOWN_WITHIN, known).await.unwrap_or(Err(Ended::NotMember))
    }

    async fn next_publication(&mut self) -> Result<Arc<Publication>, Ended> {
        let publication = self.publications.wait_for(Option::is_some).await;
        publication.ok().and_then(|publication| publication.clone()).ok_or(Ended::ShuttingDown)
    }

    fn receive(&mut self, request: &DeltaDiscoveryRequest, publication: &Publication) -> Result<(), Ended> {
        let published = self.publisher.published(publication);
        let reaction = self.session.receive(request, &published, self.publisher.uptime())?;
        self.react(reaction);
        Ok(())
    }

    fn follow(&mut self, publication: &Publication) {
        let published = self.publisher.published(publication);
        let now = self.publisher.uptime();
        let reaction = match publication.since(self.session.seen_epoch()) {
            Some(changes) => self.session.publish(&published, changes, now),
            None => self.session.resync(&published, now),
        };
        self.react(reaction);
    }

    fn wake(&mut self, publication: &Publication) {
        let published = self.publisher.published(publication);
        let reaction = self.session.wake(&published, self.publisher.uptime());
        self.react(reaction);
    }

    fn react(&mut self, reaction: Reaction) {
        let Reaction { responses, rejections, ignored } = reaction;
        self.outgoing.extend(responses);
        if ignored > 0 {
            tracing::debug!(proxy = %self.peer.instance, ignored, "a request meant nothing");
        }
        self.publisher.note(&self.connection, &self.session, rejections);
    }
}

fn received(message: Result<Option<DeltaDiscoveryRequest>, Status>) -> Result<DeltaDiscoveryRequest, Ended> {
    message.map_err(Ended::Broken)?.ok_or(Ended::Left)
}
