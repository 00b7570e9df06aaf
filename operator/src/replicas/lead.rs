//! The leader's side: takes what other replicas report, and takes instances out of rotation everywhere.

use super::{
    protocol::{News, Replicas, Report, Server, WithdrawRequest, WithdrawResponse, Word},
    report::{self, Layers, Unreadable},
};
use crate::{
    clock::Clock,
    fleet::Fleet,
    join::{Drained, Rotation as _},
    lease::Lead,
    pods::Pods,
    readiness::Leaving,
    signals::{Signal, Signals},
};
use airlane_core::id::{Identity, InstanceId};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{broadcast, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// The gRPC service, for replicas alone.
pub(crate) type Service = Server<Leader>;

/// A replica that says nothing for so long is gone: it reports twice a second.
const SILENT: Duration = Duration::from_secs(5);

/// Words that wait for a replica.
const WORDS_QUEUED: usize = 64;

/// The longest that a withdrawal may wait.
const WITHDRAW_MAX: Duration = Duration::from_secs(60);

/// What the leader works with.
#[derive(Clone)]
pub(crate) struct Leader {
    /// Whether this replica leads.
    pub(crate) lead: Lead,
    /// Where the others' proxies are entered.
    pub(crate) fleet: Fleet,
    /// Where their signals are entered.
    pub(crate) signals: Signals,
    /// Who leaves.
    pub(crate) pods: Arc<Pods>,
    /// Waits for acknowledgements.
    pub(crate) leaving: Leaving,
    /// Tells every replica who leaves.
    pub(crate) words: broadcast::Sender<InstanceId>,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
    /// Ends the streams.
    pub(crate) shutdown: CancellationToken,
}

/// Why a stream of reports ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("this replica does not lead any more")]
    Deposed,
    #[error("shutting down")]
    ShuttingDown,
    #[error("nothing was said for {} s", SILENT.as_secs())]
    Silent,
    #[error("the replica left")]
    Left,
    #[error("the stream broke")]
    Broken(#[source] Status),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl From<&Ended> for Status {
    fn from(ended: &Ended) -> Status {
        let text = ended.to_string();
        match ended {
            Ended::Deposed | Ended::ShuttingDown => Status::unavailable(text),
            Ended::Silent => Status::deadline_exceeded(text),
            Ended::Left | Ended::Broken(_) => Status::cancelled(text),
            Ended::Unreadable(_) => Status::invalid_argument(text),
        }
    }
}

impl Leader {
    /// The service; `operator` is the identity that every replica has.
    pub(crate) fn service(self, operator: Identity) -> Service {
        Server::new(Arc::new(self), operator)
    }

    /// Takes an instance out of rotation at this replica and at those that report to it.
    pub(crate) async fn withdraw_everywhere(&self, instance: &InstanceId, wait: Duration) -> Drained {
        // Nobody listens where there is no other replica.
        let _ = self.words.send(instance.clone());
        self.leaving.out_of_rotation(instance, wait).await
    }

    /// Reads one replica's reports to their end.
    async fn read(self, mut reports: Streaming<Report>, words: mpsc::Sender<Result<Word, Status>>) {
        let stream = self.fleet.open();
        tracing::info!(stream, "another replica reports");
        let mut callers = BTreeSet::new();
        let mut leaving = self.words.subscribe();
        let mut lead = self.lead.mine.clone();
        let mut layers = Layers::default();
        let ended = loop {
            let message = tokio::select! {
                () = self.shutdown.cancelled() => break Ended::ShuttingDown,
                _ = lead.wait_for(|mine| !*mine) => break Ended::Deposed,
                // One that lags so far is told the newest, and the others by the API server.
                instance = leaving.recv() => {
                    let leaving = instance.map(|instance| instance.to_string()).unwrap_or_default();
                    let _ = words.try_send(Ok(Word { leaving }));
                    continue;
                }
                message = timeout(SILENT, reports.message()) => message,
            };
            match message {
                Err(_) => break Ended::Silent,
                Ok(Err(status)) => break Ended::Broken(status),
                Ok(Ok(None)) => break Ended::Left,
                Ok(Ok(Some(report))) => {
                    if let Err(unreadable) = self.enter(stream, report, &mut layers, &mut callers) {
                        break unreadable.into();
                    }
                }
            }
        };
        tracing::info!(stream, why = &ended as &dyn std::error::Error, "another replica reports no more");
        let farewell = Status::from(&ended);
        self.fleet.close(stream);
        let now = self.clock.now();
        for caller in callers {
            self.signals.take(Signal::LogBroke(caller), now);
        }
        let _ = words.try_send(Err(farewell));
    }

    fn enter(
        &self,
        stream: u64,
        report: Report,
        layers: &mut Layers,
        callers: &mut BTreeSet<InstanceId>,
    ) -> Result<(), Unreadable> {
        let now = self.clock.now();
        let signal = match report.news {
            // Of a newer version than this one.
            None => return Ok(()),
            Some(News::Standing(standing)) => {
                let mut read = Ok(());
                let uptime = self.clock.uptime();
                self.fleet.report(stream, |replica| read = layers.apply(standing, replica, uptime, now));
                return read;
            }
            Some(News::Window(window)) => report::read_window(window)?,
            Some(News::Failures(failures)) => report::read_failures(&failures, now)?,
            Some(News::LogBroke(caller)) => report::read_log_broke(&caller)?,
        };
        let (Signal::Window(caller, _) | Signal::Failures(caller, _) | Signal::LogBroke(caller)) = &signal;
        if !callers.contains(caller) {
            callers.insert(caller.clone());
        }
        self.signals.take(signal, now);
        Ok(())
    }
}

#[tonic::async_trait]
impl Replicas for Leader {
    type Words = ReceiverStream<Result<Word, Status>>;

    async fn report(&self, reports: Request<Streaming<Report>>) -> Result<Response<Self::Words>, Status> {
        let (words, heard) = mpsc::channel(WORDS_QUEUED);
        tokio::spawn(self.clone().read(reports.into_inner(), words));
        Ok(Response::new(ReceiverStream::new(heard)))
    }

    async fn withdraw(
        &self,
        request: Request<WithdrawRequest>,
    ) -> Result<Response<WithdrawResponse>, Status> {
        let WithdrawRequest { instance, wait_ms } = request.into_inner();
        let instance = InstanceId::parse(&instance)
            .map_err(|error| Status::invalid_argument(format!("instance: {error}")))?;
        let wait = Duration::from_millis(wait_ms.into()).min(WITHDRAW_MAX);
        self.pods.leaving(&instance);
        let Drained { acknowledged, outstanding } = self.withdraw_everywhere(&instance, wait).await;
        Ok(Response::new(WithdrawResponse { acknowledged, outstanding }))
    }

    fn leads(&self) -> bool {
        *self.lead.mine.borrow()
    }
}
