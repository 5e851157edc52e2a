//! What must be delivered, as the node itself tells it, and whether what was delivered is that.

use std::collections::{BTreeMap, BTreeSet};

use alloy::primitives::Address;
use serde_json::{Value, json};

use super::{devchain::Rpc, sqs::Received};

const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
/// Blocks that one question names.
const STEP: usize = 100;

/// Ids of the ERC-20 transfers of these blocks of the development chain, of these tokens or of any.
pub async fn transfers(rpc: &Rpc, from: u64, to: u64, tokens: Option<&[Address]>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for from in (from..=to).step_by(STEP) {
        let to = to.min(from + STEP as u64 - 1);
        let mut filter =
            json!({ "fromBlock": format!("{from:#x}"), "toBlock": format!("{to:#x}"), "topics": [TRANSFER] });
        if let Some(tokens) = tokens {
            filter["address"] = json!(tokens);
        }
        let logs = rpc.call("eth_getLogs", json!([filter])).await;
        all.extend(logs.as_array().unwrap().iter().filter(|log| is_erc20(log)).map(id));
    }
    all
}

fn is_erc20(log: &Value) -> bool {
    log["topics"].as_array().unwrap().len() == 3 && log["data"].as_str().unwrap().len() == 66
}

fn id(log: &Value) -> String {
    let index = u64::from_str_radix(log["logIndex"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    format!("31337:{}:{index}", log["blockHash"].as_str().unwrap())
}

/// The height of the chain.
pub async fn height(rpc: &Rpc) -> u64 {
    let head = rpc.call("eth_blockNumber", json!([])).await;
    u64::from_str_radix(head.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// Bodies of messages of a queue.
pub fn bodies(received: &[Received]) -> Vec<Value> {
    received.iter().map(|message| serde_json::from_str(&message.body).unwrap()).collect()
}

/// Nothing lost, nothing false, and nothing twice but, byte for byte equal, of at most so many blocks.
pub fn assert_delivered(messages: &[Value], expected: &BTreeSet<String>, repeated_blocks: usize) {
    let mut by_id: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for message in messages {
        by_id.entry(message["id"].as_str().unwrap()).or_default().push(message);
    }
    let lost: Vec<_> = expected.iter().filter(|id| !by_id.contains_key(id.as_str())).take(5).collect();
    let wrong: Vec<_> = by_id.keys().filter(|id| !expected.contains(**id)).take(5).collect();
    assert!(lost.is_empty() && wrong.is_empty(), "lost {lost:?}, wrong {wrong:?}");
    let mut repeated = BTreeSet::new();
    for same in by_id.values().filter(|same| same.len() > 1) {
        repeated.insert(same[0]["blockNumber"].as_u64().unwrap());
        assert!(same.iter().all(|message| *message == same[0]), "two versions: {same:?}");
    }
    assert!(repeated.len() <= repeated_blocks, "twice: blocks {repeated:?}");
}
