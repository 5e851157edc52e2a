//! The facts themselves: plain values with the moments they were learned at. Written by [`Vitals`](super::Vitals), read
//! by [`verdict`](super::verdict) and [`health`](super::health); nothing here knows what time it is.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::vitals::{Edge, Profile};
use crate::domain::{BlockRange, Header, IntervalSet, REALTIME_GAP};

/// Historical speed is measured over this time.
const RATE_WINDOW: Duration = Duration::from_mins(1);
/// Finer steps of the window than this are melted, which bounds its length.
const RATE_STEP: Duration = Duration::from_secs(1);
/// All facts, at one moment.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) born: Instant,
    pub(super) beat: Option<Instant>,
    pub(super) head: Option<SeenHead>,
    pub(super) deliverable: Option<u64>,
    pub(super) progress: Option<SeenProgress>,
    pub(super) historical: Historical,
    pub(super) edges: Vec<(Edge, EdgeFacts)>,
    pub(super) provider_heads: BTreeMap<String, u64>,
    pub(super) providers: BTreeMap<String, SeenProvider>,
    pub(super) queued: BTreeMap<String, usize>,
    pub(super) durability: Option<String>,
    pub(super) tokens: Option<(usize, Instant)>,
    pub(super) dead_letters: u64,
    pub(super) halted: Option<String>,
    /// Reorganisations that this process unwound.
    pub(super) reorgs: u64,
    pub(super) notes: BTreeMap<&'static str, String>,
    pub(super) started: bool,
    pub(super) draining: bool,
}

/// The newest head, and how old it was when it was seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeenHead {
    pub(super) header: Header,
    pub(super) age: Duration,
    pub(super) at: Instant,
}

/// Progress, with the gaps already summed up.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeenProgress {
    pub(super) watermark: i64,
    pub(super) tip: i64,
    pub(super) lowest_gap: Option<BlockRange>,
    pub(super) gaps: u64,
    pub(super) missing: u64,
}

/// What is known of one edge.
#[derive(Clone, Debug, Default)]
pub(super) struct EdgeFacts {
    pub(super) answered: Option<Instant>,
    pub(super) failing_since: Option<Instant>,
    pub(super) reason: String,
    pub(super) errors: u64,
}

/// How one provider stands among the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenProvider {
    /// Blocks that it was behind the best of the others when its head was last read.
    pub lag: Option<u64>,
    /// How often it had another block somewhere than most of the others.
    pub disagreements: u64,
    /// Why others are asked instead; `None` where it serves.
    pub aside: Option<String>,
    /// Blocks that one request to it may name, as far as that was learned; `None` before it is known.
    pub blocks: Option<u64>,
    /// Addresses that one request to it may name; `None` where no limit is known.
    pub addresses: Option<usize>,
    /// Requests for history that it bears at once.
    pub parallel: Option<usize>,
    /// Until when it asked to be left alone, seconds since the Unix epoch.
    pub waits_until: Option<u64>,
    /// What it said of late that is not understood, the oldest first.
    pub unknown_messages: Vec<String>,
}

/// What the historical track did in the last minute.
#[derive(Debug, Default)]
pub(super) struct Historical {
    pub(super) processed: Option<u64>,
    window: VecDeque<(Instant, u64)>,
}

impl Historical {
    /// A range was delivered.
    pub(super) fn add(&mut self, range: BlockRange, now: Instant) {
        self.processed = Some(range.to);
        while self.window.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW) {
            self.window.pop_front();
        }
        match self.window.back_mut() {
            Some((at, blocks)) if now.duration_since(*at) < RATE_STEP => *blocks += range.blocks(),
            _ => self.window.push_back((now, range.blocks())),
        }
    }

    /// Blocks per second over the last minute; `None` before there is enough to tell.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let mut steps = self.window.iter().filter(|(at, _)| now.duration_since(*at) <= RATE_WINDOW);
        // The first step's blocks were worked on before it; they only mark the beginning.
        let (first, _) = steps.next()?;
        let elapsed = now.duration_since(*first);
        let blocks: u64 = steps.map(|(_, blocks)| blocks).sum();
        #[allow(clippy::cast_precision_loss)] // block counts are far below 2^53
        (elapsed >= RATE_STEP).then(|| blocks as f64 / elapsed.as_secs_f64())
    }
}

impl Facts {
    pub(super) fn new(profile: &Profile, now: Instant) -> Self {
        let edges = std::iter::once(Edge::Store)
            .chain(profile.providers.iter().cloned().map(Edge::Provider))
            .chain(profile.sinks.iter().cloned().map(Edge::Sink));
        Self {
            born: now,
            beat: None,
            head: None,
            deliverable: None,
            progress: None,
            historical: Historical::default(),
            edges: edges.map(|edge| (edge, EdgeFacts::default())).collect(),
            provider_heads: BTreeMap::new(),
            providers: BTreeMap::new(),
            queued: BTreeMap::new(),
            durability: None,
            tokens: None,
            dead_letters: 0,
            halted: None,
            reorgs: 0,
            notes: BTreeMap::new(),
            started: false,
            draining: false,
        }
    }

    /// Deliverable blocks above the watermark; `None` before both are known.
    pub(super) fn lag(&self) -> Option<u64> {
        let deliverable = i64::try_from(self.deliverable?).ok()?;
        u64::try_from((deliverable - self.progress?.watermark).max(0)).ok()
    }

    /// The edges as they are judged: what is told of one thing through two channels is one.
    pub(super) fn judged(&self) -> Vec<(Edge, EdgeFacts)> {
        let one = |(edge, known): &(Edge, EdgeFacts)| {
            let judged = match edge {
                Edge::Journal | Edge::Probe(_) => return None,
                Edge::Store => self.store(),
                Edge::Sink(name) => self.sink(name),
                Edge::Provider(_) | Edge::Tokens => known.clone(),
            };
            Some((edge.clone(), judged))
        };
        self.edges.iter().filter_map(one).collect()
    }

    /// The state store: unusable while it does not answer, and while it does not journal or commit.
    pub(super) fn store(&self) -> EdgeFacts {
        let (store, journal) = (self.known(&Edge::Store), self.known(&Edge::Journal));
        let errors = store.errors + journal.errors;
        let failing = match (store.failing_since, journal.failing_since) {
            (Some(store), Some(journal)) => journal < store,
            (None, since) => since.is_some(),
            (Some(_), None) => false,
        };
        if failing {
            return EdgeFacts { answered: store.answered, errors, ..journal };
        }
        EdgeFacts { errors, ..store }
    }

    /// A sink: as it takes messages; as it answers, where it was not sent any since that began to fail.
    pub(super) fn sink(&self, name: &str) -> EdgeFacts {
        let (sent, probe) = (self.known(&Edge::Sink(name.to_owned())), self.known(&Edge::Probe(name.to_owned())));
        let answered = sent.answered.max(probe.answered);
        let missing = probe.failing_since.is_some_and(|since| sent.answered.is_none_or(|taken| taken < since));
        if sent.failing_since.is_none() && missing {
            return EdgeFacts { answered, errors: sent.errors, ..probe };
        }
        EdgeFacts { answered, ..sent }
    }

    /// What is known of an edge through this channel alone.
    pub(super) fn known(&self, edge: &Edge) -> EdgeFacts {
        self.edges.iter().find(|(known, _)| known == edge).map(|(_, facts)| facts.clone()).unwrap_or_default()
    }

    /// What is known of an edge, new or not.
    pub(super) fn edge_mut(&mut self, edge: Edge) -> Option<&mut EdgeFacts> {
        let known = self.edges.iter().position(|(known, _)| *known == edge);
        let place = known.unwrap_or_else(|| {
            self.edges.push((edge, EdgeFacts::default()));
            self.edges.len() - 1
        });
        self.edges.get_mut(place).map(|(_, facts)| facts)
    }
}

impl SeenProgress {
    /// Sums up the gaps between watermark and tip.
    pub(super) fn sum_up(watermark: i64, tip: i64, done: &IntervalSet) -> Self {
        let mut seen = Self { watermark, tip, lowest_gap: None, gaps: 0, missing: 0 };
        let (Ok(from), Ok(tip)) = (u64::try_from(watermark.saturating_add(1)), u64::try_from(tip)) else { return seen };
        let Some(between) = BlockRange::new(from, tip) else { return seen };
        // Holes closer below the tip belong to the realtime track and are no gaps.
        for gap in done.missing(between).filter(|gap| gap.from.saturating_add(REALTIME_GAP) < tip) {
            seen.lowest_gap.get_or_insert(gap);
            seen.gaps += 1;
            seen.missing += gap.blocks();
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_the_fastest_backfill_takes_little_memory_and_is_measured_rightly() {
        let (mut historical, start) = (Historical::default(), Instant::now());
        let at = |batch: u64| start + Duration::from_millis(batch * 10);
        for batch in 0..30_000 {
            historical.add(BlockRange { from: batch * 100, to: batch * 100 + 99 }, at(batch));
        }
        assert!(historical.window.len() <= 62, "{}", historical.window.len());
        let rate = historical.rate(at(30_000)).unwrap();
        assert!((9_600.0..=10_000.0).contains(&rate), "{rate}");
        assert_eq!(historical.rate(at(30_000) + RATE_WINDOW), None);
    }

    #[test]
    fn before_block_0_there_are_no_gaps() {
        let seen = SeenProgress::sum_up(-1, -1, &IntervalSet::default());
        assert_eq!((seen.lowest_gap, seen.gaps, seen.missing), (None, 0, 0));
        let done = [BlockRange { from: 50, to: 60 }].into_iter().collect();
        let seen = SeenProgress::sum_up(-1, 60, &done);
        assert_eq!((seen.lowest_gap, seen.gaps, seen.missing), (BlockRange::new(0, 49), 1, 50));
    }
}
