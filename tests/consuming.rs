//! The consumer's side (`docs/consuming.md`): the fold of the reference consumer, the SQL of the page, the queue, and what
//! the schema says of retractions. Whatever the order, the duplicates and the reorganisations, all of them end alike.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what fails here fails the test"
)]

mod support;

/// The reference consumer's other parts; its fold is the oracle of all tests (`support::fold`).
#[path = "../examples/consumer/queue.rs"]
mod queue;
#[path = "../examples/consumer/totals.rs"]
mod totals;

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use alloy::primitives::{Address, B256, U256};
use chaintap::{
    domain::{Args, BlockRef, Event},
    sinks::{Message, Sink, sqs::SqsSink},
};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::{Value, json};
use support::{
    fold::{self, Fold, Mistake, News},
    ledger::assert_counts,
    message::well_formed,
    process::dev_dir,
    sqs::SqsServer,
};
use tokio::{io::AsyncWriteExt as _, process::Command};
use totals::Totals;

const PAGE: &str = include_str!("../docs/consuming.md");

/// A transfer; those of one block height have different blocks by their branch.
fn transfer(index: u64, branch: u8) -> Event {
    let word = |n: u64| B256::from(U256::from(n));
    Event {
        block: BlockRef { number: 100 + index / 4, hash: B256::repeat_byte(branch) },
        timestamp: 1_750_000_000,
        transaction_hash: word(index),
        transaction_index: 0,
        log_index: index,
        address: Address::repeat_byte(u8::try_from(index % 3).unwrap()),
        contract: "Transfers".into(),
        name: "Transfer".into(),
        handler: "handleTransferEvent".into(),
        args: Args::Transfer {
            from: Address::repeat_byte(7),
            to: Address::repeat_byte(u8::try_from(8 + index % 5).unwrap()),
            // More than a column of 64 bits holds.
            value: U256::from(10).pow(U256::from(30)) + U256::from(index),
        },
        token: None,
    }
}

/// What is said of one event in the course of its life: applied, taken back, applied again and so on, of which any but
/// the last may never arrive, and any may arrive several times.
#[derive(Clone, Debug)]
struct Life {
    states: u64,
    arrives: Vec<u8>,
}

impl Life {
    fn strategy() -> impl Strategy<Value = Self> {
        (1u64..=5, prop::collection::vec(0u8..3, 5)).prop_map(|(states, arrives)| Self { states, arrives })
    }

    fn messages(&self, index: u64) -> Vec<Message> {
        let event = transfer(index, u8::try_from(index % 7).unwrap());
        let state = |n: u64| {
            let epoch = 1_000 + n;
            if n % 2 == 1 { Message::apply(&event, 1, epoch) } else { Message::retract(&event, 1, epoch) }
        };
        let times = |n: u64| self.arrives[usize::try_from(n - 1).unwrap()].max(u8::from(n == self.states));
        (1..=self.states).flat_map(|n| vec![state(n); times(n).into()]).collect()
    }

    fn counts(&self) -> bool {
        self.states % 2 == 1
    }
}

/// Lives, and what arrives of them in some order.
fn arrivals(lives: std::ops::Range<usize>) -> impl Strategy<Value = (Vec<Message>, BTreeSet<String>)> {
    prop::collection::vec(Life::strategy(), lives).prop_flat_map(|lives| {
        let messages: Vec<Vec<Message>> = (0..).zip(&lives).map(|(index, life)| life.messages(index)).collect();
        let counts = lives.iter().zip(&messages).filter(|(life, _)| life.counts());
        let counts: BTreeSet<String> = counts.map(|(_, messages)| messages[0].id().to_owned()).collect();
        (Just(messages.concat()).prop_shuffle(), Just(counts))
    })
}

fn folded(messages: &[Message]) -> Fold {
    let mut fold = Fold::default();
    for message in messages {
        fold.take(message.body()).unwrap();
    }
    fold
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn whatever_the_order_the_last_state_of_every_event_counts((messages, counts) in arrivals(0..30)) {
        assert_counts(&folded(&messages), &counts);
    }
}

#[test]
fn a_retraction_of_what_was_never_seen_is_kept_and_a_transfer_behind_it_is_old() {
    let (mut fold, event) = (Fold::default(), transfer(1, 1));
    assert_eq!(fold.take(Message::retract(&event, 1, 6).body()).unwrap(), News::Retracted);
    assert_eq!(fold.take(Message::apply(&event, 1, 5).body()).unwrap(), News::Known);
    assert_eq!((fold.live().count(), fold.retracted()), (0, 1));
    assert_eq!(fold.take(Message::apply(&event, 1, 6).body()).unwrap(), News::Applied);
    assert_eq!((fold.live().count(), fold.retracted()), (1, 0));
}

#[test]
fn what_contradicts_a_message_or_is_none_is_a_mistake() {
    let (mut fold, event) = (Fold::default(), transfer(1, 1));
    fold.take(Message::apply(&event, 1, 5).body()).unwrap();
    let forged = Message::apply(&Event { args: Args::Json("{}".into()), ..event.clone() }, 1, 5);
    assert!(matches!(fold.take(forged.body()), Err(Mistake::Contradiction { version: 11, .. })));
    for text in ["", "[]", "{}", &Message::apply(&event, 1, 5).body().replace("\"Transfer\",", "\"Transferred\",")] {
        assert!(matches!(fold.take(text), Err(Mistake::NotAMessage(_))), "{text}");
    }
    assert_eq!(fold.live().count(), 1);
}

#[test]
fn a_retraction_keeps_to_the_schema_and_says_the_same_of_the_event() {
    let event = transfer(3, 1);
    let (applied, retracted) = (Message::apply(&event, 1, 5), Message::retract(&event, 1, 6));
    let mut before = well_formed(applied.body());
    let after = well_formed(retracted.body());
    assert_eq!(after["eventType"], "TransferRetracted");
    assert!(after["version"].as_u64() > before["version"].as_u64());
    for member in ["eventType", "version"] {
        before[member] = after[member].clone();
    }
    assert_eq!(before, after, "nothing else is different");
    let schema: Value = serde_json::from_str(include_str!("../docs/message.schema.json")).unwrap();
    let schema = jsonschema::draft202012::new(&schema).unwrap();
    let mut strange = after;
    strange["eventType"] = "Approval".into();
    assert!(!schema.is_valid(&strange), "the type is of another event");
}

// The table ----------------------------------------------------------------------------------------------------------

/// The SQL of the page, block by block.
fn statements() -> Vec<String> {
    let blocks = PAGE.split("```sql\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

/// Runs the page's SQL on `SQLite` over several orders of arrival, credits and takes back as its section 3 says, and prints
/// of each the ids that count, the credits and what is left after the tombstones went.
const SQLITE: &str = r#"
import json, sqlite3, sys
schema, upsert, purge, runs = json.load(sys.stdin)
answers = []
for rows in runs:
    db = sqlite3.connect(":memory:")
    db.executescript(schema)
    credits = {}
    for row in rows:
        before = db.execute("SELECT live FROM transfer WHERE id = :id", row).fetchone()
        if db.execute(upsert, row).rowcount:
            gained = int(row["live"]) - (before[0] if before else 0)
            account = row["token"] + row["receiver"]
            credits[account] = credits.get(account, 0) + gained * int(row["value"])
    live = db.execute("SELECT id, token, receiver, value FROM live_transfer ORDER BY block_number, log_index").fetchall()
    totals = {}
    for _, token, receiver, value in live:
        totals[token + receiver] = totals.get(token + receiver, 0) + int(value)
    same = {account: value for account, value in credits.items() if value} == totals
    db.execute(purge, {"before": "9999-01-01"})
    left = db.execute("SELECT count(*) FROM transfer").fetchone()[0]
    answers.append({"live": [row[0] for row in live], "values": [row[3] for row in live], "same": same, "left": left})
print(json.dumps(answers))
"#;

fn row(message: &Message) -> Value {
    let body: Value = serde_json::from_str(message.body()).unwrap();
    let transfer = &body["events"]["Transfer"];
    json!({
        "id": body["id"], "version": body["version"], "live": body["eventType"] == "Transfer",
        "chain_id": body["chainId"], "block_number": body["blockNumber"], "log_index": body["logIndex"],
        "token": body["contractAddress"], "sender": transfer["from"], "receiver": transfer["to"],
        "value": transfer["value"],
    })
}

async fn sqlite(input: &Value) -> Vec<Value> {
    let mut python = Command::new(dev_dir().join("venv/bin/python"));
    python.args(["-c", SQLITE]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = python.spawn().expect("python of `make test`");
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn the_table_of_the_page_ends_like_the_fold_in_any_order() {
    let statements = statements();
    let [schema, upsert, purge] = &statements[..] else { panic!("three blocks of SQL: {statements:#?}") };
    let mut runner = TestRunner::deterministic();
    let runs: Vec<_> = (0..30).map(|_| arrivals(40..80).new_tree(&mut runner).unwrap().current()).collect();
    let rows: Vec<Vec<Value>> = runs.iter().map(|(messages, _)| messages.iter().map(row).collect()).collect();
    let answers = sqlite(&json!([schema, upsert, purge, rows])).await;
    assert_eq!(answers.len(), runs.len());
    for ((messages, counts), answer) in runs.iter().zip(answers) {
        let fold = folded(messages);
        assert_counts(&fold, counts);
        let live: BTreeSet<String> = serde_json::from_value(answer["live"].clone()).unwrap();
        assert_eq!(&live, counts);
        assert!(fold.retracted() > 0 && answer["left"] == live.len(), "tombstones were kept, and can go");
        assert!(answer["same"].as_bool().unwrap(), "credits by transition are the sums of the view");
        let values: BTreeSet<&str> = answer["values"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        let exact = fold.live().map(|message| message["events"]["Transfer"]["value"].as_str().unwrap()).collect();
        assert_eq!(values, exact, "amounts are exact");
    }
}

// The queue ----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_reference_consumer_drains_standard_and_fifo_queues() {
    let server = SqsServer::fauxqs().await;
    let mut runner = TestRunner::deterministic();
    let (messages, counts) = arrivals(40..41).new_tree(&mut runner).unwrap().current();
    let mut ends = Vec::new();
    for name in ["transfers", "transfers.fifo"] {
        let url = server.create_queue(name, 256 << 10).await;
        let sink = SqsSink::connect(&server.access(), name, &url, Duration::from_secs(30)).await.unwrap();
        let mut pending: Vec<Message> = messages.clone();
        while !pending.is_empty() {
            let outcomes = sink.send(&pending).await;
            let taken = outcomes.iter().map(|outcome| *outcome == chaintap::sinks::Outcome::Acknowledged);
            pending =
                pending.iter().zip(taken).filter(|(_, taken)| !taken).map(|(message, _)| message.clone()).collect();
        }
        let mut fold = Fold::default();
        let (came, mistakes) = queue::drain(&server.client(), &url, 1, &mut fold).await.unwrap();
        assert!(came >= counts.len() && mistakes.is_empty(), "{mistakes:?}");
        assert_counts(&fold, &counts);
        assert!(server.drain(&url).await.is_empty(), "what was folded is deleted");
        ends.push(Totals::of(fold.live()).to_string());
    }
    assert_eq!(ends[0], ends[1]);
    let all: u64 = counts.len().try_into().unwrap();
    let line = |line: &&str| line.contains(&Address::repeat_byte(7).to_checksum(None));
    assert_eq!(ends[0].lines().filter(line).count(), 3, "the sender's sums of three tokens, of {all} transfers");
}
