use super::*;
use crate::{
    apply::Statuses, clock::tests::HandClock, milestone, observe::declared::Declared, xds::Publisher,
};
use airlane_core::{
    compile::compile,
    id::{Name, Namespace, ObjectKind, ServiceId, TrustDomain, WorkloadRevision},
    rollout::{Asked, Rollout, StepPlan},
    slo::Coin,
    world::{Health, Instance, InstancePort, Interception, Port, Protocol, Service, World},
};

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}
fn service() -> ServiceId {
    ServiceId { namespace: Namespace::parse("shop").expect("a name"), name: name("pay") }
}
fn now() -> Timestamp {
    Timestamp::from_second(1_000).expect("in range")
}

/// A canary under way with this share.
pub(crate) fn canary(share: u32) -> Canary {
    let revision = |text| Revision::parse(text).expect("a name");
    let plan = Rollout {
        service: service(),
        stable: revision("v1"),
        canary: revision("v2"),
        steps: vec![StepPlan { share, at_least: None }, StepPlan { share: FULL_SHARE, at_least: None }],
        objectives: Vec::new(),
        false_rollback: 0.001,
        wrong_promotion: 0.01,
        suspend: false,
        held: None,
    };
    let progress = Progress { phase: Phase::Progressing, share, ..Progress::new(&plan, now()) };
    let id = ObjectId { kind: ObjectKind::Canary, namespace: service().namespace, name: name("pay") };
    Canary { id, generation: 1, age_rank: 0, plan, progress: Some(progress), asked: None }
}

/// A service whose v1 and v2 have one copy each, with these healths.
pub(crate) fn picture(canary: &Canary, healths: [Health; 2]) -> Picture {
    let ServiceId { namespace, name: pay } = service();
    let instances = ["v1", "v2"].into_iter().zip(healths).enumerate().map(|(i, (revision, health))| {
        let workload = WorkloadRevision {
            namespace: namespace.clone(),
            workload: pay.clone(),
            revision: Revision::parse(revision).expect("a name"),
        };
        let id = InstanceId::parse(&format!("pay-{revision}-abcd")).expect("a name");
        let port = 9_000 + u16::try_from(i).expect("small");
        let instance = Instance {
            id: id.clone(),
            workload,
            service_account: pay.clone().into(),
            services: BTreeSet::from([service()]),
            address: [127, 0, 0, 1].into(),
            ipv6: false,
            ports: vec![InstancePort {
                service: 80,
                app: 8_080,
                mesh: port,
                protocol: Protocol::Http,
                of: None,
                past_proxy: false,
            }],
            outbound_port: 15_001,
            interception: Interception::Environment,
            stops_within: std::time::Duration::ZERO,
            health,
        };
        (id, Arc::new(instance))
    });
    let ports = vec![Port { number: 80, target: 80, protocol: Protocol::Http }];
    let world = World {
        cluster_domain: None,
        trust_domain: TrustDomain::parse("airlane.local").expect("a name"),
        system_namespace: Namespace::parse("airlane-system").expect("a name"),
        services: BTreeMap::from([(
            service(),
            Arc::new(Service { id: service(), ports, addresses: BTreeSet::new() }),
        )]),
        instances: instances.collect(),
        policies: BTreeMap::new(),
        canaries: BTreeMap::from([(canary.id.clone(), Arc::new(canary.clone()))]),
    };
    let compiled = compile(&world);
    let milestones = milestone::of(&Declared::default(), &world, &compiled.mesh, "", 7, None);
    Picture {
        compiled: Arc::new(compiled),
        world: Arc::new(world),
        declared: Arc::default(),
        epoch: 7,
        milestones: Arc::new(milestones),
        catalog: Arc::default(),
    }
}

/// The coin that the judge is given, and whether the planned share is published, at these healths.
fn check(healths: [Health; 2], coin: f64, planned: bool) {
    let canary = canary(1_000);
    let picture = picture(&canary, healths);
    let mut trial = Trial::resume(&canary, BTreeSet::new(), now());
    let site = Site::of(&canary, &picture);
    trial.note_coin(&canary, &site);
    let caller = InstanceId::parse("front-v1-abcd").expect("a name");
    let cluster = ClusterName {
        port: airlane_core::id::ServicePort { service: service(), port: 80 },
        revision: Some(canary.plan.canary.clone()),
    };
    let failure = Failure { cluster, endpoint: None, at: now() };
    let around = Surroundings {
        stood_in: None,
        endpoints: &site.endpoints,
        canary_endpoints: site.canary_ready,
        route_timeout: site.route_timeout,
        instances: &picture.world.instances,
    };
    let evidence = trial.gatherer.gather(&[(caller, failure)], &[], &around, now());
    assert_eq!(evidence.callers[0].coin, Coin { share: coin, settled: false }, "{healths:?}");
    let milestone = Milestone::shares(&canary.id, milestone::planned(&canary).expect("a share"));
    assert_eq!(picture.milestones.contains_key(&milestone), planned, "{healths:?}");
}

#[test]
fn the_coin_is_the_one_that_is_thrown() {
    check([Health::Healthy, Health::Healthy], 0.1, true);
    check([Health::Healthy, Health::Unhealthy], 0.0, false);
    check([Health::Unhealthy, Health::Healthy], 1.0, false);
    check([Health::Unhealthy, Health::Unhealthy], 0.1, true);
}

#[test]
fn who_stands_in_for_stable_is_not_stable() {
    let mut mistyped = canary(0);
    mistyped.plan.stable = Revision::parse("v7").expect("a name");
    let site = Site::of(&mistyped, &picture(&mistyped, [Health::Healthy; 2]));
    assert_eq!((site.stable_ready, site.canary_ready), (0, 1));
}

#[test]
fn a_status_is_written_for_its_reader_and_for_the_judge() {
    let canary = canary(1_000);
    let trial = Trial::resume(&canary, BTreeSet::new(), now());
    let mut next = trial.progress.clone();
    let after = |s| now() + SignedDuration::from_secs(s);
    assert!(!trial.is_due(&next, after(9)));
    assert!(trial.is_due(&next, after(10)));
    next.because = "another reason".to_owned();
    assert!(!trial.is_due(&next, after(1)));
    assert!(trial.is_due(&next, after(2)));
    let ended = Progress { phase: Phase::Succeeded, ..trial.progress.clone() };
    assert!(!trial.is_due(&ended, after(1_000)), "nothing happens any more");
}

/// Asks to take every canary back, tells whose steps it remembers, and never comes to the end with `cart`'s.
struct Slow(tokio::sync::mpsc::UnboundedSender<ObjectId>, Arc<Statuses>);

#[tonic::async_trait]
impl Memory for Slow {
    fn statuses(&self) -> Arc<Statuses> {
        self.1.clone()
    }
    async fn step(
        &self,
        canary: &Canary,
        _: Option<&Progress>,
        _: Progress,
        _: Option<Asked>,
    ) -> Result<(), NotRemembered> {
        if canary.id.name == name("cart") {
            std::future::pending::<()>().await;
        }
        self.0.send(canary.id.clone()).map_err(|error| NotRemembered::Failed(error.into()))
    }
    async fn forget(&self, _: &ObjectId) -> Result<(), NotRemembered> {
        Ok(())
    }
}

#[test]
fn only_what_was_taken_back_is_remembered_without_its_object() {
    let remembered = |phase| {
        let progress = Progress { phase, ..canary(0).progress.expect("under way") };
        was_taken_back(&Status { progress: Some(progress), asked: None })
    };
    assert!(remembered(Phase::RolledBack) && remembered(Phase::RollingBack));
    assert!(!remembered(Phase::Progressing) && !remembered(Phase::Succeeded));
    assert!(!was_taken_back(&Status::default()));
}

#[tokio::test]
async fn a_slow_write_holds_up_no_other_rollout() {
    let pay = canary(1_000);
    let mut cart = pay.clone();
    cart.id.name = name("cart");
    cart.plan.service.name = name("cart");
    let picture = picture(&pay, [Health::Healthy; 2]);
    let mut world = World::clone(&picture.world);
    world.canaries.insert(cart.id.clone(), Arc::new(cart.clone()));
    let asked = |canary: &Canary| Status { progress: canary.progress.clone(), asked: Some(Asked::Abort) };
    let statuses = [&cart, &pay].map(|canary| (canary.id.clone(), asked(canary)));
    let (told, mut steps) = tokio::sync::mpsc::unbounded_channel();
    let clock: Arc<dyn Clock> = Arc::new(HandClock::at(now()));
    let (_picture, picture) = watch::channel(Some(Picture { world: Arc::new(world), ..picture }));
    let rollouts = Rollouts {
        picture,
        signals: Signals::new(watch::Sender::default().subscribe()),
        fleet: Fleet::new(Publisher::new(clock.clone()), clock.clone()),
        memory: Arc::new(Slow(told, Arc::new(statuses.into()))),
        clock,
    };
    let running = tokio::spawn(rollouts.run(CancellationToken::new()));
    let step = tokio::time::timeout(std::time::Duration::from_secs(10), steps.recv()).await;
    assert_eq!(step.expect("in time"), Some(pay.id));
    running.abort();
}
