//! The right of way of new blocks: while one is on its way through the stages, history rests.
//!
//! A low priority alone does not free a processor at once: the system lets whoever has it go on for a moment, each time that a
//! new block waits for a node or the store and comes back. So history itself steps aside, between two of its own moments. Where
//! a node or the store takes its time it goes on, and in any case it has half of the time.

use std::{
    future::{pending, poll_fn},
    pin::{Pin, pin},
    task::ready,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// How long history rests at most: longer than a new block takes where the node and the store are near.
const REST: Duration = Duration::from_millis(5);

/// Who goes first.
#[derive(Debug, Default)]
pub(super) struct RightOfWay(watch::Sender<Rest>);

/// Until when history rests, and until when it need not rest again.
#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    until: Option<Instant>,
    not_again_until: Option<Instant>,
}

impl RightOfWay {
    /// A new block comes, or is looked for: history rests, unless it has just done so. Where nobody gives it back, as where there
    /// is no new block, that is over soon by itself.
    pub(super) fn take(&self) {
        let now = Instant::now();
        self.0.send_if_modified(|rest| {
            let is_due = rest.not_again_until.is_none_or(|end| end <= now);
            if is_due {
                *rest = Rest { until: Some(now + REST), not_again_until: Some(now + 2 * REST) };
            }
            is_due
        });
    }

    /// The new block is through.
    pub(super) fn give_back(&self) {
        self.0.send_if_modified(|rest| rest.until.take().is_some());
    }

    /// The same work, which is not polled while history rests.
    pub(super) fn behind<W: Future>(&self, work: W) -> impl Future<Output = W::Output> + use<W> {
        let rest = self.0.subscribe();
        async move {
            let mut work = pin!(work);
            let mut resting: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
            poll_fn(|cx| {
                loop {
                    if let Some(pause) = &mut resting {
                        ready!(pause.as_mut().poll(cx));
                        resting = None;
                    }
                    // A new block waits for whoever holds this.
                    let until = rest.borrow().until;
                    let Some(until) = until.filter(|end| *end > Instant::now()) else { return work.as_mut().poll(cx) };
                    resting = Some(Box::pin(over(rest.clone(), until)));
                }
            })
            .await
        }
    }
}

/// Waits until the new block is through, but no longer than until then.
async fn over(mut rest: watch::Receiver<Rest>, until: Instant) {
    let through = async {
        if rest.wait_for(|rest| rest.until.is_none()).await.is_err() {
            // Nobody is there any more to say so.
            pending::<()>().await;
        }
    };
    timeout_at(until, through).await.unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use tokio::time::sleep;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    /// Work that counts milliseconds, behind new blocks.
    fn counting(way: &RightOfWay) -> Arc<AtomicU32> {
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(way.behind(async move {
            loop {
                sleep(MOMENT).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }));
        count
    }

    /// How much of it is done meanwhile.
    async fn done_within(count: &AtomicU32, time: Duration) -> u32 {
        let before = count.load(Ordering::Relaxed);
        sleep(time).await;
        count.load(Ordering::Relaxed) - before
    }

    #[tokio::test(start_paused = true)]
    async fn history_rests_until_the_new_block_is_through() {
        let way = RightOfWay::default();
        let count = counting(&way);
        assert!(done_within(&count, MOMENT * 20).await >= 18);
        way.take();
        assert_eq!(done_within(&count, MOMENT * 3).await, 0);
        way.give_back();
        assert!(done_within(&count, MOMENT * 20).await >= 18);
    }

    #[tokio::test(start_paused = true)]
    async fn history_goes_on_where_a_new_block_takes_its_time() {
        let way = RightOfWay::default();
        let count = counting(&way);
        way.take();
        assert_eq!(done_within(&count, MOMENT * 4).await, 0);
        assert!(done_within(&count, MOMENT * 20).await >= 18);
    }

    #[tokio::test(start_paused = true)]
    async fn history_has_half_of_the_time_however_many_new_blocks_come() {
        let way = RightOfWay::default();
        let count = counting(&way);
        for _ in 0..200 {
            way.take();
            sleep(MOMENT).await;
        }
        let done = count.load(Ordering::Relaxed);
        assert!((80..120).contains(&done), "{done} of 200");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_ends_gives_its_result_and_without_a_new_block_nothing_waits() {
        let way = RightOfWay::default();
        way.give_back();
        assert_eq!(way.behind(async { 7 }).await, 7);
        let orphan = RightOfWay::default();
        orphan.take();
        let work = orphan.behind(async { 8 });
        drop(orphan);
        assert_eq!(work.await, 8);
    }
}
