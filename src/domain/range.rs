//! Inclusive ranges of block numbers.

use std::fmt;

/// Blocks `from` to `to`, both included; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRange {
    /// First block.
    pub from: u64,
    /// Last block, at or above `from`.
    pub to: u64,
}

impl BlockRange {
    /// The range `from..=to`, or `None` where it would be empty.
    #[must_use]
    pub fn new(from: u64, to: u64) -> Option<Self> {
        (from <= to).then_some(Self { from, to })
    }

    /// The range of one block.
    #[must_use]
    pub fn single(number: u64) -> Self {
        Self { from: number, to: number }
    }

    /// Number of blocks, at least 1.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        (self.to - self.from).saturating_add(1)
    }

    /// Whether `number` lies inside.
    #[must_use]
    pub fn contains(&self, number: u64) -> bool {
        (self.from..=self.to).contains(&number)
    }

    /// The lower and the upper half, or `None` where there is but one block.
    #[must_use]
    pub fn halves(&self) -> Option<(Self, Self)> {
        let middle = self.from + (self.to - self.from) / 2;
        (self.from < self.to).then_some((Self { from: self.from, to: middle }, Self { from: middle + 1, to: self.to }))
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to { write!(f, "{}", self.from) } else { write!(f, "{}..{}", self.from, self.to) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halving_covers_the_range_without_overlap_and_stops_at_one_block() {
        let (low, high) = BlockRange { from: 10, to: 20 }.halves().unwrap();
        assert_eq!((low, high), (BlockRange { from: 10, to: 15 }, BlockRange { from: 16, to: 20 }));
        assert_eq!(BlockRange::single(7).halves(), None);
    }

    #[test]
    fn an_empty_range_cannot_be_made() {
        assert_eq!(BlockRange::new(5, 4), None);
        assert_eq!(BlockRange::new(5, 5).map(|r| r.blocks()), Some(1));
    }
}
