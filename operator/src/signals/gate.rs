//! The gate before a receiver of reports: what one instance can make the operator hold at a time.
//!
//! A report that is all structure and no content grows a hundredfold when it is read, so few are read at a time; and an
//! instance has few on their way, whatever its connections and streams allow.

use crate::{tls::Peer, turns::Turns};
use airlane_core::id::InstanceId;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{sync::Semaphore, time::timeout};
use tonic::{Status, body::Body, server::NamedService};
use tower::{Service, ServiceExt as _};

/// The longest report, its framing included: the totals of some ten thousand endpoints.
const REPORT_BYTES_MAX: usize = 4 << 20;
/// How long a report waits for its turn: the next one is as good, and each that waits is held in part.
const TURN_WITHIN: Duration = Duration::from_secs(2);
/// How long a report may be on its way once it has begun.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
/// Reports that are on their way at a time. A proxy sends one each second, in milliseconds.
const REPORTS_MAX: usize = 32;
/// Of them, those of one instance: one for each second, and the one before it.
const REPORTS_PER_INSTANCE_MAX: usize = 2;
/// Reports that are read at a time.
const READINGS_MAX: usize = 2;

/// A service whose calls have one message each, behind a gate. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Gate<S> {
    receiver: S,
    turns: Arc<Turns<InstanceId>>,
    readings: Arc<Semaphore>,
}

impl<S> Gate<S> {
    /// A gate before this receiver.
    pub(crate) fn before(receiver: S) -> Gate<S> {
        Gate {
            receiver,
            turns: Arc::new(Turns::new(REPORTS_MAX, REPORTS_PER_INSTANCE_MAX)),
            readings: Arc::new(Semaphore::new(READINGS_MAX)),
        }
    }
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Gate { receiver, turns, readings } = self.clone();
        Box::pin(async move {
            let Some(peer) = request.extensions().get::<Peer>() else {
                return Ok(Status::unauthenticated("this needs a client certificate").into_http());
            };
            let Ok(_turn) = timeout(TURN_WITHIN, turns.take(peer.instance.clone())).await else {
                return Ok(Status::resource_exhausted("too many reports at a time").into_http());
            };
            let (head, body) = request.into_parts();
            let arrived = timeout(ARRIVES_WITHIN, Limited::new(body, REPORT_BYTES_MAX).collect());
            let report: Bytes = match arrived.await {
                Ok(Ok(report)) => report.to_bytes(),
                Ok(Err(_)) => return Ok(Status::resource_exhausted("the report is too long").into_http()),
                Err(_) => return Ok(Status::deadline_exceeded("the report took too long").into_http()),
            };
            // Nobody closes the semaphore.
            let _reading = readings.acquire().await;
            receiver.oneshot(Request::from_parts(head, Body::new(Full::new(report)))).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use tonic::Code;

    fn report(from: Option<&str>, body: Body) -> Request<Body> {
        let mut request = Request::new(body);
        if let Some(instance) = from {
            let identity = crate::serve::tests::identity("shop", "pay");
            let instance = InstanceId::parse(instance).expect("a name");
            let not_after = jiff::Timestamp::MAX;
            request.extensions_mut().insert(Peer { identity, instance, not_after });
        }
        request
    }

    /// A gate before a receiver that takes everything.
    fn gate() -> Gate<
        impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    > {
        Gate::before(tower::service_fn(async |_: Request<Body>| Ok(Response::new(Body::empty()))))
    }

    async fn code(
        gate: impl Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
        request: Request<Body>,
    ) -> Code {
        let response = gate.oneshot(request).await.unwrap_or_else(|never| match never {});
        Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
    }

    fn never() -> Body {
        Body::new(http_body_util::StreamBody::new(futures::stream::pending::<Result<_, Status>>()))
    }

    #[tokio::test]
    async fn one_instance_has_few_reports_at_a_time() {
        let gate = gate();
        let send = |from: &str, body| code(gate.clone(), report(Some(from), body)).boxed();
        let mut slow: Vec<_> = (0..REPORTS_PER_INSTANCE_MAX).map(|_| send("pay-1", never())).collect();
        for sending in &mut slow {
            assert_eq!(sending.now_or_never(), None);
        }
        assert_eq!(send("pay-1", Body::empty()).now_or_never(), None, "its others come first");
        assert_eq!(
            send("cart-1", Body::empty()).now_or_never(),
            Some(Code::Ok),
            "nobody else waits for them"
        );
        drop(slow);
        assert_eq!(send("pay-1", Body::empty()).now_or_never(), Some(Code::Ok));
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_does_not_wait_for_ever() {
        let gate = gate();
        let send = |body| code(gate.clone(), report(Some("pay-1"), body)).boxed();
        let mut slow: Vec<_> = (0..REPORTS_PER_INSTANCE_MAX).map(|_| send(never())).collect();
        for sending in &mut slow {
            assert_eq!(sending.now_or_never(), None);
        }
        assert_eq!(send(Body::empty()).await, Code::ResourceExhausted);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_long_or_too_slow_or_nobodys_is_refused() {
        let check = async |from, body, expected| assert_eq!(code(gate(), report(from, body)).await, expected);
        let long = Bytes::from(vec![0; REPORT_BYTES_MAX + 1]);
        check(Some("pay-1"), Body::new(Full::new(long)), Code::ResourceExhausted).await;
        check(Some("pay-1"), never(), Code::DeadlineExceeded).await;
        check(None, Body::empty(), Code::Unauthenticated).await;
    }
}
