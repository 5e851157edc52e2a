//! What other endpoints say of blocks than those that served them.
//!
//! An opinion is worth something only where it is another endpoint's than the one whose logs were delivered, and requests
//! may have moved since. So it is remembered who served a block's logs, for as long as blocks are held against a second
//! opinion. Who served a block of before a restart, or another replica's, nobody knows: then two endpoints are asked, of
//! which at least one did not.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::{
    Endpoints, LogFilter, RangeLogs, RpcError,
    breaker::Gate,
    client::Node,
    question::{Kind, Question},
};
use crate::domain::BlockRange;

/// Blocks of which it is remembered who served them: more than any chain's that are not final yet (`config/chains.toml`).
const REMEMBERED: usize = 16_384;

/// By block, the places of the endpoints that served its logs: several, where it was asked for more than once.
#[derive(Debug, Default)]
pub(super) struct Served(Mutex<BTreeMap<u64, BTreeSet<usize>>>);

impl Served {
    /// The endpoint at this place served the logs of a block.
    pub(super) fn by(&self, place: usize, block: u64) {
        let mut blocks = self.blocks();
        blocks.entry(block).or_default().insert(place);
        if blocks.len() > REMEMBERED {
            blocks.pop_first();
        }
    }

    /// The first blocks of a range, as many as the same endpoints served, and those; none where nobody knows.
    fn run(&self, range: BlockRange) -> (BlockRange, BTreeSet<usize>) {
        let blocks = self.blocks();
        let places = blocks.get(&range.from).cloned().unwrap_or_default();
        let is_same = |number: &u64| blocks.get(number).map_or(places.is_empty(), |other| *other == places);
        let to = (range.from..=range.to).take_while(is_same).last().unwrap_or(range.from);
        (BlockRange { to, ..range }, places)
    }

    fn blocks(&self) -> MutexGuard<'_, BTreeMap<u64, BTreeSet<usize>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Endpoints {
    /// The logs of the first blocks of a range as others have them than who served them: of one, or of two where nobody
    /// knows who did. Also those are asked that lag, for what is final they have.
    pub(super) async fn opinions(&self, range: BlockRange, filter: &LogFilter) -> Result<Vec<RangeLogs>, RpcError> {
        if self.by_preference.len() < 2 {
            return Ok(Vec::new());
        }
        let (range, served) = self.served.run(range);
        let (same, others): (Vec<_>, Vec<_>) = (0..self.by_preference.len()).partition(|place| served.contains(place));
        // Of one who is known, its own opinion is none; what one of several delivered, two of them have together.
        let same = same.into_iter().filter(|_| served.len() > 1);
        let (mut opinions, mut reason) = (Vec::new(), None);
        for place in others.into_iter().chain(same) {
            match self.opinion_of(place, range, filter).await {
                Ok(opinion) => {
                    opinions.push(opinion);
                    let is_anothers = !served.is_empty() && !served.contains(&place);
                    if is_anothers || opinions.len() == 2 {
                        return Ok(opinions);
                    }
                }
                Err(error) => reason = reason.or(Some(error)),
            }
        }
        Err(reason.unwrap_or_else(|| RpcError::Transient("there is no second opinion".to_owned())))
    }

    /// The logs of a whole range as one endpoint has them, unless it is not asked.
    async fn opinion_of(&self, place: usize, range: BlockRange, filter: &LogFilter) -> Result<RangeLogs, RpcError> {
        let Some(endpoint) = self.by_preference.get(place) else {
            return Err(RpcError::Fatal("no such endpoint".to_owned()));
        };
        let question = Question::logs(Kind::RangeLogs, range.to);
        let is_open = matches!(endpoint.standing(question, Instant::now()).gate, Gate::Open(..));
        if let Some((why, _)) = endpoint.aside().filter(|_| is_open) {
            // It is no opinion, and yet there is someone to wait for.
            return Err(RpcError::Transient(format!("{} is not asked: {why}", endpoint.name())));
        }
        let ask = |range| {
            let request = move |node: Arc<Node>| async move { node.bearing.range_logs(&node, range, filter).await };
            self.ask_one(endpoint, question, false, request)
        };
        let mut whole = ask(range).await?;
        while whole.last.number < range.to {
            let part = ask(BlockRange { from: whole.last.number + 1, ..range }).await?;
            whole.logs.extend(part.logs);
            whole.last = part.last;
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_others_served() {
        let served = Served::default();
        for (block, places) in [(5, &[0][..]), (6, &[0]), (7, &[1]), (9, &[0]), (10, &[0, 1]), (11, &[1, 0])] {
            places.iter().for_each(|place| served.by(*place, block));
        }
        let run = |from| {
            let (range, places) = served.run(BlockRange { from, to: 20 });
            (range.to, places.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(run(2), (4, vec![]));
        assert_eq!(run(5), (6, vec![0]));
        assert_eq!(run(7), (7, vec![1]));
        assert_eq!(run(8), (8, vec![]));
        assert_eq!(run(9), (9, vec![0]));
        assert_eq!(run(10), (11, vec![0, 1]));
        assert_eq!(run(12), (20, vec![]));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_is_forgotten() {
        let served = Served::default();
        (0..2 * REMEMBERED as u64).for_each(|block| served.by(0, block));
        assert_eq!(served.blocks().len(), REMEMBERED);
        assert!(served.run(BlockRange::single(0)).1.is_empty());
        assert!(!served.run(BlockRange::single(2 * REMEMBERED as u64 - 1)).1.is_empty());
    }
}
