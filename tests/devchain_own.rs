//! What the simulated node can do and a real one cannot be asked for: the same chain twice, reorganisations on a schedule,
//! limits, real blocks from files. What both can do is in `devchain.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::{
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

use alloy::{
    consensus::BlockHeader as _,
    primitives::B256,
    providers::{Provider as _, ProviderBuilder},
    rpc::types::{Filter, Log},
};
use chaintap::devchain::{Error, Limits, Options, Reorgs, serve, tokens};
use serde_json::{Value, json};
use support::devchain::{Devchain, Rpc, Socket, still};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};
use tokio_util::sync::CancellationToken;

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn hash_of(rpc: &Rpc, number: u64) -> B256 {
    parse(rpc.call("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await["hash"].take())
}

async fn head(rpc: &Rpc) -> u64 {
    parse::<alloy::primitives::U64>(rpc.call("eth_blockNumber", json!([])).await).to()
}

async fn logs_of(rpc: &Rpc, hash: B256) -> Vec<Log> {
    parse(rpc.call("eth_getLogs", json!([{ "blockHash": hash }])).await)
}

async fn refused(options: Options) -> Error {
    serve(Options { port: 0, ..options }, CancellationToken::new()).await.unwrap_err()
}

/// A chain that has `height` blocks now and mines one every 50 ms.
fn running(height: u64) -> Options {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let genesis_time = Some(now.as_secs() - height / 20);
    Options {
        genesis_time,
        start_height: 0,
        block_time: Duration::from_millis(50),
        logs_per_block: 2,
        reorgs: Some(Reorgs { every: 50, depth: 3 }),
        ..Options::default()
    }
}

#[tokio::test]
async fn started_again_it_is_the_same_chain_further_on() {
    let options = running(1_500);
    let first = Devchain::start(options.clone()).await;
    let rpc = first.rpc();
    let before = head(&rpc).await - 50;
    let mut known = Vec::new();
    for number in (0..=before).step_by(7) {
        known.push((number, hash_of(&rpc, number).await));
    }
    drop(first);
    let second = Devchain::start(options).await;
    let rpc = second.rpc();
    assert!(head(&rpc).await > before);
    for (number, hash) in known {
        assert_eq!(hash_of(&rpc, number).await, hash, "block {number}");
    }
    let other = Devchain::start(Options { seed: 2, ..running(1_500) }).await;
    assert_ne!(hash_of(&other.rpc(), 1).await, hash_of(&rpc, 1).await);
}

#[tokio::test]
async fn blocks_come_with_time_and_are_announced() {
    let node = Devchain::start(running(10)).await;
    let mut socket = Socket::connect(&node.rpc()).await;
    socket.call("eth_subscribe", json!(["newHeads"])).await;
    let first: alloy::rpc::types::Header = parse(socket.notified().await.1);
    let second: alloy::rpc::types::Header = parse(socket.notified().await.1);
    assert_eq!(second.parent_hash(), first.hash);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!((now - 5..=now).contains(&second.timestamp()));
}

#[tokio::test]
async fn old_blocks_are_found_by_number_by_hash_and_in_ranges() {
    // Blocks leave the tip after some 1,100 others; this range spans both.
    let node = Devchain::start(Options { logs_per_block: 1, ..still(1_300) }).await;
    let rpc = node.rpc();
    let mut by_hash = Vec::new();
    let mut parent = hash_of(&rpc, 99).await;
    for number in 100..=400 {
        let hash = hash_of(&rpc, number).await;
        let block = rpc.call("eth_getBlockByHash", json!([hash, false])).await;
        assert_eq!(
            (parse::<B256>(block["parentHash"].clone()), &block["number"]),
            (parent, &json!(format!("{number:#x}")))
        );
        by_hash.extend(logs_of(&rpc, hash).await);
        parent = hash;
    }
    let range = json!([{ "fromBlock": "0x64", "toBlock": "0x190" }]);
    assert_eq!(parse::<Vec<Log>>(rpc.call("eth_getLogs", range).await), by_hash);
    assert!(by_hash.len() > 100);
}

#[tokio::test]
async fn a_scheduled_reorganisation_takes_back_the_logs_and_leaves_what_a_later_start_finds() {
    let reorgs = Some(Reorgs { every: 10, depth: 3 });
    let node = Devchain::start(Options { reorgs, ..still(9) }).await;
    let rpc = node.rpc();
    let mut taken_back = Vec::new();
    for number in [9, 8, 7] {
        taken_back.extend(logs_of(&rpc, hash_of(&rpc, number).await).await);
    }
    let mut socket = Socket::connect(&rpc).await;
    socket.call("eth_subscribe", json!(["logs", {}])).await;
    rpc.call("devchain_mine", json!([])).await;
    let mut put_in_place = Vec::new();
    for number in 7..=10 {
        put_in_place.extend(logs_of(&rpc, hash_of(&rpc, number).await).await);
    }
    for log in &mut taken_back {
        log.removed = true;
    }
    for expected in taken_back.iter().chain(&put_in_place) {
        assert_eq!(parse::<Log>(socket.notified().await.1), *expected);
    }
    assert!(!taken_back.is_empty() && !put_in_place.is_empty());
    let orphan = taken_back[0].block_hash.unwrap();
    assert_eq!(logs_of(&rpc, orphan).await.len(), taken_back.iter().filter(|l| l.block_hash == Some(orphan)).count());

    // The timetable of a chain that stands at 10 when the first one does.
    let later = Options { reorgs, genesis_time: Some(1_750_000_001), ..still(10) };
    let later = Devchain::start(later).await;
    for number in 0..=10 {
        assert_eq!(hash_of(&later.rpc(), number).await, hash_of(&rpc, number).await, "block {number}");
    }
}

#[tokio::test]
async fn orphans_are_forgotten_where_that_is_asked_for() {
    let limits = Limits { orphans: 0, ..Limits::default() };
    let node = Devchain::start(Options { limits, ..still(20) }).await;
    let rpc = node.rpc();
    let hash = hash_of(&rpc, 20).await;
    assert_eq!(rpc.call("devchain_reorg", json!([{ "depth": "0x2" }])).await, "0x14");
    assert_eq!(rpc.code("eth_getLogs", json!([{ "blockHash": hash }])).await, -32000);
    assert_eq!(rpc.code("devchain_reorg", json!(["0x15"])).await, -32602);
    assert_eq!(rpc.code("devchain_reorg", json!(["0x0"])).await, -32602);
}

async fn hashes(rpc: &Rpc, numbers: std::ops::RangeInclusive<u64>) -> Vec<B256> {
    let mut hashes = Vec::new();
    for number in numbers {
        hashes.push(hash_of(rpc, number).await);
    }
    hashes
}

#[tokio::test]
async fn a_flip_goes_back_to_the_branch_that_was_left_and_further_and_the_next_one_returns() {
    let node = Devchain::start(still(20)).await;
    let rpc = node.rpc();
    let a = hashes(&rpc, 18..=20).await;
    assert_eq!(rpc.call("devchain_reorg", json!([{ "depth": 3, "length": 5 }])).await, "0x16");
    node.mine(1).await;
    let b = hashes(&rpc, 18..=23).await;
    assert!(a.iter().all(|hash| !b.contains(hash)));
    let mut socket = Socket::connect(&rpc).await;
    socket.call("eth_subscribe", json!(["newHeads"])).await;

    assert_eq!(rpc.call("devchain_flip", json!([])).await, "0x18");
    let back = hashes(&rpc, 18..=24).await;
    assert_eq!(back[..3], a, "the same blocks");
    for hash in &back {
        assert_eq!(parse::<B256>(socket.notified().await.1["hash"].take()), *hash);
    }
    assert_eq!(rpc.call("devchain_flip", json!([2])).await, "0x1a");
    assert_eq!(hashes(&rpc, 18..=23).await, b);
    let mut parent = hash_of(&rpc, 17).await;
    for number in 18..=26 {
        let block = rpc.call("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await;
        assert_eq!(parse::<B256>(block["parentHash"].clone()), parent, "parent of {number}");
        parent = parse(block["hash"].clone());
    }
    assert!(!logs_of(&rpc, back[6]).await.is_empty(), "what left is still known by its hash");
}

#[tokio::test]
async fn a_head_that_goes_back_comes_back_the_same_and_what_is_finalized_stays_so() {
    let node = Devchain::start(Options { finalized_depth: 8, ..still(100) }).await;
    let rpc = node.rpc();
    let finalized = async || rpc.call("eth_getBlockByNumber", json!(["finalized", false])).await["number"].take();
    let before = hashes(&rpc, 90..=100).await;
    assert_eq!(rpc.call("devchain_reorg", json!([{ "depth": 5, "length": 0 }])).await, "0x5f");
    assert_eq!((head(&rpc).await, finalized().await), (95, json!("0x5c")));
    assert_eq!(rpc.call("eth_getBlockByNumber", json!(["0x60", false])).await, Value::Null);
    // Of the eight blocks that are not final five are gone.
    assert_eq!(rpc.code("devchain_reorg", json!([4])).await, -32602);
    assert_eq!(rpc.call("devchain_flip", json!([0])).await, "0x64");
    assert_eq!(hashes(&rpc, 90..=100).await, before);
    assert_eq!(rpc.call("devchain_reorg", json!([{ "depth": 8, "length": 2 }])).await, "0x5e");
    assert_eq!(finalized().await, "0x5c");
}

#[tokio::test]
async fn finalized_blocks_are_replaced_only_where_that_is_said() {
    let node = Devchain::start(Options { finalized_depth: 4, ..still(50) }).await;
    let rpc = node.rpc();
    let finalized = hash_of(&rpc, 46).await;
    let refused = rpc.try_call("devchain_reorg", json!([6])).await.unwrap_err();
    let words = "a reorganisation of 6 blocks takes back block 46, which is finalized: ask devchain_reorg for it with \"deep\": true";
    assert_eq!(refused["message"], words);
    assert_eq!(rpc.call("devchain_reorg", json!([{ "depth": 6, "deep": true }])).await, "0x32");
    let now = rpc.call("eth_getBlockByNumber", json!(["finalized", false])).await;
    assert_eq!(now["number"], "0x2e");
    assert_ne!(parse::<B256>(now["hash"].clone()), finalized);
    assert_eq!(rpc.code("devchain_reorg", json!([{ "depth": 3, "depht": 4 }])).await, -32602);
    assert_eq!(rpc.code("devchain_reorg", json!([{ "depth": 3, "length": 513 }])).await, -32602);
    let still_one = Devchain::start(still(5)).await;
    let nothing = still_one.rpc().try_call("devchain_flip", json!([])).await.unwrap_err();
    assert_eq!(nothing["message"], "no reorganisation has left a branch to go back to");
}

#[tokio::test]
async fn too_large_questions_are_refused_in_the_words_of_providers() {
    let limits = Limits { range: 50, results: 100, batch: 3, request_bytes: 2_000, ..Limits::default() };
    let node = Devchain::start(Options { limits, ..still(200) }).await;
    let rpc = node.rpc();
    let logs =
        async |from: &str, to: &str| rpc.try_call("eth_getLogs", json!([{ "fromBlock": from, "toBlock": to }])).await;
    let too_long = logs("0x1", "0x33").await.unwrap_err();
    assert_eq!(too_long, json!({ "code": -32614, "message": "eth_getLogs is limited to a 50 range" }));
    let too_many = logs("0x1", "0x32").await.unwrap_err();
    assert_eq!(too_many["code"], -32005);
    let (from, to) = (too_many["data"]["from"].as_str().unwrap(), too_many["data"]["to"].as_str().unwrap());
    let advice = format!("query returned more than 100 results. Try with this block range [{from}, {to}].");
    assert_eq!(too_many["message"], advice);
    assert!(!logs(from, to).await.unwrap().as_array().unwrap().is_empty(), "the advice works");

    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_chainId" });
    assert_eq!(rpc.reply(&json!([call, call, call, call])).await["error"]["code"], -32600);
    assert_eq!(rpc.post(" ".repeat(3_000)).await.unwrap().status(), 413);
    let garbage = rpc.post("{\"id\":").await.unwrap().text().await.unwrap();
    assert_eq!(parse::<Value>(serde_json::from_str(&garbage).unwrap())["error"]["code"], -32700);
    assert_eq!(rpc.code("eth_subscribe", json!(["newHeads"])).await, -32601);
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_dropped() {
    let limits = Limits { send_timeout: Duration::from_millis(300), subscriptions: 40, ..Limits::default() };
    let node = Devchain::start(Options { limits, logs_per_block: 600, ..still(5) }).await;
    let rpc = node.rpc();
    let mut socket = Socket::connect(&rpc).await;
    // Each of them gets every log: some 17 MB per block, more than the buffers on the way take.
    for _ in 0..40 {
        socket.call("eth_subscribe", json!(["logs", {}])).await;
    }
    socket.send(&json!({ "id": 1, "method": "eth_subscribe", "params": ["newHeads"] })).await;
    assert_eq!(socket.receive().await["error"]["message"], "at most 40 subscriptions per connection");
    rpc.call("devchain_mine", json!(["0x2"])).await;
    let deadline = Instant::now() + Duration::from_mins(1);
    while socket.try_send(&json!({ "id": 2, "method": "eth_chainId" })).await {
        assert!(Instant::now() < deadline, "still connected");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(head(&rpc).await, 7, "the node goes on");
}

#[tokio::test]
async fn it_ends_at_once_when_asked_to_though_clients_are_connected() {
    let shutdown = CancellationToken::new();
    let serving = serve(Options { port: 0, ..still(1) }, shutdown.clone()).await.unwrap();
    let rpc = Rpc::new(format!("http://{}", serving.address));
    assert_eq!(head(&rpc).await, 1);
    let mut socket = Socket::connect(&rpc).await;
    shutdown.cancel();
    assert!(socket.is_closed().await);
    tokio::time::timeout(Duration::from_secs(2), serving.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_client_library_can_use_it_over_both_transports() {
    let node = Devchain::start(still(100)).await;
    let http = ProviderBuilder::new().disable_recommended_fillers().connect_http(node.rpc().url.parse().unwrap());
    assert_eq!(http.get_chain_id().await.unwrap(), Options::CHAIN_ID);
    let block = http.get_block_by_number(50.into()).full().await.unwrap().unwrap();
    assert_eq!(block.header.hash, block.header.inner.hash_slow());
    let token = tokens(1, 8).remove(0).address;
    let logs = http.get_logs(&Filter::new().address(token).from_block(1).to_block(100)).await.unwrap();
    assert!(!logs.is_empty() && logs.iter().all(|log| log.address() == token));
    let receipts = http.get_block_receipts(block.header.hash.into()).await.unwrap().unwrap();
    assert_eq!(receipts.len(), block.transactions.len());

    let ws = ProviderBuilder::new().disable_recommended_fillers().connect(&node.rpc().ws_url()).await.unwrap();
    let mut heads = ws.subscribe_blocks().await.unwrap();
    node.rpc().call("devchain_mine", json!(["0x2"])).await;
    let (first, second) = (heads.recv().await.unwrap(), heads.recv().await.unwrap());
    assert_eq!((first.number, second.parent_hash), (101, first.hash));
    assert_eq!(ws.get_block_number().await.unwrap(), 102);
}

#[tokio::test]
async fn contradictory_options_are_refused_with_the_mend() {
    let shallow = refused(Options { reorgs: Some(Reorgs { every: 3, depth: 3 }), ..Options::default() }).await;
    assert!(shallow.to_string().contains("every 3 blocks cannot be 3 deep"), "{shallow}");
    let fast = refused(Options { block_time: Duration::from_millis(49), ..Options::default() }).await;
    assert!(fast.to_string().contains("at least 50ms"), "{fast}");
    let old = refused(Options { genesis_time: Some(1_000_000), start_height: 0, ..Options::default() }).await;
    assert!(old.to_string().contains("give a later genesis time"), "{old}");
    let node = Devchain::start(still(1)).await;
    let taken = serve(Options { port: node.address.port(), ..still(1) }, CancellationToken::new()).await.unwrap_err();
    assert!(taken.to_string().contains("give another --port"), "{taken}");
}

#[tokio::test]
async fn the_command_says_where_it_serves_and_prints_its_tokens() {
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chaintap"));
        command.arg("devchain").args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        command
    };
    let printed = command(&["--print-tokens", "--chain-id", "8453", "--tokens", "1"]).output().await.unwrap();
    let expected = json!([{
        "address": tokens(1, 1)[0].address.to_checksum(None),
        "name": "Dev Dollar",
        "symbol": "DEVUSD",
        "decimals": 6,
        "chainId": 8453,
    }]);
    assert_eq!(serde_json::from_slice::<Value>(&printed.stdout).unwrap(), expected);

    let mut serving =
        command(&["--port", "0", "--no-mining", "--start-height", "5", "--chain-id", "8453"]).spawn().unwrap();
    let line = BufReader::new(serving.stdout.take().unwrap()).lines().next_line().await.unwrap().unwrap();
    assert!(line.starts_with("devchain: chain 8453, head 5, http://127.0.0.1:"), "{line}");
    let url = line.split([' ', ',']).find(|word| word.starts_with("http://")).unwrap();
    assert_eq!(Rpc::new(url.to_owned()).call("eth_chainId", json!([])).await, "0x2105");

    let refused = command(&["--chain-id", "base"]).status().await.unwrap();
    assert_eq!(refused.code(), Some(64));
}
