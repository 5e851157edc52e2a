//! What one endpoint bears, learned from what it refused.
//!
//! Two caps on the blocks of a request stand side by side. The **structural** one is a rule of the node or of the plan: no
//! more than so many blocks, whatever is in them. It only tightens, what was refused once is not asked again, and after a
//! day it is forgotten, for plans change. The **density** one is about what is in the blocks: it halves at a refusal and
//! grows back. A suggested range is used once, and no cap is made of it. Besides: addresses a request, and requests in
//! flight by additive increase and multiplicative decrease, with a share that history leaves to the head.
//!
//! Pure: time is the caller's, in seconds since the Unix epoch. What was learned is one value, which can be stored and is
//! checked when it is read. What it does not do: send, wait, or choose between endpoints.

use std::time::Duration;

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};

use super::Cap;
use crate::domain::{BlockRange, Track};

/// A structural cap, and one of addresses, is forgotten so many seconds after it was last tightened.
const FORGOTTEN_AFTER: u64 = 24 * 60 * 60;
/// Refusals that the search for a structural cap may cost where the node does not tell it. From 100 blocks that is
/// enough for any cap: at most four down to one block, and what is left to come nearer to the cap from below.
const SEARCH: u8 = 5;
/// Requests in flight grow to this many times the chain profile's.
const GROWTH: u32 = 4;
/// One request in flight, in the unit that they are counted in: they grow by fractions.
const SLOT: u32 = 1_000;
/// One outage fails every request in flight: they are lowered at most once in so many seconds.
const PRESS_EVERY: u64 = 1;
/// Wait where a node throttles and does not say for how long.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait that a node may ask for.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// What is stored has this form; what has another is learned anew.
const VERSION: u16 = 1;

/// What the chain's profile allows, whatever an endpoint bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most blocks a request, at least 1.
    pub blocks: u64,
    /// Requests in flight at first, at least 1; they may grow to four times as many.
    pub parallel: usize,
}

/// What an endpoint may be asked for now, for `status` and `/health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Blocks a request, at least 1.
    pub blocks: u64,
    /// Addresses a request, at least 1; `None` where no cap is known.
    pub addresses: Option<usize>,
    /// Requests in flight, at least 1.
    pub in_flight: usize,
    /// It asked for a pause until then, seconds since the Unix epoch; `None` where it may be asked now.
    pub waits_until: Option<u64>,
}

/// Whether one more request may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Now,
    /// When one of those in flight has ended.
    Later,
    /// Not before this time, seconds since the Unix epoch.
    NotBefore(u64),
}

/// What one endpoint bears.
#[derive(Clone, Debug)]
pub struct Caps {
    bounds: Bounds,
    learned: Learned,
}

/// All that was learned of one endpoint, to be stored and read again with [`Caps::resume`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    version: u16,
    structural: Option<Structural>,
    /// The largest span that was answered, whatever was in it; 0 where none was.
    largest: u64,
    density: u64,
    addresses: Option<AddressCap>,
    /// In thousandths.
    slots: u32,
    pressed_at: u64,
    waits_until: u64,
}

/// The cap lies below `refused`, and not below the largest span that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Structural {
    /// Most blocks that are asked for.
    most: u64,
    /// The smallest span that was refused, or that the node said it would refuse.
    refused: u64,
    /// Refusals that this took.
    refusals: u8,
    since: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AddressCap {
    most: usize,
    since: u64,
}

impl Caps {
    /// Nothing is known of the endpoint yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let bounds = Bounds { blocks: bounds.blocks.max(1), parallel: bounds.parallel.max(1) };
        let learned = Learned {
            version: VERSION,
            structural: None,
            largest: 0,
            density: bounds.blocks,
            addresses: None,
            slots: slots(bounds.parallel),
            pressed_at: 0,
            waits_until: 0,
        };
        Self { bounds, learned }
    }

    /// Goes on with what was learned before a restart. What cannot be is learned anew, and of times that lie ahead of the
    /// clock no more is believed than if they were now.
    #[must_use]
    pub fn resume(bounds: Bounds, learned: &Learned, now: u64) -> Self {
        let mut caps = Self::new(bounds);
        if learned.version != VERSION {
            return caps;
        }
        let structural = learned.structural.filter(|cap| cap.is_possible(learned.largest));
        let addresses = learned.addresses.filter(|cap| cap.most >= 1);
        caps.learned = Learned {
            version: VERSION,
            structural: structural.map(|cap| Structural { since: cap.since.min(now), ..cap }),
            largest: learned.largest,
            density: learned.density.clamp(1, caps.bounds.blocks),
            addresses: addresses.map(|cap| AddressCap { since: cap.since.min(now), ..cap }),
            slots: learned.slots.clamp(SLOT, caps.most_slots()),
            pressed_at: learned.pressed_at.min(now),
            waits_until: learned.waits_until.min(now.saturating_add(LONGEST_WAIT.as_secs())),
        };
        caps.forget(now);
        caps
    }

    /// What is to be stored.
    #[must_use]
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// What the endpoint may be asked for.
    #[must_use]
    pub fn allowance(&self, now: u64) -> Allowance {
        let structural = self.learned.structural.filter(|cap| !is_over(cap.since, now));
        let blocks = structural.map_or(self.learned.density, |cap| cap.most.min(self.learned.density));
        let addresses = self.learned.addresses.filter(|cap| !is_over(cap.since, now));
        Allowance {
            blocks: blocks.clamp(1, self.bounds.blocks),
            addresses: addresses.map(|cap| cap.most),
            in_flight: self.in_flight(),
            waits_until: Some(self.learned.waits_until).filter(|until| *until > now),
        }
    }

    /// Whether a range of so many blocks was answered before: then another one is no try.
    #[must_use]
    pub fn is_tried(&self, blocks: u64) -> bool {
        blocks <= self.learned.largest
    }

    /// A range of so many blocks was answered.
    pub fn answered(&mut self, blocks: u64, now: u64) {
        self.forget(now);
        let learned = &mut self.learned;
        if blocks >= learned.density {
            let grown = learned.density.saturating_add(learned.density / 8).saturating_add(1);
            learned.density = grown.min(self.bounds.blocks);
        }
        match &mut learned.structural {
            // An answer to what it usually refuses (an old request, another node behind the URL) loosens nothing.
            Some(cap) if blocks >= cap.refused => {}
            Some(cap) => {
                learned.largest = learned.largest.max(blocks);
                if blocks >= cap.most {
                    cap.most = cap.next(learned.largest);
                }
            }
            None => learned.largest = learned.largest.max(blocks),
        }
        self.served();
    }

    /// Something else was answered: one more request in flight in a round of them.
    pub fn served(&mut self) {
        let more = SLOT * SLOT / self.learned.slots.max(SLOT);
        self.learned.slots = (self.learned.slots + more).min(self.most_slots());
    }

    /// A range was too large. Answers which part of it to ask for next, from its first block on: what the endpoint
    /// suggests, if that is clearly less, or what it bears now. Of a single block that block: it has to be asked for
    /// in another way or elsewhere.
    pub fn refused(&mut self, asked: BlockRange, cap: Cap, suggested: Option<BlockRange>, now: u64) -> BlockRange {
        self.forget(now);
        match cap {
            Cap::Blocks(told) => self.tighten(asked.blocks(), told, now),
            Cap::Density => self.learned.density = self.learned.density.min(asked.blocks() / 2).max(1),
        }
        let hint = suggested.filter(|range| is_clearly_less(*range, asked));
        let last = |blocks: u64| asked.from.saturating_add(blocks - 1).min(asked.to);
        // Not more than a cap that is known, whatever is suggested.
        let most = self.learned.structural.map_or(u64::MAX, |cap| cap.refused.saturating_sub(1).max(1));
        let blocks = hint.map_or_else(|| self.allowance(now).blocks, |range| range.blocks().min(most));
        let less = asked.blocks().saturating_sub(1).max(1);
        BlockRange { from: asked.from, to: last(blocks.min(less)) }
    }

    fn tighten(&mut self, asked: u64, told: Option<u64>, now: u64) {
        let learned = &mut self.learned;
        // A told cap that does not explain the refusal says nothing (dRPC names 10,000 where it refuses 1,000).
        let told = told.filter(|told| (1..asked).contains(told));
        let refused = told.map_or(asked, |told| told + 1);
        if learned.structural.is_some_and(|known| known.refused <= refused) {
            return; // Asked before the cap was known.
        }
        if learned.largest >= refused {
            learned.largest = 0; // The plan has changed since.
        }
        let refusals = learned.structural.map_or(0, |known| known.refusals).saturating_add(1);
        let mut cap = Structural { most: 1, refused, refusals, since: now };
        cap.most = told.unwrap_or_else(|| cap.next(learned.largest));
        learned.structural = Some(cap);
    }

    /// So many addresses, or topics, were too many in one request; `most` is what the endpoint says it takes.
    pub fn too_many_addresses(&mut self, asked: usize, most: Option<usize>, now: u64) {
        self.forget(now);
        let most = most.filter(|most| (1..asked).contains(most)).unwrap_or(asked / 2).max(1);
        if self.learned.addresses.is_none_or(|known| most < known.most) {
            self.learned.addresses = Some(AddressCap { most, since: now });
        }
    }

    /// The addresses of a filter in lists that the endpoint takes. No addresses mean any, and are one list.
    pub fn split<'a>(&self, addresses: &'a [Address], now: u64) -> impl Iterator<Item = &'a [Address]> {
        let most = self.allowance(now).addresses.unwrap_or(usize::MAX);
        let any = addresses.is_empty().then_some(addresses);
        any.into_iter().chain(addresses.chunks(most))
    }

    /// The endpoint asked for fewer requests: half as many, and none before `Retry-After`.
    pub fn throttled(&mut self, retry_after: Option<Duration>, now: u64) {
        let wait = retry_after.unwrap_or(SHORTEST_WAIT).min(LONGEST_WAIT);
        // Begun seconds count whole: the request after the wait must not come early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.learned.waits_until = self.learned.waits_until.max(now.saturating_add(seconds));
        self.pressed(now);
    }

    /// The endpoint did not answer in time, or failed under load: half as many requests.
    pub fn pressed(&mut self, now: u64) {
        if now < self.learned.pressed_at.saturating_add(PRESS_EVERY) {
            return;
        }
        self.learned.pressed_at = now;
        self.learned.slots = (self.learned.slots / 2).max(SLOT);
    }

    /// Whether one more request of this track may be sent, with so many of all tracks in flight. History leaves a quarter
    /// of them, at least one, to the head; where there is but one for history, the head has one beside it.
    #[must_use]
    pub fn room(&self, track: Track, in_flight: usize, now: u64) -> Room {
        if self.learned.waits_until > now {
            return Room::NotBefore(self.learned.waits_until);
        }
        let all = self.in_flight();
        let history = all.saturating_sub(all.div_ceil(4)).max(1);
        let most = match track {
            Track::Realtime => all.max(history + 1),
            Track::Historical => history,
        };
        if in_flight < most { Room::Now } else { Room::Later }
    }

    fn in_flight(&self) -> usize {
        usize::try_from(self.learned.slots / SLOT).unwrap_or(1).max(1)
    }

    fn most_slots(&self) -> u32 {
        slots(self.bounds.parallel).saturating_mul(GROWTH)
    }

    fn forget(&mut self, now: u64) {
        self.learned.structural = self.learned.structural.filter(|cap| !is_over(cap.since, now));
        self.learned.addresses = self.learned.addresses.filter(|cap| !is_over(cap.since, now));
    }
}

impl Structural {
    /// The next span to try, below what was refused: a third of it until something was answered, then the middle between
    /// the two, and as soon as that has cost enough refusals, what was answered.
    fn next(&self, largest: u64) -> u64 {
        let next = match largest {
            0 => self.refused / 3,
            _ if self.refusals >= SEARCH => largest,
            _ => largest + self.refused.saturating_sub(largest) / 2,
        };
        next.max(1)
    }

    fn is_possible(&self, largest: u64) -> bool {
        let is_below = self.most < self.refused || (self.most, self.refused) == (1, 1);
        self.most >= 1 && is_below && (largest < self.refused || largest == 0)
    }
}

/// Whether a suggested range may be asked for instead: it begins where ours did and is three quarters of it at most. Some
/// suggest ranges that are turned round, begin elsewhere, or are what they refused; steps of one block are none, either.
fn is_clearly_less(suggested: BlockRange, asked: BlockRange) -> bool {
    suggested.from == asked.from && suggested.to <= asked.to && suggested.blocks() <= asked.blocks() / 4 * 3
}

fn is_over(since: u64, now: u64) -> bool {
    now >= since.saturating_add(FORGOTTEN_AFTER)
}

fn slots(parallel: usize) -> u32 {
    u32::from(u16::try_from(parallel).unwrap_or(u16::MAX)) * SLOT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { blocks: 100, parallel: 3 };
    const NOW: u64 = 1_750_000_000;

    /// A plan that takes so many blocks a request.
    struct Plan {
        blocks: u64,
        tells: bool,
        refusals: Vec<u64>,
    }

    impl Plan {
        fn of(blocks: u64, tells: bool) -> Self {
            Self { blocks, tells, refusals: Vec::new() }
        }

        /// Reads so many ranges after one another, as a caller does.
        fn read(&mut self, caps: &mut Caps, ranges: u64, now: u64) {
            for _ in 0..ranges {
                let mut asked = BlockRange { from: 1_000, to: 999 + caps.allowance(now).blocks };
                loop {
                    if asked.blocks() <= self.blocks {
                        caps.answered(asked.blocks(), now);
                        break;
                    }
                    self.refusals.push(asked.blocks());
                    asked = caps.refused(asked, Cap::Blocks(self.tells.then_some(self.blocks)), None, now);
                }
            }
        }
    }

    #[test]
    fn a_plan_that_tells_its_cap_is_learned_by_one_refusal() {
        for blocks in [1, 5, 10, 50, 99] {
            let (mut caps, mut plan) = (Caps::new(BOUNDS), Plan::of(blocks, true));
            plan.read(&mut caps, 1_000, NOW);
            assert_eq!((plan.refusals, caps.allowance(NOW).blocks), (vec![100], blocks));
        }
    }

    #[test]
    fn a_plan_that_does_not_tell_is_learned_by_at_most_five_refusals() {
        let learned = |blocks| {
            let (mut caps, mut plan) = (Caps::new(BOUNDS), Plan::of(blocks, false));
            plan.read(&mut caps, 1_000, NOW);
            (plan.refusals, caps.allowance(NOW).blocks)
        };
        assert_eq!(learned(10), (vec![100, 33, 11], 10));
        assert_eq!(learned(5), (vec![100, 33, 11, 7, 6], 5));
        assert_eq!(learned(1), (vec![100, 33, 11, 3, 2], 1));
        assert_eq!(learned(50), (vec![100, 66, 57, 53, 51], 49));
        for blocks in 1..100 {
            let (refusals, found) = learned(blocks);
            assert!(refusals.len() <= 5 && found <= blocks && found * 2 > blocks, "{blocks}: {refusals:?}, {found}");
        }
    }

    #[test]
    fn a_cap_is_forgotten_a_day_after_it_was_last_tightened() {
        let (mut caps, mut plan) = (Caps::new(BOUNDS), Plan::of(10, true));
        plan.read(&mut caps, 5, NOW);
        caps.too_many_addresses(1_000, None, NOW);
        let before = NOW + FORGOTTEN_AFTER - 1;
        assert_eq!((caps.allowance(before).blocks, caps.allowance(before).addresses), (10, Some(500)));
        let later = NOW + FORGOTTEN_AFTER;
        assert_eq!((caps.allowance(later).blocks, caps.allowance(later).addresses), (100, None));
        plan.read(&mut caps, 5, later);
        assert_eq!(plan.refusals, [100, 100], "once a day");
    }

    #[test]
    fn a_told_cap_that_does_not_explain_the_refusal_is_not_believed() {
        let mut caps = Caps::new(BOUNDS);
        let asked = BlockRange { from: 1, to: 100 };
        assert_eq!(caps.refused(asked, Cap::Blocks(Some(10_000)), None, NOW), BlockRange { from: 1, to: 33 });
        assert_eq!(caps.refused(asked, Cap::Blocks(Some(5)), None, NOW), BlockRange { from: 1, to: 5 });
        assert_eq!(caps.refused(asked, Cap::Blocks(Some(50)), None, NOW), BlockRange { from: 1, to: 5 });
        assert_eq!(caps.allowance(NOW).blocks, 5, "it only tightens");
    }

    #[test]
    fn full_blocks_halve_the_span_and_full_sized_answers_bring_it_back() {
        let mut caps = Caps::new(BOUNDS);
        let asked = BlockRange { from: 1, to: 100 };
        assert_eq!(caps.refused(asked, Cap::Density, None, NOW), BlockRange { from: 1, to: 50 });
        caps.answered(49, NOW);
        assert_eq!(caps.allowance(NOW).blocks, 50, "not of full size");
        caps.answered(50, NOW);
        assert_eq!(caps.allowance(NOW).blocks, 57);
        (0..100).for_each(|_| caps.answered(100, NOW));
        assert_eq!(caps.allowance(NOW).blocks, 100);
        let one = BlockRange::single(7);
        assert_eq!(caps.refused(one, Cap::Density, None, NOW), one);
        assert_eq!(caps.refused(one, Cap::Blocks(None), None, NOW), one);
    }

    #[test]
    fn a_suggested_range_is_asked_for_only_where_it_is_clearly_less_of_ours() {
        let asked = BlockRange { from: 100, to: 199 };
        let next = |from, to, cap| Caps::new(BOUNDS).refused(asked, cap, Some(BlockRange { from, to }), NOW).to;
        assert_eq!(next(100, 120, Cap::Density), 120);
        assert_eq!(next(100, 174, Cap::Density), 174);
        for (from, to) in [(100, 175), (100, 199), (100, 500), (99, 120), (101, 120)] {
            assert_eq!(next(from, to, Cap::Density), 149, "{from}-{to}");
        }
        assert_eq!(next(100, 149, Cap::Blocks(Some(10))), 109, "not above a cap");
        let mut caps = Caps::new(BOUNDS);
        caps.refused(asked, Cap::Density, Some(BlockRange { from: 100, to: 101 }), NOW);
        assert_eq!(caps.allowance(NOW).blocks, 50, "no cap is made of it");
    }

    #[test]
    fn addresses_are_split_into_lists_that_it_takes_and_none_are_one_list() {
        let addresses = [Address::ZERO; 10];
        let lengths =
            |caps: &Caps, addresses: &[Address]| caps.split(addresses, NOW).map(<[_]>::len).collect::<Vec<_>>();
        let mut caps = Caps::new(BOUNDS);
        assert_eq!(lengths(&caps, &addresses), [10]);
        assert_eq!(lengths(&caps, &[]), [0]);
        caps.too_many_addresses(10, Some(20), NOW);
        assert_eq!(lengths(&caps, &addresses), [5, 5]);
        caps.too_many_addresses(10, Some(4), NOW);
        caps.too_many_addresses(10, Some(8), NOW);
        assert_eq!(lengths(&caps, &addresses), [4, 4, 2], "it only tightens");
        (0..10).for_each(|_| caps.too_many_addresses(1, Some(0), NOW));
        assert_eq!(lengths(&caps, &addresses).len(), 10);
        assert_eq!(lengths(&caps, &[]), [0]);
    }

    #[test]
    fn requests_in_flight_grow_by_one_a_round_and_halve_once_an_outage() {
        let mut caps = Caps::new(BOUNDS);
        assert_eq!(caps.allowance(NOW).in_flight, 3);
        (0..4).for_each(|_| caps.served());
        assert_eq!(caps.allowance(NOW).in_flight, 4);
        (0..10_000).for_each(|_| caps.served());
        assert_eq!(caps.allowance(NOW).in_flight, 12);
        (0..12).for_each(|_| caps.pressed(NOW));
        assert_eq!(caps.allowance(NOW).in_flight, 6);
        (1..10).for_each(|second| caps.pressed(NOW + second));
        assert_eq!(caps.allowance(NOW).in_flight, 1);
    }

    #[test]
    fn nothing_is_sent_before_the_wait_that_the_node_asked_for_is_over() {
        let mut caps = Caps::new(BOUNDS);
        caps.throttled(Some(Duration::from_millis(6_001)), NOW);
        caps.throttled(None, NOW);
        for track in [Track::Realtime, Track::Historical] {
            assert_eq!(caps.room(track, 0, NOW + 6), Room::NotBefore(NOW + 7));
            assert_eq!(caps.room(track, 0, NOW + 7), Room::Now);
        }
        assert_eq!(caps.allowance(NOW).waits_until, Some(NOW + 7));
        caps.throttled(Some(Duration::MAX), NOW);
        assert_eq!(caps.room(Track::Realtime, 0, NOW + 60), Room::Now);
    }

    #[test]
    fn what_contradicts_itself_or_has_another_version_is_learned_anew() {
        let mut caps = Caps::new(BOUNDS);
        caps.refused(BlockRange { from: 1, to: 100 }, Cap::Blocks(Some(10)), None, NOW);
        let learned = caps.learned().clone();
        let blocks = |learned: &Learned, now| Caps::resume(BOUNDS, learned, now).allowance(now).blocks;
        assert_eq!(blocks(&learned, NOW), 10);
        assert_eq!(blocks(&learned, NOW - 5), 10, "the clock was put back");
        assert_eq!(blocks(&learned, NOW + FORGOTTEN_AFTER), 100);
        assert_eq!(blocks(&Learned { version: 2, ..learned.clone() }, NOW), 100);
        for (most, refused) in [(0, 11), (11, 11), (20, 11)] {
            let structural = learned.structural.map(|cap| Structural { most, refused, ..cap });
            assert_eq!(blocks(&Learned { structural, ..learned.clone() }, NOW), 100, "{most} of {refused}");
        }
    }

    /// Something that happens to an endpoint.
    #[derive(Clone, Debug)]
    enum Happening {
        Answered(u64),
        Served,
        Refused(u64, Cap, Option<(u64, u64)>),
        TooMany(usize, Option<usize>),
        Throttled(Option<u64>),
        Pressed,
        Passes(u64),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let number = prop_oneof![0..200u64, any::<u64>()];
        let cap = prop_oneof![Just(Cap::Density), proptest::option::of(number.clone()).prop_map(Cap::Blocks)];
        prop_oneof![
            number.clone().prop_map(Happening::Answered),
            Just(Happening::Served),
            (1..200u64, cap, proptest::option::of((0..300u64, number.clone())))
                .prop_map(|(blocks, cap, hint)| Happening::Refused(blocks, cap, hint)),
            (any::<usize>(), any::<Option<usize>>()).prop_map(|(asked, most)| Happening::TooMany(asked, most)),
            any::<Option<u64>>().prop_map(Happening::Throttled),
            Just(Happening::Pressed),
            (0..100_000u64).prop_map(Happening::Passes),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_everything_stays_within_its_bounds_and_survives_a_restart(
            blocks in 1..1_000u64, parallel in 1..300usize, happenings in prop::collection::vec(happening(), 0..60)
        ) {
            let bounds = Bounds { blocks, parallel };
            let (mut caps, mut now) = (Caps::new(bounds), NOW);
            for happening in happenings {
                match happening {
                    Happening::Answered(blocks) => caps.answered(blocks, now),
                    Happening::Served => caps.served(),
                    Happening::Refused(blocks, cap, hint) => {
                        let asked = BlockRange { from: 100, to: 99 + blocks };
                        let next = caps.refused(asked, cap, hint.and_then(|(from, to)| BlockRange::new(from, to)), now);
                        prop_assert!(next.from == asked.from && next.to <= asked.to, "{} of {}", next, asked);
                        prop_assert!(blocks == 1 || next.blocks() < blocks, "{} is not less than {}", next, asked);
                        let refused = caps.learned.structural.map_or(u64::MAX, |cap| cap.refused);
                        prop_assert!(next.blocks() == 1 || next.blocks() < refused, "{} was refused", next);
                    }
                    Happening::TooMany(asked, most) => caps.too_many_addresses(asked, most, now),
                    Happening::Throttled(wait) => caps.throttled(wait.map(Duration::from_millis), now),
                    Happening::Pressed => caps.pressed(now),
                    Happening::Passes(seconds) => now += seconds,
                }
                let allowance = caps.allowance(now);
                prop_assert!((1..=blocks).contains(&allowance.blocks));
                prop_assert!((1..=4 * parallel).contains(&allowance.in_flight));
                prop_assert_ne!(allowance.addresses, Some(0));
                prop_assert!(allowance.waits_until.is_none_or(|until| until <= now + 60));
                let stored = serde_json::to_string(caps.learned()).unwrap();
                let resumed = Caps::resume(bounds, &serde_json::from_str(&stored).unwrap(), now);
                prop_assert_eq!(resumed.allowance(now), allowance);
            }
        }

        #[test]
        fn what_was_refused_is_never_asked_for_again_within_a_day(
            most in 1..1_000u64, blocks in 1..1_000u64, tells: bool, ranges in 1..200u64
        ) {
            let mut caps = Caps::new(Bounds { blocks: most, parallel: 1 });
            let mut plan = Plan::of(blocks, tells);
            plan.read(&mut caps, ranges, NOW);
            prop_assert!(plan.refusals.is_sorted_by(|a, b| a > b), "{:?}", plan.refusals);
            // A third each time is seven from a thousand.
            prop_assert!(plan.refusals.len() <= if tells { 1 } else { 7 }, "{:?}", plan.refusals);
            prop_assert!(caps.allowance(NOW).blocks <= blocks.max(1) || plan.refusals.is_empty() || ranges < 8);
        }

        #[test]
        fn full_blocks_are_read_whole_whatever_is_suggested(most in 1..200u64, full in 1..200u64, share in 0..100u64) {
            let mut caps = Caps::new(Bounds { blocks: most, parallel: 1 });
            let mut asked = BlockRange { from: 0, to: most - 1 };
            let mut refusals = 0;
            while asked.blocks() > full {
                let suggested = BlockRange { from: 0, to: asked.to * share / 99 };
                asked = caps.refused(asked, Cap::Density, Some(suggested), NOW);
                refusals += 1;
            }
            prop_assert!(refusals <= 20, "{} refusals", refusals);
        }

        #[test]
        fn history_always_leaves_room_for_the_head(parallel in 1..300usize, served in 0..2_000usize, seconds in 0..12u64) {
            let mut caps = Caps::new(Bounds { blocks: 1, parallel });
            (0..served).for_each(|_| caps.served());
            (0..seconds).for_each(|second| caps.pressed(NOW + second));
            let later = NOW + 1_000;
            let full = (0..=4 * parallel).find(|in_flight| caps.room(Track::Historical, *in_flight, later) == Room::Later).unwrap();
            prop_assert!(full >= 1);
            prop_assert_eq!(caps.room(Track::Realtime, full, later), Room::Now);
        }
    }
}
