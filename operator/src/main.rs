//! Placeholder.
#![allow(dead_code)]
mod ca;
mod clock;
mod join;
mod private_file;
mod registry;
mod serve;
mod store;
mod tls;
mod xds;
fn main() {}
