//! The short way of requests for logs over HTTP: what is answered is read as it arrives.
//!
//! alloy's client takes each answer as a whole. Everything else goes through it, and so do these requests over a WebSocket,
//! whose messages arrive as a whole, and where the traffic is recorded as it was said. There a reply too many is passed over,
//! as alloy does; here it makes the answer invalid.

use std::sync::Arc;

use alloy::{
    rpc::json_rpc::{Id, RequestPacket, ResponsePacket, SerializedRequest, transform_response},
    transports::{TransportError, TransportErrorKind},
};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    RpcError,
    budget::Budget,
    error::unreadable,
    masked::Keys,
    transport::{Capped, Replies},
    wire::{Gathering, WireHeader},
};
use crate::config::SecretUrl;

/// The way to one node.
pub(super) struct Direct {
    http: Capped,
    keys: Keys,
    budget: Arc<Budget>,
}

/// What a node answers to a request for logs.
#[derive(Debug)]
pub(super) struct Told<'f> {
    /// The logs that were read already.
    pub(super) logs: Gathering<'f>,
    /// The result of each call in order; of the first an empty list, where its logs were read.
    pub(super) results: Vec<Result<Box<RawValue>, TransportError>>,
}

impl<'f> Told<'f> {
    /// What is told, unless it is of one call alone that failed.
    pub(super) fn unless_failed(mut self) -> Result<Self, TransportError> {
        match self.results.as_slice() {
            [Err(_)] => self.results.remove(0).map(|_| self),
            _ => Ok(self),
        }
    }

    /// The logs, and the headers that the other calls asked for; or the first error, as `classify` has it.
    pub(super) fn read(
        self,
        classify: impl Fn(TransportError) -> RpcError,
    ) -> Result<(Gathering<'f>, Vec<Option<WireHeader>>), RpcError> {
        let Self { mut logs, results } = self;
        let mut results = results.into_iter().map(|result| result.map_err(&classify));
        let list = results.next().unwrap_or_else(|| Err(RpcError::Fatal("nothing was asked for".to_owned())))?;
        let header = |result: Result<Box<RawValue>, _>| match result?.get() {
            list if list.starts_with('[') => Err(RpcError::Invalid("a list instead of a header".to_owned())),
            json => serde_json::from_str(json).map_err(unreadable),
        };
        let headers = results.map(header).collect::<Result<_, _>>()?;
        logs.read(&list);
        Ok((logs, headers))
    }
}

impl Direct {
    pub(super) fn new(http: Capped, url: &SecretUrl, budget: Arc<Budget>) -> Self {
        Self { http, keys: Keys::of(url), budget }
    }

    /// Makes these calls, the first for logs, in one request.
    pub(super) async fn ask<'f>(
        &self,
        mut calls: Vec<SerializedRequest>,
        logs: Gathering<'f>,
    ) -> Result<Told<'f>, TransportError> {
        let ids: Vec<Id> = calls.iter().map(|call| call.id().clone()).collect();
        let packet = match calls.pop_if(|_| ids.len() == 1) {
            Some(call) => RequestPacket::Single(call),
            None => RequestPacket::Batch(calls),
        };
        self.budget.charge_rest(&packet, Instant::now());
        let mut answer = self.http.ask_for_logs(&packet, logs).await;
        match &mut answer {
            Ok(replies) => self.keys.hide_in_packet(&mut replies.packet),
            Err(error) => self.keys.hide_in(error),
        }
        matched(&ids, answer?)
    }
}

/// Matches the replies to the calls with these ids. An error may have no id, and a call of a batch may be left without a
/// reply; but no call has two, and where all succeeded none is to what was not asked.
pub(super) fn matched<'f>(ids: &[Id], replies: Replies<'f>) -> Result<Told<'f>, TransportError> {
    let Replies { packet, place, mut logs } = replies;
    let mut responses = match (packet, ids) {
        (ResponsePacket::Single(response), [id]) if response.id == *id || response.is_error() => {
            return Ok(Told { logs, results: vec![transform_response(response)] });
        }
        // An empty list for another block would be taken for this one's.
        (ResponsePacket::Single(_), [id]) => return Err(TransportErrorKind::missing_batch_response(id.clone())),
        (ResponsePacket::Batch(_), [_]) => {
            return Err(TransportErrorKind::custom_str("a batch of answers to a single request"));
        }
        (ResponsePacket::Single(response), _) => vec![Some(response)],
        (ResponsePacket::Batch(responses), _) => responses.into_iter().map(Some).collect(),
    };
    let at: Vec<Option<usize>> = ids
        .iter()
        .map(|id| responses.iter().position(|response| response.as_ref().is_some_and(|response| response.id == *id)))
        .collect();
    if place != at.first().copied().flatten() {
        // The list that was taken out is another call's; the logs stand where they stood.
        logs.forget();
    }
    let mut results = Vec::with_capacity(ids.len());
    for (id, at) in ids.iter().zip(at) {
        results.push(match at.and_then(|at| responses.get_mut(at)?.take()) {
            Some(response) => transform_response(response),
            None => Err(TransportErrorKind::missing_batch_response(id.clone())),
        });
    }
    if results.iter().all(Result::is_ok) && responses.iter().any(Option::is_some) {
        let text = "an answer with a reply too many";
        return Err(TransportError::deser_err(serde::de::Error::custom(text), ""));
    }
    Ok(Told { logs, results })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::LogIndex,
        rpc::{LogFilter, transport::read},
    };

    /// What the replies of an answer to so many calls are taken for: results as they stand, or that there is none.
    fn taken(answer: &str, calls: u64) -> Result<Vec<String>, String> {
        let filter = LogFilter { addresses: Vec::new(), topics: Vec::new() };
        let logs = Gathering::new(&filter, LogIndex::Block);
        let packet = read(200, None, answer.as_bytes(), calls > 1).map_err(|error| error.to_string())?;
        let ids: Vec<Id> = (0..calls).map(Id::Number).collect();
        let told = matched(&ids, Replies { packet, place: None, logs }).map_err(|error| error.to_string())?;
        Ok(told.results.iter().map(|one| one.as_ref().map_or("none".into(), |json| json.get().into())).collect())
    }

    fn batch(replies: &[(&str, &str)]) -> String {
        let reply = |(id, result): &(&str, &str)| format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
        format!("[{}]", replies.iter().map(reply).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn replies_belong_to_calls_by_their_ids_alone() {
        let told = |replies: &[(&str, &str)]| taken(&batch(replies), 3);
        let right = Ok(["[]", "1", "2"].map(str::to_owned).to_vec());
        assert_eq!(told(&[("0", "[]"), ("1", "1"), ("2", "2")]), right);
        assert_eq!(told(&[("2", "2"), ("0", "[]"), ("1", "1")]), right, "in any order");
        assert!(told(&[("0", "[]"), ("0", "[7]"), ("1", "1"), ("2", "2")]).is_err(), "two to one call");
        assert!(told(&[("0", "[]"), ("1", "1"), ("2", "2"), ("7", "[]")]).is_err(), "one to what was not asked");
        let lacks = |at: usize, replies: &[(&str, &str)]| told(replies).unwrap()[at] == "none";
        assert!(lacks(2, &[("0", "[]"), ("1", "1")]) && lacks(0, &[("\"0\"", "[]"), ("1", "1"), ("2", "2")]));
    }

    #[test]
    fn a_reply_to_another_call_is_none_also_where_it_is_alone() {
        let alone = |id: &str| taken(&batch(&[(id, "[]")])[1..].replace("}]", "}"), 1);
        assert_eq!(alone("0"), Ok(vec!["[]".to_owned()]));
        for id in ["1", "null", "\"0\""] {
            assert!(alone(id).is_err(), "{id}");
        }
        assert!(taken(&batch(&[("0", "[]")]), 1).is_err(), "a batch of answers to one question");
        let one = taken(r#"{"jsonrpc":"2.0","id":0,"result":[]}"#, 3).unwrap();
        assert_eq!(one, ["[]", "none", "none"], "one answer to a batch");
    }
}
