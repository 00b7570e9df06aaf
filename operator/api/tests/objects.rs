//! Objects as an API server gives them: they mean what the same text means in a file.

#![expect(clippy::expect_used, reason = "a helper of tests fails the test")]

use airlane_api::{Object, Unread, Value, read_file, read_object};
use airlane_core::{
    id::{Name, Namespace, ServiceId},
    policy::Target,
};
use serde_json::{Value as Json, json};
use std::{collections::BTreeMap, fs, path::Path};

fn system_namespace() -> Namespace {
    Namespace::parse("airlane-system").expect("a namespace")
}

fn read(object: &Json) -> Object {
    read_object(object, &system_namespace())
}

/// A policy with what an API server adds by itself, some of it from a version we do not know.
fn policy(spec: &Json) -> Json {
    json!({
        "apiVersion": "airlane.dev/v1alpha1",
        "kind": "MeshPolicy",
        "metadata": {
            "name": "pay",
            "namespace": "shop",
            "uid": "8f4d",
            "resourceVersion": "1234",
            "generation": 3,
            "creationTimestamp": "2026-11-01T10:00:00Z",
            "managedFields": [{ "manager": "kubectl" }],
            "invented": "later",
        },
        "spec": spec,
        "status": { "anything": true },
    })
}

/// The object must be refused with these problems and this left known of it.
fn check(object: &Json, problems: &[&str], unread: &Unread) {
    let read = read(object);
    let told: Vec<String> = read.problems.iter().map(ToString::to_string).collect();
    assert_eq!(told, problems);
    assert_eq!((read.value, read.refused.as_ref()), (None, Some(unread)));
}

fn pay(port: Option<u16>) -> Option<Target> {
    let namespace = Namespace::parse("shop").expect("a namespace");
    let service = ServiceId { namespace, name: Name::parse("pay").expect("a name") };
    Some(Target::Service { service, port })
}

#[test]
fn a_policy_knows_its_generation_and_age() {
    let read = read(&policy(&json!({ "timeouts": { "request": "10s" } })));
    assert_eq!((read.problems.as_slice(), &read.refused), (&[][..], &None));
    let Some(Value::Policy(policy)) = read.value else { panic!("a policy") };
    assert_eq!((policy.generation, policy.age_rank), (3, 1_793_527_200));
    assert_eq!(policy.calls.timeouts.request.map(|request| request.0), Some(10_000));
}

#[test]
fn a_canary_knows_its_generation() {
    let read = read(&json!({
        "apiVersion": "airlane.dev/v1alpha1",
        "kind": "Canary",
        "metadata": { "name": "pay", "namespace": "shop", "generation": 2 },
        "spec": { "service": "pay", "stable": { "version": "v1" }, "canary": { "version": "v2" } },
    }));
    let Some(Value::Canary(canary)) = read.value else { panic!("a canary: {:?}", read.problems) };
    assert_eq!((canary.generation, canary.progress), (2, None));
}

#[test]
fn what_is_wrong_is_told_with_its_field() {
    check(
        &policy(&json!({ "retries": { "attempts": 11, "perTryTimeOut": "1s" }, "timeouts": "10s" })),
        &[
            "MeshPolicy shop/pay: spec.retries.attempts: 11 is out of range; write 0 to 10",
            "MeshPolicy shop/pay: spec.retries.perTryTimeOut: there is no field \"perTryTimeOut\" here; did you mean perTryTimeout?",
            "MeshPolicy shop/pay: spec.timeouts: a map is wanted here, not a text; write its fields below it, indented, or in { }",
        ],
        &Unread {
            target: Some(Target::Namespace(Namespace::parse("shop").expect("a name"))),
            mtls: false,
            access: false,
        },
    );
}

#[test]
fn a_refused_door_is_known() {
    check(
        &policy(&json!({ "targetRef": { "kind": "Service", "name": "pay" }, "mtls": { "mode": "strict" } })),
        &[
            "MeshPolicy shop/pay: spec.mtls.mode: \"strict\" is not one of its values; write Strict, Permissive or Disabled",
        ],
        &Unread { target: pay(None), mtls: true, access: false },
    );
}

/// The definitions let no such object in; if one is there all the same, its problems still have an owner.
#[test]
fn an_object_without_proper_name_is_told_of_all_the_same() {
    let mut named = policy(&json!({}));
    named["metadata"]["name"] = "My.Policy-".into();
    check(
        &named,
        &[
            "MeshPolicy shop/my-policy: metadata.name: \"My.Policy-\" is not a valid name; use at most 63 lower-case letters, digits and '-', starting and ending with a letter or digit",
        ],
        &Unread::default(),
    );
    for nonsense in [json!(null), json!([1]), json!({ "kind": "MeshPolicy", "metadata": { "name": "..." } })]
    {
        let read = read(&nonsense);
        assert_eq!(read.id.to_string(), "MeshPolicy default/unnamed", "{nonsense}");
        assert_eq!((read.value, read.problems.len(), read.refused), (None, 1, Some(Unread::default())));
    }
}

/// Every case of `reading.rs` but those about the text itself, document by document.
#[test]
fn an_object_means_what_its_file_means() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut met = BTreeMap::<&str, usize>::new();
    for entry in fs::read_dir(&folder).expect("the cases") {
        let path = entry.expect("a case").path();
        if path.extension().is_none_or(|extension| extension != "yaml")
            || path.file_stem().is_some_and(|name| name == "syntax" || name == "twice")
        {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a case");
        for document in format!("\n{text}").split("\n---") {
            let Ok(json) = serde_saphyr::from_str::<Json>(document) else { continue };
            let parsed = read_file("one.yaml", document, &system_namespace());
            let read = read(&json);
            let shown = format!("{}:\n{document}\n{read:#?}", path.display());
            if let Some(object) = parsed.objects.first() {
                *met.entry("used").or_default() += 1;
                let mut value = read.value.clone();
                // A file has neither; `printed-by-kubectl` states them and is not believed.
                if let Some(Value::Policy(policy)) = &mut value {
                    (policy.generation, policy.age_rank) = (0, 0);
                }
                assert_eq!((&read.id, &value), (&object.id, &object.value), "{shown}");
                assert_eq!(read.problems, object.problems, "{shown}");
            }
            if let Some(refused) = parsed.refused.first() {
                *met.entry("refused").or_default() += 1;
                assert_eq!((read.value, read.refused.as_ref()), (None, Some(&refused.unread)), "{shown}");
            }
        }
    }
    assert!(met["used"] >= 8 && met["refused"] >= 12, "{met:?}");
}
