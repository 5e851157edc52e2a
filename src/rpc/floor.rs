//! From which height on an endpoint has blocks, as far as it says or shows that it has dropped older ones.
//!
//! Nodes keep headers for longer than logs, so there is a floor for each. It only decides who is asked first: an archive, where
//! there is one, for what lies below. So it may be guessed: how much higher it lies than a block that is lacking is found out
//! in steps of an eighth of the way to the head, one request each, and an answer from below takes it down again. Pure: every
//! moment is given.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    RpcError,
    question::{Kind, Question},
};

/// A block that lies so far below an endpoint's newest one, and that it lacks, is not on its way: it was dropped.
const OLD: u64 = 1_000;
/// After so long it is tried again: plans change, and nodes are filled.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(1);

/// From where on one endpoint has headers, and logs.
#[derive(Debug, Default)]
pub(super) struct Floor {
    headers: Option<Known>,
    logs: Option<Known>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// What lies below is not there.
    lowest: u64,
    since: Instant,
}

impl Floor {
    /// Takes note of what an answer tells of it, where `head` is the newest block that the endpoint was seen to have; the floor,
    /// where none was known before.
    pub(super) fn told(
        &mut self,
        question: Question,
        error: Option<&RpcError>,
        (head, now): (Option<u64>, Instant),
    ) -> Option<u64> {
        let lowest = question.lowest?;
        let Some(error) = error else {
            let known = self.of(question.kind).as_mut().filter(|known| lowest < known.lowest)?;
            known.lowest = lowest;
            return None;
        };
        let is_old = || question.height.zip(head).is_some_and(|(height, head)| height.saturating_add(OLD) <= head);
        let is_dropped = matches!(error, RpcError::Pruned(_)) || (matches!(error, RpcError::Behind(_)) && is_old());
        if !is_dropped {
            return None;
        }
        let is_news = !self.is_above(question, now);
        let step = head.map_or(0, |head| head.saturating_sub(lowest) / 8).max(1);
        let found = Known { lowest: lowest.saturating_add(step), since: now };
        let floor = self.of(question.kind);
        let is_first = floor.is_none();
        let is_higher = |known: Known| known.lowest < found.lowest;
        if floor.is_none_or(is_higher) {
            *floor = Some(found);
        }
        // Who has no header of a block has no logs of it.
        if question.kind == Kind::Header && self.logs.is_none_or(is_higher) {
            self.logs = Some(found);
        }
        (is_news && is_first).then_some(found.lowest)
    }

    /// Whether what is asked for lies below it.
    pub(super) fn is_above(&self, question: Question, now: Instant) -> bool {
        let floor = if question.kind == Kind::Header { self.headers } else { self.logs };
        let floor = floor.filter(|known| now.duration_since(known.since) < FORGOTTEN_AFTER);
        floor.zip(question.lowest).is_some_and(|(known, lowest)| lowest < known.lowest)
    }

    fn of(&mut self, kind: Kind) -> &mut Option<Known> {
        if kind == Kind::Header { &mut self.headers } else { &mut self.logs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::BlockRange, rpc::At};

    fn header(number: u64) -> Question {
        Question::header(At::Number(number))
    }

    fn logs(from: u64) -> Question {
        Question::range(BlockRange { from, to: from + 99 })
    }

    fn pruned() -> RpcError {
        RpcError::Pruned("history has been pruned".to_owned())
    }

    #[test]
    fn it_is_found_in_a_few_requests_and_not_far_above_where_it_is() {
        let (mut floor, now, head) = (Floor::default(), Instant::now(), 20_000_000);
        for drops in [100, 128_000, 15_537_393, 19_990_000] {
            let mut asked = 0;
            let mut from = 1;
            while from < drops {
                if !floor.is_above(logs(from), now) {
                    asked += 1;
                    floor.told(logs(from), Some(&pruned()), (Some(head), now));
                }
                from += 100;
            }
            let above = (drops..head).step_by(100).take_while(|from| floor.is_above(logs(*from), now)).count() as u64;
            assert!(asked <= 60 && above * 100 <= (head - drops) / 7 + 100, "{drops}: {asked} asked, {above} above");
            floor = Floor::default();
        }
    }

    #[test]
    fn an_answer_from_below_takes_it_down_and_in_time_it_is_forgotten() {
        let (mut floor, now) = (Floor::default(), Instant::now());
        assert_eq!(floor.told(logs(1_000), Some(&pruned()), (Some(9_000), now)), Some(2_000), "news");
        assert_eq!(floor.told(logs(2_000), Some(&pruned()), (Some(9_000), now)), None, "it only rises");
        assert!(floor.is_above(logs(2_874), now) && !floor.is_above(logs(2_875), now));
        assert!(!floor.is_above(header(1), now), "it has headers for all that is known");
        assert!(!floor.is_above(Question::CHAIN_ID, now) && !floor.is_above(Question::header(At::Latest), now));
        floor.told(logs(500), None, (Some(9_000), now));
        assert!(floor.is_above(logs(499), now) && !floor.is_above(logs(500), now));
        assert!(!floor.is_above(logs(499), now + FORGOTTEN_AFTER));
        floor.told(header(10), Some(&pruned()), (None, now));
        assert!(floor.is_above(header(10), now) && !floor.is_above(header(11), now) && floor.is_above(logs(10), now));
    }

    #[test]
    fn what_is_lacking_near_the_head_is_on_its_way() {
        let (mut floor, now) = (Floor::default(), Instant::now());
        let behind = RpcError::Behind("header not found".to_owned());
        for (question, head) in [(header(9_000), Some(9_500)), (header(1), None), (logs(8_000), Some(9_000))] {
            floor.told(question, Some(&behind), (head, now));
            assert!(!floor.is_above(question, now), "{question:?}");
        }
        floor.told(header(1), Some(&RpcError::TimedOut), (Some(9_000), now));
        assert!(!floor.is_above(header(1), now));
        floor.told(header(1), Some(&behind), (Some(9_000), now));
        assert!(floor.is_above(header(1), now));
    }
}
