//! The tables of the state file, opened within one transaction: reading and changing them, and no rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use alloy::primitives::B256;
use redb::{
    AccessGuard, ReadableTable, ReadableTableMetadata as _, StorageError, Table, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    domain::{BlockRange, BlockRef, Digest},
    store::{Duty, MAX_LEARNED, StoreError},
};

/// First byte of the truth's row; another one means that another version of the program wrote the file.
const SCHEMA: u8 = 1;

type EntryKey = (u64, [u8; 32], u64);
type PartKey = (u64, [u8; 32], u64, u32);

const TRUTH: TableDefinition<'_, (), &[u8]> = TableDefinition::new("truth");
const DONE: TableDefinition<'_, u64, u64> = TableDefinition::new("done");
const JOURNAL: TableDefinition<'_, EntryKey, &[u8]> = TableDefinition::new("journal");
const RETRACTING: TableDefinition<'_, EntryKey, &[u8]> = TableDefinition::new("retracting");
const PARTS: TableDefinition<'_, PartKey, &[u8]> = TableDefinition::new("parts");
const MEMBERS: TableDefinition<'_, &str, ()> = TableDefinition::new("members");
const DUTIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("duties");
const DEAD: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("dead");
const DEAD_AGE: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("dead_age");
const ENDPOINTS: TableDefinition<'_, &str, &str> = TableDefinition::new("endpoints");

/// The truth but for intervals and journal; the fields are those of `store::Progress`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Truth {
    pub(super) chain_id: u64,
    pub(super) watermark: i64,
    pub(super) tip: i64,
    pub(super) sealed: i64,
    pub(super) sealed_hash: Option<B256>,
    pub(super) epoch: u64,
    pub(super) filter_version: u64,
    pub(super) frozen: Option<String>,
    /// Epoch of the last replay: what was sent before it does not count as delivered again.
    pub(super) replayed: u64,
    /// Bytes of all journal entries.
    pub(super) journal_bytes: u64,
    /// The tip when the filter was last checked: what joins is scanned for above it.
    pub(super) filter_checked: i64,
    /// Re-scan duties that were made so far; the last one's name.
    pub(super) duties: u64,
}

/// A journal entry: live, or in the table of those that are being taken back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(skip)]
    pub(super) key: EntryKey,
    pub(super) parent: B256,
    pub(super) done: bool,
    /// Epoch of the REWIND that took it back.
    pub(super) retract_epoch: Option<u64>,
    pub(super) bytes: u64,
    /// Cumulative: each covers all parts up to and including its own.
    pub(super) digests: Vec<Digest>,
}

impl Entry {
    pub(super) fn new(block: BlockRef, epoch: u64, parent: B256) -> Self {
        Self { key: entry_key(block, epoch), parent, done: false, retract_epoch: None, bytes: 0, digests: Vec::new() }
    }

    pub(super) fn block(&self) -> BlockRef {
        BlockRef { number: self.key.0, hash: B256::from(self.key.1) }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.key.2
    }

    fn part_key(&self, part: usize) -> PartKey {
        (self.key.0, self.key.1, self.key.2, u32::try_from(part).unwrap_or(u32::MAX))
    }
}

fn entry_key(block: BlockRef, epoch: u64) -> EntryKey {
    (block.number, block.hash.0, epoch)
}

/// Every table, within one transaction.
pub(super) struct Books<'t> {
    truth: Table<'t, (), &'static [u8]>,
    done: Table<'t, u64, u64>,
    journal: Table<'t, EntryKey, &'static [u8]>,
    retracting: Table<'t, EntryKey, &'static [u8]>,
    parts: Table<'t, PartKey, &'static [u8]>,
    members: Table<'t, &'static str, ()>,
    duties: Table<'t, u64, &'static [u8]>,
    dead: Table<'t, &'static str, &'static [u8]>,
    dead_age: Table<'t, (u64, &'static str), ()>,
    endpoints: Table<'t, &'static str, &'static str>,
    /// Whether there is anything to commit.
    pub(super) changed: bool,
}

impl<'t> Books<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            truth: transaction.open_table(TRUTH)?,
            done: transaction.open_table(DONE)?,
            journal: transaction.open_table(JOURNAL)?,
            retracting: transaction.open_table(RETRACTING)?,
            parts: transaction.open_table(PARTS)?,
            members: transaction.open_table(MEMBERS)?,
            duties: transaction.open_table(DUTIES)?,
            dead: transaction.open_table(DEAD)?,
            dead_age: transaction.open_table(DEAD_AGE)?,
            endpoints: transaction.open_table(ENDPOINTS)?,
            changed: false,
        })
    }

    pub(super) fn truth(&self) -> Result<Option<Truth>, StoreError> {
        let Some(row) = self.truth.get(())? else { return Ok(None) };
        match row.value().split_first() {
            Some((&SCHEMA, rest)) => decode(rest).map(Some),
            _ => Err(StoreError::Fatal(
                "the state file was written by another version of this program: run that one".into(),
            )),
        }
    }

    pub(super) fn set_truth(&mut self, truth: &Truth) -> Result<(), StoreError> {
        self.changed = true;
        let mut row = vec![SCHEMA];
        row.extend(encode(truth)?);
        self.truth.insert((), row.as_slice())?;
        Ok(())
    }

    /// Empties every table.
    pub(super) fn wipe(&mut self) -> Result<(), StoreError> {
        self.changed = true;
        self.truth.retain(|(), _| false)?;
        self.done.retain(|_, _| false)?;
        self.journal.retain(|_, _| false)?;
        self.retracting.retain(|_, _| false)?;
        self.parts.retain(|_, _| false)?;
        self.members.retain(|_, ()| false)?;
        self.duties.retain(|_, _| false)?;
        self.dead.retain(|_, _| false)?;
        self.dead_age.retain(|_, ()| false)?;
        self.endpoints.retain(|_, _| false)?;
        Ok(())
    }

    pub(super) fn learned(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let row = |row: Result<(AccessGuard<'_, &str>, AccessGuard<'_, &str>), StorageError>| {
            let (name, learned) = row?;
            Ok((name.value().to_owned(), learned.value().to_owned()))
        };
        self.endpoints.iter()?.map(row).collect()
    }

    pub(super) fn learn(&mut self, endpoint: &str, learned: &str) -> Result<(), StoreError> {
        self.changed = true;
        if self.endpoints.get(endpoint)?.is_none() && self.endpoints.len()? >= MAX_LEARNED as u64 {
            self.endpoints.retain(|_, _| false)?;
        }
        self.endpoints.insert(endpoint, learned)?;
        Ok(())
    }

    // Done intervals: from -> to.

    /// The last interval that begins at or before `number`.
    pub(super) fn interval_before(&self, number: u64) -> Result<Option<BlockRange>, StoreError> {
        let last = self.done.range(..=number)?.next_back().transpose()?;
        Ok(last.map(|(from, to)| BlockRange { from: from.value(), to: to.value() }))
    }

    pub(super) fn intervals(&self) -> Result<Vec<BlockRange>, StoreError> {
        self.done
            .iter()?
            .map(|row| row.map(|(from, to)| BlockRange { from: from.value(), to: to.value() }))
            .map(|row| Ok(row?))
            .collect()
    }

    pub(super) fn interval_count(&self) -> Result<u64, StoreError> {
        Ok(self.done.len()?)
    }

    pub(super) fn starts_at(&self, number: u64) -> Result<bool, StoreError> {
        Ok(self.done.get(number)?.is_some())
    }

    pub(super) fn add_interval(&mut self, range: BlockRange) -> Result<(), StoreError> {
        self.changed = true;
        self.done.insert(range.from, range.to)?;
        Ok(())
    }

    pub(super) fn remove_interval(&mut self, range: BlockRange) -> Result<(), StoreError> {
        self.changed = true;
        self.done.remove(range.from)?;
        Ok(())
    }

    // Journal.

    /// The live entry of this name.
    pub(super) fn entry(&self, block: BlockRef, epoch: u64) -> Result<Option<Entry>, StoreError> {
        entry_of(&self.journal, entry_key(block, epoch))
    }

    /// The entry of this name that is being taken back.
    pub(super) fn orphan(&self, block: BlockRef, epoch: u64) -> Result<Option<Entry>, StoreError> {
        entry_of(&self.retracting, entry_key(block, epoch))
    }

    /// The live entries of these heights, ascending.
    pub(super) fn entries(&self, heights: RangeInclusive<u64>) -> Result<Vec<Entry>, StoreError> {
        entries_of(&self.journal, heights, usize::MAX)
    }

    /// At most `limit` of the entries of these heights that are being taken back, ascending.
    pub(super) fn orphans(&self, heights: RangeInclusive<u64>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        entries_of(&self.retracting, heights, limit)
    }

    pub(super) fn orphan_count(&self) -> Result<u64, StoreError> {
        Ok(self.retracting.len()?)
    }

    /// Stores the entry where it belongs: among the live ones, or among those that are being taken back.
    pub(super) fn put_entry(&mut self, entry: &Entry) -> Result<(), StoreError> {
        self.changed = true;
        let row = encode(entry)?;
        if entry.retract_epoch.is_some() {
            self.journal.remove(entry.key)?;
            self.retracting.insert(entry.key, row.as_slice())?;
        } else {
            self.journal.insert(entry.key, row.as_slice())?;
        }
        Ok(())
    }

    pub(super) fn drop_entry(&mut self, entry: &Entry, truth: &mut Truth) -> Result<(), StoreError> {
        self.changed = true;
        for part in 0..entry.digests.len() {
            self.parts.remove(entry.part_key(part))?;
        }
        self.journal.remove(entry.key)?;
        self.retracting.remove(entry.key)?;
        truth.journal_bytes = truth.journal_bytes.saturating_sub(entry.bytes);
        Ok(())
    }

    /// Stores the events of the entry's next part.
    pub(super) fn put_part(&mut self, entry: &Entry, events: &[u8]) -> Result<(), StoreError> {
        self.changed = true;
        self.parts.insert(entry.part_key(entry.digests.len()), events)?;
        Ok(())
    }

    pub(super) fn parts(&self, entry: &Entry) -> Result<Vec<Vec<u8>>, StoreError> {
        let part = |part| {
            let row = self.parts.get(entry.part_key(part))?;
            let lost =
                || StoreError::Vanished(format!("part {part} of block {} is missing from the journal", entry.block()));
            row.map(|row| row.value().to_vec()).ok_or_else(lost)
        };
        (0..entry.digests.len()).map(part).collect()
    }

    // What events are filtered with, and what is to be scanned for it.

    pub(super) fn members(&self) -> Result<BTreeSet<String>, StoreError> {
        self.members.iter()?.map(|row| Ok(row?.0.value().to_owned())).collect()
    }

    /// Whether it was none before.
    pub(super) fn add_member(&mut self, key: &str) -> Result<bool, StoreError> {
        self.changed = true;
        Ok(self.members.insert(key, ())?.is_none())
    }

    /// Whether it was one.
    pub(super) fn remove_member(&mut self, key: &str) -> Result<bool, StoreError> {
        self.changed = true;
        Ok(self.members.remove(key)?.is_some())
    }

    /// The lowest duty.
    pub(super) fn first_duty(&self) -> Result<Option<Duty>, StoreError> {
        let first = self.duties.first()?.map(|(id, row)| duty(id.value(), row.value()));
        first.transpose()
    }

    pub(super) fn duty(&self, id: u64) -> Result<Option<Duty>, StoreError> {
        self.duties.get(id)?.map(|row| duty(id, row.value())).transpose()
    }

    pub(super) fn put_duty(&mut self, duty: &Duty) -> Result<(), StoreError> {
        self.changed = true;
        let row = encode(&(duty.range.from, duty.range.to, &duty.members))?;
        self.duties.insert(duty.id, row.as_slice())?;
        Ok(())
    }

    pub(super) fn drop_duty(&mut self, id: u64) -> Result<(), StoreError> {
        self.changed = true;
        self.duties.remove(id)?;
        Ok(())
    }

    // Dead letters, with an index of the undecodable ones by age.

    pub(super) fn has_letter(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.dead.get(key)?.is_some())
    }

    pub(super) fn letter_count(&self) -> Result<u64, StoreError> {
        Ok(self.dead.len()?)
    }

    pub(super) fn undecodable_count(&self) -> Result<u64, StoreError> {
        Ok(self.dead_age.len()?)
    }

    /// Up to `limit` letters after the key `after`, by key.
    pub(super) fn letters(&self, after: &str, limit: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let rows = self.dead.range(after..)?.filter(|row| !row.as_ref().is_ok_and(|(key, _)| key.value() == after));
        rows.take(limit).map(|row| Ok(row?.1.value().to_vec())).collect()
    }

    pub(super) fn put_letter(
        &mut self,
        key: &str,
        letter: &[u8],
        undecodable_at: Option<u64>,
    ) -> Result<(), StoreError> {
        self.drop_letter(key)?;
        self.dead.insert(key, letter)?;
        if let Some(at) = undecodable_at {
            self.dead_age.insert((at, key), ())?;
        }
        Ok(())
    }

    /// Whether there was one.
    pub(super) fn drop_letter(&mut self, key: &str) -> Result<bool, StoreError> {
        self.changed = true;
        let Some(letter) = self.dead.remove(key)?.map(|row| row.value().to_vec()) else { return Ok(false) };
        let letter = crate::store::read_letter(&letter)?;
        self.dead_age.remove((letter.buried_at, key))?;
        Ok(true)
    }

    pub(super) fn drop_oldest_undecodable(&mut self) -> Result<(), StoreError> {
        let oldest = self.dead_age.first()?.map(|(age, _)| age.value().1.to_owned());
        oldest.map_or(Ok(false), |key| self.drop_letter(&key)).map(drop)
    }
}

type Entries<'t> = Table<'t, EntryKey, &'static [u8]>;

fn entry_of(table: &Entries<'_>, key: EntryKey) -> Result<Option<Entry>, StoreError> {
    let Some(row) = table.get(key)? else { return Ok(None) };
    Ok(Some(Entry { key, ..decode(row.value())? }))
}

fn entries_of(table: &Entries<'_>, heights: RangeInclusive<u64>, limit: usize) -> Result<Vec<Entry>, StoreError> {
    let first = (*heights.start(), [0; 32], 0);
    let last = (*heights.end(), [0xff; 32], u64::MAX);
    let mut entries = Vec::new();
    for row in table.range(first..=last)?.take(limit) {
        let (key, value) = row?;
        entries.push(Entry { key: key.value(), ..decode(value.value())? });
    }
    Ok(entries)
}

fn duty(id: u64, row: &[u8]) -> Result<Duty, StoreError> {
    let (from, to, members) = decode(row)?;
    Ok(Duty { id, range: BlockRange { from, to }, members })
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    postcard::to_allocvec(value)
        .map_err(|error| StoreError::Fatal(format!("cannot write a row of the state file: {error}")))
}

fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(row)
        .map_err(|error| StoreError::Fatal(format!("a row of the state file is unreadable: {error}")))
}
