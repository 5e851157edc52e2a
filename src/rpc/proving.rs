//! Proofs by receipts, asked of whichever endpoint has them.
//!
//! A proof says nothing of who gave it: so the logs of one endpoint are held against the receipts of another where the
//! first has none. Only where no endpoint can prove a block are its logs taken as they are; what that takes is said in
//! `proofs`. Blocks of history are proven one by one. Of a range that cannot be finished, because a plan does not bear so
//! many requests at once, is kept what was proven, so that the next try goes on there.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

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
    proofs::{Place, Proofs},
    question::Question,
    receipts::{Held, Proven, Unproven},
};
use crate::{
    config::Verify,
    domain::{BlockRange, BlockRef, RawLog},
    telemetry::metrics,
};

/// Blocks of a range whose receipts are asked for at once.
const PROOFS_AT_ONCE: usize = 4;
/// Where no endpoint may be asked now, a block of history waits so often, and each time no longer than this.
const WAITS: (usize, Duration) = (10, Duration::from_secs(5));
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
    /// All are taken at their word.
    None,
}

/// What was proven of ranges that are not finished: logs by filter and block.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<BTreeMap<(u64, u64), Vec<RawLog>>>);

impl Kept {
    fn keep(&self, filter: &LogFilter, number: u64, logs: &[RawLog]) {
        let mut kept = self.kept();
        kept.insert((named(filter), number), logs.to_vec());
        // The lowest were most likely finished by someone else.
        while kept.len() > KEPT.0 || kept.values().map(Vec::len).sum::<usize>() > KEPT.1 {
            kept.pop_first();
        }
    }

    /// The proven logs of a block, unless `told` are of another version of it.
    fn of(&self, filter: &LogFilter, number: u64, told: &[RawLog]) -> Option<Vec<RawLog>> {
        let logs = self.kept().get(&(named(filter), number)).cloned()?;
        let is_same = logs.first().zip(told.first()).is_none_or(|(kept, told)| kept.block == told.block);
        is_same.then_some(logs)
    }

    fn forget(&self, filter: &LogFilter, numbers: std::ops::RangeInclusive<u64>) {
        let filter = named(filter);
        self.kept().retain(|(other, number), _| *other != filter || !numbers.contains(number));
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<(u64, u64), Vec<RawLog>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A filter in short: there are few, and all are our own.
fn named(filter: &LogFilter) -> u64 {
    let mut hasher = DefaultHasher::new();
    filter.hash(&mut hasher);
    hasher.finish()
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
        let (number, at) = (block.number, At::Hash(block.hash));
        let doubtful = Doubtful { place: Place::Head, number, at, teller, told: &told, filter };
        let others = (0..self.by_preference.len()).filter(|place| *place != teller);
        Ok(self.prove(others, &doubtful, reason).await?.map_or(told, |(logs, _)| logs))
    }

    /// The logs of a range, those of the sampled blocks as their receipts have them. An endpoint that left something out of
    /// one block may have done so in any: then all of the range is proven.
    pub(super) async fn held_against_sample(
        &self,
        teller: usize,
        answer: RangeLogs,
        filter: &LogFilter,
    ) -> Result<RangeLogs, RpcError> {
        let RangeLogs { logs, first, last } = answer;
        let is_sampled = |number: &u64| self.proofs.get(teller).is_some_and(|proofs| proofs.is_sampled(*number));
        let (sample, others): (Vec<u64>, Vec<u64>) = (first.number..=last.number).partition(is_sampled);
        if sample.is_empty() {
            return Ok(RangeLogs { logs, first, last });
        }
        let mut by_number: BTreeMap<u64, Vec<RawLog>> = BTreeMap::new();
        for log in logs {
            by_number.entry(log.block.number).or_default().push(log);
        }
        let ends = [first.block(), last.block()];
        if self.hold((teller, sample), &mut by_number, ends, filter).await? {
            self.hold((teller, others), &mut by_number, ends, filter).await?;
        }
        self.kept.forget(filter, first.number..=last.number);
        Ok(RangeLogs { logs: by_number.into_values().flatten().collect(), first, last })
    }

    /// Holds blocks of a range against their receipts; whether anything else was told anywhere.
    async fn hold(
        &self,
        (teller, numbers): (usize, Vec<u64>),
        logs: &mut BTreeMap<u64, Vec<RawLog>>,
        ends: [BlockRef; 2],
        filter: &LogFilter,
    ) -> Result<bool, RpcError> {
        let mut proven = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(PROOFS_AT_ONCE) {
            let asking = numbers.iter().map(|&number| {
                let end = ends.into_iter().find(|end| end.number == number);
                let at = end.map_or(At::Number(number), |end| At::Hash(end.hash));
                let told = logs.get(&number).map(Vec::as_slice).unwrap_or_default();
                let doubtful = Doubtful { place: Place::History, number, at, teller, told, filter };
                async move { (self.first_asked(&doubtful).await, doubtful) }
            });
            // All have answered before one is judged: who waits here for a place among the requests in flight would wait for
            // ever for one that is held by a request that nobody polls. Judged one by one: what fails at once for several
            // blocks is one failure.
            for (asked, doubtful) in join_all(asking).await {
                proven.push((doubtful.number, self.prove_patiently(asked, &doubtful).await?));
            }
        }
        let mut was_other = false;
        for (number, proven) in proven {
            if let Some((right, is_other)) = proven {
                was_other |= is_other;
                logs.insert(number, right);
            }
        }
        Ok(was_other)
    }

    /// What the first endpoint that is asked for the receipts of a block of history says, or what was kept of it.
    async fn first_asked(&self, doubtful: &Doubtful<'_>) -> First {
        if let Some(logs) = self.kept.of(doubtful.filter, doubtful.number, doubtful.told) {
            return First::Kept(logs);
        }
        for place in self.order(doubtful.teller) {
            if let Some(proof) = self.receipts_of(place, doubtful).await {
                return First::Asked(place, proof);
            }
        }
        First::None
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
        let Doubtful { teller, number, told, filter, .. } = *doubtful;
        let mut answer = match first {
            First::Kept(logs) => {
                let is_other = logs.len() != told.len();
                return Ok(Some((logs, is_other)));
            }
            First::None => self.prove([].into_iter(), doubtful, None).await,
            First::Asked(place, proof) => match self.judge(place, doubtful, proof) {
                Ok(Some(held)) => Ok(Some(self.corrected(teller, number, held))),
                other => {
                    let others = self.order(teller).filter(|other| *other != place);
                    self.prove(others, doubtful, other.err()).await
                }
            },
        };
        for waits in 0..WAITS.0 {
            let Err(RpcError::Throttled { retry_after, .. }) = answer else { break };
            sleep(retry_after.unwrap_or(Duration::from_millis(200 << waits)).min(WAITS.1)).await;
            answer = self.prove(self.order(teller), doubtful, None).await;
        }
        if let Ok(Some((logs, _))) = &answer {
            self.kept.keep(filter, number, logs);
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
            let Some(proof) = self.receipts_of(place, doubtful).await else { continue };
            match self.judge(place, doubtful, proof) {
                Ok(Some(held)) => return Ok(Some(self.corrected(doubtful.teller, doubtful.number, held))),
                Ok(None) => {}
                Err(error) => {
                    debug!(place, block = doubtful.number, %error, "not proven here");
                    reason = reason.or(Some(error));
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
    async fn receipts_of(&self, place: usize, doubtful: &Doubtful<'_>) -> Option<Result<Proven, Unproven>> {
        let (endpoint, proofs) = (self.by_preference.get(place)?, self.proofs.get(place)?);
        let Doubtful { place: near, number, at, .. } = *doubtful;
        let question = match near {
            Place::Head => Question::block(number),
            Place::History => Question::range(BlockRange::single(number)),
        };
        let now = Instant::now();
        let open_until = match endpoint.standing(question, now).gate {
            Gate::Open(_, until) => Some(until),
            Gate::HalfOpen | Gate::Closed => None,
        };
        if open_until.is_some() && !proofs.has_proven() || !proofs.is_due(near) {
            return None;
        }
        if let Some(until) = open_until {
            // It would have a proof, so it is waited for.
            let message = format!("{} is not asked: {}", endpoint.name(), endpoint.aside().unwrap_or_default().0);
            return Some(Err(RpcError::Throttled { message, retry_after: Some(until.duration_since(now)) }.into()));
        }

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
        Some(self.ask_one(endpoint, question, is_limited, request).await.map_err(Unproven::from).flatten())
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

    #[test]
    fn what_is_kept_is_bounded_and_of_one_filter_and_one_version_of_a_block() {
        let filter = |byte| LogFilter { addresses: vec![], topics: vec![alloy::primitives::B256::repeat_byte(byte)] };
        let log = |number, hash| RawLog {
            address: alloy::primitives::Address::ZERO,
            topics: vec![],
            data: alloy::primitives::Bytes::new(),
            block: BlockRef { number, hash: alloy::primitives::B256::repeat_byte(hash) },
            timestamp: 0,
            transaction_hash: alloy::primitives::B256::ZERO,
            transaction_index: 0,
            log_index: 0,
        };
        let kept = Kept::default();
        kept.keep(&filter(1), 5, &[log(5, 1)]);
        assert!(kept.of(&filter(1), 5, &[]).is_some() && kept.of(&filter(1), 5, &[log(5, 1)]).is_some());
        assert!(kept.of(&filter(1), 5, &[log(5, 2)]).is_none(), "another version");
        assert!(kept.of(&filter(2), 5, &[]).is_none(), "another filter");
        kept.forget(&filter(1), 0..=5);
        assert!(kept.of(&filter(1), 5, &[]).is_none());
        (0..2 * KEPT.0 as u64).for_each(|number| kept.keep(&filter(1), number, &[log(number, 1)]));
        assert_eq!(kept.kept().len(), KEPT.0);
        kept.keep(&filter(1), 9_999, &vec![log(9_999, 1); KEPT.1 + 1]);
        assert!(kept.kept().is_empty(), "more than is kept at all");
    }
}
