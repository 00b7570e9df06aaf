use super::*;
use airlane_core::{
    id::{Revision, WorkloadRevision},
    world::Health,
};
use serde_json::{Value, json};

const UID: &str = "0f4c8e2a-7d51-4b6e-9b57-2f0d1c3a8e77";

/// What the API server answers for the token of pod `pay-7c9f6d-abcde`, which runs as `pay` in `shop`.
fn answer(change: impl FnOnce(&mut Value)) -> TokenReviewStatus {
    let mut status = json!({
        "authenticated": true,
        "audiences": ["airlane"],
        "user": {
            "username": "system:serviceaccount:shop:pay",
            "uid": "6a2c…",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/credential-id": ["JTI=1"],
                "authentication.kubernetes.io/node-name": ["node1"],
                "authentication.kubernetes.io/pod-name": ["pay-7c9f6d-abcde"],
                "authentication.kubernetes.io/pod-uid": [UID],
            },
        },
    });
    change(&mut status);
    serde_json::from_value(status).expect("a status")
}

fn token(claims: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2lnbmF0dXJl", part(&json!({"alg": "RS256"})), part(claims))
}

fn ours() -> String {
    token(&json!({"aud": ["airlane"], "exp": 2000}))
}

fn check(change: impl FnOnce(&mut Value), expected: &Result<&str, NotLetIn>) {
    let status = answer(change);
    let found = bearer(&status, &ours(), Timestamp::from_second(1000).expect("in range"));
    let found = found.map(|bearer| {
        let Bearer { namespace, service_account, pod, instance } = bearer;
        format!("{namespace}/{service_account} {pod} {instance}")
    });
    assert_eq!(found.as_deref().map_err(Clone::clone), *expected, "{status:?}");
}

#[test]
fn the_bearer_is_who_the_api_server_says() {
    check(|_| {}, &Ok("shop/pay pay-7c9f6d-abcde pay-7c9f6d-abcde-0f4c8e2a"));
    check(
        |status| status["user"]["username"] = json!("system:serviceaccount:shop:default"),
        &Ok("shop/default pay-7c9f6d-abcde pay-7c9f6d-abcde-0f4c8e2a"),
    );
    check(
        |status| status["audiences"] = json!(["vault", "airlane"]),
        &Ok("shop/pay pay-7c9f6d-abcde pay-7c9f6d-abcde-0f4c8e2a"),
    );
}

#[test]
fn what_is_not_confirmed_is_refused() {
    check(|status| status["authenticated"] = json!(false), &Err(NotLetIn::Rejected));
    check(|status| status["authenticated"] = json!(null), &Err(NotLetIn::Rejected));
    for audiences in [json!(null), json!([]), json!(["https://kubernetes.default.svc"]), json!(["airlane2"])]
    {
        check(|status| status["audiences"] = audiences, &Err(NotLetIn::Audience));
    }
    check(|status| status["user"] = json!(null), &Err(NotLetIn::NoAccount));
    for user in [
        "",
        "kubernetes-admin",
        "system:node:node1",
        "system:serviceaccount:shop",
        "system:serviceaccount::pay",
        "system:serviceaccount:Shop:pay",
        "x:system:serviceaccount:shop:pay",
    ] {
        check(|status| status["user"]["username"] = json!(user), &Err(NotLetIn::NoAccount));
    }
}

#[test]
fn an_account_that_an_identity_cannot_name_is_refused_not_mended() {
    for account in ["pay.", "..", "pay:x", "", "Pay", "pay/..", "pay\0", "*"] {
        check(
            |status| status["user"]["username"] = json!(format!("system:serviceaccount:shop:{account}")),
            &Err(NotLetIn::Account { account: account.into() }),
        );
    }
}

#[test]
fn a_token_without_one_pod_is_refused() {
    let extra =
        |key: &'static str, value: Value| move |status: &mut Value| status["user"]["extra"][key] = value;
    for key in [POD_NAME, POD_UID] {
        for value in [json!([]), json!([""]), json!(["a", "b"])] {
            check(extra(key, value), &Err(NotLetIn::Unbound));
        }
        check(
            |status| {
                status["user"]["extra"].as_object_mut().expect("an object").remove(key);
            },
            &Err(NotLetIn::Unbound),
        );
    }
    check(|status| status["user"]["extra"] = json!(null), &Err(NotLetIn::Unbound));
    check(extra(POD_UID, json!(["/../"])), &Err(NotLetIn::PodName { pod: "pay-7c9f6d-abcde".into() }));
}

#[test]
fn a_refusal_says_what_the_token_shows() {
    let check = |claims: &Value, expected: &NotLetIn| {
        let status = answer(|status| status["authenticated"] = json!(false));
        let found = bearer(&status, &token(claims), Timestamp::from_second(1000).expect("in range"));
        assert_eq!(found.as_ref(), Err(expected), "{claims}");
    };
    check(&json!({"aud": ["https://kubernetes.default.svc"], "exp": 2000}), &NotLetIn::Audience);
    check(&json!({"aud": "vault"}), &NotLetIn::Audience);
    check(&json!({}), &NotLetIn::Audience);
    check(&json!({"aud": ["airlane"], "exp": 1000}), &NotLetIn::Expired);
    check(&json!({"aud": "airlane", "exp": 1001}), &NotLetIn::Rejected);
    check(&json!({"aud": 7}), &NotLetIn::Shape);
    check(&json!("airlane"), &NotLetIn::Shape);
}

#[test]
fn what_cannot_be_a_token_is_not_asked_about() {
    assert_eq!(check_shape(&ours()), Ok(()));
    for bad in ["", "x", "a.b", "a.b.c.d", "a..c", ".b.c", "a.b.", "a.b.c ", "a.b=.c", "a.b\0.c", "ä.b.c"] {
        assert_eq!(check_shape(bad), Err(NotLetIn::Shape), "{bad:?}");
    }
    assert_eq!(check_shape(&format!("a.{}.c", "b".repeat(TOKEN_MAX))), Err(NotLetIn::Shape));
}

#[test]
fn the_observed_pod_must_be_the_bearer() {
    let trust_domain = TrustDomain::parse("airlane.local").expect("a trust domain");
    let bearer = bearer(&answer(|_| {}), &ours(), Timestamp::UNIX_EPOCH).expect("a bearer");
    let account = |text: &str| ServiceAccount::parse(text).expect("a name");
    let pod = Instance {
        id: bearer.instance.clone(),
        workload: WorkloadRevision {
            namespace: bearer.namespace.clone(),
            workload: "pay".parse().expect("a name"),
            revision: Revision::parse("v1").expect("a revision"),
        },
        service_account: account("pay"),
        services: [].into(),
        address: [10, 0, 0, 1].into(),
        ipv6: false,
        ports: vec![],
        outbound_port: 15001,
        interception: Interception::Transparent,
        stops_within: std::time::Duration::ZERO,
        health: Health::Starting,
    };
    let check = |observed: &Instance, expected: Result<&str, NotLetIn>| {
        let found = bearer.identity(observed, &trust_domain).map(|identity| identity.to_string());
        assert_eq!(found.as_deref().map_err(Clone::clone), expected, "{observed:?}");
    };
    check(&pod, Ok("spiffe://airlane.local/ns/shop/sa/pay"));
    // Whoever is told to stop still finishes its requests, as itself.
    check(&Instance { health: Health::Draining, ..pod.clone() }, Ok("spiffe://airlane.local/ns/shop/sa/pay"));
    let not_seen = || Err(NotLetIn::NotSeen { pod: "pay-7c9f6d-abcde".into() });
    let other = InstanceId::of_copy("pay-7c9f6d-abcde", "1f4c8e2a").expect("an instance");
    check(&Instance { id: other, ..pod.clone() }, not_seen());
    let mut elsewhere = pod.clone();
    elsewhere.workload.namespace = Namespace::parse("bank").expect("a namespace");
    check(&elsewhere, not_seen());
    check(
        &Instance { service_account: account("orders"), ..pod.clone() },
        Err(NotLetIn::OtherAccount { pod: "pay-7c9f6d-abcde".into(), account: account("pay") }),
    );
    check(
        &Instance { interception: Interception::None, ..pod },
        Err(NotLetIn::NoProxy { pod: "pay-7c9f6d-abcde".into() }),
    );
}
