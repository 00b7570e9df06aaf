//! What the sidecar and the operator say to each other.
//!
//! Messages are written by hand with prost, so that the sidecar needs neither a protocol compiler nor Envoy's
//! types. Field numbers are for ever; a field that goes is `reserved` in a comment at its number.

pub mod message;
