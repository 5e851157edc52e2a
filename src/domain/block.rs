//! A block is a number *and* a hash; a number alone names a height, which a reorganisation may give to another block.

use std::fmt;

use alloy::primitives::B256;

/// The highest block number, the last one below 2^53: above it Lua, JSON and JavaScript do not hold integers exactly, so
/// what is higher is refused as invalid input (protocol §3.1).
pub const MAX_BLOCK_NUMBER: u64 = (1 << 53) - 1;

/// A block number where -1 may stand before block 0. It is below 2^53, so the conversion loses nothing.
#[must_use]
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// One particular block: its height and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockRef {
    /// Height, at most [`MAX_BLOCK_NUMBER`].
    pub number: u64,
    /// Keccak-256 of the header, as the node states it.
    pub hash: B256,
}

impl fmt::Display for BlockRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number, self.hash)
    }
}

/// The part of a block header that the listener needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Height, at most [`MAX_BLOCK_NUMBER`].
    pub number: u64,
    /// Hash of this block.
    pub hash: B256,
    /// Hash of the block before it.
    pub parent: B256,
    /// Seconds since the Unix epoch, as the chain states them.
    pub timestamp: u64,
}

impl Header {
    /// This block's number and hash.
    #[must_use]
    pub fn block(&self) -> BlockRef {
        BlockRef { number: self.number, hash: self.hash }
    }
}
