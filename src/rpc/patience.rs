//! How long an endpoint is waited for where another one is there: learned from how long its answers usually take.
//!
//! A smoothed mean and deviation, as TCP keeps them for its retransmissions (RFC 6298); a request that was given up counts
//! as one that took twice as long as it was waited for, so that an endpoint that is slow but well is not given up for ever.

use std::time::Duration;

/// The bounds of the wait. Within the lower one a new connection is opened; above the upper one a head is late.
const BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// How long the answers of one endpoint take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Patience {
    /// Mean and deviation; `None` before the first answer.
    usual: Option<(Duration, Duration)>,
}

impl Patience {
    /// An answer took so long.
    pub(super) fn answered(&mut self, took: Duration) {
        self.usual = Some(match self.usual {
            None => (took, took / 2),
            Some((mean, deviation)) => ((mean * 7 + took) / 8, (deviation * 3 + mean.abs_diff(took)) / 4),
        });
    }

    /// No answer came within `waited`.
    pub(super) fn given_up(&mut self, waited: Duration) {
        self.answered((waited * 2).min(BOUNDS.1 * 2));
    }

    /// How long it is waited for.
    pub(super) fn limit(&self) -> Duration {
        let (mean, deviation) = self.usual.unwrap_or(BOUNDS);
        (mean * 2 + deviation * 4).clamp(BOUNDS.0, BOUNDS.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_quick_endpoint_is_given_up_soon_and_a_slow_one_late() {
        let (mut quick, mut slow) = (Patience::default(), Patience::default());
        assert_eq!(quick.limit(), BOUNDS.1, "nothing is known yet");
        (0..50).for_each(|_| quick.answered(ms(20)));
        (0..50).for_each(|_| slow.answered(ms(900)));
        assert_eq!(quick.limit(), BOUNDS.0);
        assert!((ms(1_700)..ms(2_200)).contains(&slow.limit()), "{:?}", slow.limit());
    }

    #[test]
    fn an_endpoint_that_became_slow_is_waited_for_longer_after_a_few_tries() {
        let mut patience = Patience::default();
        (0..50).for_each(|_| patience.answered(ms(20)));
        let mut limits = Vec::new();
        for _ in 0..4 {
            patience.given_up(patience.limit());
            limits.push(patience.limit());
        }
        assert!(limits.is_sorted() && limits[3] > ms(3_000), "{limits:?}");
        (0..100).for_each(|_| patience.answered(ms(20)));
        assert_eq!(patience.limit(), BOUNDS.0);
    }
}
