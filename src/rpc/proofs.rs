//! When a node's logs are proven by receipts, and what is made of a proof that fails.
//!
//! A proof that fails may be the fault of the node, and others are asked for it, or of the chain, whose encoding nobody here
//! knows. So the first failures in a row are refusals; after some the node is taken at its word as if receipts were off, and
//! that is said. From time to time a block is proven all the same, and the first proof that holds ends it. A contradiction in
//! a known encoding is never forgiven by a node that has proven a block.
//!
//! A node that has proven blocks may have the receipts of one late, or ask for time. The block waits for them, because
//! others are proven and this one would be an exception that nobody asked for; but not for ever ([`HOLD`]), because receipts
//! that do not come at all are an outage of the proof and not of the chain: waiting longer would hold up every transfer to
//! guard against the few that a node may leave out. Then it is as with a node that proves nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    RpcError,
    receipts::{Held, Unproven},
};
use crate::{
    config::{Limits, Verify},
    domain::BlockRange,
    telemetry::metrics,
};

/// Blocks in a row that cannot be proven, and tries of one of them, after which a node is taken at its word.
const PATIENCE: u32 = 5;
/// Blocks whose tries are remembered.
const REMEMBERED: usize = 64;
/// One block in so many is proven all the same.
const TRIAL_EVERY: u32 = 64;
/// A block that a node should prove and does not yet, near the head or because the node asks for time, waits this long:
/// receipts that are late come within seconds, and a node behind the others within a minute.
const HOLD: Duration = Duration::from_mins(2);
/// A block that waits is tried again at least this often, whatever a node asks for: it may be proven by another one by then.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// A block that waits for its proof for longer is told of.
const TELL_AFTER: Duration = Duration::from_secs(10);
/// What is not proven is told of for as long as blocks were due within this time.
const RECENT: Duration = Duration::from_mins(1);
/// The same is warned of once in this time; counters tell the rest.
const WARN_EVERY: Duration = Duration::from_mins(1);

/// Which blocks are proven. Of new ones a node may have the receipts late, those of old ones it may have dropped: neither
/// says anything of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A block near the head.
    Head,
    /// A block of a final range.
    History,
}

/// The proofs of one node.
#[derive(Debug)]
pub(super) struct Proofs {
    /// The node's name.
    name: String,
    verify: Verify,
    sample: u64,
    records: Mutex<Records>,
}

#[derive(Debug, Default)]
struct Records {
    /// A block with receipts was proven: this chain's encoding is known.
    has_proven: bool,
    head: Record,
    history: Record,
    /// When it was last warned of logs that the node left out.
    omission_told: Option<Instant>,
    /// When it was last warned of false receipts.
    falsehood_told: Option<Instant>,
    /// When it was last warned of a block that waits for its proof.
    wait_told: Option<Instant>,
}

impl Records {
    fn of(&mut self, place: Place) -> &mut Record {
        match place {
            Place::Head => &mut self.head,
            Place::History => &mut self.history,
        }
    }
}

#[derive(Debug, Default)]
struct Record {
    /// Since the last proof that held: blocks near the head, or tries of history, where nothing is lost by giving up early.
    failures: u32,
    /// The highest blocks that could not be proven, each with the number of tries and the moment of the first.
    tries: BTreeMap<u64, (u32, Instant)>,
    /// Blocks that were due since the node is taken at its word.
    passed: u32,
    /// When a block was due.
    due: Option<Instant>,
    /// Why a block was not proven, and since when none was.
    unproven: Option<(String, Instant)>,
}

impl Record {
    fn is_suspended(&self) -> bool {
        self.failures >= PATIENCE
    }

    /// A block was not proven: the number of tries that failed, and since when.
    fn missed(&mut self, block: u64, reason: &str) -> (&mut u32, Instant) {
        let now = Instant::now();
        let since = self.unproven.take().map_or(now, |(_, since)| since);
        self.unproven = Some((reason.to_owned(), since));
        if !self.tries.contains_key(&block) && self.tries.len() >= REMEMBERED {
            self.tries.pop_first();
        }
        let (tries, since) = self.tries.entry(block).or_insert((0, now));
        (tries, *since)
    }

    /// Why its blocks are not proven, where that is so for longer than a moment.
    fn told(&self, what: &str) -> Option<String> {
        let (reason, since) = self.unproven.as_ref().filter(|_| self.due.is_some_and(|due| due.elapsed() < RECENT))?;
        let since = since.elapsed();
        if self.is_suspended() {
            return Some(format!("{what} are delivered without a proof: {reason}"));
        }
        (since >= TELL_AFTER).then(|| format!("{what} wait for their proof for {} s: {reason}", since.as_secs()))
    }
}

impl Proofs {
    /// None made yet.
    pub(super) fn new(name: String, limits: &Limits) -> Self {
        Self { name, verify: limits.verify, sample: limits.verify_sample, records: Mutex::default() }
    }

    /// Whether the node has proven a block.
    pub(super) fn has_proven(&self) -> bool {
        self.records().has_proven
    }

    /// Why its logs are not proven, in words.
    pub(super) fn unproven(&self) -> Option<String> {
        let records = self.records();
        records.head.told("blocks near the head").or_else(|| records.history.told("blocks of history"))
    }

    /// The node told other logs than the receipts have, which are used.
    pub(super) fn corrected(&self, block: u64, held: &Held) {
        let Held { missing, false_logs, .. } = held;
        if is_to_be_told(&mut self.records().omission_told) {
            warn!(
                endpoint = self.name,
                block, missing, false_logs, "eth_getLogs contradicts the block's receipts, which are used"
            );
        }
        metrics::logs_restored(&self.name, missing + false_logs);
    }

    /// Whether the next block is to be proven. Asking counts.
    pub(super) fn is_due(&self, place: Place) -> bool {
        if self.verify != Verify::Receipts {
            return false;
        }
        let mut records = self.records();
        let record = records.of(place);
        record.due = Some(Instant::now());
        if !record.is_suspended() {
            return true;
        }
        record.passed = record.passed.wrapping_add(1);
        record.passed.is_multiple_of(TRIAL_EVERY)
    }

    /// The node left out what another endpoint has, which is used.
    pub(super) fn left_out(&self, range: BlockRange, missing: usize, other: &str) {
        if is_to_be_told(&mut self.records().omission_told) {
            warn!(endpoint = self.name, %range, missing, other, "another endpoint has logs that this one left out; they count, too");
        }
        metrics::logs_restored(&self.name, missing);
    }

    /// Whether this block is among those of history that are proven: the same ones for everyone who asks.
    pub(super) fn is_sampled(&self, number: u64) -> bool {
        self.verify == Verify::Receipts && number.checked_rem(self.sample) == Some(0)
    }

    /// What a proof amounts to: the block's logs, or `None` where the node is taken at its word.
    ///
    /// # Errors
    ///
    /// [`RpcError::Invalid`] where the node contradicts itself, and whatever else keeps a node from a proof that is not
    /// taken at its word.
    pub(super) fn judge(
        &self,
        (place, block): (Place, u64),
        proof: Result<Held, Unproven>,
    ) -> Result<Option<Held>, RpcError> {
        match proof {
            Ok(held) => {
                self.succeeded((place, block), held.has_receipts);
                Ok(Some(held))
            }
            // It has not failed to prove anything: it asks for time.
            Err(Unproven::Request(error @ RpcError::Throttled { .. })) => self.waits((place, block), error),
            // It proves blocks, and does not have all of this one yet: it or another one will.
            Err(Unproven::Request(error @ (RpcError::Behind(_) | RpcError::Transient(_) | RpcError::TimedOut)))
                if place == Place::Head && self.records().has_proven =>
            {
                metrics::proof(&self.name, "failed");
                self.waits((place, block), of_proof(error))
            }
            Err(Unproven::Wrong(text)) if self.records().has_proven => {
                metrics::proof(&self.name, "wrong");
                let mut records = self.records();
                // Whatever failed before: the encoding is known, and the next block is to be proven.
                records.of(place).failures = 0;
                records.of(place).missed(block, &text);
                if is_to_be_told(&mut records.falsehood_told) {
                    warn!(endpoint = self.name, block, reason = text, "a node's receipts are false and not used");
                }
                Err(RpcError::Invalid(text))
            }
            Err(Unproven::Wrong(text) | Unproven::Unknown(text)) => {
                metrics::proof(&self.name, "unknown");
                self.failed((place, block), RpcError::Invalid(text))
            }
            Err(Unproven::Request(error)) => {
                metrics::proof(&self.name, "failed");
                self.failed((place, block), of_proof(error))
            }
        }
    }

    fn succeeded(&self, (place, block): (Place, u64), has_receipts: bool) {
        metrics::proof(&self.name, "proven");
        let mut records = self.records();
        records.of(place).tries.remove(&block);
        // That there is nothing to prove says nothing of encodings.
        if !has_receipts {
            let record = records.of(place);
            record.unproven = record.unproven.take().filter(|_| record.is_suspended());
            return;
        }
        records.has_proven = true;
        let record = records.of(place);
        if record.is_suspended() {
            info!(endpoint = self.name, "receipts prove blocks again, and are asked for again");
        }
        (record.failures, record.unproven) = (0, None);
        // A node that proves old blocks may prove new ones; the other way round they may be dropped.
        records.head.failures = 0;
    }

    /// A proof that should come and is not there yet: the block waits, but not for ever.
    fn waits(&self, (place, block): (Place, u64), error: RpcError) -> Result<Option<Held>, RpcError> {
        let mut records = self.records();
        let record = records.of(place);
        let (_, since) = record.missed(block, &error.to_string());
        let waited = since.elapsed();
        if record.is_suspended() {
            return Ok(None);
        }
        if waited >= HOLD {
            record.failures = PATIENCE;
            warn!(
                endpoint = self.name,
                block,
                %error,
                "a block waited long enough for its proof: logs are held against blooms only until a block is proven again; \
                 where that lasts set VERIFY=bloom, or give an endpoint that serves eth_getBlockReceipts"
            );
            return Ok(None);
        }
        debug!(endpoint = self.name, block, %error, "a block is not proven yet");
        let error = match error {
            RpcError::Throttled { message, retry_after } => {
                RpcError::Throttled { message, retry_after: retry_after.map(|wait| wait.min(TRY_AGAIN)) }
            }
            error => error,
        };
        if waited >= TELL_AFTER && is_to_be_told(&mut records.wait_told) {
            warn!(endpoint = self.name, block, %error, most = ?HOLD, "a block waits for its proof");
        }
        Err(error)
    }

    fn failed(&self, (place, block): (Place, u64), error: RpcError) -> Result<Option<Held>, RpcError> {
        let mut records = self.records();
        let record = records.of(place);
        let was_suspended = record.is_suspended();
        let (tries, _) = record.missed(block, &error.to_string());
        *tries = tries.saturating_add(1);
        let tries = *tries;
        if tries == 1 || place == Place::History {
            record.failures = record.failures.saturating_add(1);
        }
        if !record.is_suspended() && tries < PATIENCE {
            debug!(endpoint = self.name, block, %error, "a block could not be proven");
            return Err(error);
        }
        if !record.is_suspended() {
            warn!(endpoint = self.name, block, %error, "a block cannot be proven: its logs are held against its bloom only");
        } else if !was_suspended {
            warn!(
                endpoint = self.name,
                block,
                %error,
                "this endpoint's blocks cannot be proven by their receipts: its logs are held against blooms only; \
                 where that lasts set VERIFY=bloom, or give an endpoint that serves eth_getBlockReceipts"
            );
        }
        Ok(None)
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it is time to warn again of what was last told of then.
fn is_to_be_told(told: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let is_due = told.is_none_or(|at| now.duration_since(at) >= WARN_EVERY);
    if is_due {
        *told = Some(now);
    }
    is_due
}

/// Receipts that are too large or not served say nothing about the logs that were asked for: fewer blocks would not help,
/// and another endpoint may.
fn of_proof(error: RpcError) -> RpcError {
    match error {
        RpcError::Behind(_) | RpcError::Pruned(_) | RpcError::Invalid(_) => error,
        other => RpcError::Transient(format!("no proof by receipts: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Place::*, *};
    use crate::rpc::Cap;

    fn proofs() -> Proofs {
        Proofs::new("node".into(), &Limits { verify: Verify::Receipts, verify_sample: 10, ..Limits::default() })
    }

    fn held(has_receipts: bool) -> Held {
        Held { logs: vec![], missing: 0, false_logs: 0, has_receipts }
    }

    fn unknown() -> Unproven {
        Unproven::Unknown("another encoding".into())
    }

    fn throttled(seconds: Option<u64>) -> RpcError {
        RpcError::Throttled { message: String::new(), retry_after: seconds.map(Duration::from_secs) }
    }

    fn wrong() -> Unproven {
        Unproven::Wrong("another root".into())
    }

    #[test]
    fn a_node_that_proves_nothing_is_taken_at_its_word_and_tried_again_from_time_to_time() {
        for place in [Head, History] {
            let proofs = proofs();
            for block in 1..u64::from(PATIENCE) {
                assert!(proofs.is_due(place));
                assert!(matches!(proofs.judge((place, block), Err(unknown())), Err(RpcError::Invalid(_))));
            }
            assert!(matches!(proofs.judge((place, 5), Err(unknown())), Ok(None)));
            let due = (0..10 * TRIAL_EVERY).filter(|_| proofs.is_due(place)).count();
            assert_eq!(due, 10);
            assert!(matches!(proofs.judge((place, 6), Ok(held(false))), Ok(Some(_))));
            assert!(!proofs.is_due(place), "it had nothing to prove");
            assert!(matches!(proofs.judge((place, 7), Ok(held(true))), Ok(Some(_))));
            assert!(proofs.is_due(place) && proofs.is_due(place));
            assert!(proofs.judge((place, 8), Err(unknown())).is_err(), "it begins anew");
        }
    }

    #[test]
    fn one_block_that_cannot_be_proven_is_taken_in_the_end_and_the_next_one_is_proven() {
        let proofs = proofs();
        proofs.judge((Head, 1), Ok(held(true))).unwrap();
        for _ in 1..PATIENCE {
            assert!(proofs.judge((Head, 2), Err(unknown())).is_err());
            proofs.judge((Head, 3), Ok(held(true))).unwrap();
        }
        assert!(matches!(proofs.judge((Head, 2), Err(unknown())), Ok(None)));
        assert!(proofs.is_due(Head), "it is one block");
    }

    #[tokio::test(start_paused = true)]
    async fn a_block_waits_two_minutes_for_receipts_of_a_node_that_proves_blocks_and_then_no_block_does() {
        let proofs = proofs();
        proofs.judge((Head, 1), Ok(held(true))).unwrap();
        for block in 2..100 {
            for late in [RpcError::Behind(String::new()), RpcError::Transient(String::new()), RpcError::TimedOut] {
                assert!(proofs.judge((Head, block), Err(late.into())).is_err());
            }
            assert!(proofs.is_due(Head));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(proofs.unproven().unwrap().contains("wait for their proof"));
        proofs.judge((Head, 99), Ok(held(true))).unwrap();
        assert_eq!(proofs.unproven(), None);
        for (block, late) in [(100, RpcError::Behind("no receipts".into())), (200, throttled(Some(3_600)))] {
            let begun = Instant::now();
            let judge = || proofs.judge((Head, block), Err(late.clone().into()));
            while judge().is_err() {
                assert!(proofs.is_due(Head));
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            assert_eq!(begun.elapsed(), HOLD);
            assert!(
                matches!(proofs.judge((Head, block + 1), Err(late.clone().into())), Ok(None)),
                "nor does the next one wait"
            );
            assert!(proofs.unproven().unwrap().contains("delivered without a proof"), "{:?}", proofs.unproven());
            let due = (0..10 * TRIAL_EVERY).filter(|_| proofs.is_due(Head)).count();
            assert_eq!(due, 10);
            proofs.judge((Head, block + 2), Ok(held(true))).unwrap();
            assert!(proofs.is_due(Head) && proofs.unproven().is_none());
        }
        assert!(proofs.is_due(History));
        (1..=5).for_each(|block| assert_eq!(proofs.judge((History, block), Err(unknown())).is_ok(), block == 5));
        assert!(proofs.unproven().unwrap().contains("history"));
        tokio::time::advance(RECENT).await;
        assert_eq!(proofs.unproven(), None, "nothing more was due");
    }

    #[test]
    fn old_blocks_whose_receipts_are_dropped_say_nothing_of_new_ones() {
        let proofs = proofs();
        proofs.judge((Head, 1), Ok(held(true))).unwrap();
        let pruned = || proofs.judge((History, 7), Err(RpcError::Behind(String::new()).into()));
        assert!((1..PATIENCE).all(|_| pruned().is_err()));
        assert!(matches!(pruned(), Ok(None)), "history would never go on");
        assert!(proofs.is_due(Head) && !proofs.is_due(History));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_is_warned_of_once_a_minute() {
        let mut told = None;
        let seconds = [0, 30, 29, 2, 58, 1].map(Duration::from_secs);
        let mut warned = Vec::new();
        for pause in seconds {
            tokio::time::advance(pause).await;
            warned.push(is_to_be_told(&mut told));
        }
        assert_eq!(warned, [true, false, false, true, false, false]);
    }

    #[test]
    fn a_contradiction_is_never_forgiven_once_the_encoding_is_known() {
        let proofs = proofs();
        proofs.judge((Head, 1), Ok(held(false))).unwrap();
        assert!(
            (1..=PATIENCE).any(|_| proofs.judge((Head, 1), Err(wrong())).is_ok()),
            "an empty block says nothing of encodings"
        );
        proofs.judge((Head, 1), Ok(held(true))).unwrap();
        for _ in 0..3 * PATIENCE {
            assert!(matches!(proofs.judge((Head, 1), Err(wrong())), Err(RpcError::Invalid(_))));
            assert!(proofs.is_due(Head));
        }
    }

    #[test]
    fn a_node_that_asks_for_time_gets_it_and_no_failure_asks_for_a_smaller_range() {
        let proofs = proofs();
        for _ in 0..3 * PATIENCE {
            let error = proofs.judge((Head, 1), Err(throttled(None).into())).unwrap_err();
            assert!(matches!(error, RpcError::Throttled { .. }));
            assert!(proofs.is_due(Head));
        }
        let error = proofs.judge((Head, 1), Err(throttled(Some(3_600)).into())).unwrap_err();
        assert!(
            matches!(error, RpcError::Throttled { retry_after: Some(TRY_AGAIN), .. }),
            "another may prove it sooner"
        );
        let unclear = RpcError::Unclear { message: "no".into(), is_known: false };
        let large = RpcError::TooLarge { message: "no".into(), cap: Cap::Density, suggested: None };
        for error in [RpcError::Fatal("no such method".into()), RpcError::TimedOut, unclear, large] {
            let error = proofs.judge((Head, 1), Err(error.into())).unwrap_err();
            assert!(matches!(error, RpcError::Transient(_)), "{error:?}");
        }
    }

    #[test]
    fn the_sample_is_the_same_for_everyone_and_only_where_receipts_are_asked_for() {
        let sampled: Vec<u64> = (1..=30).filter(|number| proofs().is_sampled(*number)).collect();
        assert_eq!(sampled, [10, 20, 30]);
        let none = Limits { verify: Verify::Receipts, verify_sample: 0, ..Limits::default() };
        let bloom = Limits { verify: Verify::Bloom, verify_sample: 1, ..Limits::default() };
        for limits in [none, bloom] {
            assert!(!Proofs::new("node".into(), &limits).is_sampled(10));
        }
    }
}
