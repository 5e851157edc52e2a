//! What each operation does to the model's state, written as the protocol's page says it and from nothing else: plain
//! sets of numbers, plain maps of entries. Slow where that is simpler and the state of a test is small.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use alloy::primitives::B256;
use chaintap::{
    domain::{BlockRange, BlockRef, Digest, Event},
    store::{
        BlockCommit, ClaimReply, CommitReply, DeadLetter, Duty, FinalCommit, Grant, Intent, IntentReply, JOURNAL_CAP,
        MAX_DONE_INTERVALS, Progress, SEAL_DROPS, SealReply, StoreError,
    },
};

use super::{CLAIM_TTL, HEARTBEAT_TTL, Instant, StoreMutant};

/// An entry's name.
pub type Key = (u64, B256, u64);

/// A journal entry, live or being taken back.
#[derive(Clone, Debug)]
pub struct Entry {
    pub parent: B256,
    pub done: bool,
    /// Epoch of the REWIND that took it back.
    pub retract_epoch: Option<u64>,
    /// Cumulative: each covers all parts up to and including its own.
    pub digests: Vec<Digest>,
    pub events: Vec<Event>,
}

/// Who has a block, and until when.
#[derive(Clone, Debug)]
pub struct Claim {
    pub owner: Arc<str>,
    pub token: Arc<str>,
    pub until: Instant,
}

/// Everything that a Redis database would hold. Large parts are shared between copies, so that a copy for every write is
/// cheap.
#[derive(Clone, Debug)]
pub struct State {
    /// The fault that is planted.
    pub mutant: Option<StoreMutant>,
    /// Most pieces that `done` may have before nothing is claimed apart from them.
    pub most_pieces: usize,
    pub watermark: i64,
    pub tip: i64,
    pub sealed: i64,
    pub sealed_hash: Option<B256>,
    pub epoch: u64,
    /// Nothing that was sent under an older epoch commits.
    pub replayed: u64,
    pub frozen: Option<String>,
    pub filter_version: u64,
    pub filter_checked: i64,
    pub fence: u64,
    /// Numbers above the watermark that are delivered.
    pub done: Arc<BTreeSet<u64>>,
    /// In how many pieces.
    pub pieces: usize,
    /// Entries that are being sent or done.
    pub live: Arc<BTreeMap<Key, Entry>>,
    /// Entries that are being taken back.
    pub retracting: Arc<BTreeMap<Key, Entry>>,
    pub journal_bytes: u64,
    pub claims: Arc<BTreeMap<u64, Claim>>,
    /// Until when each owner counts as alive.
    pub heartbeats: Arc<BTreeMap<Arc<str>, Instant>>,
    pub members: Arc<BTreeSet<String>>,
    pub duties: Arc<BTreeMap<u64, Duty>>,
    pub duty_owners: Arc<BTreeMap<Arc<str>, u64>>,
    pub duties_made: u64,
    pub letters: Arc<BTreeMap<String, DeadLetter>>,
    pub undecodable: Arc<BTreeSet<(u64, String)>>,
}

pub(super) fn signed(number: u64) -> i64 {
    number.cast_signed()
}

pub(super) fn unsigned(number: i64) -> u64 {
    number.max(0).cast_unsigned()
}

pub(super) fn key(block: BlockRef, epoch: u64) -> Key {
    (block.number, block.hash, epoch)
}

pub(super) fn block_of(key: &Key) -> BlockRef {
    BlockRef { number: key.0, hash: key.1 }
}

pub(super) fn heights(from: u64, to: u64) -> std::ops::RangeInclusive<Key> {
    (from, B256::ZERO, 0)..=(to, B256::repeat_byte(0xff), u64::MAX)
}

/// Room that an event takes in the journal, about.
pub(super) const EVENT_BYTES: u64 = 60;

impl State {
    pub fn begin(first: u64, epoch: u64) -> Self {
        let last = signed(first) - 1;
        Self {
            mutant: None,
            most_pieces: MAX_DONE_INTERVALS,
            watermark: last,
            tip: last,
            sealed: -1,
            sealed_hash: None,
            epoch,
            replayed: 0,
            frozen: None,
            filter_version: 0,
            filter_checked: last,
            fence: 0,
            done: Arc::default(),
            pieces: 0,
            live: Arc::default(),
            retracting: Arc::default(),
            journal_bytes: 0,
            claims: Arc::default(),
            heartbeats: Arc::default(),
            members: Arc::default(),
            duties: Arc::default(),
            duty_owners: Arc::default(),
            duties_made: 0,
            letters: Arc::default(),
            undecodable: Arc::default(),
        }
    }

    pub fn progress(&self, service: &str) -> Progress {
        Progress {
            watermark: self.watermark,
            tip: self.tip,
            sealed: self.sealed,
            sealed_hash: self.sealed_hash,
            epoch: self.epoch,
            filter_version: self.filter_version,
            frozen: self.frozen.clone(),
            retracting: self.retracting.len() as u64,
            service: service.to_owned(),
        }
    }

    /// Whether this fault is planted.
    pub(super) fn has(&self, mutant: StoreMutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Whether a caller's filter is older than the published one.
    pub(super) fn is_old(&self, filter_version: u64) -> bool {
        filter_version < self.filter_version && !self.has(StoreMutant::OldListAccepted)
    }

    /// Whether the block is delivered.
    pub fn is_done(&self, number: u64) -> bool {
        signed(number) <= self.watermark || self.done.contains(&number)
    }

    /// Whether any block of the range is.
    fn touches_done(&self, range: BlockRange) -> bool {
        signed(range.from) <= self.watermark || self.done.range(range.from..=range.to).next().is_some()
    }

    /// The delivered numbers above the watermark, in pieces.
    pub fn intervals(&self) -> Vec<BlockRange> {
        let mut pieces: Vec<BlockRange> = Vec::new();
        for &number in self.done.iter() {
            match pieces.last_mut() {
                Some(piece) if piece.to + 1 == number => piece.to = number,
                _ => pieces.push(BlockRange::single(number)),
            }
        }
        pieces
    }

    fn neighbours(&self, number: u64) -> usize {
        let below = number > 0 && self.done.contains(&(number - 1));
        usize::from(below) + usize::from(self.done.contains(&(number + 1)))
    }

    fn add(&mut self, number: u64) {
        if signed(number) > self.watermark && !self.done.contains(&number) {
            self.pieces = self.pieces + 1 - self.neighbours(number);
            Arc::make_mut(&mut self.done).insert(number);
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        if self.done.contains(&number) {
            self.pieces = self.pieces + self.neighbours(number) - 1;
            Arc::make_mut(&mut self.done).remove(&number);
        }
    }

    /// The watermark moves over what follows it without a hole.
    pub(super) fn advance(&mut self) {
        let is_held =
            |state: &Self, number: u64| state.has(StoreMutant::HeldIsDone) && state.claims.contains_key(&number);
        while self.done.contains(&unsigned(self.watermark + 1)) || is_held(self, unsigned(self.watermark + 1)) {
            let next = unsigned(self.watermark + 1);
            self.remove(next);
            self.watermark = signed(next);
        }
    }

    /// The watermark sinks; what it had passed is done one by one.
    pub(super) fn sink(&mut self, watermark: i64) {
        let passed = self.watermark;
        if watermark < passed {
            self.watermark = watermark;
            (watermark + 1..=passed).for_each(|number| self.add(unsigned(number)));
        }
    }

    pub(super) fn highest_done(&self) -> i64 {
        self.done.last().map_or(self.watermark, |&number| signed(number))
    }

    pub(super) fn raise_epoch(&mut self, clock: u64) {
        if !self.has(StoreMutant::EpochNotRaised) {
            self.epoch = clock.max(self.epoch + 1);
        }
    }

    pub(super) fn live_at(&self, from: u64, to: u64) -> impl Iterator<Item = (&Key, &Entry)> {
        self.live.range(heights(from, to))
    }

    // Claims.

    pub(super) fn is_alive(&self, owner: &str, now: Instant) -> bool {
        self.heartbeats.get(owner).is_some_and(|&until| until > now)
    }

    pub fn beat(&mut self, owner: &Arc<str>, now: Instant) {
        Arc::make_mut(&mut self.heartbeats).insert(Arc::clone(owner), now + HEARTBEAT_TTL);
    }

    pub fn claim(&mut self, range: BlockRange, owner: &Arc<str>, now: Instant) -> Result<ClaimReply, StoreError> {
        if let Some(reason) = &self.frozen {
            return Ok(ClaimReply::Frozen(reason.clone()));
        }
        if self.touches_done(range) {
            return Ok(ClaimReply::Done);
        }
        let borders = signed(range.from) == self.watermark + 1
            || range.from > 0 && self.done.contains(&(range.from - 1))
            || self.done.contains(&(range.to + 1));
        if self.pieces >= self.most_pieces && !borders {
            return Err(StoreError::Transient("as many gaps are open as may be".into()));
        }
        let held: Vec<(u64, Instant)> = (self.claims.range(range.from..=range.to))
            .filter(|(_, claim)| claim.until > now && claim.owner != *owner && self.is_alive(&claim.owner, now))
            .map(|(&number, claim)| (number, claim.until.min(self.heartbeats[&claim.owner])))
            .collect();
        if let (Some(first), Some(last)) = (held.first(), held.last()) {
            let until = held.iter().map(|(_, until)| *until).min().unwrap_or(now);
            let blocks = BlockRange { from: first.0, to: last.0 };
            return Ok(ClaimReply::Held { blocks, retry_after: until - now });
        }
        self.fence += 1;
        let token: Arc<str> = format!("{owner}:{}", self.fence).into();
        let claims = Arc::make_mut(&mut self.claims);
        for number in range.from..=range.to {
            let claim = Claim { owner: Arc::clone(owner), token: Arc::clone(&token), until: now + CLAIM_TTL };
            claims.insert(number, claim);
        }
        self.beat(owner, now);
        Ok(ClaimReply::Granted(Grant {
            range,
            token: token.to_string(),
            epoch: self.epoch,
            sealed: self.sealed,
            filter_version: self.filter_version,
            retracting: self.retracting.len() as u64,
            live: self.live_at(range.from.saturating_sub(1), range.to + 1).map(|(key, _)| block_of(key)).collect(),
        }))
    }

    pub fn renew(&mut self, grant: &Grant, now: Instant) -> bool {
        let claims = Arc::make_mut(&mut self.claims);
        let mut ours = BTreeSet::new();
        for (number, claim) in claims.range_mut(grant.range.from..=grant.range.to) {
            if *claim.token == grant.token && claim.until > now {
                claim.until = now + CLAIM_TTL;
                ours.insert(*number);
            }
        }
        (grant.range.from..=grant.range.to).all(|number| ours.contains(&number) || self.is_done(number))
    }

    pub fn release(&mut self, range: BlockRange, token: &str) {
        for number in range.from..=range.to {
            if self.claims.get(&number).is_some_and(|claim| *claim.token == *token) {
                Arc::make_mut(&mut self.claims).remove(&number);
            }
        }
    }

    pub fn retire(&mut self, owner: &Arc<str>) {
        Arc::make_mut(&mut self.claims).retain(|_, claim| claim.owner != *owner);
        Arc::make_mut(&mut self.heartbeats).remove(owner);
    }

    // Delivering.

    pub fn intent(&mut self, intent: &Intent<'_>) -> IntentReply {
        let Intent { block, parent, epoch, .. } = *intent;
        let is_stale = epoch != self.epoch && !self.has(StoreMutant::EpochUnchecked);
        if is_stale || self.frozen.is_some() {
            return IntentReply::Stale;
        }
        if self.is_old(intent.filter_version) {
            return IntentReply::OldList;
        }
        if self.is_done(block.number) {
            return IntentReply::Done;
        }
        let name = key(block, epoch);
        let begun = self.live.contains_key(&name);
        if self.retracting.contains_key(&name) {
            return IntentReply::Stale;
        }
        if signed(block.number) <= self.sealed && !begun {
            return IntentReply::Sealed;
        }
        let is_apart = self.has(StoreMutant::NeighboursUnchecked);
        let misfit = self.live_at(block.number.saturating_sub(1), block.number + 1).find(|(other, entry)| match other
            .0
            .cmp(&block.number)
        {
            Ordering::Equal => other.1 != block.hash,
            _ if is_apart => false,
            Ordering::Less => other.1 != parent,
            Ordering::Greater => entry.parent != block.hash,
        });
        if let Some((other, _)) = misfit {
            return IntentReply::Conflict(format!("{block} does not fit {}", block_of(other)));
        }
        if signed(block.number) - 1 == self.sealed && self.sealed_hash.is_some_and(|sealed| sealed != parent) {
            return IntentReply::Deep(format!("{block} does not fit what is sealed"));
        }
        if !begun {
            if intent.digest != Digest::of(intent.events) {
                return IntentReply::Stale;
            }
            if self.journal_bytes >= JOURNAL_CAP {
                return IntentReply::Full("the journal is full".into());
            }
            let entry = Entry { parent, done: false, retract_epoch: None, digests: Vec::new(), events: Vec::new() };
            Arc::make_mut(&mut self.live).insert(name, entry);
            self.journal_bytes += EVENT_BYTES;
        }
        if self.append(&name, intent.digest, intent.events) { IntentReply::Journaled } else { IntentReply::More }
    }

    /// Whether the entry holds these events now.
    pub(super) fn append(&mut self, name: &Key, digest: Digest, events: &[Event]) -> bool {
        let Some(entry) = Arc::make_mut(&mut self.live).get_mut(name) else { return false };
        if entry.digests.contains(&digest) {
            return true;
        }
        if entry.digests.last().copied().unwrap_or_default().and(Digest::of(events)) != digest {
            return false;
        }
        entry.digests.push(digest);
        entry.events.extend_from_slice(events);
        self.journal_bytes += EVENT_BYTES * events.len() as u64;
        true
    }

    fn drop_live(&mut self, name: &Key) {
        if let Some(entry) = Arc::make_mut(&mut self.live).remove(name) {
            self.journal_bytes -= EVENT_BYTES * (1 + entry.events.len() as u64);
        }
    }

    fn committed(&mut self, range: BlockRange) -> CommitReply {
        (range.from..=range.to).for_each(|number| self.add(number));
        self.forget_gaps(range.to);
        self.advance();
        self.tip = self.tip.max(signed(range.to));
        Arc::make_mut(&mut self.claims).retain(|number, _| !range.contains(*number));
        CommitReply::Committed { watermark: self.watermark, tip: self.tip, edited: false }
    }

    /// With one of two mutants: what is missing below is not remembered.
    fn forget_gaps(&mut self, committed: u64) {
        let first = self.done.first().copied();
        let up_to = match self.mutant {
            Some(StoreMutant::WatermarkIsTip) => Some(committed),
            Some(StoreMutant::OneGapOnly) => first.filter(|_| self.pieces > 1),
            _ => None,
        };
        if let Some(up_to) = up_to {
            (self.watermark + 1..=signed(up_to)).for_each(|number| self.add(unsigned(number)));
        }
    }

    pub fn commit(&mut self, commit: BlockCommit) -> CommitReply {
        let number = commit.block.number;
        let is_sealed = signed(number) <= self.sealed;
        if commit.epoch < self.replayed || self.frozen.is_some() {
            return CommitReply::Stale;
        }
        let name = key(commit.block, commit.epoch);
        let Some(entry) = self.live.get(&name) else {
            let is_known = self.retracting.contains_key(&name) || !is_sealed || !self.is_done(number);
            let is_fenced = is_known && !self.has(StoreMutant::CommitUnfenced);
            return if is_fenced { CommitReply::Fenced } else { self.committed(BlockRange::single(number)) };
        };
        if self.is_old(commit.filter_version) {
            return CommitReply::OldList;
        }
        if entry.digests.last() != Some(&commit.digest) && !self.has(StoreMutant::DigestUnchecked) {
            return CommitReply::More;
        }
        if is_sealed {
            self.drop_live(&name);
        } else if let Some(entry) = Arc::make_mut(&mut self.live).get_mut(&name) {
            entry.done = true;
        }
        self.committed(BlockRange::single(number))
    }

    pub fn commit_final(&mut self, commit: &FinalCommit) -> CommitReply {
        let range = commit.range;
        let was_sealed = signed(range.to) <= commit.sealed;
        let is_stale = commit.epoch != self.epoch && !was_sealed && !self.has(StoreMutant::FinalWithoutEpoch);
        if self.frozen.is_some() || commit.epoch < self.replayed || is_stale {
            return CommitReply::Stale;
        }
        if self.is_old(commit.filter_version) {
            return CommitReply::OldList;
        }
        let mut chain: BTreeMap<i64, B256> = commit.confirmed.iter().map(|at| (signed(at.number), at.hash)).collect();
        chain.extend([(signed(range.from) - 1, commit.parent), (signed(range.to), commit.hash)]);
        if self.sealed_hash.is_some_and(|sealed| chain.get(&self.sealed).is_some_and(|hash| *hash != sealed)) {
            return CommitReply::Conflict("the sealed block is not the chain's".into());
        }
        let names: Vec<Key> = self.live_at(range.from.saturating_sub(1), range.to + 1).map(|(key, _)| *key).collect();
        for name in &names {
            let fits = if name.0 > range.to {
                self.live[name].parent == commit.hash
            } else {
                chain.get(&signed(name.0)) == Some(&name.1)
            };
            if !fits && !self.has(StoreMutant::FinalUnchecked) {
                return CommitReply::Conflict(format!("{} is not the chain's", block_of(name)));
            }
        }
        let sealed = self.sealed;
        for name in names.iter().filter(|name| range.contains(name.0) && signed(name.0) <= sealed) {
            self.drop_live(name);
        }
        self.committed(range)
    }

    pub fn seal(&mut self, at: BlockRef, tops: &[BlockRef]) -> SealReply {
        let height = signed(at.number);
        if self.frozen.is_some() || height == self.sealed && self.sealed_hash != Some(at.hash) {
            return SealReply::Refused;
        }
        if height < self.sealed {
            return SealReply::Sealed { more: false };
        }
        if height > self.sealed {
            let below: Vec<(Key, B256)> = self.live_at(0, at.number).map(|(key, e)| (*key, e.parent)).collect();
            let parents: BTreeSet<(u64, B256)> = below.iter().map(|(key, parent)| (key.0, *parent)).collect();
            let is_top = |block: &BlockRef| !parents.contains(&(block.number + 1, block.hash));
            let expected: BTreeSet<BlockRef> = below.iter().map(|(key, _)| block_of(key)).filter(is_top).collect();
            let contradicted = below.iter().any(|(key, _)| key.0 == at.number && key.1 != at.hash);
            let said: BTreeSet<BlockRef> = tops.iter().copied().collect();
            let is_wrong = expected != said || tops.len() != said.len() || contradicted;
            if is_wrong && !self.has(StoreMutant::SealBlind) {
                return SealReply::Refused;
            }
            (self.sealed, self.sealed_hash) = (height, Some(at.hash));
        }
        let droppable: Vec<Key> = (self.live_at(0, at.number))
            .filter(|(key, entry)| entry.done || self.is_done(key.0))
            .map(|(key, _)| *key)
            .collect();
        droppable.iter().take(SEAL_DROPS).for_each(|name| self.drop_live(name));
        SealReply::Sealed { more: droppable.len() > SEAL_DROPS }
    }
}
