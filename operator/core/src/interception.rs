//! The ways between an application and its proxy.

use serde::{Deserialize, Serialize};

/// How an application's traffic reaches the proxy beside it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Interception {
    /// There is no proxy: it is called in plaintext, at the application's own ports, and its calls are not ours.
    None,
    /// The application is told where the proxy is (`HTTP_PROXY`), and callers are told the proxy's ports.
    Environment,
    /// The kernel redirects what leaves and enters the network namespace they share, so that callers name the
    /// application's own ports: every [`crate::world::InstancePort::mesh`] is its `app`.
    Transparent,
    /// The kernel redirects what leaves alone: its calls are ours, and what enters reaches the application as it came. So
    /// does a door to the outside, whose callers are strangers to the mesh.
    Outbound,
}

impl Interception {
    /// Whether callers reach the proxy, which can prove who it is, and not the application.
    pub fn keeps_a_door(self) -> bool {
        matches!(self, Interception::Environment | Interception::Transparent)
    }

    /// Whether calls reach the proxy without the application's knowing.
    pub fn redirects_calls(self) -> bool {
        matches!(self, Interception::Transparent | Interception::Outbound)
    }
}
