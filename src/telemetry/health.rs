//! The body of `/health` (contract §9): the facts at one moment, in the words and the form that operators rely on.
//! What they amount to is judged in [`verdict`].

use alloy::primitives::B256;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    facts::{EdgeFacts, Facts},
    verdict::{self, EdgeState, Status},
    vitals::{Edge, Profile},
};

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
    /// Reorganisations of delivered blocks that this process unwound.
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
    /// How often it had another block somewhere than most of the others.
    pub disagreements: u64,
    /// Why others are asked instead; `null` where it serves.
    pub aside: Option<String>,
    /// Blocks that one request may name, as far as that was learned.
    pub blocks_per_request: Option<u64>,
    /// Addresses that one request may name; `null` where no limit is known.
    pub addresses_per_request: Option<usize>,
    /// Requests for history that it bears at once, as far as that was learned.
    pub parallel_requests: Option<usize>,
    /// Until when it asked to be left alone, seconds since the Unix epoch; `null` where it did not.
    pub waits_until: Option<u64>,
    /// What it said of late that is not understood, the oldest first; please report it.
    pub unknown_messages: Vec<String>,
}

/// The state store; the member is called `redis` whichever it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // as above
pub struct StoreHealth {
    pub store: &'static str,
    pub state: EdgeState,
    pub errors: u64,
    /// What makes acknowledged writes survive, in words.
    pub durability: Option<String>,
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

pub(super) fn body(profile: &Profile, facts: &Facts, now: Instant) -> Health {
    let (status, reasons) = verdict::status(profile, facts, now);
    let progress = facts.progress;
    Health {
        status,
        reasons,
        chain_id: profile.chain_id,
        service: profile.service.clone(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: now.duration_since(facts.born).as_secs(),
        head: facts.head.map(|head| Head {
            number: head.header.number,
            hash: head.header.hash,
            age_seconds: verdict::head_age(facts, now).unwrap_or_default().as_secs(),
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
        let behind = head.map(|(own, best)| best.header.number.saturating_sub(*own));
        let state = verdict::edge_state(profile, edge, known, now);
        let seen = facts.providers.get(name).cloned().unwrap_or_default();
        Some(ProviderHealth {
            name: name.clone(),
            state,
            // Heads of providers that are not asked are read now and then: at that moment it was so far behind.
            head_lag: seen.lag.filter(|_| state == EdgeState::Ok).or(behind),
            errors: known.errors,
            disagreements: seen.disagreements,
            aside: seen.aside,
            blocks_per_request: seen.blocks,
            addresses_per_request: seen.addresses,
            parallel_requests: seen.parallel,
            waits_until: seen.waits_until,
            unknown_messages: seen.unknown_messages,
        })
    };
    facts.edges.iter().filter_map(one).collect()
}

fn sinks(profile: &Profile, facts: &Facts, now: Instant) -> Vec<SinkHealth> {
    let one = |(edge, known): &(Edge, EdgeFacts)| {
        let Edge::Sink(name) = edge else { return None };
        Some(SinkHealth {
            name: name.clone(),
            state: verdict::edge_state(profile, edge, known, now),
            queued: facts.queued.get(name).copied().unwrap_or_default(),
            failed: known.errors,
        })
    };
    facts.judged().iter().filter_map(one).collect()
}

fn store(profile: &Profile, facts: &Facts, now: Instant) -> StoreHealth {
    let known = facts.store();
    StoreHealth {
        store: profile.store,
        state: verdict::edge_state(profile, &Edge::Store, &known, now),
        errors: known.errors,
        durability: facts.durability.clone(),
    }
}

fn tokens(profile: &Profile, facts: &Facts, now: Instant) -> TokensHealth {
    let is_stale = verdict::old_tokens(profile, facts, now).is_some();
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
