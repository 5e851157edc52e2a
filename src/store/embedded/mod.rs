//! The state's home without a server: one file, one process.
//!
//! Every operation is one transaction of redb, which is on disk before it counts (fsync), so an intent needs no further
//! barrier. There is one owner, so claims live in memory and are always granted; their tokens are compared all the same.
//! There are no views: nobody but this process can read the file while it runs.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use redb::{Database, DatabaseError, backends::InMemoryBackend};

use self::{
    books::{Books, Truth},
    home::{Home, now},
    rules::{Draft, Part},
    unwind::Claimed,
};
use super::{
    Amend, AmendReply, BlockCommit, ClaimReply, CommitReply, DeadLetter, Duty, FinalCommit, Grant, Initialised, Intent,
    IntentReply, JournalEntry, Orphan, Publication, PublishReply, Published, ReplayReply, RewindReply, SealReply,
    Snapshot, Start, StateStore, StoreError, check_claim, check_learned, check_number, check_publication, check_replay,
    packed, read_letter,
};
use crate::domain::{BlockRange, BlockRef, Digest, Event, Track};

mod books;
mod claims;
mod filter;
mod home;
mod letters;
mod operator;
mod rules;
mod unwind;

/// State in a file of our own, or in memory.
#[derive(Clone, Debug)]
pub struct Embedded {
    home: Arc<Home>,
    /// None in memory.
    file: Option<Arc<OnDisk>>,
}

/// The file that is open. A process keeps a file that somebody deleted, and would lose with it all it wrote since.
#[derive(Debug)]
struct OnDisk {
    path: PathBuf,
    /// Device and inode when it was opened.
    identity: (u64, u64),
}

impl OnDisk {
    fn of(path: PathBuf) -> std::io::Result<Self> {
        let identity = identity(&path)?;
        Ok(Self { path, identity })
    }

    /// Whether the file is still where it was.
    fn look(&self) -> Result<(), StoreError> {
        match identity(&self.path) {
            Ok(there) if there == self.identity => Ok(()),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Transient(error.to_string())),
            _ => Err(StoreError::Vanished(format!(
                "the state file {} was deleted or replaced while in use",
                self.path.display()
            ))),
        }
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let file = std::fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
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
        let on_disk = OnDisk::of(path.clone())
            .map_err(|error| StoreError::Fatal(of_file(format!("cannot be read ({error})"))))?;
        let home = Home::new(database, chain_id, service, true);
        Ok(Self { home: Arc::new(home), file: Some(Arc::new(on_disk)) })
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
        Ok(Self { home: Arc::new(Home::new(database, chain_id, service, false)), file: None })
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
                Ok(ReplayReply::Done(home.progress(books, truth)?))
            })
        })
        .await
    }
}

fn file(dir: &Path, chain_id: u64) -> PathBuf {
    dir.join(format!("chain-{chain_id}.redb"))
}

#[async_trait]
impl StateStore for Embedded {
    async fn init(&self, start: Start) -> Result<Initialised, StoreError> {
        let first = match start {
            Start::At(first) | Start::Latest(first) => Some(first),
            Start::Expected => None,
        };
        check_number(first.unwrap_or(0))?;
        self.run(move |home| home.init(first)).await
    }

    async fn peek(&self) -> Result<Option<Snapshot>, StoreError> {
        self.run(Home::peek).await
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let file = self.file.clone();
        let found = self.run(move |home| file.map_or(Ok(()), |file| file.look()).and_then(|()| home.peek())).await?;
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
        let grant = grant.clone();
        self.run(move |home| home.renew(&grant)).await
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
            part: packed_part(intent.block, intent.digest, intent.events)?,
        };
        self.operate(move |books, truth| rules::intent(books, truth, &draft)).await
    }

    async fn journaled(&self, block: BlockRef, epoch: u64) -> Result<Vec<Event>, StoreError> {
        let read = move |books: &mut Books<'_>, _: &mut Truth| {
            let live = books.entry(block, epoch)?;
            let entry = live.map_or_else(|| books.orphan(block, epoch), |live| Ok(Some(live)))?;
            entry.map_or(Ok(Vec::new()), |entry| books.parts(&entry))
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

    async fn commit(&self, commit: BlockCommit, _track: Track) -> Result<CommitReply, StoreError> {
        self.run(move |home| home.commit(commit)).await
    }

    async fn commit_final(&self, commit: FinalCommit, _track: Track) -> Result<CommitReply, StoreError> {
        check_claim(commit.range)?;
        self.run(move |home| home.commit_final(&commit)).await
    }

    async fn seal(&self, at: BlockRef, tops: &[BlockRef]) -> Result<SealReply, StoreError> {
        check_number(at.number)?;
        let tops = tops.to_vec();
        self.operate(move |books, truth| rules::seal(books, truth, at, &tops)).await
    }

    async fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        self.operate(|books, truth| unwind::orphans(books, truth)).await
    }

    async fn rewind(
        &self,
        entries: &[(BlockRef, u64)],
        sealed: Option<BlockRef>,
        epoch: u64,
    ) -> Result<RewindReply, StoreError> {
        entries.iter().map(|(block, _)| block).chain(&sealed).try_for_each(|block| check_number(block.number))?;
        let claimed = Claimed { entries: entries.to_vec(), sealed, epoch };
        self.run(move |home| home.rewind(&claimed)).await
    }

    async fn retracted(&self, orphan: Orphan) -> Result<(), StoreError> {
        self.operate(move |books, truth| unwind::retracted(books, truth, orphan)).await
    }

    async fn amend(&self, amend: Amend<'_>) -> Result<AmendReply, StoreError> {
        let Amend { block, filter_version, digest, events } = amend;
        check_number(block.number)?;
        let part = packed_part(block, digest, events)?;
        self.operate(move |books, truth| unwind::amend(books, truth, block, filter_version, &part)).await
    }

    async fn resume(&self, at: BlockRef, epoch: u64) -> Result<ReplayReply, StoreError> {
        check_number(at.number)?;
        self.set(epoch, move |_, truth| operator::resume(truth, at, now())).await
    }

    async fn replay(&self, to: i64, until: Option<u64>, epoch: u64) -> Result<ReplayReply, StoreError> {
        check_replay(to, until)?;
        self.set(epoch, move |books, truth| operator::replay(books, truth, to, until, now())).await
    }

    async fn published(&self) -> Result<Published, StoreError> {
        self.operate(|books, truth| Ok(Published { version: truth.filter_version, members: books.members()? })).await
    }

    async fn publish(&self, publication: Publication<'_>) -> Result<PublishReply, StoreError> {
        check_publication(&publication)?;
        let Publication { version, added, removed, checked } = publication;
        let (added, removed) = (added.to_vec(), removed.to_vec());
        self.operate(move |books, truth| {
            let publication = Publication { version, added: &added, removed: &removed, checked };
            filter::publish(books, truth, &publication)
        })
        .await
    }

    async fn duty(&self) -> Result<Option<Duty>, StoreError> {
        self.operate(|books, _| books.first_duty()).await
    }

    async fn scanned(&self, duty: u64, up_to: u64) -> Result<(), StoreError> {
        check_number(up_to)?;
        self.operate(move |books, _| filter::scanned(books, duty, up_to)).await
    }

    async fn wipe(&self) -> Result<(), StoreError> {
        self.run(Home::wipe).await?;
        self.retire().await
    }

    async fn skip(&self, to: u64, epoch: u64) -> Result<ReplayReply, StoreError> {
        check_number(to)?;
        self.set(epoch, move |books, truth| operator::skip(books, truth, to)).await
    }

    async fn bury(&self, letters: &[DeadLetter]) -> Result<bool, StoreError> {
        let letters = letters.to_vec();
        self.operate(move |books, _| letters::bury(books, &letters)).await
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

    async fn learned(&self) -> Result<BTreeMap<String, String>, StoreError> {
        self.run(|home| home.transact(|books| books.learned())).await
    }

    async fn learn(&self, endpoint: &str, learned: &str) -> Result<(), StoreError> {
        check_learned(endpoint, learned)?;
        let (endpoint, learned) = (endpoint.to_owned(), learned.to_owned());
        self.run(move |home| home.transact(|books| books.learn(&endpoint, &learned))).await
    }

    fn durability(&self) -> String {
        if self.home.on_disk { "fsync".into() } else { "none: in memory".into() }
    }
}

fn packed_part(block: BlockRef, all: Digest, events: &[Event]) -> Result<Part, StoreError> {
    Ok(Part { all, own: Digest::of(events), events: packed::pack(block, events)? })
}

macro_rules! failures {
    ($($error:ident),+) => {
        $(impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                // After one that failed redb refuses everything until the file is opened again, and does not say why.
                Self::Fatal(format!("state file: {error}: mend that, then start the program again"))
            }
        })+
    };
}

failures!(StorageError, TableError, TransactionError, CommitError);

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_disk_that_fails_is_told_by_its_own_words_at_the_first_failure() {
        let full = redb::CommitError::from(redb::StorageError::from(io::Error::from(io::ErrorKind::StorageFull)));
        let told = StoreError::from(full);
        assert!(matches!(&told, StoreError::Fatal(why) if why.contains("no storage space")), "{told}");
    }
}
