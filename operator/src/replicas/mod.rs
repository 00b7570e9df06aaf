//! Any replica serves proxies, and the leader judges: what proxies say to another replica, that one passes on to the
//! leader. Signals go as they come; how far proxies have come, what they refuse and which shares they use go as
//! differences ([`report`]).
//!
//! Each replica that does not lead holds one stream to the one that does ([`follow`]), whose address the Lease tells;
//! so a change of leader moves a stream for each replica, and nothing of the proxies'. The leader enters what it is told
//! into its books and its [`Fleet`](crate::fleet::Fleet) ([`lead`]), as if it had heard it itself.
//!
//! A proxy is believed by the replica it is connected to, as itself. A replica is believed by its certificate, which has
//! the operator's own identity; nobody else is certified for that.

mod follow;
mod lead;
mod protocol;
mod report;
#[cfg(test)]
mod tests;

pub(crate) use follow::{Follower, Rotations};
pub(crate) use lead::Leader;
