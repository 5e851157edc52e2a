//! Dead letters by command: a real store, and a sink that takes, refuses or is away.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use alloy::primitives::{Address, B256, U256};
use async_trait::async_trait;
use chaintap::{
    cli::{
        Failure,
        dlq::{DlqCommand, Edges, run},
    },
    config::{Limits, SecretUrl},
    devchain::Options,
    domain::{Args, BlockRef, Event},
    rpc::{ChainSource, Endpoints},
    sinks::{Message, Outcome, Sink, SinkError},
    store::{DeadKind, DeadLetter, Start, StateStore, embedded::Embedded},
};
use clap::Parser;
use support::{
    devchain::{Devchain, still},
    process::free_port,
};

const HANDLER: &str = "handleTransferEvent";

/// The command as an operator types it.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct CommandLine {
    #[command(subcommand)]
    command: DlqCommand,
}

/// Takes every message but those whose id ends like one of `refused`; takes nothing while `away`.
#[derive(Default)]
struct Recorder {
    refused: Vec<&'static str>,
    away: bool,
    taken: Mutex<Vec<Message>>,
}

#[async_trait]
impl Sink for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    async fn send(&self, pending: &[Message]) -> Vec<Outcome> {
        let outcome = |message: &Message| {
            if self.away {
                return Outcome::Retry { reason: "away".to_owned(), throttled: false };
            }
            if self.refused.iter().any(|end| message.id().ends_with(end)) {
                return Outcome::Refused("still too large".to_owned());
            }
            self.taken.lock().unwrap().push(message.clone());
            Outcome::Acknowledged
        };
        pending.iter().map(outcome).collect()
    }

    async fn check(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

fn message(log_index: u64) -> Message {
    let event = Event {
        block: BlockRef { number: 7, hash: B256::repeat_byte(7) },
        timestamp: 1,
        transaction_hash: B256::repeat_byte(9),
        transaction_index: 0,
        log_index,
        address: Address::repeat_byte(1),
        contract: "Transfers".into(),
        name: "Transfer".into(),
        handler: HANDLER.into(),
        args: Args::Transfer { from: Address::ZERO, to: Address::ZERO, value: U256::from(log_index) },
        token: None,
    };
    Message::apply(&event, 1, 1)
}

fn letter(log_index: u64, kind: DeadKind) -> DeadLetter {
    let message = message(log_index);
    DeadLetter {
        key: format!("{}|{HANDLER}", message.id()),
        kind,
        reason: "too large:\u{1b}[31m 300000 bytes".to_owned(),
        handler: HANDLER.to_owned(),
        block_number: 7,
        block_hash: B256::repeat_byte(7),
        body: message.body().to_owned(),
        buried_at: 1_758_649_000_000,
    }
}

/// A store with these letters, beside the 0th one that could not be decoded.
async fn store(letters: u64) -> Embedded {
    let store = Embedded::in_memory(1, "test").unwrap();
    store.init(Start::At(1)).await.unwrap();
    let mut all: Vec<_> = (1..=letters).map(|index| letter(index, DeadKind::Refused)).collect();
    all.push(letter(0, DeadKind::Undecodable));
    assert!(store.bury(&all).await.unwrap());
    store
}

/// Data, notes, and how the command ended.
async fn dlq(store: &Embedded, sink: &Arc<Recorder>, words: &[&str]) -> (String, String, Result<(), Failure>) {
    dlq_beside(None, store, sink, words).await
}

/// The same, with nodes that tell which blocks are on the chain.
async fn dlq_beside(
    source: Option<&dyn ChainSource>,
    store: &Embedded,
    sink: &Arc<Recorder>,
    words: &[&str],
) -> (String, String, Result<(), Failure>) {
    let command = CommandLine::try_parse_from(words).unwrap().command;
    let sink: Arc<dyn Sink> = sink.clone();
    let sinks = BTreeMap::from([(HANDLER.to_owned(), sink)]);
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let ended = run(&command, Edges { store, sinks: &sinks, source }, &mut out, &mut notes).await;
    (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap(), ended)
}

#[tokio::test]
async fn letters_are_listed_page_by_page_without_what_steers_a_terminal() {
    let (store, sink) = (store(3).await, Arc::default());
    let (table, notes, ended) = dlq(&store, &sink, &["list", "--limit", "3"]).await;
    assert!(ended.is_ok());
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("2025-09-23T17:36:40Z") && !table.contains('\u{1b}'), "{table}");
    let last = letter(2, DeadKind::Refused).key;
    assert_eq!(notes, format!("3 of 4 dead letters\ngo on with --after '{last}'\n"));
    let (rest, _, _) = dlq(&store, &sink, &["list", "--json", "--after", &last]).await;
    assert_eq!(serde_json::from_str::<DeadLetter>(&rest).unwrap(), letter(3, DeadKind::Refused));
}

#[tokio::test]
async fn one_letter_is_shown_whole_among_many_of_a_like_key() {
    let (store, sink) = (store(150).await, Arc::default());
    for index in [1, 10, 99, 150] {
        let (shown, _, ended) = dlq(&store, &sink, &["show", &letter(index, DeadKind::Refused).key]).await;
        assert!(ended.is_ok());
        assert!(shown.contains(&format!("\"value\": \"{index}\"")), "{shown}");
    }
    let (_, _, ended) = dlq(&store, &sink, &["show", "1:0x00:5|other"]).await;
    assert!(matches!(ended, Err(Failure::Data(text)) if text.contains("1:0x00:5|other")));
}

#[tokio::test]
async fn all_letters_are_sent_again_byte_for_byte_and_leave_the_store() {
    let (store, sink) = (store(120).await, Arc::default());
    let (_, notes, ended) = dlq(&store, &sink, &["redrive", "--all"]).await;
    assert!(ended.is_ok(), "{ended:?}");
    assert!(notes.starts_with("sent 120, refused again 0"), "{notes}");
    assert!(notes.contains("undecodable and so not sent 1"), "{notes}");
    let mut taken = sink.taken.lock().unwrap().clone();
    taken.sort_by_key(|message| message.id().rsplit(':').next().unwrap().parse::<u64>().unwrap());
    assert_eq!(taken, (1..=120).map(message).collect::<Vec<_>>());
    let left = store.dead_letters(None, 10).await.unwrap();
    assert_eq!(left, [letter(0, DeadKind::Undecodable)]);
}

#[tokio::test]
async fn what_is_refused_again_stays_and_is_told() {
    let store = store(3).await;
    let sink = Arc::new(Recorder { refused: vec![":2"], ..Recorder::default() });
    let (_, notes, ended) = dlq(&store, &sink, &["redrive", "--all"]).await;
    assert!(matches!(ended, Err(Failure::No(_))), "{ended:?}");
    let kept = letter(2, DeadKind::Refused).key;
    assert!(notes.contains(&format!("{kept}: still too large")), "{notes}");
    assert_eq!(store.dead_letters_len().await.unwrap(), 2);
}

#[tokio::test]
async fn a_sink_that_is_away_loses_no_letter() {
    let store = store(3).await;
    let sink = Arc::new(Recorder { away: true, ..Recorder::default() });
    let (_, _, ended) = dlq(&store, &sink, &["redrive", &letter(1, DeadKind::Refused).key]).await;
    assert!(matches!(ended, Err(Failure::Temporary(text)) if text.contains("away")));
    assert_eq!(store.dead_letters_len().await.unwrap(), 4);
}

#[tokio::test]
async fn a_letter_without_a_handler_or_a_message_stays_and_says_why() {
    let (store, sink) = (store(0).await, Arc::default());
    let stranger = DeadLetter { key: "stranger".into(), handler: "gone".into(), ..letter(1, DeadKind::Refused) };
    let broken = DeadLetter { key: "broken".into(), body: "{}".into(), ..letter(2, DeadKind::Refused) };
    assert!(store.bury(&[stranger, broken]).await.unwrap());
    let (_, notes, ended) = dlq(&store, &sink, &["redrive", "stranger", "broken"]).await;
    assert!(matches!(ended, Err(Failure::No(_))));
    assert!(notes.contains("stranger: no handler 'gone'") && notes.contains("broken: not a message"), "{notes}");
    assert_eq!(store.dead_letters_len().await.unwrap(), 3);
}

#[tokio::test]
async fn an_undecodable_letter_that_is_named_cannot_be_sent() {
    let (store, sink) = (store(1).await, Arc::<Recorder>::default());
    let (_, _, ended) = dlq(&store, &sink, &["redrive", &letter(0, DeadKind::Undecodable).key]).await;
    assert!(matches!(ended, Err(Failure::No(_))));
    assert!(sink.taken.lock().unwrap().is_empty());
}

fn nodes(url: &str) -> Endpoints {
    Endpoints::new(1, vec![SecretUrl::parse(url).unwrap()], Limits::default())
}

#[tokio::test]
async fn a_letter_whose_block_is_not_on_the_chain_is_not_sent_unless_no_node_tells() {
    let chain = Devchain::start(Options { chain_id: Some(1), ..still(10) }).await;
    let (store, sink) = (store(2).await, Arc::<Recorder>::default());
    let canonical = chain.hash(7).await.parse().unwrap();
    let stays = DeadLetter { key: "stays".into(), block_hash: canonical, ..letter(3, DeadKind::Refused) };
    let unknown = DeadLetter { key: "unknown".into(), block_number: 99, ..letter(4, DeadKind::Refused) };
    assert!(store.bury(&[stays, unknown]).await.unwrap());
    let there = nodes(&chain.rpc().url);
    let (_, notes, ended) = dlq_beside(Some(&there), &store, &sink, &["redrive", "--all"]).await;
    assert!(ended.is_ok(), "{ended:?}");
    for text in ["its block 7 left the chain", "unknown: its block 99 is not known", "so not sent 3"] {
        assert!(notes.contains(text), "{text:?} is not in {notes}");
    }
    assert_eq!(*sink.taken.lock().unwrap(), [message(3)]);
    let (_, _, ended) = dlq_beside(Some(&there), &store, &sink, &["redrive", "unknown"]).await;
    assert!(matches!(ended, Err(Failure::No(_))));
    let away = nodes(&format!("http://127.0.0.1:{}", free_port()));
    let (_, notes, ended) = dlq_beside(Some(&away), &store, &sink, &["redrive", "--all"]).await;
    assert!(ended.is_ok(), "{ended:?}");
    assert!(notes.contains("sent anyway") && notes.contains("sent 3"), "{notes}");
}

#[tokio::test]
async fn letters_are_dropped_only_with_a_yes() {
    let (store, sink) = (store(120).await, Arc::default());
    let key = letter(5, DeadKind::Refused).key;
    let (_, notes, _) = dlq(&store, &sink, &["drop", &key]).await;
    assert_eq!(notes, "1 dead letters would be dropped for good; say --yes to do it\n");
    assert_eq!(store.dead_letters_len().await.unwrap(), 121);
    let (_, notes, _) = dlq(&store, &sink, &["drop", &key, "--yes"]).await;
    assert_eq!(notes, "dropped 1 dead letters\n");
    let (_, notes, _) = dlq(&store, &sink, &["drop", "--all", "--yes"]).await;
    assert_eq!(notes, "dropped 120 dead letters\n");
    assert_eq!(store.dead_letters_len().await.unwrap(), 0);
}

#[tokio::test]
async fn an_empty_store_has_no_letters_to_speak_of() {
    let store = Embedded::in_memory(1, "test").unwrap();
    let (_, _, ended) = dlq(&store, &Arc::default(), &["list"]).await;
    assert!(matches!(ended, Err(Failure::No(text)) if text.contains("chaintap run")));
}

#[test]
fn all_and_keys_exclude_each_other_and_one_is_needed() {
    for words in [&["redrive"][..], &["redrive", "--all", "key"], &["drop"], &["drop", "--all", "key"]] {
        assert!(CommandLine::try_parse_from(words).is_err(), "{words:?}");
    }
}
