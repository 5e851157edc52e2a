//! What one endpoint bears, learned from what it refused.
//!
//! Two caps on the blocks of a request stand side by side. The **structural** one is a rule of the node or of the plan: no
//! more than so many blocks, whatever is in them. It only tightens, what was refused once is not asked again, and after a
//! day it is forgotten, for plans change. The **density** one is about what is in the blocks: it halves at a refusal and
//! grows back. A suggested range is used once, and no cap is made of it. Besides: addresses a request,
//! and until when the endpoint wants to be left alone.
//!
//! Pure: time is the caller's, in seconds since the Unix epoch. What was learned is one value, which can be stored and is
//! checked when it is read. What it does not do: send, wait, or choose between endpoints.

use std::time::Duration;

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};

use super::Cap;
use crate::domain::BlockRange;

/// A structural cap, and one of addresses, is forgotten so many seconds after it was last tightened.
const FORGOTTEN_AFTER: u64 = 24 * 60 * 60;
/// Refusals that the search for a structural cap may cost where the node does not tell it. From 100 blocks that is
/// enough for any cap: at most four down to one block, and what is left to come nearer to the cap from below.
const SEARCH: u8 = 5;
/// Requests at once may grow to this many times those of the chain's profile.
const GROWTH: usize = 4;
/// Longest wait that a node may ask for.
pub(super) const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// What is stored has this form; what has another is learned anew.
const VERSION: u16 = 1;

/// What the chain's profile allows, whatever an endpoint bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most blocks a request, at least 1.
    pub blocks: u64,
    /// Requests for history that are sent at once at first, at least 1.
    pub parallel: usize,
    /// Time between the beginnings of two ranges of history at first.
    pub spacing: Duration,
}

impl Default for Bounds {
    /// Those of a chain of which nothing else is said.
    fn default() -> Self {
        Self { blocks: 100, parallel: 3, spacing: Duration::ZERO }
    }
}

/// What an endpoint may be asked for now, for `status` and `/health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Blocks a request, at least 1.
    pub blocks: u64,
    /// Addresses a request, at least 1; `None` where no cap is known.
    pub addresses: Option<usize>,
    /// Requests for history at once, at least 1.
    pub parallel: usize,
    /// It asked for a pause until then, seconds since the Unix epoch; `None` where it may be asked now.
    pub waits_until: Option<u64>,
}

/// What one endpoint bears.
#[derive(Clone, Debug)]
pub struct Caps {
    bounds: Bounds,
    learned: Learned,
    /// Requests for logs that were answered since it was last decided how many may be sent at once.
    answers: usize,
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
    /// Requests for history at once; older versions did not keep it.
    #[serde(default)]
    parallel: Option<usize>,
    /// Whether there ever were too many of them; older versions did not keep it.
    #[serde(default)]
    is_pressed: bool,
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
        let bounds = Bounds { blocks: bounds.blocks.max(1), parallel: bounds.parallel.max(1), ..bounds };
        let learned = Learned {
            version: VERSION,
            structural: None,
            largest: 0,
            density: bounds.blocks,
            addresses: None,
            parallel: None,
            is_pressed: false,
            waits_until: 0,
        };
        Self { bounds, learned, answers: 0 }
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
            parallel: learned.parallel.map(|parallel| parallel.clamp(1, caps.most_parallel())),
            is_pressed: learned.is_pressed,
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
            parallel: self.parallel(),
            waits_until: Some(self.learned.waits_until).filter(|until| *until > now),
        }
    }

    fn parallel(&self) -> usize {
        self.learned.parallel.unwrap_or(self.bounds.parallel)
    }

    fn most_parallel(&self) -> usize {
        self.bounds.parallel.saturating_mul(GROWTH)
    }

    /// A request for logs was answered: one more for history may be sent at once. That doubles them with every round of as
    /// many as may be sent, until they were too many for the first time; from then on there is one more for each round (slow
    /// start and congestion avoidance, RFC 5681).
    pub fn served(&mut self) {
        self.answers += 1;
        let round = if self.learned.is_pressed { self.parallel() } else { 1 };
        if self.answers >= round {
            self.answers = 0;
            self.learned.parallel = Some(self.parallel().saturating_add(1).min(self.most_parallel()));
        }
    }

    /// The endpoint asked for fewer requests, or did not answer one for history in time: half as many are sent at once.
    pub fn pressed(&mut self) {
        self.answers = 0;
        self.learned.is_pressed = true;
        self.learned.parallel = Some((self.parallel() / 2).max(1));
    }

    /// Whether a range of so many blocks was answered before: then another one is no try. Where nothing was ever refused for
    /// its size, twice as many are hardly one.
    #[must_use]
    pub fn is_tried(&self, blocks: u64) -> bool {
        let times = if self.learned.structural.is_none() { 2 } else { 1 };
        blocks <= self.learned.largest.saturating_mul(times)
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

    /// The endpoint asked for no request before `Retry-After`, a minute at most.
    pub fn throttled(&mut self, retry_after: Duration, now: u64) {
        let wait = retry_after.min(LONGEST_WAIT);
        // Begun seconds count whole: the request after the wait must not come early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.learned.waits_until = self.learned.waits_until.max(now.saturating_add(seconds));
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { blocks: 100, parallel: 3, spacing: Duration::ZERO };
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
    fn requests_at_once_grow_with_each_answer_until_the_first_pressure_and_then_by_one_a_round_and_are_kept() {
        let mut caps = Caps::new(BOUNDS);
        let parallel = |caps: &Caps| caps.allowance(NOW).parallel;
        assert_eq!(parallel(&caps), 3, "the chain's profile");
        (0..3).for_each(|_| caps.served());
        assert_eq!(parallel(&caps), 6, "twice as many after a round");
        (0..1_000).for_each(|_| caps.served());
        assert_eq!(parallel(&caps), 3 * GROWTH);
        caps.pressed();
        assert_eq!(parallel(&caps), 6);
        let kept = serde_json::to_string(caps.learned()).unwrap();
        let resumed = |bounds| Caps::resume(bounds, &serde_json::from_str(&kept).unwrap(), NOW);
        assert_eq!(parallel(&resumed(BOUNDS)), 6);
        assert_eq!(parallel(&resumed(Bounds { parallel: 1, ..BOUNDS })), GROWTH, "within what the profile allows");
        for mut caps in [caps.clone(), resumed(BOUNDS)] {
            (0..5).for_each(|_| caps.served());
            assert_eq!(parallel(&caps), 6, "a round is six now, also after a restart");
            caps.served();
            assert_eq!(parallel(&caps), 7);
            (0..6).for_each(|_| caps.served());
            assert_eq!(parallel(&caps), 7, "and then seven");
            (0..1_000).for_each(|_| caps.served());
            assert_eq!(parallel(&caps), 3 * GROWTH);
        }
        (0..9).for_each(|_| caps.pressed());
        assert_eq!(parallel(&caps), 1);
        let older = kept.replace(r#""parallel":6,"is_pressed":true,"#, "");
        assert_ne!(older, kept);
        let mut older = Caps::resume(BOUNDS, &serde_json::from_str(&older).unwrap(), NOW);
        assert_eq!(parallel(&older), 3, "what an older version kept is read");
        older.served();
        assert_eq!(parallel(&older), 4, "and it is not known to have been pressed");
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
    fn the_wait_that_the_node_asked_for_is_counted_in_whole_seconds_and_never_beyond_a_minute() {
        let mut caps = Caps::new(BOUNDS);
        caps.throttled(Duration::from_millis(6_001), NOW);
        caps.throttled(Duration::from_secs(1), NOW);
        assert_eq!(caps.allowance(NOW + 6).waits_until, Some(NOW + 7));
        assert_eq!(caps.allowance(NOW + 7).waits_until, None);
        caps.throttled(Duration::MAX, NOW);
        assert_eq!(caps.allowance(NOW + 59).waits_until, Some(NOW + 60));
        assert_eq!(caps.allowance(NOW + 60).waits_until, None);
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
        Refused(u64, Cap, Option<(u64, u64)>),
        TooMany(usize, Option<usize>),
        Throttled(u64),
        Passes(u64),
        Served(usize),
        Pressed,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let number = prop_oneof![0..200u64, any::<u64>()];
        let cap = prop_oneof![Just(Cap::Density), proptest::option::of(number.clone()).prop_map(Cap::Blocks)];
        prop_oneof![
            number.clone().prop_map(Happening::Answered),
            (1..200u64, cap, proptest::option::of((0..300u64, number.clone())))
                .prop_map(|(blocks, cap, hint)| Happening::Refused(blocks, cap, hint)),
            (any::<usize>(), any::<Option<usize>>()).prop_map(|(asked, most)| Happening::TooMany(asked, most)),
            any::<u64>().prop_map(Happening::Throttled),
            (0..100_000u64).prop_map(Happening::Passes),
            (0..9usize).prop_map(Happening::Served),
            Just(Happening::Pressed),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_everything_stays_within_its_bounds_and_survives_a_restart(
            blocks in 1..1_000u64, happenings in prop::collection::vec(happening(), 0..60)
        ) {
            let bounds = Bounds { blocks, ..BOUNDS };
            let (mut caps, mut now) = (Caps::new(bounds), NOW);
            for happening in happenings {
                match happening {
                    Happening::Answered(blocks) => caps.answered(blocks, now),
                    Happening::Refused(blocks, cap, hint) => {
                        let asked = BlockRange { from: 100, to: 99 + blocks };
                        let next = caps.refused(asked, cap, hint.and_then(|(from, to)| BlockRange::new(from, to)), now);
                        prop_assert!(next.from == asked.from && next.to <= asked.to, "{} of {}", next, asked);
                        prop_assert!(blocks == 1 || next.blocks() < blocks, "{} is not less than {}", next, asked);
                        let refused = caps.learned.structural.map_or(u64::MAX, |cap| cap.refused);
                        prop_assert!(next.blocks() == 1 || next.blocks() < refused, "{} was refused", next);
                    }
                    Happening::TooMany(asked, most) => caps.too_many_addresses(asked, most, now),
                    Happening::Throttled(wait) => caps.throttled(Duration::from_millis(wait), now),
                    Happening::Passes(seconds) => now += seconds,
                    Happening::Served(times) => (0..times).for_each(|_| caps.served()),
                    Happening::Pressed => caps.pressed(),
                }
                let allowance = caps.allowance(now);
                prop_assert!((1..=blocks).contains(&allowance.blocks));
                prop_assert_ne!(allowance.addresses, Some(0));
                prop_assert!((1..=3 * GROWTH).contains(&allowance.parallel));
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
            let mut caps = Caps::new(Bounds { blocks: most, ..BOUNDS });
            let mut plan = Plan::of(blocks, tells);
            plan.read(&mut caps, ranges, NOW);
            prop_assert!(plan.refusals.is_sorted_by(|a, b| a > b), "{:?}", plan.refusals);
            // A third each time is seven from a thousand.
            prop_assert!(plan.refusals.len() <= if tells { 1 } else { 7 }, "{:?}", plan.refusals);
            prop_assert!(caps.allowance(NOW).blocks <= blocks.max(1) || plan.refusals.is_empty() || ranges < 8);
        }

        #[test]
        fn full_blocks_are_read_whole_whatever_is_suggested(most in 1..200u64, full in 1..200u64, share in 0..100u64) {
            let mut caps = Caps::new(Bounds { blocks: most, ..BOUNDS });
            let mut asked = BlockRange { from: 0, to: most - 1 };
            let mut refusals = 0;
            while asked.blocks() > full {
                let suggested = BlockRange { from: 0, to: asked.to * share / 99 };
                asked = caps.refused(asked, Cap::Density, Some(suggested), NOW);
                refusals += 1;
            }
            prop_assert!(refusals <= 20, "{} refusals", refusals);
        }
    }
}
