//! `eth_subscribe` and `eth_unsubscribe`: the subscriptions of one socket.

use std::collections::BTreeMap;

use alloy::rpc::types::Filter;

use super::{
    chain::Notice,
    jsonrpc::{Answer, Fault, Params, answer, notification},
    node::Node,
    random::Random,
    render,
};

#[derive(Debug)]
enum Topic {
    NewHeads,
    Logs(Box<Filter>),
}

/// What one socket has asked to be told.
#[derive(Debug)]
pub(super) struct Subscriptions {
    by_id: BTreeMap<String, Topic>,
    ids: Random,
}

impl Subscriptions {
    /// None yet; `socket` tells its ids from those of other sockets.
    pub(super) fn new(socket: u64) -> Self {
        Self { by_id: BTreeMap::new(), ids: Random::of(&[socket]) }
    }

    /// Answers one call of a socket.
    pub(super) fn call(&mut self, node: &Node, method: &str, mut params: Params) -> Answer {
        match method {
            "eth_subscribe" => self.add(node.limits.subscriptions, params),
            "eth_unsubscribe" => {
                let id: String = params.required(0)?;
                answer(&self.by_id.remove(&id).is_some())
            }
            _ => node.call(method, params),
        }
    }

    fn add(&mut self, most: usize, mut params: Params) -> Answer {
        if self.by_id.len() >= most {
            return Err(Fault::server(format!("at most {most} subscriptions per connection")));
        }
        let topic = match params.required::<String>(0)?.as_str() {
            "newHeads" => Topic::NewHeads,
            "logs" => Topic::Logs(Box::new(params.optional(1)?.unwrap_or_default())),
            other => return Err(Fault::params(format!("no \"{other}\" subscription in eth namespace"))),
        };
        let id = format!("{:#034x}", u128::from_be_bytes(self.ids.bytes()));
        self.by_id.insert(id.clone(), topic);
        answer(&id)
    }

    /// The messages that a notice makes for this socket.
    pub(super) fn messages(&self, node: &Node, notice: &Notice) -> Vec<String> {
        let (block, removed) = match notice {
            Notice::Added(block) => (block, false),
            Notice::Removed(block) => (block, true),
        };
        let mut messages = Vec::new();
        for (id, topic) in &self.by_id {
            match topic {
                Topic::NewHeads if removed => {}
                Topic::NewHeads => messages.push(notification(id, &render::header(block))),
                Topic::Logs(filter) if filter.matches_bloom(block.header.logs_bloom) => {
                    let body = node.chain.body(block);
                    let logs = render::logs(block, &body, removed).filter(|log| filter.matches(&log.inner));
                    messages.extend(logs.map(|log| notification(id, &log)));
                }
                Topic::Logs(_) => {}
            }
        }
        messages
    }
}
