//! `chaintap providers check`: what each configured endpoint can do, and whether it can be trusted.
//!
//! It asks the endpoints alone, and neither reads nor changes the state: it may run anywhere, at any time. With `--save` it
//! writes one thing, at its end: what each endpoint bears, so that a listener that starts afterwards never asks for more.
//! `check --connect` says whether every server answers; this says how good the nodes are.

use std::{collections::BTreeMap, io::Write, sync::Arc, time::Duration};

use clap::{Args, Subcommand};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::json;

use super::{
    Failure,
    equip::{say, unopened},
};
use crate::{
    app,
    config::Settings,
    rpc::{
        LogFilter, described,
        probe::{self, Findings, Survey},
    },
    store::StateStore,
};

/// What to do with the endpoints.
#[derive(Debug, Subcommand)]
pub(super) enum ProvidersCommand {
    /// Ask each endpoint what it can do, and whether its answers hold together
    Check(CheckArgs),
}

/// Flags of `providers check`.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Keep in the state store how many blocks each endpoint takes in a request, for the next start of the listener
    #[arg(long)]
    save: bool,
    /// How long to count the heads that are announced to subscribers
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// Does it.
///
/// # Errors
///
/// [`Failure::No`] (exit code 1) where an endpoint cannot be used or is suspicious; [`Failure::Config`] where none is
/// configured; with `--save` that the store cannot be had, before anything is asked.
pub(super) async fn run(
    command: &ProvidersCommand,
    settings: &Settings,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let ProvidersCommand::Check(args) = command;
    if settings.providers.is_empty() {
        return Err(Failure::Config("WEB3_PROVIDER is not set: this command asks nodes".into()));
    }
    let store = if args.save {
        Some(app::open_store(settings).await.map_err(|error| unopened(settings, error))?)
    } else {
        None
    };
    let survey = Survey {
        chain_id: settings.chain.id,
        filter: LogFilter { addresses: settings.registry.addresses(), topics: settings.registry.topics() },
        most_blocks: settings.chain.batch_blocks,
        listen: Duration::from_secs(args.seconds),
        limits: settings.limits.clone(),
    };
    let found = probe::survey(&settings.providers, &survey).await;
    let saved = match store {
        Some(store) => Some(save(&store, &found, settings).await?),
        None => None,
    };
    let report = if args.json { as_json(&found, saved.as_ref())? } else { as_text(&found, args.seconds) };
    say(out, &report)?;
    for (endpoint, blocks) in saved.iter().flatten().filter(|_| !args.json) {
        say(out, &format!("saved for the next start of the listener: {endpoint} takes {blocks} blocks a request"))?;
    }
    match found.iter().filter(|findings| !findings.is_good()).count() {
        0 => Ok(()),
        bad => Err(Failure::No(format!("endpoints that cannot be used or are suspicious: {bad} of {}", found.len()))),
    }
}

/// Writes what each endpoint bears where the listener reads it, in the place of what was learned before; answers how many
/// blocks a request that is. Of an endpoint that answered no range nothing is written.
async fn save(
    store: &Arc<dyn StateStore>,
    found: &[Findings],
    settings: &Settings,
) -> Result<BTreeMap<String, u64>, Failure> {
    let mut saved = BTreeMap::new();
    for findings in found {
        let Some(bears) = &findings.bears else { continue };
        store.learn(&findings.endpoint, bears).await.map_err(|error| app::store_failure(&error))?;
        let allowance = described(bears, app::bounds(settings));
        saved.extend(allowance.map(|allowance| (findings.endpoint.clone(), allowance.blocks)));
    }
    Ok(saved)
}

fn as_json(found: &[Findings], saved: Option<&BTreeMap<String, u64>>) -> Result<String, Failure> {
    let mut report = json!({ "good": found.iter().all(Findings::is_good), "endpoints": found });
    if let (Some(report), Some(saved)) = (report.as_object_mut(), saved) {
        report.insert("saved".to_owned(), json!(saved));
    }
    serde_json::to_string_pretty(&report).map_err(|error| Failure::Internal(error.to_string()))
}

/// What is shown of an endpoint in one row.
type Show = fn(&Findings) -> Option<String>;

/// A column for each endpoint, and what speaks against it below.
fn as_text(found: &[Findings], seconds: u64) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let rows: [(&str, Show); 17] = [
        ("endpoint", |of| Some(of.endpoint.clone())),
        ("verdict", |of| Some(verdict(of).to_owned())),
        ("chain", |of| number(of.chain_id)),
        ("head", |of| number(of.head)),
        ("behind others", |of| number(of.lag)),
        ("heads announced", |of| number(of.heads_announced)),
        ("longest range", |of| of.range.as_ref().map(|range| at_least(range.blocks, range.limit.is_none()))),
        ("its logs", |of| of.range.as_ref().map(|range| range.logs.to_string())),
        ("headers from", |of| number(of.oldest_header)),
        ("logs from", |of| number(of.oldest_logs)),
        ("logs by hash", |of| yes(of.logs_by_hash)),
        ("receipts", |of| yes(of.receipts)),
        ("they prove logs", |of| yes(of.receipts_prove)),
        ("safe, finalized", |of| {
            (of.safe.or(of.finalized)).map(|_| format!("{}, {}", tag(of.safe), tag(of.finalized)))
        }),
        ("blooms hold", |of| yes(of.blooms_hold)),
        ("log indices", |of| {
            of.log_indices_ascend.map(|ascend| if ascend { "ascend" } else { "do not ascend" }.to_owned())
        }),
        ("median, throttled", |of| of.median_ms.map(|ms| format!("{ms} ms, {} of {}", of.throttled, of.requests))),
    ];
    for (name, value) in rows {
        let values = found.iter().map(|of| value(of).unwrap_or_else(|| "-".to_owned()));
        table.add_row([name.to_owned()].into_iter().chain(values));
    }
    let counted = found.iter().any(|of| of.heads_announced.is_some());
    let counted = counted.then(|| format!("\nheads were counted for {seconds} s"));
    let against = found.iter().flat_map(|of| {
        let reasons = of.unusable.iter().chain(&of.suspicions);
        reasons.map(|reason| format!("{}: {reason}", of.endpoint))
    });
    [table.trim_fmt()].into_iter().chain(counted).chain(against).collect::<Vec<_>>().join("\n")
}

fn verdict(of: &Findings) -> &'static str {
    match (&of.unusable, of.is_good()) {
        (Some(_), _) => "unusable",
        (None, false) => "suspicious",
        (None, true) => "good",
    }
}

fn number(number: Option<u64>) -> Option<String> {
    number.map(|number| number.to_string())
}

fn tag(height: Option<u64>) -> String {
    number(height).unwrap_or_else(|| "none".to_owned())
}

fn yes(answer: Option<bool>) -> Option<String> {
    answer.map(|answer| if answer { "yes" } else { "no" }.to_owned())
}

fn at_least(blocks: u64, is_least: bool) -> String {
    if is_least { format!("{blocks} or more") } else { blocks.to_string() }
}
