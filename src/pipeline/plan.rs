//! **Plan** the ranges still missing.
//!
//! A pure function of what is done, what is busy, where the head is, and the limits. Nothing else decides what is left
//! to do (I3): a lost notification, a restart, a gap, a backfill and a set-back by hand are one case.
//!
//! The gap policy (contract §4), with `gap = head - tip - 1`:
//!
//! | gap | what happens |
//! | --- | --- |
//! | below 0 | nothing new; holes below the tip are filled |
//! | 0 | the new block at once |
//! | 1 to 5 | the missing blocks first, in order, then the new block |
//! | 6 or more | the new block first; once it is delivered the rest is a gap for the historical track |

use crate::domain::{BlockRange, IntervalSet, REALTIME_GAP, signed};

/// Everything that the plan depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    /// Every block at or below it is delivered.
    pub watermark: i64,
    /// The highest delivered block.
    pub tip: i64,
    /// Delivered intervals above the watermark.
    pub done: &'a IntervalSet,
    /// The highest block that may be delivered.
    pub head: u64,
    /// The highest block that is final; `None` while there is none.
    pub final_height: Option<u64>,
    /// Ranges that this process works on, that someone else holds, or that are left alone for now.
    pub busy: &'a IntervalSet,
    /// Of these, the ranges that are left alone because they failed again and again.
    pub failing: &'a IntervalSet,
    /// Most blocks in one historical range.
    pub batch_blocks: u64,
    /// Ranges that the historical track may begin now.
    pub historical_slots: usize,
    /// Most intervals that `done` may have; beyond it nothing is begun above the lowest hole.
    pub max_intervals: usize,
}

/// What to begin now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The block that the realtime track takes next.
    pub realtime: Option<u64>,
    /// Ranges for the historical track, ascending: at or below the final height in batches, above it block by block.
    pub historical: Vec<BlockRange>,
}

/// What is left to do, and in which order.
#[must_use]
pub(super) fn plan(now: &Situation<'_>) -> Plan {
    let (realtime, behind) = split_tracks(now);
    let crowded = now.done.len() >= now.max_intervals;
    let behind = behind.into_iter().take(if crowded { 1 } else { usize::MAX });
    Plan {
        realtime: realtime.filter(|_| !crowded),
        historical: behind.flat_map(|hole| batches(now, hole)).take(now.historical_slots).collect(),
    }
}

/// The next block of the realtime track, and the holes that belong to the historical one.
fn split_tracks(now: &Situation<'_>) -> (Option<u64>, Vec<BlockRange>) {
    let is_near = |hole: &BlockRange| signed(hole.from) >= now.tip.saturating_sub(signed(REALTIME_GAP));
    let (near, behind): (Vec<_>, Vec<_>) = missing(now, now.tip.min(signed(now.head))).into_iter().partition(is_near);
    let first_new = unsigned(now.tip.saturating_add(1));
    let (first, last) = match newest(now).filter(|head| *head >= first_new) {
        None => (None, None),
        Some(head) if head - first_new <= REALTIME_GAP => (None, BlockRange::new(first_new, head)),
        Some(head) => (Some(BlockRange::single(head)), None),
    };
    let mut in_order = first.into_iter().chain(near).chain(last);
    let next = in_order.find_map(|hole| (hole.from..=hole.to).find(|number| !now.busy.contains(*number)));
    (next, behind)
}

/// The newest block that does not fail: one that no node can serve holds up nothing, as if the chain ended below it.
fn newest(now: &Situation<'_>) -> Option<u64> {
    (0..=now.head).rev().find(|number| !now.failing.contains(*number))
}

/// The holes between the watermark and `up_to`.
fn missing(now: &Situation<'_>, up_to: i64) -> Vec<BlockRange> {
    let first = unsigned(now.watermark.saturating_add(1));
    let within = u64::try_from(up_to).ok().and_then(|to| BlockRange::new(first, to));
    within.map(|within| now.done.missing(within).collect()).unwrap_or_default()
}

/// The parts of a hole that nobody is busy with, cut into what one claim takes. The cuts lie on a grid, so that
/// replicas that look at different moments still name the same ranges.
fn batches<'a>(now: &'a Situation<'_>, hole: BlockRange) -> impl Iterator<Item = BlockRange> + 'a {
    let batch = now.batch_blocks.max(1);
    now.busy.missing(hole).flat_map(move |free| {
        let mut next = Some(free.from);
        std::iter::from_fn(move || {
            let from = next.filter(|from| *from <= free.to)?;
            let to = match now.final_height {
                Some(height) if from <= height => (from - from % batch + (batch - 1)).min(free.to).min(height),
                _ => from,
            };
            next = to.checked_add(1);
            BlockRange::new(from, to)
        })
    })
}

/// Nothing is below block 0.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(from: u64, to: u64) -> BlockRange {
        BlockRange { from, to }
    }

    struct Case {
        watermark: i64,
        tip: i64,
        done: Vec<BlockRange>,
        head: u64,
        busy: Vec<BlockRange>,
        failing: Vec<BlockRange>,
    }

    fn check(case: Case, realtime: Option<u64>, historical: &[BlockRange]) {
        let done: IntervalSet = case.done.into_iter().collect();
        let busy: IntervalSet = case.busy.into_iter().collect();
        let planned = plan(&Situation {
            watermark: case.watermark,
            tip: case.tip,
            done: &done,
            head: case.head,
            final_height: case.head.checked_sub(8),
            busy: &busy,
            failing: &case.failing.into_iter().collect(),
            batch_blocks: 100,
            historical_slots: 3,
            max_intervals: 10,
        });
        assert_eq!(planned, Plan { realtime, historical: historical.to_vec() });
    }

    fn caught_up(tip: i64, head: u64) -> Case {
        Case { watermark: tip, tip, done: vec![], head, busy: vec![], failing: vec![] }
    }

    #[test]
    fn without_a_gap_the_new_block_is_next() {
        check(caught_up(100, 101), Some(101), &[]);
    }

    #[test]
    fn one_to_five_missing_blocks_come_first() {
        check(caught_up(100, 104), Some(101), &[]);
        check(caught_up(100, 106), Some(101), &[]);
    }

    #[test]
    fn from_six_missing_blocks_on_the_head_comes_first_and_alone() {
        check(caught_up(100, 107), Some(107), &[]);
        check(caught_up(100, 120), Some(120), &[]);
    }

    #[test]
    fn once_the_head_is_delivered_the_rest_is_history() {
        let case =
            Case { watermark: 100, tip: 120, done: vec![range(120, 120)], head: 120, busy: vec![], failing: vec![] };
        // 112 is final, above it history goes block by block.
        check(case, None, &[range(101, 112), range(113, 113), range(114, 114)]);
    }

    #[test]
    fn history_goes_in_batches_on_a_grid_around_what_is_busy() {
        let case = Case {
            watermark: 149,
            tip: 5_000,
            done: vec![range(450, 5_000)],
            head: 5_000,
            busy: vec![range(200, 299)],
            failing: vec![],
        };
        check(case, None, &[range(150, 199), range(300, 399), range(400, 449)]);
    }

    #[test]
    fn holes_right_below_the_tip_belong_to_the_realtime_track() {
        let case =
            Case { watermark: 116, tip: 120, done: vec![range(118, 120)], head: 121, busy: vec![], failing: vec![] };
        check(case, Some(117), &[]);
    }

    #[test]
    fn behind_a_large_gap_the_head_comes_before_a_hole_near_the_tip() {
        let case =
            Case { watermark: 116, tip: 120, done: vec![range(118, 120)], head: 130, busy: vec![], failing: vec![] };
        check(case, Some(130), &[]);
    }

    #[test]
    fn a_held_block_is_passed_over_and_stays_missing() {
        check(Case { busy: vec![range(101, 101)], ..caught_up(100, 103) }, Some(102), &[]);
        check(Case { busy: vec![range(101, 103)], ..caught_up(100, 103) }, None, &[]);
    }

    #[test]
    fn behind_a_large_gap_a_head_that_fails_holds_up_nothing() {
        let alone = || vec![range(119, 120)];
        check(Case { busy: alone(), failing: alone(), ..caught_up(100, 120) }, Some(118), &[]);
        check(Case { busy: alone(), ..caught_up(100, 120) }, None, &[]);
    }

    #[test]
    fn a_head_below_the_tip_is_no_work_and_no_panic() {
        check(caught_up(100, 90), None, &[]);
        check(caught_up(100, 100), None, &[]);
    }

    #[test]
    fn block_zero_is_a_block() {
        check(caught_up(-1, 0), Some(0), &[]);
        check(caught_up(-1, 3), Some(0), &[]);
    }

    #[test]
    fn with_too_many_intervals_only_the_lowest_hole_is_filled() {
        let done = (0..10).map(|n| range(200 + 10 * n, 200 + 10 * n)).collect();
        let case = Case { watermark: 100, tip: 290, done, head: 300, busy: vec![], failing: vec![] };
        check(case, None, &[range(101, 199)]);
    }

    proptest! {
        /// Filling whatever is planned ends with everything delivered, never twice, never above the head.
        #[test]
        fn the_plan_always_ends_with_nothing_missing(
            watermark in -1i64..300, above in prop::collection::vec((0u64..400, 0u64..9), 0..12), head in 0u64..500,
            batch_blocks in 1u64..100, slots in 1usize..5, depth in 0u64..64, bad in prop::option::of(0u64..500),
        ) {
            let floor = unsigned(watermark + 1);
            let mut done: IntervalSet = above
                .into_iter()
                .map(|(from, extra)| range(floor + 1 + from, floor + 1 + from + extra))
                .filter(|interval| interval.to <= head)
                .collect();
            // One block that always fails waits alone, and holds up nothing else.
            let bad = bad.filter(|number| !done.contains(*number)).map(BlockRange::single);
            let busy: IntervalSet = bad.into_iter().collect();
            for _round in 0..2_000 {
                let tip = done.iter().next_back().map_or(watermark, |last| signed(last.to)).max(watermark);
                let planned = plan(&Situation {
                    watermark, tip, done: &done, head, final_height: head.checked_sub(depth), busy: &busy, failing: &busy,
                    batch_blocks, historical_slots: slots, max_intervals: usize::MAX,
                });
                if planned == Plan::default() {
                    break;
                }
                let all = planned.historical.iter().copied().chain(planned.realtime.map(BlockRange::single));
                for part in all {
                    prop_assert!(part.to <= head && signed(part.from) > watermark && part.blocks() <= batch_blocks.max(1));
                    prop_assert!((part.from..=part.to).all(|number| !done.contains(number)), "{} twice", part);
                    done.insert(part);
                }
            }
            let rest: Vec<BlockRange> = BlockRange::new(floor, head).map(|all| done.missing(all).collect()).unwrap_or_default();
            let left: Vec<BlockRange> = bad.into_iter().filter(|bad| (floor..=head).contains(&bad.from)).collect();
            prop_assert_eq!(rest, left);
        }
    }
}
