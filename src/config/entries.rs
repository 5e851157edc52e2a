//! How `contracts.toml` becomes the [`Registry`]: every entry is checked, active or not, and every mistake reported with
//! its place and mend. Only a variable that is not set may pass in an entry that is not active here, because another
//! chain's deployment sets it.

use std::{ops::Range, sync::Arc};

use alloy::{
    dyn_abi::Specifier as _,
    json_abi::{Event as AbiEvent, JsonAbi},
    primitives::{Address, B256, keccak256},
};
use toml::{Spanned, de::DeTable};

use super::{
    abi::{self, Abis},
    contracts::{Listener, Registry, Shape},
    files::Files,
    handlers::Handler,
    interpolation::{Unusable, interpolate},
    layers::Layers,
    problem::{Place, Problem, Source},
    raw::{self, Keys},
};
use crate::domain::MAX_BLOCK_NUMBER;

const CONTRACT_KEYS: [&str; 7] = ["name", "abi", "address", "chains", "start_block", "enabled", "event"];
const EVENT_KEYS: [&str; 4] = ["name", "topic0", "handler", "token_filter"];
const TRANSFER: &str = "Transfer(address,address,uint256)";

/// Reads `contracts.toml` for one chain; `chain` is `None` while the chain itself is a mistake.
pub(super) fn read(
    (files, layers): (&Files, &Layers),
    (chain, known_chains): (Option<u64>, &[u64]),
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Registry {
    let source = &files.contracts;
    let Some(document) = raw::parse_whole(source, problems) else { return Registry::default() };
    let top = Keys::new(source, (document.get_ref(), 0..0), &["contract", "handler"], problems);
    let mut reader = Reader {
        source,
        layers,
        chain,
        known_chains,
        abis: Abis::new(files),
        handlers: Vec::new(),
        topic_checked: false,
        problems,
    };
    reader.read_handlers(&top);
    let mut names: Vec<String> = Vec::new();
    let mut listeners = Vec::new();
    for table in top.tables("contract", reader.problems) {
        listeners.extend(reader.contract(table, &mut names));
    }
    reader.overlaps(&listeners, warnings);
    reader.check_transfer_topic();
    Registry::new(listeners.into_iter().map(|(_, listener)| listener).collect())
}

/// A listener without an active entry would ask nodes for every log there is, or do nothing and look well.
pub(super) fn nothing(files: &Files, chain: Option<u64>) -> Problem {
    let chain = chain.unwrap_or_default();
    let text = format!("no entry is active on chain {chain}: nothing would be listened to");
    let mend = format!("add a [[contract]], or take one for chain {chain}: `enabled`, and {chain} in its `chains`");
    Problem::new(Place::Named(files.contracts.path.clone()), text).mend(mend)
}

/// What an entry says of itself, for its events.
struct Entry {
    name: Arc<str>,
    address: Option<Address>,
    start_block: Option<u64>,
    abi: Option<Arc<JsonAbi>>,
    active: bool,
}

/// Reads the entries one by one and keeps every mistake.
pub(super) struct Reader<'a> {
    pub(super) source: &'a Arc<Source>,
    pub(super) layers: &'a Layers,
    chain: Option<u64>,
    known_chains: &'a [u64],
    abis: Abis<'a>,
    pub(super) handlers: Vec<Handler>,
    /// Whether some event took up `TRANSFER_TOPIC`, and so checked it against its own ABI.
    topic_checked: bool,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn report(&mut self, span: Range<usize>, text: impl Into<String>, mend: impl Into<String>) {
        self.problems.push(Problem::at(self.source, span, text).mend(mend));
    }

    pub(super) fn unset(&self, span: Range<usize>, name: &str) -> Problem {
        Problem::at(self.source, span, format!("{name} is not set"))
            .mend(format!("set {name}, or write ${{{name}:-}} to allow it unset"))
    }

    /// The text with its variables; `None` where there is nothing usable.
    fn interpolated(&mut self, text: &Spanned<String>, active: bool) -> Option<String> {
        match interpolate(text.get_ref(), self.layers) {
            Ok(done) => Some(done).filter(|done| !done.is_empty()),
            Err(Unusable::Unset(name)) => {
                if active {
                    let problem = self.unset(text.span(), &name);
                    self.problems.push(problem);
                }
                None
            }
            Err(Unusable::Wrong(wrong, mend)) => {
                self.report(text.span(), wrong, mend);
                None
            }
        }
    }

    /// The active listeners of one entry, each with the place of its event.
    fn contract(
        &mut self,
        table: (&DeTable<'_>, Range<usize>),
        names: &mut Vec<String>,
    ) -> Vec<(Range<usize>, Listener)> {
        let keys = Keys::new(self.source, table, &CONTRACT_KEYS, self.problems);
        let name = keys.text("name", self.problems);
        let name = keys.required("name", name, self.problems);
        if let Some(name) = &name {
            if names.contains(name.get_ref()) {
                self.report(
                    name.span(),
                    format!("duplicate entry '{}'", name.get_ref()),
                    "give each entry its own name",
                );
            }
            names.push(name.get_ref().clone());
        }
        let active = self.is_active(&keys);
        let entry = Entry {
            name: name.map(Spanned::into_inner).unwrap_or_default().into(),
            address: self.address(&keys, active),
            start_block: keys.number("start_block", 0..=MAX_BLOCK_NUMBER, self.problems).map(Spanned::into_inner),
            abi: self.abi(&keys),
            active,
        };
        let events = keys.tables("event", self.problems);
        if events.is_empty() {
            self.report(keys.span(), "the entry listens to no event", "add a [[contract.event]] below it");
        }
        let mut seen = Vec::new();
        let listeners: Vec<_> = events.into_iter().filter_map(|event| self.event(&entry, event, &mut seen)).collect();
        if active { listeners } else { Vec::new() }
    }

    fn is_active(&mut self, keys: &Keys<'_>) -> bool {
        let enabled = keys.flag("enabled", self.problems).unwrap_or(true);
        let Some(chains) = keys.numbers("chains", self.problems) else { return enabled };
        // Where chains.toml could not be read that is the mistake, not this.
        let unknown = |chain: &&Spanned<u64>| !self.known_chains.contains(chain.get_ref());
        for chain in chains.iter().filter(unknown).filter(|_| !self.known_chains.is_empty()) {
            let text = format!("chain {} is not in chains.toml", chain.get_ref());
            self.problems.push(Problem::at(self.source, chain.span(), text).mend("add it there, or take it out here"));
        }
        if chains.is_empty() {
            self.report(keys.span(), "'chains' is empty", "leave it out for every chain, or write enabled = false");
        }
        enabled && self.chain.is_some_and(|id| chains.iter().any(|chain| *chain.get_ref() == id))
    }

    fn address(&mut self, keys: &Keys<'_>, active: bool) -> Option<Address> {
        let text = keys.text("address", self.problems)?;
        let given = self.interpolated(&text, active)?;
        parse_address(&given).map_err(|(wrong, mend)| self.report(text.span(), wrong, mend)).ok()
    }

    fn abi(&mut self, keys: &Keys<'_>) -> Option<Arc<JsonAbi>> {
        let path = keys.text("abi", self.problems);
        let path = keys.required("abi", path, self.problems)?;
        let missing = |text| Problem::at(self.source, path.span(), text);
        self.abis.open(path.get_ref(), missing, self.problems)
    }

    fn event(
        &mut self,
        entry: &Entry,
        table: (&DeTable<'_>, Range<usize>),
        seen: &mut Vec<(B256, Arc<str>)>,
    ) -> Option<(Range<usize>, Listener)> {
        let keys = Keys::new(self.source, table, &EVENT_KEYS, self.problems);
        let name = keys.text("name", self.problems);
        let name = keys.required("name", name, self.problems);
        let handler = keys.text("handler", self.problems);
        let handler = keys.required("handler", handler, self.problems);
        let token_filter = keys.flag("token_filter", self.problems).unwrap_or(false);
        let target = handler.as_ref().and_then(|handler| self.handler(handler, entry.active));
        let (name, abi) = (name?, entry.abi.as_ref()?);
        let event =
            abi::event(abi, name.get_ref()).map_err(|(text, mend)| self.report(name.span(), text, mend)).ok()?;
        let topic0 = event.selector();
        if let Err((text, mend)) = abi::check_types(&event) {
            self.report(name.span(), text, mend);
            return None;
        }
        if let Some(topic) = keys.text("topic0", self.problems) {
            self.topic_checked |= topic.get_ref().contains("${TRANSFER_TOPIC");
            let given = self.interpolated(&topic, entry.active);
            if let Some(Err((text, mend))) = given.map(|given| check_hash(&given, &event.signature())) {
                self.report(topic.span(), text, mend);
            }
        }
        let shape = self.shape(&event, name.span())?;
        let (handler, target) = (Arc::from(handler?.into_inner()), target?);
        if seen.contains(&(topic0, Arc::clone(&handler))) {
            let text = format!("duplicate entry: '{}' goes to {handler} twice", name.get_ref());
            self.report(name.span(), text, "remove one of the two");
        }
        seen.push((topic0, Arc::clone(&handler)));
        let (contract, address, start_block) = (Arc::clone(&entry.name), entry.address, entry.start_block);
        let event_name = event.name.as_str().into();
        let listener = Listener {
            contract,
            address,
            start_block,
            event,
            event_name,
            topic0,
            handler,
            target,
            token_filter,
            shape,
        };
        Some((name.span(), listener))
    }

    /// How the event is decoded; `None` where it cannot be.
    fn shape(&mut self, event: &AbiEvent, span: Range<usize>) -> Option<Shape> {
        let indexed: Vec<bool> = event.inputs.iter().map(|input| input.indexed).collect();
        if event.signature() == TRANSFER && indexed == [true, true, false] {
            return Some(Shape::Erc20Transfer);
        }
        let resolved = event.resolve();
        let wrong = |error| {
            let text = format!("the ABI's '{}' cannot be decoded: {error}", event.name);
            self.report(span, text, "mend the ABI file");
        };
        resolved.map(Shape::Other).map_err(wrong).ok()
    }

    /// Holds `TRANSFER_TOPIC` against ERC-20's Transfer where no entry takes it up.
    fn check_transfer_topic(&mut self) {
        let checked = self.topic_checked;
        let Some(given) = self.layers.get("TRANSFER_TOPIC").filter(|_| !checked) else { return };
        let Err((text, mend)) = check_hash(given.value.trim(), TRANSFER) else { return };
        self.problems.push(Problem::new(given.place.clone(), format!("TRANSFER_TOPIC is wrong: {text}")).mend(mend));
    }

    /// Warns of entries that can match one log for one sink, where the first in the file wins.
    fn overlaps(&mut self, listeners: &[(Range<usize>, Listener)], warnings: &mut Vec<String>) {
        for (index, (span, later)) in listeners.iter().enumerate() {
            let earlier = listeners.iter().take(index).map(|(_, earlier)| earlier);
            for earlier in earlier.filter(|earlier| can_match_one_log(earlier, later)) {
                let place = Place::Span(Arc::clone(self.source), span.clone());
                let text =
                    format!("'{}' and '{}' can match one log for {}", earlier.contract, later.contract, later.target);
                warnings.push(format!("{place}: {text}; the first in the file wins"));
            }
        }
    }
}

fn can_match_one_log(one: &Listener, other: &Listener) -> bool {
    let addresses = one.address.is_none() || other.address.is_none() || one.address == other.address;
    addresses
        && one.topic0 == other.topic0
        && one.target == other.target
        && one.event.num_topics() == other.event.num_topics()
}

/// An address, its checksum right where it has one (EIP-55: mixed case).
fn parse_address(text: &str) -> Result<Address, (String, String)> {
    let digits = text.strip_prefix("0x").unwrap_or_default();
    let parsed = text.parse::<Address>().ok().filter(|_| digits.len() == 40);
    let Some(address) = parsed else {
        return Err((format!("'{text}' is not an address"), "write 0x and 40 hexadecimal digits".to_owned()));
    };
    let mixed = digits.contains(|sign: char| sign.is_ascii_lowercase())
        && digits.contains(|sign: char| sign.is_ascii_uppercase());
    let right = address.to_checksum(None);
    if mixed && right != text {
        return Err((format!("the checksum of {text} is wrong"), format!("if no digit is wrong, write {right}")));
    }
    Ok(address)
}

/// Whether a topic is the hash of an event's signature.
fn check_hash(text: &str, signature: &str) -> Result<(), (String, String)> {
    let right = keccak256(signature.as_bytes());
    match text.parse::<B256>() {
        Ok(topic) if topic == right => Ok(()),
        Ok(topic) => Err((
            format!("topic0 is {topic}, but '{signature}' hashes to {right}"),
            format!("write {right}, or leave it out"),
        )),
        Err(_) => Err((format!("'{text}' is not a topic"), "write 0x and 64 hexadecimal digits".to_owned())),
    }
}
