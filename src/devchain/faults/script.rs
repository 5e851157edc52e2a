//! Faults as they are written: in a file for `--faults`, and as the parameter of `devchain_setFaults`.

use std::{collections::BTreeMap, fs, ops::RangeInclusive, path::Path};

use axum::http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::{Error, node::METHODS};

/// What a fault calls the opening of a socket.
pub(super) const CONNECT: &str = "connect";
/// What a fault calls a message to a subscriber: the method that such a message states.
pub(super) const NOTIFICATION: &str = "eth_subscription";
/// Most faults of one endpoint.
const MOST_FAULTS: usize = 100;
/// Largest script, bytes.
const MOST_BYTES: u64 = 1 << 20;
/// Largest padding, bytes.
const MOST_PADDING: usize = 64 << 20;
/// Longest delay, milliseconds.
const MOST_DELAY: u64 = 600_000;
/// Furthest that a node may be behind, blocks.
const MOST_BEHIND: u64 = 1_024;

/// The faults of each endpoint, an endpoint being a path: `/` is that of the plain URL.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Script(pub BTreeMap<String, Vec<Fault>>);

/// One way in which a node misbehaves, and when. All conditions that are given must hold; with none it falls on every
/// request of its methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fault {
    /// Methods it falls on; with none those that its kind is about (see [`Does`]). `eth_subscription` stands for messages
    /// to subscribers and `connect` for the opening of a socket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
    /// Share of these requests, 0 to 1, drawn from the chain's seed and the request's count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// Every nth of these requests, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// So many times, and then never again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// Only `eth_getLogs` over more blocks than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_over: Option<u64>,
    /// Only what asks for the newest block.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub newest: bool,
    /// Only while the head is between these heights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<Period>,
    /// Only between these seconds after the faults were set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<Period>,
    /// What it does.
    #[serde(rename = "do")]
    pub does: Does,
}

/// From one number to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Period {
    /// The first; 0 if nothing is said.
    #[serde(default)]
    from: u64,
    /// The last; none if nothing is said.
    #[serde(default = "u64_max", skip_serializing_if = "is_max")]
    to: u64,
}

fn u64_max() -> u64 {
    u64::MAX
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_max(number: &u64) -> bool {
    *number == u64::MAX
}

impl Period {
    pub(super) fn range(self) -> RangeInclusive<u64> {
        self.from..=self.to
    }
}

/// What a fault does. Each kind names the requests that it falls on where `on` is empty; "calls" are all methods, without
/// messages to subscribers and the opening of sockets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Does {
    /// Answers with this error. All calls.
    Error {
        /// Its code.
        code: i64,
        /// Its words.
        message: String,
        /// Its details.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<Value>,
        /// The HTTP status that comes with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
    },
    /// Answers with an HTTP status, headers and a body of any kind; over a socket it falls on its opening alone. All calls
    /// and `connect`.
    Http {
        /// The status, 200 to 599.
        #[serde(default = "ok")]
        status: u16,
        /// Headers, such as `retry-after`.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
        /// The body.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        body: String,
    },
    /// Refuses calls beyond so many a second with HTTP status 429 and the vendor's words. All calls.
    RateLimit {
        /// Calls a second, above 0.
        per_second: f64,
        /// Calls that may come at once; those of one second if nothing is said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        burst: Option<f64>,
        /// Whose words.
        #[serde(default)]
        words: Vendor,
        /// Seconds in the header `retry-after`; with 0 there is none.
        #[serde(default = "one")]
        retry_after: u64,
    },
    /// Refuses `eth_getLogs` over more blocks than the plan allows, with the vendor's words.
    BlockLimit {
        /// Blocks in one request, at least 1.
        blocks: u64,
        /// Whose words.
        #[serde(default)]
        words: Vendor,
    },
    /// The node is behind: it knows of no newer block, and announces each when so many others came after it. All calls and
    /// `eth_subscription`.
    Lag {
        /// By how many blocks, at most 1,024.
        blocks: u64,
    },
    /// The node has its newest blocks, but not yet what is in them: `eth_getLogs` leaves their logs out, and
    /// `eth_getBlockReceipts`, where it is named in `on`, answers null.
    LogsLate {
        /// For how long after a block came, milliseconds; blocks that were there when the node started are old.
        #[serde(default)]
        ms: u64,
        /// For how many of the newest blocks.
        #[serde(default)]
        blocks: u64,
    },
    /// Leaves logs out, of `eth_getLogs` or, where it is named in `on`, of `eth_getBlockReceipts`.
    Omit {
        /// Share of the logs, 0 to 1, the same ones in every answer; the last log of each answer if nothing is said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        share: Option<f64>,
        /// Whether a log that was left out once is there from then on.
        #[serde(default)]
        once: bool,
    },
    /// Answers with an empty list: `eth_getLogs`.
    Empty,
    /// Leaves out, without a word, all but the first so many elements of a list: `eth_getLogs`.
    Truncate {
        /// Elements that are left.
        to: usize,
    },
    /// Answers null: `eth_getBlockByNumber` and `eth_getBlockByHash`.
    Null,
    /// Answers with something else in one place. All calls.
    Replace {
        /// Where in the result, as a JSON pointer (RFC 6901) such as `/logsBloom` or `/0/data`; empty for all of it. Results
        /// without this place stay as they are; a member of an object may be new.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        at: String,
        /// By what.
        with: Value,
    },
    /// States another chain id: `eth_chainId` and `net_version`.
    ChainId {
        /// Which.
        id: u64,
    },
    /// Takes the request and never answers. All calls and `eth_subscription`; with `connect` named a socket never opens.
    Silence,
    /// Makes messages longer by so many spaces at their end, which is still valid JSON: `eth_subscription`.
    Pad {
        /// How many, at most 64 MiB.
        bytes: usize,
    },
    /// Takes its time. All calls.
    Slow {
        /// Before the answer begins, milliseconds, at most ten minutes.
        #[serde(default)]
        delay: u64,
        /// Bytes a second of the answer; with 0 it comes at once. A message over a socket comes whole, after that time.
        #[serde(default)]
        bytes_per_second: u64,
    },
    /// Answers with something that is not JSON-RPC, or not to this request. All calls.
    Garbage {
        /// With what.
        #[serde(rename = "as")]
        shape: Garbage,
    },
}

/// Whose words a refusal has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Vendor {
    /// `QuickNode`: codes -32007 and -32615.
    #[default]
    Quicknode,
    /// Alchemy: codes 429 and -32600.
    Alchemy,
}

/// Answers that no client can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Garbage {
    /// Nothing at all.
    Nothing,
    /// Words of a proxy.
    Text,
    /// A page of a proxy.
    Html,
    /// The first half of the answer.
    Half,
    /// The answer under another id.
    WrongId,
    /// The answer with digits that are none in the first hexadecimal number of its result.
    Hex,
}

fn ok() -> u16 {
    200
}

fn one() -> u64 {
    1
}

impl Script {
    /// Reads a script: a list of faults, or an object with such a list for each endpoint.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read, is larger than 1 MiB or says something unknown; the reason names the place.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let refuse = |reason: String| Error::File { path: path.to_owned(), reason };
        let bytes = fs::metadata(path).map_err(|error| refuse(error.to_string()))?.len();
        if bytes > MOST_BYTES {
            return Err(refuse(format!("{bytes} bytes, at most {MOST_BYTES}")));
        }
        let text = fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        Self::parse(&text).map_err(refuse)
    }

    /// The script that a text is.
    fn parse(text: &str) -> Result<Self, String> {
        let of_all = |faults| BTreeMap::from([("/".to_owned(), faults)]);
        let parsed = if text.trim_start().starts_with('[') {
            serde_json::from_str(text).map(of_all)
        } else {
            serde_json::from_str(text)
        };
        let script = Self(parsed.map_err(|error| error.to_string())?);
        script.check()?;
        Ok(script)
    }

    /// # Errors
    ///
    /// What [`check`] refuses, and a path that is none.
    pub(super) fn check(&self) -> Result<(), String> {
        for (path, faults) in &self.0 {
            if !path.starts_with('/') {
                return Err(format!("\"{path}\" is no path of an endpoint: it begins with a slash"));
            }
            check(faults).map_err(|reason| format!("{path}: {reason}"))?;
        }
        Ok(())
    }
}

/// Whether the faults of one endpoint make sense.
///
/// # Errors
///
/// Which one does not, counted from 1, and why.
pub(super) fn check(faults: &[Fault]) -> Result<(), String> {
    if faults.len() > MOST_FAULTS {
        return Err(format!("{} faults, at most {MOST_FAULTS}", faults.len()));
    }
    let refused = (1..).zip(faults).find_map(|(place, fault)| fault.check().err().map(|reason| (place, reason)));
    refused.map_or(Ok(()), |(place, reason)| Err(format!("fault {place}: {reason}")))
}

impl Fault {
    fn check(&self) -> Result<(), String> {
        for method in &self.on {
            if ![CONNECT, NOTIFICATION].contains(&method.as_str()) && !METHODS.contains(&method.as_str()) {
                return Err(format!("`on` names {method}, which this node does not have or which is never spoilt"));
            }
            if !self.does.can_fall_on(method) {
                return Err(format!("this kind of fault cannot fall on {method}"));
            }
        }
        share("probability", self.probability)?;
        if self.every == Some(0) {
            return Err("`every` is at least 1".to_owned());
        }
        self.does.check()
    }
}

fn share(name: &str, number: Option<f64>) -> Result<(), String> {
    match number {
        Some(number) if !(0.0..=1.0).contains(&number) => Err(format!("`{name}` is {number}: 0 to 1 are possible")),
        _ => Ok(()),
    }
}

impl Does {
    /// Whether a fault of this kind can do anything to `method`.
    pub(super) fn can_fall_on(&self, method: &str) -> bool {
        let (opening, notification) = (method == CONNECT, method == NOTIFICATION);
        match self {
            Self::Silence | Self::Slow { .. } => true,
            Self::Http { .. } => !notification,
            Self::Lag { .. } | Self::Pad { .. } | Self::Garbage { .. } => !opening,
            Self::BlockLimit { .. } => method == "eth_getLogs",
            Self::LogsLate { .. } | Self::Omit { .. } => ["eth_getLogs", "eth_getBlockReceipts"].contains(&method),
            _ => !opening && !notification,
        }
    }

    /// Whether a fault of this kind that names no methods falls on `method`.
    pub(super) fn falls_by_default_on(&self, method: &str) -> bool {
        match self {
            Self::Slow { .. } | Self::Garbage { .. } => ![CONNECT, NOTIFICATION].contains(&method),
            Self::Silence => method != CONNECT,
            Self::LogsLate { .. } | Self::Omit { .. } | Self::Empty | Self::Truncate { .. } => method == "eth_getLogs",
            Self::Null => ["eth_getBlockByNumber", "eth_getBlockByHash"].contains(&method),
            Self::ChainId { .. } => ["eth_chainId", "net_version"].contains(&method),
            Self::Pad { .. } => method == NOTIFICATION,
            _ => self.can_fall_on(method),
        }
    }

    fn check(&self) -> Result<(), String> {
        let most = |name: &str, number: u64, most: u64| {
            if number > most { Err(format!("`{name}` is {number}, at most {most}")) } else { Ok(()) }
        };
        match self {
            Self::Error { status, .. } => http_status(status.unwrap_or(200)),
            Self::Http { status, headers, .. } => {
                let wrong = headers.iter().find(|(name, value)| {
                    HeaderName::try_from(name.as_str()).is_err() || HeaderValue::try_from(value.as_str()).is_err()
                });
                wrong.map_or_else(|| http_status(*status), |(name, _)| Err(format!("\"{name}\" is no HTTP header")))
            }
            Self::RateLimit { per_second, burst, .. } => {
                let is_rate = |rate: f64| rate.is_finite() && rate > 0.0;
                if is_rate(*per_second) && burst.is_none_or(|burst| is_rate(burst) && burst >= 1.0) {
                    return Ok(());
                }
                Err("`perSecond` is above 0 and `burst` at least 1".to_owned())
            }
            Self::BlockLimit { blocks: 0, .. } => Err("`blocks` is at least 1".to_owned()),
            Self::Lag { blocks } => most("blocks", *blocks, MOST_BEHIND),
            Self::LogsLate { ms, blocks } => most("ms", *ms, MOST_DELAY).and(most("blocks", *blocks, MOST_BEHIND)),
            Self::Omit { share: wanted, .. } => share("share", *wanted),
            Self::Replace { at, .. } if !at.is_empty() && !at.starts_with('/') => {
                Err(format!("`at` is \"{at}\": a JSON pointer is empty or begins with a slash"))
            }
            Self::Pad { bytes } => most("bytes", *bytes as u64, MOST_PADDING as u64),
            Self::Slow { delay, .. } => most("delay", *delay, MOST_DELAY),
            _ => Ok(()),
        }
    }
}

fn http_status(status: u16) -> Result<(), String> {
    match StatusCode::from_u16(status) {
        Ok(_) if (200..600).contains(&status) => Ok(()),
        _ => Err(format!("`status` is {status}: 200 to 599 are possible")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Script::parse(text).unwrap_err()
    }

    #[test]
    fn a_list_is_of_the_plain_endpoint_and_an_object_has_one_for_each() {
        let list = r#"[{"do": "silence"}]"#;
        let plain = Script::parse(list).unwrap();
        assert_eq!(plain.0.keys().collect::<Vec<_>>(), ["/"]);
        let two = Script::parse(&format!(r#"{{"/a": {list}, "/": []}}"#)).unwrap();
        assert_eq!((two.0["/a"].len(), two.0["/"].len()), (1, 0));
    }

    #[test]
    fn what_is_not_known_or_not_possible_is_refused_by_name() {
        for (text, words) in [
            (r#"[{"do": "silence", "probabilty": 1}]"#, "unknown field `probabilty`, expected one of `on`"),
            (r#"[{"do": "silense"}]"#, "unknown variant `silense`, expected one of `error`"),
            (r#"[{"do": {"lag": {"block": 1}}}]"#, "unknown field `block`, expected `blocks` at line 1 column"),
            (r#"[{"do": "silence", "heads": {"form": 1}}]"#, "unknown field `form`"),
            ("[{}]", "missing field `do`"),
            (r#"[{"do": "silence"}, {"on": ["eth_getlogs"], "do": "null"}]"#, "/: fault 2: `on` names eth_getlogs"),
            (r#"[{"on": ["devchain_mine"], "do": "null"}]"#, "never spoilt"),
            (r#"[{"on": ["eth_subscription"], "do": "empty"}]"#, "cannot fall on eth_subscription"),
            (r#"[{"probability": 1.5, "do": "null"}]"#, "`probability` is 1.5: 0 to 1"),
            (r#"[{"every": 0, "do": "null"}]"#, "`every` is at least 1"),
            (r#"[{"do": {"http": {"status": 99}}}]"#, "`status` is 99: 200 to 599"),
            (r#"[{"do": {"http": {"headers": {"a b": ""}}}}]"#, "\"a b\" is no HTTP header"),
            (r#"[{"do": {"rateLimit": {"perSecond": 0}}}]"#, "`perSecond` is above 0"),
            (r#"[{"do": {"blockLimit": {"blocks": 0}}}]"#, "`blocks` is at least 1"),
            (r#"[{"do": {"lag": {"blocks": 1025}}}]"#, "`blocks` is 1025, at most 1024"),
            (r#"[{"do": {"omit": {"share": -1}}}]"#, "`share` is -1"),
            (r#"[{"do": {"replace": {"at": "data", "with": 1}}}]"#, "a JSON pointer is empty or begins"),
            (r#"[{"do": {"pad": {"bytes": 67108865}}}]"#, "`bytes` is 67108865"),
            (r#"{"a": []}"#, "\"a\" is no path of an endpoint"),
            ("7", "invalid type"),
        ] {
            assert!(refusal(text).contains(words), "{text}: {}", refusal(text));
        }
    }

    #[test]
    fn what_is_written_out_reads_the_same() {
        let text = r#"[{"on": ["eth_getLogs"], "probability": 0.5, "heads": {"from": 3}, "rangeOver": 9,
            "do": {"rateLimit": {"perSecond": 2, "words": "alchemy"}}}]"#;
        let faults = Script::parse(text).unwrap().0.remove("/").unwrap();
        assert_eq!(serde_json::from_str::<Vec<Fault>>(&serde_json::to_string(&faults).unwrap()).unwrap(), faults);
    }
}
