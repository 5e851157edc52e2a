//! The state's home without a server: one file, one process.
//!
//! Every operation is one transaction of redb, which is on disk before it counts (fsync), so an intent needs no further
//! barrier. There is one owner, so claims live in memory and are always granted; their tokens are compared all the same.
//! There are no views: nobody but this process can read the file while it runs.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use alloy::primitives::B256;
use async_trait::async_trait;
use redb::{Database, DatabaseError, backends::InMemoryBackend};

use self::{
    books::{Books, Truth},
    claims::Claims,
    rules::Draft,
};
use super::{
    Amend, AmendReply, BlockCommit, ClaimReply, CommitReply, DeadLetter, Duty, FinalCommit, Grant, Initialised, Intent,
    IntentReply, JournalEntry, Orphan, Progress, Publication, PublishReply, Published, ReplayReply, RewindReply,
    SealReply, Snapshot, Start, StateStore, StoreError, check_claim, check_number, check_replay, packed, read_letter,
};
use crate::domain::{BlockRange, BlockRef, Digest, Event, Track};

mod books;
mod claims;
mod rules;

/// State in a file of our own, or in memory.
#[derive(Clone, Debug)]
pub struct Embedded {
    home: Arc<Home>,
}

#[derive(Debug)]
struct Home {
    database: Database,
    chain_id: u64,
    service: String,
    claims: Mutex<Claims>,
    /// Whether a commit waits for a disk: then work goes to a thread of its own.
    on_disk: bool,
}

impl Embedded {
    /// Opens `chain-{id}.redb` in the directory, or makes both.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] where another process has the file, [`StoreError::Fatal`] where the directory cannot be
    /// written or the file is broken.
    pub fn open(dir: &Path, chain_id: u64, service: &str) -> Result<Self, StoreError> {
        let path = file(dir, chain_id);
        let of_file = |what: String| format!("state file {}: {what}", path.display());
        std::fs::create_dir_all(dir)
            .map_err(|error| StoreError::Fatal(of_file(format!("cannot make its directory ({error})"))))?;
        let database = Database::create(&path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(of_file(
                "in use by another process: stop that one, or give this one another DATA_DIR".into(),
            )),
            error => {
                StoreError::Fatal(of_file(format!("cannot be opened ({error}): check DATA_DIR, or restore the file")))
            }
        })?;
        Ok(Self::new(database, chain_id, service, true))
    }

    /// Whether there is a file to open; asking makes none.
    #[must_use]
    pub fn exists(dir: &Path, chain_id: u64) -> bool {
        file(dir, chain_id).exists()
    }

    /// State that ends with the process, for tests and simulations.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fatal`] where there is no memory.
    pub fn in_memory(chain_id: u64, service: &str) -> Result<Self, StoreError> {
        let database = Database::builder()
            .create_with_backend(InMemoryBackend::new())
            .map_err(|error| StoreError::Fatal(format!("state in memory: {error}")))?;
        Ok(Self::new(database, chain_id, service, false))
    }

    fn new(database: Database, chain_id: u64, service: &str, on_disk: bool) -> Self {
        let service = service.to_owned();
        Self { home: Arc::new(Home { database, chain_id, service, claims: Mutex::default(), on_disk }) }
    }

    /// Runs work that may wait for the disk, off the runtime.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Home) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if !self.home.on_disk {
            return work(&self.home);
        }
        let home = Arc::clone(&self.home);
        tokio::task::spawn_blocking(move || work(&home))
            .await
            .unwrap_or_else(|error| Err(StoreError::Transient(format!("the state file's thread ended: {error}"))))
    }

    /// An operation on the truth that is there.
    async fn operate<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Books<'_>, &mut Truth) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(|home| home.operate(work)).await
    }

    /// An operation that ends with progress, if the epoch is still the caller's.
    async fn set<F>(&self, epoch: u64, work: F) -> Result<ReplayReply, StoreError>
    where
        F: FnOnce(&mut Books<'_>, &mut Truth) -> Result<(), StoreError> + Send + 'static,
    {
        self.run(move |home| {
            home.operate(|books, truth| {
                if truth.epoch != epoch {
                    return Ok(ReplayReply::Stale);
                }
                work(books, truth)?;
                Ok(ReplayReply::Done(home.progress(truth)))
            })
        })
        .await
    }
}

fn file(dir: &Path, chain_id: u64) -> PathBuf {
    dir.join(format!("chain-{chain_id}.redb"))
}

impl Home {
    /// One transaction: everything that `work` changed, or nothing.
    fn transact<T>(&self, work: impl FnOnce(&mut Books<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
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

    fn operate<T>(
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

    fn init(&self, first: u64) -> Result<Initialised, StoreError> {
        self.transact(|books| {
            if let Some(truth) = books.truth()? {
                if truth.chain_id != self.chain_id {
                    return Err(StoreError::Fatal(format!(
                        "the state file belongs to chain {}, not to chain {}: give each chain a DATA_DIR of its own",
                        truth.chain_id, self.chain_id
                    )));
                }
                return Ok(Initialised { progress: self.progress(&truth), fresh: false, edits: Vec::new() });
            }
            let last = i64::try_from(first).unwrap_or(i64::MAX) - 1;
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
            };
            books.set_truth(&truth)?;
            Ok(Initialised { progress: self.progress(&truth), fresh: true, edits: Vec::new() })
        })
    }

    fn progress(&self, truth: &Truth) -> Progress {
        Progress {
            watermark: truth.watermark,
            tip: truth.tip,
            sealed: truth.sealed,
            sealed_hash: truth.sealed_hash,
            epoch: truth.epoch,
            filter_version: truth.filter_version,
            frozen: truth.frozen.clone(),
            retracting: 0,
            service: self.service.clone(),
        }
    }

    fn peek(&self) -> Result<Option<Snapshot>, StoreError> {
        self.transact(|books| {
            let Some(truth) = books.truth()? else { return Ok(None) };
            Ok(Some(Snapshot { progress: self.progress(&truth), done: books.intervals()?.into_iter().collect() }))
        })
    }

    fn claim(&self, range: BlockRange) -> Result<ClaimReply, StoreError> {
        self.operate(|books, truth| {
            if let Some(reason) = &truth.frozen {
                return Ok(ClaimReply::Frozen(reason.clone()));
            }
            if rules::touches_done(books, truth, range)? {
                return Ok(ClaimReply::Done);
            }
            if !rules::has_room(books, truth, range)? {
                return Err(StoreError::Transient(
                    "as many gaps are open as may be: no new one is opened until some are filled".into(),
                ));
            }
            let live = books.entries(range.from.saturating_sub(1)..=range.to + 1)?;
            Ok(ClaimReply::Granted(Grant {
                range,
                token: self.claims().grant(range),
                epoch: truth.epoch,
                sealed: truth.sealed,
                filter_version: truth.filter_version,
                retracting: 0,
                live: live.iter().map(books::Entry::block).collect(),
            }))
        })
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        // A panic while the lock was held left a map that is whole all the same.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a commit its claims go.
    fn settle(&self, reply: &CommitReply, range: BlockRange, token: &str) {
        if matches!(reply, CommitReply::Committed { .. }) {
            self.claims().release(range, token);
        }
    }
}

/// Seconds since the Unix epoch: the only look at the clock, for epochs.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[async_trait]
impl StateStore for Embedded {
    async fn init(&self, start: Start) -> Result<Initialised, StoreError> {
        let first = match start {
            Start::At(first) | Start::Latest(first) => first,
            Start::Expected => return Err(StoreError::Fatal("not built yet".into())),
        };
        check_number(first)?;
        self.run(move |home| home.init(first)).await
    }

    async fn peek(&self) -> Result<Option<Snapshot>, StoreError> {
        self.run(Home::peek).await
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let found = self.peek().await?;
        found.ok_or_else(|| StoreError::Vanished("the state file holds no progress".into()))
    }

    async fn heartbeat(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn claim(&self, range: BlockRange) -> Result<ClaimReply, StoreError> {
        check_claim(range)?;
        self.run(move |home| home.claim(range)).await
    }

    async fn renew(&self, grant: &Grant) -> Result<bool, StoreError> {
        Ok(self.home.claims().holds(grant.range, &grant.token))
    }

    async fn release(&self, grant: &Grant) -> Result<(), StoreError> {
        self.home.claims().release(grant.range, &grant.token);
        Ok(())
    }

    async fn retire(&self) -> Result<(), StoreError> {
        self.home.claims().clear();
        Ok(())
    }

    async fn intent(&self, intent: Intent<'_>) -> Result<IntentReply, StoreError> {
        check_number(intent.block.number)?;
        let draft = Draft {
            block: intent.block,
            parent: intent.parent,
            epoch: intent.epoch,
            filter_version: intent.filter_version,
            digest: intent.digest,
            part: Digest::of(intent.events),
            events: packed::pack(intent.block, intent.events)?,
        };
        self.operate(move |books, truth| rules::intent(books, truth, &draft)).await
    }

    async fn journaled(&self, block: BlockRef, epoch: u64) -> Result<Vec<Event>, StoreError> {
        let read = move |books: &mut Books<'_>, _: &mut Truth| match books.entry(block, epoch)? {
            Some(entry) => books.parts(&entry),
            None => Ok(Vec::new()),
        };
        let parts = self.operate(read).await?;
        Ok(parts.iter().map(|part| packed::unpack(block, part)).collect::<Result<Vec<_>, _>>()?.concat())
    }

    async fn journal(&self, up_to: u64) -> Result<Vec<JournalEntry>, StoreError> {
        self.operate(move |books, _| {
            let entries = books.entries(0..=up_to)?;
            let entry = |entry: &books::Entry| JournalEntry {
                block: entry.block(),
                parent: entry.parent,
                epoch: entry.epoch(),
                done: entry.done,
            };
            Ok(entries.iter().map(entry).collect())
        })
        .await
    }

    async fn commit(&self, commit: BlockCommit, _track: Track, grant: &Grant) -> Result<CommitReply, StoreError> {
        let reply = self.operate(move |books, truth| rules::commit(books, truth, commit)).await?;
        self.home.settle(&reply, BlockRange::single(commit.block.number), &grant.token);
        Ok(reply)
    }

    async fn commit_final(&self, commit: FinalCommit, _track: Track, grant: &Grant) -> Result<CommitReply, StoreError> {
        let range = commit.range;
        check_claim(range)?;
        let reply = self.operate(move |books, truth| rules::commit_final(books, truth, &commit)).await?;
        self.home.settle(&reply, range, &grant.token);
        Ok(reply)
    }

    async fn seal(&self, at: BlockRef, tops: &[BlockRef]) -> Result<SealReply, StoreError> {
        check_number(at.number)?;
        let tops = tops.to_vec();
        self.operate(move |books, truth| rules::seal(books, truth, at, &tops)).await
    }

    async fn replay(&self, to: i64, _until: Option<u64>, epoch: u64) -> Result<ReplayReply, StoreError> {
        check_replay(to, None)?;
        self.set(epoch, move |books, truth| rules::replay(books, truth, to, now())).await
    }

    async fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        Ok(Vec::new())
    }

    async fn rewind(
        &self,
        _entries: &[(BlockRef, u64)],
        _sealed: Option<B256>,
        _epoch: u64,
    ) -> Result<RewindReply, StoreError> {
        Err(StoreError::Fatal("not built yet".into()))
    }

    async fn retracted(&self, _orphan: Orphan) -> Result<(), StoreError> {
        Err(StoreError::Fatal("not built yet".into()))
    }

    async fn amend(&self, _amend: Amend<'_>) -> Result<AmendReply, StoreError> {
        Err(StoreError::Fatal("not built yet".into()))
    }

    async fn resume(&self, _at: BlockRef, _epoch: u64) -> Result<ReplayReply, StoreError> {
        Err(StoreError::Fatal("not built yet".into()))
    }

    async fn published(&self) -> Result<Published, StoreError> {
        Ok(Published::default())
    }

    async fn publish(&self, publication: Publication<'_>) -> Result<PublishReply, StoreError> {
        Ok(PublishReply::Published(publication.version))
    }

    async fn duty(&self) -> Result<Option<Duty>, StoreError> {
        Ok(None)
    }

    async fn scanned(&self, _duty: u64, _up_to: u64) -> Result<(), StoreError> {
        Ok(())
    }

    async fn wipe(&self) -> Result<(), StoreError> {
        Err(StoreError::Fatal("not built yet".into()))
    }

    async fn skip(&self, to: u64, epoch: u64) -> Result<ReplayReply, StoreError> {
        check_number(to)?;
        self.set(epoch, move |books, truth| rules::skip(books, truth, to)).await
    }

    async fn bury(&self, letters: &[DeadLetter]) -> Result<bool, StoreError> {
        let letters = letters.to_vec();
        self.operate(move |books, _| rules::bury(books, &letters)).await
    }

    async fn dead_letters_len(&self) -> Result<u64, StoreError> {
        self.operate(|books, _| books.letter_count()).await
    }

    async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        let after = after.unwrap_or_default().to_owned();
        let rows = self.operate(move |books, _| books.letters(&after, limit)).await?;
        rows.iter().map(|row| read_letter(row)).collect()
    }

    async fn exhume(&self, keys: &[String]) -> Result<u64, StoreError> {
        let keys = keys.to_vec();
        self.operate(move |books, _| {
            keys.iter().try_fold(0, |removed, key| Ok(removed + u64::from(books.drop_letter(key)?)))
        })
        .await
    }

    fn durability(&self) -> String {
        if self.home.on_disk { "fsync".into() } else { "none: in memory".into() }
    }
}

macro_rules! failures {
    ($($error:ident),+) => {
        $(impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                match redb::Error::from(error) {
                    redb::Error::Io(error) => Self::Transient(format!("state file: {error}")),
                    // After a failed write redb refuses all others until the file is opened again.
                    error => Self::Fatal(format!("state file: {error}: start the program again")),
                }
            }
        })+
    };
}

failures!(StorageError, TableError, TransactionError, CommitError);
