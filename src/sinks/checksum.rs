//! Addresses as EIP-55 writes them. Their capitals come from a hash, which costs more than anything else in a message: so
//! those that come again are remembered, for the same tokens, exchanges and routers are in most transfers of a chain, and of
//! those that are new some are hashed at a time.

use std::{cell::RefCell, fmt, iter::once};

use alloy::{hex, primitives::Address};
use arrayvec::{ArrayString, ArrayVec};

use super::keccak::{AT_ONCE, Hash, Text, hash_each};

/// Senders and receivers that a thread remembers, in 70 kB, which stay in a processor's cache: those that come again do so
/// within a block or two. One that shares its place with a newer one is worked out anew.
const PARTIES: usize = 1 << 10;
/// Contracts that a thread remembers, in 560 kB, apart from the others: they are few and come again with every block, and new
/// senders and receivers, of which there is no end, would push them out.
const CONTRACTS: usize = 1 << 13;

thread_local! {
    // Each thread's own: shared ones would travel from one processor's cache to the other's all the time.
    static KNOWN_PARTIES: RefCell<Known> = RefCell::new(Known::with_places(PARTIES));
    static KNOWN_CONTRACTS: RefCell<Known> = RefCell::new(Known::with_places(CONTRACTS));
}

/// An address with the checksum of EIP-55, without the chain (EIP-1191 is not widely read): `0x` and 40 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checksummed(ArrayString<42>);

impl Checksummed {
    /// The text of an address.
    #[must_use]
    pub fn of(address: Address) -> Self {
        let mut texts = Vec::with_capacity(1);
        Self::of_parties(once(address), &mut texts);
        texts.remove(0)
    }

    /// The texts of senders and receivers, instead of what `texts` were.
    pub(super) fn of_parties(addresses: impl Iterator<Item = Address>, texts: &mut Vec<Self>) {
        KNOWN_PARTIES.with_borrow_mut(|known| known.write(addresses, texts));
    }

    /// The texts of addresses that emit events, instead of what `texts` were.
    pub(super) fn of_contracts(addresses: impl Iterator<Item = Address>, texts: &mut Vec<Self>) {
        KNOWN_CONTRACTS.with_borrow_mut(|known| known.write(addresses, texts));
    }

    /// Letters are capitals where the digit of the hash at their place is 8 or more.
    fn with_capitals(mut text: Text, hash: &Hash) -> Self {
        let capital = |letter: u8, is_high: bool| letter ^ (0x20 * u8::from(letter.is_ascii_lowercase() & is_high));
        for ([high, low], byte) in text.as_chunks_mut().0.iter_mut().zip(hash) {
            *high = capital(*high, byte & 0x80 != 0);
            *low = capital(*low, byte & 0x08 != 0);
        }
        let mut written = ArrayString::from("0x").unwrap_or_default();
        written.push_str(str::from_utf8(&text).unwrap_or_default());
        Self(written)
    }

    /// `0x` and 40 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
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

/// What is remembered: of all addresses that share a place the last one.
struct Known {
    /// A power of two of them, at most 2^16.
    places: Box<[(Address, Checksummed)]>,
}

impl Known {
    fn with_places(count: usize) -> Self {
        // Digits alone have no capitals, whatever the hash.
        let zero = (Address::ZERO, Checksummed::with_capitals([b'0'; 40], &Hash::default()));
        Self { places: vec![zero; count].into() }
    }

    #[expect(clippy::indexing_slicing, reason = "the mask is the highest place")]
    fn place_of(&mut self, address: Address) -> &mut (Address, Checksummed) {
        let end = address.last_chunk().map_or(0, |end| u64::from_le_bytes(*end));
        // Some addresses were chosen for their zeros: the product has of every bit in its highest ones (Fibonacci hashing).
        let [.., low, high] = end.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let mask = self.places.len() - 1;
        &mut self.places[usize::from(u16::from_le_bytes([low, high])) & mask]
    }

    /// Writes the text of each.
    fn write(&mut self, addresses: impl Iterator<Item = Address>, texts: &mut Vec<Checksummed>) {
        texts.clear();
        let mut unknown: ArrayVec<_, AT_ONCE> = ArrayVec::new();
        for address in addresses {
            let (known, text) = *self.place_of(address);
            texts.push(text);
            if known != address {
                unknown.push((address, texts.len() - 1));
            }
            if unknown.is_full() {
                self.work_out(&mut unknown, texts);
            }
        }
        self.work_out(&mut unknown, texts);
    }

    /// Hashes these addresses, remembers their texts, and writes them at their places among the `texts`.
    #[expect(clippy::indexing_slicing, reason = "places of texts that are there; another address's text may not stay")]
    fn work_out(&mut self, unknown: &mut ArrayVec<(Address, usize), AT_ONCE>, texts: &mut [Checksummed]) {
        let lower: ArrayVec<Text, AT_ONCE> = unknown.iter().map(|(address, _)| lower_case(address)).collect();
        let hashes = hash_each(&lower);
        for (((address, at), lower), hash) in unknown.drain(..).zip(lower).zip(hashes) {
            let text = Checksummed::with_capitals(lower, &hash);
            *self.place_of(address) = (address, text);
            texts[at] = text;
        }
    }
}

fn lower_case(address: &Address) -> Text {
    let mut text = [b'0'; 40];
    // Fails only where the text has another length than twice the address's.
    let _always = hex::encode_to_slice(address, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_parties(addresses: impl Iterator<Item = Address>) -> Vec<Checksummed> {
        let mut texts = vec![Checksummed::of(Address::repeat_byte(0xee))];
        Checksummed::of_parties(addresses, &mut texts);
        texts
    }

    #[test]
    fn more_addresses_than_are_remembered_are_all_written_right() {
        let addresses = || (0..2 * CONTRACTS).map(|number| Address::left_padding_from(&number.to_be_bytes()));
        let right: Vec<String> = addresses().map(|address| address.to_checksum(None)).collect();
        for _ in 0..2 {
            let (of_parties, mut of_contracts) = (of_parties(addresses()), Vec::new());
            assert!(of_parties.iter().map(Checksummed::as_str).eq(right.iter().map(String::as_str)));
            Checksummed::of_contracts(addresses(), &mut of_contracts);
            assert!(of_parties == of_contracts, "they are remembered apart");
            assert!(addresses().map(Checksummed::of).eq(of_parties));
        }
    }

    #[test]
    fn few_addresses_of_which_some_come_again_are_written_right() {
        for count in 0..3 * AT_ONCE {
            let address = |number: usize| Address::repeat_byte((count * 7 + number % 5).to_le_bytes()[0]);
            let texts = of_parties((0..count).map(address));
            assert!(
                texts.iter().map(Checksummed::as_str).eq((0..count).map(|number| address(number).to_checksum(None)))
            );
        }
    }
}
