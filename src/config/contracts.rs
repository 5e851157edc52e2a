//! What is listened to, and where it goes (`config/contracts.toml` and `abi/`). How the file is read is in
//! [`super::entries`].

use std::{fmt, sync::Arc};

use alloy::{
    dyn_abi::DynSolEvent,
    json_abi::Event as AbiEvent,
    primitives::{Address, B256},
};

/// All active entries, in the order of the file.
#[derive(Debug, Default)]
pub struct Registry {
    listeners: Vec<Listener>,
}

/// One event of one contract entry.
#[derive(Debug)]
pub struct Listener {
    /// The entry's name.
    pub contract: Arc<str>,
    /// The one contract that is meant; `None` means any.
    pub address: Option<Address>,
    /// First block of interest.
    pub start_block: Option<u64>,
    /// The event as the ABI states it.
    pub event: AbiEvent,
    /// Its name, shared by all that is decoded by it.
    pub event_name: Arc<str>,
    /// Keccak-256 of its signature.
    pub topic0: B256,
    /// The handler's name.
    pub handler: Arc<str>,
    /// Where the handler sends.
    pub target: SinkTarget,
    /// Whether only tracked tokens pass.
    pub token_filter: bool,
    /// How it is decoded.
    pub shape: Shape,
}

#[cfg(test)]
impl Listener {
    /// For tests: ERC-20 transfers of tracked tokens, of one contract or of any, to standard output.
    pub(crate) fn of_transfers(contract: &str, address: Option<Address>) -> Self {
        let event = AbiEvent::parse("event Transfer(address indexed from, address indexed to, uint256 value)").unwrap();
        Self {
            contract: contract.into(),
            address,
            start_block: None,
            topic0: event.selector(),
            event_name: event.name.as_str().into(),
            event,
            handler: "handleTransferEvent".into(),
            target: SinkTarget::Stdout,
            token_filter: true,
            shape: Shape::Erc20Transfer,
        }
    }
}

/// How an event is decoded.
#[derive(Debug)]
pub enum Shape {
    /// The ERC-20 Transfer, by fixed layout.
    Erc20Transfer,
    /// Anything else, by its ABI.
    Other(DynSolEvent),
}

/// Where a handler sends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SinkTarget {
    /// Standard output, one JSON object a line.
    Stdout,
    /// An SQS queue.
    Sqs {
        /// Queue URL, without a slash at its end.
        url: String,
    },
}

impl SinkTarget {
    /// The queue at this URL.
    #[must_use]
    pub fn sqs(url: &str) -> Self {
        Self::Sqs { url: url.trim_end_matches('/').to_owned() }
    }

    /// The queue's name: the last part of its URL's path.
    fn queue(url: &str) -> &str {
        url.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for SinkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::Sqs { url } => write!(f, "SQS {}", Self::queue(url)),
        }
    }
}

impl Registry {
    /// The registry of these entries.
    #[must_use]
    pub fn new(listeners: Vec<Listener>) -> Self {
        Self { listeners }
    }

    /// All entries, in the order of the file.
    #[must_use]
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Every target once, with the name of its sink in logs, metrics and `/health`: `stdout`, `sqs:my-queue`, and with
    /// `#2`, `#3` … where queues of several accounts or regions share a name.
    #[must_use]
    pub fn targets(&self) -> Vec<(&SinkTarget, String)> {
        let mut targets: Vec<(&SinkTarget, String)> = Vec::new();
        for Listener { target, .. } in &self.listeners {
            if targets.iter().any(|(known, _)| *known == target) {
                continue;
            }
            let name = match target {
                SinkTarget::Stdout => "stdout".to_owned(),
                SinkTarget::Sqs { url } => format!("sqs:{}", SinkTarget::queue(url)),
            };
            // No queue's name holds a '#', so none is taken.
            let alike = targets.iter().filter(|(_, known)| known.split('#').next() == Some(&name)).count();
            targets.push((target, if alike == 0 { name } else { format!("{name}#{}", alike + 1) }));
        }
        targets
    }

    /// The entries that may match a log, in the order of the file. Whether one does match depends on the log's shape
    /// too, which decoding finds out.
    pub fn candidates(&self, address: Address, topic0: B256, block: u64) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().filter(move |listener| {
            listener.topic0 == topic0
                && listener.address.is_none_or(|one| one == address)
                && listener.start_block.is_none_or(|first| first <= block)
        })
    }

    /// The first topics to ask nodes for.
    #[must_use]
    pub fn topics(&self) -> Vec<B256> {
        let mut topics: Vec<B256> = self.listeners.iter().map(|listener| listener.topic0).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// The addresses to ask nodes for; empty where some entry listens to any address.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        let mut addresses: Vec<Address> =
            self.listeners.iter().map(|listener| listener.address).collect::<Option<_>>().unwrap_or_default();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The lines printed at every start (contract §7); `tracked` is the number of tracked tokens, `None` where there is
    /// no token list.
    #[must_use]
    pub fn summary(&self, tracked: Option<usize>) -> String {
        let mut text = String::from("=== ACTIVE CONTRACT CONFIGURATION ===\n");
        for listener in &self.listeners {
            text.push_str(&line(listener));
        }
        if self.listeners.is_empty() {
            text.push_str(" nothing is listened to: no entry of contracts.toml is active on this chain\n");
        }
        let filtered = self.listeners.iter().any(|listener| listener.token_filter);
        let filtering = match tracked {
            Some(tokens) if filtered => format!("enabled ({tokens} tokens tracked)"),
            Some(_) => "off (no entry asks for it)".to_owned(),
            None => "off (no token list: every token passes)".to_owned(),
        };
        text + " Token filtering: " + &filtering + "\n====================================="
    }
}

fn line(listener: &Listener) -> String {
    let address = listener.address.map_or_else(|| "any address".to_owned(), |one| one.to_checksum(None));
    let from = listener.start_block.map(|first| format!(" from block {first}")).unwrap_or_default();
    format!(
        " {}: {address}, topic {}{from} → {} → {}\n",
        listener.contract,
        short(listener.topic0),
        listener.handler,
        listener.target
    )
}

/// `0xddf2…b3ef`.
fn short(hash: B256) -> String {
    let text = hash.to_string();
    match (text.get(..6), text.get(text.len().saturating_sub(4)..)) {
        (Some(start), Some(end)) => format!("{start}…{end}"),
        _ => text,
    }
}
