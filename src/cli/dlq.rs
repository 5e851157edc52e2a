//! `chaintap dlq`: what could not be delivered, listed, shown, sent again and dropped.
//!
//! A letter leaves the store only after its sink acknowledged it, or because an operator dropped it. What could not be
//! decoded has no message, so it cannot be sent: mend the ABI, then `replay` its block. A message whose block left the
//! chain is not sent: its retraction was, or has nothing to take back.

use std::{
    collections::BTreeMap,
    fmt,
    io::Write,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use alloy::primitives::B256;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};

use super::Failure;
use crate::{
    backoff::Backoff,
    rpc::{At, ChainSource},
    sinks::{Message, Outcome, Sink},
    store::{DeadKind, DeadLetter, StateStore, StoreError},
};

/// Letters that are read at once; a refused message can be a megabyte and more.
const PAGE: usize = 50;
/// Tries of a sink that takes nothing.
const TRIES: u32 = 5;
/// Longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest reason in the table, characters.
const REASON_WIDTH: usize = 60;
/// Heights whose blocks are remembered while letters are sent again.
const BLOCKS_KNOWN: usize = 10_000;

/// What to do with the dead letters of this chain.
#[derive(Clone, Debug, Subcommand)]
pub enum DlqCommand {
    /// List dead letters, by key
    List {
        /// One JSON object a line, with the bodies
        #[arg(long)]
        json: bool,
        /// Most letters that are listed
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1_000), value_name = "N")]
        limit: u16,
        /// Go on behind this key
        #[arg(long, value_name = "KEY")]
        after: Option<String>,
    },
    /// Show one dead letter whole
    Show {
        /// Its key, as `list` prints it
        key: String,
    },
    /// Send messages again; those that the sink takes are removed
    Redrive(Chosen),
    /// Remove dead letters for good
    Drop {
        /// Which
        #[command(flatten)]
        chosen: Chosen,
        /// Do it; without this it is only said what would be done
        #[arg(long)]
        yes: bool,
    },
}

/// Which dead letters are meant.
#[derive(Args, Clone, Debug)]
pub struct Chosen {
    /// Their keys, as `list` prints them
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "KEY")]
    keys: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

/// What the commands work with.
#[derive(Clone, Copy)]
pub struct Edges<'a> {
    /// Where the letters are.
    pub store: &'a dyn StateStore,
    /// Handler name to sink, for `redrive`.
    pub sinks: &'a BTreeMap<String, Arc<dyn Sink>>,
    /// The nodes, for `redrive`; `None` where none is configured.
    pub source: Option<&'a dyn ChainSource>,
}

/// Does it: data goes to `out`, what happened to `notes`.
///
/// # Errors
///
/// [`Failure::Data`] for a key that is not there, [`Failure::No`] where something was refused again or cannot be sent,
/// [`Failure::Temporary`] where a sink does not take messages now, [`Failure::Unavailable`] where the store does not
/// answer.
pub async fn run(
    command: &DlqCommand,
    edges: Edges<'_>,
    out: &mut (dyn Write + Send),
    notes: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let Edges { store, .. } = edges;
    if store.peek().await.map_err(unread)?.is_none() {
        return Err(Failure::No("the store holds nothing of this chain yet: `chaintap run` begins it".into()));
    }
    match command {
        DlqCommand::List { json, limit, after } => {
            let limit = usize::from(*limit);
            let letters = store.dead_letters(after.as_deref(), limit).await.map_err(unread)?;
            list(&letters, *json, out)?;
            tell_rest(&letters, limit, store.dead_letters_len().await.map_err(unread)?, notes)
        }
        DlqCommand::Show { key } => show(&find(store, key).await?, out),
        DlqCommand::Redrive(chosen) => redrive(chosen, edges, notes).await,
        DlqCommand::Drop { chosen, yes } => drop_letters(chosen, store, *yes, notes).await,
    }
}

fn list(letters: &[DeadLetter], json: bool, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    if !json {
        return tell(out, &table(letters));
    }
    for letter in letters {
        let line = serde_json::to_string(letter).map_err(|error| Failure::Internal(error.to_string()))?;
        tell(out, &line)?;
    }
    Ok(())
}

fn table(letters: &[DeadLetter]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["KIND", "BLOCK", "BURIED", "REASON", "KEY"]);
    for letter in letters {
        let reason: String = plain(&letter.reason).chars().take(REASON_WIDTH).collect();
        let (kind, block) = (kind(letter.kind).to_owned(), letter.block_number.to_string());
        table.add_row([kind, block, time(letter.buried_at), reason, plain(&letter.key)]);
    }
    table
}

fn tell_rest(letters: &[DeadLetter], limit: usize, total: u64, notes: &mut (dyn Write + Send)) -> Result<(), Failure> {
    tell(notes, &format!("{} of {total} dead letters", letters.len()))?;
    match letters.last() {
        Some(last) if letters.len() == limit => tell(notes, &format!("go on with --after '{}'", plain(&last.key))),
        _ => Ok(()),
    }
}

fn show(letter: &DeadLetter, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let body =
        serde_json::from_str::<serde_json::Value>(&letter.body).and_then(|body| serde_json::to_string_pretty(&body));
    let members = [
        ("key", plain(&letter.key)),
        ("kind", kind(letter.kind).to_owned()),
        ("reason", plain(&letter.reason)),
        ("handler", plain(&letter.handler)),
        ("block", format!("{} {}", letter.block_number, letter.block_hash)),
        ("buried", time(letter.buried_at)),
    ];
    for (name, value) in members {
        tell(out, &format!("{name:8} {value}"))?;
    }
    tell(out, &body.unwrap_or_else(|_| plain(&letter.body)))
}

/// The letter of this key. The store pages by key, so the page begins just below it.
async fn find(store: &dyn StateStore, key: &str) -> Result<DeadLetter, Failure> {
    let mut below = key.to_owned();
    below.pop();
    loop {
        let page = store.dead_letters(Some(&below), PAGE).await.map_err(unread)?;
        match page.iter().find(|letter| letter.key.as_str() >= key) {
            Some(letter) if letter.key == key => return Ok(letter.clone()),
            None if page.len() == PAGE => below = page.into_iter().next_back().map(|last| last.key).unwrap_or_default(),
            _ => return Err(Failure::Data(format!("no dead letter has the key '{}'", plain(key)))),
        }
    }
}

/// What became of the letters that were to be sent again.
#[derive(Debug, Default)]
struct Tally {
    sent: usize,
    refused: usize,
    unsendable: usize,
    undecodable: usize,
    /// Of blocks that left the chain, or that the nodes do not have.
    gone: usize,
    /// Why a sink takes nothing now.
    stuck: Option<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, refused, unsendable, undecodable, gone, .. } = self;
        write!(f, "sent {sent}, refused again {refused}, without a sink or a message {unsendable}")?;
        write!(f, ", undecodable and so not sent {undecodable}, not on the chain and so not sent {gone}")
    }
}

async fn redrive(chosen: &Chosen, edges: Edges<'_>, notes: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let Edges { store, sinks, source } = edges;
    let mut redrive = Redrive { store, sinks, source, blocks: BTreeMap::new(), notes, tally: Tally::default() };
    if chosen.all {
        let mut after = None;
        while redrive.tally.stuck.is_none() {
            let page = store.dead_letters(after.as_deref(), PAGE).await.map_err(unread)?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            redrive.letters(page).await?;
        }
    } else {
        let mut letters = Vec::with_capacity(chosen.keys.len());
        for key in &chosen.keys {
            letters.push(find(store, key).await?);
        }
        redrive.letters(letters).await?;
    }
    let Redrive { tally, notes, .. } = redrive;
    tell(notes, &tally)?;
    let named_unsent = if chosen.all { 0 } else { tally.undecodable + tally.gone };
    match tally.stuck {
        Some(reason) => Err(Failure::Temporary(format!("the sink does not take messages now: {reason}"))),
        None if tally.refused + tally.unsendable + named_unsent > 0 => {
            Err(Failure::No("not every dead letter was sent".into()))
        }
        None => Ok(()),
    }
}

struct Redrive<'a> {
    store: &'a dyn StateStore,
    sinks: &'a BTreeMap<String, Arc<dyn Sink>>,
    /// The nodes, as long as they answer.
    source: Option<&'a dyn ChainSource>,
    /// What the chain has at the heights that were asked for.
    blocks: BTreeMap<u64, Option<B256>>,
    notes: &'a mut (dyn Write + Send),
    tally: Tally,
}

impl Redrive<'_> {
    /// Sorts letters by their sink, in the order of their keys, and sends them.
    async fn letters(&mut self, letters: Vec<DeadLetter>) -> Result<(), Failure> {
        let mut by_handler: BTreeMap<String, Vec<(String, Message)>> = BTreeMap::new();
        for letter in letters {
            if letter.kind == DeadKind::Undecodable {
                self.tally.undecodable += 1;
                continue;
            }
            if !self.is_on_the_chain(&letter).await? {
                self.tally.gone += 1;
                continue;
            }
            let DeadLetter { key, handler, body, .. } = letter;
            match Message::from_body(&body) {
                Ok(message) => by_handler.entry(handler).or_default().push((key, message)),
                Err(error) => self.keep(&[key], &error.to_string())?,
            }
        }
        for (handler, pending) in by_handler {
            if let Some(sink) = self.sinks.get(&handler) {
                self.send(&**sink, pending).await?;
            } else {
                let keys: Vec<_> = pending.into_iter().map(|(key, _)| key).collect();
                self.keep(&keys, &format!("no handler '{}' in contracts.toml", plain(&handler)))?;
            }
        }
        Ok(())
    }

    /// Whether the letter's block is on the chain, as far as the nodes tell; where not, says so.
    async fn is_on_the_chain(&mut self, letter: &DeadLetter) -> Result<bool, Failure> {
        let Some(source) = self.source else { return Ok(true) };
        let number = letter.block_number;
        if self.blocks.len() >= BLOCKS_KNOWN {
            self.blocks.clear();
        }
        let hash = match self.blocks.get(&number) {
            Some(known) => *known,
            None => match source.header(At::Number(number)).await {
                Ok(header) => header.map(|header| header.hash),
                Err(error) => {
                    self.source = None;
                    let text =
                        format!("the nodes do not tell whether the blocks are on the chain ({error}): sent anyway");
                    tell(self.notes, &text)?;
                    return Ok(true);
                }
            },
        };
        self.blocks.insert(number, hash);
        let reason = match hash {
            Some(hash) if hash == letter.block_hash => return Ok(true),
            Some(_) => "left the chain",
            None => "is not known to the nodes",
        };
        tell(self.notes, &format!("{}: its block {number} {reason}", plain(&letter.key)))?;
        Ok(false)
    }

    fn keep(&mut self, keys: &[String], reason: &str) -> Result<(), Failure> {
        self.tally.unsendable += keys.len();
        keys.iter().try_for_each(|key| tell(self.notes, &format!("{}: {reason}", plain(key))))
    }

    /// Sends until all is taken or refused, or the sink takes nothing for some tries.
    async fn send(&mut self, sink: &dyn Sink, mut pending: Vec<(String, Message)>) -> Result<(), Failure> {
        let (mut backoff, mut tries) = (Backoff::new(PAUSE), 0);
        while !pending.is_empty() {
            let messages: Vec<_> = pending.iter().map(|(_, message)| message.clone()).collect();
            let outcomes = sink.send(&messages).await;
            let before = pending.len();
            let again = self.settle(pending, outcomes).await?;
            pending = again.pending;
            tries = if pending.len() < before { 0 } else { tries + 1 };
            if tries >= TRIES {
                self.tally.stuck = Some(again.reason.unwrap_or_else(|| "it held back every message".into()));
                return Ok(());
            }
            if again.reason.is_some() || tries > 0 {
                backoff.wait(None).await;
            }
        }
        Ok(())
    }

    /// Removes what was acknowledged from the store; what is to be sent again.
    async fn settle(&mut self, sent: Vec<(String, Message)>, outcomes: Vec<Outcome>) -> Result<Again, Failure> {
        let mut again = Again { pending: Vec::new(), reason: None };
        let mut acknowledged = Vec::new();
        for ((key, message), outcome) in sent.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Acknowledged => acknowledged.push(key),
                Outcome::Held => again.pending.push((key, message)),
                Outcome::Retry { reason, .. } => {
                    again.pending.push((key, message));
                    again.reason = Some(reason);
                }
                Outcome::Refused(reason) => {
                    self.tally.refused += 1;
                    tell(self.notes, &format!("{}: {}", plain(&key), plain(&reason)))?;
                }
            }
        }
        self.store.exhume(&acknowledged).await.map_err(unread)?;
        self.tally.sent += acknowledged.len();
        Ok(again)
    }
}

struct Again {
    pending: Vec<(String, Message)>,
    reason: Option<String>,
}

async fn drop_letters(
    chosen: &Chosen,
    store: &dyn StateStore,
    yes: bool,
    notes: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    for key in &chosen.keys {
        find(store, key).await?;
    }
    if !yes {
        let named = chosen.keys.len() as u64;
        let count = if chosen.all { store.dead_letters_len().await.map_err(unread)? } else { named };
        tell(notes, &format!("{count} dead letters would be dropped for good; say --yes to do it"))?;
        return Err(Failure::Usage("nothing was changed".into()));
    }
    let dropped = if chosen.all { drop_all(store).await? } else { store.exhume(&chosen.keys).await.map_err(unread)? };
    tell(notes, &format!("dropped {dropped} dead letters"))
}

async fn drop_all(store: &dyn StateStore) -> Result<u64, Failure> {
    let mut dropped = 0;
    loop {
        let page = store.dead_letters(None, PAGE).await.map_err(unread)?;
        let keys: Vec<_> = page.into_iter().map(|letter| letter.key).collect();
        if keys.is_empty() {
            return Ok(dropped);
        }
        dropped += store.exhume(&keys).await.map_err(unread)?;
    }
}

fn kind(kind: DeadKind) -> &'static str {
    match kind {
        DeadKind::Refused => "refused",
        DeadKind::Undecodable => "undecodable",
    }
}

/// Milliseconds since the Unix epoch as a person reads them.
fn time(milliseconds: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds));
    // The formatter stops at the year 9999.
    let time = time.filter(|_| milliseconds < 253_402_300_800_000);
    time.map_or_else(|| milliseconds.to_string(), |time| humantime::format_rfc3339_seconds(time).to_string())
}

/// Text of others, without what could steer a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

fn unread(error: StoreError) -> Failure {
    match error {
        StoreError::Fatal(why) => Failure::Config(why),
        error => Failure::Unavailable(error.to_string()),
    }
}

fn tell(to: &mut (dyn Write + Send), text: &(impl fmt::Display + ?Sized)) -> Result<(), Failure> {
    writeln!(to, "{text}").map_err(|error| Failure::Internal(format!("cannot write: {error}")))
}
