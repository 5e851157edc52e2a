//! What other endpoints say of blocks than those that served them.
//!
//! An opinion is worth something only where it is another endpoint's than the one whose logs were delivered, and requests
//! may have moved since. So it is remembered who served a block's logs, for as long as blocks are held against a second
//! opinion. Who served a block of before a restart, or another replica's, nobody knows: then two endpoints are asked, of
//! which at least one did not.
//!
//! History is not held against a second opinion before it counts as final, because it is final when it is read. Of it a
//! sample is compared while it is read: the same hundreds of blocks for everyone, and after a difference everything that the
//! endpoint tells for a while. What one endpoint has and the other lacks counts: a log that is there cannot be made up. Of
//! blocks that receipts have proven nobody else's word counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use alloy::primitives::B256;
use tokio::time::Instant;
use tracing::debug;

use super::{Endpoints, LogFilter, RangeLogs, RpcError, breaker::Gate, client::Node, question::Question};
use crate::{
    config::Limits,
    domain::{BlockRange, BlockRef, RawLog},
};

/// Blocks of which it is remembered who served them: more than any chain's that are not final yet (`config/chains.toml`).
const REMEMBERED: usize = 16_384;

/// Blocks that are compared or not are so by the hundred, whatever one request names of them.
const COMPARED: u64 = 100;
/// So many answers of an endpoint that left something out are compared.
const SUSPECTED: u32 = 100;

/// By place, how many more answers of endpoints that left something out are to be compared.
#[derive(Debug, Default)]
pub(super) struct Suspects(Mutex<BTreeMap<usize, u32>>);

impl Suspects {
    /// It left something out.
    fn add(&self, place: usize) {
        self.places().insert(place, SUSPECTED);
    }

    /// Whether an answer of this endpoint is to be compared. Asking counts.
    fn take(&self, place: usize) -> bool {
        let mut places = self.places();
        let Some(left) = places.get_mut(&place) else { return false };
        *left -= 1;
        if *left == 0 {
            places.remove(&place);
        }
        true
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<usize, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By block, the places of the endpoints that served its logs: several, where it was asked for more than once.
#[derive(Debug, Default)]
pub(super) struct Served(Mutex<BTreeMap<u64, BTreeSet<usize>>>);

impl Served {
    /// The endpoint at this place served the logs of a block.
    pub(super) fn by(&self, place: usize, block: u64) {
        let mut blocks = self.blocks();
        blocks.entry(block).or_default().insert(place);
        if blocks.len() > REMEMBERED {
            blocks.pop_first();
        }
    }

    /// The first blocks of a range, as many as the same endpoints served, and those; none where nobody knows.
    fn run(&self, range: BlockRange) -> (BlockRange, BTreeSet<usize>) {
        let blocks = self.blocks();
        let places = blocks.get(&range.from).cloned().unwrap_or_default();
        let is_same = |number: &u64| blocks.get(number).map_or(places.is_empty(), |other| *other == places);
        let to = (range.from..=range.to).take_while(is_same).last().unwrap_or(range.from);
        (BlockRange { to, ..range }, places)
    }

    fn blocks(&self) -> MutexGuard<'_, BTreeMap<u64, BTreeSet<usize>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Endpoints {
    /// The logs of the first blocks of a range as others have them than who served them: of one, or of two where nobody
    /// knows who did. Also those are asked that lag, for what is final they have.
    pub(super) async fn opinions(&self, range: BlockRange, filter: &LogFilter) -> Result<Vec<RangeLogs>, RpcError> {
        if self.by_preference.len() < 2 {
            return Ok(Vec::new());
        }
        let (range, served) = self.served.run(range);
        let (same, others): (Vec<_>, Vec<_>) = (0..self.by_preference.len()).partition(|place| served.contains(place));
        // Of one who is known, its own opinion is none; what one of several delivered, two of them have together.
        let same = same.into_iter().filter(|_| served.len() > 1);
        let (mut opinions, mut reason) = (Vec::new(), None);
        for place in others.into_iter().chain(same) {
            match self.opinion_of(place, range, filter).await {
                Ok(opinion) => {
                    opinions.push(opinion);
                    let is_anothers = !served.is_empty() && !served.contains(&place);
                    if is_anothers || opinions.len() == 2 {
                        return Ok(opinions);
                    }
                }
                Err(error) => reason = reason.or(Some(error)),
            }
        }
        Err(reason.unwrap_or_else(|| RpcError::Transient("there is no second opinion".to_owned())))
    }

    /// The logs of a range of history and, where it is among those that are compared, what another endpoint has besides.
    /// Where none answers, the logs are as they were told: history does not wait for a sample. A range of which all others
    /// that answer have other blocks is not believed. Blocks that were proven are left as they are.
    pub(super) async fn compared(
        &self,
        teller: usize,
        (answer, proven): (RangeLogs, BTreeSet<u64>),
        filter: &LogFilter,
    ) -> Result<RangeLogs, RpcError> {
        let range = BlockRange { from: answer.first.number, to: answer.last.number };
        let is_proven = proven.len() as u64 == range.blocks();
        if is_proven || !self.is_compared(teller, range.from) {
            return Ok(answer);
        }
        let mut reason = None;
        for place in (0..self.by_preference.len()).filter(|place| *place != teller) {
            let theirs = match self.opinion_of(place, range, filter).await {
                Ok(theirs) => theirs,
                Err(error) => {
                    debug!(place, %range, %error, "not compared");
                    continue;
                }
            };
            if is_of_same_blocks(&answer, &theirs) {
                return Ok(self.united((teller, answer), (place, theirs), &proven));
            }
            let name = |place: usize| self.by_preference.get(place).map_or("?", |endpoint| endpoint.name());
            let (one, other) = (name(teller), name(place));
            let text = format!("{one} and {other} have different blocks in the final range {range}");
            reason = Some(RpcError::Invalid(text));
        }
        reason.map_or(Ok(answer), Err)
    }

    fn is_compared(&self, teller: usize, from: u64) -> bool {
        let Limits { audit_sample, .. } = self.limits;
        let is_sampled = (from / COMPARED + 1).checked_rem(audit_sample) == Some(0);
        self.by_preference.len() > 1 && audit_sample > 0 && (is_sampled || self.suspects.take(teller))
    }

    /// The logs that either of two endpoints has; those of proven blocks as they were proven. Who lacks some is suspected.
    fn united(
        &self,
        (teller, ours): (usize, RangeLogs),
        (other, theirs): (usize, RangeLogs),
        proven: &BTreeSet<u64>,
    ) -> RangeLogs {
        let RangeLogs { logs, first, last } = ours;
        let range = BlockRange { from: first.number, to: last.number };
        let is_proven = |log: &RawLog| proven.contains(&log.block.number);
        let (certain, logs): (Vec<_>, Vec<_>) = logs.into_iter().partition(is_proven);
        let theirs: Vec<_> = theirs.logs.into_iter().filter(|log| !is_proven(log)).collect();
        let (told, besides) = (logs.len(), theirs.len());
        let place_of = |log: &RawLog| (log.block.number, log.log_index);
        let mut all: BTreeMap<_, RawLog> = BTreeMap::new();
        for log in logs.into_iter().chain(theirs) {
            all.entry(place_of(&log)).or_insert(log);
        }
        for (place, lacks, whose) in [(teller, all.len() - told, other), (other, all.len() - besides, teller)] {
            if let (Some(proofs), Some(whose)) = (self.proofs.get(place), self.by_preference.get(whose))
                && lacks > 0
            {
                proofs.left_out(range, lacks, whose.name());
                self.suspects.add(place);
            }
        }
        all.extend(certain.into_iter().map(|log| (place_of(&log), log)));
        RangeLogs { logs: all.into_values().collect(), first, last }
    }

    /// The logs of a whole range as one endpoint has them, unless it is not asked.
    async fn opinion_of(&self, place: usize, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError> {
        let Some(endpoint) = self.by_preference.get(place) else {
            return Err(RpcError::Fatal("no such endpoint".to_owned()));
        };
        let question = Question::range(range);
        let is_open = matches!(endpoint.standing(question, Instant::now()).gate, Gate::Open(..));
        if let Some((why, _)) = endpoint.aside().filter(|_| is_open) {
            // It is no opinion, and yet there is someone to wait for.
            return Err(RpcError::Transient(format!("{} is not asked: {why}", endpoint.name())));
        }
        let ask = |range| {
            let request = move |node: Arc<Node>| async move { node.bearing.range_logs(&node, range, filter).await };
            self.ask_one(endpoint, question, false, request)
        };
        let mut whole = ask(range).await?;
        while whole.last.number < range.to {
            let part = ask(BlockRange { from: whole.last.number + 1, ..range }).await?;
            whole.logs.extend(part.logs);
            whole.last = part.last;
        }
        Ok(whole)
    }
}

/// Whether the ends and all logs of two answers are of the same blocks.
fn is_of_same_blocks(one: &RangeLogs, other: &RangeLogs) -> bool {
    let ends = |answer: &RangeLogs| [answer.first.block(), answer.last.block()];
    let blocks = |answer: &RangeLogs| answer.logs.iter().map(|log| log.block).chain(ends(answer)).collect::<Vec<_>>();
    let of_one: BTreeMap<u64, B256> = blocks(one).into_iter().map(|block| (block.number, block.hash)).collect();
    let is_same = |block: &BlockRef| of_one.get(&block.number).is_none_or(|hash| *hash == block.hash);
    ends(one).map(|end| end.number) == ends(other).map(|end| end.number) && blocks(other).iter().all(is_same)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        config::SecretUrl,
        devchain::{Options, serve},
        rpc::{At, ChainSource as _},
    };

    /// One chain up to height 450, and endpoints of it, of which those named `liar` leave the last log of each answer out.
    struct Chain {
        address: std::net::SocketAddr,
        shutdown: CancellationToken,
    }

    impl Chain {
        async fn start() -> Self {
            crate::crypto::init();
            let shutdown = CancellationToken::new();
            let genesis_time = Some(1_750_000_000);
            let options = Options { port: 0, genesis_time, start_height: 450, mining: false, ..Options::default() };
            let serving = serve(Options { logs_per_block: 6, ..options }, shutdown.clone()).await.unwrap();
            let chain = Self { address: serving.address, shutdown };
            chain.call("devchain_setFaults", json!([[{ "do": { "omit": {} } }]])).await;
            chain
        }

        async fn call(&self, method: &'static str, params: Value) -> Value {
            let url = format!("http://{}/liar", self.address).parse().unwrap();
            alloy::rpc::client::RpcClient::new_http(url).request(method, params).await.unwrap()
        }

        fn endpoints(&self, names: &[&str], audit_sample: u64) -> Endpoints {
            let url = |name: &&str| SecretUrl::parse(&format!("http://{}/{name}", self.address)).unwrap();
            let limits = Limits { audit_sample, rpc_timeout: Duration::from_secs(20), ..Limits::default() };
            Endpoints::new(Options::CHAIN_ID, names.iter().map(url).collect(), limits)
        }
    }

    impl Drop for Chain {
        fn drop(&mut self) {
            self.shutdown.cancel();
        }
    }

    /// Logs of a hundred blocks, and of how many endpoints they were asked.
    async fn hundred(endpoints: &Endpoints, from: u64) -> usize {
        let topics = vec![alloy::primitives::keccak256("Transfer(address,address,uint256)")];
        let filter = LogFilter { addresses: vec![], topics };
        let mut range = BlockRange { from, to: from + 99 };
        let mut logs = 0;
        while range.from <= range.to {
            let answer = endpoints.range_logs(range, &filter).await.unwrap();
            (logs, range.from) = (logs + answer.logs.len(), answer.last.number + 1);
        }
        logs
    }

    fn asked(endpoints: &Endpoints) -> Vec<u64> {
        endpoints.endpoints().iter().map(|state| state.asked).collect()
    }

    #[tokio::test]
    async fn what_a_node_leaves_out_of_history_comes_from_another_where_it_is_compared() {
        let chain = Chain::start().await;
        let truth = hundred(&chain.endpoints(&["good"], 1), 0).await;
        assert!(hundred(&chain.endpoints(&["liar"], 1), 0).await < truth, "there is nobody to compare it with");
        assert!(hundred(&chain.endpoints(&["liar", "good"], 0), 0).await < truth, "nothing is compared");
        for names in [["liar", "good"], ["good", "liar"]] {
            assert_eq!(hundred(&chain.endpoints(&names, 1), 0).await, truth);
        }
    }

    #[tokio::test]
    async fn one_hundred_in_so_many_is_compared_and_after_a_difference_everything() {
        let chain = Chain::start().await;
        let (good, liar) = (chain.endpoints(&["good", "second"], 3), chain.endpoints(&["liar", "good"], 3));
        for endpoints in [&good, &liar] {
            assert_eq!(endpoints.header(At::Latest).await.unwrap().unwrap().number, 450);
        }
        let mut truth = Vec::new();
        for from in [0, 100, 200, 300] {
            truth.push(hundred(&good, from).await);
        }
        assert_eq!(asked(&good), [5, 1]);
        assert!(hundred(&liar, 0).await < truth[0]);
        assert_eq!(asked(&liar)[1], 0);
        assert_eq!(hundred(&liar, 200).await, truth[2]);
        assert_eq!((hundred(&liar, 0).await, hundred(&liar, 300).await), (truth[0], truth[3]));
        assert_eq!(asked(&liar)[1], 3);
    }

    #[tokio::test]
    async fn history_does_not_wait_for_the_other_but_is_not_believed_where_it_has_other_blocks() {
        let (chain, other) = (Chain::start().await, Chain::start().await);
        let url = |address, name| SecretUrl::parse(&format!("http://{address}/{name}")).unwrap();
        let limits = || Limits { audit_sample: 1, ..Limits::default() };
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let urls = vec![url(chain.address, "good"), url(nobody, "down")];
        assert!(hundred(&Endpoints::new(Options::CHAIN_ID, urls, limits()), 0).await > 0);
        let fork = json!([5]);
        alloy::rpc::client::RpcClient::new_http(format!("http://{}", other.address).parse().unwrap())
            .request::<_, Value>("devchain_reorg", fork)
            .await
            .unwrap();
        let urls = vec![url(chain.address, "good"), url(other.address, "good")];
        let both = Endpoints::new(Options::CHAIN_ID, urls, limits());
        let range = BlockRange { from: 400, to: 450 };
        let error =
            both.range_logs(range, &LogFilter { addresses: vec![], topics: vec![B256::ZERO] }).await.unwrap_err();
        assert!(matches!(&error, RpcError::Invalid(text) if text.contains("different blocks")), "{error}");
    }

    #[test]
    fn a_run_ends_where_others_served() {
        let served = Served::default();
        for (block, places) in [(5, &[0][..]), (6, &[0]), (7, &[1]), (9, &[0]), (10, &[0, 1]), (11, &[1, 0])] {
            places.iter().for_each(|place| served.by(*place, block));
        }
        let run = |from| {
            let (range, places) = served.run(BlockRange { from, to: 20 });
            (range.to, places.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(run(2), (4, vec![]));
        assert_eq!(run(5), (6, vec![0]));
        assert_eq!(run(7), (7, vec![1]));
        assert_eq!(run(8), (8, vec![]));
        assert_eq!(run(9), (9, vec![0]));
        assert_eq!(run(10), (11, vec![0, 1]));
        assert_eq!(run(12), (20, vec![]));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_is_forgotten() {
        let served = Served::default();
        (0..2 * REMEMBERED as u64).for_each(|block| served.by(0, block));
        assert_eq!(served.blocks().len(), REMEMBERED);
        assert!(served.run(BlockRange::single(0)).1.is_empty());
        assert!(!served.run(BlockRange::single(2 * REMEMBERED as u64 - 1)).1.is_empty());
    }
}
