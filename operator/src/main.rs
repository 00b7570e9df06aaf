//! Placeholder.
#![allow(dead_code)]
mod ca;
mod clock;
mod private_file;
fn main() {}
