//! The side of a replica that does not lead: it reports to the one that does. And the change from one side to the other.

use super::{
    lead::Leader,
    protocol::{Client, News, Report, WithdrawRequest},
    report::{Own, Told, say_signal},
};
use crate::{
    clock::Clock,
    control::Picture,
    fleet::Fleet,
    join::{Drained, Rotation},
    lease::Lead,
    pods::Pods,
    signals::{Queue, Signals, Way},
    tls::Dialer,
    xds::Publisher,
};
use airlane_core::id::InstanceId;
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// How often the leader is told at least how proxies are. It believes for little longer that they still use the shares
/// that they use.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Acknowledgements come by the thousand: they are told together.
const GATHER: Duration = Duration::from_millis(20);

/// From a failed try to the next.
const RETRY: Duration = Duration::from_millis(200);

/// The longest that a leader may take to answer at all.
const ANSWER: Duration = Duration::from_secs(2);

/// A leader that is silent for this long, and for [`ANSWER`] after it was asked, is gone.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);

/// Reports that wait to be sent.
const REPORTS_QUEUED: usize = 64;

/// Keeps a replica on the side that the lead puts it: the leader has its books open, the others report.
pub(crate) struct Follower {
    /// Who leads.
    pub(crate) lead: Lead,
    /// What becomes true when this replica leads and its books are open.
    pub(crate) judges: watch::Sender<bool>,
    /// Reaches other replicas.
    pub(crate) dialer: Dialer,
    /// What is published.
    pub(crate) picture: watch::Receiver<Option<Picture>>,
    /// This replica's proxies.
    pub(crate) publisher: Publisher,
    /// All proxies.
    pub(crate) fleet: Fleet,
    /// What proxies report.
    pub(crate) signals: Signals,
    /// Who leaves.
    pub(crate) pods: Arc<Pods>,
    /// The way to the leader, while there is one.
    pub(crate) leader: watch::Sender<Option<Link>>,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
}

/// A connection with the replica that leads.
#[derive(Clone, Debug)]
pub(crate) struct Link(Client);

/// Why a connection with the leader ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("cannot connect")]
    Connect(#[source] tonic::transport::Error),
    #[error("it takes no reports")]
    Refused(#[source] Status),
    #[error("no answer within {ANSWER:?}")]
    Slow,
    #[error("the stream broke")]
    Broken(#[source] Status),
    #[error("it ended the stream")]
    Ended,
    #[error("signals came faster than they could be passed on")]
    Overflow,
}

impl Follower {
    /// Follows the lead until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.take_sides() => {}
        }
    }

    async fn take_sides(&self) {
        let (mut mine, mut elsewhere) = (self.lead.mine.clone(), self.lead.elsewhere.clone());
        // Nobody is expected before it can be told who there is.
        if self.picture.clone().wait_for(Option::is_some).await.is_err() {
            return;
        }
        loop {
            if *mine.borrow_and_update() {
                self.signals.turn(Way::Here);
                self.fleet.begin();
                self.judges.send_replace(true);
                let deposed = mine.wait_for(|mine| !*mine).await.is_err();
                self.judges.send_replace(false);
                self.fleet.end();
                self.signals.turn(Way::Nowhere);
                if deposed {
                    return;
                }
                continue;
            }
            let leader = *elsewhere.borrow_and_update();
            let changed = tokio::select! {
                changed = mine.changed() => changed,
                changed = elsewhere.changed() => changed,
                never = self.follow(leader) => match never {},
            };
            // What was reported last may not have arrived.
            self.leader.send_replace(None);
            self.signals.turn(Way::Nowhere);
            if changed.is_err() {
                return;
            }
        }
    }

    async fn follow(&self, leader: Option<SocketAddr>) -> Infallible {
        let Some(leader) = leader else { return std::future::pending().await };
        let mut told = String::new();
        loop {
            let Err(error) = self.report_to(leader).await;
            self.leader.send_replace(None);
            self.signals.turn(Way::Nowhere);
            let why = error.to_string();
            // One that has just died is tried until another one leads.
            if why != told {
                tracing::info!(%leader, error = &error as &dyn std::error::Error, "no connection with the leader");
                told = why;
            }
            sleep(RETRY).await;
        }
    }

    async fn report_to(&self, leader: SocketAddr) -> Result<Infallible, LinkError> {
        let channel =
            timeout(ANSWER, channel(self.dialer.clone(), leader)).await.map_err(|_| LinkError::Slow)??;
        let client = Client::new(channel);
        let (say, said) = mpsc::channel(REPORTS_QUEUED);
        let reports = timeout(ANSWER, client.report(ReceiverStream::new(said))).await;
        let mut words = reports.map_err(|_| LinkError::Slow)?.map_err(LinkError::Refused)?;
        let (pass_on, mut signals) = Queue::new();
        self.signals.turn(Way::Onward(pass_on));
        tracing::info!(%leader, "reports to the leader");
        self.leader.send_replace(Some(Link(client)));

        let mut told = Told::default();
        let mut picture = self.picture.clone();
        let mut movement = self.fleet.movement();
        let mut next = Instant::now();
        let mut any = false;
        loop {
            let news = tokio::select! {
                word = words.message() => {
                    let word = word.map_err(LinkError::Broken)?.ok_or(LinkError::Ended)?;
                    if let Ok(instance) = InstanceId::parse(&word.leaving) {
                        self.pods.leaving(&instance);
                    }
                    continue;
                }
                queued = signals.recv() => say_signal(queued.ok_or(LinkError::Overflow)?.signal),
                changed = picture.changed(), if !any => {
                    changed.map_err(|_| LinkError::Ended)?;
                    any = true;
                    next = next.min(Instant::now() + GATHER);
                    continue;
                }
                goes_on = movement.changed(), if !any => {
                    if !goes_on {
                        return Err(LinkError::Ended);
                    }
                    any = true;
                    next = next.min(Instant::now() + GATHER);
                    continue;
                }
                () = sleep_until(next) => {
                    any = false;
                    next = Instant::now() + TELL_EVERY;
                    picture.mark_unchanged();
                    movement.mark_unchanged();
                    match self.differences(&mut told) {
                        Some(standing) => standing,
                        None => continue,
                    }
                }
            };
            say.send(Report { news: Some(news) }).await.map_err(|_| LinkError::Ended)?;
        }
    }

    fn differences(&self, told: &mut Told) -> Option<News> {
        let refusals = self.publisher.refusals().borrow().clone();
        let proxies = self.publisher.connected();
        let picture = self.picture.borrow().clone()?;
        let own = Own {
            milestones: &picture.milestones,
            proxies: &proxies,
            refusals: &refusals,
            uptime: self.clock.uptime(),
            now: self.clock.now(),
        };
        Some(News::Standing(told.differences(&own)))
    }
}

/// A connection with a replica.
pub(super) async fn channel(dialer: Dialer, leader: SocketAddr) -> Result<Channel, LinkError> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let dialer = dialer.clone();
        async move { dialer.dial(leader).await }
    });
    // The connection is TLS already; the name is of no account.
    Endpoint::from_static("http://leader")
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(ANSWER)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(LinkError::Connect)
}

/// Takes instances out of rotation at every replica, through the one that leads.
pub(crate) struct Rotations {
    /// This replica's own way.
    pub(crate) own: Leader,
    /// The way to the leader, if it is another replica.
    pub(crate) leader: watch::Receiver<Option<Link>>,
}

#[tonic::async_trait]
impl Rotation for Rotations {
    async fn out_of_rotation(&self, instance: &InstanceId, wait: Duration) -> Drained {
        let leader = self.leader.borrow().clone();
        let Some(Link(leader)) = leader else { return self.own.withdraw_everywhere(instance, wait).await };
        let began = Instant::now();
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let request = WithdrawRequest { instance: instance.to_string(), wait_ms };
        match timeout(wait, leader.withdraw(request)).await {
            Ok(Ok(done)) => Drained { acknowledged: done.acknowledged, outstanding: done.outstanding },
            Ok(Err(status)) => {
                tracing::info!(%instance, %status, "the leader did not take an instance out of rotation");
                // The proxies of this replica at least; the others hear of it from the API server.
                self.own.withdraw_everywhere(instance, wait.saturating_sub(began.elapsed())).await
            }
            Err(_) => self.own.withdraw_everywhere(instance, Duration::ZERO).await,
        }
    }
}
