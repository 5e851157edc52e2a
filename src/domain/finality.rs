//! How far below the head a block counts as final, and which blocks a delivery mode may send.

use std::{fmt, str::FromStr};

/// Which blocks are handed to the sinks (`DELIVER`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeliveryMode {
    /// Every block as soon as it is the head; a reorganisation may remove it afterwards.
    #[default]
    Instant,
    /// Blocks at or below the node's `safe` tag.
    Safe,
    /// Blocks at or below the final height.
    Finalized,
    /// Blocks that have this many blocks on top of them.
    Depth(u64),
}

impl FromStr for DeliveryMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "instant" => Ok(Self::Instant),
            "safe" => Ok(Self::Safe),
            "finalized" => Ok(Self::Finalized),
            number => number.parse().map(Self::Depth).map_err(|_| {
                format!("'{text}' is not a delivery mode: use instant, safe, finalized or a depth in blocks")
            }),
        }
    }
}

impl fmt::Display for DeliveryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instant => f.write_str("instant"),
            Self::Safe => f.write_str("safe"),
            Self::Finalized => f.write_str("finalized"),
            Self::Depth(blocks) => write!(f, "{blocks}"),
        }
    }
}

/// What a node says about the heights of its chain at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heights {
    /// The newest block.
    pub head: u64,
    /// The `safe` tag, where the chain has one.
    pub safe: Option<u64>,
    /// The `finalized` tag, where the chain has one.
    pub finalized: Option<u64>,
}

impl Heights {
    /// The height at and below which no reorganisation is expected: the `finalized` tag or `head - depth`, the lower;
    /// without a tag the depth alone (F15). `None` while the chain is shorter than the depth.
    #[must_use]
    pub fn final_height(&self, depth: u64) -> Option<u64> {
        let by_depth = self.head.checked_sub(depth)?;
        Some(self.finalized.map_or(by_depth, |tag| tag.min(by_depth)))
    }

    /// The highest block that `mode` may deliver; `None` where there is none yet. `safe` falls back to the final
    /// height on a chain without the tag.
    #[must_use]
    pub fn deliverable(&self, mode: DeliveryMode, depth: u64) -> Option<u64> {
        match mode {
            DeliveryMode::Instant => Some(self.head),
            DeliveryMode::Safe => self.safe.map(|safe| safe.min(self.head)).or_else(|| self.final_height(depth)),
            DeliveryMode::Finalized => self.final_height(depth),
            DeliveryMode::Depth(blocks) => self.head.checked_sub(blocks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEIGHTS: Heights = Heights { head: 100, safe: Some(90), finalized: Some(70) };

    #[test]
    fn the_final_height_is_the_lower_of_tag_and_depth() {
        assert_eq!(HEIGHTS.final_height(64), Some(36));
        assert_eq!(HEIGHTS.final_height(10), Some(70));
        assert_eq!(Heights { finalized: None, ..HEIGHTS }.final_height(64), Some(36));
        assert_eq!(HEIGHTS.final_height(101), None);
    }

    #[test]
    fn each_mode_has_its_highest_block() {
        let cases = [
            (DeliveryMode::Instant, Some(100)),
            (DeliveryMode::Safe, Some(90)),
            (DeliveryMode::Finalized, Some(36)),
            (DeliveryMode::Depth(12), Some(88)),
            (DeliveryMode::Depth(101), None),
        ];
        for (mode, expected) in cases {
            assert_eq!(HEIGHTS.deliverable(mode, 64), expected, "{mode}");
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!(Heights { safe: None, ..HEIGHTS }.deliverable(DeliveryMode::Safe, 64), Some(36));
    }
}
