//! Chain profiles (`config/chains.toml`).

use std::{sync::Arc, time::Duration};

use toml::Spanned;

use super::{
    endpoints::Fault,
    problem::{Problem, Source, nearest},
    raw::{self, Keys},
};
use crate::domain::MAX_BLOCK_NUMBER;

/// Most blocks in one historical request (contract §4).
pub const MAX_BATCH_BLOCKS: u64 = 100;
/// Most historical requests in flight at first.
const MAX_PARALLEL: usize = 256;
/// Deepest finality that is believed; a larger number is a slip of the pen.
const MAX_FINALITY_DEPTH: u64 = 100_000;
const MAX_BLOCK_TIME: Duration = Duration::from_hours(1);
const MAX_SPACING: Duration = Duration::from_mins(1);
/// Of so many historical blocks one is proven where nobody says otherwise.
pub(super) const VERIFY_SAMPLE: u64 = 100;
/// Of so many hundreds of historical blocks one is compared with what another endpoint has, where nobody says otherwise.
pub(super) const AUDIT_SAMPLE: u64 = 20;
const KEYS: [&str; 12] = [
    "id",
    "name",
    "redis_db",
    "block_time",
    "finality_depth",
    "batch_blocks",
    "parallel",
    "spacing",
    "verify",
    "verify_sample",
    "audit_sample",
    "log_index",
];

/// What the logs that a node tells of are held against before they are believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// Nothing: for chains whose blooms do not hold.
    None,
    /// The bloom of the block's header: an answer without logs where it speaks of some is not taken at once.
    #[default]
    Bloom,
    /// The block's receipts, whose root and header are recomputed (`src/rpc/receipts.rs`).
    Receipts,
}

impl Verify {
    /// By its name in `chains.toml` and in `VERIFY`; otherwise what is wrong, and the mend.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        match text {
            "none" => Ok(Self::None),
            "bloom" => Ok(Self::Bloom),
            "receipts" => Ok(Self::Receipts),
            other => Err((format!("is not a way to verify: '{other}'"), nearest(other, ["none", "bloom", "receipts"]))),
        }
    }
}

/// Within what a chain numbers its logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogIndex {
    /// The block, as Ethereum does.
    #[default]
    Block,
    /// The transaction, as chains of the Ethermint lineage did: the transaction's place makes a log's place unique.
    Transaction,
}

/// What is particular to one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainProfile {
    /// EIP-155 chain id.
    pub id: u64,
    /// Name, and the service name where none is given: `base_mainnet`.
    pub name: String,
    /// Redis database number of this chain (contract §3).
    pub redis_db: u8,
    /// Expected time between two blocks; tells a stalled head from a slow one.
    pub block_time: Duration,
    /// Most blocks in one historical request, at most 100.
    pub batch_blocks: u64,
    /// Historical requests in flight at first.
    pub parallel: usize,
    /// Pause between the starts of two historical requests at first.
    pub spacing: Duration,
    /// Blocks on top of a block after which no reorganisation is expected.
    pub finality_depth: u64,
    /// What logs are held against, unless `VERIFY` says otherwise.
    pub verify: Verify,
    /// With [`Verify::Receipts`] one of so many historical blocks is proven: 1 is every block, 0 none.
    pub verify_sample: u64,
    /// With two endpoints or more one of so many hundreds of historical blocks is compared with what another one has: 1 is
    /// every block, 0 none.
    pub audit_sample: u64,
    /// Within what its logs are numbered.
    pub log_index: LogIndex,
}

/// The valid profiles of a file; each of the others is reported.
pub(super) fn read(source: &Arc<Source>, problems: &mut Vec<Problem>) -> Vec<ChainProfile> {
    let Some(document) = raw::parse_whole(source, problems) else { return Vec::new() };
    let top = Keys::new(source, (document.get_ref(), 0..0), &["chain"], problems);
    let mut seen = Seen { source, ids: Vec::new(), names: Vec::new(), databases: Vec::new() };
    let mut chains = Vec::new();
    for table in top.tables("chain", problems) {
        let keys = Keys::new(source, table, &KEYS, problems);
        chains.extend(profile(&keys, &mut seen, problems));
    }
    if chains.is_empty() {
        problems.push(Problem::at(source, 0..0, "there is no valid [[chain]] in this file"));
    }
    chains
}

fn profile(keys: &Keys<'_>, seen: &mut Seen<'_>, problems: &mut Vec<Problem>) -> Option<ChainProfile> {
    let id = keys.number("id", 1..=MAX_BLOCK_NUMBER, problems);
    let id = keys.required("id", id, problems);
    let name = keys.text("name", problems);
    let name = keys.required("name", name, problems);
    let redis_db = keys.number("redis_db", 0..=u8::MAX, problems);
    let redis_db = keys.required("redis_db", redis_db, problems);
    let block_time = keys.duration("block_time", MAX_BLOCK_TIME, problems);
    let block_time = keys.required("block_time", block_time, problems);
    let finality_depth = keys.number("finality_depth", 1..=MAX_FINALITY_DEPTH, problems);
    let finality_depth = keys.required("finality_depth", finality_depth, problems);
    let batch_blocks = keys.number("batch_blocks", 1..=MAX_BATCH_BLOCKS, problems);
    let parallel = keys.number("parallel", 1..=MAX_PARALLEL, problems);
    let spacing = keys.duration("spacing", MAX_SPACING, problems);
    let verify_sample = keys.number("verify_sample", 0..=MAX_BLOCK_NUMBER, problems);
    let audit_sample = keys.number("audit_sample", 0..=MAX_BLOCK_NUMBER, problems);
    let (verify, log_index) = (verify(keys, seen.source, problems), log_index(keys, seen.source, problems));
    let profile = ChainProfile {
        id: *id.as_ref()?.get_ref(),
        name: name.as_ref()?.get_ref().clone(),
        redis_db: *redis_db.as_ref()?.get_ref(),
        block_time: block_time?,
        batch_blocks: batch_blocks.map_or(MAX_BATCH_BLOCKS, Spanned::into_inner),
        parallel: parallel.map_or(3, Spanned::into_inner),
        spacing: spacing.unwrap_or(Duration::from_millis(300)),
        finality_depth: *finality_depth?.get_ref(),
        verify,
        verify_sample: verify_sample.map_or(VERIFY_SAMPLE, Spanned::into_inner),
        audit_sample: audit_sample.map_or(AUDIT_SAMPLE, Spanned::into_inner),
        log_index,
    };
    seen.check(&id?, &name?, &redis_db?, problems);
    Some(profile)
}

fn verify(keys: &Keys<'_>, source: &Arc<Source>, problems: &mut Vec<Problem>) -> Verify {
    let Some(given) = keys.text("verify", problems) else { return Verify::default() };
    Verify::parse(given.get_ref()).unwrap_or_else(|(text, mend)| {
        problems.push(Problem::at(source, given.span(), format!("'verify' {text}")).mend(mend));
        Verify::default()
    })
}

fn log_index(keys: &Keys<'_>, source: &Arc<Source>, problems: &mut Vec<Problem>) -> LogIndex {
    match keys.text("log_index", problems) {
        None => LogIndex::default(),
        Some(given) => match given.get_ref().as_str() {
            "block" => LogIndex::Block,
            "transaction" => LogIndex::Transaction,
            other => {
                let text = format!("'log_index' is nothing that numbers logs: '{other}'");
                problems.push(Problem::at(source, given.span(), text).mend("write \"block\" or \"transaction\""));
                LogIndex::default()
            }
        },
    }
}

/// What earlier entries have taken: every chain has its own id, name and database.
struct Seen<'s> {
    source: &'s Arc<Source>,
    ids: Vec<u64>,
    names: Vec<String>,
    databases: Vec<u8>,
}

impl Seen<'_> {
    fn check(
        &mut self,
        id: &Spanned<u64>,
        name: &Spanned<String>,
        redis_db: &Spanned<u8>,
        problems: &mut Vec<Problem>,
    ) {
        let mut report = |span, text: String, mend: &str| {
            problems.push(Problem::at(self.source, span, text).mend(mend));
        };
        if self.ids.contains(id.get_ref()) {
            report(id.span(), format!("chain {} is listed twice", id.get_ref()), "remove one of the two");
        }
        if self.names.contains(name.get_ref()) {
            report(name.span(), format!("the name '{}' is taken", name.get_ref()), "give each chain its own name");
        }
        if let Err(text) = service_name(name.get_ref()) {
            report(name.span(), format!("the name {text}"), "use letters, digits, '_', '-', '.', at most 64");
        }
        if self.databases.contains(redis_db.get_ref()) {
            let text = format!("Redis database {} belongs to another chain", redis_db.get_ref());
            report(redis_db.span(), text, "give each chain its own database");
        }
        self.ids.push(*id.get_ref());
        self.names.push(name.get_ref().clone());
        self.databases.push(*redis_db.get_ref());
    }
}

/// Whether a name can stand in keys, views and metric labels.
pub(super) fn service_name(name: &str) -> Result<String, String> {
    let allowed = |sign: char| sign.is_ascii_alphanumeric() || matches!(sign, '_' | '-' | '.' | ':');
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        return Err(format!("'{name}' is not a service name"));
    }
    Ok(name.to_owned())
}
