//! Claims about the whole, each tried on real processes.
//!
//! | claim | case |
//! |---|---|
//! | two services talk, by every form of the name | [`calls`] |
//! | nothing fails because of us | [`zero_loss`] |
//! | parts die and come back | [`life`] |
//! | a release is judged on evidence | [`rollout`] |
//! | a policy does what it says | [`policies`] |
//! | HTTP/2, gRPC and bytes pass as what they are | [`protocols`] |
//! | a door is as closed as the strictest word about it | [`mtls`] |
//! | only who is admitted may ask for what | [`access`] |
//! | a mistake in a file is explained, and changes nothing | [`bad_yaml`] |
//! | the command line keeps its word | [`cli`] |
//! | nobody gets in | [`refused`] |
//! | keys stay where they are made | [`keys`] |
//! | `tests/trust.md` names tests that are there | [`trust`] |

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test reports by failing, and what it measured"
)]

mod access;
mod bad_yaml;
mod calls;
mod cli;
mod keys;
mod life;
mod mtls;
mod policies;
mod protocols;
mod refused;
mod rollout;
mod trust;
mod zero_loss;
