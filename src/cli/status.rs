//! `chaintap status`: where the chain's state stands, read from the store without changing it.
//!
//! It asks the store, not the process: it works while nothing runs. The embedded store belongs to one process at a
//! time; while one runs, its `/health` tells more.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::Failure;
use crate::{
    app,
    domain::{BlockRange, IntervalSet},
    rpc::{Allowance, Bounds, described},
    store::{Snapshot, StateStore},
};

/// Gaps that are listed, the lowest ones.
const LISTED_GAPS: usize = 10;

/// Flags of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Where the state of one chain stands.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The chain's id.
    pub chain_id: u64,
    /// The service name in the views.
    pub service: String,
    /// Every block at or below it is delivered.
    pub watermark: i64,
    /// The highest delivered block.
    pub tip: i64,
    /// Every block at or below it is final.
    pub sealed: i64,
    /// Raised whenever blocks are delivered again.
    pub epoch: u64,
    /// Why nothing may be delivered, where that is so.
    pub frozen: Option<String>,
    /// Blocks that left the chain and are being taken back.
    pub retracting: u64,
    /// Number of gaps between watermark and tip.
    pub gaps: usize,
    /// Blocks missing in all of them.
    pub missing: u64,
    /// The lowest gaps, ascending.
    pub lowest_gaps: Vec<Gap>,
    /// Number of dead letters.
    pub dead_letters: u64,
    /// What makes acknowledged writes survive.
    pub durability: String,
    /// What was learned of the endpoints, as it was last kept.
    pub endpoints: Vec<Endpoint>,
}

/// What one endpoint bears, as far as it was learned.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Its name.
    pub name: String,
    /// Blocks that one request may name.
    pub blocks_per_request: u64,
    /// Addresses that one request may name; `None` where no limit is known.
    pub addresses_per_request: Option<usize>,
    /// Requests for history that it bears at once.
    pub parallel_requests: usize,
    /// Until when it asked to be left alone, seconds since the Unix epoch; `None` where that is over.
    pub waits_until: Option<u64>,
}

impl Endpoint {
    fn line(&self) -> String {
        let addresses = self.addresses_per_request.map(|most| format!(", {most} addresses")).unwrap_or_default();
        let waits = self.waits_until.map(|until| format!(", waits until {until}")).unwrap_or_default();
        let (name, blocks, parallel) = (&self.name, self.blocks_per_request, self.parallel_requests);
        format!("{name}: {blocks} blocks{addresses} a request, {parallel} at once{waits}")
    }
}

/// Missing blocks, both ends included.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// First missing block.
    pub from: u64,
    /// Last missing block.
    pub to: u64,
}

/// Prints the state of `chain_id`, `snapshot`, to `out`; an endpoint is never asked for more than `bounds`.
///
/// # Errors
///
/// [`Failure::Unavailable`] where the store does not answer, [`Failure::Config`] where it cannot be used as configured.
pub async fn run(
    args: &StatusArgs,
    (chain_id, bounds): (u64, Bounds),
    (store, snapshot): (Arc<dyn StateStore>, Snapshot),
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let dead_letters = store.dead_letters_len().await.map_err(|error| app::store_failure(&error))?;
    let learned = store.learned().await.map_err(|error| app::store_failure(&error))?;
    let endpoints = endpoints(learned, bounds);
    let report = Report { endpoints, ..report(chain_id, snapshot, dead_letters, store.durability()) };
    let text = if args.json { json(&report)? } else { table(&report) };
    writeln!(out, "{text}").map_err(|error| Failure::Internal(format!("cannot write the status: {error}")))
}

fn report(chain_id: u64, snapshot: Snapshot, dead_letters: u64, durability: String) -> Report {
    let Snapshot { progress, done } = snapshot;
    let holes = holes(progress.watermark, progress.tip, &done);
    Report {
        chain_id,
        service: progress.service,
        watermark: progress.watermark,
        tip: progress.tip,
        sealed: progress.sealed,
        epoch: progress.epoch,
        frozen: progress.frozen,
        retracting: progress.retracting,
        gaps: holes.len(),
        missing: holes.iter().map(BlockRange::blocks).sum(),
        lowest_gaps: holes.iter().take(LISTED_GAPS).map(|hole| Gap { from: hole.from, to: hole.to }).collect(),
        dead_letters,
        durability,
        endpoints: Vec::new(),
    }
}

fn endpoints(learned: BTreeMap<String, String>, bounds: Bounds) -> Vec<Endpoint> {
    let one = |(name, learned): (String, String)| {
        let Allowance { blocks, addresses, parallel, waits_until } = described(&learned, bounds)?;
        Some(Endpoint {
            name,
            blocks_per_request: blocks,
            addresses_per_request: addresses,
            parallel_requests: parallel,
            waits_until,
        })
    };
    learned.into_iter().filter_map(one).collect()
}

fn holes(watermark: i64, tip: i64, done: &IntervalSet) -> Vec<BlockRange> {
    let between = u64::try_from(watermark.saturating_add(1)).ok().zip(u64::try_from(tip).ok());
    let between = between.and_then(|(from, to)| BlockRange::new(from, to));
    between.map_or_else(Vec::new, |between| done.missing(between).collect())
}

fn json(report: &Report) -> Result<String, Failure> {
    serde_json::to_string_pretty(report).map_err(|error| Failure::Internal(error.to_string()))
}

fn gap_lines(report: &Report) -> String {
    let count = match report.gaps {
        0 => "none".to_owned(),
        gaps => format!("{gaps} ({} blocks missing)", report.missing),
    };
    let lowest = report.lowest_gaps.iter().map(|&Gap { from, to }| BlockRange { from, to }.to_string());
    let more = (report.gaps > report.lowest_gaps.len()).then(|| "…".to_owned());
    [count].into_iter().chain(lowest).chain(more).collect::<Vec<_>>().join("\n")
}

fn table(report: &Report) -> String {
    let gaps = gap_lines(report);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.add_row(["chain", &report.chain_id.to_string()]);
    table.add_row(["service", &report.service]);
    table.add_row(["watermark", &report.watermark.to_string()]);
    table.add_row(["tip", &report.tip.to_string()]);
    table.add_row(["sealed", &report.sealed.to_string()]);
    table.add_row(["gaps", &gaps]);
    if report.retracting > 0 {
        table.add_row(["taking back", &format!("{} blocks that left the chain", report.retracting)]);
    }
    table.add_row(["dead letters", &report.dead_letters.to_string()]);
    table.add_row(["epoch", &report.epoch.to_string()]);
    table.add_row(["durability", &report.durability]);
    if !report.endpoints.is_empty() {
        let lines: Vec<String> = report.endpoints.iter().map(Endpoint::line).collect();
        table.add_row(["endpoints", &lines.join("\n")]);
    }
    if let Some(reason) = &report.frozen {
        table.add_row(["frozen", &format!("{reason}\nlook at the chain, then: chaintap resume --accept-reorg")]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rpc::{Cap, Caps},
        store::Progress,
    };

    fn snapshot(watermark: i64, tip: i64, done: &[(u64, u64)]) -> Snapshot {
        let progress = Progress {
            watermark,
            tip,
            sealed: watermark - 1,
            sealed_hash: None,
            epoch: 3,
            filter_version: 1,
            retracting: 0,
            frozen: None,
            service: "base_mainnet".to_owned(),
        };
        Snapshot { progress, done: done.iter().map(|&(from, to)| BlockRange { from, to }).collect() }
    }

    #[test]
    fn gaps_are_what_is_missing_between_watermark_and_tip() {
        let report = report(8453, snapshot(99, 200, &[(150, 160), (171, 200)]), 2, "one host".to_owned());
        assert_eq!((report.gaps, report.missing), (2, 60));
        assert_eq!(report.lowest_gaps, [Gap { from: 100, to: 149 }, Gap { from: 161, to: 170 }]);
        let lines = table(&report);
        for expected in ["watermark     99", "2 (60 blocks missing)", "100..149", "161..170", "dead letters  2"] {
            assert!(lines.contains(expected), "{expected:?} is not in\n{lines}");
        }
    }

    #[test]
    fn a_state_that_is_complete_or_has_not_begun_has_no_gaps() {
        for (watermark, tip) in [(200, 200), (-1, -1)] {
            let report = report(1, snapshot(watermark, tip, &[]), 0, String::new());
            assert_eq!((report.gaps, report.missing), (0, 0));
            assert!(table(&report).contains("none"));
        }
    }

    #[test]
    fn what_was_learned_of_endpoints_is_listed_as_far_as_it_can_be_read() {
        let bounds = Bounds::default();
        let mut caps = Caps::new(bounds);
        caps.refused(BlockRange { from: 1, to: 100 }, Cap::Blocks(Some(10)), None, u64::from(u32::MAX));
        caps.too_many_addresses(100, Some(20), u64::from(u32::MAX));
        let learned = serde_json::to_string(caps.learned()).unwrap();
        let learned = [("b.example", learned.as_str()), ("a.example", "of another version")];
        let learned = learned.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let endpoints = endpoints(BTreeMap::from(learned), bounds);
        let report = Report { endpoints, ..report(1, snapshot(-1, 200, &[]), 0, String::new()) };
        assert!(
            table(&report).contains("b.example: 10 blocks, 20 addresses a request, 3 at once"),
            "{}",
            table(&report)
        );
        let value: serde_json::Value = serde_json::from_str(&json(&report).unwrap()).unwrap();
        let expected = serde_json::json!([
            {
                "name": "b.example", "blocksPerRequest": 10, "addressesPerRequest": 20, "parallelRequests": 3,
                "waitsUntil": null
            }
        ]);
        assert_eq!(value["endpoints"], expected);
    }

    #[test]
    fn only_the_lowest_gaps_are_listed() {
        let done: Vec<(u64, u64)> = (1..=20).map(|n| (n * 10, n * 10)).collect();
        let report = report(1, snapshot(-1, 200, &done), 0, String::new());
        assert_eq!((report.gaps, report.lowest_gaps.len()), (20, LISTED_GAPS));
        assert!(table(&report).contains('…'));
    }

    #[test]
    fn the_json_has_the_members_of_the_documentation() {
        let text = json(&report(8453, snapshot(99, 200, &[(110, 200)]), 0, "WAIT 1".to_owned())).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let members: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = [
            "chainId",
            "service",
            "watermark",
            "tip",
            "sealed",
            "epoch",
            "frozen",
            "retracting",
            "gaps",
            "missing",
            "lowestGaps",
            "deadLetters",
            "durability",
            "endpoints",
        ];
        assert_eq!(members, expected);
        assert_eq!(value["lowestGaps"][0]["to"], 109);
    }
}
