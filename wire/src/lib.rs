//! What the sidecar and the operator say to each other.
//!
//! Messages are written by hand with prost, so that the sidecar needs neither a protocol compiler nor Envoy's
//! types. Field numbers are for ever; a field that goes is `reserved` in a comment at its number.
//!
//! - [`operator`]: the service a sidecar calls;
//! - [`join`]: the join string, by which a sidecar finds and recognises its operator;
//! - [`pod`]: what injector, agent and kubelet agree on in a pod;
//! - [`sds`]: the part of Envoy's secret discovery that the sidecar serves to the Envoy beside it;
//! - [`crowd`]: how either keeps a port open to everybody from being filled by somebody.

pub mod crowd;
pub mod join;
pub mod message;
pub mod operator;
pub mod pod;
mod rpc;
pub mod sds;
