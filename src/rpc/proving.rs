//! Proofs by receipts, asked of whichever endpoint has them.
//!
//! A proof says nothing of who gave it: so the logs of one endpoint are held against the receipts of another where the
//! first has none. Only where no endpoint can prove a block are its logs taken as they are; what that takes is said in
//! `proofs`. Blocks of history are proven one by one. Of a range that cannot be finished, because a plan does not bear so
//! many requests at once, is kept what was proven, so that the next try goes on there.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use alloy::primitives::B256;
use futures_util::future::join_all;
use tokio::{
    join,
    time::{Instant, sleep},
};
use tracing::debug;

use super::{
    At, Endpoints, LogFilter, RangeLogs, RpcError,
    breaker::Gate,
    client::Node,
    endpoint::Endpoint,
    proofs::{Place, Proofs},
    question::Question,
    receipts::{Held, Proven, Unproven},
};
use crate::{
    config::Verify,
    domain::{BlockRange, BlockRef, Header, RawLog},
    telemetry::metrics,
};

/// Blocks of a range whose receipts are asked for at once.
const PROOFS_AT_ONCE: usize = 4;
/// Where no endpoint may be asked now, a block of history waits so long at least, and at most, before it asks again.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// After this long its range is given up, to be planned anew.
const MOST_WAIT: Duration = Duration::from_secs(50);
/// Where the teller of a block is not asked, so many parents are asked for at most to name it.
const PARENTS: u64 = 4;
/// Proven blocks of unfinished ranges that are kept, and logs in them.
const KEPT: (usize, usize) = (2_048, 50_000);

/// A block's logs as one endpoint tells them.
pub(super) enum Told {
    /// As the block's receipts have them.
    Proven(Vec<RawLog>),
    /// As they were told; `Some`: the endpoint may prove them later, and why it does not now.
    Unproven(Vec<RawLog>, Option<RpcError>),
}

/// Logs that are to be proven.
struct Doubtful<'a> {
    place: Place,
    number: u64,
    at: At,
    /// The hash of the block that the teller has at this height, `None` in it where it has none; asked for once.
    hash: OnceLock<Option<B256>>,
    /// The last block of the range; by its hash all blocks before it are known.
    end: BlockRef,
    /// The lowest block above it whose hash was told.
    above: BlockRef,
    /// The place of the endpoint that told them.
    teller: usize,
    told: &'a [RawLog],
    filter: &'a LogFilter,
}

/// What the first endpoint says of a block of history.
enum First {
    /// It was proven before.
    Kept(Vec<RawLog>),
    /// The endpoint at this place was asked.
    Asked(usize, Result<Proven, Unproven>),
    /// None was asked, because it is not known yet which block is meant.
    Refused(RpcError),
    /// All are taken at their word.
    None,
}

/// Logs by block and filter, with the last block of the range that they were proven in.
type KeptLogs = BTreeMap<(u64, u64), (BlockRef, Vec<RawLog>)>;

/// What was proven of ranges that are not finished.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<KeptLogs>);

impl Kept {
    fn keep(&self, doubtful: &Doubtful<'_>, logs: &[RawLog]) {
        let mut kept = self.kept();
        kept.insert((doubtful.number, named(doubtful.filter)), (doubtful.end, logs.to_vec()));
        // The lowest were most likely finished by someone else.
        while kept.len() > KEPT.0 || kept.values().map(|(_, logs)| logs.len()).sum::<usize>() > KEPT.1 {
            kept.pop_first();
        }
    }

    /// The proven logs of a block, if it is certain that they are of the version of it that was told of: by the hash in the
    /// logs or, where none were told, by the end of the range.
    fn of(&self, doubtful: &Doubtful<'_>) -> Option<Vec<RawLog>> {
        let (end, logs) = self.kept().get(&(doubtful.number, named(doubtful.filter))).cloned()?;
        let is_same = match doubtful.told {
            [] => end == doubtful.end,
            told => logs.first().is_some_and(|kept| told.iter().all(|log| log.block == kept.block)),
        };
        is_same.then_some(logs)
    }

    fn forget(&self, filter: &LogFilter, numbers: std::ops::RangeInclusive<u64>) {
        let filter = named(filter);
        self.kept().retain(|(number, other), _| *other != filter || !numbers.contains(number));
    }

    fn kept(&self) -> MutexGuard<'_, KeptLogs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A filter in short: there are few, and all are our own.
fn named(filter: &LogFilter) -> u64 {
    let mut hasher = DefaultHasher::new();
    filter.hash(&mut hasher);
    hasher.finish()
}

/// That an endpoint is not to be asked now, and how long it is waited for.
fn left_alone(endpoint: &Endpoint, question: Question) -> Option<RpcError> {
    let now = Instant::now();
    let Gate::Open(_, until) = endpoint.standing(question, now).gate else { return None };
    let message = format!("{} is not asked: {}", endpoint.name(), endpoint.aside().unwrap_or_default().0);
    Some(RpcError::Throttled { message, retry_after: Some(until.duration_since(now)) })
}

/// Of two reasons why a block of history is not proven the one to wait for: who asks for time may have a proof after that,
/// whatever another one said, and who asks for less may have it sooner. What the first of them, who told of the block, cannot
/// bring together is to be told anew at once.
fn sooner(known: RpcError, other: RpcError) -> RpcError {
    match (&known, &other) {
        (RpcError::Throttled { retry_after: Some(one), .. }, RpcError::Throttled { retry_after, .. })
            if retry_after.is_none_or(|wait| wait < *one) =>
        {
            other
        }
        (RpcError::Throttled { .. } | RpcError::Behind(_), _) => known,
        (_, RpcError::Throttled { .. }) => other,
        _ => known,
    }
}

impl Endpoints {
    /// A block's logs as this endpoint tells them, held against its own receipts or its header.
    pub(super) async fn told(
        &self,
        (place, node): (usize, Arc<Node>),
        (block, timestamp): (BlockRef, u64),
        filter: &LogFilter,
    ) -> Result<Told, RpcError> {
        let proofs = self.proofs.get(place).filter(|proofs| proofs.is_due(Place::Head));
        let proof = async {
            match proofs {
                Some(proofs) => Some((proofs, node.prove(At::Hash(block.hash)).await)),
                None => None,
            }
        };
        let (logs, proof) = join!(node.bearing.block_logs(&node, (block, timestamp), filter), proof);
        let logs = logs?;
        let judged = proof.map_or(Ok(None), |(proofs, proof)| {
            proofs.judge((Place::Head, block.number), proof.and_then(|proven| proven.of(block)?.hold(&logs, filter)))
        });
        match judged {
            Ok(Some(held)) => Ok(Told::Proven(self.corrected(place, block.number, held).0)),
            // It contradicts itself: another one is asked for everything.
            Err(error @ RpcError::Invalid(_)) => Err(error),
            judged => {
                if logs.is_empty() && self.limits.verify != Verify::None {
                    node.hold_against_bloom(block, filter).await?;
                }
                Ok(Told::Unproven(logs, judged.err()))
            }
        }
    }

    /// The logs of a block near the head that the endpoint at this place could not prove: as another one proves them, or as
    /// they were told where none will.
    pub(super) async fn proven_by_others(
        &self,
        (teller, block): (usize, BlockRef),
        (told, reason): (Vec<RawLog>, Option<RpcError>),
        filter: &LogFilter,
    ) -> Result<Vec<RawLog>, RpcError> {
        let (number, at, hash) = (block.number, At::Hash(block.hash), OnceLock::new());
        let (place, end, above) = (Place::Head, block, block);
        let doubtful = Doubtful { place, number, at, hash, end, above, teller, told: &told, filter };
        let others = (0..self.by_preference.len()).filter(|place| *place != teller);
        Ok(self.prove(others, &doubtful, reason).await?.map_or(told, |(logs, _)| logs))
    }

    /// The logs of a range, those of the sampled blocks as their receipts have them, and which blocks were proven. An endpoint
    /// that left something out of one block may have done so in any: then all of the range is proven.
    pub(super) async fn held_against_sample(
        &self,
        teller: usize,
        answer: RangeLogs,
        filter: &LogFilter,
    ) -> Result<(RangeLogs, BTreeSet<u64>), RpcError> {
        let RangeLogs { logs, first, last } = answer;
        let is_sampled = |number: &u64| self.proofs.get(teller).is_some_and(|proofs| proofs.is_sampled(*number));
        let (sample, others): (Vec<u64>, Vec<u64>) = (first.number..=last.number).partition(is_sampled);
        if sample.is_empty() {
            return Ok((RangeLogs { logs, first, last }, BTreeSet::new()));
        }
        let mut by_number: BTreeMap<u64, Vec<RawLog>> = BTreeMap::new();
        for log in logs {
            by_number.entry(log.block.number).or_default().push(log);
        }
        let ends = [first.block(), last.block()];
        let (was_other, mut proven) = self.hold((teller, sample), &mut by_number, ends, filter).await?;
        if was_other {
            proven.extend(self.hold((teller, others), &mut by_number, ends, filter).await?.1);
        }
        self.kept.forget(filter, first.number..=last.number);
        Ok((RangeLogs { logs: by_number.into_values().flatten().collect(), first, last }, proven))
    }

    /// Holds blocks of a range against their receipts; whether anything else was told anywhere, and which were proven.
    async fn hold(
        &self,
        (teller, numbers): (usize, Vec<u64>),
        logs: &mut BTreeMap<u64, Vec<RawLog>>,
        ends: [BlockRef; 2],
        filter: &LogFilter,
    ) -> Result<(bool, BTreeSet<u64>), RpcError> {
        let mut proven = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(PROOFS_AT_ONCE) {
            let asking = numbers.iter().map(|&number| {
                let end = ends.into_iter().find(|end| end.number == number);
                let at = end.map_or(At::Number(number), |end| At::Hash(end.hash));
                let told = logs.get(&number).map(Vec::as_slice).unwrap_or_default();
                let (place, hash, [_, end]) = (Place::History, OnceLock::new(), ends);
                let above = logs.range(number + 1..).find_map(|(_, logs)| logs.first());
                let above = above.map_or(end, |log| log.block);
                let doubtful = Doubtful { place, number, at, hash, end, above, teller, told, filter };
                async move { (self.first_asked(&doubtful).await, doubtful) }
            });
            // All have answered before one is judged: who waits here for a place among the requests in flight would wait for
            // ever for one that is held by a request that nobody polls. Judged one by one: what fails at once for several
            // blocks is one failure.
            for (asked, doubtful) in join_all(asking).await {
                proven.push((doubtful.number, self.prove_patiently(asked, &doubtful).await?));
            }
        }
        let (mut was_other, mut numbers) = (false, BTreeSet::new());
        for (number, proven) in proven {
            if let Some((right, is_other)) = proven {
                was_other |= is_other;
                logs.insert(number, right);
                numbers.insert(number);
            }
        }
        Ok((was_other, numbers))
    }

    /// What the first endpoint that is asked for the receipts of a block of history says, or what was kept of it. One that
    /// asks for time is waited for only where no other one has a proof.
    async fn first_asked(&self, doubtful: &Doubtful<'_>) -> First {
        if let Some(logs) = self.kept.of(doubtful) {
            return First::Kept(logs);
        }
        let mut asks_for_time = None;
        for place in self.order(doubtful.teller) {
            match self.receipts_of(place, doubtful).await {
                Ok(Some(Err(Unproven::Request(error @ RpcError::Throttled { .. })))) => {
                    asks_for_time.get_or_insert((place, error));
                }
                Ok(Some(proof)) if proof.is_ok() || asks_for_time.is_none() => return First::Asked(place, proof),
                Err(error) if asks_for_time.is_none() => return First::Refused(error),
                // Whoever asks for time is judged first, and then the others.
                Ok(_) | Err(_) => {}
            }
        }
        asks_for_time.map_or(First::None, |(place, error)| First::Asked(place, Err(error.into())))
    }

    /// The teller first, because its receipts are of its own chain, then the others.
    fn order(&self, teller: usize) -> impl Iterator<Item = usize> + Send + use<> {
        [teller].into_iter().chain((0..self.by_preference.len()).filter(move |place| *place != teller))
    }

    /// The logs of a block of history, and whether others were told. Waits some times where no endpoint may be asked now.
    async fn prove_patiently(
        &self,
        first: First,
        doubtful: &Doubtful<'_>,
    ) -> Result<Option<(Vec<RawLog>, bool)>, RpcError> {
        let Doubtful { teller, number, told, .. } = *doubtful;
        let mut answer = match first {
            First::Kept(logs) => {
                let is_other = logs.len() != told.len();
                return Ok(Some((logs, is_other)));
            }
            First::Refused(error) => Err(error),
            First::None => self.prove([].into_iter(), doubtful, None).await,
            First::Asked(place, proof) => match self.judge(place, doubtful, proof) {
                Ok(Some(held)) => Ok(Some(self.corrected(teller, number, held))),
                other => {
                    let others = self.order(teller).filter(|other| *other != place);
                    self.prove(others, doubtful, other.err()).await
                }
            },
        };
        let (begun, mut pause) = (Instant::now(), WAIT.0);
        while begun.elapsed() < MOST_WAIT {
            let Err(RpcError::Throttled { retry_after, .. }) = answer else { break };
            sleep(retry_after.unwrap_or(pause).clamp(WAIT.0, WAIT.1)).await;
            pause = (pause * 2).min(WAIT.1);
            answer = self.prove(self.order(teller), doubtful, None).await;
        }
        if let Ok(Some((logs, _))) = &answer {
            self.kept.keep(doubtful, logs);
        }
        answer
    }

    /// The logs of a block as one endpoint after the other proves them, and whether others were told; `None` where all
    /// are taken at their word.
    async fn prove(
        &self,
        order: impl Iterator<Item = usize> + Send,
        doubtful: &Doubtful<'_>,
        mut reason: Option<RpcError>,
    ) -> Result<Option<(Vec<RawLog>, bool)>, RpcError> {
        if self.limits.verify != Verify::Receipts {
            return Ok(None);
        }
        for place in order {
            let judged = match self.receipts_of(place, doubtful).await {
                Ok(Some(proof)) => self.judge(place, doubtful, proof),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            match judged {
                Ok(Some(held)) => return Ok(Some(self.corrected(doubtful.teller, doubtful.number, held))),
                Ok(None) => {}
                Err(error) => {
                    debug!(place, block = doubtful.number, %error, "not proven here");
                    reason = Some(match (reason, doubtful.place) {
                        (None, _) => error,
                        (Some(known), Place::History) => sooner(known, error),
                        // Receipts that are late come soon.
                        (Some(known), Place::Head) => known,
                    });
                }
            }
        }
        if let Some(reason) = reason {
            return Err(reason);
        }
        if let Some(endpoint) = self.by_preference.get(doubtful.teller) {
            metrics::proof(endpoint.name(), "passed");
        }
        Ok(None)
    }

    /// The receipts of a block as the endpoint at this place has them; `None` where it is taken at its word, or not asked.
    ///
    /// # Errors
    ///
    /// Why the teller does not say which block it means.
    async fn receipts_of(
        &self,
        place: usize,
        doubtful: &Doubtful<'_>,
    ) -> Result<Option<Result<Proven, Unproven>>, RpcError> {
        let (Some(endpoint), Some(proofs)) = (self.by_preference.get(place), self.proofs.get(place)) else {
            return Ok(None);
        };
        let Doubtful { place: near, number, .. } = *doubtful;
        let question = match near {
            Place::Head => Question::block(number),
            Place::History => Question::range(BlockRange::single(number)),
        };
        let left_alone = left_alone(endpoint, question);
        if left_alone.is_some() && !proofs.has_proven() || !proofs.is_due(near) {
            return Ok(None);
        }
        if let Some(error) = left_alone {
            // It would have a proof, so it is waited for.
            return Ok(Some(Err(error.into())));
        }
        let Some(at) = self.named_to(place, doubtful).await? else { return Ok(None) };

        let request = |node: Arc<Node>| async move {
            match node.prove(at).await {
                // Those are about the endpoint, all others about its receipts.
                Err(Unproven::Request(
                    error @ (RpcError::Throttled { .. } | RpcError::Transient(_) | RpcError::TimedOut),
                )) => Err(error),
                answer => Ok(answer),
            }
        };
        let is_limited = self.by_preference.len() > 1;
        let proof = self.ask_one(endpoint, question, is_limited, request).await.map_err(Unproven::from).flatten();
        Ok(Some(match at {
            At::Hash(hash) => proof.and_then(|proven| proven.of(BlockRef { number, hash })),
            _ => proof,
        }))
    }

    /// How the endpoint at this place is asked for a block; `None` where its teller has none any more. At the same height
    /// another endpoint may have a block of another fork: where no log that was told has its hash, the teller is asked, and
    /// where it is not to be asked, the parents of the next block whose hash it told.
    ///
    /// # Errors
    ///
    /// Why the teller does not say which block it means.
    async fn named_to(&self, place: usize, doubtful: &Doubtful<'_>) -> Result<Option<At>, RpcError> {
        let Doubtful { at, teller, told, .. } = *doubtful;
        if place == teller || !told.is_empty() || matches!(at, At::Hash(_)) {
            return Ok(Some(at));
        }
        if let Some(hash) = doubtful.hash.get() {
            return Ok(hash.map(At::Hash));
        }
        let hash = match self.header_of(teller, at).await {
            Err(error @ RpcError::Throttled { .. }) => Some(self.ancestor(place, doubtful).await.ok_or(error)?),
            header => header?.map(|header| header.hash),
        };
        Ok(doubtful.hash.get_or_init(|| hash).map(At::Hash))
    }

    /// The hash of a block, by the parents of the next one above it whose hash was told; `None` where that is too far away or
    /// the endpoint at this place lacks one of them.
    async fn ancestor(&self, place: usize, doubtful: &Doubtful<'_>) -> Option<B256> {
        let Doubtful { number, above, .. } = *doubtful;
        let endpoint = self.by_preference.get(place)?;
        let mut hash = above.hash;
        if above.number.checked_sub(number)? > PARENTS {
            return None;
        }
        for height in (number + 1..=above.number).rev() {
            let question = Question::header(At::Hash(hash));
            let request = |node: Arc<Node>| async move { node.parent(hash).await };
            let (of, parent) = self.ask_one(endpoint, question, true, request).await.ok()??;
            hash = Some(parent).filter(|_| of == height)?;
        }
        Some(hash)
    }

    /// A header as the endpoint at this place has it; `None` where it has none.
    async fn header_of(&self, place: usize, at: At) -> Result<Option<Header>, RpcError> {
        let (Some(endpoint), question) = (self.by_preference.get(place), Question::header(at)) else { return Ok(None) };
        if let Some(error) = left_alone(endpoint, question) {
            return Err(error);
        }
        let request = |node: Arc<Node>| async move { node.header(at).await };
        match self.ask_one(endpoint, question, true, request).await {
            Err(RpcError::Behind(_) | RpcError::Pruned(_)) => Ok(None),
            answer => answer,
        }
    }

    /// What a proof makes of these logs; `None` where the endpoint at this place is taken at its word.
    fn judge(
        &self,
        place: usize,
        doubtful: &Doubtful<'_>,
        proof: Result<Proven, Unproven>,
    ) -> Result<Option<Held>, RpcError> {
        let Doubtful { place: near, number, told, filter, .. } = *doubtful;
        let Some(proofs) = self.proofs.get(place) else { return Ok(None) };
        proofs.judge((near, number), proof.and_then(|proven| proven.hold(told, filter)))
    }

    /// The proven logs, and whether the endpoint at this place told others: then that is said.
    fn corrected(&self, teller: usize, block: u64, held: Held) -> (Vec<RawLog>, bool) {
        let is_other = held.is_other();
        if let Some(proofs) = self.proofs.get(teller).filter(|_| is_other) {
            Proofs::corrected(proofs, block, &held);
        }
        (held.logs, is_other)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        config::{Limits, SecretUrl},
        devchain::{Options, serve},
        rpc::ChainSource as _,
    };

    /// The clock goes on, and nothing happens.
    async fn passes(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn receipts_that_stop_coming_hold_a_block_for_two_minutes_and_come_back_by_themselves() {
        crate::crypto::init();
        let (options, shutdown) = (Options { port: 0, mining: false, ..Options::default() }, CancellationToken::new());
        let genesis_time = Some(1_750_000_000);
        let options = Options { genesis_time, start_height: 20, logs_per_block: 6, ..options };
        let url = format!("http://{}", serve(options, shutdown.clone()).await.unwrap().address);
        let faults = async |faults: Value| {
            let node = alloy::rpc::client::RpcClient::new_http(url.parse().unwrap());
            node.request::<_, Value>("devchain_setFaults", [faults]).await.unwrap();
        };
        let limits = Limits { verify: Verify::Receipts, ..Limits::default() };
        let sole = Endpoints::new(Options::CHAIN_ID, vec![SecretUrl::parse(&url).unwrap()], limits);
        let topics = vec![alloy::primitives::keccak256("Transfer(address,address,uint256)")];
        let filter = LogFilter { addresses: vec![], topics };
        let logs = async |number| {
            let header = sole.header(At::Number(number)).await.unwrap().unwrap();
            sole.block_logs(header.block(), header.timestamp, &filter).await
        };
        let unproven = || sole.endpoints()[0].unproven.clone();
        assert!(!logs(20).await.unwrap().is_empty());
        let error = json!({ "code": -32000, "message": "header not found" });
        faults(json!([{ "on": ["eth_getBlockReceipts"], "do": { "error": error } }])).await;
        assert!(matches!(logs(19).await, Err(RpcError::Behind(_))));
        assert_eq!(unproven(), None, "a moment is nothing to tell of");
        passes(Duration::from_secs(100)).await;
        assert!(logs(19).await.is_err());
        assert!(unproven().unwrap().contains("wait for their proof for 100 s"), "{:?}", unproven());
        passes(Duration::from_secs(20)).await;
        assert!(!logs(19).await.unwrap().is_empty());
        assert!(!logs(18).await.unwrap().is_empty(), "the next one does not wait again");
        assert!(unproven().unwrap().contains("delivered without a proof"), "{:?}", unproven());
        faults(json!([])).await;
        while unproven().is_some() {
            logs(20).await.unwrap();
        }
        shutdown.cancel();
    }

    #[tokio::test]
    async fn a_block_is_named_by_its_descendants_where_its_teller_is_not_asked_and_only_on_their_chain() {
        crate::crypto::init();
        let shutdown = CancellationToken::new();
        let start = async |genesis_time| {
            let options = Options { port: 0, mining: false, start_height: 60, ..Options::default() };
            let options = Options { genesis_time: Some(genesis_time), ..options };
            let address = serve(options, shutdown.clone()).await.unwrap().address;
            SecretUrl::parse(&format!("http://{address}")).unwrap()
        };
        let (teller, same) = (start(1_750_000_000).await, start(1_750_000_000).await);
        let forked = start(1_750_000_001).await;
        let pool = |other: &SecretUrl| {
            let urls = vec![teller.clone(), other.clone()];
            Endpoints::new(Options::CHAIN_ID, urls, Limits { verify: Verify::Receipts, ..Limits::default() })
        };
        let (same, forked) = (pool(&same), pool(&forked));
        let block = async |number| same.header(At::Number(number)).await.unwrap().unwrap().block();
        let (expected, above) = (block(40).await, block(40 + PARENTS).await);
        let filter = LogFilter::default();
        let doubtful = |number, at, above| {
            let (place, hash, told) = (Place::History, OnceLock::new(), [].as_slice());
            Doubtful { place, number, at, hash, end: above, above, teller: 0, told, filter: &filter }
        };
        for pool in [&same, &forked] {
            let named = pool.named_to(1, &doubtful(40, At::Number(40), above)).await.unwrap();
            assert_eq!(named, Some(At::Hash(expected.hash)), "the teller says");
            pool.by_preference[0].eject("a test");
        }
        let of = async |pool: &Endpoints, number| pool.named_to(1, &doubtful(number, At::Number(number), above)).await;
        assert_eq!(of(&same, 40).await.unwrap(), Some(At::Hash(expected.hash)));
        for (pool, number, why) in [(&forked, 40, "it has other blocks"), (&same, 39, "it is too far below")] {
            let error = of(pool, number).await.unwrap_err();
            assert!(
                error.to_string().contains("127.0.0.1 is not asked"),
                "the teller is waited for, because {why}: {error}"
            );
        }
        shutdown.cancel();
    }

    #[test]
    fn who_asks_for_time_is_waited_for_whatever_others_said_but_what_is_stale_is_not() {
        let throttled = |millis: Option<u64>| RpcError::Throttled {
            message: format!("{millis:?}"),
            retry_after: millis.map(Duration::from_millis),
        };
        let (invalid, behind) = (RpcError::Invalid("false".into()), RpcError::Behind("late".into()));
        let (late, soon) = (throttled(Some(9)), throttled(Some(5)));
        for (known, other, expected) in [
            (&invalid, &late, &late),
            (&late, &invalid, &late),
            (&behind, &late, &behind),
            (&late, &behind, &late),
            (&late, &soon, &soon),
            (&soon, &late, &soon),
            (&soon, &throttled(None), &throttled(None)),
            (&invalid, &behind, &invalid),
        ] {
            assert_eq!(sooner(known.clone(), other.clone()).to_string(), expected.to_string());
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_of_one_filter_and_one_version_of_a_block() {
        let filter = |byte| LogFilter { addresses: vec![], topics: vec![alloy::primitives::B256::repeat_byte(byte)] };
        let log = |number, hash| RawLog {
            address: alloy::primitives::Address::ZERO,
            topics: crate::domain::Topics::new(),
            data: alloy::primitives::Bytes::new().into(),
            block: BlockRef { number, hash: alloy::primitives::B256::repeat_byte(hash) },
            timestamp: 0,
            transaction_hash: alloy::primitives::B256::ZERO,
            transaction_index: 0,
            log_index: 0,
        };
        let told_of = |kept: &Kept, filter: &LogFilter, number, told: &[RawLog], end| {
            let (at, hash) = (At::Number(number), OnceLock::new());
            let end = BlockRef { number: 100, hash: B256::repeat_byte(end) };
            let (place, above) = (Place::History, end);
            let doubtful = Doubtful { place, number, at, hash, end, above, teller: 0, told, filter };
            kept.of(&doubtful).inspect(|logs| assert_eq!(logs.len(), 1)).is_some()
        };
        let keep = |kept: &Kept, filter: &LogFilter, number, logs: &[RawLog]| {
            let (at, hash) = (At::Number(number), OnceLock::new());
            let end = BlockRef { number: 100, hash: B256::repeat_byte(9) };
            let (place, above, told) = (Place::History, end, [].as_slice());
            let doubtful = Doubtful { place, number, at, hash, end, above, teller: 0, told, filter };
            kept.keep(&doubtful, logs);
        };
        let kept = Kept::default();
        keep(&kept, &filter(1), 5, &[log(5, 1)]);
        assert!(told_of(&kept, &filter(1), 5, &[], 9) && told_of(&kept, &filter(1), 5, &[log(5, 1)], 8));
        assert!(!told_of(&kept, &filter(1), 5, &[], 8), "nothing says that it is the same version");
        assert!(!told_of(&kept, &filter(1), 5, &[log(5, 1), log(5, 2)], 9), "another version");
        assert!(!told_of(&kept, &filter(2), 5, &[], 9), "another filter");
        keep(&kept, &filter(1), 6, &[]);
        assert!(!told_of(&kept, &filter(1), 6, &[log(6, 1)], 9), "nothing says that these are of the proven block");
        kept.forget(&filter(1), 0..=5);
        assert!(!told_of(&kept, &filter(1), 5, &[], 9));
        (0..2 * KEPT.0 as u64)
            .for_each(|number| keep(&kept, &filter(u8::from(number % 2 == 1)), number, &[log(number, 1)]));
        assert_eq!(kept.kept().len(), KEPT.0);
        assert_eq!(kept.kept().keys().next().map(|(number, _)| *number), Some(KEPT.0 as u64), "the lowest are gone");
        keep(&kept, &filter(1), 9_999, &vec![log(9_999, 1); KEPT.1 + 1]);
        assert!(kept.kept().is_empty(), "more than is kept at all");
    }
}
