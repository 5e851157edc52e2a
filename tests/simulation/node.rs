//! A node behind the chain's edge, as a replica sees it: mostly the chain as it is, sometimes some blocks behind or on a
//! branch that was left.

use std::{sync::Arc, time::Duration};

use alloy::primitives::B256;
use async_trait::async_trait;
use chaintap::{
    domain::{BlockRange, BlockRef, Header, RawLog},
    rpc::{At, ChainSource, EndpointState, LogFilter, RangeLogs, RpcError, Witness},
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
    pub gate: Arc<Gate>,
}

impl Node {
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
                Err(RpcError::TooLarge("more than 10000 results".into()))
            }
            Some(Kind::Orphaned) if op == Op::BlockLogs => Err(RpcError::Orphaned("unknown block".into())),
            _ => answer,
        }
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

fn matching(block: &Block, filter: &LogFilter) -> Vec<RawLog> {
    let wants = |log: &&RawLog| log.topics.first().is_some_and(|topic| filter.topics.contains(topic));
    block.logs.iter().filter(wants).cloned().collect()
}

fn range_logs(tree: &Tree, tip: &B256, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError> {
    let blocks = tree.range(tip, range).ok_or_else(|| RpcError::Behind("the range is not there yet".into()))?;
    let ends = (blocks.first().map(|block| block.header), blocks.last().map(|block| block.header));
    let (Some(first), Some(last)) = ends else { return Err(RpcError::Invalid("an empty range".into())) };
    Ok(RangeLogs { logs: blocks.iter().flat_map(|block| matching(block, filter)).collect(), first, last })
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
            Ok(matching(found, filter))
        })
        .await
    }

    async fn range_logs(&self, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError> {
        self.ask(Op::RangeLogs, range.from, |tree, tip| range_logs(tree, tip, range, filter)).await
    }

    async fn second_opinion(&self, range: BlockRange, filter: &LogFilter) -> Result<Option<RangeLogs>, RpcError> {
        self.ask(Op::Opinion, range.from, |tree, tip| range_logs(tree, tip, range, filter).map(Some)).await
    }

    async fn witnesses(&self, number: u64) -> Vec<Witness> {
        let ours = self.ask(Op::Witnesses, number, |tree, tip| Ok(header(tree, tip, At::Number(number)))).await;
        vec![Witness { endpoint: "a".into(), answer: ours }]
    }

    fn eject(&self, _: &str, _: &str) {}

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
