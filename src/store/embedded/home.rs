//! The open file with what is in memory beside it: one transaction for every operation, and the claims.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use redb::Database;

use super::{
    books::{self, Books, Truth},
    claims::Claims,
    rules,
    unwind::{self, Claimed, Rewound},
};
use crate::{
    domain::{BlockRange, signed},
    store::{
        BlockCommit, ClaimReply, CommitReply, FinalCommit, Grant, Initialised, Progress, RewindReply, Snapshot,
        StoreError, crowded,
    },
};

/// One chain's state.
#[derive(Debug)]
pub(super) struct Home {
    database: Database,
    chain_id: u64,
    service: String,
    claims: Mutex<Claims>,
    /// Whether a commit waits for a disk: then work goes to a thread of its own.
    pub(super) on_disk: bool,
}

impl Home {
    pub(super) fn new(database: Database, chain_id: u64, service: &str, on_disk: bool) -> Self {
        Self { database, chain_id, service: service.to_owned(), claims: Mutex::default(), on_disk }
    }

    /// One transaction: everything that `work` changed, or nothing.
    pub(super) fn transact<T>(
        &self,
        work: impl FnOnce(&mut Books<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let transaction = self.database.begin_write()?;
        let mut books = Books::open(&transaction)?;
        let value = work(&mut books)?;
        let changed = books.changed;
        drop(books);
        if changed {
            transaction.commit()?;
        } else {
            transaction.abort()?;
        }
        Ok(value)
    }

    pub(super) fn operate<T>(
        &self,
        work: impl FnOnce(&mut Books<'_>, &mut Truth) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.transact(|books| {
            let before =
                books.truth()?.ok_or_else(|| StoreError::Vanished("the state file holds no progress".into()))?;
            let mut truth = before.clone();
            let value = work(books, &mut truth)?;
            if truth != before {
                books.set_truth(&truth)?;
            }
            Ok(value)
        })
    }

    pub(super) fn init(&self, first: Option<u64>) -> Result<Initialised, StoreError> {
        self.transact(|books| {
            if let Some(truth) = books.truth()? {
                if truth.chain_id != self.chain_id {
                    return Err(StoreError::Fatal(format!(
                        "the state file belongs to chain {}, not to chain {}: give each chain a DATA_DIR of its own",
                        truth.chain_id, self.chain_id
                    )));
                }
                return Ok(Initialised { progress: self.progress(books, &truth)?, fresh: false, edits: Vec::new() });
            }
            let Some(first) = first else {
                return Err(StoreError::Fatal(format!(
                    "EXPECT_STATE is set, but the state file holds no state of chain {}: see that DATA_DIR is the right \
                     one, or restore its file; to begin anew, unset EXPECT_STATE",
                    self.chain_id
                )));
            };
            let last = signed(first) - 1;
            let truth = Truth {
                chain_id: self.chain_id,
                watermark: last,
                tip: last,
                sealed: -1,
                sealed_hash: None,
                epoch: now(),
                filter_version: 0,
                frozen: None,
                replayed: 0,
                journal_bytes: 0,
                filter_checked: last,
                duties: 0,
            };
            books.set_truth(&truth)?;
            Ok(Initialised { progress: self.progress(books, &truth)?, fresh: true, edits: Vec::new() })
        })
    }

    pub(super) fn progress(&self, books: &Books<'_>, truth: &Truth) -> Result<Progress, StoreError> {
        Ok(Progress {
            watermark: truth.watermark,
            tip: truth.tip,
            sealed: truth.sealed,
            sealed_hash: truth.sealed_hash,
            epoch: truth.epoch,
            filter_version: truth.filter_version,
            frozen: truth.frozen.clone(),
            retracting: books.orphan_count()?,
            service: self.service.clone(),
        })
    }

    pub(super) fn peek(&self) -> Result<Option<Snapshot>, StoreError> {
        self.transact(|books| {
            let Some(truth) = books.truth()? else { return Ok(None) };
            Ok(Some(Snapshot {
                progress: self.progress(books, &truth)?,
                done: books.intervals()?.into_iter().collect(),
            }))
        })
    }

    pub(super) fn claim(&self, range: BlockRange) -> Result<ClaimReply, StoreError> {
        self.operate(|books, truth| {
            if let Some(reason) = &truth.frozen {
                return Ok(ClaimReply::Frozen(reason.clone()));
            }
            if rules::touches_done(books, truth, range)? {
                return Ok(ClaimReply::Done);
            }
            if !rules::has_room(books, truth, range)? {
                return Err(crowded());
            }
            let live = books.entries(range.from.saturating_sub(1)..=range.to + 1)?;
            Ok(ClaimReply::Granted(Grant {
                range,
                token: self.claims().grant(range),
                epoch: truth.epoch,
                sealed: truth.sealed,
                filter_version: truth.filter_version,
                retracting: books.orphan_count()?,
                live: live.iter().map(books::Entry::block).collect(),
            }))
        })
    }

    pub(super) fn renew(&self, grant: &Grant) -> Result<bool, StoreError> {
        self.operate(|books, truth| {
            for number in grant.range.from..=grant.range.to {
                let is_ours = self.claims().holds(number, &grant.token);
                if !is_ours && !rules::touches_done(books, truth, BlockRange::single(number))? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    pub(super) fn commit(&self, commit: BlockCommit) -> Result<CommitReply, StoreError> {
        let range = BlockRange::single(commit.block.number);
        self.operate(|books, truth| Ok(self.settled(rules::commit(books, truth, commit)?, range)))
    }

    pub(super) fn commit_final(&self, commit: &FinalCommit) -> Result<CommitReply, StoreError> {
        self.operate(|books, truth| Ok(self.settled(rules::commit_final(books, truth, commit)?, commit.range)))
    }

    /// With a commit its claims go.
    fn settled(&self, reply: CommitReply, range: BlockRange) -> CommitReply {
        if matches!(reply, CommitReply::Committed { .. }) {
            self.claims().forget(range.from..=range.to);
        }
        reply
    }

    pub(super) fn rewind(&self, claimed: &Claimed) -> Result<RewindReply, StoreError> {
        let (reply, missing) = self.operate(|books, truth| {
            Ok(match unwind::rewind(books, truth, claimed, now())? {
                Rewound::Done(missing) => (RewindReply::Rewound(self.progress(books, truth)?), missing),
                Rewound::Stale => (RewindReply::Stale, Vec::new()),
                Rewound::Deep(reason) => (RewindReply::Deep(reason), Vec::new()),
            })
        })?;
        self.claims().forget(missing);
        Ok(reply)
    }

    #[expect(clippy::redundant_closure_for_method_calls, reason = "a method of books that borrow is no such closure")]
    pub(super) fn wipe(&self) -> Result<(), StoreError> {
        self.transact(|books| books.wipe())
    }

    pub(super) fn claims(&self) -> MutexGuard<'_, Claims> {
        // A panic while the lock was held left a map that is whole all the same.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since the Unix epoch: the only look at the clock, for epochs.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
