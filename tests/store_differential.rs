//! The homes of the state against each other and against the model: the same random calls, replies and whole state
//! compared after each one. This is what ties the Lua scripts and the Rust rules to the protocol's page where no scenario
//! was thought of. `STORE_SEEDS=from..to` runs other seeds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use alloy::primitives::B256;
use chaintap::{
    config::{Durability, SecretUrl},
    domain::{BlockRange, BlockRef, Track},
    store::{
        Amend, AmendReply, BlockCommit, Checked, ClaimReply, CommitReply, DeadKind, DeadLetter, FinalCommit, Grant,
        Intent, IntentReply, Member, Orphan, Progress, Publication, ReplayReply, RewindReply, Start, StateStore,
        StoreError,
        embedded::Embedded,
        redis::{Identity, RedisStore},
    },
};
use redis::{FromRedisValue, aio::MultiplexedConnection};
use support::{
    chain::{block, digest, events, parent},
    model_store::{Model, State},
    redis::RedisServer,
};

struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    fn of<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { of.get(usize::try_from(self.below(of.len() as u64)).unwrap()) }
    }
}

/// One call; epochs and grants are numbered, since each store has its own.
#[derive(Clone, Debug)]
enum Call {
    Init(Start),
    Claim(BlockRange),
    Renew(usize),
    Release(usize),
    Retire,
    Intent { at: BlockRef, parent: B256, epoch: usize, version: u64, all: Range<u64>, part: Range<u64> },
    Commit { at: BlockRef, epoch: usize, version: u64, logs: u64 },
    Final { at: BlockRef, from: u64, parent: B256, epoch: usize, version: u64, sealed: i64, confirmed: Vec<BlockRef> },
    Seal { at: BlockRef, tops: Vec<BlockRef> },
    Orphans,
    Rewind { entries: Vec<(BlockRef, usize)>, sealed: Option<BlockRef>, epoch: usize },
    Retracted { at: BlockRef, epoch: usize, retract_epoch: usize },
    Amend { at: BlockRef, version: u64, all: Range<u64>, part: Range<u64> },
    Resume { at: BlockRef, epoch: usize },
    Replay { to: i64, until: Option<u64>, epoch: usize },
    Skip { to: u64, epoch: usize },
    Publish { version: u64, added: Vec<Member>, removed: Vec<String>, checked: Option<(i64, usize)> },
    Duty,
    Scanned { duty: u64, up_to: u64 },
    Bury(Vec<DeadLetter>),
    Exhume(Vec<String>),
    Wipe,
}

/// What must be equal of a reply: texts and tokens need not be.
fn shape(reply: Result<String, StoreError>) -> String {
    reply.unwrap_or_else(|error| match error {
        StoreError::Transient(_) => "transient".into(),
        StoreError::Vanished(_) => "vanished".into(),
        StoreError::InUse(_) => "in use".into(),
        StoreError::Fatal(_) => "fatal".into(),
    })
}

/// One home of the state, as its owners have it.
struct Side {
    stores: Vec<Box<dyn StateStore>>,
    epochs: Vec<u64>,
    grants: Vec<Grant>,
}

impl Side {
    fn new(stores: Vec<Box<dyn StateStore>>) -> Self {
        Self { stores, epochs: Vec::new(), grants: Vec::new() }
    }

    fn model(model: &Model, owners: usize) -> Self {
        Self::new((0..owners).map(|owner| Box::new(model.replica(&name(owner))) as _).collect())
    }

    fn embedded() -> Self {
        Self::new(vec![Box::new(Embedded::in_memory(1, "test").unwrap())])
    }

    async fn redis(server: &RedisServer, owners: usize) -> Self {
        let url = SecretUrl::parse(&server.url(0)).unwrap();
        let mut stores: Vec<Box<dyn StateStore>> = Vec::new();
        for owner in 0..owners {
            let identity = Identity { chain_id: 1, redis_db: 0, service: "test".into(), owner: name(owner) };
            stores.push(Box::new(RedisStore::connect(&url, identity, Durability::Auto).await.unwrap()));
        }
        Self::new(stores)
    }

    fn number(&self, epoch: u64) -> Option<usize> {
        self.epochs.iter().position(|known| *known == epoch)
    }

    fn progress(&mut self, progress: &Progress) -> String {
        if self.epochs.last() != Some(&progress.epoch) {
            assert!(self.epochs.last() < Some(&progress.epoch), "epochs only grow");
            self.epochs.push(progress.epoch);
        }
        let Progress { watermark, tip, sealed, sealed_hash, filter_version, retracting, .. } = progress;
        let (epoch, frozen) = (self.number(progress.epoch), progress.frozen.is_some());
        format!(
            "{watermark} {tip} {sealed} {sealed_hash:?} {epoch:?} v{filter_version} frozen {frozen} {retracting} back"
        )
    }

    async fn answer(&mut self, owner: usize, call: &Call) -> String {
        let reply = match call {
            Call::Init(_) | Call::Wipe => self.begin_or_end(owner, call).await,
            Call::Claim(_) | Call::Renew(_) | Call::Release(_) | Call::Retire => self.hold(owner, call).await,
            Call::Intent { .. } | Call::Commit { .. } | Call::Final { .. } | Call::Seal { .. } => {
                self.deliver(owner, call).await
            }
            Call::Orphans | Call::Rewind { .. } | Call::Retracted { .. } | Call::Amend { .. } => {
                self.unwind(owner, call).await
            }
            Call::Resume { .. } | Call::Replay { .. } | Call::Skip { .. } => self.operate(owner, call).await,
            _ => self.filter(owner, call).await,
        };
        shape(reply)
    }

    async fn begin_or_end(&mut self, owner: usize, call: &Call) -> Result<String, StoreError> {
        if let Call::Init(start) = call {
            let found = self.stores[owner].init(*start).await?;
            if found.fresh {
                (self.epochs, self.grants) = (vec![found.progress.epoch], Vec::new());
            }
            return Ok(format!("init {} {}", found.fresh, self.progress(&found.progress)));
        }
        self.stores[owner].wipe().await.map(|()| "wiped".into())
    }

    async fn hold(&mut self, owner: usize, call: &Call) -> Result<String, StoreError> {
        let store = &self.stores[owner];
        match call {
            Call::Claim(range) => Ok(match store.claim(*range).await? {
                ClaimReply::Granted(grant) => {
                    let (epoch, Grant { sealed, filter_version, retracting, .. }) = (self.number(grant.epoch), &grant);
                    let live = sorted(grant.live.clone());
                    let text = format!("granted {epoch:?} {sealed} v{filter_version} {retracting} {live:?}");
                    self.grants.push(grant);
                    text
                }
                ClaimReply::Held { blocks, .. } => format!("Held {blocks}"),
                ClaimReply::Frozen(_) => "Frozen".into(),
                ClaimReply::Done => "Done".into(),
            }),
            Call::Renew(grant) => store.renew(&self.grants[*grant]).await.map(|ours| ours.to_string()),
            Call::Release(grant) => store.release(&self.grants[*grant]).await.map(|()| "released".into()),
            _ => store.retire().await.map(|()| "retired".into()),
        }
    }

    async fn deliver(&mut self, owner: usize, call: &Call) -> Result<String, StoreError> {
        let store = &self.stores[owner];
        let without_text = |reply| match reply {
            CommitReply::Conflict(_) => "conflict".into(),
            other => format!("{other:?}"),
        };
        match call.clone() {
            Call::Intent { at, parent, epoch, version, all, part } => {
                let (events, digest) = (events(at, part), digest(at, all));
                let epoch = self.epochs[epoch];
                let intent = Intent { block: at, parent, epoch, filter_version: version, digest, events: &events };
                store.intent(intent).await.map(|reply| match reply {
                    IntentReply::Conflict(_) => "conflict".into(),
                    IntentReply::Deep(_) => "deep".into(),
                    other => format!("{other:?}"),
                })
            }
            Call::Commit { at, epoch, version, logs } => {
                let digest = digest(at, 0..logs);
                let commit = BlockCommit { block: at, epoch: self.epochs[epoch], filter_version: version, digest };
                store.commit(commit, Track::Realtime).await.map(without_text)
            }
            Call::Final { at, from, parent, epoch, version, sealed, confirmed } => {
                let range = BlockRange { from, to: at.number };
                let (epoch, hash) = (self.epochs[epoch], at.hash);
                let commit = FinalCommit { range, epoch, sealed, parent, hash, confirmed, filter_version: version };
                store.commit_final(commit, Track::Historical).await.map(without_text)
            }
            Call::Seal { at, tops } => store.seal(at, &tops).await.map(|reply| format!("{reply:?}")),
            other => unreachable!("{other:?}"),
        }
    }

    async fn unwind(&mut self, owner: usize, call: &Call) -> Result<String, StoreError> {
        let store = &self.stores[owner];
        match call.clone() {
            Call::Orphans => {
                let orphans = store.orphans().await?;
                let line =
                    |o: Orphan| format!("{} {:?} {:?}", o.block, self.number(o.epoch), self.number(o.retract_epoch));
                Ok(format!("orphans {:?}", orphans.into_iter().map(line).collect::<Vec<_>>()))
            }
            Call::Rewind { entries, sealed, epoch } => {
                let entries: Vec<_> = entries.into_iter().map(|(at, epoch)| (at, self.epochs[epoch])).collect();
                let reply = store.rewind(&entries, sealed, self.epochs[epoch]).await?;
                Ok(match reply {
                    RewindReply::Rewound(progress) => format!("Rewound {}", self.progress(&progress)),
                    RewindReply::Deep(reason) => {
                        assert!(reason.contains("sealed"), "{reason}");
                        "Deep".into()
                    }
                    RewindReply::Stale => "Stale".into(),
                })
            }
            Call::Retracted { at, epoch, retract_epoch } => {
                let (epoch, retract_epoch) = (self.epochs[epoch], self.epochs[retract_epoch]);
                store.retracted(Orphan { block: at, epoch, retract_epoch }).await.map(|()| "retracted".into())
            }
            Call::Amend { at, version, all, part } => {
                let (events, digest) = (events(at, part), digest(at, all));
                let amend = Amend { block: at, filter_version: version, digest, events: &events };
                Ok(match store.amend(amend).await? {
                    AmendReply::Journaled { epoch } => format!("Journaled {:?}", self.number(epoch)),
                    AmendReply::More { epoch } => format!("More {:?}", self.number(epoch)),
                    AmendReply::Final { epoch } => format!("Final {:?}", self.number(epoch)),
                    other => format!("{other:?}"),
                })
            }
            other => unreachable!("{other:?}"),
        }
    }

    async fn operate(&mut self, owner: usize, call: &Call) -> Result<String, StoreError> {
        let store = &self.stores[owner];
        let reply = match *call {
            Call::Resume { at, epoch } => store.resume(at, self.epochs[epoch]).await?,
            Call::Replay { to, until, epoch } => store.replay(to, until, self.epochs[epoch]).await?,
            Call::Skip { to, epoch } => store.skip(to, self.epochs[epoch]).await?,
            _ => unreachable!("{call:?}"),
        };
        let ReplayReply::Done(progress) = reply else { return Ok("Stale".into()) };
        Ok(format!("Progress {}", self.progress(&progress)))
    }

    async fn filter(&mut self, owner: usize, call: &Call) -> Result<String, StoreError> {
        let store = &self.stores[owner];
        match call.clone() {
            Call::Publish { version, added, removed, checked } => {
                let checked = checked.map(|(tip, epoch)| Checked { tip, epoch: self.epochs[epoch] });
                let publication = Publication { version, added: &added, removed: &removed, checked };
                store.publish(publication).await.map(|reply| format!("{reply:?}"))
            }
            Call::Duty => store.duty().await.map(|duty| format!("{duty:?}")),
            Call::Scanned { duty, up_to } => store.scanned(duty, up_to).await.map(|()| "scanned".into()),
            Call::Bury(letters) => store.bury(&letters).await.map(|kept| kept.to_string()),
            Call::Exhume(keys) => store.exhume(&keys).await.map(|count| count.to_string()),
            other => unreachable!("{other:?}"),
        }
    }

    /// Everything that a caller can see, with epochs by number; `None` where the server did not answer in time.
    async fn state(&mut self) -> Option<String> {
        let Some(snapshot) = in_time(self.stores[0].peek().await)? else { return Some("empty".into()) };
        let done: Vec<_> = snapshot.done.iter().collect();
        let mut lines = vec![format!("{} done {done:?}", self.progress(&snapshot.progress))];
        let store = &self.stores[0];
        let mut entries = Vec::new();
        for entry in in_time(store.journal(u64::MAX).await)? {
            entries.push((entry.block, entry.epoch, format!("{} {}", entry.parent, entry.done)));
        }
        for orphan in in_time(store.orphans().await)? {
            entries.push((orphan.block, orphan.epoch, format!("taken back {:?}", self.number(orphan.retract_epoch))));
        }
        for (at, epoch, text) in entries {
            let events = in_time(store.journaled(at, epoch).await)?;
            let logs: Vec<_> = events.iter().map(|event| event.log_index).collect();
            lines.push(format!("{at} {:?} {text} {logs:?}", self.number(epoch)));
        }
        lines[1..].sort();
        lines.push(format!("{:?}", in_time(store.published().await)?));
        lines.push(format!("{:?}", in_time(store.dead_letters(None, 100).await)?));
        Some(lines.join("\n"))
    }
}

/// What the store says; `None` where it did not answer in time.
fn in_time<T>(answer: Result<T, StoreError>) -> Option<T> {
    match answer {
        Err(StoreError::Transient(_)) => None,
        other => Some(other.unwrap()),
    }
}

fn name(owner: usize) -> String {
    format!("host-{owner}")
}

fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort();
    values
}

/// What the next call is rolled from: the model's state, and how its epochs are numbered.
struct View<'a> {
    state: &'a State,
    side: &'a Side,
    dice: &'a mut Dice,
}

impl View<'_> {
    fn height(&mut self) -> u64 {
        let last = self.state.watermark.max(0).unsigned_abs();
        match self.dice.below(6) {
            0 => (self.state.sealed + 1).unsigned_abs(),
            1 => (self.state.watermark + 1).unsigned_abs(),
            _ => last.saturating_sub(6) + self.dice.below(18),
        }
    }

    fn block(&mut self) -> BlockRef {
        let number = self.height();
        block(number, u8::from(self.dice.chance(3)))
    }

    /// The block below `at` as the store knows it, or another one.
    fn parent(&mut self, at: BlockRef) -> B256 {
        let branch = u8::from(self.dice.chance(2));
        let below = at.number.saturating_sub(1);
        let journaled = self.state.live.keys().find(|(number, _, _)| *number == below && at.number > 0);
        let known = journaled.map(|(_, hash, _)| *hash).or_else(|| {
            let is_sealed = at.number > 0 && below.cast_signed() == self.state.sealed;
            self.state.sealed_hash.filter(|_| is_sealed)
        });
        known.filter(|_| !self.dice.chance(8)).unwrap_or_else(|| parent(at.number, branch))
    }

    fn block_and_parent(&mut self) -> (BlockRef, B256) {
        let at = self.block();
        (at, self.parent(at))
    }

    /// What contradicts the sealed block: its successor, on a parent that no block is. Seldom rolled by chance alone.
    fn on_another_seal(&mut self) -> (BlockRef, B256) {
        let number = (self.state.sealed + 1).unsigned_abs();
        let journaled = self.state.live.keys().find(|key| key.0 == number).map(|key| key.1);
        let hash = journaled.unwrap_or_else(|| block(number, 0).hash);
        (BlockRef { number, hash }, B256::repeat_byte(9))
    }

    fn epoch(&mut self) -> usize {
        let all = self.side.epochs.len();
        if self.dice.chance(8) { usize::try_from(self.dice.below(all as u64)).unwrap() } else { all - 1 }
    }

    fn version(&mut self) -> u64 {
        let now = self.state.filter_version;
        if self.dice.chance(10) { now.saturating_sub(1) } else { now + u64::from(self.dice.chance(10)) }
    }

    /// A live entry, by name: block, epoch by number, events.
    fn entry(&mut self) -> Option<(BlockRef, usize, u64)> {
        let live: Vec<_> = self.state.live.iter().collect();
        let (&(number, hash, epoch), entry) = *self.dice.of(&live)?;
        Some((BlockRef { number, hash }, self.side.number(epoch)?, entry.events.len() as u64))
    }

    fn tops(&self, up_to: u64) -> Vec<BlockRef> {
        let below: Vec<_> = self.state.live.iter().filter(|(key, _)| key.0 <= up_to).collect();
        let is_linked = |top: &BlockRef| {
            below.iter().any(|((number, _, _), entry)| *number == top.number + 1 && entry.parent == top.hash)
        };
        let blocks: BTreeSet<_> = below.iter().map(|(key, _)| BlockRef { number: key.0, hash: key.1 }).collect();
        blocks.into_iter().filter(|top| !is_linked(top)).collect()
    }

    fn grant(&mut self) -> Option<usize> {
        let grants = self.side.grants.len() as u64;
        (grants > 0).then(|| usize::try_from(grants - 1 - self.dice.below(grants.min(4))).unwrap())
    }

    /// The next call: mostly sensible, sometimes wrong in one respect.
    fn roll(&mut self) -> Call {
        if self.state.frozen.is_some() {
            match self.dice.below(8) {
                0 => return self.resume(),
                1 => return self.amend(),
                _ => {}
            }
        }
        match self.dice.below(40) {
            0..=4 => self.claim(),
            5..=14 => self.intent(),
            15..=21 => self.commit(),
            22..=23 => self.commit_final(),
            24..=25 => {
                let number = (self.state.sealed + 1).unsigned_abs() + self.dice.below(4);
                let hash = self.state.live.keys().find(|key| key.0 == number).map(|key| key.1);
                let other = block(number, u8::from(self.dice.chance(2))).hash;
                let mut tops = self.tops(number);
                if self.dice.chance(5) {
                    tops.pop();
                }
                if self.dice.chance(8) {
                    tops.extend(tops.first().copied());
                }
                let hash = hash.filter(|_| !self.dice.chance(8)).unwrap_or(other);
                Call::Seal { at: BlockRef { number, hash }, tops }
            }
            26..=27 => self.rewind(),
            28 => Call::Orphans,
            29..=30 => self.retracted(),
            31..=32 => self.amend(),
            33 => match self.dice.below(4) {
                0 => self.resume(),
                1 => Call::Skip { to: self.height(), epoch: self.epoch() },
                _ => {
                    let to = self.height().cast_signed() - 1 - i64::from(self.dice.chance(6));
                    let until = to.saturating_add(self.dice.below(5).cast_signed()).max(0).unsigned_abs();
                    Call::Replay { to, until: Some(until).filter(|_| !self.dice.chance(3)), epoch: self.epoch() }
                }
            },
            34..=35 => self.publish(),
            36 => Call::Duty,
            37 => {
                let duties: Vec<_> = self.state.duties.values().collect();
                let Some(duty) = self.dice.of(&duties) else { return Call::Scanned { duty: 1, up_to: 3 } };
                let (id, to) = (duty.id, duty.range.to);
                Call::Scanned { duty: id, up_to: to.saturating_sub(self.dice.below(4)) }
            }
            38 => self.letters(),
            _ if self.dice.chance(12) => Call::Wipe,
            _ => Call::Init(if self.dice.chance(2) { Start::Expected } else { Start::At(9) }),
        }
    }

    fn claim(&mut self) -> Call {
        let to = self.height();
        let claim = Call::Claim(BlockRange { from: to.saturating_sub(self.dice.below(5)), to });
        match (self.dice.below(8), self.grant()) {
            (0, Some(grant)) => Call::Renew(grant),
            (1, Some(grant)) => Call::Release(grant),
            (2, _) if self.dice.chance(3) => Call::Retire,
            _ => claim,
        }
    }

    fn intent(&mut self) -> Call {
        let (before, logs) = (self.dice.below(3), self.dice.below(4));
        let first = if self.dice.chance(2) { 0 } else { before };
        let (all, part) = (0..before + logs, first..before + logs);
        let (at, parent) = if self.dice.chance(12) { self.on_another_seal() } else { self.block_and_parent() };
        Call::Intent { at, parent, epoch: self.epoch(), version: self.version(), all, part }
    }

    fn commit(&mut self) -> Call {
        let version = self.version();
        let (at, epoch, known) = match self.entry().filter(|_| !self.dice.chance(10)) {
            Some(entry) => entry,
            None => (self.block(), self.epoch(), 1),
        };
        Call::Commit { at, epoch, version, logs: if self.dice.chance(8) { self.dice.below(6) } else { known } }
    }

    fn commit_final(&mut self) -> Call {
        let mut at = self.block();
        if let Some(known) = self.state.live.keys().find(|key| key.0 == at.number && !self.dice.chance(6)) {
            at.hash = known.1;
        }
        let from = at.number.saturating_sub(self.dice.below(6));
        let parent = self.parent(BlockRef { number: from, ..at });
        let live = self.state.live.keys().map(|key| BlockRef { number: key.0, hash: key.1 });
        let mut confirmed: Vec<_> = live.collect::<BTreeSet<_>>().into_iter().collect();
        if self.dice.chance(4) {
            confirmed.pop();
        }
        let sealed = self.height().cast_signed() - 2;
        Call::Final { at, from, parent, epoch: self.epoch(), version: self.version(), sealed, confirmed }
    }

    fn rewind(&mut self) -> Call {
        let lowest = self.height();
        let count = 1 + self.dice.below(6);
        let above_sealed = !self.dice.chance(12);
        let named = |key: &&(u64, B256, u64)| {
            (lowest..lowest + count).contains(&key.0) && (!above_sealed || key.0.cast_signed() > self.state.sealed)
        };
        let keys = self.state.live.keys().filter(named).chain(self.state.retracting.keys().take(1));
        let mut entries: Vec<_> =
            keys.filter_map(|key| Some((BlockRef { number: key.0, hash: key.1 }, self.side.number(key.2)?))).collect();
        if self.dice.chance(4) {
            entries.push((self.block(), self.epoch()));
        }
        if self.dice.chance(4) {
            entries.reverse();
        }
        let known = self.state.sealed_hash.zip(u64::try_from(self.state.sealed).ok());
        let known = known.map(|(hash, number)| BlockRef { number, hash });
        let sealed = match self.dice.below(20) {
            0 => known.map(|at| BlockRef { hash: B256::repeat_byte(9), ..at }),
            1..=2 => Some(self.block()),
            3..=6 => None,
            _ => known,
        };
        Call::Rewind { entries, sealed, epoch: self.epoch() }
    }

    fn retracted(&mut self) -> Call {
        let orphans: Vec<_> = self.state.retracting.iter().collect();
        let Some((key, entry)) = self.dice.of(&orphans).copied() else { return Call::Orphans };
        let retract_epoch = self.side.number(entry.retract_epoch.unwrap()).unwrap();
        let (at, epoch) = (BlockRef { number: key.0, hash: key.1 }, self.side.number(key.2).unwrap());
        let retract_epoch = if self.dice.chance(6) { self.epoch() } else { retract_epoch };
        Call::Retracted { at, epoch, retract_epoch }
    }

    fn amend(&mut self) -> Call {
        let version = self.version();
        let orphan = self.state.retracting.keys().next().filter(|_| self.dice.chance(4)).copied();
        let entry = self.entry().filter(|_| !self.dice.chance(3));
        let (at, known) = match (orphan, entry) {
            (Some((number, hash, _)), _) => (BlockRef { number, hash }, 0),
            (None, Some((at, _, known))) => (at, known),
            (None, None) => (self.block(), 0),
        };
        let known = if self.dice.chance(5) { self.dice.below(4) } else { known };
        let more = known + self.dice.below(3);
        Call::Amend { at, version, all: 0..more, part: known..more }
    }

    fn resume(&mut self) -> Call {
        let sealed = self.state.sealed.max(0).unsigned_abs();
        let number = if self.dice.chance(8) { sealed + 1 } else { sealed.saturating_sub(self.dice.below(3)) };
        Call::Resume { at: block(number, u8::from(self.dice.chance(2))), epoch: self.epoch() }
    }

    fn publish(&mut self) -> Call {
        let version = self.version();
        let mut key = || format!("token-{}", self.dice.below(8));
        let (keys, removed) = ([key(), key(), key()], key());
        let mut added = Vec::new();
        for key in keys.into_iter().skip(usize::try_from(self.dice.below(4)).unwrap()) {
            let from = self.dice.chance(3).then(|| self.height());
            added.push(Member { key, from });
        }
        let removed = if self.dice.chance(3) { vec![removed] } else { Vec::new() };
        let checked = self.dice.chance(2).then(|| (self.height().cast_signed(), self.epoch()));
        Call::Publish { version, added, removed, checked }
    }

    fn letters(&mut self) -> Call {
        let key = format!("letter-{}", self.dice.below(5));
        if self.dice.chance(3) {
            return Call::Exhume(vec![key, "letter-9".into()]);
        }
        Call::Bury(vec![DeadLetter {
            key,
            kind: if self.dice.chance(2) { DeadKind::Refused } else { DeadKind::Undecodable },
            reason: "no".into(),
            handler: "h".into(),
            block_number: 1,
            block_hash: B256::ZERO,
            body: "{}".into(),
            buried_at: self.dice.below(100),
        }])
    }
}

/// The model with all that is compared with it.
struct Trial {
    model: Model,
    judge: Side,
    dice: Dice,
    seen: BTreeMap<String, u32>,
}

impl Trial {
    fn new(seed: u64, owners: usize) -> Self {
        let model = Model::new();
        Self { judge: Side::model(&model, owners), model, dice: Dice(seed), seen: BTreeMap::new() }
    }

    fn roll(&mut self) -> Call {
        let Self { model, judge, dice, .. } = self;
        model.look(|state| match state {
            Some(state) => View { state, side: judge, dice }.roll(),
            None if dice.chance(3) => Call::Init(Start::Expected),
            None if !judge.epochs.is_empty() && dice.chance(2) => Call::Skip { to: 3, epoch: 0 },
            None => Call::Init(Start::At(dice.below(6))),
        })
    }

    /// One call, maybe repeated, on all sides. `None` where a server did not answer in time, as after this process stood
    /// still: what it did is not known then, and nothing can be compared any more.
    async fn step(&mut self, owner: usize, sides: &mut [Side], place: &str) -> Option<()> {
        let call = self.roll();
        for again in 0..=usize::from(self.dice.chance(4)) {
            let expected = self.judge.answer(owner, &call).await;
            let word = |text: &str| text.split([' ', '(']).next().unwrap_or_default().to_owned();
            *self.seen.entry(format!("{} {}", word(&format!("{call:?}")), word(&expected))).or_default() += 1;
            let state = self.judge.state().await.unwrap();
            for side in &mut *sides {
                let reply = side.answer(owner, &call).await;
                if reply == "transient" && expected != reply {
                    return None;
                }
                assert_eq!(reply, expected, "{place} again {again}: owner {owner} {call:?}\n{state}");
                assert_eq!(side.state().await?, state, "{place} again {again}: owner {owner} {call:?}");
            }
        }
        Some(())
    }
}

fn seeds(default: &str) -> Range<u64> {
    let seeds = std::env::var("STORE_SEEDS").unwrap_or_else(|_| default.into());
    let (first, last) = seeds.split_once("..").expect("STORE_SEEDS=from..to");
    first.parse().unwrap()..last.parse().unwrap()
}

/// What all trials together must have led to, or they prove little.
const LED_TO: &[&str] = &[
    "Amend Final",
    "Amend Frozen",
    "Amend Gone",
    "Amend Journaled",
    "Amend Missing",
    "Amend More",
    "Amend OldList",
    "Claim Done",
    "Claim Frozen",
    "Claim granted",
    "Commit Committed",
    "Commit Fenced",
    "Commit More",
    "Commit OldList",
    "Commit Stale",
    "Duty None",
    "Duty Some",
    "Final Committed",
    "Final OldList",
    "Final Stale",
    "Final conflict",
    "Init fatal",
    "Init init",
    "Intent Done",
    "Intent Journaled",
    "Intent More",
    "Intent OldList",
    "Intent Sealed",
    "Intent Stale",
    "Intent conflict",
    "Intent deep",
    "Publish Published",
    "Publish Stale",
    "Replay Progress",
    "Replay Stale",
    "Replay fatal",
    "Resume Progress",
    "Resume fatal",
    "Rewind Deep",
    "Rewind Rewound",
    "Rewind Stale",
    "Seal Refused",
    "Seal Sealed",
    "Skip Progress",
    "Skip vanished",
];

fn check_seen(seen: &BTreeMap<String, u32>) {
    let unseen: Vec<_> = LED_TO.iter().filter(|kind| !seen.contains_key(**kind)).collect();
    assert!(unseen.is_empty(), "the calls never led to {unseen:?}; seen: {seen:?}");
}

#[tokio::test]
async fn the_embedded_home_does_as_the_model() {
    let mut seen = BTreeMap::new();
    for seed in seeds("0..24") {
        let mut trial = Trial { seen, ..Trial::new(seed, 1) };
        let mut sides = [Side::embedded()];
        for step in 0..300 {
            trial.step(0, &mut sides, &format!("seed {seed} step {step}")).await.unwrap();
        }
        seen = trial.seen;
    }
    check_seen(&seen);
}

#[tokio::test]
async fn lua_does_as_the_model_and_shows_it() {
    let server = RedisServer::start().await;
    let mut eyes = Eyes { connection: server.connection(0).await };
    let mut seen = BTreeMap::new();
    for seed in seeds("0..12") {
        let trial = undisturbed(async || {
            let _: String = eyes.ask("FLUSHDB").await;
            let mut trial = Trial { seen: seen.clone(), ..Trial::new(seed, 1) };
            let mut sides = [Side::redis(&server, 1).await, Side::embedded()];
            for step in 0..200 {
                let place = format!("seed {seed} step {step}");
                trial.step(0, &mut sides, &place).await?;
                eyes.check_views(&trial.model, &place).await;
            }
            Some(trial)
        });
        seen = trial.await.seen;
    }
    check_seen(&seen);
}

/// The trial, begun anew where a server did not answer in time.
async fn undisturbed(mut trial: impl AsyncFnMut() -> Option<Trial>) -> Trial {
    for _ in 0..5 {
        if let Some(trial) = trial().await {
            return trial;
        }
    }
    panic!("a server does not answer in time, again and again")
}

#[tokio::test]
async fn several_owners_share_redis_as_they_share_the_model() {
    const OWNERS: usize = 3;
    let server = RedisServer::start().await;
    let mut eyes = Eyes { connection: server.connection(0).await };
    let mut held = 0;
    for seed in seeds("100..110") {
        let trial = undisturbed(async || {
            let _: String = eyes.ask("FLUSHDB").await;
            let mut trial = Trial::new(seed, OWNERS);
            let mut sides = [Side::redis(&server, OWNERS).await];
            for step in 0..200 {
                let place = format!("seed {seed} step {step}");
                let owner = usize::try_from(trial.dice.below(OWNERS as u64)).unwrap();
                if trial.dice.chance(12) {
                    trial.model.end_heartbeat(&name(owner));
                    let _: u64 = eyes.ask(&format!("DEL chain:1:owner:{}", name(owner))).await;
                }
                trial.step(owner, &mut sides, &place).await?;
                eyes.keep_alive(&trial, OWNERS).await;
                eyes.check_claims(&trial.model, &place).await;
            }
            Some(trial)
        });
        held += trial.await.seen.get("Claim Held").copied().unwrap_or_default();
    }
    assert!(held > 0 || std::env::var("STORE_SEEDS").is_ok(), "nobody ever held what another wanted");
}

/// What an operator sees, and the tests.
struct Eyes {
    connection: MultiplexedConnection,
}

impl Eyes {
    async fn ask<T: FromRedisValue>(&mut self, line: &str) -> T {
        let mut words = line.split_whitespace();
        let mut command = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            command.arg(word);
        });
        // What it asks for may be asked for again.
        for _ in 0..5 {
            match command.query_async(&mut self.connection).await {
                Err(error) if error.is_timeout() => {}
                answer => return answer.unwrap_or_else(|error| panic!("{line}: {error}")),
            }
        }
        panic!("{line}: no answer in time, again and again")
    }

    /// Whoever is alive stays alive, however long this process stands still: a slow machine must not decide who is dead.
    async fn keep_alive(&mut self, trial: &Trial, owners: usize) {
        trial.model.keep_alive();
        for owner in (0..owners).map(name) {
            if trial.model.look(|state| state.is_some_and(|state| state.heartbeats.contains_key(&*owner))) {
                let _: String = self.ask(&format!("SET chain:1:owner:{owner} 1")).await;
            }
        }
    }

    async fn check_claims(&mut self, model: &Model, place: &str) {
        let mut shown = BTreeMap::new();
        for key in self.ask::<Vec<String>>("KEYS chain:1:claim:*").await {
            let holder: String = self.ask(&format!("GET {key}")).await;
            let number: u64 = key.rsplit(':').next().unwrap().parse().unwrap();
            shown.insert(number, holder.rsplit_once(':').unwrap().0.to_owned());
        }
        let expected: BTreeMap<u64, String> = model.look(|state| {
            let claims =
                state.map(|state| state.claims.iter().map(|(number, claim)| (*number, claim.owner.to_string())));
            claims.into_iter().flatten().collect()
        });
        assert_eq!(shown, expected, "{place}");
    }

    async fn check_views(&mut self, model: &Model, place: &str) {
        #[expect(clippy::redundant_closure_for_method_calls, reason = "no path is general enough")]
        let Some(state) = model.look(|state| state.cloned()) else {
            assert_eq!(self.ask::<Vec<String>>("KEYS *").await, [""; 0], "{place}: a wiped store is empty");
            return;
        };
        let (watermark, tip) = (state.watermark, state.tip);
        let done = state.intervals();
        let shown: Vec<Option<i64>> = self.ask("HMGET historical_range from to gaps missing").await;
        let expected = expected_range(watermark, tip, &done);
        let expected = expected.map_or(vec![None; 4], |(from, to, gaps, missing)| {
            vec![Some(from), Some(to), Some(gaps.cast_signed()), Some(missing.cast_signed())]
        });
        assert_eq!(shown, expected, "{place}: watermark {watermark} tip {tip} done {done:?}");
        let shown: Vec<i64> =
            self.ask("HMGET chain:1:progress block view_w view_tip filter_checked journal_bytes").await;
        assert_eq!(shown[..4], [watermark, watermark, tip, state.filter_checked], "{place}");
        let is_empty = state.live.is_empty() && state.retracting.is_empty();
        assert_eq!(shown[4] == 0, is_empty, "{place}: {} bytes are counted", shown[4]);
        let block: i64 = self.ask("HGET realtime_processed_block block").await;
        assert_eq!(block, tip, "{place}");
    }
}

/// `historical_range` from the truth, by looking at every block.
fn expected_range(watermark: i64, tip: i64, done: &[BlockRange]) -> Option<(i64, i64, u64, u64)> {
    let is_done = |n: i64| n <= watermark || done.iter().any(|range| range.contains(n.unsigned_abs()));
    let missing: Vec<i64> = (watermark + 1..=tip).filter(|n| !is_done(*n)).collect();
    let holes: Vec<&[i64]> = missing.chunk_by(|a, b| a + 1 == *b).filter(|hole| hole[0] < tip - 5).collect();
    let lowest = holes.first()?;
    let blocks = holes.iter().map(|hole| hole.len() as u64).sum();
    Some((lowest[0], *lowest.last()?, holes.len() as u64, blocks))
}

/// The model's own powers, which the simulation relies on.
mod the_model {
    use super::*;

    async fn started() -> (Model, Box<dyn StateStore>) {
        let model = Model::new();
        model.enable_fail_over();
        let store = model.replica("host-0");
        store.init(Start::At(1)).await.unwrap();
        (model, Box::new(store))
    }

    async fn journal(store: &dyn StateStore, number: u64) -> Result<IntentReply, StoreError> {
        let (at, events) = (block(number, 0), events(block(number, 0), 0..1));
        let epoch = store.snapshot().await?.progress.epoch;
        let digest = digest(at, 0..1);
        let parent = parent(number, 0);
        store.intent(Intent { block: at, parent, epoch, filter_version: 0, digest, events: &events }).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_fail_over_loses_what_no_barrier_vouched_for_and_nothing_else() {
        let (model, store) = started().await;
        assert_eq!(journal(&*store, 1).await.unwrap(), IntentReply::Journaled);
        assert_eq!(model.choices(), 1, "nothing can be lost behind a barrier");
        let epoch = store.snapshot().await.unwrap().progress.epoch;
        let at = block(1, 0);
        let commit = BlockCommit { block: at, epoch, filter_version: 0, digest: digest(at, 0..1) };
        store.commit(commit, Track::Realtime).await.unwrap();
        store.claim(BlockRange::single(2)).await.unwrap();
        assert_eq!(model.choices(), 3);
        assert_eq!(model.fail_over(1), 1, "the claim is lost");
        assert_eq!(store.snapshot().await.unwrap().progress.watermark, 1);
        assert_eq!(model.fail_over(0), 1, "the commit is lost");
        assert_eq!(store.snapshot().await.unwrap().progress.watermark, 0);
        assert_eq!(store.journaled(at, epoch).await.unwrap().len(), 1, "the intent is not");
        assert_eq!(model.generation(), 2);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_barrier_that_a_fail_over_cut_off_vouches_for_nothing() {
        let (model, store) = started().await;
        model.set_barrier_delay(std::time::Duration::from_millis(200));
        let (reply, ()) = tokio::join!(journal(&*store, 1), async {
            tokio::task::yield_now().await;
            model.fail_over(0);
        });
        assert!(matches!(reply, Err(StoreError::Transient(_))), "{reply:?}");
        assert!(store.journal(9).await.unwrap().is_empty());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_dead_owners_claims_are_taken_over_and_a_living_ones_are_held() {
        let (model, store) = started().await;
        let (other, range) = (model.replica("host-1"), BlockRange { from: 3, to: 5 });
        store.claim(range).await.unwrap();
        let reply = other.claim(BlockRange { from: 1, to: 4 }).await.unwrap();
        assert!(
            matches!(reply, ClaimReply::Held { blocks, .. } if blocks == BlockRange { from: 3, to: 4 }),
            "{reply:?}"
        );
        model.end_heartbeat("host-0");
        assert!(matches!(other.claim(range).await.unwrap(), ClaimReply::Granted(_)));
    }
}
