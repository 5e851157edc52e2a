//! What several endpoints say of one height: who agrees with whom. Pure.

use std::collections::BTreeMap;

use alloy::primitives::B256;

use super::Witness;

/// From this many endpoints on, most of them decide and none alone.
pub const QUORUM_OF: usize = 3;

/// How the endpoints that have a block at a height stand towards one of its blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Votes {
    /// They have this block.
    pub same: Vec<String>,
    /// They have another one.
    pub other: Vec<String>,
    /// So many were asked: all that are configured, whether they vote or not.
    pub asked: usize,
}

impl Votes {
    /// Counts who has the block with this hash. Who does not answer, or has no block there yet, has no vote.
    #[must_use]
    pub fn on(hash: B256, witnesses: &[Witness]) -> Self {
        let mut votes = Self { asked: witnesses.len(), ..Self::default() };
        for (endpoint, told) in hashes(witnesses) {
            let side = if told == hash { &mut votes.same } else { &mut votes.other };
            side.push(endpoint.to_owned());
        }
        votes
    }

    /// Most of all that are configured, and at least two, have another block. Who is silent counts here, or two of five
    /// that are on a branch of their own would decide while the others are slow.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.other.len() >= 2 && self.other.len() * 2 > self.asked
    }

    /// Most of those who vote, and at least two, have this block.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.same.len() >= 2 && self.same.len() > self.other.len()
    }
}

/// The endpoints that have another block than most; none where no block has the most votes.
pub(super) fn minority(witnesses: &[Witness]) -> Vec<&str> {
    let mut votes: BTreeMap<B256, usize> = BTreeMap::new();
    for (_, hash) in hashes(witnesses) {
        *votes.entry(hash).or_default() += 1;
    }
    let all: usize = votes.values().sum();
    let Some((most, _)) = votes.into_iter().find(|(_, count)| count * 2 > all) else { return Vec::new() };
    hashes(witnesses).filter(|(_, hash)| *hash != most).map(|(endpoint, _)| endpoint).collect()
}

fn hashes(witnesses: &[Witness]) -> impl Iterator<Item = (&str, B256)> {
    witnesses.iter().filter_map(|witness| {
        let header = witness.answer.as_ref().ok()?.as_ref()?;
        Some((witness.endpoint.as_str(), header.hash))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::Header, rpc::RpcError};

    const OURS: B256 = B256::repeat_byte(1);

    /// One witness for each sign: `1` has our block, other digits another one, `-` none, `!` fails.
    fn witnesses(signs: &str) -> Vec<Witness> {
        let one = |(place, sign): (usize, char)| {
            let header = |digit: u32| Header {
                number: 7,
                hash: B256::repeat_byte(u8::try_from(digit).unwrap()),
                parent: B256::ZERO,
                timestamp: 0,
            };
            let answer = match sign.to_digit(10) {
                Some(digit) => Ok(Some(header(digit))),
                None if sign == '-' => Ok(None),
                None => Err(RpcError::TimedOut),
            };
            Witness { endpoint: place.to_string(), answer }
        };
        signs.chars().enumerate().map(one).collect()
    }

    #[test]
    fn a_block_has_left_only_where_two_and_most_have_another_one() {
        for (signs, has_left, stands) in [
            ("222", true, false),
            ("122", true, false),
            ("123", true, false),
            ("112", false, true),
            ("2!!", false, false),
            ("1!!", false, false),
            ("12-", false, false),
            ("22-", true, false),
            ("1122", false, false),
            ("22!!", false, false),
            ("22!!-", false, false),
            ("222!-", true, false),
            ("11!!-", false, true),
            ("", false, false),
        ] {
            let votes = Votes::on(OURS, &witnesses(signs));
            assert_eq!((votes.has_left(), votes.stands()), (has_left, stands), "{signs}");
        }
    }

    #[test]
    fn who_disagrees_with_most_is_in_the_minority() {
        assert_eq!(minority(&witnesses("122")), ["0"]);
        assert_eq!(minority(&witnesses("11!2-")), ["3"]);
        assert_eq!(minority(&witnesses("12")), Vec::<&str>::new());
        assert_eq!(minority(&witnesses("1")), Vec::<&str>::new());
    }
}
