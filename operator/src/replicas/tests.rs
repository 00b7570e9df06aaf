//! Replicas over real connections, and those who would like to be one.

use super::{
    follow::channel,
    lead::Leader,
    protocol::{Client, News, Report, Standing, Window, WithdrawRequest},
    report::{Layers, Own, Told},
};
use crate::{
    clock::{Clock, tests::HandClock},
    fleet::{Fleet, Replica},
    lease::Lead,
    milestone::{Milestone, Milestones},
    pods::Pods,
    readiness::Leaving,
    rollouts::tests::{canary, picture},
    serve::tests::{Running, credential, identity, start},
    signals::Signals,
    tls::DialError,
    xds::{ProxyShares, ProxyState, Publisher, Refusals, Shares},
};
use airlane_core::{
    id::{ClusterName, InstanceId},
    world::Health,
};
use airlane_envoy::catalog::Version;
use jiff::Timestamp;
use proptest::prelude::*;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{broadcast, mpsc, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(20);

/// A replica that serves others as its lead allows, about a mesh with a canary of `80|pay|shop`.
struct Serving {
    running: Running,
    leads: watch::Sender<bool>,
    leader: Leader,
    milestone: Milestone,
}

fn serving(leads: bool) -> Serving {
    let leads = watch::Sender::new(leads);
    let canary = canary(1_000);
    let picture = picture(&canary, [Health::Healthy; 2]);
    let milestone = picture.milestones.keys().next().expect("the canary's shares").clone();
    let cluster: ClusterName = "80|pay|shop|v2".parse().expect("a cluster");
    let mut leader = None;
    let running = start(|ca, clock| {
        let time: Arc<dyn Clock> = clock.clone();
        let fleet = Fleet::new(Publisher::new(time.clone()), time.clone());
        let (elsewhere, published) = (watch::Sender::new(None), Arc::new(HashSet::from([cluster])));
        let made = Leader {
            lead: Lead { mine: leads.subscribe(), held: leads.subscribe(), elsewhere: elsewhere.subscribe() },
            fleet: fleet.clone(),
            signals: Signals::new(watch::Sender::new(published).subscribe()),
            pods: Arc::new(Pods::new(watch::Sender::default().subscribe(), time.clone())),
            leaving: Leaving { picture: watch::Sender::new(Some(picture)).subscribe(), fleet },
            words: broadcast::Sender::new(8),
            clock: time,
            shutdown: CancellationToken::new(),
        };
        leader = Some(made.clone());
        tonic::service::Routes::new(made.service(ca.operator().clone()))
    });
    Serving { running, leads, leader: leader.expect("made"), milestone }
}

impl Serving {
    /// A client with a certificate for this identity.
    fn client(&self, namespace: &str, account: &str) -> Client {
        let Running { ca, clock, .. } = &self.running;
        let shown = credential(ca, &identity(namespace, account), "airlane", clock.now());
        Client::new(self.running.client(Some(shown)))
    }

    async fn replica(&self) -> Client {
        let dialer = self.running.tls.dialer();
        Client::new(channel(dialer, self.running.address).await.expect("connected"))
    }

    async fn fleet_says(&self, what: &str, holds: impl Fn(&Fleet) -> bool) {
        let mut movement = self.leader.fleet.movement();
        let holds = async {
            while !holds(&self.leader.fleet) {
                assert!(movement.changed().await);
            }
        };
        timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("{what}"));
    }
}

fn says(news: News) -> Report {
    Report { news: Some(news) }
}

/// What a replica tells whose only proxy has come so far; the milestone holds there since its epoch 40.
fn one_proxy(milestone: &Milestone, acked_epoch: u64) -> Standing {
    let proxies = [ProxyState {
        instance: InstanceId::parse("front-abcd").expect("a name"),
        connected_at: Timestamp::UNIX_EPOCH,
        acked_epoch: Some(acked_epoch),
        rejections: 0,
        shares: None,
    }];
    let own = Own {
        milestones: &BTreeMap::from([(milestone.clone(), 40)]),
        proxies: &proxies,
        refusals: &Arc::default(),
        uptime: Duration::ZERO,
        now: Timestamp::UNIX_EPOCH,
    };
    Told::default().differences(&own)
}

#[tokio::test]
async fn a_workload_is_no_replica() {
    let serving = serving(true);
    // Not even one that is called like the operator somewhere else, or lives beside it.
    for (namespace, account) in [("shop", "front"), ("shop", "airlane"), ("airlane-system", "front")] {
        let client = serving.client(namespace, account);
        let reports = tokio_stream::iter([says(News::Standing(one_proxy(&serving.milestone, 40)))]);
        let refused = client.report(reports).await.err().map(|status| status.code());
        assert_eq!(refused, Some(Code::PermissionDenied), "{namespace}/{account} reports");
        let withdraw = WithdrawRequest { instance: "pay-v1-abcd".to_owned(), wait_ms: 1 };
        let refused = client.withdraw(withdraw).await.err().map(|status| status.code());
        assert_eq!(refused, Some(Code::PermissionDenied), "{namespace}/{account} withdraws");
    }
    assert_eq!(serving.leader.fleet.connected(), 0, "nothing of it counts");
}

#[tokio::test]
async fn who_does_not_lead_takes_no_reports_and_who_leads_no_more_ends_them() {
    let serving = serving(false);
    let refused = serving.replica().await.report(tokio_stream::empty()).await.err();
    assert_eq!(refused.map(|status| status.code()), Some(Code::Unavailable));

    serving.leads.send_replace(true);
    let (say, said) = mpsc::channel(8);
    let mut words = serving.replica().await.report(ReceiverStream::new(said)).await.expect("taken");
    say.send(says(News::Standing(one_proxy(&serving.milestone, 41)))).await.expect("open");
    serving.fleet_says("the proxy is known", |fleet| fleet.connected() == 1).await;
    serving.leads.send_replace(false);
    let farewell = timeout(PATIENCE, words.message()).await.expect("in time").expect_err("an end");
    assert_eq!(farewell.code(), Code::Unavailable);
    serving.fleet_says("its proxies are forgotten", |fleet| fleet.connected() == 0).await;
}

#[tokio::test]
async fn what_a_replica_reports_counts_and_stops_with_its_stream() {
    let serving = serving(true);
    let picture = serving.leader.leaving.picture.borrow().clone().expect("a picture");
    let (say, said) = mpsc::channel(8);
    let mut words = serving.replica().await.report(ReceiverStream::new(said)).await.expect("taken");
    let reached = |fleet: &Fleet| fleet.acks(&picture, &serving.milestone).acknowledged.len() == 1;

    say.send(says(News::Standing(one_proxy(&serving.milestone, 39)))).await.expect("open");
    serving.fleet_says("the proxy is known", |fleet| fleet.connected() == 1).await;
    assert!(!reached(&serving.leader.fleet), "it is behind");
    say.send(says(News::Standing(one_proxy(&serving.milestone, 40)))).await.expect("open");
    serving.fleet_says("it has come so far", reached).await;

    let window = Window { caller: "front-abcd".to_owned(), start_ns: 1, end_ns: 2, ..Window::default() };
    say.send(says(News::Window(window))).await.expect("open");
    say.send(says(News::LogBroke("other-abcd".to_owned()))).await.expect("open");

    // Words go the other way on the same stream.
    serving.leader.words.send(InstanceId::parse("pay-v1-abcd").expect("a name")).expect("heard");
    let word = timeout(PATIENCE, words.message()).await.expect("in time").expect("open").expect("a word");
    assert_eq!(word.leaving, "pay-v1-abcd");

    say.send(says(News::LogBroke("../..".to_owned()))).await.expect("open");
    let farewell = timeout(PATIENCE, words.message()).await.expect("in time").expect_err("an end");
    assert_eq!(farewell.code(), Code::InvalidArgument, "no replica of ours says that");
    serving.fleet_says("it does not count any more", |fleet| fleet.connected() == 0).await;
    let heard = InstanceId::parse("front-abcd").expect("a name");
    assert!(serving.leader.signals.with(|intake| intake.last_heard_at(&heard)).is_some());
}

/// Since when milestones hold; and of each proxy the epoch it has acknowledged, the version of its shares, and for how
/// many seconds it certainly uses them.
type Moment = (BTreeMap<u8, u64>, BTreeMap<u8, (u64, u8, u64)>);

/// What a replica may know of its proxies at one moment.
fn standings() -> impl Strategy<Value = Moment> {
    let milestones = prop::collection::btree_map(0_u8..6, 0_u64..4, 0..6);
    let proxies = prop::collection::btree_map(0_u8..6, (0_u64..4, 0_u8..24, 0_u64..3), 0..6);
    (milestones, proxies)
}

proptest! {
    #[test]
    fn differences_add_up_to_what_is(moments in prop::collection::vec(standings(), 1..40)) {
        let clock = HandClock::at(Timestamp::UNIX_EPOCH);
        let mut told = Told::default();
        let mut layers = Layers::default();
        let mut replica = Replica::default();
        let instance = |i: u8| InstanceId::parse(&format!("p-{i}")).expect("a name");
        let milestone = |i: u8| match i % 2 {
            0 => Milestone::Withdrawn(instance(i)),
            _ => Milestone::Object(canary(1_000).id, format!("uid-{i}"), i.into()),
        };
        let shares = |version: u8| -> Shares { BTreeMap::from([("pay".to_owned(), version.into())]) };
        for (milestones, proxies) in moments {
            clock.advance(Duration::from_millis(500));
            let milestones: Milestones =
                milestones.into_iter().map(|(i, epoch)| (milestone(i), epoch)).collect();
            let states: Vec<ProxyState> = proxies
                .iter()
                .map(|(i, (acked_epoch, version, lasts))| ProxyState {
                    instance: instance(*i),
                    connected_at: Timestamp::UNIX_EPOCH,
                    acked_epoch: Some(*acked_epoch),
                    rejections: 0,
                    shares: Some(ProxyShares {
                        version: Version((*version).into()),
                        shares: Arc::new(shares(*version)),
                        acked_at: Timestamp::UNIX_EPOCH,
                        certain_until: clock.uptime() + Duration::from_secs(*lasts),
                    }),
                })
                .collect();
            let refusals: Arc<Refusals> = Arc::default();
            let own = Own {
                milestones: &milestones,
                proxies: &states,
                refusals: &refusals,
                uptime: clock.uptime(),
                now: clock.now(),
            };
            let standing = told.differences(&own);
            layers.apply(standing, &mut replica, clock.uptime(), clock.now()).expect("readable");
            prop_assert_eq!(&*replica.milestones, &milestones);
            prop_assert_eq!(replica.proxies.len(), states.len());
            for (i, (acked_epoch, version, lasts)) in proxies {
                let known = &replica.proxies[&instance(i)];
                prop_assert_eq!(known.acked_epoch, Some(acked_epoch));
                let expected = (lasts > 0).then(|| (Arc::new(shares(version)), Timestamp::UNIX_EPOCH));
                prop_assert_eq!(&known.shares, &expected);
                prop_assert!(lasts == 0 || replica.certain_until <= clock.uptime() + Duration::from_secs(lasts));
            }
        }
    }
}

#[tokio::test]
async fn a_workload_in_the_leaders_place_is_told_nothing() {
    let serving = serving(true);
    let Running { ca, clock, tls, .. } = &serving.running;
    // With a certificate of the mesh, and even under the operator's name.
    let (chain, key) = credential(ca, &identity("shop", "front"), "airlane", clock.now());
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        TlsAcceptor::from(Arc::new(config)).accept(stream).await
    });
    let refused = timeout(PATIENCE, tls.dialer().dial(address)).await.expect("in time");
    assert!(matches!(refused, Err(DialError::NotTheOperator)));
}
