//! Replies of the scripts: a list of strings, the first of which is a status.

use std::{collections::BTreeSet, str::FromStr};

use alloy::primitives::B256;

use crate::{
    domain::{BlockRange, BlockRef, IntervalSet},
    store::{
        AmendReply, ClaimReply, CommitReply, Duty, Grant, IntentReply, JournalEntry, Orphan, Progress, PublishReply,
        Published, ReplayReply, RewindReply, Snapshot, StoreError, above_sealed, crowded, full, halted,
    },
};

/// Fields of a progress reply, the status included (`progress_reply` in `_lib.lua`).
pub(super) const PROGRESS_FIELDS: usize = 9;

/// A reply whose fields are read by place.
#[derive(Debug)]
pub(super) struct Reply(Vec<Vec<u8>>);

impl Reply {
    /// Takes what Redis answered; the statuses that every script may give become errors.
    pub(super) fn new(fields: Vec<Vec<u8>>) -> Result<Self, StoreError> {
        let reply = Self(fields);
        match reply.status() {
            "VANISHED" => Err(StoreError::Vanished(
                "the chain's progress is gone from Redis while running: it was flushed, evicted or restored".into(),
            )),
            "WRONGTYPE" => {
                let (key, found, wanted) = (reply.text(1)?, reply.text(2)?, reply.text(3)?);
                Err(StoreError::Fatal(format!(
                    "Redis key {key} is a {found}, not a {wanted}: another program uses this database; \
                     rename or delete the key, or use another Redis"
                )))
            }
            _ => Ok(reply),
        }
    }

    /// The first field.
    pub(super) fn status(&self) -> &str {
        self.text(0).unwrap_or_default()
    }

    /// The fields after the first `skip`.
    pub(super) fn rest(&self, skip: usize) -> &[Vec<u8>] {
        self.0.get(skip..).unwrap_or_default()
    }

    /// A field as text.
    pub(super) fn text(&self, place: usize) -> Result<&str, StoreError> {
        let field = self.0.get(place).ok_or_else(|| self.unexpected())?;
        std::str::from_utf8(field).map_err(|_| self.unexpected())
    }

    /// A field as a number or a hash.
    pub(super) fn parse<T: FromStr>(&self, place: usize) -> Result<T, StoreError> {
        self.text(place)?.parse().map_err(|_| self.unexpected())
    }

    /// Names the status only: other fields may hold messages.
    pub(super) fn unexpected(&self) -> StoreError {
        StoreError::Fatal(format!(
            "Redis holds state that this version cannot read (reply {:?} with {} fields): \
             a key of the chain was changed by hand or by another version",
            self.0.first().map(|status| String::from_utf8_lossy(status)),
            self.0.len(),
        ))
    }

    fn block(&self, place: usize) -> Result<BlockRef, StoreError> {
        Ok(BlockRef { number: self.parse(place)?, hash: self.parse(place + 1)? })
    }

    /// The fields from `first` on as groups of `size`, by the place of each group.
    fn groups(&self, first: usize, size: usize) -> impl Iterator<Item = usize> {
        (first..self.0.len()).step_by(size)
    }

    pub(super) fn progress(&self, service: &str) -> Result<Progress, StoreError> {
        let sealed_hash = match self.text(4)? {
            "" => None,
            _ => Some(self.parse::<B256>(4)?),
        };
        let frozen = self.text(7)?;
        Ok(Progress {
            watermark: self.parse(1)?,
            tip: self.parse(2)?,
            sealed: self.parse(3)?,
            sealed_hash,
            epoch: self.parse(5)?,
            filter_version: self.parse(6)?,
            retracting: self.parse(8)?,
            frozen: (!frozen.is_empty()).then(|| frozen.to_owned()),
            service: service.to_owned(),
        })
    }

    pub(super) fn snapshot(&self, service: &str) -> Result<Snapshot, StoreError> {
        let interval = |place| {
            let (from, to) = self.text(place)?.split_once('-').ok_or_else(|| self.unexpected())?;
            let (Ok(from), Ok(to)) = (from.parse(), to.parse()) else { return Err(self.unexpected()) };
            BlockRange::new(from, to).ok_or_else(|| self.unexpected())
        };
        let done = self.groups(PROGRESS_FIELDS, 1).map(interval).collect::<Result<IntervalSet, _>>()?;
        Ok(Snapshot { progress: self.progress(service)?, done })
    }

    pub(super) fn claim(&self, range: BlockRange) -> Result<ClaimReply, StoreError> {
        Ok(match self.status() {
            "OK" => ClaimReply::Granted(Grant {
                range,
                token: self.text(1)?.to_owned(),
                epoch: self.parse(2)?,
                sealed: self.parse(3)?,
                filter_version: self.parse(4)?,
                retracting: self.parse(5)?,
                live: self.groups(6, 2).map(|place| self.block(place)).collect::<Result<_, _>>()?,
            }),
            "DONE" => ClaimReply::Done,
            "HELD" => ClaimReply::Held {
                blocks: BlockRange { from: self.parse(1)?, to: self.parse(2)? },
                retry_after: super::MIN_RETRY.max(std::time::Duration::from_millis(self.parse(3)?)),
            },
            "FROZEN" => ClaimReply::Frozen(self.text(1)?.to_owned()),
            "FULL" => return Err(crowded()),
            _ => return Err(self.unexpected()),
        })
    }

    pub(super) fn intent(&self) -> Result<IntentReply, StoreError> {
        Ok(match self.status() {
            "OK" => IntentReply::Journaled,
            "DONE" => IntentReply::Done,
            "STALE" => IntentReply::Stale,
            "OLDLIST" => IntentReply::OldList,
            "SEALED" => IntentReply::Sealed,
            "CONFLICT" => IntentReply::Conflict(self.text(1)?.to_owned()),
            "DEEP" => IntentReply::Deep(self.text(1)?.to_owned()),
            "MORE" => IntentReply::More,
            "FULL" => full(self.text(1)?),
            _ => return Err(self.unexpected()),
        })
    }

    pub(super) fn commit(&self) -> Result<CommitReply, StoreError> {
        Ok(match self.status() {
            "COMMITTED" => {
                CommitReply::Committed { watermark: self.parse(1)?, tip: self.parse(2)?, edited: self.text(3)? == "1" }
            }
            "FENCED" => CommitReply::Fenced,
            "STALE" => CommitReply::Stale,
            "OLDLIST" => CommitReply::OldList,
            "MORE" => CommitReply::More,
            "CONFLICT" => CommitReply::Conflict(self.text(1)?.to_owned()),
            _ => return Err(self.unexpected()),
        })
    }

    pub(super) fn journal(&self) -> Result<Vec<JournalEntry>, StoreError> {
        let entry = |place| {
            Ok(JournalEntry {
                block: self.block(place)?,
                parent: self.parse(place + 2)?,
                epoch: self.parse(place + 3)?,
                done: self.text(place + 4)? == "done",
            })
        };
        self.groups(1, 5).map(entry).collect()
    }

    pub(super) fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        let orphan = |place| {
            Ok(Orphan {
                block: self.block(place)?,
                epoch: self.parse(place + 2)?,
                retract_epoch: self.parse(place + 3)?,
            })
        };
        self.groups(1, 4).map(orphan).collect()
    }

    pub(super) fn rewound(&self, service: &str) -> Result<RewindReply, StoreError> {
        Ok(match self.status() {
            "OK" => RewindReply::Rewound(self.progress(service)?),
            "STALE" => RewindReply::Stale,
            "DEEP" => RewindReply::Deep(self.text(1)?.to_owned()),
            _ => return Err(self.unexpected()),
        })
    }

    pub(super) fn amended(&self) -> Result<AmendReply, StoreError> {
        Ok(match self.status() {
            "OK" => AmendReply::Journaled { epoch: self.parse(1)? },
            "MORE" => AmendReply::More { epoch: self.parse(1)? },
            "FINAL" => AmendReply::Final { epoch: self.parse(1)? },
            "MISSING" => AmendReply::Missing,
            "GONE" => AmendReply::Gone,
            "OLDLIST" => AmendReply::OldList,
            "FROZEN" => AmendReply::Frozen,
            _ => return Err(self.unexpected()),
        })
    }

    /// Of REPLAY, SKIP and RESUME.
    pub(super) fn replayed(&self, service: &str) -> Result<ReplayReply, StoreError> {
        Ok(match self.status() {
            "OK" => ReplayReply::Done(self.progress(service)?),
            "STALE" => ReplayReply::Stale,
            "FROZEN" => return Err(halted(self.text(1)?)),
            "ABOVE" => return Err(above_sealed(self.text(1)?)),
            _ => return Err(self.unexpected()),
        })
    }

    pub(super) fn published(&self) -> Result<Published, StoreError> {
        let members = self.texts(2)?;
        Ok(Published { version: self.parse(1)?, members })
    }

    pub(super) fn publication(&self) -> Result<PublishReply, StoreError> {
        Ok(match self.status() {
            "OK" => PublishReply::Published(self.parse(1)?),
            "STALE" => PublishReply::Stale,
            _ => return Err(self.unexpected()),
        })
    }

    pub(super) fn duty(&self) -> Result<Option<Duty>, StoreError> {
        if self.status() == "NONE" {
            return Ok(None);
        }
        let range = BlockRange::new(self.parse(2)?, self.parse(3)?).ok_or_else(|| self.unexpected())?;
        let members: BTreeSet<_> = self.texts(4)?;
        Ok(Some(Duty { id: self.parse(1)?, range, members: members.into_iter().collect() }))
    }

    fn texts<C: FromIterator<String>>(&self, first: usize) -> Result<C, StoreError> {
        self.groups(first, 1).map(|place| self.text(place).map(str::to_owned)).collect()
    }
}
