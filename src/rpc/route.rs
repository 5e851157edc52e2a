//! Which endpoints a request is sent to, and in which order. Pure: how each endpoint stands comes in, places go out.
//!
//! Requests stay with the endpoint in use as long as it serves, so that a block's header and its logs come from one
//! place (F08). One that fails, lags, refuses this kind of request or is not at the height that is asked for is asked
//! only where there is no better one; and somebody is always asked, whatever is known of them, but for those who said how
//! long they want to be left alone. One that is ejected is asked only where all are: its answers are worse than none.

use tokio::time::Instant;

use super::breaker::{Gate, Why};

/// One request is sent to this many endpoints at most.
pub(super) const TRIES: usize = 3;

/// Where an endpoint stands, compared with the height that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Height {
    /// There, or nobody knows.
    #[default]
    There,
    /// It was below some time ago.
    WasBelow,
    /// It was below a moment ago.
    Below,
    /// It no longer has blocks that are so old.
    Dropped,
}

/// How one endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) gate: Gate,
    /// It lags behind the others, and has for a while.
    pub(super) lags: bool,
    /// It refused this kind of request.
    pub(super) refuses: bool,
    pub(super) height: Height,
}

impl Standing {
    /// Whether requests may stay with it.
    pub(super) fn serves(self) -> bool {
        self.gate == Gate::Closed && !self.lags
    }

    fn rank(self) -> Rank {
        match self.gate {
            Gate::Open(Why::Waits, until) => Rank::Never(until),
            Gate::Open(Why::Ejected, until) => Rank::Ejected(until),
            Gate::Open(_, until) => Rank::Open(until),
            Gate::HalfOpen => Rank::HalfOpen,
            Gate::Closed if self.refuses => Rank::Refuses,
            Gate::Closed if self.height == Height::Dropped => Rank::Dropped,
            Gate::Closed if self.height == Height::Below => Rank::Below,
            Gate::Closed if self.lags || self.height == Height::WasBelow => Rank::Late,
            Gate::Closed => Rank::Good,
        }
    }
}

/// Better ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Good,
    Late,
    Below,
    Dropped,
    Refuses,
    HalfOpen,
    Open(Instant),
    Never(Instant),
    Ejected(Instant),
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To these, one after the other, by their places.
    Ask(Vec<usize>),
    /// To nobody before this moment.
    Wait(Instant),
}

/// The way of a request while requests stay with the endpoint at `current`.
pub(super) fn route(standings: &[Standing], current: usize) -> Route {
    let mut ranked: Vec<(Rank, bool, usize)> =
        standings.iter().enumerate().map(|(place, standing)| (standing.rank(), place != current, place)).collect();
    ranked.sort_unstable();
    let Some((best, ..)) = ranked.first().copied() else { return Route::Ask(Vec::new()) };
    if let Rank::Never(until) = best {
        return Route::Wait(until);
    }
    let is_of_use = |rank: Rank| match rank {
        Rank::Good | Rank::Late => true,
        // From which height on blocks are there may have been guessed.
        Rank::Below | Rank::Dropped => best != Rank::Good,
        Rank::Refuses => matches!(best, Rank::Dropped | Rank::Refuses),
        // Nobody is known to serve: the sooner someone is found who does, the better.
        Rank::HalfOpen | Rank::Open(_) => best >= Rank::HalfOpen || best == Rank::Dropped,
        Rank::Never(_) => false,
        Rank::Ejected(_) => matches!(best, Rank::Ejected(_)),
    };
    Route::Ask(ranked.into_iter().filter(|(rank, ..)| is_of_use(*rank)).map(|(.., place)| place).take(TRIES).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GOOD: Standing = Standing { gate: Gate::Closed, lags: false, refuses: false, height: Height::There };

    fn open(why: Why, seconds: u64, now: Instant) -> Standing {
        Standing { gate: Gate::Open(why, now + Duration::from_secs(seconds)), ..GOOD }
    }

    fn asked(standings: &[Standing], current: usize) -> Vec<usize> {
        match route(standings, current) {
            Route::Ask(places) => places,
            Route::Wait(_) => panic!("nobody is asked"),
        }
    }

    #[test]
    fn requests_stay_and_the_others_follow_in_their_order_three_at_most() {
        assert_eq!(asked(&[GOOD; 5], 0), [0, 1, 2]);
        assert_eq!(asked(&[GOOD; 5], 3), [3, 0, 1]);
        assert_eq!(asked(&[], 0), Vec::<usize>::new());
    }

    #[test]
    fn who_lags_comes_last_and_who_is_known_to_be_below_is_not_asked_where_another_is_there() {
        let lags = Standing { lags: true, ..GOOD };
        let (below, was_below) =
            (Standing { height: Height::Below, ..GOOD }, Standing { height: Height::WasBelow, ..GOOD });
        assert_eq!(asked(&[lags, GOOD, GOOD], 0), [1, 2, 0]);
        assert_eq!(asked(&[below, GOOD, was_below], 0), [1, 2]);
        assert_eq!(asked(&[below, below, was_below], 0), [2, 0, 1]);
    }

    #[test]
    fn who_has_dropped_what_is_so_old_is_asked_only_where_nobody_else_serves() {
        let now = Instant::now();
        let dropped = Standing { height: Height::Dropped, ..GOOD };
        let (lags, refuses) = (Standing { lags: true, ..GOOD }, Standing { refuses: true, ..GOOD });
        assert_eq!(asked(&[dropped, GOOD, lags], 0), [1, 2], "what is old those have that lag");
        assert_eq!(asked(&[dropped, refuses, dropped], 2), [2, 0, 1]);
        assert_eq!(asked(&[dropped, open(Why::Fails, 9, now)], 0), [0, 1], "it may serve again");
    }

    #[test]
    fn who_refuses_or_fails_is_asked_only_where_nobody_is_better() {
        let now = Instant::now();
        let refuses = Standing { refuses: true, ..GOOD };
        let half = Standing { gate: Gate::HalfOpen, ..GOOD };
        let fails = |seconds| open(Why::Fails, seconds, now);
        assert_eq!(asked(&[refuses, GOOD, fails(1)], 0), [1]);
        assert_eq!(asked(&[refuses, refuses, fails(1)], 1), [1, 0]);
        assert_eq!(asked(&[fails(3), half, fails(1)], 0), [1, 2, 0]);
    }

    #[test]
    fn who_is_ejected_is_asked_only_where_all_are() {
        let now = Instant::now();
        let ejected = |seconds| open(Why::Ejected, seconds, now);
        let half = Standing { gate: Gate::HalfOpen, ..GOOD };
        for better in [GOOD, half, open(Why::Fails, 60, now), open(Why::Throttles, 60, now)] {
            assert_eq!(asked(&[better, ejected(2)], 1), [0], "{better:?}");
        }
        let waits = open(Why::Waits, 4, now);
        assert_eq!(route(&[waits, ejected(2)], 0), Route::Wait(now + Duration::from_secs(4)));
        assert_eq!(asked(&[ejected(9), ejected(2)], 0), [1, 0]);
    }

    #[test]
    fn who_said_for_how_long_is_left_alone_for_so_long() {
        let now = Instant::now();
        let waits = |seconds| open(Why::Waits, seconds, now);
        assert_eq!(route(&[waits(9), waits(4)], 0), Route::Wait(now + Duration::from_secs(4)));
        assert_eq!(asked(&[waits(1), open(Why::Throttles, 2, now)], 0), [1]);
        assert_eq!(asked(&[waits(1), open(Why::Fails, 60, now)], 0), [1]);
    }
}
