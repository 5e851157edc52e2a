//! The directory's edge: which tokens the business tracks on this chain.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use async_trait::async_trait;

use crate::domain::TokenList;

pub mod fixed;
pub mod mongo;
pub(crate) mod row;

pub use fixed::FixedList;
pub use mongo::MongoDirectory;

/// One reading of the directory.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The valid tokens of this chain.
    pub tokens: TokenList,
    /// The first block from which a token is wanted that joins the list, of those that have one of their own.
    pub from: BTreeMap<Address, u64>,
    /// One line for every row that was skipped, naming the row and the reason.
    pub skipped: Vec<String>,
}

/// Where the list of tracked tokens comes from.
#[async_trait]
pub trait TokenDirectory: Send + Sync {
    /// Reads the whole list of this chain.
    ///
    /// # Errors
    ///
    /// [`TokenError`] where the directory cannot be read; the caller keeps its last good list.
    async fn load(&self) -> Result<Loaded, TokenError>;

    /// Resolves when the directory says that it changed; never where it cannot tell.
    ///
    /// # Cancel safety
    ///
    /// A change seen by a dropped call may be lost; the periodic refresh finds it.
    async fn changed(&self);

    /// Ends connections; awaited before the runtime ends, nothing is asked afterwards.
    async fn close(&self) {}
}

/// The directory could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TokenError {
    /// Try again: the server did not answer.
    #[error("token directory unreachable: {0}")]
    Transient(String),
    /// Trying again will not help: the place is wrong or forbidden.
    #[error("token directory unusable: {0}")]
    Fatal(String),
}
