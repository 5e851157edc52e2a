//! The shared home of the state: one Redis database per chain, worked on by any number of replicas.
//!
//! Each operation is one Lua script (`scripts/*.lua`), so that no crash leaves half of it. This file turns calls into
//! scripts; `reply` turns their replies into types, `connection` keeps the way to Redis, and `barrier` proves that an
//! intent will survive before its messages leave.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;

use self::{args::Args, barrier::Barrier, connection::Link, reply::Reply, scripts::Lua, scripts::Scripts};
use super::{
    Amend, AmendReply, BlockCommit, CLAIM_TTL, ClaimReply, CommitReply, DeadKind, DeadLetter, Duty, FinalCommit, Grant,
    HEARTBEAT_TTL, Initialised, Intent, IntentReply, JOURNAL_CAP, JournalEntry, MARKER_BLOCKS, MAX_DONE_INTERVALS,
    MAX_LEARNED, MAX_ORPHANS, MAX_REFUSED, MAX_UNDECODABLE, Orphan, Publication, PublishReply, Published, ReplayReply,
    RewindReply, SEAL_DROPS, SealReply, Snapshot, Start, StateStore, StoreError, keys::Keys, packed,
};
use crate::{
    config::{Durability, SecretUrl},
    domain::{BlockRange, BlockRef, Digest, Event, REALTIME_GAP, Track},
};

mod args;
mod barrier;
mod connection;
mod reply;
mod scripts;

/// Never tell a caller to look again sooner: a claim may be about to expire.
const MIN_RETRY: Duration = Duration::from_millis(50);
/// Keys that one SCAN step looks at.
const SCAN_STEP: usize = 1_000;

/// Whose state it is, and who asks for it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The chain's Redis database (contract §3).
    pub redis_db: u8,
    /// Service name written into the views.
    pub service: String,
    /// This incarnation of the process: host and boot id. Another process must never have the same.
    pub owner: String,
}

/// State in Redis.
#[derive(Debug)]
pub struct RedisStore {
    identity: Identity,
    keys: Keys,
    scripts: Scripts,
    link: Link,
    barrier: Barrier,
}

impl RedisStore {
    /// Connects, and checks that the server is fit to hold the state. Writes nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fatal`] for what someone must mend (wrong database number, a cluster, eviction, a refused
    /// password, no barrier where one is required), [`StoreError::Transient`] where Redis cannot be reached.
    pub async fn connect(url: &SecretUrl, identity: Identity, durability: Durability) -> Result<Self, StoreError> {
        let link = Link::new(url, identity.redis_db)?;
        let info = link.info().await?;
        let barrier = Barrier::new(url, identity.redis_db, durability, &info).await?;
        Ok(Self { keys: Keys::new(identity.chain_id), scripts: Scripts::new(), identity, link, barrier })
    }

    /// The arguments of a script, behind those that every script gets (`ARGV[1..FIXED]` in `_lib.lua`).
    fn args(&self) -> Args {
        Args::default()
            .text(self.keys.prefix())
            .text(&self.identity.chain_id)
            .text(&self.identity.service)
            .text(&MARKER_BLOCKS)
            .text(&REALTIME_GAP)
    }

    async fn run(&self, script: &Lua, args: Args) -> Result<Reply, StoreError> {
        let keys = self.keys.fixed();
        let fields = self.link.with(async |connection| {
            match script.by_hash(keys, args.as_slice()).query_async(connection).await {
                Err(error) if connection::is_missing_script(&error) => {
                    script.by_text(keys, args.as_slice()).query_async(connection).await
                }
                answer => answer,
            }
        });
        self.reply(fields.await?).await
    }

    /// Runs a script that writes, and returns its reply once the write will survive.
    async fn behind_barrier(&self, script: &Lua, args: Args) -> Result<Reply, StoreError> {
        if !self.barrier.is_needed() {
            return self.run(script, args).await;
        }
        let fields = self.barrier.run(script, self.keys.fixed(), args.as_slice()).await?;
        self.reply(fields).await
    }

    async fn reply(&self, fields: Vec<Vec<u8>>) -> Result<Reply, StoreError> {
        let reply = Reply::new(fields);
        if matches!(reply, Err(StoreError::Vanished(_))) {
            // A primary that was demoted meanwhile may be empty, or behind: that is an outage, and no reason to stop.
            self.link.check().await?;
        }
        reply
    }

    /// Every key like `pattern`, in steps that do not hold up Redis.
    async fn scan(&self, pattern: &str) -> Result<Vec<String>, StoreError> {
        let (mut found, mut cursor) = (Vec::new(), 0);
        loop {
            let (next, keys) = self.scan_step(pattern, cursor).await?;
            found.extend(keys);
            if next == 0 {
                return Ok(found);
            }
            cursor = next;
        }
    }

    async fn scan_step(&self, pattern: &str, cursor: u64) -> Result<(u64, Vec<String>), StoreError> {
        self.link
            .with(async |connection| {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_STEP);
                scan.query_async(connection).await
            })
            .await
    }

    /// Refuses a database in which another chain has its state.
    async fn refuse_other_chains(&self) -> Result<(), StoreError> {
        for key in self.scan("chain:*:progress").await? {
            let other = key.split(':').nth(1).unwrap_or_default();
            if key != self.keys.progress() && other.parse::<u64>().is_ok() {
                return Err(StoreError::Fatal(format!(
                    "Redis database {} holds {key}, the state of chain {other}: give each chain a database of its own \
                     (chain {} uses {})",
                    self.identity.redis_db, self.identity.chain_id, self.identity.redis_db
                )));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl StateStore for RedisStore {
    async fn init(&self, start: Start) -> Result<Initialised, StoreError> {
        self.refuse_other_chains().await?;
        let args = match start {
            Start::At(first) | Start::Latest(first) => self.args().block(first)?,
            Start::Expected => self.args().text(""),
        };
        let reply = self.run(&self.scripts.init, args).await?;
        if reply.status() == "REFUSED" {
            return Err(StoreError::Fatal(reply.text(1)?.to_owned()));
        }
        let edits = reply.rest(reply::PROGRESS_FIELDS + 1);
        Ok(Initialised {
            progress: reply.progress(&self.identity.service)?,
            fresh: reply.text(reply::PROGRESS_FIELDS)? == "1",
            edits: edits.iter().map(|edit| String::from_utf8_lossy(edit).into_owned()).collect(),
        })
    }

    async fn peek(&self) -> Result<Option<Snapshot>, StoreError> {
        match self.snapshot().await {
            Err(StoreError::Vanished(_)) => Ok(None),
            found => found.map(Some),
        }
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.run(&self.scripts.snapshot, self.args()).await?.snapshot(&self.identity.service)
    }

    async fn heartbeat(&self) -> Result<(), StoreError> {
        self.barrier.refresh(&self.link.info().await?);
        let args = self.args().text(&self.identity.owner).text(&HEARTBEAT_TTL.as_millis());
        self.run(&self.scripts.heartbeat, args).await.map(drop)
    }

    async fn claim(&self, range: BlockRange) -> Result<ClaimReply, StoreError> {
        super::check_claim(range)?;
        let args = self
            .args()
            .range(range)?
            .text(&self.identity.owner)
            .text(&CLAIM_TTL.as_millis())
            .text(&HEARTBEAT_TTL.as_millis())
            .text(&MAX_DONE_INTERVALS);
        self.run(&self.scripts.claim, args).await?.claim(range)
    }

    async fn renew(&self, grant: &Grant) -> Result<bool, StoreError> {
        let args = self.args().range(grant.range)?.text(&grant.token).text(&CLAIM_TTL.as_millis());
        Ok(self.run(&self.scripts.renew, args).await?.status() == "OK")
    }

    async fn release(&self, grant: &Grant) -> Result<(), StoreError> {
        let args = self.args().range(grant.range)?.text(&grant.token);
        self.run(&self.scripts.release, args).await.map(drop)
    }

    async fn retire(&self) -> Result<(), StoreError> {
        let claims = self.scan(&format!("{}claim:*", self.keys.prefix())).await?;
        for keys in claims.chunks(SCAN_STEP).chain(claims.is_empty().then_some(&[][..])) {
            let args = self.args().text(&self.identity.owner).texts(keys);
            self.run(&self.scripts.retire, args).await?;
        }
        Ok(())
    }

    async fn intent(&self, intent: Intent<'_>) -> Result<IntentReply, StoreError> {
        let args = self
            .args()
            .named(intent.block)?
            .text(&intent.parent)
            .text(&intent.epoch)
            .text(&intent.filter_version)
            .text(&intent.digest)
            .text(&Digest::of(intent.events))
            .bytes(packed::pack(intent.block, intent.events)?)
            .text(&JOURNAL_CAP);
        self.behind_barrier(&self.scripts.intent, args).await?.intent()
    }

    async fn journaled(&self, block: BlockRef, epoch: u64) -> Result<Vec<Event>, StoreError> {
        let args = self.args().named(block)?.text(&epoch);
        let reply = self.run(&self.scripts.journaled, args).await?;
        if reply.status() == "LOST" {
            return Err(StoreError::Vanished(format!("{} is missing from the journal", reply.text(1)?)));
        }
        let parts = reply.rest(1).iter().map(|part| packed::unpack(block, part));
        Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
    }

    async fn journal(&self, up_to: u64) -> Result<Vec<JournalEntry>, StoreError> {
        self.run(&self.scripts.journal, self.args().text(&up_to)).await?.journal()
    }

    async fn commit(&self, commit: BlockCommit, track: Track) -> Result<CommitReply, StoreError> {
        let args = self
            .args()
            .named(commit.block)?
            .text(&commit.epoch)
            .text(&commit.filter_version)
            .text(&commit.digest)
            .text(&track);
        self.run(&self.scripts.commit, args).await?.commit()
    }

    async fn commit_final(&self, commit: FinalCommit, track: Track) -> Result<CommitReply, StoreError> {
        super::check_claim(commit.range)?;
        let args = self
            .args()
            .range(commit.range)?
            .text(&commit.epoch)
            .text(&commit.sealed)
            .text(&commit.parent)
            .text(&commit.hash)
            .text(&commit.filter_version)
            .text(&track)
            .blocks(&commit.confirmed)?;
        self.run(&self.scripts.commit_final, args).await?.commit()
    }

    async fn seal(&self, at: BlockRef, tops: &[BlockRef]) -> Result<SealReply, StoreError> {
        let args = self.args().named(at)?.text(&SEAL_DROPS).blocks(tops)?;
        let reply = self.run(&self.scripts.seal, args).await?;
        match reply.status() {
            "OK" => Ok(SealReply::Sealed { more: reply.text(1)? == "1" }),
            "REFUSED" => Ok(SealReply::Refused),
            _ => Err(reply.unexpected()),
        }
    }

    async fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        self.behind_barrier(&self.scripts.orphans, self.args().text(&MAX_ORPHANS)).await?.orphans()
    }

    async fn rewind(
        &self,
        entries: &[(BlockRef, u64)],
        sealed: Option<BlockRef>,
        epoch: u64,
    ) -> Result<RewindReply, StoreError> {
        let args = self.args().text(&epoch);
        let args = match sealed {
            Some(at) => args.named(at)?,
            None => args.text("").text(""),
        };
        let args = entries
            .iter()
            .try_fold(args, |args, (block, epoch)| Ok::<_, StoreError>(args.named(*block)?.text(epoch)))?;
        self.run(&self.scripts.rewind, args).await?.rewound(&self.identity.service)
    }

    async fn retracted(&self, orphan: Orphan) -> Result<(), StoreError> {
        let args = self.args().named(orphan.block)?.text(&orphan.epoch).text(&orphan.retract_epoch);
        self.run(&self.scripts.retracted, args).await.map(drop)
    }

    async fn amend(&self, amend: Amend<'_>) -> Result<AmendReply, StoreError> {
        let args = self
            .args()
            .named(amend.block)?
            .text(&amend.filter_version)
            .text(&amend.digest)
            .text(&Digest::of(amend.events))
            .bytes(packed::pack(amend.block, amend.events)?);
        self.behind_barrier(&self.scripts.amend, args).await?.amended()
    }

    async fn resume(&self, at: BlockRef, epoch: u64) -> Result<ReplayReply, StoreError> {
        let args = self.args().named(at)?.text(&epoch);
        self.run(&self.scripts.resume, args).await?.replayed(&self.identity.service)
    }

    async fn replay(&self, to: i64, until: Option<u64>, epoch: u64) -> Result<ReplayReply, StoreError> {
        super::check_replay(to, until)?;
        let args = self.args().text(&to).optional(until.as_ref()).text(&epoch);
        self.run(&self.scripts.replay, args).await?.replayed(&self.identity.service)
    }

    async fn skip(&self, to: u64, epoch: u64) -> Result<ReplayReply, StoreError> {
        let args = self.args().block(to)?.text(&epoch);
        self.run(&self.scripts.skip, args).await?.replayed(&self.identity.service)
    }

    async fn published(&self) -> Result<Published, StoreError> {
        self.run(&self.scripts.published, self.args()).await?.published()
    }

    async fn publish(&self, publication: Publication<'_>) -> Result<PublishReply, StoreError> {
        super::check_publication(&publication)?;
        let checked = publication.checked;
        let args = self
            .args()
            .text(&publication.version)
            .optional(checked.map(|checked| checked.tip).as_ref())
            .optional(checked.map(|checked| checked.epoch).as_ref())
            .text(&publication.added.len());
        let args = publication
            .added
            .iter()
            .fold(args, |args, member| args.text(&member.key).optional(member.from.as_ref()))
            .texts(publication.removed);
        self.behind_barrier(&self.scripts.publish, args).await?.publication()
    }

    async fn duty(&self) -> Result<Option<Duty>, StoreError> {
        let args = self.args().text(&self.identity.owner).text(&HEARTBEAT_TTL.as_millis());
        self.run(&self.scripts.duty, args).await?.duty()
    }

    async fn scanned(&self, duty: u64, up_to: u64) -> Result<(), StoreError> {
        self.run(&self.scripts.scanned, self.args().text(&duty).block(up_to)?).await.map(drop)
    }

    async fn others(&self) -> Result<Vec<String>, StoreError> {
        let prefix = format!("{}owner:", self.keys.prefix());
        let found = self.scan(&format!("{prefix}*")).await?;
        let names = found.iter().filter_map(|key| key.strip_prefix(&prefix));
        // SCAN may name a key twice.
        let names: BTreeSet<&str> = names.filter(|name| *name != self.identity.owner).collect();
        Ok(names.into_iter().map(str::to_owned).collect())
    }

    async fn claims(&self, range: BlockRange) -> Result<Vec<(u64, String)>, StoreError> {
        super::check_claim(range)?;
        let keys: Vec<String> =
            (range.from..=range.to).map(|number| format!("{}claim:{number}", self.keys.prefix())).collect();
        let mget = async |connection: &mut _| redis::cmd("MGET").arg(&keys).query_async(connection).await;
        let tokens: Vec<Option<String>> = self.link.with(mget).await?;
        let owner = |token: String| token.rsplit_once(':').map(|(owner, _)| owner.to_owned());
        Ok((range.from..).zip(tokens).filter_map(|(number, token)| Some((number, owner(token?)?))).collect())
    }

    async fn wipe(&self) -> Result<(), StoreError> {
        // The truth first: whoever still runs notices before anything is missing.
        self.run(&self.scripts.wipe, self.args()).await?;
        let pattern = format!("{}*", self.keys.prefix());
        let mut cursor = 0;
        loop {
            let (next, keys) = self.scan_step(&pattern, cursor).await?;
            if !keys.is_empty() {
                self.link.with(async |connection| redis::cmd("UNLINK").arg(&keys).exec_async(connection).await).await?;
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn bury(&self, letters: &[DeadLetter]) -> Result<bool, StoreError> {
        let mut args = self.args().text(&MAX_REFUSED).text(&MAX_UNDECODABLE);
        for letter in letters {
            let kind = match letter.kind {
                DeadKind::Refused => "refused",
                DeadKind::Undecodable => "undecodable",
            };
            args = args.text(&letter.key).text(kind).text(&letter.buried_at).bytes(super::write_letter(letter)?);
        }
        Ok(self.behind_barrier(&self.scripts.bury, args).await?.status() == "OK")
    }

    async fn dead_letters_len(&self) -> Result<u64, StoreError> {
        self.run(&self.scripts.dead_letters, self.args().text("").text(&0)).await?.parse(1)
    }

    async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        let args = self.args().text(after.unwrap_or_default()).text(&limit);
        let reply = self.run(&self.scripts.dead_letters, args).await?;
        reply.rest(2).iter().map(|letter| super::read_letter(letter)).collect()
    }

    async fn exhume(&self, keys: &[String]) -> Result<u64, StoreError> {
        self.run(&self.scripts.exhume, self.args().texts(keys)).await?.parse(1)
    }

    async fn learned(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let key = self.keys.endpoints();
        self.link.with(async |connection| redis::cmd("HGETALL").arg(&key).query_async(connection).await).await
    }

    async fn learn(&self, endpoint: &str, learned: &str) -> Result<(), StoreError> {
        super::check_learned(endpoint, learned)?;
        let others = self.learned().await?.into_keys().filter(|known| known != endpoint).count();
        let key = self.keys.endpoints();
        self.link
            .with(async |connection| {
                let mut writing = redis::pipe();
                if others >= MAX_LEARNED {
                    writing.del(&key).ignore();
                }
                writing.hset(&key, endpoint, learned).ignore();
                writing.exec_async(connection).await
            })
            .await
    }

    fn durability(&self) -> String {
        self.barrier.words()
    }

    fn weakness(&self) -> Option<String> {
        self.barrier.weakness()
    }
}
