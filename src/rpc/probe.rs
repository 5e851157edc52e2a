//! What each endpoint can do, and whether its answers hold together: the questions of `chaintap providers check`.
//!
//! Every question has a time limit and all together have one; their number does not depend on the chain. What is found out is
//! shown to a person, and nothing of it is believed later but what the listener finds out in the same way and keeps: what an
//! endpoint [bears](Findings::bears). What only some chains or plans have (tags, receipts, an archive) is
//! a finding; what no good endpoint does is a suspicion.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use alloy::primitives::{Address, B256, Bloom, BloomInput, U64};
use futures_util::{StreamExt as _, future::join_all};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::{
    At, Bounds, Cap, Caps, LogFilter, RpcError, bearing, budget::Budget, client::Node, heads, receipts::Unproven,
    tap::Tape, wire::WireHeader,
};
use crate::{
    config::{Limits, Provider, SecretUrl, Verify},
    domain::{BlockRange, BlockRef, Header},
};

/// Longest time for one question.
const QUESTION: Duration = Duration::from_secs(10);
/// Longest time for all questions to one endpoint, and for each comparison.
const ALL: Duration = Duration::from_mins(1);
/// How often a question is put again after the endpoint asked for patience, and how long it is waited for at most.
const PATIENCE: (u32, Duration) = (2, Duration::from_secs(5));
/// Newest blocks whose logs are looked at.
const LOOKED_AT: u64 = 4;
/// An endpoint is behind when its newest block is this much older, seconds, than that of another, and more than one block
/// below: at the moment when there is a new one not all have it.
const BEHIND: (u64, u64) = (5, 1);

/// What is asked.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The chain that all must be on.
    pub chain_id: u64,
    /// Which logs a range is asked for.
    pub filter: LogFilter,
    /// The longest range that is asked for, blocks, at least 1.
    pub most_blocks: u64,
    /// How long subscriptions to heads are listened to.
    pub listen: Duration,
    /// Limits of requests.
    pub limits: Limits,
}

/// What is known of one endpoint after all questions; `None` where it could not be found out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Its name, without secrets.
    pub endpoint: String,
    /// Why it cannot be used at all.
    pub unusable: Option<String>,
    /// What no good endpoint does.
    pub suspicions: Vec<String>,
    /// Its chain.
    pub chain_id: Option<u64>,
    /// Its newest block, asked of all endpoints at once.
    pub head: Option<u64>,
    /// Blocks behind the newest of all endpoints.
    pub lag: Option<u64>,
    /// Heads that its WebSocket announced; `None` where it has none.
    pub heads_announced: Option<u64>,
    /// The longest range that it answered.
    pub range: Option<Range>,
    /// What it bears, in the form in which the listener keeps it; `None` where it answered no range.
    #[serde(skip)]
    pub bears: Option<String>,
    /// The lowest of the blocks asked for whose header it has: the first one, or one half or near the top of the chain.
    pub oldest_header: Option<u64>,
    /// The lowest of them whose logs it answered, as far as their bloom tells.
    pub oldest_logs: Option<u64>,
    /// Whether it answers `eth_getLogs` by a block's hash.
    pub logs_by_hash: Option<bool>,
    /// Whether it answers `eth_getBlockReceipts`.
    pub receipts: Option<bool>,
    /// Whether the receipts of its newest block have the root that its header states, as `verify = "receipts"` needs it.
    pub receipts_prove: Option<bool>,
    /// Height of its `safe` block.
    pub safe: Option<u64>,
    /// Height of its `finalized` block.
    pub finalized: Option<u64>,
    /// Whether the blooms of its newest headers say what is in their blocks; `None` where it states none.
    pub blooms_hold: Option<bool>,
    /// Whether log indices are unique and ascend within a block.
    pub log_indices_ascend: Option<bool>,
    /// Median time of an answer, milliseconds.
    pub median_ms: Option<u64>,
    /// Requests that were sent; one after a refusal counts again.
    pub requests: u64,
    /// How many of them it refused because they were too many.
    pub throttled: u64,
}

/// The longest range that an endpoint answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Range {
    /// How many blocks.
    pub blocks: u64,
    /// How many logs there were.
    pub logs: usize,
    /// Why it did not answer a longer one; `None` where none was asked for.
    pub limit: Option<String>,
}

impl Findings {
    /// Whether nothing speaks against using it.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.unusable.is_none() && self.suspicions.is_empty()
    }

    fn suspect(&mut self, text: impl Into<String>) {
        self.suspicions.push(text.into());
    }
}

/// Asks all endpoints, side by side, and compares them.
pub async fn survey(providers: &[Provider], survey: &Survey) -> Vec<Findings> {
    let survey = &Survey {
        // Receipts have a question of their own.
        limits: Limits {
            rpc_timeout: survey.limits.rpc_timeout.min(QUESTION),
            verify: Verify::Bloom,
            ..survey.limits.clone()
        },
        ..survey.clone()
    };
    let asked = join_all(providers.iter().map(|provider| Probe::ask_all(provider, survey))).await;
    let (mut probes, found): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
    let mut all = found;
    compare(&mut probes, &mut all).await;
    for (probe, findings) in probes.iter_mut().zip(&mut all) {
        findings.requests = probe.requests;
        findings.throttled = probe.throttled;
        findings.median_ms = probe.median();
    }
    all
}

/// Heads at one moment, and the block that all have.
async fn compare(probes: &mut [Probe<'_>], all: &mut [Findings]) {
    let is_asked = |findings: &Findings| findings.unusable.is_none();
    let heads = join_all(probes.iter_mut().zip(&*all).map(async |(probe, findings)| {
        if !is_asked(findings) {
            return None;
        }
        timeout(ALL, probe.header(At::Latest)).await.ok()?.ok().flatten()
    }))
    .await;
    let Some(newest) = heads.iter().flatten().max_by_key(|head| head.number).copied() else { return };
    let Some(common) = heads.iter().flatten().map(|head| head.number).min() else { return };
    for (head, findings) in heads.iter().zip(&mut *all) {
        let Some(head) = head else { continue };
        let before = findings.head.replace(head.number);
        findings.lag = Some(newest.number - head.number);
        if let Some((blocks, age)) = behind(head, &newest) {
            findings.suspect(format!("{blocks} blocks and {age} s behind another endpoint"));
        }
        if findings.heads_announced == Some(0) && before.is_some_and(|before| before < head.number) {
            findings.suspect("the WebSocket announced no head although there were new ones");
        }
    }
    let blocks = join_all(probes.iter_mut().zip(&*all).map(async |(probe, findings)| {
        if !is_asked(findings) {
            return None;
        }
        let header = timeout(ALL, probe.header(At::Number(common))).await.ok()?.ok()??;
        Some(header.hash)
    }))
    .await;
    let hashes: BTreeSet<B256> = blocks.iter().flatten().copied().collect();
    let votes = |hash: &B256| blocks.iter().flatten().filter(|other| *other == hash).count();
    for (hash, findings) in blocks.iter().zip(&mut *all) {
        let is_outvoted =
            hash.is_some_and(|hash| hashes.iter().any(|other| *other != hash && votes(other) >= votes(&hash)));
        if is_outvoted {
            findings.suspect(format!("block {common} is another one at other endpoints"));
        }
    }
}

/// How far, in blocks and seconds, an endpoint with this head is behind the newest one, if it is.
fn behind(head: &Header, newest: &Header) -> Option<(u64, u64)> {
    let blocks = newest.number.saturating_sub(head.number);
    let age = newest.timestamp.saturating_sub(head.timestamp);
    (age >= BEHIND.0 && blocks > BEHIND.1).then_some((blocks, age))
}

/// One endpoint while it is asked.
struct Probe<'a> {
    provider: &'a Provider,
    budget: Arc<Budget>,
    survey: &'a Survey,
    node: Option<Node>,
    /// Where there is no HTTP, and the socket is opened again after it ended.
    socket: Option<&'a SecretUrl>,
    /// What it bears, learned as the listener learns it.
    caps: Caps,
    times: Vec<Duration>,
    requests: u64,
    throttled: u64,
}

/// A log, as far as a bloom and an order are concerned.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sketch {
    address: Address,
    topics: Vec<B256>,
    log_index: U64,
}

#[derive(Debug, Deserialize)]
struct Receipt {
    logs: Vec<Sketch>,
}

impl<'a> Probe<'a> {
    async fn ask_all(provider: &'a Provider, survey: &'a Survey) -> (Self, Findings) {
        let caps = Caps::new(Bounds { blocks: survey.most_blocks, ..Bounds::default() });
        let budget = Arc::new(Budget::of(provider));
        let (node, socket, times) = (None, None, Vec::new());
        let mut probe = Self { provider, budget, survey, node, socket, caps, times, requests: 0, throttled: 0 };
        let mut found = Findings { endpoint: provider.name.clone(), ..Findings::default() };
        let questions = timeout(ALL, probe.questions(&mut found));
        let (asked, announced) = tokio::join!(questions, listen(provider, survey));
        match asked {
            Err(_) => found.suspect(format!("not all questions were answered within {} s", ALL.as_secs())),
            Ok(Err(error)) => found.unusable = Some(error.to_string()),
            Ok(Ok(())) => match announced {
                None => {}
                Some(Ok(heads)) => found.heads_announced = Some(heads),
                Some(Err(reason)) => found.suspect(reason),
            },
        }
        (probe, found)
    }

    /// # Errors
    ///
    /// Why the endpoint cannot be used.
    async fn questions(&mut self, found: &mut Findings) -> Result<(), RpcError> {
        let told = self.open().await?;
        found.chain_id = Some(told);
        if told != self.survey.chain_id {
            let endpoint = self.provider.name.clone();
            return Err(RpcError::WrongChain { endpoint, expected: self.survey.chain_id, told });
        }
        let head = self.header(At::Latest).await?;
        let head = head.ok_or_else(|| RpcError::Invalid("it has no newest block".into()))?.number;
        found.head = Some(head);
        found.safe = self.tag(At::Safe, found).await;
        found.finalized = self.tag(At::Finalized, found).await;
        self.longest_range(head, found).await?;
        self.depth(head, found).await;
        // The newest by its tag, at the moment when some nodes have it and not yet its logs.
        self.look_at(None, found).await;
        for number in head.saturating_sub(LOOKED_AT - 1)..head {
            self.look_at(Some(number), found).await;
        }
        Ok(())
    }

    /// Opens the endpoint as the listener does, over HTTP where there is HTTP; its chain id.
    async fn open(&mut self) -> Result<u64, RpcError> {
        let Provider { name, http, socket, .. } = self.provider;
        let twin = || socket.as_ref().map(SecretUrl::http_twin);
        let address = http.clone().or_else(twin).ok_or_else(|| RpcError::Fatal("it has no address".into()))?;
        let budget = Arc::clone(&self.budget);
        self.node = Some(Node::http(&address, Tape::new(name, None), &self.survey.limits, budget)?);
        let told = self.ask(async |node| node.chain_id().await).await;
        match (http, socket) {
            (None, Some(socket)) if told.is_err() => {
                self.node = Some(self.over(socket).await?);
                self.socket = Some(socket);
                self.ask(async |node| node.chain_id().await).await
            }
            _ => told,
        }
    }

    async fn over(&self, socket: &SecretUrl) -> Result<Node, RpcError> {
        let tape = Tape::new(&self.provider.name, None);
        Node::socket(socket, tape, &self.survey.limits, Arc::clone(&self.budget)).await
    }

    /// Puts a question, again where the endpoint asks for patience.
    async fn ask<R>(&mut self, question: impl AsyncFn(&Node) -> Result<R, RpcError>) -> Result<R, RpcError> {
        let (mut again, longest) = PATIENCE;
        loop {
            let Some(node) = &self.node else { return Err(RpcError::Transient("it was not opened".into())) };
            let begun = Instant::now();
            self.requests += 1;
            let answer = question(node).await;
            self.times.push(begun.elapsed());
            // An answer that is more than a socket takes ends it.
            if let Some(socket) = self.socket.filter(|_| answer.as_ref().is_err_and(RpcError::is_failure))
                && let Ok(node) = self.over(socket).await
            {
                self.node = Some(node);
            }
            match answer {
                Err(RpcError::Throttled { retry_after, .. }) if again > 0 => {
                    self.throttled += 1;
                    again -= 1;
                    sleep(retry_after.unwrap_or(Duration::from_secs(1)).min(longest)).await;
                }
                Err(error @ RpcError::Throttled { .. }) => {
                    self.throttled += 1;
                    return Err(error);
                }
                other => return other,
            }
        }
    }

    async fn header(&mut self, at: At) -> Result<Option<Header>, RpcError> {
        self.ask(async |node| node.header(at).await).await
    }

    async fn tag(&mut self, at: At, found: &mut Findings) -> Option<u64> {
        match self.header(at).await {
            Ok(header) => header.map(|header| header.number),
            Err(error) => {
                found.suspect(format!("{at:?} block: {error}"));
                None
            }
        }
    }

    /// The longest range below the head that is answered: bisected, so a question for each doubling.
    ///
    /// # Errors
    ///
    /// That the endpoint serves no logs.
    async fn longest_range(&mut self, head: u64, found: &mut Findings) -> Result<(), RpcError> {
        let survey = self.survey;
        let most = survey.most_blocks.clamp(1, head.max(1));
        let (mut longest, mut too_long, mut size) = (Range { blocks: 0, logs: 0, limit: None }, most + 1, most);
        while size > longest.blocks {
            // A few blocks below the head, where all that stand behind one address should be.
            let to = head.saturating_sub(2).max(size - 1);
            let range = BlockRange { from: to + 1 - size, to };
            match self.ask(async |node| node.range_logs(range, &survey.filter).await).await {
                Ok(answered) => {
                    (longest.blocks, longest.logs) = (size, answered.logs.len());
                    self.caps.answered(size, bearing::now());
                }
                Err(error) if size > 1 && may_be_too_long(&error) => {
                    too_long = size;
                    let cap = if let RpcError::TooLarge { cap, .. } = error { cap } else { Cap::Density };
                    // What to ask for next is bisected here.
                    self.caps.refused(range, cap, None, bearing::now());
                    longest.limit = Some(error.to_string());
                }
                Err(error @ RpcError::Fatal(_)) => return Err(error),
                Err(error) => {
                    found.suspect(format!("eth_getLogs over {size} blocks: {error}"));
                    break;
                }
            }
            size = longest.blocks + (too_long - longest.blocks) / 2;
        }
        if longest.blocks > 0 {
            found.range = Some(longest);
            found.bears = serde_json::to_string(self.caps.learned()).ok();
        }
        Ok(())
    }

    /// How far down headers and logs go.
    async fn depth(&mut self, head: u64, found: &mut Findings) {
        let survey = self.survey;
        let places = BTreeSet::from([head.min(1), head / 2, head.saturating_sub(LOOKED_AT)]);
        for number in places {
            let Ok(Some(header)) = self.header(At::Number(number)).await else { continue };
            found.oldest_header = found.oldest_header.or(Some(number));
            let (block, time) = (header.block(), header.timestamp);
            if self.ask(async |node| node.block_logs(block, time, &survey.filter).await).await.is_ok() {
                found.oldest_logs = Some(number);
                return;
            }
        }
    }

    /// Whether the logs of a block are those that its header, their indices and, for the newest one, its receipts tell of.
    async fn look_at(&mut self, number: Option<u64>, found: &mut Findings) {
        let is_newest = number.is_none();
        let height = number.map_or_else(|| json!(["latest", false]), |number| json!([U64::from(number), false]));
        let name = number.map_or_else(|| "the newest block".to_owned(), |number| format!("block {number}"));
        let header =
            self.ask(async |node| node.one::<Option<WireHeader>>("eth_getBlockByNumber", height.clone()).await).await;
        let header = match header {
            Ok(Some(header)) => header,
            Ok(None) => return found.suspect(format!("{name} is missing although the head is higher")),
            Err(error) => return found.suspect(format!("{name}: {error}")),
        };
        let stated = header.bloom();
        let Ok(header) = header.check() else { return found.suspect(format!("the header of {name} is none")) };
        let number = header.number;
        let query = json!([{ "blockHash": header.hash }]);
        let logs = match self.ask(async |node| node.one::<Vec<Sketch>>("eth_getLogs", query.clone()).await).await {
            Ok(logs) => logs,
            Err(error) if may_be_too_long(&error) => return,
            Err(error) => {
                found.logs_by_hash = Some(false);
                return found.suspect(format!("logs of block {number} by its hash: {error}"));
            }
        };
        found.logs_by_hash = found.logs_by_hash.or(Some(true));
        let indices: Vec<u64> = logs.iter().map(|log| log.log_index.to()).collect();
        let ascend = indices.is_sorted_by(|one, next| one < next);
        found.log_indices_ascend = Some(found.log_indices_ascend.unwrap_or(true) && ascend);
        if !ascend {
            found.suspect(format!("log indices of block {number} repeat or do not ascend"));
        }
        if let Some((_, stated)) = stated {
            compare_bloom(number, &logs, stated, found);
        }
        if is_newest {
            self.compare_receipts(header.block(), &indices, found).await;
        }
    }

    /// Whether there are receipts, whether they have the root that the header states, and all their logs are known.
    async fn compare_receipts(&mut self, block: BlockRef, indices: &[u64], found: &mut Findings) {
        let query = json!([block.hash]);
        let told =
            self.ask(async |node| node.one::<Option<Vec<Receipt>>>("eth_getBlockReceipts", query.clone()).await).await;
        found.receipts = Some(matches!(told, Ok(Some(_))));
        let Ok(Some(told)) = told else { return };
        let of_receipts = told.iter().flat_map(|receipt| &receipt.logs);
        let missing = of_receipts.filter(|log| !indices.contains(&log.log_index.to())).count();
        if missing > 0 {
            let text =
                format!("eth_getLogs leaves out {missing} logs of block {} that its receipts have", block.number);
            found.suspect(text);
        }
        let proof = self.ask(async |node| Ok(node.prove(At::Hash(block.hash)).await)).await;
        found.receipts_prove = proof.as_ref().ok().map(Result::is_ok);
        if let Ok(Err(Unproven::Wrong(reason))) = proof {
            found.suspect(format!("receipts of block {}: {reason}", block.number));
        }
    }

    fn median(&mut self) -> Option<u64> {
        self.times.sort_unstable();
        let median = self.times.get(self.times.len() / 2)?;
        u64::try_from(median.as_millis()).ok()
    }
}

/// Whether a shorter range may be answered.
fn may_be_too_long(error: &RpcError) -> bool {
    matches!(error, RpcError::TooLarge { .. } | RpcError::Unclear { .. } | RpcError::TimedOut)
}

/// A bloom that has less than the logs is one of the chains where it does not hold; one that has more says that there are
/// more logs, or later ones.
fn compare_bloom(number: u64, logs: &[Sketch], stated: Bloom, found: &mut Findings) {
    let mut bloom = Bloom::default();
    for log in logs {
        bloom.accrue(BloomInput::Raw(log.address.as_slice()));
        log.topics.iter().for_each(|topic| bloom.accrue(BloomInput::Raw(topic.as_slice())));
    }
    let holds = bloom & stated == bloom;
    found.blooms_hold = Some(found.blooms_hold.unwrap_or(true) && holds);
    if holds && bloom != stated {
        found.suspect(format!("block {number} has {} logs, and its header's bloom tells of more", logs.len()));
    }
}

/// How many heads a WebSocket announced; `None` where there is none.
async fn listen(provider: &Provider, survey: &Survey) -> Option<Result<u64, String>> {
    let url = provider.socket.as_ref()?;
    let mut signs = match heads::subscribe(url, survey.limits.rpc_timeout, Tape::new(&provider.name, None)).await {
        Ok(signs) => signs,
        Err(error) => return Some(Err(format!("no subscription to heads: {error}"))),
    };
    let mut heads = 0;
    let until = Instant::now() + survey.listen;
    loop {
        match tokio::time::timeout_at(until, signs.next()).await {
            Err(_) => return Some(Ok(heads)),
            Ok(Some(())) => heads += 1,
            Ok(None) => return Some(Err("the WebSocket ended while it was listened to".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_is_not_behind_however_long_a_block_takes() {
        let head = |number, timestamp| Header { number, hash: B256::ZERO, parent: B256::ZERO, timestamp };
        let newest = head(100, 1_200);
        assert_eq!(behind(&newest, &newest), None);
        assert_eq!(behind(&head(99, 1_188), &newest), None);
        assert_eq!(behind(&head(98, 1_176), &newest), Some((2, 24)));
        assert_eq!(behind(&head(90, 1_196), &newest), None, "many blocks in no time");
    }
}
