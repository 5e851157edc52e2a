//! The tables of the state file, opened within one transaction: reading and changing them, and no rules.

use alloy::primitives::B256;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    domain::{BlockRange, BlockRef, Digest},
    store::StoreError,
};

/// First byte of the truth's row; another one means that another version of the program wrote the file.
const SCHEMA: u8 = 1;

type EntryKey = (u64, [u8; 32], u64);
type PartKey = (u64, [u8; 32], u64, u32);

const TRUTH: TableDefinition<'_, (), &[u8]> = TableDefinition::new("truth");
const DONE: TableDefinition<'_, u64, u64> = TableDefinition::new("done");
const JOURNAL: TableDefinition<'_, EntryKey, &[u8]> = TableDefinition::new("journal");
const PARTS: TableDefinition<'_, PartKey, &[u8]> = TableDefinition::new("parts");
const DEAD: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("dead");
const DEAD_AGE: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("dead_age");

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
}

/// A journal entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(skip)]
    pub(super) key: EntryKey,
    pub(super) parent: B256,
    pub(super) done: bool,
    pub(super) bytes: u64,
    /// Cumulative: each covers all parts up to and including its own.
    pub(super) digests: Vec<Digest>,
}

impl Entry {
    pub(super) fn new(block: BlockRef, epoch: u64, parent: B256) -> Self {
        Self { key: entry_key(block, epoch), parent, done: false, bytes: 0, digests: Vec::new() }
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
    parts: Table<'t, PartKey, &'static [u8]>,
    dead: Table<'t, &'static str, &'static [u8]>,
    dead_age: Table<'t, (u64, &'static str), ()>,
    /// Whether there is anything to commit.
    pub(super) changed: bool,
}

impl<'t> Books<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            truth: transaction.open_table(TRUTH)?,
            done: transaction.open_table(DONE)?,
            journal: transaction.open_table(JOURNAL)?,
            parts: transaction.open_table(PARTS)?,
            dead: transaction.open_table(DEAD)?,
            dead_age: transaction.open_table(DEAD_AGE)?,
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
        Ok(redb::ReadableTableMetadata::len(&self.done)?)
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

    pub(super) fn entry(&self, block: BlockRef, epoch: u64) -> Result<Option<Entry>, StoreError> {
        let key = entry_key(block, epoch);
        let Some(row) = self.journal.get(key)? else { return Ok(None) };
        Ok(Some(Entry { key, ..decode(row.value())? }))
    }

    /// The entries of these heights, ascending.
    pub(super) fn entries(&self, heights: std::ops::RangeInclusive<u64>) -> Result<Vec<Entry>, StoreError> {
        let first = (*heights.start(), [0; 32], 0);
        let last = (*heights.end(), [0xff; 32], u64::MAX);
        let mut entries = Vec::new();
        for row in self.journal.range(first..=last)? {
            let (key, value) = row?;
            entries.push(Entry { key: key.value(), ..decode(value.value())? });
        }
        Ok(entries)
    }

    pub(super) fn put_entry(&mut self, entry: &Entry) -> Result<(), StoreError> {
        self.changed = true;
        self.journal.insert(entry.key, encode(entry)?.as_slice())?;
        Ok(())
    }

    pub(super) fn drop_entry(&mut self, entry: &Entry, truth: &mut Truth) -> Result<(), StoreError> {
        self.changed = true;
        for part in 0..entry.digests.len() {
            self.parts.remove(entry.part_key(part))?;
        }
        self.journal.remove(entry.key)?;
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

    // Dead letters, with an index of the undecodable ones by age.

    pub(super) fn has_letter(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.dead.get(key)?.is_some())
    }

    pub(super) fn letter_count(&self) -> Result<u64, StoreError> {
        Ok(redb::ReadableTableMetadata::len(&self.dead)?)
    }

    pub(super) fn undecodable_count(&self) -> Result<u64, StoreError> {
        Ok(redb::ReadableTableMetadata::len(&self.dead_age)?)
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

fn encode(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    postcard::to_allocvec(value)
        .map_err(|error| StoreError::Fatal(format!("cannot write a row of the state file: {error}")))
}

fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(row)
        .map_err(|error| StoreError::Fatal(format!("a row of the state file is unreadable: {error}")))
}
