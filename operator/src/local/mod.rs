//! The socket of this host that the command line talks to: HTTP and JSON over a unix socket only its owner opens.

pub(crate) mod host;
pub(crate) mod root;
pub(crate) mod server;
mod sources;
pub(crate) mod view;
