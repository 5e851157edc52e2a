//! Addresses as EIP-55 writes them, remembered: their capitals come from a hash, which costs more than anything else in a
//! message, and the same tokens, exchanges and routers are in most transfers of a chain.

use std::{fmt, hash::BuildHasherDefault, sync::LazyLock};

use alloy::primitives::Address;
use fixed_cache::Cache;

/// Senders and receivers that are remembered, in a hundred kilobytes, which stay in a processor's cache: those that come again
/// do so within a block or two. One that shares its place with a newer one is worked out anew.
const PARTIES: usize = 1 << 10;
/// Contracts that are remembered, apart from the others: they are few and come again with every block, and new senders and
/// receivers, of which there is no end, would push them out.
const CONTRACTS: usize = 1 << 13;

type Known = LazyLock<Cache<Address, [u8; 42]>>;

static KNOWN_PARTIES: Known = LazyLock::new(|| Cache::new(PARTIES, BuildHasherDefault::default()));
static KNOWN_CONTRACTS: Known = LazyLock::new(|| Cache::new(CONTRACTS, BuildHasherDefault::default()));

/// An address with the checksum of EIP-55, without the chain (EIP-1191 is not widely read).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checksummed([u8; 42]);

impl Checksummed {
    /// The text of an address.
    #[must_use]
    pub fn of(address: Address) -> Self {
        Self::remembered(&KNOWN_PARTIES, address)
    }

    /// The text of an address that emits events.
    #[must_use]
    pub(super) fn of_contract(address: Address) -> Self {
        Self::remembered(&KNOWN_CONTRACTS, address)
    }

    fn remembered(known: &Known, address: Address) -> Self {
        Self(known.get_or_insert_with(address, |address| address.to_checksum_buffer(None).into_inner()))
    }

    /// `0x` and 40 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Checksummed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Checksummed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_addresses_than_are_remembered_are_all_written_right() {
        for round in 0..2 {
            for number in 0..2 * CONTRACTS.max(PARTIES) {
                let address = Address::left_padding_from(&number.to_be_bytes());
                let right = address.to_checksum(None);
                assert_eq!(Checksummed::of(address).as_str(), right, "round {round}");
                assert_eq!(Checksummed::of_contract(address).as_str(), right, "round {round}");
            }
        }
    }
}
