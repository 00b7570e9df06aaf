//! Work that strangers may ask for: a few pieces at a time, and not all of them for one address.

use airlane_wire::crowd::host;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Addresses that are remembered although they have no turn.
const REMEMBERED_MAX: usize = 256;

/// Who is served at the moment, and who waits, each address in a line of its own.
#[derive(Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    each_max: usize,
    by_host: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// Somebody's turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None` only if somebody closed a semaphore, which nobody does.
    _own: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// At most `all_max` at a time, and `each_max` for an address.
    pub(crate) fn new(all_max: usize, each_max: usize) -> Turns {
        Turns { all: Arc::new(Semaphore::new(all_max)), each_max, by_host: Mutex::default() }
    }

    /// Waits for a turn.
    pub(crate) async fn take(&self, from: IpAddr) -> Turn {
        let own = self.line_of(host(from)).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Turn { _own: own, _of_all: of_all }
    }

    fn line_of(&self, host: IpAddr) -> Arc<Semaphore> {
        let mut lines = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= REMEMBERED_MAX {
            // Whoever waits or is served holds the line, too.
            lines.retain(|_, line| Arc::strong_count(line) > 1);
        }
        Arc::clone(lines.entry(host).or_insert_with(|| Arc::new(Semaphore::new(self.each_max))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn one_address_leaves_turns_to_others() {
        let turns = Turns::new(3, 2);
        let take = |from: [u8; 4]| turns.take(from.into()).now_or_never();
        let (one, other) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let held = [take(one), take(one)];
        assert!(held.iter().all(Option::is_some));
        assert!(take(one).is_none(), "more than its part");
        let theirs = take(other).expect("a turn");
        assert!(take(other).is_none(), "more than there are");
        drop(theirs);
        assert!(take(one).is_none(), "others' turns are not its own");
        drop(held);
        assert!(take(one).is_some());
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let turns = Turns::new(1_000, 1);
        let held: Vec<_> =
            (0..300_u32).map(|n| turns.take(IpAddr::from(n.to_be_bytes())).now_or_never()).collect();
        assert_eq!(turns.by_host.lock().expect("not poisoned").len(), held.len());
        drop(held);
        turns.take([10, 0, 0, 1].into()).now_or_never().expect("a turn");
        assert_eq!(turns.by_host.lock().expect("not poisoned").len(), 1);
    }
}
