//! Which messages may go into the next batch of a call.
//!
//! Without groups the batches are consecutive pieces of what is pending. With groups a batch holds at most one message
//! of each: a partial failure could otherwise put a later message of a group before an earlier one.
//! Pure; works on positions in the caller's list.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

/// The messages of one call that are not in a batch yet.
#[derive(Debug)]
pub(super) struct Batches {
    max_entries: usize,
    max_bytes: usize,
    /// By position; none where nothing more is to be done.
    waiting: Vec<Option<Waiting>>,
    /// What may be sent now, the first on top: nothing of its group is before it.
    ready: BinaryHeap<Reverse<usize>>,
    /// The last message of each group so far.
    last: HashMap<String, usize>,
}

#[derive(Clone, Debug)]
struct Waiting {
    size: usize,
    /// The message that stands behind it in its group.
    behind: Option<usize>,
}

impl Batches {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        let (waiting, ready, last) = (Vec::new(), BinaryHeap::new(), HashMap::new());
        Self { max_entries, max_bytes, waiting, ready, last }
    }

    /// Adds the message at `position`, behind what is there of its group. Positions ascend.
    pub(super) fn push(&mut self, position: usize, size: usize, group: Option<String>) {
        debug_assert!(position >= self.waiting.len(), "positions ascend");
        self.waiting.resize(position, None);
        self.waiting.push(Some(Waiting { size, behind: None }));
        let before = group.and_then(|group| self.last.insert(group, position));
        match before.and_then(|before| self.message(before)) {
            Some(before) => before.behind = Some(position),
            None => self.ready.push(Reverse(position)),
        }
    }

    /// The next batch, ascending; empty where nothing may go now. A message that is larger than a batch may be goes
    /// alone: the server has the last word on it.
    pub(super) fn take(&mut self) -> Vec<usize> {
        let (mut batch, mut bytes) = (Vec::new(), 0_usize);
        while let Some(&Reverse(position)) = self.ready.peek() {
            bytes = bytes.saturating_add(self.message(position).map_or(0, |message| message.size));
            if batch.len() >= self.max_entries || (bytes > self.max_bytes && !batch.is_empty()) {
                break;
            }
            self.ready.pop();
            batch.push(position);
        }
        batch
    }

    /// Nothing more is to be done about this message of a batch, so what stands behind it may go.
    pub(super) fn settle(&mut self, position: usize) {
        let settled = self.waiting.get_mut(position).and_then(Option::take);
        self.ready.extend(settled.and_then(|message| message.behind).map(Reverse));
    }

    fn message(&mut self, position: usize) -> Option<&mut Waiting> {
        self.waiting.get_mut(position).and_then(Option::as_mut)
    }

    /// Takes a batch back; from now on each message goes alone, so that the one that spoils the batch shows.
    pub(super) fn isolate(&mut self, batch: Vec<usize>) {
        self.ready.extend(batch.into_iter().map(Reverse));
        self.max_entries = 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes batches until none is left, everything being settled at once.
    fn drain(mut batches: Batches) -> Vec<Vec<usize>> {
        let mut taken = Vec::new();
        loop {
            let batch = batches.take();
            if batch.is_empty() {
                return taken;
            }
            for &position in &batch {
                batches.settle(position);
            }
            taken.push(batch);
        }
    }

    fn ungrouped(sizes: &[usize], max_bytes: usize) -> Batches {
        let mut batches = Batches::new(10, max_bytes);
        for (position, size) in sizes.iter().enumerate() {
            batches.push(position, *size, None);
        }
        batches
    }

    fn grouped(groups: &[&str]) -> Batches {
        let mut batches = Batches::new(10, 100);
        for (position, group) in groups.iter().enumerate() {
            batches.push(position, 1, Some((*group).to_owned()));
        }
        batches
    }

    #[test]
    fn twenty_five_messages_of_110_kib_go_in_13_batches_of_256_kib_and_in_3_of_1_mib() {
        let sizes = vec![110 << 10; 25];
        let small = drain(ungrouped(&sizes, 256 << 10));
        assert_eq!((small.len(), small.iter().map(Vec::len).max()), (13, Some(2)));
        let large = drain(ungrouped(&sizes, 1 << 20));
        assert_eq!((large.len(), large.iter().map(Vec::len).max()), (3, Some(9)));
    }

    #[test]
    fn a_message_larger_than_a_batch_goes_alone() {
        assert_eq!(drain(ungrouped(&[1, 99, 1], 10)), [vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn a_batch_holds_one_message_of_each_group() {
        let batches = grouped(&["a", "a", "b", "a", "b", "c"]);
        assert_eq!(drain(batches), [vec![0, 2, 5], vec![1, 4], vec![3]]);
    }

    #[test]
    fn what_stands_behind_an_unsettled_message_does_not_go() {
        let mut batches = grouped(&["a", "a", "b"]);
        assert_eq!(batches.take(), [0, 2]);
        batches.settle(2);
        assert!(batches.take().is_empty());
    }

    #[test]
    fn an_isolated_batch_goes_again_message_by_message() {
        let mut batches = ungrouped(&[1; 5], 3);
        let batch = batches.take();
        batches.isolate(batch);
        assert_eq!(drain(batches), [vec![0], vec![1], vec![2], vec![3], vec![4]]);
    }

    proptest! {
        #[test]
        fn every_message_goes_once_within_the_limits_and_in_the_order_of_its_group(
            messages in proptest::collection::vec((0_usize..60, 0_u8..4), 0..60),
            grouped in any::<bool>(),
        ) {
            let mut batches = Batches::new(10, 100);
            for (position, (size, group)) in messages.iter().enumerate() {
                batches.push(position, *size, grouped.then(|| group.to_string()));
            }
            let taken = drain(batches);
            for batch in &taken {
                prop_assert!(batch.len() <= 10);
                prop_assert!(batch.len() == 1 || batch.iter().map(|&position| messages[position].0).sum::<usize>() <= 100);
                let mut members: Vec<_> = batch.iter().map(|&position| messages[position].1).collect();
                members.sort_unstable();
                members.dedup();
                prop_assert!(!grouped || members.len() == batch.len());
            }
            let order = taken.concat();
            for group in 0..4 {
                let belongs = |position: &usize| !grouped || messages[*position].1 == group;
                let sent: Vec<_> = order.iter().copied().filter(belongs).collect();
                let expected: Vec<_> = (0..messages.len()).filter(belongs).collect();
                prop_assert_eq!(sent, expected);
            }
        }
    }
}
