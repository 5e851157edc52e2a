//! Waiting, bounded and jittered: how long until the next try.

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
}
