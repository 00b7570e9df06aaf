use super::*;
use serde_json::Value;
use std::{env, fmt::Write as _, fs, path::Path};

const SECRET: &str = "0123456789abcdef";

fn setup() -> Injection {
    Injection {
        image: "airlane:0.1.0".into(),
        image_pull_policy: None,
        operator: "airlane.airlane-system.svc:15010".into(),
        roots: vec!["ab".repeat(32)],
        trust_domain: TrustDomain::parse("airlane.local").expect("a trust domain"),
        version: "0.1.0".into(),
    }
}

fn typed(pod: &Value) -> Pod {
    serde_json::from_value(pod.clone()).expect("a pod")
}

fn again(pod: &Value, namespace: &BTreeMap<String, String>, secret: &str) -> Result<Injected, NotInjected> {
    inject(&typed(pod), namespace, secret, &setup())
}

/// The pod with the patch, which is proved to be all that it takes: the second time there is nothing to add.
fn applied(pod: &Value, injected: &Injected, namespace: &BTreeMap<String, String>) -> Value {
    let mut after = pod.clone();
    json_patch::patch(&mut after, &injected.patch).expect("a patch that fits");
    let second = again(&after, namespace, "another0secret00").expect("still injected");
    assert_eq!(second.patch, Patch(vec![]), "the second time, of {after:#}");
    after
}

/// The answer, as a golden file has it.
fn told(pod: &Value, namespace: &BTreeMap<String, String>) -> String {
    let mut told = String::new();
    let mut line = |text: &str| writeln!(told, "# {text}").expect("a text grows");
    match again(pod, namespace, SECRET) {
        Ok(injected) => {
            injected.warnings.iter().for_each(|warning| line(&format!("warning: {warning}")));
            told += &serde_saphyr::to_string(&applied(pod, &injected, namespace)).expect("YAML");
        }
        Err(NotInjected::Unasked) => line("as it is: nobody asked"),
        Err(NotInjected::Mistaken(mistakes)) => {
            mistakes.iter().for_each(|mistake| line(&format!("refused: {mistake}")));
        }
        Err(NotInjected::Unfit { reasons, optional: false }) => {
            reasons.iter().for_each(|reason| line(&format!("refused: {reason}")));
        }
        Err(NotInjected::Unfit { reasons, optional: true }) => {
            reasons.iter().for_each(|reason| line(&format!("as it is: {reason}")));
        }
    }
    told
}

/// Each `cases/NAME.yaml` — a namespace if it matters, and pods — against `cases/NAME.out`; `UPDATE=1` rewrites the
/// answers.
#[test]
fn cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/webhook/inject/cases");
    let mut paths: Vec<_> =
        fs::read_dir(&folder).expect("cases").map(|entry| entry.expect("a case").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    assert!(paths.len() >= 15, "only {paths:?}");
    let mut wrong = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("a case");
        assert!(text.starts_with("# "), "{} does not say what it proves", path.display());
        let mut namespace = BTreeMap::new();
        let mut answers = Vec::new();
        for document in text.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).expect("YAML");
            match object["kind"].as_str() {
                Some("Namespace") => {
                    namespace = serde_json::from_value(object["metadata"]["labels"].clone()).expect("labels");
                }
                _ => answers.push(told(&object, &namespace)),
            }
        }
        let told = answers.join("---\n");
        let answer = path.with_extension("out");
        if env::var_os("UPDATE").is_some() {
            fs::write(&answer, &told).expect("an answer");
        }
        if told != fs::read_to_string(&answer).unwrap_or_default() {
            wrong.push(format!("--- {}\n{told}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn enabled() -> BTreeMap<String, String> {
    BTreeMap::from([(INJECT.into(), "enabled".into())])
}

#[test]
fn a_container_that_comes_later_gets_what_it_needs() {
    let probe = |port: u16| json!({ "httpGet": { "path": "/healthz", "port": port } });
    let pod = json!({
        "metadata": { "name": "pay" },
        "spec": { "containers": [{ "name": "app", "livenessProbe": probe(8080) }] },
    });
    let injected = again(&pod, &enabled(), SECRET).expect("injected");
    let mut after = applied(&pod, &injected, &enabled());
    let late = json!({ "name": "late", "readinessProbe": probe(9090) });
    after["spec"]["containers"].as_array_mut().expect("a list").insert(0, late);

    let second = again(&after, &enabled(), "another0secret00").expect("injected");
    let done = applied(&after, &second, &enabled());
    let proxy = proxy_of(&typed(&done).spec.expect("a spec")).expect("the proxy").clone();
    let text =
        proxy.env.iter().flatten().find(|it| it.name == "AIRLANE_PROBES").and_then(|it| it.value.clone());
    let asks: Asks = text.expect("a value").parse().expect("asks");
    assert_eq!(asks.secret, SECRET, "the first secret is in the probes of the first containers");
    assert_eq!(asks.asks.keys().collect::<Vec<_>>(), ["app/liveness", "late/readiness"]);
    let late = &done["spec"]["containers"][0];
    assert_eq!(late["readinessProbe"]["httpGet"]["path"], format!("/probe/late/readiness/{SECRET}"));
    assert_eq!(late["lifecycle"]["preStop"]["httpGet"]["path"], format!("/drain/{SECRET}"));
    assert_eq!(done["spec"]["terminationGracePeriodSeconds"], 35, "raised once");
}

#[test]
fn what_we_do_not_know_of_a_pod_stays() {
    let pod = json!({
        "metadata": { "name": "pay", "fieldOfTomorrow": 1 },
        "spec": {
            "fieldOfTomorrow": { "a": [1] },
            "initContainers": [{ "name": "first", "fieldOfTomorrow": true }],
            "containers": [{
                "name": "app",
                "fieldOfTomorrow": true,
                "startupProbe": { "tcpSocket": { "port": 80 }, "fieldOfTomorrow": 3, "periodSeconds": 7 },
            }],
        },
    });
    let injected = again(&pod, &enabled(), SECRET).expect("injected");
    let after = applied(&pod, &injected, &enabled());
    for pointer in [
        "/metadata/fieldOfTomorrow",
        "/spec/fieldOfTomorrow",
        "/spec/containers/0/fieldOfTomorrow",
        "/spec/containers/0/startupProbe/fieldOfTomorrow",
        "/spec/containers/0/startupProbe/periodSeconds",
    ] {
        assert_eq!(after.pointer(pointer), pod.pointer(pointer), "{pointer}");
    }
    assert_eq!(after["spec"]["initContainers"][2], pod["spec"]["initContainers"][0]);
    assert_eq!(after["spec"]["containers"][0]["startupProbe"].get("tcpSocket"), None);
}

#[test]
fn a_note_says_why_a_pod_stays_out() {
    let pod = json!({ "metadata": { "annotations": { "a": "b" } }, "spec": { "containers": [] } });
    let mut after = pod.clone();
    json_patch::patch(&mut after, &note(&typed(&pod), &["one".into(), "two".into()]))
        .expect("a patch that fits");
    assert_eq!(after["metadata"]["annotations"], json!({ "a": "b", NOT_INJECTED: "one; two" }));
    assert_eq!(after["spec"], pod["spec"]);
}

mod laws {
    use super::*;
    use proptest::{collection::vec, option, prelude::*, sample::select};

    fn port() -> impl Strategy<Value = Value> {
        prop_oneof![
            (1_u16..15_000).prop_map(Value::from),
            select(vec!["http", "grpc", "nowhere", "8081"]).prop_map(Value::from),
        ]
    }

    fn http() -> impl Strategy<Value = Value> {
        (
            port(),
            option::of(select(vec!["/", "/healthz?x=1", ""])),
            option::of(select(vec!["HTTP", "HTTPS"])),
            any::<bool>(),
        )
            .prop_map(|(port, path, scheme, elsewhere)| {
                let mut action = json!({ "port": port });
                if let Some(path) = path {
                    action["path"] = json!(path);
                }
                if let Some(scheme) = scheme {
                    action["scheme"] = json!(scheme);
                }
                if elsewhere {
                    action["host"] = json!("example.com");
                }
                json!({ "httpGet": action })
            })
    }

    fn probe() -> impl Strategy<Value = Value> {
        let how = prop_oneof![
            http(),
            port().prop_map(|port| json!({ "tcpSocket": { "port": port } })),
            (1_u16..15_000).prop_map(|port| json!({ "grpc": { "port": port } })),
            Just(json!({ "exec": { "command": ["true"] } })),
        ];
        (how, option::of(0_u32..9)).prop_map(|(mut probe, timeout)| {
            if let Some(timeout) = timeout {
                probe["timeoutSeconds"] = json!(timeout);
            }
            probe
        })
    }

    fn hook() -> impl Strategy<Value = Value> {
        prop_oneof![
            http(),
            Just(json!({ "exec": { "command": ["true"] } })),
            Just(json!({ "sleep": { "seconds": 1 } }))
        ]
    }

    fn container() -> impl Strategy<Value = Value> {
        let probes = (option::of(probe()), option::of(probe()), option::of(probe()));
        let hooks = option::of((option::of(hook()), option::of(hook())));
        let env = option::of(vec(select(vec!["HTTP_PROXY", "NO_PROXY", "no_proxy", "A"]), 0..3));
        (probes, hooks, env).prop_map(|((liveness, readiness, startup), hooks, env)| {
            let mut container = json!({ "ports": [{ "name": "http", "containerPort": 8080 }] });
            for (field, probe) in
                [("livenessProbe", liveness), ("readinessProbe", readiness), ("startupProbe", startup)]
            {
                if let Some(probe) = probe {
                    container[field] = probe;
                }
            }
            if let Some((start, stop)) = hooks {
                container["lifecycle"] = json!({});
                for (field, hook) in [("postStart", start), ("preStop", stop)] {
                    if let Some(hook) = hook {
                        container["lifecycle"][field] = hook;
                    }
                }
            }
            if let Some(env) = env {
                let variable = |name: &&str| json!({ "name": name, "value": "10.0.0.0/8" });
                container["env"] = env.iter().map(variable).collect();
            }
            container
        })
    }

    fn named(containers: Vec<Value>, stem: &str) -> Vec<Value> {
        let name = |(index, mut container): (usize, Value)| {
            container["name"] = json!(format!("{stem}{index}"));
            container
        };
        containers.into_iter().enumerate().map(name).collect()
    }

    fn pod() -> impl Strategy<Value = Value> {
        let containers = (vec(container(), 1..4), option::of(vec(container(), 0..3)));
        let marks =
            (option::of(select(vec!["enabled", "outbound"])), option::of(select(vec!["Init", "Env"])));
        (containers, marks, option::of(0_i64..100), any::<bool>()).prop_map(
            |((apps, init), (mode, interception), grace, volumes)| {
                let mut pod = json!({ "metadata": {}, "spec": { "containers": named(apps, "app") } });
                if let Some(init) = init {
                    pod["spec"]["initContainers"] = named(init, "init").into();
                }
                if let Some(mode) = mode {
                    pod["metadata"]["labels"] = json!({ INJECT: mode });
                }
                if let Some(interception) = interception {
                    pod["metadata"]["annotations"] = json!({ INTERCEPTION: interception });
                }
                if let Some(grace) = grace {
                    pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
                }
                if volumes {
                    pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
                }
                pod
            },
        )
    }

    proptest! {
        /// Whatever the pod, [`applied`] holds, the user's containers are all there in their order behind ours, and
        /// every path that leads to the agent is one that the agent was told about.
        #[test]
        fn injecting_twice_is_injecting_once(pod in pod()) {
            let injected = again(&pod, &enabled(), SECRET).expect("fit");
            let after = applied(&pod, &injected, &enabled());
            let names = |pod: &Value, list: &str| -> Vec<Value> {
                pod["spec"][list].as_array().into_iter().flatten().map(|it| it["name"].clone()).collect()
            };
            prop_assert_eq!(names(&after, "containers"), names(&pod, "containers"));
            let mut init = names(&after, "initContainers");
            let proxy = init.iter().position(|name| name == PROXY_CONTAINER).expect("the proxy");
            prop_assert!(proxy <= 1);
            init.drain(..=proxy);
            prop_assert_eq!(init, names(&pod, "initContainers"));

            let after = typed(&after);
            let spec = after.spec.as_ref().expect("a spec");
            let handed = injected_before(spec).expect("asks").expect("a proxy");
            for (_, _, container) in asks::users(spec) {
                let json = serde_json::to_string(container).expect("JSON");
                for occasion in airlane_wire::pod::Occasion::ALL {
                    let asked = airlane_wire::pod::Asked::Container { container: &container.name, occasion, secret: SECRET };
                    let key = airlane_wire::pod::Asked::key(&container.name, occasion);
                    let leads_there = json.contains(&format!("{:?}", asked.path()));
                    prop_assert_eq!(leads_there, handed.asks.contains_key(&key), "{} in {}", key, json);
                }
            }
        }
    }
}
