//! `check`, `contracts` and `topic`: what the configuration says, without running anything.
//!
//! The functions write what was asked for to the writer that they are given and leave failures to the caller, who
//! prints them and knows the exit code. `check --connect` goes on from the settings that [`check`] returns.

use std::io::{self, Write};

use alloy::{json_abi::Event, primitives::keccak256};
use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde_json::json;

use super::Failure;
use crate::config::{self, Invalid, Listener, Settings, Sources, abi::canonical_types, problem::nearest};

/// Checks the whole configuration and shows what it amounts to.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Ask every server too: nodes, store, token directory, queues.
    #[arg(long)]
    pub connect: bool,
    /// How the answer is written: text or json.
    #[arg(long, value_enum, default_value_t = Format::Text, hide_possible_values = true)]
    pub format: Format,
}

/// Shows what is listened to on this chain, and where it goes.
#[derive(Args, Clone, Debug)]
pub struct ContractsArgs {
    /// One JSON array instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Prints the topic of an event: the Keccak-256 hash of its signature.
#[derive(Args, Clone, Debug)]
pub struct TopicArgs {
    /// The event as Solidity writes it: `Transfer(address,address,uint256)`, or with `event`, names and `indexed`.
    pub signature: String,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Checks the configuration and writes a summary without secrets; the settings are for what `--connect` asks next.
///
/// # Errors
///
/// [`Failure::Config`] with every mistake.
pub async fn check(args: &CheckArgs, sources: &Sources, out: &mut impl Write) -> Result<Settings, Failure> {
    let loaded = config::load(sources).await;
    match (&loaded, args.format) {
        (Ok(settings), Format::Text) => write_summary(settings, out).map_err(|error| unwritable(&error))?,
        (Ok(settings), Format::Json) => {
            writeln!(out, "{}", valid_json(settings)).map_err(|error| unwritable(&error))?;
        }
        (Err(_), Format::Text) => {}
        (Err(invalid), Format::Json) => {
            writeln!(out, "{}", invalid_json(invalid)).map_err(|error| unwritable(&error))?;
        }
    }
    loaded.map_err(Failure::from)
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::Config(invalid.to_string())
    }
}

fn unwritable(error: &io::Error) -> Failure {
    Failure::Internal(format!("cannot write the answer: {error}"))
}

fn write_summary(settings: &Settings, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["variable", "value", "from"]);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.add_rows(&settings.given);
    writeln!(out, "{}\n", table.trim_fmt())?;
    write_contracts(settings, out)?;
    for warning in &settings.warnings {
        writeln!(out, "\nwarning: {warning}")?;
    }
    writeln!(out, "\nconfiguration is valid: chain {} ({})", settings.chain.id, settings.service)
}

fn valid_json(settings: &Settings) -> serde_json::Value {
    let given = settings.given.iter().map(|[name, value, from]| json!({ "name": name, "value": value, "from": from }));
    json!({
        "valid": true,
        "chainId": settings.chain.id,
        "service": settings.service,
        "settings": given.collect::<Vec<_>>(),
        "contracts": listeners_json(settings),
        "warnings": settings.warnings,
    })
}

fn invalid_json(invalid: &Invalid) -> serde_json::Value {
    let problems: Vec<_> = invalid
        .problems
        .iter()
        .map(|problem| json!({ "place": problem.place(), "text": problem.text(), "mend": problem.remedy() }))
        .collect();
    json!({ "valid": false, "problems": problems })
}

/// Writes what is listened to.
///
/// # Errors
///
/// [`Failure::Internal`] where it cannot be written.
pub fn contracts(args: &ContractsArgs, settings: &Settings, out: &mut impl Write) -> Result<(), Failure> {
    if args.json {
        writeln!(out, "{}", listeners_json(settings)).map_err(|error| unwritable(&error))
    } else {
        write_contracts(settings, out).map_err(|error| unwritable(&error))
    }
}

fn write_contracts(settings: &Settings, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header([
        "contract",
        "event",
        "address",
        "topic",
        "tokens",
        "from block",
        "handler",
        "to",
    ]);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.add_rows(settings.registry.listeners().iter().map(row));
    if settings.registry.listeners().is_empty() {
        return writeln!(out, "nothing is listened to: no entry of contracts.toml is active on this chain");
    }
    writeln!(out, "{}", table.trim_fmt())
}

fn row(listener: &Listener) -> [String; 8] {
    [
        listener.contract.to_string(),
        listener.event.signature(),
        listener.address.map_or_else(|| "any".to_owned(), |address| address.to_checksum(None)),
        listener.topic0.to_string(),
        if listener.token_filter { "tracked" } else { "all" }.to_owned(),
        listener.start_block.map_or_else(|| "any".to_owned(), |block| block.to_string()),
        listener.handler.to_string(),
        listener.target.to_string(),
    ]
}

fn listeners_json(settings: &Settings) -> serde_json::Value {
    let one = |listener: &Listener| {
        json!({
            "contract": &*listener.contract,
            "event": listener.event.signature(),
            "address": listener.address.map(|address| address.to_checksum(None)),
            "topic0": listener.topic0,
            "tokenFilter": listener.token_filter,
            "startBlock": listener.start_block,
            "handler": &*listener.handler,
            "target": listener.target.to_string(),
        })
    };
    settings.registry.listeners().iter().map(one).collect()
}

/// Writes the topic of an event.
///
/// # Errors
///
/// [`Failure::Usage`] where the text is not an event.
pub fn topic(args: &TopicArgs, out: &mut impl Write) -> Result<(), Failure> {
    let signature = canonical(&args.signature).map_err(Failure::Usage)?;
    writeln!(out, "{}", keccak256(signature.as_bytes())).map_err(|error| unwritable(&error))
}

/// The signature that is hashed: no names, no spaces, short types written out.
fn canonical(text: &str) -> Result<String, String> {
    let example = "write it like Transfer(address,address,uint256)";
    let text = text.trim().trim_end_matches(';');
    if !text.contains('(') || !text.ends_with(')') {
        return Err(format!("'{text}' is not an event: {example}"));
    }
    let event = Event::parse(text).map_err(|_| format!("'{text}' is not an event: {example}"))?;
    let known = ["address", "bool", "string", "bytes", "bytes32", "uint256", "int256", "uint8"];
    let types = canonical_types(&event)
        .map_err(|unknown| format!("'{unknown}' is not a Solidity type; {}", nearest(&unknown, known)))?;
    Ok(format!("{}({})", event.name, types.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";

    fn topic_of(signature: &str) -> Result<String, String> {
        let mut out = Vec::new();
        topic(&TopicArgs { signature: signature.to_owned() }, &mut out).map_err(|failure| failure.to_string())?;
        Ok(String::from_utf8(out).unwrap().trim().to_owned())
    }

    #[test]
    fn the_topic_is_the_hash_of_the_canonical_signature() {
        for written in [
            "Transfer(address,address,uint256)",
            "Transfer(address, address, uint)",
            "event Transfer(address indexed from, address indexed to, uint256 value);",
        ] {
            assert_eq!(topic_of(written).as_deref(), Ok(TRANSFER), "{written}");
        }
        let nested = topic_of("Filled((uint256,address)[2],bytes32)").unwrap();
        assert_eq!(nested, keccak256("Filled((uint256,address)[2],bytes32)").to_string());
    }

    #[test]
    fn what_is_not_an_event_is_told_with_an_example() {
        let cases = [
            ("Transfer", "'Transfer' is not an event: write it like Transfer(address,address,uint256)"),
            ("(address)", "'(address)' is not an event: write it like Transfer(address,address,uint256)"),
            ("A(address,adress)", "'adress' is not a Solidity type; did you mean 'address'?"),
            ("A(address", "'A(address' is not an event: write it like Transfer(address,address,uint256)"),
        ];
        for (written, message) in cases {
            assert_eq!(topic_of(written), Err(message.to_owned()));
        }
    }
}
