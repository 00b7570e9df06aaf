//! Who is at the other end of a connection.

use airlane_core::id::{Identity, InstanceId};

/// The other end of a connection, as its verified leaf certificate names it; in the extensions of every request
/// that came over mTLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Who it is: the leaf's URI SAN.
    pub(crate) identity: Identity,
    /// Which copy: the leaf's DNS SAN.
    pub(crate) instance: InstanceId,
}
