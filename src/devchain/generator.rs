//! The generated chain: the body of every block as a pure function of the seed, the block's number and its fork.
//!
//! A fork number tells the versions of one height apart: 0 is what is mined first, 1 what a scheduled reorganisation puts
//! in its place, 2 and above what was asked for by hand. Every other transaction is the same in all forks of a height, as
//! after a real reorganisation: the same transaction hash, but another block, and often another log index.
//!
//! Most logs are ERC-20 transfers of the listed tokens. The rest is what a listener must leave aside: transfers of other
//! contracts, ERC-721 transfers, transfers without indexed arguments, other events, a log without topics.

use alloy::{
    consensus::{Header, Sealed, SignableTransaction as _, TxEip1559, constants::EMPTY_WITHDRAWALS},
    primitives::{Address, B256, Bytes, Log, LogData, Signature, TxKind, U256, b256, keccak256},
    sol_types::SolCall as _,
};

use super::{
    Options,
    blooms::Blooms,
    body::{Body, Content, Roots, SignedTransaction, Transaction},
    random::Random,
    tokens::{address, tokens},
};
use crate::domain::Token;

/// Holders that send to each other.
const HOLDERS: u64 = 256;
/// Most logs of one transaction.
const LOGS_PER_TRANSACTION: u64 = 4;
/// One block of this many is empty.
const EMPTY_ONE_IN: u64 = 8;
/// Base fee of every block, wei.
pub(super) const BASE_FEE: u64 = 1_000_000_000;
/// Tip of every transaction, wei.
pub(super) const TIP: u128 = 100_000_000;
/// Gas limit of a block whose transactions fit.
const GAS_LIMIT: u64 = 36_000_000;

/// `keccak256("Transfer(address,address,uint256)")`, of ERC-20 and ERC-721 alike.
const TRANSFER: B256 = b256!("0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
/// `keccak256("Approval(address,address,uint256)")`.
const APPROVAL: B256 = b256!("0x8c5be1e5ebec7d5bd14f71427d1e84f3dd0314c0f7b2291e5b200ac8c7c3b925");
/// `keccak256("Sync(uint112,uint112)")`.
const SYNC: B256 = b256!("0x1c411e9a96e071241c2f21f7726b17ae89e3cab4c78be50e062b03a9fffbbad1");

alloy::sol! {
    function transfer(address to, uint256 value) returns (bool);
}

/// Which block of all that could be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its height.
    pub(super) number: u64,
    /// Which version of that height.
    pub(super) fork: u32,
    /// Its time, seconds since the Unix epoch.
    pub(super) timestamp: u64,
}

/// Makes bodies and headers; holds what does not change from block to block.
#[derive(Debug)]
pub(super) struct Generator {
    seed: u64,
    chain_id: u64,
    logs_per_block: u64,
    tokens: Vec<Token>,
    /// Contracts that no list names: fungible ones, non-fungible ones, and others.
    strangers: [Vec<Address>; 3],
    holders: Vec<Address>,
    blooms: Blooms,
}

impl Generator {
    /// The generator of these options.
    pub(super) fn new(options: &Options) -> Self {
        let seed = options.seed;
        let contracts = |role, count| (0..count).map(|index| address(role, seed, index)).collect();
        let tokens = tokens(seed, options.tokens);
        let strangers: [Vec<Address>; 3] =
            [contracts("unlisted", 8), contracts("collectible", 4), contracts("pool", 8)];
        let holders: Vec<Address> = contracts("holder", HOLDERS);
        let emitters = tokens.iter().map(|token| token.address).chain(strangers.iter().flatten().copied());
        let parties = holders.iter().chain([&Address::ZERO]).map(Address::into_word);
        let blooms = Blooms::knowing(emitters, parties.chain([TRANSFER, APPROVAL, SYNC]));
        Self {
            seed,
            chain_id: options.generated_chain_id(),
            logs_per_block: options.logs_per_block.into(),
            tokens,
            strangers,
            holders,
            blooms,
        }
    }

    /// The body of a block. Block 0 is empty.
    pub(super) fn body(&self, number: u64, fork: u32) -> Body {
        let mut random = Random::of(&[self.seed, self.chain_id, number, fork.into()]);
        let mut left = self.log_count(number, &mut random);
        let mut transactions = Vec::new();
        for index in 0.. {
            if left == 0 {
                break;
            }
            let transaction = self.transaction(number, fork, index, left);
            left -= transaction.logs.len() as u64;
            transactions.push(transaction);
        }
        Body { transactions }
    }

    /// What the header of this block states of its body.
    pub(super) fn roots(&self, number: u64, fork: u32) -> Roots {
        self.body(number, fork).roots(&self.blooms)
    }

    /// The header of a block on top of its parent.
    pub(super) fn header(&self, place: Place, parent_hash: B256, roots: &Roots) -> Sealed<Header> {
        let Place { number, fork, timestamp } = place;
        let mut random = Random::of(&[self.seed, self.chain_id, number, fork.into(), timestamp]);
        let header = Header {
            parent_hash,
            beneficiary: address("proposer", self.seed, 0),
            // There is no state; a value of its own keeps clients that compare roots content.
            state_root: keccak256([parent_hash, roots.receipts].concat()),
            transactions_root: roots.transactions,
            receipts_root: roots.receipts,
            logs_bloom: roots.bloom,
            number,
            gas_limit: GAS_LIMIT.max(roots.gas_used),
            gas_used: roots.gas_used,
            timestamp,
            extra_data: Bytes::from_static(b"chaintap devchain"),
            // Tells forks apart even where both versions of a block are empty.
            mix_hash: random.bytes().into(),
            base_fee_per_gas: Some(BASE_FEE),
            withdrawals_root: Some(EMPTY_WITHDRAWALS),
            blob_gas_used: Some(0),
            excess_blob_gas: Some(0),
            parent_beacon_block_root: Some(B256::ZERO),
            ..Header::default()
        };
        Sealed::new(header)
    }

    /// Some blocks are empty; the others vary so that the average comes near what was asked for.
    fn log_count(&self, number: u64, random: &mut Random) -> u64 {
        if number == 0 || self.logs_per_block == 0 || random.below(EMPTY_ONE_IN) == 0 {
            return 0;
        }
        let most = 2 * self.logs_per_block * EMPTY_ONE_IN / (EMPTY_ONE_IN - 1);
        random.below(most + 1)
    }

    /// Transaction `index` with up to `most` logs: what the block still has room for.
    fn transaction(&self, number: u64, fork: u32, index: u64, most: u64) -> Transaction {
        let version = if index.is_multiple_of(2) { 0 } else { fork };
        let mut random = Random::of(&[self.seed, self.chain_id, number, version.into(), index + 1]);
        let sender = self.holder(&mut random);
        let receiver = self.holder(&mut random);
        let count = 1 + random.below(LOGS_PER_TRANSACTION);
        let call = transferCall { to: receiver, value: U256::from(random.below(1_000_000)) };
        let signed = TxEip1559 {
            chain_id: self.chain_id,
            // Unique over the whole chain, so that transaction hashes are.
            nonce: (number << 16) | index,
            gas_limit: 21_000 + 25_000 * count,
            max_fee_per_gas: u128::from(2 * BASE_FEE),
            max_priority_fee_per_gas: TIP,
            to: TxKind::Call(self.token(&mut random).0),
            input: call.abi_encode().into(),
            ..TxEip1559::default()
        }
        .into_signed(made_up_signature(&mut random));
        let logs = (0..count.min(most)).map(|_| self.log(&mut random)).collect();
        Transaction { index, logs, content: Content::Signed(Box::new(SignedTransaction::new(signed, sender))) }
    }

    fn log(&self, random: &mut Random) -> Log {
        let [unlisted, collectibles, pools] = &self.strangers;
        let from = self.party(random).into_word();
        let to = self.party(random).into_word();
        let (address, topics, data) = match random.below(100) {
            0..80 => {
                let (token, decimals) = self.token(random);
                (token, vec![TRANSFER, from, to], amount(decimals, random).to_be_bytes_vec())
            }
            80..86 => (choose(unlisted, random), vec![TRANSFER, from, to], amount(18, random).to_be_bytes_vec()),
            86..91 => (choose(collectibles, random), vec![TRANSFER, from, to, word(random.below(10_000))], vec![]),
            91..93 => {
                let value = word(random.below(10_000));
                (choose(collectibles, random), vec![TRANSFER], [from, to, value].concat())
            }
            93..97 => (self.token(random).0, vec![APPROVAL, from, to], U256::MAX.to_be_bytes_vec()),
            97..99 => (choose(pools, random), vec![SYNC], [word(random.next()), word(random.next())].concat()),
            _ => (choose(pools, random), vec![], random.bytes::<8>().to_vec()),
        };
        Log { address, data: LogData::new_unchecked(topics, data.into()) }
    }

    /// A listed token's address and decimals.
    fn token(&self, random: &mut Random) -> (Address, u8) {
        let index = random.below(self.tokens.len() as u64);
        let token = usize::try_from(index).ok().and_then(|index| self.tokens.get(index));
        token.map_or_else(Default::default, |token| (token.address, token.decimals))
    }

    fn holder(&self, random: &mut Random) -> Address {
        choose(&self.holders, random)
    }

    /// A holder, or now and then nobody: mints come from the zero address, burns go there.
    fn party(&self, random: &mut Random) -> Address {
        if random.below(50) == 0 { Address::ZERO } else { self.holder(random) }
    }
}

fn choose(from: &[Address], random: &mut Random) -> Address {
    let index = random.below(from.len() as u64);
    usize::try_from(index).ok().and_then(|index| from.get(index)).copied().unwrap_or_default()
}

fn word(value: u64) -> B256 {
    U256::from(value).into()
}

/// An amount of a token: mostly between a hundredth and ten thousand, at times nothing or all that fits.
fn amount(decimals: u8, random: &mut Random) -> U256 {
    match random.below(500) {
        0 => U256::MAX,
        1..5 => U256::ZERO,
        _ => {
            let hundredths = U256::from(1 + random.below(1_000_000));
            let unit = U256::from(10).pow(U256::from(decimals));
            hundredths * unit / U256::from(100)
        }
    }
}

/// 31 random bytes each for r and s: in range, and of no key.
fn made_up_signature(random: &mut Random) -> Signature {
    let mut scalar = || U256::from_be_slice(&random.bytes::<31>());
    Signature::new(scalar(), scalar(), false)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn generator(logs_per_block: u32) -> Generator {
        Generator::new(&Options { logs_per_block, ..Options::default() })
    }

    fn hashes(body: &Body) -> BTreeSet<B256> {
        body.transactions.iter().map(Transaction::hash).collect()
    }

    #[test]
    fn the_average_is_near_what_was_asked_for_and_some_blocks_are_empty() {
        for asked in [1, 10] {
            let counts: Vec<_> = (1..=200).map(|n| generator(asked).body(n, 0).logs().count()).collect();
            let (total, wanted) = (counts.iter().sum::<usize>(), 200 * asked as usize);
            assert!((wanted * 8 / 10..wanted * 12 / 10).contains(&total), "{wanted} asked, {total} made");
            assert!(counts.contains(&0));
        }
        assert_eq!(generator(0).body(5, 0).logs().count(), 0);
    }

    #[test]
    fn a_fork_keeps_some_transactions_and_replaces_others() {
        let generator = generator(50);
        let (first, second) = (hashes(&generator.body(9, 0)), hashes(&generator.body(9, 1)));
        assert!(first.intersection(&second).count() > 0);
        assert!(first.difference(&second).count() > 0);
    }

    #[test]
    fn there_is_something_of_everything() {
        let generator = generator(100);
        let mut shapes = BTreeSet::new();
        for number in 1..50 {
            let body = generator.body(number, 0);
            let shape = |log: &Log| (log.topics().first().copied(), log.topics().len(), log.data.data.len());
            shapes.extend(body.logs().map(|(_, _, log)| shape(log)));
        }
        let expected = [
            (Some(TRANSFER), 3, 32),
            (Some(TRANSFER), 4, 0),
            (Some(TRANSFER), 1, 96),
            (Some(APPROVAL), 3, 32),
            (Some(SYNC), 1, 64),
            (None, 0, 8),
        ];
        assert_eq!(shapes, BTreeSet::from(expected));
    }

    #[test]
    fn event_signatures_are_the_hashes_of_their_names() {
        assert_eq!(TRANSFER, keccak256("Transfer(address,address,uint256)"));
        assert_eq!(APPROVAL, keccak256("Approval(address,address,uint256)"));
        assert_eq!(SYNC, keccak256("Sync(uint112,uint112)"));
    }
}
