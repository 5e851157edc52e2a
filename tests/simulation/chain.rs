//! The chain: every block that ever was, and which branch is the chain now.

use std::{
    collections::{BTreeMap, HashMap},
    sync::OnceLock,
};

use alloy::{
    primitives::{Address, B256, Bytes, U256, keccak256},
    sol,
    sol_types::SolEvent,
};
use chaintap::domain::{Args, BlockRange, BlockRef, Event, Header, RawLog, Token};

use crate::random::Draw;

sol! {
    event Transfer(address indexed from, address indexed to, uint256 value);
}

/// The first block's number is 0; blocks below this one have no logs and are there from the beginning.
pub const GENESIS_TIME: u64 = 1_700_000_000;
/// Tokens 0 to 19; which of them are tracked is the directory's matter.
pub const TOKENS: u8 = 20;

/// One block.
pub struct Block {
    /// How many blocks there were when it was made.
    pub made: u64,
    pub header: Header,
    pub logs: Vec<RawLog>,
}

/// How a chain is made.
#[derive(Clone, Debug)]
pub struct Making {
    pub seed: u64,
    /// No block this far below the highest head ever leaves the chain.
    pub finality: u64,
    /// The `finalized` tag is so far below the head; `None`: the chain has no such tag.
    pub finalized: Option<u64>,
    /// Whether a chain that has the tag has it from its first block on, as real ones do.
    pub begins_final: bool,
    /// Share of the blocks without logs.
    pub empty: f64,
    /// Most logs in a block.
    pub density: u64,
}

/// All blocks.
pub struct Tree {
    making: Making,
    blocks: HashMap<B256, Block>,
    /// The chain, by number.
    canonical: Vec<B256>,
    /// Tips of branches that were the chain once, the latest last.
    left: Vec<B256>,
    /// Transfers of blocks that left, to be included again.
    pool: Vec<(Address, B256)>,
    highest: u64,
    salt: u64,
}

impl Tree {
    /// A chain of `length` blocks without logs.
    pub fn new(making: Making, length: u64) -> Self {
        let mut tree =
            Self { making, blocks: HashMap::new(), canonical: vec![], left: vec![], pool: vec![], highest: 0, salt: 0 };
        (0..length).for_each(|_| tree.mine(0, Some(0)));
        tree
    }

    pub fn head(&self) -> &Block {
        self.block(&self.canonical[self.canonical.len() - 1]).unwrap()
    }

    /// How many blocks were made so far.
    pub fn made(&self) -> u64 {
        self.salt
    }

    pub fn height(&self) -> u64 {
        self.canonical.len() as u64 - 1
    }

    pub fn block(&self, hash: &B256) -> Option<&Block> {
        self.blocks.get(hash)
    }

    /// The block of the chain at this height.
    pub fn at(&self, number: u64) -> Option<&Block> {
        self.canonical.get(usize::try_from(number).ok()?).and_then(|hash| self.block(hash))
    }

    pub fn is_canonical(&self, block: BlockRef) -> bool {
        self.at(block.number).is_some_and(|at| at.header.hash == block.hash)
    }

    /// How many blocks the chain has to grow to be as long as it was at its longest.
    pub fn is_short_of(&self) -> u64 {
        self.highest - self.height()
    }

    /// Nothing at or below it will ever leave the chain.
    pub fn floor(&self) -> u64 {
        self.highest.saturating_sub(self.making.finality)
    }

    /// The latest branch that was left and whose parting from the chain is above the floor.
    pub fn stale_tip(&self) -> Option<B256> {
        self.left.iter().rev().find(|tip| self.parting(**tip) >= self.floor()).copied()
    }

    /// The `finalized` tag of a node whose head is at this height.
    pub fn finalized(&self, head: u64) -> Option<u64> {
        let first = Some(0).filter(|_| self.making.begins_final);
        self.making.finalized.and_then(|depth| head.checked_sub(depth).or(first))
    }

    /// The block at a height of the branch that ends in `tip`.
    pub fn on_branch(&self, tip: &B256, number: u64) -> Option<&Block> {
        let mut block = self.block(tip)?;
        while block.header.number > number {
            if self.is_canonical(block.header.block()) {
                return self.at(number);
            }
            block = self.block(&block.header.parent)?;
        }
        (block.header.number == number).then_some(block)
    }

    /// The highest block of the branch that is also on the chain.
    fn parting(&self, tip: B256) -> u64 {
        let mut block = &self.blocks[&tip];
        while !self.is_canonical(block.header.block()) {
            block = &self.blocks[&block.header.parent];
        }
        block.header.number
    }

    /// A new head, with logs as drawn, or with exactly so many.
    pub fn mine(&mut self, seconds: u64, logs: Option<u64>) {
        let (number, parent) = match self.canonical.last() {
            Some(tip) => (self.blocks[tip].header.number + 1, *tip),
            None => (0, B256::ZERO),
        };
        self.salt += 1;
        let mut draw = Draw::of(&[self.making.seed, 0xB10C, self.salt]);
        let hash = draw.hash();
        let header = Header { number, hash, parent, timestamp: GENESIS_TIME + seconds };
        let drawn = if draw.chance(self.making.empty) { 0 } else { draw.between(1, self.making.density.max(1)) };
        let logs = (0..logs.unwrap_or(drawn)).map(|index| self.log(&mut draw, &header, index)).collect();
        self.blocks.insert(hash, Block { made: self.salt, header, logs });
        self.canonical.push(hash);
        self.highest = self.highest.max(number);
    }

    /// The block at which the chain parts from now on: `depth` blocks leave it, as many as the floor allows; answers
    /// how many did.
    pub fn leave(&mut self, depth: u64) -> u64 {
        self.cut(depth.min(self.height() - self.floor()))
    }

    /// So many blocks leave the chain that should not have, beside all that may; answers how many did.
    pub fn leave_deeply(&mut self, below: u64) -> u64 {
        self.cut((self.height() - self.floor() + below).min(self.height()))
    }

    fn cut(&mut self, depth: u64) -> u64 {
        if depth == 0 {
            return 0;
        }
        self.left.push(self.head().header.hash);
        let keep = self.canonical.len() - usize::try_from(depth).unwrap();
        for hash in self.canonical.split_off(keep) {
            let logs = &self.blocks[&hash].logs;
            self.pool.extend(logs.iter().map(|log| (log.address, log.transaction_hash)));
        }
        depth
    }

    /// Back to the latest branch that may become the chain again; answers whether there is one.
    pub fn flip_back(&mut self) -> bool {
        let now = self.head().header.hash;
        let Some(tip) = self.stale_tip().filter(|tip| self.parting(*tip) < self.height() && *tip != now) else {
            return false;
        };
        let parting = self.parting(tip);
        if self.blocks[&tip].header.number <= parting {
            return false;
        }
        self.left.retain(|left| *left != tip);
        self.left.push(now);
        let mut branch = vec![];
        let mut block = &self.blocks[&tip];
        while block.header.number > parting {
            branch.push(block.header.hash);
            block = &self.blocks[&block.header.parent];
        }
        self.canonical.truncate(usize::try_from(parting).unwrap() + 1);
        self.canonical.extend(branch.into_iter().rev());
        self.highest = self.highest.max(self.height());
        true
    }

    /// What a node answers for a range of the branch that ends in `tip`.
    pub fn range(&self, tip: &B256, range: BlockRange) -> Option<Vec<&Block>> {
        (range.from..=range.to).map(|number| self.on_branch(tip, number)).collect()
    }

    fn log(&mut self, draw: &mut Draw, header: &Header, index: u64) -> RawLog {
        let again = if draw.chance(0.5) { self.pool.pop() } else { None };
        let (address, transaction_hash) =
            again.unwrap_or_else(|| (address(u8::try_from(draw.below(u64::from(TOKENS))).unwrap()), draw.hash()));
        let party = |draw: &mut Draw| B256::left_padding_from(&draw.number().to_be_bytes());
        let mut topics = vec![Transfer::SIGNATURE_HASH, party(draw), party(draw)];
        let mut data = Bytes::from(U256::from(draw.number()).to_be_bytes::<32>());
        // Of a hundred logs, two are of NFTs and one is broken.
        match draw.below(100) {
            0 | 1 => (topics, data) = ([topics, vec![B256::ZERO]].concat(), Bytes::new()),
            2 => data = Bytes::from_static(&[1; 31]),
            _ => {}
        }
        RawLog {
            address,
            topics: topics.into_iter().collect(),
            data: data.into(),
            block: header.block(),
            timestamp: header.timestamp,
            transaction_hash,
            transaction_index: index,
            log_index: index * 2,
        }
    }
}

/// Whether a log is a transfer of an ERC-20 token.
pub fn is_transfer(log: &RawLog) -> bool {
    log.topics.len() == 3 && log.data.len() == 32
}

/// The event that a log is, if it is a transfer of an ERC-20 token.
pub fn event(log: &RawLog, tokens: &BTreeMap<Address, Token>) -> Option<Event> {
    let [_, from, to] = log.topics[..] else { return None };
    let value = U256::try_from_be_slice(&log.data).filter(|_| log.data.len() == 32)?;
    Some(Event {
        block: log.block,
        timestamp: log.timestamp,
        transaction_hash: log.transaction_hash,
        transaction_index: log.transaction_index,
        log_index: log.log_index,
        address: log.address,
        contract: "Transfers".into(),
        name: "Transfer".into(),
        handler: "handleTransferEvent".into(),
        args: Args::Transfer { from: Address::from_word(from), to: Address::from_word(to), value },
        token: tokens.get(&log.address).cloned().map(Into::into),
    })
}

/// The contract of a token.
pub fn address(token: u8) -> Address {
    static ADDRESSES: OnceLock<[Address; TOKENS as usize]> = OnceLock::new();
    let address = |token| Address::from_word(keccak256([u8::try_from(token).unwrap()]));
    ADDRESSES.get_or_init(|| std::array::from_fn(address))[usize::from(token)]
}
