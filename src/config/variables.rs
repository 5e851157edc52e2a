//! Every variable, declared once: `.env.example`, `docs/configuration.md` and the README are checked against this
//! table, the keys of `config/default.toml` are its names in lower case, and nothing else is read.

/// One variable of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name in the environment.
    pub name: &'static str,
    /// What it means, in one line of Markdown.
    pub meaning: &'static str,
    /// The value that it has when nobody gives one; empty for none.
    pub default: &'static str,
    /// What happens when nobody gives one, where that is not just the default.
    pub absent: &'static str,
    /// How much of its value may be shown.
    pub secrecy: Secrecy,
}

/// How much of a value may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// All of it.
    Open,
    /// Of each address in it, scheme and host.
    Address,
    /// The last four characters at most.
    Opaque,
}

/// Variables that belong together, with the heading under which they are documented.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The heading.
    pub title: &'static str,
    /// Its variables.
    pub variables: &'static [Variable],
}

const fn open(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, meaning, default, absent: "", secrecy: Secrecy::Open }
}

const fn optional(name: &'static str, absent: &'static str, meaning: &'static str) -> Variable {
    Variable { name, meaning, default: "", absent, secrecy: Secrecy::Open }
}

const fn address(name: &'static str, absent: &'static str, meaning: &'static str) -> Variable {
    Variable { name, meaning, default: "", absent, secrecy: Secrecy::Address }
}

const fn key(name: &'static str, absent: &'static str, meaning: &'static str) -> Variable {
    Variable { name, meaning, default: "", absent, secrecy: Secrecy::Opaque }
}

/// All variables, in the order of the documentation.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Chain",
        variables: &[
            optional(
                "CHAIN_ID",
                "start refuses, naming the known chains",
                "EIP-155 id of the chain: 1 Ethereum, 8453 Base, 137 Polygon, 25 Cronos, or any chain in `config/chains.toml`",
            ),
            address(
                "WEB3_PROVIDER",
                "start refuses",
                "one or more endpoints, comma separated, in order of preference: `wss://`, `ws://`, `https://`, `http://`",
            ),
            open(
                "START_BLOCK",
                "latest",
                "where to begin when the store holds nothing yet: `N` = N is the first block delivered; `latest` = the head at that moment is the first",
            ),
            open(
                "EXPECT_STATE",
                "false",
                "whether a store that holds nothing is refused instead of begun at `START_BLOCK`",
            ),
            open(
                "AUDIT",
                "true",
                "with two endpoints or more: hold delivered blocks against a second one before they count as final",
            ),
            optional(
                "VERIFY",
                "`verify` of the chain in `config/chains.toml`",
                "what a node's logs are held against: `none`, `bloom` (an empty answer against the header), `receipts` (the block's receipts, proven)",
            ),
            open(
                "DELIVER",
                "instant",
                "`instant` (at the head; what leaves the chain is taken back), `safe`, `finalized`, or a depth in blocks",
            ),
        ],
    },
    Group {
        title: "State",
        variables: &[
            address(
                "REDIS_URL",
                "embedded state store in `DATA_DIR`, one replica only",
                "`redis://` or `rediss://`; a database number in it must be the chain's",
            ),
            open("DATA_DIR", "./data", "directory of the embedded state store"),
            open(
                "DURABILITY",
                "auto",
                "barrier between an intent and its messages: `auto` (WAIT where Redis has replicas), `required` (WAIT or WAITAOF, or no start), `none` (development)",
            ),
            optional(
                "LAST_PROCESSED_BLOCK_KEY",
                "the chain's name in `config/chains.toml`",
                "the service name written into the store's views, e.g. `base_mainnet`",
            ),
        ],
    },
    Group {
        title: "Tokens",
        variables: &[
            address(
                "MONGODB_URI",
                "token filtering is off unless `TOKENS_FILE` is given",
                "where the `tokens` collection lives",
            ),
            address("MONGO_URI", "", "another name of `MONGODB_URI`; both at once are refused"),
            optional("MONGODB_DATABASE", "the database of the URI; neither: start refuses", "the database's name"),
            optional(
                "TOKENS_FILE",
                "",
                "a JSON file of tokens in the form of the collection's documents, instead of MongoDB",
            ),
            open("TOKEN_REFRESH", "5m", "how often the token list is read again"),
            open("ALLOW_EMPTY_TOKENS", "false", "whether a token list that becomes empty is believed"),
        ],
    },
    Group {
        title: "Queues",
        variables: &[
            optional(
                "TRANSFER_HANDLER_SQS",
                "events go to standard output, one JSON object a line",
                "queue URL (standard or `.fifo`) for transfers",
            ),
            optional(
                "TRANSFER_TOPIC",
                "keccak256 of the signature",
                "the Transfer event's topic0, an assertion: a value that the ABI's signature does not hash to is refused",
            ),
        ],
    },
    Group {
        title: "AWS",
        variables: &[
            optional(
                "AWS_REGION",
                "the region in the queue's URL, else as the AWS SDK finds it",
                "region of the queue",
            ),
            optional("AWS_ENDPOINT_URL", "AWS", "another endpoint for every AWS service"),
            optional("AWS_ENDPOINT_URL_SQS", "`AWS_ENDPOINT_URL`", "another endpoint for SQS"),
            optional("AWS_ENDPOINT_URL_SECRETS_MANAGER", "`AWS_ENDPOINT_URL`", "another endpoint for Secrets Manager"),
            key("AWS_ACCESS_KEY_ID", "as the AWS SDK finds it: profile, container, instance role", "access key"),
            key("AWS_SECRET_ACCESS_KEY", "as `AWS_ACCESS_KEY_ID`", "its secret"),
            key("AWS_SESSION_TOKEN", "none", "session token of temporary credentials"),
            optional(
                "AWS_SECRET_NAME",
                "not asked",
                "a Secrets Manager secret holding a JSON object of these same variables",
            ),
        ],
    },
    Group {
        title: "Operations",
        variables: &[
            open("HTTP_BIND", "0.0.0.0", "address of the HTTP endpoints; read-only answers only"),
            open("PORT", "3001", "port of the HTTP endpoints"),
            open("LOG_LEVEL", "info", "`trace`, `debug`, `info`, `warn`, `error` or `off`"),
            optional(
                "RUST_LOG",
                "`LOG_LEVEL`",
                "log filter in the directives of `tracing`, e.g. `info,chaintap::rpc=debug`",
            ),
            optional("LOG_FORMAT", "`pretty` on a terminal, `json` otherwise", "`json` or `pretty`"),
            address("SENTRY_DSN", "Sentry off", "errors and panics go to Sentry"),
            optional(
                "RECORD_DIR",
                "nothing is recorded",
                "a directory for what the nodes are asked and what they answer, without keys; `chaintap devchain --replay` serves it again",
            ),
            open("RECORD_MAX_BYTES", "256MiB", "size of everything that is recorded there; the oldest records go"),
        ],
    },
    Group {
        title: "Limits",
        variables: &[
            open("RPC_TIMEOUT", "20s", "one request to a node, to the last byte of its answer"),
            open(
                "RPC_MAX_BYTES",
                "32MiB",
                "largest answer of a node that is read; a range whose answer is larger is asked for in parts",
            ),
            open("SINK_TIMEOUT", "30s", "one call of a queue"),
            open("CHUNK_LOGS", "1000", "logs handled at once"),
            open("SHUTDOWN_GRACE", "25s", "what is in flight at a shutdown may finish within this"),
        ],
    },
];

/// All variables, in the order of the documentation.
pub fn all() -> impl Iterator<Item = &'static Variable> {
    GROUPS.iter().flat_map(|group| group.variables)
}

/// The variable of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Variable> {
    all().find(|variable| variable.name == name)
}
