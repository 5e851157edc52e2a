//! Building a chain from block 0 when the node starts.
//!
//! Hashes must be computed in order, each from the one before. But nearly all of the work is in the bodies (logs, receipts,
//! tries), which know nothing of their parents: they are made on all cores, a stretch at a time. A block with 20 logs takes
//! some 40 µs of one core (release build): 20,000 blocks are there in less than a second on two cores, 200,000 in 4 to 8.

use std::{ops::Range, thread};

use super::{body::Roots, chain::Maker};

/// Blocks whose roots are held at a time, a third of a kilobyte each.
const STRETCH: usize = 4_096;

/// The blocks up to `head`, in the stretches in which they are built.
pub(super) fn stretches(head: u64) -> impl Iterator<Item = Range<u64>> {
    (0..=head).step_by(STRETCH).map(move |start| start..(start + STRETCH as u64).min(head + 1))
}

/// The fork and the roots of each of these blocks, as they stand once the head is at `head`.
pub(super) fn roots(maker: &Maker, numbers: Range<u64>, head: u64) -> Vec<(u32, Roots)> {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let share = (numbers.end - numbers.start).div_ceil(cores).max(1);
    let one = |number| {
        let fork = maker.scheduled_fork(number, head);
        (fork, maker.generator.roots(number, fork))
    };
    thread::scope(|scope| {
        let starts = (numbers.start..numbers.end).step_by(usize::try_from(share).unwrap_or(usize::MAX));
        let shares: Vec<_> = starts
            .map(|start| scope.spawn(move || (start..numbers.end.min(start + share)).map(one).collect::<Vec<_>>()))
            .collect();
        shares.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    })
}
