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
        BlockCommit, ClaimReply, CommitReply, DeadKind, DeadLetter, FinalCommit, Grant, Intent, IntentReply, Progress,
        ReplayReply, SealReply, Start, StateStore, StoreError,
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
        let intent = Intent { block: at, parent, epoch, filter_version: 0, digest: digest(at, all), events: &events };
        self.store.intent(intent).await.unwrap()
    }

    async fn commit(&self, at: BlockRef, logs: u64) -> CommitReply {
        let epoch = self.progress().await.epoch;
        self.commit_in(epoch, at, logs).await
    }

    async fn commit_in(&self, epoch: u64, at: BlockRef, logs: u64) -> CommitReply {
        let commit = BlockCommit { block: at, epoch, filter_version: 0, digest: digest(at, 0..logs) };
        self.store.commit(commit, Track::Realtime, &nobodys(at.number, at.number)).await.unwrap()
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
            filter_version: 0,
        }
    }

    async fn try_final(&self, commit: FinalCommit) -> CommitReply {
        let grant = nobodys(commit.range.from, commit.range.to);
        self.store.commit_final(commit, Track::Historical, &grant).await.unwrap()
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
}

/// A grant that holds no claim.
fn nobodys(from: u64, to: u64) -> Grant {
    Grant {
        range: BlockRange { from, to },
        token: "nobody:0".into(),
        epoch: 0,
        sealed: -1,
        filter_version: 0,
        retracting: 0,
        live: Vec::new(),
    }
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
    let grant = nobodys(1, 2);
    assert!(matches!(store.commit(commit, Track::Realtime, &grant).await, Err(StoreError::Vanished(_))));
    let commit = FinalCommit {
        range,
        epoch: 1,
        sealed: -1,
        parent: parent(1, 0),
        hash: block(2, 0).hash,
        confirmed: Vec::new(),
        filter_version: 0,
    };
    assert!(matches!(store.commit_final(commit, Track::Historical, &grant).await, Err(StoreError::Vanished(_))));
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
    // The claim goes with the commit, by token.
    let grant = home.claim(102, 103).await;
    home.intent(block(102, 0), at.hash, 1).await;
    let commit = BlockCommit { block: block(102, 0), epoch, filter_version: 0, digest: digest(block(102, 0), 0..1) };
    home.store.commit(commit, Track::Realtime, &grant).await.unwrap();
    let (below, above) = (BlockRange::single(102), BlockRange::single(103));
    assert!(!home.store.renew(&Grant { range: below, ..grant.clone() }).await.unwrap());
    assert!(home.store.renew(&Grant { range: above, ..grant }).await.unwrap());
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
    let wrong: [(&[BlockRef], &str); 6] = [
        (&[], "none"),
        (&[high], "the lower run forgotten"),
        (&[low], "the higher run forgotten"),
        (&[block(103, 1), high], "another chain below"),
        (&[low, block(111, 1)], "another chain above"),
        (&[block(102, 0), low, high], "more than the tops"),
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
    ];
    for (place, result) in results.into_iter().enumerate() {
        assert!(matches!(result, Err(StoreError::Fatal(_))), "operation {place}: {result:?}");
    }
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
