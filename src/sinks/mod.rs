//! The queue's edge: hands messages over and reports the fate of each.
//!
//! A sink decides how to batch, within its own limits; the pipeline decides what to do about each [`Outcome`].

use async_trait::async_trait;

mod arguments;
mod batches;
mod checksum;
mod json;
mod keccak;
pub mod message;
pub mod sqs;
mod sqs_faults;
mod sqs_payload;
pub mod stdout;

pub use arguments::args_json;
pub use checksum::Checksummed;
pub use message::{Composer, Message};

/// The fate of one message after one call of [`Sink::send`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The sink has it and keeps it.
    Acknowledged,
    /// Not now: send it again after a pause.
    Retry {
        /// The sink's words, without secrets.
        reason: String,
        /// Whether the sink asked for less traffic.
        throttled: bool,
    },
    /// Not tried in this call: something before it in its order is not acknowledged yet, or the call was full. Send it
    /// again at once.
    Held,
    /// The sink will never take it: it belongs to the dead letters.
    Refused(String),
}

/// Where messages go.
#[async_trait]
pub trait Sink: Send + Sync {
    /// A short name for logs, metrics and `/health`, without secrets: `stdout`, `sqs:my-queue`.
    fn name(&self) -> &str;

    /// Tries to hand over a prefix of `pending`, in order, in one or several requests; answers one outcome for each
    /// message of `pending`, in the same order. Never fails as a whole: a request that failed gives
    /// [`Outcome::Retry`] to each message in it.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have handed over any of the messages; sending them again is harmless.
    async fn send(&self, pending: &[Message]) -> Vec<Outcome>;

    /// Whether its calls wait for one another. History calls such a sink one by one: a new block finds one call before it, not
    /// those of all ranges.
    fn is_one_at_a_time(&self) -> bool {
        false
    }

    /// Whether the sink can be reached and would take messages.
    ///
    /// # Errors
    ///
    /// The reason, without secrets.
    async fn check(&self) -> Result<(), SinkError>;
}

/// Why a sink cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SinkError {
    /// Try again: it did not answer.
    #[error("{0}")]
    Transient(String),
    /// Trying again will not help before someone acts: queue missing, access denied.
    #[error("{0}")]
    Fatal(String),
}
