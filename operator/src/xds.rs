//! Serving Envoys: publication of the catalog, one conversation for each connected proxy, and what they answered.
//!
//! The conversation itself is decided by [`airlane_envoy::delta::Session`]; here are the streams and the timers.

mod publisher;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

#[cfg(test)]
pub(crate) use publisher::ProxyShares;
pub(crate) use publisher::{ProxyState, Publisher, Refusal, Refusals, Shares};
