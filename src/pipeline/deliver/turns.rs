//! Whose turn it is to call a sink.
//!
//! Ranges hand over side by side, and a sink that is away or throttles is so for all of them: the pause after a failure is
//! everybody's, and after it one call goes first; the others follow once it took something. So a sink in trouble is called
//! as often by twenty ranges as by one. Of ranges of history the one that waits longest goes first; what is near the head, or is
//! taken back, is not in that line, and competes with one of them at most. Where some of a call was taken the sink is slow, not
//! away: then only who made the call waits, before its next one. At a sink whose calls wait for one another history is always in
//! line, and keeps its place until the call is over.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{backoff::Backoff, sinks::Sink};

/// Longest pause between two tries of a sink.
pub(super) const SINK_PAUSE: Duration = Duration::from_secs(10);

/// How much it matters to be early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pipeline) enum Haste {
    /// Near the head, or taken back: everything else may wait for it.
    Urgent,
    /// Of history: in line.
    History,
}

/// The turns at every sink of a process.
#[derive(Default)]
pub struct Turns {
    sinks: Mutex<Vec<Known>>,
}

/// A sink by itself, not by its name: two handlers may share one.
type Known = (Arc<dyn Sink>, Arc<Turnstile>);

impl Turns {
    /// The turns at this sink.
    pub(super) fn at(&self, sink: &Arc<dyn Sink>) -> Arc<Turnstile> {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match sinks.iter_mut().find(|(known, _)| Arc::ptr_eq(known, sink)) {
            Some(known) => known,
            None => sinks.push_mut((sink.clone(), Arc::new(Turnstile::new(sink.is_one_at_a_time())))),
        };
        known.1.clone()
    }
}

/// Lets calls of one sink through: all of them, none during a pause, one after it.
pub(super) struct Turnstile {
    state: Mutex<State>,
    /// Where history waits: fair, so that no range waits for ever.
    line: tokio::sync::Mutex<()>,
    /// Whether history is in line also while the sink takes messages.
    is_one_at_a_time: bool,
    /// Told whenever those who wait have to look again.
    moved: Notify,
}

struct State {
    passage: Passage,
    backoff: Backoff,
    /// Pauses so far. What a call comes to that began before the newest one says nothing new.
    pauses: u64,
    /// When the sink last took something of anybody.
    last_taken: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Passage {
    Free,
    /// Nobody before then, and then the first who comes.
    From(Instant),
    /// One went first, and the others wait for what it comes to.
    Tried,
}

impl Turnstile {
    fn new(is_one_at_a_time: bool) -> Self {
        let (passage, backoff) = (Passage::Free, Backoff::new(SINK_PAUSE));
        let state = State { passage, backoff, pauses: 0, last_taken: Instant::now() };
        Self { state: Mutex::new(state), line: tokio::sync::Mutex::default(), is_one_at_a_time, moved: Notify::new() }
    }

    /// Waits for a turn as long as the sink takes something of anybody: [`None`] once it took nothing for `patience`, counted
    /// from `since` at the earliest.
    pub(super) async fn turn_within(&self, patience: Duration, since: Instant, haste: Haste) -> Option<Turn<'_>> {
        let mut turn = pin!(self.turn(haste));
        loop {
            let until = since.max(self.state().last_taken) + patience;
            match timeout_at(until, turn.as_mut()).await {
                Ok(turn) => return Some(turn),
                Err(_) if self.state().last_taken + patience > Instant::now() => {}
                Err(_) => return None,
            }
        }
    }

    /// Waits for a turn.
    ///
    /// # Cancel safety
    ///
    /// Dropping it, or the turn that it gave, loses nobody else's turn.
    async fn turn(&self, haste: Haste) -> Turn<'_> {
        let keeps_place = self.is_one_at_a_time && haste == Haste::History;
        if !keeps_place && let Ok(turn) = self.pass() {
            return turn;
        }
        let place = if haste == Haste::History { Some(self.line.lock().await) } else { None };
        loop {
            let mut moved = pin!(self.moved.notified());
            // Before the look, so that nothing that moves behind it is missed.
            moved.as_mut().enable();
            let from = match self.pass() {
                Ok(mut turn) => {
                    turn.place = place.filter(|_| keeps_place);
                    return turn;
                }
                Err(from) => from,
            };
            match from {
                None => moved.await,
                Some(from) => tokio::select! {
                    () = moved => {}
                    () = sleep_until(from) => {}
                },
            }
        }
    }

    /// A turn, or when to ask again, where that is known.
    fn pass(&self) -> Result<Turn<'_>, Option<Instant>> {
        let mut state = self.state();
        let goes_first = match state.passage {
            Passage::Free => false,
            Passage::From(from) if Instant::now() >= from => {
                state.passage = Passage::Tried;
                true
            }
            Passage::From(from) => return Err(Some(from)),
            Passage::Tried => return Err(None),
        };
        Ok(Turn { turnstile: self, place: None, pauses: state.pauses, goes_first })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to call the sink once.
pub(super) struct Turn<'a> {
    turnstile: &'a Turnstile,
    /// That in the line of a sink whose calls wait for one another.
    place: Option<tokio::sync::MutexGuard<'a, ()>>,
    /// Pauses before it.
    pauses: u64,
    goes_first: bool,
}

impl Turn<'_> {
    /// The sink takes messages: everybody may call it.
    pub(super) fn succeeded(self) {
        self.turnstile.state().last_taken = Instant::now();
        self.settle(|state| {
            state.backoff.reset();
            state.passage = Passage::Free;
        });
    }

    /// The sink took nothing: nobody calls it for a while. One outage fails every call in flight, and
    /// the pause does not grow with each of them.
    pub(super) fn failed(self) {
        self.settle(|state| {
            state.pauses += 1;
            state.passage = Passage::From(Instant::now() + state.backoff.next_delay());
        });
    }

    fn settle(mut self, note: impl FnOnce(&mut State)) {
        self.goes_first = false;
        let mut state = self.turnstile.state();
        if state.pauses == self.pauses {
            note(&mut state);
            drop(state);
            self.turnstile.moved.notify_waiters();
        }
    }
}

impl Drop for Turn<'_> {
    /// Who went first and was cut short leaves that to the next one.
    fn drop(&mut self) {
        let mut state = self.turnstile.state();
        if self.goes_first && state.pauses == self.pauses && state.passage == Passage::Tried {
            state.passage = Passage::From(Instant::now());
            drop(state);
            self.turnstile.moved.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{sleep, timeout};

    use super::*;

    const CALL: Duration = Duration::from_millis(20);

    /// Ranges that call until they are taken, side by side; answers how many calls there were in `time`.
    async fn calls(ranges: usize, time: Duration, works_from: Instant) -> (usize, usize) {
        let turnstile = Arc::new(Turnstile::new(false));
        let (calls, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..ranges {
            let (turnstile, calls, taken) = (turnstile.clone(), calls.clone(), taken.clone());
            tokio::spawn(async move {
                loop {
                    let turn = turnstile.turn(Haste::History).await;
                    calls.fetch_add(1, Ordering::Relaxed);
                    sleep(CALL).await;
                    if Instant::now() >= works_from {
                        turn.succeeded();
                        taken.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    turn.failed();
                }
            });
        }
        sleep(time).await;
        (calls.load(Ordering::Relaxed), taken.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_is_away_is_called_as_often_by_twenty_ranges_as_by_one() {
        let minute = Duration::from_mins(1);
        let (calls_of_twenty, taken) = calls(20, minute, Instant::now() + 2 * minute).await;
        // All that were on their way, and then a pause of 0.1 s, 0.2 s, 0.4 s … 10 s before each, at least.
        assert!((20 + 6..=20 + 12).contains(&calls_of_twenty), "{calls_of_twenty}");
        assert_eq!(taken, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn once_one_call_succeeds_the_others_follow_at_once() {
        let works_from = Instant::now() + Duration::from_secs(1);
        let (calls, taken) = calls(20, Duration::from_secs(5), works_from).await;
        assert_eq!(taken, 20);
        assert!(calls <= 20 + 20 + 5, "{calls}");
    }

    /// Whether somebody who asks now has a turn without a wait.
    async fn is_free(turnstile: &Turnstile) -> bool {
        timeout(Duration::from_millis(1), turnstile.turn(Haste::Urgent)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn what_began_before_a_pause_neither_ends_it_nor_makes_it_longer() {
        let turnstile = Turnstile::new(false);
        let (one, two, three) = (
            turnstile.turn(Haste::Urgent).await,
            turnstile.turn(Haste::Urgent).await,
            turnstile.turn(Haste::Urgent).await,
        );
        one.failed();
        let Passage::From(until) = turnstile.state().passage else { panic!("it does not pause") };
        two.succeeded();
        assert!(!is_free(&turnstile).await);
        three.failed();
        assert!(turnstile.state().passage == Passage::From(until) && turnstile.state().pauses == 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_first_and_is_cut_short_leaves_it_to_the_next() {
        let turnstile = Turnstile::new(false);
        turnstile.turn(Haste::Urgent).await.failed();
        let first = turnstile.turn(Haste::Urgent).await;
        assert!(!is_free(&turnstile).await, "it is tried already");
        let mut waiting = pin!(turnstile.turn(Haste::Urgent));
        assert!(timeout(Duration::from_mins(1), waiting.as_mut()).await.is_err());
        drop(first);
        let next = timeout(Duration::from_millis(1), waiting).await.unwrap();
        assert!(next.goes_first && !is_free(&turnstile).await);
        next.succeeded();
        assert!(is_free(&turnstile).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_makes_the_next_pause_a_short_one() {
        let turnstile = Turnstile::new(false);
        for _ in 0..10 {
            turnstile.turn(Haste::Urgent).await.failed();
        }
        turnstile.turn(Haste::Urgent).await.succeeded();
        turnstile.turn(Haste::Urgent).await.failed();
        let begun = Instant::now();
        turnstile.turn(Haste::Urgent).await.succeeded();
        assert!(begun.elapsed() <= Duration::from_millis(210), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn history_waits_in_line_and_what_is_urgent_for_one_of_it_at_most() {
        let turnstile = Arc::new(Turnstile::new(false));
        turnstile.turn(Haste::Urgent).await.failed();
        let order = Arc::new(Mutex::new(Vec::new()));
        let call = |name: usize, haste| {
            let (turnstile, order) = (turnstile.clone(), order.clone());
            tokio::spawn(async move {
                let turn = turnstile.turn(haste).await;
                order.lock().unwrap().push(name);
                sleep(CALL).await;
                turn.failed();
            })
        };
        for name in 0..20 {
            call(name, Haste::History);
            tokio::task::yield_now().await;
        }
        let (urgent, begun) = (call(99, Haste::Urgent), Instant::now());
        urgent.await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        sleep(Duration::from_mins(10)).await;
        let mut order = order.lock().unwrap().clone();
        assert!(order.iter().position(|name| *name == 99) <= Some(1), "{order:?}");
        order.retain(|name| *name != 99);
        assert_eq!(order, (0..20).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn where_calls_wait_for_one_another_history_calls_one_by_one_and_what_is_urgent_at_once() {
        let turnstile = Arc::new(Turnstile::new(true));
        let at_once = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let ranges: Vec<_> = (0..20)
            .map(|range| {
                let (turnstile, at_once) = (turnstile.clone(), at_once.clone());
                tokio::spawn(async move {
                    let turn = turnstile.turn(Haste::History).await;
                    let (now, most) = &*at_once;
                    most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    sleep(CALL).await;
                    now.fetch_sub(1, Ordering::Relaxed);
                    if range % 5 == 0 { turn.failed() } else { turn.succeeded() }
                })
            })
            .collect();
        sleep(CALL / 2).await;
        assert!(is_free(&turnstile).await);
        for range in ranges {
            range.await.unwrap();
        }
        assert_eq!(at_once.1.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_gives_up_while_others_are_taken() {
        let (turnstile, patience) = (Arc::new(Turnstile::new(false)), Duration::from_mins(5));
        let first = turnstile.turn(Haste::Urgent).await;
        first.failed();
        let busy = turnstile.turn(Haste::Urgent).await;
        let begun = Instant::now();
        let taking = turnstile.clone();
        tokio::spawn(async move {
            for _ in 0..4 {
                sleep(Duration::from_mins(4)).await;
                taking.state().last_taken = Instant::now();
            }
        });
        assert!(turnstile.turn_within(patience, begun, Haste::History).await.is_none());
        assert_eq!(begun.elapsed().as_secs() / 60, 4 * 4 + 5);
        drop(busy);
        assert!(turnstile.turn_within(patience, begun, Haste::History).await.is_some());
    }
}
