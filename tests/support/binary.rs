//! The binaries under test.

use std::path::PathBuf;

/// `airlane`, as built with the running test.
pub fn airlane() -> PathBuf {
    built("airlane")
}

/// `airlane-sidecar`, as built with the running test.
pub fn sidecar() -> PathBuf {
    built("airlane-sidecar")
}

/// Test executables live in `target/PROFILE/deps`, binaries one folder above.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `make test`, or `cargo build --workspace` first",
        path.display()
    );
    path
}
