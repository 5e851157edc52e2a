//! What only the shared home has: other owners, the operators' views and recipes, foreign state, barriers, outages.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod support;

use std::{collections::BTreeMap, time::Duration};

use chaintap::{
    config::{Durability, SecretUrl},
    domain::{BlockRange, Track},
    store::{
        Amend, AmendReply, BlockCommit, ClaimReply, CommitReply, DeadKind, DeadLetter, FinalCommit, Grant, Initialised,
        Intent, IntentReply, Member, Progress, Publication, PublishReply, ReplayReply, RewindReply, SealReply, Start,
        StateStore, StoreError,
        redis::{Identity, RedisStore},
    },
};
use support::{
    chain::{block, digest, events, parent},
    process::{eventually, free_port},
    redis::RedisServer,
};

fn identity(chain_id: u64, redis_db: u8, owner: &str) -> Identity {
    Identity { chain_id, redis_db, service: "ethereum_mainnet".into(), owner: owner.into() }
}

async fn connect(server: &RedisServer, owner: &str, durability: Durability) -> Result<RedisStore, StoreError> {
    let url = SecretUrl::parse(&server.url(0)).unwrap();
    RedisStore::connect(&url, identity(1, 0, owner), durability).await
}

async fn store(server: &RedisServer, owner: &str) -> RedisStore {
    connect(server, owner, Durability::Auto).await.unwrap()
}

/// A server and a store that begins after block 100.
async fn at_100() -> (RedisServer, RedisStore) {
    let server = RedisServer::start().await;
    let store = store(&server, "host-1").await;
    store.init(Start::At(101)).await.unwrap();
    (server, store)
}

async fn progress(store: &RedisStore) -> Progress {
    store.snapshot().await.unwrap().progress
}

async fn granted(store: &RedisStore, from: u64, to: u64) -> Grant {
    match store.claim(BlockRange { from, to }).await.unwrap() {
        ClaimReply::Granted(grant) => grant,
        other => panic!("{from}-{to}: {other:?}"),
    }
}

async fn intent(store: &RedisStore, number: u64) -> Result<IntentReply, StoreError> {
    let at = block(number, 0);
    let events = events(at, 0..2);
    let epoch = progress(store).await.epoch;
    let digest = digest(at, 0..2);
    store
        .intent(Intent { block: at, parent: parent(number, 0), epoch, filter_version: 0, digest, events: &events })
        .await
}

/// Claims, journals and commits one block at the head.
async fn deliver(store: &RedisStore, number: u64) -> CommitReply {
    let grant = granted(store, number, number).await;
    assert_eq!(intent(store, number).await.unwrap(), IntentReply::Journaled, "{number}");
    let at = block(number, 0);
    let commit = BlockCommit { block: at, epoch: grant.epoch, filter_version: 0, digest: digest(at, 0..2) };
    store.commit(commit, Track::Realtime).await.unwrap()
}

/// Claims and commits ranges of at most 100 blocks below the final height.
async fn fill(store: &RedisStore, from: u64, to: u64) {
    for first in (from..=to).step_by(100) {
        let last = (first + 99).min(to);
        let grant = granted(store, first, last).await;
        let commit = FinalCommit {
            range: grant.range,
            epoch: grant.epoch,
            sealed: grant.sealed,
            parent: parent(first, 0),
            hash: block(last, 0).hash,
            confirmed: grant.live.clone(),
            filter_version: 0,
        };
        let reply = store.commit_final(commit, Track::Historical).await.unwrap();
        assert!(matches!(reply, CommitReply::Committed { .. }), "{first}-{last}: {reply:?}");
    }
}

/// REWIND of these delivered blocks, as seen at this moment.
async fn rewind(store: &RedisStore, numbers: std::ops::RangeInclusive<u64>) -> RewindReply {
    let progress = progress(store).await;
    let entries: Vec<_> = numbers.map(|number| (block(number, 0), progress.epoch)).collect();
    store.rewind(&entries, progress.sealed_block(), progress.epoch).await.unwrap()
}

async fn amend(store: &RedisStore, number: u64) -> Result<AmendReply, StoreError> {
    let at = block(number, 0);
    let events = events(at, 2..3);
    store.amend(Amend { block: at, filter_version: 0, digest: digest(at, 0..3), events: &events }).await
}

async fn keys(server: &RedisServer, pattern: &str) -> Vec<String> {
    let mut keys: Vec<String> = server.cli(0, &format!("KEYS {pattern}")).await;
    keys.sort();
    keys
}

async fn hash(server: &RedisServer, key: &str) -> BTreeMap<String, String> {
    server.cli(0, &format!("HGETALL {key}")).await
}

async fn field(server: &RedisServer, key: &str, field: &str) -> Option<String> {
    server.cli(0, &format!("HGET {key} {field}")).await
}

async fn shown(server: &RedisServer) -> (Option<String>, Option<String>) {
    (field(server, "realtime_processed_block", "block").await, field(server, "chain:1:progress", "block").await)
}

/// `from..to`, gaps and missing blocks of the view, or nothing.
async fn shown_range(server: &RedisServer) -> Option<(String, String, String)> {
    let range = hash(server, "historical_range").await;
    Some((
        format!("{}..{}", range.get("from")?, range.get("to")?),
        range.get("gaps")?.clone(),
        range.get("missing")?.clone(),
    ))
}

fn range(text: &str, gaps: u64, missing: u64) -> (String, String, String) {
    (text.into(), gaps.to_string(), missing.to_string())
}

// Owners -------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn another_owners_claim_is_held_while_he_lives_and_taken_over_when_he_is_dead() {
    let (server, first) = at_100().await;
    let second = store(&server, "host-2").await;
    let grant = granted(&first, 103, 105).await;
    let held = second.claim(BlockRange { from: 101, to: 110 }).await.unwrap();
    let ClaimReply::Held { blocks, retry_after } = held else { panic!("{held:?}") };
    assert_eq!(blocks, BlockRange { from: 103, to: 105 });
    assert!(retry_after > Duration::from_secs(8) && retry_after <= Duration::from_secs(10), "{retry_after:?}");
    let claims: Vec<String> = server.cli(0, "KEYS chain:1:claim:*").await;
    assert_eq!(claims.len(), 3, "all or nothing");
    // His claim may end before his heartbeat does.
    let _: bool = server.cli(0, "PEXPIRE chain:1:claim:104 1500").await;
    let held = second.claim(BlockRange::single(104)).await.unwrap();
    assert!(
        matches!(held, ClaimReply::Held { retry_after, .. } if retry_after <= Duration::from_millis(1_500)),
        "{held:?}"
    );
    // Dead: no heartbeat.
    let _: u32 = server.cli(0, "DEL chain:1:owner:host-1").await;
    let taken = granted(&second, 101, 110).await;
    // He wakes: nothing of the other's is touched, and what he had sent he may commit all the same.
    assert!(!first.renew(&grant).await.unwrap());
    first.release(&grant).await.unwrap();
    assert!(second.renew(&taken).await.unwrap());
    assert_eq!(intent(&first, 103).await.unwrap(), IntentReply::Journaled);
    let commit = BlockCommit {
        block: block(103, 0),
        epoch: grant.epoch,
        filter_version: 0,
        digest: digest(block(103, 0), 0..2),
    };
    assert!(matches!(first.commit(commit, Track::Realtime).await.unwrap(), CommitReply::Committed { tip: 103, .. }));
    // A block that is delivered is nobody's; the other's claims of what is not are left, and he goes on.
    let claims: Vec<String> = server.cli(0, "KEYS chain:1:claim:*").await;
    assert!(claims.len() == 9 && !claims.contains(&"chain:1:claim:103".to_owned()), "{claims:?}");
    assert!(second.renew(&taken).await.unwrap());
    // Retiring gives back one's own claims only, and ends the heartbeat.
    first.heartbeat().await.unwrap();
    first.retire().await.unwrap();
    assert!(second.renew(&taken).await.unwrap());
    second.retire().await.unwrap();
    let left: Vec<String> = server.cli(0, "KEYS chain:1:claim:*").await;
    assert_eq!(left, Vec::<String>::new());
    let owners: Vec<String> = server.cli(0, "KEYS chain:1:owner:*").await;
    assert_eq!(owners, Vec::<String>::new());
}

#[tokio::test]
async fn claims_and_heartbeats_end_by_themselves() {
    let (server, store) = at_100().await;
    store.heartbeat().await.unwrap();
    granted(&store, 101, 101).await;
    let claim: i64 = server.cli(0, "PTTL chain:1:claim:101").await;
    let beat: i64 = server.cli(0, "PTTL chain:1:owner:host-1").await;
    assert!((290_000..=300_000).contains(&claim), "{claim}");
    assert!((8_000..=10_000).contains(&beat), "{beat}");
    let value: String = server.cli(0, "GET chain:1:claim:101").await;
    assert_eq!(value, "host-1:1");
}

#[tokio::test]
async fn two_replicas_that_start_together_agree_on_the_start() {
    let server = RedisServer::start().await;
    let (a, b) = (store(&server, "a").await, store(&server, "b").await);
    let (one, other) = tokio::join!(a.init(Start::Latest(1_000)), b.init(Start::Latest(1_002)));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.progress, other.progress);
    assert_ne!(one.fresh, other.fresh);
    assert!([999, 1_001].contains(&one.progress.watermark));
}

#[tokio::test]
async fn an_old_filter_and_a_frozen_chain_deliver_nothing() {
    let (server, store) = at_100().await;
    let grant = granted(&store, 101, 101).await;
    intent(&store, 101).await.unwrap();
    let _: u32 = server.cli(0, "HSET chain:1:progress filter_version 3").await;
    assert_eq!(intent(&store, 102).await.unwrap(), IntentReply::OldList);
    let at = block(101, 0);
    let commit = BlockCommit { block: at, epoch: grant.epoch, filter_version: 2, digest: digest(at, 0..2) };
    assert_eq!(store.commit(commit, Track::Realtime).await.unwrap(), CommitReply::OldList);
    let range = FinalCommit {
        range: BlockRange::single(101),
        epoch: grant.epoch,
        sealed: -1,
        parent: parent(101, 0),
        hash: at.hash,
        confirmed: Vec::new(),
        filter_version: 2,
    };
    assert_eq!(store.commit_final(range.clone(), Track::Historical).await.unwrap(), CommitReply::OldList);
    assert_eq!(granted(&store, 101, 101).await.filter_version, 3);
    let _: u32 = server.cli(0, "HSET chain:1:progress frozen deep").await;
    assert_eq!(store.claim(BlockRange::single(101)).await.unwrap(), ClaimReply::Frozen("deep".into()));
    assert_eq!(intent(&store, 102).await.unwrap(), IntentReply::Stale);
    let commit = BlockCommit { filter_version: 3, ..commit };
    assert_eq!(store.commit(commit, Track::Realtime).await.unwrap(), CommitReply::Stale);
    let range = FinalCommit { filter_version: 3, ..range };
    assert_eq!(store.commit_final(range, Track::Historical).await.unwrap(), CommitReply::Stale);
    assert_eq!(progress(&store).await.frozen.as_deref(), Some("deep"));
    let _: u32 = server.cli(0, "HDEL chain:1:progress frozen").await;
    assert!(matches!(store.commit(commit, Track::Realtime).await.unwrap(), CommitReply::Committed { .. }));
}

#[tokio::test]
async fn beyond_the_cap_of_gaps_only_what_opens_none_is_granted() {
    let (server, store) = at_100().await;
    let mut connection = server.connection(0).await;
    let mut add = redis::cmd("ZADD");
    add.arg("chain:1:done");
    for i in 0..10_000u64 {
        add.arg(1_000 + i * 2).arg(format!("{0}-{0}", 1_000 + i * 2));
    }
    let _: u32 = add.query_async(&mut connection).await.unwrap();
    let refused = store.claim(BlockRange { from: 900, to: 950 }).await;
    assert!(matches!(refused, Err(StoreError::Transient(_))), "{refused:?}");
    for (from, to) in [(101, 150), (950, 999), (1_001, 1_001), (20_999, 21_050)] {
        granted(&store, from, to).await;
    }
}

// Views and recipes -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn operators_see_what_is_delivered() {
    let (server, store) = at_100().await;
    for number in 101..=103 {
        deliver(&store, number).await;
    }
    let view = hash(&server, "realtime_processed_block").await;
    assert_eq!(
        view.iter()
            .filter(|(key, _)| *key != "updated")
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>(),
        ["block=103", "chain=1", "service=ethereum_mainnet", "type=realtime"]
    );
    let updated: u128 = view["updated"].parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    assert!(now.abs_diff(updated) < 60_000, "{updated} is milliseconds");
    let progress = hash(&server, "chain:1:progress").await;
    assert_eq!(
        (progress["block"].as_str(), progress["chain"].as_str(), progress["service"].as_str()),
        ("103", "1", "ethereum_mainnet")
    );
    assert!(hash(&server, "historical_range").await.is_empty());
    assert!(hash(&server, "historical_processed_block").await.is_empty());
    let marker: String = server.cli(0, "GET chain:1:block:102").await;
    assert_eq!(marker, format!("{}:{}", block(102, 0).hash, progress["epoch"]));
    let ttl: i64 = server.cli(0, "TTL chain:1:block:102").await;
    assert!((86_000..=86_400).contains(&ttl), "{ttl}");
    let claims: Vec<String> = server.cli(0, "KEYS chain:1:claim:*").await;
    assert!(claims.is_empty());
}

#[tokio::test]
async fn the_lowest_gap_is_shown_until_it_is_filled() {
    let (server, store) = at_100().await;
    deliver(&store, 120).await;
    assert_eq!(shown_range(&server).await, Some(range("101..119", 1, 19)));
    assert_eq!(shown(&server).await, (Some("120".into()), Some("100".into())));
    let view = hash(&server, "historical_range").await;
    assert_eq!((view["chain"].as_str(), view["service"].as_str()), ("1", "ethereum_mainnet"));
    // A few holes right below the tip are the realtime track's.
    deliver(&store, 124).await;
    assert_eq!(shown_range(&server).await, Some(range("101..119", 1, 19)));
    fill(&store, 101, 110).await;
    assert_eq!(shown_range(&server).await, Some(range("111..119", 1, 9)));
    let historical = hash(&server, "historical_processed_block").await;
    assert_eq!((historical["block"].as_str(), historical["type"].as_str()), ("110", "historical"));
    fill(&store, 114, 116).await;
    assert_eq!(shown_range(&server).await, Some(range("111..113", 2, 6)));
    fill(&store, 111, 113).await;
    assert_eq!(shown_range(&server).await, Some(range("117..119", 1, 3)));
    fill(&store, 117, 119).await;
    assert_eq!(shown_range(&server).await, None, "121..123 lie within the last five blocks");
    assert_eq!(progress(&store).await.watermark, 120);
    // As the tip moves on, what the realtime track left becomes history.
    deliver(&store, 127).await;
    assert_eq!(shown_range(&server).await, Some(range("121..123", 1, 3)));
    fill(&store, 121, 123).await;
    fill(&store, 125, 126).await;
    assert_eq!((shown_range(&server).await, progress(&store).await.watermark), (None, 127));
}

#[tokio::test]
async fn a_second_gap_does_not_hide_the_first() {
    let (server, store) = at_100().await;
    deliver(&store, 5_000).await;
    fill(&store, 101, 2_000).await;
    deliver(&store, 9_000).await;
    assert_eq!(shown_range(&server).await, Some(range("2001..4999", 2, 2_999 + 3_999)));
    fill(&store, 8_000, 8_999).await;
    assert_eq!(shown_range(&server).await, Some(range("2001..4999", 2, 2_999 + 2_999)));
    fill(&store, 2_001, 4_999).await;
    assert_eq!(shown_range(&server).await, Some(range("5001..7999", 1, 2_999)));
    fill(&store, 5_001, 7_999).await;
    assert_eq!((shown_range(&server).await, progress(&store).await.watermark), (None, 9_000));
    let markers: Vec<String> = server.cli(0, "KEYS chain:1:block:*").await;
    assert_eq!(markers.len(), 8_900, "all are among the newest 10,000");
}

#[tokio::test]
async fn markers_are_kept_near_the_tip_only() {
    let (server, store) = at_100().await;
    fill(&store, 101, 150).await;
    deliver(&store, 10_120).await;
    fill(&store, 151, 160).await;
    deliver(&store, 10_121).await;
    let count = |pattern: &'static str| {
        let server = &server;
        async move { server.cli::<Vec<String>>(0, &format!("KEYS chain:1:block:{pattern}")).await.len() }
    };
    assert_eq!(count("15?").await, 10, "151..159 are within 10,000 of 10,120, and 150 was before");
    assert_eq!(count("12[01]").await, 0, "the commit of n deletes the marker of n - 10,000");
    assert_eq!(count("1012?").await, 2);
}

/// The truth, to compare before and after.
async fn dump(server: &RedisServer) -> BTreeMap<String, BTreeMap<String, String>> {
    let keys: Vec<String> = server.cli(0, "KEYS *").await;
    let mut dump = BTreeMap::new();
    for key in keys {
        let kind: String = server.cli(0, &format!("TYPE {key}")).await;
        let value = match kind.as_str() {
            "hash" => hash(server, &key).await,
            "zset" => server.cli(0, &format!("ZRANGE {key} 0 -1 WITHSCORES")).await,
            _ => {
                let bytes: Vec<u8> = server.cli(0, &format!("GET {key}")).await;
                BTreeMap::from([(String::new(), String::from_utf8_lossy(&bytes).into_owned())])
            }
        };
        dump.insert(key, value);
    }
    dump
}

#[tokio::test]
async fn recipe_a_lowered_realtime_view_delivers_again_from_there() {
    let (server, first) = at_100().await;
    fill(&first, 101, 300).await;
    for number in 301..=310 {
        deliver(&first, number).await;
    }
    let before = progress(&first).await;
    drop(first);
    let _: u32 = server
        .cli(0, "HSET realtime_processed_block block 150 chain 1 updated 1758649000000 service ethereum_mainnet type realtime")
        .await;
    let _: u32 = server.cli(0, "DEL historical_processed_block historical_range").await;
    let store = store(&server, "host-1b").await;
    let Initialised { progress: after, fresh, edits } = store.init(Start::Latest(999)).await.unwrap();
    assert!(!fresh);
    assert_eq!((after.watermark, after.tip), (150, 150));
    assert!(after.epoch > before.epoch, "the same ids need higher versions");
    assert!(edits.len() == 1 && edits[0].contains("151"), "{edits:?}");
    assert_eq!(shown(&server).await, (Some("150".into()), Some("150".into())));
    let above: Vec<String> = server.cli(0, "KEYS chain:1:block:3??").await;
    assert!(above.is_empty(), "markers above are gone: {above:?}");
    // The edit is applied once.
    let again = store.init(Start::Latest(999)).await.unwrap();
    assert_eq!((again.progress, again.edits), (after.clone(), Vec::new()));
    // The same blocks go out again, head first.
    let reply = deliver(&store, 310).await;
    assert_eq!(reply, CommitReply::Committed { watermark: 150, tip: 310, edited: false });
    assert_eq!(shown_range(&server).await, Some(range("151..309", 1, 159)));
    fill(&store, 151, 309).await;
    assert_eq!(progress(&store).await.watermark, 310);
}

#[tokio::test]
async fn recipe_a_lowered_watermark_delivers_again_from_there() {
    let (server, first) = at_100().await;
    fill(&first, 101, 300).await;
    let before = progress(&first).await;
    let _: u32 = server.cli(0, "HSET chain:1:progress block 250 chain 1 updated 1758649000000 service other").await;
    let after = store(&server, "host-2").await.init(Start::Latest(999)).await.unwrap();
    assert_eq!((after.progress.watermark, after.progress.tip, after.fresh), (250, 250, false));
    assert!(after.progress.epoch > before.epoch);
    assert_eq!(shown(&server).await, (Some("250".into()), Some("250".into())));
    assert_eq!(field(&server, "chain:1:progress", "service").await.as_deref(), Some("ethereum_mainnet"));
    // A replica that was running meanwhile notices at once.
    let grant = granted(&first, 251, 251).await;
    assert_eq!(grant.epoch, after.progress.epoch);
    // Both lowered: the lowest wins.
    let _: u32 = server.cli(0, "HSET chain:1:progress block 240").await;
    let _: u32 = server.cli(0, "HSET realtime_processed_block block 230").await;
    let after = first.init(Start::Latest(999)).await.unwrap();
    assert_eq!((after.progress.watermark, after.edits.len()), (230, 2));
}

#[tokio::test]
async fn recipe_views_on_an_empty_database_say_where_to_begin() {
    let cases: [(&[&str], i64); 7] = [
        (&["HSET chain:1:progress block 18500000 chain 1 updated 1758649000000 service ethereum_mainnet"], 18_500_000),
        (&["HSET realtime_processed_block block 35500000 chain 1 updated 1 service s type realtime"], 35_500_000),
        // The first system, stopped in the middle of a gap.
        (
            &[
                "HSET realtime_processed_block block 500 chain 1 service s type realtime",
                "HSET historical_range from 300 to 400 chain 1 service s",
                "HSET historical_processed_block block 350 chain 1 service s type historical",
            ],
            299,
        ),
        (
            &[
                "HSET realtime_processed_block block 500 chain 1 service s type realtime",
                "HSET historical_processed_block block 350 chain 1 service s type historical",
            ],
            500,
        ),
        (&["HSET realtime_processed_block block 500 chain 1", "HSET chain:1:progress block 480 chain 1"], 480),
        // The lowest of all, whichever it is.
        (
            &[
                "HSET realtime_processed_block block 500 chain 1 service s type realtime",
                "HSET historical_range from 300 to 400 chain 1 service s",
                "HSET historical_processed_block block 250 chain 1 service s type historical",
            ],
            250,
        ),
        (
            &[
                "HSET realtime_processed_block block 200 chain 1 service s type realtime",
                "HSET historical_range from 300 to 400 chain 1 service s",
                "HSET historical_processed_block block 350 chain 1 service s type historical",
            ],
            200,
        ),
    ];
    for (commands, expected) in cases {
        let server = RedisServer::start().await;
        for command in commands {
            let _: u32 = server.cli(0, command).await;
        }
        let begun = store(&server, "host-1").await.init(Start::At(7)).await.unwrap();
        assert_eq!(
            (begun.progress.watermark, begun.progress.tip, begun.fresh),
            (expected, expected, true),
            "{commands:?}"
        );
        assert_eq!(begun.edits.len(), 1, "{:?}", begun.edits);
        assert_eq!(shown(&server).await, (Some(expected.to_string()), Some(expected.to_string())));
        assert!(hash(&server, "historical_range").await.is_empty());
    }
}

#[tokio::test]
async fn recipe_a_flushed_database_starts_clean_with_higher_versions() {
    let (server, store) = at_100().await;
    deliver(&store, 101).await;
    let before = progress(&store).await;
    let _: String = server.cli(0, "FLUSHDB").await;
    // While running it is a disaster, not a start.
    assert!(matches!(store.snapshot().await, Err(StoreError::Vanished(_))));
    assert!(matches!(store.claim(BlockRange::single(102)).await, Err(StoreError::Vanished(_))));
    assert!(matches!(store.heartbeat().await, Err(StoreError::Vanished(_))));
    let keys: Vec<String> = server.cli(0, "KEYS *").await;
    assert!(keys.is_empty(), "nothing is written into the emptiness: {keys:?}");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let after = store.init(Start::Latest(900)).await.unwrap();
    assert!(after.fresh && after.progress.epoch > before.epoch);
    assert_eq!(after.progress.watermark, 899);
}

#[tokio::test]
async fn a_raised_view_is_refused_with_the_command_that_skips() {
    for (key, watermark) in [("realtime_processed_block", 101), ("chain:1:progress", 101)] {
        let (server, store) = at_100().await;
        deliver(&store, 101).await;
        let _: u32 = server.cli(0, &format!("HSET {key} block 200")).await;
        let before = dump(&server).await;
        let error = store.init(Start::Latest(999)).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Fatal(text) if text.contains("chaintap skip --to 200") && text.contains(key)),
            "{error}"
        );
        assert_eq!(dump(&server).await, before, "nothing is written");
        assert_eq!(progress(&store).await.watermark, watermark);
        // Skipped knowingly, it starts.
        let ReplayReply::Done(skipped) = store.skip(200, progress(&store).await.epoch).await.unwrap() else { panic!() };
        assert_eq!((skipped.watermark, skipped.tip), (200, 200));
        assert!(store.init(Start::Latest(999)).await.unwrap().edits.is_empty());
    }
}

#[tokio::test]
async fn an_edit_while_running_is_left_and_reported_until_the_next_start() {
    let (server, store) = at_100().await;
    for number in 101..=105 {
        deliver(&store, number).await;
    }
    let _: u32 = server.cli(0, "HSET realtime_processed_block block 102").await;
    assert_eq!(deliver(&store, 106).await, CommitReply::Committed { watermark: 106, tip: 106, edited: true });
    assert_eq!(shown(&server).await, (Some("102".into()), Some("106".into())));
    assert_eq!(deliver(&store, 107).await, CommitReply::Committed { watermark: 107, tip: 107, edited: true });
    let applied = store.init(Start::Latest(999)).await.unwrap();
    assert_eq!((applied.progress.watermark, applied.edits.len()), (102, 1));
    assert_eq!(deliver(&store, 103).await, CommitReply::Committed { watermark: 103, tip: 103, edited: false });
}

#[tokio::test]
async fn a_deleted_view_is_written_again_and_never_read_as_zero() {
    let (server, store) = at_100().await;
    deliver(&store, 101).await;
    let _: u32 = server.cli(0, "DEL realtime_processed_block").await;
    let _: u32 = server.cli(0, "HDEL chain:1:progress block").await;
    assert_eq!(deliver(&store, 102).await, CommitReply::Committed { watermark: 102, tip: 102, edited: false });
    assert_eq!(shown(&server).await, (Some("102".into()), Some("102".into())));
    let _: u32 = server.cli(0, "DEL realtime_processed_block").await;
    let opened = store.init(Start::Latest(999)).await.unwrap();
    assert_eq!((opened.progress.watermark, opened.edits.len()), (102, 0));
    assert_eq!(shown(&server).await, (Some("102".into()), Some("102".into())));
}

#[tokio::test]
async fn what_is_no_number_is_refused_by_name() {
    for value in ["abc", "1e3", "-5", "9007199254740993", "12.5"] {
        let (server, store) = at_100().await;
        let _: u32 = server.cli(0, &format!("HSET realtime_processed_block block {value}")).await;
        let error = store.init(Start::Latest(9)).await.unwrap_err().to_string();
        assert!(error.contains("realtime_processed_block.block") && error.contains(value), "{error}");
    }
}

// Foreign state --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn another_chains_database_is_refused_and_left_as_it_is() {
    for command in [
        "HSET realtime_processed_block block 5 chain 8453",
        "HSET historical_range from 5 to 9 chain 8453",
        "HSET chain:1:progress block 5 chain 8453",
        "HSET chain:8453:progress schema 1 chain 8453 watermark 5",
    ] {
        let server = RedisServer::start().await;
        let _: u32 = server.cli(0, command).await;
        let before = dump(&server).await;
        let error = store(&server, "host-1").await.init(Start::At(1)).await.unwrap_err();
        assert!(matches!(&error, StoreError::Fatal(text) if text.contains("8453")), "{command}: {error}");
        assert_eq!(dump(&server).await, before, "{command}");
    }
}

#[tokio::test]
async fn a_key_of_another_type_is_named_and_nothing_is_half_done() {
    for (command, key) in [
        ("SET realtime_processed_block 5", "realtime_processed_block"),
        ("SET chain:1:done x", "chain:1:done"),
        ("RPUSH chain:1:journal x", "chain:1:journal"),
    ] {
        let server = RedisServer::start().await;
        let _: redis::Value = server.cli(0, command).await;
        let error = store(&server, "host-1").await.init(Start::At(1)).await.unwrap_err();
        assert!(matches!(&error, StoreError::Fatal(text) if text.contains(key)), "{error}");
        let keys: Vec<String> = server.cli(0, "KEYS *").await;
        assert_eq!(keys, [key]);
    }
}

#[tokio::test]
async fn another_schema_is_refused() {
    let (server, store) = at_100().await;
    let _: u32 = server.cli(0, "HSET chain:1:progress schema 2").await;
    let error = store.init(Start::At(1)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Fatal(text) if text.contains("schema 2")), "{error}");
}

#[tokio::test]
async fn each_chain_has_its_own_database() {
    let server = RedisServer::start().await;
    let url = SecretUrl::parse(&format!("redis://127.0.0.1:{}", server.port)).unwrap();
    let base = RedisStore::connect(&url, identity(8453, 1, "host-1"), Durability::Auto).await.unwrap();
    let ethereum = RedisStore::connect(&url, identity(1, 0, "host-1"), Durability::Auto).await.unwrap();
    base.init(Start::At(51)).await.unwrap();
    ethereum.init(Start::At(11)).await.unwrap();
    assert_eq!((progress(&base).await.watermark, progress(&ethereum).await.watermark), (50, 10));
    let block: String = server.cli(1, "HGET chain:8453:progress block").await;
    assert_eq!(block, "50");
    let refused = RedisStore::connect(&url, identity(777, 16, "host-1"), Durability::Auto).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Fatal(text) if text.contains("databases") && text.contains("17")),
        "{refused}"
    );
    let other = SecretUrl::parse(&server.url(3)).unwrap();
    let refused = RedisStore::connect(&other, identity(8453, 1, "host-1"), Durability::Auto).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Fatal(text) if text.contains("database 3")), "{refused}");
}

#[tokio::test]
async fn a_server_that_may_lose_state_is_refused() {
    let evicting = RedisServer::start_with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let error = connect(&evicting, "a", Durability::Auto).await.unwrap_err();
    assert!(matches!(&error, StoreError::Fatal(text) if text.contains("allkeys-lru")), "{error}");
    let bus = free_port().to_string();
    let cluster = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus]).await;
    let error = connect(&cluster, "a", Durability::Auto).await.unwrap_err();
    assert!(matches!(&error, StoreError::Fatal(text) if text.contains("cluster")), "{error}");
    let locked = RedisServer::start().await;
    let _: String = locked.cli(0, "ACL SETUSER app on >right-password ~* +@all").await;
    let url = format!("redis://app:wrong-password@127.0.0.1:{}/0", locked.port);
    let url = SecretUrl::parse(&url).unwrap();
    let error = RedisStore::connect(&url, identity(1, 0, "a"), Durability::Auto).await.unwrap_err();
    assert!(matches!(&error, StoreError::Fatal(text) if text.contains("password")), "{error}");
    assert!(!error.to_string().contains("wrong-password"), "{error}");
}

// Reorganisations ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn of_two_replicas_that_see_an_orphan_one_takes_it_back() {
    let (server, first) = at_100().await;
    let second = store(&server, "host-2").await;
    for number in 101..=104 {
        deliver(&first, number).await;
    }
    let before = progress(&first).await;
    let (one, other) = tokio::join!(rewind(&first, 103..=104), rewind(&second, 103..=104));
    let mut replies = [one, other];
    replies.sort_by_key(|reply| matches!(reply, RewindReply::Stale));
    let [RewindReply::Rewound(after), RewindReply::Stale] = replies else { panic!("{replies:?}") };
    assert_eq!((progress(&second).await, after.retracting), (after.clone(), 2));
    assert!(after.epoch > before.epoch);
    assert_eq!(first.orphans().await.unwrap(), second.orphans().await.unwrap());
}

#[tokio::test]
async fn a_rewind_shows_operators_the_lower_tip_and_frees_the_claims_of_what_is_gone() {
    let (server, store) = at_100().await;
    for number in 101..=103 {
        deliver(&store, number).await;
    }
    deliver(&store, 120).await;
    deliver(&store, 121).await;
    let held = granted(&store, 122, 122).await;
    assert_eq!(intent(&store, 122).await.unwrap(), IntentReply::Journaled);
    assert!(matches!(rewind(&store, 121..=122).await, RewindReply::Rewound(_)));
    assert_eq!(shown(&server).await, (Some("120".into()), Some("103".into())));
    assert_eq!(shown_range(&server).await, Some(range("104..119", 1, 16)));
    assert!(!store.renew(&held).await.unwrap(), "its holder sends of a block that is gone");
    let markers = keys(&server, "chain:1:block:*").await;
    assert_eq!(markers, [101, 102, 103, 120].map(|number| format!("chain:1:block:{number}")));
    // The highest block goes, and nothing above the watermark stays.
    assert!(matches!(store.rewind(&[], None, 1).await.unwrap(), RewindReply::Stale));
    let first = progress(&store).await;
    let journal = store.journal(u64::MAX).await.unwrap();
    let last = journal.last().unwrap();
    store.rewind(&[(last.block, last.epoch)], None, first.epoch).await.unwrap();
    assert_eq!(shown(&server).await, (Some("103".into()), Some("103".into())));
    assert_eq!(shown_range(&server).await, None);
    // Retracted, they leave nothing behind.
    for orphan in store.orphans().await.unwrap() {
        store.retracted(orphan).await.unwrap();
    }
    assert_eq!(store.seal(block(103, 0), &[block(103, 0)]).await.unwrap(), SealReply::Sealed { more: false });
    assert_eq!(field(&server, "chain:1:progress", "journal_bytes").await.as_deref(), Some("0"));
    assert_eq!(keys(&server, "chain:1:journal*").await, Vec::<String>::new());
    assert_eq!(keys(&server, "chain:1:retracting").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_rewind_leaves_an_edited_view_for_the_next_start() {
    let (server, store) = at_100().await;
    for number in 101..=105 {
        deliver(&store, number).await;
    }
    let _: u32 = server.cli(0, "HSET realtime_processed_block block 102").await;
    let RewindReply::Rewound(after) = rewind(&store, 104..=105).await else { panic!() };
    assert_eq!((after.watermark, shown(&server).await), (103, (Some("102".into()), Some("103".into()))));
    let opened = store.init(Start::Expected).await.unwrap();
    assert_eq!((opened.progress.watermark, opened.edits.len(), opened.progress.retracting), (102, 1, 2));
}

/// A REWIND raises the epoch, so only a store that went back could ask this.
#[tokio::test]
async fn no_intent_joins_an_entry_that_is_being_taken_back() {
    let (server, store) = at_100().await;
    deliver(&store, 101).await;
    let before = progress(&store).await;
    assert!(matches!(rewind(&store, 101..=101).await, RewindReply::Rewound(_)));
    let _: u32 = server.cli(0, &format!("HSET chain:1:progress epoch {}", before.epoch)).await;
    assert_eq!(intent(&store, 101).await.unwrap(), IntentReply::Stale);
}

/// More orphans than one answer holds come in turns, lowest first; and a whole journal is taken back in one step.
#[tokio::test]
async fn a_long_reorganisation_is_drained_in_turns() {
    let (server, store) = at_100().await;
    for number in 101..=350 {
        deliver(&store, number).await;
    }
    let begun = std::time::Instant::now();
    let RewindReply::Rewound(after) = rewind(&store, 101..=350).await else { panic!() };
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!((after.watermark, after.tip, after.retracting), (100, 100, 250));
    let mut drained = Vec::new();
    loop {
        let orphans = store.orphans().await.unwrap();
        assert!(orphans.len() <= 100);
        if orphans.is_empty() {
            break;
        }
        for orphan in orphans {
            drained.push(orphan.block.number);
            store.retracted(orphan).await.unwrap();
        }
    }
    assert!(drained.iter().copied().eq(101..=350), "{drained:?}");
    assert_eq!(keys(&server, "chain:1:journal*").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_halt_is_seen_by_every_replica_and_outlives_a_start() {
    let (server, first) = at_100().await;
    let second = store(&server, "host-2").await;
    deliver(&first, 101).await;
    first.seal(block(101, 0), &[block(101, 0)]).await.unwrap();
    let epoch = progress(&first).await.epoch;
    let reply = first.rewind(&[], Some(block(101, 1)), epoch).await.unwrap();
    let RewindReply::Deep(reason) = reply else { panic!("{reply:?}") };
    assert_eq!(second.claim(BlockRange::single(102)).await.unwrap(), ClaimReply::Frozen(reason.clone()));
    assert_eq!(second.init(Start::Expected).await.unwrap().progress.frozen, Some(reason));
    let resumed = second.resume(block(101, 1), epoch).await.unwrap();
    assert!(matches!(resumed, ReplayReply::Done(_)), "{resumed:?}");
    assert_eq!(field(&server, "chain:1:progress", "frozen").await, None);
    assert_eq!(granted(&first, 102, 102).await.epoch, progress(&second).await.epoch);
}

// Re-scans ---------------------------------------------------------------------------------------------------------------

/// Delivers 101 to 105, publishes the first filter and lets three members join with starts of their own.
async fn three_duties(store: &RedisStore) {
    fill(store, 101, 105).await;
    let publish = async |version, added: &[Member]| {
        store.publish(Publication { version, added, removed: &[], checked: None }).await.unwrap()
    };
    assert_eq!(publish(0, &[]).await, PublishReply::Published(1));
    let members =
        ["c", "a", "b"].map(|key| Member { key: key.into(), from: Some(101 + u64::from(key.as_bytes()[0] - b'a')) });
    assert_eq!(publish(1, &members).await, PublishReply::Published(2));
}

async fn duty(store: &RedisStore) -> Option<(u64, String)> {
    let duty = store.duty().await.unwrap()?;
    Some((duty.range.from, duty.members.concat()))
}

#[tokio::test]
async fn each_replica_has_a_duty_of_its_own_and_a_dead_ones_is_taken_over() {
    let (server, first) = at_100().await;
    let (second, third) = (store(&server, "host-2").await, store(&server, "host-3").await);
    three_duties(&first).await;
    let lowest = Some((101, "a".to_owned()));
    for _ in 0..2 {
        assert_eq!(duty(&first).await, lowest);
        assert_eq!(duty(&second).await, Some((102, "b".into())));
    }
    // Dead: no heartbeat. Who has one of his own keeps it.
    let _: u32 = server.cli(0, "DEL chain:1:owner:host-1").await;
    assert_eq!(duty(&second).await, Some((102, "b".into())));
    assert_eq!(duty(&third).await, lowest);
    assert_eq!(duty(&first).await, Some((103, "c".into())), "he wakes and finds his taken");
    // Retiring gives it back.
    third.retire().await.unwrap();
    let fourth = store(&server, "host-4").await;
    assert_eq!(duty(&fourth).await, lowest);
    assert_eq!(duty(&third).await, None, "all are taken");
    // What anyone says was scanned was scanned.
    let scanned = fourth.duty().await.unwrap().unwrap().id;
    second.scanned(scanned, 105).await.unwrap();
    assert_eq!(duty(&fourth).await, None);
    for store in [&first, &second] {
        let duty = store.duty().await.unwrap().unwrap();
        store.scanned(duty.id, duty.range.to).await.unwrap();
        assert_eq!(store.duty().await.unwrap(), None);
    }
    assert_eq!(keys(&server, "chain:1:rescan*").await, Vec::<String>::new());
}

#[tokio::test]
async fn of_two_replicas_that_publish_one_wins() {
    let (server, first) = at_100().await;
    let second = store(&server, "host-2").await;
    let publish = async |store: &RedisStore, key: &str| {
        let added = [Member { key: key.into(), from: None }];
        store.publish(Publication { version: 0, added: &added, removed: &[], checked: None }).await.unwrap()
    };
    let (one, other) = tokio::join!(publish(&first, "a"), publish(&second, "b"));
    let winner = if one == PublishReply::Stale { "b" } else { "a" };
    assert!([&one, &other].contains(&&PublishReply::Stale) && [&one, &other].contains(&&PublishReply::Published(1)));
    assert!(second.published().await.unwrap().members.iter().eq([winner]));
}

#[tokio::test]
async fn a_wipe_takes_what_is_the_chains_and_nothing_else() {
    let (server, store) = at_100().await;
    three_duties(&store).await;
    store.duty().await.unwrap();
    granted(&store, 400, 499).await;
    let letter = DeadLetter {
        key: "a".into(),
        kind: DeadKind::Undecodable,
        reason: String::new(),
        handler: String::new(),
        block_number: 1,
        block_hash: block(1, 0).hash,
        body: String::new(),
        buried_at: 1,
    };
    store.bury(&[letter]).await.unwrap();
    store.learn("node.example", "x").await.unwrap();
    let mut add = redis::cmd("MSET");
    for number in 0..5_000 {
        add.arg(format!("chain:1:block:{}", 1_000_000 + number)).arg("x");
    }
    let _: String = add.query_async(&mut server.connection(0).await).await.unwrap();
    let _: String = server.cli(0, "SET application:cache x").await;
    let _: u32 = server.cli(0, "HSET chain:10:notes x y").await;
    let _: u32 = server.cli(0, "HSET historical_processed_block chain 8453 block 7").await;
    store.wipe().await.unwrap();
    assert_eq!(keys(&server, "*").await, ["application:cache", "chain:10:notes", "historical_processed_block"]);
    assert!(matches!(store.heartbeat().await, Err(StoreError::Vanished(_))));
    store.retire().await.unwrap();
    store.wipe().await.unwrap();
    assert_eq!(keys(&server, "*").await.len(), 3);
}

// Barriers and outages ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_intent_waits_for_the_replica_and_is_unknown_without_it() {
    let primary = RedisServer::start().await;
    let port = primary.port.to_string();
    let mut replica = RedisServer::start_with(&["--replicaof", &format!("127.0.0.1 {port}")]).await;
    eventually("the replica is connected", Duration::from_secs(20), || async {
        primary.cli::<String>(0, "INFO replication").await.contains("state=online")
    })
    .await;
    let required = connect(&primary, "host-1", Durability::Required).await.unwrap();
    required.init(Start::At(101)).await.unwrap();
    assert_eq!(required.durability(), "WAIT 1");
    assert_eq!(deliver(&required, 101).await, CommitReply::Committed { watermark: 101, tip: 101, edited: false });
    // What was vouched for is on the replica.
    let entries: u32 = replica.cli(0, "HLEN chain:1:journal").await;
    assert_eq!(entries, 1);
    let _: String = primary.cli(0, "SCRIPT FLUSH").await;
    assert_eq!(intent(&required, 102).await.unwrap(), IntentReply::Journaled, "NOSCRIPT in a barrier");
    let auto = store(&primary, "host-2").await;
    assert_eq!(auto.durability(), "WAIT 1");

    // A replica is no place to write.
    let error = connect(&replica, "host-3", Durability::Auto).await.unwrap_err();
    assert!(matches!(&error, StoreError::Transient(text) if text.contains("slave")), "{error}");

    replica.kill().await;
    eventually("the replica is gone", Duration::from_secs(20), || async {
        primary.cli::<String>(0, "INFO replication").await.contains("connected_slaves:0")
    })
    .await;
    let unknown = intent(&required, 103).await;
    assert!(matches!(&unknown, Err(StoreError::Transient(text)) if text.contains("0 of 1")), "{unknown:?}");
    // Nor is anything taken back, or amended, that the next primary may not know of.
    assert!(matches!(rewind(&required, 102..=102).await, RewindReply::Rewound(_)));
    let unknown = required.orphans().await;
    assert!(matches!(&unknown, Err(StoreError::Transient(text)) if text.contains("0 of 1")), "{unknown:?}");
    let unknown = amend(&required, 101).await;
    assert!(matches!(&unknown, Err(StoreError::Transient(text)) if text.contains("0 of 1")), "{unknown:?}");
    // Required stays required; auto asks of those that are there.
    required.heartbeat().await.unwrap();
    assert!(intent(&required, 103).await.is_err());
    assert!(intent(&auto, 103).await.is_err());
    assert_eq!(auto.weakness(), None);
    auto.heartbeat().await.unwrap();
    assert_eq!(auto.durability(), "one host, no append-only file, no replica");
    assert!(auto.weakness().unwrap().contains("set appendonly yes, or connect a replica"));
    let _: String = primary.cli(0, "CONFIG SET appendonly yes").await;
    auto.heartbeat().await.unwrap();
    assert_eq!((auto.durability().as_str(), auto.weakness()), ("one host", None));
    assert_eq!(intent(&auto, 103).await.unwrap(), IntentReply::Journaled);
    replica.restart().await;
    eventually("the replica is back", Duration::from_secs(20), || async {
        required.heartbeat().await.unwrap();
        intent(&required, 103).await.is_ok()
    })
    .await;
    let orphans = required.orphans().await.unwrap();
    assert_eq!(orphans.iter().map(|orphan| orphan.block).collect::<Vec<_>>(), [block(102, 0)]);
    let kept: u32 = replica.cli(0, "ZCARD chain:1:retracting").await;
    assert_eq!(kept, 1, "what was vouched for is on the replica");
}

#[tokio::test]
async fn a_required_barrier_is_waitaof_where_there_is_no_replica() {
    let disk = RedisServer::start_8_2(&["--appendonly", "yes", "--appendfsync", "everysec"]).await;
    let store = connect(&disk, "host-1", Durability::Required).await.unwrap();
    assert_eq!(store.durability(), "WAITAOF 1");
    store.init(Start::At(101)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(intent(&store, 101).await.unwrap(), IntentReply::Journaled);
    }
    let auto = connect(&disk, "host-1", Durability::Auto).await.unwrap();
    assert_eq!(auto.durability(), "one host");
    assert_eq!(auto.weakness(), None);
    let none = connect(&disk, "host-1", Durability::None).await.unwrap();
    assert_eq!(none.durability(), "no barrier");
    assert!(none.weakness().unwrap().contains("development"));
    assert_eq!(intent(&none, 102).await.unwrap(), IntentReply::Journaled);

    let always = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    assert_eq!(connect(&always, "a", Durability::Required).await.unwrap().durability(), "appendfsync always");
    let nothing = RedisServer::start().await;
    let error = connect(&nothing, "a", Durability::Required).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Fatal(text) if text.contains("replica") && text.contains("appendonly")),
        "{error}"
    );
}

#[tokio::test]
async fn every_barrier_is_a_write_so_that_a_wait_vouches_for_it() {
    let (server, store) = at_100().await;
    for expected in 0..3 {
        intent(&store, 101).await.unwrap();
        // Also where there is nothing to take back, and nothing to amend.
        assert_eq!(store.orphans().await.unwrap(), []);
        assert_eq!(amend(&store, 150).await.unwrap(), AmendReply::Missing);
        assert_eq!(field(&server, "chain:1:progress", "barrier").await, Some((3 * expected + 3).to_string()));
    }
}

#[tokio::test]
async fn flushed_scripts_are_loaded_again() {
    let (server, store) = at_100().await;
    deliver(&store, 101).await;
    let _: String = server.cli(0, "SCRIPT FLUSH").await;
    deliver(&store, 102).await;
    assert_eq!(store.seal(block(102, 0), &[block(102, 0)]).await.unwrap(), SealReply::Sealed { more: false });
    assert_eq!(progress(&store).await.watermark, 102);
}

#[tokio::test]
async fn an_outage_is_transient_and_passes_without_a_restart() {
    let mut server = RedisServer::start_with(&["--appendonly", "yes"]).await;
    let store = store(&server, "host-1").await;
    store.init(Start::At(101)).await.unwrap();
    deliver(&store, 101).await;
    server.kill().await;
    for _ in 0..3 {
        let error = store.claim(BlockRange::single(102)).await.unwrap_err();
        assert!(matches!(error, StoreError::Transient(_)), "{error}");
    }
    assert!(matches!(connect(&server, "host-2", Durability::Auto).await, Err(StoreError::Transient(_))));
    server.restart().await;
    eventually("the store answers again", Duration::from_secs(5), || async { store.heartbeat().await.is_ok() }).await;
    deliver(&store, 102).await;
    assert_eq!(progress(&store).await.watermark, 102);
}

#[tokio::test]
async fn a_demoted_primary_is_left() {
    let (server, store) = at_100().await;
    // The new primary cannot be reached yet, so the old one keeps its data, and reads still work there.
    let _: String = server.cli(0, &format!("REPLICAOF 127.0.0.1 {}", free_port())).await;
    for _ in 0..2 {
        let error = store.claim(BlockRange::single(101)).await.unwrap_err();
        assert!(matches!(error, StoreError::Transient(_)), "{error}");
    }
    let _: String = server.cli(0, "REPLICAOF NO ONE").await;
    granted(&store, 101, 101).await;
}

#[tokio::test]
async fn a_replica_that_is_empty_is_not_taken_for_vanished_state() {
    let (server, store) = at_100().await;
    let empty = RedisServer::start().await;
    let _: String = server.cli(0, &format!("REPLICAOF 127.0.0.1 {}", empty.port)).await;
    eventually("the demoted server has followed", Duration::from_secs(20), || async {
        let keys: redis::RedisResult<u32> = redis::cmd("DBSIZE").query_async(&mut server.connection(0).await).await;
        keys == Ok(0)
    })
    .await;
    let error = store.snapshot().await.unwrap_err();
    assert!(matches!(error, StoreError::Transient(_)), "{error}");
}

#[tokio::test]
async fn a_full_server_is_transient() {
    let (server, store) = at_100().await;
    let _: String = server.cli(0, "CONFIG SET maxmemory 1").await;
    let error = store.claim(BlockRange::single(101)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Transient(text) if text.contains("OOM")), "{error}");
    let _: String = server.cli(0, "CONFIG SET maxmemory 0").await;
    granted(&store, 101, 101).await;
}

#[tokio::test]
async fn a_lost_part_of_the_journal_is_not_read_as_an_empty_one() {
    let (server, store) = at_100().await;
    intent(&store, 101).await.unwrap();
    let epoch = progress(&store).await.epoch;
    let _: u32 = server.cli(0, &format!("DEL chain:1:journal:101:{}:{epoch}:0", block(101, 0).hash)).await;
    assert!(matches!(store.journaled(block(101, 0), epoch).await, Err(StoreError::Vanished(_))));
}

#[tokio::test]
async fn a_full_journal_begins_no_new_entry_but_finishes_what_is_begun() {
    let (server, store) = at_100().await;
    intent(&store, 101).await.unwrap();
    let bytes: u64 = field(&server, "chain:1:progress", "journal_bytes").await.unwrap().parse().unwrap();
    assert!(bytes > 100);
    let _: u32 = server.cli(0, &format!("HSET chain:1:progress journal_bytes {}", 32 << 20)).await;
    let full = intent(&store, 102).await;
    assert!(matches!(&full, Ok(IntentReply::Full(text)) if text.contains("journal")), "{full:?}");
    assert_eq!(intent(&store, 101).await.unwrap(), IntentReply::Journaled);
    let _: u32 = server.cli(0, &format!("HSET chain:1:progress journal_bytes {bytes}")).await;
    deliver(&store, 101).await;
    assert_eq!(store.seal(block(101, 0), &[block(101, 0)]).await.unwrap(), SealReply::Sealed { more: false });
    assert_eq!(
        field(&server, "chain:1:progress", "journal_bytes").await.as_deref(),
        Some("0"),
        "sealing gives the room back"
    );
    let left: Vec<String> = server.cli(0, "KEYS chain:1:journal*").await;
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_number_that_was_overwritten_with_a_word_is_told_once_and_not_asked_again() {
    let (server, store) = at_100().await;
    let _: u32 = server.cli(0, "HSET chain:1:progress watermark abc").await;
    for error in [store.snapshot().await.map(drop), store.init(Start::Latest(999)).await.map(drop)] {
        let error = error.unwrap_err();
        let told = "a key of the chain was changed by hand or by another version";
        assert!(matches!(&error, StoreError::Fatal(text) if text.contains(told)), "{error}");
    }
}
