//! Judges the facts: ok, degraded or fail, ready or not, alive or not (contract §9). Pure: facts and a moment in, a
//! verdict out.
//!
//! `fail` wakes someone: nothing is delivered and will not be before a server comes back or a person acts. `degraded`
//! is odd, and nothing is lost. Each verdict comes with its reasons, as sentences for the operator who is woken.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{
    facts::{EdgeFacts, Facts},
    vitals::{Edge, Profile},
};
use crate::domain::REALTIME_GAP;

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

pub(super) fn readiness(profile: &Profile, facts: &Facts, now: Instant) -> Vec<Check> {
    let check = |name: &str, outcome: Result<(), String>| Check { name: name.to_owned(), outcome };
    let flag = |wrong: bool, why: &str| if wrong { Err(why.to_owned()) } else { Ok(()) };
    let mut checks = vec![
        check("started", flag(!facts.started, "starting")),
        check("draining", flag(facts.draining, "stopping: no new work is taken")),
        check("delivering", facts.halted.clone().map_or(Ok(()), Err)),
    ];
    let mut providers = Vec::new();
    for (edge, known) in facts.judged() {
        let outcome = reachable(profile, &edge, &known, now);
        match edge {
            Edge::Store => checks.push(check(profile.store, outcome)),
            Edge::Sink(name) => checks.push(check(&format!("sink {name}"), outcome)),
            Edge::Provider(name) => providers.push(outcome.map_err(|why| format!("{name} {why}"))),
            Edge::Tokens | Edge::Journal | Edge::Probe(_) => {}
        }
    }
    checks.push(check("provider", any_of(providers)));
    let missing = profile.token_refresh.is_some() && facts.tokens.is_none();
    checks.push(check("tokens", flag(missing, "the token list is not loaded yet")));
    checks
}

/// Ok where one is, else all the reasons.
fn any_of(outcomes: Vec<Result<(), String>>) -> Result<(), String> {
    if outcomes.iter().any(Result::is_ok) {
        return Ok(());
    }
    Err(outcomes.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; "))
}

pub(super) fn alive(profile: &Profile, facts: &Facts, now: Instant) -> Result<(), String> {
    let limit = STILL_AFTER.max(profile.block_time * SLOW_BLOCKS);
    // Before the first round there is nothing that could stand still.
    let still = facts.beat.map_or(Duration::ZERO, |beat| now.duration_since(beat));
    if still <= limit { Ok(()) } else { Err(format!("the loop has stood still for {} s", still.as_secs())) }
}

/// `fail`, `degraded` or `ok`, and why; the reasons of a failure come first.
pub(super) fn status(profile: &Profile, facts: &Facts, now: Instant) -> (Status, Vec<String>) {
    let (failures, oddities) = (failures(profile, facts, now), oddities(profile, facts, now));
    let status = match (failures.is_empty(), oddities.is_empty()) {
        (false, _) => Status::Fail,
        (true, false) => Status::Degraded,
        (true, true) => Status::Ok,
    };
    (status, failures.into_iter().chain(oddities).collect())
}

// ── reasons ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Reasons for `fail`.
fn failures(profile: &Profile, facts: &Facts, now: Instant) -> Vec<String> {
    let mut reasons = Vec::new();
    reasons.extend(facts.halted.iter().map(|why| format!("nothing is delivered: {why}")));
    for (edge, known) in &facts.judged() {
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
        let why = facts.known(&Edge::Tokens).reason;
        let colon = if why.is_empty() { "" } else { ": " };
        reasons.push(format!("there is no token list, and nothing is delivered without one{colon}{why}"));
    }
    reasons
}

/// A reason where not one provider is usable; for as long as the one that was so last.
fn no_provider(profile: &Profile, facts: &Facts, now: Instant) -> Option<String> {
    let mut shortest: Option<(Duration, &EdgeFacts)> = None;
    for (edge, known) in facts.edges.iter().filter(|(edge, _)| matches!(edge, Edge::Provider(_))) {
        // One that was never heard of is of no use since the start.
        let unheard = known.answered.is_none() && known.failing_since.is_none();
        let down = if unheard { now.duration_since(facts.born) } else { unusable(profile, edge, known, now)? };
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
    for (edge, known) in &facts.judged() {
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
    reasons.extend(ahead(facts));
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
        return Some(format!("backfill: missing blocks {missing}, gaps {gaps}, the lowest {lowest}"));
    }
    let lag = facts.lag().filter(|lag| *lag > REALTIME_GAP)?;
    Some(format!("{lag} blocks behind the head"))
}

/// A view that was set too high, a skip too far or a provider that fell back: nothing is delivered, and nothing fails.
fn ahead(facts: &Facts) -> Option<String> {
    let (tip, head) = (u64::try_from(facts.progress?.tip).ok()?, facts.head?.header.number);
    (tip > head.saturating_add(REALTIME_GAP)).then(|| {
        format!(
            "the state stands at block {tip}, but the newest block of the providers is {head}: nothing is delivered \
             until the chain is above it, or after `chaintap rewind`"
        )
    })
}

pub(super) fn old_tokens(profile: &Profile, facts: &Facts, now: Instant) -> Option<String> {
    let (refresh, (_, loaded)) = (profile.token_refresh?, facts.tokens?);
    let failing = Some(facts.known(&Edge::Tokens)).filter(|known| known.failing_since.is_some());
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
    match known.failing_since {
        Some(since) => Some(now.duration_since(since)),
        None => silent(profile, edge, known, now),
    }
}

/// For how long nothing was heard of an edge that answered, where that is too long.
fn silent(profile: &Profile, edge: &Edge, known: &EdgeFacts, now: Instant) -> Option<Duration> {
    let silence = now.duration_since(known.answered?);
    (silence > silence_limit(profile, edge)?).then_some(silence)
}

/// How long nothing may be heard of an edge that answered. A sink is only asked when there is something to send.
fn silence_limit(profile: &Profile, edge: &Edge) -> Option<Duration> {
    match edge {
        Edge::Store => Some(STORE_SILENCE),
        Edge::Provider(_) => Some(FAIL_AFTER.max(profile.block_time * SLOW_BLOCKS)),
        Edge::Journal | Edge::Sink(_) | Edge::Probe(_) | Edge::Tokens => None,
    }
}

fn reachable(profile: &Profile, edge: &Edge, known: &EdgeFacts, now: Instant) -> Result<(), String> {
    if known.answered.is_none() {
        return Err(if known.reason.is_empty() { "not reached yet".to_owned() } else { known.reason.clone() });
    }
    let mut down = unusable(profile, edge, known, now);
    if matches!(edge, Edge::Provider(_)) {
        // A time-out may be the first that is heard after a silence: it does not make the provider reachable again.
        down = down.max(silent(profile, edge, known, now));
    }
    match down {
        Some(down) if down > UNREADY_AFTER => Err(sentence("unusable", down, known)),
        _ => Ok(()),
    }
}

pub(super) fn edge_state(profile: &Profile, edge: &Edge, known: &EdgeFacts, now: Instant) -> EdgeState {
    match (known.failing_since, known.answered, unusable(profile, edge, known, now)) {
        (Some(_), _, _) => EdgeState::Failing,
        (None, None, _) => EdgeState::Unknown,
        (None, Some(_), Some(_)) => EdgeState::Silent,
        (None, Some(_), None) => EdgeState::Ok,
    }
}

pub(super) fn head_age(facts: &Facts, now: Instant) -> Option<Duration> {
    facts.head.map(|head| head.age + now.duration_since(head.at))
}
