//! The simulated node keeps what it promises, and behaves as a node that was not written here: whatever both can do is
//! checked on both, by the same code. A double is worth what the real thing confirms.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use alloy::{
    consensus::{
        proofs::{calculate_receipt_root, calculate_transaction_root},
        transaction::TxHashRef as _,
    },
    primitives::{Address, B256, Bloom, U64, U256, b256},
    rpc::types::{Block, Log, TransactionReceipt},
};
use serde_json::{Value, json};
use support::{
    anvil::Anvil,
    devchain::{Devchain, Rpc, Socket, still},
};

const TRANSFER: B256 = b256!("0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");

/// Either node, with a short history of blocks with and without logs.
enum Node {
    Devchain(Devchain),
    Anvil(Box<Anvil>, Address),
}

impl Node {
    async fn devchain() -> Self {
        let options = chaintap::devchain::Options { safe_depth: 1, finalized_depth: 2, ..still(30) };
        Self::Devchain(Devchain::start(options).await)
    }

    async fn anvil() -> Self {
        let anvil = Anvil::start(31_337, &["--no-mining", "--slots-in-an-epoch", "1"]).await;
        let token = anvil.deploy_token().await;
        let node = Self::Anvil(Box::new(anvil), token);
        for _ in 0..3 {
            node.mine_logs().await;
        }
        node
    }

    fn rpc(&self) -> Rpc {
        match self {
            Self::Devchain(devchain) => devchain.rpc(),
            Self::Anvil(anvil, _) => anvil.rpc.clone(),
        }
    }

    /// Mines a few blocks, at least one of them with logs.
    async fn mine_logs(&self) {
        match self {
            Self::Devchain(devchain) => drop(devchain.rpc().call("devchain_mine", json!(["0x5"])).await),
            Self::Anvil(anvil, token) => {
                anvil.transfer(*token, Address::repeat_byte(1), U256::from(5)).await;
                anvil.burst(*token, Address::repeat_byte(2), 3).await;
                anvil.named(*token, "no transfer").await;
                anvil.mine(3).await;
                anvil.transfer(*token, Address::repeat_byte(3), U256::ZERO).await;
                anvil.mine(2).await;
            }
        }
    }

    async fn reorganise(&self, depth: u64) {
        match self {
            Self::Devchain(devchain) => {
                devchain.rpc().call("devchain_reorg", json!([{ "depth": U64::from(depth), "deep": true }])).await;
            }
            Self::Anvil(anvil, _) => anvil.reorg(depth).await,
        }
    }
}

/// Every check becomes a test on each of the two nodes.
macro_rules! on_both_nodes {
    ($($check:ident),* $(,)?) => {
        mod devchain { $(#[tokio::test] async fn $check() { super::$check(super::Node::devchain().await).await; })* }
        mod anvil { $(#[tokio::test] async fn $check() { super::$check(super::Node::anvil().await).await; })* }
    };
}

on_both_nodes!(
    headers_are_linked_and_hash_to_what_they_state,
    logs_by_range_by_hash_and_in_receipts_are_the_same,
    filters_select_by_address_and_by_topics,
    what_does_not_exist_is_null,
    mistakes_are_refused_with_their_codes,
    ranges_are_clamped_to_the_head_and_never_begin_above_it,
    tags_stand_for_the_blocks_below_the_head,
    transactions_are_found_by_their_hash,
    batches_are_answered_in_full_over_both_transports,
    subscribers_see_every_new_head_and_only_the_logs_they_asked_for,
    a_reorganisation_announces_the_new_branch_from_its_fork,
);

async fn head(rpc: &Rpc) -> u64 {
    parse::<U64>(rpc.call("eth_blockNumber", json!([])).await).to()
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    let text = value.to_string();
    serde_json::from_value(value).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn hex(number: u64) -> String {
    format!("{number:#x}")
}

async fn block(rpc: &Rpc, number: u64) -> Block {
    parse(rpc.call("eth_getBlockByNumber", json!([hex(number), true])).await)
}

async fn receipts(rpc: &Rpc, number: u64) -> Vec<TransactionReceipt> {
    parse(rpc.call("eth_getBlockReceipts", json!([hex(number)])).await)
}

async fn all_logs(rpc: &Rpc) -> Vec<Log> {
    parse(rpc.call("eth_getLogs", json!([{ "fromBlock": "earliest", "toBlock": "latest" }])).await)
}

async fn headers_are_linked_and_hash_to_what_they_state(node: Node) {
    let rpc = node.rpc();
    let mut parent = None;
    for number in 0..=head(&rpc).await {
        let block = block(&rpc, number).await;
        let receipts = receipts(&rpc, number).await;
        assert_eq!(block.header.inner.hash_slow(), block.header.hash, "hash of {number}");
        assert!(parent.is_none_or(|parent| parent == block.header.parent_hash), "parent of {number}");
        parent = Some(block.header.hash);
        let transactions: Vec<_> = block.transactions.txns().map(|tx| tx.inner.inner()).collect();
        assert_eq!(
            calculate_transaction_root(&transactions),
            block.header.transactions_root,
            "transactions of {number}"
        );
        let envelopes: Vec<_> =
            receipts.iter().map(|receipt| receipt.inner.clone().map_logs(|log: Log| log.inner)).collect();
        assert_eq!(calculate_receipt_root(&envelopes), block.header.receipts_root, "receipts of {number}");
        let bloom = receipts.iter().fold(Bloom::default(), |mut all, receipt| {
            all.accrue_logs(&receipt.logs().iter().map(|log| log.inner.clone()).collect::<Vec<_>>());
            all
        });
        assert_eq!(bloom, block.header.logs_bloom, "bloom of {number}");
        assert_eq!(receipts.iter().map(|receipt| receipt.gas_used).sum::<u64>(), block.header.gas_used);
        assert!(receipts.iter().map(|r| r.transaction_hash).eq(block.transactions.hashes()));
    }
}

async fn logs_by_range_by_hash_and_in_receipts_are_the_same(node: Node) {
    let rpc = node.rpc();
    let by_range = all_logs(&rpc).await;
    let (mut by_hash, mut in_receipts) = (Vec::<Log>::new(), Vec::new());
    for number in 0..=head(&rpc).await {
        let hash = block(&rpc, number).await.header.hash;
        by_hash.extend(parse::<Vec<Log>>(rpc.call("eth_getLogs", json!([{ "blockHash": hash }])).await));
        let of_block = receipts(&rpc, number).await.into_iter().flat_map(|receipt| receipt.logs().to_vec());
        in_receipts.extend(of_block.enumerate().map(|(place, log)| {
            assert_eq!((log.block_hash, log.log_index), (Some(hash), Some(place as u64)));
            log
        }));
    }
    assert!(by_range.len() > 5, "too few logs to prove anything");
    assert_eq!(by_range, by_hash);
    assert_eq!(by_range, in_receipts);
    assert!(by_range.iter().all(|log| !log.removed && log.block_timestamp.is_some()));
}

type Wanted<'a> = &'a dyn Fn(&Log) -> bool;

async fn filters_select_by_address_and_by_topics(node: Node) {
    let rpc = node.rpc();
    let all = all_logs(&rpc).await;
    let some = all.iter().find(|log| log.topics().len() == 3).unwrap();
    let (address, from, to) = (some.address(), some.topics()[1], some.topics()[2]);
    let others: BTreeSet<_> = all.iter().map(Log::address).filter(|other| *other != address).take(2).collect();
    let addresses: Vec<_> = others.iter().copied().chain([address, Address::repeat_byte(9)]).collect();
    let topic = |log: &Log, place: usize, wanted: B256| log.topics().get(place) == Some(&wanted);
    let cases: [(Value, Wanted); 9] = [
        (json!({ "address": address }), &|log| log.address() == address),
        (json!({ "address": addresses }), &|log| addresses.contains(&log.address())),
        (json!({ "address": Address::repeat_byte(9) }), &|_| false),
        (json!({ "topics": [TRANSFER] }), &|log| topic(log, 0, TRANSFER)),
        (json!({ "topics": [null, from] }), &|log| topic(log, 1, from)),
        (json!({ "topics": [[TRANSFER, B256::ZERO], null, [to, B256::ZERO]] }), &|log| {
            (topic(log, 0, TRANSFER) || topic(log, 0, B256::ZERO)) && (topic(log, 2, to) || topic(log, 2, B256::ZERO))
        }),
        (json!({ "topics": [[], [from]] }), &|log| topic(log, 1, from)),
        (json!({ "topics": [to] }), &|_| false),
        (json!({ "address": address, "topics": [TRANSFER, from, to] }), &|log| {
            log.address() == address && topic(log, 0, TRANSFER) && topic(log, 1, from) && topic(log, 2, to)
        }),
    ];
    for (filter, wanted) in cases {
        let expected: Vec<_> = all.iter().filter(|log| wanted(log)).cloned().collect();
        let mut ranged = filter.clone();
        ranged["fromBlock"] = json!("0x0");
        let found: Vec<Log> = parse(rpc.call("eth_getLogs", json!([ranged])).await);
        assert_eq!(found, expected, "{filter}");
        let mut hashed = filter.clone();
        hashed["blockHash"] = json!(some.block_hash);
        let found: Vec<Log> = parse(rpc.call("eth_getLogs", json!([hashed])).await);
        let in_block: Vec<_> = expected.into_iter().filter(|log| log.block_hash == some.block_hash).collect();
        assert_eq!(found, in_block, "{filter} in one block");
    }
}

async fn what_does_not_exist_is_null(node: Node) {
    let rpc = node.rpc();
    let nowhere = B256::repeat_byte(7);
    assert_eq!(rpc.call("eth_getBlockByNumber", json!(["0xffffff", false])).await, Value::Null);
    assert_eq!(rpc.call("eth_getBlockByHash", json!([nowhere, false])).await, Value::Null);
    assert_eq!(rpc.call("eth_getBlockReceipts", json!(["0xffffff"])).await, Value::Null);
    assert_eq!(rpc.call("eth_getTransactionReceipt", json!([nowhere])).await, Value::Null);
    assert_eq!(rpc.call("eth_getTransactionByHash", json!([nowhere])).await, Value::Null);
    assert_eq!(rpc.call("eth_syncing", json!([])).await, false);
}

async fn mistakes_are_refused_with_their_codes(node: Node) {
    let rpc = node.rpc();
    assert_eq!(rpc.code("eth_noSuchMethod", json!([])).await, -32601);
    assert_eq!(rpc.code("eth_getBlockByNumber", json!(["upwards", false])).await, -32602);
    assert_eq!(rpc.code("eth_getBlockByHash", json!(["0x12", false])).await, -32602);
    assert_eq!(rpc.code("eth_getLogs", json!([{ "address": "0x12" }])).await, -32602);
    assert_eq!(rpc.code("eth_getLogs", json!([])).await, -32602);
    assert_eq!(rpc.code("eth_getLogs", json!([{ "blockHash": B256::ZERO, "fromBlock": "0x0" }])).await, -32602);
    let unknown = rpc.try_call("eth_getLogs", json!([{ "blockHash": B256::repeat_byte(7) }])).await.unwrap_err();
    assert_eq!((unknown["code"].as_i64(), unknown["message"].as_str()), (Some(-32000), Some("unknown block")));
    let no_request = rpc.reply(&json!({ "jsonrpc": "2.0", "id": 1 })).await;
    assert_eq!(no_request["error"]["code"], -32600, "{no_request}");
}

async fn ranges_are_clamped_to_the_head_and_never_begin_above_it(node: Node) {
    let rpc = node.rpc();
    let (head, all) = (head(&rpc).await, all_logs(&rpc).await);
    let logs = async |from: u64, to: u64| {
        rpc.try_call("eth_getLogs", json!([{ "fromBlock": hex(from), "toBlock": hex(to) }])).await
    };
    assert_eq!(parse::<Vec<Log>>(logs(0, head + 100).await.unwrap()), all);
    assert_eq!(logs(2, 1).await.unwrap(), json!([]));
    let above = logs(head + 1, head + 2).await.unwrap_err();
    assert_eq!(above["code"], -32602, "{above}");
    let words = format!("BlockOutOfRangeError: block height is {head} but requested was {}", head + 1);
    assert_eq!(above["message"], words);
}

async fn tags_stand_for_the_blocks_below_the_head(node: Node) {
    let rpc = node.rpc();
    let head = head(&rpc).await;
    let number = async |tag: &str| {
        parse::<U64>(rpc.call("eth_getBlockByNumber", json!([tag, false])).await["number"].take()).to::<u64>()
    };
    assert_eq!(number("latest").await, head);
    assert_eq!(number("safe").await, head - 1);
    assert_eq!(number("finalized").await, head - 2);
    assert_eq!(number("earliest").await, 0);
    let hash = rpc.call("eth_getBlockByNumber", json!(["finalized", false])).await["hash"].take();
    let same = rpc.call("eth_getBlockByHash", json!([hash, true])).await;
    assert_eq!(same["number"], hex(head - 2));
}

async fn transactions_are_found_by_their_hash(node: Node) {
    let rpc = node.rpc();
    for log in all_logs(&rpc).await {
        let hash = log.transaction_hash.unwrap();
        let receipt: TransactionReceipt = parse(rpc.call("eth_getTransactionReceipt", json!([hash])).await);
        assert_eq!(receipt.block_hash, log.block_hash);
        assert!(receipt.status() && receipt.logs().contains(&log));
        let transaction: alloy::rpc::types::Transaction =
            parse(rpc.call("eth_getTransactionByHash", json!([hash])).await);
        assert_eq!((*transaction.inner.tx_hash(), transaction.block_hash), (hash, log.block_hash));
        assert_eq!((transaction.inner.signer(), transaction.transaction_index), (receipt.from, log.transaction_index));
    }
}

async fn batches_are_answered_in_full_over_both_transports(node: Node) {
    let rpc = node.rpc();
    let batch = json!([
        { "jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": [] },
        { "jsonrpc": "2.0", "id": "two", "method": "eth_noSuchMethod", "params": [] },
        { "jsonrpc": "2.0", "id": 3, "method": "eth_getBlockByNumber", "params": ["0x0", false] },
    ]);
    let over_http = rpc.reply(&batch).await;
    let mut socket = Socket::connect(&rpc).await;
    socket.send(&batch).await;
    let over_socket = socket.receive().await;
    for replies in [&over_http, &over_socket] {
        let by_id: BTreeMap<String, &Value> =
            replies.as_array().unwrap().iter().map(|reply| (reply["id"].to_string(), reply)).collect();
        assert_eq!(by_id.len(), 3);
        assert_eq!(by_id["1"]["result"], "0x7a69");
        // anvil has two codes for an unknown method, one for each transport.
        assert!(by_id["\"two\""]["error"]["code"].is_i64());
        assert_eq!(by_id["3"]["result"]["number"], "0x0");
    }
    assert_eq!(over_http[2], over_socket[2]);
}

async fn subscribers_see_every_new_head_and_only_the_logs_they_asked_for(node: Node) {
    let rpc = node.rpc();
    let before = head(&rpc).await;
    let known = all_logs(&rpc).await;
    let address = known.iter().find(|log| log.topics().first() == Some(&TRANSFER)).unwrap().address();
    let mut socket = Socket::connect(&rpc).await;
    let heads = socket.call("eth_subscribe", json!(["newHeads"])).await;
    let filter = json!({ "address": address, "topics": [TRANSFER] });
    let logs = socket.call("eth_subscribe", json!(["logs", filter])).await;
    let ended = socket.call("eth_subscribe", json!(["newHeads"])).await;
    assert_eq!(socket.call("eth_unsubscribe", json!([ended])).await, true);
    assert_eq!(socket.call("eth_unsubscribe", json!([ended])).await, false);
    node.mine_logs().await;
    let after = head(&rpc).await;
    let mut ranged = filter.clone();
    ranged["fromBlock"] = json!(hex(before + 1));
    let expected: Vec<Log> = parse(rpc.call("eth_getLogs", json!([ranged])).await);
    let (mut seen_heads, mut seen_logs) = (Vec::new(), Vec::<Log>::new());
    while seen_heads.len() < usize::try_from(after - before).unwrap() || seen_logs.len() < expected.len() {
        let (subscription, result) = socket.notified().await;
        if subscription == heads {
            let header: alloy::rpc::types::Header = parse(result);
            assert_eq!(header.hash, block(&rpc, header.number).await.header.hash);
            seen_heads.push(header.number);
        } else {
            assert_eq!(subscription, logs);
            seen_logs.push(parse(result));
        }
    }
    assert!(seen_heads.into_iter().eq(before + 1..=after));
    assert_eq!(seen_logs, expected);
}

async fn a_reorganisation_announces_the_new_branch_from_its_fork(node: Node) {
    let rpc = node.rpc();
    let height = head(&rpc).await;
    let fork = block(&rpc, height - 3).await.header.hash;
    let old = block(&rpc, height).await.header.hash;
    let mut socket = Socket::connect(&rpc).await;
    socket.call("eth_subscribe", json!(["newHeads"])).await;
    node.reorganise(3).await;
    assert_eq!(head(&rpc).await, height);
    let mut parent = fork;
    for number in height - 2..=height {
        let header: alloy::rpc::types::Header = parse(socket.notified().await.1);
        assert_eq!((header.number, header.parent_hash), (number, parent));
        assert_eq!(header.hash, block(&rpc, number).await.header.hash);
        parent = header.hash;
    }
    assert_ne!(parent, old);
    let logs = all_logs(&rpc).await;
    assert!(logs.iter().all(|log| log.block_hash != Some(old)));
}
