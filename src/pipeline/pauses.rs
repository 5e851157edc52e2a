//! When something that failed may be tried again.
//!
//! A track that fails waits as a whole, because most failures are of a server that all ranges need. A range that fails
//! again and again waits alone: a block that no provider can serve must not hold up the blocks behind it.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::{backoff::Backoff, domain::BlockRange};

/// Longest pause.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// A range that failed this often in a row waits alone from then on.
const PATIENCE: u32 = 3;
/// Stubborn ranges that are remembered; beyond it the lowest are kept, because history goes upwards.
const REMEMBERED: usize = 1_000;

/// One pause, which grows while failures follow one another.
pub(super) struct Pause {
    backoff: Backoff,
    pub(super) until: Instant,
}

impl Pause {
    pub(super) fn new() -> Self {
        Self { backoff: Backoff::new(LONGEST), until: Instant::now() }
    }

    /// Waits before the next try, at least as long as someone asked for.
    pub(super) fn failed(&mut self, at_least: Option<Duration>) {
        self.until = Instant::now() + self.backoff.next_delay().max(at_least.unwrap_or_default());
    }

    pub(super) fn succeeded(&mut self) {
        self.backoff.reset();
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }
}

/// The ranges that failed lately.
#[derive(Default)]
pub(super) struct Stubborn {
    ranges: BTreeMap<BlockRange, (u32, Backoff)>,
}

impl Stubborn {
    /// Takes note of a failure; answers until when the range waits alone, once the patience with it is over.
    pub(super) fn failed(&mut self, range: BlockRange) -> Option<Instant> {
        let (failures, backoff) = self.ranges.entry(range).or_insert_with(|| (0, Backoff::new(LONGEST)));
        *failures += 1;
        let delay = backoff.next_delay();
        let alone = (*failures > PATIENCE).then(|| Instant::now() + delay);
        while self.ranges.len() > REMEMBERED {
            self.ranges.pop_last();
        }
        alone
    }

    pub(super) fn succeeded(&mut self, range: BlockRange) {
        self.ranges.remove(&range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_waits_alone_only_when_it_fails_again_and_again() {
        let (mut stubborn, range) = (Stubborn::default(), BlockRange::single(7));
        for _ in 0..PATIENCE {
            assert_eq!(stubborn.failed(range), None);
        }
        assert!(stubborn.failed(range).is_some());
        stubborn.succeeded(range);
        assert_eq!(stubborn.failed(range), None, "a success is a new beginning");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut stubborn = Stubborn::default();
        for number in 0..2_000 {
            stubborn.failed(BlockRange::single(number));
        }
        assert_eq!(stubborn.ranges.len(), REMEMBERED);
    }
}
