//! Right settings, and what they amount to.

use std::{path::Path, time::Duration};

use chaintap::{
    cli::check::{CheckArgs, Format, check},
    config::{
        Limits, Provider, Purpose, Shape, SinkTarget, Sources, StartBlock, StoreSettings, TokenSettings, Verify,
        load_offline,
    },
    domain::DeliveryMode,
};

use super::{CANARY, Directory, TRANSFER, mistakes, repository, settings, sources};

#[test]
fn two_variables_are_enough_and_everything_else_has_its_default() {
    let settings = settings(&[]);
    assert_eq!(settings.service, "base_mainnet");
    assert_eq!(settings.start, StartBlock::Latest);
    assert_eq!(settings.deliver, DeliveryMode::Instant);
    assert_eq!(settings.http.to_string(), "0.0.0.0:3001");
    assert_eq!(settings.log.filter, "info");
    assert_eq!(settings.limits, Limits::default());
    assert!(matches!(settings.store, StoreSettings::Embedded { ref dir } if dir == Path::new("./data")));
    assert!(matches!(settings.tokens, TokenSettings::Off));
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    let [transfers] = settings.registry.listeners() else { panic!("one entry is active") };
    assert!(transfers.token_filter && transfers.target == SinkTarget::Stdout && transfers.address.is_none());
    assert!(matches!(transfers.shape, Shape::Erc20Transfer));
    assert_eq!(transfers.topic0.to_string(), TRANSFER);
}

#[test]
fn the_binary_carries_the_files_of_the_repository() {
    let elsewhere = tempfile::tempdir().unwrap();
    let built_in = load_offline(&Sources { config_dir: Some(elsewhere.path().to_owned()), ..sources(&[]) }).unwrap();
    let from_files = settings(&[]);
    assert_eq!(built_in.chain, from_files.chain);
    assert_eq!(built_in.limits, from_files.limits);
    assert_eq!(built_in.registry.topics(), from_files.registry.topics());
}

#[test]
fn the_profiles_are_those_of_the_contract() {
    let profile = |id: &str| settings(&[("CHAIN_ID", id)]).chain;
    let databases = [
        ("1", 0),
        ("8453", 1),
        ("137", 2),
        ("25", 3),
        ("10", 4),
        ("42161", 5),
        ("56", 6),
        ("43114", 7),
        ("100", 8),
        ("59144", 9),
        ("534352", 10),
        ("324", 11),
        ("5000", 12),
        ("81457", 13),
    ];
    for (id, database) in databases {
        assert_eq!(profile(id).redis_db, database, "{id}");
        assert_eq!(profile(id).batch_blocks, 100, "{id}");
    }
    for (id, parallel, spacing, block_time) in
        [("1", 3, 300, 12_000), ("137", 15, 100, 2_100), ("8453", 10, 150, 2_000), ("25", 25, 50, 600)]
    {
        let chain = profile(id);
        assert_eq!(chain.parallel, parallel);
        assert_eq!(chain.spacing, Duration::from_millis(spacing));
        assert_eq!(chain.block_time, Duration::from_millis(block_time));
    }
}

/// Blooms do not hold on Polygon, Cronos and zkSync.
#[test]
fn what_logs_are_held_against_is_the_chain_s_unless_the_deployment_says_otherwise() {
    let verify = |variables: &[(&str, &str)]| settings(variables).limits.verify;
    for (chain, expected) in [("1", Verify::Bloom), ("137", Verify::None), ("25", Verify::None), ("324", Verify::None)]
    {
        assert_eq!(verify(&[("CHAIN_ID", chain)]), expected, "{chain}");
    }
    assert_eq!(verify(&[("CHAIN_ID", "137"), ("VERIFY", "bloom")]), Verify::Bloom);
    assert_eq!(settings(&[("VERIFY", "receipts")]).limits.verify_sample, 100);
    assert_eq!(settings(&[]).limits.audit_sample, 20);
    assert_eq!(settings(&[("AUDIT", "false")]).limits.audit_sample, 0);
}

/// Counted as two, a node would be its own witness.
#[test]
fn a_socket_and_the_http_address_beside_it_are_one_provider() {
    let providers = |given: &str| {
        let providers = settings(&[("WEB3_PROVIDER", given)]).providers;
        let addresses = |provider: &Provider| provider.urls().map(|url| url.expose().to_owned()).collect::<Vec<_>>();
        providers.iter().map(addresses).collect::<Vec<_>>()
    };
    let pair = || vec!["wss://a/k".to_owned(), "https://a/k".to_owned()];
    let alone = |url: &str| vec![url.to_owned()];
    assert_eq!(providers("wss://a/k,https://a/k"), [pair()]);
    assert_eq!(providers("https://a/k,https://b/k,wss://a/k"), [pair(), alone("https://b/k")]);
    assert_eq!(
        providers("wss://a/k,https://a/other,ws://a/k"),
        [alone("wss://a/k"), alone("https://a/other"), alone("ws://a/k")]
    );
    let infura = ["wss://mainnet.infura.io/ws/v3/k", "https://mainnet.infura.io/v3/k"];
    assert_eq!(providers(&infura.join(",")), [infura.map(str::to_owned)]);
}

#[test]
fn plaintext_to_a_host_that_is_not_near_is_warned_of() {
    let near = [("WEB3_PROVIDER", "ws://127.0.0.1:8545"), ("REDIS_URL", "redis://redis:6379")];
    assert!(settings(&near).warnings.is_empty());
    let far = [
        ("WEB3_PROVIDER", "https://a.example,http://b.example/KEY"),
        ("REDIS_URL", "redis://:KEY@r.example"),
        ("MONGODB_URI", "mongodb://u:KEY@m.example/db"),
    ];
    let warnings = settings(&far).warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings.iter().all(|warning| warning.contains("is not encrypted") && !warning.contains("KEY")));
}

#[test]
fn the_redis_address_gets_the_chain_s_database_and_keeps_the_rest() {
    let url = |given: &str| match settings(&[("REDIS_URL", given)]).store {
        StoreSettings::Redis { url, .. } => url.expose().to_owned(),
        StoreSettings::Embedded { .. } => panic!(),
    };
    assert_eq!(url("redis://h:6380"), "redis://h:6380/1");
    assert_eq!(url("redis://h:6380/1"), "redis://h:6380/1");
    assert_eq!(url("rediss://u:p%23w@h/?protocol=resp3"), "rediss://u:p%23w@h/1?protocol=resp3");
}

#[test]
fn the_token_list_comes_from_one_place() {
    let mongo = |given: &[(&str, &str)]| match settings(given).tokens {
        TokenSettings::Mongo { database, .. } => database,
        other => panic!("{other:?}"),
    };
    assert_eq!(mongo(&[("MONGO_URI", "mongodb://a:1,b:2/tokens?replicaSet=r")]), "tokens");
    assert_eq!(mongo(&[("MONGODB_URI", "mongodb+srv://h/one"), ("MONGODB_DATABASE", "two")]), "two");
    let file = repository("Cargo.toml");
    let file = ("TOKENS_FILE", file.to_str().unwrap());
    assert!(matches!(settings(&[file]).tokens, TokenSettings::File(_)));
    let both = mistakes(&sources(&[file, ("MONGODB_URI", "mongodb://h/db")]));
    assert_eq!(both, ["environment: TOKENS_FILE and MONGODB_URI are both set; choose one source of the token list"]);
}

#[test]
fn a_command_that_only_operates_needs_no_endpoint() {
    let mut given = sources(&[("WEB3_PROVIDER", "")]);
    assert_eq!(mistakes(&given).len(), 1);
    given.purpose = Purpose::Operate;
    assert!(load_offline(&given).unwrap().providers.is_empty());
}

#[tokio::test]
async fn check_says_that_a_configuration_is_valid_and_where_each_value_is_from() {
    let given = sources(&[("REDIS_URL", "redis://:secret@127.0.0.1")]);
    let mut out = Vec::new();
    check(&CheckArgs { connect: false, format: Format::Text }, &given, &mut out).await.unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(out.ends_with("configuration is valid: chain 8453 (base_mainnet)\n"), "{out}");
    assert!(out.contains("redis://127.0.0.1") && out.contains("environment") && !out.contains("secret@"), "{out}");

    let mut out = Vec::new();
    let wrong = sources(&[("PORT", "x")]);
    let failure = check(&CheckArgs { connect: false, format: Format::Json }, &wrong, &mut out).await.unwrap_err();
    assert_eq!(format!("{:?}", failure.code()), format!("{:?}", std::process::ExitCode::from(78)));
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(json["valid"], false);
    assert_eq!(json["problems"][0]["text"], "PORT is not a port: 'x'");
}

#[test]
fn providers_come_in_the_order_of_their_priority_with_their_keys_from_the_environment() {
    let text = "[[provider]]\nname = 'last'\nws = 'wss://c.example'\npriority = 9\n\
                [[provider]]\nname = 'out'\nhttp = '${OUT_URL:-}'\n\
                [[provider]]\nname = 'paid'\nws = 'wss://a.example/${PAID_KEY}'\nhttp = 'https://a.example/${PAID_KEY}'\n\
                compute_units_per_second = 500\n\
                [[provider]]\nname = 'own'\nhttp = 'http://node:8545'\nrequests_per_second = 50\n";
    let directory = Directory::with("providers.toml", text);
    let settings = load_offline(&directory.sources(&[("WEB3_PROVIDER", ""), ("PAID_KEY", CANARY)])).unwrap();
    let names: Vec<&str> = settings.providers.iter().map(|provider| provider.name.as_str()).collect();
    assert_eq!(names, ["paid", "own", "last"]);
    let paid = &settings.providers[0];
    assert_eq!(paid.http.as_ref().unwrap().expose(), format!("https://a.example/{CANARY}"));
    assert_eq!((paid.requests_per_second, paid.compute_units_per_second), (None, Some(500)));
    assert_eq!((settings.providers[1].requests_per_second, settings.providers[1].socket.is_none()), (Some(50), true));
    assert!(!format!("{settings:?}").contains(CANARY));
}
