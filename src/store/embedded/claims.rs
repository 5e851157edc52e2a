//! Who works on what, within one process: in memory, because no claim outlives its process.

use std::collections::BTreeMap;

use crate::domain::BlockRange;

/// The token of each claimed block.
#[derive(Debug, Default)]
pub(super) struct Claims {
    fence: u64,
    tokens: BTreeMap<u64, String>,
}

impl Claims {
    /// Takes a range under a new token; whoever held some of it, in this process, holds it no longer.
    pub(super) fn grant(&mut self, range: BlockRange) -> String {
        self.fence += 1;
        let token = format!("embedded:{}", self.fence);
        self.tokens.extend((range.from..=range.to).map(|number| (number, token.clone())));
        token
    }

    /// Whether the block is the token's.
    pub(super) fn holds(&self, number: u64, token: &str) -> bool {
        self.tokens.get(&number).is_some_and(|held| held == token)
    }

    /// Gives back what is the token's.
    pub(super) fn release(&mut self, range: BlockRange, token: &str) {
        for number in range.from..=range.to {
            if self.holds(number, token) {
                self.tokens.remove(&number);
            }
        }
    }

    /// Takes blocks from whoever has them.
    pub(super) fn forget(&mut self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            self.tokens.remove(&number);
        }
    }

    /// Gives everything back.
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
    }
}
