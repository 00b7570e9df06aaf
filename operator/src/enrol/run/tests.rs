use super::{super::ties::tests as policies, *};
use crate::{
    apply::kubernetes::recorder,
    clock::tests::HandClock,
    marks::INJECT,
    observe::kubernetes::{
        Seen,
        workload::{Crew, Pass, read_deployment},
    },
    scripted_api::{Call, client, refusal},
    xds::Publisher,
};
use http::Method;
use serde_json::{Value, json};
use std::{sync::Mutex, time::Instant};

/// A cluster of namespaces that ask for the mesh, each with these Deployments outside of it, and what is asked of its
/// API server.
struct Space {
    enrolment: Enrolment,
    clock: Arc<HandClock>,
    asked: Arc<Mutex<Vec<Call>>>,
    memories: Memories,
}

fn deployment(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "uid": name, "generation": 1 },
        "spec": { "replicas": 2 },
        "status": { "observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2 },
    })
}

impl Space {
    fn with(
        namespaces: &[&str],
        deployments: &[&str],
        answer: impl Fn(&Call) -> Option<(u16, Value)> + Send + Sync + 'static,
    ) -> Space {
        let asked: Arc<Mutex<Vec<Call>>> = Arc::default();
        let asking = Arc::clone(&asked);
        let api = client(move |call| {
            asking.lock().expect("not poisoned").push(call.clone());
            answer(&call)
        });
        let clock = Arc::new(HandClock::at("2026-01-01T00:00:00Z".parse().expect("a time")));
        let mut workloads = Workloads::default();
        let mut labels = NamespaceLabels::default();
        for namespace in namespaces {
            let asks = BTreeMap::from([(INJECT.to_owned(), "enabled".to_owned())]);
            labels.insert(Namespace::parse(namespace).expect("a name"), asks);
            workloads.passes.insert((*namespace).to_owned(), Pass { left_at: None });
            for name in deployments {
                let key = ((*namespace).to_owned(), (*name).to_owned());
                workloads.deployments.insert(key, read_deployment(&deployment(name)).expect("kept"));
                let workload = Workload { kind: Kind::Deployment, name: (*name).to_owned() };
                let crews = workloads.crews.entry((*namespace).to_owned()).or_default();
                crews.insert(workload, Crew { meshed: 0, bare: 2 });
            }
        }
        let mut observed = Observed::of(Seen::default());
        observed.workloads = watch::Sender::new(Some(Arc::new(workloads))).subscribe();
        observed.namespaces = watch::Sender::new(Arc::new(labels)).subscribe();
        let system = Namespace::parse("airlane-system").expect("a name");
        let enrolment = Enrolment {
            hands: Hands::new(api.clone(), system.clone()),
            observed,
            picture: watch::Sender::new(Some(policies::picture_of(policies::permissive()))).subscribe(),
            fleet: Fleet::new(Publisher::new(clock.clone()), clock.clone()),
            clock: clock.clone(),
            patience: Patience { progress: None, eject_after: SignedDuration::from_mins(10) },
            events: recorder(api, "me"),
            system,
        };
        Space { enrolment, clock, asked, memories: Memories::new() }
    }

    fn change(&mut self, change: impl FnOnce(&mut Workloads)) {
        let mut changed = self.enrolment.observed.workloads.borrow().as_deref().cloned().expect("known");
        change(&mut changed);
        self.enrolment.observed.workloads = watch::Sender::new(Some(Arc::new(changed))).subscribe();
    }

    /// Looks for so long, as often as it wants to, and gives how many pods were tried meanwhile.
    async fn tries_within(&mut self, time: Duration) -> usize {
        self.asked_within(time, &Method::POST, "/pods").await
    }

    /// The same, and gives how often that was asked meanwhile.
    async fn asked_within(&mut self, time: Duration, what: &Method, of: &str) -> usize {
        self.asked.lock().expect("not poisoned").clear();
        let end = self.enrolment.clock.uptime() + time;
        while self.enrolment.clock.uptime() < end {
            let wake = self.enrolment.look(&mut self.memories).await.expect("it is looked again");
            let pause = Duration::try_from(wake.duration_since(self.enrolment.clock.now()));
            self.clock.advance(pause.expect("to come").max(GATHER));
        }
        let asked = self.asked.lock().expect("not poisoned");
        asked.iter().filter(|(method, path, _)| method == what && path.ends_with(of)).count()
    }
}

fn refusing(call: &Call) -> Option<(u16, Value)> {
    let (method, path, _) = call;
    if *method == Method::POST && path.ends_with("/pods") {
        return refusal(403, "pods \"pay-abc12\" is forbidden: exceeded quota");
    }
    Some((200, deployment(path.rsplit('/').next().unwrap_or_default())))
}

const MINUTE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn what_is_refused_is_tried_more_and_more_seldom() {
    let mut space = Space::with(&["shop"], &["pay"], refusing);
    assert_eq!(space.tries_within(MINUTE / 2).await, 1);
    // After 1, 3, 7, 15, 31, 63 minutes, and then each hour.
    assert_eq!(space.tries_within(MINUTE * 60).await, 5);
    assert_eq!(space.tries_within(MINUTE * 60 * 10).await, 10);
}

#[tokio::test]
async fn what_changed_is_tried_at_once() {
    let mut space = Space::with(&["shop"], &["pay"], refusing);
    assert_eq!(space.tries_within(MINUTE * 60).await, 6);
    space.change(|all| all.deployments.values_mut().for_each(|it| it.generation += 1));
    assert_eq!(space.tries_within(MINUTE * 2).await, 2);
}

#[tokio::test]
async fn a_look_tries_a_few_pods_of_a_namespace_and_all_of_them_in_the_end() {
    let names: Vec<String> = (0..TRIALS_AT_ONCE * 2 + 1).map(|n| format!("pay-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut space = Space::with(&["shop"], &names, refusing);
    space.enrolment.look(&mut space.memories).await;
    assert_eq!(space.memories["shop"].trials.len(), TRIALS_AT_ONCE);
    space.tries_within(Duration::from_secs(30)).await;
    assert_eq!(space.memories["shop"].trials.len(), names.len());
}

#[tokio::test]
async fn a_namespace_that_is_slow_holds_up_no_other() {
    let slow = |call: &Call| if call.1.contains("/bank/") { None } else { refusing(call) };
    let mut space = Space::with(&["bank", "shop"], &["pay"], slow);
    let mut look = std::pin::pin!(space.enrolment.look(&mut space.memories));
    let asked = Arc::clone(&space.asked);
    let tried_in_shop = || {
        let asked = asked.lock().expect("not poisoned");
        asked.iter().any(|(method, path, _)| *method == Method::POST && path.contains("/shop/"))
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while !tried_in_shop() {
        assert!(Instant::now() < deadline, "nothing was tried in the other namespace");
        assert!(futures::poll!(look.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_right_that_cannot_be_had_is_asked_for_more_and_more_seldom() {
    let foreign = |call: &Call| {
        if call.1.ends_with("/rolebindings/airlane-restart") {
            return refusal(422, "roleRef: Invalid value: cannot change roleRef");
        }
        refusing(call)
    };
    let mut space = Space::with(&["shop"], &["pay"], foreign);
    space.change(|all| all.passes.clear());
    let binding = "/rolebindings/airlane-restart";
    // After 0, 2, 6, 14, 30, 62, 126, 254, 510 seconds, and then each five minutes.
    assert_eq!(space.asked_within(MINUTE * 10, &Method::PATCH, binding).await, 9);
    assert_eq!(space.asked_within(MINUTE * 60, &Method::PATCH, binding).await, 12);
}

#[tokio::test]
async fn people_are_told_once_what_takes_the_place_of_a_right() {
    let foreign = |call: &Call| {
        let is_right = call.1.ends_with("/rolebindings/airlane-restart");
        if is_right { refusal(422, "roleRef: cannot change roleRef") } else { Some((200, call.2.clone())) }
    };
    let mut space = Space::with(&["shop"], &["pay"], foreign);
    space.change(|all| all.passes.clear());
    for _ in 0..3 {
        space.enrolment.look(&mut space.memories).await;
        space.clock.advance(MINUTE);
    }
    let notes = || -> Vec<String> {
        let asked = space.asked.lock().expect("not poisoned");
        let told = asked.iter().filter(|(_, path, _)| path.contains("/events"));
        told.filter_map(|(.., event)| event["note"].as_str().map(str::to_owned)).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while notes().is_empty() {
        assert!(Instant::now() < deadline, "nobody was told");
        tokio::task::yield_now().await;
    }
    let mend = "RoleBinding airlane-restart binds another role, which cannot be changed: delete it, and the operator makes its own";
    assert_eq!(notes(), [mend]);
}
