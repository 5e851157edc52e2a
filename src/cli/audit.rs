//! `chaintap audit`: reads a range again and says what of it was delivered, what was not, and why.
//!
//! It changes nothing, and runs beside a listener where the state is in Redis. Differences go to standard output as they
//! are found, how far it is to standard error. At or below the sealed height the store knows blocks, not events; there blocks
//! from before the state began, or skipped, count as delivered, as they do everywhere. Above it they are told apart, because
//! the journal has nothing of them.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use super::{
    Failure,
    equip::{self, opened, say, stage_failure},
};
use crate::{
    app,
    config::Settings,
    domain::{BlockRange, MAX_BLOCK_NUMBER},
    pipeline::inspect::{Finding, Inspection, Kind, Part},
    rpc::{At, ChainSource},
    store::Progress,
};

/// How often it is told how far the audit is.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Differences that the JSON lists, the lowest.
const LISTED: usize = 1_000;

/// Flags of `audit`.
#[derive(Args, Debug)]
pub(super) struct AuditArgs {
    /// First block
    #[arg(long, value_name = "A", value_parser = clap::value_parser!(u64).range(..=MAX_BLOCK_NUMBER))]
    from: u64,
    /// Last block
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u64).range(..=MAX_BLOCK_NUMBER))]
    to: u64,
    /// Print one JSON object at the end, instead of lines
    #[arg(long)]
    json: bool,
}

/// What the audit came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    chain_id: u64,
    from: u64,
    to: u64,
    /// The newest block of the nodes.
    head: u64,
    /// The highest block that the delivery mode allows.
    deliverable_head: Option<u64>,
    watermark: i64,
    sealed: i64,
    /// Why nothing is delivered, where that is so.
    frozen: Option<String>,
    /// Number of blocks.
    blocks: u64,
    /// How many of them are delivered.
    delivered: u64,
    /// Events to be delivered, by the present token list.
    events: u64,
    /// Events that the token list leaves out.
    left_out: u64,
    /// Logs of tracked contracts that cannot be decoded.
    undecodable: u64,
    /// Dead letters of these blocks, by kind.
    refused_letters: u64,
    undecodable_letters: u64,
    /// Endpoints that could not be asked by themselves.
    unasked: Vec<String>,
    /// Number of differences; the first of them.
    differences: u64,
    findings: Vec<Finding>,
}

/// Audits a range.
pub(super) async fn run(args: &AuditArgs, settings: &Settings, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let range = BlockRange::new(args.from, args.to)
        .ok_or_else(|| Failure::Usage(format!("--from {} is above --to {}", args.from, args.to)))?;
    let source = equip::nodes(settings)?;
    let (store, snapshot) = opened(settings).await?;
    let tokens = equip::tokens(settings).await?;
    let ctx = app::context(settings, (store.clone(), source.clone()), BTreeMap::new());
    let endpoints: Vec<_> = equip::witnesses(settings)
        .into_iter()
        .map(|(name, one)| (name, app::context(settings, (store.clone(), one), BTreeMap::new())))
        .collect();
    let mut inspection =
        Inspection::begin(&ctx, &endpoints, tokens, range).await.map_err(|error| stage_failure(&error))?;
    if range.to > inspection.head {
        return Err(Failure::Data(format!(
            "block {} is above the newest one of the nodes, {}",
            range.to, inspection.head
        )));
    }
    let foreign = foreign(&*source, &snapshot.progress, range).await?;
    let mut report = Report::begin(settings, range, &inspection, snapshot.progress);
    let mut lines = Lines { out, quiet: args.json, pending: None };
    if let Some(finding) = foreign {
        lines.take(&mut report, finding)?;
    }
    let mut told = Instant::now();
    let mut next = range.from;
    loop {
        let part = inspection.part(next, range.to).await.map_err(|error| stage_failure(&error))?;
        let last = part.range.to;
        for finding in report.add(part) {
            lines.take(&mut report, finding)?;
        }
        if last >= range.to {
            break;
        }
        next = last + 1;
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let done = u128::from(next - range.from) * 100 / u128::from(range.blocks());
            say(&mut std::io::stderr(), &format!("audit: at block {next} of {range}, {done} %"))?;
        }
    }
    lines.flush(&mut report)?;
    report.end(&inspection);
    let now = store.snapshot().await.map_err(|error| app::store_failure(&error))?.progress;
    (report.watermark, report.sealed, report.frozen) = (now.watermark, now.sealed, now.frozen);
    report.tell(args.json, lines.out)?;
    match report.differences {
        0 => Ok(()),
        1 => Err(Failure::No("1 difference".into())),
        several => Err(Failure::No(format!("{several} differences"))),
    }
}

/// Of final blocks the store knows one by its hash, the highest. Where the chain has another block there, nothing can be said
/// of those below it.
async fn foreign(source: &dyn ChainSource, progress: &Progress, range: BlockRange) -> Result<Option<Finding>, Failure> {
    let (Ok(sealed), Some(hash)) = (u64::try_from(progress.sealed), progress.sealed_hash) else { return Ok(None) };
    if sealed < range.from {
        return Ok(None);
    }
    let found = source.header(At::Number(sealed)).await.map_err(|error| equip::node_failure(&error))?;
    let Some(found) = found.filter(|found| found.hash != hash) else { return Ok(None) };
    let text = format!(
        "block {sealed} was final as {hash}, which left the chain for {}: what was delivered of the blocks that left \
         with it is not known any more",
        found.hash
    );
    Ok(Some(Finding { from: range.from, to: sealed.min(range.to), kind: Kind::Orphaned, text }))
}

/// Differences as they are told: blocks of one kind of difference are one of it, where it is about blocks, also across parts.
struct Lines<'a> {
    out: &'a mut (dyn Write + Send),
    quiet: bool,
    pending: Option<Finding>,
}

impl Lines<'_> {
    fn take(&mut self, report: &mut Report, finding: Finding) -> Result<(), Failure> {
        if let Some(run) = &mut self.pending
            && matches!(run.kind, Kind::NotDelivered | Kind::Unjournaled)
            && (run.kind, &run.text, run.to + 1) == (finding.kind, &finding.text, finding.from)
        {
            run.to = finding.to;
            return Ok(());
        }
        self.flush(report)?;
        self.pending = Some(finding);
        Ok(())
    }

    fn flush(&mut self, report: &mut Report) -> Result<(), Failure> {
        let Some(finding) = self.pending.take() else { return Ok(()) };
        report.differences += 1;
        if !self.quiet {
            let blocks = BlockRange { from: finding.from, to: finding.to };
            say(self.out, &format!("{blocks}: {}", finding.text))?;
        } else if report.findings.len() < LISTED {
            report.findings.push(finding);
        }
        Ok(())
    }
}

impl Report {
    fn begin(settings: &Settings, range: BlockRange, inspection: &Inspection<'_>, progress: Progress) -> Self {
        Self {
            chain_id: settings.chain.id,
            from: range.from,
            to: range.to,
            head: inspection.head,
            deliverable_head: inspection.deliverable,
            watermark: progress.watermark,
            sealed: progress.sealed,
            frozen: progress.frozen,
            blocks: range.blocks(),
            delivered: 0,
            events: 0,
            left_out: 0,
            undecodable: 0,
            refused_letters: 0,
            undecodable_letters: 0,
            unasked: Vec::new(),
            differences: 0,
            findings: Vec::new(),
        }
    }

    /// Adds a part's numbers; its differences are still to be told.
    fn add(&mut self, part: Part) -> Vec<Finding> {
        self.delivered += part.delivered;
        self.events += part.events;
        self.left_out += part.left_out;
        self.undecodable += part.undecodable;
        part.findings
    }

    fn end(&mut self, inspection: &Inspection<'_>) {
        let letters = inspection.letters();
        (self.refused_letters, self.undecodable_letters) = (letters.refused, letters.undecodable);
        self.unasked = inspection.unasked().iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
    }

    fn tell(&self, json: bool, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
        if json {
            let text = serde_json::to_string_pretty(self).map_err(|error| Failure::Internal(error.to_string()))?;
            return say(out, &text);
        }
        for endpoint in &self.unasked {
            say(out, &format!("not compared: endpoint {endpoint}"))?;
        }
        let Self { from, to, blocks, delivered, events, left_out, undecodable, .. } = self;
        let Self { refused_letters, undecodable_letters, differences, .. } = self;
        say(
            out,
            &format!(
                "blocks {from} to {to}: {delivered} of {blocks} delivered; {events} events, {left_out} more left out by \
                 the token list, {undecodable} logs undecodable; dead letters: {refused_letters} refused, \
                 {undecodable_letters} undecodable; differences: {differences}"
            ),
        )
    }
}
