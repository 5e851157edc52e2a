//! Chain profiles (`config/chains.toml`).

use std::time::Duration;

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
}
