//! The token list from a file, for use without MongoDB.
//!
//! A JSON array of documents in the form of the `tokens` collection, or an object with such an array as `tokens`, as
//! published token lists have it. The file is read anew at each load, so the periodic refresh sees a changed file. Rows
//! of other chains are passed over; a row without an EVM chain id is skipped and told.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Loaded, TokenDirectory, TokenError,
    row::{Gathering, MAX_ROWS, Row},
};

/// Largest file that is read, bytes.
const MAX_BYTES: u64 = 256 << 20;

/// The list in one file, for one chain.
#[derive(Clone, Debug)]
pub struct FixedList {
    path: PathBuf,
    chain_id: u64,
}

impl FixedList {
    /// The tokens of `chain_id` (EIP-155) in the file at `path`, which is read at the first load.
    #[must_use]
    pub fn new(path: PathBuf, chain_id: u64) -> Self {
        Self { path, chain_id }
    }
}

#[async_trait]
impl TokenDirectory for FixedList {
    async fn load(&self) -> Result<Loaded, TokenError> {
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut gathering = Gathering::default();
            for entry in read(&this.path, this.chain_id)? {
                gathering.take(|| format!("line {}", entry.line), entry.row.and_then(|row| row.listed()));
            }
            Ok(gathering.finish())
        });
        read.await.unwrap_or_else(|_| Err(TokenError::Transient("reading the token list was interrupted".into())))
    }

    async fn changed(&self) {
        std::future::pending::<()>().await;
    }
}

/// A row of the file that is this chain's, or might be.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where it begins, from 1.
    pub(crate) line: usize,
    /// The row, or why it is none.
    pub(crate) row: Result<Row, String>,
}

/// All rows of the file at `path` but those of other chains.
pub(crate) fn read(path: &Path, chain_id: u64) -> Result<Vec<Entry>, TokenError> {
    let unusable = |fault: String| TokenError::Fatal(format!("{}: {fault}", path.display()));
    let text = read_text(path).map_err(unusable)?;
    let rows = rows(&text).map_err(unusable)?;
    if rows.len() > MAX_ROWS {
        return Err(unusable(format!("has {} rows, at most {MAX_ROWS} are read", rows.len())));
    }
    let mut lines = Lines { text: &text, at: 0, line: 1 };
    Ok(rows.into_iter().filter_map(|raw| entry(lines.of(raw), raw, chain_id)).collect())
}

fn read_text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let read =
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    if read as u64 > MAX_BYTES {
        return Err(format!("is larger than {} MiB", MAX_BYTES >> 20));
    }
    Ok(text)
}

fn rows(text: &str) -> Result<Vec<&RawValue>, String> {
    #[derive(Deserialize)]
    struct Published<'a> {
        #[serde(borrow)]
        tokens: Vec<&'a RawValue>,
    }
    let json = text.trim_start_matches('\u{feff}');
    if json.trim_start().starts_with('{') {
        serde_json::from_str::<Published<'_>>(json).map(|list| list.tokens)
    } else {
        serde_json::from_str(json)
    }
    .map_err(|error| format!("is no JSON array of tokens, and no object with one as \"tokens\": {error}"))
}

fn entry(line: usize, raw: &RawValue, chain_id: u64) -> Option<Entry> {
    let row = match serde_json::from_str::<Row>(raw.get()) {
        Err(_) => Err("is no object with address, name, symbol, decimals and chainId".to_owned()),
        Ok(row) => match row.chain_id() {
            Some(id) if id != chain_id => return None,
            Some(_) => Ok(row),
            None => Err("chainId is missing or not that of an EVM chain".to_owned()),
        },
    };
    Some(Entry { line, row })
}

/// Counts lines up to parts of one text, asked for from top to bottom.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl Lines<'_> {
    fn of(&mut self, part: &RawValue) -> usize {
        let start = part.get().as_ptr() as usize - self.text.as_ptr() as usize;
        self.line += self.text.get(self.at..start).unwrap_or_default().matches('\n').count();
        self.at = start;
        self.line
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const USDC: &str = "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48";

    async fn load(text: &str) -> Result<Loaded, TokenError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.json");
        fs::write(&path, text).unwrap();
        FixedList::new(path, 1).load().await
    }

    #[tokio::test]
    async fn both_forms_of_a_list_are_read() {
        let row = format!(
            r#"{{"chainId":1,"address":"{USDC}","symbol":"usdc","name":"USD Coin","decimals":6,"logoURI":"x"}}"#
        );
        for text in
            [format!("[{row}]"), format!("\u{feff} {{\"name\":\"My list\",\"tokens\":[{row}],\"version\":{{}}}}")]
        {
            let loaded = load(&text).await.unwrap();
            let token = loaded.tokens.get(&USDC.parse().unwrap()).unwrap();
            assert_eq!((token.symbol.as_str(), token.decimals), ("USDC", 6));
            assert_eq!(loaded.skipped, Vec::<String>::new());
        }
    }

    #[tokio::test]
    async fn rows_of_other_chains_are_passed_over_and_bad_ones_told_with_their_line() {
        let text = format!(
            "[\n{{\"chainId\":137,\"address\":\"{USDC}\",\"decimals\":6}},\n\n{{\"chainId\":\"solana\",\"address\":\"So1\"}},\n7,\n\
             {{\"chainId\":1,\"address\":\"So1\",\"decimals\":9}}, {{\"chainId\":1,\"address\":\"{USDC}\"}}]"
        );
        let loaded = load(&text).await.unwrap();
        assert!(loaded.tokens.is_empty());
        assert_eq!(
            loaded.skipped,
            [
                "line 4: chainId is missing or not that of an EVM chain",
                "line 5: is no object with address, name, symbol, decimals and chainId",
                "line 6: address \"So1\" is not 0x and 40 hex digits",
                "line 6: decimals is missing",
            ]
        );
    }

    #[tokio::test]
    async fn a_file_that_is_no_list_says_where_it_is_wrong() {
        let told = load("[{\"chainId\":1},\n  oops]").await.unwrap_err().to_string();
        assert!(told.contains("tokens.json") && told.contains("line 2 column 3"), "{told}");
        let told = load("{\"name\":\"no tokens\"}").await.unwrap_err().to_string();
        assert!(told.contains("missing field `tokens`"), "{told}");
        let told = FixedList::new("no/such/file.json".into(), 1).load().await.unwrap_err().to_string();
        assert!(told.contains("no/such/file.json: cannot be opened"), "{told}");
    }
}
