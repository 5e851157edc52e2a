//! One document of the token list, and when it is believed. Pure.
//!
//! The collection and the list file hold the same documents, and so do the token lists that wallets publish; all of
//! them are other people's text. What decides which transfers are delivered is strict (address, chain, decimals); what
//! is only shown (name, symbol) is cleaned, shortened, and never a reason to lose a token.

use std::collections::{BTreeMap, HashSet};

use alloy::primitives::Address;
use serde::{Deserialize, de::IgnoredAny};

use super::Loaded;
use crate::domain::{MAX_BLOCK_NUMBER, Token};

/// Most documents that are read, well above the 100,000 tokens of the largest lists.
pub(crate) const MAX_ROWS: usize = 250_000;
/// Most skipped rows that are told one by one.
const MAX_TOLD: usize = 1_000;
/// Longest symbol, characters; what is beyond is cut.
const MAX_SYMBOL: usize = 32;
/// Longest name, characters; what is beyond is cut.
const MAX_NAME: usize = 128;

/// A document as it stands, whatever the types of its members.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Row {
    chain_id: Option<Scalar>,
    address: Option<Scalar>,
    name: Option<Scalar>,
    symbol: Option<Scalar>,
    decimals: Option<Scalar>,
    from_block: Option<Scalar>,
}

/// A token, and the first block from which it is wanted where it has one of its own.
pub(crate) type Listed = (Token, Option<u64>);

/// A member's value. Old documents hold numbers as 32-bit, 64-bit, floating or text, as their writers had them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Scalar {
    Whole(u64),
    Float(f64),
    Text(String),
    Other(IgnoredAny),
}

impl Scalar {
    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text.trim()) } else { None }
    }

    /// A number without a fraction, up to 2^53 where it was floating.
    fn whole(&self) -> Option<u64> {
        match self {
            Self::Whole(number) => Some(*number),
            Self::Float(number) => format!("{number}").parse().ok().filter(|whole| *whole <= 1 << 53),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Other(_) => None,
        }
    }
}

impl Row {
    /// The EIP-155 chain id; none where it is missing or no such number, as for tokens of other kinds of chain.
    pub(crate) fn chain_id(&self) -> Option<u64> {
        self.chain_id.as_ref().and_then(Scalar::whole)
    }

    /// The address as it is written.
    pub(crate) fn address_text(&self) -> Option<&str> {
        self.address.as_ref().and_then(Scalar::text)
    }

    /// Whether the row is written as we would write this token.
    pub(crate) fn is_written_as(&self, token: &Token) -> bool {
        let is = |member: &Option<Scalar>, text: &str| matches!(member, Some(Scalar::Text(written)) if written == text);
        is(&self.address, &token.address.to_checksum(None))
            && is(&self.symbol, &token.symbol)
            && is(&self.name, &token.name)
            && self.token().is_ok_and(|own| own.decimals == token.decimals)
    }

    /// The token, its symbol in upper case, its texts cleaned and shortened; or why there is none.
    pub(crate) fn token(&self) -> Result<Token, String> {
        let address = parse_address(self.address_text().ok_or("address is missing or not text")?)?;
        let decimals = self.decimals.as_ref().ok_or("decimals is missing")?;
        let decimals = decimals.whole().and_then(|whole| u8::try_from(whole).ok());
        let text = |member: &Option<Scalar>| member.as_ref().and_then(Scalar::text).unwrap_or_default().to_owned();
        Ok(Token {
            address,
            symbol: symbol(&text(&self.symbol)),
            name: name(&text(&self.name)),
            decimals: decimals.ok_or("decimals is not a whole number from 0 to 255")?,
        })
    }

    /// The token with its own first block; or why there is none.
    pub(crate) fn listed(&self) -> Result<Listed, String> {
        let block = |from: &Scalar| from.whole().filter(|block| *block <= MAX_BLOCK_NUMBER);
        let wrong = "fromBlock is not a whole number below 2^53";
        Ok((self.token()?, self.from_block.as_ref().map(|from| block(from).ok_or(wrong)).transpose()?))
    }
}

/// A symbol as it is stored and shown.
pub(crate) fn symbol(text: &str) -> String {
    shown(&shown(text, MAX_SYMBOL).to_uppercase(), MAX_SYMBOL)
}

/// A name as it is stored and shown.
pub(crate) fn name(text: &str) -> String {
    shown(text, MAX_NAME)
}

/// Somebody else's text on one line: without control characters and the marks that turn the direction of writing or
/// show nothing, at most `longest` characters.
pub(crate) fn shown(text: &str, longest: usize) -> String {
    let invisible = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let cleaned: String = text.trim().chars().filter(|c| !invisible(*c)).take(longest).collect();
    cleaned.trim().to_owned()
}

/// An address in any case: addresses compare by their 20 bytes.
pub(crate) fn parse_address(text: &str) -> Result<Address, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or_default();
    if digits.len() != 40 {
        return Err(format!("address {:?} is not 0x and 40 hex digits", shown(text, 64)));
    }
    digits.parse().map_err(|_| format!("address {:?} is not 0x and 40 hex digits", shown(text, 64)))
}

/// An address whose checksum (EIP-55) holds where it has one, that is, where its letters are of both cases.
pub(crate) fn parse_checksummed(text: &str) -> Result<Address, String> {
    let address = parse_address(text)?;
    let (_, digits) = text.split_at(2);
    let mixed = digits.contains(|c: char| c.is_ascii_lowercase()) && digits.contains(|c: char| c.is_ascii_uppercase());
    let right = address.to_checksum(None);
    if mixed && !right.ends_with(digits) {
        return Err(format!("address {text} has a wrong checksum (EIP-55); if no digit is mistyped it is {right}"));
    }
    Ok(address)
}

/// Gathers rows into a list: the first of two with the same address wins, and everything skipped is told.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    tokens: Vec<Token>,
    from: BTreeMap<Address, u64>,
    seen: HashSet<Address>,
    skipped: Vec<String>,
    untold: usize,
}

impl Gathering {
    /// Takes what became of a row; `place` names the row where it is told.
    pub(crate) fn take(&mut self, place: impl FnOnce() -> String, row: Result<Listed, String>) {
        let reason = match row {
            Ok((token, from)) if self.seen.insert(token.address) => {
                self.from.extend(from.map(|from| (token.address, from)));
                return self.tokens.push(token);
            }
            Ok((token, _)) => format!("{} is listed before, the first one counts", token.address),
            Err(reason) => reason,
        };
        if self.skipped.len() < MAX_TOLD {
            self.skipped.push(format!("{}: {reason}", place()));
        } else {
            self.untold += 1;
        }
    }

    pub(crate) fn finish(mut self) -> Loaded {
        if self.untold > 0 {
            self.skipped.push(format!("{} more rows", self.untold));
        }
        Loaded { tokens: self.tokens.into_iter().collect(), from: self.from, skipped: self.skipped }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const USDC: &str = "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48";

    fn row(value: Value) -> Row {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn numbers_are_read_in_every_form_that_writers_had() {
        for (chain, decimals) in [(json!(8453), json!(6)), (json!(8453.0), json!(6.0)), (json!("8453"), json!("6"))] {
            let row = row(json!({ "chainId": chain, "address": USDC, "decimals": decimals }));
            assert_eq!(row.chain_id(), Some(8453));
            assert_eq!(row.token().unwrap().decimals, 6);
        }
    }

    #[test]
    fn decimals_go_from_0_to_255_and_are_never_guessed() {
        let token = |decimals: Value| row(json!({ "address": USDC, "decimals": decimals })).token();
        assert_eq!(token(json!(0)).unwrap().decimals, 0);
        assert_eq!(token(json!(255)).unwrap().decimals, 255);
        for bad in [json!(256), json!(-1), json!(1.5), json!("six"), json!(null), json!([6]), json!({}), json!(true)] {
            assert!(token(bad.clone()).unwrap_err().contains("decimals"), "{bad}");
        }
    }

    #[test]
    fn a_first_block_is_a_number_in_every_form_or_a_fault() {
        let from = |block: Value| row(json!({ "address": USDC, "decimals": 6, "fromBlock": block })).listed();
        for block in [json!(17), json!(17.0), json!(" 17 ")] {
            assert_eq!(from(block).unwrap().1, Some(17));
        }
        assert_eq!(from(json!(null)).unwrap().1, None);
        for bad in [json!(-1), json!(1.5), json!("0x11"), json!(""), json!([1]), json!(1_u64 << 53)] {
            assert!(from(bad.clone()).unwrap_err().contains("fromBlock"), "{bad}");
        }
    }

    #[test]
    fn a_bad_address_is_told_and_quoted() {
        for bad in
            ["", "0x", "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB4g"]
        {
            let told = row(json!({ "address": bad, "decimals": 6 })).token().unwrap_err();
            assert!(told.contains(&format!("{bad:?}")), "{told}");
        }
        for bad in [json!({ "decimals": 6 }), json!({ "address": 7, "decimals": 6 })] {
            assert!(row(bad).token().unwrap_err().starts_with("address"));
        }
    }

    #[test]
    fn a_wrong_checksum_is_refused_with_the_right_one() {
        let wrong = USDC.replace("eB48", "Eb48");
        assert!(parse_checksummed(&wrong).unwrap_err().contains(USDC));
        for right in [USDC.to_owned(), USDC.to_lowercase(), USDC.to_uppercase()] {
            assert_eq!(parse_checksummed(&right).unwrap().to_checksum(None), USDC);
        }
    }

    #[test]
    fn texts_are_cleaned_and_never_a_reason_to_lose_a_token() {
        let token = row(json!({ "address": USDC, "decimals": 6, "symbol": "ag\u{202e}Eur\u{1b}[31m\n", "name": 5 }))
            .token()
            .unwrap();
        assert_eq!((token.symbol.as_str(), token.name.as_str()), ("AGEUR[31M", ""));
        assert_eq!(symbol(&"ß".repeat(100)).chars().count(), MAX_SYMBOL);
    }

    #[test]
    fn the_first_of_two_rows_counts_and_a_flood_of_faults_stays_small() {
        let token = |name: &str| row(json!({ "address": USDC, "decimals": 6, "name": name })).listed();
        let mut gathering = Gathering::default();
        gathering.take(|| "a".into(), token("first"));
        gathering.take(|| "b".into(), token("second"));
        for n in 0..5_000 {
            gathering.take(|| format!("row {n}"), Err("bad".into()));
        }
        let loaded = gathering.finish();
        assert_eq!(loaded.tokens.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["first"]);
        assert_eq!(loaded.skipped[0], format!("b: {USDC} is listed before, the first one counts"));
        assert_eq!(loaded.skipped.len(), MAX_TOLD + 1);
        assert_eq!(loaded.skipped[MAX_TOLD], "4001 more rows");
    }

    proptest! {
        #[test]
        fn cleaning_is_done_once_and_for_all(text in ".{0,200}") {
            prop_assert_eq!(symbol(&symbol(&text)), symbol(&text));
            prop_assert_eq!(name(&name(&text)), name(&text));
        }
    }
}
