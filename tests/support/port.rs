//! Ports that are free and stay so until the process they are meant for takes them.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

/// Below the ports that sidecars choose for their proxies (16000 to 32000) and the kernel for outgoing connections
/// (from 32768), so that nobody takes one in between.
const FIRST: u16 = 5_000;
const LAST: u16 = 15_000;

static HANDED_OUT: AtomicU16 = AtomicU16::new(0);

/// A free port on loopback, never the same twice in a process.
///
/// # Panics
/// When none is left.
pub fn free() -> u16 {
    let span = LAST - FIRST;
    // Another test process begins elsewhere.
    let begin = u16::try_from(std::process::id() * 97 % u32::from(span)).expect("below the span");
    loop {
        let n = HANDED_OUT.fetch_add(1, Relaxed);
        assert!(n < span, "no free port between {FIRST} and {LAST}");
        let port = FIRST + (begin + n) % span;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
