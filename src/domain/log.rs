//! A log as a node states it. Millions are read; of a transfer's nothing has an allocation of its own.

use std::{fmt, ops::Deref};

use alloy::{
    hex,
    primitives::{Address, B256, Bytes},
};
use arrayvec::ArrayVec;
use serde::{
    Deserialize, Deserializer,
    de::{self, Unexpected, Visitor},
};

use super::BlockRef;

/// Digits of a word in JSON, and the `0x` before them.
const WORD_DIGITS: usize = 2 + 64;

/// One log of a block, validated: it belongs to the block that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawLog {
    /// The contract that emitted it.
    pub address: Address,
    /// The first is the event's signature hash, unless the event is anonymous.
    pub topics: Topics,
    /// The unindexed arguments, ABI-encoded.
    pub data: Data,
    /// The block it is in.
    pub block: BlockRef,
    /// The block's time, seconds since the Unix epoch.
    pub timestamp: u64,
    /// The transaction that emitted it.
    pub transaction_hash: B256,
    /// That transaction's place in the block.
    pub transaction_index: u64,
    /// The log's place in the block.
    pub log_index: u64,
}

/// The topics of a log: up to four (LOG0 to LOG4 of the EVM).
pub type Topics = ArrayVec<B256, 4>;

/// What a log says besides its topics. In JSON it is hexadecimal; a single word, as a transfer has it, stands in the log itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Data(Held);

/// A word is always held as one, so that equal data are equally held.
#[derive(Clone, PartialEq, Eq)]
enum Held {
    Word(B256),
    Other(Bytes),
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Held::Word(word) => word.as_slice(),
            Held::Other(bytes) => bytes,
        }
    }
}

impl Data {
    /// Those of hexadecimal digits, with or without `0x` before them.
    ///
    /// # Errors
    ///
    /// Where something else is among them, or their number is odd.
    pub fn from_digits(text: &str) -> Result<Self, hex::FromHexError> {
        if text.len() == WORD_DIGITS && text.starts_with("0x") {
            let mut word = B256::ZERO;
            hex::decode_to_slice(text, word.as_mut_slice())?;
            return Ok(Self(Held::Word(word)));
        }
        hex::decode(text).map(Self::from)
    }
}

impl From<Bytes> for Data {
    fn from(bytes: Bytes) -> Self {
        Self(B256::try_from(&bytes[..]).map_or(Held::Other(bytes), Held::Word))
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&Data> for Bytes {
    fn from(data: &Data) -> Self {
        match &data.0 {
            Held::Word(word) => Self::copy_from_slice(word.as_slice()),
            Held::Other(bytes) => bytes.clone(),
        }
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode_prefixed(&**self))
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        source.deserialize_str(Hexadecimal)
    }
}

struct Hexadecimal;

impl Visitor<'_> for Hexadecimal {
    type Value = Data;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("bytes as hexadecimal digits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Data, E> {
        Data::from_digits(text).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn read(text: &str) -> Option<Data> {
        from_value(json!(text)).ok()
    }

    #[test]
    fn data_are_what_their_digits_say_whatever_their_length() {
        for length in [0, 1, 31, 32, 33, 64, 1_000] {
            let bytes: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let plain = hex::encode(&bytes);
            for text in [format!("0x{plain}"), format!("0x{}", plain.to_uppercase()), plain] {
                let data = read(&text).unwrap();
                assert_eq!((&*data, &data), (&bytes[..], &Data::from(bytes.clone())), "{length} bytes");
                assert_eq!(matches!(data.0, Held::Word(_)), length == 32);
                assert_eq!(Bytes::from(&data), bytes);
            }
        }
    }

    #[test]
    fn what_is_no_hexadecimal_is_refused() {
        for text in
            ["0x1", "0xzz", "x", &format!("0x{}z", "0".repeat(63)), &"0".repeat(65), &format!("ab{}0x", "0".repeat(62))]
        {
            assert_eq!(read(text), None, "{text}");
        }
        assert!([json!(null), json!(7), json!([1])].into_iter().all(|value: Value| from_value::<Data>(value).is_err()));
    }
}
