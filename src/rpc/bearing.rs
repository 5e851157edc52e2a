//! What one endpoint bears, and requests for logs that keep to it.
//!
//! Callers name as many blocks and addresses as they have: a range is cut to as many of its first blocks as the endpoint
//! takes, addresses are asked for list by list, and what is refused all the same is asked for again, for less, at once.
//! How much that is, [`Caps`] knows. Where there is no answer, or one that nobody understands, others are asked first:
//! the endpoint is asked for less the next time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tracing::debug;

use super::{
    Allowance, Bounds, Cap, Caps, LogFilter, Pace, RangeLogs, RpcError, budget::Budget, caps::LONGEST_WAIT,
    client::Node,
};
use crate::domain::{BlockRange, BlockRef, RawLog};

/// Most requests for one range, all but the last of them refused. From 100 blocks and 1,000 addresses there are fewer.
const ROUNDS: usize = 24;
/// Whoever waits for another request to find out how many blocks may be asked for waits no longer than this.
const TURN: Duration = Duration::from_secs(2);
/// Fewer requests at once are sent at most this often: one outage fails every request in flight.
const PRESS_EVERY: Duration = Duration::from_secs(1);
/// Ranges of history never begin further apart than this.
const MOST_SPACING: Duration = Duration::from_secs(10);

/// What one endpoint bears, for as long as the process runs.
pub(super) struct Bearing {
    state: Mutex<State>,
    /// Held by the one request that asks for more blocks than were ever answered: a cap is found out once, and not by
    /// all requests in flight at the same time.
    finding_out: tokio::sync::Mutex<()>,
    /// Wakes one who waits for a place among the requests for history in flight.
    freed: Notify,
    budget: Arc<Budget>,
}

struct State {
    bounds: Bounds,
    caps: Caps,
    /// A range of several blocks that was not answered, or with something that nobody understands, and may have been too
    /// large.
    unanswered: Option<BlockRange>,
    /// How often there was such a range.
    unanswered_times: u64,
    /// Requests for history.
    in_flight: usize,
    /// Time between the beginnings of two ranges of history.
    spacing: Duration,
    last_press: Option<Instant>,
    /// It wants to be left alone until then. `caps` keeps and shows the same in whole seconds, which outlive the process.
    waits_until: Option<Instant>,
}

impl State {
    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            caps: Caps::new(bounds),
            unanswered: None,
            unanswered_times: 0,
            in_flight: 0,
            spacing: bounds.spacing,
            last_press: None,
            waits_until: None,
        }
    }
}

impl Bearing {
    /// Nothing is known yet; within the bounds of a chain of which nothing else is said. What one request becomes many for
    /// is charged to the budget.
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        let state = State::new(Bounds::default());
        Self { state: Mutex::new(state), finding_out: tokio::sync::Mutex::default(), freed: Notify::new(), budget }
    }

    /// Begins anew within these bounds.
    pub(super) fn limit(&self, bounds: Bounds) {
        *self.state() = State::new(bounds);
    }

    /// Goes on with what was learned before a restart, if it can be read.
    pub(super) fn resume(&self, learned: &str) {
        let mut state = self.state();
        match serde_json::from_str(learned) {
            Ok(learned) => {
                state.caps = Caps::resume(state.bounds, &learned, now());
                state.waits_until = state.caps.allowance(now()).waits_until.and_then(moment);
            }
            Err(error) => debug!(%error, "what was learned of an endpoint cannot be read, and is learned anew"),
        }
    }

    /// What was learned, to be resumed.
    pub(super) fn learned(&self) -> String {
        serde_json::to_string(self.state().caps.learned()).unwrap_or_default()
    }

    pub(super) fn allowance(&self) -> Allowance {
        self.state().caps.allowance(now())
    }

    /// For how long it wants to be left alone.
    fn wait(&self) -> Option<Duration> {
        let wait = self.state().waits_until?.saturating_duration_since(Instant::now());
        (!wait.is_zero()).then_some(wait)
    }

    /// Whether it may be asked now.
    ///
    /// # Errors
    ///
    /// [`RpcError::Throttled`] while it wants to be left alone.
    pub(super) fn may_be_asked(&self) -> Result<(), RpcError> {
        let Some(wait) = self.wait() else { return Ok(()) };
        let message = "the endpoint asked to be left alone for a while".to_owned();
        Err(RpcError::Throttled { message, retry_after: Some(wait) })
    }

    /// It asked to be left alone for so long (`Retry-After`).
    pub(super) fn throttled(&self, wait: Duration) {
        let mut state = self.state();
        state.waits_until = state.waits_until.max(Some(Instant::now() + wait.min(LONGEST_WAIT)));
        // The second that has begun is over before the wait begins, so that after a restart no request comes early.
        state.caps.throttled(wait, now() + 1);
    }

    /// How many ranges of history may be worked on at once, and how far apart they begin.
    pub(super) fn pace(&self) -> Pace {
        let state = self.state();
        Pace { parallel: state.caps.allowance(now()).parallel, spacing: state.spacing }
    }

    /// A place among the requests for history in flight, as soon as there is one. What is asked near the head has none and
    /// never waits.
    pub(super) async fn place(&self) -> InFlight<'_> {
        loop {
            if self.takes_place() {
                // Whoever waits behind looks whether there is another one.
                self.freed.notify_one();
                return InFlight(self);
            }
            self.freed.notified().await;
        }
    }

    fn takes_place(&self) -> bool {
        let mut state = self.state();
        let is_free = state.in_flight < state.caps.allowance(now()).parallel;
        state.in_flight += usize::from(is_free);
        is_free
    }

    /// A request for logs was answered. It says nothing of how many the endpoint bears where less than half of those that may
    /// be sent were in flight (RFC 7661).
    pub(super) fn served(&self) {
        let mut state = self.state();
        if 2 * state.in_flight >= state.caps.allowance(now()).parallel {
            state.caps.served();
        }
        state.spacing = state.spacing.mul_f64(0.8);
    }

    /// It asked for fewer requests, or did not answer one for history in time. One outage fails every request in flight, and
    /// counts once.
    pub(super) fn pressed(&self) {
        let (mut state, now) = (self.state(), Instant::now());
        if state.last_press.is_some_and(|last| now.duration_since(last) < PRESS_EVERY) {
            return;
        }
        state.last_press = Some(now);
        state.caps.pressed();
        state.spacing = (state.spacing.max(state.bounds.spacing) * 2).min(MOST_SPACING);
    }

    /// How often it did not answer a range that may have been too large: the next time it is asked for less.
    pub(super) fn unanswered(&self) -> u64 {
        self.state().unanswered_times
    }

    /// The logs of the first blocks of a range, of as many as it bears.
    pub(super) async fn range_logs(
        &self,
        node: &Node,
        range: BlockRange,
        filter: &LogFilter,
    ) -> Result<RangeLogs, RpcError> {
        let turn =
            if self.is_tried(self.first(range)) { None } else { timeout(TURN, self.finding_out.lock()).await.ok() };
        let mut asked = self.first(range);
        // It may be known by now.
        let _turn = turn.filter(|_| !self.is_tried(asked));
        let mut rounds = 1;
        loop {
            let lists = self.lists(filter);
            let error = match self.whole(node, asked, &lists, rounds).await {
                Ok(logs) => {
                    self.answered(asked);
                    return Ok(logs);
                }
                Err(error) if rounds == ROUNDS => return Err(error),
                Err(error) => error,
            };
            debug!(endpoint = node.name, range = %asked, %error, "not answered");
            rounds += 1;
            asked = match error {
                RpcError::TooManyAddresses { .. } => self.fewer_addresses(&lists, error).map(|()| asked)?,
                error => self.less(asked, error)?,
            };
        }
    }

    /// The logs of one block by its hash. Many providers exempt such requests from their limits of blocks, and what they
    /// refuse of them teaches nothing about ranges.
    pub(super) async fn block_logs(
        &self,
        node: &Node,
        (block, timestamp): (BlockRef, u64),
        filter: &LogFilter,
    ) -> Result<Vec<RawLog>, RpcError> {
        let mut rounds = 1;
        loop {
            let lists = self.lists(filter);
            match self.of_block(node, (block, timestamp), &lists, rounds).await {
                Err(error @ RpcError::TooManyAddresses { .. }) if rounds < ROUNDS => {
                    rounds += 1;
                    self.fewer_addresses(&lists, error)?;
                }
                answer => return answer,
            }
        }
    }

    /// The logs of a range, of all lists of addresses.
    async fn whole(
        &self,
        node: &Node,
        range: BlockRange,
        lists: &[LogFilter],
        rounds: usize,
    ) -> Result<RangeLogs, RpcError> {
        let mut whole: Option<RangeLogs> = None;
        for (place, list) in lists.iter().enumerate() {
            self.charge(rounds + place);
            let part = node.range_logs(range, list).await?;
            match &mut whole {
                None => whole = Some(part),
                Some(whole) if (whole.first.hash, whole.last.hash) == (part.first.hash, part.last.hash) => {
                    whole.logs.extend(part.logs);
                }
                Some(_) => return Err(RpcError::Behind(format!("the blocks {range} changed while they were read"))),
            }
        }
        let whole = whole.ok_or_else(|| RpcError::Fatal("nothing was asked for".to_owned()))?;
        Ok(RangeLogs { logs: node.merged(whole.logs)?, ..whole })
    }

    /// The logs of one block, of all lists of addresses.
    async fn of_block(
        &self,
        node: &Node,
        (block, timestamp): (BlockRef, u64),
        lists: &[LogFilter],
        rounds: usize,
    ) -> Result<Vec<RawLog>, RpcError> {
        let mut logs = Vec::new();
        for (place, list) in lists.iter().enumerate() {
            self.charge(rounds + place);
            logs.extend(node.block_logs(block, timestamp, list).await?);
        }
        node.merged(logs)
    }

    /// The first request had its turn; each other one is charged.
    fn charge(&self, nth: usize) {
        if nth > 1 {
            self.budget.charge_logs(Instant::now());
        }
    }

    /// As many of the first blocks of a range as it bears.
    fn first(&self, range: BlockRange) -> BlockRange {
        let (mut state, now) = (self.state(), now());
        if let Some(unanswered) = state.unanswered.take() {
            state.caps.refused(unanswered, Cap::Density, None, now);
        }
        let last = range.from.saturating_add(state.caps.allowance(now).blocks - 1);
        BlockRange { to: range.to.min(last), ..range }
    }

    fn is_tried(&self, range: BlockRange) -> bool {
        self.state().caps.is_tried(range.blocks())
    }

    fn lists(&self, filter: &LogFilter) -> Vec<LogFilter> {
        let list = |addresses: &[_]| LogFilter { addresses: addresses.to_vec(), topics: filter.topics.clone() };
        self.state().caps.split(&filter.addresses, now()).map(list).collect()
    }

    fn answered(&self, range: BlockRange) {
        let mut state = self.state();
        state.unanswered = state.unanswered.filter(|unanswered| unanswered.blocks() > range.blocks());
        state.caps.answered(range.blocks(), now());
    }

    /// What to ask for after an error; the error, where less is no help or not its turn.
    fn less(&self, asked: BlockRange, error: RpcError) -> Result<BlockRange, RpcError> {
        let mut state = self.state();
        match &error {
            RpcError::TooLarge { cap, suggested, .. } => {
                let less = state.caps.refused(asked, *cap, *suggested, now());
                if less.blocks() < asked.blocks() { Ok(less) } else { Err(error) }
            }
            RpcError::TimedOut | RpcError::Unclear { .. } if asked.blocks() > 1 => {
                state.unanswered = Some(asked);
                state.unanswered_times += 1;
                Err(error)
            }
            _ => Err(error),
        }
    }

    /// Of these lists one was too long; the error, where none can be shorter.
    fn fewer_addresses(&self, lists: &[LogFilter], error: RpcError) -> Result<(), RpcError> {
        let RpcError::TooManyAddresses { most, .. } = &error else { return Err(error) };
        let longest = lists.iter().map(|list| list.addresses.len()).max().unwrap_or_default();
        if longest < 2 {
            return Err(error);
        }
        self.state().caps.too_many_addresses(longest, *most, now());
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole: a panic while the lock was held leaves a state that can be used.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the requests for history in flight at one endpoint; free again when dropped.
pub(super) struct InFlight<'a>(&'a Bearing);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.in_flight = state.in_flight.saturating_sub(1);
        drop(state);
        self.0.freed.notify_one();
    }
}

/// What an endpoint that was described with `learned` bears within these bounds; `None` where that cannot be read.
#[must_use]
pub fn described(learned: &str, bounds: Bounds) -> Option<Allowance> {
    let learned = serde_json::from_str(learned).ok()?;
    Some(Caps::resume(bounds, &learned, now()).allowance(now()))
}

/// The moment of a second since the Unix epoch; `None` where it is over.
fn moment(second: u64) -> Option<Instant> {
    let until = UNIX_EPOCH.checked_add(Duration::from_secs(second))?;
    Some(Instant::now() + until.duration_since(SystemTime::now()).ok()?)
}

/// Seconds since the Unix epoch: what was learned outlives the process.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::{FutureExt as _, future::join_all};
    use tokio::time::sleep;

    use super::*;

    fn bearing(parallel: usize, spacing: Duration) -> Bearing {
        let bearing = Bearing::new(Arc::default());
        bearing.limit(Bounds { parallel, spacing, ..Bounds::default() });
        bearing
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_requests_are_in_flight_as_it_bears_and_everyone_gets_a_place() {
        let (bearing, in_flight, most) = (bearing(3, Duration::ZERO), AtomicUsize::new(0), AtomicUsize::new(0));
        let request = || async {
            let _place = bearing.place().await;
            most.fetch_max(in_flight.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(Duration::from_secs(1)).await;
            in_flight.fetch_sub(1, Ordering::Relaxed);
        };
        let begun = Instant::now();
        join_all((0..30).map(|_| request())).await;
        assert_eq!((most.load(Ordering::Relaxed), begun.elapsed().as_secs()), (3, 10));
        // Who gives up waiting takes no place with it.
        let places = [bearing.place().await, bearing.place().await, bearing.place().await];
        assert!(bearing.place().now_or_never().is_none());
        bearing.served();
        drop(places);
        assert_eq!(join_all((0..4).map(|_| bearing.place())).await.len(), 4, "it bears one more");
        bearing.served();
        assert_eq!(bearing.pace().parallel, 4, "and no more by what is asked near the head");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_over_when_it_said_and_not_at_the_next_whole_second() {
        let bearing = bearing(3, Duration::ZERO);
        let second = Duration::from_secs(1);
        assert_eq!(bearing.wait(), None);
        bearing.throttled(second);
        bearing.throttled(second / 2);
        assert_eq!(bearing.wait(), Some(second), "the longer one");
        sleep(second).await;
        assert_eq!(bearing.wait(), None);
        bearing.throttled(Duration::MAX);
        assert_eq!(bearing.wait(), Some(LONGEST_WAIT));
        let restarted = super::tests::bearing(3, Duration::ZERO);
        restarted.resume(&bearing.learned());
        assert!(restarted.wait().is_some_and(|wait| wait + second > LONGEST_WAIT), "{:?}", restarted.wait());
    }

    #[tokio::test(start_paused = true)]
    async fn pressure_that_comes_from_many_requests_at_once_counts_once() {
        let bearing = bearing(8, Duration::from_millis(300));
        let pace = || (bearing.pace().parallel, bearing.pace().spacing);
        assert_eq!(pace(), (8, Duration::from_millis(300)), "the chain's profile");
        (0..8).for_each(|_| bearing.pressed());
        assert_eq!(pace(), (4, Duration::from_millis(600)));
        sleep(PRESS_EVERY).await;
        bearing.pressed();
        assert_eq!(pace(), (2, Duration::from_millis(1_200)));
        for _ in 0..100 {
            let _places = join_all((0..pace().0).map(|_| bearing.place())).await;
            bearing.served();
        }
        assert!(pace().0 > 8 && pace().1 < Duration::from_millis(1));
        for _ in 0..100 {
            sleep(PRESS_EVERY).await;
            bearing.pressed();
        }
        assert_eq!(pace(), (1, MOST_SPACING));
    }
}
