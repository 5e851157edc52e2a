//! **Claim** a range, so that replicas share the work.
//!
//! A claim is an efficiency lock: losing it can cost duplicates, never events (protocol §1). What may be committed is
//! decided by the journal. A block that someone else holds is *not* done: it stays missing until it is delivered.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::{Context, StageError, persist};
use crate::{
    backoff::Backoff,
    domain::BlockRange,
    store::{CLAIM_TTL, ClaimReply, Grant},
};

/// The right to work on a range, until its deadline.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) grant: Grant,
    deadline: Instant,
}

/// What came of asking for a range.
#[derive(Debug)]
pub(super) enum Acquired {
    /// It is ours.
    Ours(Claim),
    /// Some of it is delivered already.
    Done,
    /// Someone else has some of it.
    Held {
        /// The held blocks.
        blocks: BlockRange,
        /// When to look again.
        retry_after: Duration,
    },
}

/// Asks for a range.
pub(super) async fn acquire(ctx: &Context, range: BlockRange) -> Result<Acquired, StageError> {
    // Counted from before the request was sent, so that our clock never runs out after the store's.
    let asked = Instant::now();
    match ctx.store.claim(range).await? {
        ClaimReply::Granted(grant) => Ok(Acquired::Ours(Claim { grant, deadline: asked + CLAIM_TTL })),
        ClaimReply::Done => Ok(Acquired::Done),
        ClaimReply::Held { blocks, retry_after } => Ok(Acquired::Held { blocks, retry_after }),
        ClaimReply::Frozen(_) => Err(StageError::Again("nothing may be delivered now")),
    }
}

/// Renews the claim every third of its life; returns only once it is lost.
pub(super) async fn keep(ctx: &Context, claim: &Claim) -> StageError {
    let mut deadline = claim.deadline;
    let mut backoff = Backoff::new(Duration::from_secs(5));
    let mut next = deadline - CLAIM_TTL * 2 / 3;
    loop {
        sleep_until(next.min(deadline)).await;
        let asked = Instant::now();
        if asked >= deadline {
            return StageError::Again("the claim ran out before it could be renewed");
        }
        match ctx.store.renew(&claim.grant).await {
            Ok(true) => {
                deadline = asked + CLAIM_TTL;
                next = asked + CLAIM_TTL / 3;
                backoff.reset();
            }
            Ok(false) => return StageError::Again("the claim was taken over"),
            Err(error) => {
                debug!(range = %claim.grant.range, %error, "claim not renewed yet");
                next = Instant::now() + backoff.next_delay();
            }
        }
    }
}

/// Gives the claim back, so that the range need not wait for the claim to run out.
pub(super) async fn release(ctx: &Context, claim: &Claim) {
    let released = persist(ctx, "release", RELEASE_PATIENCE, || ctx.store.release(&claim.grant)).await;
    if let Err(error) = released {
        debug!(range = %claim.grant.range, %error, "claim not released; it runs out by itself");
    }
}

/// Longest time that a release is tried for.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
