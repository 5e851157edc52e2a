//! Looks at a range again for an operator (`chaintap audit`): what every node has there, what the store says of it, and
//! where these differ. It delivers nothing, claims nothing and writes nothing, so it runs beside a listener; it stands
//! outside the order of the verbs.
//!
//! One part at a time is in memory, as many blocks as the providers bear in one request. Whether a block is delivered is
//! asked after it was read, so that what is delivered meanwhile counts. Of blocks that are not sealed the journal says
//! what was sent, event by event; of sealed ones the store knows only that everything was.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use alloy::primitives::B256;
use serde::Serialize;

use super::{Context, Filter, StageError, decode, fetch, filter};
use crate::{
    backoff::Backoff,
    domain::{BlockRange, BlockRef, Event, Header, Heights, RawLog, Tag, TokenList, signed},
    rpc::{At, RpcError},
    store::{DeadKind, JournalEntry, MAX_CLAIM_BLOCKS, Snapshot, StateStore, StoreError},
};

/// Dead letters that are read at once.
const LETTERS_AT_ONCE: usize = 50;
/// Tries of a node that does not serve.
const TRIES: u32 = 6;
/// Longest pause between two of them.
const PAUSE: Duration = Duration::from_secs(5);

/// What is the matter with blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// First block.
    pub from: u64,
    /// Last block.
    pub to: u64,
    /// What kind of difference it is.
    pub kind: Kind,
    /// What it is, in words.
    pub text: String,
}

/// Kinds of differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Blocks that are not delivered yet.
    NotDelivered,
    /// Blocks that count as delivered, of which the journal has nothing although they may still leave the chain.
    Unjournaled,
    /// Events that the nodes have and the journal lacks: they were not sent.
    Missing,
    /// Events that the journal has and the nodes, or the present token list, lack.
    Extra,
    /// A journaled block that is not on the chain.
    Orphaned,
    /// Messages that no sink would take.
    Refused,
    /// Logs that one endpoint has and another lacks.
    Disagreement,
}

/// What a part of the range amounts to.
#[derive(Clone, Debug)]
pub struct Part {
    /// The blocks.
    pub range: BlockRange,
    /// How many of them are delivered.
    pub delivered: u64,
    /// Events that are to be delivered, by the present token list.
    pub events: u64,
    /// Events that the token list leaves out.
    pub left_out: u64,
    /// Logs of tracked contracts that cannot be decoded.
    pub undecodable: u64,
    /// The differences.
    pub findings: Vec<Finding>,
}

/// Number of dead letters of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Letters {
    /// Messages that no sink would take.
    pub refused: u64,
    /// Logs that could not be decoded.
    pub undecodable: u64,
}

/// A look at a range, under way.
pub struct Inspection<'a> {
    ctx: &'a Context,
    /// Each endpoint by itself, where there are several.
    endpoints: &'a [(String, Context)],
    /// Endpoints that could not be asked, and why: they are not asked again.
    unasked: BTreeMap<String, String>,
    filter: Filter,
    /// The newest block.
    pub head: u64,
    /// The highest block that the delivery mode allows.
    pub deliverable: Option<u64>,
    letters: BTreeMap<u64, Letters>,
    /// The last block of the part before.
    before: Option<Header>,
}

impl<'a> Inspection<'a> {
    /// Begins to look at `range`: `ctx` has all nodes, `endpoints` each by itself, `tokens` those that are tracked; `None`:
    /// all pass.
    ///
    /// # Errors
    ///
    /// [`StageError`] where no node or the store does not answer.
    pub async fn begin(
        ctx: &'a Context,
        endpoints: &'a [(String, Context)],
        tokens: Option<Arc<TokenList>>,
        range: BlockRange,
    ) -> Result<Self, StageError> {
        let heights = heights(ctx).await?;
        let deliverable = heights.deliverable(ctx.deliver, ctx.chain.finality_depth);
        let letters = letters(&*ctx.store, range).await?;
        // What is looked at is not sent, so the version does not matter.
        let filter = Filter { version: 0, tokens, since: -1 };
        let head = heights.head;
        Ok(Self { ctx, endpoints, unasked: BTreeMap::new(), filter, head, deliverable, letters, before: None })
    }

    /// Looks at the blocks from `from` on, to `to` at most: as many as the provider bears in one request.
    ///
    /// # Errors
    ///
    /// [`StageError`] where no node or the store does not answer, [`StageError::Again`] where the chain was reorganised
    /// meanwhile.
    pub async fn part(&mut self, from: u64, to: u64) -> Result<Part, StageError> {
        let ctx = self.ctx;
        let most = to.min(from.saturating_add(MAX_CLAIM_BLOCKS - 1));
        let (range, answer) = patiently(|| fetch::part(ctx, &ctx.log_filter, from, most)).await?;
        if self.before.is_some_and(|before| before.number + 1 == from && before.hash != answer.first.parent) {
            return Err(StageError::Again("the chain was reorganised while it was read"));
        }
        let mut findings = Vec::new();
        let ends = [answer.first.block(), answer.last.block()];
        let mut blocks: BTreeMap<u64, B256> =
            answer.logs.iter().map(|log| log.block).chain(ends).map(of_block).collect();
        let mut logs = self.united(range, answer.logs, &mut findings).await?;
        // An endpoint on another fork disagrees, and what it has is not of this chain.
        logs.retain(|log| blocks.get(&log.block.number).is_none_or(|hash| *hash == log.block.hash));
        let decoded = decode::events(&ctx.registry, &logs);
        let candidates = decoded.candidates.len();
        let wanted = filter::by_token(&self.filter, decoded);
        let before = ctx.store.snapshot().await?;
        let journal = self.journal(range).await?;
        let mut held = BTreeMap::new();
        for entry in &journal {
            let (number, store) = (entry.block.number, &ctx.store);
            if !blocks.contains_key(&number) {
                blocks.extend([of_block(fetch::canonical(ctx, number).await?.block())]);
            }
            held.entry(number).or_insert_with(Vec::new).extend(store.journaled(entry.block, entry.epoch).await?);
        }
        let now = ctx.store.snapshot().await?;
        let journaled = Journaled { now: &now, journal: &journal, held: &held, blocks: &blocks };
        journaled.compare(&wanted.events, &mut findings);
        self.unjournaled(range, (&before, &now), &journal, &mut findings).await?;
        let delivered = self.delivered(range, &now, &mut findings).await?;
        self.refused(range, &mut findings);
        self.before = Some(answer.last);
        findings.sort_by_key(|finding| finding.from);
        let events = wanted.events.len();
        let left_out = candidates.saturating_sub(events) as u64;
        Ok(Part {
            range,
            delivered,
            events: events as u64,
            left_out,
            undecodable: wanted.undecodable.len() as u64,
            findings,
        })
    }

    /// Endpoints that could not be asked, and why.
    #[must_use]
    pub fn unasked(&self) -> &BTreeMap<String, String> {
        &self.unasked
    }

    /// The dead letters of all blocks.
    #[must_use]
    pub fn letters(&self) -> Letters {
        self.letters.values().fold(Letters::default(), |sum, letters| Letters {
            refused: sum.refused + letters.refused,
            undecodable: sum.undecodable + letters.undecodable,
        })
    }

    /// These logs, and those that only some endpoint has; that they disagree is a finding.
    async fn united(
        &mut self,
        range: BlockRange,
        logs: Vec<RawLog>,
        findings: &mut Vec<Finding>,
    ) -> Result<Vec<RawLog>, StageError> {
        let mut all: BTreeMap<(u64, u64, B256), RawLog> = logs.into_iter().map(|log| (name(&log), log)).collect();
        let mut by_endpoint = Vec::new();
        for (endpoint, ctx) in self.endpoints {
            if self.unasked.contains_key(endpoint) {
                continue;
            }
            match patiently(|| whole(ctx, range)).await {
                Ok(theirs) => {
                    let names: BTreeSet<_> = theirs.iter().map(name).collect();
                    all.extend(theirs.into_iter().map(|log| (name(&log), log)));
                    by_endpoint.push((endpoint, names));
                }
                Err(StageError::Rpc(error)) => {
                    self.unasked.insert(endpoint.clone(), error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        for (endpoint, names) in by_endpoint {
            let mut lacking: BTreeMap<u64, u64> = BTreeMap::new();
            for (number, ..) in all.keys().filter(|name| !names.contains(name)) {
                *lacking.entry(*number).or_default() += 1;
            }
            findings.extend(lacking.into_iter().map(|(number, logs)| {
                let text = format!("endpoint {endpoint} lacks {logs} logs that another endpoint has");
                Finding { from: number, to: number, kind: Kind::Disagreement, text }
            }));
        }
        Ok(all.into_values().collect())
    }

    /// The live entries of the range.
    async fn journal(&self, range: BlockRange) -> Result<Vec<JournalEntry>, StoreError> {
        let mut entries = self.ctx.store.journal(range.to).await?;
        entries.retain(|entry| range.contains(entry.block.number));
        Ok(entries)
    }

    /// Blocks that count as delivered before and after the journal was read, are not final, and have no entry.
    async fn unjournaled(
        &self,
        range: BlockRange,
        (before, now): (&Snapshot, &Snapshot),
        journal: &[JournalEntry],
        findings: &mut Vec<Finding>,
    ) -> Result<(), StageError> {
        let held: BTreeSet<u64> = journal.iter().map(|entry| entry.block.number).collect();
        let lacks = |number: &u64| {
            let counts = is_delivered(before, *number) && is_delivered(now, *number);
            counts && signed(*number) > now.progress.sealed && !held.contains(number)
        };
        let lacking: Vec<u64> = (range.from..=range.to).filter(lacks).collect();
        // What was taken back in between had one; what is final by now needs none.
        if lacking.is_empty() || before.progress.epoch != now.progress.epoch {
            return Ok(());
        }
        let heights = heights(self.ctx).await?;
        let last_final = heights.final_height(self.ctx.chain.finality_depth);
        for number in lacking.into_iter().filter(|number| last_final.is_none_or(|last| *number > last)) {
            let text = "counts as delivered, but the journal has nothing of it: it was skipped, is from before the start, \
                        or the store lost it";
            join(findings, number, Kind::Unjournaled, text.to_owned());
        }
        Ok(())
    }

    /// How many blocks are delivered; of the others, why not.
    async fn delivered(
        &self,
        range: BlockRange,
        now: &Snapshot,
        findings: &mut Vec<Finding>,
    ) -> Result<u64, StageError> {
        let open: Vec<u64> = (range.from..=range.to).filter(|number| !is_delivered(now, *number)).collect();
        if open.is_empty() {
            return Ok(range.blocks());
        }
        let claims: BTreeMap<u64, String> = self.ctx.store.claims(range).await?.into_iter().collect();
        let allowed = self.deliverable.map_or_else(|| "none yet".to_owned(), |height| format!("{height} at most"));
        let reason = |number: u64| match (&now.progress.frozen, claims.get(&number)) {
            (Some(reason), _) => format!("deliveries are frozen: {reason}"),
            _ if self.deliverable.is_none_or(|height| number > height) => {
                format!("DELIVER={} allows {allowed}", self.ctx.deliver)
            }
            (None, Some(owner)) => format!("{owner} is working on it"),
            _ if now.progress.retracting > 0 => "blocks that left the chain are taken back first".to_owned(),
            (None, None) => "its turn has not come".to_owned(),
        };
        for number in &open {
            join(findings, *number, Kind::NotDelivered, format!("not delivered: {}", reason(*number)));
        }
        Ok(range.blocks() - open.len() as u64)
    }

    fn refused(&self, range: BlockRange, findings: &mut Vec<Finding>) {
        let refused = self.letters.range(range.from..=range.to).filter(|(_, letters)| letters.refused > 0);
        findings.extend(refused.map(|(number, letters)| Finding {
            from: *number,
            to: *number,
            kind: Kind::Refused,
            text: format!("{} messages were refused and are dead letters (chaintap dlq)", letters.refused),
        }));
    }
}

/// Adds a block to the run of blocks before it with the same finding, or begins another.
fn join(findings: &mut Vec<Finding>, number: u64, kind: Kind, text: String) {
    match findings.last_mut() {
        Some(run) if run.kind == kind && run.to + 1 == number && run.text == text => run.to = number,
        _ => findings.push(Finding { from: number, to: number, kind, text }),
    }
}

/// The newest block, and the heights of the tags.
async fn heights(ctx: &Context) -> Result<Heights, RpcError> {
    let head = ctx.source.header(At::Latest).await?;
    let head = head.ok_or_else(|| RpcError::Behind("the node has no newest block".into()))?.number;
    let tag = async |at| {
        let header = ctx.source.header(at).await?;
        Ok::<_, RpcError>(header.map_or(Tag::Absent, |header| Tag::At(header.number)))
    };
    Ok(Heights { head, safe: tag(At::Safe).await?, finalized: tag(At::Finalized).await? })
}

/// What the journal holds of a part, beside what the chain has.
struct Journaled<'a> {
    now: &'a Snapshot,
    journal: &'a [JournalEntry],
    held: &'a BTreeMap<u64, Vec<Event>>,
    blocks: &'a BTreeMap<u64, B256>,
}

impl Journaled<'_> {
    /// Of every delivered block that is not sealed: whether what was sent is what is to be delivered.
    fn compare(&self, wanted: &[Event], findings: &mut Vec<Finding>) {
        let (nothing, mut ours) = (BTreeSet::new(), BTreeMap::<u64, BTreeSet<_>>::new());
        for event in wanted {
            ours.entry(event.block.number).or_default().insert(event.delivery());
        }
        // A block may have entries of several epochs: what was sent is what all of them hold.
        let done =
            self.journal.iter().filter(|entry| entry.done && signed(entry.block.number) > self.now.progress.sealed);
        let done: BTreeSet<(u64, B256)> = done.map(|entry| of_block(entry.block)).collect();
        for (number, hash) in done {
            let canonical = self.blocks.get(&number).copied().unwrap_or_default();
            let mut found = |kind, text| findings.push(Finding { from: number, to: number, kind, text });
            if hash != canonical {
                found(Kind::Orphaned, format!("delivered as {hash}, which left the chain for {canonical}"));
                continue;
            }
            let held = self.held.get(&number).into_iter().flatten().filter(|event| event.block.hash == hash);
            let held: BTreeSet<_> = held.map(Event::delivery).collect();
            let ours = ours.get(&number).unwrap_or(&nothing);
            let (missing, extra) = (ours.difference(&held).count(), held.difference(ours).count());
            if missing > 0 {
                found(Kind::Missing, format!("{missing} events were not sent"));
            }
            if extra > 0 {
                found(Kind::Extra, format!("{extra} events were sent that the nodes or the present token list lack"));
            }
        }
    }
}

fn is_delivered(now: &Snapshot, number: u64) -> bool {
    signed(number) <= now.progress.watermark || now.done.contains(number)
}

fn of_block(block: BlockRef) -> (u64, B256) {
    (block.number, block.hash)
}

/// What tells one log from another, in the order of the chain.
fn name(log: &RawLog) -> (u64, u64, B256) {
    (log.block.number, log.log_index, log.block.hash)
}

/// The logs of a range, in parts as large as the provider bears.
async fn whole(ctx: &Context, range: BlockRange) -> Result<Vec<RawLog>, StageError> {
    let (mut logs, mut next) = (Vec::new(), range.from);
    loop {
        let (part, answer) = fetch::part(ctx, &ctx.log_filter, next, range.to).await?;
        logs.extend(answer.logs);
        if part.to >= range.to {
            return Ok(logs);
        }
        next = part.to + 1;
    }
}

/// Asks a node again that does not serve, a few times.
async fn patiently<R, F>(ask: impl Fn() -> F) -> Result<R, StageError>
where
    F: Future<Output = Result<R, StageError>>,
{
    let mut backoff = Backoff::new(PAUSE);
    for _ in 1..TRIES {
        match ask().await {
            Err(StageError::Rpc(error)) if error.is_failure() => backoff.wait(None).await,
            answer => return answer,
        }
    }
    ask().await
}

/// Counts the dead letters of a range's blocks.
async fn letters(store: &dyn StateStore, range: BlockRange) -> Result<BTreeMap<u64, Letters>, StoreError> {
    let mut by_block: BTreeMap<u64, Letters> = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.dead_letters(after.as_deref(), LETTERS_AT_ONCE).await?;
        for letter in page.iter().filter(|letter| range.contains(letter.block_number)) {
            let of_block = by_block.entry(letter.block_number).or_default();
            match letter.kind {
                DeadKind::Refused => of_block.refused += 1,
                DeadKind::Undecodable => of_block.undecodable += 1,
            }
        }
        match page.into_iter().next_back() {
            Some(last) => after = Some(last.key),
            None => return Ok(by_block),
        }
    }
}
