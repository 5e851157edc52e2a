//! **Follow** the head, **plan** the ranges still missing, **claim** one, **fetch** its logs, **decode** them,
//! **filter** by token, **deliver** to every sink, **commit** the progress, and when the chain reorganises, **unwind**.
//!
//! Two ideas keep it small. *Level-triggered*: nothing reacts to a block; a new head only wakes the loop, and what to do
//! is a pure function of what is done, what is busy and where the head is. *Concurrency by range, not by stage*: one
//! claimed range is one task that runs the stages as straight-line code.
//!
//! This file is the story: `process` takes a range through the stages, `unwind` takes back what left the chain, and
//! `seal` closes what became final. Each verb is a file or a folder; beside them stand
//!
//! * `start`, a run from its beginning to its end, `tracks`, the loop, which decides when, `picture`, the state that it
//!   plans from, `pauses`, what waits, `slots`, how much of history is under way at once, `threads`, by which, and
//!   `right_of_way`, when it rests for a new block;
//! * `rescan` and `audit`, a second look at what was delivered: for what joined the filter, and at what another provider
//!   has; `inspect`, the same for an operator, without any effect;
//! * `extent`, how much data of a log is decoded at all, and `fuzzing`, what a hostile contract can emit.
//!
//! What it does not do: name a server or a vendor (that is `app`), or keep anything in memory that would be missed
//! after a crash.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{task::yield_now, time::Instant};
use tracing::{Instrument, debug, info, info_span};

use crate::{
    backoff::Backoff,
    config::{ChainProfile, Limits, Registry},
    domain::{BlockRange, BlockRef, DeliveryMode, Header, RawLog, Track, signed},
    rpc::{ChainSource, LogFilter, RpcError},
    sinks::Sink,
    store::{Progress, StateStore, StoreError},
    telemetry::{Edge, Vitals, metrics},
};

mod audit;
mod claim;
mod commit;
mod decode;
mod deliver;
mod extent;
mod fetch;
mod filter;
mod follow;
pub(crate) mod fuzzing;
pub mod inspect;
mod learned;
mod pauses;
mod picture;
mod plan;
mod rescan;
mod right_of_way;
mod slots;
mod start;
mod threads;
mod tracks;
mod unwind;

pub use audit::Audit;
use claim::{Acquired, Claim};
use commit::{Advanced, Reached};
use decode::{Candidate, Decoded, Undecodable};
pub use deliver::Turns;
use deliver::{Delivered, Proof};
use filter::{Filter, Wanted};
pub use filter::{Filters, Reading, Tokens, keep_fresh};
pub use follow::View;
pub use learned::Learned;
use picture::Picture;
use plan::{Situation, plan};
use slots::{Slot, Slots};
pub use start::{Ended, run};
pub use threads::{Threads, runtime};
use unwind::{Doubt, Look};

/// What the stages work with: the edges, and what is true for this run.
pub struct Context {
    /// The chain.
    pub chain: ChainProfile,
    /// Which blocks are delivered.
    pub deliver: DeliveryMode,
    /// What is listened to.
    pub registry: Arc<Registry>,
    /// What nodes are asked for; follows from the registry.
    pub log_filter: LogFilter,
    /// The nodes.
    pub source: Arc<dyn ChainSource>,
    /// The state.
    pub store: Arc<dyn StateStore>,
    /// Handler name to sink.
    pub sinks: BTreeMap<String, Arc<dyn Sink>>,
    /// Whose turn it is to call a sink.
    pub turns: Turns,
    /// What works on ranges.
    pub threads: Threads,
    /// What events are filtered with.
    pub filters: Filters,
    /// Whether what is sealed is held against another provider.
    pub audit: Audit,
    /// Facts for `/health`.
    pub vitals: Arc<Vitals>,
    /// Limits of size and time.
    pub limits: Limits,
}

/// Why a range was not finished, by what happens next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StageError {
    /// Nothing is wrong; plan anew.
    #[error("{0}")]
    Again(&'static str),
    /// A node did not serve; after a pause the range is planned again.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The store did not serve; after a pause the range is planned again, or the process stops.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is journaled and what a node says are not one chain: look which blocks left it, then plan anew.
    #[error("{0}")]
    Conflict(String),
    /// Nothing more may be delivered until someone looks; the reason.
    #[error("{0}")]
    Halt(String),
}

/// What became of a range.
#[derive(Debug)]
enum Processed {
    /// Delivered and committed; the block, where it may still leave the chain, and how far that brought the whole.
    Committed(Option<BlockRef>, Reached),
    /// Delivered by someone else.
    AlreadyDone,
    /// Someone else has some of it, until then.
    Held(BlockRange, Instant),
}

/// A range that is to be delivered, by its track, and the slot that it has until all its logs are there.
struct Job {
    track: Track,
    range: BlockRange,
    slot: Slot,
}

/// One range through all stages. Dropping it at any await is safe: whatever was sent is sent again.
async fn process(ctx: &Context, mut job: Job, view: &View) -> Result<Processed, StageError> {
    let (track, range) = (job.track, job.range);
    ctx.threads.make_way(track);
    // One for the whole range: what it is committed under must be what all of it was filtered with (N25).
    let filter = ctx.filters.now()?;
    let claim = match timed("claim", claim::acquire(ctx, range)).await? {
        Acquired::Ours(claim) => claim,
        Acquired::Done => return Ok(Processed::AlreadyDone),
        Acquired::Held { blocks, retry_after } => return Ok(Processed::Held(blocks, Instant::now() + retry_after)),
    };
    if claim.grant.retracting > 0 {
        claim::release(ctx, &claim).await;
        return Err(StageError::Again("what left the chain is taken back first"));
    }
    let work = async {
        let final_height = view.heights.final_height(ctx.chain.finality_depth);
        let is_final = final_height.is_some_and(|height| range.to <= height) || signed(range.to) <= claim.grant.sealed;
        if is_final {
            final_range(ctx, &mut job, &claim, &filter).await.map(|reached| (None, reached))
        } else {
            let (block, reached) = one_block(ctx, &mut job, &claim, &filter, view).await?;
            Ok((Some(block), reached))
        }
    };
    let span = info_span!("range", %range, %track);
    let outcome = tokio::select! {
        biased;
        lost = claim::keep(ctx, &claim) => Err(lost),
        committed = work.instrument(span) => committed,
    };
    ctx.threads.go_on(track);
    if let Err(error) = &outcome {
        debug!(%range, %error, "range not finished");
        claim::release(ctx, &claim).await;
    }
    outcome.map(|(block, reached)| Processed::Committed(block, reached))
}

/// A block that may still leave the chain: by hash, journaled before it is sent.
async fn one_block(
    ctx: &Context,
    job: &mut Job,
    claim: &Claim,
    filter: &Filter,
    view: &View,
) -> Result<(BlockRef, Reached), StageError> {
    let number = claim.grant.range.from;
    // The head's header is at hand; for another block it is asked for.
    let header = Some(view.head).filter(|head| head.number == number);
    let (header, logs) = timed("fetch", fetch::block(ctx, &ctx.log_filter, number, header)).await?;
    job.slot.fetched(logs.len(), true);
    // The node may have been far away.
    ctx.threads.make_way(job.track);
    let wanted = wanted(ctx, filter, &relevant(ctx, filter, logs));
    let mut delivered = timed("deliver", deliver::journaled(ctx, claim, &header, &wanted)).await?;
    loop {
        match timed("commit", commit::advance(ctx, job.track, claim, delivered)).await? {
            Advanced::Committed(reached) => return Ok((header.block(), reached)),
            Advanced::More => delivered = timed("deliver", deliver::merged(ctx, claim, &header, &wanted)).await?,
        }
    }
}

/// Blocks that are final: by number, in parts as large as the provider bears, committed as one.
async fn final_range(ctx: &Context, job: &mut Job, claim: &Claim, filter: &Filter) -> Result<Reached, StageError> {
    let BlockRange { from, to } = claim.grant.range;
    let asked = filter.of_history(ctx);
    let confirmed = fetch::confirm(ctx, &claim.grant.live).await?;
    let (mut next, mut events) = (from, 0);
    let (mut first, mut before): (Option<Header>, Option<Header>) = (None, None);
    loop {
        let (part, answer) = timed("fetch", fetch::part(ctx, &asked, next, to)).await?;
        job.slot.fetched(answer.logs.len(), part.to >= to);
        let first = *first.get_or_insert(answer.first);
        if before.replace(answer.last).is_some_and(|before| before.hash != answer.first.parent) {
            return Err(RpcError::Invalid("two parts of a final range that are not one chain".into()).into());
        }
        events += in_pieces(ctx, job, claim, filter, answer.logs).await?;
        if part.to >= to {
            let delivered = deliver::finished(claim, (&first, &answer.last), confirmed, events, filter.version);
            return match timed("commit", commit::advance(ctx, job.track, claim, delivered)).await? {
                Advanced::Committed(reached) => Ok(reached),
                Advanced::More => Err(StageError::Again("a range without a journal lacks what is journaled")),
            };
        }
        next = part.to + 1;
    }
}

/// Decodes, filters and delivers an answer, some logs after the other, and answers how many events were in it: a thousand
/// logs take a millisecond, and a block at the head that comes meanwhile does not wait for all of them. Of the events only
/// some exist at a time.
async fn in_pieces(
    ctx: &Context,
    job: &mut Job,
    claim: &Claim,
    filter: &Filter,
    logs: Vec<RawLog>,
) -> Result<u64, StageError> {
    let answered = logs.len();
    // All at once: pieces of what hardly anyone wants would make many small requests of a sink.
    let mut left = relevant(ctx, filter, logs).into_iter();
    job.slot.delivered(answered - left.len());
    let mut events = 0;
    while left.len() > 0 {
        yield_now().await;
        let count = left.len().min(ctx.limits.chunk_logs.max(1));
        let found = wanted(ctx, filter, left.as_slice().get(..count).unwrap_or_default());
        // What is large in them is not needed any more.
        left.by_ref().take(count).for_each(drop);
        events += timed("deliver", deliver::part(ctx, claim, &found)).await?;
        job.slot.delivered(count);
    }
    Ok(events)
}

/// The logs that someone may want, by their contracts alone.
fn relevant(ctx: &Context, filter: &Filter, logs: Vec<RawLog>) -> Vec<RawLog> {
    metrics::logs_received(logs.len() as u64);
    filter::by_address(filter, &ctx.registry, logs)
}

/// Decodes and filters.
fn wanted(ctx: &Context, filter: &Filter, logs: &[RawLog]) -> Wanted {
    let begun = Instant::now();
    let decoded = decode::events(&ctx.registry, logs);
    metrics::stage_seconds("decode", begun.elapsed().as_secs_f64());
    for (reason, count) in &decoded.rejected {
        metrics::logs_rejected(reason, *count);
    }
    let begun = Instant::now();
    let wanted = filter::by_token(filter, decoded);
    metrics::stage_seconds("filter", begun.elapsed().as_secs_f64());
    wanted
}

/// Holds what was delivered against the chain of the newest head, and takes back what is not on it.
async fn unwind(
    ctx: &Context,
    head: &Header,
    progress: &Progress,
    thorough: bool,
    believed: Option<Doubt>,
) -> Result<Look, StageError> {
    if progress.retracting > 0 {
        take_back(ctx).await?;
    }
    let look = timed("unwind", unwind::look(ctx, head, progress, thorough, believed)).await?;
    if look == Look::Again {
        take_back(ctx).await?;
    }
    Ok(look)
}

/// Sends the retractions of every block that is known to have left the chain; answers how many events were taken back.
///
/// # Errors
///
/// [`StageError`] where a sink or the store does not serve; what was not taken back stays to be.
pub async fn take_back(ctx: &Context) -> Result<u64, StageError> {
    let mut retracted = 0;
    loop {
        let orphans = persist(ctx, "orphans", PATIENCE, || ctx.store.orphans()).await?;
        if orphans.is_empty() {
            return Ok(retracted);
        }
        for orphan in orphans {
            let read = || ctx.store.journaled(orphan.block, orphan.epoch);
            let events = persist(ctx, "journaled", PATIENCE, read).await?;
            timed("deliver", deliver::retracted(ctx, orphan, &events)).await?;
            persist(ctx, "retracted", PATIENCE, || ctx.store.retracted(orphan)).await?;
            metrics::events_retracted(events.len() as u64);
            info!(block = %orphan.block, events = events.len(), "taken back");
            retracted += events.len() as u64;
        }
    }
}

/// Seals what became final, once another provider had no more to say of it.
async fn seal(ctx: &Context, view: &View) -> Result<(), StageError> {
    let Some(sealable) = commit::sealable(ctx, view).await? else { return Ok(()) };
    audit::before_sealing(ctx, &sealable.entries).await?;
    commit::seal(ctx, &sealable).await
}

/// One operation of the store is tried for this long before the loop looks anew, unless a claim bounds it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the store until it answers: its operations are idempotent, so a reply that was lost is repaired by asking
/// again. Gives up after `patience`; the claim's deadline bounds it in any case. What journals and commits is told of,
/// for only that proves that the store keeps what it is given.
async fn persist<R, F>(
    ctx: &Context,
    name: &'static str,
    patience: Duration,
    operation: impl Fn() -> F,
) -> Result<R, StoreError>
where
    F: Future<Output = Result<R, StoreError>>,
{
    let begun = Instant::now();
    let mut backoff = Backoff::new(Duration::from_secs(2));
    loop {
        let asked = Instant::now();
        let answer = operation().await;
        let outcome = if answer.is_ok() { "ok" } else { "error" };
        metrics::store_request(name, outcome, asked.elapsed().as_secs_f64());
        if name != "release" && name != "retire" {
            let told = answer.as_ref().map(|_| ()).map_err(ToString::to_string);
            ctx.vitals.answer(Edge::Journal, asked, told.as_ref().copied().map_err(String::as_str));
        }
        match answer {
            Err(StoreError::Transient(_)) if begun.elapsed() < patience => backoff.wait(None).await,
            other => return other,
        }
    }
}

/// Tells how many dead letters there are; where the store does not answer, that is told elsewhere.
async fn count_dead_letters(ctx: &Context) {
    if let Ok(letters) = ctx.store.dead_letters_len().await {
        ctx.vitals.dead_letters(letters);
    }
}

/// Measures one stage of one range.
async fn timed<R, E>(stage: &'static str, work: impl Future<Output = Result<R, E>>) -> Result<R, E> {
    let begun = Instant::now();
    let outcome = work.await;
    metrics::stage_seconds(stage, begun.elapsed().as_secs_f64());
    if outcome.is_err() {
        metrics::stage_error(stage);
    }
    outcome
}
