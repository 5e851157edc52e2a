//! Headers and logs as nodes state them, and the checks that they must pass before anyone uses them.
//!
//! Every field is hostile until checked: a block number may be missing, beyond 2^53, or another than was asked for.
//! Unknown fields are ignored, for hard forks add some (F35).

use std::{borrow::Cow, fmt};

use alloy::primitives::{Address, B256, Bloom, Bytes, Log, U64};
use serde::{
    Deserialize, Deserializer,
    de::{self, IntoDeserializer, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{LogFilter, RpcError, error::unreadable};
use crate::{
    config::LogIndex,
    domain::{BlockRange, BlockRef, Data, Header, MAX_BLOCK_NUMBER, RawLog, Topics},
};

/// The highest number that every reader of JSON holds exactly; messages state places and times, too.
const MAX_EXACT: u64 = MAX_BLOCK_NUMBER;
/// Bits that a log's place in its transaction has.
const TRANSACTION_BITS: u32 = 20;
/// Two logs would be one event, and one of them lost. Whether the answer is wrong or the chain counts otherwise, an
/// operator has to say.
pub(super) const CLASH: &str = "two different logs with one log index; where every node says so, the chain numbers logs \
    within their transactions: write log_index = \"transaction\" at it in config/chains.toml";

/// The part of a header that is read. Own type, because L2s omit fields that alloy's demands.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireHeader {
    number: Option<U64>,
    hash: Option<B256>,
    parent_hash: B256,
    timestamp: U64,
    /// Left out, or of another length, by chains that have none.
    #[serde(default, deserialize_with = "bloom")]
    logs_bloom: Option<Bloom>,
}

fn bloom<'de, D: Deserializer<'de>>(source: D) -> Result<Option<Bloom>, D::Error> {
    let bytes = Option::<Bytes>::deserialize(source)?;
    Ok(bytes.and_then(|bytes| Bloom::try_from(bytes.as_ref()).ok()))
}

impl WireHeader {
    /// What the header says of its block's logs, under the block's hash.
    pub(super) fn bloom(&self) -> Option<(B256, Bloom)> {
        Some((self.hash?, self.logs_bloom?))
    }

    pub(super) fn check(self) -> Result<Header, RpcError> {
        let number = self.number.ok_or_else(|| invalid("a header without a number"))?.to::<u64>();
        let hash = self.hash.ok_or_else(|| invalid("a header without a hash"))?;
        if number > MAX_BLOCK_NUMBER {
            return Err(invalid("a block number at or above 2^53"));
        }
        let timestamp = self.timestamp.to();
        if timestamp > MAX_EXACT {
            return Err(invalid("a block's time at or above 2^53"));
        }
        Ok(Header { number, hash, parent: self.parent_hash, timestamp })
    }
}

/// A log as a node states it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireLog {
    pub(super) address: Address,
    pub(super) topics: Topics,
    pub(super) data: Data,
    #[serde(default, deserialize_with = "quantity")]
    pub(super) block_number: Option<u64>,
    pub(super) block_hash: Option<B256>,
    #[serde(default, deserialize_with = "quantity")]
    pub(super) block_timestamp: Option<u64>,
    pub(super) transaction_hash: Option<B256>,
    #[serde(default, deserialize_with = "quantity")]
    pub(super) transaction_index: Option<u64>,
    #[serde(default, deserialize_with = "quantity")]
    pub(super) log_index: Option<u64>,
    #[serde(default)]
    pub(super) removed: bool,
}

/// A number as JSON-RPC has it, such as `0x1f`; whatever else alloy takes for one is one here, too.
fn quantity<'de, D: Deserializer<'de>>(source: D) -> Result<Option<u64>, D::Error> {
    source.deserialize_any(Quantity)
}

pub(super) struct Quantity;

impl Quantity {
    /// The longest one, bytes: a sixteenth digit is the last that fits 64 bits.
    pub(super) const LONGEST: usize = 2 + 16;

    /// The number, where it is written as it should be: by this way it is read in a third of the time.
    pub(super) fn usual(text: &str) -> Option<u64> {
        let digits = text.strip_prefix("0x").filter(|digits| !digits.is_empty() && text.len() <= Self::LONGEST)?;
        digits.bytes().try_fold(0, |number, digit| Some(number << 4 | u64::from(char::from(digit).to_digit(16)?)))
    }
}

impl Visitor<'_> for Quantity {
    type Value = Option<u64>;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("a number in hexadecimal digits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<u64>, E> {
        Self::usual(text)
            .map_or_else(|| U64::deserialize(text.into_deserializer()).map(|number| number.to()), Ok)
            .map(Some)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Option<u64>, E> {
        Ok(Some(number))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<u64>, E> {
        Ok(None)
    }
}

impl WireLog {
    /// What the chain's consensus has of it: a receipt holds no more.
    pub(super) fn consensus(&self) -> Log {
        Log::new_unchecked(self.address, self.topics.to_vec(), (&self.data).into())
    }

    /// Whether it says that it is at this place in this block.
    pub(super) fn is_at(&self, block: BlockRef, transaction: usize, log: usize) -> bool {
        let at = |stated: Option<u64>, place: usize| stated.is_some_and(|stated| usize::try_from(stated) == Ok(place));
        self.block_hash == Some(block.hash)
            && at(self.transaction_index, transaction)
            && at(self.log_index, log)
            && self.block_number == Some(block.number)
    }

    /// Gives it a place in its block where the chain numbers logs within their transaction: the transaction's place times
    /// 2^20, and the log's in it. So an id does not depend on which other logs were asked for.
    ///
    /// # Errors
    ///
    /// [`RpcError::Invalid`] where a transaction has 2^20 logs or more; a block's gas has no room for them.
    fn number_by_transaction(&mut self) -> Result<(), RpcError> {
        let (Some(transaction), Some(index)) = (self.transaction_index, self.log_index) else { return Ok(()) };
        if index >= 1 << TRANSACTION_BITS {
            return Err(invalid("a log at a place in its transaction at or above 2^20"));
        }
        self.log_index = Some(transaction.saturating_mul(1 << TRANSACTION_BITS).saturating_add(index));
        Ok(())
    }

    /// The log, if it is one that is asked for, in a block that exists. Its time is 0 where the node does not state its block's.
    fn check(self, asked: &Asked<'_>) -> Result<RawLog, RpcError> {
        if self.removed {
            return Err(invalid("a log marked as removed in an answer of eth_getLogs"));
        }
        let (Some(number), Some(hash), Some(transaction_hash)) =
            (self.block_number, self.block_hash, self.transaction_hash)
        else {
            return Err(invalid("a pending log"));
        };
        let (Some(transaction_index), Some(log_index)) = (self.transaction_index, self.log_index) else {
            return Err(invalid("a log without its place in the block"));
        };
        if transaction_index.max(log_index) > MAX_EXACT {
            return Err(invalid("a log at a place at or above 2^53"));
        }
        if !asked.for_topic_of(&self) {
            return Err(invalid("a log with a topic that was not asked for"));
        }
        if !asked.for_address_of(&self) {
            return Err(invalid("a log of a contract that was not asked for"));
        }
        let timestamp = self.block_timestamp.unwrap_or_default();
        if timestamp > MAX_EXACT {
            return Err(invalid("a log's block time at or above 2^53"));
        }
        Ok(RawLog {
            address: self.address,
            topics: self.topics,
            data: self.data,
            block: BlockRef { number, hash },
            timestamp,
            transaction_hash,
            transaction_index,
            log_index,
        })
    }
}

/// What logs are asked for; quick to tell of each of many.
#[derive(Debug)]
pub(super) struct Asked<'f> {
    topics: &'f [B256],
    /// In order; none means any.
    addresses: Cow<'f, [Address]>,
}

impl<'f> Asked<'f> {
    pub(super) fn by(filter: &'f LogFilter) -> Self {
        let mut addresses = Cow::from(&filter.addresses);
        if !addresses.is_sorted() {
            addresses.to_mut().sort_unstable();
        }
        Self { topics: &filter.topics, addresses }
    }

    /// Whether this log is asked for.
    pub(super) fn for_log(&self, log: &WireLog) -> bool {
        self.for_topic_of(log) && self.for_address_of(log)
    }

    fn for_topic_of(&self, log: &WireLog) -> bool {
        log.topics.first().is_some_and(|topic| self.topics.contains(topic))
    }

    fn for_address_of(&self, log: &WireLog) -> bool {
        self.addresses.is_empty() || self.addresses.binary_search(&log.address).is_ok()
    }
}

/// The logs of one answer, each checked as soon as it is read, so that the answer need not be kept as it was said.
#[derive(Debug)]
pub(super) struct Gathering<'f> {
    asked: Asked<'f>,
    log_index: LogIndex,
    logs: Vec<RawLog>,
    /// Why the answer cannot be used. No log is kept then.
    wrong: Option<RpcError>,
}

impl<'f> Gathering<'f> {
    /// Nothing yet of what `filter` asks for, on a chain that numbers its logs like this.
    pub(super) fn new(filter: &'f LogFilter, log_index: LogIndex) -> Self {
        Self { asked: Asked::by(filter), log_index, logs: Vec::new(), wrong: None }
    }

    /// These logs, of a chain that numbers them within their blocks: of another one none is restored.
    pub(super) fn of(logs: Vec<WireLog>, filter: &'f LogFilter) -> Self {
        let mut gathering = Self { logs: Vec::with_capacity(logs.len()), ..Self::new(filter, LogIndex::Block) };
        logs.into_iter().for_each(|log| gathering.add(log));
        gathering
    }

    /// One more log.
    pub(super) fn add(&mut self, mut log: WireLog) {
        if self.is_refused() {
            return;
        }
        let numbered = match self.log_index {
            LogIndex::Block => Ok(()),
            LogIndex::Transaction => log.number_by_transaction(),
        };
        match numbered.and_then(|()| log.check(&self.asked)) {
            Ok(log) => self.logs.push(log),
            Err(error) => self.refuse(error),
        }
    }

    /// All logs of a list.
    pub(super) fn read(&mut self, list: &RawValue) {
        if let Err(error) = serde_json::Deserializer::from_str(list.get()).deserialize_seq(&mut *self) {
            self.refuse(unreadable(error));
        }
    }

    /// The answer is not one that can be used; the first reason counts.
    pub(super) fn refuse(&mut self, error: RpcError) {
        self.logs = Vec::new();
        self.wrong.get_or_insert(error);
    }

    /// What was gathered was not the answer.
    pub(super) fn forget(&mut self) {
        (self.logs, self.wrong) = (Vec::new(), None);
    }

    /// Whether there is a reason already not to use the answer.
    pub(super) fn is_refused(&self) -> bool {
        self.wrong.is_some()
    }

    /// How many logs there are, also those that stand there twice.
    pub(super) fn told(&self) -> usize {
        self.logs.len()
    }

    /// The logs of one block, which was asked for by its hash.
    pub(super) fn of_block(self, block: BlockRef, timestamp: u64) -> Result<Vec<RawLog>, RpcError> {
        let mut logs = self.in_order()?;
        if logs.iter().any(|log| log.block != block) {
            return Err(invalid("a log of another block than the one asked for by hash"));
        }
        logs.iter_mut().for_each(|log| log.timestamp = timestamp);
        Ok(logs)
    }

    /// The logs of a range: inside it, and one hash for each height. The time of some may be 0, which means that it is not stated.
    pub(super) fn of_range(self, range: BlockRange) -> Result<Vec<RawLog>, RpcError> {
        let logs = self.in_order()?;
        if logs.iter().any(|log| !range.contains(log.block.number)) {
            return Err(invalid("a log outside the range that was asked for"));
        }
        let two_versions = neighbours(&logs)
            .any(|(one, next)| one.block.number == next.block.number && one.block.hash != next.block.hash);
        if two_versions {
            return Err(invalid("logs of two versions of one block"));
        }
        Ok(logs)
    }

    /// By block and log index, without exact duplicates (F16).
    fn in_order(self) -> Result<Vec<RawLog>, RpcError> {
        let Self { mut logs, wrong, .. } = self;
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        logs.sort_by_key(|log| (log.block.number, log.log_index));
        logs.dedup();
        if neighbours(&logs).any(|(one, next)| one.block == next.block && one.log_index == next.log_index) {
            return Err(invalid(CLASH));
        }
        Ok(logs)
    }
}

impl<'de> Visitor<'de> for &mut Gathering<'_> {
    type Value = ();

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("a list of logs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut logs: A) -> Result<(), A::Error> {
        while let Some(log) = logs.next_element()? {
            self.add(log);
        }
        Ok(())
    }
}

fn neighbours(logs: &[RawLog]) -> impl Iterator<Item = (&RawLog, &RawLog)> {
    logs.iter().zip(logs.iter().skip(1))
}

/// The logs of one block, which was asked for by its hash.
pub(super) fn block_logs(
    logs: Vec<WireLog>,
    block: BlockRef,
    timestamp: u64,
    filter: &LogFilter,
) -> Result<Vec<RawLog>, RpcError> {
    Gathering::of(logs, filter).of_block(block, timestamp)
}

/// The logs of several answers for the same blocks, each of other contracts, in their order; one answer alone is checked
/// where it is read.
pub(super) fn merged(mut logs: Vec<RawLog>) -> Result<Vec<RawLog>, RpcError> {
    logs.sort_by_key(|log| (log.block.number, log.log_index));
    let same_height = || neighbours(&logs).filter(|(one, next)| one.block.number == next.block.number);
    if same_height().any(|(one, next)| one.block != next.block) {
        return Err(invalid("logs of two versions of one block"));
    }
    if same_height().any(|(one, next)| one.log_index == next.log_index) {
        return Err(invalid(CLASH));
    }
    Ok(logs)
}

fn invalid(what: &str) -> RpcError {
    RpcError::Invalid(what.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const TOPIC: B256 = B256::repeat_byte(0xdd);
    const HASH: B256 = B256::repeat_byte(0xaa);

    fn filter() -> LogFilter {
        LogFilter { addresses: vec![], topics: vec![TOPIC] }
    }

    fn log(changes: &Value) -> WireLog {
        let mut log = json!({
            "address": Address::ZERO, "topics": [TOPIC], "data": "0x", "blockNumber": "0x5", "blockHash": HASH,
            "transactionHash": B256::ZERO, "transactionIndex": "0x0", "logIndex": "0x0", "removed": false,
        });
        let changes = changes.as_object().unwrap().clone();
        log.as_object_mut().unwrap().extend(changes);
        serde_json::from_value(log).unwrap()
    }

    fn of_block(logs: Vec<WireLog>) -> Result<Vec<RawLog>, RpcError> {
        block_logs(logs, BlockRef { number: 5, hash: HASH }, 99, &filter())
    }

    #[test]
    fn logs_are_put_in_order_and_exact_duplicates_dropped() {
        let logs =
            vec![log(&json!({"logIndex": "0x2"})), log(&json!({"logIndex": "0x1"})), log(&json!({"logIndex": "0x2"}))];
        let indexes: Vec<u64> = of_block(logs).unwrap().iter().map(|log| log.log_index).collect();
        assert_eq!(indexes, [1, 2]);
    }

    #[test]
    fn a_block_s_time_comes_from_its_header() {
        assert_eq!(of_block(vec![log(&json!({"blockTimestamp": "0x7"}))]).unwrap()[0].timestamp, 99);
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let wrong = [
            json!({"removed": true}),
            json!({"blockHash": null}),
            json!({"logIndex": null}),
            json!({"logIndex": "0x20000000000000"}),
            json!({"transactionIndex": "0xffffffffffffffff"}),
            json!({"blockTimestamp": "0x20000000000000"}),
            json!({"topics": []}),
            json!({"topics": [B256::ZERO]}),
            json!({"blockHash": B256::ZERO}),
            json!({"blockNumber": "0x6"}),
        ];
        for change in wrong {
            assert!(matches!(of_block(vec![log(&change)]), Err(RpcError::Invalid(_))), "{change}");
        }
        let clash = vec![log(&json!({})), log(&json!({"data": "0x01"}))];
        assert!(matches!(of_block(clash), Err(RpcError::Invalid(_))));
    }

    #[test]
    fn logs_that_are_numbered_within_their_transaction_get_places_of_their_own() {
        let of = |transaction: &str, index: &str| log(&json!({"transactionIndex": transaction, "logIndex": index}));
        let two = || vec![of("0x1", "0x0"), of("0x0", "0x0"), of("0x1", "0x1")];
        assert!(of_block(two()).is_err_and(|error| error.to_string().contains("config/chains.toml")));
        let numbered = |logs: Vec<WireLog>| {
            let filter = filter();
            let mut gathering = Gathering::new(&filter, LogIndex::Transaction);
            logs.into_iter().for_each(|log| gathering.add(log));
            gathering.of_block(BlockRef { number: 5, hash: HASH }, 99)
        };
        let places: Vec<u64> = numbered(two()).unwrap().iter().map(|log| log.log_index).collect();
        assert_eq!(places, [0, 1 << 20, (1 << 20) + 1]);
        let refused = |log, words: &str| numbered(vec![log]).is_err_and(|error| error.to_string().contains(words));
        assert!(refused(of("0x0", "0x100000"), "2^20"));
        assert!(refused(of("0xffffffffffffffff", "0x1"), "2^53"));
    }

    #[test]
    fn answers_for_several_lists_are_one_block_s_logs_or_refused() {
        let of = |change: &Value| of_block(vec![log(change)]).unwrap();
        let (first, second) = (of(&json!({})), of(&json!({"address": Address::repeat_byte(1), "logIndex": "0x1"})));
        let indexes = |logs: Vec<RawLog>| logs.iter().map(|log| log.log_index).collect::<Vec<_>>();
        assert_eq!(indexes(merged([second, first.clone()].concat()).unwrap()), [0, 1]);
        let same_place = of(&json!({"address": Address::repeat_byte(1)}));
        assert!(
            merged([same_place, first.clone()].concat()).is_err_and(|error| error.to_string().contains("log_index"))
        );
        let mut other_block = of(&json!({"logIndex": "0x1"}));
        other_block[0].block.hash = B256::ZERO;
        assert!(merged([other_block, first].concat()).is_err());
    }

    #[test]
    fn contracts_are_found_in_a_list_of_any_order_and_what_is_wrong_at_first_is_told() {
        let (one, two, three) = (Address::repeat_byte(1), Address::repeat_byte(2), Address::repeat_byte(3));
        let filter = LogFilter { addresses: vec![three, one], topics: vec![TOPIC] };
        let of = |address: Address| log(&json!({"address": address}));
        let asked = Asked::by(&filter);
        assert_eq!([one, two, three].map(|address| asked.for_log(&of(address))), [true, false, true]);
        let mut gathering = Gathering::new(&filter, LogIndex::Block);
        gathering.add(of(one));
        gathering.add(of(two));
        gathering.read(&serde_json::value::to_raw_value(&json!([{}])).unwrap());
        gathering.add(of(three));
        assert_eq!((gathering.is_refused(), gathering.told()), (true, 0));
        let error = gathering.of_block(BlockRef { number: 5, hash: HASH }, 99).unwrap_err();
        assert!(error.to_string().contains("a contract that was not asked for"), "{error}");
    }

    #[test]
    fn a_range_answer_has_one_version_of_each_block_and_nothing_outside() {
        let range = BlockRange { from: 5, to: 6 };
        let two = vec![log(&json!({})), log(&json!({"blockHash": B256::ZERO, "logIndex": "0x1"}))];
        let of_range = |logs| Gathering::of(logs, &filter()).of_range(range);
        assert!(of_range(two).is_err());
        assert!(of_range(vec![log(&json!({"blockNumber": "0x7"}))]).is_err());
        assert_eq!(of_range(vec![log(&json!({"blockNumber": "0x6"}))]).unwrap().len(), 1);
    }
}
