//! What providers say when they do not serve, one row a message, and what each of them means.
//!
//! Vendors reuse codes (-32005 is a range limit at one and a rate limit at another), so their words decide. Lag and rate
//! stand before range, or "limit" would match everything; words that vendors use in more than one sense stand in a table
//! of their own, which is read last.
//!
//! **A new message is one new line**: its vendor, its [`Meaning`], a needle, and the message as it was seen. A needle is
//! lower case; `*` in it is any text, `{n}` the number to read. The line is its own test: the message must be read by this
//! row and no other, and where a number stands behind `=>`, as that number. `cargo test --lib words` runs them.

use serde_json::Value;

use crate::domain::{BlockRange, MAX_BLOCK_NUMBER};

/// Characters of a text that are looked at: vendors say what is wrong at the beginning.
const MAX_CHARS: usize = 4_000;

/// What a message tells, by what the caller should do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    /// This endpoint will never serve the request.
    Fatal,
    /// The node has dropped blocks this old, or keeps them from this plan: ask another one, now and for others as old.
    Pruned,
    /// The node lacks the block: ask later or elsewhere, never for less.
    Behind,
    /// Fewer requests, or another provider; never for less.
    Throttled,
    /// Fewer addresses or topics a request; `{n}` is the most of them.
    Addresses,
    /// Fewer blocks a request, whatever is in them; `{n}` is the most of them. Some vendors mean `to - from`, one more
    /// block; so many blocks are right at all of them.
    Blocks,
    /// Fewer results, bytes, or less work: these blocks are full, others may not be.
    Density,
    /// It passes, or it was too much: elsewhere, or for less.
    Unclear,
    /// It passes.
    Transient,
}

/// A message that was understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Understood {
    /// What it tells.
    pub(super) meaning: Meaning,
    /// The number in it, where the row reads one that can be true; 1 to 2^53.
    pub(super) number: Option<u64>,
}

struct Row {
    needle: &'static str,
    meaning: Meaning,
}

macro_rules! rows {
    ($(#[$doc:meta])* $table:ident, tests $tests:ident;
     $($name:ident: $meaning:ident $needle:literal, $seen:literal $(=> $number:literal)?;)+) => {
        $(#[$doc])*
        const $table: &[Row] = &[$(Row { needle: $needle, meaning: Meaning::$meaning }),+];

        #[cfg(test)]
        mod $tests {
            $(#[test]
            fn $name() {
                super::tests::its_own_row_reads($seen, $needle, None$(.or(Some($number)))?);
            })+
        }
    };
}

rows! {
    /// Words with one sense. Messages as seen at vendors, in their sources and in public issues, 2024 to 2026.
    TABLE, tests each_vendor_is_understood;

    // ── this endpoint will not serve it ──────────────────────────────────────────────────────────────────────────────
    geth_no_method: Fatal "the method * does not exist", "the method eth_getLogs does not exist/is not available";
    pending: Fatal "pending logs are not supported", "pending logs are not supported";
    geth_params: Fatal "invalid block range params", "invalid block range params";

    // ── the node has dropped what is so old ──────────────────────────────────────────────────────────────────────────
    publicnode_archive: Pruned "archive requests require", "Archive requests require a personal token";
    pruned_eip_4444: Pruned "pruned history unavailable", "pruned history unavailable"; // reth, too
    pruned: Pruned "history has been pruned", "history has been pruned for this block";
    erigon_pruned: Pruned "not available due to pruning", "old data not available due to pruning";
    geth_state: Pruned "missing trie node", "missing trie node 0x1a2b (path ) state 0x3c4d is not available";
    tendermint_dropped: Pruned "lowest height is", "height 12 is not available, lowest height is 20";

    // ── the node lacks the block ─────────────────────────────────────────────────────────────────────────────────────
    reth_head: Behind "beyond current head block: requested", "block range extends beyond current head block: requested 120, head 100";
    geth_head: Behind "beyond current head", "block range extends beyond current head block";
    erigon_head: Behind "beyond latest executed block", "requested block range [1, 2] is beyond latest executed block 1 (node is still syncing)";
    syncing: Behind "still syncing", "the node is still syncing";
    avalanche_head: Behind "after last accepted block", "requested from block 12 after last accepted block 10";
    avalanche_final: Behind "cannot query unfinalized", "cannot query unfinalized data";
    besu_block: Behind "unknown block", "Unknown block";
    geth_header: Behind "header not found", "header not found";
    block_not_found: Behind "block not found", "Block not found";
    tendermint_ahead: Behind "height * must be less than or equal", "height 12 must be less than or equal to the current blockchain height 10";
    tendermint_absent: Behind "height * is not available", "height 12 is not available";
    ahead_of_latest: Behind "greater than latest", "block number is greater than latest block";
    not_canonical: Behind "not currently canonical", "hash 0xabcd is not currently canonical";
    drpc_blocks: Behind "invalid block range", "invalid block range"; // Hyperliquid, too: blocks are missing there
    drpc_chain: Behind "chainexception: unexpected error (code=40000)", "ChainException: Unexpected error (code=40000)";
    filecoin_null_round: Behind "requested epoch was a null round", "requested epoch was a null round (12)";
    anvil_head: Behind "blockoutofrange", "BlockOutOfRangeError: block height is 5 but requested was 10000";

    // ── fewer requests, or another plan ──────────────────────────────────────────────────────────────────────────────
    infura_daily: Throttled "daily request count exceeded", "daily request count exceeded, request rate limited";
    infura_second: Throttled "request rate exceeded", "project ID request rate exceeded";
    alchemy_throughput: Throttled "throughput", "Your app has exceeded its throughput limit";
    alchemy_units: Throttled "compute units", "Your app has exceeded its compute units per second capacity";
    alchemy_month: Throttled "monthly capacity limit", "Monthly capacity limit exceeded. Visit https://dashboard.alchemyapi.io/settings/billing";
    quicknode_second: Throttled "request limit reached", "50/second request limit reached - reduce calls per second or upgrade your account at quicknode.com";
    llama_cloudflare: Throttled "code: 1015", "error code: 1015";
    quota: Throttled "exceeded the quota", "Exceeded the quota usage";
    load: Throttled "under too much load", "The server is under too much load";
    no_server: Throttled "no server available", "No server available";
    limited_to: Throttled "requests limited to", "requests limited to 10/sec";
    free_tier_used_up: Throttled "reached the free tier", "You have reached the free tier limit";
    plan_limit: Throttled "limit for your current plan", "You have reached the limit for your current plan";
    rate_limit: Throttled "rate limit", "rate limit exceeded";
    rate_exceeded: Throttled "rate exceeded", "Rate exceeded";
    too_many_requests: Throttled "too many requests", "Too many requests";

    // ── fewer addresses or topics ────────────────────────────────────────────────────────────────────────────────────
    geth_positions: Addresses "exceed max addresses or topics", "exceed max addresses or topics per search position";
    geth_topics: Addresses "exceed max topics", "exceed max topics";
    publicnode_addresses: Addresses "specify less number of address", "Please, specify less number of addresses";
    infura_filters: Addresses "query contains * filters. the current limit is {n}", "This query contains 5006 filters. The current limit is 5000." => 5_000;
    publicnode_body: Addresses "request body size limit reached", "Request body size limit reached";
    erpc_addresses: Addresses "exceeded max allowed addresses", "getLogs request exceeded max allowed addresses";
    erpc_topics: Addresses "exceeded max allowed topics", "getLogs request exceeded max allowed topics";

    // ── fewer results, bytes, or less time ───────────────────────────────────────────────────────────────────────────
    alchemy_paid: Density "log response size exceeded", "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range";
    infura_results: Density "query returned more than * results", "query returned more than 10000 results. Try with this block range [0x1, 0x2]."; // zkSync, too
    tenderly_results: Density "more than * results", "more than 20000 results";
    hyperrpc_logs: Density "more than * logs returned", "More than 50000 logs returned";
    arbitrum_logs: Density "logs matched by query exceeds limit", "logs matched by query exceeds limit of 10000";
    reth_results: Density "query exceeds max results *, retry with", "query exceeds max results 20000, retry with the range 1-2";
    ankr_results: Density "query exceeds max results", "query exceeds max results 20000"; // Llama, too
    nethermind_logs: Density "too many logs requested", "Too many logs requested. Max logs per response is 20000.";
    zksync_advice: Density "try with this block range", "Try with this block range [0x1, 0x2]";
    onerpc_bytes: Density "response size should not greater than", "response size should not greater than 10000000 bytes";
    optimism_bytes: Density "backend response too large", "backend response too large";
    geth_bytes: Density "response too large", "response too large"; // of a batch; code -32003
    jsonrpsee_bytes: Density "response is too big", "Response is too big"; // reth; and our own limit of size
    jsonrpsee_limit: Density "exceeded max limit of", "Exceeded max limit of 167772160";
    client_bytes: Density "response body exceeded the size limit", "HTTP response body exceeded the size limit";
    gateway_timeout: Density "408 request timed out", "408 Request Timed Out";
    blockdaemon_timeout: Density "request timed out", "request timed out"; // Linkpool, Chainstack; code -32002
    query_timeout: Density "query timeout exceeded", "Query timeout exceeded. Consider reducing your block range.";
    geth_timeout: Density "context deadline exceeded", "context deadline exceeded";

    // ── fewer blocks, whatever is in them ────────────────────────────────────────────────────────────────────────────
    alchemy_free_later: Blocks "under the free tier plan, * up to a {n} block range", "Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range. Based on your parameters, this block range should work: [0x1, 0xa]." => 10;
    alchemy_free: Blocks "up to a {n} block range", "You can make eth_getLogs requests with up to a 500 block range. Based on your parameters, this block range should work: [0x1, 0x1f4]" => 500; // Aurora, too
    infura_2026: Blocks "range * exceeds limit of {n}", "range 20000 exceeds limit of 10000" => 10_000;
    quicknode_free: Blocks "limited to a {n} range, upgrade", "eth_getLogs is limited to a 5 range, upgrade from discover plan at https://dashboard.quicknode.com/billing/plan to increase the limit" => 5;
    quicknode: Blocks "limited to a {n} range", "eth_getLogs is limited to a 10,000 range" => 10_000; // Blast, too
    onerpc: Blocks "limited to a {n} blocks range", "eth_getLogs is limited to a 1000 blocks range" => 1_000;
    blockpi: Blocks "limited to {n} block range", "eth_getLogs is limited to 1024 block range" => 1_024;
    blast_plan: Blocks "exceeds the range allowed for your plan (* > {n})", "exceeds the range allowed for your plan (5000 > 3000)" => 3_000;
    moonriver: Blocks "block range is too wide (maximum {n})", "block range is too wide (maximum 1024)" => 1_024;
    ankr: Blocks "block range is too wide", "block range is too wide";
    ankr_tac: Blocks "blocks distance: {n}", "maximum [from, to] blocks distance: 10000" => 10_000;
    drpc_free_tier: Blocks "ranges over {n} blocks are not supported on freetier", "ranges over 10000 blocks are not supported on freetier" => 10_000;
    drpc_free_plan: Blocks "ranges over {n} blocks are not supported", "ranges over 10000 blocks are not supported on free plan" => 10_000;
    avalanche: Blocks "too many blocks from * to *, maximum is set to {n}", "requested too many blocks from 1 to 5000, maximum is set to 2048" => 2_048; // dRPC, too
    pocket: Blocks "block range exceeds server limit, narrow your filter: {n}", "query block range exceeds server limit, narrow your filter: 1000" => 1_000;
    chainstack: Blocks "block range limit exceeded", "Block range limit exceeded.";
    cloudflare: Blocks "max range: {n}", "Max range: 800" => 800;
    coinbase: Blocks "limit the query to at most {n} blocks", "please limit the query to at most 1000 blocks" => 1_000;
    sei: Blocks "block range too large (*), maximum allowed is {n} blocks", "block range too large (2000), maximum allowed is 1000 blocks" => 1_000;
    base: Blocks "block range too large", "block range too large"; // Monad, too
    optimism: Blocks "block range is too large", "Block range is too large";
    publicnode: Blocks "exceed maximum block range: {n}", "exceed maximum block range: 50000" => 50_000; // bor, bsc, too
    tron: Blocks "exceed max block range: {n}", "exceed max block range: 5000" => 5_000;
    thirdweb: Blocks "number of requested blocks is {n}", "Maximum allowed number of requested blocks is 1000" => 1_000;
    merkle: Blocks "range is too large, max is {n} blocks", "eth_getLogs range is too large, max is 1k blocks" => 1_000;
    merkle_10k: Blocks "range is too large, max is {n}", "eth_getLogs range is too large, max is 10k" => 10_000;
    reth: Blocks "query exceeds max block range {n}", "query exceeds max block range 100000" => 100_000; // Hyperliquid, too
    simplyvc: Blocks "too wide blocks range, the limit is {n}", "too wide blocks range, the limit is 2000" => 2_000;
    valtitude: Blocks "allowed block range threshold exceeded", "allowed block range threshold exceeded";
    erpc_threshold: Blocks "range threshold exceeded", "range threshold exceeded";
    swell: Blocks "block range greater than {n} max", "block range greater than 1000 max" => 1_000;
    somnia: Blocks "block range exceeds {n}", "block range exceeds 1000" => 1_000;
    harmony: Blocks "query must be smaller than size {n}", "query must be smaller than size 1024" => 1_024;
    nethermind: Blocks "block range * exceeds the maximum of {n} blocks", "Block range 20001 exceeds the maximum of 10000 blocks per logs request" => 10_000;
    besu: Blocks "exceeds maximum rpc range limit", "Requested range exceeds maximum RPC range limit";
}

rows! {
    /// Words with more than one sense, or found in messages of which they are not the point: "upgrade at …/billing" ends
    /// refusals of a range, too, and eRPC puts "exceeded max allowed range" before the vendor's own words. Where they
    /// leave the choice, the one that is forgotten sooner is taken: of results rather than of blocks.
    VAGUE, tests each_vague_word_is_understood;

    max_block_range: Blocks "max block range", "over the max block range";
    maximum_block_range: Blocks "maximum block range", "over the maximum block range";
    range_limit_exceeded: Blocks "range limit exceeded", "getLogs range limit exceeded";
    exceeds_the_range: Blocks "exceeds the range", "the query exceeds the range";
    range_is_too_large: Blocks "range is too large", "the range is too large";
    requested_range_too_large: Blocks "range too large", "requested range too large"; // eRPC
    too_large_max_is: Blocks "too large, max is {n}", "too large, max is 100 blocks" => 100;
    logs_over_more: Blocks "logs over more", "cannot query logs over more than 100 blocks";
    limit_the_query_to: Blocks "limit the query to", "limit the query to fewer blocks";
    get_logs_is_limited: Blocks "eth_getlogs is limited", "eth_getLogs is limited here";
    erpc_range: Blocks "exceeded max allowed range", "getLogs request exceeded max allowed range";
    erpc: Density "exceeded max allowed", "getLogs request exceeded max allowed";
    returned_more_than: Density "returned more than", "the query returned more than is allowed";
    query_exceeds: Density "query exceeds", "the query exceeds limits";
    exceeds_limit_of: Density "exceeds limit of", "the result exceeds limit of 10000";
    max_results: Density "max results", "over the max results";
    too_many_results: Density "too many results", "too many results";
    too_many_logs: Density "too many logs", "too many logs";
    too_many_blocks: Density "too many blocks", "too many blocks";
    try_paginating: Density "try paginating", "try paginating";
    response_size: Density "response size", "over the response size";
    is_too_big: Density "is too big", "the answer is too big";
    block_range: Density "block range", "try another block range";
    blocks_range: Density "blocks range", "try another blocks range";

    has_exceeded: Throttled "has exceeded", "your project has exceeded its plan";
    limit_exceeded: Throttled "limit exceeded", "limit exceeded";
    billing: Throttled "/billing", "upgrade at https://dashboard.example/billing";

    base_outage: Unclear "no backend is currently healthy", "no backend is currently healthy to serve traffic"; // Ponder halves
    internal_error: Unclear "internal error", "Internal error"; // JSON-RPC's own words for code -32603
    internal_server_error: Transient "internal server error", "500 Internal Server Error";
    bad_gateway: Transient "bad gateway", "<title>502 Bad Gateway</title>";
    service_unavailable: Transient "service unavailable", "503 Service Unavailable";
    unavailable_for_now: Transient "temporarily unavailable", "503 Service Temporarily Unavailable";
    nginx_timeout: Transient "gateway time-out", "<title>504 Gateway Time-out</title>";
    gateway_is_slow: Transient "gateway timeout", "504 Gateway Timeout";
    cloudflare_origin: Transient "error code: 5", "error code: 522";
}

/// What these texts of one answer tell, the most telling first; `None` where no row has their words.
pub(super) fn read(texts: &[&str]) -> Option<Understood> {
    let (row, number) = row(texts)?;
    Some(Understood { meaning: row.meaning, number })
}

fn row(texts: &[&str]) -> Option<(&'static Row, Option<u64>)> {
    let of_text = |text: &&str| text.chars().take(MAX_CHARS).collect::<String>().to_lowercase();
    let texts: Vec<String> = texts.iter().map(of_text).collect();
    let in_table = |table: &'static [Row], text: &str| {
        table.iter().find_map(|row| found(row.needle, text).map(|found| (row, found.number)))
    };
    [TABLE, VAGUE].into_iter().find_map(|table| texts.iter().find_map(|text| in_table(table, text)))
}

/// A needle was found, and perhaps its number.
#[derive(Default)]
struct Found {
    number: Option<u64>,
}

fn found(needle: &str, text: &str) -> Option<Found> {
    let mut rest = text;
    let mut whole = Found::default();
    for piece in needle.split('*') {
        let (part, after) = piece_in(piece, rest)?;
        whole.number = whole.number.or(part.number);
        rest = after;
    }
    Some(whole)
}

/// Where a piece without `*` ends in the text.
fn piece_in<'t>(piece: &str, text: &'t str) -> Option<(Found, &'t str)> {
    let Some((before, behind)) = piece.split_once("{n}") else {
        return text.split_once(piece).map(|(_, after)| (Found::default(), after));
    };
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(before).filter(|_| !before.is_empty()) {
        let (number, beyond) = after.split_at(number_length(after));
        if let Some(end) = beyond.strip_prefix(behind).filter(|_| !number.is_empty()) {
            return Some((Found { number: amount(number) }, end));
        }
        rest = after;
    }
    None
}

/// How many bytes of the text are a number: `10,000`, `10000`, `1k`.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let is_separator = |at: usize| matches!(bytes.get(at), Some(b',' | b'.' | b'_'));
    let mut end = 0;
    while is_digit(end) || (end > 0 && is_separator(end) && is_digit(end + 1)) {
        end += 1;
    }
    let thousands = end > 0 && bytes.get(end) == Some(&b'k');
    end + usize::from(thousands && !bytes.get(end + 1).is_some_and(u8::is_ascii_alphanumeric))
}

/// The number, where one can believe it: 0 blocks and 10^30 say nothing.
fn amount(number: &str) -> Option<u64> {
    let digits: String = number.chars().filter(char::is_ascii_digit).collect();
    let times = if number.ends_with('k') { 1_000 } else { 1 };
    let amount = digits.parse::<u64>().ok()?.checked_mul(times)?;
    (1..=MAX_BLOCK_NUMBER).contains(&amount).then_some(amount)
}

/// The range that one of these texts suggests, the first of them that does. Nothing more is known of it than that it is
/// one: vendors suggest ranges that begin elsewhere, and the very range that they refused.
pub(super) fn suggested_range(texts: &[&str]) -> Option<BlockRange> {
    texts.iter().filter(|text| text.len() <= MAX_CHARS).find_map(|text| structured(text).or_else(|| in_prose(text)))
}

/// Infura's `data`: `{"from": "0x1", "to": "0x2", "limit": 10000}`.
fn structured(text: &str) -> Option<BlockRange> {
    let value: Value = serde_json::from_str(text).ok()?;
    let end = |name: &str| match value.get(name)? {
        Value::String(text) => height(text),
        Value::Number(number) => number.as_u64().filter(|number| *number <= MAX_BLOCK_NUMBER),
        _ => None,
    };
    BlockRange::new(end("from")?, end("to")?)
}

/// `[0x1, 0x2]`, or reth's `the range 1-2`.
fn in_prose(text: &str) -> Option<BlockRange> {
    let pair = |text: &str, separator| {
        let (from, to) = text.split_once(separator)?;
        BlockRange::new(height(from)?, height(to)?)
    };
    let bracketed = |part: &str| pair(part.split_once(']')?.0, ',');
    let dashed = |part: &str| pair(part.split(|c: char| !c.is_ascii_digit() && c != '-').next()?, '-');
    let brackets = text.split('[').skip(1).find_map(bracketed);
    brackets.or_else(|| text.split("the range ").skip(1).find_map(dashed))
}

fn height(text: &str) -> Option<u64> {
    let text = text.trim().trim_matches(['"', '\'']);
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16)).ok()?;
    (number <= MAX_BLOCK_NUMBER).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The row with this needle reads the message, before all others, and this number out of it.
    pub(super) fn its_own_row_reads(seen: &str, needle: &str, number: Option<u64>) {
        let (row, read) = row(&[seen]).expect("no row has these words");
        assert_eq!(row.needle, needle, "another row takes the message");
        assert_eq!(read, number);
    }

    #[test]
    fn needles_are_lower_case_and_numbers_stand_behind_words() {
        for row in TABLE.iter().chain(VAGUE) {
            assert_eq!(row.needle, row.needle.to_lowercase());
            let same = TABLE.iter().chain(VAGUE).filter(|other| other.needle == row.needle);
            assert_eq!(same.count(), 1, "{}: only the first of two rows is ever found", row.needle);
            for piece in row.needle.split('*') {
                assert!(!piece.is_empty() && !piece.starts_with("{n}"), "{}", row.needle);
                assert!(piece.matches("{n}").count() <= 1, "{}", row.needle);
            }
            let numbers = row.needle.matches("{n}").count();
            let may = matches!(row.meaning, Meaning::Blocks | Meaning::Addresses);
            assert!(numbers == 0 || (may && numbers == 1), "{}: nobody reads its number", row.needle);
        }
    }

    #[test]
    fn lag_and_rate_stand_before_range() {
        let is_range = |row: &Row| matches!(row.meaning, Meaning::Blocks | Meaning::Density | Meaning::Addresses);
        let first_range = TABLE.iter().position(is_range).unwrap();
        assert!(TABLE.iter().skip(first_range).all(is_range));
    }

    #[test]
    fn the_vendor_s_own_words_decide_inside_those_of_a_proxy() {
        let wrapped = |inner: &str| read(&[&format!("request exceeded max allowed range: {inner}")]).unwrap();
        let told = wrapped("block range is too wide (maximum 1024)");
        assert_eq!(told, Understood { meaning: Meaning::Blocks, number: Some(1_024) });
        assert_eq!(wrapped("query exceeds max results 2000, retry with the range 1-2").meaning, Meaning::Density);
    }

    #[test]
    fn clear_words_of_the_message_come_before_vague_ones_of_the_data() {
        let data = r#"{"see":"https://vendor.example/billing"}"#;
        assert_eq!(read(&[data, "query returned more than 10000 results"]).unwrap().meaning, Meaning::Density);
        assert_eq!(read(&["Block range 20 exceeds the maximum of 10 blocks", "rate limit"]).unwrap().number, Some(10));
        assert_eq!(read(&[data, "no"]).unwrap().meaning, Meaning::Throttled);
    }

    #[test]
    fn numbers_that_cannot_be_true_are_not_told_but_the_words_still_mean_what_they_mean() {
        let said = |number: &str| read(&[&format!("eth_getLogs range is too large, max is {number} blocks")]).unwrap();
        for number in ["0", "00", "1000000000000000000000000000000", "18446744073709551615k", "9007199254740993"] {
            assert_eq!(said(number), Understood { meaning: Meaning::Blocks, number: None }, "{number}");
        }
        for (number, told) in [("1", 1), ("1,000", 1_000), ("1_000", 1_000), ("2K", 2_000), ("007", 7)] {
            assert_eq!(said(number).number, Some(told), "{number}");
        }
    }

    #[test]
    fn a_suggested_range_is_read_from_data_brackets_or_prose() {
        let range = |from, to| Some(BlockRange { from, to });
        let rows: [(&[&str], _); 9] = [
            (&[r#"{"from":"0x1","limit":10000,"to":"0xa"}"#, "Try with this block range [0x1, 0x2]."], range(1, 10)),
            (&[r#"{"from":1,"to":10}"#], range(1, 10)),
            (&["", "Try with this block range [0x1, 0xff]."], range(1, 255)),
            (&["this block range should work: [12, 20]"], range(12, 20)),
            (&["maximum [from, to] blocks distance; use [0x1,0x2]"], range(1, 2)),
            (&["query exceeds max results 20000, retry with the range 100-200"], range(100, 200)),
            (&["inverted: [0x9, 0x1]", r#"{"from":"0x9","to":"0x1"}"#], None),
            (&["[0x0, 0xffffffffffffffffffff] [1, 18446744073709551615] [] [1] [,] [-1, 5]"], None),
            (&["the range", "the range 1", "the range -", r#"{"from":[],"to":{}}"#], None),
        ];
        for (texts, expected) in rows {
            assert_eq!(suggested_range(texts), expected, "{texts:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic_and_every_number_of_it_is_bounded(
            texts in prop::collection::vec(text(), 0..4)
        ) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            if let Some(Understood { number: Some(number), .. }) = read(&texts) {
                prop_assert!((1..=MAX_BLOCK_NUMBER).contains(&number));
            }
            if let Some(range) = suggested_range(&texts) {
                prop_assert!(range.from <= range.to && range.to <= MAX_BLOCK_NUMBER);
            }
        }
    }

    /// Pieces of needles, numbers, and anything.
    fn text() -> impl Strategy<Value = String> {
        let needles: Vec<&'static str> =
            TABLE.iter().chain(VAGUE).flat_map(|row| row.needle.split(['*', '{'])).collect();
        let piece = prop_oneof![
            prop::sample::select(needles).prop_map(str::to_owned),
            "[0-9,._kx\\[\\] -]{0,40}",
            any::<u64>().prop_map(|number| number.to_string()),
            ".{0,20}",
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }
}
