//! The state's edge: the delivery protocol's scripts as one trait, with two homes: Redis (shared by replicas) and an
//! embedded file (one process).
//!
//! Every operation is atomic and idempotent: a reply that was lost is repaired by asking again. What each one does is
//! written in full in `docs/protocol.md`; the numbers of its sections appear here as "protocol §". Both homes pass
//! one contract test suite, `tests/store_contract.rs`.
//!
//! The store knows the identity of its process (`owner`: host and boot id); callers do not pass it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use alloy::primitives::B256;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::{BlockRange, BlockRef, Digest, Event, IntervalSet, MAX_BLOCK_NUMBER, Track};

pub mod embedded;
pub mod keys;
mod packed;
pub mod redis;

pub use packed::parts;

/// Time to live of a claim. Operators rely on 5 minutes (contract §3).
pub const CLAIM_TTL: Duration = Duration::from_mins(5);
/// Time to live of a process's heartbeat; a dead owner's claims are taken over after it.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(10);
/// How often the heartbeat is renewed.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(3);
/// Most blocks in one claim.
pub const MAX_CLAIM_BLOCKS: u64 = 100;
/// Most events in one part of a journal entry.
pub const MAX_PART_EVENTS: usize = 1_000;
/// Most bytes of one part as it is stored, unless one event alone has more (protocol §4).
pub const MAX_PART_BYTES: usize = 256 << 10;
/// Most disjoint intervals kept above the watermark; beyond it no new range is opened above the holes.
pub const MAX_DONE_INTERVALS: usize = 10_000;
/// Markers `block:{n}` are kept for this many blocks below the newest one.
pub const MARKER_BLOCKS: u64 = 10_000;
/// At this many refused messages a sink counts as down.
pub const MAX_REFUSED: u64 = 100_000;
/// Undecodable logs kept for an operator to see, the newest.
pub const MAX_UNDECODABLE: u64 = 10_000;
/// Journaled bytes of unsealed blocks beyond which no new entry is begun (protocol §3.1).
pub const JOURNAL_CAP: u64 = 32 << 20;
/// Most entries that one BARRIER answers with.
pub const MAX_ORPHANS: usize = 100;
/// Most bytes in the key of a member of the filter.
const MAX_MEMBER_BYTES: usize = 200;
/// Endpoints of which it is kept what was learned.
pub const MAX_LEARNED: usize = 32;
/// Longest name of such an endpoint, in bytes.
pub const MAX_ENDPOINT_BYTES: usize = 100;
/// Most bytes of what was learned of one endpoint.
pub const MAX_LEARNED_BYTES: usize = 2 << 10;
/// Journal entries that one SEAL drops (protocol §4).
pub const SEAL_DROPS: usize = 200;

/// Where to begin on an empty store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The first block to deliver.
    At(u64),
    /// The head at this moment is the first block to deliver; the caller read it.
    Latest(u64),
    /// The store must hold state already (`EXPECT_STATE`): an empty one is refused rather than begun.
    Expected,
}

/// The truth, as one consistent reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Every block at or below it is delivered; -1 before block 0.
    pub watermark: i64,
    /// The highest delivered block.
    pub tip: i64,
    /// Every block at or below it is final and needs no journal; -1 at first.
    pub sealed: i64,
    /// Canonical hash at `sealed`, once something was sealed.
    pub sealed_hash: Option<B256>,
    /// Raised whenever blocks are taken back or delivered again; the source of versions.
    pub epoch: u64,
    /// Version of the token list and contracts that events are filtered with.
    pub filter_version: u64,
    /// Why nothing may be delivered, where that is so.
    pub frozen: Option<String>,
    /// Journal entries whose messages have to be taken back before anything new is sent.
    pub retracting: u64,
    /// The service name written into the views.
    pub service: String,
}

impl Progress {
    /// What is sealed, once something was.
    #[must_use]
    pub fn sealed_block(&self) -> Option<BlockRef> {
        Some(BlockRef { number: u64::try_from(self.sealed).ok()?, hash: self.sealed_hash? })
    }
}

/// What the planner reads: progress and what is done above the watermark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The truth.
    pub progress: Progress,
    /// Committed intervals above the watermark.
    pub done: IntervalSet,
}

/// What INIT found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initialised {
    /// The state to go on from.
    pub progress: Progress,
    /// Whether the store was empty of truth and this call began it.
    pub fresh: bool,
    /// What an operator's edit of a view changed, in words for the log; empty where nothing was edited.
    pub edits: Vec<String>,
}

/// Proof of a claim, compared by the store before anything is released or renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The claimed blocks.
    pub range: BlockRange,
    /// `owner:fence`, the value of the claim's keys.
    pub token: String,
    /// Epoch at the time of the claim.
    pub epoch: u64,
    /// Sealed height at the time of the claim.
    pub sealed: i64,
    /// Filter version at the time of the claim.
    pub filter_version: u64,
    /// Journal entries whose messages have to be taken back first.
    pub retracting: u64,
    /// Live journal entries in `[from - 1, to + 1]`.
    pub live: Vec<BlockRef>,
}

/// Answer of CLAIM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimReply {
    /// The range is ours (granted, granted again, or taken over from a dead owner).
    Granted(Grant),
    /// Some block of the range is delivered already: plan anew.
    Done,
    /// Someone else has some of it. Held is not done: look again after the given time.
    Held {
        /// The blocks, within the asked range, that are held.
        blocks: BlockRange,
        /// Until the claim may be free: the lower of the claim's and its owner's heartbeat's time to live.
        retry_after: Duration,
    },
    /// Nothing may be claimed; the reason.
    Frozen(String),
}

/// One part of a block's events, to be journaled before it is sent.
#[derive(Clone, Debug)]
pub struct Intent<'a> {
    /// The block.
    pub block: BlockRef,
    /// Hash of the block before it.
    pub parent: B256,
    /// Epoch of the claim.
    pub epoch: u64,
    /// Filter version of the caller's token list.
    pub filter_version: u64,
    /// Digest of all parts up to and including this one.
    pub digest: Digest,
    /// The part's events, one of the [`parts`] of a block, possibly none.
    pub events: &'a [Event],
}

/// Answer of INTENT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntentReply {
    /// Journaled, and a barrier vouches for it: it may be sent.
    Journaled,
    /// The block is delivered already.
    Done,
    /// The epoch moved on: claim again.
    Stale,
    /// The filter moved on: refresh, then claim again.
    OldList,
    /// At or below the sealed height and without an entry: use the final path.
    Sealed,
    /// A delivered or journaled neighbour contradicts the block: a reorganisation; says which.
    Conflict(String),
    /// The block contradicts the sealed chain.
    Deep(String),
    /// The entry holds other events than the caller's: read it, merge, and offer what it lacks under the digest of all.
    /// Offer it also where it lacks nothing: then the barrier vouches for what others journaled.
    More,
    /// The journal of unsealed blocks holds as much as it may, so no new entry is begun until some are sealed; says so.
    Full(String),
}

/// One block to commit through its journal entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCommit {
    /// The block.
    pub block: BlockRef,
    /// Epoch it was journaled in.
    pub epoch: u64,
    /// Filter version of the caller's token list.
    pub filter_version: u64,
    /// Digest of everything that was acknowledged.
    pub digest: Digest,
}

/// A range at or below the final height, to commit without a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalCommit {
    /// The blocks.
    pub range: BlockRange,
    /// Epoch of the claim.
    pub epoch: u64,
    /// Sealed height at the time of the claim.
    pub sealed: i64,
    /// Hash of the block before the range.
    pub parent: B256,
    /// Hash of the range's last block.
    pub hash: B256,
    /// Canonical blocks at the heights of the live entries that the claim returned.
    pub confirmed: Vec<BlockRef>,
    /// Filter version of the caller's token list.
    pub filter_version: u64,
}

/// Answer of COMMIT and `COMMIT_FINAL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitReply {
    /// Done, in one step: journal, done, watermark, views, marker, claim.
    Committed {
        /// The new watermark.
        watermark: i64,
        /// The new tip.
        tip: i64,
        /// A view was edited by an operator and left as it is; the edit is applied at the next start.
        edited: bool,
    },
    /// The entry is gone or is being taken back.
    Fenced,
    /// The epoch moved on: claim and send again.
    Stale,
    /// The filter moved on: refresh, then claim again.
    OldList,
    /// The entry holds more than was acknowledged: read it, send the rest, commit again.
    More,
    /// A live entry contradicts the range: a reorganisation; says which.
    Conflict(String),
}

/// A live journal entry (one that is not being taken back), without its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// The block.
    pub block: BlockRef,
    /// Hash of the block before it.
    pub parent: B256,
    /// Epoch it was journaled in.
    pub epoch: u64,
    /// Whether it was committed (otherwise it is being sent).
    pub done: bool,
}

/// A journal entry whose block left the chain: everything that it holds is to be retracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The block.
    pub block: BlockRef,
    /// Epoch it was journaled in, part of the entry's name.
    pub epoch: u64,
    /// Epoch of the REWIND that took it back: the retractions' version is `2 * retract_epoch`.
    pub retract_epoch: u64,
}

/// Answer of REWIND.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RewindReply {
    /// The entries are being taken back, under a new epoch; the new progress.
    Rewound(Progress),
    /// The epoch moved on, or the sealed height: someone else did it, or something else; read again.
    Stale,
    /// What was sealed left the chain. Nothing but `frozen` was changed; the reason that it holds now.
    Deep(String),
}

/// Events that were found for a block which may be delivered already: by a re-scan or an audit.
#[derive(Clone, Debug)]
pub struct Amend<'a> {
    /// The block, canonical.
    pub block: BlockRef,
    /// Filter version of the caller's token list.
    pub filter_version: u64,
    /// Digest of everything that the entry holds, and of these events.
    pub digest: Digest,
    /// What the entry lacks, one of the [`parts`] of it, possibly none.
    pub events: &'a [Event],
}

/// Answer of AMEND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AmendReply {
    /// Journaled in the entry of this epoch, and a barrier vouches for it: send the events under it.
    Journaled {
        /// The entry's epoch.
        epoch: u64,
    },
    /// The entry of this epoch holds other events than the digest says: read it, and offer what it lacks.
    More {
        /// The entry's epoch.
        epoch: u64,
    },
    /// Delivered, final and without an entry: send the events under this epoch, and see that it is still the chain's
    /// before the duty counts as done.
    Final {
        /// The chain's epoch.
        epoch: u64,
    },
    /// Not delivered yet: its track delivers it, with the new list.
    Missing,
    /// The block is being taken back, or another one stands at its height: nothing to amend.
    Gone,
    /// The filter moved on: refresh.
    OldList,
    /// Nothing may be delivered.
    Frozen,
}

/// What events are filtered with, as it was published for all replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Raised by one with every change; 0 before the first publication.
    pub version: u64,
    /// The tokens and contracts by key: opaque to the store, ordered, each at most 200 bytes.
    pub members: BTreeSet<String>,
}

/// A token or contract that joins the filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its key.
    pub key: String,
    /// The first block from which it is wanted, where it has one of its own.
    pub from: Option<u64>,
}

/// `PUBLISH_FILTER`: a change of what events are filtered with; without a change, the news that a check found none.
#[derive(Clone, Debug)]
pub struct Publication<'a> {
    /// The version that this one replaces: compare-and-set.
    pub version: u64,
    /// What joins.
    pub added: &'a [Member],
    /// Keys of what leaves.
    pub removed: &'a [String],
    /// A moment before the reading that this publication rests on began; `None` where no such moment is known.
    pub checked: Option<Checked>,
}

/// What was delivered at a moment. A member that a later reading lacks was not wanted when blocks up to that tip were
/// filtered, unless some of them were delivered anew since, which raises the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The tip.
    pub tip: i64,
    /// The epoch.
    pub epoch: u64,
}

/// Answer of `PUBLISH_FILTER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishReply {
    /// This version is the chain's now.
    Published(u64),
    /// Someone else published meanwhile: read again.
    Stale,
}

/// Blocks that are to be looked at again for what joined the filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duty {
    /// Its name, to report on it.
    pub id: u64,
    /// What is still to be scanned.
    pub range: BlockRange,
    /// Keys of the members that joined.
    pub members: Vec<String>,
}

/// Answer of SEAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealReply {
    /// Sealed up to the asked height; `true` where more committed entries wait to be dropped: call again.
    Sealed {
        /// Call again to drop the rest.
        more: bool,
    },
    /// The run tops are not the caller's: read the journal again.
    Refused,
}

/// Answer of REPLAY, SKIP and RESUME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayReply {
    /// Done; the new progress.
    Done(Progress),
    /// The epoch moved on: read again.
    Stale,
}

/// Why something is among the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadKind {
    /// A sink will never take the message.
    Refused,
    /// A log of a tracked contract could not be decoded.
    Undecodable,
}

/// Something that could not be delivered, kept for an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// `{event id}|{handler}`: burying the same one again overwrites it.
    pub key: String,
    /// Why it is here.
    pub kind: DeadKind,
    /// The sink's or the decoder's words.
    pub reason: String,
    /// The handler it was meant for.
    pub handler: String,
    /// Height of its block.
    pub block_number: u64,
    /// Hash of its block.
    pub block_hash: B256,
    /// The message (refused), or the log as JSON (undecodable).
    pub body: String,
    /// Milliseconds since the Unix epoch at which it was buried.
    pub buried_at: u64,
}

/// Durable state of one chain.
///
/// # Errors
///
/// Every method answers with the [`StoreError`] that says what the caller should do. [`StoreError::Vanished`] comes
/// from every method but [`init`](Self::init) where the truth is gone.
#[async_trait]
pub trait StateStore: Send + Sync {
    /// Opens the chain's state, or begins it; applies an operator's edits. The first caller on an empty store wins.
    async fn init(&self, start: Start) -> Result<Initialised, StoreError>;

    /// Whether the store holds truth for this chain, without creating any; `None` where it is empty.
    async fn peek(&self) -> Result<Option<Snapshot>, StoreError>;

    /// Progress and done intervals, read at one moment.
    async fn snapshot(&self) -> Result<Snapshot, StoreError>;

    /// Says that this process lives; every [`HEARTBEAT_EVERY`].
    async fn heartbeat(&self) -> Result<(), StoreError>;

    /// CLAIM: the right to work on a range of at most [`MAX_CLAIM_BLOCKS`] blocks. All or nothing.
    async fn claim(&self, range: BlockRange) -> Result<ClaimReply, StoreError>;

    /// RENEW: `false` where any of the claim's blocks is no longer ours.
    async fn renew(&self, grant: &Grant) -> Result<bool, StoreError>;

    /// RELEASE: gives back whatever is still ours.
    async fn release(&self, grant: &Grant) -> Result<(), StoreError>;

    /// Releases every claim of this process (at the end of a shutdown).
    async fn retire(&self) -> Result<(), StoreError>;

    /// INTENT with its barrier, before the part is sent.
    async fn intent(&self, intent: Intent<'_>) -> Result<IntentReply, StoreError>;

    /// The journaled events of an entry, in the order of their parts.
    async fn journaled(&self, block: BlockRef, epoch: u64) -> Result<Vec<Event>, StoreError>;

    /// The live entries at or below `up_to`, ascending.
    async fn journal(&self, up_to: u64) -> Result<Vec<JournalEntry>, StoreError>;

    /// COMMIT one block after every sink acknowledged every event of it. Its claim goes, whoever holds it.
    async fn commit(&self, commit: BlockCommit, track: Track) -> Result<CommitReply, StoreError>;

    /// `COMMIT_FINAL` a range after every sink acknowledged every event of it. Its claims go, whoever holds them.
    async fn commit_final(&self, commit: FinalCommit, track: Track) -> Result<CommitReply, StoreError>;

    /// SEAL: `at` is the canonical block at the final height, `tops` the canonical top of every run at or below it, each
    /// once.
    async fn seal(&self, at: BlockRef, tops: &[BlockRef]) -> Result<SealReply, StoreError>;

    /// BARRIER: the entries that are being taken back, ascending, at most [`MAX_ORPHANS`] of them; once it answers, the
    /// store keeps the REWIND that made them so.
    async fn orphans(&self) -> Result<Vec<Orphan>, StoreError>;

    /// REWIND: the blocks of these entries (block and epoch) left the chain. `sealed` is the canonical block at the
    /// sealed height that the caller saw; `None` where he saw none, or says nothing of it. Compare-and-set: of several
    /// callers with one epoch one wins, and none whose sealed height is no longer the store's.
    async fn rewind(
        &self,
        entries: &[(BlockRef, u64)],
        sealed: Option<BlockRef>,
        epoch: u64,
    ) -> Result<RewindReply, StoreError>;

    /// RETRACTED: every sink acknowledged every retraction of the entry; it is forgotten.
    async fn retracted(&self, orphan: Orphan) -> Result<(), StoreError>;

    /// AMEND with its barrier, before the events are sent.
    async fn amend(&self, amend: Amend<'_>) -> Result<AmendReply, StoreError>;

    /// RESUME: an operator accepts that the chain was reorganised below what was sealed. `at` is canonical, at or below
    /// the sealed height: it is what is sealed from now on. Compare-and-set; nothing is frozen afterwards.
    async fn resume(&self, at: BlockRef, epoch: u64) -> Result<ReplayReply, StoreError>;

    /// REPLAY: deliver the blocks above `to`, up to `until` where it is given, again, with the same ids and higher
    /// versions.
    async fn replay(&self, to: i64, until: Option<u64>, epoch: u64) -> Result<ReplayReply, StoreError>;

    /// What events are filtered with, as it was last published.
    async fn published(&self) -> Result<Published, StoreError>;

    /// `PUBLISH_FILTER` with its barrier, so that no two filters ever have one version: for what joins, a duty to scan [its
    /// own start, or above the tip of the last check, .. tip]. The first publication on a store makes no duties: nothing
    /// was filtered without it.
    async fn publish(&self, publication: Publication<'_>) -> Result<PublishReply, StoreError>;

    /// Takes a re-scan duty, of which every replica has at most one at a time: its own again, one that nobody has, or one
    /// whose owner is dead.
    async fn duty(&self) -> Result<Option<Duty>, StoreError>;

    /// Every block of the duty up to `up_to` was scanned and what was found is delivered.
    async fn scanned(&self, duty: u64, up_to: u64) -> Result<(), StoreError>;

    /// The other processes that live and may work on this state, by name: whoever means to take it away asks first. A
    /// store that belongs to one process at a time has none.
    async fn others(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    /// The claimed blocks of a range of at most [`MAX_CLAIM_BLOCKS`] blocks, ascending, each with the name of its owner;
    /// for operators.
    async fn claims(&self, range: BlockRange) -> Result<Vec<(u64, String)>, StoreError> {
        check_claim(range)?;
        Ok(Vec::new())
    }

    /// Forgets everything of this chain, for good.
    async fn wipe(&self) -> Result<(), StoreError>;

    /// SKIP: the operator knows that blocks up to `to` will not be delivered by this store.
    async fn skip(&self, to: u64, epoch: u64) -> Result<ReplayReply, StoreError>;

    /// BURY with its barrier: keeps dead letters, for their block is committed once they are kept. `false` where there is
    /// no room for more refused messages: the block stays missing. Of undecodable logs the oldest make room.
    async fn bury(&self, letters: &[DeadLetter]) -> Result<bool, StoreError>;

    /// Number of dead letters.
    async fn dead_letters_len(&self) -> Result<u64, StoreError>;

    /// Up to `limit` dead letters after the key `after`, by key.
    async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeadLetter>, StoreError>;

    /// Removes dead letters by key; how many there were.
    async fn exhume(&self, keys: &[String]) -> Result<u64, StoreError>;

    /// What was learned of the chain's endpoints, by name. It is advice and no truth: whoever reads it checks it, and to lose
    /// it costs some requests. Empty where there is no state.
    async fn learned(&self) -> Result<BTreeMap<String, String>, StoreError>;

    /// Keeps what was learned of one endpoint, without a barrier; the name bears no secret. What is longer than
    /// [`MAX_ENDPOINT_BYTES`] or [`MAX_LEARNED_BYTES`] is refused. One name more than [`MAX_LEARNED`] takes the place of all
    /// others: some of them are of endpoints that are configured no more.
    async fn learn(&self, endpoint: &str, learned: &str) -> Result<(), StoreError>;

    /// What makes acknowledged writes survive, in words for the start and `/health`: `WAIT 1`, `appendfsync always`,
    /// `one host`, and what is missing for that.
    fn durability(&self) -> String;

    /// Why acknowledged writes may be lost with the server's process alone, and the mend; to be said at the start and in
    /// `/health`. `None` where they survive that.
    fn weakness(&self) -> Option<String> {
        None
    }
}

/// The runs of live entries, given ascending: numbers that follow one another, linked by their parents. Of each run the
/// highest block decides whether the whole of it is canonical (protocol §3.5, step 4). Entries of one block under several
/// epochs stand beside each other.
#[must_use]
pub fn runs(entries: &[JournalEntry]) -> Vec<&[JournalEntry]> {
    let is_linked = |below: &JournalEntry, entry: &JournalEntry| {
        entry.block == below.block || (entry.block.number == below.block.number + 1 && entry.parent == below.block.hash)
    };
    entries.chunk_by(is_linked).collect()
}

/// Refuses numbers that the store cannot hold exactly (protocol §3.1).
fn check_number(number: u64) -> Result<(), StoreError> {
    if number > MAX_BLOCK_NUMBER {
        return Err(StoreError::Fatal(format!("block number {number} is not below 2^53 and cannot be right")));
    }
    Ok(())
}

/// Refuses ranges that are too large for one claim, and so for one commit.
fn check_claim(range: BlockRange) -> Result<(), StoreError> {
    check_number(range.to)?;
    if range.blocks() > MAX_CLAIM_BLOCKS {
        return Err(StoreError::Fatal(format!("range {range} has more than {MAX_CLAIM_BLOCKS} blocks")));
    }
    Ok(())
}

/// Refuses a replay from before block 0, or of nothing.
fn check_replay(to: i64, until: Option<u64>) -> Result<(), StoreError> {
    let first = to.saturating_add(1);
    let Ok(from) = u64::try_from(first) else {
        return Err(StoreError::Fatal(format!("cannot deliver again from block {first}: the first block is 0")));
    };
    check_number(until.unwrap_or(0).max(from.saturating_sub(1)))?;
    if until.is_some_and(|until| until < from) {
        return Err(StoreError::Fatal(format!(
            "cannot deliver again from block {from} up to {}: the last block is below the first",
            until.unwrap_or(0)
        )));
    }
    Ok(())
}

/// Refuses a publication that cannot be stored as it is.
fn check_publication(publication: &Publication<'_>) -> Result<(), StoreError> {
    for member in publication.added {
        check_number(member.from.unwrap_or(0))?;
        if member.key.is_empty() || member.key.len() > MAX_MEMBER_BYTES {
            return Err(StoreError::Fatal(format!(
                "a key of the filter has {} bytes, not 1 to {MAX_MEMBER_BYTES}",
                member.key.len()
            )));
        }
    }
    Ok(())
}

/// An operation that a frozen chain refuses.
fn check_learned(endpoint: &str, learned: &str) -> Result<(), StoreError> {
    if endpoint.is_empty() || endpoint.len() > MAX_ENDPOINT_BYTES || learned.len() > MAX_LEARNED_BYTES {
        return Err(StoreError::Fatal(format!(
            "an endpoint's name has 1 to {MAX_ENDPOINT_BYTES} bytes and what was learned of it at most \
             {MAX_LEARNED_BYTES}, not {} and {}",
            endpoint.len(),
            learned.len()
        )));
    }
    Ok(())
}

fn halted(reason: &str) -> StoreError {
    StoreError::Fatal(format!(
        "the chain is halted ({reason}): find out which chain is right, then run `chaintap resume --accept-reorg`"
    ))
}

/// A RESUME above what is sealed.
fn above_sealed(sealed: &str) -> StoreError {
    StoreError::Fatal(format!("cannot resume above the sealed height, {sealed}: nothing is sealed there"))
}

/// A CLAIM that would open one more interval than are kept.
fn crowded() -> StoreError {
    StoreError::Transient("as many gaps are open as may be: no new one is opened until some are filled".into())
}

/// A journal that holds this many bytes, which takes stalled finality.
fn full(bytes: &str) -> IntentReply {
    IntentReply::Full(format!("the journal of unsealed blocks is full ({bytes} bytes): finality has stalled"))
}

fn write_letter(letter: &DeadLetter) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(letter)
        .map_err(|error| StoreError::Fatal(format!("cannot write dead letter {}: {error}", letter.key)))
}

fn read_letter(bytes: &[u8]) -> Result<DeadLetter, StoreError> {
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Fatal(format!("a dead letter cannot be read ({error}): was it changed by hand?")))
}

/// What went wrong with the store, by what the caller should do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It did not answer, or not in time; what was asked may or may not have happened: ask again.
    #[error("state store unavailable: {0}")]
    Transient(String),
    /// The truth is gone while running (flushed, evicted, another database): stop and let someone look.
    #[error("state vanished: {0}")]
    Vanished(String),
    /// Another process has the embedded store: one at a time.
    #[error("{0}")]
    InUse(String),
    /// The store is not usable for this chain until someone mends it; says what and how.
    #[error("{0}")]
    Fatal(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_ends_a_run_and_so_does_a_parent_that_does_not_fit() {
        let entry = |number, hash: u8, parent: u8, epoch| {
            let block = BlockRef { number, hash: B256::repeat_byte(hash) };
            JournalEntry { block, parent: B256::repeat_byte(parent), epoch, done: true }
        };
        let entries = [
            entry(5, 5, 4, 1),
            entry(6, 6, 5, 1),
            entry(6, 6, 5, 2),
            entry(8, 8, 7, 1),
            entry(9, 19, 18, 1),
            entry(10, 20, 19, 1),
        ];
        let tops: Vec<u64> = runs(&entries).iter().map(|run| run.last().unwrap().block.number).collect();
        assert_eq!(tops, [6, 8, 10]);
    }

    #[test]
    fn the_first_number_that_is_refused_is_2_to_the_53rd() {
        assert!(check_number((1 << 53) - 1).is_ok());
        assert!(matches!(check_number(1 << 53), Err(StoreError::Fatal(text)) if text.contains("not below 2^53")));
        assert!(check_replay(-1, None).is_ok() && check_replay(-2, None).is_err());
        assert!(check_replay((1 << 53) - 1, None).is_ok() && check_replay(1 << 53, None).is_err());
        assert!(check_replay(-1, Some(0)).is_ok() && check_replay(7, Some(8)).is_ok());
        assert!(check_replay(7, Some(7)).is_err() && check_replay(7, Some(1 << 53)).is_err());
    }
}
