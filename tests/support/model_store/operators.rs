//! What operators ask for, the filter with its duties, and dead letters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chaintap::{
    domain::{BlockRange, BlockRef},
    store::{
        DeadKind, DeadLetter, Duty, MAX_REFUSED, MAX_UNDECODABLE, Publication, PublishReply, ReplayReply, StoreError,
    },
};

use super::{
    Instant, StoreMutant,
    rules::{State, signed, unsigned},
};

fn halted(reason: &str) -> StoreError {
    StoreError::Fatal(format!("frozen: {reason}: run `chaintap resume --accept-reorg`"))
}

impl State {
    pub fn resume(&mut self, at: BlockRef, clock: u64) -> Result<(), StoreError> {
        if signed(at.number) > self.sealed {
            return Err(StoreError::Fatal(format!("{at} is above the sealed height")));
        }
        (self.sealed, self.sealed_hash, self.frozen) = (signed(at.number), Some(at.hash), None);
        self.raise_epoch(clock);
        self.replayed = self.epoch;
        Ok(())
    }

    pub fn replay(&mut self, to: i64, until: Option<u64>, clock: u64) -> Result<(), StoreError> {
        self.refuse_frozen()?;
        let last = until.map_or(self.tip, |until| signed(until).min(self.tip));
        self.sink(to);
        let missing: Vec<u64> = (self.done.iter().copied()).filter(|&n| to < signed(n) && signed(n) <= last).collect();
        missing.into_iter().for_each(|number| self.remove(number));
        if last == self.tip {
            self.tip = self.tip.min(to);
        }
        self.raise_epoch(clock);
        self.replayed = self.epoch;
        Ok(())
    }

    pub fn skip(&mut self, to: u64) -> Result<(), StoreError> {
        self.refuse_frozen()?;
        if signed(to) > self.watermark {
            let passed: Vec<u64> = self.done.range(..=to).copied().collect();
            passed.into_iter().for_each(|number| self.remove(number));
            self.watermark = signed(to);
            self.advance();
            self.tip = self.tip.max(signed(to));
        }
        Ok(())
    }

    fn refuse_frozen(&self) -> Result<(), StoreError> {
        self.frozen.as_ref().map_or(Ok(()), |reason| Err(halted(reason)))
    }

    /// Compare-and-set of the epoch.
    pub fn set(
        &mut self,
        epoch: u64,
        service: &str,
        work: impl FnOnce(&mut Self) -> Result<(), StoreError>,
    ) -> Result<ReplayReply, StoreError> {
        if epoch != self.epoch {
            return Ok(ReplayReply::Stale);
        }
        work(self)?;
        Ok(ReplayReply::Done(self.progress(service)))
    }

    pub fn publish(&mut self, publication: &Publication<'_>) -> PublishReply {
        if publication.version != self.filter_version {
            return PublishReply::Stale;
        }
        let is_first = self.filter_version == 0;
        let members = Arc::make_mut(&mut self.members);
        let left = publication.removed.iter().filter(|key| members.remove(*key)).count();
        let mut joined: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for member in publication.added {
            if members.insert(member.key.clone()) {
                let from = member.from.map_or(self.filter_checked + 1, signed);
                joined.entry(from).or_default().push(member.key.clone());
            }
        }
        if is_first || left > 0 || !joined.is_empty() {
            self.filter_version += 1;
        }
        for (from, mut members) in joined {
            if from <= self.tip && !is_first && !self.has(StoreMutant::DutyForgotten) {
                self.duties_made += 1;
                members.sort();
                let range = BlockRange { from: unsigned(from), to: unsigned(self.tip) };
                let duty = Duty { id: self.duties_made, range, members };
                Arc::make_mut(&mut self.duties).insert(duty.id, duty);
            }
        }
        if is_first {
            self.filter_checked = self.tip;
        }
        if let Some(checked) = publication.checked.filter(|checked| checked.epoch == self.epoch) {
            self.filter_checked = self.filter_checked.max(checked.tip.min(self.tip));
        }
        PublishReply::Published(self.filter_version)
    }

    pub fn duty(&mut self, owner: &Arc<str>, now: Instant) -> Option<Duty> {
        let mine = self.duty_owners.get(owner).and_then(|id| self.duties.get(id)).cloned();
        if mine.is_none() {
            let heartbeats = Arc::clone(&self.heartbeats);
            let is_alive = |other: &Arc<str>| heartbeats.get(other).is_some_and(|&until| until > now);
            Arc::make_mut(&mut self.duty_owners).retain(|other, _| is_alive(other));
        }
        let taken: BTreeSet<u64> = self.duty_owners.values().copied().collect();
        let duty = mine.or_else(|| self.duties.values().find(|duty| !taken.contains(&duty.id)).cloned())?;
        let owners = Arc::make_mut(&mut self.duty_owners);
        owners.retain(|_, id| *id != duty.id);
        owners.insert(Arc::clone(owner), duty.id);
        self.beat(owner, now);
        Some(duty)
    }

    pub fn scanned(&mut self, id: u64, up_to: u64) {
        let duties = Arc::make_mut(&mut self.duties);
        let Some(duty) = duties.get_mut(&id) else { return };
        if up_to >= duty.range.to {
            duties.remove(&id);
            Arc::make_mut(&mut self.duty_owners).retain(|_, owned| *owned != id);
        } else if up_to >= duty.range.from {
            duty.range.from = up_to + 1;
        }
    }

    pub fn bury(&mut self, letters: &[DeadLetter]) -> bool {
        let joins = |letter: &&DeadLetter| letter.kind == DeadKind::Refused && !self.letters.contains_key(&letter.key);
        let refused = self.letters.len() - self.undecodable.len() + letters.iter().filter(joins).count();
        if refused as u64 > MAX_REFUSED {
            return false;
        }
        for letter in letters {
            self.exhume(&letter.key);
            if letter.kind == DeadKind::Undecodable {
                Arc::make_mut(&mut self.undecodable).insert((letter.buried_at, letter.key.clone()));
            }
            Arc::make_mut(&mut self.letters).insert(letter.key.clone(), letter.clone());
        }
        while self.undecodable.len() as u64 > MAX_UNDECODABLE {
            let Some((_, oldest)) = self.undecodable.first().cloned() else { break };
            self.exhume(&oldest);
        }
        true
    }

    pub fn exhume(&mut self, key: &str) -> bool {
        let Some(letter) = Arc::make_mut(&mut self.letters).remove(key) else { return false };
        Arc::make_mut(&mut self.undecodable).remove(&(letter.buried_at, letter.key));
        true
    }
}
