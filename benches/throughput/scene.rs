//! A node, and the programs that take turns in reading its whole history.

use std::io::Read;

use alloy::primitives::Address;

use crate::{
    chain::{FIRST, Truth},
    measured::{self, Run, Runs, Server, ids, lines, listener, number, this},
};

/// How much more the listener may ask for at once than at first, where it is served well (`src/rpc/caps.rs`).
const GROWTH: usize = 4;

/// A node's history, and how it is read.
pub struct Scene {
    node: Server,
    blocks: u64,
    at_once: usize,
    tokens: Vec<Address>,
    settings: Vec<(&'static str, String)>,
}

/// What a node was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Requests for logs.
    pub requests: u64,
    /// Most of them at once.
    pub peak: u64,
    /// Bytes of their answers.
    pub bytes: u64,
    /// Those that named addresses.
    pub by_address: u64,
}

impl Scene {
    /// A chain of this shape (see [`Shape`](crate::chain::Shape)), whose node answers after so many milliseconds; nobody asks for more than so many ranges at
    /// once.
    pub fn new(shape: &str, blocks: u64, latency: u64, at_once: usize) -> Self {
        assert!(at_once.is_multiple_of(GROWTH), "the listener can be held to multiples of {GROWTH} alone");
        let node = Server::start(&["node", &blocks.to_string(), &latency.to_string(), shape]);
        Self { node, blocks, at_once, tokens: Vec::new(), settings: Vec::new() }
    }

    /// The listener delivers transfers of these tokens alone.
    pub fn only(self, tokens: impl IntoIterator<Item = Address>) -> Self {
        Self { tokens: tokens.into_iter().collect(), ..self }
    }

    /// The listener has this setting besides.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.settings.push((name, value.to_owned()));
        self
    }

    /// What the listener has to deliver.
    pub fn truth(&mut self) -> Truth {
        let whose = if self.tokens.is_empty() { "all" } else { "tracked" };
        let numbers = numbers(&self.node.ask(whose));
        Truth { logs: numbers[0], ids: numbers[1] }
    }

    /// What the node was asked for since it was last asked for this.
    pub fn served(&mut self) -> Served {
        let numbers = numbers(&self.node.ask("served"));
        Served { requests: numbers[0], peak: numbers[1], bytes: numbers[2], by_address: numbers[3] }
    }

    /// The bare download: counts bytes.
    pub fn bytes(&self) -> Run {
        self.reference("bytes")
    }

    /// Download and parsing: counts logs.
    pub fn parsed(&self) -> Run {
        self.reference("parse")
    }

    fn reference(&self, what: &str) -> Run {
        let (blocks, at_once) = (self.blocks.to_string(), self.at_once.to_string());
        measured::run(this().args(["download", &self.url(), &blocks, &at_once, what]), number)
    }

    /// The listener: counts lines, and nothing else is done with them.
    pub fn listened(&self) -> Run {
        self.listen(lines)
    }

    /// The listener, and what its lines say that it delivered. Counts bytes.
    pub fn checked(&self) -> (Run, Truth) {
        let mut delivered = Truth::default();
        let run = self.listen(|output| ids(output, &mut delivered));
        (run, delivered)
    }

    /// The listener until everything is delivered, with an empty store.
    pub fn listen(&self, count: impl FnOnce(&mut dyn Read) -> u64) -> Run {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join("config")).unwrap();
        std::fs::write(home.path().join("config/chains.toml"), self.profile()).unwrap();
        let mut environment = vec![
            ("CHAIN_ID", "1".to_owned()),
            ("WEB3_PROVIDER", self.url()),
            ("START_BLOCK", FIRST.to_string()),
            ("HTTP_BIND", "127.0.0.1".to_owned()),
            ("PORT", "0".to_owned()),
            ("LOG_LEVEL", "error".to_owned()),
        ];
        if !self.tokens.is_empty() {
            std::fs::write(home.path().join("tokens.json"), list(&self.tokens)).unwrap();
            environment.push(("TOKENS_FILE", "tokens.json".to_owned()));
        }
        environment.extend(self.settings.iter().cloned());
        let until = (FIRST + self.blocks - 1).to_string();
        measured::run(listener(home.path(), &environment).args(["run", "--until", &until]), count)
    }

    /// The chain's profile: the listener begins with as many requests as lead to no more than are allowed.
    fn profile(&self) -> String {
        let parallel = self.at_once / GROWTH;
        format!(
            "[[chain]]\nid = 1\nname = \"bench\"\nredis_db = 0\nblock_time = \"12s\"\nfinality_depth = 64\n\
             parallel = {parallel}\nspacing = \"1ms\"\n"
        )
    }

    fn url(&self) -> String {
        format!("http://{}/", self.node.address)
    }
}

/// Whoever reads the listener, alone: as many lines of as many bytes, from a program that has them at hand.
pub fn reader(lines: u64, bytes: u64) -> Run {
    measured::run(this().args(["pour", &lines.to_string(), &bytes.to_string()]), measured::lines)
}

/// The same number of turns for all, one after the other, so that a machine that is busy for a while is so for each.
pub fn turns<const N: usize>(times: usize, programs: [&dyn Fn() -> Run; N]) -> [Runs; N] {
    let mut runs: [Runs; N] = std::array::from_fn(|_| Runs::default());
    for _ in 0..times {
        for (runs, program) in runs.iter_mut().zip(programs) {
            runs.0.push(program());
        }
    }
    runs
}

fn numbers(line: &str) -> Vec<u64> {
    line.split(' ').map(|number| number.parse().unwrap()).collect()
}

/// A token list in the form of the collection's documents.
fn list(tokens: &[Address]) -> String {
    let document = |token: &Address| serde_json::json!({"address": token, "name": "Token", "symbol": "TOK", "decimals": 18, "chainId": "1"});
    serde_json::Value::Array(tokens.iter().map(document).collect()).to_string()
}
