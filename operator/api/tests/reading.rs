//! Files as people write them: what is understood, what is reported, what is refused.

#![expect(clippy::expect_used, clippy::panic, reason = "a helper of tests fails the test")]

use airlane_api::{FILE_BYTES_MAX, Parsed, Value, merge, read_bytes, read_file};
use airlane_core::{
    id::{Name, Namespace, ObjectId, ObjectKind, ServiceId},
    policy::{
        CallsSpec, CircuitBreakerSpec, ConnectionSpec, Http2, LoadBalancing, Millis, MtlsMode, MtlsSpec,
        Policy, RetriesSpec, RetryMethods, RetryOn, Target, TimeoutsSpec,
    },
    problem::Problem,
    rollout::{Asked, Canary, StepPlan},
    slo::Objective,
    world::{Port, Protocol},
};
use std::{collections::BTreeSet, env, fmt::Write, fs, path::Path};

fn read(file: &str, text: &str) -> Parsed {
    merge([read_file(file, text, &Namespace::parse("airlane-system").expect("a namespace"))])
}

/// All that is said about a file, a line each.
fn told(file: &str, text: &str) -> String {
    let parsed = read(file, text);
    let mut told = String::new();
    let mut line = |line: String| writeln!(told, "{line}").expect("a text grows");
    for object in &parsed.objects {
        let used = match &object.value {
            None => "not used",
            Some(Value::Canary(canary)) if canary.plan.suspend => "used, suspended",
            Some(Value::Canary(canary)) => canary.plan.held.as_deref().unwrap_or("used"),
            Some(_) => "used",
        };
        line(format!("{}:{}: {}: {used}", object.file, object.location.line, object.id));
        object.problems.iter().for_each(|problem: &Problem| line(format!("  {}: {problem}", problem.reason)));
    }
    for refused in &parsed.refused {
        let id = refused.id.as_ref().map_or("an object without name".into(), ToString::to_string);
        let door = if refused.unread.mtls || refused.unread.access {
            format!(", its door closes: {:?}", refused.unread.target)
        } else {
            String::new()
        };
        line(format!("{file}:{}: {id}: refused{door}", refused.location.line));
    }
    parsed.errors.iter().for_each(|error| line(error.to_string()));
    if parsed.passed_over > 0 {
        line(format!("passed over: {}", parsed.passed_over));
    }
    told
}

/// Each `cases/NAME.yaml` against `cases/NAME.txt`; `UPDATE=1` rewrites the answers.
#[test]
fn cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let paths = fs::read_dir(&folder).expect("the cases").map(|entry| entry.expect("a case").path());
    let names: BTreeSet<_> = paths.filter(|path| path.extension().is_some_and(|ext| ext == "yaml")).collect();
    assert!(names.len() >= 14, "only {names:?}");
    let mut wrong = Vec::new();
    for path in names {
        let text = fs::read_to_string(&path).expect("a case");
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let told = told(&name, &text);
        let answer = path.with_extension("txt");
        if env::var_os("UPDATE").is_some() {
            fs::write(&answer, &told).expect("an answer");
        }
        let expected = fs::read_to_string(&answer).unwrap_or_default();
        if told != expected {
            wrong.push(format!("--- {name}, expected:\n{expected}--- but told:\n{told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn only(text: &str) -> Value {
    let mut parsed = read("one.yaml", text);
    assert_eq!((parsed.errors.len(), parsed.objects.len()), (0, 1), "{:?}", parsed.errors);
    parsed.objects.remove(0).value.expect("an object that is used")
}

#[test]
fn a_policy_means_what_it_says() {
    let Value::Policy(policy) = only(
        "apiVersion: airlane.dev/v1alpha1
kind: MeshPolicy
metadata: { name: pay, namespace: shop }
spec:
  targetRef: { kind: Service, name: pay, port: 80 }
  mtls: { mode: Strict, ports: [{ port: 9090, mode: Permissive }] }
  loadBalancing: { policy: Random }
  timeouts: { request: 10s, streamIdle: 5m, connectionIdle: 1h, connect: 250ms }
  retries:
    attempts: 3
    perTryTimeout: 2s
    retryOn: [5xx, connect-failure]
    backoff: { base: 25ms, max: 250ms }
    budget: { percent: 20, minConcurrent: 3 }
    methods: [Idempotent, POST]
  circuitBreaker:
    limits: { maxConnections: 1, maxPendingRequests: 2, maxRequests: 3, maxRetries: 4, maxRequestsPerConnection: 5 }
    outlierDetection: { consecutive5xx: 6, consecutiveGatewayErrors: 0, interval: 30s, baseEjectionTime: 60s, maxEjectionPercent: 50 }
    whenOpen: { body: busy, retryAfter: 30s }
  connection: { http2: Never, maxAge: 1h }
",
    ) else {
        panic!("a policy")
    };
    let shop = Namespace::parse("shop").expect("a name");
    let name = Name::parse("pay").expect("a name");
    let expected = Policy {
        id: ObjectId { kind: ObjectKind::MeshPolicy, namespace: shop.clone(), name: name.clone() },
        generation: 0,
        age_rank: 0,
        target: Target::Service { service: ServiceId { namespace: shop, name }, port: Some(80) },
        calls: CallsSpec {
            timeouts: TimeoutsSpec {
                request: Some(Millis(10_000)),
                stream_idle: Some(Millis(300_000)),
                connection_idle: Some(Millis(3_600_000)),
                connect: Some(Millis(250)),
            },
            retries: RetriesSpec {
                attempts: Some(3),
                per_try_timeout: Some(Millis(2_000)),
                retry_on: Some(vec![RetryOn::ServerError, RetryOn::ConnectFailure]),
                backoff_base: Some(Millis(25)),
                backoff_max: Some(Millis(250)),
                budget_percent: Some(20),
                budget_min_concurrent: Some(3),
                methods: Some(vec![RetryMethods::Idempotent, RetryMethods::Method("POST".into())]),
            },
            circuit_breaker: CircuitBreakerSpec {
                max_connections: Some(1),
                max_pending_requests: Some(2),
                max_requests: Some(3),
                max_retries: Some(4),
                max_requests_per_connection: Some(5),
                consecutive_5xx: Some(6),
                consecutive_gateway_errors: Some(0),
                interval: Some(Millis(30_000)),
                base_ejection_time: Some(Millis(60_000)),
                max_ejection_percent: Some(50),
                when_open_body: Some("busy".into()),
                when_open_retry_after: Some(Millis(30_000)),
            },
            load_balancing: Some(LoadBalancing::Random),
            connection: ConnectionSpec { http2: Some(Http2::Never), max_age: Some(Millis(3_600_000)) },
        },
        access: None,
        mtls: Some(MtlsSpec {
            mode: Some(MtlsMode::Strict),
            floor: None,
            ports: vec![(9090, MtlsMode::Permissive)],
        }),
    };
    assert_eq!(policy, expected);
}

#[test]
fn a_policy_without_target_is_about_its_namespace_or_the_mesh() {
    let target = |namespace: &str| {
        let text = "{apiVersion: airlane.dev/v1alpha1, kind: MeshPolicy, metadata: {name: a, namespace: NS}, spec: {}}";
        match only(&text.replace("NS", namespace)) {
            Value::Policy(policy) => policy.target,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(target("airlane-system"), Target::Mesh);
    assert_eq!(target("shop"), Target::Namespace(Namespace::parse("shop").expect("a name")));
}

const CANARY: &str = "apiVersion: airlane.dev/v1alpha1
kind: Canary
metadata: { name: pay, namespace: shop, annotations: { airlane.dev/retry: v2, airlane.dev/abort: v1 } }
spec:
  service: payment
  stable: { version: v1 }
  canary: { version: v2 }
";

fn canary(spec: &str) -> Canary {
    match only(&format!("{CANARY}{spec}")) {
        Value::Canary(canary) => canary,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_canary_that_says_little_gets_the_defaults() {
    let Canary { plan, asked, progress, .. } = canary("");
    assert_eq!(plan.service.to_string(), "shop/payment");
    assert_eq!((plan.stable.as_str(), plan.canary.as_str()), ("v1", "v2"));
    let shares: Vec<u32> = plan.steps.iter().map(|step| step.share).collect();
    assert_eq!(shares, [500, 2_500, 5_000, 10_000]);
    let errors = Objective { name: "errors".into(), max: 0.01, worse_than_stable: 1.0, ignore_below: 0.001 };
    assert_eq!(plan.objectives, [errors]);
    assert_eq!((plan.false_rollback, plan.wrong_promotion, plan.suspend), (0.001, 0.01, false));
    assert_eq!(progress, None);
    assert_eq!(asked, Some(Asked::Retry), "a verb about another revision asks for nothing");
}

#[test]
fn a_canary_means_what_it_says() {
    let Canary { plan, .. } = canary(
        "  suspend: true
  steps: [{ weight: 0.5%, atLeast: 2m }, { weight: 100% }]
  objectives: [{ name: strict, errorRate: { max: 0.1%, worseThanStable: 1.5x, ignoreBelow: 0.05% } }]
  judgement: { falseRollback: 1%, wrongPromotion: 5% }
",
    );
    assert!(plan.suspend);
    let steps =
        [StepPlan { share: 50, at_least: Some(Millis(120_000)) }, StepPlan { share: 10_000, at_least: None }];
    assert_eq!(plan.steps, steps);
    let strict =
        Objective { name: "strict".into(), max: 0.001, worse_than_stable: 1.5, ignore_below: 0.0005 };
    assert_eq!(plan.objectives, [strict]);
    assert_eq!((plan.false_rollback, plan.wrong_promotion), (0.01, 0.05));
}

#[test]
fn a_service_means_its_ports() {
    let Value::Service(service) = only(
        "apiVersion: v1
kind: Service
metadata: { name: pay }
spec:
  ports:
    - { port: 9000, name: tcp-sql }
    - { port: 80, targetPort: 8080 }
    - { port: 90, name: grpc, appProtocol: http2 }
",
    ) else {
        panic!("a service")
    };
    assert_eq!(service.id.to_string(), "default/pay");
    let port = |number, target, protocol| Port { number, target, protocol };
    let expected =
        [port(80, 8080, Protocol::Http), port(90, 90, Protocol::Http2), port(9000, 9000, Protocol::Tcp)];
    assert_eq!(service.ports, expected);
}

#[test]
fn an_object_is_written_back_as_it_was_read() {
    let text = include_str!("cases/examples-of-the-design.yaml");
    for object in read("first.yaml", text).objects {
        let written = object.to_yaml().expect("an object has a form in YAML");
        let again = read("second.yaml", &written);
        let again = again.objects.first().unwrap_or_else(|| panic!("{written}\n{:?}", again.errors));
        assert_eq!(format!("{:?}", again.value), format!("{:?}", object.value), "{written}");
        assert_eq!(again.problems, object.problems);
    }
}

#[test]
fn a_file_that_is_too_long_is_not_read() {
    let parsed = read("long.yaml", &"#".repeat(FILE_BYTES_MAX + 1));
    let errors: Vec<String> = parsed.errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, ["long.yaml:1: the file has 1048577 bytes; split it into files of at most 1048576"]);
}

#[test]
fn a_file_that_is_not_utf_8_is_told_with_the_place() {
    let system = Namespace::parse("airlane-system").expect("a namespace");
    let parsed = read_bytes("latin.yaml", b"kind: MeshPolicy\nname: \xc3\xa9\xe9\n", &system);
    let errors: Vec<String> = parsed.errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, ["latin.yaml:2: byte 0xe9 in column 8 is not UTF-8; save the file as UTF-8"]);
}

mod mutations {
    use super::*;
    use proptest::{collection::vec, prelude::*, sample::Index};

    /// One thing that can happen to a text.
    #[derive(Debug, Clone)]
    enum Mutation {
        Cut(Index, Index),
        Repeat(Index, Index),
        Insert(Index, String),
        Swap(Index, Index),
    }

    fn mutation() -> impl Strategy<Value = Mutation> {
        let bits = prop_oneof![
            "[-:,{}\\[\\]&*!|>'\"%@`#? \n\t~]{1,4}",
            "\\PC{1,3}",
            Just("---\n".to_string()),
            Just("<<: *a".to_string()),
            Just("&a ".to_string()),
            Just("99999999999999999999".to_string()),
            Just("null".to_string()),
            Just("\u{1b}[31m\r".to_string()),
        ];
        prop_oneof![
            any::<(Index, Index)>().prop_map(|(from, to)| Mutation::Cut(from, to)),
            any::<(Index, Index)>().prop_map(|(from, to)| Mutation::Repeat(from, to)),
            (any::<Index>(), bits).prop_map(|(at, bits)| Mutation::Insert(at, bits)),
            any::<(Index, Index)>().prop_map(|(a, b)| Mutation::Swap(a, b)),
        ]
    }

    fn mutate(text: &str, mutations: &[Mutation]) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        for mutation in mutations {
            if chars.len() < 2 {
                break;
            }
            let range = |from: &Index, to: &Index| {
                let (from, length) = (from.index(chars.len()), to.index(40));
                from..(from + length).min(chars.len())
            };
            match mutation {
                Mutation::Cut(from, to) => drop(chars.drain(range(from, to))),
                Mutation::Repeat(from, to) => {
                    let copy = chars[range(from, to)].to_vec();
                    chars.splice(from.index(chars.len())..from.index(chars.len()), copy);
                }
                Mutation::Insert(at, bits) => {
                    let at = at.index(chars.len());
                    chars.splice(at..at, bits.chars());
                }
                Mutation::Swap(a, b) => {
                    let length = chars.len();
                    chars.swap(a.index(length), b.index(length));
                }
            }
        }
        chars.into_iter().collect()
    }

    proptest! {
        /// Whatever is done to a file, reading it ends, and what it says is about the file: a document is used,
        /// refused or empty, every refusal has an error, and every error has a line of the file. (A failure prints
        /// the seed and the smallest text.)
        #[test]
        fn reading_never_fails_otherwise(mutations in vec(mutation(), 1..12)) {
            let text = mutate(include_str!("cases/examples-of-the-design.yaml"), &mutations);
            let parsed = read("mutated.yaml", &text);
            prop_assert!(parsed.refused.len() <= parsed.errors.len());
            let lines = text.split(['\n', '\r']).count();
            for error in &parsed.errors {
                prop_assert!((1..=lines).contains(&error.location.line), "{error}");
                prop_assert!(!error.mend.is_empty() && !error.message.is_empty(), "{error}");
                prop_assert!(!error.to_string().contains(char::is_control), "{error}");
            }
        }
    }
}
