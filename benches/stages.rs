//! What a log and a range cost at each stage, alone (`cargo bench --bench stages`).
//!
//! Beside what the listener does stands what alloy takes for the same: parsing into its own type is most of what
//! `docs/benchmarks.md` calls (b).

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "it ends where anything is wrong"
)]

#[path = "throughput/chain.rs"]
#[expect(dead_code, reason = "the node asks more of it")]
mod chain;

use std::{collections::HashSet, hint::black_box, sync::Arc};

use alloy::{
    primitives::{Address, B256, U256},
    rpc::types::Log,
};
use chain::{CHAIN_ID, Chain, FIRST, Shape};
use chaintap::{
    domain::{Args, BlockRange, BlockRef, Event, Track},
    rpc::{LogFilter, count_logs},
    sinks::{Composer, Message},
    store::{ClaimReply, CommitReply, FinalCommit, Grant, Start, StateStore, embedded::Embedded},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;

/// Blocks of one range.
const BLOCKS: u64 = 100;

/// Events that are handed over in one call.
const CALL: usize = 1_000;

/// The answer to a request for one range, and how many logs it has.
fn answer() -> (Vec<u8>, u64) {
    let chain = Chain::new(Shape::Even);
    let mut answer = b"[".to_vec();
    chain.write_logs(FIRST..FIRST + BLOCKS, &HashSet::new(), &mut answer);
    answer.push(b']');
    (answer, chain.truth(FIRST..FIRST + BLOCKS, false).logs)
}

fn parse(criterion: &mut Criterion) {
    let (answer, logs) = answer();
    let mut group = criterion.benchmark_group("parse");
    group.throughput(Throughput::Elements(logs)).sample_size(20);
    group.bench_function("alloy", |bencher| {
        bencher.iter(|| serde_json::from_slice::<Vec<Log>>(black_box(&answer)).unwrap().len());
    });
    // As nodes write them; and with a member more in each log, which leaves them to serde.
    let usual = String::from_utf8(answer).unwrap();
    let strange = usual.replace("{\"", "{\"type\":\"mined\",\"");
    let filter = LogFilter { addresses: Vec::new(), topics: vec![chain::TRANSFER.parse().unwrap()] };
    for (name, list) in [("in the usual form", usual), ("by serde", strange)] {
        let answer = format!(r#"{{"jsonrpc":"2.0","id":0,"result":{list}}}"#);
        let count = || count_logs(black_box(answer.as_bytes()), &filter).unwrap();
        assert_eq!(u64::try_from(count()).unwrap(), logs);
        group.bench_function(name, |bencher| bencher.iter(count));
    }
    group.finish();
}

fn event(log: &Log) -> Event {
    let topic = |at: usize| Address::from_word(log.topics()[at]);
    Event {
        block: BlockRef { number: log.block_number.unwrap(), hash: log.block_hash.unwrap() },
        timestamp: log.block_timestamp.unwrap(),
        transaction_hash: log.transaction_hash.unwrap(),
        transaction_index: log.transaction_index.unwrap(),
        log_index: log.log_index.unwrap(),
        address: log.address(),
        contract: "Transfers".into(),
        name: "Transfer".into(),
        handler: "handleTransferEvent".into(),
        args: Args::Transfer { from: topic(1), to: topic(2), value: U256::from_be_slice(&log.data().data) },
        token: None,
    }
}

fn encode(criterion: &mut Criterion) {
    let (answer, logs) = answer();
    let events: Vec<Event> = serde_json::from_slice::<Vec<Log>>(&answer).unwrap().iter().map(event).collect();
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(logs)).sample_size(20);
    group.bench_function("a message for each event", |bencher| {
        bencher.iter(|| events.iter().map(|event| Message::apply(event, CHAIN_ID, 1).body().len()).sum::<usize>());
    });
    group.bench_function("the messages of a call, together", |bencher| {
        bencher.iter(|| {
            let compose = |events: &[Event]| {
                let mut composer = Composer::new(CHAIN_ID, events.len());
                events.iter().for_each(|event| composer.apply(event, 1));
                composer.finish().len()
            };
            events.chunks(CALL).map(compose).sum::<usize>()
        });
    });
    group.finish();
    let mut group = criterion.benchmark_group("checksum");
    group.throughput(Throughput::Elements(1));
    let address = events[0].address;
    group.bench_function("alloy", |bencher| bencher.iter(|| black_box(address).to_checksum(None)));
    group.finish();
}

/// A store that has so many blocks, and claims and commits the next ones.
struct Deliveries {
    runtime: Runtime,
    store: Arc<dyn StateStore>,
    next: u64,
}

impl Deliveries {
    fn new(store: Embedded) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(store.init(Start::At(1))).unwrap();
        Self { runtime, store: Arc::new(store), next: 1 }
    }

    fn claim(&self) -> Grant {
        let range = BlockRange { from: self.next, to: self.next + BLOCKS - 1 };
        match self.runtime.block_on(self.store.claim(range)).unwrap() {
            ClaimReply::Granted(grant) => grant,
            other => panic!("{other:?}"),
        }
    }

    fn commit(&mut self, grant: &Grant) {
        let hash = |number: u64| B256::from(U256::from(number));
        let commit = FinalCommit {
            range: grant.range,
            epoch: grant.epoch,
            sealed: grant.sealed,
            parent: hash(grant.range.from - 1),
            hash: hash(grant.range.to),
            confirmed: Vec::new(),
            filter_version: grant.filter_version,
        };
        let reply = self.runtime.block_on(self.store.commit_final(commit, Track::Historical)).unwrap();
        assert!(matches!(reply, CommitReply::Committed { .. }), "{reply:?}");
        self.next += BLOCKS;
    }
}

fn state(criterion: &mut Criterion) {
    let place = tempfile::tempdir().unwrap();
    let stores = [
        ("in memory", Embedded::in_memory(CHAIN_ID, "bench").unwrap()),
        ("on disk", Embedded::open(place.path(), CHAIN_ID, "bench").unwrap()),
    ];
    let mut group = criterion.benchmark_group("a range of 100 blocks");
    group.sample_size(20);
    for (name, store) in stores {
        let mut deliveries = Deliveries::new(store);
        // Claimed again and again: who has a claim is granted it.
        group.bench_function(format!("claim, {name}"), |bencher| bencher.iter(|| deliveries.claim()));
        group.bench_function(format!("claim and commit, {name}"), |bencher| {
            bencher.iter(|| {
                let grant = deliveries.claim();
                deliveries.commit(&grant);
            });
        });
    }
    group.finish();
}

criterion_group!(stages, parse, encode, state);
criterion_main!(stages);
