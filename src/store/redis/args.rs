//! Arguments of a script, in order, as the texts that Lua reads them from.

use crate::{
    domain::{BlockRange, BlockRef},
    store::{StoreError, check_number},
};

/// Arguments of a script, in order.
#[derive(Debug, Default)]
pub(super) struct Args(Vec<Vec<u8>>);

impl Args {
    /// As they are sent.
    pub(super) fn as_slice(&self) -> &[Vec<u8>] {
        &self.0
    }

    pub(super) fn bytes(mut self, value: Vec<u8>) -> Self {
        self.0.push(value);
        self
    }

    pub(super) fn text(self, value: &(impl ToString + ?Sized)) -> Self {
        self.bytes(value.to_string().into_bytes())
    }

    pub(super) fn texts(self, values: &[String]) -> Self {
        values.iter().fold(self, Self::text)
    }

    /// A block number, below 2^53.
    pub(super) fn block(self, number: u64) -> Result<Self, StoreError> {
        check_number(number)?;
        Ok(self.text(&number))
    }

    /// A block's number and hash.
    pub(super) fn named(self, block: BlockRef) -> Result<Self, StoreError> {
        Ok(self.block(block.number)?.text(&block.hash))
    }

    /// The value, or nothing.
    pub(super) fn optional(self, value: Option<&impl ToString>) -> Self {
        self.bytes(value.map(|value| value.to_string().into_bytes()).unwrap_or_default())
    }

    pub(super) fn range(self, range: BlockRange) -> Result<Self, StoreError> {
        self.block(range.from)?.block(range.to)
    }

    pub(super) fn blocks(self, blocks: &[BlockRef]) -> Result<Self, StoreError> {
        blocks.iter().try_fold(self, |args, &block| args.named(block))
    }
}
