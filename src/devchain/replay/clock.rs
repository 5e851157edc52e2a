//! The time of the recording, as it passes in the replay.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// A listener is told of a head at most so much sooner than the other one was.
const SOON: Duration = Duration::from_millis(500);

/// Microseconds of the recording since the replay's first request.
#[derive(Debug)]
pub(super) struct Clock {
    first: u64,
    speed: f64,
    begun: OnceLock<Instant>,
}

impl Clock {
    /// Stands at `first`, microseconds, until it is looked at.
    pub(super) fn new(first: u64, speed: f64) -> Self {
        Self { first, speed, begun: OnceLock::new() }
    }

    /// What time it is in the recording.
    pub(super) fn now(&self) -> u64 {
        let elapsed = self.begun.get_or_init(Instant::now).elapsed().mul_f64(self.speed);
        self.first.saturating_add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }

    /// What time it will be in a moment.
    pub(super) fn soon(&self) -> u64 {
        let moment = SOON.mul_f64(self.speed);
        self.now().saturating_add(u64::try_from(moment.as_micros()).unwrap_or(u64::MAX))
    }

    /// How long it is until then.
    pub(super) fn until(&self, at: u64) -> Duration {
        self.scaled(Duration::from_micros(at.saturating_sub(self.now())))
    }

    /// How long a time of the recording takes in the replay.
    pub(super) fn scaled(&self, time: Duration) -> Duration {
        time.div_f64(self.speed)
    }
}
