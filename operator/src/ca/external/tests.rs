use super::*;
use crate::{
    ca::Ca,
    scripted_api::{client, refusal},
};
use airlane_core::id::TrustDomain;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints,
    PKCS_ECDSA_P384_SHA384,
};
use serde_json::{Value, json};
use std::sync::Mutex;

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

/// An authority outside the mesh.
struct Outside {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

fn params(name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let at = |at: Timestamp| time::OffsetDateTime::from_unix_timestamp(at.as_second()).expect("a time");
    params.not_before = at(now() - SignedDuration::from_hours(24));
    params.not_after = at(now() + SignedDuration::from_hours(24 * days));
    params
}

impl Outside {
    fn root(name: &str) -> Outside {
        let (params, key) = (params(name, 3650), KeyPair::generate().expect("a key"));
        let pem = params.self_signed(&key).expect("a root").pem();
        Outside { params, key, pem }
    }

    /// What cert-manager writes for such an intermediate.
    fn signs(&self, edit: impl FnOnce(&mut CertificateParams)) -> Value {
        self.signs_for(&KeyPair::generate().expect("a key"), edit)
    }

    fn signs_for(&self, key: &KeyPair, edit: impl FnOnce(&mut CertificateParams)) -> Value {
        let mut params = params("intermediate", 90);
        edit(&mut params);
        let issuer = Issuer::from_params(&self.params, &self.key);
        let cert = params.signed_by(key, &issuer).expect("an intermediate").pem();
        secret(&cert, &key.serialize_pem(), &self.pem)
    }
}

fn secret(chain: &str, key: &str, roots: &str) -> Value {
    let value = |text: &str| BASE64_STANDARD.encode(text);
    json!({
        "metadata": { "name": "mesh-ca", "namespace": "airlane-system" },
        "data": { "tls.crt": value(chain), "tls.key": value(key), "ca.crt": value(roots) },
    })
}

type Kept = Arc<Mutex<Value>>;

fn api(kept: &Kept) -> Client {
    let kept = Arc::clone(kept);
    client(move |(_, path, _)| {
        assert_eq!(path, "/api/v1/namespaces/airlane-system/secrets/mesh-ca");
        let kept = kept.lock().expect("not poisoned").clone();
        if kept.is_null() { refusal(404, "NotFound") } else { Some((200, kept)) }
    })
}

async fn open(kept: &Kept) -> Result<Ca, CaError> {
    let namespace = Namespace::parse("airlane-system").expect("a namespace");
    let trust_domain = TrustDomain::parse("airlane.local").expect("a trust domain");
    Ca::external(api(kept), &namespace, "mesh-ca", trust_domain, SignedDuration::from_hours(1), now()).await
}

#[tokio::test]
async fn it_signs_and_is_followed_when_it_is_renewed() {
    let root = Outside::root("root");
    let kept: Kept = Arc::new(Mutex::new(root.signs(|_| {})));
    let ca = open(&kept).await.expect("opened");
    assert_eq!(ca.bundle_pem().matches("BEGIN CERTIFICATE").count(), 1);
    let before = ca.leaf_named("airlane", now()).expect("a leaf").chain;
    assert_eq!(before.len(), 3, "leaf, intermediate, root");
    assert!(!ca.follow(now()).await.expect("the same"));
    *kept.lock().expect("not poisoned") = root.signs(|_| {});
    assert!(ca.follow(now()).await.expect("renewed"));
    assert_ne!(ca.leaf_named("airlane", now()).expect("a leaf").chain[1], before[1]);
    assert!(!ca.is_new() && !ca.renews_itself());
    let refused = ca.begin_rotation(now()).await.expect_err("not ours").to_string();
    assert!(refused.contains("whoever keeps it replaces it"), "{refused}");
}

#[tokio::test]
async fn another_root_is_trusted_before_it_signs() {
    let (old, new) = (Outside::root("old"), Outside::root("new"));
    let (first, next) = (old.signs(|_| {}), new.signs(|_| {}));
    let kept: Kept = Arc::new(Mutex::new(first.clone()));
    let ca = open(&kept).await.expect("opened");
    let signs = ca.root();
    *kept.lock().expect("not poisoned") = next.clone();
    let error = ca.follow(now()).await.expect_err("nobody trusts it").to_string();
    assert!(error.contains("put the new root beside the old one into ca.crt"), "{error}");
    assert_eq!(ca.root(), signs);
    let both = json!(BASE64_STANDARD.encode(format!("{}{}", old.pem, new.pem)));
    for mut secret in [first, next] {
        secret["data"]["ca.crt"] = both.clone();
        *kept.lock().expect("not poisoned") = secret;
        assert!(ca.follow(now()).await.expect("taken over"));
        assert_eq!(ca.fingerprints().len(), 2);
    }
    assert_ne!(ca.root(), signs);
}

/// A Secret that cannot sign is refused in these words, when it is opened and when it is followed.
async fn check(bad: Value, says: &str) {
    let error = open(&Arc::new(Mutex::new(bad.clone()))).await.expect_err(says).to_string();
    assert!(error.contains("Secret airlane-system/mesh-ca") && error.contains(says), "{says:?}: {error}");
    assert!(!error.contains("-----BEGIN"), "{error}");
    let kept: Kept = Arc::new(Mutex::new(Outside::root("root").signs(|_| {})));
    let ca = open(&kept).await.expect("opened");
    let before = ca.leaf_named("airlane", now()).expect("a leaf").chain;
    *kept.lock().expect("not poisoned") = bad;
    ca.follow(now()).await.expect_err(says);
    assert_eq!(ca.leaf_named("airlane", now()).expect("a leaf").chain[1], before[1], "it goes on");
}

#[tokio::test]
async fn what_cannot_sign_is_named_and_changes_nothing() {
    let root = Outside::root("root");
    let with = |key: &str, value: &str| {
        let mut secret = root.signs(|_| {});
        secret["data"][key] = json!(BASE64_STANDARD.encode(value));
        secret
    };
    check(Value::Null, "it is not there").await;
    check(with("tls.crt", "nothing"), "tls.crt does not hold certificates in PEM").await;
    check(with("ca.crt", ""), "ca.crt does not hold the roots to trust").await;
    check(with("tls.key", "-----BEGIN RSA PRIVATE KEY-----"), "privateKey: {algorithm: ECDSA, size: 256")
        .await;
    let other = KeyPair::generate().expect("a key").serialize_pem();
    check(with("tls.key", &other), "tls.crt is not the certificate of tls.key").await;
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
    check(root.signs_for(&p384, |_| {}), "an ECDSA P-256 key").await;
    check(root.signs(|params| params.is_ca = IsCa::ExplicitNoCa), "tls.crt is no authority").await;
    check(with("ca.crt", &Outside::root("elsewhere").pem), "does not lead to a root in ca.crt").await;
    let ended =
        |params: &mut CertificateParams| params.not_after = params.not_before + time::Duration::hours(1);
    check(root.signs(ended), "would not be believed").await;
    let elsewhere = |params: &mut CertificateParams| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.com".into())],
            excluded_subtrees: Vec::new(),
        });
    };
    check(root.signs(elsewhere), "would not be believed").await;
}
