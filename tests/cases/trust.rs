//! The table of what must hold names tests that are there.

use std::{fs, path::Path};

#[test]
fn every_proof_in_the_table_is_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = fs::read_to_string(root.join("tests/trust.md")).unwrap();
    let named: Vec<(&str, &str)> = table.split('`').filter_map(|text| text.split_once(".rs::")).collect();
    assert!(named.len() > 50, "only {} tests are named: is the table still written so?", named.len());
    let missing: Vec<String> = named
        .iter()
        .filter(|(file, test)| {
            let source = fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_default();
            !source.contains(&format!("fn {test}("))
        })
        .map(|(file, test)| format!("{file}.rs::{test}"))
        .collect();
    assert!(missing.is_empty(), "tests/trust.md names what is not there: {missing:#?}");
}
