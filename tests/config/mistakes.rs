//! What is wrong is told at once, with place and mend, and never as a panic.

use chaintap::config::{load_offline, variables};
use proptest::prelude::*;

use super::{Directory, everything_said, mistakes, sources};

/// A variable, a wrong value of it, and what is said.
const WRONG: &[(&str, &str, &str)] = &[
    ("CHAIN_ID", "base_mainnet", "environment: CHAIN_ID is not a chain id: 'base_mainnet'; set it to 8453"),
    (
        "WEB3_PROVIDER",
        "",
        "WEB3_PROVIDER is not set; set it to one or more endpoints, comma separated, e.g. wss://host/key,https://host/key",
    ),
    (
        "WEB3_PROVIDER",
        "wss://a/1,ftp://b/2",
        "environment: WEB3_PROVIDER number 2 has a scheme that is not accepted here; write an endpoint that begins with wss:// or ws:// or https:// or http://",
    ),
    (
        "WEB3_PROVIDER",
        "https://a/1,,https://b",
        "environment: WEB3_PROVIDER number 2 is empty; remove the comma too many",
    ),
    (
        "REDIS_URL",
        "redis://h:6379/0",
        "environment: REDIS_URL has database number 0, but the chain's is 1; write /1 or leave the number out",
    ),
    (
        "REDIS_URL",
        "rediss://h/1#insecure",
        "environment: REDIS_URL has a # part, which would turn certificate checks off; remove it; write # of a password as %23",
    ),
    (
        "MONGODB_URI",
        "mongodb://h:27017",
        "environment: MONGODB_URI names no database; set MONGODB_DATABASE, or end the address with /name",
    ),
    (
        "TRANSFER_HANDLER_SQS",
        "my-queue",
        "environment: TRANSFER_HANDLER_SQS is not a URL (scheme:// is missing); write the queue's URL, e.g. https://sqs.eu-west-1.amazonaws.com/123456789012/transfers",
    ),
    (
        "START_BLOCK",
        "9007199254740992",
        "environment: START_BLOCK is not a block: '9007199254740992'; write latest, or a number below 2^53",
    ),
    ("DELIVER", "0", "environment: DELIVER is a depth of 0; write instant"),
    (
        "DELIVER",
        "final",
        "environment: DELIVER is not a delivery mode: 'final'; use instant, safe, finalized or a depth in blocks",
    ),
    ("VERIFY", "receipt", "environment: VERIFY is not a way to verify: 'receipt'; did you mean 'receipts'?"),
    ("DURABILITY", "requird", "environment: DURABILITY is not a durability: 'requird'; did you mean 'required'?"),
    ("PORT", "80000", "environment: PORT is not a port: '80000'; write a number up to 65535"),
    (
        "HTTP_BIND",
        "localhost",
        "environment: HTTP_BIND is not an address: 'localhost'; write one like 0.0.0.0, 127.0.0.1 or ::",
    ),
    ("LOG_LEVEL", "warning", "environment: LOG_LEVEL is not a level: 'warning'; did you mean 'warn'?"),
    ("LOG_FORMAT", "xml", "environment: LOG_FORMAT is not a format: 'xml'; use one of: json, pretty"),
    (
        "SENTRY_DSN",
        "https://o1.example.com/1",
        "environment: SENTRY_DSN is not a DSN; copy it from the project's settings: https://key@host/project",
    ),
    ("RPC_TIMEOUT", "20", "environment: RPC_TIMEOUT is not a time: '20'; write one like 20s or 5m"),
    ("RPC_TIMEOUT", "1h", "environment: RPC_TIMEOUT is out of range: '1h'; write a time from 1s to 2m"),
    ("RPC_MAX_BYTES", "1MB", "environment: RPC_MAX_BYTES is not a size: '1MB'; write one from 1MiB to 4GiB"),
    (
        "ALLOW_EMPTY_TOKENS",
        "maybe",
        "environment: ALLOW_EMPTY_TOKENS is neither true nor false: 'maybe'; write true or false",
    ),
    ("TOKENS_FILE", "/none.json", "environment: TOKENS_FILE names no file: /none.json; give the path of a JSON file"),
    (
        "AWS_ACCESS_KEY_ID",
        "id",
        "environment: AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY; set both or neither",
    ),
];

#[test]
fn each_wrong_variable_is_told_with_its_mend() {
    for (name, value, message) in WRONG {
        assert_eq!(mistakes(&sources(&[(name, value)])), [*message], "{name}={value}");
    }
}

#[test]
fn a_chain_that_is_not_known_is_told_with_those_that_are() {
    let chains = "1 ethereum_mainnet, 8453 base_mainnet, 137 polygon_mainnet, 25 cronos_mainnet, 10 optimism_mainnet, \
                  42161 arbitrum_one, 56 bnb_mainnet, 43114 avalanche_mainnet, 100 gnosis_mainnet, 59144 linea_mainnet, \
                  534352 scroll_mainnet, 324 zksync_mainnet, 5000 mantle_mainnet, 81457 blast_mainnet, 31337 development";
    let unset = mistakes(&sources(&[("CHAIN_ID", "")]));
    assert_eq!(unset, [format!("CHAIN_ID is not set; set it to one of: {chains}")]);
    let unknown = mistakes(&sources(&[("CHAIN_ID", "2")]));
    let mend = format!("add a [[chain]] with id = 2 to config/chains.toml, or use one of: {chains}");
    assert_eq!(unknown, [format!("environment: CHAIN_ID names chain 2, which is not in chains.toml; {mend}")]);
}

#[test]
fn timeouts_must_fit_into_the_life_of_a_claim() {
    let given = sources(&[("SINK_TIMEOUT", "2m"), ("RPC_TIMEOUT", "30s")]);
    let told =
        "environment: SINK_TIMEOUT and RPC_TIMEOUT together reach half the life of a claim (300 s); lower one of them";
    assert_eq!(mistakes(&given), [told]);
}

#[test]
fn every_mistake_is_told_at_once() {
    let given = sources(&[("CHAIN_ID", "x"), ("WEB3_PROVIDER", "x"), ("PORT", "x"), ("DELIVER", "x")]);
    assert_eq!(mistakes(&given).len(), 4);
    let both = sources(&[("MONGODB_URI", "mongodb://h/db"), ("MONGO_URI", "mongodb://h/db")]);
    assert_eq!(mistakes(&both), ["environment: MONGO_URI and MONGODB_URI are both set; remove one of them"]);
}

#[test]
fn mistakes_in_files_are_drawn_with_line_and_mend() {
    let text = "[[contract]]\nname = \"T\"\nabi = \"abi/erc20.json\"\n\n[[contract.event]]\nname = \"Transfer\"\nhandler = \"handleTransfer\"\n";
    let directory = Directory::with("contracts.toml", text);
    let drawn = load_offline(&directory.sources(&[])).unwrap_err().to_string();
    let drawn = drawn.replace(&format!("{}/", directory.0.path().display()), "");
    let expected = "error: unknown handler 'handleTransfer'
 --> config/contracts.toml:7:11
  |
7 | handler = \"handleTransfer\"
  |           ^^^^^^^^^^^^^^^^
  |
  = help: did you mean 'handleTransferEvent'?

1 mistake in the configuration";
    assert_eq!(drawn, expected);
}

#[test]
fn unknown_keys_and_files_are_told_with_the_nearest_known_one() {
    let directory = Directory::with("default.toml", "start_blok = 5\nport = [1]\nreddis_url = 'x'\n");
    assert_eq!(
        directory.mistakes(&[]),
        [
            "config/default.toml:1:1: unknown key 'start_blok'; did you mean 'start_block'?",
            "config/default.toml:2:8: 'port' must be a string, a whole number, true or false",
            "config/default.toml:3:1: unknown key 'reddis_url'; did you mean 'redis_url'?",
        ]
    );
    let chains = Directory::with(
        "chains.toml",
        "[[chain]]\nid = 8453\nname = 'b'\nredis_db = 300\nblok_time = '2s'\n[[chain]]\nid = 1\nname = 'x y'\nredis_db = 1\nblock_time = '0s'\nfinality_depth = 0\nbatch_blocks = 101\nlog_index = 'tx'\n",
    );
    let found = chains.mistakes(&[("CHAIN_ID", "8453")]);
    for expected in [
        "config/chains.toml:5:1: unknown key 'blok_time'; did you mean 'block_time'?",
        "config/chains.toml:4:12: 'redis_db' must be a whole number from 0 to 255",
        "config/chains.toml:1:1: 'block_time' is missing here",
        "config/chains.toml:1:1: 'finality_depth' is missing here",
        "config/chains.toml:10:14: 'block_time' must be a time like \"300ms\" or \"12s\", at most 1h",
        "config/chains.toml:11:18: 'finality_depth' must be a whole number from 1 to 100000",
        "config/chains.toml:12:16: 'batch_blocks' must be a whole number from 1 to 100",
        "config/chains.toml:13:13: 'log_index' is nothing that numbers logs: 'tx'; write \"block\" or \"transaction\"",
    ] {
        assert!(found.iter().any(|line| line == expected), "{expected}\nis not among\n{}", found.join("\n"));
    }
    let stranger = Directory::with("contract.toml", "");
    let warnings = load_offline(&stranger.sources(&[("MONGODB_URL", "x")])).unwrap().warnings;
    assert!(
        warnings.iter().any(|warning| warning.ends_with("contract.toml is not read; did you mean 'contracts.toml'?"))
    );
    assert!(
        warnings.iter().any(|warning| warning == "environment: MONGODB_URL is not read; did you mean MONGODB_URI?")
    );
}

#[test]
fn each_wrong_provider_is_told_with_line_and_mend_and_without_its_address() {
    let text = "[[provider]]\nname = 'a b'\nhttp = 'https://a.example/KEY'\n[[provider]]\nname = 'a'\n\
                [[provider]]\nname = 'a'\nws = 'https://b.example/KEY'\npriority = 256\n[[provider]]\n\
                http = 'https://c.example/${C_KEY}'\nrequests_per_second = 0\n[[provider]]\nname = 'd'\nhttp = '${d'\n\
                url = 'https://KEY'\n[[provider]]\nname = 'e'\nhttp = 'https://a.example/KEY'\n";
    let found = Directory::with("providers.toml", text).mistakes(&[("WEB3_PROVIDER", "")]);
    let expected = [
        "config/providers.toml:2:8: the name cannot stand in a metric label; use letters, digits, '_', '-', '.', at most 64",
        "config/providers.toml:4:1: the provider has neither 'ws' nor 'http'; write ws = \"${NAME}\", http, or both",
        "config/providers.toml:7:8: the name 'a' is taken; give each provider its own name",
        "config/providers.toml:8:6: the address has a scheme that is not accepted here; write an address that begins with wss:// or ws://",
        "config/providers.toml:9:12: 'priority' must be a whole number from 0 to 255",
        "config/providers.toml:10:1: 'name' is missing here",
        "config/providers.toml:11:8: C_KEY is not set; set C_KEY, or write ${C_KEY:-} to leave the provider out where it is not set",
        "config/providers.toml:12:23: 'requests_per_second' must be a whole number from 1 to 100000",
        "config/providers.toml:15:8: the address has a placeholder that cannot be used; write ${NAME} or ${NAME:-fallback}, of a variable of your own",
        "config/providers.toml:16:1: unknown key 'url'; use one of: name, ws, http, priority, requests_per_second, compute_units_per_second",
        "config/providers.toml:19:8: the address is given twice; remove one of the two",
    ];
    assert_eq!(found, expected);
}

/// Counted as two, a node would be its own witness.
#[test]
fn two_entries_of_one_node_are_a_mistake_however_they_are_spelled() {
    let entries =
        |one: &str, other: &str| format!("[[provider]]\nname = 'a'\n{one}\n[[provider]]\nname = 'b'\n{other}\n");
    let twice = "config/providers.toml:6:8: the address is given twice; remove one of the two";
    let beside = "the address is of the node of another [[provider]], over the other scheme; \
                  write ws and http of one node into one [[provider]]: as two it would be its own witness";
    let beside = [format!("config/providers.toml:6:8: {beside}"), format!("config/providers.toml:6:6: {beside}")];
    let http = "http = 'https://a.example/KEY'";
    for (one, other, expected) in [
        (http, "http = 'https://A.example:443/KEY/'", Some(twice)),
        ("ws = 'wss://a.example/KEY'", http, Some(beside[0].as_str())),
        (http, "ws = 'wss://a.example/KEY'", Some(beside[1].as_str())),
        (http, "ws = 'wss://a.example/ws/KEY'", Some(beside[1].as_str())),
        (http, "http = 'https://a.example/KEY2'", None),
        (http, "http = 'https://a.example:8545/KEY'", None),
        (http, "http = 'https://a.example/KEY?network=2'", None),
        (http, "http = 'https://b.example/KEY'\nws = 'wss://b.example/KEY'", None),
    ] {
        let found = Directory::with("providers.toml", &entries(one, other)).mistakes(&[("WEB3_PROVIDER", "")]);
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{other}");
    }
    let in_one = |given: &str| mistakes(&sources(&[("WEB3_PROVIDER", given)]));
    let twice = ["environment: WEB3_PROVIDER number 2 is given twice; remove one of the two"];
    assert_eq!(in_one("https://a.example/KEY,https://A.example:443/KEY/"), twice);
    assert_eq!(in_one("wss://a.example/ws/KEY,wss://a.example/KEY"), twice);
    assert_eq!(in_one("wss://a.example/ws/KEY,https://a.example/KEY/"), Vec::<String>::new());
}

#[test]
fn the_environment_wins_over_the_file_of_providers_which_is_told_once() {
    let text = "[[provider]]\nname = 'a'\nhttp = 'https://a.example/${A_KEY}'\n";
    let directory = Directory::with("providers.toml", text);
    let settings = load_offline(&directory.sources(&[])).unwrap();
    assert_eq!(settings.providers[0].name, "rpc.example.com");
    let path = directory.path("config/providers.toml");
    let told =
        format!("{}: not used, because WEB3_PROVIDER is set (environment); remove one of the two", path.display());
    assert_eq!(settings.warnings, [told]);
    let mistakes = directory.mistakes(&[("WEB3_PROVIDER", "")]);
    assert!(mistakes[0].contains("A_KEY is not set"), "{mistakes:?}");
}

#[test]
fn an_endpoint_is_given_somewhere() {
    let directory = Directory::with("providers.toml", "[[provider]]\nname = 'a'\nhttp = '${A_URL:-}'\n");
    assert_eq!(
        directory.mistakes(&[("WEB3_PROVIDER", "")]),
        [
            "config/providers.toml:1:1: no [[provider]] has an address: nothing could be asked; set a variable that one of them takes"
        ]
    );
    let empty = Directory::with("providers.toml", "# none\n");
    assert_eq!(empty.mistakes(&[]), Vec::<String>::new());
    assert!(empty.mistakes(&[("WEB3_PROVIDER", "")])[0].starts_with("WEB3_PROVIDER is not set; set it"));
}

proptest! {
    #[test]
    fn no_file_makes_the_loader_panic(text in toml_like(), name in prop::sample::select(vec!["default.toml", "chains.toml", "contracts.toml", "providers.toml"])) {
        let directory = Directory::with(name, &text);
        drop(everything_said(&directory.sources(&[])));
    }

    #[test]
    fn no_value_makes_the_loader_panic(value in "\\PC{0,40}", index in 0..64_usize) {
        let names: Vec<&str> = variables::all().map(|variable| variable.name).collect();
        drop(everything_said(&sources(&[(names[index % names.len()], &value)])));
    }
}

/// Text that is often almost a configuration file.
fn toml_like() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("[[contract]]".to_owned()),
        Just("[[contract.event]]".to_owned()),
        Just("[[handler]]".to_owned()),
        Just("[[chain]]".to_owned()),
        Just("[[provider]]".to_owned()),
        ("(name|abi|address|chains|event|handler|queue|topic0|id|redis_db|block_time|start_block|ws|http|priority)", "('\\PC{0,12}'|-?[0-9]{1,20}|\\[1, 'a'\\]|\\{ a = 1 \\}|true|'abi/erc20.json'|'Transfer'|'\\$\\{[A-Z:-]{0,5}\\}')")
            .prop_map(|(key, value)| format!("{key} = {value}")),
        "\\PC{0,30}",
    ];
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}
