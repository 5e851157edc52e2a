//! The pipeline in this process, on the embedded store in memory and a simulated node, with faults that no real part
//! produces on demand: replies that are lost after the effect, and a journal that another replica wrote to.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use alloy::primitives::{Address, U256};
use async_trait::async_trait;
use chaintap::{
    config::{ChainProfile, Limits, Sources, StartBlock, load_offline},
    devchain::Options,
    domain::{Args, BlockRange, BlockRef, DeliveryMode, Digest, Event, Track},
    pipeline::{self, Audit, Context, Ended, Filters, Span},
    rpc::{At, Endpoints, LogFilter},
    sinks::{Message, Outcome, Sink, SinkError},
    store::{
        Amend, AmendReply, BlockCommit, ClaimReply, CommitReply, DeadLetter, Duty, FinalCommit, Grant, Initialised,
        Intent, IntentReply, JournalEntry, Orphan, Publication, PublishReply, Published, ReplayReply, RewindReply,
        SealReply, Snapshot, Start, StateStore, StoreError, embedded::Embedded,
    },
    telemetry::Vitals,
};
use support::devchain::{Devchain, still};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const CHAIN: u64 = 31_337;

/// A sink that keeps what it acknowledged; every third message of a call fails at its first try.
#[derive(Default)]
struct Memory {
    kept: Mutex<Vec<Message>>,
    tried: Mutex<BTreeSet<String>>,
    picky: bool,
}

#[async_trait]
impl Sink for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn send(&self, pending: &[Message]) -> Vec<Outcome> {
        let mut tried = self.tried.lock().unwrap();
        let outcome = |(index, message): (usize, &Message)| {
            if self.picky && index % 3 == 2 && tried.insert(message.id.clone()) {
                return Outcome::Retry { reason: "not at the first try".into(), throttled: false };
            }
            self.kept.lock().unwrap().push(message.clone());
            Outcome::Acknowledged
        };
        pending.iter().enumerate().map(outcome).collect()
    }

    async fn check(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

impl Memory {
    fn ids(&self) -> Vec<String> {
        self.kept.lock().unwrap().iter().map(|message| message.id.clone()).collect()
    }
}

/// A store of which every fifth reply is lost after the effect, and which may contradict the first final commits.
struct Lossy {
    store: Embedded,
    calls: Mutex<HashMap<&'static str, u64>>,
    contradictions: Mutex<u32>,
}

impl Lossy {
    fn over(store: Embedded) -> Self {
        Self { store, calls: Mutex::default(), contradictions: Mutex::default() }
    }

    fn reply<T>(&self, operation: &'static str, reply: Result<T, StoreError>) -> Result<T, StoreError> {
        let mut calls = self.calls.lock().unwrap();
        let count = calls.entry(operation).or_default();
        *count += 1;
        if *count % 5 == 1 { Err(StoreError::Transient(format!("the reply of {operation} was lost"))) } else { reply }
    }
}

#[async_trait]
impl StateStore for Lossy {
    async fn init(&self, start: Start) -> Result<Initialised, StoreError> {
        self.reply("init", self.store.init(start).await)
    }
    async fn peek(&self) -> Result<Option<Snapshot>, StoreError> {
        self.store.peek().await
    }
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.reply("snapshot", self.store.snapshot().await)
    }
    async fn heartbeat(&self) -> Result<(), StoreError> {
        self.store.heartbeat().await
    }
    async fn claim(&self, range: BlockRange) -> Result<ClaimReply, StoreError> {
        self.reply("claim", self.store.claim(range).await)
    }
    async fn renew(&self, grant: &Grant) -> Result<bool, StoreError> {
        self.reply("renew", self.store.renew(grant).await)
    }
    async fn release(&self, grant: &Grant) -> Result<(), StoreError> {
        self.reply("release", self.store.release(grant).await)
    }
    async fn retire(&self) -> Result<(), StoreError> {
        self.store.retire().await
    }
    async fn intent(&self, intent: Intent<'_>) -> Result<IntentReply, StoreError> {
        self.reply("intent", self.store.intent(intent).await)
    }
    async fn journaled(&self, block: BlockRef, epoch: u64) -> Result<Vec<Event>, StoreError> {
        self.reply("journaled", self.store.journaled(block, epoch).await)
    }
    async fn journal(&self, up_to: u64) -> Result<Vec<JournalEntry>, StoreError> {
        self.reply("journal", self.store.journal(up_to).await)
    }
    async fn commit(&self, commit: BlockCommit, track: Track, grant: &Grant) -> Result<CommitReply, StoreError> {
        self.reply("commit", self.store.commit(commit, track, grant).await)
    }
    async fn commit_final(&self, commit: FinalCommit, track: Track, grant: &Grant) -> Result<CommitReply, StoreError> {
        {
            let mut left = self.contradictions.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                return Ok(CommitReply::Conflict("another replica journaled a block of the range".into()));
            }
        }
        self.reply("commit_final", self.store.commit_final(commit, track, grant).await)
    }
    async fn seal(&self, at: BlockRef, tops: &[BlockRef]) -> Result<SealReply, StoreError> {
        self.reply("seal", self.store.seal(at, tops).await)
    }
    async fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        self.store.orphans().await
    }
    async fn rewind(
        &self,
        entries: &[(BlockRef, u64)],
        sealed: Option<BlockRef>,
        epoch: u64,
    ) -> Result<RewindReply, StoreError> {
        self.reply("rewind", self.store.rewind(entries, sealed, epoch).await)
    }
    async fn retracted(&self, orphan: Orphan) -> Result<(), StoreError> {
        self.reply("retracted", self.store.retracted(orphan).await)
    }
    async fn amend(&self, amend: Amend<'_>) -> Result<AmendReply, StoreError> {
        self.reply("amend", self.store.amend(amend).await)
    }
    async fn resume(&self, at: BlockRef, epoch: u64) -> Result<ReplayReply, StoreError> {
        self.store.resume(at, epoch).await
    }
    async fn replay(&self, to: i64, until: Option<u64>, epoch: u64) -> Result<ReplayReply, StoreError> {
        self.store.replay(to, until, epoch).await
    }
    async fn published(&self) -> Result<Published, StoreError> {
        self.store.published().await
    }
    async fn publish(&self, publication: Publication<'_>) -> Result<PublishReply, StoreError> {
        self.store.publish(publication).await
    }
    async fn duty(&self) -> Result<Option<Duty>, StoreError> {
        self.store.duty().await
    }
    async fn scanned(&self, duty: u64, up_to: u64) -> Result<(), StoreError> {
        self.store.scanned(duty, up_to).await
    }
    async fn wipe(&self) -> Result<(), StoreError> {
        self.store.wipe().await
    }
    async fn skip(&self, to: u64, epoch: u64) -> Result<ReplayReply, StoreError> {
        self.store.skip(to, epoch).await
    }
    async fn bury(&self, letters: &[DeadLetter]) -> Result<bool, StoreError> {
        self.reply("bury", self.store.bury(letters).await)
    }
    async fn dead_letters_len(&self) -> Result<u64, StoreError> {
        self.store.dead_letters_len().await
    }
    async fn dead_letters(&self, after: Option<&str>, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        self.store.dead_letters(after, limit).await
    }
    async fn exhume(&self, keys: &[String]) -> Result<u64, StoreError> {
        self.store.exhume(keys).await
    }
    fn durability(&self) -> String {
        self.store.durability()
    }
}

/// The settings that the binary carries, for the development chain.
fn context(chain: &Devchain, store: Arc<dyn StateStore>, sink: Arc<dyn Sink>) -> Context {
    let environment = [("CHAIN_ID", CHAIN.to_string()), ("WEB3_PROVIDER", format!("ws://{}", chain.address))];
    let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let settings = load_offline(&Sources { environment, ..Sources::default() }).unwrap();
    let limits = Limits::default();
    Context {
        chain: ChainProfile { spacing: Duration::ZERO, ..settings.chain.clone() },
        deliver: DeliveryMode::Instant,
        log_filter: LogFilter { addresses: vec![], topics: settings.registry.topics() },
        registry: settings.registry.clone(),
        source: Arc::new(Endpoints::new(CHAIN, settings.providers.clone(), limits.clone())),
        store,
        sinks: BTreeMap::from([("handleTransferEvent".to_owned(), sink)]),
        filters: Filters::off(),
        audit: Audit::new(true),
        vitals: Arc::new(Vitals::default()),
        span: Span::new(settings.chain.batch_blocks),
        limits,
    }
}

async fn run_until(context: Context, start: u64, until: u64) {
    let running = pipeline::run(Arc::new(context), StartBlock::At(start), Some(until), CancellationToken::new());
    let ended = timeout(Duration::from_mins(2), running).await.expect("it reaches the block in time");
    assert!(matches!(ended, Ended::Reached), "{ended:?}");
}

#[tokio::test]
async fn lost_replies_and_entries_that_fail_once_cost_neither_an_event_nor_a_duplicate() {
    let chain = Devchain::start(Options { logs_per_block: 8, ..still(75) }).await;
    let sink = Arc::new(Memory { picky: true, ..Memory::default() });
    let store = Arc::new(Lossy::over(Embedded::in_memory(CHAIN, "development").unwrap()));
    run_until(context(&chain, store.clone(), sink.clone()), 1, 75).await;
    let delivered = sink.ids();
    let distinct: BTreeSet<&String> = delivered.iter().collect();
    assert_eq!(distinct.len(), delivered.len(), "nothing twice");
    let plain = Arc::new(Memory::default());
    let other = Arc::new(Embedded::in_memory(CHAIN, "development").unwrap());
    run_until(context(&chain, other, plain.clone()), 1, 75).await;
    assert_eq!(distinct, plain.ids().iter().collect(), "the same as without faults");
    let lost = store.calls.lock().unwrap();
    assert!(["claim", "intent", "commit", "commit_final"].iter().all(|operation| lost[operation] > 1), "{lost:?}");
}

#[tokio::test]
async fn what_another_replica_journaled_for_a_block_is_delivered_beside_our_own_events() {
    let chain = Devchain::start(Options { logs_per_block: 8, ..still(20) }).await;
    let store = Arc::new(Embedded::in_memory(CHAIN, "development").unwrap());
    let sink = Arc::new(Memory::default());
    let context = context(&chain, store.clone(), sink.clone());
    // A replica that knew one token more journaled an event of it, and died.
    let header = context.source.header(At::Number(20)).await.unwrap().unwrap();
    let epoch = store.init(Start::At(20)).await.unwrap().progress.epoch;
    let theirs = Event {
        block: header.block(),
        timestamp: header.timestamp,
        transaction_hash: header.hash,
        transaction_index: 0,
        log_index: 999,
        address: Address::repeat_byte(9),
        contract: "Transfers".into(),
        name: "Transfer".into(),
        handler: "handleTransferEvent".into(),
        args: Args::Transfer { from: Address::ZERO, to: Address::ZERO, value: U256::ONE },
        token: None,
    };
    let intent = Intent {
        block: header.block(),
        parent: header.parent,
        epoch,
        filter_version: 0,
        digest: Digest::of([&theirs]),
        events: std::slice::from_ref(&theirs),
    };
    assert_eq!(store.intent(intent).await.unwrap(), IntentReply::Journaled);
    run_until(context, 20, 20).await;
    let delivered = sink.ids();
    assert!(delivered.contains(&format!("{CHAIN}:{}:999", header.hash)), "{delivered:?}");
    assert!(delivered.len() > 1, "and ours");
}

#[tokio::test]
async fn a_contradiction_that_came_in_between_holds_nothing_up() {
    let chain = Devchain::start(Options { logs_per_block: 2, ..still(75) }).await;
    let store = Lossy::over(Embedded::in_memory(CHAIN, "development").unwrap());
    *store.contradictions.lock().unwrap() = 2;
    run_until(context(&chain, Arc::new(store), Arc::new(Memory::default())), 1, 75).await;
}
