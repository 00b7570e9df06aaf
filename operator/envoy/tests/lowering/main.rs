//! Lowering and bootstrap: laws of the catalog, and what a real Envoy makes of it.
#![expect(unreachable_pub, reason = "modules of a test binary have no other readers")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail aloud"
)]

mod calls;
mod doors;
mod edits;
mod evidence;
mod grpc;
mod laws;
mod names;
mod redirected;
mod sizes;
mod support;
mod validate;
