//! A log in the form in which nodes write them, read in a third of the time that it takes to look for everything that JSON
//! allows.
//!
//! Any text may have escapes in it, any member may come next, and white space may stand between any two signs: to look for
//! that took a third of the time of history. But a node writes all its logs alike: members in one order, nothing between
//! them, and hardly anything in them but hexadecimal digits, of which none is escaped. So here a member is expected at its
//! place, its name is compared together with the signs around it, and its digits are read where they stand. A log that is
//! not exactly like that is left to serde, which also says what is wrong with it; one that is, serde would read as the same
//! log. What that is worth: `parse` of `cargo bench --bench stages`.

use alloy::{
    hex,
    primitives::{Address, B256, FixedBytes},
};

use super::wire::{Quantity, WireLog};
use crate::domain::{Data, Topics};

/// A member of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Address,
    Topics,
    Data,
    BlockNumber,
    TransactionHash,
    TransactionIndex,
    BlockHash,
    BlockTimestamp,
    LogIndex,
    Removed,
}

/// All of them, in the order of geth.
const OF_GETH: [Member; 10] = [
    Member::Address,
    Member::Topics,
    Member::Data,
    Member::BlockNumber,
    Member::TransactionHash,
    Member::TransactionIndex,
    Member::BlockHash,
    Member::BlockTimestamp,
    Member::LogIndex,
    Member::Removed,
];

/// How a node writes its logs.
#[derive(Debug)]
pub(super) struct Form {
    /// The members in the order of the last log; what that did not have stands behind them.
    order: [Member; OF_GETH.len()],
}

impl Default for Form {
    fn default() -> Self {
        Self { order: OF_GETH }
    }
}

impl Form {
    /// The log that a text begins with, and what stands behind it; [`None`] where it is not in this form, or not there as a
    /// whole.
    pub(super) fn read<'t>(&mut self, text: &'t str) -> Option<(WireLog, &'t str)> {
        let mut log = Found::default();
        let mut rest = text.strip_prefix('{')?;
        for place in 0..self.order.len() {
            rest = self.member(place, rest, &mut log)?;
            match rest.split_at_checked(1)? {
                (",", next) => rest = next,
                ("}", behind) => return Some((log.whole()?, behind)),
                _ => return None,
            }
        }
        None
    }

    /// Reads the member that comes at a place: the one that was there the last time, or one that was not read yet, which
    /// has its place here from now on.
    fn member<'t>(&mut self, place: usize, text: &'t str, log: &mut Found) -> Option<&'t str> {
        let left = self.order.get_mut(place..)?;
        let (at, behind) = left.iter().enumerate().find_map(|(at, member)| Some((at, log.take(*member, text)?)))?;
        if at > 0 {
            left.get_mut(..=at)?.rotate_right(1);
        }
        Some(behind)
    }
}

/// What was read of a log.
#[derive(Default)]
struct Found {
    address: Option<Address>,
    topics: Option<Topics>,
    data: Option<Data>,
    block_number: Option<u64>,
    block_hash: Option<B256>,
    block_timestamp: Option<u64>,
    transaction_hash: Option<B256>,
    transaction_index: Option<u64>,
    log_index: Option<u64>,
    removed: bool,
}

impl Found {
    /// Takes a member that the text begins with; what stands behind it.
    fn take<'t>(&mut self, member: Member, text: &'t str) -> Option<&'t str> {
        Some(match member {
            Member::Address => keep(&mut self.address, address(text.strip_prefix(r#""address":"0x"#)?)?),
            Member::Topics => keep(&mut self.topics, topics(text.strip_prefix(r#""topics":["0x"#)?)?),
            Member::Data => keep(&mut self.data, data(text.strip_prefix(r#""data":""#)?)?),
            Member::BlockNumber => keep(&mut self.block_number, number(text.strip_prefix(r#""blockNumber":""#)?)?),
            Member::BlockHash => keep(&mut self.block_hash, digits(text.strip_prefix(r#""blockHash":"0x"#)?)?),
            Member::BlockTimestamp => {
                keep(&mut self.block_timestamp, number(text.strip_prefix(r#""blockTimestamp":""#)?)?)
            }
            Member::TransactionHash => {
                keep(&mut self.transaction_hash, digits(text.strip_prefix(r#""transactionHash":"0x"#)?)?)
            }
            Member::TransactionIndex => {
                keep(&mut self.transaction_index, number(text.strip_prefix(r#""transactionIndex":""#)?)?)
            }
            Member::LogIndex => keep(&mut self.log_index, number(text.strip_prefix(r#""logIndex":""#)?)?),
            Member::Removed => {
                let said = text.strip_prefix(r#""removed":"#)?;
                self.removed = said.starts_with("true");
                said.strip_prefix(if self.removed { "true" } else { "false" })?
            }
        })
    }

    /// The log, where nothing is missing that a log must have.
    fn whole(self) -> Option<WireLog> {
        Some(WireLog {
            address: self.address?,
            topics: self.topics?,
            data: self.data?,
            block_number: self.block_number,
            block_hash: self.block_hash,
            block_timestamp: self.block_timestamp,
            transaction_hash: self.transaction_hash,
            transaction_index: self.transaction_index,
            log_index: self.log_index,
            removed: self.removed,
        })
    }
}

/// Keeps what was read; answers what stands behind it.
fn keep<'t, V>(place: &mut Option<V>, (value, behind): (V, &'t str)) -> &'t str {
    *place = Some(value);
    behind
}

/// So many bytes, behind their `0x`, and the quote that ends them.
fn digits<const BYTES: usize>(text: &str) -> Option<(FixedBytes<BYTES>, &str)> {
    let (digits, behind) = text.split_at_checked(2 * BYTES)?;
    let mut bytes = FixedBytes::ZERO;
    // Another `0x` is no digits: there would be too few of them.
    hex::decode_to_slice(digits, bytes.as_mut_slice()).ok()?;
    Some((bytes, behind.strip_prefix('"')?))
}

/// A contract, behind its `0x`, and the quote that ends it.
fn address(text: &str) -> Option<(Address, &str)> {
    digits(text).map(|(address, behind)| (Address(address), behind))
}

/// Topics, behind the first one's `0x`, and the bracket that ends them.
fn topics(mut text: &str) -> Option<(Topics, &str)> {
    let mut topics = Topics::new();
    loop {
        let (topic, behind) = digits(text)?;
        topics.try_push(topic).ok()?;
        text = match behind.strip_prefix(']') {
            Some(behind) => return Some((topics, behind)),
            None => behind.strip_prefix(r#","0x"#)?,
        };
    }
}

/// Data, and the quote that ends them.
fn data(text: &str) -> Option<(Data, &str)> {
    let (digits, behind) = text.split_once('"')?;
    Some((Data::from_digits(digits).ok()?, behind))
}

/// A number, and the quote that ends it.
fn number(text: &str) -> Option<(u64, &str)> {
    let (digits, behind) =
        text.split_at_checked(text.bytes().take(Quantity::LONGEST + 1).position(|sign| sign == b'"')?)?;
    Some((Quantity::usual(digits)?, behind.strip_prefix('"')?))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What serde makes of a text.
    fn by_serde(text: &str) -> Option<String> {
        serde_json::from_str(text).ok().map(|log: WireLog| format!("{log:?}"))
    }

    /// What is made of the first log of a text here, and how much of the text that is.
    fn by_form(form: &mut Form, text: &str) -> Option<(String, usize)> {
        form.read(text).map(|(log, behind)| (format!("{log:?}"), text.len() - behind.len()))
    }

    /// Digits behind `0x`, quoted.
    fn quoted(digits: &str) -> impl Strategy<Value = String> + use<> {
        proptest::string::string_regex(digits).unwrap().prop_map(|digits| format!("\"0x{digits}\""))
    }

    /// A member in the usual form, but for what it has in place of the digits.
    fn member(name: &'static str, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        value.prop_map(move |value| format!("\"{name}\":{value}"))
    }

    fn topics_of(most: usize) -> impl Strategy<Value = String> {
        vec(quoted("[0-9a-f]{64}"), 1..=most).prop_map(|topics| format!("[{}]", topics.join(",")))
    }

    /// All members of a log in the usual form, in any order.
    fn usual() -> impl Strategy<Value = Vec<String>> {
        let number = || quoted("[0-9a-fA-F]{1,16}");
        let must = (
            member("address", quoted("[0-9a-fA-F]{40}")),
            member("topics", topics_of(4)),
            member(
                "data",
                prop_oneof![quoted("[0-9a-f]{64}"), quoted("([0-9a-fA-F]{2}){0,80}"), Just("\"00ff\"".into())],
            ),
        );
        let may = (
            member("blockNumber", number()),
            member("blockHash", quoted("[0-9a-f]{64}")),
            member("blockTimestamp", number()),
            member("transactionHash", quoted("[0-9a-fA-F]{64}")),
            member("transactionIndex", number()),
            member("logIndex", number()),
            member("removed", any::<bool>().prop_map(|removed| removed.to_string())),
        );
        (must, may, 0..=7_usize)
            .prop_map(|((a, b, c), (d, e, f, g, h, i, j), left)| {
                let mut members = vec![a, b, c, d, e, f, g, h, i, j];
                members.truncate(3 + left);
                members
            })
            .prop_shuffle()
    }

    fn object(members: &[String]) -> String {
        format!("{{{}}}", members.join(","))
    }

    /// Members, of which one may be in another form, twice, missing or unknown, and then a byte may be another.
    fn other() -> impl Strategy<Value = String> {
        let stranger = prop_oneof![
            Just(r#""blockNumber":null"#.to_owned()),
            Just(r#""blockNumber":5"#.to_owned()),
            Just(r#""logIndex":"0x""#.to_owned()),
            Just(r#""logIndex":"0x00000000000000001""#.to_owned()),
            Just(r#""logIndex":"5""#.to_owned()),
            Just(r#""logIndex":"0x0x5""#.to_owned()),
            Just(r#""topics":[]"#.to_owned()),
            member("topics", topics_of(5)),
            Just(r#""data":"0x0""#.to_owned()),
            Just(r#""data":"0x0x00""#.to_owned()),
            Just(r#""d\u0061ta":"0x""#.to_owned()),
            Just(r#""data":"0x\u0030\u0030""#.to_owned()),
            Just(r#""address":null"#.to_owned()),
            Just(r#""type":"mined""#.to_owned()),
            Just(r#""removed": false"#.to_owned()),
            Just(r#""removed":null"#.to_owned()),
        ];
        let changed = proptest::option::of((any::<prop::sample::Index>(), any::<char>()));
        (usual(), proptest::option::of((stranger, any::<prop::sample::Index>(), any::<bool>())), changed).prop_map(
            |(mut members, stranger, changed)| {
                if let Some((stranger, at, instead)) = stranger {
                    let at = at.index(members.len());
                    if instead { members[at] = stranger } else { members.insert(at, stranger) }
                }
                let mut text = object(&members);
                if let Some((at, sign)) = changed {
                    let at = at.index(text.len());
                    text.replace_range(at..=at, sign.encode_utf8(&mut [0; 4]));
                }
                text
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_is_in_the_form_is_read_in_any_order_as_serde_reads_it(logs in vec(usual(), 1..4), behind in ",|]|") {
            let mut form = Form::default();
            for text in logs.iter().map(|members| object(members)) {
                prop_assert!(by_serde(&text).is_some());
                prop_assert_eq!(by_form(&mut form, &(text.clone() + &behind)), by_serde(&text).map(|log| (log, text.len())));
            }
        }

        #[test]
        fn what_is_not_quite_in_the_form_is_left_to_serde_or_read_as_it_does(texts in vec(other(), 1..4)) {
            let mut form = Form::default();
            for text in texts {
                if let Some((log, length)) = by_form(&mut form, &text) {
                    prop_assert_eq!(Some(log), by_serde(&text[..length]));
                }
            }
        }

        #[test]
        fn what_is_cut_off_is_no_log(members in usual(), at in any::<prop::sample::Index>()) {
            let text = object(&members);
            prop_assert_eq!(by_form(&mut Form::default(), &text[..at.index(text.len())]), None);
        }
    }

    #[test]
    fn the_order_of_the_last_log_is_expected_next() {
        let log = |members: &[&str]| object(&members.iter().map(ToString::to_string).collect::<Vec<_>>());
        let (address, topics) =
            (format!(r#""address":"0x{}""#, "1".repeat(40)), format!(r#""topics":["0x{}"]"#, "d".repeat(64)));
        let mut form = Form::default();
        for text in [
            log(&[r#""removed":false"#, r#""data":"0x""#, &topics, &address]),
            log(&[&topics, r#""removed":true"#, &address, r#""data":"0x""#]),
        ] {
            assert_eq!(by_form(&mut form, &text).map(|(log, _)| log), by_serde(&text));
        }
        assert_eq!(form.order[..4], [Member::Topics, Member::Removed, Member::Address, Member::Data]);
        assert!(OF_GETH.iter().all(|member| form.order.contains(member)), "none is lost");
    }
}
