//! Providers that lag, throttle, leave out, announce what they do not have yet, talk nonsense or say nothing, in front of
//! the real binary: what is delivered is what the chain holds, nothing more, nothing less, nothing twice.
//!
//! One simulated node stands for all vendors: every path of its URL is an endpoint with faults of its own, and the path
//! that has none tells the truth. `make vendors` has the three of them serve a history of 10,000 blocks.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "what fails here fails the test")]
#![allow(clippy::print_stderr, reason = "seeds and measurements")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use chaintap::devchain::Options;
use serde_json::{Value, json};
use support::{
    chaintap::{Listener, Settings},
    deliveries::{assert_delivered, transfers},
    devchain::{Devchain, Rpc, still},
    dice::Dice,
};
use tokio::time::{Instant, sleep};

const SOON: Duration = Duration::from_mins(1);
/// The longest that a history may take.
const LATE: Duration = Duration::from_mins(15);
/// The development chain, of whose history every block is proven where receipts are asked for. Its ranges are small,
/// because a range is proven by one endpoint or asked for anew: here none stays as it is for long.
const EACH_BLOCK: &str = r#"
[[chain]]
id = 31337
name = "development"
redis_db = 15
block_time = "1s"
finality_depth = 16
batch_blocks = 20
parallel = 10
spacing = "50ms"
verify_sample = 1
"#;

/// A chain with some transfers in each block, which stands still.
async fn chain_of(blocks: u64) -> Devchain {
    Devchain::start(Options { logs_per_block: 6, finalized_depth: 16, ..still(blocks) }).await
}

/// A listener of these endpoints of the chain, in this order of preference.
fn listener_of(chain: &Devchain, endpoints: &[&str]) -> Settings {
    let entry = |name: &&str| format!("[[provider]]\nname = \"{name}\"\nws = \"{}/{name}\"\n", chain.ws_url());
    let providers: String = endpoints.iter().map(entry).collect();
    let settings = Settings::default().set("CHAIN_ID", 31_337).set("LOG_LEVEL", "info");
    settings.file("config/chains.toml", EACH_BLOCK).file("config/providers.toml", &providers)
}

/// Gives an endpoint these faults; what it had before, and what became of that.
async fn set(endpoint: &Rpc, faults: Value) -> Value {
    endpoint.call("devchain_setFaults", json!([faults])).await
}

/// What an endpoint tells of itself.
async fn report(endpoint: &Rpc) -> Value {
    endpoint.call("devchain_faults", json!([])).await
}

/// How often the faults of this kind fell, or of any kind.
fn fell(report: &Value, kind: &str) -> u64 {
    let faults = report["faults"].as_array().unwrap().iter();
    let of_kind = faults.filter(|fault| fault["fault"]["do"] == kind || !fault["fault"]["do"][kind].is_null());
    of_kind.map(|fault| fault["fell"].as_u64().unwrap()).sum()
}

/// The sum of a counter over its labels.
async fn counter(listener: &Listener, name: &str) -> u64 {
    let (_, metrics) = listener.get("/metrics").await.unwrap();
    let of_name = metrics.lines().filter(|line| line.starts_with(name));
    of_name.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Mines blocks one by one, each once the one before is delivered; the longest that one took.
async fn mine_one_by_one(chain: &Devchain, listener: &Listener, blocks: u64) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..blocks {
        let begun = Instant::now();
        chain.mine(1).await;
        listener.wait_watermark(chain.head().await, SOON).await;
        longest = longest.max(begun.elapsed());
    }
    longest
}

/// Ends a listener, of which exactly the transfers of these blocks are expected, once each.
async fn assert_exactly(listener: Listener, chain: &Devchain, from: u64, to: u64) {
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    assert_delivered(&messages, &transfers(&chain.rpc(), from, to, None).await, 0);
}

/// New blocks, in the first test beside the history, and at least so many.
const NEW: u64 = 60;

/// Blocks of history: enough for every run of the tests, or as many as `make vendors` asks for.
fn history() -> u64 {
    std::env::var("CHAINTAP_VENDORS").map_or(600, |blocks| blocks.parse().unwrap())
}

/// Three endpoints, which change their roles all the time: at any moment one lags, one throttles, one leaves out.
struct Vendors {
    endpoints: [(&'static str, Rpc); 3],
    /// By endpoint: calls, how many of them were refused, and on how many each fault fell.
    counts: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
}

impl Vendors {
    const NAMES: [&str; 3] = ["first", "second", "third"];

    fn of(chain: &Devchain) -> Self {
        Self { endpoints: Self::NAMES.map(|name| (name, chain.endpoint(name))), counts: BTreeMap::new() }
    }

    /// The three roles, each with some chance in it. What is left out is, every other time, missing in the receipts, too.
    fn roles(turn: usize, dice: &mut Dice) -> [Value; 3] {
        let omitting = &["eth_getLogs", "eth_getBlockReceipts"][..=turn % 2];
        let (rate, words) = (dice.between(5, 20), ["quicknode", "alchemy"][dice.place(2)]);
        [
            json!([{ "on": omitting, "do": { "omit": { "share": 0.03 } } }]),
            json!([{ "do": { "lag": { "blocks": dice.between(1, 20) } } }]),
            json!([{ "do": { "rateLimit": { "perSecond": rate, "words": words, "retryAfter": dice.between(0, 2) } } }]),
        ]
    }

    /// Misbehaves until it is dropped. The preferred one begins with leaving out: nobody else would be asked.
    async fn misbehave(&mut self, mut dice: Dice) {
        let way = 1 + dice.place(2);
        for turn in 0.. {
            let mut roles = Self::roles(turn, &mut dice);
            roles.rotate_right(turn * way % 3);
            self.set(roles).await;
            sleep(dice.millis(1_000, 3_000)).await;
        }
    }

    async fn set(&mut self, faults: [Value; 3]) {
        for ((name, endpoint), faults) in self.endpoints.iter().zip(faults) {
            let told = set(endpoint, faults).await;
            let counts = self.counts.entry(name).or_default();
            for what in ["requests", "refused"] {
                *counts.entry(what).or_default() += told[what].as_u64().unwrap();
            }
            for what in ["omit", "lag", "rateLimit"] {
                *counts.entry(what).or_default() += fell(&told, what);
            }
        }
    }

    fn total(&self, what: &str) -> u64 {
        self.counts.values().filter_map(|counts| counts.get(what)).sum()
    }
}

/// What a listener made of a chain, and how long that took.
struct Run {
    history: Duration,
    messages: Vec<Value>,
    restored: u64,
    failovers: u64,
    vendors: Vendors,
}

/// Delivers the history and what is new meanwhile, over three endpoints that are good or, with dice, bad.
async fn run(dice: Option<Dice>) -> Run {
    let blocks = history();
    let chain = chain_of(blocks).await;
    let mut vendors = Vendors::of(&chain);
    let settings = listener_of(&chain, &Vendors::NAMES).set("VERIFY", "receipts").set("START_BLOCK", 1);
    let listener = settings.start();
    let followed = follow(&chain, &listener, blocks);
    let history = match dice {
        None => followed.await,
        Some(dice) => tokio::select! {
            history = followed => history,
            () = vendors.misbehave(dice) => unreachable!("they never behave"),
        },
    };
    vendors.set([(); 3].map(|()| json!([]))).await;
    let restored = counter(&listener, "chaintap_rpc_logs_restored_total").await;
    let failovers = counter(&listener, "chaintap_rpc_failovers_total").await;
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    assert_delivered(&messages, &transfers(&chain.rpc(), 1, chain.head().await, None).await, 0);
    Run { history, messages, restored, failovers, vendors }
}

/// New blocks come until the history is there, and some after that; how long the history took.
async fn follow(chain: &Devchain, listener: &Listener, blocks: u64) -> Duration {
    let (begun, is_there) = (Instant::now(), AtomicBool::new(false));
    let history = async {
        listener.wait_watermark(blocks, LATE).await;
        is_there.store(true, Ordering::Relaxed);
        begun.elapsed()
    };
    let mining = async {
        let mut mined = 0;
        while mined < NEW || !is_there.load(Ordering::Relaxed) {
            chain.mine(1).await;
            mined += 1;
            sleep(Duration::from_millis(200)).await;
        }
    };
    let (took, ()) = tokio::join!(history, mining);
    listener.wait_watermark(chain.head().await, SOON).await;
    took
}

/// The messages of the blocks that every run has, by id, and but for the version, which depends on when a listener began.
/// All messages of a run have one: nothing was taken back.
fn common(run: &Run) -> BTreeMap<String, Value> {
    let versions: BTreeSet<_> = run.messages.iter().map(|message| message["version"].as_u64().unwrap()).collect();
    assert_eq!(versions.len(), 1, "{versions:?}");
    let is_common = |message: &&Value| message["blockNumber"].as_u64().unwrap() <= history() + NEW;
    let without_version = |message: &Value| {
        let mut message = message.clone();
        message["version"].take();
        (message["id"].as_str().unwrap().to_owned(), message)
    };
    run.messages.iter().filter(is_common).map(without_version).collect()
}

#[tokio::test]
async fn three_vendors_that_lag_throttle_and_leave_out_deliver_what_three_good_ones_do() {
    let good = run(None).await;
    let bad = run(Some(Dice::told())).await;
    for (name, run) in [("good", &good), ("bad", &bad)] {
        let Run { history: took, messages, restored, failovers, vendors } = run;
        eprintln!(
            "{name}: {} blocks in {took:.1?}, {} messages, {restored} logs restored, {failovers} moves, {:?}",
            history(),
            messages.len(),
            vendors.counts
        );
    }
    eprintln!("bad/good: {:.2}", bad.history.as_secs_f64() / good.history.as_secs_f64());
    assert!(common(&good) == common(&bad), "the messages differ");
    assert_eq!((good.restored, good.vendors.total("refused")), (0, 0));
    assert!(bad.restored > 0, "what was left out came from receipts");
    for what in ["refused", "omit", "lag", "rateLimit"] {
        assert!(bad.vendors.total(what) > 0, "{what}: {:?}", bad.vendors.counts);
    }
}

/// Some fault, with chance in it.
fn any_fault(dice: &mut Dice) -> Value {
    let probability = f64::from(u32::try_from(dice.between(5, 50)).unwrap()) / 100.0;
    let some = |what: Value| json!({ "probability": probability, "do": what });
    match dice.below(14) {
        0 => json!({ "do": { "omit": { "share": probability } } }),
        1 => json!({ "on": ["eth_getLogs", "eth_getBlockReceipts"], "do": { "omit": { "share": probability } } }),
        2 => json!({ "do": { "lag": { "blocks": dice.between(1, 20) } } }),
        3 => json!({ "do": { "rateLimit": { "perSecond": dice.between(5, 40), "retryAfter": dice.between(0, 2) } } }),
        4 => some(json!({ "error": { "code": -32000, "message": "internal error" } })),
        5 => some(json!({ "http": { "status": 503 } })),
        6 => json!({ "probability": probability / 10.0, "do": "silence" }),
        7 => some(json!("null")),
        8 => {
            let shape = ["html", "half", "wrongId", "hex", "nothing"][dice.place(5)];
            some(json!({ "garbage": { "as": shape } }))
        }
        9 => some(json!("empty")),
        10 => json!({ "do": { "logsLate": { "ms": dice.between(100, 1_500) } } }),
        11 => some(json!({ "slow": { "delay": dice.between(100, 1_500) } })),
        12 => json!({ "do": { "blockLimit": { "blocks": dice.between(1, 15) } } }),
        _ => some(json!({ "truncate": { "to": dice.between(1, 20) } })),
    }
}

/// Whatever two of three do, as long as one, and not always the same one, is good.
#[tokio::test]
async fn three_endpoints_with_any_faults_of_which_one_is_good_deliver_everything() {
    let mut dice = Dice::told();
    let chain = chain_of(200).await;
    let endpoints = Vendors::NAMES.map(|name| chain.endpoint(name));
    let settings = listener_of(&chain, &Vendors::NAMES).set("VERIFY", "receipts").set("START_BLOCK", 1);
    let listener = settings.start();
    let misbehaving = async {
        loop {
            let good = dice.place(endpoints.len());
            for (place, endpoint) in endpoints.iter().enumerate() {
                let faults: Vec<_> = (0..dice.between(1, 2)).map(|_| any_fault(&mut dice)).collect();
                set(endpoint, json!(if place == good { vec![] } else { faults })).await;
            }
            sleep(dice.millis(200, 2_000)).await;
        }
    };
    tokio::select! {
        _ = follow(&chain, &listener, 200) => {}
        () = misbehaving => unreachable!("they never behave"),
    }
    let restored = counter(&listener, "chaintap_rpc_logs_restored_total").await;
    let (code, messages, log) = listener.stop().await;
    assert_eq!(code, 0, "{log}");
    eprintln!("{} messages, {restored} logs restored", messages.len());
    // A range whose second part was not answered is delivered again as a whole.
    assert_delivered(&messages, &transfers(&chain.rpc(), 1, chain.head().await, None).await, usize::MAX);
}

/// Blooms hold near the head against answers that are empty; ranges of history are not held against them.
#[tokio::test]
async fn logs_that_come_after_their_block_or_not_every_time_are_not_lost() {
    let late = json!([{ "do": { "logsLate": { "ms": 600 } } }]);
    let empty = json!([{ "do": "empty", "probability": 0.1 }]);
    let follow = async |faults: Value| {
        let chain = chain_of(100).await;
        let endpoint = chain.endpoint("only");
        let listener = listener_of(&chain, &["only"]).start();
        listener.wait_watermark(100, SOON).await;
        set(&endpoint, faults.clone()).await;
        for _ in 0..NEW {
            chain.mine(1).await;
            sleep(Duration::from_millis(300)).await;
        }
        listener.wait_watermark(100 + NEW, SOON).await;
        let told = report(&endpoint).await;
        let not_taken = counter(&listener, "chaintap_rpc_empty_with_bloom_total").await;
        eprintln!("{faults}: {} requests, {not_taken} answers not taken", told["requests"]);
        assert!(not_taken > 0, "{told}");
        assert_exactly(listener, &chain, 100, 100 + NEW).await;
    };
    tokio::join!(follow(late), follow(empty));
}

/// A frame above the 16 MiB that clients take closes the socket that it comes over, and nothing else.
#[tokio::test]
async fn a_frame_that_no_client_takes_holds_no_block_up() {
    let too_large = json!({ "pad": { "bytes": 17 << 20 } });
    let by_socket_alone = json!([
        { "on": ["eth_chainId"], "do": { "http": { "status": 404 } } },
        { "on": ["eth_subscription", "eth_getLogs"], "do": too_large },
    ]);
    for (endpoints, faults) in
        [(&["poisoned", "good"][..], json!([{ "do": too_large }])), (&["poisoned"], by_socket_alone)]
    {
        let chain = chain_of(100).await;
        let poisoned = chain.endpoint("poisoned");
        set(&poisoned, faults).await;
        let listener = listener_of(&chain, endpoints).start();
        listener.wait_watermark(100, SOON).await;
        let longest = mine_one_by_one(&chain, &listener, 10).await;
        let told = report(&poisoned).await;
        eprintln!("{endpoints:?}: {} messages too large, a block took {longest:.1?} at most", fell(&told, "pad"));
        assert!(fell(&told, "pad") > 0, "{told}");
        assert_exactly(listener, &chain, 100, 110).await;
    }
}

#[tokio::test]
async fn a_silent_socket_and_answers_without_sense_lose_nothing() {
    let chain = chain_of(300).await;
    let endpoint = chain.endpoint("senseless");
    let mut longest = Duration::ZERO;
    let speak = async |shape: &str| {
        let garbage = json!({ "probability": 0.5, "do": { "garbage": { "as": shape } } });
        set(&endpoint, json!([{ "on": ["eth_subscription"], "do": "silence" }, garbage])).await
    };
    speak("hex").await;
    let listener = listener_of(&chain, &["senseless", "good"]).set("START_BLOCK", 1).start();
    listener.wait_watermark(300, SOON).await;
    let mut fallen = 0;
    for shape in ["nothing", "text", "html", "half", "wrongId", "hex"] {
        fallen += fell(&speak(shape).await, "garbage");
        longest = longest.max(mine_one_by_one(&chain, &listener, 4).await);
    }
    eprintln!("{fallen} answers without sense, a block took {longest:.1?} at most");
    assert!(fallen > 0);
    assert_exactly(listener, &chain, 1, 324).await;
}

/// The default, `bloom`, does not see what is left out of history, and nothing below the final height is audited: that is
/// what the first run shows. It stays below that height, which holds for ranges alone.
#[tokio::test]
async fn what_is_left_out_of_history_and_near_the_head_is_there_with_receipts() {
    for omit in [json!({}), json!({ "share": 0.1 })] {
        let chain = chain_of(120).await;
        let liar = chain.endpoint("liar");
        set(&liar, json!([{ "do": { "omit": omit } }])).await;
        let settings = listener_of(&chain, &["liar"]).set("START_BLOCK", 1).set("VERIFY", "bloom");
        let (code, unproven, log) = settings.arg("--until").arg(80).start().end(SOON).await;
        assert_eq!(code, 0, "{log}");
        let left_out = transfers(&chain.rpc(), 1, 80, None).await.len() - unproven.len();
        assert!(left_out > 0, "the node leaves nothing out");

        let listener = listener_of(&chain, &["liar"]).set("START_BLOCK", 1).set("VERIFY", "receipts").start();
        listener.wait_watermark(120, SOON).await;
        mine_one_by_one(&chain, &listener, 5).await;
        let restored = counter(&listener, "chaintap_rpc_logs_restored_total").await;
        eprintln!("{omit}: {left_out} logs of 80 blocks were lost without receipts, {restored} of 125 came from them");
        assert!(restored > left_out as u64, "near the head, too");
        assert_exactly(listener, &chain, 1, 125).await;
    }
}

/// A plan of five calls a second is all there is: what it asks for is kept, so that most requests are answered. Blocks are
/// expected as seldom as on Ethereum; where one is due every second, reading heads and tags alone takes most of such a plan.
#[tokio::test]
async fn a_small_plan_alone_delivers_everything_and_refuses_little() {
    let chain = chain_of(60).await;
    let endpoint = chain.endpoint("small");
    set(&endpoint, json!([{ "do": { "rateLimit": { "perSecond": 5, "retryAfter": 1 } } }])).await;
    let profile = EACH_BLOCK.replace("\"1s\"", "\"12s\"");
    let settings = listener_of(&chain, &["small"]).file("config/chains.toml", &profile).set("START_BLOCK", 1);
    let listener = settings.start();
    let begun = Instant::now();
    let mut refusals: Vec<(Duration, u64)> = Vec::new();
    let watching = async {
        loop {
            let refused = report(&endpoint).await["refused"].as_u64().unwrap();
            if refused > refusals.last().map_or(0, |(_, before)| *before) {
                refusals.push((begun.elapsed(), refused));
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let delivered = async {
        listener.wait_watermark(60, SOON).await;
        mine_one_by_one(&chain, &listener, 2).await;
    };
    tokio::select! {
        () = watching => unreachable!("it ends with the other"),
        () = delivered => {}
    }
    let (took, told) = (begun.elapsed(), report(&endpoint).await);
    let [requests, refused] = ["requests", "refused"].map(|what| told[what].as_u64().unwrap());
    let early = early(&refusals);
    eprintln!(
        "{requests} requests, {refused} refused in {took:.1?}, {early} of them before their time: {refusals:.1?}"
    );
    assert!(refused > 0 && refused * 3 < requests, "{told}");
    assert_exactly(listener, &chain, 1, 62).await;
}

/// How many calls were refused within the second that the first refusal before them asked for, but for those that may have
/// been on their way with it.
fn early(refusals: &[(Duration, u64)]) -> u64 {
    const ON_THEIR_WAY: Duration = Duration::from_millis(100);
    let (mut first, mut before, mut early) = (None, 0, 0);
    for (at, refused) in refusals {
        match first {
            Some(first) if *at < first + Duration::from_secs(1) => {
                if *at > first + ON_THEIR_WAY {
                    early += refused - before;
                }
            }
            _ => first = Some(*at),
        }
        before = *refused;
    }
    early
}
