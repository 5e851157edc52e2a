//! SIGTERM and SIGINT become one token; a second signal ends the process at once.
//!
//! The token is handed down from the composition root: whoever holds it stops taking new work when it is cancelled and
//! finishes, or gives back, what is in flight. What takes longer than the grace period is cut off: claims expire, and
//! what was sent without a commit is sent again after the next start.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
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

/// A signal this soon after the first one is the same, delivered twice: `timeout` and some supervisors signal the process
/// and its group.
const ECHO: Duration = Duration::from_millis(500);

/// Remembers whether the process was asked to end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signals {
    draining_since: Option<Instant>,
}

impl Signals {
    /// Takes note of a signal.
    pub fn received(&mut self, signal: Signal, now: Instant) -> Reaction {
        let first = *self.draining_since.get_or_insert(now);
        if now.duration_since(first) < ECHO { Reaction::Drain } else { Reaction::Exit(signal.exit_code()) }
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
            match signals.received(received, Instant::now()) {
                Reaction::Drain => {
                    info!(signal = ?received, "stopping; a second signal ends the process at once");
                    cancelled.cancel();
                }
                Reaction::Exit(code) => {
                    warn!(signal = ?received, "ended at once; what was in flight is done again after the next start");
                    #[expect(
                        clippy::exit,
                        reason = "the one place that ends the process without unwinding, as asked for"
                    )]
                    std::process::exit(code);
                }
            }
        }
    });
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_drains_and_a_later_one_ends_the_process() {
        for (second, code) in [(Signal::Interrupt, 130), (Signal::Terminate, 143)] {
            let (mut signals, begun) = (Signals::default(), Instant::now());
            assert_eq!(signals.received(Signal::Terminate, begun), Reaction::Drain);
            assert_eq!(signals.received(second, begun + ECHO / 2), Reaction::Drain, "the same one, delivered twice");
            assert_eq!(signals.received(second, begun + ECHO), Reaction::Exit(code));
        }
    }
}
