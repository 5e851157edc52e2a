//! A set of block numbers kept as disjoint, merged intervals: what is done, and by complement what is missing.

use std::collections::BTreeMap;

use super::BlockRange;

/// Up to this many missing blocks below the head are the realtime track's and come before the head; more of them are a
/// gap, which the historical track fills while the head goes first (contract §4).
pub const REALTIME_GAP: u64 = 5;

/// Disjoint inclusive intervals; neighbours are merged, so the number of intervals is the number of gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntervalSet {
    by_start: BTreeMap<u64, u64>,
}

impl IntervalSet {
    /// Adds a range; merges with whatever it touches.
    pub fn insert(&mut self, range: BlockRange) {
        let (mut from, mut to) = (range.from, range.to);
        // Everything that begins at or before `to + 1` and ends at or after `from - 1` melts into the new interval.
        while let Some((&start, &end)) = self.by_start.range(..=to.saturating_add(1)).next_back() {
            if end.saturating_add(1) < from {
                break;
            }
            from = from.min(start);
            to = to.max(end);
            self.by_start.remove(&start);
        }
        self.by_start.insert(from, to);
    }

    /// Removes every number up to this one.
    pub fn remove_up_to(&mut self, number: u64) {
        let Some(above) = number.checked_add(1) else { return self.by_start.clear() };
        let kept = self.by_start.split_off(&above);
        // Of all that begins below only the highest may reach above.
        let cut = self.by_start.pop_last().filter(|(_, end)| *end >= above).map(|(_, end)| (above, end));
        self.by_start = kept;
        self.by_start.extend(cut);
    }

    /// Whether `number` is in the set.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        self.by_start.range(..=number).next_back().is_some_and(|(_, &end)| end >= number)
    }

    /// The intervals, ascending.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = BlockRange> + '_ {
        self.by_start.iter().map(|(&from, &to)| BlockRange { from, to })
    }

    /// Number of intervals.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    /// The intervals of `within` that are *not* in the set, ascending.
    pub fn missing(&self, within: BlockRange) -> impl Iterator<Item = BlockRange> + '_ {
        let mut next = Some(within.from);
        let first = self.by_start.range(..within.from).next_back().map(|(&from, &to)| (from, to));
        let rest = self.by_start.range(within.from..=within.to).map(|(&from, &to)| (from, to));
        let mut done = first.into_iter().chain(rest);
        std::iter::from_fn(move || {
            loop {
                let from = next?;
                if from > within.to {
                    return None;
                }
                let Some((start, end)) = done.next() else {
                    next = None;
                    return BlockRange::new(from, within.to);
                };
                next = end.checked_add(1).map(|after| after.max(from));
                if let Some(gap) = start.checked_sub(1).and_then(|last| BlockRange::new(from, last)) {
                    return Some(gap);
                }
            }
        })
    }
}

impl FromIterator<BlockRange> for IntervalSet {
    fn from_iter<I: IntoIterator<Item = BlockRange>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(from: u64, to: u64) -> BlockRange {
        BlockRange { from, to }
    }

    #[test]
    fn neighbours_melt_and_strangers_do_not() {
        let set: IntervalSet = [range(5, 6), range(9, 9), range(7, 7), range(1, 2)].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [range(1, 2), range(5, 7), range(9, 9)]);
    }

    #[test]
    fn the_missing_ranges_are_the_complement() {
        let set: IntervalSet = [range(3, 4), range(8, 10)].into_iter().collect();
        assert_eq!(set.missing(range(1, 12)).collect::<Vec<_>>(), [range(1, 2), range(5, 7), range(11, 12)]);
        assert_eq!(set.missing(range(3, 4)).count(), 0);
        assert_eq!(set.missing(range(4, 9)).collect::<Vec<_>>(), [range(5, 7)]);
    }

    #[test]
    fn what_is_removed_reaches_into_an_interval_and_up_to_the_last_number() {
        let mut set: IntervalSet = [range(1, 2), range(5, 9), range(12, 12)].into_iter().collect();
        set.remove_up_to(6);
        assert_eq!(set.iter().collect::<Vec<_>>(), [range(7, 9), range(12, 12)]);
        set.remove_up_to(u64::MAX);
        assert!(set.is_empty());
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(
            ranges in prop::collection::vec((0u64..60, 0u64..8), 0..20), low in 0u64..60, length in 0u64..60,
        ) {
            let mut plain = BTreeSet::new();
            let mut set = IntervalSet::default();
            for (from, extra) in ranges {
                plain.extend(from..=from + extra);
                set.insert(range(from, from + extra));
            }
            let within = range(low, low + length);
            let missing: BTreeSet<u64> = set.missing(within).flat_map(|r| r.from..=r.to).collect();
            let expected: BTreeSet<u64> = (low..=low + length).filter(|n| !plain.contains(n)).collect();
            prop_assert_eq!(missing, expected);
            prop_assert!((0..80).all(|n| set.contains(n) == plain.contains(&n)));
            let mut above = set.clone();
            above.remove_up_to(low);
            prop_assert!((0..80).all(|n| above.contains(n) == (n > low && plain.contains(&n))));
            let gaps_between = set.iter().zip(set.iter().skip(1)).all(|(a, b)| a.to + 1 < b.from);
            prop_assert!(gaps_between);
        }
    }
}
