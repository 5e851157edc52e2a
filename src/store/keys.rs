//! The names of everything in a chain's Redis database. Operators read and set some of these by hand (contract §3), so
//! the names hold.

/// `realtime_processed_block`: the view of the tip.
pub const REALTIME: &str = "realtime_processed_block";
/// `historical_processed_block`: the view of the last block that the historical track delivered.
pub const HISTORICAL: &str = "historical_processed_block";
/// `historical_range`: the view of the lowest open gap.
pub const RANGE: &str = "historical_range";

/// The keys of one chain.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
    fixed: [String; 14],
}

impl Keys {
    /// The keys of the chain with this EIP-155 id.
    #[must_use]
    pub fn new(chain_id: u64) -> Self {
        let prefix = format!("chain:{chain_id}:");
        let key = |name: &str| format!("{prefix}{name}");
        let fixed = [
            key("progress"),
            key("done"),
            key("journal"),
            key("journal:n"),
            REALTIME.to_owned(),
            HISTORICAL.to_owned(),
            RANGE.to_owned(),
            key("dead"),
            key("dead:keys"),
            key("dead:undecodable"),
            key("retracting"),
            key("filter"),
            key("rescan"),
            key("rescan:owners"),
        ];
        Self { prefix, fixed }
    }

    /// `chain:{id}:`, the beginning of every key that holds a block number or an owner.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The keys without a block number, in the order in which `scripts/_lib.lua` names them.
    #[must_use]
    pub fn fixed(&self) -> &[String] {
        &self.fixed
    }

    /// The truth: `chain:{id}:progress`.
    #[must_use]
    pub fn progress(&self) -> &str {
        &self.fixed[0]
    }

    /// What was learned of the endpoints: `chain:{id}:endpoints`, a hash by name, and no truth.
    #[must_use]
    pub fn endpoints(&self) -> String {
        format!("{}endpoints", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_that_operators_know() {
        let keys = Keys::new(8453);
        assert_eq!(keys.progress(), "chain:8453:progress");
        assert_eq!(keys.prefix(), "chain:8453:");
        assert_eq!(keys.endpoints(), "chain:8453:endpoints");
        assert_eq!(keys.fixed()[4..7], [REALTIME, HISTORICAL, RANGE]);
    }
}
