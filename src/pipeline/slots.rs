//! Slots of the historical track: how many ranges may begin beside those that are worked on.
//!
//! A slot stands for a range whose logs are not all there yet: it is free again with the last of them, so that the node has the
//! next request while these are decoded and delivered. Two bounds keep what is at hand small all the same: a few ranges may
//! wait behind a slow sink, and so many logs, counted also where they are only expected. What is not counted is what a log
//! weighs, which is the business of `RPC_MAX_BYTES`, and that an answer's room is free only with its last log.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::Track;

/// Ranges beyond the requests in flight that may be begun and not finished.
const BEHIND: usize = 2;
/// Most logs that history may have at hand, those of the requests in flight among them: at some 290 bytes a log 22 MB.
const MOST_LOGS: usize = 75_000;
/// Logs that an answer is expected to have while none is known; nodes seldom answer with more than 10,000.
const EXPECTED_AT_FIRST: usize = 8_000;
/// And at least, whatever the last ones had: contracts are quiet for long, and then are not.
const EXPECTED_AT_LEAST: usize = 1_000;

/// How many ranges of history are under way, and how much they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    /// Ranges of which not all logs are there yet.
    fetching: usize,
    /// Logs that were fetched and are not delivered.
    at_hand: usize,
    /// Logs that an answer is expected to have, by what the last ones had.
    expected: usize,
}

impl Load {
    /// How many ranges may begin beside these and the `begun` ones, which are not finished, while `parallel` requests may be in
    /// flight. One alone may always begin, or a single answer above the bound would end it all.
    fn room(self, parallel: usize, begun: usize) -> usize {
        let by_requests = parallel.saturating_sub(self.fetching);
        let by_ranges = parallel.saturating_add(BEHIND).saturating_sub(begun);
        let least = usize::from(begun == 0 && parallel > 0);
        by_requests.min(by_ranges).min(self.room_by_logs()).max(least)
    }

    /// Ranges for whose logs there is room.
    fn room_by_logs(self) -> usize {
        let expected = self.expected.max(1);
        let logs = self.at_hand.saturating_add(self.fetching.saturating_mul(expected));
        MOST_LOGS.saturating_sub(logs) / expected
    }

    /// An answer came. A larger one is expected again at once; smaller ones are believed little by little.
    fn came(&mut self, logs: usize) {
        self.at_hand = self.at_hand.saturating_add(logs);
        let fewer = self.expected - self.expected.saturating_sub(logs) / 4;
        self.expected = fewer.max(logs).max(EXPECTED_AT_LEAST);
    }
}

/// All slots of the historical track.
#[derive(Clone)]
pub(super) struct Slots {
    load: Arc<Mutex<Load>>,
    freed: Arc<Notify>,
}

impl Slots {
    pub(super) fn new() -> Self {
        let load = Load { fetching: 0, at_hand: 0, expected: EXPECTED_AT_FIRST };
        Self { load: Arc::new(Mutex::new(load)), freed: Arc::default() }
    }

    /// How many ranges may begin beside the `begun` ones, which are not finished, while `parallel` requests may be in flight.
    pub(super) fn room(&self, parallel: usize, begun: usize) -> usize {
        self.load().room(parallel, begun)
    }

    /// A slot for a range that begins; the realtime track has one of its own, which takes nothing of these.
    pub(super) fn take(&self, track: Track) -> Slot {
        let slots = Some(self.clone()).filter(|_| track == Track::Historical);
        self.load().fetching += usize::from(slots.is_some());
        Slot { is_fetching: slots.is_some(), slots, at_hand: 0 }
    }

    /// Waits until there may be more room. Waiters that gave up have missed nothing.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Wakes who waits only where there is room for one more range's logs: deliveries are too frequent to wake for each.
    fn change(&self, change: impl FnOnce(&mut Load)) {
        let mut load = self.load();
        let room = load.room_by_logs();
        change(&mut load);
        let is_more = load.room_by_logs() > room;
        drop(load);
        if is_more {
            self.freed.notify_one();
        }
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        // Each change is whole: a panic while the lock was held leaves numbers that can be used.
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot of one range, and the logs that it has at hand; given back with it, whatever became of the range.
pub(super) struct Slot {
    /// `None` for the realtime track.
    slots: Option<Slots>,
    is_fetching: bool,
    at_hand: usize,
}

impl Slot {
    /// An answer came, perhaps the last one of the range.
    pub(super) fn fetched(&mut self, logs: usize, is_last: bool) {
        let Some(slots) = &self.slots else { return };
        slots.change(|load| load.came(logs));
        self.at_hand = self.at_hand.saturating_add(logs);
        if is_last {
            self.free();
        }
    }

    /// Nothing more is asked for.
    fn free(&mut self) {
        let Some(slots) = self.slots.as_ref().filter(|_| self.is_fetching) else { return };
        self.is_fetching = false;
        let mut load = slots.load();
        load.fetching = load.fetching.saturating_sub(1);
        drop(load);
        slots.freed.notify_one();
    }

    /// So many logs are no longer at hand.
    pub(super) fn delivered(&mut self, logs: usize) {
        let logs = logs.min(self.at_hand);
        let Some(slots) = self.slots.as_ref().filter(|_| logs > 0) else { return };
        self.at_hand -= logs;
        slots.change(|load| load.at_hand = load.at_hand.saturating_sub(logs));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free();
        self.delivered(self.at_hand);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_may_begin_is_bounded_by_requests_by_ranges_and_by_logs() {
        let room =
            |parallel, begun, (fetching, at_hand, expected)| Load { fetching, at_hand, expected }.room(parallel, begun);
        for (parallel, begun, load, expected, why) in [
            (4, 0, (0, 0, 100), 4, "nothing is under way"),
            (4, 1, (1, 0, 100), 3, "one request is in flight"),
            (4, 4, (4, 0, 100), 0, "all are"),
            (4, 4, (3, 900, 100), 1, "one of them has its logs"),
            (4, 5, (3, 900, 100), 1, "so have two"),
            (4, 6, (3, 900, 100), 0, "too many wait to be delivered"),
            (4, 6, (0, 900, 100), 0, "also where nothing is in flight"),
            (2, 6, (4, 0, 100), 0, "the node bears less than before"),
            (0, 0, (0, 0, 100), 0, "nothing may be asked for"),
            (16, 0, (0, 0, 8_000), 9, "16 answers of 8,000 logs would be too many"),
            (16, 4, (4, 0, 8_000), 5, "those in flight count"),
            (16, 4, (0, 32_000, 8_000), 5, "as those that are there"),
            (16, 8, (4, 35_001, 8_000), 0, "one log too many"),
            (16, 8, (4, 35_000, 8_000), 1, "room for one"),
            (16, 1, (1, 0, 75_000), 0, "an answer may be as large as the bound"),
            (16, 0, (0, 0, 75_001), 1, "or larger: alone it may come all the same"),
            (16, 0, (0, 0, 0), 16, "empty answers cost nothing"),
        ] {
            assert_eq!(room(parallel, begun, load), expected, "{why}");
        }
    }

    #[test]
    fn a_large_answer_is_expected_again_at_once_and_forgotten_slowly() {
        let mut load = Load { fetching: 0, at_hand: 0, expected: EXPECTED_AT_FIRST };
        load.came(10_000);
        assert_eq!((load.at_hand, load.expected), (10_000, 10_000));
        load.came(0);
        assert_eq!((load.at_hand, load.expected), (10_000, 7_500));
        (0..100).for_each(|_| load.came(0));
        assert_eq!(load.expected, EXPECTED_AT_LEAST);
    }

    /// The ranges whose logs are still fetched, and the logs at hand.
    fn under_way(slots: &Slots) -> (usize, usize) {
        let load = *slots.load();
        (load.fetching, load.at_hand)
    }

    #[test]
    fn a_slot_is_free_once_the_last_logs_are_there_and_the_logs_once_they_are_delivered() {
        let slots = Slots::new();
        let mut slot = slots.take(Track::Historical);
        slot.fetched(30_000, false);
        assert_eq!((under_way(&slots), slots.freed().now_or_never()), ((1, 30_000), None), "more is to be asked for");
        slot.delivered(10_000);
        assert_eq!(slots.freed().now_or_never(), None, "of another 30,000 logs there is no room yet");
        slot.delivered(20_000);
        assert!(slots.freed().now_or_never().is_some());
        slot.fetched(30, true);
        assert!(slots.freed().now_or_never().is_some(), "the next range may begin");
        assert_eq!(under_way(&slots), (0, 30));
        slot.delivered(20);
        let expected = slots.load().expected;
        drop(slot);
        assert_eq!(under_way(&slots), (0, 0), "each counts once");
        assert_eq!(slots.load().expected, expected, "the end of a range is no answer");
    }

    #[test]
    fn smaller_answers_make_room_for_more() {
        let slots = Slots::new();
        let (mut empty, mut large) = (slots.take(Track::Historical), slots.take(Track::Historical));
        empty.fetched(0, false);
        assert!(slots.freed().now_or_never().is_some(), "fewer logs are expected of the others, too");
        large.fetched(60_000, false);
        assert_eq!(slots.freed().now_or_never(), None);
    }

    #[test]
    fn a_range_that_failed_gives_everything_back() {
        let slots = Slots::new();
        let (mut first, second) = (slots.take(Track::Historical), slots.take(Track::Historical));
        first.fetched(10, false);
        drop(second);
        assert_eq!(under_way(&slots), (1, 10));
        drop(first);
        assert_eq!(under_way(&slots), (0, 0));
        let mut realtime = slots.take(Track::Realtime);
        realtime.fetched(10, true);
        assert_eq!(under_way(&slots), (0, 0), "the realtime track takes none of it");
    }

    proptest! {
        #[test]
        fn what_is_begun_stays_within_the_bounds_unless_it_is_alone(
            parallel in 0_usize..40, begun in 0_usize..40, fetching in 0_usize..40,
            at_hand in 0_usize..100_000, expected in 0_usize..100_000,
        ) {
            let room = Load { fetching, at_hand, expected }.room(parallel, begun);
            if begun == 0 && room == 1 {
                return Ok(());
            }
            prop_assert!(room == 0 || fetching + room <= parallel);
            prop_assert!(room == 0 || begun + room <= parallel + BEHIND);
            prop_assert!(room == 0 || at_hand + (fetching + room) * expected <= MOST_LOGS);
        }
    }
}
