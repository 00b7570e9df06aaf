use super::*;
use crate::{
    ca::{Ca, Origin},
    scripted_api::{client, refusal},
};
use airlane_core::pki::rotation::Step;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::Method;
use jiff::SignedDuration;
use serde_json::{Value, json};
use std::{
    error::Error as _,
    sync::{Arc, Mutex},
};

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("airlane.local").expect("a trust domain")
}

fn namespace() -> Namespace {
    Namespace::parse("airlane-system").expect("a namespace")
}

async fn open(client: Client) -> Result<Ca, CaError> {
    Ca::in_cluster(client, &namespace(), trust_domain(), SignedDuration::from_hours(1), now()).await
}

/// The Secret of a cluster, kept as an API server keeps it.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Option<Value>>>);

impl Kept {
    fn client(&self) -> Client {
        self.client_that_first_finds(true)
    }

    /// A client whose first look may come before the Secret is there.
    fn client_that_first_finds(&self, finds: bool) -> Client {
        let (kept, late) = (Arc::clone(&self.0), Mutex::new(!finds));
        client(move |(method, path, body)| {
            assert!(path.starts_with("/api/v1/namespaces/airlane-system/secrets"), "{path}");
            let mut kept = kept.lock().expect("not poisoned");
            if method == Method::POST {
                if kept.is_some() {
                    return refusal(409, "AlreadyExists");
                }
                *kept = Some(body.clone());
                return Some((201, body));
            }
            if method == Method::PUT {
                *kept = Some(body.clone());
                return Some((200, body));
            }
            let late = std::mem::take(&mut *late.lock().expect("not poisoned"));
            kept.clone()
                .filter(|_| !late)
                .map_or_else(|| refusal(404, "NotFound"), |secret| Some((200, secret)))
        })
    }

    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        edit(self.0.lock().expect("not poisoned").as_mut().expect("there"));
    }

    fn value(&self, key: &str) -> String {
        let kept = self.0.lock().expect("not poisoned");
        let value = kept.as_ref().expect("there")["data"][key].as_str().expect("a text").to_owned();
        String::from_utf8(BASE64_STANDARD.decode(value).expect("base64")).expect("UTF-8")
    }
}

#[tokio::test]
async fn the_first_makes_the_root_and_everybody_has_it() {
    let kept = Kept::default();
    let first = open(kept.client()).await.expect("made");
    assert!(first.is_new());
    assert_eq!(kept.value(CERT), first.bundle_pem());
    assert!(kept.value(KEY).contains("PRIVATE KEY"));
    let second = open(kept.client()).await.expect("read");
    assert!(!second.is_new());
    assert_eq!(second.root_fingerprint(), first.root_fingerprint());
    // It found none, and somebody else was faster.
    let third = open(kept.client_that_first_finds(false)).await.expect("read");
    assert!(!third.is_new());
    assert_eq!(third.root_fingerprint(), first.root_fingerprint());
}

#[tokio::test]
async fn every_replica_signs_with_a_key_of_its_own() {
    let kept = Kept::default();
    let (one, other) = (open(kept.client()).await.expect("made"), open(kept.client()).await.expect("read"));
    let chain = |ca: &Ca| ca.leaf_named("airlane", now()).expect("a leaf").chain;
    assert_ne!(chain(&one)[1], chain(&other)[1], "the intermediates");
    assert_eq!(chain(&one)[2], chain(&other)[2], "the root");
    one.renew_intermediate(now()).await.expect("renewed");
    assert_eq!(
        kept.0.lock().expect("not poisoned").as_ref().expect("there")["data"].as_object().map(|d| d.len()),
        Some(2)
    );
}

/// Whoever opens a Secret that was edited like this is told what is wrong, and the Secret stays as it is.
async fn check(edit: impl FnOnce(&mut Value), says: &[&str]) {
    let kept = Kept::default();
    open(kept.client()).await.expect("made");
    kept.edit(edit);
    let before = kept.0.lock().expect("not poisoned").clone();
    let error = open(kept.client()).await.expect_err("damaged").to_string();
    for part in [&["Secret airlane-system/airlane-root"], says].concat() {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    assert!(!error.contains("-----BEGIN"), "{error}");
    assert_eq!(*kept.0.lock().expect("not poisoned"), before, "nobody replaces it");
}

#[tokio::test]
async fn a_damaged_root_is_named_and_never_replaced() {
    let set = |key: &'static str, text: &str| {
        let value = json!(BASE64_STANDARD.encode(text));
        move |secret: &mut Value| secret["data"][key] = value
    };
    let without = |key: &'static str| {
        move |secret: &mut Value| {
            secret["data"].as_object_mut().expect("an object").remove(key);
        }
    };
    let mends = "delete the Secret for a new root";
    check(without(CERT), &["root.crt", "missing", "backup", mends]).await;
    check(without(KEY), &["root.key", "missing", "backup", mends]).await;
    check(|secret| secret["data"] = Value::Null, &["root.crt", "missing"]).await;
    check(set(CERT, "-----BEGIN NOTHING-----"), &["root.crt", "a certificate in PEM", mends]).await;
    check(set(KEY, "-----BEGIN NOTHING-----"), &["root.key", "an ECDSA P-256 key", mends]).await;
    check(|secret| secret["data"][KEY] = json!("/w=="), &["root.key", "an ECDSA P-256 key"]).await;
    let other = Kept::default();
    open(other.client()).await.expect("made");
    check(set(KEY, &other.value(KEY)), &["is not the certificate of", mends]).await;
    let elsewhere = Pair::make_root(&TrustDomain::parse("elsewhere").expect("one"), now()).expect("made");
    let (cert, key) = (cert_pem(&elsewhere.cert), elsewhere.key.serialize_pem());
    check(
        |secret| {
            set(CERT, &cert)(secret);
            set(KEY, &key)(secret);
        },
        &["another trust domain than airlane.local"],
    )
    .await;
}

#[tokio::test]
async fn a_root_that_was_replaced_signs_nothing_more_here() {
    let (kept, other) = (Kept::default(), Kept::default());
    let ca = open(kept.client()).await.expect("made");
    open(other.client()).await.expect("made");
    let theirs = other.0.lock().expect("not poisoned").clone().expect("there");
    kept.edit(|secret| *secret = theirs);
    let before = ca.intermediate();
    let error = ca.renew_intermediate(now()).await.expect_err("refused").to_string();
    assert!(error.contains("another root than the one this operator started with"), "{error}");
    assert_eq!(ca.intermediate(), before);
}

#[tokio::test]
async fn an_account_that_may_not_read_it_is_told() {
    let error = open(client(|_| refusal(403, "Forbidden"))).await.expect_err("refused");
    let text = error.to_string();
    assert!(text.contains("cannot get Secret airlane-system/airlane-root"), "{text}");
    assert!(error.source().is_some());
}

const OVERLAP: SignedDuration = SignedDuration::from_hours(2);

fn later(hours: i64) -> Timestamp {
    now() + SignedDuration::from_hours(hours)
}

/// Whether a leaf that one authority gives is believed by whoever trusts what another one says.
fn believes(truster: &Ca, signer: &Ca, at: Timestamp) -> bool {
    let mut roots = rustls::RootCertStore::empty();
    for root in &*truster.roots() {
        roots.add(root.cert.clone()).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = verifier.build().expect("a verifier");
    let chain = signer.leaf_named("airlane", at).expect("a leaf").chain;
    let seconds = u64::try_from(at.as_second()).expect("after 1970");
    let at = rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    verifier.verify_client_cert(&chain[0], &chain[1..2], at).is_ok()
}

#[tokio::test]
async fn a_root_is_replaced_without_anybody_who_is_not_believed() {
    let kept = Kept::default();
    let leader = open(kept.client()).await.expect("made");
    let other = open(kept.client()).await.expect("read");
    let old = leader.root();
    let mut heard = other.bundle();
    leader.begin_rotation(now()).await.expect("begun");
    let again = leader.begin_rotation(now()).await.expect_err("it is under way").to_string();
    assert!(again.contains("being replaced since 2026-03-01T12:00:00Z"), "{again}");
    assert!(other.follow(now()).await.expect("followed"));
    assert!(!other.follow(now()).await.expect("followed"), "there is no news");
    assert!(heard.has_changed().expect("open"));
    assert_eq!(heard.borrow_and_update().matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!((leader.root(), other.root()), (old.clone(), old.clone()), "the old one signs");

    let early = leader.advance_rotation(OVERLAP, 0, later(1)).await.expect("asked");
    assert_eq!(early, Step::Wait { until: later(2) });
    let behind = leader.advance_rotation(OVERLAP, 3, later(2)).await.expect("asked");
    assert_eq!(behind, Step::Behind { proxies: 3 });
    assert_eq!(leader.advance_rotation(OVERLAP, 0, later(2)).await.expect("done"), Step::HandOver);
    assert_ne!(leader.root(), old);
    assert_eq!(other.root(), old, "it has not heard yet");
    assert!(believes(&leader, &other, later(2)) && believes(&other, &leader, later(2)));
    // The key that signs no more is nowhere.
    let keys = kept.0.lock().expect("not poisoned").as_ref().expect("there")["data"].clone();
    let keys: Vec<String> = keys.as_object().expect("an object").keys().cloned().collect();
    assert_eq!(keys, [OLD_CERT, CERT, KEY, SINCE]);
    // Who starts now goes on from here.
    let started = open(kept.client()).await.expect("read");
    assert_eq!((started.root(), started.fingerprints()), (leader.root(), leader.fingerprints()));
    assert!(other.follow(later(2)).await.expect("followed"));
    assert_eq!(other.root(), leader.root());

    let early = leader.advance_rotation(OVERLAP, 0, later(3)).await.expect("asked");
    assert_eq!(early, Step::Wait { until: later(4) });
    assert_eq!(leader.advance_rotation(OVERLAP, 0, later(4)).await.expect("done"), Step::Forget);
    assert_eq!(leader.fingerprints().len(), 1);
    assert!(leader.roots().iter().all(|root| root.cert != old));
    assert_eq!(leader.advance_rotation(OVERLAP, 0, later(4)).await.expect("asked"), Step::Rest);
    leader.begin_rotation(later(4)).await.expect("once more");
}

#[tokio::test]
async fn a_step_that_was_decided_of_another_replacement_is_not_done() {
    let kept = Kept::default();
    let ca = open(kept.client()).await.expect("made");
    ca.begin_rotation(now()).await.expect("begun");
    let Origin::Secret(secret) = &ca.origin else { panic!("it is in a Secret") };
    let before = kept.0.lock().expect("not poisoned").clone();
    for decided in
        [Rotation::Settled, Rotation::Introduced { at: later(-3) }, Rotation::HandedOver { at: now() }]
    {
        assert!(matches!(secret.hand_over(decided, later(2)).await, Err(CaError::Meanwhile)));
        assert!(matches!(secret.forget(decided).await, Err(CaError::Meanwhile)));
        assert_eq!(*kept.0.lock().expect("not poisoned"), before);
    }
    secret.hand_over(Rotation::Introduced { at: now() }, later(2)).await.expect("done");
}

#[tokio::test]
async fn a_replica_that_heard_of_nothing_until_the_new_root_signed_follows() {
    let kept = Kept::default();
    let leader = open(kept.client()).await.expect("made");
    let deaf = open(kept.client()).await.expect("read");
    leader.begin_rotation(now()).await.expect("begun");
    leader.advance_rotation(OVERLAP, 0, later(2)).await.expect("done");
    assert!(deaf.follow(later(2)).await.expect("followed"));
    assert_eq!(deaf.root(), leader.root());
}

#[tokio::test]
async fn a_replacement_whose_record_is_damaged_is_named_and_stops() {
    let kept = Kept::default();
    let ca = open(kept.client()).await.expect("made");
    ca.begin_rotation(now()).await.expect("begun");
    let check = async |edit: &dyn Fn(&mut Value), says: &str| {
        let damaged = Kept::default();
        *damaged.0.lock().expect("not poisoned") = kept.0.lock().expect("not poisoned").clone();
        damaged.edit(edit);
        let error = open(damaged.client()).await.expect_err("damaged").to_string();
        assert!(error.contains(says), "{says:?} is not in {error:?}");
    };
    check(&|secret| secret["data"]["since"] = json!("bm93"), "since of Secret airlane-system/airlane-root")
        .await;
    check(&|secret| secret["data"]["next.crt"] = json!("bm93"), "next.crt of Secret").await;
    check(&|secret| drop(secret["data"].as_object_mut().map(|data| data.remove("next.key"))), "next.key")
        .await;
}
