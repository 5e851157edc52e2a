//! When blocks come and when they are replaced: heights as a pure function of the time, and back.

use std::time::Duration;

use super::{Error, Options};

/// Reorganisations on a schedule: whenever the head would reach a multiple of `every`, the `depth` blocks below it are
/// replaced first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reorgs {
    /// Blocks between two reorganisations; above `depth`.
    pub every: u64,
    /// How many blocks each of them replaces, 1 to [`MAX_REORG_DEPTH`](super::MAX_REORG_DEPTH).
    pub depth: u64,
}

impl Reorgs {
    /// Whether a reorganisation comes right before block `number` is mined.
    pub(super) fn before(&self, number: u64) -> bool {
        number > 0 && number.is_multiple_of(self.every)
    }

    /// Whether block `number` has been replaced by the schedule once the head is at `head`.
    pub(super) fn replaced(&self, number: u64, head: u64) -> bool {
        let next = (number / self.every + 1) * self.every;
        number + self.depth >= next && head >= next
    }
}

/// The chain's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timetable {
    /// Milliseconds since the Unix epoch at which block `start` is mined.
    genesis: u64,
    start: u64,
    /// Milliseconds, at least [`Options::MIN_BLOCK_TIME`].
    block_time: u64,
}

impl Timetable {
    /// The clock of these options, whose `genesis_time` is settled.
    pub(super) fn new(options: &Options, genesis_time: u64) -> Result<Self, Error> {
        let block_time = u64::try_from(options.block_time.as_millis()).unwrap_or(u64::MAX);
        let genesis = genesis_time.saturating_mul(1000);
        if block_time.saturating_mul(options.start_height) > genesis {
            return Err(Error::Options(format!(
                "block 0 would be older than 1970: start height {} needs a later genesis time or a shorter block time",
                options.start_height
            )));
        }
        Ok(Self { genesis, start: options.start_height, block_time })
    }

    /// The height of the head at `now` (time since the Unix epoch).
    pub(super) fn height(&self, now: Duration) -> u64 {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.start + now.saturating_sub(self.genesis) / self.block_time
    }

    /// When block `number` is mined, as time since the Unix epoch. Chains with blocks of less than a second repeat
    /// seconds in their headers, as real ones do.
    pub(super) fn time_of(&self, number: u64) -> Duration {
        let offset = number.abs_diff(self.start).saturating_mul(self.block_time);
        Duration::from_millis(if number < self.start {
            self.genesis.saturating_sub(offset)
        } else {
            self.genesis.saturating_add(offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn height_and_time_agree() {
        let options = Options { start_height: 200, block_time: Duration::from_millis(250), ..Options::default() };
        let clock = Timetable::new(&options, 1_000_000).unwrap();
        assert_eq!(clock.height(Duration::from_secs(999_999)), 200, "before the genesis time");
        assert_eq!(clock.height(Duration::from_millis(1_000_000_999)), 203);
        for number in [200, 203, 1_000] {
            assert_eq!(clock.height(clock.time_of(number)), number);
        }
        assert_eq!(clock.time_of(196).as_secs(), 999_999);
    }

    #[test]
    fn a_chain_cannot_begin_before_1970() {
        let options = Options { start_height: 200, ..Options::default() };
        assert!(Timetable::new(&options, 100).is_err());
    }

    #[test]
    fn the_schedule_replaces_the_blocks_below_each_multiple_once_the_head_is_there() {
        let reorgs = Reorgs { every: 10, depth: 3 };
        let replaced = |head| (0..=25).filter(|&n| reorgs.replaced(n, head)).collect::<Vec<_>>();
        assert_eq!(replaced(9), [0; 0]);
        assert_eq!(replaced(10), [7, 8, 9]);
        assert_eq!(replaced(19), [7, 8, 9]);
        assert_eq!(replaced(20), [7, 8, 9, 17, 18, 19]);
        assert!(reorgs.before(10) && !reorgs.before(0) && !reorgs.before(11));
    }
}
