//! Faults on request: what providers do to their clients, done by the simulated node.
//!
//! Every path of the node's URL is an *endpoint* of its own: all serve the one chain, each with its own faults and its own
//! counts, as several providers do. A request meets the faults of its endpoint in their order. One that refuses ends it;
//! those that change the node ([`Does::Lag`]) or its answer ([`Does::Omit`]) add up. Control calls (`devchain_…`) are never
//! spoilt.
//!
//! Which request a fault falls on is a function of the chain's seed, the endpoint's path, the fault's place and how many
//! requests it has met: the same requests in the same order meet the same faults. Only periods of seconds, rates, delays
//! and late logs know a clock.

mod delivery;
mod script;
mod spoil;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use alloy::{eips::BlockNumberOrTag, primitives::B256};
use serde_json::{Value, json};

pub(super) use self::delivery::{Delivery, pause};
use self::script::{CONNECT, NOTIFICATION};
pub use self::script::{Does, Fault, Garbage, Period, Script, Vendor};
use super::{
    jsonrpc::{self, Answer, Params, answer},
    node::Node,
    random::Random,
};

/// Most endpoints with faults and counts of their own; what comes after them shares one.
const MOST_ENDPOINTS: usize = 64;

/// The endpoints of a node.
#[derive(Debug)]
pub(super) struct Endpoints {
    by_path: RwLock<HashMap<String, Arc<Endpoint>>>,
    seed: u64,
}

/// One endpoint: its faults, and what was asked of it since they were set.
#[derive(Debug, Default)]
pub(super) struct Endpoint {
    seed: u64,
    state: RwLock<Arc<State>>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    faults: Vec<Armed>,
    requests: AtomicU64,
    refused: AtomicU64,
    longest_range: AtomicU64,
}

/// A fault and what became of it so far.
#[derive(Debug)]
struct Armed {
    fault: Fault,
    /// Its place among those of its endpoint.
    place: u64,
    /// Requests that it could have fallen on.
    met: AtomicU64,
    /// Requests that it fell on.
    fell: AtomicU64,
    bucket: Mutex<Bucket>,
    /// Logs that were left out once.
    omitted: Mutex<HashSet<(B256, u64)>>,
}

/// Calls that may still be made, and as of when.
#[derive(Debug)]
struct Bucket {
    calls: f64,
    as_of: Instant,
}

impl Endpoints {
    /// The endpoints of a script that makes sense; those that it does not name behave.
    pub(super) fn new(script: &Script, seed: u64) -> Result<Self, String> {
        script.check()?;
        if script.0.len() > MOST_ENDPOINTS {
            return Err(format!("{} endpoints, at most {MOST_ENDPOINTS}", script.0.len()));
        }
        let endpoints = Self { by_path: RwLock::default(), seed };
        for (path, faults) in &script.0 {
            endpoints.at(path).set(faults.clone());
        }
        Ok(endpoints)
    }

    /// The endpoint of a path.
    pub(super) fn at(&self, path: &str) -> Arc<Endpoint> {
        let known = self.by_path.read().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        known.unwrap_or_else(|| {
            let mut by_path = self.by_path.write().unwrap_or_else(PoisonError::into_inner);
            // The shared one has a name that no path has.
            let name = if by_path.len() < MOST_ENDPOINTS { path } else { "" };
            let seed = path.bytes().fold(self.seed, |seed, byte| Random::of(&[seed, byte.into()]).next());
            let new = || Arc::new(Endpoint { seed, ..Endpoint::default() });
            Arc::clone(by_path.entry(name.to_owned()).or_insert_with(new))
        })
    }
}

impl Default for State {
    fn default() -> Self {
        Self::with(Vec::new())
    }
}

impl State {
    fn with(faults: Vec<Fault>) -> Self {
        Self {
            since: Instant::now(),
            faults: (0..).zip(faults).map(|(place, fault)| Armed::new(place, fault)).collect(),
            requests: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            longest_range: AtomicU64::new(0),
        }
    }

    fn report(&self) -> Value {
        let faults = self.faults.iter().map(
            |armed| json!({ "fault": armed.fault, "met": armed.met.load(Relaxed), "fell": armed.fell.load(Relaxed) }),
        );
        json!({
            "requests": self.requests.load(Relaxed),
            "refused": self.refused.load(Relaxed),
            "longestRange": self.longest_range.load(Relaxed),
            "faults": faults.collect::<Vec<_>>(),
        })
    }
}

impl Endpoint {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// These faults from now on, and all counts from 0.
    fn set(&self, faults: Vec<Fault>) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(State::with(faults));
    }

    /// `devchain_setFaults [[…]]`, `devchain_clearFaults` and `devchain_faults`.
    fn control(&self, method: &str, params: &mut Params) -> Option<Answer> {
        let report = self.state().report();
        match method {
            "devchain_faults" => {}
            "devchain_clearFaults" => self.set(Vec::new()),
            "devchain_setFaults" => match faults(params) {
                Ok(faults) => self.set(faults),
                Err(refusal) => return Some(Err(refusal)),
            },
            _ => return None,
        }
        Some(answer(&report))
    }

    /// By how many blocks the next message to a subscriber is late.
    pub(super) fn behind(&self, node: &Node) -> u64 {
        let state = self.state();
        let asked = Asked { node, method: NOTIFICATION, blocks: None };
        let lags = state.faults.iter().filter_map(|armed| match armed.fault.does {
            Does::Lag { blocks } if armed.falls(&asked, self.seed, state.since) => Some(blocks),
            _ => None,
        });
        lags.sum()
    }

    /// What happens to a message to a subscriber.
    pub(super) fn notification(&self, node: &Node) -> Delivery {
        self.event(&Asked { node, method: NOTIFICATION, blocks: None })
    }

    /// What happens to the opening of a socket.
    pub(super) fn opening(&self, node: &Node) -> Delivery {
        self.event(&Asked { node, method: CONNECT, blocks: None })
    }

    fn event(&self, asked: &Asked) -> Delivery {
        let (state, mut delivery) = (self.state(), Delivery::default());
        for armed in state.faults.iter().filter(|armed| !matches!(armed.fault.does, Does::Lag { .. })) {
            if !delivery.is_final() && armed.falls(asked, self.seed, state.since) {
                delivery.spoil(&armed.fault.does);
            }
        }
        delivery
    }
}

fn faults(params: &mut Params) -> Result<Vec<Fault>, jsonrpc::Fault> {
    let given: Vec<Value> = params.required(0)?;
    let read = |(place, fault)| {
        serde_json::from_value(fault).map_err(|error| jsonrpc::Fault::params(format!("fault {place}: {error}")))
    };
    let faults = (1..).zip(given).map(read).collect::<Result<Vec<Fault>, _>>()?;
    script::check(&faults).map_err(jsonrpc::Fault::params)?;
    Ok(faults)
}

/// One message with its calls, and what becomes of the message that answers it.
#[derive(Debug)]
pub(super) struct Exchange {
    endpoint: Arc<Endpoint>,
    /// Whether it came over HTTP.
    over_http: bool,
    /// How the answer is sent.
    pub(super) delivery: Delivery,
}

impl Exchange {
    pub(super) fn new(endpoint: Arc<Endpoint>, over_http: bool) -> Self {
        Self { endpoint, over_http, delivery: Delivery::default() }
    }

    /// Answers one call by `inner`, as far as the faults of the endpoint let it.
    pub(super) fn call(
        &mut self,
        node: &Node,
        method: &str,
        mut params: Params,
        inner: impl FnOnce(&Node, Params) -> Answer,
    ) -> Answer {
        if method.starts_with("devchain_") {
            let done = self.endpoint.control(method, &mut params);
            return done.unwrap_or_else(|| inner(node, params));
        }
        let state = self.endpoint.state();
        let asked = Asked { node, method, blocks: blocks(node, method, &params, state.faults.is_empty()) };
        state.requests.fetch_add(1, Relaxed);
        state.longest_range.fetch_max(asked.range(), Relaxed);
        let answered = self.meet(&state, &asked, |node| inner(node, params));
        if answered.is_err() || self.delivery.is_refusal() {
            state.refused.fetch_add(1, Relaxed);
        }
        answered
    }

    fn meet(&mut self, state: &State, asked: &Asked, inner: impl FnOnce(&Node) -> Answer) -> Answer {
        let mut node = Cow::Borrowed(asked.node);
        let mut spoilers = Vec::new();
        for armed in &state.faults {
            let does = &armed.fault.does;
            if (matches!(does, Does::Http { .. }) && !self.over_http)
                || !armed.falls(asked, self.endpoint.seed, state.since)
            {
                continue;
            }
            match does {
                Does::Lag { blocks } => node.to_mut().behind += blocks,
                Does::LogsLate { ms, blocks } => {
                    node.to_mut().late = (Duration::from_millis(*ms), *blocks);
                }
                Does::ChainId { id } => node.to_mut().chain_id = *id,
                Does::Omit { .. } | Does::Empty | Does::Truncate { .. } | Does::Null | Does::Replace { .. } => {
                    spoilers.push(armed);
                }
                _ => {
                    self.delivery.spoil(does);
                    if let Some(refusal) = spoil::refusal(does, asked) {
                        return Err(refusal);
                    }
                    if self.delivery.is_final() {
                        return answer(&Value::Null);
                    }
                }
            }
        }
        let honest = inner(&node);
        spoilers.into_iter().fold(honest, |answered, armed| armed.spoil(answered, self.endpoint.seed))
    }
}

/// What faults look at.
struct Asked<'a> {
    node: &'a Node,
    method: &'a str,
    /// The first and the last block that are asked for.
    blocks: Option<(u64, u64)>,
}

impl Asked<'_> {
    /// Blocks in one `eth_getLogs`; 0 for everything else.
    fn range(&self) -> u64 {
        let blocks = self.blocks.filter(|_| self.method == "eth_getLogs");
        blocks.map_or(0, |(from, to)| to.saturating_sub(from).saturating_add(1))
    }
}

/// The first and the last block that a request is about, where it says so; or, where nobody wants to know more, whatever
/// tells how many they are.
fn blocks(node: &Node, method: &str, params: &Params, only_how_many: bool) -> Option<(u64, u64)> {
    let by_tag = |tag: Option<&Value>| match tag {
        None | Some(Value::Null) => node.number(BlockNumberOrTag::Latest),
        Some(tag) => node.number(serde_json::from_value(tag.clone()).ok()?),
    };
    let by_hash = |hash: &Value| {
        let block = node.chain.find(&serde_json::from_value(hash.clone()).ok()?)?;
        Some(block.header.number)
    };
    let one = |number| (number, number);
    let first = params.first()?;
    match method {
        "eth_getLogs" => match first.get("blockHash") {
            None | Some(Value::Null) => Some((by_tag(first.get("fromBlock"))?, by_tag(first.get("toBlock"))?)),
            Some(_) if only_how_many => Some(one(0)),
            // One block, known or not.
            Some(hash) => Some(one(by_hash(hash).unwrap_or_default())),
        },
        _ if only_how_many => None,
        "eth_getBlockByNumber" => by_tag(Some(first)).map(one),
        "eth_getBlockByHash" => by_hash(first).map(one),
        "eth_getBlockReceipts" => by_hash(first).or_else(|| by_tag(Some(first))).map(one),
        _ => None,
    }
}

impl Armed {
    fn new(place: u64, fault: Fault) -> Self {
        let calls = match fault.does {
            Does::RateLimit { per_second, burst, .. } => burst.unwrap_or(per_second.max(1.0)),
            _ => 0.0,
        };
        Self {
            fault,
            place,
            met: AtomicU64::new(0),
            fell: AtomicU64::new(0),
            bucket: Mutex::new(Bucket { calls, as_of: Instant::now() }),
            omitted: Mutex::default(),
        }
    }

    /// Whether it falls on this request; if so that is counted.
    fn falls(&self, asked: &Asked, seed: u64, since: Instant) -> bool {
        if !self.concerns(asked, since) {
            return false;
        }
        let met = self.met.fetch_add(1, Relaxed);
        let is_turn = self.fault.every.is_none_or(|every| (met + 1).is_multiple_of(every));
        let is_drawn = self.fault.probability.is_none_or(|share| chance(&[seed, self.place, met]) < share);
        if !is_turn || !is_drawn || !self.is_exceeded(asked) {
            return false;
        }
        let most = self.fault.next.unwrap_or(u64::MAX);
        self.fell.fetch_update(Relaxed, Relaxed, |fell| (fell < most).then_some(fell + 1)).is_ok()
    }

    /// Whether all conditions hold that are not a matter of counting.
    fn concerns(&self, asked: &Asked, since: Instant) -> bool {
        let Fault { on, range_over, newest, heads, seconds, does, .. } = &self.fault;
        let is_meant = if on.is_empty() {
            does.falls_by_default_on(asked.method)
        } else {
            on.iter().any(|method| method == asked.method)
        };
        is_meant
            && range_over.is_none_or(|most| asked.range() > most)
            && (!newest || asked.blocks.is_some_and(|(_, last)| last >= asked.node.chain.head()))
            && heads.is_none_or(|heads| heads.range().contains(&asked.node.chain.head()))
            && seconds.is_none_or(|seconds| seconds.range().contains(&since.elapsed().as_secs()))
    }

    /// Whether the limit is exceeded that this fault is, if it is one.
    fn is_exceeded(&self, asked: &Asked) -> bool {
        match self.fault.does {
            Does::BlockLimit { blocks, .. } => asked.range() > blocks,
            Does::RateLimit { per_second, burst, .. } => {
                let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
                !bucket.take(per_second, burst.unwrap_or(per_second.max(1.0)))
            }
            _ => true,
        }
    }
}

impl Bucket {
    /// Takes one call, where there is one.
    fn take(&mut self, per_second: f64, most: f64) -> bool {
        let now = Instant::now();
        let filled = self.calls + now.duration_since(self.as_of).as_secs_f64() * per_second;
        self.as_of = now;
        self.calls = filled.min(most);
        let is_there = self.calls >= 1.0;
        if is_there {
            self.calls -= 1.0;
        }
        is_there
    }
}

/// A number from 0 to below 1 that belongs to these words.
fn chance(words: &[u64]) -> f64 {
    let bits = u32::try_from(Random::of(words).next() >> 32).unwrap_or(u32::MAX);
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}
