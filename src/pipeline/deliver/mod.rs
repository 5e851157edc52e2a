//! **Deliver** events to every sink that wants them.
//!
//! Invariants: nothing of an unsealed block is sent before its intent is journaled and a barrier vouches for it (I4);
//! a [`Delivered`] exists only once every sink acknowledged every event, or a dead letter durably holds it (I1). A sink
//! that is down holds back progress, not memory: the loop tries again until the claim is lost or the process stops.

use std::{borrow::Cow, collections::BTreeSet, time::Duration};

use super::{Claim, Context, StageError, Wanted, persist};
use crate::{
    domain::{BlockRef, Digest, Event, Header},
    mutants::{Mutant, planted},
    store::{self, BlockCommit, FinalCommit, Intent, IntentReply, Orphan},
    telemetry::metrics,
};

mod amend;
mod dead_letters;
mod hand_over;
mod turns;

pub(super) use amend::{Amended, amended, still_of};
pub(super) use dead_letters::{acknowledged, found};
use dead_letters::{bury_undecodable, forget, wall_clock};
use hand_over::{Say, send};
use turns::Haste;
pub use turns::Turns;

/// Proof that every event of a block or range was acknowledged; only this file makes one.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) proof: Proof,
    pub(super) events: u64,
    _only_here: (),
}

/// What COMMIT needs to know.
#[derive(Debug)]
pub(super) enum Proof {
    /// One block, through its journal entry.
    Journaled(BlockCommit),
    /// A final range.
    Final(FinalCommit),
}

/// Journals and sends one unsealed block, part by part.
pub(super) async fn journaled(
    ctx: &Context,
    claim: &Claim,
    header: &Header,
    wanted: &Wanted,
) -> Result<Delivered, StageError> {
    bury_undecodable(ctx, &wanted.undecodable).await?;
    let mut entry = Entry { ctx, claim, header, version: version(claim, wanted.version), digest: Digest::default() };
    let mut parts = store::parts(&wanted.events);
    // A block without events is journaled too: its hash is what later blocks must fit to.
    let mut next = Some(parts.next().unwrap_or_default());
    while let Some(part) = next {
        if planted(Mutant::SendBeforeIntent) {
            send(ctx, Haste::Urgent, Say::Applied(claim.grant.epoch), part).await?;
        }
        if entry.append(part).await? == Appended::Differs {
            return merged(ctx, claim, header, wanted).await;
        }
        send(ctx, Haste::Urgent, Say::Applied(claim.grant.epoch), part).await?;
        next = parts.next();
    }
    Ok(entry.delivered(wanted))
}

/// Sends what the journal holds for the block beside our own events, and appends to it what it lacks.
pub(super) async fn merged(
    ctx: &Context,
    claim: &Claim,
    header: &Header,
    wanted: &Wanted,
) -> Result<Delivered, StageError> {
    let mut entry = Entry { ctx, claim, header, version: version(claim, wanted.version), digest: Digest::default() };
    entry.merge(&wanted.events).await?;
    Ok(entry.delivered(wanted))
}

/// Sends some of the events of a final range, in their order.
pub(super) async fn part(ctx: &Context, claim: &Claim, wanted: &Wanted) -> Result<u64, StageError> {
    bury_undecodable(ctx, &wanted.undecodable).await?;
    for chunk in wanted.events.chunks(ctx.limits.chunk_logs.max(1)) {
        send(ctx, Haste::History, Say::Applied(claim.grant.epoch), chunk).await?;
    }
    Ok(wanted.events.len() as u64)
}

/// Takes back every event of an entry whose block left the chain; what could not be delivered of it has nothing to be
/// delivered for any more.
pub(super) async fn retracted(ctx: &Context, orphan: Orphan, events: &[Event]) -> Result<(), StageError> {
    forget(ctx, events).await?;
    let epoch = if planted(Mutant::RetractUnderOldEpoch) { orphan.epoch } else { orphan.retract_epoch };
    let events = if planted(Mutant::RetractByList) {
        Cow::Owned(events.iter().filter(|event| ctx.filters.tracks(&event.address)).cloned().collect())
    } else {
        Cow::Borrowed(events)
    };
    for part in store::parts(&events) {
        send(ctx, Haste::Urgent, Say::Retracted(epoch), part).await?;
    }
    Ok(())
}

/// All parts of a final range were sent, filtered with one version: `first` and `last` are the headers of its ends.
pub(super) fn finished(
    claim: &Claim,
    (first, last): (&Header, &Header),
    confirmed: Vec<BlockRef>,
    events: u64,
    filter_version: u64,
) -> Delivered {
    let commit = FinalCommit {
        range: claim.grant.range,
        epoch: claim.grant.epoch,
        sealed: claim.grant.sealed,
        parent: first.parent,
        hash: last.hash,
        confirmed,
        filter_version: version(claim, filter_version),
    };
    Delivered { proof: Proof::Final(commit), events, _only_here: () }
}

/// The version that events are journaled and committed under: that of the filter that they passed (N25).
fn version(claim: &Claim, filter_version: u64) -> u64 {
    if planted(Mutant::FilterOfClaim) { claim.grant.filter_version } else { filter_version }
}

/// Which of ours an entry that holds these lacks.
pub(super) fn lacking(held: &[Event], ours: &[Event]) -> Vec<Event> {
    let held: BTreeSet<_> = held.iter().map(Event::delivery).collect();
    ours.iter().filter(|ours| !held.contains(&ours.delivery())).cloned().collect()
}

/// A journal entry while it grows.
struct Entry<'a> {
    ctx: &'a Context,
    claim: &'a Claim,
    header: &'a Header,
    /// Version of the filter that the block's events passed.
    version: u64,
    digest: Digest,
}

#[derive(PartialEq, Eq)]
enum Appended {
    /// The part is journaled and may be sent.
    Journaled,
    /// The entry holds other events than ours.
    Differs,
}

impl Entry<'_> {
    /// Every sink acknowledged everything that the entry holds.
    fn delivered(self, wanted: &Wanted) -> Delivered {
        if !wanted.events.is_empty() {
            let age = wall_clock().saturating_sub(Duration::from_secs(self.header.timestamp));
            metrics::delivery_latency_seconds(age.as_secs_f64());
        }
        let commit = BlockCommit {
            block: self.header.block(),
            epoch: self.claim.grant.epoch,
            filter_version: self.version,
            digest: self.digest,
        };
        Delivered { proof: Proof::Journaled(commit), events: wanted.events.len() as u64, _only_here: () }
    }

    async fn append(&mut self, events: &[Event]) -> Result<Appended, StageError> {
        let mut digest = self.digest;
        for event in events {
            digest.add(event);
        }
        let intent = Intent {
            block: self.header.block(),
            parent: self.header.parent,
            epoch: self.claim.grant.epoch,
            filter_version: self.version,
            digest,
            events,
        };
        match persist(self.ctx, "intent", Duration::MAX, || self.ctx.store.intent(intent.clone())).await? {
            IntentReply::Journaled => {
                self.ctx.vitals.note("journal", None);
                self.digest = digest;
                Ok(Appended::Journaled)
            }
            IntentReply::More => Ok(Appended::Differs),
            IntentReply::Done => Err(StageError::Again("the block is delivered already")),
            IntentReply::Stale => Err(StageError::Again("the epoch moved on")),
            IntentReply::OldList => Err(self.ctx.filters.moved_on()),
            IntentReply::Sealed => Err(StageError::Again("the block became final meanwhile")),
            IntentReply::Full(reason) => {
                self.ctx.vitals.note("journal", Some(reason));
                Err(StageError::Again("the journal of blocks that are not final is full"))
            }
            IntentReply::Conflict(reason) | IntentReply::Deep(reason) => Err(StageError::Conflict(reason)),
        }
    }

    /// Someone journaled other events for this block, with another token list or another provider's answer. What is
    /// journaled may have been sent, so it is sent again, byte for byte; what is missing from it is appended first.
    async fn merge(&mut self, ours: &[Event]) -> Result<(), StageError> {
        let (ctx, block) = (self.ctx, self.header.block());
        let held =
            persist(ctx, "journaled", Duration::MAX, || ctx.store.journaled(block, self.claim.grant.epoch)).await?;
        self.digest = Digest::of(&held);
        let missing = lacking(&held, ours);
        // At least one intent, even an empty one: its barrier vouches for what the others journaled, too.
        let mut parts = store::parts(&missing);
        let mut next = Some(parts.next().unwrap_or_default());
        while let Some(part) = next {
            if self.append(part).await? == Appended::Differs {
                return Err(StageError::Again("someone else appends to the same journal entry"));
            }
            next = parts.next();
        }
        for part in store::parts(&held).chain(store::parts(&missing)) {
            send(ctx, Haste::Urgent, Say::Applied(self.claim.grant.epoch), part).await?;
        }
        Ok(())
    }
}
