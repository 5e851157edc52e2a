//! What operators ask for: an answer to a deep reorganisation, blocks again, blocks not at all.

use super::{
    books::{Books, Truth},
    rules::{insert, raise_epoch, remove},
};
use crate::{
    domain::{BlockRange, BlockRef, signed},
    store::{StoreError, above_sealed, halted},
};

/// RESUME; `now` in seconds since the Unix epoch.
pub(super) fn resume(truth: &mut Truth, at: BlockRef, now: u64) -> Result<(), StoreError> {
    if signed(at.number) > truth.sealed {
        return Err(above_sealed(&truth.sealed.to_string()));
    }
    (truth.sealed, truth.sealed_hash, truth.frozen) = (signed(at.number), Some(at.hash), None);
    raise_epoch(truth, now);
    // What was claimed as sealed and sent before is no longer certain, so it does not commit.
    truth.replayed = truth.epoch;
    Ok(())
}

/// REPLAY; `now` in seconds since the Unix epoch.
pub(super) fn replay(
    books: &mut Books<'_>,
    truth: &mut Truth,
    to: i64,
    until: Option<u64>,
    now: u64,
) -> Result<(), StoreError> {
    if let Some(reason) = &truth.frozen {
        return Err(halted(reason));
    }
    let last = until.map_or(truth.tip, |until| signed(until).min(truth.tip));
    if let (Ok(from), Ok(up_to)) = (u64::try_from(to + 1), u64::try_from(last))
        && let Some(range) = BlockRange::new(from, up_to)
    {
        remove(books, truth, range)?;
    }
    if last == truth.tip {
        truth.tip = truth.tip.min(to);
    }
    raise_epoch(truth, now);
    truth.replayed = truth.epoch;
    Ok(())
}

/// SKIP.
pub(super) fn skip(books: &mut Books<'_>, truth: &mut Truth, to: u64) -> Result<(), StoreError> {
    if let Some(reason) = &truth.frozen {
        return Err(halted(reason));
    }
    let first_missing = u64::try_from(truth.watermark + 1).unwrap_or(0);
    BlockRange::new(first_missing, to).map_or(Ok(()), |range| insert(books, truth, range))
}
