//! Blocks of real chains through real servers: the queue holds exactly the transfers that another tool found in them.
//!
//! The blocks are facts read from public sources and no part of the repository. They are looked for in `../shared/data`,
//! or where `CHAINTAP_REAL_DATA` says; where there are none the tests pass and say so.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]
#![allow(clippy::print_stdout, reason = "a test that could test nothing says so")]

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use alloy::primitives::Address;
use chaintap::devchain::Options;
use futures_util::future::join_all;
use serde_json::{Value, json};
use support::{
    chaintap::{Listener, Settings},
    devchain::{Devchain, still},
    message::{self, Transfer},
    mongo::Mongo,
    redis::RedisServer,
    sqs::SqsServer,
};

const SOON: Duration = Duration::from_mins(1);
/// Empty blocks around each real one, as the devchain makes them up.
const AROUND: u64 = 3;
/// Redis databases by chain, as the operator contract has them.
const REDIS_DATABASES: [(u64, u8); 5] = [(1, 0), (8453, 1), (137, 2), (10, 4), (42_161, 5)];

fn data() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let data = std::env::var_os("CHAINTAP_REAL_DATA").map_or(beside, PathBuf::from);
    if !data.join("blocks").is_dir() {
        println!("no real blocks at {}: nothing was tested", data.display());
        return None;
    }
    Some(data)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A block, and what another tool decoded from it.
struct RealBlock {
    path: PathBuf,
    chain: u64,
    number: u64,
    hash: String,
    timestamp: u64,
    logs: Vec<Value>,
    /// Its ERC-20 transfers in the order of their logs.
    oracle: Option<Vec<Transfer>>,
}

impl RealBlock {
    fn read(path: PathBuf, data: &Path) -> Self {
        let block = read(&path);
        let oracle = data.join("oracle").join(path.file_name().unwrap());
        let header = &block["header"];
        let timestamp = match header["timestamp_rfc3339"].as_str() {
            None => hex(&header["timestamp"]),
            Some(time) => {
                let time = humantime::parse_rfc3339(time).unwrap();
                time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
            }
        };
        Self {
            chain: block["chain_id"].as_u64().unwrap(),
            number: block["block_number"].as_u64().unwrap(),
            hash: block["block_hash"].as_str().unwrap().to_owned(),
            timestamp,
            logs: block["logs"].as_array().unwrap().clone(),
            oracle: oracle.exists().then(|| transfers(&read(&oracle))),
            path,
        }
    }

    /// Everything in messages that their transfers do not say.
    fn check_places(&self, messages: &[Value]) {
        for message in messages {
            self.check_place(message);
        }
    }

    fn check_place(&self, message: &Value) {
        let index = message["logIndex"].as_u64().unwrap();
        let log = &self.logs[usize::try_from(index).unwrap()];
        let expected = json!({
            "eventType": "Transfer",
            "chainId": self.chain,
            "id": format!("{}:{}:{index}", self.chain, self.hash),
            "blockNumber": self.number,
            "blockHash": self.hash,
            "blockTimestamp": self.timestamp,
            "transactionIndex": hex(&log["transactionIndex"]),
            "contract": "Transfers",
        });
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&message[name], value, "{name} of {message}");
        }
    }
}

fn hex(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// The ERC-20 transfers of an oracle.
fn transfers(oracle: &Value) -> Vec<Transfer> {
    let erc20 = oracle.as_array().unwrap().iter().filter(|row| row["kind"] == "erc20");
    let transfer = |row: &Value| Transfer {
        token: row["token"].as_str().unwrap().parse().unwrap(),
        from: row["from"].as_str().unwrap().parse().unwrap(),
        to: row["to"].as_str().unwrap().parse().unwrap(),
        value: row["value"].as_str().unwrap().parse().unwrap(),
        transaction: row["transactionHash"].as_str().unwrap().to_owned(),
        log_index: row["logIndex"].as_u64().unwrap(),
    };
    let mut transfers: Vec<Transfer> = erc20.map(transfer).collect();
    transfers.sort_by_key(|transfer| transfer.log_index);
    transfers
}

/// All blocks, by chain.
fn blocks(data: &Path) -> BTreeMap<u64, Vec<RealBlock>> {
    let mut by_chain: BTreeMap<u64, Vec<RealBlock>> = BTreeMap::new();
    for file in std::fs::read_dir(data.join("blocks")).unwrap() {
        let block = RealBlock::read(file.unwrap().path(), data);
        by_chain.entry(block.chain).or_default().push(block);
    }
    assert!(!by_chain.is_empty());
    by_chain
}

/// The servers that all chains share.
struct Servers {
    redis: RedisServer,
    sqs: SqsServer,
}

impl Servers {
    async fn start() -> Self {
        let (redis, sqs) = tokio::join!(RedisServer::start(), SqsServer::fauxqs());
        Self { redis, sqs }
    }

    /// A listener of the chain around a block, on an empty store; and its queue.
    async fn listener_of(&self, block: &RealBlock, chain: &Devchain) -> (Settings, String) {
        let queue = self.sqs.create_queue(&format!("{}-{}", block.chain, block.number), 262_144).await;
        self.redis.cli::<()>(database(block.chain), "FLUSHDB").await;
        let settings = Settings::default()
            .set("CHAIN_ID", block.chain)
            .set("WEB3_PROVIDER", format!("ws://{}", chain.address))
            .set("REDIS_URL", format!("redis://127.0.0.1:{}", self.redis.port))
            .set("START_BLOCK", block.number - AROUND)
            .queue(&self.sqs, &queue);
        (settings, queue)
    }

    /// Listens until the blocks around this one are delivered: what the queue holds then.
    async fn delivered(&self, block: &RealBlock, settings: Settings, queue: &str) -> Vec<Value> {
        let last = block.number + AROUND;
        let (code, printed, log) = settings.arg("--until").arg(last).start().end(SOON).await;
        assert_eq!((code, printed.len()), (0, 0), "{log}");
        let progress: HashMap<String, String> =
            self.redis.cli(database(block.chain), &format!("HGETALL chain:{}:progress", block.chain)).await;
        assert_eq!(progress["block"], last.to_string(), "in the chain's own database");
        let messages = message::all_checked(&self.sqs.drain(queue).await);
        block.check_places(&messages);
        messages
    }
}

fn database(chain: u64) -> u8 {
    REDIS_DATABASES.iter().find(|(id, _)| *id == chain).unwrap().1
}

fn found(messages: &[Value]) -> Vec<Transfer> {
    messages.iter().map(Transfer::of).collect()
}

/// The chain of one real block; with `finalized_depth` of 1 the block is final.
async fn serve(block: &RealBlock, finalized_depth: u64) -> Devchain {
    Devchain::start(Options {
        blocks: vec![block.path.clone()],
        around: AROUND,
        safe_depth: 0,
        finalized_depth,
        ..still(0)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_holds_exactly_the_erc20_transfers_of_every_real_block() {
    let Some(data) = data() else { return };
    let servers = Servers::start().await;
    // Block by block, by hash: none of them is final yet.
    let chains = blocks(&data).into_values().map(async |blocks| {
        for block in blocks.iter().filter(|block| block.oracle.is_some()) {
            let chain = serve(block, 1_000).await;
            let (settings, queue) = servers.listener_of(block, &chain).await;
            let messages = servers.delivered(block, settings, &queue).await;
            assert_eq!(&found(&messages), block.oracle.as_ref().unwrap(), "{}", block.path.display());
            assert!(messages.iter().all(|message| message.get("token").is_none()), "no list is loaded");
        }
    });
    join_all(chains).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_list_the_queue_holds_exactly_the_transfers_of_its_tokens() {
    let Some(data) = data() else { return };
    let (servers, mongo) = tokio::join!(Servers::start(), Mongo::start());
    let list = data.join("tokens/tokens.json");
    let rows = read(&list);
    // By ranges of final blocks.
    let chains = blocks(&data).into_iter().map(async |(id, blocks)| {
        let import = Settings::default().set("CHAIN_ID", id).tokens(&mongo, "shop");
        let (code, _, log) = import.output(&["tokens", "import", list.to_str().unwrap()]).await;
        assert_eq!(code, 0, "{log}");
        let tokens = tokens_of(&rows, id);
        for block in blocks.iter().filter(|block| block.oracle.is_some()) {
            let chain = serve(block, 1).await;
            let (settings, queue) = servers.listener_of(block, &chain).await;
            let messages = servers.delivered(block, settings.tokens(&mongo, "shop"), &queue).await;
            let oracle = block.oracle.iter().flatten();
            let wanted: Vec<Transfer> =
                oracle.filter(|transfer| tokens.contains_key(&transfer.token)).cloned().collect();
            assert_eq!(found(&messages), wanted, "{}", block.path.display());
            for message in &messages {
                assert_eq!(message["token"], tokens[&Transfer::of(message).token]);
            }
        }
    });
    join_all(chains).await;
}

/// The tokens of a chain by address, each as a message shows it.
fn tokens_of(rows: &Value, chain: u64) -> HashMap<Address, Value> {
    let rows = rows.as_array().unwrap().iter().filter(|row| row["chainId"] == chain);
    rows.map(|row| {
        let shown = json!({
            "symbol": row["symbol"].as_str().unwrap().to_uppercase(),
            "decimals": row["decimals"],
            "name": row["name"],
        });
        (row["address"].as_str().unwrap().parse().unwrap(), shown)
    })
    .collect()
}

/// Block 7280016 of Ethereum has a transfer of `CryptoKitties`, which indexes nothing: one topic, 96 bytes of data.
const CRYPTO_KITTIES: &str = "0x06012c8cf97BEaD5deAe237070F9587f8E7A266d";

fn block_of_crypto_kitties(data: &Path) -> Option<RealBlock> {
    blocks(data).remove(&1)?.into_iter().find(|block| block.number == 7_280_016)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_indexes_nothing_is_counted_and_stops_nobody() {
    let Some(block) = data().and_then(|data| block_of_crypto_kitties(&data)) else { return };
    let servers = Servers::start().await;
    let chain = serve(&block, 1_000).await;
    let (settings, queue) = servers.listener_of(&block, &chain).await;
    let listener = settings.start();
    listener.wait_watermark(block.number + AROUND, SOON).await;
    assert_eq!(rejected(&listener, "unindexed").await, 1);
    assert_eq!(rejected(&listener, "malformed").await, 0);
    assert_eq!(listener.health().await["deadLetters"], 0, "nobody tracks that contract");
    let (code, _, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    let messages = message::all_checked(&servers.sqs.drain(&queue).await);
    block.check_places(&messages);
    let delivered: Vec<u64> = found(&messages).iter().map(|transfer| transfer.log_index).collect();
    assert_eq!(delivered, erc20_logs(&block));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_log_of_a_tracked_token_is_kept_for_the_operator() {
    let Some(block) = data().and_then(|data| block_of_crypto_kitties(&data)) else { return };
    let (servers, mongo) = tokio::join!(Servers::start(), Mongo::start());
    let chain = serve(&block, 1_000).await;
    let (settings, queue) = servers.listener_of(&block, &chain).await;
    let settings = settings.tokens(&mongo, "shop");
    let named = ["--symbol", "CK", "--name", "CryptoKitties", "--decimals", "0"];
    let add = [&["tokens", "add", "--address", CRYPTO_KITTIES], &named[..]].concat();
    let (code, _, log) = settings.output(&add).await;
    assert_eq!(code, 0, "{log}");

    let messages = servers.delivered(&block, settings, &queue).await;
    assert_eq!(messages, Vec::<Value>::new());
    let dead: HashMap<String, String> = servers.redis.cli(0, "HGETALL chain:1:dead").await;
    let letter: Vec<&String> = dead.values().collect();
    let [letter] = letter[..] else { panic!("{dead:?}") };
    assert!(letter.contains("unindexed") && letter.contains(&CRYPTO_KITTIES.to_lowercase()), "{letter}");
}

/// Indices of the logs that have the shape of an ERC-20 transfer.
fn erc20_logs(block: &RealBlock) -> Vec<u64> {
    let topic = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
    let shaped = |log: &&Value| {
        log["topics"][0] == topic
            && log["topics"].as_array().unwrap().len() == 3
            && log["data"].as_str().unwrap().len() == 2 + 64
    };
    block.logs.iter().filter(shaped).map(|log| hex(&log["logIndex"])).collect()
}

/// How many logs were rejected for this reason, as `/metrics` tells.
async fn rejected(listener: &Listener, reason: &str) -> u64 {
    let (_, metrics) = listener.get("/metrics").await.unwrap();
    let label = format!("reason=\"{reason}\"");
    let sample = metrics.lines().find(|line| line.starts_with("chaintap_logs_rejected_total") && line.contains(&label));
    sample.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}
