//! Real blocks from files, served by the simulated node under their real numbers and hashes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::path::{Path, PathBuf};

use alloy::{primitives::B256, rpc::types::Log};
use chaintap::devchain::{Options, serve};
use serde_json::{Value, json};
use support::devchain::{Devchain, Rpc, still};
use tokio_util::sync::CancellationToken;

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn options(blocks: Vec<PathBuf>) -> Options {
    Options { blocks, ..still(0) }
}

async fn refusal(blocks: Vec<PathBuf>) -> String {
    serve(Options { port: 0, ..options(blocks) }, CancellationToken::new()).await.unwrap_err().to_string()
}

/// Checks that the blocks `from..=to` are there and linked; their hashes.
async fn linked(rpc: &Rpc, from: u64, to: u64) -> Vec<B256> {
    let mut blocks: Vec<Value> = Vec::new();
    for number in from..=to {
        let block = rpc.call("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await;
        assert_eq!(block["number"], format!("{number:#x}"));
        assert_eq!(rpc.call("eth_getBlockByHash", json!([block["hash"], false])).await, block);
        if let Some(below) = blocks.last() {
            assert_eq!(block["parentHash"], below["hash"], "parent of {number}");
            let time = |block: &Value| parse::<alloy::primitives::U64>(block["timestamp"].clone());
            assert!(time(&block) >= time(below), "time of {number}");
        }
        blocks.push(block);
    }
    blocks.into_iter().map(|mut block| parse(block["hash"].take())).collect()
}

#[tokio::test]
async fn every_real_block_at_hand_is_served_as_it_was() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/blocks");
    let Ok(files) = std::fs::read_dir(folder) else { return };
    for file in files {
        let path = file.unwrap().path();
        let real: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let node = Devchain::start(options(vec![path])).await;
        let rpc = node.rpc();
        let number = real["block_number"].as_u64().unwrap();
        let hashes = linked(&rpc, number - 3, number + 3).await;
        assert_eq!(json!(hashes[3]), real["block_hash"]);
        assert_eq!(json!(hashes[2]), real["header"]["parentHash"]);
        assert_eq!(rpc.call("eth_chainId", json!([])).await, format!("{:#x}", real["chain_id"].as_u64().unwrap()));
        assert_eq!(rpc.call("eth_blockNumber", json!([])).await, format!("{:#x}", number + 3));

        let block = rpc.call("eth_getBlockByHash", json!([hashes[3], true])).await;
        for (name, value) in real["header"].as_object().unwrap() {
            if block.get(name).is_some() {
                assert_eq!(block[name], *value, "{name} of {number}");
            }
        }
        let timestamp = block["timestamp"].clone();
        let expected = real["logs"].as_array().unwrap();
        for filter in [json!({ "blockHash": hashes[3] }), json!({ "fromBlock": format!("{:#x}", number - 3) })] {
            let mut served = rpc.call("eth_getLogs", json!([filter])).await;
            for (log, expected) in served.as_array_mut().unwrap().iter_mut().zip(expected) {
                assert_eq!(log["blockTimestamp"], timestamp);
                if expected.get("blockTimestamp").is_none() {
                    log.as_object_mut().unwrap().remove("blockTimestamp");
                }
            }
            assert_eq!(served, json!(expected), "logs of {number}");
        }
        let below: Vec<Log> = parse(rpc.call("eth_getLogs", json!([{ "blockHash": hashes[2] }])).await);
        assert!(below.is_empty());
        assert_eq!(rpc.call("eth_getBlockByNumber", json!([format!("{:#x}", number - 4), false])).await, Value::Null);
        assert_eq!(rpc.code("devchain_mine", json!([])).await, -32000);
    }
}

/// A file with an empty block.
fn file(folder: &Path, chain_id: u64, number: u64, parent: B256) -> PathBuf {
    let path = folder.join(format!("{chain_id}-{number}-{}.json", parent[0]));
    let header = json!({
        "number": format!("{number:#x}"),
        "hash": B256::with_last_byte(u8::try_from(number).unwrap()),
        "parentHash": parent,
        "timestamp_rfc3339": format!("2024-01-01T00:00:{:02}Z", number % 60),
    });
    let block = json!({ "chain_id": chain_id, "block_number": number, "header": header, "logs": [] });
    std::fs::write(&path, block.to_string()).unwrap();
    path
}

#[tokio::test]
async fn files_near_each_other_become_one_linked_chain() {
    let folder = tempfile::tempdir().unwrap();
    let of = |number| B256::with_last_byte(number);
    let first = file(folder.path(), 5, 10, B256::repeat_byte(0xaa));
    let second = file(folder.path(), 5, 11, of(10));
    let third = file(folder.path(), 5, 15, B256::repeat_byte(0xbb));
    let node = Devchain::start(options(vec![third, first, second])).await;
    let hashes = linked(&node.rpc(), 7, 18).await;
    assert_eq!(hashes[2..5], [B256::repeat_byte(0xaa), of(10), of(11)]);
    assert_eq!(hashes[7..9], [B256::repeat_byte(0xbb), of(15)]);
}

#[tokio::test]
async fn files_that_make_no_chain_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (B256::repeat_byte(0xaa), B256::repeat_byte(0xbb));
    let first = file(folder.path(), 5, 10, a);
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let stranger = file(folder.path(), 6, 11, a);
    let text = refusal(vec![first.clone(), stranger.clone()]).await;
    assert!(text.contains("a block of chain 6") && text.contains(&name(&stranger)), "{text}");
    let twin = file(folder.path(), 5, 10, b);
    let text = refusal(vec![first.clone(), twin]).await;
    assert!(text.contains("the same block number"), "{text}");
    let no_child = file(folder.path(), 5, 11, b);
    let text = refusal(vec![first.clone(), no_child]).await;
    assert!(text.contains("its parent is not the given block 10"), "{text}");
    let broken = folder.path().join("broken.json");
    std::fs::write(&broken, r#"{"chain_id":5,"header":{"number":"0x1"},"logs":[]}"#).unwrap();
    let text = refusal(vec![broken]).await;
    assert!(text.contains("broken.json: header.hash is missing"), "{text}");
    let text = refusal(vec![folder.path().join("absent.json")]).await;
    assert!(text.contains("absent.json: No such file"), "{text}");
    let wrong_id = Options { chain_id: Some(7), port: 0, ..options(vec![first]) };
    let text = serve(wrong_id, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(text.contains("the blocks are of chain 5, not 7"), "{text}");
}
