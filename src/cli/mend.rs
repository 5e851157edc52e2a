//! The commands that set the state back, forward, or free: each says first what it will do.
//!
//! They work on the store's own operations, which are atomic and compare the epoch that was read: what changed in between
//! is told, and nothing is done. On Redis they apply at once, also while replicas run; the embedded store belongs to one
//! process, so they wait for nobody but ask that it has ended.

use std::{
    collections::BTreeSet,
    io::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;

use super::{
    Failure,
    consent::Consent,
    equip::{self, node_failure, opened, say, stage_failure},
};
use crate::{
    app,
    config::Settings,
    domain::{BlockRef, MAX_BLOCK_NUMBER, signed},
    pipeline,
    rpc::{At, ChainSource},
    store::{JournalEntry, Progress, ReplayReply, RewindReply, StateStore, StoreError},
};

/// A node that is asked only for its newest block is waited for this long.
const NODE_WITHIN: Duration = Duration::from_secs(5);
/// An epoch that is further ahead of the clock is not waited for: nothing is forgotten meanwhile.
const LONGEST_LEAD: Duration = Duration::from_secs(10);

/// Flags of `replay`.
#[derive(Args, Debug)]
pub(super) struct ReplayArgs {
    /// First block to deliver again
    #[arg(long, value_name = "A", value_parser = clap::value_parser!(u64).range(..=MAX_BLOCK_NUMBER))]
    from: u64,
    /// Last block to deliver again [default: the highest that is delivered]
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u64).range(..=MAX_BLOCK_NUMBER))]
    to: Option<u64>,
    #[command(flatten)]
    consent: Consent,
}

/// Flags of `rewind`.
#[derive(Args, Debug)]
pub(super) struct RewindArgs {
    /// The last block that stays as it is; -1 delivers from block 0 on
    #[arg(long, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(-1..=signed(MAX_BLOCK_NUMBER)))]
    to: i64,
    #[command(flatten)]
    consent: Consent,
}

/// Flags of `skip`.
#[derive(Args, Debug)]
pub(super) struct SkipArgs {
    /// The last block that is left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=MAX_BLOCK_NUMBER))]
    to: u64,
    #[command(flatten)]
    consent: Consent,
}

/// Flags of `reset`.
#[derive(Args, Debug)]
pub(super) struct ResetArgs {
    #[command(flatten)]
    consent: Consent,
}

/// Flags of `resume`.
#[derive(Args, Debug)]
pub(super) struct ResumeArgs {
    /// Accept the chain as the nodes have it now, although final blocks left it
    #[arg(long, required = true)]
    accept_reorg: bool,
    /// Deliver again from this block on: the first one that was replaced
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=MAX_BLOCK_NUMBER))]
    from: Option<u64>,
    #[command(flatten)]
    consent: Consent,
}

/// Delivers blocks again, up to `--to` or to the tip.
pub(super) async fn replay(
    args: &ReplayArgs,
    settings: &Settings,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    if let Some(to) = args.to.filter(|to| *to < args.from) {
        return Err(Failure::Usage(format!("--from {} is above --to {to}", args.from)));
    }
    let (store, snapshot) = opened(settings).await?;
    let again = Again { first: signed(args.from), last: args.to, consent: args.consent };
    again.deliver(&*store, &thawed(snapshot.progress)?, out).await
}

/// Sets the state back, so that every later block is delivered again.
pub(super) async fn rewind(
    args: &RewindArgs,
    settings: &Settings,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let (store, snapshot) = opened(settings).await?;
    let again = Again { first: args.to.saturating_add(1), last: None, consent: args.consent };
    again.deliver(&*store, &thawed(snapshot.progress)?, out).await
}

/// Blocks that are delivered again.
struct Again {
    first: i64,
    last: Option<u64>,
    consent: Consent,
}

impl Again {
    async fn deliver(
        &self,
        store: &dyn StateStore,
        progress: &Progress,
        out: &mut (dyn Write + Send),
    ) -> Result<(), Failure> {
        let Self { first, .. } = *self;
        let Progress { watermark, tip, epoch, .. } = *progress;
        if first > tip {
            return Err(Failure::Data(format!(
                "nothing can be delivered again from block {first} on: the highest delivered block is {tip}"
            )));
        }
        let last = self.last.filter(|last| signed(*last) < tip);
        let end = last.map_or(tip, signed);
        say(
            out,
            &format!(
                "blocks {first} to {end} will be delivered again, with the same ids and higher versions (watermark \
                 {watermark}, tip {tip})"
            ),
        )?;
        if !self.consent.given(out)? {
            return Ok(());
        }
        let reply = store.replay(first.saturating_sub(1), last, epoch).await;
        finished(reply, out).map(drop)
    }
}

/// Marks blocks as done that were not delivered.
pub(super) async fn skip(args: &SkipArgs, settings: &Settings, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let (store, snapshot) = opened(settings).await?;
    let Progress { watermark, epoch, .. } = thawed(snapshot.progress)?;
    if signed(args.to) <= watermark {
        return Err(Failure::Data(format!("every block up to {} is delivered: the watermark is {watermark}", args.to)));
    }
    let begins = watermark.saturating_add(1);
    say(
        out,
        &format!(
            "blocks {begins} to {} that are not delivered yet will NEVER be delivered by this deployment",
            args.to
        ),
    )?;
    if let Some(head) = newest(settings).await.filter(|head| args.to > *head) {
        let first = head.saturating_add(1);
        say(
            out,
            &format!(
                "the newest block of the nodes is {head}: blocks {first} to {} will be left out when they come",
                args.to
            ),
        )?;
    }
    if !args.consent.given(out)? {
        return Ok(());
    }
    finished(store.skip(args.to, epoch).await, out).map(drop)
}

/// The newest block of the nodes, where there are any and they answer soon: a skip needs none.
async fn newest(settings: &Settings) -> Option<u64> {
    let source = equip::nodes(settings).ok()?;
    let answer = tokio::time::timeout(NODE_WITHIN, source.header(At::Latest)).await.ok()?;
    Some(answer.ok()??.number)
}

/// Takes back what may still leave the chain, then forgets everything. Standard output may be where the retractions go, so
/// it says what it does on `notes`.
pub(super) async fn reset(
    args: &ResetArgs,
    settings: &Settings,
    notes: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let (store, snapshot) = opened(settings).await?;
    let progress = thawed(snapshot.progress)?;
    nobody_else(&*store).await?;
    let ahead = lead(progress.epoch);
    if ahead > LONGEST_LEAD {
        return Err(Failure::Temporary(format!(
            "versions are {} s ahead of the clock (each change of the state takes one, a second gives one): what begins anew \
             would have lower versions than what was sent, and consumers would leave it out; repeat this when they are not",
            ahead.as_secs()
        )));
    }
    let live = unsealed(&*store, &progress).await?;
    let letters = store.dead_letters_len().await.map_err(|error| app::store_failure(&error))?;
    let sinks = app::sinks(settings).await?;
    let targets: BTreeSet<&str> = sinks.values().map(|sink| sink.name()).collect();
    let targets = targets.into_iter().collect::<Vec<_>>().join(", ");
    let Progress { watermark, tip, sealed, .. } = progress;
    say(
        notes,
        &format!(
            "the events of {} blocks that may still leave the chain will be taken back (sent as retractions to {targets})",
            live.len() as u64 + progress.retracting
        ),
    )?;
    say(
        notes,
        &format!(
            "then everything of chain {} will be forgotten: watermark {watermark}, tip {tip}, {letters} dead letters; what was \
             delivered up to the final block {sealed} stays delivered",
            settings.chain.id
        ),
    )?;
    if !args.consent.given(notes)? {
        return Ok(());
    }
    let mut epoch = progress.epoch;
    if !live.is_empty() || progress.retracting > 0 {
        for sink in sinks.values() {
            sink.check().await.map_err(|error| Failure::Unavailable(format!("{}: {error}", sink.name())))?;
        }
        let names: Vec<(BlockRef, u64)> = live.iter().map(|entry| (entry.block, entry.epoch)).collect();
        match store
            .rewind(&names, progress.sealed_block(), progress.epoch)
            .await
            .map_err(|error| app::store_failure(&error))?
        {
            RewindReply::Rewound(now) => epoch = now.epoch,
            RewindReply::Stale => return Err(changed()),
            RewindReply::Deep(reason) => return Err(frozen(&reason)),
        }
        let source = app::nodes(settings, &settings.providers);
        let ctx = app::context(settings, (store.clone(), source), sinks);
        let events = pipeline::take_back(&ctx).await.map_err(|error| stage_failure(&error))?;
        say(notes, &format!("took back {events} events"))?;
    }
    nobody_else(&*store).await?;
    store.wipe().await.map_err(|error| app::store_failure(&error))?;
    // The one change that this was may add a second.
    tokio::time::sleep(lead(epoch).min(LONGEST_LEAD + Duration::from_secs(1))).await;
    say(notes, "done: the store holds nothing of this chain")
}

/// How long it takes until a state that begins has a higher epoch than this one: its epoch is the time in seconds, and
/// several changes within a second run ahead of it.
fn lead(epoch: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Duration::from_secs(epoch.saturating_add(1).saturating_sub(now))
}

/// Goes on after final blocks left the chain.
pub(super) async fn resume(
    args: &ResumeArgs,
    settings: &Settings,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let source = equip::nodes(settings)?;
    let (store, snapshot) = opened(settings).await?;
    let Progress { frozen: Some(reason), sealed, sealed_hash, tip, epoch, .. } = snapshot.progress else {
        return Err(Failure::No("deliveries are not frozen: there is nothing to resume".into()));
    };
    if let Some(from) = args.from.filter(|from| signed(*from) > tip) {
        return Err(Failure::Data(format!("block {from} is above the highest delivered block, {tip}")));
    }
    let sealed =
        u64::try_from(sealed).map_err(|_| Failure::No("nothing is final yet: there is nothing to accept".into()))?;
    let live = store.journal(sealed).await.map_err(|error| app::store_failure(&error))?;
    let at = accepted(sealed, &live);
    let (now, base) = (canonical(&*source, sealed).await?, canonical(&*source, at).await?);
    say(out, &format!("frozen: {reason}"))?;
    let was = sealed_hash.map_or_else(|| "unknown".to_owned(), |hash| hash.to_string());
    say(out, &format!("final was block {sealed} ({was}); the chain has {} there now", now.hash))?;
    let is_back = Some(now.hash) == sealed_hash;
    if is_back {
        say(out, "which is the same, so no final block left: the nodes that said so are not the ones that answer now")?;
    }
    say(
        out,
        &format!("block {base} will count as final, and everything above it is verified and taken back where it left"),
    )?;
    if !is_back {
        say(
            out,
            &format!(
                "what was delivered of final blocks that left the chain cannot be taken back: up to {at} the journal is closed. \
             Tell the consumers, who know what they hold from these blocks"
            ),
        )?;
    }
    match args.from {
        Some(from) => say(out, &format!("blocks {from} to {tip} will be delivered again, as the chain has them now"))?,
        None if is_back => {}
        None => {
            say(out, "the blocks that took their place are not delivered by this: --from N delivers from block N on")?;
        }
    }
    if !args.consent.given(out)? {
        return Ok(());
    }
    let now = finished(store.resume(base, epoch).await, out)?;
    match args.from {
        Some(from) => finished(store.replay(signed(from).saturating_sub(1), None, now.epoch).await, out).map(drop),
        None => Ok(()),
    }
}

/// The height that is accepted as final: below every entry of a final block that was never committed, which would
/// contradict the chain again.
fn accepted(sealed: u64, live: &[JournalEntry]) -> u64 {
    let lowest = live.iter().map(|entry| entry.block.number).min();
    lowest.map_or(sealed, |lowest| sealed.min(lowest.saturating_sub(1)))
}

async fn canonical(source: &dyn ChainSource, number: u64) -> Result<BlockRef, Failure> {
    let found = source.header(At::Number(number)).await.map_err(|error| node_failure(&error))?;
    let found = found.ok_or_else(|| Failure::Unavailable(format!("the nodes have no block {number}")))?;
    Ok(found.block())
}

/// The live entries of blocks that are not final.
async fn unsealed(store: &dyn StateStore, progress: &Progress) -> Result<Vec<JournalEntry>, Failure> {
    let mut live = store.journal(MAX_BLOCK_NUMBER).await.map_err(|error| app::store_failure(&error))?;
    live.retain(|entry| signed(entry.block.number) > progress.sealed);
    Ok(live)
}

/// Refuses while another process works on the state.
async fn nobody_else(store: &dyn StateStore) -> Result<(), Failure> {
    let others = store.others().await.map_err(|error| app::store_failure(&error))?;
    if others.is_empty() {
        return Ok(());
    }
    Err(Failure::Temporary(format!(
        "the state is in use by {}: stop every replica first (one that was killed counts for ten seconds more)",
        others.join(", ")
    )))
}

/// The progress, unless deliveries are frozen.
fn thawed(progress: Progress) -> Result<Progress, Failure> {
    match &progress.frozen {
        Some(reason) => Err(frozen(reason)),
        None => Ok(progress),
    }
}

fn frozen(reason: &str) -> Failure {
    Failure::No(format!("deliveries are frozen: {reason}\nfirst: chaintap resume --accept-reorg"))
}

fn finished(reply: Result<ReplayReply, StoreError>, out: &mut (dyn Write + Send)) -> Result<Progress, Failure> {
    match reply.map_err(|error| app::store_failure(&error))? {
        ReplayReply::Done(now) => {
            say(out, &format!("done: watermark {}, tip {}", now.watermark, now.tip))?;
            Ok(now)
        }
        ReplayReply::Stale => Err(changed()),
    }
}

fn changed() -> Failure {
    Failure::Temporary("the state changed meanwhile; look again and repeat".into())
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;

    use super::*;

    #[test]
    fn what_is_accepted_lies_below_every_entry_that_was_never_committed() {
        let entry = |number| JournalEntry {
            block: BlockRef { number, hash: B256::ZERO },
            parent: B256::ZERO,
            epoch: 1,
            done: false,
        };
        assert_eq!(accepted(100, &[]), 100);
        assert_eq!(accepted(100, &[entry(97), entry(99)]), 96);
        assert_eq!(accepted(100, &[entry(0)]), 0);
    }
}
