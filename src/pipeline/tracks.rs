//! The loop: looks at the state and the head, begins what the plan says, and waits for whatever changes either.
//!
//! Two tracks share it. The realtime track has a slot of its own and takes one block at a time, in order; the historical
//! track asks for ranges side by side, as many as the provider bears, so that it never delays the head. Whatever
//! fails is simply still missing when the loop looks again; a pause keeps that from being at once.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    Context, Ended, Job, Look, Picture, Processed, Situation, Slots, StageError, View,
    pauses::{self, Pauses},
    persist, plan, process, rescan, seal, unwind,
    unwind::Footing,
};
use crate::{
    domain::{BlockRange, IntervalSet, Track, signed},
    mutants::{Mutant, planted},
    rpc::{Pace, RpcError},
    store::{MAX_DONE_INTERVALS, Progress, Snapshot, StoreError},
    telemetry::metrics,
};

/// The loop looks at least this often, whatever happens.
const TICK: Duration = Duration::from_secs(1);
/// Of the grace period, what is kept for giving back claims and closing down.
const CLOSING: Duration = Duration::from_secs(3);
/// Longest time that giving back all claims may take.
const RETIRE_WITHIN: Duration = Duration::from_secs(1);
/// What became final is sealed at most this often.
const SEAL_EVERY: Duration = Duration::from_secs(2);
/// Without an open duty the store is asked for one this often.
const RESCAN_EVERY: Duration = Duration::from_secs(3);

/// One unit of work in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Range(Track, BlockRange),
    Seal,
    Unwind,
    Rescan,
}

/// What came of it.
enum Finished {
    Range(Processed),
    Sealed,
    Looked(Look),
    /// Whether there was anything to look at again.
    Rescanned(bool),
}

pub(super) struct Tracks {
    ctx: Arc<Context>,
    views: watch::Receiver<Option<View>>,
    until: Option<u64>,
    tasks: JoinSet<(Work, Result<Finished, StageError>)>,
    in_flight: Vec<Work>,
    slots: Slots,
    picture: Picture,
    pauses: Pauses,
    footing: Footing,
    next_seal: Instant,
    next_rescan: Instant,
    pub(super) watermark: i64,
    /// Nothing more is delivered by this process.
    halted: bool,
    /// Nothing more is delivered by anyone, until an operator says so.
    frozen: bool,
}

impl Tracks {
    pub(super) fn new(ctx: Arc<Context>, views: watch::Receiver<Option<View>>, until: Option<u64>) -> Self {
        Self {
            ctx,
            views,
            until,
            tasks: JoinSet::new(),
            in_flight: Vec::new(),
            slots: Slots::new(),
            picture: Picture::new(),
            pauses: Pauses::new(),
            footing: Footing::default(),
            next_seal: Instant::now(),
            next_rescan: Instant::now(),
            watermark: -1,
            halted: false,
            frozen: false,
        }
    }

    pub(super) async fn turn(&mut self, stop: CancellationToken) -> Ended {
        loop {
            self.ctx.vitals.beat();
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => Some(Ended::Stopped),
                ended = self.round() => ended,
            };
            if let Some(ended) = ended {
                return ended;
            }
            let now = Instant::now();
            let wake = self.pauses.next(now).unwrap_or(now + TICK).min(now + TICK);
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
                () = self.slots.freed() => None,
                () = sleep_until(wake) => None,
            };
            if let Some(ended) = finished.and_then(|finished| self.settle(finished)) {
                return ended;
            }
        }
    }

    /// Looks at the state and the head, and begins what the plan says. Nothing is begun before its awaits, so it may be
    /// dropped there.
    async fn round(&mut self) -> Option<Ended> {
        let view = self.views.borrow_and_update().clone()?;
        if self.halted {
            self.give_up_claims().await;
            return None;
        }
        if !self.pauses.state.is_over(Instant::now()) {
            return None;
        }
        let snapshot = match self.state(&view).await {
            Ok(snapshot) => snapshot,
            Err(StoreError::Transient(_)) => return None,
            Err(error) => return Some(Ended::Unusable(error)),
        };
        self.tell(&snapshot);
        if self.is_reached(&snapshot.progress) {
            return Some(Ended::Reached);
        }
        if self.is_frozen(snapshot.progress.frozen.as_deref()).await {
            return None;
        }
        if planted(Mutant::SealBlind) {
            self.begin_seal(view.clone(), &snapshot);
        }
        // Nothing new is begun before it is known what it stands on, and what to filter with.
        if !self.stands(&view, &snapshot) || self.ctx.filters.now().is_err() {
            return None;
        }
        self.begin_ranges(&view, &snapshot);
        metrics::claims_held(self.ranges().count());
        self.begin_rescan(&view);
        self.begin_seal(view, &snapshot);
        None
    }

    /// The state to plan from: the picture of it, or a new reading where the picture is old or in doubt, and where what
    /// follows is more than a plan.
    async fn state(&mut self, view: &View) -> Result<Snapshot, StoreError> {
        if let Some(known) = self.picture.current(Instant::now()).cloned() {
            let looks = !self.in_flight.contains(&Work::Unwind) && !self.footing.holds(&view.head, &known);
            if !looks && !self.is_reached(&known.progress) {
                return Ok(known);
            }
        }
        let read = self.picture.read(&self.ctx).await;
        match &read {
            Ok(_) => self.pauses.state.succeeded(),
            Err(_) => self.pauses.state.failed(None),
        }
        read
    }

    /// Whether everything that was asked for is delivered.
    fn is_reached(&self, progress: &Progress) -> bool {
        progress.retracting == 0 && self.until.is_some_and(|until| progress.watermark >= signed(until))
    }

    fn begin_ranges(&mut self, view: &View, snapshot: &Snapshot) {
        let depth = self.ctx.chain.finality_depth;
        let Some(head) = view.heights.deliverable(self.ctx.deliver, depth) else { return };
        let now = Instant::now();
        self.pauses.forget_past(now);
        let failing: IntervalSet = self.pauses.failing().collect();
        let ours = self.ranges().map(|(_, range)| range);
        let busy: IntervalSet = ours.chain(self.pauses.held()).chain(failing.iter()).collect();
        let begun = self.ranges().filter(|(track, _)| *track == Track::Historical).count();
        let profile = Pace { parallel: self.ctx.chain.parallel, spacing: self.ctx.chain.spacing };
        let pace = self.ctx.source.pace().unwrap_or(profile);
        let realtime_free = self.pauses.realtime_free(now) && !self.ranges().any(|(track, _)| track == Track::Realtime);
        let planned = plan(&Situation {
            watermark: snapshot.progress.watermark,
            tip: snapshot.progress.tip,
            done: &snapshot.done,
            head: self.until.map_or(head, |until| head.min(until)),
            final_height: view.heights.final_height(depth),
            busy: &busy,
            failing: &failing,
            batch_blocks: self.ctx.chain.batch_blocks,
            historical_slots: self.pauses.historical_slots(now, self.slots.room(pace.parallel, begun), pace),
            max_intervals: MAX_DONE_INTERVALS,
        });
        metrics::stage_seconds("plan", now.elapsed().as_secs_f64());
        if let Some(number) = planned.realtime.filter(|_| realtime_free) {
            self.begin(Track::Realtime, BlockRange::single(number), view);
        }
        for range in planned.historical {
            self.begin(Track::Historical, range, view);
            self.pauses.historical_begun(now, pace);
        }
    }

    /// The ranges that are being worked on.
    fn ranges(&self) -> impl Iterator<Item = (Track, BlockRange)> + '_ {
        self.in_flight.iter().filter_map(|work| match work {
            Work::Range(track, range) => Some((*track, *range)),
            Work::Seal | Work::Unwind | Work::Rescan => None,
        })
    }

    fn begin(&mut self, track: Track, range: BlockRange, view: &View) {
        let (ctx, view) = (self.ctx.clone(), view.clone());
        let work = Work::Range(track, range);
        self.in_flight.push(work);
        let job = Job { track, range, slot: self.slots.take(track) };
        let processed = async move { (work, process(&ctx, job, &view).await.map(Finished::Range)) };
        self.ctx.threads.spawn((track, range), &mut self.tasks, processed);
    }

    fn begin_seal(&mut self, view: View, snapshot: &Snapshot) {
        let height = view.heights.final_height(self.ctx.chain.finality_depth);
        let sealed = snapshot.progress.sealed;
        let due = height.is_some_and(|height| signed(height) > sealed) && Instant::now() >= self.next_seal;
        if !due || self.in_flight.contains(&Work::Seal) {
            return;
        }
        self.next_seal = Instant::now() + SEAL_EVERY;
        self.in_flight.push(Work::Seal);
        let ctx = self.ctx.clone();
        self.tasks.spawn(async move { (Work::Seal, seal(&ctx, &view).await.map(|()| Finished::Sealed)) });
    }

    /// Looks again for what joined the filter, while nothing waits at the head.
    fn begin_rescan(&mut self, view: &View) {
        let waits = self.in_flight.contains(&Work::Rescan) || self.ranges().any(|(track, _)| track == Track::Realtime);
        if waits || Instant::now() < self.next_rescan || !self.pauses.rescan.is_over(Instant::now()) {
            return;
        }
        self.in_flight.push(Work::Rescan);
        let (ctx, view) = (self.ctx.clone(), view.clone());
        self.tasks.spawn(async move { (Work::Rescan, rescan::work(&ctx, &view).await.map(Finished::Rescanned)) });
    }

    /// What a finished task means for the next rounds.
    fn settle(&mut self, finished: Result<(Work, Result<Finished, StageError>), JoinError>) -> Option<Ended> {
        let (work, outcome) = match finished {
            Ok(finished) => finished,
            Err(aborted) if aborted.is_cancelled() && (self.halted || self.frozen) => return None,
            Err(died) => return Some(Ended::Broken(format!("a task died: {died}"))),
        };
        let is_historical = matches!(work, Work::Range(Track::Historical, _));
        let is_forgotten = planted(Mutant::FailureForgotten) && is_historical && outcome.is_err();
        self.in_flight.retain(|other| *other != work || is_forgotten);
        match outcome {
            Ok(finished) => {
                self.succeeded(work, &finished);
                None
            }
            Err(error) => self.failed(work, &error),
        }
    }

    fn succeeded(&mut self, work: Work, finished: &Finished) {
        match (work, finished) {
            (Work::Range(_, range), Finished::Range(Processed::Committed(_, reached))) => {
                self.picture.committed(range, *reached);
            }
            // What is sealed, or found to be complete, changes nothing that is planned.
            (_, Finished::Sealed | Finished::Rescanned(_)) => {}
            // Others deliver, too, or blocks were taken back.
            (_, Finished::Range(_) | Finished::Looked(_)) => self.picture.doubt(),
        }
        if let Finished::Looked(look) = finished {
            match look {
                Look::Doubt(_) => self.pauses.unwinding.failed(None),
                Look::Firm(_) | Look::Again => self.pauses.unwinding.succeeded(),
            }
            self.footing.found(*look);
        }
        if let Finished::Rescanned(more) = finished {
            self.pauses.rescan.succeeded();
            self.next_rescan = Instant::now() + if *more { Duration::ZERO } else { RESCAN_EVERY };
        }
        let Work::Range(track, range) = work else { return };
        if let Finished::Range(Processed::Held(blocks, until)) = finished {
            metrics::claim_busy();
            self.pauses.hold(*blocks, *until);
            return;
        }
        if let Finished::Range(Processed::Committed(Some(block), _)) = finished {
            self.footing.grew(*block);
        }
        self.pauses.succeeded(track, range);
        if track == Track::Historical {
            self.ctx.vitals.historical_done(range);
        }
    }

    fn failed(&mut self, work: Work, error: &StageError) -> Option<Ended> {
        self.picture.doubt();
        match error {
            StageError::Halt(reason) => {
                self.halt(reason);
                return None;
            }
            StageError::Store(error) if !matches!(error, StoreError::Transient(_)) => {
                return Some(Ended::Unusable(error.clone()));
            }
            StageError::Again(_) => {}
            StageError::Conflict(reason) => {
                info!(?work, reason, "what is journaled is held against the chain");
                self.footing.shake();
            }
            StageError::Rpc(RpcError::Behind(_)) if matches!(work, Work::Range(Track::Realtime, _)) => {}
            StageError::Rpc(RpcError::Throttled { .. }) if !self.is_news(work) => {
                debug!(?work, %error, "not finished; it stays missing and is tried again");
            }
            other => warn!(?work, error = %other, "not finished; it stays missing and is tried again"),
        }
        let wait = pauses::asked_for(error);
        match work {
            Work::Seal => self.next_seal = Instant::now() + pauses::LONGEST.max(wait.unwrap_or_default()),
            Work::Unwind => self.pauses.unwinding.failed(wait),
            Work::Rescan => self.pauses.rescan.failed(wait),
            Work::Range(track, range) => {
                self.pauses.failed(track, range, error);
            }
        }
        None
    }

    /// Whether it is the first time since this work was done last that it is throttled.
    fn is_news(&mut self, work: Work) -> bool {
        match work {
            Work::Range(track, _) => self.pauses.of(track).is_news(),
            Work::Unwind => self.pauses.unwinding.is_news(),
            Work::Rescan => self.pauses.rescan.is_news(),
            Work::Seal => true,
        }
    }

    /// Whether everything that was delivered is known to be on the chain of the newest head, and nothing is left to be
    /// taken back; begins to look where it is not.
    fn stands(&mut self, view: &View, snapshot: &Snapshot) -> bool {
        let progress = &snapshot.progress;
        if self.in_flight.contains(&Work::Unwind) {
            return false;
        }
        if progress.retracting == 0 && self.footing.holds(&view.head, snapshot) {
            return true;
        }
        if self.pauses.unwinding.is_over(Instant::now()) {
            self.in_flight.push(Work::Unwind);
            let (ctx, head, progress) = (self.ctx.clone(), view.head, progress.clone());
            let (thorough, believed) = (self.footing.begin(), self.footing.believed());
            self.tasks.spawn(async move {
                (Work::Unwind, unwind(&ctx, &head, &progress, thorough, believed).await.map(Finished::Looked))
            });
        }
        false
    }

    /// Whether nothing may be delivered because the chain was reorganised below what was sealed; what was begun is
    /// given up, and taken up again once an operator accepted it.
    async fn is_frozen(&mut self, reason: Option<&str>) -> bool {
        match reason {
            Some(reason) => {
                if !self.frozen {
                    error!(reason, "frozen: nothing is delivered until `chaintap resume --accept-reorg`");
                    self.frozen = true;
                    self.tasks.abort_all();
                }
                self.ctx
                    .vitals
                    .halt(Some(&format!("{reason}; look at the chain, then `chaintap resume --accept-reorg`")));
            }
            None if self.frozen && self.in_flight.is_empty() => {
                warn!("an operator accepted the reorganisation: deliveries go on");
                self.frozen = false;
                self.footing.shake();
                self.ctx.vitals.halt(None);
            }
            None => {}
        }
        if self.frozen {
            self.give_up_claims().await;
        }
        self.frozen
    }

    fn halt(&mut self, reason: &str) {
        if !self.halted {
            error!(reason, "nothing more is delivered until this is mended and the process started again");
            self.halted = true;
            self.tasks.abort_all();
            // The first reason is the cause; what follows is its consequence.
            self.ctx.vitals.halt(Some(reason));
        }
    }

    fn tell(&mut self, snapshot: &Snapshot) {
        let progress = &snapshot.progress;
        self.watermark = progress.watermark;
        self.ctx.vitals.progress(progress.watermark, progress.tip, &snapshot.done);
    }

    /// Lets what is in flight finish within the grace period, then gives back every claim.
    pub(super) async fn drain(&mut self) {
        self.ctx.vitals.draining();
        let grace = self.ctx.limits.grace;
        let patience = grace.saturating_sub(CLOSING.min(grace / 2));
        let finishing = async {
            while !matches!(timeout(TICK, self.tasks.join_next()).await, Ok(None)) {
                self.ctx.vitals.beat();
            }
        };
        if timeout(patience, finishing).await.is_err() {
            warn!(tasks = self.tasks.len(), "not finished within the grace period; the claims are released");
        }
        self.tasks.shutdown().await;
        self.retire().await;
    }

    /// After a halt nothing here will finish what was aborted, but another replica may not have to halt.
    async fn give_up_claims(&mut self) {
        if self.tasks.is_empty() && !self.in_flight.is_empty() && self.retire().await {
            self.in_flight.clear();
        }
    }

    async fn retire(&self) -> bool {
        let retiring = persist(&self.ctx, "retire", RETIRE_WITHIN, || self.ctx.store.retire());
        let late = |_| Err(StoreError::Transient("the store did not answer in time".into()));
        let retired = timeout(RETIRE_WITHIN, retiring).await.unwrap_or_else(late);
        if let Err(error) = &retired {
            warn!(%error, "claims not released; they run out by themselves");
        }
        retired.is_ok()
    }
}
