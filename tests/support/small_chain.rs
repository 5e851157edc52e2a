//! A chain in this process, without a server: so that a test may let hours pass in no time, and decide what a node says
//! between two calls.

use std::{sync::Mutex, time::Duration};

use alloy::primitives::{Address, B256, U256, keccak256};
use async_trait::async_trait;
use chaintap::{
    domain::{BlockRange, BlockRef, Header, RawLog},
    rpc::{At, ChainSource, EndpointState, LogFilter, RangeLogs, RpcError, Witness},
};
use futures_util::{future::BoxFuture, stream::BoxStream};

/// Transfers in every block.
const LOGS: u64 = 3;
const GENESIS_TIME: u64 = 1_700_000_000;

/// What another endpoint answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Other {
    /// There is none.
    #[default]
    None,
    /// Nothing.
    Silent,
    /// The same.
    Agrees,
    /// The same but for the hash of the last block.
    Forked,
}

/// What happens when something is asked for, before it is answered.
type Happening = Mutex<Option<BoxFuture<'static, ()>>>;

/// The blocks, lowest first.
#[derive(Default)]
pub struct Blocks {
    chain: Vec<(Header, Vec<RawLog>)>,
    made: u64,
    /// So many questions for the logs of a block are answered with "not yet".
    pub late: u32,
    /// The hashes whose logs were asked for.
    pub asked: Vec<B256>,
    pub other: Other,
    /// Headers above this height are read by number from another node, on a branch of its own.
    pub stale_above: Option<u64>,
    /// For so long nobody may ask, says the answer to every question for a header by its number.
    pub throttles: Option<Duration>,
    /// How often that was said.
    pub throttled: u32,
    /// A range is answered as far as so many blocks; `None`: to its end.
    pub bears: Option<u64>,
    /// An answer to a question for a range takes so long.
    pub latency: Duration,
    /// How many ranges were asked for.
    pub ranges: usize,
}

impl Blocks {
    pub fn mine(&mut self, count: u64) {
        for _ in 0..count {
            self.made += 1;
            let number = self.chain.len() as u64;
            let parent = self.chain.last().map_or(B256::ZERO, |(header, _)| header.hash);
            let hash = keccak256(self.made.to_be_bytes());
            let header = Header { number, hash, parent, timestamp: GENESIS_TIME + number };
            self.chain.push((header, (0..LOGS).map(|index| transfer(&header, index)).collect()));
        }
    }

    /// Another block takes the place of the highest one.
    pub fn replace_head(&mut self) {
        self.chain.pop();
        self.mine(1);
    }

    pub fn head(&self) -> Header {
        self.chain[self.chain.len() - 1].0
    }

    pub fn at(&self, number: u64) -> Option<Header> {
        self.chain.get(usize::try_from(number).ok()?).map(|(header, _)| *header)
    }

    fn header(&self, at: At) -> Option<Header> {
        match at {
            At::Latest => self.chain.last().map(|(header, _)| *header),
            At::Safe | At::Finalized => None,
            At::Number(number) => self.at(number).map(|header| {
                let is_stale = self.stale_above.is_some_and(|fork| fork < number);
                Header { hash: if is_stale { keccak256(header.hash) } else { header.hash }, ..header }
            }),
            At::Hash(hash) => self.chain.iter().map(|(header, _)| *header).find(|header| header.hash == hash),
        }
    }

    fn range(&self, range: BlockRange) -> Result<RangeLogs, RpcError> {
        let last = self.bears.map_or(range.to, |blocks| range.to.min(range.from + blocks - 1));
        let range = BlockRange { to: last, ..range };
        let behind = || RpcError::Behind(format!("the node lacks an end of the range {range}"));
        let (first, last) = (self.at(range.from).ok_or_else(behind)?, self.at(range.to).ok_or_else(behind)?);
        let within = self.chain.iter().filter(|(header, _)| range.contains(header.number));
        Ok(RangeLogs { logs: within.flat_map(|(_, logs)| logs.clone()).collect(), first, last })
    }
}

fn transfer(header: &Header, index: u64) -> RawLog {
    RawLog {
        address: Address::repeat_byte(7),
        topics: [keccak256("Transfer(address,address,uint256)"), B256::ZERO, B256::with_last_byte(1)]
            .into_iter()
            .collect(),
        data: U256::from(index).to_be_bytes_vec().into(),
        block: header.block(),
        timestamp: header.timestamp,
        transaction_hash: header.hash,
        transaction_index: 0,
        log_index: index,
    }
}

/// The chain, and what happens when it is asked.
#[derive(Default)]
pub struct SmallChain {
    blocks: Mutex<Blocks>,
    at_range: Happening,
    at_block: Happening,
}

impl SmallChain {
    /// A chain of blocks 0 to `height`.
    pub fn of(height: u64) -> Self {
        let chain = Self::default();
        chain.change(|blocks| blocks.mine(height + 1));
        chain
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut Blocks) -> T) -> T {
        change(&mut self.blocks.lock().unwrap())
    }

    /// Once, before the next range is answered.
    pub fn at_next_range(&self, happening: impl Future<Output = ()> + Send + 'static) {
        *self.at_range.lock().unwrap() = Some(Box::pin(happening));
    }

    /// Once, before the logs of the next block are answered.
    pub fn at_next_block(&self, happening: impl Future<Output = ()> + Send + 'static) {
        *self.at_block.lock().unwrap() = Some(Box::pin(happening));
    }

    /// Ids of all transfers of these blocks, as the messages bear them.
    pub fn ids(&self, chain_id: u64, range: BlockRange) -> Vec<String> {
        let logs = self.change(|blocks| blocks.range(range)).unwrap().logs;
        logs.iter().map(|log| format!("{chain_id}:{}:{}", log.block.hash, log.log_index)).collect()
    }
}

async fn happens(happening: &Happening) {
    let now = happening.lock().unwrap().take();
    if let Some(now) = now {
        now.await;
    }
}

#[async_trait]
impl ChainSource for SmallChain {
    async fn chain_id(&self) -> Result<u64, RpcError> {
        Err(RpcError::Transient("nobody asks".into()))
    }

    async fn header(&self, at: At) -> Result<Option<Header>, RpcError> {
        self.change(|blocks| match (at, blocks.throttles) {
            (At::Number(_), Some(wait)) => {
                blocks.throttled += 1;
                Err(RpcError::Throttled { message: "slow down".into(), retry_after: Some(wait) })
            }
            _ => Ok(blocks.header(at)),
        })
    }

    async fn block_logs(&self, block: BlockRef, _: u64, _: &LogFilter) -> Result<Vec<RawLog>, RpcError> {
        happens(&self.at_block).await;
        self.change(|blocks| {
            blocks.asked.push(block.hash);
            if blocks.late > 0 {
                blocks.late -= 1;
                return Err(RpcError::Behind("the logs are not there yet".into()));
            }
            // As nodes do that know nothing of the block: no error, and no logs.
            let found = blocks.chain.iter().find(|(header, _)| header.block() == block);
            Ok(found.map(|(_, logs)| logs.clone()).unwrap_or_default())
        })
    }

    async fn range_logs(&self, range: BlockRange, _: &LogFilter) -> Result<RangeLogs, RpcError> {
        happens(&self.at_range).await;
        let latency = self.change(|blocks| {
            blocks.ranges += 1;
            blocks.latency
        });
        tokio::time::sleep(latency).await;
        self.change(|blocks| blocks.range(range))
    }

    async fn second_opinion(&self, range: BlockRange, _: &LogFilter) -> Result<Vec<RangeLogs>, RpcError> {
        self.change(|blocks| match blocks.other {
            Other::None => Ok(Vec::new()),
            Other::Silent => Err(RpcError::TimedOut),
            Other::Agrees => blocks.range(range).map(|answer| vec![answer]),
            Other::Forked => blocks.range(range).map(|answer| {
                let last = Header { hash: keccak256(answer.last.hash), ..answer.last };
                vec![RangeLogs { last, ..answer }]
            }),
        })
    }

    async fn witnesses(&self, number: u64) -> Vec<Witness> {
        vec![Witness { endpoint: "small".into(), answer: Ok(self.change(|blocks| blocks.at(number))) }]
    }

    fn eject(&self, _: &str, _: &str) {}

    fn set_aside(&self, _: &str, _: &str) {}

    async fn heads(&self) -> Result<Option<BoxStream<'static, ()>>, RpcError> {
        Ok(None)
    }

    fn endpoints(&self) -> Vec<EndpointState> {
        Vec::new()
    }
}
