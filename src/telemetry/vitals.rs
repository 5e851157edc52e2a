//! The cached facts behind `/health`, `/livez` and `/readyz`: stages and edges write, the HTTP endpoints read.
//!
//! Invariants: writing takes a lock for a moment and never waits on anything else; ages are measured with a monotonic
//! clock, so that a corrected wall clock neither raises nor silences an alarm; every text is scrubbed and cut, so that
//! the answers stay small and hold no secret, whatever a server sends as an error. Where a fact has a gauge, it is set here too, so that `/metrics`
//! tells the same story. What the facts mean is judged in [`verdict`].

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};

use super::{
    facts::{EdgeFacts, Facts, SeenHead, SeenProgress, SeenProvider},
    health::{self, Health},
    metrics, scrub,
    verdict::{self, Check},
};
use crate::domain::{BlockRange, Header, IntervalSet};

/// How often a waiting process says that it lives.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Longest text kept of a reason or a note, in characters.
const MAX_TEXT: usize = 300;

/// A part of the process that can fail and recover on its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Edge {
    /// The state store, as it answers whatever is asked of it.
    Store,
    /// The state store's way to journal and commit, which may be shut (no replica acknowledges, the disk is full) while
    /// the store answers all else: one thing with [`Store`](Self::Store), which is unusable while either fails.
    Journal,
    /// The token directory.
    Tokens,
    /// One RPC endpoint, by its name.
    Provider(String),
    /// One sink, by its name, as it takes messages.
    Sink(String),
    /// One sink, by its name, as it answers when it is asked whether it is there: never clears a failure to take
    /// messages, and does not count from the moment on at which it took some.
    Probe(String),
}

/// What this process is; everything that `/health` needs to know beforehand.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// The chain's id.
    pub chain_id: u64,
    /// The service name, as in the store's views.
    pub service: String,
    /// Expected time between blocks: tells a stalled head from a slow one.
    pub block_time: Duration,
    /// The kind of state store: `redis` or `embedded`.
    pub store: &'static str,
    /// Names of the providers in order of preference; one of them must be usable.
    pub providers: Vec<String>,
    /// Names of the required sinks; all of them must be usable.
    pub sinks: Vec<String>,
    /// How often the token list is read again; `None` where token filtering is off and no list is required.
    pub token_refresh: Option<Duration>,
}

/// Tells the time; replaced in tests.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Facts about this process, written by whoever knows them; cheap to write, never blocking.
pub struct Vitals {
    pub(super) profile: Profile,
    clock: Clock,
    facts: Mutex<Facts>,
}

impl fmt::Debug for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vitals").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Default for Vitals {
    /// Of a process without a name, providers or sinks: for those who only need somewhere to write.
    fn default() -> Self {
        Self::new(Profile::default())
    }
}

impl Vitals {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self::with_clock(profile, Arc::new(Instant::now))
    }

    /// As [`new`](Self::new), told the time by `clock`.
    #[must_use]
    pub fn with_clock(profile: Profile, clock: Clock) -> Self {
        let facts = Mutex::new(Facts::new(&profile, clock()));
        Self { profile, clock, facts }
    }

    /// The loop is alive; called in every round, and in every round of waiting at the start.
    pub fn beat(&self) {
        let now = (self.clock)();
        self.facts().beat = Some(now);
    }

    /// Beats until it is dropped, beside whoever waits for a server: its absence is no reason for a restart.
    pub async fn beat_on(&self) -> Infallible {
        loop {
            self.beat();
            sleep(BEAT_EVERY).await;
        }
    }

    /// The newest head, and the highest block that may be delivered now.
    pub fn head(&self, head: &Header, deliverable: Option<u64>) {
        let now = (self.clock)();
        let born = SystemTime::UNIX_EPOCH + Duration::from_secs(head.timestamp.min(u64::from(u32::MAX)));
        let age = SystemTime::now().duration_since(born).unwrap_or(Duration::ZERO);
        let mut facts = self.facts();
        facts.head = Some(SeenHead { header: *head, age, at: now });
        facts.deliverable = deliverable;
        metrics::head(head.number, head.timestamp, deliverable);
        facts.lag().into_iter().for_each(metrics::lag);
    }

    /// The newest block that one provider tells of.
    pub fn provider_head(&self, provider: &str, number: u64) {
        self.facts().provider_heads.insert(provider.to_owned(), number);
        metrics::provider_head(provider, number);
    }

    /// How one provider stands among the others.
    pub fn provider(&self, provider: &str, seen: &SeenProvider) {
        let unknown_messages = seen.unknown_messages.iter().map(|text| cut(text)).collect();
        let seen = SeenProvider { aside: seen.aside.as_deref().map(cut), unknown_messages, ..*seen };
        self.facts().providers.insert(provider.to_owned(), seen);
    }

    /// Progress as the store has it: watermark, tip, and what is done between them.
    pub fn progress(&self, watermark: i64, tip: i64, done: &IntervalSet) {
        let seen = SeenProgress::sum_up(watermark, tip, done);
        let mut facts = self.facts();
        facts.progress = Some(seen);
        metrics::progress(watermark, tip);
        metrics::gaps(seen.gaps, seen.missing);
        facts.lag().into_iter().for_each(metrics::lag);
    }

    /// The historical track delivered a range.
    pub fn historical_done(&self, range: BlockRange) {
        let now = (self.clock)();
        self.facts().historical.add(range, now);
    }

    /// An edge answered, or failed with a reason, at once.
    pub fn edge(&self, edge: Edge, outcome: Result<(), &str>) {
        self.answer(edge, (self.clock)(), outcome);
    }

    /// What an edge answered to a question of the moment `asked`. A failure counts from then on: a server that hangs
    /// is of no use while it is waited for.
    pub fn answer(&self, edge: Edge, asked: Instant, outcome: Result<(), &str>) {
        let now = (self.clock)();
        let mut facts = self.facts();
        let Some(known) = facts.edge_mut(edge.clone()) else { return };
        match outcome {
            Ok(()) => (known.answered, known.failing_since) = (Some(now), None),
            Err(reason) => {
                let since = known.answered.map_or(asked, |answered| answered.max(asked));
                known.failing_since.get_or_insert(since);
                known.reason = cut(reason);
                known.errors += 1;
            }
        }
        let healthy = |known: EdgeFacts| known.failing_since.is_none();
        match edge {
            Edge::Store | Edge::Journal => metrics::store_healthy(healthy(facts.store())),
            Edge::Provider(name) => metrics::provider_healthy(&name, outcome.is_ok()),
            Edge::Sink(name) | Edge::Probe(name) => metrics::sink_healthy(&name, healthy(facts.sink(&name))),
            Edge::Tokens if outcome.is_err() => metrics::token_refresh_failed(),
            Edge::Tokens => {}
        }
    }

    /// What makes acknowledged writes of the state store survive, in its words.
    pub fn durability(&self, words: String) {
        self.facts().durability = Some(words);
    }

    /// Messages waiting for a sink right now.
    pub fn queued(&self, sink: &str, messages: usize) {
        self.facts().queued.insert(sink.to_owned(), messages);
        metrics::sink_queued(sink, messages);
    }

    /// The number of tracked tokens, just loaded; `None` says that filtering is off.
    pub fn tokens(&self, tracked: Option<usize>) {
        let now = (self.clock)();
        self.facts().tokens = tracked.map(|count| (count, now));
        tracked.into_iter().for_each(metrics::tokens);
    }

    /// Number of dead letters.
    pub fn dead_letters(&self, count: u64) {
        self.facts().dead_letters = count;
        metrics::dead_letters(count);
    }

    /// Nothing more is delivered; the reason. `None`: it goes on.
    pub fn halt(&self, reason: Option<&str>) {
        self.facts().halted = reason.map(cut);
    }

    /// Blocks that were delivered left the chain and were unwound: so many, by number.
    pub fn reorganised(&self, blocks: u64) {
        self.facts().reorgs += 1;
        metrics::reorganised(blocks);
    }

    /// Something an operator should know that stops nothing (an edited view, a weak durability): replaces what was
    /// said under the same key; `None` takes it back.
    pub fn note(&self, key: &'static str, text: Option<String>) {
        let mut facts = self.facts();
        match text {
            Some(text) => facts.notes.insert(key, cut(&text)),
            None => facts.notes.remove(key),
        };
    }

    /// Everything is wired and the work begins.
    pub fn started(&self) {
        self.facts().started = true;
    }

    /// The process is about to stop: not ready from now on.
    pub fn draining(&self) {
        self.facts().draining = true;
    }

    /// What `/health` answers.
    #[must_use]
    pub fn health(&self) -> Health {
        let now = (self.clock)();
        health::body(&self.profile, &self.facts(), now)
    }

    /// What `/readyz` looks at, one check for each thing that must be usable.
    #[must_use]
    pub fn readiness(&self) -> Vec<Check> {
        let now = (self.clock)();
        verdict::readiness(&self.profile, &self.facts(), now)
    }

    /// Whether the loop still turns.
    ///
    /// # Errors
    ///
    /// A sentence that says for how long it has stood still.
    pub fn alive(&self) -> Result<(), String> {
        let now = (self.clock)();
        verdict::alive(&self.profile, &self.facts(), now)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Facts are plain values: whoever panicked while holding them left nothing half done.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reason may quote the words of a library, which may quote a URL with a key in it.
fn cut(text: &str) -> String {
    scrub(text).chars().take(MAX_TEXT).collect()
}
