//! The event that an ABI makes of a log.

use std::{fmt, sync::Arc};

use alloy::primitives::{Address, B256, U256};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{BlockRef, Token};

/// One decoded log on its way to one handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The block it is in.
    pub block: BlockRef,
    /// The block's time, seconds since the Unix epoch.
    pub timestamp: u64,
    /// The transaction that emitted it.
    pub transaction_hash: B256,
    /// That transaction's place in the block.
    pub transaction_index: u64,
    /// The log's place in the block.
    pub log_index: u64,
    /// The contract that emitted it.
    pub address: Address,
    /// The entry of `contracts.toml` that matched, by name.
    pub contract: Arc<str>,
    /// The event's name in the ABI, e.g. `Transfer`.
    pub name: Arc<str>,
    /// The handler that it goes to, e.g. `handleTransferEvent`.
    pub handler: Arc<str>,
    /// The decoded arguments.
    pub args: Args,
    /// The tracked token at `address`, where the list knows it.
    pub token: Option<Arc<Token>>,
}

impl Event {
    /// What tells one delivery from the others of its block: the log, and the handler that it goes to.
    #[must_use]
    pub fn delivery(&self) -> (u64, &str) {
        (self.log_index, &self.handler)
    }
}

/// Decoded arguments: the common case in a compact form, any other event as the JSON object of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Args {
    /// ERC-20 `Transfer(address indexed from, address indexed to, uint256 value)` (EIP-20).
    Transfer {
        /// Sender; zero on a mint.
        from: Address,
        /// Receiver; zero on a burn.
        to: Address,
        /// Amount in the token's smallest unit.
        value: U256,
    },
    /// The arguments as one JSON object, members in the order of the ABI.
    Json(Arc<str>),
}

/// Which track handles a block: the one at the head, or the one that fills gaps behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Track {
    /// At the head; has slots of its own, so that history never delays it.
    Realtime,
    /// Behind the head, in ranges.
    Historical,
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Realtime => "realtime",
            Self::Historical => "historical",
        })
    }
}

/// A commutative summary of a set of deliveries (which log to which handler): their count and the XOR of their hashes.
/// Equal digests mean equal sets, whatever the order in which they were added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    count: u64,
    mix: u128,
}

impl Digest {
    /// Adds one delivery. Adding the same one twice takes it out again, so add each once.
    pub fn add(&mut self, event: &Event) {
        let (log_index, handler) = event.delivery();
        let mut hasher = Sha256::new();
        hasher.update(log_index.to_be_bytes());
        hasher.update(handler.as_bytes());
        let hash = hasher.finalize();
        self.count += 1;
        self.mix ^= hash.iter().take(16).fold(0, |mix, &byte| (mix << 8) | u128::from(byte));
    }

    /// The digest of both sets together, which share no delivery.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { count: self.count.saturating_add(other.count), mix: self.mix ^ other.mix }
    }

    /// The digest of these deliveries.
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut digest = Self::default();
        events.into_iter().for_each(|event| digest.add(event));
        digest
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:032x}", self.count, self.mix)
    }
}
