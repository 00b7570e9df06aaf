use super::*;
use crate::marks::{LAST_RESTART, RESTARTED_AT};
use airlane_core::id::{Name, Namespace, ObjectId, ObjectKind};

const NOW: &str = "2026-01-01T00:10:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

const COMPLETE: Rollout = Rollout::Complete { since: None };

/// A Deployment of two pods whose rollout is complete.
pub(crate) fn deployment() -> Deployment {
    Deployment {
        uid: "u".to_owned(),
        generation: 1,
        annotations: BTreeMap::new(),
        on_template: BTreeMap::new(),
        inject: None,
        replicas: 2,
        max_unavailable: Some(0),
        paused: false,
        progress_deadline_s: 600,
        rollout: COMPLETE,
    }
}

/// A Deployment of which this restart is remembered, and whose template is as it left it.
fn restarted(record: &Record) -> Deployment {
    let text = serde_json::to_string(record).expect("JSON");
    Deployment {
        annotations: BTreeMap::from([(LAST_RESTART.to_owned(), text)]),
        on_template: record.after.iter().map(|at| (RESTARTED_AT.to_owned(), at.clone())).collect(),
        ..deployment()
    }
}

fn joining(begun_at: &str) -> Record {
    Record::begin(Way::Join, None, at(begun_at))
}

fn failed(record: Record, when: &str) -> Record {
    Record { failed: Some(Failure { at: at(when), because: "why".to_owned() }), ..record }
}

fn tie(why: Why) -> Tie {
    let by = ObjectId {
        kind: ObjectKind::MeshPolicy,
        namespace: Namespace::parse("shop").expect("a name"),
        name: Name::parse("strict").expect("a name"),
    };
    Tie { by, why }
}

fn canary() -> ObjectId {
    ObjectId {
        kind: ObjectKind::Canary,
        namespace: Namespace::parse("shop").expect("a name"),
        name: Name::parse("cart").expect("a name"),
    }
}

/// A namespace, to be changed by each test.
struct Space {
    asks: bool,
    manual: bool,
    pass: Option<Pass>,
    deployments: BTreeMap<&'static str, Deployment>,
    crews: BTreeMap<Workload, Crew>,
    ties: BTreeMap<Workload, BTreeSet<Tie>>,
    judged: BTreeMap<Workload, ObjectId>,
    acknowledged: bool,
    trials: BTreeMap<&'static str, Trial>,
    progress: Option<SignedDuration>,
}

fn workload(kind: Kind, name: &str) -> Workload {
    Workload { kind, name: name.to_owned() }
}

fn pods(name: &'static str, crew: Crew) -> (Workload, Crew) {
    (workload(Kind::Deployment, name), crew)
}

const BARE: Crew = Crew { meshed: 0, bare: 2 };
const MESHED: Crew = Crew { meshed: 2, bare: 0 };

impl Space {
    /// A namespace in the mesh with `cart` and `pay`, whose pods have no sidecars yet.
    fn joined() -> Space {
        Space {
            asks: true,
            manual: false,
            pass: Some(Pass { left_at: None }),
            deployments: BTreeMap::from([("cart", deployment()), ("pay", deployment())]),
            crews: BTreeMap::from([pods("cart", BARE), pods("pay", BARE)]),
            ties: BTreeMap::new(),
            judged: BTreeMap::new(),
            acknowledged: true,
            trials: BTreeMap::new(),
            progress: None,
        }
    }

    /// One that has not asked for the mesh any more since then, and whose pods have sidecars.
    fn left(since: &str) -> Space {
        Space {
            asks: false,
            pass: Some(Pass { left_at: Some(at(since)) }),
            crews: BTreeMap::from([pods("cart", MESHED), pods("pay", MESHED)]),
            ..Space::joined()
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Space)) -> Space {
        change(&mut self);
        self
    }

    fn decide(&self) -> Decision {
        decide(&Given {
            now: at(NOW),
            patience: Patience { progress: self.progress, eject_after: SignedDuration::from_mins(10) },
            asks: self.asks,
            manual: self.manual,
            pass: self.pass.as_ref(),
            deployments: self.deployments.iter().map(|(name, it)| (*name, it)).collect(),
            crews: self.crews.iter().map(|(workload, crew)| (workload, *crew)).collect(),
            ties: self.ties.iter().collect(),
            judged: self.judged.iter().collect(),
            acknowledged: self.acknowledged,
            trials: self.trials.iter().map(|(name, trial)| (*name, trial)).collect(),
        })
    }
}

fn cart() -> String {
    "cart".to_owned()
}

/// What is done next, and until when is waited.
fn check(space: &Space, act: Option<&Act>, wake: Option<&str>) {
    let decision = space.decide();
    assert_eq!((decision.act.as_ref(), decision.wake), (act, wake.map(at)), "{decision:?}");
}

/// What is left to people, each with the beginning of its reason, and what is done all the same.
fn check_left(space: &Space, left: &[(&str, &str)], act: Option<&Act>) {
    let decision = space.decide();
    let shown: Vec<(String, String)> =
        decision.left.iter().map(|(name, why)| (name.to_string(), why.to_string())).collect();
    assert_eq!(shown.len(), left.len(), "{shown:?}");
    for ((name, why), (expected, begins)) in shown.iter().zip(left) {
        assert!(name == expected && why.starts_with(begins), "{name}: {why}");
    }
    assert_eq!(decision.act.as_ref(), act);
}

#[test]
fn a_label_has_workloads_tried_and_restarted_one_at_a_time() {
    check(&Space::joined().with(|it| it.pass = None), Some(&Act::Enter), None);
    check(&Space::joined(), Some(&Act::Try(cart())), None);
    let tried = Space::joined().with(|it| drop(it.trials.insert("cart", Trial::Passed)));
    check(&tried, Some(&Act::Restart(cart(), Way::Join)), None);
    let begun = Rollout::UnderWay { progress_at: None, exceeded: false };
    let under_way = Space::joined().with(|it| {
        let cart = Deployment { rollout: begun, ..restarted(&joining("2026-01-01T00:09:00Z")) };
        it.deployments.insert("cart", cart);
    });
    check(&under_way, None, Some("2026-01-01T00:19:00Z"));
    let done = Space::joined().with(|it| {
        it.deployments.insert("cart", restarted(&joining("2026-01-01T00:09:00Z")));
        it.crews.extend([pods("cart", MESHED)]);
    });
    check(&done, Some(&Act::Succeed(cart(), Way::Join)), None);
    let rest = Space::joined().with(|it| it.crews.extend([pods("cart", MESHED)]));
    check(&rest, Some(&Act::Try("pay".to_owned())), None);
    let all = rest.with(|it| it.crews.extend([pods("pay", MESHED)]));
    check(&all, None, None);
}

#[test]
fn a_namespace_without_the_label_is_nobodys_business() {
    check(
        &Space::joined().with(|it| {
            it.asks = false;
            it.pass = None;
        }),
        None,
        None,
    );
}

#[test]
fn a_rollout_of_somebody_else_is_waited_for() {
    let busy = Space::joined().with(|it| {
        let rollout = Rollout::UnderWay { progress_at: None, exceeded: false };
        it.deployments.insert("cart", Deployment { rollout, ..deployment() });
    });
    check(&busy, Some(&Act::Try("pay".to_owned())), None);
}

#[test]
fn what_could_go_wrong_is_left_to_people() {
    type Change = fn(&mut Space);
    let cases: [(Change, &str); 9] = [
        (|it| it.manual = true, "airlane.dev/restart: manual"),
        (
            |it| {
                let manual = BTreeMap::from([("airlane.dev/restart".to_owned(), "manual".to_owned())]);
                it.deployments.insert("cart", Deployment { annotations: manual, ..deployment() });
            },
            "airlane.dev/restart: manual",
        ),
        (
            |it| drop(it.deployments.insert("cart", Deployment { replicas: 1, ..deployment() })),
            "it has one replica",
        ),
        (
            |it| drop(it.deployments.insert("cart", Deployment { max_unavailable: None, ..deployment() })),
            "its strategy is Recreate",
        ),
        (
            |it| drop(it.deployments.insert("cart", Deployment { max_unavailable: Some(2), ..deployment() })),
            "its maxUnavailable",
        ),
        (
            |it| drop(it.deployments.insert("cart", Deployment { paused: true, ..deployment() })),
            "its rollouts",
        ),
        (
            |it| drop(it.trials.insert("cart", Trial::Refused("exceeded quota".to_owned()))),
            "a pod of it that was tried would not be in the mesh: exceeded quota",
        ),
        (
            |it| {
                it.ties.insert(workload(Kind::Deployment, "cart"), BTreeSet::from([tie(Why::Strict)]));
            },
            "once it is in the mesh, callers without a sidecar are refused: MeshPolicy shop/strict",
        ),
        (
            |it| drop(it.judged.insert(workload(Kind::Deployment, "cart"), canary())),
            "Canary shop/cart is under way and judges by its pods",
        ),
    ];
    for (change, why) in cases {
        let alone = |it: &mut Space| it.crews.retain(|workload, _| workload.name == "cart");
        let space = Space::joined().with(alone).with(change);
        check_left(&space, &[("Deployment/cart", why)], None);
    }
    let others = Space::joined().with(|it| {
        it.crews = BTreeMap::from([
            (workload(Kind::StatefulSet, "db"), BARE),
            (workload(Kind::DaemonSet, "agent"), BARE),
            (workload(Kind::Job, "once"), BARE),
            (workload(Kind::Pod, "debug"), BARE),
        ]);
    });
    check_left(
        &others,
        &[
            ("StatefulSet/db", "only Deployments"),
            ("DaemonSet/agent", "only Deployments"),
            ("Pod/debug", "no controller"),
        ],
        None,
    );
    let caller = Space::joined().with(|it| {
        it.ties.insert(workload(Kind::Deployment, "cart"), BTreeSet::from([tie(Why::Caller)]));
    });
    check_left(&caller, &[], Some(&Act::Try(cart())));
}

#[test]
fn the_first_that_does_not_come_up_is_put_back_and_the_rest_stops() {
    let under_way = |record: &Record, exceeded: bool| {
        let rollout = Rollout::UnderWay { progress_at: Some(at("2026-01-01T00:09:30Z")), exceeded };
        let cart = Deployment { rollout, ..restarted(record) };
        Space::joined().with(|it| drop(it.deployments.insert("cart", cart)))
    };
    let begun = joining("2026-01-01T00:09:00Z");
    let fail = |because: &str| Act::Fail(cart(), Way::Join, because.to_owned());
    check(
        &under_way(&begun, true),
        Some(&fail("its new pods did not come up within its progressDeadlineSeconds (10m)")),
        None,
    );
    let patient = |progress: i64| {
        under_way(&begun, false).with(|it| it.progress = Some(SignedDuration::from_secs(progress)))
    };
    check(&patient(30), Some(&fail("its new pods did not come up: no progress for 30s")), None);
    check(&patient(31), None, Some("2026-01-01T00:10:01Z"));
    // Everybody's webhook knows before its pods are created anew.
    check(&under_way(&failed(begun.clone(), NOW), false), None, Some("2026-01-01T00:10:02Z"));
    let told = failed(begun.clone(), "2026-01-01T00:09:58Z");
    check(&under_way(&told, false), Some(&Act::Restore(cart())), None);
    let restored = Deployment { on_template: BTreeMap::new(), ..restarted(&told) };
    let restored = Space::joined().with(|it| drop(it.deployments.insert("cart", restored)));
    check_left(
        &restored,
        &[
            ("Deployment/cart", "it was restarted and put back: why"),
            ("Deployment/pay", "Deployment/cart was put back"),
        ],
        None,
    );
}

#[test]
fn a_restart_that_changes_nothing_is_not_repeated() {
    let still_bare = |begun_at: &str| {
        Space::joined().with(|it| drop(it.deployments.insert("cart", restarted(&joining(begun_at)))))
    };
    check(&still_bare("2026-01-01T00:09:55Z"), None, Some("2026-01-01T00:10:05Z"));
    let because = "2 of its new pods have no sidecar: they were told something else than the trial";
    check(&still_bare("2026-01-01T00:09:00Z"), Some(&Act::Fail(cart(), Way::Join, because.to_owned())), None);
    // What is seen of its pods is behind from when it ended.
    let ended_at = |since: &str| {
        let rollout = Rollout::Complete { since: Some(at(since)) };
        let cart = Deployment { rollout, ..restarted(&joining("2026-01-01T00:09:00Z")) };
        Space::joined().with(|it| drop(it.deployments.insert("cart", cart)))
    };
    check(&ended_at("2026-01-01T00:09:55Z"), None, Some("2026-01-01T00:10:05Z"));
    let because = "2 of its new pods have no sidecar: they were told something else than the trial";
    let fails = Act::Fail(cart(), Way::Join, because.to_owned());
    check(&ended_at("2026-01-01T00:09:50Z"), Some(&fails), None);
    let undone = Space::joined().with(|it| {
        let cart = restarted(&joining("2026-01-01T00:09:00Z"));
        it.deployments.insert("cart", Deployment { on_template: BTreeMap::new(), ..cart });
    });
    let because = "somebody else changed its template back";
    check(&undone, Some(&Act::Fail(cart(), Way::Join, because.to_owned())), None);
}

#[test]
fn a_label_lost_for_a_moment_ejects_nobody() {
    let lost = Space::left(NOW).with(|it| it.pass = Some(Pass { left_at: None }));
    check(&lost, Some(&Act::NoteLeft), None);
    check(&Space::left("2026-01-01T00:00:01Z"), None, Some("2026-01-01T00:10:01Z"));
    let back = Space::left("2026-01-01T00:00:00Z").with(|it| it.asks = true);
    check(&back, Some(&Act::Return), None);
}

#[test]
fn who_leaves_does_so_one_at_a_time_and_behind_open_doors() {
    let left = || Space::left("2026-01-01T00:00:00Z");
    check(&left(), Some(&Act::Restart(cart(), Way::Leave)), None);
    check(&left().with(|it| it.acknowledged = false), None, Some("2026-01-01T00:10:01Z"));
    let all_out = left().with(|it| it.crews = BTreeMap::from([pods("cart", BARE), pods("pay", BARE)]));
    check(&all_out, Some(&Act::GiveUp), None);
    let before = failed(joining("2026-01-01T00:00:00Z"), "2026-01-01T00:00:00Z");
    let remembered = all_out.with(|it| {
        let cart = Deployment { on_template: BTreeMap::new(), ..restarted(&before) };
        it.deployments.insert("cart", cart);
    });
    check(&remembered, Some(&Act::Forget(cart())), None);
}

#[test]
fn nobody_leaves_whose_sidecar_keeps_a_policy() {
    for (why, says) in [(Why::Strict, "wants mTLS"), (Why::Access, "says who"), (Why::Caller, "lets it call")]
    {
        let space = Space::left("2026-01-01T00:00:00Z").with(|it| {
            it.ties.insert(workload(Kind::Deployment, "cart"), BTreeSet::from([tie(why)]));
        });
        let reason = format!("only its sidecar keeps what policies say: MeshPolicy shop/strict {says}");
        check_left(
            &space,
            &[("Deployment/cart", &reason)],
            Some(&Act::Restart("pay".to_owned(), Way::Leave)),
        );
    }
    let judged = Space::left("2026-01-01T00:00:00Z")
        .with(|it| drop(it.judged.insert(workload(Kind::Deployment, "cart"), canary())));
    let reason = "Canary shop/cart is under way and judges by its pods";
    check_left(&judged, &[("Deployment/cart", reason)], Some(&Act::Restart("pay".to_owned(), Way::Leave)));
    let own_label = Space::left("2026-01-01T00:00:00Z").with(|it| {
        it.deployments.insert("cart", Deployment { inject: Some("enabled".to_owned()), ..deployment() });
    });
    check_left(&own_label, &[], Some(&Act::Restart("pay".to_owned(), Way::Leave)));
}

#[test]
fn what_others_wrote_into_the_memory_stops_only_what_it_is_about() {
    let space = Space::joined().with(|it| {
        let annotations = BTreeMap::from([(LAST_RESTART.to_owned(), "yes".to_owned())]);
        it.deployments.insert("cart", Deployment { annotations, ..deployment() });
    });
    let left = [("Deployment/cart", "its annotation airlane.dev/lastRestart is not ours")];
    check_left(&space, &left, Some(&Act::Try("pay".to_owned())));
}

#[test]
fn a_time_at_the_end_of_all_times_is_never_reached() {
    const LAST: &str = "9999-12-30T22:00:00.999999999Z";
    let end = Some(LAST);
    let cart_is = |record: &Record, rollout: Rollout| {
        let cart = Deployment { rollout, ..restarted(record) };
        Space::joined().with(|it| drop(it.deployments.insert("cart", cart)))
    };
    let under_way = || Rollout::UnderWay { progress_at: Some(at(LAST)), exceeded: false };
    check(&cart_is(&failed(joining(NOW), LAST), under_way()), None, end);
    check(&cart_is(&joining(LAST), COMPLETE), None, end);
    check(&cart_is(&joining(NOW), under_way()), None, end);
    check(&Space::left(LAST), None, end);
}
