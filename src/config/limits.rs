//! Limits of size and time: declared together, asserted against each other.

use std::time::Duration;

use super::{
    ChainProfile,
    chains::{AUDIT_SAMPLE, LogIndex, VERIFY_SAMPLE, Verify},
    endpoints::Fault,
    reader::Reader,
};

/// Life of a claim (contract §3); the store's own constant is the same.
const CLAIM_TTL: Duration = Duration::from_mins(5);
/// Longest shutdown that makes sense; orchestrators kill long before.
const MAX_GRACE: Duration = Duration::from_mins(10);

/// Limits of size and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One RPC request, from sending to the last byte of the answer.
    pub rpc_timeout: Duration,
    /// Largest RPC answer that is read, bytes.
    pub rpc_max_bytes: usize,
    /// What a node's logs are held against.
    pub verify: Verify,
    /// With [`Verify::Receipts`] one of so many historical blocks is proven: 1 is every block, 0 none.
    pub verify_sample: u64,
    /// With two endpoints or more one of so many hundreds of historical blocks is compared with what another one has: 1 is
    /// every block, 0 none, which is also what `AUDIT=false` means.
    pub audit_sample: u64,
    /// Within what the chain numbers its logs.
    pub log_index: LogIndex,
    /// One call of a sink.
    pub sink_timeout: Duration,
    /// Logs handled in one chunk.
    pub chunk_logs: usize,
    /// How often the token list is read again.
    pub token_refresh: Duration,
    /// Whether a token list that becomes empty is believed (`ALLOW_EMPTY_TOKENS`).
    pub allow_empty_tokens: bool,
    /// What is in flight at a shutdown may finish within this.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rpc_timeout: Duration::from_secs(20),
            rpc_max_bytes: 32 << 20,
            verify: Verify::default(),
            verify_sample: VERIFY_SAMPLE,
            audit_sample: AUDIT_SAMPLE,
            log_index: LogIndex::default(),
            sink_timeout: Duration::from_secs(30),
            chunk_logs: 1_000,
            token_refresh: Duration::from_mins(5),
            allow_empty_tokens: false,
            grace: Duration::from_secs(25),
        }
    }
}

/// The limits, where each is right and they fit each other; what the chain's profile says stands in for `VERIFY`. With
/// `AUDIT=false` nothing is compared.
pub(super) fn read(reader: &mut Reader<'_>, chain: Option<&ChainProfile>, is_audited: bool) -> Option<Limits> {
    let verify = reader.read("VERIFY", Verify::parse);
    let second = Duration::from_secs(1);
    let rpc_timeout = reader.read("RPC_TIMEOUT", |text| time(text, second, Duration::from_mins(2)));
    let sink_timeout = reader.read("SINK_TIMEOUT", |text| time(text, second, Duration::from_mins(2)));
    let grace = reader.read("SHUTDOWN_GRACE", |text| time(text, second, MAX_GRACE));
    let refresh = Duration::from_secs(5)..=Duration::from_hours(24);
    let token_refresh = reader.read("TOKEN_REFRESH", |text| time(text, *refresh.start(), *refresh.end()));
    let rpc_max_bytes = reader.read("RPC_MAX_BYTES", bytes);
    let chunk_logs = reader.read("CHUNK_LOGS", |text| match text.parse() {
        Ok(logs @ 1..=100_000) => Ok(logs),
        _ => Err((format!("is not a number of logs: '{text}'"), "write a number from 1 to 100000".to_owned())),
    });
    let allow_empty_tokens = reader.read("ALLOW_EMPTY_TOKENS", flag);
    let (rpc_timeout, sink_timeout) = (rpc_timeout?, sink_timeout?);
    // A claim must outlive the slowest fetch and delivery between two renewals, or two replicas work on one block.
    if rpc_timeout + sink_timeout >= CLAIM_TTL / 2 {
        let text = format!("and RPC_TIMEOUT together reach half the life of a claim ({} s)", CLAIM_TTL.as_secs());
        reader.report("SINK_TIMEOUT", &text, "lower one of them");
    }
    Some(Limits {
        rpc_timeout,
        rpc_max_bytes: rpc_max_bytes?,
        verify: verify.or_else(|| chain.map(|chain| chain.verify)).unwrap_or_default(),
        verify_sample: chain.map(|chain| chain.verify_sample).unwrap_or_default(),
        audit_sample: chain.filter(|_| is_audited).map(|chain| chain.audit_sample).unwrap_or_default(),
        log_index: chain.map(|chain| chain.log_index).unwrap_or_default(),
        sink_timeout,
        chunk_logs: chunk_logs?,
        token_refresh: token_refresh?,
        allow_empty_tokens: allow_empty_tokens?,
        grace: grace?,
    })
}

fn time(text: &str, least: Duration, most: Duration) -> Result<Duration, Fault> {
    let (from, to) = (humantime::format_duration(least), humantime::format_duration(most));
    match humantime::parse_duration(text) {
        Ok(time) if (least..=most).contains(&time) => Ok(time),
        Ok(_) => Err((format!("is out of range: '{text}'"), format!("write a time from {from} to {to}"))),
        Err(_) => Err((format!("is not a time: '{text}'"), "write one like 20s or 5m".to_owned())),
    }
}

pub(super) fn bytes(text: &str) -> Result<usize, Fault> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let (number, shift) = units
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|number| (number.trim(), *shift)))
        .unwrap_or((text, 0));
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if (1 << 20..=4 << 30).contains(&bytes) => Ok(bytes),
        _ => Err((format!("is not a size: '{text}'"), "write one from 1MiB to 4GiB".to_owned())),
    }
}

pub(super) fn flag(text: &str) -> Result<bool, Fault> {
    match text.to_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err((format!("is neither true nor false: '{text}'"), "write true or false".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_life_of_a_claim_is_the_store_s() {
        assert_eq!(CLAIM_TTL, crate::store::CLAIM_TTL);
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes("256MiB"), Ok(256 << 20));
        assert_eq!(bytes("2097152"), Ok(2 << 20));
        for wrong in ["", "1", "5GiB", "1MB", "-1", "99999999999999999999GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
