//! The blooms of the newest headers, against nodes that have a block and not yet its logs (F06).
//!
//! A header says which contracts and topics its logs may have. Where it says that there may be some that are asked for, an
//! answer without any is not taken at once: nodes behind one balancer, and nodes that index behind their head, answer with
//! an empty list. But a bloom may be wrong, the other way: so the third such answer counts.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use alloy::primitives::{B256, Bloom, BloomInput};

use super::LogFilter;

/// Headers that are remembered, the newest that were read.
const REMEMBERED: usize = 128;
/// Empty answers that are not taken.
const NOT_TAKEN: u8 = 2;
/// With more addresses than this, one of them is in any bloom.
const MOST_ADDRESSES: usize = 64;

/// Blooms by block, each with the number of empty answers that were not taken.
#[derive(Debug, Default)]
pub(super) struct Blooms(Mutex<VecDeque<(B256, Bloom, u8)>>);

impl Blooms {
    /// Takes note of a header.
    pub(super) fn remember(&self, hash: B256, bloom: Bloom) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.iter().any(|(other, ..)| *other == hash) {
            return;
        }
        known.push_back((hash, bloom, 0));
        if known.len() > REMEMBERED {
            known.pop_front();
        }
    }

    /// Whether this block's header was read here.
    pub(super) fn know(&self, hash: B256) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|(other, ..)| *other == hash)
    }

    /// Whether an answer without logs of this block should not be taken yet. Asking counts.
    pub(super) fn contradict_none(&self, hash: B256, filter: &LogFilter) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, bloom, refused)) = known.iter_mut().find(|(other, ..)| *other == hash) else { return false };
        let has = |bytes: &[u8]| bloom.contains_input(BloomInput::Raw(bytes));
        let any_address = filter.addresses.is_empty() || filter.addresses.len() > MOST_ADDRESSES;
        let may_have = filter.topics.iter().any(|topic| has(topic.as_slice()))
            && (any_address || filter.addresses.iter().any(|address| has(address.as_slice())));
        if !may_have || *refused >= NOT_TAKEN {
            return false;
        }
        *refused += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::Address;

    use super::*;

    const HASH: B256 = B256::repeat_byte(1);

    fn filter(address: u8, topic: u8) -> LogFilter {
        LogFilter { addresses: vec![Address::repeat_byte(address)], topics: vec![B256::repeat_byte(topic)] }
    }

    fn of_one_log() -> Blooms {
        let mut bloom = Bloom::default();
        bloom.accrue(BloomInput::Raw(Address::repeat_byte(7).as_slice()));
        bloom.accrue(BloomInput::Raw(B256::repeat_byte(8).as_slice()));
        let blooms = Blooms::default();
        blooms.remember(HASH, bloom);
        blooms
    }

    #[test]
    fn nothing_is_believed_at_the_third_time_only_where_the_bloom_has_contract_and_topic() {
        let blooms = of_one_log();
        assert!(!blooms.contradict_none(HASH, &filter(7, 9)), "another topic");
        assert!(!blooms.contradict_none(HASH, &filter(6, 8)), "another contract");
        assert!(!blooms.contradict_none(B256::ZERO, &filter(7, 8)), "an unknown block");
        let wanted = filter(7, 8);
        assert_eq!([(); 4].map(|()| blooms.contradict_none(HASH, &wanted)), [true, true, false, false]);
        let any = LogFilter { addresses: vec![], ..wanted };
        assert!(of_one_log().contradict_none(HASH, &any), "any contract");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let blooms = of_one_log();
        (0..1_000u64).for_each(|n| blooms.remember(B256::left_padding_from(&n.to_be_bytes()), Bloom::default()));
        assert_eq!(blooms.0.lock().unwrap().len(), REMEMBERED);
        assert!(!blooms.contradict_none(HASH, &filter(7, 8)), "the oldest is forgotten");
    }
}
