//! The definitions under `crds/`, and those of the chart, are what the types say, and no YAML reader misunderstands a name
//! in them.

#![expect(clippy::expect_used, reason = "a helper of tests fails the test")]

use airlane_api::crds;
use serde_json::Value;
use std::{env, fs, path::Path};

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
