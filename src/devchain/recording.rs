//! Real blocks from files, linked by empty ones into one chain.
//!
//! A file holds one block as an RPC node gave it: `{"chain_id", "header", "logs"}`. The block is served under its real
//! number and hash with its real logs. Blocks that no file holds are empty and made up; the one right before a real block
//! is served under the hash that the real block names as its parent. Headers may lack fields (filled with zeros) and state
//! their time as `timestamp_rfc3339`; the hash of such a header cannot be recomputed from it.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use alloy::{
    consensus::{
        Header, Sealed,
        constants::{EMPTY_RECEIPTS, EMPTY_TRANSACTIONS},
    },
    primitives::B256,
    rpc::types::Log,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Error, Options,
    body::{Body, Content, Transaction},
    chain::Block,
};

/// Most blocks in the chain of a recording, made-up ones included: files further apart are refused.
const MOST_BLOCKS: u64 = 10_000;

#[derive(Deserialize)]
struct File {
    chain_id: u64,
    header: Map<String, Value>,
    logs: Vec<Log>,
}

struct RealBlock {
    chain_id: u64,
    header: Sealed<Header>,
    transactions: Vec<Transaction>,
    path: PathBuf,
}

/// The bodies of the real blocks; all others are empty.
#[derive(Debug, Default)]
pub(super) struct Recording {
    bodies: HashMap<B256, Body>,
}

impl Recording {
    /// Reads the files of `options.blocks`: the recording, its chain from the lowest block to the head, and the chain id.
    pub(super) fn load(options: &Options) -> Result<(Self, Vec<Block>, u64), Error> {
        let mut real = BTreeMap::new();
        for path in &options.blocks {
            let block = read(path)?;
            if let Some(other) = real.insert(block.header.number, block) {
                return Err(broken(path, format!("{} holds the same block number", other.path.display())));
            }
        }
        let chain_id = one_chain(&real)?;
        let blocks = link(&real, options)?;
        let bodies =
            real.into_values().map(|block| (block.header.hash(), Body { transactions: block.transactions })).collect();
        Ok((Self { bodies }, blocks, chain_id))
    }

    /// The body of the block with this hash.
    pub(super) fn body(&self, hash: &B256) -> Body {
        self.bodies.get(hash).cloned().unwrap_or_default()
    }
}

fn broken(path: &Path, reason: impl Into<String>) -> Error {
    Error::File { path: path.to_owned(), reason: reason.into() }
}

fn read(path: &Path) -> Result<RealBlock, Error> {
    let text = std::fs::read(path).map_err(|error| broken(path, error.to_string()))?;
    let file: File = serde_json::from_slice(&text).map_err(|error| broken(path, error.to_string()))?;
    let header = complete_header(file.header).map_err(|reason| broken(path, reason))?;
    let transactions = by_transaction(file.logs, &header).map_err(|reason| broken(path, reason))?;
    Ok(RealBlock { chain_id: file.chain_id, header, transactions, path: path.to_owned() })
}

/// The header with what is absent filled by zeros, under the hash that the file states.
fn complete_header(mut given: Map<String, Value>) -> Result<Sealed<Header>, String> {
    let hash = given.remove("hash").ok_or("header.hash is missing")?;
    let hash: B256 = serde_json::from_value(hash).map_err(|error| format!("header.hash: {error}"))?;
    if let Some(time) = given.remove("timestamp_rfc3339") {
        let time = time.as_str().ok_or("header.timestamp_rfc3339 is not a string")?;
        let time = humantime::parse_rfc3339(time).map_err(|error| format!("header.timestamp_rfc3339: {error}"))?;
        let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        given.insert("timestamp".to_owned(), json!(format!("{seconds:#x}")));
    }
    given.retain(|_, value| !value.is_null());
    let zeros = serde_json::to_value(Header::default()).map_err(|error| error.to_string())?;
    for (name, zero) in zeros.as_object().into_iter().flatten() {
        let required = !["number", "parentHash", "timestamp"].contains(&name.as_str());
        if required && !given.contains_key(name) {
            given.insert(name.clone(), zero.clone());
        }
    }
    let header = serde_json::from_value(Value::Object(given)).map_err(|error| format!("header: {error}"))?;
    Ok(Sealed::new_unchecked(header, hash))
}

/// The logs under their transactions, after checking that they are all logs of this block, in order.
fn by_transaction(logs: Vec<Log>, header: &Sealed<Header>) -> Result<Vec<Transaction>, String> {
    let mut transactions: Vec<Transaction> = Vec::new();
    for (place, log) in (0u64..).zip(logs) {
        let (Some(hash), Some(index)) = (log.transaction_hash, log.transaction_index) else {
            return Err(format!("logs[{place}] names no transaction"));
        };
        if log.block_hash != Some(header.hash()) || log.block_number != Some(header.number) {
            return Err(format!("logs[{place}] is of another block"));
        }
        if log.log_index != Some(place) {
            return Err(format!(
                "logs[{place}] has logIndex {:?}: the logs are not all of the block's, in order",
                log.log_index
            ));
        }
        match transactions.last_mut() {
            Some(last) if last.hash() == hash => last.logs.push(log.inner),
            Some(last) if last.index >= index => return Err(format!("logs[{place}] is out of order")),
            _ => transactions.push(Transaction { index, logs: vec![log.inner], content: Content::Hash(hash) }),
        }
    }
    Ok(transactions)
}

fn one_chain(real: &BTreeMap<u64, RealBlock>) -> Result<u64, Error> {
    let mut blocks = real.values();
    let first = blocks.next().ok_or_else(|| Error::Options("no block files given".to_owned()))?;
    match blocks.find(|block| block.chain_id != first.chain_id) {
        None => Ok(first.chain_id),
        Some(other) => Err(broken(
            &other.path,
            format!("a block of chain {}, but {} is of chain {}", other.chain_id, first.path.display(), first.chain_id),
        )),
    }
}

/// The chain from `around` blocks below the lowest real block to as many above the highest.
fn link(real: &BTreeMap<u64, RealBlock>, options: &Options) -> Result<Vec<Block>, Error> {
    let (Some((lowest, _)), Some((highest, top))) = (real.first_key_value(), real.last_key_value()) else {
        return Ok(Vec::new());
    };
    let (from, to) = (lowest.saturating_sub(options.around), highest.saturating_add(options.around));
    if to - from >= MOST_BLOCKS {
        let reason = format!("block {highest} is too far from block {lowest}: give each its own node");
        return Err(broken(&top.path, reason));
    }
    let mut chain: Vec<Block> = Vec::new();
    for number in from..=to {
        let parent = chain.last().map_or(B256::ZERO, |block| block.header.hash());
        let header = match real.get(&number) {
            Some(block) if number == from || block.header.parent_hash == parent => block.header.clone(),
            Some(block) => {
                return Err(broken(&block.path, format!("its parent is not the given block {}", number - 1)));
            }
            None => made_up(number, parent, real, options.block_time.as_secs().max(1)),
        };
        chain.push(Block { header, fork: 0 });
    }
    Ok(chain)
}

/// An empty block; its time lies as far from the nearest real block as its number says.
fn made_up(number: u64, parent_hash: B256, real: &BTreeMap<u64, RealBlock>, block_time: u64) -> Sealed<Header> {
    let below = real.range(..number).next_back().map(|(_, block)| &block.header);
    let above = real.range(number..).next().map(|(_, block)| &block.header);
    let timestamp = match (below, above) {
        (Some(below), above) => {
            let latest = above.map_or(u64::MAX, |above| above.timestamp);
            latest.min(below.timestamp + (number - below.number) * block_time)
        }
        (None, Some(above)) => above.timestamp.saturating_sub((above.number - number) * block_time),
        (None, None) => 0,
    };
    let header = Header {
        number,
        parent_hash,
        timestamp,
        transactions_root: EMPTY_TRANSACTIONS,
        receipts_root: EMPTY_RECEIPTS,
        ..Header::default()
    };
    match above {
        Some(above) if above.number == number + 1 => Sealed::new_unchecked(header, above.parent_hash),
        _ => Sealed::new(header),
    }
}
