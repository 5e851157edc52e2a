//! Several endpoints of one chain: any of them may stop, fall silent, lag or be alone with its branch, and nothing is lost,
//! late or taken back for it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "what fails here fails the test")]
#![allow(clippy::print_stdout, reason = "tells how late a block came")]

mod support;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use chaintap::devchain::Options;
use serde_json::{Value, json};
use support::{
    chaintap::{Listener, Settings},
    deliveries::{assert_delivered, height, transfers},
    devchain::{Devchain, Rpc, still},
    mailbox::Mailbox,
    process::{eventually, free_port, spawn},
};
use tokio::process::{Child, Command};

const SOON: Duration = Duration::from_mins(1);
/// Where the chains that mine begin, and the first block that is delivered.
const FIRST: u64 = 100;
/// Their time between two blocks.
const BLOCK: Duration = Duration::from_secs(1);

fn unix_now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// A node of its own, which can be killed and stopped; killed when dropped.
struct NodeProcess {
    child: Child,
    url: String,
}

impl NodeProcess {
    /// Nodes of one genesis time have the same chain.
    async fn start(genesis: Duration) -> Self {
        let port = free_port().to_string();
        let (genesis, first) = (genesis.as_secs().to_string(), FIRST.to_string());
        let options = ["devchain", "--port", &port, "--genesis-time", &genesis, "--start-height", &first];
        let child = spawn(&mut Settings::default().command(&options));
        let url = format!("127.0.0.1:{port}");
        let rpc = Rpc::new(format!("http://{url}"));
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": [] });
        eventually("the node answers", SOON, || async { rpc.try_reply(&request).await.is_some() }).await;
        Self { child, url }
    }

    async fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().await.unwrap().success());
    }
}

/// When each block was first known to be delivered, as time after it was mined.
#[derive(Default)]
struct Delays(BTreeMap<u64, Duration>);

impl Delays {
    /// Watches until a block is delivered.
    async fn watch(&mut self, listener: &Listener, genesis: Duration, until: u64) {
        let watching = async {
            let mut known = self.0.keys().last().copied().unwrap_or(FIRST);
            while known < until {
                let (watermark, now) = (listener.watermark().await, unix_now());
                for number in known + 1..=watermark {
                    let mined = genesis + BLOCK * u32::try_from(number - FIRST).unwrap();
                    self.0.insert(number, now.saturating_sub(mined));
                }
                known = known.max(watermark);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(SOON, watching).await.is_ok();
        assert!(in_time, "block {until} is not delivered: {}\n{}", listener.health().await, listener.log());
    }

    fn longest(&self, after: u64) -> Duration {
        self.0.range(after..).map(|(_, delay)| *delay).max().unwrap()
    }
}

/// The preferred one of three nodes gets this signal while blocks are mined.
async fn preferred_gets(signal: &str) {
    let genesis = Duration::from_secs(unix_now().as_secs());
    let nodes =
        [NodeProcess::start(genesis).await, NodeProcess::start(genesis).await, NodeProcess::start(genesis).await];
    let urls = nodes.each_ref().map(|node| format!("ws://{}", node.url)).join(",");
    let settings = Settings::default().set("CHAIN_ID", 31_337).set("WEB3_PROVIDER", urls).set("START_BLOCK", FIRST);
    let listener = settings.start();
    let mut delays = Delays::default();
    // Long enough to know how soon its answers usually come.
    let rpc = Rpc::new(format!("http://{}", nodes[1].url));
    let begun = height(&rpc).await;
    delays.watch(&listener, genesis, begun + 8).await;
    let before = listener.watermark().await;
    nodes[0].signal(signal).await;
    delays.watch(&listener, genesis, before + 10).await;
    let told = listener.health().await["providers"].clone();
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    println!("SIG{signal}: the latest block after it came {:?} after it was mined", delays.longest(before + 1));
    assert_eq!(told[0]["state"], "failing", "{told}");
    assert!(told[0]["aside"].is_string() && told[1]["aside"].is_null(), "{told}");
    let last = messages.iter().map(|message| message["blockNumber"].as_u64().unwrap()).max().unwrap();
    assert_delivered(&messages, &transfers(&rpc, FIRST, last, None).await, 1);
    assert!(log.contains("requests move to another endpoint"), "{log}");
}

#[tokio::test]
async fn the_preferred_endpoint_may_be_killed_or_fall_silent_and_no_block_is_lost() {
    tokio::join!(preferred_gets("KILL"), preferred_gets("STOP"));
}

async fn chain_of(height: u64) -> Devchain {
    Devchain::start(Options { logs_per_block: 10, finalized_depth: 16, safe_depth: 8, ..still(height) }).await
}

async fn three(height: u64) -> [Devchain; 3] {
    [chain_of(height).await, chain_of(height).await, chain_of(height).await]
}

fn listener_of(chains: &[Devchain]) -> Settings {
    let urls: Vec<String> = chains.iter().map(|chain| format!("http://{}", chain.address)).collect();
    Settings::default().set("CHAIN_ID", 31_337).set("WEB3_PROVIDER", urls.join(",")).set("START_BLOCK", 101)
}

async fn provider(listener: &Listener, place: usize) -> Value {
    listener.health().await["providers"][place].clone()
}

/// Waits until `/health` says this of why others are asked instead of a provider; nothing where it serves.
async fn wait_aside(listener: &Listener, place: usize, why: &str) {
    let waiting = async {
        loop {
            let told = provider(listener, place).await;
            if told["aside"].as_str().map_or(why.is_empty(), |aside| !why.is_empty() && aside.contains(why)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let in_time = tokio::time::timeout(SOON, waiting).await.is_ok();
    let health = listener.health().await;
    assert!(in_time, "provider {place} is not aside for {why:?}: {health}\n{}", listener.log());
}

fn retractions(messages: &[Value]) -> usize {
    messages.iter().filter(|message| message["eventType"] == "TransferRetracted").count()
}

async fn reorganise(chain: &Devchain, depth: u64, length: u64) {
    chain.rpc().call("devchain_reorg", json!([{ "depth": depth, "length": length, "deep": true }])).await;
}

/// Waits until a consumer holds the chain of this node from block 101 on.
async fn wait_right(listener: &Listener, chain: &Devchain) {
    let canonical = chain.transfers(101, chain.head().await).await;
    let right = || async {
        let mut fold = Mailbox::default();
        listener.whole_lines().iter().for_each(|line| fold.enter(line));
        fold.difference(&canonical).is_none()
    };
    eventually("what was sent is the chain", SOON, right).await;
}

#[tokio::test]
async fn an_endpoint_that_lags_is_left_and_comes_back_once_it_has_caught_up() {
    let chains = three(105).await;
    let listener = listener_of(&chains).start();
    listener.wait_watermark(105, SOON).await;
    for chain in &chains[1..] {
        chain.mine(20).await;
    }
    wait_aside(&listener, 0, "it is 20 blocks behind").await;
    listener.wait_watermark(125, SOON).await;
    let told = provider(&listener, 0).await;
    assert_eq!((&told["state"], &told["headLag"], &told["errors"]), (&json!("ok"), &json!(20), &json!(0)), "{told}");
    chains[0].mine(20).await;
    wait_aside(&listener, 0, "").await;
    for chain in &chains {
        chain.mine(1).await;
    }
    listener.wait_watermark(126, SOON).await;
    let (code, messages, log) = listener.stop().await;
    assert_eq!((code, retractions(&messages)), (0, 0), "{log}");
    assert_delivered(&messages, &chains[1].transfers(101, 126).await, 0);
}

#[tokio::test]
async fn nothing_is_taken_back_for_one_endpoint_that_is_alone_with_its_branch() {
    let chains = three(105).await;
    let listener = listener_of(&chains).start();
    listener.wait_watermark(105, SOON).await;
    reorganise(&chains[0], 2, 3).await;
    wait_aside(&listener, 0, "most others have the block 104 that was delivered, and it another").await;
    for chain in &chains[1..] {
        chain.mine(2).await;
    }
    listener.wait_watermark(107, SOON).await;
    wait_right(&listener, &chains[1]).await;
    assert_eq!(retractions(&listener.messages()), 0);
    assert!(provider(&listener, 0).await["disagreements"].as_u64().unwrap() > 0);
    // Now two of three have another branch: that is the chain.
    for chain in &chains[1..] {
        reorganise(chain, 3, 4).await;
    }
    wait_right(&listener, &chains[1]).await;
    assert!(retractions(&listener.messages()) > 0);
    assert_eq!(listener.health().await["reorgs"], 1);
    assert_eq!(listener.stop().await.0, 0);
}

#[tokio::test]
async fn without_a_majority_it_waits_and_goes_on_once_there_is_one() {
    let mut chains: Vec<Devchain> = three(105).await.into();
    let listener = listener_of(&chains).start();
    listener.wait_watermark(105, SOON).await;
    drop(chains.pop());
    reorganise(&chains[0], 2, 3).await;
    let told = "of the endpoints 1 have the block 104 that was delivered, and 1 another one: nothing is delivered";
    eventually("it is told", SOON, || async { listener.health().await["reasons"].to_string().contains(told) }).await;
    assert_eq!(retractions(&listener.messages()), 0);
    reorganise(&chains[1], 2, 3).await;
    wait_right(&listener, &chains[1]).await;
    assert!(retractions(&listener.messages()) > 0);
    assert_eq!(listener.stop().await.0, 0);
}

#[tokio::test]
async fn an_endpoint_of_another_chain_is_left_out_and_told() {
    let other = Devchain::start(Options { chain_id: Some(5), ..still(105) }).await;
    let chains = [other, chain_of(105).await];
    let listener = listener_of(&chains).start();
    listener.wait_watermark(105, SOON).await;
    wait_aside(&listener, 0, "is on chain 5, but CHAIN_ID is 31337").await;
    let told = provider(&listener, 0).await;
    assert_eq!(told["state"], "failing", "{told}");
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    assert_delivered(&messages, &chains[1].transfers(101, 105).await, 0);
    assert_eq!(log.matches("is not asked for a while").count(), 1, "{log}");
}
