//! Threads of history, which make way for everything else.
//!
//! History takes all the processor time there is. A new block goes through eight steps, and before each it would wait for a
//! thread that is busy with a piece of history, and then for a processor. So ranges of history have threads of their own, of a
//! low priority, and rest while a new block is on its way. What such a range opens or waits for, connections, timers and what
//! blocks, stays with the runtime that it was begun on: what both tracks share is not in slow hands, but for what is dropped with
//! a range that was given up, and for locks, which are held for moments.
//!
//! A single block of history, which is all that there is of it above the final height, is worked on by all threads: it is soon
//! done, and its answers are waited for no longer than a node usually takes. A thread that got no processor meanwhile would tell
//! of a node that failed.

use std::{io, thread::sleep, time::Duration};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinSet,
};
use tokio_util::context::TokioContext;

use super::right_of_way::RightOfWay;
use crate::domain::{BlockRange, Track};

/// Threads for what blocks: files, names of hosts, standard output.
const BLOCKING: usize = 16;
/// Longer than it takes to begin all of them.
const BEGINNING: Duration = Duration::from_millis(5);
/// How far history stands back. It has a thirtieth of the processor time of whatever wants all of it, other processes among
/// them: with a seventieth, the least that there is, history starves on a busy machine.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 15;
/// As long as anything runs.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A runtime for everything but history. Its threads for what blocks are all begun here: one that is begun later has the
/// priority of whoever needed it first, which may be history, and keeps it, for only the privileged may raise it again.
///
/// # Errors
///
/// The system's, where it gives no threads.
pub fn runtime() -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    let blocking = builder.max_blocking_threads(BLOCKING).thread_keep_alive(FOR_EVER);
    let runtime = blocking.enable_all().thread_name("chaintap").build()?;
    for _ in 0..BLOCKING {
        #[expect(clippy::disallowed_methods, reason = "it is a thread for what blocks")]
        runtime.spawn_blocking(|| sleep(BEGINNING));
    }
    Ok(runtime)
}

/// The threads that ranges are worked on by.
#[derive(Debug, Default)]
pub struct Threads {
    /// `None`: both tracks share those of the runtime.
    history: Option<Runtime>,
    way: RightOfWay,
}

impl Threads {
    /// With as many for history as there are processors.
    ///
    /// # Errors
    ///
    /// The system's, where it gives no more threads.
    pub fn with_some_for_history() -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        // What is dropped by them may need drivers, too.
        let history = builder.enable_all().thread_name("history").on_thread_start(stand_back).build();
        let told =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot start threads for history: {error}"));
        Ok(Self { history: Some(history.map_err(told)?), way: RightOfWay::default() })
    }

    /// Whether history has some of its own.
    pub(super) fn are_apart(&self) -> bool {
        self.history.is_some()
    }

    /// A step of this track begins. Where it is one of a new block, history makes way for it.
    pub(super) fn make_way(&self, track: Track) {
        if track == Track::Realtime {
            self.way.take();
        }
    }

    /// The new block is delivered.
    pub(super) fn go_on(&self, track: Track) {
        if track == Track::Realtime {
            self.way.give_back();
        }
    }

    /// Begins work on a range of a track.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        (track, range): (Track, BlockRange),
        tasks: &mut JoinSet<T>,
        work: impl Future<Output = T> + Send + 'static,
    ) {
        if track == Track::Realtime {
            tasks.spawn(work);
            return;
        }
        let work = self.way.behind(work);
        match &self.history {
            Some(history) if range.blocks() > 1 => {
                tasks.spawn_on(TokioContext::new(work, Handle::current()), history.handle())
            }
            _ => tasks.spawn(work),
        };
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // It may be one of them that drops it last.
        if let Some(history) = self.history.take() {
            history.shutdown_background();
        }
    }
}

/// Gives this thread a low priority. On Linux each thread has one of its own.
fn stand_back() {
    #[cfg(target_os = "linux")]
    // Where that is forbidden, history competes with new blocks, and nothing is lost by it.
    rustix::process::nice(NICENESS).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name and the niceness of the thread that it runs on, and of one that blocks for it.
    async fn whereabouts() -> [String; 2] {
        let here = || {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            #[cfg(target_os = "linux")]
            let name = format!("{name} at {}", rustix::process::nice(0).unwrap());
            name
        };
        // The timer is that of the runtime that it was begun on.
        tokio::time::sleep(Duration::from_millis(1)).await;
        [here(), tokio::task::spawn_blocking(here).await.unwrap()]
    }

    fn at(threads: Threads, track: Track, blocks: u64) -> [String; 2] {
        runtime().unwrap().block_on(async move {
            let mut tasks = JoinSet::new();
            threads.spawn((track, BlockRange { from: 1, to: blocks }), &mut tasks, whereabouts());
            tasks.join_next().await.unwrap().unwrap()
        })
    }

    #[test]
    fn history_is_worked_on_by_threads_that_make_way_and_what_blocks_by_others() {
        let own = || Threads::with_some_for_history().unwrap();
        let other = at(Threads::default(), Track::Historical, 2);
        assert!(other[0].starts_with("chaintap") && other[0] == other[1], "{other:?}");
        assert_eq!(at(own(), Track::Realtime, 2), other);
        assert_eq!(at(own(), Track::Historical, 1), other, "soon done");
        let history = at(own(), Track::Historical, 2);
        assert!(history[0].starts_with("history") && history[1] == other[1], "{history:?}");
        #[cfg(target_os = "linux")]
        assert!(history[0].ends_with(" at 15") && !other[0].ends_with(" at 15"), "{history:?} {other:?}");
    }

    #[test]
    fn the_last_of_the_work_may_end_the_threads() {
        runtime().unwrap().block_on(async {
            let threads = std::sync::Arc::new(Threads::with_some_for_history().unwrap());
            let (mut tasks, held) = (JoinSet::new(), threads.clone());
            threads.spawn((Track::Historical, BlockRange { from: 1, to: 2 }), &mut tasks, async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(held);
            });
            drop(threads);
            // Either it came to its end, or it was ended with its threads.
            let ended = tasks.join_next().await.unwrap();
            assert!(ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()));
        });
    }
}
