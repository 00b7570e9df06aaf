//! What the cases stand on: real processes, real Envoys, real load.
//!
//! Read [`mesh`] first: a case starts a [`mesh::Mesh`], adds workloads, and looks at what callers see. What is about
//! Kubernetes runs in a real cluster: [`kube`].

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "linked into tests only: it reports by failing the test, and shows the logs of what failed"
)]

pub mod binary;
pub mod client;
pub mod kube;
pub mod load;
pub mod mesh;
pub mod port;
pub mod process;
pub mod server;
pub mod sim_proxy;
pub mod stranger;
pub mod until;
pub mod workload;
