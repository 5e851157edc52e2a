//! `chaintap tokens`: what the business tracks on this chain, listed and changed.
//!
//! Reading works on every directory, writing on MongoDB. A running listener sees a change at its next refresh, and at
//! once where the server has change streams.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use alloy::primitives::Address;
use clap::Subcommand;
use comfy_table::{Table, presets};
use serde_json::json;

use super::Failure;
use crate::{
    config::TokenSettings,
    domain::Token,
    tokens::{FixedList, Loaded, MongoDirectory, TokenDirectory, TokenError, fixed, row},
};

/// Limit of each round trip to the server.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What to do with the tokens of this chain.
#[derive(Clone, Debug, Subcommand)]
pub enum TokensCommand {
    /// Show the tokens of this chain
    List {
        /// As a JSON array that `import` reads
        #[arg(long)]
        json: bool,
    },
    /// Add a token, or update the one at its address
    Add {
        /// Contract address; a checksum (EIP-55) is verified where it has one
        #[arg(long)]
        address: String,
        /// Ticker, stored in upper case
        #[arg(long)]
        symbol: String,
        /// Full name
        #[arg(long)]
        name: String,
        /// Decimal places, 0 to 255
        #[arg(long)]
        decimals: u8,
    },
    /// Remove a token
    Remove {
        /// Its address, or its symbol where only one token has it
        #[arg(value_name = "ADDRESS|SYMBOL")]
        token: String,
    },
    /// Add and update tokens from a JSON file; tokens it does not name stay
    Import {
        /// An array of { address, name, symbol, decimals, chainId }, or an object with one as "tokens"
        file: PathBuf,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

/// Does it for the chain `chain_id` (EIP-155): data goes to `out`, what happened to `notes`.
///
/// # Errors
///
/// [`Failure::Data`] for input that is wrong or names nothing, [`Failure::Config`] where no directory is configured or
/// it is unusable, [`Failure::Unavailable`] where it does not answer.
pub async fn run(
    command: &TokensCommand,
    settings: &TokenSettings,
    chain_id: u64,
    out: &mut (dyn Write + Send),
    notes: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    if let (TokensCommand::List { json }, TokenSettings::File(path)) = (command, settings) {
        return list(&FixedList::new(path.clone(), chain_id).load().await?, chain_id, *json, (out, notes));
    }
    let TokenSettings::Mongo { uri, database } = settings else {
        return Err(Failure::Config("the token list is not in MongoDB: set MONGODB_URI and MONGODB_DATABASE".into()));
    };
    let directory = MongoDirectory::connect(uri, database, chain_id, TIMEOUT).await?;
    let outcome = match command {
        TokensCommand::List { json } => match directory.load().await {
            Ok(loaded) => list(&loaded, chain_id, *json, (out, notes)),
            Err(error) => Err(error.into()),
        },
        TokensCommand::Add { address, symbol, name, decimals } => {
            let address = row::parse_checksummed(address).map_err(Failure::Data);
            match address.map(|address| new_token(address, symbol, name, *decimals)) {
                Ok(token) => add(&directory, &token, notes).await,
                Err(failure) => Err(failure),
            }
        }
        TokensCommand::Remove { token } => remove(&directory, token, notes).await,
        TokensCommand::Import { file, dry_run } => import(&directory, file, chain_id, *dry_run, notes).await,
    };
    directory.close().await;
    outcome
}

fn new_token(address: Address, symbol: &str, name: &str, decimals: u8) -> Token {
    Token { address, symbol: row::symbol(symbol), name: row::name(name), decimals }
}

fn list(
    loaded: &Loaded,
    chain_id: u64,
    as_json: bool,
    (out, notes): (&mut (dyn Write + Send), &mut (dyn Write + Send)),
) -> Result<(), Failure> {
    let mut tokens: Vec<&Token> = loaded.tokens.iter().map(AsRef::as_ref).collect();
    tokens.sort_by(|a, b| (&a.symbol, a.address).cmp(&(&b.symbol, b.address)));
    if as_json {
        let rows: Vec<_> = tokens.iter().map(|token| document(token, chain_id)).collect();
        serde_json::to_writer_pretty(&mut *out, &rows).map_err(|error| unwritten(&error.into()))?;
        writeln!(out).map_err(|error| unwritten(&error))?;
    } else {
        writeln!(out, "{}", table(&tokens)).map_err(|error| unwritten(&error))?;
    }
    tell_skipped(&loaded.skipped, notes)?;
    tell(notes, &format!("{} tokens of chain {chain_id}", tokens.len()))
}

fn document(token: &Token, chain_id: u64) -> serde_json::Value {
    json!({
        "chainId": chain_id,
        "address": token.address.to_checksum(None),
        "symbol": token.symbol,
        "name": token.name,
        "decimals": token.decimals,
    })
}

fn table(tokens: &[&Token]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["SYMBOL", "ADDRESS", "DECIMALS", "NAME"]);
    for token in tokens {
        let (address, decimals) = (token.address.to_checksum(None), token.decimals.to_string());
        table.add_row([&token.symbol, &address, &decimals, &token.name]);
    }
    table
}

async fn add(directory: &MongoDirectory, token: &Token, notes: &mut (dyn Write + Send)) -> Result<(), Failure> {
    directory.ensure_index().await?;
    let done = directory.import(std::slice::from_ref(token), false).await?;
    let what = match (done.added, done.updated) {
        (0, 0) => "is listed already",
        (0, _) => "updated",
        _ => "added",
    };
    tell(notes, &format!("{} {}: {what}", token.symbol, token.address))
}

async fn remove(directory: &MongoDirectory, named: &str, notes: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let address = if named.starts_with("0x") || named.starts_with("0X") {
        row::parse_checksummed(named).map_err(Failure::Data)?
    } else {
        the_address_of(&row::symbol(named), &directory.load().await?)?
    };
    if directory.remove(&address).await? == 0 {
        return Err(Failure::Data(format!("no token {named} is listed for this chain")));
    }
    tell(notes, &format!("{address}: removed"))?;
    if directory.load().await?.tokens.is_empty() {
        tell(
            notes,
            "the list is empty now; a running listener keeps its last good one unless ALLOW_EMPTY_TOKENS=true",
        )?;
    }
    Ok(())
}

fn the_address_of(symbol: &str, loaded: &Loaded) -> Result<Address, Failure> {
    let mut found: Vec<_> =
        loaded.tokens.iter().filter(|token| token.symbol == symbol).map(|token| token.address).collect();
    found.sort();
    match found.as_slice() {
        [] => Err(Failure::Data(format!("no token {symbol} is listed for this chain"))),
        [address] => Ok(*address),
        several => {
            let addresses: Vec<_> = several.iter().map(|address| address.to_checksum(None)).collect();
            Err(Failure::Data(format!("{symbol} names several tokens, give an address: {}", addresses.join(", "))))
        }
    }
}

async fn import(
    directory: &MongoDirectory,
    file: &Path,
    chain_id: u64,
    dry_run: bool,
    notes: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let (loaded, refused) = read_checked(file, chain_id)?;
    let tokens: Vec<Token> = loaded.tokens.iter().map(|token| token.as_ref().clone()).collect();
    if !dry_run && !tokens.is_empty() {
        directory.ensure_index().await?;
    }
    let done = directory.import(&tokens, dry_run).await?;
    tell_skipped(&loaded.skipped, notes)?;
    let summary = format!("{} added, {} updated, {} unchanged", done.added, done.updated, done.unchanged);
    tell(
        notes,
        &format!("chain {chain_id}: {summary}{}", if dry_run { " (dry run: nothing was written)" } else { "" }),
    )?;
    match (tokens.is_empty(), refused) {
        (true, _) => Err(Failure::Data(format!("{} holds no valid token of chain {chain_id}", file.display()))),
        (false, 0) => Ok(()),
        (false, _) => Err(Failure::No(format!("{refused} rows of chain {chain_id} were refused"))),
    }
}

/// The file's tokens of this chain, and how many of its rows were refused; a wrong checksum is a reason here, because
/// this is where a mistyped address enters. A row of no EVM chain is skipped, not refused.
fn read_checked(file: &Path, chain_id: u64) -> Result<(Loaded, usize), Failure> {
    let mut gathering = row::Gathering::default();
    let mut refused = 0;
    for entry in fixed::read(file, chain_id).map_err(|error| Failure::Data(error.to_string()))? {
        let token = entry.row.and_then(|row| {
            let checked = row::parse_checksummed(row.address_text().unwrap_or_default());
            let token = row.token().and_then(|token| checked.map(|_| token));
            refused += usize::from(token.is_err());
            token
        });
        gathering.take(|| format!("line {}", entry.line), token.map(|token| (token, None)));
    }
    Ok((gathering.finish(), refused))
}

fn tell_skipped(skipped: &[String], notes: &mut (dyn Write + Send)) -> Result<(), Failure> {
    skipped.iter().try_for_each(|line| tell(notes, &format!("skipped: {line}")))
}

fn tell(notes: &mut (dyn Write + Send), text: &str) -> Result<(), Failure> {
    writeln!(notes, "{text}").map_err(|error| unwritten(&error))
}

fn unwritten(error: &io::Error) -> Failure {
    Failure::Internal(format!("cannot write the output: {error}"))
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Transient(_) => Self::Unavailable(error.to_string()),
            TokenError::Fatal(_) => Self::Config(error.to_string()),
        }
    }
}
