//! The store's edge: a real implementation of the protocol, replies that are late or lost, and the judge who sees every
//! effect that counts.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use alloy::primitives::B256;
use async_trait::async_trait;
use chaintap::{
    domain::{BlockRange, BlockRef, Digest, Event, MAX_BLOCK_NUMBER, Track},
    store::{
        Amend, AmendReply, BlockCommit, ClaimReply, CommitReply, DeadLetter, Duty, FinalCommit, Grant, Initialised,
        Intent, IntentReply, JournalEntry, Orphan, Publication, PublishReply, Published, ReplayReply, RewindReply,
        SealReply, Snapshot, Start, StateStore, StoreError,
    },
};
use tokio::time::sleep;

use crate::{
    faults::{Gate, Kind, Op, Strike},
    storage::Storage,
    world::World,
};

/// One answer may take so long.
const LIMIT: Duration = Duration::from_secs(5);

/// The store as one life of one replica sees it.
pub struct Journal {
    pub gate: Arc<Gate>,
    pub store: Witnessed,
}

/// The store itself, and the judge beside it.
#[derive(Clone)]
pub struct Witnessed {
    pub world: Arc<World>,
    pub inner: Arc<dyn StateStore>,
    pub storage: Storage,
}

/// An intent that outlives its caller.
#[derive(Clone)]
struct Owned {
    intent: (BlockRef, B256, u64, u64, Digest),
    events: Vec<Event>,
}

impl Owned {
    fn of(intent: &Intent<'_>) -> Self {
        let Intent { block, parent, epoch, filter_version, digest, events } = intent;
        Self { intent: (*block, *parent, *epoch, *filter_version, *digest), events: events.to_vec() }
    }

    fn intent(&self) -> Intent<'_> {
        let (block, parent, epoch, filter_version, digest) = self.intent;
        Intent { block, parent, epoch, filter_version, digest, events: &self.events }
    }
}

impl Witnessed {
    /// A barrier vouches for what was offered, and for what the entry holds besides: who put it there may have died before
    /// its own barrier answered.
    fn vouched(&self, block: BlockRef, epoch: u64, mut events: Vec<u64>) {
        self.storage.look(|state| {
            let entry = state.and_then(|state| state.live.get(&(block.number, block.hash, epoch)));
            events.extend(entry.iter().flat_map(|entry| &entry.events).map(|event| event.log_index));
        });
        self.world.oracle().journaled(block, epoch, events.into_iter());
    }

    async fn intent(&self, intent: Intent<'_>) -> Result<IntentReply, StoreError> {
        let (block, epoch) = (intent.block, intent.epoch);
        let events: Vec<u64> = intent.events.iter().map(|event| event.log_index).collect();
        let reply = self.inner.intent(intent).await;
        match &reply {
            Ok(IntentReply::Journaled) => self.vouched(block, epoch, events),
            Ok(IntentReply::Conflict(_)) => self.world.saw("INTENT conflicts"),
            Ok(IntentReply::Stale) => self.world.saw("INTENT stale"),
            Ok(IntentReply::Sealed) => self.world.saw("INTENT sealed"),
            Ok(IntentReply::Done) => self.world.saw("INTENT done"),
            Ok(IntentReply::More) => self.world.saw("INTENT more"),
            Ok(IntentReply::OldList) => self.world.saw("INTENT old list"),
            Ok(IntentReply::Deep(_)) => self.world.saw("INTENT deep"),
            Ok(IntentReply::Full(_)) => {}
            Err(_) => self.world.saw("barrier refused"),
        }
        reply
    }

    async fn commit(&self, commit: BlockCommit, track: Track) -> Result<CommitReply, StoreError> {
        let reply = self.inner.commit(commit, track).await;
        if let Ok(CommitReply::Committed { watermark, tip, .. }) = &reply {
            self.world.oracle().committed(&self.world.tree(), &commit, *watermark);
            self.nothing_is_claimed(BlockRange::single(commit.block.number));
            if watermark < tip {
                self.world.saw("commit above a gap");
            }
        }
        self.commit_reply(&reply);
        reply
    }

    async fn commit_final(&self, commit: FinalCommit, track: Track) -> Result<CommitReply, StoreError> {
        let reply = self.inner.commit_final(commit.clone(), track).await;
        if let Ok(CommitReply::Committed { watermark, .. }) = &reply {
            self.world.oracle().committed_final(&self.world.tree(), &commit, *watermark);
            self.nothing_is_claimed(commit.range);
            self.world.saw("final commit");
        }
        self.commit_reply(&reply);
        reply
    }

    /// A claim that outlasts the delivery of its block is nobody's any more.
    fn nothing_is_claimed(&self, range: BlockRange) {
        if self.storage.is_claimed(range) {
            self.world.oracle().violation(format!("a claim of {range} is left after its commit"));
        }
    }

    fn commit_reply(&self, reply: &Result<CommitReply, StoreError>) {
        match reply {
            Ok(CommitReply::Fenced) => self.world.saw("COMMIT fenced"),
            Ok(CommitReply::Stale) => self.world.saw("COMMIT_FINAL stale"),
            Ok(CommitReply::OldList) => self.world.saw("COMMIT old list"),
            Ok(CommitReply::More) => self.world.saw("COMMIT more"),
            Ok(CommitReply::Conflict(_)) => self.world.saw("COMMIT_FINAL conflicts"),
            Ok(CommitReply::Committed { .. }) | Err(_) => {}
        }
    }

    async fn rewind(
        &self,
        entries: &[(BlockRef, u64)],
        sealed: Option<BlockRef>,
        epoch: u64,
    ) -> Result<RewindReply, StoreError> {
        let before = self.look_before(entries).await;
        // What is sealed by now, or taken back, is named in vain.
        let live = self.storage.entries();
        let taken: Vec<(BlockRef, u64)> = entries
            .iter()
            .filter(|(block, epoch)| live.contains(&(block.number, block.hash, *epoch)))
            .copied()
            .collect();
        let reply = self.inner.rewind(entries, sealed, epoch).await;
        match &reply {
            Ok(RewindReply::Rewound(progress)) => {
                before.into_iter().for_each(|what| self.world.saw(what));
                self.world.oracle().rewound(&taken, progress.epoch, progress.watermark);
                self.world.saw("REWIND");
            }
            Ok(RewindReply::Stale) => self.world.saw("REWIND stale"),
            Ok(RewindReply::Deep(_)) => self.world.saw("REWIND deep"),
            Err(_) => {}
        }
        reply
    }

    /// What is particular about blocks that are to be taken back.
    async fn look_before(&self, entries: &[(BlockRef, u64)]) -> Vec<&'static str> {
        let (Ok(snapshot), Ok(journal)) = (self.inner.snapshot().await, self.inner.journal(MAX_BLOCK_NUMBER).await)
        else {
            return vec![];
        };
        let is_sending = |entry: &JournalEntry| !entry.done && entries.contains(&(entry.block, entry.epoch));
        let gap = snapshot.progress.watermark + 1;
        let is_above_gap = |(block, _): &(BlockRef, u64)| {
            block.number.cast_signed() > gap && !snapshot.done.contains(gap.cast_unsigned())
        };
        [
            (journal.iter().any(is_sending), "orphan of a block that was never committed"),
            (entries.iter().any(is_above_gap), "orphan above an open gap"),
        ]
        .into_iter()
        .filter_map(|(is_so, what)| is_so.then_some(what))
        .collect()
    }

    async fn seal(&self, at: BlockRef, tops: &[BlockRef]) -> Result<SealReply, StoreError> {
        let reply = self.inner.seal(at, tops).await;
        match &reply {
            Ok(SealReply::Refused) => self.world.saw("SEAL refused"),
            Ok(SealReply::Sealed { .. }) => self.world.saw("SEAL"),
            Err(_) => {}
        }
        reply
    }

    async fn amend(&self, amend: Amend<'_>) -> Result<AmendReply, StoreError> {
        let (block, events) = (amend.block, amend.events.iter().map(|event| event.log_index).collect::<Vec<_>>());
        let is_found = self.world.oracle().was_left_out(block.hash, &events);
        let reply = self.inner.amend(amend).await;
        match &reply {
            Ok(AmendReply::Journaled { epoch } | AmendReply::Final { epoch }) => {
                if is_found {
                    self.world.saw("a log found that was left out");
                }
                self.vouched(block, *epoch, events);
                self.world.saw("AMEND");
            }
            Ok(AmendReply::More { .. }) => self.world.saw("AMEND more"),
            Ok(AmendReply::Missing) => self.world.saw("AMEND missing"),
            Ok(AmendReply::Gone) => self.world.saw("AMEND gone"),
            _ => {}
        }
        reply
    }

    async fn bury(&self, letters: &[DeadLetter]) -> Result<bool, StoreError> {
        let reply = self.inner.bury(letters).await;
        if matches!(reply, Ok(true)) {
            letters.iter().for_each(|letter| self.world.oracle().buried(&letter.key));
            self.world.saw("dead letters");
        }
        reply
    }

    async fn exhume(&self, keys: &[String]) -> Result<u64, StoreError> {
        let reply = self.inner.exhume(keys).await;
        keys.iter().for_each(|key| self.world.oracle().exhumed(key));
        reply
    }
}

fn lost<T>(text: &str) -> Result<T, StoreError> {
    Err(StoreError::Transient(text.to_owned()))
}

impl Journal {
    /// A call whose effect cannot come late.
    async fn ask<T>(
        &self,
        op: Op,
        key: u64,
        effect: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut strike = self.gate.enter(op, key).await;
        self.answer(op, &mut strike, effect).await
    }

    async fn answer<T>(
        &self,
        op: Op,
        strike: &mut Strike,
        effect: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let has_effect = match strike.kind {
            Some(Kind::Fails | Kind::Late) => false,
            Some(Kind::Hangs) => strike.draw.chance(0.5),
            _ => true,
        };
        let answer = if has_effect { effect.await } else { lost("connection refused") };
        self.gate.leave(op, strike).await;
        match strike.kind {
            Some(Kind::Lost) => lost("connection reset"),
            Some(Kind::Hangs | Kind::Late) => {
                self.gate.time_out(LIMIT).await;
                lost("no answer in time")
            }
            _ => answer,
        }
    }

    /// A call whose effect may come when nobody waits for it any more.
    async fn late_or<T, F>(&self, op: Op, key: u64, effect: impl FnOnce(Witnessed) -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let mut strike = self.gate.enter(op, key).await;
        let effect = effect(self.store.clone());
        if !strike.is(Kind::Late) {
            return self.answer(op, &mut strike, effect).await;
        }
        let (delay, world) = (strike.draw.seconds(1, 120), self.gate.world.clone());
        world.late[0].fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            sleep(delay).await;
            let done = effect.await.is_ok();
            world.late[0].fetch_sub(1, Ordering::Relaxed);
            world.note([98, op as u64, key, u64::from(done)], || format!("late {op:?} {key}"));
        });
        self.answer(op, &mut strike, async { lost("late") }).await
    }
}

#[async_trait]
impl StateStore for Journal {
    async fn init(&self, start: Start) -> Result<Initialised, StoreError> {
        self.ask(Op::Init, 0, self.store.inner.init(start)).await
    }
    async fn peek(&self) -> Result<Option<Snapshot>, StoreError> {
        self.store.inner.peek().await
    }
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let snapshot = self.ask(Op::Snapshot, 0, self.store.inner.snapshot()).await;
        if snapshot.as_ref().is_ok_and(|snapshot| snapshot.done.len() > 1) {
            self.gate.world.saw("two gaps at once");
        }
        snapshot
    }
    async fn heartbeat(&self) -> Result<(), StoreError> {
        self.ask(Op::Heartbeat, 0, self.store.inner.heartbeat()).await
    }
    async fn claim(&self, range: BlockRange) -> Result<ClaimReply, StoreError> {
        let held = self.store.storage.is_claimed(range);
        let reply = self.late_or(Op::Claim, range.from, |store| async move { store.inner.claim(range).await }).await;
        if held && matches!(reply, Ok(ClaimReply::Granted(_))) {
            self.gate.world.saw("a claim taken over");
        }
        match &reply {
            Ok(ClaimReply::Held { .. }) => self.gate.world.saw("CLAIM held"),
            Ok(ClaimReply::Done) => self.gate.world.saw("CLAIM done"),
            Err(StoreError::Transient(reason)) if reason.contains("gaps") => {
                self.gate.world.saw("CLAIM above too many gaps");
            }
            _ => {}
        }
        reply
    }
    async fn renew(&self, grant: &Grant) -> Result<bool, StoreError> {
        let owned = grant.clone();
        let renewed =
            self.late_or(Op::Renew, grant.range.from, |store| async move { store.inner.renew(&owned).await }).await;
        if matches!(renewed, Ok(false)) {
            self.gate.world.saw("a claim ran out while working");
        }
        renewed
    }
    async fn release(&self, grant: &Grant) -> Result<(), StoreError> {
        let owned = grant.clone();
        self.late_or(Op::Release, grant.range.from, |store| async move { store.inner.release(&owned).await }).await
    }
    async fn retire(&self) -> Result<(), StoreError> {
        self.ask(Op::Retire, 0, self.store.inner.retire()).await
    }
    async fn intent(&self, intent: Intent<'_>) -> Result<IntentReply, StoreError> {
        let owned = Owned::of(&intent);
        self.late_or(Op::Intent, intent.block.number, |store| async move { store.intent(owned.intent()).await }).await
    }
    async fn journaled(&self, block: BlockRef, epoch: u64) -> Result<Vec<Event>, StoreError> {
        self.ask(Op::Journaled, block.number, self.store.inner.journaled(block, epoch)).await
    }
    async fn journal(&self, up_to: u64) -> Result<Vec<JournalEntry>, StoreError> {
        let entries = self.ask(Op::Journal, up_to, self.store.inner.journal(up_to)).await;
        // Of everything, where it is held against the chain; otherwise of what is about to be sealed.
        if let (Ok(entries), true) = (&entries, up_to < MAX_BLOCK_NUMBER) {
            let committed = entries.iter().filter(|entry| entry.done).map(|entry| entry.block).collect();
            self.gate.world.oracle().audits().begins((self.gate.replica, self.gate.life), committed);
        }
        entries
    }
    async fn commit(&self, commit: BlockCommit, track: Track) -> Result<CommitReply, StoreError> {
        let effect = |store: Witnessed| async move { store.commit(commit, track).await };
        self.late_or(Op::Commit, commit.block.number, effect).await
    }
    async fn commit_final(&self, commit: FinalCommit, track: Track) -> Result<CommitReply, StoreError> {
        let from = commit.range.from;
        let effect = |store: Witnessed| async move { store.commit_final(commit, track).await };
        self.late_or(Op::CommitFinal, from, effect).await
    }
    async fn seal(&self, at: BlockRef, tops: &[BlockRef]) -> Result<SealReply, StoreError> {
        let tops = tops.to_vec();
        let sealed = self.late_or(Op::Seal, at.number, |store| async move { store.seal(at, &tops).await }).await;
        if matches!(sealed, Ok(SealReply::Sealed { .. })) {
            self.gate.world.oracle().audits().sealed((self.gate.replica, self.gate.life), at.number);
        }
        sealed
    }
    async fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        self.ask(Op::Orphans, 0, self.store.inner.orphans()).await
    }
    async fn rewind(
        &self,
        entries: &[(BlockRef, u64)],
        sealed: Option<BlockRef>,
        epoch: u64,
    ) -> Result<RewindReply, StoreError> {
        let (key, entries) = (entries.len() as u64, entries.to_vec());
        self.late_or(Op::Rewind, key, |store| async move { store.rewind(&entries, sealed, epoch).await }).await
    }
    async fn retracted(&self, orphan: Orphan) -> Result<(), StoreError> {
        let effect = |store: Witnessed| async move { store.inner.retracted(orphan).await };
        self.late_or(Op::Retracted, orphan.block.number, effect).await
    }
    async fn amend(&self, amend: Amend<'_>) -> Result<AmendReply, StoreError> {
        self.ask(Op::Amend, amend.block.number, self.store.amend(amend)).await
    }
    async fn resume(&self, at: BlockRef, epoch: u64) -> Result<ReplayReply, StoreError> {
        self.store.inner.resume(at, epoch).await
    }
    async fn replay(&self, to: i64, until: Option<u64>, epoch: u64) -> Result<ReplayReply, StoreError> {
        self.store.inner.replay(to, until, epoch).await
    }
    async fn published(&self) -> Result<Published, StoreError> {
        self.ask(Op::Published, 0, self.store.inner.published()).await
    }
    async fn publish(&self, publication: Publication<'_>) -> Result<PublishReply, StoreError> {
        self.ask(Op::Publish, publication.version, self.store.inner.publish(publication)).await
    }
    async fn duty(&self) -> Result<Option<Duty>, StoreError> {
        self.ask(Op::Duty, 0, self.store.inner.duty()).await
    }
    async fn scanned(&self, duty: u64, up_to: u64) -> Result<(), StoreError> {
        self.ask(Op::Scanned, up_to, self.store.inner.scanned(duty, up_to)).await
    }
    async fn wipe(&self) -> Result<(), StoreError> {
        self.store.inner.wipe().await
    }
    async fn skip(&self, to: u64, epoch: u64) -> Result<ReplayReply, StoreError> {
        self.store.inner.skip(to, epoch).await
    }
    async fn bury(&self, letters: &[DeadLetter]) -> Result<bool, StoreError> {
        self.ask(Op::Bury, letters.len() as u64, self.store.bury(letters)).await
    }
    async fn dead_letters_len(&self) -> Result<u64, StoreError> {
        self.ask(Op::Letters, 0, self.store.inner.dead_letters_len()).await
    }
    async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        self.store.inner.dead_letters(after, limit).await
    }
    async fn exhume(&self, keys: &[String]) -> Result<u64, StoreError> {
        self.ask(Op::Exhume, keys.len() as u64, self.store.exhume(keys)).await
    }
    async fn learned(&self) -> Result<BTreeMap<String, String>, StoreError> {
        self.store.inner.learned().await
    }
    async fn learn(&self, endpoint: &str, learned: &str) -> Result<(), StoreError> {
        self.store.inner.learn(endpoint, learned).await
    }
    fn durability(&self) -> String {
        self.store.inner.durability()
    }
}
