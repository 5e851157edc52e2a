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

/// What is known of a chain's `safe` or `finalized` tag. Ordered by how much is known, so that the greater of two
/// readings is the one to keep: a tag that was seen does not go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tag {
    /// No node has said anything about it yet: nothing may be concluded.
    #[default]
    Unread,
    /// The chain has no such tag, or no block has it yet (F15).
    Absent,
    /// The height of the block that has it.
    At(u64),
}

/// What a node says about the heights of its chain at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heights {
    /// The newest block.
    pub head: u64,
    /// The `safe` tag.
    pub safe: Tag,
    /// The `finalized` tag.
    pub finalized: Tag,
}

impl Heights {
    /// The height at and below which no reorganisation is expected: the `finalized` tag or `head - depth`, the lower;
    /// on a chain without the tag the depth alone (F15). `None` while the chain is shorter than the depth, and while
    /// the tag is unread: then nothing counts as final.
    #[must_use]
    pub fn final_height(&self, depth: u64) -> Option<u64> {
        let by_depth = self.head.checked_sub(depth)?;
        match self.finalized {
            Tag::Unread => None,
            Tag::Absent => Some(by_depth),
            Tag::At(height) => Some(height.min(by_depth)),
        }
    }

    /// The highest block that `mode` may deliver; `None` where there is none yet. `safe` falls back to the final
    /// height on a chain without the tag, but not while it is unread.
    #[must_use]
    pub fn deliverable(&self, mode: DeliveryMode, depth: u64) -> Option<u64> {
        match (mode, self.safe) {
            (DeliveryMode::Instant, _) => Some(self.head),
            (DeliveryMode::Safe, Tag::Unread) => None,
            (DeliveryMode::Safe, Tag::At(height)) => Some(height.min(self.head)),
            (DeliveryMode::Safe, Tag::Absent) | (DeliveryMode::Finalized, _) => self.final_height(depth),
            (DeliveryMode::Depth(blocks), _) => self.head.checked_sub(blocks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEIGHTS: Heights = Heights { head: 100, safe: Tag::At(90), finalized: Tag::At(70) };

    #[test]
    fn the_final_height_is_the_lower_of_tag_and_depth() {
        assert_eq!(HEIGHTS.final_height(64), Some(36));
        assert_eq!(HEIGHTS.final_height(10), Some(70));
        assert_eq!(Heights { finalized: Tag::Absent, ..HEIGHTS }.final_height(64), Some(36));
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
        assert_eq!(Heights { safe: Tag::Absent, ..HEIGHTS }.deliverable(DeliveryMode::Safe, 64), Some(36));
    }

    #[test]
    fn while_a_tag_is_unread_nothing_is_concluded_from_the_depth() {
        let unread = Heights { head: 100, ..Heights::default() };
        assert_eq!(unread.final_height(10), None);
        assert_eq!(unread.deliverable(DeliveryMode::Safe, 10), None);
        assert_eq!(unread.deliverable(DeliveryMode::Finalized, 10), None);
        assert_eq!(unread.deliverable(DeliveryMode::Instant, 10), Some(100));
        let no_safe = Heights { safe: Tag::Absent, ..unread };
        assert_eq!(no_safe.deliverable(DeliveryMode::Safe, 10), None);
    }

    #[test]
    fn of_two_readings_of_a_tag_the_one_that_knows_more_is_kept() {
        assert_eq!(Tag::At(7).max(Tag::Unread), Tag::At(7));
        assert_eq!(Tag::At(7).max(Tag::At(6)), Tag::At(7));
        assert_eq!(Tag::At(0).max(Tag::Absent), Tag::At(0));
        assert_eq!(Tag::Absent.max(Tag::Unread), Tag::Absent);
    }
}
