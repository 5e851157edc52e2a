//! The ERC-20 contracts of the generated chain: a function of the seed.

use alloy::primitives::{Address, keccak256};

use serde_json::{Value, json};

use super::Options;
use crate::domain::Token;

/// Tickers; further tokens repeat them with a number. Nobody should take them for real ones.
const SYMBOLS: [(&str, &str, u8); 8] = [
    ("DEVUSD", "Dev Dollar", 6),
    ("DEVETH", "Dev Ether", 18),
    ("DEVBTC", "Dev Bitcoin", 8),
    ("DEVDAI", "Dev Dai", 18),
    ("DEVGAS", "Dev Gas", 18),
    ("DEVCENT", "Dev Cent", 2),
    ("DEVPOINT", "Dev Point", 0),
    ("DEVRAY", "Dev Ray", 27),
];

/// The address that belongs to a role and an index on the chain of this seed.
pub(super) fn address(role: &str, seed: u64, index: u64) -> Address {
    let preimage = [b"chaintap devchain ", role.as_bytes(), &seed.to_be_bytes(), &index.to_be_bytes()].concat();
    Address::from_word(keccak256(preimage))
}

/// The first `count` tokens of the chain with this seed; a larger count only adds to them.
#[must_use]
pub fn tokens(seed: u64, count: u16) -> Vec<Token> {
    (0..u64::from(count))
        .zip(SYMBOLS.iter().cycle())
        .map(|(index, (symbol, name, decimals))| {
            let round = index / SYMBOLS.len() as u64;
            let (symbol, name) = match round {
                0 => ((*symbol).to_owned(), (*name).to_owned()),
                _ => (format!("{symbol}{}", round + 1), format!("{name} {}", round + 1)),
            };
            Token { address: address("token", seed, index), symbol, name, decimals: *decimals }
        })
        .collect()
}

/// The tokens of a generated chain as documents of the collection `tokens` (contract §6).
#[must_use]
pub fn token_documents(options: &Options) -> Value {
    let document = |token: Token| {
        json!({
            "address": token.address.to_checksum(None),
            "name": token.name,
            "symbol": token.symbol,
            "decimals": token.decimals,
            "chainId": options.generated_chain_id(),
        })
    };
    tokens(options.seed, options.tokens).into_iter().map(document).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn tokens_are_distinct_and_a_larger_count_only_adds() {
        let many = tokens(7, 30);
        assert_eq!(many.iter().map(|t| t.address).collect::<BTreeSet<_>>().len(), 30);
        assert_eq!(many.iter().map(|t| t.symbol.clone()).collect::<BTreeSet<_>>().len(), 30);
        assert_eq!(tokens(7, 3), many[..3]);
        assert_ne!(tokens(8, 1), many[..1]);
    }
}
