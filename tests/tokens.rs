//! The token directory against a real server: loading, changing, failing, coming back.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::{fs, time::Duration};

use chaintap::{
    cli::{self, Failure, tokens::TokensCommand},
    config::{SecretUrl, TokenSettings},
    domain::Token,
    tokens::{FixedList, MongoDirectory, TokenDirectory, TokenError},
};
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use support::{mongo::Mongo, process::free_port};
use tokio::time::{Instant, timeout};

const USDC: &str = "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48";
const WETH: &str = "0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2";
const DAI: &str = "0x6B175474E89094C44Da98b954EedeAC495271d0F";
const CHAIN: u64 = 8453;
const DATABASE: &str = "shop";

async fn directory(server: &Mongo) -> MongoDirectory {
    MongoDirectory::connect(&server.secret_uri(), DATABASE, CHAIN, Duration::from_secs(3)).await.unwrap()
}

fn document(address: &str, symbol: &str) -> Document {
    doc! { "address": address, "name": "A name", "symbol": symbol, "decimals": 6, "chainId": 8453 }
}

fn token(address: &str, symbol: &str) -> Token {
    Token { address: address.parse().unwrap(), symbol: symbol.into(), name: "A name".into(), decimals: 6 }
}

async fn symbols(directory: &impl TokenDirectory) -> Vec<String> {
    let mut symbols: Vec<_> = directory.load().await.unwrap().tokens.iter().map(|token| token.symbol.clone()).collect();
    symbols.sort();
    symbols
}

#[tokio::test]
async fn this_chains_tokens_load_whatever_case_and_number_types_their_documents_have() {
    let server = Mongo::start().await;
    let tokens = server.tokens(DATABASE).await;
    let mut float = document(WETH, "weth");
    float.extend(doc! { "chainId": 8453.0, "decimals": 18.0, "createdAt": mongodb::bson::DateTime::now() });
    let mut text = document(DAI, "Dai");
    text.extend(doc! { "chainId": "8453", "decimals": 18_i64 });
    let mut elsewhere = document(DAI, "OTHER");
    elsewhere.insert("chainId", 1);
    tokens.insert_many([document(&USDC.to_lowercase(), "usdc"), float, text, elsewhere]).await.unwrap();

    let directory = directory(&server).await;
    let loaded = directory.load().await.unwrap();
    assert_eq!(loaded.skipped, Vec::<String>::new());
    assert_eq!(symbols(&directory).await, ["DAI", "USDC", "WETH"]);
    assert_eq!(**loaded.tokens.get(&USDC.parse().unwrap()).unwrap(), token(USDC, "USDC"));
    assert_eq!(loaded.tokens.get(&WETH.parse().unwrap()).unwrap().decimals, 18);
    directory.close().await;
}

/// F52.
#[tokio::test]
async fn malformed_documents_are_skipped_by_name_and_the_others_load() {
    let server = Mongo::start().await;
    let tokens = server.tokens(DATABASE).await;
    let with = |id: &str, change: Document| {
        let mut document = document(USDC, "BAD");
        document.insert("_id", id);
        document.extend(change);
        document
    };
    let rows = [
        with("0-good", doc! { "symbol": "USDC" }),
        with("1-again", doc! { "address": USDC.to_lowercase() }),
        with("2-solana", doc! { "address": "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v" }),
        with("3-null", doc! { "address": null }),
        with("4-nested", doc! { "address": { "$gt": "" } }),
        with("5-decimals", doc! { "address": WETH, "decimals": 256 }),
        with("6-negative", doc! { "address": WETH, "decimals": -1 }),
        with("7-text\u{1b}[2J\nid", doc! { "address": WETH, "decimals": "many" }),
        with("8-bare", doc! { "address": DAI, "name": null, "symbol": ["x"] }),
    ];
    tokens.insert_many(rows).await.unwrap();

    let loaded = directory(&server).await.load().await.unwrap();
    let mut listed: Vec<_> = loaded.tokens.iter().map(|t| (t.address.to_checksum(None), t.symbol.clone())).collect();
    listed.sort();
    assert_eq!(listed, [(DAI.to_owned(), String::new()), (USDC.to_owned(), "USDC".to_owned())]);
    let expected = ["1-again", "2-solana", "3-null", "4-nested", "5-decimals", "6-negative", "7-text[2Jid"];
    assert_eq!(loaded.skipped.len(), expected.len(), "{:?}", loaded.skipped);
    for (line, id) in loaded.skipped.iter().zip(expected) {
        assert!(line.starts_with(&format!("_id \"{id}\": ")) && !line.contains('\u{1b}'), "{line}");
    }
}

#[tokio::test]
async fn a_change_is_told_at_once_and_an_import_only_a_few_times() {
    let server = Mongo::start().await;
    let directory = directory(&server).await;
    assert_eq!(symbols(&directory).await, Vec::<String>::new());
    timeout(Duration::from_secs(5), directory.changed()).await.expect("the stream opens, and says to look once");
    assert!(timeout(Duration::from_millis(1_500), directory.changed()).await.is_err(), "nothing changed");

    let tokens = server.tokens(DATABASE).await;
    tokens.insert_one(document(USDC, "USDC")).await.unwrap();
    timeout(Duration::from_secs(5), directory.changed()).await.expect("an insert is told");
    assert_eq!(symbols(&directory).await, ["USDC"]);

    // Between two calls nobody listens; what happens then is told by the next one.
    tokens.update_one(doc! { "symbol": "USDC" }, doc! { "$set": { "symbol": "usd" } }).await.unwrap();
    timeout(Duration::from_secs(5), directory.changed()).await.expect("an update is told");
    assert_eq!(symbols(&directory).await, ["USD"]);

    tokens.insert_many((1..=500_u32).map(|n| document(&format!("0x{n:040x}"), "N"))).await.unwrap();
    let mut told = 0;
    while timeout(Duration::from_secs(2), directory.changed()).await.is_ok() {
        told += 1;
    }
    assert!((1..=3).contains(&told), "told {told} times");
    directory.close().await;
}

#[tokio::test]
async fn a_server_without_change_streams_is_simply_read_again() {
    let server = Mongo::start_with(&["--standalone"]).await;
    let directory = directory(&server).await;
    let changed = timeout(Duration::from_secs(2), directory.changed()).await;
    server.tokens(DATABASE).await.insert_one(document(USDC, "USDC")).await.unwrap();
    assert!(changed.is_err());
    assert_eq!(symbols(&directory).await, ["USDC"]);
}

/// F50.
#[tokio::test]
async fn a_server_that_dies_is_a_passing_fault_and_its_return_is_noticed() {
    let mut server = Mongo::start().await;
    server.tokens(DATABASE).await.insert_one(document(USDC, "USDC")).await.unwrap();
    let directory = directory(&server).await;
    assert_eq!(symbols(&directory).await, ["USDC"]);
    timeout(Duration::from_secs(5), directory.changed()).await.unwrap();

    server.kill().await;
    let asked = Instant::now();
    assert!(matches!(directory.load().await, Err(TokenError::Transient(_))));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    let waiting = timeout(Duration::from_mins(1), directory.changed());
    let returning = async {
        // Longer than the driver itself keeps trying to resume the stream.
        tokio::time::sleep(Duration::from_secs(4)).await;
        server.restart().await;
        server.tokens(DATABASE).await.insert_one(document(WETH, "WETH")).await.unwrap();
    };
    let (told, ()) = tokio::join!(waiting, returning);
    told.expect("a list that may have changed meanwhile is told");
    timeout(Duration::from_secs(5), directory.changed()).await.ok();
    assert_eq!(symbols(&directory).await, ["USDC", "WETH"]);
    directory.close().await;
}

/// F49, R25.
#[tokio::test]
async fn a_server_that_is_away_at_first_is_a_passing_fault_without_secrets() {
    let uri = format!("mongodb://CANARY1:CANARY2@127.0.0.1:{}/shop?authSource=CANARY3", free_port());
    let uri = SecretUrl::parse(&uri).unwrap();
    let directory = MongoDirectory::connect(&uri, DATABASE, CHAIN, Duration::from_millis(800)).await.unwrap();
    let asked = Instant::now();
    let error = directory.load().await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_millis(1_500), "{:?}", asked.elapsed());
    assert!(matches!(error, TokenError::Transient(_)), "{error}");
    let told = format!("{error} {error:?} {directory:?}");
    assert!(error.to_string().contains("mongodb://127.0.0.1"), "{error}");
    assert!(!error.to_string().contains("CANARY") && !told.contains("CANARY2"), "{told}");
}

#[tokio::test]
async fn an_import_twice_changes_nothing_the_second_time_and_mends_old_documents() {
    let server = Mongo::start().await;
    let tokens = server.tokens(DATABASE).await;
    tokens.insert_one(document(&USDC.to_lowercase(), "usdc")).await.unwrap();
    let directory = directory(&server).await;
    directory.ensure_index().await.unwrap();
    directory.ensure_index().await.unwrap();
    let list = [token(USDC, "USDC"), token(WETH, "WETH")];

    let counts = async |dry_run| {
        let done = directory.import(&list, dry_run).await.unwrap();
        (done.added, done.updated, done.unchanged)
    };
    assert_eq!(counts(true).await, (1, 1, 0));
    assert_eq!(tokens.count_documents(doc! {}).await.unwrap(), 1, "a dry run writes nothing");
    assert_eq!(counts(false).await, (1, 1, 0));
    assert_eq!(counts(false).await, (0, 0, 2));
    assert_eq!(tokens.count_documents(doc! { "address": USDC, "symbol": "USDC" }).await.unwrap(), 1);
    let weth = tokens.find_one(doc! { "address": WETH }).await.unwrap().unwrap();
    assert!(weth.get_datetime("createdAt").is_ok() && weth.get_datetime("updatedAt").is_ok(), "{weth}");
    assert_eq!(weth.get_i32("chainId").unwrap(), 8453);

    let doubled = tokens.insert_one(document(USDC, "USDC")).await.unwrap_err();
    assert!(doubled.to_string().contains("11000"), "the index holds: {doubled}");
    assert_eq!(directory.remove(&USDC.parse().unwrap()).await.unwrap(), 1);
    assert_eq!(symbols(&directory).await, ["WETH"]);
    directory.close().await;
}

#[tokio::test]
async fn documents_that_stand_against_the_index_are_a_fault_that_names_the_mend() {
    let server = Mongo::start().await;
    server.tokens(DATABASE).await.insert_many([document(USDC, "A"), document(USDC, "B")]).await.unwrap();
    let error = directory(&server).await.ensure_index().await.unwrap_err();
    assert!(matches!(&error, TokenError::Fatal(text) if text.contains("tokens remove ADDRESS")), "{error}");
}

/// F55.
#[tokio::test]
async fn a_file_with_a_hundred_thousand_tokens_loads_and_a_changed_file_is_seen() {
    let rows: Vec<Value> = (0..100_000_u32)
        .map(|n| json!({ "chainId": CHAIN, "address": format!("0x{n:040x}"), "symbol": "T", "name": "T", "decimals": 18 }))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.json");
    fs::write(&path, serde_json::to_vec(&rows).unwrap()).unwrap();
    let list = FixedList::new(path.clone(), CHAIN);
    assert_eq!(list.load().await.unwrap().tokens.len(), 100_000);
    fs::write(&path, "[]").unwrap();
    assert!(list.load().await.unwrap().tokens.is_empty());
}

/// What a command of `chaintap tokens` wrote, and how it ended.
async fn command(server: &Mongo, command: TokensCommand) -> (String, String, Result<(), Failure>) {
    let settings = TokenSettings::Mongo { uri: server.secret_uri(), database: DATABASE.into() };
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let end = cli::tokens::run(&command, &settings, CHAIN, &mut out, &mut notes).await;
    (String::from_utf8(out).unwrap(), String::from_utf8(notes).unwrap(), end)
}

fn add(address: &str, symbol: &str) -> TokensCommand {
    TokensCommand::Add { address: address.into(), symbol: symbol.into(), name: "A name".into(), decimals: 6 }
}

fn remove(token: &str) -> TokensCommand {
    TokensCommand::Remove { token: token.into() }
}

#[tokio::test]
async fn tokens_are_added_listed_and_removed_by_command() {
    let server = Mongo::start().await;
    let (_, notes, end) = command(&server, add(&USDC.to_lowercase(), "usdc")).await;
    end.unwrap();
    assert_eq!(notes, format!("USDC {USDC}: added\n"));
    assert_eq!(command(&server, add(USDC, "USDC")).await.1, format!("USDC {USDC}: is listed already\n"));
    assert_eq!(command(&server, add(USDC, "usdc.e")).await.1, format!("USDC.E {USDC}: updated\n"));
    let (_, _, end) = command(&server, add(&USDC.replace("eB48", "Eb48"), "USDC")).await;
    assert!(matches!(end, Err(Failure::Data(text)) if text.contains(USDC)));

    command(&server, add(WETH, "usdc.e")).await.2.unwrap();
    let (_, _, end) = command(&server, remove("usdc.e")).await;
    assert!(matches!(end, Err(Failure::Data(text)) if text.contains(WETH) && text.contains(USDC)));
    let (_, notes, end) = command(&server, remove(WETH)).await;
    end.unwrap();
    assert_eq!(notes, format!("{WETH}: removed\n"));

    let (table, notes, _) = command(&server, TokensCommand::List { json: false }).await;
    assert!(table.contains("USDC.E") && table.contains(USDC) && !table.contains(WETH), "{table}");
    assert_eq!(notes, "1 tokens of chain 8453\n");
    let (listed, _, _) = command(&server, TokensCommand::List { json: true }).await;
    let expected = json!([{ "chainId": 8453, "address": USDC, "symbol": "USDC.E", "name": "A name", "decimals": 6 }]);
    assert_eq!(serde_json::from_str::<Value>(&listed).unwrap(), expected);

    assert!(command(&server, remove("usdc.e")).await.1.contains("ALLOW_EMPTY_TOKENS"));
    assert!(matches!(command(&server, remove("usdc.e")).await.2, Err(Failure::Data(_))));
    assert!(matches!(command(&server, remove(USDC)).await.2, Err(Failure::Data(_))));
}

#[tokio::test]
async fn a_published_list_is_imported_row_by_row() {
    let server = Mongo::start().await;
    let row = |chain: Value, address: &str| json!({ "chainId": chain, "address": address, "symbol": "t", "name": "T", "decimals": 6 });
    let list = json!({ "name": "list", "tokens": [
        row(json!(8453), USDC),
        row(json!(8453), &WETH.to_lowercase()),
        row(json!(8453), USDC),
        row(json!(8453), &DAI.replace("1d0F", "1D0F")),
        row(json!(1), DAI),
        row(json!("solana"), "So11111111111111111111111111111111111111112"),
    ]});
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("list.json");
    fs::write(&file, serde_json::to_string_pretty(&list).unwrap()).unwrap();
    let import = |dry_run| TokensCommand::Import { file: file.clone(), dry_run };

    let (_, notes, end) = command(&server, import(true)).await;
    assert!(matches!(end, Err(Failure::No(text)) if text == "1 rows of chain 8453 were refused"));
    assert!(notes.ends_with("chain 8453: 2 added, 0 updated, 0 unchanged (dry run: nothing was written)\n"), "{notes}");
    assert!(notes.contains("is listed before") && notes.contains("wrong checksum") && notes.contains(DAI), "{notes}");
    let (_, notes, _) = command(&server, import(false)).await;
    assert!(notes.ends_with("chain 8453: 2 added, 0 updated, 0 unchanged\n"), "{notes}");
    let (_, notes, _) = command(&server, import(false)).await;
    assert!(notes.ends_with("chain 8453: 0 added, 0 updated, 2 unchanged\n"), "{notes}");
    assert_eq!(server.tokens(DATABASE).await.count_documents(doc! {}).await.unwrap(), 2);

    let missing = TokensCommand::Import { file: dir.path().join("missing.json"), dry_run: false };
    assert!(matches!(command(&server, missing).await.2, Err(Failure::Data(text)) if text.contains("missing.json")));
}

#[tokio::test]
async fn commands_without_a_server_end_with_unavailable_or_configuration() {
    let run = async |settings: TokenSettings| {
        let command = TokensCommand::List { json: false };
        cli::tokens::run(&command, &settings, CHAIN, &mut Vec::new(), &mut Vec::new()).await.unwrap_err()
    };
    assert!(matches!(run(TokenSettings::Off).await, Failure::Config(text) if text.contains("MONGODB_URI")));
    let uri = SecretUrl::parse(&format!("mongodb://127.0.0.1:{}/", free_port())).unwrap();
    assert!(matches!(run(TokenSettings::Mongo { uri, database: DATABASE.into() }).await, Failure::Unavailable(_)));
}

#[tokio::test]
async fn a_wrong_password_is_told_as_such_and_not_quoted() {
    let mut server = Mongo::start().await;
    let create = doc! { "createUser": "shop", "pwd": "right", "roles": [{ "role": "readWrite", "db": DATABASE }] };
    let client = server.tokens(DATABASE).await;
    client.client().database("admin").run_command(create).await.unwrap();
    server.kill().await;
    server.restart_with(&["--auth"]).await;
    let uri = server.uri().replace("mongodb://", "mongodb://shop:CANARY@");
    let uri = SecretUrl::parse(&uri.replace("/?", "/?authSource=admin&")).unwrap();
    let directory = MongoDirectory::connect(&uri, DATABASE, CHAIN, Duration::from_secs(3)).await.unwrap();
    let error = directory.load().await.unwrap_err();
    assert!(matches!(&error, TokenError::Fatal(text) if text.contains("password")), "{error:?}");
    assert!(!error.to_string().contains("CANARY"), "{error}");
    let right = SecretUrl::parse(&uri.expose().replace("CANARY", "right")).unwrap();
    let directory = MongoDirectory::connect(&right, DATABASE, CHAIN, Duration::from_secs(3)).await.unwrap();
    directory.load().await.expect("the right password is let in");
}
