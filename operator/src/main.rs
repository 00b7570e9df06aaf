//! Placeholder.
#![allow(dead_code)]
mod ca;
mod clock;
mod private_file;
mod serve;
mod tls;
mod xds;
fn main() {}
