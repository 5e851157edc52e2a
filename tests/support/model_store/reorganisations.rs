//! What left the chain, and what is found later for a block that was delivered.

use std::{collections::BTreeSet, sync::Arc};

use alloy::primitives::B256;
use chaintap::{
    domain::BlockRef,
    store::{Amend, AmendReply, MAX_ORPHANS, Orphan, RewindReply},
};

use super::{
    StoreMutant,
    rules::{EVENT_BYTES, Entry, Key, State, block_of, heights, key, signed},
};

impl State {
    pub fn orphans(&self) -> Vec<Orphan> {
        if self.frozen.is_some() {
            return Vec::new();
        }
        let orphan = |(key, entry): (&Key, &Entry)| Orphan {
            block: block_of(key),
            epoch: key.2,
            retract_epoch: entry.retract_epoch.unwrap_or_default(),
        };
        self.retracting.iter().take(MAX_ORPHANS).map(orphan).collect()
    }

    #[allow(clippy::result_large_err, reason = "an early end, not an error")]
    pub fn rewind(
        &mut self,
        entries: &[(BlockRef, u64)],
        canonical: Option<BlockRef>,
        epoch: u64,
        clock: u64,
    ) -> Result<(), RewindReply> {
        if epoch != self.epoch && !self.has(StoreMutant::RewindUnchecked) {
            return Err(RewindReply::Stale);
        }
        if let Some(reason) = &self.frozen {
            return Err(RewindReply::Deep(reason.clone()));
        }
        let compared = self.sealed_hash.zip(canonical);
        if compared.is_some_and(|(_, theirs)| signed(theirs.number) != self.sealed) {
            return Err(RewindReply::Stale);
        }
        let named: BTreeSet<Key> = entries.iter().map(|(block, epoch)| key(*block, *epoch)).collect();
        let orphans: Vec<Key> = named.into_iter().filter(|name| self.live.contains_key(name)).collect();
        let contradicts = compared.is_some_and(|(ours, theirs)| ours != theirs.hash);
        if contradicts || orphans.iter().any(|name| signed(name.0) <= self.sealed) {
            let reason = format!("block {} ({:?}) is sealed, but left the chain", self.sealed, self.sealed_hash);
            self.frozen = Some(reason.clone());
            return Err(RewindReply::Deep(reason));
        }
        if orphans.is_empty() {
            return Ok(());
        }
        self.raise_epoch(clock);
        for name in &orphans {
            if let Some(mut entry) = Arc::make_mut(&mut self.live).remove(name) {
                entry.retract_epoch = Some(self.epoch);
                if !self.has(StoreMutant::RewindForgets) {
                    Arc::make_mut(&mut self.retracting).insert(*name, entry);
                }
            }
        }
        let hashes: BTreeSet<B256> = orphans.iter().map(|name| name.1).collect();
        let is_replaced =
            |state: &Self, n: u64| state.live_at(n, n).any(|(key, entry)| entry.done && !hashes.contains(&key.1));
        let mut gone: BTreeSet<u64> = orphans.iter().map(|name| name.0).filter(|n| !is_replaced(self, *n)).collect();
        if self.has(StoreMutant::OrphanStaysDone) {
            gone.clear();
        }
        if let Some(&lowest) = gone.first() {
            self.sink(signed(lowest) - 1);
        }
        for number in gone {
            self.remove(number);
            Arc::make_mut(&mut self.claims).remove(&number);
        }
        self.tip = self.highest_done();
        let lowest = orphans.first().map_or(i64::MAX, |name| signed(name.0));
        self.filter_checked = self.filter_checked.min(lowest - 1);
        Ok(())
    }

    pub fn retracted(&mut self, orphan: Orphan) {
        let name = key(orphan.block, orphan.epoch);
        if self.retracting.get(&name).is_some_and(|entry| entry.retract_epoch == Some(orphan.retract_epoch))
            && let Some(entry) = Arc::make_mut(&mut self.retracting).remove(&name)
        {
            self.journal_bytes -= EVENT_BYTES * (1 + entry.events.len() as u64);
        }
    }

    pub fn amend(&mut self, amend: &Amend<'_>) -> AmendReply {
        if self.frozen.is_some() {
            return AmendReply::Frozen;
        }
        if self.is_old(amend.filter_version) {
            return AmendReply::OldList;
        }
        let BlockRef { number, hash } = amend.block;
        let ours = self.live_at(number, number).filter(|(key, _)| key.1 == hash).map(|(key, _)| *key).last();
        if let Some(name) = ours {
            let epoch = name.2;
            let holds = self.append(&name, amend.digest, amend.events);
            return if holds { AmendReply::Journaled { epoch } } else { AmendReply::More { epoch } };
        }
        let is_retracting = self.retracting.range(heights(number, number)).any(|(key, _)| key.1 == hash);
        if is_retracting || self.live_at(number, number).next().is_some() {
            return AmendReply::Gone;
        }
        if self.is_done(number) { AmendReply::Final { epoch: self.epoch } } else { AmendReply::Missing }
    }
}
