//! Real Envoys under a control plane of a few lines.

pub mod app;
pub mod bench;
pub mod client;
pub mod meshes;
pub mod pki;
pub mod plane;
pub mod pod;
pub mod proxy;
pub mod tls;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// The Envoy to test against: `$AIRLANE_ENVOY`, the user's cache, `PATH`. `None`, said aloud, if the user asked to
/// skip what needs it.
pub fn envoy() -> Option<PathBuf> {
    if std::env::var_os("AIRLANE_SKIP_ENVOY").is_some() {
        assert!(std::env::var_os("AIRLANE_REQUIRE").is_none(), "AIRLANE_SKIP_ENVOY is set");
        eprintln!("SKIPPED: AIRLANE_SKIP_ENVOY is set");
        return None;
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .map(|cache| cache.join("airlane/envoy-1.40.0/envoy"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::var_os("AIRLANE_ENVOY")
        .map(PathBuf::from)
        .into_iter()
        .chain(cache)
        .chain(std::env::split_paths(&path).map(|folder| folder.join("envoy")));
    let found = candidates.into_iter().find(|candidate| candidate.is_file());
    assert!(
        found.is_some(),
        "no Envoy found: run `make envoy`, set AIRLANE_ENVOY to the binary, or AIRLANE_SKIP_ENVOY=1 to go without"
    );
    found
}

/// Waits until `done` gives something, at most 10 s.
pub fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "in 10 s not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
