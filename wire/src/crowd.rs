//! Who is connected to a port that everybody can reach: a crowd from one address must keep nobody else out. No IO.

use std::{collections::BTreeMap, net::IpAddr};
use tokio::task::AbortHandle;

/// The connections of this moment, oldest first.
#[derive(Debug)]
pub struct Crowd<C = AbortHandle> {
    guests: Vec<(IpAddr, C)>,
    max: usize,
}

/// A connection that can be ended from outside.
pub trait Connection {
    /// Whether it has ended.
    fn is_over(&self) -> bool;
}

impl Connection for AbortHandle {
    fn is_over(&self) -> bool {
        self.is_finished()
    }
}

impl<C: Connection> Crowd<C> {
    /// Nobody yet; at most `max` later.
    pub fn new(max: usize) -> Self {
        Self { guests: Vec::new(), max }
    }

    /// Takes a newcomer in. If that is one too many, gives who has to go for it: the oldest connection of the address
    /// that has most. That may be the newcomer.
    pub fn admit(&mut self, from: IpAddr, connection: C) -> Option<C> {
        self.guests.retain(|(_, guest)| !guest.is_over());
        self.guests.push((host(from), connection));
        if self.guests.len() <= self.max {
            return None;
        }
        let mut counts = BTreeMap::new();
        for (from, _) in &self.guests {
            *counts.entry(*from).or_insert(0_usize) += 1;
        }
        let (most, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let oldest = self.guests.iter().position(|(from, _)| *from == most)?;
        Some(self.guests.remove(oldest).1)
    }
}

/// What counts as one peer: an IPv4 address, or the /64 that a host of IPv6 can usually choose its address from.
#[must_use]
pub fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => IpAddr::from((v6.to_bits() >> 64 << 64).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection's number, negative once it is over.
    impl Connection for i32 {
        fn is_over(&self) -> bool {
            *self < 0
        }
    }

    /// Admits connections of the named hosts to a crowd of three; `expected` are those sent away.
    fn check(arrivals: &[(&str, i32)], expected: &[i32]) {
        let mut crowd = Crowd::new(3);
        let admit = |(from, number): &(&str, i32)| crowd.admit(from.parse().expect("an address"), *number);
        let gone: Vec<i32> = arrivals.iter().filter_map(admit).collect();
        assert_eq!(gone, expected, "{arrivals:?}");
    }

    #[test]
    fn whoever_has_most_makes_room() {
        check(&[("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.2", 3)], &[]);
        check(&[("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.2", 3), ("10.0.0.3", 4)], &[2]);
        check(
            &[("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.2", 3), ("10.0.0.2", 4), ("10.0.0.2", 5)],
            &[2, 3],
        );
        check(
            &[("10.0.0.1", 1), ("fd00::1", 2), ("fd00::2", 3), ("::ffff:10.0.0.1", 4), ("fd00::3", 5)],
            &[2, 3],
        );
    }

    #[test]
    fn who_has_gone_takes_no_room() {
        check(&[("10.0.0.1", -1), ("10.0.0.1", -2), ("10.0.0.1", 3), ("10.0.0.2", 4), ("10.0.0.3", 5)], &[]);
    }
}
