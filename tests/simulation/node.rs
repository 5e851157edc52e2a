//! A node behind the chain's edge, as a replica sees it: mostly the chain as it is, sometimes some blocks behind or on a
//! branch that was left.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use alloy::primitives::B256;
use async_trait::async_trait;
use chaintap::{
    domain::{BlockRange, BlockRef, Header, RawLog},
    rpc::{At, Cap, ChainSource, EndpointState, LogFilter, RangeLogs, RpcError, Witness},
};
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;

use crate::{
    chain::{Block, Tree},
    faults::{Gate, Kind, Op, Strike},
};

/// One request may take so long.
const LIMIT: Duration = Duration::from_secs(20);
/// Signs that wait for someone who does not listen.
const SIGNS: usize = 4;

/// The node of one replica.
pub struct Node {
    gate: Arc<Gate>,
    /// How often answers without logs were not taken, by block.
    not_taken: Mutex<HashMap<B256, u8>>,
}

impl Node {
    pub fn new(gate: Arc<Gate>) -> Self {
        Self { gate, not_taken: Mutex::default() }
    }

    /// The answer to one request, from the branch that the node is on.
    async fn ask<T>(
        &self,
        op: Op,
        key: u64,
        answer: impl Fn(&Tree, &B256) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let mut strike = self.gate.enter(op, key).await;
        self.answer(op, &mut strike, answer).await
    }

    async fn answer<T>(
        &self,
        op: Op,
        strike: &mut Strike,
        answer: impl Fn(&Tree, &B256) -> Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        let answer = {
            let tree = self.gate.world.tree();
            let tip = Self::tip(&tree, strike);
            answer(&tree, &tip)
        };
        self.gate.leave(op, strike).await;
        match strike.kind {
            Some(Kind::Fails) => Err(RpcError::Transient("connection reset".into())),
            Some(Kind::Hangs) => {
                self.gate.time_out(LIMIT).await;
                Err(RpcError::TimedOut)
            }
            Some(Kind::Throttled) => Err(RpcError::Throttled {
                message: "slow down".into(),
                retry_after: strike.draw.chance(0.5).then(|| strike.draw.seconds(1, 10)),
            }),
            Some(Kind::Behind) => Err(RpcError::Behind("not yet".into())),
            Some(Kind::TooLarge) if matches!(op, Op::RangeLogs | Op::BlockLogs) => {
                let message = "more than 10000 results".into();
                Err(RpcError::TooLarge { message, cap: Cap::Density, suggested: None })
            }
            Some(Kind::Orphaned) if op == Op::BlockLogs => Err(RpcError::Orphaned("unknown block".into())),
            _ => answer,
        }
    }

    /// The logs of a block, without those that nodes leave out.
    fn told(&self, block: &Block, filter: &LogFilter) -> Vec<RawLog> {
        let world = &self.gate.world;
        let is_told = |log: &&RawLog| {
            let leaves_out = world.leaves_out(log);
            if leaves_out {
                world.oracle().left_out(log.block.hash, log.log_index);
            }
            !leaves_out
        };
        matching(block, filter).filter(is_told).cloned().collect()
    }

    /// What the client does with an answer without logs that the header's bloom contradicts (`src/rpc/blooms.rs`).
    fn hold_against_bloom(&self, block: &Block, filter: &LogFilter, logs: &[RawLog]) -> Result<(), RpcError> {
        if !logs.is_empty() || matching(block, filter).next().is_none() {
            return Ok(());
        }
        let mut not_taken = self.not_taken.lock().unwrap();
        let times = not_taken.entry(block.header.hash).or_insert(0);
        if *times >= 2 {
            return Ok(());
        }
        *times += 1;
        self.gate.world.saw("an answer that the bloom contradicts");
        Err(RpcError::Behind("the bloom says that there may be logs".into()))
    }

    /// The newest block that the node knows.
    fn tip(tree: &Tree, strike: &mut Strike) -> B256 {
        let head = tree.head().header;
        match strike.kind {
            Some(Kind::Lags) => {
                let lag = strike.draw.between(1, 6).min(head.number);
                tree.at(head.number - lag).map_or(head.hash, |block| block.header.hash)
            }
            Some(Kind::Stale) => tree.stale_tip().unwrap_or(head.hash),
            _ => head.hash,
        }
    }
}

fn header(tree: &Tree, tip: &B256, at: At) -> Option<Header> {
    let head = tree.block(tip)?.header;
    let number = |number| tree.on_branch(tip, number).map(|block| block.header);
    match at {
        At::Latest => Some(head),
        At::Safe => number(head.number.saturating_sub(2)),
        At::Finalized => number(tree.finalized(head.number)?),
        At::Number(wanted) => number(wanted),
        At::Hash(hash) => tree.block(&hash).map(|block| block.header),
    }
}

fn matching<'a>(block: &'a Block, filter: &'a LogFilter) -> impl Iterator<Item = &'a RawLog> {
    let wants = |log: &&RawLog| log.topics.first().is_some_and(|topic| filter.topics.contains(topic));
    block.logs.iter().filter(wants)
}

/// What the edge makes of a range that is too large: it answers the first blocks of it, where there are several.
fn borne(range: BlockRange, strike: &mut Strike) -> BlockRange {
    if !strike.is(Kind::TooLarge) || range.blocks() == 1 {
        return range;
    }
    strike.kind = None;
    BlockRange { to: strike.draw.between(range.from, range.to - 1), ..range }
}

fn range_logs(
    tree: &Tree,
    tip: &B256,
    range: BlockRange,
    logs: impl Fn(&Block) -> Vec<RawLog>,
) -> Result<RangeLogs, RpcError> {
    let blocks = tree.range(tip, range).ok_or_else(|| RpcError::Behind("the range is not there yet".into()))?;
    let ends = (blocks.first().map(|block| block.header), blocks.last().map(|block| block.header));
    let (Some(first), Some(last)) = ends else { return Err(RpcError::Invalid("an empty range".into())) };
    Ok(RangeLogs { logs: blocks.into_iter().flat_map(logs).collect(), first, last })
}

#[async_trait]
impl ChainSource for Node {
    async fn chain_id(&self) -> Result<u64, RpcError> {
        Ok(crate::oracle::CHAIN)
    }

    async fn header(&self, at: At) -> Result<Option<Header>, RpcError> {
        let key = match at {
            At::Number(number) => number,
            At::Latest => 1 << 60,
            At::Safe => 2 << 60,
            At::Finalized => 3 << 60,
            At::Hash(_) => 4 << 60,
        };
        let mut strike = self.gate.enter(Op::Header, key).await;
        // A chain that has a tag does not lose it.
        let is_tag = matches!(at, At::Safe | At::Finalized);
        if strike.is(Kind::Null) && !is_tag {
            return Ok(None);
        }
        self.answer(Op::Header, &mut strike, |tree, tip| Ok(header(tree, tip, at))).await
    }

    async fn block_logs(&self, block: BlockRef, _: u64, filter: &LogFilter) -> Result<Vec<RawLog>, RpcError> {
        self.ask(Op::BlockLogs, block.number, |tree, tip| {
            let found = tree.block(&block.hash).ok_or_else(|| RpcError::Invalid("no such block".into()))?;
            let is_there = tree.on_branch(tip, block.number).is_some_and(|at| at.header.hash == block.hash);
            // Some nodes still know what left the chain.
            if !is_there && block.hash.0[0].is_multiple_of(2) {
                return Err(RpcError::Orphaned(block.to_string()));
            }
            let logs = self.told(found, filter);
            self.hold_against_bloom(found, filter, &logs)?;
            Ok(logs)
        })
        .await
    }

    async fn range_logs(&self, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError> {
        let logs = |block: &Block| self.told(block, filter);
        let mut strike = self.gate.enter(Op::RangeLogs, range.from).await;
        let most = range.from.saturating_add(self.gate.world.swarm.batch_blocks - 1);
        let range = borne(BlockRange { to: range.to.min(most), ..range }, &mut strike);
        self.answer(Op::RangeLogs, &mut strike, |tree, tip| range_logs(tree, tip, range, logs)).await
    }

    async fn second_opinion(&self, range: BlockRange, filter: &LogFilter) -> Result<Vec<RangeLogs>, RpcError> {
        // The second node leaves nothing out.
        let logs = |block: &Block| matching(block, filter).cloned().collect();
        let mut strike = self.gate.enter(Op::Opinion, range.from).await;
        let range = borne(range, &mut strike);
        let answer = self.answer(Op::Opinion, &mut strike, |tree, tip| range_logs(tree, tip, range, logs));
        let opinion = answer.await?;
        self.gate.world.oracle().audits().told((self.gate.replica, self.gate.life), range);
        Ok(vec![opinion])
    }

    async fn witnesses(&self, number: u64) -> Vec<Witness> {
        let ours = self.ask(Op::Witnesses, number, |tree, tip| Ok(header(tree, tip, At::Number(number)))).await;
        vec![Witness { endpoint: "a".into(), answer: ours }]
    }

    fn eject(&self, _: &str, _: &str) {}

    fn set_aside(&self, _: &str, _: &str) {}

    async fn heads(&self) -> Result<Option<BoxStream<'static, ()>>, RpcError> {
        if !self.gate.world.swarm.pushes {
            return Ok(None);
        }
        let mut strike = self.gate.enter(Op::Heads, 0).await;
        match strike.kind {
            None | Some(Kind::Slow) => {
                let (tell, told) = mpsc::channel(SIGNS);
                self.gate.world.sockets.lock().unwrap().push(tell);
                let gate = self.gate.clone();
                let signs = stream::unfold((told, gate), |(mut told, gate)| async move {
                    told.recv().await?;
                    gate.breathe().await;
                    Some(((), (told, gate)))
                });
                Ok(Some(signs.boxed()))
            }
            // A socket that stays silent.
            Some(Kind::Null) => Ok(Some(stream::pending().boxed())),
            Some(Kind::Hangs) => {
                self.gate.time_out(LIMIT).await;
                Err(RpcError::TimedOut)
            }
            Some(_) => {
                let closed = strike.draw.chance(0.5);
                if closed { Ok(Some(stream::empty().boxed())) } else { Err(RpcError::Transient("refused".into())) }
            }
        }
    }

    fn endpoints(&self) -> Vec<EndpointState> {
        vec![]
    }
}
