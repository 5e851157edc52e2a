//! The proof that no log of a block was left out.
//!
//! A block's hash is the hash of its header, the header holds the root of the trie of its receipts, and the receipts hold
//! every log in order. Where the header as stated hashes to the block's hash, and the receipts as stated have the root in
//! it, no log is missing in them, none is added and none changed, whatever node told of them. `eth_getLogs` is then held
//! against them (F06; EIP-2718 and EIP-658 say how a receipt is encoded).
//!
//! Not proven is what receipts do not hold: hashes of transactions. Nor is the hash itself: that it is the chain's is for
//! the pipeline to see.

use std::collections::HashMap;

use alloy::{
    consensus::{Eip658Value, Receipt, TxReceipt, proofs::ordered_trie_root_with_encoder},
    primitives::{B256, Bytes, Log, U8, U64},
    rlp::Encodable,
    rpc::types,
};
use serde::Deserialize;

use super::{
    LogFilter, RpcError, wire,
    wire::{Asked, WireLog},
};
use crate::domain::{BlockRef, MAX_BLOCK_NUMBER, RawLog};

/// EIP-4844's and EIP-7702's types end what Ethereum has: 0 legacy, 1 EIP-2930, 2 EIP-1559, 3 EIP-4844, 4 EIP-7702.
const LAST_KNOWN_TYPE: u8 = 4;
/// EIP-2718: types above it are none.
const LAST_TYPE: u8 = 0x7f;

/// A receipt as a node states it: what its encoding needs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireReceipt {
    /// Left out by nodes that are older than EIP-2718.
    #[serde(default, rename = "type")]
    kind: U8,
    status: Option<U8>,
    /// The state after the transaction, instead of the status before Byzantium; some nodes state it empty beside one.
    root: Option<Bytes>,
    cumulative_gas_used: U64,
    logs: Vec<WireLog>,
    /// OP stack: of deposits, part of the encoding since Canyon, which made it version 1.
    deposit_nonce: Option<U64>,
    deposit_receipt_version: Option<U64>,
}

/// Why a block's logs could not be proven.
#[derive(Debug)]
pub(super) enum Unproven {
    /// The node did not answer with a header and receipts.
    Request(RpcError),
    /// The block does not fit the encodings that are known: another encoding, or a false answer.
    Unknown(String),
    /// Every part has a known encoding, and they contradict each other: a false answer.
    Wrong(String),
}

impl From<RpcError> for Unproven {
    fn from(error: RpcError) -> Self {
        Self::Request(error)
    }
}

/// A block with all its logs, proven by its hash.
#[derive(Debug)]
pub(super) struct Proven {
    block: BlockRef,
    timestamp: u64,
    logs: Vec<WireLog>,
    /// Whether there was a receipt to prove, or only that there is none.
    has_receipts: bool,
}

/// What is left of an answer of `eth_getLogs` that was held against a proof.
#[derive(Debug)]
pub(super) struct Held {
    /// The logs that were asked for, as the receipts have them.
    pub(super) logs: Vec<RawLog>,
    /// How many of them the answer did not have.
    pub(super) missing: usize,
    /// How many it had that the receipts do not have.
    pub(super) false_logs: usize,
    /// Whether the block had receipts.
    pub(super) has_receipts: bool,
}

impl Held {
    /// Whether the answer was another one.
    pub(super) fn is_other(&self) -> bool {
        self.missing + self.false_logs > 0
    }
}

/// Proves the receipts of a block by its header.
pub(super) fn prove(header: &types::Header, receipts: Vec<WireReceipt>) -> Result<Proven, Unproven> {
    if header.inner.hash_slow() != header.hash {
        return Err(unknown("the header does not hash to the block's hash"));
    }
    if header.number.max(header.timestamp) > MAX_BLOCK_NUMBER {
        return Err(unknown("a block's number or time at or above 2^53"));
    }
    let encoded = receipts.iter().map(WireReceipt::encoded).collect::<Option<Vec<_>>>();
    let encoded = encoded.ok_or_else(|| unknown("a receipt without a status, or of a type beyond EIP-2718"))?;
    let root = ordered_trie_root_with_encoder(&encoded, |receipt, out| out.extend_from_slice(receipt));
    if root != header.receipts_root {
        return Err(match strange(&receipts) {
            Some(what) => unknown(&format!("the receipts do not have the header's root, and {what}")),
            None => Unproven::Wrong("the receipts do not have the header's root".into()),
        });
    }
    let block = BlockRef { number: header.number, hash: header.hash };
    let mut place = 0;
    for (transaction, receipt) in receipts.iter().enumerate() {
        for log in &receipt.logs {
            if !log.is_at(block, transaction, place) {
                return Err(unknown("a log in a receipt does not state its own place in the block"));
            }
            place += 1;
        }
    }
    let has_receipts = !receipts.is_empty();
    let logs = receipts.into_iter().flat_map(|receipt| receipt.logs).collect();
    Ok(Proven { block, timestamp: header.timestamp, logs, has_receipts })
}

/// What in these receipts no Ethereum block has: their encoding is a guess then.
fn strange(receipts: &[WireReceipt]) -> Option<&'static str> {
    if receipts.iter().any(|receipt| receipt.kind > U8::from(LAST_KNOWN_TYPE)) {
        return Some("there is a transaction of another chain's type");
    }
    // Polygon states the logs of its state sync in a receipt that no transaction has, and that is not in the root.
    let gas = receipts.iter().map(|receipt| receipt.cumulative_gas_used);
    let is_ascending = gas.clone().zip(gas.skip(1)).all(|(before, after)| before < after);
    (!is_ascending).then_some("there is a receipt that no transaction paid for")
}

impl WireReceipt {
    /// As the receipts' trie has it; `None` where it cannot stand there.
    fn encoded(&self) -> Option<Vec<u8>> {
        let kind = self.kind.to::<u8>();
        let status = match (self.status, &self.root) {
            (Some(status), _) => Eip658Value::Eip658(!status.is_zero()),
            (None, Some(root)) => Eip658Value::PostState(B256::try_from(root.as_ref()).ok()?),
            (None, None) => return None,
        };
        if kind > LAST_TYPE {
            return None;
        }
        let logs: Vec<Log> = self.logs.iter().map(WireLog::consensus).collect();
        let receipt = Receipt { status, cumulative_gas_used: self.cumulative_gas_used.to(), logs };
        let bloom = receipt.bloom();
        // Between Regolith and Canyon deposits had a nonce, and the root did not have it.
        let deposit = self.deposit_receipt_version.map(|version| (self.deposit_nonce.unwrap_or_default(), version));
        let mut list = receipt.rlp_header_with_bloom(&bloom);
        list.payload_length += deposit.map_or(0, |(nonce, version)| nonce.length() + version.length());
        let mut out = Vec::with_capacity(list.payload_length + 4);
        if kind > 0 {
            out.push(kind);
        }
        list.encode(&mut out);
        receipt.rlp_encode_fields_with_bloom(&bloom, &mut out);
        if let Some((nonce, version)) = deposit {
            nonce.encode(&mut out);
            version.encode(&mut out);
        }
        Some(out)
    }
}

impl Proven {
    /// Itself, if it is this block: under the hash that was asked for another height may be proven.
    pub(super) fn of(self, block: BlockRef) -> Result<Self, Unproven> {
        if self.block != block {
            return Err(unknown("the hash is that of a block at another height"));
        }
        Ok(self)
    }

    /// Holds the answer of `eth_getLogs` for this block against its receipts: these are right.
    pub(super) fn hold(self, told: &[RawLog], filter: &LogFilter) -> Result<Held, Unproven> {
        let Self { block, timestamp, logs, has_receipts } = self;
        if told.iter().any(|log| log.block != block) {
            // The chain changed between the two requests.
            return Err(RpcError::Behind("logs and receipts are of two versions of one block".into()).into());
        }
        let all = logs.len() as u64;
        if told.iter().any(|log| log.log_index >= all) {
            return Err(unknown("eth_getLogs has a log that is in no receipt"));
        }
        let asked = Asked::by(filter);
        let wanted = logs.into_iter().filter(|log| asked.for_log(log)).collect();
        let logs = wire::block_logs(wanted, block, timestamp, filter)?;
        let told: HashMap<u64, &RawLog> = told.iter().map(|log| (log.log_index, log)).collect();
        let right = logs.iter().filter(|log| told.get(&log.log_index).is_some_and(|told| is_same(log, told))).count();
        let (missing, false_logs) = (logs.len() - right, told.len() - right);
        Ok(Held { logs, missing, false_logs, has_receipts })
    }
}

/// Whether two logs of one block are the same; the time that a node states beside a log may be missing.
fn is_same(one: &RawLog, other: &RawLog) -> bool {
    let place = |log: &RawLog| (log.log_index, log.transaction_index, log.transaction_hash, log.address);
    place(one) == place(other) && one.topics == other.topics && one.data == other.data
}

fn unknown(what: &str) -> Unproven {
    Unproven::Unknown(what.to_owned())
}

#[cfg(test)]
mod tests {
    use alloy::{
        consensus::{Header, ReceiptEnvelope, TxType, proofs::calculate_receipt_root},
        primitives::Address,
    };
    use serde_json::{Value, json};

    use super::*;

    const TOPIC: B256 = B256::repeat_byte(0xdd);
    const DEPOSIT: u8 = 0x7e;

    /// One receipt of each of Ethereum's types with one log each, the second of a transaction that failed, and their root
    /// as alloy computes it.
    fn of_every_type() -> (B256, Vec<Value>) {
        let types = [TxType::Legacy, TxType::Eip2930, TxType::Eip1559, TxType::Eip4844, TxType::Eip7702];
        let log =
            |place: u8| Log::new_unchecked(Address::repeat_byte(place), vec![TOPIC], Bytes::from(vec![place; 40]));
        let receipts = types.into_iter().zip(0u8..).map(|(kind, place)| {
            let receipt = Receipt {
                status: (place != 1).into(),
                cumulative_gas_used: 21_000 * (u64::from(place) + 1),
                logs: vec![log(place)],
            };
            ReceiptEnvelope::from_typed(kind, receipt)
        });
        let root = calculate_receipt_root(&receipts.collect::<Vec<_>>());
        let stated = (0..5u64).map(|place| {
            let log = log(u8::try_from(place).unwrap());
            json!({ "type": U64::from(place), "status": U64::from(place != 1),
                "cumulativeGasUsed": U64::from(21_000 * (place + 1)), "logs": [{ "address": log.address,
                "topics": log.topics(), "data": log.data.data, "blockNumber": "0x5", "transactionIndex": U64::from(place),
                "transactionHash": B256::repeat_byte(7), "logIndex": U64::from(place) }] })
        });
        (root, stated.collect())
    }

    /// A block with these receipts under this root.
    fn block(receipts_root: B256, mut receipts: Vec<Value>) -> (types::Header, Vec<WireReceipt>) {
        let header = Header { number: 5, timestamp: 99, receipts_root, ..Header::default() };
        let header = types::Header::new(header);
        for log in receipts.iter_mut().flat_map(|receipt| receipt["logs"].as_array_mut().unwrap()) {
            log["blockHash"] = json!(header.hash);
        }
        (header, serde_json::from_value(Value::Array(receipts)).unwrap())
    }

    fn outcome(root: B256, receipts: Vec<Value>) -> Result<Proven, Unproven> {
        let (header, receipts) = block(root, receipts);
        prove(&header, receipts)
    }

    fn filter() -> LogFilter {
        LogFilter { addresses: vec![], topics: vec![TOPIC] }
    }

    #[test]
    fn receipts_of_every_type_have_the_root_that_alloy_computes() {
        let (root, receipts) = of_every_type();
        let held = outcome(root, receipts).unwrap().hold(&[], &filter()).unwrap();
        assert_eq!((held.logs.len(), held.missing, held.false_logs, held.has_receipts), (5, 5, 0, true));
        assert!(held.logs.iter().zip(0..).all(|(log, place)| log.log_index == place && log.timestamp == 99));
        let none = outcome(alloy::consensus::EMPTY_ROOT_HASH, vec![]).unwrap().hold(&[], &filter()).unwrap();
        assert!(!none.is_other() && !none.has_receipts);
    }

    #[test]
    fn whatever_is_changed_in_a_receipt_is_seen() {
        let (root, receipts) = of_every_type();
        let changes: [fn(&mut Value); 7] = [
            |all| all[2]["logs"] = json!([]),
            |all| all[2]["logs"][0]["data"] = json!("0x"),
            |all| all[2]["logs"][0]["address"] = json!(Address::ZERO),
            |all| all[2]["logs"][0]["topics"] = json!([TOPIC, TOPIC]),
            |all| all[1]["status"] = json!("0x1"),
            |all| all[4]["type"] = json!("0x3"),
            |all| drop(all.as_array_mut().unwrap().pop()),
        ];
        for (change, number) in changes.into_iter().zip(0..) {
            let mut stated = json!(receipts);
            change(&mut stated);
            let stated = stated.as_array().unwrap().clone();
            assert!(matches!(outcome(root, stated), Err(Unproven::Wrong(_))), "change {number}");
        }
    }

    #[test]
    fn what_may_be_another_encoding_is_not_called_wrong() {
        let (root, receipts) = of_every_type();
        let (mut header, same) = block(root, receipts.clone());
        header.inner.gas_limit += 1;
        assert!(matches!(prove(&header, same), Err(Unproven::Unknown(_))), "a header with another hash");
        let inner = Header { timestamp: MAX_BLOCK_NUMBER + 1, ..header.inner };
        assert!(matches!(prove(&types::Header::new(inner), vec![]), Err(Unproven::Unknown(_))), "a time beyond 2^53");
        let changes: [fn(&mut Value); 6] = [
            |all| all[4]["type"] = json!("0x6a"),
            |all| all[4]["type"] = json!("0x80"),
            |all| all[4]["status"] = Value::Null,
            // As Polygon states a state sync.
            |all| all.as_array_mut().unwrap().push(json!({ "status": "0x1", "cumulativeGasUsed": "0x0", "logs": [] })),
            // Its logs are numbered otherwise than by their place in the block.
            |all| all[4]["logs"][0]["logIndex"] = json!("0x0"),
            |all| all[4]["logs"][0]["transactionIndex"] = json!("0x0"),
        ];
        for (change, number) in changes.into_iter().zip(0..) {
            let mut stated = json!(receipts);
            change(&mut stated);
            let stated = stated.as_array().unwrap().clone();
            assert!(matches!(outcome(root, stated), Err(Unproven::Unknown(_))), "change {number}");
        }
    }

    #[test]
    fn an_answer_is_held_against_the_receipts_log_by_log() {
        let (root, receipts) = of_every_type();
        let proven = || outcome(root, receipts.clone()).unwrap();
        let truth = proven().hold(&[], &filter()).unwrap().logs;
        let held = |told: &[RawLog]| proven().hold(told, &filter());
        assert!(!held(&truth).unwrap().is_other());
        let block = truth[0].block;
        assert!(proven().of(block).is_ok());
        assert!(matches!(proven().of(BlockRef { number: 6, ..block }), Err(Unproven::Unknown(_))));
        let mut told = truth.clone();
        told.remove(3);
        told[0].data = Bytes::new().into();
        told[1].timestamp = 7;
        let other = held(&told).unwrap();
        assert_eq!((other.missing, other.false_logs), (2, 1), "the time beside a log is no part of it");
        assert_eq!(other.logs, truth);
        let one = LogFilter { addresses: vec![Address::repeat_byte(2)], ..filter() };
        assert_eq!(proven().hold(&[], &one).unwrap().logs, truth[2..3]);
        told[0].log_index = 5;
        assert!(matches!(held(&told), Err(Unproven::Unknown(_))), "of no receipt");
        told[0].block.hash = B256::ZERO;
        assert!(matches!(held(&told), Err(Unproven::Request(RpcError::Behind(_)))), "another version of the block");
    }

    /// Before Byzantium a receipt held the state after its transaction.
    #[test]
    fn a_state_stands_in_for_the_status_where_there_is_none() {
        let state = B256::repeat_byte(3);
        let receipt = Receipt { status: state.into(), cumulative_gas_used: 21_000, logs: vec![] };
        let root = calculate_receipt_root(&[ReceiptEnvelope::from_typed(TxType::Legacy, receipt)]);
        let stated = |root: Value| vec![json!({ "root": root, "cumulativeGasUsed": "0x5208", "logs": [] })];
        assert!(outcome(root, stated(json!(state))).is_ok());
        assert!(matches!(outcome(root, stated(json!("0x"))), Err(Unproven::Unknown(_))));
    }

    /// OP stack: a deposit's nonce and version are part of its receipt since Canyon, and neither is before.
    #[test]
    fn a_deposit_has_its_nonce_in_the_root_once_it_has_a_version() {
        let deposit = |version: Value| {
            let stated = json!({ "type": U64::from(DEPOSIT), "status": "0x1", "cumulativeGasUsed": "0xb741", "logs": [],
                "depositNonce": "0x3d3bbf", "depositReceiptVersion": version });
            serde_json::from_value::<WireReceipt>(stated).unwrap().encoded().unwrap()
        };
        let bloom = alloy::primitives::Bloom::ZERO;
        let fields = |more: &[u64]| {
            let mut payload = alloy::rlp::encode(true);
            payload.extend(alloy::rlp::encode(0xb741u64));
            payload.extend(alloy::rlp::encode(bloom));
            // No logs.
            payload.push(0xc0);
            more.iter().for_each(|one| payload.extend(alloy::rlp::encode(one)));
            let mut out = vec![DEPOSIT, 0xf9];
            out.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
            out.extend(payload);
            out
        };
        assert_eq!(deposit(Value::Null), fields(&[]));
        assert_eq!(deposit(json!("0x1")), fields(&[0x003d_3bbf, 1]));
    }
}
