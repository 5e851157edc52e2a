//! A question to a node: a method and its parameters.

use std::fmt;

use alloy::primitives::{B256, U64};
use serde_json::Value;

/// How much of a question is repeated in an error, characters.
const SHOWN: usize = 300;

/// A question, equal to another one where it asks for the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    /// The method.
    pub(super) method: String,
    /// The parameters, with the members of objects in alphabetical order, in lower case.
    params: String,
}

/// What a question asks for, as far as it can be told from the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The newest block.
    Latest,
    /// The block of another tag, without its transactions.
    Tag,
    /// The canonical block of a height, without its transactions.
    Number(u64),
    /// The block with this hash, without its transactions.
    Hash(B256),
    /// The logs of a block, for a filter.
    BlockLogs(String, B256),
    /// The logs of a range, for a filter, both ends included.
    RangeLogs(String, u64, u64),
    /// Something else that changes with the chain.
    Changing,
    /// Something that does not change.
    Fixed,
}

impl Question {
    pub(super) fn new(method: &str, params: Vec<Value>) -> Self {
        let params = sorted(Value::Array(params)).to_string().to_lowercase();
        Self { method: method.to_owned(), params }
    }

    /// What it asks for.
    pub(super) fn asked(&self) -> Asked {
        let params: Vec<Value> = serde_json::from_str(&self.params).unwrap_or_default();
        let first = params.first().unwrap_or(&Value::Null);
        let is_full = params.get(1) == Some(&Value::Bool(true));
        match self.method.as_str() {
            "eth_blockNumber" => Asked::Changing,
            "eth_getBlockByNumber" if first == "latest" => Asked::Latest,
            "eth_getBlockByNumber" if is_full => Asked::Changing,
            "eth_getBlockByNumber" => read::<U64>(first).map_or(Asked::Tag, |number| Asked::Number(number.to())),
            "eth_getBlockByHash" => read(first).filter(|_| !is_full).map_or(Asked::Fixed, Asked::Hash),
            "eth_getBlockReceipts" if read::<B256>(first).is_none() => Asked::Changing,
            "eth_getLogs" => logs(first),
            _ => Asked::Fixed,
        }
    }
}

fn logs(filter: &Value) -> Asked {
    let mut filter = filter.clone();
    let Some(members) = filter.as_object_mut() else { return Asked::Fixed };
    let [hash, from, to] = ["blockhash", "fromblock", "toblock"].map(|name| members.remove(name));
    let hash = hash.as_ref().and_then(read::<B256>);
    let ends = from.as_ref().and_then(read::<U64>).zip(to.as_ref().and_then(read::<U64>));
    let filter = filter.to_string();
    match (hash, ends) {
        (Some(hash), _) => Asked::BlockLogs(filter, hash),
        (None, Some((from, to))) => Asked::RangeLogs(filter, from.to(), to.to()),
        (None, None) => Asked::Changing,
    }
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        Value::Object(members) => {
            let mut members: Vec<_> = members.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            members.sort_by(|(one, _), (other, _)| one.cmp(other));
            Value::Object(members.into_iter().collect())
        }
        other => other,
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.params.chars().take(SHOWN).collect();
        write!(f, "{} {shown}", self.method)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_question_is_one_however_it_is_written() {
        let hash = B256::repeat_byte(0xab);
        let ask = |filter: Value| Question::new("eth_getLogs", vec![filter]);
        let one = ask(json!({ "blockHash": hash, "topics": [["0xDD"]] }));
        assert_eq!(one, ask(json!({ "topics": [["0xdd"]], "blockHash": hash })));
        assert_eq!(one.asked(), Asked::BlockLogs(r#"{"topics":[["0xdd"]]}"#.to_owned(), hash));
        let range = ask(json!({ "fromBlock": "0x10", "toBlock": "0x1f", "topics": [["0xdd"]] }));
        assert_eq!(range.asked(), Asked::RangeLogs(r#"{"topics":[["0xdd"]]}"#.to_owned(), 16, 31));
        let block = |params: Value| Question::new("eth_getBlockByNumber", params.as_array().unwrap().clone()).asked();
        assert_eq!(block(json!(["latest", false])), Asked::Latest);
        assert_eq!(block(json!(["0x5", false])), Asked::Number(5));
        assert_eq!((block(json!(["0x5", true])), block(json!(["safe", false]))), (Asked::Changing, Asked::Tag));
    }
}
