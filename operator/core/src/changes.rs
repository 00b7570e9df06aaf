//! What differs between two maps of shared values.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

/// The keys whose values differ by pointer, in order, each with what it was and what it is. It takes one walk along both
/// maps, however many there are.
pub fn changes<'a, K: Ord, V>(
    before: &'a BTreeMap<K, Arc<V>>,
    after: &'a BTreeMap<K, Arc<V>>,
) -> impl Iterator<Item = (&'a K, [Option<&'a Arc<V>>; 2])> {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (before.peek(), after.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((was, _)), Some((is, _))) => was.cmp(is),
            };
            let was = if order.is_le() { before.next() } else { None };
            let is = if order.is_ge() { after.next() } else { None };
            match (was, is) {
                (Some((_, was)), Some((_, is))) if Arc::ptr_eq(was, is) => {}
                (was, is) => {
                    let (key, _) = is.or(was)?;
                    return Some((key, [was.map(|(_, was)| was), is.map(|(_, is)| is)]));
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_went_or_is_another_allocation_differs() {
        let value = |text: &str| Arc::new(text.to_owned());
        let a = value("a");
        let before = BTreeMap::from([(1, a.clone()), (2, value("b")), (3, value("c"))]);
        let after = BTreeMap::from([(0, value("d")), (1, a), (2, value("b")), (4, value("d"))]);
        let differing: Vec<_> =
            changes(&before, &after).map(|(key, [was, is])| (*key, was.is_some(), is.is_some())).collect();
        assert_eq!(differing, [(0, false, true), (2, true, true), (3, true, false), (4, false, true)]);
        assert_eq!(changes(&after, &after).count(), 0);
    }
}
