use super::*;
use crate::members::App;
use airlane_core::{
    id::{ObjectKind, Revision, ServiceId, WorkloadRevision},
    rollout::Phase,
    slo::Wealth,
    world::{Health, Instance, InstancePort, Interception, Protocol},
};
use std::{os::unix::fs::PermissionsExt as _, sync::Arc};
use tempfile::TempDir;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).expect("in range")
}

async fn new_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(dir.path()).await.expect("opened");
    (dir, store)
}

/// The store after a restart.
async fn reopen(dir: &TempDir, store: Store) -> Store {
    store.close().await;
    Store::open(dir.path()).await.expect("opened again")
}

fn registration(id: &str) -> Registration {
    let namespace = Namespace::parse("shop").expect("a namespace");
    let name = Name::parse("pay").expect("a name");
    let instance = Instance {
        id: InstanceId::parse(id).expect("a name"),
        workload: WorkloadRevision {
            namespace: namespace.clone(),
            workload: name.clone(),
            revision: Revision::parse("v1").expect("a revision"),
        },
        service_account: name.clone().into(),
        services: [ServiceId { namespace, name }].into(),
        address: "::1".parse().expect("an address"),
        ipv6: true,
        ports: vec![
            InstancePort {
                service: 80,
                app: 8080,
                mesh: 65535,
                protocol: Protocol::Grpc,
                of: None,
                past_proxy: false,
            },
            InstancePort {
                service: 1,
                app: 1,
                mesh: 9001,
                protocol: Protocol::Tcp,
                of: None,
                past_proxy: false,
            },
        ],
        outbound_port: 15001,
        interception: Interception::Environment,
        stops_within: std::time::Duration::ZERO,
        health: Health::Starting,
    };
    Registration::new(Arc::new(instance), App::Healthy, true, false, at(1_700_000_000_123))
}

fn canary(name: &str) -> ObjectId {
    ObjectId {
        kind: ObjectKind::Canary,
        namespace: Namespace::parse("shop").expect("a namespace"),
        name: Name::parse(name).expect("a name"),
    }
}

fn progress(share: u32) -> Progress {
    Progress {
        phase: Phase::Progressing,
        canary: Revision::parse("v2").expect("a revision"),
        step: 1,
        share,
        fail_safe_share: 0,
        certified_share: 0,
        pause_asked: false,
        aborted: false,
        since_at: at(1000),
        step_at: at(1000),
        because: "it's 5 % of 1,000 — \"fine\"".into(),
        needs: None,
        judge: Wealth::new(at(0)),
        history: vec![],
    }
}

#[tokio::test]
async fn registrations_read_back_after_a_restart() {
    let (dir, store) = new_store().await;
    let (one, two) = (registration("pay-v1-a"), registration("pay-v1-b"));
    assert_eq!(one.instance.health, Health::Healthy);
    store.write_registrations(&[one.clone(), two.clone()], &[]).await.expect("written");
    let store = reopen(&dir, store).await;
    assert_eq!(store.registrations().await.expect("read"), [one.clone(), two]);
    let draining = Registration::new(Arc::clone(&one.instance), App::Unhealthy, true, true, one.joined_at);
    let gone = InstanceId::parse("pay-v1-b").expect("a name");
    store.write_registrations(std::slice::from_ref(&draining), &[gone]).await.expect("written");
    assert_eq!(store.registrations().await.expect("read"), [draining]);
}

#[tokio::test]
async fn tokens_read_back_and_are_revoked_once() {
    let (dir, store) = new_store().await;
    let token = |id: &str, service: Option<(&str, &str)>| StoredToken {
        id: id.into(),
        secret_sha256: [7; 32],
        service: service.map(|(namespace, name)| {
            (Namespace::parse(namespace).expect("a namespace"), Name::parse(name).expect("a name"))
        }),
        created_at: at(5),
        expires_at: service.map(|_| at(6)),
        revoked_at: None,
    };
    let (any, one) = (token("a", None), token("b", Some(("shop", "pay"))));
    for token in [&any, &one] {
        store.add_token(token).await.expect("written");
    }
    let store = reopen(&dir, store).await;
    assert_eq!(store.tokens().await.expect("read"), [any, one.clone()]);
    assert!(store.revoke_token("b", at(9)).await.expect("written"));
    assert!(!store.revoke_token("b", at(10)).await.expect("written"));
    let revoked = StoredToken { revoked_at: Some(at(9)), ..one };
    assert_eq!(store.token("b").await.expect("read"), Some(revoked));
    assert_eq!(store.token("' OR 1=1 --").await.expect("read"), None);
}

#[tokio::test]
async fn a_verb_goes_with_the_progress_it_led_to() {
    let (dir, store) = new_store().await;
    let id = canary("pay");
    store.write_progress(&id, &progress(100)).await.expect("written");
    store.ask(&id, Asked::Pause, at(1)).await.expect("written");
    let store = reopen(&dir, store).await;
    assert_eq!(store.asked().await.expect("read"), [(id.clone(), Asked::Pause)].into());
    assert_eq!(store.progress().await.expect("read"), [(id.clone(), progress(100))].into());
    // Somebody asks for something else while the first verb is carried out.
    store.ask(&id, Asked::Abort, at(2)).await.expect("written");
    store.carried_out(&id, Asked::Pause, &progress(200)).await.expect("written");
    assert_eq!(store.asked().await.expect("read"), [(id.clone(), Asked::Abort)].into());
    store.carried_out(&id, Asked::Abort, &progress(0)).await.expect("written");
    assert!(store.asked().await.expect("read").is_empty());
    assert_eq!(store.progress().await.expect("read"), [(id.clone(), progress(0))].into());
    store.forget_canary(&id).await.expect("written");
    assert!(store.progress().await.expect("read").is_empty());
}

#[tokio::test]
async fn every_file_is_private_and_a_wider_one_is_refused() {
    let (dir, store) = new_store().await;
    store.write_progress(&canary("pay"), &progress(1)).await.expect("written");
    for entry in std::fs::read_dir(dir.path()).expect("listed") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("there").permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
    }
    store.close().await;
    let path = dir.path().join("state.db");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let error = Store::open(dir.path()).await.expect_err("refused");
    assert!(matches!(error, StoreError::File(_)), "{error}");
}

#[tokio::test]
async fn a_second_operator_is_refused() {
    let (dir, store) = new_store().await;
    let error = Store::open(dir.path()).await.expect_err("in use");
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains("--state"), "{error}");
    reopen(&dir, store).await.close().await;
}

#[tokio::test]
async fn a_newer_or_damaged_file_is_refused_with_the_mend() {
    let (dir, store) = new_store().await;
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (99, 'future', '2030-01-01', TRUE, x'00', 0)")
        .execute(&store.pool)
        .await
        .expect("written");
    store.close().await;
    let error = Store::open(dir.path()).await.expect_err("newer");
    assert!(matches!(error, StoreError::Newer { .. }), "{error:?}");

    let (dir, store) = new_store().await;
    store.close().await;
    let path = dir.path().join("state.db");
    std::fs::write(&path, "this is no database, and never was").expect("written");
    let error = Store::open(dir.path()).await.expect_err("damaged");
    assert!(error.to_string().contains("restore it from a backup"), "{error:?}");

    let (_dir, store) = new_store().await;
    store.write_registrations(&[registration("pay-v1-a")], &[]).await.expect("written");
    sqlx::query("UPDATE registrations SET service_account = '../x'")
        .execute(&store.pool)
        .await
        .expect("written");
    let error = store.registrations().await.expect_err("damaged");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
}
