//! How often somebody was refused lately.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

const WINDOW: Duration = Duration::from_secs(10);
/// Refusals of one address that are answered and logged in full in a window.
const FULL_ANSWERS: u32 = 30;
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 1024;

/// Counts refused joins by address. A token is 256 random bits, so that guessing is no danger; the noise is. Nobody
/// with a valid token is ever held up by what others on the same host do.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// When an address's window began, and the refusals since then.
    by_address: Mutex<HashMap<IpAddr, (Duration, u32)>>,
}

impl Failures {
    /// Counts a refusal; whether it deserves a full answer and a line in the log.
    pub(super) fn note(&self, address: IpAddr, now: Duration) -> bool {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if by_address.len() >= ADDRESSES_MAX {
            by_address.retain(|_, (began, _)| now.saturating_sub(*began) < WINDOW);
        }
        if by_address.len() >= ADDRESSES_MAX && !by_address.contains_key(&address) {
            return false;
        }
        let (began, count) = by_address.entry(address).or_insert((now, 0));
        if now.saturating_sub(*began) >= WINDOW {
            (*began, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= FULL_ANSWERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_noise_of_one_address_is_bounded_and_passes() {
        let failures = Failures::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let full = (0..1000).filter(|_| failures.note(one, Duration::from_secs(1))).count();
        assert_eq!(full, 30);
        assert!(failures.note(other, Duration::from_secs(1)), "others are not hurt");
        assert!(!failures.note(one, Duration::from_secs(10)));
        assert!(failures.note(one, Duration::from_secs(11)), "a new window");
    }

    #[test]
    fn memory_is_bounded() {
        let failures = Failures::default();
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        let full = (0..5000).filter(|n| failures.note(address(*n), Duration::ZERO)).count();
        assert_eq!(full, ADDRESSES_MAX);
        assert!(failures.note(address(6000), WINDOW), "the old ones made room");
    }
}
