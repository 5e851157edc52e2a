//! Whose turn it is to read what came of a large answer.
//!
//! Answers with the logs of history come beside each other, and each is of use only as a whole. Read side by side, all of
//! them are nearly there for a long time, and in memory. So only some are read at a time, and of those who wait the one that
//! began first is the next: it is delivered and gone while the others wait where they are, in the connections' buffers, and
//! their sender with them. A turn is for what is there to be read, some pieces at most: who waits for the network holds up
//! nobody.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::oneshot;

/// All who read answers of one endpoint.
#[derive(Debug)]
pub(super) struct Readers {
    at_once: usize,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    reading: usize,
    /// By their numbers. Some may have given up.
    waiting: BTreeMap<u64, oneshot::Sender<Turn>>,
}

/// A reader's number: lower than that of whoever began later.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number(u64);

/// The right to read; with its end the next one has it.
#[derive(Debug)]
pub(super) struct Turn(Arc<Readers>);

impl Readers {
    /// Half as many at once as there are processors: reading is less than half of the work, and most of it is of one endpoint.
    pub(super) fn new() -> Arc<Self> {
        Self::at_once(std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2)))
    }

    pub(super) fn at_once(at_once: usize) -> Arc<Self> {
        Arc::new(Self { at_once, next: AtomicU64::new(0), state: Mutex::default() })
    }

    /// An answer turns out to be large.
    pub(super) fn begin(&self) -> Number {
        Number(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits until this reader may read.
    ///
    /// # Cancel safety
    ///
    /// Dropping it, or the turn that it gave, loses nobody else's turn.
    pub(super) async fn turn(self: &Arc<Self>, number: Number) -> Turn {
        loop {
            let told = {
                let mut state = self.state();
                if state.reading < self.at_once {
                    state.reading += 1;
                    return Turn(self.clone());
                }
                let (tell, told) = oneshot::channel();
                state.waiting.insert(number.0, tell);
                told
            };
            // Whoever is taken from the waiting is given the turn; forgotten, this one would ask again.
            if let Ok(turn) = told.await {
                return turn;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut state = self.0.state();
            let next = state.waiting.pop_first();
            state.reading -= usize::from(next.is_none());
            next
        };
        if let Some((_, tell)) = next {
            // Where that one gave up, the turn comes back, and ends here.
            drop(tell.send(Turn(self.0.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Duration};

    use futures_util::future::join_all;
    use tokio::{
        task::yield_now,
        time::{sleep, timeout},
    };

    use super::*;

    #[tokio::test]
    async fn who_began_first_reads_first() {
        let readers = Readers::at_once(1);
        let [first, second, third, reading] = [(); 4].map(|()| readers.begin());
        let turn = readers.turn(reading).await;
        let order = Mutex::new(Vec::new());
        let read = |number: Number| {
            let (readers, order) = (&readers, &order);
            async move {
                let _turn = readers.turn(number).await;
                order.lock().unwrap().push(number.0);
                yield_now().await;
            }
        };
        let end = async {
            yield_now().await;
            assert!(order.lock().unwrap().is_empty(), "it is another one's turn");
            drop(turn);
        };
        tokio::join!(read(third), read(first), read(second), end);
        assert_eq!(*order.lock().unwrap(), [first.0, second.0, third.0]);
        assert_eq!(readers.state().reading, 0);
    }

    #[tokio::test]
    async fn who_gives_up_loses_nobody_else_s_turn() {
        for is_told in [false, true] {
            let readers = Readers::at_once(1);
            let [first, second, reading] = [(); 3].map(|()| readers.begin());
            let turn = readers.turn(reading).await;
            let mut gives_up = Box::pin(readers.turn(first));
            let mut other = Box::pin(readers.turn(second));
            let (one, two) =
                (timeout(Duration::ZERO, gives_up.as_mut()).await, timeout(Duration::ZERO, other.as_mut()).await);
            assert!(one.is_err() && two.is_err());
            if is_told {
                drop(turn);
                drop(gives_up);
            } else {
                drop(gives_up);
                drop(turn);
            }
            drop(timeout(Duration::from_secs(10), other).await.unwrap());
            assert_eq!(readers.state().reading, 0);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_more_read_at_once_than_may() {
        let readers = Readers::at_once(3);
        let (reading, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let read = |_| {
            let (readers, reading, most) = (readers.clone(), reading.clone(), most.clone());
            tokio::spawn(async move {
                let number = readers.begin();
                for _ in 0..20 {
                    let turn = readers.turn(number).await;
                    most.fetch_max(reading.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    sleep(Duration::from_micros(100)).await;
                    reading.fetch_sub(1, Ordering::SeqCst);
                    drop(turn);
                }
            })
        };
        assert!(join_all((0..20).map(read)).await.into_iter().all(|read| read.is_ok()));
        assert_eq!((most.load(Ordering::SeqCst), readers.state().reading), (3, 0));
    }
}
