//! The tokens whose transfers the business tracks.

use std::{collections::HashMap, sync::Arc};

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};

/// One tracked token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Contract address.
    pub address: Address,
    /// Ticker, e.g. `USDC`.
    pub symbol: String,
    /// Full name, e.g. `USD Coin`.
    pub name: String,
    /// Decimal places, 0 to 255.
    pub decimals: u8,
}

/// An immutable snapshot of the tracked tokens of one chain, by the 20 bytes of their address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenList {
    by_address: HashMap<Address, Arc<Token>>,
}

impl TokenList {
    /// The token at `address`, if it is tracked.
    #[must_use]
    pub fn get(&self, address: &Address) -> Option<&Arc<Token>> {
        self.by_address.get(address)
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether no token is tracked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// All tokens, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Token>> {
        self.by_address.values()
    }
}

impl FromIterator<Token> for TokenList {
    fn from_iter<I: IntoIterator<Item = Token>>(tokens: I) -> Self {
        Self { by_address: tokens.into_iter().map(|token| (token.address, Arc::new(token))).collect() }
    }
}
