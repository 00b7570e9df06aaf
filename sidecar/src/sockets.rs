//! Whether the application can be reached past its proxy: the kernel's table of listening sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state of a listening socket in `/proc/net/tcp` (`TCP_LISTEN`, `include/net/tcp_states.h` of Linux).
const LISTEN: &str = "0A";

/// Whether one of `ports` is listened on at an address other hosts, or other users of this one, can name.
/// A table that cannot be read is taken as empty: this is a warning, not a guard.
pub(crate) fn reachable_past_proxy(ports: &[u16]) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|path| {
        let table = std::fs::read_to_string(path).unwrap_or_default();
        listening(&table).any(|at| ports.contains(&at.port()) && !at.ip().to_canonical().is_loopback())
    })
}

/// The listening sockets of a table in the format of `/proc/net/tcp` or `/proc/net/tcp6` (proc_net_tcp(5)).
/// Lines in another format are skipped.
fn listening(table: &str) -> impl Iterator<Item = SocketAddr> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        (state == LISTEN).then(|| address(local)).flatten()
    })
}

/// Reads `0100007F:1F90`. The address is printed as 32-bit words in the machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if !ip.is_ascii() {
        return None;
    }
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    const HEADER: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid";

    fn check(line: &str, expected: &[&str]) {
        let table = format!("{HEADER}\n{line}\n");
        let found: Vec<String> = listening(&table).map(|at| at.to_string()).collect();
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn reads_the_kernels_table() {
        check("   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000", &["127.0.0.1:8080"]);
        check("   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000", &["0.0.0.0:80"]);
        check("   2: 0100007F:1F90 0100007F:8A2C 01 00000000:00000000 00:00000000", &[]);
        check("   3: 00000000000000000000000000000000:1F90 0:0 0A", &["[::]:8080"]);
        check("   4: 00000000000000000000000001000000:1F90 0:0 0A", &["[::1]:8080"]);
        check("   5: 0000000000000000FFFF00000100007F:1F90 0:0 0A", &["[::ffff:127.0.0.1]:8080"]);
    }

    #[test]
    fn skips_what_it_does_not_understand() {
        for line in
            ["", "x", "0: zz:1 0 0A", "0: 0100007F 0 0A", "0: 0100007F:123456 0 0A", "0: äääää:1 0 0A"]
        {
            check(line, &[]);
        }
    }

    #[test]
    fn sees_its_own_listeners() {
        let loopback = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let everywhere = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = |l: &std::net::TcpListener| l.local_addr().expect("bound").port();
        assert!(!reachable_past_proxy(&[port(&loopback)]));
        assert!(reachable_past_proxy(&[port(&everywhere)]));
    }
}
