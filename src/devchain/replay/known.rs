//! What a recording knows of the chain, whoever told it: for questions that an endpoint was never asked.
//!
//! Logs that one answer left out and another has are there: it is what was on the chain, not what one node said of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use alloy::primitives::{B256, U64};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::question::Asked;

/// Longest range whose logs are put together of others.
const LONGEST: u64 = 10_000;

/// Blocks and logs.
#[derive(Debug, Default)]
pub(super) struct Known {
    blocks: HashMap<B256, Block>,
    by_number: HashMap<u64, Vec<B256>>,
    /// Logs by filter and block, and by their index.
    logs: HashMap<(String, B256), BTreeMap<u64, Arc<RawValue>>>,
    /// For which filter which ranges were answered.
    ranges: HashMap<String, Vec<(u64, u64)>>,
    /// For which filter which blocks were answered by their hash.
    whole: HashSet<(String, B256)>,
}

#[derive(Debug)]
struct Block {
    number: u64,
    /// When it was first told of.
    seen: u64,
    /// Its parent and its header; `None` where only logs name it.
    header: Option<(B256, Arc<RawValue>)>,
}

/// The part of a block or head that places it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireBlock {
    number: U64,
    hash: B256,
    parent_hash: B256,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireLog {
    block_number: U64,
    block_hash: B256,
    log_index: U64,
}

/// Where the replay stands: the newest head that it told of, and the moment of that in the recording.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    pub(super) at: u64,
    pub(super) head: Option<B256>,
}

impl Known {
    /// Learns what an answer tells; of a block its hash.
    pub(super) fn learn(&mut self, asked: &Asked, result: &Arc<RawValue>, at: u64) -> Option<B256> {
        match asked {
            Asked::Latest | Asked::Tag | Asked::Number(_) | Asked::Hash(_) => return self.learn_block(result, at),
            Asked::BlockLogs(filter, hash) => {
                self.learn_logs(filter, result, at)?;
                self.whole.insert((filter.clone(), *hash));
            }
            Asked::RangeLogs(filter, from, to) => {
                self.learn_logs(filter, result, at)?;
                self.ranges.entry(filter.clone()).or_default().push((*from, *to));
            }
            Asked::Changing | Asked::Fixed => {}
        }
        None
    }

    /// Learns a block or an announced head; its hash.
    pub(super) fn learn_block(&mut self, header: &Arc<RawValue>, at: u64) -> Option<B256> {
        let wire: WireBlock = serde_json::from_str(header.get()).ok()?;
        let block = self.place(wire.hash, wire.number.to(), at);
        block.header.get_or_insert_with(|| (wire.parent_hash, Arc::clone(header)));
        Some(wire.hash)
    }

    fn learn_logs(&mut self, filter: &str, logs: &RawValue, at: u64) -> Option<()> {
        for log in serde_json::from_str::<Vec<Box<RawValue>>>(logs.get()).ok()? {
            let wire: WireLog = serde_json::from_str(log.get()).ok()?;
            self.place(wire.block_hash, wire.block_number.to(), at);
            let of_block = self.logs.entry((filter.to_owned(), wire.block_hash)).or_default();
            of_block.insert(wire.log_index.to(), log.into());
        }
        Some(())
    }

    fn place(&mut self, hash: B256, number: u64, at: u64) -> &mut Block {
        self.blocks.entry(hash).or_insert_with(|| {
            self.by_number.entry(number).or_default().push(hash);
            Block { number, seen: at, header: None }
        })
    }

    /// The highest block.
    pub(super) fn highest(&self) -> u64 {
        self.by_number.keys().copied().max().unwrap_or_default()
    }

    /// What the answer is, as JSON, where it is known.
    pub(super) fn answer(&self, asked: &Asked, position: Position) -> Option<String> {
        match asked {
            Asked::Latest | Asked::Tag | Asked::Changing | Asked::Fixed => None,
            Asked::Hash(hash) => self.header(hash),
            Asked::Number(number) if self.is_above_head(*number, position) => Some("null".to_owned()),
            Asked::Number(number) => self.header(self.canonical((*number, *number), position).get(number)?),
            Asked::BlockLogs(filter, hash) => {
                let number = self.blocks.get(hash)?.number;
                Some(list(&self.block_logs(filter, number, Some(hash))?))
            }
            Asked::RangeLogs(filter, from, to) => {
                if from > to || to - from >= LONGEST {
                    return None;
                }
                let canonical = self.canonical((*from, *to), position);
                let of_block = |number| self.block_logs(filter, number, canonical.get(&number));
                let known = (*from..=*to).filter(|number| !self.is_above_head(*number, position));
                Some(list(&known.map(of_block).collect::<Option<Vec<_>>>()?.concat()))
            }
        }
    }

    fn header(&self, hash: &B256) -> Option<String> {
        let (_, header) = self.blocks.get(hash)?.header.as_ref()?;
        Some(header.get().to_owned())
    }

    fn is_above_head(&self, number: u64, position: Position) -> bool {
        let head = position.head.and_then(|head| self.blocks.get(&head));
        head.is_some_and(|head| head.number < number)
    }

    /// The blocks of a range that are in the chain of the newest head. Where its ancestors are not known that far down, the
    /// newest of those that were told of by then.
    fn canonical(&self, (from, to): (u64, u64), position: Position) -> HashMap<u64, B256> {
        let mut found = HashMap::new();
        let mut lowest = u64::MAX;
        for (number, hash) in self.branch(position).take_while(|(number, _)| *number >= from) {
            lowest = number;
            if number <= to {
                found.insert(number, hash);
            }
        }
        for number in from..=to.min(lowest.saturating_sub(1)) {
            let seen = |hash: &&B256| self.blocks.get(*hash).map_or(0, |block| block.seen);
            let versions = self.by_number.get(&number).into_iter().flatten();
            let by_then = versions.clone().filter(|hash| seen(hash) <= position.at).max_by_key(seen);
            found.extend(by_then.or_else(|| versions.min_by_key(seen)).map(|hash| (number, *hash)));
        }
        found
    }

    /// The newest head and its ancestors, as far as they are known.
    fn branch(&self, position: Position) -> impl Iterator<Item = (u64, B256)> {
        let at = |hash: B256| Some((hash, self.blocks.get(&hash)?));
        let parent = move |(_, block): &(B256, &Block)| {
            let parent = block.header.as_ref().map(|(parent, _)| *parent)?;
            // Nodes are believed in nothing: not even that a parent is below its child.
            at(parent).filter(|(_, above)| above.number < block.number)
        };
        let found = std::iter::successors(position.head.and_then(at), parent);
        found.map(|(hash, block)| (block.number, hash))
    }

    /// The block of this height in the branch of the newest head, where that is known.
    pub(super) fn on_branch(&self, number: u64, position: Position) -> Option<B256> {
        let mut branch = self.branch(position).skip_while(|(other, _)| *other > number);
        branch.next().filter(|(other, _)| *other == number).map(|(_, hash)| hash)
    }

    /// The logs of a block for a filter, where somebody answered that. A range that has no log of it says that it has
    /// none, unless there is another block of that height that it may have spoken of.
    fn block_logs(&self, filter: &str, number: u64, hash: Option<&B256>) -> Option<Vec<Arc<RawValue>>> {
        let key = hash.map(|hash| (filter.to_owned(), *hash));
        let logs = key.as_ref().and_then(|key| self.logs.get(key));
        let is_in_range = || {
            self.ranges.get(filter).is_some_and(|ranges| ranges.iter().any(|(from, to)| (from..=to).contains(&&number)))
        };
        let versions = self.by_number.get(&number).map_or(0, Vec::len);
        let is_answered = key.as_ref().is_some_and(|key| self.whole.contains(key))
            || ((logs.is_some() || versions <= 1) && is_in_range());
        is_answered.then(|| logs.map(|logs| logs.values().cloned().collect()).unwrap_or_default())
    }
}

fn list(logs: &[Arc<RawValue>]) -> String {
    let texts: Vec<&str> = logs.iter().map(|log| log.get()).collect();
    format!("[{}]", texts.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const F: &str = "{}";

    fn raw(value: &Value) -> Arc<RawValue> {
        RawValue::from_string(value.to_string()).unwrap().into()
    }

    fn hash(version: u8, number: u8) -> B256 {
        B256::with_last_byte(number) | B256::left_padding_from(&[version, 0])
    }

    fn block(version: u8, number: u8, parent: u8) -> Arc<RawValue> {
        let (hash, parent) = (hash(version, number), hash(parent, number - 1));
        raw(&json!({ "number": format!("{number:#x}"), "hash": hash, "parentHash": parent }))
    }

    fn log(version: u8, number: u8, index: u8) -> Value {
        let (number, index, hash) = (format!("{number:#x}"), format!("{index:#x}"), hash(version, number));
        json!({ "blockNumber": number, "blockHash": hash, "logIndex": index })
    }

    fn range(from: u64, to: u64) -> Asked {
        Asked::RangeLogs(F.to_owned(), from, to)
    }

    fn of_block(version: u8, number: u8) -> Asked {
        Asked::BlockLogs(F.to_owned(), hash(version, number))
    }

    /// Blocks 1 to 5, of which 4 and 5 were replaced at moment 10.
    fn known() -> Known {
        let mut known = Known::default();
        for (version, number, parent, at) in
            [(0, 1, 0, 1), (0, 2, 0, 2), (0, 3, 0, 3), (0, 4, 0, 4), (0, 5, 0, 5), (1, 4, 0, 10), (1, 5, 1, 11)]
        {
            known.learn_block(&block(version, number, parent), at);
        }
        known
    }

    fn answer(known: &Known, asked: &Asked, at: u64, head: B256) -> Option<Value> {
        let answer = known.answer(asked, Position { at, head: Some(head) });
        answer.map(|text| serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn a_number_is_the_block_of_the_branch_that_is_told_of() {
        let known = known();
        let told = |number, head| answer(&known, &Asked::Number(number), 20, head).map(|block| block["hash"].clone());
        assert_eq!(told(4, hash(0, 5)), Some(json!(hash(0, 4))));
        assert_eq!(told(4, hash(1, 5)), Some(json!(hash(1, 4))));
        assert_eq!(told(3, hash(1, 5)), Some(json!(hash(0, 3))));
        assert_eq!(answer(&known, &Asked::Number(6), 20, hash(1, 5)), Some(Value::Null), "it is not there yet");
        assert_eq!(answer(&known, &Asked::Number(5), 20, B256::ZERO).unwrap()["hash"], json!(hash(1, 5)));
        assert_eq!(answer(&known, &Asked::Number(5), 7, B256::ZERO).unwrap()["hash"], json!(hash(0, 5)));
        assert_eq!(answer(&known, &Asked::Hash(hash(9, 9)), 20, hash(1, 5)), None);
    }

    #[test]
    fn logs_of_a_range_are_put_together_where_all_of_it_is_known() {
        let mut known = known();
        known.learn(&range(1, 2), &raw(&json!([log(0, 1, 0)])), 3);
        known.learn(&of_block(0, 3), &raw(&json!([log(0, 3, 1)])), 3);
        // One that leaves a log out does not take it from the other.
        known.learn(&of_block(0, 3), &raw(&json!([log(0, 3, 0)])), 4);
        assert_eq!(
            answer(&known, &range(1, 3), 5, hash(0, 5)),
            Some(json!([log(0, 1, 0), log(0, 3, 0), log(0, 3, 1)]))
        );
        assert_eq!(answer(&known, &of_block(0, 1), 5, hash(0, 5)), Some(json!([log(0, 1, 0)])));
        assert_eq!(answer(&known, &range(2, 2), 5, hash(0, 5)), Some(json!([])));
        assert_eq!(answer(&known, &range(1, 4), 5, hash(0, 5)), None, "nobody was asked for block 4");
        known.learn(&range(4, 4), &raw(&json!([])), 4);
        assert_eq!(answer(&known, &range(1, 4), 5, hash(0, 5)), None, "it may have been of the other block 4");
        known.learn(&of_block(1, 4), &raw(&json!([log(1, 4, 0)])), 12);
        let all = json!([log(0, 1, 0), log(0, 3, 0), log(0, 3, 1), log(1, 4, 0)]);
        assert_eq!(answer(&known, &range(1, 4), 12, hash(1, 5)), Some(all));
    }
}
