//! What the tests of the whole agent share.

#![allow(dead_code, reason = "no test binary uses all of it")]

pub(crate) mod agent;
pub(crate) mod authority;
pub(crate) mod door;
pub(crate) mod operator;
pub(crate) mod patient;
