//! A recording, served again: the nodes as one listener saw them, for a test of what it made of them.
//!
//! Every endpoint has the name that it had, as its path; `/` is the first one. A question is its method and parameters, and
//! the nth time that an endpoint is asked it, it gives the answer that it gave the nth time; after the last one that one again.
//! It is told after as long a time as it took. Errors, refusals by HTTP, broken connections and silence are answers like others.
//! Heads are announced over the WebSocket when they were, counted from the first request.
//!
//! A listener that does it again does it a little differently. Of what changes with the chain (what is asked for by number
//! or tag) an answer is passed over where it would contradict what was told here already: where the next answer to the same
//! question was given before the newest head that was told, where it is a block off that head's branch and a later one is on
//! it, and where it is the same head again and another one was announced since. No head or tag is told much before its time:
//! until then the one before is told again. What an endpoint was never asked is taken from
//! what the recording [knows](known) of the chain, from whichever endpoint. What it does not know is an error that says so:
//! nothing is made up.

mod clock;
mod known;
mod question;
mod reel;
mod server;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use alloy::primitives::U64;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::{question::Question, reel::Reel};
use super::{Error, Serving};
use crate::recording::{self, Record};

/// Where nothing happened for longer than this, so much of it is left out.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What to replay, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// The recording's directory.
    pub dir: PathBuf,
    /// How many times faster it happens than it did, 0.01 to 1,000.
    pub speed: f64,
}

impl Replay {
    /// Possible speeds.
    const SPEEDS: std::ops::RangeInclusive<f64> = 0.01..=1_000.0;

    pub(super) fn check(&self) -> Result<(), Error> {
        if Self::SPEEDS.contains(&self.speed) {
            return Ok(());
        }
        Err(Error::Options(format!(
            "a speed of {}: from {} to {}",
            self.speed,
            Self::SPEEDS.start(),
            Self::SPEEDS.end()
        )))
    }
}

/// Reads the recording and serves it until `shutdown`.
///
/// # Errors
///
/// A recording that cannot be used.
pub(super) async fn serve(
    (listener, address): (TcpListener, SocketAddr),
    replay: Replay,
    shutdown: CancellationToken,
) -> Result<Serving, Error> {
    let dir = replay.dir.clone();
    let unusable = |reason: String| Error::File { path: dir.clone(), reason };
    let reading = tokio::task::spawn_blocking(move || recording::read(&replay.dir).map(without_pauses).map(Reel::new));
    let read = reading.await.map_err(|error| Error::Internal(error.to_string()))?;
    let reel = read.map_err(|error| unusable(error.to_string()))?;
    let chain_id = reel.any(&Question::new("eth_chainId", Vec::new())).and_then(|told| number(&told));
    let chain_id = chain_id.ok_or_else(|| unusable("no endpoint told its chain in it".to_owned()))?;
    let (head, endpoints) = (reel.highest(), reel.paths().to_vec());
    info!(%address, chain_id, head, ?endpoints, "devchain replays");
    let task = tokio::spawn(async move {
        let served = server::serve(listener, (reel, replay.speed), shutdown).await;
        served.map_err(|error| Error::Internal(error.to_string()))
    });
    Ok(Serving { address, chain_id, head, endpoints, task })
}

fn number(raw: &str) -> Option<u64> {
    serde_json::from_str::<U64>(raw).ok().map(|number| number.to())
}

/// The records, without the time in which nothing happened.
fn without_pauses(mut records: Vec<Record>) -> Vec<Record> {
    let longest = u64::try_from(LONGEST_PAUSE.as_micros()).unwrap_or(u64::MAX);
    let (mut before, mut left_out) = (records.first().map_or(0, |record| record.at), 0);
    for record in &mut records {
        left_out += record.at.saturating_sub(before).saturating_sub(longest);
        before = record.at;
        record.at = record.at.saturating_sub(left_out);
    }
    records
}

/// What is said of a question that the recording cannot answer: the `error` member.
fn not_recorded(question: &Question) -> Value {
    json!({ "code": -32000, "message": format!("not in the recording: {question}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Event;

    #[test]
    fn long_pauses_are_cut_and_short_ones_stay() {
        let record = |seconds: u64| Record { at: seconds * 1_000_000, endpoint: "a".into(), event: Event::Opened };
        let records = without_pauses([100, 130, 3_700, 3_710].map(record).to_vec());
        let at: Vec<u64> = records.iter().map(|record| record.at / 1_000_000).collect();
        assert_eq!(at, [100, 130, 190, 200]);
    }
}
