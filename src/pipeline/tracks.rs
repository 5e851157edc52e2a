//! The loop: looks at the state and the head, begins what the plan says, and waits for whatever changes either.
//!
//! Two tracks share it. The realtime track has a slot of its own and takes one block at a time, in order; the historical
//! track takes ranges side by side, at the pace that the provider bears, so that it never delays the head. Whatever
//! fails is simply still missing when the loop looks again; a pause keeps that from being at once.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Context, Processed, Situation, StageError, View, commit, count_dead_letters, follow, persist, plan, process,
};
use crate::{
    backoff::{Backoff, Pace},
    domain::{BlockRange, IntervalSet, Track},
    rpc::{At, RpcError},
    store::{HEARTBEAT_EVERY, MAX_DONE_INTERVALS, Snapshot, Start, StoreError},
    telemetry::{Edge, metrics},
};

/// The loop looks at least this often, whatever happens.
const TICK: Duration = Duration::from_secs(1);
/// Longest pause of a track after failures.
const PAUSE: Duration = Duration::from_secs(5);
/// Dead letters, which commands of other processes take away, are counted with every so manieth heartbeat.
const DEAD_LETTERS_EVERY: u64 = 10;
/// What became final is sealed at most this often.
const SEAL_EVERY: Duration = Duration::from_secs(2);

/// Why the loop ended.
#[derive(Debug)]
pub enum Ended {
    /// It was asked to, and nothing is left in flight.
    Stopped,
    /// The watermark reached the block that was asked for.
    Reached,
    /// The state is not usable; the reason.
    Unusable(StoreError),
    /// An endpoint belongs to another chain.
    WrongChain(RpcError),
    /// A task panicked: the process must not go on with a part missing (F69).
    Broken(String),
}

/// Follows the chain until `stop`, or until the watermark is at `until`.
pub async fn run(ctx: Arc<Context>, start: Option<u64>, until: Option<u64>, stop: CancellationToken) -> Ended {
    let (publish, views) = watch::channel(None);
    let mut keepers = JoinSet::new();
    let (head_ctx, beat_ctx) = (ctx.clone(), ctx.clone());
    keepers.spawn(async move { follow::heads(&head_ctx, &publish).await });
    let begun = tokio::select! {
        biased;
        () = stop.cancelled() => Err(Ended::Stopped),
        begun = begin(&ctx, start) => begun,
        never = ctx.vitals.beat_on() => match never {},
    };
    if let Err(ended) = begun {
        keepers.shutdown().await;
        return ended;
    }
    keepers.spawn(async move { beat(&beat_ctx).await });
    ctx.vitals.started();
    let mut tracks = Tracks::new(ctx.clone(), views, until);
    let ended = tokio::select! {
        biased;
        ended = tracks.turn(stop) => ended,
        Some(died) = keepers.join_next() => Ended::Broken(format!("a keeper ended: {died:?}")),
    };
    tracks.drain().await;
    keepers.shutdown().await;
    ended
}

/// Opens the state; waits for the store and, where the start depends on it, for the node.
async fn begin(ctx: &Context, start: Option<u64>) -> Result<(), Ended> {
    let mut backoff = Backoff::new(PAUSE);
    loop {
        let asked = Instant::now();
        let opened = match verified_head(ctx).await {
            Ok(head) => ctx.store.init(start.map_or(Start::Latest(head), Start::At)).await,
            Err(error @ RpcError::WrongChain { .. }) => return Err(Ended::WrongChain(error)),
            Err(error) => {
                warn!(%error, "waiting for the node");
                backoff.wait(None).await;
                continue;
            }
        };
        match opened {
            Ok(state) => {
                ctx.vitals.edge(Edge::Store, Ok(()));
                let at = &state.progress;
                info!(watermark = at.watermark, tip = at.tip, fresh = state.fresh, "state opened");
                for edit in &state.edits {
                    warn!(edit, "an operator's edit is applied");
                }
                return Ok(());
            }
            Err(StoreError::Transient(reason)) => {
                warn!(reason, "waiting for the state store");
                ctx.vitals.answer(Edge::Store, asked, Err(&reason));
                backoff.wait(None).await;
            }
            Err(error) => return Err(Ended::Unusable(error)),
        }
    }
}

/// The head of the right chain.
async fn verified_head(ctx: &Context) -> Result<u64, RpcError> {
    let told = ctx.source.chain_id().await?;
    if told != ctx.chain.id {
        return Err(RpcError::WrongChain { endpoint: "the endpoint".into(), expected: ctx.chain.id, told });
    }
    let head = ctx.source.header(At::Latest).await?;
    head.map(|head| head.number).ok_or_else(|| RpcError::Behind("the node has no latest block".into()))
}

/// Says every few seconds that this process lives, so that its claims are taken over soon after it died.
async fn beat(ctx: &Context) {
    for beat in 0_u64.. {
        let asked = Instant::now();
        if beat.is_multiple_of(DEAD_LETTERS_EVERY) {
            count_dead_letters(ctx).await;
        }
        match ctx.store.heartbeat().await {
            Ok(()) => ctx.vitals.edge(Edge::Store, Ok(())),
            Err(error) => {
                metrics::heartbeat_failed();
                warn!(%error, "heartbeat not written");
                ctx.vitals.answer(Edge::Store, asked, Err(&error.to_string()));
            }
        }
        sleep(HEARTBEAT_EVERY).await;
    }
}

/// One unit of work in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Range(Track, BlockRange),
    Seal,
}

struct Tracks {
    ctx: Arc<Context>,
    views: watch::Receiver<Option<View>>,
    until: Option<u64>,
    tasks: JoinSet<(Work, Result<Option<Processed>, StageError>)>,
    in_flight: Vec<Work>,
    held: Vec<(BlockRange, Instant)>,
    /// Reading the state.
    state: Lane,
    realtime: Lane,
    historical: Lane,
    pace: Pace,
    next_start: Instant,
    next_seal: Instant,
    sealed: i64,
    halted: bool,
}

/// When something that failed may be tried again.
struct Lane {
    backoff: Backoff,
    not_before: Instant,
}

impl Lane {
    fn new() -> Self {
        Self { backoff: Backoff::new(PAUSE), not_before: Instant::now() }
    }

    fn failed(&mut self, at_least: Option<Duration>) {
        self.not_before = Instant::now() + self.backoff.next_delay().max(at_least.unwrap_or_default());
    }

    fn succeeded(&mut self) {
        self.backoff.reset();
    }
}

impl Tracks {
    fn new(ctx: Arc<Context>, views: watch::Receiver<Option<View>>, until: Option<u64>) -> Self {
        let now = Instant::now();
        let pace = Pace::new(ctx.chain.parallel, ctx.chain.spacing);
        Self {
            ctx,
            views,
            until,
            tasks: JoinSet::new(),
            in_flight: Vec::new(),
            held: Vec::new(),
            state: Lane::new(),
            realtime: Lane::new(),
            historical: Lane::new(),
            pace,
            next_start: now,
            next_seal: now,
            sealed: -1,
            halted: false,
        }
    }

    async fn turn(&mut self, stop: CancellationToken) -> Ended {
        loop {
            self.ctx.vitals.beat();
            if let Some(ended) = self.round().await {
                return ended;
            }
            let wake = self.wake_at();
            let finished = tokio::select! {
                biased;
                () = stop.cancelled() => return Ended::Stopped,
                Some(finished) = self.tasks.join_next() => Some(finished),
                changed = self.views.changed() => {
                    if changed.is_err() {
                        return Ended::Broken("nobody follows the head any more".into());
                    }
                    None
                }
                () = sleep_until(wake) => None,
            };
            if let Some(ended) = finished.and_then(|finished| self.settle(finished)) {
                return ended;
            }
        }
    }

    /// Looks at the state and the head, and begins what the plan says.
    async fn round(&mut self) -> Option<Ended> {
        let view = self.views.borrow_and_update().clone()?;
        if self.halted || Instant::now() < self.state.not_before {
            return None;
        }
        let asked = Instant::now();
        let snapshot = match self.ctx.store.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(StoreError::Transient(reason)) => {
                self.ctx.vitals.answer(Edge::Store, asked, Err(&reason));
                self.state.failed(None);
                return None;
            }
            Err(error) => return Some(Ended::Unusable(error)),
        };
        self.state.succeeded();
        self.tell(&snapshot, asked);
        if self.until.is_some_and(|until| snapshot.progress.watermark >= super::signed(until)) {
            return Some(Ended::Reached);
        }
        if let Some(reason) = &snapshot.progress.frozen {
            self.halt(reason);
            return None;
        }
        self.begin_ranges(&view, &snapshot);
        self.begin_seal(view, &snapshot);
        None
    }

    fn begin_ranges(&mut self, view: &View, snapshot: &Snapshot) {
        let depth = self.ctx.chain.finality_depth;
        let Some(head) = view.heights.deliverable(self.ctx.deliver, depth) else { return };
        let now = Instant::now();
        self.held.retain(|(_, until)| *until > now);
        let busy: IntervalSet = self.busy_ranges().collect();
        let final_height = view.heights.final_height(depth);
        let planned = plan(&Situation {
            watermark: snapshot.progress.watermark,
            tip: snapshot.progress.tip,
            done: &snapshot.done,
            head: self.until.map_or(head, |until| head.min(until)),
            final_height,
            busy: &busy,
            batch_blocks: self.ctx.chain.batch_blocks,
            historical_slots: self.historical_slots(now),
            max_intervals: MAX_DONE_INTERVALS,
        });
        let realtime_free = now >= self.realtime.not_before && !self.in_flight.iter().any(is_realtime);
        if let Some(number) = planned.realtime.filter(|_| realtime_free) {
            self.begin(Track::Realtime, BlockRange::single(number), final_height);
        }
        for range in planned.historical {
            self.begin(Track::Historical, range, final_height);
            self.next_start = now + self.pace.spacing();
        }
    }

    fn busy_ranges(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let ours = self.in_flight.iter().filter_map(|work| match work {
            Work::Range(_, range) => Some(*range),
            Work::Seal => None,
        });
        ours.chain(self.held.iter().map(|(range, _)| *range))
    }

    /// How many historical ranges may begin now; one at a time while the pace asks for space between them.
    fn historical_slots(&self, now: Instant) -> usize {
        if now < self.historical.not_before || now < self.next_start {
            return 0;
        }
        let used = self.in_flight.iter().filter(|work| matches!(work, Work::Range(Track::Historical, _))).count();
        let free = self.pace.parallel().saturating_sub(used);
        if self.pace.spacing() < Duration::from_millis(1) { free } else { free.min(1) }
    }

    fn begin(&mut self, track: Track, range: BlockRange, final_height: Option<u64>) {
        let ctx = self.ctx.clone();
        let work = Work::Range(track, range);
        self.in_flight.push(work);
        self.tasks.spawn(async move { (work, process(&ctx, track, range, final_height).await.map(Some)) });
    }

    fn begin_seal(&mut self, view: View, snapshot: &Snapshot) {
        let height = view.heights.final_height(self.ctx.chain.finality_depth);
        let sealed = snapshot.progress.sealed.max(self.sealed);
        let due = height.is_some_and(|height| super::signed(height) > sealed) && Instant::now() >= self.next_seal;
        if !due || self.in_flight.contains(&Work::Seal) {
            return;
        }
        self.next_seal = Instant::now() + SEAL_EVERY;
        self.in_flight.push(Work::Seal);
        let ctx = self.ctx.clone();
        self.tasks.spawn(async move { (Work::Seal, commit::seal(&ctx, &view).await.map(|()| None)) });
    }

    /// What a finished task means for the next rounds.
    fn settle(&mut self, finished: Result<(Work, Result<Option<Processed>, StageError>), JoinError>) -> Option<Ended> {
        let (work, outcome) = match finished {
            Ok(finished) => finished,
            Err(died) => return Some(Ended::Broken(format!("a task died: {died}"))),
        };
        self.in_flight.retain(|other| *other != work);
        match outcome {
            Ok(processed) => {
                self.succeeded(work, processed.as_ref());
                None
            }
            Err(error) => self.failed(work, &error),
        }
    }

    fn succeeded(&mut self, work: Work, processed: Option<&Processed>) {
        let Work::Range(track, range) = work else { return };
        match processed {
            Some(Processed::Held(blocks, until)) => {
                metrics::claim_busy();
                self.held.push((*blocks, *until));
            }
            Some(Processed::Committed) if track == Track::Historical => {
                self.historical.succeeded();
                self.pace.answered();
                self.ctx.vitals.historical_done(range);
            }
            _ => self.realtime.succeeded(),
        }
    }

    fn failed(&mut self, work: Work, error: &StageError) -> Option<Ended> {
        let wait = match error {
            StageError::Rpc(RpcError::Throttled { retry_after, .. }) => *retry_after,
            _ => None,
        };
        match error {
            StageError::Halt(reason) => {
                self.halt(reason);
                return None;
            }
            StageError::Store(error @ (StoreError::Fatal(_) | StoreError::Vanished(_))) => {
                return Some(Ended::Unusable(error.clone()));
            }
            StageError::Again(_) => {}
            StageError::Rpc(RpcError::Behind(_)) if is_realtime(&work) => {}
            other => warn!(?work, error = %other, "not finished; it stays missing and is tried again"),
        }
        match work {
            Work::Range(Track::Historical, _) => {
                if matches!(error, StageError::Rpc(RpcError::Throttled { .. } | RpcError::Transient(_))) {
                    self.pace.pressed();
                }
                self.historical.failed(wait);
            }
            Work::Range(Track::Realtime, _) => self.realtime.failed(wait),
            Work::Seal => self.next_seal = Instant::now() + PAUSE,
        }
        None
    }

    fn halt(&mut self, reason: &str) {
        if !self.halted {
            error!(reason, "nothing more is delivered until someone looks and restarts");
            self.halted = true;
            self.tasks.abort_all();
        }
        self.ctx.vitals.halt(reason);
    }

    fn tell(&mut self, snapshot: &Snapshot, asked: Instant) {
        let progress = &snapshot.progress;
        self.sealed = progress.sealed;
        // A store that is full answers questions and takes nothing.
        self.ctx.vitals.probed(Edge::Store, asked, Ok(()));
        self.ctx.vitals.progress(progress.watermark, progress.tip, &snapshot.done);
    }

    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let soonest = self.held.iter().map(|(_, until)| *until);
        let pauses = [self.state.not_before, self.realtime.not_before, self.historical.not_before, self.next_start];
        soonest.chain(pauses).filter(|at| *at > now).min().unwrap_or(now + TICK).min(now + TICK)
    }

    /// Lets what is in flight finish within the grace period, then gives back every claim.
    async fn drain(&mut self) {
        self.ctx.vitals.draining();
        let finishing = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(self.ctx.limits.grace, finishing).await.is_err() {
            warn!(tasks = self.tasks.len(), "not finished within the grace period; the claims are released");
        }
        self.tasks.shutdown().await;
        if let Err(error) = persist(&self.ctx, TICK, || self.ctx.store.retire()).await {
            warn!(%error, "claims not released; they run out by themselves");
        }
    }
}

fn is_realtime(work: &Work) -> bool {
    matches!(work, Work::Range(Track::Realtime, _))
}
