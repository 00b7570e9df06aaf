//! Keys stay where they are made.

use airlane_tests::{mesh::Mesh, workload::App};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// How a private key begins in PEM (RFC 7468, 10; RFC 5915, 4) …
const PEM: &[u8] = b"PRIVATE KEY-----";
/// … and what an ECDSA P-256 key has in PKCS#8, DER: the object identifiers `ecPublicKey` and `prime256v1` and the
/// octet string of the key after them (RFC 5208, 5; RFC 5915, 3).
const DER: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x04";

#[tokio::test(flavor = "multi_thread")]
async fn no_private_key_is_outside_its_closed_file() {
    let mesh = Mesh::start().await;
    let front = mesh.workload(App::new("front")).await;
    let payments = mesh.workload(App::new("payments")).await;
    mesh.call_gives(&front, "http://payments/", 200).await;
    let token = mesh.ask(&["token", "create", "--service", "ledger"]).await;
    let joins = [fs::read_to_string(mesh.join()).unwrap(), token];
    let secrets: Vec<String> = joins.iter().flat_map(|join| [join.trim().to_owned(), secret(join)]).collect();

    let mut keys = 0;
    for file in files(mesh.home()) {
        // Sockets have no bytes to read.
        let Ok(bytes) = fs::read(&file) else { continue };
        let closed = fs::metadata(&file).unwrap().permissions().mode() & 0o077 == 0;
        let name = file.display();
        if contains(&bytes, PEM) || contains(&bytes, DER) {
            assert!(closed && file.starts_with(mesh.state().join("ca")), "a private key is in {name}");
            keys += 1;
        }
        for secret in &secrets {
            let told = contains(&bytes, secret.as_bytes());
            assert!(!told || file == mesh.join() && closed, "a join token is in {name}");
        }
    }
    assert!(
        keys >= 2,
        "the keys of the root and the intermediate were not found: does this test still see keys?"
    );

    for workload in [&front, &payments] {
        for path in ["/config_dump?include_eds", "/certs", "/stats", "/server_info", "/clusters"] {
            let answer = workload.admin(path).await.unwrap();
            assert!(
                !contains(&answer.body, PEM) && !contains(&answer.body, DER),
                "a private key is in {path}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_is_closed_to_others() {
    let mesh = Mesh::start().await;
    let _front = mesh.workload(App::new("front")).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&mesh.state()), 0o700);
    assert_eq!(mode(&mesh.join()), 0o600);
    assert_eq!(mode(&mesh.state().join("airlane.sock")), 0o600);
    for run in fs::read_dir(mesh.home().join("run").join("0")).unwrap() {
        assert_eq!(mode(&run.unwrap().path()), 0o700, "the sidecar's run folder");
    }
}

/// The secret part of a join string.
fn secret(join: &str) -> String {
    join.parse::<airlane_wire::join::JoinInfo>().unwrap().secret
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}
