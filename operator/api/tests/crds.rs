//! The definitions under `crds/`, and those of the chart, are what the types say, and no YAML reader misunderstands a name
//! in them.

#![expect(clippy::expect_used, reason = "a helper of tests fails the test")]

use airlane_api::{Value as Meaning, crds, read_object};
use airlane_core::{
    compile::effective,
    id::{Namespace, ServiceId, TrustDomain},
    world::{Port, Protocol, Service, World},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, env, fs, path::Path, sync::Arc};

fn definitions() -> Vec<(String, String)> {
    crds().expect("definitions have a form in YAML")
}

#[test]
fn the_files_are_what_the_types_say() {
    // A chart can hold only what is in its folder.
    for folder in ["crds", "helm/airlane/files/crds"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
        for (name, yaml) in definitions() {
            let file = path.join(&name);
            if env::var_os("UPDATE").is_some() {
                fs::write(&file, &yaml).expect("the folder can be written");
            }
            let committed = fs::read_to_string(&file).unwrap_or_default();
            assert!(committed == yaml, "{folder}/{name} is stale: run `UPDATE=1 cargo test -p airlane-api`");
        }
        let files = fs::read_dir(&path).expect("the folder can be read").count();
        assert_eq!(files, definitions().len(), "{folder} holds what no type says");
    }
}

/// Every node of a schema with its path.
fn walk(path: &str, node: &Value, visit: &mut impl FnMut(&str, &serde_json::Map<String, Value>)) {
    if let Value::Object(map) = node {
        visit(path, map);
    }
    match node {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| walk(&format!("{path}.{key}"), value, visit));
        }
        Value::Array(items) => items.iter().for_each(|value| walk(path, value, visit)),
        _ => {}
    }
}

fn schemas() -> Vec<Value> {
    definitions()
        .iter()
        .map(|(_, yaml)| serde_saphyr::from_str::<Value>(yaml).expect("a definition reads back"))
        .collect()
}

/// A YAML 1.1 reader, as kubectl's, takes these words for truths.
const TRUTHS: [&str; 8] = ["y", "n", "yes", "no", "on", "off", "true", "false"];

#[test]
fn no_name_is_a_truth_of_yaml_1_1() {
    let is_truth = |word: &str| TRUTHS.contains(&word.to_lowercase().as_str());
    // Kubernetes' own words for the status of a condition, which everybody writes in quotes.
    let allowed = |path: &str| path.ends_with(".conditions.items.properties.status");
    let mut names = 0;
    for schema in schemas() {
        walk("", &schema, &mut |path, node| {
            for name in
                node.get("properties").and_then(Value::as_object).into_iter().flat_map(|map| map.keys())
            {
                names += 1;
                assert!(!is_truth(name), "{path}.{name}");
            }
            for choice in node.get("enum").and_then(Value::as_array).into_iter().flatten() {
                names += 1;
                assert!(
                    choice.as_str().is_some_and(|choice| !is_truth(choice)) || allowed(path),
                    "{path}: {choice}"
                );
            }
        });
    }
    assert!(names > 150, "only {names} names were seen: the walk is broken");
}

/// What the API server demands of a structural schema, as far as a type could break it; and that nothing a user
/// writes is without bound.
#[test]
fn schemas_are_structural_and_bounded() {
    for schema in schemas() {
        walk("", &schema["spec"]["versions"], &mut |path, node| {
            assert!(!node.contains_key("$ref"), "{path} has a reference");
            let Some(kind) = node.get("type").and_then(Value::as_str) else {
                let is_schema = path.ends_with(".items") || path.rsplit('.').nth(1) == Some("properties");
                assert!(
                    !is_schema || node.contains_key("x-kubernetes-preserve-unknown-fields"),
                    "{path} has no type"
                );
                return;
            };
            if path.contains(".additionalPrinterColumns") || !path.contains(".properties.") {
                return;
            }
            let bounded = match kind {
                "array" => node.contains_key("maxItems"),
                "string" => node.contains_key("maxLength") || node.contains_key("enum"),
                _ => true,
            };
            assert!(bounded, "{path} has no maximum");
            for keyword in ["anyOf", "oneOf", "allOf", "not"] {
                assert!(!node.contains_key(keyword), "{path} has {keyword}");
            }
        });
    }
}

/// Every field of a resource, by its path.
fn fields(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        visit(&path, field);
        fields(&path, field, visit);
        fields(&path, &field["items"], visit);
    }
}

/// What `kubectl explain` says of each field of the two resources, policies first.
fn described() -> [BTreeMap<String, String>; 2] {
    ["meshpolicies", "canaries"].map(|plural| {
        let all = schemas();
        let of_plural = all.iter().find(|schema| schema["spec"]["names"]["plural"] == plural);
        let schema = &of_plural.expect("its definition")["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut described = BTreeMap::new();
        fields("", schema, &mut |path, field| {
            let text = field["description"].as_str().unwrap_or_default();
            described.insert(path.to_owned(), text.to_owned());
        });
        described
    })
}

#[test]
fn every_field_is_described_in_a_sentence() {
    for (path, text) in described().into_iter().flatten() {
        let words = text.trim_start_matches("Not supported yet.").split_whitespace().count();
        assert!(words >= 3 && text.ends_with('.'), "{path}: {text:?}");
    }
}

/// A world with one service and nothing said about it.
fn untouched(service: &ServiceId) -> World {
    let port = Port { number: 80, target: 8080, protocol: Protocol::Http };
    let declared = Service { id: service.clone(), ports: vec![port], addresses: [].into() };
    World {
        trust_domain: TrustDomain::parse("airlane.local").expect("a domain"),
        system_namespace: Namespace::parse("airlane-system").expect("a name"),
        cluster_domain: None,
        services: [(service.clone(), Arc::new(declared))].into(),
        instances: BTreeMap::new(),
        policies: BTreeMap::new(),
        canaries: BTreeMap::new(),
    }
}

#[test]
fn defaults_of_policies_are_told_as_they_hold() {
    let [policy, _] = described();
    let namespace = Namespace::parse("shop").expect("a name");
    let service = ServiceId { namespace, name: "pay".parse().expect("a name") };
    let effective = effective(&untouched(&service), &service).expect("it is there");
    let rows = &effective.ports[&80];
    assert!(rows.len() > 20, "only {} values were seen", rows.len());
    for row in rows {
        let told = match &*row.value {
            "none" => " if no policy says it".to_owned(),
            value => format!(" {value} if no policy says it"),
        };
        let text = &policy[&row.field];
        assert!(text.contains(&told), "{}: {} in {text:?}", row.field, row.value);
    }
}

#[test]
fn defaults_of_canaries_are_told_as_they_hold() {
    let [_, told] = described();
    let plan = |more: Value| {
        let mut spec =
            json!({ "service": "pay", "stable": { "version": "v1" }, "canary": { "version": "v2" } });
        spec.as_object_mut().expect("a map").extend(more.as_object().cloned().unwrap_or_default());
        let canary = json!({
            "apiVersion": "airlane.dev/v1alpha1", "kind": "Canary",
            "metadata": { "name": "pay", "namespace": "shop" }, "spec": spec,
        });
        match read_object(&canary, &Namespace::parse("airlane-system").expect("a name")).value {
            Some(Meaning::Canary(canary)) => canary.plan,
            other => unreachable!("{other:?}"),
        }
    };
    let percent = |share: f64| share * 100.0;
    let silent = plan(json!({}));
    let steps: Vec<String> = silent.steps.iter().map(|step| (step.share / 100).to_string()).collect();
    let errors = &silent.objectives[0];
    let named = plan(json!({ "objectives": [{ "name": "errors", "errorRate": { "max": "4%" } }] }));
    let named = &named.objectives[0];
    assert_eq!(percent(named.max / named.ignore_below).round(), 1_000.0, "a tenth");
    for (field, default) in [
        ("spec.steps", format!("Without them: {} %.", steps.join(", "))),
        ("spec.objectives", format!("Without them: at most {} % errors.", percent(errors.max))),
        ("spec.objectives.errorRate.worseThanStable", format!("{}x if not said.", named.worse_than_stable)),
        ("spec.objectives.errorRate.ignoreBelow", "A tenth of max if not said.".to_owned()),
        ("spec.judgement.falseRollback", format!("{}% if not said.", percent(silent.false_rollback))),
        ("spec.judgement.wrongPromotion", format!("{}% if not said.", percent(silent.wrong_promotion))),
    ] {
        assert!(told[field].contains(&default), "{field}: {default} in {:?}", told[field]);
    }
}
