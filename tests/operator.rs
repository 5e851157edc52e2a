//! What operators of a deployment rely on (contract §3, §4): gaps as Redis shows them, the recipes by hand, several
//! chains on one server, and which blocks are delivered at all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "what fails here fails the test")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use chaintap::devchain::Options;
use serde_json::Value;
use support::{
    chaintap::{Listener, Settings, blocks, ids},
    devchain::{Devchain, still},
    process::eventually,
    puppet::Puppet,
    redis::{Fields, Hashes, RedisServer},
};

const SOON: Duration = Duration::from_mins(1);

/// A chain that mines on request, with this id.
async fn chain(id: u64, height: u64) -> Devchain {
    Devchain::start(Options { chain_id: Some(id), logs_per_block: 4, ..still(height) }).await
}

/// A listener of the chain with its state in this database.
fn listener(chain: &Devchain, id: u64, server: &RedisServer, database: u8) -> Settings {
    let settings = Settings::default().set("CHAIN_ID", id).set("WEB3_PROVIDER", chain.ws_url());
    settings.set("REDIS_URL", server.url(database)).set("LOG_FORMAT", "json")
}

/// Chain 1 at a height, delivered from its head on, and stopped again.
struct Deployment {
    server: RedisServer,
    chain: Devchain,
    settings: Settings,
}

impl Deployment {
    async fn caught_up(height: u64) -> Self {
        let (server, chain) = tokio::join!(RedisServer::start(), chain(1, height));
        let settings = listener(&chain, 1, &server, 0);
        let this = Self { server, chain, settings };
        let listener = this.settings.start();
        listener.wait_watermark(height, SOON).await;
        assert_eq!(listener.stop().await.0, 0);
        this
    }

    /// Runs until every block up to `number` is delivered.
    async fn run_to(&self, number: u64) -> Vec<Value> {
        let listener = self.settings.start();
        listener.wait_watermark(number, SOON).await;
        let (code, messages, log) = listener.stop().await;
        assert_eq!(code, 0, "{log}");
        messages
    }

    async fn transfers(&self, from: u64, to: u64) -> BTreeSet<String> {
        self.chain.transfers(from, to).await
    }

    /// Starts it where it must refuse: nothing is delivered, and nothing in the database changes.
    async fn refused(&self) -> String {
        let before = self.server.dump(0).await;
        let (code, messages, log) = self.settings.start().end(SOON).await;
        assert_eq!(code, 78, "{log}");
        assert!(messages.is_empty());
        assert_eq!(self.server.dump(0).await, before, "nothing is written");
        log
    }
}

/// Exactly these events, each once.
fn assert_once(messages: &[Value], expected: &BTreeSet<String>) {
    let ids = ids(messages);
    assert_eq!(&ids.iter().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(ids.len(), expected.len(), "nothing twice");
}

fn number(hashes: &Hashes, key: &str, field: &str) -> Option<i64> {
    hashes.get(key)?.get(field)?.parse().ok()
}

fn without_time(mut view: Fields) -> String {
    let updated: u128 = view.remove("updated").expect("updated").parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    assert!(now.abs_diff(updated) < 600_000, "{updated} is milliseconds");
    view.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// Asserts what stands in Redis once everything from `first` to `tip` is delivered.
async fn assert_settled(deployment: &Deployment, first: u64, tip: u64) {
    let server = &deployment.server;
    let realtime = without_time(server.hash(0, "realtime_processed_block").await);
    assert_eq!(realtime, format!("block={tip} chain=1 service=ethereum_mainnet type=realtime"));
    let progress = server.hash(0, "chain:1:progress").await;
    let shown = |name: &str| progress[name].clone();
    assert_eq!(
        (shown("block"), shown("chain"), shown("service")),
        (tip.to_string(), "1".into(), "ethereum_mainnet".into())
    );
    assert!(server.hash(0, "historical_range").await.is_empty());
    assert!(server.cli::<Vec<String>>(0, "KEYS chain:1:claim:*").await.is_empty(), "no claim is left");
    for number in first..=tip {
        let marker: String = server.cli(0, &format!("GET chain:1:block:{number}")).await;
        let (hash, epoch) = marker.split_once(':').expect("hash and epoch");
        assert!(epoch.parse::<u64>().is_ok(), "{marker}");
        assert!(hash == "final" || deployment.chain.hash(number).await == hash, "{number}: {marker}");
        let ttl: i64 = server.cli(0, &format!("TTL chain:1:block:{number}")).await;
        assert!((86_000..=86_400).contains(&ttl), "{ttl}");
    }
}

// Gaps ---------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn r02_without_a_gap_every_new_block_is_shown_as_it_is_delivered() {
    let deployment = Deployment::caught_up(100).await;
    let watch = deployment.server.watch().await;
    let listener = deployment.settings.start();
    listener.wait_ready(true, SOON).await;
    for number in 101..=115 {
        deployment.chain.mine(1).await;
        listener.wait_watermark(number, SOON).await;
    }
    let (code, messages, _) = listener.stop().await;
    assert_eq!(code, 0);
    assert_once(&messages, &deployment.transfers(101, 115).await);
    assert!(blocks(&messages).is_sorted());
    let moments = watch.moments(&deployment.server, 0).await;
    let tips: BTreeSet<i64> = moments.iter().filter_map(|at| number(at, "realtime_processed_block", "block")).collect();
    assert_eq!(tips, (100..=115).collect());
    assert!(moments.iter().all(|at| !at.contains_key("historical_range")));
    assert_settled(&deployment, 100, 115).await;
    assert!(deployment.server.hash(0, "historical_processed_block").await.is_empty());
}

#[tokio::test]
async fn r03_a_gap_of_three_is_filled_first_and_never_shown_as_one() {
    let deployment = Deployment::caught_up(100).await;
    deployment.chain.mine(4).await;
    let watch = deployment.server.watch().await;
    let messages = deployment.run_to(104).await;
    assert_once(&messages, &deployment.transfers(101, 104).await);
    assert!(blocks(&messages).is_sorted());
    let moments = watch.moments(&deployment.server, 0).await;
    assert!(moments.iter().all(|at| !at.contains_key("historical_range")));
    assert_settled(&deployment, 100, 104).await;
}

#[tokio::test]
async fn r04_behind_a_gap_of_120_the_head_comes_first_and_the_gap_is_shown_until_it_is_filled() {
    let deployment = Deployment::caught_up(100).await;
    deployment.chain.mine(121).await;
    let watch = deployment.server.watch().await;
    let messages = deployment.run_to(221).await;
    assert_once(&messages, &deployment.transfers(101, 221).await);
    assert_eq!(blocks(&messages)[0], 221);
    let moments = watch.moments(&deployment.server, 0).await;
    let first = moments.iter().find(|at| number(at, "realtime_processed_block", "block") == Some(221)).unwrap();
    assert_eq!(
        without_time(first["historical_range"].clone()),
        "chain=1 from=101 gaps=1 missing=120 service=ethereum_mainnet to=220"
    );
    assert_eq!(number(first, "chain:1:progress", "block"), Some(100), "the watermark waits for the gap");
    assert_lowest_gap(&moments);
    let historical = deployment.server.hash(0, "historical_processed_block").await;
    assert!(without_time(historical).ends_with("service=ethereum_mainnet type=historical"));
    assert_settled(&deployment, 100, 221).await;
}

/// At every moment, `historical_range` begins right above the watermark, and it only moves up.
fn assert_lowest_gap(moments: &[Hashes]) {
    let mut before = 0;
    for at in moments {
        let Some(from) = number(at, "historical_range", "from") else { continue };
        assert_eq!(Some(from - 1), number(at, "chain:1:progress", "block"), "{at:?}");
        assert!(from >= before, "{from} after {before}");
        before = from;
    }
    assert!(before > 0, "a gap was shown");
}

/// Chain 1 with a historical track that begins slowly: small batches, one at a time, a second apart.
const SLOW_HISTORY: &str = r#"
[[chain]]
id = 1
name = "ethereum_mainnet"
redis_db = 0
block_time = "1s"
finality_depth = 8
batch_blocks = 10
parallel = 1
spacing = "1s"
"#;

#[tokio::test]
async fn r05_a_second_gap_that_opens_meanwhile_does_not_hide_the_first() {
    let server = RedisServer::start().await;
    let options = Options { chain_id: Some(1), logs_per_block: 2, finalized_depth: 8, ..still(100) };
    let chain = Devchain::start(options).await;
    let settings = listener(&chain, 1, &server, 0).file("config/chains.toml", SLOW_HISTORY);
    let deployment = Deployment { server, chain, settings };
    deployment.run_to(100).await;
    deployment.chain.mine(300).await;
    let watch = deployment.server.watch().await;
    let listener = deployment.settings.start();
    eventually("the first gap is being filled", SOON, || async {
        deployment.server.hash(0, "historical_processed_block").await.contains_key("block")
    })
    .await;
    for _ in 0..2 {
        deployment.chain.mine(30).await;
        let head = deployment.chain.head().await;
        eventually("the head is delivered", SOON, || async {
            deployment.server.hash(0, "realtime_processed_block").await["block"] == head.to_string()
        })
        .await;
    }
    listener.wait_watermark(460, SOON).await;
    let (_, messages, _) = listener.stop().await;
    assert_once(&messages, &deployment.transfers(101, 460).await);
    let moments = watch.moments(&deployment.server, 0).await;
    assert_lowest_gap(&moments);
    let most = moments.iter().filter_map(|at| number(at, "historical_range", "gaps")).max();
    assert!(most >= Some(3), "three gaps were open at once: {most:?}");
    assert_settled(&deployment, 101, 460).await;
}

#[tokio::test]
async fn r15_heads_in_any_order_deliver_each_block_once_and_one_out_of_thin_air_is_ignored() {
    let (server, chain) = tokio::join!(RedisServer::start(), chain(1, 106));
    let puppet = Puppet::before(chain.rpc(), 999_999_999).await;
    let profile = SLOW_HISTORY.replace("finality_depth = 8", "finality_depth = 64");
    let settings = listener(&chain, 1, &server, 0).set("WEB3_PROVIDER", puppet.url());
    let settings = settings.file("config/chains.toml", &profile);
    let listener = settings.start();
    puppet.tell(999_999_999).await;
    assert_eq!(server.cli::<u64>(0, "DBSIZE").await, 0, "no place to begin");
    puppet.tell(102).await;
    listener.wait_watermark(102, SOON).await;
    for head in [105, 104, 105, 103, 999_999_999] {
        puppet.tell(head).await;
    }
    listener.wait_watermark(105, SOON).await;
    assert_eq!(listener.health().await["head"]["number"], 103);
    puppet.tell(106).await;
    listener.wait_watermark(106, SOON).await;
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    assert_once(&messages, &chain.transfers(102, 106).await);
    assert!(!log.contains("panic"), "{log}");
}

// The recipes --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn recipe_reading_what_is_delivered() {
    let deployment = Deployment::caught_up(120).await;
    let shell = async |line: &str| deployment.server.shell(line).await;
    let realtime = shell("redis-cli -n 0 HGETALL realtime_processed_block").await;
    let words: Vec<&str> = realtime.lines().collect();
    let field = |name: &str| words[words.iter().position(|word| *word == name).unwrap() + 1];
    assert_eq!(
        [field("block"), field("chain"), field("service"), field("type")],
        ["120", "1", "ethereum_mainnet", "realtime"]
    );
    assert_eq!(shell(r#"redis-cli exists "chain:1:block:120""#).await, "1");
    assert_eq!(shell(r#"redis-cli exists "chain:1:block:121""#).await, "0");
    let keys = shell(r#"redis-cli keys "chain:1:*""#).await;
    for key in ["chain:1:progress", "chain:1:block:120"] {
        assert!(keys.lines().any(|line| line == key), "{key} in {keys}");
    }
}

#[tokio::test]
async fn recipe_lowering_the_realtime_view_delivers_again_with_the_same_ids_and_higher_versions() {
    let (server, chain) = tokio::join!(RedisServer::start(), chain(8453, 300));
    let settings = listener(&chain, 8453, &server, 1).set("START_BLOCK", 251);
    let listener = settings.start();
    listener.wait_watermark(300, SOON).await;
    let (_, first, _) = listener.stop().await;
    assert_once(&first, &chain.transfers(251, 300).await);
    server.shell("redis-cli -n 1 HSET realtime_processed_block block 260 chain 8453 updated 1758649000000 service base_mainnet type realtime").await;
    server.shell("redis-cli -n 1 DEL historical_processed_block historical_range").await;
    let watch = server.watch().await;
    let listener = settings.start();
    listener.wait_watermark(300, SOON).await;
    let (_, again, log) = listener.stop().await;
    assert!(log.contains("lowered from 300 to 260"), "{log}");
    assert_once(&again, &chain.transfers(261, 300).await);
    assert_eq!(blocks(&again)[0], 300, "the head first, then the gap");
    let gap = watch.moments(&server, 1).await.into_iter().find_map(|mut at| at.remove("historical_range")).unwrap();
    assert_eq!((&*gap["from"], &*gap["to"]), ("261", "299"));
    for message in &again {
        let before = first.iter().find(|before| before["id"] == message["id"]).unwrap();
        assert!(message["version"].as_u64() > before["version"].as_u64(), "{message} after {before}");
        let mut equal = message.clone();
        equal["version"] = before["version"].clone();
        assert_eq!(&equal, before, "nothing else is different");
    }
    assert_eq!(server.hash(1, "realtime_processed_block").await["block"], "300");
}

#[tokio::test]
async fn recipe_setting_the_watermark_of_an_empty_database_says_where_to_begin() {
    let (server, chain) = tokio::join!(RedisServer::start(), chain(1, 120));
    server
        .shell(r#"redis-cli hset "chain:1:progress" block 110 chain 1 updated $(date +%s000) service ethereum_mainnet"#)
        .await;
    let deployment = Deployment { settings: listener(&chain, 1, &server, 0).set("START_BLOCK", 5), server, chain };
    let messages = deployment.run_to(120).await;
    assert_once(&messages, &deployment.transfers(111, 120).await);
    assert_settled(&deployment, 111, 120).await;
}

#[tokio::test]
async fn a_watermark_above_the_chain_is_waited_for_and_told() {
    let (server, chain) = tokio::join!(RedisServer::start(), chain(1, 120));
    server.shell(r#"redis-cli hset "chain:1:progress" block 18500000 chain 1 updated $(date +%s000) service ethereum_mainnet"#).await;
    let listener = listener(&chain, 1, &server, 0).start();
    listener.wait_watermark(18_500_000, SOON).await;
    chain.mine(1).await;
    eventually("the state is told to be above the chain", SOON, || async {
        let health = listener.health().await;
        let told = "the state stands at block 18500000, but the newest block of the providers is 121";
        health["status"] == "degraded" && health["reasons"].to_string().contains(told)
    })
    .await;
    let (code, messages, _) = listener.stop().await;
    assert_eq!((code, messages.len()), (0, 0));
    assert_eq!(server.shell(r#"redis-cli exists "chain:1:block:18500000""#).await, "0");
}

#[tokio::test]
async fn recipe_lowering_the_watermark_of_a_database_in_use_delivers_again_from_there() {
    let deployment = Deployment::caught_up(120).await;
    deployment.chain.mine(10).await;
    let first = deployment.run_to(130).await;
    deployment
        .server
        .shell(r#"redis-cli hset "chain:1:progress" block 125 chain 1 updated $(date +%s000) service ethereum_mainnet"#)
        .await;
    let again = deployment.run_to(130).await;
    assert_once(&again, &deployment.transfers(126, 130).await);
    assert!(again[0]["version"].as_u64() > first.last().unwrap()["version"].as_u64());
    assert_settled(&deployment, 126, 130).await;
}

#[tokio::test]
async fn recipe_flushing_while_stopped_begins_anew_at_the_head() {
    let deployment = Deployment::caught_up(120).await;
    deployment.chain.mine(30).await;
    deployment.server.shell("redis-cli -n 0 FLUSHDB").await;
    let messages = deployment.run_to(150).await;
    assert_once(&messages, &deployment.transfers(150, 150).await);
    assert_settled(&deployment, 150, 150).await;
}

#[tokio::test]
async fn flushing_while_it_runs_ends_the_process_with_the_reason() {
    let deployment = Deployment::caught_up(120).await;
    let listener = deployment.settings.start();
    listener.wait_ready(true, SOON).await;
    deployment.server.shell("redis-cli -n 0 FLUSHDB").await;
    let (code, messages, log) = listener.end(SOON).await;
    assert_eq!(code, 69, "{log}");
    assert!(messages.is_empty(), "nothing is delivered after the state is gone");
    assert!(log.contains("state vanished"), "{log}");
    assert!(log.contains("\"watermark\":120") && log.contains("chain:1:progress"), "how to go on: {log}");
    assert!(log.contains("the next start begins at the chain's head") && !log.contains("EXPECT_STATE"), "{log}");
    let size: u64 = deployment.server.cli(0, "DBSIZE").await;
    assert_eq!(size, 0, "nothing is written into the emptiness");
}

#[tokio::test]
async fn where_state_is_expected_an_empty_store_is_refused_and_a_filled_one_goes_on() {
    let (server, chain) = tokio::join!(RedisServer::start(), chain(1, 120));
    let any = listener(&chain, 1, &server, 0);
    let expecting = Deployment { settings: any.clone().set("EXPECT_STATE", "true"), server, chain };
    let assert_tells = |log: String| {
        for part in ["EXPECT_STATE is set", "chain:1:progress", "see that REDIS_URL names the right server", "unset"] {
            assert!(log.contains(part), "{part} is missing: {log}");
        }
    };
    assert_tells(expecting.refused().await);
    // A view alone is no state: it says where to begin, and that is what is not wanted.
    expecting.server.shell("redis-cli HSET realtime_processed_block block 110").await;
    assert_tells(expecting.refused().await);
    let begun = Deployment { settings: any, ..expecting };
    assert_once(&begun.run_to(120).await, &begun.transfers(111, 120).await);
    begun.chain.mine(5).await;
    let expecting = Deployment { settings: begun.settings.clone().set("EXPECT_STATE", "true"), ..begun };
    assert_once(&expecting.run_to(125).await, &expecting.transfers(121, 125).await);
    assert_settled(&expecting, 111, 125).await;
}

#[tokio::test]
async fn state_that_vanishes_where_it_is_expected_is_not_begun_anew_and_goes_on_as_the_log_says() {
    let begun = Deployment::caught_up(120).await;
    let any = begun.settings.clone();
    let expecting = Deployment { settings: any.clone().set("EXPECT_STATE", "true"), ..begun };
    let listener = expecting.settings.start();
    listener.wait_ready(true, SOON).await;
    expecting.server.shell("redis-cli -n 0 FLUSHDB").await;
    let (code, messages, log) = listener.end(SOON).await;
    assert_eq!((code, messages.len()), (69, 0), "{log}");
    for part in ["state vanished", "the next start is refused", "\"watermark\":120", "unset EXPECT_STATE"] {
        assert!(log.contains(part), "{part} is missing: {log}");
    }
    expecting.chain.mine(10).await;
    expecting.refused().await;
    expecting.server.shell("redis-cli HSET chain:1:progress block 120").await;
    expecting.refused().await;
    let again = Deployment { settings: any, ..expecting };
    assert_once(&again.run_to(130).await, &again.transfers(121, 130).await);
    let expecting = Deployment { settings: again.settings.clone().set("EXPECT_STATE", "true"), ..again };
    expecting.chain.mine(1).await;
    assert_once(&expecting.run_to(131).await, &expecting.transfers(131, 131).await);
}

#[tokio::test]
async fn a_raised_view_is_refused_naming_the_command_that_skips_knowingly() {
    for key in ["realtime_processed_block", "chain:1:progress"] {
        let deployment = Deployment::caught_up(120).await;
        deployment.chain.mine(30).await;
        deployment.server.shell(&format!("redis-cli HSET {key} block 140")).await;
        let log = deployment.refused().await;
        assert!(log.contains("chaintap skip --to 140") && log.contains(key), "{log}");
        let (code, out, log) = deployment.settings.output(&["skip", "--to", "140"]).await;
        assert_eq!(code, 64, "{log}");
        assert!(out.contains("blocks 121 to 140") && out.contains("NEVER") && out.contains("--yes"), "{out}");
        deployment.refused().await;
        let (code, out, log) = deployment.settings.output(&["skip", "--to", "140", "--yes"]).await;
        assert_eq!(code, 0, "{out}{log}");
        let messages = deployment.run_to(150).await;
        assert_once(&messages, &deployment.transfers(141, 150).await);
    }
}

/// Every commit compares the views: mines one block, and waits until the edit is told.
async fn edit_is_told(listener: &Listener, chain: &Devchain) {
    chain.mine(1).await;
    eventually("the edit is told in /health", SOON, || async {
        listener.health().await["reasons"].to_string().contains("edited by hand; restart to apply it")
    })
    .await;
}

#[tokio::test]
async fn an_edit_while_it_runs_is_left_alone_and_applied_at_the_next_start() {
    let deployment = Deployment::caught_up(120).await;
    let listener = deployment.settings.start();
    listener.wait_ready(true, SOON).await;
    deployment.chain.mine(5).await;
    listener.wait_watermark(125, SOON).await;
    deployment.server.shell("redis-cli HSET realtime_processed_block block 122").await;
    edit_is_told(&listener, &deployment.chain).await;
    assert_eq!(deployment.server.hash(0, "realtime_processed_block").await["block"], "122", "left as it is");
    assert_eq!(deployment.server.hash(0, "chain:1:progress").await["block"], "126");
    let (_, messages, log) = listener.stop().await;
    assert_once(&messages, &deployment.transfers(121, 126).await);
    assert!(log.contains("an operator edited a view"), "{log}");
    let again = deployment.run_to(126).await;
    assert_once(&again, &deployment.transfers(123, 126).await);
    assert_settled(&deployment, 123, 126).await;
}

#[tokio::test]
async fn deleted_views_are_just_written_again() {
    let deployment = Deployment::caught_up(120).await;
    let delete = "redis-cli DEL realtime_processed_block historical_range historical_processed_block";
    let unset = "redis-cli HDEL chain:1:progress block";
    // While it runs, and while it does not.
    let listener = deployment.settings.start();
    listener.wait_ready(true, SOON).await;
    deployment.server.shell(delete).await;
    deployment.server.shell(unset).await;
    deployment.chain.mine(1).await;
    listener.wait_watermark(121, SOON).await;
    let (_, messages, _) = listener.stop().await;
    assert_once(&messages, &deployment.transfers(121, 121).await);
    assert_settled(&deployment, 120, 121).await;
    deployment.server.shell(delete).await;
    deployment.server.shell(unset).await;
    deployment.chain.mine(1).await;
    let messages = deployment.run_to(122).await;
    assert_once(&messages, &deployment.transfers(122, 122).await);
    assert_settled(&deployment, 120, 122).await;
}

#[tokio::test]
async fn rewinding_says_first_what_it_will_do_and_a_running_listener_obeys() {
    let deployment = Deployment::caught_up(120).await;
    deployment.chain.mine(10).await;
    let listener = deployment.settings.start();
    listener.wait_watermark(130, SOON).await;
    let before = listener.messages().len();
    let (code, out, _) = deployment.settings.output(&["rewind", "--to", "125"]).await;
    assert_eq!(code, 64);
    assert!(out.contains("blocks 126 to 130 will be delivered again") && out.contains("--yes"), "{out}");
    assert_eq!(deployment.server.hash(0, "chain:1:progress").await["block"], "130");
    let (code, out, _) = deployment.settings.output(&["rewind", "--to", "125", "--yes"]).await;
    assert_eq!(code, 0);
    assert!(out.contains("done: watermark 125"), "{out}");
    let all = deployment.transfers(126, 130).await;
    eventually("delivered again", SOON, || async { listener.messages().len() >= before + all.len() }).await;
    listener.wait_watermark(130, SOON).await;
    let (_, messages, _) = listener.stop().await;
    assert_once(&messages[before..], &all);
    assert!(messages[before]["version"].as_u64() > messages[before - 1]["version"].as_u64());
    let (code, _, log) = deployment.settings.output(&["rewind", "--to", "130", "--yes"]).await;
    assert_eq!(code, 65, "{log}");
    let (code, _, log) = deployment.settings.output(&["skip", "--to", "130", "--yes"]).await;
    assert_eq!(code, 65, "{log}");
}

#[tokio::test]
async fn status_tells_where_the_store_stands() {
    let (server, chain) = tokio::join!(RedisServer::start(), chain(1, 120));
    let settings = listener(&chain, 1, &server, 0);
    let (code, out, log) = settings.output(&["status"]).await;
    assert_eq!((code, out.as_str()), (1, ""), "{log}");
    assert!(log.contains("nothing of chain 1 yet"), "{log}");
    assert_eq!(server.cli::<u64>(0, "DBSIZE").await, 0, "asking writes nothing");
    let deployment = Deployment { server, chain, settings };
    deployment.run_to(120).await;
    let (code, out, log) = deployment.settings.output(&["status"]).await;
    assert_eq!(code, 0, "{log}");
    assert!(out.contains("ethereum_mainnet") && out.contains("120"), "{out}");
    let (code, out, log) = deployment.settings.output(&["status", "--json"]).await;
    assert_eq!(code, 0, "{log}");
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&status["watermark"], &status["tip"], &status["gaps"]), (&120.into(), &120.into(), &0.into()));
}

#[tokio::test]
async fn the_embedded_store_is_operated_while_nothing_runs_and_names_health_while_something_does() {
    let chain = chain(1, 120).await;
    let settings = Settings::default().set("CHAIN_ID", 1).set("WEB3_PROVIDER", chain.ws_url());
    let (code, _, log) = settings.output(&["status"]).await;
    assert_eq!(code, 1, "{log}");
    assert!(!settings.home().join("data").exists(), "asking makes no file");
    let listener = settings.start();
    listener.wait_watermark(120, SOON).await;
    for command in [&["status"][..], &["status", "--json"], &["rewind", "--to", "110"], &["skip", "--to", "130"]] {
        let (code, out, log) = settings.output(command).await;
        assert_eq!((code, out.as_str()), (75, ""), "{command:?}: {log}");
        assert!(log.contains("in use by another process") && log.contains("/health"), "{command:?}: {log}");
    }
    listener.stop().await;
    let (code, out, _) = settings.output(&["rewind", "--to", "118", "--yes"]).await;
    assert_eq!(code, 0);
    assert!(out.contains("done: watermark 118, tip 118"), "{out}");
    let (_, out, _) = settings.output(&["status", "--json"]).await;
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&status["watermark"], &status["durability"]), (&118.into(), &"fsync".into()));
    let listener = settings.start();
    listener.wait_watermark(120, SOON).await;
    assert_once(&listener.stop().await.1, &chain.transfers(119, 120).await);
}

// Several chains on one server ---------------------------------------------------------------------------------------

#[tokio::test]
async fn two_chains_on_one_redis_do_not_touch_each_other() {
    let (server, ethereum, base) = tokio::join!(RedisServer::start(), chain(1, 100), chain(8453, 200));
    let first = listener(&ethereum, 1, &server, 0).start();
    // Without a number in the URL the chain's own database is used.
    let url = format!("redis://127.0.0.1:{}", server.port);
    let second = listener(&base, 8453, &server, 1).set("REDIS_URL", url).start();
    first.wait_watermark(100, SOON).await;
    second.wait_watermark(200, SOON).await;
    tokio::join!(ethereum.mine(4), base.mine(30));
    first.wait_watermark(104, SOON).await;
    second.wait_watermark(230, SOON).await;
    let ((_, ours, _), (_, theirs, _)) = tokio::join!(first.stop(), second.stop());
    assert_once(&ours, &ethereum.transfers(100, 104).await);
    assert_once(&theirs, &base.transfers(200, 230).await);
    assert!(theirs.iter().all(|message| message["chainId"] == 8453));
    for (database, id, tip) in [(0, 1, "104"), (1, 8453, "230")] {
        assert_eq!(server.hash(database, "realtime_processed_block").await["block"], tip);
        assert_eq!(server.hash(database, &format!("chain:{id}:progress")).await["chain"], id.to_string());
        let keys: Vec<String> = server.cli(database, "KEYS chain:*").await;
        assert!(keys.iter().all(|key| key.starts_with(&format!("chain:{id}:"))), "{keys:?}");
    }
}

/// Starts it where it must refuse; answers with the log. Nothing may be written anywhere on the server.
async fn refuses(settings: Settings, server: &RedisServer) -> String {
    let before = (server.dump(0).await, server.dump(1).await);
    let (code, messages, log) = settings.start().end(SOON).await;
    assert_eq!(code, 78, "{log}");
    assert!(messages.is_empty());
    assert_eq!((server.dump(0).await, server.dump(1).await), before, "nothing is written");
    log
}

#[tokio::test]
async fn r24_a_database_that_is_not_the_chains_is_refused() {
    let (server, ethereum, base) = tokio::join!(RedisServer::start(), chain(1, 100), chain(8453, 100));
    let log = refuses(listener(&base, 8453, &server, 0), &server).await;
    assert!(log.contains("database number 0") && log.contains("the chain's is 1") && log.contains("write /1"), "{log}");
    // State of another chain in this chain's database: its truth, or a view of the first system.
    for key in ["chain:8453:progress", "realtime_processed_block", "historical_range", "historical_processed_block"] {
        server.shell(&format!("redis-cli HSET {key} block 5 chain 8453 service base_mainnet")).await;
        let log = refuses(listener(&ethereum, 1, &server, 0), &server).await;
        assert!(log.contains("chain 8453") && log.contains("chain 1"), "{key}: {log}");
        server.shell(&format!("redis-cli DEL {key}")).await;
    }
}

#[tokio::test]
async fn r24_a_node_of_another_chain_is_refused_and_nothing_is_written() {
    let (server, base) = tokio::join!(RedisServer::start(), chain(8453, 100));
    let log = refuses(listener(&base, 1, &server, 0), &server).await;
    assert!(log.contains("is on chain 8453, but CHAIN_ID is 1"), "{log}");
}

#[tokio::test]
async fn r24_a_server_without_the_chains_database_or_with_eviction_is_refused() {
    let (server, base) = tokio::join!(RedisServer::start_with(&["--databases", "1"]), chain(8453, 100));
    let (code, _, log) = listener(&base, 8453, &server, 1).start().end(SOON).await;
    assert_eq!(code, 78, "{log}");
    assert!(log.contains("has no database 1") && log.contains("at least 2"), "{log}");
    assert_eq!(server.cli::<u64>(0, "DBSIZE").await, 0);
    let policy = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let server = RedisServer::start_with(&policy).await;
    let log = refuses(listener(&base, 8453, &server, 1), &server).await;
    assert!(log.contains("allkeys-lru") && log.contains("noeviction"), "{log}");
}

#[tokio::test]
async fn an_upgrade_from_the_first_system_begins_at_the_lowest_block_that_may_be_missing() {
    let (server, chain) = tokio::join!(RedisServer::start(), chain(1, 320));
    for line in [
        "redis-cli HSET realtime_processed_block block 315 chain 1 updated 1758649000000 service ethereum_mainnet type realtime",
        "redis-cli HSET historical_range from 280 to 310 chain 1 updated 1758649000000 service ethereum_mainnet",
        "redis-cli HSET historical_processed_block block 290 chain 1 updated 1758649000000 service ethereum_mainnet type historical",
    ] {
        server.shell(line).await;
    }
    let deployment = Deployment { settings: listener(&chain, 1, &server, 0), server, chain };
    let messages = deployment.run_to(320).await;
    assert_once(&messages, &deployment.transfers(280, 320).await);
    assert_settled(&deployment, 280, 320).await;
}

// Which blocks are delivered -----------------------------------------------------------------------------------------

#[tokio::test]
async fn only_blocks_that_the_mode_allows_are_delivered() {
    let options = Options { chain_id: Some(1), logs_per_block: 4, safe_depth: 10, finalized_depth: 70, ..still(200) };
    let chain = Devchain::start(options).await;
    for (mode, depth) in [("instant", 0), ("safe", 10), ("finalized", 70), ("3", 3)] {
        let settings = Settings::default().set("CHAIN_ID", 1).set("WEB3_PROVIDER", chain.ws_url());
        let listener = settings.set("DELIVER", mode).set("START_BLOCK", 120).start();
        let head = chain.head().await;
        listener.wait_watermark(head - depth, SOON).await;
        chain.mine(7).await;
        listener.wait_watermark(head + 7 - depth, SOON).await;
        let health = listener.health().await;
        assert_eq!(
            (&health["deliverableHead"], &health["head"]["number"]),
            (&(head + 7 - depth).into(), &(head + 7).into())
        );
        let (_, messages, _) = listener.stop().await;
        assert_once(&messages, &chain.transfers(120, head + 7 - depth).await);
    }
}

#[tokio::test]
async fn start_block_is_the_first_one_delivered_and_until_ends_with_success() {
    let (server, chain) = tokio::join!(RedisServer::start(), chain(1, 120));
    for (start, until, first) in [("0", 3, 0), ("118", 120, 118), ("latest", 120, 120)] {
        server.shell("redis-cli FLUSHDB").await;
        let settings = listener(&chain, 1, &server, 0).set("START_BLOCK", start).arg("--until").arg(until);
        let (code, messages, log) = settings.start().end(SOON).await;
        assert_eq!(code, 0, "{log}");
        assert_once(&messages, &chain.transfers(first, until).await);
        assert_eq!(server.hash(0, "realtime_processed_block").await["block"], until.to_string());
        assert!(server.cli::<Vec<String>>(0, "KEYS chain:1:claim:*").await.is_empty());
        // Where it is already, it ends at once.
        let (code, messages, log) = settings.start().end(SOON).await;
        assert_eq!((code, messages.len()), (0, 0), "{log}");
    }
}
