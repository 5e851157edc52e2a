//! How much a log's data says, and whether its values are of their types: what the ABI decoder does not ask.
//!
//! Offsets in ABI data may point anywhere, so a hostile contract can have one long text read by a thousand offsets, or
//! lists of lists that share one tail: some kilobytes of log become gigabytes. What is read is therefore counted before
//! anything is decoded. And a word may hold more than its type: `uint8` with all 256 bits set is no `uint8`.

use alloy::{
    dyn_abi::{DynSolType, DynSolValue},
    primitives::U256,
};

const WORD: usize = 32;
/// How often the data may be read over, on average. Encoders write everything once; hand-written ones share a tail now
/// and then, an empty text for instance.
const READINGS: usize = 16;

/// Whether a sequence of these types reads no more from the data than a small multiple of it. Also false where the data
/// ends too early.
#[must_use]
pub(super) fn is_bounded(types: &[DynSolType], data: &[u8]) -> bool {
    let mut reading = Reading { data, left: data.len().saturating_mul(READINGS) };
    reading.sequence(types, 0).is_some()
}

/// Whether every number is one of its type.
#[must_use]
pub(super) fn is_exact(value: &DynSolValue) -> bool {
    match value {
        DynSolValue::Uint(value, bits) => value.bit_len() <= *bits,
        DynSolValue::Int(value, bits) => value.bits() as usize <= *bits,
        DynSolValue::Array(values) | DynSolValue::FixedArray(values) | DynSolValue::Tuple(values) => {
            values.iter().all(is_exact)
        }
        _ => true,
    }
}

/// Goes over ABI data as its decoder does, and takes nothing out of it.
struct Reading<'d> {
    data: &'d [u8],
    /// Bytes that may still be read.
    left: usize,
}

impl Reading<'_> {
    /// Values behind each other, whose offsets count from `base`.
    fn sequence<'t>(&mut self, types: impl IntoIterator<Item = &'t DynSolType>, base: usize) -> Option<()> {
        let mut at = base;
        for of in types {
            at = self.value(of, base, at)?;
        }
        Some(())
    }

    /// A value whose head is at `at`; answers with the end of its head.
    fn value(&mut self, of: &DynSolType, base: usize, at: usize) -> Option<usize> {
        if !of.is_dynamic() {
            let bytes = of.minimum_words().checked_mul(WORD)?;
            self.spend(bytes)?;
            return at.checked_add(bytes);
        }
        let start = base.checked_add(self.word(at)?)?;
        match of {
            DynSolType::Array(inner) => {
                let count = self.word(start)?;
                // The decoder makes no values of what takes no room.
                if inner.minimum_words() > 0 {
                    self.sequence(std::iter::repeat_n(&**inner, count), start.checked_add(WORD)?)?;
                }
            }
            DynSolType::FixedArray(inner, count) => {
                self.sequence(std::iter::repeat_n(&**inner, *count), start)?;
            }
            DynSolType::Tuple(types) => self.sequence(types, start)?,
            _ => {
                let bytes = self.word(start)?;
                self.spend(bytes)?;
            }
        }
        at.checked_add(WORD)
    }

    /// An offset or a length.
    fn word(&mut self, at: usize) -> Option<usize> {
        self.spend(WORD)?;
        let word = self.data.get(at..at.checked_add(WORD)?)?;
        U256::try_from_be_slice(word)?.try_into().ok()
    }

    fn spend(&mut self, bytes: usize) -> Option<()> {
        self.left = self.left.checked_sub(bytes)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::I256;

    use super::*;

    fn types(names: &[&str]) -> Vec<DynSolType> {
        names.iter().map(|name| DynSolType::parse(name).unwrap()).collect()
    }

    fn words(words: &[usize]) -> Vec<u8> {
        words.iter().flat_map(|word| U256::from(*word).to_be_bytes::<32>()).collect()
    }

    #[test]
    fn what_an_encoder_writes_is_bounded() {
        let text = DynSolValue::String("a".repeat(100));
        let texts = DynSolValue::Array(vec![text.clone(), DynSolValue::String(String::new())]);
        let pair = DynSolValue::Tuple(vec![DynSolValue::Uint(U256::ONE, 8), texts.clone()]);
        let all = [text, DynSolValue::FixedArray(vec![texts.clone(), texts.clone()]), DynSolValue::Array(vec![pair])];
        let of = types(&["string", "string[][2]", "(uint8,string[])[]"]);
        assert!(is_bounded(&of, &DynSolValue::Tuple(all.into()).abi_encode_sequence().unwrap()));
        assert!(is_bounded(&types(&["uint8[]", "bytes"]), &words(&[64, 64, 0])), "a shared empty tail");
        assert!(is_bounded(&[], &[]));
    }

    #[test]
    fn one_text_that_many_offsets_point_to_is_refused() {
        let count = 1_000;
        let mut data = words(&[32, count]);
        data.extend(words(&vec![count * WORD; count]));
        data.extend(words(&[100_000]));
        data.extend(vec![b'x'; 100_000]);
        assert!(!is_bounded(&types(&["string[]"]), &data));
    }

    #[test]
    fn lists_of_lists_that_share_their_tails_are_refused() {
        let level = |below: &[u8]| {
            let mut data = words(&[64]);
            data.extend(words(&[64 * WORD; 64]));
            data.extend(below);
            data
        };
        let mut data = words(&[32]);
        data.extend(level(&level(&level(&words(&[1, 7])))));
        assert!(!is_bounded(&types(&["uint256[][][][]"]), &data));
    }

    #[test]
    fn what_points_behind_the_end_is_refused() {
        for data in
            [words(&[]), words(&[32]), words(&[usize::MAX]), words(&[32, usize::MAX]), words(&[0])[..31].to_vec()]
        {
            assert!(!is_bounded(&types(&["bytes"]), &data), "{data:?}");
        }
    }

    #[test]
    fn a_number_beyond_its_type_is_not_exact() {
        let int = |value: i64, bits| DynSolValue::Int(I256::try_from(value).unwrap(), bits);
        for exact in [int(-128, 8), int(127, 8), int(0, 8), DynSolValue::Uint(U256::MAX, 256), DynSolValue::Bool(true)]
        {
            assert!(is_exact(&exact), "{exact:?}");
        }
        for wrong in [int(-129, 8), int(128, 8), DynSolValue::Uint(U256::from(256), 8)] {
            assert!(!is_exact(&wrong), "{wrong:?}");
            assert!(!is_exact(&DynSolValue::Array(vec![DynSolValue::Tuple(vec![wrong])])));
        }
    }
}
