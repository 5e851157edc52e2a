//! The two homes against each other: the same random calls, replies and whole state compared after each one. This is
//! what ties the Lua scripts to the Rust rules where no scenario was thought of. `STORE_SEEDS=from..to` runs others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod support;

use std::{collections::BTreeMap, ops::Range};

use chaintap::{
    config::{Durability, SecretUrl},
    domain::{BlockRange, BlockRef, Track},
    store::{
        BlockCommit, ClaimReply, CommitReply, FinalCommit, Grant, Intent, IntentReply, JournalEntry, ReplayReply,
        SealReply, Start, StateStore, StoreError,
        embedded::Embedded,
        redis::{Identity, RedisStore},
    },
};
use support::{
    chain::{block, digest, events, parent},
    redis::RedisServer,
};

/// Heights that the calls touch; few, so that they meet.
const HEIGHTS: u64 = 30;

struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

/// One call; epochs are numbered, since each store has its own.
#[derive(Clone, Debug)]
enum Call {
    Claim(BlockRange),
    Intent { at: BlockRef, parent: alloy::primitives::B256, epoch: usize, all: Range<u64>, part: Range<u64> },
    Commit { at: BlockRef, epoch: usize, logs: u64 },
    Final { range: BlockRange, branch: u8, epoch: usize, sealed: i64, confirmed: Vec<BlockRef> },
    Seal { at: BlockRef, tops: Vec<BlockRef> },
    Replay { to: i64, epoch: usize },
    Skip { to: u64, epoch: usize },
}

/// What must be equal of a reply: texts and tokens need not be.
fn shape(reply: Result<String, StoreError>) -> String {
    reply.unwrap_or_else(|error| match error {
        StoreError::Transient(_) => "transient".into(),
        StoreError::Vanished(_) => "vanished".into(),
        StoreError::InUse(_) => "in use".into(),
        StoreError::Fatal(_) => "fatal".into(),
    })
}

/// A grant that holds no claim.
fn grant(range: BlockRange) -> Grant {
    Grant { range, token: "nobody:0".into(), epoch: 0, sealed: -1, filter_version: 0, retracting: 0, live: Vec::new() }
}

struct Side {
    store: Box<dyn StateStore>,
    epochs: Vec<u64>,
}

impl Side {
    async fn begin(store: Box<dyn StateStore>) -> Self {
        let epoch = store.init(Start::At(5)).await.unwrap().progress.epoch;
        Self { store, epochs: vec![epoch] }
    }

    async fn answer(&mut self, call: &Call) -> String {
        let epochs = self.epochs.clone();
        match call.clone() {
            Call::Claim(range) => shape(self.store.claim(range).await.map(|reply| match reply {
                ClaimReply::Granted(grant) => {
                    let epoch = epochs.iter().position(|epoch| *epoch == grant.epoch);
                    format!("granted {epoch:?} {} {:?}", grant.sealed, grant.live)
                }
                other => format!("{other:?}"),
            })),
            Call::Intent { at, parent, epoch, all, part } => {
                let events = events(at, part);
                let digest = digest(at, all);
                let intent =
                    Intent { block: at, parent, epoch: epochs[epoch], filter_version: 0, digest, events: &events };
                shape(self.store.intent(intent).await.map(|reply| match reply {
                    IntentReply::Conflict(_) => "conflict".into(),
                    IntentReply::Deep(_) => "deep".into(),
                    other => format!("{other:?}"),
                }))
            }
            Call::Commit { at, epoch, logs } => {
                let commit =
                    BlockCommit { block: at, epoch: epochs[epoch], filter_version: 0, digest: digest(at, 0..logs) };
                let grant = grant(BlockRange::single(at.number));
                shape(self.store.commit(commit, Track::Realtime, &grant).await.map(|reply| format!("{reply:?}")))
            }
            Call::Final { range, branch, epoch, sealed, confirmed } => {
                let commit = FinalCommit {
                    range,
                    epoch: epochs[epoch],
                    sealed,
                    parent: parent(range.from, branch),
                    hash: block(range.to, branch).hash,
                    confirmed,
                    filter_version: 0,
                };
                shape(self.store.commit_final(commit, Track::Historical, &grant(range)).await.map(
                    |reply| match reply {
                        CommitReply::Conflict(_) => "conflict".into(),
                        other => format!("{other:?}"),
                    },
                ))
            }
            Call::Seal { at, tops } => {
                shape(self.store.seal(at, &tops).await.map(|reply: SealReply| format!("{reply:?}")))
            }
            Call::Replay { to, epoch } => {
                let reply = self.store.replay(to, None, epochs[epoch]).await.unwrap();
                self.replayed(reply)
            }
            Call::Skip { to, epoch } => {
                let reply = self.store.skip(to, epochs[epoch]).await.unwrap();
                self.replayed(reply)
            }
        }
    }

    fn replayed(&mut self, reply: ReplayReply) -> String {
        let ReplayReply::Done(progress) = reply else { return "stale".into() };
        if self.epochs.last() != Some(&progress.epoch) {
            assert!(self.epochs.last() < Some(&progress.epoch), "epochs only grow");
            self.epochs.push(progress.epoch);
        }
        format!("{} {} {}", progress.watermark, progress.tip, progress.sealed)
    }

    async fn journal(&self) -> Vec<JournalEntry> {
        self.store.journal(u64::MAX).await.unwrap()
    }

    /// Everything, with epochs by number.
    async fn state(&self) -> String {
        let snapshot = self.store.snapshot().await.unwrap();
        let number = |epoch| self.epochs.iter().position(|known| *known == epoch);
        let mut lines = vec![format!(
            "watermark {} tip {} sealed {} {:?} epoch {:?} done {:?}",
            snapshot.progress.watermark,
            snapshot.progress.tip,
            snapshot.progress.sealed,
            snapshot.progress.sealed_hash,
            number(snapshot.progress.epoch),
            snapshot.done.iter().collect::<Vec<_>>()
        )];
        for entry in self.journal().await {
            let events = self.store.journaled(entry.block, entry.epoch).await.unwrap();
            let logs: Vec<_> = events.iter().map(|event| event.log_index).collect();
            lines.push(format!("{} {} {:?} {} {logs:?}", entry.block, entry.parent, number(entry.epoch), entry.done));
        }
        lines[1..].sort();
        lines.join("\n")
    }
}

fn runs(journal: &[JournalEntry], up_to: u64) -> Vec<BlockRef> {
    let below: Vec<_> = journal.iter().filter(|entry| entry.block.number <= up_to).collect();
    let mut tops: Vec<_> = below.iter().map(|entry| entry.block).collect();
    tops.retain(|top| !below.iter().any(|entry| entry.block.number == top.number + 1 && entry.parent == top.hash));
    tops.dedup();
    tops
}

/// The next call: mostly sensible, sometimes wrong in one respect.
async fn roll(dice: &mut Dice, side: &Side) -> Call {
    // Often where something is decided: right above the sealed height or the watermark.
    let progress = side.store.snapshot().await.unwrap().progress;
    let number = match dice.below(6) {
        0 => progress.sealed.unsigned_abs() + 1,
        1 => progress.watermark.unsigned_abs() + 1,
        _ => dice.below(HEIGHTS),
    };
    let branch = u8::from(dice.chance(8));
    let at = block(number, branch);
    let last = side.epochs.len() - 1;
    let epoch = if dice.chance(8) { usize::try_from(dice.below(side.epochs.len() as u64)).unwrap() } else { last };
    let from = number.saturating_sub(dice.below(6));
    let range = BlockRange { from, to: number };
    match dice.below(20) {
        0..=2 => Call::Claim(range),
        3..=8 => {
            let parent = if dice.chance(10) { parent(number, 1 - branch) } else { parent(number, branch) };
            let (before, logs) = (dice.below(3), dice.below(4));
            let first = if dice.chance(2) { 0 } else { before };
            Call::Intent { at, parent, epoch, all: 0..before + logs, part: first..before + logs }
        }
        9..=13 => {
            let journal = side.journal().await;
            match journal.get(usize::try_from(dice.below(1 + journal.len() as u64)).unwrap()) {
                Some(entry) => {
                    let known = side.store.journaled(entry.block, entry.epoch).await.unwrap().len() as u64;
                    let epoch = side.epochs.iter().position(|epoch| *epoch == entry.epoch).unwrap();
                    Call::Commit { at: entry.block, epoch, logs: if dice.chance(6) { dice.below(6) } else { known } }
                }
                None => Call::Commit { at, epoch, logs: 1 },
            }
        }
        14..=16 => {
            let mut confirmed: Vec<_> = side.journal().await.iter().map(|entry| entry.block).collect();
            if dice.chance(4) {
                confirmed.pop();
            }
            Call::Final { range, branch, epoch, sealed: dice.below(HEIGHTS).cast_signed() - 1, confirmed }
        }
        17 => {
            let mut tops = runs(&side.journal().await, number);
            if dice.chance(4) {
                tops.pop();
            }
            Call::Seal { at, tops }
        }
        18 if dice.chance(3) => Call::Replay { to: number.cast_signed() - 1, epoch },
        _ if dice.chance(4) => Call::Skip { to: number, epoch },
        _ => Call::Claim(range),
    }
}

/// `historical_range` from the truth, by looking at every block.
fn expected_range(watermark: i64, tip: i64, done: &[BlockRange]) -> Option<(i64, i64, u64, u64)> {
    let is_done = |n: i64| n <= watermark || done.iter().any(|range| range.contains(n.unsigned_abs()));
    let missing: Vec<i64> = (watermark + 1..=tip).filter(|n| !is_done(*n)).collect();
    let holes: Vec<&[i64]> = missing.chunk_by(|a, b| a + 1 == *b).filter(|hole| hole[0] < tip - 5).collect();
    let lowest = holes.first()?;
    let blocks = holes.iter().map(|hole| hole.len() as u64).sum();
    Some((lowest[0], *lowest.last()?, holes.len() as u64, blocks))
}

async fn check_views(server: &RedisServer, side: &Side) {
    let snapshot = side.store.snapshot().await.unwrap();
    let done: Vec<_> = snapshot.done.iter().collect();
    let (watermark, tip) = (snapshot.progress.watermark, snapshot.progress.tip);
    let shown: Vec<Option<i64>> = server.cli(0, "HMGET historical_range from to gaps missing").await;
    let expected = expected_range(watermark, tip, &done);
    let expected = expected.map_or(vec![None; 4], |(from, to, gaps, missing)| {
        vec![Some(from), Some(to), Some(gaps.cast_signed()), Some(missing.cast_signed())]
    });
    assert_eq!(shown, expected, "watermark {watermark} tip {tip} done {done:?}");
    let shown: Vec<i64> = server.cli(0, "HMGET chain:1:progress block view_w view_tip").await;
    assert_eq!(shown, [watermark, watermark, tip]);
    let block: i64 = server.cli(0, "HGET realtime_processed_block block").await;
    assert_eq!(block, tip);
    let bytes: u64 = server.cli(0, "HGET chain:1:progress journal_bytes").await;
    assert_eq!(bytes == 0, side.journal().await.is_empty(), "{bytes} bytes are counted");
}

#[tokio::test]
async fn lua_and_rust_give_the_same_answers_and_the_same_state() {
    let seeds = std::env::var("STORE_SEEDS").unwrap_or_else(|_| "0..10".into());
    let (first, last) = seeds.split_once("..").expect("STORE_SEEDS=from..to");
    let server = RedisServer::start().await;
    let url = SecretUrl::parse(&server.url(0)).unwrap();
    let mut seen = BTreeMap::<String, u32>::new();
    for seed in first.parse::<u64>().unwrap()..last.parse().unwrap() {
        let _: String = server.cli(0, "FLUSHDB").await;
        let identity = Identity { chain_id: 1, redis_db: 0, service: "test".into(), owner: "host-1".into() };
        let redis = RedisStore::connect(&url, identity, Durability::Auto).await.unwrap();
        let mut redis = Side::begin(Box::new(redis)).await;
        let mut embedded = Side::begin(Box::new(Embedded::in_memory(1, "test").unwrap())).await;
        let mut dice = Dice(seed);
        for step in 0..150 {
            let call = roll(&mut dice, &embedded).await;
            for again in 0..=usize::from(dice.chance(4)) {
                let (one, other) = (redis.answer(&call).await, embedded.answer(&call).await);
                assert_eq!(one, other, "seed {seed} step {step} again {again}: {call:?}");
                let word = |text: &str| text.split([' ', '(']).next().unwrap_or_default().to_owned();
                *seen.entry(format!("{} {}", word(&format!("{call:?}")), word(&one))).or_default() += 1;
                assert_eq!(redis.state().await, embedded.state().await, "seed {seed} step {step}: {call:?}");
                check_views(&server, &redis).await;
            }
        }
    }
    let expected = [
        "Claim Done",
        "Claim granted",
        "Commit Committed",
        "Commit Fenced",
        "Commit More",
        "Commit Stale",
        "Final Committed",
        "Final Stale",
        "Final conflict",
        "Intent Done",
        "Intent Journaled",
        "Intent More",
        "Intent Sealed",
        "Intent Stale",
        "Intent conflict",
        "Intent deep",
        "Seal Refused",
        "Seal Sealed",
    ];
    let unseen: Vec<_> = expected.iter().filter(|kind| !seen.contains_key(**kind)).collect();
    assert!(unseen.is_empty(), "the calls never led to {unseen:?}; seen: {seen:?}");
}
