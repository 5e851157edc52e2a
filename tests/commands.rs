//! The other commands as a user meets them: what they print, where, and the exit code (sysexits).

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what fails here fails the test")]

mod support;

use std::time::Duration;

use chaintap::devchain::Options;
use serde_json::Value;
use support::{
    chaintap::Settings,
    devchain::{Devchain, still},
    process::free_port,
    redis::RedisServer,
};

const TRANSFER: &str = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef";

/// Runs a command that must succeed without a word on standard error; answers what it printed.
async fn printed(settings: &Settings, arguments: &[&str]) -> String {
    let (code, out, log) = settings.output(arguments).await;
    assert_eq!((code, log.as_str()), (0, ""), "{arguments:?}: {out}");
    out
}

#[tokio::test]
async fn every_command_explains_itself_and_offers_only_flags_that_it_heeds() {
    let settings = Settings::default();
    let top = printed(&settings, &["--help"]).await;
    assert!(top.contains("chaintap run --demo") && top.contains("78 configuration"), "{top}");
    assert!(printed(&settings, &["--version"]).await.starts_with("chaintap "));
    let listed = top.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> = listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    for command in commands.into_iter().filter(|command| !command.is_empty() && *command != "help") {
        let help = printed(&settings, &[command, "--help"]).await;
        assert!(help.contains(&format!("Usage: chaintap {command}")), "{help}");
        assert_eq!(help, printed(&settings, &["help", command]).await);
        let reads_settings = !["topic", "healthcheck", "devchain"].contains(&command);
        assert_eq!(help.contains("--start-block"), reads_settings, "{help}");
    }
}

#[tokio::test]
async fn a_slip_on_the_command_line_is_an_error_of_usage() {
    let settings = Settings::default();
    let slips = [
        &["frob"][..],
        &["run", "--frob"],
        &["run", "--until", "soon"],
        &["rewind"],
        &["replay", "--to", "5"],
        &["resume"],
        &["reset", "--yes", "--dry-run"],
        &["audit", "--from", "5"],
        &["audit", "--from", "5", "--to", "9007199254740992"],
        &["replay", "--from", "5", "--to", "9007199254740992"],
        &["rewind", "--to", "9007199254740992"],
        &["skip", "--to", "9007199254740992"],
        &["topic"],
        &["topic", "Transfer"],
        &["healthcheck", "--chain-id", "1"],
        &[],
    ];
    for slip in slips {
        let (code, out, log) = settings.output(slip).await;
        assert_eq!((code, out.as_str()), (64, ""), "{slip:?}: {log}");
        assert!(!log.is_empty(), "{slip:?}");
    }
}

#[tokio::test]
async fn topic_prints_the_hash_and_nothing_else() {
    let settings = Settings::default();
    assert_eq!(printed(&settings, &["topic", "Transfer(address,address,uint256)"]).await, format!("{TRANSFER}\n"));
}

#[tokio::test]
async fn contracts_shows_what_is_listened_to_without_a_node() {
    let settings = Settings::default().set("CHAIN_ID", 8453);
    let table = printed(&settings, &["contracts"]).await;
    assert!(
        table.contains(TRANSFER) && table.contains("handleTransferEvent") && table.contains("standard output"),
        "{table}"
    );
    let list: Value = serde_json::from_str(&printed(&settings, &["contracts", "--json"]).await).unwrap();
    assert_eq!((&list[0]["topic0"], &list[0]["tokenFilter"]), (&TRANSFER.into(), &true.into()));
    let other = printed(&Settings::default(), &["contracts", "--chain-id", "1", "--json"]).await;
    assert!(other.contains(TRANSFER), "flags stand for variables");
}

#[tokio::test]
async fn check_tells_every_mistake_at_once_with_its_place_and_mend() {
    let wrong = r#"
[[contract]]
name = "Transfers"
abi = "abi/erc20.json"

[[contract.event]]
name = "Transfr"
handler = "handleTransferEvnt"
"#;
    let settings = Settings::default()
        .set("CHAIN_ID", 1)
        .set("WEB3_PROVIDER", "ftp://example.org/KEY-IN-A-PATH")
        .set("DELIVER", "never")
        .set("PORT", 99_999)
        .file("config/contracts.toml", wrong)
        .file("abi/erc20.json", include_str!("../abi/erc20.json"));
    let (code, out, log) = settings.output(&["check"]).await;
    assert_eq!((code, out.as_str()), (78, ""), "{log}");
    let expected = [
        "WEB3_PROVIDER has a scheme that is not accepted here",
        "begins with wss:// or ws:// or https:// or http://",
        "'never'",
        "'99999'",
        "contracts.toml:7",
        "did you mean 'Transfer'",
        "contracts.toml:8",
        "did you mean 'handleTransferEvent'",
        "5 mistakes in the configuration",
    ];
    for text in expected {
        assert!(log.contains(text), "{text:?} is not in\n{log}");
    }
    assert!(!log.contains("KEY-IN-A-PATH"), "{log}");
    let (code, out, _) = settings.output(&["check", "--format", "json"]).await;
    assert_eq!(code, 78);
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((answer["valid"].as_bool(), answer["problems"].as_array().unwrap().len()), (Some(false), 5), "{out}");
    // The listener refuses for the same reasons.
    let (code, _, listener) = settings.output(&["run"]).await;
    assert_eq!((code, listener), (78, log));
}

#[tokio::test]
async fn check_shows_what_the_configuration_amounts_to_without_secrets() {
    let settings = Settings::default()
        .set("CHAIN_ID", 1)
        .set("WEB3_PROVIDER", "wss://user:PW@node.example.org/v2/KEY1")
        .set("REDIS_URL", "rediss://:PW@redis.example.org/0");
    let out = printed(&settings, &["check"]).await;
    for text in ["wss://node.example.org", "rediss://redis.example.org", "is valid: chain 1 (ethereum_mainnet)"] {
        assert!(out.contains(text), "{text:?} is not in\n{out}");
    }
    assert!(!out.contains("PW") && !out.contains("KEY1"), "{out}");
}

#[tokio::test]
async fn check_connect_asks_every_server() {
    let server = RedisServer::start().await;
    let chain = Devchain::start(Options { chain_id: Some(1), ..still(42) }).await;
    let settings = Settings::default().set("CHAIN_ID", 1).set("WEB3_PROVIDER", chain.ws_url());
    let settings = settings.set("REDIS_URL", server.url(0));
    let out = printed(&settings, &["check", "--connect"]).await;
    for text in ["[+] node 127.0.0.1: head 42", "[+] state store: one host", "[+] handleTransferEvent → stdout"] {
        assert!(out.contains(text), "{text:?} is not in\n{out}");
    }
    assert_eq!(server.cli::<u64>(0, "DBSIZE").await, 0, "asking writes nothing");
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    let (code, out, log) = settings.set("REDIS_URL", nowhere).output(&["check", "--connect"]).await;
    assert_eq!(code, 69, "{out}{log}");
    assert!(out.contains("[-] state store") && out.contains("Connection refused"), "{out}");
    assert!(out.contains("[+] node 127.0.0.1"), "the others are asked all the same: {out}");
    assert!(log.contains("servers that cannot be used: 1"), "{log}");
    // A node of another chain.
    let settings = Settings::default().set("CHAIN_ID", 8453).set("WEB3_PROVIDER", chain.ws_url());
    let (code, out, _) = settings.output(&["check", "--connect"]).await;
    assert_eq!(code, 69);
    assert!(out.contains("is on chain 1, but CHAIN_ID is 8453"), "{out}");
}

#[tokio::test]
async fn healthcheck_asks_the_process_on_this_machine() {
    let chain = Devchain::start(Options { chain_id: Some(1), ..still(10) }).await;
    let settings = Settings::default().set("CHAIN_ID", 1).set("WEB3_PROVIDER", chain.ws_url());
    let listener = settings.start();
    listener.wait_ready(true, Duration::from_mins(1)).await;
    let asks = Settings::default().set("PORT", listener.port);
    assert_eq!(asks.output(&["healthcheck"]).await.0, 0);
    assert_eq!(asks.output(&["healthcheck", "--ready"]).await.0, 0);
    listener.stop().await;
    let (code, _, log) = asks.output(&["healthcheck"]).await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("no answer"), "{log}");
}
