//! Waiting for a condition: the only place of the tests that sleeps.

use std::time::{Duration, Instant};

/// Long enough for anything that happens at all, on a machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(10);

/// Waits until `condition` gives a value.
///
/// # Panics
/// When it still is an error `within` that time: the message says `what` was waited for and why it is not so.
pub async fn until<T>(what: &str, within: Duration, condition: impl AsyncFnMut() -> Result<T, String>) -> T {
    until_often(what, within, EVERY, condition).await
}

/// [`until`], looking `every` so often: where the time itself is of interest.
///
/// # Panics
/// As [`until`].
pub async fn until_often<T>(
    what: &str,
    within: Duration,
    every: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let started = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(why) if started.elapsed() >= within => {
                panic!("waited {:.1} s for: {what}. Still: {why}", started.elapsed().as_secs_f64())
            }
            Err(_) => tokio::time::sleep(every).await,
        }
    }
}

/// Watches that `condition` stays true `during` that time, where the absence of an event is the claim.
///
/// # Panics
/// As soon as it is an error.
pub async fn throughout(
    what: &str,
    during: Duration,
    mut condition: impl AsyncFnMut() -> Result<(), String>,
) {
    let started = Instant::now();
    while started.elapsed() < during {
        if let Err(why) = condition().await {
            panic!("after {:.1} s no longer true: {what}. Seen: {why}", started.elapsed().as_secs_f64());
        }
        tokio::time::sleep(EVERY).await;
    }
}
