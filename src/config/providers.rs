//! RPC providers: where each is, how much it is preferred and what its plan allows (`config/providers.toml`).
//!
//! The file is optional, and never drawn: an address in it may hold a key, though keys belong into the environment, from
//! which `${NAME}` takes them.

use std::sync::Arc;

use toml::{Spanned, de::DeTable};

use super::{
    endpoints,
    interpolation::{Unusable, interpolate},
    layers::Layers,
    problem::{Problem, Source},
    raw::{self, Keys},
    secret::SecretUrl,
};

const KEYS: [&str; 6] = ["name", "ws", "http", "priority", "requests_per_second", "compute_units_per_second"];
/// The priority of a provider that has none; smaller ones are preferred.
const PRIORITY: u8 = 1;
/// Most requests, and most compute units, that a plan allows in a second; a larger number is a slip of the pen.
const MOST: (u32, u32) = (100_000, 10_000_000);
/// Longest name, in characters.
const NAME_CHARS: usize = 64;

/// An RPC provider. It has at least one of the two addresses.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Its name in logs, metric labels and `/health`: bears no secret, and no two have the same.
    pub name: String,
    /// Where it tells of new heads.
    pub socket: Option<SecretUrl>,
    /// Where it is asked; `None`: at the HTTP twin of its socket, or over the socket.
    pub http: Option<SecretUrl>,
    /// Requests that its plan allows in a second, 1 to 100,000; `None`: no limit is known.
    pub requests_per_second: Option<u32>,
    /// Compute units that its plan allows in a second, 1 to 10,000,000; `None`: no limit is known.
    pub compute_units_per_second: Option<u32>,
}

impl From<SecretUrl> for Provider {
    fn from(url: SecretUrl) -> Self {
        let name = url.name().to_owned();
        let (socket, http) = if url.is_socket() { (Some(url), None) } else { (None, Some(url)) };
        Self { name, socket, http, requests_per_second: None, compute_units_per_second: None }
    }
}

impl Provider {
    /// Its addresses.
    pub fn urls(&self) -> impl Iterator<Item = &SecretUrl> {
        self.socket.iter().chain(&self.http)
    }
}

/// The providers at these addresses, in their order. A socket and the HTTP address beside it are of one provider: counted as
/// two, one node would be its own witness.
pub(super) fn paired(urls: Vec<SecretUrl>) -> Vec<Provider> {
    let mut providers: Vec<Provider> = Vec::new();
    for url in urls {
        let pair = providers.iter_mut().find(|known| match (&known.socket, &known.http) {
            (Some(socket), None) => !url.is_socket() && socket.is_beside(&url),
            (None, Some(http)) => url.is_socket() && url.is_beside(http),
            _ => false,
        });
        match pair {
            Some(known) if url.is_socket() => known.socket = Some(url),
            Some(known) => known.http = Some(url),
            None => providers.push(Provider::from(url)),
        }
    }
    providers
}

/// What a file says of providers.
pub(super) struct Listed {
    /// Those that have an address here, in order of preference.
    pub(super) providers: Vec<Provider>,
    /// Whether there is any entry at all.
    pub(super) is_any: bool,
}

/// Reads `providers.toml`; every mistake in it is reported.
pub(super) fn read(source: &Arc<Source>, layers: &Layers, problems: &mut Vec<Problem>) -> Listed {
    let Some(document) = raw::parse_whole(source, problems) else {
        return Listed { providers: Vec::new(), is_any: true };
    };
    let top = Keys::new(source, (document.get_ref(), 0..0), &["provider"], problems);
    let tables = top.tables("provider", problems);
    let is_any = !tables.is_empty();
    let mut reader = Reader { source, layers, problems, names: Vec::new(), urls: Vec::new() };
    let mut found: Vec<(u8, Provider)> = tables.into_iter().filter_map(|table| reader.provider(table)).collect();
    found.sort_by_key(|(priority, _)| *priority);
    Listed { providers: found.into_iter().map(|(_, provider)| provider).collect(), is_any }
}

/// Reads the entries one by one and keeps every mistake.
struct Reader<'a> {
    source: &'a Arc<Source>,
    layers: &'a Layers,
    problems: &'a mut Vec<Problem>,
    names: Vec<String>,
    /// The addresses of the entries so far, and where each entry begins: two entries for one node would be two witnesses.
    urls: Vec<(usize, SecretUrl)>,
}

impl Reader<'_> {
    /// An entry with its priority; `None` where something is wrong with it, or it has no address here.
    fn provider(&mut self, table: (&DeTable<'_>, std::ops::Range<usize>)) -> Option<(u8, Provider)> {
        let keys = Keys::new(self.source, table, &KEYS, self.problems);
        let name = self.name(&keys);
        let (ws, http) = (keys.text("ws", self.problems), keys.text("http", self.problems));
        if ws.is_none() && http.is_none() {
            let text = "the provider has neither 'ws' nor 'http'";
            self.problems
                .push(Problem::at(self.source, keys.span(), text).mend("write ws = \"${NAME}\", http, or both"));
        }
        let entry = keys.span().start;
        let socket = ws.and_then(|text| self.url(entry, &text, &["wss", "ws"]));
        let http = http.and_then(|text| self.url(entry, &text, &["https", "http"]));
        let priority = keys.number("priority", 0..=u8::MAX, self.problems);
        let requests = keys.number("requests_per_second", 1..=MOST.0, self.problems);
        let units = keys.number("compute_units_per_second", 1..=MOST.1, self.problems);
        if socket.is_none() && http.is_none() {
            return None;
        }
        let provider = Provider {
            name: name?,
            socket,
            http,
            requests_per_second: requests.map(Spanned::into_inner),
            compute_units_per_second: units.map(Spanned::into_inner),
        };
        Some((priority.map_or(PRIORITY, Spanned::into_inner), provider))
    }

    fn name(&mut self, keys: &Keys<'_>) -> Option<String> {
        let name = keys.text("name", self.problems);
        let name = keys.required("name", name, self.problems)?;
        let allowed = |sign: char| sign.is_ascii_alphanumeric() || "_-.".contains(sign);
        let text = name.get_ref();
        if text.is_empty() || text.len() > NAME_CHARS || !text.chars().all(allowed) {
            let mend = format!("use letters, digits, '_', '-', '.', at most {NAME_CHARS}");
            self.problems
                .push(Problem::at(self.source, name.span(), "the name cannot stand in a metric label").mend(mend));
            return None;
        }
        if self.names.contains(text) {
            let text = format!("the name '{text}' is taken");
            self.problems.push(Problem::at(self.source, name.span(), text).mend("give each provider its own name"));
        }
        self.names.push(text.clone());
        Some(name.into_inner())
    }

    /// An address with its variables put in; `None` where it is wrong, which is reported, or empty here.
    fn url(&mut self, entry: usize, text: &Spanned<String>, schemes: &[&str]) -> Option<SecretUrl> {
        let problem = |wrong: String| Problem::at(self.source, text.span(), wrong);
        let filled = match interpolate(text.get_ref(), self.layers) {
            Ok(filled) => filled,
            Err(Unusable::Unset(name)) => {
                let mend = format!("set {name}, or write ${{{name}:-}} to leave the provider out where it is not set");
                self.problems.push(problem(format!("{name} is not set")).mend(mend));
                return None;
            }
            // What is wrong is not repeated: it may stand beside a key.
            Err(Unusable::Wrong(_, _)) => {
                let wrong = "the address has a placeholder that cannot be used".to_owned();
                self.problems
                    .push(problem(wrong).mend("write ${NAME} or ${NAME:-fallback}, of a variable of your own"));
                return None;
            }
        };
        if filled.is_empty() {
            return None;
        }
        let url = endpoints::address(&filled, schemes, "an address");
        match url {
            Ok(url) => match self.urls.iter().find(|(other, known)| *other != entry && known.is_beside(&url)) {
                Some((_, known)) if known.is_socket() == url.is_socket() => {
                    self.problems.push(problem("the address is given twice".to_owned()).mend("remove one of the two"));
                    None
                }
                Some(_) => {
                    let text = "the address is of the node of another [[provider]], over the other scheme".to_owned();
                    let mend =
                        "write ws and http of one node into one [[provider]]: as two it would be its own witness";
                    self.problems.push(problem(text).mend(mend));
                    None
                }
                None => {
                    self.urls.push((entry, url.clone()));
                    Some(url)
                }
            },
            Err((wrong, mend)) => {
                self.problems.push(problem(format!("the address {wrong}")).mend(mend));
                None
            }
        }
    }
}
