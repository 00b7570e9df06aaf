use super::{events::note, *};
use crate::{clock::SystemClock, observe::kubernetes::Seen, scripted_api, xds::Publisher};
use airlane_core::{
    id::{Name, Namespace, Revision, ServiceId},
    rollout::{Phase, Rollout, Transition},
};
use http::{Method, Request, Response};
use jiff::Timestamp;
use kube::client::Body;
use serde_json::json;
use std::{convert::Infallible, time::Duration};
use tokio::time::timeout;

fn plan() -> Rollout {
    let namespace = Namespace::parse("shop").expect("a name");
    Rollout {
        service: ServiceId { namespace, name: Name::parse("pay").expect("a name") },
        stable: Revision::parse("v1").expect("a name"),
        canary: Revision::parse("v2").expect("a name"),
        steps: Vec::new(),
        objectives: Vec::new(),
        false_rollback: 0.001,
        wrong_promotion: 0.01,
        suspend: false,
        held: None,
    }
}

fn canary() -> Canary {
    let id =
        ObjectId { kind: ObjectKind::Canary, namespace: plan().service.namespace, name: plan().service.name };
    Canary { id, generation: 1, age_rank: 0, plan: plan(), progress: None, asked: None }
}

fn progress(phases: &[Phase]) -> Progress {
    let mut progress = Progress::new(&plan(), Timestamp::UNIX_EPOCH);
    progress.history = phases
        .iter()
        .enumerate()
        .map(|(second, phase)| Transition {
            at: Timestamp::from_second(i64::try_from(second).expect("few")).expect("in range"),
            phase: *phase,
            step: 0,
            share: 500,
            because: format!("because of {phase:?}"),
        })
        .collect();
    progress
}

/// Reason and note of the event that leads from the one history to the other.
fn told(before: Option<&[Phase]>, now: &[Phase], expected: Option<&str>) {
    let event = event_of(before.map(progress).as_ref(), &progress(now));
    let shown =
        event.map(|event| format!("{:?} {} {}", event.type_, event.reason, event.note.unwrap_or_default()));
    assert_eq!(shown.as_deref(), expected);
}

#[test]
fn transitions_are_told_once() {
    use Phase::{Progressing, RollingBack};
    told(None, &[Progressing], Some("Normal Progressing because of Progressing"));
    told(Some(&[Progressing]), &[Progressing], None);
    let both = [Progressing, RollingBack];
    told(Some(&[Progressing]), &both, Some("Warning RollingBack because of RollingBack"));
    told(None, &[], None);
}

#[test]
fn notes_are_cut_between_characters() {
    assert_eq!(note("short"), "short");
    assert_eq!(note(&"ä".repeat(600)).len(), 1000);
    assert_eq!(note(&format!("x{}", "ä".repeat(600))).len(), 999);
}

/// An API server with one object, as far as a writer of statuses can tell: whoever names another `resourceVersion` than
/// the object has is refused.
#[derive(Clone)]
struct Server(Arc<std::sync::Mutex<Value>>);

impl Server {
    fn with(status: &Value) -> Self {
        let metadata = json!({ "name": "pay", "namespace": "shop", "uid": "u", "resourceVersion": "1" });
        Server(Arc::new(std::sync::Mutex::new(json!({ "metadata": metadata, "status": status }))))
    }

    /// What somebody else does to the object.
    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut object = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        edit(&mut object);
        let version: u64 =
            object["metadata"]["resourceVersion"].as_str().expect("a version").parse().expect("a number");
        object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
    }

    fn object(&self) -> Value {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let patches = request.method() == Method::PATCH && request.uri().path().ends_with("/pay/status");
        let body = request.into_body().collect_bytes().await.expect("a body");
        let (code, answer) = if patches {
            let patch: Value = serde_json::from_slice(&body).expect("JSON");
            if patch["metadata"]["resourceVersion"] == self.object()["metadata"]["resourceVersion"] {
                self.edit(|object| object["status"] = patch["status"].clone());
                (200, self.object())
            } else {
                let refusal = json!({
                    "kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict", "message": "changed",
                });
                (409, refusal)
            }
        } else {
            (200, self.object())
        };
        Ok(Response::builder()
            .status(code)
            .body(Body::from(answer.to_string().into_bytes()))
            .expect("an answer"))
    }

    /// A writer called `me` that has seen the object as it is now.
    fn writer(&self, me: &str) -> Writer {
        self.watching(me).0
    }

    /// Such a writer, and where it is told what the object is later.
    fn watching(&self, me: &str) -> (Writer, watch::Sender<Arc<BTreeMap<ObjectId, Kept>>>) {
        let served = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| served.clone().answer(request));
        let sees = watch::Sender::new(self.seen());
        let mut observed = Observed::of(Seen::default());
        observed.kept = sees.subscribe();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
        let fleet = Fleet::new(Publisher::new(clock.clone()), clock.clone());
        let (_, picture) = watch::channel(None);
        let client = Client::new(service, "default");
        (Writer::new(client, observed, picture, fleet, clock, me.to_owned()), sees)
    }

    /// What a watch tells of the object as it is now.
    fn seen(&self) -> Arc<BTreeMap<ObjectId, Kept>> {
        let object = self.object();
        let text = |field: &str| object["metadata"][field].as_str().expect("a text").to_owned();
        let kept = Kept {
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            status: object["status"].clone(),
            asked: None,
        };
        Arc::new([(canary().id, kept)].into())
    }
}

fn first() -> Progress {
    progress(&[Phase::Progressing])
}

fn second() -> Progress {
    progress(&[Phase::Progressing, Phase::Holding])
}

/// A server whose object remembers the first step, written by `before`.
async fn begun() -> Server {
    let server = Server::with(&Value::Null);
    server.writer("before").step(&canary(), None, first(), None).await.expect("written");
    server
}

/// What comes of a second step after this was done to the object since it was seen.
async fn check(edit: impl FnOnce(&Server), from: Option<&Progress>, expected: &str) {
    let server = begun().await;
    let writer = server.writer("after");
    edit(&server);
    let result = match writer.step(&canary(), from, second(), None).await {
        Ok(()) => "written".to_owned(),
        Err(error) => error.to_string(),
    };
    assert_eq!(result, expected);
    let holds = memory(&server.object()["status"]).expect("a memory") == Some(second());
    assert_eq!(holds, expected == "written", "{}", server.object());
}

const STALE: &str = "another operator wrote in between";

#[tokio::test]
async fn a_step_is_written_over_what_it_was_computed_from() {
    check(|_| {}, Some(&first()), "written").await;
    check(|_| {}, None, STALE).await;
    check(|_| {}, Some(&progress(&[])), STALE).await;
}

#[tokio::test]
async fn an_edit_of_the_spec_is_no_obstacle() {
    check(
        |server| server.edit(|object| object["spec"] = json!({ "suspend": true })),
        Some(&first()),
        "written",
    )
    .await;
}

#[tokio::test]
async fn a_leader_that_leads_no_more_is_refused() {
    let other = |server: &Server| {
        server.edit(|object| object["status"]["memory"][MARK] = json!("another 7"));
    };
    check(other, Some(&first()), STALE).await;
    let recreated = |server: &Server| server.edit(|object| object["metadata"]["uid"] = json!("new"));
    check(recreated, Some(&first()), STALE).await;
    let without_status = |server: &Server| server.edit(|object| object["status"] = Value::Null);
    check(without_status, Some(&first()), STALE).await;
}

#[tokio::test]
async fn a_step_follows_our_own_before_the_watch_tells_it() {
    let server = begun().await;
    let writer = server.writer("after");
    for (from, to) in [(first(), second()), (second(), first()), (first(), second())] {
        writer.step(&canary(), Some(&from), to, None).await.expect("written");
    }
    assert_eq!(memory(&server.object()["status"]).expect("a memory"), Some(second()));
}

#[tokio::test]
async fn a_broken_memory_is_not_written_over() {
    let broken = json!({ "memory": { "phase": "Nowhere" } });
    let server = Server::with(&broken);
    let result = server.writer("after").step(&canary(), None, first(), None).await;
    assert!(matches!(result, Err(NotRemembered::Failed(_))), "{result:?}");
    assert_eq!(server.object()["status"], broken);
}

#[tokio::test]
async fn a_verb_is_answered_once() {
    let server = begun().await;
    server.writer("a").step(&canary(), Some(&first()), second(), Some(Asked::Abort)).await.expect("written");
    let answered = &server.object()["status"]["memory"][ANSWERED];
    assert_eq!(*answered, json!({ "verb": "Abort", "canary": "v2" }));
}

/// As Go writes JSON: a number without a fraction is an integer.
fn as_the_server_writes(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|f| number.is_f64() && f.fract() == 0.0);
            if let Some(whole) = whole {
                #[expect(clippy::cast_possible_truncation, reason = "it is whole, and small")]
                let whole = whole as i64;
                *value = json!(whole);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(as_the_server_writes),
        Value::Object(fields) => fields.values_mut().for_each(as_the_server_writes),
        _ => {}
    }
}

#[tokio::test]
async fn what_is_told_already_is_not_written_again() {
    let server = begun().await;
    server.edit(|object| as_the_server_writes(&mut object["status"]));
    let before = server.object();
    server.writer("after").amend(&canary()).await.expect("nothing to write");
    assert_eq!(server.object(), before);
    let edited = Canary { generation: 2, ..canary() };
    server.writer("after").amend(&edited).await.expect("written");
    let after = server.object();
    assert_eq!(after["status"]["observedGeneration"], 2);
    assert_eq!(memory(&after["status"]).expect("a memory"), Some(first()));
}

#[tokio::test]
async fn an_edit_of_what_we_wrote_last_is_told() {
    let server = begun().await;
    let (writer, sees) = server.watching("after");
    let generation = |generation: i64| Canary { generation, ..canary() };
    let told = |server: &Server| server.object()["status"]["observedGeneration"].clone();
    writer.step(&canary(), Some(&first()), second(), None).await.expect("written");
    writer.amend(&generation(2)).await.expect("nothing is written");
    assert_eq!(told(&server), 1, "what we wrote was not seen yet");
    server.edit(|object| object["spec"] = json!({ "suspend": true }));
    sees.send_replace(server.seen());
    writer.amend(&generation(2)).await.expect("written");
    assert_eq!(told(&server), 2);
    server.writer("another").step(&generation(2), Some(&second()), first(), None).await.expect("written");
    sees.send_replace(server.seen());
    writer.amend(&generation(3)).await.expect("nothing is written");
    assert_eq!(told(&server), 2, "another leads");
    writer.begin();
    writer.amend(&generation(3)).await.expect("written");
    assert_eq!(told(&server), 3);
}

#[test]
fn sums_come_back_to_the_last_bit() {
    for n in 2..1_000 {
        let mut sums = first();
        sums.judge.ln_wealth = -f64::from(n).ln();
        let text = serde_json::to_string(&sums).expect("JSON");
        assert_eq!(serde_json::from_str::<Progress>(&text).expect("the same"), sums, "{text}");
    }
}

#[tokio::test]
async fn a_condition_says_since_when_it_is_so() {
    let server = begun().await;
    let since = |server: &Server| server.object()["status"]["conditions"][0][SINCE].clone();
    let begun_at = since(&server);
    assert!(begun_at.is_string(), "{}", server.object());
    let writer = server.writer("after");
    writer.step(&canary(), Some(&first()), second(), None).await.expect("written");
    assert_eq!(since(&server), begun_at, "it was not ready before either");
    let ended = Progress { phase: Phase::Succeeded, ..second() };
    writer.step(&canary(), Some(&second()), ended, None).await.expect("written");
    assert_ne!(since(&server), begun_at);
}

fn kept() -> Kept {
    Kept { uid: "u".into(), resource_version: "1".into(), status: Value::Null, asked: None }
}

/// A writer that has seen canaries of these names without a status.
fn writer_of(names: &[&str], client: Client) -> (Writer, Vec<Canary>) {
    let called = |name: &&str| {
        let id = ObjectId { name: Name::parse(name).expect("a name"), ..canary().id };
        Canary { id, ..canary() }
    };
    let canaries: Vec<Canary> = names.iter().map(called).collect();
    let kept = canaries.iter().map(|canary| (canary.id.clone(), kept())).collect();
    let observed = Observed::of(Seen { kept, ..Seen::default() });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let fleet = Fleet::new(Publisher::new(clock.clone()), clock.clone());
    let (_, picture) = watch::channel(None);
    (Writer::new(client, observed, picture, fleet, clock, "me".to_owned()), canaries)
}

#[tokio::test]
async fn a_slow_write_holds_up_no_other_canary() {
    let client = scripted_api::client(|(_, path, body)| (!path.contains("/slow/")).then_some((200, body)));
    let (writer, canaries) = writer_of(&["slow", "quick"], client);
    let mut slow = std::pin::pin!(writer.step(&canaries[0], None, first(), None));
    assert!(futures::poll!(slow.as_mut()).is_pending());
    let quick = timeout(Duration::from_secs(10), writer.step(&canaries[1], None, first(), None)).await;
    quick.expect("in time").expect("written");
}

#[tokio::test]
async fn an_object_that_changes_all_the_time_is_left_for_later() {
    let tries = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&tries);
    let client = scripted_api::client(move |(method, _, _)| {
        if method == Method::PATCH {
            counted.fetch_add(1, Ordering::Relaxed);
            return scripted_api::refusal(409, "Conflict");
        }
        let version = counted.load(Ordering::Relaxed) + 1;
        let metadata =
            json!({ "name": "pay", "namespace": "shop", "uid": "u", "resourceVersion": version.to_string() });
        Some((200, json!({ "metadata": metadata })))
    });
    let (writer, canaries) = writer_of(&["pay"], client);
    let result = writer.step(&canaries[0], None, first(), None).await;
    assert!(matches!(result, Err(NotRemembered::Failed(_))), "{result:?}");
    assert_eq!(tries.load(Ordering::Relaxed), 3);
}
