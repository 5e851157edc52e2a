//! Judges the facts: the body of `/health`, the checks of `/readyz`, the answer of `/livez` (contract §9). Pure: facts
//! and a moment in, a verdict out.
//!
//! `fail` wakes someone: nothing is delivered and will not be before a server comes back or a person acts. `degraded`
//! is odd, and nothing is lost. Each verdict comes with its reasons, as sentences for the operator who is woken.

use std::time::Duration;

use alloy::primitives::B256;
use serde::Serialize;
use tokio::time::Instant;

use super::vitals::{Edge, EdgeFacts, Facts, Profile};

/// An edge that was unusable for longer than this is a failure.
const FAIL_AFTER: Duration = Duration::from_secs(30);
/// An edge that was unusable for longer than this makes the process unready.
const UNREADY_AFTER: Duration = Duration::from_secs(10);
/// The store is written to every 3 s (its heartbeat): silence means that something hangs.
const STORE_SILENCE: Duration = Duration::from_secs(10);
/// The loop stands still where it has not turned for this long, or for [`SLOW_BLOCKS`] block times if that is longer.
const STILL_AFTER: Duration = Duration::from_mins(1);
/// A head, a provider or the loop may be this many block times late.
const SLOW_BLOCKS: u32 = 10;
/// Up to this many blocks behind is the normal case of the realtime track (contract §4).
const USUAL_LAG: u64 = 5;
/// A token list that missed this many refreshes is stale.
const MISSED_REFRESHES: u32 = 3;

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing to see.
    Ok,
    /// Odd, nothing lost.
    Degraded,
    /// Nothing is delivered until a server comes back or someone acts.
    Fail,
}

/// The body of `/health`. Members may be added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the members are documented in the README, for those who read them
pub struct Health {
    pub status: Status,
    pub reasons: Vec<String>,
    pub chain_id: u64,
    pub service: String,
    pub version: &'static str,
    pub uptime_seconds: u64,
    pub head: Option<Head>,
    pub deliverable_head: Option<u64>,
    pub processed: Option<i64>,
    pub watermark: Option<i64>,
    /// Deliverable blocks above the highest delivered one, less the one that is next (contract §4).
    pub gap: Option<u64>,
    pub lag_blocks: Option<u64>,
    pub historical: Option<HistoricalHealth>,
    pub gaps: u64,
    pub providers: Vec<ProviderHealth>,
    pub redis: StoreHealth,
    pub mongodb: TokensHealth,
    pub sinks: Vec<SinkHealth>,
    pub reorgs: u64,
    pub dead_letters: u64,
}

/// The newest block that the providers tell of.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // as above
pub struct Head {
    pub number: u64,
    pub hash: B256,
    pub age_seconds: u64,
}

/// The lowest gap, which the historical track is filling, and how long all of them will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // as above
pub struct HistoricalHealth {
    pub from: u64,
    pub to: u64,
    /// The last block that the historical track delivered, as in `historical_processed_block`.
    pub processed: Option<u64>,
    /// Missing blocks of all gaps.
    pub remaining: u64,
    pub blocks_per_second: Option<f64>,
    pub eta_seconds: Option<u64>,
}

/// What is known of one provider.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // as above
pub struct ProviderHealth {
    pub name: String,
    pub state: EdgeState,
    pub head_lag: Option<u64>,
    pub errors: u64,
}

/// The state store; the member is called `redis` whichever it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // as above
pub struct StoreHealth {
    pub store: &'static str,
    pub state: EdgeState,
    pub errors: u64,
}

/// The token list; `null` members where token filtering is off.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // as above
pub struct TokensHealth {
    pub state: &'static str,
    pub tokens: Option<usize>,
    pub age_seconds: Option<u64>,
}

/// What is known of one sink.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // as above
pub struct SinkHealth {
    pub name: String,
    pub state: EdgeState,
    pub queued: usize,
    pub failed: u64,
}

/// Whether an edge is usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EdgeState {
    /// It answered when it was last asked.
    Ok,
    /// It failed when it was last asked.
    Failing,
    /// It should have been heard of long ago.
    Silent,
    /// It was not asked yet.
    Unknown,
}

/// One line of `/readyz?verbose`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Why it is not as it should be.
    pub outcome: Result<(), String>,
}

pub(super) fn judge(profile: &Profile, facts: &Facts, now: Instant) -> Health {
    let (failures, oddities) = (failures(profile, facts, now), oddities(profile, facts, now));
    let status = match (failures.is_empty(), oddities.is_empty()) {
        (false, _) => Status::Fail,
        (true, false) => Status::Degraded,
        (true, true) => Status::Ok,
    };
    let progress = facts.progress;
    Health {
        status,
        reasons: failures.into_iter().chain(oddities).collect(),
        chain_id: profile.chain_id,
        service: profile.service.clone(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: now.duration_since(facts.born).as_secs(),
        head: facts.head.map(|head| Head {
            number: head.header.number,
            hash: head.header.hash,
            age_seconds: head_age(facts, now).unwrap_or_default().as_secs(),
        }),
        deliverable_head: facts.deliverable,
        processed: progress.map(|progress| progress.tip),
        watermark: progress.map(|progress| progress.watermark),
        gap: gap(facts),
        lag_blocks: facts.lag(),
        historical: historical(facts, now),
        gaps: progress.map_or(0, |progress| progress.gaps),
        providers: providers(profile, facts, now),
        redis: store(profile, facts, now),
        mongodb: tokens(profile, facts, now),
        sinks: sinks(profile, facts, now),
        reorgs: facts.reorgs,
        dead_letters: facts.dead_letters,
    }
}

pub(super) fn readiness(profile: &Profile, facts: &Facts, now: Instant) -> Vec<Check> {
    let check = |name: &str, outcome: Result<(), String>| Check { name: name.to_owned(), outcome };
    let flag = |wrong: bool, why: &str| if wrong { Err(why.to_owned()) } else { Ok(()) };
    let mut checks = vec![
        check("started", flag(!facts.started, "starting")),
        check("draining", flag(facts.draining, "stopping: no new work is taken")),
        check("delivering", facts.halted.clone().map_or(Ok(()), Err)),
    ];
    let mut providers = Vec::new();
    for (edge, known) in &facts.edges {
        let outcome = reachable(profile, edge, known, now);
        match edge {
            Edge::Store => checks.push(check("state store", outcome)),
            Edge::Sink(name) => checks.push(check(&format!("sink {name}"), outcome)),
            Edge::Provider(name) => providers.push(outcome.map_err(|why| format!("{name} {why}"))),
            Edge::Tokens => {}
        }
    }
    let one_usable = if providers.iter().any(Result::is_ok) {
        Ok(())
    } else {
        Err(providers.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; "))
    };
    checks.push(check("providers", one_usable));
    let missing = profile.token_refresh.is_some() && facts.tokens.is_none();
    checks.push(check("tokens", flag(missing, "the token list is not loaded yet")));
    checks
}

pub(super) fn alive(profile: &Profile, facts: &Facts, now: Instant) -> Result<(), String> {
    let limit = STILL_AFTER.max(profile.block_time * SLOW_BLOCKS);
    // Before the first round there is nothing that could stand still.
    let still = facts.beat.map_or(Duration::ZERO, |beat| now.duration_since(beat));
    if still <= limit { Ok(()) } else { Err(format!("the loop has stood still for {} s", still.as_secs())) }
}

// ── reasons ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Reasons for `fail`.
fn failures(profile: &Profile, facts: &Facts, now: Instant) -> Vec<String> {
    let mut reasons = Vec::new();
    reasons.extend(facts.halted.iter().map(|why| format!("nothing is delivered until a restart: {why}")));
    for (edge, known) in &facts.edges {
        let down = unusable(profile, edge, known, now).filter(|down| *down > FAIL_AFTER);
        match (edge, down) {
            (Edge::Store, Some(down)) => reasons.push(sentence("the state store is unusable", down, known)),
            (Edge::Sink(name), Some(down)) => {
                reasons.push(sentence(&format!("the sink {name} is unusable"), down, known));
            }
            _ => {}
        }
    }
    reasons.extend(no_provider(profile, facts, now));
    if profile.token_refresh.is_some() && facts.tokens.is_none() {
        let why = edge(facts, &Edge::Tokens).map_or("", |known| known.reason.as_str());
        let colon = if why.is_empty() { "" } else { ": " };
        reasons.push(format!("there is no token list, and nothing is delivered without one{colon}{why}"));
    }
    reasons
}

fn no_provider(profile: &Profile, facts: &Facts, now: Instant) -> Option<String> {
    let providers = facts.edges.iter().filter(|(edge, _)| matches!(edge, Edge::Provider(_)));
    let mut shortest: Option<(Duration, &EdgeFacts)> = None;
    for (edge, known) in providers {
        let down = unusable(profile, edge, known, now)?;
        if shortest.is_none_or(|(least, _)| down < least) {
            shortest = Some((down, known));
        }
    }
    let (down, known) = shortest?;
    (down > FAIL_AFTER).then(|| sentence("no answer from any provider", down, known))
}

/// Reasons for `degraded`.
fn oddities(profile: &Profile, facts: &Facts, now: Instant) -> Vec<String> {
    let mut reasons = Vec::new();
    if !facts.started {
        reasons.push("starting".to_owned());
    }
    if facts.draining {
        reasons.push("stopping".to_owned());
    }
    for (edge, known) in &facts.edges {
        let Some(down) = unusable(profile, edge, known, now) else { continue };
        match edge {
            Edge::Provider(name) => {
                reasons.push(sentence(&format!("the provider {name} does not answer"), down, known));
            }
            // Longer than that is a failure, told there.
            Edge::Store if down <= FAIL_AFTER => reasons.push(sentence("the state store does not answer", down, known)),
            Edge::Sink(name) if down <= FAIL_AFTER => {
                reasons.push(sentence(&format!("the sink {name} takes no messages"), down, known));
            }
            _ => {}
        }
    }
    reasons.extend(old_head(profile, facts, now));
    reasons.extend(behind(facts));
    reasons.extend(old_tokens(profile, facts, now));
    reasons.extend(facts.notes.values().cloned());
    reasons
}

fn old_head(profile: &Profile, facts: &Facts, now: Instant) -> Option<String> {
    let age = head_age(facts, now)?;
    let expected = profile.block_time;
    (age > STILL_AFTER.max(expected * SLOW_BLOCKS)).then(|| {
        let (age, expected) = (age.as_secs(), humantime::format_duration(expected));
        format!(
            "the newest block is {age} s old, and one is expected every {expected}: the chain has halted, the \
                 providers are stuck, or this machine's clock is wrong"
        )
    })
}

fn behind(facts: &Facts) -> Option<String> {
    let progress = facts.progress?;
    if let Some(lowest) = progress.lowest_gap {
        let (missing, gaps) = (progress.missing, progress.gaps);
        return Some(format!("backfill: {missing} blocks missing in {gaps} gaps, the lowest is {lowest}"));
    }
    let lag = facts.lag().filter(|lag| *lag > USUAL_LAG)?;
    Some(format!("{lag} blocks behind the head"))
}

fn old_tokens(profile: &Profile, facts: &Facts, now: Instant) -> Option<String> {
    let (refresh, (_, loaded)) = (profile.token_refresh?, facts.tokens?);
    let failing = edge(facts, &Edge::Tokens).filter(|known| known.failing_since.is_some());
    let age = now.duration_since(loaded);
    if failing.is_none() && age <= refresh * MISSED_REFRESHES {
        return None;
    }
    let why = failing.map_or_else(String::new, |known| format!(": {}", known.reason));
    Some(format!("the token list is {} s old and could not be read again; it stays in use{why}", age.as_secs()))
}

fn sentence(what: &str, down: Duration, known: &EdgeFacts) -> String {
    let why = if known.failing_since.is_some() { format!(": {}", known.reason) } else { String::new() };
    format!("{what} for {} s{why}", down.as_secs())
}

// ── facts in other words ─────────────────────────────────────────────────────────────────────────────────────────────

/// How long an edge has been of no use; `None` while it is, and before it was asked.
fn unusable(profile: &Profile, edge: &Edge, known: &EdgeFacts, now: Instant) -> Option<Duration> {
    if let Some(since) = known.failing_since {
        return Some(now.duration_since(since));
    }
    let silence = now.duration_since(known.answered?);
    (silence > silence_limit(profile, edge)?).then_some(silence)
}

/// How long nothing may be heard of an edge that answered. A sink is only asked when there is something to send.
fn silence_limit(profile: &Profile, edge: &Edge) -> Option<Duration> {
    match edge {
        Edge::Store => Some(STORE_SILENCE),
        Edge::Provider(_) => Some(FAIL_AFTER.max(profile.block_time * SLOW_BLOCKS)),
        Edge::Sink(_) | Edge::Tokens => None,
    }
}

fn reachable(profile: &Profile, edge: &Edge, known: &EdgeFacts, now: Instant) -> Result<(), String> {
    if known.answered.is_none() {
        return Err(if known.reason.is_empty() { "not reached yet".to_owned() } else { known.reason.clone() });
    }
    match unusable(profile, edge, known, now) {
        Some(down) if down > UNREADY_AFTER => Err(sentence("unusable", down, known)),
        _ => Ok(()),
    }
}

fn state(profile: &Profile, edge: &Edge, known: &EdgeFacts, now: Instant) -> EdgeState {
    match (known.failing_since, known.answered, unusable(profile, edge, known, now)) {
        (Some(_), _, _) => EdgeState::Failing,
        (None, None, _) => EdgeState::Unknown,
        (None, Some(_), Some(_)) => EdgeState::Silent,
        (None, Some(_), None) => EdgeState::Ok,
    }
}

fn edge<'a>(facts: &'a Facts, edge: &Edge) -> Option<&'a EdgeFacts> {
    facts.edges.iter().find(|(known, _)| known == edge).map(|(_, known)| known)
}

fn head_age(facts: &Facts, now: Instant) -> Option<Duration> {
    facts.head.map(|head| head.age + now.duration_since(head.at))
}

/// `gap = head - realtime_processed_block - 1`, where head is the highest deliverable block (contract §4).
fn gap(facts: &Facts) -> Option<u64> {
    let deliverable = i64::try_from(facts.deliverable?).ok()?;
    u64::try_from((deliverable - facts.progress?.tip - 1).max(0)).ok()
}

fn historical(facts: &Facts, now: Instant) -> Option<HistoricalHealth> {
    let progress = facts.progress?;
    let lowest = progress.lowest_gap?;
    let rate = facts.historical.rate(now);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // an estimate; the conversion saturates
    let eta = rate.filter(|rate| *rate > 0.0).map(|rate| (progress.missing as f64 / rate).ceil() as u64);
    Some(HistoricalHealth {
        from: lowest.from,
        to: lowest.to,
        processed: facts.historical.processed,
        remaining: progress.missing,
        blocks_per_second: rate.map(|rate| (rate * 10.0).round() / 10.0),
        eta_seconds: eta,
    })
}

fn providers(profile: &Profile, facts: &Facts, now: Instant) -> Vec<ProviderHealth> {
    let one = |(edge, known): &(Edge, EdgeFacts)| {
        let Edge::Provider(name) = edge else { return None };
        let head = facts.provider_heads.get(name).zip(facts.head);
        Some(ProviderHealth {
            name: name.clone(),
            state: state(profile, edge, known, now),
            head_lag: head.map(|(own, best)| best.header.number.saturating_sub(*own)),
            errors: known.errors,
        })
    };
    facts.edges.iter().filter_map(one).collect()
}

fn sinks(profile: &Profile, facts: &Facts, now: Instant) -> Vec<SinkHealth> {
    let one = |(edge, known): &(Edge, EdgeFacts)| {
        let Edge::Sink(name) = edge else { return None };
        Some(SinkHealth {
            name: name.clone(),
            state: state(profile, edge, known, now),
            queued: facts.queued.get(name).copied().unwrap_or_default(),
            failed: known.errors,
        })
    };
    facts.edges.iter().filter_map(one).collect()
}

fn store(profile: &Profile, facts: &Facts, now: Instant) -> StoreHealth {
    let known = edge(facts, &Edge::Store).cloned().unwrap_or_default();
    StoreHealth { store: profile.store, state: state(profile, &Edge::Store, &known, now), errors: known.errors }
}

fn tokens(profile: &Profile, facts: &Facts, now: Instant) -> TokensHealth {
    let is_stale = old_tokens(profile, facts, now).is_some();
    let state = match (profile.token_refresh, facts.tokens) {
        (None, _) => "off",
        (Some(_), None) => "missing",
        (Some(_), Some(_)) if is_stale => "stale",
        (Some(_), Some(_)) => "ok",
    };
    TokensHealth {
        state,
        tokens: facts.tokens.map(|(count, _)| count),
        age_seconds: facts.tokens.map(|(_, loaded)| now.duration_since(loaded).as_secs()),
    }
}
