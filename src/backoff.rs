//! Waiting, bounded and jittered: how long until the next try, and how much to ask for at once.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::sleep;

/// Pauses between tries: doubling from 100 ms to a cap, with jitter so that replicas do not march in step.
#[derive(Debug)]
pub struct Backoff {
    delays: ExponentialBackoff,
    cap: Duration,
}

impl Backoff {
    /// Pauses of at most `cap` (before jitter, which at most doubles them).
    #[must_use]
    pub fn new(cap: Duration) -> Self {
        Self { delays: delays(cap), cap }
    }

    /// Forgets earlier failures.
    pub fn reset(&mut self) {
        self.delays = delays(self.cap);
    }

    /// The next pause.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.cap)
    }

    /// Waits for the next pause, or for longer where someone asked for it.
    pub async fn wait(&mut self, at_least: Option<Duration>) {
        let delay = self.next_delay();
        sleep(delay.max(at_least.unwrap_or_default())).await;
    }
}

fn delays(cap: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(cap)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}

/// How many historical requests run at once, and how far apart they start: additive increase while the provider
/// answers, multiplicative decrease when it asks for less (contract §4).
#[derive(Clone, Debug)]
pub struct Pace {
    parallel: f64,
    most: f64,
    spacing: Duration,
    first_spacing: Duration,
}

/// The pace may grow to this many times the chain profile's parallel requests.
const GROWTH: f64 = 4.0;
/// Requests never start further apart than this.
const MAX_SPACING: Duration = Duration::from_secs(10);

impl Pace {
    /// Begins with the chain profile's numbers.
    #[must_use]
    pub fn new(parallel: usize, spacing: Duration) -> Self {
        let parallel = f64::from(u16::try_from(parallel.max(1)).unwrap_or(u16::MAX));
        Self { parallel, most: parallel * GROWTH, spacing, first_spacing: spacing }
    }

    /// Requests that may run at once, at least 1.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 4 * 65535")]
    pub fn parallel(&self) -> usize {
        self.parallel as usize
    }

    /// Pause between the starts of two requests.
    #[must_use]
    pub fn spacing(&self) -> Duration {
        self.spacing
    }

    /// A request was answered.
    pub fn answered(&mut self) {
        self.parallel = (self.parallel + 1.0 / self.parallel).min(self.most);
        self.spacing = self.spacing.mul_f64(0.8);
    }

    /// The provider asked for fewer requests, or did not answer in time.
    pub fn pressed(&mut self) {
        self.parallel = (self.parallel / 2.0).max(1.0);
        self.spacing = (self.spacing.max(self.first_spacing) * 2).min(MAX_SPACING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_cap_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let delays: Vec<Duration> = (0..10).map(|_| backoff.next_delay()).collect();
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(2)), "{delays:?}");
        assert!(delays.last() > delays.first());
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(200));
    }

    #[test]
    fn the_pace_rises_while_answers_come_and_falls_when_the_provider_complains() {
        let mut pace = Pace::new(3, Duration::from_millis(300));
        (0..1_000).for_each(|_| pace.answered());
        assert_eq!(pace.parallel(), 12);
        assert!(pace.spacing() < Duration::from_millis(1));
        pace.pressed();
        assert_eq!((pace.parallel(), pace.spacing()), (6, Duration::from_millis(600)));
        (0..100).for_each(|_| pace.pressed());
        assert_eq!((pace.parallel(), pace.spacing()), (1, MAX_SPACING));
    }
}
