//! When something that failed may be tried again.
//!
//! A track that fails waits as a whole, because most failures are of a server that all ranges need. A range that fails
//! again and again waits alone: a block that no provider can serve must not hold up the blocks behind it.

use std::{collections::BTreeMap, mem::replace, time::Duration};

use tokio::time::Instant;

use super::StageError;
use crate::{
    backoff::Backoff,
    domain::{BlockRange, Track},
    rpc::{Pace, RpcError},
    store::StoreError,
};

/// Longest pause.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// A range that failed this often in a row waits alone from then on.
const PATIENCE: u32 = 3;
/// Stubborn ranges that are remembered; beyond it the lowest are kept, because history goes upwards.
const REMEMBERED: usize = 1_000;

/// What waits, and until when.
pub(super) struct Pauses {
    /// Reading the state.
    pub(super) state: Pause,
    /// Looking what left the chain, and taking it back.
    pub(super) unwinding: Pause,
    /// Looking again for what joined the filter.
    pub(super) rescan: Pause,
    realtime: Pause,
    historical: Pause,
    /// When the next historical range may begin.
    next_start: Instant,
    /// Ranges that someone else holds, and until when they are left alone.
    held: Vec<(BlockRange, Instant)>,
    /// Ranges that failed again and again, and until when they are left alone.
    failing: Vec<(BlockRange, Instant)>,
    stubborn: Stubborn,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self {
            state: Pause::new(),
            unwinding: Pause::new(),
            rescan: Pause::new(),
            realtime: Pause::new(),
            historical: Pause::new(),
            next_start: Instant::now(),
            held: Vec::new(),
            failing: Vec::new(),
            stubborn: Stubborn::default(),
        }
    }

    /// The pause of a track.
    pub(super) fn of(&mut self, track: Track) -> &mut Pause {
        match track {
            Track::Realtime => &mut self.realtime,
            Track::Historical => &mut self.historical,
        }
    }

    /// Leaves a range to who holds it. No node was asked for it, so the next one need not wait: else a replica that finds the
    /// lowest ranges taken would come behind the one that took them for as long as that goes on.
    pub(super) fn hold(&mut self, range: BlockRange, until: Instant) {
        self.held.push((range, until));
        self.next_start = Instant::now();
    }

    /// The ranges that someone else holds.
    pub(super) fn held(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.held.iter().map(|(range, _)| *range)
    }

    /// The ranges that are left alone because they failed again and again.
    pub(super) fn failing(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.failing.iter().map(|(range, _)| *range)
    }

    pub(super) fn forget_past(&mut self, now: Instant) {
        self.held.retain(|(_, until)| *until > now);
        self.failing.retain(|(_, until)| *until > now);
    }

    pub(super) fn realtime_free(&self, now: Instant) -> bool {
        self.realtime.is_over(now)
    }

    /// How many historical ranges may begin now, where there is room for so many; one at a time while the pace asks for space
    /// between them.
    pub(super) fn historical_slots(&self, now: Instant, room: usize, pace: Pace) -> usize {
        if !self.historical.is_over(now) || now < self.next_start {
            return 0;
        }
        if pace.spacing < Duration::from_millis(1) { room } else { room.min(1) }
    }

    pub(super) fn historical_begun(&mut self, now: Instant, pace: Pace) {
        self.next_start = now + pace.spacing;
    }

    /// The next moment at which a pause ends.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let alone = self.held.iter().chain(&self.failing).map(|(_, until)| *until);
        let pauses = [&self.state, &self.unwinding, &self.rescan, &self.realtime, &self.historical];
        let pauses = pauses.map(|pause| pause.until);
        alone.chain(pauses).chain([self.next_start]).filter(|at| *at > now).min()
    }

    /// A range is finished.
    pub(super) fn succeeded(&mut self, track: Track, range: BlockRange) {
        self.stubborn.succeeded(range);
        self.of(track).succeeded();
    }

    /// A range failed: it waits, alone or with its whole track.
    pub(super) fn failed(&mut self, track: Track, range: BlockRange, error: &StageError) {
        let of_the_server =
            matches!(error, StageError::Rpc(RpcError::Throttled { .. }) | StageError::Store(StoreError::Transient(_)));
        let alone = self.stubborn.failed(range).filter(|_| !of_the_server);
        match alone {
            Some(until) => self.failing.push((range, until)),
            None => self.of(track).failed(asked_for(error)),
        }
    }
}

/// How long the endpoints ask to be left alone, where that is why something failed.
pub(super) fn asked_for(error: &StageError) -> Option<Duration> {
    let StageError::Rpc(RpcError::Throttled { retry_after, .. }) = error else { return None };
    *retry_after
}

/// One pause, which grows while failures follow one another.
pub(super) struct Pause {
    backoff: Backoff,
    until: Instant,
    /// That it was throttled was told since the last success.
    is_told: bool,
}

impl Pause {
    pub(super) fn new() -> Self {
        Self { backoff: Backoff::new(LONGEST), until: Instant::now(), is_told: false }
    }

    /// Waits before the next try, at least as long as someone asked for. What fails during a pause was begun before it: one
    /// outage fails every range in flight, and the pause does not grow with each of them.
    pub(super) fn failed(&mut self, at_least: Option<Duration>) {
        let now = Instant::now();
        let delay = if self.is_over(now) { self.backoff.next_delay() } else { Duration::ZERO };
        self.until = self.until.max(now + delay.max(at_least.unwrap_or_default()));
    }

    /// Whether this is the first time since the last success: what lasts is told once.
    pub(super) fn is_news(&mut self) -> bool {
        !replace(&mut self.is_told, true)
    }

    pub(super) fn succeeded(&mut self) {
        self.backoff.reset();
        self.is_told = false;
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }
}

/// The ranges that failed lately.
#[derive(Default)]
struct Stubborn {
    ranges: BTreeMap<BlockRange, (u32, Backoff)>,
}

impl Stubborn {
    /// Takes note of a failure; answers until when the range waits alone, once the patience with it is over.
    fn failed(&mut self, range: BlockRange) -> Option<Instant> {
        let (failures, backoff) = self.ranges.entry(range).or_insert_with(|| (0, Backoff::new(LONGEST)));
        *failures += 1;
        let delay = backoff.next_delay();
        let alone = (*failures > PATIENCE).then(|| Instant::now() + delay);
        while self.ranges.len() > REMEMBERED {
            self.ranges.pop_last();
        }
        alone
    }

    fn succeeded(&mut self, range: BlockRange) {
        self.ranges.remove(&range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_waits_alone_only_when_it_fails_again_and_again() {
        let (mut stubborn, range) = (Stubborn::default(), BlockRange::single(7));
        for _ in 0..PATIENCE {
            assert_eq!(stubborn.failed(range), None);
        }
        assert!(stubborn.failed(range).is_some());
        stubborn.succeeded(range);
        assert_eq!(stubborn.failed(range), None, "a success is a new beginning");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_during_a_pause_are_one_and_those_after_it_make_it_grow() {
        let (mut pause, begun) = (Pause::new(), Instant::now());
        (0..20).for_each(|_| pause.failed(None));
        assert!(
            !pause.is_over(begun) && pause.is_over(begun + Duration::from_millis(200)),
            "the first one, with jitter"
        );
        let asked = Duration::from_secs(3);
        pause.failed(Some(asked));
        pause.failed(None);
        assert_eq!(pause.until, begun + asked, "what was asked for is kept");
        for _ in 0..10 {
            tokio::time::sleep_until(pause.until).await;
            pause.failed(None);
        }
        assert!(!pause.is_over(Instant::now() + LONGEST - Duration::from_millis(1)));
    }

    #[tokio::test]
    async fn what_lasts_is_told_once_until_a_success() {
        let mut pause = Pause::new();
        let told: Vec<_> = (0..3).map(|_| pause.is_news()).collect();
        assert_eq!(told, [true, false, false]);
        pause.succeeded();
        assert!(pause.is_news());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut stubborn = Stubborn::default();
        for number in 0..2_000 {
            stubborn.failed(BlockRange::single(number));
        }
        assert_eq!(stubborn.ranges.len(), REMEMBERED);
    }
}
