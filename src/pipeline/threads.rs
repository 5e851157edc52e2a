//! Threads of history, which make way for everything else.
//!
//! History takes all the processor time there is. A new block goes through eight steps, and before each it would wait for a
//! thread that is busy with a piece of history, and then for a processor. So ranges of history have threads of their own, of the
//! lowest priority: the system takes the processor from them as soon as anything else has work. What such a range opens or waits
//! for, connections and timers, stays with the runtime that it was begun on: what both tracks share is not in slow hands.

use std::io;

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinSet,
};
use tokio_util::context::TokioContext;

use crate::domain::Track;

/// The threads that ranges are worked on by.
#[derive(Debug, Default)]
pub struct Threads {
    /// `None`: both tracks share those of the runtime.
    history: Option<Runtime>,
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
        let history = builder.enable_all().thread_name("history").on_thread_start(make_way).build();
        let told =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot start threads for history: {error}"));
        Ok(Self { history: Some(history.map_err(told)?) })
    }

    /// Begins work of a track.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        track: Track,
        tasks: &mut JoinSet<T>,
        work: impl Future<Output = T> + Send + 'static,
    ) {
        match &self.history {
            Some(history) if track == Track::Historical => {
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

/// Gives this thread the lowest priority. On Linux each thread has one of its own.
fn make_way() {
    #[cfg(target_os = "linux")]
    // Where that is forbidden, history competes with new blocks, and nothing is lost by it.
    rustix::process::nice(19).ok();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    /// The name and the niceness of the thread that it runs on, and of one that blocks for it.
    async fn whereabouts() -> [String; 2] {
        let here = || {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            #[cfg(target_os = "linux")]
            let name = format!("{name} {}", rustix::process::nice(0).unwrap());
            name
        };
        // Both are of the runtime that it was begun on.
        sleep(Duration::from_millis(1)).await;
        [here(), tokio::task::spawn_blocking(here).await.unwrap()]
    }

    #[test]
    fn history_is_worked_on_by_threads_that_make_way_and_waits_on_those_it_was_begun_on() {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("other").enable_all().build().unwrap();
        let at = |threads: Threads, track| {
            runtime.block_on(async move {
                let mut tasks = JoinSet::new();
                threads.spawn(track, &mut tasks, whereabouts());
                tasks.join_next().await.unwrap().unwrap()
            })
        };
        let own = || Threads::with_some_for_history().unwrap();
        let other = at(Threads::default(), Track::Historical);
        assert!(other[0].starts_with("other") && other[0] == other[1], "{other:?}");
        assert_eq!(at(own(), Track::Realtime), other);
        let history = at(own(), Track::Historical);
        assert!(history[0].starts_with("history") && history[1] == other[1], "{history:?}");
        #[cfg(target_os = "linux")]
        assert!(history[0].ends_with(" 19") && !other[0].ends_with(" 19"), "{history:?} {other:?}");
    }

    #[test]
    fn the_last_of_the_work_may_end_the_threads() {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let threads = std::sync::Arc::new(Threads::with_some_for_history().unwrap());
            let (mut tasks, held) = (JoinSet::new(), threads.clone());
            threads.spawn(Track::Historical, &mut tasks, async move {
                sleep(Duration::from_millis(20)).await;
                drop(held);
            });
            drop(threads);
            // Either it came to its end, or it was ended with its threads.
            let ended = tasks.join_next().await.unwrap();
            assert!(ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()));
        });
    }
}
