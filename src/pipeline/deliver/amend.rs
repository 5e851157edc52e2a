//! Events that a re-scan or an audit found for a block which may be delivered already.
//!
//! As everywhere nothing of a block that may leave the chain is sent before the journal holds it, so that it can be
//! taken back (I4). What the journal holds already is sent again all the same: whoever put it there may have died
//! before its messages left.

use std::collections::BTreeMap;

use super::{
    super::{Context, PATIENCE, StageError, Wanted, persist},
    bury_undecodable,
    hand_over::{Say, send},
    lacking,
    turns::Haste,
};
use crate::{
    domain::{BlockRef, Digest, Event},
    store::{self, Amend, AmendReply},
};

/// This often an entry may grow between reading it and offering what it lacks.
const ROUNDS: usize = 5;

/// What became of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) enum Amended {
    /// The block's journal entry holds them, and every sink acknowledged them.
    Journaled,
    /// The block is final and has no entry: they were acknowledged under this epoch of the chain, and count as delivered
    /// if it still is the chain's.
    Final(u64),
    /// The block is not delivered yet, or left the chain: nothing was sent.
    Elsewhere,
}

/// Hands over these events of one block, of which others may have been delivered before. `is_final`: as far as the caller
/// sees the block will not leave the chain.
pub(in crate::pipeline) async fn amended(
    ctx: &Context,
    block: BlockRef,
    wanted: &Wanted,
    is_final: bool,
) -> Result<Amended, StageError> {
    bury_undecodable(ctx, &wanted.undecodable).await?;
    let ours = &wanted.events;
    let mut held = Vec::new();
    for _ in 0..ROUNDS {
        let (epoch, amended) = match offer(ctx, block, wanted, &held).await? {
            AmendReply::Journaled { epoch } => (epoch, Amended::Journaled),
            // Without an entry it could not be taken back (I4): an operator left it out, or this process sees less of the
            // chain than another one that delivered it.
            AmendReply::Final { .. } if !is_final && !is_sealed(ctx, block).await? => {
                return Err(StageError::Again("a block without a journal entry is not final yet"));
            }
            AmendReply::Final { epoch } => (epoch, Amended::Final(epoch)),
            AmendReply::More { epoch } => {
                held = persist(ctx, "journaled", PATIENCE, || ctx.store.journaled(block, epoch)).await?;
                continue;
            }
            AmendReply::Missing | AmendReply::Gone => return Ok(Amended::Elsewhere),
            AmendReply::OldList => return Err(ctx.filters.moved_on()),
            AmendReply::Frozen => return Err(StageError::Again("nothing may be delivered")),
        };
        // As it is journaled, byte for byte.
        let journaled: BTreeMap<_, _> = held.iter().map(|held| (held.delivery(), held)).collect();
        let events: Vec<Event> =
            ours.iter().map(|ours| (*journaled.get(&ours.delivery()).unwrap_or(&ours)).clone()).collect();
        for part in store::parts(&events) {
            send(ctx, Haste::Urgent, Say::Applied(epoch), part).await?;
        }
        return Ok(amended);
    }
    Err(StageError::Again("someone else appends to the same journal entry"))
}

/// Whether the block was final for somebody before: the chain may have become shorter since.
async fn is_sealed(ctx: &Context, block: BlockRef) -> Result<bool, StageError> {
    let sealed = persist(ctx, "snapshot", PATIENCE, || ctx.store.snapshot()).await?.progress.sealed;
    Ok(u64::try_from(sealed).is_ok_and(|sealed| block.number <= sealed))
}

/// What was sent of final blocks counts only if the epoch that it was sent under is still the chain's: a retraction of
/// a later one would outrank it.
pub(in crate::pipeline) async fn still_of(ctx: &Context, epochs: &[u64]) -> Result<(), StageError> {
    let Some(newest) = epochs.iter().max() else { return Ok(()) };
    let now = persist(ctx, "snapshot", PATIENCE, || ctx.store.snapshot()).await?.progress.epoch;
    if epochs.iter().all(|epoch| epoch == newest) && *newest == now {
        return Ok(());
    }
    Err(StageError::Again("the epoch moved on"))
}

/// Offers what an entry that holds `held` lacks, part by part; the answer to the last part, or the first other one.
async fn offer(ctx: &Context, block: BlockRef, wanted: &Wanted, held: &[Event]) -> Result<AmendReply, StageError> {
    let missing = lacking(held, &wanted.events);
    let mut digest = Digest::of(held);
    let mut parts = store::parts(&missing);
    // At least one, even an empty one: its barrier vouches for what others journaled, too.
    let mut next = Some(parts.next().unwrap_or_default());
    let mut journaled = None;
    while let Some(part) = next {
        digest = digest.and(Digest::of(part));
        let amend = Amend { block, filter_version: wanted.version, digest, events: part };
        let reply = persist(ctx, "amend", PATIENCE, || ctx.store.amend(amend.clone())).await?;
        let AmendReply::Journaled { epoch } = reply else { return Ok(reply) };
        if journaled.replace(epoch).is_some_and(|before| before != epoch) {
            // Delivered anew meanwhile: what came before went into another entry.
            return Ok(AmendReply::More { epoch });
        }
        next = parts.next();
    }
    // The loop ran at least once.
    Ok(journaled.map_or(AmendReply::Gone, |epoch| AmendReply::Journaled { epoch }))
}
