//! Work that others may ask for: a few pieces at a time, and not all of them for one of those who ask.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Those who ask that are remembered although they have no turn.
const REMEMBERED_MAX: usize = 256;

/// Who is served at the moment, and who waits, each of those who ask (`K`) in a line of its own.
#[derive(Debug)]
pub(crate) struct Turns<K> {
    all: Arc<Semaphore>,
    each_max: usize,
    lines: Mutex<HashMap<K, Arc<Semaphore>>>,
}

/// Somebody's turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None` only if somebody closed a semaphore, which nobody does.
    _own: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl<K: Eq + Hash> Turns<K> {
    /// At most `all_max` at a time, and `each_max` for one of those who ask.
    pub(crate) fn new(all_max: usize, each_max: usize) -> Turns<K> {
        Turns { all: Arc::new(Semaphore::new(all_max)), each_max, lines: Mutex::default() }
    }

    /// Waits for a turn.
    pub(crate) async fn take(&self, who: K) -> Turn {
        let own = self.line_of(who).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Turn { _own: own, _of_all: of_all }
    }

    fn line_of(&self, who: K) -> Arc<Semaphore> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= REMEMBERED_MAX {
            // Whoever waits or is served holds the line, too.
            lines.retain(|_, line| Arc::strong_count(line) > 1);
        }
        Arc::clone(lines.entry(who).or_insert_with(|| Arc::new(Semaphore::new(self.each_max))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn nobody_takes_the_turns_of_others() {
        let turns = Turns::new(3, 2);
        let take = |who: &'static str| turns.take(who).now_or_never();
        let held = [take("one"), take("one")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("one").is_none(), "more than its part");
        let theirs = take("other").expect("a turn");
        assert!(take("other").is_none(), "more than there are");
        drop(theirs);
        assert!(take("one").is_none(), "others' turns are not its own");
        drop(held);
        assert!(take("one").is_some());
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let turns = Turns::new(1_000, 1);
        let held: Vec<_> = (0..300).map(|who| turns.take(who).now_or_never()).collect();
        assert_eq!(turns.lines.lock().expect("not poisoned").len(), held.len());
        drop(held);
        turns.take(300).now_or_never().expect("a turn");
        assert_eq!(turns.lines.lock().expect("not poisoned").len(), 1);
    }
}
