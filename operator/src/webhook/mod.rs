//! What the API server asks before it stores an object: injection into pods, and validation of our resources.
//!
//! [`inject`] decides and is pure; [`server`] answers; [`registration`] tells the API server by which certificate to
//! know us, and has it insist on our answer.

pub(crate) mod inject;
pub(crate) mod registration;
mod review;
pub(crate) mod server;

use crate::ca::hex;
use ring::rand::{SecureRandom as _, SystemRandom};

/// A secret for a pod's [`airlane_wire::pod::Asks`]: 128 bits. `None` if the system gives no random bytes.
pub(crate) fn draw_secret() -> Option<String> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(hex(&bytes))
}
