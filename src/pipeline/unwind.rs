//! **Unwind** what was sent from blocks that left the chain.
//!
//! The journal says of every block that may still leave the chain what was sent of it. The highest entry of every run is
//! held against the chain; where it is another block, the run is walked down to the first one that still stands, and
//! what lies above is taken back: REWIND marks it under a new epoch, and from then on nothing new is sent before its
//! retractions are (`super::take_back`). Neither the orphaned block nor the token list is asked again (N14): a node need
//! not have the one any more, and the other may have changed.
//!
//! Three things are not decided at once. Where there are three endpoints or more, blocks are taken back only when most of
//! all that are configured have others: one that is alone with its branch is set aside, and the others are asked. A chain
//! that is *shorter* than what was delivered may be a node that lags on a stale branch. A chain that lacks what was *sealed*
//! may be a node on another fork, which is left where another one knows better; where none does, nothing is delivered any
//! more until an operator accepts it.

use std::time::Duration;

use alloy::primitives::B256;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Context, PATIENCE, StageError, persist};
use crate::{
    domain::{BlockRange, BlockRef, Header, MAX_BLOCK_NUMBER, signed},
    mutants::{Mutant, planted},
    rpc::{At, QUORUM_OF, RpcError, Votes},
    store::{JournalEntry, Progress, RewindReply, Snapshot, runs},
};

/// A chain that is shorter than what was delivered, and another one, is believed after this long (F28); so is a branch that
/// no majority can be had for.
const SHORTER: Duration = Duration::from_mins(1);
/// Who does not know what was sealed is believed after this long, unless all of several say so: the only endpoint, or the
/// only ones that answer (protocol §3.5, step 4).
const FOREIGN: Duration = Duration::from_mins(5);
/// What was delivered since the last look is looked at once nothing more was delivered for so long.
const SETTLES: Duration = Duration::from_secs(1);
/// What nothing ties to the head is looked at so often, while the head stays: a node on a stale branch may have answered
/// the look itself.
const UNTIED: Duration = Duration::from_mins(1);

/// What everything that was delivered stands on.
#[derive(Debug, Default)]
pub(super) struct Footing {
    /// The head above which everything journaled was last found to be canonical.
    firm: Option<BlockRef>,
    /// When the last look began, or the head last needed none.
    looked: Option<Instant>,
    /// When something else than that head was delivered last, since a look began.
    grown: Option<Instant>,
    doubt: Option<(Doubt, Instant)>,
    /// Something contradicted it since the last look began.
    shaken: bool,
}

/// What one look cannot decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Delivered blocks are not on the chain of a head that is below them.
    Shorter,
    /// Nobody who answers knows what was sealed, and there is only one, or others do not answer.
    Foreign,
    /// Blocks are not on the chain of the endpoint that was asked, and there is no majority for either.
    Divided,
}

impl Doubt {
    fn patience(self) -> Duration {
        match self {
            Self::Shorter | Self::Divided => SHORTER,
            Self::Foreign => FOREIGN,
        }
    }
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Everything delivered is on the chain of this head.
    Firm(BlockRef),
    /// Blocks had left the chain, or another endpoint has to be asked: look again.
    Again,
    /// It may be the node that is wrong: wait.
    Doubt(Doubt),
}

impl Footing {
    /// Whether the head stands on what was delivered. A head right above the last firm one does, where everything below
    /// that may still leave the chain is delivered without a gap: then INTENT itself compares its parent with the journal.
    pub(super) fn holds(&mut self, head: &Header, state: &Snapshot) -> bool {
        let progress = &state.progress;
        let ignored = planted(Mutant::SameHeightIgnored) && signed(head.number) <= progress.tip;
        if ignored || planted(Mutant::NeverLook) {
            return true;
        }
        let Some(firm) = self.firm else { return false };
        let is_next = head.parent == firm.hash && head.number == firm.number + 1;
        if self.grown.is_some_and(|last| last.elapsed() >= SETTLES) {
            return false;
        }
        // By the parents that INTENT compared.
        let is_closed = progress.tip == signed(firm.number) && has_no_gap(state);
        if !is_closed && self.looked.is_some_and(|last| last.elapsed() >= UNTIED) {
            return false;
        }
        if is_next && is_closed {
            (self.firm, self.looked) = (Some(head.block()), Some(Instant::now()));
        }
        self.firm == Some(head.block())
    }

    /// A block was delivered. One that is not the head that is firm came from a node that was asked by its number, or of an
    /// older head: once no more follow it is held against the chain, lest it wait for a next head that gives it away.
    pub(super) fn grew(&mut self, block: BlockRef) {
        if self.firm != Some(block) {
            self.grown = Some(Instant::now());
        }
    }

    /// Something contradicted it, perhaps while a look was going on.
    pub(super) fn shake(&mut self) {
        self.firm = None;
        self.shaken = true;
    }

    /// A look begins, and nothing is firm until it ends; answers whether it has to be thorough, because nothing was.
    pub(super) fn begin(&mut self) -> bool {
        (self.shaken, self.grown, self.looked) = (false, None, Some(Instant::now()));
        self.firm.take().is_none()
    }

    /// The doubt that has lasted long enough to be believed.
    pub(super) fn believed(&self) -> Option<Doubt> {
        self.doubt.filter(|(doubt, since)| since.elapsed() >= doubt.patience()).map(|(doubt, _)| doubt)
    }

    /// Takes note of what a look found.
    pub(super) fn found(&mut self, look: Look) {
        match look {
            Look::Firm(head) => (self.firm, self.doubt) = (Some(head).filter(|_| !self.shaken), None),
            Look::Again => (self.firm, self.doubt) = (None, None),
            Look::Doubt(doubt) => {
                self.firm = None;
                // A branch that is shorter at one look and disputed at the next is one doubt.
                let since = self.doubt.filter(|(known, _)| known.patience() == doubt.patience());
                self.doubt = Some((doubt, since.map_or_else(Instant::now, |(_, since)| since)));
            }
        }
    }
}

/// Whether the delivered blocks above what is sealed have no gap. Then their entries are one run, each compared with its
/// neighbours by INTENT or `COMMIT_FINAL`, and whatever chain has the highest has them all. Entries at or below the sealed height
/// were compared by SEAL; none is begun there, and history leaves none. So history that is not complete costs no look for each
/// head.
fn has_no_gap(Snapshot { progress, done }: &Snapshot) -> bool {
    let number = |number: i64| u64::try_from(number).ok();
    let above = progress.sealed.max(progress.watermark) + 1;
    let unsealed = number(above).zip(number(progress.tip)).and_then(|(from, to)| BlockRange::new(from, to));
    progress.watermark == progress.tip || unsealed.is_some_and(|blocks| done.missing(blocks).next().is_none())
}

/// Holds what was delivered against the chain of `head`, and marks what left it as to be retracted. The sealed block is
/// looked at, too, where `thorough` or where anything left. `believed` is a doubt that is none any more.
pub(super) async fn look(
    ctx: &Context,
    head: &Header,
    progress: &Progress,
    thorough: bool,
    believed: Option<Doubt>,
) -> Result<Look, StageError> {
    let orphans = orphans(ctx, head).await?;
    if let (Some(sealed), true) = (progress.sealed_block(), thorough || !orphans.is_empty())
        && sealed.number <= head.number
    {
        let hash = hash_at(ctx, head, sealed.number).await?;
        if hash != sealed.hash {
            return foreign(ctx, sealed, progress.epoch, believed).await;
        }
    }
    if orphans.is_empty() {
        ctx.vitals.note("chain", None);
        return Ok(Look::Firm(head.block()));
    }
    let votes = votes(ctx, head, &orphans).await;
    if let Some((number, votes)) = votes.as_ref().filter(|(_, votes)| votes.stands()) {
        for endpoint in &votes.other {
            ctx.source.set_aside(
                endpoint,
                &format!("most others have the block {number} that was delivered, and it another"),
            );
        }
        return Err(StageError::Again("one endpoint is alone with its branch: another one is asked"));
    }
    let is_believed = matches!(believed, Some(Doubt::Shorter | Doubt::Divided));
    if let Some((doubt, what)) = doubt(head, progress, votes.as_ref()).filter(|_| !is_believed) {
        let minutes = SHORTER.as_secs() / 60;
        let text = format!("{what}: nothing is delivered; what left is taken back if it stays for {minutes} min");
        warn!(head = head.number, tip = progress.tip, what, "not taken back yet; it is believed if it stays");
        ctx.vitals.note("chain", Some(text));
        return Ok(Look::Doubt(doubt));
    }
    // Where nobody else was asked, an endpoint that failed meanwhile may have left the rest of the look to a stale one.
    if votes.is_none() && ctx.source.header(At::Number(head.number)).await?.is_none_or(|now| now.hash != head.hash) {
        return Err(StageError::Again("the head is another one than at the beginning of the look"));
    }
    rewind(ctx, &orphans, progress).await?;
    Ok(Look::Again)
}

/// Why what left the chain of `head` should not be taken back yet.
fn doubt(head: &Header, progress: &Progress, votes: Option<&(u64, Votes)>) -> Option<(Doubt, String)> {
    let number = head.number;
    if signed(number) < progress.tip {
        let what = format!("the head, block {number}, is below delivered blocks and on another chain");
        return Some((Doubt::Shorter, what));
    }
    let (at, votes) = votes.filter(|(_, votes)| !votes.has_left())?;
    let (same, other) = (votes.same.len(), votes.other.len());
    let what = format!("of the endpoints {same} have the block {at} that was delivered, and {other} another one");
    Some((Doubt::Divided, what))
}

/// What all endpoints have where the lowest block that left stood, and that height; `None` where there are too few of them
/// for one to be outvoted.
async fn votes(ctx: &Context, head: &Header, orphans: &[JournalEntry]) -> Option<(u64, Votes)> {
    let lowest = orphans.iter().min_by_key(|entry| entry.block.number)?;
    if ctx.source.endpoints().len() < QUORUM_OF {
        return None;
    }
    // Right above the head it is the parent that tells.
    let (number, hash) = match lowest.block {
        BlockRef { number, hash } if number <= head.number => (number, hash),
        BlockRef { number, .. } => (number.saturating_sub(1), lowest.parent),
    };
    Some((number, Votes::on(hash, &ctx.source.witnesses(number).await)))
}

/// The entries whose blocks are not on the chain of `head`, run by run. What lies above a block that left, left too.
async fn orphans(ctx: &Context, head: &Header) -> Result<Vec<JournalEntry>, StageError> {
    let entries = persist(ctx, "journal", PATIENCE, || ctx.store.journal(MAX_BLOCK_NUMBER)).await?;
    let mut left = Vec::new();
    let entries: Vec<JournalEntry> =
        entries.into_iter().filter(|entry| entry.done || !planted(Mutant::UncommittedKept)).collect();
    let runs = runs(&entries);
    let skipped = if planted(Mutant::HighestRunOnly) { runs.len().saturating_sub(1) } else { 0 };
    for run in runs.into_iter().skip(skipped) {
        let (below, above) = run.split_at(run.partition_point(|entry| entry.block.number <= head.number));
        let mut stands = below.len();
        while let Some(entry) = stands.checked_sub(1).and_then(|index| below.get(index)) {
            if hash_at(ctx, head, entry.block.number).await? == entry.block.hash {
                break;
            }
            stands -= 1;
        }
        // The block right above the head tells by its parent, though the chain has none at its height yet.
        let is_foreign = |first: &JournalEntry| first.block.number == head.number + 1 && first.parent != head.hash;
        if stands < below.len() || run.first().is_some_and(is_foreign) {
            left.extend(below.iter().skip(stands).chain(above).copied());
        }
    }
    Ok(left)
}

/// The hash of the block at a height of the chain that ends in `head`.
async fn hash_at(ctx: &Context, head: &Header, number: u64) -> Result<B256, StageError> {
    match head.number.checked_sub(number) {
        Some(0) => return Ok(head.hash),
        Some(1) => return Ok(head.parent),
        _ => {}
    }
    let found = ctx.source.header(At::Number(number)).await?;
    let found = found.ok_or_else(|| RpcError::Behind(format!("the node lacks block {number} below its own head")))?;
    Ok(found.hash)
}

/// Takes the blocks back, unless another block was sealed since the look began: then what it saw may be a stale branch, and
/// what it would take back may be final by now.
async fn rewind(ctx: &Context, orphans: &[JournalEntry], progress: &Progress) -> Result<(), StageError> {
    let sealed = progress.sealed_block();
    let names: Vec<(BlockRef, u64)> = orphans.iter().map(|entry| (entry.block, entry.epoch)).collect();
    let reply = persist(ctx, "rewind", PATIENCE, || ctx.store.rewind(&names, sealed, progress.epoch)).await?;
    match reply {
        RewindReply::Rewound(now) => {
            let lowest = orphans.iter().map(|entry| entry.block.number).min().unwrap_or_default();
            let depth = u64::try_from(progress.tip).unwrap_or_default().saturating_sub(lowest) + 1;
            ctx.vitals.reorganised(depth);
            info!(from = lowest, blocks = orphans.len(), depth, epoch = now.epoch, "blocks left the chain");
            Ok(())
        }
        RewindReply::Stale => Err(StageError::Again(
            "another replica takes back what left the chain, or sealed what this one compared with",
        )),
        RewindReply::Deep(reason) => {
            error!(reason, "frozen");
            Err(StageError::Again("the chain was reorganised below what was sealed"))
        }
    }
}

/// The endpoint in use does not know what was sealed: it is left where another one does; where all of several say so, or
/// all that answer do for long, the chain itself was reorganised that deeply.
async fn foreign(ctx: &Context, sealed: BlockRef, epoch: u64, believed: Option<Doubt>) -> Result<Look, StageError> {
    let mut theirs = Vec::new();
    let mut known = false;
    for witness in ctx.source.witnesses(sealed.number).await {
        match witness.answer {
            Ok(Some(header)) if header.hash == sealed.hash => known = true,
            Ok(Some(header)) => theirs.push((witness.endpoint, header.hash)),
            Ok(None) | Err(_) => {}
        }
    }
    if known {
        for (endpoint, hash) in &theirs {
            ctx.source.eject(endpoint, &format!("it has {hash} at the height of the sealed block {sealed}"));
        }
        return Ok(Look::Again);
    }
    let Some((_, hash)) = theirs.first().cloned() else {
        return Err(StageError::Again("no endpoint tells what is at the sealed height"));
    };
    let (said, asked) = (theirs.len(), ctx.source.endpoints().len());
    let is_whole = said > 1 && said == asked;
    if !is_whole && believed != Some(Doubt::Foreign) {
        let minutes = FOREIGN.as_secs() / 60;
        let text = format!(
            "{hash} is at the height of the sealed block {sealed}, say {said} of {asked} endpoints, and the others nothing: \
             nothing is delivered, and deliveries freeze if that stays for {minutes} min"
        );
        warn!(%sealed, %hash, said, asked, "who answers is on another fork than what was sealed; believed if it stays");
        ctx.vitals.note("chain", Some(text));
        return Ok(Look::Doubt(Doubt::Foreign));
    }
    let theirs = Some(BlockRef { hash, ..sealed });
    match persist(ctx, "rewind", PATIENCE, || ctx.store.rewind(&[], theirs, epoch)).await? {
        RewindReply::Deep(reason) => error!(reason, "frozen"),
        RewindReply::Rewound(_) | RewindReply::Stale => {}
    }
    Ok(Look::Again)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::IntervalSet;

    fn header(number: u64, hash: u8, parent: u8) -> Header {
        Header { number, hash: B256::repeat_byte(hash), parent: B256::repeat_byte(parent), timestamp: 0 }
    }

    fn progress(watermark: i64, tip: i64) -> Snapshot {
        let progress = Progress {
            watermark,
            tip,
            sealed: -1,
            sealed_hash: None,
            epoch: 1,
            filter_version: 0,
            frozen: None,
            retracting: 0,
            service: String::new(),
        };
        Snapshot { progress, done: IntervalSet::default() }
    }

    #[test]
    fn only_a_gap_above_what_is_sealed_counts() {
        let gaps = |watermark, sealed, done: &[(u64, u64)]| {
            let tip = done.last().map_or(watermark, |(_, to)| to.cast_signed());
            let mut state = progress(watermark, tip);
            state.progress.sealed = sealed;
            state.done = done.iter().map(|(from, to)| BlockRange { from: *from, to: *to }).collect();
            !has_no_gap(&state)
        };
        assert!(!gaps(20, 8, &[]) && !gaps(20, 30, &[]) && !gaps(-1, -1, &[]), "history is complete");
        assert!(!gaps(4, 8, &[(9, 20)]), "one below what is sealed");
        assert!(!gaps(4, 10, &[(9, 20)]) && !gaps(4, 10, &[(6, 7), (9, 20)]), "wherever it ends, and also two");
        assert!(gaps(4, 7, &[(9, 20)]), "block 8 is missing");
        assert!(gaps(4, 8, &[(9, 18), (20, 20)]), "block 19 is missing");
        assert!(gaps(4, -1, &[(9, 20)]) && gaps(-1, -1, &[(9, 20)]), "nothing is sealed");
        assert!(gaps(4, 20, &[(9, 20)]) && gaps(4, 30, &[(9, 20)]), "nothing that is not sealed is delivered");
    }

    #[test]
    fn only_the_next_head_above_a_closed_chain_needs_no_look() {
        let mut footing = Footing::default();
        assert!(!footing.holds(&header(7, 7, 6), &progress(7, 7)), "nothing was looked at yet");
        footing.found(Look::Firm(header(7, 7, 6).block()));
        assert!(footing.holds(&header(7, 7, 6), &progress(7, 7)), "the same head");
        assert!(!footing.holds(&header(7, 17, 6), &progress(7, 7)), "another block of its height");
        assert!(!footing.holds(&header(8, 8, 7), &progress(5, 7)), "a gap is open");
        assert!(!footing.holds(&header(9, 9, 8), &progress(7, 7)), "a block is skipped");
        assert!(!footing.holds(&header(8, 8, 17), &progress(7, 7)), "another parent");
        assert!(footing.holds(&header(8, 8, 7), &progress(7, 7)));
        assert!(footing.holds(&header(8, 8, 7), &progress(7, 7)), "it is the firm one now");
        footing.shake();
        assert!(!footing.holds(&header(8, 8, 7), &progress(8, 8)));
        assert!(footing.begin(), "after a contradiction the look is thorough");
        footing.shake();
        footing.found(Look::Firm(header(8, 8, 7).block()));
        assert!(!footing.holds(&header(8, 8, 7), &progress(8, 8)), "it was contradicted during the look");
    }

    #[test]
    fn what_is_delivered_beside_the_head_is_looked_at_once_no_more_follows() {
        let mut footing = Footing::default();
        let head = header(7, 7, 6);
        footing.found(Look::Firm(head.block()));
        footing.grew(head.block());
        assert_eq!(footing.grown, None, "the head itself was looked at");
        footing.grew(header(6, 16, 5).block());
        assert!(footing.holds(&head, &progress(7, 7)), "more may follow at once");
        footing.grown = footing.grown.map(|last| last.checked_sub(SETTLES).unwrap());
        assert!(!footing.holds(&head, &progress(7, 7)));
        assert!(!footing.begin(), "nothing contradicted it: the look need not be thorough");
        footing.grew(header(6, 6, 5).block());
        footing.found(Look::Firm(head.block()));
        assert!(footing.grown.is_some(), "delivered while the look was going on");
    }

    #[test]
    fn what_nothing_ties_to_the_head_is_looked_at_again_while_the_head_stays() {
        let mut footing = Footing::default();
        let head = header(9, 9, 8);
        footing.begin();
        footing.found(Look::Firm(head.block()));
        footing.looked = footing.looked.map(|last| last.checked_sub(UNTIED).unwrap());
        assert!(footing.holds(&head, &progress(9, 9)), "closed up to the head");
        assert!(!footing.holds(&head, &progress(8, 8)), "only what is deep enough is delivered");
    }

    #[test]
    fn a_doubt_is_believed_only_if_it_stays() {
        let mut footing = Footing::default();
        let pass = |footing: &mut Footing, time: Duration| {
            footing.doubt = footing.doubt.map(|(doubt, since)| (doubt, since.checked_sub(time).unwrap()));
        };
        footing.found(Look::Doubt(Doubt::Shorter));
        pass(&mut footing, SHORTER / 2);
        footing.found(Look::Doubt(Doubt::Shorter));
        assert_eq!(footing.believed(), None);
        pass(&mut footing, SHORTER / 2);
        assert_eq!(footing.believed(), Some(Doubt::Shorter));
        footing.found(Look::Doubt(Doubt::Foreign));
        assert_eq!(footing.believed(), None, "another doubt begins anew");
        footing.found(Look::Again);
        pass(&mut footing, FOREIGN);
        assert_eq!(footing.believed(), None);
    }
}
