//! Choosing ports for Envoy.

use ring::rand::{SecureRandom, SystemRandom};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    ops::Range,
};

/// Where applications expect their way out.
const OUTBOUND: u16 = 15001;

/// Below the ports the kernel gives to outgoing connections (`ip_local_port_range`, from 32768), so that nobody
/// takes one by chance while Envoy is being started again.
const RANGE: Range<u16> = 16_000..32_000;

/// How many ports are tried before giving up.
const ATTEMPTS: usize = 256;

/// A port that no other sidecar will choose while this value lives.
///
/// Between our choice and Envoy's listening some time passes. Other sidecars are kept away by holding the port
/// of the same number for UDP, which Envoy does not use: unlike a lock file it goes with the process, whatever
/// its end.
#[derive(Debug)]
pub(crate) struct ClaimedPort {
    /// Its number.
    pub(crate) number: u16,
    _claim: UdpSocket,
}

/// There is no free port.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoPort {
    /// The one asked for is taken.
    #[error("port {at} is taken; choose another with --outbound-port, or leave it out")]
    Taken {
        /// Where.
        at: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// None of many could be had: most often the address is not this host's.
    #[error("no free port on {ip}; is --address an address of this host?")]
    None {
        /// Where.
        ip: IpAddr,
        /// Why the last one could not be had.
        source: io::Error,
    },
}

/// The port for outgoing calls: the `wanted` one, else 15001 if it is free, else any. On loopback.
pub(crate) fn outbound(wanted: Option<u16>) -> Result<ClaimedPort, NoPort> {
    let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
    match wanted {
        Some(port) => {
            let at = SocketAddr::new(ip, port);
            claim(at).map_err(|source| NoPort::Taken { at, source })
        }
        None => claim(SocketAddr::new(ip, OUTBOUND)).or_else(|_| any(ip)),
    }
}

/// A port of `ip` for other proxies to call.
pub(crate) fn any(ip: IpAddr) -> Result<ClaimedPort, NoPort> {
    let mut random = [0_u8; 2];
    // Without randomness all sidecars try the same order, and still find different ports.
    SystemRandom::new().fill(&mut random).ok();
    let start = usize::from(u16::from_le_bytes(random)) % RANGE.len();
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in RANGE.cycle().skip(start).take(ATTEMPTS) {
        match claim(SocketAddr::new(ip, port)) {
            Ok(claimed) => return Ok(claimed),
            Err(error) => last = error,
        }
    }
    Err(NoPort::None { ip, source: last })
}

fn claim(at: SocketAddr) -> io::Result<ClaimedPort> {
    let claim = UdpSocket::bind(at)?;
    TcpListener::bind(at)?;
    Ok(ClaimedPort { number: at.port(), _claim: claim })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_claimed_port_is_free_for_envoy_and_taken_for_sidecars() {
        let first = any(LOOPBACK).expect("a port");
        TcpListener::bind((LOOPBACK, first.number)).expect("free for TCP");
        let refused = outbound(Some(first.number)).expect_err("claimed");
        assert!(refused.to_string().contains("--outbound-port"), "{refused}");
        let (number, ..) = (first.number, drop(first));
        outbound(Some(number)).expect("free again");
    }

    #[test]
    fn an_address_of_another_host_has_no_ports() {
        let refused = any(IpAddr::from([192, 0, 2, 1])).expect_err("not ours");
        assert!(refused.to_string().contains("--address"), "{refused}");
    }
}
