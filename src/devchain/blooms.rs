//! Blooms without hashing the same words over and over.

use alloy::primitives::{
    Address, B256, Bloom, BloomInput, Log,
    map::{AddressMap, B256Map},
};

/// The blooms of words that stand in most logs. Hashing them anew would be two fifths
/// of the work of building a chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Blooms {
    addresses: AddressMap<Bloom>,
    topics: B256Map<Bloom>,
}

fn bloom(bytes: &[u8]) -> Bloom {
    Bloom::from(BloomInput::Raw(bytes))
}

impl Blooms {
    /// Knows these emitters and these topics; all others are hashed.
    pub(super) fn knowing(emitters: impl Iterator<Item = Address>, topics: impl Iterator<Item = B256>) -> Self {
        Self {
            addresses: emitters.map(|address| (address, bloom(address.as_slice()))).collect(),
            topics: topics.map(|topic| (topic, bloom(topic.as_slice()))).collect(),
        }
    }

    /// The bloom of these logs (yellow paper, 4.3.1).
    pub(super) fn of(&self, logs: &[Log]) -> Bloom {
        let mut all = Bloom::default();
        for log in logs {
            match self.addresses.get(&log.address) {
                Some(known) => all.accrue_bloom(known),
                None => all.accrue(BloomInput::Raw(log.address.as_slice())),
            }
            for topic in log.topics() {
                match self.topics.get(topic) {
                    Some(known) => all.accrue_bloom(known),
                    None => all.accrue(BloomInput::Raw(topic.as_slice())),
                }
            }
        }
        all
    }
}
