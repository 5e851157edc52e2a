//! Whether one endpoint may be asked: a circuit breaker that knows why it is open.
//!
//! It opens after some failures in a row, or at once where one is enough, for a pause that grows from try to try; after
//! the pause it is half open, and one answer closes it: before its end only one of the kind that failed. Until that kind
//! was answered again, one more failure of it opens it for the longer pause. An endpoint that asks for fewer requests is left alone for as
//! long as it says. Once closed it has to stay so for a while before it is preferred again, and for longer each time
//! that it falls back soon: requests do not swing between two endpoints. Pure: every moment is given.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::question::Kind;
use crate::backoff::Backoff;

/// So many failures in a row open it, of one kind of request: a node that has headers and no logs is of no use.
const FAILURES: u32 = 3;
/// Longest pause between two tries of an endpoint that fails, before jitter.
const PAUSE: Duration = Duration::from_secs(15);
/// Longest pause of an endpoint that asks for fewer requests and does not say for how long, before jitter.
const THROTTLED: Duration = Duration::from_secs(2);
/// How long it has to be closed before it counts as steady, at first and at most.
pub(super) const STEADY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(5));
/// What opens again within this time after it closed fell back soon.
const SOON: Duration = Duration::from_mins(10);
/// How long an endpoint is set aside that is alone with its opinion, at first and at most.
const ASIDE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_mins(10));

/// Why it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It does not serve.
    Fails,
    /// It asked for fewer requests.
    Throttles,
    /// It asked to be left alone for this long.
    Waits,
    /// It is on another chain or fork, or alone with its opinion.
    Ejected,
}

impl Why {
    /// A limit on requests ends by itself; whether what failed serves again has to be tried.
    pub(super) fn ends_by_itself(self) -> bool {
        matches!(self, Self::Throttles | Self::Waits)
    }
}

/// What it lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Everything.
    Closed,
    /// A try: its pause is over.
    HalfOpen,
    /// Nothing before this moment.
    Open(Why, Instant),
}

/// One endpoint's circuit breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    /// Failures since the last answer, for each kind of request.
    failures: BTreeMap<Kind, u32>,
    open: Option<(Why, Instant)>,
    /// The kind of request whose failures opened it, until one of it is answered: a header says nothing of logs.
    unproven: Option<Kind>,
    pauses: Backoff,
    throttles: Backoff,
    last_throttle: Option<Instant>,
    /// Since when it is closed; `None` where it was never open.
    closed: Option<Instant>,
    steady_after: Duration,
    aside_for: Duration,
    last_aside: Option<Instant>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failures: BTreeMap::new(),
            open: None,
            unproven: None,
            pauses: Backoff::new(PAUSE),
            throttles: Backoff::new(THROTTLED),
            last_throttle: None,
            closed: None,
            steady_after: STEADY.0,
            aside_for: ASIDE.0,
            last_aside: None,
        }
    }
}

impl Breaker {
    /// What it lets pass now.
    pub(super) fn gate(&self, now: Instant) -> Gate {
        match self.open {
            Some((why, until)) if now < until => Gate::Open(why, until),
            Some((why, _)) if !why.ends_by_itself() => Gate::HalfOpen,
            None | Some(_) => Gate::Closed,
        }
    }

    /// Whether it is closed, and has been for long enough to be relied on.
    pub(super) fn is_steady(&self, now: Instant) -> bool {
        let since = match self.open {
            Some((why, until)) if why.ends_by_itself() => Some(until),
            _ => self.closed,
        };
        self.gate(now) == Gate::Closed && since.is_none_or(|since| now.duration_since(since) >= self.steady_after)
    }

    /// The endpoint answered a request of this kind; whether that closes it.
    pub(super) fn answered(&mut self, now: Instant, kind: Kind) -> bool {
        self.failures.remove(&kind);
        let is_proof = self.unproven.is_none_or(|unproven| unproven == kind);
        match self.open {
            // Whatever it answers, it is not to be asked before its time.
            Some((why, until)) if now < until && !(why == Why::Fails && is_proof) => return false,
            None if self.unproven.is_none() => return false,
            _ => {}
        }
        if is_proof {
            self.unproven = None;
            self.failures.clear();
            self.pauses.reset();
        }
        let Some((why, until)) = self.open.take() else { return false };
        self.closed = Some(if why.ends_by_itself() { until } else { now });
        !why.ends_by_itself()
    }

    /// A request of this kind failed; whether that opens it. `at_once`: one such failure is enough.
    pub(super) fn failed(&mut self, now: Instant, kind: Kind, at_once: bool) -> bool {
        let failures = self.failures.entry(kind).or_default();
        *failures = failures.saturating_add(1);
        let is_enough = at_once || *failures >= FAILURES || self.unproven == Some(kind);
        match self.gate(now) {
            Gate::HalfOpen => {
                self.unproven.get_or_insert(kind);
                self.open = Some((Why::Fails, now + self.pauses.next_delay()));
                false
            }
            Gate::Closed if is_enough => {
                self.unproven = Some(kind);
                let pause = self.pauses.next_delay();
                self.open_until(now, Why::Fails, now + pause);
                true
            }
            // Where it is open it was asked before its time, or by a request that was on its way when it opened.
            Gate::Closed | Gate::Open(..) => false,
        }
    }

    /// The endpoint asks for fewer requests; for so long, where it says.
    pub(super) fn throttled(&mut self, now: Instant, wait: Option<Duration>) {
        if self.last_throttle.is_some_and(|last| now.duration_since(last) > THROTTLED * 4) {
            self.throttles.reset();
        }
        self.last_throttle = Some(now);
        let until = now + wait.unwrap_or_else(|| self.throttles.next_delay());
        let is_longer = match self.gate(now) {
            // What it says of itself holds, also where it was to be tried sooner.
            Gate::Open(Why::Fails, known) => wait.is_some() && known < until,
            Gate::Open(why, known) => why.ends_by_itself() && known < until,
            Gate::Closed | Gate::HalfOpen => true,
        };
        if is_longer {
            self.open_until(now, if wait.is_some() { Why::Waits } else { Why::Throttles }, until);
        }
    }

    /// The endpoint is of no use for this long, whatever it answers.
    pub(super) fn eject(&mut self, now: Instant, pause: Duration) {
        self.open_until(now, Why::Ejected, now + pause);
    }

    /// The endpoint is alone with its opinion: for a short time at first, and for longer each time it is so again soon.
    pub(super) fn set_aside(&mut self, now: Instant) {
        if matches!(self.gate(now), Gate::Open(Why::Ejected, _)) {
            return;
        }
        if self.last_aside.is_some_and(|last| now.duration_since(last) > ASIDE.1 * 2) {
            self.aside_for = ASIDE.0;
        }
        self.last_aside = Some(now);
        self.eject(now, self.aside_for);
        self.aside_for = (self.aside_for * 2).min(ASIDE.1);
    }

    fn open_until(&mut self, now: Instant, why: Why, until: Instant) {
        if self.gate(now) == Gate::Closed {
            let is_soon = self.closed.is_some_and(|since| now.duration_since(since) < SOON);
            self.steady_after = if is_soon { (self.steady_after * 2).min(STEADY.1) } else { STEADY.0 };
        }
        self.open = Some((why, until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Kind = Kind::Header;
    const SECOND: Duration = Duration::from_secs(1);

    fn is_open(breaker: &Breaker, now: Instant) -> bool {
        matches!(breaker.gate(now), Gate::Open(..))
    }

    #[test]
    fn it_opens_after_some_failures_in_a_row_and_an_answer_between_them_counts_anew() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!(!breaker.failed(now, HEADER, false) && !breaker.failed(now, HEADER, false));
        breaker.answered(now, HEADER);
        assert!(!breaker.failed(now, HEADER, false) && !breaker.failed(now, HEADER, false));
        assert_eq!(breaker.gate(now), Gate::Closed);
        assert!(breaker.failed(now, HEADER, false));
        assert!(is_open(&breaker, now));
        assert!(Breaker::default().failed(now, HEADER, true), "one is enough where it is said so");
        let mut of_headers = Breaker::default();
        let of_logs = [(); 3].map(|()| {
            of_headers.answered(now, HEADER);
            of_headers.failed(now, Kind::BlockLogs, false)
        });
        assert_eq!(of_logs, [false, false, true], "headers alone are not enough");
    }

    #[test]
    fn its_pauses_grow_up_to_a_limit_and_one_answer_closes_it() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        breaker.failed(now, HEADER, true);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let Gate::Open(Why::Fails, until) = breaker.gate(now) else { panic!("{:?}", breaker.gate(now)) };
            pauses.push(until - now);
            assert!(!breaker.failed(now, HEADER, true), "what fails meanwhile does not prolong it");
            assert_eq!(breaker.gate(now), Gate::Open(Why::Fails, until));
            now = until;
            assert_eq!(breaker.gate(now), Gate::HalfOpen);
            breaker.failed(now, HEADER, false);
        }
        assert!(pauses[0] <= SECOND && pauses[11] >= PAUSE && pauses.iter().all(|pause| *pause <= PAUSE * 2));
        assert!(breaker.answered(now + PAUSE * 2, HEADER));
        assert_eq!(breaker.gate(now), Gate::Closed);
    }

    #[test]
    fn an_answer_of_another_kind_closes_it_only_after_its_pause_and_proves_nothing() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        assert!((0..FAILURES).any(|_| breaker.failed(now, Kind::BlockLogs, false)));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let Gate::Open(Why::Fails, until) = breaker.gate(now) else { panic!("{:?}", breaker.gate(now)) };
            pauses.push(until - now);
            assert!(!breaker.answered(now, HEADER) && is_open(&breaker, now), "headers are not what failed");
            now = until;
            assert!(breaker.answered(now, HEADER) && breaker.gate(now) == Gate::Closed, "a probe is a header");
            assert!(breaker.failed(now, Kind::BlockLogs, false), "one is enough");
        }
        assert!(pauses[0] <= SECOND && pauses[9] >= PAUSE, "{pauses:?}");
        assert!(breaker.answered(now, Kind::BlockLogs), "what failed is answered, whenever that is");
        assert!(!breaker.failed(now, Kind::BlockLogs, false), "it is proven");
        assert!((1..FAILURES).any(|_| breaker.failed(now, Kind::BlockLogs, false)));
        let Gate::Open(Why::Fails, until) = breaker.gate(now) else { panic!("{:?}", breaker.gate(now)) };
        assert!(until - now <= SECOND, "the pauses begin anew");
    }

    #[test]
    fn it_is_steady_only_after_a_while_which_grows_with_each_relapse() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        assert!(breaker.is_steady(now), "what never failed");
        let mut waits = Vec::new();
        for _ in 0..10 {
            breaker.failed(now, HEADER, true);
            now += PAUSE * 2;
            breaker.answered(now, HEADER);
            let begun = now;
            while !breaker.is_steady(now) {
                now += SECOND;
            }
            waits.push(now - begun);
        }
        assert_eq!((waits[0], waits[1], waits[9]), (STEADY.0, STEADY.0 * 2, STEADY.1));
        now += SOON;
        breaker.failed(now, HEADER, true);
        breaker.answered(now + PAUSE * 2, HEADER);
        assert!(breaker.is_steady(now + PAUSE * 2 + STEADY.0), "long ago is forgotten");
    }

    #[test]
    fn a_wait_that_was_asked_for_is_kept_whatever_is_answered_meanwhile() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.throttled(now, Some(SECOND * 7));
        assert!(!breaker.answered(now + SECOND, HEADER));
        breaker.throttled(now + SECOND, Some(SECOND));
        assert_eq!(breaker.gate(now + SECOND * 6), Gate::Open(Why::Waits, now + SECOND * 7));
        assert_eq!(breaker.gate(now + SECOND * 7), Gate::Closed);
        assert!(!breaker.is_steady(now + SECOND * 7));
        assert!(breaker.is_steady(now + SECOND * 7 + STEADY.0));
        let mut fails = Breaker::default();
        fails.failed(now, HEADER, true);
        fails.throttled(now, None);
        assert!(matches!(fails.gate(now), Gate::Open(Why::Fails, _)), "it has not said for how long");
        fails.throttled(now, Some(SECOND * 60));
        assert_eq!(fails.gate(now), Gate::Open(Why::Waits, now + SECOND * 60));
        let mut ejected = Breaker::default();
        ejected.eject(now, SECOND);
        ejected.throttled(now, Some(SECOND * 60));
        assert_eq!(ejected.gate(now), Gate::Open(Why::Ejected, now + SECOND));
        let mut unsaid = Breaker::default();
        unsaid.throttled(now, None);
        assert!(is_open(&unsaid, now) && !is_open(&unsaid, now + SECOND));
    }

    #[test]
    fn an_answer_does_not_bring_an_ejected_endpoint_back_and_loners_are_set_aside_for_longer_each_time() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        breaker.eject(now, SECOND * 600);
        assert!(!breaker.answered(now + SECOND, HEADER));
        assert!(is_open(&breaker, now + SECOND * 599));
        now += SECOND * 600;
        assert_eq!(breaker.gate(now), Gate::HalfOpen);
        assert!(breaker.answered(now, HEADER));
        let mut lengths = Vec::new();
        for _ in 0..8 {
            breaker.set_aside(now);
            let Gate::Open(Why::Ejected, until) = breaker.gate(now) else { panic!("{:?}", breaker.gate(now)) };
            lengths.push(until - now);
            now = until;
            breaker.answered(now, HEADER);
        }
        assert_eq!((lengths[0], lengths[1], lengths[7]), (ASIDE.0, ASIDE.0 * 2, ASIDE.1));
    }
}
