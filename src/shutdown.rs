//! SIGTERM and SIGINT become one token; a second signal ends the process at once.
//!
//! The token is handed down from the composition root: whoever holds it stops taking new work when it is cancelled and
//! finishes, or gives back, what is in flight. What takes longer than the grace period is cut off: claims expire, and
//! what was sent without a commit is sent again after the next start.

use std::{future::Future, io, time::Duration};

use tokio::{
    pin,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A signal that asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// From the supervisor.
    Terminate,
}

impl Signal {
    /// Exit code of a process that this signal ended: 128 and the signal's number (POSIX shells).
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Interrupt => 128 + 2,
            Self::Terminate => 128 + 15,
        }
    }
}

/// What to do about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// The first one: stop taking work, finish what is in flight.
    Drain,
    /// Whoever asks twice does not want to wait: exit with this code.
    Exit(i32),
}

/// Remembers whether the process was asked to end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signals {
    draining: bool,
}

impl Signals {
    /// Takes note of a signal.
    pub fn received(&mut self, signal: Signal) -> Reaction {
        if std::mem::replace(&mut self.draining, true) { Reaction::Exit(signal.exit_code()) } else { Reaction::Drain }
    }
}

/// Listens for signals from now on; the token is cancelled at the first one.
///
/// # Errors
///
/// The operating system's, where it does not let the process listen.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut signals = Signals::default();
        loop {
            let received = tokio::select! {
                Some(()) = interrupt.recv() => Signal::Interrupt,
                Some(()) = terminate.recv() => Signal::Terminate,
                else => return,
            };
            match signals.received(received) {
                Reaction::Drain => {
                    info!(signal = ?received, "stopping; a second signal ends the process at once");
                    cancelled.cancel();
                }
                Reaction::Exit(code) => {
                    warn!(signal = ?received, "ended at once; what was in flight is done again after the next start");
                    #[allow(clippy::exit)] // the one place that ends the process without unwinding, as asked for
                    std::process::exit(code);
                }
            }
        }
    });
    Ok(token)
}

/// Runs `work` to its end, which may come at most `grace` after `stop` was cancelled; `None` where it was cut off.
///
/// # Cancel safety
///
/// As that of `work`, which is dropped when it is cut off.
pub async fn within_grace<F: Future>(stop: &CancellationToken, grace: Duration, work: F) -> Option<F::Output> {
    pin!(work);
    tokio::select! {
        biased;
        output = &mut work => Some(output),
        () = stop.cancelled() => timeout(grace, work).await.ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;

    #[test]
    fn the_first_signal_drains_and_the_second_ends_the_process() {
        for (second, code) in [(Signal::Interrupt, 130), (Signal::Terminate, 143)] {
            let mut signals = Signals::default();
            assert_eq!(signals.received(Signal::Terminate), Reaction::Drain);
            assert_eq!(signals.received(second), Reaction::Exit(code));
        }
    }

    #[tokio::test]
    async fn the_grace_period_begins_with_the_signal() {
        let (stop, grace) = (CancellationToken::new(), Duration::from_millis(20));
        let longer_than_grace = async { sleep(grace * 4).await };
        assert_eq!(within_grace(&stop, grace, longer_than_grace).await, Some(()), "no signal, no limit");
        stop.cancel();
        assert_eq!(within_grace(&stop, Duration::from_mins(1), async { 1 }).await, Some(1));
        assert_eq!(within_grace(&stop, grace, pending::<()>()).await, None);
    }
}
