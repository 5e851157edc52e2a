//! One contract for both homes of the state: every scenario runs against the embedded store in memory, against its
//! file (closed and opened again on the way), and against a real Redis. What only Redis has (other owners, views,
//! recipes, barriers) is in `tests/store_redis.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod support;

use std::{path::PathBuf, sync::Arc};

use alloy::primitives::B256;
use chaintap::{
    config::{Durability, SecretUrl},
    domain::{BlockRange, BlockRef, Digest, IntervalSet, Track},
    store::{
        Amend, AmendReply, BlockCommit, Checked, ClaimReply, CommitReply, DeadKind, DeadLetter, Duty, FinalCommit,
        Grant, Intent, IntentReply, MAX_ENDPOINT_BYTES, MAX_LEARNED, MAX_LEARNED_BYTES, Member, Orphan, Progress,
        Publication, PublishReply, Published, ReplayReply, RewindReply, SealReply, Start, StateStore, StoreError,
        embedded::Embedded,
        redis::{Identity, RedisStore},
    },
};
use support::{
    chain::{block, digest, events, parent},
    redis::RedisServer,
};
use tempfile::TempDir;

const CHAIN: u64 = 1;

/// Where the state of one scenario lives.
enum Place {
    Memory,
    File(TempDir),
    Redis(Box<RedisServer>),
}

/// A store, and how to open it again.
struct Home {
    place: Place,
    store: Arc<dyn StateStore>,
}

impl Home {
    async fn open(place: Place) -> Self {
        let store = Self::connect(&place).await;
        Self { place, store }
    }

    async fn memory() -> Self {
        Self::open(Place::Memory).await
    }

    async fn file() -> Self {
        Self::open(Place::File(tempfile::tempdir().unwrap())).await
    }

    async fn redis() -> Self {
        Self::open(Place::Redis(Box::new(RedisServer::start().await))).await
    }

    async fn connect(place: &Place) -> Arc<dyn StateStore> {
        match place {
            Place::Memory => Arc::new(Embedded::in_memory(CHAIN, "test").unwrap()),
            Place::File(dir) => Arc::new(Embedded::open(dir.path(), CHAIN, "test").unwrap()),
            Place::Redis(server) => {
                let identity =
                    Identity { chain_id: CHAIN, redis_db: 0, service: "test".into(), owner: "host-1".into() };
                let url = SecretUrl::parse(&server.url(0)).unwrap();
                Arc::new(RedisStore::connect(&url, identity, Durability::Auto).await.unwrap())
            }
        }
    }

    /// Closes and opens the store, where it outlives that.
    async fn reopen(&mut self) {
        if matches!(self.place, Place::Memory) {
            return;
        }
        self.store = Arc::new(Embedded::in_memory(CHAIN, "nothing").unwrap());
        self.store = Self::connect(&self.place).await;
    }

    async fn started(mut self, first: u64) -> Self {
        assert!(self.store.init(Start::At(first)).await.unwrap().fresh);
        self.reopen().await;
        self
    }

    async fn progress(&self) -> Progress {
        self.store.snapshot().await.unwrap().progress
    }

    async fn done(&self) -> Vec<(u64, u64)> {
        self.store.snapshot().await.unwrap().done.iter().map(|range| (range.from, range.to)).collect()
    }

    async fn claim(&self, from: u64, to: u64) -> Grant {
        match self.store.claim(BlockRange { from, to }).await.unwrap() {
            ClaimReply::Granted(grant) => grant,
            other => panic!("{from}-{to}: {other:?}"),
        }
    }

    /// INTENT of the block's events with these log indices, all in one part.
    async fn intent(&self, at: BlockRef, parent: B256, logs: u64) -> IntentReply {
        let epoch = self.progress().await.epoch;
        self.part(at, parent, epoch, (0..logs, 0..logs)).await
    }

    /// INTENT of one part: all log indices so far, and those of the part.
    async fn part(
        &self,
        at: BlockRef,
        parent: B256,
        epoch: u64,
        (all, part): (std::ops::Range<u64>, std::ops::Range<u64>),
    ) -> IntentReply {
        let events = events(at, part);
        let filter_version = self.progress().await.filter_version;
        let intent = Intent { block: at, parent, epoch, filter_version, digest: digest(at, all), events: &events };
        self.store.intent(intent).await.unwrap()
    }

    async fn commit(&self, at: BlockRef, logs: u64) -> CommitReply {
        let epoch = self.progress().await.epoch;
        self.commit_in(epoch, at, logs).await
    }

    async fn commit_in(&self, epoch: u64, at: BlockRef, logs: u64) -> CommitReply {
        let filter_version = self.progress().await.filter_version;
        let commit = BlockCommit { block: at, epoch, filter_version, digest: digest(at, 0..logs) };
        self.store.commit(commit, Track::Realtime).await.unwrap()
    }

    /// Journals and commits one block of two events.
    async fn deliver(&self, number: u64, branch: u8) {
        let at = block(number, branch);
        assert_eq!(self.intent(at, parent(number, branch), 2).await, IntentReply::Journaled, "{number}");
        let reply = self.commit(at, 2).await;
        assert!(matches!(reply, CommitReply::Committed { .. }), "{number}: {reply:?}");
    }

    async fn final_commit(&self, from: u64, to: u64, branch: u8) -> FinalCommit {
        let progress = self.progress().await;
        FinalCommit {
            range: BlockRange { from, to },
            epoch: progress.epoch,
            sealed: progress.sealed,
            parent: parent(from, branch),
            hash: block(to, branch).hash,
            confirmed: Vec::new(),
            filter_version: progress.filter_version,
        }
    }

    async fn try_final(&self, commit: FinalCommit) -> CommitReply {
        self.store.commit_final(commit, Track::Historical).await.unwrap()
    }

    async fn deliver_final(&self, from: u64, to: u64) {
        let reply = self.try_final(self.final_commit(from, to, 0).await).await;
        assert!(matches!(reply, CommitReply::Committed { .. }), "{from}-{to}: {reply:?}");
    }

    async fn seal(&self, number: u64, branch: u8, tops: &[BlockRef]) -> SealReply {
        self.store.seal(block(number, branch), tops).await.unwrap()
    }

    async fn replay(&self, to: i64) -> Progress {
        match self.store.replay(to, None, self.progress().await.epoch).await.unwrap() {
            ReplayReply::Done(progress) => progress,
            ReplayReply::Stale => panic!("stale"),
        }
    }

    /// The names of all live entries of these blocks.
    async fn entries(&self, blocks: &[BlockRef]) -> Vec<(BlockRef, u64)> {
        let journal = self.store.journal(u64::MAX).await.unwrap();
        journal.iter().filter(|entry| blocks.contains(&entry.block)).map(|entry| (entry.block, entry.epoch)).collect()
    }

    /// Numbers and branches of the live entries.
    async fn live(&self) -> Vec<BlockRef> {
        self.store.journal(u64::MAX).await.unwrap().iter().map(|entry| entry.block).collect()
    }

    /// REWIND of all live entries of these blocks, which must win.
    async fn rewind(&self, blocks: &[BlockRef]) -> Progress {
        let before = self.progress().await;
        let entries = self.entries(blocks).await;
        match self.store.rewind(&entries, before.sealed_block(), before.epoch).await.unwrap() {
            RewindReply::Rewound(progress) => progress,
            other => panic!("{blocks:?}: {other:?}"),
        }
    }

    /// Journals and commits one block of two events on top of any parent.
    async fn deliver_on(&self, at: BlockRef, parent: BlockRef) {
        assert_eq!(self.intent(at, parent.hash, 2).await, IntentReply::Journaled, "{at}");
        let reply = self.commit(at, 2).await;
        assert!(matches!(reply, CommitReply::Committed { .. }), "{at}: {reply:?}");
    }

    /// Takes the sealed block for another one's: nothing may be delivered afterwards.
    async fn freeze(&self) -> String {
        let Progress { epoch, sealed, .. } = self.progress().await;
        let other = Some(BlockRef { number: sealed.unsigned_abs(), hash: B256::repeat_byte(0xee) });
        match self.store.rewind(&[], other, epoch).await.unwrap() {
            RewindReply::Deep(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// AMEND: all log indices, and those of the part.
    async fn amend(&self, at: BlockRef, all: std::ops::Range<u64>, part: std::ops::Range<u64>) -> AmendReply {
        let events = events(at, part);
        let filter_version = self.progress().await.filter_version;
        let amend = Amend { block: at, filter_version, digest: digest(at, all), events: &events };
        self.store.amend(amend).await.unwrap()
    }

    async fn publish(&self, version: u64, added: &[(&str, Option<u64>)], removed: &[&str]) -> PublishReply {
        let added: Vec<_> = added.iter().map(|(key, from)| Member { key: (*key).into(), from: *from }).collect();
        let removed: Vec<_> = removed.iter().map(ToString::to_string).collect();
        let Progress { tip, epoch, .. } = self.progress().await;
        let checked = Some(Checked { tip, epoch });
        self.store.publish(Publication { version, added: &added, removed: &removed, checked }).await.unwrap()
    }

    async fn duty(&self) -> Option<(u64, u64, Vec<String>)> {
        let duty = self.store.duty().await.unwrap()?;
        Some((duty.range.from, duty.range.to, duty.members))
    }
}

fn members(keys: &[&str]) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}

fn committed(watermark: i64, tip: i64) -> CommitReply {
    CommitReply::Committed { watermark, tip, edited: false }
}

fn letter(key: &str, kind: DeadKind, buried_at: u64) -> DeadLetter {
    DeadLetter {
        key: key.into(),
        kind,
        reason: "too large: \"{}\"".into(),
        handler: "handleTransferEvent".into(),
        block_number: 7,
        block_hash: B256::repeat_byte(7),
        body: "{\"a\": 1}".into(),
        buried_at,
    }
}

/// Runs every scenario against every home.
macro_rules! contract {
    ($($scenario:ident),+ $(,)?) => {
        mod in_memory { $(#[tokio::test] async fn $scenario() { super::$scenario(super::Home::memory().await).await; })+ }
        mod in_a_file { $(#[tokio::test] async fn $scenario() { super::$scenario(super::Home::file().await).await; })+ }
        mod in_redis { $(#[tokio::test] async fn $scenario() { super::$scenario(super::Home::redis().await).await; })+ }
    };
}

contract!(
    an_empty_store_has_no_progress,
    the_first_init_wins_and_every_later_one_reads,
    a_store_may_begin_at_block_zero,
    a_claim_is_granted_renewed_and_released_by_its_token,
    a_range_that_is_partly_done_is_not_granted,
    an_intent_is_journaled_once_and_read_back,
    a_further_part_appends_and_other_events_are_merged,
    an_intent_of_another_epoch_is_stale,
    an_intent_must_fit_its_journaled_neighbours,
    below_the_sealed_height_the_final_path_is_used,
    a_commit_is_fenced_by_its_journal_entry,
    no_claim_outlasts_the_delivery_of_its_block,
    blocks_committed_out_of_order_move_the_watermark_only_when_it_is_whole,
    two_gaps_are_kept_and_filled,
    a_final_commit_checks_epoch_and_chain,
    a_final_commit_confirms_what_was_journaled,
    a_seal_needs_the_tops_of_all_runs,
    a_seal_drops_done_entries_in_steps_and_leaves_those_being_sent,
    a_replay_delivers_again_with_a_higher_epoch,
    what_was_sent_before_a_replay_does_not_commit_after_it,
    a_skip_moves_the_watermark_and_melts_with_what_is_done,
    any_order_of_commits_gives_the_same_intervals,
    dead_letters_are_kept_listed_and_removed,
    refused_letters_have_a_limit_and_undecodable_ones_make_room,
    invalid_numbers_are_refused,
    where_state_is_expected_an_empty_store_is_refused,
    what_a_rewind_takes_back_is_listed_until_it_is_retracted,
    of_several_rewinds_with_one_epoch_one_wins,
    a_rewind_of_nothing_that_is_live_changes_nothing,
    a_rewind_lowers_the_watermark_below_its_lowest_orphan_and_keeps_the_rest_done,
    a_rewind_above_an_open_gap_leaves_the_watermark,
    what_was_being_sent_when_it_was_orphaned_never_commits,
    a_chain_that_flips_back_and_forth_keeps_every_delivery_apart,
    of_one_block_in_two_epochs_a_rewind_takes_the_named_one,
    entries_that_are_being_taken_back_contradict_nobody,
    a_range_claimed_before_a_rewind_does_not_commit_after_it,
    a_seal_that_was_prepared_before_a_rewind_is_refused,
    a_rewind_that_contradicts_what_is_sealed_halts_the_chain,
    a_rewind_that_was_prepared_before_a_seal_is_stale,
    a_rewind_of_an_entry_at_or_below_the_sealed_height_halts_the_chain,
    a_halted_chain_delivers_nothing_until_someone_resumes_it,
    a_resume_takes_back_what_counted_as_sealed,
    an_amendment_joins_the_entry_and_leaves_it_as_done_as_it_is,
    an_amendment_says_where_there_is_nothing_to_amend,
    an_amendment_joins_the_newest_of_several_entries,
    a_replay_with_an_end_leaves_what_is_above_it_done,
    the_first_publication_makes_no_duties,
    an_empty_filter_is_published_as_well,
    what_joins_the_filter_is_scanned_for_from_the_last_check_or_its_own_start,
    a_rewind_takes_the_last_check_back_with_it,
    a_duty_is_worked_off_in_steps_and_in_order,
    what_was_learned_of_endpoints_is_kept_as_it_was_last_told,
    what_is_kept_of_endpoints_is_bounded,
    a_wiped_store_is_empty,
);

async fn an_empty_store_has_no_progress(home: Home) {
    let store = &home.store;
    assert_eq!(store.peek().await.unwrap(), None);
    let range = BlockRange { from: 1, to: 2 };
    let at = block(1, 0);
    let results = [
        store.snapshot().await.map(drop),
        store.claim(range).await.map(drop),
        store.journal(10).await.map(drop),
        store.journaled(at, 1).await.map(drop),
        store.seal(at, &[]).await.map(drop),
        store.replay(0, None, 1).await.map(drop),
        store.skip(3, 1).await.map(drop),
        store.bury(&[letter("a", DeadKind::Refused, 1)]).await.map(drop),
        store.dead_letters_len().await.map(drop),
        store.dead_letters(None, 3).await.map(drop),
        store.exhume(&["a".into()]).await.map(drop),
        store.orphans().await.map(drop),
        store.rewind(&[(at, 1)], None, 1).await.map(drop),
        store.retracted(Orphan { block: at, epoch: 1, retract_epoch: 2 }).await,
        store.amend(Amend { block: at, filter_version: 0, digest: Digest::default(), events: &[] }).await.map(drop),
        store.resume(at, 1).await.map(drop),
        store.published().await.map(drop),
        store.publish(Publication { version: 0, added: &[], removed: &[], checked: None }).await.map(drop),
        store.duty().await.map(drop),
        store.scanned(1, 1).await,
    ];
    for (place, result) in results.into_iter().enumerate() {
        assert!(matches!(result, Err(StoreError::Vanished(_))), "operation {place}: {result:?}");
    }
    let events = events(at, 0..1);
    let intent = Intent {
        block: at,
        parent: parent(1, 0),
        epoch: 1,
        filter_version: 0,
        digest: digest(at, 0..1),
        events: &events,
    };
    assert!(matches!(store.intent(intent).await, Err(StoreError::Vanished(_))));
    let commit = BlockCommit { block: at, epoch: 1, filter_version: 0, digest: Digest::default() };
    assert!(matches!(store.commit(commit, Track::Realtime).await, Err(StoreError::Vanished(_))));
    let commit = FinalCommit {
        range,
        epoch: 1,
        sealed: -1,
        parent: parent(1, 0),
        hash: block(2, 0).hash,
        confirmed: Vec::new(),
        filter_version: 0,
    };
    assert!(matches!(store.commit_final(commit, Track::Historical).await, Err(StoreError::Vanished(_))));
    assert_eq!(store.peek().await.unwrap(), None);
}

async fn the_first_init_wins_and_every_later_one_reads(mut home: Home) {
    let first = home.store.init(Start::Latest(1_000)).await.unwrap();
    assert!(first.fresh && first.edits.is_empty());
    assert_eq!((first.progress.watermark, first.progress.tip, first.progress.sealed), (999, 999, -1));
    assert_eq!((first.progress.filter_version, first.progress.sealed_hash, &first.progress.frozen), (0, None, &None));
    assert_eq!(first.progress.service, "test");
    assert!(first.progress.epoch > 1_700_000_000, "versions must grow over the lives of a store");
    home.reopen().await;
    let second = home.store.init(Start::Latest(1_002)).await.unwrap();
    assert!(!second.fresh);
    assert_eq!(second.progress, first.progress);
    assert_eq!(home.store.peek().await.unwrap().unwrap(), home.store.snapshot().await.unwrap());
}

async fn a_store_may_begin_at_block_zero(home: Home) {
    let home = home.started(0).await;
    assert_eq!(home.progress().await.watermark, -1);
    assert!(home.claim(0, 2).await.live.is_empty());
    home.deliver(0, 0).await;
    home.deliver(1, 0).await;
    assert_eq!((home.progress().await.watermark, home.done().await.len()), (1, 0));
    let progress = home.replay(-1).await;
    assert_eq!((progress.watermark, progress.tip), (-1, -1));
    let again = FinalCommit { confirmed: vec![block(0, 0)], ..home.final_commit(0, 1, 0).await };
    assert_eq!(home.try_final(again).await, committed(1, 1));
}

async fn a_claim_is_granted_renewed_and_released_by_its_token(home: Home) {
    let home = home.started(101).await;
    home.store.heartbeat().await.unwrap();
    let first = home.claim(101, 110).await;
    assert_eq!(first.epoch, home.progress().await.epoch);
    assert_eq!((first.sealed, first.filter_version, first.live.len()), (-1, 0, 0));
    assert!(home.store.renew(&first).await.unwrap());
    // A second claim of the same process covers a lost reply; the first token is void then.
    let second = home.claim(105, 110).await;
    assert_ne!(first.token, second.token);
    assert!(!home.store.renew(&first).await.unwrap());
    home.store.release(&first).await.unwrap();
    home.store.release(&first).await.unwrap();
    assert!(home.store.renew(&second).await.unwrap(), "a foreign release must leave it");
    home.store.release(&second).await.unwrap();
    assert!(!home.store.renew(&second).await.unwrap());
    let third = home.claim(101, 101).await;
    home.store.retire().await.unwrap();
    home.store.retire().await.unwrap();
    assert!(!home.store.renew(&third).await.unwrap());
}

async fn a_range_that_is_partly_done_is_not_granted(home: Home) {
    let home = home.started(101).await;
    home.deliver(101, 0).await;
    home.deliver(105, 0).await;
    for (from, to) in [(101, 101), (100, 102), (50, 50), (103, 105), (105, 107), (104, 110)] {
        let reply = home.store.claim(BlockRange { from, to }).await.unwrap();
        assert_eq!(reply, ClaimReply::Done, "{from}-{to}");
    }
    assert_eq!(home.claim(102, 104).await.live, [block(101, 0), block(105, 0)]);
    assert_eq!(home.claim(106, 110).await.live, [block(105, 0)]);
}

async fn an_intent_is_journaled_once_and_read_back(home: Home) {
    let mut home = home.started(101).await;
    let at = block(101, 0);
    for _ in 0..2 {
        assert_eq!(home.intent(at, parent(101, 0), 5).await, IntentReply::Journaled);
        home.reopen().await;
    }
    // A block without events is journaled like any other.
    assert_eq!(home.intent(block(102, 0), at.hash, 0).await, IntentReply::Journaled);
    assert_eq!(home.intent(block(102, 0), at.hash, 0).await, IntentReply::Journaled);
    let epoch = home.progress().await.epoch;
    assert_eq!(home.store.journaled(at, epoch).await.unwrap(), events(at, 0..5));
    assert_eq!(home.store.journaled(block(102, 0), epoch).await.unwrap(), []);
    assert_eq!(home.store.journaled(block(103, 0), epoch).await.unwrap(), []);
    let journal = home.store.journal(u64::MAX).await.unwrap();
    assert_eq!(journal.iter().map(|entry| entry.block).collect::<Vec<_>>(), [at, block(102, 0)]);
    assert!(journal.iter().all(|entry| entry.epoch == epoch && !entry.done));
    assert_eq!(journal[1].parent, at.hash);
    assert_eq!(home.store.journal(101).await.unwrap().len(), 1);
    home.commit(at, 5).await;
    assert_eq!(home.intent(at, parent(101, 0), 5).await, IntentReply::Done);
    assert!(home.store.journal(101).await.unwrap()[0].done);
}

async fn a_further_part_appends_and_other_events_are_merged(home: Home) {
    let home = home.started(101).await;
    let (at, below) = (block(101, 0), parent(101, 0));
    let epoch = home.progress().await.epoch;
    // A later part without its earlier ones: they are gone, begin again.
    assert_eq!(home.part(at, below, epoch, (0..5, 3..5)).await, IntentReply::Stale);
    assert_eq!(home.part(at, below, epoch, (0..3, 0..3)).await, IntentReply::Journaled);
    for _ in 0..2 {
        assert_eq!(home.part(at, below, epoch, (0..5, 3..5)).await, IntentReply::Journaled);
        assert_eq!(home.part(at, below, epoch, (0..3, 0..3)).await, IntentReply::Journaled);
    }
    // Someone whose provider saw another log first.
    assert_eq!(home.part(at, below, epoch, (1..4, 1..4)).await, IntentReply::More);
    assert_eq!(home.part(at, below, epoch, (0..7, 6..7)).await, IntentReply::More);
    assert_eq!(home.store.journaled(at, epoch).await.unwrap(), events(at, 0..5));
    // He reads, merges, and offers what is missing; with nothing missing the entry is vouched for again.
    assert_eq!(home.part(at, below, epoch, (0..7, 5..7)).await, IntentReply::Journaled);
    assert_eq!(home.part(at, below, epoch, (0..7, 7..7)).await, IntentReply::Journaled);
    assert_eq!(home.store.journaled(at, epoch).await.unwrap(), events(at, 0..7));
    // Who knows only a part of it may not commit.
    assert_eq!(home.commit(at, 5).await, CommitReply::More);
    assert_eq!(home.progress().await.watermark, 100);
    assert_eq!(home.commit(at, 7).await, committed(101, 101));
}

async fn an_intent_of_another_epoch_is_stale(home: Home) {
    let home = home.started(101).await;
    let epoch = home.progress().await.epoch;
    for other in [epoch - 1, epoch + 1] {
        assert_eq!(home.part(block(101, 0), parent(101, 0), other, (0..1, 0..1)).await, IntentReply::Stale);
    }
    assert!(home.store.journal(u64::MAX).await.unwrap().is_empty(), "a stale intent must leave nothing");
}

async fn an_intent_must_fit_its_journaled_neighbours(home: Home) {
    let home = home.started(101).await;
    assert_eq!(home.intent(block(105, 0), parent(105, 0), 1).await, IntentReply::Journaled);
    let cases = [
        (block(105, 1), parent(105, 0), "the same height"),
        (block(106, 0), parent(106, 1), "the block above it"),
        (block(104, 1), parent(104, 1), "the block below it"),
    ];
    for (at, parent, what) in cases {
        let reply = home.intent(at, parent, 1).await;
        assert!(matches!(&reply, IntentReply::Conflict(text) if text.contains("105")), "{what}: {reply:?}");
    }
    assert_eq!(home.store.journal(u64::MAX).await.unwrap().len(), 1);
    for number in [104, 106] {
        assert_eq!(home.intent(block(number, 0), parent(number, 0), 1).await, IntentReply::Journaled);
    }
    // Two blocks off there is no neighbour to contradict.
    assert_eq!(home.intent(block(102, 1), parent(102, 1), 1).await, IntentReply::Journaled);
}

async fn below_the_sealed_height_the_final_path_is_used(home: Home) {
    let home = home.started(101).await;
    assert_eq!(home.intent(block(103, 0), parent(103, 0), 1).await, IntentReply::Journaled);
    assert_eq!(home.seal(105, 0, &[block(103, 0)]).await, SealReply::Sealed { more: false });
    assert_eq!(home.progress().await.sealed_hash, Some(block(105, 0).hash));
    assert_eq!(home.intent(block(104, 0), parent(104, 0), 1).await, IntentReply::Sealed);
    // What is being sent may go on.
    assert_eq!(home.intent(block(103, 0), parent(103, 0), 1).await, IntentReply::Journaled);
    let reply = home.intent(block(106, 1), parent(106, 1), 1).await;
    assert!(matches!(reply, IntentReply::Deep(_)), "{reply:?}");
    assert_eq!(home.intent(block(106, 0), parent(106, 0), 1).await, IntentReply::Journaled);
    // Its commit drops the entry, and can be said twice all the same.
    for _ in 0..2 {
        assert_eq!(home.commit(block(103, 0), 1).await, committed(100, 103));
        assert!(home.store.journal(105).await.unwrap().is_empty());
    }
    assert_eq!(home.commit(block(104, 0), 1).await, CommitReply::Fenced);
}

async fn a_commit_is_fenced_by_its_journal_entry(home: Home) {
    let mut home = home.started(101).await;
    let at = block(101, 0);
    assert_eq!(home.commit(at, 2).await, CommitReply::Fenced);
    assert_eq!(home.intent(at, parent(101, 0), 2).await, IntentReply::Journaled);
    assert_eq!(home.commit(block(101, 1), 2).await, CommitReply::Fenced, "another hash");
    assert_eq!(home.commit(at, 1).await, CommitReply::More);
    let epoch = home.progress().await.epoch;
    assert_eq!(home.commit_in(epoch + 1, at, 2).await, CommitReply::Fenced, "another epoch");
    assert_eq!(home.progress().await.watermark, 100);
    for _ in 0..2 {
        assert_eq!(home.commit(at, 2).await, committed(101, 101));
        home.reopen().await;
    }
}

async fn no_claim_outlasts_the_delivery_of_its_block(home: Home) {
    let home = home.started(101).await;
    let ours = |grant: &Grant, number| Grant { range: BlockRange::single(number), ..grant.clone() };
    for is_final in [false, true] {
        let first = if is_final { 103 } else { 101 };
        // Of two the first came late: what is delivered is so by whom knows the second one only.
        let known = home.claim(first, first + 2).await;
        let late = home.claim(first, first + 2).await;
        if is_final {
            home.deliver_final(first, first + 1).await;
        } else {
            home.deliver(first, 0).await;
            home.deliver(first + 1, 0).await;
        }
        // Who holds the rest goes on.
        assert!(home.store.renew(&late).await.unwrap());
        assert!(!home.store.renew(&known).await.unwrap());
        // They are missing again, and nobody has them.
        let progress = home.progress().await;
        home.store.replay(progress.watermark - 2, None, progress.epoch).await.unwrap();
        for number in [first, first + 1] {
            assert!(!home.store.renew(&ours(&late, number)).await.unwrap(), "{number}");
        }
        assert!(home.store.renew(&ours(&late, first + 2)).await.unwrap());
    }
}

async fn blocks_committed_out_of_order_move_the_watermark_only_when_it_is_whole(home: Home) {
    let mut home = home.started(101).await;
    for number in [120, 103, 102, 118] {
        home.deliver(number, 0).await;
    }
    assert_eq!((home.progress().await.watermark, home.progress().await.tip), (100, 120));
    home.reopen().await;
    assert_eq!(home.done().await, [(102, 103), (118, 118), (120, 120)]);
    home.deliver(101, 0).await;
    assert_eq!(home.progress().await.watermark, 103);
    assert_eq!(home.done().await, [(118, 118), (120, 120)]);
    home.deliver(119, 0).await;
    assert_eq!(home.done().await, [(118, 120)]);
    home.deliver_final(104, 117).await;
    assert_eq!((home.progress().await.watermark, home.done().await.len()), (120, 0));
}

async fn two_gaps_are_kept_and_filled(home: Home) {
    let home = home.started(101).await;
    home.deliver(5_000, 0).await;
    for from in (101..=2_000).step_by(100) {
        home.deliver_final(from, from + 99).await;
    }
    home.deliver(9_000, 0).await;
    assert_eq!(home.done().await, [(5_000, 5_000), (9_000, 9_000)]);
    let snapshot = home.store.snapshot().await.unwrap();
    let missing: Vec<_> = snapshot.done.missing(BlockRange { from: 2_001, to: 9_000 }).collect();
    assert_eq!(missing, [BlockRange { from: 2_001, to: 4_999 }, BlockRange { from: 5_001, to: 8_999 }]);
    for gap in missing {
        for from in (gap.from..=gap.to).step_by(100) {
            home.deliver_final(from, (from + 99).min(gap.to)).await;
        }
    }
    assert_eq!((home.progress().await.watermark, home.progress().await.tip), (9_000, 9_000));
}

async fn a_final_commit_checks_epoch_and_chain(home: Home) {
    let home = home.started(101).await;
    let good = home.final_commit(101, 150, 0).await;
    for epoch in [good.epoch - 1, good.epoch + 1] {
        assert_eq!(home.try_final(FinalCommit { epoch, ..good.clone() }).await, CommitReply::Stale);
    }
    assert_eq!(home.progress().await.watermark, 100);
    // What was sealed when it was claimed cannot be shadowed by a retraction: the epoch does not matter then.
    let sealed = FinalCommit { epoch: good.epoch + 1, sealed: 150, ..good.clone() };
    for _ in 0..2 {
        assert_eq!(home.try_final(sealed.clone()).await, committed(150, 150));
        assert_eq!(home.try_final(good.clone()).await, committed(150, 150));
    }
    // The sealed hash binds the range above it, and the one that ends with it.
    assert_eq!(home.seal(150, 0, &[]).await, SealReply::Sealed { more: false });
    for (from, to) in [(151, 160), (140, 150)] {
        let reply = home.try_final(home.final_commit(from, to, 1).await).await;
        assert!(matches!(&reply, CommitReply::Conflict(text) if text.contains("sealed")), "{reply:?}");
    }
    assert_eq!(home.progress().await.tip, 150);
    home.deliver_final(151, 160).await;
}

async fn a_final_commit_confirms_what_was_journaled(home: Home) {
    let home = home.started(101).await;
    for number in [104, 105, 111] {
        assert_eq!(home.intent(block(number, 0), parent(number, 0), 1).await, IntentReply::Journaled);
    }
    let unconfirmed = home.final_commit(101, 110, 0).await;
    let confirmed = vec![block(104, 0), block(105, 0)];
    let cases = [
        (unconfirmed.clone(), "nothing confirmed"),
        (FinalCommit { confirmed: vec![block(104, 0)], ..unconfirmed.clone() }, "one of two"),
        (FinalCommit { confirmed: vec![block(104, 0), block(105, 1)], ..unconfirmed.clone() }, "another hash"),
        (
            FinalCommit { confirmed: confirmed.clone(), hash: block(110, 1).hash, ..unconfirmed.clone() },
            "the one above",
        ),
        (
            FinalCommit { range: BlockRange { from: 106, to: 110 }, parent: parent(106, 1), ..unconfirmed.clone() },
            "the one below",
        ),
    ];
    for (commit, what) in cases {
        let reply = home.try_final(commit).await;
        assert!(matches!(reply, CommitReply::Conflict(_)), "{what}: {reply:?}");
        assert_eq!(home.progress().await.tip, 100, "{what}");
    }
    assert_eq!(home.seal(104, 0, &[block(104, 0)]).await, SealReply::Sealed { more: false });
    let good = FinalCommit { confirmed, ..home.final_commit(101, 110, 0).await };
    for _ in 0..2 {
        assert_eq!(home.try_final(good.clone()).await, committed(110, 110));
    }
    // At or below the sealed height the entry has done its duty; above it stays for a retraction.
    let left = home.store.journal(110).await.unwrap();
    assert_eq!(left.iter().map(|entry| entry.block.number).collect::<Vec<_>>(), [105]);
    // Its number is done, so the seal that passes it drops it although no commit named it.
    assert_eq!(home.seal(110, 0, &[block(105, 0)]).await, SealReply::Sealed { more: false });
    assert!(home.store.journal(110).await.unwrap().is_empty());
}

async fn a_seal_needs_the_tops_of_all_runs(home: Home) {
    let home = home.started(101).await;
    for number in [101, 102, 103, 110, 111] {
        home.deliver(number, 0).await;
    }
    let (low, high) = (block(103, 0), block(111, 0));
    let wrong: [(&[BlockRef], &str); 10] = [
        (&[], "none"),
        (&[high], "the lower run forgotten"),
        (&[low], "the higher run forgotten"),
        (&[block(103, 1), high], "another chain below"),
        (&[low, block(111, 1)], "another chain above"),
        (&[block(102, 0), low, high], "more than the tops"),
        (&[low, high, high], "one of them twice"),
        (&[low, low, high, high], "each of them twice"),
        (&[low, low], "one twice in place of the other"),
        (&[high, high], "the other twice"),
    ];
    for (tops, what) in wrong {
        assert_eq!(home.seal(115, 0, tops).await, SealReply::Refused, "{what}");
        assert_eq!((home.progress().await.sealed, home.store.journal(200).await.unwrap().len()), (-1, 5), "{what}");
    }
    assert_eq!(home.seal(111, 1, &[low, high]).await, SealReply::Refused, "the sealed block itself");
    // A height within a run: its block there is the top.
    assert_eq!(home.seal(102, 0, &[block(102, 0)]).await, SealReply::Sealed { more: false });
    for _ in 0..2 {
        assert_eq!(home.seal(115, 0, &[low, high]).await, SealReply::Sealed { more: false });
        assert_eq!(home.progress().await.sealed, 115);
    }
    assert_eq!(home.seal(110, 0, &[]).await, SealReply::Sealed { more: false }, "a lower height changes nothing");
    assert_eq!((home.progress().await.sealed, home.progress().await.watermark), (115, 103));
    assert_eq!(home.seal(115, 1, &[]).await, SealReply::Refused, "sealed is sealed");
}

async fn a_seal_drops_done_entries_in_steps_and_leaves_those_being_sent(home: Home) {
    let mut home = home.started(1).await;
    for number in 1..=230 {
        home.deliver(number, 0).await;
    }
    assert_eq!(home.intent(block(231, 0), parent(231, 0), 1).await, IntentReply::Journaled);
    let top = [block(231, 0)];
    assert_eq!(home.seal(240, 0, &top).await, SealReply::Sealed { more: true });
    assert_eq!(home.store.journal(240).await.unwrap().len(), 31);
    home.reopen().await;
    assert_eq!(home.seal(240, 0, &top).await, SealReply::Sealed { more: false });
    let left = home.store.journal(240).await.unwrap();
    assert_eq!(left.iter().map(|entry| (entry.block, entry.done)).collect::<Vec<_>>(), [(block(231, 0), false)]);
}

async fn a_replay_delivers_again_with_a_higher_epoch(home: Home) {
    let mut home = home.started(101).await;
    for number in [101, 102, 103, 110, 111] {
        home.deliver(number, 0).await;
    }
    let before = home.progress().await;
    assert_eq!(home.store.replay(102, None, before.epoch - 1).await.unwrap(), ReplayReply::Stale);
    assert_eq!(home.store.replay(102, None, before.epoch + 1).await.unwrap(), ReplayReply::Stale);
    assert_eq!(home.progress().await, before);
    // Into an open gap: what is above goes, the watermark stays.
    let after = home.replay(110).await;
    assert_eq!((after.watermark, after.tip, home.done().await), (103, 110, vec![(110, 110)]));
    home.reopen().await;
    let after = home.replay(101).await;
    assert_eq!((after.watermark, after.tip, home.done().await), (101, 101, vec![]));
    assert!(after.epoch > before.epoch + 1 || after.epoch == before.epoch + 2);
    // The epoch was compared and set: the same call again is stale.
    assert_eq!(home.store.replay(101, None, before.epoch).await.unwrap(), ReplayReply::Stale);
    // The same blocks go again, although their old entries are still journaled.
    home.deliver(102, 0).await;
    assert_eq!(home.progress().await.watermark, 102);
    let epochs: Vec<_> =
        home.store.journal(102).await.unwrap().iter().map(|entry| (entry.block.number, entry.epoch)).collect();
    assert_eq!(epochs, [(101, before.epoch), (102, before.epoch), (102, after.epoch)]);
    // One run of one chain, however many epochs.
    assert_eq!(home.seal(103, 0, &[block(103, 0)]).await, SealReply::Sealed { more: false });
}

async fn what_was_sent_before_a_replay_does_not_commit_after_it(home: Home) {
    let home = home.started(101).await;
    let old = home.progress().await.epoch;
    home.deliver(101, 0).await;
    assert_eq!(home.intent(block(102, 0), parent(102, 0), 2).await, IntentReply::Journaled);
    home.seal(105, 0, &[block(102, 0)]).await;
    let range = FinalCommit { sealed: 105, ..home.final_commit(103, 105, 0).await };
    home.replay(100).await;
    assert_eq!(home.commit_in(old, block(101, 0), 2).await, CommitReply::Stale, "a commit whose reply was lost");
    assert_eq!(home.commit_in(old, block(102, 0), 2).await, CommitReply::Stale);
    assert_eq!(home.try_final(range).await, CommitReply::Stale);
    assert_eq!((home.progress().await.watermark, home.done().await.len()), (100, 0));
}

async fn a_skip_moves_the_watermark_and_melts_with_what_is_done(home: Home) {
    let home = home.started(101).await;
    home.deliver(110, 0).await;
    home.deliver(120, 0).await;
    let epoch = home.progress().await.epoch;
    assert_eq!(home.store.skip(109, epoch + 1).await.unwrap(), ReplayReply::Stale);
    for _ in 0..2 {
        let ReplayReply::Done(progress) = home.store.skip(109, epoch).await.unwrap() else { panic!("stale") };
        assert_eq!((progress.watermark, progress.tip, progress.epoch), (110, 120, epoch));
    }
    assert_eq!(home.done().await, [(120, 120)]);
    let ReplayReply::Done(progress) = home.store.skip(50, epoch).await.unwrap() else { panic!("stale") };
    assert_eq!(progress.watermark, 110, "a skip never goes back");
    let ReplayReply::Done(progress) = home.store.skip(200, epoch).await.unwrap() else { panic!("stale") };
    assert_eq!((progress.watermark, progress.tip, home.done().await), (200, 200, vec![]));
}

async fn any_order_of_commits_gives_the_same_intervals(home: Home) {
    let home = home.started(1).await;
    let mut model = IntervalSet::default();
    let mut seed = 1u64;
    for _ in 0..60 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let from = 1 + (seed >> 33) % 200;
        let to = from + (seed >> 50) % 12;
        model.insert(BlockRange { from, to });
        home.deliver_final(from, to).await;
        let watermark = model.iter().next().filter(|first| first.from == 1).map_or(0, |first| first.to);
        let snapshot = home.store.snapshot().await.unwrap();
        assert_eq!(snapshot.progress.watermark, i64::try_from(watermark).unwrap());
        assert_eq!(snapshot.progress.tip, i64::try_from(model.iter().next_back().unwrap().to).unwrap());
        let above: IntervalSet = model.iter().filter(|range| range.from > watermark).collect();
        assert_eq!(snapshot.done, above);
    }
}

async fn dead_letters_are_kept_listed_and_removed(home: Home) {
    let mut home = home.started(1).await;
    let letters: Vec<_> = ["c", "a", "b"].map(|key| letter(key, DeadKind::Refused, 5)).to_vec();
    for _ in 0..2 {
        assert!(home.store.bury(&letters).await.unwrap());
    }
    home.reopen().await;
    assert_eq!(home.store.dead_letters_len().await.unwrap(), 3);
    let keys = |letters: Vec<DeadLetter>| letters.into_iter().map(|letter| letter.key).collect::<Vec<_>>();
    assert_eq!(keys(home.store.dead_letters(None, 2).await.unwrap()), ["a", "b"]);
    assert_eq!(keys(home.store.dead_letters(Some("b"), 2).await.unwrap()), ["c"]);
    assert_eq!(keys(home.store.dead_letters(Some("aa"), 1).await.unwrap()), ["b"]);
    assert_eq!(home.store.dead_letters(Some("b"), 9).await.unwrap()[0], letters[0]);
    assert_eq!(home.store.exhume(&["a".into(), "x".into()]).await.unwrap(), 1);
    assert_eq!(home.store.exhume(&["a".into()]).await.unwrap(), 0);
    assert_eq!(keys(home.store.dead_letters(None, 9).await.unwrap()), ["b", "c"]);
}

async fn refused_letters_have_a_limit_and_undecodable_ones_make_room(home: Home) {
    let home = home.started(1).await;
    for chunk in 0..10 {
        let letters: Vec<_> =
            (0..1_000).map(|i| letter(&format!("u{chunk}-{i:03}"), DeadKind::Undecodable, chunk * 1_000 + i)).collect();
        assert!(home.store.bury(&letters).await.unwrap());
    }
    assert!(home.store.bury(&[letter("r", DeadKind::Refused, 0)]).await.unwrap());
    assert_eq!(home.store.dead_letters_len().await.unwrap(), 10_001);
    assert!(home.store.bury(&[letter("newest", DeadKind::Undecodable, 99_999)]).await.unwrap());
    assert_eq!(home.store.dead_letters_len().await.unwrap(), 10_001, "the oldest undecodable one made room");
    let first = home.store.dead_letters(None, 1).await.unwrap();
    assert_eq!(first[0].key, "newest");
    assert_eq!(home.store.dead_letters(Some("r"), 1).await.unwrap()[0].key, "u0-001");
    // One call with more than may be kept: nothing is kept.
    let letters: Vec<_> = (0..100_000).map(|i| letter(&format!("x{i}"), DeadKind::Refused, 1)).collect();
    assert!(!home.store.bury(&letters).await.unwrap());
    assert_eq!(home.store.dead_letters_len().await.unwrap(), 10_001);
}

async fn invalid_numbers_are_refused(home: Home) {
    let home = home.started(1).await;
    let huge = 1 << 53;
    let results = [
        home.store.claim(BlockRange { from: huge, to: huge }).await.map(drop),
        home.store.claim(BlockRange { from: 1, to: 101 }).await.map(drop),
        home.store.seal(BlockRef { number: huge, hash: B256::ZERO }, &[]).await.map(drop),
        home.store.replay(-2, None, 1).await.map(drop),
        home.store.skip(huge, 1).await.map(drop),
        home.store.init(Start::At(huge)).await.map(drop),
        home.store.replay(3, Some(3), 1).await.map(drop),
        home.store.replay(3, Some(huge), 1).await.map(drop),
        home.store.rewind(&[(BlockRef { number: huge, hash: B256::ZERO }, 1)], None, 1).await.map(drop),
        home.store.rewind(&[], Some(BlockRef { number: huge, hash: B256::ZERO }), 1).await.map(drop),
        home.store.resume(BlockRef { number: huge, hash: B256::ZERO }, 1).await.map(drop),
        home.store.scanned(1, huge).await,
        home.store
            .publish(Publication {
                version: 0,
                added: &[Member { key: "a".into(), from: Some(huge) }],
                removed: &[],
                checked: None,
            })
            .await
            .map(drop),
        home.store
            .publish(Publication {
                version: 0,
                added: &[Member { key: "a".repeat(201), from: None }],
                removed: &[],
                checked: None,
            })
            .await
            .map(drop),
    ];
    for (place, result) in results.into_iter().enumerate() {
        assert!(matches!(result, Err(StoreError::Fatal(_))), "operation {place}: {result:?}");
    }
}

async fn where_state_is_expected_an_empty_store_is_refused(mut home: Home) {
    for _ in 0..2 {
        let refused = home.store.init(Start::Expected).await;
        assert!(matches!(&refused, Err(StoreError::Fatal(text)) if text.contains("EXPECT_STATE")), "{refused:?}");
    }
    assert_eq!(home.store.peek().await.unwrap(), None);
    let begun = home.store.init(Start::At(101)).await.unwrap();
    home.reopen().await;
    let opened = home.store.init(Start::Expected).await.unwrap();
    assert!(!opened.fresh);
    assert_eq!(opened.progress, begun.progress);
}

// Reorganisations ------------------------------------------------------------------------------------------------------

async fn what_a_rewind_takes_back_is_listed_until_it_is_retracted(home: Home) {
    let mut home = home.started(101).await;
    for number in 101..=105 {
        home.deliver(number, 0).await;
    }
    let before = home.progress().await;
    assert_eq!((before.retracting, home.store.orphans().await.unwrap()), (0, vec![]));
    let after = home.rewind(&[block(104, 0), block(105, 0)]).await;
    assert!(after.epoch > before.epoch, "a retraction needs a higher version than what it takes back");
    assert_eq!((after.watermark, after.tip, after.retracting, &after.frozen), (103, 103, 2, &None));
    home.reopen().await;
    assert_eq!(home.progress().await, after);
    let orphan = |number| Orphan { block: block(number, 0), epoch: before.epoch, retract_epoch: after.epoch };
    assert_eq!(home.store.orphans().await.unwrap(), [orphan(104), orphan(105)]);
    assert_eq!(home.live().await, [block(101, 0), block(102, 0), block(103, 0)]);
    assert_eq!(home.store.journaled(block(104, 0), before.epoch).await.unwrap(), events(block(104, 0), 0..2));
    let grant = home.claim(104, 105).await;
    assert_eq!((grant.retracting, grant.epoch, grant.live), (2, after.epoch, vec![block(103, 0)]));
    // A retraction of another epoch is not this one's.
    home.store.retracted(Orphan { retract_epoch: after.epoch + 1, ..orphan(104) }).await.unwrap();
    home.store.retracted(Orphan { epoch: after.epoch, ..orphan(104) }).await.unwrap();
    assert_eq!(home.progress().await.retracting, 2);
    for _ in 0..2 {
        home.store.retracted(orphan(104)).await.unwrap();
        home.reopen().await;
        assert_eq!(home.store.orphans().await.unwrap(), [orphan(105)]);
    }
    assert_eq!(home.store.journaled(block(104, 0), before.epoch).await.unwrap(), []);
    home.store.retracted(orphan(105)).await.unwrap();
    assert_eq!(home.progress().await, Progress { retracting: 0, ..after });
    // A live entry is not forgotten, whatever is said of it.
    home.store.retracted(Orphan { retract_epoch: before.epoch, ..orphan(103) }).await.unwrap();
    assert_eq!(home.live().await.len(), 3);
}

/// Without the compare-and-set the second caller, who saw an older state, would take back what was delivered since.
async fn of_several_rewinds_with_one_epoch_one_wins(home: Home) {
    let home = home.started(101).await;
    home.deliver(101, 0).await;
    home.deliver(102, 0).await;
    let before = home.progress().await;
    let seen = home.entries(&[block(101, 0), block(102, 0)]).await;
    for epoch in [before.epoch - 1, before.epoch + 1] {
        assert_eq!(home.store.rewind(&seen, None, epoch).await.unwrap(), RewindReply::Stale);
        assert_eq!(home.store.rewind(&seen, Some(block(101, 1)), epoch).await.unwrap(), RewindReply::Stale);
    }
    assert_eq!(home.progress().await, before);
    let RewindReply::Rewound(after) = home.store.rewind(&seen[1..], None, before.epoch).await.unwrap() else {
        panic!("the first one wins")
    };
    // The same again, as after a lost reply; and another who saw more orphans in the old state.
    assert_eq!(home.store.rewind(&seen[1..], None, before.epoch).await.unwrap(), RewindReply::Stale);
    assert_eq!(home.store.rewind(&seen, None, before.epoch).await.unwrap(), RewindReply::Stale);
    assert_eq!(home.progress().await, after);
    assert_eq!(home.live().await, [block(101, 0)]);
}

async fn a_rewind_of_nothing_that_is_live_changes_nothing(home: Home) {
    let home = home.started(101).await;
    home.deliver(101, 0).await;
    home.deliver(102, 0).await;
    let name = home.entries(&[block(102, 0)]).await[0];
    let after = home.rewind(&[block(102, 0)]).await;
    let cases = [vec![], vec![name], vec![name, (block(101, 1), after.epoch), (block(101, 0), after.epoch + 7)]];
    for entries in cases {
        let reply = home.store.rewind(&entries, None, after.epoch).await.unwrap();
        assert_eq!(reply, RewindReply::Rewound(after.clone()), "{entries:?}");
    }
    // Together with a live one: each once, the old one under its own retraction.
    home.rewind(&[block(101, 0)]).await;
    let orphans = home.store.orphans().await.unwrap();
    assert_eq!(orphans.iter().map(|orphan| orphan.block.number).collect::<Vec<_>>(), [101, 102]);
    assert!(orphans[0].retract_epoch > orphans[1].retract_epoch);
}

async fn a_rewind_lowers_the_watermark_below_its_lowest_orphan_and_keeps_the_rest_done(home: Home) {
    let mut home = home.started(101).await;
    for number in 101..=106 {
        home.deliver(number, 0).await;
    }
    home.deliver_final(107, 109).await;
    assert_eq!(home.progress().await.watermark, 109);
    // Two runs mismatch: one in the middle of what is done, one at its end.
    let after = home.rewind(&[block(106, 0), block(103, 0)]).await;
    assert_eq!((after.watermark, after.tip), (102, 109));
    home.reopen().await;
    assert_eq!(home.done().await, [(104, 105), (107, 109)]);
    // Only what is missing goes out again.
    assert_eq!(home.claim(103, 103).await.live, [block(102, 0), block(104, 0)]);
    home.deliver(103, 0).await;
    assert_eq!((home.progress().await.watermark, home.done().await), (105, vec![(107, 109)]));
    home.deliver(106, 0).await;
    assert_eq!((home.progress().await.watermark, home.done().await), (109, vec![]));
}

async fn a_rewind_above_an_open_gap_leaves_the_watermark(home: Home) {
    let home = home.started(101).await;
    for number in [101, 110, 111, 112] {
        home.deliver(number, 0).await;
    }
    let after = home.rewind(&[block(111, 0), block(112, 0)]).await;
    assert_eq!((after.watermark, after.tip, home.done().await), (101, 110, vec![(110, 110)]));
    let after = home.rewind(&[block(110, 0)]).await;
    assert_eq!((after.watermark, after.tip, home.done().await), (101, 101, vec![]));
    let after = home.rewind(&[block(101, 0)]).await;
    assert_eq!((after.watermark, after.tip, after.retracting), (100, 100, 4));
}

async fn what_was_being_sent_when_it_was_orphaned_never_commits(home: Home) {
    let home = home.started(101).await;
    home.deliver(101, 0).await;
    let old = home.progress().await;
    let at = block(102, 0);
    assert_eq!(home.intent(at, parent(102, 0), 2).await, IntentReply::Journaled);
    let after = home.rewind(&[at]).await;
    assert_eq!((after.watermark, after.tip, after.retracting), (101, 101, 1), "it was not delivered");
    assert_eq!(home.commit_in(old.epoch, at, 2).await, CommitReply::Fenced);
    assert_eq!(home.part(at, parent(102, 0), old.epoch, (0..2, 0..2)).await, IntentReply::Stale);
    assert_eq!(home.commit_in(after.epoch, at, 2).await, CommitReply::Fenced);
    assert_eq!(home.progress().await, after);
    // What stayed in the chain commits under its old epoch.
    assert_eq!(home.commit_in(old.epoch, block(101, 0), 2).await, committed(101, 101));
}

async fn a_chain_that_flips_back_and_forth_keeps_every_delivery_apart(home: Home) {
    let home = home.started(101).await;
    let (a, b) = (block(101, 0), block(101, 1));
    let first = home.progress().await.epoch;
    home.deliver(101, 0).await;
    let second = home.rewind(&[a]).await.epoch;
    home.deliver(101, 1).await;
    assert_eq!(home.progress().await.watermark, 101);
    let third = home.rewind(&[b]).await.epoch;
    home.deliver(101, 0).await;
    assert!(first < second && second < third);
    let taken_back = [
        Orphan { block: a, epoch: first, retract_epoch: second },
        Orphan { block: b, epoch: second, retract_epoch: third },
    ];
    assert_eq!(home.store.orphans().await.unwrap(), taken_back);
    assert_eq!(home.entries(&[a, b]).await, [(a, third)]);
    assert_eq!(home.commit_in(first, a, 2).await, CommitReply::Fenced, "the first delivery is taken back");
    home.store.retracted(taken_back[0]).await.unwrap();
    assert_eq!(home.store.journaled(a, first).await.unwrap(), []);
    assert_eq!(home.store.journaled(a, third).await.unwrap(), events(a, 0..2), "the last one is not");
    assert_eq!((home.progress().await.watermark, home.progress().await.retracting), (101, 1));
}

async fn of_one_block_in_two_epochs_a_rewind_takes_the_named_one(home: Home) {
    let home = home.started(101).await;
    home.deliver(101, 0).await;
    home.replay(100).await;
    home.deliver(101, 0).await;
    let names = home.entries(&[block(101, 0)]).await;
    assert_eq!(names.len(), 2);
    let epoch = home.progress().await.epoch;
    let RewindReply::Rewound(after) = home.store.rewind(&names[..1], None, epoch).await.unwrap() else { panic!() };
    assert_eq!((after.watermark, after.retracting), (100, 1), "its block left the chain, whatever else names it");
    assert_eq!(home.entries(&[block(101, 0)]).await, names[1..]);
    let after = home.rewind(&[block(101, 0)]).await;
    assert_eq!((after.watermark, after.retracting), (100, 2));
    let orphans = home.store.orphans().await.unwrap();
    assert_eq!(orphans.iter().map(|orphan| (orphan.block, orphan.epoch)).collect::<Vec<_>>(), names);
}

async fn entries_that_are_being_taken_back_contradict_nobody(home: Home) {
    let home = home.started(101).await;
    for number in 101..=104 {
        home.deliver(number, 0).await;
    }
    home.rewind(&[block(102, 0), block(103, 0), block(104, 0)]).await;
    // Another block at the height of one, below one, and above one.
    home.deliver_on(block(102, 1), block(101, 0)).await;
    home.deliver(104, 1).await;
    let range = FinalCommit { parent: block(102, 1).hash, ..home.final_commit(103, 103, 1).await };
    assert_eq!(home.try_final(range).await, committed(104, 104));
    assert_eq!(home.live().await, [block(101, 0), block(102, 1), block(104, 1)]);
    assert_eq!(home.progress().await.retracting, 3);
    // Nor are they tops of runs; a seal that passes them leaves them to their retraction.
    let tops = [block(102, 1), block(104, 1)];
    assert_eq!(home.seal(104, 1, &tops).await, SealReply::Sealed { more: false });
    assert_eq!((home.live().await, home.store.orphans().await.unwrap().len()), (vec![], 3));
}

/// A zombie's final messages would be shadowed by retractions of a lower epoch's versions otherwise.
async fn a_range_claimed_before_a_rewind_does_not_commit_after_it(home: Home) {
    let home = home.started(101).await;
    home.deliver(120, 0).await;
    assert_eq!(home.seal(110, 0, &[]).await, SealReply::Sealed { more: false });
    let (final_then, above) = (home.final_commit(101, 110, 0).await, home.final_commit(111, 115, 0).await);
    home.rewind(&[block(120, 0)]).await;
    assert_eq!(home.try_final(above.clone()).await, CommitReply::Stale);
    assert_eq!(home.progress().await.tip, 100);
    // It is no help that it was sealed meanwhile: what counts is what was sealed when it was claimed.
    assert_eq!(home.seal(115, 0, &[]).await, SealReply::Sealed { more: false });
    assert_eq!(home.try_final(above).await, CommitReply::Stale);
    assert_eq!(home.try_final(final_then).await, committed(110, 110));
}

async fn a_seal_that_was_prepared_before_a_rewind_is_refused(home: Home) {
    let home = home.started(101).await;
    for number in 101..=103 {
        home.deliver(number, 0).await;
    }
    home.rewind(&[block(103, 0)]).await;
    assert_eq!(home.seal(105, 0, &[block(103, 0)]).await, SealReply::Refused, "its top is no longer there");
    home.deliver_on(block(103, 1), block(102, 0)).await;
    assert_eq!(home.seal(105, 0, &[block(103, 0)]).await, SealReply::Refused, "its top is another one");
    assert_eq!(home.seal(103, 0, &[block(103, 1)]).await, SealReply::Refused, "the sealed block is another one");
    assert_eq!(home.progress().await.sealed, -1);
    assert_eq!(home.seal(105, 1, &[block(103, 1)]).await, SealReply::Sealed { more: false });
}

async fn a_rewind_that_contradicts_what_is_sealed_halts_the_chain(home: Home) {
    let mut home = home.started(101).await;
    for number in 101..=105 {
        home.deliver(number, 0).await;
    }
    // With nothing sealed there is nothing to contradict.
    let epoch = home.progress().await.epoch;
    let reply = home.store.rewind(&[], Some(block(103, 1)), epoch).await.unwrap();
    assert!(matches!(reply, RewindReply::Rewound(_)), "{reply:?}");
    assert_eq!(home.seal(103, 0, &[block(103, 0)]).await, SealReply::Sealed { more: false });
    let before = home.progress().await;
    let entries = home.entries(&[block(104, 0), block(105, 0)]).await;
    let other = block(103, 1);
    let RewindReply::Deep(reason) = home.store.rewind(&entries, Some(other), epoch).await.unwrap() else { panic!() };
    for part in ["103", &block(103, 0).hash.to_string(), &other.hash.to_string()] {
        assert!(reason.contains(part), "{part} is missing: {reason}");
    }
    home.reopen().await;
    assert_eq!(home.progress().await, Progress { frozen: Some(reason.clone()), ..before }, "nothing else changed");
    assert_eq!(home.live().await.len(), 2);
    // Whoever comes now hears the same, whatever he saw.
    for sealed in [Some(block(103, 0)), Some(other), Some(block(102, 0)), None] {
        assert_eq!(home.store.rewind(&entries, sealed, epoch).await.unwrap(), RewindReply::Deep(reason.clone()));
    }
}

/// What the caller compared is another block's by now, and what it saw above it may be a node's stale branch: entries that
/// are sealed meanwhile would halt a chain that is whole.
async fn a_rewind_that_was_prepared_before_a_seal_is_stale(home: Home) {
    let home = home.started(101).await;
    for number in 101..=106 {
        home.deliver(number, 0).await;
    }
    assert_eq!(home.intent(block(107, 0), parent(107, 0), 1).await, IntentReply::Journaled);
    assert_eq!(home.seal(102, 0, &[block(102, 0)]).await, SealReply::Sealed { more: false });
    let before = home.progress().await;
    let entries = home.entries(&[block(105, 0), block(106, 0), block(107, 0)]).await;
    assert_eq!(home.seal(107, 0, &[block(107, 0)]).await, SealReply::Sealed { more: false });
    let sealed = home.progress().await;
    assert_eq!(home.live().await, [block(107, 0)], "what was being sent outlives the seal");
    for seen in [before.sealed_block().unwrap(), block(102, 1), block(106, 0), block(108, 0)] {
        for entries in [&entries[..], &[]] {
            let reply = home.store.rewind(entries, Some(seen), before.epoch).await.unwrap();
            assert_eq!(reply, RewindReply::Stale, "{seen} {entries:?}");
        }
    }
    assert_eq!(home.progress().await, sealed);
    // At the same height the hash decides.
    let reply = home.store.rewind(&[], sealed.sealed_block(), sealed.epoch).await.unwrap();
    assert_eq!(reply, RewindReply::Rewound(sealed.clone()));
    let reply = home.store.rewind(&[], Some(block(107, 1)), sealed.epoch).await.unwrap();
    assert!(matches!(reply, RewindReply::Deep(_)), "{reply:?}");
}

async fn a_rewind_of_an_entry_at_or_below_the_sealed_height_halts_the_chain(home: Home) {
    let home = home.started(101).await;
    assert_eq!(home.intent(block(104, 0), parent(104, 0), 1).await, IntentReply::Journaled);
    home.deliver(107, 0).await;
    assert_eq!(home.seal(105, 0, &[block(104, 0)]).await, SealReply::Sealed { more: false });
    let before = home.progress().await;
    let entries = home.entries(&[block(104, 0), block(107, 0)]).await;
    assert_eq!(entries.len(), 2, "what was being sent outlives the seal");
    let reply = home.store.rewind(&entries, before.sealed_block(), before.epoch).await.unwrap();
    let RewindReply::Deep(reason) = reply else { panic!("{reply:?}") };
    assert!(reason.contains("105") && reason.contains("104"), "{reason}");
    assert_eq!(home.progress().await, Progress { frozen: Some(reason), ..before });
    assert_eq!(home.entries(&[block(104, 0), block(107, 0)]).await, entries);
}

async fn a_halted_chain_delivers_nothing_until_someone_resumes_it(home: Home) {
    let home = home.started(101).await;
    for number in 101..=106 {
        home.deliver(number, 0).await;
    }
    assert_eq!(home.seal(103, 0, &[block(103, 0)]).await, SealReply::Sealed { more: false });
    home.rewind(&[block(106, 0)]).await;
    assert_eq!(home.intent(block(106, 1), block(105, 0).hash, 2).await, IntentReply::Journaled);
    let orphans = home.store.orphans().await.unwrap();
    let range = home.final_commit(108, 109, 0).await;
    let reason = home.freeze().await;
    let halted = home.progress().await;
    assert_eq!(home.store.claim(BlockRange::single(107)).await.unwrap(), ClaimReply::Frozen(reason));
    assert_eq!(home.intent(block(107, 1), parent(107, 1), 1).await, IntentReply::Stale);
    assert_eq!(home.commit(block(106, 1), 2).await, CommitReply::Stale);
    assert_eq!(home.try_final(range).await, CommitReply::Stale);
    assert_eq!(home.seal(104, 0, &[block(104, 0)]).await, SealReply::Refused);
    assert_eq!(home.amend(block(104, 0), 0..3, 2..3).await, AmendReply::Frozen);
    assert_eq!(home.store.orphans().await.unwrap(), [], "what left a doubtful chain is in doubt as well");
    for refused in [home.store.replay(101, None, halted.epoch).await, home.store.skip(200, halted.epoch).await] {
        assert!(
            matches!(&refused, Err(StoreError::Fatal(text)) if text.contains("chaintap resume --accept-reorg")),
            "{refused:?}"
        );
    }
    assert_eq!(home.progress().await, halted);
    // What is filtered with is not in doubt.
    assert_eq!(home.publish(0, &[("a", None)], &[]).await, PublishReply::Published(1));
    let resumed = home.store.resume(block(103, 0), halted.epoch).await.unwrap();
    let ReplayReply::Done(resumed) = resumed else { panic!("{resumed:?}") };
    let expected = Progress { frozen: None, epoch: resumed.epoch, filter_version: 1, ..halted };
    assert_eq!(resumed, expected);
    assert_eq!(home.store.orphans().await.unwrap(), orphans);
    assert_eq!(home.claim(107, 107).await.retracting, 1);
}

async fn a_resume_takes_back_what_counted_as_sealed(home: Home) {
    let mut home = home.started(101).await;
    for number in 101..=106 {
        home.deliver(number, 0).await;
    }
    home.deliver(110, 0).await;
    assert_eq!(home.seal(104, 0, &[block(104, 0)]).await, SealReply::Sealed { more: false });
    let zombie = FinalCommit { sealed: 109, ..home.final_commit(107, 109, 0).await };
    home.freeze().await;
    let before = home.progress().await;
    let accepted = block(102, 1);
    for epoch in [before.epoch - 1, before.epoch + 1] {
        assert_eq!(home.store.resume(accepted, epoch).await.unwrap(), ReplayReply::Stale);
    }
    let above = home.store.resume(block(105, 1), before.epoch).await;
    assert!(matches!(&above, Err(StoreError::Fatal(text)) if text.contains("104")), "{above:?}");
    assert_eq!(home.progress().await, before);
    let ReplayReply::Done(after) = home.store.resume(accepted, before.epoch).await.unwrap() else { panic!("stale") };
    assert!(after.epoch > before.epoch);
    let expected =
        Progress { frozen: None, sealed: 102, sealed_hash: Some(accepted.hash), epoch: after.epoch, ..before.clone() };
    assert_eq!(after, expected);
    home.reopen().await;
    assert_eq!((home.progress().await, home.done().await), (after.clone(), vec![(110, 110)]));
    assert_eq!(home.store.resume(accepted, before.epoch).await.unwrap(), ReplayReply::Stale, "once");
    // What was sent of the chain that is gone does not commit, however sealed it was.
    assert_eq!(home.try_final(zombie).await, CommitReply::Stale);
    assert_eq!(home.commit_in(before.epoch, block(105, 0), 2).await, CommitReply::Stale);
    // The live entries are judged by the next verification, which may take them back now.
    assert_eq!(home.live().await, [block(105, 0), block(106, 0), block(110, 0)]);
    let rewound = home.rewind(&[block(105, 0), block(106, 0)]).await;
    assert_eq!((rewound.watermark, rewound.tip, rewound.retracting), (104, 110, 2));
}

async fn an_amendment_joins_the_entry_and_leaves_it_as_done_as_it_is(home: Home) {
    let mut home = home.started(101).await;
    let epoch = home.progress().await.epoch;
    home.deliver(101, 0).await;
    let (done, sending) = (block(101, 0), block(102, 0));
    for _ in 0..2 {
        assert_eq!(home.amend(done, 0..3, 2..3).await, AmendReply::Journaled { epoch });
        home.reopen().await;
    }
    assert_eq!(home.amend(done, 0..5, 4..5).await, AmendReply::More { epoch }, "it lacks one more than was offered");
    assert_eq!(home.amend(done, 0..2, 0..2).await, AmendReply::Journaled { epoch }, "all of it is known");
    assert_eq!(home.amend(done, 1..2, 1..2).await, AmendReply::More { epoch });
    assert_eq!(home.amend(done, 0..3, 0..0).await, AmendReply::Journaled { epoch }, "nothing is lacking");
    assert_eq!(home.store.journaled(done, epoch).await.unwrap(), events(done, 0..3));
    assert!(home.store.journal(101).await.unwrap()[0].done);
    assert_eq!(home.progress().await.watermark, 101);
    // A retraction takes back what was amended as well.
    assert_eq!(home.intent(sending, done.hash, 1).await, IntentReply::Journaled);
    assert_eq!(home.amend(sending, 0..4, 1..4).await, AmendReply::Journaled { epoch });
    assert!(!home.store.journal(102).await.unwrap()[1].done, "its commit is still to come");
    assert_eq!(home.commit(sending, 1).await, CommitReply::More);
    assert_eq!(home.commit(sending, 4).await, committed(102, 102));
    home.rewind(&[done, sending]).await;
    assert_eq!(home.store.journaled(done, epoch).await.unwrap(), events(done, 0..3));
}

async fn an_amendment_says_where_there_is_nothing_to_amend(home: Home) {
    let home = home.started(101).await;
    home.deliver(101, 0).await;
    home.deliver(102, 0).await;
    home.deliver_final(110, 112).await;
    assert_eq!(home.amend(block(105, 0), 0..1, 0..1).await, AmendReply::Missing);
    assert_eq!(home.amend(block(101, 1), 0..1, 0..1).await, AmendReply::Gone, "another block stands there");
    let epoch = home.progress().await.epoch;
    for number in [50, 111] {
        assert_eq!(home.amend(block(number, 0), 0..1, 0..1).await, AmendReply::Final { epoch }, "{number}");
    }
    let epoch = home.rewind(&[block(102, 0)]).await.epoch;
    assert_eq!(home.amend(block(102, 0), 0..3, 2..3).await, AmendReply::Gone, "it is being taken back");
    assert_eq!(home.amend(block(102, 1), 0..3, 2..3).await, AmendReply::Missing, "its place is free");
    assert_eq!(home.amend(block(111, 0), 0..1, 0..1).await, AmendReply::Final { epoch });
    // Sealed is not delivered.
    assert_eq!(home.seal(105, 0, &[block(101, 0)]).await, SealReply::Sealed { more: false });
    assert_eq!(home.amend(block(101, 0), 0..3, 2..3).await, AmendReply::Final { epoch });
    assert_eq!(home.amend(block(105, 0), 0..1, 0..1).await, AmendReply::Missing);
    assert!(home.live().await.is_empty(), "no amendment begins an entry");
    assert_eq!(home.publish(0, &[("a", None)], &[]).await, PublishReply::Published(1));
    let amend = Amend { block: block(101, 0), filter_version: 0, digest: digest(block(101, 0), 0..1), events: &[] };
    assert_eq!(home.store.amend(amend.clone()).await.unwrap(), AmendReply::OldList);
    let amend = Amend { filter_version: 1, ..amend };
    assert_eq!(home.store.amend(amend).await.unwrap(), AmendReply::Final { epoch });
}

async fn an_amendment_joins_the_newest_of_several_entries(home: Home) {
    let home = home.started(101).await;
    let at = block(101, 0);
    let old = home.progress().await.epoch;
    home.deliver(101, 0).await;
    let epoch = home.replay(100).await.epoch;
    assert_eq!(home.amend(at, 0..3, 2..3).await, AmendReply::Journaled { epoch: old });
    home.deliver(101, 0).await;
    assert_eq!(home.amend(at, 0..4, 2..4).await, AmendReply::Journaled { epoch });
    assert_eq!(home.store.journaled(at, old).await.unwrap(), events(at, 0..3));
    assert_eq!(home.store.journaled(at, epoch).await.unwrap(), events(at, 0..4));
}

async fn a_replay_with_an_end_leaves_what_is_above_it_done(home: Home) {
    let mut home = home.started(101).await;
    home.deliver_final(101, 110).await;
    home.deliver(115, 0).await;
    let before = home.progress().await;
    assert_eq!(home.store.replay(102, Some(105), before.epoch + 1).await.unwrap(), ReplayReply::Stale);
    let replay = async |home: &Home, to, until| {
        let epoch = home.progress().await.epoch;
        match home.store.replay(to, Some(until), epoch).await.unwrap() {
            ReplayReply::Done(progress) => progress,
            ReplayReply::Stale => panic!("stale"),
        }
    };
    let after = replay(&home, 102, 105).await;
    assert!(after.epoch > before.epoch);
    home.reopen().await;
    assert_eq!((after.watermark, after.tip, home.done().await), (102, 115, vec![(106, 110), (115, 115)]));
    assert_eq!(home.commit_in(before.epoch, block(115, 0), 2).await, CommitReply::Stale);
    // Within an interval above the watermark, and over a hole.
    let after = replay(&home, 106, 107).await;
    assert_eq!((after.watermark, after.tip, home.done().await), (102, 115, vec![(106, 106), (108, 110), (115, 115)]));
    let after = replay(&home, 109, 112).await;
    assert_eq!((after.watermark, after.tip, home.done().await), (102, 115, vec![(106, 106), (108, 109), (115, 115)]));
    home.deliver_final(103, 105).await;
    home.deliver_final(107, 107).await;
    assert_eq!((home.progress().await.watermark, home.done().await), (109, vec![(115, 115)]));
    // An end at or above the tip is no end.
    let after = replay(&home, 107, 115).await;
    assert_eq!((after.watermark, after.tip, home.done().await), (107, 107, vec![]));
    let after = replay(&home, 105, 900).await;
    assert_eq!((after.watermark, after.tip, home.done().await), (105, 105, vec![]));
}

// What events are filtered with ----------------------------------------------------------------------------------------

async fn the_first_publication_makes_no_duties(home: Home) {
    let mut home = home.started(101).await;
    assert_eq!(home.store.published().await.unwrap(), Published::default());
    home.deliver(101, 0).await;
    assert_eq!(home.publish(1, &[("b", None)], &[]).await, PublishReply::Stale);
    assert_eq!(home.publish(0, &[("b", None), ("a", Some(5))], &[]).await, PublishReply::Published(1));
    home.reopen().await;
    let published = home.store.published().await.unwrap();
    assert_eq!((published.version, published.members), (1, members(&["a", "b"]).into_iter().collect()));
    assert_eq!(home.duty().await, None, "nothing was filtered without it");
    // Said again, as after a lost reply.
    assert_eq!(home.publish(0, &[("b", None), ("a", Some(5))], &[]).await, PublishReply::Stale);
    assert_eq!((home.progress().await.filter_version, home.claim(102, 102).await.filter_version), (1, 1));
    // Who still has the old list can neither begin nor finish anything.
    let at = block(102, 0);
    let intent = Intent {
        block: at,
        parent: parent(102, 0),
        epoch: home.progress().await.epoch,
        filter_version: 0,
        digest: digest(at, 0..0),
        events: &[],
    };
    assert_eq!(home.store.intent(intent).await.unwrap(), IntentReply::OldList);
    let range = FinalCommit { filter_version: 0, ..home.final_commit(102, 103, 0).await };
    assert_eq!(home.try_final(range).await, CommitReply::OldList);
    assert_eq!(home.intent(at, parent(102, 0), 1).await, IntentReply::Journaled);
    assert_eq!(home.publish(1, &[], &["a"]).await, PublishReply::Published(2));
    let commit =
        BlockCommit { block: at, epoch: home.progress().await.epoch, filter_version: 1, digest: digest(at, 0..1) };
    let reply = home.store.commit(commit, Track::Realtime).await.unwrap();
    assert_eq!(reply, CommitReply::OldList);
}

async fn an_empty_filter_is_published_as_well(home: Home) {
    let home = home.started(101).await;
    assert_eq!(home.publish(0, &[], &[]).await, PublishReply::Published(1));
    home.deliver(101, 0).await;
    assert_eq!(home.publish(1, &[("a", None)], &[]).await, PublishReply::Published(2));
    assert_eq!(home.duty().await, Some((101, 101, members(&["a"]))), "what joins it later is scanned for");
}

async fn what_joins_the_filter_is_scanned_for_from_the_last_check_or_its_own_start(home: Home) {
    let home = home.started(101).await;
    assert_eq!(home.publish(0, &[("a", None)], &[]).await, PublishReply::Published(1));
    home.deliver_final(101, 110).await;
    for _ in 0..2 {
        assert_eq!(home.publish(1, &[], &[]).await, PublishReply::Published(1), "a check that found no change");
    }
    home.deliver_final(111, 120).await;
    let added = [("c", None), ("d", Some(105)), ("far", Some(121)), ("f", Some(111)), ("a", None), ("z", Some(120))];
    assert_eq!(home.publish(1, &added, &["nobody"]).await, PublishReply::Published(2));
    let published = home.store.published().await.unwrap();
    assert_eq!(published.members, members(&["a", "c", "d", "f", "far", "z"]).into_iter().collect());
    // It was a check as well: nothing more joins until the chain goes on.
    assert_eq!(home.publish(2, &[("h", None)], &["c"]).await, PublishReply::Published(3));
    assert_eq!(home.publish(3, &[("h", None), ("a", Some(1))], &["c"]).await, PublishReply::Published(3));
    let mut duties = Vec::new();
    while let Some(Duty { id, range, members }) = home.store.duty().await.unwrap() {
        duties.push((range.from, range.to, members));
        home.store.scanned(id, range.to).await.unwrap();
    }
    let expected = [(105, 120, members(&["d"])), (111, 120, members(&["c", "f"])), (120, 120, members(&["z"]))];
    assert_eq!(duties, expected);
}

async fn a_rewind_takes_the_last_check_back_with_it(home: Home) {
    let home = home.started(101).await;
    assert_eq!(home.publish(0, &[("a", None)], &[]).await, PublishReply::Published(1));
    for number in 101..=106 {
        home.deliver(number, 0).await;
    }
    assert_eq!(home.publish(1, &[], &[]).await, PublishReply::Published(1));
    // The blocks in their place are filtered with a list that may be older than what joined it meanwhile.
    home.rewind(&[block(104, 0), block(105, 0), block(106, 0)]).await;
    home.deliver_on(block(104, 1), block(103, 0)).await;
    home.deliver(105, 1).await;
    assert_eq!(home.publish(1, &[("b", None)], &[]).await, PublishReply::Published(2));
    assert_eq!(home.duty().await, Some((104, 105, members(&["b"]))));
}

async fn a_duty_is_worked_off_in_steps_and_in_order(home: Home) {
    let mut home = home.started(101).await;
    assert_eq!(home.publish(0, &[], &[]).await, PublishReply::Published(1));
    home.deliver_final(101, 150).await;
    assert_eq!(home.publish(1, &[("late", Some(140)), ("early", None)], &[]).await, PublishReply::Published(2));
    let first = home.store.duty().await.unwrap().unwrap();
    assert_eq!(first.range, BlockRange { from: 101, to: 150 });
    home.store.scanned(first.id, 100).await.unwrap();
    assert_eq!(home.store.duty().await.unwrap(), Some(first.clone()), "its own again");
    for _ in 0..2 {
        home.store.scanned(first.id, 120).await.unwrap();
        home.reopen().await;
        assert_eq!(home.duty().await, Some((121, 150, members(&["early"]))));
    }
    home.store.scanned(first.id, 110).await.unwrap();
    assert_eq!(home.duty().await, Some((121, 150, members(&["early"]))), "what was scanned stays scanned");
    home.store.retire().await.unwrap();
    assert_eq!(home.duty().await, Some((121, 150, members(&["early"]))));
    for _ in 0..2 {
        home.store.scanned(first.id, 150).await.unwrap();
        assert_eq!(home.duty().await, Some((140, 150, members(&["late"]))));
    }
    let second = home.store.duty().await.unwrap().unwrap();
    assert_ne!(first.id, second.id);
    home.store.scanned(second.id, 900).await.unwrap();
    assert_eq!(home.duty().await, None);
}

async fn what_was_learned_of_endpoints_is_kept_as_it_was_last_told(home: Home) {
    assert!(home.store.learned().await.unwrap().is_empty(), "an empty store knows of none");
    let mut home = home.started(101).await;
    for (endpoint, learned) in [("a.example", "10 blocks"), ("b.example", "{\"blocks\":5}"), ("a.example", "")] {
        home.store.learn(endpoint, learned).await.unwrap();
    }
    home.reopen().await;
    let learned: Vec<_> = home.store.learned().await.unwrap().into_iter().collect();
    let expected = [("a.example", ""), ("b.example", "{\"blocks\":5}")];
    assert_eq!(learned, expected.map(|(endpoint, learned)| (endpoint.to_owned(), learned.to_owned())));
    assert_eq!(home.progress().await.watermark, 100, "it is no progress");
}

async fn what_is_kept_of_endpoints_is_bounded(home: Home) {
    let home = home.started(101).await;
    let (name, text) = ("n".repeat(MAX_ENDPOINT_BYTES), "t".repeat(MAX_LEARNED_BYTES));
    home.store.learn(&name, &text).await.unwrap();
    for (name, text) in [(format!("{name}n"), text.clone()), (name, format!("{text}t")), (String::new(), text)] {
        home.store.learn(&name, &text).await.unwrap_err();
    }
    for number in 1..MAX_LEARNED {
        home.store.learn(&format!("{number}.example"), "x").await.unwrap();
    }
    home.store.learn("1.example", "y").await.unwrap();
    assert_eq!(home.store.learned().await.unwrap().len(), MAX_LEARNED, "a known name takes no other's place");
    home.store.learn("one.more", "x").await.unwrap();
    assert_eq!(home.store.learned().await.unwrap().into_keys().collect::<Vec<_>>(), ["one.more"]);
}

async fn a_wiped_store_is_empty(home: Home) {
    home.store.wipe().await.unwrap();
    let mut home = home.started(101).await;
    for number in 101..=105 {
        home.deliver(number, 0).await;
    }
    home.deliver(110, 0).await;
    home.rewind(&[block(105, 0)]).await;
    home.claim(111, 120).await;
    home.store.bury(&[letter("a", DeadKind::Refused, 1), letter("b", DeadKind::Undecodable, 1)]).await.unwrap();
    home.publish(0, &[("a", None)], &[]).await;
    home.publish(1, &[("b", Some(102))], &[]).await;
    home.store.learn("a.example", "x").await.unwrap();
    assert!(home.store.duty().await.unwrap().is_some());
    for _ in 0..2 {
        home.store.wipe().await.unwrap();
        home.reopen().await;
        assert_eq!(home.store.peek().await.unwrap(), None);
        assert!(matches!(home.store.snapshot().await, Err(StoreError::Vanished(_))));
    }
    let home = home.started(501).await;
    assert_eq!((home.progress().await.watermark, home.live().await, home.done().await), (500, vec![], vec![]));
    assert_eq!(home.store.dead_letters_len().await.unwrap(), 0);
    assert_eq!((home.store.published().await.unwrap(), home.duty().await), (Published::default(), None));
    assert_eq!(home.store.orphans().await.unwrap(), []);
    assert!(home.store.learned().await.unwrap().is_empty());
    home.deliver(501, 0).await;
}

#[tokio::test]
async fn a_file_in_use_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Embedded::open(dir.path(), CHAIN, "test").unwrap();
    let error = Embedded::open(dir.path(), CHAIN, "test").unwrap_err().to_string();
    assert!(error.contains("in use by another process") && error.contains("chain-1.redb"), "{error}");
}

#[tokio::test]
async fn a_broken_file_is_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("chain-1.redb");
    std::fs::write(&path, vec![7u8; 5_000]).unwrap();
    assert!(matches!(Embedded::open(dir.path(), CHAIN, "test"), Err(StoreError::Fatal(_))));
}
