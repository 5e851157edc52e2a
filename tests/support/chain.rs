//! A made-up chain for tests of the store: hashes, events and digests as functions of a number and a branch.

use std::sync::Arc;

use alloy::primitives::{Address, B256, U256};
use chaintap::domain::{Args, BlockRef, Digest, Event};

/// Block `number` of a branch; branches differ in every hash.
pub fn block(number: u64, branch: u8) -> BlockRef {
    let mut hash = [branch; 32];
    hash[..8].copy_from_slice(&number.to_be_bytes());
    BlockRef { number, hash: B256::from(hash) }
}

/// Hash of the block before it.
pub fn parent(number: u64, branch: u8) -> B256 {
    number.checked_sub(1).map_or(B256::ZERO, |below| block(below, branch).hash)
}

/// Events of a block with these log indices.
pub fn events(block: BlockRef, logs: std::ops::Range<u64>) -> Vec<Event> {
    logs.map(|log_index| Event {
        block,
        timestamp: 1_600_000_000 + block.number,
        transaction_hash: B256::repeat_byte(7),
        transaction_index: 3,
        log_index,
        address: Address::repeat_byte(1),
        contract: Arc::from("Transfers"),
        name: Arc::from("Transfer"),
        handler: Arc::from("handleTransferEvent"),
        args: Args::Transfer {
            from: Address::repeat_byte(2),
            to: Address::repeat_byte(3),
            value: U256::from(log_index),
        },
        token: None,
    })
    .collect()
}

/// Digest of a block's events with these log indices.
pub fn digest(block: BlockRef, logs: std::ops::Range<u64>) -> Digest {
    Digest::of(&events(block, logs))
}
