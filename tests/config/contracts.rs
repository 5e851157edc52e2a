//! `contracts.toml` and the ABIs.

use std::fs;

use chaintap::config::{Purpose, Settings, Shape, SinkTarget, Sources, load_offline};

use super::{Directory, TRANSFER, repository, settings};

/// Settings with this `contracts.toml`.
fn contracts(text: &str, environment: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
    let directory = Directory::with("contracts.toml", text);
    load_offline(&directory.sources(environment)).map_err(|_| directory.mistakes(environment))
}

#[test]
fn each_wrong_entry_of_contracts_toml_is_told_with_its_mend() {
    let entry = |contract: &str, event: &str| {
        format!(
            "[[contract]]\nname = 'T'\nabi = 'abi/erc20.json'\n{contract}\n[[contract.event]]\nname = 'Transfer'\nhandler = 'handleTransferEvent'\n{event}"
        )
    };
    let cases = [
        (
            entry("address = '0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eB4'", ""),
            "config/contracts.toml:4:11: '0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eB4' is not an address; write 0x and 40 hexadecimal digits".to_owned(),
        ),
        (
            entry("address = '0xa0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48'", ""),
            "config/contracts.toml:4:11: the checksum of 0xa0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48 is wrong; if no digit is wrong, write 0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48".to_owned(),
        ),
        (
            entry("address = '${MY_TOKEN}'", ""),
            "config/contracts.toml:4:11: MY_TOKEN is not set; set MY_TOKEN, or write ${MY_TOKEN:-} to allow it unset".to_owned(),
        ),
        (
            entry("address = '${REDIS_URL}'", ""),
            "config/contracts.toml:4:11: REDIS_URL is a secret and cannot be used here; what stands in contracts.toml is printed at start; use another variable".to_owned(),
        ),
        (
            entry("adress = '0x'", ""),
            "config/contracts.toml:4:1: unknown key 'adress'; did you mean 'address'?".to_owned(),
        ),
        (
            entry("chains = [8453, 4]", ""),
            "config/contracts.toml:4:17: chain 4 is not in chains.toml; add it there, or take it out here".to_owned(),
        ),
        (
            entry("start_block = -1", ""),
            "config/contracts.toml:4:15: 'start_block' must be a whole number from 0 to 9007199254740991".to_owned(),
        ),
        (
            entry("enabled = 'yes'", ""),
            "config/contracts.toml:4:11: 'enabled' must be true or false".to_owned(),
        ),
        (
            entry("", "topic0 = '0x8c5be1e5ebec7d5bd14f71427d1e84f3dd0314c0f7b2291e5b200ac8c7c3b925'"),
            format!("config/contracts.toml:8:10: topic0 is 0x8c5be1e5ebec7d5bd14f71427d1e84f3dd0314c0f7b2291e5b200ac8c7c3b925, but 'Transfer(address,address,uint256)' hashes to {TRANSFER}; write {TRANSFER}, or leave it out"),
        ),
        (
            entry("", "[[contract.event]]\nname = 'Transfer'\nhandler = 'handleTransferEvent'"),
            "config/contracts.toml:9:8: duplicate entry: 'Transfer' goes to handleTransferEvent twice; remove one of the two".to_owned(),
        ),
        (
            entry("", "[[contract.event]]\nname = 'Transfers'\nhandler = 'handleTransferEvent'"),
            "config/contracts.toml:9:8: event 'Transfers' is not in the ABI; did you mean 'Transfer'? The ABI has: Approval, Transfer".to_owned(),
        ),
        (
            entry("", "[[handler]]\nname = 'handleTransferEvent'\nqueue = ''"),
            "config/contracts.toml:9:8: handler 'handleTransferEvent' is built in; choose another name; its queue is TRANSFER_HANDLER_SQS".to_owned(),
        ),
        (
            "[[contract]]\nname = 'T'\nabi = 'abi/erc20.json'\n".to_owned(),
            "config/contracts.toml:1:1: the entry listens to no event; add a [[contract.event]] below it".to_owned(),
        ),
        (
            "[[contract]]\nname = 'T'\nabi = 'abi/none.json'\n[[contract.event]]\nname = 'A'\nhandler = 'handleTransferEvent'".to_owned(),
            "config/contracts.toml:3:7: there is no file abi/none.json; paths start from the directory that holds config/".to_owned(),
        ),
        (
            "[[contract]\n".to_owned(),
            "config/contracts.toml:1:12: not valid TOML: unclosed array table, expected `]`".to_owned(),
        ),
    ];
    for (text, message) in cases {
        assert_eq!(contracts(&text, &[]).map(|_| ()), Err(vec![message]), "{text}");
    }
}

#[test]
fn an_abi_is_read_in_both_forms_and_its_mistakes_are_told() {
    let text = "[[contract]]\nname = 'T'\nabi = 'abi/mine.json'\n[[contract.event]]\nname = 'E'\nhandler = 'handleTransferEvent'";
    let directory = Directory::with("contracts.toml", text);
    fs::create_dir(directory.path("abi")).unwrap();
    let with_abi = |abi: &str| {
        fs::write(directory.path("abi/mine.json"), abi).unwrap();
        directory.mistakes(&[])
    };
    let event = |inputs: &str, anonymous: bool| {
        format!(r#"{{"type":"event","name":"E","inputs":[{inputs}],"anonymous":{anonymous}}}"#)
    };
    let (address, number) =
        (r#"{"name":"a","type":"address","indexed":true}"#, r#"{"name":"n","type":"uint256","indexed":false}"#);
    assert_eq!(with_abi(&format!("[{}]", event(address, false))), Vec::<String>::new());
    let artifact = format!(r#"{{"contractName":"X","abi":[{}],"bytecode":"0x__$lib$__"}}"#, event(number, false));
    assert_eq!(with_abi(&artifact), Vec::<String>::new());
    let by_hand = format!("[{}]", event(number, false).replace(r#","anonymous":false"#, ""));
    assert_eq!(with_abi(&by_hand), Vec::<String>::new(), "people leave `anonymous` out");
    let cases = [
        (
            format!("[{},{}]", event(address, false), event(number, false)),
            "config/contracts.toml:5:8: the ABI has several events 'E'; write one of: 'E(address)', 'E(uint256)'",
        ),
        (
            format!("[{}]", event(address, true)),
            "config/contracts.toml:5:8: event 'E' is anonymous: its logs cannot be told by a topic; use another event",
        ),
        (
            format!("[{}]", event(&[address; 4].join(","), false)),
            "config/contracts.toml:5:8: the ABI's 'E' cannot be decoded: invalid log topic list length: expected 4 topics, got 5; mend the ABI file",
        ),
        (
            format!("[{},{}]", event(number, false), event(&number.replace("false", "true"), false)),
            "config/contracts.toml:5:8: the ABI has 'E' several times with different indexed arguments; keep one of them in the ABI file",
        ),
        (
            format!("[{}]", event(&number.replace("uint256", "uint"), false)),
            "config/contracts.toml:5:8: the ABI's 'E' has the type 'uint'; write 'uint256' in the ABI file",
        ),
        ("[]".to_owned(), "config/contracts.toml:5:8: event 'E' is not in the ABI; the ABI has no events at all"),
        (
            "[\n{".to_owned(),
            "abi/mine.json:2:1: not an ABI: EOF while parsing an object; an ABI is a JSON array of items, or an object with that array under \"abi\"",
        ),
        (
            "{}".to_owned(),
            "abi/mine.json:1:2: not an ABI: missing field `abi`; an ABI is a JSON array of items, or an object with that array under \"abi\"",
        ),
    ];
    for (abi, message) in cases {
        assert_eq!(with_abi(&abi), [message], "{abi}");
    }
}

#[test]
fn an_overloaded_event_is_chosen_by_its_signature() {
    let text = "[[contract]]\nname = 'T'\nabi = 'abi/mine.json'\n[[contract.event]]\nname = 'E(address, uint256)'\nhandler = 'nft'\n[[handler]]\nname = 'nft'\nqueue = 'https://sqs.eu-west-1.amazonaws.com/1/${NAME:-nfts}.fifo'\n";
    let directory = Directory::with("contracts.toml", text);
    fs::create_dir(directory.path("abi")).unwrap();
    let event = |inputs: &str| format!(r#"{{"type":"event","name":"E","inputs":[{inputs}],"anonymous":false}}"#);
    let (one, two) =
        (r#"{"name":"a","type":"address","indexed":true}"#, r#"{"name":"n","type":"uint256","indexed":false}"#);
    fs::write(directory.path("abi/mine.json"), format!("[{},{}]", event(one), event(&format!("{one},{two}")))).unwrap();
    let settings = load_offline(&directory.sources(&[])).unwrap();
    let [listener] = settings.registry.listeners() else { panic!() };
    assert_eq!(listener.event.signature(), "E(address,uint256)");
    assert!(matches!(listener.shape, Shape::Other(_)));
    assert_eq!(listener.target, SinkTarget::Sqs { url: "https://sqs.eu-west-1.amazonaws.com/1/nfts.fifo".into() });
    assert_eq!(settings.aws.region.as_deref(), Some("eu-west-1"), "the queue's region, since none is given");
}

const TWO_CHAINS: &str = "
[[contract]]
name = 'Base'
abi = 'abi/erc20.json'
chains = [8453]
address = '${BASE_TOKEN}'
start_block = 10
[[contract.event]]
name = 'Transfer'
handler = 'handleTransferEvent'

[[contract]]
name = 'Ethereum'
abi = 'abi/erc20.json'
chains = [1]
address = '${ETHEREUM_TOKEN}'
[[contract.event]]
name = 'Transfer'
handler = 'handleTransferEvent'
";

#[test]
fn an_entry_of_another_chain_needs_no_variables_here() {
    let token = "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48";
    let settings = contracts(TWO_CHAINS, &[("BASE_TOKEN", token)]).unwrap();
    let active: Vec<&str> = settings.registry.listeners().iter().map(|listener| &*listener.contract).collect();
    assert_eq!(active, ["Base"]);
    let listener = &settings.registry.listeners()[0];
    assert_eq!(listener.address.unwrap().to_checksum(None), token);
    assert_eq!(settings.registry.candidates(listener.address.unwrap(), listener.topic0, 9).count(), 0);
    assert_eq!(settings.registry.candidates(listener.address.unwrap(), listener.topic0, 10).count(), 1);
    assert!(contracts(TWO_CHAINS, &[("CHAIN_ID", "1"), ("BASE_TOKEN", token)]).is_err());
}

#[test]
fn entries_that_can_match_one_log_are_warned_of() {
    let shipped = fs::read_to_string(repository("config/contracts.toml")).unwrap();
    let nfts_to_stdout = shipped.replace("enabled = false\n", "enabled = true\n");
    let settings = contracts(&nfts_to_stdout, &[]).unwrap();
    assert_eq!(settings.registry.listeners().len(), 2);
    assert!(settings.warnings.is_empty(), "four topics and three can never be one log: {:?}", settings.warnings);

    let twice = shipped.replace("erc721", "erc20").replace("enabled = false\n", "enabled = true\n");
    let warnings = contracts(&twice, &[]).unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].ends_with(
        "'Transfers' and 'NonFungibleTransfers' can match one log for standard output; the first in the file wins"
    ));
    let queue = ("NFT_TRANSFER_SQS", "https://sqs.eu-west-1.amazonaws.com/1/nfts");
    assert!(contracts(&twice, &[queue]).unwrap().warnings.is_empty(), "two sinks");
}

#[test]
fn the_block_that_is_printed_at_start_is_the_contract_s() {
    let queue = ("TRANSFER_HANDLER_SQS", "https://sqs.eu-west-1.amazonaws.com/123456789012/your-transfer-queue");
    let settings = settings(&[queue]);
    let expected = "=== ACTIVE CONTRACT CONFIGURATION ===
 Transfers: any address, topic 0xddf2…b3ef → handleTransferEvent → SQS your-transfer-queue
 Token filtering: enabled (150 tokens tracked)
=====================================";
    assert_eq!(settings.registry.summary(Some(150)), expected);
    assert!(settings.registry.summary(None).contains(" Token filtering: off"));
}

#[test]
fn transfer_topic_is_held_against_the_abi_that_takes_it_up_or_against_erc20() {
    let approval = "0x8c5be1e5ebec7d5bd14f71427d1e84f3dd0314c0f7b2291e5b200ac8c7c3b925";
    let wrong = [("TRANSFER_TOPIC", approval)];
    let shipped = fs::read_to_string(repository("config/contracts.toml")).unwrap();
    assert!(contracts(&shipped, &[("TRANSFER_TOPIC", TRANSFER)]).is_ok());
    let found = contracts(&shipped, &wrong).unwrap_err();
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with(&format!("config/contracts.toml:14:10: topic0 is {approval}, but")), "{found:?}");

    let not_taken_up = shipped.replace("topic0 =", "# topic0 =");
    let found = contracts(&not_taken_up, &wrong).unwrap_err();
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with(&format!("environment: TRANSFER_TOPIC is wrong: topic0 is {approval}, but")),
        "{found:?}"
    );
    assert!(contracts(&not_taken_up, &[("TRANSFER_TOPIC", TRANSFER)]).is_ok());

    let for_approvals = shipped.replace("name = \"Transfer\" ", "name = \"Approval\" ");
    assert!(contracts(&for_approvals, &wrong).is_ok(), "the entry's own ABI decides");
}

/// Transfers to a handler for each of these queues.
fn queues(urls: &[&str]) -> Result<Settings, Vec<String>> {
    let handlers = urls.iter().enumerate().map(|(index, url)| {
        format!(
            "[[handler]]\nname = 'h{index}'\nqueue = '{url}'\n[[contract]]\nname = 'T{index}'\nabi = 'abi/erc20.json'\n[[contract.event]]\nname = 'Transfer'\nhandler = 'h{index}'\n"
        )
    });
    contracts(&handlers.collect::<String>(), &[("AWS_REGION", "eu-west-1")])
}

#[test]
fn queues_of_one_name_are_sinks_of_their_own_and_a_slash_makes_no_other_queue() {
    let settings = queues(&[
        "https://sqs.eu-west-1.amazonaws.com/111111111111/transfers",
        "https://sqs.eu-west-1.amazonaws.com/222222222222/transfers",
        "https://sqs.eu-west-1.amazonaws.com/222222222222/transfers/",
        "https://sqs.eu-west-1.amazonaws.com/333333333333/transfers",
        "",
    ])
    .unwrap();
    let targets = settings.registry.targets();
    let names: Vec<&str> = targets.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["sqs:transfers", "sqs:transfers#2", "sqs:transfers#3", "stdout"]);
    assert!(targets.iter().all(|(target, _)| !matches!(target, SinkTarget::Sqs { url } if url.ends_with('/'))));
}

#[test]
fn a_queue_over_plain_http_is_warned_of_unless_it_is_near() {
    let warnings = queues(&["http://queues.example.com/1/a", "http://127.0.0.1:9324/1/b"]).unwrap().warnings;
    let plain: Vec<_> = warnings.iter().filter(|warning| warning.contains("is not encrypted")).collect();
    assert_eq!(plain.len(), 1, "{warnings:?}");
    assert!(plain[0].starts_with("queue sqs:a: http://queues.example.com is not encrypted"), "{plain:?}");
}

#[test]
fn a_listener_that_would_listen_to_nothing_is_not_started() {
    let text = "[[contract]]\nname = 'T'\nabi = 'abi/erc20.json'\nchains = [1]\n[[contract.event]]\nname = 'Transfer'\nhandler = 'handleTransferEvent'\n";
    let mistake = "config/contracts.toml: no entry is active on chain 8453: nothing would be listened to; add a [[contract]], or take one for chain 8453: `enabled`, and 8453 in its `chains`";
    for text in [text, ""] {
        assert_eq!(contracts(text, &[]).unwrap_err(), [mistake]);
    }
    assert!(contracts(text, &[("CHAIN_ID", "1")]).is_ok());
    let directory = Directory::with("contracts.toml", "");
    let operate = Sources { purpose: Purpose::Operate, ..directory.sources(&[]) };
    assert!(load_offline(&operate).is_ok(), "commands that only operate need none");
}
