//! The chain that is downloaded: blocks of token transfers in the JSON of a node, the same in every run.
//!
//! Some blocks are kept as text; a block of the chain is one of them with its number, hash and time written in, so that
//! a million logs cost a node little more than copying them.

use std::{collections::HashSet, fmt::Write as _, ops::Range};

use alloy::primitives::{Address, B256, U256, hex};

/// Its id (EIP-155).
pub const CHAIN_ID: u64 = 1;
/// The first block: from here on a height has seven hexadecimal digits, so that all logs have one form.
pub const FIRST: u64 = 0x100_0000;
/// keccak256 of `Transfer(address,address,uint256)` (EIP-20).
pub const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";
/// The time of block 0, and between two blocks, seconds.
const TIME: (u64, u64) = (1_600_000_000, 12);
/// Tokens that the business tracks; one log of [`RARE`] is of one of them.
const TRACKED: u16 = 10;
const RARE: u64 = 100;
/// All tokens.
const TOKENS: u64 = 1_000;
/// Of a hundred senders and receivers so many stood in the same block before: 458 of 1,138 in the real blocks of six chains
/// that `tests/real_blocks.rs` reads, all their ERC-20 transfers taken.
const AGAIN: u64 = 40;

/// How the logs lie in the blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// 80 or 81 a block: 1.61 million in 20,000 blocks, as on Ethereum in 2024.
    Even,
    /// The same, and one block of 50,000 logs.
    Burst,
    /// 1,600 a block: a request of 100 blocks is answered with 100 MB.
    Dense,
}

impl Shape {
    /// By its name on the command line of a node; `even` where there is none.
    pub fn parse(name: Option<&str>) -> Self {
        match name {
            None | Some("even") => Self::Even,
            Some("burst") => Self::Burst,
            Some("dense") => Self::Dense,
            Some(other) => panic!("no shape of a chain is called {other}"),
        }
    }

    /// Different blocks before they repeat.
    fn kinds(self) -> u64 {
        if self == Self::Dense { 10 } else { 1_000 }
    }

    /// Logs of one kind of block.
    fn logs(self, which: u64) -> u64 {
        match self {
            Self::Burst if which == self.kinds() - 1 => 50_000,
            Self::Even | Self::Burst => 80 + which % 2,
            Self::Dense => 1_600,
        }
    }
}

/// What of a chain is to be delivered: how many logs, and a sum over their ids in which none can be missing or twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    pub logs: u64,
    pub ids: u64,
}

impl Truth {
    /// One more log, by its id (`{chain}:{block hash}:{log index}`).
    pub fn add(&mut self, id: &[u8]) {
        // FNV-1a, and a last mix, for a sum of plain FNV hashes of texts that are alike might hide an exchange.
        let hash = id
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        self.logs += 1;
        self.ids = self.ids.wrapping_add(splitmix(hash));
    }
}

/// One log as text: where it stands in its block, and what is written into it.
struct LogText {
    at: Range<usize>,
    token: u16,
    number: usize,
    hash: usize,
    time: usize,
}

/// The text of one kind of block.
struct Kind {
    text: Vec<u8>,
    logs: Vec<LogText>,
}

/// The chain.
pub struct Chain {
    kinds: Vec<Kind>,
}

impl Chain {
    /// The chain; takes some 50 MB.
    pub fn new(shape: Shape) -> Self {
        Self { kinds: (0..shape.kinds()).map(|which| kind(which, shape.logs(which))).collect() }
    }

    fn kind(&self, number: u64) -> &Kind {
        &self.kinds[usize::try_from(number - FIRST).unwrap() % self.kinds.len()]
    }

    /// Appends the logs of these blocks, of these contracts (none: of all), as the elements of a JSON array.
    pub fn write_logs(&self, blocks: Range<u64>, contracts: &HashSet<Address>, out: &mut Vec<u8>) {
        let tokens: HashSet<u16> =
            (0..u16::try_from(TOKENS).unwrap()).filter(|token| contracts.contains(&address(*token))).collect();
        let begin = out.len();
        for number in blocks {
            let kind = self.kind(number);
            let (digits, hash, time) =
                (format!("{number:07x}"), hex::encode(hash(number)), format!("{:08x}", time(number)));
            for log in &kind.logs {
                if !contracts.is_empty() && !tokens.contains(&log.token) {
                    continue;
                }
                if out.len() > begin {
                    out.push(b',');
                }
                let start = out.len();
                out.extend_from_slice(&kind.text[log.at.clone()]);
                for (place, value) in [(log.number, &digits), (log.hash, &hash), (log.time, &time)] {
                    out[start + place..start + place + value.len()].copy_from_slice(value.as_bytes());
                }
            }
        }
    }

    /// What these blocks have, of all contracts or of the tracked ones.
    pub fn truth(&self, blocks: Range<u64>, tracked: bool) -> Truth {
        let mut truth = Truth::default();
        for number in blocks {
            let logs = self.kind(number).logs.iter().enumerate();
            for (index, _) in logs.filter(|(_, log)| !tracked || log.token < TRACKED) {
                truth.add(format!("{CHAIN_ID}:{}:{index}", hash(number)).as_bytes());
            }
        }
        truth
    }
}

/// The header of a block as a node states it.
pub fn header(number: u64) -> String {
    format!(
        r#"{{"number":"0x{number:x}","hash":"{}","parentHash":"{}","timestamp":"0x{:x}","logsBloom":"0x{}"}}"#,
        hash(number),
        hash(number.wrapping_sub(1)),
        time(number),
        "ff".repeat(256),
    )
}

/// The contract of a token.
pub fn address(token: u16) -> Address {
    Address::from_word(B256::from(word(0xadd0_0000 + u64::from(token))))
}

/// The tokens that the business tracks.
pub fn tracked() -> impl Iterator<Item = Address> {
    (0..TRACKED).map(address)
}

/// So many tokens that nothing on the chain is of.
pub fn strangers(count: u16) -> impl Iterator<Item = Address> {
    let first = u16::try_from(TOKENS).unwrap();
    (first..first + count).map(address)
}

/// The hash of a block.
pub fn hash(number: u64) -> B256 {
    B256::from(word(number))
}

fn time(number: u64) -> u64 {
    TIME.0 + (number - FIRST.min(number)) * TIME.1
}

fn kind(which: u64, logs: u64) -> Kind {
    let mut dice = which * 1_000_003 + 1;
    let mut draw = || {
        dice = splitmix(dice);
        dice
    };
    let (mut block, mut parties) = (Kind { text: Vec::new(), logs: Vec::new() }, Vec::new());
    for index in 0..logs {
        let tracked = draw() % RARE == 0;
        let range = if tracked { 0..u64::from(TRACKED) } else { u64::from(TRACKED)..TOKENS };
        let token = u16::try_from(range.start + draw() % (range.end - range.start)).unwrap();
        let [from, to] = [(); 2].map(|()| party(&mut draw, &mut parties));
        let value = U256::from(draw() % 1_000_000_000_000_000_000);
        let mut log = format!(
            r#"{{"address":"{}","topics":["{TRANSFER}","{from}","{to}"],"data":"{}","#,
            hex::encode_prefixed(address(token)),
            B256::from(value),
        );
        let mut field = |name: &str, digits: usize| {
            write!(log, r#""{name}":"0x"#).unwrap();
            let place = log.len();
            write!(log, r#"{}","#, "0".repeat(digits)).unwrap();
            place
        };
        let (number, hash, time) = (field("blockNumber", 7), field("blockHash", 64), field("blockTimestamp", 8));
        let transaction = B256::from(word(draw()));
        write!(
            log,
            r#""transactionHash":"{transaction}","transactionIndex":"0x{:x}","logIndex":"0x{index:x}","removed":false}}"#,
            index / 2
        )
        .unwrap();
        let begin = block.text.len();
        block.text.extend_from_slice(log.as_bytes());
        block.logs.push(LogText { at: begin..block.text.len(), token, number, hash, time });
    }
    block
}

/// The next sender or receiver, as a topic: one of those that were there before, or a new one.
fn party(draw: &mut impl FnMut() -> u64, before: &mut Vec<B256>) -> B256 {
    let place = draw();
    if draw() % 100 < AGAIN && !before.is_empty() {
        return before[usize::try_from(place).unwrap() % before.len()];
    }
    let new = Address::from_word(word(place).into()).into_word();
    before.push(new);
    new
}

/// 32 bytes that look like nothing in particular.
fn word(seed: u64) -> [u8; 32] {
    let mut word = [0; 32];
    let mut state = seed;
    for part in word.chunks_mut(8) {
        state = splitmix(state);
        part.copy_from_slice(&state.to_be_bytes());
    }
    word
}

/// The step of Steele, Lea and Flood's `SplitMix64`.
fn splitmix(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
