//! The operator's gRPC port: accepts connections, and lets no call through without a credential.
//!
//! Every method of every service needs a client certificate, but for [`OPEN`]; the check stands before the routes,
//! so that a service added later cannot forget it. A connection ends when its peer's certificate does, and after half an
//! hour.

use crate::{
    guest::{Guest, Place},
    sparing::Sparing,
    tls::{Peer, ServerTls},
};
use airlane_core::id::InstanceId;
use airlane_wire::crowd::Crowd;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::{
    collections::HashMap,
    convert::Infallible,
    future::pending,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body, service::Routes};
use tower::ServiceExt as _;

/// The only method that needs no certificate: it checks a token instead.
const OPEN: &str = "/airlane.wire.v1.Operator/Join";

/// Connections that the kernel completes for us: a thousand proxies reconnect at once when the operator returns, and
/// the standard library's 128 would reset some of them.
const BACKLOG: u32 = 4096;
/// Connections with a certificate: five for each of ten thousand proxies, if one replica has to serve them all, and some
/// that are ending.
pub(crate) const CONNECTIONS_MAX: usize = 65_536;
/// A proxy has a connection for its main thread (xDS, statistics) and one for each worker (access logs), its agent
/// another, and some are doubled while they end of age: enough for some 25 workers.
const CONNECTIONS_PER_INSTANCE_MAX: usize = 32;
/// Connections that are not through their handshake: a second's work, when all proxies come back at once. Whoever has
/// most makes room.
const HANDSHAKES_MAX: usize = 1024;
/// Connections without a certificate: workloads that are just joining, or anybody. Whoever has most makes room.
const ANONYMOUS_MAX: usize = 256;
const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(30);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A worker has one for each kind of access log, the main thread one for xDS and one for a report each second.
const STREAMS_PER_CONNECTION_MAX: u32 = 16;
/// What may be on its way to us on a connection without our having asked for it: with the headers of its streams a
/// quarter of a megabyte, and 8 MiB for all of an instance.
const WINDOW_BYTES: u32 = 1 << 17;
/// The same on one stream: none that waits holds the others up.
const STREAM_WINDOW_BYTES: u32 = 1 << 16;
/// Replicas pass on what all their proxies report.
const WINDOW_OF_REPLICAS_BYTES: u32 = 1 << 20;
/// Who joins asks once.
const STREAMS_PER_STRANGER_MAX: u32 = 4;
const HEADERS_BYTES_MAX: u32 = 8 * 1024;
/// Lines in a second about connections that were refused.
const REFUSALS_TOLD_MAX: u32 = 1;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// After how long a connection with a certificate ends, so that a replica that came later gets its part; drawn anew for
/// each, so that those which began together do not end together.
const AGES: RangeInclusive<Duration> = Duration::from_mins(25)..=Duration::from_mins(35);
/// How long open calls may go on after they were told that the connection ends.
const GOODBYE: Duration = Duration::from_secs(5);
/// The same for its age: nobody is in need, and the longest call that has an end is that of an instance that drains.
const GOODBYE_OF_AGE: Duration = Duration::from_secs(90);

/// Where a request comes from; in every request's extensions. A request with a certificate has a [`Peer`] there too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote(pub SocketAddr);

/// Listens, ready for many at once. `[::]` are all addresses, also where the kernel has no IPv6.
///
/// # Errors
/// The operating system's answer.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match listen_on(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
            listen_on((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        listening => listening,
    }
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves the routes until told to stop, and returns when every connection has ended, [`GOODBYE`] later at most.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: ServerTls,
    routes: Routes,
    shutdown: CancellationToken,
) {
    serve_aging(listener, tls, routes, AGES, shutdown).await;
}

async fn serve_aging(
    listener: TcpListener,
    tls: ServerTls,
    routes: Routes,
    ages: RangeInclusive<Duration>,
    shutdown: CancellationToken,
) {
    let port = Arc::new(Port {
        tls,
        routes: routes.prepare(),
        ages,
        shutdown: shutdown.clone(),
        newcomers: Mutex::new(Crowd::new(HANDSHAKES_MAX)),
        strangers: Mutex::new(Crowd::new(ANONYMOUS_MAX)),
        places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        instances: Mutex::default(),
        refusals: Mutex::new(Sparing::new(REFUSALS_TOLD_MAX)),
    });
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most often out of file descriptors: give connections time to end.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // An IPv4 address has another form on a port of both.
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let newcomer = Guest::enter(&port.newcomers, remote.ip());
        connections.spawn(Arc::clone(&port).connection(stream, remote, newcomer));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// What all connections share.
struct Port {
    tls: ServerTls,
    routes: Routes,
    ages: RangeInclusive<Duration>,
    shutdown: CancellationToken,
    /// Who is not through the handshake.
    newcomers: Mutex<Crowd<Place>>,
    /// Who is, without a certificate.
    strangers: Mutex<Crowd<Place>>,
    /// One for each connection with a certificate.
    places: Arc<Semaphore>,
    /// Open connections of every instance that has one.
    instances: Mutex<HashMap<InstanceId, usize>>,
    refusals: Mutex<Sparing>,
}

/// A place among the connections of its kind; given back when dropped.
enum Seat {
    Anonymous(Guest),
    Instance { port: Arc<Port>, instance: InstanceId, _place: OwnedSemaphorePermit },
}

impl Seat {
    /// Returns when somebody else needs it more.
    async fn taken(&self) {
        match self {
            Seat::Anonymous(guest) => guest.sent_away().await,
            Seat::Instance { .. } => pending().await,
        }
    }
}

/// Why there is no seat.
#[derive(Debug, thiserror::Error)]
enum Full {
    #[error("{CONNECTIONS_MAX} connections are open")]
    Port,
    #[error("{CONNECTIONS_PER_INSTANCE_MAX} connections of this instance are open")]
    Instance,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Seat::Instance { port, instance, .. } = self {
            let mut instances = port.instances.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(open) = instances.get_mut(instance) {
                *open -= 1;
                if *open == 0 {
                    instances.remove(instance);
                }
            }
        }
    }
}

impl Port {
    async fn connection(self: Arc<Self>, stream: TcpStream, remote: SocketAddr, newcomer: Guest) {
        // Without it small messages wait for acknowledgements; failing is harmless.
        let _ = stream.set_nodelay(true);
        let handshake = timeout(HANDSHAKE_TIMEOUT, self.tls.acceptor().accept(stream));
        let stream = tokio::select! {
            () = self.shutdown.cancelled() => return,
            () = newcomer.sent_away() => return tracing::debug!(%remote, "made room for another newcomer"),
            result = handshake => match result {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%remote, %error, "TLS handshake failed"),
                Err(_) => return tracing::debug!(%remote, "TLS handshake took too long"),
            },
        };
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = match leaf.map(|leaf| Peer::of(leaf, self.tls.trust_domain())) {
            None => None,
            Some(Some(peer)) => Some(peer),
            Some(None) => return tracing::debug!(%remote, "refused: the certificate names no workload"),
        };
        let seat = match &peer {
            None => Seat::Anonymous(Guest::enter(&self.strangers, remote.ip())),
            Some(peer) => match self.seat(peer) {
                Ok(seat) => seat,
                Err(why) => return self.tell_refusal(remote, peer, &why),
            },
        };
        drop(newcomer);
        let lifetime =
            peer.as_ref().map_or(ANONYMOUS_LIFETIME, |peer| peer.remaining(self.tls.clock().now()));
        let told = self.age(peer.as_ref()).min(lifetime.saturating_sub(GOODBYE));
        let (streams, window) = match &peer {
            Some(peer) if self.tls.is_replica(peer) => (STREAMS_PER_CONNECTION_MAX, WINDOW_OF_REPLICAS_BYTES),
            Some(_) => (STREAMS_PER_CONNECTION_MAX, WINDOW_BYTES),
            None => (STREAMS_PER_STRANGER_MAX, STREAM_WINDOW_BYTES),
        };
        let of_stream = if window == WINDOW_OF_REPLICAS_BYTES { window } else { STREAM_WINDOW_BYTES };
        let shutdown = self.shutdown.clone();
        let service = service_fn(move |request| {
            let (port, peer) = (Arc::clone(&self), peer.clone());
            async move { Ok::<_, Infallible>(port.call(request, peer, remote).await) }
        });
        let mut connection = pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(streams)
                .initial_stream_window_size(of_stream)
                .initial_connection_window_size(window)
                .max_header_list_size(HEADERS_BYTES_MAX)
                .keep_alive_interval(KEEPALIVE_EVERY)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
        );
        let goodbye = tokio::select! {
            _ = connection.as_mut() => return,
            () = seat.taken() => return tracing::debug!(%remote, "made room for another stranger"),
            () = sleep(told) => GOODBYE_OF_AGE.min(lifetime.saturating_sub(told)),
            () = shutdown.cancelled() => GOODBYE,
        };
        connection.as_mut().graceful_shutdown();
        let hurried = async {
            shutdown.cancelled().await;
            sleep(GOODBYE).await;
        };
        // Whoever goes on after the goodbye is cut off when the connection is dropped.
        tokio::select! {
            _ = timeout(goodbye, connection) => {}
            () = hurried => {}
        }
    }

    /// How old a connection becomes. One between replicas need not end: it has its other end for a reason.
    fn age(&self, peer: Option<&Peer>) -> Duration {
        if peer.is_none_or(|peer| self.tls.is_replica(peer)) {
            return Duration::MAX;
        }
        let (youngest, oldest) = self.ages.clone().into_inner();
        let mut drawn = [0; 4];
        // Without randomness they are as old as may be, which is as good for one of them.
        let share = SystemRandom::new()
            .fill(&mut drawn)
            .map_or(1.0, |()| f64::from(u32::from_ne_bytes(drawn)) / f64::from(u32::MAX));
        youngest + (oldest - youngest).mul_f64(share)
    }

    fn seat(self: &Arc<Self>, peer: &Peer) -> Result<Seat, Full> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Full::Port)?;
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        let open = instances.entry(peer.instance.clone()).or_default();
        if *open >= CONNECTIONS_PER_INSTANCE_MAX {
            return Err(Full::Instance);
        }
        *open += 1;
        Ok(Seat::Instance { port: Arc::clone(self), instance: peer.instance.clone(), _place: place })
    }

    fn tell_refusal(&self, remote: SocketAddr, peer: &Peer, why: &Full) {
        let now = Instant::now();
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connections) = refusals.left_out(now) {
            tracing::warn!(connections, "more were refused");
        }
        if refusals.may_tell(1, now) {
            tracing::warn!(%remote, instance = %peer.instance, "refused: {why}");
        }
    }

    async fn call(
        &self,
        request: Request<Incoming>,
        peer: Option<Peer>,
        remote: SocketAddr,
    ) -> Response<Body> {
        let mut request = request.map(Body::new);
        let now = self.tls.clock().now();
        match peer.filter(|peer| !peer.remaining(now).is_zero()) {
            Some(peer) => {
                request.extensions_mut().insert(peer);
            }
            None if request.uri().path() == OPEN => {}
            None => {
                return Status::unauthenticated(
                    "this needs a valid client certificate of the mesh: join first",
                )
                .into_http();
            }
        }
        request.extensions_mut().insert(Remote(remote));
        match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
