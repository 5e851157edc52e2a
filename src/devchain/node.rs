//! The methods of the node. Answers are the same over HTTP and WebSocket; subscriptions are in [`super::subscriptions`].

use std::{sync::Arc, time::Duration};

use alloy::{
    eips::BlockNumberOrTag,
    primitives::{B256, U64},
    rpc::types::{Filter, FilterBlockOption, Log},
};
use serde_json::{Value, json};

use super::{
    Error, Limits, Options,
    chain::{Block, Chain, Reorganisation},
    faults::Endpoints,
    jsonrpc::{Answer, Fault, Params, answer},
    render,
};

/// How many of the newest blocks are searched for a transaction; older ones are unknown by transaction, as on nodes that
/// keep no full transaction index.
const TRANSACTION_LOOKUP: usize = 512;
/// Most blocks that one `devchain_mine` mines.
const MOST_MINED: u64 = 100_000;
/// The methods that faults may fall on: all that are not control calls.
pub(super) const METHODS: [&str; 13] = [
    "eth_chainId",
    "net_version",
    "web3_clientVersion",
    "eth_syncing",
    "eth_blockNumber",
    "eth_getBlockByNumber",
    "eth_getBlockByHash",
    "eth_getLogs",
    "eth_getBlockReceipts",
    "eth_getTransactionReceipt",
    "eth_getTransactionByHash",
    "eth_subscribe",
    "eth_unsubscribe",
];

/// What the methods need. A copy with other values is the node as somebody sees it on whom a fault falls.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// The chain that is served.
    pub(super) chain: Arc<Chain>,
    /// The chain id that is stated.
    pub(super) chain_id: u64,
    /// Depth of the `safe` tag.
    safe_depth: u64,
    pub(super) limits: Limits,
    /// How many of the newest blocks it does not know of.
    pub(super) behind: u64,
    /// For how long after a block came, and for how many of the newest blocks, it does not have what is in them.
    pub(super) late: (Duration, u64),
    /// The faults of each endpoint.
    pub(super) endpoints: Arc<Endpoints>,
}

impl Node {
    /// A node that serves this chain.
    ///
    /// # Errors
    ///
    /// Faults that make no sense.
    pub(super) fn new(chain: Arc<Chain>, chain_id: u64, options: &Options) -> Result<Self, Error> {
        let endpoints = Endpoints::new(&options.faults, options.seed).map_err(Error::Options)?;
        Ok(Self {
            chain,
            chain_id,
            safe_depth: options.safe_depth,
            limits: options.limits.clone(),
            behind: 0,
            late: (Duration::ZERO, 0),
            endpoints: Arc::new(endpoints),
        })
    }

    /// Height of the newest block that it knows of.
    fn head(&self) -> u64 {
        self.chain.head().saturating_sub(self.behind).max(self.chain.lowest())
    }

    /// Whether it knows of a block.
    fn knows(&self, block: &Block) -> bool {
        self.behind == 0 || block.header.number <= self.head()
    }

    fn find(&self, hash: &B256) -> Option<Arc<Block>> {
        self.chain.find(hash).filter(|block| self.knows(block))
    }

    /// Whether it has what is in a block.
    fn has_body(&self, block: &Block) -> bool {
        let (time, blocks) = self.late;
        let age = || self.chain.age(&block.header.hash());
        (blocks == 0 || block.header.number + blocks <= self.chain.head())
            && (time.is_zero() || age().is_none_or(|age| age >= time))
    }

    /// Answers one call.
    pub(super) fn call(&self, method: &str, mut params: Params) -> Answer {
        match method {
            "eth_chainId" => answer(&U64::from(self.chain_id)),
            "net_version" => answer(&self.chain_id.to_string()),
            "web3_clientVersion" => answer(&concat!("chaintap-devchain/", env!("CARGO_PKG_VERSION"))),
            "eth_syncing" => answer(&false),
            "eth_blockNumber" => answer(&U64::from(self.head())),
            "eth_getBlockByNumber" => {
                let tag = params.required(0)?;
                self.block(self.at(tag), params.optional(1)?)
            }
            "eth_getBlockByHash" => {
                let hash = params.required(0)?;
                self.block(self.find(&hash), params.optional(1)?)
            }
            "eth_getLogs" => answer(&self.logs(&params.required(0)?)?),
            "eth_getBlockReceipts" => self.receipts(params.required(0)?),
            "eth_getTransactionReceipt" => self.receipt(&params.required(0)?),
            "eth_getTransactionByHash" => self.transaction(&params.required(0)?),
            "eth_subscribe" | "eth_unsubscribe" => Err(Fault::new(-32601, "notifications not supported over HTTP")),
            "devchain_mine" => self.mine(params.optional::<U64>(0)?),
            "devchain_reorg" => self.reorganise(params.required(0)?),
            "devchain_flip" => self.flip(params.optional::<U64>(0)?),
            _ => Err(Fault::method(method)),
        }
    }

    /// The number that a tag stands for now; `None` where there is no such block yet.
    pub(super) fn number(&self, tag: BlockNumberOrTag) -> Option<u64> {
        let head = self.head();
        let number = match tag {
            BlockNumberOrTag::Latest | BlockNumberOrTag::Pending => Some(head),
            BlockNumberOrTag::Safe => head.checked_sub(self.safe_depth),
            BlockNumberOrTag::Finalized => self.chain.finalized().and_then(|height| height.checked_sub(self.behind)),
            BlockNumberOrTag::Earliest => Some(self.chain.lowest()),
            BlockNumberOrTag::Number(number) => Some(number),
        };
        number.filter(|&number| number >= self.chain.lowest())
    }

    fn at(&self, tag: BlockNumberOrTag) -> Option<Arc<Block>> {
        self.chain.block(self.number(tag)?).filter(|block| self.knows(block))
    }

    fn block(&self, block: Option<Arc<Block>>, full: Option<bool>) -> Answer {
        answer(&block.map(|block| render::block(&block, &self.chain.body(&block), full.unwrap_or(false))))
    }

    /// The logs that match, ascending by block and log index.
    fn logs(&self, filter: &Filter) -> Result<Vec<Log>, Fault> {
        let blocks = match filter.block_option {
            FilterBlockOption::AtBlockHash(hash) => {
                vec![self.find(&hash).ok_or_else(|| Fault::server("unknown block"))?]
            }
            FilterBlockOption::Range { from_block, to_block } => self.range(from_block, to_block)?,
        };
        let mut found: Vec<Log> = Vec::new();
        for block in &blocks {
            if filter.matches_bloom(block.header.logs_bloom) && self.has_body(block) {
                let body = self.chain.body(block);
                found.extend(render::logs(block, &body, false).filter(|log| filter.matches(&log.inner)));
            }
            if found.len() > self.limits.results && blocks.len() > 1 {
                return Err(self.too_many(&blocks, block.header.number));
            }
        }
        Ok(found)
    }

    /// The blocks of a range that is not too long and begins at or below the head.
    fn range(&self, from: Option<BlockNumberOrTag>, to: Option<BlockNumberOrTag>) -> Result<Vec<Arc<Block>>, Fault> {
        let height = |tag: Option<BlockNumberOrTag>| {
            let tag = tag.unwrap_or_default();
            self.number(tag).ok_or_else(|| Fault::server(format!("{tag} block not found")))
        };
        let (from, to, head) = (height(from)?, height(to)?, self.head());
        if from > head {
            // anvil's words; geth says "block range extends beyond current head block".
            let message = format!("BlockOutOfRangeError: block height is {head} but requested was {from}");
            return Err(Fault::params(message));
        }
        if to.saturating_sub(from) >= self.limits.range {
            // QuickNode's words and code.
            return Err(Fault::new(-32614, format!("eth_getLogs is limited to a {} range", self.limits.range)));
        }
        Ok(self.chain.blocks(from, to.min(head)))
    }

    /// Infura's words, code and advice: the blocks before the one that was too much.
    fn too_many(&self, blocks: &[Arc<Block>], reached: u64) -> Fault {
        let from = blocks.first().map_or(reached, |block| block.header.number);
        let to = reached.saturating_sub(1).max(from);
        let limit = self.limits.results;
        let message =
            format!("query returned more than {limit} results. Try with this block range [{from:#x}, {to:#x}].");
        let data = json!({ "from": format!("{from:#x}"), "to": format!("{to:#x}"), "limit": limit });
        Fault::new(-32005, message).with_data(data)
    }

    /// Receipts of the block with this tag, number or hash.
    fn receipts(&self, which: Value) -> Answer {
        let block = if which.as_str().is_some_and(|text| text.len() == 66) {
            let hash: B256 = serde_json::from_value(which).map_err(|error| Fault::params(error.to_string()))?;
            self.find(&hash)
        } else {
            let tag = serde_json::from_value(which).map_err(|error| Fault::params(error.to_string()))?;
            self.at(tag)
        };
        let Some(block) = block.filter(|block| self.has_body(block)) else { return answer(&Value::Null) };
        let receipts = render::receipts(&block, &self.chain.body(&block));
        answer(&receipts.ok_or_else(|| Fault::server("receipts of recorded blocks are not known"))?)
    }

    fn receipt(&self, hash: &B256) -> Answer {
        let found = self.chain.newest(TRANSACTION_LOOKUP).into_iter().find_map(|block| {
            let body = self.chain.body(&block);
            let position = render::position(&body, hash)?;
            render::receipts(&block, &body)?.into_iter().nth(position)
        });
        answer(&found)
    }

    fn transaction(&self, hash: &B256) -> Answer {
        let found = self.chain.newest(TRANSACTION_LOOKUP).into_iter().find_map(|block| {
            let body = self.chain.body(&block);
            let position = render::position(&body, hash)?;
            render::transaction(&block, body.transactions.get(position)?)
        });
        answer(&found)
    }

    /// Mines blocks now, whatever the clock says; answers with the new head.
    fn mine(&self, blocks: Option<U64>) -> Answer {
        let blocks: u64 = blocks.map_or(1, |blocks| blocks.to());
        if blocks > MOST_MINED {
            return Err(Fault::params(format!("at most {MOST_MINED} blocks at once")));
        }
        self.chain.mine_to(self.chain.head() + blocks).map_err(|error| Fault::server(error.to_string()))?;
        answer(&U64::from(self.chain.head()))
    }

    /// Replaces the newest blocks by those of a new branch: a [`Reorganisation`], or its depth alone.
    fn reorganise(&self, wanted: Value) -> Answer {
        let wanted = if wanted.is_object() { wanted } else { json!({ "depth": wanted }) };
        let wanted: Reorganisation =
            serde_json::from_value(wanted).map_err(|error| Fault::params(error.to_string()))?;
        self.chain.reorganise(wanted).map_err(|error| Fault::params(error.to_string()))?;
        answer(&U64::from(self.chain.head()))
    }

    /// Goes back to the branch that was left last, further than the head by so many blocks, by one if nothing is said.
    fn flip(&self, further: Option<U64>) -> Answer {
        let further = further.map_or(1, |further| further.to());
        self.chain.flip(further).map_err(|error| Fault::params(error.to_string()))?;
        answer(&U64::from(self.chain.head()))
    }
}
