//! Files as people write them: what is understood, what is reported, what is refused.

#![expect(clippy::expect_used, reason = "a helper of tests fails the test")]
use airlane_api::{Parsed, Value, merge, read_file};
use airlane_core::id::Namespace;

fn read(text: &str) -> Parsed {
    read_file("policies.yaml", text, &Namespace::parse("airlane-system").expect("a namespace"))
}

/// The errors of a text, as they are printed.
fn errors(text: &str) -> Vec<String> {
    merge([read(text)]).errors.iter().map(ToString::to_string).collect()
}

const EXAMPLES: &str = include_str!("cases/examples.yaml");

#[test]
fn a_file_of_all_kinds_is_read() {
    let parsed = read(EXAMPLES);
    assert_eq!(errors(EXAMPLES), [""; 0]);
    let [policy, canary, service] = &parsed.objects[..] else { panic!("{:?}", parsed.objects) };
    assert!(matches!(policy.value, Some(Value::Policy(_))));
    assert!(canary.value.is_none(), "a Deployment cannot be released without Kubernetes");
    assert!(matches!(service.value, Some(Value::Service(_))));
}
