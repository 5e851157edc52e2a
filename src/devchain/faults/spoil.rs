//! What faults do to one call: refusals in the words of vendors, and answers that are not what the chain holds.

use std::sync::{PoisonError, atomic::Ordering::Relaxed};

use alloy::primitives::{B256, U64};
use serde_json::{Value, json};

use super::{
    super::jsonrpc::{self, Answer, answer},
    Armed, Asked, Does, Vendor, chance,
};

/// Most logs that are remembered as left out once; later ones are there at once.
const MOST_OMITTED: usize = 1 << 20;

/// The error that a fault answers with, where it does.
pub(super) fn refusal(does: &Does, asked: &Asked) -> Option<jsonrpc::Fault> {
    let refused = match does {
        Does::Error { code, message, data, .. } => {
            let plain = jsonrpc::Fault::new(*code, message.clone());
            data.clone().map_or_else(|| plain.clone(), |data| plain.clone().with_data(data))
        }
        Does::RateLimit { per_second, words, .. } => match words {
            Vendor::Quicknode => jsonrpc::Fault::new(
                -32007,
                format!(
                    "{per_second}/second request limit reached - reduce calls per second or upgrade your account at quicknode.com"
                ),
            ),
            Vendor::Alchemy => jsonrpc::Fault::new(
                429,
                "Your app has exceeded its compute units per second capacity. If you have retries enabled, you can safely ignore this message.",
            ),
        },
        Does::BlockLimit { blocks, words } => match words {
            Vendor::Quicknode => jsonrpc::Fault::new(
                -32615,
                format!(
                    "eth_getLogs is limited to a {blocks} range, upgrade from discover plan at https://dashboard.quicknode.com"
                ),
            ),
            Vendor::Alchemy => {
                let from = asked.blocks.map_or(0, |(from, _)| from);
                let to = from.saturating_add(blocks.saturating_sub(1));
                jsonrpc::Fault::new(
                    -32600,
                    format!(
                        "Under the Free tier plan, you can make eth_getLogs requests with up to a {blocks} block range. Based on your parameters, this block range should work: [{from:#x}, {to:#x}]. Upgrade to PAYG for expanded block range."
                    ),
                )
            }
        },
        _ => return None,
    };
    Some(refused)
}

impl Armed {
    /// Spoils an answer. One in which there is nothing to spoil does not count.
    pub(super) fn spoil(&self, answered: Answer, seed: u64) -> Answer {
        let honest = answered?;
        let Ok(mut result) = serde_json::from_str::<Value>(honest.get()) else { return Ok(honest) };
        let is_spoilt = match &self.fault.does {
            Does::Omit { share, once } => self.omit(&mut result, *share, *once, seed),
            Does::Empty => emptied(&mut result),
            Does::Truncate { to } => truncated(&mut result, *to),
            Does::Null => !result.take().is_null(),
            Does::Replace { at, with } => replaced(&mut result, at, with),
            _ => false,
        };
        if is_spoilt {
            return answer(&result);
        }
        self.fell.fetch_sub(1, Relaxed);
        Ok(honest)
    }

    /// Leaves logs out of a list of logs, or of the lists of logs in a list of receipts.
    fn omit(&self, result: &mut Value, share: Option<f64>, once: bool, seed: u64) -> bool {
        let Some(elements) = result.as_array_mut() else { return false };
        if elements.iter().any(|element| element.get("logs").is_some()) {
            let lists = elements.iter_mut().filter_map(|receipt| receipt.get_mut("logs")?.as_array_mut());
            return match share {
                Some(share) => lists.fold(false, |any, logs| self.omit_share(logs, share, once, seed) | any),
                None => lists.filter(|logs| !logs.is_empty()).last().is_some_and(|logs| self.omit_last(logs, once)),
            };
        }
        match share {
            Some(share) => self.omit_share(elements, share, once, seed),
            None => self.omit_last(elements, once),
        }
    }

    fn omit_share(&self, logs: &mut Vec<Value>, share: f64, once: bool, seed: u64) -> bool {
        let before = logs.len();
        logs.retain(|log| {
            let Some((block, index)) = identity(log) else { return true };
            let [a, b, c, d] = [0, 8, 16, 24].map(|start| word(&block, start));
            chance(&[seed, self.place, a, b, c, d, index]) >= share || !self.may_omit((block, index), once)
        });
        logs.len() < before
    }

    fn omit_last(&self, logs: &mut Vec<Value>, once: bool) -> bool {
        let last = logs.last().and_then(identity);
        last.is_some_and(|log| self.may_omit(log, once)) && logs.pop().is_some()
    }

    /// Whether a log may be left out: always, or the first time only.
    fn may_omit(&self, log: (B256, u64), once: bool) -> bool {
        if !once {
            return true;
        }
        let mut omitted = self.omitted.lock().unwrap_or_else(PoisonError::into_inner);
        omitted.len() < MOST_OMITTED && omitted.insert(log)
    }
}

fn identity(log: &Value) -> Option<(B256, u64)> {
    let block = serde_json::from_value(log.get("blockHash")?.clone()).ok()?;
    let index: U64 = serde_json::from_value(log.get("logIndex")?.clone()).ok()?;
    Some((block, index.to()))
}

fn word(hash: &B256, start: usize) -> u64 {
    hash.iter().skip(start).take(8).fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn emptied(result: &mut Value) -> bool {
    let is_more = result.as_array().is_some_and(|elements| !elements.is_empty());
    if is_more {
        *result = json!([]);
    }
    is_more
}

fn truncated(result: &mut Value, to: usize) -> bool {
    let elements = result.as_array_mut().filter(|elements| elements.len() > to);
    elements.map(|elements| elements.truncate(to)).is_some()
}

fn replaced(result: &mut Value, at: &str, with: &Value) -> bool {
    if let Some(place) = result.pointer_mut(at) {
        *place = with.clone();
        return true;
    }
    let Some((parent, name)) = at.rsplit_once('/') else { return false };
    let Some(members) = result.pointer_mut(parent).and_then(Value::as_object_mut) else { return false };
    members.insert(name.replace("~1", "/").replace("~0", "~"), with.clone());
    true
}
